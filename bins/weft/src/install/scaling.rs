//! Autoscalers, and how many replicas a Deployment says when it has one.
//!
//! Source: Istio's operator API, `hpaSpec` and `replicaCount` of a component, and `autoscaleEnabled`, `autoscaleMin`,
//! `autoscaleMax` of its values. One that is asked for by none of them is there too, as with Istio.

use serde_json::{Value, json};

/// Least and most replicas, and the processor's use in percent that they are kept at.
const USUAL: (u64, u64, u64) = (1, 5, 80);

/// Where a component's settings are.
pub(super) struct Scaling<'a> {
    /// `components.NAME.k8s`.
    pub k8s: &'a Value,
    /// `values.pilot` or `values.gateways.NAME`.
    pub values: &'a Value,
}

impl Scaling<'_> {
    fn is_on(&self) -> bool {
        let said = self.values["autoscaleEnabled"].as_bool();
        // Who says how many replicas there are does not want somebody else to say it.
        said.unwrap_or(self.k8s["hpaSpec"].is_object() || self.count().is_none())
    }

    fn count(&self) -> Option<u64> {
        self.k8s["replicaCount"].as_u64().or(self.values["replicaCount"].as_u64())
    }

    /// `spec.replicas`; none where an autoscaler decides: applying the manifest again would undo what it did.
    pub(super) fn replicas(&self) -> Option<u64> {
        let count = self.count();
        if self.is_on() { count } else { Some(count.unwrap_or(1)) }
    }

    /// The autoscaler of Deployment `metadata.name`.
    pub(super) fn object(&self, metadata: Value) -> Option<Value> {
        if !self.is_on() {
            return None;
        }
        let own = &self.k8s["hpaSpec"];
        let number = |of_spec: &str, of_values: &str, usual: u64| {
            own[of_spec].as_u64().or_else(|| self.values[of_values].as_u64()).unwrap_or(usual)
        };
        let least = number("minReplicas", "autoscaleMin", USUAL.0);
        let most = number("maxReplicas", "autoscaleMax", USUAL.1).max(least);
        let use_of = self.values["cpu"]["targetAverageUtilization"].as_u64().unwrap_or(USUAL.2);
        let metric = json!({"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": use_of},
        }});
        let mut spec = json!({
            "minReplicas": least, "maxReplicas": most,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"]},
            "metrics": if own["metrics"].is_array() { own["metrics"].clone() } else { json!([metric]) },
        });
        for behavior in [&self.values["autoscaleBehavior"], &own["behavior"]] {
            if behavior.as_object().is_some_and(|fields| !fields.is_empty()) {
                spec["behavior"] = behavior.clone();
            }
        }
        Some(
            json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec}),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_decides_on_replicas() {
        for (k8s, values, replicas, bounds) in [
            (json!({}), json!({}), None, Some((1, 5))),
            (json!({"replicaCount": 3}), json!({}), Some(3), None),
            (json!({}), json!({"replicaCount": 4}), Some(4), None),
            (json!({"hpaSpec": {"minReplicas": 2, "maxReplicas": 10}}), json!({}), None, Some((2, 10))),
            (json!({}), json!({"autoscaleEnabled": false}), Some(1), None),
            (json!({"replicaCount": 2}), json!({"autoscaleEnabled": true, "autoscaleMin": 2}), Some(2), Some((2, 5))),
        ] {
            let scaling = Scaling { k8s: &k8s, values: &values };
            assert_eq!(scaling.replicas(), replicas, "{k8s} {values}");
            let made = scaling.object(json!({"name": "istiod"}));
            let spec = made.as_ref().map(|made| &made["spec"]);
            let made = spec.map(|spec| (spec["minReplicas"].as_u64().unwrap(), spec["maxReplicas"].as_u64().unwrap()));
            assert_eq!(made, bounds, "{k8s} {values}");
        }
    }
}
