//! What a change leaves as it was.

use super::{REVIEWS, inputs, objects};
use crate::{Inputs, MeshSnapshot, Sections, build};
use serde_json::json;
use std::sync::Arc;
use weft_k8s_api::{Object, istio};

const VS: &str = r#"
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: one, namespace: default}
spec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: two, namespace: default}
spec: {hosts: [two.example.com], http: [{delegate: {name: leaf}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: leaf, namespace: default}
spec: {http: [{route: [{destination: {host: reviews}}]}]}
"#;

fn group_of(kind: &str) -> &'static str {
    crate::KINDS.iter().find(|(_, k)| *k == kind).unwrap().0
}

/// The inputs with one object changed.
fn edit(inputs: &Inputs, kind: &str, name: &str, change: impl Fn(&mut Object)) -> Inputs {
    let mut edited = inputs.clone();
    let list: Vec<Arc<Object>> = inputs
        .of(group_of(kind), kind)
        .iter()
        .map(|o| {
            if o.name() != name {
                return o.clone();
            }
            let mut object = (**o).clone();
            change(&mut object);
            Arc::new(object)
        })
        .collect();
    let group = list[0].group().to_string();
    edited.set(&group, kind, list);
    edited
}

#[test]
fn a_policy_that_becomes_invalid_stays_as_it_was() {
    let policies = |action: &str, more: &str| {
        format!(
            r#"{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: deny, namespace: default}},
                spec: {{action: {action}, rules: [{{to: [{{operation: {{paths: [/admin]}}}}]}}]}}}}
---
{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: other, namespace: default}},
  spec: {{action: AUDIT, rules: [{{to: [{{operation: {{paths: [{more}]}}}}]}}]}}}}
"#
        )
    };
    let names = |mesh: &MeshSnapshot| {
        mesh.authorization.get("default").into_iter().flatten().map(|p| p.name.clone()).collect::<Vec<_>>()
    };
    let told = |mesh: &MeshSnapshot| {
        let about = mesh.warnings.iter().filter(|w| w.code == "IST0106" && w.at.name == "deny");
        about.map(|w| w.message.contains("stays in force")).collect::<Vec<_>>()
    };
    let first = build(&inputs(&policies("DENY", "/a")), None);
    assert_eq!((names(&first).len(), told(&first)), (2, vec![]));
    let broken = build(&inputs(&policies("DENNY", "/a")), Some(&first));
    assert_eq!((names(&broken).len(), told(&broken)), (2, vec![true]));
    assert!(Arc::ptr_eq(&broken.authorization["default"][0].spec, &first.authorization["default"][0].spec));
    // It is still said, and still held, after another object of the kind changed.
    let later = build(&inputs(&policies("DENNY", "/b")), Some(&broken));
    assert_eq!((names(&later).len(), told(&later)), (2, vec![true]));
    let mended = build(&inputs(&policies("DENY", "/b")), Some(&later));
    assert_eq!((names(&mended).len(), told(&mended)), (2, vec![]));
    let never_valid = build(&inputs(&policies("DENNY", "/a")), None);
    assert_eq!((names(&never_valid).len(), told(&never_valid)), (2, vec![false]));
    assert_eq!(names(&build(&inputs(REVIEWS), Some(&later))), Vec::<String>::new(), "deleted is deleted");
}

#[test]
fn a_policy_that_was_never_valid_closes_what_it_is_bound_to_and_nothing_else() {
    let gateway = "{kind: Gateway, group: gateway.networking.k8s.io, name: edge}";
    for spec in [
        format!("{{targetRefs: [{gateway}], action: DENNY, rules: [{{}}]}}"),
        format!("{{targetRef: {gateway}, action: DENY, rules: 7}}"),
    ] {
        let mesh = build(
            &inputs(&format!(
                "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: default}}, spec: {spec}}}\n"
            )),
            None,
        );
        let bound = |labels: &[(&str, &str)]| mesh.authorization_for("default", &crate::tests::labels(labels)).len();
        assert_eq!(bound(&[("app", "anything")]), 0, "{spec}");
        assert_eq!(bound(&[("gateway.networking.k8s.io/gateway-name", "edge")]), 1, "{spec}");
        assert_eq!(bound(&[("gateway.networking.k8s.io/gateway-name", "other")]), 0, "{spec}");
    }
    // What it is bound to cannot be told: it holds for the namespace.
    let broken = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: default}, spec: {targetRefs: 7, rules: [{}]}}";
    let mesh = build(&inputs(broken), None);
    assert_eq!(mesh.authorization_for("default", &crate::tests::labels(&[("app", "a")])).len(), 1);
}

#[test]
fn a_policy_that_was_never_valid_does_not_leave_a_door_open() {
    let policy = |kind: &str, spec: &str| {
        format!(
            "{{apiVersion: security.istio.io/v1, kind: {kind}, metadata: {{name: p, namespace: default}}, spec: {spec}}}\n"
        )
    };
    let told = |mesh: &MeshSnapshot| {
        let about = mesh.warnings.iter().filter(|w| w.code == "IST0106" && w.at.name == "p");
        about.map(|w| w.message.contains("refuses everything")).collect::<Vec<_>>()
    };
    for (spec, selector) in [
        ("{action: DENNY, rules: [{}]}", &[][..]),
        ("{selector: {matchLabels: {app: a}}, action: DENY, rules: 7}", &[("app", "a")]),
        ("{selector: {matchLabels: {app: 1}}, rules: [{}]}", &[]),
    ] {
        let mesh = build(&inputs(&policy("AuthorizationPolicy", spec)), None);
        let held = &mesh.authorization["default"][0];
        assert_eq!(told(&mesh), [true], "{spec}");
        assert_eq!(
            (held.spec.action, held.spec.rules.len()),
            (weft_k8s_api::istio::AuthorizationAction::Allow, 0),
            "{spec}"
        );
        assert_eq!(held.selector, crate::tests::labels(selector), "{spec}");
        // Still broken after another change: the same is said of it.
        let again = build(&inputs(&policy("AuthorizationPolicy", &spec.replace("rules", "roules"))), Some(&mesh));
        assert!(told(&again).iter().all(|closed| *closed), "{spec}");
    }
    let audit = build(&inputs(&policy("AuthorizationPolicy", "{action: AUDIT, rules: 7}")), None);
    assert!(audit.authorization.get("default").is_none_or(Vec::is_empty), "it would refuse nothing when it is right");
    let peers = build(&inputs(&policy("PeerAuthentication", "{mtls: {mode: STRIKT}}")), None);
    assert_eq!(peers.mtls_mode("default", &Default::default(), 80), crate::MtlsMode::Strict);
    let tokens = "{selector: {matchLabels: {app: a}}, jwtRules: [{issuer: i, jwks: 7}]}";
    let tokens = build(&inputs(&policy("RequestAuthentication", tokens)), None);
    let held = &tokens.request_auth["default"][0];
    assert_eq!((held.selector.clone(), held.spec.jwt_rules.len()), (crate::tests::labels(&[("app", "a")]), 1));
    assert!(
        held.spec.jwt_rules[0].issuer == "weft:nobody"
            && crate::jwks::only_usable(&held.spec.jwt_rules[0].jwks).is_ok()
    );
    let said: Vec<_> = tokens
        .warnings
        .iter()
        .map(|w| (w.code, w.message.contains("every token where tokens are usually sent is refused")))
        .collect();
    assert_eq!(said, [("IST0106", true)]);
}

/// A rule that says how a service is called: without it clients would call in plain text.
#[test]
fn a_rule_for_clients_that_becomes_invalid_still_asks_for_tls() {
    let rule = |tries: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{name: r, namespace: default}}, \
             spec: {{host: a.example.com, subsets: [{{name: v1, labels: {{version: v1}}, trafficPolicy: {{tls: {{mode: DISABLE}}}}}}], \
             trafficPolicy: {{tls: {{mode: SIMPLE, sni: a.example.com}}, connectionPool: {{http: {{maxRetries: {tries}}}}}, \
             portLevelSettings: [{{port: {{number: 80}}, tls: {{mode: MUTUAL, credentialName: c}}}}]}}}}}}\n"
        )
    };
    let told = |mesh: &MeshSnapshot, words: &str| {
        let about = mesh.warnings.iter().filter(|w| w.code == "IST0106" && w.at.name == "r");
        about.map(|w| w.message.contains(words)).collect::<Vec<_>>()
    };
    let found = |mesh: &MeshSnapshot| mesh.destination_rule_for("a.example.com", "default", None).cloned();
    let first = build(&inputs(&rule("3")), None);
    let known = found(&first).unwrap();
    let broken = build(&inputs(&rule("-3")), Some(&first));
    assert_eq!(found(&broken).unwrap().spec, known.spec);
    assert_eq!(told(&broken, "stays in force"), [true]);
    // Never read before, as after a restart: what it says of TLS can be read.
    let anew = build(&inputs(&rule("-3")), None);
    let policy = found(&anew).unwrap_or_else(|| panic!("{:?}", anew.warnings)).spec.traffic_policy.clone().unwrap();
    let (was, of_ports) =
        (known.spec.traffic_policy.as_ref().unwrap(), |p: &istio::TrafficPolicy| p.port_level_settings.clone());
    assert_eq!((&policy.tls, of_ports(&policy)), (&was.tls, of_ports(was)));
    assert_eq!(policy.connection_pool, None);
    assert_eq!(found(&anew).unwrap().spec.subsets, known.spec.subsets);
    assert_eq!(told(&anew, "only what it says of TLS"), [true]);
    let unreadable = rule("3").replace("mode: SIMPLE", "mode: SIMPEL");
    let anew = build(&inputs(&unreadable), None);
    let tls = |mesh: &MeshSnapshot| found(mesh)?.spec.traffic_policy.clone()?.tls;
    let simple = |names: &[&str]| istio::ClientTlsSettings {
        mode: istio::ClientTlsMode::Simple,
        subject_alt_names: names.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    assert_eq!(tls(&anew), Some(simple(&["weft:nobody"])), "{:?}", anew.warnings);
    assert_eq!(told(&anew, "only what it says of TLS"), [true]);
    let half = build(&inputs(&rule("3").replace("sni: a.example.com", "sni: [a.example.com]")), None);
    assert_eq!(tls(&half), Some(simple(&[])), "{:?}", half.warnings);
    let of_port = found(&half).unwrap().spec.traffic_policy.clone().unwrap().port_level_settings[0].clone();
    assert_eq!((of_port.port.unwrap().number, of_port.tls), (80, Some(simple(&["weft:nobody"]))));
    assert_eq!(found(&build(&inputs(&unreadable), Some(&first))).unwrap().spec, known.spec);
    assert!(found(&build(&inputs(REVIEWS), Some(&broken))).is_none(), "deleted is deleted");
}

#[test]
fn a_policy_for_backends_that_becomes_invalid_stays_as_it_was() {
    let policy = |target: &str| {
        format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: BackendTLSPolicy, metadata: {{name: p, namespace: default}}, \
             spec: {{targetRefs: [{target}], validation: {{hostname: a.example.com, wellKnownCACertificates: System}}}}}}\n---\n{REVIEWS}"
        )
    };
    let tls = |mesh: &MeshSnapshot| {
        let rule = mesh.destination_rule_for("reviews.default.svc.cluster.local", "default", None)?;
        rule.spec.traffic_policy.as_ref()?.tls.as_ref().map(|tls| tls.sni.clone())
    };
    let first = build(&inputs(&policy("{group: '', kind: Service, name: reviews}")), None);
    assert_eq!(tls(&first).as_deref(), Some("a.example.com"), "{:?}", first.warnings);
    let broken = build(&inputs(&policy("{group: '', kind: Service, name: [reviews]}")), Some(&first));
    assert!(broken.warnings.iter().any(|w| w.code == "IST0106" && w.at.name == "p"), "{:?}", broken.warnings);
    assert_eq!(tls(&broken).as_deref(), Some("a.example.com"));
}

fn changed(old: &MeshSnapshot, new: &MeshSnapshot) -> Sections {
    // 1 where the section changed in the last build, else 0.
    let flag = |o: u64, n: u64| u64::from(o != n);
    let (o, n) = (old.sections, new.sections);
    Sections {
        mesh: flag(o.mesh, n.mesh),
        services: flag(o.services, n.services),
        endpoints: flag(o.endpoints, n.endpoints),
        workloads: flag(o.workloads, n.workloads),
        virtual_services: flag(o.virtual_services, n.virtual_services),
        destination_rules: flag(o.destination_rules, n.destination_rules),
        gateways: flag(o.gateways, n.gateways),
        sidecars: flag(o.sidecars, n.sidecars),
        security: flag(o.security, n.security),
        telemetry: flag(o.telemetry, n.telemetry),
        envoy_filters: flag(o.envoy_filters, n.envoy_filters),
        secrets: flag(o.secrets, n.secrets),
        namespaces: flag(o.namespaces, n.namespaces),
    }
}

#[test]
fn each_edit_touches_its_sections_alone() {
    let before = inputs(&(REVIEWS.to_string() + VS));
    let first = build(&before, None);
    let none = Sections::default();
    type Edit = (&'static str, &'static str, fn(&mut Object), Sections);
    let edits: [Edit; 6] = [
        (
            "Pod",
            "reviews-v1-6f4d-abcde",
            |o| {
                // A heartbeat.
                o.body["status"]["conditions"][0]["lastProbeTime"] = json!("2026-01-01T00:00:00Z");
            },
            none,
        ),
        (
            "VirtualService",
            "one",
            |o| {
                o.metadata.resource_version = Some("99".into());
                o.body.insert("status".into(), json!({"x": 1}));
            },
            none,
        ),
        (
            "VirtualService",
            "one",
            |o| o.body["spec"]["hosts"] = json!(["ratings"]),
            Sections { virtual_services: 1, ..none },
        ),
        (
            "EndpointSlice",
            "reviews-1",
            |o| {
                o.body["endpoints"][1]["conditions"] = json!({"ready": true});
            },
            Sections { endpoints: 1, ..none },
        ),
        (
            "Service",
            "reviews",
            |o| {
                o.body["spec"]["ports"][0]["name"] = json!("http2");
            },
            Sections { services: 1, endpoints: 1, ..none },
        ),
        (
            "Pod",
            "reviews-v1-6f4d-abcde",
            |o| {
                o.metadata.labels.get_or_insert_default().insert("version".into(), "v3".into());
            },
            Sections { workloads: 1, endpoints: 1, ..none },
        ),
    ];
    for (i, (kind, name, change, want)) in edits.into_iter().enumerate() {
        let after = build(&edit(&before, kind, name, change), Some(&first));
        assert_eq!(changed(&first, &after), want, "edit {i} of {kind} {name}");
        assert_eq!(after.version, first.version + 1);
    }
}

#[test]
fn unchanged_virtual_services_keep_their_arcs_and_delegates_are_followed() {
    let before = inputs(VS);
    let first = build(&before, None);
    let find = |mesh: &MeshSnapshot, name: &str| mesh.virtual_services.iter().find(|v| v.name == name).unwrap().clone();
    let next = build(
        &edit(&before, "VirtualService", "leaf", |o| {
            o.body["spec"]["http"][0]["timeout"] = json!("1s");
        }),
        Some(&first),
    );
    assert!(Arc::ptr_eq(&find(&first, "one"), &find(&next, "one")));
    assert!(find(&next, "two").spec.http[0].timeout.is_some());
}

#[test]
fn a_build_on_top_equals_a_build_from_nothing() {
    let before = inputs(&(REVIEWS.to_string() + VS));
    let first = build(&before, None);
    let mut after = Inputs::new(before.mesh.clone(), before.settings.clone());
    for object in objects(VS) {
        after.push(object);
    }
    let on_top = build(&after, Some(&first));
    let fresh = build(&after, None);
    assert!(on_top.services.is_empty() && on_top.endpoints.is_empty() && on_top.workloads.is_empty());
    assert_eq!(on_top.virtual_services, fresh.virtual_services);
    assert_eq!(on_top.warnings, fresh.warnings);
}
