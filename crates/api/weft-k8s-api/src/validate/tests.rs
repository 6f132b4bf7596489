//! Tables of good and bad objects, one per kind. A bad line is the change that spoils a good object, the path of the
//! problem and a part of its message.

use super::{Problem, Validation, patch_problems, validate, validate_shape};
use crate::yaml;

fn check(text: &str) -> Validation {
    let documents = yaml::documents(text, "test.yaml").unwrap();
    assert_eq!(documents.len(), 1, "{text}");
    validate(&documents[0].object)
}

fn object(api_version: &str, kind: &str, spec: &str) -> String {
    let spec = spec.lines().map(|line| format!("  {line}\n")).collect::<String>();
    format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x, namespace: t}}\nspec:\n{spec}")
}

fn good(api_version: &str, kind: &str, specs: &[&str]) {
    for spec in specs {
        let found = check(&object(api_version, kind, spec));
        assert_eq!(found.errors, [], "{spec}");
        assert_eq!(found.unknown_fields, [], "{spec}");
    }
}

fn has(problems: &[Problem], path: &str, part: &str) -> bool {
    problems.iter().any(|p| p.path == path && p.message.contains(part))
}

fn bad(api_version: &str, kind: &str, specs: &[(&str, &str, &str)]) {
    for (spec, path, part) in specs {
        let found = check(&object(api_version, kind, spec));
        assert!(has(&found.errors, path, part), "{spec}\nwanted {path}: {part}\ngot {:#?}", found.errors);
        let text = found.errors[0].to_string();
        assert!(text.starts_with(&format!("{kind} t/x: ")), "{text}");
    }
}

fn warns(api_version: &str, kind: &str, specs: &[(&str, &str, &str)]) {
    for (spec, path, part) in specs {
        let found = check(&object(api_version, kind, spec));
        assert_eq!(found.errors, [], "{spec}");
        assert!(has(&found.warnings, path, part), "{spec}\nwanted {path}: {part}\ngot {:#?}", found.warnings);
    }
}

const NET: &str = "networking.istio.io/v1";
const SEC: &str = "security.istio.io/v1";

#[test]
fn virtual_service() {
    let specs = [
        "hosts: [reviews]\nhttp:\n- route:\n  - destination: {host: reviews, subset: v1}",
        "hosts: [reviews]\nhttp:\n- match:\n  - headers: {end-user: {exact: jason}}\n  route:\n  - destination: {host: reviews, subset: v2}\n- route:\n  - {destination: {host: reviews, subset: v1}, weight: 50}\n  - {destination: {host: reviews, subset: v3}, weight: 50}",
        "hosts: ['*']\ngateways: [bookinfo-gateway]\nhttp:\n- match: [{uri: {exact: /productpage}}, {uri: {prefix: /static}}]\n  route: [{destination: {host: productpage, port: {number: 9080}}}]",
        "hosts: [ratings]\nhttp:\n- fault: {delay: {percent: 100, fixedDelay: 7s}, abort: {httpStatus: 500, percentage: {value: 0.1}}}\n  route: [{destination: {host: ratings}}]",
        "hosts: [a]\nhttp:\n- timeout: 0.5s\n  retries: {attempts: 3, perTryTimeout: 2s, retryOn: 'gateway-error,503'}\n  mirror: {host: b}\n  mirror_percent: 10\n  route: [{destination: {host: a}}]",
        "hosts: [a.com]\ntls:\n- match: [{port: 443, sniHosts: [a.com]}]\n  route: [{destination: {host: a.com}}]",
        "hosts: ['*.a.com']\ntls:\n- match: [{sniHosts: [b.a.com, '*.c.a.com']}]\n  route: [{destination: {host: a.com}}]",
        "hosts: [a]\ntcp:\n- match: [{port: 27017, destinationSubnets: [10.0.0.0/8]}]\n  route: [{destination: {host: a}, weight: 80}, {destination: {host: b}, weight: 20}]",
        "hosts: [a]\nhttp:\n- redirect: {uri: /new, redirectCode: 308}\n- directResponse: {status: 503, body: {string: gone}}",
        "hosts: [a]\nhttp: [{delegate: {name: b, namespace: c}}]",
        "hosts: [a]\nhttp: [{delegate: {name: b}, directResponse: {status: 404}}]",
        "http: [{route: [{destination: {host: a}}]}]",
        "hosts: [10.1.2.3]\nhttp: [{route: [{destination: {host: a}, headers: {request: {set: {':authority': x, x-a: 'b c'}, remove: [x-b]}}}]}]",
        "hosts: [a]\nhttp:\n- corsPolicy: {allowOrigins: [{regex: '.*'}], allowMethods: [GET], maxAge: 24h, allowCredentials: false}\n  match: [{headers: {'@request.auth.claims.groups': {exact: g}}, withoutHeaders: {x: {}}, queryParams: {v: {regex: '\\d+'}}}]\n  route: [{destination: {host: a}}]",
    ];
    for version in ["v1", "v1beta1", "v1alpha3"] {
        good(&format!("networking.istio.io/{version}"), "VirtualService", &specs);
    }
    let route = "route: [{destination: {host: a}}]";
    bad(
        NET,
        "VirtualService",
        &[
            ("hosts: [a]", "spec", "no routes"),
            ("gateways: [g]", "spec.hosts", "is required"),
            ("hosts: []\ntcp: [{route: []}]\nhttp: [{route: [{destination: {host: a}}]}]", "spec", "delegated"),
            ("hosts: [a_*b]\nhttp: [{route: [{destination: {host: a}}]}]", "spec.hosts[0]", "host name"),
            ("hosts: ['*']\nhttp: [{route: [{destination: {host: a}}]}]", "spec.hosts[0]", "gateway"),
            ("hosts: [a, A]\nhttp: [{route: [{destination: {host: a}}]}]", "spec.hosts[1]", "twice"),
            ("hosts: [a]\ngateways: [x/y/z]\nhttp: [{route: [{destination: {host: a}}]}]", "spec.gateways[0]", "mesh"),
            ("hosts: [a]\nhttp: [{name: x}]", "spec.http[0]", "does nothing"),
            ("hosts: [a]\nhttp: [{route: [{}]}]", "spec.http[0].route[0].destination", "is required"),
            ("hosts: [a]\nhttp: [{route: [{destination: {}}]}]", "spec.http[0].route[0].destination.host", "empty"),
            (
                "hosts: [a]\nhttp: [{route: [{destination: {host: a}}, {destination: {host: b}}]}]",
                "spec.http[0].route",
                "weights",
            ),
            (
                "hosts: [a]\nhttp: [{route: [{destination: {host: a}, weight: -5}]}]",
                "spec.http[0].route[0].weight",
                "between 0",
            ),
            (
                "hosts: [a]\nhttp: [{route: [{destination: {host: a, port: {number: 70000}}}]}]",
                "spec.http[0].route[0].destination.port.number",
                "between 1 and 65535",
            ),
            (&format!("hosts: [a]\nhttp:\n- redirect: {{uri: /x}}\n  {route}"), "spec.http[0]", "route and redirect"),
            (
                "hosts: [a]\nhttp: [{redirect: {uri: /x, redirectCode: 200}}]",
                "spec.http[0].redirect.redirectCode",
                "301",
            ),
            ("hosts: [a]\nhttp: [{redirect: {}}]", "spec.http[0].redirect", "changes nothing"),
            ("hosts: [a]\nhttp: [{directResponse: {status: 99}}]", "spec.http[0].directResponse.status", "between"),
            (&format!("hosts: [a]\nhttp:\n- timeout: 0.1ms\n  {route}"), "spec.http[0].timeout", "1ms"),
            (&format!("hosts: [a]\nhttp:\n- timeout: soon\n  {route}"), "spec.http[0].timeout", "duration"),
            (
                &format!("hosts: [a]\nhttp:\n- retries: {{perTryTimeout: 1s}}\n  {route}"),
                "spec.http[0].retries.attempts",
                "turns retries off",
            ),
            (
                &format!("hosts: [a]\nhttp:\n- retries: {{attempts: 1, retryOn: nonsense}}\n  {route}"),
                "spec.http[0].retries.retryOn",
                "gateway-error",
            ),
            (
                &format!(
                    "hosts: [a]\nhttp:\n- fault: {{delay: {{percentage: {{value: 101}}, fixedDelay: 1s}}}}\n  {route}"
                ),
                "spec.http[0].fault.delay.percentage.value",
                "between 0 and 100",
            ),
            (
                &format!("hosts: [a]\nhttp:\n- fault: {{abort: {{percentage: {{value: 10}}}}}}\n  {route}"),
                "spec.http[0].fault.abort",
                "httpStatus",
            ),
            (
                &format!("hosts: [a]\nhttp:\n- match: [{{uri: {{regex: '('}}}}]\n  {route}"),
                "spec.http[0].match[0].uri.regex",
                "RE2",
            ),
            (
                &format!("hosts: [a]\nhttp:\n- match: [{{uri: {{}}}}]\n  {route}"),
                "spec.http[0].match[0].uri",
                "exact, prefix or regex",
            ),
            (
                &format!("hosts: [a]\nhttp:\n- match: [{{headers: {{'a b': {{exact: c}}}}}}]\n  {route}"),
                "spec.http[0].match[0].headers[\"a b\"]",
                "header name",
            ),
            (
                &format!("hosts: [a]\nhttp:\n- headers: {{response: {{remove: ['']}}}}\n  {route}"),
                "spec.http[0].headers.response.remove[0]",
                "header name",
            ),
            ("hosts: [a]\ntls: [{route: [{destination: {host: a}}]}]", "spec.tls[0].match", "required"),
            (
                "hosts: [a.com]\ntls: [{match: [{sniHosts: [b.com]}], route: [{destination: {host: a}}]}]",
                "spec.tls[0].match[0].sniHosts[0]",
                "spec.hosts",
            ),
            ("hosts: [a]\ntcp: [{match: [{port: 1}]}]", "spec.tcp[0].route", "required"),
            (
                "hosts: [a]\ntcp: [{match: [{sourceSubnet: x}], route: [{destination: {host: a}}]}]",
                "spec.tcp[0].match[0].sourceSubnet",
                "address",
            ),
            (&format!("hosts: [a]\nexportTo: ['*', b]\nhttp:\n- {route}"), "spec.exportTo", "alone"),
            ("hosts: [a]\nhttp: [{delegate: {name: ''}}]", "spec.http[0].delegate.name", "required"),
        ],
    );
    warns(
        NET,
        "VirtualService",
        &[
            (&format!("hosts: [a]\nhttp:\n- {route}\n- {route}"), "spec.http[1]", "never reached"),
            (
                &format!("hosts: [a]\nhttp:\n- fault: {{abort: {{httpStatus: 500}}}}\n  {route}"),
                "spec.http[0].fault.abort",
                "percentage",
            ),
            (
                "hosts: [a]\ntcp: [{match: [{sourceSubnet: 10.0.0.0/8}], route: [{destination: {host: a}}]}]",
                "spec.tcp[0].match[0].sourceSubnet",
                "no effect",
            ),
        ],
    );
}

#[test]
fn destination_rule() {
    good(
        NET,
        "DestinationRule",
        &[
            "host: reviews\ntrafficPolicy: {loadBalancer: {simple: RANDOM}}\nsubsets:\n- {name: v1, labels: {version: v1}}\n- name: v2\n  labels: {version: v2}\n  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}",
            "host: '*.local'\ntrafficPolicy: {tls: {mode: ISTIO_MUTUAL}}",
            "host: httpbin\ntrafficPolicy:\n  connectionPool:\n    tcp: {maxConnections: 1, connectTimeout: 30ms, tcpKeepalive: {time: 7200s, interval: 75s}}\n    http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}\n  outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 3m, maxEjectionPercent: 100}",
            "host: a\ntrafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 0s}}}}",
            "host: a\ntrafficPolicy:\n  portLevelSettings:\n  - port: {number: 443}\n    tls: {mode: SIMPLE, credentialName: c, sni: a.com}",
            "host: a\ntrafficPolicy: {loadBalancer: {simple: ROUND_ROBIN, localityLbSetting: {enabled: true, failover: [{from: r1, to: r2}]}}, outlierDetection: {consecutive5xxErrors: 1}}",
            "host: a\ntrafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: r1/z1/*, to: {r1/z1/*: 80, r2/*: 20}}]}}}",
            "host: a\ntrafficPolicy: {tunnel: {protocol: CONNECT, targetHost: b.com, targetPort: 443}}",
            "host: a\ntrafficPolicy: {proxyProtocol: {version: V2}, retryBudget: {percent: 25, minRetryConcurrency: 5}}",
        ],
    );
    bad(
        NET,
        "DestinationRule",
        &[
            ("subsets: []", "spec.host", "required"),
            ("host: a\ntrafficPolicy: {}", "spec.trafficPolicy", "empty"),
            ("host: a\nsubsets: [{name: ''}]", "spec.subsets[0].name", "subset name"),
            ("host: a\nsubsets: [{name: v1}, {name: v1}]", "spec.subsets[1].name", "twice"),
            (
                "host: a\ntrafficPolicy: {loadBalancer: {simple: FASTEST}}",
                "spec.trafficPolicy.loadBalancer.simple",
                "LEAST_REQUEST",
            ),
            (
                "host: a\ntrafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}",
                "spec.trafficPolicy.loadBalancer",
                "keep one",
            ),
            (
                "host: a\ntrafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, httpHeaderName: x}}}",
                "spec.trafficPolicy.loadBalancer.consistentHash",
                "keep one",
            ),
            (
                "host: a\ntrafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 100}}}}",
                "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
                "prime",
            ),
            ("host: a\ntrafficPolicy: {connectionPool: {}}", "spec.trafficPolicy.connectionPool", "empty"),
            (
                "host: a\ntrafficPolicy: {connectionPool: {tcp: {connectTimeout: 0s}}}",
                "spec.trafficPolicy.connectionPool.tcp.connectTimeout",
                "1ms",
            ),
            (
                "host: a\ntrafficPolicy: {connectionPool: {http: {useClientProtocol: true, h2UpgradePolicy: UPGRADE}}}",
                "spec.trafficPolicy.connectionPool.http",
                "keep one",
            ),
            (
                "host: a\ntrafficPolicy: {outlierDetection: {maxEjectionPercent: 120}}",
                "spec.trafficPolicy.outlierDetection.maxEjectionPercent",
                "between 0 and 100",
            ),
            ("host: a\ntrafficPolicy: {tls: {mode: MUTUAL}}", "spec.trafficPolicy.tls.clientCertificate", "required"),
            (
                "host: a\ntrafficPolicy: {tls: {mode: SIMPLE, credentialName: a, caCertificates: /x}}",
                "spec.trafficPolicy.tls",
                "keep one",
            ),
            (
                "host: a\ntrafficPolicy: {portLevelSettings: [{tls: {mode: DISABLE}}]}",
                "spec.trafficPolicy.portLevelSettings[0].port",
                "required",
            ),
            (
                "host: a\ntrafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 50}}]}}}",
                "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to",
                "100",
            ),
            (
                "host: a\ntrafficPolicy: {tunnel: {targetHost: b, targetPort: 0}}",
                "spec.trafficPolicy.tunnel.targetPort",
                "between",
            ),
            (
                "host: a\nworkloadSelector: {matchLabels: {a: '*'}}",
                "spec.workloadSelector.matchLabels[\"a\"]",
                "wildcards",
            ),
        ],
    );
    warns(
        NET,
        "DestinationRule",
        &[
            ("host: a\nsubsets: [{name: v1}]", "spec.subsets[0].labels", "whole service"),
            (
                "host: a\ntrafficPolicy: {outlierDetection: {consecutiveErrors: 5}}",
                "spec.trafficPolicy.outlierDetection.consecutiveErrors",
                "consecutive5xxErrors",
            ),
            (
                "host: a\ntrafficPolicy: {loadBalancer: {zoneAwareLbSetting: {minClusterSize: 3}}}",
                "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting",
                "no effect",
            ),
        ],
    );
}

#[test]
fn gateway() {
    good(
        NET,
        "Gateway",
        &[
            "selector: {istio: ingressgateway}\nservers:\n- port: {number: 8080, name: http, protocol: HTTP}\n  hosts: ['*']",
            "selector: {istio: ingressgateway}\nservers:\n- port: {number: 443, name: https, protocol: HTTPS}\n  tls: {mode: MUTUAL, credentialName: c, minProtocolVersion: TLSV1_2}\n  hosts: [ns/a.com, ./b.com]\n- port: {number: 80, name: http, protocol: HTTP}\n  tls: {httpsRedirect: true}\n  hosts: [a.com]",
            "selector: {istio: eastwestgateway}\nservers:\n- port: {number: 15443, name: tls, protocol: TLS}\n  tls: {mode: AUTO_PASSTHROUGH}\n  hosts: ['*.local']",
            "selector: {a: b}\nservers:\n- port: {number: 443, name: https, protocol: HTTPS}\n  tls: {mode: SIMPLE, serverCertificate: /a, privateKey: /b}\n  hosts: ['*']",
        ],
    );
    let server = |tail: &str| format!("selector: {{a: b}}\nservers:\n- {tail}");
    bad(
        NET,
        "Gateway",
        &[
            ("selector: {a: b}", "spec.servers", "at least one"),
            (&server("hosts: ['*']"), "spec.servers[0].port", "required"),
            (&server("port: {number: 80, name: h, protocol: HTTP}"), "spec.servers[0].hosts", "required"),
            (
                &server("port: {number: 0, name: h, protocol: HTTP}\n  hosts: ['*']"),
                "spec.servers[0].port.number",
                "between",
            ),
            (&server("port: {number: 80, protocol: HTTP}\n  hosts: ['*']"), "spec.servers[0].port.name", "required"),
            (
                &server("port: {number: 80, name: h, protocol: SMTP}\n  hosts: ['*']"),
                "spec.servers[0].port.protocol",
                "HTTPS",
            ),
            (
                &server("port: {number: 443, name: h, protocol: HTTPS}\n  hosts: ['*']"),
                "spec.servers[0].tls",
                "required",
            ),
            (
                &server("port: {number: 443, name: h, protocol: HTTPS}\n  hosts: ['*']\n  tls: {mode: SIMPLE}"),
                "spec.servers[0].tls.serverCertificate",
                "credentialName",
            ),
            (
                &server(
                    "port: {number: 443, name: h, protocol: HTTPS}\n  hosts: ['*']\n  tls: {mode: ISTIO_MUTUAL, credentialName: c}",
                ),
                "spec.servers[0].tls.credentialName",
                "ISTIO_MUTUAL",
            ),
            (
                &server(
                    "port: {number: 443, name: h, protocol: HTTPS}\n  hosts: ['*']\n  tls: {mode: SIMPLE, credentialName: c, minProtocolVersion: TLSV1_3, maxProtocolVersion: TLSV1_2}",
                ),
                "spec.servers[0].tls.minProtocolVersion",
                "above",
            ),
            (
                &server(
                    "port: {number: 80, name: h, protocol: HTTP}\n  hosts: ['*']\n  tls: {mode: SIMPLE, credentialName: c}",
                ),
                "spec.servers[0].tls",
                "httpsRedirect",
            ),
            (
                &server("port: {number: 80, name: h, protocol: HTTP}\n  hosts: [a/b/c]"),
                "spec.servers[0].hosts[0]",
                "host name",
            ),
            (
                &server("port: {number: 80, name: h, protocol: HTTP}\n  hosts: [A_/b.c]"),
                "spec.servers[0].hosts[0]",
                "namespace",
            ),
            (
                &server("port: {number: 80, name: h, protocol: HTTP}\n  bind: here\n  hosts: ['*']"),
                "spec.servers[0].bind",
                "address",
            ),
        ],
    );
}

#[test]
fn service_entry() {
    good(
        NET,
        "ServiceEntry",
        &[
            "hosts: [httpbin.org]\nports: [{number: 80, name: http, protocol: HTTP}]\nresolution: DNS\nlocation: MESH_EXTERNAL",
            "hosts: ['*.wikipedia.org']\nports: [{number: 443, name: tls, protocol: TLS}]\nresolution: NONE",
            "hosts: [db]\naddresses: [10.0.0.0/24]\nports: [{number: 3306, name: mysql, protocol: TCP}]\nresolution: STATIC\nendpoints: [{address: 10.1.1.1, ports: {mysql: 3307}, weight: 2, labels: {a: b}}]",
            "hosts: [vm.local]\nlocation: MESH_INTERNAL\nresolution: STATIC\nports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]\nworkloadSelector: {labels: {app: vm}}",
            "hosts: [sock]\nresolution: STATIC\nports: [{number: 80, name: http}]\nendpoints: [{address: 'unix:///var/run/s.sock'}]",
            "hosts: ['*.a.com']\nresolution: DYNAMIC_DNS\nports: [{number: 443, name: tls, protocol: TLS}]",
        ],
    );
    let port = "ports: [{number: 80, name: http, protocol: HTTP}]";
    bad(
        NET,
        "ServiceEntry",
        &[
            (port, "spec.hosts", "required"),
            (&format!("hosts: ['*']\n{port}"), "spec.hosts[0]", "not allowed"),
            (&format!("hosts: ['*.a.com']\nresolution: DNS\n{port}"), "spec.hosts[0]", "DNS"),
            (&format!("hosts: [a.com]\nresolution: DYNAMIC_DNS\n{port}"), "spec.hosts[0]", "wildcard"),
            (&format!("hosts: [a]\naddresses: [10.0.0.0/8]\nresolution: DNS\n{port}"), "spec.addresses[0]", "range"),
            (&format!("hosts: [a]\naddresses: [x]\n{port}"), "spec.addresses[0]", "address"),
            ("hosts: [a]\nports: [{number: 80}]", "spec.ports[0].name", "required"),
            ("hosts: [a]\nports: [{number: 80, name: a}, {number: 80, name: b}]", "spec.ports[1].number", "twice"),
            ("hosts: [a]\nports: [{number: 80, name: a, protocol: X}]", "spec.ports[0].protocol", "HTTP"),
            (&format!("hosts: [a]\nendpoints: [{{address: 1.1.1.1}}]\n{port}"), "spec.endpoints", "resolution"),
            (
                &format!("hosts: [a]\nresolution: STATIC\nendpoints: [{{address: b.com}}]\n{port}"),
                "spec.endpoints[0].address",
                "use DNS",
            ),
            (
                &format!("hosts: [a]\nresolution: DNS\nendpoints: [{{address: b.com, ports: {{tcp: 1}}}}]\n{port}"),
                "spec.endpoints[0].ports.tcp",
                "spec.ports",
            ),
            (
                &format!(
                    "hosts: [a]\nresolution: STATIC\nworkloadSelector: {{labels: {{a: b}}}}\nendpoints: [{{address: 1.1.1.1}}]\n{port}"
                ),
                "spec",
                "keep one",
            ),
        ],
    );
}

#[test]
fn sidecar() {
    good(
        NET,
        "Sidecar",
        &[
            "egress: [{hosts: ['./*', 'istio-system/*']}]",
            "workloadSelector: {labels: {app: a}}\ningress:\n- port: {number: 9080, protocol: HTTP, name: http}\n  defaultEndpoint: 127.0.0.1:8080\negress:\n- port: {number: 3306, protocol: MYSQL, name: db}\n  captureMode: NONE\n  bind: 127.0.0.1\n  hosts: ['*/db.example.com']\n- hosts: ['~/*']",
            "outboundTrafficPolicy: {mode: REGISTRY_ONLY}",
            "outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: egress.istio-system.svc.cluster.local, port: {number: 80}}}",
            "ingress: [{port: {number: 80, protocol: HTTP}, defaultEndpoint: 'unix:///a.sock'}]",
        ],
    );
    bad(
        NET,
        "Sidecar",
        &[
            ("workloadSelector: {labels: {app: a}}", "spec", "empty"),
            ("egress: [{}]", "spec.egress[0].hosts", "required"),
            ("egress: [{hosts: [reviews]}]", "spec.egress[0].hosts[0]", "./reviews"),
            (
                "egress: [{hosts: ['./*']}, {hosts: ['*/*'], port: {number: 1, protocol: TCP}}]",
                "spec.egress[0]",
                "last",
            ),
            ("egress: [{hosts: ['./*'], bind: 1.1.1.1}]", "spec.egress[0].bind", "port"),
            ("ingress: [{defaultEndpoint: 127.0.0.1:80}]", "spec.ingress[0].port", "required"),
            (
                "ingress: [{port: {number: 80, protocol: HTTP}, defaultEndpoint: 10.1.1.1:80}]",
                "spec.ingress[0].defaultEndpoint",
                "127.0.0.1",
            ),
            (
                "ingress: [{port: {number: 80, protocol: HTTP}}, {port: {number: 80, protocol: HTTP}}]",
                "spec.ingress[1].port.number",
                "twice",
            ),
            ("outboundTrafficPolicy: {egressProxy: {host: a}}", "spec.outboundTrafficPolicy.mode", "ALLOW_ANY"),
        ],
    );
}

#[test]
fn workloads() {
    good(
        NET,
        "WorkloadEntry",
        &[
            "address: 2.2.2.2\nlabels: {app: details}\nserviceAccount: d\nlocality: r/z\nports: {http: 8080}",
            "address: vm.example.com",
            "network: net1",
            "address: 'unix:///x'",
        ],
    );
    bad(
        NET,
        "WorkloadEntry",
        &[
            ("labels: {a: b}", "spec.address", "required"),
            ("address: '*.a.com'", "spec.address", "wildcard"),
            ("address: 1.1.1.1\nports: {http: 0}", "spec.ports.http", "between"),
            ("address: 'unix://x'", "spec.address", "absolute"),
            ("address: 1.1.1.1\nlocality: a//b", "spec.locality", "locality"),
        ],
    );
    good(
        NET,
        "WorkloadGroup",
        &[
            "metadata: {labels: {app: a}}\ntemplate: {ports: {http: 3550}, serviceAccount: s}\nprobe: {httpGet: {port: 8080, path: /h, httpHeaders: [{name: A, value: b}]}}",
        ],
    );
    bad(
        NET,
        "WorkloadGroup",
        &[
            ("metadata: {}", "spec.template", "required"),
            ("template: {}\nprobe: {}", "spec.probe", "no check"),
            ("template: {}\nprobe: {tcpSocket: {port: 1}, exec: {command: [a]}}", "spec.probe", "keep one"),
            ("template: {}\nprobe: {httpGet: {port: 0}}", "spec.probe.httpGet.port", "between"),
        ],
    );
}

#[test]
fn peer_and_request_authentication() {
    good(
        SEC,
        "PeerAuthentication",
        &["mtls: {mode: STRICT}", "{}", "selector: {matchLabels: {app: a}}\nportLevelMtls: {8080: {mode: DISABLE}}"],
    );
    bad(
        SEC,
        "PeerAuthentication",
        &[
            ("mtls: {mode: ALWAYS}", "spec.mtls.mode", "PERMISSIVE"),
            ("portLevelMtls: {80: {mode: STRICT}}", "spec.portLevelMtls", "selector"),
            ("selector: {matchLabels: {a: b}}\nportLevelMtls: {0: {mode: STRICT}}", "spec.portLevelMtls.0", "between"),
            (
                "selector: {matchLabels: {a: b}}\nportLevelMtls: {http: {mode: STRICT}}",
                "spec.portLevelMtls.http",
                "number",
            ),
        ],
    );
    good(
        SEC,
        "RequestAuthentication",
        &[
            "selector: {matchLabels: {app: a}}\njwtRules:\n- issuer: testing@secure.istio.io\n  jwksUri: https://example.com/jwks.json\n  forwardOriginalToken: true\n  outputClaimToHeaders: [{header: x-sub, claim: sub}]",
            "jwtRules: [{issuer: a, jwks: '{\"keys\": []}', fromHeaders: [{name: x, prefix: 'Bearer '}], fromCookies: [t]}]",
            "targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: g}]\njwtRules: [{issuer: a, jwks_uri: 'http://a/b'}]",
        ],
    );
    bad(
        SEC,
        "RequestAuthentication",
        &[
            ("jwtRules: [{jwksUri: 'https://a/b'}]", "spec.jwtRules[0].issuer", "required"),
            ("jwtRules: [{issuer: a, jwksUri: a/b}]", "spec.jwtRules[0].jwksUri", "URL"),
            ("jwtRules: [{issuer: a, jwksUri: 'https://a/b', jwks: '{}'}]", "spec.jwtRules[0]", "keep one"),
            ("jwtRules: [{issuer: a, jwks: 'x'}]", "spec.jwtRules[0].jwks", "JSON"),
            ("jwtRules: [{issuer: a, fromHeaders: [{name: ''}]}]", "spec.jwtRules[0].fromHeaders[0].name", "header"),
            (
                "selector: {matchLabels: {a: b}}\ntargetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: g}]",
                "spec",
                "keep one",
            ),
            ("targetRefs: [{kind: Pod, name: g}]", "spec.targetRefs[0].kind", "Service"),
        ],
    );
}

#[test]
fn authorization_policy() {
    good(
        SEC,
        "AuthorizationPolicy",
        &[
            "{}",
            "rules: [{}]",
            "action: DENY\nrules: [{}]",
            "selector: {matchLabels: {app: httpbin}}\naction: ALLOW\nrules:\n- from: [{source: {principals: [cluster.local/ns/default/sa/sleep]}}, {source: {namespaces: [dev]}}]\n  to: [{operation: {methods: [GET], paths: [/info*, '*/x', '/a/{*}/b/{**}'], ports: ['80'], hosts: ['*.a.com']}}]\n  when: [{key: 'request.auth.claims[iss]', values: ['https://accounts.google.com']}]",
            "action: CUSTOM\nprovider: {name: ext}\nrules: [{to: [{operation: {paths: [/headers]}}]}]",
            "action: AUDIT\nrules: [{when: [{key: source.ip, notValues: [10.0.0.0/8]}]}]",
            "rules: [{from: [{source: {serviceAccounts: [a, b/c], ipBlocks: [1.2.3.4], remoteIpBlocks: ['::/0']}}]}]",
        ],
    );
    bad(
        SEC,
        "AuthorizationPolicy",
        &[
            ("action: DENY", "spec.rules", "[{}]"),
            ("action: CUSTOM\nrules: [{}]", "spec.provider", "required"),
            ("provider: {name: x}", "spec.provider", "CUSTOM"),
            ("action: MAYBE", "spec.action", "ALLOW, DENY, AUDIT, CUSTOM"),
            ("rules: [{from: [{source: {}}]}]", "spec.rules[0].from[0].source", "empty"),
            ("rules: [{to: [{}]}]", "spec.rules[0].to[0].operation", "empty"),
            ("rules: [{from: [{source: {ipBlocks: [x]}}]}]", "spec.rules[0].from[0].source.ipBlocks[0]", "address"),
            ("rules: [{to: [{operation: {ports: [http]}}]}]", "spec.rules[0].to[0].operation.ports[0]", "port"),
            ("rules: [{to: [{operation: {ports: [80]}}]}]", "spec.rules[0].to[0].operation.ports[0]", "\"80\""),
            ("rules: [{to: [{operation: {paths: ['/{**}/{*}']}}]}]", "spec.rules[0].to[0].operation.paths[0]", "after"),
            ("rules: [{to: [{operation: {paths: ['/a{*}']}}]}]", "spec.rules[0].to[0].operation.paths[0]", "whole"),
            ("rules: [{when: [{key: request.mood, values: [x]}]}]", "spec.rules[0].when[0].key", "source.ip"),
            ("rules: [{when: [{key: source.ip}]}]", "spec.rules[0].when[0]", "values"),
            (
                "rules: [{from: [{source: {serviceAccounts: [a/b/c]}}]}]",
                "spec.rules[0].from[0].source.serviceAccounts[0]",
                "service account",
            ),
            (
                "rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]",
                "spec.rules[0].from[0].source",
                "keep one",
            ),
        ],
    );
}

#[test]
fn telemetry() {
    good(
        "telemetry.istio.io/v1",
        "Telemetry",
        &[
            "tracing: [{providers: [{name: zipkin}], randomSamplingPercentage: 10, customTags: {a: {literal: {value: b}}}}]",
            "metrics:\n- providers: [{name: prometheus}]\n  overrides:\n  - match: {metric: REQUEST_COUNT, mode: CLIENT}\n    tagOverrides: {x: {value: request.host}, y: {operation: REMOVE}}",
            "accessLogging: [{providers: [{name: envoy}], filter: {expression: response.code >= 400}, match: {mode: SERVER}}]",
        ],
    );
    bad(
        "telemetry.istio.io/v1",
        "Telemetry",
        &[
            ("tracing: [{providers: [{name: a}, {name: b}]}]", "spec.tracing[0].providers", "one provider"),
            ("tracing: [{randomSamplingPercentage: 101}]", "spec.tracing[0].randomSamplingPercentage", "between"),
            ("tracing: [{customTags: {a: {}}}]", "spec.tracing[0].customTags[\"a\"]", "no value"),
            (
                "metrics: [{overrides: [{tagOverrides: {x: {operation: UPSERT}}}]}]",
                "spec.metrics[0].overrides[0].tagOverrides[\"x\"].value",
                "CEL",
            ),
            (
                "metrics: [{overrides: [{match: {metric: NOPE}}]}]",
                "spec.metrics[0].overrides[0].match.metric",
                "REQUEST_COUNT",
            ),
            ("accessLogging: [{filter: {}}]", "spec.accessLogging[0].filter.expression", "CEL"),
        ],
    );
}

#[test]
fn extensions() {
    good(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        &[
            "workloadSelector: {labels: {app: a}}\nconfigPatches:\n- applyTo: HTTP_FILTER\n  match:\n    context: SIDECAR_INBOUND\n    listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}}}\n  patch: {operation: INSERT_BEFORE, value: {name: x, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.csrf.v3.CsrfPolicy, additional_origins: [{exact: a}]}}}",
            "configPatches: [{applyTo: CLUSTER, match: {cluster: {service: a}}, patch: {operation: MERGE, value: {connect_timeout: 1s}}}]",
            "configPatches: [{applyTo: LISTENER, patch: {operation: REMOVE}}]",
        ],
    );
    bad(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        &[
            (
                "configPatches: [{applyTo: HTTP_FILTER, patch: {operation: ADD, value: {name: x, typed_config: {'@type': type.googleapis.com/no.Such}}}}]",
                "spec.configPatches[0].patch.value.typed_config.@type",
                "no.Such",
            ),
            (
                "configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: fast}}}]",
                "spec.configPatches[0].patch.value.connect_timeout",
                "duration",
            ),
            ("configPatches: [{patch: {operation: ADD, value: {a: b}}}]", "spec.configPatches[0].applyTo", "required"),
            ("configPatches: [{applyTo: CLUSTER}]", "spec.configPatches[0].patch", "required"),
            (
                "configPatches: [{applyTo: CLUSTER, patch: {value: {a: b}}}]",
                "spec.configPatches[0].patch.operation",
                "MERGE",
            ),
            (
                "configPatches: [{applyTo: CLUSTER, patch: {operation: ADD}}]",
                "spec.configPatches[0].patch.value",
                "required",
            ),
            (
                "configPatches: [{applyTo: CLUSTER, match: {listener: {name: x}}, patch: {operation: REMOVE}}]",
                "spec.configPatches[0].match.listener",
                "cluster",
            ),
            (
                "configPatches: [{applyTo: CLUSTER, patch: {operation: INSERT_FIRST, value: {a: b}}}]",
                "spec.configPatches[0].patch.operation",
                "ADD",
            ),
        ],
    );
    warns(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        &[(
            "configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {upstream_connection_options: {tcp_keepalives: {}}}}}]",
            "spec.configPatches[0].patch.value.upstream_connection_options.tcp_keepalives",
            "left out",
        )],
    );
    good(
        "extensions.istio.io/v1alpha1",
        "WasmPlugin",
        &[
            "url: oci://ghcr.io/a/b:1\nphase: AUTHN\npluginConfig: {a: [1, {b: c}]}\nmatch: [{mode: SERVER, ports: [{number: 80}]}]",
            "url: file:///a.wasm\nimagePullPolicy: Always\nvmConfig: {env: [{name: A, value: b}, {name: C, valueFrom: HOST}]}",
        ],
    );
    bad(
        "extensions.istio.io/v1alpha1",
        "WasmPlugin",
        &[
            ("phase: AUTHN", "spec.url", "required"),
            ("url: 'ftp://a/b'", "spec.url", "oci"),
            ("url: a/b\nsha256: ABC", "spec.sha256", "64"),
            ("url: a/b\nvmConfig: {env: [{name: A}, {name: A}]}", "spec.vmConfig.env[1].name", "twice"),
        ],
    );
    good("extensions.istio.io/v1alpha1", "TrafficExtension", &["lua: {inlineCode: 'x = 1'}\nphase: STATS"]);
    bad("extensions.istio.io/v1alpha1", "TrafficExtension", &[("phase: STATS", "spec", "wasm or lua")]);
    good(
        "networking.istio.io/v1beta1",
        "ProxyConfig",
        &["selector: {matchLabels: {app: a}}\nconcurrency: 0\nenvironmentVariables: {A: b}\nimage: {imageType: debug}"],
    );
    bad("networking.istio.io/v1beta1", "ProxyConfig", &[("concurrency: -1", "spec.concurrency", "0 means")]);
}

/// Who applies an EnvoyFilter is told of the patches that are wrong, one by one.
#[test]
fn a_bad_value_is_no_bad_shape() {
    let patches = "configPatches: [{applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: fast}}}, {applyTo: CLUSTER, patch: {operation: MERGE, value: {connect_timeout: 1s}}}]";
    let read = |spec: &str| {
        let text = object("networking.istio.io/v1alpha3", "EnvoyFilter", spec);
        yaml::documents(&text, "test.yaml").unwrap().remove(0).object
    };
    let filter = read(patches);
    assert!(!validate(&filter).is_valid() && validate_shape(&filter).is_valid());
    let told: Vec<String> = patch_problems(&filter).into_iter().map(|problem| problem.path).collect();
    assert_eq!(told, ["spec.configPatches[0].patch.value.connect_timeout"]);
    let shapeless = read("configPatches: [{applyTo: CLUSTER, patch: {value: {connect_timeout: fast}}}]");
    assert!(!validate_shape(&shapeless).is_valid());
}

#[test]
fn unknown_fields_are_listed() {
    let found = check(&object(
        NET,
        "VirtualService",
        "host: [a]\nhosts: [a]\nhttp: [{rout: [], route: [{destination: {host: a}}]}]",
    ));
    assert_eq!(found.errors, []);
    let paths: Vec<_> = found.unknown_fields.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths, ["spec.host", "spec.http[0].rout"]);
    assert!(found.unknown_fields[0].message.contains("did you mean hosts?"));
}

#[test]
fn versions_and_names() {
    let text =
        object("networking.istio.io/v2", "VirtualService", "hosts: [a]\nhttp: [{route: [{destination: {host: a}}]}]");
    assert!(has(&check(&text).errors, "apiVersion", "networking.istio.io/v1"));
    assert!(has(&check(&object("networking.istio.io/v1", "Nope", "{}")).errors, "kind", "not a kind"));
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: My_NS, labels: {'a b': c}, annotations: {'/x': z}}";
    let found = check(text);
    assert!(has(&found.errors, "metadata.name", "lower-case"));
    assert!(has(&found.errors, "metadata.labels[\"a b\"]", "label"));
    assert!(has(&found.errors, "metadata.annotations[\"/x\"]", "DNS"));
}

#[test]
fn mesh_config() {
    let map = |mesh: &str| {
        let mesh = mesh.lines().map(|l| format!("    {l}\n")).collect::<String>();
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |-\n{mesh}"
        )
    };
    let text = "accessLogFile: /dev/stdout\ndefaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\n  tracing: {sampling: 100}\nextensionProviders:\n- name: ext\n  envoyExtAuthzGrpc: {service: ext-authz.foo.svc.cluster.local, port: '9000'}\nmeshMTLS: {minProtocolVersion: TLSV1_3}\npathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}";
    let found = check(&map(text));
    assert_eq!((&found.errors, &found.unknown_fields), (&vec![], &vec![]));
    let config = super::parse_mesh_config(text, &mut Vec::new()).unwrap();
    assert_eq!(config.trust_domain, "cluster.local");
    assert_eq!(config.default_config.as_ref().unwrap().status_port, 15020);
    let names: Vec<_> = config.extension_providers.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["prometheus", "envoy", "ext"]);
    assert_eq!(config.sampling().value, 100.0);
    assert_eq!(super::parse_mesh_config("", &mut Vec::new()).unwrap(), crate::istio::MeshConfig::with_defaults());
    for (mesh, path, part) in [
        ("trustDomain: spiffe://x", "data.mesh: trustDomain", "without spiffe://"),
        ("proxyListenPort: 70000", "data.mesh: proxyListenPort", "between"),
        ("connectTimeout: 0s", "data.mesh: connectTimeout", "1ms"),
        ("extensionProviders: [{name: a}]", "data.mesh: extensionProviders[2]", "no provider"),
        (
            "extensionProviders: [{name: a, zipkin: {service: z}}]",
            "data.mesh: extensionProviders[2].zipkin.port",
            "between",
        ),
        ("defaultConfig: {concurrency: -1}", "data.mesh: defaultConfig.concurrency", "core"),
        ("outboundTrafficPolicy: {mode: NEVER}", "data.mesh", "ALLOW_ANY"),
        ("a: [", "data.mesh", "line 1"),
    ] {
        let found = check(&map(mesh));
        assert!(has(&found.errors, path, part), "{mesh}\nwanted {path}: {part}\ngot {:#?}", found.errors);
    }
    for (mesh, path) in [
        ("zoneAwareLbSetting: {minClusterSize: 3}", "data.mesh: zoneAwareLbSetting"),
        ("defaultConfig: {connectionSettings: {httpIdleTimeout: 3s}}", "data.mesh: defaultConfig.connectionSettings"),
        (
            "defaultConfig: {proxyHeaders: {preserveHttp1HeaderCase: true}}",
            "data.mesh: defaultConfig.proxyHeaders.preserveHttp1HeaderCase",
        ),
    ] {
        let found = check(&map(mesh));
        assert!(found.errors.is_empty() && has(&found.warnings, path, "has no effect"), "{mesh}\ngot {found:#?}");
    }
    let found = check(&map("defaultConfig: {connectionSettings: {listenerPerConnectionBufferLimitBytes: 32768}}"));
    assert!(found.errors.is_empty() && found.warnings.is_empty(), "{found:#?}");
    for (api_version, kind, spec, path) in [
        (
            NET,
            "DestinationRule",
            "host: a\ntrafficPolicy: {loadBalancer: {simple: ROUND_ROBIN, zoneAwareLbSetting: {minClusterSize: 3}}}",
            "spec.trafficPolicy.loadBalancer.zoneAwareLbSetting",
        ),
        (
            "gateway.networking.k8s.io/v1",
            "Gateway",
            "gatewayClassName: istio\nlisteners: [{name: a, port: 80, protocol: HTTP}]\ntls: {backend: {clientCertificateRef: {name: c}}}",
            "spec.tls.backend",
        ),
    ] {
        warns(api_version, kind, &[(spec, path, "has no effect")]);
    }
    let found = check(&map("accesLogFile: x"));
    assert!(has(&found.unknown_fields, "data.mesh: accesLogFile", "accessLogFile"));
}

#[test]
fn kubernetes_kinds() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, namespace: t}\nspec:\n  replicas: 1\n  selector: {matchLabels: {app: a, version: v1}}\n  template:\n    metadata: {labels: {app: a, version: v1}}\n    spec:\n      containers:\n      - name: a\n        image: a:1\n        ports: [{containerPort: 80}]\n        volumeMounts: [{name: tmp, mountPath: /tmp}]\n      volumes: [{name: tmp, emptyDir: {}}]\n";
    let found = check(deployment);
    assert_eq!((&found.errors, &found.unknown_fields), (&vec![], &vec![]));
    for (from, to, path, part) in [
        ("labels: {app: a, version: v1}", "labels: {app: a}", "spec.selector.matchLabels", "make them equal"),
        ("image: a:1", "imagePullPolicy: Always", "spec.template.spec.containers[0].image", "required"),
        ("containerPort: 80", "containerPort: 0", "spec.template.spec.containers[0].ports[0].containerPort", "between"),
        (
            "containerPort: 80",
            "containerPort: '80'",
            "spec.template.spec.containers[0].ports[0].containerPort",
            "number",
        ),
        (
            "{name: tmp, mountPath",
            "{name: tpm, mountPath",
            "spec.template.spec.containers[0].volumeMounts[0].name",
            "volumes",
        ),
        ("- name: a", "- name: A_b", "spec.template.spec.containers[0].name", "lower-case"),
        ("replicas: 1", "replicas: one", "spec.replicas", "whole number"),
    ] {
        assert!(deployment.contains(from), "{from}");
        let found = check(&deployment.replace(from, to));
        assert!(has(&found.errors, path, part), "{to}\nwanted {path}: {part}\ngot {:#?}", found.errors);
    }
    let found = check(&deployment.replace("replicas: 1", "replica: 1"));
    assert!(has(&found.unknown_fields, "spec.replica", "replicas"));

    let service =
        |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a, namespace: t}}\nspec: {spec}\n");
    for spec in [
        "{selector: {app: a}, ports: [{name: http, port: 80, targetPort: 8080}, {name: https, port: 443, targetPort: web, appProtocol: https}]}",
        "{type: ExternalName, externalName: a.com}",
        "{clusterIP: None, selector: {a: b}}",
    ] {
        assert_eq!(check(&service(spec)).errors, [], "{spec}");
    }
    for (spec, path, part) in [
        ("{selector: {a: b}}", "spec.ports", "required"),
        ("{ports: [{port: 0}]}", "spec.ports[0].port", "between"),
        ("{ports: [{port: 1}, {port: 2}]}", "spec.ports[0].name", "several"),
        ("{ports: [{port: 1, name: a}, {port: 2, name: a}]}", "spec.ports[1].name", "twice"),
        ("{ports: [{port: 1, protocol: HTTP}]}", "spec.ports[0].protocol", "appProtocol"),
        ("{type: ExternalName}", "spec.externalName", "required"),
    ] {
        let found = check(&service(spec));
        assert!(has(&found.errors, path, part), "{spec}\nwanted {path}: {part}\ngot {:#?}", found.errors);
    }
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {proxy.istio.io/config: 'concurrency: many'}}\nspec: {containers: []}";
    let found = check(pod);
    assert!(has(&found.errors, "spec.containers", "at least one"));
    assert!(has(&found.errors, "metadata.annotations[\"proxy.istio.io/config\"]", "concurrency"));
}
