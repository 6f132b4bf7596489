//! `weft proxy-config log`: levels of a proxy's log, shown and set by its admin page.

use crate::commands::get::document;
use crate::forward;
use crate::output::{self, Format};
use serde_json::{Map, Value};
use std::process::ExitCode;
use weft_core::well_known::port;
use weft_k8s_api::Object;
use weft_store::ApiClient;

/// Words for levels, as Envoy's admin page has them.
const LEVELS: [&str; 7] = ["trace", "debug", "info", "warning", "error", "critical", "off"];

/// Levels to set: a logger (none: all of them) and its level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Levels(Vec<(Option<String>, String)>);

impl Levels {
    /// One level for every logger.
    pub fn all(level: &str) -> Self {
        Self(vec![(None, level.into())])
    }

    /// The requests that set them; one that only asks when there is nothing to set.
    fn paths(&self) -> Vec<String> {
        let path = |(logger, level): &(Option<String>, String)| {
            format!("/logging?{}={level}", logger.as_deref().unwrap_or("level"))
        };
        if self.0.is_empty() { vec!["/logging".into()] } else { self.0.iter().map(path).collect() }
    }
}

/// Reads `debug`, `rbac:debug`, `debug,http:trace`.
///
/// # Errors
/// When a level is none, with those that there are.
pub fn levels(text: &str) -> Result<Levels, String> {
    let one = |part: &str| {
        let (logger, level) = part.split_once(':').map_or((None, part), |(name, level)| (Some(name), level));
        if logger.is_some_and(|name| {
            name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:-".contains(&b))
        }) {
            return Err(format!("{part:?} is not LOGGER:LEVEL"));
        }
        match LEVELS.contains(&level) {
            true => Ok((logger.map(str::to_string), level.to_string())),
            false => Err(format!("{level:?} is no level; there are {}", LEVELS.join(", "))),
        }
    };
    text.split(',').map(|part| one(part.trim())).collect::<Result<_, _>>().map(Levels)
}

/// Sets levels, and shows those that are in force.
///
/// # Errors
/// When the proxy does not answer, or has no such logger.
pub async fn run(client: &ApiClient, pod: &Object, levels: &Levels, format: Format) -> anyhow::Result<ExitCode> {
    let mut page = String::new();
    for path in levels.paths() {
        let body = forward::post(client, pod, port::ADMIN, &path).await?;
        page = String::from_utf8_lossy(&body).into_owned();
    }
    if format == Format::Table {
        output::line(format!("{}.{}:", pod.name(), pod.namespace()))?;
        output::line(page.trim_end())?;
    } else {
        document(&loggers(&page), format == Format::Yaml)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The lines `LOGGER: LEVEL` of the page.
fn loggers(page: &str) -> Value {
    let rows = page.lines().filter_map(|line| line.trim().rsplit_once(": "));
    Value::Object(rows.map(|(name, level)| (name.to_string(), level.into())).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_become_requests() {
        for (text, paths) in [
            ("debug", &["/logging?level=debug"][..]),
            ("rbac:debug", &["/logging?rbac=debug"]),
            (
                "warning, rbac:debug,http:trace",
                &["/logging?level=warning", "/logging?rbac=debug", "/logging?http=trace"],
            ),
        ] {
            assert_eq!(levels(text).unwrap().paths(), paths, "{text}");
        }
        assert_eq!(Levels::default().paths(), ["/logging"]);
        for (text, says) in [
            ("rbac=debug", "no level; there are trace"),
            ("rbac:loud", "\"loud\""),
            (":debug", "LOGGER:LEVEL"),
            ("a?b:info", "LOGGER:LEVEL"),
            ("", "no level"),
        ] {
            assert!(levels(text).unwrap_err().contains(says), "{text}");
        }
    }

    #[test]
    fn the_page_is_a_list() {
        let page = "active loggers:\n  default: info\n  rbac: debug\n";
        assert_eq!(loggers(page), serde_json::json!({"default": "info", "rbac": "debug"}));
    }
}
