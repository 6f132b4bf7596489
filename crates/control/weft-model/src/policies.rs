//! Gateways, Sidecars, and the policies that bind workloads: peer and request authentication, authorization, telemetry,
//! envoy filters. Indexed by namespace; who is older comes first.

use crate::parsed::Parsed;
use crate::{Gateway, GatewayWorkloads, Labels, MtlsMode, PeerAuthPolicies, Policy, Settings, Sidecar, Warning};
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_k8s_api::istio;

type Objects<T> = [Arc<Parsed<T>>];
type ByNamespace<T> = BTreeMap<String, Vec<Arc<T>>>;

/// Gateways, oldest first.
pub(crate) fn gateways(objects: &Objects<istio::Gateway>, settings: &Settings) -> Vec<Arc<Gateway>> {
    let namespace = |o: &Parsed<istio::Gateway>| settings.scope_gateways.then(|| o.meta.namespace.clone());
    let gateway = |o: &Arc<Parsed<istio::Gateway>>| {
        Arc::new(Gateway {
            namespace: o.meta.namespace.clone(),
            name: o.meta.name.clone(),
            created: o.meta.created,
            workloads: vec![GatewayWorkloads { namespace: namespace(o), labels: o.spec.selector.clone() }],
            spec: o.spec.clone(),
            provenance: o.meta.provenance.clone(),
        })
    };
    objects.iter().map(gateway).collect()
}

/// Sidecars by namespace, those with a selector first.
pub(crate) fn sidecars(objects: &Objects<istio::Sidecar>, warnings: &mut Vec<Warning>) -> ByNamespace<Sidecar> {
    let mut out: ByNamespace<Sidecar> = BTreeMap::new();
    for object in objects {
        let sidecar = Sidecar {
            namespace: object.meta.namespace.clone(),
            name: object.meta.name.clone(),
            created: object.meta.created,
            spec: object.spec.clone(),
            provenance: object.meta.provenance.clone(),
        };
        out.entry(sidecar.namespace.clone()).or_default().push(Arc::new(sidecar));
    }
    for list in out.values_mut() {
        list.sort_by_key(|s| sidecar_selector(s).is_none());
        let mut of_namespace = list.iter().filter(|s| sidecar_selector(s).is_none());
        let Some(first) = of_namespace.next() else { continue };
        for other in of_namespace {
            let message = format!("Sidecar {} is older and already holds for the whole namespace; ignored", first.name);
            warnings.push(Warning { at: other.provenance.clone(), code: "IST0111", message });
        }
    }
    out
}

/// The labels that a Sidecar selects by; `None` when it holds for a whole namespace.
pub(crate) fn sidecar_selector(sidecar: &Sidecar) -> Option<&Labels> {
    sidecar.spec.workload_selector.as_ref().map(|s| &s.labels).filter(|labels| !labels.is_empty())
}

/// A kind that binds workloads by a selector.
pub(crate) trait Selecting: Sized {
    /// The labels it selects by, empty for a whole namespace. `None` when it is bound to an object instead
    /// (`targetRefs`), and so to no sidecar and no gateway of Istio's API.
    fn selector(&self) -> Option<Labels>;

    /// The objects it is bound to instead.
    fn targets(&self) -> Vec<&istio::PolicyTargetReference> {
        Vec::new()
    }
}

/// Names of the Gateways of the Gateway API among these.
fn gateways_among<'a>(targets: &[&'a istio::PolicyTargetReference]) -> Vec<&'a str> {
    let is_gateway = |t: &&&istio::PolicyTargetReference| t.kind == "Gateway" && t.group == "gateway.networking.k8s.io";
    targets.iter().filter(is_gateway).map(|t| t.name.as_str()).collect()
}

fn policy_selector(selector: Option<&istio::PolicySelector>, bound: bool) -> Option<Labels> {
    if bound { None } else { Some(selector.map(|s| s.match_labels.clone()).unwrap_or_default()) }
}

impl Selecting for istio::PeerAuthentication {
    fn selector(&self) -> Option<Labels> {
        policy_selector(self.selector.as_ref(), false)
    }
}

impl Selecting for istio::AuthorizationPolicy {
    fn selector(&self) -> Option<Labels> {
        policy_selector(self.selector.as_ref(), self.target_ref.is_some() || !self.target_refs.is_empty())
    }

    fn targets(&self) -> Vec<&istio::PolicyTargetReference> {
        self.target_ref.iter().chain(&self.target_refs).collect()
    }
}

impl Selecting for istio::RequestAuthentication {
    fn selector(&self) -> Option<Labels> {
        policy_selector(self.selector.as_ref(), self.target_ref.is_some() || !self.target_refs.is_empty())
    }

    fn targets(&self) -> Vec<&istio::PolicyTargetReference> {
        self.target_ref.iter().chain(&self.target_refs).collect()
    }
}

impl Selecting for istio::Telemetry {
    fn selector(&self) -> Option<Labels> {
        policy_selector(self.selector.as_ref(), self.target_ref.is_some() || !self.target_refs.is_empty())
    }

    fn targets(&self) -> Vec<&istio::PolicyTargetReference> {
        self.target_ref.iter().chain(&self.target_refs).collect()
    }
}

impl Selecting for istio::EnvoyFilter {
    fn selector(&self) -> Option<Labels> {
        if !self.target_refs.is_empty() {
            return None;
        }
        Some(self.workload_selector.as_ref().map(|s| s.labels.clone()).unwrap_or_default())
    }
}

/// Policies of one kind by namespace, oldest first.
pub(crate) fn index<T: Selecting>(objects: &Objects<T>, warnings: &mut Vec<Warning>) -> ByNamespace<Policy<T>> {
    let mut out: ByNamespace<Policy<T>> = BTreeMap::new();
    for object in objects {
        let list = out.entry(object.meta.namespace.clone()).or_default();
        if let Some(selector) = object.spec.selector() {
            list.push(Arc::new(policy(object, selector)));
            continue;
        }
        let targets = object.spec.targets();
        let gateways = gateways_among(&targets);
        for name in &gateways {
            // The workloads of a Gateway carry its name.
            let selector = Labels::from([(crate::gateway_api::GATEWAY_NAME.to_string(), name.to_string())]);
            list.push(Arc::new(Policy { own_namespace_only: true, ..policy(object, selector) }));
        }
        if gateways.len() < targets.len() || targets.is_empty() {
            // Istio's rule as well (ShouldAttachPolicy): at a sidecar or gateway such a policy is not looked at.
            let message =
                "binds to Gateways of gateway.networking.k8s.io alone: Service, ServiceEntry and GatewayClass are \
                           for waypoints of ambient mode, which this mesh has none of; use selector for workloads"
                    .to_string();
            warnings.push(Warning { at: object.meta.provenance.at("spec.targetRefs"), code: "IST0101", message });
        }
    }
    out.retain(|_, list| !list.is_empty());
    out
}

fn policy<T>(object: &Parsed<T>, selector: Labels) -> Policy<T> {
    Policy {
        namespace: object.meta.namespace.clone(),
        name: object.meta.name.clone(),
        created: object.meta.created,
        selector,
        spec: object.spec.clone(),
        annotations: (*object.meta.annotations).clone(),
        provenance: object.meta.provenance.clone(),
        own_namespace_only: false,
    }
}

/// Envoy filters by namespace, by priority, then oldest first.
pub(crate) fn envoy_filters(
    objects: &Objects<istio::EnvoyFilter>,
    warnings: &mut Vec<Warning>,
) -> ByNamespace<Policy<istio::EnvoyFilter>> {
    let mut out = index(objects, warnings);
    for list in out.values_mut() {
        list.sort_by_key(|f| f.spec.priority);
    }
    for object in objects {
        for (i, patch) in object.spec.config_patches.iter().enumerate() {
            let Some(message) = not_applied(patch.apply_to) else { continue };
            let at = object.meta.provenance.at(format!("spec.configPatches[{i}].applyTo"));
            warnings.push(Warning { at, code: "UnsupportedPatch", message: message.into() });
        }
    }
    out
}

/// Says of patches that are left out why.
pub(crate) fn patch_problems(objects: &Objects<Vec<(String, String)>>, warnings: &mut Vec<Warning>) {
    for object in objects {
        for (path, why) in object.spec.iter() {
            let message = format!("{why}; this patch is left out, the object's others are applied");
            warnings.push(Warning { at: object.meta.provenance.at(path), code: "IST0106", message });
        }
    }
}

/// Why patches of a kind do nothing; `None` when they are applied.
fn not_applied(to: istio::ApplyTo) -> Option<&'static str> {
    match to {
        istio::ApplyTo::Bootstrap => Some(
            "BOOTSTRAP is not applied: Weft's proxies start without a bootstrap from the control plane; use ProxyConfig, or the pod's annotations",
        ),
        istio::ApplyTo::ExtensionConfig => Some(
            "EXTENSION_CONFIG is not applied: filters carry their configuration themselves; put it into an HTTP_FILTER or NETWORK_FILTER patch",
        ),
        _ => None,
    }
}

/// Peer authentication by scope. Of several policies for a whole namespace, and for the mesh, the oldest counts.
pub(crate) fn peer_authentication(
    objects: &Objects<istio::PeerAuthentication>,
    settings: &Settings,
    warnings: &mut Vec<Warning>,
) -> PeerAuthPolicies {
    let mut out = PeerAuthPolicies::default();
    let mut wide: BTreeMap<&str, &str> = BTreeMap::new();
    for object in objects {
        let (meta, spec) = (&object.meta, &object.spec);
        let selector = spec.selector().unwrap_or_default();
        if !selector.is_empty() {
            if meta.namespace == settings.root_namespace {
                // The API's reference has it bind workloads everywhere. Istio's control plane looks at it nowhere.
                let message =
                    "holds for workloads of the root namespace alone, whatever the selector finds elsewhere; write it \
                               into the workloads' namespaces, or without a selector for the whole mesh"
                        .to_string();
                warnings.push(Warning { at: meta.provenance.at("spec.selector"), code: "PolicyScope", message });
            }
            out.workloads.entry(meta.namespace.clone()).or_default().push(Arc::new(policy(object, selector)));
            continue;
        }
        if let Some(older) = wide.get(meta.namespace.as_str()) {
            let message =
                format!("PeerAuthentication {older} is older and already holds for the whole namespace; ignored");
            warnings.push(Warning { at: meta.provenance.clone(), code: "PolicyConflict", message });
            continue;
        }
        wide.insert(&meta.namespace, &meta.name);
        if let Some(mode) = mtls_mode(spec.mtls.as_ref()) {
            if meta.namespace == settings.root_namespace {
                out.mesh = mode;
            } else {
                out.namespaces.insert(meta.namespace.clone(), mode);
            }
        }
    }
    out
}

/// The mode that is set; `None` for UNSET.
pub(crate) fn mtls_mode(mtls: Option<&istio::MutualTls>) -> Option<MtlsMode> {
    match mtls?.mode {
        istio::PeerAuthenticationMode::Unset => None,
        istio::PeerAuthenticationMode::Disable => Some(MtlsMode::Disable),
        istio::PeerAuthenticationMode::Permissive => Some(MtlsMode::Permissive),
        istio::PeerAuthenticationMode::Strict => Some(MtlsMode::Strict),
    }
}
