//! Security policies, telemetry, envoy filters, secrets.

use super::{labels, mesh, pair, warnings_of};
use crate::MtlsMode;
use std::sync::Arc;

#[test]
fn mutual_tls_by_scope() {
    let mesh = mesh(
        r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: late, namespace: istio-system, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {mtls: {mode: DISABLE}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: foo}
spec: {mtls: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: unset, namespace: bar}
spec: {mtls: {mode: UNSET}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: old, namespace: foo, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {selector: {matchLabels: {app: db}}, mtls: {mode: UNSET}, portLevelMtls: {80: {mode: DISABLE}, 81: {mode: UNSET}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: young, namespace: foo, creationTimestamp: "2026-01-05T00:00:00Z"}
spec: {selector: {matchLabels: {app: db}}, mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: foo}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {90: {mode: PERMISSIVE}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: everywhere, namespace: istio-system}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: DISABLE}}
"#,
    );
    for (namespace, app, port, want) in [
        ("other", "x", 80, MtlsMode::Strict),
        ("bar", "x", 80, MtlsMode::Strict),
        ("foo", "x", 80, MtlsMode::Permissive),
        ("foo", "db", 80, MtlsMode::Disable),
        ("foo", "db", 81, MtlsMode::Permissive),
        ("foo", "db", 82, MtlsMode::Permissive),
        ("foo", "web", 80, MtlsMode::Strict),
        ("foo", "web", 90, MtlsMode::Permissive),
        ("bar", "web", 90, MtlsMode::Strict),
    ] {
        assert_eq!(mesh.mtls_mode(namespace, &labels(&[("app", app)]), port), want, "{namespace} {app} {port}");
    }
    assert_eq!(warnings_of(&mesh, "PeerAuthentication", "late"), ["PolicyConflict "]);
    assert_eq!(warnings_of(&mesh, "PeerAuthentication", "everywhere"), ["PolicyScope spec.selector"]);
    assert_eq!(super::mesh("").mtls_mode("any", &labels(&[]), 1), MtlsMode::Permissive);
}

#[test]
fn policies_bind_by_namespace_and_selector() {
    let policy = |ns: &str, name: &str, day: u8, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {ns}, creationTimestamp: \"2026-01-0{day}T00:00:00Z\"}}\nspec: {{{spec}}}\n---\n"
        )
    };
    let mesh = mesh(
        &[
            policy("foo", "second", 2, "action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]"),
            policy("foo", "first", 1, ""),
            policy("foo", "web", 3, "selector: {matchLabels: {app: web}}"),
            policy("istio-system", "mesh", 4, ""),
            policy("istio-system", "mesh-web", 5, "selector: {matchLabels: {app: web}}"),
            policy("foo", "bound", 6, "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: x}]"),
            policy(
                "istio-system",
                "elsewhere",
                7,
                "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: x}]",
            ),
            policy("foo", "unbound", 8, "targetRefs: [{kind: Service, group: \"\", name: x}]"),
        ]
        .concat(),
    );
    for (namespace, app, want) in [
        ("foo", "x", vec!["mesh", "first", "second"]),
        ("foo", "web", vec!["mesh", "mesh-web", "first", "second", "web"]),
        ("bar", "web", vec!["mesh", "mesh-web"]),
        ("istio-system", "x", vec!["mesh"]),
    ] {
        let bound = mesh.authorization_for(namespace, &labels(&[("app", app)]));
        assert_eq!(bound.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), want, "{namespace} {app}");
    }
    let of_gateway = labels(&[("gateway.networking.k8s.io/gateway-name", "x")]);
    for (namespace, want) in [
        ("foo", vec!["mesh", "first", "second", "bound"]),
        ("bar", vec!["mesh"]),
        ("istio-system", vec!["mesh", "elsewhere"]),
    ] {
        let bound = mesh.authorization_for(namespace, &of_gateway);
        assert_eq!(bound.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), want, "{namespace}");
    }
    assert_eq!(warnings_of(&mesh, "AuthorizationPolicy", "bound"), Vec::<String>::new());
    assert_eq!(warnings_of(&mesh, "AuthorizationPolicy", "unbound"), ["IST0101 spec.targetRefs"]);
}

#[test]
fn telemetry_and_filters() {
    let mesh = mesh(
        r#"
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: mesh, namespace: istio-system}
spec: {}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: late, namespace: istio-system, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: foo, namespace: foo}
spec: {}
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: web, namespace: foo}
spec: {selector: {matchLabels: {app: web}}}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: late, namespace: foo}
spec: {priority: 10}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: early, namespace: foo, creationTimestamp: "2026-01-02T00:00:00Z"}
spec: {priority: -1}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: root, namespace: istio-system}
spec: {workloadSelector: {labels: {app: web}}, priority: 99}
"#,
    );
    let web = labels(&[("app", "web")]);
    let names = |ns: &str, l| mesh.telemetry_for(ns, l).iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    assert_eq!(names("foo", &web), ["mesh", "foo", "web"]);
    assert_eq!(names("bar", &web), ["mesh"]);
    assert_eq!(names("istio-system", &web), ["mesh"]);
    let filters: Vec<_> = mesh.envoy_filters_for("foo", &web).iter().map(|f| f.name.clone()).collect();
    assert_eq!(filters, ["root", "early", "late"]);
}

#[test]
fn secrets_become_credentials() {
    let (cert, key) = pair(&["example.com"], 0, 4_000_000_000);
    let secret = |name: &str, kind: &str, data: serde_json::Value| {
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "type": kind,
            "metadata": {"name": name, "namespace": "istio-system"}, "stringData": data,
        });
        format!("{object}\n---\n")
    };
    use serde_json::json;
    let mesh = mesh(
        &[
            secret("tls", "kubernetes.io/tls", json!({"tls.crt": cert, "tls.key": key})),
            secret("generic", "Opaque", json!({"cert": cert, "key": key, "cacert": "ca"})),
            secret("two", "Opaque", json!({"tls.crt": cert, "tls.key": key})),
            secret("two-cacert", "Opaque", json!({"ca.crt": "ca"})),
            secret("other", "Opaque", json!({"password": "ca"})),
            secret("half", "kubernetes.io/tls", json!({"tls.crt": cert})),
            secret("garbage", "kubernetes.io/tls", json!({"tls.crt": "ca", "tls.key": "ca"})),
        ]
        .concat(),
    );
    let of = |name: &str| mesh.secrets.get(&("istio-system".to_string(), name.to_string()));
    assert!(of("tls").is_some_and(|c| c.ca.is_none() && c.cert_chain.starts_with(b"-----BEGIN")));
    assert!(of("tls").and_then(|c| c.facts.as_ref()).is_some_and(|f| f.names == ["example.com"]));
    assert!(of("generic").is_some_and(|c| c.ca.as_deref() == Some(b"ca")));
    assert!(of("two").is_some_and(|c| c.ca.as_deref() == Some(b"ca") && !c.private_key.is_empty()));
    assert!(of("two-cacert").is_some_and(|c| c.private_key.is_empty()));
    for none in ["other", "half", "garbage"] {
        assert!(of(none).is_none(), "{none}");
    }
    for wrong in ["half", "garbage"] {
        assert_eq!(warnings_of(&mesh, "Secret", wrong), ["IST0106 "]);
    }
}

/// What such a policy guards is denied; its status says why.
#[test]
fn a_policy_that_names_an_unknown_provider_says_so() {
    let policy = |name: &str, action: &str, provider: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {{action: {action}, rules: [{{}}]{provider}}}\n---\n"
        )
    };
    let mesh = mesh(
        &[
            policy("unknown", "CUSTOM", ", provider: {name: nobody}"),
            policy("unnamed", "CUSTOM", ", provider: {name: ''}"),
            policy("regex", "CUSTOM", ", provider: {name: '.*'}"),
            policy("plain", "DENY", ""),
        ]
        .concat(),
    );
    for (name, path) in [("unknown", "spec.provider.name"), ("regex", "spec.provider.name")] {
        let said = warnings_of(&mesh, "AuthorizationPolicy", name);
        assert!(said.len() == 1 && said[0].ends_with(path), "{name}: {said:?}");
    }
    assert!(!warnings_of(&mesh, "AuthorizationPolicy", "unnamed").is_empty());
    assert_eq!(warnings_of(&mesh, "AuthorizationPolicy", "plain"), Vec::<String>::new());
}

#[test]
fn an_authorizer_that_cannot_be_asked_is_told_of() {
    let mesh_config = r#"
extensionProviders:
- {name: good, envoyExtAuthzGrpc: {service: authz.foo.svc.cluster.local, port: 9000}}
- {name: gone, envoyExtAuthzGrpc: {service: gone.foo.svc.cluster.local, port: 9000}}
- {name: elsewhere, envoyExtAuthzGrpc: {service: bar/authz.foo.svc.cluster.local, port: 9000}}
- {name: port, envoyExtAuthzGrpc: {service: authz.foo.svc.cluster.local, port: 9001}}
- {name: status, envoyExtAuthzHttp: {service: authz.foo.svc.cluster.local, port: 9000, statusOnError: "999"}}
- {name: headers, envoyExtAuthzHttp: {service: authz.foo.svc.cluster.local, port: 9000, headersToUpstreamOnAllow: ["*"]}}
- {name: prefix, envoyExtAuthzHttp: {service: authz.foo.svc.cluster.local, port: 9000, pathPrefix: check}}
- {name: "under_score", envoyExtAuthzGrpc: {service: authz.foo.svc.cluster.local, port: 9000}}
- {name: kind, prometheus: {}}
"#;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: authz, namespace: foo}\nspec: {clusterIP: 10.96.0.7, ports: [{name: grpc, port: 9000}]}\n---\n";
    let names = ["good", "gone", "elsewhere", "port", "status", "headers", "prefix", "under_score", "kind", "unknown"];
    let policy = |name: &str| {
        let object = name.replace('_', "-");
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {object}, namespace: foo}}\nspec: {{action: CUSTOM, provider: {{name: {name}}}, rules: [{{}}]}}\n---\n"
        )
    };
    let mut inputs = super::inputs(&format!("{service}{}", names.map(policy).concat()));
    inputs.mesh = Arc::new(serde_saphyr::from_str(mesh_config).unwrap());
    let mesh = crate::build(&inputs, None);
    for (name, says) in [
        ("good", None),
        ("gone", Some("does not exist")),
        ("elsewhere", Some("does not exist")),
        ("port", Some("which has no such port")),
        ("status", Some("\"999\"")),
        ("headers", Some("lone * in headersToUpstreamOnAllow")),
        ("prefix", Some("does not begin with '/'")),
        ("under-score", Some("letters, digits")),
        ("kind", Some("another kind")),
        ("unknown", Some("is no external authorizer")),
    ] {
        let told: Vec<&str> = mesh
            .warnings
            .iter()
            .filter(|w| w.at.name == name && w.at.path == "spec.provider.name")
            .map(|w| w.message.as_str())
            .collect();
        match says {
            None => assert_eq!(told, Vec::<&str>::new(), "{name}"),
            Some(says) => assert!(told.len() == 1 && told[0].contains(says) && told[0].contains("denied"), "{told:?}"),
        }
    }
}

#[test]
fn keys_that_check_nothing_are_told_of() {
    let of = |jwks: &str| {
        let mesh = super::mesh(&format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: r, namespace: foo}}\nspec: {{jwtRules: [{{issuer: a, jwks: '{jwks}'}}]}}\n"
        ));
        warnings_of(&mesh, "RequestAuthentication", "r")
    };
    assert_eq!(of(r#"{"keys":[{"kty":"RSA"}]}"#), ["IST0101 spec.jwtRules[0].jwks"]);
    let good = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"04N0xi21hshyvBp7I167sbE_bXqyqkAPfefdklMO7wY","y":"UI8exy-C06a7DUnjIdENkxeFtHM4-l_41LqEw9nVgmw"}]}"#;
    assert_eq!(of(good), Vec::<String>::new());
}
