//! `weft patch`: changes fields of an object where it is.

use crate::cli::Connection;
use crate::commands::get::{Wanted, resource_name, wanted};
use crate::connect::connect;
use crate::output;
use anyhow::{Context as _, bail};
use std::process::ExitCode;
use weft_store::client::PatchType;

/// Changes fields of an object.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kind and name, or kind/name
    #[arg(value_name = "KIND NAME", required = true)]
    what: Vec<String>,
    /// The patch, JSON or YAML
    #[arg(short, long, value_name = "PATCH", required_unless_present = "patch_file")]
    patch: Option<String>,
    /// File that holds the patch
    #[arg(long, value_name = "FILE", conflicts_with = "patch")]
    patch_file: Option<std::path::PathBuf>,
    /// How the patch is written
    #[arg(long = "type", value_enum, default_value_t = Kind::Strategic)]
    kind: Kind,
    /// Namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Patch the status instead of the object
    #[arg(long, value_enum)]
    subresource: Option<Subresource>,
}

/// Parts of an object that are written apart from the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Subresource {
    /// What its controller says of it
    Status,
}

/// How a patch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Fields to set; `null` removes one; lists are replaced
    Merge,
    /// As merge, but lists of core kinds are merged by their keys
    Strategic,
    /// A list of operations (RFC 6902)
    Json,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let text = match (&args.patch, &args.patch_file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => {
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
        }
        (None, None) => bail!("say what to change: -p PATCH or --patch-file FILE"),
    };
    let patch: serde_json::Value =
        serde_saphyr::from_str(&text).map_err(|e| anyhow::anyhow!("the patch is neither JSON nor YAML: {e}"))?;
    let client = connect(&connection).await?;
    let namespace = args.namespace.clone().unwrap_or_else(|| client.default_namespace().to_string());
    for Wanted { kind, name, .. } in wanted(&args.what)? {
        let Some(name) = name else { bail!("say which {}: its name", kind.singular) };
        // Lists have merge keys only in core kinds; the others take a strategic patch as a plain merge.
        let plain = kind.group.ends_with(".istio.io") && args.kind == Kind::Strategic;
        let patch_type = match args.kind {
            Kind::Json => PatchType::Json,
            Kind::Merge => PatchType::Merge,
            Kind::Strategic if plain => PatchType::Merge,
            Kind::Strategic => PatchType::Strategic,
        };
        let written = match args.subresource {
            Some(Subresource::Status) => {
                let Some(status) = patch.get("status") else { bail!("the patch has no field status") };
                client.patch_status(kind, &namespace, &name, status).await?
            }
            None => client.patch(kind, &namespace, &name, patch_type, &patch).await?,
        };
        for warning in &written.warnings {
            output::warn(warning);
        }
        output::line(format!("{} patched", resource_name(&written.object)))?;
    }
    Ok(ExitCode::SUCCESS)
}
