//! Rules in CEL of a schema (`x-kubernetes-validations`): read with the schema, asked about every object, and on a change
//! about what it was before. A rule that cannot be evaluated refuses the definition; one that fails on an object refuses
//! the object: what a user's schema forbids is never stored.
//!
//! Source: the Kubernetes documentation, "Extend the Kubernetes API with CustomResourceDefinitions", "Validation rules"
//! and "Validation ratcheting".

use super::structural::{flag, join, list, word};
use crate::cel::{self, Expression, Kind, Names, from_json};
use crate::status::FieldError;
use kube_cel::cel::objects::OptionalValue;
use kube_cel::cel::{Context, Value as Cel};
use serde_json::Value;
use std::sync::Arc;

/// Rules of one schema.
const MAX_RULES: usize = 1000;
/// Findings about one object.
const MAX_FOUND: usize = 64;
/// Longest message in characters.
const MAX_MESSAGE: usize = 2048;

/// The rules of a schema, where they stand.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    root: Option<Node>,
    /// Why some cannot be followed: then no object is taken.
    refused: Option<String>,
}

/// A place of a schema that has rules, or has some further in.
#[derive(Debug, Default)]
struct Node {
    rules: Vec<Rule>,
    properties: Vec<(String, Node)>,
    items: Option<Box<Node>>,
    additional: Option<Box<Node>>,
}

#[derive(Debug)]
struct Rule {
    expression: Expression,
    /// What to say when it does not hold.
    message: String,
    message_expression: Option<Expression>,
    reason: String,
    /// Relative to where the rule stands.
    field: String,
    /// It is asked on creation too; then `oldSelf` is empty.
    optional_old: bool,
}

/// Place in the definition, and what is wrong.
type Wrong = Vec<(String, String)>;

impl Rules {
    /// Reads the rules of a schema; `path` is where it stands. What cannot be followed is added to `wrong`.
    pub(crate) fn read(schema: &Value, path: &str, wrong: &mut Wrong) -> Self {
        let before = wrong.len();
        let root = Reader { wrong, count: 0 }.node(schema, path, true, true);
        let refused = wrong.get(before).map(|(place, why)| format!("{place}: {why}"));
        Self { root, refused }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_none() && self.refused.is_none()
    }

    /// Asks the rules about an object. Returns errors and warnings; the latter are of rules that do not hold, of a part that
    /// did not change.
    pub(crate) fn check(&self, schema: &Value, new: &Value, old: Option<&Value>) -> (Vec<FieldError>, Vec<String>) {
        if let Some(why) = &self.refused {
            let message = format!("Internal error: its definition has a rule that cannot be followed: {why}");
            return (vec![FieldError { field: String::new(), message }], Vec::new());
        }
        let Some(root) = &self.root else { return Default::default() };
        let done = cel::evaluate(|context| {
            let mut found = Found { context, errors: Vec::new(), warnings: Vec::new() };
            found.node(root, schema, new, old, "");
            (found.errors, found.warnings)
        });
        done.unwrap_or_else(|why| {
            let message = format!("Internal error: the rules of its definition: {why}");
            (vec![FieldError { field: String::new(), message }], Vec::new())
        })
    }
}

struct Reader<'a> {
    wrong: &'a mut Wrong,
    count: usize,
}

impl Reader<'_> {
    /// `tracked`: whether the value here can be told to be the one that was there before.
    fn node(&mut self, schema: &Value, path: &str, tracked: bool, root: bool) -> Option<Node> {
        let mut node = Node::default();
        for (at, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
            let place = format!("{path}.x-kubernetes-validations[{at}]");
            self.count += 1;
            if self.count > MAX_RULES {
                self.wrong.push((place, format!("Too many: a schema has at most {MAX_RULES} rules")));
                return None;
            }
            node.rules.extend(self.rule(schema, rule, &place, tracked, root));
        }
        for (name, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let child = self.node(inner, &format!("{path}.properties[{name}]"), tracked, false);
            node.properties.extend(child.map(|child| (name.clone(), child)));
        }
        if let Some(inner) = schema.get("items") {
            let tracked = tracked && word(schema, "x-kubernetes-list-type") == "map";
            node.items = self.node(inner, &format!("{path}.items"), tracked, false).map(Box::new);
        }
        if let Some(inner) = schema.get("additionalProperties").filter(|a| a.is_object()) {
            node.additional = self.node(inner, &format!("{path}.additionalProperties"), tracked, false).map(Box::new);
        }
        let empty =
            node.rules.is_empty() && node.properties.is_empty() && node.items.is_none() && node.additional.is_none();
        if empty {
            return None;
        }
        let rules = Rules { root: Some(node), refused: None };
        if let Some(default) = schema.get("default") {
            let (errors, _) = rules.check(schema, default, None);
            let place = |field: &str| match field {
                "<nil>" => format!("{path}.default"),
                field => format!("{path}.default.{field}"),
            };
            self.wrong.extend(errors.into_iter().map(|e| (place(&e.field), e.message)));
        }
        rules.root
    }

    fn rule(&mut self, schema: &Value, rule: &Value, place: &str, tracked: bool, root: bool) -> Option<Rule> {
        let before = self.wrong.len();
        let shown = if root { self::root(schema) } else { schema.clone() };
        let optional_old = flag(rule, "optionalOldSelf");
        let old = if optional_old { None } else { Some(&shown) };
        let names = Names::default().with("self", Some(&shown)).with("oldSelf", old);
        let mut read = |field: &str, text: &str, kind: Kind| match Expression::read(text, &names, kind) {
            _ if text.trim().is_empty() => {
                self.wrong.push((format!("{place}.{field}"), format!("Required value: {field} is not specified")));
                None
            }
            Ok(expression) => Some(expression),
            Err(why) => {
                let shown: String = text.chars().take(200).collect();
                self.wrong.push((format!("{place}.{field}"), format!("Invalid value: {shown:?}: {why}")));
                None
            }
        };
        let expression = read("rule", word(rule, "rule"), Kind::Bool);
        let message_text = word(rule, "messageExpression");
        let message_expression =
            (!message_text.is_empty()).then(|| read("messageExpression", message_text, Kind::Text)).flatten();
        if expression.as_ref().is_some_and(Expression::uses_old) && !tracked {
            let why =
                "oldSelf cannot be used on the uncorrelatable portion of the schema: the list around it is no map";
            self.wrong.push((format!("{place}.rule"), format!("Invalid value: {:?}: {why}", word(rule, "rule"))));
        }
        if optional_old && !expression.as_ref().is_some_and(Expression::uses_old) && expression.is_some() {
            let why = "Invalid value: true: may not be set if oldSelf is not used in rule";
            self.wrong.push((format!("{place}.optionalOldSelf"), why.into()));
        }
        let message = word(rule, "message").trim();
        if message.contains('\n') {
            self.wrong.push((format!("{place}.message"), "Invalid value: must not contain line breaks".into()));
        }
        let reason = word(rule, "reason");
        if !matches!(
            reason,
            "" | "FieldValueInvalid" | "FieldValueForbidden" | "FieldValueRequired" | "FieldValueDuplicate"
        ) {
            let known =
                "\"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\"";
            let why = format!("Unsupported value: {reason:?}: supported values: {known}");
            self.wrong.push((format!("{place}.reason"), why));
        }
        let field = match relative(schema, word(rule, "fieldPath")) {
            Ok(field) => field,
            Err(why) => {
                let why = format!("Invalid value: {:?}: {why}", word(rule, "fieldPath"));
                self.wrong.push((format!("{place}.fieldPath"), why));
                String::new()
            }
        };
        let expression = expression.filter(|_| self.wrong.len() == before)?;
        let message = match message {
            "" => format!("failed rule: {}", word(rule, "rule").trim()),
            message => message.to_string(),
        };
        Some(Rule { expression, message, message_expression, reason: reason.into(), field, optional_old })
    }
}

/// A whole object as rules see it: of its metadata the names only.
fn root(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for name in ["apiVersion", "kind"] {
            properties.entry(name).or_insert_with(|| serde_json::json!({"type": "string"}));
        }
        let text = || serde_json::json!({"type": "string"});
        let metadata = serde_json::json!({"type": "object", "properties": {"name": text(), "generateName": text()}});
        properties.insert("metadata".into(), metadata);
    }
    schema
}

/// A `fieldPath` such as `.spec.x` or `.labels['a.b']`, as messages show it: `.spec.x`, `.labels[a.b]`.
fn relative(schema: &Value, text: &str) -> Result<String, String> {
    let (mut shown, mut rest, mut at) = (String::new(), text, schema);
    while !rest.is_empty() {
        let (name, after, bracket) = if let Some(inside) = rest.strip_prefix("['") {
            let (name, after) = inside.split_once("']").ok_or("a bracket is not closed")?;
            (name, after, true)
        } else {
            let name = rest.strip_prefix('.').ok_or("must be a path such as .a.b or .a['b']")?;
            let end = name.find(['.', '[']).unwrap_or(name.len());
            let (name, after) = name.split_at(end);
            (name, after, false)
        };
        let named = at.get("properties").and_then(|p| p.get(name));
        let inner = named.or_else(|| at.get("additionalProperties").filter(|a| a.is_object() && bracket));
        at = inner.ok_or_else(|| format!("does not refer to a valid field ({name:?})"))?;
        shown += &if named.is_some() { format!(".{name}") } else { format!("[{name}]") };
        rest = after;
    }
    Ok(shown)
}

struct Found<'a, 'c> {
    context: &'a mut Context<'c>,
    errors: Vec<FieldError>,
    warnings: Vec<String>,
}

impl Found<'_, '_> {
    fn node(&mut self, node: &Node, schema: &Value, new: &Value, old: Option<&Value>, path: &str) {
        if self.errors.len() >= MAX_FOUND || new.is_null() {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        if !node.rules.is_empty() {
            self.rules(node, schema, new, old, path);
        }
        let inner = |name: &str| schema.get("properties").and_then(|p| p.get(name)).unwrap_or(&Value::Null);
        for (name, child) in &node.properties {
            if let Some(value) = new.get(name) {
                let before = old.and_then(|old| old.get(name));
                self.node(child, inner(name), value, before, &join(path, name));
            }
        }
        if let (Some(child), Some(fields)) = (&node.additional, new.as_object()) {
            let others = schema.get("additionalProperties").unwrap_or(&Value::Null);
            for (name, value) in fields.iter().filter(|(name, _)| inner(name).is_null()) {
                self.node(child, others, value, old.and_then(|old| old.get(name)), &format!("{path}[{name}]"));
            }
        }
        if let (Some(child), Some(items)) = (&node.items, new.as_array()) {
            let inner = schema.get("items").unwrap_or(&Value::Null);
            for (at, item) in items.iter().enumerate() {
                self.node(child, inner, item, counterpart(schema, item, old), &format!("{path}[{at}]"));
            }
        }
    }

    fn rules(&mut self, node: &Node, schema: &Value, new: &Value, old: Option<&Value>, path: &str) {
        let value = from_json(new, Some(schema));
        let before = old.map(|old| from_json(old, Some(schema)));
        let unchanged = old == Some(new);
        for rule in &node.rules {
            let old_self = match (&before, rule.optional_old) {
                (Some(before), false) => before.clone(),
                (None, false) if rule.expression.uses_old() => continue,
                (None, false) => Cel::Null,
                (Some(before), true) => Cel::Opaque(Arc::new(OptionalValue::of(before.clone()))),
                (None, true) => Cel::Opaque(Arc::new(OptionalValue::none())),
            };
            self.context.add_variable_from_value("self", value.clone());
            self.context.add_variable_from_value("oldSelf", old_self);
            let (error, text) = match rule.expression.value(self.context) {
                Ok(Cel::Bool(true)) => continue,
                Ok(Cel::Bool(false)) => (false, self.message(rule)),
                Ok(_) => (true, format!("it is not a bool evaluating rule: {}", rule.message)),
                Err(why) => (true, format!("{why} evaluating rule: {}", rule.message)),
            };
            let field = format!("{path}{}", rule.field);
            let field = match field.trim_start_matches('.') {
                "" => "<nil>".to_string(),
                field => field.to_string(),
            };
            let reason = if error { "FieldValueInvalid" } else { rule.reason.as_str() };
            let message = worded(reason, new, &text);
            match unchanged && !rule.expression.uses_old() {
                true => self.warnings.push(format!("{field}: {message}")),
                false => self.errors.push(FieldError { field, message }),
            }
        }
    }

    fn message(&self, rule: &Rule) -> String {
        let made = rule.message_expression.as_ref().and_then(|expression| expression.value(self.context).ok());
        match made {
            Some(Cel::String(text)) if usable(&text) => text.trim().to_string(),
            _ => rule.message.clone(),
        }
    }
}

/// A made message is one line that says something, and not a flood.
fn usable(text: &str) -> bool {
    !text.trim().is_empty() && !text.contains('\n') && text.chars().count() <= MAX_MESSAGE
}

/// The words of Kubernetes, which shows the value when it is a plain one.
fn worded(reason: &str, value: &Value, text: &str) -> String {
    match reason {
        "FieldValueRequired" => format!("Required value: {text}"),
        "FieldValueForbidden" => format!("Forbidden: {text}"),
        "FieldValueDuplicate" => format!("Duplicate value: {value}"),
        _ if value.is_object() || value.is_array() => format!("Invalid value: {text}"),
        _ => format!("Invalid value: {value}: {text}"),
    }
}

/// The item of the list before that has the same keys.
fn counterpart<'a>(schema: &Value, item: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
    if word(schema, "x-kubernetes-list-type") != "map" {
        return None;
    }
    let keys = list(schema, "x-kubernetes-list-map-keys");
    let same = |other: &&Value| keys.iter().filter_map(Value::as_str).all(|key| item.get(key) == other.get(key));
    old?.as_array()?.iter().find(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "messageExpression": "'min ' + string(self.min) + ' is above max'", "fieldPath": ".min"},
                {"rule": "!has(oldSelf.name) || self.name == oldSelf.name", "message": "name is immutable", "reason": "FieldValueForbidden"},
            ],
            "properties": {
                "min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string"},
                "once": {"type": "string", "x-kubernetes-validations": [
                    {"rule": "!oldSelf.hasValue() || oldSelf.value() == self", "optionalOldSelf": true}]},
                "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["key"],
                    "items": {"type": "object", "properties": {"key": {"type": "string"}, "size": {"type": "integer"}},
                        "x-kubernetes-validations": [{"rule": "self.size >= oldSelf.size", "message": "only grows"}]}},
                "labels": {"type": "object", "additionalProperties": {"type": "string",
                    "x-kubernetes-validations": [{"rule": "self != 'bad'", "message": "not bad"}]}},
            },
        }}})
    }

    #[test]
    fn objects() {
        let schema = schema();
        let mut wrong = Vec::new();
        let rules = Rules::read(&schema, "s", &mut wrong);
        assert_eq!(wrong, []);
        let base = json!({"min": 1, "max": 2});
        let table = [
            (json!({"min": 1, "max": 2}), None, ""),
            (json!({"min": 3, "max": 2}), None, "spec.min: Invalid value: min 3 is above max"),
            (
                json!({"min": 3}),
                None,
                "spec.min: Invalid value: no such key: max evaluating rule: failed rule: self.min <= self.max",
            ),
            (
                json!({"min": 1, "max": 2, "name": "b"}),
                Some(json!({"min": 1, "max": 2, "name": "a"})),
                "spec: Forbidden: name is immutable",
            ),
            (json!({"min": 1, "max": 2, "name": "b"}), Some(base.clone()), ""),
            (json!({"min": 1, "max": 2, "once": "a"}), Some(base.clone()), ""),
            (
                json!({"min": 1, "max": 2, "once": "b"}),
                Some(json!({"min": 1, "max": 2, "once": "a"})),
                "spec.once: Invalid value: \"b\": failed rule: !oldSelf.hasValue() || oldSelf.value() == self",
            ),
            (
                json!({"min": 1, "max": 2, "items": [{"key": "b", "size": 1}, {"key": "a", "size": 2}]}),
                Some(json!({"min": 1, "max": 2, "items": [{"key": "a", "size": 3}]})),
                "spec.items[1]: Invalid value: only grows",
            ),
            (
                json!({"min": 1, "max": 2, "labels": {"x": "bad"}}),
                None,
                "spec.labels[x]: Invalid value: \"bad\": not bad",
            ),
            // A part that did not change and was wrong before only warns.
            (
                json!({"min": 1, "max": 2, "labels": {"x": "bad"}}),
                Some(json!({"min": 1, "max": 1, "labels": {"x": "bad"}})),
                "",
            ),
        ];
        for (new, old, want) in table {
            let old = old.map(|old| json!({"spec": old}));
            let (errors, _) = rules.check(&schema, &json!({"spec": new}), old.as_ref());
            let text: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
            assert_eq!(text.join("; "), want, "{new}");
        }
        let spec = json!({"spec": {"min": 1, "max": 2, "labels": {"x": "bad"}}});
        assert_eq!(rules.check(&schema, &spec, Some(&spec)).1, ["spec.labels[x]: Invalid value: \"bad\": not bad"]);
    }

    #[test]
    fn rules_that_cannot_be_followed() {
        let with = |rule: Value| {
            json!({"type": "object", "properties": {
            "a": {"type": "array", "items": {"type": "string", "x-kubernetes-validations": [rule]}}}})
        };
        for (rule, place, want) in [
            (json!({"rule": "self.x"}), "rule", "does not support field selection"),
            (json!({"rule": "self == oldSelf"}), "rule", "uncorrelatable"),
            (json!({"rule": "self != ''", "messageExpression": "1 +"}), "messageExpression", "compilation failed"),
            (json!({"rule": "self != ''", "reason": "Because"}), "reason", "supported values"),
            (json!({"rule": "self != ''", "fieldPath": ".x"}), "fieldPath", "does not refer"),
            (json!({"rule": "self != ''", "optionalOldSelf": true}), "optionalOldSelf", "oldSelf is not used"),
        ] {
            let mut wrong = Vec::new();
            Rules::read(&with(rule), "s", &mut wrong);
            let want_place = format!("s.properties[a].items.x-kubernetes-validations[0].{place}");
            assert!(wrong.iter().any(|(at, why)| *at == want_place && why.contains(want)), "{place}: {wrong:?}");
        }
    }
}
