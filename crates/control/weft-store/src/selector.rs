//! Label and field selectors: text to value, and match. Which kinds have which fields is settled here; where the text came
//! from (query string, command line) is not.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;
use weft_k8s_api::Object;

/// Longest selector text that is read, in bytes.
pub const MAX_SELECTOR: usize = 16 * 1024;

/// A selector that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("selector {text:?}: {message}")]
pub struct SelectorError {
    /// The text.
    pub text: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

fn error(text: &str, message: impl Into<String>) -> SelectorError {
    SelectorError { text: text.chars().take(200).collect(), message: message.into() }
}

/// One requirement on a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// The label has one of the values.
    In(String, Vec<String>),
    /// The label is missing or has none of the values.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is missing.
    Absent(String),
    /// The label is a number above this one.
    Greater(String, i64),
    /// The label is a number below this one.
    Less(String, i64),
}

impl Requirement {
    fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let get = |key: &str| labels.and_then(|l| l.get(key));
        let number = |key: &str| get(key).and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(key, values) => get(key).is_some_and(|v| values.contains(v)),
            Self::NotIn(key, values) => get(key).is_none_or(|v| !values.contains(v)),
            Self::Exists(key) => get(key).is_some(),
            Self::Absent(key) => get(key).is_none(),
            Self::Greater(key, bound) => number(key).is_some_and(|n| n > *bound),
            Self::Less(key, bound) => number(key).is_some_and(|n| n < *bound),
        }
    }
}

/// All requirements must hold; an empty selector matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// The requirements.
    pub requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>5`, the syntax of `labelSelector` query parameters.
    ///
    /// # Errors
    /// When the text does not follow the syntax.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_SELECTOR {
            return Err(error(text, format!("longer than {MAX_SELECTOR} bytes")));
        }
        let mut requirements = Vec::new();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if !part.is_empty() {
                requirements.push(parse_requirement(text, part)?);
            }
        }
        Ok(Self { requirements })
    }

    /// A selector that asks for exactly these labels (a Service's `spec.selector`).
    pub fn equal<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let requirements = labels.into_iter().map(|(k, v)| Requirement::In(k.into(), vec![v.into()])).collect();
        Self { requirements }
    }

    /// Reads a `metav1.LabelSelector` (`matchLabels`, `matchExpressions`), as Deployments have it.
    ///
    /// # Errors
    /// When an operator is unknown or its values are missing.
    pub fn from_json(value: &Value) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        if let Some(labels) = value.get("matchLabels").and_then(Value::as_object) {
            for (key, value) in labels {
                requirements.push(Requirement::In(key.clone(), vec![value.as_str().unwrap_or_default().to_string()]));
            }
        }
        for expression in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            requirements.push(parse_expression(expression)?);
        }
        Ok(Self { requirements })
    }

    /// Whether there is no requirement.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether the labels satisfy all requirements.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }
}

fn parse_expression(expression: &Value) -> Result<Requirement, SelectorError> {
    let text = expression.to_string();
    let key = expression.get("key").and_then(Value::as_str).unwrap_or_default().to_string();
    if key.is_empty() {
        return Err(error(&text, "matchExpressions need a key"));
    }
    let values: Vec<String> = expression
        .get("values")
        .and_then(Value::as_array)
        .map(|v| v.iter().filter_map(|v| v.as_str().map(str::to_string)).collect())
        .unwrap_or_default();
    match expression.get("operator").and_then(Value::as_str).unwrap_or_default() {
        "In" | "NotIn" if values.is_empty() => Err(error(&text, "In and NotIn need values")),
        "In" => Ok(Requirement::In(key, values)),
        "NotIn" => Ok(Requirement::NotIn(key, values)),
        "Exists" => Ok(Requirement::Exists(key)),
        "DoesNotExist" => Ok(Requirement::Absent(key)),
        other => Err(error(&text, format!("operator {other:?} is not one of In, NotIn, Exists, DoesNotExist"))),
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_i32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_requirement(text: &str, part: &str) -> Result<Requirement, SelectorError> {
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Requirement::Absent(label_key(text, key)?));
    }
    if part.ends_with(')') {
        return parse_set(text, part);
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(label_key(text, key)?, vec![label_value(text, value)?]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(label_key(text, key)?, vec![label_value(text, value)?]));
    }
    let number = |value: &str| value.trim().parse().map_err(|_| error(text, "> and < compare with a whole number"));
    if let Some((key, value)) = part.split_once('>') {
        return Ok(Requirement::Greater(label_key(text, key)?, number(value)?));
    }
    if let Some((key, value)) = part.split_once('<') {
        return Ok(Requirement::Less(label_key(text, key)?, number(value)?));
    }
    Ok(Requirement::Exists(label_key(text, part)?))
}

fn parse_set(text: &str, part: &str) -> Result<Requirement, SelectorError> {
    let wrong = || error(text, format!("{part:?} should read `key in (a,b)` or `key notin (a,b)`"));
    let (head, values) = part.trim_end_matches(')').split_once('(').ok_or_else(wrong)?;
    let values = values.split(',').map(|v| label_value(text, v)).collect::<Result<Vec<_>, _>>()?;
    let mut words = head.split_whitespace();
    let (key, operator, rest) = (words.next().ok_or_else(wrong)?, words.next().ok_or_else(wrong)?, words.next());
    let key = label_key(text, key)?;
    match (operator, rest) {
        ("in", None) => Ok(Requirement::In(key, values)),
        ("notin", None) => Ok(Requirement::NotIn(key, values)),
        _ => Err(wrong()),
    }
}

fn label_key(text: &str, key: &str) -> Result<String, SelectorError> {
    let key = key.trim();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if key.is_empty() || key.len() > 317 || !key.chars().all(allowed) {
        return Err(error(text, format!("{key:?} is not a label name (letters, digits, '-', '_', '.', one '/')")));
    }
    Ok(key.to_string())
}

fn label_value(text: &str, value: &str) -> Result<String, SelectorError> {
    let value = value.trim();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if value.len() > 63 || !value.chars().all(allowed) {
        return Err(error(text, format!("{value:?} is not a label value (up to 63 letters, digits, '-', '_', '.')")));
    }
    Ok(value.to_string())
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match requirement {
                Requirement::In(key, values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Requirement::NotIn(key, values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Requirement::In(key, values) => write!(f, "{key} in ({})", values.join(","))?,
                Requirement::NotIn(key, values) => write!(f, "{key} notin ({})", values.join(","))?,
                Requirement::Exists(key) => f.write_str(key)?,
                Requirement::Absent(key) => write!(f, "!{key}")?,
                Requirement::Greater(key, bound) => write!(f, "{key}>{bound}")?,
                Requirement::Less(key, bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

/// One term of a field selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    /// Dotted path, e.g. `spec.nodeName`.
    pub path: String,
    /// Value compared with; a missing field compares as the empty string.
    pub value: String,
    /// `!=` instead of `=`.
    pub negated: bool,
}

/// All terms must hold; an empty selector matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// The terms.
    pub terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// Reads `metadata.name=a,status.phase!=Running` for objects of `kind` (a field that the kind does not offer is
    /// refused, as Kubernetes does).
    ///
    /// # Errors
    /// When the text does not follow the syntax, or names a field that `kind` cannot be selected by.
    pub fn parse(kind: &str, text: &str) -> Result<Self, SelectorError> {
        Self::parse_with(kind, &[], text)
    }

    /// The same for a kind with further fields that its definition names (`spec.color`).
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_with(kind: &str, further: &[String], text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_SELECTOR {
            return Err(error(text, format!("longer than {MAX_SELECTOR} bytes")));
        }
        let mut terms = Vec::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (path, value, negated) = if let Some((path, value)) = part.split_once("!=") {
                (path, value, true)
            } else if let Some((path, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (path, value, false)
            } else {
                return Err(error(text, format!("{part:?} should read `field=value` or `field!=value`")));
            };
            if !selectable(kind, path) && !further.iter().any(|field| field == path) {
                return Err(error(text, format!("field label not supported: {path} (kind {kind})")));
            }
            terms.push(FieldTerm { path: path.into(), value: value.into(), negated });
        }
        Ok(Self { terms })
    }

    /// Whether there is no term.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The name that the selector asks for, when it asks for one.
    pub fn name(&self) -> Option<&str> {
        self.terms.iter().find(|t| t.path == "metadata.name" && !t.negated).map(|t| t.value.as_str())
    }

    /// Whether the object satisfies all terms.
    pub fn matches(&self, object: &Object) -> bool {
        self.terms.iter().all(|t| (field(object, &t.path) == t.value) != t.negated)
    }
}

/// Fields that objects of a kind can be selected by. Source: the field label conversions of Kubernetes' API groups.
fn selectable(kind: &str, path: &str) -> bool {
    let own: &[&str] = match kind {
        "Pod" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "Secret" => &["type"],
        "Namespace" => &["status.phase"],
        "Node" => &["spec.unschedulable"],
        "Service" => &["spec.clusterIP", "spec.type"],
        "Job" => &["status.successful"],
        "ReplicaSet" => &["status.replicas"],
        "Event" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        _ => &[],
    };
    matches!(path, "metadata.name" | "metadata.namespace") || own.contains(&path)
}

fn field(object: &Object, path: &str) -> String {
    match path {
        "metadata.name" => return object.name().to_string(),
        "metadata.namespace" => return object.namespace().to_string(),
        "source" => return field(object, "source.component"),
        _ => {}
    }
    let mut segments = path.split('.');
    let mut value = segments.next().and_then(|first| object.body.get(first));
    for segment in segments {
        value = value.and_then(|v| v.get(segment));
    }
    match value {
        None | Some(Value::Null) => match path {
            // Kubernetes compares these with their zero value.
            "spec.hostNetwork" | "spec.unschedulable" => "false".into(),
            "status.successful" | "status.replicas" => "0".into(),
            _ => String::new(),
        },
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn label_selectors() {
        let app = labels(&[("app", "reviews"), ("version", "v2"), ("weight", "7")]);
        let table: &[(&str, bool)] = &[
            ("", true),
            ("app=reviews", true),
            ("app==reviews", true),
            ("app = reviews , version = v2", true),
            ("app=ratings", false),
            ("app!=ratings", true),
            ("tier!=web", true),
            ("app", true),
            ("tier", false),
            ("!tier", true),
            ("!app", false),
            ("version in (v1, v2)", true),
            ("version in (v1,v3)", false),
            ("version notin (v1,v3)", true),
            ("tier notin (a)", true),
            ("app=reviews,version in (v2),!tier", true),
            ("weight>6", true),
            ("weight<7", false),
            ("app=", false),
            ("app.kubernetes.io/name", false),
        ];
        for (text, want) in table {
            let selector = LabelSelector::parse(text).unwrap();
            assert_eq!(selector.matches(Some(&app)), *want, "{text}");
            let again = LabelSelector::parse(&selector.to_string()).unwrap();
            assert_eq!(again, selector, "{text} printed and read again");
        }
        assert!(LabelSelector::parse("!a").unwrap().matches(None));
        assert!(!LabelSelector::parse("a").unwrap().matches(None));
    }

    #[test]
    fn bad_label_selectors() {
        for text in ["a b=c", "=x", "a in b)", "a on (b)", "a in x (b)", "a=b c", "a>x", "!", "a=$(id)", "(a)"] {
            let error = LabelSelector::parse(text).unwrap_err();
            assert!(error.to_string().contains(text), "{text}: {error}");
        }
        assert!(LabelSelector::parse(&"a,".repeat(MAX_SELECTOR)).is_err());
    }

    #[test]
    fn json_selectors() {
        let selector = LabelSelector::from_json(&json!({
            "matchLabels": {"app": "a"},
            "matchExpressions": [
                {"key": "v", "operator": "In", "values": ["1", "2"]},
                {"key": "w", "operator": "NotIn", "values": ["1"]},
                {"key": "x", "operator": "Exists"},
                {"key": "y", "operator": "DoesNotExist"},
            ],
        }))
        .unwrap();
        assert_eq!(selector.to_string(), "app=a,v in (1,2),w!=1,x,!y");
        assert!(LabelSelector::from_json(&json!({"matchExpressions": [{"key": "v", "operator": "Gt"}]})).is_err());
        assert!(LabelSelector::from_json(&json!({"matchExpressions": [{"key": "v", "operator": "In"}]})).is_err());
    }

    #[test]
    fn field_selectors() {
        let pod: Object = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "n"},
            "spec": {"nodeName": "lab"}, "status": {"phase": "Running"},
        }))
        .unwrap();
        let table: &[(&str, bool)] = &[
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name=b", false),
            ("metadata.namespace=n,metadata.name!=b", true),
            ("spec.nodeName=lab", true),
            ("spec.nodeName!=", true),
            ("spec.nodeName=", false),
            ("status.phase==Running", true),
            ("status.phase!=Running", false),
            ("status.podIP=", true),
            ("spec.hostNetwork=false", true),
        ];
        for (text, want) in table {
            assert_eq!(FieldSelector::parse("Pod", text).unwrap().matches(&pod), *want, "{text}");
        }
        assert_eq!(FieldSelector::parse("Pod", "metadata.name=a").unwrap().name(), Some("a"));
        assert!(FieldSelector::parse("Pod", "spec.color=red").unwrap_err().to_string().contains("not supported"));
        assert!(FieldSelector::parse("ConfigMap", "status.phase=x").is_err());
        assert!(FieldSelector::parse("Secret", "type=Opaque").is_ok());
        assert!(FieldSelector::parse("Event", "involvedObject.uid=1,type=Warning").is_ok());
        assert!(FieldSelector::parse("Pod", "metadata.name").is_err());
        let further = ["spec.color".to_string()];
        assert!(FieldSelector::parse_with("Widget", &further, "spec.color=red,metadata.name=a").is_ok());
        assert!(FieldSelector::parse_with("Widget", &further, "spec.size=1").is_err());
    }
}
