//! `/clusters`: upstream clusters and what all workers know of their endpoints.

use super::live::{ClusterView, HostView};
use super::{Admin, config_dump};
use crate::http::{Answer, Asked, text};
use http::StatusCode;
use std::fmt::Write as _;
use weft_proto::envoy::admin::v3 as dump;
use weft_proto::envoy::admin::v3::simple_metric;
use weft_proto::envoy::config::core::v3::{
    Address, HealthStatus, Locality, Pipe, SocketAddress, address, socket_address::PortSpecifier,
};

/// The page.
pub async fn page(admin: &Admin, asked: &Asked) -> Answer {
    let clusters = admin.live.clusters().await;
    match asked.parameter("format") {
        Some("json") => {
            let cluster_statuses = clusters.iter().map(status).collect();
            config_dump::message(&dump::Clusters { cluster_statuses })
        }
        _ => text(StatusCode::OK, as_text(&clusters)),
    }
}

fn as_text(clusters: &[ClusterView]) -> String {
    let mut out = String::new();
    for cluster in clusters {
        let name = &cluster.name;
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name}::observability_name::{name}");
        if let Some(eds) = &cluster.eds_name {
            let _ = writeln!(out, "{name}::eds_service_name::{eds}");
        }
        for (priority, limits) in [("default", &cluster.limits), ("high", &cluster.high_limits)] {
            for (key, value) in [
                ("max_connections", limits.max_connections),
                ("max_pending_requests", limits.max_pending),
                ("max_requests", limits.max_requests),
                ("max_retries", limits.max_retries),
            ] {
                let _ = writeln!(out, "{name}::{priority}_priority::{key}::{value}");
            }
        }
        let _ = writeln!(out, "{name}::added_via_api::true");
        for host in &cluster.hosts {
            host_lines(&mut out, name, host);
        }
    }
    out
}

fn host_lines(out: &mut String, cluster: &str, host: &HostView) {
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(out, "{cluster}::{}::{key}::{value}", host.address);
    };
    for (key, value) in &host.counts {
        line(key, value);
    }
    let mut locality = host.locality.split('/');
    line("hostname", &host.hostname);
    line("health_flags", &health_flags(host));
    line("weight", &host.weight);
    for key in ["region", "zone", "sub_zone"] {
        line(key, &locality.next().unwrap_or_default());
    }
    line("canary", &false);
    line("priority", &host.priority);
    line("success_rate", &"-1");
    line("local_origin_success_rate", &"-1");
}

fn health_flags(host: &HostView) -> String {
    let mut flags = String::new();
    if !host.healthy {
        flags.push_str("/failed_eds_health");
    }
    if host.ejected {
        flags.push_str("/failed_outlier_check");
    }
    if host.fails_checks {
        flags.push_str("/failed_active_hc");
    }
    if flags.is_empty() { "healthy".to_owned() } else { flags }
}

fn status(cluster: &ClusterView) -> dump::ClusterStatus {
    dump::ClusterStatus {
        name: cluster.name.clone(),
        added_via_api: true,
        observability_name: cluster.name.clone(),
        eds_service_name: cluster.eds_name.clone().unwrap_or_default(),
        host_statuses: cluster.hosts.iter().map(host_status).collect(),
        ..dump::ClusterStatus::default()
    }
}

fn host_status(host: &HostView) -> dump::HostStatus {
    let mut parts = host.locality.split('/').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    let health = match host.healthy {
        true => HealthStatus::Healthy,
        false => HealthStatus::Unhealthy,
    };
    dump::HostStatus {
        address: Some(address_of(&host.address)),
        stats: host
            .counts
            .iter()
            .map(|(name, value)| dump::SimpleMetric {
                r#type: match name.ends_with("_active") {
                    true => simple_metric::Type::Gauge,
                    false => simple_metric::Type::Counter,
                }
                .into(),
                value: *value,
                name: (*name).to_owned(),
            })
            .collect(),
        health_status: Some(dump::HostHealthStatus {
            failed_outlier_check: host.ejected,
            failed_active_health_check: host.fails_checks,
            eds_health_status: health.into(),
            ..dump::HostHealthStatus::default()
        }),
        weight: host.weight,
        hostname: host.hostname.clone(),
        priority: host.priority,
        locality: Some(Locality { region: part(), zone: part(), sub_zone: part() }),
        ..dump::HostStatus::default()
    }
}

/// An address in Envoy's message: `ip:port`, else a Unix socket.
pub fn address_of(text: &str) -> Address {
    let kind = match text.parse::<std::net::SocketAddr>() {
        Ok(socket) => address::Address::SocketAddress(SocketAddress {
            address: socket.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(socket.port()))),
            ..SocketAddress::default()
        }),
        Err(_) => address::Address::Pipe(Pipe { path: text.to_owned(), ..Pipe::default() }),
    };
    Address { address: Some(kind) }
}
