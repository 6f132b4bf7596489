//! What follows from deletions: owned objects go with their owners, and a namespace goes when it is empty. Works on the store
//! itself; every pass looks at everything, which is cheap at the size of a lab and cannot miss anything.

use crate::custom::CLEANUP;
use crate::kinds::DEFINITION;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use weft_k8s_api::{Object, ObjectKey};
use weft_store::{DeleteOptions, MemoryStore, Preconditions, Propagation, StoreError};

/// Passes in a row at most; each one clears a level of owners.
const MAX_PASSES: usize = 64;
/// Pause between passes when nothing is deleted: finds objects whose owner was gone before they came.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);

/// Collects after every deletion, for ever.
pub async fn run(store: MemoryStore) {
    let mut deletions = store.deletions();
    loop {
        deletions.mark_unchanged();
        for _ in 0..MAX_PASSES {
            if collect(&store) == 0 {
                break;
            }
        }
        let _ = tokio::time::timeout(IDLE_INTERVAL, deletions.changed()).await;
    }
}

/// One pass; returns how many objects it changed.
pub fn collect(store: &MemoryStore) -> usize {
    let objects = store.all();
    owned(store, &objects) + owners(store, &objects) + namespaces(store, &objects) + definitions(store, &objects)
}

fn is_deleting(object: &Object, finalizer: &str) -> bool {
    object.metadata.deletion_timestamp.is_some()
        && object.metadata.finalizers.as_ref().is_some_and(|f| f.iter().any(|f| f == finalizer))
}

fn owner_uids(object: &Object) -> impl Iterator<Item = &str> {
    object.metadata.owner_references.iter().flatten().map(|r| r.uid.as_str())
}

/// Deletes objects whose owners are all gone (or go after what they own), and cuts references to owners that are gone.
fn owned(store: &MemoryStore, objects: &[Arc<Object>]) -> usize {
    let by_uid: HashMap<&str, &Arc<Object>> =
        objects.iter().filter_map(|o| Some((o.metadata.uid.as_deref()?, o))).collect();
    let owning: HashSet<&str> = objects.iter().flat_map(|o| owner_uids(o)).collect();
    let mut changes = 0;
    for object in objects.iter().filter(|o| owner_uids(o).next().is_some()) {
        let leaving = |uid: &str| by_uid.get(uid).is_some_and(|o| is_deleting(o, "foregroundDeletion"));
        // An owner that waits for this one to go would wait for ever while another one keeps it.
        let (staying, cut): (Vec<&str>, Vec<&str>) =
            owner_uids(object).partition(|uid| by_uid.contains_key(uid) && !leaving(uid));
        if staying.is_empty() {
            let owns = object.metadata.uid.as_deref().is_some_and(|u| owning.contains(u));
            let foreground = owns && cut.iter().any(|uid| leaving(uid));
            let propagation = if foreground { Propagation::Foreground } else { Propagation::Unspecified };
            changes += usize::from(delete(store, object, propagation, object.metadata.resource_version.clone()));
        } else if !cut.is_empty() {
            let freed = store.modify(&object.key(), |o| {
                if let Some(references) = &mut o.metadata.owner_references {
                    references.retain(|r| !cut.contains(&r.uid.as_str()));
                }
            });
            changes += usize::from(freed.is_ok());
        }
    }
    changes
}

/// Lets owners go that wait for what they own, and frees what an orphaning owner leaves behind.
fn owners(store: &MemoryStore, objects: &[Arc<Object>]) -> usize {
    let mut changes = 0;
    for owner in objects {
        let Some(uid) = owner.metadata.uid.as_deref() else { continue };
        let refers = |o: &&Arc<Object>| owner_uids(o).any(|u| u == uid);
        if is_deleting(owner, "orphan") {
            for object in objects.iter().filter(refers) {
                let freed = store.modify(&object.key(), |o| {
                    if let Some(references) = &mut o.metadata.owner_references {
                        references.retain(|r| r.uid != uid);
                    }
                });
                changes += usize::from(freed.is_ok());
            }
            changes += usize::from(remove_finalizer(store, owner, "orphan"));
        }
        if is_deleting(owner, "foregroundDeletion") {
            let blocks = |o: &Arc<Object>| {
                let mut references = o.metadata.owner_references.iter().flatten();
                references.any(|r| r.uid == uid && r.block_owner_deletion == Some(true))
            };
            if !objects.iter().any(blocks) {
                changes += usize::from(remove_finalizer(store, owner, "foregroundDeletion"));
            }
        }
    }
    changes
}

/// Deletes what is in namespaces that are deleted, and lets them go when they are empty.
fn namespaces(store: &MemoryStore, objects: &[Arc<Object>]) -> usize {
    let mut changes = 0;
    for namespace in objects.iter().filter(|o| o.kind == "Namespace" && o.group().is_empty()) {
        if namespace.metadata.deletion_timestamp.is_none() {
            continue;
        }
        let contents: Vec<_> = objects.iter().filter(|o| o.namespace() == namespace.name()).collect();
        for object in &contents {
            changes += usize::from(delete(store, object, Propagation::Unspecified, None));
        }
        let held = namespace.spec().get("finalizers").and_then(Value::as_array).is_some_and(|f| !f.is_empty());
        if contents.is_empty() && held {
            let freed = store.modify(&namespace.key(), |o| {
                if let Some(spec) = o.body.get_mut("spec").and_then(Value::as_object_mut) {
                    spec.insert("finalizers".into(), Value::Array(Vec::new()));
                }
            });
            changes += usize::from(freed.is_ok());
        }
    }
    changes
}

/// Deletes the objects of kinds whose definitions are deleted, and lets these go when none is left.
fn definitions(store: &MemoryStore, objects: &[Arc<Object>]) -> usize {
    let mut changes = 0;
    let is_definition = |o: &&Arc<Object>| o.kind == DEFINITION.1 && o.group() == DEFINITION.0;
    for definition in objects.iter().filter(is_definition).filter(|o| is_deleting(o, CLEANUP)) {
        let text = |pointer| definition.spec().pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (group, kind) = (text("/group"), text("/names/kind"));
        let contents: Vec<_> = objects.iter().filter(|o| o.kind == kind && o.group() == group).collect();
        // Kinds of the table stay, and with them their objects.
        let own = weft_k8s_api::kinds::by_kind(group, kind).is_none();
        for object in contents.iter().filter(|_| own) {
            changes += usize::from(delete(store, object, Propagation::Unspecified, None));
        }
        if contents.is_empty() || !own {
            changes += usize::from(remove_finalizer(store, definition, CLEANUP));
        }
    }
    changes
}

/// Deletes the very object that was looked at, in that version alone where one is named. `false` when that changed nothing.
fn delete(store: &MemoryStore, object: &Object, propagation: Propagation, version: Option<String>) -> bool {
    let key: ObjectKey = object.key();
    let before = store.get(&key).and_then(|o| o.metadata.resource_version.clone());
    let preconditions = Preconditions { uid: object.metadata.uid.clone(), resource_version: version };
    let options = DeleteOptions { preconditions, propagation, ..DeleteOptions::default() };
    match store.delete(&key, &options) {
        Ok(deleted) => deleted.gone || deleted.object.metadata.resource_version != before,
        // Changed since it was looked at: the next pass looks again.
        Err(error) => matches!(error, StoreError::Conflict { .. }),
    }
}

fn remove_finalizer(store: &MemoryStore, object: &Object, name: &str) -> bool {
    let freed = store.modify(&object.key(), |o| {
        if let Some(finalizers) = &mut o.metadata.finalizers {
            finalizers.retain(|f| f != name);
        }
    });
    freed.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use weft_store::memory::key;

    fn store() -> MemoryStore {
        let store = MemoryStore::new();
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]},
        });
        store.create(serde_json::from_value(namespace).unwrap()).unwrap();
        store
    }

    fn make(store: &MemoryStore, name: &str, owners: &[&Arc<Object>], block: bool) -> Arc<Object> {
        let references: Vec<Value> = owners
            .iter()
            .map(|o| json!({
                "apiVersion": "v1", "kind": o.kind, "name": o.name(), "uid": o.metadata.uid, "blockOwnerDeletion": block,
            }))
            .collect();
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "n", "ownerReferences": references},
        });
        store.create(serde_json::from_value(object).unwrap()).unwrap()
    }

    fn names(store: &MemoryStore) -> String {
        let list = store.list(&weft_store::ListQuery::all("", "ConfigMap")).unwrap();
        list.items.iter().map(|o| o.name().to_string()).collect()
    }

    fn settle(store: &MemoryStore) {
        assert!((0..MAX_PASSES).any(|_| collect(store) == 0), "the passes must come to an end");
    }

    fn remove(store: &MemoryStore, object: &Object, propagation: Propagation) {
        store.delete(&object.key(), &DeleteOptions { propagation, ..DeleteOptions::default() }).unwrap();
    }

    #[test]
    fn background() {
        let store = store();
        let a = make(&store, "a", &[], true);
        let b = make(&store, "b", &[&a], true);
        let other = make(&store, "o", &[], true);
        make(&store, "c", &[&b], true);
        make(&store, "d", &[&a, &other], true);
        settle(&store);
        assert_eq!(names(&store), "abcdo");
        remove(&store, &a, Propagation::Background);
        settle(&store);
        assert_eq!(names(&store), "do", "what has another owner stays");
        let d = store.find("", "ConfigMap", "n", "d").unwrap();
        assert_eq!(owner_uids(&d).collect::<Vec<_>>(), [other.metadata.uid.as_deref().unwrap()]);
    }

    #[test]
    fn foreground() {
        let store = store();
        let a = make(&store, "a", &[], true);
        let b = make(&store, "b", &[&a], true);
        make(&store, "c", &[&b], true);
        remove(&store, &a, Propagation::Foreground);
        collect(&store);
        assert_eq!(names(&store), "abc", "a waits for b, b for c");
        settle(&store);
        assert_eq!(names(&store), "");
    }

    #[test]
    fn foreground_with_another_owner() {
        let store = store();
        let (a, other) = (make(&store, "a", &[], true), make(&store, "o", &[], true));
        make(&store, "d", &[&a, &other], true);
        remove(&store, &a, Propagation::Foreground);
        settle(&store);
        assert_eq!(names(&store), "do", "d stays with its other owner, and a does not wait for it");
        let d = store.find("", "ConfigMap", "n", "d").unwrap();
        assert_eq!(owner_uids(&d).collect::<Vec<_>>(), [other.metadata.uid.as_deref().unwrap()]);
    }

    #[test]
    fn a_later_deletion_says_otherwise() {
        let store = store();
        let a = make(&store, "a", &[], true);
        make(&store, "b", &[&a], true);
        let held = store.modify(&key("", "ConfigMap", "n", "b"), |b| b.metadata.finalizers = Some(vec!["x/y".into()]));
        held.unwrap();
        remove(&store, &a, Propagation::Foreground);
        settle(&store);
        assert_eq!(names(&store), "ab", "a waits for b, which is held");
        remove(&store, &a, Propagation::Background);
        assert_eq!(names(&store), "b");
        let added = store.modify(&key("", "ConfigMap", "n", "b"), |b| {
            b.metadata.finalizers = Some(vec!["x/y".into(), "x/z".into()]);
        });
        assert!(added.unwrap_err().to_string().contains("x/z"), "nobody new holds it back");
    }

    #[test]
    fn what_changed_since_it_was_looked_at_is_looked_at_again() {
        let store = store();
        let a = make(&store, "a", &[], true);
        let b = make(&store, "b", &[&a], true);
        remove(&store, &a, Propagation::Background);
        let seen = store.all();
        store.modify(&b.key(), |b| b.metadata.owner_references = None).unwrap();
        owned(&store, &seen);
        assert_eq!(names(&store), "b", "orphaned meanwhile");
    }

    #[test]
    fn orphans() {
        let store = store();
        let a = make(&store, "a", &[], true);
        make(&store, "b", &[&a], true);
        remove(&store, &a, Propagation::Orphan);
        settle(&store);
        assert_eq!(names(&store), "b");
        assert_eq!(owner_uids(&store.find("", "ConfigMap", "n", "b").unwrap()).count(), 0);
    }

    #[test]
    fn namespaces_empty_themselves() {
        let store = store();
        let a = make(&store, "a", &[], true);
        make(&store, "b", &[&a], true);
        let namespace = key("", "Namespace", "", "n");
        assert!(!store.delete(&namespace, &DeleteOptions::default()).unwrap().gone);
        settle(&store);
        assert_eq!((names(&store).as_str(), store.get(&namespace)), ("", None));
    }
}
