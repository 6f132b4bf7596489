//! The stream: connect, ask, receive, answer; again after a pause when it ends.

use crate::connect::Connect;
use crate::state::States;
use crate::types::{Config, ConnectionState, Health, Interest, Mode, Outcome, Resource, ResourceUpdate, Wanted};
use crate::{delta, sotw};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::{MetadataKey, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use weft_proto::envoy::config::core::v3::Node;
use weft_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

/// Largest message accepted.
const MAX_MESSAGE: usize = 256 << 20;
/// Updates that may wait for the consumer: one; the server is not read meanwhile.
const UPDATES: usize = 1;
/// Time to reach the server.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// First and longest pause between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(15));
/// A silent connection is probed so often, and given up when the probe is not answered in time.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// What is wanted, by type.
#[derive(Debug, Default)]
struct Wishes {
    by_type: BTreeMap<String, Wanted>,
    /// Counts changes.
    count: u64,
}

/// The handle of a running client. The client ends when all handles are dropped.
#[derive(Debug, Clone)]
pub struct Client {
    interests: Arc<watch::Sender<Wishes>>,
    health: Arc<watch::Sender<Option<Health>>>,
    state: watch::Receiver<ConnectionState>,
}

impl Client {
    /// Says what is wanted of a type; replaces what was wanted before. A name that is dropped and wanted again later is asked
    /// for anew, however soon that is: the consumer may have forgotten what there was for it.
    pub fn want(&self, type_url: &str, interest: Interest) {
        self.interests.send_if_modified(|all| {
            let known = all.by_type.get(type_url);
            if known.is_some_and(|known| known.is(&interest)) {
                return false;
            }
            all.count += 1;
            let wanted = known.unwrap_or(&Wanted::default()).next(interest, all.count);
            all.by_type.insert(type_url.to_string(), wanted);
            true
        });
    }

    /// Says how the workload is: now, when it changes, and at the start of each stream from now on.
    pub fn report(&self, health: Health) {
        self.health.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&health);
            *known = Some(health);
            changed
        });
    }

    /// How the stream is doing; can be waited on.
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.clone()
    }
}

/// Starts a client. Updates come one at a time: the next one is handed out when the last one was answered.
pub fn start(config: Config, connector: Arc<dyn Connect>) -> (Client, mpsc::Receiver<ResourceUpdate>) {
    let (updates, receiver) = mpsc::channel(UPDATES);
    let initial = ConnectionState { connected: false, attempts: 0, last_error: None, since: Instant::now() };
    let (state_sender, state) = watch::channel(initial);
    let (interests, wanted) = watch::channel(Wishes::default());
    let (health, known_health) = watch::channel(None);
    let session =
        Session { config, connector, updates, state: state_sender, wanted, known_health, states: States::default() };
    tokio::spawn(session.run());
    (Client { interests: Arc::new(interests), health: Arc::new(health), state }, receiver)
}

struct Session {
    config: Config,
    connector: Arc<dyn Connect>,
    updates: mpsc::Sender<ResourceUpdate>,
    state: watch::Sender<ConnectionState>,
    wanted: watch::Receiver<Wishes>,
    known_health: watch::Receiver<Option<Health>>,
    states: States,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Failed(String),
    #[error("the proxy is done with it")]
    Abandoned,
}

impl From<tonic::Status> for Ended {
    fn from(status: tonic::Status) -> Self {
        let mut text = format!("{:?}: {}", status.code(), status.message());
        let mut cause = std::error::Error::source(&status);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        Ended::Failed(text)
    }
}

impl Session {
    async fn run(mut self) {
        let mut pause = BACKOFF.0;
        // Nothing is wanted yet: there is nothing to connect for.
        if self.wanted.wait_for(|wanted| !wanted.by_type.is_empty()).await.is_err() {
            return;
        }
        loop {
            match self.stream().await {
                Ended::Abandoned => return,
                Ended::Failed(why) => {
                    let was_connected = self.state.borrow().connected;
                    if was_connected {
                        pause = BACKOFF.0;
                    }
                    tracing::warn!(attempts = self.state.borrow().attempts, "control plane: {why}");
                    self.state.send_modify(|state| {
                        if state.connected {
                            state.since = Instant::now();
                        }
                        state.connected = false;
                        state.attempts = state.attempts.saturating_add(1);
                        state.last_error = Some(why);
                    });
                }
            }
            // Jitter of a half to one and a half: a restarted control plane is not hit by all proxies at once.
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// One stream, from connecting to its end.
    async fn stream(&mut self) -> Ended {
        self.take_interests();
        self.states.new_stream();
        let ended = match self.config.mode {
            Mode::Delta => self.delta_stream().await,
            Mode::StateOfTheWorld => self.sotw_stream().await,
        };
        ended.err().unwrap_or_else(|| Ended::Failed("the control plane ended the stream".into()))
    }

    /// Interests that changed while no stream was open.
    fn take_interests(&mut self) {
        let wanted = self.wanted.borrow_and_update().by_type.clone();
        for (type_url, interest) in wanted {
            self.states.get_mut(&type_url).change_interest(interest);
        }
    }

    fn health(&mut self) -> Option<Health> {
        self.known_health.borrow_and_update().clone()
    }

    async fn channel(&self) -> Result<Channel, Ended> {
        let connector = Arc::clone(&self.connector);
        let service = tower::service_fn(move |_| {
            let connecting = connector.connect();
            async move { connecting.await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::try_from(format!("http://{}", self.config.authority))
            .map_err(|e| Ended::Failed(format!("authority {:?}: {e}", self.config.authority)))?
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1)
            .keep_alive_while_idle(true);
        let connecting = endpoint.connect_with_connector(service);
        match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(Ended::Failed(with_causes(&error))),
            Err(_) => Err(Ended::Failed(format!("no connection within {CONNECT_LIMIT:?}"))),
        }
    }

    async fn client(&self) -> Result<AggregatedDiscoveryServiceClient<Channel>, Ended> {
        let channel = self.channel().await?;
        Ok(AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
    }

    fn request<T>(&self, body: T) -> Result<tonic::Request<T>, Ended> {
        let mut request = tonic::Request::new(body);
        for (name, value) in (self.config.headers)().map_err(Ended::Failed)? {
            let name: MetadataKey<_> = name.parse().map_err(|_| Ended::Failed(format!("bad header name {name:?}")))?;
            let value: MetadataValue<_> =
                value.parse().map_err(|_| Ended::Failed(format!("bad value of header {name}")))?;
            request.metadata_mut().insert(name, value);
        }
        Ok(request)
    }

    fn mark_connected(&self) {
        self.state.send_if_modified(|state| {
            let fresh = !state.connected;
            let since = if fresh { Instant::now() } else { state.since };
            *state = ConnectionState { connected: true, attempts: 0, last_error: None, since };
            fresh
        });
    }

    async fn delta_stream(&mut self) -> Result<(), Ended> {
        let mut client = self.client().await?;
        // Unbounded, yet small: a request per change of interest and one per response, and responses come one at a time.
        let (requests, outgoing) = mpsc::unbounded_channel::<DeltaDiscoveryRequest>();
        let mut node: Option<Node> = Some(self.config.node.clone());
        let mut send = |mut request: DeltaDiscoveryRequest| {
            request.node = node.take();
            requests.send(request).map_err(|_| Ended::Failed("the stream is closed".into()))
        };
        delta::opening(&self.states).into_iter().try_for_each(&mut send)?;
        self.health().map(delta::health).map_or(Ok(()), &mut send)?;
        let request = self.request(UnboundedReceiverStream::new(outgoing))?;
        let mut responses = client.delta_aggregated_resources(request).await?.into_inner();
        loop {
            tokio::select! {
                changed = self.wanted.changed() => {
                    changed.map_err(|_| Ended::Abandoned)?;
                    let wanted = self.wanted.borrow_and_update().by_type.clone();
                    for (type_url, interest) in wanted {
                        delta::change(&mut self.states, &type_url, interest).map_or(Ok(()), &mut send)?;
                    }
                }
                Ok(()) = self.known_health.changed() => {
                    self.health().map(delta::health).map_or(Ok(()), &mut send)?;
                }
                response = responses.message() => {
                    let Some(response) = response? else { return Ok(()) };
                    self.mark_connected();
                    if let Some(answer) = self.delta_response(response).await? {
                        send(answer)?;
                    }
                }
            }
        }
    }

    async fn delta_response(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> Result<Option<DeltaDiscoveryRequest>, Ended> {
        let (type_url, nonce) = (response.type_url.clone(), response.nonce.clone());
        if !self.states.known(&type_url) {
            // Sent before the server knew that nothing of the type is wanted any more. Unanswered, it would hold up what is
            // wanted of the type next.
            return Ok(self
                .states
                .ever_wanted(&type_url)
                .then(|| delta::answer(&mut self.states, &type_url, nonce, Vec::new(), &[], &Outcome::default())));
        }
        let (upserts, removals) = delta::received(response);
        let versions = versions(&upserts);
        let outcome = self.hand_over(&type_url, upserts, removals.clone()).await?;
        Ok(Some(delta::answer(&mut self.states, &type_url, nonce, versions, &removals, &outcome)))
    }

    async fn sotw_stream(&mut self) -> Result<(), Ended> {
        let mut client = self.client().await?;
        let (requests, outgoing) = mpsc::unbounded_channel::<DiscoveryRequest>();
        let mut node: Option<Node> = Some(self.config.node.clone());
        let mut send = |mut request: DiscoveryRequest| {
            request.node = node.take();
            requests.send(request).map_err(|_| Ended::Failed("the stream is closed".into()))
        };
        sotw::opening(&self.states).into_iter().try_for_each(&mut send)?;
        self.health().map(sotw::health).map_or(Ok(()), &mut send)?;
        let request = self.request(UnboundedReceiverStream::new(outgoing))?;
        let mut responses = client.stream_aggregated_resources(request).await?.into_inner();
        loop {
            tokio::select! {
                changed = self.wanted.changed() => {
                    changed.map_err(|_| Ended::Abandoned)?;
                    let wanted = self.wanted.borrow_and_update().by_type.clone();
                    for (type_url, interest) in wanted {
                        sotw::change(&mut self.states, &type_url, interest).map_or(Ok(()), &mut send)?;
                    }
                }
                Ok(()) = self.known_health.changed() => {
                    self.health().map(sotw::health).map_or(Ok(()), &mut send)?;
                }
                response = responses.message() => {
                    let Some(response) = response? else { return Ok(()) };
                    self.mark_connected();
                    if let Some(answer) = self.sotw_response(response).await? {
                        send(answer)?;
                    }
                }
            }
        }
    }

    async fn sotw_response(&mut self, response: DiscoveryResponse) -> Result<Option<DiscoveryRequest>, Ended> {
        let type_url = response.type_url.clone();
        let stamp = (response.version_info.clone(), response.nonce.clone());
        if !self.states.known(&type_url) {
            return Ok(self
                .states
                .ever_wanted(&type_url)
                .then(|| sotw::answer(&mut self.states, &type_url, stamp, Vec::new(), &[], &Outcome::default())));
        }
        let (upserts, removals) = match sotw::received(&mut self.states, response) {
            Ok(changes) => changes,
            Err(why) => {
                let outcome = Outcome { refused: vec![(type_url.clone(), why)] };
                return Ok(Some(sotw::answer(&mut self.states, &type_url, stamp, Vec::new(), &[], &outcome)));
            }
        };
        let versions = versions(&upserts);
        let outcome = self.hand_over(&type_url, upserts, removals.clone()).await?;
        Ok(Some(sotw::answer(&mut self.states, &type_url, stamp, versions, &removals, &outcome)))
    }

    /// Gives an update to the consumer and waits for what it says.
    async fn hand_over(&self, type_url: &str, upserts: Vec<Resource>, removals: Vec<String>) -> Result<Outcome, Ended> {
        let (reply, answer) = oneshot::channel();
        let update = ResourceUpdate { type_url: type_url.to_string(), upserts, removals, reply };
        self.updates.send(update).await.map_err(|_| Ended::Abandoned)?;
        let dropped = || Outcome { refused: vec![(type_url.to_string(), "the proxy dropped the update".into())] };
        Ok(answer.await.unwrap_or_else(|_| dropped()))
    }
}

fn versions(upserts: &[Resource]) -> Vec<(String, String)> {
    upserts.iter().map(|r| (r.name.clone(), r.version.clone())).collect()
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
