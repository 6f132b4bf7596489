//! What pods and nodes take (`metrics.k8s.io`), for `kubectl top`: questions that are answered by who runs the pods, nothing is
//! stored. Processor time is a rate, so two looks are compared; the first who asks waits for the second look.
//!
//! Source: the Kubernetes documentation, "Resource metrics pipeline"; the names and units of `metrics.k8s.io/v1beta1`.

use crate::kinds::MEASURED;
use crate::pods::{PodBackend, Usage};
use crate::render;
use crate::resources::selectors;
use crate::route::Target;
use crate::server::Context;
use crate::status::ApiError;
use axum::response::Response;
use http::Method;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use weft_k8s_api::{KindInfo, Object};
use weft_store::ListQuery;

/// Shortest time between two looks that are compared: processor time is told in hundredths of a second.
const SHORTEST: Duration = Duration::from_secs(1);
/// Longest: an average over more says nothing of now.
const LONGEST: Duration = Duration::from_secs(60);

/// Whether a kind is one of those that are measured.
pub(crate) fn is_measured(kind: &KindInfo) -> bool {
    MEASURED.iter().any(|measured| std::ptr::eq(*measured, kind))
}

/// What was seen last. Whoever asks while another looks waits for that look.
#[derive(Default)]
pub(crate) struct Looks(Mutex<Option<Looked>>);

struct Looked {
    at: Instant,
    /// By the pod's uid and the container's name.
    taken: HashMap<(String, String), Usage>,
    rates: Arc<Rates>,
}

/// What containers take.
#[derive(Default)]
struct Rates {
    window: Duration,
    /// By the pod's uid: the container's name, billionths of a processor, bytes.
    pods: HashMap<String, Vec<(String, u64, u64)>>,
}

impl Looks {
    async fn rates(&self, backend: &dyn PodBackend) -> std::io::Result<Arc<Rates>> {
        let mut last = self.0.lock().await;
        let before = match last.take().filter(|looked| looked.at.elapsed() < LONGEST) {
            Some(looked) if looked.at.elapsed() < SHORTEST && looked.rates.window > Duration::ZERO => {
                let rates = looked.rates.clone();
                *last = Some(looked);
                return Ok(rates);
            }
            Some(looked) => looked,
            None => Looked { at: Instant::now(), taken: look(backend).await?, rates: Arc::default() },
        };
        sleep(SHORTEST.saturating_sub(before.at.elapsed())).await;
        let (at, taken) = (Instant::now(), look(backend).await?);
        let rates = Arc::new(compare(&before.taken, &taken, at - before.at));
        *last = Some(Looked { at, taken, rates: rates.clone() });
        Ok(rates)
    }
}

async fn look(backend: &dyn PodBackend) -> std::io::Result<HashMap<(String, String), Usage>> {
    let all = backend.usage().await?;
    Ok(all.into_iter().map(|usage| ((usage.pod_uid.clone(), usage.container.clone()), usage)).collect())
}

fn compare(
    before: &HashMap<(String, String), Usage>,
    now: &HashMap<(String, String), Usage>,
    window: Duration,
) -> Rates {
    let mut pods: HashMap<String, Vec<(String, u64, u64)>> = HashMap::new();
    for ((uid, container), usage) in now {
        // A container that has started since has taken all of it since; one that was started anew begins at nothing.
        let earlier = before.get(&(uid.clone(), container.clone())).map_or(Duration::ZERO, |usage| usage.processor);
        let taken = usage.processor.checked_sub(earlier).unwrap_or(usage.processor);
        let rate = taken.as_nanos() * 1_000_000_000 / window.as_nanos().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        pods.entry(uid.clone()).or_default().push((container.clone(), rate, usage.memory));
    }
    pods.values_mut().for_each(|containers| containers.sort());
    Rates { window, pods }
}

/// GET of what pods or nodes take, one or all.
pub(crate) async fn handle(context: &Context, target: &Target, method: &Method) -> Result<Response, ApiError> {
    if method != Method::GET || target.sub.is_some() || context.params.is_set("watch") {
        return Err(ApiError::method_not_allowed());
    }
    let backend = context.server.pods().ok_or_else(ApiError::no_such_path)?;
    let rates = context.server.looks().rates(&*backend).await;
    let rates = rates.map_err(|error| ApiError::internal(format!("what pods take cannot be read: {error}")))?;
    let items: Vec<Value> = match target.kind.namespaced {
        true => objects(context, target, "Pod")?.iter().filter_map(|pod| of_pod(pod, target, &rates)).collect(),
        false => of_nodes(context, target, &rates)?,
    };
    match &target.name {
        Some(name) => items.first().map(render::value).ok_or_else(|| ApiError::not_found(target.kind, name)),
        None => Ok(render::value(&json!({
            "kind": format!("{}List", target.kind.kind), "apiVersion": target.api_version(), "metadata": {}, "items": items,
        }))),
    }
}

/// The objects of a kind that the request is about.
fn objects(context: &Context, target: &Target, kind: &str) -> Result<Vec<Arc<Object>>, ApiError> {
    let (labels, fields) = selectors(context, target)?;
    let namespace = target.namespace.clone();
    let query = ListQuery { namespace, labels, fields, ..ListQuery::all("", kind) };
    let list = context.server.store().list(&query).map_err(|e| ApiError::from_store(target.kind, e))?;
    let named = |object: &Arc<Object>| target.name.as_deref().is_none_or(|name| object.name() == name);
    Ok(list.items.into_iter().filter(named).collect())
}

fn item(target: &Target, object: &Object, rates: &Rates) -> Value {
    let now = jiff::Timestamp::from_second(crate::tokens::now()).unwrap_or_default().to_string();
    let mut metadata = json!({"name": object.name(), "creationTimestamp": now, "labels": object.metadata.labels});
    if target.kind.namespaced {
        metadata["namespace"] = object.namespace().into();
    }
    json!({
        "kind": target.kind.kind, "apiVersion": target.api_version(), "metadata": metadata, "timestamp": now,
        "window": format!("{:.3}s", rates.window.as_secs_f64()),
    })
}

fn usage(processor: u64, memory: u64) -> Value {
    json!({"cpu": format!("{processor}n"), "memory": format!("{}Ki", memory >> 10)})
}

fn of_pod(pod: &Object, target: &Target, rates: &Rates) -> Option<Value> {
    let containers = rates.pods.get(pod.metadata.uid.as_deref()?)?;
    let mut found = item(target, pod, rates);
    let one =
        |(name, processor, memory): &(String, u64, u64)| json!({"name": name, "usage": usage(*processor, *memory)});
    found["containers"] = containers.iter().map(one).collect();
    Some(found)
}

/// What the pods of each node take.
fn of_nodes(context: &Context, target: &Target, rates: &Rates) -> Result<Vec<Value>, ApiError> {
    let pods =
        context.server.store().list(&ListQuery::all("", "Pod")).map_err(|e| ApiError::from_store(target.kind, e))?;
    let mut nodes: HashMap<&str, (u64, u64)> = HashMap::new();
    for pod in &pods.items {
        let node = pod.spec().get("nodeName").and_then(Value::as_str).unwrap_or_default();
        for (_, processor, memory) in
            pod.metadata.uid.as_ref().and_then(|uid| rates.pods.get(uid)).into_iter().flatten()
        {
            let sum = nodes.entry(node).or_default();
            *sum = (sum.0.saturating_add(*processor), sum.1.saturating_add(*memory));
        }
    }
    let all = objects(context, target, "Node")?;
    let made = all.iter().map(|node| {
        let (processor, memory) = nodes.get(node.name()).copied().unwrap_or_default();
        let mut found = item(target, node, rates);
        found["usage"] = usage(processor, memory);
        found
    });
    Ok(made.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(all: &[(&str, u64, u64)]) -> HashMap<(String, String), Usage> {
        let one = |(container, millis, memory): &(&str, u64, u64)| {
            let usage = Usage {
                pod_uid: "u".into(),
                container: (*container).into(),
                processor: Duration::from_millis(*millis),
                memory: *memory,
            };
            (("u".into(), (*container).into()), usage)
        };
        all.iter().map(one).collect()
    }

    #[test]
    fn rates_between_two_looks() {
        let before = taken(&[("busy", 100, 1), ("idle", 50, 2), ("anew", 900, 3)]);
        let now = taken(&[("busy", 1100, 10), ("idle", 50, 20), ("anew", 20, 30), ("new", 40, 40)]);
        let rates = compare(&before, &now, Duration::from_secs(2));
        let wanted = [("anew", 10_000_000, 30), ("busy", 500_000_000, 10), ("idle", 0, 20), ("new", 20_000_000, 40)];
        assert_eq!(rates.pods["u"], wanted.map(|(name, processor, memory)| (name.to_string(), processor, memory)));
        assert_eq!(usage(500_000_000, 10 << 20), json!({"cpu": "500000000n", "memory": "10240Ki"}));
    }
}
