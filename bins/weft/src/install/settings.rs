//! What an installation's fields mean: `spec` of an IstioOperator → what is to be made.

use super::operator::Operator;
use anyhow::{Context, bail};
use serde_json::{Map, Value, json};
use weft_inject::Values;
use weft_inject::values::overlay;
use weft_k8s_api::validate::parse_mesh_config;

/// Most levels of a tree of settings.
const MAX_DEPTH: usize = 32;

/// An installation.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Definitions of Istio's kinds.
    pub base: bool,
    /// The control plane.
    pub pilot: bool,
    /// The CNI agent.
    pub cni: bool,
    /// What leads to a control plane elsewhere.
    pub remote: bool,
    /// Revision; empty for the default one.
    pub revision: String,
    /// Namespace of the control plane.
    pub namespace: String,
    /// Mesh config, as the user wrote it over ours.
    pub mesh: Value,
    /// The installer's values.
    pub values: Values,
    /// `components` as they were given.
    pub components: Value,
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
    /// Image, where it is not the mesh's.
    pub image: Option<String>,
    /// Where it stands in the settings.
    pub place: String,
}

impl Settings {
    /// Reads what an installation says.
    ///
    /// # Errors
    /// What cannot be done, and what could.
    pub fn new(operator: &Operator) -> anyhow::Result<Self> {
        let all = &operator.spec;
        let said = [&all["revision"], &all["values"]["revision"]];
        let revision = said.iter().find_map(|revision| given(revision)).unwrap_or_default();
        let revision = if revision == "default" { "" } else { revision }.to_string();
        if !revision.is_empty() && !is_revision(&revision) {
            bail!(
                "revision {revision:?}: use up to 63 lower-case letters, digits and, between them, dashes, such as 1-0-0 or canary"
            );
        }
        let components = &all["components"];
        let on = |name: &str| components[name]["enabled"].as_bool().unwrap_or(false);
        let said = [&components["pilot"]["namespace"], &all["namespace"], &all["values"]["global"]["istioNamespace"]];
        let namespace = said.iter().find_map(|n| given(n)).unwrap_or("istio-system").to_string();
        let mut tree = all.clone();
        tree["revision"] = revision.clone().into();
        overlay(&mut tree["values"], &all["unvalidatedValues"], MAX_DEPTH);
        overlay(&mut tree, &json!({"values": {"global": {"istioNamespace": namespace}}}), MAX_DEPTH);
        let mesh = mesh(&tree, &namespace, &revision)?;
        let values = Values::from_installation(&tree);
        let mut gateways = Vec::new();
        for (list, ingress) in [("egressGateways", false), ("ingressGateways", true)] {
            for (at, one) in components[list].as_array().into_iter().flatten().enumerate() {
                let place = format!("components.{list}[{at}]");
                let name = one["name"].as_str();
                let name =
                    name.with_context(|| format!("{place}: the name is missing; each gateway of the list needs one"))?;
                if one["enabled"].as_bool().unwrap_or(true) {
                    let usual = given(&all["namespace"]).unwrap_or(&namespace);
                    gateways.push(gateway(one, name, ingress, usual, place, &values));
                }
            }
        }
        Ok(Self {
            base: on("base"),
            pilot: on("pilot"),
            cni: on("cni"),
            remote: on("istiodRemote"),
            values,
            revision,
            namespace,
            mesh,
            components: components.clone(),
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

    /// Settings of the control plane on Kubernetes.
    pub fn pilot_k8s(&self) -> &Value {
        &self.components["pilot"]["k8s"]
    }

    /// The image of the control plane.
    pub fn pilot_image(&self) -> String {
        let (own, values) = (&self.components["pilot"], self.values.get("pilot"));
        let image = values["image"].as_str().unwrap_or("weftd");
        image_of(&self.values, image, [own, values])
    }

    /// An image of the mesh.
    pub fn image(&self, name: &str) -> String {
        image_of(&self.values, name, [&Value::Null; 2])
    }

    /// Version that is installed: the tag of the control plane's image; empty for one that has none, such as an image by digest.
    pub fn tag(&self) -> String {
        tag_of(&self.pilot_image()).to_string()
    }

    /// Lets a ServiceAccount's pods pull from registries that ask for a password (`values.global.imagePullSecrets`).
    pub(super) fn pull_secrets(&self, account: &mut Value) {
        let names = self.values.get("global.imagePullSecrets").as_array().into_iter().flatten();
        let names: Vec<Value> = names.filter_map(Value::as_str).map(|name| json!({ "name": name })).collect();
        if !names.is_empty() {
            account["imagePullSecrets"] = names.into();
        }
    }
}

/// The tag of an image: a registry may have a port, and a digest follows the tag.
fn tag_of(image: &str) -> &str {
    let named = image.split_once('@').map_or(image, |(named, _)| named);
    let last = named.rsplit_once('/').map_or(named, |(_, last)| last);
    last.split_once(':').map_or("", |(_, tag)| tag)
}

/// `hub/name:tag`, both the component's own before those of the mesh; a name with a folder is an image already.
pub(super) fn image_of(values: &Values, name: &str, own: [&Value; 2]) -> String {
    if name.contains('/') {
        return name.to_string();
    }
    let part = |field: &str| {
        let own = own.iter().find_map(|from| match &from[field] {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        own.unwrap_or_else(|| values.text(&format!("global.{field}")))
    };
    format!("{}/{name}:{}", part("hub"), part("tag"))
}

/// A text that says something: as with the charts, an empty one says nothing.
fn given(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.is_empty())
}

/// Whether a text can be a revision or a tag: it becomes a label and a part of names.
pub fn is_revision(text: &str) -> bool {
    let plain = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    !text.is_empty() && text.len() <= 63 && plain && !text.starts_with('-') && !text.ends_with('-')
}

fn with_revision(name: &str, revision: &str) -> String {
    if revision.is_empty() { name.to_string() } else { format!("{name}-{revision}") }
}

fn mesh(tree: &Value, namespace: &str, revision: &str) -> anyhow::Result<Value> {
    let mut user = json!({});
    overlay(&mut user, &tree["values"]["meshConfig"], MAX_DEPTH);
    overlay(&mut user, &tree["meshConfig"], MAX_DEPTH);
    // `--set …proxyMetadata.X=true` means the text.
    for (_, value) in user["defaultConfig"]["proxyMetadata"].as_object_mut().into_iter().flatten() {
        if value.is_boolean() || value.is_number() {
            *value = value.to_string().into();
        }
    }
    if user["defaultConfig"].is_null() {
        user.as_object_mut().map(|user| user.shift_remove("defaultConfig"));
    }
    let mut unknown = Vec::new();
    parse_mesh_config(&user.to_string(), &mut unknown).map_err(|error| anyhow::anyhow!("meshConfig: {error}"))?;
    if let Some(field) = unknown.first() {
        let meant = field.suggestion.map(|s| format!("; did you mean {s}?")).unwrap_or_default();
        bail!("meshConfig.{}: unknown field{meant}", field.path);
    }
    let mut mesh = json!({
        "trustDomain": "cluster.local", "rootNamespace": namespace,
        "defaultConfig": {"discoveryAddress": format!("{}.{namespace}.svc:15012", with_revision("istiod", revision))},
        "enablePrometheusMerge": true,
    });
    let sampling = &tree["values"]["pilot"]["traceSampling"];
    if !sampling.is_null() {
        let percent = sampling.as_f64().filter(|percent| (0.0..=100.0).contains(percent));
        let percent = percent
            .with_context(|| format!("values.pilot.traceSampling is {sampling}; it must be a number from 0 to 100"))?;
        mesh["defaultConfig"]["tracing"] = json!({"sampling": percent});
    }
    overlay(&mut mesh, &user, MAX_DEPTH);
    Ok(mesh)
}

fn gateway(one: &Value, name: &str, ingress: bool, namespace: &str, place: String, values: &Values) -> Gateway {
    let kind = if ingress { "ingressgateway" } else { "egressgateway" };
    let mut labels = Map::from_iter([("app".to_string(), json!(name)), ("istio".to_string(), json!(kind))]);
    labels.extend(one["label"].as_object().cloned().unwrap_or_default());
    let own_image = !one["hub"].is_null() || !one["tag"].is_null();
    Gateway {
        name: name.into(),
        namespace: given(&one["namespace"]).unwrap_or(namespace).to_string(),
        labels,
        ingress,
        k8s: one["k8s"].clone(),
        image: own_image.then(|| image_of(values, &values.text("global.proxy.image"), [one, &Value::Null])),
        place,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(sets: &[&str]) -> anyhow::Result<Settings> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_string()).collect();
        Settings::new(&Operator::merge(&[], &sets, None)?)
    }

    #[test]
    fn what_says_nothing() {
        let plain = settings(&[]).unwrap();
        let empty = settings(&["namespace=", "values.pilot.tag=", "values.pilot.hub=", "revision="]).unwrap();
        assert_eq!((empty.namespace.as_str(), empty.revision.as_str()), ("istio-system", ""));
        assert_eq!((empty.pilot_image(), &empty.gateways[0].namespace), (plain.pilot_image(), &empty.namespace));
    }

    #[test]
    fn revisions() {
        let long = "a".repeat(64);
        for (revision, right) in [
            ("1-8-0", true),
            ("canary", true),
            ("-canary", false),
            ("canary-", false),
            ("1.8.0", false),
            (&long, false),
        ] {
            assert_eq!(settings(&[&format!("revision={revision}")]).is_ok(), right, "{revision}");
        }
    }

    #[test]
    fn tags_of_images() {
        for (image, wanted) in [
            ("localhost/weft/weftd:0.1.0", "0.1.0"),
            ("registry.example:5000/weftd", ""),
            ("registry.example:5000/weft/weftd:1.2", "1.2"),
            ("h/weftd@sha256:0011", ""),
            ("h:5000/weftd:1.2.3@sha256:0011", "1.2.3"),
            ("weftd", ""),
        ] {
            assert_eq!(tag_of(image), wanted, "{image}");
        }
    }
}
