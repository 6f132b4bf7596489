//! Listener filters: what is looked at before a filter chain is chosen.

use super::chain::{Chain, PLAIN_HTTP, TLS};
use crate::pb::envoy_type::Int32Range;
use crate::pb::listener::{
    ListenerFilter, ListenerFilterChainMatchPredicate as Predicate, listener_filter_chain_match_predicate as predicate,
};
use crate::pb::{self};
use std::collections::BTreeMap;
use weft_proto::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use weft_proto::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use weft_proto::envoy::extensions::filters::listener::original_src::v3::OriginalSrc;
use weft_proto::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use weft_proto::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;

/// First read of the TLS inspector, bytes: most ClientHellos fit, and larger ones are read on.
const TLS_FIRST_READ: u32 = 512;
/// Mark of packets that a transparent proxy sends with the client's address.
const TRANSPARENT_MARK: u32 = 1337;

/// Looks for a ClientHello.
pub(crate) fn tls() -> ListenerFilter {
    let config = TlsInspector { initial_read_buffer_size: Some(TLS_FIRST_READ), ..Default::default() };
    pb::listener_filter("envoy.filters.listener.tls_inspector", &config)
}

/// Looks for HTTP.
pub(crate) fn http() -> ListenerFilter {
    pb::listener_filter("envoy.filters.listener.http_inspector", &HttpInspector::default())
}

/// Takes the destination before redirection as the connection's own.
pub(crate) fn original_dst() -> ListenerFilter {
    pb::listener_filter("envoy.filters.listener.original_dst", &OriginalDst::default())
}

/// Keeps the client's address towards the workload.
pub(crate) fn original_src() -> ListenerFilter {
    let config = OriginalSrc { mark: TRANSPARENT_MARK, ..Default::default() };
    pb::listener_filter("envoy.filters.listener.original_src", &config)
}

/// Expects a PROXY header.
pub(crate) fn proxy_protocol() -> ListenerFilter {
    pb::listener_filter("envoy.filters.listener.proxy_protocol", &ProxyProtocol::default())
}

/// Whether any chain matches by what the TLS inspector finds.
pub(crate) fn wants_tls(chains: &[Chain]) -> bool {
    chains.iter().any(|c| !c.sni.is_empty() || c.transport == TLS || c.tls.is_some())
}

/// Whether any chain matches by what the HTTP inspector finds.
pub(crate) fn wants_http(chains: &[Chain]) -> bool {
    chains.iter().any(|c| c.protocols.iter().any(|p| PLAIN_HTTP.contains(p)))
}

/// Inspectors of the inbound listener. On ports whose chains do not ask for one it is switched off: it would wait for
/// the client's first bytes, and there the server may have to speak first.
pub(crate) fn inbound(chains: &[Chain]) -> Vec<ListenerFilter> {
    let mut by_port: BTreeMap<u16, (bool, bool)> = BTreeMap::new();
    for chain in chains {
        let one = std::slice::from_ref(chain);
        let wants = by_port.entry(chain.port.unwrap_or_default()).or_default();
        wants.0 |= wants_tls(one);
        wants.1 |= wants_http(one);
    }
    let mut filters = Vec::new();
    for (filter, wants) in [(tls(), 0), (http(), 1)] {
        let asked = |w: &(bool, bool)| if wants == 0 { w.0 } else { w.1 };
        if !by_port.values().any(asked) {
            continue;
        }
        let off: Vec<u16> =
            by_port.iter().filter(|(port, w)| **port != 0 && !asked(w)).map(|(port, _)| *port).collect();
        let on: Vec<u16> = by_port.iter().filter(|(port, w)| **port != 0 && asked(w)).map(|(port, _)| *port).collect();
        let disabled = match by_port.get(&0).map(asked) {
            // Ports that no service leads to are inspected: only the named ones are left out.
            Some(true) => any_port(&off),
            _ => any_port(&on).map(not),
        };
        filters.push(ListenerFilter { filter_disabled: disabled, ..filter });
    }
    filters
}

fn any_port(ports: &[u16]) -> Option<Predicate> {
    let one = |port: &u16| Predicate {
        rule: Some(predicate::Rule::DestinationPortRange(Int32Range {
            start: i32::from(*port),
            end: i32::from(*port) + 1,
        })),
    };
    match ports {
        [] => None,
        [only] => Some(one(only)),
        several => {
            let set = predicate::MatchSet { rules: several.iter().map(one).collect() };
            Some(Predicate { rule: Some(predicate::Rule::OrMatch(set)) })
        }
    }
}

fn not(inner: Predicate) -> Predicate {
    Predicate { rule: Some(predicate::Rule::NotMatch(Box::new(inner))) }
}
