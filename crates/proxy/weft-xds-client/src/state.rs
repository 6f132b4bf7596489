//! What was asked for and what is held, per type. Pure.

use crate::types::Interest;
use std::collections::BTreeMap;
use weft_proto::type_url;

/// One type's state.
#[derive(Debug, Default)]
pub(crate) struct TypeState {
    /// What is wanted.
    pub(crate) interest: Interest,
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
    /// Takes a new interest; drops what is no longer wanted from what is held. The names to subscribe and to unsubscribe.
    pub(crate) fn change_interest(&mut self, new: Interest) -> (Vec<String>, Vec<String>) {
        let mut subscribe: Vec<String> = new.names.difference(&self.interest.names).cloned().collect();
        let mut unsubscribe: Vec<String> = self.interest.names.difference(&new.names).cloned().collect();
        match (self.interest.wildcard, new.wildcard) {
            (false, true) => subscribe.push("*".into()),
            (true, false) => unsubscribe.push("*".into()),
            _ => {}
        }
        self.interest = new;
        let interest = &self.interest;
        self.held.retain(|name, _| interest.wildcard || covers(interest, name));
        (subscribe, unsubscribe)
    }
}

/// True when `name`, or the collection it belongs to, was asked for.
fn covers(interest: &Interest, name: &str) -> bool {
    interest.names.contains(name)
        || name.split_once('/').is_some_and(|(collection, _)| interest.names.contains(&format!("{collection}/*")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_said_first() {
        let mut states = States::default();
        for wanted in [type_url::CLUSTER, type_url::DEMAND, type_url::LISTENER] {
            states.get_mut(wanted).change_interest(Interest::named(["x"]));
        }
        let order: Vec<&str> = states.wanted().into_iter().map(|(wanted, _)| wanted).collect();
        assert_eq!(order, [type_url::DEMAND, type_url::CLUSTER, type_url::LISTENER]);
    }

    #[test]
    fn interest_changes() {
        let mut state = TypeState::default();
        assert_eq!(state.change_interest(Interest::named(["a", "80/*"])), (vec!["80/*".into(), "a".into()], vec![]));
        state.held = [("a", "1"), ("80/x", "1")].map(|(n, v)| (n.to_string(), v.to_string())).into();
        assert_eq!(state.change_interest(Interest::named(["80/*", "b"])), (vec!["b".into()], vec!["a".into()]));
        assert_eq!(state.held.keys().collect::<Vec<_>>(), ["80/x"]);
        assert_eq!(state.change_interest(Interest::all()), (vec!["*".into()], vec!["80/*".into(), "b".into()]));
    }
}
