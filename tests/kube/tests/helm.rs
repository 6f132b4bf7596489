//! The charts with real Helm: their rights suffice, an upgrade leaves alone what the control plane has written, a tag lets its
//! control plane write into it and nothing else, and what Helm removes is gone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use weft_k8s_api::yaml;
use weft_kube_tests::{Cluster, Weftd, eventually, on_both, target};

on_both!(installed_upgraded_tagged_removed, who_is_left_validates);

const DISCOVERY: &str = "istio-control/istio-discovery";
const RELEASES: [(&str, &str); 4] = [
    ("istio-base", "base"),
    ("istiod", DISCOVERY),
    ("istio-ingress", "gateways/istio-ingress"),
    ("istio-egress", "gateways/istio-egress"),
];
const MUTATING: &str = "mutatingwebhookconfigurations";
const VALIDATING: &str = "validatingwebhookconfigurations";

/// `$WEFT_HELM`, else the one that `cargo xtask helm` has built.
fn program() -> PathBuf {
    std::env::var_os("WEFT_HELM").map_or_else(|| target().join("kube/helm"), PathBuf::from)
}

fn chart(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/charts").join(name).display().to_string()
}

/// Runs Helm on a cluster; what it printed. Away from the runtime, which serves the embedded API meanwhile.
async fn helm(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let mut command = Command::new(program());
    command.args(args).args(["-n", "istio-system"]).env("KUBECONFIG", cluster.kubeconfig()).stdin(Stdio::null());
    command.env("HELM_CACHE_HOME", cluster.dir()).env("HELM_CONFIG_HOME", cluster.dir());
    let out = tokio::task::spawn_blocking(move || command.output()).await?.context("cargo xtask helm builds it")?;
    ensure!(out.status.success(), "helm {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?)
}

/// Waits until a configuration's webhooks all have a certificate, and this policy.
async fn answered(cluster: &Cluster, kind: &str, name: &str, policy: &str) -> Result<()> {
    eventually("the control plane's word", async || {
        let object = cluster.get(kind, "", name).await?;
        let hooks = object.body.get("webhooks").and_then(Value::as_array).context("no webhooks")?;
        let good = |hook: &Value| hook["clientConfig"]["caBundle"].is_string() && hook["failurePolicy"] == policy;
        ensure!(!hooks.is_empty() && hooks.iter().all(good), "{kind} {name}: {hooks:?}");
        Ok(())
    })
    .await
}

async fn all_answered(cluster: &Cluster) -> Result<()> {
    answered(cluster, MUTATING, "istio-sidecar-injector", "Fail").await?;
    answered(cluster, VALIDATING, "istio-validator-istio-system", "Fail").await?;
    answered(cluster, VALIDATING, "istiod-default-validator", "Fail").await
}

async fn installed_upgraded_tagged_removed(cluster: Cluster) -> Result<()> {
    for (release, name) in RELEASES {
        helm(&cluster, &["install", release, &chart(name)]).await?;
    }
    // With the rights of the chart and no others.
    let account = cluster.account("istio-system", "istiod").await?;
    let mut weftd = Weftd::spawn(&cluster, "istiod-0", &account, &[])?;
    weftd.ready().await?;
    all_answered(&cluster).await?;
    for (release, name) in RELEASES {
        helm(&cluster, &["upgrade", release, &chart(name), "--skip-crds"]).await?;
    }
    // At once: nobody had time to write it again.
    let kept = cluster.get(VALIDATING, "", "istiod-default-validator").await?;
    let hook = &kept.body["webhooks"][0];
    ensure!(hook["failurePolicy"] == "Fail" && hook["clientConfig"]["caBundle"].is_string(), "{hook}");
    let listed = helm(&cluster, &["list", "-o", "json"]).await?;
    let listed: Value = serde_json::from_str(&listed)?;
    let revisions: Vec<&Value> = listed.as_array().unwrap().iter().map(|row| &row["revision"]).collect();
    ensure!(revisions == ["2", "2", "2", "2"], "{listed}");

    let template = ["template", "istiod", &chart(DISCOVERY), "-s", "templates/revision-tags.yaml"];
    let tag = helm(&cluster, &[&template[..], &["--set", "revisionTags={prod}"]].concat()).await?;
    for document in yaml::documents(&tag, "tag").unwrap() {
        cluster.apply_value(serde_json::to_value(&document.object)?).await?;
    }
    answered(&cluster, MUTATING, "istio-revision-tag-prod", "Fail").await?;

    for (release, _) in RELEASES.iter().rev() {
        helm(&cluster, &["uninstall", release]).await?;
    }
    let left = cluster.list("deployments", "istio-system").await?;
    ensure!(left.is_empty(), "{left:?}");
    // By Helm's own choice.
    ensure!(cluster.get("customresourcedefinitions", "", "virtualservices.networking.istio.io").await.is_ok());
    Ok(())
}

/// Whom the objects that name no revision are checked by, as control planes come and go; the base is upgraded as users do it.
async fn who_is_left_validates(cluster: Cluster) -> Result<()> {
    let validator = async || {
        let object = cluster.get(VALIDATING, "", "istiod-default-validator").await?;
        let service = &object.body["webhooks"][0]["clientConfig"]["service"]["name"];
        Ok::<_, anyhow::Error>(service.as_str().unwrap_or_default().to_string())
    };
    helm(&cluster, &["install", "istio-base", &chart("base")]).await?;
    ensure!(validator().await? == "istiod", "the first comes after it");
    let set = |revision: &'static str| if revision.is_empty() { vec![] } else { vec!["--set", revision] };
    let discovery = chart(DISCOVERY);
    for (change, of_base, wanted) in [
        (&["install", "istiod", &discovery][..], "", "istiod"),
        (&["install", "istiod-canary", &discovery, "--set", "revision=canary"], "", "istiod"),
        (&["uninstall", "istiod"], "", "istiod-canary"),
        // Of two others none is the one.
        (&["install", "istiod-next", &discovery, "--set", "revision=next"], "", "istiod"),
        (&["uninstall", "istiod-next"], "defaultRevision=next", "istiod-next"),
    ] {
        helm(&cluster, change).await?;
        helm(&cluster, &[&["upgrade", "istio-base", &chart("base"), "--skip-crds"], &set(of_base)[..]].concat())
            .await?;
        let found = validator().await?;
        ensure!(found == wanted, "{change:?}: {found}");
    }
    Ok(())
}
