//! Zero failed requests at 500/s through the gateway while everything changes around them.

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use std::time::Duration;
use weft_journeys::browser::{Stars, get, stars};
use weft_journeys::load::{Load, rate};
use weft_journeys::processes::descendants;
use weft_journeys::{Lab, eventually, sample};

const SOON: Duration = Duration::from_secs(60);

/// A load, an event, and not one failure.
fn under_load(lab: &Lab, what: &str, event: impl FnOnce() -> Result<()>) -> Result<()> {
    let load = Load::start(&lab.url("/productpage"), rate());
    std::thread::sleep(Duration::from_secs(1));
    let outcome = event();
    std::thread::sleep(Duration::from_secs(1));
    let report = load.stop()?;
    println!("{what}: {report}");
    outcome?;
    ensure!(report.failures.is_empty(), "{what}: {report}");
    ensure!(report.sent > 0 && report.ok == report.sent, "{what}: {report}");
    Ok(())
}

fn sees(lab: &Lab, want: Stars) -> Result<()> {
    eventually(SOON, || {
        let seen = stars(&lab.url(""), None)?;
        ensure!(seen == want, "saw {seen:?}");
        Ok(())
    })
}

#[test]
fn routes_rollouts_and_restarts() -> Result<()> {
    let lab = Lab::start(&[])?;
    lab.apply_sample("bookinfo/networking/destination-rule-all.yaml")?;
    lab.apply_sample("bookinfo/networking/virtual-service-all-v1.yaml")?;
    sees(&lab, Stars::None)?;

    under_load(&lab, "twenty flips of a VirtualService", || {
        for flip in 0..20 {
            let (file, want) = if flip % 2 == 0 {
                ("virtual-service-reviews-v3", Stars::Red)
            } else {
                ("virtual-service-all-v1", Stars::None)
            };
            lab.weft(&["apply", "-f", &sample(&format!("bookinfo/networking/{file}.yaml"))])?;
            sees(&lab, want)?;
        }
        Ok(())
    })?;

    under_load(&lab, "rollout of a Deployment", || {
        let before = lab.ready_pods("app=productpage", "default")?;
        let patch = "{\"spec\":{\"template\":{\"metadata\":{\"annotations\":{\"rolled\":\"once\"}}}}}";
        lab.weft(&["patch", "deployment", "productpage-v1", "-p", patch])?;
        lab.weft(&["patch", "deployment", "details-v1", "-p", patch])?;
        eventually(SOON, || {
            let now = lab.ready_pods("app=productpage", "default")?;
            ensure!(now.len() == 1 && now != before, "{before:?} -> {now:?}");
            let all = lab.objects("pods", &["-n", "default", "-l", "app=productpage"])?.len();
            ensure!(all == 1, "{all} pods of productpage");
            Ok(())
        })
    })?;

    under_load(&lab, "control plane killed and restarted", || {
        let old = descendants(lab.pid(), "weftd")?;
        ensure!(old.len() == 1, "{old:?}");
        kill(old[0], Signal::SIGKILL)?;
        eventually(SOON, || {
            let new = descendants(lab.pid(), "weftd")?;
            ensure!(new.len() == 1 && new != old, "{new:?}");
            Ok(())
        })?;
        // It serves again when a change arrives.
        lab.apply_sample("bookinfo/networking/virtual-service-reviews-v3.yaml")?;
        sees(&lab, Stars::Red)
    })
}

/// Requests that the product page's proxy has counted, with mutual TLS or without.
fn counted(lab: &Lab, security: &str) -> Result<f64> {
    let pod = lab.wait_ready("app=productpage", "default", 1)?.remove(0);
    let text = lab.admin("default", &pod, "GET", "/stats/prometheus")?;
    let label = format!("connection_security_policy=\"{security}\"");
    let of_requests = text.lines().filter(|line| line.starts_with("istio_requests_total{") && line.contains(&label));
    Ok(of_requests.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// The mode of the namespace changes under requests, and under connections that carry bytes.
#[test]
fn modes_of_mutual_tls() -> Result<()> {
    let lab = Lab::start(&[])?;
    lab.apply_sample("sleep/sleep.yaml")?;
    lab.apply_sample("tcp-echo/tcp-echo.yaml")?;
    lab.wait_deployments("default", &["sleep", "tcp-echo"])?;
    let echo = "echo world | nc -w 5 tcp-echo 9000 | grep -q 'hello world' && echo good || echo bad";
    eventually(SOON, || {
        let first = lab.sh(echo)?;
        ensure!(first.trim() == "good", "{first}");
        Ok(())
    })?;

    under_load(&lab, "modes of mutual TLS", || {
        // From no TLS to TLS alone and back, always by way of both, as the documents say.
        for (mode, seen) in [
            ("PERMISSIVE", "mutual_tls"),
            ("STRICT", "mutual_tls"),
            ("PERMISSIVE", "mutual_tls"),
            ("DISABLE", "none"),
            ("PERMISSIVE", "mutual_tls"),
            ("STRICT", "mutual_tls"),
        ] {
            lab.apply(&format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: default}}\n\
                 spec: {{mtls: {{mode: {mode}}}}}\n"
            ))?;
            let before = counted(&lab, seen)?;
            let bytes = lab.sh(&format!("for i in 1 2 3 4 5 6 7 8 9 10; do {echo}; done"))?;
            ensure!(bytes.matches("good").count() == 10, "{mode}: {bytes}");
            eventually(SOON, || {
                let now = counted(&lab, seen)?;
                ensure!(now > before, "{mode}: {now} requests with {seen}, as before");
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn certificates_rotate() -> Result<()> {
    let lab = Lab::start(&[])?;
    // Every workload and the gateway start again with certificates that live for twenty seconds.
    let patch = serde_json::json!({"spec": {"template": {"metadata": {"annotations": {
        "proxy.istio.io/config": "proxyMetadata: {SECRET_TTL: 20s}",
    }}}}});
    for deployment in weft_journeys::lab::BOOKINFO {
        lab.weft(&["patch", "deployment", deployment, "-p", &patch.to_string()])?;
    }
    lab.weft(&["patch", "deployment", "istio-ingressgateway", "-n", "istio-system", "-p", &patch.to_string()])?;
    for (selector, namespace, count) in [("app", "default", 6), ("app=istio-ingressgateway", "istio-system", 1)] {
        // A pod that is told to stop before it listens for that takes its whole grace period of 30 s.
        eventually(3 * SOON, || {
            let all = lab.objects("pods", &["-n", namespace, "-l", selector])?;
            let new =
                all.iter().filter(|pod| pod["metadata"]["annotations"]["proxy.istio.io/config"].is_string()).count();
            let ready = lab.ready_pods(selector, namespace)?.len();
            ensure!(all.len() == count && new == count && ready == count, "{ready} of {count} ready, {new} new");
            Ok(())
        })?;
    }
    let serial = |lab: &Lab| -> Result<String> {
        let pod = lab.wait_ready("app=details", "default", 1)?.remove(0);
        let out = lab.weft(&["proxy-config", "secret", &pod, "-o", "json"])?;
        let all: serde_json::Value = serde_json::from_str(&out)?;
        Ok(all.to_string())
    };
    let first = serial(&lab)?;
    under_load(&lab, "certificates rotating every few seconds", || {
        for _ in 0..3 {
            let before = serial(&lab)?;
            eventually(SOON, || {
                ensure!(serial(&lab)? != before, "the certificate did not change");
                Ok(())
            })?;
        }
        Ok(())
    })?;
    ensure!(serial(&lab)? != first);
    Ok(())
}

#[test]
fn control_plane_down() -> Result<()> {
    let lab = Lab::start(&[])?;
    lab.weft(&["patch", "deployment", "istiod", "-n", "istio-system", "-p", "{\"spec\":{\"replicas\":0}}"])?;
    eventually(SOON, || {
        ensure!(descendants(lab.pid(), "weftd")?.is_empty(), "weftd still runs");
        Ok(())
    })?;
    under_load(&lab, "control plane away", || Ok(()))?;

    // New pods wait, and it is said why: nobody gives them their proxy (`failurePolicy: Fail`, as on a cluster).
    lab.apply_sample("sleep/sleep.yaml")?;
    eventually(SOON, || {
        let events = lab.objects("events", &["-n", "default"])?;
        let said = events.iter().find(|event| event["reason"] == "FailedCreate" && event.to_string().contains("sleep"));
        let said = said.map(|event| event["message"].to_string()).unwrap_or_default();
        ensure!(said.contains("istiod"), "{events:?}");
        Ok(())
    })?;
    ensure!(lab.objects("pods", &["-n", "default", "-l", "app=sleep"])?.is_empty(), "a pod came without its proxy");

    lab.weft(&["patch", "deployment", "istiod", "-n", "istio-system", "-p", "{\"spec\":{\"replicas\":1}}"])?;
    lab.wait_ready("app=sleep", "default", 1)?;
    ensure!(get(&lab.url("/productpage"), &[])?.status == 200);
    Ok(())
}
