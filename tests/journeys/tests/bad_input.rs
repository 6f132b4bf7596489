//! Bad input: refused by name, or accepted with a warning, and nothing else suffers.

use anyhow::{Result, ensure};
use std::time::Duration;
use weft_journeys::browser::{Stars, get, stars};
use weft_journeys::lab::text;
use weft_journeys::{Lab, eventually};

const SOON: Duration = Duration::from_secs(10);

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
