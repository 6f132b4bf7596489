//! What can be set, under the names that an `IstioOperator` has: profile, then files, then `--set`, the later over the earlier.

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};
use weft_inject::Values;
use weft_inject::values::overlay;

/// Most levels of a tree of settings.
const MAX_DEPTH: usize = 32;
/// Largest index in a path such as `components.ingressGateways[0]`.
const MAX_INDEX: usize = 100;
/// Names at the top.
const TOP: [&str; 9] =
    ["profile", "hub", "tag", "revision", "namespace", "meshConfig", "values", "components", "defaultRevision"];
/// Components.
const COMPONENTS: [&str; 5] = ["base", "pilot", "cni", "ingressGateways", "egressGateways"];

/// An installation.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Definitions of Istio's kinds.
    pub base: bool,
    /// The control plane.
    pub pilot: bool,
    /// Revision; empty for the default one.
    pub revision: String,
    /// Namespace of the control plane.
    pub namespace: String,
    /// Mesh config, as the user wrote it over ours.
    pub mesh: Value,
    /// The installer's values.
    pub values: Values,
    /// Components that do not say how many replicas they have get an autoscaler.
    pub autoscale: bool,
    /// The control plane's settings on Kubernetes: `replicaCount`, `resources`, `env` …
    pub pilot_k8s: Value,
    /// Gateways.
    pub gateways: Vec<Gateway>,
}

/// One gateway's Deployment and Service.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Name of its objects.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Labels that Gateway objects select it by.
    pub labels: Map<String, Value>,
    /// Traffic comes from outside.
    pub ingress: bool,
    /// Its settings on Kubernetes.
    pub k8s: Value,
}

impl Settings {
    /// Reads settings: `files` hold IstioOperator objects or their `spec`, `sets` are `path=value`.
    ///
    /// # Errors
    /// What is not known, and what would be.
    pub fn read(files: &[Value], sets: &[String]) -> anyhow::Result<Self> {
        let mut user = json!({});
        for file in files {
            let spec = if file["kind"] == "IstioOperator" { &file["spec"] } else { file };
            overlay(&mut user, spec, MAX_DEPTH);
        }
        for set in sets {
            let (path, value) = set.split_once('=').with_context(|| format!("--set {set}: write path=value"))?;
            put(&mut user, path, scalar(value)).with_context(|| format!("--set {set}"))?;
        }
        check_names(&user)?;
        let mut all = profile(user["profile"].as_str().unwrap_or("default"))?;
        overlay_lists(&mut all, &user);
        Self::from_tree(&all)
    }

    fn from_tree(all: &Value) -> anyhow::Result<Self> {
        let revision = all["revision"].as_str().unwrap_or_default();
        let revision = if revision == "default" { "" } else { revision }.to_string();
        if !revision.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
            bail!("revision {revision:?}: use lower-case letters, digits and dashes, such as 1-0-0 or canary");
        }
        let namespace = all["namespace"].as_str().unwrap_or("istio-system").to_string();
        let mut tree = all.clone();
        tree["revision"] = revision.clone().into();
        overlay(&mut tree, &json!({"values": {"global": {"istioNamespace": namespace}}}), MAX_DEPTH);
        let on = |name: &str| all["components"][name]["enabled"].as_bool().unwrap_or(false);
        let mut mesh = json!({
            "trustDomain": "cluster.local", "rootNamespace": namespace,
            "defaultConfig": {"discoveryAddress": format!("{}.{namespace}.svc:15012", with_revision("istiod", &revision))},
            "enablePrometheusMerge": true,
        });
        overlay(&mut mesh, &tree["values"]["meshConfig"], MAX_DEPTH);
        overlay(&mut mesh, &all["meshConfig"], MAX_DEPTH);
        let mut gateways = Vec::new();
        for (list, ingress) in [("ingressGateways", true), ("egressGateways", false)] {
            for (at, one) in all["components"][list].as_array().into_iter().flatten().enumerate() {
                if one["enabled"].as_bool().unwrap_or(true) {
                    gateways
                        .push(gateway(one, ingress, &namespace).with_context(|| format!("components.{list}[{at}]"))?);
                }
            }
        }
        Ok(Self {
            base: on("base"),
            pilot: on("pilot"),
            values: Values::from_installation(&tree),
            // As in Istio's profile, in which components are small.
            autoscale: all["profile"] != "demo",
            pilot_k8s: all["components"]["pilot"]["k8s"].clone(),
            revision,
            namespace,
            mesh,
            gateways,
        })
    }

    /// `name`, or `name-REVISION`.
    pub fn named(&self, name: &str) -> String {
        with_revision(name, &self.revision)
    }

    /// Value of the label `istio.io/rev`.
    pub fn revision_label(&self) -> &str {
        if self.revision.is_empty() { "default" } else { &self.revision }
    }

    /// An image of ours.
    pub fn image(&self, name: &str) -> String {
        if name.contains('/') {
            return name.to_string();
        }
        format!("{}/{name}:{}", self.values.text("global.hub"), self.values.text("global.tag"))
    }
}

fn with_revision(name: &str, revision: &str) -> String {
    if revision.is_empty() { name.to_string() } else { format!("{name}-{revision}") }
}

fn gateway(one: &Value, ingress: bool, namespace: &str) -> anyhow::Result<Gateway> {
    let name = one["name"].as_str().context("the name is missing; each gateway of the list needs one")?;
    let kind = if ingress { "ingressgateway" } else { "egressgateway" };
    let mut labels = Map::from_iter([("app".to_string(), json!(name)), ("istio".to_string(), json!(kind))]);
    labels.extend(one["label"].as_object().cloned().unwrap_or_default());
    let namespace = one["namespace"].as_str().unwrap_or(namespace).to_string();
    Ok(Gateway { name: name.into(), namespace, labels, ingress, k8s: one["k8s"].clone() })
}

/// What a profile switches on.
fn profile(name: &str) -> anyhow::Result<Value> {
    let on = json!({"enabled": true});
    let (ingress, egress) = (gateway_item("istio-ingressgateway"), gateway_item("istio-egressgateway"));
    Ok(match name {
        "default" | "" => json!({"components": {"base": on, "pilot": on, "ingressGateways": [ingress]}}),
        "demo" => {
            json!({"components": {"base": on, "pilot": on, "ingressGateways": [ingress], "egressGateways": [egress]}})
        }
        "minimal" => json!({"components": {"base": on, "pilot": on}}),
        "empty" => json!({"components": {}}),
        other => bail!("profile {other:?} is not known; there are default, demo, minimal and empty"),
    })
}

fn gateway_item(name: &str) -> Value {
    json!({"name": name, "enabled": true})
}

fn check_names(user: &Value) -> anyhow::Result<()> {
    let names = |value: &Value| value.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    if let Some(name) = names(user).iter().find(|name| !TOP.contains(&name.as_str())) {
        bail!("{name} cannot be set; the names at the top are {}", TOP.join(", "));
    }
    if let Some(name) = names(&user["components"]).iter().find(|name| !COMPONENTS.contains(&name.as_str())) {
        bail!("components.{name} is not a component; there are {}", COMPONENTS.join(", "));
    }
    Ok(())
}

/// As `overlay`, but the items of a list with names are merged by them.
fn overlay_lists(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (name, value) in over {
                overlay_lists(base.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(base), Value::Array(over)) if over.iter().all(|item| item["name"].is_string()) => {
            for item in over {
                match base.iter_mut().find(|known| known["name"] == item["name"]) {
                    Some(known) => overlay_lists(known, item),
                    None => base.push(item.clone()),
                }
            }
        }
        (_, Value::Null) => {}
        (base, over) => *base = over.clone(),
    }
}

/// `true`, `12` and `1.5` are what they look like; everything else is text.
fn scalar(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
        _ => text.into(),
    }
}

/// Sets the value at `a.b[0].c`; what is missing on the way is made. `\.` is a dot in a name.
fn put(tree: &mut Value, path: &str, value: Value) -> anyhow::Result<()> {
    let mut at = tree;
    for step in path.replace("\\.", "\u{0}").split('.') {
        let step = step.replace('\u{0}', ".");
        let (name, index) = match step.split_once('[') {
            Some((name, rest)) => {
                let index = rest.strip_suffix(']').and_then(|digits| digits.parse::<usize>().ok());
                (name.to_string(), Some(index.context("an index is written as [0]")?))
            }
            None => (step, None),
        };
        if name.is_empty() {
            bail!("a name is missing in the path {path:?}");
        }
        if !at.is_object() {
            *at = json!({});
        }
        at = at.as_object_mut().context("not an object")?.entry(name).or_insert(Value::Null);
        if let Some(index) = index {
            if index > MAX_INDEX {
                bail!("the index {index} is larger than {MAX_INDEX}");
            }
            if !at.is_array() {
                *at = json!([]);
            }
            let list = at.as_array_mut().context("not a list")?;
            while list.len() <= index {
                list.push(json!({}));
            }
            at = list.get_mut(index).context("no such item")?;
        }
    }
    *at = value;
    Ok(())
}
