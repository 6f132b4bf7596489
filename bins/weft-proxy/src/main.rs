//! The data plane, with its agent built in: settings → wire → run → drain.
//!
//! Reading order: [`cli`] and [`settings`] (what it is told), [`mesh`] (a proxy of the mesh), [`bootstrap`] (a run from an
//! Envoy bootstrap file) and [`capture`] (the init container of a pod), then their parts: [`state`] (where it stands),
//! [`identity`], [`xds`], [`plane`] and [`held`] (the configuration), [`engine`] (what moves the traffic), [`dns`], [`ports`],
//! [`probes`], [`metrics`], [`admin`], [`drain`].

mod admin;
mod bootstrap;
mod capture;
mod cli;
mod client;
mod dns;
mod drain;
mod engine;
mod files;
mod health;
mod held;
mod http;
mod identity;
mod mesh;
mod metrics;
mod plane;
mod ports;
mod probes;
mod settings;
mod state;
mod xds;

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use cli::{Cli, Command, MeshArgs, ProxyRole};
use settings::{AgentSettings, Environment};
use std::process::ExitCode;
use std::time::Duration;
use weft_core::node::NodeType;
use weft_runtime::logging::{self, Format};
use weft_runtime::net;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-proxy: {error:#}");
            capture::exit_code(&error)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    // A proxy holds few megabytes in many small pieces: huge pages would make each of them two megabytes. A kernel without
    // the switch only costs memory.
    let _ = nix::sys::prctl::set_thp_disable(true);
    weft_tls::install_provider();
    set_mark()?;
    // Control traffic has this one thread; workers have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match cli.command {
        Some(Command::Sidecar(args) | Command::Proxy { role: ProxyRole::Sidecar(args) }) => {
            runtime.block_on(run_mesh(NodeType::Sidecar, &args))
        }
        Some(Command::Router(args) | Command::Proxy { role: ProxyRole::Router(args) }) => {
            runtime.block_on(run_mesh(NodeType::Router, &args))
        }
        Some(Command::IstioIptables(args)) => capture::run(&args),
        Some(Command::Request { method, path, port }) => runtime.block_on(client::request(&method, &path, port)),
        Some(Command::RunChild { parent, program, arguments }) => {
            engine::envoy::become_child(parent, &program, &arguments)
        }
        Some(Command::Wait { timeout_seconds, url }) => {
            runtime.block_on(client::wait(&url, Duration::from_secs(timeout_seconds)))
        }
        None => {
            let args = cli.bootstrap;
            let Some(path) = args.config_path.clone() else {
                bail!("say what to run: -c FILE for an Envoy bootstrap, or sidecar or router in a mesh; see --help");
            };
            start_log(&cli::log_filter(&args.log_level), args.log_json)?;
            runtime.block_on(bootstrap::run(&path, &args))
        }
    }
}

async fn run_mesh(role: NodeType, args: &MeshArgs) -> anyhow::Result<()> {
    let settings = AgentSettings::read(role, args, Environment::of_process()).map_err(|error| anyhow!(error))?;
    start_log(&settings.log_filter, settings.log_json)?;
    mesh::run(settings).await
}

fn start_log(filter: &str, json: bool) -> anyhow::Result<()> {
    let format = if json { Format::Json } else { Format::Text };
    logging::init(filter, format).map_err(|error| anyhow!(error))
}

fn set_mark() -> anyhow::Result<()> {
    let Ok(text) = std::env::var(net::MARK_VARIABLE) else { return Ok(()) };
    let mark = text
        .parse()
        .with_context(|| format!("environment variable {}: {text:?} must be a number", net::MARK_VARIABLE))?;
    net::set_mark(mark);
    Ok(())
}
