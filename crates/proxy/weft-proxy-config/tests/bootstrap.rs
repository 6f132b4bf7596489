//! Bootstrap files of Envoy: what is taken, what is refused by field path.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod common;

use common::Pki;
use std::path::Path;
use weft_proxy_config::bootstrap::{apply_static, load_bootstrap};
use weft_proxy_config::{ConfigBuilder, HttpFilter, RouteSource, Terminal, UpstreamTransport};

const MINIMAL: &str = r#"
node: {id: n1, cluster: c1}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}
layered_runtime: {layers: [{name: x, static_layer: {a: b}}]}
dynamic_resources:
  lds_config: {ads: {}, resource_api_version: V3}
  cds_config: {ads: {}, resource_api_version: V3}
  ads_config: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds, authority: istiod:15012}}]}
static_resources:
  clusters:
  - {name: xds, type: STRICT_DNS, load_assignment: {cluster_name: xds, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: istiod, port_value: 15012}}}}]}]}}
"#;

#[test]
fn dynamic_resources() {
    let bootstrap = load_bootstrap(MINIMAL).unwrap();
    assert_eq!(bootstrap.node.id, "n1");
    assert_eq!(bootstrap.admin.unwrap().to_string(), "127.0.0.1:15000");
    let ads = bootstrap.ads.clone().unwrap();
    assert_eq!((ads.cluster.as_str(), ads.delta, ads.authority.as_str()), ("xds", true, "istiod:15012"));
    let mut builder = ConfigBuilder::default();
    assert_eq!(apply_static(&bootstrap, &mut builder), Vec::<String>::new());
    assert!(builder.snapshot().clusters.contains_key("xds"));
    let sotw = load_bootstrap(&MINIMAL.replace("DELTA_GRPC", "GRPC")).unwrap();
    assert!(!sotw.ads.unwrap().delta);
}

#[test]
fn what_cannot_be_done_is_refused_by_field() {
    for (change, field) in [
        ("node: {id: n1, cluster: c1}", "overload_manager: {actions: [{name: a}]}"),
        ("node: {id: n1, cluster: c1}", "hds_config: {api_type: GRPC}"),
        ("node: {id: n1, cluster: c1}", "stats_sinks: [{name: s}]"),
        ("node: {id: n1, cluster: c1}", "bootstrap_extensions: [{name: x}]"),
        ("node: {id: n1, cluster: c1}", "cluster_manager: {local_cluster_name: x}"),
        ("admin: {address", "admin: {allow_paths: [{exact: /}], address"),
        ("lds_config: {ads: {}, resource_api_version: V3}", "lds_config: {path_config_source: {path: /x}}"),
        ("api_type: DELTA_GRPC", "api_type: REST"),
        ("envoy_grpc: {cluster_name: xds, authority: istiod:15012}", "google_grpc: {target_uri: x}"),
        ("address: 127.0.0.1, port_value: 15000", "address: localhost, port_value: 15000"),
    ] {
        let error = load_bootstrap(&MINIMAL.replace(change, field)).unwrap_err().to_string();
        let name = field.split(':').next().unwrap();
        let name = match name {
            "google_grpc" => "grpc_services",
            "admin" => "admin.allow_paths",
            other => other,
        };
        assert!(error.contains(name), "{field}: {error}");
        assert!(error.starts_with("bootstrap: "), "{error}");
    }
    // Also what weft-proxy has no words for, wherever it stands.
    let filter = "static_resources: {listeners: [{name: l, filter_chains: [{filters: [{name: redis, typed_config: {'@type': \
                  type.googleapis.com/no.such.Filter}}]}]}]}";
    let error = load_bootstrap(filter).unwrap_err().to_string();
    let place = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config.@type: no.such.Filter";
    assert!(error.starts_with(place), "{error}");
    assert!(load_bootstrap("nodes: {}").unwrap_err().to_string().contains("nodes"));
    assert!(load_bootstrap("node: [").is_err());
}

/// The two proxies of a sidecar pair: mutual TLS between them, authorization at the server.
const CLIENT: &str = r#"
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15100}}}
static_resources:
  listeners:
  - name: outbound
    address: {socket_address: {address: 127.0.0.1, port_value: 15101}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: outbound
          normalize_path: true
          route_config:
            name: r
            virtual_hosts:
            - {name: h, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: up, timeout: 0s, retry_policy: {retry_on: "connect-failure,refused-stream", num_retries: 2}}}]}
          http_filters:
          - {name: fault, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault}}
          - {name: cors, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}
          - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: up
    type: STATIC
    load_assignment: {cluster_name: up, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 15106}}}}]}]}
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          alpn_protocols: ["istio-peer-exchange","istio"]
          tls_certificates: [{certificate_chain: {filename: @T@/client.crt}, private_key: {filename: @T@/client.key}}]
          validation_context: {trusted_ca: {filename: @T@/ca.crt}, match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://cluster.local/ns/default/sa/server"}}]}
        sni: outbound_.80_._.httpbin.default.svc.cluster.local
"#;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let pki = Pki::new("spiffe://cluster.local/ns/default/sa/client");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("ca.crt", &pki.root);
    for side in ["client", "server"] {
        write(&format!("{side}.crt"), &pki.chain);
        write(&format!("{side}.key"), &pki.key);
    }
    folder
}

/// Applies a file and builds all of its TLS contexts.
fn apply(text: &str, folder: &Path) -> ConfigBuilder {
    let bootstrap = load_bootstrap(&text.replace("@T@", &folder.to_string_lossy())).unwrap();
    let mut builder = ConfigBuilder::default();
    assert_eq!(apply_static(&bootstrap, &mut builder), Vec::<String>::new());
    let snapshot = builder.snapshot();
    assert!(!snapshot.listeners.is_empty());
    for chain in snapshot.listeners.values().flat_map(|l| &l.chains) {
        chain.tls.iter().for_each(|tls| drop(tls.context().unwrap()));
    }
    for cluster in snapshot.clusters.values() {
        if let UpstreamTransport::Tls(tls) = &cluster.transport {
            tls.context().unwrap();
        }
    }
    builder
}

#[test]
fn static_resources_with_certificates_from_files() {
    let folder = folder();
    let snapshot = apply(CLIENT, folder.path()).snapshot();
    let Terminal::Http(hcm) = &snapshot.listeners["outbound"].chains[0].terminal else { panic!("is HTTP") };
    assert!(matches!(hcm.filters.as_slice(), [HttpFilter::Fault(None), HttpFilter::Cors]));
    assert!(matches!(&hcm.routes, RouteSource::Inline(table) if table.find_host("any").is_some()));

    std::fs::remove_file(folder.path().join("ca.crt")).unwrap();
    let bootstrap = load_bootstrap(&CLIENT.replace("@T@", &folder.path().to_string_lossy())).unwrap();
    let refused = apply_static(&bootstrap, &mut ConfigBuilder::default());
    assert!(refused[0].contains("cluster up: ") && refused[0].contains("ca.crt"), "{refused:?}");
}

#[test]
fn benchmark_pair() {
    // Beside the repository; skipped where it is absent.
    let pair = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/bench/pair");
    let folder = folder();
    for file in ["envoy-client.yaml", "envoy-server.yaml"] {
        match std::fs::read_to_string(pair.join(file)) {
            Ok(text) => drop(apply(&text, folder.path())),
            Err(_) => eprintln!("skipped: {} is absent", pair.join(file).display()),
        }
    }
}
