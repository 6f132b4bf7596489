//! ValidatingAdmissionPolicies: rules in CEL about any kind, in force where a binding says so. Asked about every write before
//! the validating webhooks are.
//!
//! Source: the Kubernetes documentation, "Validating Admission Policy". Parameters (`paramKind`) and `authorizer` are not
//! offered: a policy that uses them is refused when it is stored, so that none is passed over in silence.

use super::conditions::{Facts, check as check_conditions, hold, names, wrong_expression};
use super::{GROUP, Request, Shown, Webhook, select};
use crate::cel::{self, Expression, Kind, Names, from_json};
use crate::status::{ApiError, FieldError};
use kube_cel::cel::objects::{Key, Map as CelMap};
use kube_cel::cel::{Context, Value as Cel};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use weft_k8s_api::{KindInfo, Object};
use weft_store::ListQuery;

const POLICY: &str = "ValidatingAdmissionPolicy";
const BINDING: &str = "ValidatingAdmissionPolicyBinding";
/// Rules and variables of one policy.
const MAX_PARTS: usize = 256;
/// Longest made message in bytes; a longer one is not shown. Source: the API reference, `messageExpression`.
const MAX_MESSAGE: usize = 5 << 10;

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Asks the policies in force. Returns their warnings.
///
/// # Errors
/// The first denial, bindings by name.
pub(super) async fn judge(request: &Request<'_>, object: Option<&Object>) -> Result<Vec<String>, ApiError> {
    let mut warnings = Vec::new();
    let store = request.server.store();
    if request.kind.group == GROUP {
        return Ok(warnings);
    }
    let bindings = store.list(&ListQuery::all(GROUP, BINDING));
    let bindings = bindings.map_err(|error| ApiError::internal(format!("cannot list every {BINDING}: {error}")))?;
    for binding in &bindings.items {
        let Some(policy) = store.find(GROUP, POLICY, "", text(binding.spec(), "policyName")) else { continue };
        let nothing = Value::Null;
        let of_policy = policy.spec().get("matchConstraints").unwrap_or(&nothing);
        let of_binding = binding.spec().get("matchResources").filter(|m| !m.is_null());
        let Some(version) = matched(request, object, of_policy) else { continue };
        if of_binding.is_some_and(|wanted| matched(request, object, wanted).is_none()) {
            continue;
        }
        let facts = Facts::of(request, version, Shown::of(request, version, object).await?);
        let namespace = object.or(request.old).map(Object::namespace).filter(|n| !n.is_empty());
        let namespace = namespace.and_then(|n| store.find("", "Namespace", "", n)).map(|n| n.to_value());
        let spec = policy.spec().clone();
        let judged = cel::evaluate(|context| {
            facts.bind(context);
            context.add_variable_from_value("namespaceObject", from_json(&namespace.unwrap_or_default(), None));
            ask(&spec, context)
        });
        let found = match judged.unwrap_or_else(Err) {
            Ok(found) => found,
            Err(_) if text(policy.spec(), "failurePolicy") == "Ignore" => continue,
            Err(why) => vec![("Invalid".to_string(), why)],
        };
        let actions = list(binding.spec(), "validationActions");
        let (policy, binding) = (policy.name(), binding.name());
        for (reason, message) in found {
            if actions.iter().any(|action| action == "Warn") {
                warnings.push(format!(
                    "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {message}"
                ));
            }
            if actions.iter().any(|action| action == "Deny") {
                let why =
                    format!("ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {message}");
                let name = object.or(request.old).map(Object::name).unwrap_or_default();
                return Err(denial(request.kind, name, &reason, &why));
            }
        }
    }
    Ok(warnings)
}

/// The version in which a policy wants the object, when it wants it.
fn matched<'a>(request: &Request<'a>, object: Option<&Object>, wanted: &Value) -> Option<&'a str> {
    let rules = |field: &str| wanted.get(field).cloned().unwrap_or_else(|| json!([]));
    let any = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*", "*/*"]}]);
    let named = |rules: Value| -> Value {
        let name = object.or(request.old).map(Object::name).unwrap_or_default();
        let fits = |rule: &Value| {
            let names = list(rule, "resourceNames");
            names.is_empty() || names.iter().any(|n| n == name)
        };
        rules.as_array().into_iter().flatten().filter(|rule| fits(rule)).cloned().collect()
    };
    let include = match rules("resourceRules") {
        Value::Array(all) if all.is_empty() => any,
        all => named(all),
    };
    let hook = |rules: Value, selectors: bool| {
        let mut spec = json!({"rules": rules, "matchPolicy": wanted.get("matchPolicy")});
        for field in ["namespaceSelector", "objectSelector"].into_iter().filter(|_| selectors) {
            spec[field] = wanted.get(field).cloned().unwrap_or_default();
        }
        Webhook { name: String::new(), spec }
    };
    if select::version(request, &hook(named(rules("excludeResourceRules")), false), object).is_some() {
        return None;
    }
    select::version(request, &hook(include, true), object)
}

/// What does not hold: reason and message. Nothing when the policy's conditions leave the request alone.
fn ask(spec: &Value, context: &mut Context<'_>) -> Result<Vec<(String, String)>, String> {
    let names = names().with("namespaceObject", None).with("variables", None);
    let mut variables = HashMap::new();
    bind_variables(&variables, context);
    if !hold(list(spec, "matchConditions"), &names, context)? {
        return Ok(Vec::new());
    }
    for variable in list(spec, "variables") {
        // One that has no value is missed by those who use it, and by nobody else.
        let value = Expression::read_any(text(variable, "expression"), &names).and_then(|e| e.value(context));
        // Also without a value, when that is so because nothing is left.
        cel::keep(value.as_ref().unwrap_or(&Cel::Null))?;
        if let Ok(value) = value {
            variables.insert(Key::String(Arc::new(text(variable, "name").into())), value);
            bind_variables(&variables, context);
        }
    }
    let mut found = Vec::new();
    for validation in list(spec, "validations") {
        let expression = text(validation, "expression");
        match Expression::read(expression, &names, Kind::Bool)?.value(context) {
            Ok(Cel::Bool(true)) => continue,
            Ok(Cel::Bool(false)) => {}
            Ok(_) => return Err(format!("expression '{expression}' is not a bool")),
            Err(why) => return Err(format!("expression '{expression}' resulted in error: {why}")),
        }
        let made = match text(validation, "messageExpression") {
            "" => None,
            made => Expression::read(made, &names, Kind::Text).and_then(|e| e.value(context)).ok(),
        };
        let message = match (made, text(validation, "message").trim()) {
            (Some(Cel::String(made)), _) if usable(&made) => made.trim().to_string(),
            (_, "") => format!("failed expression: {}", expression.trim()),
            (_, message) => message.to_string(),
        };
        found.push((text(validation, "reason").to_string(), message));
    }
    Ok(found)
}

/// A made message is one line that says something, and not a flood.
fn usable(text: &str) -> bool {
    !text.trim().is_empty() && !text.contains('\n') && text.len() <= MAX_MESSAGE
}

fn bind_variables(variables: &HashMap<Key, Cel>, context: &mut Context<'_>) {
    context.add_variable_from_value("variables", Cel::Map(CelMap { map: Arc::new(variables.clone()) }));
}

fn denial(kind: &KindInfo, name: &str, reason: &str, why: &str) -> ApiError {
    let mut error = ApiError::forbidden_object(kind, name, why);
    (error.code, error.reason) = match reason {
        "Unauthorized" => (401, "Unauthorized"),
        "Forbidden" => (403, "Forbidden"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    error
}

/// What is wrong with a policy or a binding that is to be stored.
pub(super) fn check(object: &Object) -> Vec<FieldError> {
    let spec = object.spec();
    let mut wrong = Vec::new();
    let mut add = |field: String, message: String| wrong.push(FieldError { field, message });
    if object.kind == BINDING {
        if text(spec, "policyName").is_empty() {
            add("spec.policyName".into(), "Required value".into());
        }
        if spec.get("paramRef").is_some_and(|p| !p.is_null()) {
            add("spec.paramRef".into(), "Forbidden: parameters of policies are not offered by this API server".into());
        }
        let actions = list(spec, "validationActions");
        if actions.is_empty() {
            add("spec.validationActions".into(), "Required value".into());
        }
        for (at, action) in actions.iter().enumerate() {
            if !matches!(action.as_str(), Some("Deny" | "Warn" | "Audit")) {
                let why = format!("Unsupported value: {action}: supported values: \"Audit\", \"Deny\", \"Warn\"");
                add(format!("spec.validationActions[{at}]"), why);
            }
        }
        let both = ["Deny", "Warn"].iter().all(|word| actions.iter().any(|action| action == word));
        if both {
            add("spec.validationActions".into(), "Invalid value: must not contain both Deny and Warn".into());
        }
        return wrong;
    }
    if object.kind != POLICY {
        return wrong;
    }
    if spec.get("paramKind").is_some_and(|p| !p.is_null()) {
        add("spec.paramKind".into(), "Forbidden: parameters of policies are not offered by this API server".into());
    }
    if list(spec.get("matchConstraints").unwrap_or(&Value::Null), "resourceRules").is_empty() {
        add("spec.matchConstraints.resourceRules".into(), "Required value".into());
    }
    let names = names().with("namespaceObject", None).with("variables", None);
    let (variables, validations) = (list(spec, "variables"), list(spec, "validations"));
    if variables.len() + validations.len() > MAX_PARTS {
        add("spec.validations".into(), format!("Too many: a policy has at most {MAX_PARTS} rules and variables"));
        return wrong;
    }
    if validations.is_empty() && list(spec, "auditAnnotations").is_empty() {
        let why = "Required value: validations or auditAnnotations must contain at least one item";
        ["spec.validations", "spec.auditAnnotations"].iter().for_each(|field| add((*field).into(), why.into()));
    }
    for (at, variable) in variables.iter().enumerate() {
        let place = format!("spec.variables[{at}]");
        if text(variable, "name").is_empty() {
            add(format!("{place}.name"), "Required value: name is not specified".into());
        }
        if let Err(why) = Expression::read_any(text(variable, "expression"), &names) {
            add(format!("{place}.expression"), format!("Invalid value: {why}"));
        }
    }
    for (at, validation) in validations.iter().enumerate() {
        wrong.extend(check_validation(validation, &names, &format!("spec.validations[{at}]")));
    }
    let conditions = spec.get("matchConditions").unwrap_or(&Value::Null);
    wrong.extend(check_conditions(conditions, &names, "spec.matchConditions"));
    wrong
}

fn check_validation(validation: &Value, names: &Names<'_>, place: &str) -> Vec<FieldError> {
    let mut wrong = Vec::new();
    let mut add = |field: &str, message: String| wrong.push(FieldError { field: format!("{place}.{field}"), message });
    if let Some(why) = wrong_expression(text(validation, "expression"), names, Kind::Bool) {
        add("expression", why);
    }
    let made = text(validation, "messageExpression");
    if let Some(why) = wrong_expression(made, names, Kind::Text).filter(|_| !made.is_empty()) {
        add("messageExpression", why);
    }
    let reason = text(validation, "reason");
    if !matches!(reason, "" | "Unauthorized" | "Forbidden" | "Invalid" | "RequestEntityTooLarge") {
        let known = "\"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\", \"Unauthorized\"";
        add("reason", format!("Unsupported value: {reason:?}: supported values: {known}"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_together_are_bounded() {
        let variable = |at: usize, expression: String| json!({"name": format!("v{at}"), "expression": expression});
        let after = |made: fn(String) -> String| -> Vec<Value> {
            let all = (1..200).map(|at| variable(at, made(format!("variables.v{}", at - 1))));
            std::iter::once(variable(0, "object.text".into())).chain(all).collect()
        };
        let large = json!({"text": "a".repeat(1 << 20)});
        for variables in [
            after(|v| format!("{v} + {v}")),
            after(|v| format!("[{v}, {v}]")),
            after(|v| format!("{{'a': {v}, 'b': {v}}}")),
            after(|v| v),
        ] {
            let spec = json!({"variables": variables, "validations": [{"expression": "variables.v199 == 'x'"}]});
            let found = cel::evaluate(|context| {
                context.add_variable_from_value("object", from_json(&large, None));
                ask(&spec, context)
            });
            let error = found.unwrap().unwrap_err();
            assert!(error.contains("takes more than it may"), "{error}");
        }
        // A long message is not shown; variables that are used as they are meant to be are.
        let validations = json!([
            {"expression": "variables.v1.size() == 1", "messageExpression": "variables.v1"},
            {"expression": "variables.v0.size() == 1", "messageExpression": "variables.v0"},
        ]);
        let variables = [variable(0, "object.text.substring(0, 5)".into()), variable(1, "object.text + '!'".into())];
        let spec = json!({"variables": variables, "validations": validations});
        let found = cel::evaluate(|context| {
            context.add_variable_from_value("object", from_json(&large, None));
            ask(&spec, context)
        });
        let messages: Vec<String> = found.unwrap().unwrap().into_iter().map(|(_, message)| message).collect();
        assert_eq!(messages, ["failed expression: variables.v1.size() == 1", "aaaaa"]);
    }
}
