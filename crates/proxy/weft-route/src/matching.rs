//! A request → its virtual host and route. Nothing here allocates, except a condition on a path that has a query and is long.

use crate::{
    HeaderKey, HeaderMatcher, HeaderTest, PathMatcher, QueryMatcher, RequestView, Route, RouteMatcher, RouteTable,
    Routed, StringMatcher, VirtualHost, WeightedCluster, WeightedClusters,
};
use http::HeaderMap;
use smallvec::SmallVec;
use std::sync::Arc;

impl RouteTable {
    /// The virtual host and route of a request. `random` decides shares ([`RouteMatcher::fraction`]).
    pub fn find(&self, request: &RequestView<'_>, random: u64) -> Routed<'_> {
        let Some(host) = self.find_host(request.authority) else { return Routed::NoHost };
        match host.find_route(request, random) {
            Some(route) => Routed::Route(host, route),
            None => Routed::NoRoute(host),
        }
    }

    /// The virtual host of an authority in lower case: exact, then longest suffix, longest prefix, and `*`.
    pub fn find_host(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        let host = if self.ignore_port_in_host { crate::normalize::without_port(authority) } else { authority };
        let number = self
            .exact
            .get(host)
            .copied()
            .or_else(|| self.suffixes.find_suffix(host))
            .or_else(|| self.prefixes.find_prefix(host))
            .or(self.catch_all)?;
        self.virtual_hosts.get(number as usize)
    }
}

impl RouteTable {
    /// Some virtual host has the authority among its domains as it is, so that no other could be the one.
    pub fn names(&self, authority: &str) -> bool {
        let host = if self.ignore_port_in_host { crate::normalize::without_port(authority) } else { authority };
        self.exact.contains_key(host)
    }
}

impl VirtualHost {
    /// The first route that matches.
    pub fn find_route(&self, request: &RequestView<'_>, random: u64) -> Option<&Arc<Route>> {
        self.routes.iter().find(|route| route.matcher.matches(request, random))
    }
}

impl RouteMatcher {
    /// All conditions hold.
    pub fn matches(&self, request: &RequestView<'_>, random: u64) -> bool {
        self.path.matches(request, self.ignore_case)
            && self.fraction.is_none_or(|share| random % 1_000_000 < u64::from(share))
            && (!self.grpc || is_grpc(request.headers))
            && self.headers.iter().all(|header| header.matches(request))
            && self.query.iter().all(|query| query.matches(request.query))
            && self.metadata.iter().all(|metadata| metadata.matches(request.metadata))
    }
}

/// The request's content type says gRPC.
fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(http::header::CONTENT_TYPE) else { return false };
    match content_type.as_bytes().strip_prefix(b"application/grpc") {
        Some([]) => true,
        Some([next, ..]) => *next == b'+',
        None => false,
    }
}

impl PathMatcher {
    /// The path (without query) matches. A `CONNECT` request has no path: only a matcher for it, or for any path, holds.
    pub fn matches(&self, request: &RequestView<'_>, ignore_case: bool) -> bool {
        let path = request.path;
        if request.method == http::Method::CONNECT && path.is_empty() {
            return matches!(self, PathMatcher::Connect | PathMatcher::Any);
        }
        match self {
            PathMatcher::Any => true,
            PathMatcher::Exact(exact) => same(path, exact, ignore_case),
            PathMatcher::Prefix(prefix) => starts(path, prefix, ignore_case),
            PathMatcher::SegmentPrefix(prefix) => {
                starts(path, prefix, ignore_case) && matches!(path.as_bytes().get(prefix.len()), None | Some(b'/'))
            }
            PathMatcher::Regex(regex) | PathMatcher::Template(regex) => regex.is_match(path.as_bytes()),
            PathMatcher::Connect => request.method == http::Method::CONNECT,
        }
    }
}

fn same(text: &str, wanted: &str, ignore_case: bool) -> bool {
    if ignore_case { text.eq_ignore_ascii_case(wanted) } else { text == wanted }
}

fn starts(text: &str, wanted: &str, ignore_case: bool) -> bool {
    text.as_bytes().get(..wanted.len()).is_some_and(|start| {
        if ignore_case { start.eq_ignore_ascii_case(wanted.as_bytes()) } else { start == wanted.as_bytes() }
    })
}

impl StringMatcher {
    /// The condition holds for `value`, which need not be UTF-8.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            StringMatcher::Exact(text) => value == text.as_bytes(),
            StringMatcher::Prefix(text) => value.starts_with(text.as_bytes()),
            StringMatcher::Suffix(text) => value.ends_with(text.as_bytes()),
            StringMatcher::Contains(text) => contains(value, text.as_bytes(), false),
            StringMatcher::Regex(regex) => regex.is_match(value),
            StringMatcher::IgnoreCase(inner) => inner.matches_ignoring_case(value),
        }
    }

    fn matches_ignoring_case(&self, value: &[u8]) -> bool {
        match self {
            StringMatcher::Exact(text) => value.eq_ignore_ascii_case(text.as_bytes()),
            StringMatcher::Prefix(text) => {
                value.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
            }
            StringMatcher::Suffix(text) => {
                value.len().checked_sub(text.len()).is_some_and(|at| value[at..].eq_ignore_ascii_case(text.as_bytes()))
            }
            StringMatcher::Contains(text) => contains(value, text.as_bytes(), true),
            StringMatcher::Regex(regex) => regex.is_match(value),
            StringMatcher::IgnoreCase(inner) => inner.matches_ignoring_case(value),
        }
    }
}

fn contains(value: &[u8], part: &[u8], ignore_case: bool) -> bool {
    if part.is_empty() {
        return true;
    }
    value.windows(part.len()).any(|w| if ignore_case { w.eq_ignore_ascii_case(part) } else { w == part })
}

impl HeaderMatcher {
    /// The condition holds for the request.
    pub fn matches(&self, request: &RequestView<'_>) -> bool {
        match &self.key {
            HeaderKey::Name(name) => self.matches_map(request.headers, name),
            HeaderKey::Method => self.judge(Some(request.method.as_str().as_bytes())),
            HeaderKey::Authority => self.judge(Some(request.authority.as_bytes())),
            HeaderKey::Scheme => self.judge(Some(request.scheme.as_bytes())),
            HeaderKey::Path => match request.query {
                None => self.judge(Some(request.path.as_bytes())),
                Some(query) => {
                    let mut joined: SmallVec<[u8; 256]> = SmallVec::new();
                    joined.extend_from_slice(request.path.as_bytes());
                    joined.push(b'?');
                    joined.extend_from_slice(query.as_bytes());
                    self.judge(Some(&joined))
                }
            },
        }
    }

    /// The condition holds for the headers of a response; pseudo-headers count as missing.
    pub fn matches_response(&self, headers: &HeaderMap) -> bool {
        match &self.key {
            HeaderKey::Name(name) => self.matches_map(headers, name),
            _ => self.judge(None),
        }
    }

    /// Of a repeated header one value is enough, as in Envoy 1.40; none may hold when the test is inverted.
    fn matches_map(&self, headers: &HeaderMap, name: &http::HeaderName) -> bool {
        let values = headers.get_all(name);
        let mut each = values.iter().map(http::HeaderValue::as_bytes);
        match (each.next(), each.next()) {
            (first, None) => self.judge(first),
            _ => values.iter().any(|value| self.holds(Some(value.as_bytes()))) != self.invert,
        }
    }

    /// A missing header fails every test of its value, inverted or not, unless missing counts as empty.
    fn judge(&self, value: Option<&[u8]>) -> bool {
        let value = match (value, &self.test) {
            (None, HeaderTest::Present(_)) | (Some(_), _) => value,
            (None, _) if self.missing_as_empty => Some(b"".as_slice()),
            (None, _) => return false,
        };
        self.holds(value) != self.invert
    }

    fn holds(&self, value: Option<&[u8]>) -> bool {
        match (&self.test, value) {
            (HeaderTest::Present(wanted), value) => value.is_some() == *wanted,
            (HeaderTest::Value(matcher), Some(value)) => matcher.matches(value),
            (HeaderTest::Range(start, end), Some(value)) => number(value).is_some_and(|n| (*start..*end).contains(&n)),
            (_, None) => false,
        }
    }
}

fn number(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

impl QueryMatcher {
    /// The condition holds. Of a parameter given twice the first counts; names and values are compared as sent.
    pub fn matches(&self, query: Option<&str>) -> bool {
        let found = query.and_then(|q| query_value(q, &self.name));
        match (found, &self.value) {
            (found, None) => found.is_some() != self.absent,
            (Some(value), Some(matcher)) => matcher.matches(value.as_bytes()),
            (None, Some(_)) => false,
        }
    }
}

/// The first value of a parameter in a query.
pub fn query_value<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

impl WeightedClusters {
    /// The cluster that `random` falls on.
    pub fn pick(&self, random: u64) -> Option<&WeightedCluster> {
        let mut left = random % u64::from(self.total.max(1));
        self.clusters.iter().find(|cluster| {
            let weight = u64::from(cluster.weight);
            if left < weight {
                return true;
            }
            left -= weight;
            false
        })
    }
}

#[cfg(test)]
mod tests;
