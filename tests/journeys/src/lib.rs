//! What journeys are written with: a lab of their own ([`Lab`]), a browser ([`browser`]), a constant-rate load ([`load`]);
//! and the journeys themselves ([`catalogue`]), which `cargo xtask journey` runs.

pub mod browser;
pub mod catalogue;
pub mod certs;
pub mod coverage;
pub mod journey;
pub mod kubectl;
pub mod lab;
pub mod load;
pub mod processes;
pub mod soak;

pub use lab::Lab;

use std::time::{Duration, Instant};

/// Waits until `check` gives a value; fails with what it said last after `limit`.
///
/// # Errors
/// The last reason, when the time is over.
pub fn eventually<T>(limit: Duration, mut check: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= deadline => {
                return Err(reason.context(format!("not so within {limit:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Answers in a row that say that a change has come everywhere. Each is on a connection of its own, and any of a proxy's workers
/// may have that; they take a change one after the other.
pub const IN_A_ROW: usize = 10;

/// Waits until `check` gives a value [`IN_A_ROW`] times in a row; the last of them.
///
/// # Errors
/// The last reason, when the time is over.
pub fn steadily<T>(limit: Duration, mut check: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    eventually(limit, || {
        for _ in 1..IN_A_ROW {
            check()?;
        }
        check()
    })
}

/// The folder of samples.
pub fn sample(path: &str) -> String {
    format!("{}/../../samples/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// A file of a journey's own YAML.
pub fn yaml(path: &str) -> String {
    format!("{}/yaml/{path}", env!("CARGO_MANIFEST_DIR"))
}
