//! The injector's own settings: ConfigMap `istio-sidecar-injector`, key `config`.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Largest custom template, bytes.
pub const MAX_TEMPLATE: usize = 1 << 20;

/// What holds for pods that say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// They get a proxy (their namespace was chosen already).
    #[default]
    Enabled,
    /// They get none.
    Disabled,
}

/// Settings of the injector.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// What holds for pods that say nothing.
    pub policy: Policy,
    /// Templates of pods that name none; `sidecar`.
    pub default_templates: Vec<String>,
    /// Custom templates. One with the name of a built-in one (`sidecar`, `gateway`) stands in its place.
    pub templates: BTreeMap<String, String>,
    /// Names that stand for several templates.
    pub aliases: BTreeMap<String, Vec<String>>,
    /// Label selectors of pods that never get a proxy unless they ask for it.
    pub never_inject_selector: Vec<Selector>,
    /// Label selectors of pods that always get one unless they decline.
    pub always_inject_selector: Vec<Selector>,
    /// Annotations that every injected pod gets.
    pub injected_annotations: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::Enabled,
            default_templates: vec!["sidecar".into()],
            templates: BTreeMap::new(),
            aliases: BTreeMap::new(),
            never_inject_selector: Vec::new(),
            always_inject_selector: Vec::new(),
            injected_annotations: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Reads the YAML of key `config`. Custom templates are read too, so that a mistake in one shows here.
    ///
    /// # Errors
    /// What is wrong, with its place.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tree = weft_k8s_api::yaml::value(text)?;
        // An empty field is one that is not set.
        if let Some(fields) = tree.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        let mut config: Self = serde_json::from_value(tree).map_err(|error| error.to_string())?;
        if config.default_templates.is_empty() {
            config.default_templates = vec!["sidecar".into()];
        }
        config.check_templates()?;
        Ok(config)
    }

    /// The same settings as they stand among the installer's values (`sidecarInjectorWebhook`).
    ///
    /// # Errors
    /// What is wrong, with its place.
    pub fn from_values(values: &crate::Values) -> Result<Self, String> {
        let tree = values.get("sidecarInjectorWebhook").clone();
        let mut config: Self =
            serde_json::from_value(tree).map_err(|error| format!("sidecarInjectorWebhook: {error}"))?;
        if values.text("global.proxy.autoInject") == "disabled" {
            config.policy = Policy::Disabled;
        }
        if config.default_templates.is_empty() {
            config.default_templates = vec!["sidecar".into()];
        }
        config.check_templates()?;
        Ok(config)
    }

    fn check_templates(&self) -> Result<(), String> {
        for (name, text) in &self.templates {
            if text.len() > MAX_TEMPLATE {
                return Err(format!("templates.{name}: is larger than {MAX_TEMPLATE} bytes"));
            }
            crate::template::check(text).map_err(|error| format!("templates.{name}: {error}"))?;
        }
        Ok(())
    }
}

/// A label selector.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Requirement {
    key: String,
    operator: String,
    values: Vec<String>,
}

impl Selector {
    /// Whether it holds for labels. One without conditions, or with an operator that does not exist, never holds.
    pub fn matches(&self, labels: &Value) -> bool {
        let empty = self.match_labels.is_empty() && self.match_expressions.is_empty();
        !empty
            && self.match_labels.iter().all(|(name, value)| labels[name.as_str()] == value.as_str())
            && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }
}

impl Requirement {
    fn holds(&self, labels: &Value) -> bool {
        let value = labels[self.key.as_str()].as_str();
        let listed = value.is_some_and(|value| self.values.iter().any(|v| v == value));
        match self.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    }
}
