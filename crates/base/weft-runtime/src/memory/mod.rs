//! Memory that is not needed now, given back to the system. The allocator (mimalloc, in every program of ours) returns pages
//! only when it next has work, so a process that became idle after a burst would keep them; and the code that only a start
//! needs stays mapped for ever.

mod sys;

use crate::ready::Readiness;
use std::path::Path;
use std::time::Duration;

/// How often an idle process looks for memory to give back.
const EVERY: Duration = Duration::from_secs(10);

/// Gives back what the start needed as soon as it is over, and then what has become free, again and again; never ends.
pub async fn keep_giving_back(readiness: Readiness) {
    readiness.wait().await;
    after_start();
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
        sys::collect();
    }
}

/// Gives back what a start needed of memory, and of the program's own code, most of which never runs again (the command
/// line, parsers of files). What does run comes back at its next use, from the page cache.
fn after_start() {
    sys::collect();
    let Ok(program) = std::env::current_exe() else { return };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, end) in code(&maps, &program) {
        sys::unmap_until_used(start, end);
    }
}

/// Executable mappings of the program's file that cannot be written; see proc_pid_maps(5).
fn code(maps: &str, program: &Path) -> Vec<(usize, usize)> {
    let of_line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (range, rights, path) = (fields.next()?, fields.next()?, fields.nth(3)?);
        let (start, end) = range.split_once('-')?;
        let wanted = rights == "r-xp" && Path::new(path) == program;
        wanted.then_some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
    };
    maps.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_programs_own_code_is_found() {
        let maps = "1000-2000 r--p 00000000 fd:00 1 /bin/weft-proxy\n2000-5000 r-xp 00001000 fd:00 1 /bin/weft-proxy\n\
                    5000-6000 rw-p 00004000 fd:00 1 /bin/weft-proxy\n7000-8000 r-xp 00000000 fd:00 2 /lib/libc.so.6\n\
                    9000-a000 rw-p 00000000 00:00 0 [heap]\n";
        assert_eq!(code(maps, Path::new("/bin/weft-proxy")), [(0x2000, 0x5000)]);
        assert_eq!(code("no map", Path::new("/bin/weft-proxy")), []);
    }

    #[test]
    fn a_program_goes_on_after_its_start() {
        after_start();
        assert_eq!((1..=10).sum::<u32>(), 55);
    }
}
