//! Tables, as `kubectl get` asks for them: columns and cells per kind. Pure.

use crate::route::Target;
use serde_json::{Value, json};
use weft_k8s_api::Object;

/// A column: name, whether only `-o wide` shows it, and what stands in it.
struct Column {
    name: &'static str,
    wide: bool,
    cell: fn(&Object) -> Value,
}

const fn column(name: &'static str, cell: fn(&Object) -> Value) -> Column {
    Column { name, wide: false, cell }
}

const fn wide(name: &'static str, cell: fn(&Object) -> Value) -> Column {
    Column { name, wide: true, cell }
}

/// A `meta.k8s.io/v1` Table. `include` is the `includeObject` parameter.
pub(crate) fn table(target: &Target, objects: &[&Object], meta: Value, include: Option<&str>) -> Value {
    let columns = columns(target.kind.kind);
    let api_version = target.api_version();
    let definitions: Vec<Value> = columns
        .iter()
        .map(|c| {
            let format = if c.name == "Name" { "name" } else { "" };
            json!({"name": c.name, "type": "string", "format": format, "description": c.name, "priority": u8::from(c.wide)})
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells: Vec<Value> = columns.iter().map(|c| (c.cell)(object)).collect();
            match include {
                Some("None") => json!({"cells": cells}),
                Some("Object") => {
                    let mut whole = object.to_value();
                    whole["apiVersion"] = api_version.clone().into();
                    json!({"cells": cells, "object": whole})
                }
                _ => {
                    let metadata = &object.metadata;
                    let partial =
                        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
                    json!({"cells": cells, "object": partial})
                }
            }
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
        "columnDefinitions": definitions, "rows": rows,
    })
}

fn columns(kind: &str) -> Vec<Column> {
    let mut columns = vec![column("Name", |o| o.name().into())];
    let before: Vec<Column> = match kind {
        "Pod" => vec![
            column("Ready", pod_ready),
            column("Status", pod_status),
            column("Restarts", |o| containers(o).map(|c| number(c, "/restartCount")).sum::<i64>().to_string().into()),
        ],
        "Namespace" => vec![column("Status", |o| text(o, "/status/phase"))],
        "Service" => vec![
            column("Type", |o| text(o, "/spec/type")),
            column("Cluster-IP", |o| text(o, "/spec/clusterIP")),
            column("External-IP", external_ip),
            column("Port(s)", service_ports),
        ],
        "Deployment" => vec![
            column("Ready", |o| ready(o, "/status/readyReplicas", "/spec/replicas")),
            column("Up-to-date", |o| count(o, "/status/updatedReplicas")),
            column("Available", |o| count(o, "/status/availableReplicas")),
        ],
        "StatefulSet" => vec![column("Ready", |o| ready(o, "/status/readyReplicas", "/spec/replicas"))],
        "ReplicaSet" => vec![
            column("Desired", |o| count(o, "/spec/replicas")),
            column("Current", |o| count(o, "/status/replicas")),
            column("Ready", |o| count(o, "/status/readyReplicas")),
        ],
        "DaemonSet" => vec![
            column("Desired", |o| count(o, "/status/desiredNumberScheduled")),
            column("Current", |o| count(o, "/status/currentNumberScheduled")),
            column("Ready", |o| count(o, "/status/numberReady")),
        ],
        "Job" => vec![column("Completions", |o| ready(o, "/status/succeeded", "/spec/completions"))],
        "CronJob" => vec![column("Schedule", |o| text(o, "/spec/schedule"))],
        "Node" => {
            vec![column("Status", node_status), column("Version", |o| text(o, "/status/nodeInfo/kubeletVersion"))]
        }
        "ConfigMap" => vec![column("Data", |o| entries(o).into())],
        "Secret" => vec![column("Type", |o| text(o, "/type")), column("Data", |o| entries(o).into())],
        "ServiceAccount" => vec![column("Secrets", |o| length(o, "/secrets").into())],
        "Endpoints" => vec![column("Endpoints", |o| list(o, "/subsets", "/addresses/0/ip"))],
        "EndpointSlice" => vec![
            column("AddressType", |o| text(o, "/addressType")),
            column("Ports", |o| list(o, "/ports", "/port")),
            column("Endpoints", |o| list(o, "/endpoints", "/addresses/0")),
        ],
        "Ingress" => vec![
            column("Class", |o| text(o, "/spec/ingressClassName")),
            column("Hosts", |o| list(o, "/spec/rules", "/host")),
        ],
        "VirtualService" => {
            vec![column("Gateways", |o| list(o, "/spec/gateways", "")), column("Hosts", |o| list(o, "/spec/hosts", ""))]
        }
        "DestinationRule" => vec![column("Host", |o| text(o, "/spec/host"))],
        "ServiceEntry" => vec![
            column("Hosts", |o| list(o, "/spec/hosts", "")),
            column("Location", |o| text(o, "/spec/location")),
            column("Resolution", |o| text(o, "/spec/resolution")),
        ],
        "WorkloadEntry" => vec![column("Address", |o| text(o, "/spec/address"))],
        "PeerAuthentication" => vec![column("Mode", |o| text(o, "/spec/mtls/mode"))],
        "AuthorizationPolicy" => vec![column("Action", |o| text(o, "/spec/action"))],
        "Event" => vec![
            column("Type", |o| text(o, "/type")),
            column("Reason", |o| text(o, "/reason")),
            column("Object", |o| {
                let part = |path| text(o, path).as_str().unwrap_or_default().to_string();
                format!("{}/{}", part("/involvedObject/kind").to_lowercase(), part("/involvedObject/name")).into()
            }),
            column("Message", |o| text(o, "/message")),
        ],
        _ => Vec::new(),
    };
    columns.extend(before);
    columns.push(column("Age", |o| age(o.created(), crate::tokens::now()).into()));
    columns.extend(wide_columns(kind));
    columns
}

/// Those that `-o wide` adds.
fn wide_columns(kind: &str) -> Vec<Column> {
    match kind {
        "Pod" => vec![wide("IP", |o| text(o, "/status/podIP")), wide("Node", |o| text(o, "/spec/nodeName"))],
        "Deployment" | "ReplicaSet" | "StatefulSet" => {
            vec![wide("Images", |o| list(o, "/spec/template/spec/containers", "/image"))]
        }
        _ => Vec::new(),
    }
}

/// A value at a JSON pointer into the object's body.
fn at<'a>(object: &'a Object, pointer: &str) -> Option<&'a Value> {
    let mut segments = pointer.trim_start_matches('/').splitn(2, '/');
    let value = object.body.get(segments.next()?)?;
    segments.next().map_or(Some(value), |rest| value.pointer(&format!("/{rest}")))
}

fn text(object: &Object, pointer: &str) -> Value {
    match at(object, pointer) {
        None | Some(Value::Null) => "<none>".into(),
        Some(Value::String(text)) if text.is_empty() => "<none>".into(),
        Some(Value::String(text)) => text.clone().into(),
        Some(other) => other.to_string().into(),
    }
}

fn count(object: &Object, pointer: &str) -> Value {
    at(object, pointer).and_then(Value::as_i64).unwrap_or(0).to_string().into()
}

fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn length(object: &Object, pointer: &str) -> String {
    at(object, pointer).and_then(Value::as_array).map_or(0, Vec::len).to_string()
}

fn entries(object: &Object) -> String {
    let size = |name| object.body.get(name).and_then(Value::as_object).map_or(0, |m| m.len());
    (size("data") + size("binaryData")).to_string()
}

fn ready(object: &Object, have: &str, want: &str) -> Value {
    let number = |pointer| at(object, pointer).and_then(Value::as_i64).unwrap_or(0);
    format!("{}/{}", number(have), number(want)).into()
}

/// The first three values at `pointer` inside the items of a list.
fn list(object: &Object, path: &str, pointer: &str) -> Value {
    let items = at(object, path).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let word = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
    let texts: Vec<String> = items.iter().filter_map(|i| i.pointer(pointer)).map(word).collect();
    match texts.len() {
        0 => "<none>".into(),
        1..=3 => texts.join(",").into(),
        n => format!("{} + {} more...", texts.get(..3).unwrap_or_default().join(","), n - 3).into(),
    }
}

fn containers(pod: &Object) -> impl Iterator<Item = &Value> {
    at(pod, "/status/containerStatuses").and_then(Value::as_array).into_iter().flatten()
}

fn pod_ready(pod: &Object) -> Value {
    let all = at(pod, "/spec/containers").and_then(Value::as_array).map_or(0, Vec::len);
    let ready = containers(pod).filter(|c| c.get("ready").and_then(Value::as_bool) == Some(true)).count();
    format!("{ready}/{all}").into()
}

/// The phase, or the reason why a container does not run.
fn pod_status(pod: &Object) -> Value {
    if pod.metadata.deletion_timestamp.is_some() {
        return "Terminating".into();
    }
    let init = at(pod, "/status/initContainerStatuses").and_then(Value::as_array).into_iter().flatten();
    for container in init {
        if let Some(reason) = container.pointer("/state/waiting/reason").and_then(Value::as_str)
            && reason != "PodInitializing"
        {
            return format!("Init:{reason}").into();
        }
    }
    let reason = containers(pod).find_map(|c| {
        let state = |path| c.pointer(path).and_then(Value::as_str).map(str::to_string);
        state("/state/waiting/reason").or_else(|| state("/state/terminated/reason"))
    });
    reason.map_or_else(|| text(pod, "/status/phase"), Value::from)
}

fn node_status(node: &Object) -> Value {
    let conditions = at(node, "/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let ready = conditions.filter(|c| c["type"] == "Ready").any(|c| c["status"] == "True");
    if ready { "Ready".into() } else { "NotReady".into() }
}

fn external_ip(service: &Object) -> Value {
    if let Some(name) = at(service, "/spec/externalName").and_then(Value::as_str) {
        return name.into();
    }
    let given = list(service, "/status/loadBalancer/ingress", "/ip");
    let balanced = at(service, "/spec/type").and_then(Value::as_str) == Some("LoadBalancer");
    if balanced && given == "<none>" { "<pending>".into() } else { given }
}

fn service_ports(service: &Object) -> Value {
    let ports = at(service, "/spec/ports").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let texts: Vec<String> = ports
        .iter()
        .map(|p| {
            let node = p.get("nodePort").and_then(Value::as_i64).map(|n| format!(":{n}")).unwrap_or_default();
            let protocol = p.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
            format!("{}{node}/{protocol}", number(p, "/port"))
        })
        .collect();
    if texts.is_empty() { "<none>".into() } else { texts.join(",").into() }
}

/// Time since `created` with two units at most: `5s`, `3m20s`, `10m`, `2h5m`, `3d4h`, `400d`.
fn age(created: i64, now: i64) -> String {
    if created == 0 {
        return "<unknown>".into();
    }
    let seconds = (now - created).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |big: i64, unit: &str, small: i64, part: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{part}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_k8s_api::kinds::{KINDS, by_any_name};

    #[test]
    fn ages() {
        for (seconds, want) in [
            (0, "0s"),
            (119, "119s"),
            (200, "3m20s"),
            (240, "4m"),
            (601, "10m"),
            (10_900, "3h1m"),
            (30_000, "8h"),
            (180_000, "2d2h"),
            (31_536_000, "365d"),
        ] {
            assert_eq!(age(1000, 1000 + seconds), want);
        }
        assert_eq!(age(0, 5), "<unknown>");
    }

    #[test]
    fn rows() {
        let pod: Object = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "n"},
            "spec": {"containers": [{"name": "x"}, {"name": "y"}], "nodeName": "lab"},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [
                {"ready": true, "restartCount": 2, "state": {"running": {}}},
                {"ready": false, "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
            ]},
        }))
        .unwrap();
        let target = |name| Target {
            kind: by_any_name(name).unwrap(),
            version: "v1".into(),
            namespace: None,
            name: None,
            sub: None,
        };
        let table = super::table(&target("pods"), &[&pod], json!({}), None);
        assert_eq!(
            table["rows"][0]["cells"],
            json!(["a", "1/2", "CrashLoopBackOff", "3", "<unknown>", "10.0.0.1", "lab"])
        );
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        for kind in KINDS {
            let mut target = target("pods");
            target.kind = kind;
            let table = super::table(&target, &[&pod], json!({}), Some("None"));
            let columns = table["columnDefinitions"].as_array().unwrap().len();
            assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), columns, "{}", kind.kind);
        }
    }
}
