//! From xDS messages to the immutable [`ProxySnapshot`] that the data plane runs on. Knows xDS; knows nothing of Istio's
//! kinds, of sockets or of time.
//!
//! Reading order: [`snapshot`], [`listener`], [`http`], [`cluster`], [`tls`] (what is compiled), then `compile`
//! (xDS → those, with an error that names each field it cannot use), `apply` (a change of resources → the next snapshot),
//! `bootstrap` (Envoy's bootstrap file).

pub mod cluster;
pub mod http;
pub mod listener;
pub mod snapshot;
pub mod tls;

pub use cluster::*;
pub use http::*;
pub use listener::*;
pub use snapshot::*;
pub use tls::*;
