//! A local copy that follows a server: first sync, changes, the server going away and coming back, kinds that are missing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode};
use common::*;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use weft_k8s_api::{KindInfo, Object};
use weft_store::lease::{Leadership, LeaseOptions};
use weft_store::memory::key;
use weft_store::source::KindState;
use weft_store::{ApiClient, DeleteOptions, KubeSource, MemoryStore, SourceOptions, StoreOptions};

fn map(name: &str, data: &str) -> Object {
    object(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}, "data": {"k": data},
    }))
}

fn quick() -> SourceOptions {
    SourceOptions {
        missing_kind_interval: Duration::from_millis(50),
        backoff_min: Duration::from_millis(10),
        backoff_max: Duration::from_millis(50),
        watch_length: Duration::from_secs(2),
        ..SourceOptions::default()
    }
}

/// Where a server may be again after it was away.
fn place() -> SocketAddr {
    ([127, 0, 0, 1], weft_test_ports::free_port()).into()
}

/// A kind that the server does not have.
static UNKNOWN: KindInfo = KindInfo {
    group: "gateway.networking.k8s.io",
    versions: &["v9"],
    kind: "Nothing",
    plural: "nothings",
    singular: "nothing",
    short: &[],
    namespaced: true,
    categories: &[],
};

#[tokio::test]
async fn follows_changes() {
    let lab = lab().await;
    let store = lab.server.store();
    store.create(map("a", "1")).unwrap();
    let source = KubeSource::start(&lab.client, &[kind("cm"), kind("ns"), &UNKNOWN], &quick());
    within(60, source.synced()).await;
    within(60, source.kind_synced("", "Namespace")).await;
    let cache = source.cache();
    assert_eq!(cache.list("", "ConfigMap").len(), 1);
    assert_eq!(cache.list("", "Namespace").len(), 2);
    assert_eq!(cache.list("", "ConfigMap")[0].api_version, "v1");
    assert!(source.connected());
    let missing = (UNKNOWN.group.to_string(), UNKNOWN.kind.to_string());
    assert_eq!(source.state().borrow().kinds.get(&missing), Some(&KindState::Missing));

    let mark = cache.revision();
    store.create(map("b", "1")).unwrap();
    store.modify(&map("a", "").key(), |o| drop(o.body.insert("data".into(), json!({"k": "2"})))).unwrap();
    store.delete(&map("b", "").key(), &DeleteOptions::default()).unwrap();
    store.create(map("c", "1")).unwrap();
    eventually("the last change arrives", || async { cache.find("", "ConfigMap", "default", "c").is_some() }).await;
    assert!(cache.find("", "ConfigMap", "default", "b").is_none());
    let changed: Vec<String> = cache.changes_since(mark).keys.unwrap().into_iter().map(|k| k.name).collect();
    assert_eq!(changed, ["a", "b", "c"]);
    assert_eq!(cache.get(&key("", "ConfigMap", "default", "a")).unwrap().body["data"]["k"], "2");
}

#[tokio::test]
async fn outlives_the_server() {
    let mut lab = lab_with(MemoryStore::new(), options(), place()).await;
    let store = lab.server.store().clone();
    for name in ["keep", "change", "remove"] {
        store.create(map(name, "1")).unwrap();
    }
    let source = KubeSource::start(&lab.client, &[kind("cm")], &quick());
    within(60, source.synced()).await;
    let cache = source.cache().clone();
    lab.stop().await;
    let mut state = source.state();
    within(60, state.wait_for(|s| !s.connected())).await.unwrap();
    assert!(source.state().borrow().synced(), "what was read once stays complete");
    assert!(source.state().borrow().problem().is_some_and(|p| p.contains("no answer from the API server")));
    assert_eq!(cache.list("", "ConfigMap").len(), 3, "the last state stays");
    let mark = cache.revision();
    store.modify(&map("change", "").key(), |o| drop(o.body.insert("data".into(), json!({"k": "2"})))).unwrap();
    store.delete(&map("remove", "").key(), &DeleteOptions::default()).unwrap();
    store.create(map("new", "1")).unwrap();
    let again = lab_with(store, options(), lab.address).await;
    within(60, state.wait_for(|s| s.connected())).await.unwrap();
    eventually("what was missed arrives", || async { cache.find("", "ConfigMap", "default", "new").is_some() }).await;
    let names = |c: &weft_store::Changes| c.keys.as_ref().unwrap().iter().map(|k| k.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&cache.changes_since(mark)), ["change", "new", "remove"], "and nothing else counts as changed");
    assert_eq!(cache.revision(), mark + 3, "each change once");
    drop(again);
}

#[tokio::test]
async fn lists_again_when_the_history_is_gone() {
    let store = MemoryStore::with_options(StoreOptions { history: 2, ..StoreOptions::default() });
    let mut lab = lab_with(store.clone(), options(), place()).await;
    for name in ["a", "b", "c"] {
        store.create(map(name, "1")).unwrap();
    }
    let source = KubeSource::start(&lab.client, &[kind("cm")], &quick());
    within(60, source.synced()).await;
    let cache = source.cache().clone();
    let mark = cache.revision();
    lab.stop().await;
    let mut state = source.state();
    within(60, state.wait_for(|s| !s.connected())).await.unwrap();
    store.delete(&map("a", "").key(), &DeleteOptions::default()).unwrap();
    for name in ["d", "e", "f", "g"] {
        store.create(map(name, "1")).unwrap();
    }
    let _again = lab_with(store, options(), lab.address).await;
    eventually("the new list arrives", || async {
        cache.list("", "ConfigMap").len() == 6 && cache.find("", "ConfigMap", "default", "a").is_none()
    })
    .await;
    assert_eq!(cache.revision(), mark + 5, "one removed, four added, the others untouched");
}

#[tokio::test]
async fn a_server_with_another_store_is_listed_again() {
    let mut lab = lab_with(MemoryStore::new(), options(), place()).await;
    lab.server.store().create(map("old", "1")).unwrap();
    let source = KubeSource::start(&lab.client, &[kind("cm")], &quick());
    within(60, source.synced()).await;
    let cache = source.cache().clone();
    lab.stop().await;
    let mut state = source.state();
    within(60, state.wait_for(|s| !s.connected())).await.unwrap();
    // The other store has seen more changes than the first one: its revisions go on beyond those.
    let store = MemoryStore::with_options(StoreOptions { require_namespaces: false, ..StoreOptions::default() });
    for name in ["a", "b", "c", "d", "e", "f"] {
        store.create(map(name, "1")).unwrap();
    }
    let _again = lab_with(store, options(), lab.address).await;
    eventually("what the other server has", || async {
        cache.list("", "ConfigMap").len() == 6 && cache.find("", "ConfigMap", "default", "old").is_none()
    })
    .await;
}

#[tokio::test]
async fn large_objects_come_in_small_pages() {
    let lab = lab().await;
    for number in 0..40 {
        lab.server.store().create(map(&format!("m{number:02}"), &"x".repeat(2000))).unwrap();
    }
    for (page_bytes, all) in [(64 << 20, true), (20_000, true), (3000, true), (500, false)] {
        let source = KubeSource::start(&lab.client, &[kind("cm")], &SourceOptions { page_bytes, ..quick() });
        let mut state = source.state();
        let settled = state.wait_for(|state| state.synced() || state.problem().is_some());
        within(60, settled).await.unwrap();
        assert_eq!(source.cache().list("", "ConfigMap").len(), if all { 40 } else { 0 }, "{page_bytes}");
        let problem = source.state().borrow().problem();
        assert!(all || problem.as_ref().is_some_and(|why| why.contains("longer than 500 bytes")), "{problem:?}");
    }
}

#[tokio::test]
async fn waits_for_a_server_that_is_not_there_yet() {
    let address = place();
    let client = ApiClient::connect(&format!("http://{address}"), Some(TOKEN)).unwrap();
    let source = KubeSource::start(&client, &[kind("cm")], &quick());
    let mut state = source.state();
    within(60, state.wait_for(|s| s.problem().is_some())).await.unwrap();
    assert!(!source.state().borrow().synced());
    let store = MemoryStore::with_options(StoreOptions { require_namespaces: false, ..StoreOptions::default() });
    store.create(map("a", "1")).unwrap();
    let _lab = lab_with(store, options(), address).await;
    within(60, source.synced()).await;
    assert_eq!(source.cache().list("", "ConfigMap").len(), 1);
}

/// Passes connections on; while `mute` is set nothing comes back on any, and they stay open.
async fn relay(server: SocketAddr, mute: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut mute = mute.clone();
            tokio::spawn(async move {
                let Ok(mut far) = TcpStream::connect(server).await else { return };
                loop {
                    if mute.wait_for(|mute| !*mute).await.is_err() {
                        return;
                    }
                    tokio::select! {
                        biased;
                        _ = mute.wait_for(|mute| *mute) => {}
                        _ = copy_bidirectional(&mut near, &mut far) => return,
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_leader_that_could_not_renew_comes_back() {
    let lab = lab().await;
    let (mute, muted) = watch::channel(false);
    let address = relay(lab.address, muted).await;
    let client = ApiClient::connect(&format!("http://{address}"), Some(TOKEN)).unwrap();
    let options = LeaseOptions {
        namespace: "default".into(),
        name: "lease".into(),
        identity: "a".into(),
        duration: Duration::from_secs(2),
    };
    let leadership = Leadership::start(&client, options);
    let mut leader = leadership.leader();
    for _ in 0..2 {
        within(60, leader.wait_for(|is| *is)).await.unwrap();
        mute.send_replace(true);
        within(60, leader.wait_for(|is| !*is)).await.unwrap();
        mute.send_replace(false);
    }
    within(60, leader.wait_for(|is| *is)).await.unwrap();
}

/// How a server behaves that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    /// Lists, and gives watches that end soon.
    Good,
    /// Lists, and refuses watches.
    NoWatch(StatusCode),
    /// Answers that there is nothing of the kind, as something may that stands before a server.
    NotFound,
}

/// Lists of ConfigMaps, and requests for them of any sort.
#[derive(Debug, Clone, Copy, Default)]
struct Asked {
    lists: usize,
    all: usize,
}

/// A server of one ConfigMap and no definitions.
struct Odd {
    mode: watch::Sender<Mode>,
    asked: watch::Sender<Asked>,
}

impl Odd {
    async fn serve(mode: Mode) -> (Arc<Self>, ApiClient) {
        let odd = Arc::new(Self { mode: watch::Sender::new(mode), asked: watch::Sender::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = ApiClient::connect(&format!("http://{}", listener.local_addr().unwrap()), None).unwrap();
        let app = axum::Router::new().fallback(Self::answer).with_state(odd.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (odd, client)
    }

    async fn answer(State(odd): State<Arc<Self>>, request: Request) -> Response<Body> {
        let of = |status: StatusCode, body: Body| {
            Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
        };
        let list = |items: serde_json::Value| {
            let list =
                json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "7"}, "items": items});
            of(StatusCode::OK, list.to_string().into())
        };
        let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        if request.uri().path() != "/api/v1/configmaps" {
            let open = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
            return if watches { of(StatusCode::OK, Body::from_stream(open)) } else { list(json!([])) };
        }
        odd.asked.send_modify(|asked| {
            asked.all += 1;
            asked.lists += usize::from(!watches);
        });
        let mode = *odd.mode.borrow();
        let refused = |status: StatusCode| {
            let body =
                json!({"kind": "Status", "apiVersion": "v1", "code": status.as_u16(), "message": "no", "reason": "No"});
            of(status, body.to_string().into())
        };
        match (mode, watches) {
            (Mode::NotFound, _) => of(StatusCode::NOT_FOUND, "page not found".into()),
            (Mode::NoWatch(status), true) => refused(status),
            (_, true) => of(StatusCode::OK, Body::empty()),
            (_, false) => list(json!([{"metadata": {"name": "a", "namespace": "default", "resourceVersion": "3"}}])),
        }
    }

    /// Returns when so many requests have come.
    async fn asked(&self, enough: impl Fn(&Asked) -> bool) {
        within(60, self.asked.subscribe().wait_for(enough)).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_gives_no_watch_is_not_listed_without_end() {
    for status in [StatusCode::FORBIDDEN, StatusCode::GONE, StatusCode::BAD_GATEWAY] {
        let (odd, client) = Odd::serve(Mode::NoWatch(status)).await;
        let options = SourceOptions { required: |_| true, backoff_max: Duration::from_millis(160), ..quick() };
        let begun = Instant::now();
        let source = KubeSource::start(&client, &[kind("cm")], &options);
        odd.asked(|asked| asked.lists >= 10).await;
        // Nine pauses: 10, 20, 40, 80 and five times 160 ms, each cut to the half at most; they begin anew after a watch of
        // 160 ms, as long as it takes a busy machine to refuse one.
        assert!(begun.elapsed() >= Duration::from_millis(380), "{status}: {:?}", begun.elapsed());
        assert_eq!(source.cache().list("", "ConfigMap").len(), 1, "{status}: what is listed counts");
        assert_eq!(source.connected(), status == StatusCode::GONE, "{status}: {:?}", source.state().borrow().problem());
        odd.mode.send_replace(Mode::Good);
        within(60, source.state().wait_for(|state| state.connected())).await.unwrap();
    }
}

#[tokio::test]
async fn who_says_that_there_are_no_config_maps_is_not_believed() {
    let (odd, client) = Odd::serve(Mode::Good).await;
    let source = KubeSource::start(&client, &[kind("cm")], &quick());
    within(60, source.synced()).await;
    odd.mode.send_replace(Mode::NotFound);
    let before = odd.asked.borrow().all;
    odd.asked(|asked| asked.all >= before + 12).await;
    assert_eq!(source.cache().list("", "ConfigMap").len(), 1, "the last state stays");
    assert!(!source.connected());
    odd.mode.send_replace(Mode::Good);
    within(60, source.state().wait_for(|state| state.connected())).await.unwrap();
    // Nor is a mesh begun without them, when it cannot be without.
    let (odd, client) = Odd::serve(Mode::NotFound).await;
    let required = SourceOptions { required: |_| true, ..quick() };
    let source = KubeSource::start(&client, &[kind("cm")], &required);
    odd.asked(|asked| asked.all >= 3).await;
    assert!(!source.state().borrow().synced());
}
