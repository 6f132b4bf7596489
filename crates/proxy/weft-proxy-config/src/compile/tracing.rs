//! Tracing of requests. What cannot be done leaves spans out, never requests.

use super::Ctx;
use super::access_log::literal;
use crate::{TagSource, TraceProtocol, TraceProvider, TraceTag, Tracing};
use http::{HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::Duration;
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
/// Time for a report unless set.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Path of OpenTelemetry's gRPC method for spans.
const OTLP_METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

impl Ctx<'_> {
    pub(super) fn tracing(
        &mut self,
        message: &proto::Tracing,
        by_request_id: bool,
        path: &Path<'_>,
    ) -> Option<Arc<Tracing>> {
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
        let provider = provider.as_ref().and_then(|p| self.provider(p, &path.field("provider")));
        let tags = custom_tags.iter().enumerate();
        Some(Arc::new(Tracing {
            random_sampling: percent(random_sampling.as_ref()),
            client_sampling: percent(client_sampling.as_ref()),
            overall_sampling: percent(overall_sampling.as_ref()),
            by_request_id,
            provider: provider.map(Arc::new),
            max_path_length: max_path_tag_length.map_or(MAX_PATH, |n| n as usize),
            tags: tags.filter_map(|(i, tag)| self.tag(tag, &path.item("custom_tags", i))).collect(),
            spawn_upstream_span: spawn_upstream_span.unwrap_or(false),
            propagate: !no_context_propagation,
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
        use trace::zipkin_config::{CollectorEndpointVersion as Version, TraceContextOption};
        let protocol = TraceProtocol::Zipkin {
            // Envoy's default, for which Istio writes false.
            shared: message.shared_span_context.unwrap_or(true),
            long_ids: message.trace_id_128bit,
            w3c: message.trace_context_option == TraceContextOption::UseB3WithW3cPropagation as i32,
        };
        if let Some(service) = &message.collector_service {
            return self.by_http(service, protocol, "", &path.field("collector_service"));
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
        Some(TraceProvider {
            protocol,
            cluster: self.c.pool.text(&message.collector_cluster),
            path: self.c.pool.text(&message.collector_endpoint),
            host: self.c.pool.text(host),
            headers: Vec::new(),
            timeout: TIMEOUT,
            service: "".into(),
        })
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
        if let Some(service) = http_service {
            return self.by_http(service, TraceProtocol::OtlpHttp, service_name, &path.field("http_service"));
        }
        let target = grpc_service.as_ref().and_then(|s| s.target_specifier.as_ref());
        let Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(grpc)) = target else {
            let field = if exporter.is_some() { "exporter" } else { "grpc_service" };
            self.c.errors.refuse(&path.field(field), "must be grpc_service with envoy_grpc, or http_service");
            return None;
        };
        let timeout = grpc_service.as_ref().and_then(|s| s.timeout.as_ref());
        let host = if grpc.authority.is_empty() { &grpc.cluster_name } else { &grpc.authority };
        Some(TraceProvider {
            protocol: TraceProtocol::OtlpGrpc,
            cluster: self.c.pool.text(&grpc.cluster_name),
            path: OTLP_METHOD.into(),
            host: self.c.pool.text(host),
            headers: Vec::new(),
            timeout: timeout.map_or(TIMEOUT, duration),
            service: self.c.pool.text(service_name),
        })
    }

    fn by_http(
        &mut self,
        message: &core::HttpService,
        protocol: TraceProtocol,
        service: &str,
        path: &Path<'_>,
    ) -> Option<TraceProvider> {
        let headers = message.request_headers_to_add.iter().enumerate();
        let headers = headers.filter_map(|(i, h)| self.report_header(h, &path.item("request_headers_to_add", i)));
        let headers = headers.collect();
        let Some(uri) = &message.http_uri else {
            self.c.errors.refuse(&path.field("http_uri"), "must be set");
            return None;
        };
        let Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else {
            self.c.errors.refuse(&path.field("http_uri").field("cluster"), "must be set");
            return None;
        };
        let (host, at) = split_uri(&uri.uri);
        Some(TraceProvider {
            protocol,
            cluster: self.c.pool.text(cluster),
            path: at,
            host,
            headers,
            timeout: uri.timeout.as_ref().map_or(TIMEOUT, duration),
            service: self.c.pool.text(service),
        })
    }

    /// A header of reports: a plain value, or one of the proxy's environment.
    fn report_header(
        &mut self,
        message: &core::HeaderValueOption,
        path: &Path<'_>,
    ) -> Option<(HeaderName, HeaderValue)> {
        let header = message.header.as_ref()?;
        let variable = header.value.strip_prefix("%ENVIRONMENT(").and_then(|rest| rest.strip_suffix(")%"));
        let value = match variable {
            Some(name) => std::env::var(name).unwrap_or_default(),
            None => header.value.replace("%%", "%"),
        };
        let parsed = HeaderName::from_bytes(header.key.as_bytes()).ok().zip(HeaderValue::from_str(&value).ok());
        if parsed.is_none() {
            self.c.errors.degrade(path, "is not a header; reports go without it");
        }
        parsed
    }

    fn tag(&mut self, message: &CustomTag, path: &Path<'_>) -> Option<TraceTag> {
        let (format, default): (Strng, &str) = match &message.r#type {
            Some(custom_tag::Type::Literal(tag)) => (literal(&tag.value), ""),
            Some(custom_tag::Type::Environment(tag)) => {
                (literal(&std::env::var(&tag.name).unwrap_or_else(|_| tag.default_value.clone())), "")
            }
            Some(custom_tag::Type::RequestHeader(tag)) => (format!("%REQ({})%", tag.name).into(), &tag.default_value),
            Some(custom_tag::Type::Value(format)) => (format.as_str().into(), ""),
            Some(custom_tag::Type::Metadata(tag)) => return self.metadata_tag(message, tag, path),
            None => {
                self.leave_out(true, path);
                return None;
            }
        };
        if let Err(error) = weft_telemetry::Format::parse(&format) {
            self.c.errors.degrade(path, format!("{error}; the tag is left out"));
            return None;
        }
        let default = (!default.is_empty()).then(|| self.c.pool.text(default));
        Some(TraceTag { name: self.c.pool.text(&message.tag), source: TagSource::Format(format), default })
    }

    fn metadata_tag(&mut self, message: &CustomTag, tag: &custom_tag::Metadata, path: &Path<'_>) -> Option<TraceTag> {
        use weft_proto::envoy::r#type::metadata::v3::{metadata_key::path_segment::Segment, metadata_kind::Kind};
        let of_request = matches!(tag.kind.as_ref().and_then(|k| k.kind.as_ref()), Some(Kind::Request(_)));
        let Some(key) = tag.metadata_key.as_ref().filter(|_| of_request) else {
            self.leave_out(true, &path.field("metadata"));
            return None;
        };
        let segments = key.path.iter().filter_map(|segment| match &segment.segment {
            Some(Segment::Key(key)) => Some(self.c.pool.text(key)),
            Some(Segment::Index(_)) | None => None,
        });
        let keys = segments.collect();
        let default = (!tag.default_value.is_empty()).then(|| self.c.pool.text(&tag.default_value));
        let source = TagSource::Metadata(self.c.pool.text(&key.key), keys);
        Some(TraceTag { name: self.c.pool.text(&message.tag), source, default })
    }
}

fn duration(message: &prost_types::Duration) -> Duration {
    Duration::try_from(*message).unwrap_or(TIMEOUT)
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
