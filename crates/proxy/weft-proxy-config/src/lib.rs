//! From xDS messages to the immutable [`ProxySnapshot`] that the data plane runs on. Knows xDS; knows nothing of Istio's
//! kinds, of sockets or of time.
//!
//! Reading order: [`snapshot`], [`listener`], [`http`], [`jwt`], [`ext_authz`], [`ratelimit`], [`cluster`], [`tls`] (what is compiled), then `compile`
//! (xDS → those, with an error that names each field it cannot use), `apply` (a change of resources → the next snapshot),
//! `bootstrap` (Envoy's bootstrap file).

pub mod apply;
pub mod bootstrap;
pub mod cluster;
pub mod compile;
pub mod compress;
pub mod ext_authz;
pub mod http;
pub mod jwt;
pub mod listener;
pub mod matching;
pub mod ratelimit;
pub mod raw;
pub mod snapshot;
pub mod tls;

pub use apply::{Applied, ConfigBuilder, Update, Upsert, Wanted};
pub use bootstrap::{Bootstrap, load_bootstrap};
pub use cluster::*;
pub use compress::*;
pub use ext_authz::*;
pub use http::*;
pub use jwt::*;
pub use listener::*;
pub use ratelimit::*;
pub use raw::Raw;
pub use snapshot::*;
pub use tls::*;
pub use weft_tls::{Jwk, Jwks, JwksError, jwks};
