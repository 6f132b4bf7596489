//! What the statuses of objects should say, as data; and how it is laid onto the status that an object has. Who writes it,
//! and when, is not known here.

use super::Problem;
use serde_json::{Map, Value, json};
use weft_core::Provenance;
use weft_k8s_api::ObjectKey;

/// The status that an object should have.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusUpdate {
    /// The object.
    pub object: ObjectKey,
    /// The spec's generation that it is about.
    pub generation: i64,
    /// The status, its conditions without times.
    pub status: Value,
}

/// One condition.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finding {
    pub kind: &'static str,
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
}

impl Finding {
    pub fn good(kind: &'static str, reason: &'static str, message: &str) -> Self {
        Self { kind, status: true, reason, message: message.into() }
    }

    pub fn bad(kind: &'static str, problem: &Problem) -> Self {
        Self { kind, status: false, reason: problem.reason, message: problem.message.clone() }
    }

    fn of(kind: &'static str, good: (&'static str, &str), problem: Option<&Problem>) -> Self {
        problem.map_or_else(|| Self::good(kind, good.0, good.1), |p| Self::bad(kind, p))
    }
}

/// Good unless there is a problem.
pub(crate) fn finding(kind: &'static str, good: (&'static str, &str), problem: Option<&Problem>) -> Finding {
    Finding::of(kind, good, problem)
}

/// Conditions as the API writes them, without times.
pub(crate) fn conditions(findings: &[Finding], generation: i64) -> Value {
    let one = |f: &Finding| {
        json!({
            "type": f.kind, "status": if f.status { "True" } else { "False" }, "reason": f.reason,
            "message": f.message, "observedGeneration": generation,
        })
    };
    findings.iter().map(one).collect()
}

impl StatusUpdate {
    /// The status that `current` becomes at `now` (RFC 3339); `None` when it says all of this already. Conditions that are
    /// what they were keep their time; entries that other controllers wrote, and fields that are not ours, stay.
    pub fn onto(&self, current: &Value, now: &str) -> Option<Value> {
        let mut next = current.as_object().cloned().unwrap_or_default();
        for (name, wanted) in self.status.as_object().into_iter().flatten() {
            let before = next.get(name).cloned().unwrap_or(Value::Null);
            let value = match name.as_str() {
                "parents" | "ancestors" => parents(wanted, &before, now),
                "gateways" => entries(wanted, &before, now),
                "listeners" => entries(wanted, &before, now),
                "conditions" => merge_conditions(wanted, &before, now),
                _ => wanted.clone(),
            };
            match &value {
                Value::Null => drop(next.remove(name)),
                _ => drop(next.insert(name.clone(), value)),
            }
        }
        let next = Value::Object(next);
        let unchanged = next == *current || (current.is_null() && next.as_object().is_some_and(Map::is_empty));
        (!unchanged).then_some(next)
    }
}

/// What tells one entry of a list from the others.
fn entry_key(entry: &Value) -> Value {
    let of = |field: &str| entry.get(field).cloned().unwrap_or(Value::Null);
    json!([of("name"), of("parentRef"), of("gatewayRef"), of("ancestorRef"), of("controllerName")])
}

/// Entries with the times of those that were there.
fn entries(wanted: &Value, before: &Value, now: &str) -> Value {
    let one = |entry: &Value| {
        let mut entry = entry.clone();
        let known = before.as_array().into_iter().flatten().find(|b| entry_key(b) == entry_key(&entry));
        let old = known.and_then(|k| k.get("conditions")).cloned().unwrap_or(Value::Null);
        if let Some(conditions) = entry.get("conditions").cloned() {
            entry["conditions"] = merge_conditions(&conditions, &old, now);
        }
        entry
    };
    wanted.as_array().into_iter().flatten().map(one).collect()
}

/// Ours, and those of other controllers.
fn parents(wanted: &Value, before: &Value, now: &str) -> Value {
    let ours = |p: &Value| {
        let name = p.get("controllerName").and_then(Value::as_str).unwrap_or_default();
        super::listeners::CONTROLLERS.contains(&name)
    };
    let others = before.as_array().into_iter().flatten().filter(|p| !ours(p)).cloned();
    let Value::Array(own) = entries(wanted, before, now) else { return Value::Null };
    others.chain(own).collect()
}

fn merge_conditions(wanted: &Value, before: &Value, now: &str) -> Value {
    let before: Vec<&Value> = before.as_array().into_iter().flatten().collect();
    let kind = |c: &Value| c.get("type").cloned();
    let one = |condition: &Value| {
        let known = before.iter().find(|b| kind(b) == kind(condition));
        let same = known.filter(|k| k.get("status") == condition.get("status"));
        let time = same.and_then(|k| k.get("lastTransitionTime")).cloned().unwrap_or_else(|| json!(now));
        let mut condition = condition.clone();
        condition["lastTransitionTime"] = time;
        condition
    };
    let wanted: Vec<Value> = wanted.as_array().into_iter().flatten().map(one).collect();
    let stay = before.iter().filter(|b| wanted.iter().all(|w| kind(w) != kind(b)));
    stay.map(|b| (*b).clone()).chain(wanted.iter().cloned()).collect()
}

/// Conditions of an object that say no, as warnings about it.
pub(crate) fn warning(at: &Provenance, path: &str, problem: &Problem) -> crate::Warning {
    let at = if path.is_empty() { at.clone() } else { at.at(path) };
    crate::Warning { at, code: problem.reason, message: problem.message.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(status: Value) -> StatusUpdate {
        let object = ObjectKey { group: "g".into(), kind: "HTTPRoute".into(), namespace: "n".into(), name: "r".into() };
        StatusUpdate { object, generation: 1, status }
    }

    #[test]
    fn times_stay_and_others_stay() {
        let accepted =
            |status: &str| json!([{"type": "Accepted", "status": status, "reason": "R", "observedGeneration": 1}]);
        let parent = |controller: &str, conditions: Value| json!({"controllerName": controller, "parentRef": {"name": "g"}, "conditions": conditions});
        let ours = "istio.io/gateway-controller";
        let wanted = update(json!({"parents": [parent(ours, accepted("True"))]}));
        let foreign = parent("example.com/other", json!([]));
        let first = wanted.onto(&json!({"parents": [foreign]}), "t1").unwrap();
        assert_eq!(first["parents"].as_array().unwrap().len(), 2);
        assert_eq!(first["parents"][1]["conditions"][0]["lastTransitionTime"], "t1");
        assert_eq!(wanted.onto(&first, "t2"), None, "nothing new");
        let worse = update(json!({"parents": [parent(ours, accepted("False"))]}));
        let second = worse.onto(&first, "t3").unwrap();
        assert_eq!(second["parents"][1]["conditions"][0]["lastTransitionTime"], "t3");
        let gone = update(json!({"parents": []})).onto(&second, "t4").unwrap();
        assert_eq!(gone["parents"], json!([foreign]));
        assert_eq!(update(json!({"parents": []})).onto(&gone, "t5"), None);
    }

    #[test]
    fn a_changed_reason_keeps_the_time() {
        let of =
            |reason: &str| update(json!({"conditions": [{"type": "Accepted", "status": "True", "reason": reason}]}));
        let first = of("A").onto(&Value::Null, "t1").unwrap();
        let second = of("B").onto(&first, "t2").unwrap();
        assert_eq!(second["conditions"][0]["lastTransitionTime"], "t1");
        assert_eq!(second["conditions"][0]["reason"], "B");
    }
}
