//! The `ProxyConfig` object that reaches the proxy in `PROXY_CONFIG` and in the annotation `proxy.istio.io/config`: the
//! fields that the agent itself acts on. Others are the control plane's business and are passed over.

use crate::health::ReadinessProbe;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The fields that the agent acts on.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// Where the control plane is.
    pub discovery_address: Option<String>,
    /// Worker threads; 0 = one per core.
    pub concurrency: Option<usize>,
    /// How long inbound connections are served after SIGTERM before they are told to go away.
    pub drain_duration: Option<String>,
    /// How long after SIGTERM the proxy exits at the latest.
    pub termination_drain_duration: Option<String>,
    /// Name of the service.
    pub service_cluster: Option<String>,
    /// Port of merged metrics.
    pub status_port: Option<u16>,
    /// Admin port.
    pub proxy_admin_port: Option<u16>,
    /// Values for environment variables.
    pub proxy_metadata: BTreeMap<String, String>,
    /// Further roots to trust, PEM.
    pub ca_certificates_pem: Vec<String>,
    /// How a workload that registers itself is asked whether it takes traffic.
    pub readiness_probe: Option<ReadinessProbe>,
}

impl ProxyConfig {
    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// What is wrong, with its place in the text.
    pub fn parse(source: &str, text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| format!("{source}: {error}"))
    }

    /// This one with the fields that `over` sets.
    pub fn overridden_by(mut self, over: Self) -> Self {
        self.proxy_metadata.extend(over.proxy_metadata);
        self.ca_certificates_pem.extend(over.ca_certificates_pem);
        Self {
            discovery_address: over.discovery_address.or(self.discovery_address),
            concurrency: over.concurrency.or(self.concurrency),
            drain_duration: over.drain_duration.or(self.drain_duration),
            termination_drain_duration: over.termination_drain_duration.or(self.termination_drain_duration),
            service_cluster: over.service_cluster.or(self.service_cluster),
            status_port: over.status_port.or(self.status_port),
            proxy_admin_port: over.proxy_admin_port.or(self.proxy_admin_port),
            proxy_metadata: self.proxy_metadata,
            ca_certificates_pem: self.ca_certificates_pem,
            readiness_probe: over.readiness_probe.or(self.readiness_probe),
        }
    }
}

/// A duration field.
///
/// # Errors
/// When it is set and not a duration.
pub fn duration(field: &str, text: Option<&str>, default: Duration) -> Result<Duration, String> {
    text.map_or(Ok(default), |text| {
        weft_core::duration::parse(text).map_err(|error| format!("proxy config, field {field}: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_json_and_override() {
        let base =
            ProxyConfig::parse("a", "discoveryAddress: d:15012\nconcurrency: 2\ntracing: {sampling: 1}\n").unwrap();
        let over =
            ProxyConfig::parse("b", r#"{"concurrency": 0, "proxyMetadata": {"A": "b"}, "drainDuration": "45s"}"#);
        let merged = base.overridden_by(over.unwrap());
        assert_eq!((merged.discovery_address.as_deref(), merged.concurrency), (Some("d:15012"), Some(0)));
        assert_eq!(merged.proxy_metadata["A"], "b");
        let error = ProxyConfig::parse("PROXY_CONFIG", "concurrency: many").unwrap_err();
        assert!(error.starts_with("PROXY_CONFIG"), "{error}");
        assert!(duration("drainDuration", Some("soon"), Duration::ZERO).is_err());
    }
}
