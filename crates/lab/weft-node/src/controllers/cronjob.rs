//! CronJobs: Jobs at times of the clock. When, says `schedule` in five fields (`*/5 8-18 * * mon-fri`) or as a word
//! (`@hourly`), in UTC or in `timeZone`.
//!
//! Source: the Kubernetes documentation, "CronJob", and crontab(5) for the fields: where both days are restricted, one of them
//! is enough. A time that was missed by more than `startingDeadlineSeconds` (without it: 100 times) is not made up for.

use super::objects::{
    delete, has_condition, is_controlled_by, is_deleting, list, owned, report, string_map, write_status,
};
use super::{Controller, PodMaker};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _, Zoned};
use serde_json::{Value, json};
use std::sync::Arc;
use weft_k8s_api::Object;
use weft_store::{MemoryStore, StoreError};

/// Minutes looked back for a time that was missed: a lab that slept does not make up for a week.
const MAX_BACK: i64 = 24 * 60;

/// The controller.
pub struct CronJobs;

impl Controller for CronJobs {
    fn reconcile(&mut self, store: &MemoryStore, _: &dyn PodMaker) {
        let all = list(store, "batch", "CronJob");
        if all.is_empty() {
            return;
        }
        let jobs = list(store, "batch", "Job");
        for cron in all.iter().filter(|cron| !is_deleting(cron)) {
            let own: Vec<_> = jobs.iter().filter(|job| is_controlled_by(job, cron)).cloned().collect();
            advance(store, cron, &own, Timestamp::now());
            forget(store, cron, &own);
        }
    }
}

fn is_over(job: &Object) -> bool {
    has_condition(job, "Complete") || has_condition(job, "Failed")
}

fn advance(store: &MemoryStore, cron: &Object, own: &[Arc<Object>], now: Timestamp) {
    let active: Vec<_> = own.iter().filter(|job| !is_over(job) && !is_deleting(job)).collect();
    let last = cron.body.get("status").and_then(|status| status["lastScheduleTime"].as_str());
    let mut last: Option<Timestamp> = last.and_then(|time| time.parse().ok());
    if let Some(due) = due(cron, last, now) {
        let policy = cron.spec()["concurrencyPolicy"].as_str().unwrap_or("Allow");
        if policy == "Forbid" && !active.is_empty() {
            // Tried again at the next pass, as long as its time is not over.
        } else {
            if policy == "Replace" {
                active.iter().for_each(|job| delete(store, job));
            }
            make(store, cron, due);
            last = Some(due);
        }
    }
    status(store, cron, own, last);
}

/// The latest time that has come and that no Job was made for.
fn due(cron: &Object, last: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let spec = cron.spec();
    if spec["suspend"].as_bool() == Some(true) {
        return None;
    }
    let schedule = Schedule::read(spec["schedule"].as_str()?)?;
    let zone = match spec["timeZone"].as_str().filter(|name| !name.is_empty()) {
        Some(name) => TimeZone::get(name).ok()?,
        None => TimeZone::UTC,
    };
    let created = Timestamp::from_second(cron.created()).ok()?;
    let mut since = last.unwrap_or(created);
    if let Some(seconds) = spec["startingDeadlineSeconds"].as_i64() {
        since = since.max(now.checked_sub(seconds.clamp(0, MAX_BACK * 60).seconds()).ok()?);
    }
    schedule.latest(&zone, since, now)
}

fn make(store: &MemoryStore, cron: &Object, due: Timestamp) {
    let template = &cron.spec()["jobTemplate"];
    let mut job = owned("batch/v1", "Job", cron, string_map(&template["metadata"]["labels"]));
    // Kubernetes' own name: minutes since the epoch, so that one time has one Job.
    job.metadata.name = Some(format!("{}-{}", cron.name(), due.as_second() / 60));
    let mut annotations = string_map(&template["metadata"]["annotations"]);
    annotations.insert("batch.kubernetes.io/cronjob-scheduled-timestamp".into(), due.to_string());
    job.metadata.annotations = Some(annotations);
    job.body.insert("spec".into(), template["spec"].clone());
    match store.create(job) {
        Err(StoreError::AlreadyExists(_)) => {}
        result => drop(report(cron, result)),
    }
}

fn status(store: &MemoryStore, cron: &Object, own: &[Arc<Object>], last: Option<Timestamp>) {
    let active = own.iter().filter(|job| !is_over(job) && !is_deleting(job));
    let reference = |job: &Arc<Object>| json!({"apiVersion": "batch/v1", "kind": "Job", "name": job.name(), "namespace": job.namespace(), "uid": job.metadata.uid});
    let mut status = json!({});
    let active: Vec<Value> = active.map(reference).collect();
    if !active.is_empty() {
        status["active"] = active.into();
    }
    if let Some(last) = last {
        status["lastScheduleTime"] = last.to_string().into();
    }
    let ended = own.iter().filter(|job| has_condition(job, "Complete"));
    let ended = ended.filter_map(|job| job.body.get("status")?["completionTime"].as_str()).max();
    let before = cron.body.get("status").and_then(|status| status["lastSuccessfulTime"].as_str());
    if let Some(time) = ended.max(before) {
        status["lastSuccessfulTime"] = time.into();
    }
    write_status(store, cron, status);
}

/// Deletes Jobs that are over beyond the history limits: three that ended well and one that did not, by default.
fn forget(store: &MemoryStore, cron: &Object, own: &[Arc<Object>]) {
    for (condition, field, usual) in
        [("Complete", "successfulJobsHistoryLimit", 3), ("Failed", "failedJobsHistoryLimit", 1)]
    {
        let kept = usize::try_from(cron.spec()[field].as_i64().unwrap_or(usual)).unwrap_or(0);
        let mut over: Vec<_> = own.iter().filter(|job| has_condition(job, condition) && !is_deleting(job)).collect();
        over.sort_by_key(|job| std::cmp::Reverse(job.created()));
        over.iter().skip(kept).for_each(|job| delete(store, job));
    }
}

/// The fields of a schedule, a bit for each value.
#[derive(Debug, PartialEq, Eq)]
struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both days are restricted: one of them is enough.
    either_day: bool,
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Schedule {
    /// `None` when the text is no schedule.
    fn read(text: &str) -> Option<Self> {
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields.as_slice() else { return None };
        // Sunday is 0, and 7 too.
        let mut weekdays = field(weekday, 0, 7, &WEEKDAYS, 0)?;
        if weekdays & (1 << 7) != 0 {
            weekdays = (weekdays | 1) & !(1 << 7);
        }
        let free = |text: &str| text.starts_with('*') || text.starts_with('?');
        Some(Self {
            minutes: field(minute, 0, 59, &[], 0)?,
            hours: field(hour, 0, 23, &[], 0)?,
            days: field(day, 1, 31, &[], 0)?,
            months: field(month, 1, 12, &MONTHS, 1)?,
            weekdays,
            either_day: !free(day) && !free(weekday),
        })
    }

    fn fits(&self, time: DateTime) -> bool {
        let has = |bits: u64, value: i8| u32::try_from(value).is_ok_and(|value| bits & (1 << value) != 0);
        let day = has(self.days, time.day());
        let weekday = has(self.weekdays, time.weekday().to_sunday_zero_offset());
        has(self.minutes, time.minute())
            && has(self.hours, time.hour())
            && has(self.months, time.month())
            && if self.either_day { day || weekday } else { day && weekday }
    }

    /// The latest time of the schedule after `since` and up to `now`.
    fn latest(&self, zone: &TimeZone, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let minute = now.as_second() - now.as_second().rem_euclid(60);
        (0..MAX_BACK)
            .filter_map(|back| Timestamp::from_second(minute - back * 60).ok())
            .take_while(|time| *time > since)
            .find(|time| self.fits(Zoned::new(*time, zone.clone()).datetime()))
    }
}

/// One field: `*`, `*/5`, `3`, `1-5`, `1-30/2`, `mon`, and lists of these.
fn field(text: &str, low: u32, high: u32, names: &[&str], first: u32) -> Option<u64> {
    let number = |word: &str| {
        let named = names.iter().position(|name| word.eq_ignore_ascii_case(name));
        let value = named.and_then(|at| u32::try_from(at).ok()).map(|at| at + first).or_else(|| word.parse().ok())?;
        (low..=high).contains(&value).then_some(value)
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, step.parse::<u32>().ok().filter(|step| *step > 0)?),
            None => (part, 1),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (low, if high == 7 { 6 } else { high }),
            Some((from, to)) => (number(from)?, number(to)?),
            // `5/15` runs from 5 to the end.
            None if part.contains('/') => (number(range)?, high),
            None => (number(range)?, number(range)?),
        };
        if from > to {
            return None;
        }
        for value in (from..=to).step_by(usize::try_from(step).ok()?) {
            bits |= 1 << value;
        }
    }
    Some(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_store::StoreOptions;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn schedules() {
        for (schedule, zone, since, now, expected) in [
            ("* * * * *", "UTC", "2026-03-01T10:00:30Z", "2026-03-01T10:00:59Z", None),
            ("* * * * *", "UTC", "2026-03-01T10:00:30Z", "2026-03-01T10:01:00Z", Some("2026-03-01T10:01:00Z")),
            ("*/15 * * * *", "UTC", "2026-03-01T10:00:00Z", "2026-03-01T10:44:00Z", Some("2026-03-01T10:30:00Z")),
            ("@hourly", "UTC", "2026-03-01T10:00:00Z", "2026-03-01T10:59:59Z", None),
            (
                "30 8-18/2 * * mon-fri",
                "UTC",
                "2026-03-02T00:00:00Z",
                "2026-03-02T11:00:00Z",
                Some("2026-03-02T10:30:00Z"),
            ),
            ("30 8-18/2 * * mon-fri", "UTC", "2026-03-01T00:00:00Z", "2026-03-01T23:00:00Z", None),
            // Either day, where both are restricted: the 1st of March 2026 is a Sunday.
            ("0 0 13 * 7", "UTC", "2026-02-28T00:00:00Z", "2026-03-01T05:00:00Z", Some("2026-03-01T00:00:00Z")),
            (
                "0 9 * * *",
                "Europe/Berlin",
                "2026-01-05T00:00:00Z",
                "2026-01-05T09:00:00Z",
                Some("2026-01-05T08:00:00Z"),
            ),
        ] {
            let zone = TimeZone::get(zone).unwrap();
            let latest = Schedule::read(schedule).unwrap().latest(&zone, at(since), at(now));
            assert_eq!(latest, expected.map(at), "{schedule} from {since} to {now}");
        }
        for wrong in
            ["", "* * * *", "60 * * * *", "* 24 * * *", "*/0 * * * *", "5-1 * * * *", "@sometimes", "a * * * *"]
        {
            assert!(Schedule::read(wrong).is_none(), "{wrong}");
        }
        assert_eq!(Schedule::read("0 0 * jan,12 sun"), Schedule::read("0 0 * 1,dec 7"));
    }

    #[test]
    fn jobs_are_made_once_and_forgotten() {
        let store = MemoryStore::with_options(StoreOptions { require_namespaces: false, ..StoreOptions::default() });
        let cron = |policy: &str| -> Object {
            serde_json::from_value(json!({"apiVersion": "batch/v1", "kind": "CronJob",
                "metadata": {"name": "tick", "namespace": "n"},
                "spec": {"schedule": "* * * * *", "concurrencyPolicy": policy, "successfulJobsHistoryLimit": 1,
                         "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {"spec": {"containers": []}}}}}}))
            .unwrap()
        };
        store.create(cron("Forbid")).unwrap();
        let read = || store.find("batch", "CronJob", "n", "tick").unwrap();
        let jobs = || list(&store, "batch", "Job");
        let pass = |minutes: i64| {
            let now = Timestamp::from_second(read().created() + minutes * 60 + 59).unwrap();
            advance(&store, &read(), &jobs(), now);
            forget(&store, &read(), &jobs());
        };
        pass(1);
        pass(1);
        assert_eq!(jobs().len(), 1, "one time has one Job");
        assert_eq!(
            (jobs()[0].label("a"), read().body["status"]["active"].as_array().map(Vec::len)),
            (Some("b"), Some(1))
        );
        pass(2);
        assert_eq!(jobs().len(), 1, "the first one still runs");
        let done = |job: &Object| {
            let status = json!({"conditions": [{"type": "Complete", "status": "True"}], "completionTime": "2026-01-01T00:00:00Z"});
            store.modify(&job.key(), |job| drop(job.body.insert("status".into(), status.clone()))).unwrap();
        };
        done(&jobs()[0]);
        pass(3);
        assert_eq!(jobs().len(), 2);
        jobs().iter().for_each(|job| done(job));
        pass(4);
        assert_eq!(read().body["status"]["lastSuccessfulTime"], "2026-01-01T00:00:00Z");
        // One of those that are over is kept, and the newest runs.
        pass(4);
        assert_eq!(jobs().len(), 2, "{:?}", jobs().iter().map(|job| job.name().to_string()).collect::<Vec<_>>());
        store.modify(&read().key(), |cron| cron.body["spec"]["suspend"] = true.into()).unwrap();
        pass(9);
        assert_eq!(jobs().len(), 2);
    }
}
