//! Who a workload is: [`TrustDomain`], [`SpiffeId`], [`Svid`], [`TrustBundle`]. Pure: no I/O, no clock, no cryptography.
//!
//! Reading order: [`trust_domain`], [`spiffe_id`], [`svid`] (an identity document with its key), [`bundle`] (whom to
//! believe).

pub mod bundle;
pub mod spiffe_id;
pub mod svid;
pub mod trust_domain;

pub use bundle::TrustBundle;
pub use spiffe_id::SpiffeId;
pub use svid::Svid;
pub use trust_domain::TrustDomain;

/// Why a text is not a trust domain or a SPIFFE ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text is not a trust domain.
    #[error(
        "{text:?} is not a trust domain: {reason}; write 1 to 255 lower-case letters, digits, '.', '-' or '_', such as cluster.local"
    )]
    TrustDomain {
        /// What was given, cut to 64 characters.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The text is not a SPIFFE ID.
    #[error(
        "{text:?} is not a SPIFFE ID: {reason}; the form is spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
    )]
    SpiffeId {
        /// What was given, cut to 64 characters.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// The beginning of a text that came from outside, for a message.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(64).collect()
}
