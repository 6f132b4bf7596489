//! Rules for `Gateway`, and for server ports and TLS, which sidecars share.

use super::Report;
use super::check::{PROTOCOLS, host_problem, is_dns_label, is_protocol, set_of};
use crate::istio::{Gateway, Port, Server, ServerTlsMode, ServerTlsSettings, TlsProtocol};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(super) fn check(spec: &Gateway, report: &mut Report) {
    if spec.servers.is_empty() {
        report.error("spec.servers", "is required: a gateway needs at least one server");
    }
    if spec.selector.is_empty() {
        report.warn(
            "spec.selector",
            "is empty: every workload becomes a gateway; name one, such as istio: ingressgateway",
        );
    }
    report.selector("spec.selector", &spec.selector);
    let mut names = BTreeSet::new();
    for (i, server) in spec.servers.iter().enumerate() {
        let path = format!("spec.servers[{i}]");
        check_server(server, &path, report);
        if let Some(port) = server.port.as_ref().filter(|p| !p.name.is_empty())
            && !names.insert((&port.name, port.number))
        {
            let message = format!("{:?} is there twice; port names must differ", port.name);
            report.error(format_args!("{path}.port.name"), message);
        }
    }
}

fn check_server(server: &Server, path: &str, report: &mut Report) {
    let unix = server.bind.starts_with("unix://");
    let Some(port) = &server.port else {
        return report.error(format_args!("{path}.port"), "is required: number, name and protocol");
    };
    server_port(port, unix, true, &format!("{path}.port"), report);
    if !server.bind.is_empty() && !unix && server.bind.parse::<IpAddr>().is_err() {
        let message = format!("{:?} is not an address; write an IP address or unix:///path", server.bind);
        report.error(format_args!("{path}.bind"), message);
    }
    if !server.default_endpoint.is_empty() {
        report.warn(format_args!("{path}.defaultEndpoint"), "has no effect on a gateway; route with a VirtualService");
    }
    hosts(server, path, report);
    let protocol = port.protocol.to_ascii_uppercase();
    let opens_tls = matches!(protocol.as_str(), "HTTPS" | "TLS");
    match &server.tls {
        None if opens_tls => {
            let message = format!("is required for the protocol {protocol}: a mode, and for SIMPLE a credentialName");
            report.error(format_args!("{path}.tls"), message);
        }
        None => {}
        Some(tls) if opens_tls => server_tls(tls, &format!("{path}.tls"), report),
        Some(tls) => plain_tls(tls, &protocol, &format!("{path}.tls"), report),
    }
}

/// A plain-text port may only redirect.
fn plain_tls(tls: &ServerTlsSettings, protocol: &str, path: &str, report: &mut Report) {
    let redirect_only = ServerTlsSettings { https_redirect: tls.https_redirect, ..Default::default() };
    if *tls != redirect_only && protocol != "TCP" {
        let message =
            format!("the protocol {protocol} is plain text, so only httpsRedirect may be set; use HTTPS or TLS");
        report.error(path, message);
    } else if *tls != redirect_only {
        server_tls(tls, path, report);
    }
}

fn hosts(server: &Server, path: &str, report: &mut Report) {
    if server.hosts.is_empty() {
        report.error(format_args!("{path}.hosts"), "is required: the hosts served, or \"*\" for all");
    }
    let mut seen = BTreeSet::new();
    for (i, host) in server.hosts.iter().enumerate() {
        let path = format!("{path}.hosts[{i}]");
        let (namespace, name) = host.split_once('/').unwrap_or(("*", host));
        if !matches!(namespace, "*" | ".") && !is_dns_label(namespace) {
            let message = format!("{namespace:?} before the / must be a namespace, . (own) or * (all)");
            report.error(&path, message);
        }
        if let Some(problem) = host_problem(name, true) {
            report.error(&path, problem);
        } else if !name.contains('.') && name != "*" {
            let message = format!("{name:?} is a short name; requests carry the full name, such as {name}.example.com");
            report.warn(&path, message);
        }
        if !seen.insert(host) {
            report.error(&path, format!("{host:?} is there twice; remove one"));
        }
    }
}

/// A port with protocol and name.
pub(super) fn server_port(port: &Port, unix: bool, needs_name: bool, path: &str, report: &mut Report) {
    if !(unix && port.number == 0) {
        report.port(format_args!("{path}.number"), port.number);
    }
    if port.protocol.is_empty() {
        report.error(format_args!("{path}.protocol"), format!("is required: one of {}", PROTOCOLS.join(", ")));
    } else if !is_protocol(&port.protocol) {
        let message = format!("{:?} is not known; use one of {}", port.protocol, PROTOCOLS.join(", "));
        report.error(format_args!("{path}.protocol"), message);
    }
    if needs_name {
        report.required(format_args!("{path}.name"), &port.name, "a name, such as http");
    }
    if port.target_port != 0 {
        report.warn(format_args!("{path}.targetPort"), "has no effect");
    }
}

/// TLS of a listener.
pub(super) fn server_tls(tls: &ServerTlsSettings, path: &str, report: &mut Report) {
    let files = set_of(&[
        ("serverCertificate", !tls.server_certificate.is_empty()),
        ("privateKey", !tls.private_key.is_empty()),
        ("caCertificates", !tls.ca_certificates.is_empty()),
    ]);
    let secrets = set_of(&[
        ("credentialName", !tls.credential_name.is_empty()),
        ("credentialNames", !tls.credential_names.is_empty()),
        ("tlsCertificates", !tls.tls_certificates.is_empty()),
    ]);
    match tls.mode {
        ServerTlsMode::IstioMutual => {
            for name in files.iter().chain(&secrets) {
                let message = "does not go with ISTIO_MUTUAL, which uses the mesh's certificates; remove it";
                report.error(format_args!("{path}.{name}"), message);
            }
        }
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            for name in files.iter().chain(&secrets) {
                report.warn(format_args!("{path}.{name}"), "has no effect: the mode does not open TLS");
            }
        }
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {
            certificates(tls, &files, &secrets, path, report);
        }
    }
    if tls.https_redirect {
        report
            .warn(format_args!("{path}.httpsRedirect"), "belongs on the plain-text port; here it redirects to itself");
    }
    parameters(tls, path, report);
}

fn certificates(tls: &ServerTlsSettings, files: &[&str], secrets: &[&str], path: &str, report: &mut Report) {
    if secrets.len() > 1 {
        report.error(path, format!("has {}; keep one", secrets.join(" and ")));
    }
    for (field, name) in std::iter::once(("credentialName", &tls.credential_name))
        .chain(tls.credential_names.iter().map(|name| ("credentialNames", name)))
        .chain([("caCertCredentialName", &tls.ca_cert_credential_name)])
    {
        // Other schemes stand for secrets of other namespaces, which a Gateway of Istio's kind may not use.
        let plain = name.strip_prefix("kubernetes://").unwrap_or(name);
        if plain.contains("://") || plain.contains('/') {
            let message =
                format!("{name:?} is not the name of a secret; secrets are looked for beside the gateway's pods");
            report.error(format_args!("{path}.{field}"), message);
        }
    }
    if tls.credential_names.len() > 2 {
        report.error(format_args!("{path}.credentialNames"), "has more than 2 items; one RSA and one ECDSA");
    }
    if tls.tls_certificates.len() > 2 {
        report.error(format_args!("{path}.tlsCertificates"), "has more than 2 items; one RSA and one ECDSA");
    }
    for (i, pair) in tls.tls_certificates.iter().enumerate() {
        let path = format!("{path}.tlsCertificates[{i}]");
        report.required(format_args!("{path}.serverCertificate"), &pair.server_certificate, "the certificate's file");
        report.required(format_args!("{path}.privateKey"), &pair.private_key, "the key's file");
    }
    let verifies = tls.mode != ServerTlsMode::Simple;
    if secrets.is_empty() {
        let what = "the certificate's file, or use credentialName";
        report.required(format_args!("{path}.serverCertificate"), &tls.server_certificate, what);
        let what = "the key's file, or use credentialName";
        report.required(format_args!("{path}.privateKey"), &tls.private_key, what);
    } else if !files.is_empty() && files != ["caCertificates"] {
        report.warn(path, format!("has {}; {} is used", files.join(" and "), secrets.join(" and ")));
    }
    let by_secret = !tls.credential_name.is_empty() || !tls.credential_names.is_empty();
    let in_list = tls.tls_certificates.iter().any(|pair| !pair.ca_certificates.is_empty());
    if verifies && !by_secret && !in_list && tls.ca_cert_credential_name.is_empty() {
        let what = "the file of the clients' CA, or use credentialName";
        report.required(format_args!("{path}.caCertificates"), &tls.ca_certificates, what);
    }
}

fn parameters(tls: &ServerTlsSettings, path: &str, report: &mut Report) {
    if tls.max_protocol_version != TlsProtocol::TlsAuto && tls.min_protocol_version > tls.max_protocol_version {
        report.error(format_args!("{path}.minProtocolVersion"), "is above maxProtocolVersion");
    }
    for (field, version) in
        [("minProtocolVersion", tls.min_protocol_version), ("maxProtocolVersion", tls.max_protocol_version)]
    {
        if matches!(version, TlsProtocol::TlsV1_0 | TlsProtocol::TlsV1_1) {
            report.warn(format_args!("{path}.{field}"), "TLS 1.0 and 1.1 are not spoken; TLS 1.2 is the least");
        }
    }
    let mut seen = BTreeSet::new();
    for (i, cipher) in tls.cipher_suites.iter().enumerate() {
        let path = format!("{path}.cipherSuites[{i}]");
        if !CIPHERS.contains(&cipher.as_str()) {
            let message = format!("{cipher:?} is not known and is left out; known are {}", CIPHERS.join(", "));
            report.warn(&path, message);
        }
        if !seen.insert(cipher) {
            report.warn(&path, format!("{cipher:?} is there twice"));
        }
    }
    for (i, hash) in tls.verify_certificate_hash.iter().enumerate() {
        let hex: String = hash.chars().filter(|c| *c != ':').collect();
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            report.error(format_args!("{path}.verifyCertificateHash[{i}]"), "must be a SHA-256 in hexadecimal");
        }
    }
    for (i, hash) in tls.verify_certificate_spki.iter().enumerate() {
        if hash.len() != 44 {
            report.error(format_args!("{path}.verifyCertificateSpki[{i}]"), "must be a SHA-256 in base64");
        }
    }
}

/// Names of TLS 1.2 ciphers as Envoy knows them.
const CIPHERS: [&str; 16] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-RSA-AES128-SHA256",
];
