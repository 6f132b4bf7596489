//! The journey through the protocols that are not plain HTTP/1.1 and HTTP/2: WebSockets, gRPC, HTTP/1.0, a protocol in which
//! the server speaks first; through sidecars, and what can be through the gateway.

use crate::journey::{Journey, Run};
use crate::{Lab, eventually};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

/// The journeys.
pub const JOURNEYS: &[Journey] = &[Journey {
    id: "1:J-PROTOCOLS",
    title: "WebSockets, gRPC, HTTP/1.0, servers that speak first",
    proves: &["1:TM-08"],
    not_with_envoy: None,
    options: &["--no-bookinfo"],
    run: protocols,
}];

const SOON: Duration = Duration::from_secs(60);
/// The ingress gateway, as pods call it.
const GATEWAY: &str = "istio-ingressgateway.istio-system:80";

/// What a client of the samples prints in the sleep pod, when it prints that.
fn says(lab: &Lab, args: &[&str], want: &str) -> Result<()> {
    eventually(SOON, || {
        let out = lab.exec("default", "deploy/sleep", "sleep", &[&["weft-samples"], args].concat())?;
        let said = crate::lab::text(&out.stdout);
        ensure!(said == want, "{args:?}: {said:?}{}, want {want:?}", crate::lab::text(&out.stderr));
        Ok(())
    })
}

fn protocols(run: &mut Run) -> Result<()> {
    let lab = &run.lab;
    lab.apply_sample("sleep/sleep.yaml")?;
    lab.apply_sample("httpbin/httpbin.yaml")?;
    lab.apply_sample("websockets/app.yaml")?;
    lab.apply_yaml("protocols/servers.yaml", "default")?;
    lab.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: plain}\n")?;
    lab.apply_sample_in("sleep/sleep.yaml", "plain")?;
    lab.wait_deployments("plain", &["sleep"])?;
    lab.wait_deployments("default", &["sleep", "httpbin", "tornado", "grpc-echo", "greeter"])?;
    websockets(run)?;
    grpc(run)?;
    greeter(run);
    http_1_0(run);
    Ok(())
}

fn websockets(run: &mut Run) -> Result<()> {
    let conversation = "HTTP/1.1 101 Switching Protocols\nhello\nagain\n";
    run.check(&["1:TM-08"], "a WebSocket through sidecars", |lab| {
        says(lab, &["ws", "tornado:8888/ws", "hello", "again"], conversation)?;
        eventually(SOON, || {
            let log = lab.logs("default", "deploy/tornado", "istio-proxy")?;
            ensure!(log.contains("\"GET /ws HTTP/1.1\" 101"), "{log}");
            Ok(())
        })
    });
    run.lab.apply_sample("websockets/route.yaml")?;
    run.check(&["1:TM-08"], "a WebSocket through the gateway", |lab| {
        says(lab, &["ws", &format!("{GATEWAY}/ws"), "--host", "tornado.example.com", "hello", "again"], conversation)
    });
    Ok(())
}

fn grpc(run: &mut Run) -> Result<()> {
    let call = |method: &'static str, words: &[&'static str]| [&["grpc", "grpc-echo:7070", method], words].concat();
    run.check(&["1:TM-08"], "gRPC: one message, many, status and trailers", |lab| {
        says(lab, &call("Unary", &["hello"]), "hello\nstatus 0\ntail told\n")?;
        says(lab, &call("Repeat", &["hello"]), "hello\nhello\nhello\nstatus 0\ntail told\n")?;
        // Each message only after the answer to the one before.
        says(lab, &call("Stream", &["one", "two", "three"]), "one\ntwo\nthree\nstatus 0\ntail told\n")?;
        says(lab, &call("Refuse", &["x"]), "status 5\ntail -\n")
    });
    run.check(&["1:TM-08"], "a call that ends with UNAVAILABLE is made again", |lab| {
        lab.apply_yaml("protocols/retries.yaml", "default")?;
        eventually(SOON, || {
            let out = lab.curl(&[
                "-sS",
                "-D",
                "-",
                "--http2-prior-knowledge",
                "-H",
                "content-type: application/grpc",
                "-H",
                "te: trailers",
                "-X",
                "POST",
                "-o",
                "/dev/null",
                "http://grpc-echo:7070/samples.Echo/Refuse",
            ])?;
            ensure!(out.contains("x-rule: retries"), "{out}");
            Ok(())
        })?;
        // Of three calls two are refused: without the rule some of these would be.
        eventually(SOON, || {
            for _ in 0..4 {
                let argv = [&["weft-samples"], &call("Flaky", &["hello"])[..]].concat();
                let out = lab.exec("default", "deploy/sleep", "sleep", &argv)?;
                let said = crate::lab::text(&out.stdout);
                ensure!(said == "hello\nstatus 0\ntail told\n", "{said}{}", crate::lab::text(&out.stderr));
            }
            Ok(())
        })
    });
    run.lab.apply_yaml_as_is("protocols/grpc-route.yaml")?;
    run.check(&["1:TM-08"], "gRPC through the gateway, by a GRPCRoute", |lab| {
        let call = |method: &'static str, words: &[&'static str]| {
            [&["grpc", GATEWAY, "--host", "grpc.example.com", method], words].concat()
        };
        says(lab, &call("Unary", &["hello"]), "hello\nstatus 0\ntail told\n")?;
        says(lab, &call("Stream", &["one", "two"]), "one\ntwo\nstatus 0\ntail told\n")?;
        // No rule has this one: UNIMPLEMENTED, in gRPC's words.
        says(lab, &call("Repeat", &["x"]), "status 12\ntail -\n")
    });
    Ok(())
}

fn greeter(run: &mut Run) {
    run.check(&["1:TM-08"], "a server that speaks first: its greeting comes at once", |lab| {
        for port in ["3333", "3334"] {
            let line = format!("printf 'hello\\r\\n' | timeout 5 nc -q 1 greeter {port}");
            eventually(SOON, || {
                let start = Instant::now();
                let said = lab.sh(&line)?;
                ensure!(said.replace('\r', "") == "220 greeter ready\nhello\n", "port {port}: {said:?}");
                ensure!(start.elapsed() < Duration::from_secs(4), "port {port}: after {:?}", start.elapsed());
                Ok(())
            })?;
        }
        // The client says nothing before it is greeted.
        eventually(SOON, || {
            let said = lab.sh("sleep 2 | timeout 4 nc -q 0 greeter 3333")?;
            ensure!(said == "220 greeter ready\r\n", "no greeting on a port named tcp: {said:?}");
            Ok(())
        })
    });
}

fn http_1_0(run: &mut Run) {
    let call = ["-sS", "--http1.0", "-o", "/dev/null", "-w", "%{http_code}", "http://httpbin.default:8000/get"];
    run.check(&["1:TM-08"], "HTTP/1.0 is refused, and taken on demand", |lab| {
        eventually(SOON, || {
            let code = lab.curl_in("plain", &call)?;
            ensure!(code == "426", "{code}");
            Ok(())
        })?;
        let settings = r#"{"proxy.istio.io/config": "proxyMetadata: {ISTIO_META_HTTP10: \"1\"}"}"#;
        let patch = format!(r#"{{"spec": {{"template": {{"metadata": {{"annotations": {settings}}}}}}}}}"#);
        lab.weft(&["patch", "deployment", "httpbin", "-n", "default", "-p", &patch])?;
        lab.wait_deployments("default", &["httpbin"])?;
        eventually(SOON, || {
            let code = lab.curl_in("plain", &call)?;
            ensure!(code == "200", "{code}");
            Ok(())
        })
    });
}
