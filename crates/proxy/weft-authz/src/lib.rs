//! RBAC policies: compiled from Envoy's messages, evaluated on every connection or request. Pure: no I/O, no clock.
//!
//! Reading order: [`types`], [`compile`] (message → types), [`index`] (which policies can match), [`evaluate`]
//! (facts → decision).

pub mod compile;
pub mod evaluate;
pub mod index;
pub mod types;

pub use compile::{compile_http, compile_network};
pub use types::*;
