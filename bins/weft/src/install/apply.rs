//! An installation comes onto a cluster: component after component by server-side apply, each waited for; then what an earlier
//! installation of the same owner had and this one has not goes; then what was installed is kept.

use super::cluster::{self, Owner};
use super::cni::NETWORK;
use super::operator::{self, KIND, Operator};
use super::settings::Settings;
use super::{Component, components, tags};
use crate::output;
use crate::target::{is_ready, known, pods};
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use weft_k8s_api::Object;
use weft_k8s_api::kinds::KindInfo;
use weft_store::client::WriteOptions;
use weft_store::{ApiClient, ClientError};

/// Who writes, for `managedFields`.
pub const MANAGER: &str = "weft-install";
/// Pause between looks.
const POLL: Duration = Duration::from_millis(250);
/// Time that the API server gets to serve a kind that was just defined, and weftd to make its webhook known.
const SOON: Duration = Duration::from_secs(60);

/// How to install.
#[derive(Debug, Clone, Copy)]
pub struct How {
    /// Let the server check everything and change nothing.
    pub dry_run: bool,
    /// How long a component may take until it is ready.
    pub timeout: Duration,
}

/// Installs, and tells of each component when it is ready.
///
/// # Errors
/// What the server refuses, and what does not become ready in time, with the reason.
pub async fn install(client: &ApiClient, operator: &Operator, how: How) -> anyhow::Result<()> {
    let settings = Settings::new(operator)?;
    let parts = components(&settings)?;
    let owner = Owner::new(operator, &settings);
    if let Some(theirs) = taken(client, &owner).await? {
        bail!("{theirs} is not the installer's, which keeps what it has installed under this name; give yours another");
    }
    let missing = namespaces(client, &settings, &parts, how.dry_run).await?;
    let definition: Object =
        serde_json::from_value(operator::definition()).context("the definition of IstioOperator")?;
    send(client, &definition, how.dry_run).await?;
    let mut kept = BTreeSet::new();
    for part in parts {
        let mut objects = Vec::new();
        for value in part.objects {
            objects.push(owner.mark(value, part.name)?);
        }
        // A server that only checks has no namespace to check these in.
        for object in objects.iter().filter(|object| !missing.contains(object.namespace())) {
            send(client, object, how.dry_run).await?;
        }
        if !how.dry_run {
            ready(client, part.title, &objects, how.timeout).await?;
        }
        kept.extend(objects.iter().map(Object::key));
        output::line(format!("✓ {} installed", part.title))?;
    }
    prune(client, &owner, &kept, how.dry_run).await?;
    if !how.dry_run {
        keep(client, operator, &owner).await?;
    }
    output::line("✓ Installation complete")
}

/// Makes the namespaces that are not there; with `dry_run` only names them.
async fn namespaces(
    client: &ApiClient,
    settings: &Settings,
    parts: &[Component],
    dry_run: bool,
) -> anyhow::Result<BTreeSet<String>> {
    let objects = parts.iter().flat_map(|part| &part.objects);
    let mut wanted: BTreeSet<String> =
        objects.filter_map(|object| object["metadata"]["namespace"].as_str()).map(str::to_string).collect();
    wanted.insert(settings.namespace.clone());
    let mut missing = BTreeSet::new();
    for name in wanted {
        match client.get(known("Namespace")?, "", &name).await {
            Ok(_) => continue,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read namespace {name}")),
        }
        if dry_run {
            missing.insert(name);
            continue;
        }
        let mut namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let network = settings.values.text("global.network");
        if !network.is_empty() {
            namespace["metadata"]["labels"] = json!({"topology.istio.io/network": network});
        }
        let namespace: Object = serde_json::from_value(namespace).context("a namespace")?;
        match client.create(&namespace, &WriteOptions::default()).await {
            Ok(_) | Err(ClientError::AlreadyExists(_)) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot create namespace {name}")),
        }
    }
    Ok(missing)
}

/// Applies one object.
///
/// # Errors
/// The server's words.
pub async fn send(client: &ApiClient, object: &Object, dry_run: bool) -> anyhow::Result<()> {
    let kind = cluster::kind_of(object.group(), &object.kind);
    let kind = kind.with_context(|| format!("{}: the kind is not known", object.key()))?;
    let closed = closed(client, kind, object).await?;
    let object = closed.as_ref().unwrap_or(object);
    match client.server_side_apply(kind, object, MANAGER, dry_run).await {
        Ok(written) => {
            written.warnings.iter().for_each(|warning| output::warn(format!("{}: {warning}", object.key())));
            Ok(())
        }
        Err(error) => {
            let hint = match &error {
                ClientError::NoSuchKind(_) | ClientError::NotFound(_) if kind.group == NETWORK.group => {
                    "; the cluster has no Multus: install it first, or leave out values.cni.provider=multus"
                }
                error if error.to_string().contains("immutable") => {
                    "; what it says there never changes: delete the object first"
                }
                _ => "",
            };
            bail!("{}: {error}{hint}", object.key())
        }
    }
}

/// A validator as it is to be applied when its control plane has closed it (`failurePolicy: Fail`, with its certificate): it stays
/// closed, or objects would get past it until the control plane looks again.
async fn closed(client: &ApiClient, kind: &KindInfo, object: &Object) -> anyhow::Result<Option<Object>> {
    if kind.kind != "ValidatingWebhookConfiguration" {
        return Ok(None);
    }
    let before = match client.get(kind, "", object.name()).await {
        Ok(before) => before,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", object.key())),
    };
    let known = before.body.get("webhooks").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut object = object.clone();
    for hook in object.body.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
        // One that is to lead elsewhere waits for that control plane.
        let same = |old: &&Value| {
            old["name"] == hook["name"] && old["clientConfig"]["service"] == hook["clientConfig"]["service"]
        };
        let Some(old) = known.iter().find(same) else { continue };
        if old["failurePolicy"] == "Fail" && old["clientConfig"]["caBundle"].as_str().is_some_and(|b| !b.is_empty()) {
            hook["failurePolicy"] = "Fail".into();
        }
    }
    Ok(Some(object))
}

/// Waits for the Deployments among the objects, and for the injector's webhook to be trusted.
async fn ready(client: &ApiClient, title: &str, objects: &[Object], limit: Duration) -> anyhow::Result<()> {
    for object in objects.iter().filter(|object| matches!(object.kind.as_str(), "Deployment" | "DaemonSet")) {
        rolled_out(client, title, object, limit).await?;
    }
    let local = objects.iter().any(|object| object.kind == "Deployment");
    for object in objects.iter().filter(|object| local && object.kind == "MutatingWebhookConfiguration") {
        trusted(client, object).await?;
    }
    Ok(())
}

/// Waits until a Deployment's (or DaemonSet's) pods are all of its present state and ready.
///
/// # Errors
/// After `limit`, with what its pods wait for.
pub async fn rolled_out(client: &ApiClient, title: &str, object: &Object, limit: Duration) -> anyhow::Result<()> {
    let (start, place) = (Instant::now(), format!("{}/{}/{}", object.kind, object.namespace(), object.name()));
    let mut told = false;
    loop {
        let now = client.get(known(&object.kind)?, object.namespace(), object.name()).await;
        let now = now.with_context(|| format!("cannot read {place}"))?;
        if is_rolled_out(&now) {
            return Ok(());
        }
        if start.elapsed() > limit {
            bail!("{place} is not ready after {} s: {}", limit.as_secs(), why(client, &now).await);
        }
        if !told && start.elapsed() > Duration::from_secs(1) {
            output::note_plain(format!("- Processing resources for {title}. Waiting for {place}"));
            told = true;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// As `kubectl rollout status` sees it.
pub fn is_rolled_out(deployment: &Object) -> bool {
    let status = deployment.body.get("status").unwrap_or(&Value::Null);
    let number = |name: &str| status[name].as_i64().unwrap_or(0);
    let seen = number("observedGeneration") >= deployment.metadata.generation.unwrap_or(0);
    if deployment.kind == "DaemonSet" {
        let wanted = number("desiredNumberScheduled");
        return seen && number("updatedNumberScheduled") >= wanted && number("numberAvailable") >= wanted;
    }
    let wanted = deployment.spec()["replicas"].as_i64().unwrap_or(1);
    seen && number("updatedReplicas") >= wanted
        && number("replicas") <= number("updatedReplicas")
        && number("availableReplicas") >= number("updatedReplicas")
}

/// What its pods wait for.
async fn why(client: &ApiClient, deployment: &Object) -> String {
    let labels = deployment.spec()["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    let Ok(pods) = pods(client, Some(deployment.namespace()), &labels.join(",")).await else {
        return "its pods cannot be listed".into();
    };
    let waiting: Vec<String> = pods.iter().filter(|pod| !is_ready(pod)).map(waiting).collect();
    match waiting.is_empty() {
        false => waiting.join("; "),
        true => {
            let conditions = deployment.body.get("status").and_then(|status| status["conditions"].as_array());
            let said =
                conditions.into_iter().flatten().filter(|c| c["status"] != "True" || c["type"] == "ReplicaFailure");
            let said: Vec<&str> = said.filter_map(|condition| condition["message"].as_str()).collect();
            if said.is_empty() { format!("{} pods are there", pods.len()) } else { said.join("; ") }
        }
    }
}

fn waiting(pod: &Object) -> String {
    let status = pod.body.get("status").unwrap_or(&Value::Null);
    let containers = status["containerStatuses"].as_array().into_iter().flatten();
    let reasons: Vec<String> = containers
        .filter_map(|container| {
            let state = &container["state"];
            let state = if state["waiting"].is_object() { &state["waiting"] } else { &state["terminated"] };
            let words: Vec<&str> = ["reason", "message"].iter().filter_map(|name| state[*name].as_str()).collect();
            (!words.is_empty()).then(|| words.join(": "))
        })
        .collect();
    let phase = status["phase"].as_str().unwrap_or("Pending");
    let reason = if reasons.is_empty() { format!("{phase}, not ready") } else { reasons.join(", ") };
    format!("pod {} is {reason}", pod.name())
}

/// Waits until the control plane has filled in the certificate that the API server trusts the webhook by: before that no pod
/// is made that asks for injection. It does so when it is ready, and tries again; this is not waited for without end.
async fn trusted(client: &ApiClient, configuration: &Object) -> anyhow::Result<()> {
    let (start, kind) = (Instant::now(), known("MutatingWebhookConfiguration")?);
    loop {
        let now = client.get(kind, "", configuration.name()).await;
        let now = now.with_context(|| format!("cannot read {}", configuration.key()))?;
        let hooks = now.body.get("webhooks").and_then(Value::as_array);
        if hooks
            .into_iter()
            .flatten()
            .all(|hook| hook["clientConfig"]["caBundle"].as_str().is_some_and(|b| !b.is_empty()))
        {
            return Ok(());
        }
        if start.elapsed() > SOON {
            bail!(
                "the control plane did not make its webhook {} known within {} s; its log says why",
                now.name(),
                SOON.as_secs()
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Deletes what an earlier installation of the same owner and revision made and this one did not.
pub(super) async fn prune(
    client: &ApiClient,
    owner: &Owner,
    kept: &BTreeSet<weft_k8s_api::ObjectKey>,
    dry_run: bool,
) -> anyhow::Result<()> {
    let mut found = cluster::find(client, &owner.selector()).await?;
    found.retain(|(_, object)| !kept.contains(&object.key()));
    tags::hand_on_validator(client, &mut found, dry_run).await?;
    cluster::remove(client, &found, dry_run, |object| {
        output::note_plain(format!("- Pruning removed resources: {}", shown(object)));
        Ok(())
    })
    .await
}

/// `Kind:namespace:name`, as Istio's installer names objects.
pub fn shown(object: &Object) -> String {
    format!("{}:{}:{}", object.kind, object.namespace(), object.name())
}

/// The user's object that has the name under which the installer would keep what it installs.
async fn taken(client: &ApiClient, owner: &Owner) -> anyhow::Result<Option<weft_k8s_api::ObjectKey>> {
    match client.get(&KIND, &owner.namespace, &owner.state_name()).await {
        Ok(object) => Ok((!cluster::is_state(&object)).then(|| object.key())),
        Err(ClientError::NoSuchKind(_) | ClientError::NotFound(_)) => Ok(None),
        Err(error) => Err(error).context("cannot read what was installed"),
    }
}

/// Keeps what was installed.
async fn keep(client: &ApiClient, operator: &Operator, owner: &Owner) -> anyhow::Result<()> {
    let state = cluster::state(operator, owner)?;
    let start = Instant::now();
    loop {
        match client.server_side_apply(&KIND as &KindInfo, &state, MANAGER, false).await {
            Ok(_) => return Ok(()),
            // A kind that was defined just now is not served at once.
            Err(ClientError::NoSuchKind(_) | ClientError::NotFound(_)) if start.elapsed() < SOON => {
                tokio::time::sleep(POLL).await;
            }
            Err(error) => bail!("cannot keep what was installed ({}): {error}", state.key()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(generation: i64, status: Value) -> Object {
        serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "istiod", "generation": generation}, "spec": {"replicas": 2}, "status": status}))
        .unwrap()
    }

    #[tokio::test]
    async fn what_is_pruned_is_the_owners_alone() {
        let server = crate::install::testing::Server::start().await;
        let me =
            Owner { name: "me".into(), namespace: "mesh2".into(), revision: "default".into(), version: String::new() };
        server.owned("mesh2", "gone", Some(("me", "mesh2"))).await;
        server.owned("istio-system", "gone", Some(("me", "mesh2"))).await;
        // The same name in another mesh.
        server.owned("istio-system", "first-mesh", Some(("me", "istio-system"))).await;
        server.owned("mesh2", "other", Some(("other", "mesh2"))).await;
        server.owned("mesh2", "by-kubectl", None).await;
        prune(&server.client, &me, &BTreeSet::new(), false).await.unwrap();
        assert_eq!(server.names().await, ["istio-system/first-mesh", "mesh2/by-kubectl", "mesh2/other"]);
    }

    #[tokio::test]
    async fn a_network_for_multus_where_there_is_none() {
        let server = crate::install::testing::Server::start().await;
        let value = json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": NETWORK.kind,
                           "metadata": {"name": "istio-cni", "namespace": "default"}});
        let object: Object = serde_json::from_value(value).unwrap();
        let error = send(&server.client, &object, false).await.unwrap_err().to_string();
        assert!(error.contains("default/istio-cni") && error.contains("the cluster has no Multus"), "{error}");
        // As Multus defines it.
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"config": {"type": "string"}}}}});
        let names = json!({"kind": NETWORK.kind, "plural": NETWORK.plural, "singular": NETWORK.singular, "shortNames": NETWORK.short});
        server
            .create(json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{}.{}", NETWORK.plural, NETWORK.group)},
            "spec": {"group": NETWORK.group, "scope": "Namespaced", "names": names, "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}}))
            .await;
        let start = Instant::now();
        while let Err(error) = send(&server.client, &object, false).await {
            assert!(start.elapsed() < Duration::from_secs(20), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let found = cluster::find_named(&server.client, &[object.to_value()], "default", None).await.unwrap();
        cluster::remove(&server.client, &found, false, |_| Ok(())).await.unwrap();
        assert!(server.client.get(&NETWORK, "default", "istio-cni").await.is_err_and(|error| error.is_not_found()));
    }

    #[tokio::test]
    async fn a_closed_validator_stays_closed() {
        let server = crate::install::testing::Server::start().await;
        let kind = known("ValidatingWebhookConfiguration").unwrap();
        let name = crate::install::webhooks::DEFAULT_VALIDATOR;
        let policy = async || {
            let found = server.client.get(kind, "", name).await.unwrap();
            found.body["webhooks"][0]["failurePolicy"].as_str().unwrap_or_default().to_string()
        };
        server.webhooks("istio-system", "first").await;
        assert_eq!(policy().await, "Ignore", "until the control plane answers");
        // As the control plane writes it.
        let mut object = server.client.get(kind, "", name).await.unwrap();
        let hook = &mut object.body["webhooks"][0];
        hook["failurePolicy"] = "Fail".into();
        hook["clientConfig"]["caBundle"] = "cm9vdHM=".into();
        server.client.replace(&object, &WriteOptions::default()).await.unwrap();
        server.webhooks("istio-system", "first").await;
        assert_eq!(policy().await, "Fail");
        // Another control plane takes it, which may not answer yet.
        server.webhooks("mesh2", "second").await;
        assert_eq!(policy().await, "Ignore");
    }

    #[test]
    fn when_a_deployment_is_rolled_out() {
        let status = |seen: i64, all: i64, updated: i64, available: i64| json!({"observedGeneration": seen, "replicas": all, "updatedReplicas": updated, "availableReplicas": available});
        for (generation, status, wanted) in [
            (2, status(2, 2, 2, 2), true),
            (2, status(1, 2, 2, 2), false),
            (2, status(2, 3, 2, 3), false),
            (2, status(2, 2, 1, 2), false),
            (2, status(2, 2, 2, 1), false),
            (1, json!({}), false),
        ] {
            assert_eq!(is_rolled_out(&deployment(generation, status.clone())), wanted, "{status}");
        }
    }

    #[test]
    fn what_a_pod_waits_for() {
        let pod = |status: Value| {
            serde_json::from_value::<Object>(
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": status}),
            )
            .unwrap()
        };
        let state = json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]});
        assert_eq!(waiting(&pod(state)), "pod p is ImagePullBackOff: no such image");
        assert_eq!(waiting(&pod(json!({"phase": "Running"}))), "pod p is Running, not ready");
    }
}
