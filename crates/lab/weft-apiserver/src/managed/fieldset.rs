//! Sets of fields, as `managedFields` keeps them (`FieldsV1`): a tree whose branches are `f:NAME` (a field), `k:{…}` (an item of a
//! list by its keys) and `v:VALUE` (an item of a set). Pure.
//!
//! Source: the Kubernetes documentation, "Server-Side Apply", and the `FieldsV1` comments of `meta/v1`.

use crate::schema::{Lists, Type};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 128;

/// A set of fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    /// This field itself is in the set.
    pub(crate) here: bool,
    /// What is below.
    pub(crate) below: BTreeMap<String, FieldSet>,
}

/// The branch of a field.
pub(crate) fn field_key(name: &str) -> String {
    format!("f:{name}")
}

/// The branch of an item of a list; `None` when it has no identity (the list is one value).
pub(crate) fn item_key(list: Type<'_>, item: &Value) -> Option<String> {
    match list.lists() {
        Lists::Atomic => None,
        Lists::Set => Some(format!("v:{item}")),
        Lists::Keys(keys) => {
            let fields = item.as_object()?;
            let mut found: BTreeMap<&str, Value> = BTreeMap::new();
            for key in keys {
                let value = fields.get(key).cloned().or_else(|| list.item().key_default(key));
                found.extend(value.filter(|v| !v.is_null()).map(|v| (key, v)));
            }
            if found.is_empty() {
                return None;
            }
            serde_json::to_string(&found).ok().map(|text| format!("k:{text}"))
        }
    }
}

/// Whether every item of a list has an identity. Two may have the same where an update, not an apply, has put them there.
pub(crate) fn is_keyed(list: Type<'_>, items: &[Value]) -> bool {
    list.lists() != Lists::Atomic && items.iter().all(|item| item_key(list, item).is_some())
}

/// The children of a value by their branches, when it is merged by parts; `None` when it is one value.
pub(crate) fn parts<'a>(of: Type<'a>, value: &'a Value) -> Option<Vec<(String, Type<'a>, &'a Value)>> {
    match value {
        Value::Object(fields) if !of.is_atomic() => {
            Some(fields.iter().map(|(name, v)| (field_key(name), of.field(name), v)).collect())
        }
        Value::Array(items) if is_keyed(of, items) => {
            items.iter().map(|item| Some((item_key(of, item)?, of.item(), item))).collect()
        }
        _ => None,
    }
}

impl FieldSet {
    /// All fields of a value.
    pub(crate) fn of(kind: Type<'_>, value: &Value) -> Self {
        match parts(kind, value) {
            Some(parts) if !parts.is_empty() => {
                let mut set = Self::default();
                for (key, inner, value) in parts {
                    let mut below = Self::of(inner, value);
                    below.here |= key.starts_with(['k', 'v']) || below.below.is_empty();
                    // Of items with the same key nobody could tell whose fields are meant: they are owned as a whole.
                    let same = set.below.contains_key(&key);
                    set.below.insert(key, if same { Self { here: true, below: BTreeMap::new() } } else { below });
                }
                set
            }
            _ => Self { here: true, below: BTreeMap::new() },
        }
    }

    /// The fields of an object that have owners: not its type, and not what the server manages.
    pub(crate) fn of_object(kind: Type<'_>, object: &Value) -> Self {
        let mut set = Self::of(kind, object);
        set.here = false;
        for name in ["f:apiVersion", "f:kind"] {
            set.below.remove(name);
        }
        if let Some(meta) = set.below.get_mut("f:metadata") {
            meta.here = false;
            const MANAGED: [&str; 11] = [
                "f:name",
                "f:namespace",
                "f:uid",
                "f:resourceVersion",
                "f:generation",
                "f:creationTimestamp",
                "f:managedFields",
                "f:deletionTimestamp",
                "f:deletionGracePeriodSeconds",
                "f:selfLink",
                "f:generateName",
            ];
            for name in MANAGED {
                meta.below.remove(name);
            }
            if meta.below.is_empty() {
                set.below.remove("f:metadata");
            }
        }
        set
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.here && self.below.is_empty()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.below.get(key)
    }

    /// What is in either.
    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.here |= other.here;
        for (key, theirs) in &other.below {
            let joined = all.below.get(key).map_or_else(|| theirs.clone(), |mine| mine.union(theirs));
            all.below.insert(key.clone(), joined);
        }
        all
    }

    /// What is in this one only.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let rest = self.below.iter().map(|(key, mine)| match other.below.get(key) {
            Some(theirs) => (key.clone(), mine.without(theirs)),
            None => (key.clone(), mine.clone()),
        });
        let below = rest.filter(|(_, set)| !set.is_empty()).collect();
        Self { here: self.here && !other.here, below }
    }

    /// What is in both.
    pub(crate) fn common(&self, other: &Self) -> Self {
        let both = self.below.iter().filter_map(|(key, mine)| Some((key.clone(), mine.common(other.below.get(key)?))));
        let below = both.filter(|(_, set)| !set.is_empty()).collect();
        Self { here: self.here && other.here, below }
    }

    /// Readable paths, for messages: `.spec.containers[name="a"].image`.
    pub(crate) fn paths(&self) -> Vec<String> {
        fn walk(set: &FieldSet, path: &str, all: &mut Vec<String>) {
            if set.here && !path.is_empty() {
                all.push(path.to_string());
            }
            for (key, below) in &set.below {
                let step = match key.split_at_checked(2) {
                    Some(("f:", name)) => format!(".{name}"),
                    Some(("v:", value)) => format!("[={value}]"),
                    Some((_, keys)) => {
                        let keys: BTreeMap<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                        let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                        format!("[{}]", keys.join(","))
                    }
                    None => String::new(),
                };
                walk(below, &format!("{path}{step}"), all);
            }
        }
        let mut all = Vec::new();
        walk(self, "", &mut all);
        all
    }

    /// As `FieldsV1`.
    pub(crate) fn to_value(&self) -> Value {
        let mut fields = Map::new();
        if self.here && !self.below.is_empty() {
            fields.insert(".".into(), Value::Object(Map::new()));
        }
        fields.extend(self.below.iter().map(|(key, set)| (key.clone(), set.to_value())));
        Value::Object(fields)
    }

    /// Reads `FieldsV1`. What cannot be read owns nothing.
    pub(crate) fn from_value(value: &Value) -> Self {
        let mut set = Self::read(value, 0);
        set.here = false;
        set
    }

    fn read(value: &Value, depth: usize) -> Self {
        let Some(fields) = value.as_object().filter(|_| depth < MAX_DEPTH) else { return Self::default() };
        let mut set = Self { here: fields.is_empty() || fields.contains_key("."), below: BTreeMap::new() };
        for (key, below) in fields.iter().filter(|(key, _)| *key != ".") {
            set.below.insert(key.clone(), Self::read(below, depth + 1));
        }
        set
    }
}

/// The fields whose values differ: changed or new ones, and those that are gone.
pub(crate) fn compare(kind: Type<'_>, old: &Value, new: &Value) -> (FieldSet, FieldSet) {
    if old == new {
        return Default::default();
    }
    let (Some(before), Some(after)) = (parts(kind, old), parts(kind, new)) else {
        return (FieldSet::of(kind, new), FieldSet::of(kind, old).without(&FieldSet::of(kind, new)));
    };
    let (before, after) = (by_key(before), by_key(after));
    let (mut changed, mut gone) = (FieldSet::default(), FieldSet::default());
    for (key, (inner, values)) in &after {
        let old = before.get(key).map_or(&[][..], |(_, values)| values.as_slice());
        let (mut set, lost) = match (old, values.as_slice()) {
            (old, new) if old == new => continue,
            ([old], [value]) => compare(*inner, old, value),
            ([], [value]) => {
                let mut set = FieldSet::of(*inner, value);
                set.here |= key.starts_with(['k', 'v']);
                (set, FieldSet::default())
            }
            _ => (FieldSet { here: true, below: BTreeMap::new() }, FieldSet::default()),
        };
        if key.starts_with('f') && set.below.is_empty() && !old.is_empty() {
            // An emptied struct.
            set.here |= lost.is_empty();
        }
        if !set.is_empty() {
            changed.below.insert(key.clone(), set);
        }
        if !lost.is_empty() {
            gone.below.insert(key.clone(), lost);
        }
    }
    for (key, (inner, values)) in before.into_iter().filter(|(key, _)| !after.contains_key(key)) {
        let mut set = values.first().map_or_else(FieldSet::default, |value| FieldSet::of(inner, value));
        set.here = true;
        gone.below.insert(key, set);
    }
    (changed, gone)
}

/// The values of each branch: one, but for items of a list that have the same key.
fn by_key<'a>(parts: Vec<(String, Type<'a>, &'a Value)>) -> BTreeMap<String, (Type<'a>, Vec<&'a Value>)> {
    let mut all: BTreeMap<String, (Type<'a>, Vec<&'a Value>)> = BTreeMap::new();
    for (key, kind, value) in parts {
        all.entry(key).or_insert_with(|| (kind, Vec::new())).1.push(value);
    }
    all
}
