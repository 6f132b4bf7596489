//! A build by cargo, and how far it is: cargo tells which crates are done (JSON, a line each, on its output) and which it is at
//! (its errors, beside the compiler's words). The first is counted, the second is shown; whatever else it says is passed on whole.

use crate::waiting::Waiting;
use anyhow::Context;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Longest time between two looks at the clock.
const LOOK: Duration = Duration::from_millis(500);
/// Words that begin cargo's lines about what it does, each in a column of this width.
const DOES: [&str; 7] = ["Compiling", "Building", "Updating", "Locking", "Downloading", "Downloaded", "Adding"];
const COLUMN: usize = 12;
/// As those: nobody needs them.
const HUSHED: [&str; 3] = ["Finished", "Fresh", "Dirty"];
/// As those: another cargo is at work.
const WAITS: &str = "Blocking";

/// What cargo says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// It has done this package.
    Done(String),
    /// It begins with this.
    Does(String),
    /// A line for the user.
    Line(String),
}

/// How far it is.
#[derive(Debug, Default)]
struct Far {
    done: BTreeSet<String>,
    count: Option<usize>,
    at: String,
}

impl Far {
    fn text(&self) -> String {
        // Cargo counts what it builds, the list what there is: features may make them differ by a few.
        let count = self.count.map(|count| format!(" of {}", count.max(self.done.len()))).unwrap_or_default();
        format!("Building: {}{count} crates done; {}", self.done.len(), self.at)
    }
}

/// Runs `build` (to which the form of its messages is added) and tells how far it is; `list` prints the packages that there are,
/// and is run when there is something to build. True when it succeeded.
///
/// # Errors
/// When cargo cannot be run.
pub fn run<W: Write>(mut build: Command, list: Command, waiting: &mut Waiting<W>) -> anyhow::Result<bool> {
    build.args(["--message-format", "json-render-diagnostics"]);
    build.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = build.get_program().to_string_lossy().into_owned();
    let mut child = build.spawn().with_context(|| format!("cannot run {program}"))?;
    let (say, said) = channel();
    read(child.stdout.take(), say.clone(), of_output);
    read(child.stderr.take(), say, of_errors);
    follow(&said, list, waiting);
    waiting.clear();
    let status = child.wait().with_context(|| format!("cannot wait for {program}"))?;
    Ok(status.success())
}

/// Passes on what is said on a pipe, until its end.
fn read(pipe: Option<impl Read + Send + 'static>, say: Sender<Said>, line: fn(&str) -> Option<Said>) {
    thread::spawn(move || {
        let lines = pipe.map(|pipe| BufReader::new(pipe).split(b'\n')).into_iter().flatten();
        for text in lines.map_while(Result::ok) {
            let text = String::from_utf8_lossy(&text);
            let said = line(text.trim_end_matches('\r'));
            // Nobody hears any more: the build has ended.
            if said.is_some_and(|said| say.send(said).is_err()) {
                return;
            }
        }
    });
}

/// A line of cargo's output: JSON about what it has done.
fn of_output(line: &str) -> Option<Said> {
    let Ok(message) = serde_json::from_str::<Value>(line) else { return Some(Said::Line(line.to_string())) };
    let package = message["package_id"].as_str().filter(|_| message["reason"] == "compiler-artifact");
    package.map(|id| Said::Done(id.to_string()))
}

/// A line of cargo's errors: what it does, or the words of a compiler.
fn of_errors(line: &str) -> Option<Said> {
    let (word, rest) = line.split_at_checked(COLUMN).unwrap_or((line, ""));
    // A line that begins at the left is a compiler's, whatever its first word.
    let word = word.trim_start();
    let of_cargo = line.starts_with(' ') && rest.starts_with(' ');
    match word {
        WAITS if of_cargo => Some(Said::Does("another cargo is at work".into())),
        word if of_cargo && HUSHED.contains(&word) => None,
        word if of_cargo && DOES.contains(&word) => {
            let name = rest.trim_start().split(" (").next().unwrap_or_default();
            Some(Said::Does(format!("{} {name}", word.to_lowercase())))
        }
        _ => Some(Said::Line(line.to_string())),
    }
}

/// Tells what is said, until both pipes have ended.
fn follow<W: Write>(said: &Receiver<Said>, list: Command, waiting: &mut Waiting<W>) {
    let mut far = Far::default();
    let mut list = Some(list);
    let (tell, counted) = channel();
    loop {
        match said.recv_timeout(LOOK) {
            Ok(Said::Done(package)) => drop(far.done.insert(package)),
            Ok(Said::Does(what)) => {
                // With nothing to compile there is nothing to count.
                if let Some(list) = list.take_if(|_| what.starts_with("compiling")) {
                    let tell = tell.clone();
                    thread::spawn(move || count(list).map(|count| tell.send(count)));
                }
                far.at = what;
            }
            Ok(Said::Line(line)) => waiting.line(&line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        far.count = counted.try_recv().ok().or(far.count);
        if !far.at.is_empty() {
            waiting.tell(&far.text(), Instant::now());
        }
    }
}

/// How many packages a list has; each is told as often as something needs it.
fn count(mut list: Command) -> Option<usize> {
    let output = list.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let packages: BTreeSet<&str> =
        text.lines().map(|line| line.trim_end_matches(" (*)")).filter(|line| !line.is_empty()).collect();
    (!packages.is_empty()).then_some(packages.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_cargo_says() {
        let does = |text: &str| Some(Said::Does(text.into()));
        let line = |text: &str| Some(Said::Line(text.into()));
        for (text, said) in [
            ("   Compiling weft-core v0.1.0 (/work/weft-core)", does("compiling weft-core v0.1.0")),
            (" Downloading crates ...", does("downloading crates ...")),
            ("    Blocking waiting for file lock on build directory", does("another cargo is at work")),
            ("    Finished `dev` profile [unoptimized] target(s) in 0.3s", None),
            ("error[E0425]: cannot find value `x`", line("error[E0425]: cannot find value `x`")),
            ("  --> src/main.rs:1:2", line("  --> src/main.rs:1:2")),
            ("Compiling is a word", line("Compiling is a word")),
            ("   ääääääääää ä", line("   ääääääääää ä")),
            ("", line("")),
        ] {
            assert_eq!(of_errors(text), said, "{text}");
        }
        let done = r#"{"reason":"compiler-artifact","package_id":"a#1","fresh":true}"#;
        assert_eq!(of_output(done), Some(Said::Done("a#1".into())));
        assert_eq!(of_output(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(of_output("no JSON"), line("no JSON"));
    }

    #[test]
    fn how_far_it_is() {
        let (say, said) = channel();
        for message in [
            Said::Done("a".into()),
            Said::Does("compiling b v1".into()),
            Said::Done("a".into()),
            Said::Line("warning: b".into()),
            Said::Done("b".into()),
        ] {
            say.send(message).unwrap();
        }
        drop(say);
        let mut waiting = Waiting::new(Vec::new(), Some(200)).with_every_frame();
        follow(&said, shell("exit 1"), &mut waiting);
        let text = String::from_utf8(waiting.into_inner()).unwrap();
        let first = "\rBuilding: 1 crates done; compiling b v1\x1b[K";
        let last = "\r\x1b[Kwarning: b\n\rBuilding: 1 crates done; compiling b v1\x1b[K\rBuilding: 2 crates done; compiling b v1\x1b[K";
        assert_eq!(text, format!("{first}{first}{last}"));
        let mut far = Far { count: Some(7), ..Far::default() };
        far.at = "compiling c v1".into();
        assert_eq!(far.text(), "Building: 0 of 7 crates done; compiling c v1");
        assert_eq!(count(shell("printf 'a v1\n\nb v1\na v1 (*)\n'")), Some(2));
        assert_eq!(count(shell("exit 1")), None);
    }

    #[test]
    fn errors_are_shown_whole_and_the_end_is_not_missed() {
        let failing =
            "echo '   Compiling a v1' >&2; printf 'error: one\n  two\n\n' >&2; echo '{\"reason\":\"x\"}'; exit 101";
        let mut waiting = Waiting::new(Vec::new(), None);
        assert!(!run(shell(failing), shell("echo a"), &mut waiting).unwrap());
        assert_eq!(String::from_utf8(waiting.into_inner()).unwrap(), "error: one\n  two\n\n");
        let mut waiting = Waiting::new(Vec::new(), None);
        assert!(run(shell("echo '    Finished x' >&2"), shell("exit 1"), &mut waiting).unwrap());
        assert_eq!(waiting.into_inner(), b"");
        assert!(run(Command::new("/no/such/cargo"), shell("exit 1"), &mut Waiting::new(Vec::new(), None)).is_err());
    }
}
