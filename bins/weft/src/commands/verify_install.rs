//! `weft verify-install`: whether what was installed is there and runs.

use crate::cli::Connection;
use crate::connect::connect;
use crate::install::operator::Source;
use crate::install::{self, Operator, Settings, cluster};
use crate::output;
use anyhow::{Context, bail};
use serde_json::Value;
use std::process::ExitCode;
use weft_k8s_api::Object;
use weft_k8s_api::kinds::by_kind;
use weft_store::ApiClient;

/// Check that everything of an installation is there and runs: of the one that was kept, or of one that is said.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let client = connect(&connection).await?;
    let mut operators = Vec::new();
    if args.source.file.is_empty() && args.source.set.is_empty() {
        for state in cluster::states(&client, args.source.namespace.as_deref()).await? {
            let meant = args.source.revision.as_deref().is_none_or(|wanted| cluster::revision_of(&state) == wanted);
            if meant {
                let name = state.label(cluster::OWNER).unwrap_or_default().to_string();
                operators.push(Operator { name, spec: state.spec().clone() });
            }
        }
        if operators.is_empty() {
            bail!("no installation was kept on the cluster; name it with -f FILE or --set");
        }
    } else {
        operators.push(Operator::read(&args.source)?);
    }
    let (mut definitions, mut deployments, mut problems) = (0, 0, 0);
    for operator in &operators {
        for object in install::objects(&Settings::new(operator)?)? {
            let kind = object["kind"].as_str().unwrap_or_default().to_string();
            match check(&client, &object).await? {
                None => output::line(format!("✔ {} checked successfully", shown(&object)))?,
                Some(problem) => {
                    problems += 1;
                    output::line(format!("✘ {}: {problem}", shown(&object)))?;
                }
            }
            definitions += usize::from(kind == "CustomResourceDefinition");
            deployments += usize::from(kind == "Deployment");
        }
    }
    output::line(format!(
        "Checked {definitions} custom resource definitions\nChecked {deployments} Istio Deployments"
    ))?;
    if problems > 0 {
        output::line(format!("✘ {problems} objects are not as they should be"))?;
        return Ok(ExitCode::FAILURE);
    }
    output::line("✔ Istio is installed and verified successfully")?;
    Ok(ExitCode::SUCCESS)
}

fn shown(object: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let (name, namespace) = (word(&object["metadata"]["name"]), word(&object["metadata"]["namespace"]));
    let dot = if namespace.is_empty() { "" } else { "." };
    format!("{}: {name}{dot}{namespace}", word(&object["kind"]))
}

/// What is wrong with one object on the cluster.
async fn check(client: &ApiClient, wanted: &Value) -> anyhow::Result<Option<String>> {
    let wanted: Object = serde_json::from_value(wanted.clone()).context("an object of the installation")?;
    let kind =
        by_kind(wanted.group(), &wanted.kind).with_context(|| format!("{}: the kind is not known", wanted.key()))?;
    let found = match client.get(kind, wanted.namespace(), wanted.name()).await {
        Ok(found) => found,
        Err(error) if error.is_not_found() => return Ok(Some("is not there".into())),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", wanted.key())),
    };
    let status = found.body.get("status").unwrap_or(&Value::Null);
    Ok(match wanted.kind.as_str() {
        "Deployment" if status["availableReplicas"].as_i64().unwrap_or(0) < 1 => {
            Some("none of its pods is ready".into())
        }
        _ => None,
    })
}
