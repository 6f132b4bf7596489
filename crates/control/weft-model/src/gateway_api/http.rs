//! Rules for requests, as HTTP rules of a virtual service.

use super::Problem;
use super::backends::{References, Referrer};
use super::read::{HttpRule, backend};
use weft_core::duration;
use weft_k8s_api::gateway_api as api;
use weft_k8s_api::istio::{self, HeaderOperations, Headers, HttpRoute, HttpRouteDestination, StringMatch};

/// Status of a rule that has nowhere to send to.
const NO_BACKEND: u32 = 500;
/// Tries after the first of a rule that asks for retries without saying how many.
const DEFAULT_RETRIES: u32 = 2;
/// What is tried again where a rule asks for retries: the service certainly or very likely has not seen the request.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

/// One rule, by the conditions that are tried for it: each stands by itself, as rules of several routes are sorted.
pub(crate) struct Converted {
    pub routes: Vec<HttpRoute>,
    /// Backends that cannot be used.
    pub unresolved: Option<Problem>,
}

/// Converts one rule.
///
/// # Errors
/// When it asks for what there is not; it is then answered 500 and the route is not accepted.
pub(crate) fn rule(
    references: &References<'_>,
    from: Referrer<'_>,
    name: String,
    rule: &HttpRule,
) -> Result<Converted, Problem> {
    let mut unresolved = None;
    let mut route = HttpRoute { name, ..Default::default() };
    filters(references, from, &mut route, &rule.filters, &mut unresolved)?;
    retries(&mut route, rule);
    if route.redirect.is_none() {
        destinations(references, from, &mut route, rule, &mut unresolved)?;
    }
    let one = |condition: Option<istio::HttpMatchRequest>| HttpRoute {
        matches: condition.into_iter().collect(),
        ..route.clone()
    };
    let routes = match rule.matches.as_slice() {
        [] => vec![one(None)],
        conditions => conditions.iter().cloned().map(|c| one(Some(c))).collect(),
    };
    Ok(Converted { routes, unresolved })
}

/// What answers a rule that cannot be carried out.
pub(crate) fn refused(name: String, rule: &HttpRule) -> Vec<HttpRoute> {
    let answer = || Some(istio::HttpDirectResponse { status: NO_BACKEND, body: None });
    let one = |matches| HttpRoute { name: name.clone(), matches, direct_response: answer(), ..Default::default() };
    match rule.matches.as_slice() {
        [] => vec![one(Vec::new())],
        conditions => conditions.iter().map(|c| one(vec![c.clone()])).collect(),
    }
}

fn filters(
    references: &References<'_>,
    from: Referrer<'_>,
    route: &mut HttpRoute,
    filters: &[api::HttpRouteFilter],
    unresolved: &mut Option<Problem>,
) -> Result<(), Problem> {
    for filter in filters {
        match filter.kind.as_str() {
            "RequestHeaderModifier" | "ResponseHeaderModifier" => header_filter(&mut route.headers, filter),
            "RequestRedirect" => route.redirect = filter.request_redirect.as_ref().map(redirect),
            "URLRewrite" => route.rewrite = filter.url_rewrite.as_ref().map(rewrite),
            "CORS" => route.cors_policy = filter.cors.as_ref().map(cors),
            "RequestMirror" => {
                let Some(mirror) = &filter.request_mirror else { continue };
                let (destination, problem) = references.destination(from, &mirror.backend_ref);
                match problem {
                    Some(problem) => *unresolved = Some(problem),
                    None => route.mirrors.push(istio::HttpMirrorPolicy {
                        destination: Some(destination),
                        percentage: mirror_share(mirror).map(|value| istio::Percent { value }),
                    }),
                }
            }
            other => return Err(unsupported(other)),
        }
    }
    Ok(())
}

fn unsupported(kind: &str) -> Problem {
    Problem::new("UnsupportedValue", format!("filter type {kind:?} is not supported"))
}

fn header_filter(headers: &mut Option<Headers>, filter: &api::HttpRouteFilter) {
    let map = |list: &[api::HttpHeader]| list.iter().map(|h| (h.name.clone(), h.value.clone())).collect();
    let operations =
        |m: &api::HeaderModifier| HeaderOperations { set: map(&m.set), add: map(&m.add), remove: m.remove.clone() };
    let headers = headers.get_or_insert_default();
    if let Some(modifier) = &filter.request_header_modifier {
        headers.request = Some(operations(modifier));
    }
    if let Some(modifier) = &filter.response_header_modifier {
        headers.response = Some(operations(modifier));
    }
}

fn mirror_share(mirror: &api::RequestMirror) -> Option<f64> {
    match (&mirror.percent, &mirror.fraction) {
        (Some(percent), _) => Some(f64::from(*percent)),
        (None, Some(fraction)) => {
            let whole = fraction.denominator.filter(|d| *d > 0).unwrap_or(100);
            Some(f64::from(fraction.numerator) * 100.0 / f64::from(whole))
        }
        (None, None) => None,
    }
}

fn redirect(filter: &api::RequestRedirect) -> istio::HttpRedirect {
    let mut out = istio::HttpRedirect {
        scheme: filter.scheme.clone().unwrap_or_default(),
        authority: filter.hostname.clone().unwrap_or_default(),
        port: filter.port,
        redirect_code: filter.status_code.unwrap_or(302),
        ..Default::default()
    };
    if filter.port.is_none() {
        // A scheme brings its own port; without one, clients stay where they are.
        let stays = filter.scheme.is_none();
        out.derive_port =
            Some(if stays { istio::RedirectPort::FromRequestPort } else { istio::RedirectPort::FromProtocolDefault });
    }
    if let Some(path) = &filter.path {
        out.uri = path.replace_full_path.clone().unwrap_or_default();
        out.prefix_rewrite = path.replace_prefix_match.clone().map(|p| whole_elements(&p)).unwrap_or_default();
    }
    out
}

fn rewrite(filter: &api::UrlRewrite) -> istio::HttpRewrite {
    let mut out = istio::HttpRewrite { authority: filter.hostname.clone().unwrap_or_default(), ..Default::default() };
    if let Some(path) = &filter.path {
        if let Some(full) = &path.replace_full_path {
            let full = if full.is_empty() { "/".to_string() } else { full.replace('\\', "\\\\") };
            out.uri_regex_rewrite = Some(istio::RegexRewrite { regex: "^/.*$".into(), rewrite: full });
        }
        out.uri = path.replace_prefix_match.clone().map(|p| whole_elements(&p)).unwrap_or_default();
    }
    out
}

/// `/a/` and `/a` replace the same; nothing and `/` take the prefix away.
fn whole_elements(path: &str) -> String {
    match path.trim_end_matches('/') {
        "" => "/".into(),
        path => path.into(),
    }
}

fn cors(filter: &api::Cors) -> istio::CorsPolicy {
    let origin = |text: &String| match text.split_once('*') {
        None => StringMatch::Exact(text.clone()),
        Some(("", "")) => StringMatch::Regex(".*".into()),
        Some((before, after)) => StringMatch::Regex(format!("{}[^/]+{}", escape(before), escape(after))),
    };
    istio::CorsPolicy {
        allow_origins: filter.allow_origins.iter().map(origin).collect(),
        allow_methods: filter.allow_methods.clone(),
        allow_headers: filter.allow_headers.clone(),
        expose_headers: filter.expose_headers.clone(),
        max_age: Some(istio::Duration::from_secs(u64::from(filter.max_age.unwrap_or(5)))),
        allow_credentials: filter.allow_credentials,
        unmatched_preflights: istio::UnmatchedPreflights::Ignore,
        ..Default::default()
    }
}

/// The text as an expression that matches it alone.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_ascii_punctuation() && c != '/' && c != '_' && c != '-' && c != ':' {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn retries(route: &mut HttpRoute, rule: &HttpRule) {
    let time = |text: &Option<String>| {
        text.as_deref().and_then(|t| duration::parse(t).ok()).filter(|t| !t.is_zero()).map(istio::Duration)
    };
    if let Some(retry) = &rule.retry {
        let codes = retry.codes.iter().map(|code| format!(",{code}"));
        route.retries = Some(istio::HttpRetry {
            attempts: retry.attempts.unwrap_or(DEFAULT_RETRIES),
            retry_on: std::iter::once(RETRY_ON.to_string()).chain(codes).collect(),
            backoff: time(&retry.backoff),
            ..Default::default()
        });
    }
    let Some(timeouts) = &rule.timeouts else { return };
    route.timeout = time(&timeouts.request);
    if let Some(each) = time(&timeouts.backend_request) {
        match &mut route.retries {
            Some(retries) => retries.per_try_timeout = Some(each),
            // One try is the whole request, as long as none follows.
            None => route.timeout = Some(route.timeout.map_or(each, |whole| whole.min(each))),
        }
    }
}

fn destinations(
    references: &References<'_>,
    from: Referrer<'_>,
    route: &mut HttpRoute,
    rule: &HttpRule,
    unresolved: &mut Option<Problem>,
) -> Result<(), Problem> {
    for to in &rule.backends {
        let (destination, problem) = references.destination(from, &backend(to));
        *unresolved = unresolved.take().or(problem);
        let mut headers = None;
        for filter in &to.filters {
            match filter.kind.as_str() {
                "RequestHeaderModifier" | "ResponseHeaderModifier" => header_filter(&mut headers, filter),
                other => return Err(unsupported(other)),
            }
        }
        route.route.push(HttpRouteDestination {
            destination: Some(destination),
            weight: to.weight.unwrap_or(1),
            headers,
        });
    }
    route.route.retain(|to| to.weight > 0);
    if route.route.is_empty() {
        route.direct_response = Some(istio::HttpDirectResponse { status: NO_BACKEND, body: None });
        route.rewrite = None;
        route.mirrors.clear();
    }
    Ok(())
}

/// Which of two conditions for one host is tried first: the greater. Exact paths, then longer prefixes, then expressions,
/// then every path; then those with a method, more headers, more query parameters.
pub(crate) fn rank(route: &HttpRoute) -> (u8, usize, bool, usize, usize) {
    let Some(condition) = route.matches.first() else { return (0, 0, false, 0, 0) };
    let (kind, length) = match &condition.uri {
        Some(StringMatch::Exact(path)) => (3, path.len()),
        Some(StringMatch::Prefix(path)) => (2, path.len()),
        Some(StringMatch::Regex(regex)) => (1, regex.len()),
        Some(StringMatch::Present) | None => (0, 0),
    };
    (kind, length, condition.method.is_some(), condition.headers.len(), condition.query_params.len())
}
