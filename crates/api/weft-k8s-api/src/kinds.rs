//! The table of kinds: group, versions, plural, short names, scope, categories; and rows for kinds that are defined at run
//! time.

use std::sync::{Mutex, PoisonError};

/// A kind that Weft knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        categories: match group.as_bytes() {
            b"security.istio.io" => &["istio-io", "security-istio-io"],
            b"telemetry.istio.io" => &["istio-io", "telemetry-istio-io"],
            b"extensions.istio.io" => &["istio-io", "extensions-istio-io"],
            _ => &["istio-io", "networking-istio-io"],
        },
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
        versions: &["v1", "v1beta1"],
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short: &["ing"],
        namespaced: true,
        categories: &[],
    },
    KindInfo {
        group: "networking.k8s.io",
        versions: &["v1", "v1beta1"],
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
    core("PersistentVolume", "persistentvolumes", "persistentvolume", &["pv"], false),
    core("ResourceQuota", "resourcequotas", "resourcequota", &["quota"], true),
    core("LimitRange", "limitranges", "limitrange", &["limits"], true),
    other("rbac.authorization.k8s.io", &["v1"], "Role", "roles", "role", &[], true),
    other("rbac.authorization.k8s.io", &["v1"], "RoleBinding", "rolebindings", "rolebinding", &[], true),
    other("rbac.authorization.k8s.io", &["v1"], "ClusterRole", "clusterroles", "clusterrole", &[], false),
    other(
        "rbac.authorization.k8s.io",
        &["v1"],
        "ClusterRoleBinding",
        "clusterrolebindings",
        "clusterrolebinding",
        &[],
        false,
    ),
    other(
        "admissionregistration.k8s.io",
        &["v1"],
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        "validatingadmissionpolicy",
        &[],
        false,
    ),
    other(
        "admissionregistration.k8s.io",
        &["v1"],
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding",
        &[],
        false,
    ),
    other(
        "admissionregistration.k8s.io",
        &["v1"],
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        "mutatingwebhookconfiguration",
        &[],
        false,
    ),
    other(
        "admissionregistration.k8s.io",
        &["v1"],
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        "validatingwebhookconfiguration",
        &[],
        false,
    ),
    other(
        "apiextensions.k8s.io",
        &["v1"],
        "CustomResourceDefinition",
        "customresourcedefinitions",
        "customresourcedefinition",
        &["crd", "crds"],
        false,
    ),
    other("policy", &["v1"], "PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget", &["pdb"], true),
    other("networking.k8s.io", &["v1"], "NetworkPolicy", "networkpolicies", "networkpolicy", &["netpol"], true),
    other("storage.k8s.io", &["v1"], "StorageClass", "storageclasses", "storageclass", &["sc"], false),
    other("scheduling.k8s.io", &["v1"], "PriorityClass", "priorityclasses", "priorityclass", &["pc"], false),
    other(
        "certificates.k8s.io",
        &["v1"],
        "CertificateSigningRequest",
        "certificatesigningrequests",
        "certificatesigningrequest",
        &["csr"],
        false,
    ),
    shown(other(
        "autoscaling",
        &["v2"],
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
        &["hpa"],
        true,
    )),
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
    gateway_api("GatewayClass", "gatewayclasses", "gatewayclass", &["gc"], &["v1", "v1beta1"]),
    gateway_api("Gateway", "gateways", "gateway", &["gtw"], &["v1", "v1beta1"]),
    gateway_api("HTTPRoute", "httproutes", "httproute", &[], &["v1", "v1beta1"]),
    gateway_api("GRPCRoute", "grpcroutes", "grpcroute", &[], &["v1"]),
    gateway_api("TLSRoute", "tlsroutes", "tlsroute", &[], &["v1", "v1alpha3", "v1alpha2"]),
    gateway_api("TCPRoute", "tcproutes", "tcproute", &[], &["v1alpha2"]),
    gateway_api("ReferenceGrant", "referencegrants", "referencegrant", &["refgrant"], &["v1beta1", "v1"]),
    gateway_api("BackendTLSPolicy", "backendtlspolicies", "backendtlspolicy", &["btlspolicy"], &["v1", "v1alpha3"]),
    gateway_api_v0("GatewayClass", "gatewayclasses", "gatewayclass"),
    gateway_api_v0("Gateway", "gateways", "gateway"),
    gateway_api_v0("HTTPRoute", "httproutes", "httproute"),
    gateway_api_v0("TLSRoute", "tlsroutes", "tlsroute"),
    gateway_api_v0("TCPRoute", "tcproutes", "tcproute"),
];

const fn other(
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
    namespaced: bool,
) -> KindInfo {
    KindInfo { group, versions, kind, plural, singular, short, namespaced, categories: &[] }
}

/// A kind of the Kubernetes Gateway API.
const fn gateway_api(
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
    versions: &'static [&'static str],
) -> KindInfo {
    KindInfo {
        group: crate::gateway_api::GROUP,
        versions,
        kind,
        plural,
        singular,
        short,
        namespaced: !matches!(kind.as_bytes(), b"GatewayClass"),
        categories: &["gateway-api"],
    }
}

/// A kind of the Gateway API before it had its present group.
const fn gateway_api_v0(kind: &'static str, plural: &'static str, singular: &'static str) -> KindInfo {
    let of_today = gateway_api(kind, plural, singular, &[], &["v1alpha1"]);
    // Not of the category: a cluster that has the group of today does not serve this one.
    KindInfo { group: crate::gateway_api::v1alpha1::GROUP, categories: &[], ..of_today }
}

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

    /// The row with one of its versions alone, so that a client asks for that one; the row as it is when it has no such version.
    #[must_use]
    pub fn at(&self, version: &str) -> Self {
        match self.versions.iter().position(|served| *served == version) {
            Some(at) => Self { versions: &self.versions[at..=at], ..*self },
            None => *self,
        }
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

/// The kind a user means: plural, singular, short name or kind in any case, optionally with `.group` or `.version.group`.
pub fn by_any_name(name: &str) -> Option<&'static KindInfo> {
    asked(name).map(|(kind, _)| kind)
}

/// The kind a user means, and the version when the name says one: `virtualservices.v1beta1.networking.istio.io`, `pods.v1.`.
/// Read as kubectl reads it: what follows the first dot is a version and a group if some kind is served so, else a group.
pub fn asked(name: &str) -> Option<(&'static KindInfo, Option<&'static str>)> {
    let lower = name.to_ascii_lowercase();
    let (name, rest) = lower.split_once('.').map_or((lower.as_str(), None), |(name, rest)| (name, Some(rest)));
    let named = |k: &&KindInfo| {
        k.plural == name || k.singular == name || k.short.contains(&name) || k.kind.eq_ignore_ascii_case(name)
    };
    if let Some((version, group)) = rest.map(|rest| rest.split_once('.').unwrap_or((rest, ""))) {
        let served = |k: &'static KindInfo| Some((k, Some(*k.versions.iter().find(|served| **served == version)?)));
        let found = KINDS.iter().filter(named).filter(|k| k.group == group).find_map(served);
        if found.is_some() {
            return found;
        }
    }
    let within = |k: &&KindInfo| rest.is_none_or(|g| k.group == g || k.group.starts_with(&format!("{g}.")));
    KINDS.iter().filter(named).find(within).map(|kind| (kind, None))
}

/// Definitions that [`intern`] keeps at most.
pub const MAX_INTERNED: usize = 4096;

/// A kind as a definition names it: the fields of [`KindInfo`], owned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KindName {
    /// API group.
    pub group: String,
    /// Versions served, the storage version first.
    pub versions: Vec<String>,
    /// Kind.
    pub kind: String,
    /// Name in URLs.
    pub plural: String,
    /// Name for one.
    pub singular: String,
    /// Short names for the command line.
    pub short: Vec<String>,
    /// Lives in a namespace.
    pub namespaced: bool,
    /// `all` …
    pub categories: Vec<String>,
}

/// The row of a kind that is defined at run time (a CustomResourceDefinition). Equal definitions share one row; rows live as
/// long as the program, like those of [`KINDS`], so their number is bounded: `None` when [`MAX_INTERNED`] are there.
pub fn intern(name: &KindName) -> Option<&'static KindInfo> {
    static ROWS: Mutex<Vec<&'static KindInfo>> = Mutex::new(Vec::new());
    let same = |a: &[&str], b: &[String]| a.iter().copied().eq(b.iter().map(String::as_str));
    let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    let found = rows.iter().find(|row| {
        let texts = [(row.group, &name.group), (row.kind, &name.kind), (row.plural, &name.plural)];
        texts.iter().all(|(a, b)| a == b)
            && row.singular == name.singular
            && row.namespaced == name.namespaced
            && same(row.versions, &name.versions)
            && same(row.short, &name.short)
            && same(row.categories, &name.categories)
    });
    if let Some(row) = found {
        return Some(row);
    }
    if rows.len() >= MAX_INTERNED {
        return None;
    }
    let text = |text: &str| -> &'static str { Box::leak(text.into()) };
    let texts =
        |list: &[String]| -> &'static [&'static str] { list.iter().map(|t| text(t)).collect::<Vec<_>>().leak() };
    let row = KindInfo {
        group: text(&name.group),
        versions: texts(&name.versions),
        kind: text(&name.kind),
        plural: text(&name.plural),
        singular: text(&name.singular),
        short: texts(&name.short),
        namespaced: name.namespaced,
        categories: texts(&name.categories),
    };
    let row: &'static KindInfo = Box::leak(Box::new(row));
    rows.push(row);
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_as_users_write_them() {
        for (word, group, plural, version) in [
            ("virtualservices", "networking.istio.io", "virtualservices", None),
            ("VirtualService", "networking.istio.io", "virtualservices", None),
            ("vs", "networking.istio.io", "virtualservices", None),
            ("vs.networking.istio.io", "networking.istio.io", "virtualservices", None),
            ("virtualservices.v1.networking.istio.io", "networking.istio.io", "virtualservices", Some("v1")),
            ("virtualservice.v1alpha3.networking.istio.io", "networking.istio.io", "virtualservices", Some("v1alpha3")),
            ("gateways.gateway.networking.k8s.io", "gateway.networking.k8s.io", "gateways", None),
            ("gateways.v1beta1.gateway.networking.k8s.io", "gateway.networking.k8s.io", "gateways", Some("v1beta1")),
            ("deployments.apps", "apps", "deployments", None),
            ("deploy.v1.apps", "apps", "deployments", Some("v1")),
            ("pods.v1.", "", "pods", Some("v1")),
        ] {
            let (kind, named) = asked(word).unwrap_or_else(|| panic!("{word}"));
            assert_eq!((kind.group, kind.plural, named), (group, plural, version), "{word}");
            assert!(
                kind.at(version.unwrap_or_default()).api_version().ends_with(version.unwrap_or_default()),
                "{word}"
            );
        }
        for word in ["virtualservices.v7.networking.istio.io", "virtualservices.v1.example.org", "vs.", "pods.apps", ""]
        {
            assert!(asked(word).is_none(), "{word}");
        }
        let of = |category: &str| KINDS.iter().filter(|k| k.categories.contains(&category)).count();
        assert_eq!((of("security-istio-io"), of("extensions-istio-io"), of("telemetry-istio-io")), (3, 2, 1));
        assert_eq!(of("istio-io"), of("networking-istio-io") + 6);
    }

    #[test]
    fn interned_rows_are_shared() {
        let name = KindName {
            group: "example.org".into(),
            versions: vec!["v1".into()],
            kind: "Thing".into(),
            plural: "things".into(),
            ..KindName::default()
        };
        let row = intern(&name).unwrap();
        assert!(std::ptr::eq(row, intern(&name).unwrap()), "equal definitions are one row");
        assert_eq!((row.api_version().as_str(), row.plural), ("example.org/v1", "things"));
        let wider = KindName { versions: vec!["v1".into(), "v1beta1".into()], ..name };
        assert_eq!(intern(&wider).unwrap().versions, ["v1", "v1beta1"]);
    }
}
