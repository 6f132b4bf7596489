//! From RouteConfiguration and VirtualHost messages to [`crate::types`]. Every message is taken apart field by field, so
//! that a field which is neither used nor refused does not compile; what is tolerated is named where it is.
//!
//! What cannot be used is contained: a bad route answers an error, its neighbours serve on; a bad virtual host answers an
//! error for its domains and no other.
//!
//! Reading order: this file (table, virtual host, route), [`matcher`], [`metadata`], [`action`], [`retry`], [`headers`], [`filters`],
//! [`ratelimit`].

pub mod action;
pub mod filters;
pub mod headers;
pub mod matcher;
pub mod metadata;
pub mod ratelimit;
pub mod retry;

use crate::error::{Errors, Path};
use crate::index::TableSettings;
use crate::{Action, ConfigError, HeaderOps, Pool, Route, RouteMatcher, VirtualHost, refuse_set};
use std::sync::Arc;
use std::time::Duration;
use weft_core::{Provenance, Strng};
use weft_proto::envoy::config::core::v3 as core;
use weft_proto::envoy::config::route::v3 as proto;
use weft_proto::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};

/// Compiles one resource: where errors go, and what it shares with others.
#[derive(Debug)]
pub struct Compiler<'p> {
    /// Shared strings and expressions.
    pub pool: &'p mut Pool,
    /// Errors of the resource so far.
    pub errors: Errors,
    /// Longest body of a direct response, in bytes.
    pub max_direct_body: usize,
}

/// A RouteConfiguration: settings of the table, and the virtual hosts it brought itself.
#[derive(Debug, Clone)]
pub struct CompiledTable {
    /// What the table holds beside virtual hosts.
    pub settings: TableSettings,
    /// Virtual hosts of the message; with VHDS more come one by one.
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
}

/// Envoy's bound on the body of a direct response, in bytes, unless the table says otherwise.
const DEFAULT_DIRECT_BODY: usize = 4096;

/// Compiles a RouteConfiguration. `None`: it was refused as a whole.
pub fn compile_table(
    message: &proto::RouteConfiguration,
    pool: &mut Pool,
) -> (Option<CompiledTable>, Vec<ConfigError>) {
    let mut compiler = Compiler::new(format!("route {}", message.name), pool);
    if message.name.is_empty() {
        compiler.errors.refuse(&Path::ROOT.field("name"), "must not be empty");
    }
    let table = compiler.table(message, &Path::ROOT);
    let refused = compiler.errors.refused();
    (table.filter(|_| !refused), compiler.errors.into_list())
}

/// Compiles a virtual host that VHDS brought as `name`.
pub fn compile_virtual_host(
    name: &str,
    message: &proto::VirtualHost,
    pool: &mut Pool,
) -> (Arc<VirtualHost>, Vec<ConfigError>) {
    let mut compiler = Compiler::new(format!("virtual host {name}"), pool);
    let host = compiler.virtual_host(message, &Path::ROOT);
    (Arc::new(host), compiler.errors.into_list())
}

impl<'p> Compiler<'p> {
    /// A compiler for the resource of this name.
    pub fn new(resource: impl Into<String>, pool: &'p mut Pool) -> Self {
        Self { pool, errors: Errors::new(resource), max_direct_body: DEFAULT_DIRECT_BODY }
    }

    /// A whole table; refusals that are left in `errors` concern the table itself.
    pub fn table(&mut self, message: &proto::RouteConfiguration, path: &Path<'_>) -> Option<CompiledTable> {
        let proto::RouteConfiguration {
            name,
            virtual_hosts,
            vhds,
            internal_only_headers,
            response_headers_to_add,
            response_headers_to_remove,
            request_headers_to_add,
            request_headers_to_remove,
            most_specific_header_mutations_wins,
            // Clusters come and go by themselves; a route to an unknown one answers 503 until it is there.
            validate_clusters: _,
            max_direct_response_body_size_bytes,
            cluster_specifier_plugins,
            request_mirror_policies,
            ignore_port_in_host_matching,
            vhost_header,
            ignore_path_parameters_in_path_matching,
            typed_per_filter_config,
            metadata: _,
            route_specifiers,
        } = message;
        refuse_set!(
            self.errors,
            path,
            internal_only_headers,
            cluster_specifier_plugins,
            request_mirror_policies,
            vhost_header,
            ignore_path_parameters_in_path_matching,
            typed_per_filter_config,
            route_specifiers
        );
        self.max_direct_body = max_direct_response_body_size_bytes.map_or(DEFAULT_DIRECT_BODY, |n| n as usize);
        let headers = HeaderOps {
            request: self.header_edit(request_headers_to_add, request_headers_to_remove, "request", path),
            response: self.header_edit(response_headers_to_add, response_headers_to_remove, "response", path),
        };
        let hosts: Vec<_> = virtual_hosts
            .iter()
            .enumerate()
            .map(|(i, host)| Arc::new(self.virtual_host(host, &path.item("virtual_hosts", i))))
            .collect();
        let settings = TableSettings {
            name: name.clone(),
            headers,
            ignore_port_in_host: *ignore_port_in_host_matching,
            most_specific_wins: *most_specific_header_mutations_wins,
            vhds: vhds.is_some(),
        };
        Some(CompiledTable { settings, virtual_hosts: hosts })
    }

    /// A virtual host. One that has an unusable field of its own keeps its domains and answers an error to all requests.
    pub fn virtual_host(&mut self, message: &proto::VirtualHost, path: &Path<'_>) -> VirtualHost {
        let from = self.errors.len();
        let mut host = self.virtual_host_settings(message, path);
        host.domains = self.domains(&message.domains, path);
        if let Some(reason) = self.errors.refused_since(from) {
            self.errors.contain(from);
            host.routes = vec![Arc::new(unusable(RouteMatcher::default(), reason.into()))];
            return host;
        }
        host.routes = message
            .routes
            .iter()
            .enumerate()
            .map(|(i, route)| Arc::new(self.route(route, message, host.origin.as_ref(), &path.item("routes", i))))
            .collect();
        host
    }

    #[allow(deprecated)]
    fn virtual_host_settings(&mut self, message: &proto::VirtualHost, path: &Path<'_>) -> VirtualHost {
        let proto::VirtualHost {
            name,
            domains: _,
            routes: _,
            matcher,
            require_tls,
            // Only statistics.
            virtual_clusters: _,
            rate_limits,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            cors,
            typed_per_filter_config,
            include_request_attempt_count,
            include_attempt_count_in_response,
            retry_policy,
            retry_policy_typed_config,
            hedge_policy,
            include_is_timeout_retry_header,
            // Bounds of buffers; this proxy streams and has bounds of its own.
            per_request_buffer_limit_bytes: _,
            request_body_buffer_limit: _,
            // Taken up by each route.
            request_mirror_policies: _,
            metadata,
            route_specifiers,
        } = message;
        refuse_set!(
            self.errors,
            path,
            matcher,
            retry_policy_typed_config,
            hedge_policy,
            include_is_timeout_retry_header,
            route_specifiers
        );
        use proto::virtual_host::TlsRequirementType as Tls;
        let require_tls = match Tls::try_from(*require_tls) {
            Ok(Tls::None) => false,
            Ok(Tls::All) => true,
            _ => {
                self.errors.refuse(&path.field("require_tls"), "must be NONE or ALL");
                true
            }
        };
        let mut filters = self.filter_overrides(typed_per_filter_config, path);
        if let Some(cors) = cors.as_ref().filter(|_| filters.cors.is_none()) {
            filters.cors = self.route_cors(cors, &path.field("cors"));
        }
        VirtualHost {
            name: name.clone(),
            domains: Vec::new(),
            routes: Vec::new(),
            retry: retry_policy.as_ref().map(|p| self.retry_policy(p, &path.field("retry_policy"))),
            headers: HeaderOps {
                request: self.header_edit(request_headers_to_add, request_headers_to_remove, "request", path),
                response: self.header_edit(response_headers_to_add, response_headers_to_remove, "response", path),
            },
            include_attempt_count: *include_request_attempt_count,
            include_attempt_count_in_response: *include_attempt_count_in_response,
            require_tls,
            rate_limits: self.rate_limits(rate_limits, path),
            filters,
            origin: provenance(metadata.as_ref()).map(Arc::new),
        }
    }

    /// Domains in lower case; those that could never match are reported and left out.
    fn domains(&mut self, domains: &[String], path: &Path<'_>) -> Vec<Strng> {
        if domains.is_empty() {
            self.errors.refuse(&path.field("domains"), "must name at least one domain, such as * or example.com");
        }
        let mut list = Vec::with_capacity(domains.len());
        for (i, domain) in domains.iter().enumerate() {
            let inner = domain.strip_prefix('*').or_else(|| domain.strip_suffix('*')).unwrap_or(domain);
            if domain.is_empty() || inner.contains('*') {
                let message = "must be a host, *.suffix, prefix.* or *; a star stands at one end only";
                self.errors.degrade(&path.item("domains", i), format!("{domain:?} {message}"));
                continue;
            }
            if domain.bytes().any(|b| b.is_ascii_uppercase()) {
                list.push(self.pool.text(&domain.to_ascii_lowercase()));
            } else {
                list.push(self.pool.text(domain));
            }
        }
        list
    }

    /// A route. What cannot be used of it makes it answer an error to the requests that match what could be read.
    #[allow(deprecated)]
    fn route(
        &mut self,
        message: &proto::Route,
        host: &proto::VirtualHost,
        host_origin: Option<&Arc<Provenance>>,
        path: &Path<'_>,
    ) -> Route {
        let proto::Route {
            name,
            r#match,
            metadata,
            decorator,
            typed_per_filter_config,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            tracing,
            per_request_buffer_limit_bytes: _,
            // Only statistics.
            stat_prefix: _,
            request_body_buffer_limit: _,
            route_specifiers,
            action,
        } = message;
        let from = self.errors.len();
        refuse_set!(self.errors, path, tracing, route_specifiers);
        let matcher = self.route_matcher(r#match.as_ref(), &path.field("match"));
        let action = self.action(action.as_ref(), &matcher, host, path);
        let route = Route {
            name: self.pool.text(name),
            matcher,
            action,
            headers: HeaderOps {
                request: self.header_edit(request_headers_to_add, request_headers_to_remove, "request", path),
                response: self.header_edit(response_headers_to_add, response_headers_to_remove, "response", path),
            },
            filters: self.filter_overrides(typed_per_filter_config, path),
            operation: decorator.as_ref().map(|d| self.pool.text(&d.operation)),
            origin: match provenance(metadata.as_ref()) {
                Some(own) if host_origin.is_some_and(|h| **h == own) => host_origin.cloned(),
                own => own.map(Arc::new),
            },
        };
        match self.errors.refused_since(from) {
            Some(reason) => {
                self.errors.contain(from);
                Route { name: route.name, origin: route.origin, ..unusable(route.matcher, reason.into()) }
            }
            None => route,
        }
    }

    /// A duration that is not negative.
    pub fn duration(&mut self, value: Option<&prost_types::Duration>, path: &Path<'_>) -> Option<Duration> {
        let value = value?;
        if let (Ok(seconds), Ok(nanos @ 0..1_000_000_000)) = (u64::try_from(value.seconds), u32::try_from(value.nanos))
        {
            return Some(Duration::new(seconds, nanos));
        }
        self.errors.refuse(path, "must not be negative; write a duration such as 10s");
        None
    }

    /// A duration for which zero means that there is no limit.
    pub fn limit(&mut self, value: Option<&prost_types::Duration>, path: &Path<'_>) -> Option<Duration> {
        self.duration(value, path).filter(|d| !d.is_zero())
    }

    /// A share in parts per million, at most one million.
    pub fn ppm(&mut self, value: &FractionalPercent, path: &Path<'_>) -> u32 {
        let factor = match DenominatorType::try_from(value.denominator) {
            Ok(DenominatorType::Hundred) => 10_000,
            Ok(DenominatorType::TenThousand) => 100,
            Ok(DenominatorType::Million) => 1,
            Err(_) => {
                self.errors.refuse(&path.field("denominator"), "must be HUNDRED, TEN_THOUSAND or MILLION");
                1
            }
        };
        value.numerator.saturating_mul(factor).min(1_000_000)
    }

    /// A share that may come from a runtime key; there is no runtime here, so its default counts. All when unset.
    pub fn runtime_ppm(&mut self, value: Option<&core::RuntimeFractionalPercent>, path: &Path<'_>) -> u32 {
        match value.and_then(|v| v.default_value.as_ref()) {
            Some(fraction) => self.ppm(fraction, &path.field("default_value")),
            None => 1_000_000,
        }
    }
}

fn unusable(matcher: RouteMatcher, reason: Strng) -> Route {
    Route {
        name: "".into(),
        matcher,
        action: Action::Unusable(reason),
        headers: HeaderOps::default(),
        filters: Default::default(),
        operation: None,
        origin: None,
    }
}

/// The object a message was generated from, out of filter metadata `weft`.
pub fn provenance(metadata: Option<&core::Metadata>) -> Option<Provenance> {
    let fields = &metadata?.filter_metadata.get("weft")?.fields;
    let text = |name: &str| match fields.get(name).and_then(|v| v.kind.as_ref()) {
        Some(prost_types::value::Kind::StringValue(text)) => text.clone(),
        _ => String::new(),
    };
    Some(Provenance { kind: text("kind"), namespace: text("namespace"), name: text("name"), path: text("path") })
}

#[cfg(test)]
mod tests;
