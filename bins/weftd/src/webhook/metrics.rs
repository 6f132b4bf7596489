//! What the webhooks did, under Istio's names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Bounds of the time of an injection, seconds.
const BOUNDS: [f64; 8] = [0.1, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0];
/// Most rows of one metric: names of kinds come with the questions.
const MAX_ROWS: usize = 1000;

/// Counters.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: AtomicU64,
    success: AtomicU64,
    failure: AtomicU64,
    skip: AtomicU64,
    buckets: [AtomicU64; 8],
    took_micros: AtomicU64,
    took: AtomicU64,
    /// Rows of the validation's metrics: name and labels.
    rows: Mutex<BTreeMap<(&'static str, String), u64>>,
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Metrics {
    pub(super) fn injection_asked(&self) {
        add(&self.requests);
    }

    pub(super) fn injection_succeeded(&self) {
        add(&self.success);
    }

    pub(super) fn injection_failed(&self) {
        add(&self.failure);
    }

    pub(super) fn injection_skipped(&self) {
        add(&self.skip);
    }

    pub(super) fn injection_took(&self, time: Duration) {
        add(&self.took);
        self.took_micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let within = BOUNDS.iter().zip(&self.buckets).filter(|(bound, _)| time.as_secs_f64() <= **bound);
        within.for_each(|(_, bucket)| add(bucket));
    }

    pub(super) fn validation_passed(&self, resource: &[String; 3]) {
        self.row("galley_validation_passed", labels(resource));
    }

    pub(super) fn validation_failed(&self, resource: &[String; 3], reason: &str) {
        self.row("galley_validation_failed", format!("{},reason=\"{reason}\"", labels(resource)));
    }

    pub(super) fn validation_http_error(&self, status: u16) {
        self.row("galley_validation_http_error", format!("status=\"{status}\""));
    }

    pub(super) fn configuration_updated(&self, failed: bool) {
        let name = if failed { "galley_validation_config_update_error" } else { "galley_validation_config_updates" };
        self.row(name, String::new());
    }

    fn row(&self, name: &'static str, labels: String) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name, labels);
        if rows.len() < MAX_ROWS || rows.contains_key(&key) {
            *rows.entry(key).or_default() += 1;
        }
    }

    /// All of it, as Prometheus text.
    pub(crate) fn show(&self) -> String {
        let mut text = String::new();
        for (name, help, counter) in [
            ("sidecar_injection_requests_total", "Questions about pods", &self.requests),
            ("sidecar_injection_success_total", "Pods that got a proxy", &self.success),
            ("sidecar_injection_failure_total", "Pods that were to get a proxy and could not", &self.failure),
            ("sidecar_injection_skip_total", "Pods that were to get no proxy", &self.skip),
        ] {
            let value = counter.load(Ordering::Relaxed);
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n");
        }
        self.show_time(&mut text);
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = "";
        for ((name, labels), value) in rows.iter() {
            if *name != last {
                let _ = write!(text, "# HELP {name} Answers of the validation webhook\n# TYPE {name} counter\n");
                last = name;
            }
            let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let _ = writeln!(text, "{name}{braces} {value}");
        }
        text
    }

    fn show_time(&self, text: &mut String) {
        let name = "sidecar_injection_time_seconds";
        let _ = write!(text, "# HELP {name} Time of an injection\n# TYPE {name} histogram\n");
        for (bound, bucket) in BOUNDS.iter().zip(&self.buckets) {
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {}", bucket.load(Ordering::Relaxed));
        }
        let count = self.took.load(Ordering::Relaxed);
        let sum = Duration::from_micros(self.took_micros.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
    }
}

fn labels([group, version, resource]: &[String; 3]) -> String {
    let safe =
        |text: &str| text.chars().filter(|c| c.is_ascii_alphanumeric() || ".-_*/".contains(*c)).collect::<String>();
    format!("group=\"{}\",version=\"{}\",resource=\"{}\"", safe(group), safe(version), safe(resource))
}
