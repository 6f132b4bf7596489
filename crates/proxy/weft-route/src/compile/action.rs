//! What a route does: forward, redirect, direct response.

use super::Compiler;
use crate::error::Path;
use crate::{
    Action, ClusterChoice, DirectResponse, Forward, HashPolicy, HashSource, HeaderOps, HostRewrite, Mirror,
    PathMatcher, PathRewrite, Priority, Redirect, RouteMatcher, WeightedCluster, WeightedClusters, refuse_set,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use std::time::Duration;
use weft_core::Strng;
use weft_proto::envoy::config::core::v3 as core;
use weft_proto::envoy::config::route::v3 as proto;
use weft_proto::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;

/// Whole-request timeout of a route that sets none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

impl Compiler<'_> {
    pub(super) fn action(
        &mut self,
        message: Option<&proto::route::Action>,
        matcher: &RouteMatcher,
        host: &proto::VirtualHost,
        path: &Path<'_>,
    ) -> Action {
        match message {
            Some(proto::route::Action::Route(action)) => {
                Action::Forward(Box::new(self.forward(action, matcher, host, &path.field("route"))))
            }
            Some(proto::route::Action::Redirect(action)) => {
                Action::Redirect(Box::new(self.redirect(action, &path.field("redirect"))))
            }
            Some(proto::route::Action::DirectResponse(action)) => {
                Action::Direct(self.direct_response(action, &path.field("direct_response")))
            }
            // Legal, and no error: the route is there to say that this side does not forward.
            Some(proto::route::Action::NonForwardingAction(_)) => Action::Unusable("non_forwarding_action".into()),
            Some(proto::route::Action::FilterAction(_)) => {
                self.errors.refuse(&path.field("filter_action"), "is not supported by weft-proxy");
                Action::Unusable("filter_action".into())
            }
            None => {
                self.errors.refuse(path, "must set one of route, redirect, direct_response");
                Action::Unusable("no action".into())
            }
        }
    }

    #[allow(deprecated)]
    fn forward(
        &mut self,
        message: &proto::RouteAction,
        matcher: &RouteMatcher,
        host: &proto::VirtualHost,
        path: &Path<'_>,
    ) -> Forward {
        let proto::RouteAction {
            cluster_not_found_response_code,
            metadata_match,
            prefix_rewrite,
            regex_rewrite,
            path_rewrite_policy,
            path_rewrite,
            append_x_forwarded_host,
            timeout,
            idle_timeout,
            // How long written bytes may wait for a slow client; the stream's idle timeout bounds it here.
            flush_timeout: _,
            early_data_policy,
            retry_policy,
            retry_policy_typed_config,
            request_mirror_policies,
            priority,
            rate_limits,
            include_vh_rate_limits,
            hash_policy,
            cors,
            max_grpc_timeout,
            grpc_timeout_offset,
            upgrade_configs,
            internal_redirect_policy,
            internal_redirect_action,
            // Without internal redirects it says nothing.
            max_internal_redirects: _,
            hedge_policy,
            max_stream_duration,
            cluster_specifier,
            host_rewrite_specifier,
        } = message;
        refuse_set!(
            self.errors,
            path,
            path_rewrite_policy,
            early_data_policy,
            retry_policy_typed_config,
            grpc_timeout_offset,
            internal_redirect_policy,
            internal_redirect_action,
            hedge_policy
        );
        let mirrors =
            if request_mirror_policies.is_empty() { &host.request_mirror_policies } else { request_mirror_policies };
        let (max_stream, grpc_max) = self.stream_duration(max_stream_duration.as_ref(), path);
        Forward {
            cluster: self.cluster(cluster_specifier.as_ref(), path),
            cluster_not_found: self.not_found(*cluster_not_found_response_code, path),
            timeout: match self.duration(timeout.as_ref(), &path.field("timeout")) {
                // The newer limit takes the older one's place.
                _ if max_stream_duration.is_some() => None,
                None => Some(DEFAULT_TIMEOUT),
                Some(Duration::ZERO) => None,
                set => set,
            },
            idle_timeout: self.duration(idle_timeout.as_ref(), &path.field("idle_timeout")),
            max_grpc_timeout: grpc_max
                .or_else(|| self.duration(max_grpc_timeout.as_ref(), &path.field("max_grpc_timeout"))),
            max_stream_duration: max_stream,
            retry: retry_policy.as_ref().map(|p| self.retry_policy(p, &path.field("retry_policy"))),
            path_rewrite: self.path_rewrite(prefix_rewrite, regex_rewrite.as_ref(), path_rewrite, matcher, path),
            host_rewrite: self.host_rewrite(host_rewrite_specifier.as_ref(), path),
            append_x_forwarded_host: *append_x_forwarded_host,
            mirrors: self.mirrors(mirrors, path),
            hash: hash_policy
                .iter()
                .enumerate()
                .filter_map(|(i, h)| self.hash_policy(h, &path.item("hash_policy", i)))
                .collect(),
            cors: cors.as_ref().and_then(|c| self.route_cors(c, &path.field("cors"))),
            upgrades: self.upgrades(upgrade_configs, path),
            terminate_connect: upgrade_configs.iter().any(|u| u.connect_config.is_some()),
            priority: self.priority(*priority, path),
            rate_limits: self.rate_limits(rate_limits, path),
            include_host_limits: include_vh_rate_limits.unwrap_or(false),
            metadata_match: self.lb_metadata(metadata_match.as_ref(), &path.field("metadata_match")),
        }
    }

    fn priority(&mut self, value: i32, path: &Path<'_>) -> Priority {
        match core::RoutingPriority::try_from(value) {
            Ok(core::RoutingPriority::Default) => Priority::Default,
            Ok(core::RoutingPriority::High) => Priority::High,
            Err(_) => {
                self.errors.refuse(&path.field("priority"), "must be DEFAULT or HIGH");
                Priority::Default
            }
        }
    }

    fn stream_duration(
        &mut self,
        message: Option<&proto::route_action::MaxStreamDuration>,
        path: &Path<'_>,
    ) -> (Option<Duration>, Option<Duration>) {
        let Some(message) = message else { return (None, None) };
        let path = path.field("max_stream_duration");
        let proto::route_action::MaxStreamDuration {
            max_stream_duration,
            grpc_timeout_header_max,
            grpc_timeout_header_offset,
        } = message;
        refuse_set!(self.errors, path, grpc_timeout_header_offset);
        let max = self.limit(max_stream_duration.as_ref(), &path.field("max_stream_duration"));
        (max, self.duration(grpc_timeout_header_max.as_ref(), &path.field("grpc_timeout_header_max")))
    }

    fn cluster(&mut self, message: Option<&proto::route_action::ClusterSpecifier>, path: &Path<'_>) -> ClusterChoice {
        use proto::route_action::ClusterSpecifier as Spec;
        match message {
            Some(Spec::Cluster(name)) if !name.is_empty() => return ClusterChoice::One(self.pool.text(name)),
            Some(Spec::Cluster(_)) => self.errors.refuse(&path.field("cluster"), "must not be empty"),
            Some(Spec::ClusterHeader(name)) => match HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()) {
                Ok(name) => return ClusterChoice::Header(name),
                Err(_) => self.errors.refuse(&path.field("cluster_header"), format!("{name:?} is not a header name")),
            },
            Some(Spec::WeightedClusters(list)) => {
                return ClusterChoice::Weighted(self.weighted(list, &path.field("weighted_clusters")));
            }
            Some(Spec::ClusterSpecifierPlugin(_) | Spec::InlineClusterSpecifierPlugin(_)) => {
                self.errors.refuse(&path.field("cluster_specifier_plugin"), "is not supported by weft-proxy");
            }
            None => self.errors.refuse(path, "must name a cluster: cluster, cluster_header or weighted_clusters"),
        }
        ClusterChoice::One("".into())
    }

    #[allow(deprecated)]
    fn weighted(&mut self, message: &proto::WeightedCluster, path: &Path<'_>) -> WeightedClusters {
        let proto::WeightedCluster {
            clusters,
            // Envoy takes the sum of the weights since 1.24.
            total_weight: _,
            // There is no runtime that could override a weight.
            runtime_key_prefix: _,
            random_value_specifier,
        } = message;
        refuse_set!(self.errors, path, random_value_specifier);
        let list: Vec<_> =
            clusters.iter().enumerate().map(|(i, c)| self.weighted_cluster(c, &path.item("clusters", i))).collect();
        let total = list.iter().map(|c| u64::from(c.weight)).sum::<u64>();
        match u32::try_from(total) {
            Ok(0) => self.errors.refuse(path, "the weights must add up to more than 0"),
            Err(_) => self.errors.refuse(path, format!("the weights add up to {total}; the limit is {}", u32::MAX)),
            Ok(_) => {}
        }
        WeightedClusters { total: u32::try_from(total).unwrap_or(u32::MAX).max(1), clusters: list }
    }

    fn weighted_cluster(
        &mut self,
        message: &proto::weighted_cluster::ClusterWeight,
        path: &Path<'_>,
    ) -> WeightedCluster {
        use proto::weighted_cluster::cluster_weight::HostRewriteSpecifier as Host;
        let proto::weighted_cluster::ClusterWeight {
            name,
            cluster_header,
            weight,
            metadata_match,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            typed_per_filter_config,
            host_rewrite_specifier,
        } = message;
        refuse_set!(self.errors, path, cluster_header, metadata_match);
        if name.is_empty() && cluster_header.is_empty() {
            self.errors.refuse(&path.field("name"), "must not be empty");
        }
        WeightedCluster {
            name: self.pool.text(name),
            weight: weight.unwrap_or(0),
            headers: HeaderOps {
                request: self.header_edit(request_headers_to_add, request_headers_to_remove, "request", path),
                response: self.header_edit(response_headers_to_add, response_headers_to_remove, "response", path),
            },
            host_rewrite: host_rewrite_specifier
                .as_ref()
                .and_then(|Host::HostRewriteLiteral(host)| self.host_value(host, &path.field("host_rewrite_literal"))),
            filters: self.filter_overrides(typed_per_filter_config, path),
        }
    }

    fn not_found(&mut self, code: i32, path: &Path<'_>) -> StatusCode {
        use proto::route_action::ClusterNotFoundResponseCode as Code;
        match Code::try_from(code) {
            Ok(Code::ServiceUnavailable) => StatusCode::SERVICE_UNAVAILABLE,
            Ok(Code::NotFound) => StatusCode::NOT_FOUND,
            Ok(Code::InternalServerError) => StatusCode::INTERNAL_SERVER_ERROR,
            Err(_) => {
                self.errors.refuse(&path.field("cluster_not_found_response_code"), format!("{code} is not a value"));
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    fn path_rewrite(
        &mut self,
        prefix: &str,
        regex: Option<&RegexMatchAndSubstitute>,
        whole: &str,
        matcher: &RouteMatcher,
        path: &Path<'_>,
    ) -> PathRewrite {
        if usize::from(!prefix.is_empty()) + usize::from(regex.is_some()) + usize::from(!whole.is_empty()) > 1 {
            self.errors.refuse(path, "only one of prefix_rewrite, regex_rewrite and path_rewrite may be set");
        }
        if let Some(regex) = regex {
            return match self.substitution(regex, &path.field("regex_rewrite")) {
                Some((regex, substitution)) => PathRewrite::Regex(regex, substitution),
                None => PathRewrite::Keep,
            };
        }
        if !whole.is_empty() {
            return PathRewrite::Full(self.pool.text(whole));
        }
        if prefix.is_empty() || matches!(matcher.path, PathMatcher::Connect) {
            return PathRewrite::Keep;
        }
        PathRewrite::Prefix(self.pool.text(prefix))
    }

    /// An expression and its substitution, from `\1` to the form of the `regex` crate.
    fn substitution(&mut self, message: &RegexMatchAndSubstitute, path: &Path<'_>) -> Option<(crate::Regex, Strng)> {
        let pattern = message.pattern.as_ref().map_or("", |p| p.regex.as_str());
        let regex = match self.pool.anywhere(pattern) {
            Ok(regex) if !pattern.is_empty() => regex,
            Ok(_) => {
                self.errors.refuse(&path.field("pattern"), "must hold an expression");
                return None;
            }
            Err(reason) => {
                self.errors.refuse(&path.field("pattern").field("regex"), reason);
                return None;
            }
        };
        match crate::rewrite::substitution(&message.substitution, regex.0.captures_len()) {
            Ok(text) => Some((regex, self.pool.text(&text))),
            Err(reason) => {
                self.errors.refuse(&path.field("substitution"), reason);
                None
            }
        }
    }

    fn host_rewrite(
        &mut self,
        message: Option<&proto::route_action::HostRewriteSpecifier>,
        path: &Path<'_>,
    ) -> HostRewrite {
        use proto::route_action::HostRewriteSpecifier as Spec;
        match message {
            None | Some(Spec::AutoHostRewrite(false)) => HostRewrite::Keep,
            Some(Spec::AutoHostRewrite(true)) => HostRewrite::Auto,
            Some(Spec::HostRewriteLiteral(host) | Spec::HostRewrite(host)) => {
                match self.host_value(host, &path.field("host_rewrite_literal")) {
                    Some(value) => HostRewrite::Literal(value),
                    None => HostRewrite::Keep,
                }
            }
            Some(Spec::HostRewriteHeader(name)) => match HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()) {
                Ok(name) => HostRewrite::Header(name),
                Err(_) => {
                    self.errors.refuse(&path.field("host_rewrite_header"), format!("{name:?} is not a header name"));
                    HostRewrite::Keep
                }
            },
            Some(Spec::HostRewritePathRegex(regex)) => {
                match self.substitution(regex, &path.field("host_rewrite_path_regex")) {
                    Some((regex, substitution)) => HostRewrite::PathRegex(regex, substitution),
                    None => HostRewrite::Keep,
                }
            }
        }
    }

    /// A host that may stand in a request.
    pub(super) fn host_value(&mut self, host: &str, path: &Path<'_>) -> Option<HeaderValue> {
        let valid = host.parse::<http::uri::Authority>().ok().and_then(|_| HeaderValue::from_str(host).ok());
        if valid.is_none() {
            self.errors.refuse(path, format!("{host:?} is not a host; write a name or address, with :port if needed"));
        }
        valid
    }

    fn mirrors(&mut self, list: &[proto::route_action::RequestMirrorPolicy], path: &Path<'_>) -> Vec<Mirror> {
        let mut mirrors = Vec::with_capacity(list.len());
        for (i, mirror) in list.iter().enumerate() {
            let path = path.item("request_mirror_policies", i);
            let proto::route_action::RequestMirrorPolicy {
                cluster,
                cluster_header,
                runtime_fraction,
                // Whether the copy's span is sampled; copies are not traced.
                trace_sampled: _,
                disable_shadow_host_suffix_append,
                request_headers_mutations,
                host_rewrite_literal,
            } = mirror;
            if cluster.is_empty() == cluster_header.is_empty() {
                self.errors.refuse(&path, "must set one of cluster and cluster_header");
            }
            let by_header = (!cluster_header.is_empty()).then(|| {
                let name = HeaderName::from_bytes(cluster_header.to_ascii_lowercase().as_bytes()).ok();
                if name.is_none() {
                    let message = format!("{cluster_header:?} is not a header name");
                    self.errors.refuse(&path.field("cluster_header"), message);
                }
                name
            });
            let host = (!host_rewrite_literal.is_empty())
                .then(|| self.host_value(host_rewrite_literal, &path.field("host_rewrite_literal")));
            mirrors.push(Mirror {
                cluster: self.pool.text(cluster),
                cluster_header: by_header.flatten(),
                host: host.flatten(),
                edit: self.header_mutations(request_headers_mutations, "request_headers_mutations", &path),
                fraction: self.runtime_ppm(runtime_fraction.as_ref(), &path.field("runtime_fraction")),
                keep_host: *disable_shadow_host_suffix_append,
            });
        }
        mirrors
    }

    fn hash_policy(&mut self, message: &proto::route_action::HashPolicy, path: &Path<'_>) -> Option<HashPolicy> {
        use proto::route_action::hash_policy::PolicySpecifier as Spec;
        let source = match &message.policy_specifier {
            Some(Spec::Header(header)) => {
                let regex_rewrite = &header.regex_rewrite;
                refuse_set!(self.errors, path.field("header"), regex_rewrite);
                match HeaderName::from_bytes(header.header_name.to_ascii_lowercase().as_bytes()) {
                    Ok(name) => HashSource::Header(name),
                    Err(_) => {
                        let message = format!("{:?} is not a header name", header.header_name);
                        self.errors.refuse(&path.field("header").field("header_name"), message);
                        return None;
                    }
                }
            }
            Some(Spec::Cookie(cookie)) => {
                let cookie_path = path.field("cookie");
                let attributes = &cookie.attributes;
                refuse_set!(self.errors, cookie_path, attributes);
                if cookie.name.is_empty() {
                    self.errors.refuse(&cookie_path.field("name"), "must not be empty");
                }
                let ttl = self.duration(cookie.ttl.as_ref(), &cookie_path.field("ttl"));
                HashSource::Cookie(self.pool.text(&cookie.name), ttl, self.pool.text(&cookie.path))
            }
            Some(Spec::ConnectionProperties(properties)) if properties.source_ip => HashSource::SourceIp,
            // Set, but asks for nothing.
            Some(Spec::ConnectionProperties(_)) => return None,
            Some(Spec::QueryParameter(query)) => HashSource::Query(self.pool.text(&query.name)),
            Some(Spec::FilterState(_)) => {
                self.errors.refuse(&path.field("filter_state"), "is not supported by weft-proxy");
                return None;
            }
            None => {
                self.errors.refuse(path, "must set one of header, cookie, connection_properties, query_parameter");
                return None;
            }
        };
        Some(HashPolicy { source, terminal: message.terminal })
    }

    fn upgrades(&mut self, list: &[proto::route_action::UpgradeConfig], path: &Path<'_>) -> Option<Vec<(Strng, bool)>> {
        if list.is_empty() {
            return None;
        }
        let mut upgrades = Vec::with_capacity(list.len());
        for (i, upgrade) in list.iter().enumerate() {
            if let Some(connect) = &upgrade.connect_config {
                let path = path.item("upgrade_configs", i);
                let proto::route_action::upgrade_config::ConnectConfig { proxy_protocol_config, allow_post } = connect;
                refuse_set!(self.errors, path.field("connect_config"), proxy_protocol_config, allow_post);
                if !upgrade.upgrade_type.eq_ignore_ascii_case("connect") {
                    self.errors.refuse(&path.field("connect_config"), "is for upgrades of type CONNECT alone");
                }
            }
            let name = self.pool.text(&upgrade.upgrade_type.to_ascii_lowercase());
            upgrades.push((name, upgrade.enabled.unwrap_or(true)));
        }
        Some(upgrades)
    }

    /// Labels under `envoy.lb`; other filters' metadata is none of the balancer's business.
    pub fn lb_metadata(&mut self, message: Option<&core::Metadata>, path: &Path<'_>) -> Vec<(Strng, Strng)> {
        let Some(labels) = message.and_then(|m| m.filter_metadata.get("envoy.lb")) else { return Vec::new() };
        let mut list = Vec::with_capacity(labels.fields.len());
        for (name, value) in &labels.fields {
            match &value.kind {
                Some(prost_types::value::Kind::StringValue(text)) => {
                    list.push((self.pool.text(name), self.pool.text(text)));
                }
                _ => self.errors.refuse(&path.key("filter_metadata", name), "must be a string"),
            }
        }
        list
    }

    fn redirect(&mut self, message: &proto::RedirectAction, path: &Path<'_>) -> Redirect {
        use proto::redirect_action::{PathRewriteSpecifier, RedirectResponseCode as Code, SchemeRewriteSpecifier};
        let proto::RedirectAction {
            host_redirect,
            port_redirect,
            response_code,
            strip_query,
            scheme_rewrite_specifier,
            path_rewrite_specifier,
        } = message;
        let status = match Code::try_from(*response_code) {
            Ok(Code::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
            Ok(Code::Found) => StatusCode::FOUND,
            Ok(Code::SeeOther) => StatusCode::SEE_OTHER,
            Ok(Code::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
            Ok(Code::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
            Err(_) => {
                self.errors.refuse(&path.field("response_code"), format!("{response_code} is not a redirect code"));
                StatusCode::MOVED_PERMANENTLY
            }
        };
        let port = match u16::try_from(*port_redirect) {
            Ok(0) => None,
            Ok(port) => Some(port),
            Err(_) => {
                self.errors.refuse(&path.field("port_redirect"), "must be 1 to 65535");
                None
            }
        };
        let host = (!host_redirect.is_empty()).then(|| self.host_value(host_redirect, &path.field("host_redirect")));
        Redirect {
            status,
            scheme: match scheme_rewrite_specifier {
                Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
                Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(self.scheme(scheme, path)),
                Some(SchemeRewriteSpecifier::HttpsRedirect(false)) | None => None,
            },
            host: host.flatten().map(|_| self.pool.text(host_redirect)),
            port,
            path: match path_rewrite_specifier {
                None => PathRewrite::Keep,
                // As Envoy has it: not set.
                Some(PathRewriteSpecifier::PathRedirect(whole)) if whole.is_empty() => PathRewrite::Keep,
                Some(PathRewriteSpecifier::PathRedirect(whole) | PathRewriteSpecifier::PathRewrite(whole)) => {
                    self.location_path(whole, &path.field("path_redirect"))
                }
                Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => PathRewrite::Prefix(self.pool.text(prefix)),
                Some(PathRewriteSpecifier::RegexRewrite(regex)) => {
                    match self.substitution(regex, &path.field("regex_rewrite")) {
                        Some((regex, substitution)) => PathRewrite::Regex(regex, substitution),
                        None => PathRewrite::Keep,
                    }
                }
            },
            strip_query: *strip_query,
        }
    }

    fn scheme(&mut self, scheme: &str, path: &Path<'_>) -> Strng {
        if scheme.parse::<http::uri::Scheme>().is_err() {
            self.errors
                .refuse(&path.field("scheme_redirect"), format!("{scheme:?} is not a scheme; write http or https"));
        }
        self.pool.text(&scheme.to_ascii_lowercase())
    }

    /// A path for `Location`, which must not be able to end the header's line.
    fn location_path(&mut self, whole: &str, path: &Path<'_>) -> PathRewrite {
        if HeaderValue::from_str(whole).is_err() {
            self.errors.refuse(path, "must not hold control characters");
        }
        PathRewrite::Full(self.pool.text(whole))
    }

    fn direct_response(&mut self, message: &proto::DirectResponseAction, path: &Path<'_>) -> DirectResponse {
        let proto::DirectResponseAction { status, body, body_format } = message;
        refuse_set!(self.errors, path, body_format);
        let code = u16::try_from(*status).ok().filter(|s| (200..600).contains(s));
        let status = code.and_then(|s| StatusCode::from_u16(s).ok()).unwrap_or_else(|| {
            self.errors
                .refuse(&path.field("status"), format!("{status} is not a final HTTP status; it must be 200 to 599"));
            StatusCode::INTERNAL_SERVER_ERROR
        });
        let body = match body.as_ref().map(|b| (&b.specifier, &b.watched_directory)) {
            None | Some((None, None)) => Bytes::new(),
            Some((Some(core::data_source::Specifier::InlineString(text)), None)) => {
                Bytes::copy_from_slice(text.as_bytes())
            }
            Some((Some(core::data_source::Specifier::InlineBytes(bytes)), None)) => Bytes::copy_from_slice(bytes),
            Some(_) => {
                self.errors.refuse(&path.field("body"), "must be inline_string or inline_bytes");
                Bytes::new()
            }
        };
        if body.len() > self.max_direct_body {
            let message = format!("has {} bytes; the limit is {}", body.len(), self.max_direct_body);
            self.errors.refuse(&path.field("body"), message);
        }
        DirectResponse { status, body }
    }
}
