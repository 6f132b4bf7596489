//! Authorizers that are asked by gRPC (`envoy.service.auth.v3.Authorization/Check`).

use super::{Changes, Question, Verdict, is_protected, is_shown};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use prost::Message;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use weft_codec::{LocalReply, Reason};
use weft_proto::envoy::config::core::v3 as core;
use weft_proto::envoy::service::auth::v3 as auth;
use weft_proxy_config::ExtAuthz;
use weft_route::{AppendAction, MetadataValue};

/// Path of the method.
pub const PATH: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Bytes before a message: compressed or not, and its length.
const PREFIX: usize = 5;

/// The question, framed as gRPC frames messages.
///
/// # Errors
/// Why the request cannot be shown.
pub fn question(filter: &ExtAuthz, question: &Question<'_>) -> Result<Bytes, String> {
    let connection = &question.connection;
    let names = |certificate: &weft_authz::PeerCertificate| {
        let name = certificate.uris.first().or(certificate.dns.first());
        name.map_or_else(|| certificate.subject.clone(), ToString::to_string)
    };
    let source = auth::attribute_context::Peer {
        address: Some(address(connection.source)),
        principal: connection.peer.map(names).unwrap_or_default(),
        certificate: connection.peer_pem.clone().filter(|_| filter.certificate).unwrap_or_default(),
        ..Default::default()
    };
    let destination = auth::attribute_context::Peer {
        address: Some(address(connection.destination)),
        principal: connection.local.unwrap_or_default().into(),
        ..Default::default()
    };
    let http = question.request.is_some().then(|| request(filter, question)).transpose()?;
    let time = prost_types::Timestamp::from(question.time);
    let attributes = auth::AttributeContext {
        source: Some(source),
        destination: Some(destination),
        request: Some(auth::attribute_context::Request { time: Some(time), http }),
        metadata_context: Some(metadata(filter, question)),
        tls_session: filter
            .tls_session
            .then(|| auth::attribute_context::TlsSession { sni: connection.server_name.unwrap_or_default().into() }),
        ..Default::default()
    };
    let message = auth::CheckRequest { attributes: Some(attributes) };
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).map_err(|_| "the question is too long".to_string())?);
    message.encode(&mut out).map_err(|error| error.to_string())?;
    Ok(out.freeze())
}

fn address(of: SocketAddr) -> core::Address {
    let socket = core::SocketAddress {
        address: of.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(of.port().into())),
        ..Default::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}

fn request(filter: &ExtAuthz, question: &Question<'_>) -> Result<auth::attribute_context::HttpRequest, String> {
    let Some(asked) = &question.request else { return Err("there is no request".into()) };
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    let pseudo = [
        (":authority", asked.authority),
        (":method", asked.method),
        (":path", asked.path_and_query),
        (":scheme", asked.scheme),
    ];
    for (name, value) in pseudo {
        if is_shown(filter, name, true) {
            headers.insert(name.into(), value.into());
        }
    }
    for (name, value) in asked.headers.iter().filter(|(name, _)| **name != http::header::HOST) {
        if !is_shown(filter, name.as_str(), true) {
            continue;
        }
        let text = std::str::from_utf8(value.as_bytes()).map_err(|_| format!("header {name} is no text"))?;
        headers
            .entry(name.as_str().into())
            .and_modify(|known| {
                known.push(',');
                known.push_str(text);
            })
            .or_insert_with(|| text.into());
    }
    let length = asked.headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let mut out = auth::attribute_context::HttpRequest {
        id: headers.get("x-request-id").cloned().unwrap_or_default(),
        method: asked.method.into(),
        path: asked.path_and_query.into(),
        host: asked.authority.into(),
        scheme: asked.scheme.into(),
        size: length.unwrap_or(-1),
        protocol: question.protocol.into(),
        headers,
        ..Default::default()
    };
    if let Some((bytes, whole)) = question.body {
        let partial = if whole { "false" } else { "true" };
        out.headers.insert(super::PARTIAL_BODY.as_str().into(), partial.into());
        match std::str::from_utf8(bytes) {
            Ok(text) if !filter.body.is_some_and(|b| b.as_bytes) => out.body = text.into(),
            // Text that is none is shown as it is, in the field for bytes.
            _ => out.raw_body = bytes.to_vec(),
        }
    }
    Ok(out)
}

fn metadata(filter: &ExtAuthz, question: &Question<'_>) -> core::Metadata {
    let shown = question.metadata.iter().filter(|(name, _)| filter.metadata.contains(name));
    let filter_metadata = shown.filter_map(|(name, value)| match value {
        MetadataValue::Struct(fields) => Some((name.to_string(), structure(fields))),
        _ => None,
    });
    core::Metadata { filter_metadata: filter_metadata.collect(), ..Default::default() }
}

fn structure(fields: &[(weft_core::Strng, MetadataValue)]) -> prost_types::Struct {
    prost_types::Struct { fields: fields.iter().map(|(name, v)| (name.to_string(), value(v))).collect() }
}

fn value(of: &MetadataValue) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match of {
        MetadataValue::Null => Kind::NullValue(0),
        MetadataValue::String(text) => Kind::StringValue(text.to_string()),
        MetadataValue::Number(n) => Kind::NumberValue(*n),
        MetadataValue::Bool(b) => Kind::BoolValue(*b),
        MetadataValue::List(list) => {
            Kind::ListValue(prost_types::ListValue { values: list.iter().map(value).collect() })
        }
        MetadataValue::Struct(fields) => Kind::StructValue(structure(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn told(of: &prost_types::Value, depth: usize) -> Option<MetadataValue> {
    use prost_types::value::Kind;
    if depth > 32 {
        return None;
    }
    Some(match of.kind.as_ref()? {
        Kind::NullValue(_) => MetadataValue::Null,
        Kind::StringValue(text) => MetadataValue::String(text.as_str().into()),
        Kind::NumberValue(n) => MetadataValue::Number(*n),
        Kind::BoolValue(b) => MetadataValue::Bool(*b),
        Kind::ListValue(list) => MetadataValue::List(list.values.iter().filter_map(|v| told(v, depth + 1)).collect()),
        Kind::StructValue(fields) => {
            let fields = fields.fields.iter();
            MetadataValue::Struct(
                fields.filter_map(|(name, v)| Some((name.as_str().into(), told(v, depth + 1)?))).collect(),
            )
        }
    })
}

/// What an answer means. `status` is gRPC's, `body` the frames of the response.
#[allow(deprecated)] // Older authorizers put metadata into the assent.
pub fn verdict(status: Option<u32>, body: &[u8]) -> Verdict {
    match status {
        Some(0) => {}
        Some(code) => return Verdict::Failed(format!("the authorizer answers with gRPC status {code}")),
        None => return Verdict::Failed("the authorizer's answer has no gRPC status".into()),
    }
    let message = match body {
        [0, a, b, c, d, rest @ ..] if u32::from_be_bytes([*a, *b, *c, *d]) as usize == rest.len() => rest,
        _ => return Verdict::Failed("the authorizer's answer is no single message".into()),
    };
    let answer = match auth::CheckResponse::decode(message) {
        Ok(answer) => answer,
        Err(error) => return Verdict::Failed(format!("the authorizer's answer cannot be read: {error}")),
    };
    // An answer without a status is status OK, as an empty message is in protobuf.
    let code = answer.status.as_ref().map_or(0, |status| status.code);
    match (code, answer.http_response) {
        (0, response) => {
            let ok = match response {
                Some(auth::check_response::HttpResponse::OkResponse(ok)) => ok,
                _ => auth::OkHttpResponse::default(),
            };
            let fields = answer.dynamic_metadata.or_else(|| ok.dynamic_metadata.clone());
            let mut changes = allowed(&ok);
            changes.metadata = fields
                .and_then(|f| told(&prost_types::Value { kind: Some(prost_types::value::Kind::StructValue(f)) }, 0));
            Verdict::Allowed(Box::new(changes))
        }
        (_, Some(auth::check_response::HttpResponse::DeniedResponse(denied))) => {
            Verdict::Denied(Box::new(denial(&denied)))
        }
        _ => Verdict::Denied(Box::new(denial(&auth::DeniedHttpResponse::default()))),
    }
}

fn allowed(ok: &auth::OkHttpResponse) -> Changes {
    let mut changes = Changes::default();
    for option in &ok.headers {
        if let Some((name, value)) = header(option) {
            let list = if appends(option) { &mut changes.append } else { &mut changes.set };
            list.push((name, value));
        }
    }
    let named = ok.headers_to_remove.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok());
    changes.remove = named.filter(|name| !is_protected(name)).collect();
    let response = ok.response_headers_to_add.iter();
    let with_action =
        |option| header(option).zip(AppendAction::of(option)).map(|((name, value), how)| (name, value, how));
    changes.response = response.filter_map(with_action).collect();
    changes.query_set = ok.query_parameters_to_set.iter().map(|q| (q.key.clone(), q.value.clone())).collect();
    changes.query_remove.clone_from(&ok.query_parameters_to_remove);
    changes
}

fn denial(denied: &auth::DeniedHttpResponse) -> LocalReply {
    let mut reply = LocalReply::new(Reason::ExtAuthzDenied);
    let code = denied.status.as_ref().and_then(|s| u16::try_from(s.code).ok()).filter(|code| *code >= 200);
    reply.status = code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::FORBIDDEN);
    reply.body = Bytes::from(denied.body.clone().into_bytes());
    let mut headers = HeaderMap::new();
    for option in &denied.headers {
        match header(option) {
            Some((name, value)) if appends(option) => drop(headers.append(name, value)),
            Some((name, value)) => drop(headers.insert(name, value)),
            None => {}
        }
    }
    reply.headers = headers;
    reply
}

/// Whether a header of a request, or of a refusal, stands beside one that is there: for these Envoy looks at the deprecated
/// switch alone.
#[allow(deprecated)]
fn appends(option: &core::HeaderValueOption) -> bool {
    option.append.unwrap_or(false)
}

/// A header that may be set.
fn header(option: &core::HeaderValueOption) -> Option<(HeaderName, HeaderValue)> {
    let header = option.header.as_ref()?;
    let name = HeaderName::from_bytes(header.key.as_bytes()).ok().filter(|name| !is_protected(name))?;
    let bytes = if header.value.is_empty() { &header.raw_value[..] } else { header.value.as_bytes() };
    let value = HeaderValue::from_bytes(bytes).ok()?;
    Some((name, value))
}
