//! Rules for `VirtualService`.

use super::Report;
use super::check::{host_problem, is_dns_label, set_of};
use crate::istio::{
    Destination, HttpMatchRequest, HttpRoute, HttpRouteDestination, RouteDestination, StringMatch, TcpRoute, TlsRoute,
    VirtualService,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

mod actions;

pub(super) fn check(spec: &VirtualService, report: &mut Report) {
    let delegate = spec.hosts.is_empty();
    hosts(spec, report);
    report.gateway_names("spec.gateways", &spec.gateways);
    report.export_to("spec.exportTo", &spec.export_to);
    if delegate {
        check_delegate(spec, report);
    } else if spec.http.is_empty() && spec.tls.is_empty() && spec.tcp.is_empty() {
        report.error("spec", "has no routes; add http, tls or tcp");
    }
    for (i, route) in spec.http.iter().enumerate() {
        http_route(route, &format!("spec.http[{i}]"), delegate, report);
    }
    for (i, route) in spec.tls.iter().enumerate() {
        tls_route(route, &spec.hosts, &format!("spec.tls[{i}]"), report);
    }
    for (i, route) in spec.tcp.iter().enumerate() {
        tcp_route(route, &format!("spec.tcp[{i}]"), report);
    }
    unreachable_routes(spec, report);
}

fn hosts(spec: &VirtualService, report: &mut Report) {
    let mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|g| g == "mesh");
    let mut seen = BTreeSet::new();
    for (i, host) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{i}]");
        report.host_or_ip(&path, host, true);
        if host == "*" && mesh {
            let remedy = "name the hosts, or bind the virtual service to a gateway with spec.gateways";
            report.error(&path, format!("the host * is not allowed inside of the mesh; {remedy}"));
        }
        if !seen.insert(host.to_ascii_lowercase()) {
            report.error(&path, format!("{host:?} is there twice; remove one"));
        }
    }
}

/// A virtual service without hosts only has routes for others that delegate to it.
fn check_delegate(spec: &VirtualService, report: &mut Report) {
    if spec.http.is_empty() {
        report.error("spec.hosts", "is required: the hosts that the routes are for");
        return;
    }
    if !spec.gateways.is_empty() {
        report.error("spec.gateways", "is not allowed without spec.hosts: the delegating virtual service has them");
    }
    if !spec.tls.is_empty() || !spec.tcp.is_empty() {
        report
            .error("spec", "without spec.hosts only http routes can be delegated to; add hosts, or remove tls and tcp");
    }
}

fn http_route(route: &HttpRoute, path: &str, delegate: bool, report: &mut Report) {
    for (i, request) in route.matches.iter().enumerate() {
        http_match(request, &format!("{path}.match[{i}]"), report);
    }
    one_action(route, path, delegate, report);
    actions::check(route, path, report);
    let weights: Vec<_> = route.route.iter().map(|r| r.weight).collect();
    check_weights(&weights, path, report);
    for (i, to) in route.route.iter().enumerate() {
        http_destination(to, &format!("{path}.route[{i}]"), report);
    }
}

/// A rule forwards, redirects, answers or delegates: exactly one of them, and what changes requests goes with forwarding.
fn one_action(route: &HttpRoute, path: &str, delegate: bool, report: &mut Report) {
    let actions = set_of(&[
        ("route", !route.route.is_empty()),
        ("redirect", route.redirect.is_some()),
        ("directResponse", route.direct_response.is_some()),
        ("delegate", route.delegate.is_some()),
    ]);
    match actions.as_slice() {
        [] => report.error(path, "does nothing; add route, redirect, directResponse or delegate"),
        // The answer is for those routes of the delegate that have none of their own.
        [_] | ["directResponse", "delegate"] => {}
        several => report.error(path, format!("has {}; keep one of them", several.join(" and "))),
    }
    if route.redirect.is_some() || route.direct_response.is_some() {
        for name in set_of(&[("fault", route.fault.is_some()), ("rewrite", route.rewrite.is_some())]) {
            let action = if route.redirect.is_some() { "redirect" } else { "directResponse" };
            report.error(format_args!("{path}.{name}"), format!("does not go with {action}; remove one of them"));
        }
    }
    if let Some(to) = &route.delegate {
        if delegate {
            report.error(format_args!("{path}.delegate"), "a delegate cannot delegate further; add hosts, or routes");
        }
        if !is_dns_label(&to.name.replace('.', "-")) {
            report.error(format_args!("{path}.delegate.name"), "is required: the name of a virtual service");
        }
        if !to.namespace.is_empty() && !is_dns_label(&to.namespace) {
            report.error(format_args!("{path}.delegate.namespace"), format!("{:?} is not a namespace", to.namespace));
        }
    }
    if route.mirror.is_some() && !route.mirrors.is_empty() {
        report.error(path, "has mirror and mirrors; keep mirrors");
    }
}

fn http_match(request: &HttpMatchRequest, path: &str, report: &mut Report) {
    for (name, string_match) in [
        ("uri", &request.uri),
        ("scheme", &request.scheme),
        ("method", &request.method),
        ("authority", &request.authority),
    ] {
        let Some(string_match) = string_match else { continue };
        let path = format!("{path}.{name}");
        if *string_match == StringMatch::Present {
            report.error(&path, "is empty; add exact, prefix or regex");
        }
        report.string_match(&path, string_match);
    }
    header_matches(&request.headers, &format!("{path}.headers"), true, report);
    header_matches(&request.without_headers, &format!("{path}.withoutHeaders"), true, report);
    header_matches(&request.query_params, &format!("{path}.queryParams"), false, report);
    report.optional_port(format_args!("{path}.port"), request.port);
    report.selector(format_args!("{path}.sourceLabels"), &request.source_labels);
    report.gateway_names(&format!("{path}.gateways"), &request.gateways);
    namespace(&request.source_namespace, path, report);
}

fn header_matches(matches: &BTreeMap<String, StringMatch>, path: &str, header: bool, report: &mut Report) {
    for (name, string_match) in matches {
        let path = format!("{path}[{name:?}]");
        if name.is_empty() {
            report.error(&path, "has an empty name");
        } else if header && !name.starts_with('@') {
            // `@request.auth.claims.…` matches a claim of the token instead.
            report.header_name(&path, name.strip_prefix(':').unwrap_or(name));
        }
        if header && name.starts_with(':') {
            report.warn(&path, "pseudo-headers are matched by uri, method, scheme and authority");
        }
        report.string_match(&path, string_match);
    }
}

fn namespace(namespace: &str, path: &str, report: &mut Report) {
    if !namespace.is_empty() && !is_dns_label(namespace) {
        report.error(format_args!("{path}.sourceNamespace"), format!("{namespace:?} is not a namespace"));
    }
}

fn http_destination(to: &HttpRouteDestination, path: &str, report: &mut Report) {
    destination(to.destination.as_ref(), &format!("{path}.destination"), report);
    actions::headers(to.headers.as_ref(), path, report);
}

/// A destination: host, and if given a valid subset and port.
pub(super) fn destination(to: Option<&Destination>, path: &str, report: &mut Report) {
    let Some(to) = to else {
        return report.error(path, "is required: the service to send to, as host, subset and port");
    };
    if to.host == "*" {
        report.error(
            format_args!("{path}.host"),
            "is *, which is no service; name one, or a wildcard service such as *.a.com",
        );
    } else if to.host.parse::<IpAddr>().is_err()
        // A service entry may stand for all names below one (DYNAMIC_DNS).
        && let Some(problem) = host_problem(&to.host, true)
    {
        report.error(format_args!("{path}.host"), problem);
    }
    if !to.subset.is_empty() && !is_subset_name(&to.subset) {
        report.error(format_args!("{path}.subset"), format!("{:?} is not a subset name", to.subset));
    }
    if let Some(port) = &to.port {
        report.port(format_args!("{path}.port.number"), port.number);
    }
}

/// Letters of either case, digits, `-`, `_` and `.`; at most 63.
pub(super) fn is_subset_name(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Several destinations need a weight among them.
fn check_weights(weights: &[u32], path: &str, report: &mut Report) {
    let sum: u64 = weights.iter().map(|w| u64::from(*w)).sum();
    if weights.len() > 1 && sum == 0 {
        let remedy = "give each destination a share, 100 in all";
        report.error(format_args!("{path}.route"), format!("the weights of all destinations are 0; {remedy}"));
    }
    if sum > u64::from(u32::MAX) {
        report.error(format_args!("{path}.route"), format!("the weights add up to {sum}, more than {}", u32::MAX));
    }
}

fn tls_route(route: &TlsRoute, hosts: &[String], path: &str, report: &mut Report) {
    if route.matches.is_empty() {
        report.error(format_args!("{path}.match"), "is required: a TLS route needs at least one match with sniHosts");
    }
    for (i, request) in route.matches.iter().enumerate() {
        let path = format!("{path}.match[{i}]");
        if request.sni_hosts.is_empty() {
            report.error(format_args!("{path}.sniHosts"), "is required: the server names to match");
        }
        for (j, sni) in request.sni_hosts.iter().enumerate() {
            let path = format!("{path}.sniHosts[{j}]");
            report.host(&path, sni, true);
            if !hosts.iter().any(|host| within(sni, host)) {
                report.error(&path, format!("{sni:?} is not one of spec.hosts ({})", hosts.join(", ")));
            }
        }
        subnets(&request.destination_subnets, &path, report);
        report.optional_port(format_args!("{path}.port"), request.port);
        report.selector(format_args!("{path}.sourceLabels"), &request.source_labels);
        report.gateway_names(&format!("{path}.gateways"), &request.gateways);
        namespace(&request.source_namespace, &path, report);
    }
    l4_destinations(&route.route, path, report);
}

fn tcp_route(route: &TcpRoute, path: &str, report: &mut Report) {
    for (i, request) in route.matches.iter().enumerate() {
        let path = format!("{path}.match[{i}]");
        subnets(&request.destination_subnets, &path, report);
        if !request.source_subnet.is_empty() {
            report.cidr(format_args!("{path}.sourceSubnet"), &request.source_subnet);
            let remedy = "has no effect, as in Istio: the rule fits all clients; use sourceLabels, or an AuthorizationPolicy by ipBlocks";
            report.warn(format_args!("{path}.sourceSubnet"), remedy);
        }
        report.optional_port(format_args!("{path}.port"), request.port);
        report.selector(format_args!("{path}.sourceLabels"), &request.source_labels);
        report.gateway_names(&format!("{path}.gateways"), &request.gateways);
        namespace(&request.source_namespace, &path, report);
    }
    l4_destinations(&route.route, path, report);
}

fn subnets(list: &[String], path: &str, report: &mut Report) {
    for (i, subnet) in list.iter().enumerate() {
        report.cidr(format_args!("{path}.destinationSubnets[{i}]"), subnet);
    }
}

fn l4_destinations(routes: &[RouteDestination], path: &str, report: &mut Report) {
    if routes.is_empty() {
        report.error(format_args!("{path}.route"), "is required: where to send the connection");
    }
    let weights: Vec<_> = routes.iter().map(|r| r.weight).collect();
    check_weights(&weights, path, report);
    for (i, to) in routes.iter().enumerate() {
        destination(to.destination.as_ref(), &format!("{path}.route[{i}].destination"), report);
    }
}

/// True when every name that `narrow` covers is covered by `wide`.
fn within(narrow: &str, wide: &str) -> bool {
    let (narrow, wide) = (narrow.to_ascii_lowercase(), wide.to_ascii_lowercase());
    match wide.strip_prefix('*') {
        Some(suffix) => narrow.strip_prefix('*').unwrap_or(&narrow).ends_with(suffix),
        None => narrow == wide,
    }
}

/// Warns of rules behind one that takes every request.
fn unreachable_routes(spec: &VirtualService, report: &mut Report) {
    let Some(all) = spec.http.iter().position(takes_all) else { return };
    if all + 1 < spec.http.len() {
        let path = format!("spec.http[{}]", all + 1);
        report.warn(path, format!("is never reached: spec.http[{all}] takes every request; move that one to the end"));
    }
}

fn takes_all(route: &HttpRoute) -> bool {
    route.matches.is_empty()
        || route.matches.iter().any(|request| {
            let catch_all = HttpMatchRequest {
                uri: request.uri.clone(),
                name: request.name.clone(),
                ignore_uri_case: request.ignore_uri_case,
                stat_prefix: request.stat_prefix.clone(),
                ..Default::default()
            };
            let any_path = match &request.uri {
                None => true,
                Some(StringMatch::Prefix(prefix)) => prefix == "/",
                Some(StringMatch::Regex(regex)) => regex == ".*" || regex == "*",
                Some(_) => false,
            };
            any_path && *request == catch_all
        })
}
