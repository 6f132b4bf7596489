//! Patches of route configurations, virtual hosts and routes: inside of whole configurations, of those of the inbound
//! listener, and of virtual hosts that are sent one by one.

use super::patch::{list, merge, on_list, text};
use super::select::Facts;
use super::{Item, Rewritten, Work, rewrite};
use crate::pb::route::{Route, RouteConfiguration, VirtualHost};
use crate::resource::ProxyResources;
use serde_json::Value;
use weft_k8s_api::istio::{ApplyTo, PatchOperation as Op, RouteMatchAction, VirtualHostMatch};
use weft_proto::json;

/// Applies the patches to all configurations and virtual hosts.
pub(super) fn apply(facts: &Facts, work: Work<'_>, resources: &mut ProxyResources) {
    let items = work.items;
    rewrite::<RouteConfiguration>(&mut resources.routes, work, &|name, whole| {
        let mine = items.iter().filter(|item| facts.route(item.patch, name, false));
        patched::<RouteConfiguration>(mine, whole, &|item, value| configuration(facts, item, value, false))
    });
    rewrite::<VirtualHost>(&mut resources.virtual_hosts, work, &|name, whole| {
        let of = name.split_once('/').map_or(name, |(configuration, _)| configuration);
        let mine = items.iter().filter(|item| facts.route(item.patch, of, false));
        let removed = |item: &&&Item<'_>| item.patch.apply_to == ApplyTo::VirtualHost && item.op() == Op::Remove;
        let host = whole();
        if let Some(item) = mine.clone().filter(removed).find(|item| is_wanted_host(item, &host)) {
            item.applied();
            return Rewritten::Removed;
        }
        patched::<VirtualHost>(mine, whole, &|item, value| virtual_host(item, value))
    });
}

/// The message after all patches; one whose outcome is no message is as if it were not there.
fn patched<'a, 'b: 'a, M: prost::Message + prost::Name + Default>(
    items: impl Iterator<Item = &'a &'a Item<'b>>,
    whole: &dyn Fn() -> Value,
    each: &dyn Fn(&Item<'_>, &mut Value),
) -> Rewritten {
    let mut value: Option<Value> = None;
    for item in items {
        let before = value.clone().unwrap_or_else(whole);
        let mut next = before.clone();
        each(item, &mut next);
        if next == before {
            continue;
        }
        if json::from_json::<M>(&next).is_ok() {
            value = Some(next);
        } else {
            item.failed();
        }
    }
    value.map_or(Rewritten::Same, Rewritten::Changed)
}

/// Applies one patch to a route configuration; `inline` when it is inside of the inbound listener.
pub(super) fn configuration(facts: &Facts, item: &Item<'_>, value: &mut Value, inline: bool) {
    if !facts.route(item.patch, text(value, "name"), inline) {
        return;
    }
    match (item.patch.apply_to, item.op()) {
        (ApplyTo::RouteConfiguration, op @ (Op::Merge | Op::MergeAndReplaceList)) => {
            if let Some(more) = item.value_of::<RouteConfiguration>() {
                merge(value, &more, op == Op::MergeAndReplaceList);
                item.applied();
            }
        }
        (ApplyTo::VirtualHost, op @ (Op::Add | Op::Remove)) => {
            let more = (op == Op::Add).then(|| item.value_of::<VirtualHost>()).flatten();
            if let Some(hosts) = list(value, "virtual_hosts") {
                on_list(hosts, item, more.as_ref(), &|host| is_wanted_host(item, host), &|_| false);
            }
        }
        (ApplyTo::VirtualHost | ApplyTo::HttpRoute, _) => {
            for host in list(value, "virtual_hosts").into_iter().flatten() {
                virtual_host(item, host);
            }
        }
        _ => {}
    }
}

fn wanted_host(item: &Item<'_>) -> VirtualHostMatch {
    let configuration = item.patch.matches.as_ref().and_then(|m| m.route_configuration.as_ref());
    configuration.and_then(|r| r.vhost.clone()).unwrap_or_default()
}

fn is_wanted_host(item: &Item<'_>, host: &Value) -> bool {
    let wanted = wanted_host(item);
    let domains = host.get("domains").and_then(Value::as_array);
    let domain = |name: &str| domains.is_some_and(|list| list.iter().any(|d| d == name));
    (wanted.name.is_empty() || text(host, "name") == wanted.name)
        && (wanted.domain_name.is_empty() || domain(&wanted.domain_name))
}

fn virtual_host(item: &Item<'_>, host: &mut Value) {
    if !is_wanted_host(item, host) {
        return;
    }
    if item.patch.apply_to == ApplyTo::VirtualHost {
        if matches!(item.op(), Op::Merge | Op::MergeAndReplaceList)
            && let Some(more) = item.value_of::<VirtualHost>()
        {
            merge(host, &more, item.op() == Op::MergeAndReplaceList);
            item.applied();
        }
        return;
    }
    if item.patch.apply_to != ApplyTo::HttpRoute {
        return;
    }
    let wanted = wanted_host(item).route.unwrap_or_default();
    let value = (item.op() != Op::Remove).then(|| item.value_of::<Route>()).flatten();
    let is_wanted = |route: &Value| {
        let action = match wanted.action {
            RouteMatchAction::Any => true,
            RouteMatchAction::Route => route.get("route").is_some(),
            RouteMatchAction::Redirect => route.get("redirect").is_some(),
            RouteMatchAction::DirectResponse => route.get("direct_response").is_some(),
        };
        action && (wanted.name.is_empty() || text(route, "name") == wanted.name)
    };
    if let Some(routes) = list(host, "routes") {
        on_list(routes, item, value.as_ref(), &is_wanted, &|_| false);
    }
}
