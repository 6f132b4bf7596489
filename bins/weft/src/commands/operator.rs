//! `weft operator`: an operator on the cluster, which installs what IstioOperator objects there say.

use crate::cli::Connection;
use crate::connect::connect;
use crate::install::apply::{rolled_out, send};
use crate::install::cluster::FINALIZER;
use crate::install::operator::definition;
use crate::install::reconcile;
use crate::install::{Operator, Settings, cluster};
use crate::output;
use anyhow::{Context, bail};
use serde_json::Value;
use std::process::ExitCode;
use std::time::Duration;
use weft_k8s_api::{Object, ObjectKey, yaml};
use weft_store::{ApiClient, Leadership, LeaseOptions};

/// What to do with operators.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Install an operator
    Init(Args),
    /// Remove an operator; what it installed stays
    Remove(Args),
    /// Print the objects of an operator
    Dump(Args),
    /// Be the operator; in its pod
    #[command(hide = true)]
    Server(Server),
}

/// Which operator.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Acts on objects of this revision alone
    #[arg(short, long, value_name = "NAME")]
    revision: Option<String>,
    /// Its own namespace
    #[arg(long, visible_alias = "operatorNamespace", value_name = "NS", default_value = "istio-operator")]
    operator_namespace: String,
    /// Namespaces whose objects it acts on, with commas between
    #[arg(long, visible_alias = "watchedNamespaces", value_name = "NS,…", default_value = "istio-system")]
    watched_namespaces: String,
    /// Registry and folder of its image
    #[arg(long, value_name = "HUB")]
    hub: Option<String>,
    /// Tag of its image
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Secret that its image is pulled by; may be repeated
    #[arg(long = "image-pull-secret", visible_alias = "imagePullSecrets", value_name = "NAME")]
    image_pull_secrets: Vec<String>,
    /// How long it may take until it is ready
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = weft_core::duration::parse)]
    readiness_timeout: Duration,
}

/// An operator's own settings.
#[derive(Debug, clap::Args)]
pub struct Server {
    /// Acts on objects of this revision alone
    #[arg(long, value_name = "NAME", default_value = "")]
    revision: String,
    /// Namespaces whose objects it acts on
    #[arg(long, value_name = "NS,…", value_delimiter = ',')]
    watched_namespaces: Vec<String>,
    /// Namespace of the Lease by which replicas agree on who acts: the operator's own
    #[arg(long, env = "POD_NAMESPACE", value_name = "NS", default_value = "istio-operator")]
    namespace: String,
    /// Its name in the Lease
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "operator")]
    pod_name: String,
}

/// Time after which another replica takes over from one that says nothing.
const LEASE: Duration = Duration::from_secs(15);

pub async fn run(action: Action, connection: Connection) -> anyhow::Result<ExitCode> {
    match action {
        Action::Init(args) => init(&connect(&connection).await?, &args).await,
        Action::Remove(args) => remove(&connect(&connection).await?, &args).await,
        Action::Dump(args) => {
            for object in objects(&args)? {
                output::print(&(yaml::write(&object).map_err(anyhow::Error::msg)? + "---\n"))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Action::Server(args) => serve(args).await,
    }
}

/// The definition of the kind, and the operator.
fn objects(args: &Args) -> anyhow::Result<Vec<Value>> {
    let given = [("revision", &args.revision), ("hub", &args.hub), ("tag", &args.tag)];
    let mut sets: Vec<String> =
        given.iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?))).collect();
    for (at, name) in args.image_pull_secrets.iter().enumerate() {
        sets.push(format!("values.global.imagePullSecrets[{at}]={name}"));
    }
    let settings = Settings::new(&Operator::merge(&[], &sets, None)?)?;
    let mut all = vec![definition()];
    all.extend(reconcile::deployment(&settings, &args.operator_namespace, &args.watched_namespaces));
    Ok(all)
}

async fn init(client: &ApiClient, args: &Args) -> anyhow::Result<ExitCode> {
    output::line(format!("Installing operator controller in namespace: {}", args.operator_namespace))?;
    output::line(format!("Operator controller will watch namespaces: {}", args.watched_namespaces))?;
    let mut last = None;
    for value in objects(args)? {
        let object: Object = serde_json::from_value(value).context("an object of the operator")?;
        send(client, &object, false).await?;
        last = Some(object);
    }
    if let Some(deployment) = last {
        rolled_out(client, "Istio operator", &deployment, args.readiness_timeout).await?;
    }
    output::line("✓ Istio operator installed\n✓ Installation complete")?;
    Ok(ExitCode::SUCCESS)
}

async fn remove(client: &ApiClient, args: &Args) -> anyhow::Result<ExitCode> {
    // Neither the kind, of which there may be objects, nor the namespace, which may hold other operators.
    let own: Vec<Value> = objects(args)?.into_iter().filter(|object| object["kind"] != "Namespace").collect();
    let revision = args.revision.as_deref().unwrap_or("default");
    let found = cluster::find_named(client, &own, revision, None).await?;
    if found.is_empty() {
        bail!("there is no operator of revision {revision} in {}", args.operator_namespace);
    }
    for object in waiting(client, revision, &args.watched_namespaces).await? {
        output::warn(format!(
            "{object} stays as it is, and when it is deleted it waits for an operator: weft uninstall --revision {revision} -n {} \
             removes it and what it installed",
            object.namespace
        ));
    }
    cluster::remove(client, &found, false, |_| Ok(())).await?;
    output::line("✓ Removal complete")?;
    Ok(ExitCode::SUCCESS)
}

/// IstioOperators that nobody lets go any more without an operator of their revision.
async fn waiting(client: &ApiClient, revision: &str, namespaces: &str) -> anyhow::Result<Vec<ObjectKey>> {
    let watched: Vec<&str> = namespaces.split(',').filter(|namespace| !namespace.is_empty()).collect();
    let mut all = cluster::requests(client, None).await?;
    all.retain(|object| {
        let held = object.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER);
        let here = watched.is_empty() || watched.contains(&object.namespace());
        held && here && cluster::asked_revision(object) == revision
    });
    Ok(all.iter().map(Object::key).collect())
}

async fn serve(args: Server) -> anyhow::Result<ExitCode> {
    weft_runtime::logging::init("info", weft_runtime::logging::Format::Text).map_err(anyhow::Error::msg)?;
    let client = match ApiClient::in_cluster() {
        Ok(client) => client,
        Err(_) => ApiClient::infer().await.context("connection to the API server")?,
    };
    tracing::info!("operator of revision {:?} for {}", args.revision, args.watched_namespaces.join(", "));
    let lease = LeaseOptions {
        namespace: args.namespace,
        name: reconcile::lease_name(&args.revision),
        identity: LeaseOptions::identity_of(&args.pod_name),
        duration: LEASE,
    };
    let leadership = Leadership::start(&client, lease);
    let stopped = tokio::select! {
        () = reconcile::lead(&client, &leadership, &args.revision, &args.watched_namespaces) => Ok(()),
        stop = weft_runtime::signal::stop() => stop.map(drop).context("signals"),
    };
    leadership.release().await;
    stopped.map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::testing::Server;
    use serde_json::json;

    #[tokio::test]
    async fn who_waits_for_an_operator() {
        let server = Server::start().await;
        for (namespace, name, revision, finalizers) in [
            ("istio-system", "held", "", &[FINALIZER][..]),
            ("istio-system", "free", "", &[]),
            ("istio-system", "canary", "canary", &[FINALIZER]),
            ("mesh2", "elsewhere", "", &[FINALIZER]),
        ] {
            server.request(namespace, name, json!({"revision": revision}), finalizers).await;
        }
        for (revision, namespaces, wanted) in [
            ("default", "istio-system", vec!["held"]),
            ("canary", "istio-system,mesh2", vec!["canary"]),
            ("default", "", vec!["held", "elsewhere"]),
        ] {
            let found = waiting(&server.client, revision, namespaces).await.unwrap();
            assert_eq!(
                found.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(),
                wanted,
                "{revision} {namespaces}"
            );
        }
    }
}
