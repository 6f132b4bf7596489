//! The local copy of the objects, on both servers: nothing lost and nothing doubled while servers and storage are killed,
//! kinds that appear, change their version and go.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Result, ensure};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use weft_kube_tests::cluster::kind;
use weft_kube_tests::{Cluster, check, eventually, objects, on_both};
use weft_store::client::{ApplyOptions, WriteOptions};
use weft_store::source::KindState;
use weft_store::{ApiClient, Cache, KubeSource, SourceOptions};

on_both!(a_copy_survives_crashes, two_candidates_one_leader);

/// Name and revision of every ConfigMap of the namespace, as the copy has them and as the server has them.
async fn compare(cluster: &Cluster, cache: &Cache) -> Result<()> {
    let revision = |o: &weft_k8s_api::Object| (o.name().to_string(), o.metadata.resource_version.clone());
    let here: BTreeMap<_, _> = cache.list_namespace("", "ConfigMap", "default").iter().map(|o| revision(o)).collect();
    let there: BTreeMap<_, _> = cluster.list("configmaps", "default").await?.iter().map(revision).collect();
    ensure!(here == there, "the copy has {here:?}, the server {there:?}");
    Ok(())
}

/// Creates, changes and deletes without end; what fails because nobody answers is done again later.
async fn write_on(client: ApiClient, stop: Arc<AtomicBool>) -> Result<usize> {
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        let name = format!("map-{}", done % 7);
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"},
            "data": {"n": done.to_string()},
        });
        let written = match done % 5 {
            4 => client.delete(kind("cm")?, "default", &name, &Default::default()).await.map(drop),
            _ => client.apply(&serde_json::from_value(map)?, &ApplyOptions::default()).await.map(drop),
        };
        done += usize::from(written.is_ok());
        // What was deleted already is not there to be deleted: on to the next.
        done += usize::from(written.is_err_and(|e| e.is_not_found()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(done)
}

async fn a_copy_survives_crashes(mut cluster: Cluster) -> Result<()> {
    let source = KubeSource::start(&cluster.client, &[kind("cm")?, kind("ns")?], &SourceOptions::default());
    source.synced().await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write_on(cluster.client.clone(), stop.clone()));
    let mark = source.cache().revision();
    eventually("changes come", async || check(source.cache().revision() > mark + 20, "too few")).await?;

    cluster.kill_api().await?;
    eventually("the loss is seen", async || check(!source.connected(), "still connected")).await?;
    // Of the seven that are written one or two are deleted at any moment.
    let kept = source.cache().list_namespace("", "ConfigMap", "default").len();
    ensure!(kept >= 4, "the last state is kept: {kept}");
    cluster.restart_api().await?;
    eventually("connected again", async || {
        check(source.connected(), &format!("{:?}", source.state().borrow().problem()))
    })
    .await?;
    let mark = source.cache().revision();
    eventually("changes come again", async || check(source.cache().revision() > mark + 20, "too few")).await?;

    cluster.crash_storage().await?;
    eventually("connected after the storage", async || check(source.connected(), "not yet")).await?;
    stop.store(true, Ordering::Relaxed);
    ensure!(writer.await?? > 40, "the writer got through");
    eventually("the copy is equal", async || compare(&cluster, source.cache()).await).await?;

    // A quiet copy sees no change twice: nothing moves without a write.
    let mark = source.cache().revision();
    cluster.kill_api().await?;
    cluster.restart_api().await?;
    eventually("connected", async || check(source.connected(), "not yet")).await?;
    let name = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "last", "namespace": "default"}});
    eventually("the last one is made", async || match cluster.create(name.clone()).await {
        Ok(_) | Err(weft_store::ClientError::AlreadyExists(_)) => Ok(()),
        Err(error) => Err(error.into()),
    })
    .await?;
    eventually("the last one", async || compare(&cluster, source.cache()).await).await?;
    let changes = source.cache().changes_since(mark).keys.expect("the log reaches back");
    // A server that starts may write maps of its own elsewhere.
    let names: Vec<&str> = changes.iter().filter(|k| k.namespace == "default").map(|k| k.name.as_str()).collect();
    ensure!(names == ["last"], "changed: {names:?}");
    Ok(())
}

async fn two_candidates_one_leader(cluster: Cluster) -> Result<()> {
    use weft_store::{Leadership, LeaseOptions};
    let options = |identity: &str| LeaseOptions {
        namespace: "istio-system".into(),
        name: "test-leader".into(),
        identity: identity.into(),
        // A busy machine does not lose it either: it is renewed well before.
        duration: Duration::from_secs(4),
    };
    let first = Leadership::start(&cluster.client, options("a"));
    first.leader().wait_for(|leader| *leader).await?;
    let second = Leadership::start(&cluster.client, options("b"));
    let third = Leadership::start(&cluster.client, options("c"));
    // For longer than a Lease lasts by itself.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let leaders = |all: &[&Leadership]| all.iter().filter(|l| *l.leader().borrow()).count();
    ensure!(*first.leader().borrow() && leaders(&[&first, &second, &third]) == 1, "one leader, who keeps it");
    // Without a word: another takes over when the lease ends, and only one of them.
    drop(first);
    let begun = std::time::Instant::now();
    eventually("another leader", async || check(leaders(&[&second, &third]) == 1, "none")).await?;
    ensure!(begun.elapsed() > Duration::from_millis(500), "not before the lease has ended");
    let (leader, other) = if *second.leader().borrow() { (second, third) } else { (third, second) };
    // With a word: at once.
    leader.release().await;
    eventually("the last one leads", async || check(*other.leader().borrow(), "not yet")).await?;
    let lease = cluster.get("leases", "istio-system", "test-leader").await?;
    ensure!(lease.spec()["leaseTransitions"].as_u64() >= Some(2), "{}", lease.to_value());
    Ok(())
}

#[tokio::test]
async fn kinds_come_change_their_version_and_go() -> Result<()> {
    let cluster = Cluster::start(weft_kube_tests::Kind::Real).await?;
    let vs = kind("vs")?;
    let source = KubeSource::start(&cluster.client, &[vs, kind("ns")?], &SourceOptions::default());
    source.synced().await;
    let state = || source.state().borrow().kinds[&(vs.group.to_string(), vs.kind.to_string())].clone();
    ensure!(state() == KindState::Missing, "{:?}", state());

    // An older installation: only the versions of then. It is picked up long before the pause of 30 s is over.
    cluster.apply_value(objects::definition(vs, &["v1beta1", "v1alpha3"])).await?;
    eventually("the kind is watched", async || check(state() == KindState::Watching, &format!("{:?}", state())))
        .await?;
    let older = |name: &str| {
        let mut object = objects::virtual_service("default", name, None);
        object["apiVersion"] = "networking.istio.io/v1beta1".into();
        object
    };
    let held = |name: &'static str| {
        let cache = source.cache().clone();
        move || cache.find(vs.group, vs.kind, "default", name)
    };
    cluster.client.create(&serde_json::from_value(older("a"))?, &WriteOptions::default()).await?;
    let found = held("a");
    eventually("read in the version of then", async || {
        check(found().is_some_and(|o| o.version() == "v1beta1"), "not yet")
    })
    .await?;

    // The definition is upgraded: the copy follows it to the version that is stored.
    let current = cluster.get("crd", "", "virtualservices.networking.istio.io").await?;
    let mut newer = objects::definition(vs, &["v1", "v1beta1", "v1alpha3"]);
    newer["metadata"]["resourceVersion"] = current.metadata.resource_version.clone().into();
    cluster.client.replace(&serde_json::from_value(newer)?, &WriteOptions::default()).await?;
    eventually("read in the stored version", async || check(found().is_some_and(|o| o.version() == "v1"), "not yet"))
        .await?;

    cluster.delete("crd", "", "virtualservices.networking.istio.io").await?;
    eventually("gone", async || check(state() == KindState::Missing && found().is_none(), &format!("{:?}", state())))
        .await
}
