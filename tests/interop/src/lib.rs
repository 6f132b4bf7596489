//! Weft beside programs that no one here wrote: Envoy's go-control-plane serves our proxy, gRPC's own libraries talk through
//! a pair of proxies and take their configuration from weftd, a collector takes our spans.
//!
//! [`process`] runs programs, [`proxy`] runs weft-proxy, [`control_plane`] drives go-control-plane, [`backend`] answers plain
//! HTTP, [`pki`] makes certificates. Knows nothing of how Weft does what it is asked for.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot go on fails.

pub mod backend;
pub mod collector;
pub mod control_plane;
pub mod echo;
pub mod pki;
pub mod process;
pub mod proxy;

use std::time::{Duration, Instant};

/// Time within which a change must have come through, on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Asks again until the answer is some, at most [`LIMIT`].
///
/// # Panics
/// When it never is; says what was waited for and the last word of `probe`.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match probe() {
            Ok(found) => return found,
            Err(why) if begun.elapsed() > LIMIT => panic!("{what}: not within {LIMIT:?}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
