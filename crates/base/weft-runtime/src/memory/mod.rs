//! Memory that is not needed now, given back to the system. The allocator (mimalloc, in every program of ours) returns pages
//! only when it next has work, so a process that became idle after a burst would keep them; and code and tables that ran once
//! stay mapped for ever.

mod sys;

use crate::ready::Readiness;
use std::time::Duration;

/// How often a process looks for memory to give back.
const EVERY: Duration = Duration::from_secs(10);

/// Gives back what the start needed as soon as it is over, and then what has become free, again and again; never ends.
pub async fn keep_giving_back(readiness: Readiness) {
    // Now, while nothing is mapped but the program and the libraries that it is linked with, which stay where they are.
    let files = std::fs::read_to_string("/proc/self/smaps").map(|smaps| untouched(&smaps)).unwrap_or_default();
    readiness.wait().await;
    give_back(&files);
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
        give_back(&files);
    }
}

/// Gives back free memory, and the pages of the program's own files: most of its code and tables runs at the start only (the
/// command line, parsers of files), or once in a while (handshakes, changes of the configuration), and each use of a byte brings
/// 64 kB along. What is in use comes back at once, from the page cache: some hundred faults, a fraction of a millisecond.
fn give_back(files: &[(usize, usize)]) {
    sys::collect();
    for (start, end) in files {
        sys::unmap_until_used(*start, *end);
    }
}

/// Mappings of files that cannot be written and in which no page differs from the file (as those do in which the loader wrote
/// addresses); see proc_pid_smaps(5).
fn untouched(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        if let Some(range) = of_file(line) {
            mapping = range;
        } else if let Some(kept) = line.strip_prefix("Anonymous:")
            && kept.trim() == "0 kB"
        {
            found.extend(mapping.take());
        }
    }
    found
}

/// What the first line of a mapping says; `None` for other lines, `Some(None)` for mappings that are not of files, or can be
/// written.
fn of_file(line: &str) -> Option<Option<(usize, usize)>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let (rights, path) = (fields.next()?, fields.nth(3).unwrap_or_default());
    let wanted = rights.starts_with('r') && !rights.contains('w') && rights.ends_with('p') && path.starts_with('/');
    Some(wanted.then_some((start, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_as_they_are_on_disk_are_found() {
        let mapping =
            |line: &str, anonymous: u32| format!("{line}\nSize: 4 kB\nRss: 4 kB\nAnonymous: {anonymous} kB\n");
        let smaps = [
            mapping("1000-2000 r--p 00000000 fd:00 1                    /bin/weft-proxy", 0),
            mapping("2000-5000 r-xp 00001000 fd:00 1                    /bin/weft-proxy", 0),
            mapping("5000-6000 r--p 00004000 fd:00 1                    /bin/weft-proxy", 4),
            mapping("6000-7000 rw-p 00005000 fd:00 1                    /bin/weft-proxy", 0),
            mapping("7000-8000 r-xp 00000000 fd:00 2                    /lib/libc.so.6", 0),
            mapping("8000-9000 r--s 00000000 fd:00 3                    /dev/shm/x", 0),
            mapping("9000-a000 r--p 00000000 00:00 0", 0),
            mapping("a000-b000 r--p 00000000 00:00 0                    [vvar]", 0),
            mapping("b000-c000 r-xp 00000000 00:00 0                    [vdso]", 0),
        ];
        assert_eq!(untouched(&smaps.concat()), [(0x1000, 0x2000), (0x2000, 0x5000), (0x7000, 0x8000)]);
        assert_eq!(untouched("no map"), []);
    }

    #[test]
    fn a_program_goes_on() {
        let files = untouched(&std::fs::read_to_string("/proc/self/smaps").unwrap());
        assert!(!files.is_empty());
        give_back(&files);
        assert_eq!((1..=10).sum::<u32>(), 55);
    }
}
