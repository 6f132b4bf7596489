//! The proxy's side of ADS: how the control plane is reached, and the loop that applies what it sends and asks for what that
//! names.

use crate::plane::Plane;
use futures_util::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use weft_dataplane::demand::Demands;
use weft_proto::type_url;
use weft_proto::weft::v1::Demand;
use weft_proxy_config::{Discovery, EndpointAddress, ProxySnapshot, Update, Upsert, UpstreamTransport};
use weft_runtime::ReadyBlock;
use weft_sds::WorkloadSecrets;
use weft_tls::{ClientContext, ClientParams, ServerVerification, TrustAnchors};
use weft_xds_client::{BoxedIo, Client, Interest, Outcome, ResourceUpdate};

/// How long the first configuration may wait for what it names (endpoints, routes); Envoy's `init_fetch_timeout`.
const INITIAL_FETCH: Duration = Duration::from_secs(15);
/// Time for a TLS handshake with the control plane.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The control plane of a mesh: TLS under the mesh's roots, with the workload's certificate once there is one.
#[derive(Clone)]
pub struct MeshConnect {
    /// `HOST:PORT`.
    pub address: String,
    /// The name its certificate must have.
    pub name: String,
    /// Roots file; read at each connection.
    pub root_cert_path: PathBuf,
    /// Token file; only to know whether there is another proof of who we are.
    pub token_path: PathBuf,
    /// The workload's secrets.
    pub secrets: watch::Receiver<Option<Arc<WorkloadSecrets>>>,
}

impl MeshConnect {
    /// Headers of a stream: the token, which proves who we are until there is a certificate.
    ///
    /// # Errors
    /// Never: without a token the certificate has to do.
    pub fn headers(&self) -> Result<Vec<(String, String)>, String> {
        let token = std::fs::read_to_string(&self.token_path).unwrap_or_default();
        let token = token.trim();
        Ok(if token.is_empty() { Vec::new() } else { vec![("authorization".into(), format!("Bearer {token}"))] })
    }

    async fn open(self) -> io::Result<BoxedIo> {
        let certificate = self.secrets.borrow().as_ref().map(|secrets| secrets.certificate.clone());
        if certificate.is_none() && !self.token_path.exists() {
            return Err(io::Error::other("there is neither a certificate nor a token yet to show who we are"));
        }
        let shown = self.root_cert_path.display();
        let roots =
            tokio::fs::read(&self.root_cert_path).await.map_err(|e| io::Error::other(format!("{shown}: {e}")))?;
        let anchors = TrustAnchors::from_pem(&roots).map_err(|e| io::Error::other(format!("{shown}: {e}")))?;
        let context = ClientContext::build(ClientParams {
            certificate,
            sni: Some(self.name),
            alpn: vec![b"h2".to_vec()],
            ..ClientParams::new(ServerVerification::WebPki { anchors, san: None })
        })
        .map_err(io::Error::other)?;
        let tcp = weft_runtime::net::connect(&self.address).await?;
        let connected = tokio::time::timeout(HANDSHAKE, context.connect(tcp)).await??;
        Ok(Box::new(connected.stream))
    }
}

impl weft_xds_client::Connect for MeshConnect {
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxedIo>> {
        Box::pin(self.clone().open())
    }
}

/// The control plane of a bootstrap file: a static cluster.
#[derive(Clone)]
pub struct ClusterConnect {
    /// Where the cluster stands.
    pub snapshot: Arc<arc_swap::ArcSwap<ProxySnapshot>>,
    /// Its name.
    pub cluster: String,
}

impl ClusterConnect {
    async fn open(self) -> io::Result<BoxedIo> {
        let snapshot = self.snapshot.load_full();
        let missing = || io::Error::other(format!("the bootstrap has no cluster {:?} with an endpoint", self.cluster));
        let cluster = snapshot.clusters.get(self.cluster.as_str()).ok_or_else(missing)?;
        let (Discovery::Static(set) | Discovery::StrictDns(set, _) | Discovery::LogicalDns(set, _)) =
            &cluster.discovery
        else {
            return Err(missing());
        };
        let endpoints: Vec<_> = set.localities.iter().flat_map(|locality| &locality.endpoints).collect();
        let endpoint = endpoints.get(fastrand::usize(..endpoints.len().max(1))).ok_or_else(missing)?;
        let plain = open_plain(&endpoint.address).await?;
        match &cluster.transport {
            UpstreamTransport::Plain => Ok(plain),
            UpstreamTransport::Tls(tls) => {
                let context = tls.context().map_err(|reason| io::Error::other(reason.to_string()))?;
                let connected = tokio::time::timeout(HANDSHAKE, context.connect(plain)).await??;
                Ok(Box::new(connected.stream))
            }
        }
    }
}

async fn open_plain(address: &EndpointAddress) -> io::Result<BoxedIo> {
    Ok(match address {
        EndpointAddress::Ip(address) => Box::new(weft_runtime::net::connect(&address.to_string()).await?),
        EndpointAddress::Name(name, port) => Box::new(weft_runtime::net::connect(&format!("{name}:{port}")).await?),
        EndpointAddress::Unix(path) => Box::new(tokio::net::UnixStream::connect(&**path).await?),
    })
}

impl weft_xds_client::Connect for ClusterConnect {
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxedIo>> {
        Box::pin(self.clone().open())
    }
}

/// What is asked for from the start.
#[derive(Debug, Clone)]
pub struct Subscriptions {
    /// The DNS name table.
    pub name_table: bool,
    /// What traffic asks for, when nothing else of the outbound side is taken.
    pub demands: Option<Demands>,
}

/// Asks for what is wanted, applies what comes, asks for what that names; for as long as the client lives. Readiness waits
/// for the first listeners and clusters and for what they name.
pub async fn follow(
    client: Client,
    mut updates: mpsc::Receiver<ResourceUpdate>,
    plane: Plane,
    block: ReadyBlock,
    server: String,
    subscriptions: Subscriptions,
) {
    client.want(type_url::CLUSTER, Interest::all());
    client.want(type_url::LISTENER, Interest::all());
    if subscriptions.name_table {
        client.want(type_url::NAME_TABLE, Interest::all());
    }
    if subscriptions.demands.is_some() {
        // Everything that is sent is wanted: what is sent is what traffic asked for. To ask for what that names would cost
        // the first request a further round trip.
        for named in [type_url::ENDPOINT, type_url::ROUTE, type_url::VIRTUAL_HOST] {
            client.want(named, Interest::all());
        }
    }
    let mut asking = subscriptions.demands.as_ref().map(Asking::new);
    let mut answers = Answers::new();
    let mut start =
        Some(Start { block, server, clusters: false, listeners: false, until: None, gone: BTreeSet::new() });
    let mut connection = client.state();
    loop {
        if let Some(waiting) = start.take() {
            start = waiting.look(&plane, &connection.borrow().last_error);
        }
        // Of the past for ever once the start is over.
        let due = start.as_ref().and_then(Start::due);
        tokio::select! {
            update = updates.recv() => {
                let Some(update) = update else { return };
                let seen = update.type_url.clone();
                start.iter_mut().for_each(|start| start.told(&seen, &update.removals));
                match &subscriptions.demands {
                    Some(demands) if seen == type_url::DEMAND => answered(update, demands, &plane, &mut answers),
                    _ => apply(update, &plane),
                }
                if names_others(&seen) {
                    subscribe(&client, &plane, subscriptions.demands.is_some());
                }
                start.iter_mut().for_each(|start| start.saw(&seen));
            }
            changed = connection.changed() => {
                if changed.is_err() {
                    return;
                }
                let connected = connection.borrow_and_update().connected;
                subscriptions.demands.iter().for_each(|demands| demands.reachable(connected));
            }
            () = Asking::next(&mut asking) => {
                let Some(demands) = &subscriptions.demands else { continue };
                let names = demands.names();
                answers.retain(|name, _| names.contains(name));
                client.want(type_url::DEMAND, Interest::named(names));
                // Given up and asked for again before anybody heard of it: the control plane has nothing new to say.
                for name in demands.pending() {
                    if let Some(found) = answers.get(&name) {
                        demands.answered(&name, plane.snapshot().load().version, found.clone());
                    }
                }
            }
            () = sleep_until(due), if due.is_some() => {}
        }
    }
}

/// Follows what traffic asks for, and gives up what it does not use.
struct Asking {
    demands: Demands,
    changes: watch::Receiver<u64>,
    evict: tokio::time::Interval,
}

impl Asking {
    fn new(demands: &Demands) -> Self {
        let mut evict = tokio::time::interval(demands.evict_every());
        evict.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self { demands: demands.clone(), changes: demands.changes(), evict }
    }

    /// Returns when something else is asked for than before; never without an asker.
    async fn next(asking: &mut Option<Self>) {
        let Some(asking) = asking else { return std::future::pending().await };
        loop {
            tokio::select! {
                changed = asking.changes.changed() => match changed {
                    Ok(()) => return,
                    Err(_) => std::future::pending().await,
                },
                _ = asking.evict.tick() => {
                    let evicted = asking.demands.evict();
                    if evicted > 0 {
                        tracing::debug!(evicted, "configuration that nobody used is given up");
                    }
                }
            }
        }
    }
}

/// What there is for what is asked for, by name.
type Answers = BTreeMap<String, Vec<String>>;

/// Tells those who wait that what they asked for is there: it came before this.
fn answered(update: ResourceUpdate, demands: &Demands, plane: &Plane, answers: &mut Answers) {
    let version = plane.snapshot().load().version;
    let mut refused = Vec::new();
    for resource in &update.upserts {
        match weft_proto::unpack::<Demand>(&resource.any) {
            Ok(answer) => {
                let found = answer.listeners.into_iter().chain(answer.virtual_hosts).chain(answer.names);
                answers.insert(resource.name.clone(), found.collect());
            }
            Err(error) => refused.push((resource.name.clone(), error.to_string())),
        }
    }
    for name in &update.removals {
        // A control plane that gives everything to everybody has no answer to it.
        answers.insert(name.clone(), Vec::new());
    }
    for name in update.upserts.iter().map(|resource| &resource.name).chain(&update.removals) {
        if let Some(found) = answers.get(name) {
            demands.answered(name, version, found.clone());
        }
    }
    update.done(Outcome { refused });
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn apply(update: ResourceUpdate, plane: &Plane) {
    let upsert =
        |r: &weft_xds_client::Resource| Upsert { name: r.name.clone(), version: r.version.clone(), any: r.any.clone() };
    let change = Update {
        type_url: update.type_url.clone(),
        upserts: update.upserts.iter().map(upsert).collect(),
        removals: update.removals.clone(),
    };
    let refused = plane.apply(&change, false);
    tracing::debug!(
        kind = short(&update.type_url),
        upserts = update.upserts.len(),
        removals = update.removals.len(),
        refused = refused.len(),
        "configuration received"
    );
    update.done(Outcome { refused });
}

fn short(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}

/// Whether resources of the type name others, which have to be asked for. Most changes are of endpoints and virtual hosts, and
/// must not cost a look at all clusters.
fn names_others(type_url: &str) -> bool {
    matches!(type_url, type_url::CLUSTER | type_url::LISTENER | type_url::ROUTE)
}

fn subscribe(client: &Client, plane: &Plane, on_demand: bool) {
    let wanted = plane.wanted();
    if !on_demand {
        client.want(type_url::ENDPOINT, Interest::named(wanted.endpoints));
        client.want(type_url::ROUTE, Interest::named(wanted.routes));
        client.want(type_url::VIRTUAL_HOST, Interest::named(wanted.virtual_hosts));
    }
    client.want(type_url::SECRET, Interest::named(wanted.secrets));
}

/// The wait for the first configuration.
struct Start {
    block: ReadyBlock,
    server: String,
    clusters: bool,
    listeners: bool,
    /// When the wait for what the configuration names ends.
    until: Option<Instant>,
    /// Secrets that the control plane says there are not, as `secret NAME`: nothing is to be waited for. What needs one fails
    /// until there is one.
    gone: BTreeSet<String>,
}

impl Start {
    fn saw(&mut self, type_url: &str) {
        self.clusters |= type_url == type_url::CLUSTER;
        self.listeners |= type_url == type_url::LISTENER;
        if self.clusters && self.listeners && self.until.is_none() {
            self.until = Some(Instant::now() + INITIAL_FETCH);
        }
    }

    /// What is not there. A secret that comes after all is not missing.
    fn told(&mut self, type_url: &str, removals: &[String]) {
        if type_url == type_url::SECRET {
            self.gone.extend(removals.iter().map(|name| format!("secret {name}")));
        }
    }

    /// Of what is missing that which may come.
    fn still_to_come(&self, mut missing: Vec<String>) -> Vec<String> {
        missing.retain(|name| !self.gone.contains(name));
        missing
    }

    fn due(&self) -> Option<Instant> {
        self.until
    }

    /// `None` when the wait is over.
    fn look(self, plane: &Plane, error: &Option<String>) -> Option<Self> {
        let Some(until) = self.until else {
            let part = match (self.clusters, self.listeners) {
                (true, false) => "listeners",
                (false, true) => "clusters",
                _ => "configuration",
            };
            let why = error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
            self.block.set_reason(format!("{part} from {}{why}", self.server));
            return Some(self);
        };
        let missing = self.still_to_come(plane.missing());
        if missing.is_empty() {
            return None;
        }
        let named = missing.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        if Instant::now() >= until {
            tracing::warn!(
                missing = missing.len(),
                "starting without {named}, which the control plane named and did not send"
            );
            return None;
        }
        let more = if missing.len() > 3 { format!(" and {} more", missing.len() - 3) } else { String::new() };
        self.block.set_reason(format!("{named}{more} from {}", self.server));
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_runtime::Readiness;

    #[test]
    fn a_start_does_not_wait_for_secrets_that_there_are_not() {
        let block = Readiness::default().block("configuration");
        let (server, gone) = ("weftd".to_string(), BTreeSet::new());
        let mut start = Start { block, server, clusters: true, listeners: true, until: None, gone };
        let missing = || ["secret a", "secret b", "route a", "endpoints a"].map(String::from).to_vec();
        assert_eq!(start.still_to_come(missing()), missing());
        start.told(type_url::ENDPOINT, &["a".into()]);
        assert_eq!(start.still_to_come(missing()), missing(), "other kinds come later");
        start.told(type_url::SECRET, &["a".into()]);
        assert_eq!(start.still_to_come(missing()), ["secret b", "route a", "endpoints a"]);
    }
}
