//! Rules that many kinds share: names, hosts, ports, labels, addresses, times.

use super::Report;
use super::re2::check_re2;
use crate::istio::{Duration, Percent, PolicySelector, PolicyTargetReference, StringMatch};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::IpAddr;
use std::time;

/// Labels of an object or a selector.
pub(super) type Labels = BTreeMap<String, String>;

/// RFC 1123 label: lower-case letters, digits, `-`; at most 63.
pub(super) fn is_dns_label(text: &str) -> bool {
    is_label(text) && !text.bytes().any(|b| b.is_ascii_uppercase())
}

/// As a DNS label, capitals allowed: DNS names are compared without regard to case.
fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    (1..=63).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
}

/// RFC 1123 subdomain: labels joined by dots; at most 253.
pub(super) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// What is wrong with a host name, if anything.
pub(super) fn host_problem(host: &str, wildcard: bool) -> Option<String> {
    if host.is_empty() {
        return Some("is empty; name a host, such as reviews or reviews.default.svc.cluster.local".into());
    }
    if host.len() > 255 {
        return Some("is longer than 255 characters".into());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let rest = match name.strip_prefix('*') {
        Some(_) if !wildcard => {
            return Some(format!("{host:?} has a wildcard, which is not allowed here; write the full name"));
        }
        Some("") => return None,
        Some(rest) => rest.strip_prefix(['.', '-']).unwrap_or(rest),
        None => name,
    };
    if let Some(label) = rest.split('.').find(|l| !is_label(l) && !is_underscore_label(l)) {
        let hint = if label.contains('*') { "; a * may only be the first label" } else { "" };
        return Some(format!(
            "{host:?} is not a host name: {label:?} must consist of letters, digits and dashes (at most 63){hint}"
        ));
    }
    let last = rest.rsplit('.').next().unwrap_or_default();
    if rest.contains('.') && last.bytes().all(|b| b.is_ascii_digit()) {
        return Some(format!("{host:?} is not a host name: its last label is a number"));
    }
    None
}

/// Names outside of Kubernetes have underscores now and then.
fn is_underscore_label(label: &str) -> bool {
    label.contains('_') && is_label(&label.replace('_', "0"))
}

/// A header name: a token of RFC 9110 §5.6.2.
pub(super) fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

impl Report {
    /// A host name, with or without wildcard.
    pub(super) fn host(&mut self, path: impl Display, host: &str, wildcard: bool) {
        if let Some(problem) = host_problem(host, wildcard) {
            self.error(path, problem);
        }
    }

    /// A host name or an address.
    pub(super) fn host_or_ip(&mut self, path: impl Display, host: &str, wildcard: bool) {
        if host.parse::<IpAddr>().is_err() {
            self.host(path, host, wildcard);
        }
    }

    /// A port number that must be there.
    pub(super) fn port(&mut self, path: impl Display, port: u32) {
        if !(1..=65535).contains(&port) {
            self.error(path, format!("{port} is not a port; it must be between 1 and 65535"));
        }
    }

    /// A port number; 0 = not set.
    pub(super) fn optional_port(&mut self, path: impl Display, port: u32) {
        if port != 0 {
            self.port(path, port);
        }
    }

    /// Text that must not be empty.
    pub(super) fn required(&mut self, path: impl Display, text: &str, what: &str) -> bool {
        if text.is_empty() {
            self.error(path, format!("is required: {what}"));
        }
        !text.is_empty()
    }

    /// A list without empty strings.
    pub(super) fn no_empty(&mut self, path: impl Display, list: &[String]) {
        for (i, _) in list.iter().enumerate().filter(|(_, text)| text.is_empty()) {
            self.error(format_args!("{path}[{i}]"), "is empty; give a value or remove the item");
        }
    }

    /// A time of at least a millisecond.
    pub(super) fn duration(&mut self, path: impl Display, duration: Option<Duration>) {
        if duration.is_some_and(|d| d.get() < time::Duration::from_millis(1)) {
            self.error(path, "is shorter than 1ms; give at least 1ms, or leave the field out");
        }
    }

    /// A time of at least a millisecond, or `0s` to turn it off.
    pub(super) fn duration_or_zero(&mut self, path: impl Display, duration: Option<Duration>) {
        self.duration(path, duration.filter(|d| !d.get().is_zero()));
    }

    /// A share of 100.
    pub(super) fn percent(&mut self, path: impl Display, percent: f64) {
        if !(0.0..=100.0).contains(&percent) {
            self.error(path, format!("{percent} is not a percentage; it must be between 0 and 100"));
        }
    }

    /// A share of 100.
    pub(super) fn percentage(&mut self, path: impl Display, percentage: Option<&Percent>) {
        if let Some(percentage) = percentage {
            self.percent(format_args!("{path}.value"), percentage.value);
            if percentage.value > 0.0 && percentage.value < 0.0001 {
                self.error(format_args!("{path}.value"), "is too small; the least is 0.0001");
            }
        }
    }

    /// A regular expression.
    pub(super) fn regex(&mut self, path: impl Display, expression: &str) {
        if let Err(problem) = check_re2(expression) {
            self.error(path, problem);
        }
    }

    /// A match of a string.
    pub(super) fn string_match(&mut self, path: impl Display, string_match: &StringMatch) {
        match string_match {
            StringMatch::Regex(expression) => self.regex(format_args!("{path}.regex"), expression),
            StringMatch::Prefix(prefix) if prefix.is_empty() => {
                self.error(format_args!("{path}.prefix"), "is empty; give a prefix or remove the match");
            }
            _ => {}
        }
    }

    /// Labels of Kubernetes objects.
    pub(super) fn labels(&mut self, path: impl Display, labels: &Labels) {
        for (key, value) in labels {
            if let Some(problem) = label_key_problem(key) {
                self.error(format_args!("{path}[{key:?}]"), problem);
            }
            if !is_label_value(value) {
                let remedy =
                    "it must be at most 63 letters, digits, '-', '_' and '.', and begin and end with a letter or digit";
                self.error(format_args!("{path}[{key:?}]"), format!("{value:?} is not a label value; {remedy}"));
            }
        }
    }

    /// A selector: labels without wildcards.
    pub(super) fn selector(&mut self, path: impl Display, labels: &Labels) {
        for (key, value) in labels {
            if key.is_empty() || key.contains('*') || value.contains('*') {
                let problem = "wildcards are not supported in selectors; write the label out";
                self.error(format_args!("{path}[{key:?}]"), problem);
                return;
            }
        }
        self.labels(path, labels);
    }

    /// What binds a policy: a selector or references, not both.
    pub(super) fn binding(
        &mut self,
        selector: Option<&PolicySelector>,
        target_ref: Option<&PolicyTargetReference>,
        target_refs: &[PolicyTargetReference],
    ) {
        if let Some(selector) = selector {
            self.selector("spec.selector.matchLabels", &selector.match_labels);
        }
        let set = [selector.is_some(), target_ref.is_some(), !target_refs.is_empty()];
        if set.iter().filter(|s| **s).count() > 1 {
            self.error("spec", "has more than one of selector, targetRef and targetRefs; keep one");
        }
        if let Some(target) = target_ref {
            self.target("spec.targetRef", target);
        }
        for (i, target) in target_refs.iter().enumerate() {
            self.target(&format!("spec.targetRefs[{i}]"), target);
        }
        if target_refs.len() > 16 {
            self.error("spec.targetRefs", "has more than 16 items; split the policy");
        }
    }

    fn target(&mut self, path: &str, target: &PolicyTargetReference) {
        const KINDS: [(&str, &str); 4] = [
            ("", "Service"),
            ("networking.istio.io", "ServiceEntry"),
            ("gateway.networking.k8s.io", "Gateway"),
            ("gateway.networking.k8s.io", "GatewayClass"),
        ];
        self.required(format_args!("{path}.name"), &target.name, "the name of the object");
        let group = if target.group == "core" { "" } else { &target.group };
        if !KINDS.contains(&(group, &target.kind)) {
            let kinds: Vec<String> =
                KINDS.iter().map(|(g, k)| if g.is_empty() { (*k).into() } else { format!("{k}.{g}") }).collect();
            let message = format!("{:?} of group {group:?} is not supported; use {}", target.kind, kinds.join(", "));
            self.error(format_args!("{path}.kind"), message);
        }
        let own = self.object.namespace.clone();
        if !target.namespace.is_empty() && target.namespace != own {
            let message = format!("{:?} is another namespace; a policy binds objects of its own", target.namespace);
            self.error(format_args!("{path}.namespace"), message);
        }
    }

    /// Namespaces an object is exported to.
    pub(super) fn export_to(&mut self, path: &str, list: &[String]) {
        let mut seen = BTreeSet::new();
        for (i, namespace) in list.iter().enumerate() {
            let at = format!("{path}[{i}]");
            if !seen.insert(namespace) {
                self.error(&at, format!("{namespace:?} is there twice; remove one"));
            }
            if !matches!(namespace.as_str(), "." | "*" | "~") && !is_dns_label(namespace) {
                self.error(&at, format!("{namespace:?} is not a namespace; use a name, . (own) or * (all)"));
            }
        }
        if list.len() > 1 && (list.iter().any(|n| n == "*" || n == "~")) {
            self.error(path, "has * or ~ beside other namespaces; keep it alone");
        }
    }

    /// An address or a CIDR.
    pub(super) fn cidr(&mut self, path: impl Display, text: &str) -> Option<IpNet> {
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        if net.is_none() {
            self.error(path, format!("{text:?} is not an address; write 10.1.2.3, 10.1.0.0/16 or their IPv6 forms"));
        }
        net
    }

    /// `name` or `namespace/name` of a gateway, or `mesh`.
    pub(super) fn gateway_names(&mut self, path: &str, names: &[String]) {
        for (i, name) in names.iter().enumerate() {
            let (namespace, short) = name.split_once('/').unwrap_or(("default", name));
            let namespace_ok = namespace == "." || is_dns_label(namespace);
            // Older documents write `gateway.namespace.svc.cluster.local`.
            if !namespace_ok || !is_dns_subdomain(short) {
                let remedy = "write mesh, the name of a gateway, or namespace/name";
                self.error(format_args!("{path}[{i}]"), format!("{name:?} is not a gateway; {remedy}"));
            }
        }
    }

    /// A locality `region/zone/subzone`; `*` may be its last part.
    pub(super) fn locality(&mut self, path: impl Display, locality: &str) -> bool {
        let parts: Vec<_> = locality.split('/').collect();
        let star = parts.iter().position(|p| p.contains('*'));
        let star_ok = star.is_none_or(|at| at + 1 == parts.len() && parts[at] == "*");
        let ok = parts.len() <= 3 && parts.iter().all(|p| !p.is_empty()) && star_ok;
        if !ok {
            let remedy = "write region, region/zone or region/zone/subzone; * may stand for the rest";
            self.error(path, format!("{locality:?} is not a locality; {remedy}"));
        }
        ok
    }

    /// A header name.
    pub(super) fn header_name(&mut self, path: impl Display, name: &str) {
        if !is_header_name(name) {
            self.error(path, format!("{name:?} is not a header name; use letters, digits and dashes"));
        }
    }
}

/// What is wrong with a label's or annotation's key, if anything.
pub(super) fn label_key_problem(key: &str) -> Option<String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    if prefix.is_some_and(|p| !is_dns_subdomain(p)) {
        return Some(format!("the part before the / of {key:?} must be a DNS name"));
    }
    (name.is_empty() || !is_label_value(name)).then(|| {
        format!("{key:?} is not a label name; use at most 63 letters, digits, '-', '_' and '.', with an optional DNS name and / before")
    })
}

fn is_label_value(value: &str) -> bool {
    let bytes = value.as_bytes();
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// Protocol names of ports.
pub(super) const PROTOCOLS: [&str; 12] =
    ["HTTP", "HTTPS", "GRPC", "GRPC-WEB", "HTTP2", "HTTP_PROXY", "MONGO", "MYSQL", "REDIS", "TCP", "TLS", "UDP"];

/// True for names of protocols, without regard to case.
pub(super) fn is_protocol(name: &str) -> bool {
    PROTOCOLS.iter().any(|p| p.eq_ignore_ascii_case(name))
}

/// Which of several exclusive fields are set.
pub(super) fn set_of<'a>(fields: &[(&'a str, bool)]) -> Vec<&'a str> {
    fields.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect()
}
