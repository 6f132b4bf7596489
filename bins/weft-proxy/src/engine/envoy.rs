//! An Envoy under the agent: its bootstrap, its process, its drain. The agent keeps the identity and serves it by SDS; Envoy
//! takes its configuration from the control plane itself, and proves who it is by that identity.

use crate::drain::{self, Cause, Times};
use crate::http::fetch;
use crate::metrics::{Metrics, Source};
use crate::ports;
use crate::probes::Probes;
use crate::settings::AgentSettings;
use crate::state::ProxyState;
use anyhow::{Context, anyhow, bail};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use weft_proto::envoy::config::core::v3::Node;
use weft_runtime::{ReadyBlock, net};
use weft_sds::{SDS_CERTIFICATE, SDS_ROOTS, SdsServer, SvidManager, SvidStatus};

/// Between looks at Envoy's readiness.
const POLL: Duration = Duration::from_millis(200);
/// Time that Envoy has to go after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// `SOL_SOCKET` and `SO_MARK` of Linux.
const SO_MARK: (i32, i32) = (1, 36);

/// Runs until asked to stop, or until Envoy ends.
///
/// # Errors
/// When a port is in use, Envoy cannot be started, or it ends by itself.
pub async fn run(settings: &AgentSettings, node: &Node, state: ProxyState, manager: SvidManager) -> anyhow::Result<()> {
    let admin = format!("127.0.0.1:{}", settings.ports.admin);
    let block = state.readiness.block("an identity");
    let source = Source::Envoy(admin.clone());
    let metrics = Metrics::new(source, state.clone(), Some(manager.stats()), settings.scrape.clone());
    let probes = Probes::of(settings).map_err(|error| anyhow!(error))?;
    let _ports = ports::start(settings.ports, probes, &state, &metrics).await.map_err(|error| anyhow!(error))?;
    let socket = &settings.sds_socket;
    let sds = SdsServer::bind(socket, manager.secrets()).with_context(|| format!("SDS socket {}", socket.display()))?;
    tokio::spawn(sds.run(std::future::pending()));
    let path = write_bootstrap(settings, node)?;
    let mut envoy = start(settings, &path)?;
    let cause = tokio::select! {
        ended = envoy.wait() => bail!("Envoy ended by itself: {}", ended.map_or_else(|e| e.to_string(), told)),
        cause = drain::cause(&state) => cause?,
        () = watch(&state, &admin, &manager, block) => bail!("watching Envoy ended"),
    };
    state.start_draining();
    drain_envoy(cause, settings, &admin).await;
    stop(&mut envoy).await;
    Ok(())
}

fn told(status: ExitStatus) -> String {
    format!("{status}; its own log says why")
}

fn start(settings: &AgentSettings, bootstrap: &Path) -> anyhow::Result<Child> {
    let program = &settings.envoy_path;
    if !program.exists() {
        bail!("there is no Envoy at {}; set --envoy-path or ENVOY_PATH", program.display());
    }
    // By way of ourselves: the child asks the kernel to end it when the agent dies, which must be asked from inside.
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run-child", &std::process::id().to_string()]).arg(program);
    command.arg("-c").arg(bootstrap).args(["--disable-hot-restart", "--drain-strategy", "immediate"]);
    command.args(["--drain-time-s", &settings.drain_duration.as_secs().to_string()]);
    // Access logs are read while something is looked into: after a second, as Istio's agent has it, not after ten.
    command.args(["--file-flush-interval-msec", "1000"]);
    command.args(["-l", envoy_level(&settings.log_filter)]);
    if settings.concurrency > 0 {
        command.args(["--concurrency", &settings.concurrency.to_string()]);
    }
    command.kill_on_drop(true).spawn().with_context(|| format!("starting {}", program.display()))
}

/// Becomes `program`, which the kernel ends when the process `parent` dies, however that dies.
///
/// # Errors
/// When the program cannot be run.
pub fn become_child(parent: i32, program: &Path, arguments: &[String]) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    // The parent may have died before that was asked.
    if nix::unistd::getppid().as_raw() != parent {
        bail!("the agent is gone");
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

/// Envoy's level for our filter; its own lines are many, so `info` of ours is `warning` of its.
fn envoy_level(filter: &str) -> &'static str {
    match filter.split(',').next().unwrap_or_default() {
        "trace" => "trace",
        "debug" => "debug",
        "error" => "error",
        "off" => "off",
        _ => "warning",
    }
}

/// Keeps readiness at what Envoy says, and says what the identity waits for.
async fn watch(state: &ProxyState, admin: &str, manager: &SvidManager, block: ReadyBlock) {
    let mut block = Some(block);
    loop {
        let live = match fetch(Method::GET, admin, "/ready", HeaderMap::new(), Duration::from_secs(1), 4096).await {
            Ok(answer) => answer.status == StatusCode::OK,
            Err(_) => false,
        };
        let reason = match &*manager.status().borrow() {
            SvidStatus::Waiting(reason) => Some(format!("an identity ({reason})")),
            _ if !live => Some("Envoy".to_owned()),
            _ => None,
        };
        if live && listeners_stopped(admin).await {
            // The readiness port is the agent's: it says no too, and the pod's endpoint is withdrawn.
            state.start_draining();
        }
        block = reason.map(|reason| {
            let block = block.unwrap_or_else(|| state.readiness.block("Envoy"));
            block.set_reason(reason);
            block
        });
        tokio::time::sleep(POLL).await;
    }
}

/// Somebody asked Envoy to accept no more (`/drain_listeners`); nothing but that counts listeners as stopped.
async fn listeners_stopped(admin: &str) -> bool {
    let path = "/stats?filter=%5Elistener_manager.listener_stopped%24";
    let Ok(answer) = fetch(Method::GET, admin, path, HeaderMap::new(), Duration::from_secs(1), 4096).await else {
        return false;
    };
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    text.trim().rsplit(": ").next().and_then(|count| count.parse::<u64>().ok()).is_some_and(|count| count > 0)
}

async fn drain_envoy(cause: Cause, settings: &AgentSettings, admin: &str) {
    if cause == Cause::Interrupt {
        return;
    }
    let times = Times::of_mesh(settings.termination_drain, settings.exit_on_zero_connections, settings.minimum_drain);
    for path in ["/healthcheck/fail", "/drain_listeners?graceful&skip_exit"] {
        if let Err(error) = fetch(Method::POST, admin, path, HeaderMap::new(), Duration::from_secs(2), 4096).await {
            tracing::warn!(error, "telling Envoy to drain failed");
        }
    }
    let start = Instant::now();
    tokio::time::sleep(times.least).await;
    while start.elapsed() < times.most && open_connections(admin).await != Some(0) {
        tokio::time::sleep(POLL).await;
    }
}

/// Open connections of clients, the admin port's left out; `None` when Envoy does not say.
async fn open_connections(admin: &str) -> Option<u64> {
    let path = "/stats?filter=listener%5C..%2Adownstream_cx_active";
    let answer = fetch(Method::GET, admin, path, HeaderMap::new(), Duration::from_secs(2), 1 << 20).await.ok()?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let counts = text.lines().filter(|line| !line.starts_with("listener.admin") && !line.contains(".worker_"));
    Some(counts.filter_map(|line| line.rsplit(": ").next()?.parse::<u64>().ok()).sum())
}

async fn stop(envoy: &mut Child) {
    if let Some(id) = envoy.id().and_then(|id| i32::try_from(id).ok()) {
        // It may be gone already.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM);
    }
    if tokio::time::timeout(STOP_LIMIT, envoy.wait()).await.is_err() {
        tracing::warn!("Envoy does not go; killing it");
        let _ = envoy.kill().await;
    }
}

fn write_bootstrap(settings: &AgentSettings, node: &Node) -> anyhow::Result<PathBuf> {
    let folder = settings.sds_socket.parent().unwrap_or(Path::new("/tmp"));
    let path = folder.join("envoy-bootstrap.json");
    let text = serde_json::to_string_pretty(&bootstrap(settings, node)?)?;
    std::fs::write(&path, text).with_context(|| format!("Envoy's bootstrap {}", path.display()))?;
    Ok(path)
}

/// Envoy's bootstrap: who we are, where secrets and configuration come from.
fn bootstrap(settings: &AgentSettings, node: &Node) -> anyhow::Result<Value> {
    let ads = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    let mut bootstrap = json!({
        "node": weft_proto::json::to_json(node, true)?,
        "admin": {"address": socket_address("127.0.0.1", settings.ports.admin)},
        "dynamic_resources": {
            "lds_config": ads,
            "cds_config": ads,
            "ads_config": {
                "api_type": "DELTA_GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
        },
        "static_resources": {"clusters": [xds_cluster(settings)?, sds_cluster(&settings.sds_socket)]},
        "stats_config": stats_config(),
        "layered_runtime": {"layers": [{"name": "deprecation", "static_layer": {
            "re2.max_program_size.error_level": 32768,
        }}]},
    });
    if let Some(mark) = settings.environment.get(net::MARK_VARIABLE).and_then(|text| text.parse::<u32>().ok()) {
        let option = json!({"level": SO_MARK.0, "name": SO_MARK.1, "int_value": mark, "state": "STATE_PREBIND"});
        bootstrap["cluster_manager"] = json!({"upstream_bind_config": {"socket_options": [option]}});
    }
    Ok(bootstrap)
}

/// What Istio's tools look for in Envoy's statistics, and no more: all of them are megabytes.
fn stats_config() -> Value {
    let prefixes = [
        "cluster_manager",
        "listener_manager",
        "server",
        "cluster.xds-grpc",
        "cluster.outbound",
        "cluster.inbound",
        "listener",
        "http",
        "tcp",
        "istio",
    ];
    let patterns: Vec<Value> = prefixes.iter().map(|prefix| json!({"prefix": prefix})).collect();
    // What dry runs of policies are counted by ("Authorization Dry-run" task); the first group leaves the metric's name.
    let tags = [
        ("authz_dry_run_action", r"(\.istio_dry_run_(allow|deny)_)"),
        ("authz_dry_run_result", r"(\.shadow_(allowed|denied))"),
    ];
    let tags: Vec<Value> = tags.iter().map(|(name, regex)| json!({"tag_name": name, "regex": regex})).collect();
    json!({"use_all_default_tags": true, "stats_tags": tags, "stats_matcher": {"inclusion_list": {"patterns": patterns}}})
}

fn socket_address(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn http2() -> Value {
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }})
}

fn sds(name: &str) -> Value {
    json!({"name": name, "sds_config": {
        "resource_api_version": "V3", "initial_fetch_timeout": "0s",
        "api_config_source": {
            "api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
            "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
        },
    }})
}

fn xds_cluster(settings: &AgentSettings) -> anyhow::Result<Value> {
    let address = &settings.discovery_address;
    let (host, port) =
        address.rsplit_once(':').ok_or_else(|| anyhow!("discovery address {address:?} must be HOST:PORT"))?;
    let port: u16 = port.parse().map_err(|_| anyhow!("discovery address {address:?} must be HOST:PORT"))?;
    let host = host.trim_matches(['[', ']']);
    let kind = if host.parse::<IpAddr>().is_ok() { "STATIC" } else { "STRICT_DNS" };
    let name = &settings.discovery_name;
    Ok(json!({
        "name": "xds-grpc", "type": kind, "dns_lookup_family": "ALL", "connect_timeout": "1s",
        "typed_extension_protocol_options": http2(),
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 300}},
        "circuit_breakers": {"thresholds": [{"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000}]},
        "load_assignment": {"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [{"endpoint": {
            "address": socket_address(host, port),
        }}]}]},
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": name,
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificate_sds_secret_configs": [sds(SDS_CERTIFICATE)],
                "combined_validation_context": {
                    "default_validation_context": {
                        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": name}}],
                    },
                    "validation_context_sds_secret_config": sds(SDS_ROOTS),
                },
            },
        }},
    }))
}

fn sds_cluster(socket: &Path) -> Value {
    json!({
        "name": "sds-grpc", "type": "STATIC", "connect_timeout": "1s",
        "typed_extension_protocol_options": http2(),
        "load_assignment": {"cluster_name": "sds-grpc", "endpoints": [{"lb_endpoints": [{"endpoint": {
            "address": {"pipe": {"path": socket}},
        }}]}]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Engine, MeshArgs};
    use crate::settings::{Environment, node};
    use weft_core::node::NodeType;

    const ENVOY: &str = "/opt/weft-peers/bin/envoy";

    fn settings(more: &[(&str, &str)]) -> AgentSettings {
        let pod = [("POD_NAME", "p"), ("POD_NAMESPACE", "default"), ("INSTANCE_IP", "10.0.0.5")];
        let all: Vec<_> = pod.iter().chain(more).copied().collect();
        let args = MeshArgs { engine: Engine::Envoy, ..MeshArgs::default() };
        AgentSettings::read(NodeType::Sidecar, &args, Environment::of(&all)).unwrap()
    }

    #[test]
    fn envoy_accepts_its_bootstrap() {
        if !Path::new(ENVOY).exists() {
            eprintln!("skipped: there is no Envoy at {ENVOY}");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for more in [&[][..], &[("PROXY_CONFIG", "discoveryAddress: 10.0.0.1:15012"), (net::MARK_VARIABLE, "1337")]] {
            let settings = settings(more);
            let text = bootstrap(&settings, &node::node(&settings).unwrap()).unwrap().to_string();
            let path = folder.path().join("bootstrap.json");
            std::fs::write(&path, &text).unwrap();
            let checked = std::process::Command::new(ENVOY)
                .args(["--mode", "validate", "--disable-hot-restart", "-l", "error", "-c"])
                .arg(&path)
                .output()
                .unwrap();
            assert!(checked.status.success(), "{}\n{text}", String::from_utf8_lossy(&checked.stderr));
        }
    }

    #[test]
    fn levels() {
        for (filter, level) in [("info", "warning"), ("debug,x=trace", "debug"), ("off", "off")] {
            assert_eq!(envoy_level(filter), level);
        }
    }
}
