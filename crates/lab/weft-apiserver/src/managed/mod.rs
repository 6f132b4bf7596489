//! Who manages which fields, and server-side apply: merging what a manager wants into the object, conflicts with other
//! managers, and removing what the manager no longer wants. Pure.
//!
//! Source: the Kubernetes documentation, "Server-Side Apply".

mod fieldset;

use crate::schema::Type;
use fieldset::{FieldSet, compare, is_keyed, item_key};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use weft_k8s_api::Object;
use weft_k8s_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

/// Entries of managers that update; the oldest are put together beyond that, as Kubernetes does.
const MAX_UPDATERS: usize = 10;
/// Entries of managers that apply.
const MAX_APPLIERS: usize = 64;

/// Who writes, and how.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    /// `fieldManager`, or the first word of the client's name.
    pub(crate) manager: String,
    pub(crate) api_version: String,
    /// `status` …; empty for the whole object.
    pub(crate) sub: String,
    /// RFC 3339.
    pub(crate) time: String,
}

/// A manager's fields.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    applies: bool,
    api_version: String,
    sub: String,
    time: String,
    fields: FieldSet,
}

impl Entry {
    fn new(writer: &Writer, applies: bool, fields: FieldSet) -> Self {
        Self {
            manager: writer.manager.clone(),
            applies,
            api_version: writer.api_version.clone(),
            sub: writer.sub.clone(),
            time: writer.time.clone(),
            fields,
        }
    }

    fn is_of(&self, writer: &Writer, applies: bool) -> bool {
        self.manager == writer.manager && self.applies == applies && self.sub == writer.sub
    }

    fn to_value(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager, "operation": if self.applies { "Apply" } else { "Update" },
            "apiVersion": self.api_version, "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_value(),
        });
        if !self.sub.is_empty() {
            entry["subresource"] = self.sub.clone().into();
        }
        entry
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array).into_iter().flatten();
    let text = |entry: &Value, name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
    list.map(|entry| Entry {
        manager: text(entry, "manager"),
        applies: text(entry, "operation") == "Apply",
        api_version: text(entry, "apiVersion"),
        sub: text(entry, "subresource"),
        time: text(entry, "time"),
        fields: FieldSet::from_value(entry.get("fieldsV1").unwrap_or(&Value::Null)),
    })
    .filter(|entry| !entry.fields.is_empty())
    .collect()
}

fn to_managed(entries: &[Entry]) -> Vec<ManagedFieldsEntry> {
    entries.iter().filter_map(|entry| serde_json::from_value(entry.to_value()).ok()).collect()
}

/// Notes who changed what, when an object was created or updated other than by apply.
pub(crate) fn note_update(kind: Type<'_>, old: Option<&Object>, new: &mut Object, writer: &Writer) {
    let empty = json!({});
    let before = old.map_or_else(|| empty.clone(), Object::to_value);
    let mut after = new.to_value();
    // An empty list sent by the client resets the managers; what it sent besides is not the client's to write.
    let reset = new.metadata.managed_fields.as_ref().is_some_and(|list| {
        list.iter().all(|entry| entry.manager.is_none() && entry.operation.is_none()) && !list.is_empty()
    });
    let mut entries = if reset { Vec::new() } else { entries(&before) };
    tidy(&mut after);
    let mut was = before;
    tidy(&mut was);
    if was == after && old.is_some() {
        new.metadata.managed_fields = if reset { None } else { old.and_then(|o| o.metadata.managed_fields.clone()) };
        return;
    }
    let (changed, gone) = match old {
        Some(_) => compare(kind, &was, &after),
        None => (FieldSet::of_object(kind, &after), FieldSet::default()),
    };
    let changed = only_owned(changed);
    let lost = changed.union(&gone);
    for entry in entries.iter_mut().filter(|e| !e.is_of(writer, false)) {
        entry.fields = entry.fields.without(&lost);
    }
    match entries.iter_mut().find(|e| e.is_of(writer, false)) {
        Some(mine) => {
            mine.fields = mine.fields.without(&gone).union(&changed);
            if !changed.is_empty() {
                mine.time.clone_from(&writer.time);
                mine.api_version.clone_from(&writer.api_version);
            }
        }
        None if !changed.is_empty() => entries.push(Entry::new(writer, false, changed)),
        None => {}
    }
    entries.retain(|e| !e.fields.is_empty());
    bound(&mut entries);
    new.metadata.managed_fields = Some(to_managed(&entries)).filter(|e| !e.is_empty());
}

fn only_owned(set: FieldSet) -> FieldSet {
    let mut set = set;
    for name in ["f:apiVersion", "f:kind"] {
        set.below.remove(name);
    }
    set.here = false;
    set
}

/// Leaves out what nobody manages, so that it makes no difference.
fn tidy(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.retain(|name, _| matches!(name.as_str(), "labels" | "annotations" | "finalizers" | "ownerReferences"));
    }
    if let Some(fields) = object.as_object_mut() {
        fields.shift_remove("apiVersion");
        fields.shift_remove("kind");
        if fields.get("metadata").and_then(Value::as_object).is_some_and(Map::is_empty) {
            fields.shift_remove("metadata");
        }
    }
}

/// Puts the oldest updaters together when there are too many.
fn bound(entries: &mut Vec<Entry>) {
    while entries.iter().filter(|e| !e.applies).count() > MAX_UPDATERS {
        let oldest: Vec<usize> =
            entries.iter().enumerate().filter(|(_, e)| !e.applies).map(|(at, _)| at).take(2).collect();
        let [first, second] = oldest.as_slice() else { return };
        let moved = entries.remove(*second);
        if let Some(kept) = entries.get_mut(*first) {
            kept.fields = kept.fields.union(&moved.fields);
            kept.manager = "ancient-changes".into();
        }
    }
}

/// Why an apply is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Managers and the fields that they have and that would change.
    Conflicts(Vec<(String, Vec<String>)>),
    TooManyManagers,
}

/// Merges what a manager wants into the present object (`Null` when there is none), and notes it. Returns the whole object
/// with its managers.
///
/// # Errors
/// When another manager has a field with another value and `force` is not set.
pub(crate) fn apply(
    kind: Type<'_>,
    live: &Value,
    wanted: &Value,
    writer: &Writer,
    force: bool,
) -> Result<Value, Refusal> {
    let mut wanted = wanted.clone();
    drop_nulls(&mut wanted);
    let wants = FieldSet::of_object(kind, &wanted);
    let mut entries = entries(live);
    if entries.is_empty() && live.is_object() {
        // What was there before anybody's fields were noted.
        let first = Writer { manager: "before-first-apply".into(), ..writer.clone() };
        let fields = FieldSet::of_object(kind, live);
        entries.push(Entry::new(&Writer { sub: String::new(), ..first }, false, fields));
    }
    let mut merged = if live.is_null() { wanted.clone() } else { merge(kind, live, &wanted) };
    let (changed, _) = compare(kind, live, &merged);
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|e| !e.is_of(writer, true)) {
        let mut clash = entry.fields.common(&wants).common(&changed);
        clash.here = false;
        if !clash.is_empty() {
            conflicts.push((conflict_name(entry), clash.paths()));
            entry.fields = entry.fields.without(&clash);
        }
    }
    if !conflicts.is_empty() && !force {
        return Err(Refusal::Conflicts(conflicts));
    }
    let mine = entries.iter().position(|e| e.is_of(writer, true));
    if let Some(mine) = mine.and_then(|at| entries.get(at)) {
        let others = entries.iter().filter(|e| !e.is_of(writer, true));
        let others = others.fold(FieldSet::default(), |all, e| all.union(&e.fields));
        prune(kind, &mut merged, &mine.fields, &wants, &others);
    }
    let unchanged = mine.and_then(|at| entries.get(at)).is_some_and(|e| e.fields == wants);
    match mine.and_then(|at| entries.get_mut(at)) {
        Some(mine) if unchanged && same_but_managers(live, &merged) => mine.api_version.clone_from(&writer.api_version),
        Some(mine) => *mine = Entry::new(writer, true, wants),
        None => entries.push(Entry::new(writer, true, wants)),
    }
    entries.retain(|e| !e.fields.is_empty());
    if entries.iter().filter(|e| e.applies).count() > MAX_APPLIERS {
        return Err(Refusal::TooManyManagers);
    }
    bound(&mut entries);
    let managed: Vec<Value> = entries.iter().map(Entry::to_value).collect();
    if let Some(fields) = merged.as_object_mut() {
        let meta = fields.entry("metadata").or_insert_with(|| json!({}));
        if let Some(meta) = meta.as_object_mut() {
            meta.insert("managedFields".into(), managed.into());
        }
    }
    Ok(merged)
}

fn conflict_name(entry: &Entry) -> String {
    if entry.applies {
        return format!("{:?}", entry.manager);
    }
    let sub = if entry.sub.is_empty() { String::new() } else { format!(" with subresource {:?}", entry.sub) };
    format!("{:?}{sub} using {}", entry.manager, entry.api_version)
}

fn same_but_managers(live: &Value, merged: &Value) -> bool {
    let without = |value: &Value| {
        let mut value = value.clone();
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.shift_remove("managedFields");
        }
        value
    };
    without(live) == without(merged)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, v| !v.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn merge(kind: Type<'_>, live: &Value, wanted: &Value) -> Value {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) if !kind.is_atomic() => {
            let mut merged = live.clone();
            for (name, value) in wanted {
                let joined = live.get(name).map_or_else(|| value.clone(), |l| merge(kind.field(name), l, value));
                merged.insert(name.clone(), joined);
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(wanted)) if is_keyed(kind, live) && is_distinct(kind, wanted) => {
            merge_lists(kind, live, wanted)
        }
        _ => wanted.clone(),
    }
}

/// Whether every item has an identity of its own.
fn is_distinct(kind: Type<'_>, items: &[Value]) -> bool {
    let mut seen = HashSet::new();
    is_keyed(kind, items) && items.iter().all(|item| seen.insert(item_key(kind, item)))
}

/// Items that both have are merged (one stands for all that have its key); new ones come after the items that stand before them in what is wanted.
fn merge_lists(kind: Type<'_>, live: &[Value], wanted: &[Value]) -> Value {
    let key = |item: &Value| item_key(kind, item);
    let mut merged: Vec<Value> = live.to_vec();
    let mut after = None;
    for want in wanted {
        let found = merged.iter().position(|item| key(item) == key(want));
        match found {
            Some(at) => {
                let twins = merged.iter().filter(|item| key(item) == key(want)).count() > 1;
                if let Some(item) = merged.get_mut(at) {
                    *item = if twins { want.clone() } else { merge(kind.item(), item, want) };
                }
                if twins {
                    let mut first = true;
                    merged.retain(|item| key(item) != key(want) || std::mem::take(&mut first));
                }
                after = Some(at.max(after.unwrap_or(0)));
            }
            None => {
                let at = after.map_or(merged.len(), |at: usize| at + 1).min(merged.len());
                merged.insert(at, want.clone());
                after = Some(at);
            }
        }
    }
    let place = |item: &Value| wanted.iter().position(|w| key(w) == key(item));
    let places: Vec<usize> = merged.iter().filter_map(place).collect();
    if !places.is_sorted() {
        merged.sort_by_key(|item| place(item).unwrap_or(usize::MAX));
    }
    Value::Array(merged)
}

/// Removes what the manager had and no longer wants, unless another manager has it.
fn prune(kind: Type<'_>, value: &mut Value, had: &FieldSet, wants: &FieldSet, others: &FieldSet) {
    let empty = FieldSet::default();
    for (key, had) in &had.below {
        let (wants, others) = (wants.get(key).unwrap_or(&empty), others.get(key).unwrap_or(&empty));
        let inner = match (&*value, key.strip_prefix("f:")) {
            (Value::Object(fields), Some(name)) => fields.contains_key(name).then(|| kind.field(name)),
            (Value::Array(items), None) => {
                items.iter().any(|i| item_key(kind, i).as_deref() == Some(key)).then(|| kind.item())
            }
            _ => None,
        };
        let Some(inner) = inner else { continue };
        let unwanted = wants.is_empty() && others.is_empty();
        let item = key.starts_with(['k', 'v']);
        let whole = unwanted && (had.here || item);
        let child = |value: &mut Value| -> bool {
            if whole {
                return true;
            }
            prune(inner, value, had, wants, others);
            let emptied =
                matches!(value, Value::Object(f) if f.is_empty()) || matches!(value, Value::Array(a) if a.is_empty());
            unwanted && emptied
        };
        match value {
            Value::Object(fields) => {
                let name = key.get(2..).unwrap_or_default();
                if fields.get_mut(name).is_some_and(child) {
                    fields.shift_remove(name);
                }
            }
            Value::Array(items) => {
                let at = items.iter().position(|i| item_key(kind, i).as_deref() == Some(key));
                if let Some(at) = at
                    && items.get_mut(at).is_some_and(child)
                {
                    items.remove(at);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
