//! Spans as collectors read them: Zipkin's JSON, OpenTelemetry over HTTP and over gRPC; who is whose parent, what is sampled,
//! and what a collector that is away costs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::{Value, json};
use weft_interop_tests::backend::{Backend, get};
use weft_interop_tests::collector::Collector;
use weft_interop_tests::eventually;
use weft_interop_tests::proxy::{self, Proxy, free_port, merge, stat};

const TRACE: &str = "463ac35c9f6413ad48485a3953bb6124";
const SPAN: &str = "0020000000000001";

/// A tracer's configuration.
fn tracer(kind: &str) -> Value {
    let of = |message: &str, more: Value| {
        let mut typed = json!({"@type": format!("type.googleapis.com/envoy.config.trace.v3.{message}")});
        merge(&mut typed, &more);
        json!({"name": kind, "typed_config": typed})
    };
    let http = |path: &str| {
        json!({"http_uri": {"uri": format!("http://collector{path}"), "cluster": "collector", "timeout": "20s"},
            "request_headers_to_add": [{"header": {"key": "x-collector-key", "value": "secret"}}]})
    };
    match kind {
        "zipkin" => of(
            "ZipkinConfig",
            json!({"collector_service": http("/api/v2/spans"), "trace_id_128bit": true, "shared_span_context": false,
                "collector_endpoint_version": "HTTP_JSON"}),
        ),
        "otlp-http" => {
            of("OpenTelemetryConfig", json!({"service_name": "web.shop", "http_service": http("/v1/traces")}))
        }
        _ => of(
            "OpenTelemetryConfig",
            json!({"service_name": "web.shop", "grpc_service": {"envoy_grpc": {"cluster_name": "collector"}}}),
        ),
    }
}

struct Setup {
    port: u16,
    admin: u16,
    backend: Backend,
    _proxy: Proxy,
}

/// A proxy of that direction whose spans go to that port.
fn start(kind: &str, direction: &str, sampling: u32, collector: u16) -> Setup {
    let backend = Backend::start("app");
    let (port, admin) = (free_port(), free_port());
    let mut manager = proxy::all_to("app");
    manager["route_config"]["virtual_hosts"][0]["routes"][0]["decorator"] = json!({"operation": "web.shop:80/*"});
    let shadow = json!({"name": "envoy.filters.http.rbac", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "shadow_rules_stat_prefix": "istio_dry_run_deny_",
        "shadow_rules": {"action": "DENY", "policies": {"ns[foo]-policy[deny-all]-rule[0]": {
            "permissions": [{"any": true}], "principals": [{"any": true}]}}}}});
    let router = json!({"name": "envoy.filters.http.router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}});
    manager["http_filters"] = json!([shadow, router]);
    let dry_run = |name: &str, key: &str| {
        json!({"tag": name, "metadata": {"kind": {"request": {}}, "metadata_key": {
            "key": "envoy.filters.http.rbac", "path": [{"key": key}]}}})
    };
    manager["tracing"] = json!({
        "random_sampling": {"value": sampling}, "provider": tracer(kind), "max_path_tag_length": 8,
        "custom_tags": [
            {"tag": "user", "request_header": {"name": "x-user", "default_value": "unknown"}},
            {"tag": "fixed", "literal": {"value": "bar"}},
            dry_run("istio.authorization.dry_run.deny_policy.name", "istio_dry_run_deny_shadow_effective_policy_id"),
            dry_run("istio.authorization.dry_run.deny_policy.result", "istio_dry_run_deny_shadow_engine_result")]});
    let mut listener = proxy::listener("l", port, &manager, &json!({}));
    listener["traffic_direction"] = direction.into();
    let way = if kind == "otlp-grpc" { proxy::http2() } else { json!({}) };
    let mut proxy = Proxy::start(&json!({
        "node": {"id": "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local", "cluster": "web.shop"},
        "admin": proxy::admin(admin),
        "static_resources": {"listeners": [listener], "clusters": [
            proxy::cluster("app", backend.port, &json!({})), proxy::cluster("collector", collector, &way)]}}));
    proxy.until_listening(port);
    Setup { port, admin, backend, _proxy: proxy }
}

/// The value of a header that the backend saw.
fn seen(setup: &Setup, name: &str) -> Option<String> {
    let lines = setup.backend.requests.recv_timeout(weft_interop_tests::LIMIT).unwrap();
    lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_string))
}

fn arrives(kind: &str) {
    let mut collector = Collector::start();
    let setup = start(kind, "OUTBOUND", 100, collector.port);
    let headers = [("x-user", "ann"), ("user-agent", "test")];
    assert_eq!(get(setup.port, "web.example", "/a-long-path", &headers).unwrap().0, 200);
    let span = collector.span("a span", |span| span["trace"].is_string().then(|| span.clone()));
    assert_eq!(span["protocol"], kind);
    assert_eq!(span["service"], "web.shop");
    assert_eq!((&span["name"], &span["kind"]), (&"web.shop:80/*".into(), &"CLIENT".into()));
    assert!(span["parent"].as_str().unwrap_or_default().is_empty(), "the first of its trace: {span}");
    assert!(span["micros"].as_i64().unwrap() > 0 && span["began"].as_i64().unwrap() > 1_700_000_000_000_000, "{span}");
    for (tag, want) in [
        ("http.method", "GET"),
        ("http.url", "http://web.example/a-long-"),
        ("http.status_code", "200"),
        ("http.protocol", "HTTP/1.1"),
        ("upstream_cluster", "app"),
        ("component", "proxy"),
        ("response_flags", "-"),
        ("user_agent", "test"),
        ("peer.address", "127.0.0.1"),
        ("node_id", "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local"),
        ("response_size", "3"),
        ("user", "ann"),
        ("fixed", "bar"),
        ("istio.authorization.dry_run.deny_policy.name", "ns[foo]-policy[deny-all]-rule[0]"),
        ("istio.authorization.dry_run.deny_policy.result", "denied"),
    ] {
        assert_eq!(span["tags"][tag], want, "{tag} in {span}");
    }
    assert!(span["tags"]["guid:x-request-id"].as_str().unwrap().as_bytes()[14] == b'9', "{span}");
    if kind == "zipkin" {
        assert_eq!(span["header"], "secret");
    }
    let name = if kind == "zipkin" { "tracing.zipkin.spans_sent" } else { "tracing.opentelemetry.spans_sent" };
    eventually("the span is counted", || match stat(setup.admin, name) {
        Ok(1..) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn zipkin() {
    arrives("zipkin");
}

#[test]
fn opentelemetry_over_http() {
    arrives("otlp-http");
}

#[test]
fn opentelemetry_over_grpc() {
    arrives("otlp-grpc");
}

#[test]
fn a_trace_goes_on() {
    let mut collector = Collector::start();
    let setup = start("zipkin", "INBOUND", 0, collector.port);
    // Nothing is sampled here but what the caller says is; its decision wins, and its operation names the span.
    let mut b3 = vec![("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")];
    b3.push(("x-envoy-decorator-operation", "told:80/*"));
    assert_eq!(get(setup.port, "web.example", "/", &b3).unwrap().0, 200);
    let lines = setup.backend.requests.recv_timeout(weft_interop_tests::LIMIT).unwrap();
    let header = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    assert_eq!(header("x-b3-traceid"), Some(TRACE));
    assert_eq!((header("x-b3-parentspanid"), header("x-b3-sampled")), (Some(SPAN), Some("1")));
    assert_eq!(header("x-envoy-decorator-operation"), None);
    let span = collector.span("a span", |span| span["trace"].is_string().then(|| span.clone()));
    assert_eq!((&span["trace"], &span["parent"]), (&TRACE.into(), &SPAN.into()));
    assert_eq!((&span["kind"], &span["name"]), (&"SERVER".into(), &"told:80/*".into()));
    assert_eq!(header("x-b3-spanid"), span["id"].as_str(), "the next span is part of ours");
    assert_eq!(span["tags"]["user"], "unknown", "the tag's default");
    // Not sampled: told so to the next hop, and not reported.
    assert_eq!(get(setup.port, "web.example", "/", &[]).unwrap().0, 200);
    assert_eq!(seen(&setup, "x-b3-sampled").as_deref(), Some("0"));
    eventually("one span is counted", || match stat(setup.admin, "tracing.zipkin.spans_sent") {
        Ok(1) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn w3c_goes_on() {
    let mut collector = Collector::start();
    let setup = start("otlp-grpc", "INBOUND", 0, collector.port);
    let parent = format!("00-{TRACE}-{SPAN}-01");
    assert_eq!(get(setup.port, "web.example", "/", &[("traceparent", &parent)]).unwrap().0, 200);
    let sent = seen(&setup, "traceparent").unwrap();
    let span = collector.span("a span", |span| span["trace"].is_string().then(|| span.clone()));
    assert_eq!((&span["trace"], &span["parent"]), (&TRACE.into(), &SPAN.into()));
    assert_eq!(sent, format!("00-{TRACE}-{}-01", span["id"].as_str().unwrap()));
}

#[test]
fn a_collector_that_is_away_costs_spans_alone() {
    // A port that nobody listens on.
    let setup = start("zipkin", "OUTBOUND", 100, free_port());
    for _ in 0..20 {
        assert_eq!(get(setup.port, "web.example", "/", &[]).unwrap().0, 200);
    }
    eventually("the drops are counted", || match stat(setup.admin, "tracing.zipkin.spans_dropped") {
        Ok(20..) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    eventually("the failure is counted", || match stat(setup.admin, "tracing.zipkin.reports_failed") {
        Ok(1..) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}
