//! Filter chains while they are built: what they match and what they do.

use crate::pb::{self, address, core, listener, tls};
use ipnet::IpNet;

/// Protocols that the HTTP inspector finds in plain text.
pub(crate) const PLAIN_HTTP: [&str; 2] = ["http/1.1", "h2c"];
/// ALPN of HTTP in the mesh's mutual TLS.
pub(crate) const MESH_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// ALPN of the mesh's mutual TLS that is not said to be HTTP.
pub(crate) const MESH_TCP: [&str; 2] = ["istio-peer-exchange", "istio"];
/// All ALPN of the mesh's mutual TLS.
pub(crate) const MESH_ANY: [&str; 5] = ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// Transport protocol of plain text.
pub(crate) const RAW_BUFFER: &str = "raw_buffer";
/// Transport protocol of TLS.
pub(crate) const TLS: &str = "tls";

/// A filter chain.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chain {
    pub name: String,
    pub port: Option<u16>,
    /// Server names; `*` among them is all.
    pub sni: Vec<String>,
    pub destinations: Vec<IpNet>,
    pub protocols: Vec<&'static str>,
    pub transport: &'static str,
    pub tls: Option<tls::DownstreamTlsContext>,
    pub filters: Vec<listener::Filter>,
    pub metadata: Option<core::Metadata>,
}

impl Chain {
    /// True when every connection matches.
    pub fn matches_all(&self) -> bool {
        self.port.is_none()
            && (self.sni.is_empty() || self.sni.iter().any(|s| s == "*"))
            && self.protocols.is_empty()
            && self.transport.is_empty()
            && self.destinations.iter().all(|net| net.prefix_len() == 0)
    }

    /// True when the two match the same connections: a listener with both would be refused.
    pub fn collides_with(&self, other: &Self) -> bool {
        let set = |names: &[String]| {
            let mut kept: Vec<String> = names.iter().filter(|n| *n != "*").cloned().collect();
            kept.sort();
            kept.dedup();
            kept
        };
        self.port == other.port
            && self.transport == other.transport
            && self.protocols == other.protocols
            && set(&self.sni) == set(&other.sni)
            && self.ranges() == other.ranges()
    }

    /// Destination ranges, sorted, without those that hold everything.
    fn ranges(&self) -> Vec<IpNet> {
        let mut ranges: Vec<IpNet> = self.destinations.iter().filter(|net| net.prefix_len() > 0).copied().collect();
        ranges.sort();
        ranges.dedup();
        ranges
    }

    fn condition(&self) -> Option<listener::FilterChainMatch> {
        if self.matches_all() {
            return None;
        }
        let mut server_names = if self.sni.iter().any(|s| s == "*") { Vec::new() } else { self.sni.clone() };
        server_names.sort();
        server_names.dedup();
        Some(listener::FilterChainMatch {
            destination_port: self.port.map(u32::from),
            prefix_ranges: self.ranges().into_iter().map(address::cidr).collect(),
            server_names,
            transport_protocol: self.transport.into(),
            application_protocols: self.protocols.iter().map(ToString::to_string).collect(),
            ..Default::default()
        })
    }

    /// The message.
    pub fn build(self) -> listener::FilterChain {
        listener::FilterChain {
            filter_chain_match: self.condition(),
            name: self.name,
            transport_socket: self.tls.map(|context| pb::transport_socket("envoy.transport_sockets.tls", &context)),
            filters: self.filters,
            metadata: self.metadata,
            ..Default::default()
        }
    }
}

/// Adds chains to a list, leaving out those that match what one of the list does already.
pub(crate) fn add_without_collision(chains: &mut Vec<Chain>, more: Vec<Chain>) {
    for chain in more {
        if !chains.iter().any(|known| known.collides_with(&chain)) {
            chains.push(chain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collisions() {
        let base = Chain { sni: vec!["a".into(), "b".into()], transport: TLS, ..Chain::default() };
        let turned = Chain { sni: vec!["b".into(), "a".into()], ..base.clone() };
        let other = Chain { sni: vec!["a".into()], ..base.clone() };
        let ranged = Chain { destinations: vec!["10.0.0.0/8".parse().unwrap()], ..base.clone() };
        let whole = Chain { destinations: vec!["0.0.0.0/0".parse().unwrap()], ..base.clone() };
        assert!(base.collides_with(&turned) && base.collides_with(&whole));
        assert!(!base.collides_with(&other) && !base.collides_with(&ranged));
        let mut chains = vec![base];
        add_without_collision(&mut chains, vec![turned, other]);
        assert_eq!(chains.len(), 2);
    }

    #[test]
    fn a_star_is_no_condition() {
        assert!(Chain { sni: vec!["*".into()], ..Chain::default() }.build().filter_chain_match.is_none());
        assert!(!Chain { transport: TLS, ..Chain::default() }.matches_all());
    }
}
