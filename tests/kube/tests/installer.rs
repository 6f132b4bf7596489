//! `weft install` on an API server: server-side apply of everything, what an earlier installation had and a later has not, an
//! upgrade, a second mesh beside it, tags, and the end of it. There are no controllers: this test says that Deployments run, and fills in the webhooks'
//! certificate as weftd would.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use weft_k8s_api::KindInfo;
use weft_kube_tests::cluster::kind;
use weft_kube_tests::{Cluster, check, eventually, on_both, target};
use weft_store::ApiClient;
use weft_store::client::ListOptions;

/// The kind that the installer defines.
static OPERATOR: KindInfo = KindInfo {
    group: "install.istio.io",
    versions: &["v1alpha1"],
    kind: "IstioOperator",
    plural: "istiooperators",
    singular: "istiooperator",
    short: &[],
    namespaced: true,
    categories: &[],
};

on_both!(installed_changed_upgraded_and_gone);

/// Runs `weft`; what it printed, both ways, and whether it succeeded.
async fn weft(kubeconfig: &Path, args: &[&str]) -> Result<(bool, String)> {
    let weft = std::env::var_os("WEFT_BIN_DIR").map_or_else(|| target().join("debug"), PathBuf::from).join("weft");
    let mut command = tokio::process::Command::new(&weft);
    command.args(args).arg("--kubeconfig").arg(kubeconfig).stdin(Stdio::null()).kill_on_drop(true);
    let out = tokio::time::timeout(Duration::from_secs(180), command.output()).await.context("weft does not end")?;
    let out = out.with_context(|| format!("{}: build it with: cargo build -p weft", weft.display()))?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    Ok((out.status.success(), said))
}

/// The controllers' part, for ever.
async fn control(client: ApiClient) {
    loop {
        // A server under load may not answer; the next round does it.
        _ = round(&client).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn round(client: &ApiClient) -> Result<()> {
    for one in client.list(kind("deployments")?, None, &ListOptions::default()).await?.items {
        let replicas = one.spec()["replicas"].as_i64().unwrap_or(1);
        let status = json!({"observedGeneration": one.metadata.generation, "replicas": replicas, "updatedReplicas": replicas,
                            "readyReplicas": replicas, "availableReplicas": replicas});
        let known = one.body.get("status").cloned().unwrap_or_default();
        if status.as_object().unwrap().iter().any(|(name, value)| known[name] != *value) {
            client.patch_status(kind("deployments")?, one.namespace(), one.name(), &status).await?;
        }
    }
    let webhooks = kind("mutatingwebhookconfigurations")?;
    for one in client.list(webhooks, None, &ListOptions::default()).await?.items {
        let Some(mut hooks) = one.body.get("webhooks").cloned() else { continue };
        let before = hooks.clone();
        for hook in hooks.as_array_mut().into_iter().flatten() {
            if hook["clientConfig"]["caBundle"].is_null() {
                hook["clientConfig"]["caBundle"] = base64::engine::general_purpose::STANDARD.encode("roots").into();
            }
        }
        if hooks != before {
            client.merge_patch(webhooks, "", one.name(), &json!({"webhooks": hooks})).await?;
        }
    }
    Ok(())
}

async fn names(cluster: &Cluster, kind_name: &str) -> Result<Vec<String>> {
    let list = cluster.list(kind_name, "istio-system").await?;
    Ok(list.iter().map(|object| object.name().to_string()).collect())
}

async fn image(cluster: &Cluster) -> Result<String> {
    let istiod = cluster.get("deployments", "istio-system", "istiod").await?;
    Ok(istiod.spec()["template"]["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_string())
}

async fn installed_changed_upgraded_and_gone(cluster: Cluster) -> Result<()> {
    let kubeconfig = cluster.kubeconfig();
    let well = async |args: &[&str]| -> Result<String> {
        let (success, said) = weft(&kubeconfig, args).await?;
        ensure!(success, "weft {}: {said}", args.join(" "));
        Ok(said)
    };
    let said = well(&["x", "precheck"]).await?;
    check(said.contains("✓ No issues found"), &said)?;
    // Checked by the server, and nothing is there after it.
    well(&["install", "--set", "profile=demo", "--dry-run"]).await?;
    check(names(&cluster, "deployments").await?.is_empty(), "a dry run made something")?;

    let controllers = tokio::spawn(control(cluster.client.clone()));
    let said = well(&["install", "--set", "profile=demo", "--set", "tag=0.0.9", "-y"]).await?;
    for line in [
        "✓ Istio core installed",
        "✓ Istiod installed",
        "✓ Egress gateways installed",
        "✓ Ingress gateways installed",
        "✓ Installation complete",
    ] {
        check(said.contains(line), &said)?;
    }
    ensure!(names(&cluster, "deployments").await? == ["istio-egressgateway", "istio-ingressgateway", "istiod"]);
    let stranger = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "stranger", "namespace": "istio-system",
        "labels": {"istio.io/rev": "default", "install.operator.istio.io/owning-resource": "somebody"}}});
    cluster.create(stranger).await?;

    // The same owner, without the gateway for the way out.
    well(&["install", "--set", "tag=0.0.9", "-y"]).await?;
    ensure!(names(&cluster, "deployments").await? == ["istio-ingressgateway", "istiod"]);
    ensure!(names(&cluster, "services").await? == ["istio-ingressgateway", "istiod"]);
    check(names(&cluster, "configmaps").await?.contains(&"stranger".to_string()), "somebody else's object is gone")?;
    check(image(&cluster).await?.ends_with("weftd:0.0.9"), "the older version")?;
    well(&["verify-install"]).await?;

    // A second mesh of the same owner's name and revision, there and gone: the first does not change.
    well(&["install", "--set", "profile=minimal", "-n", "mesh2", "-y"]).await?;
    ensure!(names(&cluster, "deployments").await? == ["istio-ingressgateway", "istiod"], "the first mesh is pruned");
    let (success, said) = weft(&kubeconfig, &["uninstall", "--revision", "default", "-y"]).await?;
    ensure!(!success && said.contains("is installed in istio-system, mesh2"), "{said}");
    well(&["uninstall", "--revision", "default", "-n", "mesh2", "-y"]).await?;
    ensure!(cluster.list("deployments", "mesh2").await?.is_empty(), "the second mesh stays");
    ensure!(names(&cluster, "deployments").await? == ["istio-ingressgateway", "istiod"], "the first mesh is gone");
    well(&["verify-install"]).await?;

    let (success, said) = weft(&kubeconfig, &["upgrade", "--set", "tag=0.5.0", "-y"]).await?;
    ensure!(!success && said.contains("more than one minor version higher"), "{said}");
    let said = well(&["upgrade", "-y"]).await?;
    check(said.contains("version 0.0.9") && said.contains("Success."), &said)?;
    check(image(&cluster).await?.ends_with(concat!("weftd:", env!("CARGO_PKG_VERSION"))), "the newer version")?;

    well(&["tag", "set", "prod", "--revision", "default"]).await?;
    let said = well(&["tag", "list"]).await?;
    check(said.contains("prod") && said.contains("default"), &said)?;
    let rights = cluster.get("clusterroles", "", "istio-revision-tag-prod").await?;
    ensure!(rights.body["rules"][0]["resourceNames"] == json!(["istio-revision-tag-prod"]), "{:?}", rights.body);

    // What waits for an operator that nobody runs.
    let request = serde_json::from_value(json!({"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator",
        "metadata": {"name": "waits", "namespace": "istio-system", "finalizers": ["istio-finalizer.install.istio.io"]},
        "spec": {"profile": "empty"}}))?;
    cluster.client.server_side_apply(&OPERATOR, &request, "user", false).await?;
    well(&["uninstall", "--purge", "-y"]).await?;
    controllers.abort();
    eventually("the kind IstioOperator goes", async || {
        let left = cluster.get("customresourcedefinitions", "", "istiooperators.install.istio.io").await;
        check(left.is_err(), "its definition stays")
    })
    .await?;
    // Kubernetes takes definitions away after their objects, each in its own time.
    eventually("nothing of it is left", async || {
        ensure!(names(&cluster, "deployments").await?.is_empty() && names(&cluster, "services").await?.is_empty());
        check(
            cluster.get("customresourcedefinitions", "", "virtualservices.networking.istio.io").await.is_err(),
            "definitions stay",
        )?;
        let left = cluster.list("mutatingwebhookconfigurations", "").await?;
        ensure!(left.is_empty(), "{} webhook configurations stay", left.len());
        Ok(())
    })
    .await?;
    check(names(&cluster, "configmaps").await?.contains(&"stranger".to_string()), "somebody else's object is gone")?;
    cluster.get("namespaces", "", "istio-system").await.map(drop)
}
