//! Counters of the control plane, under Istio's names, as Prometheus text.

use crate::kind::{KINDS, Kind};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the convergence histogram, in seconds.
const BOUNDS: [f64; 10] = [0.01, 0.03, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];

/// Counters since start.
#[derive(Debug, Default)]
pub struct Metrics {
    pushes: [AtomicU64; KINDS.len()],
    rejects: [AtomicU64; KINDS.len()],
    send_timeouts: AtomicU64,
    denied: AtomicU64,
    builds: AtomicU64,
    convergence: Histogram,
    generation: Histogram,
    selection: Histogram,
}

#[derive(Debug, Default)]
struct Histogram {
    /// Not cumulative; the last is for what is above all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_micros: AtomicU64,
}

impl Histogram {
    fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let at = BOUNDS.iter().position(|b| seconds <= *b).unwrap_or(BOUNDS.len());
        self.buckets[at].fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut count = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            count += bucket.load(Relaxed);
            match BOUNDS.get(i) {
                Some(bound) => _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {count}"),
                None => _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}"),
            }
        }
        let sum = self.sum_micros.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {count}");
    }
}

impl Metrics {
    pub(crate) fn pushed(&self, kind: Kind) {
        self.pushes[kind.index()].fetch_add(1, Relaxed);
    }

    pub(crate) fn rejected(&self, kind: Kind) {
        self.rejects[kind.index()].fetch_add(1, Relaxed);
    }

    pub(crate) fn send_timed_out(&self) {
        self.send_timeouts.fetch_add(1, Relaxed);
    }

    pub(crate) fn denied(&self) {
        self.denied.fetch_add(1, Relaxed);
    }

    pub(crate) fn published(&self) {
        self.builds.fetch_add(1, Relaxed);
    }

    pub(crate) fn converged(&self, after: Duration) {
        self.convergence.observe(after);
    }

    pub(crate) fn generated(&self, took: Duration) {
        self.generation.observe(took);
    }

    pub(crate) fn selected(&self, took: Duration) {
        self.selection.observe(took);
    }

    /// Pushes of a type since start.
    pub fn pushes(&self, kind: Kind) -> u64 {
        self.pushes[kind.index()].load(Relaxed)
    }

    /// Prometheus text; `gauges` are names with values that are known elsewhere.
    pub fn render(&self, gauges: &[(&str, &str, u64)]) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "# HELP pilot_xds_pushes Responses sent to proxies\n# TYPE pilot_xds_pushes counter");
        for kind in KINDS {
            let (name, count) = (kind.short().to_ascii_lowercase(), self.pushes[kind.index()].load(Relaxed));
            let _ = writeln!(out, "pilot_xds_pushes{{type=\"{name}\"}} {count}");
        }
        let _ = writeln!(
            out,
            "# HELP pilot_total_xds_rejects Responses that proxies refused\n# TYPE pilot_total_xds_rejects counter"
        );
        for kind in KINDS {
            let (name, count) = (kind.short().to_ascii_lowercase(), self.rejects[kind.index()].load(Relaxed));
            let _ = writeln!(out, "pilot_total_xds_rejects{{type=\"{name}\"}} {count}");
        }
        for (name, help, value) in [
            ("pilot_xds_write_timeout", "Streams closed because the proxy took too long", &self.send_timeouts),
            ("pilot_xds_denied", "Streams refused for who the caller is", &self.denied),
            ("pilot_inbound_updates", "Snapshots built from changes", &self.builds),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {}", value.load(Relaxed));
        }
        for (name, help, value) in gauges {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        let convergence = "Seconds from a change to its acknowledgement by a proxy";
        self.convergence.write(&mut out, "pilot_proxy_convergence_time", convergence);
        self.generation.write(&mut out, "pilot_xds_push_time", "Seconds to make the resources of one proxy");
        let selection = "Seconds to take of these what a proxy asked for";
        self.selection.write(&mut out, "weft_xds_on_demand_time", selection);
        out
    }
}
