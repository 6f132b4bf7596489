//! Which pods a report looks at: `--include` and `--exclude`, in the form that `istioctl bug-report` has for them. Pure.

use crate::analyze::matches;
use std::collections::BTreeMap;
use weft_k8s_api::Object;

/// Namespaces that are of the cluster and not of its users.
const OF_THE_CLUSTER: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];
/// The one container of a pod whose log and configuration a report has.
const PROXY: &str = "istio-proxy";

/// `NS,…/DEPLOYMENT,…/POD,…/LABEL=VALUE,…/ANNOTATION=VALUE,…/CONTAINER,…`; what is left out may be anything, and `*` stands for
/// any characters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    namespaces: Vec<String>,
    deployments: Vec<String>,
    pods: Vec<String>,
    labels: Vec<(String, String)>,
    annotations: Vec<(String, String)>,
    containers: Vec<String>,
}

impl std::str::FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 6 {
            return Err(format!(
                "{text:?} has {} parts; write NAMESPACES/DEPLOYMENTS/PODS/LABELS/ANNOTATIONS/CONTAINERS, or fewer",
                parts.len()
            ));
        }
        let part = |at: usize| parts.get(at).copied().unwrap_or_default();
        let words = |at: usize| part(at).split(',').filter(|word| !word.is_empty());
        let names = |at: usize| words(at).map(str::to_string).collect::<Vec<_>>();
        let pairs = |at: usize| {
            let pair = |word: &str| {
                let (name, value) =
                    word.split_once('=').ok_or_else(|| format!("{word:?} in {text:?} is not NAME=VALUE"))?;
                Ok((name.to_string(), value.to_string()))
            };
            words(at).map(pair).collect::<Result<Vec<_>, String>>()
        };
        Ok(Self {
            namespaces: names(0),
            deployments: names(1),
            pods: names(2),
            labels: pairs(3)?,
            annotations: pairs(4)?,
            containers: names(5),
        })
    }
}

fn any(patterns: &[String], text: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, text))
}

fn pairs(patterns: &[(String, String)], found: Option<&BTreeMap<String, String>>) -> bool {
    let has =
        |(name, value): &(String, String)| found.and_then(|all| all.get(name)).is_some_and(|text| matches(value, text));
    patterns.is_empty() || patterns.iter().any(has)
}

impl Selection {
    fn covers(&self, pod: &Object) -> bool {
        let labels = pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
        let annotations = pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect();
        any(&self.namespaces, pod.namespace())
            && any(&self.deployments, &deployment(pod))
            && any(&self.pods, pod.name())
            && pairs(&self.labels, Some(&labels))
            && pairs(&self.annotations, Some(&annotations))
            && any(&self.containers, PROXY)
    }

    /// It is about namespaces and nothing smaller.
    fn is_of_namespaces(&self) -> bool {
        *self == Self { namespaces: self.namespaces.clone(), ..Self::default() }
    }
}

/// The deployment that a pod's replica set is of; empty for other pods.
fn deployment(pod: &Object) -> String {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let set = owners.iter().find(|owner| owner.kind == "ReplicaSet").map(|owner| owner.name.as_str());
    set.and_then(|name| name.rsplit_once('-')).map(|(name, _)| name.to_string()).unwrap_or_default()
}

/// What is looked at.
#[derive(Debug, Clone, Default)]
pub struct Selected {
    include: Vec<Selection>,
    exclude: Vec<Selection>,
}

impl Selected {
    /// By what the user gave; without `exclude` not the cluster's own namespaces, unless they are named.
    pub fn new(include: &[Selection], exclude: &[Selection]) -> Self {
        let mut exclude = exclude.to_vec();
        let named = |name: &&str| include.iter().any(|one| one.namespaces.iter().any(|text| text == name));
        let namespaces = OF_THE_CLUSTER.iter().filter(|name| !named(name)).map(ToString::to_string).collect::<Vec<_>>();
        if !namespaces.is_empty() {
            exclude.push(Selection { namespaces, ..Selection::default() });
        }
        Self { include: include.to_vec(), exclude }
    }

    /// Whether objects of a namespace are in the report.
    pub fn has_namespace(&self, name: &str) -> bool {
        let included = self.include.is_empty() || self.include.iter().any(|one| any(&one.namespaces, name));
        included && !self.exclude.iter().any(|one| one.is_of_namespaces() && any(&one.namespaces, name))
    }

    /// Whether a pod's proxy is in the report.
    pub fn has_pod(&self, pod: &Object) -> bool {
        let included = self.include.is_empty() || self.include.iter().any(|one| one.covers(pod));
        included && !self.exclude.iter().any(|one| one.covers(pod))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_chosen() {
        let pod: Object = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
            "name": "reviews-v1-77d-a", "namespace": "shop", "labels": {"app": "reviews"}, "annotations": {"a": "b"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "reviews-v1-77d", "uid": "u"}]}}))
        .unwrap();
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Selection>>();
        for (include, exclude, pod_too, namespace_too) in [
            (&[][..], &[][..], true, true),
            (&["shop"], &[], true, true),
            (&["a,sh*"], &[], true, true),
            (&["other"], &[], false, false),
            (&["other", "shop/reviews-v1"], &[], true, true),
            (&["shop/reviews-v2"], &[], false, true),
            (&["/*-v1/reviews*/app=rev*/a=b/istio-proxy"], &[], true, true),
            (&["shop///app=ratings"], &[], false, true),
            (&["shop/////app"], &[], false, true),
            (&[], &["shop"], false, false),
            (&[], &["shop//reviews-v1-*"], false, true),
            (&["shop"], &["other"], true, true),
        ] {
            let selected = Selected::new(&list(include), &list(exclude));
            assert_eq!(
                (selected.has_pod(&pod), selected.has_namespace("shop")),
                (pod_too, namespace_too),
                "{include:?} {exclude:?}"
            );
        }
        assert!(!Selected::new(&[], &[]).has_namespace("kube-system"));
        assert!(Selected::new(&list(&["kube-system"]), &[]).has_namespace("kube-system"));
        assert!("a/b/c/d".parse::<Selection>().unwrap_err().contains("NAME=VALUE"));
        assert!("a/b/c/d=e/f=g/h/i".parse::<Selection>().unwrap_err().contains("7 parts"));
    }
}
