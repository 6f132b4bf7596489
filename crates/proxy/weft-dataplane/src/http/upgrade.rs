//! Connections that become something else: WebSocket over HTTP/1.1 and over HTTP/2 (RFC 8441), and `CONNECT`. After the
//! upstream agreed, bytes pass both ways until one side is done.

use crate::chain::ChainRuntime;
use crate::http::exchange::Exchange;
use crate::http::place::Place;
use crate::standing::{End, Standing};
use crate::tunnel::{self, Ended, Traffic};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use h2::ext::Protocol;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use weft_cluster::Lease;
use weft_cluster::cluster::TcpGuard;
use weft_codec::upgrade::Upgrading;
use weft_codec::{Flags, HeaderMarks, Io, LocalReply, ProxyBody, Reason, hop};
use weft_core::Strng;
use weft_proxy_config::HttpConnectionManager;

const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const SEC_WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// What a client wants its connection to become.
pub(crate) struct Upgrade {
    /// `websocket`, `connect` …, lower case.
    pub name: Strng,
    /// How it was asked for.
    pub kind: UpgradeKind,
    /// The client's side, once the response has gone out.
    pub client: Upgrading,
    /// The configuration allows it.
    pub allowed: bool,
}

/// How an upgrade is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UpgradeKind {
    /// `upgrade` header of HTTP/1.1.
    Header,
    /// `CONNECT host:port`.
    Connect,
    /// Extended CONNECT of HTTP/2.
    Extended,
}

impl std::fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upgrade").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// What the request asks for, if anything. An upgrade to `h2c` is not one: the request is served as it is (RFC 9113 §3.1).
pub(crate) fn asked_for(
    request: &Request<ProxyBody>,
    client: Option<Upgrading>,
    marks: HeaderMarks,
    hcm: &HttpConnectionManager,
) -> Option<Upgrade> {
    let (name, kind) = if request.method() == Method::CONNECT {
        match request.extensions().get::<Protocol>() {
            Some(protocol) => (protocol.as_str().to_ascii_lowercase(), UpgradeKind::Extended),
            None => ("connect".to_string(), UpgradeKind::Connect),
        }
    } else {
        if !marks.has(HeaderMarks::UPGRADE) || request.version() != Version::HTTP_11 {
            return None;
        }
        let asked = request.headers().get(UPGRADE)?.to_str().ok()?.to_ascii_lowercase();
        let meant = request.headers().get_all(CONNECTION).iter().any(|v| hop::has_token(v, "upgrade"));
        if !meant || asked == "h2c" {
            return None;
        }
        (asked, UpgradeKind::Header)
    };
    let allowed = hcm.upgrades.iter().any(|known| **known == *name);
    Some(Upgrade { name: Strng::from(name), kind, client: client?, allowed })
}

impl Upgrade {
    /// The route's own list says more than the connection manager's.
    pub fn is_allowed(&self, route: Option<&[(Strng, bool)]>) -> bool {
        let by_route = route.and_then(|list| list.iter().find(|(name, _)| **name == *self.name));
        by_route.map_or(self.allowed, |(_, enabled)| *enabled)
    }

    /// Puts the wish into a head whose hop-by-hop headers are gone, as HTTP/1.1 has it: extended CONNECT is a `GET`. So routes
    /// and policies see one request, whichever protocol it came by, and the one that an endpoint may get.
    pub fn show(&self, method: &mut Method, headers: &mut HeaderMap) {
        if self.kind == UpgradeKind::Connect {
            return;
        }
        if self.kind == UpgradeKind::Extended {
            *method = Method::GET;
        }
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Ok(name) = HeaderValue::from_str(&self.name) {
            headers.insert(UPGRADE, name);
        }
    }

    /// The refusal of one that is not allowed.
    pub fn refusal() -> Box<LocalReply> {
        Box::new(LocalReply::new(Reason::UpgradeForbidden))
    }

    /// Puts the wish into the request for an endpoint, in the words of its protocol.
    pub fn ask_endpoint<B>(&self, request: &mut Request<B>, is_http2: bool) {
        match (self.kind, is_http2) {
            (UpgradeKind::Connect, _) => *request.method_mut() = Method::CONNECT,
            (_, true) => {
                *request.method_mut() = Method::CONNECT;
                request.extensions_mut().insert(Protocol::from(&*self.name));
                for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_KEY] {
                    request.headers_mut().remove(name);
                }
            }
            (kind, false) => {
                // The method is the one that was judged.
                let headers = request.headers_mut();
                headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
                if let Ok(name) = HeaderValue::from_str(&self.name) {
                    headers.insert(UPGRADE, name);
                }
                if kind == UpgradeKind::Extended
                    && &*self.name == "websocket"
                    && !headers.contains_key(SEC_WEBSOCKET_KEY)
                {
                    headers.insert(SEC_WEBSOCKET_KEY, websocket_key());
                }
            }
        }
    }

    /// True when the endpoint's response agrees.
    pub fn is_agreed(&self, status: StatusCode, is_http2: bool) -> bool {
        if is_http2 || self.kind == UpgradeKind::Connect {
            status.is_success()
        } else {
            status == StatusCode::SWITCHING_PROTOCOLS
        }
    }

    /// Says the endpoint's agreement in the client's words.
    pub fn tell_client(&self, status: &mut StatusCode, headers: &mut HeaderMap, client_key: Option<&HeaderValue>) {
        if self.kind != UpgradeKind::Header {
            *status = StatusCode::OK;
            headers.remove(SEC_WEBSOCKET_ACCEPT);
            return;
        }
        *status = StatusCode::SWITCHING_PROTOCOLS;
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Ok(name) = HeaderValue::from_str(&self.name) {
            headers.insert(UPGRADE, name);
        }
        if let Some(key) = client_key
            && !headers.contains_key(SEC_WEBSOCKET_ACCEPT)
        {
            headers.insert(SEC_WEBSOCKET_ACCEPT, websocket_accept(key));
        }
    }
}

/// The client's key, which an HTTP/2 endpoint never sees.
pub(crate) fn websocket_key_of(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(SEC_WEBSOCKET_KEY).cloned()
}

/// `sec-websocket-accept` for a key (RFC 6455 §4.2.2).
fn websocket_accept(key: &HeaderValue) -> HeaderValue {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let digest = weft_tls::sha1(&[key.as_bytes(), GUID].concat());
    HeaderValue::from_str(&STANDARD.encode(digest)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn websocket_key() -> HeaderValue {
    let nonce = fastrand::u128(..).to_be_bytes();
    let text = STANDARD.encode(nonce);
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

/// Passes bytes between client and an endpoint that speaks no HTTP.
pub(crate) fn tunnel_to(exchange: Rc<Exchange>, client: Upgrading, endpoint: (Io, TcpGuard), idle: Option<Duration>) {
    tokio::task::spawn_local(async move {
        let (io, open) = endpoint;
        let traffic = Traffic::default();
        let pass = async {
            match client.done().await {
                Ok(client) => tunnel::run(client, io, idle, &traffic).await,
                Err(error) => Ended::Failed(error),
            }
        };
        last(&exchange, &traffic, pass).await;
        drop(open);
    });
}

/// Passes bytes between client and endpoint from when the client's side is through with HTTP.
pub(crate) fn tunnel(
    exchange: Rc<Exchange>,
    client: Upgrading,
    endpoint: Upgrading,
    held: (Lease, Place),
    idle: Option<Duration>,
) {
    tokio::task::spawn_local(async move {
        let traffic = Traffic::default();
        let pass = async {
            match (client.done().await, endpoint.done().await) {
                (Ok(client), Ok(endpoint)) => tunnel::run(client, endpoint, idle, &traffic).await,
                (Err(error), _) | (_, Err(error)) => Ended::Failed(error),
            }
        };
        last(&exchange, &traffic, pass).await;
        drop(held);
    });
}

/// A tunnel from its beginning to its end: it ends by itself, or because it must.
async fn last(exchange: &Exchange, traffic: &Traffic, pass: impl Future<Output = Ended>) {
    exchange.clear_limits();
    exchange.complete_request();
    exchange.facts.borrow_mut().finished = true;
    let stats = &exchange.http.stats;
    stats.cx_upgrades_total.inc();
    stats.cx_upgrades_active.add(1);
    tokio::select! {
        biased;
        end = forbidden(exchange) => exchange.note(Flags::NONE, end.details()),
        () = too_old(exchange) => exchange.note(Reason::MaxDuration.flag(), Reason::MaxDuration.details()),
        ended = pass => match ended {
            Ended::Idle => exchange.note(Flags::SI, Reason::StreamIdleTimeout.details()),
            Ended::Failed(error) => tracing::debug!(%error, "tunnel broke off"),
            Ended::Closed => {}
        },
    }
    exchange.count(traffic.received(), traffic.sent());
    stats.cx_upgrades_active.add(-1);
}

/// Returns when the tunnel's filter chain is gone, or authorization would refuse its connection or its request now.
async fn forbidden(exchange: &Exchange) -> End {
    let conn = &exchange.conn;
    let admitted = exchange.facts.borrow_mut().admitted.take();
    let current = conn.slot.current();
    let is_judged = current.http.as_ref().is_some_and(|http| Rc::ptr_eq(http, &exchange.http));
    let standing = Standing::new(&conn.entry().standing.seat, is_judged.then_some(current));
    let by_request = |chain: &ChainRuntime| admitted.as_ref()?.denied(&conn.downstream, chain.http.as_deref()?);
    let of_connection = Cell::new(false);
    let end = standing.ended(|chain| {
        let denied = conn.denied(chain);
        of_connection.set(denied.is_some());
        denied.or_else(|| by_request(chain))
    });
    let end = end.await;
    // Over HTTP/2 the connection ends as well, and counts it.
    if of_connection.get() && conn.is_http1() { conn.counted(end) } else { end }
}

/// Returns when the longest life of the stream or of its connection is over.
async fn too_old(exchange: &Exchange) {
    let of_stream = exchange.longest_life().map(|longest| exchange.began + longest);
    match of_stream.into_iter().chain(exchange.conn.longest_life()).min() {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_keys() {
        // The example of RFC 6455 §1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(websocket_accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
