//! Serving HTTP and HTTPS until SIGTERM, on both address families where the machine has them.

use anyhow::Context as _;
use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use clap::Args;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpListener;
use weft_tls::{CertifiedKey, ServerContext, ServerParams};

/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where a sample listens.
#[derive(Args, Debug, Clone)]
pub struct Listen {
    /// Port; the sample's usual one unless given
    #[arg(env = "PORT")]
    pub port: Option<u16>,
}

/// Binds all addresses of both families, or of IPv4 alone.
pub async fn bind(port: u16) -> anyhow::Result<TcpListener> {
    let both = TcpListener::bind(SocketAddr::from(([0_u16; 8], port))).await;
    match both {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(SocketAddr::from(([0_u8; 4], port))).await.with_context(|| format!("port {port}")),
    }
}

/// Serves `router` on the port given, else on `default_port`.
pub async fn http(listen: Listen, default_port: u16, router: Router) -> anyhow::Result<()> {
    let port = listen.port.unwrap_or(default_port);
    let listener = bind(port).await?;
    println!("listening on port {port}");
    serve(listener, router).await
}

/// Serves `router` on `listener` until SIGTERM or Ctrl-C; requests under way are finished.
pub async fn serve(listener: TcpListener, router: Router) -> anyhow::Result<()> {
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service)
        .with_graceful_shutdown(async {
            let _ = weft_runtime::signal::stop().await;
        })
        .await?;
    Ok(())
}

/// Serves `router` over TLS, HTTP/2 or HTTP/1.1 as the client likes, with `tls.crt` and `tls.key` of a folder, until SIGTERM.
pub async fn https(folder: &Path, port: u16, router: Router) -> anyhow::Result<()> {
    let read = |name: &str| std::fs::read(folder.join(name)).with_context(|| format!("{}/{name}", folder.display()));
    let certificate = CertifiedKey::from_pem(&read("tls.crt")?, &read("tls.key")?)?;
    let alpn = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let params = ServerParams { certificates: vec![certificate], alpn, ..ServerParams::default() };
    let context = ServerContext::build(params)?;
    let listener = bind(port).await?;
    println!("listening on port {port} with TLS");
    let accept = async {
        loop {
            let Ok((stream, peer)) = listener.accept().await else { continue };
            let (context, router) = (context.clone(), router.clone());
            tokio::spawn(async move {
                if let Ok(Ok(accepted)) = tokio::time::timeout(HANDSHAKE, context.accept(stream)).await {
                    let service = TowerToHyperService::new(router.layer(Extension(ConnectInfo(peer))));
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection_with_upgrades(TokioIo::new(accepted.stream), service).await;
                }
            });
        }
    };
    tokio::select! {
        () = accept => {}
        _ = weft_runtime::signal::stop() => {}
    }
    Ok(())
}
