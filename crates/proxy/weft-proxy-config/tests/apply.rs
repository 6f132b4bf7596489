//! Changes of resources: what takes effect, what waits, what is left alone.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod common;

use common::{Pki, accept, secrets, update};
use std::sync::Arc;
use weft_proto::envoy::config::cluster::v3::Cluster;
use weft_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use weft_proto::envoy::config::listener::v3::Listener;
use weft_proto::envoy::config::route::v3::{RouteConfiguration, VirtualHost};
use weft_proto::{Any, type_url};
use weft_proxy_config::{ConfigBuilder, ProxySnapshot, Terminal, Update, Upsert, UpstreamTransport};

/// A listener on a port, with a chain by RDS.
fn listener(name: &str, port: u16, route: &str) -> String {
    format!(
        r#"
name: {name}
address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
filter_chains:
- name: http
  filters:
  - name: hcm
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: x
      rds: {{config_source: {{ads: {{}}}}, route_config_name: {route}}}
      http_filters: [{{name: router, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]
"#
    )
}

const EDS: &str = "{name: c, type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}";
const TABLE: &str = "{name: r, vhds: {config_source: {ads: {}}}}";

fn host(domain: &str, cluster: &str) -> String {
    format!(
        "{{name: {domain}, domains: [{domain}], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}}}}}]}}"
    )
}

fn endpoints(address: &str) -> String {
    format!(
        "{{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {address}, port_value: 80}}}}}}}}]}}]}}"
    )
}

#[test]
fn listener_waits_for_routes_and_hosts() {
    let mut builder = ConfigBuilder::default();
    let applied = accept(&mut builder, &update::<Listener>(&[("l", &listener("l", 1, "r"))], &[]));
    assert!(applied.snapshot.listeners.is_empty());
    assert_eq!(builder.missing(), ["route r"]);
    assert_eq!(builder.warming_listeners().count(), 1);
    assert!(builder.wanted().routes.contains("r"));

    let applied = accept(&mut builder, &update::<RouteConfiguration>(&[("r", TABLE)], &[]));
    assert!(applied.snapshot.listeners.is_empty(), "virtual hosts come one by one, and none has come");
    assert!(builder.wanted().virtual_hosts.contains("r/*"));

    let applied = accept(&mut builder, &update::<VirtualHost>(&[("r/a", &host("a", "c"))], &[]));
    assert!(applied.snapshot.listeners.contains_key("l"));
    assert_eq!(builder.missing(), Vec::<String>::new());

    // The new version names routes that are not there: the old one serves on.
    let old = applied.snapshot.listeners["l"].clone();
    let applied = accept(&mut builder, &update::<Listener>(&[("l", &listener("l", 1, "other"))], &[]));
    assert!(Arc::ptr_eq(&applied.snapshot.listeners["l"], &old));
    assert_eq!(builder.missing(), ["route other"]);
    let routes = "{name: other, virtual_hosts: [{name: a, domains: ['*']}]}";
    let applied = accept(&mut builder, &update::<RouteConfiguration>(&[("other", routes)], &[]));
    assert!(!Arc::ptr_eq(&applied.snapshot.listeners["l"], &old));

    let applied = accept(&mut builder, &update::<Listener>(&[], &["l"]));
    assert!(applied.snapshot.listeners.is_empty());
    assert!(builder.missing().is_empty());
}

#[test]
fn one_virtual_host_changes_alone() {
    let mut builder = ConfigBuilder::default();
    accept(&mut builder, &update::<RouteConfiguration>(&[("r", TABLE)], &[]));
    let hosts = [("r/a", host("a", "c1")), ("r/b", host("b", "c1"))];
    let hosts: Vec<_> = hosts.iter().map(|(n, h)| (*n, h.as_str())).collect();
    let before = accept(&mut builder, &update::<VirtualHost>(&hosts, &[])).snapshot;
    let after = accept(&mut builder, &update::<VirtualHost>(&[("r/a", &host("a", "c2"))], &[])).snapshot;
    let find = |s: &ProxySnapshot, host: &str| s.routes["r"].find_host(host).cloned();
    assert!(!Arc::ptr_eq(&find(&before, "a").unwrap(), &find(&after, "a").unwrap()));
    assert!(Arc::ptr_eq(&find(&before, "b").unwrap(), &find(&after, "b").unwrap()));
    let after = accept(&mut builder, &update::<VirtualHost>(&[], &["r/a"])).snapshot;
    assert!(find(&after, "a").is_none() && find(&after, "b").is_some());
    assert!(find(&before, "a").is_some(), "who holds a snapshot keeps it");
}

#[test]
fn endpoints_touch_endpoints_only() {
    let mut builder = ConfigBuilder::default();
    accept(&mut builder, &update::<Cluster>(&[("c", EDS)], &[]));
    assert_eq!(builder.missing(), ["endpoints c"]);
    let before = accept(&mut builder, &update::<ClusterLoadAssignment>(&[("c", &endpoints("10.0.0.1"))], &[])).snapshot;
    let after = accept(&mut builder, &update::<ClusterLoadAssignment>(&[("c", &endpoints("10.0.0.2"))], &[])).snapshot;
    assert!(Arc::ptr_eq(&before.clusters["c"], &after.clusters["c"]));
    assert!(!Arc::ptr_eq(&before.endpoints["c"], &after.endpoints["c"]));
    let same = accept(&mut builder, &update::<ClusterLoadAssignment>(&[("c", &endpoints("10.0.0.2"))], &[])).snapshot;
    assert!(Arc::ptr_eq(&after.endpoints["c"], &same.endpoints["c"]), "equal endpoints are the same ones");
    let again = accept(&mut builder, &update::<Cluster>(&[("c", EDS)], &[])).snapshot;
    assert!(Arc::ptr_eq(&after.clusters["c"], &again.clusters["c"]), "an equal cluster is the same one");
    let gone = accept(&mut builder, &update::<Cluster>(&[], &["c"])).snapshot;
    assert!(gone.clusters.is_empty() && gone.endpoints.is_empty());
}

#[test]
fn bad_ones_are_named_and_the_rest_applies() {
    let mut builder = ConfigBuilder::default();
    accept(
        &mut builder,
        &update::<Cluster>(&[("a", "{name: a, type: STATIC}"), ("b", "{name: b, type: STATIC}")], &[]),
    );
    let before = builder.snapshot();
    let refused = "{name: b, type: STATIC, lb_subset_config: {list_as_any: true}}";
    let mut change =
        update::<Cluster>(&[("a", "{name: a, connect_timeout: 1s}"), ("b", refused), ("n", "{name: m}")], &[]);
    let broken = Any { type_url: type_url::CLUSTER.into(), value: vec![0xff, 0xff] };
    change.upserts.push(Upsert { name: "x".into(), version: "1".into(), any: broken });
    change.upserts.push(Upsert { name: "y".into(), version: "1".into(), any: weft_proto::pack(&Listener::default()) });
    let applied = builder.apply(&change);
    let names: Vec<_> = applied.refused.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["b", "n", "x", "y"]);
    assert!(
        applied.refused[0].1.contains("lb_subset_config.list_as_any: is not supported"),
        "{:?}",
        applied.refused[0]
    );
    assert!(applied.refused[1].1.contains("\"m\""), "{:?}", applied.refused[1]);
    let after = builder.snapshot();
    assert!(Arc::ptr_eq(&before.clusters["b"], &after.clusters["b"]), "what was there stays");
    assert!(!Arc::ptr_eq(&before.clusters["a"], &after.clusters["a"]));
    assert_eq!(builder.raw(type_url::CLUSTER).unwrap().keys().collect::<Vec<_>>(), ["a", "b"]);

    let other = Update {
        type_url: "type.googleapis.com/x.Y".into(),
        upserts: vec![change.upserts[0].clone()],
        removals: vec![],
    };
    assert!(builder.apply(&other).refused[0].1.contains("x.Y"));
}

#[test]
fn chains_that_did_not_change_are_the_same() {
    let chain = |port: u16, prefix: &str| {
        format!(
            r#"{{filter_chain_match: {{destination_port: {port}}}, filters: [{{name: t, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: {prefix}, cluster: c}}}}]}}"#
        )
    };
    let listener = |second: &str| {
        let chains = format!("{}, {}", chain(80, "a"), chain(81, second));
        format!(
            "{{name: l, address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}, filter_chains: [{chains}], default_filter_chain: {}}}",
            chain(1, "d")
        )
    };
    let mut builder = ConfigBuilder::default();
    let before =
        accept(&mut builder, &update::<Listener>(&[("l", &listener("b"))], &[])).snapshot.listeners["l"].clone();
    let after =
        accept(&mut builder, &update::<Listener>(&[("l", &listener("c"))], &[])).snapshot.listeners["l"].clone();
    assert!(!Arc::ptr_eq(&before, &after));
    assert!(Arc::ptr_eq(&before.chains[0], &after.chains[0]));
    assert!(!Arc::ptr_eq(&before.chains[1], &after.chains[1]));
    assert!(Arc::ptr_eq(before.default_chain.as_ref().unwrap(), after.default_chain.as_ref().unwrap()));
    let Terminal::Tcp(tcp) = &after.chains[1].terminal else { panic!("is TCP") };
    assert_eq!(&*tcp.stat_prefix, "c");
}

const TLS_CLUSTER: &str = r#"
name: c
type: STATIC
transport_socket:
  name: tls
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
    sni: x
    common_tls_context:
      tls_certificate_sds_secret_configs: [{name: default, sds_config: {ads: {}}}]
      combined_validation_context:
        default_validation_context: {match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://cluster.local/ns/a/sa/b"}}]}
        validation_context_sds_secret_config: {name: ROOTCA, sds_config: {ads: {}}}
"#;

const TLS_LISTENER: &str = r#"
name: l
address: {socket_address: {address: 127.0.0.1, port_value: 1}}
filter_chains:
- transport_socket:
    name: tls
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      require_client_certificate: true
      common_tls_context:
        tls_certificate_sds_secret_configs: [{name: default, sds_config: {ads: {}}}]
        validation_context_sds_secret_config: {name: ROOTCA, sds_config: {ads: {}}}
  filters: [{name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}}]
- filter_chain_match: {destination_port: 7}
  filters: [{name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: u, cluster: c}}]
"#;

fn client_tls(snapshot: &ProxySnapshot) -> Arc<weft_proxy_config::ClientTls> {
    match &snapshot.clusters["c"].transport {
        UpstreamTransport::Tls(tls) => tls.clone(),
        UpstreamTransport::Plain => panic!("is TLS"),
    }
}

#[test]
fn secrets_bind_when_they_arrive_and_rebind_when_they_change() {
    let pki = Pki::new("spiffe://cluster.local/ns/a/sa/b");
    let mut builder = ConfigBuilder::default();
    accept(&mut builder, &update::<Cluster>(&[("c", TLS_CLUSTER), ("p", "{name: p, type: STATIC}")], &[]));
    let early = accept(&mut builder, &update::<Listener>(&[("l", TLS_LISTENER)], &[])).snapshot;
    assert_eq!(builder.missing(), ["secret ROOTCA", "secret default"]);
    let server = |s: &ProxySnapshot| s.listeners["l"].chains[0].tls.clone().unwrap();
    assert!(client_tls(&early).context().unwrap_err().contains("default has not arrived"));
    assert!(server(&early).context().unwrap_err().contains("default has not arrived"));

    let bound = accept(&mut builder, &secrets(vec![pki.certificate("default"), pki.validation("ROOTCA")])).snapshot;
    assert!(builder.missing().is_empty());
    assert!(client_tls(&bound).context().is_ok() && server(&bound).context().is_ok());
    assert!(Arc::ptr_eq(&bound.clusters["p"], &early.clusters["p"]), "clusters without the secret are the same");
    assert!(Arc::ptr_eq(&bound.listeners["l"].chains[1], &early.listeners["l"].chains[1]));
    assert_eq!(client_tls(&bound).spec, client_tls(&early).spec);

    let other = Pki::new("spiffe://cluster.local/ns/a/sa/b");
    let rotated = accept(&mut builder, &secrets(vec![other.certificate("default")])).snapshot;
    let serial = |s: &ProxySnapshot| client_tls(s).context().unwrap().certificate().unwrap().facts().serial.clone();
    assert_ne!(serial(&bound), serial(&rotated));
    assert!(!Arc::ptr_eq(&server(&bound), &server(&rotated)));
    assert!(builder.raw(type_url::SECRET).is_none(), "keys are not kept for dumps");

    let again = accept(&mut builder, &update::<Listener>(&[("l", TLS_LISTENER)], &[])).snapshot;
    assert!(Arc::ptr_eq(&server(&again), &server(&rotated)), "an equal listener keeps its secrets");

    // A newer version waits for its route; the one that serves meanwhile follows the secrets.
    let by_route = listener("l", 1, "late");
    let chain = by_route.split_once("filter_chains:\n").unwrap().1;
    let waiting =
        format!("{TLS_LISTENER}{}", chain.replacen("name: http", "filter_chain_match: {destination_port: 8}", 1));
    let kept = accept(&mut builder, &update::<Listener>(&[("l", &waiting)], &[])).snapshot;
    assert_eq!((kept.listeners["l"].chains.len(), builder.missing()), (2, vec!["route late".to_string()]));
    let again = accept(&mut builder, &secrets(vec![pki.certificate("default")])).snapshot;
    assert_eq!(again.listeners["l"].chains.len(), 2);
    assert!(!Arc::ptr_eq(&server(&again), &server(&kept)), "what serves has the new certificate");
}

#[test]
fn bad_secret_leaves_the_old_one() {
    let pki = Pki::new("spiffe://cluster.local/ns/a/sa/b");
    let mut builder = ConfigBuilder::default();
    let before = accept(&mut builder, &secrets(vec![pki.certificate("s")])).snapshot;
    // The key of another certificate.
    let mixed =
        Pki { key: Pki::new("spiffe://cluster.local/ns/a/sa/b").key, ..Pki::new("spiffe://cluster.local/ns/a/sa/b") };
    let wrong_key = mixed.certificate("s");
    let applied = builder.apply(&secrets(vec![wrong_key]));
    assert_eq!(applied.refused.len(), 1);
    assert!(Arc::ptr_eq(&before.secrets["s"], &applied.snapshot.secrets["s"]));
    for (yaml, message) in [
        (
            "{name: s, generic_secret: {secret: {inline_string: x}}}",
            "must be a tls_certificate or a validation_context",
        ),
        ("{name: s, validation_context: {trusted_ca: {inline_string: none}}}", "certificate"),
        ("{name: s, validation_context: {trusted_ca: {filename: /none/such}}}", "/none/such"),
        (
            "{name: s, validation_context: {trusted_ca: {inline_string: x}, verify_certificate_hash: [aa]}}",
            "verify_certificate_hash",
        ),
    ] {
        let change = update::<weft_proto::envoy::extensions::transport_sockets::tls::v3::Secret>(&[("s", yaml)], &[]);
        let applied = builder.apply(&change);
        assert!(applied.refused[0].1.contains(message), "{yaml}: {:?}", applied.refused);
    }
}
