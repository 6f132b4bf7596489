//! Journeys on Bookinfo: request routing, fault injection, traffic shifting, request timeouts.

use crate::browser::{Stars, get, login, stars};
use crate::journey::{Journey, Run};
use crate::{Lab, eventually, steadily};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The journeys.
pub const JOURNEYS: &[Journey] = &[
    Journey {
        id: "1:J-RR",
        title: "request routing: by version, by user",
        proves: &["1:T-RR-01", "1:T-RR-02", "1:T-RR-03", "1:T-RR-04", "1:T-RR-05", "1:T-RR-06"],
        not_with_envoy: None,
        options: &[],
        run: request_routing,
    },
    Journey {
        id: "1:J-FI",
        title: "fault injection: delay and abort for one user",
        proves: &["1:T-FI-01", "1:T-FI-02", "1:T-FI-03", "1:T-FI-04", "1:T-FI-05"],
        not_with_envoy: None,
        options: &[],
        run: fault_injection,
    },
    Journey {
        id: "1:J-TS",
        title: "traffic shifting by weight",
        proves: &["1:T-TS-01", "1:T-TS-02", "1:T-TS-03"],
        not_with_envoy: None,
        options: &[],
        run: traffic_shifting,
    },
    Journey {
        id: "1:J-TO",
        title: "request timeouts",
        proves: &["1:T-TO-01", "1:T-TO-02", "1:T-TO-03", "1:T-TO-04", "1:T-TO-05"],
        not_with_envoy: None,
        options: &[],
        run: timeouts,
    },
];

const SOON: Duration = Duration::from_secs(60);
const NO_REVIEWS: &str = "Sorry, product reviews are currently unavailable for this book.";
const NO_RATINGS: &str = "Ratings service is currently unavailable";

/// How often each version answered.
fn count(lab: &Lab, requests: u32) -> Result<BTreeMap<Stars, u32>> {
    let mut seen = BTreeMap::new();
    for _ in 0..requests {
        *seen.entry(stars(&lab.url(""), None)?).or_default() += 1;
    }
    Ok(seen)
}

/// Waits until thirty pages in a row show `want`: where two versions took turns before, one in 10⁹ rows is of one by chance.
fn settles_on(lab: &Lab, want: Stars, cookie: Option<&str>) -> Result<()> {
    eventually(SOON, || {
        for _ in 0..30 {
            let seen = stars(&lab.url(""), cookie)?;
            ensure!(seen == want, "saw {seen:?}, want {want:?}");
        }
        Ok(())
    })
}

fn all_three(lab: &Lab) -> Result<()> {
    eventually(SOON, || {
        let seen = count(lab, 30)?;
        ensure!(seen.len() == 3, "saw only {seen:?}");
        Ok(())
    })
}

/// The product page as `cookie`'s user sees it, and how long it took.
fn page(lab: &Lab, cookie: Option<&str>) -> Result<(String, Duration)> {
    let headers: Vec<(&str, &str)> = cookie.map(|cookie| ("cookie", cookie)).into_iter().collect();
    let start = Instant::now();
    let page = get(&lab.url("/productpage"), &headers)?;
    ensure!(page.status == 200, "product page answered {}", page.status);
    Ok((page.body, start.elapsed()))
}

/// Waits until the page holds a text and takes so many seconds.
fn page_says(lab: &Lab, cookie: Option<&str>, said: &str, seconds: std::ops::Range<f64>) -> Result<()> {
    eventually(Duration::from_secs(90), || {
        let (body, took) = page(lab, cookie)?;
        ensure!(body.contains(said), "the page does not say {said:?}");
        let took = took.as_secs_f64();
        ensure!(seconds.contains(&took), "the page took {took:.2} s, not {seconds:?}");
        Ok(())
    })
}

/// `curl` from the ratings pod, as an application would ask: status and seconds.
fn ask(lab: &Lab, args: &[&str]) -> Result<(String, f64)> {
    let argv = [&["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{time_total}"], args].concat();
    let out = lab.exec("default", "deploy/ratings-v1", "ratings", &argv)?;
    let printed = crate::lab::text(&out.stdout);
    let (code, seconds) = printed.split_once(' ').unwrap_or((&printed, "0"));
    Ok((code.to_string(), seconds.parse().unwrap_or_default()))
}

/// Waits until the ratings pod, whose proxy takes a rule in its own time, is answered so: status, and within which seconds.
fn answers(lab: &Lab, args: &[&str], want: &str, within: std::ops::Range<f64>) -> Result<()> {
    eventually(SOON, || {
        let (code, seconds) = ask(lab, args)?;
        ensure!(
            code == want && within.contains(&seconds),
            "{args:?}: {code} in {seconds} s, want {want} in {within:?}"
        );
        Ok(())
    })
}

fn to_v1(lab: &Lab) -> Result<()> {
    lab.apply_sample("bookinfo/networking/destination-rule-all.yaml")?;
    lab.apply_sample("bookinfo/networking/virtual-service-all-v1.yaml")?;
    settles_on(lab, Stars::None, None)
}

fn request_routing(run: &mut Run) -> Result<()> {
    run.check(&["1:T-RR-01"], "without rules, all three versions of reviews answer", all_three);
    run.check(&["1:T-RR-02", "1:T-RR-03"], "all services pinned to v1: never stars", |lab| {
        lab.apply_sample("bookinfo/networking/destination-rule-all.yaml")?;
        let out = lab.apply_sample("bookinfo/networking/virtual-service-all-v1.yaml")?;
        ensure!(out.contains("virtualservice.networking.istio.io/reviews created"), "{out}");
        settles_on(lab, Stars::None, None)
    });
    run.check(&["1:T-RR-04"], "rules and subsets read back as v1beta1, as applied", |lab| {
        let rules = lab.weft(&["get", "virtualservices.v1beta1.networking.istio.io", "-o", "yaml"])?;
        ensure!(rules.contains("apiVersion: networking.istio.io/v1beta1"), "{rules}");
        for host in ["productpage", "reviews", "ratings", "details"] {
            ensure!(rules.contains(&format!("host: {host}")), "no {host} in {rules}");
        }
        let rules = lab.weft(&["get", "destinationrules", "-o", "yaml"])?;
        ensure!(rules.contains("name: v3") && rules.contains("version: v3"), "{rules}");
        Ok(())
    });
    run.check(&["1:T-RR-05"], "jason sees v2, everybody else v1", |lab| {
        lab.apply_sample("bookinfo/networking/virtual-service-reviews-test-v2.yaml")?;
        let jason = login(&lab.url(""), "jason")?;
        settles_on(lab, Stars::Black, Some(&jason))?;
        settles_on(lab, Stars::None, None)?;
        settles_on(lab, Stars::None, Some(&login(&lab.url(""), "somebody")?))
    });
    run.check(&["1:T-RR-06"], "the header alone decides", |lab| {
        let reviews = |args: &[&str]| -> Result<String> {
            let argv = [&["curl", "-s", "reviews:9080/reviews/0"], args].concat();
            Ok(crate::lab::text(&lab.exec("default", "deploy/ratings-v1", "ratings", &argv)?.stdout))
        };
        // The proxy beside this pod takes the rule in its own time.
        steadily(SOON, || {
            ensure!(reviews(&["-H", "end-user: jason"])?.contains("black"), "jason is not led to v2");
            Ok(())
        })?;
        for other in [&[][..], &["-H", "end-user: jasons"]] {
            eventually(SOON, || {
                let said = reviews(other)?;
                ensure!(said.contains("reviewer") && !said.contains("black"), "{other:?} is led elsewhere: {said}");
                Ok(())
            })?;
        }
        Ok(())
    });
    run.check(&["1:T-RR-01"], "after the rules are deleted all three answer again", |lab| {
        lab.weft(&["delete", "-f", &crate::sample("bookinfo/networking/virtual-service-all-v1.yaml")])?;
        all_three(lab)
    });
    Ok(())
}

fn fault_injection(run: &mut Run) -> Result<()> {
    to_v1(&run.lab)?;
    run.lab.apply_sample("bookinfo/networking/virtual-service-reviews-test-v2.yaml")?;
    let jason = login(&run.lab.url(""), "jason")?;
    settles_on(&run.lab, Stars::Black, Some(&jason))?;
    run.lab.apply_sample("bookinfo/networking/virtual-service-ratings-test-delay.yaml")?;
    run.check(&["1:T-FI-01"], "ratings 7 s late for jason: no reviews after 6 s", |lab| {
        // Both take their time: side by side.
        std::thread::scope(|scope| {
            let direct = || answers(lab, &["-H", "end-user: jason", "ratings:9080/ratings/0"], "200", 6.9..8.5);
            let direct = scope.spawn(direct);
            page_says(lab, Some(&jason), NO_REVIEWS, 5.8..7.0)?;
            direct.join().map_err(|_| anyhow::anyhow!("the direct call panicked"))?
        })
    });
    run.check(&["1:T-FI-02"], "others are not delayed", |lab| {
        page_says(lab, None, "Book Reviews", 0.0..3.0)?;
        answers(lab, &["ratings:9080/ratings/0"], "200", 0.0..1.5)
    });
    run.check(&["1:T-FI-03"], "v3 waits 2.5 s for ratings: a delay of 2 s does no harm", |lab| {
        lab.apply_sample("bookinfo/networking/virtual-service-reviews-v3.yaml")?;
        lab.apply_yaml("timeouts/ratings-delay-2s-jason.yaml", "default")?;
        eventually(SOON, || {
            let (body, took) = page(lab, Some(&jason))?;
            ensure!(body.contains("color:red"), "no red stars");
            ensure!((2.0..3.0).contains(&took.as_secs_f64()), "the page took {took:?}");
            Ok(())
        })
    });
    run.lab.apply_sample("bookinfo/networking/virtual-service-reviews-test-v2.yaml")?;
    run.lab.apply_sample("bookinfo/networking/virtual-service-ratings-test-abort.yaml")?;
    run.check(&["1:T-FI-04"], "ratings abort with 500 for jason: said at once", |lab| {
        page_says(lab, Some(&jason), NO_RATINGS, 0.0..2.5)?;
        answers(lab, &["-H", "end-user: jason", "ratings:9080/ratings/0"], "500", 0.0..5.0)
    });
    run.check(&["1:T-FI-05"], "logged out, reviews v1 never asks ratings: no error", |lab| {
        steadily(SOON, || {
            let (body, _) = page(lab, None)?;
            ensure!(!body.contains(NO_RATINGS) && !body.contains(NO_REVIEWS), "{body}");
            Ok(())
        })?;
        answers(lab, &["ratings:9080/ratings/0"], "200", 0.0..5.0)
    });
    Ok(())
}

fn traffic_shifting(run: &mut Run) -> Result<()> {
    to_v1(&run.lab)?;
    run.check(&["1:T-TS-01", "1:T-TS-02"], "50/50 between v1 and v3, 400 pages", |lab| {
        lab.apply_sample("bookinfo/networking/virtual-service-reviews-50-v3.yaml")?;
        let rule = lab.weft(&["get", "virtualservice", "reviews", "-o", "json"])?;
        ensure!(rule.matches("\"weight\": 50").count() == 2, "{rule}");
        eventually(SOON, || {
            let seen = count(lab, 20)?;
            ensure!(seen.contains_key(&Stars::Red) && seen.contains_key(&Stars::None), "{seen:?}");
            Ok(())
        })?;
        let seen = count(lab, 400)?;
        let red = seen.get(&Stars::Red).copied().unwrap_or_default();
        // Five standard deviations on either side: by chance it is more in 4 of 10⁷ runs.
        ensure!((150..=250).contains(&red) && !seen.contains_key(&Stars::Black), "50/50 gave {seen:?}");
        Ok(())
    });
    run.check(&["1:T-TS-03"], "all to v3: red stars on each of 200 pages", |lab| {
        lab.apply_sample("bookinfo/networking/virtual-service-reviews-v3.yaml")?;
        settles_on(lab, Stars::Red, None)?;
        let seen = count(lab, 200)?;
        ensure!(seen == BTreeMap::from([(Stars::Red, 200)]), "100/0 gave {seen:?}");
        Ok(())
    });
    Ok(())
}

fn timeouts(run: &mut Run) -> Result<()> {
    to_v1(&run.lab)?;
    run.lab.apply_yaml("timeouts/reviews-v2.yaml", "default")?;
    settles_on(&run.lab, Stars::Black, None)?;
    run.check(&["1:T-TO-02", "1:T-TO-05"], "no timeout by default: ratings 2 s late, stars 2 s late", |lab| {
        lab.apply_yaml("timeouts/ratings-delay-2s.yaml", "default")?;
        page_says(lab, None, "color:black", 2.0..3.5)
    });
    run.check(&["1:T-TO-01"], "timeout 0.5 s: no reviews after 1 s", |lab| {
        lab.apply_yaml("timeouts/reviews-v2-timeout.yaml", "default")?;
        page_says(lab, None, NO_REVIEWS, 0.9..1.9)?;
        answers(lab, &["reviews:9080/reviews/0"], "504", 0.45..1.2)
    });
    run.check(&["1:T-TO-03"], "the application's own time limit, by header", |lab| {
        let limit = |limit: &str| format!("x-envoy-upstream-rq-timeout-ms: {limit}");
        answers(lab, &["-H", &limit("5000"), "reviews:9080/reviews/0"], "200", 2.0..5.0)?;
        answers(lab, &["-H", &limit("100"), "reviews:9080/reviews/0"], "504", 0.0..0.45)
    });
    run.check(&["1:T-TO-04"], "mesh 4 s, application 3 s: the stricter acts", |lab| {
        lab.apply_yaml("timeouts/reviews-v2-timeout-4s.yaml", "default")?;
        lab.apply_sample("bookinfo/networking/virtual-service-ratings-test-delay.yaml")?;
        let jason = login(&lab.url(""), "jason")?;
        page_says(lab, Some(&jason), NO_REVIEWS, 5.8..7.5)
    });
    Ok(())
}
