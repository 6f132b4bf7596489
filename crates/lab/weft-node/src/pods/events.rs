//! Events of pods and of what owns them, as `kubectl describe` and `kubectl get events` show them. Bounded: the oldest are dropped.

use crate::controllers::NODE;
use crate::controllers::objects::{hash, list, now, uid};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, json};
use weft_k8s_api::Object;
use weft_store::{DeleteOptions, MemoryStore};

/// Events kept; when there are more, a quarter of them goes.
const KEPT: usize = 1000;

/// What happened to a pod, to one of its containers, or to an object that owns pods.
pub struct ObjectEvent<'a> {
    /// Something that the user should look at.
    pub warning: bool,
    /// One word.
    pub reason: &'a str,
    /// A sentence.
    pub message: &'a str,
    /// The container that it is about.
    pub container: Option<&'a str>,
}

/// Records an event; one that was there before is counted.
pub fn record(store: &MemoryStore, about: &Object, event: &ObjectEvent<'_>) {
    let place = event.container.map(|name| format!("spec.containers{{{name}}}"));
    let id = hash(&json!([uid(about), event.reason, event.message, place]));
    let name = format!("{}.{id}", about.name());
    let time = now();
    if let Some(known) = store.find("", "Event", about.namespace(), &name) {
        let _ = store.modify(&known.key(), |known| {
            let count = known.body.get("count").and_then(serde_json::Value::as_i64).unwrap_or(1) + 1;
            known.body.insert("count".into(), count.into());
            known.body.insert("lastTimestamp".into(), time.clone().into());
        });
        return;
    }
    drop_oldest(store);
    let metadata = ObjectMeta { name: Some(name), namespace: Some(about.namespace().into()), ..ObjectMeta::default() };
    let mut object = Object { api_version: "v1".into(), kind: "Event".into(), metadata, body: Map::new() };
    let mut involved = json!({"apiVersion": about.api_version, "kind": about.kind, "namespace": about.namespace(),
                              "name": about.name(), "uid": uid(about)});
    if let Some(place) = place {
        involved["fieldPath"] = place.into();
    }
    for (field, value) in [
        ("involvedObject", involved),
        ("type", if event.warning { "Warning" } else { "Normal" }.into()),
        ("reason", event.reason.into()),
        ("message", event.message.into()),
        ("count", 1.into()),
        ("firstTimestamp", time.clone().into()),
        ("lastTimestamp", time.into()),
        ("source", json!({"component": "weft-node", "host": NODE})),
    ] {
        object.body.insert(field.into(), value);
    }
    // Its namespace may be going: then nobody will ask.
    let _ = store.create(object);
}

fn drop_oldest(store: &MemoryStore) {
    let mut events = list(store, "", "Event");
    if events.len() < KEPT {
        return;
    }
    events.sort_by_key(|event| event.created());
    for event in &events[..KEPT / 4] {
        let _ = store.delete(&event.key(), &DeleteOptions::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_store::StoreOptions;

    #[test]
    fn counts_and_stays_bounded() {
        let store = MemoryStore::with_options(StoreOptions { require_namespaces: false, ..StoreOptions::default() });
        let pod: Object = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "n", "uid": "u"}}))
        .unwrap();
        let tell = |message: &str| {
            record(&store, &pod, &ObjectEvent { warning: true, reason: "BackOff", message, container: Some("c") });
        };
        tell("same");
        tell("same");
        let events = list(&store, "", "Event");
        assert_eq!((events.len(), &events[0].body["count"]), (1, &json!(2)));
        assert_eq!(events[0].body["involvedObject"]["fieldPath"], "spec.containers{c}");
        (0..KEPT + 10).for_each(|n| tell(&n.to_string()));
        assert!(list(&store, "", "Event").len() <= KEPT);
    }
}
