//! `weft x precheck`: whether a cluster can have an installation.

use crate::cli::Connection;
use crate::connect::connect;
use crate::install::{self, Operator, Settings};
use crate::output;
use anyhow::Context;
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::ExitCode;
use weft_k8s_api::kinds::by_kind;
use weft_store::ApiClient;

/// Oldest version of Kubernetes whose API has all that is installed (autoscaling/v2).
const OLDEST: (u32, u32) = (1, 23);
/// What Istio prints when all is well.
const WELL: &str = "✓ No issues found when checking the cluster. Istio is safe to install or upgrade!\n\
                    To get started, check out https://istio.io/latest/docs/setup/getting-started/\n";

/// Check whether the cluster can have an installation, or a newer one.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let client = connect(&connection).await?;
    let problems = problems(&client).await?;
    if problems.is_empty() {
        output::print(WELL)?;
        return Ok(ExitCode::SUCCESS);
    }
    for problem in &problems {
        output::line(format!("Error {problem}"))?;
    }
    Ok(ExitCode::FAILURE)
}

/// What stands in the way.
///
/// # Errors
/// When the server does not answer.
pub async fn problems(client: &ApiClient) -> anyhow::Result<Vec<String>> {
    let version = client.version().await.context("the API server does not tell its version")?;
    let mut problems: Vec<String> = old(&version).into_iter().collect();
    let all = install::objects(&Settings::new(&Operator::merge(&[], &["profile=demo".to_string()], None)?)?)?;
    let mut asked = BTreeSet::new();
    for object in &all {
        let (version, kind) =
            (object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap_or_default());
        let group = version.rsplit_once('/').map_or("", |(group, _)| group);
        let Some(kind) = by_kind(group, kind) else { continue };
        if !asked.insert((kind.group, kind.plural)) {
            continue;
        }
        let may = client.may_i("create", kind.group, kind.plural).await;
        if !may.with_context(|| format!("cannot ask for the right to create {}", kind.plural))? {
            problems.push(format!(
                "[IST0139] (Cluster) Missing required permission to create {} of {version}",
                kind.plural
            ));
        }
    }
    Ok(problems)
}

fn old(version: &Value) -> Option<String> {
    let number = |name: &str| {
        let text: String = version[name].as_str()?.chars().take_while(char::is_ascii_digit).collect();
        text.parse::<u32>().ok()
    };
    let (major, minor) = (number("major")?, number("minor")?);
    ((major, minor) < OLDEST).then(|| {
        format!(
            "[IST0138] (Cluster) The Kubernetes version {major}.{minor} is not supported; {}.{} is the oldest",
            OLDEST.0, OLDEST.1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn old_servers() {
        for (version, is_old) in [
            (json!({"major": "1", "minor": "22"}), true),
            (json!({"major": "1", "minor": "23+"}), false),
            (json!({"major": "1", "minor": "36"}), false),
            (json!({"major": "2", "minor": "0"}), false),
            (json!({}), false),
        ] {
            assert_eq!(old(&version).is_some(), is_old, "{version}");
        }
    }
}
