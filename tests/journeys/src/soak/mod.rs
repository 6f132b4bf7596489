//! The soak: mixed load through a lab for a long time, while routes, endpoints and certificates change. No request may fail,
//! and no process may grow.
//!
//! [`server`] is the application, [`client`] the load, [`watch`] what is measured of the processes. Here is the mesh, the churn
//! and the verdict.

pub mod client;
pub mod server;
pub mod watch;

use crate::{Lab, eventually};
use anyhow::{Context as _, Result, ensure};
use client::{Load, Outcome};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use watch::Watch;

/// Lifetime of workload certificates, seconds: each is renewed at half of it.
const LIFE: u64 = 30;
/// Between changes of a route.
const FLIP: Duration = Duration::from_secs(3);
/// Flips between changes of the number of endpoints.
const SCALE_EVERY: u32 = 5;
/// Between words on how it goes.
const TELL: Duration = Duration::from_secs(60);
/// Shorter runs say nothing of memory: pools still fill.
const JUDGED: Duration = Duration::from_secs(300);
/// Until everything new serves.
const SOON: Duration = Duration::from_secs(120);
/// After the load, until connections that nobody uses are closed.
const CALM: Duration = Duration::from_secs(10);

/// How long, and how hard.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Time under load.
    pub time: Duration,
    /// Part of it at the beginning that is not judged: pools fill, workloads come and go for the first time.
    pub warm_up: Duration,
    /// Requests a second of the usual kind; the other kinds are in proportion.
    pub rate: u32,
}

const MESH: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: soak}
spec: {selector: {app: soak}, ports: [{name: http, port: 8000, targetPort: 8080}, {name: grpc, port: 8001, targetPort: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {name: soak-bytes}
spec: {selector: {app: soak-bytes}, ports: [{name: tcp, port: 9000}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: soak}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 31400, name: tcp, protocol: TCP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: soak-bytes}
spec: {hosts: ["*"], gateways: [soak], tcp: [{match: [{port: 31400}], route: [{destination: {host: soak-bytes, port: {number: 9000}}}]}]}
"#;

/// A Deployment of the application.
fn deployment(name: &str, app: &str) -> String {
    let container = json!({"name": "app", "image": "soak/app", "ports": [{"containerPort": 8080}, {"containerPort": 8081},
        {"containerPort": 9000}]});
    let labels = json!({"app": app, "version": name});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": 1,
        "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
        "spec": {"containers": [container]}}}})
    .to_string()
}

/// The routes of the host `soak.example`, the `turn`th time.
fn routes(turn: u32) -> String {
    let to = |port: u16| json!([{"destination": {"host": "soak", "port": {"number": port}}}]);
    let turned = json!({"response": {"set": {"x-turn": turn.to_string()}}});
    let mut http = vec![json!({"match": [{"uri": {"prefix": "/soak.Echo/"}}], "route": to(8001), "headers": turned})];
    // Routes come and go, too.
    for other in 0..turn % 4 {
        let path = format!("/nobody-{turn}-{other}");
        http.push(json!({"match": [{"uri": {"exact": path}}], "directResponse": {"status": 418}}));
    }
    http.push(json!({"route": to(8000), "headers": turned}));
    json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "soak"},
        "spec": {"hosts": ["soak.example"], "gateways": ["bookinfo-gateway"], "http": http}})
    .to_string()
}

/// Runs it, and says what came of it.
///
/// # Errors
/// When a request failed, or a process grew.
pub fn run(plan: Plan, program: &Path) -> Result<()> {
    let config = tempfile::Builder::new().prefix("weft-soak-").suffix(".yaml").tempfile()?;
    std::fs::write(
        config.path(),
        json!({"images": {"soak/app": [program, "serve"]}, "mounts": [program.parent()]}).to_string(),
    )?;
    let lab = Lab::start(&["--config", config.path().to_str().context("path")?])?;
    prepare(&lab)?;
    let watch = Watch::start(&lab)?;
    let loads = client::start(&lab, plan.rate);
    let churned = churn(&lab, &loads, plan.time);
    let outcomes: Vec<Outcome> = loads.into_iter().map(Load::stop).collect::<Result<_>>()?;
    std::thread::sleep(CALM);
    let growth = watch.stop(plan.warm_up)?;
    let churned = churned?;
    println!("\n{churned} changes of routes, certificates of {LIFE} s");
    outcomes.iter().for_each(|outcome| println!("{outcome}"));
    growth.iter().for_each(|growth| println!("{growth}"));
    let failed: u64 = outcomes.iter().map(|o| o.failures.values().sum::<u64>()).sum();
    ensure!(failed == 0, "{failed} requests failed");
    ensure!(outcomes.iter().all(|o| o.ok > 0), "a load did nothing");
    let grown: Vec<String> =
        growth.iter().filter(|g| g.is_leak(plan.time >= JUDGED)).map(ToString::to_string).collect();
    ensure!(grown.is_empty(), "processes grow:\n{}", grown.join("\n"));
    println!("no failed request, nothing grows");
    Ok(())
}

/// The application with its routes, certificates of a short life everywhere.
fn prepare(lab: &Lab) -> Result<()> {
    lab.short_lives(LIFE)?;
    let apps = [("soak-v1", "soak"), ("soak-v2", "soak"), ("soak-bytes", "soak-bytes")];
    let apps = apps.map(|(name, app)| deployment(name, app)).join("\n---\n");
    lab.apply(&format!("{MESH}---\n{apps}\n---\n{}", routes(0)))?;
    lab.wait_deployments("default", &["soak-v1", "soak-v2", "soak-bytes"])?;
    eventually(SOON, || client::probe(lab))
}

/// Changes routes and endpoints while the load runs, and says how that goes; how often it changed something.
fn churn(lab: &Lab, loads: &[Load], time: Duration) -> Result<u32> {
    let begun = Instant::now();
    let (mut turn, mut told) = (0, begun);
    while begun.elapsed() < time {
        turn += 1;
        lab.apply(&routes(turn))?;
        if turn % SCALE_EVERY == 0 {
            let replicas = (turn / SCALE_EVERY) % 3;
            let patch = json!({"spec": {"replicas": replicas}}).to_string();
            lab.weft(&["patch", "deployment", "soak-v2", "-p", &patch])?;
        }
        if told.elapsed() >= TELL {
            told = Instant::now();
            println!("{:5.0} s: {}", begun.elapsed().as_secs_f64(), loads.iter().map(Load::line).collect::<String>());
        }
        std::thread::sleep((begun + FLIP * turn).saturating_duration_since(Instant::now()));
    }
    Ok(turn)
}
