//! A ClientHello looked at before any context is chosen (`tls_inspector`). The parser is the TLS library's own.

use rustls::server::{Acceptor, ClientHello};

/// What a ClientHello says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHelloFacts {
    /// Server name, lower case.
    pub sni: Option<String>,
    /// Application protocols offered, in the client's order.
    pub alpn: Vec<Vec<u8>>,
}

impl ClientHelloFacts {
    /// The facts of a ClientHello.
    pub fn of(hello: &ClientHello<'_>) -> Self {
        Self {
            sni: hello.server_name().map(str::to_ascii_lowercase),
            alpn: hello.alpn().map(|list| list.map(<[u8]>::to_vec).collect()).unwrap_or_default(),
        }
    }
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeekedHello {
    /// The beginning of a ClientHello: read more.
    Incomplete,
    /// A ClientHello.
    Hello(ClientHelloFacts),
    /// Not TLS.
    NotTls,
    /// TLS, but broken; the reason.
    Malformed(String),
}

/// Looks at the first bytes of a connection. The caller bounds how many it keeps (16 KiB hold every sane ClientHello).
pub fn peek_client_hello(bytes: &[u8]) -> PeekedHello {
    match bytes {
        // A handshake record of SSL 3.0 / TLS 1.x.
        [0x16, 0x03, ..] | [0x16] => {}
        [] => return PeekedHello::Incomplete,
        _ => return PeekedHello::NotTls,
    }
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        if let Err(error) = acceptor.read_tls(&mut rest) {
            return PeekedHello::Malformed(error.to_string());
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return PeekedHello::Hello(ClientHelloFacts::of(&accepted.client_hello())),
            Ok(None) => {}
            Err((error, _alert)) => return PeekedHello::Malformed(error.to_string()),
        }
    }
    PeekedHello::Incomplete
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::default_provider;
    use rustls_pki_types::ServerName;
    use std::sync::Arc;

    fn client_hello(name: &str, alpn: &[&str]) -> Vec<u8> {
        let mut config = rustls::ClientConfig::builder_with_provider(default_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    #[test]
    fn mesh_names_are_read() {
        let name = "outbound_.9080_._.reviews.default.svc.cluster.local";
        let bytes = client_hello(name, &["istio-peer-exchange", "istio"]);
        let PeekedHello::Hello(facts) = peek_client_hello(&bytes) else { panic!("no hello") };
        assert_eq!(facts.sni.as_deref(), Some(name));
        assert_eq!(facts.alpn, vec![b"istio-peer-exchange".to_vec(), b"istio".to_vec()]);
    }

    #[test]
    fn every_prefix_is_incomplete() {
        let bytes = client_hello("a.example", &["h2"]);
        for end in 0..bytes.len() {
            assert_eq!(peek_client_hello(&bytes[..end]), PeekedHello::Incomplete, "{end}");
        }
    }

    #[test]
    fn other_bytes() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], PeekedHello::NotTls),
            (b"PRI * HTTP/2.0\r\n", PeekedHello::NotTls),
            (b"\x00", PeekedHello::NotTls),
            (b"\x16GET", PeekedHello::NotTls),
        ] {
            assert_eq!(peek_client_hello(bytes), expected);
        }
        // A record that holds no ClientHello.
        assert!(matches!(peek_client_hello(b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00"), PeekedHello::Malformed(_)));
        assert!(matches!(peek_client_hello(b"\x16\x03\x01\xff\xff\x02"), PeekedHello::Malformed(_)));
    }
}
