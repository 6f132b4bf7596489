//! Patches of listeners, their filter chains, and the filters in these.

use super::patch::{has_name, list, on_list, text};
use super::select::{Facts, listener_match};
use super::{Item, Rewritten, Work, add, merge_checked, retired, rewrite, routes};
use crate::listener::tcp;
use crate::pb::listener::{FilterChain, Listener, ListenerFilter};
use crate::resource::ResourceMap;
use serde_json::Value;
use weft_k8s_api::istio::{ApplyTo, FilterMatch, PatchOperation as Op};
use weft_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use weft_proto::json;

/// Name of the filter that holds HTTP filters and routes.
const MANAGER: &str = "envoy.filters.network.http_connection_manager";

/// Applies the patches to all listeners, and adds whole ones.
pub(super) fn apply(facts: &Facts, work: Work<'_>, map: &mut ResourceMap) {
    rewrite::<Listener>(map, work, &|_, whole| {
        let original = whole();
        let mine: Vec<&&Item<'_>> = work.items.iter().filter(|item| facts.listener(item.patch, &original)).collect();
        if mine.is_empty() {
            return Rewritten::Same;
        }
        let mut value = original.clone();
        for item in mine {
            if item.patch.apply_to == ApplyTo::Listener && item.op() == Op::Remove {
                item.applied();
                return Rewritten::Removed;
            }
            let mut next = value.clone();
            one(facts, item, &mut next);
            // A patch whose outcome is no listener is as if it were not there.
            if next != value && json::from_json::<Listener>(&next).is_ok() {
                value = next;
            } else if next != value {
                item.failed();
            }
        }
        if value == original { Rewritten::Same } else { Rewritten::Changed(value) }
    });
    let added = work.items.iter().filter(|item| item.patch.apply_to == ApplyTo::Listener && item.op() == Op::Add);
    add::<Listener>(map, added, |listener| listener.name.clone());
}

fn one(facts: &Facts, item: &Item<'_>, listener: &mut Value) {
    match item.patch.apply_to {
        ApplyTo::Listener => {
            let op = item.op();
            if matches!(op, Op::Merge | Op::MergeAndReplaceList)
                && let Some(more) = item.value_of::<Listener>()
            {
                let mut merged = None;
                merge_checked::<Listener>(&mut merged, &|| listener.clone(), &more, op, item);
                if let Some(merged) = merged {
                    *listener = merged;
                }
            }
        }
        ApplyTo::ListenerFilter => {
            let wanted = listener_match(item.patch).map(|l| l.listener_filter.clone()).unwrap_or_default();
            let value = needs_value(item).then(|| item.value_of::<ListenerFilter>()).flatten();
            let meant = |f: &Value| has_name(f, &wanted);
            on_field(listener, "listener_filters", item, value.as_ref(), &meant, &|_| false);
        }
        _ => chains(facts, item, listener),
    }
}

/// Applies a patch to the list of that field, which may not be there.
fn on_field(
    value: &mut Value,
    field: &str,
    item: &Item<'_>,
    more: Option<&Value>,
    wanted: &dyn Fn(&Value) -> bool,
    ends: &dyn Fn(&Value) -> bool,
) {
    let mut all = match value.get_mut(field).map(Value::take) {
        Some(Value::Array(all)) => all,
        _ => Vec::new(),
    };
    on_list(&mut all, item, more, wanted, ends);
    match (all.is_empty(), value.as_object_mut()) {
        (true, Some(fields)) => drop(fields.remove(field)),
        (false, Some(fields)) => drop(fields.insert(field.to_string(), Value::Array(all))),
        (_, None) => {}
    }
}

fn needs_value(item: &Item<'_>) -> bool {
    item.op() != Op::Remove
}

fn chains(facts: &Facts, item: &Item<'_>, listener: &mut Value) {
    let whole = listener.clone();
    if item.patch.apply_to == ApplyTo::FilterChain {
        let value = needs_value(item).then(|| item.value_of::<FilterChain>()).flatten();
        let wanted = |chain: &Value| facts.chain(item.patch, &whole, chain);
        on_field(listener, "filter_chains", item, value.as_ref(), &wanted, &|_| false);
        return;
    }
    for field in ["filter_chains", "default_filter_chain"] {
        match listener.get_mut(field) {
            Some(Value::Array(chains)) => {
                chains.iter_mut().filter(|c| facts.chain(item.patch, &whole, c)).for_each(|c| filters(facts, item, c));
            }
            Some(chain @ Value::Object(_)) if facts.chain(item.patch, &whole, chain) => filters(facts, item, chain),
            _ => {}
        }
    }
}

fn filter_match(item: &Item<'_>) -> FilterMatch {
    let chain = listener_match(item.patch).and_then(|l| l.filter_chain.as_ref());
    chain.and_then(|c| c.filter.clone()).unwrap_or_default()
}

fn filters(facts: &Facts, item: &Item<'_>, chain: &mut Value) {
    let wanted = filter_match(item);
    if item.patch.apply_to == ApplyTo::NetworkFilter {
        let value = needs_value(item).then(|| item.network_filter(facts)).flatten();
        let ends = |f: &Value| text(f, "name") == MANAGER || text(f, "name") == tcp::FILTER;
        let meant = |f: &Value| {
            has_name(f, &wanted.name)
                || retired::is_place_of_stats(facts.weft, item.op(), &wanted.name, text(f, "name"))
        };
        on_field(chain, "filters", item, value.as_ref(), &meant, &ends);
        return;
    }
    for filter in list(chain, "filters").into_iter().flatten().filter(|f| text(f, "name") == MANAGER) {
        let Some(manager) = filter.get_mut("typed_config") else { continue };
        if item.patch.apply_to == ApplyTo::HttpFilter {
            let value = needs_value(item).then(|| item.value_of::<HttpFilter>()).flatten();
            let name = wanted.sub_filter.as_ref().map(|s| s.name.clone()).unwrap_or_default();
            let ends = |f: &Value| text(f, "name") == "envoy.filters.http.router";
            on_field(manager, "http_filters", item, value.as_ref(), &|f| has_name(f, &name), &ends);
        } else if let Some(inline) = manager.get_mut("route_config") {
            routes::configuration(facts, item, inline, true);
        }
    }
}
