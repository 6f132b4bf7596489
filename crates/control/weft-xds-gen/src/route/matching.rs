//! Conditions on requests.

use crate::pb::envoy_matcher::{
    ListMatcher, MetadataMatcher, OrMatcher, StringMatcher, ValueMatcher, list_matcher, metadata_matcher, value_matcher,
};
use crate::pb::matcher;
use crate::pb::route::query_parameter_matcher::QueryParameterMatchSpecifier;
use crate::pb::route::{HeaderMatcher, QueryParameterMatcher, RouteMatch, route_match::PathSpecifier};
use weft_k8s_api::istio::{HttpMatchRequest, StringMatch};

/// Beginning of the header names that stand for claims of the request's token.
const CLAIMS: &str = "@request.auth.claims";

/// The conditions of one `match` that the request itself decides. With `elements`, a path prefix stands for whole path
/// elements: `/a` is not a prefix of `/ab`.
pub(super) fn route_match(condition: &HttpMatchRequest, elements: bool) -> RouteMatch {
    let mut out = RouteMatch {
        path_specifier: Some(path(condition.uri.as_ref(), elements)),
        case_sensitive: Some(!condition.ignore_uri_case),
        ..Default::default()
    };
    for (name, value) in &condition.headers {
        add_header(&mut out, name, value, false);
    }
    for (name, value) in &condition.without_headers {
        add_header(&mut out, name, value, true);
    }
    // Conditions that are the same but written in another order give the same route.
    out.headers.sort_by(|a, b| a.name.cmp(&b.name));
    let pseudo = [(":method", &condition.method), (":authority", &condition.authority), (":scheme", &condition.scheme)];
    for (name, value) in pseudo {
        out.headers.extend(value.as_ref().map(|v| header(name, v)));
    }
    out.query_parameters = condition.query_params.iter().map(|(name, value)| query(name, value)).collect();
    out
}

fn path(uri: Option<&StringMatch>, elements: bool) -> PathSpecifier {
    match uri {
        Some(StringMatch::Prefix(prefix)) if elements && prefix != "/" => {
            PathSpecifier::PathSeparatedPrefix(prefix.clone())
        }
        Some(StringMatch::Exact(path)) => PathSpecifier::Path(path.clone()),
        Some(StringMatch::Prefix(prefix)) => PathSpecifier::Prefix(prefix.clone()),
        Some(StringMatch::Regex(regex)) => PathSpecifier::SafeRegex(matcher::re2(regex.clone())),
        Some(StringMatch::Present) | None => PathSpecifier::Prefix("/".into()),
    }
}

/// `None` for "there is any": no condition on the text.
fn text(value: &StringMatch) -> Option<StringMatcher> {
    match value {
        StringMatch::Present => None,
        StringMatch::Regex(regex) if regex == "*" => None,
        StringMatch::Exact(text) => Some(matcher::exact(text.clone())),
        StringMatch::Prefix(text) => Some(matcher::prefix(text.clone())),
        StringMatch::Regex(regex) => Some(matcher::regex(regex.clone())),
    }
}

fn header(name: &str, value: &StringMatch) -> HeaderMatcher {
    match text(value) {
        Some(test) => matcher::header(name, test),
        None => matcher::header_present(name),
    }
}

fn add_header(out: &mut RouteMatch, name: &str, value: &StringMatch, without: bool) {
    if let Some(path) = claim_path(name) {
        out.dynamic_metadata.push(claim(path, value, without));
        return;
    }
    let mut test = header(name, value);
    test.invert_match = without;
    // A header that is not there has not the value either.
    test.treat_missing_header_as_empty = without && text(value).is_some();
    out.headers.push(test);
}

fn query(name: &str, value: &StringMatch) -> QueryParameterMatcher {
    let specifier = match text(value) {
        Some(test) => QueryParameterMatchSpecifier::StringMatch(test),
        None => QueryParameterMatchSpecifier::PresentMatch(true),
    };
    QueryParameterMatcher { name: name.into(), query_parameter_match_specifier: Some(specifier) }
}

/// `@request.auth.claims.a.b` or `@request.auth.claims[a][b]` → `a`, `b`.
fn claim_path(name: &str) -> Option<Vec<String>> {
    let rest =
        name.get(..CLAIMS.len()).filter(|head| head.eq_ignore_ascii_case(CLAIMS)).map(|_| &name[CLAIMS.len()..])?;
    let parts: Vec<String> = match rest.strip_prefix('.') {
        Some(dotted) => dotted.split('.').map(str::to_string).collect(),
        None => rest.strip_prefix('[')?.strip_suffix(']')?.split("][").map(str::to_string).collect(),
    };
    parts.iter().all(|p| !p.is_empty()).then_some(parts)
}

/// The claim is the value, or a list that holds it.
fn claim(path: Vec<String>, value: &StringMatch, invert: bool) -> MetadataMatcher {
    let pattern = match text(value) {
        Some(test) => value_matcher::MatchPattern::StringMatch(test),
        None => value_matcher::MatchPattern::PresentMatch(true),
    };
    let one = ValueMatcher { match_pattern: Some(pattern) };
    let list = ListMatcher { match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(one.clone()))) };
    let list = ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::ListMatch(Box::new(list))) };
    let either = OrMatcher { value_matchers: vec![list, one] };
    let segment = |key: String| metadata_matcher::PathSegment {
        segment: Some(metadata_matcher::path_segment::Segment::Key(key)),
    };
    MetadataMatcher {
        filter: "envoy.filters.http.jwt_authn".into(),
        path: std::iter::once("payload".to_string()).chain(path).map(segment).collect(),
        value: Some(ValueMatcher { match_pattern: Some(value_matcher::MatchPattern::OrMatch(either)) }),
        invert,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_by_dots_or_brackets() {
        for (name, want) in [
            ("@request.auth.claims.iss", Some("iss")),
            ("@request.auth.claims.a.b", Some("a|b")),
            ("@request.auth.claims[a.b][c]", Some("a.b|c")),
            ("@request.auth.claims", None),
            ("x-header", None),
            ("@request.auth.claims..", None),
        ] {
            assert_eq!(claim_path(name).map(|p| p.join("|")).as_deref(), want, "{name}");
        }
    }
}
