//! The SPIFFE ID: syntax, strictly by the SPIFFE-ID document, and the form that meshes use.

use crate::{IdentityError, TrustDomain, excerpt};
use std::fmt;
use std::str::FromStr;

/// Longest SPIFFE ID in bytes (SPIFFE-ID, section 2.3).
const MAX_LENGTH: usize = 2048;
const SCHEME: &str = "spiffe://";

/// A SPIFFE ID: a trust domain and a path, which may be empty (the trust domain itself).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    /// Empty, or begins with `/` and does not end with it.
    path: String,
}

impl SpiffeId {
    /// Reads a SPIFFE ID. What is accepted is written back byte for byte: there is no normalisation, so two spellings are
    /// never one identity.
    ///
    /// # Errors
    /// When the scheme is not `spiffe`, the trust domain or a path segment is empty or has characters that are not
    /// allowed, a segment is `.` or `..`, the path ends in `/`, or the whole is over 2048 bytes.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let wrong = |reason| IdentityError::SpiffeId { text: excerpt(text), reason };
        if text.len() > MAX_LENGTH {
            return Err(wrong("it is longer than 2048 bytes"));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("it does not begin with spiffe://"))?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let trust_domain = TrustDomain::new(domain).map_err(|_| wrong("its trust domain is not valid"))?;
        check_path(path).map_err(wrong)?;
        Ok(Self { trust_domain, path: path.to_owned() })
    }

    /// The identity of a service account: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    ///
    /// # Errors
    /// When a name is empty or could be read as another path.
    pub fn workload(trust_domain: &TrustDomain, namespace: &str, account: &str) -> Result<Self, IdentityError> {
        if namespace.contains('/') || account.contains('/') {
            return Err(IdentityError::SpiffeId {
                text: excerpt(&format!("{namespace}/{account}")),
                reason: "a namespace or service account has a '/'",
            });
        }
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{account}"))
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path, with its leading `/`; empty for the trust domain itself.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Namespace and service account, when the path has that form.
    pub fn namespace_and_account(&self) -> Option<(&str, &str)> {
        let mut segments = self.path.strip_prefix('/')?.split('/');
        let parts = (segments.next()?, segments.next()?, segments.next()?, segments.next()?);
        match (parts, segments.next()) {
            (("ns", namespace, "sa", account), None) => Some((namespace, account)),
            _ => None,
        }
    }
}

fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Ok(());
    }
    for segment in path[1..].split('/') {
        match segment {
            "" => return Err("its path has an empty segment or ends in '/'"),
            "." | ".." => return Err("its path has a '.' or '..' segment"),
            _ => {}
        }
        if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
            return Err("its path has a character other than letters, digits, '.', '-', '_'");
        }
    }
    Ok(())
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.trust_domain, self.path)
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for good in
            ["spiffe://cluster.local/ns/default/sa/reviews", "spiffe://td", "spiffe://td/a", "spiffe://td/A.b-c_d/..."]
        {
            assert_eq!(SpiffeId::parse(good).unwrap().to_string(), good);
        }
    }

    #[test]
    fn refused() {
        let long = format!("spiffe://td/{}", "a".repeat(2048));
        for bad in [
            "",
            "spiffe:/td/a",
            "SPIFFE://td/a",
            "https://td/a",
            "spiffe://",
            "spiffe:///a",
            "spiffe://td/",
            "spiffe://td//a",
            "spiffe://td/a/",
            "spiffe://td/./a",
            "spiffe://td/../a",
            "spiffe://TD/a",
            "spiffe://td:80/a",
            "spiffe://u@td/a",
            "spiffe://td/a?x",
            "spiffe://td/a#x",
            "spiffe://td/a%2Fb",
            "spiffe://td/a b",
            "spiffe://td/a\0",
            "spiffe://td/ä",
            &long,
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn workload_form() {
        let td = TrustDomain::new("cluster.local").unwrap();
        let id = SpiffeId::workload(&td, "default", "bookinfo-reviews").unwrap();
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/default/sa/bookinfo-reviews");
        assert_eq!(id.namespace_and_account(), Some(("default", "bookinfo-reviews")));
        for (namespace, account) in [("", "a"), ("a", ""), ("a/sa/b", "c"), ("a", "b/c"), ("..", "a"), ("a", "b c")] {
            assert!(SpiffeId::workload(&td, namespace, account).is_err(), "{namespace} {account}");
        }
        for other in ["spiffe://td/ns/a", "spiffe://td/ns/a/sa/b/c", "spiffe://td/x/a/sa/b", "spiffe://td"] {
            assert_eq!(SpiffeId::parse(other).unwrap().namespace_and_account(), None, "{other}");
        }
    }
}
