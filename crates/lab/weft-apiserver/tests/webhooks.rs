//! Admission webhooks: real ones over TLS that change, refuse, fail and are slow.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use common::*;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use weft_apiserver::ServingCertificate;
use weft_store::client::WriteOptions;

type Reply = Arc<dyn Fn(&Value) -> Value + Send + Sync>;

/// A webhook that answers with `response` fields made from the request, and remembers what it was asked.
struct Hook {
    address: SocketAddr,
    ca_bundle: String,
    seen: Arc<Mutex<Vec<Value>>>,
}

async fn hook(reply: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Hook {
    let certificate = ServingCertificate::issue(&["hook.default.svc"], &[IpAddr::from([127, 0, 0, 1])]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (reply, asked): (Reply, _) = (Arc::new(reply), seen.clone());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, reply, asked) = (certificate.context.clone(), reply.clone(), asked.clone());
            tokio::spawn(async move {
                let Ok(accepted) = tls.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let (reply, asked) = (reply.clone(), asked.clone());
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let review: Value = serde_json::from_slice(&body).unwrap();
                        asked.lock().unwrap().push(review["request"].clone());
                        let mut response = reply(&review["request"]);
                        response["uid"] = review["request"]["uid"].clone();
                        let answer = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
                        Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(answer.to_string()))))
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(accepted.stream), service)
                    .await;
            });
        }
    });
    Hook { address, ca_bundle: STANDARD.encode(certificate.ca_pem), seen }
}

impl Hook {
    fn by_url(&self) -> Value {
        json!({"url": format!("https://{}/inject?x=1", self.address), "caBundle": self.ca_bundle})
    }

    fn asked(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

fn configuration(kind: &str, name: &str, client: &Value, more: Value) -> Value {
    let mut webhook = json!({
        "name": format!("{name}.weft.dev"), "clientConfig": client, "sideEffects": "None",
        "admissionReviewVersions": ["v1", "v1beta1"], "timeoutSeconds": 30,
        "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
    });
    for (field, value) in more.as_object().unwrap() {
        webhook[field] = value.clone();
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": format!("{kind}WebhookConfiguration"),
        "metadata": {"name": name}, "webhooks": [webhook],
    })
}

fn map(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", "labels": labels}, "data": {},
    })
}

fn patch(operations: Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())})
}

async fn create(lab: &Lab, value: Value) -> Result<weft_k8s_api::Object, weft_store::client::ClientError> {
    lab.client.create(&object(value), &WriteOptions::default()).await.map(|w| w.object)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutation_in_order_and_again() {
    let lab = lab().await;
    // `a` counts the keys that it sees; `b` adds one: with IfNeeded, `a` sees it in a second round.
    let a = hook(|request| {
        let keys = request["object"]["data"].as_object().unwrap().len();
        patch(json!([{"op": "add", "path": "/data/seen", "value": keys.to_string()}]))
    })
    .await;
    let b = hook(|_| {
        let mut answer = patch(json!([{"op": "add", "path": "/data/b", "value": "1"}]));
        answer["warnings"] = json!(["from b"]);
        answer
    })
    .await;
    let again = json!({"reinvocationPolicy": "IfNeeded", "objectSelector": {"matchLabels": {"inject": "yes"}}});
    create(&lab, configuration("Mutating", "a", &a.by_url(), again)).await.unwrap();
    create(&lab, configuration("Mutating", "b", &b.by_url(), json!({}))).await.unwrap();

    let made = create(&lab, map("one", json!({"inject": "yes"}))).await.unwrap();
    assert_eq!(made.body["data"], json!({"seen": "2", "b": "1"}));
    assert_eq!((a.asked(), b.asked()), (2, 1));
    let first = a.seen.lock().unwrap()[0].clone();
    assert_eq!(first["operation"], "CREATE");
    assert_eq!(first["userInfo"]["username"], "admin");
    assert_eq!((&first["namespace"], &first["name"]), (&json!("default"), &json!("one")));
    assert_eq!(first["resource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!((&first["oldObject"], &first["dryRun"]), (&Value::Null, &json!(false)));

    let made = create(&lab, map("two", json!({}))).await.unwrap();
    assert_eq!(made.body["data"], json!({"b": "1"}), "the object selector leaves it to b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denial_of_creation_update_and_deletion() {
    let lab = lab().await;
    let guard = hook(|request| {
        let subject = if request["object"].is_null() { &request["oldObject"] } else { &request["object"] };
        match subject["metadata"]["labels"]["locked"].as_str() {
            Some(why) => json!({"allowed": false, "status": {"message": why, "code": 403, "reason": "Forbidden"}}),
            None => json!({"allowed": true}),
        }
    })
    .await;
    create(&lab, map("early", json!({"locked": "kept"}))).await.unwrap();
    let only = json!({"namespaceSelector": {"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["default"]},
    ]}});
    create(&lab, configuration("Validating", "guard", &guard.by_url(), only)).await.unwrap();
    let error = create(&lab, map("late", json!({"locked": "no-more"}))).await.unwrap_err().to_string();
    assert!(error.contains("admission webhook \"guard.weft.dev\" denied the request: no-more"), "{error}");
    let error = lab.client.delete(kind("cm"), "default", "early", &Default::default()).await.unwrap_err().to_string();
    assert!(error.contains("denied the request: kept"), "{error}");
    assert_eq!(guard.seen.lock().unwrap().last().unwrap()["operation"], "DELETE");
    let mut elsewhere = map("late", json!({"locked": "no-more"}));
    elsewhere["metadata"]["namespace"] = "kube-system".into();
    create(&lab, elsewhere).await.expect("the namespace selector does not see it");
    create(&lab, map("free", json!({}))).await.unwrap();
    let update = map("free", json!({"locked": "not-now"}));
    assert!(lab.client.replace(&object(update), &WriteOptions::default()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_follow_the_policy() {
    let lab = lab().await;
    let nowhere = json!({"url": "https://127.0.0.1:1/x", "caBundle": ""});
    create(&lab, configuration("Validating", "down", &nowhere, json!({"failurePolicy": "Ignore"}))).await.unwrap();
    create(&lab, map("a", json!({}))).await.expect("Ignore goes on");
    let other = hook(|_| json!({"allowed": true})).await;
    let stranger = hook(|_| json!({"allowed": true})).await;
    // Another authority than the one that signed.
    let client = json!({"url": format!("https://{}/", other.address), "caBundle": stranger.ca_bundle});
    create(&lab, configuration("Validating", "strange", &client, json!({}))).await.unwrap();
    let error = create(&lab, map("b", json!({}))).await.unwrap_err().to_string();
    assert!(error.contains("failed calling webhook \"strange.weft.dev\""), "{error}");
    assert_eq!(other.asked(), 0);
    lab.client
        .delete(kind("validatingwebhookconfiguration"), "", "strange", &Default::default())
        .await
        .expect("webhooks do not guard configurations of webhooks");
    create(&lab, map("b", json!({}))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_and_versions() {
    let lab = lab().await;
    let guard = hook(|_| json!({"allowed": true})).await;
    let rules = json!({"rules": [{
        "operations": ["CREATE"], "apiGroups": ["networking.istio.io"], "apiVersions": ["v1alpha3"], "resources": ["*"],
    }]});
    let service = json!({
        "service": {"namespace": "default", "name": "hook", "path": "validate", "port": 443}, "caBundle": guard.ca_bundle,
    });
    create(&lab, configuration("Validating", "guard", &service, rules)).await.unwrap();
    let route = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "r", "namespace": "default"},
        "spec": {"hosts": ["r"], "http": [{"route": [{"destination": {"host": "r"}}]}]},
    });
    let error = create(&lab, route.clone()).await.unwrap_err().to_string();
    assert!(error.contains("service \"hook\" not found"), "{error}");
    create(
        &lab,
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook", "namespace": "default"},
            "spec": {"ports": [{"name": "https", "port": 443}]},
        }),
    )
    .await
    .unwrap();
    let error = create(&lab, route.clone()).await.unwrap_err().to_string();
    assert!(error.contains("no endpoints available for service \"hook\""), "{error}");
    create(
        &lab,
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "hook", "namespace": "default", "labels": {"kubernetes.io/service-name": "hook"}},
            "ports": [{"name": "https", "port": guard.address.port()}],
            "endpoints": [{"addresses": ["127.0.0.2"], "conditions": {"ready": false}}, {"addresses": ["127.0.0.1"]}],
        }),
    )
    .await
    .unwrap();
    create(&lab, route).await.unwrap();
    let seen = guard.seen.lock().unwrap()[0].clone();
    assert_eq!(seen["object"]["apiVersion"], "networking.istio.io/v1alpha3", "in the version of the rule");
    assert_eq!((&seen["kind"]["version"], &seen["requestKind"]["version"]), (&json!("v1alpha3"), &json!("v1")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configurations_that_cannot_be_followed() {
    let lab = lab().await;
    let url = json!({"url": "https://127.0.0.1:1/"});
    for (client, more, want) in [
        (json!({}), json!({}), "webhooks[0].clientConfig"),
        (json!({"url": "http://127.0.0.1/"}), json!({}), "only allowed URL scheme"),
        (url.clone(), json!({"name": "short"}), "three segments"),
        (url.clone(), json!({"matchConditions": [{"name": "x", "expression": "authorizer.group('')"}]}), "authorizer"),
        (url.clone(), json!({"matchConditions": [{"name": "x", "expression": "1"}]}), "must evaluate to a bool"),
        (url.clone(), json!({"matchConditions": [{"expression": "true"}]}), "matchConditions[0].name"),
        (url.clone(), json!({"timeoutSeconds": 40}), "timeoutSeconds"),
        (url.clone(), json!({"sideEffects": "Some"}), "sideEffects"),
        (url, json!({"objectSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}), "objectSelector"),
    ] {
        let error = create(&lab, configuration("Mutating", "x", &client, more)).await.unwrap_err().to_string();
        assert!(error.contains(want), "{want}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_decide_who_is_asked() {
    let lab = lab().await;
    let guard = hook(|_| json!({"allowed": false, "status": {"message": "seen"}})).await;
    let conditions = json!({"matchConditions": [
        {"name": "not-the-system", "expression": "!(request.userInfo.username.startsWith('system:'))"},
        {"name": "of-a-team", "expression": "has(object.metadata.labels) && 'team' in object.metadata.labels"},
        {"name": "where", "expression": "request.namespace == 'default' && object.data.size() >= 0"},
    ]});
    create(&lab, configuration("Validating", "guard", &guard.by_url(), conditions)).await.unwrap();
    create(&lab, map("free", json!({"a": "b"}))).await.unwrap();
    assert_eq!(guard.asked(), 0, "a condition does not hold");
    assert!(create(&lab, map("held", json!({"team": "x"}))).await.unwrap_err().to_string().contains("seen"));
    // A condition that has no value: refused, or left alone, as the failure policy says.
    for (policy, taken) in [("Fail", false), ("Ignore", true)] {
        let more =
            json!({"failurePolicy": policy, "matchConditions": [{"name": "x", "expression": "object.none == 1"}]});
        lab.server
            .store()
            .delete(
                &weft_store::memory::key("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", "", "guard"),
                &Default::default(),
            )
            .unwrap();
        create(&lab, configuration("Validating", "guard", &guard.by_url(), more)).await.unwrap();
        let made = create(&lab, map(&format!("unclear-{}", policy.to_lowercase()), json!({"team": "x"}))).await;
        assert_eq!(made.is_ok(), taken, "{policy}: {made:?}");
        if let Err(error) = made {
            assert!(error.to_string().contains("no such key: none"), "{error}");
        }
    }
}
