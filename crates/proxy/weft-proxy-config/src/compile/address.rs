//! Addresses.

use super::Ctx;
use crate::EndpointAddress;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use weft_proto::envoy::config::core::v3 as core;
use weft_route::error::Path;

impl Ctx<'_> {
    /// An address to connect to: IP, name or Unix socket.
    pub(crate) fn endpoint_address(
        &mut self,
        message: Option<&core::Address>,
        path: &Path<'_>,
    ) -> Option<EndpointAddress> {
        match message.and_then(|m| m.address.as_ref()) {
            Some(core::address::Address::SocketAddress(socket)) => {
                let path = path.field("socket_address");
                let port = self.port(socket, &path)?;
                Some(match socket.address.parse::<IpAddr>() {
                    Ok(ip) => EndpointAddress::Ip(SocketAddr::new(ip, port)),
                    Err(_) => EndpointAddress::Name(self.c.pool.text(&socket.address), port),
                })
            }
            Some(core::address::Address::Pipe(pipe)) => Some(EndpointAddress::Unix(self.c.pool.text(&pipe.path))),
            Some(core::address::Address::EnvoyInternalAddress(_)) => {
                self.c.errors.refuse(path, "internal addresses are not supported by weft-proxy");
                None
            }
            None => {
                self.c.errors.refuse(path, "must be set: socket_address or pipe");
                None
            }
        }
    }

    /// An IP address and port.
    pub(crate) fn socket_address(&mut self, socket: &core::SocketAddress, path: &Path<'_>) -> Option<SocketAddr> {
        let port = self.port(socket, path)?;
        match socket.address.parse::<IpAddr>() {
            Ok(ip) => Some(SocketAddr::new(ip, port)),
            Err(_) => {
                self.c.errors.refuse(&path.field("address"), format!("{:?} is not an IP address", socket.address));
                None
            }
        }
    }

    fn port(&mut self, socket: &core::SocketAddress, path: &Path<'_>) -> Option<u16> {
        if socket.protocol != core::socket_address::Protocol::Tcp as i32 {
            self.c.errors.refuse(&path.field("protocol"), "only TCP is supported");
            return None;
        }
        match &socket.port_specifier {
            Some(core::socket_address::PortSpecifier::PortValue(port)) => match u16::try_from(*port) {
                Ok(port) => Some(port),
                Err(_) => {
                    self.c.errors.refuse(&path.field("port_value"), format!("{port} is not a port; at most 65535"));
                    None
                }
            },
            Some(core::socket_address::PortSpecifier::NamedPort(_)) => {
                self.c.errors.refuse(&path.field("named_port"), "is not supported; write port_value");
                None
            }
            None => Some(0),
        }
    }

    /// An address range.
    pub(crate) fn range(&mut self, message: &core::CidrRange, path: &Path<'_>) -> Option<IpNet> {
        let address = message.address_prefix.parse::<IpAddr>().ok();
        let whole = |ip: IpAddr| if ip.is_ipv4() { 32 } else { 128 };
        let net = address.and_then(|ip| {
            let length = message.prefix_len.map_or(Some(0), |n| u8::try_from(n).ok()).filter(|n| *n <= whole(ip))?;
            IpNet::new(ip, length).ok()
        });
        if net.is_none() {
            let text = format!("{}/{}", message.address_prefix, message.prefix_len.unwrap_or(0));
            self.c.errors.refuse(path, format!("{text} is not an address range; an example is 10.0.0.0/8"));
        }
        net.map(|net| net.trunc())
    }
}
