//! The name of an authority that gives identities. Owns its syntax; knows nothing of keys.

use crate::{IdentityError, excerpt};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest trust domain (SPIFFE-ID, section 2.3: the whole authority is at most 255 bytes).
const MAX_LENGTH: usize = 255;

/// A trust domain, such as `cluster.local`. A clone is one reference count.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Reads a trust domain (SPIFFE-ID, section 2.1).
    ///
    /// # Errors
    /// When the text is empty, too long, or holds another character than `a-z`, `0-9`, `.`, `-`, `_`.
    pub fn new(text: &str) -> Result<Self, IdentityError> {
        let wrong = |reason| Err(IdentityError::TrustDomain { text: excerpt(text), reason });
        if text.is_empty() {
            return wrong("it is empty");
        }
        if text.len() > MAX_LENGTH {
            return wrong("it is longer than 255 characters");
        }
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return wrong("it has upper-case letters");
        }
        if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_')) {
            return wrong("it has a character that is not allowed");
        }
        Ok(Self(Arc::from(text)))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax() {
        for good in ["cluster.local", "a", "td_1-x.example", &"a".repeat(255)] {
            assert_eq!(TrustDomain::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "Cluster.local", "a/b", "a:8080", "user@td", "ä", "a b", "a%20", "td\0", &"a".repeat(256)] {
            assert!(TrustDomain::new(bad).is_err(), "{bad}");
        }
    }
}
