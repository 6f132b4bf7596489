//! `TPROXY` in real network namespaces made without privilege: what the pod receives reaches the proxy with its addresses as
//! they were, and the application sees the client's. Skipped, saying so, where the kernel permits no user namespace, knows no
//! `tproxy`, or the programs are not installed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use harness::{BOUND, Neighbour};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use weft_capture::{CaptureConfig, InboundMode, ProxyOwner};

const MARK: u32 = 1337;
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const POD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

#[test]
fn the_client_s_address_is_kept() {
    harness::run_inner(&["nft", "ip", "nsenter", "bash"]);
}

/// Runs only when started by the test above; alone it has nothing to check.
#[test]
fn inner() {
    if !harness::is_inner() {
        return;
    }
    let client = Neighbour::start(POD, CLIENT);
    let config = CaptureConfig {
        owner: ProxyOwner::Mark(MARK),
        inbound_mode: InboundMode::TPROXY,
        exclude_inbound_ports: vec![22],
        ..CaptureConfig::default()
    };
    if let Err(error) = weft_capture::apply(&config) {
        // The only reason that is none of ours: a kernel without the modules.
        assert!(error.to_string().contains("No such file or directory"), "{error}");
        println!("skipped: this kernel has no tproxy: {error}");
        harness::done();
        return;
    }
    // Again: what is there is found, not doubled.
    weft_capture::apply(&config).unwrap();
    let proxy = transparent_listener(15006);
    let outbound = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 15001)).unwrap();
    let app = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9080)).unwrap();
    let direct = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 22)).unwrap();

    // The proxy gets the connection with both of its addresses as they were sent.
    let answered = ask(&client, 9080);
    let (mut downstream, from) = proxy.accept().unwrap();
    assert_eq!(from.ip(), CLIENT);
    assert_eq!(downstream.local_addr().unwrap(), SocketAddr::from((POD, 9080)));
    // It calls the application from the client's address; the application sees the client, its answer reaches the proxy.
    let mut upstream = call_from(from, 9080);
    let (mut called, seen) = app.accept().unwrap();
    assert_eq!(seen.ip(), CLIENT);
    pass(&mut downstream, &mut upstream);
    answer(&mut called);
    pass(&mut upstream, &mut downstream);
    assert_eq!(answered.join().unwrap(), "pong");
    // An excluded port does not meet the proxy.
    let answered = ask(&client, 22);
    let (mut stream, from) = direct.accept().unwrap();
    assert_eq!(from.ip(), CLIENT);
    answer(&mut stream);
    assert_eq!(answered.join().unwrap(), "pong");
    // What the pod sends is redirected as ever.
    let sent = TcpStream::connect_timeout(&SocketAddr::from((CLIENT, 80)), BOUND).unwrap();
    assert_eq!(outbound.accept().unwrap().1, sent.local_addr().unwrap());
    // Removed: the application is reached as if there had been nothing.
    weft_capture::remove().unwrap();
    let answered = ask(&client, 9080);
    let (mut stream, _) = app.accept().unwrap();
    answer(&mut stream);
    assert_eq!(answered.join().unwrap(), "pong");
    let rules = Command::new(weft_capture::find_tool("ip").unwrap()).args(["rule", "list"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&rules.stdout).contains("fwmark"), "a rule is left");
    harness::done();
}

/// Sends `ping` to a port of the pod, from the namespace beside; the answer.
fn ask(client: &Neighbour, port: u16) -> std::thread::JoinHandle<String> {
    let script = format!("exec 3<>/dev/tcp/{POD}/{port}; printf ping >&3; timeout 10 head -c 4 <&3");
    let child = client.enter().args(["bash", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::spawn(move || String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap())
}

fn transparent() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    setsockopt(&socket, sockopt::IpTransparent, &true).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
}

fn transparent_listener(port: u16) -> TcpListener {
    let socket = transparent();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).unwrap();
    socket.listen(16).unwrap();
    socket.into()
}

/// What the filter `original_src` does: a connection to the application from the client's address, marked.
fn call_from(client: SocketAddr, port: u16) -> TcpStream {
    let socket = transparent();
    setsockopt(&socket, sockopt::Mark, &MARK).unwrap();
    socket.bind(&SocketAddr::new(client.ip(), 0).into()).unwrap();
    socket.connect_timeout(&SocketAddr::from((POD, port)).into(), BOUND).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) {
    let mut buffer = [0; 4];
    from.read_exact(&mut buffer).unwrap();
    to.write_all(&buffer).unwrap();
}

fn answer(stream: &mut TcpStream) {
    let mut buffer = [0; 4];
    stream.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
    stream.write_all(b"pong").unwrap();
}
