//! How many files, and so connections, this process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files kept for what is no connection of a client: logs, listening sockets, the control plane, the admin port.
const KEPT: u64 = 128;
/// Fewest connections allowed, whatever the limit of files: a proxy without any is none.
const FEWEST: u64 = 64;
/// Most connections allowed where files are without limit.
const MOST: u64 = 1_000_000;

/// Raises the limit of open files as far as the system lets this process (what Go programs do at start), and tells it.
pub fn raise_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// Connections of clients that `files` are enough for: each may need one to an endpoint too.
pub fn connections_for(files: u64) -> u64 {
    (files.saturating_sub(KEPT) / 2).clamp(FEWEST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_endpoints() {
        for (files, want) in [(0, 64), (256, 64), (1024, 448), (20_000, 9_936), (u64::MAX, 1_000_000)] {
            assert_eq!(connections_for(files), want, "{files}");
        }
    }

    #[test]
    fn the_limit_is_what_the_system_says() {
        let raised = raise_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(raised == soft && soft == hard, "{raised} {soft} {hard}");
    }
}
