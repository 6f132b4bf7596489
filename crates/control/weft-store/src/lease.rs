//! Which of several replicas may write: a Lease that one of them holds and renews, as Kubernetes' own controllers do it
//! (kubernetes.io, "Leases", leader election).
//!
//! Clocks of replicas may differ, so what counts is how long ago this process saw the Lease change, by its own clock. A
//! holder that cannot renew stops being leader before anyone else can take the Lease.

use crate::client::{ApiClient, ClientError, WriteOptions};
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use weft_k8s_api::kinds::by_kind;
use weft_k8s_api::{KindInfo, Object};

/// What is competed for, and by whom.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who this is; no two processes may say the same.
    pub identity: String,
    /// Time after the last renewal at which others may take it. At least 1 s, whole seconds. Kubernetes' usual: 15 s.
    pub duration: Duration,
}

impl LeaseOptions {
    /// Who a process is: its pod's name, and what tells it from one before it of the same name.
    pub fn identity_of(pod_name: &str) -> String {
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        format!("{pod_name}_{:x}{:x}", started, std::process::id())
    }

    /// The holder steps down when it could not renew for so long: two thirds of the duration.
    fn deadline(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// Pause between tries: an eighth of the duration, spread a little.
    fn pause(&self) -> Duration {
        (self.duration / 8).mul_f64(0.8 + 0.4 * fastrand::f64())
    }
}

/// The competition, running. Dropping it ends it without giving the Lease back.
pub struct Leadership {
    leader: watch::Receiver<bool>,
    client: ApiClient,
    options: LeaseOptions,
    task: JoinHandle<()>,
}

impl Leadership {
    /// Begins to compete.
    pub fn start(client: &ApiClient, options: LeaseOptions) -> Self {
        let (sender, leader) = watch::channel(false);
        let candidate = Candidate { client: client.clone(), options: options.clone(), seen: None, said: String::new() };
        let task = tokio::spawn(candidate.run(sender));
        Self { leader, client: client.clone(), options, task }
    }

    /// True while this process may write.
    pub fn leader(&self) -> watch::Receiver<bool> {
        self.leader.clone()
    }

    /// Ends the competition, and gives the Lease back so that another need not wait until it ends.
    pub async fn release(self) {
        self.task.abort();
        if !*self.leader.borrow() {
            return;
        }
        let give_back = async {
            let lease = self.client.get(kind()?, &self.options.namespace, &self.options.name).await?;
            if holder(&lease) != self.options.identity {
                return Ok(());
            }
            let mut free = lease;
            set(&mut free, "holderIdentity", json!(""));
            set(&mut free, "leaseDurationSeconds", json!(1));
            self.client.replace(&free, &WriteOptions::default()).await.map(drop)
        };
        if let Ok(Err(error)) = timeout(Duration::from_secs(2), give_back).await {
            tracing::debug!(%error, "the lease was not given back");
        }
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs `work` whenever this process is leader, and drops it when it no longer is. Ends when `work` ends by itself.
pub async fn while_leader<F: Future<Output = ()>>(mut leader: watch::Receiver<bool>, work: impl Fn() -> F) {
    loop {
        if leader.wait_for(|is| *is).await.is_err() {
            return;
        }
        tokio::select! {
            () = work() => return,
            _ = leader.wait_for(|is| !*is) => {}
        }
    }
}

struct Candidate {
    client: ApiClient,
    options: LeaseOptions,
    /// Revision of the Lease that was seen last, and when it was first seen.
    seen: Option<(String, Instant)>,
    /// The last failure that was told of.
    said: String,
}

impl Candidate {
    async fn run(mut self, leader: watch::Sender<bool>) {
        // Until when this process is leader.
        let mut until: Option<Instant> = None;
        loop {
            let asked = Instant::now();
            let limit;
            (until, limit) = turn(until, asked, self.options.deadline());
            // Before the server is asked: who is leader no more stops now, however long the answer takes.
            self.publish(&leader, until.is_some());
            match timeout(limit, self.try_once()).await {
                Ok(Ok(true)) => until = Some(asked + self.options.deadline()),
                Ok(Ok(false)) => until = None,
                Ok(Err(error)) => self.tell(&error),
                // Whether the server has renewed it will be seen in the next try.
                Err(_) => {}
            }
            self.publish(&leader, until.is_some_and(|end| Instant::now() < end));
            let pause = self.options.pause();
            let left = until.map_or(pause, |end| end.saturating_duration_since(Instant::now()));
            sleep(pause.min(left.max(Duration::from_millis(50)))).await;
        }
    }

    /// Tells whether this process is leader, when that is news.
    fn publish(&self, leader: &watch::Sender<bool>, now: bool) {
        if leader.send_if_modified(|was| std::mem::replace(was, now) != now) {
            let LeaseOptions { namespace, name, identity, .. } = &self.options;
            match now {
                true => tracing::info!("leader: {identity} holds Lease {namespace}/{name}"),
                false => tracing::warn!("no longer leader: Lease {namespace}/{name} could not be renewed in time"),
            }
        }
    }

    /// One round: true when this process holds the Lease now.
    async fn try_once(&mut self) -> Result<bool, ClientError> {
        let (namespace, name) = (&self.options.namespace, &self.options.name);
        let lease = match self.client.get(kind()?, namespace, name).await {
            Ok(lease) => lease,
            Err(error) if error.is_not_found() => return self.write(None).await,
            Err(error) => return Err(error),
        };
        let revision = lease.metadata.resource_version.clone().unwrap_or_default();
        let first_seen = match &self.seen {
            Some((known, at)) if *known == revision => *at,
            _ => Instant::now(),
        };
        self.seen = Some((revision, first_seen));
        let held_by = holder(&lease);
        let free = held_by.is_empty() || held_by == self.options.identity;
        if free || first_seen.elapsed() >= duration(&lease) {
            return self.write(Some(lease)).await;
        }
        Ok(false)
    }

    /// Writes the Lease as ours; false when another was quicker.
    async fn write(&mut self, current: Option<Object>) -> Result<bool, ClientError> {
        let options = WriteOptions::default();
        let new = current.is_none();
        let lease = self.ours(current);
        let written = match new {
            true => self.client.create(&lease, &options).await,
            false => self.client.replace(&lease, &options).await,
        };
        match written {
            Ok(written) => {
                let revision = written.object.metadata.resource_version.unwrap_or_default();
                self.seen = Some((revision, Instant::now()));
                self.said.clear();
                Ok(true)
            }
            Err(ClientError::Conflict(_) | ClientError::AlreadyExists(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The Lease with this process as its holder.
    fn ours(&self, current: Option<Object>) -> Object {
        let now = micro_time();
        let identity = self.options.identity.as_str();
        let mut lease = current.unwrap_or_else(|| empty(&self.options));
        if holder(&lease) != identity {
            let transitions = lease.spec().get("leaseTransitions").and_then(Value::as_u64);
            set(&mut lease, "leaseTransitions", json!(transitions.map_or(0, |n| n + 1)));
            set(&mut lease, "acquireTime", json!(now));
        }
        set(&mut lease, "holderIdentity", json!(identity));
        set(&mut lease, "leaseDurationSeconds", json!(self.options.duration.as_secs().max(1)));
        set(&mut lease, "renewTime", json!(now));
        lease
    }

    /// A failure is told of once.
    fn tell(&mut self, error: &ClientError) {
        let text = error.to_string();
        if text != self.said {
            tracing::warn!("Lease {}/{}: {text}", self.options.namespace, self.options.name);
            self.said = text;
        }
    }
}

/// What a try at `asked` begins with: until when this process is still leader, and how long the answer may take. Whoever is
/// leader no more asks like everybody else, with all the time that an answer may take.
fn turn(until: Option<Instant>, asked: Instant, deadline: Duration) -> (Option<Instant>, Duration) {
    let until = until.filter(|end| asked < *end);
    (until, until.map_or(deadline, |end| end.saturating_duration_since(asked)))
}

fn kind() -> Result<&'static KindInfo, ClientError> {
    by_kind("coordination.k8s.io", "Lease").ok_or_else(|| ClientError::NoSuchKind("leases".into()))
}

fn empty(options: &LeaseOptions) -> Object {
    let mut lease = Object {
        api_version: "coordination.k8s.io/v1".into(),
        kind: "Lease".into(),
        metadata: Default::default(),
        body: Map::new(),
    };
    lease.metadata.name = Some(options.name.clone());
    lease.metadata.namespace = Some(options.namespace.clone());
    lease
}

fn holder(lease: &Object) -> &str {
    lease.spec().get("holderIdentity").and_then(Value::as_str).unwrap_or_default()
}

fn duration(lease: &Object) -> Duration {
    let seconds = lease.spec().get("leaseDurationSeconds").and_then(Value::as_u64).unwrap_or(15);
    // A Lease that claims years is someone's mistake.
    Duration::from_secs(seconds.clamp(1, 3600))
}

fn set(lease: &mut Object, field: &str, value: Value) {
    let spec = lease.body.entry("spec").or_insert_with(|| json!({}));
    if let Some(spec) = spec.as_object_mut() {
        spec.insert(field.into(), value);
    }
}

/// The time as Kubernetes writes it in a Lease: RFC 3339 with six decimals.
fn micro_time() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn works_only_while_leader() {
        let (sender, leader) = watch::channel(false);
        let (begun, mut begins) = watch::channel(0);
        let running = Arc::new(AtomicUsize::new(0));
        struct Count(Arc<AtomicUsize>);
        impl Drop for Count {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let (now, begun) = (running.clone(), Arc::new(begun));
        let task = tokio::spawn(while_leader(leader, move || {
            let (now, begun) = (now.clone(), begun.clone());
            async move {
                now.fetch_add(1, Ordering::SeqCst);
                let _count = Count(now);
                begun.send_modify(|n| *n += 1);
                std::future::pending::<()>().await;
            }
        }));
        tokio::task::yield_now().await;
        assert_eq!(running.load(Ordering::SeqCst), 0, "a follower does nothing");
        for round in 1..=2 {
            sender.send_replace(true);
            begins.wait_for(|n| *n == round).await.unwrap();
            assert_eq!(running.load(Ordering::SeqCst), 1);
            sender.send_replace(false);
            while running.load(Ordering::SeqCst) > 0 {
                tokio::task::yield_now().await;
            }
        }
        drop(sender);
        task.await.unwrap();
    }

    #[test]
    fn turns() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let asked = start + second * 20;
        let deadline = second * 10;
        let table = [
            ("never leader", None, None, deadline),
            ("a leader with time left", Some(23), Some(23), second * 3),
            ("a leader with all its time", Some(30), Some(30), deadline),
            ("its time ends just now", Some(20), None, deadline),
            ("its time is over", Some(12), None, deadline),
        ];
        for (what, until, holds, limit) in table {
            let at = |seconds: Option<u32>| seconds.map(|seconds| start + second * seconds);
            assert_eq!(turn(at(until), asked, deadline), (at(holds), limit), "{what}");
        }
    }

    /// The first requests of a server get their answers, one each; what comes within `deaf` is closed, what comes later is told
    /// of and never answered.
    async fn failing_server(answers: &[&str], deaf: Duration) -> (std::net::SocketAddr, watch::Receiver<bool>) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, (hung, hangs)) = (listener.local_addr().unwrap(), watch::channel(false));
        let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_string()).collect();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                // A request is one small packet or two: its head says how much is to come.
                let mut request = Vec::new();
                let whole = |request: &[u8]| {
                    let text = String::from_utf8_lossy(request).to_lowercase();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
                    let length =
                        head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
                    body.len() >= length.unwrap_or(0)
                };
                while !whole(&request) {
                    assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0, "the client went");
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            let granted = Instant::now();
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                if granted.elapsed() >= deaf {
                    held.push(stream);
                    hung.send_replace(true);
                }
            }
        });
        (address, hangs)
    }

    #[tokio::test]
    async fn a_leader_stops_at_its_deadline_however_long_the_server_takes() {
        let answer = |status: &str, body: Value| {
            let body = body.to_string();
            let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n");
            format!("{head}content-length: {}\r\n\r\n{body}", body.len())
        };
        let options = LeaseOptions {
            namespace: "istio-system".into(),
            name: "weftd-leader".into(),
            identity: "a".into(),
            duration: Duration::from_secs(15),
        };
        let missing = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
            "details": {"name": "weftd-leader", "kind": "leases"},
        });
        let lease = empty(&options).to_value();
        let answers = [answer("404 Not Found", missing), answer("201 Created", lease)];
        let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
        let (address, mut hangs) = failing_server(&answers, options.deadline()).await;
        let client = ApiClient::connect(&format!("http://{address}"), None).unwrap();
        let leadership = Leadership::start(&client, options);
        let mut leader = leadership.leader();
        let bound = Duration::from_secs(30);
        timeout(bound, leader.wait_for(|is| *is)).await.expect("leader").unwrap();
        timeout(bound, hangs.wait_for(|hung| *hung)).await.expect("a request after the deadline").unwrap();
        assert!(!*leader.borrow(), "still leader while an answer is awaited that came too late");
    }

    #[tokio::test]
    async fn what_a_holder_writes() {
        let client = ApiClient::connect("http://127.0.0.1:1", None).unwrap();
        let options = LeaseOptions {
            namespace: "istio-system".into(),
            name: "weftd-leader".into(),
            identity: "a".into(),
            duration: Duration::from_secs(15),
        };
        assert_eq!(options.deadline(), Duration::from_secs(10));
        assert!(options.pause() * 4 < options.deadline(), "several tries before the deadline");
        let mut candidate = Candidate { client, options, seen: None, said: String::new() };
        let first = candidate.ours(None);
        assert_eq!((holder(&first), duration(&first)), ("a", Duration::from_secs(15)));
        assert_eq!(first.spec()["leaseTransitions"], 0);
        let again = candidate.ours(Some(first.clone()));
        assert_eq!(again.spec()["acquireTime"], first.spec()["acquireTime"], "renewing is not acquiring");
        candidate.options.identity = "b".into();
        let taken = candidate.ours(Some(again));
        assert_eq!((holder(&taken), &taken.spec()["leaseTransitions"]), ("b", &json!(1)));
        let time = micro_time();
        assert!(time.ends_with('Z') && time.split_once('.').unwrap().1.len() == 7, "{time}");
    }
}
