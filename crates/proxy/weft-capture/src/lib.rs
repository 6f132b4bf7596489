//! Traffic redirection: the nftables rules that send a pod's TCP traffic, and on request its DNS queries, to its proxy.
//! Owns the rule text and running `nft`; owns neither the namespaces it runs in nor the proxy that receives the traffic.
//!
//! Reading order: [`config`] (what to redirect), [`annotations`] (the pod annotations that tune it), [`rules`] (the text),
//! [`apply`] (running it).

pub mod annotations;
pub mod apply;
pub mod config;
pub mod rules;

pub use apply::{CaptureError, apply, find_tool, remove};
pub use config::{CaptureConfig, DnsCapture, OutboundRanges, Ports, ProxyOwner};
pub use rules::render;
