//! The service: takes snapshots, accepts streams, and lets each run by itself.

use crate::asked::Asked;
use crate::auth::{Authenticator, BoxFuture};
use crate::connection::{Sink, Variant, serve};
use crate::metrics::Metrics;
use crate::places::Places;
use crate::presence::Observer;
use crate::session::{Incoming, Names, Push};
use crate::share::Pools;
use crate::status::Registry;
use crate::wire::{DeltaBody, DeltaResponse};
use futures_util::Stream;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};
use weft_model::{Inputs, MeshSnapshot};
use weft_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use weft_xds_gen::{GenCache, ProxyResources, ProxyView};

/// Responses of one stream that wait to be written to the connection. Behind them the stream itself waits.
const QUEUE: usize = 16;
/// Path of the delta method.
const DELTA_PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Media type of answers.
const GRPC_CONTENT_TYPE: http::HeaderValue = http::HeaderValue::from_static("application/grpc");
/// Largest request, in bytes.
const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;

/// Makes the resources of a proxy: [`weft_xds_gen`]'s generator, or a fake in tests.
pub trait Generate: Send + Sync + 'static {
    /// The resources of `proxy` in `snapshot`.
    fn generate(&self, snapshot: &Arc<MeshSnapshot>, proxy: &ProxyView) -> Arc<ProxyResources>;
}

impl Generate for GenCache {
    fn generate(&self, snapshot: &Arc<MeshSnapshot>, proxy: &ProxyView) -> Arc<ProxyResources> {
        Arc::new(GenCache::generate(self, snapshot, proxy))
    }
}

/// Says whether a service account (namespace, name) may read the Secrets of its namespace.
pub type SecretAccess = Arc<dyn Fn(String, String) -> BoxFuture<'static, bool> + Send + Sync>;

/// Settings of the server.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of this instance, shown to users and in versions: the pod's name.
    pub instance: String,
    /// Streams served at once. Default: 10 000.
    pub max_streams: usize,
    /// Age at which a stream is ended, so that proxies spread over instances. Default: 30 minutes, varied by a tenth.
    pub max_stream_age: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { instance: "weftd".into(), max_streams: 10_000, max_stream_age: Duration::from_secs(30 * 60) }
    }
}

impl Options {
    /// The age for one stream: between 95 and 105 percent, so that those that came together do not leave together.
    pub(crate) fn stream_age(&self, id: u64) -> Duration {
        let percent = 95 + (id.wrapping_mul(7) % 11) as u32;
        self.max_stream_age.saturating_mul(percent) / 100
    }
}

/// A snapshot and when it came.
#[derive(Debug)]
pub(crate) struct Published {
    pub snapshot: Arc<MeshSnapshot>,
    pub at: Instant,
}

/// What all streams share.
pub(crate) struct Shared {
    pub options: Options,
    pub generator: Box<dyn Generate>,
    pub snapshots: watch::Sender<Option<Arc<Published>>>,
    pub closing: watch::Sender<bool>,
    pub registry: Registry,
    pub metrics: Metrics,
    /// Turns of those for whom everything is made.
    pub generating: Semaphore,
    /// Turns of those who take what they asked for of it: short, and never behind the long ones.
    pub selecting: Semaphore,
    pub pools: Arc<Pools>,
    places: Arc<Places>,
    pub secret_access: OnceLock<SecretAccess>,
    pub observer: OnceLock<Arc<dyn Observer>>,
    /// What the newest build read.
    built: watch::Sender<Arc<Inputs>>,
}

/// The server of all proxies. A clone shares all state.
#[derive(Clone)]
pub struct AdsServer {
    pub(crate) shared: Arc<Shared>,
}

impl AdsServer {
    /// A server that makes resources with `generator`.
    pub fn new(generator: impl Generate, options: Options) -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        // One processor stays free for webhooks, leases and probes.
        let turns = processors.saturating_sub(1).max(1);
        let shared = Shared {
            generator: Box::new(generator),
            snapshots: watch::Sender::new(None),
            closing: watch::Sender::new(false),
            registry: Registry::default(),
            metrics: Metrics::default(),
            generating: Semaphore::new(turns),
            selecting: Semaphore::new(turns),
            pools: Arc::default(),
            places: Places::new(options.max_streams),
            secret_access: OnceLock::new(),
            observer: OnceLock::new(),
            built: watch::Sender::new(Arc::default()),
            options,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Asks `access` before a proxy gets Secrets of its namespace. Without this every proven account may have those that its
    /// configuration names. Set once; later calls change nothing.
    pub fn set_secret_access(&self, access: SecretAccess) {
        // The one that was set first stays.
        let _ = self.shared.secret_access.set(access);
    }

    /// Tells `observer` of proxies that come and go. Set once; later calls change nothing.
    pub fn set_observer(&self, observer: Arc<dyn Observer>) {
        // The one that was set first stays.
        let _ = self.shared.observer.set(observer);
    }

    /// Serves this snapshot from now on. A proxy that is still busy with an older one skips those between.
    pub fn publish(&self, snapshot: Arc<MeshSnapshot>) {
        self.shared.metrics.published();
        self.shared.snapshots.send_replace(Some(Arc::new(Published { snapshot, at: Instant::now() })));
    }

    /// The snapshot being served.
    pub fn snapshot(&self) -> Option<Arc<MeshSnapshot>> {
        self.shared.snapshots.borrow().as_ref().map(|p| p.snapshot.clone())
    }

    /// Says what the newest build read. Call it after the snapshot was published, where that was necessary: who reads an object
    /// here finds what follows from it in [`Self::snapshot`].
    pub fn built(&self, inputs: Arc<Inputs>) {
        self.shared.built.send_replace(inputs);
    }

    /// What the newest build read.
    pub fn inputs(&self) -> Arc<Inputs> {
        self.shared.built.borrow().clone()
    }

    /// Connected proxies.
    pub fn proxies(&self) -> &Registry {
        &self.shared.registry
    }

    /// Counters.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Ends all streams; the proxies connect elsewhere, or here again after the restart.
    pub fn close(&self) {
        self.shared.closing.send_replace(true);
    }

    /// The gRPC service, for callers that `authenticator` knows.
    pub fn service(&self, authenticator: Arc<dyn Authenticator>) -> AdsService {
        let streams = Streams { shared: self.shared.clone(), authenticator };
        let by_tonic = AggregatedDiscoveryServiceServer::new(streams.clone())
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(usize::MAX);
        AdsService { streams, by_tonic }
    }
}

/// The gRPC service on one port: the delta method reads and writes its own bodies ([`crate::asked`], [`crate::wire`]).
#[derive(Clone)]
pub struct AdsService {
    streams: Streams,
    by_tonic: AggregatedDiscoveryServiceServer<Streams>,
}

impl NamedService for AdsService {
    const NAME: &'static str = <AggregatedDiscoveryServiceServer<Streams> as NamedService>::NAME;
}

impl Service<http::Request<Body>> for AdsService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != DELTA_PATH {
            return Box::pin(self.by_tonic.call(request));
        }
        let streams = self.streams.clone();
        Box::pin(async move { Ok(streams.delta(request).await.unwrap_or_else(|status| status.into_http())) })
    }
}

/// Opens streams.
#[derive(Clone)]
struct Streams {
    shared: Arc<Shared>,
    authenticator: Arc<dyn Authenticator>,
}

impl Streams {
    async fn open<V: Variant>(
        &self,
        request: Request<impl Stream<Item = Result<V::Request, Status>> + Send + Unpin + 'static>,
    ) -> Result<mpsc::Receiver<Result<V::Response, Status>>, Status> {
        let caller = self.authenticator.authenticate(request.metadata(), request.extensions()).await?;
        // Only now: strangers whose tokens are being reviewed must not take the places of proxies.
        let place = self.shared.places.take(&caller).map_err(Status::resource_exhausted)?;
        let remote = remote(&request);
        let (sink, responses): (Sink<V>, _) = mpsc::channel(QUEUE);
        let shared = self.shared.clone();
        let requests = request.into_inner();
        tokio::spawn(async move {
            serve::<V>(shared, caller, remote, requests, sink).await;
            drop(place);
        });
        Ok(responses)
    }

    /// The delta method, from the HTTP request to the response whose body goes on.
    async fn delta(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let (parts, body) = request.into_parts();
        let requests = Asked::new(body, MAX_REQUEST_BYTES);
        let metadata = MetadataMap::from_headers(parts.headers);
        let responses = self.open::<Delta>(Request::from_parts(metadata, parts.extensions, requests)).await?;
        let mut response = http::Response::new(Body::new(DeltaBody::new(responses)));
        response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        Ok(response)
    }
}

/// Where a request came from, when the transport says it in one of the usual ways.
fn remote<T>(request: &Request<T>) -> Option<SocketAddr> {
    request.remote_addr().or_else(|| request.extensions().get::<RemoteAddr>().map(|r| r.0))
}

/// Address of the client, for transports of one's own to put into a request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct RemoteAddr(pub SocketAddr);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Streams {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Ok(Response::new(ReceiverStream::new(self.open::<Sotw>(request).await?)))
    }

    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::internal("the delta method is served beside this"))
    }
}

/// State of the world.
struct Sotw;

impl Variant for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const DELTA: bool = false;

    fn incoming(request: DiscoveryRequest) -> Incoming {
        Incoming {
            node: request.node,
            type_url: request.type_url,
            nonce: request.response_nonce,
            error: request.error_detail.map(|e| e.message),
            names: Names::All(request.resource_names),
        }
    }

    fn response(push: Push, version: String) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: version,
            type_url: push.kind.type_url().into(),
            nonce: push.nonce,
            resources: push.resources.iter().map(|r| r.any.clone()).collect(),
            ..Default::default()
        }
    }
}

/// Delta.
struct Delta;

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaResponse;
    const DELTA: bool = true;

    fn incoming(request: DeltaDiscoveryRequest) -> Incoming {
        Incoming {
            node: request.node,
            type_url: request.type_url,
            nonce: request.response_nonce,
            error: request.error_detail.map(|e| e.message),
            names: Names::Delta {
                subscribe: request.resource_names_subscribe,
                unsubscribe: request.resource_names_unsubscribe,
                have: request.initial_resource_versions,
            },
        }
    }

    fn response(push: Push, version: String) -> DeltaResponse {
        DeltaResponse { push, version }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Caller;
    use futures_util::{StreamExt, stream};
    use weft_proto::envoy::config::core::v3::Node;
    use weft_proto::type_url;
    use weft_xds_gen::on_demand::Directory;

    /// A proxy that takes what it asks for, and a mesh without anything.
    struct Asked;

    impl Generate for Asked {
        fn generate(&self, _: &Arc<MeshSnapshot>, _: &ProxyView) -> Arc<ProxyResources> {
            Arc::new(ProxyResources { directory: Some(Directory::default()), ..Default::default() })
        }
    }

    fn question(number: usize) -> DeltaDiscoveryRequest {
        let node = Node { id: "sidecar~10.0.0.1~p.default~default.svc.x".into(), ..Default::default() };
        DeltaDiscoveryRequest {
            node: (number == 0).then_some(node),
            type_url: type_url::DEMAND.into(),
            resource_names_subscribe: vec![format!("http/80/{number}")],
            ..Default::default()
        }
    }

    /// Returns when a proxy has the answers to so many questions.
    async fn answered(server: &AdsServer, count: usize) {
        let all = |offer: Arc<crate::Offer>| offer.answered() == Some(count);
        while !server.shared.registry.list().iter().any(|proxy| proxy.offer().is_some_and(all)) {
            tokio::task::yield_now().await;
        }
    }

    /// In a storm everybody's configuration is made anew: who has asked a question waits for its answer alone.
    #[tokio::test]
    async fn questions_do_not_queue_behind_generations() {
        let server = AdsServer::new(Asked, Options::default());
        server.publish(Arc::default());
        let (ask, asked) = mpsc::channel(QUEUE);
        let (sink, mut responses) = mpsc::channel(QUEUE);
        let serving = serve::<Delta>(server.shared.clone(), Caller::Unproven, None, ReceiverStream::new(asked), sink);
        let questions = async {
            ask.send(Ok(question(0))).await.unwrap();
            answered(&server, 1).await;
            let turns = &server.shared.generating;
            let others = turns.acquire_many(u32::try_from(turns.available_permits()).unwrap()).await.unwrap();
            ask.send(Ok(question(1))).await.unwrap();
            answered(&server, 2).await;
            drop(others);
        };
        let in_time = tokio::time::timeout(Duration::from_secs(30), async {
            tokio::select! {
                () = serving => panic!("the stream ended: {:?}", responses.recv().await),
                () = questions => {}
            }
        });
        in_time.await.expect("in time");
    }

    #[tokio::test]
    async fn questions_that_come_together_are_looked_into_together() {
        let server = AdsServer::new(Asked, Options::default());
        server.publish(Arc::default());
        let requests = stream::iter((0..60).map(question).map(Ok)).chain(stream::pending());
        let (sink, mut responses) = mpsc::channel(QUEUE);
        let serving = serve::<Delta>(server.shared.clone(), Caller::Unproven, None, requests, sink);
        let looked_into = async {
            let wanted = |metrics: &str| {
                let count = metrics.lines().find_map(|line| line.strip_prefix("weft_xds_on_demand_time_count "));
                count.and_then(|count| count.parse::<usize>().ok()).unwrap_or_default()
            };
            answered(&server, 60).await;
            wanted(&server.shared.metrics.render(&[]))
        };
        let times = tokio::time::timeout(Duration::from_secs(30), async {
            tokio::select! {
                () = serving => panic!("the stream ended: {:?}", responses.recv().await),
                times = looked_into => times,
            }
        });
        assert_eq!(times.await.expect("in time"), 3, "at the start, with the first request, and with the others");
    }
}
