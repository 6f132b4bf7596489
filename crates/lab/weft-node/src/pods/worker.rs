//! One pod from the moment the node takes it over to its removal: network, volumes, containers in their order, status, end.

use super::container::{Log, stop, supervise};
use super::events::{self, ObjectEvent};
use super::node::Node;
use super::state::{CAPTURE_CONTAINER, ContainerState, Ended, Life, PROXY_CONTAINER, PodState, Role};
use super::volumes::Volumes;
use crate::controllers::objects::now;
use crate::network::DNS_SERVICE;
use crate::outside;
use crate::sandbox::{Bind, Process, Sandbox};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use weft_capture::{CaptureConfig, DnsCapture, ProxyOwner};
use weft_core::well_known::{PROXY_UID, annotation};
use weft_k8s_api::{Object, ObjectKey};
use weft_store::DeleteOptions;

/// How often missing volumes are looked for again, and existing ones brought up to date.
const VOLUME_RETRY: Duration = Duration::from_millis(500);
const VOLUME_PAUSE: Duration = Duration::from_millis(10);
const VOLUME_REFRESH: Duration = Duration::from_secs(1);
/// How long a pod of the mesh goes on after it has been marked as terminating: its endpoint's state reaches all proxies in a
/// fraction of that.
const LEAVING: Duration = Duration::from_millis(400);
/// How long something may be missing before it is worth an event.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause before a failed network set-up is tried again.
const NETWORK_RETRY: Duration = Duration::from_secs(2);

/// A container's environment, in order.
pub type Environment = Vec<(String, String)>;

/// How far the stopping of a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stopping {
    No,
    /// Everything but sidecars.
    Application,
    All,
}

/// Since when a pod waits, and what has been told of it.
struct Patience {
    since: Instant,
    told: String,
}

/// A pod on this node.
pub struct Worker {
    /// The node.
    pub node: Arc<Node>,
    /// The pod as it was taken over, with what the lab adds; its containers do not change.
    pub spec: Pod,
    key: ObjectKey,
    uid: String,
    state: Mutex<PodState>,
    changed: watch::Sender<u64>,
    sandbox: Mutex<Option<(Sandbox, Ipv4Addr)>>,
    volumes: Mutex<Volumes>,
    running: Mutex<HashMap<String, (Process, Environment)>>,
    logs: BTreeMap<String, Log>,
    stopping: watch::Sender<Stopping>,
    /// Seconds that the pod gets to stop, once it is to be removed.
    removal: watch::Sender<Option<u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    /// Takes a pod over.
    ///
    /// # Errors
    /// When the object does not read as a pod.
    pub fn new(node: Arc<Node>, object: &Object) -> Result<Self, serde_json::Error> {
        let mut spec: Pod = object.typed()?;
        node.engines.fit(&mut spec);
        let uid = object.metadata.uid.clone().unwrap_or_default();
        let state = PodState::new(&spec);
        let logs = state.containers.iter().map(|c| (c.spec.name.clone(), Log::default())).collect();
        let volumes = Volumes::new(&node.run_folder, &uid, &spec);
        Ok(Self {
            node,
            key: object.key(),
            uid,
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
            sandbox: Mutex::default(),
            volumes: Mutex::new(volumes),
            running: Mutex::default(),
            logs,
            stopping: watch::Sender::new(Stopping::No),
            removal: watch::Sender::new(None),
            spec,
        })
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.key.name
    }

    /// Namespace.
    pub fn namespace(&self) -> &str {
        &self.key.namespace
    }

    /// The pod's host name.
    pub fn hostname(&self) -> String {
        let own = self.spec.spec.as_ref().and_then(|spec| spec.hostname.clone());
        own.unwrap_or_else(|| self.key.name.chars().take(63).collect())
    }

    /// `Always`, `OnFailure` or `Never`.
    pub fn restart_policy(&self) -> &str {
        self.spec.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
    }

    /// Seconds between SIGTERM and SIGKILL.
    pub fn grace_seconds(&self) -> u64 {
        let seconds = self.spec.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        u64::try_from(seconds).unwrap_or(0)
    }

    /// The pod as the store has it, or as it was taken over; with its present status.
    pub fn object(&self) -> Object {
        let stored = self.node.store.get(&self.key).map(|object| Object::clone(&object));
        let mut object = stored.or_else(|| Object::from_typed(&self.spec).ok()).unwrap_or_else(|| Object {
            api_version: "v1".into(),
            kind: "Pod".into(),
            metadata: self.spec.metadata.clone(),
            body: serde_json::Map::new(),
        });
        let status = lock(&self.state).status(object.body.get("status").unwrap_or(&Value::Null));
        object.body.insert("status".into(), status);
        object
    }

    /// Changes a container's state, and lets the status be written.
    pub fn update(&self, name: &str, change: impl FnOnce(&mut ContainerState)) {
        if let Some(container) = lock(&self.state).container(name) {
            change(container);
        }
        self.changed.send_modify(|n| *n += 1);
    }

    /// Records an event of the pod, or of one of its containers.
    pub fn event(&self, warning: bool, reason: &str, message: &str, container: Option<&str>) {
        if let Some(pod) = self.node.store.get(&self.key) {
            events::record(&self.node.store, &pod, &ObjectEvent { warning, reason, message, container });
        }
    }

    /// Records that a container has been made and runs, in the kubelet's words.
    pub fn tell_of_start(&self, name: &str) {
        self.event(false, "Created", &format!("Created container: {name}"), Some(name));
        self.event(false, "Started", &format!("Started container {name}"), Some(name));
    }

    /// Lets a container wait for this reason; the first time it is also an event.
    pub fn wait_for(&self, name: &str, reason: &str, message: &str) {
        let wanted = Life::Waiting { reason: reason.into(), message: message.into() };
        if self.with(name, |state| state.life != wanted) == Some(true) {
            self.update(name, |state| state.life = wanted);
            self.event(true, reason, message, Some(name));
        }
    }

    /// Reads from a container's state.
    pub fn with<T>(&self, name: &str, read: impl FnOnce(&ContainerState) -> T) -> Option<T> {
        lock(&self.state).container(name).map(|container| read(container))
    }

    /// A container's log.
    pub fn log(&self, name: &str) -> Log {
        self.logs.get(name).cloned().unwrap_or_default()
    }

    /// Namespaces and address, once there are.
    pub fn sandbox(&self) -> Option<(Sandbox, Ipv4Addr)> {
        lock(&self.sandbox).clone()
    }

    /// What a container sees of the volumes, and of the certificate of a host outside.
    ///
    /// # Errors
    /// When it mounts one that the pod does not have.
    pub fn binds(&self, container: &Container) -> Result<Vec<Bind>, String> {
        let mut binds = lock(&self.volumes).binds(container, self.namespace())?;
        let names = self.outside_names();
        if !names.is_empty() {
            let folder = self.node.run_folder.join("pods").join(&self.uid).join("outside");
            binds.push(self.node.outside.certificate(&names, &folder)?);
        }
        Ok(binds)
    }

    /// Names of the world outside that this pod stands for.
    fn outside_names(&self) -> Vec<String> {
        let annotations = self.spec.metadata.annotations.as_ref();
        outside::names(annotations.and_then(|all| all.get(outside::ANNOTATION)).map(String::as_str))
    }

    fn take_address(&self) -> Result<Ipv4Addr, String> {
        if self.outside_names().is_empty() {
            return lock(&self.node.addresses).take().ok_or("no pod address is free in 10.244.0.0/16".into());
        }
        lock(&self.node.outside_addresses).take().ok_or("no address is free in 198.18.0.0/16".into())
    }

    fn give_back(&self, address: Ipv4Addr) {
        // Each pool takes back what is of its network alone.
        lock(&self.node.addresses).give_back(address);
        lock(&self.node.outside_addresses).give_back(address);
    }

    /// Notes a started process.
    pub fn running(&self, name: &str, process: Process, env: Environment) {
        lock(&self.running).insert(name.into(), (process, env));
    }

    /// Notes the end of a process.
    pub fn not_running(&self, name: &str) {
        lock(&self.running).remove(name);
    }

    /// A container's process and environment, while it runs.
    pub fn process(&self, name: &str) -> Option<(Process, Environment)> {
        lock(&self.running).get(name).cloned()
    }

    /// The containers that run: name and process id.
    pub fn processes(&self) -> Vec<(String, u32)> {
        lock(&self.running).iter().map(|(name, (process, _))| (name.clone(), process.pid)).collect()
    }

    fn stops_at(&self, name: &str) -> Stopping {
        let sidecar = self.with(name, |state| state.role == Role::Sidecar).unwrap_or(false);
        if sidecar { Stopping::All } else { Stopping::Application }
    }

    /// Whether the container is not to be started again.
    pub fn is_stopping(&self, name: &str) -> bool {
        *self.stopping.borrow() >= self.stops_at(name)
    }

    /// Waits; true when the container is to stop before the time is over.
    pub async fn stops_within(&self, name: &str, time: Duration) -> bool {
        let (wanted, mut stopping) = (self.stops_at(name), self.stopping.subscribe());
        tokio::time::timeout(time, stopping.wait_for(|stage| *stage >= wanted)).await.is_ok()
    }

    /// Tells the pod that it is to be removed, with so many seconds to stop. A shorter time overrides an earlier one.
    pub fn remove(&self, seconds: u64) {
        self.removal.send_if_modified(|current| {
            let shorter = current.is_none_or(|now| seconds < now);
            if shorter {
                *current = Some(seconds);
            }
            shorter
        });
    }

    /// Runs the pod until it is removed.
    pub async fn run(self: Arc<Self>) {
        let status = tokio::spawn(Arc::clone(&self).write_status());
        let refresh = tokio::spawn(Arc::clone(&self).refresh_volumes());
        let life = tokio::spawn(Arc::clone(&self).live());
        let mut removal = self.removal.subscribe();
        let _ = removal.wait_for(Option::is_some).await;
        self.shut_down(life).await;
        status.abort();
        refresh.abort();
        self.take_down().await;
    }

    /// The pod's life up to its natural end. Returns when its application has ended for good; a removed pod ends it too.
    async fn live(self: Arc<Self>) {
        let node = self.spec.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        let assigned = format!("Successfully assigned {}/{} to {node}", self.namespace(), self.name());
        self.event(false, "Scheduled", &assigned, None);
        if !self.prepare().await {
            return;
        }
        let mut sidecars = Vec::new();
        if !self.initialize(&mut sidecars).await {
            return self.give_up(sidecars).await;
        }
        lock(&self.state).initialized = true;
        let mains = self.containers(|c| c.role == Role::Main);
        join_all(mains.into_iter().map(|c| tokio::spawn(supervise(Arc::clone(&self), c)))).await;
        if *self.stopping.borrow() == Stopping::No {
            lock(&self.state).finished = true;
        }
        self.give_up(sidecars).await;
    }

    /// The application is through: sidecars have nothing to do any more, the last started one ends first.
    async fn give_up(&self, sidecars: Vec<JoinHandle<i32>>) {
        self.changed.send_modify(|n| *n += 1);
        let removed = *self.stopping.borrow() != Stopping::No;
        if removed {
            // Whoever removes the pod stops them, in the time that is left.
            join_all(sidecars).await;
            return;
        }
        self.stopping.send_replace(Stopping::All);
        let grace = Duration::from_secs(self.grace_seconds());
        for container in self.containers(|c| c.role == Role::Sidecar).iter().rev() {
            stop(self, container, grace).await;
        }
        join_all(sidecars).await;
        self.changed.send_modify(|n| *n += 1);
    }

    fn containers(&self, wanted: impl Fn(&ContainerState) -> bool) -> Vec<Container> {
        lock(&self.state).containers.iter().filter(|c| wanted(c)).map(|c| c.spec.clone()).collect()
    }

    /// Network and volumes. False when the pod is removed meanwhile.
    async fn prepare(&self) -> bool {
        let mut patience = Patience { since: Instant::now(), told: String::new() };
        loop {
            match self.connect().await {
                Ok(()) => break,
                Err(message) => {
                    self.all_wait("FailedCreatePodSandBox", &format!("network: {message}"), &mut patience);
                    if self.removed_within(NETWORK_RETRY).await {
                        return false;
                    }
                }
            }
        }
        let mut store_changed = self.node.store.changed();
        loop {
            store_changed.mark_unchanged();
            let result = self.fill_volumes();
            match result {
                Ok(()) => break,
                Err(message) => self.all_wait("FailedMount", &message, &mut patience),
            }
            // What is missing may come with the next change of the store.
            let _ = tokio::time::timeout(VOLUME_RETRY, store_changed.changed()).await;
            if self.removed_within(VOLUME_PAUSE).await {
                return false;
            }
        }
        true
    }

    fn fill_volumes(&self) -> Result<(), String> {
        let object = self.object();
        lock(&self.volumes).refresh(&self.node.store, &object, &*self.node.tokens)
    }

    async fn removed_within(&self, time: Duration) -> bool {
        let mut stopping = self.stopping.subscribe();
        tokio::time::timeout(time, stopping.wait_for(|stage| *stage != Stopping::No)).await.is_ok()
    }

    /// All containers wait for this. It becomes an event only when it lasts: at first much is missing that is on its way.
    fn all_wait(&self, reason: &str, why: &str, patience: &mut Patience) {
        let mut news = false;
        for container in &mut lock(&self.state).containers {
            if let Life::Waiting { message, .. } = &mut container.life {
                news |= message != why;
                *message = why.into();
            }
        }
        if news {
            self.changed.send_modify(|n| *n += 1);
        }
        // Once for each reason: an event is a change of the store, and this wait wakes up at every change.
        if patience.since.elapsed() > PATIENCE && patience.told != why {
            patience.told = why.into();
            self.event(true, reason, why, None);
        }
    }

    /// Gives the pod its namespaces, its address and, when it is injected, its redirection.
    async fn connect(&self) -> Result<(), String> {
        let hostname = self.hostname();
        let made = tokio::task::spawn_blocking(move || Sandbox::create(&hostname)).await;
        let sandbox = made.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let address = self.take_address()?;
        let connected = async {
            if self.has_capture() {
                let config = self.capture()?;
                let net = sandbox.net.clone();
                let rules = move || net.run(|| weft_capture::apply(&config).map_err(std::io::Error::other));
                let applied = tokio::task::spawn_blocking(rules).await.map_err(|error| error.to_string())?;
                applied.map_err(|error| format!("redirection: {error}"))?;
            }
            // Last: not one packet passes before the redirection is in place.
            self.node.links.connect(&sandbox.net, address).await.map_err(|error| error.to_string())
        };
        if let Err(message) = connected.await {
            self.give_back(address);
            return Err(message);
        }
        *lock(&self.sandbox) = Some((sandbox, address));
        lock(&self.state).addresses = self.node.links.addresses(address).collect();
        self.changed.send_modify(|n| *n += 1);
        Ok(())
    }

    fn has_capture(&self) -> bool {
        lock(&self.state).container(CAPTURE_CONTAINER).is_some()
    }

    /// The lab's one user runs everything, so the proxy is known by the mark on its sockets.
    fn capture(&self) -> Result<CaptureConfig, String> {
        let annotations = self.spec.metadata.annotations.clone().unwrap_or_default();
        let dns = self.with(PROXY_CONTAINER, |proxy| {
            let mut env = proxy.spec.env.iter().flatten();
            env.any(|variable| variable.name == "ISTIO_META_DNS_CAPTURE" && variable.value.as_deref() == Some("true"))
        });
        let config = CaptureConfig {
            owner: ProxyOwner::Mark(PROXY_UID),
            dns: (dns == Some(true)).then(|| DnsCapture { servers: vec![DNS_SERVICE.into()], ..DnsCapture::default() }),
            ..CaptureConfig::default()
        };
        // Ranges may be the installation's too: then they stand in the arguments that the injector has written.
        let args = self.with(CAPTURE_CONTAINER, |c| c.spec.args.clone()).flatten().unwrap_or_default();
        let argument = |name: &str| {
            let (_, flag) = [(annotation::INCLUDE_OUTBOUND_RANGES, "-i"), (annotation::EXCLUDE_OUTBOUND_RANGES, "-x")]
                .into_iter()
                .find(|(known, _)| *known == name)?;
            args.windows(2).find(|pair| pair[0] == flag).map(|pair| pair[1].as_str())
        };
        config.annotated(|name| annotations.get(name).map(String::as_str).or_else(|| argument(name)))
    }

    /// Init containers one after another, and sidecars up to the point where the application can rely on them. A proxy that
    /// is listed among the ordinary containers starts after the init containers. False when the pod cannot go on.
    async fn initialize(self: &Arc<Self>, sidecars: &mut Vec<JoinHandle<i32>>) -> bool {
        let early = self.containers(|c| c.listed_as_init);
        let late = self.containers(|c| !c.listed_as_init && c.role == Role::Sidecar);
        for container in early.into_iter().chain(late) {
            if *self.stopping.borrow() != Stopping::No {
                return false;
            }
            let name = container.name.clone();
            if name == CAPTURE_CONTAINER {
                self.update(&name, |state| state.life = Life::Terminated(done()));
                self.tell_of_start(&name);
                continue;
            }
            if self.with(&name, |state| state.role) == Some(Role::Sidecar) {
                sidecars.push(tokio::spawn(supervise(Arc::clone(self), container)));
                if !self.until_started(&name).await {
                    return false;
                }
            } else if supervise(Arc::clone(self), container).await != 0 {
                if *self.stopping.borrow() == Stopping::No {
                    lock(&self.state).failed = Some(("InitFailed".into(), format!("init container {name} failed")));
                }
                return false;
            }
        }
        self.all_waiting_for(None);
        true
    }

    /// Waits until a sidecar has started; for the proxy, until it is ready: it has an identity and a configuration. What it
    /// lacks is told in the status of the containers that wait for it.
    async fn until_started(&self, name: &str) -> bool {
        let (mut changed, mut stopping) = (self.changed.subscribe(), self.stopping.subscribe());
        let ready = |state: &ContainerState| {
            if name == PROXY_CONTAINER { state.started && state.ready } else { state.started }
        };
        loop {
            changed.mark_unchanged();
            if self.with(name, ready) == Some(true) {
                return true;
            }
            let why = self.with(name, |state| match (&state.life, &state.probe_failure) {
                (Life::Waiting { message, .. }, _) if !message.is_empty() => message.clone(),
                (_, Some(failure)) => failure.clone(),
                _ => "it is starting".into(),
            });
            self.all_waiting_for(Some(&format!("waiting for {name}: {}", why.unwrap_or_default())));
            tokio::select! {
                _ = changed.changed() => {}
                _ = stopping.wait_for(|stage| *stage != Stopping::No) => return false,
            }
        }
    }

    fn all_waiting_for(&self, message: Option<&str>) {
        let mut state = lock(&self.state);
        let mut differs = false;
        for container in state.containers.iter_mut().filter(|c| c.role == Role::Main) {
            if let Life::Waiting { message: said, .. } = &mut container.life {
                let wanted = message.unwrap_or_default();
                differs |= said != wanted;
                *said = wanted.into();
            }
        }
        drop(state);
        if differs {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Writes the status whenever it has changed.
    async fn write_status(self: Arc<Self>) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            self.write_status_once();
            if changed.changed().await.is_err() {
                return;
            }
            // Changes of several containers come in one moment; one write tells them all.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn write_status_once(&self) {
        let Some(stored) = self.node.store.get(&self.key) else { return };
        if stored.metadata.uid.as_deref() != Some(&self.uid) {
            return;
        }
        let status = lock(&self.state).status(stored.body.get("status").unwrap_or(&Value::Null));
        crate::controllers::objects::write_status(&self.node.store, &stored, status);
    }

    async fn refresh_volumes(self: Arc<Self>) {
        loop {
            tokio::time::sleep(VOLUME_REFRESH).await;
            if self.sandbox().is_some()
                && let Err(why) = self.fill_volumes()
            {
                tracing::debug!(pod = %self.key, %why, "a volume keeps its old content");
            }
        }
    }

    /// Stops the application, then the sidecars, in the time that the pod has; a later, shorter time cuts the wait.
    async fn shut_down(&self, life: JoinHandle<()>) {
        let mut removal = self.removal.subscribe();
        let seconds = removal.borrow_and_update().unwrap_or(0);
        let graceful = async {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
            let left = || deadline.saturating_duration_since(tokio::time::Instant::now());
            self.tell_callers_first(left()).await;
            self.stopping.send_replace(Stopping::Application);
            let first = self.containers(|c| c.role != Role::Sidecar);
            join_all(first.iter().map(|c| stop(self, c, left()))).await;
            self.stopping.send_replace(Stopping::All);
            for container in self.containers(|c| c.role == Role::Sidecar).iter().rev() {
                stop(self, container, left()).await;
            }
        };
        tokio::select! {
            () = graceful => {}
            // Deleted again, with less time (`--force`, or the whole object is gone).
            _ = removal.wait_for(|new| new.is_some_and(|new| new < seconds)) => {}
        }
        self.stopping.send_replace(Stopping::All);
        for container in self.containers(|_| true) {
            stop(self, &container, Duration::ZERO).await;
        }
        let abort = life.abort_handle();
        if tokio::time::timeout(Duration::from_secs(5), life).await.is_err() {
            abort.abort();
        }
    }

    /// A pod in the mesh goes on serving for a moment: proxies elsewhere must hear that it is leaving before it refuses them.
    async fn tell_callers_first(&self, left: Duration) {
        let in_mesh = self.with(PROXY_CONTAINER, |_| ()).is_some();
        if in_mesh && left > LEAVING * 4 {
            tokio::time::sleep(LEAVING).await;
        }
    }

    /// Gives everything back, and removes the object.
    async fn take_down(&self) {
        let sandbox = lock(&self.sandbox).take();
        if let Some((_, address)) = sandbox {
            self.node.links.disconnect(address).await;
            self.give_back(address);
        }
        lock(&self.volumes).remove();
        let mut options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        options.preconditions.uid = Some(self.uid.clone());
        match self.node.store.delete(&self.key, &options) {
            Err(error) if !error.is_not_found() && !error.is_conflict() => {
                tracing::warn!(pod = %self.key, %error, "cannot remove the pod's object");
            }
            _ => {}
        }
    }
}

fn done() -> Ended {
    let time = now();
    Ended { code: 0, reason: "Completed".into(), message: String::new(), started: time.clone(), finished: time }
}
