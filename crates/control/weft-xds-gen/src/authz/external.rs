//! CUSTOM policies: an RBAC filter in shadow mode says which requests are asked about, and the filter after it asks the
//! provider about those. What cannot be asked is denied.

use super::{AuthzPolicy, HTTP_FILTER, NETWORK_FILTER};
use crate::observe::provider_cluster;
use crate::pb::core::{ApiVersion, GrpcService, HeaderValue, HttpUri, grpc_service, http_uri};
use crate::pb::envoy_matcher::{
    ListStringMatcher, MetadataMatcher, StringMatcher, ValueMatcher, metadata_matcher, value_matcher,
};
use crate::pb::{self, matcher};
use crate::scope::View;
use std::collections::BTreeMap;
use std::time::Duration;
use weft_k8s_api::istio::{ExtAuthzGrpcProvider, ExtAuthzHttpProvider, ExtAuthzRequestBody};
use weft_proto::envoy::extensions::filters::http::ext_authz::v3 as http;
use weft_proto::envoy::extensions::filters::network::ext_authz::v3 as network;
use weft_proto::envoy::r#type::v3::{HttpStatus, StatusCode};

/// Name of the HTTP filter.
pub(crate) const HTTP: &str = "envoy.filters.http.ext_authz";
/// Name of the network filter.
pub(crate) const NETWORK: &str = "envoy.filters.network.ext_authz";
/// Prefix of what the shadow rules say in metadata.
pub(super) const SHADOW_PREFIX: &str = "istio_ext_authz_";
/// Key of the policy that matched, after the prefix.
const EFFECTIVE_POLICY: &str = "shadow_effective_policy_id";
/// Time for an answer unless the provider says otherwise.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A provider, ready to be asked.
pub(super) struct Provider {
    pub http: http::ExtAuthz,
    /// `None` for providers that know only HTTP.
    pub tcp: Option<network::ExtAuthz>,
}

/// CUSTOM policies by provider. Dry runs of CUSTOM policies are not defined: such a policy does nothing.
pub(super) fn by_provider<'p>(policies: &[&'p AuthzPolicy]) -> BTreeMap<&'p str, Vec<&'p AuthzPolicy>> {
    let mut out: BTreeMap<&str, Vec<&AuthzPolicy>> = BTreeMap::new();
    for policy in policies.iter().copied().filter(|p| !super::is_dry_run(p)) {
        out.entry(policy.spec.provider.as_ref().map_or("", |p| p.name.as_str())).or_default().push(policy);
    }
    out
}

/// Beginning of the names of rules that are the provider's. Names of providers hold no bracket, so none begins another's.
pub(super) fn rule_prefix(provider: &str) -> String {
    if provider.is_empty() { "istio-ext-authz-".into() } else { format!("istio-ext-authz-{provider}-") }
}

/// The provider of that name; `None` when it cannot be asked: unknown, of another kind, with a setting or service that
/// cannot be used.
pub(super) fn provider(view: View<'_>, name: &str) -> Option<Provider> {
    // The same that users are warned of.
    weft_model::authorizers::usable(view.snapshot, name).ok()?;
    let config = view.mesh().extension_provider(name)?;
    let mut found = match (&config.envoy_ext_authz_grpc, &config.envoy_ext_authz_http) {
        (Some(grpc), _) => by_grpc(view, grpc)?,
        (None, Some(http)) => Provider { http: by_http(view, http)?, tcp: None },
        (None, None) => return None,
    };
    found.http.filter_enabled_metadata = Some(matched(HTTP_FILTER, name));
    if let Some(tcp) = &mut found.tcp {
        tcp.filter_enabled_metadata = Some(matched(NETWORK_FILTER, name));
    }
    Some(found)
}

fn by_grpc(view: View<'_>, config: &ExtAuthzGrpcProvider) -> Option<Provider> {
    let (cluster, authority) = provider_cluster(view, &config.service, config.port)?;
    let target = grpc_service::EnvoyGrpc { cluster_name: cluster, authority, ..Default::default() };
    let service = GrpcService {
        timeout: Some(pb::duration(config.timeout.map_or(TIMEOUT, |t| t.get()))),
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)),
        ..Default::default()
    };
    Some(Provider {
        http: http::ExtAuthz {
            transport_api_version: ApiVersion::V3 as i32,
            failure_mode_allow: config.fail_open,
            clear_route_cache: config.clear_route_cache,
            status_on_error: status(&config.status_on_error)?,
            with_request_body: config.include_request_body_in_check.as_ref().map(body),
            services: Some(http::ext_authz::Services::GrpcService(service.clone())),
            ..Default::default()
        },
        tcp: Some(network::ExtAuthz {
            stat_prefix: "tcp.".into(),
            grpc_service: Some(service),
            failure_mode_allow: config.fail_open,
            transport_api_version: ApiVersion::V3 as i32,
            ..Default::default()
        }),
    })
}

fn by_http(view: View<'_>, config: &ExtAuthzHttpProvider) -> Option<http::ExtAuthz> {
    let (cluster, host) = provider_cluster(view, &config.service, config.port)?;
    if !config.path_prefix.is_empty() && !config.path_prefix.starts_with('/') {
        return None;
    }
    let headers_to_add: Vec<HeaderValue> = config
        .include_additional_headers_in_check
        .iter()
        .map(|(key, value)| HeaderValue { key: key.clone(), value: value.clone(), ..Default::default() })
        .collect();
    let answer = http::AuthorizationResponse {
        allowed_upstream_headers: names(&config.headers_to_upstream_on_allow)?,
        allowed_client_headers: names(&config.headers_to_downstream_on_deny)?,
        allowed_client_headers_on_success: names(&config.headers_to_downstream_on_allow)?,
        ..Default::default()
    };
    let service = http::HttpService {
        server_uri: Some(HttpUri {
            uri: format!("http://{host}"),
            timeout: Some(pb::duration(config.timeout.map_or(TIMEOUT, |t| t.get()))),
            http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(cluster)),
        }),
        path_prefix: config.path_prefix.clone(),
        authorization_request: (!headers_to_add.is_empty())
            .then(|| http::AuthorizationRequest { headers_to_add, ..Default::default() }),
        authorization_response: (answer != http::AuthorizationResponse::default()).then_some(answer),
        ..Default::default()
    };
    // The older spelling counts where the newer is not used.
    let older = config.include_request_headers_in_check.is_empty();
    let included = if older { &config.include_headers_in_check } else { &config.include_request_headers_in_check };
    Some(http::ExtAuthz {
        transport_api_version: ApiVersion::V3 as i32,
        failure_mode_allow: config.fail_open,
        clear_route_cache: config.clear_route_cache,
        status_on_error: status(&config.status_on_error)?,
        with_request_body: config.include_request_body_in_check.as_ref().map(body),
        allowed_headers: names(included)?,
        services: Some(http::ext_authz::Services::HttpService(service)),
        ..Default::default()
    })
}

/// Names of headers; the inner `None` for an empty list, the outer for a lone `*`, which says nothing of what is meant.
#[allow(clippy::option_option)]
fn names(list: &[String]) -> Option<Option<ListStringMatcher>> {
    if list.iter().any(|name| name == "*") {
        return None;
    }
    let one = |name: &String| {
        let test = match (name.strip_prefix('*'), name.strip_suffix('*')) {
            (Some(ending), _) => matcher::suffix(ending),
            (None, Some(beginning)) => matcher::prefix(beginning),
            (None, None) => matcher::exact(name.as_str()),
        };
        StringMatcher { ignore_case: true, ..test }
    };
    Some((!list.is_empty()).then(|| ListStringMatcher { patterns: list.iter().map(one).collect() }))
}

/// A status in digits; the inner `None` for the default, the outer for what is no status.
#[allow(clippy::option_option)]
fn status(text: &str) -> Option<Option<HttpStatus>> {
    if text.is_empty() {
        return Some(None);
    }
    let code = StatusCode::try_from(text.parse::<i32>().ok()?).ok().filter(|code| *code != StatusCode::Empty)?;
    Some(Some(HttpStatus { code: code as i32 }))
}

fn body(config: &ExtAuthzRequestBody) -> http::BufferSettings {
    http::BufferSettings {
        max_request_bytes: config.max_request_bytes,
        allow_partial_message: config.allow_partial_message,
        pack_as_bytes: config.pack_as_bytes,
    }
}

/// The shadow rules before matched one of the provider's.
fn matched(filter: &str, provider: &str) -> MetadataMatcher {
    let key = metadata_matcher::path_segment::Segment::Key(format!("{SHADOW_PREFIX}{EFFECTIVE_POLICY}"));
    let value = value_matcher::MatchPattern::StringMatch(matcher::prefix(rule_prefix(provider)));
    MetadataMatcher {
        filter: filter.into(),
        path: vec![metadata_matcher::PathSegment { segment: Some(key) }],
        value: Some(ValueMatcher { match_pattern: Some(value) }),
        invert: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use weft_k8s_api::istio::{ExtensionProvider, MeshConfig};
    use weft_model::{MeshSnapshot, Service};

    fn usable(grpc: bool, settings: serde_json::Value) -> bool {
        let host: weft_core::Strng = "authz.example".into();
        let mut snapshot = MeshSnapshot::default();
        let service = Service { host: host.clone(), ..Service::default() };
        snapshot.services.insert(host, vec![Arc::new(service)]);
        let mut provider = ExtensionProvider { name: "a".into(), ..Default::default() };
        let mut settings = settings;
        settings["service"] = "authz.example".into();
        settings["port"] = 80.into();
        if grpc {
            provider.envoy_ext_authz_grpc = Some(serde_json::from_value(settings).unwrap());
        } else {
            provider.envoy_ext_authz_http = Some(serde_json::from_value(settings).unwrap());
        }
        snapshot.mesh = MeshConfig { extension_providers: vec![provider], ..MeshConfig::default() }.into();
        weft_model::authorizers::usable(&snapshot, "a").is_ok()
    }

    /// What a proxy would refuse makes the provider unusable, which is told, and what its rules match is denied; a listener that is
    /// refused leaves a workload on the rules it had.
    #[test]
    fn class_ext_authz_settings_that_proxies_refuse_make_a_provider_unusable() {
        for grpc in [true, false] {
            for (bytes, good) in [(0, false), (1, true), (16 << 20, true), ((16 << 20) + 1, false)] {
                let settings = serde_json::json!({"includeRequestBodyInCheck": {"maxRequestBytes": bytes}});
                assert_eq!(usable(grpc, settings), good, "{grpc} {bytes}");
            }
        }
        for (name, value, good) in [
            ("x-from", "mesh 1", true),
            ("x from", "mesh", false),
            ("", "mesh", false),
            ("x-from", "me\nsh", false),
            ("x-from", "é", false),
        ] {
            let mut settings = serde_json::json!({"includeAdditionalHeadersInCheck": {}});
            settings["includeAdditionalHeadersInCheck"][name] = value.into();
            assert_eq!(usable(false, settings), good, "{name:?}: {value:?}");
        }
    }

    /// Users are warned of exactly the statuses that cannot be generated.
    #[test]
    fn statuses_are_those_that_the_model_takes() {
        for code in 0..1000 {
            let text = code.to_string();
            let good = usable(false, serde_json::json!({"statusOnError": text}));
            assert_eq!(good, status(&text).is_some(), "{text}");
        }
    }
}
