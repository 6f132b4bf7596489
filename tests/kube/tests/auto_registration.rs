//! Workloads that register themselves: a real proxy of a machine that is no pod, a real control plane, and the API server
//! between them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use weft_kube_tests::process::Process;
use weft_kube_tests::{Cluster, Proxy, Weftd, check, eventually, objects, on_both, target};
use weft_test_ports::free_port;

on_both!(a_machine_comes_falls_ill_and_goes);

const CLUSTER: &str = "outbound|38080||web.shop.svc.cluster.local";
const ENTRY: &str = "web-127.0.0.1-vms";

fn program() -> PathBuf {
    std::env::var_os("WEFT_BIN_DIR").map_or_else(|| target().join("debug"), PathBuf::from).join("weft-proxy")
}

/// An application that answers every request with the status of the moment.
async fn application() -> Result<(u16, Arc<AtomicU16>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (port, status) = (listener.local_addr()?.port(), Arc::new(AtomicU16::new(503)));
    let shown = status.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = format!(
                "HTTP/1.1 {} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                shown.load(Ordering::Relaxed)
            );
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    Ok((port, status))
}

/// weft-proxy as on a machine: a name, an address, a token of `account`, and the group.
async fn machine(cluster: &Cluster, weftd: &Weftd, name: &str, account: &str, probed: u16) -> Result<Process> {
    let file = |ending: &str| cluster.dir().join(format!("{name}.{ending}"));
    std::fs::write(file("root.pem"), weft_kube_tests::proxy::root(cluster, "shop").await?)?;
    std::fs::write(file("token"), cluster.token("shop", account, &["istio-ca"]).await?)?;
    let probe = json!({"httpGet": {"port": probed, "path": "/ready"}, "periodSeconds": 1, "failureThreshold": 1});
    let config = json!({
        "discoveryAddress": format!("127.0.0.1:{}", weftd.secure), "statusPort": free_port(),
        "proxyAdminPort": free_port(), "concurrency": 1, "terminationDrainDuration": "1s", "readinessProbe": probe,
    });
    let text = |path: PathBuf| path.display().to_string();
    let env = [
        ("POD_NAME", name.to_string()),
        ("POD_NAMESPACE", "shop".into()),
        ("SERVICE_ACCOUNT", account.into()),
        ("INSTANCE_IP", "127.0.0.1".into()),
        ("TRUST_DOMAIN", "cluster.local".into()),
        ("ISTIO_META_AUTO_REGISTER_GROUP", "web".into()),
        ("ISTIO_META_INTERCEPTION_MODE", "NONE".into()),
        // No label that the group does not give: it would choose services and policies.
        ("ISTIO_METAJSON_LABELS", json!({"tier": "db", "version": "v0"}).to_string()),
        ("ISTIO_META_NETWORK", "vms".into()),
        ("PROXY_CONFIG", config.to_string()),
        ("ENVOY_STATUS_PORT", free_port().to_string()),
        ("ENVOY_PROMETHEUS_PORT", free_port().to_string()),
        ("WEFT_ROOT_CERT", text(file("root.pem"))),
        ("WEFT_TOKEN", text(file("token"))),
        ("WEFT_SDS_SOCKET", text(file("sds.sock"))),
    ];
    let args = ["proxy", "sidecar", "--domain", "shop.svc.cluster.local"].map(str::to_string);
    Process::start(&program(), &args, &env, &file("log"))
        .with_context(|| format!("{}: build it with: cargo build -p weft-proxy", program().display()))
}

async fn healthy(cluster: &Cluster, status: &str) -> Result<Value> {
    eventually(&format!("Healthy={status}"), async || {
        let entry = cluster.get("workloadentries", "shop", ENTRY).await?;
        // The entry is there before its status.
        let status_now = entry.body.get("status").context("no status yet")?;
        let conditions = status_now["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|c| c["type"] == "Healthy").context("no condition yet")?;
        ensure!(found["status"] == status, "{found}");
        Ok(found)
    })
    .await
}

async fn a_machine_comes_falls_ill_and_goes(cluster: Cluster) -> Result<()> {
    cluster.install().await?;
    cluster.namespace("shop", &[]).await?;
    for account in ["web", "stranger"] {
        cluster.service_account("shop", account).await?;
    }
    let account = cluster.account("istio-system", "istiod").await?;
    let mut weftd = Weftd::spawn(&cluster, "weftd-0", &account, &["--workload-entry-grace=1s"])?;
    weftd.ready().await?;
    let (port, status) = application().await?;
    cluster
        .create(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "metadata": {"labels": {"app": "web", "version": "v1"}, "annotations": {"example.com/rack": "7"}},
                "template": {"serviceAccount": "web", "ports": {"http": port}},
                "probe": {"httpGet": {"port": port}},
            },
        }))
        .await?;
    let mut service = objects::service("shop", "web");
    service["spec"]["ports"] = json!([{"name": "http", "port": 38080, "targetPort": 1}]);
    cluster.create(service).await?;
    cluster.create(objects::pod("shop", "client", "client")).await?;
    cluster
        .client
        .patch_status(weft_kube_tests::cluster::kind("pods")?, "shop", "client", &objects::running("10.1.0.9"))
        .await?;
    let mut client = Proxy::connect(&cluster, &weftd, "shop", "client", "10.1.0.9").await?;

    // Another account of the namespace may not stand for the group.
    let stranger = machine(&cluster, &weftd, "stranger", "stranger", port).await?;
    weftd.says("not registered: the group is for service account web, but the caller is stranger").await?;
    ensure!(cluster.list("workloadentries", "shop").await?.is_empty(), "an entry for a stranger");
    drop(stranger);

    // The entry is the template with what the machine knows; unwell, it gets no traffic.
    let machine = machine(&cluster, &weftd, "vm-1", "web", port).await?;
    let unwell = healthy(&cluster, "False").await?;
    ensure!(unwell["message"].as_str().is_some_and(|m| m.contains("503")), "{unwell}");
    let entry = cluster.get("workloadentries", "shop", ENTRY).await?;
    let spec = &entry.body["spec"];
    let shown = (&spec["address"], &spec["serviceAccount"], &spec["network"], &spec["labels"]);
    let labels = json!({"app": "web", "version": "v1"});
    ensure!(shown == (&json!("127.0.0.1"), &json!("web"), &json!("vms"), &labels), "{spec}");
    ensure!(json!(entry.metadata.labels) == labels, "{:?}", entry.metadata.labels);
    let annotations = entry.metadata.annotations.clone().unwrap_or_default();
    for (name, value) in [
        ("istio.io/autoRegistrationGroup", "web"),
        ("istio.io/workloadController", "weftd-0"),
        ("example.com/rack", "7"),
    ] {
        ensure!(annotations.get(name).is_some_and(|v| v == value), "{name}: {annotations:?}");
    }
    ensure!(entry.metadata.owner_references.as_ref().is_some_and(|o| o.len() == 1), "it goes with its group");
    client.has_endpoints(CLUSTER, &[]).await?;

    status.store(200, Ordering::Relaxed);
    healthy(&cluster, "True").await?;
    client.has_endpoints(CLUSTER, &["127.0.0.1"]).await?;

    status.store(500, Ordering::Relaxed);
    healthy(&cluster, "False").await?;
    client.has_endpoints(CLUSTER, &[]).await?;

    // Gone for longer than the grace period.
    drop(machine);
    eventually("the entry goes", async || {
        check(cluster.list("workloadentries", "shop").await?.is_empty(), "it is still there")
    })
    .await?;
    weftd.process.check()
}
