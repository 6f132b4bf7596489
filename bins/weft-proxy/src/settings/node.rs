//! Who we tell the control plane that we are: the xDS `Node`.

use super::AgentSettings;
use crate::cli::Engine;
use serde_json::{Map, Value, json};
use weft_core::node::{NodeId, NodeMetadata};
use weft_core::well_known::label;
use weft_proto::envoy::config::core::v3::{Locality, Node, node::UserAgentVersionType};

/// Version of the extension messages that this proxy understands.
const EXTENSIONS: &str = "1";
/// Prefix of variables that become metadata as text.
const META: &str = "ISTIO_META_";
/// Prefix of variables that become metadata as JSON objects, merged into it.
const META_JSON: &str = "ISTIO_METAJSON_";

/// The node of a mesh proxy.
///
/// # Errors
/// When the pod has no address.
pub fn node(settings: &AgentSettings) -> Result<Node, String> {
    let ip = *settings.ips.first().ok_or("the pod has no IP address; set INSTANCE_IP")?;
    let id = NodeId {
        node_type: settings.role,
        ip,
        pod: settings.pod.clone(),
        namespace: settings.namespace.clone(),
        dns_domain: settings.dns_domain.clone(),
    };
    Ok(Node {
        id: id.to_string(),
        cluster: settings.service_cluster.clone(),
        metadata: Some(to_struct(metadata(settings)?)),
        locality: locality(settings),
        user_agent_name: "weft-proxy".into(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(env!("CARGO_PKG_VERSION").into())),
        ..Node::default()
    })
}

/// The metadata: what we know by name, then every `ISTIO_META_*` variable.
fn metadata(settings: &AgentSettings) -> Result<Map<String, Value>, String> {
    let env = |name: &str| settings.environment.get(&format!("{META}{name}")).unwrap_or_default().to_owned();
    let known = NodeMetadata {
        name: settings.pod.clone(),
        namespace: settings.namespace.clone(),
        labels: settings.labels.clone(),
        annotations: settings.annotations.clone(),
        service_account: settings.service_account.clone(),
        workload_name: env("WORKLOAD_NAME"),
        owner: env("OWNER"),
        cluster_id: settings.cluster_id.clone(),
        network: env("NETWORK"),
        mesh_id: env("MESH_ID"),
        instance_ips: settings.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        interception_mode: env("INTERCEPTION_MODE"),
        istio_version: env!("CARGO_PKG_VERSION").into(),
        node_name: env("NODE_NAME"),
        dns_capture: if settings.dns_capture { "true".into() } else { String::new() },
        app_containers: env("APP_CONTAINERS"),
        auto_register_group: env("AUTO_REGISTER_GROUP"),
        // An Envoy would not understand our extension messages.
        weft: if settings.engine == Engine::Weft { EXTENSIONS.into() } else { String::new() },
        weft_on_demand: if settings.on_demand.is_some() { "true".into() } else { String::new() },
    };
    let Ok(Value::Object(mut all)) = serde_json::to_value(known) else { return Err("the node's metadata".into()) };
    for (name, value) in settings.environment.with_prefix(META) {
        let absent = all.get(name).is_none_or(|known| known.as_str() == Some("")) && name != "WEFT_ON_DEMAND";
        if absent {
            all.insert(name.to_owned(), Value::String(value.to_owned()));
        }
    }
    for (name, value) in settings.environment.with_prefix(META_JSON).filter(|(name, _)| *name != "LABELS") {
        match serde_json::from_str(value) {
            Ok(Value::Object(fields)) => all.extend(fields),
            _ => return Err(format!("environment variable {META_JSON}{name} must be a JSON object")),
        }
    }
    if let Some(config) = &settings.proxy_config_text {
        let parsed: Option<Value> = serde_saphyr::from_str(config).ok();
        all.insert("PROXY_CONFIG".into(), parsed.unwrap_or_else(|| json!({})));
    }
    all.retain(|_, value| !is_empty(value));
    Ok(all)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// From the label `istio-locality` (`region.zone.subzone`, or with slashes), else the node's topology labels.
fn locality(settings: &AgentSettings) -> Option<Locality> {
    let labels = &settings.labels;
    let parts: Vec<String> = match labels.get(label::LOCALITY) {
        Some(text) => text.split(if text.contains('/') { '/' } else { '.' }).map(str::to_owned).collect(),
        None => {
            [label::REGION, label::ZONE].iter().map(|name| labels.get(*name).cloned().unwrap_or_default()).collect()
        }
    };
    let part = |index: usize| parts.get(index).cloned().unwrap_or_default();
    let found = Locality { region: part(0), zone: part(1), sub_zone: part(2) };
    (!found.region.is_empty()).then_some(found)
}

/// JSON as a protobuf `Struct`.
pub fn to_struct(fields: Map<String, Value>) -> prost_types::Struct {
    prost_types::Struct { fields: fields.into_iter().map(|(name, value)| (name, to_proto(value))).collect() }
}

fn to_proto(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Value::String(value) => Kind::StringValue(value),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(to_proto).collect() })
        }
        Value::Object(fields) => Kind::StructValue(to_struct(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::MeshArgs;
    use crate::settings::Environment;
    use weft_core::node::NodeType;

    fn settings(engine: Engine) -> AgentSettings {
        let environment = Environment::of(&[
            ("POD_NAME", "reviews-v1-abc"),
            ("POD_NAMESPACE", "default"),
            ("INSTANCE_IP", "10.244.0.5,fd00::5"),
            ("ISTIO_META_WORKLOAD_NAME", "reviews-v1"),
            ("ISTIO_META_CLUSTER_ID", "east"),
            ("ISTIO_META_CUSTOM", "x"),
            ("ISTIO_METAJSON_MORE", r#"{"EXTRA": 1}"#),
            ("ISTIO_METAJSON_LABELS", r#"{"app": "reviews", "istio-locality": "r1.z1"}"#),
            ("PROXY_CONFIG", "concurrency: 2"),
        ]);
        AgentSettings::read(NodeType::Sidecar, &MeshArgs { engine, ..MeshArgs::default() }, environment).unwrap()
    }

    fn text(node: &Node, name: &str) -> Option<String> {
        let value = node.metadata.as_ref()?.fields.get(name)?.kind.clone()?;
        match value {
            prost_types::value::Kind::StringValue(text) => Some(text),
            other => Some(format!("{other:?}")),
        }
    }

    #[test]
    fn a_sidecar_says_who_it_is() {
        let node = node(&settings(Engine::Weft)).unwrap();
        assert_eq!(node.id, "sidecar~10.244.0.5~reviews-v1-abc.default~default.svc.cluster.local");
        assert_eq!(node.cluster, "reviews.default");
        for (name, value) in [
            ("NAME", "reviews-v1-abc"),
            ("WORKLOAD_NAME", "reviews-v1"),
            ("CLUSTER_ID", "east"),
            ("CUSTOM", "x"),
            ("INSTANCE_IPS", "10.244.0.5,fd00::5"),
            ("WEFT", "1"),
        ] {
            assert_eq!(text(&node, name).as_deref(), Some(value), "{name}");
        }
        assert!(
            text(&node, "EXTRA").is_some() && text(&node, "PROXY_CONFIG").is_some() && text(&node, "LABELS").is_some()
        );
        assert_eq!(text(&node, "NETWORK"), None, "what is not known is not said");
        let locality = node.locality.unwrap();
        assert_eq!((locality.region.as_str(), locality.zone.as_str()), ("r1", "z1"));
    }

    #[test]
    fn whether_it_takes_only_what_it_asks_for_is_said() {
        for (engine, role, given, said) in [
            (Engine::Weft, NodeType::Sidecar, "true", Some("true")),
            (Engine::Weft, NodeType::Sidecar, "false", None),
            (Engine::Weft, NodeType::Router, "true", None),
            (Engine::Envoy, NodeType::Sidecar, "true", None),
        ] {
            let environment = Environment::of(&[
                ("POD_NAME", "a"),
                ("POD_NAMESPACE", "default"),
                ("INSTANCE_IP", "10.244.0.5"),
                ("ISTIO_META_WEFT_ON_DEMAND", given),
            ]);
            let args = MeshArgs { engine, ..MeshArgs::default() };
            let settings = AgentSettings::read(role, &args, environment).unwrap();
            assert_eq!(
                text(&node(&settings).unwrap(), "WEFT_ON_DEMAND").as_deref(),
                said,
                "{engine:?} {role:?} {given}"
            );
        }
    }

    #[test]
    fn an_envoy_does_not_claim_our_extensions() {
        assert_eq!(text(&node(&settings(Engine::Envoy)).unwrap(), "WEFT"), None);
    }
}
