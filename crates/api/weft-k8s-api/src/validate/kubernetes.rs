//! Rules for Kubernetes' own kinds, as far as the lab and the model rely on them: shapes, names, ports, selectors.

use super::Report;
use super::check::{Labels, is_dns_label, is_dns_subdomain, label_key_problem};
use super::mesh_config;
use crate::de::Dialect;
use crate::kinds;
use crate::object::Object;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, PersistentVolumeClaim, Pod, PodSpec, PodTemplateSpec, Secret, Service,
    ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeSet;

/// Name, namespace, labels and annotations of any object.
pub(super) fn metadata(object: &Object, report: &mut Report) {
    let name = object.name();
    let label_named = matches!(object.kind.as_str(), "Namespace" | "Service");
    if name.is_empty() && object.metadata.generate_name.is_none() {
        report.error("metadata.name", "is required");
    } else if object.group() == "rbac.authorization.k8s.io" {
        // Their names may be anything that is one segment of a path, such as `system:node`.
        if name.contains(['/', '%']) || matches!(name, "." | "..") {
            report.error("metadata.name", format!("{name:?} is not a name; use no '/' and no '%'"));
        }
    } else if !name.is_empty() && !(if label_named { is_dns_label(name) } else { is_dns_subdomain(name) }) {
        let dots = if label_named { "" } else { ", dots" };
        let remedy = format!("use lower-case letters, digits, dashes{dots}, and begin and end with a letter or digit");
        report.error("metadata.name", format!("{name:?} is not a name; {remedy}"));
    }
    let namespace = object.namespace();
    if !namespace.is_empty() && !is_dns_label(namespace) {
        report.error("metadata.namespace", format!("{namespace:?} is not a namespace"));
    }
    if let Some(labels) = &object.metadata.labels {
        report.labels("metadata.labels", labels);
    }
    for key in object.metadata.annotations.iter().flat_map(|a| a.keys()) {
        if let Some(problem) = label_key_problem(&key.to_ascii_lowercase()) {
            report.error(format_args!("metadata.annotations[{key:?}]"), problem);
        }
    }
    proxy_annotation(object, "metadata", report);
}

/// `proxy.istio.io/config` of a pod or its template.
fn proxy_annotation(object: &Object, path: &str, report: &mut Report) {
    if let Some(text) = object.annotation("proxy.istio.io/config") {
        proxy_config_text(text, path, report);
    }
}

fn proxy_config_text(text: &str, path: &str, report: &mut Report) {
    let mut unknown = Vec::new();
    let path = format!("{path}.annotations[\"proxy.istio.io/config\"]");
    if let Err(problem) = mesh_config::parse_proxy_config(text, &mut unknown) {
        report.error(&path, problem);
    }
    for field in unknown {
        report.warn(&path, format!("{} is not a field of the proxy config", field.path));
    }
}

/// The kinds whose rules are known here; others pass.
pub(super) fn kind(object: &Object, report: &mut Report) {
    let group = object.group();
    if let Some(info) = kinds::by_kind(group, &object.kind)
        && !info.versions.contains(&object.version())
    {
        let served: Vec<_> = info.versions.iter().map(|v| kinds::api_version(info.group, v)).collect();
        report.error("apiVersion", format!("{:?} is not served; use {}", object.api_version, served.join(" or ")));
        return;
    }
    match (group, object.kind.as_str()) {
        ("", "Service") => typed(object, report, service),
        ("", "Pod") => typed(object, report, pod),
        ("", "ConfigMap") => typed(object, report, config_map),
        ("", "Namespace") => typed::<Namespace>(object, report, |_, _| ()),
        ("", "Secret") => typed::<Secret>(object, report, |_, _| ()),
        ("", "ServiceAccount") => typed::<ServiceAccount>(object, report, |_, _| ()),
        ("", "Endpoints") => typed::<Endpoints>(object, report, |_, _| ()),
        ("", "PersistentVolumeClaim") => typed::<PersistentVolumeClaim>(object, report, |_, _| ()),
        ("apps", "Deployment") => typed(object, report, |d: &Deployment, r| {
            workload(&d.spec.selector, Some(&d.spec.template), r);
        }),
        ("apps", "ReplicaSet") => typed(object, report, |d: &ReplicaSet, r| {
            workload(&d.spec.selector, d.spec.template.as_ref(), r);
        }),
        ("apps", "StatefulSet") => typed(object, report, |d: &StatefulSet, r| {
            workload(&d.spec.selector, Some(&d.spec.template), r);
        }),
        ("apps", "DaemonSet") => typed(object, report, |d: &DaemonSet, r| {
            workload(&d.spec.selector, Some(&d.spec.template), r);
        }),
        ("batch", "Job") => typed(object, report, |job: &Job, r| match &job.spec {
            Some(spec) => template(&spec.template, "spec.template", r),
            None => r.error("spec", "is required: the template of the pod to run"),
        }),
        ("batch", "CronJob") => typed::<CronJob>(object, report, |_, _| ()),
        ("discovery.k8s.io", "EndpointSlice") => typed::<EndpointSlice>(object, report, |_, _| ()),
        ("networking.k8s.io", "Ingress" | "IngressClass") => super::gateway_api::kind(object, &object.kind, report),
        _ => {}
    }
}

fn typed<T: serde::de::DeserializeOwned>(object: &Object, report: &mut Report, check: fn(&T, &mut Report)) {
    if let Some(typed) = report.read(&object.to_value(), "", Dialect::Kubernetes) {
        check(&typed, report);
    }
}

fn service(service: &Service, report: &mut Report) {
    let Some(spec) = &service.spec else { return report.error("spec", "is required: ports and selector") };
    let external = spec.type_.as_deref() == Some("ExternalName");
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let ports = spec.ports.as_deref().unwrap_or_default();
    if external && spec.external_name.as_deref().unwrap_or_default().is_empty() {
        report.error("spec.externalName", "is required for the type ExternalName");
    }
    if ports.is_empty() && !external && !headless {
        report.error("spec.ports", "is required: at least one port");
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        report.port(format_args!("{path}.port"), u32::try_from(port.port).unwrap_or(0));
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            report.error(format_args!("{path}.name"), "is required when a service has several ports");
        } else if !name.is_empty() && !is_dns_label(name) {
            report
                .error(format_args!("{path}.name"), format!("{name:?} must be lower-case letters, digits and dashes"));
        } else if !names.insert(name) {
            report.error(format_args!("{path}.name"), format!("{name:?} is there twice; rename one"));
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            let remedy = "use TCP, UDP or SCTP; what is spoken inside is told by appProtocol or the port's name";
            report.error(format_args!("{path}.protocol"), format!("{protocol:?} is not known; {remedy}"));
        }
        if !numbers.insert((port.port, protocol)) {
            report.error(format_args!("{path}.port"), format!("{} is there twice; remove one", port.port));
        }
    }
    if let Some(selector) = &spec.selector {
        report.labels("spec.selector", selector);
    }
}

fn pod(pod: &Pod, report: &mut Report) {
    match &pod.spec {
        Some(spec) => pod_spec(spec, "spec", report),
        None => report.error("spec", "is required: the containers of the pod"),
    }
}

fn workload(selector: &LabelSelector, pod: Option<&PodTemplateSpec>, report: &mut Report) {
    let wanted = selector.match_labels.clone().unwrap_or_default();
    if wanted.is_empty() && selector.match_expressions.is_none() {
        report.error("spec.selector", "is required: matchLabels that the template's labels have");
    }
    let Some(pod) = pod else { return };
    let labels: Labels = pod.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    for (key, value) in wanted.iter().filter(|(k, v)| labels.get(*k) != Some(*v)) {
        let message = format!("{key}: {value} is not among spec.template.metadata.labels; make them equal");
        report.error("spec.selector.matchLabels", message);
    }
    template(pod, "spec.template", report);
}

fn template(pod: &PodTemplateSpec, path: &str, report: &mut Report) {
    if let Some(metadata) = &pod.metadata {
        if let Some(labels) = &metadata.labels {
            report.labels(format_args!("{path}.metadata.labels"), labels);
        }
        if let Some(text) = metadata.annotations.as_ref().and_then(|a| a.get("proxy.istio.io/config")) {
            proxy_config_text(text, &format!("{path}.metadata"), report);
        }
    }
    match &pod.spec {
        Some(spec) => pod_spec(spec, &format!("{path}.spec"), report),
        None => report.error(format_args!("{path}.spec"), "is required: the containers of the pod"),
    }
}

fn pod_spec(spec: &PodSpec, path: &str, report: &mut Report) {
    if spec.containers.is_empty() {
        report.error(format_args!("{path}.containers"), "is required: at least one container");
    }
    let volumes: BTreeSet<_> = spec.volumes.iter().flatten().map(|v| v.name.as_str()).collect();
    let mut names = BTreeSet::new();
    for (list, containers) in
        [("initContainers", spec.init_containers.as_deref().unwrap_or_default()), ("containers", &spec.containers)]
    {
        for (i, container) in containers.iter().enumerate() {
            let path = format!("{path}.{list}[{i}]");
            if !is_dns_label(&container.name) {
                let message = format!("{:?} must be lower-case letters, digits and dashes", container.name);
                report.error(format_args!("{path}.name"), message);
            } else if !names.insert(container.name.as_str()) {
                report.error(format_args!("{path}.name"), format!("{:?} is there twice", container.name));
            }
            // The injector fills in `auto`; an empty image is what it replaces.
            if container.image.as_deref().unwrap_or_default().is_empty() && container.name != "istio-proxy" {
                report.error(format_args!("{path}.image"), "is required");
            }
            for (j, port) in container.ports.iter().flatten().enumerate() {
                let number = u32::try_from(port.container_port).unwrap_or(0);
                report.port(format_args!("{path}.ports[{j}].containerPort"), number);
            }
            for (j, mount) in container.volume_mounts.iter().flatten().enumerate() {
                if !volumes.contains(mount.name.as_str()) {
                    let message = format!("{:?} is not one of {path}.volumes of the pod", mount.name);
                    report.error(format_args!("{path}.volumeMounts[{j}].name"), message);
                }
            }
        }
    }
}

/// The config map `istio` (or `istio-<revision>`) holds the mesh config.
fn config_map(map: &ConfigMap, report: &mut Report) {
    let name = map.metadata.name.as_deref().unwrap_or_default();
    if name != "istio" && !name.starts_with("istio-") {
        return;
    }
    let Some(text) = map.data.as_ref().and_then(|d| d.get("mesh")) else { return };
    let mut unknown = Vec::new();
    match mesh_config::parse_mesh_config(text, &mut unknown) {
        Ok(config) => mesh_config::check(&config, "data.mesh: ", report),
        Err(problem) => report.error("data.mesh", problem),
    }
    for mut field in unknown {
        field.path = format!("data.mesh: {}", field.path);
        report.unknown_field(field);
    }
}
