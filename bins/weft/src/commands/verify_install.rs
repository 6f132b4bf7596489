//! `weft verify-install`: whether what was installed is there and runs.

use crate::cli::Connection;
use crate::connect::connect;
use crate::install::apply::is_rolled_out;
use crate::install::operator::Source;
use crate::install::{self, Operator, Settings, cluster};
use crate::output;
use anyhow::{Context, bail};
use serde_json::Value;
use std::process::ExitCode;
use weft_k8s_api::Object;
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
                let namespace = Some(state.namespace().to_string());
                operators.push(Operator { name, namespace, spec: state.spec().clone() });
            }
        }
        if operators.is_empty() {
            bail!("no installation was kept on the cluster; name it with -f FILE or --set");
        }
    } else {
        operators.push(Operator::read(&args.source)?);
    }
    let (mut definitions, mut deployments, mut daemons, mut problems) = (0, 0, 0, 0);
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
            daemons += usize::from(kind == "DaemonSet");
        }
    }
    output::line(format!(
        "Checked {definitions} custom resource definitions\nChecked {deployments} Istio Deployments"
    ))?;
    if daemons > 0 {
        output::line(format!("Checked {daemons} Istio DaemonSets"))?;
    }
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
    let kind = cluster::kind_of(wanted.group(), &wanted.kind)
        .with_context(|| format!("{}: the kind is not known", wanted.key()))?;
    let found = match client.get(kind, wanted.namespace(), wanted.name()).await {
        Ok(found) => found,
        Err(error) if error.is_not_found() => return Ok(Some("is not there".into())),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", wanted.key())),
    };
    Ok(not_running(&found))
}

/// Why an object that is there does not do its work.
fn not_running(found: &Object) -> Option<String> {
    let status = found.body.get("status").unwrap_or(&Value::Null);
    let number = |name: &str| status[name].as_i64().unwrap_or(0);
    match found.kind.as_str() {
        "Deployment" if number("availableReplicas") < 1 => Some("none of its pods is ready".into()),
        "DaemonSet" if !is_rolled_out(found) => {
            let (ready, wanted) = (number("numberAvailable"), number("desiredNumberScheduled"));
            Some(format!("its pods are ready on {ready} of {wanted} nodes, or of an older state"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_does_not_run() {
        let daemons = |seen: i64, wanted: i64, updated: i64, available: i64| {
            json!({"observedGeneration": seen, "desiredNumberScheduled": wanted, "updatedNumberScheduled": updated,
                   "numberAvailable": available})
        };
        for (kind, status, runs) in [
            ("Deployment", json!({"availableReplicas": 1}), true),
            ("Deployment", json!({}), false),
            ("DaemonSet", daemons(2, 3, 3, 3), true),
            ("DaemonSet", daemons(2, 3, 3, 2), false),
            ("DaemonSet", daemons(2, 3, 2, 3), false),
            ("DaemonSet", daemons(1, 3, 3, 3), false),
            ("DaemonSet", json!({}), false),
            ("Service", json!({}), true),
        ] {
            let object: Object = serde_json::from_value(json!({"apiVersion": "apps/v1", "kind": kind,
                "metadata": {"name": "a", "generation": 2}, "status": status}))
            .unwrap();
            assert_eq!(not_running(&object).is_none(), runs, "{kind} {status}");
        }
    }
}
