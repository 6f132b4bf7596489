//! The annotations that a pod may ask with, each with what it may say. Source: Istio's annotation reference
//! (istio.io/latest/docs/reference/config/annotations).

use crate::inject::Refusal;
use ipnet::IpNet;
use serde_json::Value;
use weft_core::well_known::annotation;

/// Name of the proxy's container.
pub(crate) const PROXY: &str = "istio-proxy";
/// Name of the container that sets up redirection.
pub(crate) const INIT: &str = "istio-init";
/// Name of the container that checks the redirection that somebody else has set up.
pub(crate) const VALIDATION: &str = "istio-validation";

pub(crate) const STATUS: &str = "sidecar.istio.io/status";
pub(crate) const OVERRIDES: &str = "proxy.istio.io/overrides";
pub(crate) const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
pub(crate) const NATIVE: &str = "sidecar.istio.io/nativeSidecar";
pub(crate) const REWRITE_PROBES: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
pub(crate) const STATUS_PORT: &str = "status.sidecar.istio.io/port";
pub(crate) const MERGE_METRICS: &str = "prometheus.istio.io/merge-metrics";
pub(crate) const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
pub(crate) const REROUTED: [&str; 2] =
    ["istio.io/reroute-virtual-interfaces", "traffic.sidecar.istio.io/kubevirtInterfaces"];

type Check = fn(&str) -> Result<(), String>;

const CHECKS: &[(&str, Check)] = &[
    (INTERCEPTION_MODE, interception_mode),
    (STATUS_PORT, |text| port("statusPort", text)),
    ("readiness.status.sidecar.istio.io/initialDelaySeconds", whole_number),
    ("readiness.status.sidecar.istio.io/periodSeconds", whole_number),
    ("readiness.status.sidecar.istio.io/failureThreshold", whole_number),
    (annotation::INCLUDE_OUTBOUND_RANGES, |text| ranges("includeIPRanges", text, true)),
    (annotation::EXCLUDE_OUTBOUND_RANGES, |text| ranges("excludeIPRanges", text, false)),
    (annotation::INCLUDE_INBOUND_PORTS, |text| ports("includeInboundPorts", text, true)),
    (annotation::EXCLUDE_INBOUND_PORTS, |text| ports("excludeInboundPorts", text, false)),
    (annotation::INCLUDE_OUTBOUND_PORTS, |text| ports("includeOutboundPorts", text, false)),
    (annotation::EXCLUDE_OUTBOUND_PORTS, |text| ports("excludeOutboundPorts", text, false)),
    (EXCLUDE_INTERFACES, interfaces),
    (REROUTED[0], interfaces),
    (REROUTED[1], interfaces),
    (MERGE_METRICS, boolean),
    (annotation::ON_DEMAND, true_or_false),
    ("sidecar.istio.io/proxyCPU", quantity),
    ("sidecar.istio.io/proxyMemory", quantity),
    ("sidecar.istio.io/proxyCPULimit", quantity),
    ("sidecar.istio.io/proxyMemoryLimit", quantity),
];

/// Checks all annotations of a pod.
///
/// # Errors
/// The first that cannot be followed.
pub(crate) fn check(pod: &Value) -> Result<(), Refusal> {
    for (name, check) in CHECKS {
        let Some(value) = pod["metadata"]["annotations"][*name].as_str() else { continue };
        check(value).map_err(|message| Refusal::annotation(name, message))?;
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

fn interception_mode(text: &str) -> Result<(), String> {
    match text {
        "REDIRECT" | "TPROXY" | "NONE" => Ok(()),
        _ => Err(format!("interceptionMode invalid: {:?}; use REDIRECT, TPROXY or NONE", shortened(text))),
    }
}

fn whole_number(text: &str) -> Result<(), String> {
    text.parse::<u32>().map(drop).map_err(|_| format!("{:?} is not a number of 0 or more", shortened(text)))
}

fn boolean(text: &str) -> Result<(), String> {
    as_bool(text).map(drop).ok_or_else(|| format!("{:?} is neither true nor false", shortened(text)))
}

fn true_or_false(text: &str) -> Result<(), String> {
    match text {
        "true" | "false" => Ok(()),
        _ => Err(format!("{:?} must be true or false", shortened(text))),
    }
}

/// What counts as a boolean in Istio's annotations and variables (Go's `strconv.ParseBool`).
pub fn as_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn port(parameter: &str, text: &str) -> Result<(), String> {
    let wrong = || format!("{parameter} invalid: {:?} is not a port; write a number up to 65535", shortened(text));
    text.trim().parse::<u16>().map(drop).map_err(|_| wrong())
}

fn ports(parameter: &str, text: &str, star: bool) -> Result<(), String> {
    if (star && text == "*") || text.trim().is_empty() {
        return Ok(());
    }
    let parts: Vec<&str> = text.split(',').collect();
    // A trailing comma is in use out there.
    let parts =
        if parts.last().is_some_and(|last| last.trim().is_empty()) { &parts[..parts.len() - 1] } else { &parts[..] };
    parts.iter().try_for_each(|part| port(parameter, part)).map_err(|message| format!("{message}s, comma-separated"))
}

fn ranges(parameter: &str, text: &str, star: bool) -> Result<(), String> {
    if (star && text == "*") || text.is_empty() {
        return Ok(());
    }
    let wrong = |part: &str| {
        format!(
            "{parameter} invalid: {:?} is not an IP range; write ranges such as 10.0.0.0/8, comma-separated",
            shortened(part)
        )
    };
    text.split(',').try_for_each(|part| part.trim().parse::<IpNet>().map(drop).map_err(|_| wrong(part)))
}

/// Linux: at most 15 bytes, no slash, no blank.
fn interfaces(text: &str) -> Result<(), String> {
    let fine = |name: &str| {
        !name.is_empty()
            && name.len() <= 15
            && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control())
    };
    match text.split(',').map(str::trim).find(|name| !text.is_empty() && !fine(name)) {
        Some(name) => {
            Err(format!("{:?} is not the name of a network interface; write names, comma-separated", shortened(name)))
        }
        None => Ok(()),
    }
}

/// Kubernetes' quantities: a number with an optional exponent or suffix.
fn quantity(text: &str) -> Result<(), String> {
    const SUFFIXES: [&str; 17] =
        ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e0"];
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|e| e.parse::<i32>().is_ok());
    let number = number.bytes().any(|b| b.is_ascii_digit()) && number.matches('.').count() <= 1;
    if number && (SUFFIXES.contains(&suffix) || exponent) {
        return Ok(());
    }
    Err(format!("{:?} is not a quantity; write such as 100m, 0.5 or 128Mi", shortened(text)))
}
