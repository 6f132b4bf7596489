//! Certificates change under load: a new root, short lives, and a control plane that is away for longer than they last.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use weft_journeys::browser::get;
use weft_journeys::load::{Load, rate};
use weft_journeys::{Lab, eventually};

const SOON: Duration = Duration::from_secs(60);

/// Lifetime of workload certificates in the second test.
const LIFE: u64 = 30;

/// How long the load goes on while certificates are renewed: five minutes with `WEFT_LONG=1`, else a life and a half, in which
/// each certificate is renewed twice at least.
fn renewal_time() -> Duration {
    match std::env::var_os("WEFT_LONG") {
        Some(_) => Duration::from_secs(300),
        None => Duration::from_secs(LIFE * 3 / 2),
    }
}

/// Names of the pods, and how often their containers have been started again.
fn containers(lab: &Lab) -> Result<Vec<(String, u64)>> {
    let all = lab.objects("pods", &["-n", "default"])?;
    let of_pod = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_string();
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        (name, all.iter().filter_map(|container| container["restartCount"].as_u64()).sum())
    };
    let mut pods: Vec<_> = all.iter().map(of_pod).collect();
    pods.sort();
    Ok(pods)
}

fn status(lab: &Lab) -> Result<Value> {
    Ok(serde_json::from_str(&lab.weft(&["ca", "status", "-o", "json"])?)?)
}

#[test]
fn a_new_root_under_load() -> Result<()> {
    let lab = Lab::start(&[])?;
    let before = status(&lab)?;
    ensure!(before["phase"] == "steady" && before["roots"].as_array().is_some_and(|r| r.len() == 1), "{before}");
    ensure!(before["workloads"].as_array().is_some_and(|w| w.len() >= 7), "{before}");
    let pods = containers(&lab)?;

    let load = Load::start(&lab.url("/productpage"), rate());
    std::thread::sleep(Duration::from_secs(1));
    let said = lab.weft(&["ca", "rotate", "--timeout", "3m"]);
    std::thread::sleep(Duration::from_secs(2));
    let report = load.stop()?;
    println!("{}root rotated: {report}", said?);
    ensure!(report.failures.is_empty() && report.sent > 0 && report.ok == report.sent, "{report}");

    let after = status(&lab)?;
    ensure!(after["phase"] == "steady" && after["signer"] != before["signer"], "{after}");
    for workload in after["workloads"].as_array().context("workloads")? {
        ensure!(workload["note"] == "" && workload["signedBy"] == after["signer"], "{workload}");
        ensure!(workload["trusts"] == json!([after["signer"]]), "{workload}");
    }
    ensure!(containers(&lab)? == pods, "a pod was made anew, or a container started again");
    Ok(())
}

#[test]
fn short_lives_and_a_control_plane_that_is_away() -> Result<()> {
    let lab = Lab::start(&[])?;
    lab.short_lives(LIFE)?;
    eventually(SOON, || {
        ensure!(get(&lab.url("/productpage"), &[])?.status == 200, "not yet");
        Ok(())
    })?;

    let load = Load::start(&lab.url("/productpage"), rate() / 5);
    std::thread::sleep(renewal_time());
    let report = load.stop()?;
    println!("lives of {LIFE} s: {report}");
    ensure!(report.failures.is_empty() && report.ok == report.sent && report.sent > 0, "{report}");

    let replicas = |n: u32| {
        let patch = json!({"spec": {"replicas": n}}).to_string();
        lab.weft(&["patch", "deployment", "istiod", "-n", "istio-system", "-p", &patch])
    };
    replicas(0)?;
    eventually(SOON, || {
        ensure!(lab.objects("pods", &["-n", "istio-system", "-l", "app=istiod"])?.is_empty(), "istiod still runs");
        Ok(())
    })?;
    let gone = Instant::now();
    // Until the certificates end everything goes on: the youngest has more than half of its life, the oldest a third.
    while gone.elapsed() < Duration::from_secs(LIFE / 4) {
        let answer = get(&lab.url("/productpage"), &[])?;
        ensure!(answer.status == 200, "{} after {:?} without a control plane", answer.status, gone.elapsed());
        std::thread::sleep(Duration::from_millis(200));
    }
    // Three half-lives later nothing that needs an identity goes through any more, and the reason is told.
    eventually(Duration::from_secs(LIFE * 3), || {
        let answer = get(&lab.url("/productpage"), &[])?;
        ensure!(answer.status == 503, "{}", answer.status);
        Ok(())
    })?;
    println!("closed {:?} after the control plane was gone", gone.elapsed());
    ensure!(gone.elapsed() > Duration::from_secs(LIFE / 3), "closed too early");
    // Whose certificate ended first, the gateway's or another's, is a matter of when each was made.
    eventually(Duration::from_secs(LIFE * 3), || {
        let log = lab.logs("istio-system", "deploy/istio-ingressgateway", "istio-proxy")?;
        ensure!(log.contains("identity lost"), "the log does not say why");
        let alarm = lab.exec(
            "istio-system",
            "deploy/istio-ingressgateway",
            "istio-proxy",
            &["curl", "-s", "-m", "20", "http://127.0.0.1:15020/stats/prometheus"],
        )?;
        let alarm = weft_journeys::lab::text(&alarm.stdout);
        ensure!(alarm.contains("weft_agent_identity_alarm 1"), "the alarm is not up");
        Ok(())
    })?;

    replicas(1)?;
    eventually(Duration::from_secs(90), || {
        ensure!(get(&lab.url("/productpage"), &[])?.status == 200, "not yet");
        Ok(())
    })?;
    Ok(())
}
