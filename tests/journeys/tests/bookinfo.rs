//! Journeys on Bookinfo: getting started (1:J-GS), request routing (1:J-RR), traffic shifting (1:J-TS).

use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::time::Duration;
use weft_journeys::browser::{Stars, get, login, stars};
use weft_journeys::{Lab, eventually};

const SOON: Duration = Duration::from_secs(15);

fn base(lab: &Lab) -> String {
    lab.url("")
}

/// How often each version answered.
fn count(lab: &Lab, requests: u32) -> Result<BTreeMap<Stars, u32>> {
    let mut seen = BTreeMap::new();
    for _ in 0..requests {
        *seen.entry(stars(&base(lab), None)?).or_default() += 1;
    }
    Ok(seen)
}

/// Waits until ten pages in a row show `want`.
fn settles_on(lab: &Lab, want: Stars, cookie: Option<&str>) -> Result<()> {
    eventually(SOON, || {
        for _ in 0..10 {
            let seen = stars(&base(lab), cookie)?;
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

#[test]
fn request_routing() -> Result<()> {
    let lab = Lab::start(&[])?;
    println!("{}", lab.greeting);
    all_three(&lab)?;
    lab.apply_sample("bookinfo/networking/destination-rule-all.yaml")?;
    let out = lab.apply_sample("bookinfo/networking/virtual-service-all-v1.yaml")?;
    ensure!(out.contains("virtualservice.networking.istio.io/reviews created"), "{out}");
    settles_on(&lab, Stars::None, None)?;

    lab.apply_sample("bookinfo/networking/virtual-service-reviews-test-v2.yaml")?;
    let jason = login(&base(&lab), "jason")?;
    settles_on(&lab, Stars::Black, Some(&jason))?;
    settles_on(&lab, Stars::None, None)?;
    let somebody = login(&base(&lab), "somebody")?;
    settles_on(&lab, Stars::None, Some(&somebody))?;

    lab.weft(&["delete", "-f", &weft_journeys::sample("bookinfo/networking/virtual-service-all-v1.yaml")])?;
    all_three(&lab)
}

#[test]
fn traffic_shifting() -> Result<()> {
    let lab = Lab::start(&[])?;
    lab.apply_sample("bookinfo/networking/destination-rule-all.yaml")?;
    lab.apply_sample("bookinfo/networking/virtual-service-all-v1.yaml")?;
    settles_on(&lab, Stars::None, None)?;
    lab.apply_sample("bookinfo/networking/virtual-service-reviews-50-v3.yaml")?;
    eventually(SOON, || {
        let seen = count(&lab, 20)?;
        ensure!(seen.contains_key(&Stars::Red) && seen.contains_key(&Stars::None), "{seen:?}");
        Ok(())
    })?;
    let seen = count(&lab, 1000)?;
    println!("50/50 over 1000 requests: {seen:?}");
    let red = seen.get(&Stars::Red).copied().unwrap_or_default();
    ensure!((450..=550).contains(&red) && !seen.contains_key(&Stars::Black), "50/50 gave {seen:?}");

    lab.apply_sample("bookinfo/networking/virtual-service-reviews-v3.yaml")?;
    settles_on(&lab, Stars::Red, None)?;
    let seen = count(&lab, 1000)?;
    ensure!(seen == BTreeMap::from([(Stars::Red, 1000)]), "100/0 gave {seen:?}");
    Ok(())
}

#[test]
fn getting_started() -> Result<()> {
    let lab = Lab::start(&[])?;
    let page = get(&lab.url("/productpage"), &[])?;
    ensure!(page.body.contains("<title>Simple Bookstore App</title>"), "{}", page.body);
    ensure!(page.headers.get("server").is_some_and(|v| v == "istio-envoy"), "{:?}", page.headers);
    for app in ["details", "productpage", "ratings"] {
        lab.wait_ready(&format!("app={app}"), "default", 1)?;
    }
    let ratings = lab.wait_ready("app=ratings", "default", 1)?.remove(0);
    let out = lab.weft(&["exec", &ratings, "-c", "ratings", "--", "curl", "-sS", "productpage:9080/productpage"])?;
    ensure!(out.contains("<title>Simple Bookstore App</title>"), "{out}");
    let status = lab.weft(&["proxy-status"])?;
    println!("{status}");
    ensure!(status.lines().filter(|l| l.contains(".default")).count() == 6, "{status}");
    ensure!(get(&lab.url("/no-such-page"), &[])?.status == 404);
    Ok(())
}
