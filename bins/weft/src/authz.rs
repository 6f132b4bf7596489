//! Who may call what, worked out from the objects as they are: the model and the generator make of them what each proxy
//! would be sent, and the proxy's own code compiles and decides it. Nothing is asked of a running proxy.
//!
//! Reading order: this file (the world: objects → workloads and listeners), [`decide`] (one question), [`lint`] (rules that
//! can never match).

pub mod decide;
pub mod lint;
#[cfg(test)]
mod tests;

use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use weft_core::well_known::{DEFAULT_TRUST_DOMAIN, ROOT_NAMESPACE};
use weft_k8s_api::istio::MeshConfig;
use weft_k8s_api::kinds::by_kind;
use weft_model::{Inputs, KINDS, MeshSnapshot, Service, Settings, Workload, build};
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::core::v3::{Node, TransportSocket, transport_socket as core_socket};
use weft_proto::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
use weft_proto::type_url;
use weft_proxy_config::{ConfigBuilder, ListenAddress, Listener, TrafficDirection, Update, Upsert};
use weft_store::client::ListOptions;
use weft_store::{ApiClient, ClientError};
use weft_xds_gen::{GenCache, ProxyResources, ProxyView, ResourceMap};

/// The listener for everything that is redirected to a proxy from outside.
const VIRTUAL_INBOUND: &str = "virtualInbound";
/// SDS name of a workload's own certificate.
const WORKLOAD_CERTIFICATE: &str = "default";
/// Address of callers of whom no address is known.
pub const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// The mesh as its objects describe it.
pub struct World {
    /// What the control plane's model makes of the objects.
    pub snapshot: Arc<MeshSnapshot>,
    generator: GenCache,
}

/// Who calls.
#[derive(Debug, Clone, PartialEq)]
pub struct Caller {
    /// What users call it: `NAMESPACE/WORKLOAD`, or an identity.
    pub name: String,
    /// Its identity, when it has a proxy; without one it calls in plain text.
    pub identity: Option<String>,
    /// Its address.
    pub address: IpAddr,
    /// The workload, when one is meant: how it calls is what its own proxy is told.
    pub workload: Option<Arc<Workload>>,
}

/// How a caller's proxy calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// With its identity, where the other side takes mutual TLS.
    MutualTls,
    /// Without: a DestinationRule has it call otherwise.
    PlainText,
    /// Without: it knows no such host and port, as a Sidecar or `exportTo` hides them. What is not known it sends on as it is
    /// (PassthroughCluster), or refuses (REGISTRY_ONLY).
    NotTold,
    /// There is none.
    NoIdentity,
}

/// What is called: a workload's port.
#[derive(Debug, Clone)]
pub struct Destination {
    /// What users call it: `NAMESPACE/NAME`.
    pub name: String,
    /// One of its workloads; all are guarded alike.
    pub workload: Arc<Workload>,
    /// Host that clients dial, for HTTP's authority and SNI.
    pub host: String,
    /// Subset that a route chose, with settings of its own in the destination rule; empty without one.
    pub subset: String,
    /// Port that clients dial.
    pub port: u16,
    /// Port of the workload.
    pub target_port: u16,
    /// HTTP is spoken on it, as far as the service says.
    pub is_http: bool,
}

impl World {
    /// Reads every object that the model knows from an API server. Kinds that it does not serve count as empty.
    ///
    /// # Errors
    /// When it does not answer, may not be asked, or the mesh config cannot be used.
    pub async fn read(client: &ApiClient, namespace: &str) -> anyhow::Result<Self> {
        Ok(Self::of(&read_inputs(client, namespace).await?))
    }

    /// From objects at hand.
    pub fn of(inputs: &Inputs) -> Self {
        Self { snapshot: Arc::new(build(inputs, None)), generator: GenCache::default() }
    }

    /// Workloads by `NAMESPACE/NAME`, one of each group of replicas, those with a proxy first.
    pub fn workloads(&self) -> BTreeMap<String, Arc<Workload>> {
        let mut all: Vec<&Arc<Workload>> = self.snapshot.workloads_by_name.values().collect();
        all.sort_by_key(|w| (!w.in_mesh, w.namespace.clone(), w.name.clone()));
        let mut out = BTreeMap::new();
        for workload in all {
            out.entry(format!("{}/{}", workload.namespace, workload.workload_name)).or_insert_with(|| workload.clone());
        }
        out
    }

    /// The live callers of the mesh, one for each group of replicas.
    pub fn callers(&self) -> Vec<Caller> {
        self.workloads().into_iter().map(|(name, workload)| caller(name, &workload)).collect()
    }

    /// What a user means as a source: `NAMESPACE/NAME`, `NAME[.NAMESPACE]` of a pod or its owner, a SPIFFE ID or principal
    /// (`td/ns/NS/sa/SA`), `sa/NAME[.NAMESPACE]`, or an address.
    ///
    /// # Errors
    /// When nothing is meant.
    pub fn source(&self, text: &str, namespace: &str) -> anyhow::Result<Caller> {
        if let Ok(address) = text.parse::<IpAddr>() {
            let known = self.snapshot.workloads.get(&address);
            return Ok(known.map_or_else(
                || Caller { name: text.into(), identity: None, address, workload: None },
                |workload| caller(format!("{}/{}", workload.namespace, workload.workload_name), workload),
            ));
        }
        let id = text.strip_prefix("spiffe://").unwrap_or(text);
        if let [_, "ns", ns, "sa", account] = id.split('/').collect::<Vec<_>>()[..] {
            return Ok(self.account(&format!("spiffe://{id}"), ns, account));
        }
        if let Some(account) = text.strip_prefix("sa/") {
            let (account, ns) = account.rsplit_once('.').unwrap_or((account, namespace));
            let id = format!("spiffe://{}/ns/{ns}/sa/{account}", self.snapshot.settings.trust_domain);
            return Ok(self.account(&id, ns, account));
        }
        let (name, workload) = self.workload(text, namespace).with_context(|| {
            format!("source {text:?} is no workload of the mesh; name a pod, its owner, sa/ACCOUNT.NS, a SPIFFE ID or an address")
        })?;
        Ok(caller(name, &workload))
    }

    /// An account, at the address of one of its workloads.
    fn account(&self, identity: &str, namespace: &str, account: &str) -> Caller {
        let runs =
            self.snapshot.workloads_by_name.values().find(|w| w.namespace == namespace && w.service_account == account);
        let address = runs.and_then(|w| w.addresses.first().copied()).unwrap_or(SOMEWHERE);
        let name = format!("sa/{account}.{namespace}");
        Caller { name, identity: Some(identity.into()), address, workload: None }
    }

    /// What a user means as a destination: a service's host (short or full), or a workload; with the port that is dialled.
    ///
    /// # Errors
    /// When nothing is meant, it has no proxy, or the port is not clear.
    pub fn destination(&self, text: &str, namespace: &str, port: Option<u16>) -> anyhow::Result<Destination> {
        let (text, port) = match text.rsplit_once(':') {
            Some((host, number)) if port.is_none() => {
                (host, Some(number.parse().context("the port of the destination")?))
            }
            _ => (text, port),
        };
        if let Some(service) = self.service(text.strip_prefix("svc/").unwrap_or(text), namespace) {
            return self.of_service(&service, port);
        }
        let (name, workload) = self
            .workload(text, namespace)
            .with_context(|| format!("destination {text:?} is neither a service nor a workload of the mesh"))?;
        self.of_workload(name, &workload, port)
    }

    /// The service that a client in `namespace` means by a short or a full host.
    pub fn service(&self, text: &str, namespace: &str) -> Option<Arc<Service>> {
        let domain = &self.snapshot.settings.domain;
        let (name, ns) = text.rsplit_once('.').unwrap_or((text, namespace));
        [
            text.to_string(),
            format!("{text}.{namespace}.svc.{domain}"),
            format!("{name}.{ns}.svc.{domain}"),
            format!("{text}.{domain}"),
        ]
        .iter()
        .find_map(|host| self.snapshot.service_for(host, namespace).cloned())
    }

    fn of_service(&self, service: &Service, port: Option<u16>) -> anyhow::Result<Destination> {
        let ports: Vec<String> = service.ports.iter().map(|p| p.number.to_string()).collect();
        let chosen = match port {
            Some(number) => service.ports.iter().find(|p| p.number == number),
            None => service.ports.iter().find(|p| p.protocol.is_http()).or(service.ports.first()),
        };
        let Some(chosen) = chosen else {
            bail!("service {} has no such port; it has {}", service.host, ports.join(", "));
        };
        let Some(found) = self.behind(service, chosen.number).into_iter().find_map(|(_, found)| found) else {
            bail!(
                "service {} has no live workload behind port {}; nothing can be decided",
                service.host,
                chosen.number
            );
        };
        Ok(Destination { name: format!("{}/{}", service.namespace, service.name), ..found })
    }

    /// The endpoints of a service's port: their workloads as destinations, or what is none by its address.
    pub fn behind(&self, service: &Service, port: u16) -> Vec<(String, Option<Destination>)> {
        let Some(chosen) = service.ports.iter().find(|p| p.number == port) else { return Vec::new() };
        let endpoints = self.snapshot.endpoints_of(service, port).into_iter().flat_map(|all| all.iter());
        let one = |endpoint: &weft_model::Endpoint| match (&endpoint.address, &endpoint.workload) {
            (weft_model::EndpointAddress::Ip(_, target_port), Some(workload)) => {
                let name = format!("{}/{}", workload.namespace, workload.workload_name);
                let there = Destination {
                    name: name.clone(),
                    workload: workload.clone(),
                    host: service.host.to_string(),
                    subset: String::new(),
                    port,
                    target_port: *target_port,
                    is_http: chosen.protocol.is_http() || chosen.protocol.is_unknown(),
                };
                (name, Some(there))
            }
            (weft_model::EndpointAddress::Ip(ip, port), None) => {
                (std::net::SocketAddr::new(*ip, *port).to_string(), None)
            }
            (weft_model::EndpointAddress::Name(name, port), _) => (format!("{name}:{port}"), None),
            (weft_model::EndpointAddress::Unix(path), _) => (format!("unix:{path}"), None),
        };
        endpoints.map(one).collect()
    }

    /// A workload's port: of the services that lead to it, else of its containers.
    ///
    /// # Errors
    /// When it is not clear which.
    pub fn of_workload(
        &self,
        name: String,
        workload: &Arc<Workload>,
        port: Option<u16>,
    ) -> anyhow::Result<Destination> {
        let instances = self.snapshot.service_instances(workload);
        let mut fits = instances.iter().filter(|i| port.is_none_or(|p| i.target_port == p || i.port.number == p));
        let best = fits.clone().find(|i| i.port.protocol.is_http()).or_else(|| fits.next());
        let of_instance = best.map(|instance| Destination {
            name: name.clone(),
            workload: workload.clone(),
            host: instance.service.host.to_string(),
            subset: String::new(),
            port: instance.port.number,
            target_port: instance.target_port,
            is_http: instance.port.protocol.is_http() || instance.port.protocol.is_unknown(),
        });
        let bare = || {
            let port = port.or_else(|| workload.container_ports.first().map(|(number, _)| *number))?;
            let (host, workload) = (workload.name.clone(), workload.clone());
            let subset = String::new();
            Some(Destination { name: name.clone(), workload, host, subset, port, target_port: port, is_http: true })
        };
        of_instance.or_else(bare).with_context(|| format!("no service leads to {name}; say which port: --port"))
    }

    fn workload(&self, text: &str, namespace: &str) -> Option<(String, Arc<Workload>)> {
        let plain = text.split_once('/').filter(|(kind, _)| by_word(kind)).map_or(text, |(_, name)| name);
        let (ns, name) = match plain.split_once('/') {
            Some((ns, name)) => (ns, name),
            None => match plain.rsplit_once('.') {
                Some((name, ns)) if self.snapshot.namespaces.contains_key(ns) => (ns, name),
                _ => (namespace, plain),
            },
        };
        let key = format!("{ns}/{name}");
        let pod = self.snapshot.workloads_by_name.get(&key).cloned();
        let found = pod.or_else(|| self.workloads().remove(&key))?;
        Some((format!("{ns}/{}", found.workload_name), found))
    }

    /// The listener behind which the destination is, as its proxy is sent it, compiled by the proxy's own code.
    ///
    /// # Errors
    /// When the workload has no proxy, nothing listens there, or the proxy would refuse the listener.
    pub fn listener(&self, destination: &Destination) -> anyhow::Result<Arc<Listener>> {
        let (workload, port) = (&*destination.workload, destination.target_port);
        let name = format!("{}/{}", workload.namespace, workload.name);
        if !workload.in_mesh && !is_gateway(workload) {
            bail!("{name} has no proxy: nothing guards it");
        }
        let listeners = self.listeners(workload)?;
        if is_gateway(workload) {
            let found = listeners.into_iter().find(|l| listens_on(l, port));
            return found.with_context(|| format!("no Gateway has {name} listen on port {port}"));
        }
        // What is sent to the workload's address comes by the listener for all that is redirected; others are for addresses
        // of their own, and count where there is no redirection.
        let mut inbound: Vec<_> = listeners.into_iter().filter(|l| l.direction == TrafficDirection::Inbound).collect();
        inbound.sort_by_key(|l| (!l.use_original_dst && &*l.name != VIRTUAL_INBOUND, !listens_on(l, port)));
        inbound.into_iter().next().with_context(|| format!("the proxy of {name} has no inbound listener"))
    }

    /// Everything that the workload's proxy is sent.
    ///
    /// # Errors
    /// When the workload's name or address makes no proxy.
    pub fn resources(&self, workload: &Workload) -> anyhow::Result<ProxyResources> {
        Ok(self.generator.generate(&self.snapshot, &self.view(workload)?))
    }

    fn listeners(&self, workload: &Workload) -> anyhow::Result<Vec<Arc<Listener>>> {
        let mut builder = ConfigBuilder::default();
        apply(&mut builder, type_url::LISTENER, &self.resources(workload)?.listeners)?;
        Ok(all_listeners(&builder))
    }

    /// How the caller's own proxy calls: with its identity over mutual TLS of the mesh where the other side takes it, unless a
    /// DestinationRule says otherwise, or the proxy is not told of the host. Callers that are no workload do as the mesh does.
    ///
    /// # Errors
    /// When the caller's configuration cannot be made.
    pub fn offers_mutual_tls(&self, caller: &Caller, destination: &Destination) -> anyhow::Result<Offer> {
        let proxied = |w: &&Arc<Workload>| w.in_mesh || is_gateway(w);
        let Some(workload) = caller.workload.as_ref().filter(proxied) else {
            return Ok(if caller.identity.is_some() { Offer::MutualTls } else { Offer::NoIdentity });
        };
        let resources = self.resources(workload)?;
        let name = format!("outbound|{}|{}|{}", destination.port, destination.subset, destination.host);
        let Some(found) = resources.clusters.iter().find(|cluster| *cluster.name == *name) else {
            return Ok(Offer::NotTold);
        };
        let cluster: Cluster = weft_proto::unpack(&found.any).context("the cluster of the destination")?;
        let sockets = cluster.transport_socket_matches.iter().filter_map(|m| m.transport_socket.as_ref());
        let shows_identity = |socket: &TransportSocket| {
            let Some(core_socket::ConfigType::TypedConfig(any)) = &socket.config_type else { return false };
            let context = weft_proto::unpack::<UpstreamTlsContext>(any);
            context.ok().and_then(|c| c.common_tls_context).is_some_and(|common| {
                common.tls_certificate_sds_secret_configs.iter().any(|secret| secret.name == WORKLOAD_CERTIFICATE)
            })
        };
        let shows = sockets.chain(&cluster.transport_socket).any(shows_identity);
        Ok(if shows { Offer::MutualTls } else { Offer::PlainText })
    }

    fn view(&self, workload: &Workload) -> anyhow::Result<ProxyView> {
        let ip = workload.addresses.first().copied().unwrap_or(SOMEWHERE);
        let (name, ns, domain) = (&workload.name, &workload.namespace, &self.snapshot.settings.domain);
        let metadata = serde_json::json!({"WEFT": "1", "NAMESPACE": ns, "LABELS": *workload.labels});
        let kind = if is_gateway(workload) { "router" } else { "sidecar" };
        let node: Node = weft_proto::json::from_json(&serde_json::json!({
            "id": format!("{kind}~{ip}~{name}.{ns}~{ns}.svc.{domain}"),
            "metadata": metadata,
        }))
        .context("the node of the workload")?;
        Ok(ProxyView::new(&node).map_err(anyhow::Error::msg)?.with_workload(&self.snapshot))
    }
}

/// Puts resources of a type into a proxy's configuration.
///
/// # Errors
/// The first one that the proxy would refuse, and why.
pub fn apply(builder: &mut ConfigBuilder, type_url: &str, resources: &ResourceMap) -> anyhow::Result<()> {
    let upsert = |r: &Arc<weft_xds_gen::Resource>| Upsert {
        name: r.name.to_string(),
        version: String::new(),
        any: r.any.clone(),
    };
    let upserts = resources.iter().map(upsert).collect();
    let applied = builder.apply(&Update { type_url: type_url.into(), upserts, removals: Vec::new() });
    match applied.refused.first() {
        Some((resource, reason)) => bail!("the proxy would refuse {resource}: {reason}"),
        None => Ok(()),
    }
}

/// The listeners of a configuration. Those that wait for something which objects alone do not have (a certificate, say) count too.
pub fn all_listeners(builder: &ConfigBuilder) -> Vec<Arc<Listener>> {
    builder.snapshot().listeners.values().chain(builder.warming_listeners()).cloned().collect()
}

fn listens_on(listener: &Listener, port: u16) -> bool {
    listener.addresses.iter().any(|address| matches!(address, ListenAddress::Tcp(at) if at.port() == port))
}

/// A pod that is a proxy and nothing else has no sidecar, and an identity all the same. The model does not say which pods
/// are; they are told by the label that gateways are bound by. An application with a proxy beside it may carry such a label, and
/// is none.
pub fn is_gateway(workload: &Workload) -> bool {
    let labelled = workload.labels.get("istio").is_some_and(|name| name != "pilot")
        || workload.labels.contains_key("gateway.networking.k8s.io/gateway-name");
    labelled && !workload.in_mesh
}

fn by_word(kind: &str) -> bool {
    matches!(
        kind,
        "pod"
            | "po"
            | "deploy"
            | "deployment"
            | "deployments"
            | "sts"
            | "statefulset"
            | "ds"
            | "daemonset"
            | "workload"
    )
}

fn caller(name: String, workload: &Arc<Workload>) -> Caller {
    Caller {
        name,
        identity: (workload.in_mesh || is_gateway(workload)).then(|| workload.identity.clone()),
        address: workload.addresses.first().copied().unwrap_or(SOMEWHERE),
        workload: Some(workload.clone()),
    }
}

/// The mesh config of a ConfigMap's text; empty text gives the defaults.
///
/// # Errors
/// Where it is wrong.
pub fn mesh_config(text: &str) -> anyhow::Result<MeshConfig> {
    if text.trim().is_empty() {
        return Ok(MeshConfig::with_defaults());
    }
    let parsed = weft_k8s_api::validate::parse_mesh_config(text, &mut Vec::new());
    parsed.map_err(anyhow::Error::msg).context("mesh config")
}

/// Reads every object that the model knows from an API server, and the mesh config of `namespace`. Kinds that it does not serve
/// count as empty.
///
/// # Errors
/// When it does not answer, may not be asked, or the mesh config cannot be used.
pub async fn read_inputs(client: &ApiClient, namespace: &str) -> anyhow::Result<Inputs> {
    let config_map = by_kind("", "ConfigMap").context("the kind ConfigMap is not known")?;
    let mesh = match client.get(config_map, namespace, "istio").await {
        Ok(object) => object.body.get("data").and_then(|d| d["mesh"].as_str()).unwrap_or_default().to_string(),
        Err(error) if error.is_not_found() => String::new(),
        Err(error) => return Err(error).context("mesh config"),
    };
    let mesh = mesh_config(&mesh)?;
    let mut inputs = Inputs::new(Arc::new(mesh.clone()), Arc::new(settings(&mesh, namespace)));
    for (group, kind) in KINDS {
        let Some(info) = by_kind(group, kind) else { continue };
        match client.list(info, None, &ListOptions::default()).await {
            Ok(list) => inputs.set(group, kind, list.items.into_iter().map(Arc::new).collect()),
            Err(ClientError::NotFound(_)) => {}
            // Who may not read Secrets can still ask who may call whom.
            Err(ClientError::Forbidden(_)) if *kind == "Secret" => {}
            Err(error) => return Err(error).with_context(|| format!("cannot list {}", info.plural)),
        }
    }
    Ok(inputs)
}

/// What the control plane is told, as far as objects say it.
pub fn settings(mesh: &MeshConfig, namespace: &str) -> Settings {
    let or = |text: &str, default: &str| if text.is_empty() { default.to_string() } else { text.to_string() };
    let namespace = if namespace.is_empty() { ROOT_NAMESPACE } else { namespace };
    Settings {
        trust_domain: or(&mesh.trust_domain, DEFAULT_TRUST_DOMAIN),
        root_namespace: or(&mesh.root_namespace, namespace),
        ..Settings::default()
    }
}
