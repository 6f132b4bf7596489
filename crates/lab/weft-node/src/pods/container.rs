//! One container over all its runs: start, probes, end, restart with back-off, stop.

use super::env::{Source, expand};
use super::probe::{self, Target};
use super::state::{ContainerState, Ended, Life, Role};
use super::worker::Worker;
use crate::controllers::objects::now;
use crate::network::{DOMAIN, GATEWAY};
use crate::sandbox::{Bind, CA_BUNDLE, ContainerLog, OWN_PROGRAMS, Process, ProcessSpec, RootFs, exit_code};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Probe};
use nix::sys::signal::Signal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// First pause before a restart; doubled each time.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Longest pause before a restart.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A run that lasted so long was no crash: the pauses begin anew.
const BACKOFF_RESET: Duration = Duration::from_secs(600);
/// How often what a container waits for (a ConfigMap, a line in weft-lab.yaml) is looked for again.
const CONFIG_RETRY: Duration = Duration::from_millis(500);
/// First pause between probes of a container that is not ready yet. Kubernetes asks once a second; a lab that is to be up in
/// three seconds asks sooner, and soon less often.
const PROBE_FIRST: Duration = Duration::from_millis(25);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a run was not begun.
enum StartFailure {
    /// Something it needs is missing; it may come.
    Waits { reason: &'static str, message: String },
    /// The program cannot be started.
    Fails(String),
}

/// Runs a container until it is not to be restarted any more; returns its last exit code.
pub async fn supervise(worker: Arc<Worker>, container: Container) -> i32 {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let begun = Instant::now();
        let started = now();
        let code = match start(&worker, &container).await {
            Ok(target) => {
                // Whoever stopped the pod while this was starting found no process to signal.
                if worker.is_stopping(&container.name) {
                    target.process.signal(Signal::SIGKILL);
                }
                attend(&worker, &container, target).await
            }
            Err(StartFailure::Waits { reason, message }) => {
                worker.wait_for(&container.name, reason, &message);
                if worker.stops_within(&container.name, CONFIG_RETRY).await {
                    return 1;
                }
                continue;
            }
            Err(StartFailure::Fails(message)) => {
                worker.log(&container.name).push(0, format!("weft: {message}").as_bytes());
                worker.event(true, "Failed", &message, Some(&container.name));
                128
            }
        };
        let ended = ended(&worker, &container, code, started);
        let again = !worker.is_stopping(&container.name) && restarts(&worker, &container, code);
        worker.update(&container.name, |state| state.end(ended.clone(), again));
        if !again {
            return code;
        }
        if begun.elapsed() > BACKOFF_RESET {
            backoff = BACKOFF_FIRST;
        }
        // The first restart comes at once, as in Kubernetes.
        let restarts = worker.with(&container.name, |state| state.restarts).unwrap_or(0);
        if restarts > 1 {
            let (seconds, name, pod) = (backoff.as_secs(), &container.name, worker.name());
            let message = format!("back-off {seconds}s restarting failed container={name} pod={pod}");
            worker.update(name, |state| {
                state.life = Life::Waiting { reason: "CrashLoopBackOff".into(), message: message.clone() }
            });
            worker.event(true, "BackOff", &format!("Back-off restarting failed container {name}"), Some(name));
            if worker.stops_within(&container.name, backoff).await {
                worker.update(&container.name, |state| state.life = Life::Terminated(ended.clone()));
                return code;
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }
}

fn restarts(worker: &Worker, container: &Container, code: i32) -> bool {
    let policy = worker.restart_policy();
    match worker.with(&container.name, |state| state.role) {
        Some(Role::Sidecar) => true,
        Some(Role::Init) => code != 0 && policy != "Never",
        _ => policy == "Always" || (policy == "OnFailure" && code != 0),
    }
}

fn ended(worker: &Worker, container: &Container, code: i32, started: String) -> Ended {
    let reason = match code {
        0 => "Completed",
        128 => "StartError",
        _ => "Error",
    };
    // The last lines of a failed container tell more than its code.
    let message = if code == 0 { String::new() } else { worker.log(&container.name).tail(5).join("\n") };
    Ended { code, reason: reason.into(), message, started, finished: now() }
}

impl ContainerState {
    fn end(&mut self, ended: Ended, again: bool) {
        (self.ready, self.started) = (false, false);
        self.life = Life::Terminated(ended.clone());
        if again {
            self.last = Some(ended);
            self.restarts += 1;
        }
    }
}

/// Starts one run.
async fn start(worker: &Arc<Worker>, container: &Container) -> Result<Target, StartFailure> {
    let waits = |reason: &'static str| move |message: String| StartFailure::Waits { reason, message };
    let pod = worker.object();
    let source = Source { store: &worker.node.store, pod: &pod };
    let given = source.environment(container).map_err(waits("CreateContainerConfigError"))?;
    let image = container.image.as_deref().unwrap_or_default();
    let words = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|word| expand(word, &given)).collect()
    };
    let program = worker.node.images.resolve(image, &words(&container.command), &words(&container.args));
    let program = program.map_err(waits("ErrImagePull"))?;
    let mut binds: Vec<Bind> = worker.node.images.folders().into_iter().map(read_only).collect();
    binds.extend(worker.binds(container).map_err(waits("CreateContainerConfigError"))?);
    let Some((sandbox, address)) = worker.sandbox() else {
        return Err(StartFailure::Fails("the pod has no network".into()));
    };
    let env = full_environment(worker, given);
    let own_folder = container.working_dir.clone().map(PathBuf::from).or(program.folder);
    let spec = ProcessSpec {
        argv: program.argv,
        env: env.clone(),
        working_dir: own_folder,
        root: root(worker, binds),
        net_admin: container.name == super::state::PROXY_CONTAINER,
    };
    let restart = worker.with(&container.name, |state| state.restarts).unwrap_or(0);
    let log = worker.log(&container.name);
    let started = Process::start(&sandbox, spec, &worker.node.mount_point, log, restart).await;
    let process = started.map_err(|error| StartFailure::Fails(error.to_string()))?;
    worker.running(&container.name, process.clone(), env.clone());
    worker.tell_of_start(&container.name);
    let probed = container.startup_probe.is_some();
    let unready = probed || container.readiness_probe.is_some();
    worker.update(&container.name, |state| {
        state.life = Life::Running { since: now() };
        state.started = !probed;
        state.ready = !unready;
        state.probe_failure = None;
    });
    Ok(Target { net: sandbox.net, address, process, env })
}

fn read_only(folder: PathBuf) -> Bind {
    Bind { source: folder.clone(), target: folder, read_only: true }
}

/// What every container has, then what its spec gives.
fn full_environment(worker: &Worker, given: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = [
        ("PATH", format!("{PATH}:{OWN_PROGRAMS}").as_str()),
        ("HOME", "/root"),
        ("HOSTNAME", &worker.hostname()),
        ("SSL_CERT_FILE", CA_BUNDLE),
        ("KUBERNETES_SERVICE_HOST", &crate::network::API_SERVICE.to_string()),
        ("KUBERNETES_SERVICE_PORT", "443"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_string(), value.to_string()))
    .collect();
    env.retain(|(name, _)| !given.iter().any(|(own, _)| own == name));
    env.extend(given);
    env
}

fn root(worker: &Worker, binds: Vec<Bind>) -> RootFs {
    let hostname = worker.hostname();
    let address = worker.sandbox().map_or(GATEWAY, |(_, address)| address);
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_string();
    let spec = worker.spec.spec.as_ref();
    let subdomain = spec.and_then(|spec| spec.subdomain.as_deref()).filter(|s| !s.is_empty());
    let below = subdomain.map(|name| format!("{hostname}.{name}.{}.svc.{DOMAIN}\t", worker.namespace()));
    for address in worker.node.links.addresses(address) {
        hosts += &format!("{address}\t{}{hostname}\n", below.as_deref().unwrap_or_default());
    }
    for alias in spec.and_then(|spec| spec.host_aliases.as_ref()).into_iter().flatten() {
        hosts += &format!("{}\t{}\n", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t"));
    }
    let (resolv_conf, links) = (resolv_conf(worker), worker.node.images.links());
    let ca_bundle = worker.node.outside.bundle().to_path_buf();
    let keep_proc = worker.node.keep_proc;
    RootFs { resolv_conf, hosts, hostname: format!("{hostname}\n"), ca_bundle, binds, links, keep_proc }
}

/// Resolver settings by `dnsPolicy` and `dnsConfig`. The lab has no resolver of the outside, so `Default` is cluster DNS too.
fn resolv_conf(worker: &Worker) -> String {
    let spec = worker.spec.spec.clone().unwrap_or_default();
    let own = spec.dns_config.unwrap_or_default();
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), vec!["ndots:5".to_string()]);
    if spec.dns_policy.as_deref() != Some("None") {
        servers.push(crate::network::DNS_SERVICE.to_string());
        searches.extend([format!("{}.svc.{DOMAIN}", worker.namespace()), format!("svc.{DOMAIN}"), DOMAIN.to_string()]);
    }
    servers.extend(own.nameservers.unwrap_or_default());
    searches.extend(own.searches.unwrap_or_default());
    for option in own.options.unwrap_or_default() {
        let name = option.name.unwrap_or_default();
        options.retain(|known| known.split(':').next() != Some(&name));
        options.push(option.value.map_or(name.clone(), |value| format!("{name}:{value}")));
    }
    let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !searches.is_empty() {
        text += &format!("search {}\n", searches.join(" "));
    }
    text + &format!("options {}\n", options.join(" "))
}

/// Watches over a run until it ends; returns the exit code.
async fn attend(worker: &Arc<Worker>, container: &Container, target: Target) -> i32 {
    let process = target.process.clone();
    let hooks = async {
        if let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref())
            && let Err(why) = run_hook(hook, container, &target).await
        {
            worker.log(&container.name).push(0, format!("weft: postStart failed: {why}").as_bytes());
            return true;
        }
        watch_probes(worker, container, &target).await
    };
    let status = tokio::select! {
        status = process.wait() => status,
        must_restart = hooks => {
            if must_restart {
                let grace = Duration::from_secs(worker.grace_seconds());
                terminate(&process, grace).await;
            }
            process.wait().await
        }
    };
    worker.not_running(&container.name);
    exit_code(status)
}

/// Runs the probes. Returns true when the container must be restarted; never returns while it need not be.
async fn watch_probes(worker: &Arc<Worker>, container: &Container, target: &Target) -> bool {
    if let Some(startup) = &container.startup_probe {
        let threshold = threshold(startup);
        if !until_success(worker, container, startup, target, Some(threshold)).await {
            worker.log(&container.name).push(0, b"weft: the startup probe failed for good; restarting");
            return true;
        }
        worker.update(&container.name, |state| {
            state.started = true;
            state.ready = container.readiness_probe.is_none();
        });
    }
    let readiness = async {
        match &container.readiness_probe {
            Some(readiness) => keep_ready(worker, container, readiness, target).await,
            None => std::future::pending::<()>().await,
        }
    };
    let liveness = async {
        match &container.liveness_probe {
            Some(liveness) => until_dead(worker, container, liveness, target).await,
            None => std::future::pending::<()>().await,
        }
    };
    tokio::select! {
        () = readiness => false,
        () = liveness => true,
    }
}

fn seconds(value: Option<i32>, default: i32) -> Duration {
    Duration::from_secs(u64::try_from(value.unwrap_or(default).max(0)).unwrap_or(0))
}

fn period(probe: &Probe) -> Duration {
    seconds(probe.period_seconds, 10).max(Duration::from_secs(1))
}

/// The time that a probe may fail: so many failures, a period apart.
fn threshold(probe: &Probe) -> Duration {
    period(probe) * u32::try_from(probe.failure_threshold.unwrap_or(3).max(1)).unwrap_or(3)
}

/// Asks, ever less often, until the probe succeeds; false when it does not within `limit`.
async fn until_success(
    worker: &Worker,
    container: &Container,
    probe: &Probe,
    target: &Target,
    limit: Option<Duration>,
) -> bool {
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let begun = Instant::now();
    let mut pause = PROBE_FIRST;
    let mut successes = 0;
    loop {
        match probe::ask(probe, container, target).await {
            Ok(()) => {
                successes += 1;
                if successes >= probe.success_threshold.unwrap_or(1) {
                    worker.update(&container.name, |state| state.probe_failure = None);
                    return true;
                }
            }
            Err(why) => {
                successes = 0;
                worker.update(&container.name, |state| state.probe_failure = Some(why.clone()));
            }
        }
        if limit.is_some_and(|limit| begun.elapsed() > limit) {
            return false;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(period(probe));
    }
}

async fn keep_ready(worker: &Worker, container: &Container, probe: &Probe, target: &Target) {
    loop {
        until_success(worker, container, probe, target, None).await;
        worker.update(&container.name, |state| state.ready = true);
        let mut failures = 0;
        while failures < probe.failure_threshold.unwrap_or(3).max(1) {
            tokio::time::sleep(period(probe)).await;
            failures = match probe::ask(probe, container, target).await {
                Ok(()) => 0,
                Err(why) => {
                    worker.event(true, "Unhealthy", &format!("Readiness probe failed: {why}"), Some(&container.name));
                    worker.update(&container.name, |state| state.probe_failure = Some(why.clone()));
                    failures + 1
                }
            };
        }
        worker.update(&container.name, |state| state.ready = false);
    }
}

async fn until_dead(worker: &Worker, container: &Container, probe: &Probe, target: &Target) {
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let mut failures = 0;
    loop {
        tokio::time::sleep(period(probe)).await;
        match probe::ask(probe, container, target).await {
            Ok(()) => failures = 0,
            Err(why) => {
                failures += 1;
                worker.event(true, "Unhealthy", &format!("Liveness probe failed: {why}"), Some(&container.name));
                if failures >= probe.failure_threshold.unwrap_or(3).max(1) {
                    return;
                }
            }
        }
    }
}

async fn run_hook(hook: &LifecycleHandler, container: &Container, target: &Target) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        return probe::run(exec.command.clone().unwrap_or_default(), target).await;
    }
    if let Some(get) = &hook.http_get {
        return probe::http_get(get, container, target).await;
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
    }
    Ok(())
}

/// Stops a container: its preStop hook, SIGTERM, and SIGKILL when the time is over.
pub async fn stop(worker: &Worker, container: &Container, grace: Duration) {
    let Some((process, env)) = worker.process(&container.name) else { return };
    worker.event(false, "Killing", &format!("Stopping container {}", container.name), Some(&container.name));
    let deadline = Instant::now() + grace;
    let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    if let (Some(hook), Some((sandbox, address)), false) = (hook, worker.sandbox(), grace.is_zero()) {
        let target = Target { net: sandbox.net, address, process: process.clone(), env };
        // A hook that fails or takes too long does not keep the container alive.
        let _ = tokio::time::timeout(grace, run_hook(hook, container, &target)).await;
    }
    terminate(&process, deadline.saturating_duration_since(Instant::now())).await;
}

async fn terminate(process: &Process, grace: Duration) {
    if !grace.is_zero() {
        process.signal(Signal::SIGTERM);
        if tokio::time::timeout(grace, process.wait()).await.is_ok() {
            return;
        }
    }
    process.signal(Signal::SIGKILL);
    process.wait().await;
}

/// Logs of a pod's containers, kept for as long as the pod is.
pub type Log = Arc<ContainerLog>;
