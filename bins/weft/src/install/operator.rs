//! The `IstioOperator` object: read from files, one over the other, and `--set` over all of them. What its fields may be is
//! `fields`' business, what they mean is `settings`'.
//!
//! Source: Istio's "Customizing the installation configuration": default profile, named profile, files in their order, `--set`.

use super::{fields, path, profile};
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::io::Read as _;
use std::path::PathBuf;
use weft_k8s_api::kinds::KindInfo;
use weft_k8s_api::yaml;

/// The kind. It is the installer's alone: a mesh works without its definition.
pub static KIND: KindInfo = KindInfo {
    group: "install.istio.io",
    versions: &["v1alpha1"],
    kind: "IstioOperator",
    plural: "istiooperators",
    singular: "istiooperator",
    short: &["iop", "io"],
    namespaced: true,
    categories: &[],
};
/// Largest file of settings, bytes.
const MAX_FILE: u64 = 4 << 20;
/// Name of an installation that gives itself none.
pub const UNNAMED: &str = "installed-state";

/// What of an installation is said on the command line.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Source {
    /// File with an IstioOperator object, or its spec; - is standard input; may be repeated, the later over the earlier
    #[arg(short, long = "filename", value_name = "FILE")]
    pub file: Vec<String>,
    /// A setting, such as profile=demo, hub=registry/weft, meshConfig.accessLogFile=/dev/stdout, values.pilot.traceSampling=10; may be repeated
    #[arg(short, long = "set", value_name = "PATH=VALUE")]
    pub set: Vec<String>,
    /// Revision of the control plane
    #[arg(short, long, value_name = "NAME")]
    pub revision: Option<String>,
    /// Folder with profiles/NAME.yaml, before those of the program
    #[arg(short = 'd', long, visible_alias = "charts", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Namespace of the control plane
    #[arg(short = 'n', long, short_alias = 'i', visible_alias = "istioNamespace", value_name = "NS")]
    pub namespace: Option<String>,
}

/// An installation as it was asked for, profile and all.
#[derive(Debug, Clone)]
pub struct Operator {
    /// Name of the object; who owns what is installed.
    pub name: String,
    /// Namespace of the object where it is one of a cluster; a file's is of no account, as `-n` may say another one.
    pub namespace: Option<String>,
    /// `spec`, the profile below it.
    pub spec: Value,
}

impl Operator {
    /// Reads what the command line names.
    ///
    /// # Errors
    /// Files that cannot be read, fields that are not known, profiles that are not there.
    pub fn read(source: &Source) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        for file in &source.file {
            let object = yaml::value(&text(file)?).map_err(|error| anyhow::anyhow!("{file}: {error}"))?;
            files.push((file.clone(), object));
        }
        let mut sets = source.set.clone();
        sets.extend(source.namespace.iter().map(|namespace| format!("namespace={namespace}")));
        sets.extend(source.revision.iter().map(|revision| format!("revision={revision}")));
        Self::merge(&files, &sets, source.manifests.as_deref())
    }

    /// Puts files (name and content) and settings over the profile that they name.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn merge(files: &[(String, Value)], sets: &[String], folder: Option<&std::path::Path>) -> anyhow::Result<Self> {
        let (mut name, mut user) = (UNNAMED.to_string(), json!({}));
        for (file, object) in files {
            let spec = spec_of(object).with_context(|| file.clone())?;
            fields::check(&spec).with_context(|| file.clone())?;
            name = object["metadata"]["name"].as_str().unwrap_or(&name).to_string();
            overlay(&mut user, &spec);
        }
        let mut changes = json!({});
        for set in sets {
            let (path, _) = split(set)?;
            // A path that chooses an item needs the list; what it names is checked on the whole.
            if !path.contains('[') {
                put(&mut changes, set)?;
            }
        }
        fields::check(&changes).context("--set")?;
        let chosen = changes["profile"].as_str().or(user["profile"].as_str()).unwrap_or("default").to_string();
        let mut spec = profile::read(&chosen, folder)?;
        overlay(&mut spec, &user);
        for set in sets {
            put(&mut spec, set)?;
        }
        spec["profile"] = chosen.into();
        fields::check(&spec).context("--set")?;
        Ok(Self { name, namespace: None, spec })
    }

    /// The object as it is kept on the cluster.
    pub fn object(&self, name: &str, namespace: &str) -> Value {
        json!({"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator",
               "metadata": {"name": name, "namespace": namespace}, "spec": self.spec})
    }
}

/// The definition of the kind. Its fields are checked by [`fields`].
pub fn definition() -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let column = |name: &str, path: &str, kind: &str| json!({"name": name, "jsonPath": path, "type": kind});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{}", KIND.plural, KIND.group),
                     "labels": {"release": "istio", "app.kubernetes.io/part-of": "weft"}},
        "spec": {
            "group": KIND.group, "scope": "Namespaced",
            "names": {"kind": KIND.kind, "listKind": "IstioOperatorList", "plural": KIND.plural,
                      "singular": KIND.singular, "shortNames": KIND.short},
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}},
                "additionalPrinterColumns": [
                    column("Revision", ".spec.revision", "string"), column("Status", ".status.status", "string"),
                    column("Age", ".metadata.creationTimestamp", "date"),
                ],
            }],
        },
    })
}

fn text(file: &str) -> anyhow::Result<String> {
    if file.contains("://") {
        bail!("{file} is a URL; fetch it first (curl -sL {file} | weft install -f -)");
    }
    let mut text = String::new();
    let limit = MAX_FILE + 1;
    match file {
        "-" => std::io::stdin().lock().take(limit).read_to_string(&mut text),
        file => std::fs::File::open(file).and_then(|opened| opened.take(limit).read_to_string(&mut text)),
    }
    .with_context(|| format!("cannot read {}", if file == "-" { "standard input" } else { file }))?;
    if text.len() as u64 > MAX_FILE {
        bail!("{file} is larger than {MAX_FILE} bytes");
    }
    Ok(text)
}

/// The `spec` of an object, or the object itself when it is none.
pub(super) fn spec_of(object: &Value) -> anyhow::Result<Value> {
    if object["kind"].is_null() && object["apiVersion"].is_null() {
        return Ok(object.clone());
    }
    if object["kind"] != "IstioOperator" {
        bail!("kind is {}; it must be IstioOperator", object["kind"]);
    }
    let version = object["apiVersion"].as_str().unwrap_or_default();
    if version != "install.istio.io/v1alpha1" {
        bail!("apiVersion is {version:?}; it must be install.istio.io/v1alpha1");
    }
    let known = ["apiVersion", "kind", "metadata", "spec", "status"];
    for name in object.as_object().into_iter().flatten().map(|(name, _)| name) {
        if !known.contains(&name.as_str()) {
            bail!("{name} is not a field of an IstioOperator; there are {}", known.join(", "));
        }
    }
    Ok(if object["spec"].is_null() { json!({}) } else { object["spec"].clone() })
}

fn split(set: &str) -> anyhow::Result<(&str, &str)> {
    let (path, value) = set.split_once('=').with_context(|| format!("--set {set}: write path=value"))?;
    Ok((path.strip_prefix("spec.").unwrap_or(path), value))
}

fn put(tree: &mut Value, set: &str) -> anyhow::Result<()> {
    let (path, value) = split(set)?;
    // What nobody checks can have tags too: `tag=1.10` is not 1.1.
    let value = if path.ends_with(".tag") { Ok(value.into()) } else { fields::parse(path, value) };
    let value = value.with_context(|| format!("--set {set}"))?;
    path::put(tree, path, value).with_context(|| format!("--set {set}"))
}

/// How lists of a field are put over one another.
enum Lists {
    /// Items that have the same value in this field are one.
    By(&'static str),
    /// One behind the other.
    Both,
    /// The later alone.
    Later,
}

/// Items are the same by what Kubernetes and Istio know them by. Overlays all hold, each on what those before it left.
fn lists(field: &str) -> Lists {
    match field {
        "ingressGateways" | "egressGateways" | "env" | "volumes" | "extensionProviders" => Lists::By("name"),
        "volumeMounts" => Lists::By("mountPath"),
        "overlays" => Lists::Both,
        _ => Lists::Later,
    }
}

/// Puts `over` over `base`: maps are merged, lists as their fields are known by, everything else replaces.
pub(super) fn overlay(base: &mut Value, over: &Value) {
    overlay_field("", base, over);
}

fn overlay_field(field: &str, base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (name, value) in over {
                overlay_field(name, base.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(base), Value::Array(over)) => match lists(field) {
            Lists::By(key) => {
                for item in over {
                    match base.iter_mut().find(|known| item[key].is_string() && known[key] == item[key]) {
                        Some(known) => overlay_field("", known, item),
                        None => base.push(item.clone()),
                    }
                }
            }
            Lists::Both => base.extend(over.iter().cloned()),
            Lists::Later => base.clone_from(over),
        },
        (_, Value::Null) => {}
        (base, over) => *base = over.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(spec: &Value) -> (String, Value) {
        let object = json!({"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator", "metadata": {"name": "own"}, "spec": spec});
        ("a.yaml".into(), object)
    }

    #[test]
    fn profile_then_files_then_settings() {
        let files = [
            file(
                &json!({"profile": "demo", "tag": "1", "components": {"ingressGateways": [{"name": "istio-ingressgateway", "label": {"a": "b"}}]}}),
            ),
            file(&json!({"tag": "2", "components": {"ingressGateways": [{"name": "more", "enabled": true}]}})),
        ];
        let sets =
            ["revision=1-8-0", "components.ingressGateways.[name:more].namespace=edge", "meshConfig.accessLogFile=/x"];
        let made = Operator::merge(&files, &sets.map(String::from), None).unwrap();
        assert_eq!(
            (made.name.as_str(), &made.spec["tag"], &made.spec["profile"]),
            ("own", &json!("2"), &json!("demo"))
        );
        let gateways = made.spec["components"]["ingressGateways"].as_array().unwrap();
        assert_eq!(
            (gateways.len(), &gateways[0]["label"], &gateways[1]["namespace"]),
            (2, &json!({"a": "b"}), &json!("edge"))
        );
        assert_eq!((&gateways[0]["enabled"], &made.spec["revision"]), (&json!(true), &json!("1-8-0")));
        assert_eq!(made.spec["components"]["egressGateways"][0]["enabled"], true);
        // A profile on the command line counts before that of a file.
        let made = Operator::merge(&files, &["profile=minimal".into(), "tag=1.10".into()], None).unwrap();
        assert_eq!(made.spec["components"]["egressGateways"][0]["enabled"], false);
        assert_eq!(made.spec["tag"], "1.10");
        assert_eq!(Operator::merge(&[], &[], None).unwrap().name, UNNAMED);
    }

    #[test]
    fn lists_over_lists() {
        for (at, first, second, wanted) in [
            // A Deployment and a Service of one name.
            (
                "overlays",
                json!([{"kind": "Deployment", "name": "istiod", "patches": [{"path": "a", "value": 1}]}]),
                json!([{"kind": "Service", "name": "istiod", "patches": [{"path": "b", "value": 2}]}]),
                json!([{"kind": "Deployment", "name": "istiod", "patches": [{"path": "a", "value": 1}]},
                       {"kind": "Service", "name": "istiod", "patches": [{"path": "b", "value": 2}]}]),
            ),
            (
                "volumeMounts",
                json!([{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b"}]),
                json!([{"name": "v", "mountPath": "/b", "readOnly": true}, {"name": "v", "mountPath": "/c"}]),
                json!([{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b", "readOnly": true},
                       {"name": "v", "mountPath": "/c"}]),
            ),
            (
                "env",
                json!([{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]),
                json!([{"name": "B", "value": "2"}]),
                json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]),
            ),
            ("tolerations", json!([{"key": "a"}]), json!([{"key": "b"}]), json!([{"key": "b"}])),
        ] {
            let spec = |list: Value| file(&json!({"components": {"pilot": {"k8s": {at: list}}}}));
            let made = Operator::merge(&[spec(first), spec(second)], &[], None).unwrap();
            assert_eq!(made.spec["components"]["pilot"]["k8s"][at], wanted, "{at}");
        }
        let ports = |list: Value| file(&json!({"components": {"pilot": {"k8s": {"service": {"ports": list}}}}}));
        let made = Operator::merge(
            &[ports(json!([{"name": "a", "port": 1}])), ports(json!([{"name": "b", "port": 2}]))],
            &[],
            None,
        );
        assert_eq!(
            made.unwrap().spec["components"]["pilot"]["k8s"]["service"]["ports"],
            json!([{"name": "b", "port": 2}])
        );
    }

    #[test]
    fn what_is_not_known_is_named() {
        let wrong_kind = ("b.yaml".to_string(), json!({"apiVersion": "v1", "kind": "Service"}));
        for (files, sets, said) in [
            (vec![wrong_kind], vec![], "b.yaml: kind is \"Service\""),
            (vec![file(&json!({"componentz": {}}))], vec![], "a.yaml: componentz"),
            (vec![], vec!["components.pilot.k8s.replicas=2"], "components.pilot.k8s.replicas"),
            (vec![], vec!["components.ingressGateways[0].colour=red"], "components.ingressGateways[0].colour"),
            (vec![], vec!["values.revisionTags=prod"], "values.revisionTags is a text; it must be a list"),
            (
                vec![],
                vec!["components.pilot.k8s.env={a}"],
                "components.pilot.k8s.env[0] is a text; it must have fields",
            ),
            (
                vec![],
                vec!["components.ingressGateways[0].enabled=no"],
                "components.ingressGateways[0].enabled is a text",
            ),
            (vec![], vec!["hub"], "write path=value"),
            (vec![], vec!["profile=none"], "default, demo"),
            (vec![], vec!["components.ingressGateways[9].name=x"], "--set components.ingressGateways[9].name=x"),
        ] {
            let sets: Vec<String> = sets.into_iter().map(String::from).collect();
            let error = format!("{:#}", Operator::merge(&files, &sets, None).unwrap_err());
            assert!(error.contains(said), "{sets:?}: {error}");
        }
    }
}
