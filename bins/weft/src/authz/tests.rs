//! Questions about a small mesh, in tables.

use super::decide::{Answer, Ask, Verdict, decide};
use super::{World, lint, mesh_config, settings};
use serde_json::json;
use std::sync::Arc;
use weft_k8s_api::yaml;
use weft_model::Inputs;

fn pod(namespace: &str, name: &str, ip: &str, proxy: bool) -> String {
    let sidecar = if proxy { ", {name: istio-proxy, image: x}" } else { "" };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
         spec: {{serviceAccountName: {name}, containers: [{{name: app, image: x}}{sidecar}]}}\n\
         status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n"
    )
}

fn service(namespace: &str, name: &str, ip: &str, port: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{clusterIP: 10.96.0.9, selector: {{app: {name}}}, ports: [{port}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: main, port: 8000, protocol: TCP}}]\n\
         endpoints: [{{addresses: [{ip}], conditions: {{ready: true}}, targetRef: {{kind: Pod, name: {name}, namespace: {namespace}}}}}]\n"
    )
}

/// httpbin and db in `foo`; callers `sleep` in `foo` and `bar` with proxies, and `legacy` without one.
fn world(policies: &str) -> World {
    world_with("{trustDomain: td, trustDomainAliases: [old]}", policies)
}

fn world_with(mesh: &str, policies: &str) -> World {
    let mut text = String::new();
    for namespace in ["foo", "bar", "istio-system"] {
        text.push_str(&format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n"));
    }
    text.push_str(&pod("foo", "httpbin", "10.0.0.1", true));
    text.push_str(&pod("foo", "db", "10.0.0.2", true));
    text.push_str(&pod("foo", "sleep", "10.0.0.3", true));
    text.push_str(&pod("bar", "sleep", "10.0.0.4", true));
    text.push_str(&pod("bar", "legacy", "10.0.0.5", false));
    text.push_str(&service(
        "foo",
        "httpbin",
        "10.0.0.1",
        "{name: main, port: 80, targetPort: 8000, appProtocol: http}",
    ));
    text.push_str(&service("foo", "db", "10.0.0.2", "{name: main, port: 5000, targetPort: 8000, appProtocol: tcp}"));
    text.push_str(policies);
    let mesh = mesh_config(mesh).unwrap();
    let mut inputs = Inputs::new(Arc::new(mesh.clone()), Arc::new(settings(&mesh, "istio-system")));
    for document in yaml::documents(&text, "test").unwrap() {
        inputs.push(Arc::new(document.object));
    }
    World::of(&inputs)
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: foo}}\nspec: {spec}\n"
    )
}

fn answer(world: &World, source: &str, destination: &str, ask: &Ask) -> Answer {
    let caller = world.source(source, "foo").unwrap();
    let destination = world.destination(destination, "foo", None).unwrap();
    decide(world, &caller, &destination, ask).unwrap()
}

fn get(path: &str) -> Ask {
    Ask { path: path.into(), ..Ask::default() }
}

const DENY_ADMIN: &str =
    "{selector: {matchLabels: {app: httpbin}}, action: DENY, rules: [{to: [{operation: {paths: [/admin*]}}]}]}";
const ALLOW_SLEEP: &str = "{selector: {matchLabels: {app: httpbin}}, rules: [{from: [{source: {principals: [td/ns/foo/sa/other]}}]}, \
     {from: [{source: {principals: [cluster.local/ns/foo/sa/sleep]}}], to: [{operation: {methods: [GET]}}]}]}";

#[test]
fn the_deciding_rule_is_named() {
    let open = world("");
    let guarded = world(&[policy("deny", DENY_ADMIN), policy("allow", ALLOW_SLEEP)].concat());
    let post = Ask { method: "POST".into(), ..Ask::default() };
    for (world, source, ask, verdict, rule, reason) in [
        (&open, "sleep", &get("/"), Verdict::Allowed, "", "no ALLOW policy binds"),
        (&open, "legacy.bar", &get("/"), Verdict::Allowed, "", "no ALLOW policy binds"),
        (&guarded, "sleep", &get("/ip"), Verdict::Allowed, "foo/allow spec.rules[1]", "ALLOW policy matches"),
        (&guarded, "sleep", &post, Verdict::Denied, "", "no rule of the ALLOW policies matches: foo/allow"),
        (&guarded, "sleep", &get("/admin/x"), Verdict::Denied, "foo/deny spec.rules[0]", "DENY policy matches"),
        // The path is normalised as the proxy does it, before it is judged.
        (&guarded, "sleep", &get("/ip/../%61dmin"), Verdict::Denied, "foo/deny spec.rules[0]", "403"),
        (&guarded, "sleep", &get("/ip#x"), Verdict::Denied, "", "400"),
        (&guarded, "sleep.bar", &get("/"), Verdict::Denied, "", "no rule"),
        (&guarded, "legacy.bar", &get("/"), Verdict::Denied, "", "no rule"),
        // An older name of the mesh is the same account.
        (&guarded, "spiffe://old/ns/foo/sa/sleep", &get("/"), Verdict::Allowed, "foo/allow spec.rules[1]", ""),
        (&guarded, "strange/ns/foo/sa/sleep", &get("/"), Verdict::Denied, "", ""),
        (&guarded, "sa/sleep", &get("/"), Verdict::Allowed, "foo/allow spec.rules[1]", ""),
        (&guarded, "10.0.0.3", &get("/"), Verdict::Allowed, "foo/allow spec.rules[1]", ""),
        (&guarded, "10.9.9.9", &get("/"), Verdict::Denied, "", ""),
    ] {
        let answer = answer(world, source, "httpbin", ask);
        let named = answer.rule.as_ref().map(ToString::to_string).unwrap_or_default();
        assert_eq!(answer.verdict, verdict, "{source} {ask:?}: {answer:?}");
        assert!(named.ends_with(rule) && named.is_empty() == rule.is_empty(), "{source} {ask:?}: {named:?}");
        assert!(answer.reason.contains(reason), "{source} {ask:?}: {}", answer.reason);
    }
}

#[test]
fn mutual_tls_is_part_of_the_answer() {
    let strict = world(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: foo}\nspec: {mtls: {mode: STRICT}}\n",
    );
    let disabled = world(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: foo}\nspec: {mtls: {mode: DISABLE}}\n",
    );
    for (world, source, destination, verdict, mutual) in [
        (&strict, "sleep", "httpbin", Verdict::Allowed, true),
        (&strict, "legacy.bar", "httpbin", Verdict::Denied, false),
        (&strict, "legacy.bar", "db", Verdict::Denied, false),
        (&disabled, "sleep", "httpbin", Verdict::Allowed, false),
        (&disabled, "legacy.bar", "db", Verdict::Allowed, false),
    ] {
        let answer = answer(world, source, destination, &Ask::default());
        assert_eq!(
            (answer.verdict, answer.mutual_tls),
            (verdict, mutual),
            "{source} → {destination}: {}",
            answer.reason
        );
    }
    // What has no proxy is guarded by nothing, and says so.
    let caller = strict.source("sleep", "foo").unwrap();
    let destination = strict.destination("legacy.bar:80", "foo", None).unwrap();
    assert!(decide(&strict, &caller, &destination, &Ask::default()).unwrap_err().to_string().contains("no proxy"));
}

#[test]
fn headers_claims_and_connections() {
    let tokens = "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: jwt, namespace: foo}\n\
                  spec: {jwtRules: [{issuer: me, audiences: [ours], jwks: '{\"keys\": []}'}]}\n";
    let by_claim = policy(
        "claims",
        "{selector: {matchLabels: {app: httpbin}}, rules: [{from: [{source: {requestPrincipals: [me/*]}}], \
          when: [{key: 'request.auth.claims[groups]', values: [admin]}, {key: 'request.headers[x-team]', values: [a]}]}]}",
    );
    let tcp = policy(
        "tcp",
        "{selector: {matchLabels: {app: db}}, rules: [{from: [{source: {namespaces: [foo]}}], to: [{operation: {ports: ['8000']}}]}]}",
    );
    let with = world(&[tokens.to_string(), by_claim.clone(), tcp].concat());
    let without = world(&by_claim);
    let ask = |claims: Option<serde_json::Value>, team: &str| Ask {
        claims,
        headers: vec![("x-team".into(), team.into())],
        ..Ask::default()
    };
    let good = json!({"iss": "me", "sub": "x", "aud": "ours", "groups": ["user", "admin"]});
    for (world, claims, team, verdict) in [
        (&with, Some(good.clone()), "a", Verdict::Allowed),
        (&with, Some(good.clone()), "b", Verdict::Denied),
        (&with, Some(json!({"iss": "you", "sub": "x", "groups": ["admin"]})), "a", Verdict::Denied),
        (&with, Some(json!({"iss": "me", "sub": "x", "aud": "ours", "groups": ["user"]})), "a", Verdict::Denied),
        (&with, Some(json!({"iss": "me", "sub": "x", "groups": ["admin"], "aud": "others"})), "a", Verdict::Denied),
        (&with, None, "a", Verdict::Denied),
        (&without, Some(good), "a", Verdict::Denied),
    ] {
        let answer = answer(world, "sleep", "httpbin", &ask(claims.clone(), team));
        assert_eq!(answer.verdict, verdict, "{claims:?} {team}: {}", answer.reason);
    }
    for (source, verdict) in
        [("sleep", Verdict::Allowed), ("sleep.bar", Verdict::Denied), ("legacy.bar", Verdict::Denied)]
    {
        assert_eq!(answer(&with, source, "db", &Ask::default()).verdict, verdict, "{source}");
    }
}

#[test]
fn a_destination_rule_may_keep_the_caller_from_mutual_tls() {
    let plain = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: plain, namespace: foo}\n\
                 spec: {host: httpbin, trafficPolicy: {tls: {mode: DISABLE}}}\n";
    let strict = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: foo}\n\
                  spec: {mtls: {mode: STRICT}}\n";
    for (objects, verdict, mutual) in [
        (plain.to_string(), Verdict::Allowed, false),
        ([plain, strict].concat(), Verdict::Denied, false),
        (strict.to_string(), Verdict::Allowed, true),
    ] {
        let answer = answer(&world(&objects), "sleep", "httpbin", &Ask::default());
        assert_eq!((answer.verdict, answer.mutual_tls), (verdict, mutual), "{}", answer.reason);
    }
}

#[test]
fn a_host_that_the_caller_is_not_told_of_gets_no_identity() {
    let sidecar = "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: default, namespace: foo}\n\
                   spec: {egress: [{hosts: [istio-system/*]}]}\n";
    let strict = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: foo}\n\
                  spec: {mtls: {mode: STRICT}}\n";
    let allow = policy("allow", ALLOW_SLEEP);
    for (objects, source, verdict, mutual, says) in [
        (allow.clone(), "sleep", Verdict::Allowed, true, "ALLOW policy matches"),
        ([sidecar, &allow].concat(), "sleep", Verdict::Denied, false, "not told of httpbin.foo.svc.cluster.local:80"),
        (sidecar.to_string(), "sleep", Verdict::Allowed, false, "plain text and shows no identity"),
        (
            [sidecar, strict].concat(),
            "sleep",
            Verdict::Denied,
            false,
            "takes mutual TLS only (PeerAuthentication), and the caller's proxy",
        ),
        // It is that of the caller's namespace alone.
        ([sidecar, strict].concat(), "sleep.bar", Verdict::Allowed, true, "no ALLOW policy binds"),
    ] {
        let answer = answer(&world(&objects), source, "httpbin", &Ask::default());
        assert_eq!((answer.verdict, answer.mutual_tls), (verdict, mutual), "{source}: {}", answer.reason);
        assert!(answer.reason.contains(says), "{source}: {}", answer.reason);
    }
}

#[test]
fn an_application_with_a_label_of_gateways_is_none() {
    let pod = pod("foo", "lookalike", "10.0.0.7", true).replace("{app: lookalike}", "{app: lookalike, istio: x}");
    let service =
        service("foo", "lookalike", "10.0.0.7", "{name: main, port: 80, targetPort: 8000, appProtocol: http}");
    let closed = policy(
        "none",
        "{selector: {matchLabels: {istio: x}}, rules: [{from: [{source: {principals: [td/ns/foo/sa/sleep]}}]}]}",
    );
    let world = world(&[pod, service, closed].concat());
    for (source, verdict, mutual) in [("sleep", Verdict::Allowed, true), ("legacy.bar", Verdict::Denied, false)] {
        let answer = answer(&world, source, "lookalike", &Ask::default());
        assert_eq!((answer.verdict, answer.mutual_tls), (verdict, mutual), "{source}: {}", answer.reason);
    }
}

#[test]
fn external_authorizers_of_bytes_are_asked_too() {
    let custom = policy(
        "ask",
        "{selector: {matchLabels: {app: db}}, action: CUSTOM, provider: {name: asker}, rules: [{to: [{operation: {ports: ['8000']}}]}]}",
    );
    let provider =
        "{extensionProviders: [{name: asker, envoyExtAuthzGrpc: {service: httpbin.foo.svc.cluster.local, port: 80}}]}";
    let asked = answer(&world_with(provider, &custom), "sleep", "db", &Ask::default());
    assert_eq!(asked.verdict, Verdict::Asked, "{}", asked.reason);
    // Whatever the authorizer says.
    let deny = policy(
        "deny",
        "{selector: {matchLabels: {app: db}}, action: DENY, rules: [{to: [{operation: {ports: ['8000']}}]}]}",
    );
    let denied = answer(&world_with(provider, &[custom, deny].concat()), "sleep", "db", &Ask::default());
    assert_eq!(denied.verdict, Verdict::Denied, "{}", denied.reason);
    assert!(denied.reason.contains("a DENY policy matches"), "{}", denied.reason);
}

#[test]
fn gateways_are_guarded_too() {
    let gateway = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: gw-1, namespace: istio-system, labels: {app: gw-1, istio: ingressgateway}}\n\
                   spec: {serviceAccountName: gw, containers: [{name: istio-proxy, image: x}]}\n\
                   status: {phase: Running, podIP: 10.0.0.9, podIPs: [{ip: 10.0.0.9}], conditions: [{type: Ready, status: \"True\"}]}\n";
    let service =
        service("istio-system", "gw-1", "10.0.0.9", "{name: main, port: 80, targetPort: 8000, appProtocol: http}");
    let objects = "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: istio-system}\n\
                   spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n\
                   ---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: edge, namespace: istio-system}\n\
                   spec: {selector: {matchLabels: {istio: ingressgateway}}, action: DENY, rules: [{from: [{source: {ipBlocks: [10.9.0.0/16]}}], to: [{operation: {paths: [/admin*]}}]}]}\n";
    let world = world(&[gateway, &service, objects].concat());
    for (source, path, verdict) in [
        ("10.9.9.9", "/admin/x", Verdict::Denied),
        ("10.9.9.9", "/", Verdict::Allowed),
        ("10.8.9.9", "/admin/x", Verdict::Allowed),
    ] {
        let answer = answer(&world, source, "gw-1.istio-system", &get(path));
        assert_eq!(answer.verdict, verdict, "{source} {path}: {}", answer.reason);
    }
    assert_eq!(lint::findings(&world, None), Vec::new(), "a policy for a gateway guards something");
    let caller = world.source("sleep", "foo").unwrap();
    let closed = world.destination("gw-1.istio-system:9", "foo", None);
    assert!(closed.is_err() || decide(&world, &caller, &closed.unwrap(), &Ask::default()).is_err());
}

#[test]
fn dry_runs_are_told_and_not_enforced() {
    let text =
        policy("deny", DENY_ADMIN).replace("name: deny,", "name: deny, annotations: {istio.io/dry-run: 'true'},");
    let answer = answer(&world(&text), "sleep", "httpbin", &get("/admin"));
    assert_eq!(answer.verdict, Verdict::Allowed);
    assert!(answer.dry_run[0].contains("foo/deny spec.rules[0]"), "{:?}", answer.dry_run);
}

/// A pod of the Gateway `g`.
const GATEWAY_POD: &str = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: gw-2, namespace: NAMESPACE, \
    labels: {istio: ingressgateway, gateway.networking.k8s.io/gateway-name: g}}\n\
    spec: {serviceAccountName: gw, containers: [{name: istio-proxy, image: x}]}\n\
    status: {phase: Running, podIP: 10.0.0.9, podIPs: [{ip: 10.0.0.9}]}\n";

#[test]
fn rules_that_can_never_match_are_named() {
    let bad = [
        policy("unbound", "{selector: {matchLabels: {app: nothing}}, rules: [{}]}"),
        policy("account", "{rules: [{from: [{source: {principals: [td/ns/foo/sa/gone]}}]}]}"),
        policy("domain", "{rules: [{from: [{source: {principals: [strange/ns/foo/sa/sleep]}}]}]}"),
        policy("namespace", "{rules: [{from: [{source: {namespaces: [nowhere]}}]}]}"),
        policy("tcp", "{selector: {matchLabels: {app: db}}, rules: [{to: [{operation: {methods: [GET]}}]}]}"),
        policy("token", "{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}"),
        policy("port", "{selector: {matchLabels: {app: httpbin}}, rules: [{to: [{operation: {ports: ['80']}}]}]}"),
        policy("both", "{rules: [{to: [{operation: {paths: [/a], notPaths: [/a]}}]}]}"),
        policy("lower", "{rules: [{to: [{operation: {methods: [get]}}]}]}"),
    ];
    let world = world(&bad.concat());
    let found = lint::findings(&world, Some("foo"));
    for (policy, path, says) in [
        ("unbound", "spec.selector", "guards nothing"),
        ("account", "spec.rules[0].from[0].source.principals[0]", "no live workload runs as"),
        ("domain", "spec.rules[0].from[0].source.principals[0]", "trust domain strange"),
        ("namespace", "spec.rules[0].from[0].source.namespaces[0]", "no namespace nowhere"),
        ("tcp", "spec.rules[0].to[0].operation", "only TCP"),
        ("token", "spec.rules[0].from[0].source.requestPrincipals", "no RequestAuthentication"),
        ("port", "spec.rules[0].to[0].operation.ports[0]", "no selected workload serves port 80"),
        ("both", "spec.rules[0].to[0].operation.paths", "excluded"),
        ("lower", "spec.rules[0].to[0].operation.methods[0]", "upper case"),
    ] {
        let of_policy: Vec<_> = found.iter().filter(|f| f.policy == format!("foo/{policy}")).collect();
        assert!(of_policy.iter().any(|f| f.path == path && f.message.contains(says)), "{policy}: {of_policy:?}");
    }
    // Bound to a Gateway of its own namespace, the root namespace's policy is nothing to those of others.
    let to_gateway =
        policy("edge", "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}], rules: [{}]}")
            .replace("namespace: foo", "namespace: istio-system");
    let elsewhere = GATEWAY_POD.replace("NAMESPACE", "foo");
    let unbound = lint::findings(&self::world(&[to_gateway.as_str(), &elsewhere].concat()), None);
    assert!(
        unbound.iter().any(|f| f.policy == "istio-system/edge" && f.message.contains("guards nothing")),
        "{unbound:?}"
    );
    let good = self::world(&[policy("deny", DENY_ADMIN), policy("fine", "{rules: [{from: [{source: {principals: ['*/sleep', td/ns/bar/sa/sleep, old/ns/foo/sa/sleep], namespaces: ['f*']}}]}]}")].concat());
    assert_eq!(lint::findings(&good, None), Vec::new());
}

#[test]
fn gateways_call_too() {
    let gateway = "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: gw-abc-1\n  namespace: istio-system\n  labels: {istio: ingressgateway, pod-template-hash: abc}\n  \
                   ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: gw-abc, uid: u, controller: true}]\n\
                   spec: {serviceAccountName: gw, containers: [{name: istio-proxy, image: x}]}\n\
                   status: {phase: Running, podIP: 10.0.0.9, podIPs: [{ip: 10.0.0.9}]}\n";
    let world = world(gateway);
    let caller = world.source("gw.istio-system", "foo").unwrap();
    assert_eq!(caller.identity.as_deref(), Some("spiffe://td/ns/istio-system/sa/gw"));
    assert!(world.callers().iter().any(|caller| caller.name == "istio-system/gw"));
}
