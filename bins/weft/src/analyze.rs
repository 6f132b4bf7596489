//! What `weft analyze` finds: the model's messages about a cluster's objects with those of files put over them, what files
//! themselves have wrong, and pods and namespaces that may have been meant to be in the mesh. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weft_core::Provenance;
use weft_core::well_known::{ROOT_NAMESPACE, label::REVISION};
use weft_k8s_api::yaml::{Document, Location};
use weft_k8s_api::{Object, ObjectKey, validate};
use weft_model::codes::{Level, about};
use weft_model::{Inputs, build};

/// Annotation of an object with the codes, separated by commas, that are not told about it; `*` is all of them.
const SUPPRESSED: &str = "galley.istio.io/analyze-suppress";
/// Namespaces that nobody wants proxies in.
const OF_THE_CLUSTER: [&str; 5] =
    ["kube-system", "kube-public", "kube-node-lease", "local-path-storage", ROOT_NAMESPACE];

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Istio's code (`IST0101`), or a word of ours.
    pub code: String,
    /// How much it weighs.
    pub level: Level,
    /// The object, and the place in it.
    pub at: Provenance,
    /// Where that is written, when the object is of a file.
    pub location: Option<Location>,
    /// What is wrong and what would be right.
    pub text: String,
}

impl Message {
    /// `Error [IST0101] (VirtualService default/reviews a.yaml:9) spec.gateways[0]: …`.
    pub fn line(&self) -> String {
        let place = self.location.as_ref().map(|at| format!(" {at}")).unwrap_or_default();
        let path = if self.at.path.is_empty() { String::new() } else { format!("{}: ", self.at.path) };
        format!("{} [{}] ({}{place}) {path}{}", self.level.as_str(), self.code, self.object(), self.text)
    }

    /// `KIND NAMESPACE/NAME`, or `KIND NAME`.
    pub fn object(&self) -> String {
        let Provenance { kind, namespace, name, .. } = &self.at;
        if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") }
    }
}

/// Everything that there is to say about a cluster's objects (`inputs`) with the objects of files put over them, the
/// heaviest first.
pub fn messages(mut inputs: Inputs, documents: &[Document], of_cluster: bool) -> Vec<Message> {
    let mut found = Vec::new();
    let mut files: BTreeMap<ObjectKey, &Document> = BTreeMap::new();
    for document in documents {
        of_file(document, &mut found);
        put(&mut inputs, &document.object);
        files.insert(document.object.key(), document);
    }
    let refused: BTreeSet<String> = found.iter().map(Message::object).collect();
    for warning in &build(&inputs, None).warnings {
        let (_, level) = about(warning.code);
        let document = files.values().find(|document| is_about(&document.object, &warning.at));
        let location = document.map(|document| document.locate(&warning.at.path));
        let (code, text) = (warning.code.to_string(), warning.message.clone());
        let message = Message { code, level, at: warning.at.clone(), location, text };
        // What a file has wrong is told by its line already.
        if warning.code != "IST0106" || !refused.contains(&message.object()) {
            found.push(message);
        }
    }
    of_other_revisions(&inputs, &files, &mut found);
    if of_cluster {
        injection(&inputs, &mut found);
    }
    found.retain(|message| !is_suppressed(&inputs, message));
    found.sort_by(|a, b| (b.level, a.object(), &a.code, &a.at.path).cmp(&(a.level, b.object(), &b.code, &b.at.path)));
    found.dedup();
    found
}

/// What a file's object has wrong by itself. Fields that its kind does not have are lost without a word on a cluster.
fn of_file(document: &Document, found: &mut Vec<Message>) {
    let object = &document.object;
    let mut say = |path: &str, text: String, level| {
        let at = Provenance::object(&object.kind, object.namespace(), object.name()).at(path);
        let location = Some(document.locate(path));
        found.push(Message { code: "IST0106".into(), level, at, location, text });
    };
    let checked = validate(object);
    for problem in &checked.errors {
        say(&problem.path, problem.message.clone(), Level::Error);
    }
    for problem in checked.warnings.iter().chain(&checked.unknown_fields) {
        say(&problem.path, problem.message.clone(), Level::Warning);
    }
}

/// Puts an object over the one of its name.
pub fn put(inputs: &mut Inputs, object: &Object) {
    let others = inputs.of_all_revisions(object.group(), &object.kind).filter(|other| other.key() != object.key());
    let all: Vec<Arc<Object>> = others.cloned().chain([Arc::new(object.clone())]).collect();
    inputs.set(object.group(), &object.kind, all);
}

/// Objects that this control plane leaves to another one.
fn of_other_revisions(inputs: &Inputs, files: &BTreeMap<ObjectKey, &Document>, found: &mut Vec<Message>) {
    for object in inputs.of_other_revisions() {
        let location = files.get(&object.key()).map(|document| document.locate("metadata.labels"));
        let at = Provenance::object(&object.kind, object.namespace(), object.name()).at("metadata.labels");
        let (level, text) = (about("OtherRevision").1, told_of_revision(object, &inputs.settings.revision));
        found.push(Message { code: "OtherRevision".into(), level, at, location, text });
    }
}

/// Why an object does nothing at the control plane of revision `own`.
pub fn told_of_revision(object: &Object, own: &str) -> String {
    format!(
        "{REVISION} gives it to the control plane of revision {:?} alone; that of {own:?} does not look at it: remove the label to \
         have all control planes read it",
        object.label(REVISION).unwrap_or_default()
    )
}

fn is_about(object: &Object, at: &Provenance) -> bool {
    (object.kind.as_str(), object.namespace(), object.name())
        == (at.kind.as_str(), at.namespace.as_str(), at.name.as_str())
}

/// Namespaces that say nothing about proxies, and pods without one where there should be one.
fn injection(inputs: &Inputs, found: &mut Vec<Message>) {
    let mut say = |code: &str, object: &Object, text: String| {
        let at = Provenance::object(&object.kind, object.namespace(), object.name());
        found.push(Message { code: code.into(), level: about(code).1, at, location: None, text });
    };
    let mut injected = BTreeSet::new();
    for namespace in inputs.of("", "Namespace") {
        let name = namespace.name();
        match (namespace.label("istio-injection"), namespace.label("istio.io/rev")) {
            (Some("enabled"), _) | (None, Some(_)) => drop(injected.insert(name)),
            (None, None) if !OF_THE_CLUSTER.contains(&name) => {
                let text = format!(
                    "pods get no proxy here; kubectl label namespace {name} istio-injection=enabled gives them one, \
                     istio-injection=disabled says that none is wanted"
                );
                say("IST0102", namespace, text);
            }
            _ => {}
        }
    }
    for pod in inputs.of("", "Pod").iter().filter(|pod| injected.contains(pod.namespace()) && wants_proxy(pod)) {
        if !crate::target::has_proxy(pod) {
            let text = "has no proxy although its namespace asks for one; it was made before that, or by something that \
                        the webhook did not see: restart it";
            say("IST0103", pod, text.into());
        }
    }
}

fn wants_proxy(pod: &Object) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let annotated = annotations.and_then(|all| all.get("sidecar.istio.io/inject")).map(String::as_str);
    let refuses = pod.label("sidecar.istio.io/inject").or(annotated) == Some("false");
    let ended = pod.body.get("status").is_some_and(|s| s["phase"] == "Succeeded" || s["phase"] == "Failed");
    !refuses && !ended && pod.spec()["hostNetwork"] != true
}

fn is_suppressed(inputs: &Inputs, message: &Message) -> bool {
    let of_kind = weft_model::KINDS.iter().filter(|(_, kind)| *kind == message.at.kind);
    let mut objects = of_kind.flat_map(|(group, kind)| inputs.of_all_revisions(group, kind));
    let Some(object) = objects.find(|object| is_about(object, &message.at)) else { return false };
    let codes = object.metadata.annotations.as_ref().and_then(|all| all.get(SUPPRESSED));
    codes.is_some_and(|codes| codes.split(',').map(str::trim).any(|code| code == "*" || code == message.code))
}

/// `--suppress CODE=KIND NAME[.NAMESPACE]`, `*` in the second part standing for any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suppression {
    code: String,
    object: String,
}

impl std::str::FromStr for Suppression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((code, object)) if !code.is_empty() && !object.is_empty() => {
                Ok(Self { code: code.into(), object: object.into() })
            }
            _ => Err(format!("{text:?} is not CODE=KIND NAME.NAMESPACE, such as \"IST0102=Namespace test\"")),
        }
    }
}

impl Suppression {
    /// Whether it is for this message.
    pub fn covers(&self, message: &Message) -> bool {
        let Provenance { kind, namespace, name, .. } = &message.at;
        let object = if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {name}.{namespace}") };
        self.code == message.code && matches(&self.object, &object)
    }
}

/// Whether a text fits a pattern with `*`.
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{mesh_config, settings};
    use weft_k8s_api::yaml;

    fn found(cluster: &str, files: &str) -> Vec<String> {
        let mesh = mesh_config("").unwrap();
        let mut inputs = Inputs::new(Arc::new(mesh.clone()), Arc::new(settings(&mesh, "")));
        for document in yaml::documents(cluster, "cluster").unwrap() {
            inputs.push(Arc::new(document.object));
        }
        let documents = if files.is_empty() { Vec::new() } else { yaml::documents(files, "a.yaml").unwrap() };
        messages(inputs, &documents, true).iter().map(Message::line).collect()
    }

    const NAMESPACE: &str =
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {istio-injection: enabled}}\n";
    const ROUTE: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: default}\nspec:\n  hosts: ['*']\n  gateways: [none]\n  http: [{directResponse: {status: 200}}]\n";

    #[test]
    fn of_a_cluster_and_of_files() {
        assert_eq!(found(NAMESPACE, ""), Vec::<String>::new());
        let wrong = "Error [IST0101] (VirtualService default/v) spec.gateways[0]: Gateway default/none does not exist";
        assert_eq!(found(&format!("{NAMESPACE}---\n{ROUTE}"), ""), [wrong]);
        let of_file = wrong.replace("default/v)", "default/v a.yaml:6)");
        assert_eq!(found(NAMESPACE, ROUTE), [of_file]);
        // The file's object stands for the cluster's.
        let mended = ROUTE.replace("[none]", "[mesh]").replace("'*'", "a.example");
        assert_eq!(found(&format!("{NAMESPACE}---\n{ROUTE}"), &mended), Vec::<String>::new());
        let hushed = ROUTE.replace(
            "namespace: default",
            "namespace: default, annotations: {galley.istio.io/analyze-suppress: 'IST0106, IST0101'}",
        );
        assert_eq!(found(&format!("{NAMESPACE}---\n{hushed}"), ""), Vec::<String>::new());
    }

    #[test]
    fn objects_of_another_revision_are_nobodys() {
        let labelled =
            |revision: &str| ROUTE.replace("name: v,", &format!("name: v, labels: {{istio.io/rev: {revision}}},"));
        let told = "Info [OtherRevision] (VirtualService default/v) metadata.labels: istio.io/rev gives it to the control plane of \
                    revision \"canary\" alone";
        let said = found(&format!("{NAMESPACE}---\n{}", labelled("canary")), "");
        assert!(said.len() == 1 && said[0].starts_with(told), "{said:?}");
        let said = found(&format!("{NAMESPACE}---\n{ROUTE}"), &labelled("canary"));
        assert!(said.len() == 1 && said[0].starts_with(&told.replace("v)", "v a.yaml:3)")), "{said:?}");
        assert_eq!(
            found(&format!("{NAMESPACE}---\n{}", labelled("default")), "").len(),
            1,
            "its own: the gateway is missing"
        );
    }

    #[test]
    fn what_a_file_has_wrong_is_told_once_by_its_line() {
        let bad = ROUTE.replace("[none]", "[mesh]").replace("'*'", "a.example").replace("status: 200", "status: 20000");
        let said = found(NAMESPACE, &bad);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].starts_with("Error [IST0106] (VirtualService default/v a.yaml:7) spec.http[0].directResponse"),
            "{said:?}"
        );
        let unknown = ROUTE.replace("gateways: [none]", "gatewais: [mesh]");
        let said = found(NAMESPACE, &unknown);
        assert!(said.iter().any(|m| m.starts_with("Warning [IST0106]") && m.contains("gatewais")), "{said:?}");
    }

    #[test]
    fn who_was_meant_to_have_a_proxy() {
        let plain = NAMESPACE.replace(", labels: {istio-injection: enabled}", "");
        let said = found(&plain, "");
        assert!(said.len() == 1 && said[0].starts_with("Info [IST0102] (Namespace default) "), "{said:?}");
        assert_eq!(found(&plain.replace("default", "kube-system"), ""), Vec::<String>::new());
        let pod = |metadata: &str, spec: &str| {
            format!(
                "{NAMESPACE}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: default{metadata}}}\nspec: {{{spec}}}\n"
            )
        };
        for (metadata, spec, count) in [
            ("", "containers: [{name: a}]", 1),
            ("", "containers: [{name: a}, {name: istio-proxy}]", 0),
            (", labels: {sidecar.istio.io/inject: 'false'}", "containers: [{name: a}]", 0),
            (", annotations: {sidecar.istio.io/inject: 'false'}", "containers: [{name: a}]", 0),
            ("", "hostNetwork: true, containers: [{name: a}]", 0),
        ] {
            let said = found(&pod(metadata, spec), "");
            assert_eq!(
                said.iter().filter(|m| m.starts_with("Warning [IST0103] (Pod default/p)")).count(),
                count,
                "{metadata} {spec}: {said:?}"
            );
        }
    }

    #[test]
    fn suppressions() {
        let message = Message {
            code: "IST0101".into(),
            level: Level::Error,
            at: Provenance::object("VirtualService", "default", "reviews"),
            location: None,
            text: String::new(),
        };
        for (text, covers) in [
            ("IST0101=VirtualService reviews.default", true),
            ("IST0101=VirtualService *.default", true),
            ("IST0101=*", true),
            ("IST0101=*rev*def*", true),
            ("IST0101=VirtualService reviews.def", false),
            ("IST0101=VirtualService *.other", false),
            ("IST0102=*", false),
        ] {
            assert_eq!(text.parse::<Suppression>().unwrap().covers(&message), covers, "{text}");
        }
        assert!("IST0101".parse::<Suppression>().unwrap_err().contains("CODE=KIND"));
    }
}
