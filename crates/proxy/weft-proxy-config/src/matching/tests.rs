//! Which filter chain serves a connection, by table.

use super::*;
use std::net::SocketAddr;

/// A chain's conditions in short: `port=80 ip=10.0.0.0/8 sni=*.a.com tls alpn=h2 local`.
fn conditions(text: &str) -> ChainMatch {
    let mut out = ChainMatch::default();
    for word in text.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "port" => out.destination_port = value.parse().ok(),
            "ip" => out.destination.push(value.parse().unwrap()),
            "sni" => out.server_names.push(value.into()),
            "tls" => out.transport = Some(Transport::Tls),
            "raw" => out.transport = Some(Transport::RawBuffer),
            "alpn" => out.application_protocols.push(value.into()),
            "local" => out.source_local = Some(true),
            "external" => out.source_local = Some(false),
            "src" => out.source.push(value.parse().unwrap()),
            "peer" => out.direct_source.push(value.parse().unwrap()),
            "sport" => out.source_ports.push(value.parse().unwrap()),
            other => panic!("{other}"),
        }
    }
    out
}

/// A connection in short: `to=10.0.0.1:80 from=10.0.0.9:999 sni=a tls alpn=h2`.
fn find(index: &ChainIndex, text: &str) -> Option<usize> {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let (mut to, mut from, mut peer) = (address("10.0.0.1:80"), address("10.0.0.9:999"), None);
    let (mut sni, mut transport, mut protocols) = (None, Transport::RawBuffer, Vec::new());
    for word in text.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "to" => to = address(value),
            "from" => from = address(value),
            "peer" => peer = Some(value.parse().unwrap()),
            "sni" => sni = Some(value),
            "tls" => transport = Transport::Tls,
            "alpn" => protocols.push(Strng::from(value)),
            other => panic!("{other}"),
        }
    }
    index.find(&ConnectionFacts {
        destination: to,
        source: from,
        server_name: sni,
        transport,
        application_protocols: &protocols,
        direct_source: peer.unwrap_or(from.ip()),
    })
}

fn check(chains: &[&str], cases: &[(&str, Option<usize>)]) {
    let chains: Vec<_> = chains.iter().map(|c| conditions(c)).collect();
    let (index, errors) = ChainIndex::build(chains.iter());
    assert_eq!(errors, vec![]);
    for (connection, want) in cases {
        assert_eq!(find(&index, connection), *want, "{connection}");
    }
}

#[test]
fn port_comes_first_and_hides() {
    check(
        &["port=80 tls", "", "port=81 ip=10.1.0.0/16"],
        &[
            ("to=10.0.0.1:80 tls", Some(0)),
            // A chain for the port is there, so chains for any port are not looked at.
            ("to=10.0.0.1:80", None),
            ("to=10.0.0.1:82", Some(1)),
            ("to=[::1]:82", Some(1)),
            ("to=10.1.2.3:81", Some(2)),
            ("to=10.0.0.1:81", None),
        ],
    );
}

#[test]
fn longest_range_then_names() {
    check(
        &[
            "ip=10.0.0.0/8",
            "ip=10.1.0.0/16 sni=a.example.com tls",
            "ip=10.1.0.0/16 sni=*.example.com tls",
            "ip=10.1.0.0/16 sni=*.com tls",
            "ip=10.1.0.0/16",
            "ip=fd00::/8",
        ],
        &[
            ("to=10.2.0.1:80", Some(0)),
            ("to=10.1.0.1:80 sni=a.example.com tls", Some(1)),
            ("to=10.1.0.1:80 sni=b.example.com tls", Some(2)),
            ("to=10.1.0.1:80 sni=c.b.example.com tls", Some(2)),
            ("to=10.1.0.1:80 sni=example.com tls", Some(3)),
            ("to=10.1.0.1:80 sni=x.org tls", Some(4)),
            ("to=10.1.0.1:80", Some(4)),
            // The name is taken, and its chain wants TLS: no way back to the chain without a name.
            ("to=10.1.0.1:80 sni=a.example.com", None),
            ("to=[fd00::1]:80", Some(5)),
            ("to=[::ffff:10.1.0.1]:80", Some(4)),
            ("to=11.0.0.1:80", None),
        ],
    );
}

#[test]
fn inbound_permissive() {
    // The chains of a workload's port of unknown protocol, as the mesh makes them.
    check(
        &[
            "port=9080 tls alpn=istio-http/1.0 alpn=istio-http/1.1 alpn=istio-h2",
            "port=9080 raw alpn=http/1.0 alpn=http/1.1 alpn=h2c",
            "port=9080 tls alpn=istio-peer-exchange alpn=istio",
            "port=9080 raw",
            "port=9080 tls",
            "",
        ],
        &[
            ("to=10.0.0.1:9080 tls alpn=istio-h2 alpn=istio alpn=h2", Some(0)),
            ("to=10.0.0.1:9080 tls alpn=istio-peer-exchange alpn=istio", Some(2)),
            ("to=10.0.0.1:9080 tls alpn=h2 alpn=istio", Some(2)),
            ("to=10.0.0.1:9080 tls alpn=h2", Some(4)),
            ("to=10.0.0.1:9080 tls", Some(4)),
            ("to=10.0.0.1:9080 alpn=http/1.1", Some(1)),
            ("to=10.0.0.1:9080", Some(3)),
            ("to=10.0.0.1:9081", Some(5)),
        ],
    );
}

#[test]
fn sources() {
    check(
        &[
            "local",
            "external src=10.0.0.0/8",
            "external src=10.1.0.0/16 sport=7",
            "external src=10.1.0.0/16",
            "src=0.0.0.0/0",
        ],
        &[
            ("from=127.0.0.1:5", Some(0)),
            ("to=10.0.0.1:80 from=10.0.0.1:5", Some(0)),
            ("from=10.2.0.1:5", Some(1)),
            ("from=10.1.0.1:7", Some(2)),
            ("from=10.1.0.1:8", Some(3)),
            // Chains for clients from elsewhere are there, so those for any client are not looked at.
            ("from=11.0.0.1:5", None),
        ],
    );
    check(
        &["peer=10.0.0.0/8", ""],
        &[("from=1.1.1.1:1 peer=10.0.0.9", Some(0)), ("from=10.0.0.1:1 peer=1.1.1.1", Some(1))],
    );
}

#[test]
fn equal_conditions_are_an_error() {
    for (first, second, clash) in [
        ("port=80", "port=80", true),
        ("port=80", "port=80 tls", false),
        ("sni=a sni=b", "sni=b sni=c", true),
        ("sni=a sni=a", "sni=b", false),
        ("ip=10.0.0.1/8", "ip=10.0.0.2/8", true),
        ("sport=1 sport=2", "sport=2", true),
        ("", "", true),
    ] {
        let chains = [conditions(first), conditions(second)];
        let (_, errors) = ChainIndex::build(chains.iter());
        assert_eq!(
            errors.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            if clash { vec![1] } else { vec![] },
            "{first} | {second}"
        );
    }
    let many = ChainMatch {
        source_ports: (1..=1000).collect(),
        server_names: (0..1000).map(|n| format!("h{n}").into()).collect(),
        ..ChainMatch::default()
    };
    let (_, errors) = ChainIndex::build([many].iter());
    assert!(errors[0].1.contains("combinations"), "{errors:?}");
}

#[test]
fn names_do_not_trip_over_odd_hosts() {
    check(
        &["sni=*.com tls", "tls"],
        &[
            ("sni=.com tls", Some(0)),
            ("sni=. tls", Some(1)),
            ("sni=a.b.c.com tls", Some(0)),
            ("sni=\u{e9}.com tls", Some(0)),
        ],
    );
}
