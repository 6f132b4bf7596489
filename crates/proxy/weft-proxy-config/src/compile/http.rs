//! The HTTP connection manager.

use super::Ctx;
use crate::{
    ClientCertDetails, Codec, EscapedSlashes, ForwardClientCert, HttpConnectionManager, HttpLimits, PathNormalization,
    RouteSource, ServerHeader,
};
use prost::Message as _;
use std::sync::Arc;
use std::time::Duration;
use weft_core::Strng;
use weft_proto::any::TypeUrl as _;
use weft_proto::envoy::config::core::v3 as core;
use weft_proto::envoy::config::route::v3::RouteConfiguration;
use weft_proto::envoy::extensions::filters::network::http_connection_manager::v3 as proto;
use weft_proto::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use weft_route::error::{Path, is_set};
use weft_route::{RouteTable, refuse_set};

/// Envoy's default of the `server` header.
const SERVER_NAME: &str = "envoy";
/// Idle time of a connection unless set.
const IDLE: Duration = Duration::from_secs(3600);
/// Idle time of a stream unless set.
const STREAM_IDLE: Duration = Duration::from_secs(300);
/// Request headers: bytes, and their number.
const MAX_HEADER_BYTES: usize = 60 * 1024;
const MAX_HEADERS: usize = 100;
/// Concurrent streams of a connection unless set.
const MAX_STREAMS: u32 = 100;
/// Windows of HTTP/2 unless set, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The largest window of HTTP/2 (RFC 9113, section 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;

impl Ctx<'_> {
    #[allow(deprecated)]
    pub fn http_connection_manager(
        &mut self,
        message: &proto::HttpConnectionManager,
        path: &Path<'_>,
    ) -> Option<HttpConnectionManager> {
        self.refuse_manager_fields(message, path);
        let limits = self.http_limits(message, path);
        let (filters, router) = self.http_filters(&message.http_filters, path)?;
        let routes = self.route_source(message.route_specifier.as_ref(), path)?;
        let (server_header, server_name) = self.server_header(message, path);
        let http1 = message.http_protocol_options.clone().unwrap_or_default();
        Some(HttpConnectionManager {
            stat_prefix: self.c.pool.text(&message.stat_prefix),
            codec: self.codec(message.codec_type, path),
            routes,
            filters,
            normalize: self.normalization(message, path),
            use_remote_address: message.use_remote_address.unwrap_or(false),
            xff_trusted_hops: message.xff_num_trusted_hops,
            internal_addresses: self.internal_addresses(message.internal_address_config.as_ref(), path),
            skip_xff_append: message.skip_xff_append,
            xff_cert: self.forward_client_cert(message.forward_client_cert_details, path),
            xff_cert_details: self.cert_details(message.set_current_client_cert_details.as_ref(), path),
            generate_request_id: message.generate_request_id.unwrap_or(true),
            preserve_external_request_id: message.preserve_external_request_id,
            server_name,
            server_header,
            upgrades: self.upgrades(&message.upgrade_configs, path),
            accept_http_10: http1.accept_http_10,
            strip_port: matches!(
                message.strip_port_mode,
                Some(proto::http_connection_manager::StripPortMode::StripAnyHostPort(true))
            ),
            strip_trailing_dot: message.strip_trailing_host_dot,
            limits,
            access_logs: self.access_logs(&message.access_log, path),
            tracing: message
                .tracing
                .as_ref()
                .and_then(|t| self.tracing(t, trace_by_request_id(message), &path.field("tracing"))),
            via: (!message.via.is_empty()).then(|| self.c.pool.text(&message.via)),
            append_x_forwarded_port: message.append_x_forwarded_port,
            suppress_envoy_headers: router.suppress_envoy_headers,
        })
    }

    /// Fields that nothing here does. Taken apart whole, so that a new field of the message is noticed; those used elsewhere
    /// in this file, and those tolerated, are named.
    #[allow(deprecated)]
    fn refuse_manager_fields(&mut self, message: &proto::HttpConnectionManager, path: &Path<'_>) {
        let proto::HttpConnectionManager {
            codec_type: _,
            stat_prefix: _,
            http_filters: _,
            add_user_agent,
            tracing: _,
            common_http_protocol_options: _,
            // When a connection ends on HTTP/1 it is always after a response.
            http1_safe_max_connection_duration: _,
            http_protocol_options,
            http2_protocol_options,
            // Only for HTTP/3 listeners, which are refused.
            http3_protocol_options: _,
            server_name: _,
            server_header_transformation: _,
            scheme_header_transformation,
            max_request_headers_kb: _,
            stream_idle_timeout: _,
            // How long written bytes may wait for a slow client; the stream's idle timeout bounds it here.
            stream_flush_timeout: _,
            request_timeout: _,
            request_headers_timeout: _,
            // How long a client has between the first word of a drain (a GOAWAY with the highest id) and the last one: h2 sends
            // a ping after the first, and the answer to it, not a time, says that no request is on its way any more.
            drain_timeout: _,
            drain_timeout_jitter: _,
            // How long a closed connection is drained; the operating system does it.
            delayed_close_timeout: _,
            access_log: _,
            access_log_flush_interval,
            flush_access_log_on_new_request,
            access_log_options,
            use_remote_address: _,
            xff_num_trusted_hops: _,
            original_ip_detection_extensions,
            early_header_mutation_extensions,
            internal_address_config: _,
            skip_xff_append: _,
            via: _,
            generate_request_id: _,
            preserve_external_request_id: _,
            always_set_request_id_in_response,
            forward_client_cert_details: _,
            set_current_client_cert_details: _,
            forward_client_cert_matcher,
            // A 100 response is passed on whoever makes it.
            proxy_100_continue: _,
            represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
            upgrade_configs: _,
            normalize_path: _,
            merge_slashes: _,
            path_with_escaped_slashes_action: _,
            request_id_extension,
            local_reply_config,
            strip_matching_host_port,
            // Whether a malformed request ends the connection; it always does.
            stream_error_on_invalid_http_message: _,
            path_normalization_options,
            strip_trailing_host_dot: _,
            proxy_status_config,
            typed_header_validation_config,
            append_x_forwarded_port: _,
            append_local_overload: _,
            add_proxy_protocol_connection_state: _,
            forward_proto_config,
            route_specifier: _,
            strip_port_mode: _,
        } = message;
        refuse_set!(
            self.c.errors,
            path,
            scheme_header_transformation,
            original_ip_detection_extensions,
            early_header_mutation_extensions,
            forward_client_cert_matcher,
            local_reply_config,
            strip_matching_host_port,
            path_normalization_options,
            typed_header_validation_config,
            forward_proto_config
        );
        self.leave_out(add_user_agent == &Some(true), &path.field("add_user_agent"));
        self.leave_out(*always_set_request_id_in_response, &path.field("always_set_request_id_in_response"));
        self.leave_out(
            *represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
            &path.field("represent_ipv4_remote_address_as_ipv4_mapped_ipv6"),
        );
        self.leave_out(proxy_status_config.is_some(), &path.field("proxy_status_config"));
        let flush =
            access_log_flush_interval.is_some() || *flush_access_log_on_new_request || is_set(access_log_options);
        self.leave_out(flush, &path.field("access_log_options"));
        if let Some(config) = request_id_extension.as_ref().and_then(|e| e.typed_config.as_ref())
            && config.type_url != UuidRequestIdConfig::type_url_of()
        {
            let message = format!("{} is not supported by weft-proxy; only UUIDs are", config.type_url);
            self.c.errors.refuse(&path.field("request_id_extension"), message);
        }
        if let Some(options) = http_protocol_options {
            self.http1_options(options, &path.field("http_protocol_options"));
        }
        if let Some(options) = http2_protocol_options {
            self.http2_options(options, &path.field("http2_protocol_options"));
        }
    }

    #[allow(deprecated)]
    fn http1_options(&mut self, message: &core::Http1ProtocolOptions, path: &Path<'_>) {
        let core::Http1ProtocolOptions {
            allow_absolute_url,
            accept_http_10: _,
            default_host_for_http_10,
            header_key_format,
            // Trailers are passed on.
            enable_trailers: _,
            allow_chunked_length,
            override_stream_error_on_invalid_http_message: _,
            // Only towards endpoints.
            send_fully_qualified_url: _,
            use_balsa_parser: _,
            // Methods are passed on as they are.
            allow_custom_methods: _,
            ignore_http_11_upgrade,
        } = message;
        refuse_set!(self.c.errors, path, default_host_for_http_10, ignore_http_11_upgrade);
        if *allow_chunked_length {
            // Both lengths in one request are how requests are smuggled (RFC 9112, section 6.3).
            self.c
                .errors
                .refuse(&path.field("allow_chunked_length"), "must be false: weft-proxy refuses such requests");
        }
        if *allow_absolute_url == Some(false) {
            self.c.errors.refuse(&path.field("allow_absolute_url"), "must be true");
        }
        self.leave_out(header_key_format.is_some(), &path.field("header_key_format"));
    }

    #[allow(deprecated)]
    fn http2_options(&mut self, message: &core::Http2ProtocolOptions, path: &Path<'_>) {
        let core::Http2ProtocolOptions {
            hpack_table_size: _,
            max_concurrent_streams: _,
            initial_stream_window_size: _,
            initial_connection_window_size: _,
            // Extended CONNECT is allowed where upgrade_configs allow it.
            allow_connect: _,
            allow_metadata,
            // Bounds against floods; this proxy has bounds of its own.
            max_outbound_frames: _,
            max_outbound_control_frames: _,
            max_consecutive_inbound_frames_with_empty_payload: _,
            max_inbound_priority_frames_per_stream: _,
            max_inbound_window_update_frames_per_data_frame_sent: _,
            stream_error_on_invalid_http_messaging: _,
            override_stream_error_on_invalid_http_message: _,
            custom_settings_parameters,
            connection_keepalive,
            use_oghttp2_codec: _,
            max_metadata_size: _,
            enable_huffman_encoding: _,
            max_header_field_size_kb: _,
            disallow_obs_text: _,
            stream_reset_burst: _,
            stream_reset_rate: _,
        } = message;
        refuse_set!(self.c.errors, path, allow_metadata, custom_settings_parameters);
        self.leave_out(connection_keepalive.is_some(), &path.field("connection_keepalive"));
    }

    fn http_limits(&mut self, message: &proto::HttpConnectionManager, path: &Path<'_>) -> HttpLimits {
        let common_path = path.field("common_http_protocol_options");
        let common = message.common_http_protocol_options.unwrap_or_default();
        let core::HttpProtocolOptions {
            idle_timeout,
            max_connection_duration,
            max_connection_duration_jitter,
            max_headers_count,
            // Of responses: bounded towards endpoints.
            max_response_headers_kb: _,
            max_stream_duration,
            headers_with_underscores_action,
            max_requests_per_connection,
        } = &common;
        refuse_set!(self.c.errors, common_path, max_stream_duration, headers_with_underscores_action);
        let jitter = "max_connection_duration_jitter";
        self.leave_out(max_connection_duration_jitter.is_some(), &common_path.field(jitter));
        let http2 = message.http2_protocol_options.clone().unwrap_or_default();
        let window = |size: Option<u32>, default: u32| size.unwrap_or(default).clamp(65_535, MAX_WINDOW);
        let some = |set: Option<Duration>, default: Duration| match set {
            None => Some(default),
            Some(Duration::ZERO) => None,
            set => set,
        };
        let idle = self.c.duration(idle_timeout.as_ref(), &common_path.field("idle_timeout"));
        let stream_idle = self.c.duration(message.stream_idle_timeout.as_ref(), &path.field("stream_idle_timeout"));
        let headers_timeout = message.request_headers_timeout.as_ref();
        let duration_path = common_path.field("max_connection_duration");
        HttpLimits {
            max_header_bytes: message
                .max_request_headers_kb
                .map_or(MAX_HEADER_BYTES, |kb| kb.clamp(1, 8192) as usize * 1024),
            max_headers: max_headers_count.map_or(MAX_HEADERS, |n| n as usize),
            idle_timeout: some(idle, IDLE),
            max_connection_duration: self.c.limit(max_connection_duration.as_ref(), &duration_path),
            max_requests_per_connection: max_requests_per_connection.filter(|n| *n > 0),
            stream_idle_timeout: some(stream_idle, STREAM_IDLE),
            request_timeout: self.c.limit(message.request_timeout.as_ref(), &path.field("request_timeout")),
            request_headers_timeout: self.c.limit(headers_timeout, &path.field("request_headers_timeout")),
            http2_max_streams: http2.max_concurrent_streams.unwrap_or(MAX_STREAMS).max(1),
            http2_stream_window: window(http2.initial_stream_window_size, STREAM_WINDOW),
            http2_connection_window: window(http2.initial_connection_window_size, CONNECTION_WINDOW),
        }
    }

    fn internal_addresses(
        &mut self,
        message: Option<&proto::http_connection_manager::InternalAddressConfig>,
        path: &Path<'_>,
    ) -> Vec<ipnet::IpNet> {
        let Some(message) = message else { return Vec::new() };
        let path = path.field("internal_address_config");
        let proto::http_connection_manager::InternalAddressConfig { unix_sockets, cidr_ranges } = message;
        // A client on a Unix socket then steers nothing.
        self.leave_out(*unix_sockets, &path.field("unix_sockets"));
        let ranges = cidr_ranges.iter().enumerate();
        ranges
            .filter_map(|(i, range)| {
                let read = weft_authz::compile::cidr(range);
                read.map_err(|why| self.c.errors.refuse(&path.item("cidr_ranges", i), why)).ok()
            })
            .collect()
    }

    fn codec(&mut self, value: i32, path: &Path<'_>) -> Codec {
        use proto::http_connection_manager::CodecType;
        match CodecType::try_from(value) {
            Ok(CodecType::Auto) => Codec::Auto,
            Ok(CodecType::Http1) => Codec::Http1,
            Ok(CodecType::Http2) => Codec::Http2,
            _ => {
                self.c.errors.refuse(&path.field("codec_type"), "must be AUTO, HTTP1 or HTTP2");
                Codec::Auto
            }
        }
    }

    fn route_source(
        &mut self,
        message: Option<&proto::http_connection_manager::RouteSpecifier>,
        path: &Path<'_>,
    ) -> Option<RouteSource> {
        use proto::http_connection_manager::RouteSpecifier as Spec;
        match message {
            Some(Spec::Rds(rds)) => {
                let path = path.field("rds");
                if rds.route_config_name.is_empty() {
                    self.c.errors.refuse(&path.field("route_config_name"), "must not be empty");
                }
                self.aggregated(rds.config_source.as_ref(), &path.field("config_source"));
                Some(RouteSource::Rds(self.c.pool.text(&rds.route_config_name)))
            }
            Some(Spec::RouteConfig(routes)) => self.inline_routes(routes, &path.field("route_config")),
            Some(Spec::ScopedRoutes(_)) => {
                self.c.errors.refuse(&path.field("scoped_routes"), "is not supported by weft-proxy");
                None
            }
            None => {
                self.c.errors.refuse(path, "must set rds or route_config");
                None
            }
        }
    }

    /// Resources come over the one aggregated stream that the bootstrap names.
    fn aggregated(&mut self, source: Option<&core::ConfigSource>, path: &Path<'_>) {
        use core::config_source::ConfigSourceSpecifier as Spec;
        let specifier = source.and_then(|s| s.config_source_specifier.as_ref());
        if !matches!(specifier, Some(Spec::Ads(_) | Spec::Self_(_))) {
            self.c.errors.refuse(path, "must be ads: weft-proxy takes resources from the aggregated stream only");
        }
    }

    fn inline_routes(&mut self, message: &RouteConfiguration, path: &Path<'_>) -> Option<RouteSource> {
        if message.vhds.is_some() {
            self.c.errors.refuse(&path.field("vhds"), "must not be set on inline routes; use rds");
        }
        let table = self.c.table(message, path)?;
        let (table, errors) = RouteTable::build(table.settings, table.virtual_hosts.into_iter());
        self.c.errors.extend(errors);
        Some(RouteSource::Inline(Arc::new(table)))
    }

    fn server_header(
        &mut self,
        message: &proto::HttpConnectionManager,
        path: &Path<'_>,
    ) -> (ServerHeader, Option<Strng>) {
        use proto::http_connection_manager::ServerHeaderTransformation as Transformation;
        let header = match Transformation::try_from(message.server_header_transformation) {
            Ok(Transformation::Overwrite) => ServerHeader::Overwrite,
            Ok(Transformation::AppendIfAbsent) => ServerHeader::AppendIfAbsent,
            Ok(Transformation::PassThrough) => ServerHeader::PassThrough,
            Err(_) => {
                let text = "must be OVERWRITE, APPEND_IF_ABSENT or PASS_THROUGH";
                self.c.errors.refuse(&path.field("server_header_transformation"), text);
                ServerHeader::Overwrite
            }
        };
        if header == ServerHeader::PassThrough {
            return (header, None);
        }
        let name = if message.server_name.is_empty() { SERVER_NAME } else { &message.server_name };
        if ::http::HeaderValue::from_str(name).is_err() {
            self.c.errors.refuse(&path.field("server_name"), "must not hold control characters");
        }
        (header, Some(self.c.pool.text(name)))
    }

    fn normalization(&mut self, message: &proto::HttpConnectionManager, path: &Path<'_>) -> PathNormalization {
        use proto::http_connection_manager::PathWithEscapedSlashesAction as Action;
        let escaped_slashes = match Action::try_from(message.path_with_escaped_slashes_action) {
            Ok(Action::ImplementationSpecificDefault | Action::KeepUnchanged) => EscapedSlashes::Keep,
            Ok(Action::RejectRequest) => EscapedSlashes::Reject,
            Ok(Action::UnescapeAndRedirect) => EscapedSlashes::UnescapeAndRedirect,
            Ok(Action::UnescapeAndForward) => EscapedSlashes::UnescapeAndForward,
            Err(_) => {
                self.c.errors.refuse(&path.field("path_with_escaped_slashes_action"), "is not an action");
                EscapedSlashes::Reject
            }
        };
        PathNormalization {
            rfc3986: message.normalize_path.unwrap_or(false),
            merge_slashes: message.merge_slashes,
            escaped_slashes,
        }
    }

    fn forward_client_cert(&mut self, value: i32, path: &Path<'_>) -> ForwardClientCert {
        use proto::http_connection_manager::ForwardClientCertDetails as Details;
        match Details::try_from(value) {
            Ok(Details::Sanitize) => ForwardClientCert::Sanitize,
            Ok(Details::ForwardOnly) => ForwardClientCert::ForwardOnly,
            Ok(Details::AppendForward) => ForwardClientCert::AppendForward,
            Ok(Details::SanitizeSet) => ForwardClientCert::SanitizeSet,
            Ok(Details::AlwaysForwardOnly) => ForwardClientCert::AlwaysForwardOnly,
            Err(_) => {
                self.c.errors.refuse(&path.field("forward_client_cert_details"), format!("{value} is not a value"));
                ForwardClientCert::Sanitize
            }
        }
    }

    fn cert_details(
        &mut self,
        message: Option<&proto::http_connection_manager::SetCurrentClientCertDetails>,
        path: &Path<'_>,
    ) -> ClientCertDetails {
        let Some(message) = message else { return ClientCertDetails::default() };
        let proto::http_connection_manager::SetCurrentClientCertDetails {
            subject,
            cert,
            chain,
            dns,
            uri,
            issuer,
            format,
        } = message;
        refuse_set!(self.c.errors, path.field("set_current_client_cert_details"), issuer, format);
        ClientCertDetails { subject: subject.unwrap_or(false), cert: *cert, chain: *chain, dns: *dns, uri: *uri }
    }

    fn upgrades(&mut self, list: &[proto::http_connection_manager::UpgradeConfig], path: &Path<'_>) -> Vec<Strng> {
        let mut upgrades = Vec::with_capacity(list.len());
        for (i, upgrade) in list.iter().enumerate() {
            if !upgrade.filters.is_empty() {
                let path = path.item("upgrade_configs", i);
                self.c
                    .errors
                    .refuse(&path.field("filters"), "filters of an upgrade's own are not supported by weft-proxy");
            }
            if upgrade.enabled.unwrap_or(true) {
                upgrades.push(self.c.pool.text(&upgrade.upgrade_type.to_ascii_lowercase()));
            }
        }
        upgrades
    }
}

/// Whether the decision to trace travels in `x-request-id`: so it does unless the extension says otherwise.
fn trace_by_request_id(message: &proto::HttpConnectionManager) -> bool {
    let any = message.request_id_extension.as_ref().and_then(|e| e.typed_config.as_ref());
    let config = any.and_then(|any| UuidRequestIdConfig::decode(any.value.as_slice()).ok());
    config.and_then(|config| config.use_request_id_for_trace_sampling).unwrap_or(true)
}
