//! Environment variables and the downward API's files, as values that tests can make.

use std::collections::BTreeMap;
use std::path::Path;

/// Variables of the process, with the proxy metadata of the proxy config behind them.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    defaults: BTreeMap<String, String>,
}

impl Environment {
    /// The process's own. Variables that are not text are left out.
    pub fn of_process() -> Self {
        let text = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Self { variables: text.collect(), defaults: BTreeMap::new() }
    }

    /// These variables.
    #[cfg(test)]
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        let variables = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Self { variables, defaults: BTreeMap::new() }
    }

    /// Values for variables that are not set.
    pub fn with_defaults(mut self, defaults: BTreeMap<String, String>) -> Self {
        self.defaults.extend(defaults);
        self
    }

    /// A variable; `None` when it is not set or empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.variables.get(name).or_else(|| self.defaults.get(name));
        found.map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A variable that is `true` or `1`.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | "TRUE" | "True"))
    }

    /// A duration; a number without unit is seconds.
    ///
    /// # Errors
    /// When it is set and not a duration.
    pub fn duration(&self, name: &str) -> Result<Option<std::time::Duration>, String> {
        let Some(text) = self.get(name) else { return Ok(None) };
        if let Ok(seconds) = text.parse() {
            return Ok(Some(std::time::Duration::from_secs(seconds)));
        }
        weft_core::duration::parse(text).map(Some).map_err(|error| format!("environment variable {name}: {error}"))
    }

    /// Variables whose name begins with `prefix`, without it.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let own = self.variables.iter();
        let more = self.defaults.iter().filter(|(name, _)| !self.variables.contains_key(*name));
        own.chain(more).filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
    }
}

/// A file of the downward API: `key="value"` lines with Go's escapes. A file that is missing is empty.
pub fn downward_file(path: &Path) -> BTreeMap<String, String> {
    std::fs::read_to_string(path).map(|text| downward(&text)).unwrap_or_default()
}

fn downward(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| {
        let (key, quoted) = line.split_once('=')?;
        // Go's %q and JSON agree on what Kubernetes writes: quotes, backslashes, line ends, tabs and Unicode escapes.
        let value = serde_json::from_str(quoted).unwrap_or_else(|_| quoted.trim_matches('"').to_owned());
        Some((key.trim().to_owned(), value))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downward_lines() {
        let read =
            downward("app=\"reviews\"\nproxy.istio.io/config=\"concurrency: 1\\ndrainDuration: \\\"5s\\\"\\n\"\n\nx\n");
        assert_eq!(read["app"], "reviews");
        assert_eq!(read["proxy.istio.io/config"], "concurrency: 1\ndrainDuration: \"5s\"\n");
        assert_eq!(read.len(), 2);
    }

    #[test]
    fn variables() {
        let env = Environment::of(&[("A", "1"), ("B", ""), ("T", "90s"), ("S", "5"), ("X", "soon")])
            .with_defaults([("A".to_owned(), "2".to_owned()), ("C".to_owned(), "true".to_owned())].into());
        assert_eq!((env.get("A"), env.get("B"), env.get("D")), (Some("1"), None, None));
        assert!(env.flag("C") && env.flag("A") && !env.flag("D"));
        assert_eq!(env.duration("T").unwrap().unwrap().as_secs(), 90);
        assert_eq!(env.duration("S").unwrap().unwrap().as_secs(), 5);
        assert!(env.duration("X").unwrap_err().contains("variable X"));
    }
}
