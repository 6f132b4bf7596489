//! Workloads that register themselves: a proxy that names a WorkloadGroup of its namespace (`AUTO_REGISTER_GROUP` in its
//! metadata) gets a WorkloadEntry made from the group's template; what the proxy finds by the group's probe goes to the
//! entry's condition `Healthy`; an entry whose proxy is gone goes after a grace period (Istio's pages "Virtual Machine
//! Installation" and "WorkloadGroup").
//!
//! Entries carry the names of the group and of the instance of weftd that the proxy talks to: that instance removes them, so
//! a proxy that moves to another one keeps its entry. An entry that nobody has renewed for twice as long as a stream may
//! last, of an instance of the same Deployment whose pod is gone, belongs to nobody: any other instance removes it. Entries of
//! other revisions, or of Istio, are theirs: nothing here knows how long their streams last.

use crate::settings::Settings;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tonic::Status;
use weft_core::well_known::annotation::HEALTH_CHECKED;
use weft_k8s_api::istio::{WorkloadEntry, WorkloadGroup};
use weft_k8s_api::kinds::by_kind;
use weft_k8s_api::{KindInfo, Object, ObjectKey};
use weft_model::{MeshSnapshot, Workload};
use weft_store::client::WriteOptions;
use weft_store::{ApiClient, Cache, ClientError, DeleteOptions, Preconditions};
use weft_xds_server::auth::BoxFuture;
use weft_xds_server::{Caller, Observer, Present};

const GROUP: &str = "networking.istio.io";
/// The group that an entry was made from.
const REGISTERED_BY: &str = "istio.io/autoRegistrationGroup";
/// The instance that the proxy talks to.
const CONTROLLER: &str = "istio.io/workloadController";
/// Since when.
const CONNECTED_AT: &str = "istio.io/connectedAt";
/// Longest name of an object (RFC 1123 subdomain).
const MAX_NAME: usize = 253;
/// Longest message of a condition, in characters.
const MAX_MESSAGE: usize = 1024;
/// Reports of health that wait to be written; more are dropped, the next one says it again.
const QUEUE: usize = 1024;
/// How often entries without a proxy are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// Pause before an entry that could not be written or removed is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How much longer an entry of an earlier process of this instance stays: its proxy may be waiting before it connects again.
const RETURN: Duration = Duration::from_secs(60);

/// An entry of which this instance knows.
#[derive(Debug, Default)]
struct Known {
    /// Streams of its proxies; more than one while a proxy connects again.
    streams: Vec<u64>,
    /// Since when it has none.
    gone: Option<Instant>,
}

type Report = (ObjectKey, Option<String>);

/// Makes, marks and removes entries.
pub(crate) struct Registrar {
    client: ApiClient,
    cache: Arc<Cache>,
    revision: String,
    instance: String,
    grace: Duration,
    /// Age at which an entry that nobody renewed has no proxy any more.
    forgotten: Duration,
    known: Mutex<HashMap<ObjectKey, Known>>,
    /// What could not be written: when it is tried again, and why.
    failed: Mutex<HashMap<ObjectKey, (Instant, String)>>,
    reports: mpsc::Sender<Report>,
}

impl Registrar {
    /// A registrar, and the reports that [`Self::run`] writes.
    pub fn new(client: ApiClient, cache: Arc<Cache>, settings: &Settings) -> (Arc<Self>, mpsc::Receiver<Report>) {
        let (reports, receiver) = mpsc::channel(QUEUE);
        let (instance, grace) = (settings.pod_name.clone(), settings.workload_entry_grace);
        // Each new stream of a proxy renews its entry, and streams last no longer than that age (and a tenth).
        let forgotten = settings.max_connection_age.saturating_mul(2).saturating_add(RETURN).saturating_add(grace);
        let revision = settings.revision().to_string();
        let (known, failed) = (Mutex::default(), Mutex::default());
        (Arc::new(Self { client, cache, revision, instance, grace, forgotten, known, failed, reports }), receiver)
    }

    /// Writes reports, and removes entries whose proxies are gone, for as long as the process lives.
    pub async fn run(self: Arc<Self>, mut reports: mpsc::Receiver<Report>) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The newest report of each entry; what could not be written is tried again at the next sweep.
        let mut wanted: HashMap<ObjectKey, Option<String>> = HashMap::new();
        loop {
            tokio::select! {
                report = reports.recv() => {
                    let Some((key, wrong)) = report else { return };
                    wanted.insert(key, wrong);
                    while let Ok((key, wrong)) = reports.try_recv() {
                        wanted.insert(key, wrong);
                    }
                }
                _ = sweep.tick() => self.remove_abandoned().await,
            }
            for (key, wrong) in std::mem::take(&mut wanted) {
                if self.known().get(&key).is_none_or(|known| known.streams.is_empty()) {
                    continue;
                }
                if self.waits(&key) {
                    wanted.insert(key, wrong);
                    continue;
                }
                let written = self.write_health(&key, wrong.as_deref()).await;
                if !self.note(&key, "its health cannot be written", &written) {
                    wanted.insert(key, wrong);
                }
            }
        }
    }

    /// Whether it is too early to try an entry again.
    fn waits(&self, key: &ObjectKey) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get(key).is_some_and(|(again, _)| *again > Instant::now())
    }

    /// Notes what came of a try, true when all is well. The same failure of an entry is told of once; that somebody else was
    /// quicker is none.
    fn note(&self, key: &ObjectKey, what: &str, done: &Result<(), ClientError>) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match done {
            Ok(()) => drop(failed.remove(key)),
            Err(error) if error.is_conflict() => {}
            Err(error) => {
                let why = error.to_string();
                if failed.get(key).is_none_or(|(_, said)| *said != why) {
                    tracing::warn!("{key}: {what}: {why}; it is tried again");
                }
                failed.insert(key.clone(), (Instant::now() + RETRY, why));
            }
        }
        done.is_ok()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ObjectKey, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the entry of a proxy, or takes over the one it had.
    async fn register(&self, proxy: &Present, snapshot: &MeshSnapshot, name: &str) -> Result<(), Status> {
        let namespace = proxy.view.namespace();
        let group = self.group(namespace, name)?;
        let spec: WorkloadGroup = weft_k8s_api::parse_spec(&group).map_err(|problem| {
            Status::failed_precondition(format!(
                "WorkloadGroup {namespace}/{name}: {}: {}",
                problem.path, problem.message
            ))
        })?;
        permitted(proxy, &spec, snapshot)?;
        let object = self.entry(proxy, &group, &spec);
        let key = object.key();
        // Known before it is written: who removes what is abandoned must see the stream first.
        {
            let mut known = self.known();
            let entry = known.entry(key.clone()).or_default();
            entry.streams.push(proxy.id);
            entry.gone = None;
        }
        if let Err(error) = self.write_entry(object).await {
            self.disconnected(proxy);
            return Err(Status::unavailable(format!("{key}: {error}")));
        }
        tracing::info!(proxy = %proxy.view.node, "{key} stands for the proxy, by WorkloadGroup {name}");
        Ok(())
    }

    fn group(&self, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        let key = ObjectKey {
            group: GROUP.into(),
            kind: "WorkloadGroup".into(),
            namespace: namespace.into(),
            name: name.into(),
        };
        let missing =
            || format!("WorkloadGroup {namespace}/{name} does not exist: create it, or correct AUTO_REGISTER_GROUP");
        let own = self.cache.get(&key).filter(|group| weft_model::is_for_revision(group, &self.revision));
        own.ok_or_else(|| Status::failed_precondition(missing()))
    }

    async fn write_entry(&self, object: Object) -> Result<(), ClientError> {
        let kind = kind()?;
        match self.client.create(&object, &WriteOptions::default()).await {
            Err(ClientError::AlreadyExists(_)) => {}
            other => return other.map(drop),
        }
        let held = self.client.get(kind, object.namespace(), object.name()).await?;
        let ours = |o: &Object| annotation(o, REGISTERED_BY).map(str::to_string);
        if ours(&held) != ours(&object) {
            let text = format!("{} was not made by this group; delete it, or rename the group", held.key());
            return Err(ClientError::AlreadyExists(text));
        }
        // Replaced, not patched: what the group says no more must go.
        let mut next = object;
        next.metadata.resource_version = held.metadata.resource_version.clone();
        next.metadata.uid = held.metadata.uid.clone();
        if let Some(status) = held.body.get("status") {
            next.body.insert("status".into(), status.clone());
        }
        self.client.replace(&next, &WriteOptions::default()).await.map(drop)
    }

    /// The group's template with the address, network and locality of the proxy.
    fn entry(&self, proxy: &Present, group: &Object, spec: &WorkloadGroup) -> Object {
        let view = &proxy.view;
        let template = spec.template.clone().unwrap_or_default();
        let meta = spec.metadata.clone().unwrap_or_default();
        let first = |own: &str, other: &str| if own.is_empty() { other.to_string() } else { own.to_string() };
        // The group's alone: services and policies select by labels, and what a machine says of itself must not choose them.
        let mut labels = meta.labels.clone();
        labels.extend(template.labels.clone());
        let entry = WorkloadEntry {
            address: view.node.ip.to_string(),
            labels: labels.clone(),
            network: first(&view.metadata.network, &template.network),
            locality: first(&view.locality, &template.locality),
            ..template
        };
        let mut annotations = meta.annotations.clone();
        annotations.insert(REGISTERED_BY.into(), group.name().into());
        annotations.insert(CONTROLLER.into(), self.instance.clone());
        annotations.insert(CONNECTED_AT.into(), format!("{:.0}", jiff::Timestamp::now()));
        if spec.probe.is_some() {
            annotations.insert(HEALTH_CHECKED.into(), "true".into());
        }
        let name = entry_name(group.name(), &entry.address, &entry.network);
        let owner = json!([{
            "apiVersion": group.api_version, "kind": "WorkloadGroup", "name": group.name(), "uid": group.metadata.uid,
            "controller": true,
        }]);
        let mut object = Object {
            api_version: "networking.istio.io/v1".into(),
            kind: "WorkloadEntry".into(),
            metadata: Default::default(),
            body: Map::new(),
        };
        object.metadata.name = Some(name);
        object.metadata.namespace = Some(group.namespace().into());
        object.metadata.labels = Some(labels);
        object.metadata.annotations = Some(annotations);
        object.metadata.owner_references = serde_json::from_value(owner).ok();
        object.body.insert("spec".into(), spec_of(&entry));
        object
    }

    async fn write_health(&self, key: &ObjectKey, wrong: Option<&str>) -> Result<(), ClientError> {
        let kind = kind()?;
        let object = match self.client.get(kind, &key.namespace, &key.name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        let held = object.body.get("status").and_then(|s| s.get("conditions")).and_then(Value::as_array);
        let mut all = held.cloned().unwrap_or_default();
        let old = all.iter().position(|c| c["type"] == "Healthy").map(|at| all.remove(at)).unwrap_or_default();
        let now = json!(format!("{:.0}", jiff::Timestamp::now()));
        let status = if wrong.is_none() { "True" } else { "False" };
        let since = if old["status"] == status { old["lastTransitionTime"].clone() } else { Value::Null };
        let message: String = wrong.unwrap_or_default().chars().take(MAX_MESSAGE).collect();
        all.push(json!({
            "type": "Healthy", "status": status, "message": message, "lastProbeTime": now,
            "lastTransitionTime": if since.is_null() { now.clone() } else { since },
        }));
        let status = json!({"conditions": all});
        self.client.patch_status_of(kind, &object, &status).await.map(drop)
    }

    /// Entries whose proxies have been away for longer than the grace period, also those that an earlier process of this
    /// instance left behind, and those of instances that are gone.
    async fn remove_abandoned(&self) {
        let (now, time) = (Instant::now(), jiff::Timestamp::now());
        // Whoever is not tried any more is not remembered for ever.
        let tried = |(again, _): &(Instant, String)| now.saturating_duration_since(*again) < RETRY;
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, failure| tried(failure));
        let mut forgotten = Vec::new();
        for object in self.cache.list(GROUP, "WorkloadEntry") {
            if annotation(&object, REGISTERED_BY).is_none() {
                continue;
            }
            if annotation(&object, CONTROLLER) == Some(&self.instance) {
                let mut known = self.known();
                let entry = known.entry(object.key()).or_default();
                if entry.streams.is_empty() {
                    entry.gone.get_or_insert(now + RETURN);
                }
            } else if !self.waits(&object.key()) && self.is_forgotten(&object, time) {
                forgotten.push(object.key());
            }
        }
        let late = |k: &Known| k.gone.is_some_and(|since| since.elapsed() >= self.grace);
        let due: Vec<ObjectKey> = self.known().iter().filter(|(_, k)| late(k)).map(|(key, _)| key.clone()).collect();
        for key in due.into_iter().filter(|key| !self.waits(key)).chain(forgotten) {
            let removed = self.remove(&key).await;
            if self.note(&key, "it stays though its proxy is gone", &removed) {
                let mut known = self.known();
                if known.get(&key).is_some_and(|known| known.streams.is_empty()) {
                    known.remove(&key);
                }
            }
        }
    }

    /// Whether nobody renews an entry of an instance of this Deployment, and the instance is gone.
    fn is_forgotten(&self, object: &Object, now: jiff::Timestamp) -> bool {
        let Some(controller) = annotation(object, CONTROLLER) else { return false };
        let ours = deployment(&self.instance).is_some_and(|own| deployment(controller) == Some(own));
        // In whatever namespace: a control plane elsewhere may have a Deployment of the same name.
        let running = |pod: &Arc<Object>| {
            let phase = pod.body.get("status").and_then(|status| status["phase"].as_str());
            pod.name() == controller && !matches!(phase, Some("Failed" | "Succeeded"))
        };
        ours && older(annotation(object, CONNECTED_AT), now, self.forgotten)
            && !self.cache.list("", "Pod").iter().any(running)
    }

    async fn remove(&self, key: &ObjectKey) -> Result<(), ClientError> {
        let kind = kind()?;
        let object = match self.client.get(kind, &key.namespace, &key.name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            other => other?,
        };
        let back = self.known().get(key).is_some_and(|known| !known.streams.is_empty());
        let ours = annotation(&object, CONTROLLER) == Some(&self.instance);
        if back || !(ours || self.is_forgotten(&object, jiff::Timestamp::now())) {
            return Ok(());
        }
        let revision = object.metadata.resource_version.clone();
        let preconditions = Preconditions { resource_version: revision, ..Preconditions::default() };
        let options = DeleteOptions { preconditions, ..DeleteOptions::default() };
        match self.client.delete(kind, &key.namespace, &key.name, &options).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => {
                other?;
                tracing::info!("{key} is removed: its proxy is gone");
                Ok(())
            }
        }
    }
}

impl Observer for Registrar {
    fn connected<'a>(&'a self, proxy: &'a Present, snapshot: &'a MeshSnapshot) -> BoxFuture<'a, Result<(), Status>> {
        Box::pin(async move {
            let group = proxy.view.metadata.auto_register_group.as_str();
            if group.is_empty() {
                return Ok(());
            }
            let done = self.register(proxy, snapshot, group).await;
            if let Err(status) = &done {
                tracing::warn!(proxy = %proxy.view.node, "not registered: {}", status.message());
            }
            done
        })
    }

    fn health(&self, proxy: &Present, wrong: Option<String>) {
        let known = self.known();
        let Some(key) = known.iter().find(|(_, k)| k.streams.contains(&proxy.id)).map(|(key, _)| key.clone()) else {
            return;
        };
        drop(known);
        if self.reports.try_send((key, wrong)).is_err() {
            tracing::warn!(proxy = %proxy.view.node, "too many reports of health at once; one is dropped");
        }
    }

    fn disconnected(&self, proxy: &Present) {
        for known in self.known().values_mut() {
            known.streams.retain(|id| *id != proxy.id);
            if known.streams.is_empty() {
                known.gone.get_or_insert_with(Instant::now);
            }
        }
    }
}

fn kind() -> Result<&'static KindInfo, ClientError> {
    let missing = || ClientError::NotFound("the kind WorkloadEntry is not known".into());
    by_kind(GROUP, "WorkloadEntry").ok_or_else(missing)
}

fn annotation<'o>(object: &'o Object, name: &str) -> Option<&'o str> {
    object.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The Deployment of a pod, by its name: `NAME-HASH-SUFFIX` with five characters at the end (Kubernetes' generated names), none
/// of which is a vowel. `None` for other names.
fn deployment(pod: &str) -> Option<&str> {
    let generated = |part: &str| part.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b));
    let (rest, suffix) = pod.rsplit_once('-')?;
    let (name, hash) = rest.rsplit_once('-')?;
    let shaped = suffix.len() == 5 && generated(suffix) && (1..=10).contains(&hash.len()) && generated(hash);
    (shaped && !name.is_empty()).then_some(name)
}

/// Whether the time that an annotation names is longer ago than `limit`. What names no time is never old.
fn older(since: Option<&str>, now: jiff::Timestamp, limit: Duration) -> bool {
    let Some(since) = since.and_then(|text| text.parse::<jiff::Timestamp>().ok()) else { return false };
    Duration::try_from(now.duration_since(since)).is_ok_and(|age| age > limit)
}

/// Only who runs as the group's service account may stand for it, and never at the address of another workload: an entry is
/// taken over by the same account of the same namespace alone.
fn permitted(proxy: &Present, group: &WorkloadGroup, snapshot: &MeshSnapshot) -> Result<(), Status> {
    let Caller::Account { service_account, .. } = &proxy.caller else {
        return Err(Status::permission_denied("registration takes a proven identity: connect over TLS, with a token"));
    };
    let template = group.template.as_ref().map_or("", |t| t.service_account.as_str());
    let wanted = if template.is_empty() { "default" } else { template };
    if wanted != service_account {
        return Err(Status::permission_denied(format!(
            "the group is for service account {wanted}, but the caller is {service_account}"
        )));
    }
    let ip = proxy.view.node.ip;
    let own = |w: &Workload| {
        let account = w.service_account.is_empty() || w.service_account == *service_account;
        w.owner_kind == "WorkloadEntry" && w.namespace == proxy.view.namespace() && account
    };
    match snapshot.workloads.get(&ip).filter(|w| !own(w)) {
        Some(other) => Err(Status::permission_denied(format!(
            "address {ip} is that of workload {}/{}",
            other.namespace, other.name
        ))),
        None => Ok(()),
    }
}

/// `<group>-<address>-<network>`, cut at the front when it is too long.
fn entry_name(group: &str, address: &str, network: &str) -> String {
    let mut name = format!("{group}-{}", address.replace(':', "-"));
    if !network.is_empty() {
        name.push('-');
        name.push_str(network);
    }
    let start = name.len().saturating_sub(MAX_NAME);
    let start = (start..name.len()).find(|i| name.is_char_boundary(*i)).unwrap_or_default();
    name[start..].trim_start_matches(['-', '.']).to_string()
}

fn spec_of(entry: &WorkloadEntry) -> Value {
    let mut spec = Map::new();
    let mut set = |name: &str, value: Value| {
        let empty = value.as_str().is_some_and(str::is_empty) || value.as_object().is_some_and(Map::is_empty);
        if !empty && value != json!(0) {
            spec.insert(name.into(), value);
        }
    };
    set("address", json!(entry.address));
    set("ports", json!(entry.ports));
    set("labels", json!(entry.labels));
    set("network", json!(entry.network));
    set("locality", json!(entry.locality));
    set("weight", json!(entry.weight));
    set("serviceAccount", json!(entry.service_account));
    Value::Object(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_nobody_renews() {
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        for (since, want) in [
            (Some("2026-11-21T10:58:59Z"), true),
            (Some("2026-11-21T11:00:00Z"), false),
            (Some("2026-11-21T13:00:00Z"), false),
            (Some("yesterday"), false),
            (None, false),
        ] {
            assert_eq!(older(since, now, Duration::from_secs(61 * 60)), want, "{since:?}");
        }
    }

    /// Without the right to delete, each entry is no line of the log and no request in each second.
    #[tokio::test]
    async fn what_cannot_be_removed_is_not_tried_all_the_time() {
        use clap::Parser;
        let entry = json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {
            "name": "vm", "namespace": "shop", "annotations": {REGISTERED_BY: "vms", CONTROLLER: "weftd"}}});
        let entry: Object = serde_json::from_value(entry).unwrap();
        let key = entry.key();
        // Nobody answers there.
        let client = ApiClient::connect("http://127.0.0.1:1", None).unwrap();
        let settings = Settings::parse_from(["weftd", "--workload-entry-grace", "0s"]);
        let (registrar, _reports) = Registrar::new(client, Arc::new(Cache::from_objects([entry])), &settings);
        registrar.known().insert(key.clone(), Known { streams: Vec::new(), gone: Some(Instant::now()) });
        let again = || registrar.failed.lock().unwrap().get(&key).map(|(again, _)| *again);
        registrar.remove_abandoned().await;
        let first = again().expect("it failed");
        registrar.remove_abandoned().await;
        assert_eq!(again(), Some(first), "it was not tried");
        registrar.failed.lock().unwrap().get_mut(&key).unwrap().0 = Instant::now();
        registrar.remove_abandoned().await;
        assert!(again() > Some(first), "it was tried when it was time");
        assert!(registrar.note(&key, "", &Ok(())) && again().is_none());
    }

    #[tokio::test]
    async fn only_entries_of_our_own_pods_that_are_gone_are_forgotten() {
        use clap::Parser;
        let object = |value: Value| -> Object { serde_json::from_value(value).unwrap() };
        let pod = |namespace: &str, name: &str, phase: &str| {
            object(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
                          "status": {"phase": phase}}))
        };
        let cache = Arc::new(Cache::from_objects([
            pod("istio-system", "istiod-6d4cf5b7c9-x2x2x", "Running"),
            pod("other-system", "istiod-6d4cf5b7c9-z9z9z", "Running"),
            pod("istio-system", "istiod-6d4cf5b7c9-f4f4f", "Failed"),
        ]));
        let client = ApiClient::connect("http://127.0.0.1:1", None).unwrap();
        let registrar = |name: &str| {
            let settings = Settings::parse_from(["weftd", "--pod-name", name]);
            Registrar::new(client.clone(), cache.clone(), &settings).0
        };
        let entry = |controller: &str, since: &str| {
            object(json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
                          "metadata": {"name": "vm", "namespace": "shop",
                                       "annotations": {CONTROLLER: controller, CONNECTED_AT: since}}}))
        };
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let (long_ago, lately) = ("2026-11-21T02:00:00Z", "2026-11-21T11:59:00Z");
        for (own, controller, since, forgotten) in [
            ("istiod-6d4cf5b7c9-x2x2x", "istiod-7b8d9f5c44-b5b5b", long_ago, true),
            ("istiod-6d4cf5b7c9-x2x2x", "istiod-6d4cf5b7c9-f4f4f", long_ago, true),
            ("istiod-6d4cf5b7c9-x2x2x", "istiod-7b8d9f5c44-b5b5b", lately, false),
            // It runs, here or elsewhere; it is another revision's; it is nobody's that is known.
            ("istiod-7b8d9f5c44-b5b5b", "istiod-6d4cf5b7c9-x2x2x", long_ago, false),
            ("istiod-6d4cf5b7c9-x2x2x", "istiod-6d4cf5b7c9-z9z9z", long_ago, false),
            ("istiod-6d4cf5b7c9-x2x2x", "istiod-canary-7b8d9f5c44-b5b5b", long_ago, false),
            ("istiod-canary-6d4cf5b7c9-x2x2x", "istiod-7b8d9f5c44-b5b5b", long_ago, false),
            ("istiod-6d4cf5b7c9-x2x2x", "somebody", long_ago, false),
            ("weftd", "weftd-0", long_ago, false),
        ] {
            assert_eq!(registrar(own).is_forgotten(&entry(controller, since), now), forgotten, "{own} {controller}");
        }
    }

    #[test]
    fn names() {
        for (group, address, network, want) in [
            ("web", "10.0.0.1", "", "web-10.0.0.1"),
            ("web", "10.0.0.1", "vms", "web-10.0.0.1-vms"),
            ("web", "fd00::1", "n", "web-fd00--1-n"),
        ] {
            assert_eq!(entry_name(group, address, network), want);
        }
        let long = entry_name(&"g".repeat(260), "10.0.0.1", "n");
        assert!(long.len() == MAX_NAME && long.ends_with("-10.0.0.1-n"), "{long}");
    }
}
