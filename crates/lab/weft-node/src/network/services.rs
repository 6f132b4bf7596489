//! Cluster addresses: the nftables rules that send a connection for a service's address to one of its ready endpoints.
//! Owns the rule text; who is ready is told by the caller.

use super::SERVICE_NETWORK;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Name of the table, in family `ip`.
const TABLE: &str = "weft_services";
/// Bit of the packet mark for connections of a pod to itself through a service: they need another source address.
const HAIRPIN: u32 = 0x4000;

/// Transport protocol of a service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One port of one cluster address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// Cluster address.
    pub address: Ipv4Addr,
    /// Its transport.
    pub transport: Transport,
    /// Its port.
    pub port: u16,
    /// Ready endpoints; none means that connections are refused.
    pub endpoints: Vec<SocketAddrV4>,
}

/// The rules for `nft -f -`; they replace the earlier ones, all or nothing. Connections in progress keep their endpoint.
pub fn render(ports: &[ServicePort]) -> String {
    let mut text = format!("table ip {TABLE} {{}}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n");
    let served = ports.iter().filter(|port| !port.endpoints.is_empty()).collect::<Vec<_>>();
    for (number, port) in served.iter().enumerate() {
        endpoint_chains(&mut text, number, port);
    }
    text.push_str("  chain services {\n");
    if !served.is_empty() {
        text.push_str("    ip daddr . meta l4proto . th dport vmap {\n");
        for (number, port) in served.iter().enumerate() {
            let (address, transport) = (port.address, port.transport.as_str());
            let _ = writeln!(text, "      {address} . {transport} . {} : goto s{number},", port.port);
        }
        text.push_str("    }\n");
    }
    text.push_str("  }\n");
    // What no rule has translated must not travel on: the caller is told at once that nobody answers.
    let refuse = format!(
        "    ip daddr {SERVICE_NETWORK}/16 meta l4proto tcp reject with tcp reset\n    ip daddr {SERVICE_NETWORK}/16 reject\n"
    );
    let _ = write!(
        text,
        "  chain prerouting {{\n    type nat hook prerouting priority -100;\n    jump services\n  }}\n\
         \x20 chain output {{\n    type nat hook output priority -100;\n    jump services\n  }}\n\
         \x20 chain postrouting {{\n    type nat hook postrouting priority 100;\n    \
         meta mark & {HAIRPIN} != 0 masquerade\n  }}\n\
         \x20 chain forward {{\n    type filter hook forward priority 0;\n{refuse}  }}\n\
         \x20 chain local {{\n    type filter hook output priority 0;\n    oifname \"lo\" accept\n{refuse}  }}\n}}\n"
    );
    text
}

fn endpoint_chains(text: &mut String, number: usize, port: &ServicePort) {
    let transport = port.transport.as_str();
    for (index, endpoint) in port.endpoints.iter().enumerate() {
        let _ = writeln!(
            text,
            "  chain s{number}e{index} {{\n    ip saddr {} meta mark set meta mark | {HAIRPIN}\n    \
             meta l4proto {transport} dnat to {endpoint}\n  }}",
            endpoint.ip()
        );
    }
    let choices = (0..port.endpoints.len()).map(|index| format!("{index} : goto s{number}e{index}"));
    let choices = choices.collect::<Vec<_>>().join(", ");
    let _ = writeln!(
        text,
        "  chain s{number} {{\n    numgen random mod {} vmap {{ {choices} }}\n  }}",
        port.endpoints.len()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_endpoints_and_refusal() {
        let port = |endpoints: &[&str]| ServicePort {
            address: Ipv4Addr::new(10, 96, 3, 4),
            transport: Transport::Tcp,
            port: 9080,
            endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
        };
        let text = render(&[port(&[]), port(&["10.244.0.5:9080", "10.244.0.6:9080"])]);
        for rule in [
            "10.96.3.4 . tcp . 9080 : goto s0,",
            "numgen random mod 2 vmap { 0 : goto s0e0, 1 : goto s0e1 }",
            "ip saddr 10.244.0.6 meta mark set meta mark | 16384",
            "meta l4proto tcp dnat to 10.244.0.5:9080",
            "ip daddr 10.96.0.0/16 meta l4proto tcp reject with tcp reset",
        ] {
            assert!(text.contains(rule), "{rule} not in\n{text}");
        }
        assert!(!render(&[]).contains("vmap"));
    }
}
