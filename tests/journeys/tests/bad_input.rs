//! Bad input: refused by name, or accepted with a warning, and nothing else suffers.

use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use weft_journeys::browser::{Stars, get, stars};
use weft_journeys::certs::{Certificates, Pair, tls_secret};
use weft_journeys::lab::text;
use weft_journeys::{Lab, eventually};

const SOON: Duration = Duration::from_secs(60);

const INVALID: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
spec:
  hosts: [reviews]
  http:
  - timeout: 0.0001s
    fault: {abort: {httpStatus: 99, percentage: {value: 100}}}
    route:
    - destination: {host: reviews}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: beside-the-invalid-one
";

const MISSING_SUBSET: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: details
spec:
  hosts: [details]
  http:
  - match: [{uri: {prefix: /details/7}}]
    route: [{destination: {host: details, subset: v9}}]
  - match: [{uri: {prefix: /details/8}}]
    route: [{destination: {host: no-such-host}}]
  - route: [{destination: {host: details}}]
";

fn apply(lab: &Lab, name: &str, content: &str) -> Result<(bool, String)> {
    let file = lab.home().join(name);
    std::fs::write(&file, content)?;
    let out = lab.try_weft(&["apply", "-f", &file.display().to_string()])?;
    Ok((out.status.success(), text(&out.stdout) + &text(&out.stderr)))
}

#[test]
fn bad_input_is_named_and_contained() -> Result<()> {
    let lab = Lab::start(&[])?;

    let (accepted, said) = apply(&lab, "invalid.yaml", INVALID)?;
    println!("{said}");
    ensure!(!accepted, "an invalid VirtualService was accepted: {said}");
    for part in ["VirtualService", "reviews", "spec.http[0].timeout", "spec.http[0].fault.abort.httpStatus"] {
        ensure!(said.contains(part), "{part:?} is not named: {said}");
    }
    let maps = lab.objects("configmaps", &["-n", "default"])?;
    ensure!(!maps.iter().any(|m| m["metadata"]["name"] == "beside-the-invalid-one"), "a part of the file was applied");
    ensure!(lab.objects("virtualservices", &["-n", "default"])?.len() == 1, "only bookinfo's own is there");
    stars(&lab.url(""), None)?;

    let (accepted, said) =
        apply(&lab, "malformed.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x\n  y: [\n")?;
    println!("{said}");
    ensure!(!accepted && said.contains("malformed.yaml:"), "file and line are not named: {said}");

    let (accepted, said) = apply(&lab, "missing.yaml", MISSING_SUBSET)?;
    println!("{said}");
    ensure!(accepted, "a valid object that refers to something missing is accepted: {said}");
    for part in ["v9", "no-such-host"] {
        ensure!(said.contains(part), "{part:?} is not named in a warning: {said}");
    }
    let ask = |path: &str| -> Result<String> {
        let url = format!("http://details:9080{path}");
        let out = lab.try_weft(&[
            "exec",
            "deploy/ratings-v1",
            "-c",
            "ratings",
            "--",
            "curl",
            "-s",
            "-m",
            "20",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            &url,
        ])?;
        Ok(text(&out.stdout))
    };
    eventually(SOON, || {
        for (path, code) in [("/details/7", "503"), ("/details/8", "503"), ("/details/0", "200")] {
            let got = ask(path)?;
            ensure!(got == code, "{path} answered {got}, want {code}");
        }
        Ok(())
    })?;
    ensure!(matches!(stars(&lab.url(""), None)?, Stars::None | Stars::Black | Stars::Red));
    ensure!(get(&lab.url("/productpage"), &[])?.status == 200);
    Ok(())
}

/// A gateway with a server for HTTPS, and the rule that leads to the product page.
fn gateway(name: &str, host: &str, port: u16, protocol: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: default}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - {{port: {{number: {port}, name: s, protocol: {protocol}}}, hosts: [{host}]{more}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{host}]
  gateways: [{name}]
  http: [{{route: [{{destination: {{host: productpage, port: {{number: 9080}}}}}}]}}]
"
    )
}

fn secure(name: &str) -> String {
    gateway(
        name,
        &format!("{name}.example.com"),
        443,
        "HTTPS",
        &format!(", tls: {{mode: SIMPLE, credentialName: {name}}}"),
    )
}

/// The page by HTTPS, on a connection of its own: the status, or what curl says.
fn page(port: u16, host: &str, root: &Path) -> Result<String> {
    let (resolve, url) = (format!("{host}:{port}:127.0.0.1"), format!("https://{host}:{port}/productpage"));
    let root = root.display().to_string();
    let fixed = ["-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", "--resolve", &resolve];
    let out = Command::new("curl").args(fixed).args(["--cacert", &root, &url]).output()?;
    Ok(text(&out.stdout) + &text(&out.stderr))
}

/// What the status of an object says, as one text.
fn said_of(lab: &Lab, kind: &str, name: &str) -> Result<String> {
    let all = lab.objects(kind, &["-n", "default"])?;
    let object = all.into_iter().find(|o| o["metadata"]["name"] == name);
    Ok(object.map(|o| o["status"].to_string()).unwrap_or_default())
}

/// The message stands on the object and in the log of the control plane.
fn told(lab: &Lab, kind: &str, name: &str, message: &str) -> Result<()> {
    eventually(SOON, || {
        let status = said_of(lab, kind, name)?;
        ensure!(status.contains(message), "{kind}/{name} does not say {message:?}: {status}");
        let log = lab.logs("istio-system", "deploy/istiod", "discovery")?;
        ensure!(log.contains(message), "the log does not say {message:?}");
        Ok(())
    })
}

const ROUTE: &str = "route: [{destination: {host: details, port: {number: 9080}}}]";

fn refused(lab: &Lab) -> Result<()> {
    let rule = |http: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: refused}}\nspec: {{hosts: [details], http: [{{{http}}}]}}\n"
        )
    };
    let none = "{destination: {host: details}, weight: 0}";
    let large = format!("match: [{{uri: {{regex: '(a{{900}}){{900}}'}}}}], {ROUTE}");
    let long = format!("match: [{{uri: {{regex: '{}'}}}}], {ROUTE}", "a".repeat(17_000));
    for (case, http, parts) in [
        ("weights that are zero", format!("route: [{none}, {none}]"), ["spec.http[0].route", "weights"]),
        ("a negative weight", "route: [{destination: {host: details}, weight: -1}]".into(), ["weight", "spec.http[0]"]),
        ("a regex that is too large", large, ["spec.http[0].match[0].uri", "use smaller repetitions"]),
        ("a regex that is too long", long, ["spec.http[0].match[0].uri", "longer than 16384 bytes"]),
    ] {
        let (accepted, said) = apply(lab, "refused.yaml", &rule(&http))?;
        ensure!(!accepted, "{case} was accepted: {said}");
        for part in parts {
            ensure!(said.contains(part), "{case}: {part:?} is not named: {said}");
        }
        println!("refused: {case}");
    }
    Ok(())
}

/// Everything that is accepted and told; each beside a neighbour that answers throughout.
#[test]
fn what_clashes_or_cannot_be_shown_is_told_on_the_object_and_in_the_log() -> Result<()> {
    let lab = Lab::start(&[])?;
    let certificates = Certificates::new()?;
    let root = certificates.root();
    let secret = |name: &str, pair: &Pair| lab.apply(&tls_secret("istio-system", name, pair)?);
    let well = |case: &str| -> Result<()> {
        let answer = page(lab.https_port, "good.example.com", &root)?;
        ensure!(answer == "200", "after {case} the neighbour answers {answer}");
        ensure!(get(&lab.url("/productpage"), &[])?.status == 200, "after {case} plain HTTP fails");
        println!("told: {case}");
        Ok(())
    };
    refused(&lab)?;

    let good = certificates.leaf("good.example.com")?;
    secret("good", &good)?;
    lab.apply(&secure("good"))?;
    eventually(SOON, || {
        let answer = page(lab.https_port, "good.example.com", &root)?;
        ensure!(answer == "200", "{answer}");
        Ok(())
    })?;

    let stranger = Pair { certificate: good.certificate.clone(), key: certificates.leaf("other.example.com")?.key };
    for (case, name, pair, message) in [
        ("an expired certificate", "expired", certificates.expired("expired.example.com")?, "has expired at "),
        (
            "the key of another",
            "stranger",
            stranger,
            "does not belong to the certificate; the two must be made together",
        ),
        (
            "a certificate for other hosts",
            "elsewhere",
            certificates.leaf("somewhere.example.org")?,
            "the certificate is for somewhere.example.org, not for elsewhere.example.com",
        ),
    ] {
        secret(name, &pair)?;
        lab.apply(&secure(name))?;
        told(&lab, "gateways", name, message)?;
        well(case)?;
    }

    lab.apply(&gateway("clash", "\"*\"", 443, "TCP", "").replace("http: ", "tcp: "))?;
    told(&lab, "gateways", "clash", "spec.servers[0]: port 443 is taken by Gateway default/")?;
    well("a port of another protocol")?;
    lab.apply(&gateway("twin", "good.example.com", 443, "HTTPS", ", tls: {mode: SIMPLE, credentialName: good}"))?;
    told(&lab, "gateways", "twin", "host good.example.com on port 443 already belongs to Gateway default/good")?;
    well("a host of another Gateway")?;
    lab.apply(&gateway("nobody", "nobody.example.com", 80, "HTTP", "").replace("ingressgateway", "nobody"))?;
    told(&lab, "gateways", "nobody", "selector istio=nobody selects no workload")?;
    well("a Gateway without workload")?;

    let rule = |name: &str, to: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {{hosts: [details], http: [{to}]}}\n"
        )
    };
    lab.apply(&rule("details-a", &format!("{{{ROUTE}}}")))?;
    lab.apply(&rule("details-b", &format!("{{{ROUTE}}}")))?;
    told(&lab, "virtualservices", "details-b", "already belongs to VirtualService default/details-a")?;
    well("a host of another VirtualService")?;
    let subset =
        "{match: [{uri: {prefix: /none}}], route: [{destination: {host: details, subset: v9, port: {number: 9080}}}]}";
    lab.apply(&rule("details-a", &format!("{subset}, {{{ROUTE}}}")))?;
    told(
        &lab,
        "virtualservices",
        "details-a",
        "subset v9 of host details.default.svc.cluster.local is in no DestinationRule",
    )?;
    well("an unknown subset")?;

    secret_deleted_under_load(&lab, &root, &good)
}

/// New connections all the while: the certificate that the proxy has stays.
fn secret_deleted_under_load(lab: &Lab, root: &Path, pair: &Pair) -> Result<()> {
    const CLIENTS: usize = 2;
    let (stop, served) = (AtomicBool::new(false), [const { AtomicU32::new(0) }; CLIENTS]);
    let port = lab.https_port;
    std::thread::scope(|scope| -> Result<()> {
        let stop = &stop;
        let clients: Vec<_> = served
            .iter()
            .map(|served| {
                scope.spawn(move || -> Result<()> {
                    while !stop.load(Ordering::Relaxed) {
                        let answer = page(port, "good.example.com", root)?;
                        let asked = served.fetch_add(1, Ordering::Relaxed);
                        ensure!(answer == "200", "request {asked}: {answer}");
                    }
                    Ok(())
                })
            })
            .collect();
        let events = (|| -> Result<()> {
            lab.weft(&["delete", "secret", "good", "-n", "istio-system"])?;
            told(lab, "gateways", "good", "proxies that had its certificate show the last one on; create it again")?;
            // Each of them gets more than ten pages, which takes its time on a busy machine.
            let before: Vec<u32> = served.iter().map(|served| served.load(Ordering::Relaxed)).collect();
            eventually(SOON, || {
                let mut all = served.iter().zip(&before);
                ensure!(
                    all.all(|(now, before)| now.load(Ordering::Relaxed) > before + 10),
                    "too few requests were made without the Secret"
                );
                Ok(())
            })?;
            lab.apply(&tls_secret("istio-system", "good", pair)?)?;
            eventually(SOON, || {
                let status = said_of(lab, "gateways", "good")?;
                ensure!(!status.contains("create it again"), "the warning stays: {status}");
                Ok(())
            })
        })();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        events?;
        println!("{served:?} requests, each answered 200, while the Secret was gone and came back");
        Ok(())
    })
}
