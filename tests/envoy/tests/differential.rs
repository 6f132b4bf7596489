//! Random configurations, random requests: our data plane against Envoy on the same generated resources.
//!
//! `WEFT_TWIN_REQUESTS` sets how many requests are sent (10 000), `WEFT_TWIN_SEED` where the numbers begin (1). A difference
//! is printed with the seed of its configuration. What the endpoints saw is compared too: tries, and copies that are mirrored.

#![allow(clippy::unwrap_used)]

use fastrand::Rng;
use http::Version;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use weft_envoy_tests::{Ask, Backend, Twin, bootstrap, random, routes, sidecar, twin, wide};
use weft_xds_gen::ProxyResources;

/// Requests for one configuration.
const EACH: usize = 1000;
/// Connections to each twin at once.
const AT_ONCE: usize = 4;
/// The sides of a pair, as endpoints know them.
const SIDES: [&str; 2] = ["envoy", "weft"];
/// Differences shown of one configuration.
const SHOWN: usize = 8;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// How long copies of requests may be under way.
const COPIES: Duration = Duration::from_secs(30);

/// A kind of configurations, with the requests for it.
#[derive(Clone, Copy)]
struct Kind {
    port: u16,
    configuration: fn(u64, &[SocketAddr]) -> (ProxyResources, Vec<Value>),
    ask: fn(&mut Rng) -> Ask,
}

/// By turns.
const KINDS: [Kind; 4] = [
    Kind { port: random::GATEWAY_PORT, configuration: random::configuration, ask: random::ask },
    Kind { port: random::GATEWAY_PORT, configuration: wide::configuration, ask: wide::ask },
    Kind { port: sidecar::PORT, configuration: sidecar::configuration, ask: sidecar::ask },
    Kind { port: random::GATEWAY_PORT, configuration: routes::configuration, ask: routes::ask },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_answers_as_envoy() {
    let (requests, first) = (number("WEFT_TWIN_REQUESTS", 10_000) as usize, number("WEFT_TWIN_SEED", 1));
    let mut backends = Vec::new();
    for name in ["s0-v1", "s0-v2", "s1-v1", "s1-v2", "hashed-1", "hashed-2", "hashed-3"] {
        backends.push(Backend::start(name).await);
    }
    let addrs: Vec<SocketAddr> = backends.iter().map(|b| b.addr).collect();
    let (mut wrong, mut sent) = (Vec::new(), 0);
    for seed in first..first + requests.div_ceil(EACH) as u64 {
        let kind = KINDS[seed as usize % KINDS.len()];
        let (resources, _) = (kind.configuration)(seed, &addrs);
        let file = bootstrap::of_proxy(&resources, kind.port).unwrap();
        let Some(pair) = Twin::start(&file).await else { return };
        let (again, mut found) = compare(&pair, kind, seed).await;
        sent += EACH;
        // A request that had to be sent again was seen twice by one side alone.
        found.extend(if again { Vec::new() } else { seen(&backends).await });
        for backend in &backends {
            SIDES.iter().for_each(|side| drop(backend.take_seen(side)));
        }
        for difference in found.iter().step_by(found.len().div_ceil(SHOWN).max(1)) {
            wrong.push(format!("seed {seed}, one of {}: {difference}", found.len()));
        }
    }
    println!("{sent} requests, {} differences shown", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Differences of the answers, and whether a request was sent twice.
async fn compare(pair: &Twin, kind: Kind, seed: u64) -> (bool, Vec<String>) {
    let mut tasks = Vec::new();
    for task in 0..AT_ONCE {
        // Clients of both versions.
        let version = if (seed / KINDS.len() as u64).is_multiple_of(2) { Version::HTTP_11 } else { Version::HTTP_2 };
        let (mut envoy, mut weft) = pair.sides(version);
        tasks.push(tokio::spawn(async move {
            let mut rng = Rng::with_seed(seed * 1000 + task as u64);
            let mut found = Vec::new();
            for n in 0..EACH / AT_ONCE {
                let mut ask = (kind.ask)(&mut rng);
                if version == Version::HTTP_2 {
                    // Envoy drops an empty cookie.
                    ask.headers.retain(|(name, value)| name != "cookie" || !value.is_empty());
                }
                // A path of its own: what fails once fails once for each twin.
                if ask.headers.iter().any(|(name, _)| name == "x-fail") {
                    let more = if ask.path.contains('?') { '&' } else { '?' };
                    ask.path.push_str(&format!("{more}n={task}-{n}"));
                }
                let (theirs, ours) = tokio::join!(envoy.ask(&ask), weft.ask(&ask));
                found.extend(twin::difference(&ask, &theirs, &ours));
            }
            (envoy.again() || weft.again(), found)
        }));
    }
    let (mut again, mut found) = (false, Vec::new());
    for task in tasks {
        let (sent_again, differences) = task.await.unwrap();
        again |= sent_again;
        found.extend(differences);
    }
    (again, found)
}

/// What the endpoints saw of one side and not of the other, once as much has come from both, or time is over.
async fn seen(backends: &[Backend]) -> Vec<String> {
    let end = Instant::now() + COPIES;
    let count = |side: &str| backends.iter().map(|backend| backend.count_seen(side)).sum::<usize>();
    let mut before = 0;
    loop {
        let counts = SIDES.map(count);
        // Equal, and nothing more came meanwhile.
        if (counts[0] == counts[1] && counts[0] == before) || Instant::now() > end {
            break;
        }
        before = counts[0];
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut found = Vec::new();
    for backend in backends {
        let [theirs, ours] = SIDES.map(|side| {
            let mut all: BTreeMap<String, i64> = BTreeMap::new();
            for text in backend.take_seen(side) {
                // To a copy each twin adds its own address, beside that of the client, of which Envoy thinks otherwise.
                let is_copy = text.contains("-shadow");
                let own = |line: &str| is_copy && line.starts_with("x-forwarded-for: ");
                let text: String = text.lines().filter(|line| !own(line)).map(|line| format!("{line}\n")).collect();
                *all.entry(twin::plain(&text)).or_default() += 1;
            }
            all
        });
        let texts: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
        for text in texts {
            let (a, b) = (theirs.get(text).unwrap_or(&0), ours.get(text).unwrap_or(&0));
            if a != b {
                found.push(format!("seen {a} times of envoy, {b} times of weft:\n{text}"));
            }
        }
    }
    found
}
