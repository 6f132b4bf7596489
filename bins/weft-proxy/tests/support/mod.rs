//! A control plane on loopback: a certificate authority and an ADS server behind one TLS port, as weftd has them.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_ca::{
    AuthFailure, Authority, CaPolicy, CertificateAuthenticator, CertificateService, TlsConnection, TokenAuthenticator,
    TokenIdentity, TokenReview,
};
use weft_identity::TrustDomain;
use weft_proto::Any;
use weft_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
pub use weft_test_ports::free_port;
use weft_tls::{ClientAuth, ServerContext, ServerParams};

pub const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";

/// Resources by type URL and name.
pub type Resources = BTreeMap<String, BTreeMap<String, Any>>;

/// What the server saw and what it serves.
#[derive(Clone)]
pub struct Ads {
    pub resources: watch::Sender<Resources>,
    pub nacks: Arc<Mutex<Vec<String>>>,
    pub nodes: Arc<Mutex<Vec<String>>>,
}

impl Default for Ads {
    fn default() -> Self {
        Self { resources: watch::Sender::new(Resources::new()), nacks: Arc::default(), nodes: Arc::default() }
    }
}

impl Ads {
    pub fn set(&self, type_url: &str, name: &str, any: Any) {
        self.resources.send_modify(|all| {
            all.entry(type_url.to_owned()).or_default().insert(name.to_owned(), any);
        });
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (answers, stream) = mpsc::channel(16);
        tokio::spawn(self.clone().serve(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Ads {
    async fn serve(
        self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) {
        let mut resources = self.resources.subscribe();
        let mut sent: BTreeMap<String, BTreeMap<String, Any>> = BTreeMap::new();
        loop {
            tokio::select! {
                request = requests.next() => {
                    let Some(Ok(request)) = request else { return };
                    if let Some(node) = &request.node {
                        self.nodes.lock().unwrap().push(node.id.clone());
                    }
                    if let Some(error) = &request.error_detail {
                        self.nacks.lock().unwrap().push(error.message.clone());
                    }
                    if request.response_nonce.is_empty() {
                        sent.insert(request.type_url.clone(), BTreeMap::new());
                        self.push(&request.type_url, &mut sent, true, &answers).await;
                    }
                }
                changed = resources.changed() => {
                    if changed.is_err() { return }
                    for type_url in sent.keys().cloned().collect::<Vec<_>>() {
                        self.push(&type_url, &mut sent, false, &answers).await;
                    }
                }
            }
        }
    }

    /// Sends what changed of a type since it was last sent.
    async fn push(
        &self,
        type_url: &str,
        sent: &mut Resources,
        always: bool,
        answers: &mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) {
        let now = self.resources.borrow().get(type_url).cloned().unwrap_or_default();
        let before = sent.entry(type_url.to_owned()).or_default();
        let changed: Vec<Resource> = now
            .iter()
            .filter(|(name, any)| before.get(*name) != Some(any))
            .map(|(name, any)| Resource {
                name: name.clone(),
                version: "1".into(),
                resource: Some(any.clone()),
                ..Resource::default()
            })
            .collect();
        *before = now;
        if changed.is_empty() && !always {
            return;
        }
        let response = DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce: format!("{:p}", before),
            resources: changed,
            ..DeltaDiscoveryResponse::default()
        };
        let _ = answers.send(Ok(response)).await;
    }
}

/// A running control plane; gone on drop.
pub struct ControlPlane {
    pub authority: Arc<Authority>,
    pub ads: Ads,
    pub address: String,
    task: tokio::task::JoinHandle<()>,
}

impl ControlPlane {
    pub async fn start() -> Self {
        let domain = TrustDomain::new("cluster.local").unwrap();
        let authority = Authority::self_signed(domain, CaPolicy::default(), SystemTime::now()).unwrap();
        // One that can be bound again when it was let go.
        Self::serve(Arc::new(authority), Ads::default(), &format!("127.0.0.1:{}", free_port())).await
    }

    pub async fn serve(authority: Arc<Authority>, ads: Ads, address: &str) -> Self {
        let domain = authority.trust_domain().clone();
        let review: TokenReview = Arc::new(|token| {
            Box::pin(async move {
                match token.as_str() {
                    "reviews-token" => {
                        Ok(TokenIdentity { namespace: "default".into(), service_account: "reviews".into() })
                    }
                    _ => Err(AuthFailure::Refused("the token is not accepted".into())),
                }
            })
        });
        let certificates = CertificateService::new(
            authority.clone(),
            vec![
                Arc::new(CertificateAuthenticator::new(vec![domain.clone()])),
                Arc::new(TokenAuthenticator::new(domain, review)),
            ],
        );
        let own = authority
            .server_certificate(&["istiod.istio-system.svc"], None, Duration::from_secs(600), SystemTime::now())
            .unwrap();
        let context = ServerContext::build(ServerParams {
            certificates: vec![own],
            client_auth: ClientAuth::Optional { anchors: authority.roots().clone(), san: None },
            alpn: vec![b"h2".to_vec()],
            ..ServerParams::default()
        })
        .unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let task = tokio::spawn(accept(listener, context, certificates, ads.clone()));
        Self { authority, ads, address, task }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, context: ServerContext, certificates: CertificateService, ads: Ads) {
    let (ready, incoming) = mpsc::channel::<std::io::Result<TlsConnection<TcpStream>>>(16);
    let server = tonic::transport::Server::builder()
        .add_service(certificates.into_server())
        .add_service(AggregatedDiscoveryServiceServer::new(ads))
        .serve_with_incoming(ReceiverStream::new(incoming));
    let accepting = async {
        while let Ok((stream, remote)) = listener.accept().await {
            if let Ok(accepted) = context.accept(stream).await {
                let _ = ready.send(Ok(TlsConnection::new(accepted, remote))).await;
            }
        }
    };
    tokio::select! {
        _ = server => {}
        () = accepting => {}
    }
}

/// Longest that any single step of a test may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `probe` gives something, in time.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, probe: impl Fn() -> F) -> T {
    let found = async {
        loop {
            match probe().await {
                Some(found) => break found,
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{what} within {PATIENCE:?}"))
}

fn unchunked(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

/// Status and body of one HTTP/1 request, by hand: nothing of the product is in it.
pub async fn http(method: &str, port: u16, path: &str) -> Option<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(head.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        Some((status, if chunked { unchunked(body)? } else { body.to_owned() }))
    };
    tokio::time::timeout(PATIENCE / 2, exchange).await.ok()?
}
