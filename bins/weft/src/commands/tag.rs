//! `weft tag`: further names of revisions, which namespaces carry so that they need not be relabelled.

use crate::cli::Connection;
use crate::commands::install::confirmed;
use crate::connect::connect;
use crate::install::apply::send;
use crate::install::cluster::{self, REVISION, revision_of};
use crate::install::settings::is_revision;
use crate::install::tags::{self, LABEL};
use crate::output::{self, Table};
use crate::target::known;
use anyhow::{Context, bail};
use serde_json::Value;
use std::process::ExitCode;
use weft_k8s_api::{Object, yaml};
use weft_store::ApiClient;
use weft_store::client::ListOptions;

/// What to do with tags.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Let a tag stand for a revision, from now on
    Set(Set),
    /// Print the objects that `tag set` would apply
    Generate(Set),
    /// Show the tags, what they stand for, and who carries them
    List,
    /// Remove a tag
    Remove(Remove),
}

/// A tag and its revision.
#[derive(Debug, clap::Args)]
pub struct Set {
    /// The tag; default stands for no revision at all: istio-injection=enabled
    tag: String,
    /// The revision
    #[arg(short, long, value_name = "NAME")]
    revision: String,
    /// Also when the tag stands for another revision; it is so anyway
    #[arg(long, hide = true)]
    overwrite: bool,
    /// Do not ask
    #[arg(short = 'y', long)]
    skip_confirmation: bool,
}

/// A tag that goes.
#[derive(Debug, clap::Args)]
pub struct Remove {
    /// The tag
    tag: String,
    /// Do not ask
    #[arg(short = 'y', long)]
    skip_confirmation: bool,
}

pub async fn run(action: Action, connection: Connection) -> anyhow::Result<ExitCode> {
    let client = connect(&connection).await?;
    match action {
        Action::Set(args) => set(&client, &args).await,
        Action::Generate(args) => {
            for object in wanted(&client, &args).await? {
                output::print(&(yaml::write(&object).map_err(anyhow::Error::msg)? + "---\n"))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Action::List => list(&client).await,
        Action::Remove(args) => remove(&client, &args).await,
    }
}

async fn wanted(client: &ApiClient, args: &Set) -> anyhow::Result<Vec<Value>> {
    if !is_revision(&args.tag) {
        bail!("tag {:?}: use lower-case letters, digits and dashes, such as prod-stable", args.tag);
    }
    let injectors = tags::configurations(client, &format!("{REVISION},!{LABEL}")).await?;
    let injectors: Vec<&Object> = injectors.iter().filter(|o| o.name().starts_with("istio-sidecar-injector")).collect();
    if args.tag != "default" && injectors.iter().any(|injector| revision_of(injector) == args.tag) {
        bail!("{:?} is a revision; a tag needs a name of its own", args.tag);
    }
    let Some(injector) = injectors.iter().find(|injector| revision_of(injector) == args.revision) else {
        let mut known: Vec<&str> = injectors.iter().map(|injector| revision_of(injector)).collect();
        known.sort_unstable();
        bail!("there is no revision {:?}; there are {}", args.revision, known.join(", "));
    };
    tags::objects(&args.tag, injector, true)
}

async fn set(client: &ApiClient, args: &Set) -> anyhow::Result<ExitCode> {
    for value in wanted(client, args).await? {
        let object: Object = serde_json::from_value(value).context("an object of the tag")?;
        send(client, &object, false).await?;
    }
    let Set { tag, revision, .. } = args;
    output::print(&format!(
        "Revision tag {tag:?} created, referencing control plane revision {revision:?}. To enable injection using this\n\
         revision tag, use 'kubectl label namespace <NAMESPACE> {REVISION}={tag}'\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &ApiClient) -> anyhow::Result<ExitCode> {
    let tags = tags::configurations(client, LABEL).await?;
    if tags.is_empty() {
        output::line("No Istio revision tag MutatingWebhookConfigurations to list")?;
        return Ok(ExitCode::SUCCESS);
    }
    let namespaces = namespaces(client).await?;
    let mut table = Table::new(["TAG", "REVISION", "NAMESPACES"]);
    for object in &tags {
        let tag = object.label(LABEL).unwrap_or_default();
        table.row([tag.to_string(), revision_of(object).to_string(), carriers(&namespaces, tag).join(",")]);
    }
    table.sort();
    table.print()?;
    Ok(ExitCode::SUCCESS)
}

async fn namespaces(client: &ApiClient) -> anyhow::Result<Vec<Object>> {
    let list = client.list(known("Namespace")?, None, &ListOptions::default()).await;
    Ok(list.context("cannot list namespaces")?.items)
}

/// Namespaces whose pods a tag is for.
fn carriers<'a>(namespaces: &'a [Object], tag: &str) -> Vec<&'a str> {
    let by_default = |namespace: &&Object| tag == "default" && namespace.label("istio-injection") == Some("enabled");
    let carries =
        |namespace: &&Object| namespace.label("istio-injection").is_none() && namespace.label(REVISION) == Some(tag);
    namespaces.iter().filter(|namespace| carries(namespace) || by_default(namespace)).map(Object::name).collect()
}

async fn remove(client: &ApiClient, args: &Remove) -> anyhow::Result<ExitCode> {
    let mut found = cluster::find(client, &format!("{LABEL}={}", args.tag)).await?;
    if found.is_empty() {
        bail!("there is no tag {:?}; weft tag list shows them", args.tag);
    }
    let namespaces = namespaces(client).await?;
    let carriers = carriers(&namespaces, &args.tag);
    if !carriers.is_empty() && !args.skip_confirmation {
        let question = format!(
            "Caution, found {} namespace(s) still injected by tag {:?}: {}. Proceed with operation?",
            carriers.len(),
            args.tag,
            carriers.join(", ")
        );
        if !confirmed(&question)? {
            output::line("Aborting operation.")?;
            return Ok(ExitCode::FAILURE);
        }
    }
    tags::hand_on_validator(client, &mut found, false).await?;
    cluster::remove(client, &found, false, |_| Ok(())).await?;
    output::line(format!("Revision tag {} removed", args.tag))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::testing::Server;
    use crate::install::webhooks::DEFAULT_VALIDATOR;
    use crate::install::{Operator, Settings};

    #[tokio::test]
    async fn the_default_tag_gives_the_validator_back() {
        for (sets, back) in
            [(vec![], true), (vec!["revision=1-0"], false), (vec!["values.global.configValidation=false"], false)]
        {
            let server = Server::start().await;
            for sets in [sets.clone(), vec!["revision=canary"]] {
                let sets: Vec<String> = sets.into_iter().map(String::from).collect();
                let operator = Operator::merge(&[], &sets, None).unwrap();
                let settings = Settings::new(&operator).unwrap();
                let owner = cluster::Owner::new(&operator, &settings);
                for object in crate::install::objects(&settings).unwrap() {
                    if object["kind"].as_str().unwrap().ends_with("WebhookConfiguration") {
                        send(&server.client, &owner.mark(object, "Pilot").unwrap(), false).await.unwrap();
                    }
                }
            }
            let validator = async || {
                let kind = known("ValidatingWebhookConfiguration").unwrap();
                server.client.get(kind, "", DEFAULT_VALIDATOR).await.ok()
            };
            let service = |object: &Object| object.body["webhooks"][0]["clientConfig"]["service"]["name"].clone();
            let tag =
                Set { tag: "default".into(), revision: "canary".into(), overwrite: true, skip_confirmation: true };
            set(&server.client, &tag).await.unwrap();
            assert_eq!(service(&validator().await.unwrap()), "istiod-canary", "{sets:?}");
            remove(&server.client, &Remove { tag: "default".into(), skip_confirmation: true }).await.unwrap();
            let left = validator().await;
            assert_eq!(left.is_some(), back, "{sets:?}");
            if let Some(left) = left {
                assert_eq!((service(&left), left.label(LABEL)), (json!("istiod"), None));
                assert_eq!(left.label(cluster::OWNER), Some("installed-state"));
            }
            assert!(tags::configurations(&server.client, LABEL).await.unwrap().is_empty());
        }
    }
    use serde_json::json;

    #[test]
    fn who_carries_a_tag() {
        let namespace = |name: &str, labels: Value| {
            serde_json::from_value::<Object>(
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
            )
            .unwrap()
        };
        let all = [
            namespace("a", json!({"istio.io/rev": "prod"})),
            namespace("b", json!({"istio.io/rev": "prod", "istio-injection": "enabled"})),
            namespace("c", json!({"istio.io/rev": "default"})),
            namespace("d", json!({})),
        ];
        assert_eq!(carriers(&all, "prod"), ["a"]);
        assert_eq!(carriers(&all, "default"), ["b", "c"]);
    }
}
