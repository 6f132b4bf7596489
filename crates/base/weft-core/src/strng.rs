//! `Strng`: an immutable, cheaply cloned string, and an interner that stores equal strings once.

use std::collections::HashSet;
use std::sync::Arc;

/// A shared immutable string; a clone is one reference count.
pub type Strng = Arc<str>;

/// Stores each distinct string once. One per configuration build: dropped with what it interned.
#[derive(Debug, Default)]
pub struct Interner {
    seen: HashSet<Strng, foldhash::fast::RandomState>,
}

impl Interner {
    /// The one shared copy of `text`.
    pub fn intern(&mut self, text: &str) -> Strng {
        if let Some(found) = self.seen.get(text) {
            return found.clone();
        }
        let stored: Strng = Arc::from(text);
        self.seen.insert(stored.clone());
        stored
    }

    /// Forgets the strings that nobody else holds.
    pub fn sweep(&mut self) {
        self.seen.retain(|text| Arc::strong_count(text) > 1);
    }

    /// Number of distinct strings held.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Holds none.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_are_one() {
        let mut interner = Interner::default();
        assert!(Arc::ptr_eq(&interner.intern("a"), &interner.intern("a")));
        assert!(!Arc::ptr_eq(&interner.intern("a"), &interner.intern("b")));
        let kept = interner.intern("a");
        interner.sweep();
        assert_eq!(interner.len(), 1, "only {kept} is held elsewhere");
    }
}
