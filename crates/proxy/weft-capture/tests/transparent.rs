//! `TPROXY` in real network namespaces made without privilege: what the pod receives reaches the proxy with its addresses as
//! they were, and the application sees the client's. Skipped, saying so, where the kernel permits no user namespace, knows no
//! `tproxy`, or the programs are not installed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use weft_capture::{CaptureConfig, InboundMode, ProxyOwner};

const MARK: u32 = 1337;
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const POD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const BOUND: Duration = Duration::from_secs(10);

/// The test process re-runs itself in new namespaces: a test harness has many threads, and only a process with one may
/// enter a user namespace.
#[test]
fn the_client_s_address_is_kept() {
    if std::env::var_os("WEFT_CAPTURE_INNER").is_some() {
        return;
    }
    let works = Command::new("unshare").args(["-Urn", "true"]).status().is_ok_and(|s| s.success());
    if !works || ["nft", "ip", "nsenter", "bash"].iter().any(|tool| weft_capture::find_tool(tool).is_none()) {
        eprintln!("skipped: needs unshare, user namespaces, nft, ip, nsenter and bash");
        return;
    }
    let output = Command::new("unshare")
        .args(["-Urn"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inner", "--nocapture", "--test-threads=1"])
        .env("WEFT_CAPTURE_INNER", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("inner checks done"), "{text}");
    if let Some(line) = text.lines().find(|line| line.starts_with("skipped")) {
        eprintln!("{line}");
    }
}

/// Runs only when started by the test above; alone it has nothing to check.
#[test]
fn inner() {
    if std::env::var_os("WEFT_CAPTURE_INNER").is_none() {
        return;
    }
    let client = ClientNetwork::start();
    let config = CaptureConfig {
        owner: ProxyOwner::Mark(MARK),
        inbound_mode: InboundMode::TPROXY,
        exclude_inbound_ports: vec![22],
        ..CaptureConfig::default()
    };
    if let Err(error) = weft_capture::apply(&config) {
        // The only reason that is none of ours: a kernel without the modules.
        assert!(error.to_string().contains("No such file or directory"), "{error}");
        println!("skipped: this kernel has no tproxy: {error}\ninner checks done");
        return;
    }
    // Again: what is there is found, not doubled.
    weft_capture::apply(&config).unwrap();
    let proxy = transparent_listener(15006);
    let outbound = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 15001)).unwrap();
    let app = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9080)).unwrap();
    let direct = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 22)).unwrap();

    // The proxy gets the connection with both of its addresses as they were sent.
    let answered = client.ask(9080);
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
    let answered = client.ask(22);
    let (mut stream, from) = direct.accept().unwrap();
    assert_eq!(from.ip(), CLIENT);
    answer(&mut stream);
    assert_eq!(answered.join().unwrap(), "pong");
    // What the pod sends is redirected as ever.
    let sent = TcpStream::connect_timeout(&SocketAddr::from((CLIENT, 80)), BOUND).unwrap();
    assert_eq!(outbound.accept().unwrap().1, sent.local_addr().unwrap());
    // Removed: the application is reached as if there had been nothing.
    weft_capture::remove().unwrap();
    let answered = client.ask(9080);
    let (mut stream, _) = app.accept().unwrap();
    answer(&mut stream);
    assert_eq!(answered.join().unwrap(), "pong");
    let rules = Command::new(weft_capture::find_tool("ip").unwrap()).args(["rule", "list"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&rules.stdout).contains("fwmark"), "a rule is left");
    println!("inner checks done");
}

/// A process in another network namespace, joined to this one by a cable.
struct ClientNetwork(Child);

impl ClientNetwork {
    fn start() -> Self {
        let ip = weft_capture::find_tool("ip").expect("the outer test has looked");
        let run =
            |line: &str| assert!(Command::new(&ip).args(line.split(' ')).status().unwrap().success(), "ip {line}");
        // Named by a process; it ends by itself should this one be killed.
        let child = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().unwrap();
        let made = Self(child);
        let (own, begun) = (std::fs::read_link("/proc/self/ns/net").unwrap(), Instant::now());
        let other = format!("/proc/{}/ns/net", made.0.id());
        while std::fs::read_link(&other).is_ok_and(|namespace| namespace == own) {
            assert!(begun.elapsed() < BOUND, "unshare never came to its namespace");
            std::thread::sleep(Duration::from_millis(5));
        }
        run("link set lo up");
        run("link add pod0 type veth peer name client0");
        run(&format!("link set client0 netns {}", made.0.id()));
        run("addr add 192.0.2.2/24 dev pod0");
        run("link set pod0 up");
        for line in ["link set lo up", "addr add 192.0.2.1/24 dev client0", "link set client0 up"] {
            assert!(made.enter().arg(&ip).args(line.split(' ')).status().unwrap().success(), "ip {line}");
        }
        made
    }

    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-n", "-t", &self.0.id().to_string()]);
        command
    }

    /// Sends `ping` to a port of the pod; the answer.
    fn ask(&self, port: u16) -> std::thread::JoinHandle<String> {
        let script = format!("exec 3<>/dev/tcp/{POD}/{port}; printf ping >&3; timeout 10 head -c 4 <&3");
        let child = self.enter().args(["bash", "-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
        std::thread::spawn(move || String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap())
    }
}

impl Drop for ClientNetwork {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
