//! Which capabilities of the spec somebody answers for: a journey that proves them, or a row of `README.md` that says where
//! else they are shown, or why they cannot be. The spec itself is not part of this repository.

use crate::journey::Journey;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What is not shown by journeys, by id.
const ELSEWHERE: &str = include_str!("../README.md");

/// The folder of the spec: `$WEFT_SPEC`, else `../shared/spec` beside the repository.
pub fn folder() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/spec");
    std::env::var_os("WEFT_SPEC").map_or_else(beside, PathBuf::from)
}

/// Capabilities of the spec in that folder that nobody answers for, in the spec's order; `files` are numbers of its files,
/// none for all.
///
/// # Errors
/// When there is no spec, with the folder's name.
pub fn uncovered(spec: &Path, journeys: &[Journey], files: &[String]) -> Result<Vec<String>> {
    let mut known: BTreeSet<String> = elsewhere().into_iter().collect();
    known.extend(journeys.iter().flat_map(|journey| journey.proves).map(ToString::to_string));
    let all = capabilities(spec)?;
    let wanted = |id: &str| files.is_empty() || files.iter().any(|file| id.starts_with(file.as_str()));
    Ok(all.into_iter().filter(|id| wanted(id) && !known.contains(id)).collect())
}

/// All ids of the spec's tables, `2:IG-1`, in their order.
fn capabilities(spec: &Path) -> Result<Vec<String>> {
    let listed =
        std::fs::read_dir(spec).with_context(|| format!("no spec in {}; WEFT_SPEC names it", spec.display()))?;
    let mut files: Vec<PathBuf> = listed.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    let mut all = Vec::new();
    for path in files {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((number, _)) = name.split_once('-').filter(|(n, _)| ["1", "2", "3"].contains(n)) else { continue };
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        for id in first_cells(&text).filter(|cell| is_id(cell)) {
            let id = format!("{number}:{id}");
            if !all.contains(&id) {
                all.push(id);
            }
        }
    }
    Ok(all)
}

/// The ids that `README.md` names in first cells of its tables.
fn elsewhere() -> Vec<String> {
    let words = first_cells(ELSEWHERE).flat_map(|cell| cell.split([',', ' ']).map(str::trim));
    words.filter(|word| word.split_once(':').is_some_and(|(_, id)| is_id(id))).map(str::to_string).collect()
}

/// The first cells of table rows.
fn first_cells(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next()).map(|cell| cell.trim().trim_matches('`'))
}

/// `IG-1`, `T-CB-07`: capitals, dashes, and a number at the end.
fn is_id(text: &str) -> bool {
    let number = text.rsplit('-').next().is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    number
        && text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    #[test]
    fn rows_of_the_readme() {
        let rows = elsewhere();
        let proven: BTreeSet<&str> = catalogue::all().iter().flat_map(|journey| journey.proves).copied().collect();
        for (at, id) in rows.iter().enumerate() {
            assert!(["1:", "2:", "3:"].iter().any(|file| id.starts_with(file)), "{id}");
            assert!(!rows[..at].contains(id), "{id} twice");
            assert!(!proven.contains(id.as_str()), "{id} is proven by a journey");
        }
    }

    #[test]
    fn finds_what_nobody_names() {
        let spec = tempfile::tempdir().unwrap();
        let text = "| id | capability |\n|---|---|\n| ZZ-1 | a |\n| IG-1 | b |\n| T-ZZ-02 | c |\n| port | d |\n";
        std::fs::write(spec.path().join("2-x.md"), text).unwrap();
        std::fs::write(spec.path().join("README.md"), "| ZZ-9 | |\n").unwrap();
        let found = |files: &[&str]| {
            let files: Vec<String> = files.iter().map(ToString::to_string).collect();
            uncovered(spec.path(), &catalogue::all(), &files).unwrap()
        };
        assert_eq!(found(&[]), ["2:ZZ-1", "2:T-ZZ-02"]);
        assert!(found(&["1:"]).is_empty());
    }
}
