//! What a route does to path, host and headers; where a redirect points; the hash of a request. Values with `%COMMAND%`s are
//! given to a callback: this crate knows no connection and no clock.

use crate::xxhash::xxhash64;
use crate::{
    AppendAction, HashPolicy, HashSource, HeaderEdit, HeaderFormat, HeaderKey, HeaderOps, HostRewrite, PathMatcher,
    PathRewrite, Redirect, RequestView, Route, RouteMatcher, RouteTable, VirtualHost, WeightedCluster,
};
use http::{HeaderMap, HeaderValue};
use smallvec::SmallVec;
use std::net::IpAddr;
use std::time::Duration;
use weft_core::Strng;

/// Longest path that a substitution may make, in bytes.
const MAX_REWRITTEN: usize = 64 * 1024;

/// The new path, with the query, when the rewrite changes it. `path` is the normalised one that matched.
pub fn rewrite_path(rewrite: &PathRewrite, matcher: &RouteMatcher, path: &str, query: Option<&str>) -> Option<String> {
    let mut new = rewrite_path_only(rewrite, matcher, path)?;
    if let Some(query) = query {
        new.push('?');
        new.push_str(query);
    }
    Some(new)
}

fn rewrite_path_only(rewrite: &PathRewrite, matcher: &RouteMatcher, path: &str) -> Option<String> {
    let new = match rewrite {
        PathRewrite::Keep => return None,
        PathRewrite::Full(whole) => whole.to_string(),
        PathRewrite::Prefix(prefix) => {
            let matched = matched_length(&matcher.path, path);
            format!("{prefix}{}", path.get(matched..).unwrap_or_default())
        }
        PathRewrite::Regex(regex, substitution) => {
            let new = regex.0.replace_all(path.as_bytes(), substitution.as_bytes());
            String::from_utf8(new.into_owned()).ok()?
        }
    };
    (new.len() <= MAX_REWRITTEN && new.bytes().all(|b| b > b' ' && b != 0x7f)).then_some(new)
}

/// How much of the path the matcher's prefix took; expressions and exact paths take all of it.
fn matched_length(matcher: &PathMatcher, path: &str) -> usize {
    match matcher {
        PathMatcher::Prefix(prefix) | PathMatcher::SegmentPrefix(prefix) => prefix.len().min(path.len()),
        _ => path.len(),
    }
}

/// The new authority, when the rewrite is one that the request alone decides ([`HostRewrite::Auto`] is the endpoint's).
pub fn rewrite_host(rewrite: &HostRewrite, headers: &HeaderMap, path: &str) -> Option<HeaderValue> {
    match rewrite {
        HostRewrite::Keep | HostRewrite::Auto => None,
        HostRewrite::Literal(host) => Some(host.clone()),
        HostRewrite::Header(name) => headers.get(name).filter(|v| is_host(v.as_bytes())).cloned(),
        HostRewrite::PathRegex(regex, substitution) => {
            let new = regex.0.replace_all(path.as_bytes(), substitution.as_bytes());
            if is_host(&new) { HeaderValue::from_bytes(&new).ok() } else { None }
        }
    }
}

/// Text of a request may become the authority only when it is one.
fn is_host(text: &[u8]) -> bool {
    !text.is_empty() && http::uri::Authority::try_from(text).is_ok()
}

/// Turns a substitution with `\1` into the form of the `regex` crate.
///
/// # Errors
/// When a group is named that the expression has not, or a backslash stands before something else.
pub fn substitution(text: &str, groups: usize) -> Result<String, String> {
    let mut out = String::with_capacity(text.len() + 8);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit @ '0'..='9') => {
                    let group = digit as usize - '0' as usize;
                    if group >= groups {
                        return Err(format!("{text:?}: \\{group} is not a group of the expression"));
                    }
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                _ => return Err(format!("{text:?}: a backslash must be followed by a digit or a backslash")),
            },
            other => out.push(other),
        }
    }
    Ok(out)
}

/// The value of `Location` for a redirect.
pub fn location(redirect: &Redirect, matcher: &RouteMatcher, request: &RequestView<'_>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let host = match &redirect.host {
        Some(host) => host,
        None => request_host(redirect, scheme, request),
    };
    let mut out = format!("{scheme}://{host}");
    if let Some(port) = redirect.port {
        out.push_str(&format!(":{port}"));
    }
    let path = rewrite_path_only(&redirect.path, matcher, request.path);
    let path = path.as_deref().unwrap_or(request.path);
    out.push_str(path);
    // A path that brings a query keeps its own.
    if let Some(query) = request.query
        && !redirect.strip_query
        && !path.contains('?')
    {
        out.push('?');
        out.push_str(query);
    }
    out
}

/// The host the client used; without its port when the redirect sets one, or when it is the old scheme's default.
fn request_host<'r>(redirect: &Redirect, scheme: &str, request: &RequestView<'r>) -> &'r str {
    let host = crate::normalize::without_port(request.authority);
    let port = request.authority[host.len()..].strip_prefix(':').unwrap_or_default();
    let default = match request.scheme {
        "https" => "443",
        _ => "80",
    };
    let drop = redirect.port.is_some() || (scheme != request.scheme && port == default);
    if drop { host } else { request.authority }
}

/// Which side of a header operation is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The request, on its way to the endpoint.
    Request,
    /// The response, on its way to the client.
    Response,
}

/// The edits of a request in the order in which they are applied: from the weighted cluster up to the table, so that the
/// table has the last word; the other way round when the table says that the most specific one wins.
pub fn edits<'t>(
    table: &'t RouteTable,
    host: &'t VirtualHost,
    route: &'t Route,
    cluster: Option<&'t WeightedCluster>,
    side: Side,
) -> impl Iterator<Item = &'t HeaderEdit> {
    let mut levels: [Option<&HeaderOps>; 4] =
        [cluster.map(|c| &c.headers), Some(&route.headers), Some(&host.headers), Some(&table.headers)];
    if table.most_specific_wins {
        levels.reverse();
    }
    levels.into_iter().flatten().map(move |ops| match side {
        Side::Request => &ops.request,
        Side::Response => &ops.response,
    })
}

impl HeaderEdit {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    /// A value is made of what is known of the exchange.
    pub fn has_commands(&self) -> bool {
        self.add.iter().any(|add| matches!(add.value, HeaderFormat::Command(_)))
    }

    /// Removes, then overwrites, then adds, wherever in the list each stands (Envoy's `HeaderParser::evaluateHeaders`). `command` makes the text of a format with `%COMMAND%`s; `None` leaves the header out. `authority`
    /// is called with a new `:authority`.
    pub fn apply(
        &self,
        headers: &mut HeaderMap,
        mut command: impl FnMut(&Strng, &HeaderMap) -> Option<HeaderValue>,
        mut authority: impl FnMut(HeaderValue),
    ) {
        for name in &self.remove {
            headers.remove(name);
        }
        // All formats and conditions see the headers as they came: what one operation sets, no other reads.
        let wanted: SmallVec<[bool; 8]> = self.add.iter().map(|add| add.is_wanted(headers)).collect();
        let mut made: SmallVec<[Option<HeaderValue>; 4]> = SmallVec::new();
        if self.has_commands() {
            made.extend(self.add.iter().map(|add| match &add.value {
                HeaderFormat::Literal(_) => None,
                HeaderFormat::Command(format) => command(format, headers),
            }));
        }
        let of = |overwriting: bool| {
            self.add.iter().enumerate().filter(move |(_, add)| add.append.overwrites() == overwriting)
        };
        for (i, add) in of(true).chain(of(false)).filter(|(i, _)| wanted[*i]) {
            let value = match &add.value {
                HeaderFormat::Literal(value) => Some(value.clone()),
                HeaderFormat::Command(_) => made.get_mut(i).and_then(Option::take),
            };
            let Some(value) = value.filter(|v| add.keep_empty || !v.is_empty()) else { continue };
            match &add.key {
                HeaderKey::Name(name) if add.append.overwrites() => {
                    headers.insert(name.clone(), value);
                }
                HeaderKey::Name(name) => {
                    headers.append(name.clone(), value);
                }
                HeaderKey::Authority => authority(value),
                // Refused when compiled.
                HeaderKey::Method | HeaderKey::Path | HeaderKey::Scheme => {}
            }
        }
    }
}

/// Sets or adds a header.
pub fn put(headers: &mut HeaderMap, name: &http::HeaderName, value: HeaderValue, append: AppendAction) {
    match append {
        AppendAction::AppendOrAdd => {
            headers.append(name.clone(), value);
        }
        AppendAction::AddIfAbsent if headers.contains_key(name) => {}
        AppendAction::OverwriteIfExists if !headers.contains_key(name) => {}
        AppendAction::AddIfAbsent | AppendAction::OverwriteOrAdd | AppendAction::OverwriteIfExists => {
            headers.insert(name.clone(), value);
        }
    }
}

/// The hash by which a request is balanced; `None` when no policy gave one. `new_cookie(name, lifetime, path)` is asked for
/// the value of a cookie that the client does not have yet, and sees to it that the response sets it.
pub fn compute_hash(
    policies: &[HashPolicy],
    request: &RequestView<'_>,
    source: Option<IpAddr>,
    mut new_cookie: impl FnMut(&Strng, Duration, &Strng) -> String,
) -> Option<u64> {
    let mut hash: Option<u64> = None;
    for policy in policies {
        let part = match &policy.source {
            HashSource::Header(name) => header_hash(request.headers, name),
            HashSource::SourceIp => source.map(|ip| xxhash64(ip.to_string().as_bytes())),
            HashSource::Query(name) => {
                request.query.and_then(|q| crate::matching::query_value(q, name)).map(|v| xxhash64(v.as_bytes()))
            }
            HashSource::Cookie(name, lifetime, path) => match (cookie(request.headers, name), lifetime) {
                (Some(value), _) => Some(xxhash64(value.as_bytes())),
                (None, Some(lifetime)) => Some(xxhash64(new_cookie(name, *lifetime, path).as_bytes())),
                (None, None) => None,
            },
        };
        if let Some(part) = part {
            // Rotated, so that two equal parts do not cancel each other out.
            hash = Some(hash.map_or(part, |old| old.rotate_left(1) ^ part));
        }
        if policy.terminal && hash.is_some() {
            break;
        }
    }
    hash
}

/// Values of a repeated header are hashed in sorted order, each seeding the next, so that their order does not matter.
fn header_hash(headers: &HeaderMap, name: &http::HeaderName) -> Option<u64> {
    let mut values: SmallVec<[&[u8]; 4]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    values.sort_unstable();
    let (first, rest) = values.split_first()?;
    Some(rest.iter().fold(xxhash64(first), |hash, value| crate::xxhash::xxhash64_seeded(value, hash)))
}

/// A cookie of the request.
pub fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get_all(http::header::COOKIE).iter().filter_map(|v| v.to_str().ok()).find_map(|line| {
        line.split(';').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key.trim() == name).then(|| value.trim().trim_matches('"'))
        })
    })
}

#[cfg(test)]
mod tests;
