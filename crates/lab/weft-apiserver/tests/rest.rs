//! The REST API through the client library that Weft's own programs use.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_apiserver::status::FieldError;
use weft_apiserver::{Admission, AdmissionRequest, Denial};
use weft_k8s_api::Object;
use weft_store::client::{ApplyOptions, ListOptions, Outcome, PatchType, TokenRequest, WatchOptions, WriteOptions};
use weft_store::{ApiClient, ClientError, DeleteOptions, EventType, MemoryStore, Propagation, StoreOptions};

fn map(name: &str, data: Value) -> Object {
    object(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": data,
    }))
}

fn virtual_service(version: &str, subset: &str) -> Object {
    object(json!({
        "apiVersion": format!("networking.istio.io/{version}"), "kind": "VirtualService",
        "metadata": {"name": "reviews", "namespace": "default"},
        "spec": {"hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "reviews", "subset": subset}}]}]},
    }))
}

const PLAIN: WriteOptions = WriteOptions { dry_run: false, field_manager: None };

/// A bare HTTP/1.1 exchange, for what the client hides.
async fn raw(lab: &Lab, request: &str) -> String {
    let mut stream = TcpStream::connect(lab.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within(20, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn get_as(lab: &Lab, path: &str, accept: &str) -> (u16, Value) {
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\naccept: {accept}\r\n");
    let answer = raw(lab, &format!("{head}connection: close\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, serde_json::from_str(body).unwrap_or(Value::String(body.into())))
}

#[tokio::test]
async fn life_of_an_object() {
    let lab = lab().await;
    let (client, cm) = (&lab.client, kind("cm"));
    assert_eq!(client.version().await.unwrap()["major"], "1");
    let made = client.create(&map("a", json!({"k": "v"})), &PLAIN).await.unwrap().object;
    assert!(made.metadata.uid.is_some() && made.metadata.resource_version.is_some());
    let error = client.create(&map("a", json!({})), &PLAIN).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::AlreadyExists(m) if m.contains("configmaps \"a\" already exists")),
        "{error}"
    );
    assert_eq!(client.get(cm, "default", "a").await.unwrap(), made);

    let mut change = made.clone();
    change.body.insert("data".into(), json!({"k": "w"}));
    let second = client.replace(&change, &PLAIN).await.unwrap().object;
    let error = client.replace(&change, &PLAIN).await.unwrap_err();
    assert!(error.is_conflict() && error.to_string().contains("the object has been modified"), "{error}");
    let patched = client.merge_patch(cm, "default", "a", &json!({"data": {"k": null, "x": "y"}})).await.unwrap().object;
    assert_eq!(patched.body["data"], json!({"x": "y"}));
    let operations = serde_json::from_value(json!([{"op": "add", "path": "/data/z", "value": "1"}])).unwrap();
    client.json_patch(cm, "default", "a", &operations).await.unwrap();
    let stale = json!({"metadata": {"resourceVersion": second.metadata.resource_version}, "data": {"x": "n"}});
    assert!(client.merge_patch(cm, "default", "a", &stale).await.unwrap_err().is_conflict());

    let dry = WriteOptions { dry_run: true, ..PLAIN };
    client.create(&map("dry", json!({})), &dry).await.unwrap();
    assert!(client.get(cm, "default", "dry").await.unwrap_err().is_not_found());
    let list = client.list(cm, Some("default"), &ListOptions::default()).await.unwrap();
    assert_eq!(list.items.iter().map(Object::name).collect::<Vec<_>>(), ["a"]);
    assert_eq!(list.items[0].api_version, "v1");

    assert!(client.delete(cm, "default", "a", &DeleteOptions::default()).await.unwrap());
    let error = client.delete(cm, "default", "a", &DeleteOptions::default()).await.unwrap_err();
    assert!(matches!(&error, ClientError::NotFound(m) if m.contains("configmaps \"a\" not found")), "{error}");
    let mut elsewhere = map("a", json!({}));
    elsewhere.metadata.namespace = Some("nowhere".into());
    let error = client.create(&elsewhere, &PLAIN).await.unwrap_err();
    assert!(matches!(&error, ClientError::NotFound(m) if m.contains("namespaces \"nowhere\"")), "{error}");
    let mut generated = map("", json!({}));
    generated.metadata.name = None;
    generated.metadata.generate_name = Some("run-".into());
    assert!(client.create(&generated, &PLAIN).await.unwrap().object.name().starts_with("run-"));
}

#[tokio::test]
async fn selectors_and_pages() {
    let lab = lab().await;
    for index in 0..7 {
        let mut object = map(&format!("m{index}"), json!({}));
        object.metadata.labels = Some([("odd".to_string(), (index % 2 == 1).to_string())].into());
        lab.client.create(&object, &PLAIN).await.unwrap();
    }
    let names = |list: &weft_store::client::Listed| list.items.iter().map(|o| o.name().to_string()).collect::<Vec<_>>();
    let by = |labels: &str, fields: &str| ListOptions {
        labels: Some(labels.into()),
        fields: Some(fields.into()),
        ..ListOptions::default()
    };
    let cm = kind("cm");
    let odd = lab.client.list(cm, None, &by("odd in (true)", "")).await.unwrap();
    assert_eq!(names(&odd), ["m1", "m3", "m5"]);
    let one = lab.client.list(cm, None, &by("odd", "metadata.name=m2")).await.unwrap();
    assert_eq!(names(&one), ["m2"]);
    for wrong in [by("a b", ""), by("", "spec.x=1")] {
        assert!(matches!(lab.client.list(cm, None, &wrong).await, Err(ClientError::Invalid { .. })));
    }
    let mut all = Vec::new();
    let mut options = ListOptions { limit: Some(3), ..ListOptions::default() };
    loop {
        let page = lab.client.list(cm, Some("default"), &options).await.unwrap();
        all.extend(names(&page));
        match page.continue_token {
            Some(token) => options.continue_token = Some(token),
            None => break,
        }
    }
    assert_eq!(all, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
}

#[tokio::test]
async fn versions_of_a_kind_are_one_object() {
    let lab = lab().await;
    let made = lab.client.create(&virtual_service("v1alpha3", "v1"), &PLAIN).await.unwrap().object;
    assert_eq!(made.api_version, "networking.istio.io/v1alpha3");
    let path = |version| format!("/apis/networking.istio.io/{version}/namespaces/default/virtualservices/reviews");
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let (code, got) = get_as(&lab, &path(version), "application/json").await;
        assert_eq!((code, &got["apiVersion"]), (200, &json!(format!("networking.istio.io/{version}"))));
        assert_eq!(got["spec"], virtual_service("v1", "v1").body["spec"]);
    }
    assert_eq!(get_as(&lab, &path("v1alpha1"), "application/json").await.0, 404);
    let applied = lab.client.apply(&virtual_service("v1beta1", "v2"), &ApplyOptions::default()).await.unwrap();
    assert_eq!((applied.outcome, applied.object.metadata.generation), (Outcome::Configured, Some(2)));
    let list = lab.client.list(kind("vs"), None, &ListOptions::default()).await.unwrap();
    assert_eq!((list.items.len(), list.items[0].api_version.as_str()), (1, "networking.istio.io/v1"));
    let strategic = lab.client.patch(kind("vs"), "default", "reviews", PatchType::Strategic, &json!({})).await;
    assert!(matches!(strategic, Err(ClientError::Server { code: 415, .. })), "as for custom resources");
}

#[tokio::test]
async fn apply_creates_configures_and_rests() {
    let lab = lab().await;
    let deployment = |image: &str, env: Value| {
        object(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "web", "image": image, "env": env, "ports": [{"containerPort": 80}]}]},
                },
            },
        }))
    };
    let apply = async |object: &Object| lab.client.apply(object, &ApplyOptions::default()).await.unwrap();
    let env = json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]);
    assert_eq!(apply(&deployment("web:1", env.clone())).await.outcome, Outcome::Created);
    assert_eq!(apply(&deployment("web:1", env)).await.outcome, Outcome::Unchanged, "defaults are no difference");
    let scale = json!({"spec": {"replicas": 3}});
    lab.client.patch(kind("deploy"), "default", "web", PatchType::Strategic, &scale).await.unwrap();
    let changed = apply(&deployment("web:2", json!([{"name": "B", "value": "2"}]))).await;
    assert_eq!(changed.outcome, Outcome::Configured);
    let spec = changed.object.spec();
    let container = &spec["template"]["spec"]["containers"][0];
    assert_eq!((&container["image"], &container["env"]), (&json!("web:2"), &json!([{"name": "B", "value": "2"}])));
    assert_eq!(spec["replicas"], 3, "what the file does not say stays");
    let dry = ApplyOptions { dry_run: true, ..ApplyOptions::default() };
    let tried = lab.client.apply(&deployment("web:3", json!([])), &dry).await.unwrap();
    assert_eq!(tried.outcome, Outcome::Configured);
    let kept = lab.client.get(kind("deploy"), "default", "web").await.unwrap();
    assert_eq!(kept.spec()["template"]["spec"]["containers"][0]["image"], "web:2");
}

#[tokio::test]
async fn status_and_scale_are_parts_of_their_own() {
    let lab = lab().await;
    let set = object(json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r", "namespace": "default"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
        }},
        "status": {"replicas": 77},
    }));
    let made = lab.client.create(&set, &PLAIN).await.unwrap().object;
    assert_eq!(made.body["status"], json!({}), "a status is not taken with the object");
    let mut report = made.clone();
    report.body.insert("status".into(), json!({"replicas": 1}));
    report.body.insert("spec".into(), json!({"replicas": 9}));
    let reported = lab.client.replace_status(&report).await.unwrap().object;
    assert_eq!((&reported.body["status"], &reported.spec()["replicas"]), (&json!({"replicas": 1}), &json!(2)));
    assert_eq!(reported.metadata.generation, Some(1));
    let rs = kind("rs");
    lab.client.patch_status(rs, "default", "r", &json!({"readyReplicas": 1})).await.unwrap();
    let mut change = lab.client.get(rs, "default", "r").await.unwrap();
    change.body.insert("status".into(), json!({}));
    let kept = lab.client.replace(&change, &PLAIN).await.unwrap().object;
    assert_eq!(kept.body["status"], json!({"replicas": 1, "readyReplicas": 1}));
    let path = "/apis/apps/v1/namespaces/default/replicasets/r/scale";
    let (_, scale) = get_as(&lab, path, "application/json").await;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(2), &json!("a=b")));
    let body = r#"{"spec":{"replicas":5}}"#;
    let answer = raw(
        &lab,
        &format!(
            "PATCH {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\
             content-type: application/merge-patch+json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(lab.client.get(rs, "default", "r").await.unwrap().spec()["replicas"], 5);
}

#[tokio::test]
async fn server_side_apply() {
    let lab = lab().await;
    let path = "/api/v1/namespaces/default/configmaps/s?fieldManager=me";
    let send = async |body: &str| {
        raw(
            &lab,
            &format!(
                "PATCH {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\
                 content-type: application/apply-patch+yaml\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ),
        )
        .await
    };
    let first = send("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: s\ndata:\n  a: '1'\n").await;
    assert!(first.starts_with("HTTP/1.1 201"), "{first}");
    let second = send("apiVersion: v1\nkind: ConfigMap\ndata:\n  b: '2'\n").await;
    assert!(second.starts_with("HTTP/1.1 200"), "{second}");
    let object = lab.client.get(kind("cm"), "default", "s").await.unwrap();
    assert_eq!(object.body["data"], json!({"b": "2"}), "what its manager no longer wants is gone");
    let managers = object.metadata.managed_fields.unwrap();
    assert_eq!((managers.len(), managers[0].manager.as_deref()), (1, Some("me")));
}

#[tokio::test]
async fn watches() {
    let mut lab = lab().await;
    let cm = kind("cm");
    let start = lab.client.create(&map("a", json!({})), &PLAIN).await.unwrap().object;
    let mut fresh = lab.client.watch(cm, Some("default"), &WatchOptions::default()).await.unwrap();
    let from = WatchOptions { resource_version: start.metadata.resource_version.clone(), ..WatchOptions::default() };
    let mut resumed = lab.client.watch(cm, None, &from).await.unwrap();
    let selected = WatchOptions { labels: Some("on=yes".into()), ..from.clone() };
    let mut selected = lab.client.watch(cm, None, &selected).await.unwrap();
    lab.client.merge_patch(cm, "default", "a", &json!({"metadata": {"labels": {"on": "yes"}}})).await.unwrap();
    lab.client.merge_patch(cm, "default", "a", &json!({"metadata": {"labels": {"on": "no"}}})).await.unwrap();
    lab.client.delete(cm, "default", "a", &DeleteOptions::default()).await.unwrap();
    let table = [
        (&mut fresh, vec![EventType::Added, EventType::Modified, EventType::Modified, EventType::Deleted]),
        (&mut resumed, vec![EventType::Modified, EventType::Modified, EventType::Deleted]),
        (&mut selected, vec![EventType::Added, EventType::Deleted]),
    ];
    for (watch, want) in table {
        for event in want {
            let got = within(20, watch.next()).await.unwrap().unwrap();
            assert_eq!((got.event, got.object.name()), (event, "a"));
        }
    }
    lab.stop().await;
    assert!(within(20, fresh.next()).await.is_none_or(|e| e.is_err()), "the watch ends with the server");
}

#[tokio::test]
async fn watches_end_and_expire() {
    let store = MemoryStore::with_options(StoreOptions { history: 4, ..StoreOptions::default() });
    let mut options = options();
    options.bookmark_interval = std::time::Duration::from_millis(20);
    let lab = lab_with(store, options, "127.0.0.1:0".parse().unwrap()).await;
    let cm = kind("cm");
    for index in 0..8 {
        lab.client.create(&map(&format!("m{index}"), json!({})), &PLAIN).await.unwrap();
    }
    let old = WatchOptions { resource_version: Some("1".into()), ..WatchOptions::default() };
    assert!(matches!(lab.client.watch(cm, None, &old).await, Err(ClientError::Expired(_))));
    let list = lab.client.list(cm, None, &ListOptions::default()).await.unwrap();
    let short = WatchOptions {
        resource_version: Some(list.resource_version),
        bookmarks: true,
        timeout_seconds: Some(1),
        ..WatchOptions::default()
    };
    let mut watch = lab.client.watch(cm, None, &short).await.unwrap();
    let first = within(20, watch.next()).await.unwrap().unwrap();
    assert_eq!(first.event, EventType::Bookmark);
    assert!(first.object.metadata.resource_version.is_some());
    while let Some(event) = within(20, watch.next()).await {
        assert_eq!(event.unwrap().event, EventType::Bookmark, "nothing else happens");
    }
    let path = "/api/v1/configmaps?watch=true&sendInitialEvents=true&allowWatchBookmarks=true\
                &resourceVersionMatch=NotOlderThan&timeoutSeconds=1";
    let (_, body) = get_as(&lab, path, "application/json").await;
    let text = body.as_str().unwrap();
    assert_eq!(text.matches("\"type\":\"ADDED\"").count(), 8, "{text}");
    assert!(text.contains("k8s.io/initial-events-end"), "{text}");
}

#[tokio::test]
async fn invalid_objects_are_refused_with_their_fields() {
    let lab = lab().await;
    let mut wrong = virtual_service("v1", "v1");
    wrong.body["spec"]["http"][0]["route"][0]["weight"] = json!(-5);
    let error = lab.client.create(&wrong, &PLAIN).await.unwrap_err();
    let ClientError::Invalid { message, causes } = &error else { panic!("{error}") };
    assert!(message.contains("VirtualService.networking.istio.io \"reviews\" is invalid"), "{message}");
    assert!(causes.iter().any(|c| c.field.starts_with("spec.http[0].route[0]")), "{causes:?}");
    assert!(lab.client.get(kind("vs"), "default", "reviews").await.unwrap_err().is_not_found());
    let mut unknown = virtual_service("v1", "v1");
    unknown.body["spec"]["htttp"] = json!([]);
    let made = lab.client.create(&unknown, &PLAIN).await.unwrap();
    assert!(made.warnings.iter().any(|w| w.contains("htttp")), "{:?}", made.warnings);
    let named = map("Upper", json!({}));
    assert!(matches!(lab.client.create(&named, &PLAIN).await, Err(ClientError::Invalid { .. })));
}

struct Hook;

impl Admission for Hook {
    fn admit<'a>(
        &'a self,
        request: &'a AdmissionRequest<'a>,
        object: &'a mut Object,
    ) -> BoxFuture<'a, Result<Vec<String>, Denial>> {
        async move {
            if object.name() == "forbidden" {
                return Err(Denial::Forbidden("the name is taken".into()));
            }
            if object.body.get("data").is_some_and(|d| d.get("bad").is_some()) {
                return Err(Denial::Invalid(vec![FieldError { field: "data.bad".into(), message: "must go".into() }]));
            }
            let touched = format!("{:?} by {} after {}", request.operation, request.user, request.old.is_some());
            object.metadata.annotations.get_or_insert_default().insert("hook".into(), touched);
            Ok(vec!["seen \"it\"".into()])
        }
        .boxed()
    }
}

#[tokio::test]
async fn admission_hooks() {
    let mut options = options();
    options.admission = vec![Arc::new(Hook)];
    let lab = lab_with(MemoryStore::new(), options, "127.0.0.1:0".parse().unwrap()).await;
    let made = lab.client.create(&map("a", json!({})), &PLAIN).await.unwrap();
    assert_eq!(made.warnings, ["seen \"it\""]);
    assert_eq!(made.object.annotation("hook"), Some("Create by admin after false"));
    let patched = lab.client.merge_patch(kind("cm"), "default", "a", &json!({"data": {"x": "1"}})).await.unwrap();
    assert_eq!(patched.object.annotation("hook"), Some("Update by admin after true"));
    assert!(matches!(lab.client.create(&map("forbidden", json!({})), &PLAIN).await, Err(ClientError::Forbidden(_))));
    let error = lab.client.create(&map("b", json!({"bad": "1"})), &PLAIN).await.unwrap_err();
    assert!(matches!(&error, ClientError::Invalid { causes, .. } if causes[0].field == "data.bad"), "{error}");
}

#[tokio::test]
async fn who_may_what() {
    let lab = lab().await;
    for (headers, want) in [
        ("", 401),
        ("authorization: Bearer wrong\r\n", 401),
        ("authorization: Basic eDp5\r\n", 401),
        (&format!("authorization: Bearer {TOKEN}\r\nimpersonate-user: bob\r\n"), 403),
        (&format!("authorization: Bearer {TOKEN}\r\n"), 200),
    ] {
        let request = format!("GET /api/v1/namespaces HTTP/1.1\r\nhost: x\r\n{headers}connection: close\r\n\r\n");
        let answer = raw(&lab, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {want}")), "{headers}: {answer}");
    }
    for path in ["/version", "/healthz", "/livez", "/readyz"] {
        let answer = raw(&lab, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let token = async |namespace: &str, name: &str| {
        let account = object(json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace},
        }));
        lab.client.apply(&account, &ApplyOptions::default()).await.unwrap();
        lab.client.token_request(namespace, name, &TokenRequest::default()).await.unwrap().token
    };
    lab.server.ensure_namespace("istio-system").unwrap();
    let istiod = ApiClient::connect(&lab.url(), Some(&token("istio-system", "istiod").await)).unwrap();
    istiod.create(&map("by-istiod", json!({})), &PLAIN).await.unwrap();
    let other = ApiClient::connect(&lab.url(), Some(&token("default", "reviews").await)).unwrap();
    let error = other.get(kind("cm"), "default", "by-istiod").await.unwrap_err();
    assert!(matches!(&error, ClientError::Forbidden(m) if m.contains("cannot get resource \"configmaps\"")), "{error}");
    assert!(matches!(other.token_review("x", &[]).await, Err(ClientError::Forbidden(_))));
}

#[tokio::test]
async fn odd_requests_are_answered() {
    let lab = lab().await;
    let kept = lab.client.create(&map("kept", json!({})), &PLAIN).await.unwrap().object;
    let token = "POST /api/v1/namespaces/default/serviceaccounts/default/token";
    for (line, body, want) in [
        (token, "[]", 400),
        (token, "1", 400),
        (token, "{}", 200),
        // A client that left the namespace out does not mean all of them.
        ("DELETE /api/v1/configmaps", "", 405),
    ] {
        let head = format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n");
        let answer = raw(&lab, &format!("{head}content-length: {}\r\n\r\n{body}", body.len())).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {want}")), "{line} {body}: {answer:?}");
    }
    assert!(lab.server.store().get(&kept.key()).is_some());
}

#[tokio::test]
async fn tokens_are_for_their_audience_and_pod() {
    let lab = lab().await;
    let account = object(json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reviews", "namespace": "default"},
    }));
    lab.client.create(&account, &PLAIN).await.unwrap();
    let pod = object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"serviceAccountName": "reviews", "containers": [{"name": "c", "image": "i"}]},
    }));
    let pod = lab.client.create(&pod, &PLAIN).await.unwrap().object;
    let request = TokenRequest {
        audiences: vec!["istio-ca".into()],
        expiration_seconds: Some(600),
        pod: Some(("p".into(), pod.metadata.uid.clone().unwrap())),
    };
    let issued = lab.client.token_request("default", "reviews", &request).await.unwrap();
    assert!(issued.expires > 0 && !format!("{issued:?}").contains(&issued.token));
    let identity = lab.client.token_review(&issued.token, &["istio-ca", "other"]).await.unwrap();
    assert_eq!(identity.service_account(), Some(("default", "reviews")));
    assert_eq!((identity.audiences.as_slice(), identity.pod_name()), (&["istio-ca".to_string()][..], Some("p")));
    let refused = async |token: &str, audience: &str| lab.client.token_review(token, &[audience]).await.unwrap_err();
    assert!(refused(&issued.token, "vault").await.to_string().contains("other audiences"));
    assert!(refused("made-up", "istio-ca").await.to_string().contains("not known"));
    let impostor = ApiClient::connect(&lab.url(), Some(&issued.token)).unwrap();
    // Who may not ask has learned nothing about the token.
    let error = impostor.token_review(&issued.token, &["istio-ca"]).await.unwrap_err();
    assert!(matches!(&error, ClientError::Forbidden(m) if m.contains("credentials of this process")), "{error}");
    assert!(matches!(impostor.get(kind("cm"), "default", "x").await, Err(ClientError::Unauthorized { .. })));
    let wrong = TokenRequest { pod: Some(("p".into(), "other-uid".into())), ..request };
    assert!(matches!(lab.client.token_request("default", "reviews", &wrong).await, Err(ClientError::Invalid { .. })));
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    lab.client.delete(kind("pods"), "default", "p", &now).await.unwrap();
    assert!(refused(&issued.token, "istio-ca").await.to_string().contains("pod default/p"));
}

#[tokio::test]
async fn owners_and_namespaces_are_collected() {
    let lab = lab().await;
    let (client, cm) = (&lab.client, kind("cm"));
    client
        .create(&object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})), &PLAIN)
        .await
        .unwrap();
    assert!(client.get(kind("sa"), "shop", "default").await.is_ok(), "every namespace has an account");
    let mut owner = map("owner", json!({}));
    owner.metadata.namespace = Some("shop".into());
    let owner = client.create(&owner, &PLAIN).await.unwrap().object;
    let owned = object(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned", "namespace": "shop", "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid, "blockOwnerDeletion": true},
        ]},
    }));
    client.create(&owned, &PLAIN).await.unwrap();
    let foreground = DeleteOptions { propagation: Propagation::Foreground, ..DeleteOptions::default() };
    assert!(!client.delete(cm, "shop", "owner", &foreground).await.unwrap());
    eventually("owner and owned go", || async {
        client.list(cm, Some("shop"), &ListOptions::default()).await.unwrap().items.is_empty()
    })
    .await;
    client.create(&object(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "shop"}, "stringData": {"a": "b"},
    })), &PLAIN).await.unwrap();
    assert!(!client.delete(kind("ns"), "", "shop", &DeleteOptions::default()).await.unwrap());
    eventually("the namespace goes", || async {
        client.get(kind("ns"), "", "shop").await.is_err_and(|e| e.is_not_found())
    })
    .await;
    assert!(client.get(kind("secret"), "shop", "s").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn tables_discovery_and_limits() {
    let lab = lab().await;
    lab.client.create(&virtual_service("v1", "v1"), &PLAIN).await.unwrap();
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let (_, table) = get_as(&lab, "/apis/networking.istio.io/v1/virtualservices", accept).await;
    assert_eq!(table["kind"], "Table");
    let cells: Vec<_> = table["rows"][0]["cells"].as_array().unwrap().iter().take(3).cloned().collect();
    assert_eq!(cells, [json!("reviews"), Value::Null, json!("[\"reviews\"]")]);
    let accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let (_, partial) = get_as(&lab, "/apis/networking.istio.io/v1/virtualservices", accept).await;
    assert_eq!((&partial["kind"], &partial["items"][0]["spec"]), (&json!("PartialObjectMetadataList"), &Value::Null));
    assert_eq!(get_as(&lab, "/api/v1/pods", "application/vnd.kubernetes.protobuf").await.0, 406);
    let (code, groups) = get_as(&lab, "/apis", "application/json").await;
    assert_eq!((code, &groups["kind"]), (200, &json!("APIGroupList")));
    let (_, missing) = get_as(&lab, "/apis/nothing.example/v1/things", "application/json").await;
    assert_eq!(
        (&missing["reason"], &missing["code"], &missing["details"]),
        (&json!("NotFound"), &json!(404), &Value::Null)
    );
    let big = map("big", json!({"k": "x".repeat(4 << 20)}));
    let error = lab.client.create(&big, &PLAIN).await.unwrap_err();
    assert!(matches!(error, ClientError::Server { code: 413, .. }), "{error}");
    for body in ["", "{", "[]", "{\"apiVersion\":\"v1\",\"kind\":\"Secret\",\"metadata\":{\"name\":\"a\"}}"] {
        let answer = raw(
            &lab,
            &format!(
                "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\
                 connection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{body}: {answer}");
    }
}

#[tokio::test]
async fn many_writers_lose_nothing() {
    let lab = lab().await;
    lab.client.create(&map("counter", json!({})), &PLAIN).await.unwrap();
    let writers = (0..8).map(|writer| {
        let client = lab.client.clone();
        tokio::spawn(async move {
            for round in 0..10 {
                let patch = json!({"data": {format!("{writer}-{round}"): "1"}});
                client.merge_patch(kind("cm"), "default", "counter", &patch).await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        within(30, writer).await.unwrap();
    }
    let object = lab.client.get(kind("cm"), "default", "counter").await.unwrap();
    assert_eq!(object.body["data"].as_object().unwrap().len(), 80);
}
