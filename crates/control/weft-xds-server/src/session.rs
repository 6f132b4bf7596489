//! The protocol of one stream, without I/O: what the client subscribed to, what it has, what it said of it, and so what it
//! must be sent next. Serves both variants, delta and state-of-the-world.
//!
//! Rules kept here (xDS protocol):
//! - A push is outstanding until it is acknowledged (ACK or NACK); until then nothing more of that type is sent, so a slow
//!   client gets the newest state once it is ready, not a queue of old ones.
//! - Only what changed is sent. Clusters are removed last, when the routes that used them are gone from the client.
//! - A changed cluster is followed by its endpoints even when those did not change: the client warms it with them.

use crate::kind::{ANSWERS, KINDS, Kind};
use crate::offer::Offer;
use crate::sent::Sent;
use crate::share::{NameSet, Pools};
use std::collections::{BTreeSet, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Status;
use weft_core::Strng;
use weft_proto::envoy::config::core::v3::Node;
use weft_xds_gen::{Resource, ResourceMap};

/// How long an unanswered push holds up the next one of its type.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(15);
/// Most names that a client may subscribe to, for each type.
pub const MAX_NAMES: usize = 100_000;
/// Most questions of a proxy that takes only what it asks for.
pub const MAX_QUESTIONS: usize = 10_000;
/// Longest reason of a refusal that is kept, in characters.
const MAX_REASON: usize = 2048;
/// Longest resource name, in bytes.
pub const MAX_NAME_BYTES: usize = 1024;

/// A request of either variant.
#[derive(Debug)]
pub struct Incoming {
    /// Who asks; in the first request of a stream.
    pub node: Option<Node>,
    /// Type of the resources.
    pub type_url: String,
    /// The response that this answers; empty for the first request of a type.
    pub nonce: String,
    /// What was wrong with that response.
    pub error: Option<String>,
    /// Which resources.
    pub names: Names,
}

impl Incoming {
    /// It may want others than before.
    pub(crate) fn changes_names(&self) -> bool {
        match &self.names {
            Names::All(_) => true,
            Names::Delta { subscribe, unsubscribe, .. } => !subscribe.is_empty() || !unsubscribe.is_empty(),
        }
    }
}

/// How a request says which resources it wants.
#[derive(Debug)]
pub enum Names {
    /// State of the world: exactly these.
    All(Vec<String>),
    /// Delta: these too, these no more; `have` is what the client kept from an earlier stream, with versions.
    Delta {
        /// Wanted from now on.
        subscribe: Vec<String>,
        /// Wanted no more.
        unsubscribe: Vec<String>,
        /// Kept from an earlier stream: name → version.
        have: std::collections::BTreeMap<String, String>,
    },
}

/// A response to send.
#[derive(Debug)]
pub struct Push {
    /// Type of the resources.
    pub kind: Kind,
    /// Names this response.
    pub nonce: String,
    /// Build that it was made from.
    pub version: u64,
    /// New and changed resources (state of the world: all, for clusters and listeners).
    pub resources: Vec<Arc<Resource>>,
    /// Resources that are no more (delta).
    pub removed: Vec<String>,
}

/// What became of an answer of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Accepted.
    Ack {
        /// Type of the response.
        kind: Kind,
        /// Its nonce.
        nonce: String,
    },
    /// Refused, in whole or in part.
    Nack {
        /// Type of the response.
        kind: Kind,
        /// Its nonce.
        nonce: String,
        /// Why.
        message: String,
    },
}

/// State of one stream.
#[derive(Debug)]
pub struct Session {
    delta: bool,
    next_nonce: u64,
    types: [TypeState; KINDS.len()],
    pools: Arc<Pools>,
}

#[derive(Debug, Default)]
struct TypeState {
    /// The client asked for this type at least once.
    subscribed: bool,
    all: bool,
    names: NameSet,
    /// Names subscribed to since the last comparison: nothing is known of them.
    fresh: BTreeSet<Strng>,
    /// `<route>/` of subscriptions `<route>/*`.
    prefixes: BTreeSet<String>,
    /// What the client has.
    sent: Sent,
    /// Names that the client was told do not exist.
    absent: HashSet<String>,
    /// The push that is not answered yet.
    waiting: Option<(String, Instant)>,
    /// The newest push, when it was given up: its answer may come late.
    given_up: Option<String>,
    /// The client waits for a response, whatever is in it.
    owed: bool,
    /// Names to be sent again though unchanged.
    again: HashSet<Strng>,
    /// The last comparison left nothing over: with the same resources there is nothing to do.
    settled: bool,
    /// Hash of what a state-of-the-world client was sent.
    world: Option<u64>,
}

impl Session {
    /// A new stream of the delta variant, or of the other.
    pub fn new(delta: bool) -> Self {
        Self::sharing(delta, Arc::default())
    }

    /// A new stream that shares what can be shared with others of `pools`.
    pub(crate) fn sharing(delta: bool, pools: Arc<Pools>) -> Self {
        Self { delta, next_nonce: 1, types: Default::default(), pools }
    }

    /// Takes in a request. What follows from it comes out of [`Self::pushes`].
    ///
    /// # Errors
    /// When the request is out of bounds.
    pub fn receive(&mut self, request: Incoming) -> Result<Option<Answer>, Status> {
        let Some(kind) = Kind::of(&request.type_url) else {
            // Proxies may ask for types that others serve; they get no answer, as from any server without them.
            tracing::debug!(type_url = request.type_url, "not served");
            return Ok(None);
        };
        check_names(&request.names)?;
        let state = &mut self.types[kind.index()];
        let answers_current = state.waiting.as_ref().is_some_and(|(nonce, _)| *nonce == request.nonce);
        let stale = !request.nonce.is_empty() && state.subscribed && !answers_current && state.waiting.is_some();
        let answers_late = state.given_up.as_ref().is_some_and(|nonce| *nonce == request.nonce);
        let answer = (answers_current || answers_late).then(|| {
            (state.waiting, state.given_up) = (None, None);
            let nonce = request.nonce;
            match request.error {
                None => Answer::Ack { kind, nonce },
                Some(message) => Answer::Nack { kind, nonce, message: reason(&message) },
            }
        });
        match request.names {
            // A stale request says what the client wanted before it saw the response that is under way.
            Names::All(_) if stale => {}
            Names::All(names) => state.set_names(kind, names),
            Names::Delta { subscribe, unsubscribe, have } => state.change_names(kind, subscribe, unsubscribe, have),
        }
        let most = if kind == Kind::Demand { MAX_QUESTIONS } else { MAX_NAMES };
        if state.names.len() + state.prefixes.len() > most {
            return Err(Status::resource_exhausted(format!("more than {most} names of {}", kind.short())));
        }
        Ok(answer)
    }

    /// What must be sent now, given what there is.
    pub fn pushes(&mut self, offer: &Offer, now: Instant) -> Vec<Push> {
        let mut pushes: Vec<Push> = Vec::new();
        for state in &mut self.types {
            state.give_up(now);
        }
        for kind in KINDS {
            // Endpoints that were subscribed to by name go with their clusters.
            let leads_to = kind == Kind::Cluster || (kind == Kind::Endpoint && self.types[kind.index()].all);
            let hold_removals = self.delta && leads_to && self.routes_are_moving(offer);
            if kind == Kind::Demand && self.answers_are_moving(offer) {
                continue;
            }
            let state = &mut self.types[kind.index()];
            if !state.subscribed || state.waiting.is_some() {
                continue;
            }
            let found = if self.delta {
                state.delta(offer.of(kind), kind, hold_removals, &self.pools)
            } else {
                state.world(offer.of(kind), kind)
            };
            let Some((resources, removed)) = found else { continue };
            let nonce = format!("{:x}-{}", self.next_nonce, offer.version);
            self.next_nonce += 1;
            state.waiting = Some((nonce.clone(), now + ACK_TIMEOUT));
            state.given_up = None;
            if kind == Kind::Cluster {
                self.warm(&resources);
            }
            pushes.push(Push { kind, nonce, version: offer.version, resources, removed });
        }
        pushes
    }

    /// When the next outstanding push is given up, if there is one.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.types.iter().filter_map(|t| t.waiting.as_ref().map(|(_, until)| *until)).min()
    }

    /// True while the client has listeners or routes that are not those of `offer`, or has not answered for them: they may
    /// still name clusters that are gone.
    fn routes_are_moving(&mut self, offer: &Offer) -> bool {
        [Kind::Listener, Kind::Route, Kind::VirtualHost].into_iter().any(|kind| {
            let state = &self.types[kind.index()];
            state.subscribed && (state.waiting.is_some() || state.differs(offer.of(kind), &self.pools))
        })
    }

    /// What the client asked for, by name.
    pub fn questions(&self) -> impl Iterator<Item = &str> {
        self.types[Kind::Demand.index()].names.iter().map(|name| &**name)
    }

    /// True while something of the answers to the client's questions has not been sent: that they are answered is said last.
    fn answers_are_moving(&mut self, offer: &Offer) -> bool {
        let asks = &self.types[Kind::Demand.index()];
        let names = Some(Kind::NameTable).filter(|kind| !offer.of(*kind).is_empty());
        asks.subscribed
            && ANSWERS.into_iter().chain(names).any(|kind| {
                let state = &self.types[kind.index()];
                !state.subscribed || state.lacks(offer.of(kind), &self.pools)
            })
    }

    /// The endpoints of changed clusters go out with them.
    fn warm(&mut self, clusters: &[Arc<Resource>]) {
        let endpoints = &mut self.types[Kind::Endpoint.index()];
        for cluster in clusters {
            // Before it asks for endpoints on this stream, a client that connects again may still have those of the last one
            // and name them as kept: it needs them all the same.
            if !endpoints.subscribed || endpoints.has(&cluster.name).is_some() {
                endpoints.again.insert(cluster.name.clone());
            }
        }
    }
}

fn check_names(names: &Names) -> Result<(), Status> {
    let check = |list: &[String]| {
        if list.len() > MAX_NAMES {
            return Err(Status::resource_exhausted(format!("{} names; at most {MAX_NAMES} are allowed", list.len())));
        }
        match list.iter().find(|n| n.len() > MAX_NAME_BYTES) {
            Some(long) => Err(Status::invalid_argument(format!(
                "a resource name has {} bytes; at most {MAX_NAME_BYTES} are allowed",
                long.len()
            ))),
            None => Ok(()),
        }
    };
    match names {
        Names::All(list) => check(list),
        Names::Delta { subscribe, unsubscribe, have } => {
            check(subscribe)?;
            check(unsubscribe)?;
            if have.len() > MAX_NAMES {
                return Err(Status::resource_exhausted("too many initial resource versions"));
            }
            Ok(())
        }
    }
}

/// What a client says of a refusal, fit to be kept for each proxy and written into one line of a log.
fn reason(message: &str) -> String {
    message.chars().take(MAX_REASON).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

type Found = Option<(Vec<Arc<Resource>>, Vec<String>)>;

/// What a client has beside what it should have.
#[derive(Debug, Default)]
struct Compared {
    /// It lacks these.
    changed: Vec<Arc<Resource>>,
    /// It has these, and they are no more.
    gone: Vec<Strng>,
    /// It asked for these, they do not exist, and it does not know.
    missing: Vec<String>,
}

impl TypeState {
    /// Forgets a push that was not answered in time.
    fn give_up(&mut self, now: Instant) {
        if self.waiting.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.given_up = self.waiting.take().map(|(nonce, _)| nonce);
        }
    }

    fn set_names(&mut self, kind: Kind, names: Vec<String>) {
        let first = !self.subscribed;
        self.subscribed = true;
        let all = names.iter().any(|n| n == "*") || (names.is_empty() && kind.empty_means_all() && (first || self.all));
        let names: BTreeSet<Strng> = names.into_iter().filter(|n| n != "*").map(Strng::from).collect();
        let new: Vec<&Strng> = names.iter().filter(|n| !self.names.contains(*n)).collect();
        let grew = first || (all && !self.all) || !new.is_empty();
        if all && !self.all {
            self.write_down();
        }
        for name in new {
            self.sent.forget(name);
        }
        if !all {
            self.sent.retain(|name| names.contains(name));
        }
        self.owed |= grew;
        self.settled &= !grew && names.len() == self.names.len();
        self.all = all;
        self.names = Arc::new(names);
    }

    fn change_names(
        &mut self,
        kind: Kind,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
        have: std::collections::BTreeMap<String, String>,
    ) {
        let first = !self.subscribed;
        if !first && subscribe.is_empty() && unsubscribe.is_empty() {
            return;
        }
        self.settled = false;
        if first {
            self.subscribed = true;
            self.owed = true;
            self.all = subscribe.is_empty() && kind.empty_means_all();
            // Versions are hashes: what the client kept and is still the same need not be sent.
            let listed = self.sent.list(|_| false);
            for (name, version) in have {
                listed.insert(name.into(), u64::from_str_radix(&version, 16).unwrap_or(0));
            }
        }
        for name in unsubscribe {
            self.unsubscribe(&name);
        }
        if !first && subscribe.is_empty() && self.wants_nothing() {
            // A client may leave a response unanswered that it has no use for any more; what it asks for next must not wait.
            self.given_up = self.waiting.take().map(|(nonce, _)| nonce).or(self.given_up.take());
        }
        for name in subscribe {
            self.subscribe(kind, name, first);
        }
        if first && !self.all {
            self.keep_wanted();
        }
    }

    fn subscribe(&mut self, kind: Kind, name: String, first: bool) {
        // A client that asks again for what it has may have dropped it (xDS protocol): it gets it again.
        self.owed = true;
        if name == "*" {
            self.write_down();
            self.all = true;
            return;
        }
        match name.strip_suffix('*').filter(|prefix| kind == Kind::VirtualHost && prefix.ends_with('/')) {
            Some(prefix) => {
                self.write_down();
                self.prefixes.insert(prefix.to_string());
            }
            None => {
                if !first {
                    self.sent.forget(&name);
                }
                self.absent.remove(&name);
                let name = Strng::from(name);
                self.fresh.insert(name.clone());
                Arc::make_mut(&mut self.names).insert(name);
            }
        }
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == "*" {
            self.all = false;
            self.keep_wanted();
            return;
        }
        if let Some(prefix) = name.strip_suffix('*').filter(|prefix| self.prefixes.contains(*prefix)) {
            self.prefixes.remove(prefix);
            self.keep_wanted();
            return;
        }
        Arc::make_mut(&mut self.names).remove(name);
        self.absent.remove(name);
        self.fresh.remove(name);
        if !self.wants_beyond_names(name) {
            self.sent.forget(name);
        }
    }

    /// Hash of what the client has by that name.
    fn has(&self, name: &str) -> Option<u64> {
        self.sent.get(name, self.wants(name))
    }

    fn wants(&self, name: &str) -> bool {
        self.names.contains(name) || self.wants_beyond_names(name)
    }

    /// What it has must not grow with what it wants from now on.
    fn write_down(&mut self) {
        let mut sent = std::mem::take(&mut self.sent);
        sent.list(|name| self.wants(name));
        self.sent = sent;
    }

    /// Forgets what is wanted no more.
    fn keep_wanted(&mut self) {
        let mut sent = std::mem::take(&mut self.sent);
        sent.retain(|name| self.wants(name));
        self.sent = sent;
    }

    fn wants_nothing(&self) -> bool {
        !self.all && self.names.is_empty() && self.prefixes.is_empty()
    }

    fn wants_beyond_names(&self, name: &str) -> bool {
        self.all || self.prefixes.iter().any(|p| name.starts_with(p.as_str()))
    }

    /// The resources of `map` that the client wants, by name.
    fn wanted<'a>(&'a self, map: &'a ResourceMap) -> Box<dyn Iterator<Item = &'a Arc<Resource>> + 'a> {
        if self.all {
            return Box::new(map.iter());
        }
        let named = self.names.iter().filter_map(|name| map.get(name));
        if self.prefixes.is_empty() {
            return Box::new(named);
        }
        let names = &self.names;
        let prefixed = map
            .iter()
            .filter(move |r| !names.contains(&*r.name) && self.prefixes.iter().any(|p| r.name.starts_with(p.as_str())));
        Box::new(named.chain(prefixed))
    }

    /// True when the client does not have what it wants of `map`.
    fn differs(&self, map: &ResourceMap, pools: &Pools) -> bool {
        if self.is_settled(map) {
            return false;
        }
        let found = self.compare(map, pools);
        !found.changed.is_empty() || !found.gone.is_empty()
    }

    /// True when something of `map` that the client wants has not been sent to it.
    fn lacks(&self, map: &ResourceMap, pools: &Pools) -> bool {
        !self.is_settled(map) && !self.compare(map, pools).changed.is_empty()
    }

    fn is_settled(&self, map: &ResourceMap) -> bool {
        self.settled && self.sent.of().is_some_and(|(old, _)| same(old, map))
    }

    /// What the client lacks of `map`, and what it has that is not there.
    fn compare(&self, map: &ResourceMap, pools: &Pools) -> Compared {
        let Some((old, not)) = self.sent.of() else { return self.compare_all(map) };
        // Nothing differs but these, so that a small change costs little however much there is.
        let shared = pools.difference(old.shared(), map.shared());
        let own = old.own().keys().chain(map.own().keys());
        let candidates: BTreeSet<&Strng> =
            shared.iter().chain(own).chain(not).chain(&self.again).chain(&self.fresh).collect();
        let mut found = Compared::default();
        for name in candidates {
            let wanted = self.wants(name);
            let had = self.sent.get(name, wanted);
            match map.get(name) {
                Some(new) if wanted && (had != Some(new.hash) || self.again.contains(name)) => {
                    found.changed.push(new.clone());
                }
                Some(_) => {}
                None if had.is_some() => found.gone.push(name.clone()),
                None if self.names.contains(name) && !self.absent.contains(&**name) => {
                    found.missing.push(name.to_string());
                }
                None => {}
            }
        }
        found
    }

    fn compare_all(&self, map: &ResourceMap) -> Compared {
        let lacks = |r: &&Arc<Resource>| self.has(&r.name) != Some(r.hash) || self.again.contains(&r.name);
        let unknown =
            |n: &&Strng| map.get(n).is_none() && !self.absent.contains(&***n) && self.sent.get(n, true).is_none();
        Compared {
            changed: self.wanted(map).filter(lacks).cloned().collect(),
            gone: self.sent.listed().filter(|name| map.get(name).is_none()).cloned().collect(),
            missing: self.names.iter().filter(unknown).map(ToString::to_string).collect(),
        }
    }

    fn delta(&mut self, map: &ResourceMap, kind: Kind, hold_removals: bool, pools: &Pools) -> Found {
        if !self.owed && self.again.is_empty() && self.is_settled(map) {
            return None;
        }
        let Compared { changed, gone, missing } = self.compare(map, pools);
        let held = hold_removals && !gone.is_empty();
        let mut removed: Vec<String> = Vec::new();
        for name in gone.iter().filter(|_| !held) {
            if self.names.contains(name) {
                self.absent.insert(name.to_string());
            }
            // With its cluster a client forgets the endpoints by itself; their removal, before that of the cluster, would
            // leave it without any while routes still lead to it.
            if kind != Kind::Endpoint || self.all {
                removed.push(name.to_string());
            }
        }
        removed.extend(missing.iter().cloned());
        self.absent.extend(missing);
        if !self.absent.is_empty() {
            self.absent.retain(|name| map.get(name).is_none());
        }
        if held {
            self.write_down();
            let listed = self.sent.list(|_| true);
            listed.extend(changed.iter().map(|resource| (resource.name.clone(), resource.hash)));
        } else {
            self.sent = Sent::all_of(map);
        }
        removed.sort();
        self.compared(!held, pools);
        let owed = std::mem::take(&mut self.owed);
        (owed || !changed.is_empty() || !removed.is_empty()).then_some((changed, removed))
    }

    /// Nothing is new any more.
    fn compared(&mut self, settled: bool, pools: &Pools) {
        // With them goes the room that they took.
        (self.again, self.settled) = (HashSet::new(), settled);
        if !self.fresh.is_empty() {
            self.fresh = BTreeSet::new();
            self.names = pools.names(std::mem::take(&mut self.names));
        }
    }

    fn world(&mut self, map: &ResourceMap, kind: Kind) -> Found {
        if !self.owed && self.again.is_empty() && self.is_settled(map) {
            return None;
        }
        let wanted: Vec<Arc<Resource>> = self.wanted(map).cloned().collect();
        let state = state_hash(&wanted);
        let resources = if kind.is_full_state() {
            let same = self.world == Some(state);
            if same && !self.owed { Vec::new() } else { wanted.clone() }
        } else {
            // Of these types a response may hold just what changed. What is owed is what the client has not been sent.
            let unsent = |r: &&Arc<Resource>| self.has(&r.name) != Some(r.hash) || self.again.contains(&r.name);
            wanted.iter().filter(unsent).cloned().collect()
        };
        let changed = self.world != Some(state);
        self.sent = Sent::all_of(map);
        self.world = Some(state);
        (self.again, self.settled) = (HashSet::new(), true);
        let owed = std::mem::take(&mut self.owed);
        // An empty response to a client that waits for names which do not exist (yet) would tell it nothing.
        let says_something = !resources.is_empty() || (kind.is_full_state() && (changed || owed));
        says_something.then_some((resources, Vec::new()))
    }
}

/// True when both hold the same: the same shared part, and equal own parts.
fn same(a: &ResourceMap, b: &ResourceMap) -> bool {
    Arc::ptr_eq(a.shared(), b.shared()) && (std::ptr::eq(a.own(), b.own()) || same_own(a, b))
}

fn same_own(a: &ResourceMap, b: &ResourceMap) -> bool {
    a.own().len() == b.own().len()
        && a.own().iter().zip(b.own()).all(|((n, x), (m, y))| n == m && (Arc::ptr_eq(x, y) || x.hash == y.hash))
}

fn state_hash(resources: &[Arc<Resource>]) -> u64 {
    let mut hasher = foldhash::quality::FixedState::with_seed(7).build_hasher();
    for resource in resources {
        hasher.write(resource.name.as_bytes());
        hasher.write_u64(resource.hash);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::Any;
    use weft_xds_gen::ProxyResources;

    fn offer(version: u64, hash: u64) -> Offer {
        let listener = Arc::new(Resource { name: "l".into(), any: Any::default(), hash });
        let resources = ProxyResources { listeners: [listener].into_iter().collect(), ..Default::default() };
        Offer::new(version, Arc::new(resources), ResourceMap::default())
    }

    fn request(nonce: &str, names: Names) -> Incoming {
        let type_url = Kind::Listener.type_url().to_string();
        Incoming { node: None, type_url, nonce: nonce.into(), error: None, names }
    }

    fn no_names(delta: bool) -> Names {
        match delta {
            true => Names::Delta { subscribe: vec![], unsubscribe: vec![], have: Default::default() },
            false => Names::All(vec![]),
        }
    }

    #[test]
    fn one_push_is_outstanding_until_answered_or_given_up() {
        for delta in [true, false] {
            let (mut session, now) = (Session::new(delta), Instant::now());
            session.receive(request("", no_names(delta))).unwrap();
            let first = session.pushes(&offer(1, 1), now);
            assert_eq!(first.len(), 1);
            assert!(session.pushes(&offer(2, 2), now).is_empty());
            let answer = session.receive(request(&first[0].nonce, no_names(delta))).unwrap();
            assert_eq!(answer, Some(Answer::Ack { kind: Kind::Listener, nonce: first[0].nonce.clone() }));
            assert_eq!(session.pushes(&offer(2, 2), now).len(), 1);
            assert!(session.pushes(&offer(3, 3), now + ACK_TIMEOUT / 2).is_empty());
            assert_eq!(session.pushes(&offer(3, 3), now + ACK_TIMEOUT).len(), 1);
            // An answer to what was given up is no answer to what is outstanding.
            assert_eq!(session.receive(request(&first[0].nonce, no_names(delta))).unwrap(), None);
        }
    }

    /// A gateway loses its credential and gets it back: what it said last about secrets was that it wants none.
    #[test]
    fn what_is_wanted_anew_does_not_wait_for_an_answer_to_what_is_wanted_no_more() {
        let (mut session, now) = (Session::new(true), Instant::now());
        let names = |subscribe: &[&str], unsubscribe: &[&str]| Names::Delta {
            subscribe: subscribe.iter().map(ToString::to_string).collect(),
            unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
            have: Default::default(),
        };
        session.receive(request("", names(&["l"], &[]))).unwrap();
        let first = session.pushes(&offer(1, 1), now);
        session.receive(request(&first[0].nonce, names(&[], &[]))).unwrap();
        let gone = session.pushes(&Offer::default(), now);
        assert_eq!(gone[0].removed, ["l"]);
        session.receive(request("", names(&[], &["l"]))).unwrap();
        session.receive(request("", names(&["l"], &[]))).unwrap();
        let again = session.pushes(&offer(2, 1), now);
        assert_eq!(again[0].resources.len(), 1, "at once, not when the removal is given up");
        let late = session.receive(request(&gone[0].nonce, names(&[], &[]))).unwrap();
        assert_eq!(late, None, "what came since is still outstanding");
        assert!(session.pushes(&offer(3, 3), now).is_empty());
    }

    #[test]
    fn a_late_answer_is_still_heard() {
        for delta in [true, false] {
            let (mut session, now) = (Session::new(delta), Instant::now());
            session.receive(request("", no_names(delta))).unwrap();
            let nonce = session.pushes(&offer(1, 1), now)[0].nonce.clone();
            assert!(session.pushes(&offer(1, 1), now + ACK_TIMEOUT).is_empty());
            assert_eq!(session.next_deadline(), None);
            let error = Some(format!("bad\nlistener{}", "x".repeat(MAX_REASON)));
            let answer = session.receive(Incoming { error, ..request(&nonce, no_names(delta)) }).unwrap();
            let Some(Answer::Nack { nonce: of, message, .. }) = answer else { panic!("{answer:?}") };
            assert_eq!((of, message.len()), (nonce.clone(), MAX_REASON));
            assert!(message.starts_with("bad listener"), "one line of a log");
            assert_eq!(session.receive(request(&nonce, no_names(delta))).unwrap(), None, "it is answered once");
        }
    }

    #[test]
    fn a_question_is_answered_when_everything_of_the_answer_is_on_its_way() {
        let named = |name: &str| Arc::new(Resource { name: name.into(), any: Any::default(), hash: 1 });
        let whole = |cluster: u64| {
            let cluster = Arc::new(Resource { name: "c".into(), any: Any::default(), hash: cluster });
            let resources = ProxyResources {
                listeners: [named("0.0.0.0_80")].into_iter().collect(),
                clusters: [cluster].into_iter().collect(),
                directory: Some(Default::default()),
                ..Default::default()
            };
            Offer::new(1, Arc::new(resources), ResourceMap::default())
        };
        let (mut session, now) = (Session::new(true), Instant::now());
        let ask = |kind: Kind, nonce: &str, names: &[&str]| Incoming {
            type_url: kind.type_url().into(),
            nonce: nonce.into(),
            ..request(
                "",
                Names::Delta {
                    subscribe: names.iter().map(ToString::to_string).collect(),
                    unsubscribe: vec![],
                    have: Default::default(),
                },
            )
        };
        let kinds = |pushes: &[Push]| pushes.iter().map(|push| push.kind).collect::<Vec<_>>();
        session.receive(ask(Kind::Demand, "", &["tcp/10.0.0.1:80"])).unwrap();
        let offer =
            |session: &Session, cluster| whole(cluster).part(&mut Default::default(), session.questions()).unwrap();
        let now_offered = offer(&session, 1);
        assert_eq!(kinds(&session.pushes(&now_offered, now)), [], "a proxy that comes back asks for everything first");
        for kind in ANSWERS {
            session.receive(ask(kind, "", &["*"])).unwrap();
        }
        let all = session.pushes(&now_offered, now);
        assert_eq!(kinds(&all).last(), Some(&Kind::Demand), "last");
        let nonce = |kind: Kind| all.iter().find(|p| p.kind == kind).unwrap().nonce.clone();
        for kind in [Kind::Demand, Kind::Endpoint, Kind::Route, Kind::VirtualHost, Kind::Cluster] {
            session.receive(ask(kind, &nonce(kind), &[])).unwrap();
        }
        // The listeners of the first answer are not acknowledged yet, and the second has one more.
        session.receive(ask(Kind::Demand, "", &["tcp/10.0.0.2:80", "http/80/a"])).unwrap();
        let mut more = whole(1);
        more = {
            let resources = ProxyResources {
                listeners: [named("0.0.0.0_80"), named("10.0.0.2_80")].into_iter().collect(),
                directory: Some(Default::default()),
                ..Default::default()
            };
            Offer::new(more.version, Arc::new(resources), ResourceMap::default())
        };
        let next = more.part(&mut Default::default(), session.questions()).unwrap();
        assert!(!kinds(&session.pushes(&next, now)).contains(&Kind::Demand), "its listener is not on its way yet");
        session.receive(ask(Kind::Listener, &nonce(Kind::Listener), &[])).unwrap();
        assert_eq!(kinds(&session.pushes(&next, now)), [Kind::Listener, Kind::Demand]);
    }

    #[test]
    fn endpoints_that_were_kept_warm_a_changed_cluster() {
        let resource = |name: &str, hash| Arc::new(Resource { name: name.into(), any: Any::default(), hash });
        let resources = ProxyResources {
            clusters: [resource("changed", 2), resource("same", 1)].into_iter().collect(),
            endpoints: [resource("changed", 1), resource("same", 1)].into_iter().collect(),
            ..Default::default()
        };
        let offer = Offer::new(1, Arc::new(resources), ResourceMap::default());
        let mut session = Session::new(true);
        let mut ask = |kind: Kind, subscribe: &[&str]| {
            let have = ["changed", "same"].map(|name| (name.to_string(), "1".to_string())).into();
            let subscribe = subscribe.iter().map(|name| name.to_string()).collect();
            let names = Names::Delta { subscribe, unsubscribe: vec![], have };
            let type_url = kind.type_url().to_string();
            session.receive(Incoming { node: None, type_url, nonce: String::new(), error: None, names }).unwrap();
            let pushes = session.pushes(&offer, Instant::now());
            pushes.iter().flat_map(|p| &p.resources).map(|r| r.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(ask(Kind::Cluster, &[]), ["changed"]);
        assert_eq!(ask(Kind::Endpoint, &["changed", "same"]), ["changed"]);
    }

    #[test]
    fn the_bounds_hold() {
        let names = |n: usize, bytes: usize| (0..n).map(|i| format!("{i:0bytes$}")).collect::<Vec<_>>();
        for (names, good) in [(names(10, 1024), true), (names(1, 1025), false), (names(MAX_NAMES + 1, 1), false)] {
            assert_eq!(Session::new(false).receive(request("", Names::All(names))).is_ok(), good);
        }
        let mut session = Session::new(true);
        let mut grow = |from: usize| {
            let subscribe = (from..from + MAX_NAMES * 2 / 3).map(|i| i.to_string()).collect();
            session
                .receive(request("", Names::Delta { subscribe, unsubscribe: vec![], have: Default::default() }))
                .is_ok()
        };
        assert!(grow(0));
        assert!(!grow(MAX_NAMES));
    }
}
