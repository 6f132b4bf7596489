//! Which fields an installation may have. One that is not known is an error: a misspelt setting would silently not hold.
//!
//! Names: Istio's `IstioOperatorSpec` and the values of its charts. Those that Weft knows of and does not act on are told of
//! as warnings ([`without_effect`]).

use anyhow::bail;
use serde_json::Value;

/// What may stand at a place.
enum Known {
    /// Anything: a map or a value of the user's, checked by whoever reads it.
    Any,
    /// These fields.
    Fields(&'static [(&'static str, Known)]),
    /// A list of items with these fields.
    List(&'static [(&'static str, Known)]),
    /// Names that are the user's or have an effect, and names that Weft passes over.
    Values(&'static [(&'static str, Known)], &'static [&'static str]),
}

use Known::{Any, Fields, List, Values};

const PATCH: &[(&str, Known)] = &[("path", Any), ("value", Any)];
const OVERLAY: &[(&str, Known)] =
    &[("apiVersion", Any), ("kind", Any), ("name", Any), ("optional", Any), ("patches", List(PATCH))];
const SERVICE: &[(&str, Known)] = &[
    ("type", Any),
    ("ports", Any),
    ("selector", Any),
    ("clusterIP", Any),
    ("externalIPs", Any),
    ("externalName", Any),
    ("externalTrafficPolicy", Any),
    ("healthCheckNodePort", Any),
    ("ipFamilies", Any),
    ("ipFamilyPolicy", Any),
    ("loadBalancerIP", Any),
    ("loadBalancerSourceRanges", Any),
    ("publishNotReadyAddresses", Any),
    ("sessionAffinity", Any),
    ("sessionAffinityConfig", Any),
];
const K8S: &[(&str, Known)] = &[
    ("affinity", Any),
    ("env", Any),
    ("hpaSpec", Any),
    ("imagePullPolicy", Any),
    ("nodeSelector", Any),
    ("overlays", List(OVERLAY)),
    ("podAnnotations", Any),
    ("podDisruptionBudget", Any),
    ("priorityClassName", Any),
    ("readinessProbe", Any),
    ("replicaCount", Any),
    ("resources", Any),
    ("securityContext", Any),
    ("service", Fields(SERVICE)),
    ("serviceAnnotations", Any),
    ("strategy", Any),
    ("tolerations", Any),
    ("volumeMounts", Any),
    ("volumes", Any),
];
const COMPONENT: &[(&str, Known)] =
    &[("enabled", Any), ("namespace", Any), ("hub", Any), ("tag", Any), ("k8s", Fields(K8S))];
const GATEWAY: &[(&str, Known)] = &[
    ("name", Any),
    ("enabled", Any),
    ("namespace", Any),
    ("label", Any),
    ("hub", Any),
    ("tag", Any),
    ("k8s", Fields(K8S)),
];
const COMPONENTS: &[(&str, Known)] = &[
    ("base", Fields(COMPONENT)),
    ("pilot", Fields(COMPONENT)),
    ("cni", Fields(COMPONENT)),
    ("istiodRemote", Fields(COMPONENT)),
    ("ingressGateways", List(GATEWAY)),
    ("egressGateways", List(GATEWAY)),
];
const PROXY: &[(&str, Known)] = &[
    ("image", Any),
    ("autoInject", Any),
    ("clusterDomain", Any),
    ("componentLogLevel", Any),
    ("logLevel", Any),
    ("includeInboundPorts", Any),
    ("excludeInboundPorts", Any),
    ("includeIPRanges", Any),
    ("excludeIPRanges", Any),
    ("includeOutboundPorts", Any),
    ("excludeOutboundPorts", Any),
    ("privileged", Any),
    ("holdApplicationUntilProxyStarts", Any),
    ("readinessInitialDelaySeconds", Any),
    ("readinessPeriodSeconds", Any),
    ("readinessFailureThreshold", Any),
    ("startupProbe", Any),
    ("resources", Any),
    ("statusPort", Any),
    ("tracer", Any),
    ("lifecycle", Any),
    ("seccompProfile", Any),
];
const PROXY_WITHOUT: &[&str] = &["enableCoreDump", "outlierLogPath", "dnsRefreshRate", "concurrency"];
const GLOBAL: &[(&str, Known)] = &[
    ("istioNamespace", Any),
    ("hub", Any),
    ("tag", Any),
    ("variant", Any),
    ("imagePullPolicy", Any),
    ("imagePullSecrets", Any),
    ("logAsJson", Any),
    ("logging", Fields(&[("level", Any)])),
    ("caAddress", Any),
    ("certSigners", Any),
    ("meshID", Any),
    ("meshNetworks", Any),
    ("mountMtlsCerts", Any),
    ("multiCluster", Fields(&[("clusterName", Any), ("enabled", Any), ("includeEnvoyFilter", Any)])),
    ("network", Any),
    ("pilotCertProvider", Any),
    ("sds", Any),
    ("nativeNftables", Any),
    ("trustBundleName", Any),
    ("configValidation", Any),
    ("monitoringPort", Any),
    ("platform", Any),
    ("priorityClassName", Any),
    ("defaultNodeSelector", Any),
    ("defaultTolerations", Any),
    ("defaultPodDisruptionBudget", Fields(&[("enabled", Any)])),
    ("remotePilotAddress", Any),
    ("proxy", Values(PROXY, PROXY_WITHOUT)),
    ("proxy_init", Any),
];
const GLOBAL_WITHOUT: &[&str] = &[
    "arch",
    "autoscalingv2API",
    "caName",
    "certificates",
    "controlPlaneSecurityEnabled",
    "defaultConfigVisibilitySettings",
    "defaultResources",
    "enableHelmTest",
    "externalIstiod",
    "ipFamilies",
    "ipFamilyPolicy",
    "istiod",
    "jwtPolicy",
    "networkPolicy",
    "omitSidecarInjectorConfigMap",
    "oneNamespace",
    "operatorManageWebhooks",
    "outboundTrafficPolicy",
    "podDNSSearchNamespaces",
    "resourceScope",
    "sts",
    "tracer",
    "useMCP",
    "waypoint",
];
const PILOT: &[(&str, Known)] = &[
    ("affinity", Any),
    ("autoscaleBehavior", Any),
    ("autoscaleEnabled", Any),
    ("autoscaleMax", Any),
    ("autoscaleMin", Any),
    ("cni", Fields(&[("enabled", Any), ("provider", Any)])),
    ("cpu", Fields(&[("targetAverageUtilization", Any)])),
    ("crlConfigMapName", Any),
    ("env", Any),
    ("extraContainerArgs", Any),
    ("hub", Any),
    ("image", Any),
    ("keepaliveMaxServerConnectionAge", Any),
    ("nodeSelector", Any),
    ("podAnnotations", Any),
    ("podLabels", Any),
    ("replicaCount", Any),
    ("resources", Any),
    ("rollingMaxSurge", Any),
    ("rollingMaxUnavailable", Any),
    ("serviceAnnotations", Any),
    ("tag", Any),
    ("tolerations", Any),
    ("traceSampling", Any),
    ("volumeMounts", Any),
    ("volumes", Any),
];
const PILOT_WITHOUT: &[&str] = &[
    "configMap",
    "configNamespace",
    "configSource",
    "deploymentLabels",
    "enableProtocolSniffingForInbound",
    "enableProtocolSniffingForOutbound",
    "enabled",
    "initContainers",
    "ipFamilies",
    "ipFamilyPolicy",
    "jwksResolverExtraRootCA",
    "memory",
    "plugins",
    "seccompProfile",
    "serviceAccountAnnotations",
    "taint",
    "topologySpreadConstraints",
    "trustedZtunnelName",
    "trustedZtunnelNamespace",
    "useMCP",
    "variant",
];
const GATEWAY_VALUES: &[(&str, Known)] = &[
    ("affinity", Any),
    ("autoscaleEnabled", Any),
    ("autoscaleMax", Any),
    ("autoscaleMin", Any),
    ("cpu", Fields(&[("targetAverageUtilization", Any)])),
    ("debug", Any),
    ("env", Any),
    ("externalTrafficPolicy", Any),
    ("injectionTemplate", Any),
    ("loadBalancerIP", Any),
    ("loadBalancerSourceRanges", Any),
    ("nodeSelector", Any),
    ("podAnnotations", Any),
    ("ports", Any),
    ("replicaCount", Any),
    ("resources", Any),
    ("rollingMaxSurge", Any),
    ("rollingMaxUnavailable", Any),
    ("serviceAnnotations", Any),
    ("tolerations", Any),
    ("type", Any),
];
const GATEWAY_WITHOUT: &[&str] = &[
    "additionalContainers",
    "configVolumes",
    "customService",
    "domain",
    "enabled",
    "externalIPs",
    "ingressPorts",
    "ipFamilies",
    "ipFamilyPolicy",
    "labels",
    "meshExpansionPorts",
    "name",
    "namespace",
    "podAntiAffinityLabelSelector",
    "podAntiAffinityTermLabelSelector",
    "runAsRoot",
    "secretVolumes",
    "serviceAccount",
    "sds",
    "zvpn",
];
const INJECTOR: &[(&str, Known)] = &[
    ("neverInjectSelector", Any),
    ("alwaysInjectSelector", Any),
    ("injectedAnnotations", Any),
    ("enableNamespacesByDefault", Any),
    ("rewriteAppHTTPProbe", Any),
    ("templates", Any),
    ("defaultTemplates", Any),
    ("reinvocationPolicy", Any),
];
const INJECTOR_WITHOUT: &[&str] =
    &["injectionURL", "objectSelector", "gatewayTemplates", "hub", "image", "tag", "useLegacySelectors"];
const CNI: &[(&str, Known)] = &[
    ("chained", Any),
    ("cniBinDir", Any),
    ("cniConfDir", Any),
    ("cniConfFileName", Any),
    ("enabled", Any),
    ("excludeNamespaces", Any),
    ("hub", Any),
    ("image", Any),
    ("provider", Any),
    ("repair", Fields(&[("enabled", Any)])),
    ("resources", Any),
    ("tag", Any),
];
const CNI_WITHOUT: &[&str] = &["cniNetnsDir", "logLevel", "psp_cluster_role"];
const VALUES: &[(&str, Known)] = &[
    ("global", Values(GLOBAL, GLOBAL_WITHOUT)),
    ("pilot", Values(PILOT, PILOT_WITHOUT)),
    (
        "gateways",
        Values(
            &[
                ("istio-ingressgateway", Values(GATEWAY_VALUES, GATEWAY_WITHOUT)),
                ("istio-egressgateway", Values(GATEWAY_VALUES, GATEWAY_WITHOUT)),
                ("securityContext", Any),
            ],
            &["enabled", "seccompProfile"],
        ),
    ),
    ("sidecarInjectorWebhook", Values(INJECTOR, INJECTOR_WITHOUT)),
    ("meshConfig", Any),
    ("istio_cni", Values(&[("enabled", Any)], &["chained", "provider"])),
    ("cni", Values(CNI, CNI_WITHOUT)),
    (
        "istiodRemote",
        Values(
            &[("injectionURL", Any), ("injectionCABundle", Any)],
            &["enabled", "enabledLocalInjectorIstiod", "injectionPath"],
        ),
    ),
    ("revision", Any),
    ("revisionTags", Any),
];
const VALUES_WITHOUT: &[&str] = &[
    "base",
    "clusterResources",
    "compatibilityVersion",
    "defaultRevision",
    "experimental",
    "gatewayClasses",
    "mesh",
    "meshExpansion",
    "ownerName",
    "telemetry",
    "ztunnel",
];
const TOP: &[(&str, Known)] = &[
    ("profile", Any),
    ("hub", Any),
    ("tag", Any),
    ("revision", Any),
    ("namespace", Any),
    ("meshConfig", Any),
    ("values", Values(VALUES, VALUES_WITHOUT)),
    ("unvalidatedValues", Any),
    ("components", Fields(COMPONENTS)),
];

/// Looks for fields that an installation does not have.
///
/// # Errors
/// The first, by its path, and what there is in its place.
pub fn check(spec: &Value) -> anyhow::Result<()> {
    let mut passed_over = Vec::new();
    look(spec, "", &Fields(TOP), &mut passed_over)
}

/// Settings that have no effect with Weft, by their paths.
pub fn without_effect(spec: &Value) -> Vec<String> {
    let mut passed_over = Vec::new();
    // What is wrong has been told by `check`.
    _ = look(spec, "", &Fields(TOP), &mut passed_over);
    passed_over
}

fn look(value: &Value, path: &str, known: &Known, passed_over: &mut Vec<String>) -> anyhow::Result<()> {
    let (fields, without): (_, &[&str]) = match known {
        Any => return Ok(()),
        _ if value.is_null() => return Ok(()),
        List(fields) => {
            let Some(items) = value.as_array() else { bail!("{path} is {}; it must be a list", sort(value)) };
            for (at, item) in items.iter().enumerate() {
                look(item, &format!("{path}[{at}]"), &Fields(fields), passed_over)?;
            }
            return Ok(());
        }
        Fields(fields) => (fields, &[]),
        Values(fields, without) => (fields, without),
    };
    let Some(own) = value.as_object() else {
        bail!("{} is {}; it must have fields", if path.is_empty() { "spec" } else { path }, sort(value));
    };
    for (name, value) in own {
        let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match fields.iter().find(|(known, _)| known == name) {
            Some((_, below)) => look(value, &place, below, passed_over)?,
            None if without.contains(&name.as_str()) => passed_over.push(place),
            None => {
                let names: Vec<&str> = fields.iter().map(|(name, _)| *name).chain(without.iter().copied()).collect();
                bail!("{place} is not known; there are {}", names.join(", "));
            }
        }
    }
    Ok(())
}

fn sort(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_and_wrong_sorts() {
        for (spec, said) in [
            (json!({"meshconfig": {}}), "meshconfig is not known; there are profile, hub"),
            (json!({"components": {"mixer": {}}}), "components.mixer is not known; there are base, pilot"),
            (json!({"components": {"pilot": {"k8s": {"replicas": 2}}}}), "components.pilot.k8s.replicas is not known"),
            (
                json!({"components": {"ingressGateways": {"name": "x"}}}),
                "components.ingressGateways is a map; it must be a list",
            ),
            (
                json!({"components": {"egressGateways": [{}, {"k8s": {"overlays": [{"patches": [{"pth": 1}]}]}}]}}),
                "components.egressGateways[1].k8s.overlays[0].patches[0].pth",
            ),
            (json!({"values": {"global": {"proxi": {}}}}), "values.global.proxi is not known"),
            (json!({"values": {"global": {"proxy": {"logLevl": 1}}}}), "values.global.proxy.logLevl"),
            (json!({"values": {"pilot": true}}), "values.pilot is true or false; it must have fields"),
            (json!([]), "spec is a list"),
        ] {
            let error = check(&spec).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn the_values_of_the_injector_are_known() {
        check(&json!({"values": weft_inject::Values::default().tree()})).unwrap();
        let spec = json!({"values": {"pilot": {"plugins": []}, "global": {"jwtPolicy": "x", "hub": "h"}}});
        check(&spec).unwrap();
        assert_eq!(without_effect(&spec), ["values.pilot.plugins", "values.global.jwtPolicy"]);
    }
}
