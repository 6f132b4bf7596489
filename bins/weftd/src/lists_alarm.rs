//! The alarm before revocation lists end. A list that has ended cannot be told from one that somebody holds back, so proxies
//! refuse every chain under it (as Envoy does, whose BoringSSL says "CRL has expired"): the mesh stands still until there is a
//! new one. What the metrics say for machines, the log says here for people, in good time and with the way out.

use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use weft_ca::Signing;

/// How long before the end it is said first, and then urgently.
const EARLY: Duration = Duration::from_secs(7 * 24 * 3600);
const URGENT: Duration = Duration::from_secs(24 * 3600);
/// How often lists are looked at.
const LOOK: Duration = Duration::from_secs(30);
/// How often the same is said again.
const AGAIN: Duration = Duration::from_secs(3600);
/// The way out.
const NEXT: &str = "put newer lists into ca-crl.pem of the authority's Secret or folder; workloads take them from their mounted \
                    files, without a connection to anybody";

/// How near the end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nearness {
    Early,
    Urgent,
    Over,
}

impl Nearness {
    /// `None`: it is far.
    fn of(until: SystemTime, now: SystemTime) -> Option<Self> {
        match until.duration_since(now).unwrap_or_default() {
            Duration::ZERO => Some(Self::Over),
            left if left <= URGENT => Some(Self::Urgent),
            left if left <= EARLY => Some(Self::Early),
            _ => None,
        }
    }
}

/// What was said last, and when.
#[derive(Debug, Default)]
struct Alarm(Option<(Nearness, SystemTime)>);

impl Alarm {
    /// What is to be said now of lists of which the first ends at `until`.
    fn look(&mut self, until: Option<SystemTime>, now: SystemTime) -> Option<(Nearness, String)> {
        let Some((until, nearness)) = until.and_then(|until| Some((until, Nearness::of(until, now)?))) else {
            self.0 = None;
            return None;
        };
        let known = |at: &SystemTime| now.duration_since(*at).is_ok_and(|since| since < AGAIN);
        if self.0.as_ref().is_some_and(|(before, at)| *before == nearness && known(at)) {
            return None;
        }
        self.0 = Some((nearness, now));
        let end = jiff::Timestamp::try_from(until).map_or_else(|_| "an unknown time".into(), |end| end.to_string());
        let what = match nearness {
            Nearness::Over => format!("a revocation list has ended at {end}, and every certificate is refused"),
            _ => format!("a revocation list ends at {end}, when every certificate will be refused"),
        };
        Some((nearness, format!("{what}: {NEXT}")))
    }
}

/// Watches the lists in force for as long as there is somebody who signs.
pub(crate) async fn watch(mut signing: watch::Receiver<Signing>) {
    let mut alarm = Alarm::default();
    loop {
        let until = signing.borrow_and_update().lists_until();
        match alarm.look(until, SystemTime::now()) {
            Some((Nearness::Early, text)) => tracing::warn!("{text}"),
            Some((_, text)) => tracing::error!("{text}"),
            None => {}
        }
        tokio::select! {
            changed = signing.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_list_is_told_in_good_time_with_the_way_out_and_not_each_time() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
        let end = Some(start + 10 * day);
        let mut alarm = Alarm::default();
        for (now, until, want) in [
            (start, None, None),
            (start, end, None),
            (start + 3 * day, end, Some(Nearness::Early)),
            (start + 3 * day + hour / 2, end, None),
            (start + 3 * day + hour, end, Some(Nearness::Early)),
            (start + 9 * day, end, Some(Nearness::Urgent)),
            (start + 9 * day, end, None),
            (start + 10 * day, end, Some(Nearness::Over)),
            (start + 10 * day + hour, end, Some(Nearness::Over)),
            // A newer list, which ends in its turn.
            (start + 10 * day + hour, Some(start + 20 * day), None),
            (start + 20 * day, Some(start + 20 * day), Some(Nearness::Over)),
        ] {
            let said = alarm.look(until, now);
            assert_eq!(said.as_ref().map(|(nearness, _)| *nearness), want, "{now:?}");
            if let Some((nearness, text)) = said {
                assert_eq!(text.contains("has ended at"), nearness == Nearness::Over, "{text}");
                assert!(text.contains("put newer lists into ca-crl.pem"), "{text}");
            }
        }
    }
}
