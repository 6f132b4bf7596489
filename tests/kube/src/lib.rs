//! API servers to test weftd on: Kubernetes' own with etcd ([`real`]), and the embedded one ([`embedded`]), behind one
//! interface ([`cluster`]), so that each test runs on both and a difference between them is a failure ([`on_both`]).
//!
//! Reading order: [`pki`] (certificates and accounts), [`process`] (programs that are started and ended), [`real`],
//! [`embedded`], [`cluster`] (what tests see), [`install`] (Weft on it), [`control`] (weftd as a process), [`http`] (asking
//! its ports), [`proxy`] (a stream of configuration), [`objects`] (what tests create).

pub mod cluster;
pub mod control;
pub mod embedded;
pub mod http;
pub mod install;
pub mod objects;
pub mod pki;
pub mod process;
pub mod proxy;
pub mod real;

pub use cluster::{Cluster, Kind};
pub use control::Weftd;
pub use proxy::Proxy;

use anyhow::Result;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bound of one wait in a test. A machine under load is slow, not wrong.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Asks again until there is an answer; fails with the last reason after [`LIMIT`].
///
/// # Errors
/// The last reason.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + LIMIT;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(reason) if Instant::now() >= end => {
                return Err(reason.context(format!("{what}: not within {LIMIT:?}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A condition as a result: what [`eventually`] asks.
///
/// # Errors
/// The reason, when it does not hold.
pub fn check(holds: bool, reason: &str) -> Result<()> {
    anyhow::ensure!(holds, "{reason}");
    Ok(())
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// Runs async test functions that take a [`Cluster`] on both API servers: modules `embedded` and `real` get one test each.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test]
            async fn $name() -> anyhow::Result<()> {
                super::$name($crate::Cluster::start($crate::Kind::Embedded).await?).await
            })*
        }
        mod real {
            $(#[tokio::test]
            async fn $name() -> anyhow::Result<()> {
                super::$name($crate::Cluster::start($crate::Kind::Real).await?).await
            })*
        }
    };
}
