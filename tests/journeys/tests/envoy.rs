//! Real Envoy takes what the control plane generates: for every Bookinfo workload and the gateway, without a NACK, and it
//! serves the product page as gateway and as sidecar.

use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;
use std::time::Duration;
use weft_journeys::browser::{Stars, stars};
use weft_journeys::{Lab, eventually};

const SOON: Duration = Duration::from_secs(60);

/// Deployments that are switched to Envoy, one after the other, and how their pods are found.
const DEPLOYMENTS: &[(&str, &str, &str)] = &[
    ("istio-system", "istio-ingressgateway", "app=istio-ingressgateway"),
    ("default", "productpage-v1", "app=productpage"),
    ("default", "details-v1", "app=details"),
    ("default", "ratings-v1", "app=ratings"),
    ("default", "reviews-v1", "app=reviews,version=v1"),
    ("default", "reviews-v2", "app=reviews,version=v2"),
    ("default", "reviews-v3", "app=reviews,version=v3"),
];

fn envoy() -> Result<PathBuf> {
    let path = std::env::var_os("ENVOY").map_or_else(|| PathBuf::from("/opt/weft-peers/bin/envoy"), PathBuf::from);
    ensure!(path.exists(), "Envoy is not at {}; cargo xtask peers installs it, ENVOY names it", path.display());
    Ok(path)
}

/// Every type that the proxy of `pod` subscribes to is acknowledged, none refused.
fn acknowledged(lab: &Lab, pod: &str) -> Result<()> {
    let status = lab.weft(&["proxy-status"])?;
    let line =
        status.lines().find(|line| line.starts_with(pod)).with_context(|| format!("{pod} is not in:\n{status}"))?;
    println!("{line}");
    ensure!(line.contains("SYNCED"), "{line}");
    for bad in ["ERROR", "NACK", "STALE"] {
        ensure!(!line.contains(bad), "{line}");
    }
    Ok(())
}

#[test]
fn envoy_serves_bookinfo() -> Result<()> {
    let envoy = envoy()?;
    let lab = Lab::start(&["--envoy", envoy.to_str().context("path")?])?;
    lab.apply_sample("bookinfo/networking/destination-rule-all.yaml")?;
    let patch = "{\"spec\":{\"template\":{\"metadata\":{\"annotations\":{\"weft.dev/proxy-engine\":\"envoy\"}}}}}";
    for (namespace, deployment, selector) in DEPLOYMENTS {
        let old = lab.ready_pods(selector, namespace)?;
        lab.weft(&["patch", "deployment", deployment, "-n", namespace, "-p", patch])?;
        let pod = eventually(SOON, || {
            let now = lab.ready_pods(selector, namespace)?;
            ensure!(now.len() == 1 && now != old, "{old:?} -> {now:?}");
            Ok(now[0].clone())
        })?;
        let info = lab.weft(&[
            "exec",
            &pod,
            "-n",
            namespace,
            "-c",
            "istio-proxy",
            "--",
            "curl",
            "-s",
            "127.0.0.1:15000/server_info",
        ])?;
        ensure!(info.contains("1.40.0") && info.contains("\"state\": \"LIVE\""), "not Envoy: {info}");
        eventually(SOON, || acknowledged(&lab, &pod))?;
        eventually(SOON, || stars(&lab.url(""), None).map(drop))
            .with_context(|| format!("after {deployment} runs on Envoy"))?;
    }
    // All three versions answer, through Envoy alone.
    eventually(SOON, || {
        let mut seen: Vec<Stars> = (0..30).map(|_| stars(&lab.url(""), None)).collect::<Result<_>>()?;
        seen.sort_unstable();
        seen.dedup();
        ensure!(seen.len() == 3, "saw only {seen:?}");
        Ok(())
    })?;
    // And a route change reaches Envoy.
    lab.apply_sample("bookinfo/networking/virtual-service-reviews-v3.yaml")?;
    eventually(SOON, || {
        for _ in 0..10 {
            let seen = stars(&lab.url(""), None)?;
            ensure!(seen == Stars::Red, "saw {seen:?}");
        }
        Ok(())
    })
}
