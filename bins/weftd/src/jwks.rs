//! Keys of token issuers: fetched from where request authentication says, kept, and fetched again in time. Every proxy checks
//! tokens by the keys that are kept here.
//!
//! Addresses come from users' objects, and this process stands where they may not: it does not connect to itself, to the
//! machine it runs on, or to services that give out credentials of machines, whatever a name resolves to or a redirect says
//! (GHSA-fgw5-hp8f-xfhc). The address that was checked is the one that is connected to. Who stands on the public network leads it
//! to nowhere else: neither by a redirect nor by an OpenID configuration. And no namespace's sources crowd out another's.

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use weft_model::{FetchedKeys, KeyRequest, KeySource};
use weft_tls::{ClientContext, ClientParams, ServerVerification, TrustAnchors};

/// Longest key set or OpenID configuration, in bytes.
const MAX_BYTES: usize = 512 * 1024;
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 3;
/// Fetches under way at once.
const AT_ONCE: usize = 8;
/// Sources that are fetched from; more are not fetched. Namespaces take turns, each beginning with its oldest policy's.
const MAX_SOURCES: usize = 1000;
/// Most of them of one namespace.
const MAX_OF_NAMESPACE: usize = 250;
/// Fetches under way at once for one namespace.
const AT_ONCE_OF_NAMESPACE: usize = AT_ONCE / 2;
/// First and last pause after a fetch that failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Keys that could not be fetched again are dropped at this age: the issuer may have withdrawn them.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Longest time for one fetch, whatever a rule says.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);
/// Roots besides the system's, where the user mounts some.
const EXTRA_ROOTS: &str = "/cacerts/extra.pem";

/// Sources, and what is asked of each.
type Wanted = BTreeMap<KeySource, KeyRequest>;

/// What is wanted of the fetcher, and what it has.
#[derive(Debug)]
pub(crate) struct Keys {
    wanted: watch::Sender<Wanted>,
    fetched: watch::Receiver<FetchedKeys>,
}

/// How keys are fetched.
#[derive(Debug, Clone)]
pub(crate) struct Fetching {
    /// Time after which keys are fetched again.
    pub refresh: Duration,
    /// Addresses that are not connected to, besides those that never are.
    pub blocked: Vec<IpNet>,
    /// Addresses that are connected to although they would be blocked.
    pub allowed: Vec<IpNet>,
}

impl Keys {
    /// Starts a fetcher; the task ends when this is dropped.
    pub fn start(fetching: Fetching) -> (Self, impl Future<Output = ()> + Send) {
        let (wanted, asked) = watch::channel(Wanted::new());
        let (tell, fetched) = watch::channel(FetchedKeys::default());
        (Self { wanted, fetched }, run(Arc::new(fetching), asked, tell))
    }

    /// Says what is wanted from now on.
    pub fn want(&self, sources: Wanted) {
        self.wanted.send_if_modified(|known| {
            let differs = *known != sources;
            if differs {
                *known = sources;
            }
            differs
        });
    }

    /// What there is by now.
    pub fn fetched(&mut self) -> FetchedKeys {
        self.fetched.borrow_and_update().clone()
    }

    /// Returns when there is something new.
    pub async fn changed(&mut self) {
        if self.fetched.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when every source was tried, at the latest after `longest`.
    pub async fn tried_all(&mut self, longest: Duration) {
        let wanted: Vec<KeySource> = self.wanted.borrow().keys().cloned().collect();
        let all = |fetched: &FetchedKeys| wanted.iter().all(|source| fetched.contains_key(source));
        let _ = timeout(longest, self.fetched.wait_for(all)).await;
    }
}

/// What is known of a source.
struct Entry {
    next: Instant,
    failures: u32,
    fetched: Option<(Instant, Arc<str>)>,
    /// While it is fetched: the namespace on whose account.
    under_way: Option<String>,
}

async fn run(fetching: Arc<Fetching>, mut wanted: watch::Receiver<Wanted>, tell: watch::Sender<FetchedKeys>) {
    let mut entries: HashMap<KeySource, Entry> = HashMap::new();
    let mut fetches: JoinSet<(KeySource, anyhow::Result<String>)> = JoinSet::new();
    loop {
        #[cfg(test)]
        tests::TURNS.with(|turns| turns.set(turns.get() + 1));
        let sources = wanted.borrow_and_update().clone();
        let chosen = choose(&sources);
        entries.retain(|source, _| chosen.contains(source));
        for source in &chosen {
            let new = || Entry { next: Instant::now(), failures: 0, fetched: None, under_way: None };
            entries.entry((*source).clone()).or_insert_with(new);
        }
        tell.send_if_modified(|told| settle(told, &sources, &entries));
        start_due(&fetching, &sources, &mut entries, &mut fetches);
        let next = soonest(&sources, &entries).filter(|_| fetches.len() < AT_ONCE);
        let due = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = due => {}
            Some(done) = fetches.join_next(), if !fetches.is_empty() => {
                let Ok((source, outcome)) = done else { continue };
                if let Some(entry) = entries.get_mut(&source) {
                    let known = entry.finish(&source, outcome, fetching.refresh);
                    tell.send_if_modified(|told| note(told, source, known));
                }
            }
        }
    }
}

/// Which sources are fetched from: the first of each namespace, then the second of each, as far as the bounds go.
fn choose(sources: &Wanted) -> BTreeSet<&KeySource> {
    let mut turns: Vec<_> = sources.iter().map(|(source, asked)| (asked.place(), source)).collect();
    turns.retain(|(place, _)| *place < MAX_OF_NAMESPACE);
    turns.sort_unstable();
    turns.into_iter().take(MAX_SOURCES).map(|(_, source)| source).collect()
}

/// Fetches under way by the namespace on whose account they are.
fn busy(entries: &HashMap<KeySource, Entry>) -> HashMap<String, usize> {
    let mut busy = HashMap::new();
    for namespace in entries.values().filter_map(|entry| entry.under_way.as_ref()) {
        *busy.entry(namespace.clone()).or_default() += 1;
    }
    busy
}

/// On whose account a source can be fetched now: of the namespaces that name it the least busy one, if that has a free place.
fn payer(asked: Option<&KeyRequest>, busy: &HashMap<String, usize>) -> Option<String> {
    let count = |namespace: &&String| busy.get(*namespace).copied().unwrap_or_default();
    let least = asked?.namespaces.keys().min_by_key(count)?;
    (count(&least) < AT_ONCE_OF_NAMESPACE).then(|| least.clone())
}

/// When the next fetch can begin; `None` while those under way must end first.
fn soonest(sources: &Wanted, entries: &HashMap<KeySource, Entry>) -> Option<Instant> {
    let busy = busy(entries);
    let mut waiting: Vec<_> = entries.iter().filter(|(_, entry)| entry.under_way.is_none()).collect();
    waiting.sort_unstable_by_key(|(_, entry)| entry.next);
    let first = waiting.into_iter().find(|(source, _)| payer(sources.get(*source), &busy).is_some());
    first.map(|(_, entry)| entry.next)
}

fn start_due(
    fetching: &Arc<Fetching>,
    sources: &Wanted,
    entries: &mut HashMap<KeySource, Entry>,
    fetches: &mut JoinSet<(KeySource, anyhow::Result<String>)>,
) {
    let now = Instant::now();
    let mut busy = busy(entries);
    let mut due: Vec<_> = entries.iter_mut().filter(|(_, e)| e.under_way.is_none() && e.next <= now).collect();
    // Who has waited longest comes first; of several that wait as long, one of a namespace after the other.
    due.sort_by_key(|(source, entry)| (entry.next, sources.get(*source).map(KeyRequest::place)));
    for (source, entry) in due {
        if fetches.len() >= AT_ONCE {
            return;
        }
        let Some(namespace) = payer(sources.get(source), &busy) else { continue };
        *busy.entry(namespace.clone()).or_default() += 1;
        entry.under_way = Some(namespace);
        let (fetching, source) = (fetching.clone(), source.clone());
        let longest =
            sources.get(&source).map_or(weft_model::jwks::FETCH_TIMEOUT, |asked| asked.longest).min(MAX_TIMEOUT);
        fetches.spawn(async move {
            let outcome = match timeout(longest, fetch(&fetching, &source)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow::anyhow!("no answer within {longest:?}")),
            };
            (source, outcome)
        });
    }
}

impl Entry {
    /// Notes an outcome; returns what proxies are to check by.
    fn finish(
        &mut self,
        source: &KeySource,
        outcome: anyhow::Result<String>,
        refresh: Duration,
    ) -> Result<Arc<str>, Arc<str>> {
        let now = Instant::now();
        self.under_way = None;
        match outcome {
            Ok(text) => {
                self.failures = 0;
                self.next = now + refresh;
                let text: Arc<str> = text.into();
                self.fetched = Some((now, text.clone()));
                Ok(text)
            }
            Err(error) => {
                let pause = RETRY.0 * 2u32.saturating_pow(self.failures.min(10));
                self.next = now + pause.min(RETRY.1);
                self.failures += 1;
                tracing::warn!(?source, failures = self.failures, "keys could not be fetched: {error:#}");
                self.fetched = self.fetched.take().filter(|(at, _)| at.elapsed() < MAX_AGE);
                match &self.fetched {
                    Some((_, text)) => Ok(text.clone()),
                    None => Err(format!("{error:#}").into()),
                }
            }
        }
    }
}

fn note(told: &mut FetchedKeys, source: KeySource, known: Result<Arc<str>, Arc<str>>) -> bool {
    if told.get(&source) == Some(&known) {
        return false;
    }
    Arc::make_mut(told).insert(source, known);
    true
}

/// Forgets what nobody wants any more, and says of what is not fetched why.
fn settle(told: &mut FetchedKeys, sources: &Wanted, entries: &HashMap<KeySource, Entry>) -> bool {
    let left_out: Vec<&KeySource> = sources.keys().filter(|source| !entries.contains_key(*source)).collect();
    let gone = told.keys().any(|source| !sources.contains_key(source));
    let new = left_out.iter().any(|source| told.get(*source).is_none_or(Result::is_ok));
    if !gone && !new {
        return false;
    }
    let why = format!(
        "keys are not fetched: at most {MAX_OF_NAMESPACE} places of one namespace and {MAX_SOURCES} of all are asked; put \
         the keys into the policy (jwks)"
    );
    let why: Arc<str> = why.into();
    let told = Arc::make_mut(told);
    told.retain(|source, _| sources.contains_key(source));
    for source in left_out {
        told.insert(source.clone(), Err(why.clone()));
    }
    true
}

async fn fetch(fetching: &Fetching, source: &KeySource) -> anyhow::Result<String> {
    let (uri, from) = match source {
        KeySource::Uri(uri) => (uri.clone(), NamedBy::Policy),
        KeySource::Discovery(issuer) => {
            let place = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
            let (text, from) = get(fetching, &place, NamedBy::Policy).await.context("OpenID configuration")?;
            let found: serde_json::Value = serde_json::from_str(&text).context("OpenID configuration is not JSON")?;
            ensure!(found["issuer"].as_str() == Some(issuer), "OpenID configuration at {place} is for another issuer");
            (found["jwks_uri"].as_str().context("OpenID configuration has no jwks_uri")?.to_string(), from)
        }
    };
    let (text, _) = get(fetching, &uri, from).await?;
    weft_tls::jwks::for_envoy(&text).with_context(|| format!("{uri} has no keys that check tokens"))
}

/// Who named an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NamedBy {
    /// The policy, or a server on a network that is not public.
    Policy,
    /// A server on the public network.
    Public,
}

/// The text at an address, and who stands there.
async fn get(fetching: &Fetching, address: &str, from: NamedBy) -> anyhow::Result<(String, NamedBy)> {
    let mut uri: Uri = address.parse().with_context(|| format!("{address:?} is not a URL"))?;
    let mut from = from;
    for _ in 0..=MAX_REDIRECTS {
        let (response, stands) = request(fetching, &uri, from).await.with_context(|| uri.to_string())?;
        if is_public(stands) {
            from = NamedBy::Public;
        }
        let status = response.status();
        if status == StatusCode::OK {
            let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("{uri}: {error}; at most {MAX_BYTES} bytes are read"))?;
            let text = String::from_utf8(body.to_bytes().to_vec()).with_context(|| format!("{uri} is not UTF-8"))?;
            return Ok((text, from));
        }
        ensure!(status.is_redirection(), "{uri} answers {status}");
        let next = response.headers().get(LOCATION).context("a redirect without location")?.to_str()?;
        let next: Uri = next.parse().with_context(|| format!("redirect to {next:?}"))?;
        let next = match next.authority() {
            Some(_) => next,
            None => Uri::builder()
                .scheme(uri.scheme_str().unwrap_or("https"))
                .authority(uri.authority().map_or("", |a| a.as_str()))
                .path_and_query(next.path_and_query().map_or("/", |p| p.as_str()))
                .build()?,
        };
        let downgrade = uri.scheme_str() == Some("https") && next.scheme_str() != Some("https");
        ensure!(!downgrade, "{uri} redirects to {next}, away from TLS");
        uri = next;
    }
    bail!("{address} redirects more than {MAX_REDIRECTS} times")
}

async fn request(fetching: &Fetching, uri: &Uri, from: NamedBy) -> anyhow::Result<(http::Response<Incoming>, IpAddr)> {
    let host = uri.host().context("the URL has no host")?;
    let (tls, default) = match uri.scheme_str() {
        Some("https") => (true, 443),
        Some("http") => (false, 80),
        _ => bail!("the URL must begin with https:// or http://"),
    };
    let request = Request::get(uri.path_and_query().map_or("/", |p| p.as_str()))
        .header(HOST, uri.authority().map_or(host, |a| a.as_str()))
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, "weftd")
        .body(Empty::new())?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = connect(fetching, bare, uri.port_u16().unwrap_or(default), from).await?;
    let stands = stream.peer_addr()?.ip();
    if !tls {
        return Ok((send(stream, request).await?, stands));
    }
    let verification = ServerVerification::WebPki { anchors: roots()?, san: None };
    let context = ClientContext::build(ClientParams { sni: Some(bare.into()), ..ClientParams::new(verification) })?;
    Ok((send(context.connect_to(stream, bare).await?.stream, request).await?, stands))
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> anyhow::Result<http::Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the response's body, or when that is dropped.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

/// The system's roots, or those that the user mounted for issuers of their own.
fn roots() -> anyhow::Result<TrustAnchors> {
    match std::fs::read(EXTRA_ROOTS) {
        Ok(pem) => Ok(TrustAnchors::from_pem(&pem).context(EXTRA_ROOTS)?),
        Err(_) => Ok(TrustAnchors::system()?),
    }
}

async fn connect(fetching: &Fetching, host: &str, port: u16, from: NamedBy) -> anyhow::Result<TcpStream> {
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((host, port)).await.with_context(|| format!("looking up {host}"))?.take(16).collect();
    let mut last = anyhow::anyhow!("{host} has no address");
    for address in addresses {
        if fetching.is_blocked(address.ip()) {
            last = anyhow::anyhow!("{host} is {}, which keys are not fetched from", address.ip());
            continue;
        }
        if from == NamedBy::Public && !is_public(address.ip()) && !fetching.is_allowed(address.ip()) {
            last = anyhow::anyhow!("{host} is {}, to which no server of the public network leads", address.ip());
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = anyhow::Error::new(error).context(format!("connecting to {address}")),
        }
    }
    Err(last)
}

impl Fetching {
    /// This process does not connect there.
    fn is_blocked(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        !self.is_allowed(address) && (self.blocked.iter().any(|net| net.contains(&address)) || is_own_or_local(address))
    }

    /// The user has said that this process may connect there.
    fn is_allowed(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allowed.iter().any(|net| net.contains(&address))
    }
}

/// An address of the public network: none of this machine or link, and none that an organisation numbers as it likes (RFC 1918,
/// RFC 6598, RFC 4193, and those of tests and documentation).
fn is_public(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let of_organisation = match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private()
                || v4.is_documentation()
                || (a == 100 && b & 0xc0 == 64)
                || (a == 198 && b & 0xfe == 18)
                || a >= 240
        }
        IpAddr::V6(v6) => {
            let s = v6.segments();
            let inner = match s {
                [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => Some((a, b)),
                _ => None,
            };
            let inner = inner.map(|(a, b)| Ipv4Addr::from((u32::from(a) << 16) | u32::from(b)));
            v6.is_unique_local() || s[..2] == [0x2001, 0xdb8] || inner.is_some_and(|v4| !is_public(v4.into()))
        }
    };
    !of_organisation && !is_own_or_local(address)
}

/// This machine, its link, or a service of the machine's owner that gives out credentials.
fn is_own_or_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let shared =
                [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
            v4.is_loopback()
                || v4.is_unspecified()
                || v4.octets()[0] == 0
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || shared.contains(&v4)
        }
        IpAddr::V6(v6) => {
            let metadata = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
            // Addresses of IPv4 inside IPv6 (NAT64, 6to4) are judged by what they hold.
            let s = v6.segments();
            let inner = match s {
                [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => Some((a, b)),
                [0, 0, 0, 0, 0, 0, a, b] if a != 0 => Some((a, b)),
                _ => None,
            };
            let inner = inner.map(|(a, b)| Ipv4Addr::from((u32::from(a) << 16) | u32::from(b)));
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6 == metadata
                || inner.is_some_and(|v4| is_own_or_local(v4.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    thread_local! {
        /// Turns of the fetchers of this thread, which is that of one test.
        pub(super) static TURNS: Cell<usize> = const { Cell::new(0) };
    }

    fn fetching(allowed: &[&str]) -> Fetching {
        Fetching {
            refresh: Duration::from_secs(1200),
            blocked: vec!["10.9.0.0/16".parse().unwrap()],
            allowed: allowed.iter().map(|net| net.parse().unwrap()).collect(),
        }
    }

    /// Answers each connection with the next of these texts, then with the last for ever.
    async fn server(answers: &[&str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers: Vec<String> = answers.iter().map(ToString::to_string).collect();
        tokio::spawn(async move {
            for turn in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answer = answers[turn.min(answers.len() - 1)].replace("SELF", &address.to_string());
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    let _ = stream.read(&mut head).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        address
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    const KEYS: &str = r#"{"keys":[{"crv":"P-256","kty":"EC","x":"04N0xi21hshyvBp7I167sbE_bXqyqkAPfefdklMO7wY","y":"UI8exy-C06a7DUnjIdENkxeFtHM4-l_41LqEw9nVgmw"}]}"#;
    const OTHER_KEYS: &str =
        r#"{"keys":[{"crv":"Ed25519","kty":"OKP","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn asked(namespace: &str, place: usize) -> KeyRequest {
        KeyRequest { longest: Duration::from_secs(20), namespaces: [(namespace.into(), place)].into() }
    }

    #[test]
    fn namespaces_take_turns() {
        let source = |namespace: &str, i: usize| KeySource::Uri(format!("https://{namespace}/{i}"));
        let mut wanted = Wanted::new();
        for (namespace, count) in [("aaa", 2000), ("bbb", 2), ("ccc", 300), ("ddd", 300), ("eee", 300), ("zzz", 1)] {
            wanted.extend((0..count).map(|i| (source(namespace, i), asked(namespace, i))));
        }
        let chosen = choose(&wanted);
        let of =
            |namespace: &str| chosen.iter().filter(|s| matches!(s, KeySource::Uri(u) if u.contains(namespace))).count();
        assert_eq!((of("bbb"), of("zzz"), chosen.len()), (2, 1, MAX_SOURCES));
        for many in ["aaa", "ccc", "ddd", "eee"] {
            assert!((249..=MAX_OF_NAMESPACE).contains(&of(many)), "{many} {}", of(many));
        }
        // Those that are left out say so.
        let entry = || Entry { next: Instant::now(), failures: 0, fetched: None, under_way: None };
        let entries = chosen.iter().map(|source| ((*source).clone(), entry())).collect();
        let mut told = FetchedKeys::default();
        assert!(settle(&mut told, &wanted, &entries));
        assert!(!settle(&mut told, &wanted, &entries), "once");
        let why = told[&source("aaa", 1999)].as_ref().unwrap_err();
        assert!(why.contains("at most 250"), "{why}");
        assert_eq!(told.len(), wanted.len() - MAX_SOURCES);
    }

    #[tokio::test]
    async fn slow_sources_of_one_namespace_leave_room_for_another() {
        // It takes connections and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = silent.local_addr().unwrap();
        let good = KeySource::Uri(format!("http://{}/k", server(&[&ok(KEYS)]).await));
        let long = |namespace: &str, place| KeyRequest { longest: MAX_TIMEOUT, ..asked(namespace, place) };
        let mut wanted: Wanted =
            (0..50).map(|i| (KeySource::Uri(format!("http://{silent}/{i}")), long("slow", i))).collect();
        wanted.insert(good.clone(), asked("quick", 0));
        let (keys, task) = Keys::start(fetching(&["127.0.0.0/8"]));
        let task = tokio::spawn(task);
        keys.want(wanted);
        let mut fetched = keys.fetched.clone();
        let there = fetched.wait_for(|fetched| fetched.get(&good).is_some_and(Result::is_ok));
        timeout(MAX_TIMEOUT * 8 / 10, there).await.expect("before the slow ones have ended").unwrap();
        // And whoever waits for the slow ones sleeps: it takes a turn when something happens, and not else.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let turns = TURNS.with(Cell::get);
        assert!((2..50).contains(&turns), "{turns} turns");
        task.abort();
    }

    #[test]
    fn a_source_of_two_namespaces_is_crowded_out_by_neither() {
        let source = |name: &str| KeySource::Uri(format!("https://{name}"));
        let mut wanted: Wanted = (0..300).map(|i| (source(&format!("evil/{i}")), asked("evil", i))).collect();
        let mut shared = asked("evil", 300);
        shared.namespaces.insert("shop".into(), 0);
        wanted.insert(source("issuer"), shared);
        assert!(choose(&wanted).contains(&source("issuer")));
        // It is fetched on the account of the namespace that has places left, and of none when no one has.
        let full = |name: &str| (name.to_string(), AT_ONCE_OF_NAMESPACE);
        for (busy, account) in [
            (vec![full("evil")], Some("shop")),
            (vec![full("shop")], Some("evil")),
            (vec![full("evil"), full("shop")], None),
        ] {
            let busy = busy.into_iter().collect();
            assert_eq!(payer(wanted.get(&source("issuer")), &busy).as_deref(), account);
        }
    }

    #[tokio::test]
    async fn class_ssrf_the_public_network_does_not_lead_inside() {
        for (address, public) in [
            ("8.8.8.8", true),
            ("2600::1", true),
            ("10.0.0.1", false),
            ("172.31.0.1", false),
            ("192.168.0.1", false),
            ("100.64.0.1", false),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("fd00::1", false),
            ("::ffff:10.0.0.1", false),
            ("64:ff9b::a00:1", false),
            ("2002:a00:1::", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
        // What a policy names may be inside; what a public server names may not.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = fetching(&["127.0.0.0/8"]);
        assert!(connect(&open, "127.0.0.1", port, NamedBy::Public).await.is_ok(), "the user allows it");
        for inside in ["10.1.2.3", "192.168.1.1", "fd12::1"] {
            let error = connect(&open, inside, port, NamedBy::Public).await.unwrap_err();
            assert!(error.to_string().contains("no server of the public network leads"), "{error:#}");
        }
    }

    #[tokio::test]
    async fn class_ssrf_addresses_of_this_machine_are_not_fetched_from() {
        let f = fetching(&[]);
        for address in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "169.254.169.254",
            "100.100.100.200",
            "224.0.0.1",
            "10.9.1.1",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "ff02::1",
            "0.1.2.3",
            "::127.0.0.1",
        ] {
            assert!(f.is_blocked(address.parse().unwrap()), "{address}");
        }
        for address in ["10.96.0.1", "192.168.1.1", "8.8.8.8", "fd12::1", "2001:db8::1"] {
            assert!(!f.is_blocked(address.parse().unwrap()), "{address}");
        }
        let address = server(&[&ok(KEYS)]).await;
        for name in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
            let uri = format!("http://{name}:{}/", address.port());
            let error = get(&f, &uri, NamedBy::Policy).await.unwrap_err();
            assert!(format!("{error:#}").contains("not fetched from"), "{error:#}");
        }
        let elsewhere = "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest\r\ncontent-length: 0\r\n\r\n";
        let address = server(&[elsewhere]).await;
        let open = fetching(&["127.0.0.0/8"]);
        let error = get(&open, &format!("http://{address}/"), NamedBy::Policy).await.unwrap_err();
        assert!(format!("{error:#}").contains("169.254.169.254, which keys are not fetched from"), "{error:#}");
    }

    #[tokio::test]
    async fn fetches_with_bounds() {
        let f = fetching(&["127.0.0.0/8"]);
        let long = ok(&format!("{{\"keys\":[{}]}}", " ".repeat(10 << 20)));
        let config = ok(r#"{"issuer":"http://SELF","jwks_uri":"http://SELF/keys"}"#)
            .replace("content-length: 54", "connection: close");
        let moved = "HTTP/1.1 301 Moved\r\nlocation: /keys\r\ncontent-length: 0\r\n\r\n";
        let error = "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n";
        for (answers, want) in [
            (&[ok(KEYS).as_str()][..], Ok(KEYS)),
            (&[moved, &ok(KEYS)], Ok(KEYS)),
            (&[moved], Err("redirects more than 3 times")),
            (&[error], Err("answers 500")),
            (&[long.as_str()], Err("at most 524288 bytes are read")),
            (&[ok("{}").as_str()], Err("no list of keys")),
            (&[ok("{\"keys\":[]}").as_str()], Err("no key of the set can check a token")),
            (&[ok("{\"keys\":[{\"kty\":\"RSA\"}]}").as_str()], Err("no key of the set can check a token")),
            (&[ok("nonsense").as_str()], Err("not JSON")),
            (&[""], Err("")),
        ] {
            let source = KeySource::Uri(format!("http://{}/k", server(answers).await));
            match (fetch(&f, &source).await, want) {
                (Ok(text), want) => assert_eq!(Ok(text.as_str()), want),
                (Err(error), Err(part)) => assert!(format!("{error:#}").contains(part), "{error:#} / {part}"),
                (Err(error), Ok(_)) => panic!("{error:#}"),
            }
        }
        let address = server(&[&config, &ok(KEYS)]).await;
        let text = fetch(&f, &KeySource::Discovery(format!("http://{address}"))).await.unwrap();
        assert_eq!(text, KEYS);
        let address = server(&[&config]).await;
        let error = fetch(&f, &KeySource::Discovery(format!("http://{address}/other"))).await.unwrap_err();
        assert!(error.to_string().contains("another issuer"), "{error:#}");
        for none in ["ftp://x/", "/x"] {
            assert!(get(&f, none, NamedBy::Policy).await.is_err(), "{none}");
        }
    }

    #[tokio::test]
    async fn keys_are_kept_when_the_issuer_fails_and_come_back_when_it_recovers() {
        let error = "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n";
        let other = OTHER_KEYS;
        let address = server(&[error, &ok(KEYS), error, &ok(other)]).await;
        let refresh = Duration::from_millis(50);
        let (mut keys, task) = Keys::start(Fetching { refresh, ..fetching(&["127.0.0.0/8"]) });
        let task = tokio::spawn(task);
        let source = KeySource::Uri(format!("http://{address}/k"));
        keys.want([(source.clone(), asked("a", 0))].into());
        keys.tried_all(Duration::from_secs(30)).await;
        let mut seen = Vec::new();
        for _ in 0..3 {
            let now = keys.fetched().get(&source).cloned();
            seen.push(now.map(|n| n.map(|t| t.to_string()).map_err(|e| e.contains("500"))));
            if seen.len() < 3 {
                timeout(Duration::from_secs(30), keys.changed()).await.expect("something new");
            }
        }
        // The failure between the two key sets is not seen: the first stays in force.
        assert_eq!(seen, [Some(Err(true)), Some(Ok(KEYS.into())), Some(Ok(other.into()))]);
        keys.want(BTreeMap::new());
        timeout(Duration::from_secs(30), keys.changed()).await.expect("forgotten");
        assert!(keys.fetched().is_empty());
        drop(keys);
        timeout(Duration::from_secs(30), task).await.expect("it ends").unwrap();
    }
}
