//! Settings of HTTP filters that routes carry: fault injection, CORS, rate limits, header mutation, switches.

use super::Compiler;
use crate::error::Path;
use crate::{CorsPolicy, Fault, FaultAbort, FaultShare, FilterOverrides, StringMatcher, refuse_set};
use http::{HeaderValue, StatusCode};
use prost_types::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_proto::any::TypeUrl;
use weft_proto::envoy::config::core::v3::RuntimeFractionalPercent;
use weft_proto::envoy::config::route::v3 as proto;
use weft_proto::envoy::extensions::filters::common::fault::v3 as fault_common;
use weft_proto::envoy::extensions::filters::http::compressor::v3 as compressor;
use weft_proto::envoy::extensions::filters::http::cors::v3 as cors_filter;
use weft_proto::envoy::extensions::filters::http::fault::v3 as fault_filter;
use weft_proto::envoy::extensions::filters::http::local_ratelimit::v3 as local_rate_limit;
use weft_proto::envoy::extensions::filters::http::ratelimit::v3 as rate_limit;
use weft_proto::envoy::r#type::matcher::v3::StringMatcher as StringMatcherMessage;
use weft_proto::envoy::r#type::v3::FractionalPercent;

impl Compiler<'_> {
    /// Settings by filter name. The type of the message says which filter is meant, as names are free.
    pub(super) fn filter_overrides(&mut self, map: &BTreeMap<String, Any>, path: &Path<'_>) -> FilterOverrides {
        let mut overrides = FilterOverrides::default();
        for (name, any) in map {
            self.filter_override(name, any, &mut overrides, &path.key("typed_per_filter_config", name));
        }
        overrides
    }

    fn filter_override(&mut self, name: &str, any: &Any, out: &mut FilterOverrides, path: &Path<'_>) {
        if any.type_url == proto::FilterConfig::type_url_of() {
            return self.wrapped_override(name, any, out, path);
        }
        let mut on = true;
        if any.type_url == fault_filter::HttpFault::type_url_of() {
            // Settings that ask for no fault still replace those of the filter.
            out.fault = self.unpacked(any, path).map(|m| self.fault(&m, path).unwrap_or_default());
        } else if any.type_url == cors_filter::CorsPolicy::type_url_of() {
            out.cors = self.unpacked(any, path).and_then(|m| self.filter_cors(&m, path));
            on = out.cors.is_some();
        } else if any.type_url == local_rate_limit::LocalRateLimit::type_url_of() {
            out.local_rate_limit = self.unpacked(any, path).map(|m| Arc::new(self.local_rate_limit(&m, path)));
        } else if any.type_url == compressor::CompressorPerRoute::type_url_of() {
            let message: Option<compressor::CompressorPerRoute> = self.unpacked(any, path);
            match message.and_then(|message| message.r#override) {
                Some(compressor::compressor_per_route::Override::Disabled(true)) => {
                    on = false;
                }
                _ => self.errors.refuse(path, "weft-proxy takes disabled: true alone"),
            }
        } else if any.type_url == rate_limit::RateLimitPerRoute::type_url_of() {
            out.rate_limit = self.unpacked(any, path).map(|m| Arc::new(self.rate_limit_per_route(&m, path)));
        } else {
            let message = format!("settings of type {} are not supported on routes by weft-proxy", any.type_url);
            self.errors.refuse(path, message);
        }
        out.switched.push((self.pool.text(name), on));
    }

    /// `FilterConfig`: a switch around the settings.
    fn wrapped_override(&mut self, name: &str, any: &Any, out: &mut FilterOverrides, path: &Path<'_>) {
        let Some(proto::FilterConfig { config, is_optional, disabled }) = self.unpacked(any, path) else { return };
        if disabled {
            out.switched.push((self.pool.text(name), false));
            return;
        }
        match config {
            Some(inner) if inner.type_url == any.type_url => {
                self.errors.refuse(&path.field("config"), "must not be another FilterConfig");
            }
            Some(inner) => {
                let from = self.errors.len();
                self.filter_override(name, &inner, out, &path.field("config"));
                if is_optional {
                    self.errors.contain(from);
                }
            }
            None => out.switched.push((self.pool.text(name), true)),
        }
    }

    /// Takes the message out of its `Any`.
    pub fn unpacked<M: prost::Message + prost::Name + Default>(&mut self, any: &Any, path: &Path<'_>) -> Option<M> {
        match weft_proto::unpack::<M>(any) {
            Ok(message) => Some(message),
            Err(error) => {
                self.errors.refuse(path, error.to_string());
                None
            }
        }
    }

    /// Fault injection; `None` when the message asks for none.
    pub fn fault(&mut self, message: &fault_filter::HttpFault, path: &Path<'_>) -> Option<Arc<Fault>> {
        let fault_filter::HttpFault {
            delay,
            abort,
            upstream_cluster,
            headers,
            downstream_nodes,
            max_active_faults,
            response_rate_limit,
            // Names of runtime keys that could override the values; there is no runtime.
            delay_percent_runtime: _,
            abort_percent_runtime: _,
            delay_duration_runtime: _,
            abort_http_status_runtime: _,
            max_active_faults_runtime: _,
            response_rate_limit_percent_runtime: _,
            abort_grpc_status_runtime: _,
            // Only statistics.
            disable_downstream_cluster_stats: _,
            filter_metadata: _,
        } = message;
        refuse_set!(self.errors, path, downstream_nodes, max_active_faults, response_rate_limit);
        let headers: Vec<_> =
            headers.iter().enumerate().filter_map(|(i, h)| self.header_matcher(h, &path.item("headers", i))).collect();
        use fault_common::fault_delay::FaultDelaySecifier;
        let header_delay = delay
            .as_ref()
            .filter(|d| matches!(d.fault_delay_secifier, Some(FaultDelaySecifier::HeaderDelay(_))))
            .map(|d| self.fault_share(d.percentage.as_ref(), &path.field("delay")));
        let header_abort = abort
            .as_ref()
            .filter(|a| matches!(a.error_type, Some(fault_filter::fault_abort::ErrorType::HeaderAbort(_))))
            .map(|a| self.fault_share(a.percentage.as_ref(), &path.field("abort")));
        let delay = delay.as_ref().and_then(|d| self.fault_delay(d, &path.field("delay")));
        let abort = abort.as_ref().and_then(|a| self.fault_abort(a, &path.field("abort")));
        if delay.is_none() && abort.is_none() && header_delay.is_none() && header_abort.is_none() {
            return None;
        }
        let upstream_cluster = (!upstream_cluster.is_empty()).then(|| self.pool.text(upstream_cluster));
        Some(Arc::new(Fault { delay, abort, header_delay, header_abort, headers, upstream_cluster }))
    }

    fn fault_share(&mut self, share: Option<&FractionalPercent>, path: &Path<'_>) -> FaultShare {
        let share = share.copied().unwrap_or_default();
        let unit = self.ppm(&FractionalPercent { numerator: 1, ..share }, &path.field("percentage"));
        FaultShare { most: self.ppm(&share, &path.field("percentage")), unit }
    }

    fn fault_delay(
        &mut self,
        message: &fault_common::FaultDelay,
        path: &Path<'_>,
    ) -> Option<(std::time::Duration, u32)> {
        use fault_common::fault_delay::FaultDelaySecifier as Spec;
        let share = message.percentage.as_ref().map_or(0, |p| self.ppm(p, &path.field("percentage")));
        match &message.fault_delay_secifier {
            Some(Spec::FixedDelay(delay)) => {
                let delay = self.limit(Some(delay), &path.field("fixed_delay"));
                if delay.is_none() {
                    self.errors.refuse(&path.field("fixed_delay"), "must be above 0s");
                }
                delay.map(|d| (d, share))
            }
            // The request says how long.
            Some(Spec::HeaderDelay(_)) => None,
            None => {
                self.errors.refuse(path, "must set fixed_delay");
                None
            }
        }
    }

    fn fault_abort(&mut self, message: &fault_filter::FaultAbort, path: &Path<'_>) -> Option<(FaultAbort, u32)> {
        use fault_filter::fault_abort::ErrorType;
        let fault_filter::FaultAbort { percentage, response_body, error_type } = message;
        refuse_set!(self.errors, path, response_body);
        let share = percentage.as_ref().map_or(0, |p| self.ppm(p, &path.field("percentage")));
        match error_type {
            Some(ErrorType::HttpStatus(code)) => {
                let code16 = u16::try_from(*code).ok().filter(|c| (200..600).contains(c));
                let status = code16.and_then(|c| StatusCode::from_u16(c).ok());
                if status.is_none() {
                    self.errors.refuse(&path.field("http_status"), format!("{code} must be 200 to 599"));
                }
                status.map(|s| (FaultAbort::Http(s), share))
            }
            Some(ErrorType::GrpcStatus(code)) => Some((FaultAbort::Grpc(*code), share)),
            // The request says how.
            Some(ErrorType::HeaderAbort(_)) => None,
            None => {
                self.errors.refuse(path, "must set http_status or grpc_status");
                None
            }
        }
    }

    /// CORS policy of the filter's own message; `None` when it is switched off.
    pub fn filter_cors(&mut self, message: &cors_filter::CorsPolicy, path: &Path<'_>) -> Option<Arc<CorsPolicy>> {
        let cors_filter::CorsPolicy {
            allow_origin_string_match,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
            filter_enabled,
            // Evaluated without effect, for statistics alone.
            shadow_enabled: _,
            allow_private_network_access,
            forward_not_matching_preflights,
        } = message;
        if !self.cors_enabled(filter_enabled.as_ref(), path) {
            return None;
        }
        Some(Arc::new(CorsPolicy {
            origins: self.origins(allow_origin_string_match, path),
            methods: self.cors_value(allow_methods, &path.field("allow_methods")),
            headers: self.cors_value(allow_headers, &path.field("allow_headers")),
            expose: self.cors_value(expose_headers, &path.field("expose_headers")),
            max_age: self.cors_value(max_age, &path.field("max_age")),
            credentials: allow_credentials.unwrap_or(false),
            forward_unmatched_preflights: forward_not_matching_preflights.unwrap_or(true),
            private_network: allow_private_network_access.unwrap_or(false),
        }))
    }

    /// CORS policy in the older place, on the route or virtual host itself.
    #[allow(deprecated)]
    pub(super) fn route_cors(&mut self, message: &proto::CorsPolicy, path: &Path<'_>) -> Option<Arc<CorsPolicy>> {
        let proto::CorsPolicy {
            allow_origin_string_match,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
            shadow_enabled,
            allow_private_network_access,
            forward_not_matching_preflights,
            enabled_specifier,
        } = message.clone();
        let filter_enabled = enabled_specifier.map(|proto::cors_policy::EnabledSpecifier::FilterEnabled(f)| f);
        let same = cors_filter::CorsPolicy {
            allow_origin_string_match,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
            filter_enabled,
            shadow_enabled,
            allow_private_network_access,
            forward_not_matching_preflights,
        };
        self.filter_cors(&same, path)
    }

    fn cors_enabled(&mut self, share: Option<&RuntimeFractionalPercent>, path: &Path<'_>) -> bool {
        let path = path.field("filter_enabled");
        match self.runtime_ppm(share, &path) {
            0 => false,
            1_000_000 => true,
            _ => {
                self.errors.refuse(&path, "must be 0 or 100 percent: weft-proxy does not apply CORS by chance");
                true
            }
        }
    }

    fn origins(&mut self, list: &[StringMatcherMessage], path: &Path<'_>) -> Vec<StringMatcher> {
        list.iter()
            .enumerate()
            .filter_map(|(i, m)| self.string_matcher(m, &path.item("allow_origin_string_match", i)))
            .collect()
    }

    fn cors_value(&mut self, text: &str, path: &Path<'_>) -> Option<HeaderValue> {
        if text.is_empty() {
            return None;
        }
        let value = HeaderValue::from_str(text).ok();
        if value.is_none() {
            self.errors.refuse(path, "is not a header value: control characters are not allowed");
        }
        value
    }
}
