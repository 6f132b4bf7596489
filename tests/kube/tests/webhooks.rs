//! The webhooks, asked by the API server: pods are injected, objects that make no sense are refused; and what users are told
//! when the webhook is down or its certificate has ended.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use weft_k8s_api::Object;
use weft_kube_tests::cluster::kind;
use weft_kube_tests::{Cluster, Weftd, eventually, objects, on_both};
use weft_store::ClientError;
use weft_store::client::WriteOptions;
use weft_tls::issue::{Issuer, LeafParams};
use weft_tls::{CertifiedKey, KeyKind, PrivateKey, San, ServerContext, ServerParams};

on_both!(pods_are_injected_and_objects_checked, webhooks_that_cannot_be_asked);

const HOOKS: [(&str, &str); 2] = [
    ("mutatingwebhookconfigurations", "istio-sidecar-injector"),
    ("validatingwebhookconfigurations", "istiod-default-validator"),
];

/// A weftd with the rights of the manifests and its webhooks, once the API server trusts them.
async fn weftd(cluster: &Cluster) -> Result<Weftd> {
    cluster.install().await?;
    let account = cluster.account("istio-system", "istiod").await?;
    let mut weftd = Weftd::spawn(cluster, "weftd-0", &account, &[])?;
    weftd.ready().await?;
    cluster.install_webhooks(weftd.webhook).await?;
    for (kind_name, name) in HOOKS {
        let trusted = eventually("the certificate is trusted", async || {
            let hook = cluster.get(kind_name, "", name).await?;
            let all = hook.body["webhooks"].as_array().context("webhooks")?;
            ensure!(
                all.iter().all(|h| h["clientConfig"]["caBundle"].as_str().is_some_and(|b| b.len() > 100)),
                "{all:?}"
            );
            ensure!(all.iter().all(|h| h["failurePolicy"] == "Fail"), "{all:?}");
            Ok(())
        });
        trusted.await.with_context(|| weftd.process.output())?;
    }
    cluster.namespace("shop", &[("istio-injection", "enabled")]).await?;
    cluster.namespace("plain", &[]).await?;
    Ok(weftd)
}

/// A pod as users write it.
fn pod(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "web", "ports": [{"containerPort": 8080}]}]},
    })
}

fn containers(pod: &Object) -> Vec<String> {
    let of = |list: &str| pod.spec()[list].as_array().cloned().unwrap_or_default();
    let all = of("initContainers").into_iter().chain(of("containers"));
    all.filter_map(|c| c["name"].as_str().map(str::to_string)).collect()
}

/// The API server takes a while to see a webhook's configuration.
async fn injected(cluster: &Cluster, name: &str) -> Result<Object> {
    eventually("injection", async || {
        let created = cluster.create(pod("shop", name)).await?;
        if containers(&created).iter().any(|c| c == "istio-proxy") {
            return Ok(created);
        }
        cluster.delete("pods", "shop", name).await?;
        anyhow::bail!("not injected: {:?}", containers(&created))
    })
    .await
}

async fn pods_are_injected_and_objects_checked(cluster: Cluster) -> Result<()> {
    let weftd = weftd(&cluster).await?;
    let with_proxy = injected(&cluster, "web-1").await?;
    ensure!(with_proxy.annotation("sidecar.istio.io/status").is_some(), "{}", with_proxy.to_value());
    ensure!(containers(&with_proxy).iter().any(|c| c == "web"));
    let stored = cluster.get("pods", "shop", "web-1").await?;
    ensure!(containers(&stored) == containers(&with_proxy), "what is stored is what was answered");
    // Not everywhere, and not against a pod's will.
    let other = cluster.create(pod("plain", "web-1")).await?;
    ensure!(containers(&other) == ["web"], "{:?}", containers(&other));
    let mut unwilling = pod("shop", "web-2");
    unwilling["metadata"]["labels"]["sidecar.istio.io/inject"] = "false".into();
    ensure!(containers(&cluster.create(unwilling).await?) == ["web"]);
    // A dry run injects as well, and stores nothing.
    let dry = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let tried = cluster.client.create(&serde_json::from_value(pod("shop", "web-3"))?, &dry).await?;
    ensure!(containers(&tried.object).iter().any(|c| c == "istio-proxy"));
    ensure!(cluster.get("pods", "shop", "web-3").await.is_err());

    // Fifty containers with a probe each, and labels and annotations of a hundred kilobytes: nothing is lost on the way.
    let mut crowd = pod("shop", "crowd");
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}});
    let all = (0..50).map(|i| json!({"name": format!("c{i}"), "image": "i", "readinessProbe": probe}));
    crowd["spec"]["containers"] = all.collect::<Vec<_>>().into();
    crowd["metadata"]["annotations"] = json!({"note": "x".repeat(100_000)});
    let crowd = cluster.create(crowd).await?;
    ensure!(containers(&crowd).iter().filter(|name| name.starts_with('c')).count() == 50, "{:?}", containers(&crowd));
    ensure!(containers(&crowd).iter().any(|c| c == "istio-proxy"));
    let rewritten = crowd.spec()["containers"].to_string().matches("/app-health/").count();
    ensure!(rewritten >= 50, "{rewritten} probes lead to the proxy");

    // An object that makes no sense is refused with the field that is wrong; one that does is taken.
    let mut senseless = objects::virtual_service("shop", "web", None);
    senseless["spec"]["http"][0]["fault"] = json!({"abort": {"httpStatus": 9999, "percentage": {"value": 100}}});
    // That pods are injected says nothing of the other configuration: the API server takes in each by itself.
    eventually("the senseless object is refused", async || {
        let Err(refused) = cluster.create(senseless.clone()).await else {
            cluster.delete("vs", "shop", "web").await?;
            anyhow::bail!("taken")
        };
        let refused = refused.to_string();
        ensure!(refused.contains("validation.istio.io") && refused.contains("httpStatus"), "{refused}");
        Ok(())
    })
    .await?;
    cluster.create(objects::virtual_service("shop", "web", None)).await?;
    let patch = json!({"spec": {"http": [{"timeout": "-1s", "route": [{"destination": {"host": "web"}}]}]}});
    let refused =
        cluster.client.merge_patch(kind("vs")?, "shop", "web", &patch).await.expect_err("refused").to_string();
    ensure!(refused.contains("timeout"), "{refused}");
    ensure!(weftd.readiness().await?.0 == 200);
    Ok(())
}

/// A TLS server with a certificate of the mesh's authority that ended yesterday. Returns its port.
async fn expired_server(cluster: &Cluster) -> Result<u16> {
    use base64::Engine as _;
    let secret = cluster.get("secrets", "istio-system", "istio-ca-secret").await?;
    let data = |key: &str| {
        let text = secret.body["data"][key].as_str().with_context(|| key.to_string())?;
        Ok::<_, anyhow::Error>(base64::engine::general_purpose::STANDARD.decode(text)?)
    };
    let issuer = Issuer::from_pem(&data("ca-cert.pem")?, &data("ca-key.pem")?)?;
    let key = PrivateKey::generate(KeyKind::EcdsaP256)?;
    let day = Duration::from_secs(24 * 3600);
    let (not_before, not_after) = (SystemTime::now() - day * 2, SystemTime::now() - day);
    let leaf = LeafParams { names: vec![San::Dns("localhost".into())], not_before, not_after };
    // The authority is younger than that; so the certificate ended when it had just begun.
    let begun = issuer.facts().not_before;
    let leaf = if begun >= not_after {
        LeafParams { not_before: begun, not_after: begun + Duration::from_secs(1), ..leaf }
    } else {
        leaf
    };
    let issued = issuer.sign_key(&key, &leaf)?;
    let certificate = CertifiedKey::from_pem(issued.pem.as_bytes(), key.to_pem().as_bytes())?;
    let context = ServerContext::build(ServerParams { certificates: vec![certificate], ..ServerParams::default() })?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let context = context.clone();
            // The client ends the handshake when it has seen the certificate.
            tokio::spawn(async move { drop(context.accept(stream).await) });
        }
    });
    Ok(port)
}

/// Waits until a pod of the namespace is refused, with a text that contains one of `words`.
async fn refused(cluster: &Cluster, name: &str, words: &[&str]) -> Result<()> {
    eventually("refused", async || match cluster.create(pod("shop", name)).await {
        Ok(_) => {
            cluster.delete("pods", "shop", name).await?;
            anyhow::bail!("taken")
        }
        Err(error) => {
            let text = error.to_string();
            ensure!(text.contains("sidecar-injector.istio.io"), "{text}");
            ensure!(words.iter().any(|word| text.contains(word)), "{text}");
            Ok(())
        }
    })
    .await
}

async fn webhooks_that_cannot_be_asked(cluster: Cluster) -> Result<()> {
    let mut first = weftd(&cluster).await?;
    injected(&cluster, "web-1").await?;

    // Down: no pod comes up without its proxy; the namespaces of others are not concerned.
    first.process.kill()?;
    refused(&cluster, "web-2", &["connection refused", "Connection refused"]).await?;
    cluster.create(pod("plain", "web-2")).await?;
    eventually("unchecked objects are not taken", async || {
        let error = cluster.create(objects::virtual_service("shop", "web", None)).await;
        if error.is_ok() {
            cluster.delete("vs", "shop", "web").await?;
            anyhow::bail!("taken")
        }
        ensure!(!matches!(error, Err(ClientError::Unreachable { .. })), "{error:?}");
        Ok(())
    })
    .await?;

    // Back: at once.
    let account = cluster.account("istio-system", "istiod").await?;
    let mut second = Weftd::spawn_on(first.webhook, &cluster, "weftd-1", &account, &[])?;
    second.ready().await?;
    injected(&cluster, "web-3").await?;

    // A certificate that has ended is refused by name.
    let port = expired_server(&cluster).await?;
    let hook = cluster.get(HOOKS[0].0, "", HOOKS[0].1).await?;
    let mut webhooks = hook.body["webhooks"].clone();
    for entry in webhooks.as_array_mut().into_iter().flatten() {
        entry["clientConfig"]["url"] = json!(format!("https://localhost:{port}/inject"));
    }
    cluster.client.merge_patch(kind(HOOKS[0].0)?, "", HOOKS[0].1, &json!({"webhooks": webhooks})).await?;
    refused(&cluster, "web-4", &["expired", "Expired"]).await?;
    second.process.check()
}

/// The table of weft-inject's own tests.
const CASES: &str = include_str!("../../../crates/control/weft-inject/tests/cases.yaml");
/// Fields of a case that are about the pod; one with others asks for other settings than those that are installed.
const OF_THE_POD: [&str; 9] =
    ["name", "labels", "annotations", "containers", "initContainers", "volumes", "spec", "want", "native"];

/// The pod of a case, when its settings are those that are installed.
fn pod_of(case: &Value) -> Option<Value> {
    let fields = case.as_object()?;
    if case["native"] == true || fields.keys().any(|field| !OF_THE_POD.contains(&field.as_str())) {
        return None;
    }
    let mut metadata = json!({"name": "app"});
    let mut spec = json!({"containers": [{"name": "app", "image": "app:1"}]});
    for (name, value) in fields {
        match name.as_str() {
            "labels" | "annotations" => metadata[name] = value.clone(),
            "containers" | "initContainers" | "volumes" => spec[name] = value.clone(),
            "spec" => value.as_object()?.iter().for_each(|(name, value)| spec[name] = value.clone()),
            _ => {}
        }
    }
    Some(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
}

/// Every pod that Kubernetes takes as its user wrote it, it also takes as it was injected.
#[tokio::test]
async fn injected_pods_are_valid() -> Result<()> {
    let cluster = Cluster::start(weft_kube_tests::Kind::Real).await?;
    let _weftd = weftd(&cluster).await?;
    injected(&cluster, "web-1").await?;
    let dry = WriteOptions { dry_run: true, ..WriteOptions::default() };
    let cases = weft_k8s_api::yaml::value(CASES).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for case in cases.as_array().context("a list")? {
        let Some(mut pod) = pod_of(case) else { continue };
        pod["metadata"]["namespace"] = "plain".into();
        if cluster.client.create(&serde_json::from_value(pod.clone())?, &dry).await.is_err() {
            continue;
        }
        tried += 1;
        pod["metadata"]["namespace"] = "shop".into();
        match cluster.client.create(&serde_json::from_value(pod)?, &dry).await {
            Ok(written) if written.object.metadata.managed_fields.as_ref().is_none_or(|fields| fields.is_empty()) => {
                wrong.push(format!("{}: nobody owns its fields any more", case["name"]));
            }
            Ok(written) if containers(&written.object).iter().any(|c| c == "istio-proxy") => {}
            Ok(written) => wrong.push(format!("{}: not injected: {:?}", case["name"], containers(&written.object))),
            Err(error) => wrong.push(format!("{}: {error}", case["name"])),
        }
    }
    ensure!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    ensure!(tried > 60, "only {tried} cases");
    println!("{tried} injected pods are valid");
    Ok(())
}
