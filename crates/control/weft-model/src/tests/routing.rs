//! Virtual services, destination rules, gateways, and what is wrong with them.

use super::{REVIEWS, labels, mesh, warnings_of};
use weft_k8s_api::istio::StringMatch;

#[test]
fn hosts_gateways_and_order() {
    let mesh = mesh(
        r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: younger, namespace: b, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {hosts: [Reviews, "*.Example.com"], http: [{route: [{destination: {host: ratings}}]}]}
---
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: older, namespace: a, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  hosts: ["*.older.example.com"]
  gateways: [gw, other/gw, ./own, mesh]
  exportTo: ["."]
  http:
  - match: [{gateways: [gw]}]
    route: [{destination: {host: reviews.b}}]
    mirror: {host: shadow}
  tcp: [{match: [{gateways: [mesh]}], route: [{destination: {host: db}}]}]
"#,
    );
    let [older, younger] = mesh.virtual_services.as_slice() else { panic!("{:?}", mesh.warnings) };
    assert_eq!((older.name.as_str(), younger.name.as_str()), ("older", "younger"));
    assert_eq!(older.gateways, ["a/gw", "other/gw", "a/own", "mesh"]);
    assert_eq!(younger.gateways, ["mesh"]);
    let hosts: Vec<&str> = younger.hosts.iter().map(|h| &**h).collect();
    assert_eq!(hosts, ["reviews.b.svc.cluster.local", "*.example.com"]);
    let route = &older.spec.http[0];
    assert_eq!(route.matches[0].gateways, ["a/gw"]);
    assert_eq!(route.route[0].destination.as_ref().unwrap().host, "reviews.b");
    assert_eq!(route.mirror.as_ref().unwrap().host, "shadow.a.svc.cluster.local");
    assert_eq!(older.spec.tcp[0].route[0].destination.as_ref().unwrap().host, "db.a.svc.cluster.local");
    for (gateway, namespace, names) in [
        ("mesh", "a", vec!["older", "younger"]),
        ("mesh", "c", vec!["younger"]),
        ("a/gw", "a", vec!["older"]),
        ("a/gw", "istio-system", vec![]),
    ] {
        let bound = mesh.virtual_services_for(gateway, namespace);
        assert_eq!(bound.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), names, "{gateway} {namespace}");
    }
}

#[test]
fn delegates_are_merged() {
    let mesh = mesh(
        r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: root, namespace: a}
spec:
  hosts: [shop.example.com]
  gateways: [gw]
  http:
  - name: r
    match: [{uri: {prefix: /shop}, headers: {x: {exact: "1"}}}]
    delegate: {name: shop, namespace: b}
    timeout: 3s
  - match: [{uri: {prefix: /hidden}}]
    delegate: {name: hidden, namespace: b}
  - delegate: {name: absent}
  - route: [{destination: {host: front}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: b}
spec:
  http:
  - {name: cart, match: [{uri: {prefix: /shop/cart}, headers: {x: {}}}], timeout: 9s, route: [{destination: {host: cart}}]}
  - {name: half, match: [{uri: {prefix: /shop/half}}, {uri: {prefix: /elsewhere}}], route: [{destination: {host: half}}]}
  - {match: [{uri: {regex: ".*"}}], route: [{destination: {host: never}}]}
  - {retries: {attempts: 3}, route: [{destination: {host: all}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hidden, namespace: b}
spec: {exportTo: ["."], http: [{route: [{destination: {host: hidden}}]}]}
"#,
    );
    let [root] = mesh.virtual_services.as_slice() else { panic!("{:?}", mesh.warnings) };
    let routes: Vec<_> = root.spec.http.iter().zip(&root.http_origin).collect();
    let names: Vec<&str> = routes.iter().map(|(route, _)| route.name.as_str()).collect();
    assert_eq!(
        names,
        ["r-cart", "r", ""],
        "one condition beyond the root's takes the whole route of the delegate away"
    );
    let (cart, origin) = routes[0];
    assert_eq!(origin.to_string(), "VirtualService b/shop spec.http[0]");
    assert_eq!(cart.matches.len(), 1);
    assert_eq!(cart.matches[0].uri, Some(StringMatch::Prefix("/shop/cart".into())));
    assert_eq!(cart.matches[0].headers["x"], StringMatch::Exact("1".into()));
    assert_eq!(cart.timeout.unwrap().get().as_secs(), 9);
    assert_eq!(cart.route[0].destination.as_ref().unwrap().host, "cart.b.svc.cluster.local");
    let (all, _) = routes[1];
    assert_eq!(all.matches[0].uri, Some(StringMatch::Prefix("/shop".into())));
    assert_eq!((all.retries.as_ref().unwrap().attempts, all.timeout.unwrap().get().as_secs()), (3, 3));
    assert_eq!(routes[2].1.path, "spec.http[3]");
    let found = warnings_of(&mesh, "VirtualService", "root");
    assert!(found.contains(&"IST0101 spec.http[1].delegate".to_string()), "{found:?}");
    assert!(found.contains(&"IST0101 spec.http[2].delegate".to_string()), "{found:?}");
    let mut found = warnings_of(&mesh, "VirtualService", "shop");
    found.retain(|w| w.starts_with("DelegateConflict"));
    assert_eq!(found, ["DelegateConflict spec.http[1].match", "DelegateConflict spec.http[2].match"]);
}

/// What the delegate says of a field beside the conditions counts; what it leaves out is the root's.
#[test]
fn a_delegates_own_settings_count_before_the_roots() {
    let settings = |n: u32, host: &str| {
        format!(
            "rewrite: {{uri: /{n}}}, timeout: {n}s, retries: {{attempts: {n}}}, fault: {{abort: {{httpStatus: 50{n}, percentage: {{value: 1}}}}}}, \
             mirror: {{host: {host}}}, mirrorPercentage: {{value: {n}}}, corsPolicy: {{allowMethods: [GET], maxAge: {n}s}}, \
             headers: {{request: {{set: {{x: \"{n}\"}}}}}}"
        )
    };
    let virtual_service = |name: &str, more: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {{name: {name}, namespace: a}}, spec: {{{more}}}}}\n---\n"
        )
    };
    let to = "route: [{destination: {host: x.example.com}}]";
    let mesh = mesh(
        &[
            virtual_service(
                "root",
                &format!(
                    "hosts: [a.example.com], http: [{{delegate: {{name: leaf}}, {}}}]",
                    settings(1, "one.example.com")
                ),
            ),
            virtual_service("leaf", &format!("http: [{{{to}, {}}}, {{{to}}}]", settings(2, "two.example.com"))),
            virtual_service(
                "answers",
                "hosts: [b.example.com], http: [{delegate: {name: plain}, directResponse: {status: 418}}]",
            ),
            virtual_service("plain", &format!("http: [{{directResponse: {{status: 404}}}}, {{{to}}}]")),
        ]
        .concat(),
    );
    let of = |name: &str| {
        mesh.virtual_services.iter().find(|vs| vs.name == name).unwrap_or_else(|| panic!("{:?}", mesh.warnings))
    };
    for (route, n) in of("root").spec.http.iter().zip([2, 1]) {
        let value = serde_json::to_value(route).unwrap();
        let got = [
            &value["rewrite"]["uri"],
            &value["timeout"],
            &value["fault"]["abort"]["httpStatus"],
            &value["retries"]["attempts"],
            &value["mirrorPercentage"]["value"],
            &value["corsPolicy"]["maxAge"],
            &value["headers"]["request"]["set"]["x"],
        ];
        let want = serde_json::json!([
            format!("/{n}"),
            format!("{n}s"),
            500 + n,
            n,
            f64::from(n),
            format!("{n}s"),
            n.to_string(),
        ]);
        assert_eq!(serde_json::json!(got), want);
        assert_eq!(value["mirror"]["host"], if n == 2 { "two.example.com" } else { "one.example.com" });
    }
    let answers: Vec<u32> =
        of("answers").spec.http.iter().map(|r| r.direct_response.as_ref().unwrap().status).collect();
    assert_eq!(answers, [404, 418]);
}

#[test]
fn destination_rules_merge_by_age() {
    let mesh = mesh(
        r#"
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: second, namespace: a, creationTimestamp: "2026-01-02T00:00:00Z"}
spec:
  host: reviews.a.svc.cluster.local
  trafficPolicy: {loadBalancer: {simple: RANDOM}}
  subsets: [{name: v1, labels: {version: other}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: first, namespace: a, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  host: reviews
  trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}
  subsets: [{name: v1, labels: {version: v1}}]
"#,
    );
    let [rule] = mesh.destination_rules["a"]["reviews.a.svc.cluster.local"].as_slice() else { panic!("not merged") };
    assert_eq!((rule.name.as_str(), rule.origins.len()), ("first", 2));
    let subsets: Vec<_> = rule.spec.subsets.iter().map(|s| (s.name.as_str(), s.labels["version"].as_str())).collect();
    assert_eq!(subsets, [("v1", "v1"), ("v2", "v2")]);
    let policy = serde_json::to_value(rule.spec.traffic_policy.as_ref().unwrap()).unwrap();
    assert_eq!(policy["loadBalancer"]["simple"], "LEAST_REQUEST");
    let found = warnings_of(&mesh, "DestinationRule", "second");
    assert_eq!(found, ["DestinationRuleConflict spec.subsets[0]", "DestinationRuleConflict spec.trafficPolicy"]);
}

#[test]
fn destination_rule_lookup() {
    let rule = |ns: &str, name: &str, host: &str, rest: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {{host: \"{host}\"{rest}}}\n---\n"
        )
    };
    let service = |ns: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: {ns}}}\nspec: {{clusterIP: 10.0.0.1, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let mesh = mesh(
        &[
            service("own"),
            service("plain"),
            service("hidden"),
            rule("client", "client-exact", "db.own.svc.cluster.local", ""),
            rule("client", "client-wide", "*.hidden.svc.cluster.local", ", exportTo: [\".\"]"),
            rule("own", "own-exact", "db", ""),
            rule("plain", "plain-exact", "db", ""),
            rule("hidden", "hidden-exact", "db", ", exportTo: [\".\"]"),
            rule("istio-system", "root-wide", "*.local", ""),
            rule("istio-system", "root-wider", "*", ""),
            rule("client", "selected", "*.own.svc.cluster.local", ", workloadSelector: {matchLabels: {app: x}}"),
        ]
        .concat(),
    );
    for (host, client, want) in [
        ("db.own.svc.cluster.local", "client", "client-exact"),
        ("db.own.svc.cluster.local", "stranger", "own-exact"),
        ("db.own.svc.cluster.local", "own", "own-exact"),
        ("db.plain.svc.cluster.local", "client", "plain-exact"),
        ("db.hidden.svc.cluster.local", "client", "client-wide"),
        ("db.hidden.svc.cluster.local", "stranger", "root-wide"),
        ("db.hidden.svc.cluster.local", "hidden", "hidden-exact"),
        ("www.example.com", "client", "root-wider"),
    ] {
        let service = mesh.service_for(host, client).map(|s| &**s);
        let found = mesh.destination_rule_for(host, client, service).map(|r| r.name.as_str());
        assert_eq!(found, Some(want), "{host} from {client}");
    }
    let selected =
        mesh.destination_rule_for_workload("db.own.svc.cluster.local", "client", &labels(&[("app", "x")]), None);
    assert_eq!(selected.unwrap().name, "client-exact", "the exact host comes first");
}

#[test]
fn references_that_lead_nowhere() {
    let mesh = mesh(
        &(REVIEWS.to_string()
            + r#"
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: nowhere, namespace: default}
spec: {host: nowhere}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vs, namespace: default}
spec:
  hosts: [reviews]
  gateways: [mesh, gone]
  http:
  - route:
    - {destination: {host: reviews, subset: v1, port: {number: 9080}}, weight: 50}
    - {destination: {host: reviews, subset: v7, port: {number: 1}}, weight: 50}
  - route: [{destination: {host: absent}}]
  - route: [{destination: {host: reviews}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: on-reviews, namespace: default}
spec:
  selector: {app: reviews}
  servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ["*"], tls: {mode: SIMPLE, credentialName: cert}}]
"#),
    );
    let table: [(&str, &str, &[&str]); 5] = [
        ("DestinationRule", "reviews", &[]),
        ("DestinationRule", "nowhere", &["IST0101 spec.host"]),
        (
            "VirtualService",
            "vs",
            &[
                "IST0101 spec.gateways[1]",
                "IST0101 spec.http[0].route[1].destination.port.number",
                "IST0101 spec.http[0].route[1].destination.subset",
                "IST0101 spec.http[1].route[0].destination.host",
                "IST0112 spec.http[2].route[0].destination.port",
            ],
        ),
        ("Gateway", "gw", &["IST0101 spec.selector"]),
        ("Gateway", "on-reviews", &["IST0101 spec.servers[0].tls.credentialName"]),
    ];
    for (kind, name, want) in table {
        assert_eq!(warnings_of(&mesh, kind, name), want, "{kind} {name}");
    }
    let bound = mesh.gateways_for("default", &labels(&[("app", "reviews"), ("version", "v1")]));
    assert_eq!(bound.iter().map(|g| g.name.as_str()).collect::<Vec<_>>(), ["on-reviews"]);
}
