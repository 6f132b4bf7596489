//! Who opens a stream. How that is found out is the caller's affair: see [`Authenticator`].

use std::future::Future;
use std::pin::Pin;
use tonic::Status;
use tonic::metadata::MetadataMap;

/// A future that is boxed, so that authenticators can be chosen at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who opens a stream, as proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A service account.
    Account {
        /// Its namespace.
        namespace: String,
        /// Its name.
        service_account: String,
    },
    /// Nobody was asked: the plain-text port. It is believed what it says of itself, and gets no secrets.
    Unproven,
}

/// Finds out who opens a stream.
pub trait Authenticator: Send + Sync + 'static {
    /// The caller, from the headers and from what the transport put into the request's extensions (the verified client
    /// certificate).
    ///
    /// # Errors
    /// `UNAUTHENTICATED` when the caller proves nothing, `UNAVAILABLE` when it cannot be checked at the moment.
    fn authenticate<'a>(
        &'a self,
        headers: &'a MetadataMap,
        extensions: &'a http::Extensions,
    ) -> BoxFuture<'a, Result<Caller, Status>>;
}

/// Asks nobody: for the plain-text port.
#[derive(Debug, Clone, Copy)]
pub struct NoAuthentication;

impl Authenticator for NoAuthentication {
    fn authenticate<'a>(
        &'a self,
        _headers: &'a MetadataMap,
        _extensions: &'a http::Extensions,
    ) -> BoxFuture<'a, Result<Caller, Status>> {
        Box::pin(async { Ok(Caller::Unproven) })
    }
}
