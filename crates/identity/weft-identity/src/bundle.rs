//! Whom to believe: root certificates, as PEM, by trust domain.

use crate::TrustDomain;
use std::collections::BTreeMap;

/// Root certificates by trust domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustBundle {
    roots: BTreeMap<TrustDomain, String>,
}

impl TrustBundle {
    /// A bundle of one trust domain.
    pub fn of(trust_domain: TrustDomain, roots_pem: impl Into<String>) -> Self {
        Self { roots: BTreeMap::from([(trust_domain, roots_pem.into())]) }
    }

    /// Sets the roots of a trust domain (another mesh's, for federation).
    pub fn insert(&mut self, trust_domain: TrustDomain, roots_pem: impl Into<String>) {
        self.roots.insert(trust_domain, roots_pem.into());
    }

    /// PEM of the roots of a trust domain; `None` = it is not believed at all.
    pub fn roots_of(&self, trust_domain: &TrustDomain) -> Option<&str> {
        self.roots.get(trust_domain).map(String::as_str)
    }

    /// Trust domains with their roots, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &str)> {
        self.roots.iter().map(|(domain, pem)| (domain, pem.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_put_in() {
        let (ours, theirs) = (TrustDomain::new("ours").unwrap(), TrustDomain::new("theirs").unwrap());
        let mut bundle = TrustBundle::of(ours.clone(), "A");
        assert_eq!((bundle.roots_of(&ours), bundle.roots_of(&theirs)), (Some("A"), None));
        bundle.insert(theirs.clone(), "B");
        assert_eq!(bundle.iter().collect::<Vec<_>>(), vec![(&ours, "A"), (&theirs, "B")]);
    }
}
