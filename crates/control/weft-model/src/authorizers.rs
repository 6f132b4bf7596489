//! External authorizers of the mesh config, as CUSTOM policies name them: whether one can be asked, and if not, why. How it is
//! asked is the generator's business.

use crate::{MeshSnapshot, Service, hosts};
use weft_k8s_api::istio::{ExtAuthzGrpcProvider, ExtAuthzHttpProvider, ExtAuthzRequestBody};

/// Longest name of a provider: it becomes part of the names of rules.
const MAX_NAME: usize = 63;
/// Largest body that requests are shown with, in bytes: our proxies keep no more.
const MAX_BODY: u32 = 16 << 20;

/// Whether requests can be shown to the authorizer of that name.
///
/// # Errors
/// Why not, as a sentence: it is unknown, of another kind, or has a setting or service that cannot be used.
pub fn usable(snapshot: &MeshSnapshot, name: &str) -> Result<(), String> {
    let provider = snapshot.mesh.extension_provider(name).filter(|_| !name.is_empty());
    let provider = provider
        .ok_or_else(|| format!("{name:?} is no external authorizer of the mesh config's extensionProviders"))?;
    if name.len() > MAX_NAME || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(format!(
            "extension provider {name:?}: an authorizer's name has letters, digits and '-' alone, {MAX_NAME} at most"
        ));
    }
    let checked = match (&provider.envoy_ext_authz_grpc, &provider.envoy_ext_authz_http) {
        (Some(grpc), _) => by_grpc(snapshot, grpc),
        (None, Some(http)) => by_http(snapshot, http),
        (None, None) => {
            Err("is of another kind; an external authorizer has envoyExtAuthzGrpc or envoyExtAuthzHttp".into())
        }
    };
    checked.map_err(|why| format!("extension provider {name:?} {why}"))
}

/// What users should know of an authorizer: why it cannot be asked, or that nobody will answer. What the policy's rules match is
/// denied, unless, in the second case, the provider fails open.
pub(crate) fn warning(snapshot: &MeshSnapshot, name: &str) -> Option<String> {
    if let Err(why) = usable(snapshot, name) {
        return Some(format!("{why}; requests that the rules match are denied"));
    }
    let provider = snapshot.mesh.extension_provider(name)?;
    let grpc = provider.envoy_ext_authz_grpc.as_ref().map(|config| (&config.service, config.port, config.fail_open));
    let http = || provider.envoy_ext_authz_http.as_ref().map(|config| (&config.service, config.port, config.fail_open));
    let (service, port, open) = grpc.or_else(http)?;
    let found = service_of(snapshot, service)?;
    let listens = found.ports.iter().any(|known| u32::from(known.number) == port);
    let host = &found.host;
    let then = if open { "allowed (failOpen)" } else { "denied" };
    (!listens).then(|| {
        format!("extension provider {name:?} asks port {port} of {host}, which has no such port; requests that the rules match are {then}")
    })
}

fn by_grpc(snapshot: &MeshSnapshot, config: &ExtAuthzGrpcProvider) -> Result<(), String> {
    reachable(snapshot, &config.service, config.port)?;
    body(config.include_request_body_in_check.as_ref())?;
    status(&config.status_on_error)
}

fn by_http(snapshot: &MeshSnapshot, config: &ExtAuthzHttpProvider) -> Result<(), String> {
    reachable(snapshot, &config.service, config.port)?;
    if !config.path_prefix.is_empty() && !config.path_prefix.starts_with('/') {
        return Err(format!("has the pathPrefix {:?}, which does not begin with '/'", config.path_prefix));
    }
    let older = config.include_request_headers_in_check.is_empty();
    let included = if older { &config.include_headers_in_check } else { &config.include_request_headers_in_check };
    for (field, list) in [
        ("headersToUpstreamOnAllow", &config.headers_to_upstream_on_allow),
        ("headersToDownstreamOnDeny", &config.headers_to_downstream_on_deny),
        ("headersToDownstreamOnAllow", &config.headers_to_downstream_on_allow),
        ("includeRequestHeadersInCheck", included),
    ] {
        if list.iter().any(|name| name == "*") {
            return Err(format!("has a lone * in {field}; name headers, or a beginning or end of their names"));
        }
    }
    if let Some((name, _)) = config.include_additional_headers_in_check.iter().find(|(n, v)| !is_header(n, v)) {
        let why = "a name has letters, digits and !#$%&'*+-.^_`|~, a value printable characters";
        return Err(format!(
            "has in includeAdditionalHeadersInCheck {name:?}, which is no header with its value; {why}"
        ));
    }
    body(config.include_request_body_in_check.as_ref())?;
    status(&config.status_on_error)
}

/// Proxies refuse a listener whose authorizer is shown no bytes or too many, and go on with the rules they had.
fn body(body: Option<&ExtAuthzRequestBody>) -> Result<(), String> {
    match body.map(|body| body.max_request_bytes) {
        None | Some(1..=MAX_BODY) => Ok(()),
        Some(bytes) => {
            Err(format!("has includeRequestBodyInCheck.maxRequestBytes {bytes}; give 1 to {MAX_BODY}, or no body"))
        }
    }
}

/// RFC 9110, 5.1 and 5.5.
fn is_header(name: &str, value: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_text = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte);
    !name.is_empty() && name.bytes().all(is_token) && value.bytes().all(is_text)
}

fn reachable(snapshot: &MeshSnapshot, service: &str, port: u32) -> Result<(), String> {
    match service_of(snapshot, service) {
        Some(_) if (1..=65535).contains(&port) => Ok(()),
        Some(_) => Err(format!("has the port {port}, which is none; give 1 to 65535")),
        None => {
            let remedy = "write the host's full name, or NAMESPACE/HOST";
            Err(format!("asks service {service:?}, which does not exist; {remedy}"))
        }
    }
}

/// The service that a provider names: `[namespace/]host`.
pub fn service_of<'a>(snapshot: &'a MeshSnapshot, service: &str) -> Option<&'a Service> {
    let (namespace, host) = service.split_once('/').map_or((None, service), |(ns, host)| (Some(ns), host));
    let host = hosts::complete(host, &snapshot.settings.root_namespace, &snapshot.settings.domain);
    let known = snapshot.services.get(&host)?;
    let found = known.iter().find(|s| namespace.is_none_or(|ns| s.namespace == ns))?;
    Some(snapshot.concrete(found, &snapshot.settings.root_namespace))
}

/// A status in digits that Envoy knows (`envoy.type.v3.StatusCode`), or none.
fn status(text: &str) -> Result<(), String> {
    let known = |code: u16| matches!(code, 100 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=417 | 421..=424 | 426 | 428 | 429 | 431 | 500..=508 | 510 | 511);
    match text.is_empty() || text.parse().is_ok_and(known) {
        true => Ok(()),
        false => Err(format!("has the statusOnError {text:?}, which is no HTTP status; write digits, such as \"503\"")),
    }
}
