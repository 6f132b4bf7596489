//! `weft manifest generate` and `weft manifest diff`: the objects of an installation as YAML, and what two of them differ in.

use crate::install::operator::Source;
use crate::install::{self, Operator, Settings, difference, fields};
use crate::output;
use anyhow::{Context, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use weft_k8s_api::yaml;

/// Largest file of manifests, bytes.
const MAX_FILE: u64 = yaml::MAX_BYTES as u64;

/// What to do with manifests.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Print the objects of an installation: definitions, control plane, webhooks, gateways
    Generate(Generate),
    /// Compare the objects of two files or folders
    Diff(Diff),
}

/// Settings of the installation; what is set later wins.
#[derive(Debug, clap::Args)]
pub struct Generate {
    #[command(flatten)]
    source: Source,
    /// Folder for one file a component, instead of printing
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Two manifests. The exit code is 1 when they differ.
#[derive(Debug, clap::Args)]
pub struct Diff {
    /// A file or folder of manifests
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The other one
    #[arg(value_name = "B")]
    b: PathBuf,
}

pub fn run(action: Action) -> anyhow::Result<ExitCode> {
    match action {
        Action::Generate(args) => generate(&args),
        Action::Diff(args) => diff(&args),
    }
}

fn generate(args: &Generate) -> anyhow::Result<ExitCode> {
    let operator = Operator::read(&args.source)?;
    for path in fields::without_effect(&operator.spec) {
        output::warn(format!("{path} has no effect with Weft"));
    }
    let components = install::components(&Settings::new(&operator)?)?;
    let Some(folder) = &args.output else {
        let objects: Vec<Value> = components.into_iter().flat_map(|component| component.objects).collect();
        output::print(&written(&objects)?)?;
        return Ok(ExitCode::SUCCESS);
    };
    for component in components {
        let place = folder.join(component.name);
        std::fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        let file = place.join(format!("{}.yaml", component.name));
        std::fs::write(&file, written(&component.objects)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        output::line(format!("Writing manifest to {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn written(objects: &[Value]) -> anyhow::Result<String> {
    let mut text = String::new();
    for object in objects {
        text.push_str(&yaml::write(object).map_err(anyhow::Error::msg)?);
        text.push_str("---\n");
    }
    Ok(text)
}

fn diff(args: &Diff) -> anyhow::Result<ExitCode> {
    let text = difference::of_objects(&objects(&args.a)?, &objects(&args.b)?);
    if text.is_empty() {
        output::line("Manifests are identical")?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&format!("Differences in manifests are:\n{text}"))?;
    Ok(ExitCode::FAILURE)
}

/// The objects of a file, or of all YAML files of a folder.
fn objects(path: &Path) -> anyhow::Result<Vec<Value>> {
    let about = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if about.len() > MAX_FILE {
        bail!("{} is larger than {MAX_FILE} bytes", path.display());
    }
    let documents = crate::manifests::read(&[path.display().to_string()], true)?;
    Ok(documents.iter().map(|document| document.object.to_value()).collect())
}
