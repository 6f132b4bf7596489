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

impl MeshSnapshot {
    /// Sources that request authentication names, with the longest time that any rule gives a fetch.
    pub fn key_sources(&self) -> BTreeMap<KeySource, Duration> {
        let mut out = BTreeMap::new();
        let rules = self.request_auth.values().flatten().flat_map(|policy| &policy.spec.jwt_rules);
        for rule in rules {
            if let Some(source) = KeySource::of(rule) {
                let time = rule.timeout.map_or(FETCH_TIMEOUT, |t| t.get());
                let longest = out.entry(source).or_insert(time);
                *longest = time.max(*longest);
            }
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
