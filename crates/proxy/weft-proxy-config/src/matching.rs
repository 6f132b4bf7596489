//! A connection → its filter chain. The index is a tree with a level per condition, in Envoy's order of precedence:
//! destination port, destination range, server name, transport, application protocol, the peer's range, whether the client
//! is on this machine, its range, its port.
//!
//! At each level the most specific entry is taken and there is no way back: a chain for the port hides those for any port,
//! also when its other conditions fail. A lookup costs the same whatever the number of chains.

use crate::{ChainMatch, ConnectionFacts, FilterChain, Listener, Transport};
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use weft_core::Strng;

/// Entries that one chain may make in the index.
const MAX_ENTRIES: usize = 100_000;

/// Chains by their conditions.
#[derive(Debug, Clone, Default)]
pub struct ChainIndex {
    ports: HashMap<u16, ByRange<ByName>, foldhash::fast::RandomState>,
    any_port: ByRange<ByName>,
}

/// Longest prefix first: one look-up per distinct length.
#[derive(Debug, Clone)]
struct ByRange<T> {
    lengths: [Vec<u8>; 2],
    nets: HashMap<IpNet, T, foldhash::fast::RandomState>,
}

/// Exact names; wildcards are stored with their dot (`.example.com`), "any" as the empty name.
#[derive(Debug, Clone, Default)]
struct ByName(HashMap<Strng, ByTransport, foldhash::fast::RandomState>);

#[derive(Debug, Clone, Default)]
struct ByTransport {
    raw: Option<ByProtocol>,
    tls: Option<ByProtocol>,
    any: Option<ByProtocol>,
}

/// Few per chain: a list is quicker than a map.
#[derive(Debug, Clone, Default)]
struct ByProtocol {
    named: Vec<(Strng, ByRange<BySourceType>)>,
    any: ByRange<BySourceType>,
}

#[derive(Debug, Clone, Default)]
struct BySourceType {
    local: ByRange<ByPort>,
    external: ByRange<ByPort>,
    any: ByRange<ByPort>,
}

#[derive(Debug, Clone, Default)]
struct ByPort {
    ports: Vec<(u16, u32)>,
    any: Option<u32>,
}

impl<T> Default for ByRange<T> {
    fn default() -> Self {
        Self { lengths: [Vec::new(), Vec::new()], nets: HashMap::default() }
    }
}

impl<T> ByRange<T> {
    fn is_empty(&self) -> bool {
        self.nets.is_empty()
    }

    fn entry(&mut self, net: IpNet) -> &mut T
    where
        T: Default,
    {
        let lengths = &mut self.lengths[usize::from(net.addr().is_ipv6())];
        if let Err(at) = lengths.binary_search_by(|have| net.prefix_len().cmp(have)) {
            lengths.insert(at, net.prefix_len());
        }
        self.nets.entry(net.trunc()).or_default()
    }

    fn find(&self, ip: IpAddr) -> Option<&T> {
        self.lengths[usize::from(ip.is_ipv6())].iter().find_map(|length| {
            let net = IpNet::new(ip, *length).ok()?.trunc();
            self.nets.get(&net)
        })
    }
}

impl Listener {
    /// The filter chain for a connection; `None` when none matches and there is no default.
    pub fn find_chain(&self, facts: &ConnectionFacts<'_>) -> Option<&Arc<FilterChain>> {
        match self.index.find(facts) {
            Some(number) => self.chains.get(number),
            None => self.default_chain.as_ref(),
        }
    }
}

impl ChainIndex {
    /// Indexes the conditions of the chains. With it: each chain whose conditions another one before it has already, or
    /// which has too many, and the reason.
    pub fn build<'m>(matches: impl Iterator<Item = &'m ChainMatch>) -> (Self, Vec<(usize, String)>) {
        let mut index = Self::default();
        let mut errors = Vec::new();
        for (number, conditions) in matches.enumerate() {
            if let Err(reason) = index.insert(conditions, number) {
                errors.push((number, reason));
            }
        }
        (index, errors)
    }

    fn insert(&mut self, conditions: &ChainMatch, number: usize) -> Result<(), String> {
        let entries = combinations(conditions);
        if entries > MAX_ENTRIES {
            return Err(format!("its conditions make {entries} combinations; the limit is {MAX_ENTRIES}"));
        }
        let number = u32::try_from(number).map_err(|_| "there are too many filter chains".to_string())?;
        let destinations = match conditions.destination_port {
            Some(port) => self.ports.entry(port).or_default(),
            None => &mut self.any_port,
        };
        let mut taken = None;
        for net in ranges(&conditions.destination) {
            let names = destinations.entry(net);
            for name in names_or_any(&conditions.server_names) {
                let transports = names.0.entry(name).or_default();
                let slot = match conditions.transport {
                    Some(Transport::RawBuffer) => &mut transports.raw,
                    Some(Transport::Tls) => &mut transports.tls,
                    None => &mut transports.any,
                };
                taken = slot.get_or_insert_default().insert(conditions, number).or(taken);
            }
        }
        match taken {
            Some(other) => Err(format!("it has the same conditions as filter_chains[{other}], which comes first")),
            None => Ok(()),
        }
    }

    fn find(&self, facts: &ConnectionFacts<'_>) -> Option<usize> {
        let destinations = self.ports.get(&facts.destination.port()).unwrap_or(&self.any_port);
        let names = destinations.find(facts.destination.ip().to_canonical())?;
        let protocols = names.find(facts.server_name.unwrap_or_default())?.find(facts.transport)?;
        let types = protocols.find(facts.application_protocols)?.find(facts.direct_source.to_canonical())?;
        let number = types.find(facts)?.find(facts.source.port())?;
        usize::try_from(number).ok()
    }
}

fn combinations(conditions: &ChainMatch) -> usize {
    let lists = [
        conditions.destination.len(),
        conditions.server_names.len(),
        conditions.application_protocols.len(),
        conditions.direct_source.len(),
        conditions.source.len(),
        conditions.source_ports.len(),
    ];
    lists.iter().fold(1_usize, |product, n| product.saturating_mul((*n).max(1)))
}

/// The ranges, or all addresses.
fn ranges(list: &[IpNet]) -> Vec<IpNet> {
    if !list.is_empty() {
        return list.to_vec();
    }
    vec![IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]
}

fn names_or_any(list: &[Strng]) -> Vec<Strng> {
    if list.is_empty() {
        return vec!["".into()];
    }
    list.iter().map(|name| name.strip_prefix('*').map_or_else(|| name.clone(), Strng::from)).collect()
}

impl ByName {
    /// The exact name, then its parent domains from the longest, then chains that ask for no name.
    fn find(&self, name: &str) -> Option<&ByTransport> {
        if let Some(found) = self.0.get(name) {
            return Some(found);
        }
        let mut parents = name.match_indices('.').filter(|(at, _)| *at > 0).map(|(at, _)| &name[at..]);
        parents.find_map(|parent| self.0.get(parent)).or_else(|| self.0.get(""))
    }
}

impl ByTransport {
    fn find(&self, transport: Transport) -> Option<&ByProtocol> {
        let exact = match transport {
            Transport::RawBuffer => &self.raw,
            Transport::Tls => &self.tls,
        };
        exact.as_ref().or(self.any.as_ref())
    }
}

impl ByProtocol {
    fn insert(&mut self, conditions: &ChainMatch, number: u32) -> Option<u32> {
        if conditions.application_protocols.is_empty() {
            return insert_sources(&mut self.any, conditions, number);
        }
        let mut taken = None;
        for name in &conditions.application_protocols {
            let at = self.named.iter().position(|(have, _)| have == name).unwrap_or_else(|| {
                self.named.push((name.clone(), ByRange::default()));
                self.named.len() - 1
            });
            taken = insert_sources(&mut self.named[at].1, conditions, number).or(taken);
        }
        taken
    }

    /// The first of the client's protocols that a chain asks for.
    fn find(&self, offered: &[Strng]) -> Option<&ByRange<BySourceType>> {
        let named = offered.iter().find_map(|name| self.named.iter().find(|(have, _)| have == name));
        match named {
            Some((_, found)) => Some(found),
            None => (!self.any.is_empty()).then_some(&self.any),
        }
    }
}

fn insert_sources(by_peer: &mut ByRange<BySourceType>, conditions: &ChainMatch, number: u32) -> Option<u32> {
    let mut taken = None;
    for peer in ranges(&conditions.direct_source) {
        let types = by_peer.entry(peer);
        let sources = match conditions.source_local {
            Some(true) => &mut types.local,
            Some(false) => &mut types.external,
            None => &mut types.any,
        };
        for source in ranges(&conditions.source) {
            taken = sources.entry(source).insert(&conditions.source_ports, number).or(taken);
        }
    }
    taken
}

impl BySourceType {
    fn find(&self, facts: &ConnectionFacts<'_>) -> Option<&ByPort> {
        let source = facts.source.ip().to_canonical();
        let local = source.is_loopback() || source == facts.destination.ip().to_canonical();
        let own = if local { &self.local } else { &self.external };
        if own.is_empty() { self.any.find(source) } else { own.find(source) }
    }
}

impl ByPort {
    /// Enters a chain; the one that is there already, if it is another.
    fn insert(&mut self, ports: &[u16], number: u32) -> Option<u32> {
        if ports.is_empty() {
            let owner = *self.any.get_or_insert(number);
            return (owner != number).then_some(owner);
        }
        let mut taken = None;
        for port in ports {
            match self.ports.iter().find(|(have, _)| have == port) {
                Some((_, other)) if *other != number => taken = Some(*other),
                Some(_) => {}
                None => self.ports.push((*port, number)),
            }
        }
        taken
    }

    fn find(&self, port: u16) -> Option<u32> {
        self.ports.iter().find(|(have, _)| *have == port).map(|(_, number)| *number).or(self.any)
    }
}

#[cfg(test)]
mod tests;
