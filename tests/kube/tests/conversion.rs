//! Kinds whose versions a webhook converts between: written in one, read, listed and watched in another, kept in a third time's
//! storage version; and what users are told when the webhook cannot, will not, or oversteps. The same on both servers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use weft_k8s_api::KindInfo;
use weft_kube_tests::pki::Pki;
use weft_kube_tests::{Cluster, Kind, eventually, on_both};
use weft_store::EventType;
use weft_store::client::WatchOptions;
use weft_tls::{ServerContext, ServerParams};

on_both!(versions_are_converted, converters_that_fail);

const DEFINITION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gadgets.example.test";
const V1: &str = "/apis/example.test/v1/namespaces/default/gadgets";
const OLD: &str = "/apis/example.test/v1beta1/namespaces/default/gadgets";
const MERGE: &str = "application/merge-patch+json";
static GADGET: KindInfo = KindInfo {
    group: "example.test",
    versions: &["v1"],
    kind: "Gadget",
    plural: "gadgets",
    singular: "gadget",
    short: &[],
    namespaced: true,
    categories: &[],
};

/// A webhook that knows both versions. It goes with the value.
struct Converter {
    url: String,
    bundle: String,
    /// The most objects that were in one question.
    most: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Converter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Converter {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let pki = Pki::create(folder.path())?;
        // Without a word about protocols it is HTTP/1.1.
        let context =
            ServerContext::build(ServerParams { certificates: vec![pki.server()?], ..ServerParams::default() })?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://127.0.0.1:{}/convert", listener.local_addr()?.port());
        let (most, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counted, told) = (most.clone(), seen.clone());
        let task = tokio::spawn(async move {
            // Connections end with the converter, as if its program did.
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (context, counted, told) = (context.clone(), counted.clone(), told.clone());
                open.spawn(async move {
                    let Ok(accepted) = context.accept(stream).await else { return };
                    let mut stream = accepted.stream;
                    while let Ok(review) = read(&mut stream).await {
                        let request = &review["request"];
                        let count = request["objects"].as_array().map_or(0, Vec::len);
                        counted.fetch_max(count, Ordering::SeqCst);
                        told.lock().unwrap().push(request["desiredAPIVersion"].as_str().unwrap_or_default().to_string());
                        let answer = json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview", "response": answer(request)});
                        if write(&mut stream, &answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Ok(Self { url, bundle: STANDARD.encode(pki.ca), most, seen, task })
    }

    fn asked_for(&self, version: &str) -> bool {
        self.seen.lock().unwrap().iter().any(|seen| seen == version)
    }
}

/// One request of HTTP/1.1, its body as JSON.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Value> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        ensure!(stream.read_buf(&mut bytes).await? > 0, "the end");
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let mut body = bytes.split_off(end);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).context("a length")?;
    let length: usize = length.trim().parse()?;
    while body.len() < length {
        ensure!(stream.read_buf(&mut body).await? > 0, "the end");
    }
    Ok(serde_json::from_slice(&body)?)
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), answer: &Value) -> Result<()> {
    let body = answer.to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await?;
    Ok(stream.flush().await?)
}

/// `v1beta1` has a text `size`, `v1` a number `width`. An object may ask for what a converter must not do.
fn answer(request: &Value) -> Value {
    let wanted = request["desiredAPIVersion"].as_str().unwrap_or_default();
    let mut converted = Vec::new();
    for object in request["objects"].as_array().into_iter().flatten() {
        let mut new = object.clone();
        new["apiVersion"] = wanted.into();
        new["metadata"]["annotations"]["example.test/from"] = object["apiVersion"].clone();
        let size = object["spec"]["size"].as_str();
        match (wanted.ends_with("/v1"), size.map(str::parse::<i64>), object["spec"]["width"].as_i64()) {
            (true, Some(Ok(width)), _) => new["spec"] = json!({"width": width}),
            (false, _, Some(width)) => new["spec"] = json!({"size": width.to_string()}),
            _ => {
                return json!({"uid": request["uid"], "result": {"status": "Failed", "message": "size must be a number"}});
            }
        }
        new["spec"]["more"] = "neither version has it".into();
        // What is the server's alone is not taken over.
        new["metadata"]["resourceVersion"] = "1".into();
        match object["metadata"]["labels"]["please"].as_str() {
            Some("rename") => new["metadata"]["name"] = "other".into(),
            Some("lose") => continue,
            Some("wait") => std::thread::sleep(Duration::from_millis(200)),
            _ => {}
        }
        converted.push(new);
    }
    json!({"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": converted})
}

fn definition(converter: &Converter) -> Value {
    let version = |name: &str, storage: bool, fields: Value| {
        let spec = json!({"type": "object", "properties": fields});
        let status = json!({"type": "object", "properties": {"seen": {"type": "integer"}}});
        json!({"name": name, "served": true, "storage": storage, "subresources": {"status": {}},
               "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": status}}}})
    };
    let new = json!({"width": {"type": "integer", "maximum": 100}, "color": {"type": "string", "default": "red"}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "gadgets.example.test"},
        "spec": {
            "group": "example.test", "scope": "Namespaced",
            "names": {"kind": "Gadget", "plural": "gadgets", "singular": "gadget", "listKind": "GadgetList"},
            "versions": [version("v1", false, new), version("v1beta1", true, json!({"size": {"type": "string"}}))],
            "conversion": {"strategy": "Webhook", "webhook": {
                "conversionReviewVersions": ["v1"],
                "clientConfig": {"url": converter.url, "caBundle": converter.bundle},
            }},
        },
    })
}

async fn defined(cluster: &Cluster) -> Result<Converter> {
    let converter = Converter::start().await?;
    cluster.create(definition(&converter)).await?;
    for path in [V1, OLD] {
        eventually("the kind is served", async || {
            let (code, body) = cluster.rest("GET", path, None).await?;
            ensure!(code == 200, "{body}");
            Ok(())
        })
        .await?;
    }
    Ok(converter)
}

async fn send(cluster: &Cluster, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
    let content_type = match method {
        "PATCH" if path.contains("fieldManager") => "application/apply-patch+yaml",
        "PATCH" => MERGE,
        _ => "application/json",
    };
    cluster.rest(method, path, Some((content_type, &body.to_string()))).await
}

/// The answer to a request that must succeed.
async fn done(cluster: &Cluster, method: &str, path: &str, body: &Value) -> Result<Value> {
    let (code, answer) = send(cluster, method, path, body).await?;
    ensure!(code < 300, "{method} {path}: {code} {answer}");
    Ok(answer)
}

async fn got(cluster: &Cluster, path: &str) -> Result<Value> {
    let (code, answer) = cluster.rest("GET", path, None).await?;
    ensure!(code == 200, "GET {path}: {code} {answer}");
    Ok(answer)
}

fn gadget(version: &str, name: &str, please: &str, spec: Value) -> Value {
    json!({"apiVersion": format!("example.test/{version}"), "kind": "Gadget", "spec": spec,
           "metadata": {"name": name, "labels": {"please": please}}})
}

async fn versions_are_converted(cluster: Cluster) -> Result<()> {
    let converter = defined(&cluster).await?;
    // Written in the one, answered in the same, kept in the other.
    let a = done(&cluster, "POST", V1, &gadget("v1", "a", "", json!({"width": 5}))).await?;
    ensure!(a["apiVersion"] == "example.test/v1" && a["spec"] == json!({"width": 5}), "{a}");
    let old = got(&cluster, &format!("{OLD}/a")).await?;
    ensure!(old["apiVersion"] == "example.test/v1beta1" && old["spec"] == json!({"size": "5"}), "{old}");
    ensure!(old["metadata"]["uid"] == a["metadata"]["uid"], "{old}");
    ensure!(old["metadata"]["resourceVersion"] == a["metadata"]["resourceVersion"], "{old}");
    ensure!(old["metadata"]["annotations"]["example.test/from"] == "example.test/v1", "{old}");
    ensure!(converter.asked_for("example.test/v1beta1") && converter.asked_for("example.test/v1"));
    // Rules are those of the version that is spoken.
    let (code, refused) = send(&cluster, "POST", V1, &gadget("v1", "x", "", json!({"width": 101}))).await?;
    ensure!(code == 422 && refused["message"].to_string().contains("spec.width"), "{refused}");
    done(&cluster, "POST", OLD, &gadget("v1beta1", "b", "", json!({"size": "99"}))).await?;
    // Lists, changes, applies, a status.
    let list = got(&cluster, V1).await?;
    let widths: Vec<&Value> = list["items"].as_array().context("items")?.iter().map(|o| &o["spec"]["width"]).collect();
    ensure!(list["apiVersion"] == "example.test/v1" && widths == [5, 99], "{list}");
    // Kubernetes converts one after the other, in its cache.
    let most = converter.most.load(Ordering::SeqCst);
    ensure!(cluster.kind == Kind::Real || most == 2, "{most}: objects of a list go together");
    let patched = done(&cluster, "PATCH", &format!("{V1}/a"), &json!({"spec": {"width": 6}})).await?;
    ensure!(patched["spec"]["width"] == 6, "{patched}");
    ensure!(got(&cluster, &format!("{OLD}/a")).await?["spec"] == json!({"size": "6"}));
    let path = format!("{V1}/a?fieldManager=me&force=true");
    let applied = done(&cluster, "PATCH", &path, &gadget("v1", "a", "", json!({"width": 7}))).await?;
    ensure!(applied["spec"]["width"] == 7, "{applied}");
    let mut put = got(&cluster, &format!("{OLD}/a")).await?;
    put["spec"]["size"] = "8".into();
    ensure!(done(&cluster, "PUT", &format!("{OLD}/a"), &put).await?["spec"] == json!({"size": "8"}));
    let status = done(&cluster, "PATCH", &format!("{V1}/a/status"), &json!({"status": {"seen": 3}})).await?;
    ensure!(status["status"]["seen"] == 3 && status["spec"]["width"] == 8, "{status}");
    watched(&cluster).await?;
    // From now on kept in the other version; what is there stays as it is until it is written.
    let mut versions = definition(&converter)["spec"]["versions"].clone();
    versions[0]["storage"] = true.into();
    versions[1]["storage"] = false.into();
    done(&cluster, "PATCH", DEFINITION, &json!({"spec": {"versions": versions}})).await?;
    let mut tries = 0;
    eventually("the new storage version", async || {
        tries += 1;
        let stored = got(&cluster, DEFINITION).await?["status"]["storedVersions"].clone();
        ensure!(stored == json!(["v1beta1", "v1"]), "{stored}");
        let patch = json!({"metadata": {"annotations": {"touched": tries.to_string()}}});
        let touched = done(&cluster, "PATCH", &format!("{V1}/b"), &patch).await?;
        // A default that is kept: the old version has no place for it.
        ensure!(touched["spec"]["color"] == "red", "kept as before: {touched}");
        Ok(())
    })
    .await?;
    for (path, name, spec) in [
        (V1, "a", json!({"width": 8})),
        (OLD, "a", json!({"size": "8"})),
        (V1, "b", json!({"width": 99, "color": "red"})),
        (OLD, "b", json!({"size": "99"})),
    ] {
        let found = got(&cluster, &format!("{path}/{name}")).await?;
        ensure!(found["spec"] == spec, "{path}/{name}: {found}");
    }
    Ok(())
}

/// What was there before, and what happens.
async fn watched(cluster: &Cluster) -> Result<()> {
    let mut events = cluster.client.watch(&GADGET, Some("default"), &WatchOptions::default()).await?;
    let mut next = async || {
        let event = tokio::time::timeout(weft_kube_tests::LIMIT, events.next()).await?.context("the watch ended")??;
        ensure!(event.object.api_version == "example.test/v1", "{}", event.object.to_value());
        Ok((event.event, event.object.name().to_string(), event.object.spec()["width"].clone()))
    };
    let there: [(EventType, String, Value); 2] = [next().await?, next().await?];
    for wanted in [(EventType::Added, "a".to_string(), json!(8)), (EventType::Added, "b".to_string(), json!(99))] {
        ensure!(there.contains(&wanted), "{there:?}");
    }
    done(cluster, "POST", OLD, &gadget("v1beta1", "c", "", json!({"size": "1"}))).await?;
    ensure!(next().await? == (EventType::Added, "c".into(), json!(1)));
    let (code, _) = cluster.rest("DELETE", &format!("{OLD}/c"), None).await?;
    ensure!(code == 200 && next().await? == (EventType::Deleted, "c".into(), json!(1)));
    Ok(())
}

async fn converters_that_fail(cluster: Cluster) -> Result<()> {
    let converter = defined(&cluster).await?;
    let failed = "conversion webhook for example.test/v1beta1, Kind=Gadget";
    for (name, please, size, words) in [
        ("word", "", "many", format!("{failed} failed: size must be a number")),
        ("renamed", "rename", "1", format!("{failed} returned invalid object")),
        ("lost", "lose", "1", format!("{failed} returned 0 objects, expected 1")),
    ] {
        done(&cluster, "POST", OLD, &gadget("v1beta1", name, please, json!({"size": size}))).await?;
        // Who speaks the version that it is kept in does not need the webhook.
        ensure!(got(&cluster, &format!("{OLD}/{name}")).await?["spec"]["size"] == size);
        let (code, error) = cluster.rest("GET", &format!("{V1}/{name}"), None).await?;
        ensure!(code == 500 && error["message"].as_str().is_some_and(|m| m.starts_with(&words)), "{name}: {error}");
        let (code, error) = send(&cluster, "PATCH", &format!("{V1}/{name}"), &json!({"spec": {"width": 1}})).await?;
        ensure!(code == 500 && error["message"].as_str().is_some_and(|m| m.starts_with(&words)), "{name}: {error}");
    }
    let (code, error) = cluster.rest("GET", V1, None).await?;
    ensure!(code == 500 && error["message"].to_string().contains("conversion webhook for example.test/v1"), "{error}");
    // Nobody answers any more: nothing is written that cannot be kept, and what is kept can be read and deleted.
    drop(converter);
    eventually("nobody answers", async || {
        let (code, error) = send(&cluster, "POST", V1, &gadget("v1", "late", "", json!({"width": 1}))).await?;
        let told = error["message"].as_str().unwrap_or_default();
        ensure!(
            code == 500 && told.starts_with("conversion webhook for example.test/v1, Kind=Gadget failed: Post"),
            "{error}"
        );
        Ok(())
    })
    .await?;
    ensure!(got(&cluster, OLD).await?["items"].as_array().context("items")?.len() == 3);
    let (code, answer) = cluster.rest("DELETE", &format!("{OLD}/word"), None).await?;
    ensure!(code == 200, "{answer}");
    Ok(())
}
