//! `Gateway`: what the edge proxies listen on.

use crate::macros::{spec, words};
use std::collections::BTreeMap;

spec! {
    /// Servers of the selected gateway workloads.
    pub struct Gateway {
        /// Listeners.
        servers: Vec<Server>,
        /// Labels of the gateway workloads.
        selector: BTreeMap<String, String>,
    }

    /// One listener.
    pub struct Server {
        /// Name for statistics.
        name: String,
        /// Port.
        port: Option<Port>,
        /// Address or `unix:` socket. Default: all.
        bind: String,
        /// Hosts, each `[namespace/]host`; `.` is the own namespace, `*` all.
        hosts: Vec<String>,
        /// TLS.
        tls: Option<ServerTlsSettings>,
        /// Where to send traffic that no virtual service routes (sidecar ingress).
        default_endpoint: String,
    }

    /// A port with its protocol.
    pub struct Port {
        /// 1 to 65535; for the `Unix` binds 0.
        number: u32,
        /// `HTTP`, `HTTPS`, `GRPC`, `GRPC-WEB`, `HTTP2`, `MONGO`, `MYSQL`, `REDIS`, `TCP`, `TLS`.
        protocol: String,
        /// Name.
        name: String,
        /// Older field; has no effect.
        target_port: u32,
    }

    /// TLS of a listener.
    pub struct ServerTlsSettings {
        /// Answer plain HTTP with a redirect to https.
        https_redirect: bool,
        /// Mode.
        mode: ServerTlsMode,
        /// File of the certificate.
        server_certificate: String,
        /// File of its key.
        private_key: String,
        /// File of the CA certificates for clients.
        ca_certificates: String,
        /// File of the revocation list for clients.
        ca_crl: String,
        /// Secret with certificate and key, and for `MUTUAL` the CA.
        credential_name: String,
        /// Two secrets: one with an RSA and one with an ECDSA certificate.
        credential_names: Vec<String>,
        /// Secret or ConfigMap with the CA for clients.
        ca_cert_credential_name: String,
        /// Two certificates by file.
        tls_certificates: Vec<TlsCertificate>,
        /// Accepted names of clients.
        subject_alt_names: Vec<String>,
        /// SHA-256 of accepted client certificates' keys, base64.
        verify_certificate_spki: Vec<String>,
        /// SHA-256 of accepted client certificates, hex.
        verify_certificate_hash: Vec<String>,
        /// Least version. Default: TLS 1.2.
        min_protocol_version: TlsProtocol,
        /// Greatest version. Default: TLS 1.3.
        max_protocol_version: TlsProtocol,
        /// Ciphers. Default: the proxy's.
        cipher_suites: Vec<String>,
        /// Do not verify clients' certificates against names. Default: false.
        insecure_skip_verify: Option<bool>,
    }

    /// Files of a certificate.
    pub struct TlsCertificate {
        /// File of the certificate.
        server_certificate: String,
        /// File of its key.
        private_key: String,
        /// File of the CA certificates for clients.
        ca_certificates: String,
    }
}

words! {
    /// TLS of a listener.
    pub enum ServerTlsMode {
        /// Not opened; routed by server name to a virtual service's TLS routes.
        #[default]
        Passthrough,
        /// Opened, without client certificate.
        Simple,
        /// Opened, with client certificate.
        Mutual,
        /// Not opened; routed by server name straight to the cluster that it encodes.
        AutoPassthrough,
        /// Opened, with the mesh's certificates.
        IstioMutual,
        /// Opened; a client certificate is verified when there is one.
        OptionalMutual,
    }

    /// TLS versions.
    pub enum TlsProtocol {
        /// The proxy's choice.
        #[default]
        TlsAuto,
        /// 1.0
        #[serde(rename = "TLSV1_0")]
        TlsV1_0,
        /// 1.1
        #[serde(rename = "TLSV1_1")]
        TlsV1_1,
        /// 1.2
        #[serde(rename = "TLSV1_2")]
        TlsV1_2,
        /// 1.3
        #[serde(rename = "TLSV1_3")]
        TlsV1_3,
    }
}
