//! The aggregated discovery service: gives each proxy the resources that are generated for it, and keeps them current.
//! Knows streams, subscriptions and answers; what is in the resources is the generator's affair.
//!
//! Reading order: [`kind`] (types and their order), [`auth`] (who calls), `offer` (what a proxy may have), [`session`] (the
//! protocol, without I/O), `connection` (one stream), [`server`] (all of them), [`status`] and [`metrics`] (what is known of
//! them), [`debug`] (the monitoring port).

pub mod auth;
mod connection;
pub mod debug;
mod dump;
pub mod kind;
pub mod metrics;
mod offer;
mod places;
pub mod server;
pub mod session;
pub mod status;

pub use auth::{Authenticator, Caller, NoAuthentication};
pub use kind::{KINDS, Kind};
pub use offer::Offer;
pub use server::{AdsServer, AdsService, Generate, Options, RemoteAddr, SecretAccess};
