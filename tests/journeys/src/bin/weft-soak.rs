//! `cargo xtask soak`: mixed load through a lab while everything changes. `weft-soak serve` is the application in its pods.

use anyhow::{Context as _, Result, bail};
use std::time::Duration;
use weft_journeys::soak::{self, Plan};

const HELP: &str = "weft-soak [--minutes N | --seconds N] [--rate N]";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "serve") {
        return tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(soak::server::run());
    }
    soak::run(plan(&arguments)?, &std::env::current_exe()?)
}

/// 30 minutes at 20 requests a second of each usual kind, unless told otherwise.
fn plan(arguments: &[String]) -> Result<Plan> {
    let (mut seconds, mut rate) = (1800, 20);
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { bail!("{HELP}") };
        let number: u32 = value.parse().with_context(|| format!("{name} {value}: {HELP}"))?;
        match name.as_str() {
            "--minutes" => seconds = number * 60,
            "--seconds" => seconds = number,
            "--rate" => rate = number,
            _ => bail!("{name}: {HELP}"),
        }
    }
    let time = Duration::from_secs(seconds.into());
    Ok(Plan { time, warm_up: time / 5, rate: rate.max(1) })
}
