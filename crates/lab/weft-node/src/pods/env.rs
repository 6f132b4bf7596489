//! A container's environment and its command line, as the pod's spec gives them: literals, fields of the pod, ConfigMaps and
//! Secrets, and `$(NAME)` references. Reads the store; writes nothing.

use base64::Engine as _;
use k8s_openapi::api::core::v1::{Container, EnvVarSource, ObjectFieldSelector};
use serde_json::Value;
use std::collections::BTreeMap;
use weft_k8s_api::Object;
use weft_store::MemoryStore;

/// Size of one object's data read here, in bytes; Kubernetes' own bound.
pub const MAX_DATA: usize = 1 << 20;

/// What a pod's environment is read from.
pub struct Source<'a> {
    /// The store.
    pub store: &'a MemoryStore,
    /// The pod, with its addresses in `status`.
    pub pod: &'a Object,
}

impl Source<'_> {
    /// The environment of a container, in order; later names win.
    ///
    /// # Errors
    /// Which reference cannot be resolved; the pod waits until it can.
    pub fn environment(&self, container: &Container) -> Result<Vec<(String, String)>, String> {
        let mut env: Vec<(String, String)> = Vec::new();
        for source in container.env_from.iter().flatten() {
            let prefix = source.prefix.as_deref().unwrap_or_default();
            let data = if let Some(map) = &source.config_map_ref {
                self.all_of("ConfigMap", &map.name, map.optional == Some(true))?
            } else if let Some(secret) = &source.secret_ref {
                self.all_of("Secret", &secret.name, secret.optional == Some(true))?
            } else {
                BTreeMap::new()
            };
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            env.extend(data.into_iter().map(|(name, value)| (format!("{prefix}{name}"), text(value))));
        }
        for variable in container.env.iter().flatten() {
            let value = match (&variable.value, &variable.value_from) {
                (Some(value), _) => Some(expand(value, &env)),
                (None, Some(source)) => self.value_from(container, source)?,
                (None, None) => Some(String::new()),
            };
            if let Some(value) = value {
                env.retain(|(name, _)| *name != variable.name);
                env.push((variable.name.clone(), value));
            }
        }
        Ok(env)
    }

    fn value_from(&self, container: &Container, source: &EnvVarSource) -> Result<Option<String>, String> {
        if let Some(field) = &source.field_ref {
            return self.field(field).map(Some);
        }
        if let Some(resource) = &source.resource_field_ref {
            return Ok(Some(self.resource(container, &resource.resource)));
        }
        let (kind, name, key, optional) = if let Some(map) = &source.config_map_key_ref {
            ("ConfigMap", &map.name, &map.key, map.optional)
        } else if let Some(secret) = &source.secret_key_ref {
            ("Secret", &secret.name, &secret.key, secret.optional)
        } else {
            return Err("env: valueFrom names no source that the lab knows".into());
        };
        let optional = optional == Some(true);
        let value = self.all_of(kind, name, optional)?.remove(key);
        match value {
            Some(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("{kind} {}/{name} has no key {key:?}", self.pod.namespace())),
        }
    }

    /// All keys of a ConfigMap or Secret.
    ///
    /// # Errors
    /// When it does not exist and is not optional.
    pub fn all_of(&self, kind: &str, name: &str, optional: bool) -> Result<BTreeMap<String, Vec<u8>>, String> {
        let namespace = self.pod.namespace();
        match self.store.find("", kind, namespace, name) {
            Some(object) => Ok(data(&object)),
            None if optional => Ok(BTreeMap::new()),
            None => Err(format!("{kind} {namespace}/{name} does not exist (yet)")),
        }
    }

    /// A field of the pod, as the downward API has them.
    ///
    /// # Errors
    /// When there is no such field.
    pub fn field(&self, selector: &ObjectFieldSelector) -> Result<String, String> {
        let (pod, path) = (self.pod, selector.field_path.as_str());
        let status =
            |field: &str| pod.body.get("status").and_then(|s| s[field].as_str()).unwrap_or_default().to_string();
        let spec = |field: &str| pod.spec()[field].as_str().unwrap_or_default().to_string();
        let one = |map: Option<&BTreeMap<String, String>>, rest: &str| {
            let key = rest.trim_start_matches("['").trim_end_matches("']");
            map.and_then(|map| map.get(key)).cloned().unwrap_or_default()
        };
        Ok(match path {
            "metadata.name" => pod.name().into(),
            "metadata.namespace" => pod.namespace().into(),
            "metadata.uid" => pod.metadata.uid.clone().unwrap_or_default(),
            "metadata.labels" => lines(pod.metadata.labels.as_ref()),
            "metadata.annotations" => lines(pod.metadata.annotations.as_ref()),
            "spec.nodeName" => spec("nodeName"),
            "spec.serviceAccountName" => spec("serviceAccountName"),
            "status.podIP" => status("podIP"),
            "status.hostIP" => status("hostIP"),
            "status.podIPs" | "status.hostIPs" => {
                let all = pod.body.get("status").and_then(|s| s[&path["status.".len()..]].as_array()).into_iter();
                all.flatten().filter_map(|one| one["ip"].as_str()).collect::<Vec<_>>().join(",")
            }
            _ => {
                if let Some(rest) = path.strip_prefix("metadata.labels") {
                    one(pod.metadata.labels.as_ref(), rest)
                } else if let Some(rest) = path.strip_prefix("metadata.annotations") {
                    one(pod.metadata.annotations.as_ref(), rest)
                } else {
                    return Err(format!("fieldPath {path:?} is not one that the downward API has"));
                }
            }
        })
    }

    /// A limit or request of the container. The lab sets none, so what is not given is the machine's size.
    fn resource(&self, container: &Container, resource: &str) -> String {
        let (list, name) = resource.split_once('.').unwrap_or(("limits", resource));
        let resources = container.resources.as_ref();
        let given = match list {
            "requests" => resources.and_then(|r| r.requests.as_ref()),
            _ => resources.and_then(|r| r.limits.as_ref()),
        };
        let quantity = given.and_then(|list| list.get(name)).map(|quantity| quantity.0.as_str());
        match (name, quantity) {
            ("cpu", Some(text)) => whole_cpus(text).to_string(),
            ("memory", Some(text)) => bytes(text).to_string(),
            ("cpu", None) => std::thread::available_parallelism().map_or(1, std::num::NonZero::get).to_string(),
            _ => "0".into(),
        }
    }
}

fn whole_cpus(quantity: &str) -> u64 {
    match quantity.strip_suffix('m') {
        Some(milli) => milli.parse::<u64>().unwrap_or(1000).div_ceil(1000),
        None => quantity.parse::<f64>().unwrap_or(1.0).ceil() as u64,
    }
    .max(1)
}

fn bytes(quantity: &str) -> u64 {
    let digits = quantity.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(quantity.len());
    let number: f64 = quantity[..digits].parse().unwrap_or(0.0);
    let factor = match &quantity[digits..] {
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        _ => 1.0,
    };
    (number * factor) as u64
}

/// `key="value"` lines, as the downward API writes labels and annotations into files.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={}\n", Value::from(value.as_str())));
    lines.collect()
}

/// The data of a ConfigMap or Secret as bytes.
pub fn data(object: &Object) -> BTreeMap<String, Vec<u8>> {
    let of = |field: &str| object.body.get(field).and_then(Value::as_object).into_iter().flatten();
    let is_secret = object.kind == "Secret";
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    let mut all = BTreeMap::new();
    for (key, value) in of("data") {
        let text = value.as_str().unwrap_or_default();
        all.insert(key.clone(), if is_secret { decode(text) } else { text.as_bytes().to_vec() });
    }
    for (key, value) in of("stringData") {
        all.insert(key.clone(), value.as_str().unwrap_or_default().as_bytes().to_vec());
    }
    for (key, value) in of("binaryData") {
        all.insert(key.clone(), decode(value.as_str().unwrap_or_default()));
    }
    all.retain(|_, value| value.len() <= MAX_DATA);
    all
}

/// Replaces `$(NAME)` by its value; unknown names stay, and `$$` is one dollar.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let reference = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = reference {
            match env.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expands_references() {
        let env = [("A".to_string(), "1".to_string())];
        for (text, expected) in
            [("$(A)$(B)", "1$(B)"), ("$$(A)", "$(A)"), ("a$b", "a$b"), ("$(A", "$(A"), ("x$(A)y$", "x1y$")]
        {
            assert_eq!(expand(text, &env), expected);
        }
    }

    #[test]
    fn resolves_all_sources() {
        let store =
            MemoryStore::with_options(weft_store::StoreOptions { require_namespaces: false, ..Default::default() });
        let object = |value: Value| -> Object { serde_json::from_value(value).unwrap() };
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "n"}, "data": {"k": "v"}});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "n"}, "data": {"p": "cGFzcw=="}});
        store.create(object(map)).unwrap();
        store.create(object(secret)).unwrap();
        let pod = object(json!({"apiVersion": "v1", "kind": "Pod", "spec": {"serviceAccountName": "sa"},
            "metadata": {"name": "p", "namespace": "n", "labels": {"app": "a"}}, "status": {"podIP": "10.244.0.2"}}));
        let source = Source { store: &store, pod: &pod };
        let container = |env: Value| -> Container {
            serde_json::from_value(
                json!({"name": "c", "env": env, "envFrom": [{"prefix": "M_", "configMapRef": {"name": "m"}}]}),
            )
            .unwrap()
        };
        let env = source
            .environment(&container(json!([
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "PASS", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
                {"name": "URL", "value": "http://$(IP)/$(M_k)"},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            ])))
            .unwrap();
        let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("URL"), Some("http://10.244.0.2/v"));
        assert_eq!((get("APP"), get("PASS")), (Some("a"), Some("pass")));
        let missing = container(json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k"}}}]));
        assert!(source.environment(&missing).unwrap_err().contains("ConfigMap n/none"));
        assert_eq!((whole_cpus("250m"), whole_cpus("2"), bytes("128Mi")), (1, 2, 128 << 20));
    }
}
