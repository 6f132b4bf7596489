//! TLS towards endpoints: as the destination rule says; else mutual TLS with the mesh's certificates to endpoints that
//! take it.

use super::{Draft, Target};
use crate::gateway::tls::CA_SUFFIX;
use crate::pb::cluster::cluster::TransportSocketMatch;
use crate::pb::{self, core, matcher, secret, tls, transport_socket, value};
use crate::scope::View;
use std::collections::BTreeSet;
use std::sync::Arc;
use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use tls::subject_alt_name_matcher::SanType;
use tls::tls_parameters::TlsProtocol;
use weft_k8s_api::istio::{
    ClientTlsMode, ClientTlsSettings, MeshTlsProtocol, MutualTls, PeerAuthentication, PeerAuthenticationMode,
    ProxyProtocol, SimpleLb, TlsConfig,
};
use weft_model::{DestinationRule, MtlsMode, Registry, Resolution, UNSERVED};
use weft_proto::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use weft_proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;

/// Name of the TLS transport socket.
pub(crate) const TLS_SOCKET: &str = "envoy.transport_sockets.tls";
/// Key of the endpoint metadata that a transport socket is chosen by.
pub(crate) const TLS_MODE_KEY: &str = "tlsMode";
/// Value of [`TLS_MODE_KEY`] on endpoints that take the mesh's mutual TLS.
pub(crate) const TLS_MODE_ISTIO: &str = "istio";
/// Files of the system's own CA certificates are served under this name.
const SYSTEM_ROOTS: &str = "file-root:system";

/// Sets the transport socket, or the choice of sockets by endpoint.
pub(super) fn apply(view: View<'_>, draft: &mut Draft, target: &Target<'_>) {
    match &target.policy.tls {
        Some(settings) => as_told(view, draft, target, settings),
        None if detects(view, target) => {
            let context = mesh_context(view, draft, target, None);
            let socket = transport_socket(TLS_SOCKET, &context);
            if draft.is_original_dst() {
                draft.cluster.transport_socket = Some(socket);
            } else {
                draft.cluster.transport_socket_matches = by_endpoint(socket);
            }
        }
        None => {}
    }
}

fn as_told(view: View<'_>, draft: &mut Draft, target: &Target<'_>, settings: &ClientTlsSettings) {
    let context = match settings.mode {
        ClientTlsMode::Disable => None,
        ClientTlsMode::IstioMutual => Some(mesh_context(view, draft, target, Some(settings))),
        ClientTlsMode::Simple => Some(origination(view, draft, target, settings, false)),
        ClientTlsMode::Mutual => Some(origination(view, draft, target, settings, true)),
    };
    draft.cluster.transport_socket = context.map(|c| transport_socket(TLS_SOCKET, &c));
}

/// Whether endpoints may take the mesh's mutual TLS without a destination rule saying so.
fn detects(view: View<'_>, target: &Target<'_>) -> bool {
    let service = target.service;
    if service.mesh_external || view.mesh().enable_auto_mtls == Some(false) {
        return false;
    }
    let dialled = target.policy.load_balancer.as_ref().and_then(|lb| lb.simple) == Some(SimpleLb::Passthrough);
    if service.resolution == Resolution::Passthrough || dialled {
        // The endpoint is not chosen here, so one answer has to hold for all of them.
        let endpoints = view.snapshot.endpoints_of(service, target.port.number);
        if endpoints.is_none_or(|all| all.is_empty() || all.iter().any(|e| !e.mtls)) {
            return false;
        }
    }
    let policies = &view.snapshot.peer_auth;
    let wide = policies.namespaces.get(&service.namespace).copied().unwrap_or(policies.mesh);
    // A single workload, or a port of it, may take what its namespace does not; its endpoints say so. (Istio judges by the
    // namespace alone, and its clients are refused then.)
    let mut of_workloads = policies.workloads.get(&service.namespace).into_iter().flatten();
    wide != MtlsMode::Disable || of_workloads.any(|policy| takes_mtls(&policy.spec))
}

/// Whether a policy has some port of a workload take mutual TLS.
fn takes_mtls(policy: &PeerAuthentication) -> bool {
    let takes =
        |mtls: &MutualTls| matches!(mtls.mode, PeerAuthenticationMode::Permissive | PeerAuthenticationMode::Strict);
    policy.mtls.iter().chain(policy.port_level_mtls.values()).any(takes)
}

/// Mutual TLS with the mesh's certificates. The server must be one that runs the service.
fn mesh_context(
    view: View<'_>,
    draft: &Draft,
    target: &Target<'_>,
    settings: Option<&ClientTlsSettings>,
) -> tls::UpstreamTlsContext {
    let given = settings.map(|s| s.subject_alt_names.as_slice()).unwrap_or_default();
    let names: Vec<String> = if given.is_empty() { server_identities(view, target) } else { given.to_vec() };
    let sni = settings.map(|s| s.sni.clone()).filter(|sni| !sni.is_empty()).unwrap_or_else(|| target.name().sni());
    let common = tls::CommonTlsContext {
        tls_params: Some(mesh_mtls_params(view)),
        tls_certificate_sds_secret_configs: vec![secret::from_agent(secret::SVID)],
        alpn_protocols: mesh_alpn(draft, target),
        validation_context_type: Some(combined(secret::from_agent(secret::ROOTS), &names, None)),
        ..Default::default()
    };
    tls::UpstreamTlsContext { common_tls_context: Some(common), sni, ..Default::default() }
}

/// Who may answer for the service: its workloads' service accounts, and names a service entry declares; each under all
/// names of the mesh's trust domain, as servers may still have certificates of an older one.
fn server_identities(view: View<'_>, target: &Target<'_>) -> Vec<String> {
    let service = target.service;
    let mut names: BTreeSet<String> = service.subject_alt_names.iter().chain(&service.identities).cloned().collect();
    let paths: Vec<String> = names.iter().filter_map(|name| spiffe_path(name)).map(String::from).collect();
    for alias in &view.mesh().trust_domain_aliases {
        names.extend(paths.iter().map(|path| format!("spiffe://{alias}/{path}")));
    }
    names.into_iter().collect()
}

/// What follows the trust domain in a SPIFFE id.
fn spiffe_path(id: &str) -> Option<&str> {
    id.strip_prefix("spiffe://")?.split_once('/').map(|(_, path)| path)
}

/// ALPN by which the server's proxy tells the mesh's traffic, and in it HTTP, from other TLS before it has read any of
/// it: `istio` marks the mesh, `istio-http/1.1` and `istio-h2` HTTP, and the protocol itself is what is agreed on.
fn mesh_alpn(draft: &Draft, target: &Target<'_>) -> Vec<String> {
    let names: &[&str] = if !target.port.protocol.is_http() {
        &["istio-peer-exchange", "istio"]
    } else if draft.http.is_http2() {
        &["istio-h2", "istio", "h2"]
    } else if draft.http.is_http1() {
        &["istio-http/1.1", "istio", "http/1.1"]
    } else {
        &["istio-peer-exchange", "istio"]
    };
    names.iter().map(|n| n.to_string()).collect()
}

/// TLS 1.2 to 1.3: what both sides of the mesh speak.
pub(crate) fn mesh_params() -> tls::TlsParameters {
    tls::TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12 as i32,
        tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
        ..Default::default()
    }
}

/// What the mesh config asks of TLS between proxies (`meshMTLS`): the same on both sides, for a client that does not offer
/// what the server demands cannot connect.
pub(crate) fn mesh_mtls_params(view: View<'_>) -> tls::TlsParameters {
    let mut params = mesh_params();
    if let Some(mesh) = &view.mesh().mesh_mtls {
        params.ecdh_curves.clone_from(&mesh.ecdh_curves);
        params.cipher_suites.clone_from(&mesh.cipher_suites);
        if mesh.min_protocol_version == MeshTlsProtocol::TlsV1_3 {
            params.tls_minimum_protocol_version = TlsProtocol::TlSv13 as i32;
        }
    }
    params
}

/// Roots by SDS, and the names that the peer's certificate must have one of.
pub(crate) fn combined(roots: tls::SdsSecretConfig, names: &[String], crl: Option<&str>) -> ValidationContextType {
    let context = tls::CertificateValidationContext {
        match_typed_subject_alt_names: names.iter().flat_map(|name| san_matchers(name)).collect(),
        crl: crl.map(|file| core::DataSource {
            specifier: Some(core::data_source::Specifier::Filename(file.into())),
            ..Default::default()
        }),
        ..Default::default()
    };
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(context),
        validation_context_sds_secret_config: Some(roots),
        ..Default::default()
    })
}

/// Roots by SDS, and the trust domains that a client's SPIFFE id must be of.
pub(crate) fn of_trust_domains(roots: tls::SdsSecretConfig, domains: &[String]) -> ValidationContextType {
    let matcher = |domain: &String| tls::SubjectAltNameMatcher {
        san_type: SanType::Uri as i32,
        matcher: Some(matcher::prefix(format!("spiffe://{domain}/"))),
        oid: String::new(),
    };
    let context = tls::CertificateValidationContext {
        match_typed_subject_alt_names: domains.iter().map(matcher).collect(),
        ..Default::default()
    };
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(context),
        validation_context_sds_secret_config: Some(roots),
        ..Default::default()
    })
}

/// A name is a URI (SPIFFE) when it looks like one; else a DNS name or an address.
fn san_matchers(name: &str) -> Vec<tls::SubjectAltNameMatcher> {
    let kinds: &[SanType] = if name.contains("://") {
        &[SanType::Uri]
    } else if name.parse::<std::net::IpAddr>().is_ok() {
        &[SanType::IpAddress]
    } else {
        &[SanType::Dns, SanType::Uri]
    };
    kinds
        .iter()
        .map(|kind| tls::SubjectAltNameMatcher {
            san_type: *kind as i32,
            matcher: Some(matcher::exact(name)),
            oid: String::new(),
        })
        .collect()
}

/// Mutual TLS where the endpoint's metadata says that it takes it, else plain text.
fn by_endpoint(mutual: core::TransportSocket) -> Vec<TransportSocketMatch> {
    let istio = value::fields([(TLS_MODE_KEY, value::text(TLS_MODE_ISTIO))]);
    vec![
        TransportSocketMatch { name: "tlsMode-istio".into(), r#match: Some(istio), transport_socket: Some(mutual) },
        TransportSocketMatch {
            name: "tlsMode-disabled".into(),
            r#match: Some(weft_proto::Struct::default()),
            transport_socket: Some(raw_buffer()),
        },
    ]
}

fn raw_buffer() -> core::TransportSocket {
    transport_socket("envoy.transport_sockets.raw_buffer", &RawBuffer {})
}

/// TLS to a server outside the mesh, with certificates of the user's own. What asks for TLS is never sent in plain text: where the
/// certificates cannot be had, the handshake fails.
fn origination(
    view: View<'_>,
    draft: &mut Draft,
    target: &Target<'_>,
    settings: &ClientTlsSettings,
    mutual: bool,
) -> tls::UpstreamTlsContext {
    // A secret may be named by gateways, and by rules that select the workloads which may read it; others use the certificate
    // paths (Istio's reference, ClientTLSSettings.credentialName).
    let by_secret = !settings.credential_name.is_empty() && may_name(view, target.rule, &settings.credential_name);
    let unverified = settings.insecure_skip_verify == Some(true);
    let external = target.service.registry == Some(Registry::External);
    let names = if settings.subject_alt_names.is_empty() && external {
        target.service.subject_alt_names.clone()
    } else {
        settings.subject_alt_names.clone()
    };
    if settings.sni.is_empty() {
        let upstream = draft.http.upstream.get_or_insert_default();
        upstream.auto_sni = true;
        upstream.auto_san_validation = names.is_empty() && !unverified;
    }
    let mut common = tls::CommonTlsContext { tls_params: Some(mesh_params()), ..Default::default() };
    if settings.credential_name.starts_with(UNSERVED) {
        // No name for SDS: an Envoy that waits for what never comes does not become ready.
        common.validation_context_type = Some(nobodys());
    } else if by_secret {
        from_secret(&mut common, settings, &names, mutual);
    } else {
        from_files(&mut common, settings, &names, mutual);
    }
    if unverified {
        common.validation_context_type = None;
    }
    add_defaults(&mut common, view.mesh().tls_defaults.as_ref());
    if draft.http.is_http2() {
        common.alpn_protocols = vec!["h2".into()];
    }
    tls::UpstreamTlsContext { common_tls_context: Some(common), sni: settings.sni.clone(), ..Default::default() }
}

/// Whether the proxies of the view get what a rule names. Names with another scheme than that of Secrets beside the proxy
/// are of generated rules alone (validation keeps users from writing them), and mean CA certificates, which are no secret.
fn may_name(view: View<'_>, rule: Option<&Arc<DestinationRule>>, credential: &str) -> bool {
    let selected = rule.is_some_and(|rule| rule.spec.workload_selector.is_some());
    let generated = credential.split_once("://").is_some_and(|(scheme, _)| scheme != "kubernetes");
    view.scope.key.gateway || selected || generated
}

/// SDS names, served by the control plane, that clusters towards the services of a rule refer to.
pub(super) fn credentials(view: View<'_>, rule: &Arc<DestinationRule>) -> Vec<String> {
    let spec = &rule.spec;
    let policies = spec.traffic_policy.iter().chain(spec.subsets.iter().filter_map(|s| s.traffic_policy.as_ref()));
    let settings =
        policies.flat_map(|p| p.tls.iter().chain(p.port_level_settings.iter().filter_map(|s| s.tls.as_ref())));
    let mut names = Vec::new();
    for tls in settings.filter(|t| matches!(t.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual)) {
        let served = !tls.credential_name.is_empty() && !tls.credential_name.starts_with(UNSERVED);
        if !served || !may_name(view, Some(rule), &tls.credential_name) {
            continue;
        }
        let name = crate::gateway::tls::credential_resource(&tls.credential_name);
        names.push(format!("{name}{CA_SUFFIX}"));
        if tls.mode == ClientTlsMode::Mutual {
            names.push(name);
        }
    }
    names
}

fn from_files(common: &mut tls::CommonTlsContext, settings: &ClientTlsSettings, names: &[String], mutual: bool) {
    // Without its files the client shows nothing, and the server ends the handshake. The name of a secret that never comes would do
    // the same, but an Envoy that waits for one does not become ready.
    if mutual && !settings.client_certificate.is_empty() && !settings.private_key.is_empty() {
        let name = format!("file-cert:{}~{}", settings.client_certificate, settings.private_key);
        common.tls_certificate_sds_secret_configs.push(secret::from_agent(&name));
    }
    let roots = match settings.ca_certificates.as_str() {
        "" | "system" => SYSTEM_ROOTS.to_string(),
        file => format!("file-root:{file}"),
    };
    let crl = Some(settings.ca_crl.as_str()).filter(|file| !file.is_empty());
    common.validation_context_type = Some(combined(secret::from_agent(&roots), names, crl));
}

/// Takes nobody's certificate.
fn nobodys() -> ValidationContextType {
    ValidationContextType::ValidationContext(tls::CertificateValidationContext {
        verify_certificate_hash: vec!["0".repeat(64)],
        ..Default::default()
    })
}

fn from_secret(common: &mut tls::CommonTlsContext, settings: &ClientTlsSettings, names: &[String], mutual: bool) {
    let name = crate::gateway::tls::credential_resource(&settings.credential_name);
    if mutual {
        common.tls_certificate_sds_secret_configs.push(secret::from_control_plane(&name));
    }
    common.validation_context_type =
        Some(combined(secret::from_control_plane(&format!("{name}{CA_SUFFIX}")), names, None));
}

/// Curves and ciphers that the mesh config sets for TLS outside the mesh.
fn add_defaults(common: &mut tls::CommonTlsContext, defaults: Option<&TlsConfig>) {
    let Some(defaults) = defaults else { return };
    let params = common.tls_params.get_or_insert_default();
    params.ecdh_curves.clone_from(&defaults.ecdh_curves);
    params.cipher_suites.clone_from(&defaults.cipher_suites);
}

/// Puts the PROXY protocol in front of whatever transport the cluster has.
pub(super) fn apply_proxy_protocol(draft: &mut Draft, settings: Option<&ProxyProtocol>) {
    let Some(settings) = settings else { return };
    let version = match settings.version {
        weft_k8s_api::istio::ProxyProtocolVersion::V1 => core::proxy_protocol_config::Version::V1,
        weft_k8s_api::istio::ProxyProtocolVersion::V2 => core::proxy_protocol_config::Version::V2,
    };
    let wrap = |inner: core::TransportSocket| {
        let config = ProxyProtocolUpstreamTransport {
            config: Some(core::ProxyProtocolConfig { version: version as i32, ..Default::default() }),
            transport_socket: Some(inner),
            ..Default::default()
        };
        pb::transport_socket("envoy.transport_sockets.upstream_proxy_protocol", &config)
    };
    for choice in &mut draft.cluster.transport_socket_matches {
        choice.transport_socket = choice.transport_socket.take().map(wrap);
    }
    if draft.cluster.transport_socket_matches.is_empty() {
        draft.cluster.transport_socket = Some(wrap(draft.cluster.transport_socket.take().unwrap_or_else(raw_buffer)));
    }
}
