//! The TLS port: accepts connections, takes them through the handshake within bounds, and hands them to the gRPC server.

use crate::idle::{Guest, Quiet};
use crate::settings::CompliancePolicy;
use arc_swap::ArcSwap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::transport::server::Connected;
use weft_ca::{Signing, TlsConnection};
use weft_tls::{ClientAuth, ServerContext, ServerParams, TlsSettings, TlsVersion};
use weft_xds_server::places::{Place, Places};

/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 60 } else { 10 });
/// Connections at once, handshakes included.
const MAX_CONNECTIONS: usize = if cfg!(test) { 16 } else { 20_000 };
/// Accepted connections that wait for the gRPC server.
const QUEUE: usize = 64;
/// Lifetime of the server's certificate; a new one is made at half of it.
const SERVER_CERT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Least time between renewals, and between tries.
const RENEW_PAUSE: Duration = Duration::from_secs(5);

/// The context in force; replaced when the certificate or the authority changes.
pub(crate) type ServerTls = Arc<ArcSwap<ServerContext>>;

/// A context with a certificate for `names`; client certificates are optional, but must be of our mesh.
///
/// # Errors
/// When there is no certificate, or a setting cannot be met.
pub(crate) async fn context(
    signing: &Signing,
    names: &[String],
    tls: TlsSettings,
) -> Result<ServerContext, weft_ca::SignError> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let certificate = signing.server_certificate(&names, SERVER_CERT_TTL).await?;
    let mut anchors = signing.roots().clone();
    if !signing.crl_pem().is_empty() {
        anchors = anchors.with_crls(signing.crl_pem().as_bytes())?;
    }
    Ok(ServerContext::build(ServerParams {
        certificates: vec![certificate],
        client_auth: ClientAuth::Optional { anchors, san: None },
        alpn: vec![b"h2".to_vec()],
        settings: tls,
    })?)
}

/// What may be agreed on: everything that is safe today, or with the policy `pqc` the hybrid key exchange alone.
pub(crate) fn tls_settings(policy: Option<CompliancePolicy>) -> TlsSettings {
    match policy {
        None => TlsSettings::default(),
        Some(CompliancePolicy::Pqc) => TlsSettings {
            min_version: TlsVersion::V1_3,
            groups: vec!["X25519MLKEM768".into()],
            ..TlsSettings::default()
        },
    }
}

/// Renews the context when what signs changes, and at half of the certificate's life; tries again when that fails.
pub(crate) async fn renew(
    context: ServerTls,
    mut signing: watch::Receiver<Signing>,
    names: Vec<String>,
    tls: TlsSettings,
) {
    loop {
        let life = context.load().certificates().first().map(|certificate| certificate.facts().not_after);
        let left = life.and_then(|end| end.duration_since(SystemTime::now()).ok()).unwrap_or_default();
        // An authority elsewhere may give less than was asked for.
        let pause = (left / 2).min(SERVER_CERT_TTL / 2).max(RENEW_PAUSE);
        let more = tokio::select! {
            () = tokio::time::sleep(pause) => true,
            changed = signing.changed() => changed.is_ok(),
        };
        if !more {
            return;
        }
        let now = signing.borrow_and_update().clone();
        match self::context(&now, &names, tls.clone()).await {
            Ok(new) => context.store(Arc::new(new)),
            Err(error) => {
                tracing::error!("the server's certificate could not be renewed, trying again: {error}");
                tokio::time::sleep(RENEW_PAUSE).await;
                signing.mark_changed();
            }
        }
    }
}

/// A connection that counts against the bound until it ends.
pub(crate) struct Guarded {
    stream: Quiet<TlsConnection<TcpStream>>,
    _slot: Slot,
}

/// A place of the port, and one of the address.
type Slot = (OwnedSemaphorePermit, Place<IpAddr>);

/// Accepts on `listener` until the receiver is dropped.
pub(crate) fn accept(listener: TcpListener, context: ServerTls) -> mpsc::Receiver<io::Result<Guarded>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let places = Places::new(MAX_CONNECTIONS);
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            match accepted {
                Ok((stream, remote)) => {
                    let Ok(place) = places.take_for(remote.ip().to_canonical()) else { continue };
                    tokio::spawn(handshake(stream, remote, context.load_full(), (slot, place), sender.clone()));
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
    slot: Slot,
    sender: mpsc::Sender<io::Result<Guarded>>,
) {
    // Responses are small and latency counts.
    let _ = stream.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, context.accept(stream)).await {
        Ok(Ok(accepted)) => {
            let guarded = Guarded { stream: Quiet::new(TlsConnection::new(accepted, remote)), _slot: slot };
            // The server is going away: so does the connection.
            let _ = sender.send(Ok(guarded)).await;
        }
        Ok(Err(error)) => tracing::debug!(%remote, "TLS handshake: {error}"),
        Err(_) => tracing::debug!(%remote, "TLS handshake took longer than 10 s"),
    }
}

impl Connected for Guarded {
    type ConnectInfo = Guest;

    fn connect_info(&self) -> Guest {
        Guest { info: self.stream.get_ref().connect_info(), requests: self.stream.requests().clone() }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idle::IDLE;
    use tokio::io::AsyncReadExt;
    use weft_ca::{Authority, CaPolicy};
    use weft_identity::TrustDomain;
    use weft_tls::{ClientContext, ClientParams, ServerVerification};

    /// A port, and a client that trusts it.
    async fn served() -> (SocketAddr, mpsc::Receiver<io::Result<Guarded>>, ClientContext) {
        weft_tls::install_provider();
        let domain = TrustDomain::new("td").unwrap();
        let authority = Arc::new(Authority::self_signed(domain, CaPolicy::default(), SystemTime::now()).unwrap());
        let roots = authority.roots().clone();
        let served = context(&Signing::Own(authority), &["istiod".into()], TlsSettings::default()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = ClientContext::build(ClientParams {
            sni: Some("istiod".into()),
            alpn: vec![b"h2".to_vec()],
            ..ClientParams::new(ServerVerification::WebPki { anchors: roots, san: None })
        });
        (address, accept(listener, Arc::new(ArcSwap::from_pointee(served))), client.unwrap())
    }

    #[tokio::test]
    async fn class_idle_connections_are_closed_and_busy_ones_are_not() {
        let (address, mut connections, client) = served().await;
        let mut kept = Vec::new();
        for busy in [false, true] {
            kept.push(client.connect(TcpStream::connect(address).await.unwrap()).await.unwrap());
            let mut guarded = connections.recv().await.unwrap().unwrap();
            let open = busy.then(|| guarded.stream.requests().begin());
            let read = tokio::time::timeout(IDLE * 3, guarded.read_u8()).await;
            match (busy, read) {
                (false, Ok(Err(error))) => assert_eq!(error.kind(), io::ErrorKind::TimedOut),
                (true, Err(_)) => {}
                (busy, read) => panic!("busy {busy}: {read:?}"),
            }
            drop(open);
        }
    }

    #[tokio::test]
    async fn class_idle_connections_of_one_address_do_not_take_all_places() {
        let (address, _connections, client) = served().await;
        // They say nothing, and are as many as there are places.
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let last = silent.last_mut().unwrap();
        let ended = tokio::time::timeout(HANDSHAKE_TIMEOUT / 2, last.read_u8()).await;
        assert!(ended.expect("half of all places are for others").is_err());
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        client.connect(socket.connect(address).await.unwrap()).await.unwrap();
    }
}
