//! The immutable picture of the mesh that xDS is generated from.
//!
//! A [`MeshSnapshot`] is built by [`crate::build`] from the objects in the store and swapped in whole. Everything in it is
//! resolved: short names are full, defaults are filled in, policies are indexed by who they bind. Parts that did not change
//! since the last build are the same `Arc`, which is how the generator knows what it may reuse.

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use weft_core::{Provenance, Strng, well_known};
use weft_k8s_api::istio;

/// Labels of a workload or a selector.
pub type Labels = BTreeMap<String, String>;

/// The whole mesh, as the control plane knows it at one moment.
#[derive(Debug, Clone, Default)]
pub struct MeshSnapshot {
    /// Counts builds; shown as the xDS version.
    pub version: u64,
    /// Mesh-wide settings, defaults filled in.
    pub mesh: Arc<istio::MeshConfig>,
    /// Services by fully qualified host. One host may be declared by several namespaces (service entries): the first of
    /// the list is the oldest and wins where one must be chosen.
    pub services: BTreeMap<Strng, Vec<Arc<Service>>>,
    /// Endpoints of each service port, by host and service port number.
    pub endpoints: HashMap<(Strng, u16), Arc<Vec<Endpoint>>>,
    /// Workloads by each of their addresses: pods and workload entries.
    pub workloads: HashMap<IpAddr, Arc<Workload>>,
    /// Virtual services after delegate resolution, oldest first (then by namespace and name), short hosts completed.
    pub virtual_services: Vec<Arc<VirtualService>>,
    /// Destination rules by namespace of the rule, then by host (full name or wildcard), merged as Istio merges them: several
    /// of one host have different `exportTo` or workload selectors, the oldest is first. Read through
    /// [`MeshSnapshot::destination_rule_for`].
    pub destination_rules: BTreeMap<String, BTreeMap<String, Vec<Arc<DestinationRule>>>>,
    /// Gateways, oldest first.
    pub gateways: Vec<Arc<Gateway>>,
    /// Sidecar resources by namespace, those with a selector first, then oldest first.
    pub sidecars: BTreeMap<String, Vec<Arc<Sidecar>>>,
    /// Peer authentication, by scope.
    pub peer_auth: Arc<PeerAuthPolicies>,
    /// Authorization policies by namespace, oldest first.
    pub authorization: BTreeMap<String, Vec<Arc<Policy<istio::AuthorizationPolicy>>>>,
    /// Request authentication by namespace, oldest first.
    pub request_auth: BTreeMap<String, Vec<Arc<Policy<istio::RequestAuthentication>>>>,
    /// Key sets of token issuers that were fetched.
    pub jwks: crate::FetchedKeys,
    /// Key sets of all rules, read. Read through [`MeshSnapshot::keys_of`].
    pub key_sets: crate::jwks::KeySets,
    /// Telemetry by namespace, oldest first.
    pub telemetry: BTreeMap<String, Vec<Arc<Policy<istio::Telemetry>>>>,
    /// Envoy filters by namespace, by priority then oldest first.
    pub envoy_filters: BTreeMap<String, Vec<Arc<Policy<istio::EnvoyFilter>>>>,
    /// Secrets that gateways may name in `credentialName`, by namespace and name.
    pub secrets: BTreeMap<(String, String), Arc<Credential>>,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<String, Labels>,
    /// What the build found wrong: accepted objects that refer to something missing, conflicts, ignored policies.
    pub warnings: Vec<Warning>,
    /// Settings of the control plane: domain, trust domain, root namespace.
    pub settings: Arc<Settings>,
    /// Endpoints of services whose host another namespace's service owns in [`Self::endpoints`]: by namespace of the
    /// service, host and port. Read through [`MeshSnapshot::endpoints_of`].
    pub other_endpoints: HashMap<(String, Strng, u16), Arc<Vec<Endpoint>>>,
    /// The services of each namespace, in the order of their hosts.
    pub services_by_namespace: BTreeMap<String, Vec<Arc<Service>>>,
    /// Workloads by `namespace/name`; of pods and workload entries of one name, the pod.
    pub workloads_by_name: HashMap<String, Arc<Workload>>,
    /// Why what a secret says now is not, or should not be, shown to clients; by namespace and name. A sentence for the user.
    pub secret_problems: BTreeMap<(String, String), String>,
    /// When one of [`Self::secret_problems`] begins or ends by the clock alone, Unix seconds.
    pub next_validity_change: Option<i64>,
    /// CA certificates of config maps, by namespace and name; the key and certificate of such a one are empty.
    pub authorities: BTreeMap<(String, String), Arc<Credential>>,
    /// What the statuses of objects should say.
    pub statuses: Arc<Vec<Arc<crate::StatusUpdate>>>,
    /// In which build each section last changed: equal numbers in two snapshots of one process mean equal sections.
    pub sections: Sections,
    /// What the next build may reuse.
    #[doc(hidden)]
    pub memo: crate::memo::Memo,
}

/// What the control plane is told at its start, beside the mesh config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// DNS suffix of service names; default `cluster.local`.
    pub domain: String,
    /// Trust domain of SPIFFE ids; default `cluster.local`.
    pub trust_domain: String,
    /// Namespace whose policies bind the whole mesh; default `istio-system`.
    pub root_namespace: String,
    /// Cluster id; default `Kubernetes`.
    pub cluster_id: String,
    /// Network of the workloads that do not name theirs; empty by default.
    pub network: String,
    /// A Gateway chooses workloads of its own namespace alone; default: of all, as Istio's `selector` means it.
    pub scope_gateways: bool,
    /// Revision of the control plane; default `default`. Istio's objects that are labelled with another are not its own.
    pub revision: String,
}

impl Settings {
    /// Whether an object is for this control plane.
    pub fn reads(&self, object: &weft_k8s_api::Object) -> bool {
        is_for_revision(object, &self.revision)
    }
}

/// Revision of a control plane that was given none.
pub const DEFAULT_REVISION: &str = "default";

/// Whether the control plane of a revision reads an object. Those of Istio's API may be labelled `istio.io/rev` with the revision that
/// is to read them; without the label all do. The name must be the revision's own, as in Istio (`config.LabelsInRevision`): tags
/// choose injectors, and nobody validates what is labelled with one.
pub fn is_for_revision(object: &weft_k8s_api::Object, revision: &str) -> bool {
    let of_istio = object.group().ends_with(".istio.io");
    !of_istio || object.label(well_known::label::REVISION).is_none_or(|named| named == revision)
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            domain: well_known::DEFAULT_DOMAIN.into(),
            trust_domain: well_known::DEFAULT_TRUST_DOMAIN.into(),
            root_namespace: well_known::ROOT_NAMESPACE.into(),
            cluster_id: well_known::DEFAULT_CLUSTER_ID.into(),
            network: String::new(),
            scope_gateways: false,
            revision: DEFAULT_REVISION.into(),
        }
    }
}

/// The build (see [`MeshSnapshot::version`]) in which each section last changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sections {
    /// Mesh config and settings.
    pub mesh: u64,
    /// Services, without their endpoints.
    pub services: u64,
    /// Endpoints.
    pub endpoints: u64,
    /// Workloads.
    pub workloads: u64,
    /// Virtual services.
    pub virtual_services: u64,
    /// Destination rules.
    pub destination_rules: u64,
    /// Gateways.
    pub gateways: u64,
    /// Sidecars.
    pub sidecars: u64,
    /// Peer authentication, authorization, request authentication.
    pub security: u64,
    /// Telemetry.
    pub telemetry: u64,
    /// Envoy filters.
    pub envoy_filters: u64,
    /// Secrets.
    pub secrets: u64,
    /// Namespaces.
    pub namespaces: u64,
}

/// Where a service came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Registry {
    /// A Kubernetes Service.
    Kubernetes,
    /// A ServiceEntry.
    External,
}

/// How the addresses behind a service are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Resolution {
    /// From the control plane's endpoints, balanced by the client's proxy.
    #[default]
    Static,
    /// The client's proxy resolves the endpoints' names, and balances over all addresses.
    Dns,
    /// As `Dns`, but only one address is used at a time, as the resolver gives it.
    DnsRoundRobin,
    /// To the address that the client dialled (headless services, `NONE`).
    Passthrough,
    /// By the host of each request (wildcard names): `DYNAMIC_DNS`.
    DynamicDns,
}

/// A service that can be called by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Service {
    /// Fully qualified host, lower case; may start with `*.`.
    pub host: Strng,
    /// Name of the object it came from.
    pub name: String,
    /// Namespace of that object.
    pub namespace: String,
    /// Where it came from; `None` only in a default value.
    pub registry: Option<Registry>,
    /// Virtual addresses; empty for headless services and for hosts known by name alone.
    pub addresses: Vec<IpNet>,
    /// Addresses that the mesh gave to a service entry that has none, so that TCP can be told apart.
    pub auto_addresses: Vec<IpAddr>,
    /// Ports, in declared order.
    pub ports: Vec<ServicePort>,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// True for `clusterIP: None`.
    pub headless: bool,
    /// True when outside the mesh: no mutual TLS by default, no peer metadata.
    pub mesh_external: bool,
    /// Selector over workloads; empty = endpoints are given by hand.
    pub selector: Labels,
    /// SANs that servers of this service may present (`subjectAltNames` of a service entry).
    pub subject_alt_names: Vec<String>,
    /// Service accounts of its workloads, as SPIFFE ids: who may run it (secure naming).
    pub identities: BTreeSet<String>,
    /// `externalName` of an ExternalName service.
    pub external_name: Option<String>,
    /// Host of the service of the mesh that `external_name` leads to, over other such services too: this one is another name
    /// of it, and has no endpoints, clusters or listeners of its own.
    pub alias_of: Option<Strng>,
    /// Who sees it.
    pub export_to: ExportTo,
    /// `internalTrafficPolicy: Local`, `publishNotReadyAddresses` and kin.
    pub node_local: bool,
    /// Endpoints near the client are preferred.
    pub near: Option<Near>,
    /// Unix seconds of creation.
    pub created: i64,
    /// Labels of the object.
    pub labels: Labels,
    /// The object.
    pub provenance: Provenance,
}

/// How near an endpoint is that a service asks its clients to prefer (`spec.trafficDistribution`, or the annotation
/// `networking.istio.io/traffic-distribution`). Others are used when there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Near {
    /// Of the same network, region, zone (`PreferClose`, `PreferSameZone`).
    Zone,
    /// Of the same node, then as `Zone` (`PreferSameNode`).
    Node,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServicePort {
    /// Port clients dial.
    pub number: u16,
    /// Name, possibly empty.
    pub name: String,
    /// What is spoken on it.
    pub protocol: Protocol,
    /// Port on the workload when it is a number; endpoints carry the resolved one.
    pub target_port: Option<u16>,
    /// Port on the workload when it is a name: each pod says which number it has. Empty when a number.
    pub target_port_name: String,
}

/// What is spoken on a port, from `appProtocol`, else the port's name, else unknown (sniffed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// HTTP/1.1 (and upgrades).
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC.
    Grpc,
    /// gRPC-Web, carried over HTTP/1.1 or HTTP/2.
    GrpcWeb,
    /// TLS that the proxy does not open; inside is HTTP.
    Https,
    /// TLS that the proxy does not open.
    Tls,
    /// Bytes.
    Tcp,
    /// MongoDB: bytes, server may speak first or not.
    Mongo,
    /// MySQL: bytes, the server speaks first.
    MySql,
    /// Redis: bytes.
    Redis,
    /// Datagrams: not carried by the proxy.
    Udp,
    /// To be detected from the first bytes.
    #[default]
    Unknown,
}

impl Protocol {
    /// HTTP that the proxy reads.
    pub fn is_http(self) -> bool {
        matches!(self, Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb)
    }
    /// HTTP/2 towards the workload.
    pub fn is_http2(self) -> bool {
        matches!(self, Protocol::Http2 | Protocol::Grpc)
    }
    /// TLS passed on unopened.
    pub fn is_tls(self) -> bool {
        matches!(self, Protocol::Https | Protocol::Tls)
    }
    /// Bytes: no detection, no HTTP.
    pub fn is_tcp(self) -> bool {
        matches!(self, Protocol::Tcp | Protocol::Mongo | Protocol::MySql | Protocol::Redis)
    }
    /// Not known: the proxy looks at the first bytes.
    pub fn is_unknown(self) -> bool {
        matches!(self, Protocol::Unknown)
    }
}

/// Namespaces that see an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ExportTo {
    /// All.
    #[default]
    All,
    /// These; the object's own namespace is written out.
    Namespaces(BTreeSet<String>),
    /// None (`~`).
    Nobody,
}

impl ExportTo {
    /// True when a proxy in `namespace` sees the object.
    pub fn visible_in(&self, namespace: &str) -> bool {
        match self {
            ExportTo::All => true,
            ExportTo::Namespaces(set) => set.contains(namespace),
            ExportTo::Nobody => false,
        }
    }

    /// Whether some namespace sees an object of this and one of the other.
    pub fn overlaps(&self, other: &ExportTo) -> bool {
        match (self, other) {
            (ExportTo::Nobody, _) | (_, ExportTo::Nobody) => false,
            (ExportTo::All, _) | (_, ExportTo::All) => true,
            (ExportTo::Namespaces(a), ExportTo::Namespaces(b)) => !a.is_disjoint(b),
        }
    }

    /// True when no other namespace than this one sees the object, and this one does.
    pub fn is_only(&self, namespace: &str) -> bool {
        matches!(self, ExportTo::Namespaces(set) if set.len() == 1 && set.contains(namespace))
    }
}

/// One address behind a service port.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Where to connect.
    pub address: EndpointAddress,
    /// Labels of the workload: subsets select by them.
    pub labels: Arc<Labels>,
    /// The workload, when known.
    pub workload: Option<Arc<Workload>>,
    /// SPIFFE id the endpoint runs as; empty when unknown.
    pub identity: String,
    /// Whether it accepts mutual TLS (it has a sidecar, or says so by `security.istio.io/tlsMode: istio`).
    pub mtls: bool,
    /// Locality `region/zone/subzone`; empty when unknown.
    pub locality: String,
    /// Network it is in; empty for the default.
    pub network: String,
    /// Weight; 0 = none given.
    pub weight: u32,
    /// Health: ready, or on its way out.
    pub health: Health,
    /// Node it runs on; empty when unknown.
    pub node: String,
}

/// Where an endpoint is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointAddress {
    /// IP address and port.
    Ip(IpAddr, u16),
    /// DNS name and port, resolved by the client's proxy.
    Name(String, u16),
    /// Unix domain socket.
    Unix(String),
}

/// Whether new requests may be sent to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Health {
    /// Yes.
    #[default]
    Healthy,
    /// Only those that are pinned to it: it is going away.
    Draining,
    /// No.
    Unhealthy,
}

/// Something that runs: a pod or a workload entry.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Workload {
    /// Pod or workload-entry name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Labels.
    pub labels: Arc<Labels>,
    /// Annotations that concern the mesh.
    pub annotations: Arc<Labels>,
    /// Service account.
    pub service_account: String,
    /// `spiffe://<trust domain>/ns/<ns>/sa/<sa>`.
    pub identity: String,
    /// Name of the Deployment, StatefulSet … it belongs to; else its own.
    pub workload_name: String,
    /// Kind of that owner.
    pub owner_kind: String,
    /// `service.istio.io/canonical-name`, else `app`, else the workload's name.
    pub canonical_name: String,
    /// `service.istio.io/canonical-revision`, else `version`, else `latest`.
    pub canonical_revision: String,
    /// Has a sidecar or is a gateway.
    pub in_mesh: bool,
    /// Node.
    pub node: String,
    /// Locality `region/zone/subzone`.
    pub locality: String,
    /// Network.
    pub network: String,
    /// Ready.
    pub ready: bool,
    /// Ports that the containers declare: number and name.
    pub container_ports: Vec<(u16, String)>,
}

/// A virtual service, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualService {
    /// Hosts, fully qualified and lower case, in declared order; may be `*` or start with `*.`.
    pub hosts: Vec<Strng>,
    /// Gateways as `namespace/name`, or `mesh`; never empty.
    pub gateways: Vec<String>,
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Who sees it.
    pub export_to: ExportTo,
    /// Unix seconds of creation.
    pub created: i64,
    /// The spec, delegates resolved and merged; destination hosts are fully qualified.
    pub spec: Arc<istio::VirtualService>,
    /// For each `spec.http` entry its origin: delegates come from other objects.
    pub http_origin: Vec<Provenance>,
    /// Rules of the Gateway API and of Ingresses: a path prefix stands for whole path elements, and what leads to no
    /// service is answered 500.
    pub whole_path_elements: bool,
    /// The object.
    pub provenance: Provenance,
}

/// A destination rule, merged from all of its host, `exportTo` and workload selector in its namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct DestinationRule {
    /// Host, fully qualified and lower case; may start with `*.`.
    pub host: Strng,
    /// Namespace.
    pub namespace: String,
    /// Name of the oldest object.
    pub name: String,
    /// Who sees it.
    pub export_to: ExportTo,
    /// Merged spec: the oldest object's top-level traffic policy wins, subsets are added up.
    pub spec: Arc<istio::DestinationRule>,
    /// Objects it was merged from.
    pub origins: Vec<Provenance>,
}

/// A gateway object.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Unix seconds of creation.
    pub created: i64,
    /// The spec as given.
    pub spec: Arc<istio::Gateway>,
    /// The workloads that serve it: any of these.
    pub workloads: Vec<GatewayWorkloads>,
    /// The object.
    pub provenance: Provenance,
}

/// Workloads that serve a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayWorkloads {
    /// Their namespace; `None` = any.
    pub namespace: Option<String>,
    /// Their labels.
    pub labels: Labels,
}

impl GatewayWorkloads {
    /// Whether a workload of `namespace` with `labels` is one of them.
    pub fn selects(&self, namespace: &str, labels: &Labels) -> bool {
        self.namespace.as_deref().is_none_or(|n| n == namespace) && crate::parsed::selects(&self.labels, labels)
    }
}

/// A Sidecar object.
#[derive(Debug, Clone, PartialEq)]
pub struct Sidecar {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Unix seconds of creation.
    pub created: i64,
    /// The spec as given.
    pub spec: Arc<istio::Sidecar>,
    /// The object.
    pub provenance: Provenance,
}

/// A policy bound to workloads by namespace and selector.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy<T> {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Unix seconds of creation.
    pub created: i64,
    /// Selector; empty = the whole namespace (or mesh, in the root namespace).
    pub selector: Labels,
    /// The spec as given.
    pub spec: Arc<T>,
    /// The object's annotations (dry run).
    pub annotations: Labels,
    /// The object.
    pub provenance: Provenance,
    /// Binds workloads of its own namespace alone, also when that is the root namespace.
    pub own_namespace_only: bool,
}

/// Mutual-TLS mode of an inbound port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MtlsMode {
    /// Plain text only.
    Disable,
    /// Both.
    #[default]
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// Peer authentication policies by scope; see [`MeshSnapshot::mtls_mode`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PeerAuthPolicies {
    /// Mesh-wide mode: the oldest policy without selector in the root namespace.
    pub mesh: MtlsMode,
    /// Namespace-wide modes, unset ones left out.
    pub namespaces: BTreeMap<String, MtlsMode>,
    /// Policies with a selector by namespace, oldest first.
    pub workloads: BTreeMap<String, Vec<Arc<Policy<istio::PeerAuthentication>>>>,
}

/// A secret for TLS at a gateway.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// PEM certificate chain; empty when the secret holds only CA certificates.
    pub cert_chain: Vec<u8>,
    /// PEM private key.
    pub private_key: Vec<u8>,
    /// PEM CA certificates, when given (`ca.crt`, `cacert`, or the `-cacert` secret).
    pub ca: Option<Vec<u8>>,
    /// Certificate revocation list, when given.
    pub crl: Option<Vec<u8>>,
    /// What the certificate says; `None` when there are only CA certificates.
    pub facts: Option<CertificateFacts>,
}

/// What the first certificate of a chain says, as far as it decides whether a gateway can be reached by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Valid from, Unix seconds.
    pub not_before: i64,
    /// Valid until, Unix seconds.
    pub not_after: i64,
    /// DNS names and addresses that it is for; the subject's common name when it has none of those.
    pub names: Vec<String>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("cert_chain", &self.cert_chain.len()).finish_non_exhaustive()
    }
}

/// Something that is wrong with an accepted object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// The object and the place in it.
    pub at: Provenance,
    /// A stable code, where `istioctl analyze` has one (`IST0101` …), else a word.
    pub code: &'static str,
    /// What is wrong and what would be right.
    pub message: String,
}
