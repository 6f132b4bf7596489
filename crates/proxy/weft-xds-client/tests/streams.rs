//! The client against a control plane that is a real gRPC server, scripted by the test.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use weft_proto::envoy::config::core::v3::Node;
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use weft_proto::type_url::{ENDPOINT, LISTENER};
use weft_xds_client::{Client, Config, Interest, Mode, Outcome, ResourceUpdate, TcpConnect, start};

type Answers<T> = mpsc::UnboundedSender<Result<T, Status>>;

/// Hands each stream to the test: what the client sends, and a way to answer.
struct Script {
    delta: mpsc::UnboundedSender<(Streaming<DeltaDiscoveryRequest>, Answers<DeltaDiscoveryResponse>)>,
    sotw: mpsc::UnboundedSender<(Streaming<DiscoveryRequest>, Answers<DiscoveryResponse>)>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type StreamAggregatedResourcesStream = UnboundedReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = UnboundedReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (answers, stream) = mpsc::unbounded_channel();
        self.sotw.send((request.into_inner(), answers)).map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(UnboundedReceiverStream::new(stream)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        if request.metadata().get("authorization").is_none_or(|v| v != "Bearer t") {
            return Err(Status::unauthenticated("no token"));
        }
        let (answers, stream) = mpsc::unbounded_channel();
        self.delta.send((request.into_inner(), answers)).map_err(|_| Status::unavailable("over"))?;
        Ok(Response::new(UnboundedReceiverStream::new(stream)))
    }
}

struct Fixture {
    client: Client,
    updates: mpsc::Receiver<ResourceUpdate>,
    delta: mpsc::UnboundedReceiver<(Streaming<DeltaDiscoveryRequest>, Answers<DeltaDiscoveryResponse>)>,
    sotw: mpsc::UnboundedReceiver<(Streaming<DiscoveryRequest>, Answers<DiscoveryResponse>)>,
}

async fn fixture(mode: Mode) -> Fixture {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
    let address = listener.local_addr().expect("a bound address").to_string();
    let (delta_tx, delta) = mpsc::unbounded_channel();
    let (sotw_tx, sotw) = mpsc::unbounded_channel();
    let service = AggregatedDiscoveryServiceServer::new(Script { delta: delta_tx, sotw: sotw_tx });
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let config = Config {
        node: Node { id: "n".into(), ..Default::default() },
        authority: address.clone(),
        mode,
        headers: Arc::new(|| Ok(vec![("authorization".into(), "Bearer t".into())])),
    };
    let (client, updates) = start(config, Arc::new(TcpConnect(address)));
    Fixture { client, updates, delta, sotw }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}

fn listener(name: &str, version: &str) -> Resource {
    let any = weft_proto::pack(&Listener { name: name.into(), ..Default::default() });
    Resource { name: name.into(), version: version.into(), resource: Some(any), ..Default::default() }
}

fn response(nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> Result<DeltaDiscoveryResponse, Status> {
    Ok(DeltaDiscoveryResponse {
        type_url: LISTENER.into(),
        nonce: nonce.into(),
        resources,
        removed_resources: removed.iter().map(ToString::to_string).collect(),
        ..Default::default()
    })
}

#[tokio::test]
async fn delta_subscribe_refuse_and_reconnect() {
    let mut f = fixture(Mode::Delta).await;
    f.client.want(LISTENER, Interest::all());
    let (mut requests, answers) = soon(f.delta.recv()).await.unwrap();
    let first = soon(requests.message()).await.unwrap().unwrap();
    assert_eq!((first.node.unwrap().id.as_str(), first.type_url.as_str()), ("n", LISTENER));
    assert_eq!(first.resource_names_subscribe, ["*"]);

    answers.send(response("1", vec![listener("a", "v1"), listener("b", "v1")], &[])).unwrap();
    let update = soon(f.updates.recv()).await.unwrap();
    assert_eq!(update.upserts.len(), 2);
    update.done(Outcome { refused: vec![("b".into(), "no such filter".into())] });
    let nack = soon(requests.message()).await.unwrap().unwrap();
    assert_eq!(nack.response_nonce, "1");
    assert_eq!(nack.error_detail.unwrap().message, "b: no such filter");
    assert!(nack.node.is_none(), "the node goes out once");

    f.client.want(ENDPOINT, Interest::named(["x", "y"]));
    let eds = soon(requests.message()).await.unwrap().unwrap();
    assert_eq!(
        (eds.type_url.as_str(), eds.resource_names_subscribe),
        (ENDPOINT, vec!["x".to_string(), "y".to_string()])
    );
    f.client.want(ENDPOINT, Interest::named(["y"]));
    let eds = soon(requests.message()).await.unwrap().unwrap();
    assert_eq!(eds.resource_names_unsubscribe, ["x"]);

    // The server goes away: a new stream names what is held, the refused resource not among it.
    drop((requests, answers));
    let (mut requests, answers) = soon(f.delta.recv()).await.unwrap();
    let again = soon(requests.message()).await.unwrap().unwrap();
    assert_eq!(again.initial_resource_versions, [("a".to_string(), "v1".to_string())].into());
    answers.send(response("2", vec![], &["a"])).unwrap();
    let update = soon(f.updates.recv()).await.unwrap();
    assert_eq!(update.removals, ["a"]);
    update.done(Outcome::default());
    soon(async {
        while f.client.state().borrow().attempts != 0 {
            f.client.state().changed().await.unwrap();
        }
    })
    .await;
}

/// A server holds back what comes next of a type until it has an answer; a client that lost interest owes it one all the same.
#[tokio::test]
async fn a_response_is_answered_though_nothing_of_its_type_is_wanted_any_more() {
    let mut f = fixture(Mode::Delta).await;
    f.client.want(LISTENER, Interest::named(["a"]));
    let (mut requests, answers) = soon(f.delta.recv()).await.unwrap();
    soon(requests.message()).await.unwrap().unwrap();
    answers.send(response("1", vec![listener("a", "v1")], &[])).unwrap();
    soon(f.updates.recv()).await.unwrap().done(Outcome::default());
    assert_eq!(soon(requests.message()).await.unwrap().unwrap().response_nonce, "1");

    f.client.want(LISTENER, Interest::default());
    assert_eq!(soon(requests.message()).await.unwrap().unwrap().resource_names_unsubscribe, ["a"]);
    answers.send(response("2", vec![], &["a"])).unwrap();
    let answer = soon(requests.message()).await.unwrap().unwrap();
    assert_eq!((answer.response_nonce.as_str(), answer.error_detail), ("2", None));
    assert!(f.updates.try_recv().is_err(), "there is nothing to apply");

    f.client.want(LISTENER, Interest::named(["a"]));
    assert_eq!(soon(requests.message()).await.unwrap().unwrap().resource_names_subscribe, ["a"]);
    answers.send(response("3", vec![listener("a", "v1")], &[])).unwrap();
    assert_eq!(soon(f.updates.recv()).await.unwrap().upserts.len(), 1);
}

/// The consumer forgets an answer when it drops its name: the server must not be told that the answer is still held.
#[tokio::test]
async fn a_name_dropped_and_wanted_again_while_the_server_is_away_is_answered_anew() {
    let mut f = fixture(Mode::Delta).await;
    f.client.want(LISTENER, Interest::named(["a", "b"]));
    let (mut requests, answers) = soon(f.delta.recv()).await.unwrap();
    soon(requests.message()).await.unwrap().unwrap();
    answers.send(response("1", vec![listener("a", "v1"), listener("b", "v1")], &[])).unwrap();
    soon(f.updates.recv()).await.unwrap().done(Outcome::default());
    assert_eq!(soon(requests.message()).await.unwrap().unwrap().response_nonce, "1");

    // Both at once: no task runs in between, as none does that waits to connect.
    f.client.want(LISTENER, Interest::named(["b"]));
    f.client.want(LISTENER, Interest::named(["a", "b"]));
    assert_eq!(soon(requests.message()).await.unwrap().unwrap().resource_names_subscribe, ["a"]);

    drop((requests, answers));
    f.client.want(LISTENER, Interest::named(["b"]));
    f.client.want(LISTENER, Interest::named(["a", "b"]));
    let (mut requests, _answers) = soon(f.delta.recv()).await.unwrap();
    let first = soon(requests.message()).await.unwrap().unwrap();
    assert_eq!(first.resource_names_subscribe, ["a", "b"]);
    assert_eq!(first.initial_resource_versions, [("b".to_string(), "v1".to_string())].into());
}

#[tokio::test]
async fn state_of_the_world_concludes_removals() {
    let mut f = fixture(Mode::StateOfTheWorld).await;
    f.client.want(LISTENER, Interest::all());
    let (mut requests, answers) = soon(f.sotw.recv()).await.unwrap();
    soon(requests.message()).await.unwrap().unwrap();
    let send = |version: &str, names: &[&str]| {
        let resources = names.iter().map(|n| listener(n, "").resource.unwrap()).collect();
        let response = DiscoveryResponse {
            type_url: LISTENER.into(),
            version_info: version.into(),
            nonce: version.into(),
            resources,
            ..Default::default()
        };
        answers.send(Ok(response)).unwrap();
    };
    send("1", &["a", "b"]);
    soon(f.updates.recv()).await.unwrap().done(Outcome::default());
    assert_eq!(soon(requests.message()).await.unwrap().unwrap().version_info, "1");
    send("2", &["b"]);
    let update = soon(f.updates.recv()).await.unwrap();
    assert_eq!(update.removals, ["a"]);
    update.done(Outcome { refused: vec![("b".into(), "bad".into())] });
    let nack = soon(requests.message()).await.unwrap().unwrap();
    assert_eq!((nack.version_info.as_str(), nack.response_nonce.as_str()), ("1", "2"));
    assert!(nack.error_detail.is_some());
}

#[tokio::test]
async fn a_server_that_is_away_is_named() {
    let config = Config {
        node: Node::default(),
        authority: "localhost:1".into(),
        mode: Mode::Delta,
        headers: Arc::new(|| Ok(vec![])),
    };
    let (client, _updates) = start(config, Arc::new(TcpConnect("127.0.0.1:1".into())));
    client.want(LISTENER, Interest::all());
    let mut state = client.state();
    let seen = soon(state.wait_for(|s| s.attempts >= 2)).await.unwrap().clone();
    assert!(!seen.connected && seen.last_error.unwrap().contains("refused"));
}
