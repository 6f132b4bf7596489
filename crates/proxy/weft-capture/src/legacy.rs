//! The rules for iptables, where nft is missing: the same exemptions in the same order as in [`crate::rules`], in chains named
//! as Istio names them, so that what is written about those holds.

use crate::config::{CaptureConfig, InboundMode, OutboundRanges, Ports, ProxyOwner, TUNNEL_PORT};
use crate::rules::PROXY_PORTS;
use std::fmt::Write as _;
use std::net::IpAddr;

const CHAINS: [&str; 4] = ["ISTIO_INBOUND", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", OUTPUT];
/// The chain of what the pod sends: where it is, the rules are.
pub(crate) const OUTPUT: &str = "ISTIO_OUTPUT";
/// Chains of table `mangle`, for `TPROXY`.
const MANGLE: [&str; 4] = ["ISTIO_DIVERT", "ISTIO_TPROXY", "ISTIO_INBOUND", "ISTIO_OUTPUT"];

/// What differs between IPv4 and IPv6.
struct Family {
    v4: bool,
    loopback: &'static str,
    /// Address from which the proxy calls its own application.
    inbound_source: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family { v4: true, loopback: "127.0.0.1/32", inbound_source: "127.0.0.6/32" },
    Family { v4: false, loopback: "::1/128", inbound_source: "::6/128" },
];

/// Texts for `iptables-restore --noflush` and `ip6tables-restore --noflush`. An earlier set must have been removed.
pub fn render(config: &CaptureConfig) -> [String; 2] {
    FAMILIES.map(|family| {
        let mut text = "*nat\n".to_string();
        for chain in CHAINS {
            let _ = writeln!(text, ":{chain} - [0:0]");
        }
        for rule in rules(config, &family) {
            let _ = writeln!(text, "-A {rule}");
        }
        text += "COMMIT\n";
        if let InboundMode::Tproxy { mark, .. } = config.inbound_mode {
            text += "*mangle\n";
            for chain in MANGLE {
                let _ = writeln!(text, ":{chain} - [0:0]");
            }
            for rule in transparent(config, &family, mark) {
                let _ = writeln!(text, "-A {rule}");
            }
            text += "COMMIT\n";
        }
        text
    })
}

/// Commands that remove the rules; those that find nothing fail, and may.
pub fn removal() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut commands = Vec::new();
    for tool in ["iptables", "ip6tables"] {
        let mut add = |arguments: &[&'static str]| {
            commands.push((tool, ["-t", "nat"].iter().chain(arguments).copied().collect::<Vec<_>>()));
        };
        add(&["-D", "PREROUTING", "-j", "ISTIO_INBOUND"]);
        add(&["-D", "OUTPUT", "-j", "ISTIO_OUTPUT"]);
        CHAINS.iter().for_each(|chain| add(&["-F", chain]));
        CHAINS.iter().for_each(|chain| add(&["-X", chain]));
        let mut mangle = |arguments: &[&'static str]| {
            commands.push((tool, ["-t", "mangle"].iter().chain(arguments).copied().collect::<Vec<_>>()));
        };
        mangle(&["-D", "PREROUTING", "-j", "ISTIO_INBOUND"]);
        mangle(&["-D", "OUTPUT", "-j", "ISTIO_OUTPUT"]);
        MANGLE.iter().for_each(|chain| mangle(&["-F", chain]));
        MANGLE.iter().for_each(|chain| mangle(&["-X", chain]));
    }
    commands
}

fn rules(config: &CaptureConfig, family: &Family) -> Vec<String> {
    let mut rules = vec![
        format!("ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports {}", config.outbound_port),
        format!("ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports {}", config.inbound_port),
        "PREROUTING -j ISTIO_INBOUND".into(),
        "OUTPUT -j ISTIO_OUTPUT".into(),
    ];
    let mut chain = |name: &str, more: Vec<String>| rules.extend(more.iter().map(|rule| format!("{name} {rule}")));
    if config.inbound_mode == InboundMode::Redirect {
        chain("ISTIO_INBOUND", inbound(config, family));
    }
    chain("ISTIO_OUTPUT", outbound(config, family));
    rules
}

/// The rules of table `mangle`; see [`crate::rules`].
fn transparent(config: &CaptureConfig, family: &Family, mark: u32) -> Vec<String> {
    let mut rules = vec![
        format!("ISTIO_DIVERT -j MARK --set-mark {mark}"),
        "ISTIO_DIVERT -j ACCEPT".into(),
        format!("ISTIO_TPROXY -p tcp -j TPROXY --on-port {} --tproxy-mark {mark}/0xffffffff", config.inbound_port),
        "PREROUTING -j ISTIO_INBOUND".into(),
        "OUTPUT -j ISTIO_OUTPUT".into(),
        format!(
            "ISTIO_INBOUND -i lo -p tcp -m mark --mark {mark} -m conntrack --ctdir ORIGINAL -j CONNMARK --save-mark"
        ),
        format!("ISTIO_INBOUND -i lo -p tcp -m mark --mark {mark} -m conntrack --ctdir ORIGINAL -j RETURN"),
    ];
    rules.extend(config.exclude_interfaces.iter().map(|name| format!("ISTIO_INBOUND -i {name} -j RETURN")));
    rules.extend(config.virtual_interfaces.iter().map(|name| format!("ISTIO_INBOUND -i {name} -j RETURN")));
    rules.push("ISTIO_INBOUND -p tcp -m socket --transparent -j ISTIO_DIVERT".into());
    rules.push("ISTIO_INBOUND -i lo -j RETURN".into());
    rules.push("ISTIO_INBOUND -m conntrack --ctdir REPLY -j RETURN".into());
    let redirected = CaptureConfig { exclude_interfaces: Vec::new(), virtual_interfaces: Vec::new(), ..config.clone() };
    let by_port = inbound(&redirected, family);
    rules.extend(
        by_port.iter().map(|rule| format!("ISTIO_INBOUND {}", rule.replace("ISTIO_IN_REDIRECT", "ISTIO_TPROXY"))),
    );
    let answers = format!("-p tcp -m conntrack --ctdir REPLY -m connmark --mark {mark} -j CONNMARK --restore-mark");
    rules.push(format!("ISTIO_OUTPUT {answers}"));
    rules
}

fn inbound(config: &CaptureConfig, family: &Family) -> Vec<String> {
    let mut rules: Vec<String> = config.exclude_interfaces.iter().map(|name| format!("-i {name} -j RETURN")).collect();
    for name in &config.virtual_interfaces {
        rules.extend(ranges(config, family).iter().map(|to| format!("-i {name} {to}-p tcp -j ISTIO_REDIRECT")));
        rules.push(format!("-i {name} -j RETURN"));
    }
    let mut spared: Vec<u16> = PROXY_PORTS.iter().chain(&config.exclude_inbound_ports).copied().collect();
    spared.sort_unstable();
    spared.dedup();
    let port = |port: &u16, verdict: &str| format!("-p tcp --dport {port} -j {verdict}");
    match &config.inbound {
        Ports::All => {
            rules.extend(spared.iter().map(|number| port(number, "RETURN")));
            rules.push("-p tcp -j ISTIO_IN_REDIRECT".into());
        }
        Ports::Only(ports) => {
            let wanted = ports.iter().filter(|number| !spared.contains(number));
            rules.extend(wanted.map(|number| port(number, "ISTIO_IN_REDIRECT")));
        }
    }
    rules
}

/// Destinations that are redirected, as the beginning of a rule.
fn ranges(config: &CaptureConfig, family: &Family) -> Vec<String> {
    match &config.outbound {
        OutboundRanges::All => vec![String::new()],
        OutboundRanges::Only(ranges) => {
            let own = ranges.iter().filter(|range| range.addr().is_ipv4() == family.v4);
            own.map(|range| format!("-d {range} ")).collect()
        }
    }
}

fn outbound(config: &CaptureConfig, family: &Family) -> Vec<String> {
    let owners = owners(&config.owner);
    let mut rules: Vec<String> = config.exclude_interfaces.iter().map(|name| format!("-o {name} -j RETURN")).collect();
    rules.extend(dns(config, family, &owners));
    rules.extend(config.exclude_outbound_ports.iter().map(|port| format!("-p tcp --dport {port} -j RETURN")));
    rules.push(format!("-o lo -s {} -j RETURN", family.inbound_source));
    // What a transparent proxy sends from a client's address is for the application; see `rules`.
    match (config.inbound_mode, &config.owner) {
        (InboundMode::Redirect, _) => {}
        (InboundMode::Tproxy { mark, .. }, ProxyOwner::Mark(own)) if mark == *own => {
            rules.push(format!("-o lo -m mark --mark {mark} -m addrtype ! --src-type LOCAL -j RETURN"));
        }
        (InboundMode::Tproxy { mark, .. }, _) => rules.push(format!("-o lo -m mark --mark {mark} -j RETURN")),
    }
    for owner in &owners {
        // The proxy's call of its own pod is received as if it came from another one.
        let not_self = format!("-o lo ! -d {} -p tcp ! --dport {TUNNEL_PORT}", family.loopback);
        rules.push(format!("{not_self} {owner} -j ISTIO_IN_REDIRECT"));
        rules.push(format!("{owner} -j RETURN"));
    }
    rules.push("-o lo -j RETURN".into());
    rules.push(format!("-d {} -j RETURN", family.loopback));
    let excluded = config.exclude_outbound.iter().filter(|range| range.addr().is_ipv4() == family.v4);
    rules.extend(excluded.map(|range| format!("-d {range} -j RETURN")));
    let included = config.include_outbound_ports.iter();
    rules.extend(included.map(|port| format!("-p tcp --dport {port} -j ISTIO_REDIRECT")));
    rules.extend(ranges(config, family).iter().map(|to| format!("{to}-p tcp -j ISTIO_REDIRECT")));
    rules
}

fn owners(owner: &ProxyOwner) -> Vec<String> {
    match owner {
        ProxyOwner::Mark(mark) => vec![format!("-m mark --mark {mark}")],
        ProxyOwner::Ids { uids, gids } => {
            let uids = uids.iter().map(|id| format!("-m owner --uid-owner {id}"));
            uids.chain(gids.iter().map(|id| format!("-m owner --gid-owner {id}"))).collect()
        }
    }
}

fn dns(config: &CaptureConfig, family: &Family, owners: &[String]) -> Vec<String> {
    let Some(dns) = &config.dns else { return Vec::new() };
    let mut rules = Vec::new();
    let servers: Vec<&IpAddr> = dns.servers.iter().filter(|server| server.is_ipv4() == family.v4).collect();
    let to: Vec<String> = match dns.servers.is_empty() {
        true => vec![String::new()],
        false => servers.iter().map(|server| format!("-d {server} ")).collect(),
    };
    for protocol in ["udp", "tcp"] {
        rules.extend(owners.iter().map(|owner| format!("-p {protocol} --dport 53 {owner} -j RETURN")));
        let redirect = format!("-p {protocol} --dport 53 -j REDIRECT --to-ports {}", dns.port);
        rules.extend(to.iter().map(|to| format!("{to}{redirect}")));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DnsCapture;

    #[test]
    fn the_same_exemptions_in_the_same_order() {
        let config = CaptureConfig {
            outbound: OutboundRanges::Only(["10.0.0.0/8", "fd00::/8"].map(|r| r.parse().unwrap()).to_vec()),
            exclude_outbound: vec!["10.9.0.0/16".parse().unwrap()],
            exclude_outbound_ports: vec![3306],
            include_outbound_ports: vec![443],
            exclude_inbound_ports: vec![22],
            exclude_interfaces: vec!["eth1".into()],
            dns: Some(DnsCapture::default()),
            ..CaptureConfig::default()
        };
        let [v4, v6] = render(&config);
        let mut rest = v4.as_str();
        for rule in [
            "*nat",
            ":ISTIO_OUTPUT - [0:0]",
            "-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001",
            "-A ISTIO_INBOUND -i eth1 -j RETURN",
            "-A ISTIO_INBOUND -p tcp --dport 22 -j RETURN",
            "-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN",
            "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT",
            "-A ISTIO_OUTPUT -o eth1 -j RETURN",
            "-A ISTIO_OUTPUT -p udp --dport 53 -m owner --uid-owner 1337 -j RETURN",
            "-A ISTIO_OUTPUT -p udp --dport 53 -j REDIRECT --to-ports 15053",
            "-A ISTIO_OUTPUT -p tcp --dport 3306 -j RETURN",
            "-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN",
            "-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT",
            "-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN",
            "-A ISTIO_OUTPUT -o lo -j RETURN",
            "-A ISTIO_OUTPUT -d 10.9.0.0/16 -j RETURN",
            "-A ISTIO_OUTPUT -p tcp --dport 443 -j ISTIO_REDIRECT",
            "-A ISTIO_OUTPUT -d 10.0.0.0/8 -p tcp -j ISTIO_REDIRECT",
            "COMMIT",
        ] {
            let at = rest.find(rule).unwrap_or_else(|| panic!("{rule} missing or out of order in\n{v4}"));
            rest = &rest[at + rule.len()..];
        }
        assert!(v6.contains("-d fd00::/8 -p tcp") && !v6.contains("10.0.0.0"), "{v6}");
        assert!(v6.contains("-s ::6/128"), "{v6}");
    }

    #[test]
    fn transparent_rules_are_in_a_table_of_their_own() {
        let config = CaptureConfig { inbound_mode: InboundMode::TPROXY, ..CaptureConfig::default() };
        let [v4, _] = render(&config);
        let (nat, mangle) = v4.split_once("*mangle\n").unwrap();
        assert!(!nat.contains("-A ISTIO_INBOUND") && nat.contains("-o lo -m mark --mark 1337 -j RETURN"), "{nat}");
        for rule in [
            "-A ISTIO_TPROXY -p tcp -j TPROXY --on-port 15006 --tproxy-mark 1337/0xffffffff\n",
            "-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN\n",
            "-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY\n",
            "--ctdir REPLY -m connmark --mark 1337 -j CONNMARK --restore-mark\nCOMMIT\n",
        ] {
            assert!(mangle.contains(rule), "{rule} not in\n{mangle}");
        }
    }

    #[test]
    fn lists_of_ports_and_marks() {
        let config = CaptureConfig {
            owner: ProxyOwner::Mark(7),
            inbound: Ports::Only(vec![9080, 15021]),
            virtual_interfaces: vec!["virbr0".into()],
            ..CaptureConfig::default()
        };
        let [v4, _] = render(&config);
        assert!(v4.contains("-A ISTIO_INBOUND -p tcp --dport 9080 -j ISTIO_IN_REDIRECT\n"), "{v4}");
        assert!(!v4.contains("--dport 15021 -j ISTIO_IN_REDIRECT"), "{v4}");
        assert!(
            v4.contains("-A ISTIO_INBOUND -i virbr0 -p tcp -j ISTIO_REDIRECT\n-A ISTIO_INBOUND -i virbr0 -j RETURN\n"),
            "{v4}"
        );
        assert!(v4.contains("-m mark --mark 7 -j RETURN"), "{v4}");
    }
}
