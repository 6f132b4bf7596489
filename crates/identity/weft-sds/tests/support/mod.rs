//! A certificate authority on loopback, as weftd serves it: TLS under its own root, tokens for authentication.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use weft_ca::{
    AuthFailure, Authority, CaPolicy, CertificateAuthenticator, CertificateService, TlsConnection, TokenAuthenticator,
    TokenIdentity, TokenReview,
};
use weft_identity::TrustDomain;
use weft_sds::{SvidConfig, WorkloadSecrets};
use weft_tls::{ClientAuth, ServerContext, ServerParams};

pub const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";

pub fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

/// A running authority; aborted on drop.
pub struct Ca {
    pub authority: Arc<Authority>,
    pub service: CertificateService,
    pub address: String,
    task: tokio::task::JoinHandle<()>,
}

impl Ca {
    pub async fn start() -> Self {
        let authority = Authority::self_signed(domain(), CaPolicy::default(), SystemTime::now()).unwrap();
        // A port that can be bound again when it was let go.
        Self::serve(Arc::new(authority), &format!("127.0.0.1:{}", weft_test_ports::free_port())).await
    }

    pub async fn serve(authority: Arc<Authority>, address: &str) -> Self {
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
        let service = CertificateService::new(
            authority.clone(),
            vec![
                Arc::new(CertificateAuthenticator::new(vec![domain()])),
                Arc::new(TokenAuthenticator::new(domain(), review)),
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
        let task = tokio::spawn(accept(listener, context, service.clone()));
        Self { authority, service, address, task }
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, context: ServerContext, service: CertificateService) {
    let (ready, incoming) = mpsc::channel::<std::io::Result<TlsConnection<tokio::net::TcpStream>>>(16);
    let server = tonic::transport::Server::builder()
        .add_service(service.into_server())
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

/// A pod's folder with the files that the agent reads.
pub struct Pod {
    pub directory: tempfile::TempDir,
}

impl Pod {
    pub fn new(root_pem: &str, token: Option<&str>) -> Self {
        let pod = Self { directory: tempfile::tempdir().unwrap() };
        std::fs::write(pod.path("root-cert.pem"), root_pem).unwrap();
        if let Some(token) = token {
            std::fs::write(pod.path("token"), token).unwrap();
        }
        pod
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn config(&self, ca: &str, ttl: u64) -> SvidConfig {
        SvidConfig {
            root_cert_path: self.path("root-cert.pem"),
            token_path: self.path("token"),
            ttl: Duration::from_secs(ttl),
            root_poll: Duration::from_millis(50),
            request_timeout: Duration::from_secs(20),
            ..SvidConfig::new(ca)
        }
    }
}

type Secrets = watch::Receiver<Option<Arc<WorkloadSecrets>>>;

/// The first secrets for which `wanted` holds, in time.
pub async fn secrets_when(secrets: &mut Secrets, wanted: impl Fn(&WorkloadSecrets) -> bool) -> Arc<WorkloadSecrets> {
    let found = secrets.wait_for(|now| now.as_ref().is_some_and(|secrets| wanted(secrets)));
    let found = tokio::time::timeout(Duration::from_secs(60), found).await.expect("secrets in time");
    found.unwrap().clone().unwrap()
}
