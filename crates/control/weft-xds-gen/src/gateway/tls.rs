//! TLS of servers: certificates by secret or file, and what is asked of clients.

use crate::cluster::tls::{combined, mesh_params};
use crate::pb::{matcher, secret, tls};
use tls::common_tls_context::ValidationContextType;
use tls::tls_parameters::TlsProtocol as Version;
use weft_k8s_api::istio::{MeshConfig, MeshTlsProtocol, ServerTlsMode, ServerTlsSettings, TlsProtocol};

/// Beginning of the names under which the control plane serves secrets.
const SCHEME: &str = "kubernetes://";
/// Ending of the name of a secret's CA certificates.
pub(crate) const CA_SUFFIX: &str = "-cacert";

/// SDS name of a `credentialName`.
pub(crate) fn credential_resource(name: &str) -> String {
    if name.contains("://") { name.to_string() } else { format!("{SCHEME}{name}") }
}

/// SDS names that the listener's TLS refers to and the control plane serves.
pub(crate) fn credentials(settings: &ServerTlsSettings) -> Vec<String> {
    if !opens(settings.mode) || settings.mode == ServerTlsMode::IstioMutual {
        return Vec::new();
    }
    let mut names: Vec<String> = named(settings).iter().map(|name| credential_resource(name)).collect();
    if verifies_clients(settings) {
        names.extend(client_roots(settings));
    }
    names
}

/// The context of a server that opens TLS; `None` for modes that do not. `http` says what ALPN it agrees to.
pub(crate) fn server_context(settings: &ServerTlsSettings, http: bool) -> Option<tls::DownstreamTlsContext> {
    if !opens(settings.mode) {
        return None;
    }
    let mut common = tls::CommonTlsContext { tls_params: Some(mesh_params()), ..Default::default() };
    common.alpn_protocols = alpn(settings.mode, http);
    match settings.mode {
        ServerTlsMode::IstioMutual => {
            common.tls_certificate_sds_secret_configs = vec![secret::from_agent(secret::SVID)];
            let roots = secret::from_agent(secret::ROOTS);
            common.validation_context_type = Some(combined(roots, &settings.subject_alt_names, None));
        }
        _ => {
            certificates(&mut common, settings);
            if verifies_clients(settings) {
                common.validation_context_type = Some(client_validation(settings));
            }
            parameters(&mut common, settings);
        }
    }
    let required = matches!(settings.mode, ServerTlsMode::Mutual | ServerTlsMode::IstioMutual);
    Some(tls::DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(required),
        ..Default::default()
    })
}

/// Adds what the mesh config sets for TLS outside the mesh, where the server does not say otherwise.
pub(crate) fn add_mesh_defaults(
    context: &mut tls::DownstreamTlsContext,
    settings: &ServerTlsSettings,
    mesh: &MeshConfig,
) {
    let Some(defaults) = mesh.tls_defaults.as_ref().filter(|_| settings.mode != ServerTlsMode::IstioMutual) else {
        return;
    };
    let params = context.common_tls_context.get_or_insert_default().tls_params.get_or_insert_default();
    if params.ecdh_curves.is_empty() {
        params.ecdh_curves.clone_from(&defaults.ecdh_curves);
    }
    if params.cipher_suites.is_empty() {
        params.cipher_suites.clone_from(&defaults.cipher_suites);
    }
    if settings.min_protocol_version == TlsProtocol::TlsAuto
        && defaults.min_protocol_version == MeshTlsProtocol::TlsV1_3
    {
        params.tls_minimum_protocol_version = Version::TlSv13 as i32;
    }
}

fn opens(mode: ServerTlsMode) -> bool {
    !matches!(mode, ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough)
}

fn verifies_clients(settings: &ServerTlsSettings) -> bool {
    matches!(settings.mode, ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual)
}

fn named(settings: &ServerTlsSettings) -> Vec<&str> {
    if settings.credential_names.is_empty() {
        Some(settings.credential_name.as_str()).filter(|n| !n.is_empty()).into_iter().collect()
    } else {
        settings.credential_names.iter().map(String::as_str).collect()
    }
}

fn alpn(mode: ServerTlsMode, http: bool) -> Vec<String> {
    let protocols: &[&str] = match (mode, http) {
        (ServerTlsMode::IstioMutual, false) => &["istio", "h2", "http/1.1"],
        (ServerTlsMode::IstioMutual, true) => &["h2", "http/1.1", "istio"],
        (_, true) => &["h2", "http/1.1"],
        // Bytes of any protocol: agreeing to one would be a lie.
        (_, false) => &[],
    };
    protocols.iter().map(|p| p.to_string()).collect()
}

fn certificates(common: &mut tls::CommonTlsContext, settings: &ServerTlsSettings) {
    let names = named(settings);
    let file = |cert: &str, key: &str| secret::from_agent(&format!("file-cert:{cert}~{key}"));
    common.tls_certificate_sds_secret_configs = if !names.is_empty() {
        names.iter().map(|name| secret::from_control_plane(&credential_resource(name))).collect()
    } else if !settings.tls_certificates.is_empty() {
        settings.tls_certificates.iter().map(|c| file(&c.server_certificate, &c.private_key)).collect()
    } else {
        vec![file(&settings.server_certificate, &settings.private_key)]
    };
}

/// SDS name of the roots for clients, when a secret holds them.
fn client_roots(settings: &ServerTlsSettings) -> Option<String> {
    if !settings.ca_cert_credential_name.is_empty() {
        return Some(format!("{}{CA_SUFFIX}", credential_resource(&settings.ca_cert_credential_name)));
    }
    named(settings).first().map(|name| format!("{}{CA_SUFFIX}", credential_resource(name)))
}

fn client_validation(settings: &ServerTlsSettings) -> ValidationContextType {
    let in_list = settings.tls_certificates.iter().map(|c| c.ca_certificates.as_str());
    let file = std::iter::once(settings.ca_certificates.as_str()).chain(in_list).find(|f| !f.is_empty());
    let roots = match (client_roots(settings), file) {
        (Some(name), _) => secret::from_control_plane(&name),
        (None, Some(file)) => secret::from_agent(&format!("file-root:{file}")),
        // Validation refuses it. Without any check an Envoy would take every certificate.
        (None, None) => return nobodys(settings),
    };
    let crl = Some(settings.ca_crl.as_str()).filter(|file| !file.is_empty());
    let mut validation = combined(roots, &[], crl);
    if let ValidationContextType::CombinedValidationContext(both) = &mut validation {
        let context = both.default_validation_context.get_or_insert_default();
        context.match_typed_subject_alt_names = settings.subject_alt_names.iter().flat_map(|n| any_kind(n)).collect();
        context.verify_certificate_spki.clone_from(&settings.verify_certificate_spki);
        context.verify_certificate_hash.clone_from(&settings.verify_certificate_hash);
    }
    validation
}

/// Takes the certificates that are pinned and no other; without pins none.
fn nobodys(settings: &ServerTlsSettings) -> ValidationContextType {
    let mut context = tls::CertificateValidationContext {
        verify_certificate_spki: settings.verify_certificate_spki.clone(),
        verify_certificate_hash: settings.verify_certificate_hash.clone(),
        ..Default::default()
    };
    if context.verify_certificate_spki.is_empty() && context.verify_certificate_hash.is_empty() {
        context.verify_certificate_hash.push("0".repeat(64));
    }
    ValidationContextType::ValidationContext(context)
}

/// A client's name may be of any kind.
fn any_kind(name: &str) -> Vec<tls::SubjectAltNameMatcher> {
    use tls::subject_alt_name_matcher::SanType;
    [SanType::Dns, SanType::Uri, SanType::Email, SanType::IpAddress]
        .iter()
        .map(|kind| tls::SubjectAltNameMatcher {
            san_type: *kind as i32,
            matcher: Some(matcher::exact(name)),
            oid: String::new(),
        })
        .collect()
}

fn parameters(common: &mut tls::CommonTlsContext, settings: &ServerTlsSettings) {
    let params = common.tls_params.get_or_insert_default();
    if let Some(version) = version(settings.min_protocol_version) {
        params.tls_minimum_protocol_version = version as i32;
    }
    if let Some(version) = version(settings.max_protocol_version) {
        params.tls_maximum_protocol_version = version as i32;
    }
    params.cipher_suites.clone_from(&settings.cipher_suites);
}

fn version(version: TlsProtocol) -> Option<Version> {
    match version {
        TlsProtocol::TlsAuto => None,
        TlsProtocol::TlsV1_0 => Some(Version::TlSv10),
        TlsProtocol::TlsV1_1 => Some(Version::TlSv11),
        TlsProtocol::TlsV1_2 => Some(Version::TlSv12),
        TlsProtocol::TlsV1_3 => Some(Version::TlSv13),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: serde_json::Value) -> ServerTlsSettings {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn modes() {
        // settings, opens, requires a client certificate, secrets
        for (json, opened, required, secrets) in [
            (serde_json::json!({"mode": "PASSTHROUGH"}), false, false, vec![]),
            (serde_json::json!({"mode": "AUTO_PASSTHROUGH"}), false, false, vec![]),
            (serde_json::json!({"mode": "SIMPLE", "credentialName": "c"}), true, false, vec!["kubernetes://c"]),
            (
                serde_json::json!({"mode": "MUTUAL", "credentialName": "c"}),
                true,
                true,
                vec!["kubernetes://c", "kubernetes://c-cacert"],
            ),
            (
                serde_json::json!({"mode": "OPTIONAL_MUTUAL", "credentialName": "c"}),
                true,
                false,
                vec!["kubernetes://c", "kubernetes://c-cacert"],
            ),
            (serde_json::json!({"mode": "ISTIO_MUTUAL"}), true, true, vec![]),
        ] {
            let settings = settings(json.clone());
            let context = server_context(&settings, true);
            assert_eq!(context.is_some(), opened, "{json}");
            assert_eq!(context.and_then(|c| c.require_client_certificate).unwrap_or(false), required, "{json}");
            assert_eq!(credentials(&settings), secrets, "{json}");
        }
    }

    #[test]
    fn class_san_parsing_mutual_tls_without_roots_takes_no_certificate() {
        let pair = serde_json::json!([{"serverCertificate": "/c", "privateKey": "/k"}]);
        for (json, hashes, spki) in [
            (serde_json::json!({"mode": "MUTUAL", "tlsCertificates": pair}), vec!["0".repeat(64)], vec![]),
            (
                serde_json::json!({"mode": "MUTUAL", "tlsCertificates": pair, "verifyCertificateSpki": ["s"]}),
                vec![],
                vec!["s".to_string()],
            ),
        ] {
            let common = server_context(&settings(json.clone()), true).unwrap().common_tls_context.unwrap();
            let Some(ValidationContextType::ValidationContext(context)) = common.validation_context_type else {
                panic!("{json}: no validation of clients")
            };
            assert_eq!((context.verify_certificate_hash, context.verify_certificate_spki), (hashes, spki), "{json}");
        }
    }
}
