//! Getting started on Bookinfo (1:J-GS). The other journeys on Bookinfo are run by `cargo xtask journey`.

use anyhow::{Result, ensure};
use weft_journeys::Lab;
use weft_journeys::browser::get;

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
