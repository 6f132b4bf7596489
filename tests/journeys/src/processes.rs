//! The processes of a lab, as the host sees them.

use anyhow::Result;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::fs;

/// Process ids below `ancestor` whose command is `name`.
pub fn descendants(ancestor: Pid, name: &str) -> Result<Vec<Pid>> {
    let mut parents = HashMap::new();
    let mut named = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        // A process may end while it is looked at.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
        let parent = stat[close + 1..].split_whitespace().nth(1).and_then(|p| p.parse::<i32>().ok());
        parents.insert(pid, parent.unwrap_or_default());
        if name.is_empty() || stat[open + 1..close] == *name {
            named.push(pid);
        }
    }
    let below = |mut pid: i32| {
        while let Some(parent) = parents.get(&pid) {
            if *parent == ancestor.as_raw() {
                return true;
            }
            pid = *parent;
        }
        false
    };
    Ok(named.into_iter().filter(|pid| below(*pid)).map(Pid::from_raw).collect())
}

/// Lines of `/proc/self/mountinfo` and names of network interfaces on the host: what a lab must leave as it found it.
pub fn host_state() -> Result<(Vec<String>, Vec<String>)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?.lines().map(str::to_string).collect();
    let mut links: Vec<String> = fs::read_dir("/sys/class/net")?
        .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    links.sort();
    Ok((mounts, links))
}
