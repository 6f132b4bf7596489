//! `weft apply`: reads and checks everything, then sends it.

use crate::cli::Connection;
use crate::commands::get::resource_name;
use crate::connect::connect;
use crate::manifests::{self, Plan, Unknown};
use crate::output;
use crate::references::{REFERRED, World, refers};
use crate::target::known;
use anyhow::bail;
use clap::ValueEnum;
use std::process::ExitCode;
use weft_store::ApiClient;
use weft_store::client::{ApplyOptions, ListOptions};

/// Creates objects, or changes existing ones to match. All files are checked before anything is sent.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File, directory, or - for standard input; may be repeated
    #[arg(short, long = "filename", required = true, value_name = "FILE|DIR|-")]
    file: Vec<String>,
    /// Look into the directories of a directory
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Namespace of objects that name none
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Only check: here (client), or here and on the server (server)
    #[arg(long, value_name = "WHERE", num_args = 0..=1, require_equals = true, default_missing_value = "server")]
    dry_run: Option<DryRun>,
    /// What happens to fields that a kind does not have
    #[arg(long, value_name = "HOW", default_value = "strict")]
    validate: Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DryRun {
    /// Send nothing.
    Client,
    /// Let the server check, too.
    Server,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let documents = manifests::read(&args.file, args.recursive)?;
    let client = match args.dry_run {
        Some(DryRun::Client) => None,
        _ => Some(connect(&connection).await?),
    };
    let default = client.as_ref().map_or("default", |c| c.default_namespace()).to_string();
    let plan = match manifests::plan(documents, args.namespace.as_deref(), &default, args.validate) {
        Ok(plan) => plan,
        Err(problems) => bail!("{}", refusal(&problems)),
    };
    for warning in &plan.warnings {
        output::warn(warning);
    }
    match client {
        None => {
            for document in &plan.documents {
                output::line(format!("{} configured (client dry run)", resource_name(&document.object)))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(client) => send(&client, &plan, args.dry_run.is_some()).await,
    }
}

fn refusal(problems: &[String]) -> String {
    match problems {
        [one] => format!("{one}\nnothing was changed"),
        several => format!("{} problems, nothing was changed\n  {}", several.len(), several.join("\n  ")),
    }
}

/// Sends object by object; what the server refuses does not hold up the rest.
async fn send(client: &ApiClient, plan: &Plan, dry_run: bool) -> anyhow::Result<ExitCode> {
    let options = ApplyOptions { dry_run, field_manager: None };
    let suffix = if dry_run { " (server dry run)" } else { "" };
    let mut failed = false;
    for document in &plan.documents {
        let name = resource_name(&document.object);
        match client.apply(&document.object, &options).await {
            Ok(applied) => {
                for warning in applied.warnings.iter().filter(|w| !plan.warnings.iter().any(|said| said.ends_with(*w)))
                {
                    output::warn(format!("{name}: {warning}"));
                }
                output::line(format!("{name} {}{suffix}", applied.outcome.as_str()))?;
            }
            Err(error) => {
                failed = true;
                output::error(&anyhow::anyhow!("{}: {name}: {error}", document.location));
                if error.is_unreachable() {
                    break;
                }
            }
        }
    }
    warn_of_missing(client, plan).await;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Says which hosts, subsets and gateways do not exist (yet).
async fn warn_of_missing(client: &ApiClient, plan: &Plan) {
    if !plan.documents.iter().any(|d| refers(&d.object.kind)) {
        return;
    }
    let mut world = World::default();
    for document in &plan.documents {
        world.add(&document.object);
    }
    for kind in REFERRED {
        let Ok(kind) = known(kind) else { continue };
        match client.list(kind, None, &ListOptions::default()).await {
            Ok(list) => list.items.iter().for_each(|object| world.add(object)),
            Err(error) => return output::warn(format!("hosts and subsets were not looked up: {error}")),
        }
    }
    for document in &plan.documents {
        for missing in world.missing(&document.object) {
            output::warn(missing);
        }
    }
}
