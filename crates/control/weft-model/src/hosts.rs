//! Host names of the mesh: completing short ones, matching wildcards, and which of two patterns is more specific.
//!
//! A pattern is a full name, `*`, or `*.` and a suffix. All names are lower case here.

use std::cmp::Ordering;
use weft_core::Strng;

/// The full, lower-case form of `host` as written in an object of `namespace`: a name without a dot is a service of that
/// namespace. `*`, IP addresses and names with a dot stay as they are.
pub fn complete(host: &str, namespace: &str, domain: &str) -> Strng {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    if host.is_empty() || host == "*" || host.contains(['.', ':']) {
        return host.into();
    }
    format!("{host}.{namespace}.svc.{domain}").into()
}

/// True for `*` and `*.suffix`.
pub fn is_wildcard(pattern: &str) -> bool {
    pattern.starts_with('*')
}

/// True when every name that `inner` stands for is also one that `pattern` stands for. With a plain name as `inner` this
/// is "does the pattern match the name". `*.foo.com` does not match `foo.com`.
pub fn covers(pattern: &str, inner: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => inner.strip_prefix('*').unwrap_or(inner).ends_with(suffix) && !bare_suffix(suffix, inner),
        None => pattern == inner,
    }
}

/// `.foo.com` itself, without a label before it, is no name under `*.foo.com`.
fn bare_suffix(suffix: &str, inner: &str) -> bool {
    !suffix.is_empty() && inner == suffix
}

/// True when some name matches both patterns.
pub fn overlap(a: &str, b: &str) -> bool {
    covers(a, b) || covers(b, a)
}

/// Orders patterns from the most specific: plain names first, then longer wildcards before shorter ones, then by text.
pub fn by_specificity(a: &str, b: &str) -> Ordering {
    is_wildcard(a).cmp(&is_wildcard(b)).then_with(|| b.len().cmp(&a.len())).then_with(|| a.cmp(b))
}

/// The most specific of `patterns` that covers `host`.
pub fn most_specific<'a, T>(host: &str, patterns: impl Iterator<Item = (&'a str, T)>) -> Option<T> {
    patterns
        .filter(|(pattern, _)| covers(pattern, host))
        .min_by(|(a, _), (b, _)| by_specificity(a, b))
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completes_short_names_only() {
        for (given, full) in [
            ("reviews", "reviews.bookinfo.svc.cluster.local"),
            ("Reviews", "reviews.bookinfo.svc.cluster.local"),
            ("reviews.other", "reviews.other"),
            ("www.example.com.", "www.example.com"),
            ("*", "*"),
            ("*.Example.com", "*.example.com"),
            ("10.0.0.1", "10.0.0.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("", ""),
        ] {
            assert_eq!(&*complete(given, "bookinfo", "cluster.local"), full, "{given}");
        }
    }

    #[test]
    fn wildcards_cover_names_and_narrower_wildcards() {
        for (pattern, inner, want) in [
            ("a.foo.com", "a.foo.com", true),
            ("a.foo.com", "b.foo.com", false),
            ("*", "anything", true),
            ("*", "*", true),
            ("*.foo.com", "a.foo.com", true),
            ("*.foo.com", "a.b.foo.com", true),
            ("*.foo.com", "foo.com", false),
            ("*.foo.com", ".foo.com", false),
            ("*.foo.com", "xfoo.com", false),
            ("*.foo.com", "*.b.foo.com", true),
            ("*.b.foo.com", "*.foo.com", false),
            ("*.foo.com", "*.foo.com", true),
            ("*.foo.com", "*", false),
        ] {
            assert_eq!(covers(pattern, inner), want, "{pattern} covers {inner}");
        }
        assert!(overlap("*.b.foo.com", "*.foo.com"));
        assert!(!overlap("*.b.com", "*.foo.com"));
    }

    #[test]
    fn exact_then_longest_wildcard_wins() {
        let patterns = ["*", "*.com", "*.foo.com", "a.foo.com"];
        for (host, want) in [
            ("a.foo.com", Some("a.foo.com")),
            ("b.foo.com", Some("*.foo.com")),
            ("bar.com", Some("*.com")),
            ("bar.org", Some("*")),
        ] {
            assert_eq!(most_specific(host, patterns.iter().map(|p| (*p, *p))), want, "{host}");
        }
        assert_eq!(most_specific("x", [("y", 1)].into_iter()), None);
    }
}
