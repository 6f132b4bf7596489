//! The facts that a build takes from Kubernetes objects: pods, services, endpoint slices, nodes, secrets. Only what the
//! mesh uses is kept, so that a heartbeat or a status update of no concern changes nothing.

use crate::parsed::Reader;
use crate::{Credential, Labels, trim};
use k8s_openapi::ByteString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_core::well_known::label;
use weft_k8s_api::Object;

/// Reads `object.body[field]`; a missing field reads as the default.
fn part<T: DeserializeOwned + Default>(object: &Object, field: &str) -> Result<T, String> {
    part_of(object, &object.body, field)
}

/// Reads a field of a body that may have been trimmed.
fn part_of<T: DeserializeOwned + Default>(
    object: &Object,
    body: &Map<String, Value>,
    field: &str,
) -> Result<T, String> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(T::default()),
        Some(value) => T::deserialize(value).or_else(|_| {
            // In Kubernetes a null is a field that is not there: whoever patches may leave some behind.
            T::deserialize(without_nulls(value)).map_err(|e| format!("{}: {field}: {e}", object.key()))
        }),
    }
}

/// The value without fields that are null, at any depth.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// A pod, as far as the mesh is concerned.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Pod {
    pub addresses: Vec<IpAddr>,
    pub service_account: String,
    pub node: String,
    pub owner: Option<(String, String)>,
    pub template_hash: String,
    pub has_proxy: bool,
    pub host_network: bool,
    pub ready: bool,
    /// Ran to its end, successfully or not: it has no address any more.
    pub finished: bool,
    pub container_ports: Vec<(u16, String)>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    service_account_name: String,
    host_network: bool,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Container {
    name: String,
    ports: Vec<ContainerPort>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    container_port: u16,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
    conditions: Vec<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct PodIp {
    ip: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
}

/// Name of the proxy's container in a pod.
const PROXY_CONTAINER: &str = "istio-proxy";

pub(crate) const POD: Reader<Pod> = |object| {
    let body = trim::body(object);
    let spec: PodSpec = part_of(object, &body, "spec")?;
    let status: PodStatus = part_of(object, &body, "status")?;
    let owner = object.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
    let all = || spec.containers.iter().chain(&spec.init_containers);
    let mut addresses: Vec<IpAddr> = status.pod_ips.iter().filter_map(|p| p.ip.parse().ok()).collect();
    if addresses.is_empty() {
        addresses.extend(status.pod_ip.parse::<IpAddr>().ok());
    }
    Ok(Pod {
        addresses,
        service_account: if spec.service_account_name.is_empty() {
            "default".into()
        } else {
            spec.service_account_name.clone()
        },
        node: spec.node_name.clone(),
        owner: owner.map(|o| (o.kind.clone(), o.name.clone())),
        template_hash: object.label("pod-template-hash").unwrap_or_default().into(),
        // A pod that is a proxy alone is a gateway: its ports are what its Gateway objects say.
        has_proxy: all().any(|c| c.name == PROXY_CONTAINER)
            && spec.containers.iter().any(|c| c.name != PROXY_CONTAINER),
        host_network: spec.host_network,
        ready: status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True"),
        finished: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        container_ports: all().flat_map(|c| &c.ports).map(|p| (p.container_port, p.name.clone())).collect(),
    })
};

/// `region/zone/subzone` of a node.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Node {
    pub locality: String,
}

pub(crate) const NODE: Reader<Node> = |object| {
    let of = |name| object.label(name).unwrap_or_default();
    Ok(Node { locality: locality(of(label::REGION), of(label::ZONE), of("topology.istio.io/subzone")) })
};

/// Joins the parts of a locality, leaving off the empty tail.
pub(crate) fn locality(region: &str, zone: &str, subzone: &str) -> String {
    format!("{region}/{zone}/{subzone}").trim_end_matches('/').to_string()
}

/// A namespace; its labels are in the envelope.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Namespace;

pub(crate) const NAMESPACE: Reader<Namespace> = |_| Ok(Namespace);

/// A service's spec.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceSpec {
    pub r#type: String,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    pub selector: Option<Labels>,
    pub external_name: String,
    pub internal_traffic_policy: String,
    pub publish_not_ready_addresses: bool,
    pub traffic_distribution: String,
    pub ports: Vec<ServicePortSpec>,
    /// Addresses and names of the load balancer in front, from the status.
    #[serde(skip)]
    pub load_balancer: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    load_balancer: LoadBalancer,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct LoadBalancer {
    ingress: Vec<LoadBalancerIngress>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct LoadBalancerIngress {
    ip: String,
    hostname: String,
}

/// A port of a service's spec.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServicePortSpec {
    pub name: String,
    pub port: u16,
    pub protocol: String,
    pub app_protocol: Option<String>,
    pub target_port: Option<IntOrName>,
}

/// A port given by number or by name.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum IntOrName {
    Number(u16),
    Name(String),
}

pub(crate) const SERVICE: Reader<ServiceSpec> = |object| {
    let status: ServiceStatus = part(object, "status")?;
    let mut spec: ServiceSpec = part(object, "spec")?;
    let addresses = status.load_balancer.ingress.into_iter();
    spec.load_balancer = addresses.map(|a| if a.ip.is_empty() { a.hostname } else { a.ip }).collect();
    Ok(spec)
};

/// Addresses behind a service, from one endpoint slice (or one `Endpoints` object).
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Slice {
    pub service: String,
    pub ports: Vec<(String, u16)>,
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct SliceEndpoint {
    pub addresses: Vec<String>,
    pub pod: Option<String>,
    pub node: String,
    pub zone: String,
    pub ready: bool,
    pub draining: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawEndpoint {
    addresses: Vec<String>,
    conditions: RawConditions,
    target_ref: Option<TargetRef>,
    node_name: Option<String>,
    zone: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TargetRef {
    kind: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawPort {
    name: Option<String>,
    port: Option<u16>,
}

pub(crate) const ENDPOINT_SLICE: Reader<Slice> = |object| {
    let body = trim::body(object);
    let endpoints: Vec<RawEndpoint> = part_of(object, &body, "endpoints")?;
    let ports: Vec<RawPort> = part_of(object, &body, "ports")?;
    Ok(Slice {
        service: object.label(label::SERVICE_NAME).unwrap_or_default().into(),
        ports: ports.into_iter().filter_map(|p| Some((p.name.unwrap_or_default(), p.port?))).collect(),
        endpoints: endpoints.into_iter().map(slice_endpoint).collect(),
    })
};

fn slice_endpoint(raw: RawEndpoint) -> SliceEndpoint {
    // A missing `ready` means ready, and a missing `serving` means the same as `ready` (EndpointConditions).
    let ready = raw.conditions.ready.unwrap_or(true);
    let terminating = raw.conditions.terminating.unwrap_or(false);
    SliceEndpoint {
        addresses: raw.addresses,
        pod: raw.target_ref.filter(|t| t.kind == "Pod").map(|t| t.name),
        node: raw.node_name.unwrap_or_default(),
        zone: raw.zone.unwrap_or_default(),
        ready: ready && !terminating,
        draining: terminating && raw.conditions.serving.unwrap_or(ready),
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Subset {
    addresses: Vec<SubsetAddress>,
    ports: Vec<RawPort>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SubsetAddress {
    ip: String,
    node_name: Option<String>,
    target_ref: Option<TargetRef>,
}

/// The `Endpoints` form: one slice for each subset.
pub(crate) const ENDPOINTS: Reader<Vec<Slice>> = |object| {
    let subsets: Vec<Subset> = part(object, "subsets")?;
    Ok(subsets
        .into_iter()
        .map(|subset| Slice {
            service: object.name().into(),
            ports: subset.ports.into_iter().filter_map(|p| Some((p.name.unwrap_or_default(), p.port?))).collect(),
            endpoints: subset.addresses.into_iter().map(subset_endpoint).collect(),
        })
        .collect())
};

fn subset_endpoint(address: SubsetAddress) -> SliceEndpoint {
    SliceEndpoint {
        addresses: vec![address.ip],
        pod: address.target_ref.filter(|t| t.kind == "Pod").map(|t| t.name),
        node: address.node_name.unwrap_or_default(),
        zone: String::new(),
        ready: true,
        draining: false,
    }
}

/// What a gateway may use of a secret; `None` when it holds nothing of that kind.
pub(crate) const SECRET: Reader<Option<Credential>> = |object| {
    let mut data: BTreeMap<String, ByteString> = part(object, "data")?;
    let plain: BTreeMap<String, String> = part(object, "stringData")?;
    data.extend(plain.into_iter().map(|(k, v)| (k, ByteString(v.into_bytes()))));
    let mut take = |names: &[&str]| names.iter().find_map(|n| data.remove(*n)).map(|b| b.0);
    let cert = take(&["tls.crt", "cert"]);
    let key = take(&["tls.key", "key"]);
    let ca = take(&["ca.crt", "cacert"]);
    let crl = take(&["ca.crl", "crl"]);
    match (cert, key, ca) {
        (None, None, None) => Ok(None),
        (None, None, ca) => {
            Ok(Some(Credential { cert_chain: Vec::new(), private_key: Vec::new(), ca, crl, facts: None }))
        }
        (Some(cert_chain), Some(private_key), ca) => {
            if !is_pem(&cert_chain, "CERTIFICATE") {
                return Err(format!("{}: the certificate (tls.crt or cert) is not PEM", object.key()).into());
            }
            if !is_pem(&private_key, "PRIVATE KEY") {
                return Err(format!("{}: the private key (tls.key or key) is not PEM", object.key()).into());
            }
            let facts = crate::certificates::facts(&cert_chain, &private_key);
            let facts = facts.map_err(|why| format!("{}: {why}", object.key()))?;
            Ok(Some(Credential { cert_chain, private_key, ca, crl, facts: Some(facts) }))
        }
        // An opaque secret may use these names for something else.
        (cert, ..) if object.body.get("type").and_then(Value::as_str) == Some("kubernetes.io/tls") => {
            let missing = if cert.is_some() { "tls.key" } else { "tls.crt" };
            Err(format!(
                "{}: data has no {missing}; a kubernetes.io/tls secret needs tls.crt and tls.key",
                object.key()
            )
            .into())
        }
        _ => Ok(None),
    }
};

/// CA certificates of a config map, under the names that secrets have them; `None` when it holds none.
pub(crate) const CONFIG_MAP: Reader<Option<Credential>> = |object| {
    let data = object.body.get("data").and_then(Value::as_object);
    let of = |name: &str| data.and_then(|d| d.get(name)).and_then(Value::as_str);
    let ca = of("ca.crt").or_else(|| of("cacert")).filter(|text| is_pem(text.as_bytes(), "CERTIFICATE"));
    Ok(ca.map(|ca| Credential {
        cert_chain: Vec::new(),
        private_key: Vec::new(),
        ca: Some(ca.as_bytes().to_vec()),
        crl: of("ca.crl").map(|crl| crl.as_bytes().to_vec()),
        facts: None,
    }))
};

fn is_pem(bytes: &[u8], what: &str) -> bool {
    let text = String::from_utf8_lossy(bytes);
    text.contains("-----BEGIN ") && text.contains(&format!("{what}-----"))
}
