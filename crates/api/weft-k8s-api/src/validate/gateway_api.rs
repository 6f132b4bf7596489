//! Rules for the Kubernetes Gateway API, in both of its groups, and for Ingress.

use super::Report;
use super::check::{host_problem, is_dns_subdomain, is_header_name};
use super::re2::check_re2;
use crate::de::Dialect;
use crate::gateway_api::ingress::{Ingress, IngressClass};
use crate::gateway_api::{self as api, v1alpha1};
use crate::object::Object;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeSet;

/// The kinds; others of the groups pass.
pub(super) fn kind(object: &Object, kind: &str, report: &mut Report) {
    let old = object.group() == v1alpha1::GROUP;
    match (kind, old) {
        ("GatewayClass", false) => spec(object, report, class),
        ("GatewayClass", true) => spec::<v1alpha1::GatewayClass>(object, report, |c, r| {
            r.required("spec.controller", &c.controller, "istio.io/gateway-controller");
        }),
        ("Gateway", false) => spec(object, report, gateway),
        ("Gateway", true) => spec(object, report, old_gateway),
        ("HTTPRoute", false) => spec(object, report, http_route),
        ("HTTPRoute", true) => spec::<v1alpha1::HttpRoute>(object, report, |route, r| hostnames(&route.hostnames, r)),
        ("GRPCRoute", _) => spec(object, report, grpc_route),
        ("TLSRoute", false) => spec::<api::TlsRoute>(object, report, |route, r| {
            hostnames(&route.hostnames, r);
            l4_rules(&route.rules, r);
        }),
        ("TLSRoute", true) => spec::<v1alpha1::TlsRoute>(object, report, |_, _| ()),
        ("TCPRoute", false) => spec::<api::TcpRoute>(object, report, |route, r| l4_rules(&route.rules, r)),
        ("TCPRoute", true) => spec::<v1alpha1::TcpRoute>(object, report, |_, _| ()),
        ("ReferenceGrant", _) => spec(object, report, grant),
        ("BackendTLSPolicy", _) => spec(object, report, backend_tls),
        ("Ingress", _) => spec(object, report, ingress),
        ("IngressClass", _) => spec::<IngressClass>(object, report, |_, _| ()),
        _ => {}
    }
}

fn spec<T: DeserializeOwned>(object: &Object, report: &mut Report, check: fn(&T, &mut Report)) {
    let empty = Value::Object(serde_json::Map::new());
    let value = if object.spec().is_null() { &empty } else { object.spec() };
    for name in object.body.keys().filter(|k| !matches!(k.as_str(), "spec" | "status")) {
        report.unknown_top_level(name);
    }
    if let Some(typed) = report.read(value, "spec", Dialect::Kubernetes) {
        check(&typed, report);
    }
}

fn class(spec: &api::GatewayClass, report: &mut Report) {
    report.required("spec.controllerName", &spec.controller_name, "istio.io/gateway-controller");
}

fn gateway(spec: &api::Gateway, report: &mut Report) {
    report.required("spec.gatewayClassName", &spec.gateway_class_name, "istio");
    if spec.listeners.is_empty() {
        report.error("spec.listeners", "is required: a gateway needs at least one listener");
    }
    if spec.listeners.len() > 64 {
        report.error("spec.listeners", "has more than 64 items");
    }
    if spec.tls.as_ref().is_some_and(|tls| tls.backend.is_some()) {
        report.warn("spec.tls.backend", "has no effect; a DestinationRule with tls.mode MUTUAL shows a certificate");
    }
    let mut names = BTreeSet::new();
    for (i, listener) in spec.listeners.iter().enumerate() {
        let path = format!("spec.listeners[{i}]");
        report.required(format_args!("{path}.name"), &listener.name, "a name, such as http");
        if !names.insert(&listener.name) {
            report.error(format_args!("{path}.name"), format!("{:?} is there twice", listener.name));
        }
        listener_basics(listener.port, &listener.protocol, &listener.hostname, &path, report);
        let tls = listener.tls.as_ref();
        let opens = matches!(listener.protocol.as_str(), "HTTPS" | "TLS");
        if tls.is_some() && !opens {
            let message = format!("does not go with the protocol {}; use HTTPS or TLS", listener.protocol);
            report.error(format_args!("{path}.tls"), message);
        }
        if listener.protocol == "HTTPS" && tls.is_some_and(|t| t.mode == "Passthrough") {
            report.error(format_args!("{path}.tls.mode"), "Passthrough needs the protocol TLS");
        }
        if tls.is_some_and(|t| !matches!(t.mode.as_str(), "" | "Terminate" | "Passthrough")) {
            report.error(format_args!("{path}.tls.mode"), "is not known; use Terminate or Passthrough");
        }
        let from = listener.allowed_routes.as_ref().and_then(|a| a.namespaces.as_ref());
        namespaces(from, &format!("{path}.allowedRoutes.namespaces"), report);
    }
}

fn old_gateway(spec: &v1alpha1::Gateway, report: &mut Report) {
    report.required("spec.gatewayClassName", &spec.gateway_class_name, "istio");
    if spec.listeners.is_empty() {
        report.error("spec.listeners", "is required: a gateway needs at least one listener");
    }
    for (i, listener) in spec.listeners.iter().enumerate() {
        let path = format!("spec.listeners[{i}]");
        let host = if listener.hostname == "*" { "" } else { &listener.hostname };
        listener_basics(listener.port, &listener.protocol, host, &path, report);
        report.required(format_args!("{path}.routes.kind"), &listener.routes.kind, "HTTPRoute, TLSRoute or TCPRoute");
        namespaces(listener.routes.namespaces.as_ref(), &format!("{path}.routes.namespaces"), report);
    }
}

fn listener_basics(port: u32, protocol: &str, hostname: &str, path: &str, report: &mut Report) {
    report.port(format_args!("{path}.port"), port);
    report.required(format_args!("{path}.protocol"), protocol, "HTTP, HTTPS, TLS or TCP");
    if !hostname.is_empty() {
        one_hostname(&format!("{path}.hostname"), hostname, report);
    }
}

fn namespaces(from: Option<&api::RouteNamespaces>, path: &str, report: &mut Report) {
    let Some(from) = from else { return };
    if !matches!(from.from.as_str(), "" | "All" | "Same" | "Selector" | "None") {
        report.error(format_args!("{path}.from"), format!("{:?} is not known; use All, Same or Selector", from.from));
    }
    if from.from == "Selector" && from.selector.is_none() {
        report.error(format_args!("{path}.selector"), "is required for from: Selector");
    }
}

fn one_hostname(path: &str, host: &str, report: &mut Report) {
    if let Some(problem) = host_problem(host, true) {
        report.error(path, problem);
    } else if host.starts_with('*') && (!host.starts_with("*.") || host.len() < 3) {
        report.error(path, format!("{host:?} is not a host name; a wildcard is *. and a name"));
    }
}

fn hostnames(hosts: &[String], report: &mut Report) {
    for (i, host) in hosts.iter().enumerate() {
        one_hostname(&format!("spec.hostnames[{i}]"), host, report);
    }
}

fn http_route(spec: &api::HttpRoute, report: &mut Report) {
    hostnames(&spec.hostnames, report);
    for (i, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        for (j, condition) in rule.matches.iter().enumerate() {
            http_match(condition, &format!("{path}.matches[{j}]"), report);
        }
        filters(&rule.filters, &format!("{path}.filters"), report);
        let redirects = rule.filters.iter().any(|f| f.kind == "RequestRedirect");
        if redirects && !rule.backend_refs.is_empty() {
            report.error(format_args!("{path}.backendRefs"), "does not go with a RequestRedirect filter; remove one");
        }
        for (j, backend) in rule.backend_refs.iter().enumerate() {
            backend_name(&backend.name, &backend.kind, backend.port, &format!("{path}.backendRefs[{j}]"), report);
            filters(&backend.filters, &format!("{path}.backendRefs[{j}].filters"), report);
        }
        timeouts(rule, &path, report);
    }
}

fn timeouts(rule: &api::HttpRouteRule, path: &str, report: &mut Report) {
    let times = rule.timeouts.as_ref();
    let backoff = rule.retry.as_ref().and_then(|r| r.backoff.as_ref());
    for (field, text) in [
        ("timeouts.request", times.and_then(|t| t.request.as_ref())),
        ("timeouts.backendRequest", times.and_then(|t| t.backend_request.as_ref())),
        ("retry.backoff", backoff),
    ] {
        if let Some(text) = text
            && let Err(problem) = weft_core::duration::parse(text)
        {
            report.error(format_args!("{path}.{field}"), problem);
        }
    }
}

fn http_match(condition: &api::HttpRouteMatch, path: &str, report: &mut Report) {
    if let Some(on_path) = &condition.path {
        let value = on_path.value.as_deref().unwrap_or("/");
        match on_path.kind.as_str() {
            "" | "PathPrefix" | "Exact" if !value.starts_with('/') => {
                report.error(format_args!("{path}.path.value"), format!("{value:?} must begin with /"));
            }
            "" | "PathPrefix" | "Exact" => {}
            "RegularExpression" => expression(value, &format!("{path}.path.value"), report),
            other => {
                let message = format!("{other:?} is not known; use PathPrefix, Exact or RegularExpression");
                report.error(format_args!("{path}.path.type"), message);
            }
        }
    }
    named(&condition.headers, &format!("{path}.headers"), report);
    named(&condition.query_params, &format!("{path}.queryParams"), report);
}

fn named(conditions: &[api::NamedMatch], path: &str, report: &mut Report) {
    for (i, condition) in conditions.iter().enumerate() {
        report.required(format_args!("{path}[{i}].name"), &condition.name, "a name");
        match condition.kind.as_str() {
            "" | "Exact" => {}
            "RegularExpression" => expression(&condition.value, &format!("{path}[{i}].value"), report),
            other => {
                let message = format!("{other:?} is not known; use Exact or RegularExpression");
                report.error(format_args!("{path}[{i}].type"), message);
            }
        }
    }
}

fn expression(text: &str, path: &str, report: &mut Report) {
    if let Err(problem) = check_re2(text) {
        report.error(path, problem);
    }
}

fn filters(filters: &[api::HttpRouteFilter], path: &str, report: &mut Report) {
    for (i, filter) in filters.iter().enumerate() {
        let missing = match filter.kind.as_str() {
            "RequestHeaderModifier" => filter.request_header_modifier.is_none().then_some("requestHeaderModifier"),
            "ResponseHeaderModifier" => filter.response_header_modifier.is_none().then_some("responseHeaderModifier"),
            "RequestMirror" => filter.request_mirror.is_none().then_some("requestMirror"),
            "RequestRedirect" => filter.request_redirect.is_none().then_some("requestRedirect"),
            "URLRewrite" => filter.url_rewrite.is_none().then_some("urlRewrite"),
            "CORS" => filter.cors.is_none().then_some("cors"),
            _ => None,
        };
        if let Some(field) = missing {
            let message = format!("is required for the type {}", filter.kind);
            report.error(format_args!("{path}[{i}].{field}"), message);
        }
        for modifier in filter.request_header_modifier.iter().chain(&filter.response_header_modifier) {
            let names = modifier.set.iter().chain(&modifier.add).map(|h| &h.name).chain(&modifier.remove);
            for name in names.filter(|n| !is_header_name(n)) {
                report.error(format_args!("{path}[{i}]"), format!("{name:?} is not a header name"));
            }
        }
    }
}

fn backend_name(name: &str, kind: &str, port: Option<u32>, path: &str, report: &mut Report) {
    report.required(format_args!("{path}.name"), name, "the name of a service");
    if !name.is_empty() && kind != "Hostname" && !is_dns_subdomain(name) {
        report.error(format_args!("{path}.name"), format!("{name:?} is not the name of a service"));
    }
    if let Some(port) = port {
        report.port(format_args!("{path}.port"), port);
    }
}

fn grpc_route(spec: &api::GrpcRoute, report: &mut Report) {
    hostnames(&spec.hostnames, report);
    for (i, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        for (j, condition) in rule.matches.iter().enumerate() {
            let path = format!("{path}.matches[{j}]");
            named(&condition.headers, &format!("{path}.headers"), report);
            let Some(method) = &condition.method else { continue };
            match method.kind.as_str() {
                "" | "Exact" => {}
                "RegularExpression" => {
                    for (field, text) in [("service", &method.service), ("method", &method.method)] {
                        if !text.is_empty() {
                            expression(text, &format!("{path}.method.{field}"), report);
                        }
                    }
                }
                other => {
                    let message = format!("{other:?} is not known; use Exact or RegularExpression");
                    report.error(format_args!("{path}.method.type"), message);
                }
            }
        }
        filters(&rule.filters, &format!("{path}.filters"), report);
        for (j, backend) in rule.backend_refs.iter().enumerate() {
            backend_name(&backend.name, &backend.kind, backend.port, &format!("{path}.backendRefs[{j}]"), report);
        }
    }
}

fn l4_rules(rules: &[api::L4Rule], report: &mut Report) {
    if rules.is_empty() {
        report.error("spec.rules", "is required: at least one rule");
    }
    for (i, rule) in rules.iter().enumerate() {
        for (j, backend) in rule.backend_refs.iter().enumerate() {
            let path = format!("spec.rules[{i}].backendRefs[{j}]");
            backend_name(&backend.name, &backend.kind, backend.port, &path, report);
        }
    }
}

fn grant(spec: &api::ReferenceGrant, report: &mut Report) {
    if spec.from.is_empty() {
        report.error("spec.from", "is required: who may refer");
    }
    if spec.to.is_empty() {
        report.error("spec.to", "is required: what may be referred to");
    }
}

fn backend_tls(spec: &api::BackendTlsPolicy, report: &mut Report) {
    if spec.target_refs.is_empty() {
        report.error("spec.targetRefs", "is required: the services that the policy is about");
    }
    report.required("spec.validation.hostname", &spec.validation.hostname, "the server name");
    let refs = !spec.validation.ca_certificate_refs.is_empty();
    match (&spec.validation.well_known_ca_certificates, refs) {
        (Some(_), true) => {
            report.error("spec.validation", "has caCertificateRefs and wellKnownCACertificates; keep one");
        }
        (None, false) => {
            let message = "is required: caCertificateRefs, or wellKnownCACertificates: System";
            report.error("spec.validation.caCertificateRefs", message);
        }
        (Some(other), false) if other != "System" => {
            report.error("spec.validation.wellKnownCACertificates", format!("{other:?} is not known; use System"));
        }
        _ => {}
    }
}

fn ingress(spec: &Ingress, report: &mut Report) {
    if spec.rules.is_empty() && spec.default_backend.is_none() && spec.backend.is_none() {
        report.error("spec", "has no rules; add rules or defaultBackend");
    }
    for (i, rule) in spec.rules.iter().enumerate() {
        if !rule.host.is_empty() {
            one_hostname(&format!("spec.rules[{i}].host"), &rule.host, report);
        }
        for (j, path) in rule.http.iter().flat_map(|h| &h.paths).enumerate() {
            let at = format!("spec.rules[{i}].http.paths[{j}]");
            if !path.path.is_empty() && !path.path.starts_with('/') {
                report.error(format_args!("{at}.path"), format!("{:?} must begin with /", path.path));
            }
            let kind = path.path_type.as_deref();
            if kind.is_some_and(|k| !matches!(k, "Exact" | "Prefix" | "ImplementationSpecific")) {
                let message =
                    format!("{:?} is not known; use Exact, Prefix or ImplementationSpecific", kind.unwrap_or(""));
                report.error(format_args!("{at}.pathType"), message);
            }
            if path.backend.name().is_empty() {
                report.error(format_args!("{at}.backend.service.name"), "is required: the name of a service");
            } else if path.backend.port().is_none() {
                report.error(format_args!("{at}.backend.service.port"), "is required: number or name");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Object, validate};
    use serde_json::json;

    #[test]
    fn each_mistake_has_its_place() {
        let v1 = "gateway.networking.k8s.io/v1";
        // apiVersion, kind, spec, paths of the errors
        for (version, kind, spec, wrong) in [
            (v1, "GatewayClass", json!({"controllerName": "istio.io/gateway-controller"}), vec![]),
            (v1, "GatewayClass", json!({}), vec!["spec.controllerName"]),
            (
                v1,
                "Gateway",
                json!({"gatewayClassName": "istio", "listeners": [
                    {"name": "a", "port": 80, "protocol": "HTTP"},
                    {"name": "a", "port": 0, "protocol": "HTTP", "hostname": "*x"},
                    {"name": "b", "port": 443, "protocol": "HTTPS", "tls": {"mode": "Passthrough"},
                     "allowedRoutes": {"namespaces": {"from": "Selector"}}}]}),
                vec![
                    "spec.listeners[1].name",
                    "spec.listeners[1].port",
                    "spec.listeners[1].hostname",
                    "spec.listeners[2].tls.mode",
                    "spec.listeners[2].allowedRoutes.namespaces.selector",
                ],
            ),
            (
                v1,
                "HTTPRoute",
                json!({"rules": [{"matches": [{"path": {"value": "x"}}, {"path": {"type": "RegularExpression", "value": "("}}],
                    "filters": [{"type": "RequestRedirect"}], "backendRefs": [{"name": "a", "port": 80}],
                    "timeouts": {"request": "soon"}}]}),
                vec![
                    "spec.rules[0].matches[0].path.value",
                    "spec.rules[0].matches[1].path.value",
                    "spec.rules[0].filters[0].requestRedirect",
                    "spec.rules[0].backendRefs",
                    "spec.rules[0].timeouts.request",
                ],
            ),
            (
                v1,
                "BackendTLSPolicy",
                json!({"targetRefs": [{"kind": "Service", "name": "a"}], "validation": {"hostname": "a"}}),
                vec!["spec.validation.caCertificateRefs"],
            ),
            ("gateway.networking.k8s.io/v0", "HTTPRoute", json!({}), vec!["apiVersion"]),
            (
                "networking.x-k8s.io/v1alpha1",
                "Gateway",
                json!({"gatewayClassName": "istio", "listeners": [
                {"hostname": "*", "port": 80, "protocol": "HTTP", "routes": {"kind": "HTTPRoute",
                 "namespaces": {"from": "All"}, "selector": {"matchLabels": {"selected": "yes"}}}}]}),
                vec![],
            ),
            (
                "networking.k8s.io/v1beta1",
                "Ingress",
                json!({"rules": [{"http": {"paths": [
                {"path": "/a/*", "backend": {"serviceName": "a", "servicePort": 80}}]}}]}),
                vec![],
            ),
            (
                "networking.k8s.io/v1",
                "Ingress",
                json!({"rules": [{"http": {"paths": [
                {"path": "a", "pathType": "Some", "backend": {"service": {"name": "a", "port": {}}}}]}}]}),
                vec![
                    "spec.rules[0].http.paths[0].path",
                    "spec.rules[0].http.paths[0].pathType",
                    "spec.rules[0].http.paths[0].backend.service.port",
                ],
            ),
        ] {
            let object: Object = serde_json::from_value(json!({
                "apiVersion": version, "kind": kind, "metadata": {"name": "x", "namespace": "default"}, "spec": spec,
            }))
            .unwrap();
            let found = validate(&object);
            let paths: Vec<&str> = found.errors.iter().map(|e| e.path.as_str()).collect();
            assert_eq!(paths, wrong, "{kind} {:?}", found.errors);
            assert!(found.unknown_fields.is_empty(), "{kind} {:?}", found.unknown_fields);
        }
    }
}
