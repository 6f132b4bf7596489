//! Services, workloads, endpoints.

use super::{REVIEWS, labels, mesh};
use crate::{EndpointAddress, ExportTo, Health, Protocol, Registry, Resolution};
use std::collections::BTreeSet;

const HOST: &str = "reviews.default.svc.cluster.local";

#[test]
fn a_kubernetes_service_with_its_pods() {
    let mesh = mesh(REVIEWS);
    let service = &mesh.services[HOST][0];
    assert_eq!(service.registry, Some(Registry::Kubernetes));
    assert_eq!(service.addresses[0].to_string(), "10.96.0.10/32");
    let ports: Vec<_> = service.ports.iter().map(|p| (p.number, p.protocol, p.target_port)).collect();
    assert_eq!(ports, [(9080, Protocol::Http, None), (9090, Protocol::Tcp, Some(9091)), (53, Protocol::Udp, Some(53))]);
    assert_eq!(
        service.identities,
        BTreeSet::from(["spiffe://cluster.local/ns/default/sa/bookinfo-reviews".to_string()])
    );

    let endpoints = &mesh.endpoints[&(HOST.into(), 9080)];
    let seen: Vec<_> = endpoints.iter().map(|e| (e.address.clone(), e.health, e.mtls, e.locality.as_str())).collect();
    let at = |ip: &str| EndpointAddress::Ip(ip.parse().unwrap(), 8080);
    assert_eq!(
        seen,
        [
            (at("10.244.0.5"), Health::Healthy, true, "eu/eu-1"),
            (at("10.244.0.6"), Health::Draining, false, "us/us-2/rack")
        ]
    );
    assert_eq!(endpoints[0].labels["version"], "v1");
    assert!(!mesh.endpoints.contains_key(&(HOST.into(), 53)));
}

#[test]
fn workloads_know_their_owner_and_names() {
    let mesh = mesh(REVIEWS);
    let v1 = mesh.proxy_workload("default", "reviews-v1-6f4d-abcde", "10.0.0.1".parse().unwrap()).unwrap();
    assert_eq!((v1.workload_name.as_str(), v1.owner_kind.as_str()), ("reviews-v1", "Deployment"));
    assert_eq!((v1.canonical_name.as_str(), v1.canonical_revision.as_str()), ("reviews", "v1"));
    assert_eq!(v1.identity, "spiffe://cluster.local/ns/default/sa/bookinfo-reviews");
    assert!(v1.annotations.contains_key("weft.dev/proxy-engine") && !v1.annotations.contains_key("example.com/other"));
    let v2 = mesh.proxy_workload("default", "unknown", "10.244.0.6".parse().unwrap()).unwrap();
    assert_eq!((v2.workload_name.as_str(), v2.in_mesh), ("reviews-v2-x", false));
}

#[test]
fn a_gateway_does_not_take_the_mesh_s_tls_by_itself() {
    for (containers, label, takes) in [
        ("{name: app}, {name: istio-proxy}", "", true),
        ("{name: istio-proxy}", "", false),
        ("{name: istio-proxy}", ", security.istio.io/tlsMode: istio", true),
        ("{name: app}, {name: istio-proxy}", ", security.istio.io/tlsMode: disabled", false),
    ] {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: default, labels: {{app: a{label}}}}}\n\
             spec: {{containers: [{containers}]}}\nstatus: {{phase: Running, podIP: 10.244.0.9}}\n"
        );
        assert_eq!(mesh(&pod).workloads_by_name["default/p"].in_mesh, takes, "{containers}{label}");
    }
}

#[test]
fn named_target_ports_are_found_in_each_pod() {
    let mesh = mesh(REVIEWS);
    for (pod, http) in [("reviews-v1-6f4d-abcde", 8080), ("reviews-v2-x", 8081)] {
        let workload = &mesh.workloads_by_name[&format!("default/{pod}")];
        let served: Vec<_> = mesh
            .service_instances(workload)
            .iter()
            .map(|i| (i.service.host.to_string(), i.port.number, i.target_port))
            .collect();
        assert_eq!(served, [(HOST.to_string(), 9080, http), (HOST.to_string(), 9090, 9091)], "{pod}");
    }
}

#[test]
fn kinds_of_services() {
    let mesh = mesh(
        r#"
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: a, annotations: {networking.istio.io/exportTo: "., b"}}
spec: {clusterIP: None, selector: {app: x}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: a, annotations: {networking.istio.io/exportTo: "~"}}
spec: {type: ExternalName, externalName: HttpBin.org, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: byhand, namespace: a}
spec: {clusterIP: 10.96.1.1, clusterIPs: [10.96.1.1, "fd00::1"], internalTrafficPolicy: Local, ports: [{port: 80, name: http}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: byhand, namespace: a}
subsets: [{addresses: [{ip: 192.0.2.7}], ports: [{name: http, port: 8000}]}]
"#,
    );
    let headless = &mesh.services["headless.a.svc.cluster.local"][0];
    assert!(headless.headless && headless.addresses.is_empty());
    assert_eq!(headless.resolution, Resolution::Passthrough);
    assert_eq!(headless.export_to, ExportTo::Namespaces(["a".to_string(), "b".to_string()].into()));
    let alias = &mesh.services["alias.a.svc.cluster.local"][0];
    assert_eq!((alias.resolution, alias.export_to.clone()), (Resolution::Dns, ExportTo::Nobody));
    let behind = &mesh.endpoints[&("alias.a.svc.cluster.local".into(), 80)];
    assert_eq!(behind[0].address, EndpointAddress::Name("httpbin.org".into(), 80));
    let byhand = &mesh.services["byhand.a.svc.cluster.local"][0];
    assert!(byhand.node_local && byhand.addresses.len() == 2);
    let behind = &mesh.endpoints[&("byhand.a.svc.cluster.local".into(), 80)];
    assert_eq!(behind[0].address, EndpointAddress::Ip("192.0.2.7".parse().unwrap(), 8000));
    for (namespace, hosts) in
        [("a", vec!["byhand", "headless"]), ("b", vec!["byhand", "headless"]), ("c", vec!["byhand"])]
    {
        let seen = mesh.services_visible_to(namespace);
        assert_eq!(seen.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), hosts, "{namespace}");
    }
}

#[test]
fn service_entries() {
    let mesh = mesh(
        r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dns, namespace: a}
spec:
  hosts: [httpbin.org]
  ports: [{number: 80, name: web, protocol: HTTP}, {number: 443, name: https, protocol: TLS, targetPort: 8443}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: a}
spec: {hosts: ["*.wild.org"], resolution: NONE, ports: [{number: 80, name: web, protocol: HTTP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: static, namespace: a}
spec:
  hosts: [db.corp]
  addresses: [192.0.2.0/24]
  location: MESH_INTERNAL
  resolution: STATIC
  subjectAltNames: [spiffe://corp/db]
  ports: [{number: 5432, name: tcp-db, protocol: TCP}]
  endpoints:
  - {address: 192.0.2.1, ports: {tcp-db: 5433}, serviceAccount: db, weight: 3, locality: eu/eu-1}
  - {address: unix:///run/db.sock, labels: {security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: selected, namespace: a}
spec:
  hosts: [vm.corp]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {labels: {app: vm}}
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm-1, namespace: a}
spec: {address: 198.51.100.1, labels: {app: vm, version: v9}, serviceAccount: vm, ports: {http: 9000}}
---
apiVersion: v1
kind: Pod
metadata: {name: vm-pod, namespace: a, labels: {app: vm}}
spec: {containers: [{name: x}]}
status: {phase: Running, podIP: 10.244.1.1, conditions: [{type: Ready, status: "True"}]}
"#,
    );
    let httpbin = &mesh.services["httpbin.org"][0];
    assert!(httpbin.mesh_external);
    let [four, six] = httpbin.auto_addresses.as_slice() else { panic!("{:?}", httpbin.auto_addresses) };
    assert!(four.to_string().starts_with("240.240.") && six.to_string().starts_with("2001:2::"), "{four} {six}");
    assert!(mesh.services["*.wild.org"][0].auto_addresses.is_empty());
    assert!(mesh.services["db.corp"][0].auto_addresses.is_empty());
    assert_eq!(mesh.service_covering("x.wild.org", "b").unwrap().host.as_ref(), "*.wild.org");
    let at = |host: &str, port| {
        mesh.endpoints[&(host.into(), port)].iter().map(|e| (e.address.clone(), e.mtls, e.weight)).collect::<Vec<_>>()
    };
    assert_eq!(at("httpbin.org", 443), [(EndpointAddress::Name("httpbin.org".into(), 8443), false, 0)]);
    assert_eq!(at("*.wild.org", 80), []);
    assert_eq!(
        at("db.corp", 5432),
        [
            (EndpointAddress::Ip("192.0.2.1".parse().unwrap(), 5433), true, 3),
            (EndpointAddress::Unix("/run/db.sock".into()), true, 0)
        ]
    );
    assert_eq!(
        at("vm.corp", 80),
        [
            (EndpointAddress::Ip("10.244.1.1".parse().unwrap(), 8080), false, 0),
            (EndpointAddress::Ip("198.51.100.1".parse().unwrap(), 9000), true, 0)
        ]
    );
    let vm = mesh.proxy_workload("a", "vm-1", "::1".parse().unwrap()).unwrap();
    assert_eq!(vm.identity, "spiffe://cluster.local/ns/a/sa/vm");
    let served: Vec<_> =
        mesh.service_instances(vm).iter().map(|i| (i.service.host.to_string(), i.target_port)).collect();
    assert_eq!(served, [("vm.corp".to_string(), 8080)]);
}

#[test]
fn auto_addresses_are_distinct_and_stable() {
    let entry = |name: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: a}}\nspec: \
             {{hosts: [{name}.example.com], resolution: DNS, ports: [{{number: 80, name: http, protocol: HTTP}}]}}\n---\n"
        )
    };
    let few: String = (0..20).map(|i| entry(&format!("h{i}"))).collect();
    let many: String = (0..1000).map(|i| entry(&format!("h{i}"))).collect();
    let (few, many) = (mesh(&few), mesh(&many));
    let all: BTreeSet<_> = many.services.values().map(|s| s[0].auto_addresses[0]).collect();
    assert_eq!(all.len(), 1000);
    let moved = few.services.iter().filter(|(host, s)| many.services[*host][0].auto_addresses != s[0].auto_addresses);
    // Only a collision with a name that sorts earlier may move one; with 1000 of 65024 that is rare.
    assert!(moved.count() <= 2);
}

#[test]
fn one_host_of_two_namespaces() {
    let yaml = |namespace: &str, created: &str, ip: &str, export: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: {namespace}, \
             creationTimestamp: \"{created}\"}}\nspec: {{hosts: [db.corp], resolution: STATIC, exportTo: [\"{export}\"], \
             ports: [{{number: 80, name: http, protocol: HTTP}}], endpoints: [{{address: {ip}}}]}}\n---\n"
        )
    };
    let mesh = mesh(
        &(yaml("b", "2026-01-02T00:00:00Z", "192.0.2.2", ".") + &yaml("a", "2026-01-01T00:00:00Z", "192.0.2.1", "*")),
    );
    for (client, want) in [("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.1")] {
        let service = mesh.service_for("db.corp", client).unwrap();
        let endpoints = mesh.endpoints_of(service, 80).unwrap();
        assert_eq!(endpoints.len(), 1);
        assert_eq!(endpoints[0].address, EndpointAddress::Ip(want.parse().unwrap(), 80), "{client}");
    }
}

#[test]
fn objects_of_the_wrong_shape_are_left_out_and_reported() {
    let mesh = mesh(
        r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bad, namespace: a}
spec: {hosts: 7}
---
apiVersion: v1
kind: Service
metadata: {name: bad, namespace: a}
spec: {ports: [{port: 700000}]}
"#,
    );
    assert!(mesh.services.is_empty());
    assert_eq!(super::warnings_of(&mesh, "ServiceEntry", "bad"), ["IST0106 spec.hosts"]);
    assert_eq!(super::warnings_of(&mesh, "Service", "bad"), ["IST0106 "]);
}

#[test]
fn sidecars_narrow_what_is_seen() {
    let services = ["a/one", "a/two", "b/one", "c/three"].map(|s| {
        let (ns, name) = s.split_once('/').unwrap();
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {{clusterIP: 10.0.0.1, ports: [{{port: 80, name: http}}, {{port: 90, name: tcp}}]}}\n---\n")
    });
    let rest = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: to-three, namespace: a}
spec: {hosts: [one], http: [{route: [{destination: {host: three.c.svc.cluster.local}}]}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: a}
spec: {egress: [{hosts: ["./*"]}]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: picky, namespace: a}
spec:
  workloadSelector: {labels: {app: picky}}
  egress:
  - {port: {number: 90, protocol: TCP, name: tcp}, hosts: ["b/*"]}
  - {hosts: ["b/one.b.svc.cluster.local", "~/*"]}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: istio-system}
spec: {egress: [{hosts: ["./*", "a/*"]}]}
"#;
    let mesh = mesh(&(services.concat() + rest));
    let seen = |namespace: &str, labels: &crate::Labels| {
        let scope = mesh.sidecar_scope(namespace, labels);
        let listeners = scope.egress.iter().map(|e| {
            let services = e.services.iter().map(|s| (format!("{}/{}", s.namespace, s.name), s.ports.len()));
            (e.port, services.collect::<Vec<_>>(), e.virtual_services.len())
        });
        listeners.collect::<Vec<_>>()
    };
    let list = |names: &[(&str, usize)]| names.iter().map(|(n, p)| ((*n).to_string(), *p)).collect::<Vec<_>>();
    // The namespace's own, and what its virtual service sends to.
    assert_eq!(seen("a", &labels(&[])), [(None, list(&[("a/one", 2), ("c/three", 2), ("a/two", 2)]), 1)]);
    assert_eq!(
        seen("a", &labels(&[("app", "picky")])),
        [(Some(90), list(&[("b/one", 1)]), 0), (None, list(&[("b/one", 2)]), 0)]
    );
    // The root namespace's holds where there is no other.
    assert_eq!(seen("b", &labels(&[])), [(None, list(&[("a/one", 2), ("b/one", 2), ("c/three", 2), ("a/two", 2)]), 1)]);
}

#[test]
fn nulls_are_fields_that_are_not_there() {
    let mesh = crate::tests::mesh(
        "{apiVersion: v1, kind: Pod, metadata: {name: gw, namespace: default}, spec: {serviceAccountName: gw, initContainers: null, \
         containers: [{name: istio-proxy, ports: null}]}, status: {podIP: 10.0.0.9, podIPs: null}}",
    );
    assert_eq!(mesh.workloads_by_name["default/gw"].service_account, "gw");
    assert!(mesh.warnings.is_empty(), "{:?}", mesh.warnings);
}

/// What is spoken on a port that says nothing of it is found in the first bytes, whatever the port's name begins with.
#[test]
fn ports_of_service_entries_without_a_protocol() {
    for (port, want) in [
        ("{number: 80, name: web}", Protocol::Unknown),
        ("{number: 80, name: http}", Protocol::Unknown),
        ("{number: 443, name: tcp-x}", Protocol::Unknown),
        ("{number: 3306, name: db}", Protocol::Tcp),
        ("{number: 80, name: web, protocol: HTTP}", Protocol::Http),
        ("{number: 80, name: web, protocol: TCP}", Protocol::Tcp),
    ] {
        let mesh = mesh(&format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: s, namespace: a}}, \
             spec: {{hosts: [s.corp], resolution: DNS, ports: [{port}]}}}}"
        ));
        assert_eq!(mesh.services["s.corp"][0].ports[0].protocol, want, "{port}");
    }
}

#[test]
fn a_workload_entrys_metadata_says_more_than_its_spec() {
    let mesh = mesh(
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, \
          metadata: {name: vm, namespace: a, labels: {version: v2, tier: db}}, \
          spec: {address: 198.51.100.1, labels: {app: vm, version: v1}}}",
    );
    let labels = &mesh.workloads_by_name["a/vm"].labels;
    assert_eq!(**labels, super::labels(&[("app", "vm"), ("tier", "db"), ("version", "v2")]));
}
