//! The mesh's trust domain and its other names, as they are at the moment: mesh config may change them while we run.

use std::sync::{Arc, PoisonError, RwLock};
use weft_identity::{SpiffeId, TrustDomain};

/// Our trust domain first, then its other names. A clone shares them.
#[derive(Debug, Clone)]
pub struct LiveTrust(Arc<RwLock<Arc<[TrustDomain]>>>);

impl LiveTrust {
    /// `own` is what new identities are in; those of `aliases` are believed as well.
    pub fn new(own: TrustDomain, aliases: impl IntoIterator<Item = TrustDomain>) -> Self {
        Self::from(std::iter::once(own).chain(aliases).collect::<Vec<_>>())
    }

    /// Replaces all of them.
    pub fn set(&self, own: TrustDomain, aliases: impl IntoIterator<Item = TrustDomain>) {
        let all = std::iter::once(own).chain(aliases).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// All of them, ours first.
    pub fn all(&self) -> Arc<[TrustDomain]> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The domain of new identities; `None` when there is none at all.
    pub fn own(&self) -> Option<TrustDomain> {
        self.all().first().cloned()
    }

    /// Whether identities of this domain are believed.
    pub fn trusts(&self, domain: &TrustDomain) -> bool {
        self.all().contains(domain)
    }

    /// The identity that a certificate is given for: the caller's own, or the same account under another name of the mesh
    /// when the request asks for that. A pod keeps the trust domain that it was started with until it is made anew
    /// (spec 3:TD-07), and must be able to renew meanwhile.
    pub fn named<'a>(&self, caller: &SpiffeId, asked: impl IntoIterator<Item = &'a str>) -> SpiffeId {
        let mut asked = asked.into_iter();
        let (Some(only), None) = (asked.next(), asked.next()) else { return caller.clone() };
        match SpiffeId::parse(only) {
            Ok(id)
                if id.namespace_and_account().is_some()
                    && id.namespace_and_account() == caller.namespace_and_account()
                    && self.trusts(id.trust_domain())
                    && self.trusts(caller.trust_domain()) =>
            {
                id
            }
            _ => caller.clone(),
        }
    }
}

impl From<Vec<TrustDomain>> for LiveTrust {
    fn from(all: Vec<TrustDomain>) -> Self {
        Self(Arc::new(RwLock::new(all.into())))
    }
}

impl From<TrustDomain> for LiveTrust {
    fn from(own: TrustDomain) -> Self {
        Self::from(vec![own])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_keeps_its_name_under_another_name_of_the_mesh() {
        let domain = |text: &str| TrustDomain::new(text).unwrap();
        let id = |text: &str| SpiffeId::parse(text).unwrap();
        let trust = LiveTrust::new(domain("new"), [domain("old")]);
        let caller = id("spiffe://new/ns/a/sa/b");
        for (asked, named) in [
            (&["spiffe://old/ns/a/sa/b"][..], "spiffe://old/ns/a/sa/b"),
            (&["spiffe://new/ns/a/sa/b"], "spiffe://new/ns/a/sa/b"),
            (&["spiffe://old/ns/a/sa/c"], "spiffe://new/ns/a/sa/b"),
            (&["spiffe://old/ns/x/sa/b"], "spiffe://new/ns/a/sa/b"),
            (&["spiffe://strange/ns/a/sa/b"], "spiffe://new/ns/a/sa/b"),
            (&["spiffe://old/ns/a/sa/b", "spiffe://old/ns/a/sa/c"], "spiffe://new/ns/a/sa/b"),
            (&["spiffe://old/other"], "spiffe://new/ns/a/sa/b"),
            (&[], "spiffe://new/ns/a/sa/b"),
        ] {
            assert_eq!(trust.named(&caller, asked.iter().copied()), id(named), "{asked:?}");
        }
        trust.set(domain("new"), []);
        assert_eq!(trust.named(&caller, ["spiffe://old/ns/a/sa/b"]), caller);
        assert!(!trust.trusts(&domain("old")) && trust.own() == Some(domain("new")));
    }
}
