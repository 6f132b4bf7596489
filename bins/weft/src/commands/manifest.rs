//! `weft manifest generate`: the objects of an installation, as YAML.

use crate::install::{self, Settings};
use crate::output;
use anyhow::Context;
use std::process::ExitCode;
use weft_k8s_api::yaml;

/// Largest settings file, bytes.
const MAX_FILE: u64 = 4 << 20;

/// What to do with manifests.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Print the objects of an installation: definitions, control plane, webhooks, gateways
    Generate(Args),
}

/// Settings of the installation; what is set later wins.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File with an IstioOperator object, or its spec; may be repeated
    #[arg(short, long = "filename", value_name = "FILE")]
    file: Vec<String>,
    /// A setting, such as profile=demo, hub=registry/weft, revision=canary, meshConfig.accessLogFile=/dev/stdout; may be repeated
    #[arg(short, long = "set", value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Revision of the control plane
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
}

pub fn run(action: Action) -> anyhow::Result<ExitCode> {
    let Action::Generate(args) = action;
    let mut files = Vec::new();
    for file in &args.file {
        let about = std::fs::metadata(file).with_context(|| format!("cannot read {file}"))?;
        anyhow::ensure!(about.len() <= MAX_FILE, "{file} is larger than {MAX_FILE} bytes");
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
        files.push(yaml::value(&text).map_err(|error| anyhow::anyhow!("{file}: {error}"))?);
    }
    let mut sets = args.set;
    sets.extend(args.revision.map(|revision| format!("revision={revision}")));
    let settings = Settings::read(&files, &sets)?;
    let mut text = String::new();
    for object in install::objects(&settings) {
        text.push_str(&yaml::write(&object).map_err(anyhow::Error::msg)?);
        text.push_str("---\n");
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
