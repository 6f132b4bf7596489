//! Objects of our kinds: what is wrong with them, in the words of `weft apply` and `weft validate`.

use super::Metrics;
use super::review::Verdict;
use serde_json::Value;
use weft_k8s_api::{Object, Problem, validate};

/// Longest message, characters.
const MAX_MESSAGE: usize = 8000;

/// The answer for an object.
pub(super) fn answer(request: &Value, metrics: &Metrics) -> Verdict {
    let text = |part: &str, field: &str| request[part][field].as_str().unwrap_or_default().to_string();
    let resource = [text("resource", "group"), text("resource", "version"), text("resource", "resource")];
    let allowed = |warnings| Verdict::Allowed { warnings };
    // What goes away need not be right.
    if request["operation"] == "DELETE" || request["object"].is_null() {
        return allowed(Vec::new());
    }
    let mut object: Object = match serde_json::from_value(request["object"].clone()) {
        Ok(object) => object,
        Err(error) => {
            metrics.validation_failed(&resource, "yaml_decode_error");
            return Verdict::Denied { message: format!("the object cannot be read: {error}") };
        }
    };
    if object.metadata.namespace.is_none() {
        object.metadata.namespace = request["namespace"].as_str().filter(|n| !n.is_empty()).map(str::to_string);
    }
    let found = validate(&object);
    let lines = |problems: &[Problem]| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    if !found.is_valid() {
        metrics.validation_failed(&resource, "invalid_resource");
        let message: String = lines(&found.errors).join("\n").chars().take(MAX_MESSAGE).collect();
        return Verdict::Denied { message };
    }
    metrics.validation_passed(&resource);
    let mut warnings = lines(&found.warnings);
    warnings.extend(lines(&found.unknown_fields));
    allowed(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(operation: &str, spec: Value) -> Value {
        json!({
            "uid": "u", "operation": operation, "namespace": "default",
            "resource": {"group": "networking.istio.io", "version": "v1", "resource": "virtualservices"},
            "object": {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "reviews"}, "spec": spec},
        })
    }

    #[test]
    fn answers_in_the_words_of_apply() {
        let metrics = Metrics::default();
        let good = json!({"hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "reviews"}}]}]});
        assert_eq!(answer(&asked("CREATE", good.clone()), &metrics), Verdict::Allowed { warnings: vec![] });
        let bad =
            json!({"hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "reviews"}, "weight": -1}]}]});
        let Verdict::Denied { message } = answer(&asked("UPDATE", bad.clone()), &metrics) else { panic!() };
        assert!(message.starts_with("VirtualService default/reviews: spec.http[0].route[0].weight: "), "{message}");
        assert!(matches!(answer(&asked("DELETE", bad), &metrics), Verdict::Allowed { .. }));
        let mut odd = good;
        odd["hostss"] = json!([]);
        let Verdict::Allowed { warnings } = answer(&asked("CREATE", odd), &metrics) else { panic!() };
        assert!(warnings[0].contains("did you mean hosts?"), "{warnings:?}");
        let shown = metrics.show();
        for line in [
            r#"galley_validation_passed{group="networking.istio.io",version="v1",resource="virtualservices"} 2"#,
            r#"galley_validation_failed{group="networking.istio.io",version="v1",resource="virtualservices",reason="invalid_resource"} 1"#,
        ] {
            assert!(shown.contains(line), "{shown}");
        }
    }
}
