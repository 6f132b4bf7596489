//! Responses that this proxy makes itself, said in the client's protocol: HTTP with a text body, or a gRPC status without
//! a body (gRPC's "Trailers-Only").

use crate::body::ProxyBody;
use crate::grpc;
use crate::reason::{Flags, Reason};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use std::borrow::Cow;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// A response of the proxy's own.
#[derive(Debug, Clone)]
pub struct LocalReply {
    /// Status.
    pub status: StatusCode,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    /// Flags for the log.
    pub flags: Flags,
    /// Body; empty = none.
    pub body: Bytes,
    /// Further headers.
    pub headers: HeaderMap,
    /// gRPC status, when it is not the one that stands for `status`.
    pub grpc_status: Option<u32>,
}

impl LocalReply {
    /// The reply for a reason.
    pub fn new(reason: Reason) -> Self {
        Self {
            status: reason.status(),
            details: Cow::Borrowed(reason.details()),
            flags: reason.flag(),
            body: Bytes::from_static(reason.body().as_bytes()),
            headers: HeaderMap::new(),
            grpc_status: None,
        }
    }

    /// The reply when upstream gave no response: the reason, what the transport said, whether it was tried again.
    pub fn upstream(reason: Reason, transport: Option<&str>, retried: bool) -> Self {
        let mut reply = Self::new(reason);
        if reason.is_upstream_reset() {
            let again = if retried { "retried and the latest " } else { "" };
            let failure = transport.map(|t| format!(", transport failure reason: {t}")).unwrap_or_default();
            reply.body = Bytes::from(format!(
                "upstream connect error or disconnect/reset before headers. {again}reset reason: {}{failure}",
                reason.body()
            ));
            if let (Some(transport), Reason::ConnectionFailure) = (transport, reason) {
                let details =
                    format!("upstream_reset_before_response_started{{remote_connection_failure|{transport}}}");
                // A details word has no spaces, so that logs can be split.
                reply.details = Cow::Owned(details.replace(' ', "_"));
            }
        }
        if reason == Reason::Overflow {
            reply.headers.insert(OVERLOADED, HeaderValue::from_static("true"));
        }
        reply
    }

    /// Replaces the details word.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<Cow<'static, str>>) -> Self {
        self.details = details.into();
        self
    }

    /// As a response, in the client's protocol.
    pub fn into_response(self, is_grpc: bool) -> Response<ProxyBody> {
        let mut headers = self.headers;
        if is_grpc {
            let status = self.grpc_status.unwrap_or_else(|| u32::from(grpc::from_http(self.status)));
            headers.insert(CONTENT_TYPE, GRPC);
            headers.insert(GRPC_STATUS, HeaderValue::from(status));
            if let Ok(text) = std::str::from_utf8(&self.body)
                && !text.is_empty()
            {
                headers.insert(GRPC_MESSAGE, grpc::message(text));
            }
            return response(StatusCode::OK, headers, ProxyBody::empty());
        }
        if !self.body.is_empty() {
            headers.entry(CONTENT_TYPE).or_insert(TEXT);
            headers.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        }
        response(self.status, headers, ProxyBody::full(self.body))
    }
}

fn response(status: StatusCode, headers: HeaderMap, body: ProxyBody) -> Response<ProxyBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body;

    #[test]
    fn text_and_grpc() {
        let reply =
            LocalReply::upstream(Reason::ConnectionFailure, Some("delayed connect error: Connection refused"), true);
        assert_eq!(
            reply.body,
            "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: remote \
             connection failure, transport failure reason: delayed connect error: Connection refused"
        );
        assert!(!reply.details.contains(' '));
        let http = reply.clone().into_response(false);
        assert_eq!((http.status(), &http.headers()["content-type"]), (StatusCode::SERVICE_UNAVAILABLE, &TEXT));
        let grpc = reply.into_response(true);
        assert_eq!((grpc.status(), grpc.headers()["grpc-status"].to_str().unwrap()), (StatusCode::OK, "14"));
        assert!(grpc.body().is_end_stream());
        let none = LocalReply::new(Reason::NoRoute).into_response(false);
        assert!(none.headers().is_empty() && none.body().is_end_stream());
    }
}
