//! The HTTP connection manager, for each of its places: outbound, inbound, gateway.

use crate::observe::{Observability, Side};
use crate::pb::core::{CidrRange, Http1ProtocolOptions, Http2ProtocolOptions};
use crate::pb::hcm::http_connection_manager::{
    ForwardClientCertDetails as Forward, InternalAddressConfig, PathWithEscapedSlashesAction as Slashes,
    RouteSpecifier, ServerHeaderTransformation as ServerHeader, SetCurrentClientCertDetails, UpgradeConfig,
};
use crate::pb::hcm::{HttpConnectionManager, HttpFilter, Rds};
use crate::pb::route::RouteConfiguration;
use crate::pb::{self, http_filter, listener, network_filter};
use weft_k8s_api::istio::{ForwardClientCertDetails, HeaderSwitch, MeshConfig, MeshProxyConfig, NormalizationType};
use weft_model::Protocol;
use weft_proto::envoy::extensions::filters::http::cors::v3::Cors;
use weft_proto::envoy::extensions::filters::http::fault::v3::HttpFault;
use weft_proto::envoy::extensions::filters::http::grpc_stats::v3::{FilterConfig as GrpcStats, filter_config};
use weft_proto::envoy::extensions::filters::http::grpc_web::v3::GrpcWeb;
use weft_proto::envoy::extensions::filters::http::router::v3::Router;

/// Name of the network filter.
pub(crate) const FILTER: &str = "envoy.filters.network.http_connection_manager";
/// `server` header of gateways and of workloads that send none.
const SERVER_NAME: &str = "istio-envoy";

/// Where a connection manager stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Requests of the workload.
    Outbound,
    /// Requests to the workload.
    Inbound,
    /// Requests from outside.
    Gateway,
}

impl Place {
    /// Which end of a request the proxy is.
    pub fn side(self) -> Side {
        match self {
            Place::Outbound | Place::Gateway => Side::Client,
            Place::Inbound => Side::Server,
        }
    }
}

/// What differs from one connection manager to the next.
pub(crate) struct Options {
    pub place: Place,
    /// Prefix of statistics.
    pub stat_prefix: String,
    pub routes: RouteSource,
    pub protocol: Protocol,
    /// Authorization.
    pub authz: Vec<HttpFilter>,
    /// Filters that only this place needs, before the router.
    pub extra: Vec<HttpFilter>,
}

/// Where routes come from.
pub(crate) enum RouteSource {
    /// By name over the aggregated stream.
    Rds(String),
    /// Inside the message.
    Inline(Box<RouteConfiguration>),
}

/// The setting of a proxy by which it takes HTTP/1.0, as Istio has it.
const HTTP10: &str = "ISTIO_META_HTTP10";

/// The network filter.
pub(crate) fn filter(mesh: &MeshConfig, observe: &Observability, options: Options) -> listener::Filter {
    network_filter(FILTER, &manager(mesh, observe, options))
}

fn manager(mesh: &MeshConfig, observe: &Observability, options: Options) -> HttpConnectionManager {
    let reports = observe.side(options.place.side());
    let mut manager = HttpConnectionManager {
        stat_prefix: options.stat_prefix,
        use_remote_address: Some(options.place != Place::Inbound),
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".into(), ..Default::default() }],
        // Who asks whether to send a body is answered by the service, not by the proxy.
        proxy_100_continue: true,
        // Streams may be idle as long as their route lets them: long polls, server-sent events.
        stream_idle_timeout: Some(pb::zero()),
        access_log: reports.logs.clone(),
        tracing: reports.tracing.clone(),
        request_id_extension: reports.request_id.clone(),
        route_specifier: Some(match options.routes {
            RouteSource::Rds(name) => {
                RouteSpecifier::Rds(Rds { config_source: Some(pb::ads()), route_config_name: name })
            }
            RouteSource::Inline(routes) => RouteSpecifier::RouteConfig(*routes),
        }),
        ..Default::default()
    };
    if options.place == Place::Inbound && options.protocol.is_http2() {
        manager.http2_protocol_options = Some(Http2ProtocolOptions::default());
    }
    normalise(&mut manager, mesh);
    headers(&mut manager, options.place, &observe.proxy_config);
    if observe.keeps_case {
        manager.http_protocol_options.get_or_insert_default().header_key_format = Some(pb::header_case());
    }
    if observe.proxy_config.proxy_metadata.get(HTTP10).is_some_and(|value| value == "1") {
        manager.http_protocol_options.get_or_insert_default().accept_http_10 = true;
    }
    let mut filters: Vec<HttpFilter> = reports.http_metrics.clone().into_iter().collect();
    filters.extend(options.authz);
    if options.protocol == Protocol::GrpcWeb {
        filters.push(http_filter("envoy.filters.http.grpc_web", &GrpcWeb::default()));
    }
    filters.push(grpc_stats());
    filters.push(http_filter("envoy.filters.http.fault", &HttpFault::default()));
    filters.push(http_filter("envoy.filters.http.cors", &Cors::default()));
    filters.extend(options.extra);
    filters.push(router(&observe.proxy_config));
    manager.http_filters = filters;
    manager
}

/// Path normalisation happens here once: routing and authorization see the same path.
fn normalise(manager: &mut HttpConnectionManager, mesh: &MeshConfig) {
    let kind = mesh.path_normalization.as_ref().map(|p| p.normalization).unwrap_or_default();
    manager.normalize_path = Some(kind != NormalizationType::None);
    manager.merge_slashes = matches!(kind, NormalizationType::MergeSlashes | NormalizationType::DecodeAndMergeSlashes);
    let slashes = match kind {
        NormalizationType::DecodeAndMergeSlashes => Slashes::UnescapeAndForward,
        _ => Slashes::KeepUnchanged,
    };
    manager.path_with_escaped_slashes_action = slashes as i32;
}

fn headers(manager: &mut HttpConnectionManager, place: Place, config: &MeshProxyConfig) {
    let settings = config.proxy_headers.as_ref();
    let server = settings.and_then(|h| h.server.as_ref());
    let (name, transformation) = match (server, place) {
        (Some(s), _) if s.disabled == Some(true) => (String::new(), ServerHeader::PassThrough),
        (Some(s), _) if !s.value.is_empty() => (s.value.clone(), ServerHeader::Overwrite),
        (_, Place::Outbound) => (String::new(), ServerHeader::Overwrite),
        (_, Place::Inbound) => (SERVER_NAME.into(), ServerHeader::PassThrough),
        (_, Place::Gateway) => (SERVER_NAME.into(), ServerHeader::Overwrite),
    };
    manager.server_name = name;
    manager.server_header_transformation = transformation as i32;
    if is_off(settings.and_then(|h| h.request_id.as_ref())) {
        manager.generate_request_id = Some(false);
    }
    manager.append_x_forwarded_port =
        settings.and_then(|h| h.x_forwarded_port.as_ref()).is_some_and(|h| h.enabled == Some(true));
    match place {
        Place::Outbound => trust_workload(manager),
        Place::Inbound => inbound_certificates(manager, config),
        Place::Gateway => gateway_topology(manager, config),
    }
}

/// The client of the outbound side is the workload itself: its word about time limits and retries counts
/// (`x-envoy-upstream-rq-timeout-ms` and its kin), as with Istio's `PILOT_SIDECAR_USE_REMOTE_ADDRESS`. What it tells about
/// its own clients goes on as it is: one trusted hop, no address added, and its request ids kept.
fn trust_workload(manager: &mut HttpConnectionManager) {
    manager.xff_num_trusted_hops = 1;
    manager.skip_xff_append = true;
    manager.preserve_external_request_id = true;
    let all = |address: &str| CidrRange { address_prefix: address.into(), prefix_len: Some(0) };
    manager.internal_address_config =
        Some(InternalAddressConfig { unix_sockets: false, cidr_ranges: vec![all("0.0.0.0"), all("::")] });
}

fn is_off(switch: Option<&HeaderSwitch>) -> bool {
    switch.is_some_and(|s| s.disabled == Some(true))
}

/// The workload is told who called, and through whom.
fn inbound_certificates(manager: &mut HttpConnectionManager, config: &MeshProxyConfig) {
    let settings = config.proxy_headers.as_ref();
    let forward = settings.map(|h| h.forwarded_client_cert).unwrap_or_default();
    manager.forward_client_cert_details = forward_details(forward, Forward::AppendForward) as i32;
    let details = settings.and_then(|h| h.set_current_client_cert_details.clone()).unwrap_or_default();
    manager.set_current_client_cert_details = Some(SetCurrentClientCertDetails {
        subject: Some(details.subject != Some(false)),
        cert: details.cert == Some(true),
        chain: details.chain == Some(true),
        dns: details.dns != Some(false),
        uri: details.uri != Some(false),
        ..Default::default()
    });
}

/// What of the headers from outside is believed, as the user says what is in front.
fn gateway_topology(manager: &mut HttpConnectionManager, config: &MeshProxyConfig) {
    let topology = config.gateway_topology.as_ref();
    manager.xff_num_trusted_hops = topology.map_or(0, |t| t.num_trusted_proxies);
    let forward = topology.map(|t| t.forward_client_cert_details).unwrap_or_default();
    let forward = forward_details(forward, Forward::SanitizeSet);
    manager.forward_client_cert_details = forward as i32;
    if matches!(forward, Forward::AppendForward | Forward::SanitizeSet) {
        manager.set_current_client_cert_details = Some(SetCurrentClientCertDetails {
            subject: Some(true),
            cert: true,
            dns: true,
            uri: true,
            ..Default::default()
        });
    }
    manager.http_protocol_options = Some(Http1ProtocolOptions::default());
}

fn forward_details(given: ForwardClientCertDetails, default: Forward) -> Forward {
    match given {
        ForwardClientCertDetails::Undefined => default,
        ForwardClientCertDetails::Sanitize => Forward::Sanitize,
        ForwardClientCertDetails::ForwardOnly => Forward::ForwardOnly,
        ForwardClientCertDetails::AppendForward => Forward::AppendForward,
        ForwardClientCertDetails::SanitizeSet => Forward::SanitizeSet,
        ForwardClientCertDetails::AlwaysForwardOnly => Forward::AlwaysForwardOnly,
    }
}

fn grpc_stats() -> HttpFilter {
    let config = GrpcStats {
        emit_filter_state: true,
        per_method_stat_specifier: Some(filter_config::PerMethodStatSpecifier::StatsForAllMethods(false)),
        ..Default::default()
    };
    http_filter("envoy.filters.http.grpc_stats", &config)
}

fn router(config: &MeshProxyConfig) -> HttpFilter {
    let debug = config.proxy_headers.as_ref().and_then(|h| h.envoy_debug_headers.as_ref());
    let config = Router { suppress_envoy_headers: is_off(debug), ..Default::default() };
    http_filter("envoy.filters.http.router", &config)
}
