//! The table of kinds: group, versions, plural, short names, scope, categories.

/// A kind that Weft knows.
#[derive(Debug, PartialEq, Eq)]
pub struct KindInfo {
    /// API group; empty for core.
    pub group: &'static str,
    /// Versions served, the storage version first.
    pub versions: &'static [&'static str],
    /// Kind.
    pub kind: &'static str,
    /// Name in URLs.
    pub plural: &'static str,
    /// Name for one.
    pub singular: &'static str,
    /// Short names for the command line.
    pub short: &'static [&'static str],
    /// Lives in a namespace.
    pub namespaced: bool,
    /// `all`, `istio-io` …
    pub categories: &'static [&'static str],
}

const fn core(
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
    namespaced: bool,
) -> KindInfo {
    KindInfo { group: "", versions: &["v1"], kind, plural, singular, short, namespaced, categories: &[] }
}

/// A kind that `get all` shows.
const fn shown(info: KindInfo) -> KindInfo {
    KindInfo { categories: &["all"], ..info }
}

const fn istio(
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
) -> KindInfo {
    KindInfo {
        group,
        versions,
        kind,
        plural,
        singular,
        short,
        namespaced: true,
        categories: &["istio-io", "networking-istio-io"],
    }
}

const NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];
const SECURITY: &[&str] = &["v1", "v1beta1"];

/// All kinds.
pub const KINDS: &[KindInfo] = &[
    core("Namespace", "namespaces", "namespace", &["ns"], false),
    core("Node", "nodes", "node", &["no"], false),
    shown(core("Pod", "pods", "pod", &["po"], true)),
    shown(core("Service", "services", "service", &["svc"], true)),
    core("Endpoints", "endpoints", "endpoints", &["ep"], true),
    core("ConfigMap", "configmaps", "configmap", &["cm"], true),
    core("Secret", "secrets", "secret", &[], true),
    core("ServiceAccount", "serviceaccounts", "serviceaccount", &["sa"], true),
    core("Event", "events", "event", &["ev"], true),
    core("PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim", &["pvc"], true),
    app("Deployment", "deployments", "deployment", &["deploy"]),
    app("ReplicaSet", "replicasets", "replicaset", &["rs"]),
    app("StatefulSet", "statefulsets", "statefulset", &["sts"]),
    app("DaemonSet", "daemonsets", "daemonset", &["ds"]),
    KindInfo {
        group: "batch",
        versions: &["v1"],
        kind: "Job",
        plural: "jobs",
        singular: "job",
        short: &[],
        namespaced: true,
        categories: &["all"],
    },
    KindInfo {
        group: "batch",
        versions: &["v1"],
        kind: "CronJob",
        plural: "cronjobs",
        singular: "cronjob",
        short: &["cj"],
        namespaced: true,
        categories: &["all"],
    },
    KindInfo {
        group: "discovery.k8s.io",
        versions: &["v1"],
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        short: &[],
        namespaced: true,
        categories: &[],
    },
    KindInfo {
        group: "networking.k8s.io",
        versions: &["v1"],
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short: &["ing"],
        namespaced: true,
        categories: &[],
    },
    KindInfo {
        group: "networking.k8s.io",
        versions: &["v1"],
        kind: "IngressClass",
        plural: "ingressclasses",
        singular: "ingressclass",
        short: &[],
        namespaced: false,
        categories: &[],
    },
    KindInfo {
        group: "coordination.k8s.io",
        versions: &["v1"],
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        short: &[],
        namespaced: true,
        categories: &[],
    },
    istio("networking.istio.io", NETWORKING, "VirtualService", "virtualservices", "virtualservice", &["vs"]),
    istio("networking.istio.io", NETWORKING, "DestinationRule", "destinationrules", "destinationrule", &["dr"]),
    istio("networking.istio.io", NETWORKING, "Gateway", "gateways", "gateway", &["gw"]),
    istio("networking.istio.io", NETWORKING, "ServiceEntry", "serviceentries", "serviceentry", &["se"]),
    istio("networking.istio.io", NETWORKING, "Sidecar", "sidecars", "sidecar", &[]),
    istio("networking.istio.io", NETWORKING, "WorkloadEntry", "workloadentries", "workloadentry", &["we"]),
    istio("networking.istio.io", NETWORKING, "WorkloadGroup", "workloadgroups", "workloadgroup", &["wg"]),
    istio("networking.istio.io", &["v1alpha3"], "EnvoyFilter", "envoyfilters", "envoyfilter", &[]),
    istio("networking.istio.io", &["v1beta1"], "ProxyConfig", "proxyconfigs", "proxyconfig", &[]),
    istio("security.istio.io", SECURITY, "PeerAuthentication", "peerauthentications", "peerauthentication", &["pa"]),
    istio(
        "security.istio.io",
        SECURITY,
        "RequestAuthentication",
        "requestauthentications",
        "requestauthentication",
        &["ra"],
    ),
    istio(
        "security.istio.io",
        SECURITY,
        "AuthorizationPolicy",
        "authorizationpolicies",
        "authorizationpolicy",
        &["ap"],
    ),
    istio("telemetry.istio.io", &["v1", "v1alpha1"], "Telemetry", "telemetries", "telemetry", &["telemetry"]),
    istio("extensions.istio.io", &["v1alpha1"], "WasmPlugin", "wasmplugins", "wasmplugin", &[]),
    istio("extensions.istio.io", &["v1alpha1"], "TrafficExtension", "trafficextensions", "trafficextension", &[]),
];

const fn app(
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
) -> KindInfo {
    KindInfo { group: "apps", versions: &["v1"], kind, plural, singular, short, namespaced: true, categories: &["all"] }
}

impl KindInfo {
    /// `group/version` of the storage version.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.versions.first().copied().unwrap_or("v1"))
    }
}

/// `group/version`, or `version` for the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_string() } else { format!("{group}/{version}") }
}

/// The kind of that group and name.
pub fn by_kind(group: &str, kind: &str) -> Option<&'static KindInfo> {
    KINDS.iter().find(|k| k.group == group && k.kind == kind)
}

/// The kind of that group and plural.
pub fn by_plural(group: &str, plural: &str) -> Option<&'static KindInfo> {
    KINDS.iter().find(|k| k.group == group && k.plural == plural)
}

/// The kind a user means: plural, singular, short name or kind in any case, optionally with `.group`.
pub fn by_any_name(name: &str) -> Option<&'static KindInfo> {
    let lower = name.to_ascii_lowercase();
    let (name, group) = lower.split_once('.').map_or((lower.as_str(), None), |(n, g)| (n, Some(g)));
    KINDS.iter().find(|k| {
        group.is_none_or(|g| k.group == g || k.group.starts_with(&format!("{g}.")))
            && (k.plural == name || k.singular == name || k.short.contains(&name) || k.kind.eq_ignore_ascii_case(name))
    })
}
