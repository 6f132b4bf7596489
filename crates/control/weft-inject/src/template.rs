//! Custom injection templates: YAML with expressions in Go's template language, of which this is the part that templates of
//! pods use. The result is a strategic merge patch for the pod.
//!
//! What there is: `{{ }}` with `-` to trim blanks, comments, `.Field` chains, `$variables`, `:=` and `=`, pipelines and
//! parentheses, strings, numbers, `true`, `false`, `nil`; `if`, `else if`, `else`, `range` (one or two variables, `else`),
//! `with`, `end`; the functions listed in `functions`. What there is not: `define`, `template`, `block`, methods, and
//! functions that read the environment of the injector or the time.
//!
//! Fields are looked up as they are written, else with a small first letter: `.Spec.Containers` finds `containers`.
//!
//! Reading order: `parse` (text to tree), `eval` (tree and data to text), `functions`.

mod eval;
mod functions;
mod parse;

use serde_json::Value;

/// Checks a template without running it.
///
/// # Errors
/// The line and what is wrong there.
pub fn check(text: &str) -> Result<(), String> {
    parse::parse(text).map(drop)
}

/// Runs a template on `data`.
///
/// # Errors
/// The line and what is wrong there; also when it takes too many steps or writes too much.
pub fn run(text: &str, data: &Value) -> Result<String, String> {
    eval::run(&parse::parse(text)?, data)
}
