//! Checks of the text that no compiler makes.

use crate::run;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest file, tests apart.
const MAX_LINES: usize = 800;
/// Marks of unfinished work.
const UNFINISHED: &[&str] = &["todo!(", "unimplemented!(", "#[ignore", "FIXME", "XXX"];

/// Fails with everything that is untidy.
pub fn check() -> Result<()> {
    let mut wrong = Vec::new();
    let files = rust_files()?;
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(run::root()).unwrap_or(file).display().to_string();
        wrong.extend(problems(&name, &text).into_iter().map(|problem| format!("{name}: {problem}")));
    }
    if !wrong.is_empty() {
        bail!("untidy:\n  {}", wrong.join("\n  "));
    }
    println!("tidy: {} files", files.len());
    run::cargo(&["fmt", "--all", "--check"])
}

fn problems(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push("must open with //! and what the file owns".into());
    }
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code.lines().count();
    if lines > MAX_LINES && !is_test(name) {
        found.push(format!("{lines} lines; split it below {MAX_LINES}"));
    }
    let is_tidy = name.ends_with("xtask/src/tidy.rs");
    for mark in UNFINISHED.iter().filter(|mark| !is_tidy && text.contains(**mark)) {
        found.push(format!("unfinished: {mark}"));
    }
    if text.contains("unsafe {") && !name.ends_with("/sys.rs") && !is_tidy {
        found.push("unsafe code belongs into a module sys.rs".into());
    }
    if name.ends_with("/sys.rs") && text.matches("unsafe {").count() > text.matches("SAFETY:").count() {
        found.push("every unsafe block needs a SAFETY comment".into());
    }
    found
}

fn is_test(name: &str) -> bool {
    name.starts_with("tests/") || name.contains("/tests/") || name.ends_with("/tests.rs")
}

/// Every Rust file of ours that git knows or does not ignore; generated code is not text of ours.
fn rust_files() -> Result<Vec<PathBuf>> {
    let out = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(run::root())
        .output()
        .context("git ls-files")?;
    let names = String::from_utf8(out.stdout)?;
    let ours = names.lines().filter(|name| !name.contains("/generated/"));
    Ok(ours.map(|name| run::root().join(name)).filter(|path: &PathBuf| Path::is_file(path)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule() {
        assert!(problems("a.rs", "//! x\nfn a() {}\n").is_empty());
        for (name, text) in [
            ("a.rs", "fn a() {}\n".to_string()),
            ("a.rs", "//! x\n".to_string() + &"\n".repeat(900)),
            ("a.rs", "//! x\nfn a() { unsafe { b() } }\n".to_string()),
            ("x/sys.rs", "//! x\nfn a() { unsafe { b() } }\n".to_string()),
        ] {
            assert_eq!(problems(name, &text).len(), 1, "{name}");
        }
        assert!(problems("x/sys.rs", "//! x\n// SAFETY: b\nfn a() { unsafe { b() } }\n").is_empty());
    }
}
