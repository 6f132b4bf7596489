//! What the API server must know of the webhooks: the roots that their certificate is checked by (`caBundle`), and, once they
//! answer, that objects are not taken without their word (`failurePolicy: Fail`).
//!
//! The configurations are looked at again and again, and when the roots change: whoever installs anew puts them back.

use super::Metrics;
use crate::settings::Settings;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use weft_ca::Signing;
use weft_k8s_api::Object;
use weft_k8s_api::kinds::by_kind;
use weft_runtime::ready::Readiness;
use weft_store::client::{ListOptions, WriteOptions};
use weft_store::{ApiClient, ClientError};

/// Pause between looks; shorter while something is missing or has failed.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(2));
/// Ends of the names of our webhooks; others in the same configuration are not ours to change.
const OURS: [&str; 2] = ["sidecar-injector.istio.io", "validation.istio.io"];

/// Keeps the configurations right, for ever.
pub(crate) async fn keep(
    client: ApiClient,
    settings: Arc<Settings>,
    mut signing: watch::Receiver<Signing>,
    ready: Readiness,
    metrics: Arc<Metrics>,
) {
    // What went wrong last, by configuration: it is told of once.
    let mut said: BTreeMap<(&str, String), String> = BTreeMap::new();
    loop {
        let bundle = STANDARD.encode(signing.borrow_and_update().root_pem());
        let mut complete = true;
        let mut all = names(&settings);
        match tags(&client, &settings).await {
            Ok(tags) => all.extend(tags),
            Err(error) => {
                complete = false;
                tracing::debug!("cannot list tags of revisions: {error}");
            }
        }
        for (kind, name) in all {
            // Not before we answer: until then the policy that was installed holds.
            let closed = ready.reasons().is_empty();
            let error = match update(&client, kind, &name, &bundle, closed, &settings).await {
                Ok(changed) => {
                    if changed {
                        tracing::info!("{kind} {name} knows the webhooks now");
                        metrics.configuration_updated(false);
                    }
                    said.remove(&(kind, name));
                    continue;
                }
                Err(error) => error,
            };
            complete = false;
            if error.is_not_found() {
                continue;
            }
            metrics.configuration_updated(true);
            let why = error.to_string();
            if said.get(&(kind, name.clone())) != Some(&why) {
                tracing::warn!("{kind} {name}: {why}; trying again");
                said.insert((kind, name), why);
            }
        }
        let complete = complete && ready.reasons().is_empty();
        tokio::select! {
            () = tokio::time::sleep(if complete { PAUSE.0 } else { PAUSE.1 }) => {}
            changed = signing.changed() => if changed.is_err() { return },
        }
    }
}

const MUTATING: &str = "MutatingWebhookConfiguration";
const VALIDATING: &str = "ValidatingWebhookConfiguration";

/// The configurations of this revision.
fn names(settings: &Settings) -> Vec<(&'static str, String)> {
    let revision = match settings.revision.as_str() {
        "" | "default" => String::new(),
        revision => format!("-{revision}"),
    };
    let namespace = settings.namespace.as_str();
    let injector = match namespace {
        "istio-system" => format!("istio-sidecar-injector{revision}"),
        _ => format!("istio-sidecar-injector{revision}-{namespace}"),
    };
    vec![
        (MUTATING, injector),
        (VALIDATING, format!("istio-validator{revision}-{namespace}")),
        (VALIDATING, "istiod-default-validator".into()),
    ]
}

/// The configurations that give this revision further names: `weft tag`, and the charts' `revision-tags.yaml`.
async fn tags(client: &ApiClient, settings: &Settings) -> Result<Vec<(&'static str, String)>, ClientError> {
    let Some(info) = by_kind("admissionregistration.k8s.io", MUTATING) else { return Ok(Vec::new()) };
    let own = own_revision(settings);
    let options = ListOptions { labels: Some(format!("istio.io/tag,istio.io/rev={own}")), ..ListOptions::default() };
    let listed = client.list(info, None, &options).await?;
    let ours = listed.items.iter().filter(|object| leads_here(object, settings));
    Ok(ours.map(|object| (MUTATING, object.name().to_string())).collect())
}

/// Whether the webhooks of a tag ask this control plane: another one in another namespace may have a revision of the same name.
fn leads_here(object: &Object, settings: &Settings) -> bool {
    let names = settings.service_names();
    let hooks = object.body.get("webhooks").and_then(Value::as_array);
    hooks.is_some_and(|hooks| {
        !hooks.is_empty()
            && hooks.iter().all(|hook| {
                let service = &hook["clientConfig"]["service"];
                service["namespace"] == settings.namespace.as_str()
                    && service["name"].as_str().is_some_and(|name| names.iter().any(|own| own == name))
            })
    })
}

fn own_revision(settings: &Settings) -> &str {
    if settings.revision.is_empty() { "default" } else { settings.revision.as_str() }
}

/// Updates one configuration; true when there was something to do.
async fn update(
    client: &ApiClient,
    kind: &str,
    name: &str,
    bundle: &str,
    closed: bool,
    settings: &Settings,
) -> Result<bool, ClientError> {
    let Some(info) = by_kind("admissionregistration.k8s.io", kind) else { return Ok(false) };
    let mut object = client.get(info, "", name).await?;
    if !is_ours(&object, settings) || !change(&mut object, bundle, closed) {
        return Ok(false);
    }
    // With the version that was read: whoever was quicker is seen at the next look.
    client.replace(&object, &WriteOptions::default()).await.map(|_| true)
}

/// A configuration says whose it is; several control planes share a cluster.
fn is_ours(object: &Object, settings: &Settings) -> bool {
    let own = own_revision(settings);
    object.label("istio.io/rev").is_none_or(|revision| revision == own)
}

/// Puts bundle and policy into our webhooks; true when that changed anything.
fn change(object: &mut Object, bundle: &str, closed: bool) -> bool {
    let validating = object.kind == VALIDATING;
    let mut changed = false;
    let hooks = object.body.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten();
    for hook in hooks {
        let ours = hook["name"].as_str().is_some_and(|name| OURS.iter().any(|end| name.ends_with(end)));
        if !ours {
            continue;
        }
        if hook["clientConfig"]["caBundle"] != bundle {
            hook["clientConfig"]["caBundle"] = bundle.into();
            changed = true;
        }
        if validating && closed && hook["failurePolicy"] != "Fail" {
            hook["failurePolicy"] = "Fail".into();
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::json;

    fn configuration(kind: &str, hook: &str) -> Object {
        serde_json::from_value(json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "x"},
            "webhooks": [{"name": hook, "clientConfig": {"url": "https://localhost:1/x"}, "failurePolicy": "Ignore"}],
        }))
        .unwrap()
    }

    #[test]
    fn only_ours_and_only_when_there_is_something_to_do() {
        for (kind, hook, closed, changed, policy) in [
            (MUTATING, "rev.namespace.sidecar-injector.istio.io", true, true, "Ignore"),
            (VALIDATING, "rev.validation.istio.io", false, true, "Ignore"),
            (VALIDATING, "validation.istio.io", true, true, "Fail"),
            (VALIDATING, "somebody.example.org", true, false, "Ignore"),
        ] {
            let mut object = configuration(kind, hook);
            assert_eq!(change(&mut object, "roots", closed), changed, "{hook}");
            let made = &object.body["webhooks"][0];
            assert_eq!(
                (&made["failurePolicy"], made["clientConfig"]["caBundle"] == "roots"),
                (&json!(policy), changed),
                "{hook}"
            );
            assert_eq!(made["clientConfig"]["url"], "https://localhost:1/x");
            assert!(!change(&mut object, "roots", closed), "{hook}: again");
        }
    }

    #[test]
    fn whose_it_is() {
        let default = Settings::parse_from(["weftd"]);
        let canary = Settings::parse_from(["weftd", "--revision", "canary", "--namespace", "mesh"]);
        assert_eq!(names(&canary)[0].1, "istio-sidecar-injector-canary-mesh");
        assert_eq!(names(&default)[1].1, "istio-validator-istio-system");
        let mut object = configuration(MUTATING, "x");
        assert!(is_ours(&object, &default) && is_ours(&object, &canary));
        object.metadata.labels = Some([("istio.io/rev".to_string(), "canary".to_string())].into());
        assert!(!is_ours(&object, &default) && is_ours(&object, &canary));
    }

    #[test]
    fn tags_of_another_control_plane_are_not_ours() {
        let canary = Settings::parse_from(["weftd", "--revision", "canary", "--namespace", "mesh"]);
        let hook = |namespace: &str, name: &str| {
            json!({"name": "rev.namespace.sidecar-injector.istio.io",
                   "clientConfig": {"service": {"namespace": namespace, "name": name, "port": 443}}})
        };
        let url = json!({"name": "x", "clientConfig": {"url": "https://localhost:1/x"}});
        for (hooks, ours) in [
            (vec![hook("mesh", "istiod-canary")], true),
            (vec![hook("mesh", "istiod-canary"), hook("mesh", "istiod-canary")], true),
            (vec![hook("istio-system", "istiod-canary")], false),
            (vec![hook("mesh", "istiod-stable")], false),
            (vec![hook("mesh", "istiod-canary"), hook("istio-system", "istiod-canary")], false),
            (vec![url], false),
            (vec![], false),
        ] {
            let mut object = configuration(MUTATING, "x");
            object.body.insert("webhooks".into(), json!(hooks));
            assert_eq!(leads_here(&object, &canary), ours, "{hooks:?}");
        }
    }
}
