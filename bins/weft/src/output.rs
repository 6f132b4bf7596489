//! How answers look: aligned tables, colours only on a terminal, errors with what to do next.

use clap::ValueEnum;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

/// Blanks between columns.
const GAP: usize = 3;

/// How an answer is shown that is a table unless a program reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Table.
    #[value(alias = "short")]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Writes text to the output.
///
/// # Errors
/// When nobody reads it any more; [`is_broken_pipe`] tells that apart.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes a line to the output.
///
/// # Errors
/// As [`print`].
pub fn line(text: impl AsRef<str>) -> anyhow::Result<()> {
    print(&format!("{}\n", text.as_ref()))
}

/// Writes a warning to the errors.
pub fn warn(text: impl AsRef<str>) {
    note("Warning:", Colour::Yellow, text.as_ref());
}

/// Writes an error and its causes to the errors.
pub fn error(error: &anyhow::Error) {
    note("error:", Colour::Red, &format!("{error:#}"));
}

/// Writes a remark to the errors, so that pipes get only answers.
pub fn note_plain(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

fn note(word: &str, colour: Colour, text: &str) {
    // When the errors cannot be written there is no one left to tell.
    let _ = writeln!(io::stderr().lock(), "{} {text}", paint(word, colour, io::stderr().is_terminal()));
}

/// True when the output was closed by its reader.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Colours of states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// Good.
    Green,
    /// Not yet good.
    Yellow,
    /// Bad.
    Red,
}

/// Gives text a colour when the output is a terminal and `NO_COLOR` is not set.
fn paint(text: &str, colour: Colour, terminal: bool) -> String {
    static PLAIN: OnceLock<bool> = OnceLock::new();
    let plain = *PLAIN.get_or_init(|| std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()));
    let code = match colour {
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
    };
    if plain || !terminal { text.to_string() } else { format!("\x1b[{code}m{text}\x1b[0m") }
}

/// Rows of equal columns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Self {
        Table { head: head.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Sorts the rows by their cells, first column first.
    pub fn sort(&mut self) {
        self.rows.sort();
    }

    /// True when there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows, for tests.
    #[cfg(test)]
    pub fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// Writes the table to the output.
    ///
    /// # Errors
    /// As [`print`].
    pub fn print(&self) -> anyhow::Result<()> {
        print(&self.render(io::stdout().is_terminal()))
    }

    /// The table as text; the last column is not padded.
    pub fn render(&self, terminal: bool) -> String {
        let columns = self.rows.iter().map(Vec::len).chain([self.head.len()]).max().unwrap_or(0);
        let lines = || [&self.head].into_iter().chain(&self.rows);
        let cell = |line: &Vec<String>, i: usize| line.get(i).map_or(0, |c| c.chars().count());
        let widths: Vec<usize> = (0..columns).map(|i| lines().map(|l| cell(l, i)).max().unwrap_or(0)).collect();
        let mut text = String::new();
        for line in lines() {
            let mut written = String::new();
            for (i, width) in widths.iter().enumerate() {
                let value = line.get(i).map_or("", String::as_str);
                match state_colour(value) {
                    Some(colour) => written.push_str(&paint(value, colour, terminal)),
                    None => written.push_str(value),
                }
                written.push_str(&" ".repeat(width - value.chars().count() + GAP));
            }
            text.push_str(written.trim_end());
            text.push('\n');
        }
        text
    }
}

fn state_colour(word: &str) -> Option<Colour> {
    match word {
        "SYNCED" | "Running" | "HEALTHY" | "ACTIVE" => Some(Colour::Green),
        "STALE" | "NOT_SENT" | "Pending" | "WARMING" | "DRAINING" => Some(Colour::Yellow),
        "ERROR" | "UNHEALTHY" | "CrashLoopBackOff" | "Error" | "Failed" => Some(Colour::Red),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(["NAME", "AGE"]);
        table.row(["a", "1d"]);
        table.row(["longer-é", ""]);
        assert_eq!(table.render(false), "NAME       AGE\na          1d\nlonger-é\n");
    }

    #[test]
    fn colours_only_on_a_terminal() {
        let mut table = Table::new(["CDS", "LDS"]);
        table.row(["SYNCED", "STALE"]);
        assert!(!table.render(false).contains('\x1b'));
        let painted = table.render(true);
        assert!(painted.contains("\x1b[32mSYNCED\x1b[0m") || std::env::var_os("NO_COLOR").is_some());
    }
}
