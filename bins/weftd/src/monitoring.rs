//! Connections of the monitoring port, within bounds. What is shown there is [`weft_xds_server::debug`]'s business.
//!
//! The port speaks plain HTTP with whoever comes. Nobody may hold a place for longer than questions take, nor all places from one
//! address: the kubelet's probe finds one, and so does whoever scrapes.

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::Service as _;
use weft_xds_server::places::Places;

/// Connections at once; of one address at most half of them.
const MAX_CONNECTIONS: usize = 1024;
/// Time for the head of a request, and between requests.
const HEAD: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// Longest head, in bytes: a token has at most 16 KiB.
const MAX_HEAD: usize = 64 * 1024;
/// Age at which a connection takes no more requests, and time for the last answer: who reads slowly is gone then.
const AGE: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(30));

/// Serves `app` until `closing`, then until the requests under way are answered.
///
/// # Errors
/// None; the type is that of the other servers.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    mut closing: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let places = Places::new(MAX_CONNECTIONS);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        match accepted {
            Ok((stream, remote, slot)) => {
                let Ok(place) = places.take_for(remote.ip().to_canonical()) else { continue };
                let served = connection(stream, remote, app.clone(), closing.clone());
                connections.spawn(async move {
                    served.await;
                    drop((slot, place));
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: others must end first.
                tracing::warn!("monitoring port: accept: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

type Accepted = (TcpStream, SocketAddr, OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> io::Result<Accepted> {
    let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, remote) = listener.accept().await?;
    Ok((stream, remote, slot))
}

async fn connection(stream: TcpStream, remote: SocketAddr, app: Router, mut closing: watch::Receiver<bool>) {
    let answer = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(remote));
        app.clone().call(request)
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
    let served = builder.serve_connection(TokioIo::new(stream), answer);
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = &mut served => Some(ended),
        _ = closing.wait_for(|closing| *closing) => None,
        () = sleep(AGE.0) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            served.as_mut().graceful_shutdown();
            timeout(AGE.1, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%remote, "monitoring port: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn class_idle_connections_are_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (close, closing) = watch::channel(false);
        let who = |ConnectInfo(remote): ConnectInfo<SocketAddr>| async move { remote.ip().to_string() };
        let server = tokio::spawn(serve(listener, Router::new().route("/", get(who)), closing));
        // Nothing, the half of a head, and a request after which there is no other.
        for (sent, wanted) in
            [("", ""), ("GET / HTTP/1.1\r\nHost: a\r\n", ""), ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "127.0.0.1")]
        {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let ended = timeout(Duration::from_secs(60), stream.read_to_string(&mut answer)).await;
            assert!(ended.is_ok(), "{sent:?}: the connection stays");
            assert!(answer.ends_with(wanted) && answer.contains("200 OK") != wanted.is_empty(), "{sent:?}: {answer}");
        }
        close.send_replace(true);
        timeout(Duration::from_secs(60), server).await.unwrap().unwrap().unwrap();
    }
}
