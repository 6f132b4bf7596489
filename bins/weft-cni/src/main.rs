//! Redirection without an init container: a CNI plugin, which the container runtime calls for every pod that it makes, and the
//! agent that keeps the plugin on a node.
//!
//! One program. With `CNI_COMMAND` in its environment it is the plugin ([`plugin`]: the protocol; [`pod`]: which pods, and what
//! is redirected; [`network`]: in their namespace). With arguments it is the agent ([`install`], [`conflist`]: the plugin in the
//! node's network configuration; [`repair`]: pods that started before the plugin was there).

mod conflist;
mod install;
mod network;
mod plugin;
mod pod;
mod repair;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "weft-cni",
    version,
    about = "Redirects the traffic of pods to their proxies, without an init container"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put the plugin on this node and keep it there until told to stop; then take it away
    Install(install::InstallArgs),
    /// Succeeds when the plugin is in this node's network configuration: for probes
    Ready(install::Place),
}

fn main() -> ExitCode {
    weft_tls::install_provider();
    // Set by runtimes, and by nothing else.
    if std::env::var_os("CNI_COMMAND").is_some() {
        return plugin::main();
    }
    let done = match Cli::parse().command {
        Command::Install(args) => install::run(&args),
        Command::Ready(place) => install::ready(&place),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-cni: {error:#}");
            ExitCode::FAILURE
        }
    }
}
