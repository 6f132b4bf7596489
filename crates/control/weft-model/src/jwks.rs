//! Whose keys check tokens: where the keys of an issuer are fetched from, and those that were fetched. The fetching is the
//! control plane's business; a build takes what it has.

use crate::MeshSnapshot;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use weft_k8s_api::istio::JwtRule;

pub use weft_tls::jwks::{for_envoy, only_usable};

/// A set by which no token is valid, but a set: Envoy refuses a listener whose set has no key. The point's x is the SHA-256 of
/// `weft: the keys of this issuer are not known 0`, so that nobody has chosen it with the private key at hand.
pub const NO_KEYS: &str = concat!(
    r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"none","x":"qyz2pEhQCNijrrbdhzPKw5C62V3lCOprtuZgT-dSqrI","#,
    r#""y":"_jyQpz4sWkZ5Oao5Cy-YQ9wzicgxARq8ExFUk6H1hn0"}]}"#
);

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

/// Key sets that were fetched, as [`for_envoy`] gives them, and why others were not.
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

/// A key set as the two kinds of proxies read it; or why it checks no tokens there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeySet {
    /// For Envoys.
    pub envoy: Result<Arc<str>, Arc<str>>,
    /// For our own proxy, which reads keys more strictly.
    pub weft: Result<Arc<str>, Arc<str>>,
}

/// The key sets of all rules by their text. To read one takes longer than much else that is done for a proxy, so that each is
/// read once, when it is new.
#[derive(Debug, Clone, Default)]
pub struct KeySets(Arc<HashMap<Arc<str>, Arc<KeySet>>>);

impl KeySet {
    fn read(text: &str, fetched: bool) -> Self {
        #[cfg(test)]
        tests::READ.with(|read| read.set(read.get() + 1));
        let envoy: Result<Arc<str>, Arc<str>> = match fetched {
            true => Ok(text.into()),
            false => for_envoy(text).map(Arc::from).map_err(|why| why.to_string().into()),
        };
        let usable = |text: &Arc<str>| only_usable(text).map(Arc::from).map_err(|why| why.to_string().into());
        let weft = envoy.as_ref().map_err(Clone::clone).and_then(usable);
        Self { envoy, weft }
    }
}

impl KeySets {
    /// Those of the rules and fetched keys of a snapshot; what was read for the one before is not read again.
    pub(crate) fn of(snapshot: &MeshSnapshot, before: &Self) -> Self {
        let mut sets: HashMap<Arc<str>, Arc<KeySet>> = HashMap::new();
        let rules = snapshot.request_auth.values().flatten().flat_map(|policy| &policy.spec.jwt_rules);
        for (text, fetched) in rules.filter_map(|rule| snapshot.key_text(rule)?.ok()) {
            if !sets.contains_key(text) {
                let known = before.0.get(text).cloned();
                sets.insert(text.into(), known.unwrap_or_else(|| Arc::new(KeySet::read(text, fetched))));
            }
        }
        Self(Arc::new(sets))
    }
}

impl MeshSnapshot {
    /// The text of a rule's keys, and whether they were fetched, or why they were not; `None` while nobody knows yet.
    pub(crate) fn key_text<'a>(&'a self, rule: &'a JwtRule) -> Option<Result<(&'a str, bool), &'a Arc<str>>> {
        match KeySource::of(rule) {
            None => Some(Ok((rule.jwks.as_str(), false))),
            Some(source) => self.jwks.get(&source).map(|keys| keys.as_ref().map(|text| (&**text, true))),
        }
    }

    /// The keys of a text of [`Self::key_text`].
    pub(crate) fn key_set(&self, text: &str, fetched: bool) -> Cow<'_, KeySet> {
        match self.key_sets.0.get(text) {
            Some(known) => Cow::Borrowed(known),
            None => Cow::Owned(KeySet::read(text, fetched)),
        }
    }

    /// The keys by which a proxy checks the tokens of a rule: with `weft` our own, else an Envoy. `None` when there are none that
    /// it can use.
    pub fn keys_of(&self, rule: &JwtRule, weft: bool) -> Option<Arc<str>> {
        let (text, fetched) = self.key_text(rule)?.ok()?;
        let set = self.key_set(text, fetched);
        let keys = if weft { &set.weft } else { &set.envoy };
        keys.as_ref().ok().cloned()
    }

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
    use std::cell::Cell;
    use weft_k8s_api::istio::RequestAuthentication;

    thread_local! {
        /// Key sets that were read by this thread.
        pub(super) static READ: Cell<usize> = const { Cell::new(0) };
    }

    /// A cluster changes all the time, and the keys of its issuers hardly ever.
    #[test]
    fn a_key_set_is_read_once() {
        const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"04N0xi21hshyvBp7I167sbE_bXqyqkAPfefdklMO7wY","y":"UI8exy-C06a7DUnjIdENkxeFtHM4-l_41LqEw9nVgmw"}]}"#;
        const BAD: &str = r#"{"keys":[{"kty":"RSA"}]}"#;
        let authentication = format!(
            "{{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {{name: r, namespace: foo}}, \
               spec: {{jwtRules: [{{issuer: a, jwks: '{KEYS}'}}, {{issuer: b, jwks: '{BAD}'}}, {{issuer: c, jwksUri: 'https://c/k'}}]}}}}\n---\n"
        );
        let namespace = |label: &str| {
            format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: foo, labels: {{a: {label}}}}}}}\n")
        };
        let read = || READ.with(|read| read.replace(0));
        let inputs = |label: &str| crate::tests::inputs(&(authentication.clone() + &namespace(label)));
        let first = crate::build(&inputs("one"), None);
        assert_eq!((read(), first.warnings.len()), (2, 1), "{:?}", first.warnings);
        let second = crate::build(&inputs("two"), Some(&first));
        assert_eq!((read(), &second.warnings), (0, &first.warnings), "something else changed");
        // What was fetched is as an Envoy reads it already.
        let mut fetched = inputs("two");
        fetched.jwks = Arc::new([(KeySource::Uri("https://c/k".into()), Ok(Arc::from(format!("{KEYS} "))))].into());
        let third = crate::build(&fetched, Some(&second));
        assert_eq!(read(), 1, "one is new");
        let rules = &third.request_auth["foo"][0].spec.jwt_rules;
        let of = |issuer: &str, weft| {
            let rule = rules.iter().find(|rule| rule.issuer == issuer).unwrap();
            third.keys_of(rule, weft).map(|keys| keys.len())
        };
        let length = only_usable(KEYS).unwrap().len();
        assert_eq!((of("a", false), of("a", true)), (Some(length), Some(length)));
        assert_eq!((of("b", false), of("b", true)), (None, None));
        assert_eq!((of("c", false), of("c", true)), (Some(KEYS.len() + 1), Some(length)));
        assert_eq!(read(), 0, "whoever asks for them does not read them");
    }

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
