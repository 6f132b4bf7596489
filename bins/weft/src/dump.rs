//! A proxy's config dump, of Envoy or of our own proxy, as the tables that `istioctl` made familiar.
//!
//! Reading order: this file (finding things in a dump), then one module per table. Pure: dumps come in as JSON.

pub mod clusters;
pub mod compare;
pub mod ecds;
pub mod endpoints;
pub mod listeners;
pub mod on_demand;
pub mod routes;
pub mod secrets;

use serde_json::{Map, Value};

/// Objects nested deeper than this are not looked into.
const MAX_DEPTH: usize = 64;

/// A config dump.
#[derive(Debug, Clone, Default)]
pub struct Dump {
    configs: Vec<Value>,
}

impl Dump {
    /// Reads the answer of `/config_dump`.
    ///
    /// # Errors
    /// A sentence, when it is not a config dump.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let mut value: Value = serde_json::from_slice(body).map_err(|e| format!("the config dump is not JSON: {e}"))?;
        match value.get_mut("configs").map(Value::take) {
            Some(Value::Array(configs)) => Ok(Dump { configs }),
            _ => Err("the answer is not a config dump: it has no configs".into()),
        }
    }

    /// What the proxy was started with.
    pub fn bootstrap(&self) -> Option<&Value> {
        self.sections("BootstrapConfigDump").next()
    }

    /// The whole dump.
    pub fn to_value(&self) -> Value {
        serde_json::json!({ "configs": self.configs })
    }

    /// The sections of a type, such as `ListenersConfigDump`.
    fn sections<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.configs.iter().filter(move |c| type_is(c, name))
    }

    /// In every section of a type, the items of these lists, each reduced to what stands at `path`.
    fn items<'a>(&'a self, section: &'a str, lists: &'a [&'a str], path: &'a [&'a str]) -> Vec<&'a Value> {
        let lists = self.sections(section).flat_map(move |s| lists.iter().flat_map(move |list| each(field(s, list))));
        let at = |item: &'a Value| path.iter().fold(item, |value, name| field(value, name));
        lists.map(at).filter(|value| !value.is_null()).collect()
    }
}

/// True when `@type` ends in this message name.
fn type_is(value: &Value, name: &str) -> bool {
    value["@type"].as_str().is_some_and(|t| t.strip_suffix(name).is_some_and(|package| package.ends_with('.')))
}

/// A field by its schema name; dumps in canonical JSON spell it in camelCase.
fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    match value.get(name) {
        Some(found) => found,
        None => value.get(camel_name(name)).unwrap_or(&Value::Null),
    }
}

/// Several [`field`]s, one in the other.
fn path<'a>(value: &'a Value, names: &[&str]) -> &'a Value {
    names.iter().fold(value, |value, name| field(value, name))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    field(value, name).as_str().unwrap_or_default()
}

fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map_or(&[][..], Vec::as_slice).iter()
}

fn texts(value: &Value) -> Vec<&str> {
    each(value).filter_map(Value::as_str).collect()
}

/// `ip:port`, or the path of a socket.
fn address(address: &Value) -> (String, String) {
    let socket = field(address, "socket_address");
    if socket.is_null() {
        let pipe = path(address, &["pipe", "path"]).as_str();
        let internal = path(address, &["envoy_internal_address", "server_listener_name"]).as_str();
        let name = pipe.map(|p| format!("unix://{p}")).or(internal.map(|n| format!("envoy://{n}")));
        return (name.unwrap_or_default(), "-".to_string());
    }
    let port = field(socket, "port_value").as_u64().unwrap_or(0);
    (text(socket, "address").to_string(), port.to_string())
}

/// The object that something was generated from, as `name.namespace`: from Istio's metadata, else from ours.
pub fn origin(resource: &Value, kind: &str) -> Option<String> {
    let metadata = path(resource, &["metadata", "filter_metadata"]);
    if let Some(config) = metadata["istio"]["config"].as_str() {
        let mut parts = config.rsplit('/');
        let (name, _kind, namespace) = (parts.next()?, parts.next()?, parts.next()?);
        return Some(format!("{name}.{namespace}"));
    }
    let weft = &metadata["weft"];
    (weft["kind"] == kind).then(|| {
        format!("{}.{}", weft["name"].as_str().unwrap_or_default(), weft["namespace"].as_str().unwrap_or_default())
    })
}

/// `socket_address` → `socketAddress`.
fn camel_name(name: &str) -> String {
    let mut parts = name.split('_');
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let mut chars = part.chars();
        out.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(chars.as_str());
    }
    out
}

/// The value with all field names in camelCase, as canonical JSON has them; keys that are data stay.
pub fn canonical(value: &Value) -> Value {
    canonical_at(value, 0)
}

fn canonical_at(value: &Value, depth: usize) -> Value {
    /// Fields that are maps or free structures.
    const DATA: [&str; 6] = [
        "filter_metadata",
        "typed_filter_metadata",
        "typed_per_filter_config",
        "fields",
        "typed_extension_protocol_options",
        "labels",
    ];
    match value {
        _ if depth > MAX_DEPTH => value.clone(),
        Value::Array(items) => Value::Array(items.iter().map(|v| canonical_at(v, depth + 1)).collect()),
        Value::Object(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                let is_name = key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
                let name = if is_name { camel_name(key) } else { key.clone() };
                let data = DATA.contains(&key.as_str());
                out.insert(name, if data { value.clone() } else { canonical_at(value, depth + 1) });
            }
            Value::Object(out)
        }
        other => other.clone(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn dump(section: &str, fields: Value) -> Dump {
        let mut section_value = json!({"@type": format!("type.googleapis.com/envoy.admin.v3.{section}")});
        section_value.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Dump::parse(json!({"configs": [section_value]}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn refuses_what_is_no_dump() {
        assert!(Dump::parse(b"no").unwrap_err().contains("not JSON"));
        assert!(Dump::parse(b"{}").unwrap_err().contains("configs"));
    }

    #[test]
    fn names_are_made_canonical() {
        let value = json!({"trusted_ca": {"inline_bytes": "x"}, "filter_metadata": {"a_b": {"c_d": 1}}, "@type": "t",
            "envoy.filters.http.x_y": [{"z_1": 2}]});
        let wanted = json!({"trustedCa": {"inlineBytes": "x"}, "filterMetadata": {"a_b": {"c_d": 1}}, "@type": "t",
            "envoy.filters.http.x_y": [{"z1": 2}]});
        assert_eq!(canonical(&value), wanted);
        assert_eq!(field(&wanted, "trusted_ca")["inlineBytes"], "x");
    }

    #[test]
    fn origins() {
        let istio = json!({"metadata": {"filter_metadata": {"istio":
            {"config": "/apis/networking.istio.io/v1/namespaces/default/virtual-service/reviews"}}}});
        assert_eq!(origin(&istio, "VirtualService").as_deref(), Some("reviews.default"));
        let weft = json!({"metadata": {"filterMetadata": {"weft":
            {"kind": "VirtualService", "namespace": "n", "name": "x", "path": "spec.http[0]"}}}});
        assert_eq!(origin(&weft, "VirtualService").as_deref(), Some("x.n"));
        assert_eq!(origin(&weft, "DestinationRule"), None);
    }
}
