//! Expressions in CEL about a request: what they see of it, and the conditions (`matchConditions`) under which a webhook or a
//! policy is asked at all.
//!
//! Source: the Kubernetes documentation, "Dynamic Admission Control", "Matching requests: matchConditions". `authorizer` is
//! not offered: an expression that names it is refused when it is stored.

use super::{Request, Shown, review};
use crate::cel::{Expression, Kind, Names, from_json};
use crate::status::FieldError;
use kube_cel::cel::{Context, Value as Cel};
use serde_json::{Map, Value};

/// Conditions of one webhook or policy. Source: the API reference.
const MAX_CONDITIONS: usize = 64;

/// What expressions see of a request.
pub(super) struct Facts {
    request: Value,
    object: Value,
    old: Value,
}

impl Facts {
    pub(super) fn of(request: &Request<'_>, version: &str, shown: Shown) -> Self {
        let (_, mut review) = review(request, version, &shown);
        let mut asked = review.get_mut("request").map(Value::take).unwrap_or_default();
        let mut part = |name: &str| asked.as_object_mut().and_then(|fields| fields.shift_remove(name));
        part("object");
        part("oldObject");
        let empty = [("namespace", ""), ("name", ""), ("subResource", ""), ("requestSubResource", "")];
        if let Some(fields) = asked.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
            for (name, value) in empty {
                fields.entry(name).or_insert_with(|| value.into());
            }
        }
        Self { request: asked, object: shown.object, old: shown.old }
    }

    /// Makes them known to expressions.
    pub(super) fn bind(&self, context: &mut Context<'_>) {
        for (name, value) in [("request", &self.request), ("object", &self.object), ("oldObject", &self.old)] {
            context.add_variable_from_value(name, from_json(value, None));
        }
    }
}

/// The names of [`Facts`].
pub(super) fn names() -> Names<'static> {
    Names::default().with("request", None).with("object", None).with("oldObject", None)
}

/// Whether all conditions hold: the first that does not decides, unless another cannot be evaluated.
///
/// # Errors
/// Which condition cannot be evaluated, and why.
pub(super) fn hold(conditions: &[Value], names: &Names<'_>, context: &Context<'_>) -> Result<bool, String> {
    let mut failed = None;
    for condition in conditions {
        let text = |field: &str| condition.get(field).and_then(Value::as_str).unwrap_or_default();
        let value = Expression::read(text("expression"), names, Kind::Bool).and_then(|e| e.value(context));
        match value {
            Ok(Cel::Bool(true)) => {}
            Ok(Cel::Bool(false)) => return Ok(false),
            Ok(_) => failed = Some(format!("expression {:?} is not a bool", text("expression"))),
            Err(why) => failed = Some(format!("expression {:?} resulted in error: {why}", text("expression"))),
        }
    }
    failed.map_or(Ok(true), Err)
}

/// What is wrong with conditions that are to be stored.
pub(super) fn check(conditions: &Value, names: &Names<'_>, place: &str) -> Vec<FieldError> {
    let mut wrong = Vec::new();
    let all = conditions.as_array().map_or(&[][..], Vec::as_slice);
    if all.len() > MAX_CONDITIONS {
        let message = format!("Too many: {}: must have at most {MAX_CONDITIONS} items", all.len());
        wrong.push(FieldError { field: place.into(), message });
        return wrong;
    }
    let mut seen = std::collections::BTreeSet::new();
    for (at, condition) in all.iter().enumerate() {
        let empty = Map::new();
        let fields = condition.as_object().unwrap_or(&empty);
        let text = |field: &str| fields.get(field).and_then(Value::as_str).unwrap_or_default();
        let mut add = |field: &str, message: String| {
            wrong.push(FieldError { field: format!("{place}[{at}].{field}"), message });
        };
        match text("name") {
            "" => add("name", "Required value".into()),
            name if !seen.insert(name.to_string()) => add("name", format!("Duplicate value: {name:?}")),
            _ => {}
        }
        if let Some(message) = wrong_expression(text("expression"), names, Kind::Bool) {
            add("expression", message);
        }
    }
    wrong
}

/// Why an expression cannot be followed.
pub(super) fn wrong_expression(text: &str, names: &Names<'_>, kind: Kind) -> Option<String> {
    if text.trim().is_empty() {
        return Some("Required value: expression is not specified".into());
    }
    let why = Expression::read(text, names, kind).err()?;
    let shown: String = text.chars().take(200).collect();
    Some(format!("Invalid value: {shown:?}: {why}"))
}
