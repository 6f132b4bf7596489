//! The project's own tasks: `cargo xtask TASK`.
//!
//! `test` is the README's second command and what CI runs: it installs what the tests need and runs all of them.

mod bench;
mod deps;
mod fuzz;
mod helm;
mod images;
mod interop;
mod journey;
mod kube;
mod peers;
mod run;
mod soak;
mod test;
mod tidy;

use anyhow::{Result, bail};

const HELP: &str = "cargo xtask TASK

  test      install what the tests need, then run every check and test (what CI runs)
  journey   run user journeys of the spec in the lab: [ID…] [--list] [--engine weft|envoy] [--jobs N]
  bench     measure weft-proxy beside Envoy, haproxy and nginx: [--quick] [--only CASE] [--list]
  fuzz      run the fuzz targets: [TARGET…] [--seconds N] [--build] [--list]
  soak      mixed load while routes, endpoints and certificates change: [--minutes N] [--rate N]; nothing fails, nothing grows
  tidy      checks of the text: file heads and sizes, unsafe code, unfinished marks, formatting
  deps      checks which crate may import which
  peers     install the programs that tests run against (Debian, PyPI), and print where they are
  kube-apiserver  build Kubernetes' API server for the tests on it, if it is not built, and print where it is
  helm      build Helm for the tests of the charts, if it is not built, and print where it is
  charts    write the parts of manifests/charts that follow from the code: definitions of kinds, rights
  images    write container images of the release programs as OCI archives: target/images
  interop   build the Go programs that tests/interop runs Weft beside, and print where they are
  codegen   generate the xDS types anew; with --check, fail when they differ from what is committed
";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["test"] => test::all(),
        ["journey", rest @ ..] => journey::run(rest),
        ["bench", rest @ ..] => bench::run(rest),
        ["fuzz", rest @ ..] => fuzz::run(rest),
        ["soak", rest @ ..] => soak::run(rest),
        ["tidy"] => tidy::check(),
        ["deps"] => deps::check(),
        ["peers"] => peers::install().map(|peers| println!("envoy: {}", peers.envoy.display())),
        ["kube-apiserver"] => kube::apiserver().map(|program| println!("{}", program.display())),
        ["helm"] => helm::program().map(|program| println!("{}", program.display())),
        ["charts"] => helm::charts(),
        ["images"] => images::build(),
        ["interop"] => interop::programs().map(|folder| println!("{}", folder.display())),
        ["codegen"] => run::cargo(&["run", "--quiet", "--manifest-path", "xtask/codegen/Cargo.toml"]),
        ["codegen", "--check"] => codegen_check(),
        [] | ["help" | "-h" | "--help"] => {
            print!("{HELP}");
            Ok(())
        }
        other => bail!("no task {other:?}\n\n{HELP}"),
    }
}

fn codegen_check() -> Result<()> {
    run::cargo(&["run", "--quiet", "--manifest-path", "xtask/codegen/Cargo.toml"])?;
    run::command("git", &["diff", "--exit-code", "--stat", "--", "crates/api/weft-proto/src/generated"])
}
