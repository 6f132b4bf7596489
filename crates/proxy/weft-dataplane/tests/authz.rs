//! Tokens, external authorization and dry runs, from a client through the whole proxy.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use common::*;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use weft_proto::envoy::service::auth::v3 as auth;
use weft_tls::JwsSigner;

const ROUTER: &str = r#"{"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}"#;

/// A bootstrap whose listener `l` has these HTTP filters before the router.
fn bootstrap(hcm: &str, filters: &[Value], routes: &str, clusters: &[(&str, SocketAddr, &str)]) -> String {
    let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
    let filters = filters.iter().map(String::as_str).chain([ROUTER]).collect::<Vec<_>>().join(", ");
    let clusters: String = clusters.iter().map(|(name, addr, extra)| cluster(name, &[*addr], extra)).collect();
    format!(
        r#"static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: inbound_0.0.0.0_80, {hcm} route_config: {{name: r, virtual_hosts: [{{name: v, domains: ['*'], routes: {routes}}}]}}, http_filters: [{filters}]}}
  clusters:
{clusters}"#
    )
}

fn typed(name: &str, config: Value) -> Value {
    let mut config = config;
    config["@type"] = format!("type.googleapis.com/envoy.extensions.filters.http.{name}").into();
    json!({"name": name.split('.').next().unwrap(), "typed_config": config})
}

fn rbac(config: Value) -> Value {
    typed("rbac.v3.RBAC", config)
}

const TO_A: &str = r#"[{match: {prefix: "/"}, route: {cluster: a}}]"#;

fn token(key: &JwsSigner, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "k"})), part(claims));
    let signature = key.sign(text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn jwt_filter(key: &JwsSigner) -> Value {
    let (x, y) = key.point();
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let keys = json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "k", "x": x, "y": y}]}).to_string();
    typed(
        "jwt_authn.v3.JwtAuthentication",
        json!({
            "providers": {"p": {
                "issuer": "me", "local_jwks": {"inline_string": keys}, "payload_in_metadata": "payload", "clear_route_cache": true,
                "claim_to_headers": [{"header_name": "x-sub", "claim_name": "sub"}],
            }},
            "rules": [{"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": [{"provider_name": "p"}, {"allow_missing": {}}]}}}],
        }),
    )
}

/// Allows tokens of `me/you` whose groups hold `g1`; anybody for `/free`.
fn claims_policy() -> Value {
    let claim = |keys: &[&str], value: Value| {
        let path: Vec<Value> = keys.iter().map(|key| json!({"key": key})).collect();
        json!({"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": path, "value": value}})
    };
    let groups = json!({"list_match": {"one_of": {"string_match": {"exact": "g1"}}}});
    rbac(json!({"rules": {"policies": {
        "claims": {"permissions": [{"any": true}], "principals": [{"and_ids": {"ids": [
            claim(&["payload", "iss"], json!({"string_match": {"exact": "me"}})),
            claim(&["payload", "realm", "groups"], groups),
        ]}}]},
        "free": {"permissions": [{"url_path": {"path": {"exact": "/free"}}}], "principals": [{"any": true}]},
    }}}))
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_decide_about_access_and_routes() {
    let (a, b) = (Backend::echo("a").await, Backend::echo("b").await);
    let key = JwsSigner::generate().unwrap();
    let routes = r#"[{match: {prefix: "/", dynamic_metadata: [{filter: envoy.filters.http.jwt_authn, path: [{key: payload}, {key: tier}], value: {string_match: {exact: gold}}}]}, route: {cluster: b}}, {match: {prefix: "/"}, route: {cluster: a}}]"#;
    let clusters = [("a", a.addr, ""), ("b", b.addr, "")];
    let proxy = Proxy::start(&bootstrap("", &[jwt_filter(&key), claims_policy()], routes, &clusters)).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let ask = async |claims: &Value, path: &str| {
        let bearer = format!("Bearer {}", token(&key, claims));
        get_with(proxy.addr(), path, &[("authorization", bearer.as_str()), ("x-sub", "forged")]).await
    };
    let good = json!({"iss": "me", "sub": "you", "exp": now + 60, "realm": {"groups": ["g0", "g1"]}});
    let got = ask(&good, "/").await;
    assert_eq!(
        (got.status, got.backend(), got.seen("x-sub"), got.seen("authorization")),
        (200, "a", Some("you"), None)
    );
    let gold = json!({"iss": "me", "sub": "you", "exp": now + 60, "tier": "gold", "realm": {"groups": ["g1"]}});
    assert_eq!(ask(&gold, "/").await.backend(), "b", "the route is chosen by the claim");
    let outsider = json!({"iss": "me", "sub": "you", "exp": now + 60, "realm": {"groups": ["g2"]}});
    let got = ask(&outsider, "/").await;
    assert_eq!((got.status, got.body.as_str()), (403, "RBAC: access denied"));
    assert_eq!(ask(&outsider, "/free").await.status, 200);
    let old = json!({"iss": "me", "exp": now - 61});
    let got = ask(&old, "/free").await;
    assert_eq!((got.status, got.body.as_str()), (401, "Jwt is expired"));
    assert_eq!(got.header("www-authenticate"), "Bearer realm=\"http://a.example/free\", error=\"invalid_token\"");
    let got = get_with(proxy.addr(), "/free", &[("x-sub", "forged")]).await;
    assert_eq!((got.status, got.seen("x-sub")), (200, None), "headers of claims are not the client's to set");
    assert_eq!(get(proxy.addr(), "/").await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_runs_are_told_and_counted_and_stop_nobody() {
    let a = Backend::echo("a").await;
    let policy =
        |path: &str| json!({"permissions": [{"url_path": {"path": {"exact": path}}}], "principals": [{"any": true}]});
    let shadow = rbac(json!({
        "shadow_rules": {"action": "DENY", "policies": {"ns[foo]-policy[deny-path-headers]-rule[0]": policy("/headers")}},
        "shadow_rules_stat_prefix": "istio_dry_run_deny_",
    }));
    // What the shadow rules found is there for the filters after it.
    let found = json!({"filter": "envoy.filters.http.rbac", "path": [{"key": "istio_dry_run_deny_shadow_effective_policy_id"}], "value": {"string_match": {"prefix": "ns[foo]"}}});
    let after = rbac(json!({"rules": {"action": "DENY", "policies": {"p": {"permissions": [{"and_rules": {"rules": [
        {"metadata": found}, {"header": {"name": "x-enforce", "present_match": true}}]}}], "principals": [{"any": true}]}}}}));
    let proxy = Proxy::start(&bootstrap("", &[shadow, after], TO_A, &[("a", a.addr, "")])).await;
    assert_eq!(get(proxy.addr(), "/headers").await.status, 200);
    assert_eq!(get(proxy.addr(), "/headers").await.status, 200);
    assert_eq!(get(proxy.addr(), "/ip").await.status, 200);
    assert_eq!(get_with(proxy.addr(), "/headers", &[("x-enforce", "1")]).await.status, 403);
    assert_eq!(get_with(proxy.addr(), "/ip", &[("x-enforce", "1")]).await.status, 200);
    let count = |result| {
        let labels = [("authz_dry_run_action", "deny"), ("authz_dry_run_result", result)];
        proxy.metric("envoy_http_inbound_0_0_0_0_80_rbac", &labels)
    };
    assert_eq!((count("denied"), count("allowed")), (3.0, 2.0));
}

/// The shadow rules and the filter that Istio makes of a CUSTOM policy for `/headers`.
fn custom(ask: Value) -> Vec<Value> {
    let policy = json!({"permissions": [{"url_path": {"path": {"exact": "/headers"}}}], "principals": [{"any": true}]});
    let shadow = rbac(json!({
        "shadow_rules": {"action": "DENY", "policies": {"istio-ext-authz-p-ns[foo]-policy[ext-authz]-rule[0]": policy}},
        "shadow_rules_stat_prefix": "istio_ext_authz_",
    }));
    let mut ask = ask;
    ask["filter_enabled_metadata"] = json!({
        "filter": "envoy.filters.http.rbac", "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
        "value": {"string_match": {"prefix": "istio-ext-authz-p-"}},
    });
    vec![shadow, typed("ext_authz.v3.ExtAuthz", ask)]
}

fn by_http(more: Value) -> Value {
    let mut ask = json!({
        "http_service": {
            "server_uri": {"uri": "http://x", "cluster": "authz", "timeout": "20s"},
            "path_prefix": "/check",
            "authorization_response": {
                "allowed_upstream_headers": {"patterns": [{"exact": "x-ext-authz-check-result"}]},
                "allowed_client_headers_on_success": {"patterns": [{"exact": "x-for-client"}]},
                "allowed_client_headers": {"patterns": [{"exact": "x-why"}]},
            },
        },
        "allowed_headers": {"patterns": [{"exact": "x-ext-authz", "ignore_case": true}]},
    });
    for (key, value) in more.as_object().unwrap() {
        ask[key] = value.clone();
    }
    ask
}

const NO: &str = "denied by ext_authz for not found header `x-ext-authz: allow` in the request";

/// An authorizer as in Istio's samples, which keeps what it saw.
async fn authorizer(seen: Arc<Mutex<Vec<String>>>) -> Backend {
    Backend::start(move |request| {
        let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_string();
        let line = format!(
            "{} {} other={} length={}",
            request.method(),
            request.uri().path(),
            header("x-other"),
            header("content-length")
        );
        seen.lock().unwrap().push(line);
        let wish = header("x-ext-authz");
        async move {
            match wish.as_str() {
                "allow" => {
                    let mut response = reply(200, "");
                    for (name, value) in
                        [("x-ext-authz-check-result", "allowed"), ("x-for-client", "1"), ("x-else", "2")]
                    {
                        response.headers_mut().insert(name, value.parse().unwrap());
                    }
                    response
                }
                "fail" => reply(503, ""),
                "slow" => {
                    tokio::time::sleep(Duration::from_secs(30)).await;
                    reply(200, "")
                }
                _ => {
                    let mut response = reply(403, NO);
                    response.headers_mut().insert("x-why", "no".parse().unwrap());
                    response.headers_mut().insert("x-else", "2".parse().unwrap());
                    response
                }
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_is_asked_by_http() {
    let (a, seen) = (Backend::echo("a").await, Arc::new(Mutex::new(Vec::new())));
    let authz = authorizer(seen.clone()).await;
    let clusters = [("a", a.addr, ""), ("authz", authz.addr, "")];
    let proxy = Proxy::start(&bootstrap("", &custom(by_http(json!({}))), TO_A, &clusters)).await;
    let addr = proxy.addr();
    let got = get_with(addr, "/headers", &[("x-ext-authz", "deny"), ("x-other", "secret")]).await;
    assert_eq!((got.status, got.body.as_str(), got.header("x-why"), got.header("x-else")), (403, NO, "no", ""));
    let got = get_with(addr, "/headers", &[("x-ext-authz", "allow"), ("x-ext-authz-check-result", "forged")]).await;
    assert_eq!((got.status, got.seen("x-ext-authz-check-result"), got.seen("x-else")), (200, Some("allowed"), None));
    assert_eq!((got.header("x-for-client"), got.header("x-else")), ("1", ""));
    assert_eq!(get(addr, "/ip").await.status, 200);
    assert_eq!(*seen.lock().unwrap(), ["GET /check/headers other= length=0"; 2], "of /ip nothing is asked");
    let got = get_with(addr, "/headers", &[("x-ext-authz", "fail")]).await;
    assert_eq!((got.status, got.body.as_str()), (403, ""), "no answer denies");
    authz.stop().await;
    assert_eq!(get_with(addr, "/headers", &[("x-ext-authz", "allow")]).await.status, 403, "nobody there denies");
    assert_eq!(proxy.metric("envoy_http_ext_authz_error", &[("http_conn_manager_prefix", "inbound_0.0.0.0_80")]), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_and_bodies_as_the_settings_say() {
    let (a, seen) = (Backend::echo("a").await, Arc::new(Mutex::new(Vec::new())));
    let authz = authorizer(seen.clone()).await;
    let clusters = [("a", a.addr, ""), ("authz", authz.addr, "")];
    let start = async |more: Value| Proxy::start(&bootstrap("", &custom(by_http(more)), TO_A, &clusters)).await;

    let open = start(json!({"failure_mode_allow": true, "failure_mode_allow_header_add": true})).await;
    let got = get_with(open.addr(), "/headers", &[("x-ext-authz", "fail")]).await;
    assert_eq!((got.status, got.seen("x-envoy-auth-failure-mode-allowed")), (200, Some("true")));
    assert_eq!(
        get_with(open.addr(), "/headers", &[("x-ext-authz", "deny")]).await.status,
        403,
        "a refusal is no failure"
    );

    let mut quick = by_http(json!({"status_on_error": {"code": 503}}));
    quick["http_service"]["server_uri"]["timeout"] = "0.2s".into();
    let quick = Proxy::start(&bootstrap("", &custom(quick), TO_A, &clusters)).await;
    assert_eq!(get_with(quick.addr(), "/headers", &[("x-ext-authz", "slow")]).await.status, 503);

    let post = |addr, body| send(addr, request("POST", "/headers", &[("x-ext-authz", "allow")], body));
    let strict = start(json!({"with_request_body": {"max_request_bytes": 8}})).await;
    seen.lock().unwrap().clear();
    let got = post(strict.addr(), "12345678").await;
    assert_eq!((got.status, got.seen("content-length")), (200, Some("8")), "{got:?}");
    assert!(got.body.contains("body=8\n"), "the endpoint gets the body too");
    assert_eq!(post(strict.addr(), "123456789").await.status, 413);
    let partial = start(json!({"with_request_body": {"max_request_bytes": 4, "allow_partial_message": true}})).await;
    let got = post(partial.addr(), "123456789").await;
    assert!(got.status == 200 && got.body.contains("body=9\n"), "{got:?}");
    let lengths: Vec<String> = seen.lock().unwrap().iter().map(|l| l.rsplit('=').next().unwrap().into()).collect();
    assert_eq!(lengths, ["8", "4"]);
}

/// A body that is read for an authorizer is not idle while it moves.
#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_are_shown_whole() {
    let (a, seen) = (Backend::echo("a").await, Arc::new(Mutex::new(Vec::new())));
    let authz = authorizer(seen.clone()).await;
    let clusters = [("a", a.addr, ""), ("authz", authz.addr, "")];
    let filters = custom(by_http(json!({"with_request_body": {"max_request_bytes": 64}})));
    let proxy = Proxy::start(&bootstrap("stream_idle_timeout: 3s,", &filters, TO_A, &clusters)).await;
    let mut stream = tokio::net::TcpStream::connect(proxy.addr()).await.unwrap();
    let head = b"POST /headers HTTP/1.1\r\nHost: a\r\nx-ext-authz: allow\r\nContent-Length: 8\r\n\r\n";
    stream.write_all(head).await.unwrap();
    for byte in b"12345678" {
        tokio::time::sleep(Duration::from_millis(500)).await;
        stream.write_all(&[*byte]).await.unwrap();
    }
    let mut status = [0; 12];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut status)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&status), "HTTP/1.1 200");
}

/// Istio's sample authorizer over gRPC.
#[derive(Clone, Default)]
struct Grpc {
    seen: Arc<Mutex<Vec<auth::AttributeContext>>>,
}

#[tonic::async_trait]
impl auth::authorization_server::Authorization for Grpc {
    async fn check(&self, request: Request<auth::CheckRequest>) -> Result<Response<auth::CheckResponse>, Status> {
        let attributes = request.into_inner().attributes.unwrap();
        let http = attributes.request.as_ref().and_then(|r| r.http.as_ref());
        let wish = http.and_then(|h| h.headers.get("x-ext-authz")).cloned().unwrap_or_default();
        let refuses = attributes.source.as_ref().is_some_and(|s| s.principal.ends_with("/sa/refused"));
        self.seen.lock().unwrap().push(attributes);
        let json = match wish.as_str() {
            _ if refuses => r#"{"status": {"code": 7}}"#.to_string(),
            "fail" => return Err(Status::unavailable("no")),
            "allow" => r#"{"status": {}, "ok_response": {"headers": [{"header": {"key": "x-ext-authz-check-result", "value": "allowed"}}]}}"#.into(),
            "" => r#"{"status": {}}"#.into(),
            _ => json!({"status": {"code": 7}, "denied_response": {"status": {"code": 403}, "body": NO}}).to_string(),
        };
        Ok(Response::new(weft_proto::json::from_yaml(&json).unwrap()))
    }
}

async fn grpc_authorizer() -> (Grpc, SocketAddr) {
    let server = Grpc::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let service = auth::authorization_server::AuthorizationServer::new(server.clone());
    let routes = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(routes.serve_with_incoming(TcpListenerStream::new(listener)));
    (server, addr)
}

fn by_grpc() -> Value {
    json!({"grpc_service": {"envoy_grpc": {"cluster_name": "authz", "authority": "ext-authz.foo"}, "timeout": "20s"}, "transport_api_version": "V3"})
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_is_asked_by_grpc() {
    let a = Backend::echo("a").await;
    let (server, addr) = grpc_authorizer().await;
    let clusters = [("a", a.addr, ""), ("authz", addr, HTTP2)];
    let proxy = Proxy::start(&bootstrap("", &custom(by_grpc()), TO_A, &clusters)).await;
    let got = get_with(proxy.addr(), "/headers?q", &[("x-ext-authz", "deny")]).await;
    assert_eq!((got.status, got.body.as_str()), (403, NO));
    let got = get_with(proxy.addr(), "/headers", &[("x-ext-authz", "allow")]).await;
    assert_eq!((got.status, got.seen("x-ext-authz-check-result")), (200, Some("allowed")));
    assert_eq!(get(proxy.addr(), "/ip").await.status, 200);
    assert_eq!(get_with(proxy.addr(), "/headers", &[("x-ext-authz", "fail")]).await.status, 403);
    let seen = server.seen.lock().unwrap();
    assert_eq!(seen.len(), 3, "of /ip nothing is asked");
    let http = seen[0].request.as_ref().unwrap().http.as_ref().unwrap();
    assert_eq!(
        (http.method.as_str(), http.path.as_str(), http.host.as_str(), http.protocol.as_str()),
        ("GET", "/headers?q", "a.example", "HTTP/1.1")
    );
    assert!(http.headers.contains_key("x-request-id") && http.headers.contains_key(":path"), "{:?}", http.headers);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_decides_about_connections() {
    let a = Backend::echo("a").await;
    let (server, addr) = grpc_authorizer().await;
    let filter = |name: &str, mut config: Value| {
        config["@type"] = format!("type.googleapis.com/envoy.extensions.filters.network.{name}").into();
        json!({"name": name.split('.').next().unwrap(), "typed_config": config})
    };
    let policy = json!({"permissions": [{"any": true}], "principals": [{"any": true}]});
    let listener = |name: &str, host: &str, cluster: &str, more: Value| {
        let mut ask = json!({
            "stat_prefix": "tcp.", "grpc_service": {"envoy_grpc": {"cluster_name": cluster}, "timeout": "20s"},
            "filter_enabled_metadata": {
                "filter": "envoy.filters.network.rbac", "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
                "value": {"string_match": {"prefix": "istio-ext-authz-p-"}},
            },
        });
        for (key, value) in more.as_object().unwrap() {
            ask[key] = value.clone();
        }
        let filters = json!([
            filter(
                "rbac.v3.RBAC",
                json!({
                    "stat_prefix": "tcp.", "shadow_rules_stat_prefix": "istio_ext_authz_",
                    "shadow_rules": {"action": "DENY", "policies": {"istio-ext-authz-p-ns[a]-policy[b]-rule[0]": policy}},
                })
            ),
            filter("ext_authz.v3.ExtAuthz", ask),
            filter("tcp_proxy.v3.TcpProxy", json!({"stat_prefix": "t", "cluster": "a"})),
        ]);
        json!({"name": name, "address": {"socket_address": {"address": host, "port_value": 0}}, "filter_chains": [{"filters": filters}]})
    };
    let listeners = json!([
        listener("asked", "127.0.0.1", "authz", json!({})),
        listener("broken", "127.0.0.2", "nobody", json!({})),
        listener("open", "127.0.0.3", "nobody", json!({"failure_mode_allow": true})),
    ]);
    let clusters: String =
        [("a", a.addr, ""), ("authz", addr, HTTP2)].iter().map(|(n, at, e)| cluster(n, &[*at], e)).collect();
    let proxy = Proxy::start(&format!("static_resources:\n  listeners: {listeners}\n  clusters:\n{clusters}")).await;
    assert_eq!(get(proxy.address("asked"), "/").await.status, 200);
    {
        let seen = server.seen.lock().unwrap();
        assert_eq!(seen.len(), 1);
        assert!(seen[0].request.as_ref().unwrap().http.is_none() && seen[0].destination.is_some());
    }
    assert!(try_send(proxy.address("broken"), request("GET", "/", &[], "")).await.is_err(), "nobody to ask denies");
    assert_eq!(get(proxy.address("open"), "/").await.status, 200);
}

/// An authorizer over HTTP/2. On its first connection it says, as soon as it is asked, that it will go (it tells when that has
/// been read), and answers when it is let; on the next it answers at once.
async fn going() -> (SocketAddr, mpsc::UnboundedReceiver<()>, Arc<Notify>) {
    async fn answer(mut respond: h2::server::SendResponse<Bytes>) {
        let (head, body) = assent().into_parts();
        let mut sending = respond.send_response(http::Response::from_parts(head, ()), false).unwrap();
        sending.send_data(body.collect().await.unwrap().to_bytes(), true).unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (told, goes) = mpsc::unbounded_channel();
    let go = Arc::new(Notify::new());
    let gate = go.clone();
    tokio::spawn(async move {
        let mut first = h2::server::handshake(listener.accept().await.unwrap().0).await.unwrap();
        let (_, held) = first.accept().await.unwrap().unwrap();
        let mut pings = first.ping_pong().unwrap();
        first.graceful_shutdown();
        tokio::spawn(async move { while first.accept().await.is_some() {} });
        // Frames are read in their order.
        pings.ping(h2::Ping::opaque()).await.unwrap();
        told.send(()).unwrap();
        let mut second = h2::server::handshake(listener.accept().await.unwrap().0).await.unwrap();
        tokio::spawn(async move {
            while let Some(Ok((_, respond))) = second.accept().await {
                answer(respond).await;
            }
        });
        gate.notified().await;
        answer(held).await;
    });
    (addr, goes, go)
}

/// What an endpoint that goes has under way ends there; what comes meanwhile goes on another connection, a filter's question too.
#[tokio::test(flavor = "multi_thread")]
async fn an_authorizer_that_goes_is_asked_on_another_connection() {
    let app = Backend::echo("a").await;
    let (authorizer, mut goes, go) = going().await;
    let ask = typed(
        "ext_authz.v3.ExtAuthz",
        json!({"transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "authz"}, "timeout": "60s"}}),
    );
    let clusters = [("a", app.addr, ""), ("authz", authorizer, HTTP2)];
    let set = |options: &mut weft_dataplane::Options| options.concurrency = std::num::NonZeroUsize::MIN;
    let proxy = Proxy::start_with(&bootstrap("", &[ask], TO_A, &clusters), set).await;
    let addr = proxy.addr();
    let first = tokio::spawn(async move { get(addr, "/").await.status });
    goes.recv().await.unwrap();
    assert_eq!(get(addr, "/").await.status, 200);
    go.notify_one();
    assert_eq!(first.await.unwrap(), 200);
}
