//! What of several objects, or of the fields of one, a proxy goes by: its clusters and routes.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Value, json};
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use weft_proto::{json::to_json, unpack};
use weft_xds_gen::{AskedFacts, GenCache, ResourceMap, generate};

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

/// When a service's owner limits connections to it, the service's own proxy keeps to it too: it is there that an application is
/// kept from being called on a connection that it closes.
#[test]
fn limits_of_a_service_hold_at_its_own_proxy() {
    let rule = |more: &str, policy: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: server, namespace: b}}\n\
             spec: {{host: server{more}, trafficPolicy: {policy}}}\n---\n"
        )
    };
    let sidecar = |spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: s, namespace: b}}\nspec: {spec}\n---\n"
        )
    };
    let pool = |requests: u32, connections: u32| {
        format!(
            "{{http: {{idleTimeout: {requests}s, maxRequestsPerConnection: {requests}}}, tcp: {{maxConnections: {connections}}}}}"
        )
    };
    let of_rule = format!("{{connectionPool: {}, outlierDetection: {{consecutive5xxErrors: 1}}}}", pool(1, 10));
    let of_port = format!(
        "{{connectionPool: {}, portLevelSettings: [{{port: {{number: 8000}}, connectionPool: {}}}]}}",
        pool(1, 10),
        pool(2, 20)
    );
    let egress = "egress: [{hosts: ['*/*']}]";
    let ingress = "ingress: [{port: {number: 80, name: http, protocol: HTTP}, defaultEndpoint: '127.0.0.1:80'";
    let of_mesh = json!({"defaultTrafficPolicy": {"connectionPool": {"tcp": {"maxConnections": 50}}}});
    let nothing = json!({});
    // objects, mesh config, idle time and requests of a connection, connections
    let cases = [
        (String::new(), &nothing, None, u32::MAX),
        (rule("", &of_rule), &nothing, Some(1), 10),
        (rule("", &of_port), &nothing, Some(2), 20),
        (rule(", workloadSelector: {matchLabels: {app: server}}", &of_rule), &nothing, None, u32::MAX),
        (
            rule("", &of_rule) + &sidecar(&format!("{{inboundConnectionPool: {}, {egress}}}", pool(3, 30))),
            &nothing,
            Some(3),
            30,
        ),
        (
            rule("", &of_rule) + &sidecar(&format!("{{{egress}, {ingress}, connectionPool: {}}}]}}", pool(4, 40))),
            &nothing,
            Some(4),
            40,
        ),
        (rule("", &of_rule) + &sidecar(&format!("{{{egress}, {ingress}}}]}}")), &nothing, Some(1), 10),
        (String::new(), &of_mesh, None, 50),
    ];
    for (objects, mesh, requests, connections) in cases {
        let mut world = World::new();
        world.mesh = mesh.clone();
        let snapshot = world.add(WORLD).add(&objects).snapshot();
        let refused: Vec<_> = snapshot.warnings.iter().filter(|w| w.code == "IST0106").collect();
        assert!(refused.is_empty(), "{refused:?}");
        let proxy = common::proxy(&snapshot, "b/server-0", false, &Value::Null);
        let cluster = json_of::<Cluster>(&generate(&snapshot, &proxy).clusters, "inbound|80||");
        assert_eq!(cluster["circuit_breakers"]["thresholds"][0]["max_connections"], json!(connections), "{objects}");
        let options =
            &cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
        let common = &options["common_http_protocol_options"];
        let idle = requests.map_or(Value::Null, |n| json!(format!("{n}s")));
        assert_eq!(
            (&common["max_requests_per_connection"], &common["idle_timeout"]),
            (&json!(requests), &idle),
            "{objects}"
        );
        assert!(cluster["outlier_detection"].is_null(), "a proxy does not eject its own workload");
    }
}

/// A Sidecar's listener on a Unix socket, or one that clients are told to use as a proxy, takes requests to all ports.
#[test]
fn listeners_for_all_ports() {
    let objects = "
apiVersion: v1
kind: Service
metadata: {name: other, namespace: b}
spec: {selector: {app: server}, ports: [{name: http, port: 80}, {name: http-2, port: 9000}, {name: tcp, port: 9001}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: x, namespace: b}
spec: {hosts: [x.example.com], http: [{directResponse: {status: 418}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wide, namespace: b}
spec: {hosts: ['*.b.svc.cluster.local'], http: [{match: [{port: 9000}], directResponse: {status: 417}}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: s, namespace: b}
spec:
  egress:
  - {port: {number: 0, protocol: HTTP, name: e}, bind: 'unix:///run/e.sock', hosts: ['./*']}
  - {port: {number: 0, protocol: TCP, name: t}, bind: 'unix:///run/t.sock', hosts: ['./server.b.svc.cluster.local']}
  - {port: {number: 15080, protocol: HTTP_PROXY, name: p}, bind: 127.0.0.1, captureMode: NONE, hosts: ['./*']}
  - {port: {number: 9000, protocol: TCP, name: bytes}, hosts: ['./*']}
  - {hosts: ['./*']}
";
    let snapshot = World::new().add(WORLD).add(objects).snapshot();
    let refused: Vec<_> = snapshot.warnings.iter().filter(|w| w.code == "IST0106").collect();
    assert!(refused.is_empty(), "{refused:?}");
    for weft in [false, true] {
        let more = if weft { json!({"WEFT_ON_DEMAND": "true"}) } else { Value::Null };
        let made = generate(&snapshot, &common::proxy(&snapshot, "b/caller-0", weft, &more));
        assert!(made.directory.is_none(), "a proxy that may be asked for anything has everything");
        let socket = json_of::<Listener>(&made.listeners, "unix:///run/e.sock_0");
        assert_eq!(socket["address"]["pipe"]["path"], "/run/e.sock");
        let manager = |listener: &Value| listener["filter_chains"][0]["filters"][0]["typed_config"].clone();
        assert_eq!(manager(&socket)["rds"]["route_config_name"], "unix:///run/e.sock");
        let proxy = json_of::<Listener>(&made.listeners, "127.0.0.1_15080");
        assert_eq!(manager(&proxy)["rds"]["route_config_name"], "15080");
        for route in ["unix:///run/e.sock", "15080"] {
            let routes = json_of::<RouteConfiguration>(&made.routes, route);
            assert!(routes["ignore_port_in_host_matching"].is_null(), "{routes}");
            let mut hosts: Vec<Value> = routes["virtual_hosts"].as_array().cloned().unwrap_or_default();
            let apart = made.virtual_hosts.iter().filter(|r| r.name.starts_with(&format!("{route}/")));
            hosts.extend(apart.map(|r| json_of::<VirtualHost>(&made.virtual_hosts, &r.name)));
            let action = |domain: &str| {
                let has = |host: &&Value| host["domains"].as_array().unwrap().iter().any(|d| d == domain);
                let found: Vec<&Value> = hosts.iter().filter(has).collect();
                assert!(found.len() <= 1, "{domain} is there twice");
                found.first().map(|host| host["routes"][0].clone()).unwrap_or_default()
            };
            for (domain, cluster) in [
                ("server", "outbound|8000||server.b.svc.cluster.local"),
                ("server:8000", "outbound|8000||server.b.svc.cluster.local"),
                ("other", "outbound|80||other.b.svc.cluster.local"),
                ("other.b.svc.cluster.local:80", "outbound|80||other.b.svc.cluster.local"),
            ] {
                assert_eq!(action(domain)["route"]["cluster"], cluster, "{route} {domain}");
            }
            assert!(action("other:9001").is_null() && action("other:8000").is_null(), "{route}");
            assert_eq!(action("other:9000")["direct_response"]["status"], 417, "{route}");
            assert_eq!(action("x.example.com")["direct_response"]["status"], 418, "{route}");
            assert_eq!(action("*")["name"], "allow_any", "{route}");
        }
        let bytes = |name: &str| json_of::<Listener>(&made.listeners, name)["filter_chains"][0]["filters"].to_string();
        assert!(bytes("unix:///run/t.sock_0").contains("outbound|8000||server.b.svc.cluster.local"));
        // What the Sidecar says of the port counts, not what the service says.
        let (address, _) = address_of(&snapshot, "other.b.svc.cluster.local");
        let at = format!("{address}_9000");
        assert!(bytes(&at).contains("tcp_proxy") && !bytes(&at).contains("http_connection_manager"), "{}", bytes(&at));
    }
}

/// A route of one namespace for its own clients takes nothing from the others: they go by one list of rules.
#[test]
fn namespaces_without_routes_of_their_own_share_their_rules() {
    let objects = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: older, namespace: a, creationTimestamp: '2026-01-01T00:00:00Z'}
spec: {hosts: [server.b.svc.cluster.local], http: [{directResponse: {status: 418}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: own, namespace: b, creationTimestamp: '2026-01-02T00:00:00Z'}
spec: {parentRefs: [{group: '', kind: Service, name: server}], rules: [{backendRefs: [{name: server, port: 8000}]}]}
";
    let snapshot = World::new().add(WORLD).add(objects).snapshot();
    let asked = AskedFacts::of(&snapshot);
    assert!(asked.own_order.iter().eq(["b"]), "{:?}", asked.own_order);
    let shared = asked.rules_of_all.unwrap();
    let same = |namespace: &str| snapshot.mesh_virtual_services(namespace).iter().eq(shared.iter());
    assert!(same("a") && same("c") && !same("b"));
}

/// A Sidecar's listener that says HTTP of a port of which the service says TCP.
#[test]
fn a_listener_that_says_http_routes_to_services_that_say_tcp() {
    let objects = "
apiVersion: v1
kind: Service
metadata: {name: other, namespace: b}
spec: {selector: {app: server}, ports: [{name: tcp, port: 9001}, {name: udp, port: 9001, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: datagrams, namespace: b}
spec: {selector: {app: server}, ports: [{name: udp, port: 9001, protocol: UDP}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: s, namespace: b}
spec:
  egress:
  - {port: {number: 9001, protocol: HTTP, name: h}, hosts: ['./*']}
";
    let snapshot = World::new().add(WORLD).add(objects).snapshot();
    let made = generate(&snapshot, &common::proxy(&snapshot, "b/caller-0", false, &Value::Null));
    let listener = json_of::<Listener>(&made.listeners, "0.0.0.0_9001").to_string();
    assert!(listener.contains("http_connection_manager"), "{listener}");
    let routes = json_of::<RouteConfiguration>(&made.routes, "9001");
    let clusters: Vec<&Value> =
        routes["virtual_hosts"].as_array().unwrap().iter().map(|h| &h["routes"][0]["route"]["cluster"]).collect();
    assert_eq!(clusters, ["outbound|9001||other.b.svc.cluster.local", "PassthroughCluster"]);
}

/// The virtual address of a service, and its first port.
fn address_of(snapshot: &weft_model::MeshSnapshot, host: &str) -> (String, u16) {
    let service = &snapshot.services[host][0];
    (service.addresses[0].addr().to_string(), service.ports[0].number)
}

/// What `proxyHeaders` says, in the mesh config and in a pod's annotation.
#[test]
fn settings_of_headers() {
    let objects = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: own, namespace: b}
spec:
  template:
    metadata:
      labels: {app: own}
      annotations: {proxy.istio.io/config: '{proxyHeaders: {requestId: {disabled: true}}}'}
    spec: {containers: [{name: c, image: i}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: server, namespace: b}
spec:
  hosts: [server]
  gateways: [mesh, istio-system/gw]
  http: [{rewrite: {authority: other.example.com}, route: [{destination: {host: server}}]}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gw, namespace: istio-system}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}
";
    let said = json!({
        "attemptCount": {"disabled": true}, "xForwardedHost": {"enabled": true}, "preserveHttp1HeaderCase": true,
    });
    let snapshot = |headers: Value| {
        let mut world = World::new();
        world.mesh = json!({"defaultConfig": {"proxyHeaders": headers}});
        world.add(WORLD).add(common::INGRESS).add(objects).snapshot()
    };
    let (plain, told) = (snapshot(json!({})), snapshot(said));
    // mesh config, pod, weft, the settings hold, case too
    for (snapshot, pod, weft, holds, keeps_case) in [
        (&plain, "b/caller-0", false, false, false),
        (&told, "b/caller-0", false, true, true),
        (&told, "b/server-0", false, true, true),
        (&told, "b/caller-0", true, true, false),
        (&told, "b/own-0", false, false, false),
        (&told, "istio-system/istio-ingressgateway-0", false, true, true),
    ] {
        let resources = generate(snapshot, &common::proxy(snapshot, pod, weft, &Value::Null));
        let apart = resources.virtual_hosts.iter().map(|r| json_of::<VirtualHost>(&resources.virtual_hosts, &r.name));
        let whole = resources.routes.iter().flat_map(|r| {
            let routes = json_of::<RouteConfiguration>(&resources.routes, &r.name);
            routes["virtual_hosts"].as_array().cloned().unwrap_or_default()
        });
        let hosts: Vec<Value> = apart.chain(whole).collect();
        assert!(hosts.len() > 1 || pod.starts_with("istio-system"), "{pod}: {hosts:?}");
        for host in &hosts {
            assert_eq!(host["include_request_attempt_count"] == true, !holds, "{pod} {weft}: {host}");
        }
        let rewriting = hosts.iter().find(|host| host["name"].as_str().unwrap().starts_with("server.b.")).unwrap();
        let action = &rewriting["routes"][0]["route"];
        assert_eq!(action["host_rewrite_literal"], "other.example.com");
        assert_eq!(action["append_x_forwarded_host"] == true, holds, "{pod} {weft}: {action}");
        let cases = |text: String| text.contains("preserve_case");
        let cluster = json_of::<Cluster>(&resources.clusters, "outbound|8000||server.b.svc.cluster.local");
        assert_eq!(cases(cluster.to_string()), keeps_case, "{pod} {weft}: {cluster}");
        for listener in resources.listeners.iter() {
            let listener = json_of::<Listener>(&resources.listeners, &listener.name);
            let managers = listener.to_string().matches("http_connection_manager.v3.HttpConnectionManager").count();
            assert!(managers == 0 || cases(listener.to_string()) == keeps_case, "{pod} {weft}: {listener}");
        }
        if pod == "b/server-0" {
            let cluster = json_of::<Cluster>(&resources.clusters, "inbound|80||");
            assert!(cases(cluster.to_string()), "{cluster}");
        }
    }
}

/// Istio's defaults: a client that asks whether to send a body is answered by the service, and may name the statuses after which
/// it is tried again.
#[test]
fn defaults_of_requests() {
    let snapshot = World::new().add(WORLD).snapshot();
    let resources = generate(&snapshot, &common::proxy(&snapshot, "b/server-0", false, &Value::Null));
    let routes = json_of::<RouteConfiguration>(&resources.routes, "8000");
    let host = routes["virtual_hosts"].as_array().unwrap().iter().find(|h| h["name"] != "allow_any").unwrap();
    let retries = host["routes"][0]["route"]["retry_policy"]["retry_on"].as_str().unwrap();
    assert_eq!(retries, "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes");
    for name in ["virtualInbound", "0.0.0.0_8000"] {
        let listener = json_of::<Listener>(&resources.listeners, name).to_string();
        let managers = listener.matches("http_connection_manager.v3.HttpConnectionManager").count();
        assert!(managers > 0);
        assert_eq!(listener.matches("\"proxy_100_continue\":true").count(), managers, "{listener}");
    }
}
