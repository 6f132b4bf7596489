//! Settings: flags, and environment variables under Istio's names where it has them.

use clap::Parser;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use weft_core::well_known::{DEFAULT_CLUSTER_ID, DEFAULT_DOMAIN, ROOT_CERT_CONFIG_MAP, ROOT_NAMESPACE, port};

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
    /// Further address of readiness, metrics and debug endpoints, as Istio has it on 8080. Default: none.
    #[arg(long, alias = "httpAddr")]
    pub http_addr: Option<SocketAddr>,
    /// Address of readiness, metrics and debug endpoints.
    #[arg(long, alias = "monitoringAddr", default_value_t = any(port::MONITORING))]
    pub monitoring_addr: SocketAddr,

    /// Address of the webhooks.
    #[arg(long, alias = "httpsAddr", default_value_t = any(port::WEBHOOK))]
    pub https_addr: SocketAddr,
    /// Whether proxies start before the init containers of their pods: `auto` asks the nodes for their version.
    #[arg(long, env = "ENABLE_NATIVE_SIDECARS", value_enum, default_value_t = NativeSidecars::Auto)]
    pub native_sidecars: NativeSidecars,

    /// A Gateway chooses workloads of its own namespace alone: nobody serves hosts at another namespace's gateway.
    #[arg(long, env = "PILOT_SCOPE_GATEWAY_TO_NAMESPACE", default_value_t = false, action = clap::ArgAction::Set)]
    pub scope_gateways: bool,

    /// Quiet time after a change before it is acted on.
    #[arg(long, env = "PILOT_DEBOUNCE_AFTER", default_value = "10ms", value_parser = weft_core::duration::parse)]
    pub debounce_after: Duration,
    /// Longest time that changes are gathered.
    #[arg(long, env = "PILOT_DEBOUNCE_MAX", default_value = "100ms", value_parser = weft_core::duration::parse)]
    pub debounce_max: Duration,
    /// Time without the API server after which readiness says so.
    #[arg(long, default_value = "10s", value_parser = weft_core::duration::parse)]
    pub api_grace: Duration,
    /// How long the replica that writes may be silent before another one takes over; whole seconds.
    #[arg(long, default_value = "15s", value_parser = weft_core::duration::parse)]
    pub lease_duration: Duration,
    /// Proxies that name a WorkloadGroup get a WorkloadEntry.
    #[arg(long, env = "PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION", default_value_t = true, action = clap::ArgAction::Set)]
    pub auto_registration: bool,
    /// Time after which the entry of a proxy that went away goes too.
    #[arg(long, env = "PILOT_WORKLOAD_ENTRY_GRACE_PERIOD", default_value = "10s", value_parser = weft_core::duration::parse)]
    pub workload_entry_grace: Duration,
    /// Write warnings to the status of the objects they are about.
    #[arg(long, env = "PILOT_ENABLE_STATUS", default_value_t = true, action = clap::ArgAction::Set)]
    pub write_status: bool,
    /// Time after which keys of token issuers are fetched again.
    #[arg(long, env = "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", default_value = "20m", value_parser = weft_core::duration::parse)]
    pub jwks_refresh: Duration,
    /// Networks that keys of token issuers are not fetched from, besides this machine, its link and services that give out
    /// credentials of machines.
    #[arg(long, env = "BLOCKED_CIDRS_IN_JWKS_URIS", value_delimiter = ',')]
    pub jwks_blocked_cidrs: Vec<ipnet::IpNet>,
    /// Networks that they are fetched from although they would be blocked.
    #[arg(long, env = "WEFT_JWKS_ALLOWED_CIDRS", value_delimiter = ',')]
    pub jwks_allowed_cidrs: Vec<ipnet::IpNet>,
    /// Lifetime of workload certificates that ask for none.
    #[arg(long, env = "DEFAULT_WORKLOAD_CERT_TTL", default_value = "24h", value_parser = weft_core::duration::parse)]
    pub workload_cert_ttl: Duration,
    /// Longest lifetime of workload certificates.
    #[arg(long, env = "MAX_WORKLOAD_CERT_TTL", default_value = "2160h", value_parser = weft_core::duration::parse)]
    pub max_workload_cert_ttl: Duration,
    /// Where an authority that the user plugs in is mounted as files; counts when there is no Secret `cacerts`.
    #[arg(long, env = "ROOT_CA_DIR", default_value = "/etc/cacerts")]
    pub root_ca_dir: PathBuf,
    /// ConfigMap of the revocation lists in every namespace, for agents of Istio's; the injector mounts the one that
    /// `pilot.crlConfigMapName` names.
    #[arg(long, env = "PILOT_CRL_CONFIGMAP", default_value = CRL_CONFIG_MAP, value_parser = crl_config_map)]
    pub crl_config_map: String,
    /// An authority elsewhere signs: by CertificateSigningRequests, or over the API that proxies speak.
    #[arg(long, env = "EXTERNAL_CA", value_enum)]
    pub external_ca: Option<ExternalCa>,
    /// Signer of CertificateSigningRequests for workloads that name none, and of DNS certificates.
    #[arg(long, env = "K8S_SIGNER", default_value = "")]
    pub k8s_signer: String,
    /// Domain that the names of signers are put after, which workloads ask for: DOMAIN/NAME.
    #[arg(long, env = "CERT_SIGNER_DOMAIN", default_value = "")]
    pub cert_signer_domain: String,
    /// Roots of the authority elsewhere.
    #[arg(long, env = "EXTERNAL_CA_ROOTS", default_value = "/etc/external-ca-cert/root-cert.pem")]
    pub external_ca_roots: PathBuf,
    /// HOST:PORT of the authority elsewhere, when it speaks the API that proxies speak.
    #[arg(long, env = "EXTERNAL_CA_ADDR", default_value = "")]
    pub external_ca_addr: String,
    /// Name that its certificate must have. Default: the host of the address.
    #[arg(long, env = "EXTERNAL_CA_NAME", default_value = "")]
    pub external_ca_name: String,
    /// Ask the API server whether a proxy's service account may list Secrets before it gets any.
    #[arg(long, env = "WEFT_SECRET_ACCESS_REVIEW", default_value_t = true, action = clap::ArgAction::Set)]
    pub secret_access_review: bool,
    /// `pqc`: port 15012 agrees on X25519MLKEM768 over TLS 1.3 and on nothing else.
    #[arg(long, env = "COMPLIANCE_POLICY", value_enum)]
    pub compliance_policy: Option<CompliancePolicy>,

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

/// An authority elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExternalCa {
    /// Whoever signs CertificateSigningRequests of the Kubernetes API.
    #[value(name = "ISTIOD_RA_KUBERNETES_API")]
    KubernetesCsr,
    /// One that speaks `istio.v1.auth.IstioCertificateService`.
    #[value(name = "ISTIOD_RA_ISTIO_API")]
    IstioApi,
}

/// What connections have to fulfil.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum CompliancePolicy {
    /// Key exchange that a quantum computer cannot undo.
    Pqc,
}

/// Where a proxy stands in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum NativeSidecars {
    /// Among the init containers where all nodes can run it there (Kubernetes 1.33 and later).
    #[default]
    Auto,
    /// Among the init containers.
    True,
    /// Among the containers.
    False,
}

/// ConfigMap of the revocation lists, by Istio's name.
const CRL_CONFIG_MAP: &str = "istio-ca-crl";

/// A name of a ConfigMap (RFC 1123 subdomain) that no other one of ours has; nothing stands for Istio's.
fn crl_config_map(name: &str) -> Result<String, String> {
    let label = |label: &str| {
        let inside = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        !label.is_empty() && inside && !label.starts_with('-') && !label.ends_with('-')
    };
    match name {
        "" => Ok(CRL_CONFIG_MAP.into()),
        ROOT_CERT_CONFIG_MAP => Err(format!("{ROOT_CERT_CONFIG_MAP} is the ConfigMap of the roots; name another one")),
        name if name.len() <= 253 && name.split('.').all(label) => Ok(name.into()),
        _ => Err(format!("{name:?} is no name of a ConfigMap: lower-case letters, digits, '-' and '.'")),
    }
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

    /// The revision's name, also of the one that was given none.
    pub fn revision(&self) -> &str {
        if self.revision.is_empty() { weft_model::DEFAULT_REVISION } else { &self.revision }
    }

    /// Whether an object is for this control plane ([`weft_model::is_for_revision`]).
    pub fn reads(&self, object: &weft_k8s_api::Object) -> bool {
        weft_model::is_for_revision(object, self.revision())
    }

    /// Names of the Services that may lead to this control plane.
    pub fn service_names(&self) -> Vec<String> {
        let mut services = vec!["istiod".to_string(), "weftd".to_string()];
        if !matches!(self.revision.as_str(), "" | "default") {
            services.push(format!("istiod-{}", self.revision));
        }
        services
    }

    /// DNS names that proxies may reach this control plane by.
    pub fn server_names(&self) -> Vec<String> {
        let services = self.service_names();
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
        let settings = Settings::try_parse_from([
            "weftd",
            "--revision",
            "canary",
            "--drain",
            "250ms",
            "--httpAddr",
            "0.0.0.0:8080",
            "--keepaliveMaxServerConnectionAge",
            "7m",
        ])
        .unwrap();
        assert_eq!(settings.mesh_config_map(), "istio-canary");
        assert_eq!(settings.drain, Duration::from_millis(250));
        // What the manifests say.
        assert_eq!((settings.http_addr, settings.max_connection_age), (Some(any(8080)), Duration::from_secs(420)));
        assert!(settings.server_names().contains(&"istiod-canary.istio-system.svc".to_string()));
        assert!(settings.server_names().contains(&"istiod.istio-system.svc.cluster.local".to_string()));
        assert_eq!(settings.crl_config_map, "istio-ca-crl");
        for (name, is) in [("", "istio-ca-crl"), ("crl.of-mesh", "crl.of-mesh")] {
            assert_eq!(Settings::parse_from(["weftd", "--crl-config-map", name]).crl_config_map, is);
        }
        for bad in [
            ["weftd", "--drain", "soon"],
            ["weftd", "--token-file", "/x"],
            ["weftd", "--crl-config-map", "istio-ca-root-cert"],
            ["weftd", "--crl-config-map", "Lists"],
        ] {
            assert!(Settings::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }
}
