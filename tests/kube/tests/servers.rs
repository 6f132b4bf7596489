//! The servers themselves: objects, tokens and definitions behave alike on both, and outlive a crash.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::Result;
use serde_json::json;
use weft_kube_tests::cluster::kind;
use weft_kube_tests::{Cluster, eventually, objects, on_both};

on_both!(objects_outlive_a_crash);

async fn objects_outlive_a_crash(mut cluster: Cluster) -> Result<()> {
    cluster.create(objects::service("default", "web")).await?;
    let pod = cluster.create(objects::pod("default", "web-1", "web")).await?;
    let status = objects::running("10.1.2.3");
    cluster.client.patch_status(kind("pods")?, "default", "web-1", &status).await?;
    cluster.service_account("default", "web").await?;
    let token = cluster.token("default", "web", &["istio-ca"]).await?;
    let identity = cluster.client.token_review(&token, &["istio-ca"]).await?;
    assert_eq!(identity.service_account(), Some(("default", "web")));
    assert!(cluster.client.token_review(&token, &["other"]).await.is_err(), "the audience counts");

    cluster.kill_api().await?;
    assert!(cluster.client.version().await.unwrap_err().is_unreachable());
    cluster.restart_api().await?;
    let found = eventually("the pod", async || cluster.get("pods", "default", "web-1").await).await?;
    assert_eq!(found.metadata.uid, pod.metadata.uid);
    assert_eq!(found.body["status"]["podIP"], "10.1.2.3");
    cluster.crash_storage().await?;
    let services = eventually("the services", async || cluster.list("services", "default").await).await?;
    assert_eq!(services.iter().filter(|s| s.name() == "web").count(), 1);

    // A definition makes a kind; two of them are two.
    let definition = objects::definition(kind("vs")?, &["v1"]);
    cluster.create(definition).await?;
    eventually("the kind is served", async || Ok(cluster.list("vs", "default").await.map(drop)?)).await?;
    cluster.create(objects::virtual_service("default", "web", None)).await?;
    let patch = json!({"spec": {"hosts": ["web.example"]}});
    let written = cluster.client.merge_patch(kind("vs")?, "default", "web", &patch).await?;
    assert_eq!(written.object.body["spec"]["hosts"], json!(["web.example"]));
    Ok(())
}
