//! Runs hyper's own tasks (HTTP/2 streams, upgrades) on the worker's thread.

use std::future::Future;

/// Spawns on the current `LocalSet`. Everything of a connection stays on the worker that accepted it.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalExec;

impl<F> hyper::rt::Executor<F> for LocalExec
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
