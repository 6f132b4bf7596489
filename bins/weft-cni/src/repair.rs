//! Pods that started before the plugin was there: their validation container says so by its exit code. They are deleted, so that
//! their owners make them anew, on a node that has the plugin.

use anyhow::Result;
use serde_json::Value;
use std::path::Path;
use weft_k8s_api::Object;
use weft_k8s_api::kinds::by_kind;
use weft_store::client::ListOptions;
use weft_store::{ApiClient, ClientError, DeleteOptions, Preconditions};

/// The init container that looks whether traffic is redirected.
const VALIDATION: &str = "istio-validation";
/// Its exit code when it is not.
const INVALID: i64 = 126;

/// Whether a pod waits in vain for its redirection.
fn is_broken(pod: &Object) -> bool {
    let states = pod.body.get("status").and_then(|status| status.get("initContainerStatuses"));
    let states = states.and_then(Value::as_array).into_iter().flatten();
    pod.metadata.deletion_timestamp.is_none()
        && states.filter(|state| state["name"] == VALIDATION).any(|state| {
            ["state", "lastState"].iter().any(|which| state[which]["terminated"]["exitCode"].as_i64() == Some(INVALID))
        })
}

/// Deletes this node's pods that wait in vain.
///
/// # Errors
/// What the API server says.
pub async fn round(kubeconfig: &Path, node: &str) -> Result<()> {
    let Some(pods) = by_kind("", "Pod") else { return Ok(()) };
    let client = ApiClient::from_kubeconfig(kubeconfig, None).await?;
    let options = ListOptions { fields: Some(format!("spec.nodeName={node}")), ..ListOptions::default() };
    for pod in client.list(pods, None, &options).await?.items.iter().filter(|pod| is_broken(pod)) {
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let options = DeleteOptions { preconditions, ..DeleteOptions::default() };
        match client.delete(pods, pod.namespace(), pod.name(), &options).await {
            Ok(_) => {
                tracing::info!("pod {}/{} started before the plugin; it is made anew", pod.namespace(), pod.name())
            }
            Err(ClientError::NotFound(_) | ClientError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn broken_pods() {
        let pod = |name: &str, state: Value| -> Object {
            serde_json::from_value(json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "n"},
                "status": {"initContainerStatuses": [{"name": name, "state": state}]},
            }))
            .unwrap()
        };
        assert!(is_broken(&pod(VALIDATION, json!({"terminated": {"exitCode": 126}}))));
        assert!(!is_broken(&pod(VALIDATION, json!({"terminated": {"exitCode": 0}}))));
        assert!(!is_broken(&pod(VALIDATION, json!({"running": {}}))));
        assert!(!is_broken(&pod("other", json!({"terminated": {"exitCode": 126}}))));
        let mut again = pod(VALIDATION, json!({"waiting": {"reason": "CrashLoopBackOff"}}));
        again.body["status"]["initContainerStatuses"][0]["lastState"] = json!({"terminated": {"exitCode": 126}});
        assert!(is_broken(&again));
    }
}
