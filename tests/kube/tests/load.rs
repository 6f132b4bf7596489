//! A large cluster: how long weftd takes to know it, how much memory that is, and what following its changes costs.
//!
//! `WEFT_KUBE_LOAD=full` is the size that is promised (5000 services, 20 000 pods, 200 changes a second), for an optimised
//! weftd; without it a tenth, on which the same limits hold.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use weft_kube_tests::cluster::kind;
use weft_kube_tests::{Cluster, Kind, Proxy, Weftd, check, eventually, objects};
use weft_store::ApiClient;
use weft_store::client::WriteOptions;

/// Requests that are under way at the same time while the cluster is filled.
const WRITERS: usize = 24;
/// Connections over which pods are changed, and changes that are under way on each at the same time.
const CONNECTIONS: u32 = 8;
const AT_ONCE: u32 = 8;
const PODS_PER_SERVICE: usize = 4;
const SYNC_LIMIT: Duration = Duration::from_secs(20);
const MEMORY_LIMIT_MIB: u64 = 400;
/// Cores used while changes are followed.
const CPU_LIMIT: f64 = 1.0;

struct Size {
    services: usize,
    namespaces: usize,
    changes_per_second: u32,
    seconds: u32,
}

fn size() -> Size {
    match std::env::var("WEFT_KUBE_LOAD").as_deref() {
        Ok("full") => Size { services: 5000, namespaces: 50, changes_per_second: 200, seconds: 30 },
        _ => Size { services: 500, namespaces: 10, changes_per_second: 50, seconds: 8 },
    }
}

/// Does `work` for every number below `count`, some at the same time.
async fn each<F>(count: usize, work: impl Fn(usize) -> F + Send + Sync + 'static) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let work = Arc::new(work);
    let mut tasks = JoinSet::new();
    for first in 0..WRITERS.min(count) {
        let work = work.clone();
        tasks.spawn(async move {
            for n in (first..count).step_by(WRITERS) {
                work(n).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn create(client: &ApiClient, value: Value) -> Result<()> {
    Ok(client.create(&serde_json::from_value(value)?, &WriteOptions::default()).await.map(drop)?)
}

/// A pod as it is in a cluster: with an owner, volumes, environment, probes; most of it is no business of weftd's.
fn real_pod(namespace: &str, name: &str, app: &str) -> Value {
    let mut pod = objects::pod(namespace, name, app);
    let env: Vec<Value> =
        (0..12).map(|i| json!({"name": format!("SETTING_{i}"), "value": format!("value number {i}")})).collect();
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 5});
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        container["env"] = env.clone().into();
        container["readinessProbe"] = probe.clone();
        container["resources"] = json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}});
    }
    pod["spec"]["nodeName"] = "node-1".into();
    pod["metadata"]["labels"]["pod-template-hash"] = "5c6f7d8b9".into();
    pod["metadata"]["annotations"] =
        json!({"sidecar.istio.io/status": "{\"initContainers\":[\"istio-init\"]}", "note": "x".repeat(200)});
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-5c6f7d8b9"), "controller": true,
        "uid": "11111111-2222-3333-4444-555555555555",
    }]);
    pod
}

struct Names;

impl Names {
    fn namespace(size: &Size, service: usize) -> String {
        format!("load-{}", service % size.namespaces)
    }

    fn service(service: usize) -> String {
        format!("app-{service}")
    }

    /// Pod `n`: its namespace, its service and its name.
    fn pod(size: &Size, n: usize) -> (String, String, String) {
        let service = n / PODS_PER_SERVICE;
        let app = Self::service(service);
        (Self::namespace(size, service), app.clone(), format!("{app}-{}", n % PODS_PER_SERVICE))
    }
}

async fn fill(cluster: &Cluster, size: &Arc<Size>) -> Result<()> {
    for n in 0..size.namespaces {
        cluster.namespace(&format!("load-{n}"), &[]).await?;
    }
    let (client, of) = (cluster.client.clone(), size.clone());
    let services = move |n: usize| {
        let (client, of) = (client.clone(), of.clone());
        async move {
            let (namespace, app) = (Names::namespace(&of, n), Names::service(n));
            let first = n * PODS_PER_SERVICE;
            let pods = (first..first + PODS_PER_SERVICE).map(|p| (Names::pod(&of, p).2, objects::address(p)));
            create(&client, objects::service(&namespace, &app)).await?;
            create(&client, objects::slice(&namespace, &app, &pods.collect::<Vec<_>>())).await
        }
    };
    each(size.services, services).await?;
    let (client, of) = (cluster.client.clone(), size.clone());
    let pods = move |n: usize| {
        let (client, of) = (client.clone(), of.clone());
        async move {
            let (namespace, app, name) = Names::pod(&of, n);
            create(&client, real_pod(&namespace, &name, &app)).await?;
            let status = objects::running(&objects::address(n));
            Ok(client.patch_status(kind("pods")?, &namespace, &name, &status).await.map(drop)?)
        }
    };
    each(size.services * PODS_PER_SERVICE, pods).await
}

/// Changes labels of pods at a constant rate; every change makes another workload of the pod. From a thread of its own: the
/// proxy that takes what comes of it needs time too.
async fn change(kubeconfig: PathBuf, size: Arc<Size>) -> Result<u32> {
    let total = size.changes_per_second * size.seconds;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = ApiClient::from_kubeconfig(&kubeconfig, None).await?;
        // Connections are made now and kept: what is measured is weftd, not handshakes.
        client.get(kind("namespaces")?, "", "default").await?;
        clients.push(client);
    }
    let begun = tokio::time::Instant::now();
    let writers = CONNECTIONS * AT_ONCE;
    let mut tasks = JoinSet::new();
    for first in 0..writers {
        let client = clients.get(usize::try_from(first % CONNECTIONS)?).cloned().context("a connection")?;
        let size = size.clone();
        tasks.spawn(async move {
            let pods = size.services * PODS_PER_SERVICE;
            for n in (first..total).step_by(writers as usize) {
                tokio::time::sleep_until(begun + Duration::from_secs(1) * n / size.changes_per_second).await;
                let (namespace, _, name) = Names::pod(&size, (n as usize * 7919) % pods);
                let patch = json!({"metadata": {"labels": {"version": format!("v{n}")}}});
                client.merge_patch(kind("pods")?, &namespace, &name, &patch).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(total)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_cluster() -> Result<()> {
    let size = Arc::new(size());
    let cluster = Cluster::start(Kind::Real).await?;
    cluster.install().await?;
    let begun = Instant::now();
    fill(&cluster, &size).await?;
    let pods = size.services * PODS_PER_SERVICE;
    println!("{} services, {pods} pods: filled in {:.1?}", size.services, begun.elapsed());

    let begun = Instant::now();
    let account = cluster.account("istio-system", "istiod").await?;
    let mut weftd = Weftd::spawn(&cluster, "weftd-0", &account, &[])?;
    weftd.ready().await?;
    let (synced, cpu) = (begun.elapsed(), weftd.process.cpu_time()?);
    println!(
        "ready after {synced:.1?} ({cpu:.1?} of processor time), {} MiB, at most {} MiB",
        weftd.process.memory_mib()?,
        weftd.process.peak_memory_mib()?
    );
    ensure!(synced <= SYNC_LIMIT, "initial sync took {synced:?}");

    // A proxy of one namespace that sees all.
    let mut proxy = Proxy::connect(&cluster, &weftd, "load-0", "app-0-0", &objects::address(0)).await?;
    let last = format!(
        "outbound|80||{}.{}.svc.cluster.local",
        Names::service(size.services - 1),
        Names::namespace(&size, size.services - 1)
    );
    proxy
        .until("all clusters", |p| check(p.endpoints.contains_key(&last), &format!("{} clusters", p.clusters.len())))
        .await?;
    println!("with a proxy: {} MiB", weftd.process.memory_mib()?);

    let (begun, before) = (Instant::now(), weftd.process.cpu_time()?);
    let (kubeconfig, of) = (cluster.kubeconfig(), size.clone());
    let changing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(change(kubeconfig, of))
    });
    while !changing.is_finished() {
        let end = tokio::time::sleep(Duration::from_millis(100));
        tokio::pin!(end);
        // Takes what comes meanwhile: a proxy that does not read would be no load.
        let _ = tokio::select! {
            () = &mut end => Ok(()),
            taken = proxy.until("never", |_| anyhow::bail!("go on")) => taken,
        };
    }
    let changes = changing.join().map_err(|_| anyhow!("the writers panicked"))??;
    let (lasted, used) = (begun.elapsed(), weftd.process.cpu_time()? - before);
    let cores = used.as_secs_f64() / lasted.as_secs_f64();
    let rate = f64::from(changes) / lasted.as_secs_f64();
    println!(
        "{changes} changes in {lasted:.1?} ({rate:.0} a second): {cores:.2} cores, {} MiB, at most {} MiB",
        weftd.process.memory_mib()?,
        weftd.process.peak_memory_mib()?
    );

    // The last state is known soon after: an endpoint that goes is told.
    let app = Names::service(0);
    let slice =
        json!({"endpoints": objects::slice("load-0", &app, &[("app-0-0".into(), objects::address(0))])["endpoints"]});
    let begun = Instant::now();
    cluster.client.merge_patch(kind("endpointslices")?, "load-0", &format!("{app}-1"), &slice).await?;
    let name = format!("outbound|80||{app}.load-0.svc.cluster.local");
    proxy.has_endpoints(&name, &[&objects::address(0)]).await?;
    println!("the next change reached the proxy after {:.0?}", begun.elapsed());
    ensure!(begun.elapsed() < Duration::from_secs(15), "weftd lags behind by {:?}", begun.elapsed());
    eventually("memory", async || {
        let held = weftd.process.memory_mib()?;
        ensure!(held <= MEMORY_LIMIT_MIB, "{held} MiB");
        Ok(())
    })
    .await?;
    ensure!(cores <= CPU_LIMIT, "{cores:.2} cores");
    weftd.process.check()
}
