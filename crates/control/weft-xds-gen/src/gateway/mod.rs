//! Gateways: listeners and routes from Gateway objects and the virtual services that are bound to them.
//!
//! Reading order: [`merge`] (servers of all Gateways that select the proxy, by port), [`listener`], [`l4`] (TCP and TLS
//! servers), [`route`], [`tls`] (certificates and modes).

mod l4;
pub(crate) mod listener;
pub(crate) mod merge;
pub(crate) mod route;
pub(crate) mod tls;

use weft_model::Protocol;

/// The protocol that a server or a Sidecar's port declares. What is not known is taken as bytes.
pub(crate) fn protocol(declared: &str) -> Protocol {
    match declared.to_ascii_uppercase().as_str() {
        "HTTP" | "HTTP_PROXY" => Protocol::Http,
        "HTTP2" => Protocol::Http2,
        "GRPC" => Protocol::Grpc,
        "GRPC-WEB" => Protocol::GrpcWeb,
        "HTTPS" => Protocol::Https,
        "TLS" => Protocol::Tls,
        "MONGO" => Protocol::Mongo,
        "MYSQL" => Protocol::MySql,
        "REDIS" => Protocol::Redis,
        "UDP" => Protocol::Udp,
        "" => Protocol::Unknown,
        _ => Protocol::Tcp,
    }
}
