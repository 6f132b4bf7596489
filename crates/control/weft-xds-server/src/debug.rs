//! The monitoring port: readiness, version, metrics, and debug endpoints for those who may see configuration.

use crate::auth::BoxFuture;
use crate::dump::config_dump;
use crate::server::AdsServer;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use weft_model::{EndpointAddress, MeshSnapshot, Registry, Service};

/// What of the configuration a caller may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of it.
    Mesh,
    /// What is of this namespace.
    Namespace(String),
}

impl Scope {
    /// Whether what is of `namespace` may be seen.
    pub fn covers(&self, namespace: &str) -> bool {
        match self {
            Self::Mesh => true,
            Self::Namespace(own) => own == namespace,
        }
    }
}

/// Says what the bearer of these headers, who calls from that address, may see; `None` = nothing.
pub type Access = Arc<dyn Fn(HeaderMap, Option<IpAddr>) -> BoxFuture<'static, Option<Scope>> + Send + Sync>;

/// What the monitoring port shows.
#[derive(Clone)]
pub struct Monitoring {
    /// The server.
    pub server: AdsServer,
    /// Name of this instance: the pod's.
    pub instance: String,
    /// Version of the control plane.
    pub version: String,
    /// Why it is not ready; empty when it is.
    pub not_ready: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Metrics of other parts, as Prometheus text.
    pub more_metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Who may see what of the debug endpoints. To call from this machine is no proof of anything: a port-forward, or any
    /// other container of the pod, calls from here.
    pub access: Access,
}

/// The routes of the monitoring port. Serve them with connection info of [`SocketAddr`].
pub fn router(monitoring: Monitoring) -> Router {
    let debug = Router::new()
        .route("/debug/syncz", get(syncz))
        .route("/debug/config_dump", get(dump))
        .route("/debug/config_distribution", get(distribution))
        .route("/debug/registryz", get(registryz))
        .route("/debug/endpointz", get(endpointz))
        .route("/debug/push_status", get(push_status))
        .layer(middleware::from_fn_with_state(monitoring.clone(), guard));
    Router::new()
        .route("/ready", get(ready))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .merge(debug)
        .with_state(monitoring)
}

/// Configuration says who talks to whom: only proven callers see it, and of it only what concerns them.
async fn guard(State(monitoring): State<Monitoring>, mut request: Request, next: Next) -> Response {
    let remote = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|c| c.0.ip().to_canonical());
    match (monitoring.access)(request.headers().clone(), remote).await {
        Some(scope) => {
            request.extensions_mut().insert(scope);
            next.run(request).await
        }
        None => {
            let message =
                "debug endpoints need `authorization: Bearer TOKEN` of a service account (audience istio-ca)\n";
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], message).into_response()
        }
    }
}

async fn ready(State(monitoring): State<Monitoring>) -> Response {
    let reasons = (monitoring.not_ready)();
    if reasons.is_empty() {
        return (StatusCode::OK, "ready\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; "))).into_response()
}

async fn version(State(monitoring): State<Monitoring>) -> Json<Value> {
    Json(json!({ "version": monitoring.version, "instance": monitoring.instance }))
}

async fn metrics(State(monitoring): State<Monitoring>) -> Response {
    let server = &monitoring.server;
    let snapshot = server.snapshot().unwrap_or_default();
    let count = |n: usize| n as u64;
    let gauges = [
        ("pilot_xds", "Proxies connected", count(server.proxies().len())),
        ("pilot_xds_connected", "Proxies connected", count(server.proxies().len())),
        ("pilot_services", "Services known", count(snapshot.services.len())),
        ("pilot_virt_services", "Virtual services known", count(snapshot.virtual_services.len())),
        ("pilot_workloads", "Workloads known", count(snapshot.workloads_by_name.len())),
        ("pilot_warnings", "Objects accepted with a warning", count(snapshot.warnings.len())),
        ("pilot_snapshot_version", "Builds since start", snapshot.version),
    ];
    let mut text = server.metrics().render(&gauges);
    let version = monitoring.version.replace(['"', '\\', '\n'], "_");
    text.push_str(&format!(
        "# HELP pilot_info Version\n# TYPE pilot_info gauge\npilot_info{{version=\"{version}\"}} 1\n"
    ));
    text.push_str(&(monitoring.more_metrics)());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn syncz(State(monitoring): State<Monitoring>, Extension(scope): Extension<Scope>) -> Json<Value> {
    let proxies = monitoring.server.proxies().list();
    let shown = proxies.iter().filter(|p| scope.covers(namespace_of(&p.name)));
    Json(shown.map(|p| p.to_json(&monitoring.instance)).collect())
}

/// The namespace of a proxy: what follows the last dot of `POD.NAMESPACE`.
fn namespace_of(proxy: &str) -> &str {
    proxy.rsplit_once('.').map_or("", |(_, namespace)| namespace)
}

#[derive(Deserialize)]
struct DumpQuery {
    #[serde(rename = "proxyID")]
    proxy: Option<String>,
}

async fn dump(
    State(monitoring): State<Monitoring>,
    Extension(scope): Extension<Scope>,
    Query(query): Query<DumpQuery>,
) -> Response {
    let Some(wanted) = query.proxy else {
        return (StatusCode::BAD_REQUEST, "say which proxy: ?proxyID=POD.NAMESPACE\n").into_response();
    };
    // The newest connection of that name: an older one may not have noticed its end.
    let mut proxies = monitoring.server.proxies().list();
    proxies.retain(|p| scope.covers(namespace_of(&p.name)));
    let Some(offer) = proxies.iter().rev().find(|p| p.name == wanted).and_then(|p| p.offer()) else {
        let known: Vec<&str> = proxies.iter().map(|p| p.name.as_str()).take(50).collect();
        let message = format!("proxy {wanted} is not connected to this instance; connected: {}\n", known.join(", "));
        return (StatusCode::NOT_FOUND, message).into_response();
    };
    match config_dump(&offer) {
        Ok(value) => Json(value).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// An object.
#[derive(Deserialize)]
struct ObjectQuery {
    #[serde(default)]
    group: String,
    kind: String,
    #[serde(default)]
    namespace: String,
    name: String,
}

/// Which version of an object the configuration is made from, and which proxies have that configuration.
async fn distribution(
    State(monitoring): State<Monitoring>,
    Extension(scope): Extension<Scope>,
    Query(query): Query<ObjectQuery>,
) -> Json<Value> {
    let server = &monitoring.server;
    // In this order: what follows from the object is then in the snapshot, or in a later one.
    let inputs = server.inputs();
    let version = server.snapshot().map_or(0, |snapshot| snapshot.version);
    let mut objects = inputs.of(&query.group, &query.kind).iter();
    let found = objects.find(|o| o.namespace() == query.namespace && o.name() == query.name);
    let object = found.filter(|_| scope.covers(&query.namespace)).map(|object| {
        let metadata = &object.metadata;
        json!({
            "generation": metadata.generation.unwrap_or(0),
            "resourceVersion": metadata.resource_version.clone().unwrap_or_default(),
        })
    });
    let proxies = server.proxies().list();
    let shown = proxies.iter().filter(|p| scope.covers(namespace_of(&p.name)));
    Json(json!({"object": object, "version": version, "proxies": shown.map(|p| p.distribution()).collect::<Vec<_>>()}))
}

async fn registryz(State(monitoring): State<Monitoring>, Extension(scope): Extension<Scope>) -> Json<Value> {
    let snapshot = monitoring.server.snapshot().unwrap_or_default();
    let shown = snapshot.services.values().flatten().filter(|s| scope.covers(&s.namespace));
    Json(shown.map(|s| service_json(s)).collect())
}

fn service_json(service: &weft_model::Service) -> Value {
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|p| json!({ "name": p.name, "port": p.number, "protocol": format!("{:?}", p.protocol) }))
        .collect();
    let addresses: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
    json!({
        "hostname": &*service.host,
        "name": service.name,
        "namespace": service.namespace,
        "registry": match service.registry { Some(Registry::External) => "External", _ => "Kubernetes" },
        "addresses": addresses,
        "autoAddresses": service.auto_addresses,
        "ports": ports,
        "resolution": format!("{:?}", service.resolution),
        "meshExternal": service.mesh_external,
        "identities": service.identities,
    })
}

async fn endpointz(State(monitoring): State<Monitoring>, Extension(scope): Extension<Scope>) -> Json<Value> {
    let snapshot = monitoring.server.snapshot().unwrap_or_default();
    Json(endpoints_json(&snapshot, &scope))
}

fn endpoints_json(snapshot: &MeshSnapshot, scope: &Scope) -> Value {
    // By the service whose endpoints they are: a host may be several namespaces', each with endpoints of its own.
    let of_host = |list: &Vec<Arc<Service>>| {
        let owner = list.first().map(|service| service.namespace.clone()).unwrap_or_default();
        let shown = list.iter().filter(|service| scope.covers(&service.namespace)).cloned().collect::<Vec<_>>();
        shown.into_iter().flat_map(move |service| {
            let owns = service.namespace == owner;
            let ports: Vec<u16> = service.ports.iter().map(|port| port.number).collect();
            ports.into_iter().filter_map(move |port| {
                let host = service.host.clone();
                let found = match owns {
                    true => snapshot.endpoints.get(&(host.clone(), port)),
                    false => snapshot.other_endpoints.get(&(service.namespace.clone(), host.clone(), port)),
                };
                Some(((host, port, service.namespace.clone()), found?))
            })
        })
    };
    let all: BTreeMap<_, _> = snapshot.services.values().flat_map(of_host).collect();
    let address = |a: &EndpointAddress| match a {
        EndpointAddress::Ip(ip, port) => SocketAddr::new(*ip, *port).to_string(),
        EndpointAddress::Name(name, port) => format!("{name}:{port}"),
        EndpointAddress::Unix(path) => format!("unix://{path}"),
    };
    all.into_iter()
        .map(|((host, port, namespace), list)| {
            let endpoints: Vec<Value> = list
                .iter()
                .map(|e| {
                    json!({
                        "address": address(&e.address),
                        "health": format!("{:?}", e.health),
                        "mtls": e.mtls,
                        "identity": e.identity,
                        "locality": e.locality,
                        "workload": e.workload.as_ref().map(|w| format!("{}/{}", w.namespace, w.name)),
                    })
                })
                .collect();
            json!({ "service": &*host, "namespace": namespace, "port": port, "endpoints": endpoints })
        })
        .collect()
}

async fn push_status(State(monitoring): State<Monitoring>, Extension(scope): Extension<Scope>) -> Json<Value> {
    let snapshot = monitoring.server.snapshot().unwrap_or_default();
    let warnings: Vec<Value> = snapshot
        .warnings
        .iter()
        .filter(|w| scope.covers(&w.at.namespace))
        .map(|w| {
            json!({
                "code": w.code,
                "kind": w.at.kind,
                "namespace": w.at.namespace,
                "name": w.at.name,
                "path": w.at.path,
                "message": w.message,
            })
        })
        .collect();
    Json(json!({ "version": snapshot.version, "warnings": warnings }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_model::{Endpoint, ServicePort};

    #[test]
    fn class_debug_exposure_a_shared_host_shows_the_own_endpoints_alone() {
        let host: weft_core::Strng = "shared.example".into();
        let service = |namespace: &str| {
            let port = |number| ServicePort { number, ..ServicePort::default() };
            let ports = vec![port(80), port(53)];
            Arc::new(Service { host: host.clone(), namespace: namespace.into(), ports, ..Service::default() })
        };
        let at = |ip: [u8; 4]| {
            let address = EndpointAddress::Ip(ip.into(), 80);
            Arc::new(vec![Endpoint {
                address,
                labels: Arc::default(),
                workload: None,
                identity: String::new(),
                mtls: false,
                locality: String::new(),
                network: String::new(),
                weight: 0,
                health: weft_model::Health::Healthy,
                node: String::new(),
            }])
        };
        let mut snapshot = MeshSnapshot::default();
        snapshot.services.insert(host.clone(), vec![service("a"), service("b")]);
        snapshot.endpoints.insert((host.clone(), 80), at([10, 0, 0, 1]));
        snapshot.endpoints.insert((host.clone(), 53), at([10, 0, 0, 3]));
        snapshot.other_endpoints.insert(("b".into(), host, 80), at([10, 0, 0, 2]));
        let shown = |scope: Scope| {
            let found = endpoints_json(&snapshot, &scope).to_string();
            ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|ip| found.contains(ip))
        };
        assert_eq!(shown(Scope::Mesh), [true, true, true]);
        assert_eq!(shown(Scope::Namespace("a".into())), [true, false, true]);
        assert_eq!(shown(Scope::Namespace("b".into())), [false, true, false]);
        assert_eq!(shown(Scope::Namespace("c".into())), [false, false, false]);
    }
}
