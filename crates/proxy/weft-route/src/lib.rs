//! Virtual hosts and routes: compiled once from xDS, matched on every request. Pure: no I/O, no clock, no randomness — a
//! random number is an argument.
//!
//! Reading order: [`types`] (what a compiled route is), `compile` (xDS → types, with an error per bad field), `matching`
//! (a request → its route), `rewrite` (what the route does to path, host and headers), `normalize` (the one normaliser).

pub mod types;

pub use types::*;
