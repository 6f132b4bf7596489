//! Settings: flags, and environment variables under Istio's names where it has them.

use clap::Parser;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use weft_core::well_known::{DEFAULT_CLUSTER_ID, DEFAULT_DOMAIN, ROOT_NAMESPACE, port};

/// The control plane of a mesh: reads objects from a Kubernetes API, serves xDS and certificates to proxies.
#[derive(Debug, Clone, Parser)]
#[command(name = "weftd", version)]
pub struct Settings {
    /// DNS suffix of service names.
    #[arg(long, default_value = DEFAULT_DOMAIN)]
    pub domain: String,
    /// Name of the cluster that is watched.
    #[arg(long, env = "CLUSTER_ID", default_value = DEFAULT_CLUSTER_ID)]
    pub cluster_id: String,
    /// Network of workloads that name none.
    #[arg(long, env = "NETWORK", default_value = "")]
    pub network: String,
    /// Namespace of the control plane: of its ConfigMaps and Secrets.
    #[arg(long, env = "POD_NAMESPACE", default_value = ROOT_NAMESPACE)]
    pub namespace: String,
    /// Name of this instance.
    #[arg(long, env = "POD_NAME", default_value = "weftd")]
    pub pod_name: String,
    /// Revision of the control plane; its mesh config is then in ConfigMap `istio-REVISION`.
    #[arg(long, env = "REVISION", default_value = "")]
    pub revision: String,

    /// kubeconfig of the API server. Without this and --api-url: the pod's service account, else the usual places.
    #[arg(long, env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Default: the current one.
    #[arg(long)]
    pub context: Option<String>,
    /// Address of the API server; counts before a kubeconfig.
    #[arg(long, env = "WEFT_API_URL")]
    pub api_url: Option<String>,
    /// File of the bearer token for --api-url; read again when it changes.
    #[arg(long, env = "WEFT_TOKEN_FILE", requires = "api_url")]
    pub token_file: Option<PathBuf>,

    /// Address of xDS and CA over TLS.
    #[arg(long, alias = "secureGRPCAddr", default_value_t = any(port::XDS))]
    pub secure_grpc_addr: SocketAddr,
    /// Also serve xDS without TLS and without authentication, for tests.
    #[arg(long)]
    pub plaintext_xds: bool,
    /// Address of xDS without TLS.
    #[arg(long, alias = "grpcAddr", default_value_t = any(port::XDS_PLAIN))]
    pub grpc_addr: SocketAddr,
    /// Address of readiness, metrics and debug endpoints.
    #[arg(long, alias = "monitoringAddr", default_value_t = any(port::MONITORING))]
    pub monitoring_addr: SocketAddr,

    /// Quiet time after a change before it is acted on.
    #[arg(long, env = "PILOT_DEBOUNCE_AFTER", default_value = "10ms", value_parser = weft_core::duration::parse)]
    pub debounce_after: Duration,
    /// Longest time that changes are gathered.
    #[arg(long, env = "PILOT_DEBOUNCE_MAX", default_value = "100ms", value_parser = weft_core::duration::parse)]
    pub debounce_max: Duration,
    /// Write warnings to the status of the objects they are about.
    #[arg(long, env = "PILOT_ENABLE_STATUS", default_value_t = true, action = clap::ArgAction::Set)]
    pub write_status: bool,
    /// Lifetime of workload certificates that ask for none.
    #[arg(long, env = "DEFAULT_WORKLOAD_CERT_TTL", default_value = "24h", value_parser = weft_core::duration::parse)]
    pub workload_cert_ttl: Duration,
    /// Longest lifetime of workload certificates.
    #[arg(long, env = "MAX_WORKLOAD_CERT_TTL", default_value = "2160h", value_parser = weft_core::duration::parse)]
    pub max_workload_cert_ttl: Duration,
    /// Age at which xDS streams are ended, so that proxies spread over instances.
    #[arg(
        long,
        alias = "keepaliveMaxServerConnectionAge",
        default_value = "30m",
        value_parser = weft_core::duration::parse
    )]
    pub max_connection_age: Duration,
    /// Time that proxies get to leave at the end.
    #[arg(long, default_value = "5s", value_parser = weft_core::duration::parse)]
    pub drain: Duration,

    /// Log level or filter.
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub log_level: String,
    /// One JSON object a line instead of text.
    #[arg(long)]
    pub log_json: bool,
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

impl Settings {
    /// ConfigMap with the mesh config: `istio`, or `istio-REVISION`.
    pub fn mesh_config_map(&self) -> String {
        match self.revision.as_str() {
            "" | "default" => "istio".into(),
            revision => format!("istio-{revision}"),
        }
    }

    /// DNS names that proxies may reach this control plane by.
    pub fn server_names(&self) -> Vec<String> {
        let mut services = vec!["istiod".to_string(), "weftd".to_string()];
        if !matches!(self.revision.as_str(), "" | "default") {
            services.push(format!("istiod-{}", self.revision));
        }
        let (namespace, domain) = (&self.namespace, &self.domain);
        let mut names: Vec<String> = services
            .iter()
            .flat_map(|s| {
                [
                    format!("{s}.{namespace}.svc"),
                    format!("{s}.{namespace}.svc.{domain}"),
                    format!("{s}.{namespace}"),
                    s.clone(),
                ]
            })
            .collect();
        names.push("localhost".into());
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_names() {
        let settings = Settings::try_parse_from(["weftd", "--revision", "canary", "--drain", "250ms"]).unwrap();
        assert_eq!(settings.mesh_config_map(), "istio-canary");
        assert_eq!(settings.drain, Duration::from_millis(250));
        assert!(settings.server_names().contains(&"istiod-canary.istio-system.svc".to_string()));
        assert!(settings.server_names().contains(&"istiod.istio-system.svc.cluster.local".to_string()));
        for bad in [["weftd", "--drain", "soon"], ["weftd", "--token-file", "/x"]] {
            assert!(Settings::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }
}
