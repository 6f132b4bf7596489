//! Rate limits of routes and virtual hosts, and the filter with buckets of its own.

use super::Compiler;
use crate::error::Path;
use crate::ratelimit::{Bucket, HostLimits, LocalRateLimit, RateAction, RateLimit, RateLimitPerRoute};
use crate::refuse_set;
use http::StatusCode;
use std::time::Duration;
use weft_core::Strng;
use weft_proto::envoy::config::core::v3::{HeaderValueOption, RuntimeFractionalPercent};
use weft_proto::envoy::config::route::v3::rate_limit::action as proto_action;
use weft_proto::envoy::config::route::v3::{self as proto, rate_limit::action::ActionSpecifier};
use weft_proto::envoy::extensions::common::ratelimit::v3 as common;
use weft_proto::envoy::extensions::filters::http::local_ratelimit::v3 as local;
use weft_proto::envoy::extensions::filters::http::ratelimit::v3 as global;
use weft_proto::envoy::r#type::metadata::v3::{MetadataKey, metadata_key::path_segment::Segment};
use weft_proto::envoy::r#type::v3::{HttpStatus, TokenBucket};

/// The least interval of a bucket, as Envoy has it.
const LEAST_INTERVAL: Duration = Duration::from_millis(50);
/// Most descriptors with buckets of one filter.
const MAX_DESCRIPTORS: usize = 10_000;

impl Compiler<'_> {
    /// Rate limits of a route, virtual host or filter.
    pub fn rate_limits(&mut self, list: &[proto::RateLimit], path: &Path<'_>) -> Vec<RateLimit> {
        let limits = list.iter().enumerate();
        limits.map(|(i, limit)| self.rate_limit(limit, &path.item("rate_limits", i))).collect()
    }

    fn rate_limit(&mut self, message: &proto::RateLimit, path: &Path<'_>) -> RateLimit {
        let proto::RateLimit {
            stage,
            // A key of the runtime; there is none.
            disable_key: _,
            actions,
            limit,
            hits_addend,
            apply_on_stream_done,
            x_ratelimit_option,
        } = message;
        refuse_set!(self.errors, path, limit, hits_addend, apply_on_stream_done, x_ratelimit_option);
        if actions.is_empty() {
            self.errors.refuse(&path.field("actions"), "must not be empty");
        }
        let actions = actions.iter().enumerate();
        let actions =
            actions.filter_map(|(i, a)| self.rate_action(a.action_specifier.as_ref(), &path.item("actions", i)));
        RateLimit { stage: stage.unwrap_or(0), actions: actions.collect() }
    }

    #[allow(deprecated)]
    fn rate_action(&mut self, action: Option<&ActionSpecifier>, path: &Path<'_>) -> Option<RateAction> {
        let made = match action {
            Some(ActionSpecifier::DestinationCluster(_)) => RateAction::DestinationCluster,
            Some(ActionSpecifier::RemoteAddress(_)) => RateAction::RemoteAddress,
            Some(ActionSpecifier::RequestHeaders(of)) => {
                let path = path.field("request_headers");
                let name = self.header_key(&of.header_name, &path.field("header_name"))?;
                let key = self.entry_key(&of.descriptor_key, "", &path)?;
                RateAction::RequestHeader(name, key, of.skip_if_absent)
            }
            Some(ActionSpecifier::QueryParameters(of)) => {
                let key = self.entry_key(&of.descriptor_key, "", &path.field("query_parameters"))?;
                RateAction::QueryParameter(self.pool.text(&of.query_parameter_name), key, of.skip_if_absent)
            }
            Some(ActionSpecifier::MaskedRemoteAddress(of)) => {
                let path = path.field("masked_remote_address");
                let v4 = self.prefix(of.v4_prefix_mask_len, 32, &path.field("v4_prefix_mask_len"))?;
                let v6 = self.prefix(of.v6_prefix_mask_len, 128, &path.field("v6_prefix_mask_len"))?;
                RateAction::MaskedRemoteAddress(v4, v6)
            }
            Some(ActionSpecifier::GenericKey(of)) => {
                let path = path.field("generic_key");
                let default_value = &of.default_value;
                refuse_set!(self.errors, path, default_value);
                let key = self.entry_key(&of.descriptor_key, "generic_key", &path)?;
                RateAction::Generic(key, self.entry_value(&of.descriptor_value, &path)?)
            }
            Some(ActionSpecifier::HeaderValueMatch(of)) => self.header_value_match(of, path)?,
            Some(ActionSpecifier::QueryParameterValueMatch(of)) => self.query_value_match(of, path)?,
            Some(ActionSpecifier::DynamicMetadata(of)) => {
                let path = path.field("dynamic_metadata");
                self.said(&of.descriptor_key, of.metadata_key.as_ref(), &of.default_value, false, &path)?
            }
            Some(ActionSpecifier::Metadata(of)) => {
                let path = path.field("metadata");
                let source = &of.source;
                // Only what filters said of the request.
                refuse_set!(self.errors, path, source);
                self.said(&of.descriptor_key, of.metadata_key.as_ref(), &of.default_value, of.skip_if_absent, &path)?
            }
            Some(ActionSpecifier::SourceCluster(_)) => return self.no_action("source_cluster", path),
            Some(ActionSpecifier::Extension(_)) => return self.no_action("extension", path),
            Some(ActionSpecifier::RemoteAddressMatch(_)) => return self.no_action("remote_address_match", path),
            None => {
                self.errors.refuse(path, "must set an action");
                return None;
            }
        };
        Some(made)
    }

    fn no_action(&mut self, name: &str, path: &Path<'_>) -> Option<RateAction> {
        self.errors.refuse(&path.field(name), "is not supported by weft-proxy");
        None
    }

    fn header_value_match(&mut self, of: &proto_action::HeaderValueMatch, path: &Path<'_>) -> Option<RateAction> {
        let path = path.field("header_value_match");
        let default_value = &of.default_value;
        refuse_set!(self.errors, path, default_value);
        let headers = of.headers.iter().enumerate();
        let headers = headers.filter_map(|(i, h)| self.header_matcher(h, &path.item("headers", i))).collect();
        let key = self.entry_key(&of.descriptor_key, "header_match", &path)?;
        Some(RateAction::Headers(
            key,
            self.entry_value(&of.descriptor_value, &path)?,
            of.expect_match.unwrap_or(true),
            headers,
        ))
    }

    fn query_value_match(
        &mut self,
        of: &proto_action::QueryParameterValueMatch,
        path: &Path<'_>,
    ) -> Option<RateAction> {
        let path = path.field("query_parameter_value_match");
        let default_value = &of.default_value;
        refuse_set!(self.errors, path, default_value);
        let parameters = of.query_parameters.iter().enumerate();
        let parameters =
            parameters.filter_map(|(i, q)| self.query_matcher(q, &path.item("query_parameters", i))).collect();
        let key = self.entry_key(&of.descriptor_key, "query_match", &path)?;
        Some(RateAction::Query(
            key,
            self.entry_value(&of.descriptor_value, &path)?,
            of.expect_match.unwrap_or(true),
            parameters,
        ))
    }

    fn said(
        &mut self,
        key: &str,
        at: Option<&MetadataKey>,
        default: &str,
        skip: bool,
        path: &Path<'_>,
    ) -> Option<RateAction> {
        let key = self.entry_key(key, "", path)?;
        let Some(at) = at.filter(|at| !at.key.is_empty()) else {
            self.errors.refuse(&path.field("metadata_key").field("key"), "must not be empty");
            return None;
        };
        let mut inside = Vec::with_capacity(at.path.len());
        for segment in &at.path {
            let Some(Segment::Key(name)) = &segment.segment else {
                self.errors.refuse(&path.field("metadata_key").field("path"), "must be of keys alone");
                return None;
            };
            inside.push(self.pool.text(name));
        }
        Some(RateAction::Metadata(key, self.pool.text(&at.key), inside, self.pool.text(default), skip))
    }

    fn entry_key(&mut self, key: &str, default: &str, path: &Path<'_>) -> Option<Strng> {
        let key = if key.is_empty() { default } else { key };
        if key.is_empty() {
            self.errors.refuse(&path.field("descriptor_key"), "must not be empty");
            return None;
        }
        Some(self.pool.text(key))
    }

    fn entry_value(&mut self, value: &str, path: &Path<'_>) -> Option<Strng> {
        if value.is_empty() || value.contains('%') {
            let message = "must be a text; commands such as %REQ(x)% are not supported by weft-proxy";
            self.errors.refuse(&path.field("descriptor_value"), message);
            return None;
        }
        Some(self.pool.text(value))
    }

    fn prefix(&mut self, length: Option<u32>, most: u8, path: &Path<'_>) -> Option<u8> {
        let read = u8::try_from(length.unwrap_or(most.into())).ok().filter(|length| *length <= most);
        if read.is_none() {
            self.errors.refuse(path, format!("must be 0 to {most}"));
        }
        read
    }

    /// The filter that limits by buckets of its own.
    pub fn local_rate_limit(&mut self, message: &local::LocalRateLimit, path: &Path<'_>) -> LocalRateLimit {
        let local::LocalRateLimit {
            stat_prefix,
            status,
            token_bucket,
            filter_enabled,
            filter_enforced,
            request_headers_to_add_when_not_enforced,
            response_headers_to_add,
            descriptors,
            stage,
            local_rate_limit_per_downstream_connection,
            local_cluster_rate_limit,
            enable_x_ratelimit_headers,
            vh_rate_limits,
            always_consume_default_token_bucket,
            rate_limited_as_resource_exhausted,
            rate_limits,
            // Of descriptors whose values are left open, which are refused.
            max_dynamic_descriptors: _,
            enable_retry_after_header,
        } = message;
        refuse_set!(
            self.errors,
            path,
            local_rate_limit_per_downstream_connection,
            local_cluster_rate_limit,
            enable_x_ratelimit_headers,
            enable_retry_after_header
        );
        if stat_prefix.is_empty() {
            self.errors.refuse(&path.field("stat_prefix"), "must not be empty");
        }
        if descriptors.len() > MAX_DESCRIPTORS {
            self.errors.refuse(&path.field("descriptors"), format!("must not be more than {MAX_DESCRIPTORS}"));
        }
        let listed = descriptors.iter().take(MAX_DESCRIPTORS).enumerate();
        let descriptors = listed.filter_map(|(i, d)| self.local_descriptor(d, &path.item("descriptors", i))).collect();
        let bucket = token_bucket.as_ref();
        LocalRateLimit {
            stat_prefix: self.pool.text(stat_prefix),
            status: limited_status(status.as_ref()),
            bucket: bucket.and_then(|bucket| self.bucket(bucket, &path.field("token_bucket"))),
            descriptors,
            always_common: always_consume_default_token_bucket.unwrap_or(true),
            enabled: self.share(filter_enabled.as_ref(), &path.field("filter_enabled")),
            enforced: self.share(filter_enforced.as_ref(), &path.field("filter_enforced")),
            request_headers: self.edit_of(
                request_headers_to_add_when_not_enforced,
                &path.field("request_headers_to_add_when_not_enforced"),
            ),
            response_headers: self.edit_of(response_headers_to_add, &path.field("response_headers_to_add")),
            stage: *stage,
            host: match common::VhRateLimitsOptions::try_from(*vh_rate_limits) {
                Ok(common::VhRateLimitsOptions::Include) => HostLimits::Include,
                Ok(common::VhRateLimitsOptions::Ignore) => HostLimits::Ignore,
                _ => HostLimits::Override,
            },
            limits: self.rate_limits(rate_limits, path),
            exhausted: *rate_limited_as_resource_exhausted,
        }
    }

    /// Headers to add, as operations.
    pub fn edit_of(&mut self, add: &[HeaderValueOption], path: &Path<'_>) -> crate::HeaderEdit {
        self.header_edit(add, &[], "response", path)
    }

    /// The share of requests; none when nothing is said, as in Envoy.
    fn share(&mut self, message: Option<&RuntimeFractionalPercent>, path: &Path<'_>) -> u32 {
        match message {
            None => 0,
            some => self.runtime_ppm(some, path),
        }
    }

    #[allow(clippy::type_complexity)]
    fn local_descriptor(
        &mut self,
        message: &common::LocalRateLimitDescriptor,
        path: &Path<'_>,
    ) -> Option<(Vec<(Strng, Strng)>, Bucket)> {
        let common::LocalRateLimitDescriptor { entries, token_bucket, shadow_mode } = message;
        refuse_set!(self.errors, path, shadow_mode);
        let mut own = Vec::with_capacity(entries.len());
        for (i, entry) in entries.iter().enumerate() {
            if entry.key.is_empty() || entry.value.is_empty() {
                let message = "must have key and value; open values are not supported by weft-proxy";
                self.errors.refuse(&path.item("entries", i), message);
            }
            own.push((self.pool.text(&entry.key), self.pool.text(&entry.value)));
        }
        let path = path.field("token_bucket");
        let Some(bucket) = token_bucket else {
            self.errors.refuse(&path, "must be set");
            return None;
        };
        Some((own, self.bucket(bucket, &path)?))
    }

    /// A bucket of tokens.
    pub fn bucket(&mut self, message: &TokenBucket, path: &Path<'_>) -> Option<Bucket> {
        let TokenBucket { max_tokens, tokens_per_fill, fill_interval } = message;
        let interval = self.duration(fill_interval.as_ref(), &path.field("fill_interval")).unwrap_or_default();
        if interval < LEAST_INTERVAL {
            self.errors.refuse(&path.field("fill_interval"), "must be at least 0.05s");
            return None;
        }
        let fill = tokens_per_fill.unwrap_or(1);
        if *max_tokens == 0 || fill == 0 {
            self.errors.refuse(path, "max_tokens and tokens_per_fill must be above 0");
            return None;
        }
        Some(Bucket::new(*max_tokens, fill, u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX / 2)))
    }

    /// Settings of a route for the filter that asks a service.
    pub fn rate_limit_per_route(&mut self, message: &global::RateLimitPerRoute, path: &Path<'_>) -> RateLimitPerRoute {
        use global::rate_limit_per_route::VhRateLimitsOptions as Host;
        let global::RateLimitPerRoute { vh_rate_limits, override_option, rate_limits, domain } = message;
        refuse_set!(self.errors, path, override_option);
        RateLimitPerRoute {
            host: match Host::try_from(*vh_rate_limits) {
                Ok(Host::Include) => HostLimits::Include,
                Ok(Host::Ignore) => HostLimits::Ignore,
                _ => HostLimits::Override,
            },
            limits: self.rate_limits(rate_limits, path),
            domain: domain.clone(),
        }
    }
}

/// The status of a refusal: 429, unless another error is named.
pub fn limited_status(message: Option<&HttpStatus>) -> StatusCode {
    let code = message.and_then(|status| u16::try_from(status.code).ok()).filter(|code| (400..600).contains(code));
    code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::TOO_MANY_REQUESTS)
}
