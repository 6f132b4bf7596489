//! What was asked for and what is held, per type. Pure.

use crate::types::Wanted;
use std::collections::BTreeMap;
use weft_proto::type_url;

/// One type's state.
#[derive(Debug, Default)]
pub(crate) struct TypeState {
    /// What is wanted.
    pub(crate) interest: Wanted,
    /// Accepted resources, by name: their versions.
    pub(crate) held: BTreeMap<String, String>,
    /// Last version of the whole type (state of the world).
    pub(crate) version: String,
    /// Nonce of the last response on this stream.
    pub(crate) nonce: String,
}

/// All types, in the order in which they were first wanted.
#[derive(Debug, Default)]
pub(crate) struct States {
    order: Vec<String>,
    by_type: BTreeMap<String, TypeState>,
}

impl States {
    pub(crate) fn get_mut(&mut self, type_url: &str) -> &mut TypeState {
        if !self.by_type.contains_key(type_url) {
            // What says which resources there are for this proxy goes before all of them: a control plane that hears of it
            // later would take back what the proxy has.
            let place = if type_url == type_url::DEMAND { 0 } else { self.order.len() };
            self.order.insert(place, type_url.to_string());
        }
        self.by_type.entry(type_url.to_string()).or_default()
    }

    pub(crate) fn known(&self, type_url: &str) -> bool {
        self.by_type.get(type_url).is_some_and(|state| !state.interest.is_empty())
    }

    /// Something of the type is wanted, or was.
    pub(crate) fn ever_wanted(&self, type_url: &str) -> bool {
        self.by_type.contains_key(type_url)
    }

    /// Types that something is wanted of, in order.
    pub(crate) fn wanted(&self) -> Vec<(&str, &TypeState)> {
        let all = self.order.iter().filter_map(|t| Some((t.as_str(), self.by_type.get(t)?)));
        all.filter(|(_, state)| !state.interest.is_empty()).collect()
    }

    /// Forgets what belongs to the stream that ended.
    pub(crate) fn new_stream(&mut self) {
        for state in self.by_type.values_mut() {
            state.nonce.clear();
        }
    }
}

impl TypeState {
    /// Takes a new interest; drops what is no longer wanted from what is held, and what is asked for anew. The names to
    /// subscribe and to unsubscribe.
    pub(crate) fn change_interest(&mut self, new: Wanted) -> (Vec<String>, Vec<String>) {
        let old = std::mem::replace(&mut self.interest, new);
        let new = &self.interest;
        let of = |names: &BTreeMap<String, u64>, is: &dyn Fn(&str, u64) -> bool| -> Vec<String> {
            names.iter().filter(|(name, wish)| is(name, **wish)).map(|(name, _)| name.clone()).collect()
        };
        let mut subscribe = of(&new.names, &|name, wish| old.names.get(name) != Some(&wish));
        let mut unsubscribe = of(&old.names, &|name, _| !new.names.contains_key(name));
        let stays = |name: &str| new.names.get(name).is_some_and(|wish| old.names.get(name) == Some(wish));
        match (old.wildcard, new.wildcard) {
            (false, true) => subscribe.push("*".into()),
            (true, false) => unsubscribe.push("*".into()),
            _ => {}
        }
        self.held.retain(|name, _| new.wildcard || covered(name, stays));
        (subscribe, unsubscribe)
    }
}

/// True when `name`, or the collection it belongs to, is among what `is_wanted`.
fn covered(name: &str, is_wanted: impl Fn(&str) -> bool) -> bool {
    is_wanted(name) || name.split_once('/').is_some_and(|(collection, _)| is_wanted(&format!("{collection}/*")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Interest;

    fn wanted(names: &[&str]) -> Wanted {
        Wanted::default().next(Interest::named(names.iter().copied()), 1)
    }

    #[test]
    fn what_is_asked_for_is_said_first() {
        let mut states = States::default();
        for kind in [type_url::CLUSTER, type_url::DEMAND, type_url::LISTENER] {
            states.get_mut(kind).change_interest(wanted(&["x"]));
        }
        let order: Vec<&str> = states.wanted().into_iter().map(|(wanted, _)| wanted).collect();
        assert_eq!(order, [type_url::DEMAND, type_url::CLUSTER, type_url::LISTENER]);
    }

    #[test]
    fn interest_changes() {
        let mut state = TypeState::default();
        let held = |names: [&str; 2]| names.map(|name| (name.to_string(), "1".to_string())).into();
        assert_eq!(state.change_interest(wanted(&["a", "80/*"])), (vec!["80/*".into(), "a".into()], vec![]));
        state.held = held(["a", "80/x"]);
        assert_eq!(state.change_interest(wanted(&["80/*", "b"])), (vec!["b".into()], vec!["a".into()]));
        assert_eq!(state.held.keys().collect::<Vec<_>>(), ["80/x"]);
        let all = Wanted { wildcard: true, ..Wanted::default() };
        assert_eq!(state.change_interest(all), (vec!["*".into()], vec!["80/*".into(), "b".into()]));
    }

    #[test]
    fn what_was_dropped_and_is_wanted_again_is_asked_for_anew_though_nobody_looked_in_between() {
        let first = wanted(&["a", "b", "80/*"]);
        let mut state = TypeState::default();
        state.change_interest(first.clone());
        state.held = ["a", "b", "80/x"].map(|name| (name.to_string(), "1".to_string())).into();
        let again = first.next(Interest::named(["b"]), 2).next(Interest::named(["a", "b", "80/*"]), 3);
        assert!(again.is(&Interest::named(["a", "b", "80/*"])));
        assert_eq!(state.change_interest(again.clone()), (vec!["80/*".into(), "a".into()], vec![]));
        assert_eq!(state.held.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(state.change_interest(again), (vec![], vec![]));
    }
}
