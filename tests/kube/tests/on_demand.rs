//! A real proxy that takes only the configuration that it uses (`weft.dev/on-demand`), a real control plane, and an API server:
//! what it holds over the life of services, of their rules, and of what it asked for.
//!
//! Calls come to a listener of a Sidecar with a socket of its own, so that nothing has to be redirected.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use weft_kube_tests::process::Process;
use weft_kube_tests::{Cluster, Kind, Weftd, eventually, http, proxy, target};
use weft_test_ports::free_port;

const NAMESPACE: &str = "calls";

fn program() -> PathBuf {
    std::env::var_os("WEFT_BIN_DIR").map_or_else(|| target().join("debug"), PathBuf::from).join("weft-proxy")
}

/// An application that answers every request in the same way.
async fn application() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    Ok(port)
}

/// Where the control plane is found, whichever it is at the moment.
async fn relay(current: Arc<AtomicU16>) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let to = current.load(Ordering::Relaxed);
            tokio::spawn(async move {
                let Ok(mut server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    Ok(port)
}

/// The proxy and where it is called and asked.
struct Caller {
    process: Process,
    calls: u16,
    admin: u16,
    dns: u16,
}

impl Caller {
    async fn start(cluster: &Cluster, control_plane: u16, calls: u16, idle: &str) -> Result<Self> {
        let file = |name: &str| cluster.dir().join(name);
        std::fs::write(file("root.pem"), proxy::root(cluster, NAMESPACE).await?)?;
        std::fs::write(file("token"), cluster.token(NAMESPACE, "default", &["istio-ca"]).await?)?;
        let (admin, readiness, dns) = (free_port(), free_port(), free_port());
        let config = json!({
            "discoveryAddress": format!("127.0.0.1:{control_plane}"), "statusPort": free_port(),
            "proxyAdminPort": admin, "concurrency": 2, "terminationDrainDuration": "1s",
        });
        let env = [
            ("POD_NAME", "caller".to_string()),
            ("POD_NAMESPACE", NAMESPACE.into()),
            ("SERVICE_ACCOUNT", "default".into()),
            ("INSTANCE_IP", "127.0.0.1".into()),
            ("PROXY_CONFIG", config.to_string()),
            ("ENVOY_STATUS_PORT", readiness.to_string()),
            ("ENVOY_PROMETHEUS_PORT", free_port().to_string()),
            ("WEFT_ROOT_CERT", file("root.pem").display().to_string()),
            ("WEFT_TOKEN", file("token").display().to_string()),
            ("WEFT_SDS_SOCKET", file("sds.sock").display().to_string()),
            ("ISTIO_META_DNS_CAPTURE", "true".into()),
            ("DNS_PROXY_ADDR", format!("127.0.0.1:{dns}")),
            ("ISTIO_META_WEFT_ON_DEMAND", "true".into()),
            ("WEFT_ON_DEMAND_IDLE", idle.into()),
            ("WEFT_ON_DEMAND_WAIT", "30s".into()),
        ];
        let args = ["proxy", "sidecar", "--domain", "calls.svc.cluster.local"].map(String::from);
        let process = Process::start(&program(), &args, &env, &file("caller.log"))
            .with_context(|| format!("{}: build it with: cargo build -p weft-proxy", program().display()))?;
        let caller = Self { process, calls, admin, dns };
        let ready = eventually("the proxy is ready", async || {
            ensure!(http::get(readiness, "/healthz/ready").await?.0 == 200, "not ready");
            // What makes it ready is on its way to the sockets still.
            TcpStream::connect(("127.0.0.1", calls)).await?;
            Ok(())
        });
        ready.await.with_context(|| caller.process.output())?;
        Ok(caller)
    }

    /// The first address of a name, as the workload's resolver asks for it.
    async fn lookup(&self, name: &str) -> Result<IpAddr> {
        let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len())?);
            query.extend_from_slice(label.as_bytes());
        }
        query.extend_from_slice(&[0, 0, 1, 0, 1]);
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
        socket.send_to(&query, ("127.0.0.1", self.dns)).await?;
        let mut answer = [0; 512];
        let length = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut answer)).await??;
        let answer = &answer[..length];
        ensure!(answer[6..8] != [0, 0], "{name}: no answer, code {}", answer[3] & 15);
        // The address is the last of the only record.
        let last: [u8; 4] = answer[length - 4..].try_into()?;
        Ok(IpAddr::from(last))
    }

    /// Status of one request for a host.
    async fn call(&self, host: &str) -> Result<u16> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.calls)).await?;
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        tokio::time::timeout(Duration::from_secs(40), stream.read_to_string(&mut answer)).await??;
        answer.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| format!("{host}: {answer:?}"))
    }

    async fn becomes(&self, host: &str, want: u16) -> Result<()> {
        eventually(host, async || {
            let status = self.call(host).await?;
            ensure!(status == want, "{host}: {status}, want {want}");
            Ok(())
        })
        .await
    }

    /// Hosts that it has clusters for.
    async fn held(&self) -> Result<BTreeSet<String>> {
        let (_, body) = http::get(self.admin, "/clusters?format=json").await?;
        let page: Value = serde_json::from_str(&body)?;
        let names = page["cluster_statuses"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str());
        let hosts = names.filter_map(|name| name.strip_prefix("outbound|")?.rsplit('|').next());
        Ok(hosts.map(str::to_string).collect())
    }

    async fn holds(&self, want: &[&str]) -> Result<()> {
        let (held, want) = (self.held().await?, want.iter().map(ToString::to_string).collect::<BTreeSet<_>>());
        ensure!(held == want, "clusters of {held:?}, want {want:?}");
        Ok(())
    }

    async fn comes_to_hold(&self, want: &[&str]) -> Result<()> {
        eventually("what is held", async || self.holds(want).await).await
    }

    /// Names that were asked for, and whether there is something for them.
    async fn asked(&self) -> Result<Vec<(String, bool)>> {
        let (_, body) = http::get(self.admin, "/on_demand").await?;
        let page: Value = serde_json::from_str(&body)?;
        let found = |asked: &Value| asked["found"].as_array().is_some_and(|found| !found.is_empty());
        let all = page["asked"].as_array().context("no list")?;
        Ok(all.iter().map(|asked| (asked["name"].as_str().unwrap_or_default().to_string(), found(asked))).collect())
    }
}

fn entry(name: &str, hosts: &[&str], port: u16, to: u16) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "hosts": hosts, "location": "MESH_EXTERNAL", "resolution": "STATIC",
            "ports": [{"number": port, "name": "http", "protocol": "HTTP"}],
            "endpoints": [{"address": "127.0.0.1", "ports": {"http": to}}],
        },
    })
}

fn rule(host: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": host.split('.').next(), "namespace": "default"},
        "spec": {"hosts": [host], "http": [spec]},
    })
}

/// The mesh's ports and what the caller may reach: what is in the registry, over a socket.
async fn prepare(cluster: &Cluster, calls: u16) -> Result<()> {
    cluster.namespace(NAMESPACE, &[]).await?;
    let mesh = format!("proxyListenPort: {}\nproxyInboundListenPort: {}\n", free_port(), free_port());
    cluster
        .apply_value(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": mesh},
        }))
        .await?;
    let listener = json!({
        "port": {"number": calls, "protocol": "HTTP", "name": "http"},
        "bind": "127.0.0.1", "captureMode": "NONE", "hosts": ["*/*"],
    });
    cluster
        .create(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
            "metadata": {"name": "default", "namespace": NAMESPACE},
            "spec": {"egress": [listener], "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}},
        }))
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_proxy_holds_what_it_uses() -> Result<()> {
    let cluster = Cluster::start(Kind::Embedded).await?;
    let (calls, app) = (free_port(), application().await?);
    prepare(&cluster, calls).await?;
    for name in ["a", "b", "c", "mirror"] {
        cluster.create(entry(name, &[&format!("{name}.example")], calls, app)).await?;
    }
    let weftd = Weftd::start(&cluster, "weftd").await?;
    let caller = Caller::start(&cluster, weftd.secure, calls, "1h").await?;
    caller.holds(&[]).await?;

    // The first request brings the service, in one round trip, and nothing else.
    ensure!(caller.call("a.example").await? == 200, "the first request");
    caller.holds(&["a.example"]).await?;
    ensure!(caller.asked().await? == [(format!("http/{calls}/a.example"), true)], "{:?}", caller.asked().await?);

    // Its names are not held either before they are looked up.
    let address = caller.lookup("b.example").await?;
    ensure!(address.to_string().starts_with("240.240."), "{address} is none of the mesh's");
    ensure!(caller.asked().await?.contains(&("dns/b.example".into(), true)), "{:?}", caller.asked().await?);

    // A host that is in no registry, until it is; then one that a wildcard covers.
    caller.becomes("late.example", 502).await?;
    cluster.create(entry("late", &["late.example"], calls, app)).await?;
    caller.becomes("late.example", 200).await?;
    caller.comes_to_hold(&["a.example", "late.example"]).await?;

    // A rule of a held service is live, with the clusters that it names; one of another is nobody's business.
    let mirrored = json!({"host": "mirror.example", "port": {"number": calls}});
    let to = |host: &str| json!([{"destination": {"host": host, "port": {"number": calls}}}]);
    // In this order: what comes of the second says that the first is known.
    cluster.create(rule("c.example", json!({"directResponse": {"status": 418}}))).await?;
    cluster.create(rule("a.example", json!({"route": to("b.example"), "mirror": mirrored}))).await?;
    caller.comes_to_hold(&["b.example", "late.example", "mirror.example"]).await?;
    caller.becomes("a.example", 200).await?;
    // Asked for only now: with its rule from the first request on.
    ensure!(caller.call("c.example").await? == 418, "the rule of c");

    // A service that goes is gone, and back when it is back.
    cluster.delete("serviceentries", "default", "late").await?;
    caller.becomes("late.example", 502).await?;
    cluster.create(entry("late", &["late.example"], calls, app)).await?;
    caller.becomes("late.example", 200).await
}

#[tokio::test]
async fn what_nobody_uses_goes_and_comes_again() -> Result<()> {
    let cluster = Cluster::start(Kind::Embedded).await?;
    let (calls, app) = (free_port(), application().await?);
    prepare(&cluster, calls).await?;
    for name in ["a", "b"] {
        cluster.create(entry(name, &[&format!("{name}.example")], calls, app)).await?;
    }
    let weftd = Weftd::start(&cluster, "weftd").await?;
    let caller = Caller::start(&cluster, weftd.secure, calls, "3s").await?;
    ensure!(caller.call("a.example").await? == 200, "the first request");
    eventually("what nobody uses is given up", async || {
        ensure!(caller.call("b.example").await? == 200, "what is used all the time");
        let asked = caller.asked().await?;
        ensure!(asked.len() == 1, "still asked for: {asked:?}");
        caller.holds(&["b.example"]).await
    })
    .await?;
    ensure!(caller.call("a.example").await? == 200, "asked for once more");
    Ok(())
}

#[tokio::test]
async fn a_control_plane_that_comes_back_takes_nothing_away() -> Result<()> {
    let cluster = Cluster::start(Kind::Embedded).await?;
    let (calls, app) = (free_port(), application().await?);
    prepare(&cluster, calls).await?;
    for name in ["a", "b"] {
        cluster.create(entry(name, &[&format!("{name}.example")], calls, app)).await?;
    }
    let mut weftd = Weftd::start(&cluster, "weftd").await?;
    let current = Arc::new(AtomicU16::new(weftd.secure));
    let caller = Caller::start(&cluster, relay(current.clone()).await?, calls, "1h").await?;
    ensure!(caller.call("a.example").await? == 200, "the first request");
    weftd.process.kill()?;
    for _ in 0..20 {
        ensure!(caller.call("a.example").await? == 200, "what is held needs no control plane");
    }
    let again = Weftd::start(&cluster, "again").await?;
    current.store(again.secure, Ordering::Relaxed);
    // Held up until the proxy has found the new one, and answered by it.
    ensure!(caller.call("b.example").await? == 200, "a first request across the restart");
    ensure!(caller.call("a.example").await? == 200, "what was held before");
    caller.comes_to_hold(&["a.example", "b.example"]).await?;
    cluster.create(rule("a.example", json!({"directResponse": {"status": 418}}))).await?;
    caller.becomes("a.example", 418).await
}
