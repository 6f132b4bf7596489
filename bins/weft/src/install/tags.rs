//! Tags: further names of a revision, as webhook configurations of their own.
//!
//! Source: Istio's "Canary Upgrades", stable revision labels. The charts' `revision-tags.yaml` makes the same objects.

use super::apply::send;
use super::cluster::{Found, REVISION};
use super::webhooks::{DEFAULT_VALIDATOR, Injection, expression, validating_hook};
use crate::target::known;
use anyhow::Context;
use serde_json::{Value, json};
use weft_k8s_api::Object;
use weft_store::ApiClient;
use weft_store::client::ListOptions;

/// The label with a tag's name; its revision is in `istio.io/rev`.
pub const LABEL: &str = "istio.io/tag";

/// Name of a tag's objects.
pub fn name(tag: &str, namespace: &str) -> String {
    if namespace == "istio-system" {
        format!("istio-revision-tag-{tag}")
    } else {
        format!("istio-revision-tag-{tag}-{namespace}")
    }
}

/// The objects of a tag that stands for the revision whose injector has this configuration.
///
/// # Errors
/// When the configuration is not one of the installer's.
pub fn objects(tag: &str, injector: &Object, validates: bool) -> anyhow::Result<Vec<Value>> {
    let revision = injector.label("istio.io/rev").unwrap_or("default");
    let hooks = injector.body.get("webhooks").and_then(Value::as_array);
    let first = hooks.and_then(|hooks| hooks.first()).with_context(|| format!("{} has no webhooks", injector.key()))?;
    let (client, auto) = (&first["clientConfig"], hooks.into_iter().flatten().any(|hook| is(hook, "auto.")));
    // A control plane elsewhere has a URL and no account here.
    let namespace = client["service"]["namespace"].as_str().unwrap_or("istio-system");
    let name = name(tag, namespace);
    let labels =
        json!({"app": "sidecar-injector", "istio.io/rev": revision, LABEL: tag, "app.kubernetes.io/part-of": "weft"});
    let metadata = json!({"name": name, "labels": labels});
    let hooks = Injection {
        client: client.clone(),
        reinvocation: first["reinvocationPolicy"].as_str().unwrap_or("Never").to_string(),
        label: tag.to_string(),
        is_default: tag == "default",
        all_namespaces: auto && tag == "default",
    }
    .hooks();
    let webhooks = "admissionregistration.k8s.io";
    let mut all = vec![json!({"apiVersion": format!("{webhooks}/v1"), "kind": "MutatingWebhookConfiguration",
                              "metadata": metadata, "webhooks": hooks})];
    let Some(service) = client["service"]["name"].as_str() else { return Ok(all) };
    let rbac = "rbac.authorization.k8s.io";
    // The control plane fills in the certificate that the API server trusts it by: here alone, for it knows no tag beforehand.
    all.push(json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": metadata, "rules": [
        {"apiGroups": [webhooks], "resources": ["mutatingwebhookconfigurations"], "resourceNames": [name], "verbs": ["patch", "update"]},
    ]}));
    all.push(json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": metadata,
                    "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
                    "subjects": [{"kind": "ServiceAccount", "name": service, "namespace": namespace}]}));
    if tag == "default" && validates {
        let mut client = client.clone();
        client["service"]["path"] = "/validate".into();
        let selector = json!({"matchExpressions": [expression("istio.io/rev", "DoesNotExist", &[])]});
        let mut metadata = metadata;
        metadata["name"] = DEFAULT_VALIDATOR.into();
        all.push(json!({"apiVersion": format!("{webhooks}/v1"), "kind": "ValidatingWebhookConfiguration", "metadata": metadata,
                        "webhooks": [validating_hook("validation.istio.io", &client, &selector)]}));
    }
    Ok(all)
}

/// The validator of what names no revision, as the installation whose injector this is has it. The tag `default` takes it over
/// for another revision.
///
/// # Errors
/// When the configuration is not one of the installer's.
pub fn validator(injector: &Object) -> anyhow::Result<Value> {
    let hooks = injector.body.get("webhooks").and_then(Value::as_array);
    let first = hooks.and_then(|hooks| hooks.first()).with_context(|| format!("{} has no webhooks", injector.key()))?;
    let mut client = json!({"service": first["clientConfig"]["service"]});
    client["service"]["path"] = "/validate".into();
    // Whose it is stands on both.
    let labels = json!(injector.metadata.labels);
    let selector = json!({"matchExpressions": [expression("istio.io/rev", "DoesNotExist", &[])]});
    Ok(json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
              "metadata": {"name": DEFAULT_VALIDATOR, "labels": labels},
              "webhooks": [validating_hook("validation.istio.io", &client, &selector)]}))
}

/// Injectors' configurations with these labels.
///
/// # Errors
/// When the server does not answer or the caller may not look.
pub async fn configurations(client: &ApiClient, labels: &str) -> anyhow::Result<Vec<Object>> {
    let options = ListOptions { labels: Some(labels.to_string()), ..ListOptions::default() };
    let list = client.list(known("MutatingWebhookConfiguration")?, None, &options).await;
    Ok(list.context("cannot list webhook configurations")?.items)
}

/// There is one validator of what names no revision, of whoever was the last to take it. Where it is among what goes, and a
/// control plane without a revision stays that validates, it becomes that one's and does not go.
///
/// # Errors
/// As [`configurations`]; what the server refuses.
pub async fn hand_on_validator(client: &ApiClient, gone: &mut Vec<Found>, dry_run: bool) -> anyhow::Result<()> {
    if let Some(validator) = former_validator(client, gone).await? {
        gone.retain(|(_, object)| object.name() != DEFAULT_VALIDATOR);
        send(client, &validator, dry_run).await?;
    }
    Ok(())
}

/// As the control plane that stays would have it.
async fn former_validator(client: &ApiClient, gone: &[Found]) -> anyhow::Result<Option<Object>> {
    if !gone.iter().any(|(_, object)| object.name() == DEFAULT_VALIDATOR) {
        return Ok(None);
    }
    let goes = |kind: &str, name: &str| gone.iter().any(|(_, o)| o.kind == kind && o.name() == name);
    for injector in configurations(client, &format!("{REVISION}=default,!{LABEL}")).await? {
        let hooks = injector.body.get("webhooks").unwrap_or(&Value::Null);
        let Some(namespace) = hooks[0]["clientConfig"]["service"]["namespace"].as_str() else { continue };
        if goes(&injector.kind, injector.name()) {
            continue;
        }
        let own = format!("istio-validator-{namespace}");
        let kind = known("ValidatingWebhookConfiguration")?;
        if goes(kind.kind, &own) {
            continue;
        }
        match client.get(kind, "", &own).await {
            Ok(_) => return serde_json::from_value(validator(&injector)?).map(Some).context("the validator"),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {own}")),
        }
    }
    Ok(None)
}

fn is(hook: &Value, prefix: &str) -> bool {
    hook["name"].as_str().is_some_and(|name| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::{Operator, Settings};

    fn injector(set: &str) -> Object {
        let operator = Operator::merge(&[], &[set.to_string()], None).unwrap();
        let all = crate::install::objects(&Settings::new(&operator).unwrap()).unwrap();
        let found = all.into_iter().find(|object| object["kind"] == "MutatingWebhookConfiguration").unwrap();
        serde_json::from_value(found).unwrap()
    }

    #[test]
    fn the_validator_is_as_it_was_installed() {
        let operator = Operator::merge(&[], &["namespace=mesh".to_string()], None).unwrap();
        let settings = Settings::new(&operator).unwrap();
        let owner = crate::install::cluster::Owner::new(&operator, &settings);
        let all = crate::install::objects(&settings).unwrap().into_iter();
        let all: Vec<Object> = all.map(|object| owner.mark(object, "Pilot").unwrap()).collect();
        let find = |kind: &str, name: &str| {
            all.iter().find(|o| o.kind == kind && o.name().starts_with(name)).cloned().unwrap()
        };
        let injector = find("MutatingWebhookConfiguration", "istio-sidecar-injector");
        let wanted = find("ValidatingWebhookConfiguration", DEFAULT_VALIDATOR);
        assert_eq!(
            serde_json::from_value::<Object>(validator(&injector).unwrap()).unwrap().to_value(),
            wanted.to_value()
        );
    }

    #[test]
    fn a_tag_chooses_by_its_name_and_leads_to_its_revision() {
        for (set, tag, names, hooks) in [
            ("revision=1-9-5", "prod-stable", vec!["istio-revision-tag-prod-stable"; 3], 2),
            (
                "revision=1-9-5",
                "default",
                vec![
                    "istio-revision-tag-default",
                    "istio-revision-tag-default",
                    "istio-revision-tag-default",
                    "istiod-default-validator",
                ],
                4,
            ),
            ("namespace=mesh", "x", vec!["istio-revision-tag-x-mesh"; 3], 2),
        ] {
            let injector = injector(set);
            let made = objects(tag, &injector, true).unwrap();
            let found: Vec<&str> = made.iter().map(|object| object["metadata"]["name"].as_str().unwrap()).collect();
            assert_eq!(found, names, "{set}");
            assert_eq!(made[0]["webhooks"].as_array().unwrap().len(), hooks);
            let chosen = &made[0]["webhooks"][0]["namespaceSelector"]["matchExpressions"][0];
            assert_eq!((&chosen["key"], &chosen["values"]), (&json!("istio.io/rev"), &json!([tag])));
            assert_eq!(made[0]["webhooks"][0]["clientConfig"], injector.body["webhooks"][0]["clientConfig"]);
            assert_eq!(made[0]["metadata"]["labels"]["istio.io/rev"], injector.label("istio.io/rev").unwrap());
        }
    }
}
