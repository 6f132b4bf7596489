//! External authorization, for requests and for connections.

use super::Ctx;
use crate::{AuthzBody, AuthzHttp, AuthzService, ExtAuthz};
use http::{HeaderName, HeaderValue, StatusCode};
use std::time::Duration;
use weft_core::Strng;
use weft_proto::envoy::config::core::v3::{GrpcService, HttpUri, grpc_service, http_uri};
use weft_proto::envoy::extensions::filters::http::ext_authz::v3 as http_filter;
use weft_proto::envoy::extensions::filters::network::ext_authz::v3 as network_filter;
use weft_proto::envoy::r#type::matcher::v3::ListStringMatcher;
use weft_route::error::Path;
use weft_route::{StringMatcher, refuse_set};

/// Time for an answer by gRPC unless set; Envoy's default.
const GRPC_TIMEOUT: Duration = Duration::from_millis(200);
/// Largest part of a body that may be asked for.
const MAX_BODY: u32 = 16 << 20;

impl Ctx<'_> {
    /// The filter for requests.
    pub(super) fn http_ext_authz(&mut self, message: &http_filter::ExtAuthz, path: &Path<'_>) -> Option<ExtAuthz> {
        let http_filter::ExtAuthz {
            // There is one version.
            transport_api_version: _,
            failure_mode_allow,
            failure_mode_allow_header_add,
            with_request_body,
            clear_route_cache,
            status_on_error,
            // Changes that cannot be made are left out in any case.
            validate_mutations: _,
            metadata_context_namespaces,
            typed_metadata_context_namespaces,
            route_metadata_context_namespaces,
            route_typed_metadata_context_namespaces,
            filter_enabled,
            filter_enabled_metadata,
            deny_at_disable,
            include_peer_certificate,
            stat_prefix: _,
            bootstrap_metadata_labels_key,
            allowed_headers,
            disallowed_headers,
            include_tls_session,
            charge_cluster_response_stats: _,
            encode_raw_headers,
            decoder_header_mutation_rules,
            enable_dynamic_metadata_ingestion: _,
            filter_metadata: _,
            emit_filter_state_stats: _,
            max_denied_response_body_bytes: _,
            enforce_response_header_limits: _,
            shadow_mode,
            emit_client_span: _,
            services,
        } = message;
        refuse_set!(
            self.c.errors,
            path,
            filter_enabled,
            deny_at_disable,
            bootstrap_metadata_labels_key,
            encode_raw_headers,
            decoder_header_mutation_rules,
            shadow_mode,
            typed_metadata_context_namespaces,
            route_metadata_context_namespaces,
            route_typed_metadata_context_namespaces
        );
        let (service, timeout) = match services {
            Some(http_filter::ext_authz::Services::GrpcService(grpc)) => {
                self.authz_grpc(grpc, &path.field("grpc_service"))?
            }
            Some(http_filter::ext_authz::Services::HttpService(http)) => {
                self.authz_http(http, &path.field("http_service"))?
            }
            None => {
                self.c.errors.refuse(path, "must name whom to ask: grpc_service or http_service");
                return None;
            }
        };
        let enabled = match filter_enabled_metadata {
            Some(matcher) => Some(self.c.metadata_matcher(matcher, &path.field("filter_enabled_metadata"))?),
            None => None,
        };
        let body = with_request_body.as_ref();
        if body.is_some_and(|b| b.max_request_bytes == 0 || b.max_request_bytes > MAX_BODY) {
            let path = path.field("with_request_body");
            self.c.errors.refuse(&path.field("max_request_bytes"), format!("must be 1 to {MAX_BODY}"));
            return None;
        }
        let status = status_on_error.as_ref().map_or(StatusCode::FORBIDDEN, |status| {
            u16::try_from(status.code).ok().and_then(|c| StatusCode::from_u16(c).ok()).unwrap_or(StatusCode::FORBIDDEN)
        });
        let allowed_headers = match allowed_headers {
            Some(list) => Some(self.string_list(Some(list), &path.field("allowed_headers"))?),
            None => None,
        };
        Some(ExtAuthz {
            service,
            timeout,
            fail_open: *failure_mode_allow,
            fail_open_header: *failure_mode_allow_header_add,
            status_on_error: status,
            reroute: *clear_route_cache,
            body: body.map(|b| AuthzBody {
                most: b.max_request_bytes as usize,
                partial: b.allow_partial_message,
                as_bytes: b.pack_as_bytes,
            }),
            enabled,
            allowed_headers,
            disallowed_headers: self.string_list(disallowed_headers.as_ref(), &path.field("disallowed_headers"))?,
            metadata: metadata_context_namespaces.iter().map(|name| self.c.pool.text(name)).collect(),
            certificate: *include_peer_certificate,
            tls_session: *include_tls_session,
        })
    }

    /// The filter for connections.
    pub(super) fn network_ext_authz(
        &mut self,
        message: &network_filter::ExtAuthz,
        path: &Path<'_>,
    ) -> Option<ExtAuthz> {
        let network_filter::ExtAuthz {
            stat_prefix: _,
            grpc_service,
            failure_mode_allow,
            include_peer_certificate,
            transport_api_version: _,
            filter_enabled_metadata,
            bootstrap_metadata_labels_key,
            include_tls_session,
            // The connection is closed either way.
            send_tls_alert_on_denial: _,
            metadata_context_namespaces,
            typed_metadata_context_namespaces,
            shadow_mode,
        } = message;
        refuse_set!(self.c.errors, path, bootstrap_metadata_labels_key, typed_metadata_context_namespaces, shadow_mode);
        let path_of_service = path.field("grpc_service");
        let Some(grpc) = grpc_service else {
            self.c.errors.refuse(&path_of_service, "must be set");
            return None;
        };
        let (service, timeout) = self.authz_grpc(grpc, &path_of_service)?;
        let enabled = match filter_enabled_metadata {
            Some(matcher) => Some(self.c.metadata_matcher(matcher, &path.field("filter_enabled_metadata"))?),
            None => None,
        };
        Some(ExtAuthz {
            service,
            timeout,
            fail_open: *failure_mode_allow,
            fail_open_header: false,
            status_on_error: StatusCode::FORBIDDEN,
            reroute: false,
            body: None,
            enabled,
            allowed_headers: None,
            disallowed_headers: Vec::new(),
            metadata: metadata_context_namespaces.iter().map(|name| self.c.pool.text(name)).collect(),
            certificate: *include_peer_certificate,
            tls_session: *include_tls_session,
        })
    }

    fn authz_grpc(&mut self, message: &GrpcService, path: &Path<'_>) -> Option<(AuthzService, Option<Duration>)> {
        let Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)) = &message.target_specifier else {
            self.c.errors.refuse(path, "must be envoy_grpc");
            return None;
        };
        let authority = if target.authority.is_empty() { &target.cluster_name } else { &target.authority };
        let authority = HeaderValue::from_str(authority).unwrap_or_else(|_| HeaderValue::from_static("authorizer"));
        let timeout = match self.c.duration(message.timeout.as_ref(), &path.field("timeout")) {
            None => Some(GRPC_TIMEOUT),
            Some(Duration::ZERO) => None,
            set => set,
        };
        Some((AuthzService::Grpc(self.c.pool.text(&target.cluster_name), authority), timeout))
    }

    #[allow(deprecated)]
    fn authz_http(
        &mut self,
        message: &http_filter::HttpService,
        path: &Path<'_>,
    ) -> Option<(AuthzService, Option<Duration>)> {
        let http_filter::HttpService {
            server_uri,
            path_prefix,
            path_override,
            authorization_request,
            authorization_response,
            retry_policy,
        } = message;
        refuse_set!(self.c.errors, path, path_override, retry_policy);
        let Some(HttpUri { http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(cluster)), timeout, .. }) =
            server_uri
        else {
            self.c.errors.refuse(&path.field("server_uri").field("cluster"), "must be set");
            return None;
        };
        let timeout = self.c.limit(timeout.as_ref(), &path.field("server_uri").field("timeout"));
        let mut add = Vec::new();
        if let Some(request) = authorization_request {
            let allowed_headers = &request.allowed_headers;
            refuse_set!(self.c.errors, path.field("authorization_request"), allowed_headers);
            for header in &request.headers_to_add {
                let pair =
                    HeaderName::from_bytes(header.key.as_bytes()).ok().zip(HeaderValue::from_str(&header.value).ok());
                let Some(pair) = pair else {
                    let path = path.field("authorization_request");
                    self.c.errors.refuse(&path.field("headers_to_add"), format!("{:?} is no header", header.key));
                    return None;
                };
                add.push(pair);
            }
        }
        let none = http_filter::AuthorizationResponse::default();
        let answer = authorization_response.as_ref().unwrap_or(&none);
        let path = path.field("authorization_response");
        let dynamic_metadata_from_headers = &answer.dynamic_metadata_from_headers;
        refuse_set!(self.c.errors, path, dynamic_metadata_from_headers);
        let mut list = |list: &Option<ListStringMatcher>, name| self.string_list(list.as_ref(), &path.field(name));
        let append = list(&answer.allowed_upstream_headers_to_append, "allowed_upstream_headers_to_append")?;
        let to_client = list(&answer.allowed_client_headers, "allowed_client_headers")?;
        Some((
            AuthzService::Http(Box::new(AuthzHttp {
                to_upstream: list(&answer.allowed_upstream_headers, "allowed_upstream_headers")?,
                to_upstream_append: append,
                to_client: answer.allowed_client_headers.is_some().then_some(to_client),
                to_client_on_success: list(
                    &answer.allowed_client_headers_on_success,
                    "allowed_client_headers_on_success",
                )?,
                cluster: Strng::from(cluster.as_str()),
                path_prefix: path_prefix.clone(),
                add,
            })),
            timeout,
        ))
    }

    fn string_list(&mut self, list: Option<&ListStringMatcher>, path: &Path<'_>) -> Option<Vec<StringMatcher>> {
        let patterns = list.map(|l| l.patterns.as_slice()).unwrap_or_default().iter().enumerate();
        patterns.map(|(i, pattern)| self.c.string_matcher(pattern, &path.item("patterns", i))).collect()
    }
}
