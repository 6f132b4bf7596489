//! What must not stop weftd: kinds that it may not read, storage that is full, objects of absurd size.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weft_kube_tests::cluster::kind;
use weft_kube_tests::{Cluster, Kind, Proxy, Weftd, check, eventually, objects, on_both};

on_both!(kinds_that_may_not_be_read, objects_of_absurd_size);

const QUICK: &[&str] = &["--lease-duration=3s", "--api-grace=1s"];

/// Takes a resource out of every rule of weftd's role, or puts the rules back.
async fn set_rules(cluster: &Cluster, rules: &Value) -> Result<()> {
    let roles = cluster.list("clusterroles", "").await?;
    let role = roles.iter().find(|r| r.name().starts_with("istiod-clusterrole")).expect("the manifests have it");
    cluster.client.merge_patch(kind("clusterroles")?, "", role.name(), &json!({"rules": rules})).await?;
    Ok(())
}

async fn rules(cluster: &Cluster) -> Result<Value> {
    let roles = cluster.list("clusterroles", "").await?;
    let role = roles.iter().find(|r| r.name().starts_with("istiod-clusterrole")).expect("the manifests have it");
    Ok(role.body["rules"].clone())
}

fn without(rules: &Value, resources: &[&str]) -> Value {
    let mut rules = rules.clone();
    for rule in rules.as_array_mut().into_iter().flatten() {
        if let Some(names) = rule["resources"].as_array_mut() {
            names.retain(|name| !resources.iter().any(|r| name == r));
        }
    }
    rules
}

async fn kinds_that_may_not_be_read(cluster: Cluster) -> Result<()> {
    cluster.install().await?;
    let all = rules(&cluster).await?;
    let account = cluster.account("istio-system", "istiod").await?;

    // A kind without which the mesh works: told of, and the rest goes on.
    set_rules(&cluster, &without(&all, &["envoyfilters", "nodes"])).await?;
    let mut weftd = Weftd::spawn(&cluster, "weftd-0", &account, QUICK)?;
    weftd.ready().await?;
    weftd.says("envoyfilters").await?;
    eventually("the others are watched", async || {
        ensure!(weftd.metric("weft_kind_forbidden").await? > 0.0);
        ensure!(weftd.metric("weft_api_connected").await? > 0.0, "no connection");
        Ok(())
    })
    .await?;
    weftd.process.stop()?;

    // A kind without which doors would stand open: not ready, and the reason names it; the right is granted, and it goes on.
    set_rules(&cluster, &without(&all, &["authorizationpolicies"])).await?;
    let mut weftd = Weftd::spawn(&cluster, "weftd-1", &account, QUICK)?;
    weftd.not_ready("authorizationpolicies").await?;
    weftd.process.check()?;
    set_rules(&cluster, &all).await?;
    weftd.ready().await?;
    eventually("nothing is forbidden any more", async || {
        check(weftd.metric("weft_kind_forbidden").await.is_err(), "a kind is forbidden still")
    })
    .await?;
    weftd.process.check()
}

/// A pod with many containers, all of which have a port.
fn crowded_pod(containers: usize) -> Value {
    let mut pod = objects::pod("shop", "crowd", "web");
    let all: Vec<Value> = (0..containers)
        .map(|i| json!({"name": format!("c{i}"), "image": "i", "ports": [{"containerPort": 9000 + i}]}))
        .collect();
    pod["spec"]["containers"].as_array_mut().expect("a list").extend(all);
    pod
}

async fn objects_of_absurd_size(cluster: Cluster) -> Result<()> {
    cluster.install().await?;
    cluster.namespace("shop", &[]).await?;
    let account = cluster.account("istio-system", "istiod").await?;
    let mut weftd = Weftd::spawn(&cluster, "weftd-0", &account, QUICK)?;
    weftd.ready().await?;
    cluster.create(crowded_pod(50)).await?;
    cluster.client.patch_status(kind("pods")?, "shop", "crowd", &objects::running("10.1.0.1")).await?;
    cluster.create(objects::service("shop", "web")).await?;
    let slice = objects::slice("shop", "web", &[("crowd".into(), "10.1.0.1".into())]);
    cluster.create(slice).await?;
    let mut proxy = Proxy::connect(&cluster, &weftd, "shop", "crowd", "10.1.0.1").await?;
    proxy.has_endpoints("outbound|80||web.shop.svc.cluster.local", &["10.1.0.1"]).await?;

    // A ConfigMap of a megabyte is none of weftd's business; a policy of a megabyte is.
    let before = weftd.process.memory_mib()?;
    for n in 0..20 {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("big-{n}"), "namespace": "shop"},
            "data": {"text": "x".repeat(1_000_000)},
        });
        cluster.create(map).await?;
    }
    let paths: Vec<String> = (0..9000).map(|i| format!("/{i}/{}", "y".repeat(100))).collect();
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "big", "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "action": "DENY", "rules": [{"to": [{"operation": {"paths": paths}}]}]},
    });
    cluster.create(policy).await?;
    // The service changes after it: what came before it was taken in.
    let port =
        json!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp", "port": 81}]}});
    cluster.client.merge_patch(kind("svc")?, "shop", "web", &port).await?;
    proxy.until("the new port", |p| check(p.clusters.iter().any(|c| c.starts_with("outbound|81||")), "no")).await?;
    let grown = weftd.process.memory_mib()?.saturating_sub(before);
    ensure!(grown < 100, "{grown} MiB more after 20 MB of foreign objects");
    ensure!(weftd.readiness().await?.0 == 200);
    weftd.process.check()
}

/// Only a real one's storage can be full.
#[tokio::test]
async fn storage_that_is_full() -> Result<()> {
    let cluster = Cluster::with_quota(Kind::Real, Some(24 << 20)).await?;
    cluster.install().await?;
    cluster.namespace("shop", &[]).await?;
    let account = cluster.account("istio-system", "istiod").await?;
    let mut weftd = Weftd::spawn(&cluster, "weftd-0", &account, QUICK)?;
    weftd.ready().await?;
    cluster.create(objects::pod("shop", "web-1", "web")).await?;
    cluster.client.patch_status(kind("pods")?, "shop", "web-1", &objects::running("10.1.0.1")).await?;
    cluster.create(objects::service("shop", "web")).await?;
    cluster.create(objects::slice("shop", "web", &[("web-1".into(), "10.1.0.1".into())])).await?;
    let mut proxy = Proxy::connect(&cluster, &weftd, "shop", "web-1", "10.1.0.1").await?;
    let web = "outbound|80||web.shop.svc.cluster.local";
    proxy.has_endpoints(web, &["10.1.0.1"]).await?;

    let mut full = None;
    for n in 0..60 {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("fill-{n}"), "namespace": "default"},
            "data": {"text": "x".repeat(900_000)},
        });
        // A busy server may refuse for another reason; what it does not take now it takes later.
        match cluster.create(map).await {
            Err(error) if error.to_string().contains("space exceeded") => {
                full = Some(error.to_string());
                break;
            }
            Err(error) => println!("map {n}: {error}"),
            Ok(_) => {}
        }
    }
    let full = full.expect("the storage takes no more");
    ensure!(full.contains("space exceeded"), "{full}");

    // Nothing can be written any more, so nobody leads; what was read is served on, to old proxies and new ones.
    weftd.says("no longer leader").await?;
    weftd.says("space exceeded").await?;
    eventually("nobody leads", async || check(weftd.metric("weft_leader").await? == 0.0, "it leads")).await?;
    let mut second = Proxy::connect(&cluster, &weftd, "shop", "web-1", "10.1.0.1").await?;
    second.has_endpoints(web, &["10.1.0.1"]).await?;
    eventually("still ready", async || {
        let (status, body) = weftd.readiness().await?;
        ensure!(status == 200, "{body}");
        Ok(())
    })
    .await?;
    weftd.process.check()
}
