//! Writes metrics out: Prometheus text exposition, and Envoy's `name: value` text.

use crate::stats::{BUCKETS, Key, Registry, Value};
use std::fmt::Write as _;

/// All metrics in Prometheus' text format, version 0.0.4.
pub fn prometheus(registry: &Registry) -> String {
    let mut out = String::new();
    let mut last = "";
    for (key, value) in &registry.collect() {
        if key.name != last {
            let kind = match value {
                Value::Counter(_) => "counter",
                Value::Gauge(_) => "gauge",
                Value::Histogram { .. } => "histogram",
            };
            let _ = writeln!(out, "# TYPE {} {kind}", key.name);
            last = key.name;
        }
        match value {
            Value::Counter(n) => sample(&mut out, key, "", None, &n.to_string()),
            Value::Gauge(n) => sample(&mut out, key, "", None, &n.to_string()),
            Value::Histogram { buckets, sum } => histogram(&mut out, key, buckets, *sum),
        }
    }
    out
}

fn histogram(out: &mut String, key: &Key, buckets: &[u64], sum: f64) {
    let mut total = 0;
    for (i, count) in buckets.iter().enumerate() {
        total += count;
        let bound = BUCKETS.get(i).map_or_else(|| "+Inf".to_string(), ToString::to_string);
        sample(out, key, "_bucket", Some(&bound), &total.to_string());
    }
    sample(out, key, "_sum", None, &sum.to_string());
    sample(out, key, "_count", None, &total.to_string());
}

fn sample(out: &mut String, key: &Key, suffix: &str, le: Option<&str>, value: &str) {
    out.push_str(key.name);
    out.push_str(suffix);
    let labels = key.labels.iter().map(|(n, v)| (*n, &**v)).chain(le.map(|bound| ("le", bound)));
    let mut open = '{';
    for (name, text) in labels {
        out.push(open);
        open = ',';
        let _ = write!(out, "{name}=\"");
        escape_label(out, text);
        out.push('"');
    }
    if open == ',' {
        out.push('}');
    }
    let _ = writeln!(out, " {value}");
}

fn escape_label(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

/// Counters and gauges as Envoy's admin port lists them: `cluster.NAME.upstream_rq_total: 7`. `keep` selects by that name.
pub fn text(registry: &Registry, keep: impl Fn(&str) -> bool) -> String {
    let mut lines = Vec::new();
    for (key, value) in &registry.collect() {
        let name = envoy_name(key);
        if !keep(&name) {
            continue;
        }
        match value {
            Value::Counter(n) => lines.push(format!("{name}: {n}\n")),
            Value::Gauge(n) => lines.push(format!("{name}: {n}\n")),
            Value::Histogram { buckets, sum } => {
                lines.push(format!("{name}: count={} sum={sum}\n", buckets.iter().sum::<u64>()));
            }
        }
    }
    lines.sort();
    lines.concat()
}

/// The same as [`text`], as `(name, value)` pairs of counters and gauges: for JSON.
pub fn pairs(registry: &Registry, keep: impl Fn(&str) -> bool) -> Vec<(String, i64)> {
    let collected = registry.collect();
    let numbers = collected.iter().filter_map(|(key, value)| {
        let number = match value {
            Value::Counter(n) => i64::try_from(*n).unwrap_or(i64::MAX),
            Value::Gauge(n) => *n,
            Value::Histogram { .. } => return None,
        };
        Some((envoy_name(key), number))
    });
    let mut pairs: Vec<_> = numbers.filter(|(name, _)| keep(name)).collect();
    pairs.sort();
    pairs
}

/// Groups of statistics inside a scope, which the dotted name sets apart.
const GROUPS: [(&str, &str); 6] = [
    ("circuit_breakers_default_", "circuit_breakers.default."),
    ("circuit_breakers_high_", "circuit_breakers.high."),
    ("outlier_detection_", "outlier_detection."),
    ("health_check_", "health_check."),
    ("ratelimit_", "ratelimit."),
    ("ssl_", "ssl."),
];

fn grouped(rest: &str) -> String {
    let found = GROUPS.iter().find_map(|(prefix, group)| Some((rest.strip_prefix(prefix)?, group)));
    found.map_or_else(|| rest.to_string(), |(name, group)| format!("{group}{name}"))
}

/// Envoy's dotted name: the tag that Prometheus shows as a label stands inside the name.
fn envoy_name(key: &Key) -> String {
    let label = |name: &str| key.labels.iter().find(|(n, _)| *n == name).map(|(_, v)| &**v);
    for (prefix, tag, scope) in [
        ("envoy_cluster_", "cluster_name", "cluster"),
        ("envoy_http_", "http_conn_manager_prefix", "http"),
        ("envoy_listener_", "listener_address", "listener"),
        ("envoy_tcp_", "tcp_prefix", "tcp"),
    ] {
        if let (Some(rest), Some(value)) = (key.name.strip_prefix(prefix), label(tag)) {
            let class = label("response_code_class").or_else(|| label("response_code"));
            return match class {
                // upstream_rq_xx with class 2xx is upstream_rq_2xx; upstream_rq with code 200 is upstream_rq_200.
                Some(code) => format!("{scope}.{value}.{}_{code}", rest.trim_end_matches("_xx")),
                None => format!("{scope}.{value}.{}", grouped(rest)),
            };
        }
    }
    // Here the prefix stands before the group, or behind it.
    let limits = ("envoy_http_local_rate_limit_", "envoy_local_http_ratelimit_prefix");
    if let (Some(rest), Some(prefix)) = (key.name.strip_prefix(limits.0), label(limits.1)) {
        return format!("{prefix}.http_local_rate_limit.{rest}");
    }
    let limits = ("envoy_local_rate_limit_", "envoy_local_network_ratelimit_prefix");
    if let (Some(rest), Some(prefix)) = (key.name.strip_prefix(limits.0), label(limits.1)) {
        return format!("local_rate_limit.{prefix}.{rest}");
    }
    for (prefix, scope) in [
        ("envoy_server_", "server"),
        ("envoy_tracing_zipkin_", "tracing.zipkin"),
        ("envoy_tracing_opentelemetry_", "tracing.opentelemetry"),
    ] {
        if let Some(rest) = key.name.strip_prefix(prefix) {
            return format!("{scope}.{rest}");
        }
    }
    let mut name = key.name.to_string();
    for (n, v) in &key.labels {
        let _ = write!(name, ".{n}.{v}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::Strng;

    #[test]
    fn both_texts() {
        let registry = Registry::default();
        let shard = registry.shard();
        let cluster = ("cluster_name", Strng::from("outbound|80||a\"b"));
        shard.counter("envoy_cluster_upstream_rq_total", std::slice::from_ref(&cluster)).add(3);
        shard.counter("envoy_cluster_upstream_rq_xx", &[cluster, ("response_code_class", "2xx".into())]).inc();
        shard.histogram("istio_request_duration_milliseconds", &[]).observe(3.0);
        let prom = prometheus(&registry);
        assert!(prom.contains("# TYPE envoy_cluster_upstream_rq_total counter\n"), "{prom}");
        assert!(prom.contains("envoy_cluster_upstream_rq_total{cluster_name=\"outbound|80||a\\\"b\"} 3\n"), "{prom}");
        assert!(prom.contains("istio_request_duration_milliseconds_bucket{le=\"5\"} 1\n"), "{prom}");
        assert!(prom.contains("istio_request_duration_milliseconds_count 1\n"), "{prom}");
        let text = text(&registry, |name| name.starts_with("cluster."));
        assert_eq!(
            text,
            "cluster.outbound|80||a\"b.upstream_rq_2xx: 1\ncluster.outbound|80||a\"b.upstream_rq_total: 3\n"
        );
    }
}
