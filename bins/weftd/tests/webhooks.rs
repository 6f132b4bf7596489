//! The webhooks of a running control plane, asked as an API server asks: over TLS that is checked by the published roots.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Cluster, get, post, review, until};
use serde_json::{Value, json};
use weft_k8s_api::kinds::by_kind;

#[tokio::test]
async fn pods_and_objects() {
    let cluster = Cluster::start().await;
    cluster
        .create(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"mesh": "trustDomain: cluster.local\ndefaultConfig: {concurrency: 3}\n"}}),
        )
        .await;
    let tag = |tag: &str, revision: &str| json!({"istio.io/tag": tag, "istio.io/rev": revision});
    let service = |namespace: &str| json!({"service": {"namespace": namespace, "name": "istiod", "path": "/inject"}});
    let (mutating, validating) = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration");
    let (injector, rev) = ("namespace.sidecar-injector.istio.io", "rev.namespace.sidecar-injector.istio.io");
    let url = json!({"url": "https://localhost:1/x"});
    for (kind, name, hook, labels, to) in [
        (mutating, "istio-sidecar-injector", injector, json!({}), url.clone()),
        (validating, "istiod-default-validator", "validation.istio.io", json!({}), url),
        // Another control plane's, whose revision has the same name; before ours, so that it is looked at before it.
        (mutating, "istio-revision-tag-other", rev, tag("other", "default"), service("other-system")),
        (mutating, "istio-revision-tag-prod", rev, tag("prod", "default"), service("istio-system")),
        (mutating, "istio-revision-tag-a", rev, tag("a", "y"), service("istio-system")),
    ] {
        // Chooses nothing, so that the API server of the test asks nobody.
        let nobody = json!({"matchLabels": {"none": "such"}});
        cluster
            .create(json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": name, "labels": labels},
            "webhooks": [{"name": hook, "clientConfig": to, "failurePolicy": "Ignore",
                          "sideEffects": "None", "admissionReviewVersions": ["v1"], "objectSelector": nobody}]}))
            .await;
    }
    let weftd = cluster.weftd().await;
    let (address, root) = (weftd.webhooks, cluster.root_pem().await);
    // The API server gets to know whom to trust, and then to insist.
    let configuration = async |kind: &str, name: &str| {
        cluster.client.get(by_kind("admissionregistration.k8s.io", kind).unwrap(), "", name).await.unwrap().body["webhooks"][0].clone()
    };
    let known = async || {
        let mutating = configuration("MutatingWebhookConfiguration", "istio-sidecar-injector").await;
        let validating = configuration("ValidatingWebhookConfiguration", "istiod-default-validator").await;
        let tagged = configuration("MutatingWebhookConfiguration", "istio-revision-tag-prod").await;
        let bundle = STANDARD.encode(&root);
        let both =
            [&mutating, &validating, &tagged].iter().all(|hook| hook["clientConfig"]["caBundle"] == bundle.as_str());
        (both && validating["failurePolicy"] == "Fail" && mutating["failurePolicy"] == "Ignore").then_some(())
    };
    until("the webhooks in their configurations", known).await;
    // A name for another revision, or another control plane's, is that one's.
    for name in ["istio-revision-tag-a", "istio-revision-tag-other"] {
        let strange = configuration("MutatingWebhookConfiguration", name).await;
        assert!(strange["clientConfig"]["caBundle"].is_null(), "{strange}");
    }

    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-"},
                     "spec": {"containers": [{"name": "web", "image": "i"}]}});
    let (status, body) =
        post(address, &root, "/inject/cluster/east/net/n1", "application/json", &review(pod.clone())).await;
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&answer["response"]["uid"], &answer["response"]["allowed"]), (&json!("u1"), &json!(true)));
    let patch = STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
    let patch = String::from_utf8(patch).unwrap();
    for part in ["istio-proxy", r#"\"concurrency\":3"#, r#""value":"east""#, r#""topology.istio.io/network":"n1""#] {
        assert!(patch.contains(part), "{part} not in {patch}");
    }

    let mut declines = pod.clone();
    declines["metadata"]["labels"] = json!({"sidecar.istio.io/inject": "false"});
    let mut wrong = pod.clone();
    wrong["metadata"]["annotations"] = json!({"traffic.sidecar.istio.io/excludeInboundPorts": "bad"});
    let virtual_service = |weight: i64| {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "reviews"},
               "spec": {"hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "reviews"}, "weight": weight}]}]}})
    };
    let large = review(json!({"spec": {"x": "y".repeat(9 << 20)}}));
    for (path, content, body, status, said) in [
        ("/inject", "application/json", review(declines), 200, r#""allowed":true"#),
        ("/inject", "application/json", review(wrong), 200, "excludeInboundPorts"),
        ("/inject", "application/json", review(json!({"kind": "Pod"})), 200, "no pod"),
        ("/inject", "application/json", Vec::new(), 400, "no body"),
        ("/inject", "text/plain", review(pod.clone()), 415, "application/json"),
        ("/inject", "application/json", b"{}".to_vec(), 400, "apiVersion"),
        ("/inject", "application/json", b"[1".to_vec(), 400, "AdmissionReview"),
        ("/inject", "application/json", large, 413, ""),
        ("/validate", "application/json", review(virtual_service(100)), 200, r#""allowed":true"#),
        (
            "/validate",
            "application/json",
            review(virtual_service(-1)),
            200,
            "VirtualService default/reviews: spec.http[0].route[0].weight",
        ),
        ("/validate", "application/json", b"x".to_vec(), 400, "AdmissionReview"),
        ("/elsewhere", "application/json", Vec::new(), 404, ""),
    ] {
        let answer = post(address, &root, path, content, &body).await;
        assert!(answer.0 == status && answer.1.contains(said), "{path} {said}: {answer:?}");
    }

    let (_, metrics) = get(weftd.monitoring, "/metrics").await;
    for line in [
        "sidecar_injection_requests_total 8",
        "sidecar_injection_success_total 1",
        "sidecar_injection_skip_total 1",
        "sidecar_injection_time_seconds_count 4",
        r#"galley_validation_http_error{status="400"} 1"#,
        "galley_validation_config_updates",
    ] {
        assert!(metrics.contains(line), "{line} not in {metrics}");
    }
    weftd.stop().await;
}
