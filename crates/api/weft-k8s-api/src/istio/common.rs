//! Types that several kinds share.

use crate::macros::spec;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;
use std::fmt;
use std::time;

/// True for the default value: such fields are not written.
pub fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A span of time, written as `10s`, `0.5s`, `250ms`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(pub time::Duration);

impl Duration {
    /// The standard library's duration.
    pub const fn get(self) -> time::Duration {
        self.0
    }

    /// Whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(time::Duration::from_secs(seconds))
    }

    /// Milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(time::Duration::from_millis(millis))
    }
}

impl From<Duration> for time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl From<time::Duration> for Duration {
    fn from(duration: time::Duration) -> Self {
        Self(duration)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&weft_core::duration::format(self.0))
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Duration;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 10s, 0.5s, 250ms or 1h30m")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                weft_core::duration::parse(text).map(Duration).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// How a string is matched. One of `exact`, `prefix` and `regex`; none of them means that the value only has to be there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "StringMatchFields", into = "StringMatchFields")]
pub enum StringMatch {
    /// `{}`: any value, but there must be one (headers).
    #[default]
    Present,
    /// The whole string, case-sensitive.
    Exact(String),
    /// The beginning of the string, case-sensitive.
    Prefix(String),
    /// RE2 expression over the whole string.
    Regex(String),
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct StringMatchFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    exact: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    regex: Option<String>,
}

impl TryFrom<StringMatchFields> for StringMatch {
    type Error = &'static str;
    fn try_from(fields: StringMatchFields) -> Result<Self, &'static str> {
        match (fields.exact, fields.prefix, fields.regex) {
            (None, None, None) => Ok(StringMatch::Present),
            (Some(text), None, None) => Ok(StringMatch::Exact(text)),
            (None, Some(text), None) => Ok(StringMatch::Prefix(text)),
            (None, None, Some(text)) => Ok(StringMatch::Regex(text)),
            _ => Err("has more than one of exact, prefix and regex; keep one"),
        }
    }
}

impl From<StringMatch> for StringMatchFields {
    fn from(string_match: StringMatch) -> Self {
        let mut fields = StringMatchFields::default();
        match string_match {
            StringMatch::Present => {}
            StringMatch::Exact(text) => fields.exact = Some(text),
            StringMatch::Prefix(text) => fields.prefix = Some(text),
            StringMatch::Regex(text) => fields.regex = Some(text),
        }
        fields
    }
}

spec! {
    /// A port by its number.
    pub struct PortSelector {
        /// 1 to 65535.
        number: u32,
    }

    /// Selects workloads of the networking kinds.
    pub struct WorkloadSelector {
        /// Labels that the workload must have; empty = all of the namespace.
        labels: BTreeMap<String, String>,
    }

    /// Selects workloads of the policy kinds (and of destination rules).
    pub struct PolicySelector {
        /// Labels that the workload must have; empty = all of the namespace.
        match_labels: BTreeMap<String, String>,
    }

    /// Binds a policy to a Kubernetes object instead of by labels.
    pub struct PolicyTargetReference {
        /// API group; empty for core.
        group: String,
        /// Kind: `Gateway`, `GatewayClass`, `Service`, `ServiceEntry`.
        kind: String,
        /// Name.
        name: String,
        /// Namespace; must be empty or the policy's own.
        namespace: String,
    }

    /// A Kubernetes label selector, as mesh config uses it.
    pub struct LabelSelector {
        /// All of these.
        match_labels: BTreeMap<String, String>,
        /// And all of these.
        match_expressions: Vec<LabelSelectorRequirement>,
    }

    /// One condition on a label.
    pub struct LabelSelectorRequirement {
        /// Label.
        key: String,
        /// `In`, `NotIn`, `Exists`, `DoesNotExist`.
        operator: String,
        /// Values for `In` and `NotIn`.
        values: Vec<String>,
    }

    /// A share of 100, with decimals down to 0.0001.
    pub struct Percent {
        /// 0.0 to 100.0.
        value: f64,
    }
}
