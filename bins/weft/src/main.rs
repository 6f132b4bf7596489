//! The command line of the mesh, and the one-machine lab.
//!
//! Reading order: [`cli`] (what can be typed), `commands/` (one file per command), [`connect`] (which API server),
//! [`target`] (which pod), [`forward`] (HTTP to a port of a pod), [`manifests`] and [`references`] (what `apply` reads and
//! checks), [`analyze`] (what is wrong with a mesh's objects), [`authz`] (who may call whom), [`explain`] (what becomes of a request),
//! [`install`] (what an installation consists of), [`dump`] (a
//! proxy's config dump as tables), [`output`] (how answers look), [`waiting`] (how far something is).

mod analyze;
mod authz;
mod cli;
mod commands;
mod connect;
mod dump;
mod explain;
mod forward;
mod install;
mod manifests;
mod output;
mod references;
mod target;
mod trust;
mod waiting;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // The lab itself is this program too; it enters its namespaces before anything else happens.
    if let Some(code) = commands::up::lab_main() {
        return code;
    }
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(code) => code,
        // Whoever reads our output has seen enough (`weft get … | head`).
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}
