//! Traffic redirection: the nftables rules that send a pod's TCP traffic, and on request its DNS queries, to its proxy.
//! Owns the rule text and running `nft`; owns neither the namespaces it runs in nor the proxy that receives the traffic.
//!
//! Reading order: [`config`] (what to redirect), [`annotations`] (the pod annotations that tune it) and [`arguments`] (the
//! options of the init container), [`rules`] (the text for nftables), [`legacy`] (the same for iptables), [`apply`] (running
//! it).

pub mod annotations;
pub mod apply;
pub mod arguments;
pub mod config;
pub mod legacy;
pub mod rules;

pub use apply::{Backend, CaptureError, apply, apply_with, find_tool, is_applied, remove, remove_with};
pub use arguments::Arguments;
pub use config::{CaptureConfig, DnsCapture, InboundMode, OutboundRanges, Ports, ProxyOwner};
pub use rules::render;
