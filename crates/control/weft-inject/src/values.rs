//! The installer's values: a tree of settings under Istio's names, of which the injector reads some. Defaults are filled in
//! here, in one place; the ConfigMap `istio-sidecar-injector` carries the whole tree under its key `values`.

use serde_json::{Value, json};

/// Most levels of a tree of settings.
const MAX_DEPTH: usize = 32;

/// Settings, defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Values(Value);

impl Default for Values {
    fn default() -> Self {
        Self(defaults())
    }
}

/// What holds where a user says nothing. Names and values: Istio's chart `istiod`, `values.yaml`; the images are ours.
fn defaults() -> Value {
    let resources =
        json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2000m", "memory": "1024Mi"}});
    json!({
        "global": {
            "istioNamespace": "istio-system", "hub": "localhost/weft", "tag": env!("CARGO_PKG_VERSION"), "variant": "",
            "imagePullPolicy": "", "imagePullSecrets": [], "logAsJson": false, "logging": {"level": "default:info"},
            "caAddress": "", "meshID": "", "mountMtlsCerts": false, "multiCluster": {"clusterName": ""}, "network": "",
            "pilotCertProvider": "istiod", "sds": {"token": {"aud": "istio-ca"}}, "nativeNftables": false,
            "trustBundleName": "", "configValidation": true,
            "proxy": {
                "image": "weft-proxy", "autoInject": "enabled", "clusterDomain": "cluster.local",
                "componentLogLevel": "misc:error", "logLevel": "warning",
                "includeInboundPorts": "*", "excludeInboundPorts": "",
                "includeIPRanges": "*", "excludeIPRanges": "",
                "includeOutboundPorts": "", "excludeOutboundPorts": "",
                "privileged": false, "holdApplicationUntilProxyStarts": false,
                "readinessInitialDelaySeconds": 0, "readinessPeriodSeconds": 15, "readinessFailureThreshold": 4,
                "startupProbe": {"enabled": true, "failureThreshold": 600},
                "resources": resources, "statusPort": 15020, "tracer": "none",
            },
            "proxy_init": {"image": "weft-proxy", "forceApplyIptables": false},
        },
        "pilot": {"cni": {"enabled": false, "provider": "default"}, "env": {}, "crlConfigMapName": ""},
        "gateways": {"securityContext": {}},
        "sidecarInjectorWebhook": {
            "neverInjectSelector": [], "alwaysInjectSelector": [], "injectedAnnotations": {},
            "enableNamespacesByDefault": false, "rewriteAppHTTPProbe": true,
            "templates": {}, "defaultTemplates": [], "reinvocationPolicy": "Never",
        },
        "revision": "",
    })
}

impl Values {
    /// A user's values over the defaults. Maps are merged, everything else replaces.
    pub fn new(user: &Value) -> Self {
        let mut all = defaults();
        overlay(&mut all, user, MAX_DEPTH);
        Self(all)
    }

    /// Values from the settings of an installation, which an `IstioOperator` carries as its `spec`: `hub`, `tag`,
    /// `revision`, `values` and `components.cni`.
    pub fn from_installation(settings: &Value) -> Self {
        let mut values = settings["values"].clone();
        if values.is_null() {
            values = json!({});
        }
        for (from, to) in [("hub", "hub"), ("tag", "tag")] {
            if !settings[from].is_null() {
                overlay(&mut values, &json!({"global": {to: settings[from]}}), MAX_DEPTH);
            }
        }
        if let Some(revision) = settings["revision"].as_str() {
            values["revision"] = revision.into();
        }
        // A mesh with the agent has it whoever says so: the component, or one of the three names that charts have had for it.
        let said = [&settings["components"]["cni"], &values["cni"], &values["istio_cni"], &values["pilot"]["cni"]];
        let enabled = said.iter().any(|cni| cni["enabled"] == true);
        let provider = values["cni"]["provider"].clone();
        overlay(&mut values, &json!({"pilot": {"cni": {"enabled": enabled, "provider": provider}}}), MAX_DEPTH);
        Self::new(&values)
    }

    /// The whole tree.
    pub fn tree(&self) -> &Value {
        &self.0
    }

    /// The value at a path such as `global.proxy.statusPort`; null where there is none.
    pub fn get(&self, path: &str) -> &Value {
        path.split('.').fold(&self.0, |value, name| value.get(name).unwrap_or(&Value::Null))
    }

    /// The value as text: numbers and booleans as they are written, null as nothing.
    pub fn text(&self, path: &str) -> String {
        as_text(self.get(path))
    }

    /// Whether the value is true, be it a boolean or the word.
    pub fn is_true(&self, path: &str) -> bool {
        match self.get(path) {
            Value::Bool(on) => *on,
            Value::String(text) => text == "true",
            _ => false,
        }
    }

    /// The revision; empty for the default one.
    pub fn revision(&self) -> String {
        self.text("revision")
    }

    /// Namespace of the control plane.
    pub fn namespace(&self) -> String {
        self.text("global.istioNamespace")
    }
}

/// A scalar as text; lists and maps as JSON.
pub(crate) fn as_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Puts `over` over `base`: maps are merged, everything else replaces. Deeper than `depth` nothing is merged.
pub fn overlay(base: &mut Value, over: &Value, depth: usize) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) if depth > 0 => {
            for (name, value) in over {
                overlay(base.entry(name.clone()).or_insert(Value::Null), value, depth - 1);
            }
        }
        (_, Value::Null) => {}
        (base, over) => *base = over.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_win_and_defaults_stay() {
        let values = Values::new(&json!({"global": {"proxy": {"statusPort": 123}, "tag": "1.2"}}));
        for (path, text) in [
            ("global.proxy.statusPort", "123"),
            ("global.tag", "1.2"),
            ("global.proxy.logLevel", "warning"),
            ("global.proxy.privileged", "false"),
            ("no.such.path", ""),
        ] {
            assert_eq!(values.text(path), text, "{path}");
        }
    }

    #[test]
    fn settings_of_an_installation() {
        let values = Values::from_installation(&json!({
            "hub": "h", "tag": 7, "revision": "canary", "components": {"cni": {"enabled": true}},
            "values": {"cni": {"provider": "multus", "cniBinDir": "/x"}},
        }));
        assert_eq!((values.text("global.hub"), values.text("global.tag")), ("h".into(), "7".into()));
        assert!(values.is_true("pilot.cni.enabled"));
        assert_eq!((values.text("pilot.cni.provider"), values.revision()), ("multus".into(), "canary".into()));
    }

    #[test]
    fn whoever_says_that_there_is_the_agent() {
        for (mut settings, wanted) in [
            (json!({"values": {"istio_cni": {"enabled": true}}}), true),
            (json!({"values": {"pilot": {"cni": {"enabled": true}}}}), true),
            (json!({"values": {"cni": {"enabled": true}}}), true),
            (json!({"values": {"pilot": {"cni": {"enabled": false}}}}), false),
            (json!({}), false),
        ] {
            // The default profile says that the component is off.
            for component in [json!({}), json!({"cni": {"enabled": false}}), json!({"cni": {"enabled": true}})] {
                let on = wanted || component["cni"]["enabled"] == true;
                settings["components"] = component;
                assert_eq!(Values::from_installation(&settings).is_true("pilot.cni.enabled"), on, "{settings}");
            }
        }
    }
}
