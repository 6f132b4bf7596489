//! From the local copy of the objects to published snapshots: gathers changes, builds, publishes what differs.

use crate::mesh::{Mesh, model_settings};
use crate::settings::Settings;
use anyhow::Context;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use weft_model::{Inputs, KINDS, MeshSnapshot, build};
use weft_store::{Cache, Changes};
use weft_xds_server::AdsServer;

/// Follows the cache until it goes away. `mesh` is the config that the first build uses; each snapshot that is published
/// is also put into `latest`.
pub(crate) async fn follow(
    cache: Arc<Cache>,
    settings: Arc<Settings>,
    mut mesh: Mesh,
    ads: AdsServer,
    latest: watch::Sender<Arc<MeshSnapshot>>,
) -> anyhow::Result<()> {
    let mut changed = cache.changed();
    let mut inputs = Inputs::new(mesh.config.clone(), Arc::new(model_settings(&settings, &mesh.config)));
    let mut seen = Changes { revision: 0, keys: None };
    let mut current: Option<Arc<MeshSnapshot>> = None;
    loop {
        take(&mut inputs, &cache, &seen);
        mesh.refresh(&cache, &settings);
        if !Arc::ptr_eq(&inputs.mesh, &mesh.config) {
            inputs.mesh = mesh.config.clone();
            inputs.settings = Arc::new(live_settings(&settings, &mesh, &inputs));
        }
        let built = rebuild(inputs.clone(), current.clone()).await;
        if let Some(next) = usable(built, current.is_some())? {
            let differs = current.as_ref().is_none_or(|c| c.sections != next.sections || c.warnings != next.warnings);
            if differs {
                tracing::debug!(version = next.version, warnings = next.warnings.len(), "snapshot");
                ads.publish(next.clone());
                latest.send_replace(next.clone());
            }
            current = Some(next);
        }
        if changed.changed().await.is_err() {
            return Ok(());
        }
        gather(&mut changed, settings.debounce_after, settings.debounce_max).await;
        seen = cache.changes_since(seen.revision);
    }
}

/// The trust domain is that of the certificates that were given out: it does not change while this process runs.
fn live_settings(settings: &Settings, mesh: &Mesh, inputs: &Inputs) -> weft_model::Settings {
    let wanted = model_settings(settings, &mesh.config);
    let trust_domain = inputs.settings.trust_domain.clone();
    if wanted.trust_domain != trust_domain {
        tracing::warn!(
            "trust domain {} takes effect when weftd is restarted; now: {trust_domain}",
            wanted.trust_domain
        );
    }
    weft_model::Settings { trust_domain, ..wanted }
}

/// Brings the lists of the changed kinds up to date.
fn take(inputs: &mut Inputs, cache: &Cache, changes: &Changes) {
    for (group, kind) in KINDS {
        if changes.touches(group, kind) {
            inputs.set(group, kind, cache.list(group, kind));
        }
    }
}

/// Builds off the runtime's threads: a large mesh takes a while, and proxies are answered meanwhile.
async fn rebuild(inputs: Inputs, current: Option<Arc<MeshSnapshot>>) -> anyhow::Result<Arc<MeshSnapshot>> {
    let built = tokio::task::spawn_blocking(move || Arc::new(build(&inputs, current.as_deref()))).await;
    built.context("building the snapshot")
}

/// A build that panics on some object must not take the control plane from all others, once there is a snapshot to serve.
fn usable(built: anyhow::Result<Arc<MeshSnapshot>>, older: bool) -> anyhow::Result<Option<Arc<MeshSnapshot>>> {
    match built {
        Err(error) if older => {
            tracing::error!("the last snapshot stays in force until a build succeeds: {error:#}");
            Ok(None)
        }
        built => built.map(Some),
    }
}

/// Waits until nothing has changed for `quiet`, at most `longest`.
async fn gather(changed: &mut watch::Receiver<u64>, quiet: Duration, longest: Duration) {
    let end = Instant::now() + longest;
    loop {
        let until = (Instant::now() + quiet).min(end);
        match timeout_at(until, changed.changed()).await {
            Ok(Ok(())) if Instant::now() < end => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_build_that_panics_leaves_the_last_snapshot() {
        let panicked = async || {
            let built = tokio::task::spawn_blocking(|| -> Arc<MeshSnapshot> { panic!("an object of a test") }).await;
            built.context("building the snapshot")
        };
        assert!(usable(panicked().await, true).unwrap().is_none());
        assert!(usable(panicked().await, false).is_err(), "there is nothing to serve");
        assert!(usable(Ok(Arc::default()), true).unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn gathers_until_quiet_or_late() {
        let (quiet, longest) = (Duration::from_millis(10), Duration::from_millis(100));
        let (sender, mut receiver) = watch::channel(0);
        let start = Instant::now();
        gather(&mut receiver, quiet, longest).await;
        assert_eq!(start.elapsed(), quiet);
        let busy = tokio::spawn(async move {
            for i in 0..1000 {
                tokio::time::sleep(Duration::from_millis(5)).await;
                sender.send_replace(i);
            }
        });
        let start = Instant::now();
        gather(&mut receiver, quiet, longest).await;
        assert!(start.elapsed() >= longest && start.elapsed() < longest + quiet, "{:?}", start.elapsed());
        busy.abort();
    }
}
