//! Addresses and address ranges.

use super::{core, listener};
use ipnet::IpNet;
use std::net::IpAddr;

/// TCP address.
pub(crate) fn socket(address: &str, port: u16) -> core::Address {
    core::Address { address: Some(core::address::Address::SocketAddress(socket_address(address, port))) }
}

/// TCP address without the wrapper.
pub(crate) fn socket_address(address: &str, port: u16) -> core::SocketAddress {
    core::SocketAddress {
        address: address.into(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.into())),
        ..Default::default()
    }
}

/// The second address of a listener that takes connections of both families: that which stands for all of the other one.
pub(crate) fn other_family(bind: &str, port: u16, dual: bool) -> Vec<listener::AdditionalAddress> {
    let other = match bind {
        "0.0.0.0" => "::",
        "::" => "0.0.0.0",
        _ => return Vec::new(),
    };
    let address = || listener::AdditionalAddress { address: Some(socket(other, port)), ..Default::default() };
    dual.then(address).into_iter().collect()
}

/// Unix domain socket.
pub(crate) fn pipe(path: &str) -> core::Address {
    core::Address { address: Some(core::address::Address::Pipe(core::Pipe { path: path.into(), mode: 0 })) }
}

/// Address range.
pub(crate) fn cidr(net: IpNet) -> core::CidrRange {
    core::CidrRange { address_prefix: net.network().to_string(), prefix_len: Some(net.prefix_len().into()) }
}

/// Reads `10.0.0.0/8` or `10.1.2.3`.
pub(crate) fn parse_net(text: &str) -> Option<IpNet> {
    match text.parse::<IpNet>() {
        Ok(net) => Some(net.trunc()),
        Err(_) => text.parse::<IpAddr>().ok().map(IpNet::from),
    }
}

/// True when the range is one address.
pub(crate) fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// `host:port`, with brackets around IPv6 addresses.
pub(crate) fn host_port(host: &str, port: u16) -> String {
    format!("{}:{port}", bracketed(host))
}

/// The host, with brackets when it is an IPv6 address.
pub(crate) fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nets() {
        for (text, want) in [("10.1.2.3", Some("10.1.2.3/32")), ("10.1.2.3/8", Some("10.0.0.0/8")), ("x", None)] {
            assert_eq!(parse_net(text).map(|n| n.to_string()).as_deref(), want, "{text}");
        }
        assert_eq!(host_port("fd00::1", 80), "[fd00::1]:80");
        assert_eq!(host_port("a.b", 80), "a.b:80");
    }
}
