//! How often a caller may ask: a token bucket each. Bounded in callers; no I/O; the caller says what time it is.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Instant;

/// Callers whose buckets are kept.
const MAX_CALLERS: usize = 10_000;

/// A token bucket per caller.
#[derive(Debug)]
pub struct RateLimiter<K> {
    burst: f64,
    per_second: f64,
    buckets: HashMap<K, (f64, Instant)>,
}

impl<K: Hash + Eq + Clone> RateLimiter<K> {
    /// `burst` at once, `per_second` in the long run.
    pub fn new(burst: u32, per_second: u32) -> Self {
        Self { burst: f64::from(burst.max(1)), per_second: f64::from(per_second.max(1)), buckets: HashMap::new() }
    }

    /// Whether the caller's bucket has one, without taking it.
    pub fn has(&self, caller: &K, now: Instant) -> bool {
        let level = |bucket: &(f64, Instant)| refilled(*bucket, self.burst, self.per_second, now);
        self.buckets.get(caller).is_none_or(|bucket| level(bucket) >= 1.0)
    }

    /// Takes one from the caller's bucket; false = too often.
    pub fn allow(&mut self, caller: &K, now: Instant) -> bool {
        if !self.buckets.contains_key(caller) && self.buckets.len() >= MAX_CALLERS {
            let (burst, rate) = (self.burst, self.per_second);
            // A full bucket remembers nothing: it can go.
            self.buckets.retain(|_, bucket| refilled(*bucket, burst, rate, now) < burst);
            if self.buckets.len() >= MAX_CALLERS {
                return false;
            }
        }
        let bucket = self.buckets.entry(caller.clone()).or_insert((self.burst, now));
        let level = refilled(*bucket, self.burst, self.per_second, now);
        let allowed = level >= 1.0;
        *bucket = (if allowed { level - 1.0 } else { level }, now);
        allowed
    }
}

fn refilled((level, at): (f64, Instant), burst: f64, rate: f64, now: Instant) -> f64 {
    (level + now.saturating_duration_since(at).as_secs_f64() * rate).min(burst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_caller_has_a_bucket() {
        let mut limiter = RateLimiter::new(2, 1);
        let start = Instant::now();
        let answers: Vec<bool> = (0..3).map(|_| limiter.allow(&"a", start)).collect();
        assert_eq!(answers, [true, true, false]);
        assert!(limiter.allow(&"b", start));
        assert!(limiter.allow(&"a", start + Duration::from_secs(1)));
        assert!(!limiter.allow(&"a", start + Duration::from_secs(1)));
    }

    #[test]
    fn callers_are_bounded() {
        let mut limiter = RateLimiter::new(1, 1);
        let start = Instant::now();
        for caller in 0..MAX_CALLERS {
            assert!(limiter.allow(&caller, start));
        }
        assert!(!limiter.allow(&MAX_CALLERS, start));
        assert!(limiter.allow(&MAX_CALLERS, start + Duration::from_secs(2)));
    }
}
