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
use std::collections::BTreeSet;
use std::process::ExitCode;
use weft_k8s_api::{Object, ObjectKey, crd};
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
    /// IstioOperators: what is asked for, and what keeps what was installed.
    operators: Vec<ObjectKey>,
    /// What the user should know before it goes.
    warnings: Vec<String>,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let by_file = !args.source.file.is_empty() || !args.source.set.is_empty();
    if !args.purge && !by_file && args.source.revision.is_none() {
        bail!("say what is to go: --revision NAME, -f FILE, or --purge for everything");
    }
    let client = connect(&connection).await?;
    let plan = if args.purge {
        of_everything(&client).await?
    } else if by_file {
        of_file(&client, &Operator::read(&args.source)?).await?
    } else {
        let revision = args.source.revision.as_deref().unwrap_or_default();
        of_revision(&client, revision, args.source.namespace.as_deref()).await?
    };
    if plan.found.is_empty() && plan.operators.is_empty() && !args.purge {
        bail!("nothing of that is installed");
    }
    plan.warnings.iter().for_each(output::warn);
    let question = if args.purge {
        "All Istio resources will be pruned from the cluster. Proceed?".to_string()
    } else {
        format!("{} objects will be removed. Proceed?", plan.found.len() + plan.operators.len())
    };
    if !args.skip_confirmation && !args.dry_run && !confirmed(&question)? {
        output::line("Cancelled.")?;
        return Ok(ExitCode::FAILURE);
    }
    carry_out(&client, &plan, args.dry_run).await?;
    if args.purge {
        definitions(&client, args.dry_run).await?;
    }
    output::line("✓ Uninstall complete")?;
    Ok(ExitCode::SUCCESS)
}

/// What operators are asked for goes first: they would install it anew.
async fn carry_out(client: &ApiClient, plan: &Plan, dry_run: bool) -> anyhow::Result<()> {
    if !dry_run {
        for key in &plan.operators {
            cluster::forget(client, &key.namespace, &key.name).await?;
        }
    }
    let mut found = plan.found.clone();
    tags::hand_on_validator(client, &mut found, dry_run).await?;
    let told = |object: &Object| output::line(format!("  Removed {}.", shown(object)));
    cluster::remove(client, &found, dry_run, told).await
}

async fn of_everything(client: &ApiClient) -> anyhow::Result<Plan> {
    let demo = Operator::merge(&[], &["profile=demo".to_string()], None)?;
    let rendered = install::objects(&Settings::new(&demo)?)?;
    let mut found = cluster::find(client, MANAGED).await?;
    for selector in ["app.kubernetes.io/part-of=weft", tags::LABEL] {
        found.extend(cluster::find(client, selector).await?);
    }
    found.extend(cluster::find_named(client, &rendered, "default", None).await?);
    let mut operators = cluster::requests(client, None).await?;
    operators.extend(cluster::states(client, None).await?);
    Ok(Plan { found: once(found), operators: keys(&operators), warnings: Vec::new() })
}

async fn of_file(client: &ApiClient, operator: &Operator) -> anyhow::Result<Plan> {
    let settings = Settings::new(operator)?;
    let owner = Owner::new(operator, &settings);
    let mut found = cluster::find(client, &owner.selector()).await?;
    // Without labels: by `weft manifest generate | kubectl apply -f -`.
    let rendered = install::objects(&settings)?;
    found.extend(cluster::find_named(client, &rendered, &owner.revision, Some(&owner)).await?);
    let mut operators = cluster::states(client, Some(&owner.namespace)).await?;
    operators.retain(|state| state.name() == owner.state_name());
    // The same, asked for on the cluster.
    let mut requests = cluster::requests(client, Some(&owner.namespace)).await?;
    requests.retain(|object| object.name() == owner.name && cluster::asked_revision(object) == owner.revision);
    operators.extend(requests);
    finish(client, &owner.revision, found, &operators).await
}

async fn of_revision(client: &ApiClient, revision: &str, namespace: Option<&str>) -> anyhow::Result<Plan> {
    let revision = if revision.is_empty() { "default" } else { revision };
    let mut found = cluster::find(client, &format!("{MANAGED},{}={revision}", cluster::REVISION)).await?;
    // What came by `kubectl apply` says only that it is ours.
    let ours = format!("app.kubernetes.io/part-of=weft,{}={revision}", cluster::REVISION);
    found.extend(cluster::find(client, &ours).await?);
    // An operator is not what it installs, and installs for others too: `weft operator remove`.
    found.retain(|(_, object)| object.label("name") != Some("istio-operator"));
    let mut operators = cluster::requests(client, namespace).await?;
    operators.retain(|object| cluster::asked_revision(object) == revision);
    let mut states = cluster::states(client, namespace).await?;
    states.retain(|state| cluster::revision_of(state) == revision);
    operators.extend(states);
    match namespace {
        Some(namespace) => found = cluster::of_namespace(found, namespace),
        None => one_mesh(revision, &found)?,
    }
    finish(client, revision, found, &operators).await
}

/// Several meshes may have a control plane of a revision.
fn one_mesh(revision: &str, found: &[Found]) -> anyhow::Result<()> {
    let planes = found.iter().filter(|(kind, o)| kind.kind == "Deployment" && o.label("app") == Some("istiod"));
    let namespaces: BTreeSet<&str> = planes.map(|(_, object)| object.namespace()).collect();
    if namespaces.len() > 1 {
        let namespaces: Vec<&str> = namespaces.into_iter().collect();
        bail!(
            "revision {revision} is installed in {}; say which one is to go with -n NAMESPACE",
            namespaces.join(", ")
        );
    }
    Ok(())
}

async fn finish(
    client: &ApiClient,
    revision: &str,
    mut found: Vec<Found>,
    operators: &[Object],
) -> anyhow::Result<Plan> {
    // A tag is somebody's wish for another time; without its revision it stands for nothing.
    found.retain(|(_, object)| object.label(tags::LABEL).is_none());
    let found = once(found);
    let warnings = warnings(client, revision, &found).await;
    Ok(Plan { found, operators: keys(operators), warnings })
}

fn keys(objects: &[Object]) -> Vec<ObjectKey> {
    objects.iter().map(Object::key).collect()
}

/// Each object once, in the order in which kinds go.
fn once(found: Vec<Found>) -> Vec<Found> {
    let mut seen = BTreeSet::new();
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
    use crate::install::cluster::FINALIZER;
    use crate::install::operator::KIND;
    use crate::install::testing::Server;
    use serde_json::{Value, json};

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

    /// Two meshes of the revision `default`, and others' objects beside them.
    async fn two_meshes() -> Server {
        let server = Server::start().await;
        for namespace in ["istio-system", "mesh2"] {
            server.owned(namespace, "istio", Some(("installed-state", namespace))).await;
            server.owned(namespace, "by-kubectl", None).await;
            server.request(namespace, "asked", json!({"profile": "empty"}), &[FINALIZER]).await;
            let spec = json!({"selector": {"matchLabels": {"app": "istiod"}}, "template": {
                "metadata": {"labels": {"app": "istiod"}}, "spec": {"containers": [{"name": "discovery", "image": "i"}]}}});
            let labels = json!({"app": "istiod", "istio.io/rev": "default", "app.kubernetes.io/part-of": "weft"});
            let metadata = json!({"name": "istiod", "namespace": namespace, "labels": labels});
            server
                .create(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}))
                .await;
        }
        let labels = json!({"name": "istio-operator", "istio.io/rev": "default", "app.kubernetes.io/part-of": "weft"});
        let metadata = json!({"name": "of-operator", "namespace": "mesh2", "labels": labels});
        server.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})).await;
        server
    }

    async fn asked(server: &Server) -> Vec<String> {
        let all = cluster::requests(&server.client, None).await.unwrap();
        all.iter().map(|object| object.namespace().to_string()).collect()
    }

    #[tokio::test]
    async fn a_revision_of_one_mesh() {
        let server = two_meshes().await;
        let which = of_revision(&server.client, "default", None).await.err().unwrap().to_string();
        assert!(which.contains("is installed in istio-system, mesh2; say which"), "{which}");
        let plan = of_revision(&server.client, "default", Some("mesh2")).await.unwrap();
        carry_out(&server.client, &plan, false).await.unwrap();
        // The operator stays, and has nothing more to do.
        assert_eq!(server.names().await, ["istio-system/by-kubectl", "istio-system/istio", "mesh2/of-operator"]);
        assert_eq!(asked(&server).await, ["istio-system"]);
        // Now there is only one.
        let plan = of_revision(&server.client, "default", None).await.unwrap();
        carry_out(&server.client, &plan, false).await.unwrap();
        assert_eq!(server.names().await, ["mesh2/of-operator"]);
    }

    #[tokio::test]
    async fn the_mesh_that_stays_has_the_validator() {
        let server = Server::start().await;
        for namespace in ["istio-system", "mesh2"] {
            server.webhooks(namespace, "installed-state").await;
        }
        for (namespace, wanted) in [("mesh2", (2, Some("istio-system".into()))), ("istio-system", (0, None))] {
            let plan = of_revision(&server.client, "default", Some(namespace)).await.unwrap();
            carry_out(&server.client, &plan, false).await.unwrap();
            assert_eq!(server.validators().await, wanted, "{namespace} is gone");
        }
    }

    #[tokio::test]
    async fn what_a_file_says_and_others_have() {
        let server = Server::start().await;
        let helm = json!({"name": "istio-sidecar-injector", "namespace": "mesh2", "labels": {"app.kubernetes.io/managed-by": "Helm"}});
        server.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": helm})).await;
        server.owned("mesh2", "istio", Some(("somebody", "mesh2"))).await;
        server.owned("mesh2", "former", Some(("installed-state", "mesh2"))).await;
        server.owned("istio-system", "former", Some(("installed-state", "istio-system"))).await;
        let operator = Operator::merge(&[], &["namespace=mesh2".to_string()], None).unwrap();
        let plan = of_file(&server.client, &operator).await.unwrap();
        carry_out(&server.client, &plan, false).await.unwrap();
        assert_eq!(server.names().await, ["istio-system/former", "mesh2/istio", "mesh2/istio-sidecar-injector"]);
    }

    #[tokio::test]
    async fn everything_and_what_is_asked_for() {
        let server = two_meshes().await;
        let plan = of_everything(&server.client).await.unwrap();
        carry_out(&server.client, &plan, true).await.unwrap();
        assert_eq!(asked(&server).await.len(), 2, "nothing changes without being meant");
        carry_out(&server.client, &plan, false).await.unwrap();
        definitions(&server.client, false).await.unwrap();
        assert!(server.names().await.is_empty(), "{:?}", server.names().await);
        let definition =
            server.client.get(known("CustomResourceDefinition").unwrap(), "", "istiooperators.install.istio.io").await;
        assert!(definition.is_err(), "{definition:?}");
        assert!(server.client.list(&KIND, None, &ListOptions::default()).await.is_err());
    }
}
