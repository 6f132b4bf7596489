//! The mesh config: key `mesh` of ConfigMap `istio` in the control plane's namespace, followed as it changes.

use crate::settings::Settings;
use std::sync::Arc;
use weft_k8s_api::de::{Dialect, read};
use weft_k8s_api::istio::MeshConfig;
use weft_k8s_api::{Object, validate, yaml};
use weft_runtime::ready::ReadyBlock;
use weft_store::Cache;

/// Key of the ConfigMap.
const KEY: &str = "mesh";

/// The mesh config in force, and what of it was refused.
#[derive(Debug, Clone)]
pub(crate) struct Mesh {
    /// The config; the last good one while the ConfigMap holds a bad one.
    pub config: Arc<MeshConfig>,
    /// The object it was read from.
    source: Option<Arc<Object>>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self { config: Arc::new(MeshConfig::with_defaults()), source: None }
    }
}

impl Mesh {
    /// The config to begin with. A bad one is waited out, and `blocked` says why: with the defaults in its place the mesh
    /// might get another trust domain, or lose its restrictions.
    pub async fn first(cache: &Cache, settings: &Settings, blocked: &ReadyBlock) -> Self {
        let mut changes = cache.changed();
        let mut said = String::new();
        loop {
            let mut mesh = Self::default();
            let Err(problem) = mesh.read(cache, settings) else { return mesh };
            if problem != said {
                tracing::error!("mesh config refused, waiting for one that can be used: {problem}");
                blocked.set_reason(format!("a mesh config that can be used: {problem}"));
                said = problem;
            }
            // The sender is part of the cache, which is borrowed: it cannot be gone.
            let _ = changes.changed().await;
        }
    }

    /// Reads the ConfigMap again if it changed. A bad config changes nothing and is logged once.
    pub fn refresh(&mut self, cache: &Cache, settings: &Settings) {
        if let Err(problem) = self.read(cache, settings) {
            tracing::error!("mesh config refused, the last good one stays in force: {problem}");
        }
    }

    /// What is wrong is said once for each state of the ConfigMap.
    fn read(&mut self, cache: &Cache, settings: &Settings) -> Result<(), String> {
        let now = config_map(cache, settings);
        let same = match (&self.source, &now) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        if same {
            return Ok(());
        }
        let read = now.as_deref().map_or_else(|| Ok(MeshConfig::with_defaults()), parse);
        self.source = now;
        let config = read?;
        if config != *self.config {
            tracing::info!("mesh config changed");
            self.config = Arc::new(config);
        }
        Ok(())
    }
}

/// The ConfigMap, when it is there.
pub(crate) fn config_map(cache: &Cache, settings: &Settings) -> Option<Arc<Object>> {
    cache.find("", "ConfigMap", &settings.namespace, &settings.mesh_config_map())
}

/// The mesh config that a ConfigMap holds, or what is wrong with it.
pub(crate) fn parse(object: &Object) -> Result<MeshConfig, String> {
    let key = &object.key();
    let Some(text) = object.body.get("data").and_then(|d| d.get(KEY)).and_then(|v| v.as_str()) else {
        return Ok(MeshConfig::with_defaults());
    };
    let at = format!("data.{KEY}");
    let user = yaml::value(text).map_err(|e| format!("{key} {at}: {e}"))?;
    let mut unknown = Vec::new();
    let config: MeshConfig =
        read(&MeshConfig::overlay(&user), &at, Dialect::ProtoJson, &mut unknown).map_err(|e| format!("{key} {e}"))?;
    for field in unknown {
        tracing::warn!("{key} {}: no such field; it has no effect", field.path);
    }
    match validate::validate_mesh_config(key, &at, &config).errors.first() {
        Some(problem) => Err(problem.to_string()),
        None => Ok(config),
    }
}

/// What the model is told: the settings, with what the mesh config decides.
pub(crate) fn model_settings(settings: &Settings, mesh: &MeshConfig) -> weft_model::Settings {
    let or = |text: &str, default: &str| if text.is_empty() { default.to_string() } else { text.to_string() };
    weft_model::Settings {
        domain: settings.domain.clone(),
        trust_domain: or(&mesh.trust_domain, weft_core::well_known::DEFAULT_TRUST_DOMAIN),
        root_namespace: or(&mesh.root_namespace, &settings.namespace),
        cluster_id: settings.cluster_id.clone(),
        network: settings.network.clone(),
        scope_gateways: settings.scope_gateways,
        revision: settings.revision().into(),
    }
}
