//! `weft uninstall`: a revision, what a file installed, or everything.

use crate::cli::Connection;
use crate::commands::install::confirmed;
use crate::commands::proxy_status;
use crate::connect::connect;
use crate::install::apply::shown;
use crate::install::cluster::{self, Found, MANAGED, Owner};
use crate::install::operator::Source;
use crate::install::{self, Operator, Settings, tags};
use crate::output;
use crate::target::known;
use anyhow::{Context, bail};
use std::process::ExitCode;
use weft_k8s_api::{ObjectKey, crd};
use weft_store::ApiClient;
use weft_store::client::ListOptions;
use weft_store::memory::DeleteOptions;

/// Remove an installation. Definitions of kinds, and with them all configuration, stay unless --purge is given; namespaces stay.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Remove everything of all revisions, and all configuration
    #[arg(long)]
    purge: bool,
    /// Do not ask
    #[arg(short = 'y', long)]
    skip_confirmation: bool,
    /// Show what would go, remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// What goes.
struct Plan {
    found: Vec<Found>,
    /// Objects that keep what was installed.
    states: Vec<ObjectKey>,
    /// What the user should know before it goes.
    warnings: Vec<String>,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let by_file = !args.source.file.is_empty() || !args.source.set.is_empty();
    if !args.purge && !by_file && args.source.revision.is_none() {
        bail!("say what is to go: --revision NAME, -f FILE, or --purge for everything");
    }
    let client = connect(&connection).await?;
    let plan = plan(&client, &args, by_file).await?;
    if plan.found.is_empty() && !args.purge {
        bail!("nothing of that is installed");
    }
    plan.warnings.iter().for_each(output::warn);
    let question = if args.purge {
        "All Istio resources will be pruned from the cluster. Proceed?".to_string()
    } else {
        format!("{} objects will be removed. Proceed?", plan.found.len())
    };
    if !args.skip_confirmation && !args.dry_run && !confirmed(&question)? {
        output::line("Cancelled.")?;
        return Ok(ExitCode::FAILURE);
    }
    cluster::remove(&client, &plan.found, args.dry_run, |object| output::line(format!("  Removed {}.", shown(object))))
        .await?;
    if !args.dry_run {
        for state in &plan.states {
            cluster::forget(&client, &state.namespace, &state.name).await?;
        }
    }
    if args.purge {
        definitions(&client, args.dry_run).await?;
    }
    output::line("✓ Uninstall complete")?;
    Ok(ExitCode::SUCCESS)
}

async fn plan(client: &ApiClient, args: &Args, by_file: bool) -> anyhow::Result<Plan> {
    let states = cluster::states(client, None).await?;
    if args.purge {
        let demo = Operator::merge(&[], &["profile=demo".to_string()], None)?;
        let rendered = install::objects(&Settings::new(&demo)?)?;
        let mut found = cluster::find(client, MANAGED).await?;
        for selector in ["app.kubernetes.io/part-of=weft", tags::LABEL] {
            found.extend(cluster::find(client, selector).await?);
        }
        found.extend(cluster::find_named(client, &rendered, "default").await?);
        let states = states.iter().map(|state| state.key()).collect();
        return Ok(Plan { found: once(found), states, warnings: Vec::new() });
    }
    let (owner, revision, mut found) = if by_file {
        let operator = Operator::read(&args.source)?;
        let settings = Settings::new(&operator)?;
        let owner = Owner::new(&operator, &settings);
        let mut found = cluster::find(client, &owner.selector()).await?;
        // Without labels: by `weft manifest generate | kubectl apply -f -`.
        found.extend(cluster::find_named(client, &install::objects(&settings)?, &owner.revision).await?);
        (Some(owner.state_name()), owner.revision.clone(), found)
    } else {
        let revision = args.source.revision.clone().unwrap_or_default();
        let mut found = cluster::find(client, &format!("{MANAGED},{}={revision}", cluster::REVISION)).await?;
        // What came by `kubectl apply` says only that it is ours.
        let ours = format!("app.kubernetes.io/part-of=weft,{}={revision}", cluster::REVISION);
        found.extend(cluster::find(client, &ours).await?);
        (None, revision, found)
    };
    // A tag is somebody's wish for another time; without its revision it stands for nothing.
    found.retain(|(_, object)| object.label(tags::LABEL).is_none());
    let states = states.iter().filter(|state| match &owner {
        Some(name) => state.name() == name,
        None => cluster::revision_of(state) == revision,
    });
    let states = states.map(|state| state.key()).collect();
    let found = once(found);
    let warnings = warnings(client, &revision, &found).await;
    Ok(Plan { found, states, warnings })
}

/// Each object once, in the order in which kinds go.
fn once(found: Vec<Found>) -> Vec<Found> {
    let mut seen = std::collections::BTreeSet::new();
    let mut all: Vec<Found> = found.into_iter().filter(|(_, object)| seen.insert(object.key())).collect();
    // What would hold up the rest goes first, whoever found it.
    all.sort_by_key(|(kind, _)| !kind.kind.ends_with("WebhookConfiguration"));
    all
}

/// Who still needs what goes.
async fn warnings(client: &ApiClient, revision: &str, found: &[Found]) -> Vec<String> {
    let mut all = Vec::new();
    let planes: Vec<_> = found
        .iter()
        .filter(|(kind, object)| kind.kind == "Deployment" && object.label("app") == Some("istiod"))
        .collect();
    for (_, plane) in planes {
        let Ok(pods) = proxy_status::control_plane(client, plane.namespace()).await else { continue };
        let pods: Vec<_> = pods.into_iter().filter(|pod| cluster::revision_of(pod) == revision).collect();
        if pods.is_empty() {
            continue;
        }
        if let Ok(proxies) = proxy_status::proxies(client, &pods).await
            && !proxies.is_empty()
        {
            let names: Vec<&str> = proxies.iter().take(10).map(|proxy| proxy.proxy.as_str()).collect();
            all.push(format!(
                "{} proxies are connected to the control plane of revision {revision}: {}; they keep their configuration and get no new one",
                proxies.len(),
                names.join(", ")
            ));
        }
    }
    let options = ListOptions {
        labels: Some(format!("{},{}={revision}", tags::LABEL, cluster::REVISION)),
        ..ListOptions::default()
    };
    if let Ok(kind) = known("MutatingWebhookConfiguration")
        && let Ok(list) = client.list(kind, None, &options).await
    {
        let names: Vec<&str> = list.items.iter().filter_map(|object| object.label(tags::LABEL)).collect();
        if !names.is_empty() {
            all.push(format!(
                "tags stand for revision {revision}: {}; weft tag set or weft tag remove",
                names.join(", ")
            ));
        }
    }
    all
}

/// Deletes the definitions of all kinds of the mesh, and so all objects of them.
async fn definitions(client: &ApiClient, dry_run: bool) -> anyhow::Result<()> {
    let kind = known("CustomResourceDefinition")?;
    let mut names: Vec<String> = crd::defined().map(|kind| format!("{}.{}", kind.plural, kind.group)).collect();
    names.push(install::operator::definition()["metadata"]["name"].as_str().map(str::to_string).unwrap_or_default());
    let options = DeleteOptions { dry_run, ..DeleteOptions::default() };
    for name in names {
        match client.delete(kind, "", &name, &options).await {
            Ok(_) => output::line(format!("  Removed CustomResourceDefinition::{name}."))?,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error).with_context(|| format!("cannot delete the definition {name}")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use weft_k8s_api::Object;

    #[test]
    fn each_object_goes_once_and_webhooks_go_first() {
        let found = |kind: &str, name: &str| -> Found {
            let value: Value = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
            (known(kind).unwrap(), serde_json::from_value::<Object>(value).unwrap())
        };
        let all = vec![
            found("Service", "a"),
            found("Service", "a"),
            found("ValidatingWebhookConfiguration", "v"),
            found("Service", "b"),
        ];
        let names: Vec<String> = once(all).iter().map(|(_, object)| object.name().to_string()).collect();
        assert_eq!(names, ["v", "a", "b"]);
    }
}
