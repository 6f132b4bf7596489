//! The control plane under many proxies: an API server in this process, weftd as users get it, and simulated proxies that
//! subscribe to all that a real one subscribes to, take it, and say so.

use crate::report::Metric;
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use weft_kube_tests::{Cluster, Kind, Weftd, objects, proxy};
use weft_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_proto::type_url;
use weft_store::client::WriteOptions;

const SYNC: Metric = Metric { name: "all proxies connect at once, until all have everything", unit: "s" };
const RESTART: Metric = Metric { name: "weftd is killed and started, until all have everything", unit: "s" };
const PER_PROXY: Metric = Metric { name: "memory of weftd per connected proxy", unit: "MB" };
const BASE: Metric = Metric { name: "memory of weftd without proxies", unit: "MB" };
const ENDPOINT_P50: Metric = Metric { name: "endpoint change, until every proxy has it, p50", unit: "ms" };
const ENDPOINT_P99: Metric = Metric { name: "endpoint change, until every proxy has it, p99", unit: "ms" };
const ROUTE_P50: Metric = Metric { name: "route change, until one proxy has it, p50", unit: "ms" };
const ROUTE_P99: Metric = Metric { name: "route change, until one proxy has it, p99", unit: "ms" };
const CPU: Metric = Metric { name: "CPU of weftd for an endpoint change, all proxies", unit: "ms" };

const NAMESPACES: usize = 50;
const ENDPOINTS: usize = 3;
/// Objects created at the same time.
const WRITERS: usize = 16;
/// Longest time until all have everything.
const LIMIT: Duration = Duration::from_secs(180);
/// Longest pause between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(200);
/// What one response may hold.
const MOST_BYTES: usize = 256 << 20;

/// How large the mesh is.
#[derive(Clone, Copy)]
pub struct Size {
    /// Services, each with a pod for every endpoint.
    pub services: usize,
    /// Proxies connected.
    pub proxies: usize,
    /// Changes of each kind.
    pub changes: usize,
}

/// What a simulated proxy has received.
struct Received {
    proxy: usize,
    type_url: String,
    names: Vec<String>,
    at: Instant,
}

/// Measures all of it once.
pub fn run(size: Size) -> Result<Vec<(Metric, f64)>> {
    tokio::runtime::Runtime::new()?.block_on(measure(size))
}

async fn measure(size: Size) -> Result<Vec<(Metric, f64)>> {
    let cluster = Cluster::start(Kind::Embedded).await?;
    fill(&cluster, size).await?;
    let mut weftd = Weftd::start(&cluster, "weftd").await?;
    let base = weftd.process.memory_mib()?;

    let (sender, mut received) = mpsc::unbounded_channel();
    let begun = Instant::now();
    let port = Arc::new(AtomicUsize::new(usize::from(weftd.secure)));
    let _proxies = connect_all(&cluster, size, &port, &sender).await?;
    until_synced(&mut received, size).await?;
    let sync = begun.elapsed();
    let grown = weftd.process.memory_mib()?.saturating_sub(base);

    let cpu_before = cpu(&weftd)?;
    let endpoint = endpoint_changes(&cluster, size, &mut received).await?;
    let cpu = (cpu(&weftd)? - cpu_before) / size.changes as f64;
    let route = route_changes(&cluster, size, &mut received).await?;

    let begun = Instant::now();
    weftd.process.kill()?;
    while received.try_recv().is_ok() {}
    let again = Weftd::start(&cluster, "weftd-again").await?;
    port.store(usize::from(again.secure), Ordering::Relaxed);
    until_synced(&mut received, size).await?;
    let restart = begun.elapsed();

    let mib = 1024.0 * 1024.0 / 1e6;
    Ok(vec![
        (SYNC, sync.as_secs_f64()),
        (RESTART, restart.as_secs_f64()),
        (BASE, base as f64 * mib),
        (PER_PROXY, grown as f64 * mib / size.proxies as f64),
        (ENDPOINT_P50, percentile(&endpoint, 0.5)),
        (ENDPOINT_P99, percentile(&endpoint, 0.99)),
        (ROUTE_P50, percentile(&route, 0.5)),
        (ROUTE_P99, percentile(&route, 0.99)),
        (CPU, cpu * 1e3),
    ])
}

fn percentile(times: &[Duration], share: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// CPU seconds that weftd has used.
fn cpu(weftd: &Weftd) -> Result<f64> {
    crate::child::cpu_of(weftd.process.pid().as_raw().unsigned_abs()).map(|time| time.as_secs_f64())
}

fn namespace(service: usize) -> String {
    format!("load-{}", service % NAMESPACES)
}

fn service(index: usize) -> String {
    format!("app-{index}")
}

fn pod(index: usize) -> String {
    format!("{}-{}", service(index / ENDPOINTS), index % ENDPOINTS)
}

async fn fill(cluster: &Cluster, size: Size) -> Result<()> {
    for index in 0..NAMESPACES {
        cluster.namespace(&namespace(index), &[]).await?;
    }
    let mut tasks = JoinSet::new();
    for first in 0..WRITERS {
        let client = cluster.client.clone();
        tasks.spawn(async move {
            let options = WriteOptions::default();
            for index in (first..size.services).step_by(WRITERS) {
                let space = namespace(index);
                let all = (index * ENDPOINTS..(index + 1) * ENDPOINTS).map(|n| (pod(n), objects::address(n)));
                let pods: Vec<(String, String)> = all.collect();
                for (name, address) in &pods {
                    let mut object = objects::pod(&space, name, &service(index));
                    object["status"] = objects::running(address);
                    client.create(&serde_json::from_value(object)?, &options).await?;
                }
                let made = [
                    objects::service(&space, &service(index)),
                    objects::slice(&space, &service(index), &pods),
                    objects::virtual_service(&space, &service(index), None),
                ];
                for object in made {
                    client.create(&serde_json::from_value(object)?, &options).await?;
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Starts every proxy; each goes on connecting until its handle is dropped.
async fn connect_all(
    cluster: &Cluster,
    size: Size,
    port: &Arc<AtomicUsize>,
    received: &UnboundedSender<Received>,
) -> Result<JoinSet<()>> {
    let root: Arc<str> = proxy::root(cluster, "default").await?.into();
    let mut tokens = Vec::new();
    for index in 0..NAMESPACES {
        tokens.push(cluster.token(&namespace(index), "default", &["istio-ca"]).await?);
    }
    let mut proxies = JoinSet::new();
    for index in 0..size.proxies {
        // The first pod of each service in turn.
        let (of, number) =
            (index % size.services, index % size.services * ENDPOINTS + index / size.services % ENDPOINTS);
        let (space, port, root, received) = (namespace(of), port.clone(), root.clone(), received.clone());
        let (token, ip) = (tokens[of % NAMESPACES].clone(), objects::address(number));
        let id = format!("sidecar~{ip}~{}.{space}~{space}.svc.cluster.local", pod(number));
        let node = serde_json::json!({"id": id, "metadata": {"NAMESPACE": space, "WEFT": "1"}});
        proxies.spawn(async move {
            loop {
                let port = port.load(Ordering::Relaxed) as u16;
                // Why a stream ended is weftd's to log; what counts here is what arrives.
                let _ = stream(port, &root, &token, &node, index, &received).await;
                tokio::time::sleep(AGAIN).await;
            }
        });
    }
    Ok(proxies)
}

/// One stream until it ends.
async fn stream(
    port: u16,
    root: &str,
    token: &str,
    node: &serde_json::Value,
    proxy: usize,
    received: &UnboundedSender<Received>,
) -> Result<()> {
    let channel = proxy::channel(port, root).await?;
    let (requests, receiver) = mpsc::channel(64);
    let mut request = tonic::Request::new(ReceiverStream::new(receiver));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let mut node = Some(weft_proto::json::from_json(node)?);
    for (type_url, names) in
        [(type_url::CLUSTER, &[][..]), (type_url::LISTENER, &[]), (type_url::VIRTUAL_HOST, &["80/*"])]
    {
        let names = names.iter().map(ToString::to_string).collect();
        let subscribe = DeltaDiscoveryRequest {
            node: node.take(),
            type_url: type_url.into(),
            resource_names_subscribe: names,
            ..Default::default()
        };
        requests.send(subscribe).await?;
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MOST_BYTES);
    let mut responses = client.delta_aggregated_resources(request).await?.into_inner();
    while let Some(response) = responses.message().await? {
        let at = Instant::now();
        let names: Vec<String> = response.resources.iter().map(|resource| resource.name.clone()).collect();
        requests.send(acknowledgement(&response)).await?;
        if response.type_url == type_url::CLUSTER {
            // As a proxy does: for each cluster that it learns of, its endpoints.
            let of_services = names.iter().filter(|name| name.starts_with("outbound|")).cloned().collect();
            let subscribe = DeltaDiscoveryRequest {
                type_url: type_url::ENDPOINT.into(),
                resource_names_subscribe: of_services,
                ..Default::default()
            };
            requests.send(subscribe).await?;
        }
        let _ = received.send(Received { proxy, type_url: response.type_url, names, at });
    }
    Ok(())
}

/// The answer to a response.
fn acknowledgement(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..Default::default()
    }
}

/// Waits until every proxy has a cluster and a virtual host of every service.
async fn until_synced(received: &mut UnboundedReceiver<Received>, size: Size) -> Result<()> {
    let mut missing: Vec<(BTreeSet<String>, BTreeSet<String>)> =
        (0..size.proxies).map(|_| Default::default()).collect();
    let mut done = 0;
    let end = tokio::time::Instant::now() + LIMIT;
    while done < size.proxies {
        let next = tokio::time::timeout_at(end, received.recv()).await;
        let next = next.with_context(|| format!("{done} of {} proxies have everything", size.proxies))?;
        let next = next.context("the simulation ended")?;
        let (clusters, hosts) = &mut missing[next.proxy];
        let complete = |clusters: &BTreeSet<String>, hosts: &BTreeSet<String>| {
            clusters.len() >= size.services && hosts.len() >= size.services
        };
        let before = complete(clusters, hosts);
        match next.type_url.as_str() {
            type_url::CLUSTER => {
                clusters.extend(next.names.into_iter().filter(|name| name.starts_with("outbound|80|")));
            }
            type_url::VIRTUAL_HOST => hosts.extend(next.names),
            _ => {}
        }
        done += usize::from(!before && complete(clusters, hosts));
    }
    Ok(())
}

async fn endpoint_changes(
    cluster: &Cluster,
    size: Size,
    received: &mut UnboundedReceiver<Received>,
) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for turn in 0..size.changes {
        let index = turn % size.services;
        let count = 1 + turn % (ENDPOINTS - 1);
        let pods: Vec<_> = (index * ENDPOINTS..).take(count).map(|n| (pod(n), objects::address(n))).collect();
        let wanted = format!("outbound|80||{}.{}.svc.cluster.local", service(index), namespace(index));
        let begun = Instant::now();
        cluster.apply_value(objects::slice(&namespace(index), &service(index), &pods)).await?;
        times.push(until_all(received, size.proxies, type_url::ENDPOINT, &wanted).await? - begun);
    }
    Ok(times)
}

async fn route_changes(
    cluster: &Cluster,
    size: Size,
    received: &mut UnboundedReceiver<Received>,
) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for turn in 0..size.changes {
        let index = turn % size.services;
        let mut object = objects::virtual_service(&namespace(index), &service(index), None);
        object["spec"]["http"][0]["timeout"] = format!("{}ms", 1000 + turn).into();
        let wanted = format!("80/{}.{}.svc.cluster.local", service(index), namespace(index));
        let begun = Instant::now();
        cluster.apply_value(object).await?;
        times.push(until_all(received, 1, type_url::VIRTUAL_HOST, &wanted).await? - begun);
    }
    Ok(times)
}

/// Waits until that many proxies have received a resource whose name begins so; the time of the last of them.
async fn until_all(
    received: &mut UnboundedReceiver<Received>,
    count: usize,
    type_url: &str,
    name: &str,
) -> Result<Instant> {
    let mut have = BTreeSet::new();
    let end = tokio::time::Instant::now() + LIMIT;
    loop {
        let next = tokio::time::timeout_at(end, received.recv()).await;
        let next = next.with_context(|| format!("{name}: {} of {count} proxies have it", have.len()))?;
        let next = next.context("the simulation ended")?;
        if next.type_url == type_url && next.names.iter().any(|other| other.starts_with(name)) {
            have.insert(next.proxy);
        }
        if have.len() >= count {
            ensure!(count > 0, "no proxy");
            return Ok(next.at);
        }
    }
}
