//! The connection limit of a filter chain, counted over the workers of the process.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// Connections open under one limit.
#[derive(Debug, Clone, Default)]
pub struct ConnectionCount(Arc<AtomicU64>);

/// The same, for as long as somebody counts by it.
#[derive(Debug, Clone, Default)]
pub struct WeakCount(Weak<AtomicU64>);

/// One open connection; ends on drop.
#[derive(Debug)]
pub struct ConnectionPlace(Arc<AtomicU64>);

impl ConnectionCount {
    /// Takes a place, or `None` when `most` are taken.
    pub fn take(&self, most: u64) -> Option<ConnectionPlace> {
        if self.0.fetch_add(1, Relaxed) >= most {
            self.0.fetch_sub(1, Relaxed);
            return None;
        }
        Some(ConnectionPlace(self.0.clone()))
    }

    /// Finds the count for as long as somebody counts by it.
    pub fn downgrade(&self) -> WeakCount {
        WeakCount(Arc::downgrade(&self.0))
    }

    /// Places taken.
    pub fn open(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl WeakCount {
    /// The count, when somebody still counts by it or holds a place.
    pub fn upgrade(&self) -> Option<ConnectionCount> {
        self.0.upgrade().map(ConnectionCount)
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_end_on_drop() {
        let count = ConnectionCount::default();
        let first = count.take(1);
        assert!(first.is_some() && count.take(1).is_none());
        drop(first);
        assert!(count.take(1).is_some());
        assert_eq!(count.open(), 0);
        let (weak, last) = (count.downgrade(), count.take(1));
        drop(count);
        assert_eq!(weak.upgrade().map(|count| count.open()), Some(1), "an open connection keeps the count");
        drop(last);
        assert!(weak.upgrade().is_none());
    }
}
