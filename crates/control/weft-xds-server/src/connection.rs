//! One stream, from its first request to its end: the loop that joins requests, snapshots and time.

use crate::auth::Caller;
use crate::kind::Kind;
use crate::offer::{self, Offer};
use crate::presence::{Present, Watched};
use crate::server::{Published, Shared};
use crate::session::{Answer, Incoming, Push, Session};
use crate::status::ProxyStatus;
use futures_util::{FutureExt, Stream, StreamExt};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tonic::Status;
use weft_core::Strng;
use weft_model::{Credential, MeshSnapshot};
use weft_proto::envoy::config::core::v3::Node;
use weft_proto::type_url;
use weft_xds_gen::on_demand::Selection;
use weft_xds_gen::{ProxyView, Resource};

/// How long a client may take to take a response off the connection.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take to send its first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests that are taken in together before what follows of them is sent.
const TOGETHER: usize = 64;
/// Largest node message, in bytes.
const MAX_NODE_BYTES: usize = 256 * 1024;

/// Messages of one variant of the protocol.
pub(crate) trait Variant: Send + 'static {
    /// What the client sends.
    type Request: Send + 'static;
    /// What it is sent.
    type Response: Send + 'static;
    /// The delta variant.
    const DELTA: bool;
    fn incoming(request: Self::Request) -> Incoming;
    fn response(push: Push, version: String) -> Self::Response;
}

/// Where responses go.
pub(crate) type Sink<V> = mpsc::Sender<Result<<V as Variant>::Response, Status>>;

/// Serves a stream to its end; the reason of the end, if the client should know it, is sent as its last item.
pub(crate) async fn serve<V: Variant>(
    shared: Arc<Shared>,
    caller: Caller,
    remote: Option<SocketAddr>,
    requests: impl Stream<Item = Result<V::Request, Status>> + Send + Unpin,
    sink: Sink<V>,
) {
    let mut requests = requests;
    let result = run::<V>(&shared, caller, remote, &mut requests, &sink).await;
    if let Err(status) = result {
        if status.code() == tonic::Code::PermissionDenied {
            shared.metrics.denied();
            tracing::warn!(remote = ?remote, "xDS stream refused: {}", status.message());
        }
        // A client that does not read loses the reason, nothing else.
        let _ = tokio::time::timeout(Duration::from_secs(1), sink.send(Err(status))).await;
    }
}

async fn run<V: Variant>(
    shared: &Arc<Shared>,
    caller: Caller,
    remote: Option<SocketAddr>,
    requests: &mut (impl Stream<Item = Result<V::Request, Status>> + Send + Unpin),
    sink: &Sink<V>,
) -> Result<(), Status> {
    let late = |_| Status::deadline_exceeded("no first request within 30 s");
    let Some(first) = tokio::time::timeout(FIRST_REQUEST_TIMEOUT, requests.next()).await.map_err(late)? else {
        return Ok(());
    };
    let first = V::incoming(first?);
    let view = read_node(first.node.as_ref(), &caller)?;
    let mut snapshots = shared.snapshots.subscribe();
    let published = first_snapshot(&mut snapshots, shared).await?;
    check_workload(&view, &caller, &published.snapshot)?;
    let status = shared.registry.add(&view, V::DELTA, remote);
    let _listed = Listed { shared: shared.clone(), id: status.id };
    let present = Present { id: status.id, view: view.clone(), caller: caller.clone() };
    let watched = Watched::begin(shared.observer.get(), present, &published.snapshot).await?;
    tracing::info!(proxy = status.name, delta = V::DELTA, weft = view.is_weft, "proxy connected");
    let mut connection = Connection::<V> {
        shared: shared.clone(),
        caller,
        view,
        status,
        session: Session::sharing(V::DELTA, shared.pools.clone()),
        whole: Offer::default(),
        offer: Arc::default(),
        selection: Selection::default(),
        asks: false,
        packed: BTreeMap::new(),
        made_at: published.at,
        converging: false,
        watched,
        sink: sink.clone(),
    };
    connection.renew(&published).await?;
    connection.take(first)?;
    connection.answer().await?;
    connection.push().await?;
    connection.serve(requests, &mut snapshots).await
}

/// Takes the proxy off the list when its stream ends, however that happens.
struct Listed {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.shared.registry.remove(self.id);
    }
}

/// Reads and checks the node of the first request.
fn read_node(node: Option<&Node>, caller: &Caller) -> Result<ProxyView, Status> {
    let node = node.ok_or_else(|| Status::invalid_argument("the first request of a stream must carry the node"))?;
    if prost::Message::encoded_len(node) > MAX_NODE_BYTES {
        return Err(Status::invalid_argument(format!("the node message is larger than {MAX_NODE_BYTES} bytes")));
    }
    let view = ProxyView::new(node).map_err(Status::invalid_argument)?;
    if let Caller::Account { namespace, .. } = caller
        && view.namespace() != namespace
    {
        return Err(Status::permission_denied(format!(
            "node {} is of namespace {}, but the caller is a service account of {namespace}",
            view.node,
            view.namespace()
        )));
    }
    Ok(view)
}

/// A pod may only be impersonated by what runs under the same service account.
fn check_workload(view: &ProxyView, caller: &Caller, snapshot: &MeshSnapshot) -> Result<(), Status> {
    let Caller::Account { service_account, .. } = caller else { return Ok(()) };
    let workload = snapshot.proxy_workload(view.namespace(), &view.node.pod, view.node.ip);
    match workload.filter(|w| w.namespace == view.namespace() && !w.service_account.is_empty()) {
        Some(w) if w.service_account != *service_account => Err(Status::permission_denied(format!(
            "node {} runs as service account {}, but the caller is {service_account}",
            view.node, w.service_account
        ))),
        _ => Ok(()),
    }
}

async fn first_snapshot(
    snapshots: &mut watch::Receiver<Option<Arc<Published>>>,
    shared: &Shared,
) -> Result<Arc<Published>, Status> {
    let mut closing = shared.closing.subscribe();
    tokio::select! {
        ready = snapshots.wait_for(Option::is_some) => {
            let ready = ready.map_err(|_| Status::unavailable("the control plane is shutting down"))?;
            ready.clone().ok_or_else(|| Status::unavailable("no snapshot yet"))
        }
        () = closed(&mut closing) => Err(Status::unavailable("the control plane is shutting down")),
    }
}

/// Waits until the server closes.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // A server that is gone is closed.
    let _ = closing.wait_for(|closing| *closing).await;
}

struct Connection<V: Variant> {
    shared: Arc<Shared>,
    caller: Caller,
    view: ProxyView,
    status: Arc<ProxyStatus>,
    session: Session,
    /// Everything that was made for the proxy.
    whole: Offer,
    /// What of it the proxy may have: all, or what it asked for.
    offer: Arc<Offer>,
    /// What it asked for.
    selection: Selection,
    /// It asks for something else than what the offer was made for.
    asks: bool,
    /// Secrets packed for the last push.
    packed: BTreeMap<Strng, (Arc<Credential>, Arc<Resource>)>,
    /// When the snapshot on offer was published.
    made_at: Instant,
    /// Something of that snapshot was sent and not all of it is acknowledged.
    converging: bool,
    /// The observer of the proxy, when there is one.
    watched: Option<Watched>,
    sink: Sink<V>,
}

impl<V: Variant> Connection<V> {
    async fn serve(
        &mut self,
        requests: &mut (impl Stream<Item = Result<V::Request, Status>> + Send + Unpin),
        snapshots: &mut watch::Receiver<Option<Arc<Published>>>,
    ) -> Result<(), Status> {
        let mut closing = self.shared.closing.subscribe();
        let end = tokio::time::sleep(self.shared.options.stream_age(self.status.id));
        tokio::pin!(end);
        loop {
            let given_up = self.session.next_deadline().map(tokio::time::Instant::from_std);
            let deadline = async {
                match given_up {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = requests.next() => {
                    let (mut next, mut room) = (Some(request), TOGETHER);
                    while let Some(request) = next {
                        // Without another the client went away.
                        let Some(Ok(request)) = request else { return Ok(()) };
                        self.take(V::incoming(request))?;
                        room -= 1;
                        // Questions come in swarms: those that are here already are looked into together.
                        next = if self.asks && room > 0 { requests.next().now_or_never() } else { None };
                    }
                    self.answer().await?;
                }
                changed = snapshots.changed() => {
                    changed.map_err(|_| Status::unavailable("the control plane is shutting down"))?;
                    let published = snapshots.borrow_and_update().clone();
                    if let Some(published) = published {
                        self.renew(&published).await?;
                    }
                }
                () = deadline => {}
                () = &mut end => return Err(Status::unavailable("the stream is old; connect again")),
                () = closed(&mut closing) => {
                    return Err(Status::unavailable("the control plane is shutting down"));
                }
            }
            self.push().await?;
        }
    }

    fn take(&mut self, request: Incoming) -> Result<(), Status> {
        let kind = Kind::of(&request.type_url);
        if let Some(kind) = kind {
            self.status.subscribed(kind);
        }
        if request.type_url == type_url::HEALTH_INFORMATION {
            self.watched.iter().for_each(|watched| watched.health(request.error.clone()));
            return Ok(());
        }
        self.asks |= kind == Some(Kind::Demand) && request.changes_names();
        let answer = self.session.receive(request)?;
        let Some(answer) = answer else { return Ok(()) };
        self.status.answered(&answer);
        if let Answer::Nack { kind, message, .. } = &answer {
            self.shared.metrics.rejected(*kind);
            tracing::warn!(proxy = self.status.name, "{} refused by the proxy: {message}", kind.short());
        }
        if self.converging && self.session.next_deadline().is_none() {
            self.converging = false;
            self.shared.metrics.converged(self.made_at.elapsed());
        }
        Ok(())
    }

    /// Makes the resources of a new snapshot.
    async fn renew(&mut self, published: &Published) -> Result<(), Status> {
        let snapshot = &published.snapshot;
        // The pod may have become known only after its node was believed.
        check_workload(&self.view, &self.caller, snapshot)?;
        let view = self.view.with_workload(snapshot);
        let resources = {
            // As many at once as there are processors: the rest would only take turns, and hold up answers meanwhile.
            let permit = self.shared.generating.acquire().await;
            let _permit = permit.map_err(|_| Status::unavailable("the control plane is shutting down"))?;
            let start = Instant::now();
            let resources = self.shared.generator.generate(snapshot, &view);
            self.shared.metrics.generated(start.elapsed());
            resources
        };
        let mut names = resources.credentials.clone();
        if !self.may_have_secrets(&view, snapshot) {
            names.retain(|name| name.starts_with(offer::CONFIG_MAP_SCHEME));
        }
        if names.iter().any(|name| offer::is_own(name)) && !self.may_read_secrets().await {
            tracing::warn!(
                proxy = self.status.name,
                "its service account may not list secrets in its namespace, so it gets none: bind it to a Role that may"
            );
            names.retain(|name| !offer::is_own(name));
        }
        let secrets = offer::secrets(snapshot, view.namespace(), &names, &mut self.packed);
        self.whole = Offer::new(snapshot.version, resources, secrets);
        self.offer().await?;
        self.made_at = published.at;
        Ok(())
    }

    /// Looks into what is asked for and was not before.
    async fn answer(&mut self) -> Result<(), Status> {
        if self.asks { self.offer().await } else { Ok(()) }
    }

    /// Takes of everything what the proxy may have.
    async fn offer(&mut self) -> Result<(), Status> {
        self.asks = false;
        self.offer = Arc::new(match self.whole.is_on_demand() {
            true => {
                let permit = self.shared.selecting.acquire().await;
                let _permit = permit.map_err(|_| Status::unavailable("the control plane is shutting down"))?;
                let start = Instant::now();
                let part = self.whole.part(&mut self.selection, self.session.questions());
                self.shared.metrics.selected(start.elapsed());
                part.unwrap_or_else(|| self.whole.clone())
            }
            false => self.whole.clone(),
        });
        self.status.offered(self.offer.clone());
        Ok(())
    }

    /// Secrets go to proxies whose resources refer to them (gateways, and workloads that a destination rule selects), and
    /// only when the caller is proven to be what runs there, with the labels of that workload and not those it says it has.
    fn may_have_secrets(&self, view: &ProxyView, snapshot: &MeshSnapshot) -> bool {
        let Caller::Account { namespace, service_account } = &self.caller else { return false };
        let workload = snapshot.proxy_workload(view.namespace(), &view.node.pod, view.node.ip);
        let same = |w: &Arc<weft_model::Workload>| w.namespace == *namespace && w.service_account == *service_account;
        // The labels of a workload that registered itself are what it said: they open no gateway's Secrets.
        let own_words = |w: &Arc<weft_model::Workload>| view.is_gateway() && w.owner_kind == "WorkloadEntry";
        workload.is_some_and(|w| same(w) && *w.labels == view.labels && !own_words(w))
    }

    /// Whether the API server would let the caller read the Secrets of its namespace.
    async fn may_read_secrets(&self) -> bool {
        match (self.shared.secret_access.get(), &self.caller) {
            (None, _) => true,
            (Some(access), Caller::Account { namespace, service_account }) => {
                access(namespace.clone(), service_account.clone()).await
            }
            (Some(_), Caller::Unproven) => false,
        }
    }

    async fn push(&mut self) -> Result<(), Status> {
        for push in self.session.pushes(&self.offer, Instant::now()) {
            self.status.sent(&push);
            self.shared.metrics.pushed(push.kind);
            self.converging = true;
            tracing::debug!(
                proxy = self.status.name,
                kind = push.kind.short(),
                resources = push.resources.len(),
                removed = push.removed.len(),
                "push"
            );
            let version = format!("{}/{}", self.shared.options.instance, push.version);
            match self.sink.send_timeout(Ok(V::response(push, version)), SEND_TIMEOUT).await {
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return Err(Status::cancelled("the client went away")),
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                    self.shared.metrics.send_timed_out();
                    return Err(Status::deadline_exceeded("the client took no response for 60 s"));
                }
            }
        }
        self.status.pushed(self.offer.version);
        Ok(())
    }
}
