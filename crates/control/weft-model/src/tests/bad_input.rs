//! Bad input: what is said of it and on which object, what stays in force, and that its neighbours do not notice.

use super::{inputs, mesh, pair, tls_secret, warnings_of};
use crate::{Inputs, MeshSnapshot, build};
use std::sync::Arc;

/// Now, in these tests.
const NOW: i64 = 2_000_000_000;

/// A gateway that serves, with a server for each kind of certificate, a neighbour, and the same of the Gateway API.
const GATEWAYS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: gw, namespace: istio-system, labels: {istio: ingressgateway}}
spec: {containers: [{name: istio-proxy}]}
status: {phase: Running, podIP: 10.244.0.9, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: shop, namespace: istio-system, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [shop.example.com], tls: {mode: SIMPLE, credentialName: cert}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: neighbour, namespace: istio-system, creationTimestamp: "2026-01-02T00:00:00Z"}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8443, name: https, protocol: HTTPS}, hosts: [other.example.com], tls: {mode: SIMPLE, credentialName: good}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: api, namespace: istio-system, generation: 1}
spec:
  gatewayClassName: istio
  listeners:
  - {name: https, port: 9443, protocol: HTTPS, hostname: shop.example.com, tls: {certificateRefs: [{name: cert}]}}
  - {name: good, port: 9444, protocol: HTTPS, hostname: other.example.com, tls: {certificateRefs: [{name: good}]}}
---
"#;

fn good() -> (String, String) {
    pair(&["shop.example.com", "other.example.com"], 0, 4_000_000_000)
}

/// The gateways, with the Secrets `cert` and `good`.
fn with_secret(cert: Option<(&str, &str)>, good: &(String, String)) -> Inputs {
    let bad = cert.map(|(chain, key)| tls_secret("istio-system", "cert", chain, key)).unwrap_or_default();
    let mut inputs = inputs(&format!("{GATEWAYS}{bad}{}", tls_secret("istio-system", "good", &good.0, &good.1)));
    inputs.now = Some(NOW);
    inputs
}

fn message(mesh: &MeshSnapshot, kind: &str, name: &str) -> String {
    let about = mesh.warnings.iter().filter(|w| w.at.kind == kind && w.at.name == name);
    about.map(|w| format!("{} {}: {}\n", w.code, w.at.path, w.message)).collect()
}

/// Reason and message of condition `ResolvedRefs` of a listener, and whether it is served.
fn listener(mesh: &MeshSnapshot, index: usize) -> (String, String, bool) {
    let status = &mesh.statuses.iter().find(|s| s.object.name == "api").unwrap().status["listeners"][index];
    let condition = |kind: &str| status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap();
    let text = |field: &str| condition("ResolvedRefs")[field].as_str().unwrap().to_string();
    (text("reason"), text("message"), condition("Programmed")["status"] == "True")
}

fn neighbours_are_well(mesh: &MeshSnapshot) {
    assert_eq!(warnings_of(mesh, "Gateway", "neighbour"), Vec::<String>::new());
    assert_eq!(listener(mesh, 1), ("ResolvedRefs".into(), "all references are resolved".into(), true));
    assert!(mesh.secrets.contains_key(&("istio-system".into(), "good".into())));
}

#[test]
fn bad_certificates() {
    let good = good();
    let expired = pair(&["shop.example.com"], 0, 1_900_000_000);
    let early = pair(&["shop.example.com"], 2_100_000_000, 4_000_000_000);
    let elsewhere = pair(&["elsewhere.example.org"], 0, 4_000_000_000);
    // case, secret, code and place at Istio's Gateway, what it says, reason at the listener, served there
    for (case, secret, at, said, reason, served) in [
        ("good", Some((&good.0, &good.1)), "", "", "ResolvedRefs", true),
        (
            "expired",
            Some((&expired.0, &expired.1)),
            "InvalidCertificate spec.servers[0].tls.credentialName",
            "has expired at 2030-03-17T17:46:40Z; clients refuse it until",
            "InvalidCertificateRef",
            true,
        ),
        (
            "not yet",
            Some((&early.0, &early.1)),
            "InvalidCertificate spec.servers[0].tls.credentialName",
            "not valid before",
            "InvalidCertificateRef",
            true,
        ),
        (
            "another's key",
            Some((&good.0, &expired.1)),
            "IST0101 spec.servers[0].tls.credentialName",
            "does not belong to the certificate; the two must be made together",
            "InvalidCertificateRef",
            false,
        ),
        (
            "no certificate",
            Some((&good.1, &good.1)),
            "IST0101 spec.servers[0].tls.credentialName",
            "is not PEM",
            "InvalidCertificateRef",
            false,
        ),
        (
            "other hosts",
            Some((&elsewhere.0, &elsewhere.1)),
            "CertificateHostMismatch spec.servers[0].hosts",
            "is for elsewhere.example.org, not for shop.example.com",
            "ResolvedRefs",
            true,
        ),
        (
            "no Secret",
            None,
            "IST0101 spec.servers[0].tls.credentialName",
            "secret istio-system/cert does not exist",
            "InvalidCertificateRef",
            false,
        ),
    ] {
        let mesh = build(&with_secret(secret.map(|(c, k)| (c.as_str(), k.as_str())), &good), None);
        let want: Vec<&str> = if at.is_empty() { vec![] } else { vec![at] };
        assert_eq!(warnings_of(&mesh, "Gateway", "shop"), want, "{case}");
        assert!(message(&mesh, "Gateway", "shop").contains(said), "{case}: {}", message(&mesh, "Gateway", "shop"));
        let (found, text, programmed) = listener(&mesh, 0);
        assert_eq!((found.as_str(), programmed), (reason, served), "{case}: {text}");
        if reason != "ResolvedRefs" && case != "no Secret" {
            assert!(text.contains(said), "{case}: {text}");
        }
        if case == "other hosts" {
            let of_listener = message(&mesh, "Gateway.gateway.networking.k8s.io", "api");
            assert!(of_listener.contains("CertificateHostMismatch spec.listeners[0]"), "{of_listener}");
        }
        neighbours_are_well(&mesh);
    }
}

#[test]
fn the_last_good_certificate_stays() {
    let good = good();
    let stranger = pair(&["shop.example.com"], 0, 4_000_000_000);
    let first = build(&with_secret(Some((&good.0, &good.1)), &good), None);
    let cert = ("istio-system".to_string(), "cert".to_string());
    let held = first.secrets[&cert].clone();

    // The key of another: what was there stays, and it is said.
    let broken = build(&with_secret(Some((&good.0, &stranger.1)), &good), Some(&first));
    assert_eq!(broken.secrets[&cert], held);
    assert!(message(&broken, "Gateway", "shop").contains("does not belong to the certificate"));
    let (reason, text, served) = listener(&broken, 0);
    assert!(reason == "InvalidCertificateRef" && text.contains("stays in force") && served, "{reason} {text} {served}");
    neighbours_are_well(&broken);
    let told = message(&broken, "Secret", "cert");
    assert!(told.contains("IST0106") && told.contains("does not belong"), "{told}");

    // Deleted: the listener stays, whose proxies have the certificate.
    let deleted = build(&with_secret(None, &good), Some(&broken));
    let (reason, text, served) = listener(&deleted, 0);
    assert!(reason == "InvalidCertificateRef" && text.contains("shown on") && served, "{reason} {text} {served}");
    assert!(message(&deleted, "Gateway", "shop").contains("create it again"));
    assert!(!deleted.secrets.contains_key(&cert));
    neighbours_are_well(&deleted);
    let later = build(&with_secret(None, &good), Some(&deleted));
    assert!(listener(&later, 0).2, "and it stays so");

    let mended = build(&with_secret(Some((&stranger.0, &stranger.1)), &good), Some(&later));
    assert_eq!((listener(&mended, 0).0.as_str(), warnings_of(&mended, "Gateway", "shop").len()), ("ResolvedRefs", 0));
}

#[test]
fn a_certificate_expires_by_the_clock_alone() {
    let (good, short) = (good(), pair(&["shop.example.com"], 0, NOW.unsigned_abs() + 10));
    let mut inputs = with_secret(Some((&short.0, &short.1)), &good);
    let first = build(&inputs, None);
    assert_eq!((warnings_of(&first, "Gateway", "shop").len(), first.next_validity_change), (0, Some(NOW + 11)));
    inputs.now = Some(NOW + 11);
    let second = build(&inputs, Some(&first));
    assert!(message(&second, "Gateway", "shop").contains("has expired"));
    assert_eq!(listener(&second, 0).0, "InvalidCertificateRef");
    assert_eq!(second.next_validity_change, Some(4_000_000_001));
    let third = build(&inputs, Some(&second));
    assert_eq!((third.sections, third.warnings.len()), (second.sections, second.warnings.len()), "nothing is new");
}

#[test]
fn hosts_ports_and_selectors_that_clash() {
    let reviews = super::REVIEWS;
    let all = format!(
        r#"{reviews}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: first, namespace: default, creationTimestamp: "2026-01-01T00:00:00Z"}}
spec: {{hosts: [reviews], http: [{{route: [{{destination: {{host: reviews, port: {{number: 9080}}}}}}]}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: second, namespace: default, creationTimestamp: "2026-01-02T00:00:00Z"}}
spec: {{hosts: [other.example.com, reviews.default.svc.cluster.local], http: [{{route: [{{destination: {{host: reviews, port: {{number: 9080}}}}}}]}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: connections, namespace: default, creationTimestamp: "2026-01-03T00:00:00Z"}}
spec: {{hosts: [reviews], tcp: [{{match: [{{port: 9090}}], route: [{{destination: {{host: reviews, port: {{number: 9090}}}}}}]}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: hidden, namespace: elsewhere, creationTimestamp: "2026-01-03T00:00:00Z"}}
spec: {{hosts: [shop.example.com], exportTo: ["."], http: [{{route: [{{destination: {{host: reviews.default.svc.cluster.local, port: {{number: 9080}}}}}}]}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: hidden, namespace: default, creationTimestamp: "2026-01-04T00:00:00Z"}}
spec: {{hosts: [shop.example.com], exportTo: ["."], http: [{{route: [{{destination: {{host: reviews, subset: v9, port: {{number: 9080}}}}}}]}}]}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: nobody, namespace: default}}
spec:
  selector: {{app: nobody}}
  servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ["*"]}}]
"#
    );
    let mesh = mesh(&all);
    assert_eq!(warnings_of(&mesh, "VirtualService", "second"), ["IST0109 spec.hosts[1]"]);
    let said = message(&mesh, "VirtualService", "second");
    assert!(said.contains("belongs to VirtualService default/first") && said.contains("put all rules"), "{said}");
    assert_eq!(warnings_of(&mesh, "VirtualService", "first"), Vec::<String>::new());
    assert_eq!(warnings_of(&mesh, "VirtualService", "connections"), Vec::<String>::new(), "other kinds of rules");
    let hidden = warnings_of(&mesh, "VirtualService", "hidden");
    assert_eq!(hidden, ["IST0101 spec.http[0].route[0].destination.subset"], "seen by nobody together");
    assert!(message(&mesh, "Gateway", "nobody").contains("selects no workload"));
    assert!(mesh.virtual_services.iter().all(|vs| Arc::strong_count(vs) > 0) && mesh.virtual_services.len() == 5);
}

#[test]
fn what_is_not_supported_is_told_and_the_rest_works() {
    let mesh = mesh(
        r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.9, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: default, generation: 1}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: sticky, namespace: default, generation: 1}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: web, port: 80}], sessionPersistence: {sessionName: s, type: Cookie}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: good, namespace: default, generation: 3}
spec:
  targetRefs: [{group: "", kind: Service, name: web}, {group: "", kind: Service, name: none}]
  validation: {hostname: web.example.com, wellKnownCACertificates: System}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: no-authority, namespace: default, generation: 1}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  validation: {hostname: web.example.com, caCertificateRefs: [{group: "", kind: ConfigMap, name: none}]}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: boot, namespace: default}
spec:
  configPatches:
  - {applyTo: BOOTSTRAP, patch: {operation: MERGE, value: {stats_flush_interval: 1s}}}
  - {applyTo: EXTENSION_CONFIG, patch: {operation: ADD, value: {name: x}}}
"#,
    );
    let of = |name: &str| mesh.statuses.iter().find(|s| s.object.name == name).unwrap().status.clone();
    let told = |conditions: &serde_json::Value| {
        let one = |c: &serde_json::Value| format!("{}={} {}", c["type"], c["status"], c["reason"]).replace('"', "");
        conditions.as_array().unwrap().iter().map(one).collect::<Vec<_>>()
    };
    let sticky = &of("sticky")["parents"][0];
    let want = ["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs", "PartiallyInvalid=True UnsupportedValue"];
    assert_eq!(told(&sticky["conditions"]), want, "{sticky}");
    assert!(sticky.to_string().contains("spec.rules[0]: Fall Back: sessionPersistence is not supported"), "{sticky}");
    assert_eq!(mesh.virtual_services[0].spec.http[0].route.len(), 1, "the rule is in force");
    let good = of("good");
    assert_eq!(told(&good["ancestors"][0]["conditions"]), ["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs"]);
    assert_eq!(good["ancestors"][0]["conditions"][0]["observedGeneration"], 3);
    assert_eq!(told(&good["ancestors"][1]["conditions"])[0], "Accepted=False TargetNotFound");
    let want = ["Accepted=False NoValidCACertificate", "ResolvedRefs=False InvalidCACertificateRef"];
    assert_eq!(told(&of("no-authority")["ancestors"][0]["conditions"]), want);
    let patches = ["UnsupportedPatch spec.configPatches[0].applyTo", "UnsupportedPatch spec.configPatches[1].applyTo"];
    assert_eq!(warnings_of(&mesh, "EnvoyFilter", "boot"), patches);
}
