//! Whose keys check tokens: where the keys of an issuer are fetched from, and those that were fetched. The fetching is the
//! control plane's business; a build takes what it has.

use crate::MeshSnapshot;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use weft_k8s_api::istio::JwtRule;

pub use weft_tls::jwks::{for_envoy, only_usable};

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
    /// Every namespace whose policies name the source, and the place of the source among those of the namespace, the oldest
    /// policy's first. Whoever names another's source takes no place from it.
    pub namespaces: BTreeMap<String, usize>,
}

impl KeyRequest {
    /// The best place that the source has in a namespace.
    pub fn place(&self) -> usize {
        self.namespaces.values().copied().min().unwrap_or(usize::MAX)
    }
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
            let request = out.entry(source).or_insert_with(|| KeyRequest { longest, namespaces: BTreeMap::new() });
            request.longest = longest.max(request.longest);
            if !request.namespaces.contains_key(&policy.namespace) {
                let count = counts.entry(&policy.namespace).or_default();
                request.namespaces.insert(policy.namespace.clone(), *count);
                *count += 1;
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Policy;
    use weft_k8s_api::istio::RequestAuthentication;

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

    #[test]
    fn a_source_counts_in_every_namespace_that_names_it() {
        let policy = |namespace: &str, created: i64, uris: &[&str]| {
            let rule = |uri: &&str| JwtRule { jwks_uri: uri.to_string(), ..JwtRule::default() };
            let spec = RequestAuthentication { jwt_rules: uris.iter().map(rule).collect(), ..Default::default() };
            Arc::new(Policy {
                namespace: namespace.into(),
                name: "jwt".into(),
                created,
                selector: Default::default(),
                spec: Arc::new(spec),
                annotations: Default::default(),
                provenance: Default::default(),
                own_namespace_only: false,
            })
        };
        // The older policy names throw-away sources before its neighbour's.
        let evil = policy("evil", 1, &["https://x/1", "https://x/2", "https://issuer"]);
        let shop = policy("shop", 2, &["https://issuer", "https://x/2", "https://issuer"]);
        let request_auth = [("evil".to_string(), vec![evil]), ("shop".to_string(), vec![shop])].into();
        let snapshot = MeshSnapshot { request_auth, ..MeshSnapshot::default() };
        let sources = snapshot.key_sources();
        let of = |uri: &str| &sources[&KeySource::Uri(uri.into())];
        let places = |pairs: &[(&str, usize)]| pairs.iter().map(|(name, at)| (name.to_string(), *at)).collect();
        let wanted: BTreeMap<String, usize> = places(&[("evil", 2), ("shop", 0)]);
        assert_eq!((&of("https://issuer").namespaces, of("https://issuer").place()), (&wanted, 0));
        assert_eq!(of("https://x/1").namespaces, places(&[("evil", 0)]));
        assert_eq!(of("https://x/2").namespaces, places(&[("evil", 1), ("shop", 1)]));
    }
}
