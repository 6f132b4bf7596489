//! All that a mesh proxy is told, put together. Each field says where it comes from.

use super::environment::{Environment, downward_file};
use super::proxy_config::{ProxyConfig, duration};
use crate::cli::{Engine, MeshArgs, log_filter};
use crate::health::ReadinessProbe;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use weft_core::node::NodeType;
use weft_core::well_known::{DEFAULT_CLUSTER_ID, DEFAULT_DOMAIN, annotation, path, port};
use weft_dataplane::demand::Limits;
use weft_identity::{SpiffeId, TrustDomain};
use weft_sds::SvidConfig;
use weft_tls::KeyKind;

/// The mesh's word on whether a proxy takes only the configuration that it uses.
const ON_DEMAND: &str = "ISTIO_META_WEFT_ON_DEMAND";
/// Where the control plane is unless told otherwise.
const DEFAULT_DISCOVERY: &str = "istiod.istio-system.svc:15012";
/// The control plane's name when it is reached by address.
const DEFAULT_DISCOVERY_NAME: &str = "istiod.istio-system.svc";

/// The application's own metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scrape {
    /// Port.
    pub port: u16,
    /// Path.
    pub path: String,
}

/// All that a mesh proxy is told.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// Sidecar or gateway.
    pub role: NodeType,
    /// Which program moves the traffic.
    pub engine: Engine,
    /// Envoy, for that engine.
    pub envoy_path: PathBuf,
    /// `POD_NAME`.
    pub pod: String,
    /// `POD_NAMESPACE`.
    pub namespace: String,
    /// `INSTANCE_IP`, comma separated; the machine's own addresses when not set.
    pub ips: Vec<IpAddr>,
    /// `SERVICE_ACCOUNT`.
    pub service_account: String,
    /// `TRUST_DOMAIN`; without it the authority says who we are.
    pub trust_domain: Option<TrustDomain>,
    /// `--domain`, else `<namespace>.svc.cluster.local`.
    pub dns_domain: String,
    /// Labels of the pod: downward API file, `ISTIO_METAJSON_LABELS`.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
    /// Control plane, `HOST:PORT`.
    pub discovery_address: String,
    /// The name that the control plane's certificate must have: `ISTIOD_SAN`, else the host of the address.
    pub discovery_name: String,
    /// Certificate authority: `CA_ADDR`, else the control plane.
    pub ca_address: String,
    /// Worker threads; 0 = one per core.
    pub concurrency: usize,
    /// Proxy config `drainDuration`; 45 s.
    pub drain_duration: Duration,
    /// Proxy config `terminationDrainDuration`, or `TERMINATION_DRAIN_DURATION_SECONDS`; 5 s.
    pub termination_drain: Duration,
    /// `EXIT_ON_ZERO_ACTIVE_CONNECTIONS`: after SIGTERM wait for connections to end, however long that takes.
    pub exit_on_zero_connections: bool,
    /// `MINIMUM_DRAIN_DURATION`: with the former, wait at least so long; 5 s.
    pub minimum_drain: Duration,
    /// Name of the service, for statistics.
    pub service_cluster: String,
    /// Cluster we are in: `ISTIO_META_CLUSTER_ID`.
    pub cluster_id: String,
    /// `ISTIO_META_DNS_CAPTURE`.
    pub dns_capture: bool,
    /// Bounds of what is asked for, when the proxy takes only the configuration that it uses: annotation
    /// `weft.dev/on-demand`, else `ISTIO_META_WEFT_ON_DEMAND`; sidecars of our own engine alone.
    pub on_demand: Option<Limits>,
    /// Where the DNS server listens: `DNS_PROXY_ADDR`; 127.0.0.1:15053.
    pub dns_address: String,
    /// Lifetime asked for: `SECRET_TTL`; 24 h.
    pub secret_ttl: Duration,
    /// Kind of the workload's key: `ECC_SIGNATURE_ALGORITHM` with `ECC_CURVE`, or `WORKLOAD_RSA_KEY_SIZE`; ECDSA P-256.
    pub key: KeyKind,
    /// Signer to ask for: `ISTIO_META_CERT_SIGNER`; empty = the mesh's usual one.
    pub cert_signer: String,
    /// Folder to write the identity to: `OUTPUT_CERTS`; none = it stays in memory.
    pub output_certs: Option<PathBuf>,
    /// `SECRET_GRACE_PERIOD_RATIO`; 0.5.
    pub grace_ratio: f64,
    /// Roots file: `WEFT_ROOT_CERT`; `/var/run/secrets/istio/root-cert.pem`.
    pub root_cert_path: PathBuf,
    /// Token file: `WEFT_TOKEN`; `/var/run/secrets/tokens/istio-token`.
    pub token_path: PathBuf,
    /// SDS socket for Envoy: `WEFT_SDS_SOCKET`; `/var/run/secrets/workload-spiffe-uds/socket`.
    pub sds_socket: PathBuf,
    /// Further roots to trust, PEM.
    pub extra_roots: Vec<String>,
    /// `ISTIO_PROMETHEUS_ANNOTATIONS`.
    pub scrape: Option<Scrape>,
    /// Ports of the agent.
    pub ports: Ports,
    /// Log filter.
    pub log_filter: String,
    /// Log lines as JSON.
    pub log_json: bool,
    /// Proxy config, as it was given, for the node's metadata.
    pub proxy_config_text: Option<String>,
    /// How a workload that registers itself is asked whether it takes traffic.
    pub readiness_probe: Option<ReadinessProbe>,
    /// Variables.
    pub environment: Environment,
}

/// Ports of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Admin: proxy config `proxyAdminPort`; 15000.
    pub admin: u16,
    /// Merged metrics: proxy config `statusPort`; 15020.
    pub status: u16,
    /// Readiness: `ENVOY_STATUS_PORT`; 15021.
    pub readiness: u16,
    /// Prometheus: `ENVOY_PROMETHEUS_PORT`; 15090.
    pub metrics: u16,
}

impl AgentSettings {
    /// Reads everything.
    ///
    /// # Errors
    /// A sentence that names the variable or field, and what would be right.
    pub fn read(role: NodeType, args: &MeshArgs, environment: Environment) -> Result<Self, String> {
        let annotations = downward_file(path::POD_ANNOTATIONS.as_ref());
        let mut labels = downward_file(path::POD_LABELS.as_ref());
        labels.extend(json_map(&environment, "ISTIO_METAJSON_LABELS")?);
        Self::assemble(role, args, environment, labels, annotations)
    }

    fn assemble(
        role: NodeType,
        args: &MeshArgs,
        environment: Environment,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let proxy_config = proxy_config(&environment, &annotations)?;
        let proxy_config_text = environment.get("PROXY_CONFIG").map(str::to_owned);
        let env = environment.with_defaults(proxy_config.proxy_metadata.clone());
        let namespace = required(&env, "POD_NAMESPACE")?;
        let discovery_address = proxy_config.discovery_address.clone().unwrap_or_else(|| DEFAULT_DISCOVERY.to_owned());
        let discovery_address = with_port(&discovery_address);
        let termination = duration(
            "terminationDrainDuration",
            proxy_config.termination_drain_duration.as_deref(),
            Duration::from_secs(5),
        )?;
        let app = labels.get("app").or_else(|| labels.get(weft_core::well_known::label::CANONICAL_NAME));
        let service_cluster = format!("{}.{namespace}", app.map_or("istio-proxy", String::as_str));
        Ok(Self {
            role,
            engine: args.engine,
            envoy_path: args.envoy_path.clone(),
            pod: required(&env, "POD_NAME")?,
            ips: instance_ips(&env)?,
            service_account: env.get("SERVICE_ACCOUNT").unwrap_or("default").to_owned(),
            trust_domain: trust_domain(&env)?,
            dns_domain: args.domain.clone().unwrap_or_else(|| format!("{namespace}.svc.{DEFAULT_DOMAIN}")),
            discovery_name: discovery_name(&env, &discovery_address),
            ca_address: with_port(env.get("CA_ADDR").unwrap_or(&discovery_address)),
            concurrency: args.concurrency.or(proxy_config.concurrency).unwrap_or(0),
            drain_duration: duration("drainDuration", proxy_config.drain_duration.as_deref(), Duration::from_secs(45))?,
            termination_drain: env.duration("TERMINATION_DRAIN_DURATION_SECONDS")?.unwrap_or(termination),
            exit_on_zero_connections: env.flag("EXIT_ON_ZERO_ACTIVE_CONNECTIONS"),
            minimum_drain: env.duration("MINIMUM_DRAIN_DURATION")?.unwrap_or(Duration::from_secs(5)),
            service_cluster: args
                .service_cluster
                .clone()
                .or(proxy_config.service_cluster)
                .filter(|name| !name.is_empty() && name != "istio-proxy")
                .unwrap_or(service_cluster),
            cluster_id: env.get("ISTIO_META_CLUSTER_ID").unwrap_or(DEFAULT_CLUSTER_ID).to_owned(),
            dns_capture: env.flag("ISTIO_META_DNS_CAPTURE"),
            on_demand: on_demand(role, args.engine, &env, &annotations)?,
            dns_address: env.get("DNS_PROXY_ADDR").map_or_else(|| format!("127.0.0.1:{}", port::DNS), local_address),
            secret_ttl: env.duration("SECRET_TTL")?.unwrap_or(Duration::from_secs(24 * 3600)),
            key: key_kind(&env)?,
            cert_signer: env.get("ISTIO_META_CERT_SIGNER").unwrap_or_default().to_owned(),
            output_certs: env.get("OUTPUT_CERTS").map(PathBuf::from),
            grace_ratio: ratio(&env, "SECRET_GRACE_PERIOD_RATIO", 0.5)?,
            root_cert_path: env.get("WEFT_ROOT_CERT").unwrap_or(path::ROOT_CERT).into(),
            token_path: env.get("WEFT_TOKEN").unwrap_or(path::TOKEN).into(),
            sds_socket: env.get("WEFT_SDS_SOCKET").unwrap_or(path::SDS_SOCKET).into(),
            extra_roots: proxy_config.ca_certificates_pem,
            scrape: scrape(&env)?,
            ports: Ports {
                admin: proxy_config.proxy_admin_port.unwrap_or(port::ADMIN),
                status: proxy_config.status_port.unwrap_or(port::MERGED_METRICS),
                readiness: port_of(&env, "ENVOY_STATUS_PORT", port::READINESS)?,
                metrics: port_of(&env, "ENVOY_PROMETHEUS_PORT", port::PROXY_METRICS)?,
            },
            log_filter: log_levels(args),
            log_json: args.log_as_json,
            proxy_config_text,
            readiness_probe: proxy_config.readiness_probe,
            discovery_address,
            namespace,
            labels,
            annotations,
            environment: env,
        })
    }

    /// Our own identity, when we know our trust domain.
    ///
    /// # Errors
    /// When namespace or service account cannot be part of one.
    pub fn identity(&self) -> Result<Option<SpiffeId>, String> {
        let id = |domain| SpiffeId::workload(domain, &self.namespace, &self.service_account);
        self.trust_domain.as_ref().map(id).transpose().map_err(|error| error.to_string())
    }

    /// Settings of the identity's keeper.
    ///
    /// # Errors
    /// As [`identity`](Self::identity).
    pub fn svid_config(&self) -> Result<SvidConfig, String> {
        Ok(SvidConfig {
            ca_server_name: discovery_name(&self.environment, &self.ca_address),
            root_cert_path: self.root_cert_path.clone(),
            token_path: self.token_path.clone(),
            extra_roots_pem: self.extra_roots.join("\n"),
            identity: self.identity()?,
            cluster_id: self.cluster_id.clone(),
            key: self.key,
            signer: self.cert_signer.clone(),
            output: self.output_certs.clone(),
            ttl: self.secret_ttl,
            grace_ratio: self.grace_ratio,
            ..SvidConfig::new(&self.ca_address)
        })
    }
}

fn proxy_config(env: &Environment, annotations: &BTreeMap<String, String>) -> Result<ProxyConfig, String> {
    let given = ProxyConfig::parse("environment variable PROXY_CONFIG", env.get("PROXY_CONFIG").unwrap_or_default())?;
    let annotated = annotations.get(annotation::PROXY_CONFIG).map(String::as_str).unwrap_or_default();
    let source = format!("annotation {}", annotation::PROXY_CONFIG);
    Ok(given.overridden_by(ProxyConfig::parse(&source, annotated)?))
}

/// Whether the proxy takes only the configuration that it uses: the pod's word, else the mesh's.
fn on_demand(
    role: NodeType,
    engine: Engine,
    env: &Environment,
    annotations: &BTreeMap<String, String>,
) -> Result<Option<Limits>, String> {
    let wanted = match annotations.get(annotation::ON_DEMAND).map(String::as_str) {
        None => env.flag(ON_DEMAND),
        Some("true") => true,
        Some("false") => false,
        Some(other) => return Err(format!("annotation {}: {other:?} must be true or false", annotation::ON_DEMAND)),
    };
    if !wanted {
        return Ok(None);
    }
    if role != NodeType::Sidecar || engine != Engine::Weft {
        let who = if role == NodeType::Sidecar { "Envoy" } else { "a gateway" };
        tracing::warn!("on-demand configuration is not for {who}: it takes all of it");
        return Ok(None);
    }
    let defaults = Limits::default();
    Ok(Some(Limits {
        wait: env.duration("WEFT_ON_DEMAND_WAIT")?.unwrap_or(defaults.wait),
        idle: env.duration("WEFT_ON_DEMAND_IDLE")?.unwrap_or(defaults.idle),
        ..defaults
    }))
}

fn required(env: &Environment, name: &str) -> Result<String, String> {
    let hint = "a mesh proxy runs in a pod that the injector or the lab has set up";
    env.get(name).map(str::to_owned).ok_or_else(|| format!("environment variable {name} is not set; {hint}"))
}

fn trust_domain(env: &Environment) -> Result<Option<TrustDomain>, String> {
    let parse = |text: &str| TrustDomain::new(text).map_err(|e| format!("environment variable TRUST_DOMAIN: {e}"));
    env.get("TRUST_DOMAIN").map(parse).transpose()
}

fn instance_ips(env: &Environment) -> Result<Vec<IpAddr>, String> {
    let Some(text) = env.get("INSTANCE_IPS").or_else(|| env.get("INSTANCE_IP")) else { return own_addresses() };
    let parse =
        |ip: &str| ip.trim().parse().map_err(|_| format!("environment variable INSTANCE_IP: {ip:?} is no IP address"));
    text.split(',').filter(|ip| !ip.trim().is_empty()).map(parse).collect()
}

/// Addresses of the machine that are not loopback or link-local.
pub(crate) fn own_addresses() -> Result<Vec<IpAddr>, String> {
    let all = nix::ifaddrs::getifaddrs().map_err(|error| format!("reading the network interfaces: {error}"))?;
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    let mut ips: Vec<IpAddr> = all
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .filter(usable)
        .collect();
    ips.sort_by_key(|ip| ip.is_ipv6());
    match ips.is_empty() {
        true => Err("environment variable INSTANCE_IP is not set, and no interface has an address".into()),
        false => Ok(ips),
    }
}

fn with_port(address: &str) -> String {
    // The last colon of an IPv6 address in brackets belongs to the port alone.
    let has_port = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')));
    if has_port { address.to_owned() } else { format!("{address}:{}", port::XDS) }
}

fn discovery_name(env: &Environment, address: &str) -> String {
    if let Some(name) = env.get("ISTIOD_SAN") {
        return name.to_owned();
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    match host.parse::<IpAddr>().is_ok() || host == "localhost" {
        true => DEFAULT_DISCOVERY_NAME.to_owned(),
        false => host.to_owned(),
    }
}

/// `localhost:15053` and the like, which is how Istio's own setting is written.
fn local_address(text: &str) -> String {
    text.replace("localhost", "127.0.0.1")
}

fn ratio(env: &Environment, name: &str, default: f64) -> Result<f64, String> {
    let wrong = |text: &str| format!("environment variable {name}: {text:?} must be a number from 0 to 1");
    env.get(name).map_or(Ok(default), |text| match text.parse() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err(wrong(text)),
    })
}

fn key_kind(env: &Environment) -> Result<KeyKind, String> {
    let wrong =
        |name: &str, text: &str, right: &str| Err(format!("environment variable {name}: {text:?} must be {right}"));
    match (env.get("ECC_SIGNATURE_ALGORITHM"), env.get("WORKLOAD_RSA_KEY_SIZE")) {
        (Some("ECDSA"), _) | (None, None) => match env.get("ECC_CURVE") {
            None | Some("P256") => Ok(KeyKind::EcdsaP256),
            Some("P384") => Ok(KeyKind::EcdsaP384),
            Some(other) => wrong("ECC_CURVE", other, "P256 or P384"),
        },
        (Some(other), _) => wrong("ECC_SIGNATURE_ALGORITHM", other, "ECDSA"),
        (None, Some("2048")) => Ok(KeyKind::Rsa2048),
        (None, Some("3072")) => Ok(KeyKind::Rsa3072),
        (None, Some("4096")) => Ok(KeyKind::Rsa4096),
        (None, Some(other)) => wrong("WORKLOAD_RSA_KEY_SIZE", other, "2048, 3072 or 4096"),
    }
}

fn port_of(env: &Environment, name: &str, default: u16) -> Result<u16, String> {
    let wrong = |text: &str| format!("environment variable {name}: {text:?} is no port");
    env.get(name).map_or(Ok(default), |text| text.parse().map_err(|_| wrong(text)))
}

fn json_map(env: &Environment, name: &str) -> Result<BTreeMap<String, String>, String> {
    let wrong = |error| format!("environment variable {name} must be a JSON object of strings: {error}");
    env.get(name).map_or(Ok(BTreeMap::new()), |text| serde_json::from_str(text).map_err(wrong))
}

/// `{"scrape":"true","port":"9080","path":"/metrics"}`
fn scrape(env: &Environment) -> Result<Option<Scrape>, String> {
    let name = "ISTIO_PROMETHEUS_ANNOTATIONS";
    let given = json_map(env, name)?;
    if given.get("scrape").map(String::as_str) != Some("true") {
        return Ok(None);
    }
    let field = |name: &str| given.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let port = field("port").unwrap_or("80");
    let port = port.parse().map_err(|_| format!("environment variable {name}: {port:?} is no port"))?;
    let path = field("path").unwrap_or("/metrics");
    Ok(Some(Scrape { port, path: format!("/{}", path.trim_start_matches('/')) }))
}

fn log_levels(args: &MeshArgs) -> String {
    let general = args.log_output_level.as_deref().or(args.proxy_log_level.as_deref()).unwrap_or("info");
    let mut filter = log_filter(general.split(',').next().unwrap_or("info"));
    if let Some(level) = &args.proxy_log_level {
        filter.push_str(&format!(",weft_dataplane={}", log_filter(level)));
    }
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: [(&str, &str); 5] = [
        ("POD_NAME", "reviews-v1-abc"),
        ("POD_NAMESPACE", "default"),
        ("INSTANCE_IP", "10.244.0.5"),
        ("SERVICE_ACCOUNT", "bookinfo-reviews"),
        ("TRUST_DOMAIN", "cluster.local"),
    ];

    fn settings(more: &[(&str, &str)], annotations: &[(&str, &str)]) -> Result<AgentSettings, String> {
        let all: Vec<_> = POD.iter().chain(more).copied().collect();
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let labels = map(&[("app", "reviews")]);
        AgentSettings::assemble(
            NodeType::Sidecar,
            &MeshArgs::default(),
            Environment::of(&all),
            labels,
            map(annotations),
        )
    }

    #[test]
    fn defaults() {
        let settings = settings(&[], &[]).unwrap();
        assert_eq!(settings.discovery_address, "istiod.istio-system.svc:15012");
        assert_eq!(settings.ca_address, settings.discovery_address);
        assert_eq!(settings.discovery_name, "istiod.istio-system.svc");
        assert_eq!(settings.dns_domain, "default.svc.cluster.local");
        assert_eq!(settings.service_cluster, "reviews.default");
        assert_eq!((settings.drain_duration.as_secs(), settings.termination_drain.as_secs()), (45, 5));
        let id = settings.identity().unwrap().unwrap();
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/default/sa/bookinfo-reviews");
        assert!(!settings.dns_capture && settings.scrape.is_none());
    }

    #[test]
    fn what_is_given_wins() {
        let given = [
            ("PROXY_CONFIG", "discoveryAddress: 10.0.0.1:15012\nconcurrency: 2\nproxyMetadata: {SECRET_TTL: 10s}"),
            ("CA_ADDR", "ca.example"),
            ("ISTIO_META_DNS_CAPTURE", "true"),
            ("ISTIO_PROMETHEUS_ANNOTATIONS", r#"{"scrape":"true","port":"9080","path":"metrics"}"#),
            ("EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true"),
        ];
        let annotations = [("proxy.istio.io/config", "concurrency: 4\nterminationDrainDuration: 9s\n")];
        let settings = settings(&given, &annotations).unwrap();
        assert_eq!((settings.concurrency, settings.termination_drain.as_secs()), (4, 9));
        assert_eq!(
            (settings.discovery_name.as_str(), settings.ca_address.as_str()),
            (DEFAULT_DISCOVERY_NAME, "ca.example:15012")
        );
        assert_eq!(settings.secret_ttl.as_secs(), 10);
        assert_eq!(settings.scrape, Some(Scrape { port: 9080, path: "/metrics".into() }));
        assert!(settings.dns_capture && settings.exit_on_zero_connections);
        assert_eq!((settings.key, settings.output_certs), (KeyKind::EcdsaP256, None), "no key on disk unless asked");
        for (given, kind) in [
            (&[("WORKLOAD_RSA_KEY_SIZE", "4096")][..], KeyKind::Rsa4096),
            (&[("ECC_SIGNATURE_ALGORITHM", "ECDSA"), ("WORKLOAD_RSA_KEY_SIZE", "4096")], KeyKind::EcdsaP256),
            (&[("ECC_SIGNATURE_ALGORITHM", "ECDSA"), ("ECC_CURVE", "P384")], KeyKind::EcdsaP384),
        ] {
            assert_eq!(self::settings(given, &[]).unwrap().key, kind, "{given:?}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (name, value, says) in [
            ("POD_NAME", "", "POD_NAME"),
            ("INSTANCE_IP", "10.0.0", "INSTANCE_IP"),
            ("TRUST_DOMAIN", "Not Valid", "TRUST_DOMAIN"),
            ("SECRET_TTL", "soon", "SECRET_TTL"),
            ("SECRET_GRACE_PERIOD_RATIO", "2", "from 0 to 1"),
            ("ECC_SIGNATURE_ALGORITHM", "RSA", "must be ECDSA"),
            ("ECC_CURVE", "P521", "P256 or P384"),
            ("WORKLOAD_RSA_KEY_SIZE", "1024", "2048, 3072 or 4096"),
            ("PROXY_CONFIG", "concurrency: [", "PROXY_CONFIG"),
            ("ISTIO_PROMETHEUS_ANNOTATIONS", "{", "ISTIO_PROMETHEUS_ANNOTATIONS"),
        ] {
            let error = settings(&[(name, value)], &[]).unwrap_err();
            assert!(error.contains(says), "{name}: {error}");
        }
    }

    #[test]
    fn addresses() {
        for (address, full) in [("a", "a:15012"), ("a:1", "a:1"), ("[::1]", "[::1]:15012"), ("[::1]:2", "[::1]:2")] {
            assert_eq!(with_port(address), full);
        }
    }
}
