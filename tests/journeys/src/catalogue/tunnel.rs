//! Out of the mesh through HTTP proxies, by `trafficPolicy.tunnel` of a DestinationRule: the application knows nothing of it.

use super::egress::{EGRESS, SOON, blocked, egress, prepare, registry_only, without_istio};
use crate::journey::{Journey, Run, WITH_ENVOY};
use crate::{Lab, eventually, lab};
use anyhow::{Context as _, Result, ensure};

/// The journeys.
pub const JOURNEYS: &[Journey] = &[Journey {
    id: "6:J-TUNNEL",
    title: "through HTTP proxies that the application does not know",
    proves: &["6:TN-01", "6:TN-02", "6:TN-03", "6:TN-04"],
    not_with_envoy: None,
    options: &["--no-bookinfo", "--outside", WITH_ENVOY],
    run: tunnels,
}];

const EN: &str = "https://en.wikipedia.org/wiki/Main_Page";
const EN_TITLE: &str = "<title>Wikipedia, the free encyclopedia</title>";
const DE: &str = "https://de.wikipedia.org/wiki/Wikipedia:Hauptseite";
const DE_TITLE: &str = "<title>Wikipedia – Die freie Enzyklopädie</title>";
const BY_CONNECT: &str = "outbound|3128|tunnel-en-443|squid.external.svc.cluster.local";
const BY_POST: &str = "outbound|3128||post-proxy.external.svc.cluster.local";
const REFUSED: &str = "outbound|3128|tunnel-en-80|squid.external.svc.cluster.local";

/// A page's title is there, asked for anew until what is live shows also that it came the way that is meant.
fn comes(lab: &Lab, (url, title): (&str, &str), way: impl Fn() -> Result<()>) -> Result<()> {
    eventually(SOON, || {
        let page = lab.curl(&["-sS", url])?;
        ensure!(page.contains(title), "{url}: {page}");
        way()
    })
}

/// A proxy's log has a line of a connection with all of these.
fn said(lab: &Lab, namespace: &str, pod: &str, parts: &[&str]) -> Result<()> {
    let log = lab.logs(namespace, pod, "istio-proxy")?;
    let found = log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    let tail: Vec<&str> = log.lines().rev().take(4).collect();
    ensure!(found, "no line with {parts:?} in the log; last: {tail:#?}");
    Ok(())
}

/// Squid has written of a tunnel of the pod with that label; it does so when one ends.
fn through_squid(lab: &Lab, namespace: &str, label: &str) -> Result<()> {
    let pods = lab.objects("pods", &["-n", namespace, "-l", label])?;
    let address = pods.first().and_then(|pod| pod["status"]["podIP"].as_str()).context("no such pod")?;
    let out = lab.exec("external", "deploy/squid", "squid", &["cat", "/var/log/squid/access.log"])?;
    let log = lab::text(&out.stdout);
    let tunnel = format!(" {address} TCP_TUNNEL/200 ");
    let found = log.lines().any(|line| line.contains(&tunnel) && line.contains(" CONNECT en.wikipedia.org:443 "));
    ensure!(found, "squid has no line of {address}: {log}");
    Ok(())
}

/// What the other proxy says of tunnels.
fn through_the_other(lab: &Lab) -> Result<()> {
    let log = lab.logs("external", "deploy/post-proxy", "proxy")?;
    let tunnel = |line: &str| line.starts_with("POST de.wikipedia.org:443 ") && line.ends_with(" 200");
    ensure!(log.lines().any(tunnel), "no line of a tunnel: {log}");
    Ok(())
}

fn tunnels(run: &mut Run) -> Result<()> {
    prepare(&run.lab)?;
    without_istio(&run.lab, "external")?;
    run.lab.apply_yaml("egress/squid.yaml", "external")?;
    run.lab.apply_yaml_as_is("tunnel/proxies.yaml")?;
    let proxies = run.lab.wait_deployments("external", &["squid", "post-proxy"]);
    proxies.with_context(|| run.lab.logs("external", "deploy/post-proxy", "proxy").unwrap_or_default())?;
    registry_only(&run.lab)?;
    blocked(&run.lab, EN)?;
    run.lab.apply_yaml_as_is("tunnel/sidecar.yaml")?;
    run.check(&["6:TN-01"], "by CONNECT, which a subset of the proxy asks for", |lab| {
        comes(lab, (EN, EN_TITLE), || {
            said(lab, "default", "deploy/sleep", &[BY_CONNECT, "en.wikipedia.org"])?;
            through_squid(lab, "default", "app=sleep")
        })
    });
    run.check(&["6:TN-02"], "by POST, which a whole host asks for", |lab| {
        comes(lab, (DE, DE_TITLE), || {
            said(lab, "default", "deploy/sleep", &[BY_POST, "de.wikipedia.org"])?;
            through_the_other(lab)
        })
    });
    run.check(&["6:TN-03"], "a proxy that refuses: the connection ends, and others stay", |lab| {
        let ways = std::fs::read_to_string(crate::yaml("tunnel/sidecar.yaml"))?;
        lab.apply(&ways.replace("subset: tunnel-en-443", "subset: tunnel-en-80"))?;
        eventually(SOON, || {
            blocked(lab, EN)?;
            said(lab, "default", "deploy/sleep", &[REFUSED, " UF"])
        })?;
        comes(lab, (DE, DE_TITLE), || Ok(()))
    });
    egress(&run.lab)?;
    run.check(&["6:TN-04"], "by way of the egress gateway, which asks the proxy", |lab| {
        lab.apply_yaml_as_is("tunnel/gateway.yaml")?;
        comes(lab, (EN, EN_TITLE), || {
            said(lab, "istio-system", EGRESS, &[BY_CONNECT, "en.wikipedia.org"])?;
            through_squid(lab, "istio-system", "istio=egressgateway")
        })
    });
    Ok(())
}
