//! What a client has of a type. As a rule that is what it wants of resources that many have, which are then named by their
//! common map alone; else each is written down.

use std::collections::{BTreeSet, HashMap};
use weft_core::Strng;
use weft_xds_gen::ResourceMap;

/// What a client has.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Everything that it wants of this, but for `not`. Then nothing is listed.
    of: Option<ResourceMap>,
    not: BTreeSet<Strng>,
    /// Name → hash.
    listed: HashMap<Strng, u64>,
}

impl Sent {
    /// All that is wanted of `map`.
    pub fn all_of(map: &ResourceMap) -> Self {
        Self { of: Some(map.clone()), ..Self::default() }
    }

    /// The map whose wanted resources it has, and the names of which it has not.
    pub fn of(&self) -> Option<(&ResourceMap, &BTreeSet<Strng>)> {
        self.of.as_ref().map(|map| (map, &self.not))
    }

    /// Hash of what it has by that name, when it wants it or not.
    pub fn get(&self, name: &str, wanted: bool) -> Option<u64> {
        match &self.of {
            None => self.listed.get(name).copied(),
            Some(map) => map.get(name).filter(|_| wanted && !self.not.contains(name)).map(|resource| resource.hash),
        }
    }

    /// Names that are listed; none when it has what it wants of a map.
    pub fn listed(&self) -> impl Iterator<Item = &Strng> {
        self.listed.keys()
    }

    /// It has none by that name, or is to be sent it again.
    pub fn forget(&mut self, name: &str) {
        match &self.of {
            None => drop(self.listed.remove(name)),
            Some(map) => {
                if let Some(resource) = map.get(name) {
                    self.not.insert(resource.name.clone());
                }
            }
        }
    }

    /// Forgets what is listed and not wanted. What is wanted no more of a map is not had by itself.
    pub fn retain(&mut self, wants: impl Fn(&str) -> bool) {
        self.listed.retain(|name, _| wants(name));
    }

    /// The list, written down first if there is none; `wants` is what it wanted so far.
    pub fn list(&mut self, wants: impl Fn(&str) -> bool) -> &mut HashMap<Strng, u64> {
        if let Some(map) = self.of.take() {
            let not = std::mem::take(&mut self.not);
            let has = map.iter().filter(|r| !not.contains(&r.name) && wants(&r.name));
            self.listed = has.map(|r| (r.name.clone(), r.hash)).collect();
        }
        &mut self.listed
    }
}
