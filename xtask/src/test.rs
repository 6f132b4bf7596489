//! Everything that must hold before a change lands, quickest first.

use crate::{deps, helm, images, interop, kube, peers, run, tidy};
use anyhow::Result;
use std::time::Instant;

/// Installs what tests need and runs all of them.
pub fn all() -> Result<()> {
    let start = Instant::now();
    let peers = peers::install()?;
    tidy::check()?;
    deps::check()?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let bins = run::target().join("journeys");
    let interop = interop::programs()?;
    let helm = helm::program()?;
    let oracles = run::root().join("../shared/oracles");
    let mut env = vec![
        ("ENVOY", peers.envoy.as_path()),
        ("WEFT_KUBECTL", peers.kubectl.as_path()),
        ("WEFT_PYTHON", peers.python.as_path()),
        ("WEFT_BIN_DIR", bins.as_path()),
        ("WEFT_INTEROP", interop.as_path()),
        ("WEFT_HELM", helm.as_path()),
    ];
    // Test data that no one here wrote, where it lies beside the project.
    if oracles.is_dir() {
        env.push(("WEFT_ORACLES", oracles.as_path()));
    }
    run::with_env(&cargo, &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"], &env)?;
    // The journeys drive optimised programs; why not the release: see the profile in Cargo.toml.
    run::with_env(&cargo, &["build", "--profile", "journeys", "--quiet"], &env)?;
    images::build_from(&bins)?;
    run::with_env(
        &cargo,
        &["test", "--workspace", "--exclude", "weft-journeys", "--exclude", "weft-kube-tests", "--quiet"],
        &env,
    )?;
    let apiserver = kube::apiserver()?;
    let go = kube::go()?;
    env.push(("WEFT_KUBE_APISERVER", apiserver.as_path()));
    env.push(("WEFT_GO", go.as_path()));
    // Two API servers at a time: a small machine brings up no more in time.
    run::with_env(&cargo, &["test", "--package", "weft-kube-tests", "--", "--test-threads=2"], &env)?;
    // One lab at a time: each journey measures, and the machine may be small.
    run::with_env(&cargo, &["test", "--package", "weft-journeys", "--", "--test-threads=1", "--nocapture"], &env)?;
    // The journeys of the spec: all with Weft's proxy, and those that a real Envoy serves just as well. They wait more than they
    // work, and each step until it holds: two labs at a time.
    let journeys = ["run", "--quiet", "--package", "weft-journeys", "--", "--jobs", "2"];
    run::with_env(&cargo, &journeys, &env)?;
    run::with_env(&cargo, &[&journeys[..], &["--engine", "envoy"]].concat(), &env)?;
    println!("All checks and tests passed in {:.0}s.", start.elapsed().as_secs_f64());
    Ok(())
}
