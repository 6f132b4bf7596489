//! Objects read into typed facts, once per change: the first step of a build.
//!
//! A [`Kind`] keeps what it read. In the next build an object that is the same `Arc` (or the same revision) is not read
//! again, and one that reads to equal facts (a status update, a heartbeat) keeps its old `Arc`, so nothing after it changes.

use crate::{Labels, Warning};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use weft_core::Provenance;
use weft_k8s_api::Object;

/// The envelope of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Meta {
    pub namespace: String,
    pub name: String,
    pub created: i64,
    pub labels: Arc<Labels>,
    pub annotations: Arc<Labels>,
    pub provenance: Provenance,
    /// Counts changes of the spec; a status says which it is about.
    pub generation: i64,
}

/// An object, read.
#[derive(Debug, PartialEq)]
pub(crate) struct Parsed<T> {
    pub meta: Meta,
    pub spec: Arc<T>,
}

/// All objects of one kind, read, oldest first (then by name and namespace).
#[derive(Debug)]
pub(crate) struct Kind<T> {
    /// As given, to see what changed.
    objects: Vec<Arc<Object>>,
    /// By position in `objects`; where the object could not be read `None`, or what it said when it could.
    read: Vec<Option<Arc<Parsed<T>>>>,
    /// By position in `objects`: the object could not be read.
    unread: Vec<bool>,
    /// Those that could be read, oldest first.
    pub items: Arc<Vec<Arc<Parsed<T>>>>,
    /// Why the others could not.
    pub errors: Arc<Vec<Warning>>,
    /// Build in which `items` last changed.
    pub changed: u64,
}

impl<T> Default for Kind<T> {
    fn default() -> Self {
        Self {
            objects: Vec::new(),
            read: Vec::new(),
            unread: Vec::new(),
            items: Arc::default(),
            errors: Arc::default(),
            changed: 0,
        }
    }
}

/// Why an object could not be read: the place, empty for the whole, and a sentence for the user.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub path: String,
    pub message: String,
}

impl From<String> for Unreadable {
    fn from(message: String) -> Self {
        Self { path: String::new(), message }
    }
}

/// Group of the kinds that restrict who may talk to whom.
const SECURITY_GROUP: &str = "security.istio.io";
/// Other kinds of which the last that could be read stays in force.
const STAYING_KINDS: [&str; 3] = ["Secret", "DestinationRule", "BackendTLSPolicy"];

/// A name that no issuer of tokens has, and no certificate.
const NOBODY: &str = "weft:nobody";

/// How an object of a kind is read.
pub(crate) type Reader<T> = fn(&Object) -> Result<T, Unreadable>;

impl<T> Kind<T> {
    /// Whether these objects were read already.
    pub fn is_of(&self, objects: &[Arc<Object>]) -> bool {
        self.objects.len() == objects.len() && self.objects.iter().zip(objects).all(|(a, b)| same_revision(a, b))
    }
}

impl<T: PartialEq> Kind<T> {
    /// This kind after build `version`, whose list is `objects`.
    pub fn refresh(self: &Arc<Self>, objects: &[Arc<Object>], version: u64, reader: Reader<T>) -> Arc<Self> {
        if self.is_of(objects) {
            return self.clone();
        }
        let before: HashMap<(&str, &str), usize> =
            self.objects.iter().enumerate().map(|(i, o)| ((o.namespace(), o.name()), i)).collect();
        let mut errors: Vec<Warning> = Vec::new();
        let mut read = Vec::with_capacity(objects.len());
        let mut unread = Vec::with_capacity(objects.len());
        for object in objects {
            let old = before.get(&(object.namespace(), object.name())).copied();
            let known = errors.len();
            read.push(self.read_one(object, old, reader, &mut errors));
            unread.push(errors.len() > known);
        }
        let mut items: Vec<Arc<Parsed<T>>> = read.iter().flatten().cloned().collect();
        items.sort_by(|a, b| age_order(&a.meta).cmp(&age_order(&b.meta)));
        let same =
            items.len() == self.items.len() && items.iter().zip(self.items.iter()).all(|(a, b)| Arc::ptr_eq(a, b));
        Arc::new(Self {
            objects: objects.to_vec(),
            read,
            unread,
            items: if same { self.items.clone() } else { Arc::new(items) },
            errors: Arc::new(errors),
            changed: if same { self.changed } else { version },
        })
    }

    fn read_one(
        &self,
        object: &Arc<Object>,
        old: Option<usize>,
        reader: Reader<T>,
        errors: &mut Vec<Warning>,
    ) -> Option<Arc<Parsed<T>>> {
        let old_read = old.and_then(|i| self.read.get(i)).and_then(Option::as_ref);
        if let (Some(i), Some(parsed)) = (old, old_read)
            && !self.unread[i]
            && same_revision(&self.objects[i], object)
        {
            return Some(parsed.clone());
        }
        let meta = Meta::of(object);
        match reader(object) {
            Ok(spec) => {
                if let Some(parsed) = old_read
                    && parsed.meta == meta
                    && *parsed.spec == spec
                {
                    return Some(parsed.clone());
                }
                Some(Arc::new(Parsed { meta, spec: Arc::new(spec) }))
            }
            Err(Unreadable { path, mut message }) => {
                // Without its policy a workload is open to more than anyone asked for, without its certificate a gateway is
                // closed, and without its rule a service is called in plain text.
                let closed = [true, false].iter().find_map(|whole| reader(&closed(object, *whole)?).ok());
                let stays = object.group() == SECURITY_GROUP || STAYING_KINDS.contains(&object.kind.as_str());
                let before = old_read.filter(|_| stays);
                let kept = match (before, closed) {
                    (Some(before), closed) if closed.as_ref() != Some(&*before.spec) => {
                        message.push_str("; what it said before stays in force");
                        Some(before.clone())
                    }
                    (_, Some(spec)) => {
                        message.push_str(told_of_closed(&object.kind));
                        Some(Arc::new(Parsed { meta: meta.clone(), spec: Arc::new(spec) }))
                    }
                    (before, None) => before.cloned(),
                };
                errors.push(Warning { at: meta.provenance.at(path), code: "IST0106", message });
                kept
            }
        }
    }
}

/// What is in force in place of an object that could never be read.
fn told_of_closed(kind: &str) -> &'static str {
    match kind {
        "DestinationRule" => {
            "; until it can be read only what it says of TLS, as far as that can be read, and of subsets is in force"
        }
        "RequestAuthentication" => {
            "; until it can be read every token where tokens are usually sent is refused at the workloads it \
             selects, but for those that another RequestAuthentication accepts"
        }
        _ => "; until it can be read it refuses everything to the workloads it selects",
    }
}

/// What a policy that could never be read is taken for: the most restrictive one of its kind, for the workloads that it
/// selects as far as that can be told. An AuthorizationPolicy that allows nothing, a PeerAuthentication that is STRICT, a
/// RequestAuthentication that takes no token; of a DestinationRule what it says of TLS.
/// `whole`: bound to the objects that it names, if it names any; with all that a DestinationRule says of TLS, not its mode alone.
fn closed(object: &Object, whole: bool) -> Option<Object> {
    let mut spec = serde_json::Map::new();
    match object.kind.as_str() {
        "DestinationRule" => return Some(only_tls(object, whole)),
        _ if object.group() != SECURITY_GROUP => return None,
        // It would only write to a log.
        "AuthorizationPolicy" if object.spec().get("action").and_then(Value::as_str) == Some("AUDIT") => return None,
        "AuthorizationPolicy" => {}
        // An issuer that nobody is, in the usual places: whatever token comes there is refused, unless another policy for the
        // workload knows its issuer.
        "RequestAuthentication" => {
            let rule = serde_json::json!({"issuer": NOBODY, "jwks": crate::jwks::NO_KEYS});
            spec.insert("jwtRules".into(), serde_json::json!([rule]));
        }
        "PeerAuthentication" => drop(spec.insert("mtls".into(), serde_json::json!({"mode": "STRICT"}))),
        _ => return None,
    }
    let labels = object.spec().pointer("/selector/matchLabels").and_then(Value::as_object);
    if let Some(labels) = labels.filter(|labels| labels.values().all(Value::is_string)) {
        spec.insert("selector".into(), serde_json::json!({ "matchLabels": labels }));
    }
    for field in ["targetRef", "targetRefs"].into_iter().filter(|_| whole) {
        if let Some(named) = object.spec().get(field) {
            spec.insert(field.into(), named.clone());
        }
    }
    let mut closed = object.clone();
    closed.body.insert("spec".into(), Value::Object(spec));
    Some(closed)
}

/// A destination rule with its host, its clients, and its subsets and TLS alone. Not `whole`: of TLS its mode alone, by which servers
/// are held to what is so without further settings; where that says too little (MUTUAL asks for a certificate, and a mode may be
/// none that is known) no server will do, as none has the name of nobody.
fn only_tls(object: &Object, whole: bool) -> Object {
    let only = |value: &Value, fields: &[&str]| -> Value {
        let kept = fields.iter().filter_map(|field| Some(((*field).to_string(), value.get(*field)?.clone())));
        Value::Object(kept.collect())
    };
    let with_tls = |from: &Value, field: &str| {
        let mut kept = only(from, &[field, "tls"]);
        if let Some(tls) = kept.get_mut("tls").filter(|tls| !whole && !tls.is_null()) {
            let alone = |mode: &&str| ["DISABLE", "SIMPLE", "ISTIO_MUTUAL"].contains(mode);
            *tls = match (&*tls, tls.get("mode")) {
                (Value::Object(_), None | Some(Value::Null)) => serde_json::json!({}),
                (_, mode) => match mode.and_then(Value::as_str).filter(alone) {
                    Some(mode) => serde_json::json!({ "mode": mode }),
                    None => serde_json::json!({"mode": "SIMPLE", "subjectAltNames": [NOBODY]}),
                },
            };
        }
        kept
    };
    let policy = |policy: &Value| {
        let mut kept = with_tls(policy, "portLevelSettings");
        if let Some(ports) = kept.get_mut("portLevelSettings").and_then(Value::as_array_mut) {
            ports.iter_mut().for_each(|port| *port = with_tls(port, "port"));
        }
        kept
    };
    let with_policy = |from: &Value, fields: &[&str]| {
        let mut kept = only(from, fields);
        let tls = from.get("trafficPolicy").map(policy).filter(|kept| kept.as_object().is_some_and(|m| !m.is_empty()));
        if let (Some(tls), Some(kept)) = (tls, kept.as_object_mut()) {
            kept.insert("trafficPolicy".into(), tls);
        }
        kept
    };
    let mut spec = with_policy(object.spec(), &["host", "exportTo", "workloadSelector"]);
    if let (Some(subsets), Some(spec)) = (object.spec().get("subsets").and_then(Value::as_array), spec.as_object_mut())
    {
        let subsets = subsets.iter().map(|subset| with_policy(subset, &["name", "labels"]));
        spec.insert("subsets".into(), subsets.collect());
    }
    let mut reduced = object.clone();
    reduced.body.insert("spec".into(), spec);
    reduced
}

/// The key of age: a conflict is decided for the older object, then by name and namespace.
pub(crate) fn age_order(meta: &Meta) -> (i64, &str, &str) {
    (meta.created, &meta.name, &meta.namespace)
}

/// True when `b` is certainly the object that `a` is, without comparing bodies.
fn same_revision(a: &Arc<Object>, b: &Arc<Object>) -> bool {
    if Arc::ptr_eq(a, b) {
        return true;
    }
    let (a, b) = (&a.metadata, &b.metadata);
    a.resource_version.is_some()
        && a.resource_version == b.resource_version
        && a.uid.is_some()
        && a.uid == b.uid
        && a.name == b.name
        && a.namespace == b.namespace
}

impl Meta {
    /// The envelope of `object`. Annotations that no part of the mesh reads are left out, so that their change is none.
    pub fn of(object: &Object) -> Self {
        Self {
            namespace: object.namespace().into(),
            name: object.name().into(),
            created: object.created(),
            labels: Arc::new(object.metadata.labels.clone().unwrap_or_default()),
            annotations: Arc::new(mesh_annotations(object)),
            provenance: Provenance::object(&kind_name(object), object.namespace(), object.name()),
            generation: object.metadata.generation.unwrap_or_default(),
        }
    }
}

/// The kind as warnings name it. Two groups have a Gateway: that of Kubernetes is written with its group.
fn kind_name(object: &Object) -> String {
    let of_istio = object.group().ends_with("istio.io");
    if object.kind == "Gateway" && !of_istio { format!("Gateway.{}", object.group()) } else { object.kind.clone() }
}

fn mesh_annotations(object: &Object) -> Labels {
    let all = object.metadata.annotations.iter().flatten();
    all.filter(|(name, _)| is_of_mesh(name)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Whether some part of the mesh reads an annotation. (What the injector did is written there for people.)
pub(crate) fn is_of_mesh(name: &str) -> bool {
    let written =
        ["sidecar.istio.io/status", "istio.io/connectedAt", "istio.io/disconnectedAt", "istio.io/workloadController"];
    if written.contains(&name) {
        return false;
    }
    let domain = name.split_once('/').map_or("", |(domain, _)| domain);
    domain.ends_with("istio.io")
        || domain.ends_with("weft.dev")
        || domain == "prometheus.io"
        || name == "kubernetes.io/ingress.class"
}

/// True when every entry of `selector` is in `labels`; an empty selector selects all.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// The `Arc` of the last build when the value is still the same, else a new one.
pub(crate) fn reuse<T: PartialEq>(old: Option<&Arc<T>>, new: T) -> Arc<T> {
    match old {
        Some(old) if **old == new => old.clone(),
        _ => Arc::new(new),
    }
}
