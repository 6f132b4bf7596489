//! Decisions by table: conditions, negation, repeated headers, what fails closed.

use super::*;
use crate::{MetadataValue, RulePolicy, compile_http, compile_network};
use http::{HeaderMap, HeaderName};
use std::net::SocketAddr;
use weft_proto::envoy::config::listener::v3::{Filter, filter};
use weft_route::Pool;
use weft_route::compile::Compiler;
use weft_route::error::Path;

/// Filters of another control plane, beside the repository; tests that read them are skipped where they are absent.
const ORACLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../../shared/oracles/authz");

fn compile(yaml: &str, name: &str) -> Option<Rbac> {
    let filter: Filter = weft_proto::json::from_yaml(yaml).unwrap_or_else(|e| panic!("{name}: {e}"));
    let Some(filter::ConfigType::TypedConfig(any)) = filter.config_type else { panic!("{name} has no config") };
    let mut pool = Pool::default();
    let mut compiler = Compiler::new(name, &mut pool);
    let rbac = match any.type_url.rsplit('/').next().unwrap_or_default() {
        "envoy.extensions.filters.http.rbac.v3.RBAC" => {
            compile_http(&weft_proto::unpack(&any).unwrap(), &mut compiler, &Path::ROOT)
        }
        "envoy.extensions.filters.network.rbac.v3.RBAC" => {
            compile_network(&weft_proto::unpack(&any).unwrap(), &mut compiler, &Path::ROOT)
        }
        _ => return None,
    };
    assert_eq!(compiler.errors.into_list(), vec![], "{name}");
    Some(rbac)
}

/// A filter with one policy.
fn rules(action: &str, permission: &str, principal: &str) -> Rbac {
    let yaml = format!(
        "{{name: r, typedConfig: {{'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {{action: {action}, policies: {{p: {{permissions: [{permission}], principals: [{principal}]}}}}}}}}}}"
    );
    compile(&yaml, "test").unwrap()
}

/// A request, and the connection it came on.
#[derive(Clone)]
struct Ask {
    peer: SocketAddr,
    remote: SocketAddr,
    destination: SocketAddr,
    server_name: Option<&'static str>,
    certificate: Option<PeerCertificate>,
    method: &'static str,
    authority: &'static str,
    path: &'static str,
    headers: HeaderMap,
    metadata: Vec<(Strng, MetadataValue)>,
    tcp: bool,
}

impl Default for Ask {
    fn default() -> Self {
        let address = |text: &str| text.parse().unwrap();
        Self {
            peer: address("10.0.0.1:1000"),
            remote: address("10.0.0.1:1000"),
            destination: address("10.0.0.2:80"),
            server_name: None,
            certificate: None,
            method: "GET",
            authority: "httpbin.foo",
            path: "/get",
            headers: HeaderMap::new(),
            metadata: Vec::new(),
            tcp: false,
        }
    }
}

impl Ask {
    fn from(uri: &str) -> Self {
        Self { certificate: Some(PeerCertificate { uris: vec![uri.into()], ..Default::default() }), ..Self::default() }
    }

    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        self
    }

    fn claims(mut self, fields: Vec<(&str, MetadataValue)>) -> Self {
        let fields = fields.into_iter().map(|(name, value)| (Strng::from(name), value)).collect();
        let payload = vec![(Strng::from("payload"), MetadataValue::Struct(fields))];
        self.metadata = vec![("envoy.filters.http.jwt_authn".into(), MetadataValue::Struct(payload))];
        self
    }

    fn decide(&self, rbac: &Rbac) -> Decision {
        let path = self.path.split('?').next().unwrap();
        rbac.decide(&Facts {
            peer: self.peer,
            remote: self.remote,
            destination: self.destination,
            server_name: self.server_name,
            certificate: self.certificate.as_ref(),
            request: (!self.tcp).then_some(RequestFacts {
                method: self.method,
                authority: self.authority,
                path,
                path_and_query: self.path,
                scheme: "http",
                headers: &self.headers,
            }),
            metadata: &self.metadata,
        })
    }
}

fn allowed(rbac: &Rbac, ask: &Ask) -> bool {
    ask.decide(rbac).allowed
}

#[test]
fn actions() {
    let get = "{header: {name: ':method', string_match: {exact: GET}}}";
    let post = Ask { method: "POST", ..Ask::default() };
    for (action, on_match, otherwise) in [("ALLOW", true, false), ("DENY", false, true), ("LOG", true, true)] {
        let rbac = rules(action, get, "{any: true}");
        let (first, second) = (Ask::default().decide(&rbac), post.decide(&rbac));
        assert_eq!((first.allowed, second.allowed), (on_match, otherwise), "{action}");
        assert_eq!((first.policy.as_deref(), second.policy.as_deref()), (Some("p"), None), "{action}");
    }
    assert!(allowed(&Rbac::default(), &post), "no rules allow");
    let none = Rbac { rules: Some(Rules::new(RuleAction::Allow, vec![])), ..Default::default() };
    assert!(!allowed(&none, &post), "an ALLOW without policies allows nothing");
}

#[test]
fn principals() {
    let certificate = |uris: &[&str], dns: &[&str], subject: &str| {
        let names = |list: &[&str]| list.iter().map(|n| Strng::from(*n)).collect();
        Some(PeerCertificate { uris: names(uris), dns: names(dns), subject: subject.into() })
    };
    let client = "spiffe://cluster.local/ns/default/sa/client";
    for (matcher, certificate, want) in [
        ("{exact: spiffe://cluster.local/ns/default/sa/client}", certificate(&[client], &[], ""), true),
        ("{exact: spiffe://cluster.local/ns/default/sa/client}", certificate(&["spiffe://x", client], &[], ""), true),
        ("{exact: spiffe://cluster.local/ns/default/sa/client}", certificate(&[], &[], ""), false),
        ("{exact: spiffe://cluster.local/ns/default/sa/client}", None, false),
        ("{exact: spiffe://cluster.local/ns/default/sa/clien}", certificate(&[client], &[], ""), false),
        ("{exact: SPIFFE://cluster.local/ns/default/sa/client}", certificate(&[client], &[], ""), false),
        ("{prefix: spiffe://cluster.local/ns/default/}", certificate(&[client], &[], ""), true),
        ("{suffix: /sa/client}", certificate(&[client], &[], ""), true),
        ("{safe_regex: {regex: '.*/ns/default/.*'}}", certificate(&[client], &[], ""), true),
        ("{safe_regex: {regex: '.*/ns/defaul/.*'}}", certificate(&[client], &[], ""), false),
        ("{safe_regex: {regex: '.+'}}", certificate(&[], &[], ""), false),
        ("{safe_regex: {regex: '.*'}}", certificate(&[], &[], ""), false),
        ("{exact: a.example}", certificate(&[], &["a.example"], ""), true),
        ("{exact: 'CN=x'}", certificate(&[], &[], "CN=x"), true),
    ] {
        let rbac = rules("ALLOW", "{any: true}", &format!("{{authenticated: {{principal_name: {matcher}}}}}"));
        let ask = Ask { certificate: certificate.clone(), ..Ask::default() };
        assert_eq!(allowed(&rbac, &ask), want, "{matcher} {certificate:?}");
    }
    let any = rules("ALLOW", "{any: true}", "{authenticated: {}}");
    assert!(allowed(&any, &Ask::from(client)) && !allowed(&any, &Ask::default()));
    let state = rules(
        "ALLOW",
        "{any: true}",
        "{filter_state: {key: io.istio.peer_principal, string_match: {prefix: 'spiffe://cluster.local/'}}}",
    );
    assert!(allowed(&state, &Ask::from(client)) && !allowed(&state, &Ask::from("spiffe://other/")));
}

#[test]
fn addresses_and_ports() {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let base = Ask {
        peer: address("10.1.2.3:1"),
        remote: address("1.2.3.4:1"),
        destination: address("10.0.0.2:8080"),
        ..Ask::default()
    };
    for (permission, principal, want) in [
        ("{destination_port: 8080}", "{any: true}", true),
        ("{destination_port: 80}", "{any: true}", false),
        ("{destination_port_range: {start: 8000, end: 8080}}", "{any: true}", false),
        ("{destination_port_range: {start: 8080, end: 65536}}", "{any: true}", true),
        ("{destination_ip: {address_prefix: 10.0.0.0, prefix_len: 30}}", "{any: true}", true),
        ("{destination_ip: {address_prefix: 10.0.0.4, prefix_len: 30}}", "{any: true}", false),
        ("{any: true}", "{direct_remote_ip: {address_prefix: 10.1.0.0, prefix_len: 16}}", true),
        ("{any: true}", "{remote_ip: {address_prefix: 10.1.0.0, prefix_len: 16}}", false),
        ("{any: true}", "{remote_ip: {address_prefix: 1.2.3.4, prefix_len: 32}}", true),
        ("{any: true}", "{source_ip: {address_prefix: 1.2.3.4, prefix_len: 32}}", true),
        ("{any: true}", "{remote_ip: {address_prefix: '::', prefix_len: 0}}", false),
    ] {
        assert_eq!(allowed(&rules("ALLOW", permission, principal), &base), want, "{permission} {principal}");
    }
    let mapped = Ask { peer: address("[::ffff:10.1.2.3]:1"), ..Ask::default() };
    let rbac = rules("DENY", "{any: true}", "{direct_remote_ip: {address_prefix: 10.1.2.3, prefix_len: 32}}");
    assert!(!allowed(&rbac, &mapped), "an IPv4 address is itself in IPv6 clothes");
}

#[test]
fn repeated_headers_are_judged_value_by_value() {
    let one = Ask::default().header("x", "admin");
    let two = one.clone().header("x", "other");
    let reversed = Ask::default().header("x", "other").header("x", "admin");
    let absent = Ask::default();
    let exact = "{header: {name: x, string_match: {exact: admin}}}";
    let not = "{not_rule: {header: {name: x, string_match: {exact: admin}}}}";
    let inverted = "{header: {name: x, string_match: {exact: admin}, invert_match: true}}";
    let joined = "{header: {name: x, string_match: {exact: 'admin,other'}}}";
    // Allowed: one value, two values, two the other way round, none.
    for (action, rule, want) in [
        ("ALLOW", exact, [true, false, false, false]),
        ("DENY", exact, [false, false, false, true]),
        ("ALLOW", not, [false, false, false, true]),
        ("DENY", not, [true, false, false, false]),
        ("ALLOW", inverted, [false, false, false, false]),
        ("DENY", inverted, [true, false, false, true]),
        ("DENY", joined, [true, false, true, true]),
        ("ALLOW", joined, [false, false, false, false]),
    ] {
        let rbac = rules(action, rule, "{any: true}");
        let got = [&one, &two, &reversed, &absent].map(|ask| allowed(&rbac, ask));
        assert_eq!(got, want, "{action} {rule}");
    }
}

#[test]
fn unknown_never_opens() {
    // Compiled with errors, so built by hand.
    let unsupported = || Condition::Leaf(Leaf::Unsupported("x".into()));
    let not = |c| Condition::Not(Box::new(c));
    let rbac = |action, permission| Rbac {
        rules: Some(Rules::new(
            action,
            vec![RulePolicy { name: "p".into(), permissions: vec![permission], principals: vec![Condition::Any] }],
        )),
        ..Default::default()
    };
    for action in [RuleAction::Allow, RuleAction::Deny] {
        for condition in [
            unsupported(),
            not(unsupported()),
            not(not(unsupported())),
            Condition::And(vec![Condition::Any, not(unsupported())]),
        ] {
            let text = format!("{action:?} {condition:?}");
            assert!(!allowed(&rbac(action, condition), &Ask::default()), "{text}");
        }
    }
    // An HTTP condition on a connection is as unknown.
    let tcp = Ask { tcp: true, ..Ask::default() };
    for rule in
        ["{url_path: {path: {exact: /get}}}", "{not_rule: {url_path: {path: {exact: /get}}}}", "{header: {name: x}}"]
    {
        assert!(!allowed(&rules("ALLOW", rule, "{any: true}"), &tcp), "ALLOW {rule}");
        assert!(!allowed(&rules("DENY", rule, "{any: true}"), &tcp), "DENY {rule}");
    }
}

#[test]
fn hosts_and_paths() {
    let deny = rules(
        "DENY",
        "{header: {name: ':authority', string_match: {exact: admin.example, ignore_case: true}}}",
        "{any: true}",
    );
    for authority in ["admin.example", "ADMIN.example", "admin.example:8080", "admin.example.", "admin.example.:80"] {
        assert!(!allowed(&deny, &Ask { authority, ..Ask::default() }), "{authority}");
    }
    assert!(allowed(&deny, &Ask { authority: "xadmin.example", ..Ask::default() }));
    let path = rules("ALLOW", "{url_path: {path: {exact: /get}}}", "{any: true}");
    assert!(allowed(&path, &Ask { path: "/get?x=/other", ..Ask::default() }), "without the query");
    assert!(!allowed(&path, &Ask { path: "/GET", ..Ask::default() }));
    let template = "{uri_template: {name: t, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/a/*/b'}}}";
    let deny = rules("DENY", template, "{any: true}");
    for (path, want) in [("/a/x/b", false), ("/a/*/b", false), ("/a/x/y/b", true), ("/a//b", true)] {
        assert_eq!(allowed(&deny, &Ask { path, ..Ask::default() }), want, "{path}");
    }
    let sni = rules("ALLOW", "{requested_server_name: {suffix: .com}}", "{any: true}");
    assert!(allowed(&sni, &Ask { server_name: Some("a.com"), ..Ask::default() }) && !allowed(&sni, &Ask::default()));
}

#[test]
fn metadata() {
    let text = |t: &str| MetadataValue::String(t.into());
    let list = MetadataValue::List(vec![text("a"), text("b")]);
    let at = |keys: &str, value: &str| {
        rules(
            "ALLOW",
            "{any: true}",
            &format!(
                "{{metadata: {{filter: envoy.filters.http.jwt_authn, path: [{{key: payload}}, {keys}], value: {value}}}}}"
            ),
        )
    };
    let or = "{or_match: {value_matchers: [{string_match: {exact: b}}, {list_match: {one_of: {string_match: {exact: b}}}}]}}";
    for (value, claim, want) in [
        ("{string_match: {exact: a}}", text("a"), true),
        ("{string_match: {exact: a}}", list.clone(), false),
        ("{list_match: {one_of: {string_match: {exact: b}}}}", list.clone(), true),
        ("{list_match: {one_of: {string_match: {exact: b}}}}", text("b"), false),
        (or, text("b"), true),
        (or, list.clone(), true),
        (or, text("c"), false),
        ("{bool_match: true}", MetadataValue::Bool(true), true),
        ("{bool_match: true}", text("true"), false),
        ("{present_match: true}", list, true),
        ("{double_match: {range: {start: 1, end: 2}}}", MetadataValue::Number(1.5), true),
    ] {
        let rbac = at("{key: c}", value);
        assert_eq!(allowed(&rbac, &Ask::default().claims(vec![("c", claim.clone())])), want, "{value} {claim:?}");
        assert!(!allowed(&rbac, &Ask::default()), "{value}: no claims");
    }
    let nested = MetadataValue::Struct(vec![("d".into(), text("x"))]);
    let ask = Ask::default().claims(vec![("c", nested)]);
    assert!(allowed(&at("{key: c}, {key: d}", "{string_match: {exact: x}}"), &ask));
    assert!(!allowed(&at("{key: c}, {key: e}", "{string_match: {exact: x}}"), &ask));
}

fn oracles() -> Option<Vec<(String, Rbac)>> {
    let mut all = Vec::new();
    for kind in ["http", "tcp"] {
        let Ok(folder) = std::fs::read_dir(format!("{ORACLES}/{kind}")) else {
            eprintln!("skipped: {ORACLES} is absent");
            return None;
        };
        for file in folder.map(|f| f.unwrap().path()) {
            let name = format!("{kind}/{}", file.file_stem().unwrap().to_str().unwrap());
            if name.contains("-out")
                && let Some(rbac) = compile(&std::fs::read_to_string(&file).unwrap(), &name)
            {
                all.push((name, rbac));
            }
        }
    }
    Some(all)
}

#[test]
fn generated_filters_compile_whole() {
    let Some(all) = oracles() else { return };
    assert!(all.len() >= 15, "only {} filters found", all.len());
    for (name, rbac) in &all {
        assert!(!format!("{rbac:?}").contains("Unsupported"), "{name}");
        assert!(rbac.rules.is_some() || rbac.shadow.is_some() || !rbac.shadow_prefix.is_empty(), "{name} is empty");
    }
}

#[test]
fn generated_filters_decide() {
    let Some(all) = oracles() else { return };
    let find = |name: &str| &all.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1;
    let at = |path: &'static str| Ask { path, ..Ask::default() };
    let port = |port: u16| Ask { destination: ([10, 0, 0, 2], port).into(), tcp: true, ..Ask::default() };
    let other = || Ask { method: "DELETE", path: "/x", destination: ([10, 0, 0, 2], 8080).into(), ..Ask::default() };
    let ns1 = "spiffe://cluster.local/ns/ns-1/sa/a";
    for (name, ask, want) in [
        ("http/trust-domains-out", Ask::from("spiffe://cluster.local/ns/a/sa/b"), true),
        ("http/trust-domains-out", Ask::from("spiffe://another.local/x"), true),
        ("http/trust-domains-out", Ask::from("spiffe://bad.local/ns/a/sa/b"), false),
        ("http/trust-domains-out", Ask::from("spiffe://untrusted/x"), false),
        // Its second principal is a negation, which holds where there is no certificate.
        ("http/trust-domains-out", Ask::default(), true),
        ("http/custom-bad-out", at("/httpbin1"), false),
        ("http/custom-bad-out", at("/httpbin3"), true),
        ("http/multiple-policies-out", other(), false),
        ("http/multiple-policies-out", Ask { method: "POST", ..other() }, true),
        ("http/multiple-policies-out", Ask { path: "/v2?x", ..other() }, true),
        ("http/multiple-policies-out", Ask { authority: "GOOGLE.com", ..other() }, true),
        ("http/multiple-policies-out", Ask { destination: ([10, 0, 0, 2], 90).into(), ..other() }, true),
        (
            "http/multiple-policies-out",
            Ask { certificate: Ask::from("spiffe://principals1").certificate, ..other() },
            true,
        ),
        (
            "http/multiple-policies-out",
            Ask { certificate: Ask::from("spiffe://td/ns/namespaces2/sa/x").certificate, ..other() },
            true,
        ),
        (
            "http/multiple-policies-out",
            Ask { certificate: Ask::from("spiffe://td/ns/namespaces3/sa/x").certificate, ..other() },
            false,
        ),
        ("http/multiple-policies-out", Ask { peer: ([5, 6, 7, 8], 1).into(), ..other() }, true),
        ("http/multiple-policies-out", other().header("x-abc", "abc2"), true),
        ("http/multiple-policies-out", other().header("x-abc", "abc3"), false),
        ("http/dry-run-mix-out", at("/another"), true),
        ("http/dry-run-mix-out", at("/allow"), false),
        ("tcp/allow-both-http-tcp-out", Ask { certificate: Ask::from(ns1).certificate, ..port(80) }, true),
        ("tcp/allow-both-http-tcp-out", Ask { certificate: Ask::from(ns1).certificate, ..port(81) }, false),
        ("tcp/allow-both-http-tcp-out", port(80), false),
        ("tcp/deny-both-http-tcp-out", port(9999), false),
    ] {
        assert_eq!(allowed(find(name), &ask), want, "{name} {} {:?}", ask.path, ask.destination);
    }
    let shadow = at("/allow").decide(find("http/dry-run-mix-out")).shadow;
    assert_eq!(shadow, Some((true, Some("ns[foo]-policy[httpbin-1]-rule[0]".into()))));
}
