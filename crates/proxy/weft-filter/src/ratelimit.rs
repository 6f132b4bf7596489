//! Rate limits: what a rate limit service is asked and what its answer means, and the refusals.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message;
use std::sync::OnceLock;
use std::time::Instant;
use weft_codec::{Flags, LocalReply, Reason};
use weft_proto::envoy::config::core::v3::HeaderValue as Header;
use weft_proto::envoy::extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry};
use weft_proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse, rate_limit_response::Code};
use weft_proxy_config::RateLimitService;
use weft_route::{LocalRateLimit, ratelimit};

/// Path of the method.
pub const PATH: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// Longest answer that is read, in bytes.
pub const MAX_ANSWER: usize = 1024 * 1024;
/// Header of requests that were refused for their number.
pub const RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
/// gRPC's `RESOURCE_EXHAUSTED`.
const EXHAUSTED: u32 = 8;
/// Bytes before a message: compressed or not, and its length.
const PREFIX: usize = 5;
/// Where the clock of buckets begins: far above any bucket's window.
const EPOCH: u64 = 1 << 62;

/// The present time of buckets, in nanoseconds.
pub fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let passed = START.get_or_init(Instant::now).elapsed().as_nanos();
    EPOCH.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
}

/// What a service says.
#[derive(Debug)]
pub enum Verdict {
    /// The request may pass; headers for it, and for its response.
    Passes(Vec<(HeaderName, HeaderValue)>, Vec<(HeaderName, HeaderValue)>),
    /// It is one too many; headers and body of the refusal.
    OverLimit(Vec<(HeaderName, HeaderValue)>, Bytes),
    /// Nobody knows; why.
    Failed(String),
}

/// The question, framed as gRPC frames messages.
///
/// # Errors
/// Why it cannot be put.
pub fn question(domain: &str, descriptors: Vec<Vec<ratelimit::Entry>>) -> Result<Bytes, String> {
    let entry = |(key, value): ratelimit::Entry| Entry { key: key.to_string(), value };
    let descriptor = |entries: Vec<ratelimit::Entry>| RateLimitDescriptor {
        entries: entries.into_iter().map(entry).collect(),
        ..Default::default()
    };
    let message = RateLimitRequest {
        domain: domain.into(),
        descriptors: descriptors.into_iter().map(descriptor).collect(),
        // As Envoy: the service counts one for each descriptor.
        hits_addend: 0,
    };
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).map_err(|_| "the question is too long".to_string())?);
    message.encode(&mut out).map_err(|error| error.to_string())?;
    Ok(out.freeze())
}

/// What an answer means. `status` is gRPC's, `body` the frames of the response.
pub fn verdict(status: Option<u32>, body: &[u8]) -> Verdict {
    match status {
        Some(0) => {}
        Some(code) => return Verdict::Failed(format!("the rate limit service answers with gRPC status {code}")),
        None => return Verdict::Failed("the rate limit service's answer has no gRPC status".into()),
    }
    let message = match body {
        [0, a, b, c, d, rest @ ..] if u32::from_be_bytes([*a, *b, *c, *d]) as usize == rest.len() => rest,
        _ => return Verdict::Failed("the rate limit service's answer is no single message".into()),
    };
    let answer = match RateLimitResponse::decode(message) {
        Ok(answer) => answer,
        Err(error) => return Verdict::Failed(format!("the rate limit service's answer cannot be read: {error}")),
    };
    let response = headers(&answer.response_headers_to_add);
    match Code::try_from(answer.overall_code) {
        Ok(Code::Ok) => Verdict::Passes(headers(&answer.request_headers_to_add), response),
        Ok(Code::OverLimit) => Verdict::OverLimit(response, Bytes::from(answer.raw_body)),
        Ok(Code::Unknown) | Err(_) => Verdict::Failed("the rate limit service does not say".into()),
    }
}

/// Headers that may be set: what frames a message, or says where it goes, is no matter of a rate limit.
fn headers(list: &[Header]) -> Vec<(HeaderName, HeaderValue)> {
    let read = |header: &Header| {
        let name = HeaderName::from_bytes(header.key.as_bytes()).ok().filter(|n| !crate::ext_authz::is_protected(n))?;
        let bytes = if header.value.is_empty() { &header.raw_value[..] } else { header.value.as_bytes() };
        Some((name, HeaderValue::from_bytes(bytes).ok()?))
    };
    list.iter().filter_map(read).collect()
}

/// The refusal of a bucket of this proxy.
pub fn refusal(filter: &LocalRateLimit) -> LocalReply {
    let mut reply = LocalReply::new(Reason::RateLimited).with_details("local_rate_limited");
    reply.status = filter.status;
    reply.grpc_status = filter.exhausted.then_some(EXHAUSTED);
    reply
}

/// The refusal of a service.
pub fn over_limit(filter: &RateLimitService, headers: Vec<(HeaderName, HeaderValue)>, body: Bytes) -> LocalReply {
    let mut reply = LocalReply::new(Reason::RateLimited);
    reply.status = filter.status;
    reply.body = body;
    reply.grpc_status = filter.exhausted.then_some(EXHAUSTED);
    let mut all = HeaderMap::new();
    for (name, value) in headers {
        all.append(name, value);
    }
    if filter.tells {
        all.insert(RATELIMITED, HeaderValue::from_static("true"));
    }
    reply.headers = all;
    reply
}

/// The answer when the service does not know, and that is to be a refusal.
pub fn failed(filter: &RateLimitService) -> LocalReply {
    let mut reply = LocalReply::new(Reason::RateLimited).with_details("rate_limiter_error");
    reply.status = filter.status_on_error;
    reply.flags = Flags::RLSE;
    reply.body = Bytes::new();
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &RateLimitResponse) -> Vec<u8> {
        let mut out = vec![0];
        out.extend_from_slice(&u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
        out.extend(message.encode_to_vec());
        out
    }

    #[test]
    fn questions_carry_descriptors() {
        let bytes = question("d", vec![vec![("k".into(), "v".into())], vec![("l".into(), "w".into())]]).unwrap();
        assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize, bytes.len() - PREFIX);
        let asked = RateLimitRequest::decode(&bytes[PREFIX..]).unwrap();
        assert_eq!((asked.domain.as_str(), asked.descriptors.len(), asked.hits_addend), ("d", 2, 0));
        assert_eq!(asked.descriptors[1].entries[0].value, "w");
    }

    #[test]
    fn answers() {
        let header = |key: &str| Header { key: key.into(), value: "1".into(), ..Default::default() };
        let answer = |code: Code| RateLimitResponse {
            overall_code: code as i32,
            response_headers_to_add: vec![header("x-left"), header("content-length"), header("b\u{e4}d")],
            request_headers_to_add: vec![header("x-asked")],
            raw_body: b"slow".to_vec(),
            ..Default::default()
        };
        let Verdict::Passes(request, response) = verdict(Some(0), &framed(&answer(Code::Ok))) else { panic!() };
        assert_eq!((request.len(), response.len()), (1, 1), "{response:?}");
        let Verdict::OverLimit(response, body) = verdict(Some(0), &framed(&answer(Code::OverLimit))) else { panic!() };
        assert_eq!((response.len(), &body[..]), (1, &b"slow"[..]));
        for (status, body) in [
            (None, framed(&answer(Code::Ok))),
            (Some(14), framed(&answer(Code::Ok))),
            (Some(0), framed(&answer(Code::Unknown))),
            (Some(0), b"nonsense".to_vec()),
        ] {
            assert!(matches!(verdict(status, &body), Verdict::Failed(_)), "{status:?} {body:?}");
        }
    }

    #[test]
    fn time_goes_on() {
        let before = now();
        assert!(before >= EPOCH && now() >= before);
    }
}
