//! Rules for `WorkloadEntry` and `WorkloadGroup`.

use super::Report;
use super::check::{host_problem, is_dns_label, is_header_name, label_key_problem, set_of};
use crate::istio::{ReadinessProbe, WorkloadEntry, WorkloadGroup};
use std::net::IpAddr;

pub(super) fn entry(spec: &WorkloadEntry, report: &mut Report) {
    address(spec, "spec", report);
}

pub(super) fn group(spec: &WorkloadGroup, report: &mut Report) {
    match &spec.template {
        None => report.error("spec.template", "is required: what the workload entries have in common"),
        Some(template) => {
            if !template.address.is_empty() {
                report.warn("spec.template.address", "has no effect: each workload reports its own");
            }
            common(template, "spec.template", report);
        }
    }
    if let Some(metadata) = &spec.metadata {
        report.labels("spec.metadata.labels", &metadata.labels);
        for key in metadata.annotations.keys() {
            if let Some(problem) = label_key_problem(key) {
                report.error(format_args!("spec.metadata.annotations[{key:?}]"), problem);
            }
        }
    }
    if let Some(probe) = &spec.probe {
        check_probe(probe, "spec.probe", report);
    }
}

/// An endpoint: its address and the rest.
pub(super) fn address(entry: &WorkloadEntry, path: &str, report: &mut Report) {
    let address = entry.address.as_str();
    if let Some(socket) = address.strip_prefix("unix://") {
        if !socket.starts_with(['/', '@']) {
            let message = format!("{address:?} must be an absolute path, unix:///path, or unix://@name");
            report.error(format_args!("{path}.address"), message);
        }
        if !entry.ports.is_empty() {
            report.error(format_args!("{path}.ports"), "does not go with a unix socket; remove it");
        }
    } else if address.is_empty() {
        if entry.network.is_empty() {
            let message =
                "is required: an IP address, a DNS name or unix:///path (or network, to be reached by its gateway)";
            report.error(format_args!("{path}.address"), message);
        }
    } else if address.parse::<IpAddr>().is_err()
        && let Some(problem) = host_problem(address, false)
    {
        report.error(format_args!("{path}.address"), problem);
    }
    common(entry, path, report);
}

fn common(entry: &WorkloadEntry, path: &str, report: &mut Report) {
    for (name, port) in &entry.ports {
        let path = format!("{path}.ports.{name}");
        if !is_dns_label(name) {
            report.error(&path, format!("{name:?} must be lower-case letters, digits and dashes"));
        }
        report.port(&path, *port);
    }
    report.labels(format_args!("{path}.labels"), &entry.labels);
    if !entry.locality.is_empty() && entry.locality.split('/').any(|p| p.is_empty() || p.contains('*')) {
        let message = format!("{:?} is not a locality; write region/zone/subzone", entry.locality);
        report.error(format_args!("{path}.locality"), message);
    }
}

/// A probe of readiness.
pub(super) fn check_probe(probe: &ReadinessProbe, path: &str, report: &mut Report) {
    let set = set_of(&[
        ("httpGet", probe.http_get.is_some()),
        ("tcpSocket", probe.tcp_socket.is_some()),
        ("exec", probe.exec.is_some()),
        ("grpc", probe.grpc.is_some()),
    ]);
    match set.len() {
        0 => report.error(path, "has no check; add httpGet, tcpSocket, exec or grpc"),
        1 => {}
        _ => report.error(path, format!("has {}; keep one", set.join(" and "))),
    }
    if let Some(http) = &probe.http_get {
        let path = format!("{path}.httpGet");
        report.port(format_args!("{path}.port"), http.port);
        if !matches!(http.scheme.as_str(), "" | "HTTP" | "HTTPS" | "http" | "https") {
            report.error(format_args!("{path}.scheme"), format!("{:?} must be HTTP or HTTPS", http.scheme));
        }
        if !http.path.is_empty() && !http.path.starts_with('/') {
            report.error(format_args!("{path}.path"), format!("{:?} must begin with /", http.path));
        }
        for (i, header) in http.http_headers.iter().enumerate().filter(|(_, h)| !is_header_name(&h.name)) {
            report.header_name(format_args!("{path}.httpHeaders[{i}].name"), &header.name);
        }
    }
    if let Some(tcp) = &probe.tcp_socket {
        report.port(format_args!("{path}.tcpSocket.port"), tcp.port);
    }
    if let Some(grpc) = &probe.grpc {
        report.port(format_args!("{path}.grpc.port"), grpc.port);
    }
    if probe.exec.as_ref().is_some_and(|e| e.command.is_empty()) {
        report.error(format_args!("{path}.exec.command"), "is required: program and arguments");
    }
}
