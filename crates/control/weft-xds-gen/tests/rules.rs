//! What of several objects, or of the fields of one, a proxy goes by: its clusters and routes.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Value, json};
use weft_proto::envoy::config::route::v3::RouteConfiguration;
use weft_proto::{json::to_json, unpack};
use weft_xds_gen::{GenCache, ResourceMap, generate};

/// A caller, and a deployment that serves one port.
const WORLD: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: caller, namespace: b}
spec: {template: {metadata: {labels: {app: caller}}, spec: {containers: [{name: c, image: i}]}}}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: b}
spec: {selector: {app: server}, ports: [{name: http, port: 8000, targetPort: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: server, namespace: b}
spec: {template: {metadata: {labels: {app: server}}, spec: {containers: [{name: s, image: i}]}}}
---
";

fn json_of<M: prost::Message + prost::Name + Default>(map: &ResourceMap, name: &str) -> Value {
    let resource = map.get(name).unwrap_or_else(|| panic!("{:?}", map.iter().map(|r| &r.name).collect::<Vec<_>>()));
    to_json(&unpack::<M>(&resource.any).unwrap(), true).unwrap()
}

/// A rule of another namespace for all, and a younger one of the client's own namespace for itself.
#[test]
fn the_clients_own_rule_comes_before_an_older_one_of_all() {
    let rule = |namespace: &str, status: u16, export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: x, namespace: {namespace}}}\n\
             spec: {{hosts: [x.example.com], gateways: [mesh, istio-system/gw], exportTo: [{export}], \
             http: [{{directResponse: {{status: {status}}}}}]}}\n---\n"
        )
    };
    let gateway = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: gw, namespace: istio-system}\n\
                   spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n---\n";
    let world = |status: u16| {
        let mut world = World::new();
        world.add(WORLD).add(common::INGRESS).add(gateway).add(&rule("a", 401, "'*'")).add(&rule("b", status, "b"));
        world.add(&rule("istio-system", status, "'.'")).snapshot()
    };
    let (first, second) = (world(402), world(403));
    for (pod, route) in [("b/caller-0", "80"), ("istio-system/istio-ingressgateway-0", "http.8080")] {
        let cache = GenCache::default();
        let status = |snapshot: &weft_model::MeshSnapshot| {
            let proxy = common::proxy(snapshot, pod, false, &Value::Null);
            let routes = json_of::<RouteConfiguration>(&cache.generate(snapshot, &proxy).routes, route);
            let hosts = routes["virtual_hosts"].as_array().unwrap().iter();
            let host = hosts.clone().find(|host| host["domains"][0] == "x.example.com");
            host.unwrap_or_else(|| panic!("{pod}: {routes}"))["routes"][0]["direct_response"]["status"].clone()
        };
        assert_eq!(status(&first), json!(402), "{pod}");
        // The same when nothing but the rules is new.
        let mut next = first.clone();
        next.version += 1;
        next.virtual_services.clone_from(&second.virtual_services);
        next.sections.virtual_services = next.version;
        assert_eq!(status(&next), json!(403), "{pod}");
    }
}
