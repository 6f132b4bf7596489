//! What a rule does with a request: forward, redirect, answer.

use super::convert::{Conversion, cluster_of};
use super::{hash, headers, retry, timed};
use crate::pb::core::{DataSource, data_source::Specifier};
use crate::pb::envoy_matcher::RegexMatchAndSubstitute;
use crate::pb::route::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
use crate::pb::route::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy,
};
use crate::pb::route::route_match::PathSpecifier;
use crate::pb::route::weighted_cluster::{ClusterWeight, cluster_weight};
use crate::pb::route::{DirectResponseAction, RedirectAction, Route, RouteAction, WeightedCluster, route::Action};
use crate::pb::{self, matcher};
use base64::Engine as _;
use weft_k8s_api::istio::{
    Destination, HttpDirectResponse, HttpRedirect, HttpRewrite, HttpRoute, HttpRouteDestination, RedirectPort,
};

/// Status of a rule that cannot be carried out: it forwards to nobody.
const UNUSABLE: u32 = 503;

/// Sets the action and the header operations of `route`.
pub(super) fn apply(conversion: &Conversion<'_>, route: &mut Route, http: &HttpRoute) {
    let operations = http.headers.as_ref().map(headers::operations).unwrap_or_default();
    operations.add_to_route(route);
    route.action = Some(if let Some(redirect) = &http.redirect {
        Action::Redirect(redirect_action(redirect, conversion, path_of(route)))
    } else if let Some(response) = &http.direct_response {
        Action::DirectResponse(direct_response(response))
    } else {
        forward(conversion, route, http, operations.authority)
    });
}

fn forward(conversion: &Conversion<'_>, route: &mut Route, http: &HttpRoute, authority: Option<String>) -> Action {
    let scope = conversion.view.scope;
    let cluster = |destination: &Destination| cluster_of(scope, destination, conversion.port);
    let timeout = http.timeout.map_or_else(pb::zero, |t| pb::duration(t.get()));
    let mut action = timed(timeout);
    action.append_x_forwarded_host = scope.key.headers.forwarded_host;
    if conversion.vs.whole_path_elements {
        action.cluster_not_found_response_code = ClusterNotFoundResponseCode::InternalServerError as i32;
    }
    let mut authority = authority;
    if let Some(rewrite) = &http.rewrite {
        rewrite_path(&mut action, rewrite, path_of(route), conversion.vs.whole_path_elements);
        if !rewrite.authority.is_empty() {
            authority = Some(rewrite.authority.clone());
        }
    }
    action.host_rewrite_specifier = authority.map(HostRewriteSpecifier::HostRewriteLiteral);
    action.request_mirror_policies = mirrors(http, &cluster);
    for destination in http.route.iter().filter_map(|d| d.destination.as_ref()) {
        let policies = hash::for_destination(conversion.view, destination);
        action.hash_policy.extend(policies.into_iter().filter(|p| !action.hash_policy.contains(p)).collect::<Vec<_>>());
    }
    let hashed = http.route.len() == 1 && !action.hash_policy.is_empty();
    action.retry_policy = retry::policy(conversion.view.mesh(), http.retries.as_ref(), hashed);
    let specifier = match http.route.as_slice() {
        [only] => single(only, route, &mut action, &cluster),
        several => weighted(several, &cluster),
    };
    match specifier {
        Some(specifier) => {
            action.cluster_specifier = Some(specifier);
            Action::Route(action)
        }
        None => Action::DirectResponse(DirectResponseAction { status: UNUSABLE, ..Default::default() }),
    }
}

/// One destination: its header operations join those of the route.
fn single(
    only: &HttpRouteDestination,
    route: &mut Route,
    action: &mut RouteAction,
    cluster: &dyn Fn(&Destination) -> String,
) -> Option<ClusterSpecifier> {
    let operations = only.headers.as_ref().map(headers::operations).unwrap_or_default();
    operations.add_to_route(route);
    if action.host_rewrite_specifier.is_none() {
        action.host_rewrite_specifier = operations.authority.map(HostRewriteSpecifier::HostRewriteLiteral);
    }
    only.destination.as_ref().map(|d| ClusterSpecifier::Cluster(cluster(d)))
}

/// Several destinations, by weight; those of weight 0 get nothing.
fn weighted(all: &[HttpRouteDestination], cluster: &dyn Fn(&Destination) -> String) -> Option<ClusterSpecifier> {
    let with_share = |d: &HttpRouteDestination| {
        let destination = d.destination.as_ref().filter(|_| d.weight > 0)?;
        let operations = d.headers.as_ref().map(headers::operations).unwrap_or_default();
        Some(ClusterWeight {
            name: cluster(destination),
            weight: Some(d.weight),
            request_headers_to_add: operations.request_add,
            request_headers_to_remove: operations.request_remove,
            response_headers_to_add: operations.response_add,
            response_headers_to_remove: operations.response_remove,
            host_rewrite_specifier: operations.authority.map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
            ..Default::default()
        })
    };
    let clusters: Vec<ClusterWeight> = all.iter().filter_map(with_share).collect();
    (!clusters.is_empty())
        .then(|| ClusterSpecifier::WeightedClusters(WeightedCluster { clusters, ..Default::default() }))
}

fn path_of(route: &Route) -> Option<&PathSpecifier> {
    route.r#match.as_ref()?.path_specifier.as_ref()
}

/// Taking a prefix of whole elements away leaves a path that still begins with `/`, which no plain replacement does.
fn taken_away(matched: Option<&PathSpecifier>, replacement: &str) -> Option<RegexMatchAndSubstitute> {
    match matched {
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) if replacement == "/" => Some(RegexMatchAndSubstitute {
            pattern: Some(matcher::re2(format!("^{}/*(.*)$", quoted(prefix)))),
            substitution: "/\\1".into(),
        }),
        _ => None,
    }
}

/// Every path has the prefix `/`: what is put in its place has to end an element.
fn in_place_of(matched: Option<&PathSpecifier>, replacement: &str, elements: bool) -> String {
    match matched {
        Some(PathSpecifier::Prefix(prefix)) if elements && prefix == "/" && !replacement.ends_with('/') => {
            format!("{replacement}/")
        }
        _ => replacement.to_string(),
    }
}

/// The text as an expression that matches it alone.
fn quoted(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if "\\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn rewrite_path(action: &mut RouteAction, rewrite: &HttpRewrite, matched: Option<&PathSpecifier>, elements: bool) {
    if rewrite.uri_regex_rewrite.is_none()
        && let Some(regex) = taken_away(matched, &rewrite.uri)
    {
        action.regex_rewrite = Some(regex);
    } else if let Some(regex) = &rewrite.uri_regex_rewrite {
        action.regex_rewrite = Some(RegexMatchAndSubstitute {
            pattern: Some(matcher::re2(regex.regex.clone())),
            substitution: regex.rewrite.clone(),
        });
    } else {
        action.prefix_rewrite = in_place_of(matched, &rewrite.uri, elements && !rewrite.uri.is_empty());
    }
}

fn mirrors(http: &HttpRoute, cluster: &dyn Fn(&Destination) -> String) -> Vec<RequestMirrorPolicy> {
    let first = http.mirror.iter().map(|destination| (destination, http.mirror_share()));
    let more = http.mirrors.iter().filter_map(|mirror| {
        let share = mirror.percentage.as_ref().map_or(100.0, |p| p.value);
        Some((mirror.destination.as_ref()?, share))
    });
    first
        .chain(more)
        .filter(|(_, share)| *share > 0.0)
        .map(|(destination, share)| RequestMirrorPolicy {
            cluster: cluster(destination),
            runtime_fraction: Some(pb::runtime_fraction(share)),
            trace_sampled: Some(false),
            ..Default::default()
        })
        .collect()
}

fn redirect_action(
    redirect: &HttpRedirect,
    conversion: &Conversion<'_>,
    matched: Option<&PathSpecifier>,
) -> RedirectAction {
    let elements = conversion.vs.whole_path_elements;
    let path = if let Some(regex) = taken_away(matched, &redirect.prefix_rewrite) {
        PathRewriteSpecifier::RegexRewrite(regex)
    } else if let Some(rest) = redirect.uri.strip_prefix("%PREFIX()%") {
        PathRewriteSpecifier::PrefixRewrite(rest.to_string())
    } else if !redirect.prefix_rewrite.is_empty() {
        PathRewriteSpecifier::PrefixRewrite(in_place_of(matched, &redirect.prefix_rewrite, elements))
    } else {
        PathRewriteSpecifier::PathRedirect(redirect.uri.clone())
    };
    let code = match redirect.redirect_code {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let scheme = (!redirect.scheme.is_empty()).then(|| SchemeRewriteSpecifier::SchemeRedirect(redirect.scheme.clone()));
    RedirectAction {
        host_redirect: redirect.authority.clone(),
        port_redirect: redirect_port(redirect, conversion),
        response_code: code as i32,
        scheme_rewrite_specifier: scheme,
        path_rewrite_specifier: Some(path),
        ..Default::default()
    }
}

/// The port to name in the redirect; 0 = none, as is that of the scheme.
fn redirect_port(redirect: &HttpRedirect, conversion: &Conversion<'_>) -> u32 {
    let port = match (redirect.port, redirect.derive_port) {
        (Some(port), _) => port,
        (None, Some(RedirectPort::FromRequestPort)) => conversion.port.into(),
        _ => 0,
    };
    let scheme = match redirect.scheme.as_str() {
        "" if conversion.tls => "https",
        "" => "http",
        given => given,
    };
    if matches!((port, scheme), (80, "http") | (443, "https")) { 0 } else { port }
}

fn direct_response(response: &HttpDirectResponse) -> DirectResponseAction {
    let body = response.body.as_ref().and_then(|body| match (&body.string, &body.bytes) {
        (Some(text), _) => Some(Specifier::InlineString(text.clone())),
        (None, Some(encoded)) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.as_bytes());
            bytes.ok().map(Specifier::InlineBytes)
        }
        (None, None) => None,
    });
    DirectResponseAction {
        status: response.status,
        body: body.map(|specifier| DataSource { specifier: Some(specifier), ..Default::default() }),
        ..Default::default()
    }
}
