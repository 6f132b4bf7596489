//! Dynamic metadata: what filters say of a request, such as the claims of its token, and conditions on it. Routing and
//! authorization ask the same conditions.

use crate::StringMatcher;
use weft_core::Strng;

/// What filters said of a request, by the name of the filter.
pub type DynamicMetadata = Vec<(Strng, MetadataValue)>;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue {
    /// Nothing.
    Null,
    /// Text.
    String(Strng),
    /// Number.
    Number(f64),
    /// Boolean.
    Bool(bool),
    /// List.
    List(Vec<MetadataValue>),
    /// Fields.
    Struct(Vec<(Strng, MetadataValue)>),
}

/// A condition on a metadata value.
#[derive(Debug)]
pub enum ValueTest {
    /// A string.
    String(StringMatcher),
    /// Any element of a list.
    AnyOf(Box<ValueTest>),
    /// One of these.
    Or(Vec<ValueTest>),
    /// Present (`true`) or absent (`false`).
    Present(bool),
    /// A boolean.
    Bool(bool),
    /// A number in `[start, end)`.
    Number(f64, f64),
    /// This number.
    NumberIs(f64),
    /// Null.
    Null,
}

/// A condition on what a filter said.
#[derive(Debug)]
pub struct MetadataMatcher {
    /// The filter.
    pub filter: Strng,
    /// Keys, outermost first.
    pub keys: Vec<Strng>,
    /// What must hold of the value.
    pub test: ValueTest,
    /// Turns the result round.
    pub invert: bool,
}

impl MetadataMatcher {
    /// The condition holds.
    pub fn matches(&self, metadata: &[(Strng, MetadataValue)]) -> bool {
        self.test.holds(find(metadata, &self.filter, &self.keys)) != self.invert
    }
}

/// The value that `filter` put under `keys`.
pub fn find<'m>(metadata: &'m [(Strng, MetadataValue)], filter: &str, keys: &[Strng]) -> Option<&'m MetadataValue> {
    let root = metadata.iter().find(|(name, _)| &**name == filter).map(|(_, value)| value)?;
    keys.iter().try_fold(root, |value, key| value.field(key))
}

/// Puts `value` under `key` of what `filter` said.
pub fn put(metadata: &mut DynamicMetadata, filter: &Strng, key: &Strng, value: MetadataValue) {
    if !metadata.iter().any(|(name, _)| name == filter) {
        metadata.push((filter.clone(), MetadataValue::Struct(Vec::new())));
    }
    let Some((_, MetadataValue::Struct(fields))) = metadata.iter_mut().find(|(name, _)| name == filter) else { return };
    fields.retain(|(name, _)| name != key);
    fields.push((key.clone(), value));
}

impl MetadataValue {
    /// A field of a struct.
    pub fn field(&self, key: &str) -> Option<&MetadataValue> {
        match self {
            MetadataValue::Struct(fields) => fields.iter().find(|(name, _)| &**name == key).map(|(_, inner)| inner),
            _ => None,
        }
    }
}

impl ValueTest {
    /// The condition holds for `value`; `None` when there is none.
    pub fn holds(&self, value: Option<&MetadataValue>) -> bool {
        match (self, value) {
            (ValueTest::Present(wanted), value) => value.is_some() == *wanted,
            (ValueTest::Or(tests), value) => tests.iter().any(|test| test.holds(value)),
            (ValueTest::String(matcher), Some(MetadataValue::String(text))) => matcher.matches(text.as_bytes()),
            (ValueTest::AnyOf(test), Some(MetadataValue::List(items))) => items.iter().any(|v| test.holds(Some(v))),
            (ValueTest::Bool(wanted), Some(MetadataValue::Bool(value))) => value == wanted,
            (ValueTest::Number(start, end), Some(MetadataValue::Number(n))) => (*start..*end).contains(n),
            #[allow(clippy::float_cmp)] // The configuration asks for exactly this number.
            (ValueTest::NumberIs(wanted), Some(MetadataValue::Number(n))) => n == wanted,
            (ValueTest::Null, Some(MetadataValue::Null)) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_put_and_found() {
        let (filter, key) = (Strng::from("jwt"), Strng::from("payload"));
        let mut all = DynamicMetadata::new();
        let claims = MetadataValue::Struct(vec![("iss".into(), MetadataValue::String("a".into()))]);
        put(&mut all, &filter, &key, MetadataValue::Null);
        put(&mut all, &filter, &key, claims);
        assert_eq!(find(&all, "jwt", &["payload".into(), "iss".into()]), Some(&MetadataValue::String("a".into())));
        for nowhere in [&["payload", "x"][..], &["iss"], &["payload", "iss", "a"]] {
            let keys: Vec<Strng> = nowhere.iter().map(|k| Strng::from(*k)).collect();
            assert_eq!(find(&all, "jwt", &keys), None);
        }
        let matcher = |invert| MetadataMatcher {
            filter: filter.clone(),
            keys: vec![key.clone(), "iss".into()],
            test: ValueTest::String(StringMatcher::Exact("a".into())),
            invert,
        };
        assert!(matcher(false).matches(&all) && !matcher(true).matches(&all));
        assert!(!matcher(false).matches(&[]) && matcher(true).matches(&[]));
    }
}
