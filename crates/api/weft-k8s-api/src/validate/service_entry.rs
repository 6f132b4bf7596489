//! Rules for `ServiceEntry`.

use super::Report;
use super::check::{PROTOCOLS, is_dns_label, is_protocol};
use super::workload;
use crate::istio::{ServiceEntry, ServiceEntryLocation, ServiceEntryPort, ServiceEntryResolution as Resolution};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(super) fn check(spec: &ServiceEntry, report: &mut Report) {
    hosts(spec, report);
    addresses(spec, report);
    ports(spec, report);
    endpoints(spec, report);
    report.export_to("spec.exportTo", &spec.export_to);
    report.no_empty("spec.subjectAltNames", &spec.subject_alt_names);
    if let Some(selector) = &spec.workload_selector {
        report.selector("spec.workloadSelector.labels", &selector.labels);
        if selector.labels.is_empty() {
            report.error("spec.workloadSelector.labels", "is empty; name the labels of the workloads");
        }
        if !spec.endpoints.is_empty() {
            report.error("spec", "has workloadSelector and endpoints; keep one");
        }
    }
}

fn hosts(spec: &ServiceEntry, report: &mut Report) {
    if spec.hosts.is_empty() {
        report.error("spec.hosts", "is required: the names of the service");
    }
    let mut seen = BTreeSet::new();
    for (i, host) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{i}]");
        report.host_or_ip(&path, host, true);
        if host == "*" {
            report.error(&path, "the host * is not allowed; name the service, or use *.example.com");
        }
        if !seen.insert(host.to_ascii_lowercase()) {
            report.error(&path, format!("{host:?} is there twice; remove one"));
        }
        let wildcard = host.starts_with('*');
        match spec.resolution {
            Resolution::Dns | Resolution::DnsRoundRobin if wildcard && spec.endpoints.is_empty() => {
                let remedy = "name endpoints, or use resolution NONE or DYNAMIC_DNS";
                report.error(&path, format!("{host:?} cannot be resolved by DNS; {remedy}"));
            }
            Resolution::DynamicDns if !wildcard => {
                report.error(&path, format!("{host:?} has no wildcard, as DYNAMIC_DNS needs; use resolution DNS"));
            }
            _ => {}
        }
    }
}

fn addresses(spec: &ServiceEntry, report: &mut Report) {
    for (i, address) in spec.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{i}]");
        let Some(net) = report.cidr(&path, address) else { continue };
        let single = net.prefix_len() == net.max_prefix_len();
        if !single && !matches!(spec.resolution, Resolution::None | Resolution::Static) {
            report.error(&path, format!("{address:?} is a range, which goes with resolution NONE and STATIC only"));
        }
    }
    let tcp = |p: &ServiceEntryPort| matches!(p.protocol.to_ascii_uppercase().as_str(), "TCP" | "");
    if spec.addresses.is_empty() && spec.resolution == Resolution::None && spec.ports.iter().any(tcp) {
        let message = "is empty: without addresses a TCP port takes the traffic of every service on that port";
        report.warn("spec.addresses", message);
    }
}

fn ports(spec: &ServiceEntry, report: &mut Report) {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        report.port(format_args!("{path}.number"), port.number);
        report.optional_port(format_args!("{path}.targetPort"), port.target_port);
        if report.required(format_args!("{path}.name"), &port.name, "a name, such as https") {
            if !is_dns_label(&port.name) {
                let message = format!("{:?} must be lower-case letters, digits and dashes", port.name);
                report.error(format_args!("{path}.name"), message);
            }
            if !names.insert(&port.name) {
                report.error(format_args!("{path}.name"), format!("{:?} is there twice; rename one", port.name));
            }
        }
        if !numbers.insert(port.number) {
            report.error(format_args!("{path}.number"), format!("{} is there twice; remove one", port.number));
        }
        if !port.protocol.is_empty() && !is_protocol(&port.protocol) {
            let message = format!("{:?} is not known; use one of {}", port.protocol, PROTOCOLS.join(", "));
            report.error(format_args!("{path}.protocol"), message);
        }
        if port.target_port != 0 && spec.resolution == Resolution::None {
            report.warn(format_args!("{path}.targetPort"), "has no effect with resolution NONE");
        }
    }
    if spec.ports.is_empty() {
        report.warn("spec.ports", "is empty: the service cannot be called");
    }
}

fn endpoints(spec: &ServiceEntry, report: &mut Report) {
    match spec.resolution {
        Resolution::None | Resolution::DynamicDns if !spec.endpoints.is_empty() => {
            report.error("spec.endpoints", "does not go with this resolution; use STATIC or DNS");
        }
        Resolution::Static if spec.endpoints.is_empty() && spec.workload_selector.is_none() => {
            report.warn("spec.endpoints", "is empty: nothing answers; add endpoints or workloadSelector");
        }
        Resolution::DnsRoundRobin if spec.endpoints.len() > 1 => {
            report.error("spec.endpoints", "has more than one item, which DNS_ROUND_ROBIN does not support; use DNS");
        }
        _ => {}
    }
    if spec.resolution == Resolution::DynamicDns && spec.location == ServiceEntryLocation::MeshInternal {
        report.error("spec.location", "must be MESH_EXTERNAL with resolution DYNAMIC_DNS");
    }
    for (i, endpoint) in spec.endpoints.iter().enumerate() {
        let path = format!("spec.endpoints[{i}]");
        workload::address(endpoint, &path, report);
        let (unix, ip) = (endpoint.address.starts_with("unix://"), endpoint.address.parse::<IpAddr>().is_ok());
        if spec.resolution == Resolution::Static && !unix && !ip && !endpoint.address.is_empty() {
            let message = format!("{:?} is a name, but resolution is STATIC; use DNS", endpoint.address);
            report.error(format_args!("{path}.address"), message);
        }
        if matches!(spec.resolution, Resolution::Dns | Resolution::DnsRoundRobin) && unix {
            report.error(format_args!("{path}.address"), "a socket cannot be resolved by DNS; use STATIC");
        }
        if unix && spec.ports.len() != 1 {
            report.error(format_args!("{path}.address"), "a socket serves exactly one of spec.ports");
        }
        for name in endpoint.ports.keys().filter(|n| !spec.ports.iter().any(|p| p.name == **n)) {
            report.error(format_args!("{path}.ports.{name}"), "is not the name of one of spec.ports");
        }
    }
}
