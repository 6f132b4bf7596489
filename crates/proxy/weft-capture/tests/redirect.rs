//! The rules in a real network namespace made without privilege: redirection, the original destination, and the exemptions.
//! Skipped, saying so, where the kernel permits no user namespace or `nft` is not installed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use harness::BOUND;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use weft_capture::{CaptureConfig, DnsCapture, OutboundRanges, ProxyOwner};

const MARK: u32 = 1337;
/// Address of the "pod": on lo beside 127.0.0.1, as a pod's own address is reached through lo.
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 9);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 1);

#[test]
fn redirects_in_an_unprivileged_namespace() {
    harness::run_inner(&["nft", "ip"]);
}

/// Runs only when started by the test above; alone it has nothing to check.
#[test]
fn inner() {
    if !harness::is_inner() {
        return;
    }
    set_up_addresses();
    let six = set_up_ipv6();
    let outbound = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 15001)).unwrap();
    let inbound = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 15006)).unwrap();
    let app = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9080)).unwrap();
    weft_capture::apply(&CaptureConfig {
        owner: ProxyOwner::Mark(MARK),
        outbound: OutboundRanges::All,
        exclude_outbound_ports: vec![3306],
        // Not there; the rules must be taken all the same.
        exclude_interfaces: vec!["none0".into()],
        virtual_interfaces: vec!["virbr0".into(), "virbr1".into()],
        dns: Some(DnsCapture::default()),
        ..CaptureConfig::default()
    })
    .unwrap();

    // The application calls another address: the proxy gets it and learns where it was meant to go.
    let (from, _kept) = dial(ELSEWHERE, 80, None, None);
    assert_eq!(accepted(&outbound), (from, original(ELSEWHERE, 80)));
    // The application calls itself by loopback or by its address: nothing between.
    let (from, _kept) = dial(Ipv4Addr::LOCALHOST, 9080, None, None);
    assert_eq!(accepted(&app).0, from);
    let (from, _kept) = dial(POD, 9080, None, None);
    assert_eq!(accepted(&app).0, from);
    // The proxy calls this pod by its address: as if received from another pod.
    let (from, _kept) = dial(POD, 9080, Some(MARK), None);
    assert_eq!(accepted(&inbound), (from, original(POD, 9080)));
    // The proxy hands a received request to the application, from 127.0.0.6: nothing between.
    let (from, _kept) = dial(POD, 9080, Some(MARK), Some(Ipv4Addr::new(127, 0, 0, 6)));
    assert_eq!(accepted(&app).0, from);
    // An excluded port leaves the pod: here no route leads on, so it must not reach the proxy.
    assert_nothing_arrives(&outbound, 3306);
    dns_goes_to_the_proxy();
    if six {
        the_same_over_ipv6();
    }
    // Removal undoes everything.
    weft_capture::remove().unwrap();
    assert_nothing_arrives(&outbound, 80);
    weft_capture::remove().unwrap();
    harness::done();
}

fn set_up_addresses() {
    [
        "link set lo up",
        "addr add 10.244.0.9/32 dev lo",
        "link add out0 type veth peer name out1",
        "link set out0 up",
        "link set out1 up",
        "route add default dev out0",
    ]
    .into_iter()
    .for_each(harness::ip);
}

/// Where a connection over IPv6 is accepted: from whom, and where it was meant to go.
fn accepted_v6(listener: &TcpListener) -> (SocketAddr, Option<SocketAddr>) {
    let (stream, peer) = listener.accept().unwrap();
    let original = getsockopt(&stream, sockopt::Ip6tOriginalDst).ok().map(|raw| {
        let address = std::net::Ipv6Addr::from(raw.sin6_addr.s6_addr);
        SocketAddr::from((address, u16::from_be(raw.sin6_port)))
    });
    (peer, original)
}

fn dial_v6(to: &str, mark: Option<u32>, source: Option<&str>) -> (SocketAddr, TcpStream) {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    if let Some(mark) = mark {
        setsockopt(&socket, sockopt::Mark, &mark).unwrap();
    }
    if let Some(source) = source {
        socket.bind(&source.parse::<SocketAddr>().unwrap().into()).unwrap();
    }
    socket.connect_timeout(&to.parse::<SocketAddr>().unwrap().into(), BOUND).unwrap();
    let stream = TcpStream::from(socket);
    (stream.local_addr().unwrap(), stream)
}

fn listen_v6(port: u16) -> TcpListener {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_only_v6(true).unwrap();
    socket.bind(&SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port)).into()).unwrap();
    socket.listen(16).unwrap();
    socket.into()
}

/// Redirection, the original destination and the exemptions of IPv6.
fn the_same_over_ipv6() {
    let (outbound, inbound, app) = (listen_v6(15001), listen_v6(15006), listen_v6(9080));
    let meant = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
    let (from, _kept) = dial_v6("[fd00:ffff::1]:80", None, None);
    assert_eq!(accepted_v6(&outbound), (from, meant("[fd00:ffff::1]:80")));
    let (from, _kept) = dial_v6("[::1]:9080", None, None);
    assert_eq!(accepted_v6(&app).0, from);
    let (from, _kept) = dial_v6("[fd00:244::9]:9080", None, None);
    assert_eq!(accepted_v6(&app).0, from);
    let (from, _kept) = dial_v6("[fd00:244::9]:9080", Some(MARK), None);
    assert_eq!(accepted_v6(&inbound), (from, meant("[fd00:244::9]:9080")));
    // The address is there since the rules were applied.
    let (from, _kept) = dial_v6("[fd00:244::9]:9080", Some(MARK), Some("[::6]:0"));
    assert_eq!(accepted_v6(&app).0, from);
    println!("IPv6 is the same");
}

/// Addresses and a route; false, said, where the kernel has no IPv6.
fn set_up_ipv6() -> bool {
    if !std::path::Path::new("/proc/sys/net/ipv6").exists() {
        eprintln!("skipped: the kernel has no IPv6");
        return false;
    }
    ["-6 addr add fd00:244::9/128 dev lo", "-6 addr add fd00:1::1/64 dev out0 nodad", "-6 route add default dev out0"]
        .into_iter()
        .for_each(harness::ip);
    true
}

fn dial(to: Ipv4Addr, port: u16, mark: Option<u32>, source: Option<Ipv4Addr>) -> (SocketAddr, TcpStream) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    if let Some(mark) = mark {
        setsockopt(&socket, sockopt::Mark, &mark).unwrap();
    }
    if let Some(source) = source {
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    }
    socket.connect_timeout(&SocketAddr::from((to, port)).into(), BOUND).unwrap();
    let stream = TcpStream::from(socket);
    (stream.local_addr().unwrap(), stream)
}

fn accepted(listener: &TcpListener) -> (SocketAddr, Option<SocketAddr>) {
    let (stream, peer) = listener.accept().unwrap();
    let original = getsockopt(&stream, sockopt::OriginalDst).ok().map(|raw| {
        let address = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
        SocketAddr::from((address, u16::from_be(raw.sin_port)))
    });
    (peer, original)
}

fn original(address: Ipv4Addr, port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::from((address, port)))
}

/// A dial that finds no one must time out, and the proxy must have nothing to accept.
fn assert_nothing_arrives(listener: &TcpListener, port: u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let to = SocketAddr::from((ELSEWHERE, port));
    assert!(socket.connect_timeout(&to.into(), Duration::from_millis(300)).is_err());
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "port {port} reached the proxy");
    listener.set_nonblocking(false).unwrap();
}

fn dns_goes_to_the_proxy() {
    // Bound to loopback, where the redirection delivers: from a wildcard socket the answer would leave with the pod's own
    // address, and the client would not know it.
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 15053)).unwrap();
    server.set_read_timeout(Some(BOUND)).unwrap();
    let client = UdpSocket::bind((POD, 0)).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    client.connect((Ipv4Addr::new(10, 96, 0, 10), 53)).unwrap();
    client.send(b"query").unwrap();
    let mut buffer = [0; 16];
    let (n, peer) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"query");
    server.send_to(b"answer", peer).unwrap();
    // The answer appears to come from the server that was asked, or a connected socket would not take it.
    let n = client.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"answer");
    let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 15053)).unwrap();
    let (_, mut kept) = dial(Ipv4Addr::new(10, 96, 0, 10), 53, None, None);
    kept.write_all(b"q").unwrap();
    let (mut stream, _) = tcp.accept().unwrap();
    stream.read_exact(&mut buffer[..1]).unwrap();
}
