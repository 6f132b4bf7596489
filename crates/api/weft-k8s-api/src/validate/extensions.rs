//! Rules for `EnvoyFilter`, `WasmPlugin`, `TrafficExtension` and the kind `ProxyConfig`.

use super::check::set_of;
use super::security::url_problem;
use super::{Report, envoy_patch};
use crate::istio::{
    ApplyTo, EnvValueSource, EnvoyConfigObjectMatch, EnvoyConfigObjectPatch, EnvoyFilter, PatchOperation, ProxyConfig,
    TrafficExtension, TrafficSelector, VmConfig, WasmPlugin,
};
use std::collections::BTreeSet;

pub(super) fn envoy_filter(spec: &EnvoyFilter, report: &mut Report) {
    report.binding(None, None, &spec.target_refs);
    if let Some(selector) = &spec.workload_selector {
        report.selector("spec.workloadSelector.labels", &selector.labels);
        if !spec.target_refs.is_empty() {
            report.error("spec", "has workloadSelector and targetRefs; keep one");
        }
    }
    if spec.config_patches.is_empty() {
        report.warn("spec.configPatches", "is empty: nothing is patched");
    }
    for (i, patch) in spec.config_patches.iter().enumerate() {
        config_patch(patch, &format!("spec.configPatches[{i}]"), report);
    }
    if !report.shape_only {
        patch_values(spec, report);
    }
}

/// Whether the values of the patches are configuration of Envoy's.
pub(super) fn patch_values(spec: &EnvoyFilter, report: &mut Report) {
    if spec.config_patches.is_empty() {
        return;
    }
    // All of them share one decoded schema.
    let _schema = super::envoy_schema();
    for (i, patch) in spec.config_patches.iter().enumerate() {
        envoy_patch::check(patch, &format!("spec.configPatches[{i}]"), report);
    }
}

fn config_patch(patch: &EnvoyConfigObjectPatch, path: &str, report: &mut Report) {
    if patch.apply_to == ApplyTo::Invalid {
        report.error(format_args!("{path}.applyTo"), "is required: what to patch, such as HTTP_FILTER or CLUSTER");
    }
    let Some(change) = &patch.patch else {
        return report.error(format_args!("{path}.patch"), "is required: operation and value");
    };
    let operation = change.operation;
    match (operation, change.value.is_empty()) {
        (PatchOperation::Invalid, _) => {
            report.error(format_args!("{path}.patch.operation"), "is required, such as MERGE, ADD or INSERT_BEFORE");
        }
        (PatchOperation::Remove, false) => {
            report.error(format_args!("{path}.patch.value"), "does not go with REMOVE; remove it");
        }
        (PatchOperation::Remove, true) => {}
        (_, true) => report.error(format_args!("{path}.patch.value"), "is required: Envoy configuration"),
        _ => {}
    }
    let ordered =
        matches!(operation, PatchOperation::InsertBefore | PatchOperation::InsertAfter | PatchOperation::InsertFirst);
    let in_lists = matches!(
        patch.apply_to,
        ApplyTo::NetworkFilter | ApplyTo::HttpFilter | ApplyTo::HttpRoute | ApplyTo::ListenerFilter | ApplyTo::Invalid
    );
    if ordered && !in_lists {
        let message = "INSERT_… goes with NETWORK_FILTER, HTTP_FILTER, LISTENER_FILTER and HTTP_ROUTE only; use ADD";
        report.error(format_args!("{path}.patch.operation"), message);
    }
    if operation == PatchOperation::Add && patch.apply_to == ApplyTo::RouteConfiguration {
        report.error(format_args!("{path}.patch.operation"), "ADD is not supported for ROUTE_CONFIGURATION; use MERGE");
    }
    if let Some(matches) = &patch.matches {
        config_match(patch.apply_to, matches, &format!("{path}.match"), report);
    }
}

fn config_match(apply_to: ApplyTo, matches: &EnvoyConfigObjectMatch, path: &str, report: &mut Report) {
    let set = set_of(&[
        ("listener", matches.listener.is_some()),
        ("routeConfiguration", matches.route_configuration.is_some()),
        ("cluster", matches.cluster.is_some()),
        ("waypoint", matches.waypoint.is_some()),
    ]);
    if set.len() > 1 {
        report.error(path, format!("has {}; keep one", set.join(" and ")));
    }
    let fits: &[&str] = match apply_to {
        ApplyTo::Invalid => return,
        ApplyTo::Listener | ApplyTo::FilterChain | ApplyTo::ListenerFilter => &["listener"],
        ApplyTo::NetworkFilter | ApplyTo::HttpFilter => &["listener", "waypoint"],
        ApplyTo::RouteConfiguration | ApplyTo::VirtualHost => &["routeConfiguration"],
        ApplyTo::HttpRoute => &["routeConfiguration", "waypoint"],
        ApplyTo::Cluster => &["cluster"],
        ApplyTo::ExtensionConfig | ApplyTo::Bootstrap => &[],
    };
    for name in set.iter().filter(|name| !fits.contains(name)) {
        let remedy = if fits.is_empty() { "remove it".to_string() } else { format!("use {}", fits.join(" or ")) };
        report.error(format_args!("{path}.{name}"), format!("does not go with this applyTo; {remedy}"));
    }
    if let Some(proxy) = matches.proxy.as_ref().filter(|p| !p.proxy_version.is_empty()) {
        report.regex(format_args!("{path}.proxy.proxyVersion"), &proxy.proxy_version);
    }
    let Some(listener) = &matches.listener else { return };
    report.optional_port(format_args!("{path}.listener.portNumber"), listener.port_number);
    if let Some(filter) = listener.filter_chain.as_ref().and_then(|c| c.filter.as_ref()) {
        let path = format!("{path}.listener.filterChain.filter");
        if !matches!(apply_to, ApplyTo::NetworkFilter | ApplyTo::HttpFilter) {
            report.error(&path, "goes with applyTo NETWORK_FILTER and HTTP_FILTER only");
        }
        if filter.name.is_empty() {
            report.error(format_args!("{path}.name"), "is required: the name of the network filter");
        }
        if filter.sub_filter.is_some() && apply_to != ApplyTo::HttpFilter {
            report.error(format_args!("{path}.subFilter"), "goes with applyTo HTTP_FILTER only");
        }
    }
}

pub(super) fn wasm_plugin(spec: &WasmPlugin, report: &mut Report) {
    report.binding(spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    wasm_module(&spec.url, &spec.sha256, spec.vm_config.as_ref(), "spec", report);
    traffic(&spec.matches, report);
}

pub(super) fn traffic_extension(spec: &TrafficExtension, report: &mut Report) {
    report.binding(spec.selector.as_ref(), None, &spec.target_refs);
    match (&spec.wasm, &spec.lua) {
        (None, None) => report.error("spec", "has no filter; add wasm or lua"),
        (Some(_), Some(_)) => report.error("spec", "has wasm and lua; keep one"),
        _ => {}
    }
    if let Some(wasm) = &spec.wasm {
        wasm_module(&wasm.url, &wasm.sha256, wasm.vm_config.as_ref(), "spec.wasm", report);
    }
    if let Some(lua) = &spec.lua {
        report.required("spec.lua.inlineCode", &lua.inline_code, "the script");
        if lua.inline_code.len() > 65536 {
            report.error("spec.lua.inlineCode", "is longer than 65536 bytes");
        }
    }
    traffic(&spec.matches, report);
}

fn wasm_module(url: &str, sha256: &str, vm: Option<&VmConfig>, path: &str, report: &mut Report) {
    if report.required(format_args!("{path}.url"), url, "where the module is, such as oci://registry/image:tag") {
        let with_scheme = if url.contains("://") { url.to_string() } else { format!("oci://{url}") };
        let local = url.strip_prefix("file://").is_some_and(|p| p.starts_with('/'));
        if !local && let Some(problem) = url_problem(&with_scheme, &["oci", "https", "http", "file"]) {
            report.error(format_args!("{path}.url"), problem);
        }
    }
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if !sha256.is_empty() && (sha256.len() != 64 || !sha256.bytes().all(lower_hex)) {
        report.error(format_args!("{path}.sha256"), "must be 64 hexadecimal digits in lower case");
    }
    let mut seen = BTreeSet::new();
    for (i, env) in vm.iter().flat_map(|vm| &vm.env).enumerate() {
        let path = format!("{path}.vmConfig.env[{i}]");
        report.required(format_args!("{path}.name"), &env.name, "the variable's name");
        if !seen.insert(&env.name) {
            report.error(format_args!("{path}.name"), format!("{:?} is there twice", env.name));
        }
        if env.value_from == EnvValueSource::Host && !env.value.is_empty() {
            report.error(format_args!("{path}.value"), "does not go with valueFrom HOST; remove it");
        }
    }
}

fn traffic(matches: &[TrafficSelector], report: &mut Report) {
    for (i, selector) in matches.iter().enumerate() {
        for (j, port) in selector.ports.iter().enumerate() {
            report.port(format_args!("spec.match[{i}].ports[{j}].number"), port.number);
        }
    }
}

pub(super) fn proxy_config(spec: &ProxyConfig, report: &mut Report) {
    report.binding(spec.selector.as_ref(), None, &[]);
    if spec.concurrency.is_some_and(|c| c < 0) {
        report.error("spec.concurrency", "is below 0; 0 means one worker per core");
    }
    for name in spec.environment_variables.keys().filter(|n| n.is_empty() || n.contains('=')) {
        report.error("spec.environmentVariables", format!("{name:?} is not the name of a variable"));
    }
}
