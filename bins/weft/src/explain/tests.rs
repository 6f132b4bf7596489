//! Requests through manifests that no cluster runs.

use super::request::{Options, Request};
use super::{End, Story, Target, explain, show, stand_in};
use crate::analyze::put;
use crate::authz::{World, settings};
use std::path::Path;
use std::sync::Arc;
use weft_k8s_api::istio::MeshConfig;
use weft_k8s_api::yaml;
use weft_model::Inputs;

/// Bookinfo with its destination rules and its gateway, and `more`.
pub(crate) fn bookinfo(more: &str) -> World {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples/bookinfo");
    let files =
        ["platform/kube/bookinfo.yaml", "networking/destination-rule-all.yaml", "networking/bookinfo-gateway.yaml"];
    let mut documents = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        documents.extend(yaml::documents(&text, file).unwrap());
    }
    documents.extend(yaml::documents(more, "more").unwrap());
    let mesh = MeshConfig::with_defaults();
    let mut inputs = Inputs::new(Arc::new(mesh.clone()), Arc::new(settings(&mesh, "istio-system")));
    for document in &mut documents {
        if document.object.kind != "Namespace" && document.object.namespace().is_empty() {
            document.object.metadata.namespace = Some("default".into());
        }
        put(&mut inputs, &document.object);
    }
    stand_in::complete(&mut inputs, &documents);
    World::of(&inputs)
}

pub(crate) fn ask(world: &World, from: &str, to: &str, headers: &[&str]) -> (Story, String) {
    let options = Options { headers: headers.iter().map(ToString::to_string).collect(), ..Options::default() };
    let caller = world.source(from, "default").unwrap();
    let request = Request::new(to, &options, world, &caller, "default").unwrap();
    let story = explain(world, &caller, &request).unwrap();
    let text = show::lines(&story, &request).join("\n");
    (story, text)
}

fn targets(story: &Story) -> Vec<(&str, f64)> {
    let End::Forwarded(targets) = &story.end else { panic!("{story:?}") };
    targets.iter().map(|Target { subset, share, .. }| (subset.as_str(), *share)).collect()
}

const ROUTES: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {end-user: {exact: jason}}}]
    route: [{destination: {host: reviews, subset: v2}}]
    timeout: 2s
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /reviews/0}
  - match: [{uri: {prefix: /split}}]
    rewrite: {uri: /reviews}
    fault: {abort: {httpStatus: 555, percentage: {value: 10}}}
    route:
    - {destination: {host: reviews, subset: v1}, weight: 80}
    - {destination: {host: reviews, subset: v3}, weight: 20}
  - match: [{uri: {prefix: /lost}}]
    route: [{destination: {host: reviews, subset: v9}}]
  - route: [{destination: {host: reviews, subset: v1}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers}
spec:
  selector: {matchLabels: {app: reviews}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/bookinfo-productpage]}}]
    to: [{operation: {paths: ["/reviews*"]}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"#;

#[test]
fn each_step_is_told_with_its_object() {
    let world = bookinfo(ROUTES);
    let (story, text) = ask(&world, "productpage-v1", "http://reviews:9080/reviews/0", &["end-user=jason"]);
    assert_eq!(targets(&story), [("v2", 100.0)], "{text}");
    assert!(story.arrives(), "{text}");
    for says in [
        "default/productpage-v1 → GET http://reviews:9080/reviews/0",
        "listener   0.0.0.0_9080",
        "route      VirtualService default/reviews spec.http[0]",
        "timeout 2s",
        "outbound|9080|v2|reviews.default.svc.cluster.local (DestinationRule reviews.default)",
        "default/reviews-v2: ALLOWED over mutual TLS by AuthorizationPolicy default/readers spec.rules[0]",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    let (story, text) = ask(&world, "productpage-v1", "reviews/split/0", &[]);
    assert_eq!(targets(&story), [("v1", 80.0), ("v3", 20.0)], "{text}");
    assert!(text.contains("path becomes /reviews/0") && text.contains("555 for 10 %"), "{text}");
    assert!(text.contains("80% outbound|9080|v1|"), "{text}");
}

#[test]
fn what_does_not_arrive_says_why() {
    let world = bookinfo(ROUTES);
    for (from, to, says) in [
        ("productpage-v1", "reviews/old", "301 by the proxy: redirect to http://reviews/reviews/0"),
        ("productpage-v1", "reviews/lost", "503 by the proxy: NC cluster_not_found"),
        ("productpage-v1", "reviews/other", "DENIED over mutual TLS"),
        ("ratings-v1", "reviews/reviews/0", "no rule of the ALLOW policies matches: default/readers"),
        ("istio-ingressgateway.istio-system", "http://bookinfo.example/nothing", "404 by the proxy"),
        ("istio-ingressgateway.istio-system", "http://bookinfo.example:81/", "no Gateway has"),
    ] {
        let (story, text) = ask(&world, from, to, &[]);
        assert!(!story.arrives() && text.contains(says), "{from} {to}: {text}");
    }
}

#[test]
fn a_gateway_and_the_world_outside() {
    let world = bookinfo("");
    let (story, text) = ask(&world, "istio-ingressgateway.istio-system", "http://bookinfo.example/productpage", &[]);
    assert!(story.arrives(), "{text}");
    for says in
        ["entry      ALLOWED", "VirtualService default/bookinfo spec.http[0]", "default/productpage-v1: ALLOWED"]
    {
        assert!(text.contains(says), "{says}: {text}");
    }
    let (story, text) = ask(&world, "productpage-v1", "http://elsewhere.example/", &[]);
    assert!(story.arrives() && text.contains("PassthroughCluster"), "{text}");
    assert!(text.contains("no service of the mesh is called elsewhere.example"), "{text}");
    let (_, text) = ask(&world, "productpage-v1", "http://[::1]:81/x", &[]);
    assert!(
        text.starts_with("default/productpage-v1 → GET http://[::1]:81/x\n") && !text.contains("is called"),
        "{text}"
    );
    let (story, text) = ask(&world, "productpage-v1", "https://elsewhere.example/", &[]);
    assert!(story.arrives() && text.contains("PassthroughCluster") && text.contains("as bytes"), "{text}");
}

#[test]
fn a_service_without_rules_leads_to_all_its_workloads() {
    let (story, text) = ask(&bookinfo(""), "productpage-v1", "reviews", &[]);
    assert!(story.arrives() && text.contains("route      Service default/reviews"), "{text}");
    for version in ["v1", "v2", "v3"] {
        assert!(text.contains(&format!("default/reviews-{version}: ALLOWED")), "{text}");
    }
}

#[test]
fn addresses_that_are_none() {
    let world = bookinfo("");
    let caller = world.source("productpage-v1", "default").unwrap();
    for (to, says) in [
        ("ftp://x/", "not http or https"),
        ("http:///x", "names no host"),
        ("reviews:x/", "no port"),
        ("reviews:99999", "is no port"),
    ] {
        let error = Request::new(to, &Options::default(), &world, &caller, "default").unwrap_err();
        assert!(format!("{error:#}").contains(says), "{to}: {error:#}");
    }
}

/// Without a proxy, in a namespace that gives its pods one.
const LEGACY: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: legacy}
spec:
  template:
    metadata: {labels: {app: legacy}, annotations: {sidecar.istio.io/inject: 'false'}}
    spec: {containers: [{name: app, image: x}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {selector: {matchLabels: {version: v3}}, mtls: {mode: STRICT}}
";

#[test]
fn a_caller_without_a_proxy_may_come_to_any_endpoint() {
    let (story, text) = ask(&bookinfo(LEGACY), "legacy", "reviews", &[]);
    for says in [
        "default/reviews-v1: ALLOWED in plain text",
        "default/reviews-v2: ALLOWED in plain text",
        "default/reviews-v3: DENIED in plain text",
    ] {
        assert!(text.contains(says), "{says}: {text}");
    }
    assert!(!story.arrives(), "{text}");
}

#[test]
fn a_subset_has_its_own_mutual_tls() {
    let rules = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: plain, labels: {version: v1}, trafficPolicy: {tls: {mode: DISABLE}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /plain}}]
    route: [{destination: {host: reviews, subset: plain}}]
  - route: [{destination: {host: reviews, subset: v1}}]
";
    let world = bookinfo(rules);
    for (to, says) in [
        ("reviews/plain", "default/reviews-v1: ALLOWED in plain text"),
        ("reviews/", "default/reviews-v1: ALLOWED over mutual TLS"),
    ] {
        let (_, text) = ask(&world, "productpage-v1", to, &[]);
        assert!(text.contains(says), "{to}: {text}");
    }
}

#[test]
fn a_gateway_is_asked_for_a_name_without_a_port() {
    let shop = "
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: shop}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: https, protocol: HTTPS}, tls: {mode: SIMPLE, credentialName: shop}, hosts: [shop.example]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec: {hosts: [shop.example], gateways: [shop], http: [{route: [{destination: {host: productpage}}]}]}
";
    let world = bookinfo(shop);
    for to in ["https://shop.example/", "https://shop.example:443/"] {
        let (story, text) = ask(&world, "istio-ingressgateway.istio-system", to, &[]);
        assert!(story.arrives() && text.contains("entry      ALLOWED"), "{to}: {text}");
    }
}

#[test]
fn faults_that_nothing_gets_past_end_the_way() {
    let rules = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  http:
  - match: [{uri: {prefix: /never}}]
    fault: {abort: {httpStatus: 500, percentage: {value: 100}}}
    route: [{destination: {host: ratings}}]
  - match: [{uri: {prefix: /grpc}}]
    fault: {abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}
    route: [{destination: {host: ratings}}]
  - fault: {abort: {httpStatus: 500, percentage: {value: 99}}}
    route: [{destination: {host: ratings}}]
";
    let world = bookinfo(rules);
    for (to, arrives, says) in [
        ("ratings/never", false, "500 by the proxy: FI fault_filter_abort"),
        ("ratings/grpc", false, "200 by the proxy: FI fault_filter_abort: gRPC status 14"),
        ("ratings/", true, "fault: 500 for 99 %"),
    ] {
        let (story, text) = ask(&world, "reviews-v2", to, &[]);
        assert!(story.arrives() == arrives && text.contains(says), "{to}: {text}");
    }
}

#[test]
fn faults_for_some_headers_are_for_them_alone() {
    let test = weft_route::HeaderTest::Present(true);
    let key = weft_route::HeaderKey::Name(http::HeaderName::from_static("end-user"));
    let matcher = weft_route::HeaderMatcher { key, test, invert: false, missing_as_empty: false };
    let fault = weft_route::Fault { headers: vec![matcher], ..weft_route::Fault::default() };
    let with = http::HeaderMap::from_iter([(http::HeaderName::from_static("end-user"), "jason".parse().unwrap())]);
    for (headers, injected) in [(&with, true), (&http::HeaderMap::new(), false)] {
        let view = weft_route::RequestView {
            method: &http::Method::GET,
            authority: "ratings",
            path: "/",
            query: None,
            scheme: "http",
            headers,
            metadata: &[],
        };
        assert_eq!(super::is_for(&fault, &view), injected);
    }
}
