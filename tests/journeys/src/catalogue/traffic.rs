//! The concepts of traffic management that no task of the documents shows by itself: one lab, one rule after another.

use crate::journey::{Journey, Run};
use crate::{Lab, eventually, steadily};
use anyhow::{Result, ensure};
use std::time::Duration;

/// The journeys.
pub const JOURNEYS: &[Journey] = &[Journey {
    id: "1:J-TM",
    title: "the concepts of traffic management, one rule after another",
    proves: &[
        "1:TM-01", "1:TM-02", "1:TM-03", "1:TM-04", "1:TM-05", "1:TM-06", "1:TM-07", "1:TM-09", "1:TM-10", "1:TM-11",
        "1:TM-12", "1:TM-13", "1:TM-14", "1:TM-15", "1:TM-16", "1:TM-17", "1:TM-20", "1:TM-21", "1:TM-22", "1:TM-35",
        "1:TM-36", "1:TM-37", "1:TM-38", "1:TM-39", "1:TM-40", "1:TM-42", "1:TM-43", "1:TM-45", "1:TM-46",
    ],
    not_with_envoy: None,
    options: &["--no-bookinfo"],
    run: concepts,
}];

const SOON: Duration = Duration::from_secs(60);
const HELLO: &str = "http://helloworld:5000/hello";

/// Which version answers; the status where it is not 200.
fn version(lab: &Lab, headers: &[&str]) -> Result<String> {
    let mut args = vec!["-sS", "-w", " %{http_code}"];
    headers.iter().for_each(|header| args.extend(["-H", *header]));
    args.push(HELLO);
    let answer = lab.curl(&args)?;
    let status = answer.rsplit(' ').next().unwrap_or_default();
    let version = answer.split("version: ").nth(1).and_then(|rest| rest.split(',').next());
    Ok(if status == "200" { version.unwrap_or("-").to_string() } else { status.to_string() })
}

/// How many of 100 calls each of v1 and v2 answered.
fn shares(lab: &Lab) -> Result<[usize; 2]> {
    let out = lab.sh(&format!("for i in $(seq 100); do curl -sS {HELLO}; done"))?;
    Ok(["v1", "v2"].map(|version| out.matches(&format!("version: {version},")).count()))
}

/// Requests of a path that httpbin has logged.
fn logged(lab: &Lab, path: &str) -> Result<usize> {
    let mut count = 0;
    for deployment in ["deploy/httpbin-v1", "deploy/httpbin-v2"] {
        let log = lab.logs("default", deployment, "httpbin")?;
        count += log.lines().filter(|line| line.contains(&format!("\"GET {path} "))).count();
    }
    Ok(count)
}

/// Asks for a path that is new each time until httpbin logs one request of it `count` times.
fn tries(lab: &Lab, path: &str, status: &str, count: usize) -> Result<()> {
    let mut round = 0;
    eventually(SOON, || {
        round += 1;
        let path = format!("{path}round{round}");
        let code =
            lab.curl(&["-sS", "-o", "/dev/null", "-w", "%{http_code}", &format!("http://httpbin:8000{path}")])?;
        ensure!(code == status, "{code}");
        let mut seen = 0;
        // What was sent before the answer is logged by now, or at once.
        eventually(Duration::from_secs(3), || {
            seen = logged(lab, &path)?;
            ensure!(seen >= count, "{path}: {seen} tries, {count} are due");
            Ok(())
        })?;
        ensure!(seen == count, "{path}: {seen} tries, {count} are due");
        Ok(())
    })
}

fn shop(lab: &Lab, more: &[&str], path: &str) -> Result<String> {
    let url = format!("http://door{path}");
    lab.curl(&[&["-sS", "-i", "-H", "Host: shop.example"], more, &[&url]].concat())
}

fn clusters(lab: &Lab, namespace: &str) -> Result<String> {
    let dump = lab.admin(namespace, "deploy/sleep", "GET", "clusters")?;
    ensure!(dump.contains("::"), "no clusters: {dump}");
    Ok(dump)
}

fn concepts(run: &mut Run) -> Result<()> {
    deploy(&run.lab)?;
    by_default(run);
    virtual_hosts(run)?;
    conditions(run)?;
    weights(run)?;
    times(run)?;
    reach(run)
}

fn deploy(lab: &Lab) -> Result<()> {
    lab.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {istio-injection: enabled}}\n")?;
    lab.apply_yaml("mirroring/httpbin.yaml", "default")?;
    lab.apply_sample("helloworld/helloworld.yaml")?;
    lab.apply_sample_in("sleep/sleep.yaml", "other")?;
    lab.wait_deployments("default", &["httpbin-v1", "httpbin-v2", "sleep", "helloworld-v1", "helloworld-v2"])?;
    lab.wait_deployments("other", &["sleep"])
}

fn by_default(run: &mut Run) {
    run.check(&["1:TM-01", "1:TM-02", "1:TM-03", "1:TM-05"], "without a rule all members take turns", |lab| {
        eventually(SOON, || {
            let [one, two] = shares(lab)?;
            ensure!(one + two == 100 && one.abs_diff(two) <= 10, "v1 answered {one}, v2 {two}");
            Ok(())
        })?;
        // Another service: the caller's proxy hears of its endpoints in its own time.
        eventually(SOON, || {
            let answer = lab.curl(&["-sS", "http://httpbin:8000/headers"])?;
            ensure!(answer.contains("X-Forwarded-Client-Cert"), "not through two proxies: {answer}");
            Ok(())
        })
    });
    run.check(&["1:TM-35"], "every proxy knows every service", |lab| {
        eventually(SOON, || {
            let dump = clusters(lab, "other")?;
            for host in ["httpbin.default.svc", "helloworld.default.svc", "istiod.istio-system.svc", "sleep.other.svc"]
            {
                ensure!(dump.contains(host), "no {host}");
            }
            Ok(())
        })
    });
    run.check(&["1:TM-38"], "no time limit unless a rule sets one", |lab| {
        eventually(SOON, || {
            let took = lab.curl(&["-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://httpbin:8000/delay/3"])?;
            ensure!(took == "200", "{took}");
            Ok(())
        })
    });
    run.check(&["1:TM-39"], "a retryable failure is tried three times in all", |lab| {
        // `UNAVAILABLE` is among what is retried without a rule.
        tries(lab, "/response-headers?grpc-status=14&", "200", 3)
    });
}

fn virtual_hosts(run: &mut Run) -> Result<()> {
    run.lab.apply_yaml("traffic/shop.yaml", "default")?;
    run.check(&["1:TM-06", "1:TM-07", "1:TM-13"], "a host that no service has, in front of two of them", |lab| {
        eventually(SOON, || {
            let hello = shop(lab, &[], "/hello")?;
            ensure!(hello.contains("Hello version"), "{hello}");
            let wild = lab.curl(&["-sS", "-H", "Host: north.shop.example", "http://door/hello"])?;
            ensure!(wild.contains("Hello version"), "{wild}");
            Ok(())
        })
    });
    run.check(&["1:TM-17", "1:TM-21"], "path and headers as the route says", |lab| {
        eventually(SOON, || {
            let answer = shop(lab, &["-H", "x-gone: 1"], "/old/thing?a=b")?;
            for part in ["HTTP/1.1 200", "x-answered-by: shop", "/anything/thing?a=b", "\"X-Added\": \"yes\""] {
                ensure!(answer.contains(part), "no {part} in {answer}");
            }
            ensure!(!answer.to_lowercase().contains("x-gone"), "{answer}");
            Ok(())
        })
    });
    run.check(&["1:TM-10"], "a destination that nobody has goes nowhere", |lab| {
        eventually(SOON, || {
            let answer = shop(lab, &[], "/nobody")?;
            ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
            Ok(())
        })
    });
    Ok(())
}

fn conditions(run: &mut Run) -> Result<()> {
    run.lab.apply_yaml("traffic/rules.yaml", "default")?;
    run.check(&["1:TM-04"], "a rule of an older version reads back in the stored one", |lab| {
        let rule = lab.weft(&["get", "virtualservice", "helloworld", "-o", "yaml"])?;
        ensure!(rule.contains("apiVersion: networking.istio.io/v1"), "{rule}");
        Ok(())
    });
    run.check(&["1:TM-09", "1:TM-14", "1:TM-15", "1:TM-22"], "versions by conditions", |lab| {
        eventually(SOON, || {
            // Without a rule v1 answers half of them too: only a row of them says that the rule is in force.
            let out = lab.sh(&format!("for i in $(seq 30); do curl -sS {HELLO}; done"))?;
            ensure!(out.matches("version: v1,").count() == 30, "{out}");
            Ok(())
        })?;
        for (headers, want) in [
            (&["end-user: jason"][..], "v2"),
            (&["end-user: jason2"], "v1"),
            (&["x-kind: banana"], "v2"),
            (&["x-kind: a banana"], "v1"),
            (&["x-kind: orange"], "v2"),
            (&["x-kind: an orange"], "v1"),
        ] {
            eventually(SOON, || {
                for _ in 0..3 {
                    let by = version(lab, headers)?;
                    ensure!(by == want, "{headers:?}: {by}, not {want}");
                }
                Ok(())
            })?;
        }
        Ok(())
    });
    run.check(&["1:TM-11"], "a short host is of the rule's namespace, whoever calls", |lab| {
        // A proxy of its own, which takes the rule in its own time.
        steadily(SOON, || {
            let answer =
                lab.curl_in("other", &["-sS", "-H", "end-user: jason", "http://helloworld.default:5000/hello"])?;
            ensure!(answer.contains("version: v2,"), "{answer}");
            Ok(())
        })
    });
    run.check(&["1:TM-45"], "503 where no instance is left", |lab| {
        eventually(SOON, || {
            let status = version(lab, &["x-kind: gone"])?;
            ensure!(status == "503", "{status}");
            Ok(())
        })
    });
    run.check(&["1:TM-42", "1:TM-43"], "faults by rule: a status, a delay", |lab| {
        eventually(SOON, || {
            let status = version(lab, &["x-kind: broken"])?;
            ensure!(status == "418", "{status}");
            let args = ["-sS", "-o", "/dev/null", "-w", "%{time_total}", "-H", "x-kind: late", HELLO];
            let took: f64 = lab.curl(&args)?.parse()?;
            ensure!(took >= 1.5, "{took} s");
            Ok(())
        })
    });
    run.lab.apply_yaml("traffic/order.yaml", "default")?;
    run.check(&["1:TM-12", "1:TM-46"], "the first rule that fits is taken, from the moment that it changes", |lab| {
        steadily(SOON, || {
            let by = version(lab, &["end-user: jason"])?;
            ensure!(by == "v1", "{by}");
            Ok(())
        })
    });
    Ok(())
}

fn weights(run: &mut Run) -> Result<()> {
    run.lab.apply_yaml("traffic/weights.yaml", "default")?;
    // 150 of 200 are expected; five standard deviations are 31: by chance it is more in 5 of 10⁷ rounds.
    let fits = |lab: &Lab| {
        let (first, second) = (shares(lab)?, shares(lab)?);
        let (one, two) = (first[0] + second[0], first[1] + second[1]);
        ensure!(one + two == 200 && (119..=181).contains(&one), "v1 answered {one}, v2 {two} of 200");
        Ok(())
    };
    run.check(&["1:TM-16"], "three of four requests to v1", |lab| eventually(SOON, || fits(lab)));
    run.check(&["1:TM-20"], "the same with three pods of v2", |lab| {
        lab.weft(&["patch", "deployment", "helloworld-v2", "-p", "{\"spec\":{\"replicas\":3}}"])?;
        lab.wait_ready("app=helloworld,version=v2", "default", 3)?;
        eventually(SOON, || fits(lab))
    });
    Ok(())
}

fn times(run: &mut Run) -> Result<()> {
    run.lab.apply_yaml("traffic/times.yaml", "default")?;
    run.check(&["1:TM-38", "1:TM-46"], "a route's time cuts a slow answer", |lab| {
        eventually(SOON, || {
            let args = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://httpbin:8000/delay/4"];
            let status = lab.curl(&args)?;
            ensure!(status == "504", "{status}");
            Ok(())
        })
    });
    run.check(&["1:TM-40"], "three retries where the route says so", |lab| tries(lab, "/status/503?", "503", 4));
    Ok(())
}

fn reach(run: &mut Run) -> Result<()> {
    run.lab.apply_yaml("traffic/sidecar.yaml", "other")?;
    run.check(&["1:TM-36", "1:TM-37"], "a Sidecar narrows what a namespace reaches, and no other", |lab| {
        eventually(SOON, || {
            let dump = clusters(lab, "other")?;
            ensure!(!dump.contains("httpbin.default.svc"), "httpbin is still there");
            ensure!(dump.contains("sleep.other.svc") && dump.contains("istiod.istio-system.svc"), "{dump}");
            Ok(())
        })?;
        ensure!(clusters(lab, "default")?.contains("httpbin.default.svc"), "another namespace lost it");
        Ok(())
    });
    Ok(())
}
