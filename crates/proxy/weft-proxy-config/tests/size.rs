//! What a large configuration costs: 5000 services, each a cluster with mutual TLS, three endpoints and a virtual host with six
//! domains. Prints memory and time; the bounds are wide enough for a debug build.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

use prost_types::value::Kind;
use std::time::{Duration, Instant};
use weft_proto::any::TypeUrl;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::core::v3::{Metadata, address, transport_socket};
use weft_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint};
use weft_proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost, route, route_action};
use weft_proto::envoy::extensions::transport_sockets::tls::v3::{
    UpstreamTlsContext, common_tls_context::ValidationContextType,
};
use weft_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use weft_proxy_config::{ConfigBuilder, Update, Upsert};

const SERVICES: usize = 5000;

fn host(n: usize) -> String {
    format!("service-{n}.namespace-{}.svc.cluster.local", n % 50)
}

/// The same message for each service, with the names of that service put in by `edit`.
fn messages<M>(template: &str, names: impl Fn(usize) -> String, edit: impl Fn(usize, &mut M)) -> Update
where
    M: prost::Message + prost::Name + Default + Clone,
{
    let template: M = weft_proto::json::from_yaml(template).unwrap();
    let upserts = (0..SERVICES).map(|n| {
        let mut message = template.clone();
        edit(n, &mut message);
        Upsert { name: names(n), version: "1".into(), any: weft_proto::pack(&message) }
    });
    Update { type_url: M::type_url_of(), upserts: upserts.collect(), removals: Vec::new() }
}

/// Puts the names of a service into all texts of some metadata.
fn rename(metadata: Option<&mut Metadata>, n: usize) {
    let fields = metadata.into_iter().flat_map(|m| m.filter_metadata.values_mut()).flat_map(|s| s.fields.values_mut());
    for field in fields {
        rename_value(field, n);
    }
}

fn rename_value(value: &mut weft_proto::Value, n: usize) {
    match &mut value.kind {
        Some(Kind::StringValue(text)) => *text = text.replace("HOST", &host(n)).replace("NUMBER", &n.to_string()),
        Some(Kind::StructValue(inner)) => inner.fields.values_mut().for_each(|v| rename_value(v, n)),
        Some(Kind::ListValue(list)) => list.values.iter_mut().for_each(|v| rename_value(v, n)),
        _ => {}
    }
}

fn edit_cluster(n: usize, cluster: &mut Cluster) {
    cluster.name = format!("outbound|80||{}", host(n));
    cluster.eds_cluster_config.as_mut().unwrap().service_name = cluster.name.clone();
    rename(cluster.metadata.as_mut(), n);
    let socket = cluster.transport_socket_matches[0].transport_socket.as_mut().unwrap();
    let Some(transport_socket::ConfigType::TypedConfig(any)) = &mut socket.config_type else { panic!("has a config") };
    let mut tls: UpstreamTlsContext = weft_proto::unpack(any).unwrap();
    tls.sni = format!("outbound_.80_._.{}", host(n));
    let common = tls.common_tls_context.as_mut().unwrap();
    let Some(ValidationContextType::CombinedValidationContext(both)) = &mut common.validation_context_type else {
        panic!("is combined")
    };
    let san = &mut both.default_validation_context.as_mut().unwrap().match_typed_subject_alt_names[0];
    san.matcher.as_mut().unwrap().match_pattern =
        Some(MatchPattern::Exact(format!("spiffe://cluster.local/ns/ns/sa/service-{n}")));
    *any = weft_proto::pack(&tls);
}

fn edit_endpoints(n: usize, assignment: &mut ClusterLoadAssignment) {
    assignment.cluster_name = format!("outbound|80||{}", host(n));
    for (i, endpoint) in assignment.endpoints[0].lb_endpoints.iter_mut().enumerate() {
        rename(endpoint.metadata.as_mut(), n);
        let Some(lb_endpoint::HostIdentifier::Endpoint(inner)) = &mut endpoint.host_identifier else {
            panic!("is one")
        };
        let Some(address::Address::SocketAddress(socket)) = &mut inner.address.as_mut().unwrap().address else {
            panic!("has an address")
        };
        socket.address = format!("10.{}.{}.{i}", n / 250, n % 250);
    }
}

fn edit_virtual_host(n: usize, message: &mut VirtualHost) {
    let host = host(n);
    message.name = format!("{host}:80");
    let short = format!("service-{n}.namespace-{}", n % 50);
    let address = format!("10.96.{}.{}", n / 250, n % 250);
    message.domains = vec![
        host.clone(),
        format!("{host}."),
        short.clone(),
        format!("{short}.svc"),
        format!("{short}.svc.cluster"),
        address,
    ];
    rename(message.metadata.as_mut(), n);
    let route = &mut message.routes[0];
    route.decorator.as_mut().unwrap().operation = format!("{host}:80/*");
    let Some(route::Action::Route(action)) = &mut route.action else { panic!("forwards") };
    action.cluster_specifier = Some(route_action::ClusterSpecifier::Cluster(format!("outbound|80||{host}")));
}

const CLUSTER: &str = r#"
name: outbound|80||HOST
type: EDS
eds_cluster_config: {eds_config: {ads: {}}, service_name: outbound|80||HOST}
connect_timeout: 10s
lb_policy: LEAST_REQUEST
circuit_breakers: {thresholds: [{max_connections: 4294967295, max_pending_requests: 4294967295, max_requests: 4294967295, max_retries: 4294967295, track_remaining: true}]}
common_lb_config: {}
metadata: {filter_metadata: {istio: {services: [{host: HOST, name: service-NUMBER, namespace: ns}]}, weft: {kind: Service, namespace: ns, name: service-NUMBER}}}
transport_socket_matches:
- name: tlsMode-istio
  match: {tlsMode: istio}
  transport_socket:
    name: envoy.transport_sockets.tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
      common_tls_context:
        alpn_protocols: [istio-peer-exchange, istio]
        tls_params: {tls_minimum_protocol_version: TLSv1_2, tls_maximum_protocol_version: TLSv1_3}
        tls_certificate_sds_secret_configs: [{name: default, sds_config: {ads: {}}}]
        combined_validation_context:
          default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://cluster.local/ns/ns/sa/service-NUMBER"}}]}
          validation_context_sds_secret_config: {name: ROOTCA, sds_config: {ads: {}}}
      sni: outbound_.80_._.HOST
- name: tlsMode-disabled
  match: {}
  transport_socket: {name: envoy.transport_sockets.raw_buffer, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}
"#;

const ENDPOINTS: &str = r#"
cluster_name: outbound|80||HOST
endpoints:
- locality: {region: r1, zone: z1}
  load_balancing_weight: 3
  lb_endpoints:
  - {endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 8080}}}, load_balancing_weight: 1, metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio}, istio: {workload: service-NUMBER;ns;service-NUMBER;v1;Kubernetes}}}}
  - {endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 8080}}}, load_balancing_weight: 1, metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio}, istio: {workload: service-NUMBER;ns;service-NUMBER;v1;Kubernetes}}}}
  - {endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 8080}}}, load_balancing_weight: 1, metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio}, istio: {workload: service-NUMBER;ns;service-NUMBER;v1;Kubernetes}}}}
"#;

const VIRTUAL_HOST: &str = r#"
name: HOST:80
include_request_attempt_count: true
metadata: {filter_metadata: {weft: {kind: Service, namespace: ns, name: service-NUMBER}}}
routes:
- name: default
  match: {prefix: /}
  decorator: {operation: "HOST:80/*"}
  route: {cluster: outbound|80||HOST, timeout: 0s, max_grpc_timeout: 0s, retry_policy: {retry_on: "connect-failure,refused-stream,unavailable,cancelled", num_retries: 2, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}], host_selection_retry_max_attempts: 5}}
"#;

/// Resident memory of this process, in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn five_thousand_services() {
    let updates = [
        messages(CLUSTER, |n| format!("outbound|80||{}", host(n)), edit_cluster),
        messages(ENDPOINTS, |n| format!("outbound|80||{}", host(n)), edit_endpoints),
        Update {
            type_url: RouteConfiguration::type_url_of(),
            upserts: vec![Upsert {
                name: "80".into(),
                version: "1".into(),
                any: weft_proto::pack(
                    &weft_proto::json::from_yaml::<RouteConfiguration>(
                        "{name: '80', vhds: {config_source: {ads: {}}}}",
                    )
                    .unwrap(),
                ),
            }],
            removals: Vec::new(),
        },
        messages(VIRTUAL_HOST, |n| format!("80/{}:80", host(n)), edit_virtual_host),
    ];
    let mut builder = ConfigBuilder::default();
    // The messages are dropped as they are applied, as on a proxy that takes them from the stream.
    let before = resident();
    let started = Instant::now();
    for update in &updates {
        let applied = builder.apply(update);
        assert_eq!((applied.refused, applied.errors), (vec![], vec![]));
    }
    let took = started.elapsed();
    let held = resident().saturating_sub(before);
    let snapshot = builder.snapshot();
    assert_eq!((snapshot.clusters.len(), snapshot.endpoints.len()), (SERVICES, SERVICES));
    assert_eq!(snapshot.routes["80"].virtual_hosts.len(), SERVICES);
    eprintln!("{SERVICES} services: {held} KiB more resident memory, applied in {took:?}");

    let one = Update { upserts: vec![updates[3].upserts[7].clone()], ..updates[3].clone() };
    let started = Instant::now();
    builder.apply(&one);
    let route = started.elapsed();
    let started = Instant::now();
    builder.apply(&Update { upserts: vec![updates[1].upserts[7].clone()], ..updates[1].clone() });
    eprintln!("one route change: {route:?}; one endpoint change: {:?}", started.elapsed());
    assert!(held < 80 * 1024, "{held} KiB");
    assert!(took < Duration::from_secs(30), "{took:?}");
}
