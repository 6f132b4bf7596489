//! weftd on an API server: configuration from its objects, status and events written back, replicas of which one writes,
//! outages survived.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_k8s_api::Object;
use weft_kube_tests::cluster::kind;
use weft_kube_tests::proxy::root;
use weft_kube_tests::{Cluster, Proxy, Weftd, check, eventually, objects, on_both};

on_both!(objects_become_configuration_and_status_comes_back, replicas_and_outages);

const WEB: &str = "outbound|80||web.shop.svc.cluster.local";
/// A Lease that a busy machine does not lose either: it is renewed every two seconds.
const QUICK: &[&str] = &["--lease-duration=6s", "--api-grace=1s"];

/// Weft's definitions, rights and settings, and a namespace with a service of two pods.
async fn prepare(cluster: &Cluster) -> Result<()> {
    cluster.install().await?;
    cluster.namespace("shop", &[]).await?;
    for (name, ip) in [("web-1", "10.1.0.1"), ("web-2", "10.1.0.2")] {
        cluster.create(objects::pod("shop", name, "web")).await?;
        cluster.client.patch_status(kind("pods")?, "shop", name, &objects::running(ip)).await?;
    }
    cluster.create(objects::service("shop", "web")).await?;
    let pods = [("web-1".to_string(), "10.1.0.1".to_string()), ("web-2".to_string(), "10.1.0.2".to_string())];
    cluster.create(objects::slice("shop", "web", &pods)).await?;
    Ok(())
}

/// A weftd with the rights that the manifests give it.
async fn weftd(cluster: &Cluster, name: &str) -> Result<Weftd> {
    let account = cluster.account("istio-system", "istiod").await?;
    Weftd::spawn(cluster, name, &account, QUICK)
}

fn condition(object: &Object) -> Option<Value> {
    let conditions = object.body.get("status")?.get("conditions")?.as_array()?;
    conditions.iter().find(|c| c["type"] == "Reconciled").cloned()
}

/// Waits until an object's condition has this status and its message contains `text`.
async fn has_condition(cluster: &Cluster, kind_name: &str, name: &str, status: &str, text: &str) -> Result<Object> {
    eventually("the condition", async || {
        let object = cluster.get(kind_name, "shop", name).await?;
        let condition = condition(&object).context("no condition")?;
        let message = condition["message"].as_str().unwrap_or_default();
        ensure!(condition["status"] == status && message.contains(text), "{condition}");
        Ok(object)
    })
    .await
}

async fn objects_become_configuration_and_status_comes_back(cluster: Cluster) -> Result<()> {
    prepare(&cluster).await?;
    let mut weftd = weftd(&cluster, "weftd-0").await?;
    weftd.ready().await?;
    let mut proxy = Proxy::connect(&cluster, &weftd, "shop", "web-1", "10.1.0.1").await?;
    proxy.has_endpoints(WEB, &["10.1.0.1", "10.1.0.2"]).await?;

    // A reference that leads nowhere: condition, message with its code, event.
    cluster.create(objects::virtual_service("shop", "web", Some("v9"))).await?;
    let object = has_condition(&cluster, "vs", "web", "True", "subset v9").await?;
    let message = object.body["status"]["validationMessages"][0].clone();
    ensure!(message["type"]["code"] == "IST0101" && message["level"] == "WARNING", "{message}");
    ensure!(
        object.body["status"]["observedGeneration"].as_i64() == object.metadata.generation,
        "{}",
        object.to_value()
    );
    let event = eventually("the event", async || {
        let events = cluster.list("events", "shop").await?;
        events
            .into_iter()
            .find(|e| e.body.get("reason").is_some_and(|r| r == "ReferencedResourceNotFound"))
            .context("no event")
    })
    .await?;
    ensure!(event.body["involvedObject"]["name"] == "web" && event.body["type"] == "Warning", "{}", event.to_value());
    proxy
        .until("the route", |p| check(p.routes.values().any(|r| r.contains("v9")), &format!("{:?}", p.routes.keys())))
        .await?;

    // Mended: the messages go, the condition says so, and the proxy hears of it.
    let rule = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"host": "web", "subsets": [{"name": "v9", "labels": {"version": "v1"}}]},
    });
    cluster.create(rule).await?;
    let object = eventually("mended", async || {
        let object = cluster.get("vs", "shop", "web").await?;
        ensure!(condition(&object).is_some_and(|c| c["reason"] == "Accepted"), "{}", object.to_value());
        Ok(object)
    })
    .await?;
    ensure!(object.body["status"].get("validationMessages").is_none_or(Value::is_null), "{}", object.to_value());
    let subset = "outbound|80|v9|web.shop.svc.cluster.local";
    proxy.has_endpoints(subset, &["10.1.0.1", "10.1.0.2"]).await?;

    // A pod that goes, goes from the endpoints with its slice.
    cluster.delete("pods", "shop", "web-2").await?;
    let pods = json!([objects::slice("shop", "web", &[("web-1".into(), "10.1.0.1".into())])["endpoints"][0]]);
    let patch = json!({"endpoints": pods});
    cluster.client.merge_patch(kind("endpointslices")?, "shop", "web-1", &patch).await?;
    proxy.has_endpoints(WEB, &["10.1.0.1"]).await?;

    // A mesh config that makes no sense: the last good one stays, and an event says why.
    let broken = json!({"data": {"mesh": "outboundTrafficPolicy: {mode: NO_SUCH_MODE}"}});
    cluster.client.merge_patch(kind("cm")?, "istio-system", "istio", &broken).await?;
    eventually("the event of the mesh config", async || {
        let events = cluster.list("events", "istio-system").await?;
        let event = events
            .into_iter()
            .find(|e| e.body.get("reason").is_some_and(|r| r == "MeshConfigRefused"))
            .context("no event")?;
        ensure!(
            event.body["message"].as_str().is_some_and(|m| m.contains("outboundTrafficPolicy")),
            "{}",
            event.to_value()
        );
        Ok(())
    })
    .await?;
    weftd.process.check()
}

/// The leader and the other one, once there is exactly one.
async fn sort(mut all: Vec<Weftd>) -> Result<(Weftd, Weftd)> {
    let leaders = eventually("one leader", async || {
        let mut leaders = Vec::new();
        for (i, weftd) in all.iter().enumerate() {
            if weftd.metric("weft_leader").await? > 0.0 {
                leaders.push(i);
            }
        }
        ensure!(leaders.len() == 1, "{} leaders", leaders.len());
        Ok(leaders)
    })
    .await?;
    let leader = all.remove(leaders[0]);
    Ok((leader, all.remove(0)))
}

async fn replicas_and_outages(mut cluster: Cluster) -> Result<()> {
    prepare(&cluster).await?;
    let mut replicas = vec![weftd(&cluster, "weftd-0").await?, weftd(&cluster, "weftd-1").await?];
    for weftd in &mut replicas {
        weftd.ready().await?;
    }
    let (mut leader, mut other) = sort(replicas).await?;
    let first_root = root(&cluster, "shop").await?;
    let mut proxy = Proxy::connect(&cluster, &other, "shop", "web-1", "10.1.0.1").await?;
    let mut second = Proxy::connect(&cluster, &leader, "shop", "web-2", "10.1.0.2").await?;
    proxy.has_endpoints(WEB, &["10.1.0.1", "10.1.0.2"]).await?;
    second.has_endpoints(WEB, &["10.1.0.1", "10.1.0.2"]).await?;

    // The leader dies without a word. The other one goes on serving, and writes when the Lease has ended.
    leader.process.kill()?;
    drop(second);
    cluster.namespace("late", &[]).await?;
    cluster.create(objects::virtual_service("shop", "web", Some("v9"))).await?;
    ensure!(root(&cluster, "late").await? == first_root, "one authority for both");
    has_condition(&cluster, "vs", "web", "True", "subset v9").await?;
    proxy.until("the route", |p| check(p.routes.values().any(|r| r.contains("v9")), "not yet")).await?;
    eventually("the other one leads", async || check(other.metric("weft_leader").await? > 0.0, "not yet")).await?;

    // It comes back, and serves the same to who asks it.
    let mut leader = weftd(&cluster, "weftd-0").await?;
    leader.ready().await?;
    let mut again = Proxy::connect(&cluster, &leader, "shop", "web-2", "10.1.0.2").await?;
    again.has_endpoints(WEB, &["10.1.0.1", "10.1.0.2"]).await?;
    ensure!(root(&cluster, "shop").await? == first_root);
    ensure!(leader.metric("weft_leader").await? == 0.0, "the other one keeps the Lease");

    // The API server dies: both say so, and serve what they know.
    cluster.kill_api().await?;
    for weftd in [&leader, &other] {
        weftd.not_ready("last state").await?;
        eventually("it says so", async || check(weftd.metric("weft_api_connected").await? == 0.0, "connected")).await?;
    }
    ensure!(proxy.endpoints[WEB].len() == 2);
    cluster.restart_api().await?;
    for weftd in [&mut leader, &mut other] {
        weftd.ready().await?;
    }
    let patch =
        json!({"endpoints": [objects::slice("shop", "web", &[("web-2".into(), "10.1.0.2".into())])["endpoints"][0]]});
    cluster.patch_soon("endpointslices", "shop", "web-1", &patch).await?;
    proxy.has_endpoints(WEB, &["10.1.0.2"]).await?;
    again.has_endpoints(WEB, &["10.1.0.2"]).await?;

    // So does its storage.
    cluster.crash_storage().await?;
    for weftd in [&mut leader, &mut other] {
        weftd.ready().await?;
    }
    let both = [("web-1".to_string(), "10.1.0.1".to_string()), ("web-2".to_string(), "10.1.0.2".to_string())];
    let patch = json!({"endpoints": objects::slice("shop", "web", &both)["endpoints"]});
    cluster.patch_soon("endpointslices", "shop", "web-1", &patch).await?;
    proxy.has_endpoints(WEB, &["10.1.0.1", "10.1.0.2"]).await?;
    sort(vec![leader, other]).await?;
    Ok(())
}
