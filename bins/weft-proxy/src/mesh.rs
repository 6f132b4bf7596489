//! A proxy of the mesh, from settings to the way out: identity, ports, DNS, configuration, traffic, drain.

use crate::admin::Admin;
use crate::admin::server_info::StartOptions;
use crate::cli::Engine;
use crate::dns::{DnsServer, ResolvConf, resolv};
use crate::drain::{self, Times};
use crate::engine::envoy;
use crate::engine::weft::{self, Needs, WeftLive};
use crate::files;
use crate::health;
use crate::identity;
use crate::metrics::{Metrics, Source};
use crate::plane::{Naming, Plane};
use crate::ports::{self, Servers};
use crate::probes::Probes;
use crate::settings::{AgentSettings, node};
use crate::state::{Phase, ProxyState};
use crate::xds::{self, MeshConnect, Subscriptions};
use anyhow::{Context, anyhow};
use prost::Message as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use weft_core::node::NodeType;
use weft_core::well_known::label;
use weft_dataplane::demand::Demands;
use weft_dataplane::{Handle, LocalWorkload};
use weft_proto::envoy::config::core::v3::Node;
use weft_proto::weft::v1::PeerMetadata;
use weft_runtime::{ReadyBlock, memory};
use weft_sds::SvidManager;
use weft_telemetry::Registry;
use weft_xds_client::{Config, Mode};

/// Between two lines that say what is waited for.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Runs until asked to stop.
///
/// # Errors
/// When a setting cannot be used or a port is in use.
pub async fn run(settings: AgentSettings) -> anyhow::Result<()> {
    let node = node::node(&settings).map_err(|error| anyhow!(error))?;
    tracing::info!(node = node.id, control_plane = settings.discovery_address, engine = ?settings.engine, "starting");
    let state = ProxyState::default();
    tokio::spawn(memory::keep_giving_back(state.readiness.clone()));
    let manager = SvidManager::start(settings.svid_config().map_err(|error| anyhow!(error))?);
    tokio::spawn(say_what_is_missing(state.clone()));
    match settings.engine {
        Engine::Weft => run_weft(&settings, node, state, manager).await,
        Engine::Envoy => envoy::run(&settings, &node, state, manager).await,
    }
}

async fn run_weft(settings: &AgentSettings, node: Node, state: ProxyState, manager: SvidManager) -> anyhow::Result<()> {
    let resolv = ResolvConf::parse(&std::fs::read_to_string(resolv::PATH).unwrap_or_default());
    let plane = Plane::new(Naming { namespace: settings.namespace.clone(), search: resolv.search.clone() });
    let registry = Registry::default();
    // Before any port answers: nothing is ready until each of these has been lifted.
    let block = |reason| state.readiness.block(reason);
    let (identity, configuration, listeners) = (block("an identity"), block("configuration"), block("listeners"));
    let metrics =
        Metrics::new(Source::Registry(registry.clone()), state.clone(), Some(manager.stats()), settings.scrape.clone());
    let probes = Probes::of(settings).map_err(|error| anyhow!(error))?;
    let _ports = ports::start(settings.ports, probes, &state, &metrics).await.map_err(|error| anyhow!(error))?;
    let demands = settings.on_demand.map(Demands::new);
    start_dns(settings, (&plane, demands.clone()), &resolv, &metrics).await?;
    tokio::spawn(files::follow(plane.clone()));
    let source: Option<Arc<dyn weft_telemetry::Source>> = demands.clone().map(|demands| Arc::new(demands) as _);
    source.iter().for_each(|source| registry.add_source(Arc::downgrade(source)));
    start_xds(settings, &node, &plane, configuration, &manager, demands.clone());
    let local = local_workload(settings, &node);
    let handle = weft::start(&plane, registry, local, settings.concurrency, settings.drain_duration, demands.clone())?;
    let needs = if settings.role == NodeType::Sidecar { Needs::All } else { Needs::Any };
    tokio::spawn(weft::watch_listeners(handle.clone(), plane.clone(), state.clone(), listeners, needs));
    let _admin = start_admin(settings, node, (&plane, demands), &state, &metrics, &handle, &manager).await?;
    let cause = tokio::select! {
        cause = drain::cause(&state) => cause?,
        () = identity::follow(&manager, plane, identity) => return Err(anyhow!("the identity's keeper ended")),
    };
    let times = Times::of_mesh(settings.termination_drain, settings.exit_on_zero_connections, settings.minimum_drain);
    drain::data_plane(cause, &state, &handle, times).await;
    handle.stop();
    Ok(())
}

async fn start_dns(
    settings: &AgentSettings,
    (plane, demands): (&Plane, Option<Demands>),
    resolv: &ResolvConf,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    if !settings.dns_capture {
        return Ok(());
    }
    let address = &settings.dns_address;
    let parsed =
        address.parse().map_err(|_| anyhow!("environment variable DNS_PROXY_ADDR: {address:?} must be IP:PORT"))?;
    let server = DnsServer::bind(parsed, plane.names(), resolv, demands)
        .await
        .with_context(|| format!("the DNS server's address {address}"))?;
    metrics.set_dns(server.stats());
    tokio::spawn(server.run());
    Ok(())
}

fn start_xds(
    settings: &AgentSettings,
    node: &Node,
    plane: &Plane,
    block: ReadyBlock,
    manager: &SvidManager,
    demands: Option<Demands>,
) {
    let connect = MeshConnect {
        address: settings.discovery_address.clone(),
        name: settings.discovery_name.clone(),
        root_cert_path: settings.root_cert_path.clone(),
        token_path: settings.token_path.clone(),
        secrets: manager.secrets(),
    };
    let prover = connect.clone();
    let config = Config {
        node: node.clone(),
        authority: settings.discovery_address.clone(),
        mode: Mode::Delta,
        headers: Arc::new(move || prover.headers()),
    };
    let (client, updates) = weft_xds_client::start(config, Arc::new(connect));
    let subscriptions = Subscriptions { name_table: settings.dns_capture, demands };
    let server = settings.discovery_address.clone();
    if let Some(probe) = &settings.readiness_probe {
        tokio::spawn(health::follow(probe.clone(), client.clone()));
    }
    tokio::spawn(xds::follow(client, updates, plane.clone(), block, server, subscriptions));
}

async fn start_admin(
    settings: &AgentSettings,
    node: Node,
    (plane, demands): (&Plane, Option<Demands>),
    state: &ProxyState,
    metrics: &Metrics,
    handle: &Handle,
    manager: &SvidManager,
) -> anyhow::Result<Servers> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, settings.ports.admin));
    let listener = TcpListener::bind(address).await.with_context(|| format!("the admin port {address}"))?;
    let drain_time = settings.drain_duration;
    let admin = Admin {
        demands,
        state: state.clone(),
        metrics: metrics.clone(),
        held: plane.held.clone(),
        live: Arc::new(WeftLive { handle: handle.clone(), plane: plane.clone(), drain_time }),
        identity: Some(manager.secrets()),
        node: node.clone(),
        options: StartOptions {
            concurrency: u32::try_from(weft::workers(settings.concurrency).get()).unwrap_or(u32::MAX),
            config_path: String::new(),
            drain_time,
        },
    };
    let bootstrap = weft_proto::envoy::config::bootstrap::v3::Bootstrap { node: Some(node), ..Default::default() };
    plane.held.set_bootstrap(&bootstrap.encode_to_vec());
    let mut servers = Servers::default();
    servers.add(listener, admin.handler());
    Ok(servers)
}

/// This workload as metrics and peers name it.
fn local_workload(settings: &AgentSettings, node: &Node) -> LocalWorkload {
    let labels = &settings.labels;
    let first = |names: &[&str]| names.iter().find_map(|name| labels.get(*name).cloned());
    let env = |name: &str| settings.environment.get(name).unwrap_or_default().to_owned();
    let workload_name = match env("ISTIO_META_WORKLOAD_NAME") {
        name if name.is_empty() => settings.pod.clone(),
        name => name,
    };
    let service =
        first(&[label::CANONICAL_NAME, "app.kubernetes.io/name", "app"]).unwrap_or_else(|| workload_name.clone());
    let revision = first(&[label::CANONICAL_REVISION, "app.kubernetes.io/version", "version"]);
    let locality = node.locality.clone().unwrap_or_default();
    let metadata = PeerMetadata {
        name: settings.pod.clone(),
        namespace: settings.namespace.clone(),
        cluster_id: settings.cluster_id.clone(),
        owner: env("ISTIO_META_OWNER"),
        workload_name,
        canonical_service: service,
        canonical_revision: revision.unwrap_or_else(|| "latest".to_owned()),
        app: labels.get("app").cloned().unwrap_or_default(),
        version: labels.get("version").cloned().unwrap_or_default(),
        locality: format!("{}/{}/{}", locality.region, locality.zone, locality.sub_zone)
            .trim_end_matches('/')
            .to_owned(),
    };
    LocalWorkload { metadata, node_id: node.id.clone(), node_cluster: node.cluster.clone() }
}

/// A line every few seconds while the proxy is not ready, and one when it is.
async fn say_what_is_missing(state: ProxyState) {
    loop {
        tokio::select! {
            () = state.readiness.wait() => {
                if state.phase() == Phase::Live {
                    tracing::info!(milliseconds = state.started.elapsed().as_millis(), "ready");
                }
                // Readiness lost later is said again.
                while state.readiness.is_ready() {
                    tokio::time::sleep(SAY_EVERY).await;
                }
            }
            () = tokio::time::sleep(SAY_EVERY) => {
                if let (Phase::Initializing, Err(reason)) = (state.phase(), state.ready()) {
                    tracing::warn!("not ready: {reason}");
                }
            }
        }
    }
}
