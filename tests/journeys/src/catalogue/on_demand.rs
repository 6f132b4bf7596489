//! A proxy that takes only the configuration that it uses, in Bookinfo.

use super::security::{SOON, policy};
use crate::browser::{Stars, get, stars};
use crate::journey::{Journey, Run};
use crate::lab::text;
use crate::{Lab, eventually, steadily};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The journeys.
pub const JOURNEYS: &[Journey] = &[Journey {
    id: "6:J-ONDEMAND",
    title: "a proxy takes only the configuration that it uses",
    proves: &[
        "6:OD-01", "6:OD-02", "6:OD-03", "6:OD-04", "6:OD-05", "6:OD-06", "6:OD-07", "6:OD-08", "6:OD-09", "6:OD-10",
    ],
    not_with_envoy: Some("Envoy takes all configuration: weft.dev/on-demand is weft-proxy's"),
    options: &[],
    run: on_demand,
}];

const SLEEP: &str = "deploy/sleep";
const PAGE: &str = "deploy/productpage-v1";

/// Lets a Deployment's proxies take only what they use.
fn on_demand_from_now(lab: &Lab, name: &str) -> Result<()> {
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"weft.dev/on-demand": "true"}}}}});
    lab.weft(&["patch", "deployment", name, "-p", &patch.to_string()])?;
    lab.wait_deployments("default", &[name])
}

/// Services that the proxy has clusters for.
fn held(lab: &Lab, pod: &str) -> Result<BTreeSet<String>> {
    let clusters: Value = serde_json::from_str(&lab.admin("default", pod, "GET", "clusters?format=json")?)?;
    let all = clusters["cluster_statuses"].as_array().context("no clusters")?;
    let names = all.iter().filter_map(|cluster| cluster["name"].as_str());
    let outbound = names.filter_map(|name| name.strip_prefix("outbound|")?.split('|').nth(2));
    Ok(outbound.map(|host| host.split('.').next().unwrap_or(host).to_string()).collect())
}

fn holds(lab: &Lab, pod: &str, want: &[&str]) -> Result<()> {
    let (held, want) = (held(lab, pod)?, want.iter().map(ToString::to_string).collect::<BTreeSet<_>>());
    ensure!(held == want, "{pod} has clusters of {held:?}, want {want:?}");
    Ok(())
}

/// What the proxy asked for.
fn asked(lab: &Lab, pod: &str) -> Result<Vec<String>> {
    let page: Value = serde_json::from_str(&lab.admin("default", pod, "GET", "on_demand")?)?;
    ensure!(page["enabled"] == true, "{page}");
    let all = page["asked"].as_array().context("no list")?;
    Ok(all.iter().filter_map(|asked| asked["name"].as_str().map(str::to_string)).collect())
}

/// One request from the sleep pod: status and body.
fn call(lab: &Lab, args: &[&str]) -> Result<(String, String)> {
    let argv = [&["curl", "-s", "-m", "30", "-w", " %{http_code}"], args].concat();
    let printed = text(&lab.exec("default", SLEEP, "sleep", &argv)?.stdout);
    let (body, code) = printed.rsplit_once(' ').context("curl printed nothing")?;
    Ok((code.to_string(), body.to_string()))
}

fn becomes(lab: &Lab, args: &[&str], want: &str) -> Result<()> {
    steadily(SOON, || {
        let (code, body) = call(lab, args)?;
        ensure!(code == want, "{args:?}: {code}, want {want}: {body}");
        Ok(())
    })
}

/// Waits until twenty pages in a row show `want`.
fn settles_on(lab: &Lab, want: Stars) -> Result<()> {
    eventually(SOON, || {
        for _ in 0..20 {
            let seen = stars(&lab.url(""), None)?;
            ensure!(seen == want, "saw {seen:?}, want {want:?}");
        }
        Ok(())
    })
}

fn service_ip(lab: &Lab, name: &str) -> Result<String> {
    let service: Value = serde_json::from_str(&lab.weft(&["get", "service", name, "-o", "json"])?)?;
    Ok(service["spec"]["clusterIP"].as_str().context("no cluster IP")?.to_string())
}

fn on_demand(run: &mut Run) -> Result<()> {
    run.lab.apply_sample("sleep/sleep.yaml")?;
    run.lab.apply_sample("tcp-echo/tcp-echo.yaml")?;
    run.lab.wait_deployments("default", &["sleep", "tcp-echo"])?;
    on_demand_from_now(&run.lab, "sleep")?;
    run.check(&["6:OD-01"], "a proxy begins with nothing of the outbound side", |lab| {
        holds(lab, SLEEP, &[])?;
        ensure!(asked(lab, SLEEP)?.is_empty());
        let all = held(lab, "deploy/ratings-v1")?;
        ensure!(all.contains("reviews") && all.len() > 4, "others take everything: {all:?}");
        Ok(())
    });
    run.check(&["6:OD-02"], "the first request is answered, and brings that service alone", |lab| {
        let (code, body) = call(lab, &["http://details:9080/details/0"])?;
        ensure!(code == "200" && body.contains("\"id\":0"), "{code} {body}");
        holds(lab, SLEEP, &["details"])?;
        let asked = asked(lab, SLEEP)?;
        ensure!(
            asked == ["http/9080/details".to_string(), format!("tcp/{}:9080", service_ip(lab, "details")?)],
            "{asked:?}"
        );
        Ok(())
    });
    run.check(&["6:OD-03"], "TCP by address, on a port of its own", |lab| {
        let ip = service_ip(lab, "tcp-echo")?;
        let said = text(
            // The end of what is said ends the connection; until the answer there is time for the question.
            &lab.exec("default", SLEEP, "sleep", &["sh", "-c", &format!("echo demand | nc -N -w 30 {ip} 9000")])?
                .stdout,
        );
        ensure!(said.trim() == "hello demand", "{said:?}");
        holds(lab, SLEEP, &["details", "tcp-echo"])
    });
    unknown_hosts(run);
    bookinfo(run)?;
    control_plane_away(run)
}

/// A host that is in no registry: passed on, refused, and served when it appears.
fn unknown_hosts(run: &mut Run) {
    // Not known, so it goes where the connection goes: to details, which has no such path.
    let unknown = ["-H", "Host: later.example.com", "http://details:9080/ratings/0"];
    run.check(&["6:OD-04"], "an unknown host passes, and its service is used once there is one", |lab| {
        let (code, _) = call(lab, &unknown)?;
        ensure!(code == "404", "{code} of details");
        let entry = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "later", "namespace": "default"},
            "spec": {
                "hosts": ["later.example.com"], "resolution": "STATIC", "location": "MESH_INTERNAL",
                "ports": [{"number": 9080, "name": "http", "protocol": "HTTP"}],
                "workloadSelector": {"labels": {"app": "ratings"}},
            },
        });
        lab.apply(&entry.to_string())?;
        becomes(lab, &unknown, "200")?;
        lab.weft(&["delete", "serviceentry", "later"])?;
        becomes(lab, &unknown, "404")
    });
    run.check(&["6:OD-05"], "REGISTRY_ONLY refuses what is in no registry, and serves what is", |lab| {
        lab.change_mesh(&json!({"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}))?;
        becomes(lab, &unknown, "502")?;
        // Asked for the first time under this rule.
        let (code, body) = call(lab, &["http://ratings:9080/ratings/0"])?;
        ensure!(code == "200", "{code} {body}");
        becomes(lab, &["-H", "Host: other.example.com", "http://details:9080/details/0"], "502")?;
        lab.change_mesh(&json!({"outboundTrafficPolicy": {"mode": "ALLOW_ANY"}}))?;
        becomes(lab, &unknown, "404")
    });
}

/// The product page on demand: its rules and its own policies hold as ever.
fn bookinfo(run: &mut Run) -> Result<()> {
    on_demand_from_now(&run.lab, "productpage-v1")?;
    run.check(&["6:OD-06"], "Bookinfo's page holds what it calls and nothing else", |lab| {
        eventually(SOON, || {
            let page = get(&lab.url("/productpage"), &[])?;
            ensure!(page.status == 200 && page.body.contains("Book Details"), "{}", page.status);
            holds(lab, PAGE, &["details", "reviews"])
        })
    });
    run.check(&["6:OD-07"], "a changed virtual service of a held service is live", |lab| {
        lab.apply_sample("bookinfo/networking/destination-rule-all.yaml")?;
        lab.apply_sample("bookinfo/networking/virtual-service-all-v1.yaml")?;
        settles_on(lab, Stars::None)?;
        lab.apply_sample("bookinfo/networking/virtual-service-reviews-v3.yaml")?;
        settles_on(lab, Stars::Red)?;
        eventually(SOON, || holds(lab, PAGE, &["details", "reviews"]))
    });
    run.check(&["6:OD-08"], "a policy for the workload applies", |lab| {
        let deny = json!({"selector": {"matchLabels": {"app": "productpage"}}, "action": "DENY", "rules": [{}]});
        lab.apply(&policy("default", "no-page", deny))?;
        let becomes = |want: u16| {
            steadily(SOON, || {
                let page = get(&lab.url("/productpage"), &[])?;
                ensure!(page.status == want, "{}, want {want}", page.status);
                Ok(())
            })
        };
        becomes(403)?;
        lab.weft(&["delete", "authorizationpolicy", "no-page"])?;
        becomes(200)
    });
    run.check(&["6:OD-09"], "status says what is held", |lab| {
        let table = lab.weft(&["proxy-config", "on-demand", PAGE])?;
        ensure!(table.contains("http/9080/reviews"), "{table}");
        eventually(SOON, || {
            let status = lab.weft(&["proxy-status"])?;
            let line = status.lines().find(|line| line.starts_with("productpage")).context("no line")?;
            let asked: u32 =
                line.split_whitespace().last().unwrap_or_default().parse().context("no number of questions")?;
            ensure!(asked >= 2 && status.lines().next().is_some_and(|head| head.contains("ASKED")), "{status}");
            let metrics = lab.admin("default", PAGE, "GET", "stats/prometheus")?;
            ensure!(metrics.contains("weft_on_demand_held"), "no metric of what is held");
            Ok(())
        })
    });
    Ok(())
}

/// What is held is served without the control plane, which learns of it again when it is back.
fn control_plane_away(run: &mut Run) -> Result<()> {
    run.check(
        &["6:OD-10"],
        "without the control plane what is held is served; with it, what is new is heard of",
        |lab| {
            lab.weft(&["patch", "deployment", "istiod", "-n", "istio-system", "-p", r#"{"spec":{"replicas":0}}"#])?;
            eventually(SOON, || {
                let left = lab.objects("pods", &["-n", "istio-system", "-l", "app=istiod"])?.len();
                ensure!(left == 0, "{left} pods of the control plane are left");
                Ok(())
            })?;
            for _ in 0..5 {
                let page = get(&lab.url("/productpage"), &[])?;
                ensure!(page.status == 200, "without the control plane: {}", page.status);
            }
            // Nothing is known of it: refused, not passed on.
            let (code, _) = call(lab, &["-H", "Host: never.example.com", "http://details:9080/details/0"])?;
            ensure!(code == "503", "a host that was never asked for: {code}");
            lab.weft(&["patch", "deployment", "istiod", "-n", "istio-system", "-p", r#"{"spec":{"replicas":1}}"#])?;
            lab.wait_deployments("istio-system", &["istiod"])?;
            lab.apply_sample("bookinfo/networking/virtual-service-all-v1.yaml")?;
            settles_on(lab, Stars::None)?;
            eventually(SOON, || holds(lab, PAGE, &["details", "reviews"]))?;
            becomes(lab, &["-H", "Host: never.example.com", "http://details:9080/details/0"], "200")
        },
    );
    Ok(())
}
