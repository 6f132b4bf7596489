//! `/stats`, `/stats/prometheus`, `/reset_counters`.

use super::Admin;
use crate::http::{Answer, Asked, json, reply, text};
use crate::metrics::{CONTENT_TYPE, Source};
use http::StatusCode;
use regex::Regex;
use serde_json::json;
use weft_telemetry::{Registry, render};

/// Longest filter.
const MAX_FILTER: usize = 1024;

/// `/stats`.
pub async fn page(admin: &Admin, asked: &Asked) -> Answer {
    if asked.parameter("format") == Some("prometheus") {
        return prometheus(admin, asked).await;
    }
    let filter = match filter(asked) {
        Ok(filter) => filter,
        Err(answer) => return *answer,
    };
    let keep = |name: &str| filter.as_ref().is_none_or(|filter| filter.is_match(name));
    let Source::Registry(registry) = admin.metrics.source() else {
        return text(StatusCode::NOT_FOUND, "Envoy has the statistics: ask its admin port\n");
    };
    let used_only = asked.parameter("usedonly").is_some();
    match asked.parameter("format") {
        Some("json") => json(&as_json(registry, keep, used_only)),
        _ => {
            let mut out = render::text(registry, keep);
            if used_only {
                out = out
                    .lines()
                    .filter(|line| !line.ends_with(": 0"))
                    .fold(String::new(), |out, line| out + line + "\n");
            }
            text(StatusCode::OK, out)
        }
    }
}

fn as_json(registry: &Registry, keep: impl Fn(&str) -> bool, used_only: bool) -> serde_json::Value {
    let pairs = render::pairs(registry, keep).into_iter().filter(|(_, value)| !used_only || *value != 0);
    let stats: Vec<_> = pairs.map(|(name, value)| json!({ "name": name, "value": value })).collect();
    json!({ "stats": stats })
}

/// `/stats/prometheus`.
pub async fn prometheus(admin: &Admin, asked: &Asked) -> Answer {
    let filter = match filter(asked) {
        Ok(filter) => filter,
        Err(answer) => return *answer,
    };
    let all = admin.metrics.proxy().await;
    let Some(filter) = filter else { return reply(StatusCode::OK, CONTENT_TYPE, all) };
    let name = |line: &str| {
        let words = line.strip_prefix("# TYPE ").or_else(|| line.strip_prefix("# HELP ")).unwrap_or(line);
        words.split([' ', '{']).next().unwrap_or_default().to_owned()
    };
    let kept =
        all.lines().filter(|line| filter.is_match(&name(line))).fold(String::new(), |out, line| out + line + "\n");
    reply(StatusCode::OK, CONTENT_TYPE, kept)
}

/// `/reset_counters`.
pub fn reset(admin: &Admin) -> Answer {
    match admin.metrics.source() {
        Source::Registry(registry) => {
            registry.reset();
            text(StatusCode::OK, "OK\n")
        }
        Source::Envoy(_) => text(StatusCode::NOT_FOUND, "Envoy has the statistics: ask its admin port\n"),
    }
}

fn filter(asked: &Asked) -> Result<Option<Regex>, Box<Answer>> {
    let Some(pattern) = asked.parameter("filter").filter(|pattern| !pattern.is_empty()) else { return Ok(None) };
    let wrong = |error: String| Box::new(text(StatusCode::BAD_REQUEST, format!("filter: {error}\n")));
    if pattern.len() > MAX_FILTER {
        return Err(wrong(format!("longer than {MAX_FILTER} characters")));
    }
    Regex::new(pattern).map(Some).map_err(|error| wrong(error.to_string()))
}
