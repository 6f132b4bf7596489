//! ADS from the proxy's side. Keeps one stream to the control plane, says what the proxy wants, hands over what comes, and
//! sends back what the proxy says of it. Knows nothing of what resources mean.
//!
//! Reading order: [`connect`] (how the server is reached), [`types`] (what goes in and out), [`state`] (what was asked for and
//! what is held, per type), [`delta`] and [`sotw`] (the two protocols, as functions of that state), [`client`] (the stream).
//!
//! The last accepted resources stay in force while the control plane is away. On a new stream the delta protocol names the
//! versions that are held, so that the server sends only what changed meanwhile.

pub mod client;
pub mod connect;
mod delta;
mod sotw;
mod state;
pub mod types;

pub use client::{Client, start};
pub use connect::{BoxedIo, Connect, TcpConnect, UnixConnect};
pub use types::{Config, ConnectionState, Health, Interest, Mode, Outcome, Resource, ResourceUpdate};
