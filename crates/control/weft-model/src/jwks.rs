//! Whose keys check tokens: where the keys of an issuer are fetched from, and those that were fetched. The fetching is the
//! control plane's business; a build takes what it has.

use crate::MeshSnapshot;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use weft_k8s_api::istio::JwtRule;

pub use weft_tls::jwks::only_usable;

/// Time to fetch keys unless the rule says otherwise.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the keys of an issuer are fetched from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeySource {
    /// `jwksUri`.
    Uri(String),
    /// The issuer's OpenID configuration names the place.
    Discovery(String),
}

impl KeySource {
    /// The source of a rule's keys; `None` when it has them itself.
    pub fn of(rule: &JwtRule) -> Option<Self> {
        match (rule.jwks.is_empty(), rule.jwks_uri.is_empty()) {
            (false, _) => None,
            (true, false) => Some(Self::Uri(rule.jwks_uri.clone())),
            (true, true) => Some(Self::Discovery(rule.issuer.clone())),
        }
    }
}

/// Key sets that were fetched, and why others were not.
pub type FetchedKeys = Arc<BTreeMap<KeySource, Result<Arc<str>, Arc<str>>>>;

/// What is asked of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRequest {
    /// Longest time that any rule gives a fetch.
    pub longest: Duration,
    /// Namespace of the oldest policy that names the source, and the place of the source among those of the namespace, the
    /// oldest policy's first.
    pub namespace: (String, usize),
}

impl MeshSnapshot {
    /// Sources that request authentication names.
    pub fn key_sources(&self) -> BTreeMap<KeySource, KeyRequest> {
        let mut out: BTreeMap<KeySource, KeyRequest> = BTreeMap::new();
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let mut policies: Vec<_> = self.request_auth.values().flatten().collect();
        policies.sort_by_key(|policy| (policy.created, &policy.namespace, &policy.name));
        for (policy, rule) in policies.iter().flat_map(|policy| policy.spec.jwt_rules.iter().map(move |r| (policy, r)))
        {
            let Some(source) = KeySource::of(rule) else { continue };
            let longest = rule.timeout.map_or(FETCH_TIMEOUT, |t| t.get());
            let request = out.entry(source).or_insert_with(|| {
                let count = counts.entry(&policy.namespace).or_default();
                *count += 1;
                KeyRequest { longest, namespace: (policy.namespace.clone(), *count - 1) }
            });
            request.longest = longest.max(request.longest);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_keys_come_from() {
        let rule = |issuer: &str, uri: &str, jwks: &str| JwtRule {
            issuer: issuer.into(),
            jwks_uri: uri.into(),
            jwks: jwks.into(),
            ..JwtRule::default()
        };
        assert_eq!(KeySource::of(&rule("a", "https://x/k", "")), Some(KeySource::Uri("https://x/k".into())));
        assert_eq!(KeySource::of(&rule("https://a", "", "")), Some(KeySource::Discovery("https://a".into())));
        assert_eq!(KeySource::of(&rule("a", "https://x/k", "{}")), None);
    }
}
