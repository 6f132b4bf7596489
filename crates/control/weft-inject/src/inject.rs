//! The steps of an injection.

use crate::annotations::{self, NATIVE, PROXY, STATUS};
use crate::config::Config;
use crate::decide::{Decision, decide};
use crate::overrides::{self, Overrides};
use crate::owner::Owner;
use crate::pod::{self, Pod};
use crate::proxy_config::ProxyConfig;
use crate::values::Values;
use crate::{gateway, metrics, order, probes, sidecar, template};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use weft_core::well_known::{PROXY_UID, annotation};
use weft_store::merge::strategic_patch;

/// Most templates of one pod.
const MAX_TEMPLATES: usize = 32;
/// Range of user ids of a namespace, `first/count`.
const OPENSHIFT_UIDS: &str = "openshift.io/sa.scc.uid-range";

/// Why a pod that is to have a proxy cannot get one: the field and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Refusal {
    /// Path of the field.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Refusal {
    pub(crate) fn annotation(name: &str, message: impl Into<String>) -> Self {
        Self { field: format!("metadata.annotations[{name}]"), message: message.into() }
    }
}

/// The settings that all pods share.
#[derive(Debug, Clone, Default)]
pub struct Injector {
    /// The injector's own.
    pub config: Config,
    /// The installer's values.
    pub values: Values,
    /// The mesh config, as the user wrote it.
    pub mesh: Value,
}

/// One pod and what is known around it.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// `metadata` and `spec` of the pod, or of a pod template.
    pub pod: Value,
    /// Its namespace; empty when it is not known.
    pub namespace: &'a str,
    /// Annotations of its namespace: OpenShift gives the range of user ids there.
    pub namespace_annotations: BTreeMap<String, String>,
    /// Its workload, where the caller knows better than the pod's owner references.
    pub owner: Option<Owner>,
    /// `spec` of the `ProxyConfig` objects of the root namespace and of the pod's, the weaker ones first.
    pub proxy_configs: &'a [Value],
    /// The cluster's nodes can run a proxy that starts before the application's init containers (Kubernetes 1.33 and later).
    pub native_sidecars: bool,
    /// Variables that the address of the webhook gives, such as `ISTIO_META_CLUSTER_ID`.
    pub variables: BTreeMap<String, String>,
}

/// Everything that the templates look at.
pub(crate) struct Facts<'a> {
    pub values: &'a Values,
    pub mesh: &'a Value,
    /// The pod before the injection.
    pub pod: &'a Value,
    pub proxy: ProxyConfig,
    pub owner: Owner,
    /// Revision; empty for the default one.
    pub revision: String,
    pub native: bool,
    pub uid: i64,
    pub gid: i64,
    pub network: String,
}

impl Facts<'_> {
    /// An annotation's value, else the installer's.
    pub fn annotated(&self, name: &str, path: &str) -> String {
        self.pod.annotation(name).map_or_else(|| self.values.text(path), str::to_string)
    }

    /// Names of the application's containers.
    pub fn app_containers(&self) -> Vec<&str> {
        let names = self.pod.list("containers").iter().filter_map(|container| container["name"].as_str());
        names.filter(|name| *name != PROXY).collect()
    }
}

impl Injector {
    /// The settings as the ConfigMaps hold them: `values` and `config` of `istio-sidecar-injector`, `mesh` of `istio`.
    /// Without the first, `fallback` holds; without the second, what the values say of the injector.
    ///
    /// # Errors
    /// The key that cannot be used, and why.
    pub fn read(
        values: Option<&str>,
        config: Option<&str>,
        mesh: Option<&str>,
        fallback: Values,
    ) -> Result<Self, String> {
        let tree =
            |key: &str, text: &str| weft_k8s_api::yaml::value(text).map_err(|error| format!("key {key}: {error}"));
        let values = match values {
            Some(text) => Values::new(&tree("values", text)?),
            None => fallback,
        };
        let config = match config {
            Some(text) => Config::parse(text).map_err(|error| format!("key config: {error}"))?,
            None => Config::from_values(&values).map_err(|error| format!("key values: {error}"))?,
        };
        let mesh = mesh.map_or(Ok(Value::Null), |text| tree("mesh", text))?;
        Ok(Self { config, values, mesh })
    }

    /// Whether a pod that came here gets a proxy.
    pub fn decide(&self, pod: &Value, namespace: &str) -> Decision {
        decide(&self.config, pod, namespace)
    }

    /// The pod with a proxy. A pod that has one already gets it anew: the result of an injection, injected again, is the same.
    ///
    /// # Errors
    /// What of the pod cannot be followed.
    pub fn inject(&self, request: &Request<'_>) -> Result<Value, Refusal> {
        let (mut original, overrides) = overrides::strip(&request.pod)?;
        if request.namespace_annotations.contains_key(OPENSHIFT_UIDS) {
            overrides::drop_platform_user(&mut original);
        }
        annotations::check(&original)?;
        let facts = self.facts(request, &original)?;
        let mut merged = original.clone();
        // What the templates alone make: who asks later what was injected looks here.
        let mut added = json!({});
        for name in self.templates(&original)? {
            let overlay = self.overlay(&name, &facts)?;
            let failed = |message: String| Refusal { field: format!("template {name}"), message };
            added = strategic_patch(&added, &overlay).map_err(failed)?;
            order::follow_proxy(&mut merged, &added);
            merged = strategic_patch(&merged, &overlay).map_err(failed)?;
        }
        let overrides = Overrides::found(&original, &added, overrides);
        overrides.apply(&mut merged, &facts)?;
        self.finish(&mut merged, &added, &facts, request)?;
        pod::tidy(&mut merged, &request.pod);
        Ok(merged)
    }

    fn facts<'a>(&'a self, request: &'a Request<'_>, original: &'a Value) -> Result<Facts<'a>, Refusal> {
        let mut proxy_configs = self.mesh.clone();
        if !self.values.revision().is_empty() && proxy_configs["defaultConfig"]["discoveryAddress"].is_null() {
            let address = format!("istiod-{}.{}.svc:15012", self.values.revision(), self.values.namespace());
            crate::values::overlay(&mut proxy_configs, &json!({"defaultConfig": {"discoveryAddress": address}}), 3);
        }
        let given = |name: &str| request.variables.get(name).cloned().filter(|value| !value.is_empty());
        let network = original.label("topology.istio.io/network").map(str::to_string);
        let network = network.or_else(|| given("ISTIO_META_NETWORK"));
        let asked = match original.annotation(NATIVE) {
            Some("true") => true,
            Some("false") => false,
            _ => request.native_sidecars,
        };
        // A pod needs a container beside its init containers: a proxy alone is that.
        let native = asked && original.list("containers").iter().any(|container| container["name"] != PROXY);
        let (uid, gid) = openshift_ids(&request.namespace_annotations);
        Ok(Facts {
            values: &self.values,
            mesh: &self.mesh,
            pod: original,
            proxy: ProxyConfig::of(original, &proxy_configs, request.proxy_configs)?,
            owner: request.owner.clone().unwrap_or_else(|| Owner::of_pod(original, request.namespace)),
            revision: self.values.revision(),
            native,
            uid,
            gid,
            network: network.unwrap_or_else(|| self.values.text("global.network")),
        })
    }

    /// Names of the templates of a pod, aliases resolved.
    fn templates(&self, pod: &Value) -> Result<Vec<String>, Refusal> {
        let asked = pod.annotation(annotation::TEMPLATES);
        let names: Vec<String> = match asked {
            Some(list) => list.split(',').map(|name| name.trim().to_string()).collect(),
            None => self.config.default_templates.clone(),
        };
        let resolved: Vec<String> = names
            .iter()
            .flat_map(|name| self.config.aliases.get(name).cloned().unwrap_or_else(|| vec![name.clone()]))
            .collect();
        if resolved.len() > MAX_TEMPLATES {
            return Err(Refusal::annotation(
                annotation::TEMPLATES,
                format!("names more than {MAX_TEMPLATES} templates"),
            ));
        }
        Ok(resolved)
    }

    fn overlay(&self, name: &str, facts: &Facts<'_>) -> Result<Value, Refusal> {
        if let Some(text) = self.config.templates.get(name) {
            let failed = |message: String| Refusal { field: format!("template {name}"), message };
            let text = template::run(text, &data(facts)).map_err(failed)?;
            return weft_k8s_api::yaml::value(&text).map_err(failed);
        }
        match name {
            "sidecar" => Ok(sidecar::overlay(facts)),
            "gateway" => Ok(gateway::overlay(facts)),
            _ => {
                let own = self.config.templates.keys().map(String::as_str);
                let mut known: Vec<&str> = own.chain(["sidecar", "gateway"]).collect();
                known.sort_unstable();
                known.dedup();
                let message = format!("the template {name:?} does not exist; there are {}", known.join(", "));
                Err(Refusal::annotation(annotation::TEMPLATES, message))
            }
        }
    }

    /// What no template could say.
    fn finish(
        &self,
        merged: &mut Value,
        added: &Value,
        facts: &Facts<'_>,
        request: &Request<'_>,
    ) -> Result<(), Refusal> {
        if let Some(proxy) = pod::proxy_mut(merged) {
            for (name, value) in &request.variables {
                pod::set_env(proxy, name, value);
            }
            if !facts.network.is_empty() {
                pod::set_env(proxy, "ISTIO_META_NETWORK", &facts.network);
            }
        }
        metrics::merge(merged, facts)?;
        probes::rewrite(merged, facts)?;
        if !facts.network.is_empty() {
            pod::meta(merged, "labels").insert("topology.istio.io/network".into(), facts.network.as_str().into());
        }
        let annotations = pod::meta(merged, "annotations");
        annotations.insert(STATUS.into(), status(added, &facts.revision).into());
        for (name, value) in &self.config.injected_annotations {
            annotations.insert(name.clone(), value.as_str().into());
        }
        order::arrange(merged, facts);
        Ok(())
    }
}

/// What was injected, by name.
fn status(added: &Value, revision: &str) -> String {
    let names = |field: &str| -> Value {
        let names: Vec<Value> = added.list(field).iter().map(|item| item["name"].clone()).collect();
        if names.is_empty() { Value::Null } else { names.into() }
    };
    let revision = if revision.is_empty() { "default" } else { revision };
    json!({
        "initContainers": names("initContainers"), "containers": names("containers"), "volumes": names("volumes"),
        "imagePullSecrets": names("imagePullSecrets"), "revision": revision,
    })
    .to_string()
}

/// What a custom template sees, under the names of Istio's `SidecarTemplateData`.
fn data(facts: &Facts<'_>) -> Value {
    let owner = &facts.owner;
    json!({
        "TypeMeta": {"Kind": owner.kind, "APIVersion": owner.api_version},
        "DeploymentMeta": {"Name": owner.name, "Namespace": owner.namespace},
        "ObjectMeta": facts.pod["metadata"], "Spec": facts.pod["spec"],
        "ProxyConfig": facts.proxy.tree(), "MeshConfig": facts.mesh, "Values": facts.values.tree(),
        "Revision": facts.revision, "NativeSidecars": facts.native,
        "ProxyImage": sidecar::image(facts, "global.proxy.image", true),
        "ProxyInitImage": sidecar::image(facts, "global.proxy_init.image", false),
        "ProxyUID": facts.uid, "ProxyGID": facts.gid,
    })
}

/// User and group of the proxy: 1337, or on OpenShift the last of the ranges that the namespace has.
fn openshift_ids(annotations: &BTreeMap<String, String>) -> (i64, i64) {
    let last = |name: &str| {
        let text = annotations.get(name)?.split(',').next()?.to_string();
        let number = |text: &str| text.trim().parse::<i64>().ok();
        match (text.split_once('/'), text.split_once('-')) {
            (Some((start, size)), _) => Some(number(start)? + number(size)? - 1),
            (None, Some((_, end))) => number(end),
            _ => None,
        }
    };
    let usual = i64::from(PROXY_UID);
    let uid = last(OPENSHIFT_UIDS);
    let gid = last("openshift.io/sa.scc.supplemental-groups").or(uid);
    (uid.unwrap_or(usual), gid.unwrap_or(usual))
}
