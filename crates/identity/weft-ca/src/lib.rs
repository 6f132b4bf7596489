//! The certificate authority and its gRPC service. A request only ever yields the identity of the caller that the
//! [`CallerAuthenticator`] found; what a signing request asks for is checked against it, never believed.
//!
//! Reading order: [`material`] (what is kept in Secrets), [`authority`] (rules of signing), [`caller`] (who asks),
//! [`rate`] (how often), [`service`] (`istio.v1.auth.IstioCertificateService`), [`transport`] (a TLS connection as tonic
//! wants it). Does not know where Secrets are kept, nor how a token is reviewed: the caller hands both in.

pub mod authority;
pub mod caller;
pub mod material;
pub mod rate;
pub mod service;
pub mod transport;

pub use authority::{Authority, CaPolicy, SignError, SignedChain};
pub use caller::{
    AuthFailure, Caller, CallerAuthenticator, CertificateAuthenticator, TokenAuthenticator, TokenIdentity, TokenReview,
    authenticate,
};
pub use material::{CaMaterial, MaterialError};
pub use service::{CertificateService, ServiceStats};
pub use transport::{ConnectionInfo, TlsConnection};
