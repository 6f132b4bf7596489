//! Random configurations, random requests: our data plane against Envoy on the same generated resources.
//!
//! `WEFT_TWIN_REQUESTS` sets how many requests are sent (10 000), `WEFT_TWIN_SEED` where the numbers begin (1). A difference
//! is printed with the seed of its configuration.

#![allow(clippy::unwrap_used)]

use fastrand::Rng;
use std::net::SocketAddr;
use weft_envoy_tests::{Backend, Twin, bootstrap, random, twin};

/// Requests for one configuration.
const EACH: usize = 1000;
/// Connections to each twin at once.
const AT_ONCE: usize = 4;
/// Differences shown of one configuration.
const SHOWN: usize = 5;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

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
        let (resources, _) = random::configuration(seed, &addrs);
        let file = bootstrap::of_gateway(&resources, random::GATEWAY_PORT);
        let Some(pair) = Twin::start(&file).await else { return };
        let (count, found) = compare(&pair, seed).await;
        sent += count;
        for difference in found.iter().take(SHOWN) {
            wrong.push(format!("seed {seed}, one of {}: {difference}", found.len()));
        }
    }
    println!("{sent} requests, {} differences shown", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn compare(pair: &Twin, seed: u64) -> (usize, Vec<String>) {
    let mut tasks = Vec::new();
    for task in 0..AT_ONCE {
        let (mut envoy, mut weft) = pair.sides();
        tasks.push(tokio::spawn(async move {
            let mut rng = Rng::with_seed(seed * 1000 + task as u64);
            let mut found = Vec::new();
            for n in 0..EACH / AT_ONCE {
                let mut ask = random::ask(&mut rng);
                // A path of its own: what fails once fails once for each twin.
                if ask.headers.iter().any(|(name, _)| name == "x-fail") {
                    let more = if ask.path.contains('?') { '&' } else { '?' };
                    ask.path.push_str(&format!("{more}n={task}-{n}"));
                }
                let (theirs, ours) = tokio::join!(envoy.ask(&ask), weft.ask(&ask));
                found.extend(twin::difference(&ask, &theirs, &ours));
            }
            found
        }));
    }
    let mut found = Vec::new();
    for task in tasks {
        found.extend(task.await.unwrap());
    }
    (EACH, found)
}
