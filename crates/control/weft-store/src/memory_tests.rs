//! Tables for the memory store and its watches.

use super::*;
use crate::watch::{EventType, Watch, WatchQuery};
use futures_util::{FutureExt, StreamExt};
use serde_json::json;

fn object(value: Value) -> Object {
    serde_json::from_value(value).unwrap()
}

fn map(name: &str, labels: &[(&str, &str)]) -> Object {
    let mut object =
        object(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "n"}}));
    object.metadata.labels = Some(labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());
    object
}

fn pod(name: &str, node: &str) -> Object {
    object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "n"}, "spec": {"nodeName": node},
    }))
}

fn store() -> MemoryStore {
    let store = MemoryStore::with_options(StoreOptions { first_revision: 0, ..StoreOptions::default() });
    store.create(object(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}))).unwrap();
    store
}

/// What the watch has now, as `ADDED a` lines.
fn drain(watch: &mut Watch) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(Some(item)) = watch.next().now_or_never() {
        lines.push(match item {
            Ok(event) => format!("{} {}", event.event.as_str(), event.object.name()),
            Err(error) => format!("ERROR {error}"),
        });
    }
    lines
}

#[test]
fn create_fills_the_envelope() {
    let store = store();
    let made = store.create(pod("a", "")).unwrap();
    let uid = made.metadata.uid.clone().unwrap();
    assert_eq!((uid.len(), uid.as_bytes()[14], uid.split('-').count()), (36, b'4', 5), "{uid}");
    assert!(made.metadata.creation_timestamp.is_some());
    assert_eq!(made.metadata.generation, Some(1));
    assert_eq!(made.metadata.resource_version.as_deref(), Some("2"));
    assert_eq!(store.create(pod("a", "")).unwrap_err(), StoreError::AlreadyExists(made.key()));
    let wire: Object = serde_json::from_value(made.to_value()).unwrap();
    assert_eq!(wire, *made, "times survive the wire format");
}

#[test]
fn names() {
    let store = store();
    for bad in ["", "A", "a_b", "-a", "a.", "a/b", "a b", &"a".repeat(254)] {
        let result = store.create(map(bad, &[]));
        assert!(matches!(result, Err(StoreError::Invalid { ref field, .. }) if field == "metadata.name"), "{bad}");
    }
    let mut generated = map("", &[]);
    generated.metadata.generate_name = Some("web-".into());
    let name = store.create(generated).unwrap().name().to_string();
    assert!(name.starts_with("web-") && name.len() == 9, "{name}");
}

#[test]
fn namespaces() {
    let store = store();
    let mut lost = map("a", &[]);
    lost.metadata.namespace = Some("missing".into());
    assert!(store.create(lost.clone()).unwrap_err().is_not_found());
    let lax = MemoryStore::with_options(StoreOptions { require_namespaces: false, ..StoreOptions::default() });
    lax.create(lost).unwrap();
    store
        .modify(&key("", "Namespace", "", "n"), |n| {
            drop(n.body.insert("spec".into(), json!({"finalizers": ["kubernetes"]})))
        })
        .unwrap();
    let deleted = store.delete(&key("", "Namespace", "", "n"), &DeleteOptions::default()).unwrap();
    assert!(!deleted.gone);
    assert_eq!(deleted.object.body.get("status"), Some(&json!({"phase": "Terminating"})));
    assert!(matches!(store.create(map("a", &[])), Err(StoreError::NamespaceTerminating { .. })));
    store.modify(&key("", "Namespace", "", "n"), |n| drop(n.body.insert("spec".into(), json!({})))).unwrap();
    assert!(store.find("", "Namespace", "", "n").is_none());
}

#[test]
fn updates() {
    let store = store();
    let first = store.create(pod("a", "")).unwrap();
    let mut change = Object::clone(&first);
    change.metadata.uid = Some(String::new());
    change.metadata.creation_timestamp = None;
    change.body.insert("status".into(), json!({"phase": "Running"}));
    let second = store.update(change).unwrap();
    assert_eq!(second.metadata.uid, first.metadata.uid, "system fields stay");
    assert_eq!(second.metadata.creation_timestamp, first.metadata.creation_timestamp);
    assert_eq!(second.metadata.generation, Some(1), "a status is no new generation");
    let mut stale = Object::clone(&first);
    stale.body.insert("spec".into(), json!({"x": 1}));
    let error = store.update(stale.clone()).unwrap_err();
    assert!(error.is_conflict(), "{error}");
    stale.metadata.resource_version = None;
    let third = store.update(stale.clone()).unwrap();
    assert_eq!(third.metadata.generation, Some(2));
    assert_eq!(store.update(stale).unwrap().metadata.resource_version, third.metadata.resource_version, "no change");
    assert!(store.update(pod("b", "")).unwrap_err().is_not_found());
    let before = store.revision();
    let mut dry = Object::clone(&third);
    dry.body.insert("spec".into(), json!({"x": 2}));
    assert_eq!(store.update_with(dry, true).unwrap().metadata.generation, Some(3));
    store.create_with(pod("dry", ""), true).unwrap();
    assert_eq!(store.revision(), before, "dry runs leave no trace");
    assert!(store.find("", "Pod", "n", "dry").is_none());
}

#[test]
fn deletion() {
    let store = store();
    let made = store.create(map("a", &[])).unwrap();
    let expect = |uid: Option<&str>, version: Option<&str>| DeleteOptions {
        preconditions: Preconditions { uid: uid.map(Into::into), resource_version: version.map(Into::into) },
        ..DeleteOptions::default()
    };
    assert!(store.delete(&made.key(), &expect(Some("other"), None)).unwrap_err().is_conflict());
    assert!(store.delete(&made.key(), &expect(None, Some("1"))).unwrap_err().is_conflict());
    let dry = DeleteOptions { dry_run: true, ..DeleteOptions::default() };
    assert!(store.delete(&made.key(), &dry).unwrap().gone && store.get(&made.key()).is_some());
    assert!(store.delete(&made.key(), &expect(made.metadata.uid.as_deref(), Some("2"))).unwrap().gone);
    assert!(store.delete(&made.key(), &DeleteOptions::default()).unwrap_err().is_not_found());

    let mut held = map("b", &[]);
    held.metadata.finalizers = Some(vec!["weft/x".into()]);
    let held = store.create(held).unwrap();
    let foreground = DeleteOptions { propagation: Propagation::Foreground, ..DeleteOptions::default() };
    let marked = store.delete(&held.key(), &foreground).unwrap();
    assert!(!marked.gone && marked.object.metadata.deletion_timestamp.is_some());
    assert_eq!(marked.object.metadata.finalizers.as_deref(), Some(&["weft/x".into(), "foregroundDeletion".into()][..]));
    let revision = store.revision();
    store.delete(&held.key(), &foreground).unwrap();
    assert_eq!(store.revision(), revision, "marking twice changes nothing");
    store.modify(&held.key(), |o| o.metadata.finalizers = None).unwrap();
    assert!(store.get(&held.key()).is_none(), "gone with the last finalizer");
}

#[test]
fn pods_on_a_node_are_stopped_first() {
    let store = store();
    let placed = store.create(pod("a", "lab")).unwrap();
    let marked = store.delete(&placed.key(), &DeleteOptions::default()).unwrap();
    assert!(!marked.gone);
    assert_eq!(marked.object.metadata.deletion_grace_period_seconds, Some(30));
    store.modify(&placed.key(), |o| drop(o.body.insert("status".into(), json!({"phase": "Running"})))).unwrap();
    assert!(store.get(&placed.key()).is_some(), "status updates do not remove it");
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    assert!(store.delete(&placed.key(), &now).unwrap().gone);
    let waiting = store.create(pod("b", "")).unwrap();
    assert!(store.delete(&waiting.key(), &DeleteOptions::default()).unwrap().gone);
}

#[test]
fn lists_and_pages() {
    let store = store();
    for (name, app) in [("c", "x"), ("a", "x"), ("b", "y"), ("d", "x")] {
        store.create(map(name, &[("app", app)])).unwrap();
    }
    let names = |list: &ObjectList| list.items.iter().map(|o| o.name().to_string()).collect::<String>();
    let mut query = ListQuery::namespaced("", "ConfigMap", "n");
    assert_eq!(names(&store.list(&query).unwrap()), "abcd");
    query.labels = LabelSelector::parse("app=x").unwrap();
    assert_eq!(names(&store.list(&query).unwrap()), "acd");
    query.limit = Some(2);
    let page = store.list(&query).unwrap();
    assert_eq!((names(&page).as_str(), page.remaining), ("ac", 1));
    let page_again = page.continue_token.clone();
    query.continue_token = page.continue_token;
    let last = store.list(&query).unwrap();
    assert_eq!((names(&last).as_str(), last.continue_token, last.revision), ("d", None, page.revision));
    // The rest of the list is of the moment of its beginning, whatever happened since.
    query.continue_token = page_again;
    store.create(map("e", &[("app", "x")])).unwrap();
    store.delete(&key("", "ConfigMap", "n", "d"), &DeleteOptions::default()).unwrap();
    store.create(map("d", &[("app", "x")])).unwrap();
    let then = store.list(&query).unwrap();
    assert_eq!((names(&then).as_str(), then.items[0].metadata.uid.clone()), ("d", last.items[0].metadata.uid.clone()));
    store.delete(&key("", "ConfigMap", "n", "e"), &DeleteOptions::default()).unwrap();
    query.continue_token = Some("x".into());
    assert_eq!(store.list(&query).unwrap_err(), StoreError::BadContinue);
    query = ListQuery::all("", "ConfigMap");
    query.fields = FieldSelector::parse("ConfigMap", "metadata.name=b").unwrap();
    assert_eq!(names(&store.list(&query).unwrap()), "b");
    assert!(store.list(&ListQuery::namespaced("", "ConfigMap", "other")).unwrap().items.is_empty());
    assert!(store.list(&ListQuery::all("", "Secret")).unwrap().items.is_empty());
}

#[test]
fn watch_resumes_and_follows() {
    let store = store();
    store.create(map("a", &[])).unwrap();
    let from = store.revision();
    let mut query = WatchQuery::all("", "ConfigMap");
    query.initial_bookmark = true;
    let mut fresh = store.watch(query).unwrap();
    assert_eq!(drain(&mut fresh), ["ADDED a", "BOOKMARK "]);
    store.create(map("b", &[])).unwrap();
    store.modify(&map("a", &[]).key(), |o| drop(o.body.insert("data".into(), json!({"k": "v"})))).unwrap();
    store.delete(&map("b", &[]).key(), &DeleteOptions::default()).unwrap();
    let want = ["ADDED b", "MODIFIED a", "DELETED b"];
    assert_eq!(drain(&mut fresh), want);
    let mut resumed = store.watch(WatchQuery { from: Some(from), ..WatchQuery::all("", "ConfigMap") }).unwrap();
    assert_eq!(drain(&mut resumed), want);
    assert_eq!(resumed.revision(), Some(store.revision()));
    let mut half = store.watch(WatchQuery { from: Some(from + 1), ..WatchQuery::all("", "ConfigMap") }).unwrap();
    assert_eq!(drain(&mut half), want[1..]);
    let mut other = store.watch(WatchQuery { from: Some(from), ..WatchQuery::all("", "Secret") }).unwrap();
    assert_eq!(drain(&mut other), Vec::<String>::new());
    let mut elsewhere = WatchQuery { from: Some(from), ..WatchQuery::all("", "ConfigMap") };
    elsewhere.namespace = Some("other".into());
    assert_eq!(drain(&mut store.watch(elsewhere).unwrap()), Vec::<String>::new());
}

#[test]
fn watch_through_a_selector() {
    let store = store();
    let query = WatchQuery { labels: LabelSelector::parse("app=x").unwrap(), ..WatchQuery::all("", "ConfigMap") };
    let mut watch = store.watch(query).unwrap();
    let set = |app: &str| {
        drop(
            store
                .modify(&map("a", &[]).key(), |o| o.metadata.labels = map("a", &[("app", app)]).metadata.labels.clone())
                .unwrap(),
        )
    };
    store.create(map("a", &[("app", "y")])).unwrap();
    assert_eq!(drain(&mut watch), Vec::<String>::new());
    set("x");
    assert_eq!(drain(&mut watch), ["ADDED a"]);
    set("y");
    let last = watch.next().now_or_never().flatten().unwrap().unwrap();
    assert_eq!(last.event, EventType::Deleted, "it no longer matches");
    assert_eq!(last.object.label("app"), Some("x"), "the state that matched last");
    assert_eq!(last.object.metadata.resource_version, Some(store.revision().to_string()));
    set("z");
    store.delete(&map("a", &[]).key(), &DeleteOptions::default()).unwrap();
    assert_eq!(drain(&mut watch), Vec::<String>::new());
}

#[test]
fn a_store_in_place_of_another_is_listed_again() {
    let options = || StoreOptions { require_namespaces: false, ..StoreOptions::default() };
    let first = MemoryStore::with_options(options());
    let seen = first.create(map("gone", &[])).unwrap();
    let seen = seen.metadata.resource_version.as_deref().unwrap().parse().unwrap();
    let second = MemoryStore::with_options(options());
    let from = |kind| second.watch(WatchQuery { from: Some(seen), ..WatchQuery::all("", kind) }).err();
    // Whether the other store has said nothing of the kind yet, or more than the first one did.
    assert!(matches!(from("ConfigMap"), Some(StoreError::Gone { .. })));
    for name in ["a", "b", "c"] {
        second.create(map(name, &[])).unwrap();
    }
    assert!(matches!(from("ConfigMap"), Some(StoreError::Gone { .. })));
    assert!(matches!(from("Secret"), Some(StoreError::Gone { .. })));
}

#[test]
fn history_is_bounded() {
    let options = StoreOptions { history: 4, require_namespaces: false, first_revision: 0, ..StoreOptions::default() };
    let store = MemoryStore::with_options(options);
    let mut slow = store.watch(WatchQuery { from: Some(0), ..WatchQuery::all("", "ConfigMap") }).unwrap();
    for name in ["a", "b", "c", "d", "e", "f"] {
        store.create(map(name, &[])).unwrap();
    }
    let lines = drain(&mut slow);
    assert!(lines.len() == 1 && lines[0].starts_with("ERROR resource version 0"), "{lines:?}");
    assert!(slow.next().now_or_never().unwrap().is_none(), "nothing follows the error");
    let start = |from| store.watch(WatchQuery { from: Some(from), ..WatchQuery::all("", "ConfigMap") });
    assert_eq!(start(1).err(), Some(StoreError::Gone { asked: 1, oldest: 2, newest: 6 }));
    assert_eq!(start(9).err(), Some(StoreError::Gone { asked: 9, oldest: 2, newest: 6 }), "a revision of another life");
    assert_eq!(drain(&mut start(2).unwrap()).len(), 4);
    let limited = MemoryStore::with_options(StoreOptions {
        max_objects: 1,
        require_namespaces: false,
        ..StoreOptions::default()
    });
    limited.create(map("a", &[])).unwrap();
    assert_eq!(limited.create(map("b", &[])).unwrap_err(), StoreError::Full(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_and_a_watcher() {
    let store = store();
    let made = store.create(pod("a", "")).unwrap();
    let mut watch = store.watch(WatchQuery { from: Some(store.revision()), ..WatchQuery::all("", "Pod") }).unwrap();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (store, key) = (store.clone(), made.key());
            tokio::task::spawn_blocking(move || {
                for round in 0..50 {
                    let mark = format!("{writer}-{round}");
                    let write = |o: &mut Object| drop(o.body.insert("spec".into(), json!({ "mark": mark })));
                    while store.modify(&key, write).is_err_and(|e| e.is_conflict()) {}
                }
            })
        })
        .collect();
    let mut last = 0;
    for _ in 0..200 {
        let event =
            tokio::time::timeout(std::time::Duration::from_secs(20), watch.next()).await.unwrap().unwrap().unwrap();
        let revision: u64 = event.object.metadata.resource_version.as_deref().unwrap().parse().unwrap();
        assert!(revision > last, "in order, none twice");
        last = revision;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(store.find("", "Pod", "n", "a").unwrap().metadata.generation, Some(201));
    assert_eq!(drain(&mut watch), Vec::<String>::new());
}

#[test]
fn the_listener_sees_every_change() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = seen.clone();
    let listener: Listener = Arc::new(move |c: &Change| log.lock().unwrap().push((c.revision, c.change)));
    let store = MemoryStore::with_options(StoreOptions {
        require_namespaces: false,
        listener: Some(listener),
        first_revision: 0,
        ..StoreOptions::default()
    });
    store.create(map("a", &[])).unwrap();
    store.modify(&map("a", &[]).key(), |o| drop(o.body.insert("data".into(), json!({"k": "v"})))).unwrap();
    let mut deletions = store.deletions();
    deletions.mark_unchanged();
    store.delete(&map("a", &[]).key(), &DeleteOptions::default()).unwrap();
    assert_eq!(*seen.lock().unwrap(), [(1, ChangeType::Added), (2, ChangeType::Modified), (3, ChangeType::Deleted)]);
    assert!(deletions.has_changed().unwrap());
}
