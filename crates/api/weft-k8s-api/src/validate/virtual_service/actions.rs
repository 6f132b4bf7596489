//! Rules for what an HTTP route does with a request besides choosing a destination.

use super::destination;
use crate::istio::{
    CorsPolicy, FaultAbort, FaultDelay, HeaderOperations, Headers, HttpDirectResponse, HttpRedirect, HttpRetry,
    HttpRewrite, HttpRoute, RedirectPort, StringMatch,
};
use crate::validate::Report;
use crate::validate::check::set_of;

/// Envoy's limit of a direct response's body, bytes.
const BODY_LIMIT: usize = 1 << 20;

/// Conditions of `retryOn` that Envoy knows.
const RETRY_ON: [&str; 18] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
    "unknown",
    "aborted",
];

/// Names of gRPC status codes, in the order of their numbers.
const GRPC_STATUS: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

pub(super) fn check(route: &HttpRoute, path: &str, report: &mut Report) {
    headers(route.headers.as_ref(), path, report);
    report.duration_or_zero(format_args!("{path}.timeout"), route.timeout);
    if let Some(redirect) = &route.redirect {
        check_redirect(redirect, route, &format!("{path}.redirect"), report);
    }
    if let Some(response) = &route.direct_response {
        check_direct_response(response, &format!("{path}.directResponse"), report);
    }
    if let Some(rewrite) = &route.rewrite {
        check_rewrite(rewrite, &format!("{path}.rewrite"), report);
    }
    if let Some(retry) = &route.retries {
        check_retry(retry, &format!("{path}.retries"), report);
    }
    if let Some(cors) = &route.cors_policy {
        check_cors(cors, &format!("{path}.corsPolicy"), report);
    }
    check_fault(route, path, report);
    check_mirrors(route, path, report);
}

fn check_redirect(redirect: &HttpRedirect, route: &HttpRoute, path: &str, report: &mut Report) {
    let nothing = HttpRedirect { redirect_code: redirect.redirect_code, ..Default::default() };
    if *redirect == nothing {
        report.error(path, "changes nothing; add uri, prefixRewrite, authority, port or scheme");
    }
    if !redirect.uri.is_empty() && !redirect.prefix_rewrite.is_empty() {
        report.error(path, "has uri and prefixRewrite; keep one");
    }
    let prefixes = |r: &HttpRoute| r.matches.iter().any(|m| matches!(m.uri, Some(StringMatch::Prefix(_))));
    if !redirect.prefix_rewrite.is_empty() && !prefixes(route) {
        report.error(format_args!("{path}.prefixRewrite"), "needs a match with uri.prefix, which it replaces");
    }
    if let Some(port) = redirect.port {
        report.port(format_args!("{path}.port"), port);
        if redirect.derive_port == Some(RedirectPort::FromRequestPort) {
            report.error(path, "has port and derivePort; keep one");
        }
    }
    if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
        report.error(format_args!("{path}.scheme"), format!("{:?} must be http or https", redirect.scheme));
    }
    if !matches!(redirect.redirect_code, 0 | 301 | 302 | 303 | 307 | 308) {
        let message = format!("{} is not a redirect; use 301, 302, 303, 307 or 308", redirect.redirect_code);
        report.error(format_args!("{path}.redirectCode"), message);
    }
}

fn check_direct_response(response: &HttpDirectResponse, path: &str, report: &mut Report) {
    if !(200..=599).contains(&response.status) {
        let message = format!("{} is not a status; it must be between 200 and 599", response.status);
        report.error(format_args!("{path}.status"), message);
    }
    let Some(body) = &response.body else { return };
    let length = body.string.as_deref().map_or(0, str::len) + body.bytes.as_deref().map_or(0, |b| b.len() / 4 * 3);
    if body.string.is_some() && body.bytes.is_some() {
        report.error(format_args!("{path}.body"), "has string and bytes; keep one");
    }
    if body.bytes.as_deref().is_some_and(|b| !is_base64(b)) {
        report.error(format_args!("{path}.body.bytes"), "is not base64");
    }
    if length > BODY_LIMIT {
        let message = format!("is {length} bytes; the limit is {BODY_LIMIT}");
        report.error(format_args!("{path}.body"), message);
    } else if length > 100 * 1024 {
        report.warn(
            format_args!("{path}.body"),
            "is large, and is kept in every proxy; serve it from a workload instead",
        );
    }
}

fn is_base64(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    text.len().is_multiple_of(4)
        && text.len() - body.len() <= 2
        && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/-_".contains(&b))
}

fn check_rewrite(rewrite: &HttpRewrite, path: &str, report: &mut Report) {
    if *rewrite == HttpRewrite::default() {
        report.error(path, "changes nothing; add uri, uriRegexRewrite or authority");
    }
    if let Some(regex) = &rewrite.uri_regex_rewrite {
        if !rewrite.uri.is_empty() {
            report.error(path, "has uri and uriRegexRewrite; keep one");
        }
        report.regex(format_args!("{path}.uriRegexRewrite.match"), &regex.regex);
        report.required(
            format_args!("{path}.uriRegexRewrite.rewrite"),
            &regex.rewrite,
            "the replacement, such as /\\1",
        );
    }
}

fn check_retry(retry: &HttpRetry, path: &str, report: &mut Report) {
    let set = set_of(&[
        ("perTryTimeout", retry.per_try_timeout.is_some()),
        ("retryOn", !retry.retry_on.is_empty()),
        ("retryRemoteLocalities", retry.retry_remote_localities.is_some()),
    ]);
    if retry.attempts == 0 && !set.is_empty() {
        let message =
            format!("is 0, which turns retries off, but {} is set; raise it or remove that", set.join(" and "));
        report.error(format_args!("{path}.attempts"), message);
    }
    report.duration_or_zero(format_args!("{path}.perTryTimeout"), retry.per_try_timeout);
    report.duration(format_args!("{path}.backoff"), retry.backoff);
    for condition in retry.retry_on.split(',').map(str::trim).filter(|c| !c.is_empty()) {
        let is_status = condition.parse::<u16>().is_ok_and(|code| (100..=599).contains(&code));
        if !is_status && !RETRY_ON.contains(&condition) {
            let message = format!("{condition:?} is not known; use a status code or {}", RETRY_ON.join(", "));
            report.error(format_args!("{path}.retryOn"), message);
        }
    }
}

fn check_cors(cors: &CorsPolicy, path: &str, report: &mut Report) {
    if !cors.allow_origin.is_empty() {
        report.warn(format_args!("{path}.allowOrigin"), "is the older spelling; use allowOrigins with exact");
    }
    for (i, origin) in cors.allow_origins.iter().enumerate() {
        let path = format!("{path}.allowOrigins[{i}]");
        if *origin == StringMatch::Present {
            report.error(&path, "is empty; add exact, prefix or regex");
        }
        report.string_match(&path, origin);
    }
    for (i, method) in cors.allow_methods.iter().enumerate() {
        let capitals = method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
        if method.is_empty() || (method != "*" && !capitals) {
            let message = format!("{method:?} is not a method; write it in capitals, such as GET");
            report.error(format_args!("{path}.allowMethods[{i}]"), message);
        }
    }
    for (field, names) in [("allowHeaders", &cors.allow_headers), ("exposeHeaders", &cors.expose_headers)] {
        for (i, name) in names.iter().enumerate() {
            report.header_name(format_args!("{path}.{field}[{i}]"), name);
        }
    }
    if cors.max_age.is_some_and(|age| age.get().subsec_nanos() != 0) {
        report.error(format_args!("{path}.maxAge"), "has fractions of a second; give whole seconds");
    }
}

fn check_fault(route: &HttpRoute, path: &str, report: &mut Report) {
    let Some(fault) = &route.fault else { return };
    let path = format!("{path}.fault");
    if fault.delay.is_none() && fault.abort.is_none() {
        report.error(&path, "is empty; add delay or abort");
    }
    if let Some(delay) = &fault.delay {
        check_delay(delay, &format!("{path}.delay"), report);
    }
    if let Some(abort) = &fault.abort {
        check_abort(abort, &format!("{path}.abort"), report);
    }
}

fn check_delay(delay: &FaultDelay, path: &str, report: &mut Report) {
    report.percentage(format_args!("{path}.percentage"), delay.percentage.as_ref());
    report.percent(format_args!("{path}.percent"), f64::from(delay.percent.unwrap_or(0)));
    report.duration(format_args!("{path}.fixedDelay"), delay.fixed_delay);
    if delay.exponential_delay.is_some() {
        report.error(format_args!("{path}.exponentialDelay"), "is not supported; use fixedDelay");
    } else if delay.fixed_delay.is_none() {
        report.error(format_args!("{path}.fixedDelay"), "is required: how long to wait, such as 5s");
    }
    if delay.share() == 0.0 {
        report.warn(path, "delays no request; set percentage.value");
    }
}

fn check_abort(abort: &FaultAbort, path: &str, report: &mut Report) {
    report.percentage(format_args!("{path}.percentage"), abort.percentage.as_ref());
    report.percent(format_args!("{path}.percent"), f64::from(abort.percent.unwrap_or(0)));
    let set = set_of(&[("httpStatus", abort.http_status.is_some()), ("grpcStatus", abort.grpc_status.is_some())]);
    if abort.http2_error.is_some() {
        report.error(format_args!("{path}.http2Error"), "is not supported; use httpStatus or grpcStatus");
    } else if set.is_empty() {
        report.error(path, "has no status; add httpStatus or grpcStatus");
    }
    if set.len() > 1 {
        report.error(path, "has httpStatus and grpcStatus; keep one");
    }
    if let Some(status) = abort.http_status.filter(|s| !(200..=599).contains(s)) {
        let message = format!("{status} is not a status; it must be between 200 and 599");
        report.error(format_args!("{path}.httpStatus"), message);
    }
    if let Some(status) = abort.grpc_status.as_deref().filter(|s| !is_grpc_status(s)) {
        let message =
            format!("{status:?} is not a gRPC status; use a number from 0 to 16 or {}", GRPC_STATUS.join(", "));
        report.error(format_args!("{path}.grpcStatus"), message);
    }
    if abort.share() == 0.0 {
        report.warn(path, "aborts no request; set percentage.value");
    }
}

fn is_grpc_status(status: &str) -> bool {
    GRPC_STATUS.contains(&status) || status.parse::<u32>().is_ok_and(|number| number <= 16)
}

fn check_mirrors(route: &HttpRoute, path: &str, report: &mut Report) {
    if let Some(mirror) = &route.mirror {
        destination(Some(mirror), &format!("{path}.mirror"), report);
    }
    report.percentage(format_args!("{path}.mirrorPercentage"), route.mirror_percentage.as_ref());
    report.percent(format_args!("{path}.mirrorPercent"), f64::from(route.mirror_percent.unwrap_or(0)));
    for (i, mirror) in route.mirrors.iter().enumerate() {
        let path = format!("{path}.mirrors[{i}]");
        destination(mirror.destination.as_ref(), &format!("{path}.destination"), report);
        report.percentage(format_args!("{path}.percentage"), mirror.percentage.as_ref());
    }
}

/// Changes of headers: names that exist, values that are allowed.
pub(super) fn headers(headers: Option<&Headers>, path: &str, report: &mut Report) {
    let Some(headers) = headers else { return };
    for (side, operations) in [("request", &headers.request), ("response", &headers.response)] {
        if let Some(operations) = operations {
            header_operations(operations, &format!("{path}.headers.{side}"), report);
        }
    }
}

fn header_operations(operations: &HeaderOperations, path: &str, report: &mut Report) {
    for (field, map) in [("set", &operations.set), ("add", &operations.add)] {
        for (name, value) in map {
            let path = format!("{path}.{field}[{name:?}]");
            // `:authority` may be set, as the only pseudo-header.
            if !(field == "set" && name == ":authority") {
                report.header_name(&path, name);
            }
            if value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
                report.error(&path, "has a control character in its value; remove it");
            }
        }
    }
    for (i, name) in operations.remove.iter().enumerate() {
        report.header_name(format_args!("{path}.remove[{i}]"), name);
        if name.eq_ignore_ascii_case("host") {
            report.error(
                format_args!("{path}.remove[{i}]"),
                "Host cannot be removed; use rewrite.authority to change it",
            );
        }
    }
}
