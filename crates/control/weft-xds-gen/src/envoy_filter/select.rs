//! What a patch matches: the proxy, listeners and chains, route configurations, clusters.

use super::patch::text;
use crate::proxy::ProxyView;
use serde_json::Value;
use std::collections::BTreeMap;
use weft_core::names::ClusterName;
use weft_k8s_api::istio::{EnvoyConfigObjectPatch, FilterChainMatch, ListenerMatch, PatchContext};
use weft_model::MeshSnapshot;

/// Version of Istio's API that the generated configuration answers to: patches say which versions they are written for.
const ISTIO_VERSION: &str = "1.30.0";

/// The direction of a listener or cluster, as patches name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Inbound,
    Outbound,
    Gateway,
}

/// What of a proxy matters to matches.
#[derive(Debug)]
pub(super) struct Facts {
    gateway: bool,
    /// Weft's own proxy, not Envoy.
    pub weft: bool,
    metadata: BTreeMap<String, String>,
    /// Ports of services by the port of the proxy that they lead to.
    service_ports: BTreeMap<u16, Vec<u16>>,
}

impl Facts {
    pub fn of(snapshot: &MeshSnapshot, proxy: &ProxyView) -> Self {
        let mut service_ports: BTreeMap<u16, Vec<u16>> = BTreeMap::new();
        let instances = proxy.workload.as_ref().map(|w| snapshot.service_instances(w)).unwrap_or_default();
        for instance in instances {
            service_ports.entry(instance.target_port).or_default().push(instance.port.number);
        }
        let known = [("CLUSTER_ID", &proxy.metadata.cluster_id), ("NAMESPACE", &proxy.metadata.namespace)];
        let metadata = known.into_iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        Self { gateway: proxy.is_gateway(), weft: proxy.is_weft, metadata, service_ports }
    }

    /// Whether the patch may be for this proxy at all.
    pub fn concerns(&self, patch: &EnvoyConfigObjectPatch) -> bool {
        let Some(matches) = &patch.matches else { return true };
        let context = match matches.context {
            PatchContext::Any => true,
            PatchContext::Gateway => self.gateway,
            PatchContext::SidecarInbound | PatchContext::SidecarOutbound => !self.gateway,
            PatchContext::Waypoint => false,
        };
        let proxy = matches.proxy.as_ref().is_none_or(|proxy| {
            version_matches(&proxy.proxy_version)
                && proxy.metadata.iter().all(|(name, value)| self.metadata.get(name).is_some_and(|own| own == value))
        });
        context && proxy
    }

    fn side(&self, inbound: bool) -> Side {
        match (self.gateway, inbound) {
            (true, _) => Side::Gateway,
            (false, true) => Side::Inbound,
            (false, false) => Side::Outbound,
        }
    }

    fn context(&self, patch: &EnvoyConfigObjectPatch, side: Side) -> bool {
        match patch.matches.as_ref().map(|m| m.context).unwrap_or_default() {
            PatchContext::Any => true,
            PatchContext::SidecarInbound => side == Side::Inbound,
            PatchContext::SidecarOutbound => side == Side::Outbound,
            PatchContext::Gateway => side == Side::Gateway,
            PatchContext::Waypoint => false,
        }
    }

    /// Whether the patch is for the cluster of that name.
    pub fn cluster(&self, patch: &EnvoyConfigObjectPatch, name: &str) -> bool {
        let inbound = name.starts_with("inbound|") || name.starts_with("Inbound");
        if !self.context(patch, self.side(inbound)) {
            return false;
        }
        let Some(wanted) = patch.matches.as_ref().and_then(|m| m.cluster.as_ref()) else { return true };
        if !wanted.name.is_empty() {
            return wanted.name == name;
        }
        let parts = ClusterName::parse(name);
        let parts = parts.as_ref();
        (wanted.subset.is_empty() || parts.is_some_and(|p| p.subset == wanted.subset))
            && (wanted.service.is_empty() || parts.is_some_and(|p| p.host == wanted.service))
            && (wanted.port_number == 0 || parts.is_some_and(|p| u32::from(p.port) == wanted.port_number))
    }

    /// Whether the patch is for the listener. The port of the inbound listener is that of its chains.
    pub fn listener(&self, patch: &EnvoyConfigObjectPatch, listener: &Value) -> bool {
        let side = self.side_of(listener);
        if !self.context(patch, side) {
            return false;
        }
        let Some(wanted) = listener_match(patch) else { return true };
        let name = wanted.name.is_empty() || text(listener, "name") == wanted.name;
        name && (side == Side::Inbound || self.port(wanted.port_number, port_of(listener)))
    }

    fn side_of(&self, listener: &Value) -> Side {
        self.side(text(listener, "traffic_direction") == "INBOUND")
    }

    /// A port is meant by its own number, and by that of a service that leads to it.
    fn port(&self, wanted: u32, own: u16) -> bool {
        wanted == 0
            || wanted == u32::from(own)
            || self.service_ports.get(&own).is_some_and(|ports| ports.iter().any(|p| u32::from(*p) == wanted))
    }

    /// Whether the patch is for a chain of a listener that it is for.
    pub fn chain(&self, patch: &EnvoyConfigObjectPatch, listener: &Value, chain: &Value) -> bool {
        let Some(wanted) = listener_match(patch) else { return true };
        let none = Value::Null;
        let matched = chain.get("filter_chain_match").unwrap_or(&none);
        let destination = matched.get("destination_port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok());
        if self.side_of(listener) == Side::Inbound
            && wanted.port_number != 0
            && !destination.is_some_and(|port| self.port(wanted.port_number, port))
        {
            return false;
        }
        let Some(of_chain) = &wanted.filter_chain else { return true };
        let has = |field: &str, value: &str| {
            let list = matched.get(field).and_then(Value::as_array);
            list.is_some_and(|list| list.iter().any(|v| v == value))
        };
        let FilterChainMatch { name, sni, transport_protocol, application_protocols, destination_port, .. } = of_chain;
        (name.is_empty() || text(chain, "name") == name)
            && (sni.is_empty() || has("server_names", sni))
            && (transport_protocol.is_empty() || text(matched, "transport_protocol") == transport_protocol)
            && application_protocols
                .split(',')
                .filter(|p| !p.is_empty())
                .all(|p| has("application_protocols", p.trim()))
            && (*destination_port == 0 || destination.is_some_and(|port| u32::from(port) == *destination_port))
    }

    /// Whether the patch is for a route configuration: `inline` are those of the inbound listener.
    pub fn route(&self, patch: &EnvoyConfigObjectPatch, name: &str, inline: bool) -> bool {
        if !self.context(patch, self.side(inline || name.starts_with("inbound|"))) {
            return false;
        }
        let Some(wanted) = patch.matches.as_ref().and_then(|m| m.route_configuration.as_ref()) else { return true };
        let parts: Vec<&str> = name.split('.').collect();
        let gateway = || match parts.as_slice() {
            // https.<port>.<port name>.<gateway>.<namespace>
            ["https", _, .., gateway, namespace] => Some(format!("{namespace}/{gateway}")),
            _ => None,
        };
        (wanted.name.is_empty() || wanted.name == name)
            && (wanted.port_number == 0 || route_port(name).is_some_and(|p| self.port(wanted.port_number, p)))
            && (wanted.port_name.is_empty() || parts.contains(&wanted.port_name.as_str()))
            && (wanted.gateway.is_empty() || gateway().is_none_or(|own| own == wanted.gateway))
    }
}

/// The port that the name of a route configuration holds: `80`, `http.8080`, `https.443.…`, `inbound|80||`, `host:80`.
fn route_port(name: &str) -> Option<u16> {
    if let Some(rest) = name.strip_prefix("inbound|") {
        return rest.split('|').next()?.parse().ok();
    }
    if let Some(rest) = name.strip_prefix("http.").or_else(|| name.strip_prefix("https.")) {
        return rest.split('.').next()?.parse().ok();
    }
    name.rsplit(':').next()?.parse().ok()
}

fn port_of(listener: &Value) -> u16 {
    let port = listener.pointer("/address/socket_address/port_value").and_then(Value::as_u64);
    port.and_then(|p| u16::try_from(p).ok()).unwrap_or_default()
}

pub(super) fn listener_match(patch: &EnvoyConfigObjectPatch) -> Option<&ListenerMatch> {
    patch.matches.as_ref().and_then(|m| m.listener.as_ref())
}

/// Patterns are such as `^1\.11.*` or `1.2[0-9]`. No expression engine is at hand here, and a version is a few digits: the
/// pattern is read as literal text with `.`, `\.`, `.*`, `\d`, classes of digits and `+`; what is more than that matches.
fn version_matches(pattern: &str) -> bool {
    let pattern = pattern.trim_start_matches('^').trim_end_matches('$');
    pattern.is_empty() || simple_match(pattern.as_bytes(), ISTIO_VERSION.as_bytes()).unwrap_or(true)
}

/// Whether the pattern matches the beginning of the text; `None` when it has what is not read here.
fn simple_match(pattern: &[u8], text: &[u8]) -> Option<bool> {
    let Some(first) = pattern.first() else { return Some(true) };
    type Test = fn(u8, u8) -> bool;
    let (test, literal, length): (Test, u8, usize) = match (first, pattern.get(1)) {
        (b'\\', Some(b'd')) => (|b, _| b.is_ascii_digit(), 0, 2),
        (b'\\', Some(c)) if c.is_ascii_punctuation() => (|b, c| b == c, *c, 2),
        (b'[', _) => {
            let end = pattern.iter().position(|b| *b == b']')?;
            if &pattern[..=end] != b"[0-9]" {
                return None;
            }
            (|b, _| b.is_ascii_digit(), 0, end + 1)
        }
        (b'.', _) => (|_, _| true, 0, 1),
        (b'(' | b')' | b'{' | b'}' | b'|' | b'?' | b'*' | b'+' | b'\\', _) => return None,
        (c, _) => (|b, c| b == c, *c, 1),
    };
    let (repeat, least) = match pattern.get(length) {
        Some(b'*') => (true, 0),
        Some(b'+') => (true, 1),
        _ => (false, 1),
    };
    let rest = &pattern[length + usize::from(repeat)..];
    let run = text.iter().take_while(|b| test(**b, literal)).count();
    let most = if repeat { run } else { run.min(1) };
    let mut matched = false;
    for taken in least..=most {
        matched |= simple_match(rest, &text[taken..])?;
    }
    Some(matched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (pattern, want) in [
            ("", true),
            ("^1\\.30.*", true),
            ("1.30", true),
            ("^1\\.11.*", false),
            ("^1\\.[0-9]+.*", true),
            ("^1\\.2[0-9].*", false),
            ("1\\.\\d+\\.0$", true),
            ("^(1\\.29|1\\.30)", true),
        ] {
            assert_eq!(version_matches(pattern), want, "{pattern}");
        }
    }

    #[test]
    fn ports_of_routes() {
        for (name, want) in [
            ("80", Some(80)),
            ("http.8080", Some(8080)),
            ("https.443.a.b.c", Some(443)),
            ("inbound|9080||", Some(9080)),
            ("a.b:81", Some(81)),
            ("x", None),
        ] {
            assert_eq!(route_port(name), want, "{name}");
        }
    }
}
