//! What a proxy asked for that takes only the configuration that it uses (admin page `/on_demand` of weft-proxy).

use crate::output::Table;
use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;

/// The page.
#[derive(Debug, Deserialize)]
struct Page {
    enabled: bool,
    asked: Vec<Asked>,
}

#[derive(Debug, Deserialize)]
struct Asked {
    name: String,
    answered: bool,
    found: Vec<String>,
    idle_seconds: u64,
}

/// Questions with their answers.
///
/// # Errors
/// When the proxy takes everything, or the page is not what was expected.
pub fn table(page: &Value) -> anyhow::Result<Table> {
    let page = Page::deserialize(page).context("/on_demand is not what was expected")?;
    if !page.enabled {
        bail!("the proxy takes all configuration; annotate the pod weft.dev/on-demand: \"true\" for only what it uses");
    }
    let mut table = Table::new(["ASKED", "FOUND", "IDLE"]);
    for asked in page.asked {
        let found = match (asked.answered, asked.found.is_empty()) {
            (false, _) => "(no answer yet)".to_string(),
            (true, true) => "(nothing)".to_string(),
            (true, false) => asked.found.join(","),
        };
        table.row([asked.name, found, format!("{}s", asked.idle_seconds)]);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_question_has_a_line() {
        let asked = |name: &str, answered: bool, found: &[&str]| json!({"name": name, "answered": answered, "found": found, "idle_seconds": 3});
        let page = json!({"enabled": true, "asked": [
            asked("http/9080/reviews", true, &["9080/reviews.default.svc.cluster.local:9080"]),
            asked("http/80/unknown.example", true, &[]),
            asked("tcp/10.96.0.9:3306", false, &[]),
        ]});
        let text = table(&page).unwrap().render(false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].contains("9080/reviews.default") && lines[2].contains("(nothing)"), "{text}");
        assert!(lines[3].contains("(no answer yet)"), "{text}");
        assert!(table(&json!({"enabled": false, "asked": []})).is_err());
        assert!(table(&json!([])).is_err());
    }
}
