//! Journeys into the mesh: ingress gateways, TLS at the gateway, TLS through it, Kubernetes Ingress, Kubernetes Gateway API.

use crate::browser::{Answer, send};
use crate::certs::{Certificates, config_map, generic_secret, text, tls_secret};
use crate::journey::{Journey, Run};
use crate::{Lab, eventually, steadily};
use anyhow::{Result, ensure};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The journeys.
pub const JOURNEYS: &[Journey] = &[
    Journey {
        id: "2:J-IG",
        title: "ingress gateways",
        proves: &[
            "2:IG-1", "2:IG-2", "2:IG-3", "2:IG-4", "2:IG-5", "2:IG-6", "2:IG-7", "2:IG-8", "2:IG-9", "2:IG-10",
            "2:IG-11", "2:IG-12", "2:IG-13", "2:IG-14",
        ],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: ingress_gateway,
    },
    Journey {
        id: "2:J-SG",
        title: "secure gateways: TLS and mutual TLS, certificates replaced live",
        proves: &[
            "2:SG-1", "2:SG-2", "2:SG-3", "2:SG-4", "2:SG-5", "2:SG-6", "2:SG-7", "2:SG-8", "2:SG-9", "2:SG-10",
            "2:SG-11", "2:SG-12", "2:SG-13", "2:SG-14", "2:SG-15", "2:SG-16",
        ],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: secure_gateway,
    },
    Journey {
        id: "2:J-PT",
        title: "ingress without TLS termination",
        proves: &["2:PT-1", "2:PT-2", "2:PT-3", "2:PT-5"],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: passthrough,
    },
    Journey {
        id: "2:J-KI",
        title: "Kubernetes Ingress",
        proves: &["2:KI-1", "2:KI-2", "2:KI-3", "2:KI-4", "2:KI-5", "2:KI-6"],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: kubernetes_ingress,
    },
    Journey {
        id: "2:J-GA",
        title: "Kubernetes Gateway API",
        proves: &["2:GA-2", "2:GA-3", "2:GA-4", "2:GA-5", "2:GA-6", "2:GA-7"],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: gateway_api,
    },
];

const SOON: Duration = Duration::from_secs(60);
const GATEWAY: &str = "deploy/istio-ingressgateway";
const TEAPOT: &str = "-=[ teapot ]=-";

/// `curl -s -I -HHost:HOST http://$INGRESS_HOST:$INGRESS_PORT/PATH`.
fn head(lab: &Lab, host: &str, path: &str) -> Result<Answer> {
    send("HEAD", &lab.url(path), &[("host", host)], "")
}

/// Waits until the gateway answers so, on whichever connection.
fn answers(lab: &Lab, host: &str, path: &str, status: u16) -> Result<Answer> {
    steadily(SOON, || {
        let answer = head(lab, host, path)?;
        ensure!(answer.status == status, "{host}{path} answered {}, not {status}", answer.status);
        Ok(answer)
    })
}

fn by_istio(answer: &Answer) -> Result<()> {
    ensure!(answer.headers.get("server").is_some_and(|server| server == "istio-envoy"), "{:?}", answer.headers);
    Ok(())
}

fn ingress_gateway(run: &mut Run) -> Result<()> {
    run.lab.apply_sample("httpbin/httpbin.yaml")?;
    run.lab.apply_sample("sleep/sleep.yaml")?;
    run.lab.wait_deployments("default", &["httpbin", "sleep"])?;
    run.lab.apply_yaml("ingress/gateway.yaml", "default")?;
    run.check(&["2:IG-12", "2:IG-13"], "the gateway's address and ports; what is listed", |lab| {
        let out = lab.weft(&["get", "svc", "istio-ingressgateway", "-n", "istio-system", "-o", "json"])?;
        let service: serde_json::Value = serde_json::from_str(&out)?;
        ensure!(service["status"]["loadBalancer"]["ingress"][0]["ip"].is_string(), "no address: {out}");
        for name in ["http2", "https", "tcp"] {
            let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
            ensure!(ports.iter().any(|port| port["name"] == name), "no port {name}: {out}");
        }
        ensure!(lab.weft(&["get", "gateway", "--all-namespaces"])?.contains("httpbin-gateway"), "not listed");
        lab.weft(&["get", "ingress", "--all-namespaces"]).map(drop)
    });
    run.check(
        &["2:IG-1", "2:IG-2", "2:IG-3", "2:IG-4", "2:IG-5", "2:IG-9"],
        "routes of the host: 200, server istio-envoy",
        |lab| {
            by_istio(&answers(lab, "httpbin.example.com", "/status/200", 200)?)?;
            answers(lab, "httpbin.example.com", "/delay/0", 200).map(drop)
        },
    );
    run.check(&["2:IG-14"], "the gateway reports what passes", |lab| {
        eventually(SOON, || {
            let log = lab.logs("istio-system", GATEWAY, "istio-proxy")?;
            let parts = ["\"HEAD /status/200 HTTP/1.1\" 200", "outbound|8000||httpbin.default.svc.cluster.local"];
            ensure!(log.lines().any(|line| parts.iter().all(|part| line.contains(part))), "not logged: {log}");
            let counted = lab.admin("istio-system", GATEWAY, "GET", "stats/prometheus")?;
            let counts = |line: &str| line.starts_with("envoy_http_downstream_rq_xx{") && line.contains("\"2\"");
            ensure!(
                counted.lines().any(counts) || counted.contains("\nistio_requests_total{"),
                "not counted: {counted}"
            );
            Ok(())
        })
    });
    run.check(&["2:IG-6", "2:IG-7"], "other paths and hosts: 404", |lab| {
        answers(lab, "httpbin.example.com", "/headers", 404)?;
        answers(lab, "other.example.com", "/status/200", 404).map(drop)
    });
    run.check(&["2:IG-8"], "calls inside the mesh are untouched", |lab| {
        eventually(SOON, || {
            let out = lab.curl(&["-sS", "-o", "/dev/null", "-w", "%{http_code}", "httpbin:8000/headers"])?;
            ensure!(out == "200", "{out}");
            Ok(())
        })
    });
    run.lab.apply_yaml("ingress/gateway-any-host.yaml", "default")?;
    run.check(&["2:IG-10", "2:IG-11"], "applied again with host *: new route served, old one gone", |lab| {
        let answer = steadily(SOON, || {
            let answer = send("GET", &lab.url("/headers"), &[("user-agent", "browser")], "")?;
            ensure!(answer.status == 200, "{}", answer.status);
            Ok(answer)
        })?;
        ensure!(answer.body.contains("\"User-Agent\": \"browser\""), "{}", answer.body);
        answers(lab, "httpbin.example.com", "/status/200", 404).map(drop)
    });
    run.check(&["2:IG-7"], "deleted: nothing is served", |lab| {
        lab.delete_yaml("ingress/gateway-any-host.yaml", "default")?;
        steadily(SOON, || match head(lab, "httpbin.example.com", "/headers") {
            Ok(answer) => {
                ensure!(answer.status == 404, "{}", answer.status);
                Ok(())
            }
            // Without a server the port is closed.
            Err(_) => Ok(()),
        })
    });
    Ok(())
}

/// What `curl -v` said and printed, and its exit code.
struct Curl {
    code: i32,
    said: String,
    body: String,
}

/// `curl -v -HHost:HOST --resolve HOST:$SECURE_INGRESS_PORT:$INGRESS_HOST --cacert ROOT ARGS https://HOST:PORT/PATH`.
fn https(lab: &Lab, host: &str, path: &str, root: &Path, more: &[&str]) -> Result<Curl> {
    let port = lab.https_port;
    let (resolve, url) = (format!("{host}:{port}:127.0.0.1"), format!("https://{host}:{port}{path}"));
    let header = format!("Host:{host}");
    let fixed = ["-sS", "-v", "--max-time", "15", "-H", &header, "--resolve", &resolve, "--cacert", text(root)?];
    let out = Command::new("curl").args([&fixed, more, &[url.as_str()]].concat()).output()?;
    let said = crate::lab::text(&out.stderr);
    Ok(Curl { code: out.status.code().unwrap_or(-1), said, body: crate::lab::text(&out.stdout) })
}

fn teapot(lab: &Lab, root: &Path, more: &[&str]) -> Result<Curl> {
    eventually(SOON, || {
        let done = https(lab, "httpbin.example.com", "/status/418", root, more)?;
        ensure!(done.said.contains("< HTTP/2 418") && done.body.contains(TEAPOT), "exit {}: {}", done.code, done.said);
        Ok(done)
    })
}

fn delete_secret(lab: &Lab, name: &str) -> Result<()> {
    lab.weft(&["delete", "secret", name, "-n", "istio-system", "--ignore-not-found"]).map(drop)
}

fn secure_gateway(run: &mut Run) -> Result<()> {
    let certificates = Certificates::new()?;
    let leaf = certificates.leaf("httpbin.example.com")?;
    let root = certificates.root();
    run.lab.apply_sample("httpbin/httpbin.yaml")?;
    run.lab.apply_yaml("secure-gateway/helloworld-v1.yaml", "default")?;
    run.lab.wait_deployments("default", &["httpbin", "helloworld-v1"])?;
    run.lab.apply(&tls_secret("istio-system", "httpbin-credential", &leaf)?)?;
    run.lab.apply_yaml("secure-gateway/simple.yaml", "default")?;
    run.check(
        &["2:SG-1", "2:SG-2", "2:SG-3", "2:SG-9", "2:SG-10"],
        "TLS ends at the gateway: HTTP/2 418, a teapot, TLS 1.3",
        |lab| {
            let done = teapot(lab, &root, &[])?;
            ensure!(done.said.contains("CN=httpbin.example.com") && done.said.contains("TLSv1.3"), "{}", done.said);
            Ok(())
        },
    );
    run.check(&["2:SG-15"], "the gateway shows the credential that it was given", |lab| {
        eventually(SOON, || {
            let shown = lab.weft(&["proxy-config", "secret", GATEWAY, "-n", "istio-system"])?;
            ensure!(shown.contains("httpbin-credential"), "{shown}");
            Ok(())
        })
    });
    run.check(&["2:SG-14"], "another name in SNI is refused", |lab| {
        eventually(SOON, || {
            let done = https(lab, "unknown.example.com", "/status/418", &root, &["-k"])?;
            ensure!([35, 56].contains(&done.code), "exit {}: {}", done.code, done.said);
            Ok(())
        })
    });
    run.check(&["2:SG-4"], "the Secret deleted and made again of another root: shown without a restart", |lab| {
        let others = Certificates::new()?;
        delete_secret(lab, "httpbin-credential")?;
        lab.apply(&tls_secret("istio-system", "httpbin-credential", &others.leaf("httpbin.example.com")?)?)?;
        teapot(lab, &others.root(), &[])?;
        eventually(SOON, || {
            let done = https(lab, "httpbin.example.com", "/status/418", &root, &[])?;
            ensure!([35, 60].contains(&done.code), "the old root still verifies: exit {}: {}", done.code, done.said);
            Ok(())
        })
    });
    delete_secret(&run.lab, "httpbin-credential")?;
    run.lab.apply(&tls_secret("istio-system", "httpbin-credential", &leaf)?)?;
    let other = certificates.leaf("helloworld-v1.example.com")?;
    run.lab.apply(&tls_secret("istio-system", "helloworld-credential", &other)?)?;
    run.lab.apply_yaml("secure-gateway/two-hosts.yaml", "default")?;
    run.check(&["2:SG-5", "2:SG-6", "2:SG-16"], "two hosts on one port, each with its certificate", |lab| {
        eventually(SOON, || {
            let done = https(lab, "helloworld-v1.example.com", "/hello", &root, &[])?;
            ensure!(done.said.contains("< HTTP/2 200"), "exit {}: {}", done.code, done.said);
            ensure!(done.said.contains("CN=helloworld-v1.example.com"), "{}", done.said);
            let done = https(lab, "helloworld-v1.example.com", "/hello/further", &root, &[])?;
            ensure!(done.said.contains("< HTTP/2 404"), "exact is not exact: {}", done.said);
            Ok(())
        })?;
        teapot(lab, &root, &[]).map(drop)
    });
    mutual(run, &certificates, &leaf)
}

fn mutual(run: &mut Run, certificates: &Certificates, leaf: &crate::certs::Pair) -> Result<()> {
    let root = certificates.root();
    let client = certificates.leaf("client.example.com")?;
    let stranger = Certificates::new()?;
    let strange = stranger.leaf("client.example.com")?;
    let (certificate, key) = (leaf.certificate_text()?, leaf.key_text()?);
    let both = format!("{}{}", stranger.root_text()?, certificates.root_text()?);
    let with = ["--cert", text(&client.certificate)?, "--key", text(&client.key)?];
    let strange = ["--cert", text(&strange.certificate)?, "--key", text(&strange.key)?];
    let replace = |lab: &Lab, data: &serde_json::Value| -> Result<()> {
        delete_secret(lab, "httpbin-credential")?;
        lab.apply(&generic_secret("istio-system", "httpbin-credential", data)).map(drop)
    };
    let refuses = |lab: &Lab, more: &[&str], says: &str| {
        eventually(SOON, || {
            let done = https(lab, "httpbin.example.com", "/status/418", &root, more)?;
            ensure!(done.code != 0 && !done.body.contains(TEAPOT), "served: {}", done.said);
            ensure!(done.said.contains(says), "does not say {says:?}: exit {}: {}", done.code, done.said);
            Ok(done)
        })
    };
    let authority = certificates.root_text()?;
    replace(&run.lab, &json!({"tls.key": key, "tls.crt": certificate, "ca.crt": authority}))?;
    run.lab.apply_yaml("secure-gateway/mutual.yaml", "default")?;
    run.check(&["2:SG-7", "2:SG-8"], "mutual: without a certificate refused, with one served", |lab| {
        let done = refuses(lab, &[], "certificate required")?;
        ensure!(done.said.contains("Request CERT (13)"), "no request for a certificate: {}", done.said);
        teapot(lab, &root, &with)?;
        refuses(lab, &strange, "alert").map(drop)
    });
    // Each of the forms with clients of another root than the form before: only the new Secret lets them in.
    run.check(&["2:SG-11"], "keys key, cert, cacert", |lab| {
        replace(lab, &json!({"key": key, "cert": certificate, "cacert": stranger.root_text()?}))?;
        teapot(lab, &root, &strange)?;
        refuses(lab, &[], "certificate required")?;
        refuses(lab, &with, "alert").map(drop)
    });
    run.check(&["2:SG-12"], "the clients' root in a Secret of its own, NAME-cacert", |lab| {
        replace(lab, &json!({"key": key, "cert": certificate}))?;
        lab.apply(&generic_secret("istio-system", "httpbin-credential-cacert", &json!({"cacert": authority})))?;
        teapot(lab, &root, &with)?;
        refuses(lab, &[], "certificate required")?;
        refuses(lab, &strange, "alert").map(drop)
    });
    run.check(&["2:SG-13"], "a bundle: clients of either root", |lab| {
        let bundle = json!({"cacert": both});
        lab.apply(&generic_secret("istio-system", "httpbin-credential-cacert", &bundle))?;
        teapot(lab, &root, &strange)?;
        teapot(lab, &root, &with).map(drop)
    });
    Ok(())
}

fn passthrough(run: &mut Run) -> Result<()> {
    let certificates = Certificates::new()?;
    let leaf = certificates.leaf("nginx.example.com")?;
    run.lab.apply(&tls_secret("default", "nginx-server-certs", &leaf)?)?;
    let config = std::fs::read_to_string(crate::yaml("passthrough/nginx.conf"))?;
    run.lab.apply(&config_map("default", "nginx-configmap", &json!({"nginx.conf": config})))?;
    run.lab.apply_yaml("passthrough/nginx.yaml", "default")?;
    run.lab.wait_deployments("default", &["my-nginx"])?;
    run.check(&["2:PT-3", "2:PT-5"], "inside the pod nginx answers with its own certificate", |lab| {
        let resolve = "nginx.example.com:443:127.0.0.1";
        let argv = ["curl", "-sS", "-v", "-k", "--resolve", resolve, "https://nginx.example.com"];
        eventually(SOON, || {
            let out = lab.exec("default", "deploy/my-nginx", "istio-proxy", &argv)?;
            let said = crate::lab::text(&out.stderr);
            ensure!(said.contains("CN=nginx.example.com") && said.contains("HTTP/1.1 200 OK"), "{said}");
            ensure!(crate::lab::text(&out.stdout).contains("Welcome to nginx!"), "{out:?}");
            Ok(())
        })
    });
    run.lab.apply_yaml("passthrough/gateway.yaml", "default")?;
    run.check(&["2:PT-1", "2:PT-2"], "through the gateway the client sees nginx' certificate and page", |lab| {
        eventually(SOON, || {
            let done = https(lab, "nginx.example.com", "", &certificates.root(), &[])?;
            for part in
                ["SSL certificate verify ok.", "HTTP/1.1 200 OK", "CN=nginx.example.com", "issuer: O=example Inc."]
            {
                ensure!(done.said.contains(part), "no {part:?}: exit {}: {}", done.code, done.said);
            }
            ensure!(done.body.contains("<title>Welcome to nginx!</title>"), "{}", done.body);
            let done = https(lab, "other.example.com", "", &certificates.root(), &["-k"])?;
            ensure!([35, 56].contains(&done.code), "another name is served: exit {}: {}", done.code, done.said);
            Ok(())
        })
    });
    Ok(())
}

fn kubernetes_ingress(run: &mut Run) -> Result<()> {
    run.lab.apply_sample("httpbin/httpbin.yaml")?;
    run.lab.wait_deployments("default", &["httpbin"])?;
    run.lab.apply_yaml("kubernetes-ingress/ingress.yaml", "default")?;
    run.check(&["2:KI-1", "2:KI-3"], "the older form: /status/* is a prefix, the rest 404", |lab| {
        by_istio(&answers(lab, "httpbin.example.com", "/status/200", 200)?)?;
        answers(lab, "httpbin.example.com", "/headers", 404).map(drop)
    });
    run.check(&["2:KI-2"], "without a class it is nobody's", |lab| {
        lab.apply_yaml("kubernetes-ingress/ingress-of-nobody.yaml", "default")?;
        // Something later that does act shows that this one had its time.
        lab.apply_yaml("kubernetes-ingress/ingress-later.yaml", "default")?;
        answers(lab, "later.example.com", "/get", 200)?;
        answers(lab, "nobody.example.com", "/get", 404).map(drop)
    });
    let certificates = Certificates::new()?;
    let leaf = certificates.leaf("httpbin.example.com")?;
    run.lab.apply(&tls_secret("istio-system", "httpbin-credential", &leaf)?)?;
    run.lab.delete_yaml("kubernetes-ingress/ingress.yaml", "default")?;
    run.lab.apply_yaml("kubernetes-ingress/ingress-class.yaml", "default")?;
    run.check(&["2:KI-4", "2:KI-5"], "IngressClass, Exact and Prefix", |lab| {
        answers(lab, "httpbin.example.com", "/ip", 200)?;
        answers(lab, "httpbin.example.com", "/ip/further", 404)?;
        answers(lab, "httpbin.example.com", "/anything/further", 200)?;
        answers(lab, "httpbin.example.com", "/anythingelse", 404)?;
        answers(lab, "httpbin.example.com", "/status/200", 404).map(drop)
    });
    run.check(&["2:KI-6"], "TLS with the Secret beside the gateway", |lab| {
        eventually(SOON, || {
            let done = https(lab, "httpbin.example.com", "/ip", &certificates.root(), &[])?;
            ensure!(done.said.contains("HTTP/2 200"), "exit {}: {}", done.code, done.said);
            Ok(())
        })
    });
    Ok(())
}

fn gateway_api(run: &mut Run) -> Result<()> {
    run.lab.apply_sample("httpbin/httpbin.yaml")?;
    run.lab.wait_deployments("default", &["httpbin"])?;
    run.lab.apply_yaml_as_is("gateway-api/gateway.yaml")?;
    let added = |lab: &Lab, host: &str| {
        steadily(SOON, || {
            let answer = send("GET", &lab.url("/get"), &[("host", host)], "")?;
            ensure!(answer.body.contains("\"My-Added-Header\": \"added-value\""), "{}", answer.body);
            Ok(())
        })
    };
    run.check(
        &["2:GA-2", "2:GA-3", "2:GA-5", "2:GA-6", "2:GA-7"],
        "v1alpha1: /get is served with the added header, the rest 404",
        |lab| {
            by_istio(&answers(lab, "httpbin.example.com", "/get", 200)?)?;
            answers(lab, "httpbin.example.com", "/headers", 404)?;
            added(lab, "httpbin.example.com")
        },
    );
    run.check(&["2:GA-4"], "a route without the label is not attached", |lab| {
        answers(lab, "other.example.com", "/get", 404).map(drop)
    });
    run.check(&["2:GA-5", "2:GA-6"], "v1: the same, and its status says so", |lab| {
        lab.apply_yaml_as_is("gateway-api/gateway-v1.yaml")?;
        answers(lab, "v1.example.com", "/get", 200)?;
        answers(lab, "v1.example.com", "/headers", 404)?;
        added(lab, "v1.example.com")?;
        eventually(SOON, || {
            let routes = lab.objects("httproutes.gateway.networking.k8s.io", &["-n", "default"])?;
            let route = routes.iter().find(|route| route["metadata"]["name"] == "http-v1");
            let conditions = route.map(|route| route["status"]["parents"][0]["conditions"].clone()).unwrap_or_default();
            let accepted = conditions.as_array().into_iter().flatten();
            let mut accepted = accepted.filter(|c| c["type"] == "Accepted" && c["status"] == "True");
            ensure!(accepted.next().is_some(), "conditions of HTTPRoute http-v1: {conditions}");
            Ok(())
        })
    });
    run.check(&[], "a BackendTLSPolicy without its CA certificates: nothing goes out, and a new proxy starts", |lab| {
        let policy = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {name: httpbin, namespace: \
                      default}\nspec:\n  targetRefs: [{group: \"\", kind: Service, name: httpbin}]\n  validation: {hostname: \
                      httpbin.example.com, caCertificateRefs: [{group: \"\", kind: ConfigMap, name: gone}]}\n";
        lab.apply(policy)?;
        answers(lab, "v1.example.com", "/get", 503)?;
        lab.apply_sample("sleep/sleep.yaml")?;
        lab.wait_deployments("default", &["sleep"])?;
        let code = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "http://httpbin:8000/get"];
        let answered = |want: &str| {
            eventually(SOON, || {
                let code = lab.curl(&code)?;
                ensure!(code == want, "{code}");
                Ok(())
            })
        };
        answered("503")?;
        lab.weft(&["delete", "backendtlspolicy", "httpbin", "-n", "default"])?;
        answers(lab, "v1.example.com", "/get", 200)?;
        answered("200")
    });
    Ok(())
}
