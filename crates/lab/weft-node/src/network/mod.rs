//! The lab's network: one bridge, an address and a virtual cable per pod, cluster addresses, cluster DNS.
//!
//! Reading order: [`links`] (bridge, cables, addresses, routes), [`addresses`] (who has which), [`services`] (cluster
//! addresses to endpoints, in nftables), [`view`] (what the network needs of the objects), [`dns`] (names).

pub mod addresses;
pub mod dns;
pub mod links;
pub mod services;
pub mod view;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The bridge's address, the pods' gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// Network of the pods, `/16`.
pub const POD_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 0);
/// Network of the services, `/16`.
pub const SERVICE_NETWORK: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 0);
/// Network of the world outside, `/16`: addresses that are set aside for tests (RFC 2544).
pub const OUTSIDE_NETWORK: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Cluster address of the Kubernetes API.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Cluster address of the DNS server.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Port of the Kubernetes API on [`GATEWAY`].
pub const API_PORT: u16 = 6443;
/// DNS suffix of the cluster.
pub const DOMAIN: &str = weft_core::well_known::DEFAULT_DOMAIN;

/// Length of every network of IPv6.
pub const IPV6_LENGTH: u8 = 112;

/// The address of IPv6 that stands beside one of IPv4, in a lab that has both: the same last 16 bits, in the network that
/// stands beside its own. Pods have fd00:10:244::/112, services fd00:10:96::/112, the world outside 2001:db8:18::/112
/// (RFC 3849).
pub fn beside(address: Ipv4Addr) -> Ipv6Addr {
    let [first, second, ..] = address.octets();
    let last = (u32::from(address) & 0xffff) as u16;
    let of_network = |network: Ipv4Addr| network.octets()[..2] == [first, second];
    match () {
        () if of_network(SERVICE_NETWORK) => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, last),
        () if of_network(OUTSIDE_NETWORK) => Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, last),
        () => Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, last),
    }
}

/// The addresses of one that has this of IPv4.
pub fn all(address: Ipv4Addr, ipv6: bool) -> impl Iterator<Item = IpAddr> {
    [IpAddr::V4(address)].into_iter().chain(ipv6.then(|| beside(address).into()))
}

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused a link, address or route.
    #[error("cannot {step}: {cause}")]
    Netlink {
        /// The step.
        step: String,
        /// The kernel's words.
        cause: String,
    },
    /// A socket or file.
    #[error("cannot {step}: {cause}")]
    Io {
        /// The step.
        step: String,
        /// The system's words.
        #[source]
        cause: std::io::Error,
    },
    /// The rules of cluster addresses.
    #[error(transparent)]
    Rules(#[from] weft_capture::CaptureError),
    /// Every address is taken.
    #[error("no pod address is free in 10.244.0.0/16")]
    Full,
}
