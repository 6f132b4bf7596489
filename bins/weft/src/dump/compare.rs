//! What a proxy should have beside what it has, resource by resource: two dumps, of the control plane and of the proxy.

use super::{Dump, canonical, text};
use crate::install::difference::of_trees;
use serde_json::Value;
use std::collections::BTreeMap;

/// Most lines about one type.
const MAX_LINES: usize = 100;

/// A type of resources.
struct Section {
    name: &'static str,
    dump: &'static str,
    list: &'static [&'static str],
    path: &'static [&'static str],
    /// A proxy has all that there are; of others it has those that it asked for.
    all: bool,
}

const SECTIONS: [Section; 3] = [
    Section {
        name: "Clusters",
        dump: "ClustersConfigDump",
        list: &["dynamic_active_clusters"],
        path: &["cluster"],
        all: true,
    },
    Section {
        name: "Listeners",
        dump: "ListenersConfigDump",
        list: &["dynamic_listeners"],
        path: &["active_state", "listener"],
        all: true,
    },
    Section {
        name: "Routes",
        dump: "RoutesConfigDump",
        list: &["dynamic_route_configs"],
        path: &["route_config"],
        all: false,
    },
];

/// By type, what differs: a line for each place, `NAME PATH: wanted -> there`.
pub fn compare(wanted: &Dump, there: &Dump) -> Vec<(&'static str, Vec<String>)> {
    SECTIONS.iter().map(|section| (section.name, of_section(section, wanted, there))).collect()
}

fn of_section(section: &Section, wanted: &Dump, there: &Dump) -> Vec<String> {
    let (wanted, there) = (resources(section, wanted), resources(section, there));
    let missing = wanted.keys().filter(|name| section.all && !there.contains_key(*name));
    let mut lines: Vec<String> = missing.map(|name| format!("{name} is missing at the proxy")).collect();
    for (name, there) in &there {
        match wanted.get(name) {
            None => lines.push(format!("{name} is not the control plane's")),
            Some(wanted) => lines.extend(of_trees(wanted, there).into_iter().map(|line| format!("{name} {line}"))),
        }
    }
    if lines.len() > MAX_LINES {
        let more = lines.len() - MAX_LINES;
        lines.truncate(MAX_LINES);
        lines.push(format!("and {more} more"));
    }
    lines
}

/// Resources by name, in a form that does not depend on who wrote them.
fn resources(section: &Section, dump: &Dump) -> BTreeMap<String, Value> {
    let found = dump.items(section.dump, section.list, section.path);
    found.into_iter().map(|item| (text(item, "name").to_string(), in_order(canonical(item)))).collect()
}

/// Virtual hosts come one by one to some proxies: their order says nothing.
fn in_order(mut resource: Value) -> Value {
    if let Some(hosts) = resource.get_mut("virtualHosts").and_then(Value::as_array_mut) {
        hosts.sort_by_key(|host| text(host, "name").to_string());
    }
    whole_numbers(&mut resource);
    // What only says how the rest is to be got.
    if let Some(fields) = resource.as_object_mut() {
        fields.shift_remove("vhds");
        fields.shift_remove("@type");
    }
    resource
}

/// `100.0` and `100` are one number, which some write with a point. Dumps are not deep: what reads them refuses deep ones.
fn whole_numbers(value: &mut Value) {
    /// Up to here every whole number has a form of its own.
    const EXACT: f64 = 9e15;
    match value {
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        Value::Number(number) if number.is_f64() => {
            #[allow(clippy::cast_possible_truncation)]
            if let Some(whole) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < EXACT) {
                *value = (whole as i64).into();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dump(clusters: Value, hosts: Value) -> Dump {
        let text = json!({"configs": [
            {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters": clusters},
            {"@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
             "dynamic_route_configs": [{"route_config": {"name": "80", "virtual_hosts": hosts}}]},
        ]});
        Dump::parse(text.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn what_differs_is_told_by_its_place() {
        let cluster = |name: &str, wait: &str| json!({"cluster": {"name": name, "connect_timeout": wait, "weight": 100.0, "share": 0.5}});
        let wanted = dump(json!([cluster("a", "1s"), cluster("b", "1s")]), json!([{"name": "x"}, {"name": "y"}]));
        // Another's spelling and order.
        let same = dump(
            json!([{"cluster": {"name": "b", "connectTimeout": "1s", "weight": 100, "share": 0.5}}, cluster("a", "1s")]),
            json!([{"name": "y"}, {"name": "x"}]),
        );
        assert!(compare(&wanted, &same).iter().all(|(_, lines)| lines.is_empty()), "{:?}", compare(&wanted, &same));
        let other = dump(json!([cluster("a", "2s"), cluster("c", "1s")]), json!([{"name": "x"}]));
        let found = compare(&wanted, &other);
        assert_eq!(found[0].0, "Clusters");
        assert_eq!(found[0].1[0], "b is missing at the proxy");
        assert!(found[0].1[1].starts_with("a ") && found[0].1[1].contains("connectTimeout"), "{found:?}");
        assert_eq!(found[0].1[2], "c is not the control plane's");
        assert!(found[2].1[0].starts_with("80 ") && found[2].1[0].contains("virtualHosts"), "{found:?}");
    }
}
