//! A gateway that gets thousands of routes, one after another, while traffic runs through it: no request fails, and each route
//! is live soon after the API server took it.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use weft_journeys::browser::{get, send};
use weft_journeys::load::Load;
use weft_journeys::{Lab, eventually};

/// Routes in the end; `WEFT_ROUTES` says otherwise.
const ROUTES: usize = 3000;
/// Of those, how many are waited for one by one; with `WEFT_ROUTES` all of them. The others are there before.
const ONE_BY_ONE: usize = 250;
/// Requests a second meanwhile.
const RATE: u32 = 100;
/// Until a route is live, 99 of 100: 30 ms on a quiet machine, and a margin. Time that the machine withheld from everybody, as
/// [`Pulse`] sees it, is not counted.
const LIMIT: Duration = Duration::from_millis(250);
/// Between beats of the pulse.
const BEAT: Duration = Duration::from_millis(2);
const SOON: Duration = Duration::from_secs(60);

/// The lab's API server, by its kubeconfig.
struct Api {
    server: String,
    authorization: String,
}

impl Api {
    fn of(lab: &Lab) -> Result<Self> {
        let text = std::fs::read_to_string(lab.home().join("kubeconfig"))?;
        let config: serde_json::Value = serde_json::from_str(&text)?;
        let value = |at: &str| {
            let found = config.pointer(at).and_then(|value| value.as_str());
            found.map(str::to_string).with_context(|| format!("the kubeconfig has no {at}"))
        };
        let token = value("/users/0/user/token")?;
        Ok(Self { server: value("/clusters/0/cluster/server")?, authorization: format!("Bearer {token}") })
    }

    /// A route of a host of its own to a service of the mesh, which says in a header whose it is.
    fn add(&self, index: usize) -> Result<()> {
        let route = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": format!("r{index}"), "namespace": "default"},
            "spec": {"hosts": [host(index)], "gateways": ["bookinfo-gateway"], "http": [{
                "route": [{"destination": {"host": "details", "port": {"number": 9080}}}],
                "headers": {"response": {"set": {"x-route": format!("r{index}")}}},
            }]},
        });
        let url = format!("{}/apis/networking.istio.io/v1/namespaces/default/virtualservices", self.server);
        let headers = [("authorization", self.authorization.as_str()), ("content-type", "application/json")];
        let answer = send("POST", &url, &headers, &route.to_string())?;
        ensure!(answer.status.as_u16() == 201, "r{index}: {} {}", answer.status, answer.body);
        Ok(())
    }
}

fn host(index: usize) -> String {
    format!("r{index}.example.com")
}

/// A thread that sleeps for a moment, again and again: how much later than it should it wakes up is time that it waited for a
/// processor, as every other process did.
struct Pulse {
    late: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Pulse {
    fn start() -> Self {
        let pulse = Self { late: Arc::default(), stop: Arc::default() };
        let (late, stop) = (pulse.late.clone(), pulse.stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                std::thread::sleep(BEAT);
                let micros = begun.elapsed().saturating_sub(2 * BEAT).as_micros();
                late.fetch_add(u64::try_from(micros).unwrap_or_default(), Ordering::Relaxed);
            }
        });
        pulse
    }

    /// Time that was withheld since the start.
    fn withheld(&self) -> Duration {
        Duration::from_micros(self.late.load(Ordering::Relaxed))
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Whether the gateway knows the route. Without it another one answers, and without the header.
fn is_live(lab: &Lab, index: usize) -> Result<bool> {
    let answer = get(&lab.url("/health"), &[("host", &host(index))])?;
    let own = answer.headers.get("x-route").is_some_and(|name| name.as_bytes() == format!("r{index}").as_bytes());
    Ok(own && answer.status.as_u16() == 200)
}

/// Time from the API server's answer until the gateway serves the route.
fn until_live(lab: &Lab, index: usize) -> Result<Duration> {
    let begun = Instant::now();
    while !is_live(lab, index)? {
        ensure!(begun.elapsed() < SOON, "{} is not live after {SOON:?}", host(index));
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(begun.elapsed())
}

#[test]
fn thousands_of_routes_one_by_one() -> Result<()> {
    let asked = std::env::var("WEFT_ROUTES").ok().map(|text| text.parse::<usize>()).transpose()?;
    let (routes, one_by_one) = asked.map_or((ROUTES, ONE_BY_ONE), |routes| (routes, routes));
    let lab = Lab::start(&[])?;
    let api = Api::of(&lab)?;
    let load = Load::start(&lab.url("/productpage"), RATE);
    let before = routes.saturating_sub(one_by_one);
    for index in 0..before {
        api.add(index)?;
    }
    if before > 0 {
        eventually(SOON, || {
            ensure!(is_live(&lab, before - 1)?, "{} is not live", host(before - 1));
            Ok(())
        })?;
    }
    let (mut times, pulse) = (Vec::new(), Pulse::start());
    for index in before..routes {
        api.add(index)?;
        let withheld = pulse.withheld();
        let time = until_live(&lab, index)?;
        times.push(time.saturating_sub(pulse.withheld() - withheld));
    }
    println!("withheld by the machine meanwhile: {:?}", pulse.withheld());
    let report = load.stop()?;
    times.sort();
    let at = |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1))).copied();
    let (half, most) = (at(50).context("no route")?, at(99).context("no route")?);
    println!("{routes} routes, the last {one_by_one} one by one: live after {half:?} (p50), {most:?} (p99); {report}");
    ensure!(report.failures.is_empty() && report.ok == report.sent, "{report}");
    ensure!(is_live(&lab, 0)? && is_live(&lab, routes - 1)?, "the first and the last are served");
    ensure!(most <= LIMIT, "p99 is {most:?}, bound {LIMIT:?}");
    Ok(())
}
