//! Every hop is mutual TLS; a caller without sidecar is served under PERMISSIVE and refused under STRICT (1:J-S3).

use anyhow::{Context as _, Result, ensure};
use std::process::{Command, Stdio};
use std::time::Duration;
use weft_journeys::browser::{get, stars};
use weft_journeys::lab::text;
use weft_journeys::processes::descendants;
use weft_journeys::{Lab, eventually, steadily};

const SOON: Duration = Duration::from_secs(60);

const PLAIN_POD: &str = "apiVersion: v1
kind: Pod
metadata:
  name: plain
  annotations: {sidecar.istio.io/inject: \"false\"}
  labels: {app: plain}
spec:
  containers: [{name: plain, image: curlimages/curl, command: [/bin/sleep, infinity]}]
";

const STRICT: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
";

/// Access logs that show who the peer proved to be.
const ACCESS_LOG: &str = "apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    accessLogFile: /dev/stdout
    accessLogFormat: \"%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% peer=%DOWNSTREAM_PEER_URI_SAN% upstream=%UPSTREAM_CLUSTER_RAW%\\n\"
";

fn curl(lab: &Lab, from: &str, url: &str) -> Result<String> {
    let out = lab.try_weft(&["exec", from, "--", "curl", "-s", "-m", "15", "-w", "\n%{http_code}", url])?;
    Ok(text(&out.stdout))
}

#[test]
fn every_hop_proves_who_it_is() -> Result<()> {
    let lab = Lab::start(&[])?;
    lab.apply_sample("httpbin/httpbin.yaml")?;
    lab.apply_sample("sleep/sleep.yaml")?;
    lab.wait_ready("app=httpbin", "default", 1)?;
    lab.wait_ready("app=sleep", "default", 1)?;

    for part in [
        "By=spiffe://cluster.local/ns/default/sa/httpbin;Hash=",
        ";Subject=\\\"\\\";URI=spiffe://cluster.local/ns/default/sa/sleep",
        "X-Request-Id",
    ] {
        // A proxy hears of the other's endpoint a moment after that one is ready.
        eventually(SOON, || {
            let headers = curl(&lab, "deploy/sleep", "http://httpbin:8000/headers")?;
            ensure!(headers.contains(part), "{part:?} is missing: {headers}");
            Ok(())
        })?;
    }

    lab.apply(ACCESS_LOG)?;
    for (app, peer) in [
        ("reviews", "spiffe://cluster.local/ns/default/sa/bookinfo-productpage"),
        ("productpage", "spiffe://cluster.local/ns/istio-system/sa/istio-ingressgateway-service-account"),
        ("ratings", "spiffe://cluster.local/ns/default/sa/bookinfo-reviews"),
    ] {
        eventually(SOON, || {
            stars(&lab.url(""), None)?;
            let mut logs = String::new();
            for pod in lab.ready_pods(&format!("app={app}"), "default")? {
                logs += &lab.weft(&["logs", &pod, "-c", "istio-proxy"])?;
            }
            let line = logs.lines().find(|l| l.contains(&format!("peer={peer}")));
            ensure!(line.is_some(), "no line with peer={peer} in {app}'s access logs");
            println!("{app}: {}", line.unwrap_or_default());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn nothing_is_readable_on_the_bridge() -> Result<()> {
    let lab = Lab::start(&[])?;
    let inner = descendants(lab.pid(), "weft")?.into_iter().min().context("no inner process")?;
    // From and to the node itself: probes, the gateway's door to the host, the API. All else is between pods.
    let line = format!(
        "nsenter -t {inner} -U --preserve-credentials -n tcpdump -i weft0 -n -A -s 0 -U tcp and not host 10.244.0.1"
    );
    let line = if nix::unistd::geteuid().is_root() { line.replace(" -U --preserve-credentials", "") } else { line };
    let words: Vec<&str> = line.split_whitespace().collect();
    // Into a file: a pipe that nobody reads yet would fill up and stop the capture.
    let file = lab.home().join("capture");
    let mut dump = Command::new(words[0])
        .args(&words[1..])
        .stdout(std::fs::File::create(&file)?)
        .stderr(Stdio::piped())
        .spawn()?;
    // tcpdump says so when it listens.
    let mut stderr = std::io::BufReader::new(dump.stderr.take().context("stderr")?);
    let mut said = String::new();
    while !said.contains("listening on") {
        let read = std::io::BufRead::read_line(&mut stderr, &mut said)?;
        ensure!(read > 0, "tcpdump ended: {said}");
    }
    for _ in 0..100 {
        stars(&lab.url(""), None)?;
    }
    // What the kernel holds for tcpdump comes into the file in its time.
    let captured = |file: &std::path::Path| -> Result<String> { Ok(text(&std::fs::read(file)?)) };
    eventually(SOON, || {
        let packets = captured(&file)?.matches("Flags [").count();
        ensure!(packets > 100, "only {packets} packets were captured");
        Ok(())
    })?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(dump.id())?), nix::sys::signal::Signal::SIGINT)?;
    dump.wait()?;
    let captured = captured(&file)?;
    println!("{} packets captured between pods", captured.matches("Flags [").count());
    for word in ["HTTP/1.1", "GET /", "Reviewer1", "x-request-id", "William Shakespeare"] {
        ensure!(!captured.contains(word), "{word:?} is readable on the bridge");
    }
    Ok(())
}

#[test]
fn plain_text_under_permissive_and_strict() -> Result<()> {
    let lab = Lab::start(&[])?;
    lab.apply_sample("httpbin/httpbin.yaml")?;
    lab.apply_sample("sleep/sleep.yaml")?;
    lab.apply(PLAIN_POD)?;
    lab.wait_ready("app=httpbin", "default", 1)?;
    lab.wait_ready("app=sleep", "default", 1)?;
    lab.wait_ready("app=plain", "default", 1)?;
    let url = "http://httpbin.default:8000/get";
    eventually(SOON, || {
        let got = curl(&lab, "plain", url)?;
        ensure!(got.ends_with("\n200") && !got.contains("X-Forwarded-Client-Cert"), "{got}");
        Ok(())
    })?;
    lab.apply(STRICT)?;
    steadily(SOON, || {
        let got = curl(&lab, "plain", url)?;
        ensure!(got.ends_with("000"), "plain text is still accepted under STRICT: {got}");
        Ok(())
    })?;
    // Since when the caller's proxy knows httpbin at all nobody has asked yet.
    eventually(SOON, || {
        let got = curl(&lab, "deploy/sleep", url)?;
        ensure!(got.ends_with("\n200"), "the mesh itself goes on under STRICT: {got}");
        Ok(())
    })?;
    ensure!(get(&lab.url("/productpage"), &[])?.status == 200);
    lab.weft(&["delete", "peerauthentication", "default", "-n", "istio-system"])?;
    eventually(SOON, || {
        let got = curl(&lab, "plain", url)?;
        ensure!(got.ends_with("\n200"), "{got}");
        Ok(())
    })
}
