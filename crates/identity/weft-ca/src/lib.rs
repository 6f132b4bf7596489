//! The certificate authority and its gRPC service. A request only ever yields the identity of the caller that the
//! [`CallerAuthenticator`] found; what a signing request asks for is checked against it, never believed.
//!
//! Reading order: [`material`] (what is kept in Secrets), [`authority`] (rules of signing), [`registration`] (an authority
//! elsewhere), [`signing`] (either), [`rotation`] (one after the other), [`trust`] (names of the mesh), [`caller`] (who
//! asks), [`rate`] (how often), [`service`] (`istio.v1.auth.IstioCertificateService`), [`transport`] (a TLS connection as
//! tonic wants it). Does not know where Secrets are kept, nor how a token is reviewed: the caller hands both in.

pub mod authority;
pub mod caller;
pub mod material;
pub mod rate;
pub mod registration;
pub mod rotation;
pub mod service;
pub mod signing;
pub mod transport;
pub mod trust;

pub use authority::{Authority, CaPolicy, SignError, SignedChain};
pub use caller::{
    AuthFailure, Caller, CallerAuthenticator, CertificateAuthenticator, Evidence, TokenAuthenticator, TokenIdentity,
    TokenReview, authenticate,
};
pub use material::{CaMaterial, MaterialError};
pub use registration::{Delegate, Errand, Registration, Token};
pub use service::{CertificateService, ServiceStats};
pub use signing::{Signing, Wish};
pub use transport::{ConnectionInfo, TlsConnection};
pub use trust::LiveTrust;
