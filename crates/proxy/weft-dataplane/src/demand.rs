//! What a proxy asks for that takes only the configuration that it uses: the first connection to an address, and the first
//! request for a host, wait for the control plane's answer, bounded in time and number. Answers stay in force as
//! subscriptions, those that say that there is nothing too, until nobody used them for a while.
//!
//! Who speaks to the control plane is not known here: it reads [`Demands::names`] and says [`Demands::answered`].
//! Without an answer there is no traffic: what rules there are for a host is not known then.

use crate::http::exchange::Exchange;
use crate::listener::LiveListener;
use crate::worker::Worker;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use weft_codec::{LocalReply, Reason};
use weft_core::Strng;
use weft_proxy_config::{RouteSource, TrafficDirection};
use weft_telemetry::{Report, Source};

/// What was used within this time does not give way to something new.
const FRESH: Duration = Duration::from_secs(10);
/// Longest wait for the answer to a name: who looks it up asks again after 5 s.
const NAME_WAIT: Duration = Duration::from_secs(2);
/// Longest host or name that is asked for, in bytes, without the dot at the end: no service has a longer one (RFC 1035
/// §2.3.4).
const MAX_HOST: usize = 253;
/// A label that no service has, in place of what is too long to be asked for.
const ANY_LABEL: &str = "_";
/// Beginning of the questions for names.
const NAME: &str = "dns/";

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest wait for an answer; 5 s.
    pub wait: Duration,
    /// What nobody used for so long is given up; 30 min.
    pub idle: Duration,
    /// Questions open at once, answered or not; 4096.
    pub most: usize,
    /// Of these, names that the workload looks up; 512. They give way to connections and requests, never the other way round.
    pub names: usize,
    /// Connections and requests that wait at once; 1024.
    pub waiting: usize,
    /// Look-ups of names that wait at once, beside these; 128.
    pub waiting_names: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(5),
            idle: Duration::from_secs(30 * 60),
            most: 4096,
            names: 512,
            waiting: 1024,
            waiting_names: 128,
        }
    }
}

/// What is asked for. A clone shares it.
#[derive(Debug, Clone)]
pub struct Demands(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Limits,
    started: Instant,
    questions: Mutex<Questions>,
    /// Counts changes of the set of questions.
    changes: watch::Sender<u64>,
    /// There is a control plane that may answer.
    reachable: watch::Sender<bool>,
    waiting: AtomicUsize,
    waiting_names: AtomicUsize,
    asked: AtomicU64,
    evicted: AtomicU64,
    unanswered: AtomicU64,
}

/// What is asked for, by name.
#[derive(Debug, Default)]
struct Questions {
    /// Of connections and requests.
    traffic: Known<Strng, Arc<Question>>,
    /// Of look-ups.
    names: Known<Strng, Arc<Question>>,
}

impl Questions {
    fn get(&self, name: &str) -> Option<&Arc<Question>> {
        if name.starts_with(NAME) { self.names.get(name) } else { self.traffic.get(name) }
    }

    fn of(&mut self, name: &str) -> &mut Known<Strng, Arc<Question>> {
        if name.starts_with(NAME) { &mut self.names } else { &mut self.traffic }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Question>> {
        self.traffic.values().chain(self.names.values())
    }

    fn len(&self) -> usize {
        self.traffic.len() + self.names.len()
    }

    /// What has to go so that there is room for `name`, if anything has.
    fn gives_way(&self, limits: &Limits, name: &str, now: u64) -> Result<Option<Arc<Question>>, Unanswered> {
        let is_name = name.starts_with(NAME);
        if self.len() < limits.most && !(is_name && self.names.len() >= limits.names) {
            return Ok(None);
        }
        let used = |question: &Arc<Question>| question.used.load(Relaxed);
        let oldest = |of: &Known<Strng, Arc<Question>>| of.values().min_by_key(|question| used(question)).cloned();
        let is_stale = |question: &Arc<Question>| used(question) + FRESH.as_secs() <= now;
        let found = match is_name {
            true => oldest(&self.names).filter(is_stale),
            // Who looks a name up asks again, and there are resolvers besides.
            false => oldest(&self.names).or_else(|| oldest(&self.traffic).filter(is_stale)),
        };
        found.map(Some).ok_or(Unanswered::Full)
    }
}

/// Something that was asked for, by its name.
#[derive(Debug)]
struct Question {
    name: Strng,
    /// The version of the snapshot that held the answer first; `None` = not answered yet.
    answered: watch::Sender<Option<u64>>,
    /// Names of what there is for it.
    found: Mutex<Arc<[String]>>,
    /// When it was used last, in seconds since the start.
    used: AtomicU64,
    /// Nobody asks for it any more.
    gone: AtomicBool,
}

/// A question as a dump shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `http/ROUTE/HOST`, `tcp/IP:PORT` or `dns/NAME`.
    pub name: String,
    /// The control plane has answered.
    pub answered: bool,
    /// Listeners and virtual hosts that there are for it; none is an answer too.
    pub found: Vec<String>,
    /// Since when nobody used it.
    pub idle: Duration,
}

/// Why a question has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// Not in time.
    Late,
    /// Too many wait, or too much is in use.
    Full,
}

impl Unanswered {
    /// As access logs have it.
    pub fn details(self) -> &'static str {
        match self {
            Unanswered::Late => "on_demand_timeout",
            Unanswered::Full => "on_demand_overflow",
        }
    }

    /// The reason in the table of reasons.
    pub fn reason(self) -> Reason {
        match self {
            Unanswered::Late => Reason::NoCluster,
            Unanswered::Full => Reason::Overload,
        }
    }
}

impl Demands {
    /// Nothing is asked for yet, and there is nobody who would answer.
    pub fn new(limits: Limits) -> Self {
        Self::since(limits, Instant::now())
    }

    fn since(limits: Limits, started: Instant) -> Self {
        Self(Arc::new(Inner {
            limits,
            started,
            questions: Mutex::default(),
            changes: watch::Sender::new(0),
            reachable: watch::Sender::new(false),
            waiting: AtomicUsize::new(0),
            waiting_names: AtomicUsize::new(0),
            asked: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
        }))
    }

    /// Whether there is a control plane that may answer. While there is none, names are not asked for: there are resolvers.
    pub fn reachable(&self, reachable: bool) {
        self.0.reachable.send_if_modified(|known| std::mem::replace(known, reachable) != reachable);
    }

    /// Rung when [`Self::names`] are others.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// What is asked for.
    pub fn names(&self) -> BTreeSet<String> {
        self.questions().all().map(|question| question.name.to_string()).collect()
    }

    /// What is asked for and has no answer yet.
    pub fn pending(&self) -> Vec<String> {
        let questions = self.questions();
        questions.all().filter(|q| q.answered.borrow().is_none()).map(|q| q.name.to_string()).collect()
    }

    /// There is an answer: `found`, all of which is in the snapshot of that version.
    pub fn answered(&self, name: &str, version: u64, found: Vec<String>) {
        let Some(question) = self.questions().get(name).cloned() else { return };
        *lock(&question.found) = found.into();
        // What was there before stays there: the first version is enough for those who wait.
        question.answered.send_if_modified(|known| known.replace(known.unwrap_or(version)).is_none());
    }

    /// Asks for a name that is looked up, lower case and without the dot at its end, and waits for the answer; false when
    /// there is none in time, or nobody to answer. Names have nobody who uses them for longer than that.
    pub async fn name(&self, name: &str) -> bool {
        if name.len() > MAX_HOST {
            return false;
        }
        let asked = format!("{NAME}{name}");
        let known = self.questions().get(&asked).cloned();
        let mut reachable = self.0.reachable.subscribe();
        if known.is_none() && !*reachable.borrow_and_update() {
            return false;
        }
        let Ok(question) = known.map_or_else(|| self.ask(&asked), Ok) else { return false };
        question.used.store(self.now(), Relaxed);
        let mut answers = question.answered.subscribe();
        if answers.borrow_and_update().is_some() {
            return true;
        }
        let Ok(_place) = self.place_of_name() else { return false };
        let limit = self.0.limits.wait.min(NAME_WAIT);
        let answered = tokio::time::timeout(limit, async {
            tokio::select! {
                biased;
                answered = answers.wait_for(Option::is_some) => answered.is_ok(),
                _ = reachable.wait_for(|reachable| !reachable) => false,
            }
        });
        let answered = answered.await.unwrap_or(false);
        if !answered {
            self.0.unanswered.fetch_add(1, Relaxed);
        }
        answered
    }

    /// Gives up what nobody used for long; how many that were.
    pub fn evict(&self) -> usize {
        let idle = self.0.limits.idle.as_secs();
        let before = self.now().checked_sub(idle);
        let Some(before) = before else { return 0 };
        let mut questions = self.questions();
        let count = questions.len();
        let keep = |_: &Strng, question: &mut Arc<Question>| {
            let keep = question.used.load(Relaxed) > before;
            question.gone.store(!keep, Relaxed);
            keep
        };
        questions.traffic.retain(keep);
        questions.names.retain(keep);
        let evicted = count - questions.len();
        drop(questions);
        self.count_evicted(evicted);
        evicted
    }

    /// How often to call [`Self::evict`].
    pub fn evict_every(&self) -> Duration {
        (self.0.limits.idle / 8).clamp(Duration::from_millis(250), Duration::from_secs(60))
    }

    /// For dumps.
    pub fn list(&self) -> Vec<Asked> {
        let now = self.now();
        let mut all: Vec<Asked> = self.questions().all().map(|question| question.shown(now)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn count_evicted(&self, evicted: usize) {
        if evicted > 0 {
            self.0.evicted.fetch_add(evicted as u64, Relaxed);
            self.0.changes.send_modify(|changes| *changes += 1);
        }
    }

    fn questions(&self) -> MutexGuard<'_, Questions> {
        lock(&self.0.questions)
    }

    /// Seconds since the start, from 1 on.
    fn now(&self) -> u64 {
        self.0.started.elapsed().as_secs() + 1
    }

    /// The question of that name, asked now if it was not before.
    fn ask(&self, name: &str) -> Result<Arc<Question>, Unanswered> {
        let now = self.now();
        let mut questions = self.questions();
        if let Some(known) = questions.get(name) {
            return Ok(known.clone());
        }
        if let Some(oldest) = questions.gives_way(&self.0.limits, name, now)? {
            oldest.gone.store(true, Relaxed);
            questions.of(&oldest.name).remove(&oldest.name);
            self.0.evicted.fetch_add(1, Relaxed);
        }
        let name = Strng::from(name);
        let question = Arc::new(Question {
            name: name.clone(),
            answered: watch::Sender::new(None),
            found: Mutex::new([].into()),
            used: AtomicU64::new(now),
            gone: AtomicBool::new(false),
        });
        questions.of(&name).insert(name.clone(), question.clone());
        drop(questions);
        self.0.asked.fetch_add(1, Relaxed);
        self.0.changes.send_modify(|changes| *changes += 1);
        Ok(question)
    }

    /// A place among the connections and requests that wait.
    fn place(&self) -> Result<Place<'_>, Unanswered> {
        Place::among(&self.0.waiting, self.0.limits.waiting)
    }

    /// A place among the look-ups that wait.
    fn place_of_name(&self) -> Result<Place<'_>, Unanswered> {
        Place::among(&self.0.waiting_names, self.0.limits.waiting_names)
    }
}

struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn among(taken: &'a AtomicUsize, most: usize) -> Result<Self, Unanswered> {
        let place = Place(taken);
        match taken.fetch_add(1, Relaxed) >= most {
            true => Err(Unanswered::Full),
            false => Ok(place),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Question {
    fn shown(&self, now: u64) -> Asked {
        Asked {
            name: self.name.to_string(),
            answered: self.answered.borrow().is_some(),
            found: lock(&self.found).to_vec(),
            idle: Duration::from_secs(now.saturating_sub(self.used.load(Relaxed))),
        }
    }
}

/// What of it is counted.
impl Source for Demands {
    fn report(&self, report: &mut Report<'_>) {
        let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let (held, pending) = {
            let questions = self.questions();
            let pending = questions.all().filter(|question| question.answered.borrow().is_none()).count();
            (questions.len(), pending)
        };
        report.gauge("weft_on_demand_held", &[], whole(held as u64));
        report.gauge("weft_on_demand_pending", &[], whole(pending as u64));
        let waiting = self.0.waiting.load(Relaxed) + self.0.waiting_names.load(Relaxed);
        report.gauge("weft_on_demand_waiting", &[], whole(waiting as u64));
        report.counter("weft_on_demand_asked_total", &[], self.0.asked.load(Relaxed));
        report.counter("weft_on_demand_evicted_total", &[], self.0.evicted.load(Relaxed));
        report.counter("weft_on_demand_unanswered_total", &[], self.0.unanswered.load(Relaxed));
    }
}

/// What one worker knows of questions, so that those that were answered cost a request no more than looking them up here.
#[derive(Debug)]
pub(crate) struct Asks {
    demands: Demands,
    hosts: RefCell<Known<Strng, Known<Strng, Rc<Answered>>>>,
    addresses: RefCell<Known<SocketAddr, Rc<Answered>>>,
    /// Counts sweeps.
    tick: Cell<u64>,
}

type Known<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A question, which is in use for as long as somebody besides its worker holds this.
#[derive(Debug)]
pub(crate) struct Answered {
    question: Arc<Question>,
    /// This worker has the answer.
    ready: Cell<bool>,
    /// Sweep in which it was used last.
    used: Cell<u64>,
}

impl Asks {
    pub fn new(demands: Demands) -> Self {
        Self { demands, hosts: RefCell::default(), addresses: RefCell::default(), tick: Cell::new(1) }
    }

    /// Asks for an address, and waits for the answer.
    async fn address(&self, worker: &Worker, address: SocketAddr) -> Result<Rc<Answered>, Unanswered> {
        let known = self.addresses.borrow().get(&address).cloned();
        let answered = match known.filter(|known| !known.is_gone()) {
            Some(known) => known,
            None => {
                let new = self.ask(&format!("tcp/{address}"))?;
                self.addresses.borrow_mut().insert(address, new.clone());
                new
            }
        };
        self.wait(worker, &answered).await?;
        Ok(answered)
    }

    /// Asks for a host, and waits for the answer unless the routes name the host already.
    async fn host(
        &self,
        worker: &Worker,
        route: &Strng,
        host: &str,
        is_named: impl FnOnce() -> bool,
    ) -> Result<Rc<Answered>, Unanswered> {
        let known = self.hosts.borrow().get(route).and_then(|hosts| hosts.get(host)).cloned();
        let answered = match known.filter(|known| !known.is_gone()) {
            Some(known) => known,
            None => {
                let new = self.ask(&format!("http/{route}/{host}"))?;
                self.hosts.borrow_mut().entry(route.clone()).or_default().insert(host.into(), new.clone());
                new
            }
        };
        if !answered.ready.get() && is_named() {
            self.touch(&answered);
            let version = *answered.question.answered.borrow();
            answered.ready.set(version.is_some_and(|version| version <= worker.snapshot().config.version));
            return Ok(answered);
        }
        self.wait(worker, &answered).await?;
        Ok(answered)
    }

    fn ask(&self, name: &str) -> Result<Rc<Answered>, Unanswered> {
        let question = self.demands.ask(name)?;
        Ok(Rc::new(Answered { question, ready: Cell::new(false), used: Cell::new(0) }))
    }

    async fn wait(&self, worker: &Worker, answered: &Answered) -> Result<(), Unanswered> {
        self.touch(answered);
        if answered.ready.get() {
            return Ok(());
        }
        let outcome = self.answer(worker, answered).await;
        if outcome.is_err() {
            self.demands.0.unanswered.fetch_add(1, Relaxed);
        }
        outcome
    }

    async fn answer(&self, worker: &Worker, answered: &Answered) -> Result<(), Unanswered> {
        let _place = self.demands.place()?;
        let mut answers = answered.question.answered.subscribe();
        let followed = async {
            // The sender is part of the question, which lives as long as this.
            let version = answers.wait_for(Option::is_some).await.ok().and_then(|version| *version);
            worker.followed(version.unwrap_or_default()).await;
        };
        tokio::time::timeout(self.demands.0.limits.wait, followed).await.map_err(|_| Unanswered::Late)?;
        answered.ready.set(true);
        Ok(())
    }

    fn touch(&self, answered: &Answered) {
        if answered.used.replace(self.tick.get()) != self.tick.get() {
            answered.question.used.store(self.demands.now(), Relaxed);
        }
    }

    /// Says what is still in use, and forgets what was given up. Call now and then.
    pub fn sweep(&self) {
        self.tick.set(self.tick.get() + 1);
        let now = self.demands.now();
        let keep = |answered: &Rc<Answered>| {
            if Rc::strong_count(answered) > 1 {
                answered.question.used.store(now, Relaxed);
            }
            !answered.is_gone()
        };
        self.addresses.borrow_mut().retain(|_, answered| keep(answered));
        self.hosts.borrow_mut().retain(|_, hosts| {
            hosts.retain(|_, answered| keep(answered));
            !hosts.is_empty()
        });
    }
}

impl Answered {
    fn is_gone(&self) -> bool {
        self.question.gone.load(Relaxed)
    }
}

/// Before a redirected connection is handed to the listener of its destination. Hold what comes back while it is open.
pub(crate) async fn of_connection(
    worker: &Worker,
    listener: &LiveListener,
    destination: SocketAddr,
    local: SocketAddr,
) -> Result<Option<Rc<Answered>>, Unanswered> {
    let config = &listener.config;
    let Some(asks) = worker.asks.as_ref().filter(|_| config.direction == TrafficDirection::Outbound) else {
        return Ok(None);
    };
    if !config.use_original_dst || destination == local {
        return Ok(None);
    }
    asks.address(worker, destination).await.map(Some)
}

/// Before a request is routed. Hold what comes back while the request lasts.
pub(crate) async fn of_request(exchange: &Exchange, authority: &str) -> Result<Option<Rc<Answered>>, Box<LocalReply>> {
    let worker = &exchange.conn.worker;
    let Some(asks) = worker.asks.as_ref().filter(|_| exchange.conn.downstream.direction == TrafficDirection::Outbound)
    else {
        return Ok(None);
    };
    // Routes of a single service have other names, and come whole.
    let route = match &exchange.http.hcm.routes {
        RouteSource::Rds(name) if name.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => return Ok(None),
    };
    let host = weft_route::normalize::without_port(authority);
    if host.is_empty() {
        return Ok(None);
    }
    let host = &*askable(host);
    let is_named = || worker.snapshot().config.routes.get(route).is_some_and(|table| table.names(authority));
    let asked = asks.host(worker, route, host, is_named).await;
    asked.map(Some).map_err(|why| Box::new(LocalReply::new(why.reason()).with_details(why.details())))
}

/// What to ask for so that everything comes that may match `host`. No service has a host longer than [`MAX_HOST`], yet a
/// wildcard matches it: then it is a host below the end of it that is as long as an end may be.
fn askable(host: &str) -> Cow<'_, str> {
    let length = |host: &str| host.strip_suffix('.').unwrap_or(host).len();
    if length(host) <= MAX_HOST {
        return Cow::Borrowed(host);
    }
    let ends = host.match_indices('.').filter_map(|(at, _)| host.get(at..));
    let end = ends.into_iter().find(|end| length(end) < MAX_HOST);
    Cow::Owned(format!("{ANY_LABEL}{}", end.unwrap_or_default()))
}

/// What is inside is whole at any moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_bounded() {
        let demands = Demands::new(Limits { most: 2, ..Limits::default() });
        let mut changes = demands.changes();
        changes.borrow_and_update();
        demands.ask("http/80/a").unwrap();
        demands.ask("http/80/a").unwrap();
        demands.ask("tcp/10.0.0.1:80").unwrap();
        assert!(changes.has_changed().unwrap());
        assert_eq!(demands.names().len(), 2, "asked once, however often");
        assert_eq!(demands.ask("http/80/b").unwrap_err(), Unanswered::Full, "what is in use does not give way");
        let late = Demands::since(demands.0.limits, Instant::now().checked_sub(FRESH * 2).unwrap());
        std::mem::swap(&mut *late.questions(), &mut *demands.questions());
        late.questions().all().for_each(|question| question.used.store(0, Relaxed));
        late.questions().get("http/80/a").unwrap().used.store(u64::MAX / 2, Relaxed);
        late.ask("http/80/b").unwrap();
        assert_eq!(late.names().into_iter().collect::<Vec<_>>(), ["http/80/a", "http/80/b"], "the oldest gave way");
    }

    #[test]
    fn names_have_bounds_of_their_own_and_give_way() {
        let demands = Demands::new(Limits { most: 4, names: 2, ..Limits::default() });
        let names = |demands: &Demands| demands.names().into_iter().collect::<Vec<_>>();
        let first = demands.ask("dns/a").unwrap();
        demands.ask("dns/b").unwrap();
        assert_eq!(demands.ask("dns/c").unwrap_err(), Unanswered::Full, "names are few");
        demands.ask("tcp/10.0.0.1:80").unwrap();
        demands.ask("tcp/10.0.0.2:80").unwrap();
        first.used.store(0, Relaxed);
        demands.ask("tcp/10.0.0.3:80").unwrap();
        assert_eq!(names(&demands), ["dns/b", "tcp/10.0.0.1:80", "tcp/10.0.0.2:80", "tcp/10.0.0.3:80"]);
        assert!(first.gone.load(Relaxed));
        demands.ask("tcp/10.0.0.4:80").unwrap();
        assert!(names(&demands).iter().all(|name| name.starts_with("tcp/")), "a name in use gives way, too");
        demands.questions().all().for_each(|question| question.used.store(0, Relaxed));
        assert_eq!(demands.ask("dns/d").unwrap_err(), Unanswered::Full, "a connection's never gives way to a name");
    }

    /// No time passes where nothing is waited for.
    #[tokio::test(start_paused = true)]
    async fn names_wait_for_few_places_and_not_for_a_control_plane_that_is_away() {
        let demands = Demands::new(Limits { waiting: 1, waiting_names: 1, ..Limits::default() });
        let start = tokio::time::Instant::now();
        assert!(!demands.name("a").await && demands.names().is_empty(), "nobody to ask");
        demands.reachable(true);
        assert!(!demands.name(&"a".repeat(MAX_HOST + 1)).await && demands.names().is_empty(), "no name");
        let asking = demands.clone();
        let waits = tokio::spawn(async move { asking.name("a").await });
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(demands.0.waiting_names.load(Relaxed), 1, "it waits");
        assert!(!demands.name("b").await, "another waits");
        assert!(demands.place().is_ok(), "connections have places of their own");
        demands.reachable(false);
        assert!(!waits.await.unwrap(), "nobody is left to answer");
        assert!(!demands.name("a").await, "asked for already, and nobody to answer");
        assert_eq!(start.elapsed(), Duration::ZERO);
        demands.answered("dns/a", 1, vec![]);
        assert!(demands.name("a").await, "what is known is known");
    }

    #[test]
    fn a_host_too_long_to_be_asked_for_is_one_below_its_end() {
        let labels = |count: usize| vec!["abcdefghi"; count].join(".");
        for (host, want) in [
            ("reviews".to_string(), "reviews".to_string()),
            ("a".repeat(253), "a".repeat(253)),
            (format!("{}.", "a".repeat(253)), format!("{}.", "a".repeat(253))),
            ("a".repeat(254), "_".into()),
            (format!("{}.example.com", "a".repeat(300)), "_.example.com".into()),
            (format!("{}.example.com.", "a".repeat(300)), "_.example.com.".into()),
            (labels(26), format!("_.{}", labels(25))),
            (format!("a.{}", "b".repeat(251)), format!("a.{}", "b".repeat(251))),
            (format!("ab.{}", "b".repeat(251)), format!("_.{}", "b".repeat(251))),
            (format!("abc.{}", "b".repeat(252)), "_".into()),
        ] {
            assert_eq!(askable(&host), want, "{host}");
        }
    }

    #[test]
    fn answers_change_and_what_nobody_uses_goes() {
        let demands = Demands::new(Limits { idle: Duration::ZERO, ..Limits::default() });
        let question = demands.ask("http/80/a").unwrap();
        assert!(!demands.list()[0].answered);
        assert_eq!(demands.pending(), ["http/80/a"]);
        demands.answered("http/80/a", 7, vec![]);
        demands.answered("http/80/a", 9, vec!["80/a:80".into()]);
        demands.answered("http/80/unasked", 9, vec![]);
        assert_eq!(*question.answered.borrow(), Some(7), "those who wait need no more than the first");
        assert_eq!(demands.list()[0].found, ["80/a:80"]);
        question.used.store(u64::MAX, Relaxed);
        assert_eq!(demands.evict(), 0, "in use");
        question.used.store(0, Relaxed);
        assert_eq!(demands.evict(), 1);
        assert!(question.gone.load(Relaxed) && demands.names().is_empty());
        demands.ask("http/80/a").unwrap();
        assert_eq!(demands.pending(), ["http/80/a"], "what was given up has to be answered anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_waits_for_its_answer_and_not_for_ever() {
        let demands = Demands::new(Limits::default());
        demands.reachable(true);
        assert!(!demands.name("reviews").await, "nobody answers");
        demands.answered("dns/reviews", 1, vec![]);
        assert!(demands.name("reviews").await);
        let asking = demands.clone();
        let waits = tokio::spawn(async move { asking.name("ratings").await });
        while demands.names().len() < 2 {
            tokio::task::yield_now().await;
        }
        demands.answered("dns/ratings", 2, vec!["ratings.default".into()]);
        assert!(waits.await.unwrap());
    }

    #[test]
    fn only_so_many_wait() {
        let demands = Demands::new(Limits { waiting: 1, ..Limits::default() });
        let first = demands.place().unwrap();
        assert!(demands.place().is_err());
        drop(first);
        assert!(demands.place().is_ok(), "places are given back, those that there were not too");
    }
}
