//! A program under test: started, read line by line, and ended with the value.

use crate::LIMIT;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

/// Weft's program of that name: in `WEFT_BIN_DIR`, else beside this test's own program.
///
/// # Panics
/// When it was not built.
pub fn weft(name: &str) -> PathBuf {
    let folder = std::env::var_os("WEFT_BIN_DIR").map(PathBuf::from);
    let beside = || std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_path_buf();
    let program = folder.unwrap_or_else(beside).join(name);
    assert!(program.exists(), "{} is missing: cargo build -p {name}", program.display());
    program
}

/// A Go program of `tests/interop/go`: in `WEFT_INTEROP`, else in the target folder.
///
/// # Panics
/// When it was not built.
pub fn go(name: &str) -> PathBuf {
    let program = peer("WEFT_INTEROP", "interop").join(name);
    assert!(program.exists(), "{} is missing: cargo xtask interop", program.display());
    program
}

/// A Python that has gRPC's library: `WEFT_PYTHON`, else the one in the target folder.
///
/// # Panics
/// When it was not installed.
pub fn python() -> PathBuf {
    let program = peer("WEFT_PYTHON", "peers/bin/python");
    assert!(program.exists(), "{} is missing: cargo xtask peers", program.display());
    program
}

/// What the variable names, else that place in the target folder.
fn peer(variable: &str, place: &str) -> PathBuf {
    let target = || std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join(place);
    std::env::var_os(variable).map_or_else(target, PathBuf::from)
}

/// A running program, whose standard output is read.
pub struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    name: String,
}

impl Process {
    /// Starts it; its standard error goes to that file.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let errors = std::fs::File::create(log).unwrap();
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { input: child.stdin.take(), child, lines, name: name.to_string() }
    }

    /// Writes a line to its standard input.
    ///
    /// # Panics
    /// When it is gone.
    pub fn say(&mut self, line: &str) {
        let input = self.input.as_mut().expect("a standard input");
        writeln!(input, "{line}").unwrap_or_else(|e| panic!("{} is gone: {e}", self.name));
        input.flush().unwrap();
    }

    /// The first line from now on for which `pick` has something; waits for it, at most [`LIMIT`].
    ///
    /// # Panics
    /// When there is none in time, with the lines that came.
    pub fn line<T>(&mut self, what: &str, pick: impl Fn(&str) -> Option<T>) -> T {
        let begun = Instant::now();
        let mut seen = Vec::new();
        loop {
            let left = LIMIT.saturating_sub(begun.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => match pick(&line) {
                    Some(found) => return found,
                    None => seen.push(line),
                },
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("{}: no line with {what}; it said:\n{}", self.name, seen.join("\n"))
                }
            }
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
