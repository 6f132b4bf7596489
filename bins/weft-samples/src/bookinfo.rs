//! Bookinfo: productpage → details, productpage → reviews → ratings.

pub mod details;
pub mod productpage;
pub mod ratings;
pub mod reviews;

use http::{HeaderMap, HeaderName};
use std::time::Duration;

/// Headers that a service passes on to those it calls: trace context, the user, and credentials.
const PROPAGATED: &[&str] = &[
    "x-request-id",
    "x-ot-span-context",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "traceparent",
    "tracestate",
    "baggage",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "sw8",
    "user-agent",
    "cookie",
    "authorization",
    "jwt",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "end-user",
];

/// Largest body that a bookinfo service accepts.
const MAX_BODY: usize = 64 * 1024;

/// Those of `headers` that are passed on.
fn propagate(headers: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    for name in PROPAGATED {
        for value in headers.get_all(*name) {
            out.append(HeaderName::from_static(name), value.clone());
        }
    }
    out
}

/// Host of a bookinfo service: `<NAME>_HOSTNAME`, else its usual name, in `SERVICES_DOMAIN` when set.
fn hostname(service: &str) -> String {
    let host = std::env::var(format!("{}_HOSTNAME", service.to_uppercase())).unwrap_or_else(|_| service.to_string());
    match std::env::var("SERVICES_DOMAIN") {
        Ok(domain) if !domain.is_empty() => format!("{host}.{domain}"),
        _ => host,
    }
}

/// Port of a bookinfo service: `<NAME>_SERVICE_PORT`, else 9080.
fn port(service: &str) -> u16 {
    // Kubernetes sets <NAME>_SERVICE_PORT itself, to the same number.
    std::env::var(format!("{}_SERVICE_PORT", service.to_uppercase())).ok().and_then(|p| p.parse().ok()).unwrap_or(9080)
}

/// Calls `GET path` of a bookinfo service.
async fn call(
    service: &str,
    path: &str,
    headers: &HeaderMap,
    limit: Duration,
) -> anyhow::Result<(http::StatusCode, bytes::Bytes)> {
    crate::client::get(&hostname(service), port(service), path, headers, limit).await
}
