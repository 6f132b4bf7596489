//! Typed specs of the Kubernetes Gateway API (`gateway.networking.k8s.io`), and of the older kinds that the same traffic is
//! described by: [`v1alpha1`] (`networking.x-k8s.io`) and [`ingress`] (`networking.k8s.io`). Shapes only; what they mean is
//! the model's business.
//!
//! Each struct is the `spec` of the kind of that name. All served versions of a kind read into one struct: later versions
//! only added fields. Words that may grow (`type` of a filter, `from` of a selector) are kept as text.

pub mod ingress;
pub mod v1alpha1;

use crate::istio::LabelSelector;
use crate::macros::spec;
use serde_json::Value;
use std::collections::BTreeMap;

/// Group of the kinds.
pub const GROUP: &str = "gateway.networking.k8s.io";

spec! {
    /// Which controller serves the Gateways of a class.
    pub struct GatewayClass {
        /// Name of the controller; Weft answers to `istio.io/gateway-controller`.
        controller_name: String,
        /// For people.
        description: String,
        /// Not used.
        parameters_ref: Option<Value>,
    }

    /// What the proxies of a gateway listen on.
    pub struct Gateway {
        /// Class.
        gateway_class_name: String,
        /// Listeners.
        listeners: Vec<Listener>,
        /// Services of gateway workloads that serve it (`type: Hostname`). Default: those made for it, else the mesh's.
        addresses: Vec<GatewayAddress>,
        /// Labels and annotations of what is made for it.
        infrastructure: Option<Value>,
        /// Which ListenerSets may add listeners; not used.
        allowed_listeners: Option<Value>,
        /// TLS that holds for all listeners.
        tls: Option<GatewayTls>,
        /// Not used.
        default_scope: Option<Value>,
    }

    /// TLS that holds for all listeners.
    pub struct GatewayTls {
        /// Towards clients.
        frontend: Option<FrontendTls>,
        /// Client certificate towards backends; not used.
        backend: Option<Value>,
    }

    /// TLS towards clients.
    pub struct FrontendTls {
        /// For all HTTPS ports that the list does not name.
        default: FrontendTlsSettings,
        /// By port.
        per_port: Vec<FrontendTlsPort>,
    }

    /// TLS towards clients of a port.
    pub struct FrontendTlsPort {
        /// Port.
        port: u32,
        /// Settings.
        tls: FrontendTlsSettings,
    }

    /// TLS towards clients.
    pub struct FrontendTlsSettings {
        /// Verification of clients.
        validation: Option<FrontendValidation>,
    }

    /// An address of a Gateway.
    pub struct GatewayAddress {
        /// `IPAddress` (default), `Hostname`.
        #[serde(rename = "type")]
        kind: Option<String>,
        /// The address.
        value: String,
    }

    /// One listener.
    pub struct Listener {
        /// Name, unique in the Gateway.
        name: String,
        /// Host served: a name or `*.` wildcard. Default: all.
        hostname: String,
        /// Port that clients dial.
        port: u32,
        /// `HTTP`, `HTTPS`, `TLS`, `TCP`, `UDP`.
        protocol: String,
        /// TLS, for `HTTPS` and `TLS`.
        tls: Option<ListenerTls>,
        /// Which routes may attach. Default: those of the Gateway's namespace.
        allowed_routes: Option<AllowedRoutes>,
    }

    /// TLS of a listener.
    pub struct ListenerTls {
        /// `Terminate` (default) or `Passthrough`.
        mode: String,
        /// Secrets with certificates.
        certificate_refs: Vec<ObjectReference>,
        /// Settings by name, such as `gateway.istio.io/tls-terminate-mode`.
        options: BTreeMap<String, String>,
        /// Verification of clients.
        frontend_validation: Option<FrontendValidation>,
    }

    /// Verification of clients.
    pub struct FrontendValidation {
        /// ConfigMaps or Secrets with CA certificates.
        ca_certificate_refs: Vec<ObjectReference>,
        /// `AllowValidOnly` (default) or `AllowInsecureFallback`.
        mode: String,
    }

    /// Which routes may attach to a listener.
    pub struct AllowedRoutes {
        /// Namespaces of routes.
        namespaces: Option<RouteNamespaces>,
        /// Kinds of routes. Default: those of the protocol.
        kinds: Vec<RouteGroupKind>,
    }

    /// Namespaces of routes.
    pub struct RouteNamespaces {
        /// `Same` (default), `All`, `Selector`, `None`.
        from: String,
        /// For `Selector`: labels of namespaces.
        selector: Option<LabelSelector>,
    }

    /// A kind of route.
    pub struct RouteGroupKind {
        /// Default: `gateway.networking.k8s.io`.
        group: Option<String>,
        /// Kind.
        kind: String,
    }

    /// Another object, mostly in the same namespace.
    pub struct ObjectReference {
        /// Group. Default: core.
        group: String,
        /// Kind. Default: `Secret` or `Service`, by place.
        kind: String,
        /// Name.
        name: String,
        /// Namespace. Default: the object's own; another one needs a ReferenceGrant.
        namespace: String,
    }

    /// What a route attaches to.
    pub struct ParentReference {
        /// Group. Default: `gateway.networking.k8s.io`.
        group: Option<String>,
        /// Kind. Default: `Gateway`; `Service` (group empty) binds the route to clients in the mesh.
        kind: Option<String>,
        /// Namespace. Default: the route's own.
        namespace: Option<String>,
        /// Name.
        name: String,
        /// One listener of it.
        section_name: Option<String>,
        /// Listeners of one port.
        port: Option<u32>,
    }

    /// HTTP rules.
    pub struct HttpRoute {
        /// What it attaches to.
        parent_refs: Vec<ParentReference>,
        /// Hosts. Default: those of the listeners.
        hostnames: Vec<String>,
        /// Rules.
        rules: Vec<HttpRouteRule>,
        /// Not used.
        use_default_gateways: Option<Value>,
    }

    /// One HTTP rule.
    pub struct HttpRouteRule {
        /// Name for logs.
        name: String,
        /// Conditions, any of which suffices. Default: every path.
        matches: Vec<HttpRouteMatch>,
        /// What is done with a request.
        filters: Vec<HttpRouteFilter>,
        /// Destinations by weight.
        backend_refs: Vec<HttpBackendRef>,
        /// Time limits.
        timeouts: Option<HttpRouteTimeouts>,
        /// Retries.
        retry: Option<HttpRouteRetry>,
        /// Not used.
        session_persistence: Option<Value>,
    }

    /// Conditions; all of them must hold.
    pub struct HttpRouteMatch {
        /// Path. Default: prefix `/`.
        path: Option<PathMatch>,
        /// Headers.
        headers: Vec<NamedMatch>,
        /// Query parameters.
        query_params: Vec<NamedMatch>,
        /// Method.
        method: String,
    }

    /// A condition on the path.
    pub struct PathMatch {
        /// `PathPrefix` (default), `Exact`, `RegularExpression`.
        #[serde(rename = "type")]
        kind: String,
        /// Default: `/`.
        value: Option<String>,
    }

    /// A condition on a header or query parameter.
    pub struct NamedMatch {
        /// `Exact` (default), `RegularExpression`.
        #[serde(rename = "type")]
        kind: String,
        /// Name.
        name: String,
        /// Value.
        value: String,
    }

    /// Something done with a request: one of the fields, which `type` names.
    pub struct HttpRouteFilter {
        /// `RequestHeaderModifier`, `ResponseHeaderModifier`, `RequestMirror`, `RequestRedirect`, `URLRewrite`, `CORS`,
        /// `ExtensionRef`.
        #[serde(rename = "type")]
        kind: String,
        /// Changes of request headers.
        request_header_modifier: Option<HeaderModifier>,
        /// Changes of response headers.
        response_header_modifier: Option<HeaderModifier>,
        /// A copy of the request.
        request_mirror: Option<RequestMirror>,
        /// A redirect.
        request_redirect: Option<RequestRedirect>,
        /// A rewrite.
        url_rewrite: Option<UrlRewrite>,
        /// Cross-origin policy.
        cors: Option<Cors>,
        /// An object of someone else; not supported.
        extension_ref: Option<ObjectReference>,
        /// Not supported.
        external_auth: Option<Value>,
    }

    /// Changes of headers.
    pub struct HeaderModifier {
        /// Overwrite.
        set: Vec<HttpHeader>,
        /// Append.
        add: Vec<HttpHeader>,
        /// Remove.
        remove: Vec<String>,
    }

    /// A header.
    pub struct HttpHeader {
        /// Name.
        name: String,
        /// Value.
        value: String,
    }

    /// A copy of requests.
    pub struct RequestMirror {
        /// Where to.
        backend_ref: BackendRef,
        /// Share, percent.
        percent: Option<u32>,
        /// Share, as a fraction.
        fraction: Option<Fraction>,
    }

    /// A fraction.
    pub struct Fraction {
        /// Of so many.
        numerator: u32,
        /// Default: 100.
        denominator: Option<u32>,
    }

    /// A redirect.
    pub struct RequestRedirect {
        /// New scheme.
        scheme: Option<String>,
        /// New host.
        hostname: Option<String>,
        /// New path.
        path: Option<PathModifier>,
        /// New port.
        port: Option<u32>,
        /// Default: 302.
        status_code: Option<u32>,
    }

    /// A rewrite.
    pub struct UrlRewrite {
        /// New host.
        hostname: Option<String>,
        /// New path.
        path: Option<PathModifier>,
    }

    /// A change of the path.
    pub struct PathModifier {
        /// `ReplaceFullPath`, `ReplacePrefixMatch`.
        #[serde(rename = "type")]
        kind: String,
        /// The whole path.
        replace_full_path: Option<String>,
        /// Instead of the prefix that matched.
        replace_prefix_match: Option<String>,
    }

    /// Cross-origin policy.
    pub struct Cors {
        /// Origins, with `*` for any.
        allow_origins: Vec<String>,
        /// Whether credentials may be sent.
        allow_credentials: Option<bool>,
        /// Methods.
        allow_methods: Vec<String>,
        /// Request headers.
        allow_headers: Vec<String>,
        /// Response headers that scripts may read.
        expose_headers: Vec<String>,
        /// Seconds that a preflight answer may be kept. Default: 5.
        max_age: Option<u32>,
    }

    /// Time limits, as Kubernetes writes durations.
    pub struct HttpRouteTimeouts {
        /// For the whole request.
        request: Option<String>,
        /// For each try.
        backend_request: Option<String>,
    }

    /// Retries.
    pub struct HttpRouteRetry {
        /// Statuses that are tried again.
        codes: Vec<u32>,
        /// How often.
        attempts: Option<u32>,
        /// Least wait.
        backoff: Option<String>,
    }

    /// A destination with its share and its own filters.
    pub struct HttpBackendRef {
        /// Group. Default: core.
        group: String,
        /// Kind. Default: `Service`; also `ServiceEntry` and `Hostname` of `networking.istio.io`.
        kind: String,
        /// Name.
        name: String,
        /// Namespace. Default: the route's own; another one needs a ReferenceGrant.
        namespace: String,
        /// Port of the service.
        port: Option<u32>,
        /// Share. Default: 1.
        weight: Option<u32>,
        /// Filters for this destination alone.
        filters: Vec<HttpRouteFilter>,
    }

    /// A destination with its share.
    pub struct BackendRef {
        /// Group. Default: core.
        group: String,
        /// Kind. Default: `Service`.
        kind: String,
        /// Name.
        name: String,
        /// Namespace. Default: the route's own; another one needs a ReferenceGrant.
        namespace: String,
        /// Port of the service.
        port: Option<u32>,
        /// Share. Default: 1.
        weight: Option<u32>,
    }

    /// gRPC rules.
    pub struct GrpcRoute {
        /// What it attaches to.
        parent_refs: Vec<ParentReference>,
        /// Hosts. Default: those of the listeners.
        hostnames: Vec<String>,
        /// Rules.
        rules: Vec<GrpcRouteRule>,
        /// Not used.
        use_default_gateways: Option<Value>,
    }

    /// One gRPC rule.
    pub struct GrpcRouteRule {
        /// Name for logs.
        name: String,
        /// Conditions, any of which suffices. Default: every call.
        matches: Vec<GrpcRouteMatch>,
        /// What is done with a call.
        filters: Vec<HttpRouteFilter>,
        /// Destinations by weight.
        backend_refs: Vec<HttpBackendRef>,
        /// Not used.
        session_persistence: Option<Value>,
    }

    /// Conditions on a call; all of them must hold.
    pub struct GrpcRouteMatch {
        /// Service and method.
        method: Option<GrpcMethodMatch>,
        /// Headers.
        headers: Vec<NamedMatch>,
    }

    /// A condition on service and method.
    pub struct GrpcMethodMatch {
        /// `Exact` (default), `RegularExpression`.
        #[serde(rename = "type")]
        kind: String,
        /// Service; empty = any.
        service: String,
        /// Method; empty = any.
        method: String,
    }

    /// Rules for TLS by server name.
    pub struct TlsRoute {
        /// What it attaches to.
        parent_refs: Vec<ParentReference>,
        /// Server names. Default: those of the listeners.
        hostnames: Vec<String>,
        /// Rules; the first holds.
        rules: Vec<L4Rule>,
        /// Not used.
        use_default_gateways: Option<Value>,
    }

    /// Rules for bytes.
    pub struct TcpRoute {
        /// What it attaches to.
        parent_refs: Vec<ParentReference>,
        /// Rules; the first holds.
        rules: Vec<L4Rule>,
        /// Not used.
        use_default_gateways: Option<Value>,
    }

    /// One rule for connections.
    pub struct L4Rule {
        /// Name.
        name: String,
        /// Destinations by weight.
        backend_refs: Vec<BackendRef>,
    }

    /// Allows objects of other namespaces to refer to objects of this one.
    pub struct ReferenceGrant {
        /// Who may refer.
        from: Vec<ReferenceGrantFrom>,
        /// To what.
        to: Vec<ReferenceGrantTo>,
    }

    /// Who may refer.
    pub struct ReferenceGrantFrom {
        /// Group.
        group: String,
        /// Kind.
        kind: String,
        /// Namespace.
        namespace: String,
    }

    /// What may be referred to.
    pub struct ReferenceGrantTo {
        /// Group; empty for core.
        group: String,
        /// Kind.
        kind: String,
        /// Name. Default: all.
        name: Option<String>,
    }

    /// TLS from gateways to services.
    pub struct BackendTlsPolicy {
        /// Services, and ports of them.
        target_refs: Vec<PolicyTarget>,
        /// How the server is verified.
        validation: BackendTlsValidation,
        /// Settings by name; not used.
        options: BTreeMap<String, String>,
    }

    /// What a policy is about.
    pub struct PolicyTarget {
        /// Group; empty for core.
        group: String,
        /// Kind: `Service`.
        kind: String,
        /// Name.
        name: String,
        /// Name of a port. Default: all.
        section_name: Option<String>,
    }

    /// How a server is verified.
    pub struct BackendTlsValidation {
        /// ConfigMaps or Secrets with the key `ca.crt`.
        ca_certificate_refs: Vec<ObjectReference>,
        /// `System`: the system's own certificates.
        #[serde(rename = "wellKnownCACertificates")]
        well_known_ca_certificates: Option<String>,
        /// Server name to send, and to find in the certificate unless names are given.
        hostname: String,
        /// Names to find in the certificate.
        subject_alt_names: Vec<SubjectAltName>,
    }

    /// A name of a certificate.
    pub struct SubjectAltName {
        /// `Hostname` or `URI`.
        #[serde(rename = "type")]
        kind: String,
        /// For `Hostname`.
        hostname: String,
        /// For `URI`.
        uri: String,
    }
}
