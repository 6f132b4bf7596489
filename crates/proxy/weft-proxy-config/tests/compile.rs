//! Fields of listeners and clusters: what they become, what is refused, what is left out and reported.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod common;

use common::{accept, update};
use std::sync::Arc;
use std::time::Duration;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_proto::envoy::config::listener::v3::Listener as ListenerMessage;
use weft_proxy_config::{
    Codec, ConfigBuilder, Discovery, EscapedSlashes, ForwardClientCert, HttpConnectionManager, HttpFilter, LbPolicy,
    Listener, LogFilter, LogFormat, LogSink, LookupFamily, NetworkFilter, ServerHeader, TagSource, TcpCluster,
    Terminal, TraceProtocol, TraceTag, UpstreamProtocol,
};

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const ROUTER: &str =
    r#"{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}"#;

/// A listener with these fields, and one chain with these filters.
fn listener(fields: &str, chain: &str, filters: &str) -> String {
    format!(
        "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}, {fields} filter_chains: [{{{chain} filters: [{filters}]}}]}}"
    )
}

fn tcp(fields: &str) -> String {
    format!("{{name: t, typed_config: {{'@type': {TCP}, stat_prefix: t, {fields}}}}}")
}

fn http(fields: &str, filters: &str) -> String {
    let routes = "route_config: {name: r, virtual_hosts: [{name: h, domains: ['*']}]}";
    format!(
        "{{name: h, typed_config: {{'@type': {HCM}, stat_prefix: h, {routes}, http_filters: [{filters} {ROUTER}] {fields}}}}}"
    )
}

/// Compiles; what was refused and what was left out.
fn compile(yaml: &str) -> (Option<Arc<Listener>>, Vec<String>) {
    let mut builder = ConfigBuilder::default();
    let applied = builder.apply(&update::<ListenerMessage>(&[("l", yaml)], &[]));
    let errors = applied.errors.iter().map(ToString::to_string).collect();
    (applied.snapshot.listeners.get("l").cloned(), errors)
}

fn good(yaml: &str) -> Arc<Listener> {
    let (listener, errors) = compile(yaml);
    assert_eq!(errors, Vec::<String>::new(), "{yaml}");
    listener.unwrap()
}

fn manager(fields: &str, filters: &str) -> Arc<HttpConnectionManager> {
    match &good(&listener("", "", &http(fields, filters))).chains[0].terminal {
        Terminal::Http(manager) => manager.clone(),
        Terminal::Tcp(_) => panic!("is HTTP"),
    }
}

#[test]
fn listener_fields() {
    let l = good(&listener("", "", &tcp("cluster: c")));
    assert!(l.bind && !l.use_original_dst && l.reuse_port && !l.transparent);
    let l = good(&listener(
        "bind_to_port: false, use_original_dst: true, transparent: true, traffic_direction: INBOUND, listener_filters_timeout: 0s, continue_on_listener_filters_timeout: true, additional_addresses: [{address: {pipe: {path: /x}}}],",
        "filter_chain_match: {destination_port: 80, prefix_ranges: [{address_prefix: 10.1.2.3, prefix_len: 16}], server_names: ['*.A.com', b], transport_protocol: tls, application_protocols: [h2], source_type: EXTERNAL, source_ports: [7]}, name: n1, transport_socket_connect_timeout: 2s,",
        &tcp("cluster: c"),
    ));
    assert!(!l.bind && l.use_original_dst && l.transparent && l.inspect.continue_on_timeout);
    assert_eq!((l.addresses.len(), l.inspect.timeout), (2, Some(Duration::ZERO)));
    let chain = &l.chains[0];
    assert_eq!((&*chain.name, chain.handshake_timeout), ("n1", Some(Duration::from_secs(2))));
    assert_eq!(chain.matcher.destination[0].to_string(), "10.1.0.0/16");
    assert_eq!(chain.matcher.server_names, ["*.a.com".into(), "b".into()]);
    assert_eq!((chain.matcher.source_local, chain.matcher.source_ports.as_slice()), (Some(false), &[7][..]));
}

#[test]
fn inspectors_by_port() {
    let tls = "name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}";
    let http = "name: http, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}";
    let dst = "{name: dst, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}";
    let range = |port: u16| format!("{{destination_port_range: {{start: {port}, end: {}}}}}", port + 1);
    let with = |tls_off: &str, http_off: &str| {
        let fields = format!("listener_filters: [{dst}, {{{tls} {tls_off}}}, {{{http} {http_off}}}],");
        good(&listener(&fields, "", &tcp("cluster: c"))).inspect.clone()
    };
    let all = with("", "");
    assert!(all.original_dst);
    assert_eq!(all.at(80), (true, true));
    let off = with(
        &format!(", filter_disabled: {}", range(81)),
        &format!(", filter_disabled: {{or_match: {{rules: [{}, {}]}}}}", range(81), range(82)),
    );
    assert_eq!([80, 81, 82].map(|p| off.at(p)), [(true, true), (false, false), (true, false)]);
    let only = with("", &format!(", filter_disabled: {{not_match: {}}}", range(80)));
    assert_eq!([80, 81].map(|p| only.at(p)), [(true, true), (true, false)]);
}

#[test]
fn tcp_fields() {
    let proxy = |fields: &str| match &good(&listener("", "", &tcp(fields))).chains[0].terminal {
        Terminal::Tcp(proxy) => proxy.clone(),
        Terminal::Http(_) => panic!("is TCP"),
    };
    let default = proxy("cluster: c");
    assert!(matches!(&default.cluster, TcpCluster::One(name) if &**name == "c"));
    assert_eq!((default.idle_timeout, default.max_connect_attempts), (Some(Duration::from_secs(3600)), 1));
    let set = proxy(
        "weighted_clusters: {clusters: [{name: a, weight: 1}, {name: b, weight: 3}]}, idle_timeout: 0s, max_connect_attempts: 3, hash_policy: [{source_ip: {}}], max_downstream_connection_duration: 9s",
    );
    assert!(matches!(&set.cluster, TcpCluster::Weighted(list, 4) if list.len() == 2));
    assert_eq!((set.idle_timeout, set.max_duration, set.hash_source_ip), (None, Some(Duration::from_secs(9)), true));
}

#[test]
fn network_filters_before_the_last() {
    let rbac = "{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: tcp., rules: {policies: {p: {permissions: [{any: true}], principals: [{any: true}]}}}}}";
    let limit = "{name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit, stat_prefix: l, max_connections: 5}}";
    let sni = "{name: s, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.sni_cluster.v3.SniCluster}}";
    let telemetry = "{name: t, typed_config: {'@type': type.googleapis.com/weft.v1.TcpTelemetry, reporter: DESTINATION, report_interval: 3s}}";
    let forward = "{name: forward_downstream_sni, typed_config: {'@type': type.googleapis.com/io.istio.tcp.forward_downstream_sni.v1.Config}}";
    let verify =
        "{name: sni_verifier, typed_config: {'@type': type.googleapis.com/io.istio.tcp.sni_verifier.v1.Config}}";
    let all = format!("{rbac}, {limit}, {sni}, {forward}, {verify}, {telemetry}");
    let l = good(&listener("", "", &format!("{all}, {}", tcp("cluster: c"))));
    let [
        NetworkFilter::Rbac(_),
        NetworkFilter::ConnectionLimit(5),
        NetworkFilter::SniCluster,
        NetworkFilter::ForwardSni,
        NetworkFilter::VerifySni,
        NetworkFilter::Telemetry(t),
    ] = l.chains[0].filters.as_slice()
    else {
        panic!("{:?}", l.chains[0].filters)
    };
    assert_eq!((t.destination, t.report_interval), (true, Some(Duration::from_secs(3))));
}

#[test]
fn manager_fields() {
    let m = manager("", "");
    assert_eq!((m.codec, m.generate_request_id, m.use_remote_address), (Codec::Auto, true, false));
    assert_eq!((m.server_name.as_deref(), m.server_header), (Some("envoy"), ServerHeader::Overwrite));
    assert!(!m.normalize.rfc3986);
    let limits = &m.limits;
    assert_eq!((limits.max_header_bytes, limits.max_headers), (60 * 1024, 100));
    assert_eq!(
        (limits.idle_timeout, limits.stream_idle_timeout),
        (Some(Duration::from_secs(3600)), Some(Duration::from_secs(300)))
    );
    assert_eq!(limits.request_timeout, None);

    let m = manager(
        ", codec_type: HTTP2, normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD,
          use_remote_address: true, xff_num_trusted_hops: 2, skip_xff_append: true, forward_client_cert_details: APPEND_FORWARD,
          set_current_client_cert_details: {subject: true, dns: true, uri: true}, generate_request_id: false, server_header_transformation: PASS_THROUGH,
          upgrade_configs: [{upgrade_type: WebSocket}, {upgrade_type: x, enabled: false}], http_protocol_options: {accept_http_10: true},
          strip_any_host_port: true, strip_trailing_host_dot: true, max_request_headers_kb: 96, stream_idle_timeout: 0s,
          common_http_protocol_options: {idle_timeout: 0s, max_headers_count: 200, max_requests_per_connection: 9}, via: v,
          http2_protocol_options: {max_concurrent_streams: 7, initial_stream_window_size: 65536}, append_x_forwarded_port: true",
        "",
    );
    assert_eq!((m.codec, m.normalize.rfc3986, m.normalize.merge_slashes), (Codec::Http2, true, true));
    assert_eq!(m.normalize.escaped_slashes, EscapedSlashes::UnescapeAndForward);
    assert!(m.use_remote_address && m.skip_xff_append && m.accept_http_10 && m.strip_port && m.strip_trailing_dot);
    assert!(m.append_x_forwarded_port && !m.generate_request_id && !m.suppress_envoy_headers);
    assert_eq!((m.xff_trusted_hops, m.xff_cert, m.via.as_deref()), (2, ForwardClientCert::AppendForward, Some("v")));
    assert!(m.xff_cert_details.subject && m.xff_cert_details.dns && m.xff_cert_details.uri && !m.xff_cert_details.cert);
    assert_eq!((m.server_name.as_deref(), m.upgrades.as_slice()), (None, &["websocket".into()][..]));
    let limits = &m.limits;
    assert_eq!(
        (limits.max_header_bytes, limits.max_headers, limits.max_requests_per_connection),
        (96 * 1024, 200, Some(9))
    );
    assert_eq!((limits.idle_timeout, limits.stream_idle_timeout), (None, None));
    assert_eq!((limits.http2_max_streams, limits.http2_stream_window), (7, 65536));
}

#[test]
fn http_filters() {
    let typed = |name: &str, kind: &str, fields: &str| {
        format!("{{name: {name}, typed_config: {{'@type': type.googleapis.com/{kind} {fields}}}}},")
    };
    let list = [
        typed("t", "weft.v1.Telemetry", ", reporter: DESTINATION, overrides: [{metric: requests_total, tags: {a: b}}]"),
        typed("r", "envoy.extensions.filters.http.rbac.v3.RBAC", ", rules: {action: DENY}"),
        typed("g", "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig", ""),
        typed("w", "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb", ""),
        typed("f", "envoy.extensions.filters.http.fault.v3.HTTPFault", ", abort: {percentage: {numerator: 100}, http_status: 503}"),
        typed("c", "envoy.extensions.filters.http.cors.v3.Cors", ""),
        typed("m", "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation", ", mutations: {request_mutations: [{remove: a}, {append: {header: {key: b, value: c}}}]}"),
        "{name: optional, is_optional: true, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}},".into(),
    ];
    let m = manager("", &list.concat());
    let [
        HttpFilter::Telemetry(telemetry),
        HttpFilter::Rbac(_),
        HttpFilter::GrpcStats,
        HttpFilter::GrpcWeb,
        HttpFilter::Fault(Some(_)),
        HttpFilter::Cors,
        HttpFilter::HeaderMutation(ops),
    ] = m.filters.as_slice()
    else {
        panic!("{:?}", m.filters)
    };
    assert!(telemetry.destination);
    assert_eq!(telemetry.overrides[0].tags, [("a".into(), "b".into())]);
    assert_eq!((ops.request.remove.len(), ops.request.add.len()), (1, 1));
}

#[test]
fn access_logs() {
    let file = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
    let stderr = "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog";
    let m = manager(
        &format!(
            ", access_log: [
              {{name: a, typed_config: {{'@type': {file}, path: /dev/stdout, log_format: {{text_format_source: {{inline_string: \"%RESPONSE_CODE%\\n\"}}}}}}}},
              {{name: b, filter: {{and_filter: {{filters: [{{status_code_filter: {{comparison: {{op: GE, value: {{default_value: 400}}}}}}}}, {{response_flag_filter: {{flags: [NR]}}}}]}}}},
                typed_config: {{'@type': {file}, path: /var/log/x, log_format: {{omit_empty_values: true, json_format: {{code: \"%RESPONSE_CODE%\", deep: {{m: \"%REQ(:METHOD)%\"}}}}}}}}}},
              {{name: c, typed_config: {{'@type': {stderr}}}}}]"
        ),
        "",
    );
    let [a, b, c] = &*m.access_logs else { panic!("{:?}", m.access_logs) };
    assert_eq!((&a.sink, &b.sink, &c.sink), (&LogSink::Stdout, &LogSink::File("/var/log/x".into()), &LogSink::Stderr));
    assert!(matches!(&a.format, LogFormat::Text(text) if &**text == "%RESPONSE_CODE%\n"));
    assert!(matches!(&b.format, LogFormat::Json(json) if json["deep"]["m"] == "%REQ(:METHOD)%"));
    assert!(matches!(c.format, LogFormat::Default) && b.omit_empty && !a.omit_empty);
    let Some(LogFilter::And(both)) = b.filter.as_deref() else { panic!("{:?}", b.filter) };
    assert!(
        matches!(both.as_slice(), [LogFilter::Status(std::cmp::Ordering::Greater, false, 400), LogFilter::Flags(f)] if f.len() == 1)
    );

    for (log, reason) in [
        ("{name: x, typed_config: {'@type': FILE, path: /x, log_format: {text_format: '%NOPE%'}}}", "NOPE"),
        ("{name: x, typed_config: {'@type': FILE}}", "path: must name a file"),
        (
            "{name: x, filter: {extension_filter: {name: cel}}, typed_config: {'@type': FILE, path: /x}}",
            "filter: is of a kind",
        ),
        (
            "{name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig}}",
            "not supported",
        ),
    ] {
        let yaml = listener("", "", &http(&format!(", access_log: [{}]", log.replace("FILE", file)), ""));
        let (listener, errors) = compile(&yaml);
        assert!(
            errors.len() == 1 && errors[0].contains(reason) && errors[0].contains("access_log[0]"),
            "{log}: {errors:?}"
        );
        let listener = listener.unwrap();
        let Terminal::Http(manager) = &listener.chains[0].terminal else { panic!("is HTTP") };
        assert!(manager.access_logs.is_empty(), "traffic goes on without the log");
    }
}

#[test]
fn tracing() {
    let zipkin = "{name: z, typed_config: {'@type': type.googleapis.com/envoy.config.trace.v3.ZipkinConfig, collector_cluster: c, collector_endpoint: /api/v2/spans, collector_endpoint_version: HTTP_JSON}}";
    let m = manager(
        &format!(
            ", tracing: {{random_sampling: {{value: 1.5}}, provider: {zipkin}, custom_tags: [{{tag: a, literal: {{value: '5%'}}}}, {{tag: b, request_header: {{name: x-b, default_value: none}}}}, {{tag: c, metadata: {{kind: {{request: {{}}}}, metadata_key: {{key: rbac, path: [{{key: dry}}, {{key: name}}]}}}}}}]}}"
        ),
        "",
    );
    let tracing = m.tracing.as_ref().unwrap();
    assert_eq!((tracing.random_sampling, tracing.overall_sampling, tracing.max_path_length), (15_000, 1_000_000, 256));
    let provider = tracing.provider.as_ref().unwrap();
    assert_eq!((&*provider.cluster, &*provider.path, &*provider.host), ("c", "/api/v2/spans", "c"));
    assert_eq!(provider.protocol, TraceProtocol::Zipkin { shared: true, long_ids: false, w3c: false });
    assert!(tracing.by_request_id && tracing.propagate);
    let format = |name: &str, format: &str, default: Option<&str>| TraceTag {
        name: name.into(),
        source: TagSource::Format(format.into()),
        default: default.map(Into::into),
    };
    let key = ["dry".into(), "name".into()];
    let metadata = TraceTag { name: "c".into(), source: TagSource::Metadata("rbac".into(), key.into()), default: None };
    assert_eq!(tracing.tags, [format("a", "5%%", None), format("b", "%REQ(x-b)%", Some("none")), metadata]);
    let otlp = "{name: o, typed_config: {'@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, service_name: s, grpc_service: {envoy_grpc: {cluster_name: c}}}}";
    let m = manager(&format!(", tracing: {{provider: {otlp}}}"), "");
    let provider = m.tracing.as_ref().unwrap().provider.as_ref().unwrap();
    assert_eq!((provider.protocol, &*provider.cluster, &*provider.service), (TraceProtocol::OtlpGrpc, "c", "s"));
    let http = "{name: o, typed_config: {'@type': type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig, http_service: {http_uri: {uri: 'http://h:4318/v1/traces', cluster: c, timeout: 2s}, request_headers_to_add: [{header: {key: x-key, value: v}}]}}}";
    let m = manager(&format!(", tracing: {{provider: {http}}}"), "");
    let provider = m.tracing.as_ref().unwrap().provider.as_ref().unwrap();
    assert_eq!(
        (provider.protocol, &*provider.host, &*provider.path),
        (TraceProtocol::OtlpHttp, "h:4318", "/v1/traces")
    );
    assert_eq!((provider.timeout, provider.headers.len()), (Duration::from_secs(2), 1));
}

#[test]
fn refused_listeners() {
    let t = tcp("cluster: c");
    let lua = "{name: lua, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua}},";
    let deep = (0..20).fold("{any_match: true}".to_string(), |inner, _| format!("{{not_match: {inner}}}"));
    let tls_inspector = "'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
    for (yaml, want) in [
        (listener("freebind: true,", "", &t), "freebind: is not supported"),
        (listener("udp_listener_config: {},", "", &t), "udp_listener_config: is not supported"),
        (
            listener("", "filter_chain_match: {address_suffix: x},", &t),
            "filter_chains[0].filter_chain_match.address_suffix",
        ),
        (listener("", "filter_chain_match: {destination_port: 70000},", &t), "destination_port: 70000 is not a port"),
        (listener("", "filter_chain_match: {server_names: ['a*b']},", &t), "server_names[0]"),
        (listener("", "filter_chain_match: {transport_protocol: quic},", &t), "transport_protocol: \"quic\""),
        (listener("", "filter_chain_match: {prefix_ranges: [{address_prefix: x}]},", &t), "prefix_ranges[0]"),
        (listener("", "", ""), "filters: must end in an HTTP connection manager or a TCP proxy"),
        (listener("", "", &format!("{t}, {t}")), "filters[0].typed_config: network filter \"t\""),
        (listener("", "", &tcp("cluster: c, tunneling_config: {hostname: '%X%'}")), "is not HOST:PORT"),
        (listener("", "", &tcp("weighted_clusters: {clusters: [{name: a, weight: 0}]}")), "the weights add up to 0"),
        (listener("", "", &tcp("")), "must name a cluster"),
        (
            listener("", "", &http("", lua)),
            "http_filters[0].typed_config: HTTP filter \"lua\" (type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua) is not supported",
        ),
        (listener("", "", &http(", codec_type: HTTP3", "")), "codec_type: must be AUTO, HTTP1 or HTTP2"),
        (
            listener("", "", &http(", local_reply_config: {mappers: [{status_code: 1}]}", "")),
            "local_reply_config: is not supported",
        ),
        (
            listener("", "", &http(", http_protocol_options: {allow_chunked_length: true}", "")),
            "allow_chunked_length: must be false",
        ),
        (
            listener(
                "",
                "",
                &http(", common_http_protocol_options: {headers_with_underscores_action: DROP_HEADER}", ""),
            ),
            "headers_with_underscores_action",
        ),
        (
            listener(
                "",
                "",
                &format!(
                    "{{name: h, typed_config: {{'@type': {HCM}, rds: {{route_config_name: r, config_source: {{path: /x}}}}, http_filters: [{ROUTER}]}}}}"
                ),
            ),
            "rds.config_source: must be ads",
        ),
        (
            listener(
                "",
                "",
                &format!(
                    "{{name: h, typed_config: {{'@type': {HCM}, scoped_routes: {{name: r}}, http_filters: [{ROUTER}]}}}}"
                ),
            ),
            "scoped_routes: is not supported",
        ),
        (
            listener(
                "",
                "",
                &format!(
                    "{{name: h, typed_config: {{'@type': {HCM}, rds: {{route_config_name: r, config_source: {{ads: {{}}}}}}}}}}"
                ),
            ),
            "http_filters: must end in the router",
        ),
        (
            listener(
                "",
                "transport_socket: {name: q, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}},",
                &t,
            ),
            "transport_socket.typed_config: transport socket \"q\"",
        ),
        (
            listener(
                "",
                "transport_socket: {name: q, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext}},",
                &t,
            ),
            "a TLS server needs",
        ),
        (
            listener(
                "listener_filters: [{name: o, typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog}}],",
                "",
                &t,
            ),
            "listener filter \"o\"",
        ),
        (
            listener(
                &format!(
                    "listener_filters: [{{name: t, typed_config: {{{tls_inspector}}}, filter_disabled: {deep}}}],"
                ),
                "",
                &t,
            ),
            "nested deeper",
        ),
        (
            listener(
                &format!(
                    "listener_filters: [{{name: t, typed_config: {{{tls_inspector}}}, filter_disabled: {{destination_port_range: {{start: 1, end: 60000}}}}}}],"
                ),
                "",
                &t,
            ),
            "names more than",
        ),
        (format!("{{name: l, filter_chains: [{{filters: [{t}]}}]}}"), "address: must be set"),
        (
            format!(
                "{{name: l, address: {{pipe: {{path: /x}}}}, filter_chains: [{{filters: [{t}]}}, {{filters: [{t}]}}]}}"
            ),
            "filter_chains[1].filter_chain_match: it has the same conditions as filter_chains[0]",
        ),
        ("{name: l, address: {pipe: {path: /x}}}".into(), "filter_chains: must hold at least one"),
    ] {
        let (listener, errors) = compile(&yaml);
        assert!(listener.is_none(), "{yaml}");
        assert!(errors.iter().any(|e| e.starts_with("listener l: ") && e.contains(want)), "{want}: {errors:?}");
    }
}

#[test]
fn bad_route_does_not_take_the_listener_down() {
    let routes = "route_config: {name: r, virtual_hosts: [{name: h, domains: ['*'], routes: [{match: {prefix: /a}, route: {cluster: c, hedge_policy: {}}}, {match: {prefix: /}, route: {cluster: c}}]}]}";
    let filter =
        format!("{{name: h, typed_config: {{'@type': {HCM}, stat_prefix: h, {routes}, http_filters: [{ROUTER}]}}}}");
    let (listener, errors) = compile(&listener("", "", &filter));
    assert!(listener.is_some());
    assert_eq!(
        errors,
        [
            "listener l: filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].route.hedge_policy: is not supported by weft-proxy; remove the field"
        ]
    );
}

fn cluster(fields: &str) -> (Option<Arc<weft_proxy_config::Cluster>>, Vec<String>) {
    let mut builder = ConfigBuilder::default();
    let applied = builder.apply(&update::<Cluster>(&[("c", &format!("{{name: c, {fields}}}"))], &[]));
    (applied.snapshot.clusters.get("c").cloned(), applied.errors.iter().map(ToString::to_string).collect())
}

#[test]
fn cluster_fields() {
    let (c, errors) = cluster("type: STATIC");
    let c = c.unwrap();
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(
        (c.connect_timeout, &c.lb, &c.protocol),
        (Duration::from_secs(5), &LbPolicy::RoundRobin, &UpstreamProtocol::Http1)
    );
    assert_eq!((c.limits.default.max_connections, c.limits.default.max_retries, c.panic_threshold), (1024, 3, 50));
    assert_eq!(c.limits.idle_timeout, Some(Duration::from_secs(3600)));
    let options = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, KIND}}";
    let with = |kind: &str| cluster(&options.replace("KIND", kind)).0.unwrap();
    assert_eq!(
        with("explicit_http_config: {http2_protocol_options: {max_concurrent_streams: 5}}").protocol,
        UpstreamProtocol::Http2
    );
    assert_eq!(
        with("explicit_http_config: {http2_protocol_options: {max_concurrent_streams: 5}}")
            .limits
            .max_concurrent_streams,
        5
    );
    assert_eq!(with("use_downstream_protocol_config: {}").protocol, UpstreamProtocol::UseDownstream);
    assert_eq!(with("auto_config: {}").protocol, UpstreamProtocol::Auto);
    let c = with(
        "explicit_http_config: {http_protocol_options: {}}, common_http_protocol_options: {idle_timeout: 7s, max_requests_per_connection: 3}",
    );
    assert_eq!((c.limits.idle_timeout, c.limits.max_requests_per_connection), (Some(Duration::from_secs(7)), 3));
    for (fields, lb) in [
        ("lb_policy: RANDOM", LbPolicy::Random),
        ("lb_policy: LEAST_REQUEST", LbPolicy::LeastRequest { choices: 2 }),
        ("lb_policy: MAGLEV", LbPolicy::Maglev { table_size: 65537 }),
        (
            "lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 9}",
            LbPolicy::RingHash { min_size: 9, max_size: 8 << 20 },
        ),
    ] {
        assert_eq!(cluster(fields).0.unwrap().lb, lb, "{fields}");
    }
    for (fields, discovery) in [
        ("type: EDS, eds_cluster_config: {service_name: s, eds_config: {ads: {}}}", "Eds(\"s\")"),
        ("type: EDS, eds_cluster_config: {eds_config: {ads: {}}}", "Eds(\"c\")"),
        (
            "type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, original_dst_lb_config: {upstream_port_override: 8080}",
            "OriginalDst(Some(8080))",
        ),
        ("type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED", "OriginalDst(None)"),
    ] {
        assert_eq!(format!("{:?}", cluster(fields).0.unwrap().discovery), discovery, "{fields}");
    }
    let (c, errors) = cluster(
        "type: STRICT_DNS, dns_refresh_rate: 9s, load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a.example, port_value: 80}}}}]}]}, circuit_breakers: {thresholds: [{retry_budget: {}}]}",
    );
    assert!(
        matches!(&c.as_ref().unwrap().discovery, Discovery::StrictDns(set, d) if d.as_secs() == 9 && set.localities.len() == 1)
    );
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(c.as_ref().unwrap().lookup, LookupFamily::Auto);
    assert_eq!(cluster("type: STRICT_DNS, dns_lookup_family: V4_ONLY").0.unwrap().lookup, LookupFamily::V4Only);
    let forward = r#"lb_policy: CLUSTER_PROVIDED, cluster_type: {name: envoy.clusters.dynamic_forward_proxy, typed_config: {"@type": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, dns_cache_config: {name: c, dns_lookup_family: ALL}}}"#;
    assert_eq!(cluster(forward).0.unwrap().lookup, LookupFamily::All);
    assert_eq!(c.unwrap().limits.default.retry_budget.map(|b| (b.percent, b.least)), Some((20.0, 3)));
}

#[test]
fn limits_of_priorities_and_endpoints() {
    let breakers = |text: &str| cluster(&format!("circuit_breakers: {{{text}}}"));
    let (c, errors) = breakers(
        "thresholds: [{track_remaining: true, max_requests: 7}, {priority: HIGH, max_connections: 9}], per_host_thresholds: [{max_connections: 3}]",
    );
    let limits = &c.unwrap().limits;
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(
        (limits.default.max_requests, limits.default.max_connections, limits.default.track_remaining),
        (7, 1024, true)
    );
    assert_eq!((limits.high.max_requests, limits.high.max_connections, limits.high.track_remaining), (1024, 9, false));
    assert_eq!(limits.max_connections_per_host, 3);
    for (text, field) in [
        ("thresholds: [{max_connection_pools: 1}]", "circuit_breakers.thresholds[0].max_connection_pools"),
        ("per_host_thresholds: [{max_requests: 1}]", "circuit_breakers.per_host_thresholds[0].max_requests"),
    ] {
        let (c, errors) = breakers(text);
        assert!(c.is_none() && errors.iter().any(|e| e.contains(field)), "{text}: {errors:?}");
    }
}

#[test]
fn detection_and_subsets() {
    let (c, errors) = cluster(
        "outlier_detection: {success_rate_stdev_factor: 1500, enforcing_success_rate: 30, always_eject_one_host: true}, lb_subset_config: {fallback_policy: ANY_ENDPOINT, subset_selectors: [{keys: [b, a]}]}",
    );
    assert!(errors.is_empty(), "{errors:?}");
    let c = c.unwrap();
    let (outlier, subsets) = (c.outlier.as_ref().unwrap(), c.subsets.as_ref().unwrap());
    assert_eq!((outlier.success.factor, outlier.success.volume, outlier.failure.volume), (1.5, 100, 50));
    assert_eq!((outlier.enforcing, outlier.always_one), ([100, 0, 100, 30, 0, 100, 0], true));
    assert_eq!(subsets.selectors[0].keys, vec!["a".into(), "b".into()]);
    for (text, field) in [
        ("outlier_detection: {max_ejection_time_jitter: 1s}", "outlier_detection.max_ejection_time_jitter"),
        ("lb_subset_config: {panic_mode_any: true}", "lb_subset_config.panic_mode_any"),
        (
            "lb_subset_config: {subset_selectors: [{keys: [a], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [b]}]}",
            "lb_subset_config.subset_selectors[0].fallback_keys_subset",
        ),
    ] {
        let (_, errors) = cluster(text);
        assert!(errors.iter().any(|e| e.contains(field)), "{text}: {errors:?}");
    }
}

#[test]
fn refused_clusters() {
    let tls = |fields: &str| {
        format!(
            "transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, {fields}}}}}"
        )
    };
    for (fields, want) in [
        ("health_checks: [{timeout: 1s}]".to_string(), "health_checks[0].interval: must be set"),
        ("lb_subset_config: {list_as_any: true}".into(), "lb_subset_config"),
        ("load_balancing_policy: {policies: []}".into(), "load_balancing_policy"),
        ("cluster_type: {name: x}".into(), "cluster type \"x\""),
        ("connect_timeout: -1s".into(), "connect_timeout: must not be negative"),
        ("transport_socket: {name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext}}".into(), "transport_socket"),
        (tls("common_tls_context: {tls_certificates: [{certificate_chain: {filename: /none/such}}]}"), "/none/such"),
        (tls("common_tls_context: {combined_validation_context: {default_validation_context: {crl: {filename: /x}}, validation_context_sds_secret_config: {name: r}}}"), "crl"),
        (tls("common_tls_context: {validation_context: {verify_certificate_hash: [aa]}}"), "verify_certificate_hash"),
        (tls("common_tls_context: {validation_context: {match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: a}}]}}"), "trusted roots"),
        (tls("common_tls_context: {tls_params: {compliance_policies: [FIPS_202205]}}"), "compliance_policies"),
        (tls("common_tls_context: {validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {safe_regex: {regex: '('}}}]}}"), "match_typed_subject_alt_names[0].matcher.safe_regex.regex"),
        ("typed_extension_protocol_options: {x: {'@type': type.googleapis.com/envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions}}".into(), "typed_extension_protocol_options[\"x\"]"),
    ] {
        let (cluster, errors) = cluster(&fields);
        assert!(cluster.is_none(), "{fields}");
        assert!(errors.iter().any(|e| e.starts_with("cluster c: ") && e.contains(want)), "{fields}: {errors:?}");
    }
}

#[test]
fn endpoint_fields() {
    let mut builder = ConfigBuilder::default();
    let yaml = r#"
cluster_name: c
policy: {overprovisioning_factor: 200, drop_overloads: [{category: a, drop_percentage: {numerator: 5}}]}
endpoints:
- {priority: 1, locality: {region: r2}, lb_endpoints: [{endpoint: {address: {pipe: {path: /x}}}}]}
- priority: 0
  locality: {region: r, zone: z, sub_zone: s}
  load_balancing_weight: 9
  lb_endpoints:
  - {health_status: DRAINING, load_balancing_weight: 3, endpoint: {hostname: h, address: {socket_address: {address: 10.0.0.1, port_value: 80}}}, metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio}, istio: {workload: w}}}}
  - {health_status: UNHEALTHY, endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 80}}}, metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio}, istio: {workload: w}}}}
"#;
    let snapshot = accept(&mut builder, &update::<ClusterLoadAssignment>(&[("c", yaml)], &[])).snapshot;
    let set = &snapshot.endpoints["c"];
    assert_eq!((set.overprovisioning, set.drop, set.localities.len()), (200, 50_000, 2));
    let first = &set.localities[0];
    assert_eq!((&*first.locality, first.priority, first.weight), ("r/z/s", 0, 9));
    assert_eq!((first.endpoints[0].weight, first.endpoints[0].hostname.as_deref()), (3, Some("h")));
    assert_eq!(format!("{:?} {:?}", first.endpoints[0].health, first.endpoints[1].health), "Draining Unhealthy");
    assert!(Arc::ptr_eq(&first.endpoints[0].metadata, &first.endpoints[1].metadata), "equal metadata is stored once");
    assert_eq!(first.endpoints[0].metadata.workload, "w");
    let bad = "{cluster_name: c, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 70000}}}}]}]}";
    let applied = builder.apply(&update::<ClusterLoadAssignment>(&[("c", bad)], &[]));
    assert!(
        applied.refused[0].1.contains("endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value"),
        "{:?}",
        applied.refused
    );
    assert!(Arc::ptr_eq(&applied.snapshot.endpoints["c"], set));
}
