//! The mesh's trust domain and its other names, as they are at the moment: mesh config may change them while we run.

use std::sync::{Arc, PoisonError, RwLock};
use weft_identity::TrustDomain;

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
    fn follows_the_mesh_config() {
        let domain = |text: &str| TrustDomain::new(text).unwrap();
        let trust = LiveTrust::new(domain("new"), [domain("old")]);
        assert!(trust.trusts(&domain("old")) && trust.own() == Some(domain("new")));
        trust.clone().set(domain("new"), []);
        assert!(!trust.trusts(&domain("old")) && trust.own() == Some(domain("new")));
    }
}
