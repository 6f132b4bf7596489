//! `weft x injector list`: which namespaces' pods get a proxy, from which control plane, and which pods have one of it.

use crate::cli::Connection;
use crate::commands::get::document;
use crate::connect::connect;
use crate::install::cluster::{REVISION, revision_of};
use crate::output::{self, Format, Table};
use crate::target::{self, has_proxy, known};
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use weft_inject::as_bool;
use weft_k8s_api::Object;
use weft_store::ApiClient;
use weft_store::client::ListOptions;

/// End of the names of the webhooks that put proxies into pods.
const INJECTOR: &str = "sidecar-injector.istio.io";
/// Those that choose by the labels of namespaces; others choose by those of pods.
const BY_NAMESPACE: [&str; 3] = ["rev.namespace.", "namespace.", "auto."];
/// Namespaces that nobody wants proxies in.
const OF_THE_CLUSTER: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];
/// Annotation of a pod with a proxy: what was put into it, by which revision.
const STATUS: &str = "sidecar.istio.io/status";
const INJECT: &str = "sidecar.istio.io/inject";
/// Word for pods without a proxy.
const NONE: &str = "<non-Istio>";

/// What is asked of injectors.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Show namespaces, injectors, and the revisions of pods' proxies
    List(Args),
}

/// What is shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    #[command(flatten)]
    control_plane: crate::cli::ControlPlane,
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

pub async fn run(action: Action, connection: Connection) -> anyhow::Result<ExitCode> {
    let Action::List(args) = action;
    let client = connect(&connection).await?;
    let mut namespaces = all(&client, "Namespace", "").await?;
    namespaces.retain(|namespace| match &args.namespace {
        Some(wanted) => namespace.name() == wanted,
        None => !OF_THE_CLUSTER.contains(&namespace.name()) && namespace.name() != args.control_plane.istio_namespace,
    });
    namespaces.sort_by_key(|namespace| namespace.name().to_string());
    let hooks = configurations(&client).await?;
    let pods = target::pods(&client, args.namespace.as_deref(), "").await?;
    let images = images(&all(&client, "ConfigMap", REVISION).await?);
    let (rows, injectors) = (rows(&namespaces, &hooks, &pods), injectors(&namespaces, &hooks, &images));
    if args.output != Format::Table {
        let value = json!({
            "namespaces": rows.iter().map(Row::to_value).collect::<Vec<_>>(),
            "injectors": injectors.iter().map(Injector::to_value).collect::<Vec<_>>(),
        });
        document(&value, args.output == Format::Yaml)?;
        return Ok(ExitCode::SUCCESS);
    }
    show(&rows, &injectors)?;
    Ok(ExitCode::SUCCESS)
}

/// The configurations by which API servers send pods to injectors, by name.
///
/// # Errors
/// When the server does not answer or the caller may not look.
pub(super) async fn configurations(client: &ApiClient) -> anyhow::Result<Vec<Object>> {
    let mut hooks = all(client, "MutatingWebhookConfiguration", "").await?;
    hooks.retain(|hook| webhooks(hook).any(|(_, name)| name.ends_with(INJECTOR)));
    hooks.sort_by_key(|hook| hook.name().to_string());
    Ok(hooks)
}

async fn all(client: &ApiClient, kind: &str, labels: &str) -> anyhow::Result<Vec<Object>> {
    let kind = known(kind)?;
    let options =
        ListOptions { labels: Some(labels.to_string()).filter(|text| !text.is_empty()), ..ListOptions::default() };
    let listed = client.list(kind, None, &options).await;
    Ok(listed.with_context(|| format!("cannot list {}", kind.plural))?.items)
}

/// A namespace, and its pods by the revision of their proxies.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    namespace: String,
    /// Empty: its pods get no proxy. `MISSING/NAME`: no injector has what it asks for.
    revision: String,
    pods: BTreeMap<String, Count>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    pods: usize,
    /// They refuse a proxy.
    refuse: usize,
    /// They would get another one, or one at all.
    restart: usize,
}

impl Row {
    fn to_value(&self) -> Value {
        let count = |(revision, count): (&String, &Count)| json!({"revision": revision, "pods": count.pods, "injectionDisabled": count.refuse, "needRestart": count.restart});
        json!({"namespace": self.namespace, "revision": self.revision, "pods": self.pods.iter().map(count).collect::<Vec<_>>()})
    }

    /// `default: 3`, `<non-Istio>: 2 NEEDS RESTART: 1`.
    fn lines(&self) -> Vec<String> {
        let line = |(revision, count): (&String, &Count)| {
            let mut text = format!("{revision}: {}", count.pods);
            if count.refuse > 0 {
                text.push_str(&format!(" (injection disabled: {})", count.refuse));
            }
            if count.restart > 0 {
                text.push_str(&format!(" NEEDS RESTART: {}", count.restart));
            }
            text
        };
        self.pods.iter().map(line).collect()
    }
}

/// Namespaces that are injected, or have pods with a proxy.
fn rows(namespaces: &[Object], hooks: &[Object], pods: &[Object]) -> Vec<Row> {
    let row = |namespace: &Object| {
        let revision = revision(namespace, hooks);
        let mut counts: BTreeMap<String, Count> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| pod.namespace() == namespace.name() && !ended(pod)) {
            let own = revision_of_pod(pod);
            let count = counts.entry(own.clone().unwrap_or_else(|| NONE.into())).or_default();
            count.pods += 1;
            if own.is_none() && refuses(pod) {
                count.refuse += 1;
            } else if own.as_deref().unwrap_or_default() != revision && !(own.is_none() && has_proxy(pod)) {
                count.restart += 1;
            }
        }
        Row { namespace: namespace.name().into(), revision, pods: counts }
    };
    let shown = |row: &Row| !row.revision.is_empty() || row.pods.keys().any(|revision| revision != NONE);
    namespaces.iter().map(row).filter(shown).collect()
}

fn ended(pod: &Object) -> bool {
    matches!(target::phase(pod), "Succeeded" | "Failed")
}

fn refuses(pod: &Object) -> bool {
    // The label counts before the annotation, which is older.
    let asked = pod.label(INJECT).or_else(|| pod.annotation(INJECT)).and_then(as_bool);
    asked == Some(false) || pod.spec()["hostNetwork"] == true
}

fn revision_of_pod(pod: &Object) -> Option<String> {
    let status: Value = serde_json::from_str(pod.annotation(STATUS)?).ok()?;
    Some(status["revision"].as_str().filter(|text| !text.is_empty()).unwrap_or("default").to_string())
}

/// The revision whose injector a namespace's labels choose.
fn revision(namespace: &Object, hooks: &[Object]) -> String {
    if let Some(hook) = hooks.iter().find(|hook| chooses(hook, namespace)) {
        return revision_of(hook).to_string();
    }
    match (namespace.label(REVISION), namespace.label("istio-injection")) {
        (Some(revision), _) => format!("MISSING/{revision}"),
        (None, Some("enabled")) => "MISSING/istio-injection".into(),
        (None, _) => String::new(),
    }
}

/// Whether one of a configuration's webhooks is for all pods of a namespace.
fn chooses(hook: &Object, namespace: &Object) -> bool {
    let by_namespace = |name: &str| name.strip_suffix(INJECTOR).is_some_and(|prefix| BY_NAMESPACE.contains(&prefix));
    webhooks(hook).any(|(webhook, name)| by_namespace(name) && selects(&webhook["namespaceSelector"], namespace))
}

/// The webhooks of a configuration, with their names.
pub(super) fn webhooks(hook: &Object) -> impl Iterator<Item = (&Value, &str)> {
    let all = hook.body.get("webhooks").and_then(Value::as_array).into_iter().flatten();
    all.map(|webhook| (webhook, webhook["name"].as_str().unwrap_or_default()))
}

/// Whether a label selector of Kubernetes selects an object; one that cannot be read selects nothing.
pub(super) fn selects(selector: &Value, object: &Object) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let mut equal = equal.map(|(name, value)| object.label(name) == value.as_str());
    let mut expressions = selector["matchExpressions"].as_array().into_iter().flatten().map(|expression| {
        let found = expression["key"].as_str().and_then(|key| object.label(key));
        let listed = || {
            let values = expression["values"].as_array().into_iter().flatten();
            found.is_some_and(|found| values.filter_map(Value::as_str).any(|value| value == found))
        };
        match expression["operator"].as_str() {
            Some("In") => listed(),
            Some("NotIn") => !listed(),
            Some("Exists") => found.is_some(),
            Some("DoesNotExist") => found.is_none(),
            _ => false,
        }
    });
    equal.all(|fits| fits) && expressions.all(|fits| fits)
}

/// An injector, and the namespaces that it is for.
#[derive(Debug, PartialEq, Eq)]
struct Injector {
    name: String,
    revision: String,
    namespaces: Vec<String>,
    image: String,
}

impl Injector {
    fn to_value(&self) -> Value {
        json!({"name": self.name, "revision": self.revision, "namespaces": self.namespaces, "image": self.image})
    }
}

fn injectors(namespaces: &[Object], hooks: &[Object], images: &BTreeMap<String, String>) -> Vec<Injector> {
    let injector = |hook: &Object| {
        let chosen = namespaces.iter().filter(|namespace| chooses(hook, namespace));
        let revision = revision_of(hook).to_string();
        Injector {
            name: hook.name().into(),
            namespaces: chosen.map(|namespace| namespace.name().to_string()).collect(),
            image: images.get(&revision).cloned().unwrap_or_default(),
            revision,
        }
    };
    hooks.iter().map(injector).collect()
}

/// Images of proxies by revision, as the injectors' ConfigMaps have them.
fn images(configs: &[Object]) -> BTreeMap<String, String> {
    let image = |config: &Object| {
        let values: Value = serde_json::from_str(config.body.get("data")?["values"].as_str()?).ok()?;
        let global = &values["global"];
        let (hub, tag) = (global["hub"].as_str().unwrap_or_default(), &global["tag"]);
        let tag = tag.as_str().map_or_else(|| tag.to_string(), str::to_string);
        let image = global["proxy"]["image"].as_str().unwrap_or("proxyv2");
        let whole =
            if image.contains('/') || hub.is_empty() { image.to_string() } else { format!("{hub}/{image}:{tag}") };
        Some((revision_of(config).to_string(), whole))
    };
    configs.iter().filter_map(image).collect()
}

fn show(rows: &[Row], injectors: &[Injector]) -> anyhow::Result<()> {
    if rows.is_empty() {
        output::line("No Istio injected namespaces present.")?;
    } else {
        let mut table = Table::new(["NAMESPACE", "ISTIO-REVISION", "POD-REVISIONS"]);
        for row in rows {
            let mut lines = row.lines();
            if lines.is_empty() {
                lines.push("<no pods>".into());
            }
            lines.into_iter().for_each(|line| table.row([row.namespace.clone(), row.revision.clone(), line]));
        }
        table.print()?;
    }
    output::line("")?;
    if injectors.is_empty() {
        return output::line("No Istio injection hooks present.");
    }
    let mut table = Table::new(["NAMESPACES", "INJECTOR-HOOK", "ISTIO-REVISION", "SIDECAR-IMAGE"]);
    for injector in injectors {
        let namespaces = match injector.namespaces.as_slice() {
            [] => "DOES NOT AUTOINJECT".to_string(),
            some => some.join(","),
        };
        table.row([&namespaces, &injector.name, &injector.revision, &injector.image]);
    }
    table.print()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::{Operator, Settings};

    fn hook(set: &str) -> Object {
        let operator = Operator::merge(&[], &[set.to_string()], None).unwrap();
        let all = crate::install::objects(&Settings::new(&operator).unwrap()).unwrap();
        let found = all.into_iter().find(|object| object["kind"] == "MutatingWebhookConfiguration").unwrap();
        serde_json::from_value(found).unwrap()
    }

    fn namespace(name: &str, labels: Value) -> Object {
        let value = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        serde_json::from_value(value).unwrap()
    }

    fn pod(namespace: &str, annotations: Value, container: &str) -> Object {
        let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace, "annotations": annotations},
            "spec": {"containers": [{"name": container}]}});
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn who_injects_whom() {
        let hooks = [hook("profile=default"), hook("revision=canary")];
        let namespaces = [
            namespace("a", json!({"istio-injection": "enabled"})),
            namespace("b", json!({"istio.io/rev": "canary"})),
            namespace("c", json!({"istio.io/rev": "gone"})),
            namespace("d", json!({"istio-injection": "disabled"})),
            namespace("e", json!({})),
        ];
        let status = |revision: &str| json!({STATUS: json!({"revision": revision}).to_string()});
        let pods = [
            pod("a", status("default"), "istio-proxy"),
            pod("a", status("canary"), "istio-proxy"),
            pod("a", json!({}), "app"),
            pod("a", json!({INJECT: "false"}), "app"),
            pod("e", json!({}), "app"),
        ];
        let rows = rows(&namespaces, &hooks, &pods);
        let shown: Vec<(&str, &str)> = rows.iter().map(|row| (row.namespace.as_str(), row.revision.as_str())).collect();
        assert_eq!(shown, [("a", "default"), ("b", "canary"), ("c", "MISSING/gone")]);
        assert_eq!(
            rows[0].lines(),
            ["<non-Istio>: 2 (injection disabled: 1) NEEDS RESTART: 1", "canary: 1 NEEDS RESTART: 1", "default: 1"]
        );
        let config: Object = serde_json::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "istio-sidecar-injector-canary", "labels": {REVISION: "canary"}},
            "data": {"values": json!({"global": {"hub": "h", "tag": "1", "proxy": {"image": "proxyv2"}}}).to_string()}}))
        .unwrap();
        let injectors = injectors(&namespaces, &hooks, &images(&[config]));
        let of = |at: usize| (injectors[at].namespaces.join(","), injectors[at].image.clone());
        assert_eq!((of(0), of(1)), (("a".into(), String::new()), ("b".into(), "h/proxyv2:1".into())));
    }
}
