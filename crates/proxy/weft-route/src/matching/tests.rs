//! Which route serves a request, by table.

use super::*;
use crate::{Action, Pool, TableSettings, compile_table};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use weft_proto::envoy::config::route::v3::RouteConfiguration;

/// A table from Envoy's own YAML.
fn table(yaml: &str) -> RouteTable {
    let message: RouteConfiguration = weft_proto::json::from_yaml(yaml).unwrap();
    let (compiled, errors) = compile_table(&message, &mut Pool::default());
    assert_eq!(errors, vec![]);
    let compiled = compiled.unwrap();
    let (table, errors) = RouteTable::build(compiled.settings, compiled.virtual_hosts.into_iter());
    assert_eq!(errors, vec![]);
    table
}

struct Request {
    method: Method,
    authority: &'static str,
    path: &'static str,
    headers: HeaderMap,
}

impl Request {
    fn get(authority: &'static str, path: &'static str) -> Self {
        Self { method: Method::GET, authority, path, headers: HeaderMap::new() }
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        self
    }

    fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    fn view(&self) -> RequestView<'_> {
        let (path, query) = match self.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.path, None),
        };
        RequestView {
            method: &self.method,
            authority: self.authority,
            path,
            query,
            scheme: "http",
            headers: &self.headers,
            metadata: &[],
        }
    }
}

/// Name of the route that a request takes.
fn route(table: &RouteTable, request: &Request, random: u64) -> String {
    match table.find(&request.view(), random) {
        Routed::Route(host, route) => format!("{}/{}", host.name, route.name),
        Routed::NoRoute(host) => format!("{}/-", host.name),
        Routed::NoHost => "-".into(),
    }
}

#[test]
fn host_precedence() {
    let table = table(
        r#"
name: "80"
ignore_port_in_host_matching: true
virtual_hosts:
- {name: any, domains: ["*"]}
- {name: short-suffix, domains: ["*.com"]}
- {name: suffix, domains: ["*.example.com"]}
- {name: dash, domains: ["*-x.example.com"]}
- {name: prefix, domains: ["www.*"]}
- {name: long-prefix, domains: ["www.long.*"]}
- {name: exact, domains: ["WWW.example.com", "reviews", "10.0.0.1", "[::1]"]}
"#,
    );
    for (authority, want) in [
        ("www.example.com", "exact"),
        ("www.example.com:8080", "exact"),
        ("reviews:9080", "exact"),
        ("[::1]:80", "exact"),
        ("10.0.0.1:80", "exact"),
        ("a.example.com", "suffix"),
        ("a.b.example.com", "suffix"),
        ("a-x.example.com", "dash"),
        ("-x.example.com", "suffix"),
        (".example.com", "short-suffix"),
        ("example.com", "short-suffix"),
        ("www.org", "prefix"),
        ("www.long.org", "long-prefix"),
        ("www.", "any"),
        ("other.org", "any"),
        ("", "any"),
        (":80", "any"),
        ("\u{e9}.example.com", "suffix"),
    ] {
        assert_eq!(route(&table, &Request::get(authority, "/"), 0), format!("{want}/-"), "{authority}");
    }
}

#[test]
fn port_counts_unless_ignored() {
    let table =
        table(r#"{name: "80", virtual_hosts: [{name: a, domains: ["a", "a:80"]}, {name: b, domains: ["a:81"]}]}"#);
    for (authority, want) in [("a", "a/-"), ("a:80", "a/-"), ("a:81", "b/-"), ("a:82", "-")] {
        assert_eq!(route(&table, &Request::get(authority, "/"), 0), want, "{authority}");
    }
}

#[test]
fn path_conditions() {
    let table = table(
        r#"
name: "80"
virtual_hosts:
- name: h
  domains: ["*"]
  routes:
  - {name: exact, match: {path: /exact}, non_forwarding_action: {}}
  - {name: segment, match: {path_separated_prefix: /seg}, non_forwarding_action: {}}
  - {name: prefix, match: {prefix: /pre}, non_forwarding_action: {}}
  - {name: regex, match: {safe_regex: {regex: "/r[0-9]+"}}, non_forwarding_action: {}}
  - {name: nocase, match: {prefix: /Case, case_sensitive: false}, non_forwarding_action: {}}
  - {name: query, match: {prefix: /q, query_parameters: [{name: a, string_match: {exact: "1"}}, {name: b, present_match: true}]}, non_forwarding_action: {}}
  - {name: noquery, match: {prefix: /q, query_parameters: [{name: a, present_match: false}]}, non_forwarding_action: {}}
  - {name: grpc, match: {prefix: /, grpc: {}}, non_forwarding_action: {}}
  - {name: connect, match: {connect_matcher: {}}, non_forwarding_action: {}}
  - name: template
    match:
      path_match_policy:
        name: t
        typed_config: {"@type": type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: "/t/*/x"}
    non_forwarding_action: {}
"#,
    );
    for (path, want) in [
        ("/exact", "exact"),
        ("/exact?a=b", "exact"),
        ("/exact/", "-"),
        ("/Exact", "-"),
        ("/seg", "segment"),
        ("/seg/a", "segment"),
        ("/segment", "-"),
        ("/prefix", "prefix"),
        ("/pre", "prefix"),
        ("/r12", "regex"),
        ("/r12?x", "regex"),
        ("/r12a", "-"),
        ("/r", "-"),
        ("/cASE/x", "nocase"),
        ("/q?a=1&b", "query"),
        ("/q?b=&a=1", "query"),
        ("/q?a=1", "-"),
        ("/q?a=2&a=1&b", "-"),
        ("/q?c", "noquery"),
        ("/q", "noquery"),
        ("/t/1/x", "template"),
        ("/t/1/2/x", "-"),
    ] {
        assert_eq!(route(&table, &Request::get("h", path), 0), format!("h/{want}"), "{path}");
    }
    for (content_type, want) in [
        ("application/grpc", "h/grpc"),
        ("application/grpc+proto", "h/grpc"),
        ("application/grpc-web", "h/-"),
        ("application/json", "h/-"),
    ] {
        assert_eq!(
            route(&table, &Request::get("h", "/x").with("content-type", content_type), 0),
            want,
            "{content_type}"
        );
    }
    assert_eq!(route(&table, &Request::get("h:443", "").method(Method::CONNECT), 0), "h/connect");
    assert_eq!(route(&table, &Request::get("h", "/exact").method(Method::CONNECT), 0), "h/exact");
}

#[test]
fn header_conditions() {
    // Condition, headers sent, holds.
    type Case = (&'static str, &'static [(&'static str, &'static str)], bool);
    let cases: &[Case] = &[
        ("{name: x, string_match: {exact: a}}", &[("x", "a")], true),
        ("{name: x, string_match: {exact: a}}", &[("x", "A")], false),
        ("{name: X, string_match: {exact: a, ignore_case: true}}", &[("x", "A")], true),
        ("{name: x, string_match: {exact: a}}", &[], false),
        ("{name: x, string_match: {exact: a}}", &[("x", "a"), ("x", "b")], true),
        ("{name: x, string_match: {exact: a}}", &[("x", "b"), ("x", "a")], true),
        ("{name: x, string_match: {exact: a}}", &[("x", "b"), ("x", "c")], false),
        ("{name: x, string_match: {exact: 'a,b'}}", &[("x", "a"), ("x", "b")], false),
        ("{name: x, string_match: {exact: a}, invert_match: true}", &[("x", "a"), ("x", "b")], false),
        ("{name: x, string_match: {exact: a}, invert_match: true}", &[("x", "c"), ("x", "b")], true),
        ("{name: x, range_match: {start: 1, end: 3}}", &[("x", "9"), ("x", "2")], true),
        ("{name: x, present_match: true, invert_match: true}", &[("x", "a"), ("x", "b")], false),
        ("{name: x, string_match: {exact: a}, invert_match: true}", &[("x", "b")], true),
        ("{name: x, string_match: {exact: a}, invert_match: true}", &[("x", "a")], false),
        ("{name: x, string_match: {exact: a}, invert_match: true}", &[], false),
        ("{name: x, string_match: {exact: a}, invert_match: true, treat_missing_header_as_empty: true}", &[], true),
        ("{name: x, string_match: {exact: ''}, treat_missing_header_as_empty: true}", &[], true),
        ("{name: x, present_match: true}", &[("x", "")], true),
        ("{name: x, present_match: true}", &[], false),
        ("{name: x, present_match: true, invert_match: true}", &[], true),
        ("{name: x, present_match: false}", &[], true),
        ("{name: x, present_match: false}", &[("x", "a")], false),
        ("{name: x, present_match: false, invert_match: true}", &[("x", "a")], true),
        ("{name: x}", &[("x", "a")], true),
        ("{name: x, string_match: {prefix: ab}}", &[("x", "abc")], true),
        ("{name: x, string_match: {suffix: bc}}", &[("x", "abc")], true),
        ("{name: x, string_match: {suffix: abcd}}", &[("x", "abc")], false),
        ("{name: x, string_match: {suffix: BC, ignore_case: true}}", &[("x", "abc")], true),
        ("{name: x, string_match: {contains: b}}", &[("x", "abc")], true),
        ("{name: x, string_match: {contains: ''}}", &[("x", "")], true),
        ("{name: x, string_match: {safe_regex: {regex: 'a.c'}}}", &[("x", "abc")], true),
        ("{name: x, string_match: {safe_regex: {regex: 'b'}}}", &[("x", "abc")], false),
        ("{name: x, safe_regex_match: {regex: '[^=]*'}}", &[("x", "caf\u{e9}")], true),
        ("{name: x, exact_match: a}", &[("x", "a")], true),
        ("{name: x, prefix_match: a}", &[("x", "ab")], true),
        ("{name: x, suffix_match: b}", &[("x", "ab")], true),
        ("{name: x, contains_match: b}", &[("x", "abc")], true),
        ("{name: x, range_match: {start: -1, end: 3}}", &[("x", "2")], true),
        ("{name: x, range_match: {start: -1, end: 3}}", &[("x", "3")], false),
        ("{name: x, range_match: {start: -1, end: 3}}", &[("x", "x")], false),
        ("{name: ':method', string_match: {exact: GET}}", &[], true),
        ("{name: ':authority', string_match: {exact: h}}", &[], true),
        ("{name: host, string_match: {exact: h}}", &[], true),
        ("{name: ':path', string_match: {exact: '/p?q=1'}}", &[], true),
        ("{name: ':scheme', string_match: {exact: https}}", &[], false),
        (
            "{name: cookie, string_match: {safe_regex: {regex: '^(.*?;)?(user=jason)(;.*)?$'}}}",
            &[("cookie", "a=b;user=jason")],
            true,
        ),
    ];
    for (condition, headers, want) in cases {
        let yaml = format!(
            "{{name: r, virtual_hosts: [{{name: h, domains: ['*'], routes: [{{name: r, match: {{prefix: /, headers: [{condition}]}}, non_forwarding_action: {{}}}}]}}]}}"
        );
        let request = headers.iter().fold(Request::get("h", "/p?q=1"), |r, (name, value)| r.with(name, value));
        let got = route(&table(&yaml), &request, 0) == "h/r";
        assert_eq!(got, *want, "{condition} {headers:?}");
    }
}

#[test]
fn shares() {
    let table = table(
        r#"
name: "80"
virtual_hosts:
- name: h
  domains: ["*"]
  routes:
  - {name: some, match: {prefix: /, runtime_fraction: {default_value: {numerator: 25}}}, non_forwarding_action: {}}
  - name: weights
    match: {prefix: /}
    route: {weighted_clusters: {clusters: [{name: a, weight: 1}, {name: b, weight: 3}, {name: c, weight: 0}]}}
"#,
    );
    for (random, want) in [(0, "h/some"), (249_999, "h/some"), (250_000, "h/weights"), (1_000_000, "h/some")] {
        assert_eq!(route(&table, &Request::get("h", "/"), random), want, "{random}");
    }
    let Action::Forward(forward) = &table.virtual_hosts[0].routes[1].action else { panic!("forwards") };
    let crate::ClusterChoice::Weighted(weights) = &forward.cluster else { panic!("has weights") };
    for (random, want) in [(0, "a"), (1, "b"), (3, "b"), (4, "a"), (u64::MAX, "b")] {
        assert_eq!(&*weights.pick(random).unwrap().name, want, "{random}");
    }
}

#[test]
fn first_owner_keeps_a_domain() {
    let host = |name: &str| {
        Arc::new(VirtualHost { name: name.into(), domains: vec!["a".into(), "*".into()], ..Default::default() })
    };
    let settings = TableSettings { name: "80".into(), ..Default::default() };
    let (table, errors) = RouteTable::build(settings, [host("first"), host("second")].into_iter());
    assert_eq!(route(&table, &Request::get("a", "/"), 0), "first/-");
    assert_eq!(errors.len(), 2);
    assert_eq!(
        errors[0].to_string(),
        "route 80: virtual_hosts[\"second\"].domains: domain \"a\" belongs to virtual host \"first\" already, and stays there"
    );
}
