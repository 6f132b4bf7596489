//! The connection limit of a filter chain, counted over the workers of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Connections open under one limit.
#[derive(Debug, Clone, Default)]
pub struct ConnectionCount(Arc<AtomicU64>);

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

    /// Places taken.
    pub fn open(&self) -> u64 {
        self.0.load(Relaxed)
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
    }
}
