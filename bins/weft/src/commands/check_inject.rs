//! `weft x check-inject`: would a pod get a proxy, from which control plane, and what says so? By the webhook configurations that
//! the API server goes by, and the settings of the injectors behind them.

use crate::cli::{Connection, ControlPlane};
use crate::commands::get::document;
use crate::commands::injector::{configurations, selects, webhooks};
use crate::connect::connect;
use crate::install::cluster::revision_of;
use crate::output::{self, Format, Table};
use crate::target::{self, known};
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::process::ExitCode;
use weft_inject::Config;
use weft_inject::decide::{Decision, decide};
use weft_k8s_api::Object;
use weft_store::ApiClient;
use weft_store::client::ListOptions;

/// Name of the ConfigMap with an injector's settings, where it has no label of a revision.
const SETTINGS: &str = "istio-sidecar-injector";

/// Says whether a pod would get a proxy. The exit code is 1 when it would not, or more than one.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// POD, POD.NAMESPACE, deploy/NAME …
    #[arg(value_name = "POD[.NS]", required_unless_present = "labels")]
    target: Option<String>,
    /// Labels of a pod that there is not yet, as app=a,version=v1
    #[arg(short, long, value_name = "LABELS", conflicts_with = "target")]
    labels: Option<String>,
    /// Namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    #[command(flatten)]
    control_plane: ControlPlane,
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// What an injector would do.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    webhook: String,
    revision: String,
    injects: bool,
    why: String,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let client = connect(&connection).await?;
    let pod = match (&args.target, &args.labels) {
        (Some(text), _) => target::resolve(&client, &target::parse(text, args.namespace.as_deref(), true)?).await?,
        (None, labels) => {
            let namespace = args.namespace.clone().unwrap_or_else(|| client.default_namespace().to_string());
            with_labels(labels.as_deref().unwrap_or_default(), &namespace)?
        }
    };
    let namespace = client.get(known("Namespace")?, "", pod.namespace()).await;
    let namespace = namespace.with_context(|| format!("namespace {}", pod.namespace()))?;
    let settings = settings(&client, &args.control_plane.istio_namespace).await?;
    let hooks = configurations(&client).await?;
    let answers: Vec<Answer> = hooks.iter().map(|hook| answer(hook, &namespace, &pod, &settings)).collect();
    let count = answers.iter().filter(|answer| answer.injects).count();
    if args.output == Format::Table {
        show(&answers)?;
    } else {
        let value =
            |a: &Answer| json!({"webhook": a.webhook, "revision": a.revision, "injected": a.injects, "reason": a.why});
        document(&answers.iter().map(value).collect(), args.output == Format::Yaml)?;
    }
    if count > 1 {
        bail!("several injectors would put a proxy into the pod; only one may");
    }
    Ok(if count == 1 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A pod of these labels.
fn with_labels(text: &str, namespace: &str) -> anyhow::Result<Object> {
    let pair = |word: &str| {
        let (name, value) = word.split_once('=').with_context(|| format!("{word:?} is not NAME=VALUE"))?;
        Ok((name.to_string(), Value::from(value)))
    };
    let labels = text.split(',').map(pair).collect::<anyhow::Result<serde_json::Map<_, _>>>()?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "namespace": namespace, "labels": labels},
                     "spec": {"containers": []}});
    Ok(serde_json::from_value(pod)?)
}

/// Settings of the injectors, by revision.
async fn settings(client: &ApiClient, root: &str) -> anyhow::Result<Vec<(String, Config)>> {
    let listed = client.list(known("ConfigMap")?, Some(root), &ListOptions::default()).await;
    let configs = listed.context("cannot list config maps")?.items;
    let injectors = configs.iter().filter(|config| config.name().starts_with(SETTINGS));
    let read = |config: &Object| {
        let text = config.body.get("data")?["config"].as_str()?;
        Some((revision_of(config).to_string(), Config::parse(text).ok()?))
    };
    Ok(injectors.filter_map(read).collect())
}

/// What an injector would do to a pod, and the label that decides it.
fn answer(hook: &Object, namespace: &Object, pod: &Object, settings: &[(String, Config)]) -> Answer {
    let revision = revision_of(hook).to_string();
    let said =
        |injects: bool, why: String| Answer { webhook: hook.name().into(), revision: revision.clone(), injects, why };
    let (of_namespace, of_pod) = ("namespaceSelector", "objectSelector");
    let chosen =
        webhooks(hook).find(|(hook, _)| selects(&hook[of_namespace], namespace) && selects(&hook[of_pod], pod));
    let Some((webhook, _)) = chosen else { return said(false, refusal(hook, namespace, pod)) };
    let default = Config::default();
    let config = settings.iter().find(|(of, _)| *of == revision).map_or(&default, |(_, config)| config);
    if let Decision::Skip(why) = decide(config, &pod.to_value(), pod.namespace()) {
        return said(false, format!("The pod comes to the injector, which leaves it as it is: {why}"));
    }
    let labels = [("Namespace", of_namespace, namespace), ("Pod", of_pod, pod)];
    let found = labels.iter().filter_map(|(word, selector, object)| {
        let (name, value) = wanted(&webhook[*selector]).find(|(name, _)| object.label(name).is_some())?;
        Some(format!("{word} label {name}={value} matches"))
    });
    let found: Vec<String> = found.collect();
    said(true, if found.is_empty() { "All pods of such namespaces get a proxy".into() } else { found.join("; ") })
}

/// Labels that a selector asks for.
fn wanted(selector: &Value) -> impl Iterator<Item = (&str, &str)> {
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    expressions.filter(|expression| expression["operator"] == "In").flat_map(|expression| {
        let values = expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str);
        values.filter_map(|value| Some((expression["key"].as_str()?, value)))
    })
}

/// Why none of the webhooks is for the pod.
fn refusal(hook: &Object, namespace: &Object, pod: &Object) -> String {
    for (word, object, name) in [("Namespace", namespace, "istio-injection"), ("Pod", pod, "sidecar.istio.io/inject")] {
        if let Some(value) = object.label(name).filter(|value| matches!(*value, "false" | "disabled")) {
            return format!("{word} label {name}={value} prevents injection");
        }
    }
    let list = |selector: &str| {
        let mut all: Vec<String> = webhooks(hook)
            .flat_map(|(hook, _)| wanted(&hook[selector]))
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        all.sort();
        all.dedup();
        all.join(", ")
    };
    format!("No matching namespace labels ({}) or pod labels ({})", list("namespaceSelector"), list("objectSelector"))
}

fn show(answers: &[Answer]) -> anyhow::Result<()> {
    if answers.is_empty() {
        return output::line("No Istio injection hooks present.");
    }
    let mut table = Table::new(["WEBHOOK", "REVISION", "INJECTED", "REASON"]);
    for answer in answers {
        table.row([&*answer.webhook, &*answer.revision, if answer.injects { "✔" } else { "✘" }, &*answer.why]);
    }
    table.print()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::{Operator, Settings};

    #[test]
    fn what_decides() {
        let hook = |set: &str| -> Object {
            let operator = Operator::merge(&[], &[set.to_string()], None).unwrap();
            let all = crate::install::objects(&Settings::new(&operator).unwrap()).unwrap();
            let found = all.into_iter().find(|object| object["kind"] == "MutatingWebhookConfiguration").unwrap();
            serde_json::from_value(found).unwrap()
        };
        let (default, canary) = (hook("profile=default"), hook("revision=canary"));
        let namespace = |labels: Value| -> Object {
            let value = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "labels": labels}});
            serde_json::from_value(value).unwrap()
        };
        let never = Config::parse("neverInjectSelector: [{matchLabels: {job: batch}}]").unwrap();
        let settings = [("default".to_string(), never)];
        for (hook, labels, pod, injects, why) in [
            (
                &default,
                json!({"istio-injection": "enabled"}),
                "app=a",
                true,
                "Namespace label istio-injection=enabled matches",
            ),
            (
                &canary,
                json!({"istio-injection": "enabled"}),
                "app=a",
                false,
                "No matching namespace labels (istio.io/rev=canary)",
            ),
            (&canary, json!({"istio.io/rev": "canary"}), "app=a", true, "Namespace label istio.io/rev=canary matches"),
            (
                &default,
                json!({}),
                "sidecar.istio.io/inject=true",
                true,
                "Pod label sidecar.istio.io/inject=true matches",
            ),
            (&default, json!({"istio-injection": "disabled"}), "app=a", false, "istio-injection=disabled prevents"),
            (
                &default,
                json!({"istio-injection": "enabled"}),
                "sidecar.istio.io/inject=false",
                false,
                "Pod label sidecar.istio.io/inject=false prevents",
            ),
            (&default, json!({"istio-injection": "enabled"}), "job=batch", false, "neverInjectSelector"),
            (&default, json!({}), "app=a", false, "or pod labels (istio.io/rev=default, sidecar.istio.io/inject=true)"),
        ] {
            let got = answer(hook, &namespace(labels.clone()), &with_labels(pod, "n").unwrap(), &settings);
            assert!(got.injects == injects && got.why.contains(why), "{labels} {pod}: {got:?}");
        }
        assert!(with_labels("app", "n").unwrap_err().to_string().contains("NAME=VALUE"));
    }
}
