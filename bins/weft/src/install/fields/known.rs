//! The table of the fields that an installation may have, each with what may stand there. What is done with it is the parent
//! module's.
//!
//! Names: Istio's `IstioOperatorSpec` and the values of its charts.

/// What may stand at a place.
pub(super) enum Known {
    /// Anything: what the user makes, or what whoever reads it checks with better words.
    Any,
    /// True or false.
    Bool,
    /// A whole number from 0.
    Count,
    /// A whole number or a share such as 25%.
    Amount,
    /// A text.
    Text,
    /// A text, or a number that stands for one, such as a tag or a port.
    Word,
    /// A text, a number, true or false.
    Scalar,
    /// A map of the user's.
    Map,
    /// A map with names of the user's and the same in each.
    MapOf(&'static Known),
    /// A list with the same in each item.
    Of(&'static Known),
    /// These fields.
    Fields(&'static [(&'static str, Known)]),
    /// Names that are the user's or have an effect, and names that Weft passes over.
    Values(&'static [(&'static str, Known)], &'static [&'static str]),
}

use Known::{Amount, Any, Bool, Count, Fields, Map, MapOf, Of, Scalar, Text, Values, Word};

const TEXTS: Known = Of(&Text);
const WORDS: Known = Of(&Scalar);
const ITEMS: Known = Of(&Map);
const TEXT_BY_NAME: Known = MapOf(&Text);

const PATCH: &[(&str, Known)] = &[("path", Text), ("value", Any)];
const OVERLAY: &[(&str, Known)] =
    &[("apiVersion", Text), ("kind", Text), ("name", Text), ("optional", Bool), ("patches", Of(&Fields(PATCH)))];
const SERVICE: &[(&str, Known)] = &[
    ("type", Text),
    ("ports", ITEMS),
    ("selector", TEXT_BY_NAME),
    ("clusterIP", Text),
    ("externalIPs", TEXTS),
    ("externalName", Text),
    ("externalTrafficPolicy", Text),
    ("healthCheckNodePort", Count),
    ("ipFamilies", TEXTS),
    ("ipFamilyPolicy", Text),
    ("loadBalancerIP", Text),
    ("loadBalancerSourceRanges", TEXTS),
    ("publishNotReadyAddresses", Bool),
    ("sessionAffinity", Text),
    ("sessionAffinityConfig", Map),
];
const ENV: &[(&str, Known)] = &[("name", Text), ("value", Text), ("valueFrom", Map)];
const AUTOSCALER: &[(&str, Known)] =
    &[("minReplicas", Count), ("maxReplicas", Count), ("metrics", ITEMS), ("behavior", Map), ("scaleTargetRef", Map)];
const K8S: &[(&str, Known)] = &[
    ("affinity", Map),
    ("env", Of(&Fields(ENV))),
    ("hpaSpec", Fields(AUTOSCALER)),
    ("imagePullPolicy", Text),
    ("nodeSelector", TEXT_BY_NAME),
    ("overlays", Of(&Fields(OVERLAY))),
    ("podAnnotations", TEXT_BY_NAME),
    ("podDisruptionBudget", Map),
    ("priorityClassName", Text),
    ("readinessProbe", Map),
    ("replicaCount", Count),
    ("resources", Map),
    ("securityContext", Map),
    ("service", Fields(SERVICE)),
    ("serviceAnnotations", TEXT_BY_NAME),
    ("strategy", Map),
    ("tolerations", ITEMS),
    ("volumeMounts", ITEMS),
    ("volumes", ITEMS),
];
const COMPONENT: &[(&str, Known)] =
    &[("enabled", Bool), ("namespace", Text), ("hub", Text), ("tag", Word), ("k8s", Fields(K8S))];
const GATEWAY: &[(&str, Known)] = &[
    ("name", Text),
    ("enabled", Bool),
    ("namespace", Text),
    ("label", TEXT_BY_NAME),
    ("hub", Text),
    ("tag", Word),
    ("k8s", Fields(K8S)),
];
const COMPONENTS: &[(&str, Known)] = &[
    ("base", Fields(COMPONENT)),
    ("pilot", Fields(COMPONENT)),
    ("cni", Fields(COMPONENT)),
    ("istiodRemote", Fields(COMPONENT)),
    ("ingressGateways", Of(&Fields(GATEWAY))),
    ("egressGateways", Of(&Fields(GATEWAY))),
];
const PROXY: &[(&str, Known)] = &[
    ("image", Text),
    ("autoInject", Text),
    ("clusterDomain", Text),
    ("componentLogLevel", Text),
    ("logLevel", Text),
    ("includeInboundPorts", Word),
    ("excludeInboundPorts", Word),
    ("includeIPRanges", Word),
    ("excludeIPRanges", Word),
    ("includeOutboundPorts", Word),
    ("excludeOutboundPorts", Word),
    ("privileged", Bool),
    ("holdApplicationUntilProxyStarts", Bool),
    ("readinessInitialDelaySeconds", Count),
    ("readinessPeriodSeconds", Count),
    ("readinessFailureThreshold", Count),
    ("startupProbe", Map),
    ("resources", Map),
    ("statusPort", Count),
    ("tracer", Text),
    ("lifecycle", Map),
    ("seccompProfile", Map),
];
const PROXY_WITHOUT: &[&str] = &["enableCoreDump", "outlierLogPath", "dnsRefreshRate", "concurrency"];
const GLOBAL: &[(&str, Known)] = &[
    ("istioNamespace", Text),
    ("hub", Text),
    ("tag", Word),
    ("variant", Text),
    ("imagePullPolicy", Text),
    ("imagePullSecrets", TEXTS),
    ("logAsJson", Bool),
    ("logging", Fields(&[("level", Text)])),
    ("caAddress", Text),
    ("certSigners", TEXTS),
    ("meshID", Word),
    ("meshNetworks", Map),
    ("mountMtlsCerts", Bool),
    ("multiCluster", Fields(&[("clusterName", Word), ("enabled", Bool), ("includeEnvoyFilter", Bool)])),
    ("network", Word),
    ("pilotCertProvider", Text),
    ("sds", Map),
    ("nativeNftables", Bool),
    ("trustBundleName", Text),
    ("configValidation", Bool),
    ("monitoringPort", Any),
    ("platform", Text),
    ("priorityClassName", Text),
    ("defaultNodeSelector", TEXT_BY_NAME),
    ("defaultTolerations", ITEMS),
    ("defaultPodDisruptionBudget", Fields(&[("enabled", Bool)])),
    ("remotePilotAddress", Text),
    ("proxy", Values(PROXY, PROXY_WITHOUT)),
    ("proxy_init", Map),
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
    ("affinity", Map),
    ("autoscaleBehavior", Map),
    ("autoscaleEnabled", Bool),
    ("autoscaleMax", Count),
    ("autoscaleMin", Count),
    ("cni", Fields(&[("enabled", Bool), ("provider", Text)])),
    ("cpu", Fields(&[("targetAverageUtilization", Count)])),
    ("crlConfigMapName", Text),
    ("env", MapOf(&Scalar)),
    ("extraContainerArgs", WORDS),
    ("hub", Text),
    ("image", Text),
    ("keepaliveMaxServerConnectionAge", Text),
    ("nodeSelector", TEXT_BY_NAME),
    ("podAnnotations", TEXT_BY_NAME),
    ("podLabels", TEXT_BY_NAME),
    ("replicaCount", Count),
    ("resources", Map),
    ("rollingMaxSurge", Amount),
    ("rollingMaxUnavailable", Amount),
    ("serviceAnnotations", TEXT_BY_NAME),
    ("tag", Word),
    ("tolerations", ITEMS),
    ("traceSampling", Any),
    ("volumeMounts", ITEMS),
    ("volumes", ITEMS),
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
    ("affinity", Map),
    ("autoscaleEnabled", Bool),
    ("autoscaleMax", Count),
    ("autoscaleMin", Count),
    ("cpu", Fields(&[("targetAverageUtilization", Count)])),
    ("debug", Text),
    ("env", MapOf(&Scalar)),
    ("externalTrafficPolicy", Text),
    ("injectionTemplate", Text),
    ("loadBalancerIP", Text),
    ("loadBalancerSourceRanges", TEXTS),
    ("nodeSelector", TEXT_BY_NAME),
    ("podAnnotations", TEXT_BY_NAME),
    ("ports", ITEMS),
    ("replicaCount", Count),
    ("resources", Map),
    ("rollingMaxSurge", Amount),
    ("rollingMaxUnavailable", Amount),
    ("serviceAnnotations", TEXT_BY_NAME),
    ("tolerations", ITEMS),
    ("type", Text),
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
    ("neverInjectSelector", ITEMS),
    ("alwaysInjectSelector", ITEMS),
    ("injectedAnnotations", TEXT_BY_NAME),
    ("enableNamespacesByDefault", Bool),
    ("rewriteAppHTTPProbe", Bool),
    ("templates", Map),
    ("defaultTemplates", TEXTS),
    ("reinvocationPolicy", Text),
];
const INJECTOR_WITHOUT: &[&str] =
    &["injectionURL", "objectSelector", "gatewayTemplates", "hub", "image", "tag", "useLegacySelectors"];
const CNI: &[(&str, Known)] = &[
    ("chained", Bool),
    ("cniBinDir", Text),
    ("cniConfDir", Text),
    ("cniConfFileName", Text),
    ("enabled", Bool),
    ("excludeNamespaces", TEXTS),
    ("hub", Text),
    ("image", Text),
    ("provider", Text),
    ("repair", Fields(&[("enabled", Bool)])),
    ("resources", Map),
    ("tag", Word),
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
                ("securityContext", Map),
            ],
            &["enabled", "seccompProfile"],
        ),
    ),
    ("sidecarInjectorWebhook", Values(INJECTOR, INJECTOR_WITHOUT)),
    ("meshConfig", Map),
    ("istio_cni", Values(&[("enabled", Bool)], &["chained", "provider"])),
    ("cni", Values(CNI, CNI_WITHOUT)),
    (
        "istiodRemote",
        Values(
            &[("injectionURL", Text), ("injectionCABundle", Text)],
            &["enabled", "enabledLocalInjectorIstiod", "injectionPath"],
        ),
    ),
    ("revision", Text),
    ("revisionTags", TEXTS),
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
pub(super) const TOP: Known = Fields(&[
    ("profile", Text),
    ("hub", Text),
    ("tag", Word),
    ("revision", Text),
    ("namespace", Text),
    ("meshConfig", Map),
    ("values", Values(VALUES, VALUES_WITHOUT)),
    ("unvalidatedValues", Map),
    ("components", Fields(COMPONENTS)),
]);
