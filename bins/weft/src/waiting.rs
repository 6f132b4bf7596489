//! A line that says how far something is that takes its time: rewritten in place on a terminal, otherwise said again from time to
//! time with what has passed. Goes to the errors, so that pipes get only answers.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Where no line can be rewritten: time between two lines.
const EVERY: Duration = Duration::from_secs(30);
/// Least time between two rewritings: what nobody can read is not written.
const FRAME: Duration = Duration::from_millis(50);

/// The line.
pub struct Waiting<W: Write> {
    out: W,
    /// Columns of the terminal; `None` where there is none.
    columns: Option<usize>,
    begun: Instant,
    told: Instant,
    shown: bool,
    /// Least time between two rewritings.
    frame: Duration,
}

impl Waiting<std::io::Stderr> {
    /// On this program's errors.
    pub fn on_errors() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let columns = terminal_size::terminal_size_of(std::io::stderr()).map(|(width, _)| usize::from(width.0));
        Self::new(std::io::stderr(), terminal.then_some(columns.unwrap_or(80)))
    }
}

impl<W: Write> Waiting<W> {
    /// On any output; `columns` of a terminal, `None` for what is none.
    pub fn new(out: W, columns: Option<usize>) -> Self {
        let now = Instant::now();
        Self { out, columns, begun: now, told: now, shown: false, frame: FRAME }
    }

    /// For tests: every text is written, however fast they follow one another.
    #[cfg(test)]
    pub fn with_every_frame(self) -> Self {
        Self { frame: Duration::ZERO, ..self }
    }

    /// For tests: what was written.
    #[cfg(test)]
    pub fn into_inner(self) -> W {
        self.out
    }

    /// Says how far it is at `now`. Nobody who reads it is no reason to stop.
    pub fn tell(&mut self, text: &str, now: Instant) {
        let since = now.saturating_duration_since(self.told);
        let written = match self.columns {
            Some(columns) if !self.shown || since >= self.frame => {
                let text: String = text.chars().take(columns.saturating_sub(1)).collect();
                self.shown = true;
                write!(self.out, "\r{text}\x1b[K")
            }
            None if since >= EVERY => {
                writeln!(self.out, "{text} ({} so far)", spelled(now.saturating_duration_since(self.begun)))
            }
            _ => return,
        };
        self.told = now;
        let _ = written.and_then(|()| self.out.flush());
    }

    /// Writes lines that stay, such as errors; the rewritten line makes way.
    pub fn line(&mut self, text: &str) {
        self.clear();
        let _ = writeln!(self.out, "{text}").and_then(|()| self.out.flush());
    }

    /// Takes the rewritten line away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(self.out, "\r\x1b[K").and_then(|()| self.out.flush());
        }
    }

    /// Time since the beginning, in words.
    pub fn passed(&self) -> String {
        spelled(self.begun.elapsed())
    }
}

/// `45 s`, `8 min 5 s`.
fn spelled(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(columns: Option<usize>, at: &[(u64, &str)]) -> String {
        let mut waiting = Waiting::new(Vec::new(), columns);
        let begun = waiting.begun;
        for (second, text) in at {
            waiting.tell(text, begun + Duration::from_secs(*second));
        }
        waiting.line("the end");
        String::from_utf8(waiting.out).unwrap()
    }

    #[test]
    fn a_terminal_has_one_line_and_files_have_one_from_time_to_time() {
        let steps = [(0, "one"), (1, "two"), (31, "three"), (35, "four"), (125, "five")];
        assert_eq!(said(None, &steps), "three (31 s so far)\nfive (2 min 5 s so far)\nthe end\n");
        let shown = said(Some(4), &steps);
        assert_eq!(shown, "\rone\x1b[K\rtwo\x1b[K\rthr\x1b[K\rfou\x1b[K\rfiv\x1b[K\r\x1b[Kthe end\n");
        assert_eq!(said(Some(80), &[(0, "one"), (0, "at once")]), "\rone\x1b[K\r\x1b[Kthe end\n");
        assert_eq!(said(None, &[]), "the end\n");
    }
}
