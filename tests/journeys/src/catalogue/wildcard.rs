//! The journey to wildcard hosts: directly, through an egress gateway to one host, through one with an SNI proxy beside it,
//! and through one that finds hosts by their server name itself.

use super::egress::{EGRESS, OPTIONS, SOON, blocked, egress, logged, prepare, registry_only};
use crate::certs::config_map;
use crate::journey::{Engine, Journey, Run};
use crate::{Lab, eventually};
use anyhow::{Result, ensure};
use serde_json::json;

/// The journeys.
pub const JOURNEYS: &[Journey] = &[Journey {
    id: "2:J-WH",
    title: "egress to wildcard hosts",
    proves: &[
        "2:WH-1", "2:WH-2", "2:WH-3", "2:WH-4", "2:WH-5", "2:WH-6", "2:WH-7", "2:WH-8", "2:WH-9", "2:WH-10", "2:WH-11",
        "2:WH-12", "2:WH-13", "2:WH-14", "2:WH-15", "2:WH-16", "2:WH-19", "2:EG-12",
    ],
    not_with_envoy: None,
    options: OPTIONS,
    run: wildcard_hosts,
}];

/// The gateway with the proxy beside it.
const NAME: &str = "istio-egressgateway-with-sni-proxy";
const WITH_PROXY: &str = "deploy/istio-egressgateway-with-sni-proxy";
const LABEL: &str = "istio=egressgateway-with-sni-proxy";

/// The titles of two of Wikipedia's languages.
fn titles(lab: &Lab) -> Result<()> {
    let line = "curl -s https://en.wikipedia.org/wiki/Main_Page | grep -o '<title>.*</title>'; \
                curl -s https://de.wikipedia.org/wiki/Wikipedia:Hauptseite | grep -o '<title>.*</title>'";
    eventually(SOON, || {
        let out = lab.sh(line)?;
        let want =
            "<title>Wikipedia, the free encyclopedia</title>\n<title>Wikipedia – Die freie Enzyklopädie</title>\n";
        ensure!(out == want, "{out}");
        Ok(())
    })
}

fn wildcard_hosts(run: &mut Run) -> Result<()> {
    prepare(&run.lab)?;
    registry_only(&run.lab)?;
    run.check(&["2:WH-1"], "REGISTRY_ONLY: Wikipedia is blocked", |lab| blocked(lab, "https://en.wikipedia.org/"));
    run.check(&["2:WH-2"], "a wildcard ServiceEntry opens all of it", |lab| {
        lab.apply_yaml("egress/wikipedia.yaml", "default")?;
        titles(lab)?;
        lab.delete_yaml("egress/wikipedia.yaml", "default")?;
        blocked(lab, "https://en.wikipedia.org/")
    });
    run.check(&["2:WH-3"], "a wildcard that is to be looked up is refused", |lab| {
        let refused = lab.apply_yaml("egress/wikipedia-dns.yaml", "default");
        ensure!(refused.is_err(), "accepted: {refused:?}");
        Ok(())
    });
    egress(&run.lab)?;
    run.check(&["2:WH-4", "2:WH-5", "2:EG-12"], "by way of the egress gateway to one host", |lab| {
        lab.apply_yaml("egress/gateway-wikipedia.yaml", "default")?;
        titles(lab)?;
        eventually(SOON, || {
            let clusters = lab.admin("istio-system", EGRESS, "GET", "clusters")?;
            let line = clusters
                .lines()
                .find(|line| line.starts_with("outbound|443||www.wikipedia.org") && line.contains(":443::cx_total::"));
            let count: u32 = line.and_then(|line| line.rsplit("::").next()?.parse().ok()).unwrap_or_default();
            ensure!(count >= 2, "cx_total of www.wikipedia.org: {line:?}");
            Ok(())
        })
    });
    let closed = |lab: &Lab, file: &str| -> Result<()> {
        lab.delete_yaml(file, "default")?;
        blocked(lab, "https://en.wikipedia.org/")
    };
    closed(&run.lab, "egress/gateway-wikipedia.yaml")?;
    run.check(&["2:WH-6"], "by way of the egress gateway to any host, by its server name", |lab| {
        lab.apply_yaml("egress/dynamic-wikipedia.yaml", "default")?;
        eventually(SOON, || {
            titles(lab)?;
            let log = lab.logs("istio-system", EGRESS, "istio-proxy")?;
            for name in ["en.wikipedia.org", "de.wikipedia.org"] {
                let said = |line: &str| line.contains("outbound|443||*.wikipedia.org") && line.contains(name);
                ensure!(log.lines().any(said), "no line for {name}: {log}");
            }
            Ok(())
        })
    });
    closed(&run.lab, "egress/dynamic-wikipedia.yaml")?;
    sni_proxy(run)
}

fn sni_proxy(run: &mut Run) -> Result<()> {
    run.check(&["2:WH-7", "2:WH-8", "2:WH-9"], "a second gateway, generated, with a proxy beside it", |lab| {
        let nginx = std::fs::read_to_string(crate::yaml("egress/sni-proxy.conf"))?;
        lab.apply(&config_map("istio-system", "egress-sni-proxy-configmap", &json!({"nginx.conf": nginx})))?;
        let objects = lab.weft(&["manifest", "generate", "-f", &crate::yaml("egress/sni-gateway-operator.yaml")])?;
        ensure!(!objects.contains("istiod"), "the control plane is touched: {objects}");
        lab.apply(&objects)?;
        lab.wait_deployments("istio-system", &[NAME, "istiod", "istio-egressgateway"])?;
        let pod = lab.wait_ready(LABEL, "istio-system", 1)?.concat();
        ensure!(pod.starts_with(NAME), "{pod}");
        let row = lab.weft(&["get", "pods", "-n", "istio-system", "-l", LABEL])?;
        ensure!(row.contains("2/2") && row.contains("Running"), "{row}");
        Ok(())
    });
    run.check(
        &["2:WH-10", "2:WH-11", "2:WH-12", "2:WH-13", "2:WH-15", "2:WH-19"],
        "by way of that gateway and its proxy; the mesh's TLS asks for the application's server name",
        |lab| {
            lab.apply_yaml("egress/sni-proxy.yaml", "default")?;
            lab.apply_yaml("egress/gateway-any-wikipedia.yaml", "default")?;
            // The entry opens the way, the rule leads it through the gateway: asked anew until both are known.
            eventually(SOON, || {
                titles(lab)?;
                let log = lab.logs("istio-system", WITH_PROXY, "istio-proxy")?;
                for name in ["en.wikipedia.org", "de.wikipedia.org"] {
                    let upstream = "\"127.0.0.1:18443\" outbound|18443||sni-proxy.local";
                    let said = |line: &str| line.contains("\"- - -\" 0 -") && line.contains(upstream);
                    // The server name is the last of what is logged, but for the route's name.
                    let last = |line: &str| line.trim_end_matches(" -").ends_with(name);
                    ensure!(log.lines().any(|line| said(line) && last(line)), "no line for {name}: {log}");
                }
                Ok(())
            })
        },
    );
    run.check(&["2:WH-16"], "the proxy's own log", |lab| {
        eventually(SOON, || {
            let log = lab.logs("istio-system", WITH_PROXY, "sni-proxy")?;
            let named = |name: &str| {
                log.lines().any(|line| line.starts_with("127.0.0.1 [") && line.contains(&format!("] TCP [{name}]200 ")))
            };
            ensure!(named("en.wikipedia.org") && named("de.wikipedia.org"), "{log}");
            Ok(())
        })
    });
    verified(run);
    Ok(())
}

/// The filter that compares the two server names. A client without a sidecar's help cannot reach the gateway; so the name
/// outside is made another one: the sidecars' filter goes, and the rule says a name of the gateway's hosts.
fn verified(run: &mut Run) {
    let weft = run.engine == Engine::Weft;
    run.check(&["2:WH-14"], "the gateway closes what has another server name inside", |lab| {
        let url = "https://en.wikipedia.org/wiki/Main_Page";
        lab.weft(&["delete", "envoyfilter", "forward-downstream-sni", "-n", "default"])?;
        lab.apply(OTHER_NAME)?;
        // The name outside is another one now, and passes.
        eventually(SOON, || {
            let out = lab.curl(&["-sS", url])?;
            ensure!(out.contains("Wikipedia, the free encyclopedia"), "{out}");
            let log = lab.logs("istio-system", WITH_PROXY, "istio-proxy")?;
            ensure!(log.contains("other.wikipedia.org"), "the gateway hears the same name");
            Ok(())
        })?;
        lab.apply_yaml_as_is("egress/sni-verifier.yaml")?;
        ensure!(weft, "Envoy has no filter that compares them");
        blocked(lab, url)?;
        logged(lab, "istio-system", WITH_PROXY, &["sni_verifier_snis_do_not_match", "other.wikipedia.org"])?;
        // With the filter of the sidecars both are the same again.
        lab.apply_yaml("egress/gateway-any-wikipedia.yaml", "default")?;
        titles(lab)
    });
}

const OTHER_NAME: &str = "apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: egressgateway-for-wikipedia, namespace: default}
spec:
  host: istio-egressgateway-with-sni-proxy.istio-system.svc.cluster.local
  subsets:
  - name: wikipedia
    trafficPolicy:
      portLevelSettings: [{port: {number: 443}, tls: {mode: ISTIO_MUTUAL, sni: other.wikipedia.org}}]
";
