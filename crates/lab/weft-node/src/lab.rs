//! The lab itself, as process 1 of its namespaces: network, store, API server, controllers, node and forwarded ports, put
//! together in the order in which each needs the other.

use crate::admission::{AccountTokens, LabAdmission};
use crate::config::LabConfig;
use crate::controllers::{self, Surroundings, namespaces, objects};
use crate::event::{Event, PodLine};
use crate::init;
use crate::making::LabPods;
use crate::manifests::Applier;
use crate::network::addresses::AddressPool;
use crate::network::dns::{self, Zone};
use crate::network::links::Links;
use crate::network::{API_PORT, GATEWAY, services, view};
use crate::outside::{self, Outside};
use crate::pods::proxy::Engines;
use crate::pods::volumes::TokenIssuer;
use crate::pods::{ImageTable, Node};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use weft_apiserver::{AdminToken, ApiServer, ApiServerOptions, BoundPod, PodBackend, ServingCertificate, kubeconfig};
use weft_k8s_api::Object;
use weft_store::MemoryStore;

/// Changes of services that come together become one set of rules.
const SETTLE: Duration = Duration::from_millis(3);
/// Connections that one forwarded port carries at once; further ones wait.
const FORWARDED: usize = 4096;
/// How long a forwarded connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// All that `weft up` tells the lab.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LabOptions {
    /// Descriptor of the listening socket of the API on the machine's loopback.
    pub api_fd: i32,
    /// Its port, for the kubeconfig.
    pub api_port: u16,
    /// Token of the administrator.
    pub admin_token: String,
    /// Where to write the kubeconfig.
    pub kubeconfig: PathBuf,
    /// Ports of the machine that lead to services.
    pub published: Vec<Published>,
    /// Ports of the machine that are given to services as their node ports.
    pub node_ports: Vec<NodePort>,
    /// Read end of a pipe whose other end only `weft up` holds: its end is the end of the lab.
    pub lifeline_fd: i32,
    /// An existing folder on which the lab may mount.
    pub run_folder: PathBuf,
    /// Folder of Weft's programs.
    pub programs: PathBuf,
    /// `weft-lab.yaml`.
    pub config: Option<PathBuf>,
    /// A real Envoy.
    pub envoy: Option<PathBuf>,
    /// Pods whose annotation names no engine get Envoy.
    pub envoy_by_default: bool,
    /// Start with control plane, gateway and their settings.
    pub mesh: bool,
    /// Folder in which objects are kept for the next lab; none are kept without.
    pub objects: Option<PathBuf>,
    /// Start with Bookinfo.
    pub bookinfo: bool,
    /// Start with hosts of the world outside.
    pub outside: bool,
    /// Pods have addresses of IPv6 too, and services may.
    pub ipv6: bool,
    /// Files of further objects.
    pub manifests: Vec<PathBuf>,
}

/// A port of the machine that leads to a service's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Descriptor of the listening socket.
    pub fd: i32,
    /// Namespace of the service.
    pub namespace: String,
    /// Name of the service.
    pub service: String,
    /// Port of the service.
    pub port: u16,
}

/// A node port that can be reached from the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePort {
    /// Descriptor of the listening socket.
    pub fd: i32,
    /// Its number, there and here.
    pub port: u16,
}

/// `main` of the hidden command; see [`init::run`].
pub fn main() -> ExitCode {
    init::run(|options: LabOptions| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let result = runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(run(options)));
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(text) => {
                Event::Failed { text }.tell();
                ExitCode::FAILURE
            }
        }
    })
}

/// Starts everything and stays until `weft up` ends.
async fn run(options: LabOptions) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    end_with_parent(options.lifeline_fd).map_err(|error| text(&error))?;
    let run_folder = prepare_folders(&options)?;
    let links = Links::set_up(options.ipv6).await.map_err(|error| text(&error))?;
    let store = MemoryStore::new();
    let restored = match &options.objects {
        Some(folder) => crate::kept::restore(&store, folder).map_err(|error| text(&error))?,
        None => 0,
    };
    serve_network(store.clone(), options.ipv6).await.map_err(|error| text(&error))?;
    step("the network is up");

    let tokens = Arc::new(Tokens::default());
    let node = Arc::new(node(&options, store.clone(), links, Arc::clone(&tokens), run_folder)?);
    let node_ports = options.node_ports.iter().map(|node_port| node_port.port).collect();
    let admission =
        LabAdmission::new(store.clone(), node.engines.clone()).with_node_ports(node_ports).with_tokens(tokens.clone());
    let admission = admission.with_ipv6(options.ipv6);
    let admission = Arc::new(admission);
    let (server, root_ca) = serve_api(&options, &store, admission, Arc::clone(&node) as Arc<dyn PodBackend>).await?;
    let _ = tokens.0.set(server.clone());
    step("the API is up");

    // Not by a request: the server drops the status that comes with a new object, and a node is nothing but its status.
    let _ = store.create(namespaces::node());
    let maker = Arc::new(LabPods::new(server.clone()));
    let around = Surroundings { published: published_names(&options), root_ca: Some(root_ca) };
    tokio::spawn(controllers::run(store.clone(), maker, around));
    tokio::spawn(Arc::clone(&node).run());
    tokio::spawn(tell_of_pods(store.clone()));
    forward_all(&options, &store).map_err(|error| text(&error))?;
    fill(&options, server, restored > 0).await?;
    std::future::pending().await
}

fn step(text: &str) {
    Event::Step { text: text.into() }.tell();
}

/// Applies what the lab starts with. In one that was there before, the sample is what has become of it.
async fn fill(options: &LabOptions, server: ApiServer, restored: bool) -> Result<(), String> {
    let applier = Applier::new(server, options.admin_token.clone());
    if options.mesh {
        applier.base().await.map_err(|error| error.to_string())?;
    }
    if options.outside {
        applier.outside().await.map_err(|error| error.to_string())?;
    }
    if options.bookinfo && !restored {
        applier.bookinfo().await.map_err(|error| error.to_string())?;
    }
    for path in &options.manifests {
        // A mistake in a user's file is no reason to take down everything else.
        if let Err(error) = applier.path(path).await {
            Event::Warning { text: error.to_string() }.tell();
        }
    }
    step("the objects are applied");
    Ok(())
}

fn published_names(options: &LabOptions) -> Vec<(String, String)> {
    options.published.iter().map(|p| (p.namespace.clone(), p.service.clone())).collect()
}

/// The kernel kills the lab when its parent dies; should that be missed (the parent may die before the wish is made), the
/// closed pipe is not.
fn end_with_parent(lifeline: i32) -> std::io::Result<()> {
    let lifeline = init::inherited(lifeline)?;
    std::thread::Builder::new().name("lifeline".into()).spawn(move || {
        let mut pipe = std::fs::File::from(lifeline);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        std::process::exit(0);
    })?;
    Ok(())
}

fn prepare_folders(options: &LabOptions) -> Result<PathBuf, String> {
    let run = &options.run_folder;
    init::mount_run_folder(run).map_err(|error| error.to_string())?;
    for folder in ["root", "pods", "claims"] {
        std::fs::create_dir_all(run.join(folder)).map_err(|error| format!("{}: {error}", run.display()))?;
    }
    Ok(run.clone())
}

fn node(
    options: &LabOptions,
    store: MemoryStore,
    links: Links,
    tokens: Arc<Tokens>,
    run_folder: PathBuf,
) -> Result<Node, String> {
    let mut config = match &options.config {
        Some(path) => LabConfig::read(path).map_err(|error| error.to_string())?,
        None => LabConfig::default(),
    };
    if let Some(envoy) = &options.envoy {
        config.add_envoy(envoy);
    }
    Ok(Node {
        store,
        links,
        addresses: Mutex::new(AddressPool::pods()),
        outside_addresses: Mutex::new(AddressPool::outside()),
        outside: Outside::new(&run_folder).map_err(|error| format!("the world outside: {error}"))?,
        images: ImageTable::new(config, options.programs.clone()),
        engines: Engines {
            envoy: options.envoy.as_ref().map(|path| path.display().to_string()),
            envoy_by_default: options.envoy_by_default,
        },
        tokens,
        mount_point: run_folder.join("root"),
        run_folder,
        keep_proc: !init::can_mount_proc(),
        workers: Mutex::default(),
    })
}

/// Serves the API on both sides of the lab; returns the server, and the authority by which it is known (PEM).
async fn serve_api(
    options: &LabOptions,
    store: &MemoryStore,
    admission: Arc<LabAdmission>,
    pods: Arc<dyn PodBackend>,
) -> Result<(ApiServer, String), String> {
    let failed = |error: &dyn std::fmt::Display| format!("the API server: {error}");
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let addresses = [IpAddr::from(Ipv4Addr::LOCALHOST), GATEWAY.into(), crate::network::API_SERVICE.into()];
    let certificate = ServingCertificate::issue(&names, &addresses).map_err(|error| failed(&error))?;
    let server_options = ApiServerOptions {
        admin_tokens: vec![AdminToken { token: options.admin_token.clone(), user: "lab-admin".into() }],
        admission: vec![admission],
        pods: Some(pods),
        tls: Some(certificate.context),
        ..ApiServerOptions::default()
    };
    let server = ApiServer::new(store.clone(), server_options).map_err(|error| failed(&error.message))?;
    let outside = std::net::TcpListener::from(init::inherited(options.api_fd).map_err(|error| failed(&error))?);
    outside.set_nonblocking(true).map_err(|error| failed(&error))?;
    let outside = TcpListener::from_std(outside).map_err(|error| failed(&error))?;
    let inside = TcpListener::bind((GATEWAY, API_PORT)).await.map_err(|error| failed(&error))?;
    for listener in [outside, inside] {
        let server = server.clone();
        tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
    }
    let url = format!("https://127.0.0.1:{}", options.api_port);
    let text = kubeconfig("weft-lab", &url, Some(&certificate.ca_pem), &options.admin_token, "default");
    write_secret(&options.kubeconfig, &text).map_err(|error| failed(&error))?;
    Ok((server, certificate.ca_pem))
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_secret(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&new, path)
}

/// Tokens of service accounts; the server that gives them out is made after the node that asks for them.
#[derive(Default)]
struct Tokens(OnceLock<ApiServer>);

impl TokenIssuer for Tokens {
    fn issue(&self, pod: &Object, audience: Option<&str>, seconds: i64) -> Result<(String, i64), String> {
        let server = self.0.get().ok_or("the API server is not up yet")?;
        let account = pod.spec()["serviceAccountName"].as_str().unwrap_or("default");
        let bound = BoundPod { name: pod.name().into(), uid: objects::uid(pod).into() };
        let audiences: Vec<String> = audience.into_iter().map(str::to_string).collect();
        let issued =
            server.tokens().issue(server.store(), (pod.namespace(), account), &audiences, seconds, Some(bound));
        issued.map_err(|error| error.message)
    }
}

impl AccountTokens for Tokens {
    fn issue(&self, namespace: &str, account: &str, seconds: i64) -> Result<String, String> {
        let server = self.0.get().ok_or("the API server is not up yet")?;
        let issued = server.tokens().issue(server.store(), (namespace, account), &[], seconds, None);
        issued.map(|(token, _)| token).map_err(|error| error.message)
    }
}

/// Keeps cluster addresses and DNS names equal to what the store says.
async fn serve_network(store: MemoryStore, ipv6: bool) -> Result<(), crate::network::NetworkError> {
    let (zones, receiver) = watch::channel(Arc::new(Zone::default()));
    dns::serve(receiver).await?;
    weft_capture::apply::run_nft(&services::render(&[], ipv6))?;
    tokio::spawn(async move {
        let mut changed = store.changed();
        let (mut known, mut known_outside) = (Vec::new(), BTreeMap::new());
        loop {
            changed.mark_unchanged();
            let outside = outside::addresses(objects::list(&store, "", "Pod").iter().map(|pod| &**pod));
            let (all, slices) =
                (objects::list(&store, "", "Service"), objects::list(&store, "discovery.k8s.io", "EndpointSlice"));
            let services = view::read(all.iter().map(|o| &**o), slices.iter().map(|o| &**o));
            if outside != known_outside {
                zones.send_replace(Arc::new(Zone::build(&services, &outside)));
            }
            if services != known {
                zones.send_replace(Arc::new(Zone::build(&services, &outside)));
                let rules = services::render(&view::service_ports(&services), ipv6);
                let applied = tokio::task::spawn_blocking(move || weft_capture::apply::run_nft(&rules)).await;
                match applied {
                    Ok(Ok(())) => known = services,
                    Ok(Err(error)) => tracing::error!(%error, "cluster addresses keep their old endpoints"),
                    Err(error) => tracing::error!(%error, "cluster addresses keep their old endpoints"),
                }
            }
            known_outside = outside;
            if changed.changed().await.is_err() {
                return;
            }
            tokio::time::sleep(SETTLE).await;
        }
    });
    Ok(())
}

/// Carries connections from ports of the machine: to services, and to the node's ports.
fn forward_all(options: &LabOptions, store: &MemoryStore) -> std::io::Result<()> {
    for published in options.published.iter().cloned() {
        let store = store.clone();
        forward(published.fd, move || {
            let service = store.find("", "Service", &published.namespace, &published.service)?;
            Some((service.spec()["clusterIP"].as_str()?.parse().ok()?, published.port))
        })?;
    }
    for NodePort { fd, port } in options.node_ports.iter().cloned() {
        forward(fd, move || Some((GATEWAY.into(), port)))?;
    }
    Ok(())
}

/// Carries connections from a listening socket of the machine to where `target` says at the time.
fn forward(fd: i32, target: impl Fn() -> Option<(IpAddr, u16)> + Send + 'static) -> std::io::Result<()> {
    let listener = std::net::TcpListener::from(init::inherited(fd)?);
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let limit = Arc::new(Semaphore::new(FORWARDED));
    tokio::spawn(async move {
        loop {
            let Ok(permit) = Arc::clone(&limit).acquire_owned().await else { return };
            let Ok((client, _)) = listener.accept().await else { continue };
            let Some(to) = target() else { continue };
            tokio::spawn(async move {
                carry(client, to).await;
                drop(permit);
            });
        }
    });
    Ok(())
}

async fn carry(mut client: TcpStream, to: (IpAddr, u16)) {
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await;
    let Ok(Ok(mut server)) = connected else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

/// Tells `weft up` how the pods stand, whenever that changes.
async fn tell_of_pods(store: MemoryStore) {
    let mut changed = store.changed();
    let mut told = Vec::new();
    loop {
        changed.mark_unchanged();
        let all = objects::list(&store, "", "Pod");
        let mut pods: Vec<PodLine> = all.iter().map(|pod| pod_line(pod)).collect();
        pods.extend(objects::list(&store, "apps", "Deployment").iter().filter_map(|d| missing(&store, d, &all)));
        if pods != told {
            Event::Pods { pods: pods.clone() }.tell();
            told = pods;
        }
        if changed.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A line for the pods that a Deployment is to have and that are not made yet: they wait for the control plane.
fn missing(store: &MemoryStore, deployment: &Object, pods: &[Arc<Object>]) -> Option<PodLine> {
    let sets = objects::list(store, "apps", "ReplicaSet");
    let own: Vec<_> = sets.iter().filter(|set| objects::is_controlled_by(set, deployment)).collect();
    let of_own = |pod: &&Arc<Object>| own.iter().any(|set| objects::is_controlled_by(pod, set));
    let there = i64::try_from(pods.iter().filter(of_own).count()).unwrap_or(i64::MAX);
    let wanted = objects::spec_number(deployment, "replicas", 1);
    let conditions = deployment.body.get("status").and_then(|status| status["conditions"].as_array());
    let failure = conditions.into_iter().flatten().find(|condition| condition["type"] == "ReplicaFailure");
    (there < wanted && !objects::is_deleting(deployment)).then(|| PodLine {
        namespace: deployment.namespace().into(),
        name: format!("{}-…", deployment.name()),
        ready: 0,
        containers: 1,
        address: String::new(),
        status: if failure.is_some() { "FailedCreate" } else { "Waiting" }.into(),
        message: failure.and_then(|failure| failure["message"].as_str()).unwrap_or_default().into(),
    })
}

fn pod_line(pod: &Object) -> PodLine {
    let status = pod.body.get("status").unwrap_or(&Value::Null);
    let containers = status["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let waiting = containers.iter().map(|c| &c["state"]["waiting"]).find(|waiting| !waiting.is_null());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let leaving = objects::is_deleting(pod).then(|| "Terminating".to_string());
    let reason = waiting.map(|waiting| text(&waiting["reason"])).or_else(|| status["reason"].as_str().map(Into::into));
    PodLine {
        namespace: pod.namespace().into(),
        name: pod.name().into(),
        ready: containers.iter().filter(|c| c["ready"] == true).count(),
        containers: pod.spec()["containers"].as_array().map_or(0, Vec::len),
        address: text(&status["podIP"]),
        status: leaving.or(reason).unwrap_or_else(|| objects::phase(pod).to_string()),
        message: waiting.map(|waiting| text(&waiting["message"])).unwrap_or_default(),
    }
}
