//! What is spoken on a port, from what its owner wrote.

use crate::Protocol;

/// Ports whose protocols are known to have the server speak first: guessing from the client's first bytes would hang.
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

/// The protocol of a Kubernetes service port: UDP stays UDP; then `appProtocol`; then the port's name up to its first
/// dash; else unknown.
pub(crate) fn of_service_port(number: u16, name: &str, transport: &str, app_protocol: Option<&str>) -> Protocol {
    if transport.eq_ignore_ascii_case("UDP") || transport.eq_ignore_ascii_case("SCTP") {
        return Protocol::Udp;
    }
    let said = match app_protocol {
        Some("kubernetes.io/h2c") => return Protocol::Http2,
        Some("kubernetes.io/ws") => return Protocol::Http,
        Some("kubernetes.io/wss") => return Protocol::Https,
        Some(app) => app,
        None => name,
    };
    match of_name(said) {
        Protocol::Unknown if SERVER_FIRST.contains(&number) => Protocol::Tcp,
        protocol => protocol,
    }
}

/// The protocol that a word, or a name with the word before its first dash, stands for.
pub(crate) fn of_name(name: &str) -> Protocol {
    let name = name.to_ascii_lowercase();
    if name.starts_with("grpc-web") {
        return Protocol::GrpcWeb;
    }
    match name.split_once('-').map_or(name.as_str(), |(word, _)| word) {
        "http" | "http_proxy" => Protocol::Http,
        "http2" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "https" => Protocol::Https,
        "tls" => Protocol::Tls,
        "tcp" => Protocol::Tcp,
        "mongo" => Protocol::Mongo,
        "mysql" => Protocol::MySql,
        "redis" => Protocol::Redis,
        "udp" => Protocol::Udp,
        _ => Protocol::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_protocol_then_name_then_port() {
        for (number, name, transport, app, want) in [
            (80, "http", "TCP", None, Protocol::Http),
            (80, "http-web", "TCP", None, Protocol::Http),
            (80, "HTTP2-x", "TCP", None, Protocol::Http2),
            (80, "httpx", "TCP", None, Protocol::Unknown),
            (80, "grpc", "", None, Protocol::Grpc),
            (80, "grpc-web", "", None, Protocol::GrpcWeb),
            (80, "grpc-web-ui", "", None, Protocol::GrpcWeb),
            (443, "https-api", "TCP", None, Protocol::Https),
            (443, "tls", "TCP", None, Protocol::Tls),
            (9000, "tcp-echo", "TCP", None, Protocol::Tcp),
            (1, "mongo", "TCP", None, Protocol::Mongo),
            (1, "mysql-db", "TCP", None, Protocol::MySql),
            (1, "redis", "TCP", None, Protocol::Redis),
            (3306, "", "TCP", None, Protocol::Tcp),
            (3306, "http", "TCP", None, Protocol::Http),
            (9080, "", "TCP", None, Protocol::Unknown),
            (53, "dns", "UDP", None, Protocol::Udp),
            (80, "tcp", "TCP", Some("http"), Protocol::Http),
            (80, "http", "TCP", Some("tcp"), Protocol::Tcp),
            (80, "http", "TCP", Some("kubernetes.io/h2c"), Protocol::Http2),
            (80, "http", "TCP", Some("example.com/own"), Protocol::Unknown),
        ] {
            assert_eq!(of_service_port(number, name, transport, app), want, "{number} {name:?} {transport} {app:?}");
        }
    }
}
