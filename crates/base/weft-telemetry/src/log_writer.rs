//! Writers of log lines: a thread per destination, so that a slow disk or pipe never holds up a request.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Lines that may wait; beyond that, lines are dropped and counted.
const QUEUE: usize = 8192;

/// A destination of log lines. Clones share it.
#[derive(Debug, Clone)]
pub struct LogWriter {
    lines: SyncSender<String>,
    dropped: Arc<AtomicU64>,
}

impl LogWriter {
    /// Starts a writer to `out`. The thread ends when all clones are dropped and the queue is empty.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(out: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (lines, queue) = sync_channel(QUEUE);
        std::thread::Builder::new().name("access-log".into()).spawn(move || write_all(&queue, out))?;
        Ok(Self { lines, dropped: Arc::default() })
    }

    /// Standard output.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn stdout() -> std::io::Result<Self> {
        Self::start(std::io::stdout())
    }

    /// Appends to the file at `path`, made when missing.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn file(path: &std::path::Path) -> std::io::Result<Self> {
        Self::start(std::fs::OpenOptions::new().create(true).append(true).open(path)?)
    }

    /// Hands over one line, newline included. Never waits.
    pub fn write(&self, line: String) {
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines lost because the destination was too slow.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Writes what has gathered in one go, so that a busy proxy makes few system calls.
fn write_all(queue: &Receiver<String>, mut out: impl Write) {
    while let Ok(first) = queue.recv() {
        let mut batch = first;
        while batch.len() < 64 * 1024 {
            match queue.try_recv() {
                Ok(line) => batch.push_str(&line),
                Err(_) => break,
            }
        }
        // A destination that fails (closed pipe, full disk) must not end the thread: later lines may succeed.
        let _ = out.write_all(batch.as_bytes()).and_then(|()| out.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_in_order() {
        let file = std::env::temp_dir().join(format!("weft-log-{}", std::process::id()));
        let writer = LogWriter::file(&file).unwrap();
        for i in 0..100 {
            writer.write(format!("{i}\n"));
        }
        drop(writer);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let text = std::fs::read_to_string(&file).unwrap();
            if text.lines().count() == 100 {
                assert!(text.starts_with("0\n1\n"));
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{} lines", text.lines().count());
            std::thread::yield_now();
        }
        std::fs::remove_file(file).unwrap();
    }
}
