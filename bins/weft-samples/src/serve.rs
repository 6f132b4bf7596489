//! Serving HTTP until SIGTERM, on both address families where the machine has them.

use anyhow::Context as _;
use axum::Router;
use clap::Args;
use std::net::SocketAddr;
use tokio::net::TcpListener;

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
