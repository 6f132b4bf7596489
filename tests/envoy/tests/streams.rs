//! Random configurations for TCP and TLS, random connections: our data plane against Envoy on the same generated resources. Which
//! endpoint a connection reaches, or none, is the same.
//!
//! `WEFT_TWIN_STREAMS` sets how many configurations are tried (12), `WEFT_TWIN_SEED` where the numbers begin (1).

#![allow(clippy::unwrap_used)]

use fastrand::Rng;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_envoy_tests::streams::{self, Who};
use weft_envoy_tests::{Twin, bootstrap};

/// Connections to each twin for one configuration.
const EACH: usize = 60;
const PATIENCE: Duration = Duration::from_secs(60);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Says its name to whoever sends something, and how much that was.
async fn named(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut got = vec![0; 4096];
                let n = stream.read(&mut got).await.unwrap_or_default();
                let _ = stream.write_all(format!("{name} got {n}\n").as_bytes()).await;
            });
        }
    });
    addr
}

/// What came back before the connection ended; nothing where it was refused.
async fn meet(addr: SocketAddr, first: &[u8]) -> String {
    let talk = async {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let _ = stream.write_all(first).await;
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said).await;
        said
    };
    tokio::time::timeout(PATIENCE, talk).await.unwrap_or_else(|_| "nothing in time".into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_endpoints_as_envoy() {
    let (configurations, first) = (number("WEFT_TWIN_STREAMS", 12), number("WEFT_TWIN_SEED", 1));
    let mut backends = Vec::new();
    for name in ["t0-v1", "t0-v2", "t1-v1", "t1-v2"] {
        backends.push(named(name).await);
    }
    let (mut wrong, mut reached, mut sent) = (Vec::new(), 0, 0);
    for seed in first..first + configurations {
        let who = [Who::Passing, Who::Plain, Who::Sidecar][seed as usize % 3];
        let (resources, documents) = streams::configuration(seed, who, &backends);
        let Some(file) = bootstrap::of_proxy(&resources, who.port()) else { continue };
        let Some(pair) = Twin::start(&file).await else { return };
        let mut rng = Rng::with_seed(seed);
        for _ in 0..EACH {
            let (bytes, told) = streams::first_bytes(who, &mut rng);
            let (theirs, ours) = tokio::join!(meet(pair.envoy, &bytes), meet(pair.weft, &bytes));
            sent += 1;
            reached += usize::from(!theirs.is_empty());
            if theirs != ours && wrong.len() < 8 {
                let documents = serde_json::to_string(&documents).unwrap();
                wrong.push(format!("seed {seed}, {who:?}, {told}: envoy {theirs:?} weft {ours:?}\n{documents}"));
            }
        }
    }
    println!("{sent} connections, {reached} of them to an endpoint, {} differences shown", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(reached * 10 > sent, "{reached} of {sent} connections met an endpoint");
}
