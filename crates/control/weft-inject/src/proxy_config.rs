//! The proxy config of one pod: the mesh's `defaultConfig`, the `ProxyConfig` objects that hold for the pod over it, and the
//! pod's annotation over all.

use crate::annotations::INTERCEPTION_MODE;
use crate::inject::Refusal;
use crate::pod::{Pod, strings};
use serde_json::{Map, Value, json};
use weft_core::well_known::annotation;

/// Fields with the value that holds without them; they are not told to the proxy. Source: Istio's `mesh.DefaultProxyConfig`.
fn defaults() -> Value {
    json!({
        "configPath": "./etc/istio/proxy", "binaryPath": "/usr/local/bin/envoy", "serviceCluster": "istio-proxy",
        "drainDuration": "45s", "terminationDrainDuration": "5s", "proxyAdminPort": 15000, "statusPort": 15020,
        "controlPlaneAuthPolicy": "MUTUAL_TLS", "statNameLength": 189, "interceptionMode": "REDIRECT",
        "discoveryAddress": "istiod.istio-system.svc:15012", "proxyMetadata": {},
    })
}

/// A proxy config, as JSON.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct ProxyConfig(Map<String, Value>);

impl ProxyConfig {
    /// The config of a pod.
    ///
    /// # Errors
    /// When its annotation is not one.
    pub(crate) fn of(pod: &Value, mesh: &Value, objects: &[Value]) -> Result<Self, Refusal> {
        let mut config = Self(mesh["defaultConfig"].as_object().cloned().unwrap_or_default());
        selected(pod, objects).into_iter().for_each(|fields| config.put_over(fields));
        let Some(text) = pod.annotation(annotation::PROXY_CONFIG) else { return Ok(config) };
        let wrong = |message: String| {
            let message = format!("{message}; write the fields of ProxyConfig as YAML, such as concurrency: 2");
            Refusal::annotation(annotation::PROXY_CONFIG, message)
        };
        let own = weft_k8s_api::yaml::value(text).map_err(wrong)?;
        weft_k8s_api::validate::parse_proxy_config(text, &mut Vec::new()).map_err(wrong)?;
        let Value::Object(own) = own else { return Err(wrong("is not an object".into())) };
        config.put_over(own);
        Ok(config)
    }

    /// Puts fields over these; objects are merged, everything else is replaced.
    fn put_over(&mut self, over: Map<String, Value>) {
        for (field, value) in over {
            match (self.0.get_mut(&field), value) {
                (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
                (_, Value::Null) => {}
                (_, value) => drop(self.0.insert(field, value)),
            }
        }
    }

    /// A field; null when it is not set.
    pub(crate) fn get(&self, field: &str) -> &Value {
        self.0.get(field).unwrap_or(&Value::Null)
    }

    /// Variables for the proxy.
    pub(crate) fn metadata(&self) -> Vec<(String, String)> {
        strings(self.get("proxyMetadata")).into_iter().collect()
    }

    /// How traffic comes to the proxy: `REDIRECT`, `TPROXY` or `NONE`.
    pub(crate) fn interception_mode<'a>(&'a self, pod: &'a Value) -> &'a str {
        let configured = self.get("interceptionMode").as_str();
        pod.annotation(INTERCEPTION_MODE).or(configured).unwrap_or("REDIRECT")
    }

    /// Port of the agent.
    pub(crate) fn status_port(&self) -> u16 {
        self.get("statusPort")
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port > 0)
            .unwrap_or(15020)
    }

    /// Whether the application waits for the proxy.
    pub(crate) fn holds(&self) -> bool {
        self.get("holdApplicationUntilProxyStarts") == true
    }

    /// The config as the proxy is told it: JSON, without what holds anyway.
    pub(crate) fn for_proxy(&self) -> String {
        let defaults = defaults();
        let told = self.0.iter().filter(|(field, value)| defaults[field.as_str()] != **value && !value.is_null());
        let told: Map<String, Value> = told.map(|(field, value)| (field.clone(), value.clone())).collect();
        Value::Object(told).to_string()
    }

    /// All of it, as a template sees it.
    pub(crate) fn tree(&self) -> Value {
        let mut all = defaults();
        crate::values::overlay(&mut all, &Value::Object(self.0.clone()), 8);
        all
    }
}

/// The `ProxyConfig` objects that hold for a pod, as fields of `defaultConfig`: those without a selector, then those that
/// select the pod.
fn selected(pod: &Value, objects: &[Value]) -> Vec<Map<String, Value>> {
    let selector = |config: &Value| strings(&config["selector"]["matchLabels"]);
    let holds = |config: &&Value| selector(config).iter().all(|(name, value)| pod.label(name) == Some(value));
    let mut chosen: Vec<&Value> = objects.iter().filter(holds).collect();
    chosen.sort_by_key(|config| !selector(config).is_empty());
    let named = [("concurrency", "concurrency"), ("environmentVariables", "proxyMetadata"), ("image", "image")];
    let fields = chosen.into_iter().map(|config| {
        let set = named.into_iter().filter(|(from, _)| !config[*from].is_null());
        set.map(|(from, to)| (to.to_string(), config[from].clone())).collect()
    });
    fields.collect()
}
