//! The rule text. Order and exemptions follow Istio's redirection rules; one table holds all of it, so that removing the
//! table removes everything.

use crate::config::{CaptureConfig, InboundMode, OutboundRanges, Ports, ProxyOwner, TUNNEL_PORT};
use ipnet::IpNet;
use std::fmt::Write as _;
use std::net::IpAddr;
use weft_core::well_known::port;

/// Name of the table, in family `inet`.
pub const TABLE: &str = "weft_capture";

/// Ports of the proxy that are reached directly: its probes and metrics.
pub(crate) const PROXY_PORTS: [u16; 4] = [TUNNEL_PORT, port::MERGED_METRICS, port::READINESS, port::PROXY_METRICS];

/// Address from which the proxy calls its own application (Istio's inbound passthrough source).
const INBOUND_SOURCE: [&str; 2] = ["ip saddr 127.0.0.6", "ip6 saddr ::6"];

/// That of IPv6, as `ip` takes it.
pub(crate) const INBOUND_SOURCE_V6: &str = "::6/128";

/// The rules for `nft -f -`: replaces an earlier set, all or nothing.
pub fn render(config: &CaptureConfig) -> String {
    let mut text = render_removal();
    let mut line = |depth: usize, rule: &str| {
        let _ = writeln!(text, "{:indent$}{rule}", "", indent = depth * 2);
    };
    line(0, &format!("table inet {TABLE} {{"));
    // Hook priorities are numbers: nft 1.0.6 refuses the name `dstnat` in an output chain.
    if let InboundMode::Tproxy { mark, .. } = config.inbound_mode {
        line(1, "chain tproxy_prerouting {");
        line(2, "type filter hook prerouting priority -150; policy accept;");
        transparent(config, mark).iter().for_each(|rule| line(2, rule));
        line(1, "}");
        // Answers of the application to a client's address go back to the proxy, which called from it.
        line(1, "chain tproxy_output {");
        line(2, "type route hook output priority -150; policy accept;");
        line(2, &format!("meta l4proto tcp ct direction reply ct mark {mark} meta mark set {mark}"));
        line(1, "}");
    }
    line(1, "chain prerouting {");
    line(2, "type nat hook prerouting priority -100; policy accept;");
    interfaces(config, "iifname").iter().for_each(|rule| line(2, rule));
    virtual_machines(config).iter().for_each(|rule| line(2, rule));
    if config.inbound_mode == InboundMode::Redirect {
        line(2, "meta l4proto tcp jump inbound");
    }
    line(1, "}");
    line(1, "chain inbound {");
    inbound(config).iter().for_each(|rule| line(2, rule));
    line(1, "}");
    line(1, "chain output {");
    line(2, "type nat hook output priority -100; policy accept;");
    interfaces(config, "oifname").iter().for_each(|rule| line(2, rule));
    dns(config).iter().for_each(|rule| line(2, rule));
    line(2, "meta l4proto tcp jump outbound");
    line(1, "}");
    line(1, "chain from_proxy {");
    from_proxy(config).iter().for_each(|rule| line(2, rule));
    line(1, "}");
    line(1, "chain outbound {");
    outbound(config).iter().for_each(|rule| line(2, rule));
    line(1, "}");
    line(0, "}");
    text
}

/// Text that removes the rules, and does nothing where there are none.
pub fn render_removal() -> String {
    format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\n")
}

/// Interfaces that are left alone.
fn interfaces(config: &CaptureConfig, direction: &str) -> Vec<String> {
    names(&config.exclude_interfaces).map(|names| format!("{direction} {names} return")).into_iter().collect()
}

/// Hands what comes in to the proxy's transparent socket, its addresses as they are. Packets on loopback with the mark are the
/// proxy's own calls from a client's address, and the answers to them.
fn transparent(config: &CaptureConfig, mark: u32) -> Vec<String> {
    let hand_over = |port: u16| format!("meta l4proto tcp tproxy to :{port} meta mark set {mark} accept");
    let mut rules = vec![format!("iifname \"lo\" meta mark {mark} ct direction original ct mark set {mark} return")];
    rules.extend(interfaces(config, "iifname"));
    rules.extend(names(&config.virtual_interfaces).map(|names| format!("iifname {names} return")));
    // A connection that the proxy has already: to the socket that has it.
    rules.push(format!("meta l4proto tcp socket transparent 1 meta mark set {mark} accept"));
    rules.push("iifname \"lo\" return".into());
    let spared = PROXY_PORTS.iter().chain(&config.exclude_inbound_ports).copied().collect::<Vec<_>>();
    // Answers to what the pod has sent are no connections to it.
    rules.push("ct direction reply return".into());
    match &config.inbound {
        Ports::All => {
            rules.push(format!("tcp dport {} return", set(&spared)));
            rules.push(hand_over(config.inbound_port));
        }
        Ports::Only(ports) => {
            let ports = ports.iter().filter(|p| !spared.contains(p)).copied().collect::<Vec<_>>();
            if !ports.is_empty() {
                rules.push(format!("tcp dport {} {}", set(&ports), hand_over(config.inbound_port)));
            }
        }
    }
    rules
}

/// A virtual machine sends by an interface of the pod: that is outbound, and nothing else of it is redirected.
fn virtual_machines(config: &CaptureConfig) -> Vec<String> {
    let Some(names) = names(&config.virtual_interfaces) else { return vec![] };
    let redirect = redirect_to(config.outbound_port);
    let mut rules = match &config.outbound {
        OutboundRanges::All => vec![format!("iifname {names} {redirect}")],
        OutboundRanges::Only(ranges) => {
            by_range(ranges, &redirect).iter().map(|rule| format!("iifname {names} {rule}")).collect()
        }
    };
    rules.push(format!("iifname {names} return"));
    rules
}

/// A set of interface names; they are checked where they are read.
fn names(interfaces: &[String]) -> Option<String> {
    let quoted: Vec<String> = interfaces.iter().map(|name| format!("{name:?}")).collect();
    (!quoted.is_empty()).then(|| format!("{{ {} }}", quoted.join(", ")))
}

fn inbound(config: &CaptureConfig) -> Vec<String> {
    let redirect = redirect_to(config.inbound_port);
    let spared = PROXY_PORTS.iter().chain(&config.exclude_inbound_ports).copied().collect::<Vec<_>>();
    match &config.inbound {
        Ports::All => vec![format!("tcp dport {} return", set(&spared)), redirect],
        // A list is taken literally, except that the proxy's own ports stay reachable.
        Ports::Only(ports) => {
            let ports = ports.iter().filter(|p| !spared.contains(p)).copied().collect::<Vec<_>>();
            if ports.is_empty() { vec![] } else { vec![format!("tcp dport {} {redirect}", set(&ports))] }
        }
    }
}

/// Queries of the application go to the proxy's DNS server; those the proxy itself forwards pass.
fn dns(config: &CaptureConfig) -> Vec<String> {
    let Some(dns) = &config.dns else { return vec![] };
    let mut rules = Vec::new();
    for owner in owner_matches(&config.owner) {
        rules.push(format!("meta l4proto {{ tcp, udp }} th dport 53 {owner} return"));
    }
    let (v4, v6) = split_hosts(&dns.servers);
    let all = dns.servers.is_empty();
    for (servers, family) in [(v4, "ip"), (v6, "ip6")] {
        if !all && servers.is_empty() {
            continue;
        }
        let to = if all { String::new() } else { format!("{family} daddr {{ {} }} ", servers.join(", ")) };
        for protocol in ["udp", "tcp"] {
            rules.push(format!("{to}{protocol} dport 53 redirect to :{}", dns.port));
        }
        if all {
            break;
        }
    }
    rules
}

/// The proxy's own connections pass, except one to this very pod by its address: that one is received as if it came from
/// another pod, so the application's inbound policies hold for its own calls through a service too.
fn from_proxy(config: &CaptureConfig) -> Vec<String> {
    ["ip daddr != 127.0.0.1", "ip6 daddr != ::1"]
        .iter()
        .map(|not_loopback| {
            let port = config.inbound_port;
            format!("oifname \"lo\" {not_loopback} tcp dport != {TUNNEL_PORT} redirect to :{port}")
        })
        .collect()
}

/// What a transparent proxy sends from a client's address is for the application, and goes there.
fn from_clients(config: &CaptureConfig) -> Option<String> {
    match (config.inbound_mode, &config.owner) {
        (InboundMode::Redirect, _) => None,
        // All of the proxy's sockets have that mark: the address tells.
        (InboundMode::Tproxy { mark, .. }, ProxyOwner::Mark(own)) if mark == *own => {
            Some(format!("oifname \"lo\" meta mark {mark} fib saddr type != local return"))
        }
        (InboundMode::Tproxy { mark, .. }, _) => Some(format!("oifname \"lo\" meta mark {mark} return")),
    }
}

fn outbound(config: &CaptureConfig) -> Vec<String> {
    let redirect = redirect_to(config.outbound_port);
    let mut rules = Vec::new();
    if !config.exclude_outbound_ports.is_empty() {
        rules.push(format!("tcp dport {} return", set(&config.exclude_outbound_ports)));
    }
    rules.extend(INBOUND_SOURCE.iter().map(|source| format!("oifname \"lo\" {source} return")));
    rules.extend(from_clients(config));
    rules.extend(owner_matches(&config.owner).iter().map(|owner| format!("{owner} goto from_proxy")));
    rules.push("oifname \"lo\" return".into());
    rules.push("ip daddr 127.0.0.1 return".into());
    rules.push("ip6 daddr ::1 return".into());
    rules.extend(by_range(&config.exclude_outbound, "return"));
    if !config.include_outbound_ports.is_empty() {
        rules.push(format!("tcp dport {} {redirect}", set(&config.include_outbound_ports)));
    }
    match &config.outbound {
        OutboundRanges::All => rules.push(redirect),
        OutboundRanges::Only(ranges) => rules.extend(by_range(ranges, &redirect)),
    }
    rules
}

/// The protocol is repeated in every rule: nft maps ports only where the rule itself names the transport.
fn redirect_to(port: u16) -> String {
    format!("meta l4proto tcp redirect to :{port}")
}

fn owner_matches(owner: &ProxyOwner) -> Vec<String> {
    let ids = |key: &str, ids: &[u32]| (!ids.is_empty()).then(|| format!("meta {key} {}", set(ids)));
    match owner {
        ProxyOwner::Ids { uids, gids } => ids("skuid", uids).into_iter().chain(ids("skgid", gids)).collect(),
        ProxyOwner::Mark(mark) => vec![format!("meta mark {mark}")],
    }
}

fn by_range(ranges: &[IpNet], verdict: &str) -> Vec<String> {
    // Aggregated, because a set with overlapping ranges is refused by nft.
    IpNet::aggregate(&ranges.to_vec())
        .iter()
        .map(|range| {
            let family = if range.addr().is_ipv4() { "ip" } else { "ip6" };
            format!("{family} daddr {range} {verdict}")
        })
        .collect()
}

fn split_hosts(hosts: &[IpAddr]) -> (Vec<String>, Vec<String>) {
    let of = |v4: bool| hosts.iter().filter(|h| h.is_ipv4() == v4).map(ToString::to_string).collect();
    (of(true), of(false))
}

fn set<T: Ord + Copy + ToString>(items: &[T]) -> String {
    let mut items = items.to_vec();
    items.sort_unstable();
    items.dedup();
    format!("{{ {} }}", items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DnsCapture;

    #[test]
    fn default_rules_in_order() {
        let text = render(&CaptureConfig::default());
        let order = [
            "delete table inet weft_capture",
            "tcp dport { 15008, 15020, 15021, 15090 } return",
            "redirect to :15006",
            "oifname \"lo\" ip daddr != 127.0.0.1 tcp dport != 15008 redirect to :15006",
            "oifname \"lo\" ip saddr 127.0.0.6 return",
            "meta skuid { 1337 } goto from_proxy",
            "meta skgid { 1337 } goto from_proxy",
            "oifname \"lo\" return",
            "ip daddr 127.0.0.1 return",
            "redirect to :15001",
        ];
        let mut rest = text.as_str();
        for rule in order {
            let at = rest.find(rule).unwrap_or_else(|| panic!("{rule} missing or out of order in\n{text}"));
            rest = &rest[at + rule.len()..];
        }
        assert!(!text.contains("dport 53"));
    }

    #[test]
    fn transparent_rules() {
        let config = CaptureConfig {
            inbound_mode: InboundMode::TPROXY,
            inbound: Ports::Only(vec![9080]),
            exclude_interfaces: vec!["eth1".into()],
            ..CaptureConfig::default()
        };
        let text = render(&config);
        for rule in [
            "type filter hook prerouting priority -150",
            "iifname \"lo\" meta mark 1337 ct direction original ct mark set 1337 return",
            "iifname { \"eth1\" } return",
            "tcp dport { 9080 } meta l4proto tcp tproxy to :15006 meta mark set 1337 accept",
            "oifname \"lo\" meta mark 1337 return",
            "type route hook output priority -150",
            "ct direction reply ct mark 1337 meta mark set 1337",
        ] {
            assert!(text.contains(rule), "{rule} not in\n{text}");
        }
        assert!(!text.contains("jump inbound"), "{text}");
    }

    #[test]
    fn scope_and_mark() {
        let config = CaptureConfig {
            owner: ProxyOwner::Mark(1337),
            outbound: OutboundRanges::Only(["10.0.0.0/8", "10.1.0.0/16"].map(|r| r.parse().unwrap()).to_vec()),
            exclude_outbound: vec!["10.9.0.0/16".parse().unwrap()],
            include_outbound_ports: vec![443],
            inbound: Ports::Only(vec![9080, 15021]),
            dns: Some(DnsCapture { servers: vec!["10.96.0.10".parse().unwrap()], ..DnsCapture::default() }),
            ..CaptureConfig::default()
        };
        let text = render(&config);
        for rule in [
            "meta mark 1337 goto from_proxy",
            "ip daddr 10.9.0.0/16 return",
            "tcp dport { 443 } meta l4proto tcp redirect to :15001",
            "ip daddr 10.0.0.0/8 meta l4proto tcp redirect to :15001",
            "    tcp dport { 9080 } meta l4proto tcp redirect to :15006",
            "ip daddr { 10.96.0.10 } udp dport 53 redirect to :15053",
            "meta l4proto { tcp, udp } th dport 53 meta mark 1337 return",
        ] {
            assert!(text.contains(rule), "{rule} not in\n{text}");
        }
        assert!(!text.contains("10.1.0.0") && !text.contains("\n    meta l4proto tcp redirect to :15001"), "{text}");
    }
}
