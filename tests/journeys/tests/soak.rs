//! The soak for half a minute: that it runs, that nothing fails, and that no descriptor stays. `cargo xtask soak` is the
//! long one.

use anyhow::Result;
use std::path::Path;
use std::time::Duration;
use weft_journeys::soak::{self, Plan};

#[test]
fn half_a_minute() -> Result<()> {
    let plan = Plan { time: Duration::from_secs(30), warm_up: Duration::from_secs(8), rate: 10 };
    soak::run(plan, Path::new(env!("CARGO_BIN_EXE_weft-soak")))
}
