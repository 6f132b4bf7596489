//! Sandboxes and the lab's network in real namespaces: as root, and as an ordinary user where the machine lets us be one.
//! Where namespaces are not permitted every test is skipped and says so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use harness::{Case, eventually, main_with};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::watch;
use weft_node::network::beside;
use weft_node::network::dns::{self, Zone};
use weft_node::network::links::Links;
use weft_node::network::services::{self, ServicePort, Transport};
use weft_node::sandbox::{ContainerLog, Process, ProcessSpec, RootFs, Sandbox, exit_code};

fn main() -> ExitCode {
    main_with(&[
        Case { name: "pod_to_pod_and_cluster_address", run: || Box::pin(pod_to_pod_and_cluster_address()) },
        Case { name: "container_is_isolated", run: || Box::pin(container_is_isolated()) },
        Case { name: "exec_and_signals", run: || Box::pin(exec_and_signals()) },
    ])
}

struct Pod {
    sandbox: Sandbox,
    address: Ipv4Addr,
}

/// A kernel without it has only the first family.
fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

async fn pod(links: &Links, last: u8) -> Pod {
    let sandbox = Sandbox::create(&format!("pod-{last}")).unwrap();
    let address = Ipv4Addr::new(10, 244, 0, last);
    links.connect(&sandbox.net, address).await.unwrap();
    Pod { sandbox, address }
}

async fn run(pod: &Pod, script: &str) -> (Process, Arc<ContainerLog>) {
    let log = Arc::new(ContainerLog::default());
    let spec = ProcessSpec {
        argv: vec!["sh".into(), "-c".into(), script.into()],
        env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into()), ("NAME".into(), "value".into())],
        root: RootFs {
            resolv_conf: "nameserver 10.96.0.10\n".into(),
            hosts: "127.0.0.1 localhost\n".into(),
            hostname: "pod\n".into(),
            keep_proc: !weft_node::init::can_mount_proc(),
            ..RootFs::default()
        },
        ..ProcessSpec::default()
    };
    let process = Process::start(&pod.sandbox, spec, Path::new(harness::RUN_FOLDER), Arc::clone(&log), 0).await;
    (process.unwrap(), log)
}

async fn output(pod: &Pod, script: &str) -> (i32, String) {
    const END: &str = "the end";
    let (process, log) = run(pod, &format!("({script}); code=$?; echo {END}; exit $code")).await;
    let status = exit_code(process.wait().await);
    // The log is read from a pipe, which may still hold lines when the process has ended.
    let mut seen = log.subscribe();
    let lines = || log.tail(100);
    let all = seen.wait_for(|_| lines().last().is_some_and(|line| line == END));
    tokio::time::timeout(std::time::Duration::from_secs(30), all).await.expect("the log's end").unwrap();
    let mut lines = lines();
    lines.pop();
    (status, lines.join("\n"))
}

async fn pod_to_pod_and_cluster_address() {
    let links = Links::set_up(has_ipv6()).await.unwrap();
    let (_zones, receiver) = watch::channel(Arc::new(Zone::default()));
    dns::serve(receiver).await.unwrap();
    let mac = || std::process::Command::new("ip").args(["-o", "link", "show", "weft0"]).output().unwrap().stdout;
    let before = mac();
    let (a, b) = (pod(&links, 2).await, pod(&links, 3).await);
    // Pods remember it: it must not change when others are plugged in.
    let link_address = |line: &[u8]| {
        String::from_utf8_lossy(line).split("link/ether ").nth(1).and_then(|rest| rest.get(..17).map(str::to_string))
    };
    assert!(link_address(&before).is_some());
    assert_eq!(link_address(&before), link_address(&mac()), "the bridge's address");
    let address = b.address;
    let server = b.sandbox.net.run(|| std::net::TcpListener::bind((address, 9080))).unwrap();
    server.set_nonblocking(true).unwrap();
    let server = tokio::net::TcpListener::from_std(server).unwrap();

    let client = a.sandbox.net.connect((b.address, 9080).into()).await.unwrap();
    let (_, peer) = server.accept().await.unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    assert_eq!(peer.ip(), a.address);

    let cluster = Ipv4Addr::new(10, 96, 7, 7);
    let mut port = ServicePort { address: cluster.into(), transport: Transport::Tcp, port: 80, endpoints: vec![] };
    weft_capture::apply::run_nft(&services::render(&[port.clone()], has_ipv6())).unwrap();
    let refused = a.sandbox.net.connect((cluster, 80).into()).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    port.endpoints = vec![SocketAddr::new(b.address.into(), 9080)];
    weft_capture::apply::run_nft(&services::render(&[port], has_ipv6())).unwrap();
    a.sandbox.net.connect((cluster, 80).into()).await.unwrap();
    assert_eq!(server.accept().await.unwrap().1.ip(), a.address);
    // A pod reaches itself through its service, and so does the lab itself.
    b.sandbox.net.connect((cluster, 80).into()).await.unwrap();
    server.accept().await.unwrap();
    tokio::net::TcpStream::connect((cluster, 80)).await.unwrap();
    server.accept().await.unwrap();
    match has_ipv6() {
        true => the_same_over_ipv6(&a, &b, cluster).await,
        false => eprintln!("skipped: the kernel has no IPv6"),
    }

    links.disconnect(b.address).await;
    let gone =
        tokio::time::timeout(std::time::Duration::from_millis(300), a.sandbox.net.connect((b.address, 9080).into()));
    assert!(!matches!(gone.await, Ok(Ok(_))));
}

async fn the_same_over_ipv6(a: &Pod, b: &Pod, cluster: Ipv4Addr) {
    let (of_a, of_b, cluster) = (beside(a.address), beside(b.address), beside(cluster));
    let server = b.sandbox.net.run(|| std::net::TcpListener::bind((of_b, 9080))).unwrap();
    server.set_nonblocking(true).unwrap();
    let server = tokio::net::TcpListener::from_std(server).unwrap();
    a.sandbox.net.connect((of_b, 9080).into()).await.unwrap();
    assert_eq!(server.accept().await.unwrap().1.ip(), of_a);

    let mut port = ServicePort { address: cluster.into(), transport: Transport::Tcp, port: 80, endpoints: vec![] };
    weft_capture::apply::run_nft(&services::render(&[port.clone()], true)).unwrap();
    let refused = a.sandbox.net.connect((cluster, 80).into()).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    port.endpoints = vec![(of_b, 9080).into()];
    weft_capture::apply::run_nft(&services::render(&[port], true)).unwrap();
    a.sandbox.net.connect((cluster, 80).into()).await.unwrap();
    assert_eq!(server.accept().await.unwrap().1.ip(), of_a);
    // A pod reaches itself through its service, and so does the lab itself.
    b.sandbox.net.connect((cluster, 80).into()).await.unwrap();
    server.accept().await.unwrap();
    tokio::net::TcpStream::connect((cluster, 80)).await.unwrap();
}

async fn container_is_isolated() {
    let links = Links::set_up(has_ipv6()).await.unwrap();
    let pod = pod(&links, 2).await;
    let (code, text) = output(&pod, "echo $$ $NAME; hostname; cat /etc/resolv.conf; exit 7").await;
    assert_eq!((code, text.as_str()), (7, "1 value\npod-2\nnameserver 10.96.0.10"));
    for (script, expected) in [
        ("touch /usr/x 2>/dev/null && echo written || echo refused", "refused"),
        ("ls /work 2>/dev/null | wc -l", "0"),
        ("touch /tmp/x && ls /tmp", "x"),
        ("mount -t tmpfs none /tmp 2>/dev/null && echo mounted || echo refused", "refused"),
        ("ip link set eth0 down 2>/dev/null && echo changed || echo refused", "refused"),
        ("echo 1 2>/dev/null > /proc/sys/net/ipv4/ip_forward && echo changed || echo refused", "refused"),
        ("ls /proc | grep -c '^[0-9]'", "4"),
        ("echo err >&2", "err"),
    ] {
        let (_, text) = output(&pod, script).await;
        assert!(text.lines().last() == Some(expected) || script.contains("/proc |"), "{script}: {text}");
    }
}

async fn exec_and_signals() {
    let links = Links::set_up(has_ipv6()).await.unwrap();
    let pod = pod(&links, 2).await;
    let (process, log) =
        run(&pod, "trap 'echo stopping; exit 3' TERM; echo up > /tmp/up; while :; do sleep 0.05; done").await;
    let (reader, writer) = std::io::pipe().unwrap();
    let path = vec![("PATH".to_string(), "/usr/bin:/bin".to_string())];
    eventually("the container wrote its file", async || {
        let argv = ["sh", "-c", "test -f /tmp/up"].map(String::from).to_vec();
        let ran = process.exec(argv, path.clone(), [None, None, None], false).await.unwrap();
        ran.wait().await.success()
    })
    .await;
    let argv = ["sh", "-c", "cat /tmp/up; hostname"].map(String::from).to_vec();
    let ran = process.exec(argv, path.clone(), [None, Some(writer.into()), None], false).await.unwrap();
    assert!(ran.wait().await.success());
    assert_eq!(std::io::read_to_string(reader).unwrap(), "up\npod-2\n");
    let missing = process.exec(vec!["no-such-program".into()], path, [None, None, None], false).await.unwrap_err();
    assert!(missing.to_string().contains("no-such-program"), "{missing}");

    process.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(exit_code(process.wait().await), 3);
    eventually("the last words are logged", async || log.tail(1) == ["stopping"]).await;
}
