//! Addresses of IPv6 beside those of IPv4: pods, services of one family and of both, hosts outside, and the way to them through
//! sidecars and the gateway (Istio's page "Install Istio in Dual-Stack mode").

use super::egress::{SOON, registry_only};
use crate::journey::{Journey, Run};
use crate::{Lab, browser, eventually, lab};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// The journeys.
pub const JOURNEYS: &[Journey] = &[Journey {
    id: "6:J-DUAL",
    title: "both families of addresses",
    proves: &["6:DS-01", "6:DS-02", "6:DS-03", "6:DS-04", "6:DS-05", "6:DS-06", "6:DS-07"],
    not_with_envoy: None,
    options: &["--no-bookinfo", "--outside", "--ip-family", "dual"],
    run: dual_stack,
}];

const NAMESPACES: [&str; 3] = ["dual-stack", "ipv4", "ipv6"];
/// Networks of pods and services.
const PODS: &str = "fd00:10:244::";
const SERVICES: &str = "fd00:10:96::";

fn dual_stack(run: &mut Run) -> Result<()> {
    prepare(&run.lab)?;
    run.check(&["6:DS-01"], "services of one family and of both: addresses, slices, names", |lab| {
        eventually(SOON, || addresses(lab))
    });
    run.check(&["6:DS-02"], "bytes to each of them, through the sidecars", |lab| {
        for namespace in NAMESPACES {
            echoes(lab, namespace)?;
        }
        let log = eventually(SOON, || {
            let log = lab.logs("ipv6", "deploy/tcp-echo", "istio-proxy")?;
            ensure!(log.contains("inbound|9000||"), "no connection logged: {log}");
            Ok(log)
        })?;
        let line = log.lines().find(|line| line.contains("inbound|9000||")).unwrap_or_default();
        ensure!(line.contains(&format!("[{PODS}")), "not over IPv6: {line}");
        Ok(())
    });
    run.check(&["6:DS-03"], "the proxies know addresses of both families", |lab| {
        eventually(SOON, || listeners_and_endpoints(lab))
    });
    run.check(&["6:DS-04"], "HTTP over IPv6 with mutual TLS; who has none is refused", mutual_tls);
    run.check(&["6:DS-05"], "rules by the caller's address", by_address);
    run.check(&["6:DS-06"], "from the gateway to a service of IPv6 alone, and to the gateway over IPv6", gateway);
    run.check(&["6:DS-07"], "hosts outside by IPv6: by address, and by name", outside);
    Ok(())
}

fn prepare(lab: &Lab) -> Result<()> {
    lab.apply_yaml_as_is("families/namespaces.yaml")?;
    lab.apply_sample("sleep/sleep.yaml")?;
    lab.apply_sample_in("sleep/sleep.yaml", "legacy")?;
    lab.apply_yaml_as_is("families/web.yaml")?;
    for namespace in NAMESPACES {
        lab.apply_sample_in(&format!("tcp-echo/tcp-echo-{namespace}.yaml"), namespace)?;
        lab.wait_deployments(namespace, &["tcp-echo"])?;
    }
    lab.wait_deployments("ipv6", &["web"])?;
    lab.wait_deployments("default", &["sleep"])?;
    lab.wait_deployments("legacy", &["sleep"])
}

/// What a shell's line in the sleep pod of a namespace prints, whatever its exit code.
fn sh(lab: &Lab, namespace: &str, line: &str) -> Result<String> {
    Ok(lab::text(&lab.exec(namespace, "deploy/sleep", "sleep", &["sh", "-c", line])?.stdout))
}

fn object(lab: &Lab, kind: &str, namespace: &str, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&lab.weft(&["get", kind, name, "-n", namespace, "-o", "json"])?)?)
}

fn addresses(lab: &Lab) -> Result<()> {
    let families = |address: &Value| if address.as_str().unwrap_or_default().contains(':') { "IPv6" } else { "IPv4" };
    for (namespace, want) in [("dual-stack", &["IPv6", "IPv4"][..]), ("ipv4", &["IPv4"]), ("ipv6", &["IPv6"])] {
        let service = object(lab, "service", namespace, "tcp-echo")?;
        let ips = service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
        ensure!(ips.iter().map(families).eq(want.iter().copied()), "{namespace}: {ips:?}");
        ensure!(service["spec"]["ipFamilies"] == json!(want), "{namespace}: {service}");
        let slices = lab.objects("endpointslices", &["-n", namespace, "-l", "kubernetes.io/service-name=tcp-echo"])?;
        let mut kinds: Vec<_> = slices.iter().filter_map(|slice| slice["addressType"].as_str()).collect();
        let mut want = want.to_vec();
        kinds.sort_unstable();
        want.sort_unstable();
        ensure!(kinds == want, "{namespace}: {slices:?}");
        for slice in &slices {
            let address = &slice["endpoints"][0]["addresses"][0];
            ensure!(slice["addressType"] == families(address), "{slice}");
        }
        // What the resolver says, and what it does not.
        let names = lab.sh(&format!("getent ahosts tcp-echo.{namespace} | cut -d' ' -f1 | sort -u"))?;
        let mut known: Vec<_> = ips.iter().filter_map(Value::as_str).collect();
        known.sort_unstable();
        ensure!(names.lines().eq(known.iter().copied()), "{namespace}: {names}, want {known:?}");
    }
    let pods = lab.objects("pods", &["-n", "ipv6", "-l", "app=web"])?;
    let ips = &pods[0]["status"]["podIPs"];
    ensure!(ips[1]["ip"].as_str().is_some_and(|ip| ip.starts_with(PODS)), "{ips}");
    let names = lab.sh("getent ahostsv6 web-pods.ipv6 | cut -d' ' -f1 | sort -u")?;
    ensure!(names.trim() == ips[1]["ip"], "a headless service's pods: {names}");
    let refused = lab.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: both, namespace: ipv4}\n\
         spec: {ipFamilyPolicy: SingleStack, ipFamilies: [IPv4, IPv6], ports: [{port: 80}]}\n",
    );
    ensure!(refused.is_err_and(|error| error.to_string().contains("ipFamilyPolicy")), "two families and a single one");
    Ok(())
}

/// The sample's answer to a line.
fn echoes(lab: &Lab, namespace: &str) -> Result<()> {
    eventually(SOON, || {
        let said = lab.sh(&format!("echo {namespace} | nc -N -w 10 tcp-echo.{namespace} 9000"))?;
        ensure!(said == format!("hello {namespace}\n"), "{namespace}: {said:?}");
        Ok(())
    })
}

fn listeners_and_endpoints(lab: &Lab) -> Result<()> {
    let shown = lab.weft(&["proxy-config", "listeners", "deploy/sleep", "--port", "15006", "-o", "json"])?;
    for address in ["\"0.0.0.0\"", "\"::\""] {
        ensure!(shown.contains(address), "inbound listener without {address}: {shown}");
    }
    let cluster = "outbound|9000||tcp-echo.dual-stack.svc.cluster.local";
    let shown = lab.weft(&["proxy-config", "endpoints", "deploy/sleep", "--cluster", cluster])?;
    let of = |family: &str| shown.lines().filter(|line| line.contains(family) && line.contains(":9000")).count();
    ensure!(of(PODS) == 1 && of("10.244.") == 1, "{shown}");
    Ok(())
}

fn mutual_tls(lab: &Lab) -> Result<()> {
    let hello = |url: &str, family: &str| {
        eventually(SOON, || {
            let said = lab.curl(&["-sS", family, url])?;
            ensure!(said.contains("Hello version: v1"), "{url} {family}: {said}");
            Ok(())
        })
    };
    hello("http://web6.ipv6:5000/hello", "-6")?;
    hello("http://web.ipv6:5000/hello", "-6")?;
    hello("http://web.ipv6:5000/hello", "-4")?;
    // A pod of a headless service, by its own address.
    hello("http://web-pods.ipv6:5000/hello", "-6")?;
    // The client showed its certificate, over IPv6.
    let line = eventually(SOON, || {
        let log = lab.logs("ipv6", "deploy/web", "istio-proxy")?;
        let of_web6 = |line: &&str| line.contains("GET /hello") && line.contains("web6.ipv6:5000");
        Ok(log.lines().find(of_web6).context("nothing logged")?.to_string())
    })?;
    ensure!(line.contains(&format!("[{PODS}")), "not over IPv6: {line}");
    for url in ["http://web6.ipv6:5000/hello", "http://web.ipv6:5000/hello"] {
        eventually(SOON, || {
            let said = sh(lab, "legacy", &format!("curl -s -6 --max-time 10 {url}; echo exit $?"))?;
            ensure!(said.trim() == "exit 56" || said.trim() == "exit 52", "plain text to {url}: {said}");
            Ok(())
        })?;
    }
    Ok(())
}

fn by_address(lab: &Lab) -> Result<()> {
    for (block, want) in [(format!("{PODS}/112"), "200"), (format!("{SERVICES}/112"), "403"), ("::/0".into(), "200")] {
        lab.apply(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: web, namespace: ipv6}}\nspec:\n  \
             selector: {{matchLabels: {{app: web}}}}\n  rules: [{{from: [{{source: {{ipBlocks: [\"{block}\"]}}}}]}}]\n"
        ))?;
        eventually(SOON, || {
            let status =
                lab.curl(&["-sS", "-6", "-o", "/dev/null", "-w", "%{http_code}", "http://web6.ipv6:5000/hello"])?;
            ensure!(status == want, "only {block}: {status}");
            Ok(())
        })?;
    }
    lab.weft(&["delete", "authorizationpolicy", "web", "-n", "ipv6"]).map(drop)
}

fn gateway(lab: &Lab) -> Result<()> {
    lab.apply_yaml_as_is("families/gateway.yaml")?;
    let both = r#"{"spec":{"ipFamilyPolicy":"PreferDualStack"}}"#;
    lab.weft(&["patch", "service", "istio-ingressgateway", "-n", "istio-system", "--type", "merge", "-p", both])?;
    let of_gateway = |lab: &Lab| -> Result<String> {
        let service = object(lab, "service", "istio-system", "istio-ingressgateway")?;
        let second = service["spec"]["clusterIPs"][1].as_str().context("the gateway has one address")?;
        ensure!(second.starts_with(SERVICES), "{second}");
        Ok(second.to_string())
    };
    let address = of_gateway(lab)?;
    let host = "Host: web.example.com";
    eventually(SOON, || {
        let said = browser::get(&lab.url("/hello"), &[("host", "web.example.com")])?;
        ensure!(said.body.contains("Hello version: v1"), "from the machine: {} {}", said.status, said.body);
        Ok(())
    })?;
    eventually(SOON, || {
        let line = format!("curl -sS -g -6 --max-time 10 -H '{host}' 'http://[{address}]/hello' 2>&1");
        let said = sh(lab, "legacy", &line)?;
        ensure!(said.contains("Hello version: v1"), "over IPv6: {said}");
        Ok(())
    })
}

fn outside(lab: &Lab) -> Result<()> {
    lab.wait_ready("", "outside", 4)?;
    registry_only(lab)?;
    let pod = object(lab, "pod", "outside", "www-google-com")?;
    let address = pod["status"]["podIPs"][1]["ip"].as_str().context("no address of IPv6")?.to_string();
    let by_address =
        format!("curl -g -sS -6 --max-time 10 -o /dev/null -w '%{{http_code}}' 'http://[{address}]/' 2>&1");
    eventually(SOON, || {
        let said = lab.sh(&by_address)?;
        ensure!(said.contains("502") || said.contains("curl:"), "REGISTRY_ONLY lets it out: {said}");
        Ok(())
    })?;
    lab.apply(&format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: by-address}}\nspec:\n  hosts: [six.example]\n  \
         addresses: [\"{address}\"]\n  ports: [{{number: 80, name: http, protocol: HTTP}}]\n  location: MESH_EXTERNAL\n  \
         resolution: STATIC\n  endpoints: [{{address: \"{address}\"}}]\n"
    ))?;
    eventually(SOON, || {
        let said = lab.sh(&format!("{by_address} -H 'Host: six.example'"))?;
        ensure!(said.contains("200"), "by its address: {said}");
        Ok(())
    })?;
    lab.apply(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: by-name}\nspec:\n  hosts: [www.google.com]\n  \
         ports: [{number: 80, name: http, protocol: HTTP}]\n  location: MESH_EXTERNAL\n  resolution: DNS\n",
    )?;
    for family in ["-6", "-4"] {
        eventually(SOON, || {
            let said = lab.curl(&["-sS", family, "http://www.google.com/"])?;
            ensure!(said.contains("Google"), "by its name, {family}: {said}");
            Ok(())
        })?;
    }
    Ok(())
}
