//! Tracing of requests. What cannot be done leaves spans out, never requests.

use super::Ctx;
use super::access_log::literal;
use crate::{TraceProvider, Tracing};
use std::sync::Arc;
use weft_core::Strng;
use weft_proto::any::TypeUrl;
use weft_proto::envoy::config::core::v3 as core;
use weft_proto::envoy::config::trace::v3 as trace;
use weft_proto::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as proto;
use weft_proto::envoy::r#type::tracing::v3::{CustomTag, custom_tag};
use weft_proto::envoy::r#type::v3::Percent;
use weft_route::error::Path;

/// Longest path in a tag unless set, in bytes.
const MAX_PATH: usize = 256;

impl Ctx<'_> {
    pub(super) fn tracing(&mut self, message: &proto::Tracing, path: &Path<'_>) -> Option<Arc<Tracing>> {
        let proto::Tracing {
            client_sampling,
            random_sampling,
            overall_sampling,
            // More annotations in spans.
            verbose: _,
            max_path_tag_length,
            custom_tags,
            provider,
            spawn_upstream_span,
            operation,
            upstream_operation,
            no_context_propagation,
        } = message;
        let formats = !operation.is_empty() || !upstream_operation.is_empty();
        self.leave_out(formats, &path.field("operation"));
        self.leave_out(*no_context_propagation, &path.field("no_context_propagation"));
        let provider = provider.as_ref().and_then(|p| self.provider(p, &path.field("provider")));
        let tags = custom_tags.iter().enumerate();
        Some(Arc::new(Tracing {
            random_sampling: percent(random_sampling.as_ref()),
            client_sampling: percent(client_sampling.as_ref()),
            overall_sampling: percent(overall_sampling.as_ref()),
            provider,
            max_path_length: max_path_tag_length.map_or(MAX_PATH, |n| n as usize),
            tags: tags.filter_map(|(i, tag)| self.tag(tag, &path.item("custom_tags", i))).collect(),
            spawn_upstream_span: spawn_upstream_span.unwrap_or(false),
        }))
    }

    /// Where spans go; `None` (and a report) where they cannot go.
    fn provider(&mut self, message: &trace::tracing::Http, path: &Path<'_>) -> Option<TraceProvider> {
        let from = self.c.errors.len();
        let provider = self.known_provider(message, path);
        self.c.errors.contain(from);
        provider
    }

    fn known_provider(&mut self, message: &trace::tracing::Http, path: &Path<'_>) -> Option<TraceProvider> {
        let Some(trace::tracing::http::ConfigType::TypedConfig(any)) = &message.config_type else {
            self.c.errors.refuse(&path.field("typed_config"), "must be set");
            return None;
        };
        let path = path.field("typed_config");
        if any.type_url == trace::ZipkinConfig::type_url_of() {
            let message = self.c.unpacked(any, &path)?;
            return self.zipkin(&message, &path);
        }
        if any.type_url == trace::OpenTelemetryConfig::type_url_of() {
            let message = self.c.unpacked(any, &path)?;
            return self.open_telemetry(&message, &path);
        }
        let what = format!("tracer {:?} ({}) is not supported by weft-proxy", message.name, any.type_url);
        self.c.errors.refuse(&path, what);
        None
    }

    fn zipkin(&mut self, message: &trace::ZipkinConfig, path: &Path<'_>) -> Option<TraceProvider> {
        use trace::zipkin_config::CollectorEndpointVersion as Version;
        if let Some(service) = &message.collector_service {
            let (cluster, uri) = self.http_service(service, &path.field("collector_service"))?;
            let (host, at) = split_uri(&uri);
            return Some(TraceProvider::Zipkin(cluster, at, host));
        }
        if message.collector_cluster.is_empty() || message.collector_endpoint.is_empty() {
            self.c.errors.refuse(path, "must set collector_cluster and collector_endpoint");
            return None;
        }
        if message.collector_endpoint_version != Version::HttpJson as i32 {
            self.c.errors.refuse(&path.field("collector_endpoint_version"), "must be HTTP_JSON");
            return None;
        }
        let host = if message.collector_hostname.is_empty() {
            &message.collector_cluster
        } else {
            &message.collector_hostname
        };
        let text = |this: &mut Self, text: &str| this.c.pool.text(text);
        Some(TraceProvider::Zipkin(
            text(self, &message.collector_cluster),
            text(self, &message.collector_endpoint),
            text(self, host),
        ))
    }

    fn open_telemetry(&mut self, message: &trace::OpenTelemetryConfig, path: &Path<'_>) -> Option<TraceProvider> {
        let trace::OpenTelemetryConfig {
            grpc_service,
            http_service,
            exporter,
            service_name,
            resource_detectors,
            sampler,
            max_cache_size: _,
            set_telemetry_sdk_resource_attributes: _,
            set_service_name_resource_attribute: _,
            set_instrumentation_scope: _,
        } = message;
        self.leave_out(!resource_detectors.is_empty(), &path.field("resource_detectors"));
        self.leave_out(sampler.is_some(), &path.field("sampler"));
        let name = self.c.pool.text(service_name);
        if let Some(service) = http_service {
            let (cluster, uri) = self.http_service(service, &path.field("http_service"))?;
            return Some(TraceProvider::OtlpHttp(cluster, uri.as_str().into(), name));
        }
        let target = grpc_service.as_ref().and_then(|s| s.target_specifier.as_ref());
        if let Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(grpc)) = target {
            return Some(TraceProvider::OtlpGrpc(self.c.pool.text(&grpc.cluster_name), name));
        }
        let field = if exporter.is_some() { "exporter" } else { "grpc_service" };
        self.c.errors.refuse(&path.field(field), "must be grpc_service with envoy_grpc, or http_service");
        None
    }

    fn http_service(&mut self, message: &core::HttpService, path: &Path<'_>) -> Option<(Strng, String)> {
        self.leave_out(!message.request_headers_to_add.is_empty(), &path.field("request_headers_to_add"));
        let path = path.field("http_uri");
        let uri = message.http_uri.as_ref();
        match uri.map(|u| (&u.http_upstream_type, &u.uri)) {
            Some((Some(core::http_uri::HttpUpstreamType::Cluster(cluster)), uri)) => {
                Some((self.c.pool.text(cluster), uri.clone()))
            }
            _ => {
                self.c.errors.refuse(&path, "must set uri and cluster");
                None
            }
        }
    }

    /// A tag as name and format.
    fn tag(&mut self, message: &CustomTag, path: &Path<'_>) -> Option<(Strng, Strng)> {
        let format = match &message.r#type {
            Some(custom_tag::Type::Literal(tag)) => literal(&tag.value),
            Some(custom_tag::Type::Environment(tag)) => {
                literal(&std::env::var(&tag.name).unwrap_or_else(|_| tag.default_value.clone()))
            }
            Some(custom_tag::Type::RequestHeader(tag)) => {
                self.leave_out(!tag.default_value.is_empty(), &path.field("request_header").field("default_value"));
                format!("%REQ({})%", tag.name).into()
            }
            Some(custom_tag::Type::Value(format)) => format.as_str().into(),
            Some(custom_tag::Type::Metadata(_)) | None => {
                self.leave_out(true, path);
                return None;
            }
        };
        if let Err(error) = weft_telemetry::Format::parse(&format) {
            self.c.errors.degrade(path, format!("{error}; the tag is left out"));
            return None;
        }
        Some((self.c.pool.text(&message.tag), format))
    }
}

/// A share in parts per million; all unless set.
fn percent(message: Option<&Percent>) -> u32 {
    message.map_or(1_000_000, |p| (p.value.clamp(0.0, 100.0) * 10_000.0).round() as u32)
}

/// Host and path of `http://host/path`.
fn split_uri(uri: &str) -> (Strng, Strng) {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    match rest.find('/') {
        Some(at) => (rest[..at].into(), rest[at..].into()),
        None => (rest.into(), "/".into()),
    }
}
