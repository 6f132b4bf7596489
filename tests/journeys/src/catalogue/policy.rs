//! Journeys of access control: by address at the gateway, across a change of the trust domain, and as a dry run.

use super::security::{SOON, at_gateway, becomes, call, callers, namespace, policy, through_gateway};
use crate::browser::get;
use crate::journey::{Engine, Journey, Run};
use crate::{Lab, eventually, steadily};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// The journeys.
pub const JOURNEYS: &[Journey] = &[
    Journey {
        id: "3:J3",
        title: "access control at the gateway by address",
        proves: &[
            "3:IG-01", "3:IG-02", "3:IG-03", "3:IG-04", "3:IG-05", "3:IG-06", "3:IG-07", "3:IG-14", "3:IG-16",
            "3:IG-17",
        ],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: gateway_addresses,
    },
    Journey {
        id: "3:J4",
        title: "migration to another trust domain",
        proves: &["3:TD-01", "3:TD-02", "3:TD-03", "3:TD-04", "3:TD-05", "3:TD-06", "3:TD-07", "3:TD-08", "3:TD-09"],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: trust_domain,
    },
    Journey {
        id: "3:J5",
        title: "dry run of a policy",
        proves: &["3:DR-01", "3:DR-02", "3:DR-03", "3:DR-04", "3:DR-05", "3:DR-06", "3:DR-07", "3:DR-09"],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: dry_run,
    },
];

/// `ingress-policy` at the gateway: who is meant by `field` of the source.
fn ingress_policy(lab: &Lab, action: &str, field: &str, blocks: &[&str]) -> Result<()> {
    let rules = json!([{"from": [{"source": {field: blocks}}]}]);
    let spec = json!({"selector": {"matchLabels": {"app": "istio-ingressgateway"}}, "action": action, "rules": rules});
    lab.apply(&policy("istio-system", "ingress-policy", spec)).map(drop)
}

/// Sets a level of a proxy's log, whose answer says that it is in force.
fn rbac_debug(lab: &Lab, command: &[&str]) -> Result<()> {
    let levels = lab.weft(command)?;
    ensure!(levels.lines().any(|line| line.trim() == "rbac: debug"), "{levels}");
    Ok(())
}

fn gateway_addresses(run: &mut Run) -> Result<()> {
    callers(&run.lab, "foo", true)?;
    let pods = run.lab.ready_pods("istio=ingressgateway", "istio-system")?;
    let pod = pods.first().context("no gateway")?.clone();
    rbac_debug(&run.lab, &["proxy-config", "log", &pod, "-n", "istio-system", "--level", "rbac:debug"])?;
    run.check(&["3:IG-16"], "without policies the gateway lets in", |lab| {
        through_gateway(lab)?;
        at_gateway(lab, "/headers", None, 200)
    });
    run.check(&["3:IG-01", "3:IG-02"], "other addresses are kept out", |lab| {
        ingress_policy(lab, "ALLOW", "ipBlocks", &["1.2.3.4", "5.6.7.0/24"])?;
        at_gateway(lab, "/headers", None, 403)
    });
    // Third field: the address of the connection; fourth: that of the client behind proxies.
    let address = |lab: &Lab, field: usize| -> Result<String> {
        let logs = lab.logs("istio-system", &pod, "istio-proxy")?;
        let line = logs.lines().rfind(|line| line.contains("remoteIP")).context("no line with remoteIP")?;
        let found = line.split(',').nth(field).and_then(|f| f.split(':').nth(1)).unwrap_or_default().trim().to_string();
        ensure!(found.parse::<std::net::IpAddr>().is_ok(), "{found:?} in {line}");
        Ok(found)
    };
    let mut client = String::new();
    run.check(&["3:IG-04", "3:IG-14"], "the client's address is the third field of the gateway's line", |lab| {
        client = eventually(SOON, || address(lab, 2))?;
        ingress_policy(lab, "ALLOW", "ipBlocks", &["1.2.3.4", "5.6.7.0/24", &client])?;
        at_gateway(lab, "/headers", None, 200)
    });
    run.check(&["3:IG-03"], "the client's address is denied, another is not", |lab| {
        ingress_policy(lab, "DENY", "ipBlocks", &[&client])?;
        at_gateway(lab, "/headers", None, 403)?;
        ingress_policy(lab, "DENY", "ipBlocks", &["1.2.3.4"])?;
        at_gateway(lab, "/headers", None, 200)
    });
    behind_a_proxy(run, &address)?;
    proxy_protocol(run)
}

/// Status of `GET /headers` with an `x-forwarded-for`.
fn forwarded(lab: &Lab, told: &str, want: u16) -> Result<()> {
    steadily(SOON, || {
        let got = get(&lab.url("/headers"), &[("x-forwarded-for", told)])?;
        ensure!(got.status == want, "x-forwarded-for {told}: {}, want {want}", got.status);
        Ok(())
    })
}

/// One trusted proxy in front: the last address that it tells is the client's.
fn behind_a_proxy(run: &mut Run, address: &dyn Fn(&Lab, usize) -> Result<String>) -> Result<()> {
    run.check(&["3:IG-05"], "without a trusted proxy nobody is believed about the client's address", |lab| {
        ingress_policy(lab, "ALLOW", "remoteIpBlocks", &["1.2.3.4", "5.6.7.0/24"])?;
        forwarded(lab, "1.2.3.4", 403)
    });
    let proxies = |lab: &Lab, count: u32| {
        let topology = json!({"numTrustedProxies": count});
        lab.change_mesh(
            &json!({"defaultConfig": {"discoveryAddress": "istiod.istio-system.svc:15012", "gatewayTopology": topology}}),
        )
    };
    run.check(
        &["3:IG-05", "3:IG-06", "3:IG-17"],
        "with one, remoteIpBlocks are about the address that it tells",
        |lab| {
            proxies(lab, 1)?;
            for (told, status) in [
                ("1.2.3.4", 200),
                ("5.6.7.8", 200),
                ("9.9.9.9", 403),
                ("9.9.9.9, 1.2.3.4", 200),
                // Whoever is in front of the proxy may write what it likes before the proxy's own word.
                ("1.2.3.4, 9.9.9.9", 403),
            ] {
                forwarded(lab, told, status)?;
            }
            Ok(())
        },
    );
    run.check(&["3:IG-14"], "that address is the fourth field of the gateway's line", |lab| {
        forwarded(lab, "5.6.7.9", 200)?;
        eventually(SOON, || {
            let seen = address(lab, 3)?;
            ensure!(seen == "5.6.7.9", "{seen}");
            Ok(())
        })?;
        ensure!(address(lab, 2)? != "5.6.7.9", "the connection's address is told as the client's");
        ingress_policy(lab, "DENY", "remoteIpBlocks", &["5.6.7.9"])?;
        forwarded(lab, "5.6.7.9", 403)?;
        forwarded(lab, "1.2.3.4", 200)
    });
    proxies(&run.lab, 0)
}

/// The first line of the answer to `GET /headers` after these bytes; empty when the connection is closed.
fn after(lab: &Lab, first: &[u8]) -> Result<String> {
    let url = lab.url("");
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let get = format!("GET /headers HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    let request = [first, get.as_bytes()];
    stream.write_all(&request.concat())?;
    let mut answer = Vec::new();
    // A reset says the same as an end.
    let _ = stream.read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_string())
}

/// A header of version 2 for TCP over IPv4 (haproxy's proxy-protocol.txt, section 2.2).
fn version_2(source: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x21, 0x11, 0, 12]);
    header.extend(source);
    header.extend([127, 0, 0, 1, 0x30, 0x39, 0, 80]);
    header
}

fn proxy_protocol(run: &mut Run) -> Result<()> {
    let listener_filters = json!([
        {"name": "proxy_protocol", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol"}},
        {"name": "tls_inspector", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}},
    ]);
    let patch = json!({"operation": "MERGE", "value": {"listener_filters": listener_filters}});
    let filter = json!({
        "apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
        "metadata": {"name": "proxy-protocol", "namespace": "istio-system"},
        "spec": {"workloadSelector": {"labels": {"istio": "ingressgateway"}},
                 "configPatches": [{"applyTo": "LISTENER", "match": {"context": "GATEWAY"}, "patch": patch}]},
    });
    let becomes = |lab: &Lab, first: &[u8], want: &str| {
        let answered = || {
            let got = after(lab, first)?;
            let status = got.split(' ').nth(1).unwrap_or_default();
            ensure!(status == want, "{}: {got:?}, want {want:?}", String::from_utf8_lossy(first));
            Ok(())
        };
        // Envoy takes seconds to close a connection without an answer.
        if want.is_empty() { eventually(SOON, answered) } else { steadily(SOON, answered) }
    };
    let version_1 = |source: &str| format!("PROXY TCP4 {source} 127.0.0.1 12345 80\r\n").into_bytes();
    run.check(
        &["3:IG-06", "3:IG-07"],
        "with the PROXY protocol remoteIpBlocks are about the address of its header",
        |lab| {
            ingress_policy(lab, "ALLOW", "remoteIpBlocks", &["1.2.3.4", "5.6.7.0/24"])?;
            lab.apply(&filter.to_string())?;
            for (first, status) in [
                (version_1("1.2.3.4"), "200"),
                (version_1("9.9.9.9"), "403"),
                (version_2([5, 6, 7, 8]), "200"),
                (version_2([9, 9, 9, 9]), "403"),
                // Without a header, or with one that is none, the connection is closed.
                (Vec::new(), ""),
                (b"PROXY TCP4 x y z\r\n".to_vec(), ""),
            ] {
                becomes(lab, &first, status)?;
            }
            ingress_policy(lab, "DENY", "remoteIpBlocks", &["1.2.3.4"])?;
            becomes(lab, &version_1("1.2.3.4"), "403")?;
            becomes(lab, &version_2([9, 9, 9, 9]), "200")
        },
    );
    Ok(())
}

/// Makes the pods of a namespace anew, as `kubectl delete pod --all` does.
fn anew(lab: &Lab, name: &str, deployments: &[&str]) -> Result<()> {
    for pod in lab.objects("pods", &["-n", name])? {
        // One that is about to end may be gone before it is told to.
        let pod = pod["metadata"]["name"].as_str().context("a pod without name")?;
        lab.weft(&["delete", "pod", pod, "-n", name, "--ignore-not-found"])?;
    }
    lab.wait_deployments(name, deployments)
}

fn restart_control_plane(lab: &Lab, mark: &str) -> Result<()> {
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"restarted": mark}}}}}).to_string();
    lab.weft(&["patch", "deployment", "istiod", "-n", "istio-system", "-p", &patch])?;
    lab.wait_deployments("istio-system", &["istiod"])
}

const HTTPBIN: &str = "service-httpbin.default.svc.cluster.local";

/// The policy of the task's page: whose `sleep` may read. Without an action, with dots in its name, and the document is ended.
fn readers(principal: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {HTTPBIN}\n  namespace: default\nspec:\n  selector: {{matchLabels: {{app: httpbin}}}}\n  rules:\n  - from: [{{source: {{principals: [\"{principal}\"]}}}}]\n    to: [{{operation: {{methods: [GET]}}}}]\n...\n"
    )
}

/// Waits until, of the two callers, the one of `sleep-allow` gets this status and the other 403.
fn answers(lab: &Lab, allowed: &str) -> Result<()> {
    let url = "http://httpbin.default:8000/ip";
    becomes(lab, "sleep-allow", url, &[], allowed)?;
    becomes(lab, "default", url, &[], "403")
}

fn trust_domain(run: &mut Run) -> Result<()> {
    let lab = &run.lab;
    lab.change_mesh(&json!({"trustDomain": "old-td"}))?;
    restart_control_plane(lab, "old")?;
    namespace(lab, "sleep-allow", true)?;
    lab.apply_sample_in("httpbin/httpbin.yaml", "default")?;
    lab.apply_sample_in("sleep/sleep.yaml", "default")?;
    lab.apply_sample_in("sleep/sleep.yaml", "sleep-allow")?;
    lab.wait_deployments("default", &["httpbin", "sleep"])?;
    lab.wait_deployments("sleep-allow", &["sleep"])?;
    let identities = |lab: &Lab, domain: &str| {
        eventually(SOON, || {
            let told = lab.curl_in("sleep-allow", &["-s", "http://httpbin.default:8000/headers"])?;
            let by = format!("By=spiffe://{domain}/ns/default/sa/httpbin;");
            let from = format!("URI=spiffe://{domain}/ns/sleep-allow/sa/sleep");
            ensure!(told.contains(&by) && told.contains(&from), "{told}");
            Ok(())
        })
    };
    run.check(&["3:TD-01"], "identities are of the mesh's trust domain", |lab| identities(lab, "old-td"));
    run.check(&["3:TD-06"], "cluster.local means the mesh's own trust domain, whatever its name", |lab| {
        lab.apply(&readers("cluster.local/ns/nobody/sa/sleep"))?;
        answers(lab, "403")?;
        lab.apply(&readers("cluster.local/ns/sleep-allow/sa/sleep"))?;
        answers(lab, "200")
    });
    run.check(
        &["3:TD-02", "3:TD-03", "3:TD-09"],
        "a principal of the old domain, without an action: it is allowed",
        |lab| {
            lab.apply(&readers("old-td/ns/nobody/sa/sleep"))?;
            answers(lab, "403")?;
            lab.apply(&readers("old-td/ns/sleep-allow/sa/sleep"))?;
            answers(lab, "200")
        },
    );
    run.check(&["3:TD-04", "3:TD-07"], "in a new domain, with pods made anew, the old name is nobody's", |lab| {
        lab.change_mesh(&json!({"trustDomain": "new-td"}))?;
        restart_control_plane(lab, "new")?;
        anew(lab, "default", &["httpbin", "sleep"])?;
        anew(lab, "sleep-allow", &["sleep"])?;
        answers(lab, "403")
    });
    run.check(
        &["3:TD-05", "3:TD-08"],
        "with the old domain as an alias the same policy holds, with no further step",
        |lab| {
            lab.change_mesh(&json!({"trustDomainAliases": ["old-td"]}))?;
            answers(lab, "200")?;
            identities(lab, "new-td")
        },
    );
    run.check(&["3:TD-06"], "and by cluster.local it needs no alias", |lab| {
        lab.change_mesh(&json!({"trustDomainAliases": []}))?;
        answers(lab, "403")?;
        lab.apply(&readers("cluster.local/ns/sleep-allow/sa/sleep"))?;
        answers(lab, "200")
    });
    Ok(())
}

/// A collector of spans: what is sent to it is in its log, a line for each message.
const COLLECTOR: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: zipkin, namespace: tracing}
spec: {selector: {app: zipkin}, ports: [{name: http, port: 9411}]}
---
apiVersion: v1
kind: Pod
metadata: {name: zipkin, namespace: tracing, labels: {app: zipkin}}
spec:
  containers:
  - name: zipkin
    image: curlimages/curl
    command:
    - /usr/bin/python3
    - -u
    - -c
    - |
      from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
      class Collector(BaseHTTPRequestHandler):
          protocol_version = "HTTP/1.1"
          def chunks(self):
              while size := int(self.rfile.readline(), 16):
                  yield self.rfile.read(size)
                  self.rfile.readline()
              self.rfile.readline()
          def do_POST(self):
              length = self.headers.get("content-length")
              body = self.rfile.read(int(length)) if length else b"".join(self.chunks())
              print(body.decode(), flush=True)
              self.send_response(202)
              self.send_header("content-length", "0")
              self.end_headers()
          def log_message(self, *args):
              pass
      ThreadingHTTPServer(("", 9411), Collector).serve_forever()
"#;

/// All requests are traced, to the collector.
fn trace(lab: &Lab) -> Result<()> {
    namespace(lab, "tracing", false)?;
    lab.apply(COLLECTOR)?;
    lab.wait_ready("app=zipkin", "tracing", 1)?;
    let zipkin = json!({"service": "zipkin.tracing.svc.cluster.local", "port": 9411});
    lab.change_mesh(&json!({"extensionProviders": [{"name": "zipkin", "zipkin": zipkin}]}))?;
    let telemetry = json!({"apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry",
        "metadata": {"name": "mesh-default", "namespace": "istio-system"},
        "spec": {"tracing": [{"providers": [{"name": "zipkin"}], "randomSamplingPercentage": 100}]}});
    lab.apply(&telemetry.to_string()).map(drop)
}

/// A server's span that the collector was sent and that has these tags.
fn span_with(logs: &str, tags: &[(&str, &str)]) -> bool {
    let messages = logs.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let spans = messages.flat_map(|message| message.as_array().cloned().unwrap_or_default());
    spans
        .into_iter()
        .any(|span| span["kind"] == "SERVER" && tags.iter().all(|(name, value)| span["tags"][*name] == *value))
}

fn dry_run(run: &mut Run) -> Result<()> {
    const RULE: &str = "ns[foo]-policy[deny-path-headers]-rule[0]";
    trace(&run.lab)?;
    callers(&run.lab, "foo", true)?;
    let pods = run.lab.ready_pods("app=httpbin", "foo")?;
    let pod = pods.first().context("no httpbin")?.clone();
    rbac_debug(&run.lab, &["proxy-config", "log", "deploy/httpbin.foo", "--level", "rbac:debug"])?;
    let engine = run.engine;
    let apply = |lab: &Lab, dry: &str| {
        let rules = json!([{"to": [{"operation": {"paths": ["/headers"]}}]}]);
        let spec = json!({"selector": {"matchLabels": {"app": "httpbin"}}, "action": "DENY", "rules": rules});
        let meta = json!({"name": "deny-path-headers", "namespace": "foo", "annotations": {"istio.io/dry-run": dry}});
        lab.apply(&json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": meta, "spec": spec}).to_string())
    };
    let url = "http://httpbin.foo:8000/headers";
    run.check(&["3:DR-01", "3:DR-03", "3:DR-04"], "a dry run stops nobody, and is told in the log", |lab| {
        apply(lab, "true")?;
        eventually(SOON, || {
            let (code, _) = call(lab, "foo", url, &[])?;
            ensure!(code == "200", "{code}");
            let logs = lab.logs("foo", &pod, "istio-proxy")?;
            ensure!(logs.contains(&format!("shadow denied, matched policy {RULE}")), "the log does not say so");
            Ok(())
        })
    });
    run.check(&["3:DR-05", "3:DR-06"], "and counted", |lab| {
        eventually(SOON, || {
            let stats = lab.admin("foo", &pod, "GET", "stats/prometheus")?;
            let counted = |result: &str| counted(&stats, engine, "deny", result);
            let (denied, allowed) = (counted("denied"), counted("allowed"));
            ensure!(denied.is_some_and(|n| n >= 1.0) && allowed == Some(0.0), "{denied:?} {allowed:?}");
            Ok(())
        })
    });
    run.check(&["3:DR-07"], "and in the tags of the server's span", |lab| {
        let name = "istio.authorization.dry_run.deny_policy.name";
        let tags = [(name, RULE), ("istio.authorization.dry_run.deny_policy.result", "denied")];
        eventually(SOON, || {
            call(lab, "foo", url, &[])?;
            let logs = lab.logs("tracing", "zipkin", "zipkin")?;
            ensure!(
                span_with(&logs, &tags),
                "no span with {tags:?} among {} lines of the collector",
                logs.lines().count()
            );
            Ok(())
        })
    });
    run.check(&["3:DR-09"], "an ALLOW policy's dry run is told apart: log, metrics, tags", |lab| {
        let rules = json!([{"to": [{"operation": {"paths": ["/headers"]}}]}]);
        let spec = json!({"selector": {"matchLabels": {"app": "httpbin"}}, "action": "ALLOW", "rules": rules});
        let meta = json!({"name": "allow-path-headers", "namespace": "foo", "annotations": {"istio.io/dry-run": "true"}});
        lab.apply(&json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": meta, "spec": spec}).to_string())?;
        let rule = RULE.replace("deny-", "allow-");
        let tags = [
            ("istio.authorization.dry_run.allow_policy.name", rule.as_str()),
            ("istio.authorization.dry_run.allow_policy.result", "allowed"),
            ("istio.authorization.dry_run.deny_policy.result", "denied"),
        ];
        eventually(SOON, || {
            for path in ["headers", "ip"] {
                let (code, _) = call(lab, "foo", &format!("http://httpbin.foo:8000/{path}"), &[])?;
                ensure!(code == "200", "{path}: {code}");
            }
            let logs = lab.logs("foo", &pod, "istio-proxy")?;
            ensure!(logs.contains(&format!("shadow allowed, matched policy {rule}")), "the log does not say so");
            let stats = lab.admin("foo", &pod, "GET", "stats/prometheus")?;
            for result in ["allowed", "denied"] {
                let seen = counted(&stats, engine, "allow", result);
                ensure!(seen.is_some_and(|n| n >= 1.0), "{result}: {seen:?}");
            }
            let spans = lab.logs("tracing", "zipkin", "zipkin")?;
            ensure!(span_with(&spans, &tags), "no span with {tags:?}");
            Ok(())
        })?;
        lab.weft(&["delete", "authorizationpolicy", "allow-path-headers", "-n", "foo"]).map(drop)
    });
    run.check(&["3:DR-02"], "without the annotation it is enforced", |lab| {
        apply(lab, "false")?;
        becomes(lab, "foo", url, &[], "403")
    });
    Ok(())
}

/// The counter of dry runs with this result. Stock Envoy cuts the listener's name at its first dot for a tag.
fn counted(stats: &str, engine: Engine, action: &str, result: &str) -> Option<f64> {
    let (name, listener) = match engine {
        Engine::Weft => ("envoy_http_inbound_0_0_0_0_80_rbac{", ""),
        Engine::Envoy => ("envoy_http_0_0_0_80_rbac{", "envoy_http_conn_manager_prefix=\"inbound_0\""),
    };
    let (action, result) = (format!("authz_dry_run_action=\"{action}\""), format!("authz_dry_run_result=\"{result}\""));
    let labels = [&action, &result, listener];
    let line = stats.lines().find(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
}
