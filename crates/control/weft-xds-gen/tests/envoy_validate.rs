//! Everything that is generated for the worlds of the golden files is taken by a real Envoy (`envoy --mode validate`).
//!
//! Routes and endpoints, which Envoy would fetch later, are put into listeners and clusters, so that it checks them too.
//! The program is `$ENVOY`, else `/opt/weft-peers/bin/envoy`; where neither is there the test says so and passes.

#![allow(clippy::unwrap_used)]

mod common;

use common::World;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use weft_model::MeshSnapshot;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::envoy::config::route::v3::RouteConfiguration;
use weft_proto::{json::to_json, unpack};
use weft_xds_gen::{ProxyResources, ResourceMap, generate};

fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("ENVOY").map(PathBuf::from);
    named.or_else(|| Some("/opt/weft-peers/bin/envoy".into())).filter(|path| path.is_file())
}

fn messages<M: prost::Message + prost::Name + Default>(map: &ResourceMap) -> Vec<Value> {
    map.iter().map(|r| to_json(&unpack::<M>(&r.any).unwrap(), true).unwrap()).collect()
}

/// A bootstrap that holds all of `resources`.
fn bootstrap(resources: &ProxyResources) -> Value {
    let named = |values: Vec<Value>, key: &str| -> Map<String, Value> {
        values.into_iter().map(|v| (v[key].as_str().unwrap().to_string(), v)).collect()
    };
    let routes = named(messages::<RouteConfiguration>(&resources.routes), "name");
    let endpoints = named(messages::<ClusterLoadAssignment>(&resources.endpoints), "cluster_name");
    let mut listeners = messages::<Listener>(&resources.listeners);
    listeners.iter_mut().for_each(|listener| inline_routes(listener, &routes));
    let mut clusters = messages::<Cluster>(&resources.clusters);
    clusters.iter_mut().for_each(|cluster| inline_endpoints(cluster, &endpoints));
    clusters.iter_mut().for_each(sds_of_its_own);
    clusters.push(grpc_cluster("sds-grpc", json!({"pipe": {"path": "/var/run/secrets/workload-spiffe-uds/socket"}})));
    clusters.push(grpc_cluster("xds-grpc", json!({"socket_address": {"address": "127.0.0.1", "port_value": 15012}})));
    json!({
        "node": {"id": "validate", "cluster": "validate"},
        "dynamic_resources": {"ads_config": {
            "api_type": "GRPC", "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
        }},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn grpc_cluster(name: &str, address: Value) -> Value {
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
    })
}

/// Replaces every `rds` by the configuration that it names.
fn inline_routes(value: &mut Value, routes: &Map<String, Value>) {
    match value {
        Value::Object(map) => {
            if let Some(rds) = map.remove("rds") {
                let name = rds["route_config_name"].as_str().unwrap();
                let route = routes
                    .get(name)
                    .unwrap_or_else(|| panic!("a listener asks for route {name}, which is not generated"));
                map.insert("route_config".into(), route.clone());
            }
            map.values_mut().for_each(|v| inline_routes(v, routes));
        }
        Value::Array(items) => items.iter_mut().for_each(|v| inline_routes(v, routes)),
        _ => {}
    }
}

/// Secrets of clusters come over a stream of their own: static clusters are read before there is an aggregated one, and
/// Envoy dies of that.
fn sds_of_its_own(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("sds_config").is_some_and(|c| c.get("ads").is_some()) {
                let source = json!({
                    "api_type": "GRPC", "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
                });
                map.insert("sds_config".into(), json!({"api_config_source": source, "resource_api_version": "V3"}));
            }
            map.values_mut().for_each(sds_of_its_own);
        }
        Value::Array(items) => items.iter_mut().for_each(sds_of_its_own),
        _ => {}
    }
}

/// Makes a static cluster of one that is found by EDS.
fn inline_endpoints(cluster: &mut Value, endpoints: &Map<String, Value>) {
    if cluster["type"] != "EDS" {
        return;
    }
    let name = cluster["name"].as_str().unwrap().to_string();
    let assignment = endpoints.get(&name).unwrap_or_else(|| panic!("no load assignment for {name}"));
    let map = cluster.as_object_mut().unwrap();
    map.remove("eds_cluster_config");
    map.insert("type".into(), json!("STATIC"));
    map.insert("load_assignment".into(), assignment.clone());
}

fn validate(envoy: &Path, folder: &Path, name: &str, text: &str) -> Result<(), String> {
    let file = folder.join(format!("{name}.json"));
    std::fs::write(&file, text).unwrap();
    let output = Command::new(envoy)
        .args(["--mode", "validate", "--log-level", "error", "-c"])
        .arg(&file)
        .output()
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} ({}): {}", file.display(), said.lines().take(12).collect::<Vec<_>>().join("\n")))
}

/// A backend that is to have TLS by authorities which are not there.
const WITHOUT_AUTHORITIES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: https, port: 443}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: p}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  validation: {hostname: web.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: gone}]}
---
";

/// The worlds of the golden files, and what these do not have.
fn worlds() -> Vec<(String, World)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let yaml = files.iter().filter(|f| f.extension().is_some_and(|e| e == "yaml"));
    let golden = yaml.map(|file| {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        (name, World::of_case(&std::fs::read_to_string(file).unwrap()).1)
    });
    let mut missing = World::new();
    missing.add(common::INGRESS).add(WITHOUT_AUTHORITIES);
    golden.chain([("without-authorities".to_string(), missing)]).collect()
}

/// All pods that have a proxy.
fn proxies(snapshot: &MeshSnapshot) -> Vec<String> {
    let mut names: Vec<String> =
        snapshot.workloads_by_name.iter().filter(|(_, w)| w.in_mesh).map(|(name, _)| name.clone()).collect();
    names.sort();
    names
}

#[test]
fn envoy_takes_everything() {
    let Some(envoy) = envoy() else {
        eprintln!("skipped: no Envoy at $ENVOY or /opt/weft-peers/bin/envoy");
        return;
    };
    let folder = std::env::temp_dir().join(format!("weft-envoy-validate-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let _schema = weft_proto::json::pool();
    // Pods of one kind get the same: each configuration is checked once.
    let mut configurations: BTreeMap<String, String> = BTreeMap::new();
    for (world_name, world) in worlds() {
        let snapshot = world.snapshot();
        for pod in proxies(&snapshot) {
            let proxy = common::proxy(&snapshot, &pod, false, &Value::Null);
            let text = serde_json::to_string(&bootstrap(&generate(&snapshot, &proxy))).unwrap();
            configurations.entry(text).or_insert_with(|| format!("{world_name}-{}", pod.replace('/', "-")));
        }
    }
    let checked = configurations.len();
    let all: Vec<(String, String)> = configurations.into_iter().collect();
    let check = |part: &[(String, String)]| -> Vec<String> {
        part.iter().filter_map(|(text, name)| validate(&envoy, &folder, name, text).err()).collect()
    };
    let wrong: Vec<String> = std::thread::scope(|threads| {
        let halves: Vec<_> =
            all.chunks(all.len().div_ceil(2).max(1)).map(|part| threads.spawn(|| check(part))).collect();
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    });
    assert!(checked > 0);
    assert!(wrong.is_empty(), "{} of {checked} refused:\n{}", wrong.len(), wrong.join("\n\n"));
    std::fs::remove_dir_all(&folder).ok();
}

/// An Envoy refuses a listener with a key set that it cannot use, and goes on with the listener before: policies that came
/// with it would not hold.
#[test]
fn envoy_takes_key_sets_without_a_usable_key() {
    let Some(envoy) = envoy() else {
        eprintln!("skipped: no Envoy at $ENVOY or /opt/weft-peers/bin/envoy");
        return;
    };
    let folder = std::env::temp_dir().join(format!("weft-envoy-keys-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let _schema = weft_proto::json::pool();
    let sets = [
        r#"{"keys":[{"kty":"RSA"}]}"#,
        r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#,
        r#"{"keys":[{"kty":"OKP","crv":"X25519","x":"AA"}]}"#,
        r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#,
        r#"{"keys":[]}"#,
    ];
    for (i, set) in sets.into_iter().enumerate() {
        let mut world = World::new();
        world.add_sample("bookinfo/platform/kube/bookinfo.yaml");
        world.add_object(json!({
            "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
            "metadata": {"name": "tokens", "namespace": "default"},
            "spec": {"jwtRules": [{"issuer": "a@example", "jwks": set}]},
        }));
        let snapshot = world.snapshot();
        let text = bootstrap(&generate(&snapshot, &common::proxy(&snapshot, "reviews-v1-0", false, &Value::Null)));
        let text = text.to_string();
        assert!(text.contains("jwt_authn"), "the policy is there");
        validate(&envoy, &folder, &format!("keys-{i}"), &text).unwrap_or_else(|said| panic!("{set}: {said}"));
    }
    std::fs::remove_dir_all(&folder).ok();
}

/// A bootstrap with a filter that checks tokens by these key sets, each of a provider of its own.
fn token_filter(sets: &[String]) -> String {
    let providers: Map<String, Value> = sets
        .iter()
        .enumerate()
        .map(|(i, set)| (format!("p{i}"), json!({"issuer": "i", "local_jwks": {"inline_string": set}})))
        .collect();
    let of = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let manager = json!({
        "@type": of("network.http_connection_manager.v3.HttpConnectionManager"), "stat_prefix": "x",
        "route_config": {"virtual_hosts": []},
        "http_filters": [
            {"name": "jwt", "typed_config": {"@type": of("http.jwt_authn.v3.JwtAuthentication"), "providers": providers}},
            {"name": "router", "typed_config": {"@type": of("http.router.v3.Router")}},
        ],
    });
    let listener = json!({
        "name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 1}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    });
    json!({"static_resources": {"listeners": [listener]}}).to_string()
}

/// Keys that an Envoy is given are keys that it reads; those that it is not given, secrets aside, are none.
#[test]
fn envoy_takes_the_keys_that_it_is_given() {
    let Some(envoy) = envoy() else {
        eprintln!("skipped: no Envoy at $ENVOY or /opt/weft-peers/bin/envoy");
        return;
    };
    let folder = std::env::temp_dir().join(format!("weft-envoy-keys-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (x, y) = ("04N0xi21hshyvBp7I167sbE_bXqyqkAPfefdklMO7wY", "UI8exy-C06a7DUnjIdENkxeFtHM4-l_41LqEw9nVgmw");
    let rsa = |bytes: usize, more: Value| {
        // All bits are ones: odd, and of just that many bits.
        let n = format!("{}{}", "_".repeat(bytes * 4 / 3), ["", "w", "8"][bytes % 3]);
        let mut key = json!({"kty": "RSA", "n": n, "e": "AQAB"});
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        key
    };
    let given = [
        rsa(128, json!({})),
        rsa(256, json!({"alg": "RS256"})),
        rsa(64, json!({"use": "enc"})),
        json!({"kty": "EC", "crv": "P-256", "x": format!("{x}="), "y": y}),
        json!({"kty": "EC", "x": x, "y": y}),
        json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y}),
        json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}),
    ];
    let sets: Vec<String> =
        given.iter().map(|key| weft_model::jwks::for_envoy(&json!({"keys": [key]}).to_string()).unwrap()).collect();
    let mut wrong: Vec<String> = validate(&envoy, &folder, "given", &token_filter(&sets)).err().into_iter().collect();
    for (i, key) in [
        rsa(128, json!({"alg": "HS256"})),
        rsa(128, json!({"e": "AQ"})),
        rsa(3, json!({})),
        json!({"kty": "EC", "crv": "P-256", "alg": "ES384", "x": x, "y": y}),
        json!({"kty": "EC", "crv": "P-256", "x": x, "y": x}),
        json!({"kty": "OKP", "crv": "Ed448", "x": x}),
    ]
    .iter()
    .enumerate()
    {
        let set = json!({"keys": [key]}).to_string();
        if weft_model::jwks::for_envoy(&set).is_ok() {
            wrong.push(format!("{key} is given"));
        }
        if validate(&envoy, &folder, &format!("not-{i}"), &token_filter(&[set])).is_ok() {
            wrong.push(format!("Envoy takes {key}"));
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
