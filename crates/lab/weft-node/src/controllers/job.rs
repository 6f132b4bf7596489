//! Jobs: pods that are to end well a number of times.

use super::objects::{
    condition, delete, has_condition, is_active, is_controlled_by, is_deleting, list, now, phase, pod_from_template,
    spec_number, uid, without_zeros, write_status,
};
use super::{Controller, PodMaker};
use serde_json::{Value, json};
use std::sync::Arc;
use weft_k8s_api::Object;
use weft_store::MemoryStore;

/// The controller.
pub struct Jobs;

/// How a Job stands.
struct Tally {
    /// Pods that are on their way.
    asked: usize,
    active: Vec<Arc<Object>>,
    succeeded: i64,
    failed: i64,
}

impl Controller for Jobs {
    fn reconcile(&mut self, store: &MemoryStore, maker: &dyn PodMaker) {
        let asked = maker.asked();
        let pods = list(store, "", "Pod");
        for job in list(store, "batch", "Job") {
            if is_deleting(&job) {
                continue;
            }
            if has_condition(&job, "Complete") || has_condition(&job, "Failed") {
                expire(store, &job);
                continue;
            }
            let own: Vec<_> = pods.iter().filter(|pod| is_controlled_by(pod, &job)).collect();
            let count = |wanted: &str| own.iter().filter(|pod| phase(pod) == wanted).count() as i64;
            let tally = Tally {
                asked: asked.pods(&job),
                active: own.iter().filter(|pod| is_active(pod)).map(|pod| Arc::clone(pod)).collect(),
                succeeded: count("Succeeded"),
                failed: count("Failed"),
            };
            advance(store, maker, &job, &tally);
        }
    }
}

fn advance(store: &MemoryStore, maker: &dyn PodMaker, job: &Object, tally: &Tally) {
    let parallel = spec_number(job, "parallelism", 1).max(0);
    // Without completions one success is enough.
    let wanted = spec_number(job, "completions", 1);
    let limit = spec_number(job, "backoffLimit", 6);
    let restarts: i64 = tally.active.iter().map(|pod| restarts(pod)).sum();
    let late = seconds_active(job).zip(job.spec()["activeDeadlineSeconds"].as_i64()).is_some_and(|(is, max)| is > max);
    if tally.succeeded >= wanted {
        return finish(
            store,
            job,
            tally,
            "Complete",
            "CompletionsReached",
            "Reached expected number of succeeded pods",
        );
    }
    if tally.failed + restarts > limit {
        let message = "Job has reached the specified backoff limit";
        return finish(store, job, tally, "Failed", "BackoffLimitExceeded", message);
    }
    if late {
        let message = "Job was active longer than specified deadline";
        return finish(store, job, tally, "Failed", "DeadlineExceeded", message);
    }
    let active = tally.active.len() as i64;
    let suspended = job.spec()["suspend"].as_bool().unwrap_or(false);
    let target = if suspended { 0 } else { parallel.min(wanted - tally.succeeded) };
    for _ in active + tally.asked as i64..target {
        make(maker, job);
    }
    let surplus = usize::try_from(active - target).unwrap_or(0);
    tally.active.iter().rev().take(surplus).for_each(|pod| delete(store, pod));
    write_status(store, job, status(job, tally, Value::Null));
}

fn restarts(pod: &Object) -> i64 {
    let statuses = pod.body.get("status").and_then(|status| status["containerStatuses"].as_array());
    statuses.into_iter().flatten().filter_map(|status| status["restartCount"].as_i64()).sum()
}

fn seconds_active(job: &Object) -> Option<i64> {
    seconds_since(job.body.get("status")?["startTime"].as_str()?)
}

fn seconds_since(time: &str) -> Option<i64> {
    let time: jiff::Timestamp = time.parse().ok()?;
    Some(jiff::Timestamp::now().as_second() - time.as_second())
}

fn make(maker: &dyn PodMaker, job: &Object) {
    let labels = [
        ("batch.kubernetes.io/job-name", job.name()),
        ("job-name", job.name()),
        ("batch.kubernetes.io/controller-uid", uid(job)),
        ("controller-uid", uid(job)),
    ];
    let mut pod = pod_from_template(job, &job.spec()["template"], &labels);
    pod.metadata.generate_name = Some(format!("{}-", job.name()));
    maker.create(job, pod);
}

fn finish(store: &MemoryStore, job: &Object, tally: &Tally, kind: &str, reason: &str, message: &str) {
    tally.active.iter().for_each(|pod| delete(store, pod));
    let ended = Tally { active: vec![], ..*tally };
    let mut status = status(job, &ended, json!([condition(job, kind, true, reason, message)]));
    if kind == "Complete" {
        status["completionTime"] = now().into();
    }
    write_status(store, job, status);
}

fn status(job: &Object, tally: &Tally, conditions: Value) -> Value {
    let ready = tally.active.iter().filter(|pod| has_condition(pod, "Ready")).count();
    let started = job.body.get("status").and_then(|status| status["startTime"].as_str()).map_or_else(now, Into::into);
    let mut status = without_zeros(json!({
        "active": tally.active.len(), "succeeded": tally.succeeded, "failed": tally.failed, "startTime": started,
    }));
    status["ready"] = ready.into();
    if !conditions.is_null() {
        status["conditions"] = conditions;
    }
    status
}

/// Deletes a finished Job after `ttlSecondsAfterFinished`.
fn expire(store: &MemoryStore, job: &Object) {
    let finished = job.body.get("status").and_then(|s| s["conditions"][0]["lastTransitionTime"].as_str());
    let age = finished.and_then(seconds_since);
    if age.zip(job.spec()["ttlSecondsAfterFinished"].as_i64()).is_some_and(|(age, keep)| age >= keep) {
        delete(store, job);
    }
}
