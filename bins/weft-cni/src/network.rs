//! Work inside a pod's network namespace.

use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::path::Path;

/// Does `work` in the namespace of `path`, on a thread of its own: the others stay where they are.
///
/// # Errors
/// When the namespace is not there or may not be entered.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    let place = File::open(path).map_err(|e| format!("the network namespace {}: {e}", path.display()))?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(&place, CloneFlags::CLONE_NEWNET)
                .map_err(|e| format!("the network namespace {} cannot be entered: {e}", path.display()))?;
            Ok(work())
        });
        inside.join().unwrap_or_else(|_| Err("the work in the network namespace ended without a result".into()))
    })
}
