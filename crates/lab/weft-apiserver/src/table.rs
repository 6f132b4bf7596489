//! Tables, as `kubectl get` asks for them: columns and cells per kind; for Istio's and for custom kinds what their definitions
//! declare. Pure.

use crate::custom;
use crate::custom::path::Path;
use crate::kinds::Kinds;
use crate::route::Target;
use serde_json::{Value, json};
use weft_k8s_api::Object;

/// A column: name, whether only `-o wide` shows it, and what stands in it.
struct Column {
    name: String,
    kind: &'static str,
    description: String,
    wide: bool,
    cell: Cell,
}

enum Cell {
    Own(fn(&Object) -> Value),
    /// A declared column: type and place.
    Declared(String, Path),
}

impl Column {
    fn cell(&self, object: &Object, whole: &Value) -> Value {
        match &self.cell {
            Cell::Own(cell) => cell(object),
            Cell::Declared(kind, path) => declared(kind, path.find(whole).first().copied()),
        }
    }
}

/// The cell of a declared column. Source: "Additional printer columns": null where there is nothing, times as ages, what is
/// neither text nor number as JSON.
fn declared(kind: &str, value: Option<&Value>) -> Value {
    match (kind, value) {
        (_, None | Some(Value::Null)) => Value::Null,
        ("date", Some(value)) => {
            let time = value.as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
            time.map_or_else(|| "<invalid>".into(), |t| age(t.as_second().max(1), crate::tokens::now()).into())
        }
        ("integer" | "number" | "boolean", Some(value)) => value.clone(),
        (_, Some(Value::String(text))) => text.clone().into(),
        (_, Some(other)) => other.to_string().into(),
    }
}

/// The columns that a definition declares; `None` for kinds that have columns of their own.
fn declared_columns(kinds: &Kinds, target: &Target) -> Option<Vec<Column>> {
    let columns: Vec<custom::Column> = match kinds.custom(target.kind).and_then(|c| c.version(&target.version)) {
        Some(version) => version.columns.clone(),
        None => {
            let definition = weft_k8s_api::crd::definition(target.kind)?;
            let columns = definition.pointer("/spec/versions/0/additionalPrinterColumns")?.as_array()?.clone();
            columns.iter().map(custom::Column::read).collect()
        }
    };
    let declared = columns.into_iter().filter_map(|c| {
        let path = Path::parse(&c.path).ok()?;
        let kind = match c.kind.as_str() {
            "integer" => "integer",
            "number" => "number",
            "boolean" => "boolean",
            "date" => "date",
            _ => "string",
        };
        Some(Column {
            name: c.name,
            kind,
            description: c.description,
            wide: c.priority > 0,
            cell: Cell::Declared(c.kind, path),
        })
    });
    Some(std::iter::once(column("Name", |o| o.name().into())).chain(declared).collect())
}

fn column(name: &str, cell: fn(&Object) -> Value) -> Column {
    Column { name: name.into(), kind: "string", description: name.into(), wide: false, cell: Cell::Own(cell) }
}

fn wide(name: &str, cell: fn(&Object) -> Value) -> Column {
    Column { wide: true, ..column(name, cell) }
}

/// A `meta.k8s.io/v1` Table. `include` is the `includeObject` parameter.
pub(crate) fn table(kinds: &Kinds, target: &Target, objects: &[&Object], meta: Value, include: Option<&str>) -> Value {
    let found = declared_columns(kinds, target);
    let is_declared = found.is_some();
    let columns = found.unwrap_or_else(|| columns(target.kind.kind));
    let api_version = target.api_version();
    let definitions: Vec<Value> = columns
        .iter()
        .map(|c| {
            let format = if c.name == "Name" { "name" } else { "" };
            json!({"name": c.name, "type": c.kind, "format": format, "description": c.description, "priority": u8::from(c.wide)})
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let whole = if is_declared { object.to_value() } else { Value::Null };
            let cells: Vec<Value> = columns.iter().map(|c| c.cell(object, &whole)).collect();
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
        "RoleBinding" | "ClusterRoleBinding" => vec![column("Role", |o| {
            format!(
                "{}/{}",
                text(o, "/roleRef/kind").as_str().unwrap_or_default(),
                text(o, "/roleRef/name").as_str().unwrap_or_default()
            )
            .into()
        })],
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            vec![column("Webhooks", |o| length(o, "/webhooks").into())]
        }
        "CustomResourceDefinition" => {
            return vec![
                column("Name", |o| o.name().into()),
                column("Created At", |o| o.to_value()["metadata"]["creationTimestamp"].clone()),
            ];
        }
        "Lease" => vec![column("Holder", |o| text(o, "/spec/holderIdentity"))],
        "PodDisruptionBudget" => vec![
            column("Min Available", |o| text(o, "/spec/minAvailable")),
            column("Max Unavailable", |o| text(o, "/spec/maxUnavailable")),
            column("Allowed Disruptions", |o| count(o, "/status/disruptionsAllowed")),
        ],
        "HorizontalPodAutoscaler" => vec![
            column("Reference", |o| {
                format!(
                    "{}/{}",
                    text(o, "/spec/scaleTargetRef/kind").as_str().unwrap_or_default(),
                    text(o, "/spec/scaleTargetRef/name").as_str().unwrap_or_default()
                )
                .into()
            }),
            column("MinPods", |o| text(o, "/spec/minReplicas")),
            column("MaxPods", |o| text(o, "/spec/maxReplicas")),
            column("Replicas", |o| count(o, "/status/currentReplicas")),
        ],
        "Event" => {
            return vec![
                column("Last Seen", event_age),
                column("Type", |o| text(o, "/type")),
                column("Reason", |o| text(o, "/reason")),
                column("Object", |o| {
                    let part = |path| text(o, path).as_str().unwrap_or_default().to_string();
                    format!("{}/{}", part("/involvedObject/kind").to_lowercase(), part("/involvedObject/name")).into()
                }),
                column("Message", |o| text(o, "/message")),
                wide("Source", |o| text(o, "/source/component")),
                wide("Count", |o| text(o, "/count")),
                wide("Name", |o| o.name().into()),
            ];
        }
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
        "Pod" => vec![
            wide("IP", |o| text(o, "/status/podIP")),
            wide("Node", |o| text(o, "/spec/nodeName")),
            wide("Nominated Node", |o| text(o, "/status/nominatedNodeName")),
            wide("Readiness Gates", |o| list(o, "/spec/readinessGates", "/conditionType")),
        ],
        "Service" => vec![wide("Selector", |o| labels(o, "/spec/selector"))],
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" => vec![
            wide("Containers", |o| list(o, "/spec/template/spec/containers", "/name")),
            wide("Images", |o| list(o, "/spec/template/spec/containers", "/image")),
            wide("Selector", |o| labels(o, "/spec/selector/matchLabels")),
        ],
        "Node" => vec![
            wide("Internal-IP", |o| list(o, "/status/addresses", "/address")),
            wide("OS-Image", |o| text(o, "/status/nodeInfo/osImage")),
            wide("Kernel-Version", |o| text(o, "/status/nodeInfo/kernelVersion")),
        ],
        "RoleBinding" | "ClusterRoleBinding" => vec![wide("Subjects", |o| list(o, "/subjects", "/name"))],
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

/// `a=b,c=d`.
fn labels(object: &Object, pointer: &str) -> Value {
    let pairs = at(object, pointer).and_then(Value::as_object).into_iter().flatten();
    let texts: Vec<String> =
        pairs.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    if texts.is_empty() { "<none>".into() } else { texts.join(",").into() }
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

fn event_age(event: &Object) -> Value {
    let seen = ["/lastTimestamp", "/eventTime", "/firstTimestamp"]
        .into_iter()
        .find_map(|path| at(event, path).and_then(Value::as_str).and_then(|t| t.parse::<jiff::Timestamp>().ok()));
    age(seen.map_or_else(|| event.created(), |t| t.as_second()), crate::tokens::now()).into()
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
        let table = super::table(&Kinds::default(), &target("pods"), &[&pod], json!({}), None);
        assert_eq!(
            table["rows"][0]["cells"],
            json!(["a", "1/2", "CrashLoopBackOff", "3", "<unknown>", "10.0.0.1", "lab", "<none>", "<none>"])
        );
        assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        for kind in KINDS {
            let mut target = target("pods");
            target.kind = kind;
            let table = super::table(&Kinds::default(), &target, &[&pod], json!({}), Some("None"));
            let columns = table["columnDefinitions"].as_array().unwrap().len();
            assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), columns, "{}", kind.kind);
        }
    }
}
