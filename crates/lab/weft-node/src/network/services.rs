//! Cluster addresses: the nftables rules that send a connection for a service's address to one of its ready endpoints.
//! Owns the rule text; who is ready is told by the caller.

use super::{IPV6_LENGTH, SERVICE_NETWORK, beside};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// Name of the table, in families `ip` and `ip6`.
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
    pub address: IpAddr,
    /// Its transport.
    pub transport: Transport,
    /// Its port.
    pub port: u16,
    /// Ready endpoints of the same family; none means that connections are refused.
    pub endpoints: Vec<SocketAddr>,
}

/// The rules for `nft -f -`; they replace the earlier ones, all or nothing. Connections in progress keep their endpoint.
/// `ipv6`: of that family too.
pub fn render(ports: &[ServicePort], ipv6: bool) -> String {
    let mut text = String::new();
    let of = |six: bool| ports.iter().filter(|port| port.address.is_ipv6() == six).collect::<Vec<_>>();
    render_family(&mut text, "ip", &format!("{SERVICE_NETWORK}/16"), &of(false));
    if ipv6 {
        render_family(&mut text, "ip6", &format!("{}/{IPV6_LENGTH}", beside(SERVICE_NETWORK)), &of(true));
    }
    text
}

/// The table of one family.
fn render_family(text: &mut String, ip: &str, network: &str, ports: &[&ServicePort]) {
    let _ = write!(text, "table {ip} {TABLE} {{}}\ndelete table {ip} {TABLE}\ntable {ip} {TABLE} {{\n");
    let served = ports.iter().filter(|port| !port.endpoints.is_empty()).collect::<Vec<_>>();
    for (number, port) in served.iter().enumerate() {
        endpoint_chains(text, ip, number, port);
    }
    text.push_str("  chain services {\n");
    if !served.is_empty() {
        let _ = writeln!(text, "    {ip} daddr . meta l4proto . th dport vmap {{");
        for (number, port) in served.iter().enumerate() {
            let (address, transport) = (port.address, port.transport.as_str());
            let _ = writeln!(text, "      {address} . {transport} . {} : goto s{number},", port.port);
        }
        text.push_str("    }\n");
    }
    text.push_str("  }\n");
    // What no rule has translated must not travel on: the caller is told at once that nobody answers.
    let refuse =
        format!("    {ip} daddr {network} meta l4proto tcp reject with tcp reset\n    {ip} daddr {network} reject\n");
    let _ = write!(
        text,
        "  chain prerouting {{\n    type nat hook prerouting priority -100;\n    jump services\n  }}\n\
         \x20 chain output {{\n    type nat hook output priority -100;\n    jump services\n  }}\n\
         \x20 chain postrouting {{\n    type nat hook postrouting priority 100;\n    \
         meta mark & {HAIRPIN} != 0 masquerade\n  }}\n\
         \x20 chain forward {{\n    type filter hook forward priority 0;\n{refuse}  }}\n\
         \x20 chain local {{\n    type filter hook output priority 0;\n    oifname \"lo\" accept\n{refuse}  }}\n}}\n"
    );
}

fn endpoint_chains(text: &mut String, ip: &str, number: usize, port: &ServicePort) {
    let transport = port.transport.as_str();
    for (index, endpoint) in port.endpoints.iter().enumerate() {
        let _ = writeln!(
            text,
            "  chain s{number}e{index} {{\n    {ip} saddr {} meta mark set meta mark | {HAIRPIN}\n    \
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
        let port = |address: &str, endpoints: &[&str]| ServicePort {
            address: address.parse().unwrap(),
            transport: Transport::Tcp,
            port: 9080,
            endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
        };
        let four = [port("10.96.3.4", &[]), port("10.96.3.4", &["10.244.0.5:9080", "10.244.0.6:9080"])];
        let text = render(&four, false);
        assert!(!text.contains("ip6"), "a machine may be without it");
        for rule in [
            "10.96.3.4 . tcp . 9080 : goto s0,",
            "numgen random mod 2 vmap { 0 : goto s0e0, 1 : goto s0e1 }",
            "ip saddr 10.244.0.6 meta mark set meta mark | 16384",
            "meta l4proto tcp dnat to 10.244.0.5:9080",
            "ip daddr 10.96.0.0/16 meta l4proto tcp reject with tcp reset",
        ] {
            assert!(text.contains(rule), "{rule} not in\n{text}");
        }
        assert!(!render(&[], true).contains("vmap"));
        let both = [&four[1..], &[port("fd00:10:96::304", &["[fd00:10:244::5]:9080"])]].concat();
        let text = render(&both, true);
        let (four, six) = text.split_once("table ip6").unwrap();
        assert!(four.contains("10.96.3.4 . tcp") && !four.contains("fd00:"), "{four}");
        for rule in [
            "ip6 daddr . meta l4proto . th dport vmap {\n      fd00:10:96::304 . tcp . 9080 : goto s0,",
            "ip6 saddr fd00:10:244::5 meta mark",
            "meta l4proto tcp dnat to [fd00:10:244::5]:9080",
            "ip6 daddr fd00:10:96::/112 meta l4proto tcp reject with tcp reset",
        ] {
            assert!(six.contains(rule) && !six.contains("10.96."), "{rule} not in\n{six}");
        }
    }
}
