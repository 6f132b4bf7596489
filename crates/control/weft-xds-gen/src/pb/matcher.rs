//! String and header matchers.

use super::envoy_matcher::{RegexMatcher, StringMatcher, string_matcher::MatchPattern};
use super::route::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};

fn string(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ignore_case: false }
}

/// Equal.
pub(crate) fn exact(text: impl Into<String>) -> StringMatcher {
    string(MatchPattern::Exact(text.into()))
}

/// Starts with. An empty prefix, which Envoy refuses, means any text.
pub(crate) fn prefix(text: impl Into<String>) -> StringMatcher {
    let text = text.into();
    if text.is_empty() { regex(".*") } else { string(MatchPattern::Prefix(text)) }
}

/// Ends with. An empty suffix, which Envoy refuses, means any text.
pub(crate) fn suffix(text: impl Into<String>) -> StringMatcher {
    let text = text.into();
    if text.is_empty() { regex(".*") } else { string(MatchPattern::Suffix(text)) }
}

/// Matches as a whole.
pub(crate) fn regex(pattern: impl Into<String>) -> StringMatcher {
    string(MatchPattern::SafeRegex(re2(pattern)))
}

/// The same, ignoring ASCII case.
pub(crate) fn ignoring_case(matcher: StringMatcher) -> StringMatcher {
    // Envoy has no case switch for expressions: there it goes into the expression.
    match matcher.match_pattern {
        Some(MatchPattern::SafeRegex(re)) => regex(format!("(?i){}", re.regex)),
        pattern => StringMatcher { match_pattern: pattern, ignore_case: true },
    }
}

/// A regular expression in RE2 syntax.
pub(crate) fn re2(pattern: impl Into<String>) -> RegexMatcher {
    RegexMatcher { regex: pattern.into(), engine_type: None }
}

/// Condition on a header's value.
pub(crate) fn header(name: &str, matcher: StringMatcher) -> HeaderMatcher {
    HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        ..Default::default()
    }
}

/// The header is there.
pub(crate) fn header_present(name: &str) -> HeaderMatcher {
    HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
        ..Default::default()
    }
}

/// `text` as a regular expression that matches only itself.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}
