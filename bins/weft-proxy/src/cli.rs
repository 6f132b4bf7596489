//! The command line: an Envoy bootstrap (`-c FILE`), or a mesh proxy beside a pod (`sidecar`) or on its own (`router`).

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// The data plane of the mesh, with its agent built in.
#[derive(Debug, Parser)]
#[command(name = "weft-proxy", version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Runs an Envoy bootstrap file instead of joining a mesh.
    #[command(flatten)]
    pub bootstrap: BootstrapArgs,
    /// What to be.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Options of a run from a bootstrap file, in Envoy's spelling.
#[derive(Debug, Default, Args)]
pub struct BootstrapArgs {
    /// Envoy bootstrap, YAML or JSON: static resources, ADS, or both.
    #[arg(short = 'c', long = "config-path", value_name = "FILE")]
    pub config_path: Option<PathBuf>,
    /// `validate` reads and compiles the file, says what is wrong with it, and exits.
    #[arg(long, value_enum, default_value_t = Mode::Serve)]
    pub mode: Mode,
    /// Worker threads; 0 = one per core.
    #[arg(long, default_value_t = 0)]
    pub concurrency: usize,
    /// trace, debug, info, warning, error, critical or off, or a filter such as info,weft_dataplane=debug.
    #[arg(short = 'l', long = "log-level", default_value = "info")]
    pub log_level: String,
    /// Log lines as JSON.
    #[arg(long)]
    pub log_json: bool,
    /// Seconds for which connections are drained on SIGTERM.
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    pub drain_time_s: u64,
    /// Accepted for Envoy's sake and without meaning here: workers share no memory between processes.
    #[arg(long, hide = true)]
    pub base_id: Option<u32>,
    /// As `--base-id`.
    #[arg(long, hide = true)]
    pub use_dynamic_base_id: bool,
    /// Overrides the cluster of the bootstrap's node.
    #[arg(long, value_name = "NAME")]
    pub service_cluster: Option<String>,
    /// Overrides the id of the bootstrap's node.
    #[arg(long, value_name = "ID")]
    pub service_node: Option<String>,
}

/// What to do with a bootstrap file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Mode {
    /// Serve.
    #[default]
    Serve,
    /// Read, compile, and exit.
    Validate,
}

/// Forms of a mesh proxy.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Proxy of one pod: everything it sends and receives.
    Sidecar(MeshArgs),
    /// Gateway.
    Router(MeshArgs),
    /// The same as `sidecar` and `router`, in pilot-agent's spelling.
    #[command(hide = true)]
    Proxy {
        /// `sidecar` or `router`.
        #[command(subcommand)]
        role: ProxyRole,
    },
    /// Sets up the redirection of this pod's traffic, as its init container.
    #[command(name = "istio-iptables", alias = "capture")]
    IstioIptables(Box<crate::capture::CaptureArgs>),
    /// Asks the admin port of the proxy in this pod, such as `request GET stats`.
    Request {
        /// GET or POST.
        method: String,
        /// Path, with or without the leading slash.
        path: String,
        /// Admin port, or the agent's for `drain`.
        #[arg(long, alias = "debug-port", default_value_t = weft_core::well_known::port::ADMIN)]
        port: u16,
    },
    /// Becomes another program that ends when the process `parent` does: how the agent starts Envoy.
    #[command(hide = true)]
    RunChild {
        /// Process id of the agent.
        parent: i32,
        /// The program.
        program: PathBuf,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Waits until the proxy in this pod is ready.
    Wait {
        /// How long to wait.
        #[arg(long = "timeoutSeconds", default_value_t = 60)]
        timeout_seconds: u64,
        /// Readiness URL.
        #[arg(long, default_value = "http://127.0.0.1:15021/healthz/ready")]
        url: String,
    },
}

/// Role, as pilot-agent's `proxy` takes it.
#[derive(Debug, Subcommand)]
pub enum ProxyRole {
    /// Proxy of one pod.
    Sidecar(MeshArgs),
    /// Gateway.
    Router(MeshArgs),
}

/// Options of a mesh proxy. Most of what it needs to know comes by environment, see `settings`.
#[derive(Debug, Clone, Default, Args)]
pub struct MeshArgs {
    /// DNS suffix of the namespace; `$(POD_NAMESPACE).svc.cluster.local` unless given.
    #[arg(long, value_name = "SUFFIX")]
    pub domain: Option<String>,
    /// Worker threads; 0 = one per core. Overrides the proxy config.
    #[arg(long)]
    pub concurrency: Option<usize>,
    /// Log level of traffic handling.
    #[arg(long = "proxyLogLevel", alias = "proxy-log-level", value_name = "LEVEL")]
    pub proxy_log_level: Option<String>,
    /// Log levels by component, `misc:error,connection:debug`; taken over where the name is a module of ours.
    #[arg(long = "proxyComponentLogLevel", alias = "proxy-component-log-level", value_name = "LEVELS")]
    pub proxy_component_log_level: Option<String>,
    /// Log level of the agent, `default:info`.
    #[arg(long = "log_output_level", alias = "log-output-level", value_name = "LEVEL")]
    pub log_output_level: Option<String>,
    /// Log lines as JSON.
    #[arg(long = "log_as_json", alias = "log-as-json")]
    pub log_as_json: bool,
    /// Name of the service, for statistics.
    #[arg(long = "serviceCluster", alias = "service-cluster", value_name = "NAME")]
    pub service_cluster: Option<String>,
    /// Which program moves the traffic.
    #[arg(long, value_enum, env = "WEFT_PROXY_ENGINE", default_value_t = Engine::Weft)]
    pub engine: Engine,
    /// Envoy, for `--engine envoy`.
    #[arg(long, env = "ENVOY_PATH", default_value = "/usr/local/bin/envoy", value_name = "PATH")]
    pub envoy_path: PathBuf,
}

/// Which program moves the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Engine {
    /// The data plane of this program.
    #[default]
    Weft,
    /// An Envoy that the agent starts.
    Envoy,
}

/// A log filter from Envoy's names of levels (`warning`, `critical`, `off`) or a filter as it is.
pub fn log_filter(level: &str) -> String {
    match level.trim().trim_start_matches("default:") {
        "warning" => "warn".to_owned(),
        "critical" => "error".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from(["weft-proxy", "-c", "a.yaml", "--concurrency", "1", "-l", "warning"]).unwrap();
        assert_eq!((cli.bootstrap.concurrency, log_filter(&cli.bootstrap.log_level).as_str()), (1, "warn"));
        let cli = Cli::try_parse_from(["weft-proxy", "-c", "a.yaml", "--mode", "validate"]).unwrap();
        assert_eq!(cli.bootstrap.mode, Mode::Validate);
        let sidecar = [
            "weft-proxy",
            "proxy",
            "sidecar",
            "--domain",
            "default.svc.cluster.local",
            "--proxyLogLevel=warning",
            "--proxyComponentLogLevel=misc:error",
            "--log_output_level=default:info",
        ];
        let cli = Cli::try_parse_from(sidecar).unwrap();
        assert!(matches!(cli.command, Some(Command::Proxy { role: ProxyRole::Sidecar(_) })));
        let cli = Cli::try_parse_from(["weft-proxy", "router", "--engine", "envoy"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Router(MeshArgs { engine: Engine::Envoy, .. }))));
        assert!(Cli::try_parse_from(["weft-proxy", "request", "GET", "stats"]).is_ok());
        // What the injector writes.
        let drain = ["weft-proxy", "request", "--debug-port=15020", "POST", "drain"];
        assert!(matches!(Cli::try_parse_from(drain).unwrap().command, Some(Command::Request { port: 15020, .. })));
    }
}
