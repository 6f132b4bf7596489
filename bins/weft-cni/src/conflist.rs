//! The node's network configuration, with the plugin in it and without. Pure but for looking into a folder.
//!
//! Source: the CNI specification, "Network configuration format". Runtimes take the file that is first by name.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The plugin's type, which is also its file name.
pub const TYPE: &str = "weft-cni";

/// The configurations of a folder, by name. The runtime takes the first.
///
/// # Errors
/// When the folder cannot be read.
pub fn all(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let known =
            path.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "conf" | "conflist" | "json"));
        if known && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a configuration has the plugin, as it should be.
pub fn has(text: &str, plugin: &Value) -> bool {
    let parsed: Option<Value> = serde_json::from_str(text).ok();
    let plugins = parsed.as_ref().and_then(|list| list.get("plugins")).and_then(Value::as_array);
    plugins.is_some_and(|all| all.iter().any(|found| found == plugin))
}

/// A configuration with the plugin last; one of a single plugin becomes a list.
///
/// # Errors
/// When it is no configuration.
pub fn with(text: &str, plugin: &Value) -> Result<String> {
    let mut list = read(text)?;
    if list.get("plugins").is_none() {
        let name = list.get("name").cloned().unwrap_or_else(|| "k8s-pod-network".into());
        let version = list.get("cniVersion").cloned().unwrap_or_else(|| "0.3.1".into());
        if let Some(single) = list.as_object_mut() {
            // They are the list's.
            single.shift_remove("cniVersion");
            single.shift_remove("name");
        }
        list = json!({"cniVersion": version, "name": name, "plugins": [list]});
    }
    let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) else { bail!("plugins is no list") };
    plugins.retain(|found| found["type"] != TYPE);
    plugins.push(plugin.clone());
    Ok(format!("{list:#}\n"))
}

/// The configuration without the plugin; `None` when it is not in it.
///
/// # Errors
/// When it is no configuration.
pub fn without(text: &str) -> Result<Option<String>> {
    let mut list = read(text)?;
    let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) else { return Ok(None) };
    let before = plugins.len();
    plugins.retain(|found| found["type"] != TYPE);
    Ok((plugins.len() < before).then(|| format!("{list:#}\n")))
}

/// Whether a configuration is the plugin and nothing else.
pub fn is_own(text: &str) -> bool {
    read(text).is_ok_and(|single| single.get("plugins").is_none() && single["type"] == TYPE)
}

fn read(text: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(text).context("it is no JSON")?;
    if !value.is_object() || (value.get("plugins").is_none() && value.get("type").is_none()) {
        bail!("it is no network configuration: it has neither plugins nor a type");
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations() {
        let plugin = json!({"type": TYPE, "kubernetes": {"kubeconfig": "/k"}});
        let list = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;
        let changed = with(list, &plugin).unwrap();
        assert!(has(&changed, &plugin) && !has(list, &plugin));
        let read: Value = serde_json::from_str(&changed).unwrap();
        assert_eq!(
            read["plugins"].as_array().unwrap().iter().map(|p| &p["type"]).collect::<Vec<_>>(),
            ["bridge", "portmap", TYPE]
        );
        assert_eq!(with(&changed, &plugin).unwrap(), changed, "twice is once");
        // With other settings it is replaced, and where it stands is last.
        let other = json!({"type": TYPE, "kubernetes": {"kubeconfig": "/other"}});
        assert!(!has(&changed, &other));
        assert_eq!(with(&changed, &other).unwrap().matches(TYPE).count(), 1);
        let back: Value = serde_json::from_str(&without(&changed).unwrap().unwrap()).unwrap();
        assert_eq!(back, serde_json::from_str::<Value>(list).unwrap());
        assert_eq!(without(list).unwrap(), None);
        // One plugin alone becomes a list.
        let single: Value =
            serde_json::from_str(&with(r#"{"cniVersion":"0.4.0","name":"n","type":"ptp","mtu":1}"#, &plugin).unwrap())
                .unwrap();
        assert_eq!(single, json!({"cniVersion": "0.4.0", "name": "n", "plugins": [{"type": "ptp", "mtu": 1}, plugin]}));
        for bad in ["", "[]", "{}", "no"] {
            assert!(with(bad, &plugin).is_err(), "{bad}");
        }
    }
}
