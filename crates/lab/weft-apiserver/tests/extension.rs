//! What others bring along: kinds of their own, roles, other users' names, protobuf.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use serde_json::{Value, json};

/// Any request, as the administrator or as whom the headers say; status and JSON.
async fn call(lab: &Lab, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, Value) {
    use http_body_util::{BodyExt, Full};
    let stream = tokio::net::TcpStream::connect(lab.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::builder().method(method).uri(path).header("host", "x");
    if !headers.iter().any(|(name, _)| *name == "authorization") {
        request = request.header("authorization", format!("Bearer {TOKEN}"));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Full::new(bytes::Bytes::copy_from_slice(body));
    let answer = within(60, sender.send_request(request.body(body).unwrap())).await.unwrap();
    let code = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn send(lab: &Lab, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    call(lab, method, path, &[("content-type", kind)], body.to_string().as_bytes()).await
}

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/shop.example/v1/namespaces/default/widgets";

fn definition() -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1},
            "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "count": {"type": "integer"},
                }}},
        }},
        "status": {"type": "object", "properties": {"ready": {"type": "integer"}}},
    }}});
    let columns = json!([
        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
        {"name": "Color", "type": "string", "jsonPath": ".spec.color", "priority": 1},
    ]);
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.shop.example"},
        "spec": {
            "group": "shop.example", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [
                {"name": "v1beta1", "served": true, "storage": false, "deprecated": true, "schema": schema},
                {"name": "v1", "served": true, "storage": true, "schema": schema, "additionalPrinterColumns": columns,
                 "subresources": {"status": {}, "scale": {
                     "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.ready"}}},
            ],
        },
    })
}

fn widget(version: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("shop.example/{version}"), "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn custom_kinds() {
    let lab = lab().await;
    assert_eq!(send(&lab, "GET", WIDGETS, &Value::Null).await.0, 404);
    let (code, made) = send(&lab, "POST", CRDS, &definition()).await;
    assert_eq!(code, 201, "{made}");
    assert!(made["status"]["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "Established"));
    assert_eq!(made["spec"]["names"]["singular"], "widget");

    // Served from the very next request on, and discoverable.
    let (_, list) = send(&lab, "GET", "/apis/shop.example/v1", &Value::Null).await;
    let names: Vec<&str> = list["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["widgets", "widgets/status", "widgets/scale"]);
    let (_, open) = send(&lab, "GET", "/openapi/v3/apis/shop.example/v1", &Value::Null).await;
    assert_eq!(
        open["components"]["schemas"]["example.shop.v1.Widget"]["properties"]["spec"]["required"],
        json!(["size"])
    );

    let (code, made) = send(&lab, "POST", WIDGETS, &widget("v1", "a", json!({"size": 2, "typo": 1}))).await;
    assert_eq!((code, &made["spec"]), (201, &json!({"size": 2, "color": "red"})), "pruned and defaulted");
    let strict = format!("{WIDGETS}?fieldValidation=Strict");
    let (code, error) = send(&lab, "POST", &strict, &widget("v1", "b", json!({"size": 2, "typo": 1}))).await;
    assert!(code == 400 && error["message"].as_str().unwrap().contains("unknown field \"spec.typo\""), "{error}");
    let (code, error) = send(&lab, "POST", WIDGETS, &widget("v1", "b", json!({"size": 0, "color": "green"}))).await;
    assert_eq!((code, &error["reason"]), (422, &json!("Invalid")));
    let text = error["message"].as_str().unwrap();
    assert!(text.contains("spec.size") && text.contains("Unsupported value: \"green\""), "{text}");

    // Another version of the same object.
    let (_, old) = send(&lab, "GET", "/apis/shop.example/v1beta1/namespaces/default/widgets/a", &Value::Null).await;
    assert_eq!((&old["apiVersion"], &old["spec"]["size"]), (&json!("shop.example/v1beta1"), &json!(2)));

    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let (_, table) = call(&lab, "GET", WIDGETS, &table, b"").await;
    let columns: Vec<_> = table["columnDefinitions"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(columns, ["Name", "Size", "Color"]);
    assert_eq!(table["rows"][0]["cells"], json!(["a", 2, "red"]));

    let (_, scaled) = send(&lab, "PATCH", &format!("{WIDGETS}/a/scale"), &json!({"spec": {"replicas": 5}})).await;
    assert_eq!(scaled["spec"]["replicas"], 5);
    let (_, status) = send(&lab, "PATCH", &format!("{WIDGETS}/a/status"), &json!({"status": {"ready": 3}})).await;
    assert_eq!((&status["spec"]["size"], &status["status"]["ready"]), (&json!(5), &json!(3)));
    let (_, same) = send(&lab, "PATCH", &format!("{WIDGETS}/a"), &json!({"status": {"ready": 9}})).await;
    assert_eq!(same["status"]["ready"], 3, "the status has a path of its own");

    let (code, _) = send(&lab, "DELETE", &format!("{CRDS}/widgets.shop.example"), &Value::Null).await;
    assert_eq!(code, 200);
    eventually("the kind goes with its objects", async || {
        lab.server.store().find("shop.example", "Widget", "default", "a").is_none()
            && send(&lab, "GET", WIDGETS, &Value::Null).await.0 == 404
    })
    .await;
}

#[tokio::test]
async fn definitions_that_cannot_be_followed() {
    let lab = lab().await;
    let change = |path: &str, value: Value| {
        let mut definition = definition();
        *definition.pointer_mut(path).unwrap() = value;
        definition
    };
    for (body, want) in [
        (change("/metadata/name", json!("other.shop.example")), "metadata.name"),
        (change("/spec/scope", json!("Somewhere")), "spec.scope"),
        (change("/spec/versions/0/storage", json!(true)), "exactly one version"),
        (change("/spec/versions/1/schema", json!({})), "schemas are required"),
        (change("/spec/versions/1/schema/openAPIV3Schema/properties/spec", json!({})), "properties[spec].type"),
        (change("/spec/versions/1/additionalPrinterColumns/0/jsonPath", json!("spec")), "jsonPath"),
    ] {
        let (code, error) = send(&lab, "POST", CRDS, &body).await;
        assert!(code == 422 && error["message"].as_str().unwrap().contains(want), "{want}: {error}");
    }
    // A webhook that converts must be somewhere.
    let mut converted = definition();
    converted["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"]}});
    let (code, error) = send(&lab, "POST", CRDS, &converted).await;
    assert!(
        code == 422 && error["message"].as_str().unwrap().contains("spec.conversion.webhookClientConfig"),
        "{error}"
    );
}

#[tokio::test]
async fn server_side_apply_with_conflicts() {
    let lab = lab().await;
    send(&lab, "POST", CRDS, &definition()).await;
    let apply = async |manager: &str, force: bool, parts: Value| {
        let path = format!("{WIDGETS}/a?fieldManager={manager}&force={force}");
        let body = widget("v1", "a", json!({"size": 1, "parts": parts}));
        call(&lab, "PATCH", &path, &[("content-type", "application/apply-patch+yaml")], body.to_string().as_bytes())
            .await
    };
    let (code, _) = apply("one", false, json!([{"name": "x", "count": 1}, {"name": "y"}])).await;
    assert_eq!(code, 201);
    let (code, both) = apply("two", false, json!([{"name": "z", "count": 1}])).await;
    assert_eq!((code, both["spec"]["parts"].as_array().unwrap().len()), (200, 3));
    let (code, error) = apply("two", false, json!([{"name": "x", "count": 2}])).await;
    assert_eq!(code, 409, "{error}");
    assert_eq!(error["details"]["causes"][0]["field"], ".spec.parts[name=\"x\"].count");
    assert!(error["message"].as_str().unwrap().starts_with("Apply failed with 1 conflict: conflict with \"one\""));
    let (code, forced) = apply("two", true, json!([{"name": "x", "count": 2}])).await;
    assert_eq!((code, &forced["spec"]["parts"]), (200, &json!([{"name": "x", "count": 2}, {"name": "y"}])));
    let version = forced["metadata"]["resourceVersion"].clone();
    let (_, same) = apply("two", true, json!([{"name": "x", "count": 2}])).await;
    assert_eq!(same["metadata"]["resourceVersion"], version, "an apply that changes nothing is no change");
}

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

#[tokio::test]
async fn roles_and_impersonation() {
    let lab = lab().await;
    let jane = [("impersonate-user", "jane"), ("impersonate-group", "dev")];
    let pods = "/api/v1/namespaces/default/pods";
    let (code, error) = call(&lab, "GET", pods, &jane, b"").await;
    assert_eq!(code, 403);
    let want =
        "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert_eq!(error["message"], want);

    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r:ead"},
                      "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]});
    assert_eq!(send(&lab, "POST", &format!("{RBAC}/namespaces/default/roles"), &role).await.0, 201);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
                         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r:ead"},
                         "subjects": [{"kind": "Group", "name": "dev"}]});
    assert_eq!(send(&lab, "POST", &format!("{RBAC}/namespaces/default/rolebindings"), &binding).await.0, 201);
    assert_eq!(call(&lab, "GET", pods, &jane, b"").await.0, 200);
    assert_eq!(call(&lab, "GET", "/api/v1/pods", &jane, b"").await.0, 403, "only in its namespace");

    let question = |verb: &str| {
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes":
            {"namespace": "default", "verb": verb, "resource": "pods"}}})
    };
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let headers = [jane[0], jane[1], ("content-type", "application/json")];
    for (verb, want) in [("list", true), ("delete", false)] {
        let (_, answer) = call(&lab, "POST", path, &headers, question(verb).to_string().as_bytes()).await;
        assert_eq!(answer["status"]["allowed"], want, "{verb}: {answer}");
    }
    let (_, who) = call(
        &lab,
        "POST",
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        &headers,
        br#"{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}"#,
    )
    .await;
    assert_eq!(who["status"]["userInfo"]["username"], "jane");

    // Who may do nothing may not become somebody else either.
    let tokens = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let (_, issued) = send(&lab, "POST", tokens, &request).await;
    let bearer = format!("Bearer {}", issued["status"]["token"].as_str().unwrap());
    let as_admin =
        [("authorization", bearer.as_str()), ("impersonate-user", "admin"), ("impersonate-group", "system:masters")];
    let (code, error) = call(&lab, "GET", pods, &as_admin, b"").await;
    assert!(code == 403 && error["message"].as_str().unwrap().contains("cannot impersonate"), "{error}");
    let (code, _) = call(&lab, "GET", pods, &[("impersonate-group", "dev")], b"").await;
    assert_eq!(code, 400, "a group alone is nobody");
}

#[tokio::test]
async fn protobuf_bodies() {
    let lab = lab().await;
    let field = |number: u8, bytes: &[u8]| [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()][..], bytes].concat();
    let types = [field(1, b"v1"), field(2, b"Namespace")].concat();
    let namespace = field(1, &field(1, b"shop"));
    let body = [&b"k8s\0"[..], &field(1, &types), &field(2, &namespace)].concat();
    let headers = [
        ("content-type", "application/vnd.kubernetes.protobuf"),
        ("accept", "application/vnd.kubernetes.protobuf, */*"),
    ];
    let (code, made) = call(&lab, "POST", "/api/v1/namespaces", &headers, &body).await;
    assert_eq!((code, &made["metadata"]["name"]), (201, &json!("shop")), "{made}");
    let (code, error) = call(&lab, "POST", "/api/v1/namespaces", &headers, &body[..20]).await;
    assert!(code == 400 && error["message"].as_str().unwrap().contains("protobuf"), "{error}");
}

#[test]
fn random_bodies_do_no_harm() {
    let mut random = fastrand::Rng::with_seed(7);
    let seed = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12\x08\x0a\x06\x0a\x04shop";
    for _ in 0..20_000 {
        let mut body: Vec<u8> = seed.to_vec();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..body.len());
            body[at] = random.u8(..);
        }
        body.truncate(random.usize(..=body.len()));
        weft_apiserver::fuzzing::protobuf(&body);
        let length = random.usize(..80);
        let block: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        let begun = [&[0, u8::try_from(length + 6).unwrap(), 0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2][..], &block].concat();
        weft_apiserver::fuzzing::spdy_headers(&begun);
    }
}
