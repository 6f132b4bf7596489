//! HTTP filters.

use super::Ctx;
use crate::{HttpFilter, MetricOverride, Telemetry};
use std::sync::Arc;
use weft_proto::Any;
use weft_proto::any::TypeUrl as _;
use weft_proto::envoy::extensions::filters::http as filters;
use weft_proto::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use weft_proto::weft::v1 as weft;
use weft_route::error::Path;
use weft_route::{HeaderOps, refuse_set};

impl Ctx<'_> {
    /// Filters in order; the router, which must be last, apart.
    pub(super) fn http_filters(
        &mut self,
        list: &[proto::HttpFilter],
        path: &Path<'_>,
    ) -> Option<(Vec<HttpFilter>, filters::router::v3::Router)> {
        let Some((last, before)) = list.split_last() else {
            self.c.errors.refuse(&path.field("http_filters"), "must end in the router");
            return None;
        };
        let mut compiled = Vec::with_capacity(before.len());
        for (i, filter) in before.iter().enumerate() {
            compiled.extend(self.http_filter(filter, &path.item("http_filters", i)));
        }
        let path = path.item("http_filters", before.len());
        let router = self.router(last, &path)?;
        Some((compiled, router))
    }

    fn filter_config<'f>(&mut self, filter: &'f proto::HttpFilter, path: &Path<'_>) -> Option<&'f Any> {
        match &filter.config_type {
            Some(proto::http_filter::ConfigType::TypedConfig(any)) => Some(any),
            Some(proto::http_filter::ConfigType::ConfigDiscovery(_)) => {
                self.c.errors.refuse(&path.field("config_discovery"), "is not supported by weft-proxy");
                None
            }
            None => {
                self.c.errors.refuse(&path.field("typed_config"), "must be set");
                None
            }
        }
    }

    fn router(&mut self, filter: &proto::HttpFilter, path: &Path<'_>) -> Option<filters::router::v3::Router> {
        let any = self.filter_config(filter, path)?;
        let path = path.field("typed_config");
        if any.type_url != filters::router::v3::Router::type_url_of() {
            self.c.errors.refuse(&path, format!("HTTP filter {:?}: the last filter must be the router", filter.name));
            return None;
        }
        let router: filters::router::v3::Router = self.c.unpacked(any, &path)?;
        self.refuse_router_fields(&router, &path);
        Some(router)
    }

    #[allow(deprecated)]
    fn refuse_router_fields(&mut self, message: &filters::router::v3::Router, path: &Path<'_>) {
        let filters::router::v3::Router {
            // Only statistics.
            dynamic_stats: _,
            start_child_span,
            upstream_log,
            upstream_log_options: _,
            suppress_envoy_headers: _,
            strict_check_headers,
            respect_expected_rq_timeout,
            suppress_grpc_request_failure_code_stats: _,
            upstream_http_filters,
            // No byte of the body goes up before the tunnel is open.
            reject_connect_request_early_data: _,
        } = message;
        refuse_set!(self.c.errors, path, strict_check_headers, upstream_http_filters);
        self.leave_out(*start_child_span, &path.field("start_child_span"));
        self.leave_out(!upstream_log.is_empty(), &path.field("upstream_log"));
        self.leave_out(*respect_expected_rq_timeout, &path.field("respect_expected_rq_timeout"));
    }

    fn http_filter(&mut self, filter: &proto::HttpFilter, path: &Path<'_>) -> Option<HttpFilter> {
        let any = self.filter_config(filter, path)?;
        if filter.disabled {
            self.c.errors.refuse(&path.field("disabled"), "is not supported by weft-proxy; leave the filter out");
        }
        let path = path.field("typed_config");
        match any.type_url.as_str() {
            url if url == filters::cors::v3::Cors::type_url_of() => Some(HttpFilter::Cors),
            url if url == filters::grpc_stats::v3::FilterConfig::type_url_of() => Some(HttpFilter::GrpcStats),
            url if url == filters::grpc_web::v3::GrpcWeb::type_url_of() => Some(HttpFilter::GrpcWeb),
            url if url == filters::rbac::v3::Rbac::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                Some(HttpFilter::Rbac(Arc::new(weft_authz::compile_http(&message, &mut self.c, &path))))
            }
            url if url == filters::jwt_authn::v3::JwtAuthentication::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                self.jwt_authn(&message, &path).map(|jwt| HttpFilter::Jwt(Arc::new(jwt)))
            }
            url if url == filters::ext_authz::v3::ExtAuthz::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                self.http_ext_authz(&message, &path).map(|ask| HttpFilter::ExtAuthz(Arc::new(ask)))
            }
            url if url == filters::local_ratelimit::v3::LocalRateLimit::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                Some(HttpFilter::LocalRateLimit(Arc::new(self.c.local_rate_limit(&message, &path))))
            }
            url if url == filters::ratelimit::v3::RateLimit::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                self.rate_limit_service(&message, &path).map(|service| HttpFilter::RateLimit(Arc::new(service)))
            }
            url if url == filters::fault::v3::HttpFault::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                Some(HttpFilter::Fault(self.c.fault(&message, &path)))
            }
            url if url == filters::header_mutation::v3::HeaderMutation::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                Some(HttpFilter::HeaderMutation(Arc::new(self.header_mutation(&message, &path))))
            }
            url if url == filters::compressor::v3::Compressor::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                self.compressor(&filter.name, &message, &path).map(|c| HttpFilter::Compressor(Arc::new(c)))
            }
            url if url == filters::decompressor::v3::Decompressor::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                self.decompressor(&filter.name, &message, &path).map(|d| HttpFilter::Decompressor(Arc::new(d)))
            }
            url if url == weft::Telemetry::type_url_of() => {
                let message = self.c.unpacked(any, &path)?;
                Some(HttpFilter::Telemetry(Arc::new(self.telemetry(&message, &path))))
            }
            // The cluster resolves the name of each request itself; settings of a route are refused there.
            url if url == filters::dynamic_forward_proxy::v3::FilterConfig::type_url_of() => None,
            // The sender says that requests may go without it.
            _ if filter.is_optional => None,
            url => {
                let message = format!("HTTP filter {:?} ({url}) is not supported by weft-proxy", filter.name);
                self.c.errors.refuse(&path, message);
                None
            }
        }
    }

    fn header_mutation(
        &mut self,
        message: &filters::header_mutation::v3::HeaderMutation,
        path: &Path<'_>,
    ) -> HeaderOps {
        let Some(mutations) = &message.mutations else { return HeaderOps::default() };
        let path = path.field("mutations");
        let filters::header_mutation::v3::Mutations {
            request_mutations,
            query_parameter_mutations,
            response_mutations,
            response_trailers_mutations,
            request_trailers_mutations,
        } = mutations;
        refuse_set!(
            self.c.errors,
            path,
            query_parameter_mutations,
            response_trailers_mutations,
            request_trailers_mutations
        );
        HeaderOps {
            request: self.c.header_mutations(request_mutations, "request_mutations", &path),
            response: self.c.header_mutations(response_mutations, "response_mutations", &path),
        }
    }

    fn telemetry(&mut self, message: &weft::Telemetry, path: &Path<'_>) -> Telemetry {
        let weft::Telemetry { reporter, tags, overrides, disabled, disable_host_header_fallback } = message;
        refuse_set!(self.c.errors, path, tags);
        Telemetry {
            destination: *reporter == weft::telemetry::Reporter::Destination as i32,
            disabled: *disabled,
            host_is_label: !disable_host_header_fallback,
            report_interval: None,
            overrides: overrides
                .iter()
                .map(|change| MetricOverride {
                    metric: change.metric.clone(),
                    disabled: change.disabled,
                    tags: change.tags.iter().map(|(k, v)| (self.c.pool.text(k), self.c.pool.text(v))).collect(),
                })
                .collect(),
        }
    }
}
