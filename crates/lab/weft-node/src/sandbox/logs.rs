//! What a container wrote: the newest lines, bounded in memory, readable while it runs.

use std::collections::VecDeque;
use std::sync::Mutex;
use tokio::sync::watch;

/// Bytes of log kept per container; older lines are dropped.
const KEPT: usize = 2 << 20;
/// A longer line is cut into several.
const LONGEST_LINE: usize = 16 << 10;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Number of the line since the log began.
    pub number: u64,
    /// When it was read from the container.
    pub time: jiff::Timestamp,
    /// How many times the container had been restarted when it wrote the line.
    pub restart: u32,
    /// The line, without its end.
    pub text: Vec<u8>,
}

/// A container's log over all its restarts.
#[derive(Debug)]
pub struct ContainerLog {
    lines: Mutex<Lines>,
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<LogLine>,
    bytes: usize,
    next: u64,
}

impl Default for ContainerLog {
    fn default() -> Self {
        Self { lines: Mutex::default(), written: watch::Sender::new(0) }
    }
}

impl ContainerLog {
    /// Adds one line.
    pub fn push(&self, restart: u32, text: &[u8]) {
        let mut lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let pieces = if text.is_empty() { vec![text] } else { text.chunks(LONGEST_LINE).collect() };
        for piece in pieces {
            let line = LogLine { number: lines.next, time: jiff::Timestamp::now(), restart, text: piece.to_vec() };
            lines.next += 1;
            lines.bytes += line.text.len();
            lines.kept.push_back(line);
        }
        while lines.bytes > KEPT {
            let Some(oldest) = lines.kept.pop_front() else { break };
            lines.bytes -= oldest.text.len();
        }
        let next = lines.next;
        drop(lines);
        self.written.send_replace(next);
    }

    /// The lines from number `from` on that are still kept.
    pub fn since(&self, from: u64) -> Vec<LogLine> {
        let lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = lines.kept.partition_point(|line| line.number < from);
        lines.kept.range(start..).cloned().collect()
    }

    /// Tells when lines are added; its value is the number that the next line will have.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// The last lines, for a message; at most `count`.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = lines.kept.len().saturating_sub(count);
        lines.kept.range(start..).map(|line| String::from_utf8_lossy(&line.text).into_owned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_and_numbers_them() {
        let log = ContainerLog::default();
        for n in 0..1000 {
            log.push(0, format!("{n} {}", "x".repeat(LONGEST_LINE - 10)).as_bytes());
        }
        let kept = log.since(0);
        let bytes: usize = kept.iter().map(|l| l.text.len()).sum();
        assert!(bytes <= KEPT && kept.len() > 100, "{} lines, {bytes} bytes", kept.len());
        assert_eq!(kept.last().unwrap().number, 999);
        assert_eq!(log.since(998).len(), 2);
        assert_eq!(log.since(1000), []);
        assert!(log.tail(1)[0].starts_with("999 "));
    }

    #[test]
    fn cuts_long_lines() {
        let log = ContainerLog::default();
        log.push(3, &vec![b'a'; LONGEST_LINE * 2 + 1]);
        log.push(3, b"");
        assert_eq!(log.since(0).iter().map(|l| l.text.len()).collect::<Vec<_>>(), [LONGEST_LINE, LONGEST_LINE, 1, 0]);
    }
}
