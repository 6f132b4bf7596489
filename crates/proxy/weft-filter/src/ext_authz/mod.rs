//! External authorization: what an authorizer is asked, and what its answer does to the request. The asking itself is the data
//! plane's. Over gRPC the question is a `CheckRequest` ([`grpc`]); over HTTP it is the request itself without its body
//! ([`plain`]).
//!
//! Whatever is no clear assent denies, unless the filter lets through what cannot be asked. A request that cannot be shown as
//! it is (a header that is no text) is denied even then (CVE-2023-27488).

pub mod grpc;
pub mod plain;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::net::SocketAddr;
use std::time::SystemTime;
use weft_codec::{LocalReply, Reason};
use weft_core::Strng;
use weft_proxy_config::ExtAuthz;
use weft_route::{AppendAction, MetadataValue, StringMatcher};

/// Name under which an authorizer's metadata is put.
pub const FILTER: &str = "envoy.filters.http.ext_authz";
/// Longest answer that is read, in bytes.
pub const MAX_ANSWER: usize = 1 << 20;
/// Says whether the body that the authorizer sees is whole.
pub const PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
/// Says that the authorizer could not be asked.
pub const FAILURE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");

/// What is asked about.
#[derive(Debug)]
pub struct Question<'a> {
    /// The connection.
    pub connection: Connection<'a>,
    /// The request; `None` for a connection alone.
    pub request: Option<weft_authz::RequestFacts<'a>>,
    /// `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    /// What is shown of the body, and whether that is all of it.
    pub body: Option<(&'a [u8], bool)>,
    /// What filters said.
    pub metadata: &'a [(Strng, MetadataValue)],
    /// When the request came.
    pub time: SystemTime,
}

/// Who is connected to whom.
#[derive(Debug)]
pub struct Connection<'a> {
    /// The client.
    pub source: SocketAddr,
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// The client's certificate.
    pub peer: Option<&'a weft_authz::PeerCertificate>,
    /// The client's certificate as PEM, URL-encoded.
    pub peer_pem: Option<String>,
    /// URI name of this proxy's certificate.
    pub local: Option<&'a str>,
    /// Server name asked for.
    pub server_name: Option<&'a str>,
}

/// An answer.
#[derive(Debug)]
pub enum Verdict {
    /// Go on, changed like this.
    Allowed(Box<Changes>),
    /// Answer like this.
    Denied(Box<LocalReply>),
    /// There is no answer that counts; why.
    Failed(String),
}

/// Changes to a request that may go on.
#[derive(Debug, Default)]
pub struct Changes {
    /// Headers to take out.
    pub remove: Vec<HeaderName>,
    /// Headers to put in place of those there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Headers to put beside those there.
    pub append: Vec<(HeaderName, HeaderValue)>,
    /// Headers for the response, and how they go with those that are there.
    pub response: Vec<(HeaderName, HeaderValue, AppendAction)>,
    /// Query parameters to set, decoded.
    pub query_set: Vec<(String, String)>,
    /// Query parameters to take out.
    pub query_remove: Vec<String>,
    /// Metadata of the authorizer's.
    pub metadata: Option<MetadataValue>,
}

impl Changes {
    /// Nothing of the request that routing sees is changed.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty()
            && self.set.is_empty()
            && self.append.is_empty()
            && self.query_set.is_empty()
            && self.query_remove.is_empty()
    }

    /// Changes the request's headers.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.append {
            headers.append(name, value.clone());
        }
    }

    /// The query after the changes; `None` when none is left.
    pub fn query(&self, query: Option<&str>) -> Option<String> {
        let is_named = |pair: &str| {
            let name = crate::jwt::places::param_name(pair);
            self.query_remove.iter().chain(self.query_set.iter().map(|(name, _)| name)).any(|n| **n == *name)
        };
        let kept = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty() && !is_named(pair));
        let set = self.query_set.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value)));
        let all: Vec<String> = kept.map(str::to_string).chain(set).collect();
        if all.is_empty() { None } else { Some(all.join("&")) }
    }
}

fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = std::fmt::Write::write_fmt(&mut out, format_args!("%{byte:02X}"));
        }
    }
    out
}

/// Headers that an authorizer may not touch: they say where a request goes and where its body ends.
pub(crate) fn is_protected(name: &HeaderName) -> bool {
    [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, TE, TRAILER, UPGRADE].contains(name)
}

fn matches(list: &[StringMatcher], name: &str) -> bool {
    list.iter().any(|one| one.matches(name.as_bytes()))
}

/// A header is shown to the authorizer.
fn is_shown(filter: &ExtAuthz, name: &str, by_default: bool) -> bool {
    let allowed = filter.allowed_headers.as_ref().map_or(by_default, |list| matches(list, name));
    allowed && !matches(&filter.disallowed_headers, name)
}

/// The answer to a request that could not be asked about.
pub fn failed(filter: &ExtAuthz) -> LocalReply {
    let mut reply = LocalReply::new(Reason::ExtAuthzDenied).with_details("ext_authz_error");
    reply.status = filter.status_on_error;
    reply.body = bytes::Bytes::new();
    reply
}

#[cfg(test)]
mod tests;
