//! Rules for `DestinationRule`, and for the parts of it that sidecars and mesh config share.

use super::Report;
use super::check::set_of;
use super::virtual_service::is_subset_name;
use crate::istio::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, ConsistentHashLb, DestinationRule, H2UpgradePolicy,
    HttpSettings, LoadBalancerSettings, LocalityFailover, LocalityLoadBalancerSetting, OutlierDetection,
    PortTrafficPolicy, SimpleLb, TcpSettings, TrafficPolicy, TunnelSettings,
};
use std::collections::BTreeSet;

pub(super) fn check(spec: &DestinationRule, report: &mut Report) {
    if report.required("spec.host", &spec.host, "the service the rule is for") {
        report.host_or_ip("spec.host", &spec.host, true);
    }
    report.export_to("spec.exportTo", &spec.export_to);
    if let Some(selector) = &spec.workload_selector {
        report.selector("spec.workloadSelector.matchLabels", &selector.match_labels);
    }
    if let Some(policy) = &spec.traffic_policy {
        traffic_policy(policy, "spec.trafficPolicy", report);
    }
    let mut seen = BTreeSet::new();
    for (i, subset) in spec.subsets.iter().enumerate() {
        let path = format!("spec.subsets[{i}]");
        if !is_subset_name(&subset.name) {
            let remedy = "it must be letters, digits, '-', '_' and '.', at most 63";
            report.error(format_args!("{path}.name"), format!("{:?} is not a subset name; {remedy}", subset.name));
        } else if !seen.insert(&subset.name) {
            report.error(format_args!("{path}.name"), format!("{:?} is there twice; rename one", subset.name));
        }
        report.labels(format_args!("{path}.labels"), &subset.labels);
        if subset.labels.is_empty() && !spec.host.starts_with('*') {
            report.warn(format_args!("{path}.labels"), "is empty: the subset is the whole service");
        }
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy(policy, &format!("{path}.trafficPolicy"), report);
        }
    }
}

fn traffic_policy(policy: &TrafficPolicy, path: &str, report: &mut Report) {
    if *policy == TrafficPolicy::default() {
        let remedy = "add loadBalancer, connectionPool, outlierDetection, tls, portLevelSettings, tunnel, proxyProtocol or retryBudget, or remove it";
        report.error(path, format!("is empty; {remedy}"));
    }
    let common = PortTrafficPolicy {
        port: None,
        load_balancer: policy.load_balancer.clone(),
        connection_pool: policy.connection_pool.clone(),
        outlier_detection: policy.outlier_detection.clone(),
        tls: policy.tls.clone(),
    };
    parts(&common, path, report);
    let mut seen = BTreeSet::new();
    for (i, port) in policy.port_level_settings.iter().enumerate() {
        let path = format!("{path}.portLevelSettings[{i}]");
        match &port.port {
            None => report.error(format_args!("{path}.port"), "is required: the service port, as number"),
            Some(selector) => {
                report.port(format_args!("{path}.port.number"), selector.number);
                if !seen.insert(selector.number) {
                    let message = format!("{} is there twice; the first wins", selector.number);
                    report.warn(format_args!("{path}.port.number"), message);
                }
            }
        }
        parts(port, &path, report);
    }
    if let Some(tunnel) = &policy.tunnel {
        check_tunnel(tunnel, &format!("{path}.tunnel"), report);
    }
    if let Some(budget) = &policy.retry_budget {
        report.percent(format_args!("{path}.retryBudget.percent"), budget.percent.unwrap_or(20.0));
    }
}

fn parts(policy: &PortTrafficPolicy, path: &str, report: &mut Report) {
    if let Some(lb) = &policy.load_balancer {
        load_balancer(lb, &format!("{path}.loadBalancer"), report);
        let locality = lb.locality_lb_setting.as_ref();
        let fails_over = locality.is_some_and(|l| !l.failover.is_empty() || !l.failover_priority.is_empty());
        if fails_over && policy.outlier_detection.is_none() {
            let message = "has failover without outlierDetection: unhealthy endpoints are not noticed; add it";
            report.warn(format_args!("{path}.loadBalancer.localityLbSetting"), message);
        }
    }
    if let Some(pool) = &policy.connection_pool {
        connection_pool(pool, &format!("{path}.connectionPool"), report);
    }
    if let Some(outlier) = &policy.outlier_detection {
        outlier_detection(outlier, &format!("{path}.outlierDetection"), report);
    }
    if let Some(tls) = &policy.tls {
        client_tls(tls, &format!("{path}.tls"), report);
    }
}

fn check_tunnel(tunnel: &TunnelSettings, path: &str, report: &mut Report) {
    if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
        report.error(format_args!("{path}.protocol"), format!("{:?} must be CONNECT or POST", tunnel.protocol));
    }
    if report.required(format_args!("{path}.targetHost"), &tunnel.target_host, "the host behind the tunnel") {
        report.host_or_ip(format_args!("{path}.targetHost"), &tunnel.target_host, false);
    }
    report.port(format_args!("{path}.targetPort"), tunnel.target_port);
}

fn load_balancer(lb: &LoadBalancerSettings, path: &str, report: &mut Report) {
    if lb.simple.is_some() && lb.consistent_hash.is_some() {
        report.error(path, "has simple and consistentHash; keep one");
    }
    if lb.simple == Some(SimpleLb::LeastConn) {
        report.warn(format_args!("{path}.simple"), "LEAST_CONN is the older spelling; use LEAST_REQUEST");
    }
    if let Some(hash) = &lb.consistent_hash {
        consistent_hash(hash, &format!("{path}.consistentHash"), report);
    }
    if let Some(locality) = &lb.locality_lb_setting {
        locality_lb(locality, &format!("{path}.localityLbSetting"), report);
    }
    if let Some(zone) = &lb.zone_aware_lb_setting {
        let path = format!("{path}.zoneAwareLbSetting");
        if zone.enabled != Some(false) {
            report.warn(&path, "has no effect: all zones are served alike; use localityLbSetting");
        }
        report.warn(&path, "has no effect; use localityLbSetting");
        failovers(&zone.failover, &path, report);
        if zone.min_cluster_size == Some(0) {
            report.error(format_args!("{path}.minClusterSize"), "is 0; it must be at least 1");
        }
        if lb.locality_lb_setting.is_some() {
            report.error(&path, "does not go with localityLbSetting; keep one");
        }
    }
    warmup(lb, path, report);
}

fn warmup(lb: &LoadBalancerSettings, path: &str, report: &mut Report) {
    report.duration(format_args!("{path}.warmupDurationSecs"), lb.warmup_duration_secs);
    if let Some(warmup) = &lb.warmup {
        let path = format!("{path}.warmup");
        if warmup.duration.is_none() {
            report.error(format_args!("{path}.duration"), "is required: how long the warm-up takes");
        }
        report.duration(format_args!("{path}.duration"), warmup.duration);
        report.percent(format_args!("{path}.minimumPercent"), warmup.minimum_percent.unwrap_or(10.0));
        if warmup.aggression.is_some_and(|a| a <= 0.0) {
            report.error(format_args!("{path}.aggression"), "must be above 0; 1 is linear");
        }
    }
    let warms = lb.warmup.is_some() || lb.warmup_duration_secs.is_some();
    let fits = matches!(
        lb.simple.unwrap_or_default(),
        SimpleLb::Unspecified | SimpleLb::RoundRobin | SimpleLb::LeastRequest | SimpleLb::LeastConn
    );
    if warms && (!fits || lb.consistent_hash.is_some()) {
        report.error(path, "warm-up goes with ROUND_ROBIN and LEAST_REQUEST only");
    }
}

fn consistent_hash(hash: &ConsistentHashLb, path: &str, report: &mut Report) {
    let keys = set_of(&[
        ("httpHeaderName", hash.http_header_name.is_some()),
        ("httpCookie", hash.http_cookie.is_some()),
        ("useSourceIp", hash.use_source_ip.is_some()),
        ("httpQueryParameterName", hash.http_query_parameter_name.is_some()),
    ]);
    match keys.len() {
        0 => report.error(path, "has no key; add httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName"),
        1 => {}
        _ => report.error(path, format!("has {}; keep one", keys.join(" and "))),
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        report.error(path, "has ringHash and maglev; keep one");
    }
    if let Some(name) = &hash.http_header_name {
        report.header_name(format_args!("{path}.httpHeaderName"), name);
    }
    if let Some(name) = &hash.http_query_parameter_name {
        report.required(format_args!("{path}.httpQueryParameterName"), name, "the name of the parameter");
    }
    if let Some(cookie) = &hash.http_cookie {
        report.required(format_args!("{path}.httpCookie.name"), &cookie.name, "the name of the cookie");
    }
    let size = hash.maglev.as_ref().map_or(65537, |m| if m.table_size == 0 { 65537 } else { m.table_size });
    if size > 5_000_011 || !is_prime(size) {
        let message = format!("{size} must be a prime number of at most 5000011");
        report.error(format_args!("{path}.maglev.tableSize"), message);
    }
    let ring = hash.ring_hash.as_ref().map_or(hash.minimum_ring_size, |r| r.minimum_ring_size);
    if ring > 8 * 1024 * 1024 {
        report.error(path, format!("the minimum ring size {ring} is above the limit of 8388608"));
    }
}

fn is_prime(number: u64) -> bool {
    number >= 2 && (2..).take_while(|d| d * d <= number).all(|d| !number.is_multiple_of(d))
}

/// Load balancing by locality.
pub(super) fn locality_lb(locality: &LocalityLoadBalancerSetting, path: &str, report: &mut Report) {
    let fails_over = !locality.failover.is_empty() || !locality.failover_priority.is_empty();
    if !locality.distribute.is_empty() && fails_over {
        report.error(path, "has distribute beside failover or failoverPriority; keep one");
    }
    for (i, share) in locality.distribute.iter().enumerate() {
        let path = format!("{path}.distribute[{i}]");
        report.locality(format_args!("{path}.from"), &share.from);
        for (to, weight) in &share.to {
            report.locality(format_args!("{path}.to[{to:?}]"), to);
            if !(1..=100).contains(weight) {
                let message = format!("{weight} is not a share; it must be between 1 and 100");
                report.error(format_args!("{path}.to[{to:?}]"), message);
            }
        }
        let sum: u64 = share.to.values().map(|w| u64::from(*w)).sum();
        if sum != 100 {
            report.error(format_args!("{path}.to"), format!("adds up to {sum}; it must be 100"));
        }
    }
    failovers(&locality.failover, path, report);
    report.no_empty(format_args!("{path}.failoverPriority"), &locality.failover_priority);
}

fn failovers(list: &[LocalityFailover], path: &str, report: &mut Report) {
    for (i, failover) in list.iter().enumerate() {
        let path = format!("{path}.failover[{i}]");
        for (field, region) in [("from", &failover.from), ("to", &failover.to)] {
            if region.is_empty() || region.contains(['/', '*']) {
                report.error(format_args!("{path}.{field}"), format!("{region:?} must be the name of a region"));
            }
        }
        if failover.from == failover.to {
            report.error(&path, "from and to are the same region");
        }
    }
}

/// Limits of connections and requests.
pub(super) fn connection_pool(pool: &ConnectionPoolSettings, path: &str, report: &mut Report) {
    if pool.tcp.is_none() && pool.http.is_none() {
        report.error(path, "is empty; add tcp or http, or remove it");
    }
    if let Some(tcp) = &pool.tcp {
        tcp_settings(tcp, &format!("{path}.tcp"), report);
    }
    if let Some(http) = &pool.http {
        http_settings(http, &format!("{path}.http"), report);
    }
}

fn tcp_settings(tcp: &TcpSettings, path: &str, report: &mut Report) {
    report.duration(format_args!("{path}.connectTimeout"), tcp.connect_timeout);
    report.duration_or_zero(format_args!("{path}.idleTimeout"), tcp.idle_timeout);
    report.duration(format_args!("{path}.maxConnectionDuration"), tcp.max_connection_duration);
    if let Some(keepalive) = &tcp.tcp_keepalive {
        for (field, value) in [("time", keepalive.time), ("interval", keepalive.interval)] {
            if value.is_some_and(|d| d.get().subsec_nanos() != 0 || d.get().is_zero()) {
                report.error(format_args!("{path}.tcpKeepalive.{field}"), "must be whole seconds, at least 1s");
            }
        }
    }
}

fn http_settings(http: &HttpSettings, path: &str, report: &mut Report) {
    report.duration_or_zero(format_args!("{path}.idleTimeout"), http.idle_timeout);
    if http.use_client_protocol && http.h2_upgrade_policy == H2UpgradePolicy::Upgrade {
        report.error(path, "has useClientProtocol and h2UpgradePolicy UPGRADE; keep one");
    }
    if http.max_concurrent_streams > i32::MAX as u32 {
        report.error(format_args!("{path}.maxConcurrentStreams"), format!("must be at most {}", i32::MAX));
    }
    if let Some(keepalive) = &http.http2_keep_alive {
        report.duration(format_args!("{path}.http2KeepAlive.interval"), keepalive.interval);
        report.duration(format_args!("{path}.http2KeepAlive.timeout"), keepalive.timeout);
    }
}

/// Ejection of bad endpoints.
pub(super) fn outlier_detection(outlier: &OutlierDetection, path: &str, report: &mut Report) {
    if outlier.consecutive_errors != 0 {
        let message = "is the older spelling; use consecutive5xxErrors";
        report.warn(format_args!("{path}.consecutiveErrors"), message);
    }
    report.duration(format_args!("{path}.interval"), outlier.interval);
    report.duration(format_args!("{path}.baseEjectionTime"), outlier.base_ejection_time);
    report.percent(format_args!("{path}.maxEjectionPercent"), f64::from(outlier.max_ejection_percent));
    report.percent(format_args!("{path}.minHealthPercent"), f64::from(outlier.min_health_percent));
    if outlier.consecutive_local_origin_failures.is_some() && !outlier.split_external_local_origin_errors {
        let message = "has no effect without splitExternalLocalOriginErrors: true";
        report.error(format_args!("{path}.consecutiveLocalOriginFailures"), message);
    }
    for (i, code) in outlier.outlier_detection_http_error_codes.iter().enumerate() {
        if !(100..=599).contains(code) {
            let message = format!("{code} is not a status; it must be between 100 and 599");
            report.error(format_args!("{path}.outlierDetectionHttpErrorCodes[{i}]"), message);
        }
    }
}

/// TLS towards a service.
pub(super) fn client_tls(tls: &ClientTlsSettings, path: &str, report: &mut Report) {
    let files = set_of(&[
        ("clientCertificate", !tls.client_certificate.is_empty()),
        ("privateKey", !tls.private_key.is_empty()),
        ("caCertificates", !tls.ca_certificates.is_empty()),
    ]);
    match tls.mode {
        ClientTlsMode::Simple | ClientTlsMode::Mutual if !tls.credential_name.is_empty() && !files.is_empty() => {
            report.error(path, format!("has credentialName and {}; keep one", files.join(" and ")));
        }
        ClientTlsMode::Mutual if tls.credential_name.is_empty() => {
            let what = "the file of the client's certificate, or use credentialName";
            report.required(format_args!("{path}.clientCertificate"), &tls.client_certificate, what);
            let what = "the file of the client's key, or use credentialName";
            report.required(format_args!("{path}.privateKey"), &tls.private_key, what);
        }
        ClientTlsMode::IstioMutual if !files.is_empty() || !tls.credential_name.is_empty() => {
            report.warn(path, "ISTIO_MUTUAL uses the mesh's certificates; the ones given here have no effect");
        }
        _ => {}
    }
    let plain = tls.credential_name.strip_prefix("kubernetes://").unwrap_or(&tls.credential_name);
    if plain.contains("://") || plain.contains('/') {
        let message =
            format!("{:?} is not the name of a secret; secrets are looked for beside the proxy", tls.credential_name);
        report.error(format_args!("{path}.credentialName"), message);
    }
    if tls.insecure_skip_verify == Some(true) && (!tls.ca_certificates.is_empty() || !tls.subject_alt_names.is_empty())
    {
        let message = "is true, so caCertificates and subjectAltNames would not be used; remove one side";
        report.error(format_args!("{path}.insecureSkipVerify"), message);
    }
    report.no_empty(format_args!("{path}.subjectAltNames"), &tls.subject_alt_names);
}
