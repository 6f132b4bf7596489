//! Pods: the settings of the injector as the cluster's ConfigMaps have them, and the answer for one pod.

use super::Metrics;
use super::review::Verdict;
use crate::mesh;
use crate::settings::{NativeSidecars, Settings};
use arc_swap::ArcSwap;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_inject::{Decision, Injector, Request, Values, patch};
use weft_k8s_api::Object;
use weft_store::Cache;

/// First minor version of Kubernetes whose nodes run native sidecars for certain.
const NATIVE_SINCE: u32 = 33;
/// Most variables that a path may carry.
const MAX_VARIABLES: usize = 32;

/// The injector as the ConfigMaps say, and the objects around a pod.
pub(super) struct Source {
    cache: Arc<Cache>,
    settings: Arc<Settings>,
    injector: ArcSwap<Injector>,
}

impl Source {
    /// With the settings that the ConfigMaps hold now; the defaults where they hold none that can be used.
    pub(super) fn new(cache: Arc<Cache>, settings: Arc<Settings>) -> Self {
        let first = read(&cache, &settings).unwrap_or_else(|error| {
            tracing::error!("settings of the injector refused, the defaults are in force: {error}");
            Injector { values: defaults(&settings), ..Injector::default() }
        });
        Self { cache, settings, injector: ArcSwap::from_pointee(first) }
    }

    /// Takes over what the ConfigMaps say, as long as they say something that can be used.
    pub(super) async fn follow(&self) {
        let mut changes = self.cache.changed();
        let mut seen = objects(&self.cache, &self.settings);
        // The sender is part of the cache, which is held here: it cannot be gone.
        while changes.changed().await.is_ok() {
            let now = objects(&self.cache, &self.settings);
            let same = |(a, b): (&Option<Arc<Object>>, &Option<Arc<Object>>)| match (a, b) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (a, b) => a.is_none() && b.is_none(),
            };
            if now.iter().zip(&seen).all(same) {
                continue;
            }
            seen = now;
            match read(&self.cache, &self.settings) {
                Ok(injector) => self.injector.store(Arc::new(injector)),
                Err(error) => tracing::error!("settings of the injector refused, the last good ones stay: {error}"),
            }
        }
    }

    fn native(&self) -> bool {
        match self.settings.native_sidecars {
            NativeSidecars::True => true,
            NativeSidecars::False => false,
            // One old node is enough: the pod may come to run there. Where none is seen, weftd may not read them.
            NativeSidecars::Auto => {
                let nodes = self.cache.list("", "Node");
                !nodes.is_empty() && nodes.iter().all(|node| is_new(node))
            }
        }
    }

    fn proxy_configs(&self, namespace: &str) -> Vec<Value> {
        let root = self.settings.namespace.as_str();
        let of = |namespace: &str| -> Vec<Value> {
            let all = self.cache.list_namespace("networking.istio.io", "ProxyConfig", namespace);
            all.iter().filter(|config| self.settings.reads(config)).map(|config| config.spec().clone()).collect()
        };
        let own = if namespace == root { Vec::new() } else { of(namespace) };
        of(root).into_iter().chain(own).collect()
    }

    fn namespace_annotations(&self, namespace: &str) -> BTreeMap<String, String> {
        let found = self.cache.find("", "Namespace", "", namespace);
        found.and_then(|namespace| namespace.metadata.annotations.clone()).unwrap_or_default()
    }
}

/// Whether native sidecars run on a node. One that says nothing of itself, as before its kubelet has begun, is taken for old.
fn is_new(node: &Object) -> bool {
    let version = node.body.get("status").and_then(|status| status["nodeInfo"]["kubeletVersion"].as_str());
    version.and_then(minor).is_some_and(|minor| minor >= NATIVE_SINCE)
}

/// Minor version of `v1.33.1`.
fn minor(version: &str) -> Option<u32> {
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next()?, parts.next()?);
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|_| major == "1")
}

fn config_map_name(settings: &Settings) -> String {
    match settings.revision.as_str() {
        "" | "default" => "istio-sidecar-injector".into(),
        revision => format!("istio-sidecar-injector-{revision}"),
    }
}

/// The ConfigMaps of the injector and of the mesh.
fn objects(cache: &Cache, settings: &Settings) -> [Option<Arc<Object>>; 2] {
    let injector = cache.find("", "ConfigMap", &settings.namespace, &config_map_name(settings));
    [injector, mesh::config_map(cache, settings)]
}

fn defaults(settings: &Settings) -> Values {
    let revision = if settings.revision == "default" { "" } else { settings.revision.as_str() };
    let global = json!({"istioNamespace": settings.namespace, "multiCluster": {"clusterName": settings.cluster_id}});
    Values::new(&json!({"revision": revision, "global": global}))
}

fn read(cache: &Cache, settings: &Settings) -> Result<Injector, String> {
    let [injector, mesh] = objects(cache, settings);
    let key = |object: &Option<Arc<Object>>, key: &str| -> Option<String> {
        Some(object.as_ref()?.body.get("data")?.get(key)?.as_str()?.to_string())
    };
    let (values, config, mesh) = (key(&injector, "values"), key(&injector, "config"), key(&mesh, "mesh"));
    Injector::read(values.as_deref(), config.as_deref(), mesh.as_deref(), defaults(settings)).map_err(|error| {
        format!("ConfigMaps {} and {}: {error}", config_map_name(settings), settings.mesh_config_map())
    })
}

/// The answer for a pod.
pub(super) fn answer(
    source: &Source,
    request: &Value,
    variables: BTreeMap<String, String>,
    metrics: &Metrics,
) -> Verdict {
    let pod = &request["object"];
    if !pod["spec"].is_object() {
        metrics.injection_failed();
        return Verdict::Denied { message: "request.object is no pod".into() };
    }
    let injector = source.injector.load_full();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let own = text(&pod["metadata"]["namespace"]);
    let namespace = if own.is_empty() { text(&request["namespace"]) } else { own };
    let name = match text(&pod["metadata"]["name"]) {
        name if name.is_empty() => format!("{}*", text(&pod["metadata"]["generateName"])),
        name => name,
    };
    if let Decision::Skip(why) = injector.decide(pod, &namespace) {
        tracing::debug!("pod {namespace}/{name} gets no proxy: {why}");
        metrics.injection_skipped();
        return Verdict::Allowed { warnings: Vec::new() };
    }
    let configs = source.proxy_configs(&namespace);
    let request = Request {
        pod: pod.clone(),
        namespace: &namespace,
        namespace_annotations: source.namespace_annotations(&namespace),
        owner: None,
        proxy_configs: &configs,
        native_sidecars: source.native(),
        variables,
    };
    match injector.inject(&request) {
        Ok(injected) => {
            metrics.injection_succeeded();
            Verdict::Patched { patch: patch(pod, &injected) }
        }
        Err(refusal) => {
            tracing::warn!("pod {namespace}/{name} is refused: {refusal}");
            metrics.injection_failed();
            Verdict::Denied { message: format!("pod {namespace}/{name}: {refusal}") }
        }
    }
}

/// The variables of a path such as `/inject/cluster/east/net/n1`; `--slash--` in a value is a slash.
pub(super) fn variables(path: &str) -> BTreeMap<String, String> {
    let rest = path.trim_end_matches('/').strip_prefix("/inject/").unwrap_or_default();
    let parts: Vec<&str> = rest.split('/').collect();
    let pairs = parts.chunks_exact(2).filter(|pair| !pair[0].is_empty()).take(MAX_VARIABLES);
    let named = |name: &str| match name {
        "cluster" => "ISTIO_META_CLUSTER_ID".to_string(),
        "net" => "ISTIO_META_NETWORK".to_string(),
        other => other.to_uppercase(),
    };
    pairs.map(|pair| (named(pair[0]), pair[1].replace("--slash--", "/"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn variables_of_the_path() {
        for (path, wanted) in [
            ("/inject", vec![]),
            ("/inject/", vec![]),
            ("/inject/cluster/east/net/n1", vec![("ISTIO_META_CLUSTER_ID", "east"), ("ISTIO_META_NETWORK", "n1")]),
            ("/inject/k/a--slash--b/odd", vec![("K", "a/b")]),
        ] {
            let wanted: BTreeMap<String, String> = wanted.into_iter().map(|(a, b)| (a.into(), b.into())).collect();
            assert_eq!(variables(path), wanted, "{path}");
        }
    }

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn map(name: &str, data: Value) -> Object {
        object(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "istio-system"}, "data": data}),
        )
    }

    #[test]
    fn nodes_decide_on_native_sidecars() {
        let settings = Arc::new(Settings::parse_from(["weftd"]));
        let node = |name: &str, version: &str| {
            object(
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"nodeInfo": {"kubeletVersion": version}}}),
            )
        };
        for (nodes, native) in [
            (vec![], false),
            (vec![node("a", "v1.33.0")], true),
            (vec![node("a", "v1.34.1+k3s1"), node("b", "v1.32.9")], false),
            (vec![node("a", "unknown")], false),
            (vec![object(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}))], false),
        ] {
            let cache = Arc::new(Cache::from_objects(nodes));
            assert_eq!(Source::new(cache, settings.clone()).native(), native);
        }
        let settings = Arc::new(Settings::parse_from(["weftd", "--native-sidecars", "false"]));
        assert!(!Source::new(Arc::default(), settings).native());
    }

    #[tokio::test]
    async fn settings_follow_their_config_maps() {
        let settings = Arc::new(Settings::parse_from(["weftd"]));
        let cache = Arc::new(Cache::from_objects([map("istio", json!({"mesh": "trustDomain: one.example"}))]));
        let source = Arc::new(Source::new(cache.clone(), settings));
        assert_eq!(source.injector.load().mesh["trustDomain"], "one.example");
        let follower = source.clone();
        let task = tokio::spawn(async move { follower.follow().await });
        tokio::task::yield_now().await;
        cache.put(Arc::new(map(
            "istio-sidecar-injector",
            json!({"values": r#"{"global": {"tag": "t7"}}"#, "config": "policy: disabled"}),
        )));
        let until = async |wanted: &dyn Fn(&Injector) -> bool| {
            for _ in 0..2000 {
                if wanted(&source.injector.load()) {
                    return true;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            false
        };
        assert!(until(&|injector| injector.values.text("global.tag") == "t7").await);
        // What cannot be used changes nothing.
        cache.put(Arc::new(map("istio-sidecar-injector", json!({"config": "policy: sometimes"}))));
        cache.put(Arc::new(map("istio", json!({"mesh": "trustDomain: two.example"}))));
        tokio::task::yield_now().await;
        assert_eq!(source.injector.load().values.text("global.tag"), "t7");
        cache.put(Arc::new(map("istio-sidecar-injector", json!({"config": "policy: enabled"}))));
        assert!(until(&|injector| injector.mesh["trustDomain"] == "two.example").await);
        task.abort();
    }
}
