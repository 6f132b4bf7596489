//! Gateways of the Gateway API: which workloads serve them, and each listener as a Gateway of Istio's API.

use super::Problem;
use super::backends::{References, Referrer};
use super::read::{GatewaySpec, ListenerSpec, RouteKind};
use super::status::Finding;
use crate::certificates::{self, Problems};
use crate::kubernetes::ServiceSpec;
use crate::parsed::{Parsed, selects};
use crate::{Credential, Gateway, GatewayWorkloads, Labels, Workload};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use weft_k8s_api::gateway_api as api;
use weft_k8s_api::istio::{self, MeshConfig, ServerTlsMode, ServerTlsSettings};

/// Controllers that Weft answers to.
pub(crate) const CONTROLLERS: [&str; 2] = ["istio.io/gateway-controller", "weft.dev/gateway-controller"];
/// The class that needs no object.
const OWN_CLASS: &str = "istio";
/// Label of workloads and services that are made for one Gateway.
pub(crate) const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Option of a listener's TLS that names a mode of Istio's API.
const TLS_MODE_OPTION: &str = "gateway.istio.io/tls-terminate-mode";
/// Beginning of SDS names of secrets by namespace and name: only generated Gateways may have them.
const SECRET_SCHEME: &str = "kubernetes-gateway://";
/// Beginning of SDS names of config maps with CA certificates.
const CONFIG_MAP_SCHEME: &str = "configmap://";

/// A Gateway as it stands.
#[derive(Debug)]
pub(crate) struct GatewayState {
    pub object: Arc<Parsed<GatewaySpec>>,
    /// What is wrong with it as a whole.
    pub problem: Option<Problem>,
    /// Why no proxy serves it.
    pub unserved: Option<Problem>,
    /// Addresses at which it is reached.
    pub addresses: Vec<String>,
    pub listeners: Vec<ListenerState>,
}

/// A listener as it stands.
#[derive(Debug)]
pub(crate) struct ListenerState {
    pub spec: ListenerSpec,
    /// `namespace/name` of the Gateway of Istio's API that it stands for.
    pub id: String,
    /// Kinds that may attach.
    pub kinds: Vec<RouteKind>,
    /// What is wrong with it, by condition.
    pub accepted: Option<Problem>,
    pub conflicted: Option<Problem>,
    pub resolved: Option<Problem>,
    /// What is wrong and no condition is for.
    pub advice: Option<Problem>,
    /// `None` when it cannot be served.
    pub gateway: Option<Arc<Gateway>>,
}

/// What Gateways are looked up in.
pub(crate) struct Surroundings<'a> {
    pub classes: BTreeSet<(bool, &'a str)>,
    pub services: &'a [Arc<Parsed<ServiceSpec>>],
    pub workloads: &'a HashMap<String, Arc<Workload>>,
    pub secrets: &'a BTreeMap<(String, String), Arc<Credential>>,
    pub secret_problems: &'a Problems,
    /// SDS names of the certificates that listeners had so far.
    pub served: BTreeSet<String>,
    pub authorities: &'a BTreeMap<(String, String), Arc<Credential>>,
    pub references: &'a References<'a>,
    pub mesh: &'a MeshConfig,
}

/// SDS names of the certificates of Gateways.
pub(crate) fn certificates_of(gateways: &[Arc<Gateway>]) -> BTreeSet<String> {
    let settings = gateways.iter().flat_map(|g| &g.spec.servers).filter_map(|server| server.tls.as_ref());
    let names = settings.flat_map(|tls| std::iter::once(&tls.credential_name).chain(&tls.credential_names));
    names.filter(|name| name.starts_with(SECRET_SCHEME)).cloned().collect()
}

/// All Gateways of classes that are Weft's.
pub(crate) fn states(gateways: &[Arc<Parsed<GatewaySpec>>], around: &Surroundings<'_>) -> Vec<GatewayState> {
    let ours = |g: &&Arc<Parsed<GatewaySpec>>| {
        g.spec.class == OWN_CLASS || around.classes.contains(&(g.spec.old, g.spec.class.as_str()))
    };
    gateways.iter().filter(ours).map(|g| around.state(g)).collect()
}

/// Where a Gateway is served.
#[derive(Default)]
struct Served {
    workloads: Vec<GatewayWorkloads>,
    addresses: Vec<String>,
    problem: Option<Problem>,
}

impl Surroundings<'_> {
    fn state(&self, object: &Arc<Parsed<GatewaySpec>>) -> GatewayState {
        let served = self.served(object);
        let mut listeners: Vec<ListenerState> = Vec::new();
        for (index, spec) in object.spec.listeners.iter().enumerate() {
            let state = self.listener(object, index, spec, &served.workloads, &listeners);
            listeners.push(state);
        }
        let runs = |w: &Workload| served.workloads.iter().any(|of| of.selects(&w.namespace, &w.labels));
        let unserved = match self.workloads.values().any(|w| runs(w)) {
            true => None,
            false => Some(Problem::new(
                "NoResources",
                "no workload serves this Gateway; deploy a gateway, or name the service of one in spec.addresses"
                    .to_string(),
            )),
        };
        GatewayState {
            object: object.clone(),
            problem: served.problem,
            unserved,
            addresses: served.addresses,
            listeners,
        }
    }

    /// By the services that its addresses name; else by what was made for it; else by the mesh's ingress gateway.
    fn served(&self, object: &Parsed<GatewaySpec>) -> Served {
        let namespace = object.meta.namespace.as_str();
        let hostnames: Vec<&str> = object
            .spec
            .addresses
            .iter()
            .filter(|a| matches!(a.kind.as_deref(), Some("Hostname" | "NamedAddress")))
            .map(|a| a.value.as_str())
            .collect();
        let mut out = Served::default();
        for host in &hostnames {
            let (name, of) = self.service_name(host, namespace);
            match self.service(of, name) {
                Some(service) => self.add(&mut out, service),
                None => {
                    let message = format!("spec.addresses: service {of}/{name} does not exist");
                    out.problem = Some(Problem::new("UnsupportedAddress", message));
                }
            }
        }
        if !hostnames.is_empty() {
            return out;
        }
        if !object.spec.addresses.is_empty() {
            let message = "spec.addresses: only the type Hostname, the host of a service, is supported".to_string();
            out.problem = Some(Problem::new("UnsupportedAddress", message));
        }
        let own = Labels::from([(GATEWAY_NAME.to_string(), object.meta.name.clone())]);
        if self.workloads.values().any(|w| w.namespace == namespace && selects(&own, &w.labels)) {
            let made = |s: &&Arc<Parsed<ServiceSpec>>| s.meta.namespace == namespace && selects(&own, &s.meta.labels);
            let services: Vec<_> = self.services.iter().filter(made).collect();
            for service in services {
                out.addresses.extend(self.addresses(service));
            }
            out.workloads = vec![GatewayWorkloads { namespace: Some(namespace.into()), labels: own }];
            return out;
        }
        let root = &self.references.settings.root_namespace;
        if let Some(service) = self.service(root, &self.mesh.ingress_service) {
            out.addresses.extend(self.addresses(service));
        }
        out.workloads = vec![ingress_workloads(self.mesh)];
        out
    }

    /// Name and namespace of `name`, `name.namespace` or `name.namespace.svc.domain`.
    fn service_name<'s>(&self, host: &'s str, namespace: &'s str) -> (&'s str, &'s str) {
        let mut parts = host.split('.');
        (parts.next().unwrap_or_default(), parts.next().unwrap_or(namespace))
    }

    fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Parsed<ServiceSpec>>> {
        self.services.iter().find(|s| s.meta.namespace == namespace && s.meta.name == name)
    }

    fn add(&self, out: &mut Served, service: &Parsed<ServiceSpec>) {
        out.addresses.extend(self.addresses(service));
        let labels = service.spec.selector.clone().unwrap_or_default();
        out.workloads.push(GatewayWorkloads { namespace: Some(service.meta.namespace.clone()), labels });
    }

    /// Of the load balancer in front, else the host in the cluster.
    fn addresses(&self, service: &Parsed<ServiceSpec>) -> Vec<String> {
        if !service.spec.load_balancer.is_empty() {
            return service.spec.load_balancer.clone();
        }
        let (name, namespace) = (&service.meta.name, &service.meta.namespace);
        vec![format!("{name}.{namespace}.svc.{}", self.references.settings.domain)]
    }

    fn listener(
        &self,
        object: &Parsed<GatewaySpec>,
        index: usize,
        spec: &ListenerSpec,
        workloads: &[GatewayWorkloads],
        before: &[ListenerState],
    ) -> ListenerState {
        let meta = &object.meta;
        let name = format!("{}-istio-autogenerated-k8s-gateway-{}", meta.name, spec.name);
        let mut state = ListenerState {
            id: format!("{}/{name}", meta.namespace),
            spec: spec.clone(),
            kinds: Vec::new(),
            accepted: None,
            conflicted: None,
            resolved: None,
            advice: None,
            gateway: None,
        };
        let Some((protocol, fitting)) = protocol(spec) else {
            let message = format!("protocol {:?} is not supported; use HTTP, HTTPS, TLS or TCP", spec.protocol);
            state.accepted = Some(Problem::new("UnsupportedProtocol", message));
            return state;
        };
        state.kinds = self.kinds(object.spec.old, spec, fitting, &mut state.resolved);
        state.conflicted = conflict(spec, before);
        let tls = self.tls(object, spec, &mut state.resolved);
        state.advice = tls.as_ref().and_then(|tls| self.uncovered(spec, tls));
        let opens = spec.tls.as_ref().is_some_and(|t| t.mode != "Passthrough");
        let usable = state.conflicted.is_none() && !(tls.is_none() && (protocol == "HTTPS" || opens));
        if usable {
            let host = if spec.hostname.is_empty() { "*" } else { &spec.hostname };
            let server = istio::Server {
                port: Some(istio::Port {
                    number: spec.port.into(),
                    protocol: protocol.into(),
                    name: "default".into(),
                    ..Default::default()
                }),
                hosts: vec![host.to_string()],
                tls,
                ..Default::default()
            };
            state.gateway = Some(Arc::new(Gateway {
                namespace: meta.namespace.clone(),
                name,
                created: meta.created,
                spec: Arc::new(istio::Gateway { servers: vec![server], selector: Labels::new() }),
                workloads: workloads.to_vec(),
                provenance: meta.provenance.at(format!("spec.listeners[{index}]")),
            }));
        }
        state
    }

    fn kinds(
        &self,
        old: bool,
        spec: &ListenerSpec,
        fitting: &[RouteKind],
        resolved: &mut Option<Problem>,
    ) -> Vec<RouteKind> {
        let group = if old { api::v1alpha1::GROUP } else { api::GROUP };
        if spec.kinds.is_empty() {
            return fitting.to_vec();
        }
        let mut kept = Vec::new();
        for wanted in &spec.kinds {
            let known = fitting.iter().find(|k| k.name() == wanted.kind);
            let ours = wanted.group.as_deref().is_none_or(|g| g == group || g.is_empty());
            match known.filter(|_| ours) {
                Some(kind) => kept.push(*kind),
                None => {
                    let message =
                        format!("routes of kind {} do not go with the protocol {}", wanted.kind, spec.protocol);
                    *resolved = Some(Problem::new("InvalidRouteKinds", message));
                }
            }
        }
        kept
    }

    /// TLS of the server; `None` without it, and when no certificate can be used.
    fn tls(
        &self,
        object: &Parsed<GatewaySpec>,
        spec: &ListenerSpec,
        resolved: &mut Option<Problem>,
    ) -> Option<ServerTlsSettings> {
        let tls = spec.tls.as_ref();
        if !matches!(spec.protocol.as_str(), "HTTPS" | "TLS") {
            return None;
        }
        if tls.is_some_and(|t| t.mode == "Passthrough") {
            return Some(ServerTlsSettings { mode: ServerTlsMode::Passthrough, ..Default::default() });
        }
        let mut out = ServerTlsSettings { mode: ServerTlsMode::Simple, ..Default::default() };
        match tls.and_then(|t| t.options.get(TLS_MODE_OPTION)).map(String::as_str) {
            Some("ISTIO_MUTUAL") => {
                return Some(ServerTlsSettings { mode: ServerTlsMode::IstioMutual, ..Default::default() });
            }
            Some("MUTUAL") => out.mode = ServerTlsMode::Mutual,
            Some("OPTIONAL_MUTUAL") => out.mode = ServerTlsMode::OptionalMutual,
            _ => {}
        }
        let refs = tls.map_or(&[][..], |t| t.certificate_refs.as_slice());
        if refs.is_empty() {
            let message = "tls.certificateRefs is required: the Secret with the certificate".to_string();
            *resolved = Some(Problem::new("InvalidCertificateRef", message));
            return None;
        }
        let mut names = Vec::new();
        for to in refs {
            match self.certificate(object, to) {
                Ok((name, problem)) => {
                    names.push(name);
                    *resolved = resolved.take().or(problem);
                }
                Err(problem) => *resolved = Some(problem),
            }
        }
        if let Some(validation) = &spec.validation {
            out.mode = if validation.mode == "AllowInsecureFallback" {
                ServerTlsMode::OptionalMutual
            } else {
                ServerTlsMode::Mutual
            };
            match self.authority(object, validation.ca_certificate_refs.first()) {
                Ok(name) => out.ca_cert_credential_name = name,
                Err(problem) => {
                    *resolved = Some(problem);
                    return None;
                }
            }
        }
        match names.len() {
            0 => return None,
            1 => out.credential_name = names.remove(0),
            _ => out.credential_names = names,
        }
        Some(out)
    }

    fn referrer<'o>(&self, object: &'o Parsed<GatewaySpec>) -> Referrer<'o> {
        let group = if object.spec.old { api::v1alpha1::GROUP } else { api::GROUP };
        Referrer { group, kind: "Gateway", namespace: &object.meta.namespace }
    }

    /// SDS name of a certificate, and what is wrong with it although it is shown to clients.
    fn certificate(
        &self,
        object: &Parsed<GatewaySpec>,
        to: &api::ObjectReference,
    ) -> Result<(String, Option<Problem>), Problem> {
        let kind = if to.kind.is_empty() { "Secret" } else { to.kind.as_str() };
        if !matches!(to.group.as_str(), "" | "core") || kind != "Secret" {
            let message =
                format!("certificateRefs: kind {kind} of group {:?} is not supported; use a Secret", to.group);
            return Err(Problem::new("InvalidCertificateRef", message));
        }
        let namespace = if to.namespace.is_empty() { &object.meta.namespace } else { &to.namespace };
        if !self.references.allows(self.referrer(object), "", "Secret", namespace, &to.name) {
            let message = format!(
                "Secret {namespace}/{} may not be used from namespace {}; it takes a ReferenceGrant in {namespace}",
                to.name, object.meta.namespace
            );
            return Err(Problem::new("RefNotPermitted", message));
        }
        let key = (namespace.clone(), to.name.clone());
        let sds_name = format!("{SECRET_SCHEME}{namespace}/{}", to.name);
        let invalid = |message: String| Problem::new("InvalidCertificateRef", message);
        let problem = self.secret_problems.get(&key);
        if self.secrets.get(&key).is_some_and(|c| !c.private_key.is_empty()) {
            return Ok((sds_name, problem.cloned().map(invalid)));
        }
        let missing = || format!("Secret {namespace}/{} does not exist, or holds no certificate and key", to.name);
        let message = problem.cloned().unwrap_or_else(missing);
        if self.served.contains(&sds_name) {
            // Proxies keep the certificate that they have: a mistake must not close what is open.
            let message = format!("{message}; the last certificate is shown on until there is one again");
            return Ok((sds_name, Some(invalid(message))));
        }
        Err(invalid(message))
    }

    /// Told when no certificate of a listener is for its host.
    fn uncovered(&self, spec: &ListenerSpec, tls: &ServerTlsSettings) -> Option<Problem> {
        let names = std::iter::once(&tls.credential_name).chain(&tls.credential_names);
        let certificates: Vec<_> = names
            .filter_map(|name| name.strip_prefix(SECRET_SCHEME)?.split_once('/'))
            .filter_map(|(namespace, name)| self.secrets.get(&(namespace.to_string(), name.to_string())))
            .filter_map(|credential| credential.facts.as_ref())
            .collect();
        let host = Some(spec.hostname.as_str()).filter(|host| !host.is_empty());
        let missing = certificates::uncovered(host.into_iter(), &certificates);
        let message = certificates::told_uncovered(&missing, &certificates)?;
        Some(Problem::new(certificates::HOST_MISMATCH, message))
    }

    /// SDS name of CA certificates, without the ending that says so.
    fn authority(&self, object: &Parsed<GatewaySpec>, to: Option<&api::ObjectReference>) -> Result<String, Problem> {
        let invalid = |message: String| Problem::new("InvalidCACertificateRef", message);
        let Some(to) = to else { return Err(invalid("caCertificateRefs is required".into())) };
        let namespace = if to.namespace.is_empty() { &object.meta.namespace } else { &to.namespace };
        let (scheme, found) = match to.kind.as_str() {
            "ConfigMap" => (CONFIG_MAP_SCHEME, self.authorities),
            "Secret" => (SECRET_SCHEME, self.secrets),
            other => {
                return Err(invalid(format!("caCertificateRefs: kind {other:?} is not supported; use a ConfigMap")));
            }
        };
        if !self.references.allows(self.referrer(object), "", &to.kind, namespace, &to.name) {
            let message = format!("{} {namespace}/{} takes a ReferenceGrant in {namespace}", to.kind, to.name);
            return Err(Problem::new("RefNotPermitted", message));
        }
        if found.get(&(namespace.clone(), to.name.clone())).is_none_or(|c| c.ca.is_none()) {
            return Err(invalid(format!("{} {namespace}/{} does not exist, or has no ca.crt", to.kind, to.name)));
        }
        Ok(format!("{scheme}{namespace}/{}", to.name))
    }
}

/// The workloads of the mesh's ingress gateway.
pub(crate) fn ingress_workloads(mesh: &MeshConfig) -> GatewayWorkloads {
    let labels = Labels::from([("istio".to_string(), mesh.ingress_selector.clone())]);
    GatewayWorkloads { namespace: None, labels }
}

/// The protocol in Istio's words, and the kinds of routes that go with it.
fn protocol(spec: &ListenerSpec) -> Option<(&'static str, &'static [RouteKind])> {
    let opens = spec.tls.as_ref().is_some_and(|t| t.mode != "Passthrough");
    Some(match spec.protocol.as_str() {
        "HTTP" => ("HTTP", &[RouteKind::Http, RouteKind::Grpc]),
        "HTTPS" => ("HTTPS", &[RouteKind::Http, RouteKind::Grpc]),
        "TLS" if opens => ("TLS", &[RouteKind::Tcp, RouteKind::Tls]),
        "TLS" => ("TLS", &[RouteKind::Tls]),
        "TCP" => ("TCP", &[RouteKind::Tcp]),
        _ => return None,
    })
}

/// Listeners of one port must speak alike, and differ by host.
fn conflict(spec: &ListenerSpec, before: &[ListenerState]) -> Option<Problem> {
    let on_tls = |s: &ListenerSpec| matches!(s.protocol.as_str(), "HTTPS" | "TLS");
    for other in before.iter().filter(|o| o.spec.port == spec.port) {
        let alike = other.spec.protocol == spec.protocol || (on_tls(&other.spec) && on_tls(spec));
        if !alike || spec.protocol == "TCP" {
            let message =
                format!("port {} is taken by listener {} ({})", spec.port, other.spec.name, other.spec.protocol);
            return Some(Problem::new("ProtocolConflict", message));
        }
        if other.spec.hostname == spec.hostname {
            let message = format!("listener {} has the same port and hostname", other.spec.name);
            return Some(Problem::new("HostnameConflict", message));
        }
    }
    None
}

impl ListenerState {
    /// Whether it is served.
    pub fn usable(&self) -> bool {
        self.gateway.is_some()
    }

    /// Its conditions.
    pub fn findings(&self) -> Vec<Finding> {
        let programmed = match (&self.accepted, &self.conflicted, &self.resolved) {
            (Some(p), ..) | (_, Some(p), _) | (_, _, Some(p)) if !self.usable() => {
                Finding::bad("Programmed", &Problem::new("Invalid", p.message.clone()))
            }
            _ => Finding::good("Programmed", "Programmed", "listener is served"),
        };
        let accepted = match (&self.accepted, &self.conflicted) {
            (Some(problem), _) | (None, Some(problem)) => Finding::bad("Accepted", problem),
            _ => Finding::good("Accepted", "Accepted", "listener is accepted"),
        };
        let conflicted = match &self.conflicted {
            Some(problem) => Finding { status: true, ..Finding::bad("Conflicted", problem) },
            None => Finding { status: false, ..Finding::good("Conflicted", "NoConflicts", "no conflicts found") },
        };
        let resolved = match &self.resolved {
            Some(problem) => Finding::bad("ResolvedRefs", problem),
            None => Finding::good("ResolvedRefs", "ResolvedRefs", "all references are resolved"),
        };
        vec![accepted, conflicted, programmed, resolved]
    }
}
