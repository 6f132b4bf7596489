//! What compiled resources share: equal strings, equal regular expressions. Pure bookkeeping; nothing on the request path.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use weft_core::Strng;
use weft_core::strng::Interner;

/// Longest pattern accepted, in bytes.
const MAX_PATTERN: usize = 8192;
/// Largest compiled program, in bytes: bounds memory and compile time of hostile patterns.
const MAX_PROGRAM: usize = 512 * 1024;

/// A regular expression with linear-time matching and bounded size. Matches bytes: a header need not be UTF-8.
/// Classes such as `\d` are ASCII, as in RE2.
#[derive(Debug, Clone)]
pub struct Regex(pub Arc<regex::bytes::Regex>);

impl Regex {
    /// Matches `text` (as a whole, when compiled by [`Pool::whole`]).
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }
}

/// Shared strings and expressions of one configuration.
#[derive(Debug, Default)]
pub struct Pool {
    strings: Interner,
    regexes: HashMap<(String, bool), Weak<regex::bytes::Regex>, foldhash::fast::RandomState>,
    /// By the bytes of their messages.
    retries: HashMap<Vec<u8>, Weak<crate::RetryPolicy>, foldhash::fast::RandomState>,
}

impl Pool {
    /// The shared copy of `text`.
    pub fn text(&mut self, text: &str) -> Strng {
        self.strings.intern(text)
    }

    /// An expression that must match the whole text.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the pattern.
    pub fn whole(&mut self, pattern: &str) -> Result<Regex, String> {
        self.regex(pattern, true)
    }

    /// An expression that may match anywhere (for substitution).
    ///
    /// # Errors
    /// A sentence that says what is wrong with the pattern.
    pub fn anywhere(&mut self, pattern: &str) -> Result<Regex, String> {
        self.regex(pattern, false)
    }

    /// Forgets what nothing else holds any more; called now and then, as configuration comes and goes.
    pub fn sweep(&mut self) {
        self.strings.sweep();
        self.regexes.retain(|_, regex| regex.strong_count() > 0);
        self.retries.retain(|_, retry| retry.strong_count() > 0);
    }

    /// The retry policy that was compiled from these bytes, if it is still in use.
    pub(crate) fn retry(&self, message: &[u8]) -> Option<Arc<crate::RetryPolicy>> {
        self.retries.get(message).and_then(Weak::upgrade)
    }

    /// Keeps a retry policy that compiled without errors for others that are equal: all routes of a mesh share one or two.
    pub(crate) fn share_retry(&mut self, message: Vec<u8>, policy: &Arc<crate::RetryPolicy>) {
        self.retries.insert(message, Arc::downgrade(policy));
    }

    /// Number of distinct strings held.
    pub fn len(&self) -> usize {
        self.strings.len()
    }

    /// Holds no string.
    pub fn is_empty(&self) -> bool {
        self.strings.len() == 0
    }

    fn regex(&mut self, pattern: &str, whole: bool) -> Result<Regex, String> {
        let key = (pattern.to_string(), whole);
        if let Some(found) = self.regexes.get(&key).and_then(Weak::upgrade) {
            return Ok(Regex(found));
        }
        let built = Arc::new(build(pattern, whole)?);
        self.regexes.insert(key, Arc::downgrade(&built));
        Ok(Regex(built))
    }
}

fn build(pattern: &str, whole: bool) -> Result<regex::bytes::Regex, String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("the pattern has {} bytes; the limit is {MAX_PATTERN}", pattern.len()));
    }
    // Checked alone first: wrapped in an anchor, `a)|(b` would become another, valid, expression.
    regex_builder(pattern).build().map_err(|e| reason(pattern, &e))?;
    if !whole {
        return regex_builder(pattern).build().map_err(|e| reason(pattern, &e));
    }
    regex_builder(&format!(r"\A(?:{pattern})\z")).build().map_err(|e| reason(pattern, &e))
}

fn regex_builder(pattern: &str) -> regex::bytes::RegexBuilder {
    let mut builder = regex::bytes::RegexBuilder::new(pattern);
    builder.unicode(false).size_limit(MAX_PROGRAM).dfa_size_limit(MAX_PROGRAM);
    builder
}

fn reason(pattern: &str, error: &regex::Error) -> String {
    let shown: String = pattern.chars().take(80).collect();
    let detail = error.to_string();
    // The library draws the pattern over several lines; its last line is the reason.
    let last = detail.lines().last().unwrap_or("").trim_start_matches("error: ");
    format!("{shown:?} is not a usable RE2 expression: {last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_text_and_sharing() {
        let mut pool = Pool::default();
        let re = pool.whole("a|ab").unwrap();
        for (text, want) in [("a", true), ("ab", true), ("abc", false), ("xa", false), ("a\n", false)] {
            assert_eq!(re.is_match(text.as_bytes()), want, "{text:?}");
        }
        assert!(Arc::ptr_eq(&re.0, &pool.whole("a|ab").unwrap().0));
        assert!(pool.anywhere("b").unwrap().is_match(b"abc"));
        drop(re);
        pool.sweep();
        assert_eq!(pool.regexes.len(), 0);
    }

    #[test]
    fn bad_patterns_say_why() {
        let mut pool = Pool::default();
        for bad in ["a)|(b", "(", "[", r"a{100000}{100000}", "(?P<x>", r"\p{Greek}"] {
            let error = pool.whole(bad).unwrap_err();
            assert!(error.contains("RE2"), "{error}");
        }
        assert!(pool.whole(&"a".repeat(MAX_PATTERN + 1)).unwrap_err().contains("limit"));
    }
}
