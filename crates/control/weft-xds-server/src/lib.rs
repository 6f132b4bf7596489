//! The aggregated discovery service: gives each proxy the resources that are generated for it, and keeps them current.
//! Knows streams, subscriptions and answers; what is in the resources is the generator's affair.
//!
//! Reading order: [`kind`] (types and their order), [`auth`] (who calls), `offer` (what a proxy may have), [`session`] (the
//! protocol, without I/O), `sent` and `share` (its memory), `connection` (one stream), [`presence`] (who is told of it),
//! `asked` and `wire` (how it is read and written), [`server`] (all of them), [`status`] and [`metrics`] (what is known of
//! them), [`debug`] (the monitoring port).

mod asked;
pub mod auth;
mod connection;
pub mod debug;
mod dump;
pub mod kind;
pub mod metrics;
mod offer;
pub mod places;
pub mod presence;
mod sent;
pub mod server;
pub mod session;
mod share;
pub mod status;
mod wire;

pub use auth::{Authenticator, Caller, NoAuthentication};
pub use kind::{KINDS, Kind};
pub use offer::Offer;
pub use presence::{Observer, Present};
pub use server::{AdsServer, AdsService, Generate, Options, RemoteAddr, SecretAccess};
