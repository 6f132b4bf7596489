//! From the local copy of the objects to published snapshots: gathers changes, builds, publishes what differs.

use crate::jwks::{Fetching, Keys};
use crate::mesh::{Mesh, model_settings};
use crate::settings::Settings;
use anyhow::Context;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use weft_k8s_api::istio::MeshConfig;
use weft_model::{Inputs, KINDS, MeshSnapshot, Warning, build};
use weft_store::{Cache, Changes};
use weft_xds_server::AdsServer;

/// Time that the first snapshot waits for the keys of token issuers.
const FIRST_KEYS: Duration = Duration::from_secs(6);

/// Most warnings that one snapshot writes to the log.
const MAX_TOLD: usize = 50;
/// Longest time between two looks at the clock.
const CLOCK_LOOK: Duration = Duration::from_secs(60);
/// Longest pause after a build.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Follows the cache until it goes away. `mesh` is the config that the first build uses; each snapshot that is published
/// is also put into `latest`, and each mesh config into `told`.
pub(crate) async fn follow(
    cache: Arc<Cache>,
    settings: Arc<Settings>,
    mut mesh: Mesh,
    told: watch::Sender<Arc<MeshConfig>>,
    ads: AdsServer,
    latest: watch::Sender<Arc<MeshSnapshot>>,
) -> anyhow::Result<()> {
    let mut changed = cache.changed();
    let mut inputs = Inputs::new(mesh.config.clone(), Arc::new(model_settings(&settings, &mesh.config)));
    let mut seen = Changes { revision: 0, keys: None };
    let mut current: Option<Arc<MeshSnapshot>> = None;
    let (mut keys, fetching) = Keys::start(Fetching {
        refresh: settings.jwks_refresh,
        blocked: settings.jwks_blocked_cidrs.clone(),
        allowed: settings.jwks_allowed_cidrs.clone(),
    });
    let _fetching = AbortOnDrop(tokio::spawn(fetching));
    loop {
        let begun = Instant::now();
        inputs.now = Some(jiff::Timestamp::now().as_second());
        take(&mut inputs, &cache, &seen);
        mesh.refresh(&cache, &settings);
        if !Arc::ptr_eq(&inputs.mesh, &mesh.config) {
            inputs.mesh = mesh.config.clone();
            inputs.settings = Arc::new(model_settings(&settings, &mesh.config));
            told.send_replace(mesh.config.clone());
        }
        let built = rebuild(inputs.clone(), current.clone()).await;
        if let Some(mut next) = usable(built, current.is_some())? {
            keys.want(next.key_sources());
            if current.is_none() && !next.key_sources().is_empty() {
                // Proxies that come back to a control plane that was started again must not lose keys they had.
                keys.tried_all(FIRST_KEYS).await;
                inputs.jwks = keys.fetched();
                next = rebuild(inputs.clone(), Some(next)).await?;
            }
            let differs = current.as_ref().is_none_or(|c| c.sections != next.sections || c.warnings != next.warnings);
            if differs {
                tell(current.as_deref(), &next);
                tracing::debug!(version = next.version, warnings = next.warnings.len(), "snapshot");
                ads.publish(next.clone());
                latest.send_replace(next.clone());
            }
            ads.built(Arc::new(inputs.clone()));
            current = Some(next);
        }
        let rested = Instant::now() + rest(begun.elapsed());
        tokio::select! {
            more = changed.changed() => if more.is_err() { return Ok(()) },
            () = keys.changed() => {}
            () = validity_changes(current.as_deref()) => {}
        }
        inputs.jwks = keys.fetched();
        gather(&mut changed, settings.debounce_after, settings.debounce_max).await;
        sleep_until(rested).await;
        seen = cache.changes_since(seen.revision);
    }
}

/// Returns when a certificate begins or ceases to be valid; looks at the clock often enough for one that is set.
async fn validity_changes(snapshot: Option<&MeshSnapshot>) {
    let Some(at) = snapshot.and_then(|s| s.next_validity_change) else { return std::future::pending().await };
    loop {
        let left = u64::try_from(at - jiff::Timestamp::now().as_second()).unwrap_or_default();
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(left).min(CLOCK_LOOK)).await;
    }
}

/// Writes what is newly wrong with objects to the log, each once, and which of it is over.
fn tell(before: Option<&MeshSnapshot>, now: &MeshSnapshot) {
    let (old, new) = (before.map_or(&[][..], |b| &b.warnings), now.warnings.as_slice());
    // Both lists are sorted.
    let added: Vec<&Warning> = new.iter().filter(|w| old.binary_search(w).is_err()).collect();
    for warning in added.iter().take(MAX_TOLD) {
        tracing::warn!(code = warning.code, "{}: {}", place(warning), warning.message);
    }
    if added.len() > MAX_TOLD {
        tracing::warn!("{} more warnings: see /debug/push_status", added.len() - MAX_TOLD);
    }
    for warning in old.iter().filter(|w| new.binary_search(w).is_err()).take(MAX_TOLD) {
        tracing::info!(code = warning.code, "{}: no longer: {}", place(warning), warning.message);
    }
}

/// `Gateway default/shop spec.servers[0]`.
fn place(warning: &Warning) -> String {
    let at = &warning.at;
    let object = if at.namespace.is_empty() { at.name.clone() } else { format!("{}/{}", at.namespace, at.name) };
    format!("{} {object} {}", at.kind, at.path).trim_end().to_string()
}

/// Pause after a build: twice its time, so that a large mesh that changes all the time costs a third of a core, and a change
/// after a quiet while is acted on at once.
fn rest(spent: Duration) -> Duration {
    (spent * 2).min(LONGEST_REST)
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

    #[test]
    fn a_build_rests_as_long_as_it_worked_twice() {
        let ms = Duration::from_millis;
        assert_eq!([rest(ms(2)), rest(ms(40)), rest(ms(9000))], [ms(4), ms(80), LONGEST_REST]);
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
