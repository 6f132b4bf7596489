//! What containers take of the machine: processor time and memory of all processes of a container, from `/proc`. A container
//! has a process namespace of its own, which is what tells its processes from others', those of `kubectl exec` included.
//!
//! Source: proc(5), `/proc/pid/stat` and `/proc/pid/status`.

use super::node::Node;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;
use weft_apiserver::Usage;

/// Parts of a second in which the kernel tells processor time: fixed where programs see it (`USER_HZ`).
const TICKS: u64 = 100;

/// What the processes of one namespace take.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Taken {
    /// Also of children that have ended and were waited for.
    ticks: u64,
    /// Bytes that no other use can be made of: what belongs to no file.
    memory: u64,
}

impl Node {
    /// What the running containers of all pods take.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub(super) fn taken(&self) -> io::Result<Vec<Usage>> {
        let workers: Vec<_> = self
            .workers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(uid, w)| (uid.clone(), w.clone()))
            .collect();
        let all = by_namespace(Path::new("/proc"))?;
        let mut found = Vec::new();
        for (uid, worker) in workers {
            for (container, pid) in worker.processes() {
                // One that has just ended takes nothing.
                let Some(taken) = namespace(&Path::new("/proc").join(pid.to_string())).and_then(|own| all.get(&own))
                else {
                    continue;
                };
                let processor = Duration::from_millis(taken.ticks.saturating_mul(1000 / TICKS));
                found.push(Usage { pod_uid: uid.clone(), container, processor, memory: taken.memory });
            }
        }
        Ok(found)
    }
}

/// One walk over all processes. Those that end meanwhile are passed over.
fn by_namespace(proc: &Path) -> io::Result<HashMap<String, Taken>> {
    let mut all: HashMap<String, Taken> = HashMap::new();
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().bytes().all(|c| c.is_ascii_digit()) {
            continue;
        }
        let path = entry.path();
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
        let (Some(own), Some(ticks)) = (namespace(&path), ticks(&read("stat"))) else { continue };
        let taken = all.entry(own).or_default();
        taken.ticks = taken.ticks.saturating_add(ticks);
        taken.memory = taken.memory.saturating_add(memory(&read("status")));
    }
    Ok(all)
}

/// `pid:[4026531836]`
fn namespace(process: &Path) -> Option<String> {
    Some(fs::read_link(process.join("ns/pid")).ok()?.to_string_lossy().into_owned())
}

/// `utime`, `stime`, `cutime` and `cstime`, the fields 14 to 17: behind the name, which may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    let fields: Vec<u64> = behind.split_whitespace().skip(11).take(4).filter_map(|field| field.parse().ok()).collect();
    (fields.len() == 4).then(|| fields.iter().sum())
}

/// `RssAnon` and `RssShmem`, in bytes.
fn memory(status: &str) -> u64 {
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    ["RssAnon", "RssShmem"].into_iter().filter_map(of).sum::<u64>().saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells() {
        let stat = "7 (odd) name) S 1 7 7 0 -1 4194560 1 2 3 4 11 22 33 44 20 0 1 0 5";
        assert_eq!(ticks(stat), Some(11 + 22 + 33 + 44));
        assert_eq!(ticks("7 (short) S 1"), None);
        let status =
            "Name:\tx\nVmRSS:\t   900 kB\nRssAnon:\t     100 kB\nRssFile:\t     800 kB\nRssShmem:\t       4 kB\n";
        assert_eq!(memory(status), 104 << 10);
        assert_eq!(memory("Name:\tkernel thread\n"), 0);
    }

    #[test]
    fn this_process_is_seen() {
        let own = namespace(Path::new("/proc/self")).unwrap();
        let all = by_namespace(Path::new("/proc")).unwrap();
        assert!(all[&own].memory > 100 << 10, "{all:?}");
    }
}
