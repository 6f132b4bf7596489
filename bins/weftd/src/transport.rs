//! The TLS port: accepts connections, takes them through the handshake within bounds, and hands them to the gRPC server.

use arc_swap::ArcSwap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::transport::server::Connected;
use weft_ca::{Authority, ConnectionInfo, TlsConnection};
use weft_tls::{ClientAuth, ServerContext, ServerParams};

/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once, handshakes included.
const MAX_CONNECTIONS: usize = 20_000;
/// Accepted connections that wait for the gRPC server.
const QUEUE: usize = 64;
/// Lifetime of the server's certificate; a new one is made at half of it.
const SERVER_CERT_TTL: Duration = Duration::from_secs(24 * 3600);

/// The context in force; replaced when the certificate or the authority changes.
pub(crate) type ServerTls = Arc<ArcSwap<ServerContext>>;

/// A context with a certificate for `names` by `authority`; client certificates are optional, but must be of its mesh.
///
/// # Errors
/// When a name cannot be written into a certificate, or the crypto library fails.
pub(crate) fn context(authority: &Authority, names: &[String]) -> Result<ServerContext, weft_tls::TlsError> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let certificate = authority.server_certificate(&names, None, SERVER_CERT_TTL, SystemTime::now())?;
    ServerContext::build(ServerParams {
        certificates: vec![certificate],
        client_auth: ClientAuth::Optional { anchors: authority.roots().clone(), san: None },
        alpn: vec![b"h2".to_vec()],
        ..ServerParams::default()
    })
}

/// Renews the context when the authority changes, and at half of the certificate's life.
pub(crate) async fn renew(context: ServerTls, mut authority: watch::Receiver<Arc<Authority>>, names: Vec<String>) {
    loop {
        let more = tokio::select! {
            () = tokio::time::sleep(SERVER_CERT_TTL / 2) => true,
            changed = authority.changed() => changed.is_ok(),
        };
        if !more {
            return;
        }
        let now = authority.borrow_and_update().clone();
        match self::context(&now, &names) {
            Ok(new) => context.store(Arc::new(new)),
            Err(error) => tracing::error!("the server's certificate could not be renewed: {error}"),
        }
    }
}

/// A connection that counts against the bound until it ends.
pub(crate) struct Guarded {
    stream: TlsConnection<TcpStream>,
    _slot: OwnedSemaphorePermit,
}

/// Accepts on `listener` until the receiver is dropped.
pub(crate) fn accept(listener: TcpListener, context: ServerTls) -> mpsc::Receiver<io::Result<Guarded>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            match accepted {
                Ok((stream, remote)) => {
                    tokio::spawn(handshake(stream, remote, context.load_full(), slot, sender.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, mostly: others must end first.
                    tracing::warn!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    receiver
}

async fn handshake(
    stream: TcpStream,
    remote: SocketAddr,
    context: Arc<ServerContext>,
    slot: OwnedSemaphorePermit,
    sender: mpsc::Sender<io::Result<Guarded>>,
) {
    // Responses are small and latency counts.
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, context.accept(stream)).await {
        Ok(Ok(accepted)) => {
            let stream = TlsConnection::new(accepted, remote);
            // The server is going away: so does the connection.
            let _ = sender.send(Ok(Guarded { stream, _slot: slot })).await;
        }
        Ok(Err(error)) => tracing::debug!(%remote, "TLS handshake: {error}"),
        Err(_) => tracing::debug!(%remote, "TLS handshake took longer than 10 s"),
    }
}

impl Connected for Guarded {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
