//! Whose configuration holds for whom: what a tenant writes in its own namespace reaches no proxy of another one, by host,
//! by selector or by gateway.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Value, json};
use std::sync::Arc;
use weft_xds_gen::{ProxyResources, generate};

/// A victim with a caller, both in `default`, and a tenant `evil`, whose objects are older than what comes after.
const TENANTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews}
spec: {template: {metadata: {labels: {app: reviews}}, spec: {containers: [{name: r, image: i}]}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: caller}
spec: {template: {metadata: {labels: {app: caller}}, spec: {containers: [{name: c, image: i}]}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: tenant, namespace: evil}
spec: {template: {metadata: {labels: {app: reviews}}, spec: {containers: [{name: c, image: i}]}}}
";

/// What is generated for a pod names the tenant somewhere.
fn is_named(resources: &ProxyResources, word: &str) -> bool {
    let maps =
        [&resources.listeners, &resources.routes, &resources.virtual_hosts, &resources.clusters, &resources.endpoints];
    let has = |bytes: &[u8]| bytes.windows(word.len()).any(|part| part == word.as_bytes());
    maps.into_iter().flat_map(|map| map.iter()).any(|resource| has(&resource.any.value))
}

/// Whether an object of `evil` reaches the proxies of that pod.
fn reaches(objects: &str, pod: &str, mesh: Value) -> bool {
    let mut world = World::new();
    world.mesh = mesh;
    world.add(TENANTS).add(common::INGRESS).add(objects);
    let snapshot = world.snapshot();
    [false, true]
        .into_iter()
        .any(|weft| is_named(&generate(&snapshot, &common::proxy(&snapshot, pod, weft, &Value::Null)), "evil"))
}

const HOST: &str = "reviews.default.svc.cluster.local";

#[test]
fn class_cross_namespace_capture_objects_bind_their_own_namespace() {
    let object = |group: &str, kind: &str, spec: Value| {
        json!({"apiVersion": group, "kind": kind, "metadata": {"name": "x", "namespace": "evil"}, "spec": spec})
            .to_string()
    };
    let (networking, security) = ("networking.istio.io/v1", "security.istio.io/v1");
    let chosen = json!({"matchLabels": {"app": "reviews"}});
    for (what, text) in [
        (
            "a destination rule",
            object(networking, "DestinationRule", json!({"host": HOST, "trafficPolicy": {"tls": {"mode": "DISABLE"}}})),
        ),
        (
            "a service entry with the host of a service",
            object(
                networking,
                "ServiceEntry",
                json!({"hosts": [HOST], "location": "MESH_INTERNAL", "resolution": "STATIC", "ports": [{"number": 9080, "name": "http", "protocol": "HTTP"}], "endpoints": [{"address": "6.6.6.6", "labels": {"name": "evil"}}]}),
            ),
        ),
        ("an authorization policy", object(security, "AuthorizationPolicy", json!({"selector": chosen}))),
        (
            "peer authentication",
            object(security, "PeerAuthentication", json!({"selector": chosen, "mtls": {"mode": "DISABLE"}})),
        ),
        (
            "request authentication",
            object(
                security,
                "RequestAuthentication",
                json!({"selector": chosen, "jwtRules": [{"issuer": "evil", "jwks": "{\"keys\":[{\"kty\":\"oct\"}]}"}]}),
            ),
        ),
        (
            "an envoy filter",
            object(
                "networking.istio.io/v1alpha3",
                "EnvoyFilter",
                json!({"workloadSelector": {"labels": {"app": "reviews"}}, "configPatches": [{"applyTo": "CLUSTER", "match": {"context": "ANY"}, "patch": {"operation": "ADD", "value": {"name": "evil"}}}]}),
            ),
        ),
        (
            "a sidecar",
            object(
                networking,
                "Sidecar",
                json!({"workloadSelector": {"labels": {"app": "caller"}}, "egress": [{"hosts": ["evil/*"]}]}),
            ),
        ),
        (
            "telemetry",
            object(
                "telemetry.istio.io/v1",
                "Telemetry",
                json!({"selector": chosen, "accessLogging": [{"providers": [{"name": "evil"}]}]}),
            ),
        ),
    ] {
        for pod in ["default/reviews-0", "default/caller-0", "istio-system/istio-ingressgateway-0"] {
            assert!(!reaches(&text, pod, json!({})), "{what} reaches {pod}");
        }
    }
}

#[test]
fn class_cross_namespace_capture_routes_stay_where_they_are_exported() {
    let route = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "x", "namespace": "evil"},
        "spec": {"hosts": [HOST], "http": [{"name": "evil", "redirect": {"authority": "evil.example"}}]}})
    .to_string();
    let own = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: own}}\nspec: {{hosts: [{HOST}], http: [{{route: [{{destination: {{host: {HOST}}}}}]}}]}}\n---\n"
    );
    // The owner's own route is older: it stays. The mesh exports to the namespace of the object alone: it stays out.
    assert!(!reaches(&(own.clone() + &route), "default/caller-0", json!({})));
    let private = json!({"defaultVirtualServiceExportTo": ["."]});
    assert!(!reaches(&route, "default/caller-0", private.clone()));
    assert!(reaches(&route, "evil/tenant-0", private));
}

/// What `evil` does to a gateway that another namespace runs: scoped to its own namespace, nothing.
#[test]
fn class_cross_namespace_capture_a_gateway_is_served_by_its_own_namespace_when_asked_so() {
    let mut world = World::new();
    world.add(TENANTS).add(common::INGRESS).add(
        "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: own, namespace: istio-system}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.example]}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: hijack, namespace: evil}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [bank.evil.example]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hijack, namespace: evil}
spec: {hosts: [bank.evil.example], gateways: [hijack], http: [{redirect: {authority: evil.example}}]}
",
    );
    let generated = |scope_gateways: bool| {
        let mut inputs = world.inputs();
        let settings = weft_model::Settings { scope_gateways, ..(*inputs.settings).clone() };
        inputs.settings = Arc::new(settings);
        let snapshot = weft_model::build(&inputs, None);
        generate(&snapshot, &common::proxy(&snapshot, "istio-system/istio-ingressgateway-0", false, &Value::Null))
    };
    assert!(is_named(&generated(false), "bank.evil.example"), "Istio's meaning of a selector");
    assert!(!is_named(&generated(true), "evil"));
    assert!(is_named(&generated(true), "http.8080"), "the gateway of its own namespace is served");
}

/// A name that only the translation of the Gateway API may make, once the owner of the secret has allowed it: written by a user it
/// leads to no secret, also when his object was never admitted.
#[test]
fn class_sds_leak_a_user_written_scheme_names_no_other_namespace() {
    let gateway = |tls: Value| {
        let server = json!({"port": {"number": 443, "name": "https", "protocol": "HTTPS"}, "hosts": ["*"], "tls": tls});
        json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "x", "namespace": "istio-system"},
            "spec": {"selector": {"istio": "ingressgateway"}, "servers": [server]}})
    };
    let rule = |spec: Value| {
        let mut spec = spec;
        spec["host"] = HOST.into();
        json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "x", "namespace": "istio-system"}, "spec": spec})
    };
    let client = |name: &str| json!({"mode": "MUTUAL", "credentialName": name});
    let named = |object: Value| {
        let mut world = World::new();
        world.add(TENANTS).add(common::INGRESS).add_object(object);
        let snapshot = world.snapshot();
        let proxy = common::proxy(&snapshot, "istio-system/istio-ingressgateway-0", false, &Value::Null);
        let resources = generate(&snapshot, &proxy);
        let listed = resources.credentials.iter().any(|name| name.contains("wanted"));
        listed || is_named(&resources, "wanted")
    };
    for (name, is_own) in [
        ("wanted", true),
        ("kubernetes://wanted", true),
        ("kubernetes-gateway://shop/wanted", false),
        ("kubernetes-gateway://istio-system/wanted", false),
        ("kubernetes://shop/wanted", false),
        ("configmap://shop/wanted", false),
        ("shop/wanted", false),
    ] {
        for object in [
            gateway(json!({"mode": "SIMPLE", "credentialName": name})),
            gateway(json!({"mode": "SIMPLE", "credentialNames": [name]})),
            gateway(json!({"mode": "MUTUAL", "credentialName": "own", "caCertCredentialName": name})),
            rule(json!({"trafficPolicy": {"tls": client(name)}})),
            rule(json!({"trafficPolicy": {"portLevelSettings": [{"port": {"number": 9080}, "tls": client(name)}]}})),
            rule(
                json!({"subsets": [{"name": "v", "labels": {"app": "reviews"}, "trafficPolicy": {"tls": client(name)}}]}),
            ),
        ] {
            assert_eq!(named(object.clone()), is_own, "{object}");
        }
    }
}

/// Who labels an object for another control plane has it validated by nobody here: it must do nothing here either.
#[test]
fn class_revisions_what_is_labelled_for_another_control_plane_is_nobodys_here() {
    let effect = |object: &Value, revision: &str| {
        let mut world = World::new();
        world.add(TENANTS);
        let mut inputs = world.inputs();
        let settings = weft_model::Settings { revision: revision.into(), ..(*inputs.settings).clone() };
        inputs.settings = Arc::new(settings);
        inputs.push(Arc::new(serde_json::from_value(object.clone()).unwrap()));
        let snapshot = weft_model::build(&inputs, None);
        let proxy = common::proxy(&snapshot, "default/reviews-0", false, &Value::Null);
        let said = snapshot.warnings.iter().any(|warning| warning.at.name == "marked");
        is_named(&generate(&snapshot, &proxy), "marked") || said
    };
    let object = |group: &str, kind: &str, labels: &Value, spec: Value| {
        let metadata = json!({"name": "marked", "namespace": "default", "labels": labels});
        json!({"apiVersion": format!("{group}/v1"), "kind": kind, "metadata": metadata, "spec": spec})
    };
    for (labels, own, of_canary) in [
        (json!({}), true, true),
        (json!({"istio.io/rev": "default"}), true, false),
        (json!({"istio.io/rev": "canary"}), false, true),
        (json!({"istio.io/rev": "nosuch"}), false, false),
        (json!({"istio.io/rev": ""}), false, false),
    ] {
        let from = json!([{"source": {"principals": ["marked"]}}]);
        let route = json!([{"name": "marked", "redirect": {"authority": "marked.example"}}]);
        for object in [
            object(
                "security.istio.io",
                "AuthorizationPolicy",
                &labels,
                json!({"action": "DENY", "rules": [{"from": from}]}),
            ),
            object("networking.istio.io", "VirtualService", &labels, json!({"hosts": [HOST], "http": route})),
            // Not even what is wrong with it is said here: its status is another's.
            object("networking.istio.io", "VirtualService", &labels, json!({"hosts": []})),
        ] {
            assert_eq!((effect(&object, "default"), effect(&object, "canary")), (own, of_canary), "{object}");
        }
    }
}
