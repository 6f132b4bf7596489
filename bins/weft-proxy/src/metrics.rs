//! Metrics of the process: the data plane's (counted by workers, or scraped from an Envoy), the agent's own, and the
//! application's merged in.

use crate::http::{Fetched, fetch};
use crate::settings::Scrape;
use crate::state::{Phase, ProxyState};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use weft_sds::SvidStats;
use weft_telemetry::{Registry, render};

/// Longest time for a scrape of the application or of Envoy.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest scrape of the application.
const MAX_APPLICATION: usize = 16 * 1024 * 1024;
/// Largest scrape of Envoy.
const MAX_ENVOY: usize = 64 * 1024 * 1024;
/// Prometheus' text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where the data plane's metrics are.
#[derive(Debug, Clone)]
pub enum Source {
    /// Counted in this process.
    Registry(Registry),
    /// In an Envoy whose admin port is at this address.
    Envoy(String),
}

/// Metrics of the process.
#[derive(Clone)]
pub struct Metrics {
    source: Source,
    state: ProxyState,
    svid: Option<Arc<SvidStats>>,
    dns: Arc<std::sync::OnceLock<Arc<crate::dns::DnsStats>>>,
    scrape: Option<Scrape>,
    own: Arc<Own>,
}

#[derive(Default)]
struct Own {
    scrapes: AtomicU64,
    application_failures: AtomicU64,
    envoy_failures: AtomicU64,
}

impl Metrics {
    /// Metrics of `source` and of the agent's parts.
    pub fn new(source: Source, state: ProxyState, svid: Option<Arc<SvidStats>>, scrape: Option<Scrape>) -> Self {
        Self { source, state, svid, dns: Arc::default(), scrape, own: Arc::default() }
    }

    /// Where the data plane's metrics are.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Adds the DNS server's counts.
    pub fn set_dns(&self, stats: Arc<crate::dns::DnsStats>) {
        // The server is started once.
        let _ = self.dns.set(stats);
    }

    /// The proxy's metrics: data plane and agent.
    pub async fn proxy(&self) -> String {
        let mut out = match &self.source {
            Source::Registry(registry) => render::prometheus(registry),
            Source::Envoy(admin) => self.envoy(admin).await,
        };
        self.write_agent(&mut out);
        out
    }

    async fn envoy(&self, admin: &str) -> String {
        let path = "/stats/prometheus";
        match fetch(Method::GET, admin, path, HeaderMap::new(), SCRAPE_TIMEOUT, MAX_ENVOY).await {
            Ok(Fetched { status, body, .. }) if status.is_success() => String::from_utf8_lossy(&body).into_owned(),
            _ => {
                self.own.envoy_failures.fetch_add(1, Ordering::Relaxed);
                String::new()
            }
        }
    }

    /// The proxy's metrics and the application's. The application failing leaves the proxy's.
    pub async fn merged(&self, headers: &HeaderMap) -> Bytes {
        self.own.scrapes.fetch_add(1, Ordering::Relaxed);
        let application = match &self.scrape {
            Some(scrape) => self.application(scrape, headers).await,
            None => None,
        };
        let mut out = self.proxy().await;
        if let Some(body) = application {
            append(&mut out, &body);
        }
        out.into()
    }

    async fn application(&self, scrape: &Scrape, headers: &HeaderMap) -> Option<String> {
        let mut asked = HeaderMap::new();
        // The classic text format alone can be put behind ours: OpenMetrics ends with a line of its own.
        asked.insert(http::header::ACCEPT, HeaderValue::from_static("text/plain;version=0.0.4;q=1,*/*;q=0.1"));
        for name in ["x-prometheus-scrape-timeout-seconds", "user-agent"] {
            if let Some(value) = headers.get(name) {
                asked.insert(name, value.clone());
            }
        }
        let address = format!("127.0.0.1:{}", scrape.port);
        let time = timeout_of(headers);
        let failure = match fetch(Method::GET, &address, &scrape.path, asked, time, MAX_APPLICATION).await {
            Ok(fetched) if fetched.status.is_success() => {
                return Some(String::from_utf8_lossy(&fetched.body).into_owned());
            }
            Ok(fetched) => format!("{address}{} answers {}", scrape.path, fetched.status),
            Err(error) => error,
        };
        self.own.application_failures.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(reason = failure, "the application's metrics could not be scraped");
        None
    }

    fn write_agent(&self, out: &mut String) {
        let own = &self.own;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        family(out, "istio_agent_scrapes_total", "counter", &[("", load(&own.scrapes))]);
        family(
            out,
            "istio_agent_scrape_failures_total",
            "counter",
            &[("type=\"application\"", load(&own.application_failures)), ("type=\"envoy\"", load(&own.envoy_failures))],
        );
        if let Some(svid) = &self.svid {
            family(
                out,
                "istio_agent_num_outgoing_requests",
                "counter",
                &[("request_type=\"csr\"", load(&svid.fetched) + load(&svid.failures))],
            );
            family(
                out,
                "istio_agent_num_failed_outgoing_requests",
                "counter",
                &[("request_type=\"csr\"", load(&svid.failures))],
            );
            let expiry = [
                ("resource_name=\"default\"", load(&svid.expires_at)),
                ("resource_name=\"ROOTCA\"", load(&svid.root_expires_at)),
            ];
            family(out, "istio_agent_cert_expiry_timestamp_seconds", "gauge", &expiry);
            family(out, "weft_agent_identity_alarm", "gauge", &[("", load(&svid.alarm))]);
        }
        if let Some(dns) = self.dns.get() {
            family(out, "istio_agent_dns_requests_total", "counter", &[("", load(&dns.requests))]);
            family(out, "istio_agent_dns_upstream_requests_total", "counter", &[("", load(&dns.forwarded))]);
            family(out, "istio_agent_dns_upstream_failures_total", "counter", &[("", load(&dns.failures))]);
        }
        if let Source::Registry(_) = self.source {
            let live = u64::from(self.state.phase() == Phase::Live);
            family(out, "envoy_server_live", "gauge", &[("", live)]);
            family(out, "envoy_server_state", "gauge", &[("", state_number(self.state.phase()))]);
            family(out, "envoy_server_uptime", "gauge", &[("", self.state.started.elapsed().as_secs())]);
            family(out, "envoy_server_memory_allocated", "gauge", &[("", resident_bytes())]);
        }
    }
}

/// Envoy's numbers: live, draining, pre-initializing, initializing.
fn state_number(phase: Phase) -> u64 {
    match phase {
        Phase::Live => 0,
        Phase::Draining => 1,
        Phase::Initializing => 3,
    }
}

/// Resident memory of the process; 0 where the kernel does not say.
pub fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse().ok());
    pages.map_or(0, |pages: u64| pages * 4096)
}

/// Writes one metric, unless it is there already: an Envoy may have one of the same name.
fn family(out: &mut String, name: &str, kind: &str, samples: &[(&str, u64)]) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = match labels.is_empty() {
            true => writeln!(out, "{name} {value}"),
            false => writeln!(out, "{name}{{{labels}}} {value}"),
        };
    }
}

/// Puts the application's metrics behind the proxy's. A `# TYPE` line of a metric that the proxy has too is left out: twice
/// is an error in the format.
fn append(out: &mut String, application: &str) {
    let declared = |line: &str| {
        let mut words = line.strip_prefix("# ")?.splitn(3, ' ');
        let kind = words.next().filter(|kind| matches!(*kind, "TYPE" | "HELP"))?;
        Some((kind.to_owned(), words.next()?.to_owned()))
    };
    let ours: BTreeSet<_> = out.lines().filter_map(declared).collect();
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    for line in application.lines() {
        // The end mark of OpenMetrics would hide what stands behind it.
        if line == "# EOF" || declared(line).is_some_and(|known| ours.contains(&known)) {
            continue;
        }
        out.push_str(line);
        out.push('\n');
    }
}

/// Prometheus says how long it waits; we must answer before that.
fn timeout_of(headers: &HeaderMap) -> Duration {
    let said = headers.get("x-prometheus-scrape-timeout-seconds").and_then(|value| value.to_str().ok()?.parse().ok());
    match said {
        Some(seconds) if (0.1..=60.0).contains(&seconds) => Duration::from_secs_f64(seconds * 0.9).min(SCRAPE_TIMEOUT),
        _ => SCRAPE_TIMEOUT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Asked, handler, serve, text};
    use http::StatusCode;
    use tokio::net::TcpListener;

    async fn application(body: &'static str, status: StatusCode) -> Scrape {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(serve(
            listener,
            handler(move |asked: Asked| async move {
                assert_eq!(asked.path, "/metrics");
                text(status, body)
            }),
        ));
        Scrape { port, path: "/metrics".into() }
    }

    fn metrics(scrape: Option<Scrape>) -> Metrics {
        let registry = Registry::default();
        registry.shard().counter("istio_requests_total", &[]).add(3);
        Metrics::new(Source::Registry(registry), ProxyState::default(), None, scrape)
    }

    #[tokio::test]
    async fn the_application_is_merged_in() {
        let scrape =
            application("# TYPE app counter\napp 7\n# TYPE istio_requests_total counter\n# EOF\n", StatusCode::OK);
        let merged = metrics(Some(scrape.await)).merged(&HeaderMap::new()).await;
        let merged = String::from_utf8(merged.to_vec()).unwrap();
        for line in ["istio_requests_total 3", "# TYPE app counter", "app 7", "envoy_server_live 1"] {
            assert!(merged.lines().any(|found| found == line), "{line} in {merged}");
        }
        assert_eq!(merged.matches("# TYPE istio_requests_total").count(), 1);
        assert!(!merged.contains("# EOF"));
    }

    #[tokio::test]
    async fn a_failing_application_costs_only_its_own_metrics() {
        let nobody = Scrape { port: 1, path: "/metrics".into() };
        for scrape in [application("no", StatusCode::INTERNAL_SERVER_ERROR).await, nobody] {
            let merged = metrics(Some(scrape)).merged(&HeaderMap::new()).await;
            let merged = String::from_utf8(merged.to_vec()).unwrap();
            assert!(merged.contains("istio_requests_total 3"));
            assert!(merged.contains("istio_agent_scrape_failures_total{type=\"application\"} 1"), "{merged}");
        }
    }

    #[test]
    fn the_scraper_says_how_long_it_waits() {
        for (said, millis) in [(None, 10_000), (Some("1"), 900), (Some("1000"), 10_000), (Some("x"), 10_000)] {
            let mut headers = HeaderMap::new();
            if let Some(said) = said {
                headers.insert("x-prometheus-scrape-timeout-seconds", said.parse().unwrap());
            }
            assert_eq!(timeout_of(&headers).as_millis(), millis, "{said:?}");
        }
    }
}
