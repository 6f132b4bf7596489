//! Reads the `traffic.sidecar.istio.io/*` annotations of a pod into a [`CaptureConfig`].

use crate::config::{CaptureConfig, OutboundRanges, Ports};
use ipnet::IpNet;
use std::net::IpAddr;
use weft_core::well_known::annotation;

/// Interfaces that are left alone.
const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
/// Interfaces of virtual machines: the newer name, and the one before.
const VIRTUAL_INTERFACES: (&str, &str) =
    ("istio.io/reroute-virtual-interfaces", "traffic.sidecar.istio.io/kubevirtInterfaces");

impl CaptureConfig {
    /// Applies a pod's annotations; `get` looks one up by name. What is not annotated stays as it is.
    ///
    /// # Errors
    /// A sentence that names the annotation, the wrong part, and what would be right.
    pub fn annotated<'a>(mut self, get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, String> {
        let ports = |name: &str| get(name).map(|text| port_list(name, text)).transpose();
        let ranges = |name: &str| get(name).map(|text| range_list(name, text)).transpose();
        if let Some(included) = ranges(annotation::INCLUDE_OUTBOUND_RANGES)? {
            self.outbound = included.map_or(OutboundRanges::All, OutboundRanges::Only);
        }
        if let Some(excluded) = ranges(annotation::EXCLUDE_OUTBOUND_RANGES)? {
            self.exclude_outbound = no_star(annotation::EXCLUDE_OUTBOUND_RANGES, excluded)?;
        }
        if let Some(included) = ports(annotation::INCLUDE_OUTBOUND_PORTS)? {
            self.include_outbound_ports = no_star(annotation::INCLUDE_OUTBOUND_PORTS, included)?;
        }
        if let Some(excluded) = ports(annotation::EXCLUDE_OUTBOUND_PORTS)? {
            self.exclude_outbound_ports = no_star(annotation::EXCLUDE_OUTBOUND_PORTS, excluded)?;
        }
        if let Some(included) = ports(annotation::INCLUDE_INBOUND_PORTS)? {
            self.inbound = included.map_or(Ports::All, Ports::Only);
        }
        if let Some(excluded) = ports(annotation::EXCLUDE_INBOUND_PORTS)? {
            self.exclude_inbound_ports = no_star(annotation::EXCLUDE_INBOUND_PORTS, excluded)?;
        }
        let interfaces = |name: &str| get(name).map(|text| interface_list(name, text)).transpose();
        if let Some(excluded) = interfaces(EXCLUDE_INTERFACES)? {
            self.exclude_interfaces = excluded;
        }
        if let Some(rerouted) = interfaces(VIRTUAL_INTERFACES.0)?.or(interfaces(VIRTUAL_INTERFACES.1)?) {
            self.virtual_interfaces = rerouted;
        }
        Ok(self)
    }
}

/// A list, or `None` for `*`.
pub(crate) type Listed<T> = Option<Vec<T>>;

pub(crate) fn no_star<T>(name: &str, listed: Listed<T>) -> Result<Vec<T>, String> {
    listed.ok_or_else(|| format!("{name}: \"*\" is not allowed here; list what is meant, comma-separated"))
}

pub(crate) fn port_list(name: &str, text: &str) -> Result<Listed<u16>, String> {
    list(text, |part| match part.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{name}: {part:?} is not a port; write numbers from 1 to 65535, comma-separated")),
    })
}

pub(crate) fn range_list(name: &str, text: &str) -> Result<Listed<IpNet>, String> {
    list(text, |part| {
        part.parse::<IpNet>().or_else(|_| part.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
            format!("{name}: {part:?} is not an IP range; write ranges such as 10.0.0.0/8, comma-separated")
        })
    })
}

/// Names of interfaces (Linux: at most 15 bytes; here letters, digits and `.-_@:`, which are safe in rules).
pub(crate) fn interface_list(name: &str, text: &str) -> Result<Vec<String>, String> {
    let fine =
        |part: &str| part.len() <= 15 && part.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_@:".contains(&b));
    let listed = list(text, |part| match fine(part) {
        true => Ok(part.to_string()),
        false => Err(format!("{name}: {part:?} is not the name of a network interface; write names, comma-separated")),
    })?;
    no_star(name, listed)
}

fn list<T>(text: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Listed<T>, String> {
    if text.trim() == "*" {
        return Ok(None);
    }
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(read).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(pairs: &[(&str, &'static str)]) -> Result<CaptureConfig, String> {
        let find = |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        CaptureConfig::default().annotated(find)
    }

    #[test]
    fn reads_lists_and_stars() {
        let config = annotated(&[
            (annotation::INCLUDE_OUTBOUND_RANGES, "10.0.0.0/8, 192.168.7.1"),
            (annotation::EXCLUDE_OUTBOUND_PORTS, "3306,"),
            (annotation::INCLUDE_INBOUND_PORTS, ""),
        ])
        .unwrap();
        let expected = ["10.0.0.0/8", "192.168.7.1/32"].map(|r| r.parse().unwrap()).to_vec();
        assert_eq!(config.outbound, OutboundRanges::Only(expected));
        assert_eq!(config.exclude_outbound_ports, [3306]);
        assert_eq!(config.inbound, Ports::Only(vec![]));
        assert_eq!(annotated(&[(annotation::INCLUDE_INBOUND_PORTS, "*")]).unwrap().inbound, Ports::All);
    }

    #[test]
    fn refuses_by_name() {
        let config = annotated(&[("traffic.sidecar.istio.io/excludeInterfaces", "eth1,net0")]).unwrap();
        assert_eq!(config.exclude_interfaces, ["eth1", "net0"]);
        for (name, bad) in [
            ("traffic.sidecar.istio.io/excludeInterfaces", "a b"),
            (annotation::EXCLUDE_INBOUND_PORTS, "bad"),
            (annotation::EXCLUDE_INBOUND_PORTS, "0"),
            (annotation::EXCLUDE_INBOUND_PORTS, "*"),
            (annotation::INCLUDE_OUTBOUND_RANGES, "10.0.0.0/33"),
        ] {
            let message = annotated(&[(name, bad)]).unwrap_err();
            assert!(message.contains(name), "{message}");
        }
    }
}
