//! A run from an Envoy bootstrap file: static resources, ADS, or both. No identity of its own, no agent ports but admin.

use crate::admin::Admin;
use crate::admin::server_info::StartOptions;
use crate::cli::{BootstrapArgs, Mode};
use crate::drain::{self, Times};
use crate::engine::weft::{self, Needs, WeftLive};
use crate::metrics::{Metrics, Source};
use crate::plane::{Naming, Plane};
use crate::ports::Servers;
use crate::state::ProxyState;
use crate::xds::{self, ClusterConnect, Subscriptions};
use anyhow::{Context, anyhow, bail};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use weft_dataplane::{Handle, LocalWorkload};
use weft_proxy_config::{Bootstrap, load_bootstrap};
use weft_runtime::memory;
use weft_telemetry::Registry;
use weft_xds_client::{Config, Mode as XdsMode};

/// Largest bootstrap file.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// Reads the file, and serves or only says what is wrong with it.
///
/// # Errors
/// When the file cannot be used, or a listener cannot be opened.
pub async fn run(path: &Path, args: &BootstrapArgs) -> anyhow::Result<()> {
    let mut bootstrap = read(path)?;
    if let Some(cluster) = &args.service_cluster {
        bootstrap.node.cluster.clone_from(cluster);
    }
    if let Some(id) = &args.service_node {
        bootstrap.node.id.clone_from(id);
    }
    let plane = Plane::new(Naming::default());
    apply(path, &bootstrap, &plane)?;
    // Compiled by now, and kept for dumps.
    bootstrap.resources = Vec::new();
    bootstrap.message = Vec::new();
    if args.mode == Mode::Validate {
        println!("configuration '{}' OK", path.display());
        return Ok(());
    }
    serve(bootstrap, plane, args, path).await
}

fn read(path: &Path) -> anyhow::Result<Bootstrap> {
    let shown = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("bootstrap {shown}"))?.len();
    if size > MAX_FILE {
        bail!("bootstrap {shown}: {size} bytes are too many; the limit is {MAX_FILE}");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("bootstrap {shown}"))?;
    // A thread of its own has a heap of its own: what reading leaves free does not lie between what stays.
    let reading = std::thread::spawn(move || load_bootstrap(&text));
    let read = reading.join().map_err(|_| anyhow!("bootstrap {shown}: reading it failed"))?;
    read.with_context(|| format!("bootstrap {shown}"))
}

/// Takes the static resources in; a file with one that cannot be used is not run at all.
fn apply(path: &Path, bootstrap: &Bootstrap, plane: &Plane) -> anyhow::Result<()> {
    plane.held.set_bootstrap(&bootstrap.message);
    let mut refused = Vec::new();
    for update in &bootstrap.resources {
        let kind = update.type_url.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        refused.extend(plane.apply(update, true).into_iter().map(|(name, why)| format!("{kind} {name}: {why}")));
    }
    match refused.is_empty() {
        true => Ok(()),
        false => bail!("bootstrap {}: {}", path.display(), refused.join("\n")),
    }
}

async fn serve(bootstrap: Bootstrap, plane: Plane, args: &BootstrapArgs, path: &Path) -> anyhow::Result<()> {
    let state = ProxyState::default();
    let block = |reason| state.readiness.block(reason);
    let starting = block("listeners");
    // First of all: it looks at what is mapped before anything else is.
    tokio::spawn(memory::keep_giving_back(state.readiness.clone()));
    let registry = Registry::default();
    let (node_id, node_cluster) = (bootstrap.node.id.clone(), bootstrap.node.cluster.clone());
    let local = LocalWorkload { node_id, node_cluster, ..LocalWorkload::default() };
    let drain = Duration::from_secs(args.drain_time_s);
    let handle = weft::start(&plane, registry.clone(), local, args.concurrency, drain, None)?;
    handle.wait_ready().await;
    if let Some(reason) = weft::unbound(&handle, Needs::All) {
        bail!("cannot open {reason}");
    }
    if let Some(ads) = &bootstrap.ads {
        let config = Config {
            node: bootstrap.node.clone(),
            authority: ads.authority.clone(),
            mode: if ads.delta { XdsMode::Delta } else { XdsMode::StateOfTheWorld },
            headers: Arc::new(|| Ok(Vec::new())),
        };
        let connect = ClusterConnect { snapshot: plane.snapshot(), cluster: ads.cluster.clone() };
        let (client, updates) = weft_xds_client::start(config, Arc::new(connect));
        let subscriptions = Subscriptions { name_table: false, demands: None };
        let server = format!("cluster {}", ads.cluster);
        tokio::spawn(xds::follow(client, updates, plane.clone(), block("configuration"), server, subscriptions));
        let watch = weft::watch_listeners(handle.clone(), plane.clone(), state.clone(), block("listeners"), Needs::Any);
        tokio::spawn(watch);
    }
    drop(starting);
    let _servers = admin(&bootstrap, &plane, &state, registry, &handle, args, path).await?;
    tracing::info!(
        listeners = handle.listeners().len(),
        workers = weft::workers(args.concurrency),
        admin = bootstrap.admin.map(tracing::field::display),
        "serving {}",
        path.display()
    );
    let cause = drain::cause(&state).await?;
    drain::data_plane(cause, &state, &handle, Times::of_bootstrap(args.drain_time_s)).await;
    handle.stop();
    Ok(())
}

async fn admin(
    bootstrap: &Bootstrap,
    plane: &Plane,
    state: &ProxyState,
    registry: Registry,
    handle: &Handle,
    args: &BootstrapArgs,
    path: &Path,
) -> anyhow::Result<Servers> {
    let mut servers = Servers::default();
    let Some(address) = bootstrap.admin else { return Ok(servers) };
    let listener = TcpListener::bind(address).await.with_context(|| format!("the admin port {address}"))?;
    let drain_time = Duration::from_secs(args.drain_time_s);
    let admin = Admin {
        demands: None,
        state: state.clone(),
        metrics: Metrics::new(Source::Registry(registry), state.clone(), None, None),
        held: plane.held.clone(),
        live: Arc::new(WeftLive { handle: handle.clone(), plane: plane.clone(), drain_time }),
        identity: None,
        node: bootstrap.node.clone(),
        options: StartOptions {
            concurrency: u32::try_from(weft::workers(args.concurrency).get()).unwrap_or(u32::MAX),
            config_path: path.display().to_string(),
            drain_time,
        },
    };
    servers.add(listener, admin.handler());
    Ok(servers)
}
