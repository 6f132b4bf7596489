//! The source of objects, as the control plane uses it: which kinds, what of them, and what readiness says while the API
//! server is away.

use crate::settings::Settings;
use anyhow::Context;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use weft_core::well_known::ROOT_CERT_KEY;
use weft_k8s_api::kinds::by_kind;
use weft_k8s_api::{KindInfo, Object};
use weft_runtime::ready::Readiness;
use weft_store::source::SourceState;
use weft_store::{ApiClient, KubeSource, SourceOptions};

/// Longest silence about what is waited for.
const REPORT: Duration = Duration::from_secs(5);

/// Begins to follow the API server.
pub(crate) fn start(client: &ApiClient, settings: &Settings) -> anyhow::Result<Arc<KubeSource>> {
    let namespace = settings.namespace.clone();
    let trim = Arc::new(move |object: &mut Object| trim(object, &namespace));
    let kept = |kind: &KindInfo| weft_model::kept(kind.group, kind.kind);
    let options = SourceOptions { required, kept, trim, ..SourceOptions::default() };
    Ok(Arc::new(KubeSource::start(client, &watched()?, &options)))
}

/// The kinds of the model, ConfigMaps, and what the injector asks for beside them.
fn watched() -> anyhow::Result<Vec<&'static KindInfo>> {
    let kinds: BTreeSet<_> =
        weft_model::KINDS.iter().chain(&[("", "ConfigMap"), ("networking.istio.io", "ProxyConfig")]).collect();
    let known =
        |(group, kind): &(&str, &str)| by_kind(group, kind).with_context(|| format!("kind {kind} is not known"));
    kinds.into_iter().map(known).collect()
}

/// Without the cluster's own kinds there is no mesh to describe; without the policies it would be open to more than anyone
/// asked for; without the mesh config it might be another mesh. A mesh without the others works, as in a cluster that does
/// not have them.
fn required(kind: &KindInfo) -> bool {
    let core = matches!(kind.kind, "Namespace" | "Pod" | "Service" | "EndpointSlice" | "ConfigMap");
    core || kind.group == "security.istio.io"
}

/// Keys of ConfigMaps that are read wherever they are: roots of the mesh, and roots that gateways name.
const CONFIG_MAP_KEYS: &[&str] = &[ROOT_CERT_KEY, "ca.crt", "cacert", "ca.crl"];

/// Takes from an object what nothing here reads: a cluster has much that is none of the mesh's business. `namespace` is the
/// control plane's.
pub(crate) fn trim(object: &mut Object, namespace: &str) {
    object.metadata.managed_fields = None;
    if let Some(annotations) = &mut object.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    // Before anything of it goes: what is written there for workloads is compared as a whole.
    crate::root_cert::note_content(object);
    match object.kind.as_str() {
        "ConfigMap" if object.namespace() != namespace => {
            object.body.shift_remove("binaryData");
            if let Some(data) = object.body.get_mut("data").and_then(|d| d.as_object_mut()) {
                data.retain(|key, _| CONFIG_MAP_KEYS.contains(&key.as_str()));
            }
        }
        "Secret" if !holds_credential(object) => object.body.clear(),
        _ => weft_model::trim(object),
    }
}

/// Releases of Helm and the like are large, and no credentials.
fn holds_credential(object: &Object) -> bool {
    let kind = object.body.get("type").and_then(|t| t.as_str()).unwrap_or("Opaque");
    matches!(kind, "Opaque" | "kubernetes.io/tls" | "kubernetes.io/dockerconfigjson") || kind.starts_with("istio.io/")
}

/// Waits for the first lists, and says what is waited for: in the log, and in the readiness.
pub(crate) async fn wait_synced(source: &KubeSource, blocked: &weft_runtime::ready::ReadyBlock) {
    let mut state = source.state();
    while timeout(REPORT, source.synced()).await.is_err() {
        let problem = state.borrow_and_update().problem().unwrap_or_else(|| "no answer yet".into());
        tracing::warn!("waiting for the API server: {problem}");
        blocked.set_reason(format!("the API server's objects: {problem}"));
    }
}

/// Takes readiness away while the API server has been lost for longer than the settings allow: what is served is the last
/// state, and others may know a newer one.
pub(crate) async fn report_loss(settings: Arc<Settings>, mut state: watch::Receiver<SourceState>, ready: Readiness) {
    loop {
        if state.wait_for(|s| !s.connected()).await.is_err() {
            return;
        }
        // A watch that breaks and is back at once is nothing to tell of.
        if back(&mut state, settings.api_grace).await {
            continue;
        }
        let problem = |state: &SourceState| state.problem().unwrap_or_else(|| "no answer".into());
        let why = problem(&state.borrow());
        tracing::error!("the API server is lost; the last state is served: {why}");
        let block = ready.block(format!("the API server; the last state is served: {why}"));
        while !back(&mut state, REPORT).await {
            block.set_reason(format!("the API server; the last state is served: {}", problem(&state.borrow())));
        }
        tracing::info!("the API server is back");
    }
}

/// How the source stands and who writes, as Prometheus text.
pub(crate) fn metrics(state: &SourceState, leader: bool) -> String {
    let mut text = String::new();
    let gauges = [
        ("weft_api_connected", "Whether every kind that can be watched is", u8::from(state.connected())),
        ("weft_leader", "Whether this replica is the one that writes to the API server", u8::from(leader)),
    ];
    for (name, help, value) in gauges {
        text += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    }
    let name = "weft_kind_forbidden";
    text += &format!("# HELP {name} Kinds that the account of weftd may not read\n# TYPE {name} gauge\n");
    for (kind, _) in state.forbidden() {
        text += &format!("{name}{{kind=\"{kind}\"}} 1\n");
    }
    text
}

/// True when all is connected again within the time.
async fn back(state: &mut watch::Receiver<SourceState>, time: Duration) -> bool {
    let connected = async { state.wait_for(SourceState::connected).await.is_ok() };
    tokio::select! {
        back = connected => back,
        () = sleep(time) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use weft_store::source::KindState;

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_what_is_read_is_kept() {
        let kept = |value: Value| {
            let mut object = object(value);
            trim(&mut object, "istio-system");
            object.to_value().to_string()
        };
        let map = |namespace: &str, key: &str| {
            let meta = json!({"name": "a", "namespace": namespace});
            kept(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {key: "text"}}))
        };
        assert!(map("istio-system", "mesh").contains("text"));
        assert!(map("default", "root-cert.pem").contains("text"));
        assert!(map("default", "ca.crt").contains("text"));
        assert!(!map("default", "settings").contains("text"));
        let secret = |kind: &str| {
            kept(json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "type": kind, "data": {"k": "dGV4dA=="},
            }))
        };
        assert!(secret("kubernetes.io/tls").contains("dGV4dA"));
        assert!(secret("istio.io/ca-root").contains("dGV4dA"));
        assert!(!secret("helm.sh/release.v1").contains("dGV4dA"));
        let applied = "kubectl.kubernetes.io/last-applied-configuration";
        let rule = kept(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "a", "annotations": {applied: "x"}, "managedFields": [{"manager": "y"}]},
            "spec": {"hosts": ["h"]},
        }));
        assert!(rule.contains("hosts") && !rule.contains(applied) && !rule.contains("manager"));
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_tells_of_a_loss_that_lasts() {
        use clap::Parser;
        let settings = Arc::new(Settings::parse_from(["weftd", "--api-grace", "3s"]));
        let key = (String::new(), "Pod".to_string());
        let all = |state: KindState| SourceState { kinds: [(key.clone(), state)].into() };
        let (sender, state) = watch::channel(all(KindState::Watching));
        let ready = Readiness::default();
        let task = tokio::spawn(report_loss(settings, state, ready.clone()));
        let lost = || all(KindState::Disconnected("refused".into()));
        sender.send_replace(lost());
        sleep(Duration::from_secs(2)).await;
        assert!(ready.is_ready(), "a moment's loss is no loss");
        sender.send_replace(all(KindState::Watching));
        sleep(Duration::from_secs(10)).await;
        assert!(ready.is_ready());
        sender.send_replace(lost());
        sleep(Duration::from_secs(4)).await;
        assert!(ready.reasons().join("").contains("Pod: refused"), "{:?}", ready.reasons());
        sender.send_replace(all(KindState::Watching));
        ready.wait().await;
        task.abort();
    }
}
