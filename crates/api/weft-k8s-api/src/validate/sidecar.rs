//! Rules for `Sidecar`.

use super::Report;
use super::check::{host_problem, is_dns_label};
use super::destination_rule::connection_pool;
use super::gateway::{server_port, server_tls};
use super::virtual_service::destination;
use crate::istio::{IstioEgressListener, IstioIngressListener, OutboundTrafficPolicyMode, ServerTlsMode, Sidecar};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

pub(super) fn check(spec: &Sidecar, report: &mut Report) {
    if let Some(selector) = &spec.workload_selector {
        report.selector("spec.workloadSelector.labels", &selector.labels);
    }
    let nothing = Sidecar { workload_selector: spec.workload_selector.clone(), ..Default::default() };
    if *spec == nothing {
        report.error("spec", "is empty; add egress, ingress, inboundConnectionPool or outboundTrafficPolicy");
    }
    let mut ports = BTreeSet::new();
    for (i, listener) in spec.ingress.iter().enumerate() {
        ingress(listener, &format!("spec.ingress[{i}]"), &mut ports, report);
    }
    egress_order(spec, report);
    let mut binds = BTreeSet::new();
    for (i, listener) in spec.egress.iter().enumerate() {
        egress(listener, &format!("spec.egress[{i}]"), &mut binds, report);
    }
    if let Some(pool) = &spec.inbound_connection_pool {
        connection_pool(pool, "spec.inboundConnectionPool", report);
    }
    if let Some(policy) = &spec.outbound_traffic_policy {
        if policy.mode == OutboundTrafficPolicyMode::AllowAnyDynamicDns {
            report.error("spec.outboundTrafficPolicy.mode", "must be ALLOW_ANY or REGISTRY_ONLY");
        }
        if let Some(proxy) = &policy.egress_proxy {
            if policy.mode != OutboundTrafficPolicyMode::AllowAny {
                report.error("spec.outboundTrafficPolicy.mode", "must be ALLOW_ANY when egressProxy is set");
            }
            destination(Some(proxy), "spec.outboundTrafficPolicy.egressProxy", report);
        }
    }
}

/// The listener without port takes what is left, so it comes last, and there is one.
fn egress_order(spec: &Sidecar, report: &mut Report) {
    let open: Vec<_> = (0..spec.egress.len()).filter(|i| spec.egress[*i].port.is_none()).collect();
    match open.as_slice() {
        [first, ..] if *first + 1 < spec.egress.len() => {
            let message = "has no port, so it must be the last item of egress";
            report.error(format_args!("spec.egress[{first}]"), message);
        }
        _ => {}
    }
}

fn ingress(listener: &IstioIngressListener, path: &str, ports: &mut BTreeSet<u32>, report: &mut Report) {
    match &listener.port {
        None => report.error(format_args!("{path}.port"), "is required: number, name and protocol"),
        Some(port) => {
            server_port(port, false, false, &format!("{path}.port"), report);
            if !ports.insert(port.number) {
                report.error(format_args!("{path}.port.number"), format!("{} is there twice", port.number));
            }
        }
    }
    bind(&listener.bind, false, path, report);
    let endpoint = &listener.default_endpoint;
    if !endpoint.is_empty() && !is_default_endpoint(endpoint) {
        let remedy = "write 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT, unix:///path or unix://@name";
        report.error(format_args!("{path}.defaultEndpoint"), format!("{endpoint:?} is not supported; {remedy}"));
    }
    if let Some(tls) = &listener.tls {
        if !matches!(tls.mode, ServerTlsMode::Simple | ServerTlsMode::Mutual) {
            report.error(format_args!("{path}.tls.mode"), "must be SIMPLE or MUTUAL");
        }
        server_tls(tls, &format!("{path}.tls"), report);
    }
    if let Some(pool) = &listener.connection_pool {
        connection_pool(pool, &format!("{path}.connectionPool"), report);
    }
}

fn is_default_endpoint(endpoint: &str) -> bool {
    if let Some(socket) = endpoint.strip_prefix("unix://") {
        return socket.len() > 1 && socket.starts_with(['/', '@']);
    }
    endpoint.parse::<SocketAddr>().is_ok_and(|a| a.port() != 0 && (a.ip().is_loopback() || a.ip().is_unspecified()))
}

fn egress(listener: &IstioEgressListener, path: &str, binds: &mut BTreeSet<(String, u32)>, report: &mut Report) {
    let unix = listener.bind.starts_with("unix://");
    if let Some(port) = &listener.port {
        server_port(port, unix, false, &format!("{path}.port"), report);
        if !binds.insert((listener.bind.clone(), port.number)) {
            let message = format!("{} is there twice with the same bind", port.number);
            report.error(format_args!("{path}.port.number"), message);
        }
    } else if !listener.bind.is_empty() {
        report.error(format_args!("{path}.bind"), "needs a port beside it");
    }
    bind(&listener.bind, true, path, report);
    if listener.hosts.is_empty() {
        report.error(format_args!("{path}.hosts"), "is required: visible hosts as namespace/host, such as ./* or */*");
    }
    for (i, host) in listener.hosts.iter().enumerate() {
        egress_host(host, &format!("{path}.hosts[{i}]"), report);
    }
}

fn egress_host(host: &str, path: &str, report: &mut Report) {
    let Some((namespace, name)) = host.split_once('/') else {
        let message =
            format!("{host:?} must be namespace/host; write ./{host} for the own namespace, */{host} for all");
        return report.error(path, message);
    };
    if !matches!(namespace, "*" | "." | "~") && !is_dns_label(namespace) {
        report.error(path, format!("{namespace:?} before the / must be a namespace, . (own), * (all) or ~ (none)"));
    }
    if let Some(problem) = host_problem(name, true) {
        report.error(path, problem);
    }
}

fn bind(bind: &str, unix: bool, path: &str, report: &mut Report) {
    let ok = bind.is_empty() || bind.parse::<IpAddr>().is_ok() || (unix && bind.starts_with("unix://"));
    if !ok {
        report.error(format_args!("{path}.bind"), format!("{bind:?} is not an address; write an IP address"));
    }
}
