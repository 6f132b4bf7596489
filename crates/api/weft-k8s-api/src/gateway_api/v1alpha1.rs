//! The Gateway API as it was at its version 0.3: `networking.x-k8s.io/v1alpha1`. Gateways select routes, and routes say
//! which gateways may.

use crate::istio::LabelSelector;
use crate::macros::spec;
use serde_json::Value;
use std::collections::BTreeMap;

/// Group of the kinds.
pub const GROUP: &str = "networking.x-k8s.io";

spec! {
    /// Which controller serves the Gateways of a class.
    pub struct GatewayClass {
        /// Name of the controller; Weft answers to `istio.io/gateway-controller`.
        controller: String,
        /// Not used.
        parameters_ref: Option<Value>,
    }

    /// What the proxies of a gateway listen on.
    pub struct Gateway {
        /// Class.
        gateway_class_name: String,
        /// Listeners.
        listeners: Vec<Listener>,
        /// Services of gateway workloads that serve it (`type: NamedAddress`). Default: the mesh's ingress gateway.
        addresses: Vec<super::GatewayAddress>,
    }

    /// One listener.
    pub struct Listener {
        /// Host served; `*` or nothing = all.
        hostname: String,
        /// Port that clients dial.
        port: u32,
        /// `HTTP`, `HTTPS`, `TLS`, `TCP`, `UDP`.
        protocol: String,
        /// TLS, for `HTTPS` and `TLS`.
        tls: Option<ListenerTls>,
        /// Which routes attach.
        routes: RouteBindingSelector,
    }

    /// TLS of a listener.
    pub struct ListenerTls {
        /// `Terminate` (default) or `Passthrough`.
        mode: String,
        /// Secret with the certificate, in the Gateway's namespace.
        certificate_ref: Option<LocalReference>,
        /// Whether routes may bring certificates of their own; not used.
        route_override: Option<Value>,
        /// Settings by name; not used.
        options: BTreeMap<String, String>,
    }

    /// An object of the same namespace.
    pub struct LocalReference {
        /// Group.
        group: String,
        /// Kind.
        kind: String,
        /// Name.
        name: String,
    }

    /// Which routes attach to a listener.
    pub struct RouteBindingSelector {
        /// Namespaces of routes.
        namespaces: Option<super::RouteNamespaces>,
        /// Labels of routes.
        selector: Option<LabelSelector>,
        /// Group. Default: `networking.x-k8s.io`.
        group: Option<String>,
        /// Kind: `HTTPRoute`, `TLSRoute`, `TCPRoute`.
        kind: String,
    }

    /// Which gateways may select a route.
    pub struct RouteGateways {
        /// `SameNamespace` (default), `All`, `FromList`.
        allow: String,
        /// For `FromList`.
        gateway_refs: Vec<GatewayReference>,
    }

    /// A gateway.
    pub struct GatewayReference {
        /// Name.
        name: String,
        /// Namespace.
        namespace: String,
    }

    /// HTTP rules.
    pub struct HttpRoute {
        /// Which gateways may select it.
        gateways: RouteGateways,
        /// Hosts. Default: those of the listeners.
        hostnames: Vec<String>,
        /// Certificate of its own; not used.
        tls: Option<Value>,
        /// Rules.
        rules: Vec<HttpRouteRule>,
    }

    /// One HTTP rule.
    pub struct HttpRouteRule {
        /// Conditions, any of which suffices. Default: every path.
        matches: Vec<HttpRouteMatch>,
        /// What is done with a request.
        filters: Vec<HttpRouteFilter>,
        /// Destinations by weight.
        forward_to: Vec<ForwardTo>,
    }

    /// Conditions; all of them must hold.
    pub struct HttpRouteMatch {
        /// Path. Default: prefix `/`.
        path: Option<PathMatch>,
        /// Headers.
        headers: Option<ValuesMatch>,
        /// Query parameters.
        query_params: Option<ValuesMatch>,
        /// Not supported.
        extension_ref: Option<LocalReference>,
    }

    /// A condition on the path.
    pub struct PathMatch {
        /// `Prefix` (default), `Exact`, `RegularExpression`.
        #[serde(rename = "type")]
        kind: String,
        /// Default: `/`.
        value: Option<String>,
    }

    /// Conditions on headers or query parameters.
    pub struct ValuesMatch {
        /// `Exact` (default), `RegularExpression`.
        #[serde(rename = "type")]
        kind: String,
        /// Values by name.
        values: BTreeMap<String, String>,
    }

    /// Something done with a request.
    pub struct HttpRouteFilter {
        /// `RequestHeaderModifier`, `RequestMirror`, `ExtensionRef`.
        #[serde(rename = "type")]
        kind: String,
        /// Changes of request headers.
        request_header_modifier: Option<HeaderModifier>,
        /// A copy of the request.
        request_mirror: Option<RequestMirror>,
        /// Not supported.
        extension_ref: Option<LocalReference>,
    }

    /// Changes of headers.
    pub struct HeaderModifier {
        /// Overwrite.
        set: BTreeMap<String, String>,
        /// Append.
        add: BTreeMap<String, String>,
        /// Remove.
        remove: Vec<String>,
    }

    /// A copy of requests.
    pub struct RequestMirror {
        /// A service of the route's namespace.
        service_name: Option<String>,
        /// Another object; not supported.
        backend_ref: Option<LocalReference>,
        /// Port of the service.
        port: Option<u32>,
    }

    /// A destination with its share.
    pub struct ForwardTo {
        /// A service of the route's namespace.
        service_name: Option<String>,
        /// Another object; not supported.
        backend_ref: Option<LocalReference>,
        /// Port of the service.
        port: Option<u32>,
        /// Share. Default: 1.
        weight: Option<u32>,
        /// Filters for this destination alone.
        filters: Vec<HttpRouteFilter>,
    }

    /// Rules for TLS by server name.
    pub struct TlsRoute {
        /// Which gateways may select it.
        gateways: RouteGateways,
        /// Rules.
        rules: Vec<TlsRouteRule>,
    }

    /// One rule for TLS.
    pub struct TlsRouteRule {
        /// Conditions, any of which suffices.
        matches: Vec<TlsRouteMatch>,
        /// Destinations by weight.
        forward_to: Vec<ForwardTo>,
    }

    /// Server names.
    pub struct TlsRouteMatch {
        /// Names.
        snis: Vec<String>,
        /// Not supported.
        extension_ref: Option<LocalReference>,
    }

    /// Rules for bytes.
    pub struct TcpRoute {
        /// Which gateways may select it.
        gateways: RouteGateways,
        /// Rules.
        rules: Vec<TcpRouteRule>,
    }

    /// One rule for bytes.
    pub struct TcpRouteRule {
        /// Not supported.
        matches: Vec<Value>,
        /// Destinations by weight.
        forward_to: Vec<ForwardTo>,
    }
}
