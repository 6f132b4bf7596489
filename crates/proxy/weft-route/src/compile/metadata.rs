//! Conditions on dynamic metadata.

use super::Compiler;
use crate::error::Path;
use crate::metadata::{MetadataMatcher, ValueTest};
use weft_core::Strng;
use weft_proto::envoy::r#type::matcher::v3 as matcher;

/// Deepest nesting of lists and alternatives.
const MAX_DEPTH: usize = 32;

impl Compiler<'_> {
    /// A condition on what a filter said of the request.
    pub fn metadata_matcher(&mut self, message: &matcher::MetadataMatcher, path: &Path<'_>) -> Option<MetadataMatcher> {
        let matcher::MetadataMatcher { filter, path: segments, value, invert } = message;
        let keys: Option<Vec<Strng>> = segments
            .iter()
            .map(|segment| {
                let matcher::metadata_matcher::path_segment::Segment::Key(key) = segment.segment.as_ref()?;
                Some(self.pool.text(key))
            })
            .collect();
        let Some(keys) = keys.filter(|k| !k.is_empty()) else {
            self.errors.refuse(&path.field("path"), "must name at least one key");
            return None;
        };
        let test = self.value_matcher(value.as_ref(), &path.field("value"), 0)?;
        Some(MetadataMatcher { filter: self.pool.text(filter), keys, test, invert: *invert })
    }

    /// A condition on a value.
    fn value_matcher(
        &mut self,
        message: Option<&matcher::ValueMatcher>,
        path: &Path<'_>,
        depth: usize,
    ) -> Option<ValueTest> {
        use matcher::value_matcher::MatchPattern;
        let pattern = message.and_then(|m| m.match_pattern.as_ref()).filter(|_| depth <= MAX_DEPTH);
        let Some(pattern) = pattern else {
            self.errors.refuse(path, "must set string_match, bool_match, present_match, list_match or or_match");
            return None;
        };
        match pattern {
            MatchPattern::StringMatch(text) => {
                self.string_matcher(text, &path.field("string_match")).map(ValueTest::String)
            }
            MatchPattern::BoolMatch(wanted) => Some(ValueTest::Bool(*wanted)),
            MatchPattern::PresentMatch(present) => Some(ValueTest::Present(*present)),
            MatchPattern::NullMatch(_) => Some(ValueTest::Null),
            MatchPattern::ListMatch(list) => {
                let path = path.field("list_match");
                let Some(matcher::list_matcher::MatchPattern::OneOf(one)) = &list.match_pattern else {
                    self.errors.refuse(&path, "must set one_of");
                    return None;
                };
                self.value_matcher(Some(one), &path.field("one_of"), depth + 1).map(|t| ValueTest::AnyOf(Box::new(t)))
            }
            MatchPattern::OrMatch(or) => {
                let path = path.field("or_match");
                let tests = or.value_matchers.iter().enumerate();
                let tests: Option<Vec<_>> = tests
                    .map(|(i, m)| self.value_matcher(Some(m), &path.item("value_matchers", i), depth + 1))
                    .collect();
                tests.map(ValueTest::Or)
            }
            MatchPattern::DoubleMatch(double) => match &double.match_pattern {
                Some(matcher::double_matcher::MatchPattern::Exact(number)) => Some(ValueTest::NumberIs(*number)),
                Some(matcher::double_matcher::MatchPattern::Range(range)) => {
                    Some(ValueTest::Number(range.start, range.end))
                }
                None => {
                    self.errors.refuse(&path.field("double_match"), "must set exact or range");
                    None
                }
            },
        }
    }
}
