//! External authorization of requests: what is shown to the authorizer, and what its verdict does.

use crate::ask::{Ask, ask};
use crate::downstream::Downstream;
use crate::http::exchange::Exchange;
use crate::http::filters::Marks;
use crate::http::intake::Head;
use crate::worker::Worker;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderValue, Method, Request, Uri, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::SystemTime;
use weft_codec::{LocalReply, ProxyBody, Reason, grpc};
use weft_core::Strng;
use weft_filter::ext_authz::{self, Changes, Connection, MAX_ANSWER, Question, Verdict};
use weft_proxy_config::{AuthzBody, AuthzService, ExtAuthz};
use weft_route::MetadataValue;

/// Name under which an authorizer's metadata is known.
static EXT_AUTHZ: LazyLock<Strng> = LazyLock::new(|| Strng::from(ext_authz::FILTER));

/// Asks about a request; true when the route is to be chosen again.
///
/// # Errors
/// The answer to a request that may not go on.
pub(crate) async fn request(
    exchange: &Exchange,
    head: &mut Head,
    body: &mut ProxyBody,
    marks: &mut Marks,
    filter: &ExtAuthz,
) -> Result<bool, Box<LocalReply>> {
    if filter.enabled.as_ref().is_some_and(|enabled| !enabled.matches(&head.metadata)) {
        return Ok(false);
    }
    let stats = &exchange.http.stats;
    let shown = match filter.body {
        Some(how) => Some(look_into(exchange, body, how).await?),
        None => None,
    };
    let downstream = &exchange.conn.downstream;
    let question = Question {
        connection: connection(downstream, filter),
        request: Some(head.facts()),
        protocol: if head.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" },
        body: shown.as_ref().map(|(bytes, whole)| (&bytes[..], *whole)),
        metadata: &head.metadata,
        time: SystemTime::now(),
    };
    match verdict(&exchange.conn.worker, filter, &question).await {
        Ok(Verdict::Allowed(changes)) => {
            stats.ext_authz_ok.inc();
            take_over(head, marks, *changes, filter.reroute)
        }
        Ok(Verdict::Denied(reply)) => {
            stats.ext_authz_denied.inc();
            Err(reply)
        }
        Ok(Verdict::Failed(why)) => {
            stats.ext_authz_error.inc();
            if filter.fail_open {
                tracing::debug!(target: "ext_authz", %why, "not asked; the request goes on, as the filter says");
                stats.ext_authz_failure_mode_allowed.inc();
                if filter.fail_open_header {
                    head.headers.insert(ext_authz::FAILURE_ALLOWED, HeaderValue::from_static("true"));
                }
                return Ok(false);
            }
            tracing::debug!(target: "ext_authz", %why, "not asked; the request is denied");
            Err(Box::new(ext_authz::failed(filter)))
        }
        Err(why) => {
            // What cannot be shown is denied whatever the filter says of failures.
            stats.ext_authz_error.inc();
            tracing::debug!(target: "ext_authz", %why, "the request cannot be shown and is denied");
            Err(Box::new(ext_authz::failed(filter)))
        }
    }
}

/// Asks about a connection.
///
/// # Errors
/// Why it may not go on.
pub(crate) async fn connection_allowed(
    worker: &Rc<Worker>,
    downstream: &Downstream,
    metadata: &[(Strng, MetadataValue)],
    filter: &ExtAuthz,
) -> Result<(), &'static str> {
    if filter.enabled.as_ref().is_some_and(|enabled| !enabled.matches(metadata)) {
        return Ok(());
    }
    let question = Question {
        connection: connection(downstream, filter),
        request: None,
        protocol: "",
        body: None,
        metadata,
        time: SystemTime::now(),
    };
    match verdict(worker, filter, &question).await {
        Ok(Verdict::Allowed(_)) => Ok(()),
        Ok(Verdict::Denied(_)) => Err("ext_authz_denied"),
        Ok(Verdict::Failed(why)) => {
            tracing::debug!(target: "ext_authz", %why, fail_open = filter.fail_open, "a connection was not asked about");
            if filter.fail_open { Ok(()) } else { Err("ext_authz_error") }
        }
        Err(_) => Err("ext_authz_error"),
    }
}

fn connection<'a>(downstream: &'a Downstream, filter: &ExtAuthz) -> Connection<'a> {
    let peer = downstream.tls.as_ref().and_then(|tls| tls.peer.as_ref()).filter(|_| filter.certificate);
    Connection {
        source: downstream.source,
        destination: downstream.destination,
        peer: downstream.certificate.as_ref(),
        peer_pem: peer.map(|peer| peer.pem_url_encoded().to_string()),
        local: downstream.local_uri.as_deref(),
        server_name: downstream.server_name.as_deref(),
    }
}

/// The verdict.
///
/// # Errors
/// Why the question cannot be put.
async fn verdict(worker: &Rc<Worker>, filter: &ExtAuthz, question: &Question<'_>) -> Result<Verdict, String> {
    let (timeout, most) = (filter.timeout, MAX_ANSWER);
    match &filter.service {
        AuthzService::Grpc(cluster, authority) => {
            let mut request = Request::new(ext_authz::grpc::question(filter, question)?);
            *request.method_mut() = Method::POST;
            *request.uri_mut() = Uri::from_static(ext_authz::grpc::PATH);
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
            let how = Ask { cluster, host: authority, http2: true, timeout, most };
            Ok(match ask(worker, how, request).await {
                Ok(answer) => {
                    let status = answer.trailers.as_ref().and_then(grpc::status);
                    ext_authz::grpc::verdict(status.or_else(|| grpc::status(&answer.head.headers)), &answer.body)
                }
                Err(why) => Verdict::Failed(why),
            })
        }
        AuthzService::Http(http) => {
            let (request, host) = ext_authz::plain::question(filter, http, question)?;
            let how = Ask { cluster: &http.cluster, host: &host, http2: false, timeout, most };
            Ok(match ask(worker, how, request).await {
                Ok(answer) => ext_authz::plain::verdict(http, &answer.head, answer.body),
                Err(why) => Verdict::Failed(why),
            })
        }
    }
}

fn take_over(head: &mut Head, marks: &mut Marks, changes: Changes, reroute: bool) -> Result<bool, Box<LocalReply>> {
    changes.apply(&mut head.headers);
    if !changes.query_set.is_empty() || !changes.query_remove.is_empty() {
        let query = changes.query(head.uri.query()).map(|q| format!("?{q}")).unwrap_or_default();
        head.uri =
            Uri::try_from(format!("{}{query}", head.uri.path())).map_err(|_| LocalReply::new(Reason::BadPath))?;
    }
    let again = reroute && !changes.is_empty();
    marks.response.extend(changes.response);
    if let Some(MetadataValue::Struct(fields)) = changes.metadata {
        for (key, value) in fields {
            weft_route::metadata::put(&mut head.metadata, &EXT_AUTHZ, &key, value);
        }
    }
    Ok(again)
}

/// Reads the beginning of a body and puts it back; with it, whether that was all.
///
/// # Errors
/// 413 for a body that is too long to be shown, 400 for one that breaks off.
async fn look_into(
    exchange: &Exchange,
    body: &mut ProxyBody,
    how: AuthzBody,
) -> Result<(Bytes, bool), Box<LocalReply>> {
    let mut rest = std::mem::take(body);
    let mut read: VecDeque<Frame<Bytes>> = VecDeque::new();
    let mut shown = BytesMut::new();
    let mut whole = true;
    while let Some(frame) = rest.frame().await {
        let Ok(frame) = frame else {
            return Err(Box::new(LocalReply::new(Reason::DownstreamDisconnect)));
        };
        exchange.step();
        if let Some(data) = frame.data_ref() {
            // Frames without data would cost memory that no limit on data bounds.
            if data.is_empty() {
                continue;
            }
            let room = how.most - shown.len();
            shown.extend_from_slice(&data[..data.len().min(room)]);
            whole = data.len() <= room;
        }
        read.push_back(frame);
        if !whole {
            break;
        }
    }
    *body = ProxyBody::put_back(read, rest);
    if !whole && !how.partial {
        return Err(Box::new(LocalReply::new(Reason::PayloadTooLarge)));
    }
    Ok((shown.freeze(), whole))
}
