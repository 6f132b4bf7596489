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

    /// The chain without what `older` matches already: in parts, for what is left need be no product of names and ranges. A
    /// listener with two chains for one combination of conditions is refused whole, by Envoy and by us.
    fn without(self, older: &Self) -> Vec<Self> {
        if self.port != older.port || self.transport != older.transport {
            return vec![self];
        }
        let (names, ranges, protocols) = (self.names(), self.ranges(), self.protocols.clone());
        let (of_names, of_ranges, of_protocols) = (older.names(), older.ranges(), older.protocols.clone());
        if !meet(&names, &of_names) || !meet(&ranges, &of_ranges) || !meet(&protocols, &of_protocols) {
            return vec![self];
        }
        let (shared, sni): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| of_names.contains(name));
        let destinations: Vec<IpNet> = ranges.into_iter().filter(|range| !of_ranges.contains(range)).collect();
        let mut left = Vec::new();
        if !sni.is_empty() {
            left.push(Self { sni, ..self.clone() });
        }
        if !destinations.is_empty() {
            left.push(Self { sni: shared, destinations, ..self });
        }
        left
    }

    /// Server names; none stands for all.
    fn names(&self) -> Vec<String> {
        if self.sni.iter().any(|name| name == "*") { Vec::new() } else { self.sni.clone() }
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
        let mut server_names = self.names();
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

/// Whether two lists of conditions have one in common. An empty list is one condition: anything.
fn meet<T: PartialEq>(a: &[T], b: &[T]) -> bool {
    if a.is_empty() || b.is_empty() { a.len() == b.len() } else { a.iter().any(|condition| b.contains(condition)) }
}

/// Adds chains to a list, each without what one of the list matches already; those of which nothing is left stay out.
pub(crate) fn add_without_collision(chains: &mut Vec<Chain>, more: Vec<Chain>) {
    for chain in more {
        let left =
            chains.iter().fold(vec![chain], |left, older| left.into_iter().flat_map(|c| c.without(older)).collect());
        chains.extend(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_connection_has_two_chains() {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let nets = |list: &[&str]| list.iter().map(|n| n.parse().unwrap()).collect::<Vec<IpNet>>();
        let chain =
            |sni: &[&str], ranges: &[&str]| Chain { sni: names(sni), destinations: nets(ranges), ..Chain::default() };
        let of = |c: &Chain| (c.sni.clone(), c.destinations.clone());
        // Of the new names and ranges only the pair that is there already is left out.
        let mut chains = vec![chain(&["a"], &["10.0.0.0/8"])];
        add_without_collision(&mut chains, vec![chain(&["a", "c"], &["10.0.0.0/8", "11.0.0.0/8"])]);
        let parts = [chain(&["c"], &["10.0.0.0/8", "11.0.0.0/8"]), chain(&["a"], &["11.0.0.0/8"])];
        assert_eq!(chains[1..].iter().map(of).collect::<Vec<_>>(), parts.iter().map(of).collect::<Vec<_>>());
        // What is there, what comes, what is left of it.
        for (old, new, left) in [
            (chain(&["a", "b"], &[]), chain(&["b", "c"], &[]), Some(chain(&["c"], &[]))),
            (chain(&["a", "b"], &[]), chain(&["b"], &[]), None),
            (chain(&["a", "b"], &[]), chain(&["b", "a"], &["0.0.0.0/0"]), None),
            (chain(&["b"], &[]), chain(&["*"], &[]), Some(chain(&["*"], &[]))),
            (chain(&["*"], &[]), chain(&[], &[]), None),
            (chain(&["*.b"], &[]), chain(&["a.b"], &[]), Some(chain(&["a.b"], &[]))),
            (chain(&["a"], &["10.0.0.0/8"]), chain(&["a"], &["11.0.0.0/8"]), Some(chain(&["a"], &["11.0.0.0/8"]))),
            (
                chain(&["a"], &["10.0.0.0/8", "12.0.0.0/8"]),
                chain(&["a"], &["10.0.0.0/8", "11.0.0.0/8"]),
                Some(chain(&["a"], &["11.0.0.0/8"])),
            ),
            (chain(&[], &["10.0.0.0/8"]), chain(&[], &[]), Some(chain(&[], &[]))),
        ] {
            let mut chains = vec![old.clone()];
            add_without_collision(&mut chains, vec![new.clone()]);
            let found = chains.get(1).map(|c| (c.sni.clone(), c.destinations.clone()));
            assert_eq!(found, left.map(|c| (c.sni, c.destinations)), "{:?} after {:?}", new.sni, old.sni);
        }
        let http = Chain { protocols: PLAIN_HTTP.to_vec(), transport: RAW_BUFFER, ..Chain::default() };
        let mut chains = vec![http.clone()];
        add_without_collision(&mut chains, vec![http, Chain::default(), Chain { transport: TLS, ..Chain::default() }]);
        assert_eq!(chains.len(), 3);
    }

    #[test]
    fn a_star_is_no_condition() {
        assert!(Chain { sni: vec!["*".into()], ..Chain::default() }.build().filter_chain_match.is_none());
        assert!(!Chain { transport: TLS, ..Chain::default() }.matches_all());
    }
}
