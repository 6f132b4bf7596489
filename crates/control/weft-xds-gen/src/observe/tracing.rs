//! Tracing: sampling, tags, and where spans go.

use super::{Bound, Side, provider_cluster};
use crate::pb::core::{GrpcService, HttpService, HttpUri, grpc_service, http_uri};
use crate::pb::hcm::{RequestIdExtension, http_connection_manager::Tracing};
use crate::pb::{self, envoy_type};
use crate::scope::View;
use std::collections::BTreeMap;
use std::time::Duration;
use weft_k8s_api::istio::{self, CustomTag, ExtensionProvider, MeshProxyConfig};
use weft_model::MeshSnapshot;
use weft_proto::envoy::config::trace::v3 as trace;
use weft_proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use weft_proto::envoy::r#type::metadata::v3::{MetadataKey, MetadataKind, metadata_key, metadata_kind};
use weft_proto::envoy::r#type::tracing::v3::{CustomTag as EnvoyTag, custom_tag};
use weft_proto::{Any, pack};

/// Share of requests that are traced, percent, when nothing is said.
const DEFAULT_SAMPLING: f64 = 1.0;
/// Tags of the spans of whoever decides about a request, and where the filter of dry-run policies leaves their values
/// (Istio's "Authorization Dry-run" task, traces).
const DRY_RUNS: [(&str, &str); 4] = [
    ("istio.authorization.dry_run.allow_policy.name", "istio_dry_run_allow_shadow_effective_policy_id"),
    ("istio.authorization.dry_run.allow_policy.result", "istio_dry_run_allow_shadow_engine_result"),
    ("istio.authorization.dry_run.deny_policy.name", "istio_dry_run_deny_shadow_effective_policy_id"),
    ("istio.authorization.dry_run.deny_policy.result", "istio_dry_run_deny_shadow_engine_result"),
];
/// Time for sending spans to Zipkin, when nothing is said.
const ZIPKIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The messages of one side.
#[derive(Debug, Default)]
pub(super) struct Traces {
    pub tracing: Option<Tracing>,
    pub request_id: Option<RequestIdExtension>,
}

/// What holds after all levels have been laid over one another: each field as the narrowest level that sets it says.
#[derive(Debug, Default)]
struct Effective {
    provider: Option<String>,
    sampling: Option<f64>,
    disabled: bool,
    tags: BTreeMap<String, CustomTag>,
    istio_tags: Option<bool>,
    by_request_id: Option<bool>,
    no_propagation: bool,
}

/// Whether spans can leave the workload at all: then its listeners name it, and are its own.
pub(super) fn is_possible(snapshot: &MeshSnapshot, bound: &[Bound]) -> bool {
    let mesh = &snapshot.mesh;
    let default = mesh.default_providers.as_ref().is_some_and(|p| !p.tracing.is_empty());
    let named = bound.iter().flat_map(|p| &p.spec.tracing).any(|t| !t.providers.is_empty());
    let legacy = mesh.default_config.as_ref().and_then(|c| c.tracing.as_ref()).is_some_and(|t| t.zipkin.is_some());
    default || named || (mesh.enable_tracing && legacy)
}

/// Tracing of one side; nothing when it is off.
pub(super) fn configure(
    view: View<'_>,
    bound: &[Bound],
    side: Side,
    config: &MeshProxyConfig,
    identity: Option<&[String; 3]>,
) -> Traces {
    let mesh = view.mesh();
    let from_telemetry = bound.iter().any(|p| !p.spec.tracing.is_empty());
    let effective = lay_over(view, bound, side);
    if effective.disabled || (!from_telemetry && effective.provider.is_none() && !mesh.enable_tracing) {
        return Traces::default();
    }
    let of_config = config.tracing.as_ref();
    let provider = match &effective.provider {
        Some(name) => mesh.extension_provider(name).and_then(|p| provider_config(view, p, identity)),
        None => of_config.and_then(|t| legacy_zipkin(view, t)),
    };
    let configured = of_config.map(|t| t.sampling).filter(|s| *s > 0.0).unwrap_or(DEFAULT_SAMPLING);
    let max_length = provider.as_ref().map(|p| p.max_path_length).filter(|l| *l > 0);
    let max_length = max_length.or(of_config.map(|t| t.max_path_tag_length).filter(|l| *l > 0));
    let mut custom_tags = tags(view, &effective, of_config, provider.is_some().then_some(identity).flatten());
    if provider.is_some() && (side == Side::Server || view.scope.key.gateway) {
        custom_tags.extend(DRY_RUNS.map(|(tag, key)| dry_run_tag(tag, key)));
    }
    let percent = |value: f64| Some(envoy_type::Percent { value });
    let tracing = Tracing {
        client_sampling: percent(100.0),
        random_sampling: percent(effective.sampling.unwrap_or(configured)),
        overall_sampling: percent(100.0),
        max_path_tag_length: max_length,
        custom_tags,
        provider: provider.map(|p| p.message),
        spawn_upstream_span: view.scope.key.gateway.then_some(true),
        no_context_propagation: effective.no_propagation,
        ..Default::default()
    };
    let request_id = effective.by_request_id.map(|by_id| RequestIdExtension {
        typed_config: Some(pack(&UuidRequestIdConfig {
            use_request_id_for_trace_sampling: Some(by_id),
            ..Default::default()
        })),
    });
    Traces { tracing: Some(tracing), request_id }
}

fn lay_over(view: View<'_>, bound: &[Bound], side: Side) -> Effective {
    let mut effective = Effective {
        provider: view.mesh().default_providers.as_ref().and_then(|p| p.tracing.first().cloned()),
        ..Effective::default()
    };
    let rules = bound.iter().flat_map(|p| &p.spec.tracing);
    for rule in rules.filter(|t| t.r#match.as_ref().is_none_or(|m| side.is(m.mode))) {
        effective.provider = rule.providers.first().map(|p| p.name.clone()).or(effective.provider);
        effective.sampling = rule.random_sampling_percentage.or(effective.sampling);
        effective.disabled = rule.disable_span_reporting.unwrap_or(effective.disabled);
        effective.istio_tags = rule.enable_istio_tags.or(effective.istio_tags);
        effective.by_request_id = rule.use_request_id_for_trace_sampling.or(effective.by_request_id);
        effective.no_propagation = rule.disable_context_propagation.unwrap_or(effective.no_propagation);
        if !rule.custom_tags.is_empty() {
            effective.tags.clone_from(&rule.custom_tags);
        }
    }
    effective
}

struct Provider {
    message: trace::tracing::Http,
    max_path_length: u32,
}

/// The tracer of a provider; `None` for kinds that are not tracers Weft generates, or whose service is not known.
fn provider_config(view: View<'_>, provider: &ExtensionProvider, identity: Option<&[String; 3]>) -> Option<Provider> {
    if let Some(zipkin) = &provider.zipkin {
        let (cluster, host) = provider_cluster(view, &zipkin.service, zipkin.port)?;
        let path = if zipkin.path.is_empty() { "/api/v2/spans" } else { &zipkin.path };
        let timeout = zipkin.timeout.map_or(ZIPKIN_TIMEOUT, |t| t.get());
        let b3_and_w3c = zipkin.trace_context_option == istio::TraceContextOption::UseB3WithW3cPropagation;
        let config = trace::ZipkinConfig {
            trace_context_option: i32::from(b3_and_w3c),
            trace_id_128bit: !zipkin.enable_64bit_trace_id,
            ..zipkin_config(&cluster, &host, path, timeout, &zipkin.headers)
        };
        let message = tracer("envoy.tracers.zipkin", pack(&config));
        return Some(Provider { message, max_path_length: zipkin.max_tag_length });
    }
    let otel = provider.opentelemetry.as_ref()?;
    let (cluster, host) = provider_cluster(view, &otel.service, otel.port)?;
    let mut config = trace::OpenTelemetryConfig {
        service_name: identity.map(|[_, _, service]| service.clone()).unwrap_or_default(),
        ..Default::default()
    };
    match &otel.http {
        Some(http) => {
            let timeout = http.timeout.map_or(ZIPKIN_TIMEOUT, |t| t.get());
            config.http_service = Some(http_service(&cluster, &host, &http.path, timeout, &http.headers));
        }
        None => {
            config.grpc_service = Some(GrpcService {
                timeout: otel.grpc.as_ref().and_then(|g| g.timeout).map(|t| pb::duration(t.get())),
                target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
                    cluster_name: cluster,
                    authority: host,
                    ..Default::default()
                })),
                ..Default::default()
            });
        }
    }
    let message = tracer("envoy.tracers.opentelemetry", pack(&config));
    Some(Provider { message, max_path_length: otel.max_tag_length })
}

/// `tracing.zipkin.address` of the proxy settings, where it names a service of the mesh.
fn legacy_zipkin(view: View<'_>, settings: &istio::ProxyTracing) -> Option<Provider> {
    let (host, port) = settings.zipkin.as_ref()?.address.rsplit_once(':')?;
    let domain = &view.snapshot.settings.domain;
    let service = [host.to_string(), format!("{host}.{domain}"), format!("{host}.svc.{domain}")]
        .into_iter()
        .find(|name| view.snapshot.services.contains_key(name.as_str()))?;
    let (cluster, host) = provider_cluster(view, &service, port.parse().ok()?)?;
    let config = trace::ZipkinConfig {
        trace_id_128bit: true,
        ..zipkin_config(&cluster, &host, "/api/v2/spans", ZIPKIN_TIMEOUT, &[])
    };
    Some(Provider { message: tracer("envoy.tracers.zipkin", pack(&config)), max_path_length: 0 })
}

fn zipkin_config(
    cluster: &str,
    host: &str,
    path: &str,
    timeout: Duration,
    headers: &[istio::HttpHeader],
) -> trace::ZipkinConfig {
    trace::ZipkinConfig {
        collector_endpoint_version: trace::zipkin_config::CollectorEndpointVersion::HttpJson as i32,
        shared_span_context: Some(false),
        collector_service: Some(http_service(cluster, host, path, timeout, headers)),
        ..Default::default()
    }
}

fn http_service(
    cluster: &str,
    host: &str,
    path: &str,
    timeout: Duration,
    headers: &[istio::HttpHeader],
) -> HttpService {
    let option = |header: &istio::HttpHeader| pb::core::HeaderValueOption {
        header: Some(pb::core::HeaderValue {
            key: header.name.clone(),
            value: match (&header.value, &header.env_name) {
                (Some(value), _) => value.clone(),
                (None, Some(name)) => format!("%ENVIRONMENT({name})%"),
                (None, None) => String::new(),
            },
            ..Default::default()
        }),
        append_action: pb::core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
        ..Default::default()
    };
    let slash = if path.starts_with('/') || path.is_empty() { "" } else { "/" };
    HttpService {
        http_uri: Some(HttpUri {
            uri: format!("http://{host}{slash}{path}"),
            timeout: Some(pb::duration(timeout)),
            http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(cluster.into())),
        }),
        request_headers_to_add: headers.iter().map(option).collect(),
        ..Default::default()
    }
}

fn tracer(name: &str, config: Any) -> trace::tracing::Http {
    trace::tracing::Http { name: name.into(), config_type: Some(trace::tracing::http::ConfigType::TypedConfig(config)) }
}

/// Tags by name: the user's, and those that say which workload the span is of.
fn tags(
    view: View<'_>,
    effective: &Effective,
    config: Option<&istio::ProxyTracing>,
    identity: Option<&[String; 3]>,
) -> Vec<EnvoyTag> {
    let mut tags: BTreeMap<String, custom_tag::Type> = BTreeMap::new();
    let istio_tags = effective.istio_tags.or(config.and_then(|c| c.enable_istio_tags)).unwrap_or(true);
    if let Some([name, revision, _]) = identity.filter(|_| istio_tags) {
        let settings = &view.snapshot.settings;
        let literal = |value: &str| custom_tag::Type::Literal(custom_tag::Literal { value: value.into() });
        for (tag, value) in [
            ("istio.canonical_service", name.as_str()),
            ("istio.canonical_revision", revision),
            ("istio.mesh_id", &settings.trust_domain),
            ("istio.namespace", &view.scope.key.namespace),
            ("istio.cluster_id", &settings.cluster_id),
        ] {
            tags.insert(tag.into(), literal(value));
        }
    }
    let own = if effective.tags.is_empty() { config.map(|c| &c.custom_tags) } else { Some(&effective.tags) };
    for (name, tag) in own.into_iter().flatten() {
        if let Some(kind) = tag_type(tag) {
            tags.insert(name.clone(), kind);
        }
    }
    tags.into_iter().map(|(tag, kind)| EnvoyTag { tag, r#type: Some(kind) }).collect()
}

/// A tag whose value the authorization filter has left with the request; no tag when it has left none.
fn dry_run_tag(tag: &str, key: &str) -> EnvoyTag {
    let segment = metadata_key::PathSegment { segment: Some(metadata_key::path_segment::Segment::Key(key.into())) };
    let from = custom_tag::Metadata {
        kind: Some(MetadataKind { kind: Some(metadata_kind::Kind::Request(metadata_kind::Request {})) }),
        metadata_key: Some(MetadataKey { key: "envoy.filters.http.rbac".into(), path: vec![segment] }),
        default_value: String::new(),
    };
    EnvoyTag { tag: tag.into(), r#type: Some(custom_tag::Type::Metadata(from)) }
}

fn tag_type(tag: &CustomTag) -> Option<custom_tag::Type> {
    if let Some(literal) = &tag.literal {
        return Some(custom_tag::Type::Literal(custom_tag::Literal { value: literal.value.clone() }));
    }
    if let Some(variable) = &tag.environment {
        let (name, default_value) = (variable.name.clone(), variable.default_value.clone());
        return Some(custom_tag::Type::Environment(custom_tag::Environment { name, default_value }));
    }
    if let Some(header) = &tag.header {
        let (name, default_value) = (header.name.clone(), header.default_value.clone());
        return Some(custom_tag::Type::RequestHeader(custom_tag::Header { name, default_value }));
    }
    tag.formatter.as_ref().map(|format| custom_tag::Type::Value(format.value.clone()))
}
