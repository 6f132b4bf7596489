//! An identity document with its private key, as PEM, and the arithmetic of its life. Does not read the clock: the caller
//! says what time it is.

use crate::SpiffeId;
use std::fmt;
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

/// An X.509 SVID. The key is wiped from memory on drop and never printed.
#[derive(Clone)]
pub struct Svid {
    /// Whose it is.
    pub id: SpiffeId,
    /// Certificate chain, leaf first, PEM.
    pub chain_pem: String,
    /// Private key of the leaf, PKCS#8 PEM.
    pub key_pem: Zeroizing<String>,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
}

impl Svid {
    /// Whether it may be shown at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// When to fetch the next one: `grace` (0 to 1) is the share of the life, counted from `issued`, that is kept in
    /// reserve. Counted from `issued` and not from `not_before`, which the authority sets back for clock skew.
    pub fn rotate_at(&self, issued: SystemTime, grace: f64) -> SystemTime {
        let life = self.not_after.duration_since(issued).unwrap_or(Duration::ZERO);
        issued + life.mul_f64(1.0 - grace.clamp(0.0, 1.0))
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svid() -> Svid {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        Svid {
            id: SpiffeId::parse("spiffe://td/ns/a/sa/b").unwrap(),
            chain_pem: String::new(),
            key_pem: Zeroizing::new("SECRET".into()),
            not_before: start,
            not_after: start + Duration::from_secs(100),
        }
    }

    #[test]
    fn life() {
        let svid = svid();
        assert!(svid.is_valid_at(svid.not_before));
        assert!(!svid.is_valid_at(svid.not_after));
        assert!(!svid.is_valid_at(svid.not_before - Duration::from_secs(1)));
        let issued = svid.not_before + Duration::from_secs(20);
        assert_eq!(svid.rotate_at(issued, 0.5), issued + Duration::from_secs(40));
        assert_eq!(
            svid.rotate_at(svid.not_after + Duration::from_secs(1), 0.5),
            svid.not_after + Duration::from_secs(1)
        );
    }

    #[test]
    fn key_is_not_printed() {
        assert!(!format!("{:?}", svid()).contains("SECRET"));
    }
}
