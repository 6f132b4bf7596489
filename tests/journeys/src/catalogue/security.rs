//! Journeys of zero trust: mutual TLS, tokens, authorization, external authorizers. Those of access control by address, trust
//! domains and dry runs are in [`policy`](super::policy).

use crate::browser::get;
use crate::journey::{Journey, Run};
use crate::lab::text;
use crate::{Lab, eventually, steadily};
use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use weft_tls::JwsSigner;

/// The journeys.
pub const JOURNEYS: &[Journey] = &[
    Journey {
        id: "2:J-AP",
        title: "authentication policy: modes of mutual TLS by scope; tokens at the gateway",
        proves: &[
            "2:AP-1", "2:AP-2", "2:AP-3", "2:AP-4", "2:AP-5", "2:AP-6", "2:AP-7", "2:AP-8", "2:AP-9", "2:AP-11",
            "2:AP-12", "2:AP-13", "2:AP-14", "2:AP-15", "2:AP-16", "2:AP-17", "2:AP-19",
        ],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: authentication,
    },
    Journey {
        id: "2:J-MM",
        title: "migration to mutual TLS, without a refused request of the mesh",
        proves: &["2:MM-1", "2:MM-2", "2:MM-3", "2:MM-4", "2:MM-7"],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: migration,
    },
    Journey {
        id: "2:J-AH",
        title: "authorization of HTTP: nothing, then one service after the other",
        proves: &["2:AH-1", "2:AH-2", "2:AH-3", "2:AH-4", "2:AH-5", "2:AH-6", "2:AH-7", "2:AH-8"],
        not_with_envoy: None,
        options: &[],
        run: authorization_http,
    },
    Journey {
        id: "2:J-AT",
        title: "authorization of TCP: by port, and what HTTP-only fields do there",
        proves: &["2:AT-1", "2:AT-2", "2:AT-3", "2:AT-4", "2:AT-5", "2:AT-6"],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: authorization_tcp,
    },
    Journey {
        id: "2:J-AJ",
        title: "authorization by token: principal and claims",
        proves: &["2:AJ-1", "2:AJ-2", "2:AJ-3", "2:AJ-6"],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: authorization_jwt,
    },
    Journey {
        id: "3:J1",
        title: "external authorization, by gRPC and by HTTP",
        proves: &[
            "3:EA-01", "3:EA-02", "3:EA-03", "3:EA-04", "3:EA-05", "3:EA-06", "3:EA-07", "3:EA-08", "3:EA-10",
            "3:EA-14", "3:EA-15", "3:EA-16", "3:EA-18", "3:EA-19",
        ],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: external,
    },
    Journey {
        id: "3:J2",
        title: "explicit deny",
        proves: &["3:ED-01", "3:ED-02", "3:ED-03", "3:ED-04", "3:ED-05", "3:ED-06", "3:ED-07", "3:ED-08"],
        not_with_envoy: None,
        options: &["--no-bookinfo"],
        run: explicit_deny,
    },
];

pub(super) const SOON: Duration = Duration::from_secs(60);
const ISSUER: &str = "testing@secure.istio.io";

/// A namespace, with sidecars or without.
pub(super) fn namespace(lab: &Lab, name: &str, sidecars: bool) -> Result<()> {
    let labels = if sidecars { json!({"istio-injection": "enabled"}) } else { json!({}) };
    lab.apply(
        &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}).to_string(),
    )
    .map(drop)
}

/// httpbin and sleep in a namespace; waits for them.
pub(super) fn callers(lab: &Lab, name: &str, sidecars: bool) -> Result<()> {
    namespace(lab, name, sidecars)?;
    for sample in ["httpbin/httpbin.yaml", "sleep/sleep.yaml"] {
        lab.apply_sample_in(sample, name)?;
    }
    lab.wait_deployments(name, &["httpbin", "sleep"])
}

/// Status of a request from the sleep pod of a namespace, and curl's exit code.
pub(super) fn call(lab: &Lab, from: &str, url: &str, more: &[&str]) -> Result<(String, i32)> {
    let argv = [&["curl", url, "-s", "-m", "15", "-o", "/dev/null", "-w", "%{http_code}"], more].concat();
    let out = lab.exec(from, "deploy/sleep", "sleep", &argv)?;
    Ok((text(&out.stdout).trim().to_string(), out.status.code().unwrap_or(-1)))
}

/// Waits until a request is answered so, on whichever connection.
pub(super) fn becomes(lab: &Lab, from: &str, url: &str, more: &[&str], want: &str) -> Result<()> {
    eventually(SOON, || steady_call(lab, from, url, more, want, 0))
}

/// A request that is answered so, and ends with that exit code, [`IN_A_ROW`](crate::IN_A_ROW) times in a row.
fn steady_call(lab: &Lab, from: &str, url: &str, more: &[&str], want: &str, exit: i32) -> Result<()> {
    let got = lab.curls(from, more, url)?;
    let good = got.iter().all(|answer| answer.0 == want && answer.1 == exit);
    ensure!(good, "{url} {more:?} from {from}: {got:?}, want {want}, exit {exit}");
    Ok(())
}

/// Waits until, of all calls between the namespaces, just these are refused.
fn only_refused(lab: &Lab, from: &[&str], to: &[&str], refused: &[&str]) -> Result<()> {
    eventually(SOON, || {
        for caller in from {
            for target in to {
                let is_refused = refused.contains(&format!("{caller}->{target}").as_str());
                let (code, exit) = if is_refused { ("000", 56) } else { ("200", 0) };
                steady_call(lab, caller, &format!("http://httpbin.{target}:8000/ip"), &[], code, exit)?;
            }
        }
        Ok(())
    })
}

fn object(kind: &str, namespace: &str, name: &str, spec: &Value) -> String {
    let group = if kind == "DestinationRule" { "networking.istio.io/v1" } else { "security.istio.io/v1" };
    json!({"apiVersion": group, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
        .to_string()
}

fn peers(namespace: &str, name: &str, spec: Value) -> String {
    object("PeerAuthentication", namespace, name, &spec)
}

pub(super) fn policy(namespace: &str, name: &str, spec: Value) -> String {
    object("AuthorizationPolicy", namespace, name, &spec)
}

fn delete(lab: &Lab, kind: &str, namespace: &str, name: &str) -> Result<()> {
    lab.weft(&["delete", kind, name, "-n", namespace]).map(drop)
}

/// An issuer of tokens: its key set, and tokens.
struct Issuer(JwsSigner);

impl Issuer {
    fn new() -> Result<Self> {
        Ok(Self(JwsSigner::generate()?))
    }

    fn keys(&self) -> String {
        let (x, y) = self.0.point();
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        json!({"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "k1", "x": x, "y": y}]})
            .to_string()
    }

    /// A token that ends so many seconds from now, with more claims.
    fn token(&self, seconds: i64, more: &Value) -> Result<String> {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
        let mut claims = json!({"iss": ISSUER, "sub": ISSUER, "iat": now, "exp": now + seconds});
        for (name, value) in more.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "k1", "typ": "JWT"})), part(&claims));
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(self.0.sign(text.as_bytes())?)))
    }

    /// Serves the key set from an httpbin without sidecar in namespace `keys`; its URL.
    fn serve(&self, lab: &Lab) -> Result<String> {
        namespace(lab, "keys", false)?;
        lab.apply_sample_in("httpbin/httpbin.yaml", "keys")?;
        lab.wait_deployments("keys", &["httpbin"])?;
        Ok(format!("http://httpbin.keys.svc.cluster.local:8000/base64/{}", URL_SAFE_NO_PAD.encode(self.keys())))
    }
}

fn authentication(run: &mut Run) -> Result<()> {
    const ALL: &[&str] = &["foo", "bar", "legacy"];
    for name in ALL {
        callers(&run.lab, name, *name != "legacy")?;
    }
    run.check(&["2:AP-1", "2:AP-4"], "without policies all nine calls are answered", |lab| {
        let out = lab.try_weft(&["get", "peerauthentication", "--all-namespaces"])?;
        let said = text(&out.stdout) + &text(&out.stderr);
        ensure!(said.contains("No resources found"), "{said}");
        only_refused(lab, ALL, ALL, &[])
    });
    run.check(&["2:AP-2", "2:AP-3"], "mutual TLS where both sides have it, and who called is told", |lab| {
        eventually(SOON, || {
            let told = lab.curl_in("foo", &["-s", "http://httpbin.foo:8000/headers"])?;
            let parts =
                ["By=spiffe://cluster.local/ns/foo/sa/httpbin;Hash=", ";URI=spiffe://cluster.local/ns/foo/sa/sleep"];
            ensure!(parts.iter().all(|part| told.contains(part)), "{told}");
            let told = lab.curl_in("foo", &["-s", "http://httpbin.legacy:8000/headers"])?;
            ensure!(told.contains("\"Host\"") && !told.contains("X-Forwarded-Client-Cert"), "{told}");
            Ok(())
        })
    });
    let strict = json!({"mtls": {"mode": "STRICT"}});
    run.check(&["2:AP-5"], "STRICT for the mesh", |lab| {
        lab.apply(&peers("istio-system", "default", strict.clone()))?;
        only_refused(lab, ALL, ALL, &["legacy->foo", "legacy->bar"])
    });
    run.check(&["2:AP-6"], "STRICT for one namespace", |lab| {
        delete(lab, "peerauthentication", "istio-system", "default")?;
        lab.apply(&peers("foo", "default", strict.clone()))?;
        only_refused(lab, ALL, ALL, &["legacy->foo"])
    });
    let workload = json!({"matchLabels": {"app": "httpbin"}});
    let rule = |namespace: &str, name: &str, tls: Value| {
        let host = format!("httpbin.{namespace}.svc.cluster.local");
        object("DestinationRule", namespace, name, &json!({"host": host, "trafficPolicy": tls}))
    };
    run.check(&["2:AP-7", "2:AP-8"], "STRICT for one workload", |lab| {
        lab.apply(&peers("bar", "httpbin", json!({"selector": workload, "mtls": {"mode": "STRICT"}})))?;
        lab.apply(&rule("bar", "httpbin", json!({"tls": {"mode": "ISTIO_MUTUAL"}})))?;
        only_refused(lab, ALL, ALL, &["legacy->foo", "legacy->bar"])
    });
    run.check(&["2:AP-9"], "one port of the workload without mutual TLS", |lab| {
        let by_port =
            json!({"selector": workload, "mtls": {"mode": "STRICT"}, "portLevelMtls": {"80": {"mode": "DISABLE"}}});
        lab.apply(&peers("bar", "httpbin", by_port))?;
        let plain = json!([{"port": {"number": 8000}, "tls": {"mode": "DISABLE"}}]);
        lab.apply(&rule("bar", "httpbin", json!({"tls": {"mode": "ISTIO_MUTUAL"}, "portLevelSettings": plain})))?;
        only_refused(lab, ALL, ALL, &["legacy->foo"])
    });
    run.check(&["2:AP-11"], "the workload's policy comes before its namespace's", |lab| {
        lab.apply(&peers("foo", "overwrite-example", json!({"selector": workload, "mtls": {"mode": "DISABLE"}})))?;
        lab.apply(&rule("foo", "overwrite-example", json!({"tls": {"mode": "DISABLE"}})))?;
        only_refused(lab, ALL, ALL, &[])
    });
    for (kind, namespace, name) in [
        ("peerauthentication", "foo", "default"),
        ("peerauthentication", "foo", "overwrite-example"),
        ("peerauthentication", "bar", "httpbin"),
        ("destinationrule", "foo", "overwrite-example"),
        ("destinationrule", "bar", "httpbin"),
    ] {
        delete(&run.lab, kind, namespace, name)?;
    }
    end_users(run)
}

/// Status of a request through the gateway.
pub(super) fn at_gateway(lab: &Lab, path: &str, token: Option<&str>, want: u16) -> Result<()> {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer.as_deref().map(|value| ("authorization", value)).into_iter().collect();
    steadily(SOON, || {
        let got = get(&lab.url(path), &headers)?;
        ensure!(got.status == want, "{path} with {token:?}: {} {}, want {want}", got.status, got.body);
        Ok(())
    })
}

pub(super) fn through_gateway(lab: &Lab) -> Result<()> {
    lab.apply_yaml("security/httpbin-gateway.yaml", "foo").map(drop)
}

fn end_users(run: &mut Run) -> Result<()> {
    let issuer = Issuer::new()?;
    let uri = issuer.serve(&run.lab)?;
    run.check(&["2:AP-19"], "a gateway and a route to everything", |lab| {
        through_gateway(lab)?;
        at_gateway(lab, "/headers", None, 200)
    });
    run.check(&["2:AP-12", "2:AP-13", "2:AP-14"], "tokens that are there must be valid", |lab| {
        let selector = json!({"matchLabels": {"istio": "ingressgateway"}});
        let spec = json!({"selector": selector, "jwtRules": [{"issuer": ISSUER, "jwksUri": uri}]});
        lab.apply(&object("RequestAuthentication", "istio-system", "jwt-example", &spec))?;
        at_gateway(lab, "/headers", Some("deadbeef"), 401)?;
        at_gateway(lab, "/headers", Some(&issuer.token(3600, &json!({}))?), 200)?;
        at_gateway(lab, "/headers", None, 200)
    });
    run.check(&["2:AP-15"], "a token is good for 60 s after its end, and no longer", |lab| {
        // Each look with a token of its own, so that a slow machine does not outlive it.
        let fresh = eventually(SOON, || {
            let token = issuer.token(-55, &json!({}))?;
            let bearer = format!("Bearer {token}");
            let got = get(&lab.url("/headers"), &[("authorization", &bearer)])?;
            ensure!(got.status == 200, "55 s after its end: {} {}", got.status, got.body);
            Ok(token)
        })?;
        at_gateway(lab, "/headers", Some(&issuer.token(-62, &json!({}))?), 401)?;
        at_gateway(lab, "/headers", Some(&fresh), 401)
    });
    let deny = |to: Value| {
        let mut rule = json!({"from": [{"source": {"notRequestPrincipals": ["*"]}}]});
        if !to.is_null() {
            rule["to"] = to;
        }
        let spec = json!({"selector": {"matchLabels": {"istio": "ingressgateway"}}, "action": "DENY", "rules": [rule]});
        policy("istio-system", "frontend-ingress", spec)
    };
    run.check(&["2:AP-16"], "a token is required", |lab| {
        lab.apply(&deny(Value::Null))?;
        at_gateway(lab, "/headers", None, 403)?;
        at_gateway(lab, "/headers", Some(&issuer.token(60, &json!({}))?), 200)
    });
    run.check(&["2:AP-17"], "a token is required for one path", |lab| {
        lab.apply(&deny(json!([{"operation": {"paths": ["/headers"]}}])))?;
        at_gateway(lab, "/ip", None, 200)?;
        at_gateway(lab, "/headers", None, 403)
    });
    Ok(())
}

/// What tcpdump shows beside httpbin in `foo` while a client of a namespace calls it.
fn on_the_wire(lab: &Lab, client: &str) -> Result<String> {
    let dump = ["tcpdump", "-Z", "root", "-i", "eth0", "-l", "-A", "-c", "8", "dst port 80"];
    let home = lab.home().to_path_buf();
    std::thread::scope(|scope| {
        let dump = scope.spawn(move || {
            let exec = ["exec", "deploy/httpbin", "-n", "foo", "-c", "istio-proxy", "--", "timeout", "20"];
            crate::lab::weft(&home, &[&exec[..], &dump].concat()).output()
        });
        // Calls until it has seen enough.
        while !dump.is_finished() {
            lab.curl_in(client, &["-sS", "-o", "/dev/null", "http://httpbin.foo:8000/anything/on-the-wire"])?;
        }
        let seen = dump.join().map_err(|_| anyhow::anyhow!("tcpdump's thread panicked"))??;
        Ok(text(&seen.stdout) + &text(&seen.stderr))
    })
}

fn migration(run: &mut Run) -> Result<()> {
    const FROM: &[&str] = &["foo", "bar", "legacy"];
    const TO: &[&str] = &["foo", "bar"];
    for name in TO {
        callers(&run.lab, name, true)?;
    }
    namespace(&run.lab, "legacy", false)?;
    run.lab.apply_sample_in("sleep/sleep.yaml", "legacy")?;
    run.lab.wait_deployments("legacy", &["sleep"])?;
    run.check(&["2:MM-1"], "plain text and mutual TLS on one port", |lab| only_refused(lab, FROM, TO, &[]));
    run.check(
        &["2:MM-4"],
        "on the wire: text from where there is no sidecar, ciphers from where there is one",
        |lab| {
            // What another one's connection says last may be among the packets: seen anew.
            eventually(SOON, || {
                let seen = on_the_wire(lab, "legacy")?;
                ensure!(seen.contains("GET /anything/on-the-wire"), "no text of legacy's: {seen}");
                Ok(())
            })?;
            eventually(SOON, || {
                let seen = on_the_wire(lab, "bar")?;
                ensure!(!seen.contains("on-the-wire") && seen.contains("length"), "of bar: {seen}");
                Ok(())
            })
        },
    );
    let strict = || json!({"mtls": {"mode": "STRICT"}});
    // While modes change, a client of the mesh calls without pause; none of its calls may be refused.
    let (stop, made, lost) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let lab = &run.lab;
    let home = lab.home().to_path_buf();
    let (namespace, mesh, back) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let argv =
                ["exec", "deploy/sleep", "-n", "bar", "-c", "sleep", "--", "curl", "-s", "-m", "15", "-o", "/dev/null"];
            while !stop.load(Ordering::Relaxed) {
                let asked = ["-w", "%{http_code}", "http://httpbin.foo:8000/ip"];
                let outcome = crate::lab::weft(&home, &[&argv[..], &asked].concat()).output();
                made.fetch_add(1, Ordering::Relaxed);
                if !outcome.is_ok_and(|out| text(&out.stdout) == "200") {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let namespace =
            lab.apply(&peers("foo", "default", strict())).and_then(|_| only_refused(lab, FROM, TO, &["legacy->foo"]));
        let mesh = lab
            .apply(&peers("istio-system", "default", strict()))
            .and_then(|_| only_refused(lab, FROM, TO, &["legacy->foo", "legacy->bar"]));
        let back = delete(lab, "peerauthentication", "istio-system", "default")
            .and_then(|()| delete(lab, "peerauthentication", "foo", "default"))
            .and_then(|()| only_refused(lab, FROM, TO, &[]));
        // A few more where all of that was quick.
        let _ = eventually(SOON, || {
            ensure!(made.load(Ordering::Relaxed) >= 10, "too few calls");
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        (namespace, mesh, back)
    });
    back?;
    run.check(&["2:MM-2"], "one namespace is locked", |_| namespace);
    run.check(&["2:MM-3"], "the mesh is locked", |_| mesh);
    let (made, lost) = (made.into_inner(), lost.into_inner());
    run.note(&format!("{made} calls between sidecars while modes changed, {lost} lost"));
    run.check(&["2:MM-7"], "no call between sidecars is lost while modes change", |_| {
        ensure!(made >= 10 && lost == 0, "{lost} of {made} calls were lost");
        Ok(())
    });
    Ok(())
}

/// Waits until the product page holds and lacks these texts.
fn page(lab: &Lab, holds: &[&str], lacks: &[&str]) -> Result<()> {
    eventually(Duration::from_secs(90), || {
        let body = get(&lab.url("/productpage"), &[])?.body;
        for part in holds {
            ensure!(body.contains(part), "the page does not say {part:?}");
        }
        for part in lacks {
            ensure!(!body.contains(part), "the page says {part:?}");
        }
        Ok(())
    })
}

/// `POST /login` of the product page, from the ratings pod: status, and curl's exit code.
fn post_login(lab: &Lab) -> Result<(String, i32)> {
    let url = "http://productpage:9080/login";
    let form = ["-d", "username=jason&passwd=", "-s", "-m", "15", "-o", "/dev/null", "-w", "%{http_code}"];
    let out = lab.exec("default", "deploy/ratings-v1", "ratings", &[&["curl", url][..], &form].concat())?;
    Ok((text(&out.stdout).trim().to_string(), out.status.code().unwrap_or(-1)))
}

fn authorization_http(run: &mut Run) -> Result<()> {
    const DETAILS: &str = "Error fetching product details";
    const REVIEWS: &str = "Error fetching product reviews";
    const RATINGS: &str = "Ratings service is currently unavailable";
    let viewer = |app: &str, from: &str| {
        let mut rule = json!({"to": [{"operation": {"methods": ["GET"]}}]});
        if !from.is_empty() {
            rule["from"] = json!([{"source": {"principals": [format!("cluster.local/ns/default/sa/{from}")]}}]);
        }
        let spec = json!({"selector": {"matchLabels": {"app": app}}, "action": "ALLOW", "rules": [rule]});
        policy("default", &format!("{app}-viewer"), spec)
    };
    run.check(&["2:AH-1", "2:AH-2"], "a policy without rules and action allows nothing", |lab| {
        page(lab, &["Book Details"], &[DETAILS, REVIEWS])?;
        lab.apply(&policy("default", "allow-nothing", json!({})))?;
        // One answer: a proxy's workers do not follow a change at the same moment.
        steadily(Duration::from_secs(90), || {
            let got = get(&lab.url("/productpage"), &[])?;
            ensure!(got.status == 403 && got.body.contains("RBAC: access denied"), "{} {}", got.status, got.body);
            Ok(())
        })
    });
    run.check(&["2:AH-3"], "GET of the product page by anybody", |lab| {
        lab.apply(&viewer("productpage", ""))?;
        page(lab, &[DETAILS, REVIEWS], &["RBAC: access denied"])?;
        steadily(SOON, || {
            let (code, _) = post_login(lab)?;
            ensure!(code == "403", "POST: {code}");
            Ok(())
        })
    });
    run.check(&["2:AH-4", "2:AH-6"], "details and reviews for the product page", |lab| {
        lab.apply(&viewer("details", "bookinfo-productpage"))?;
        page(lab, &[REVIEWS], &[DETAILS])?;
        lab.apply(&viewer("reviews", "bookinfo-productpage"))?;
        page(lab, &[RATINGS], &[DETAILS, REVIEWS])
    });
    run.check(&["2:AH-5", "2:AH-7"], "ratings for reviews: the whole page", |lab| {
        lab.apply(&viewer("ratings", "bookinfo-reviews"))?;
        eventually(Duration::from_secs(90), || {
            let pages: Result<Vec<String>> = (0..30).map(|_| Ok(get(&lab.url("/productpage"), &[])?.body)).collect();
            let pages = pages?;
            ensure!(pages.iter().all(|p| !p.contains(RATINGS) && !p.contains(REVIEWS)), "an error is left");
            ensure!(pages.iter().any(|p| p.contains("color:red") || p.contains("color=\"red\"")), "no red stars");
            Ok(())
        })
    });
    run.check(&["2:AH-8"], "the five are deleted by full name", |lab| {
        for name in ["allow-nothing", "productpage-viewer", "details-viewer", "reviews-viewer", "ratings-viewer"] {
            lab.weft(&["delete", &format!("authorizationpolicy.security.istio.io/{name}")])?;
        }
        // The five let nobody POST; without them a POST reaches the application.
        eventually(SOON, || {
            let (code, _) = post_login(lab)?;
            ensure!(code == "302", "POST /login answered {code}");
            Ok(())
        })?;
        page(lab, &["Book Details"], &[DETAILS, REVIEWS])
    });
    Ok(())
}

fn authorization_tcp(run: &mut Run) -> Result<()> {
    namespace(&run.lab, "foo", true)?;
    run.lab.apply_sample_in("tcp-echo/tcp-echo.yaml", "foo")?;
    run.lab.apply_sample_in("sleep/sleep.yaml", "foo")?;
    run.lab.wait_deployments("foo", &["tcp-echo", "sleep"])?;
    let pods = run.lab.objects("pods", &["-n", "foo", "-l", "app=tcp-echo"])?;
    let ip = pods.first().and_then(|p| p["status"]["podIP"].as_str()).context("no address")?.to_string();
    let probe = |lab: &Lab, port: u16, want: &str| -> Result<()> {
        let host = if port == 9002 { ip.as_str() } else { "tcp-echo" };
        let shell = format!(
            // `-N`: the end of what is said ends the connection, so that nobody waits for it.
            "echo \"port {port}\" | nc -N -w 15 {host} {port} | grep \"hello\" && echo 'connection succeeded' || echo 'connection rejected'"
        );
        eventually(SOON, || {
            let said = text(&lab.exec("foo", "deploy/sleep", "sleep", &["sh", "-c", &shell])?.stdout);
            ensure!(said.contains(want), "port {port}: {said:?}, want {want}");
            let greeted = said.contains(&format!("hello port {port}"));
            ensure!(greeted == (want == "connection succeeded"), "port {port}: {said:?}");
            Ok(())
        })
    };
    let (yes, no) = ("connection succeeded", "connection rejected");
    let apply = |lab: &Lab, action: &str, operation: Value| {
        let spec = json!({"selector": {"matchLabels": {"app": "tcp-echo"}}, "action": action, "rules": [{"to": [{"operation": operation}]}]});
        lab.apply(&policy("foo", "tcp-policy", spec))
    };
    run.check(&["2:AT-6"], "without policies all ports are open, 9002 too", |lab| {
        [9000, 9001, 9002].into_iter().try_for_each(|port| probe(lab, port, yes))
    });
    run.check(&["2:AT-1", "2:AT-2", "2:AT-5"], "two ports are allowed", |lab| {
        apply(lab, "ALLOW", json!({"ports": ["9000", "9001"]}))?;
        probe(lab, 9002, no)?;
        probe(lab, 9000, yes)?;
        probe(lab, 9001, yes)
    });
    run.check(&["2:AT-3"], "an ALLOW rule with a method allows nothing", |lab| {
        apply(lab, "ALLOW", json!({"methods": ["GET"], "ports": ["9000"]}))?;
        probe(lab, 9000, no)?;
        probe(lab, 9001, no)
    });
    run.check(&["2:AT-4"], "a DENY rule with a method denies its port", |lab| {
        apply(lab, "DENY", json!({"methods": ["GET"], "ports": ["9000"]}))?;
        probe(lab, 9001, yes)?;
        probe(lab, 9000, no)
    });
    Ok(())
}

fn authorization_jwt(run: &mut Run) -> Result<()> {
    callers(&run.lab, "foo", true)?;
    let issuer = Issuer::new()?;
    let uri = issuer.serve(&run.lab)?;
    let url = "http://httpbin.foo:8000/headers";
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    let (demo, grouped) = (
        issuer.token(3600, &json!({"foo": "bar"}))?,
        issuer.token(3600, &json!({"groups": ["group1", "group2"], "scope": ["scope1", "scope2"]}))?,
    );
    let selector = json!({"matchLabels": {"app": "httpbin"}});
    run.check(&["2:AJ-1"], "a bad token is refused, none is not", |lab| {
        let spec = json!({"selector": selector, "jwtRules": [{"issuer": ISSUER, "jwksUri": uri}]});
        lab.apply(&object("RequestAuthentication", "foo", "jwt-example", &spec))?;
        becomes(lab, "foo", url, &["-H", "Authorization: Bearer invalidToken"], "401")?;
        becomes(lab, "foo", url, &[], "200")
    });
    let require = |when: Value| {
        let mut rule = json!({"from": [{"source": {"requestPrincipals": [format!("{ISSUER}/{ISSUER}")]}}]});
        if !when.is_null() {
            rule["when"] = when;
        }
        policy("foo", "require-jwt", json!({"selector": selector, "action": "ALLOW", "rules": [rule]}))
    };
    run.check(&["2:AJ-2"], "a token of the issuer is required", |lab| {
        lab.apply(&require(Value::Null))?;
        becomes(lab, "foo", url, &[], "403")?;
        becomes(lab, "foo", url, &["-H", &bearer(&demo)], "200")
    });
    run.check(&["2:AJ-3", "2:AJ-6"], "a group is required besides", |lab| {
        lab.apply(&require(json!([{"key": "request.auth.claims[groups]", "values": ["group1"]}])))?;
        becomes(lab, "foo", url, &["-H", &bearer(&demo)], "403")?;
        becomes(lab, "foo", url, &["-H", &bearer(&grouped)], "200")
    });
    Ok(())
}

fn external(run: &mut Run) -> Result<()> {
    const DENIED: &str = "denied by ext_authz for not found header `x-ext-authz: allow` in the request";
    callers(&run.lab, "foo", true)?;
    run.lab.apply_sample_in("extauthz/ext-authz.yaml", "foo")?;
    run.lab.wait_deployments("foo", &["ext-authz"])?;
    run.lab.change_mesh(&json!({"extensionProviders": [
        {"name": "sample-ext-authz-grpc", "envoyExtAuthzGrpc": {"service": "ext-authz.foo.svc.cluster.local", "port": "9000"}},
        {"name": "sample-ext-authz-http", "envoyExtAuthzHttp": {"service": "ext-authz.foo.svc.cluster.local", "port": "8000",
            "includeHeadersInCheck": ["x-ext-authz"], "headersToUpstreamOnAllow": ["x-ext-authz-check-result"],
            "headersToDownstreamOnDeny": ["x-ext-authz-check-result"]}},
        {"name": "nobody-there", "envoyExtAuthzHttp": {"service": "nobody.foo.svc.cluster.local", "port": "8000", "statusOnError": "503"}},
        {"name": "nobody-needed", "envoyExtAuthzHttp": {"service": "nobody.foo.svc.cluster.local", "port": "8000", "failOpen": true}},
        {"name": "by-entry", "envoyExtAuthzGrpc": {"service": "external-authz-grpc.local", "port": "9191"}},
    ]}))?;
    run.check(
        &["3:EA-08", "3:EA-19"],
        "the authorizer says where it listens; ports of providers may be quoted",
        |lab| {
            eventually(SOON, || {
                let logs = lab.logs("foo", "deploy/ext-authz", "ext-authz")?;
                for line in ["Starting HTTP server at [::]:8000", "Starting gRPC server at [::]:9000"] {
                    ensure!(logs.contains(line), "{logs}");
                }
                Ok(())
            })
        },
    );
    let custom = |provider: &str| {
        let rules = json!([{"to": [{"operation": {"paths": ["/headers"]}}]}]);
        let spec = json!({"selector": {"matchLabels": {"app": "httpbin"}}, "action": "CUSTOM", "provider": {"name": provider}, "rules": rules});
        policy("foo", "ext-authz", spec)
    };
    let url = "http://httpbin.foo:8000/headers";
    run.check(&["3:EA-02"], "an unknown provider denies what its rules match, and says so", |lab| {
        lab.apply(&custom("nobody"))?;
        becomes(lab, "foo", url, &["-H", "x-ext-authz: allow"], "403")?;
        becomes(lab, "foo", "http://httpbin.foo:8000/ip", &[], "200")?;
        eventually(SOON, || {
            let told = lab.weft(&["get", "authorizationpolicy", "ext-authz", "-n", "foo", "-o", "yaml"])?;
            ensure!(told.contains("is no external authorizer"), "{told}");
            Ok(())
        })
    });
    for (provider, id, log) in
        [("sample-ext-authz-grpc", "3:EA-04", "[gRPCv3]"), ("sample-ext-authz-http", "3:EA-05", "[HTTP]")]
    {
        run.check(&["3:EA-01", "3:EA-03", id], &format!("{provider} decides about /headers"), |lab| {
            lab.apply(&custom(provider))?;
            // Both providers refuse in the same words: the new one decides when its own server says so.
            eventually(SOON, || {
                let body = lab.curl_in("foo", &["-s", url, "-H", "x-ext-authz: deny"])?;
                ensure!(body == DENIED, "{body:?}");
                let denied = |line: &str| line.starts_with(log) && line.contains("[denied]");
                ensure!(lab.logs("foo", "deploy/ext-authz", "ext-authz")?.lines().any(denied), "no {log}[denied]");
                Ok(())
            })?;
            becomes(lab, "foo", url, &["-H", "x-ext-authz: deny"], "403")?;
            becomes(lab, "foo", "http://httpbin.foo:8000/ip", &[], "200")?;
            // A connection that is open still asks the provider before, for as long as Envoy drains it: another try may come
            // by a new one.
            eventually(SOON, || {
                let told = lab.curl_in("foo", &["-s", url, "-H", "x-ext-authz: allow"])?;
                ensure!(told.contains("X-Ext-Authz-Check-Result") && told.contains("allowed"), "{told}");
                ensure!(told.contains("URI=spiffe://cluster.local/ns/foo/sa/sleep"), "{told}");
                let logs = lab.logs("foo", "deploy/ext-authz", "ext-authz")?;
                let lines: Vec<&str> = logs.lines().filter(|line| line.starts_with(log)).collect();
                ensure!(lines.iter().any(|l| l.contains("[allowed]")), "{logs}");
                ensure!(lines.iter().all(|l| l.contains("/headers") && !l.contains("8000/ip")), "{logs}");
                Ok(())
            })
        });
    }
    run.check(
        &["3:EA-06"],
        "listed headers of the authorizer reach the client that is refused, and no others",
        |lab| {
            eventually(SOON, || {
                let args = ["-s", "-D", "-", "-o", "/dev/null", url, "-H", "x-ext-authz: deny"];
                let told = lab.curl_in("foo", &args)?.to_lowercase();
                ensure!(told.contains("x-ext-authz-check-result: denied"), "{told}");
                ensure!(!told.contains("x-ext-authz-check-received"), "{told}");
                Ok(())
            })
        },
    );
    run.check(
        &["3:EA-14", "3:EA-15", "3:EA-18"],
        "what the authorizer is told of caller, destination and request",
        |lab| {
            let logs = lab.logs("foo", "deploy/ext-authz", "ext-authz")?;
            let asked =
                logs.lines().find(|line| line.starts_with("[gRPCv3][allowed]: httpbin.foo:8000/headers, attributes: "));
            let asked = asked.with_context(|| format!("no such line: {logs}"))?;
            for part in [
                "principal: \"spiffe://cluster.local/ns/foo/sa/sleep\"",
                "principal: \"spiffe://cluster.local/ns/foo/sa/httpbin\"",
                "PortValue(80)",
                "method: \"GET\"",
                "path: \"/headers\"",
                "host: \"httpbin.foo:8000\"",
                "protocol: \"HTTP/1.1\"",
                "\":authority\"",
                "\"x-request-id\"",
                "\"x-forwarded-proto\": \"http\"",
                "By=spiffe://cluster.local/ns/foo/sa/httpbin;Hash=",
                "URI=spiffe://cluster.local/ns/foo/sa/sleep",
            ] {
                ensure!(asked.contains(part), "no {part} in {asked}");
            }
            let hash =
                asked.split_once(";Hash=").and_then(|(_, rest)| rest.split_once(';')).map_or("", |(hash, _)| hash);
            ensure!(hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{hash}");
            Ok(())
        },
    );
    run.check(&["3:EA-07"], "an authorizer that does not answer: the status that is set, or open where that is asked for", |lab| {
        lab.apply("{apiVersion: v1, kind: Service, metadata: {name: nobody, namespace: foo}, spec: {selector: {app: nobody}, ports: [{name: http, port: 8000}]}}")?;
        lab.apply(&custom("nobody-there"))?;
        becomes(lab, "foo", url, &["-H", "x-ext-authz: allow"], "503")?;
        lab.apply(&custom("nobody-needed"))?;
        becomes(lab, "foo", url, &["-H", "x-ext-authz: deny"], "200")
    });
    run.check(&["3:EA-10"], "an authorizer beside the application, by a ServiceEntry", |lab| {
        lab.apply("{apiVersion: networking.istio.io/v1alpha3, kind: ServiceEntry, metadata: {name: authz-beside, namespace: foo}, \
                   spec: {hosts: [external-authz-grpc.local], endpoints: [{address: 127.0.0.1}], resolution: STATIC, \
                   ports: [{name: grpc, number: 9191, protocol: GRPC}]}}")?;
        let beside = json!({"name": "ext-authz", "image": "gcr.io/istio-testing/ext-authz:latest",
            "args": ["--http-port", "9190", "--grpc-port", "9191"]});
        let patch = json!({"spec": {"template": {"spec": {"containers": [beside]}}}}).to_string();
        lab.weft(&["patch", "deployment", "httpbin", "-n", "foo", "-p", &patch])?;
        lab.wait_deployments("foo", &["httpbin"])?;
        lab.apply(&custom("by-entry"))?;
        becomes(lab, "foo", url, &["-H", "x-ext-authz: allow"], "200")?;
        becomes(lab, "foo", url, &["-H", "x-ext-authz: deny"], "403")?;
        eventually(SOON, || {
            let logs = lab.logs("foo", "deploy/httpbin", "ext-authz")?;
            ensure!(logs.contains("[gRPCv3][denied]: httpbin.foo:8000/headers"), "{logs}");
            Ok(())
        })
    });
    run.check(&["3:EA-16"], "the authorizer is guarded by a policy of its own", |lab| {
        lab.apply(&custom("sample-ext-authz-grpc"))?;
        becomes(lab, "foo", url, &["-H", "x-ext-authz: allow"], "200")?;
        let of = |account: &str| {
            let from = json!([{"source": {"principals": [format!("cluster.local/ns/foo/sa/{account}")]}}]);
            policy(
                "foo",
                "authz-of-authz",
                json!({"selector": {"matchLabels": {"app": "ext-authz"}}, "rules": [{"from": from}]}),
            )
        };
        lab.apply(&of("somebody"))?;
        becomes(lab, "foo", url, &["-H", "x-ext-authz: allow"], "403")?;
        lab.apply(&of("httpbin"))?;
        becomes(lab, "foo", url, &["-H", "x-ext-authz: allow"], "200")
    });
    Ok(())
}

fn explicit_deny(run: &mut Run) -> Result<()> {
    callers(&run.lab, "foo", true)?;
    let selector = json!({"matchLabels": {"app": "httpbin"}});
    let deny = |when: Value| {
        let mut rule = json!({"to": [{"operation": {"methods": ["GET"]}}]});
        if !when.is_null() {
            rule["when"] = when;
        }
        policy("foo", "deny-method-get", json!({"selector": selector, "action": "DENY", "rules": [rule]}))
    };
    let at = |path: &str| format!("http://httpbin.foo:8000{path}");
    let (admin, guest) = (["-H", "x-token: admin"], ["-H", "x-token: guest"]);
    run.check(&["3:ED-01", "3:ED-08"], "GET is denied, POST is not", |lab| {
        lab.apply(&deny(Value::Null))?;
        becomes(lab, "foo", &at("/get"), &[], "403")?;
        becomes(lab, "foo", &at("/post"), &["-X", "POST"], "200")
    });
    run.check(&["3:ED-03", "3:ED-04", "3:ED-05"], "only GETs without the administrator's token", |lab| {
        lab.apply(&deny(json!([{"key": "request.headers[x-token]", "notValues": ["admin"]}])))?;
        becomes(lab, "foo", &at("/get"), &admin, "200")?;
        becomes(lab, "foo", &at("/get"), &guest, "403")?;
        becomes(lab, "foo", &at("/get"), &[], "403")
    });
    run.check(&["3:ED-02", "3:ED-06", "3:ED-07"], "what is denied stays so whatever is allowed", |lab| {
        let rules = json!([{"to": [{"operation": {"paths": ["/ip"]}}]}]);
        lab.apply(&policy("foo", "allow-path-ip", json!({"selector": selector, "action": "ALLOW", "rules": rules})))?;
        becomes(lab, "foo", &at("/get"), &admin, "403")?;
        becomes(lab, "foo", &at("/ip"), &guest, "403")?;
        becomes(lab, "foo", &at("/ip"), &admin, "200")?;
        becomes(lab, "foo", &at("/post"), &["-X", "POST"], "403")
    });
    Ok(())
}
