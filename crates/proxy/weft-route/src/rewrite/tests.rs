//! Rewrites of path, host and headers, by table.

use super::*;
use crate::{Action, Pool, compile_table};
use http::{HeaderName, Method};
use weft_proto::envoy::config::route::v3::RouteConfiguration;

fn table(routes: &str) -> RouteTable {
    let yaml = format!("{{name: r, virtual_hosts: [{{name: h, domains: ['*'], routes: {routes}}}]}}");
    let message: RouteConfiguration = weft_proto::json::from_yaml(&yaml).unwrap();
    let (compiled, errors) = compile_table(&message, &mut Pool::default());
    assert_eq!(errors, vec![], "{routes}");
    let compiled = compiled.unwrap();
    RouteTable::build(compiled.settings, compiled.virtual_hosts.into_iter()).0
}

fn view<'a>(method: &'a Method, authority: &'a str, path: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
    let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
    RequestView { method, authority, path, query, scheme: "http", headers, metadata: &[] }
}

#[test]
fn paths() {
    for (rule, path, want) in [
        ("match: {prefix: /api/}, route: {cluster: c, prefix_rewrite: /}", "/api/a?q", Some("/a?q")),
        ("match: {prefix: /api}, route: {cluster: c, prefix_rewrite: /v2}", "/api/a", Some("/v2/a")),
        ("match: {path_separated_prefix: /api}, route: {cluster: c, prefix_rewrite: /v2}", "/api", Some("/v2")),
        ("match: {path: /api}, route: {cluster: c, prefix_rewrite: /v2}", "/api?x", Some("/v2?x")),
        ("match: {safe_regex: {regex: '/a/.*'}}, route: {cluster: c, prefix_rewrite: /v2}", "/a/b", Some("/v2")),
        (
            "match: {prefix: /}, route: {cluster: c, regex_rewrite: {pattern: {regex: '^/service/([^/]+)(/.*)$'}, substitution: '\\2/instance/\\1'}}",
            "/service/foo/v1/api?x=1",
            Some("/v1/api/instance/foo?x=1"),
        ),
        (
            "match: {prefix: /}, route: {cluster: c, regex_rewrite: {pattern: {regex: 'one'}, substitution: 'two$'}}",
            "/x/one/y/one/z",
            Some("/x/two$/y/two$/z"),
        ),
        (
            "match: {prefix: /}, route: {cluster: c, regex_rewrite: {pattern: {regex: 'x'}, substitution: 'a b'}}",
            "/x",
            None,
        ),
        ("match: {prefix: /}, route: {cluster: c, path_rewrite: /whole}", "/x?y", Some("/whole?y")),
        ("match: {prefix: /}, route: {cluster: c}", "/x?y", None),
        (
            "match: {prefix: /Api, case_sensitive: false}, route: {cluster: c, prefix_rewrite: /v}",
            "/aPI/1",
            Some("/v/1"),
        ),
    ] {
        let table = table(&format!("[{{{rule}}}]"));
        let route = &table.virtual_hosts[0].routes[0];
        let Action::Forward(forward) = &route.action else { panic!("{rule}") };
        let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
        assert_eq!(rewrite_path(&forward.path_rewrite, &route.matcher, path, query).as_deref(), want, "{rule}");
    }
}

#[test]
fn hosts() {
    let mut headers = HeaderMap::new();
    headers.insert("x-host", HeaderValue::from_static("other:81"));
    headers.insert("x-bad", HeaderValue::from_static("a b"));
    for (rule, want) in [
        ("host_rewrite_literal: new.example", Some("new.example")),
        ("auto_host_rewrite: true", None),
        ("host_rewrite_header: X-Host", Some("other:81")),
        ("host_rewrite_header: x-bad", None),
        ("host_rewrite_header: x-none", None),
        (
            "host_rewrite_path_regex: {pattern: {regex: '^/([^/]+)/.*$'}, substitution: '\\1.example'}",
            Some("p.example"),
        ),
    ] {
        let table = table(&format!("[{{match: {{prefix: /}}, route: {{cluster: c, {rule}}}}}]"));
        let Action::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!("{rule}") };
        let got = rewrite_host(&forward.host_rewrite, &headers, "/p/x");
        assert_eq!(got.as_ref().map(|v| v.to_str().unwrap()), want, "{rule}");
    }
}

#[test]
fn locations() {
    for (redirect, authority, path, want) in [
        ("https_redirect: true", "a.com", "/x?y", "https://a.com/x?y"),
        ("https_redirect: true", "a.com:80", "/", "https://a.com/"),
        ("https_redirect: true", "a.com:8080", "/", "https://a.com:8080/"),
        ("https_redirect: true, port_redirect: 8443", "a.com:8080", "/", "https://a.com:8443/"),
        ("host_redirect: b.com", "a.com:8080", "/x", "http://b.com/x"),
        ("host_redirect: 'b.com:81'", "a.com", "/x", "http://b.com:81/x"),
        ("port_redirect: 81", "[::1]:80", "/x", "http://[::1]:81/x"),
        ("path_redirect: '', host_redirect: b.com", "a.com", "/x?y", "http://b.com/x?y"),
        ("path_redirect: /new", "a.com", "/x?y", "http://a.com/new?y"),
        ("path_redirect: '/new?z'", "a.com", "/x?y", "http://a.com/new?z"),
        ("path_redirect: /new, strip_query: true", "a.com", "/x?y", "http://a.com/new"),
        ("prefix_rewrite: /b", "a.com", "/a/c?y", "http://a.com/b/c?y"),
        ("regex_rewrite: {pattern: {regex: '/a/(.*)'}, substitution: '/\\1'}", "a.com", "/a/c", "http://a.com/c"),
        ("strip_query: true", "a.com", "/x?y", "http://a.com/x"),
    ] {
        let table = table(&format!("[{{match: {{prefix: /a}}, redirect: {{{redirect}}}}}]"));
        let route = &table.virtual_hosts[0].routes[0];
        let Action::Redirect(rule) = &route.action else { panic!("{redirect}") };
        let headers = HeaderMap::new();
        let got = location(rule, &route.matcher, &view(&Method::GET, authority, path, &headers));
        assert_eq!(got, want, "{redirect}");
    }
}

#[test]
fn header_operations() {
    let table = table(
        r#"[{match: {prefix: /}, route: {cluster: c}, request_headers_to_remove: [Gone, x-set],
          request_headers_to_add: [
            {header: {key: x-add, value: "2"}},
            {header: {key: x-set, value: "100%%"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD},
            {header: {key: x-old, value: "2"}, append: false},
            {header: {key: x-keep, value: "2"}, append_action: ADD_IF_ABSENT},
            {header: {key: x-new, value: "2"}, append_action: ADD_IF_ABSENT},
            {header: {key: x-never, value: "2"}, append_action: OVERWRITE_IF_EXISTS},
            {header: {key: x-empty, value: ""}},
            {header: {key: x-kept-empty, value: ""}, keep_empty_value: true},
            {header: {key: x-command, value: "%REQ(x-keep)%"}},
            {header: {key: x-none, value: "%NONE%"}},
            {header: {key: host, value: new.host}}]}]"#,
    );
    let mut headers = HeaderMap::new();
    for (name, value) in [("gone", "1"), ("x-add", "1"), ("x-set", "1"), ("x-old", "1"), ("x-keep", "1")] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let mut host = None;
    let route = &table.virtual_hosts[0].routes[0];
    let command = |format: &Strng, headers: &HeaderMap| match &**format {
        "%REQ(x-keep)%" => headers.get("x-keep").cloned(),
        _ => None,
    };
    route.headers.request.apply(&mut headers, command, |value| host = Some(value));
    let mut got: Vec<String> = headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
    got.sort();
    let want = ["x-add=1", "x-add=2", "x-command=1", "x-keep=1", "x-kept-empty=", "x-new=2", "x-old=2", "x-set=100%"];
    assert_eq!(got, want);
    assert_eq!(host.unwrap(), "new.host");
}

#[test]
fn order_of_levels() {
    let yaml = |wins: bool| {
        format!(
            r#"
name: r
most_specific_header_mutations_wins: {wins}
request_headers_to_add: [{{header: {{key: x, value: table}}}}]
virtual_hosts:
- name: h
  domains: ["*"]
  request_headers_to_add: [{{header: {{key: x, value: host}}}}]
  routes: [{{match: {{prefix: /}}, route: {{cluster: c}}, request_headers_to_add: [{{header: {{key: x, value: route}}}}]}}]
"#
        )
    };
    for (wins, want) in [(false, ["route", "host", "table"]), (true, ["table", "host", "route"])] {
        let message: RouteConfiguration = weft_proto::json::from_yaml(&yaml(wins)).unwrap();
        let compiled = compile_table(&message, &mut Pool::default()).0.unwrap();
        let table = RouteTable::build(compiled.settings, compiled.virtual_hosts.into_iter()).0;
        let host = &table.virtual_hosts[0];
        let mut headers = HeaderMap::new();
        for edit in edits(&table, host, &host.routes[0], None, Side::Request) {
            edit.apply(&mut headers, |_, _| None, |_| {});
        }
        let got: Vec<_> = headers.get_all("x").iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(got, want);
    }
}

#[test]
fn hashes() {
    let mut headers = HeaderMap::new();
    headers.insert("x-user", HeaderValue::from_static("jason"));
    headers.append("x-two", HeaderValue::from_static("b"));
    headers.append("x-two", HeaderValue::from_static("a"));
    headers.insert("cookie", HeaderValue::from_static("a=1; session=\"s1\"; b=2"));
    let method = Method::GET;
    let request = view(&method, "h", "/p?id=7&id=8", &headers);
    let ip: IpAddr = "10.0.0.1".parse().unwrap();
    let two = crate::xxhash::xxhash64_seeded(b"b", xxhash64(b"a"));
    for (policies, want) in [
        ("[{header: {header_name: X-User}}]", Some(xxhash64(b"jason"))),
        ("[{header: {header_name: x-two}}]", Some(two)),
        ("[{header: {header_name: x-none}}]", None),
        ("[{connection_properties: {source_ip: true}}]", Some(xxhash64(b"10.0.0.1"))),
        ("[{query_parameter: {name: id}}]", Some(xxhash64(b"7"))),
        ("[{cookie: {name: session}}]", Some(xxhash64(b"s1"))),
        ("[{cookie: {name: none}}]", None),
        ("[{cookie: {name: none, ttl: 10s, path: /p}}]", Some(xxhash64(b"none 10s /p"))),
        ("[{header: {header_name: x-user}, terminal: true}, {query_parameter: {name: id}}]", Some(xxhash64(b"jason"))),
        ("[{header: {header_name: x-none}, terminal: true}, {query_parameter: {name: id}}]", Some(xxhash64(b"7"))),
        (
            "[{header: {header_name: x-user}}, {query_parameter: {name: id}}]",
            Some(xxhash64(b"jason").rotate_left(1) ^ xxhash64(b"7")),
        ),
    ] {
        let table = table(&format!("[{{match: {{prefix: /}}, route: {{cluster: c, hash_policy: {policies}}}}}]"));
        let Action::Forward(forward) = &table.virtual_hosts[0].routes[0].action else { panic!("{policies}") };
        let got = compute_hash(&forward.hash, &request, Some(ip), |name, ttl, path| {
            format!("{name} {}s {path}", ttl.as_secs())
        });
        assert_eq!(got, want, "{policies}");
    }
}

#[test]
fn substitutions() {
    for (text, want) in
        [("a\\1", Some("a${1}")), ("$1", Some("$$1")), ("\\\\", Some("\\")), ("\\2", None), ("\\x", None), ("\\", None)]
    {
        assert_eq!(substitution(text, 2).ok().as_deref(), want, "{text}");
    }
}
