//! What applied objects refer to and nobody has: hosts, subsets, gateways. Such objects are accepted, their own routes answer
//! 503; the user hears of it here.

use std::collections::{BTreeMap, BTreeSet};
use weft_k8s_api::istio::{Destination, DestinationRule, ServiceEntry, VirtualService};
use weft_k8s_api::{Object, parse_spec};

/// Suffix of service names in DNS.
const DOMAIN: &str = "svc.cluster.local";

/// Kinds that references lead to.
pub const REFERRED: [&str; 4] = ["Service", "ServiceEntry", "DestinationRule", "Gateway"];

/// True when objects of this kind refer to others.
pub fn refers(kind: &str) -> bool {
    matches!(kind, "VirtualService" | "DestinationRule")
}

/// What there is to refer to: the server's objects and those that are applied along.
#[derive(Debug, Default)]
pub struct World {
    hosts: BTreeSet<String>,
    /// Subsets by full host.
    subsets: BTreeMap<String, BTreeSet<String>>,
    gateways: BTreeSet<String>,
}

impl World {
    /// Adds an object; kinds that nothing refers to are passed over.
    pub fn add(&mut self, object: &Object) {
        match object.kind.as_str() {
            "Service" => {
                self.hosts.insert(format!("{}.{}.{DOMAIN}", object.name(), object.namespace()));
            }
            "ServiceEntry" => {
                let spec: ServiceEntry = parse_spec(object).unwrap_or_default();
                self.hosts.extend(spec.hosts.iter().map(|h| h.to_ascii_lowercase()));
            }
            "DestinationRule" => {
                let spec: DestinationRule = parse_spec(object).unwrap_or_default();
                let names = spec.subsets.into_iter().map(|s| s.name);
                self.subsets.entry(full_host(&spec.host, object.namespace())).or_default().extend(names);
            }
            "Gateway" => {
                self.gateways.insert(format!("{}/{}", object.namespace(), object.name()));
            }
            _ => {}
        }
    }

    fn has_host(&self, host: &str) -> bool {
        self.hosts.contains(host) || self.hosts.iter().any(|known| covers(known, host))
    }

    fn has_subset(&self, host: &str, subset: &str) -> bool {
        self.subsets.iter().any(|(rule, names)| (rule == host || covers(rule, host)) && names.contains(subset))
    }

    /// What an object refers to and the world does not have, one sentence each.
    pub fn missing(&self, object: &Object) -> Vec<String> {
        match object.kind.as_str() {
            "VirtualService" => self.missing_of_virtual_service(object),
            "DestinationRule" => {
                let spec: DestinationRule = parse_spec(object).unwrap_or_default();
                let host = full_host(&spec.host, object.namespace());
                let wildcard = host.starts_with('*');
                let missing = !wildcard && !self.has_host(&host);
                missing.then(|| no_host(object, "spec.host", &spec.host, &host)).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn missing_of_virtual_service(&self, object: &Object) -> Vec<String> {
        let spec: VirtualService = parse_spec(object).unwrap_or_default();
        let mut found = Vec::new();
        for (i, gateway) in spec.gateways.iter().enumerate().filter(|(_, g)| *g != "mesh") {
            let full =
                if gateway.contains('/') { gateway.clone() } else { format!("{}/{gateway}", object.namespace()) };
            if !self.gateways.contains(&full) {
                let problem = format!("there is no gateway {full}; the routes wait for it");
                found.push(format!("{}: spec.gateways[{i}]: {problem}", object.key()));
            }
        }
        for (path, destination) in destinations(&spec) {
            let host = full_host(&destination.host, object.namespace());
            if host.parse::<std::net::IpAddr>().is_ok() {
                continue;
            }
            if !self.has_host(&host) {
                found.push(no_host(object, &format!("{path}.host"), &destination.host, &host));
            } else if !destination.subset.is_empty() && !self.has_subset(&host, &destination.subset) {
                let problem = format!(
                    "no destination rule for {host} has the subset {:?}; requests get 503 until one does",
                    destination.subset
                );
                found.push(format!("{}: {path}.subset: {problem}", object.key()));
            }
        }
        found
    }
}

fn no_host(object: &Object, path: &str, written: &str, full: &str) -> String {
    let problem = match written == full {
        true => format!("there is no service {full}"),
        false => format!("there is no service {full} (written {written:?})"),
    };
    format!("{}: {path}: {problem}; add a Service or ServiceEntry, or correct the host", object.key())
}

/// A short name means a service of the object's own namespace.
fn full_host(host: &str, namespace: &str) -> String {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    match host.matches('.').count() {
        _ if host.starts_with('*') => host,
        0 => format!("{host}.{namespace}.{DOMAIN}"),
        _ => host,
    }
}

/// True when `wide` is a wildcard that covers `host`.
fn covers(wide: &str, host: &str) -> bool {
    wide.strip_prefix('*').is_some_and(|suffix| host.len() > suffix.len() && host.ends_with(suffix))
}

/// Every destination of a virtual service with its path.
fn destinations(spec: &VirtualService) -> Vec<(String, &Destination)> {
    let mut found = Vec::new();
    for (i, route) in spec.http.iter().enumerate() {
        let path = format!("spec.http[{i}]");
        for (j, to) in route.route.iter().enumerate() {
            found.extend(to.destination.iter().map(|d| (format!("{path}.route[{j}].destination"), d)));
        }
        found.extend(route.mirror.iter().map(|d| (format!("{path}.mirror"), d)));
        for (j, mirror) in route.mirrors.iter().enumerate() {
            found.extend(mirror.destination.iter().map(|d| (format!("{path}.mirrors[{j}].destination"), d)));
        }
    }
    for (i, route) in spec.tls.iter().enumerate() {
        for (j, to) in route.route.iter().enumerate() {
            found.extend(to.destination.iter().map(|d| (format!("spec.tls[{i}].route[{j}].destination"), d)));
        }
    }
    for (i, route) in spec.tcp.iter().enumerate() {
        for (j, to) in route.route.iter().enumerate() {
            found.extend(to.destination.iter().map(|d| (format!("spec.tcp[{i}].route[{j}].destination"), d)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_k8s_api::yaml;

    fn objects(text: &str) -> Vec<Object> {
        yaml::documents(text, "t").unwrap().into_iter().map(|d| d.object).collect()
    }

    fn world(text: &str) -> World {
        let mut world = World::default();
        objects(text).iter().for_each(|o| world.add(o));
        world
    }

    const WORLD: &str = "
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: default}
spec: {hosts: ['*.wikipedia.org', httpbin.org]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews, subsets: [{name: v1}, {name: v2}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: g, namespace: istio-system}
";

    #[test]
    fn what_is_missing_is_named() {
        let world = world(WORLD);
        let virtual_service = |spec: &str| {
            let text = format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: x, namespace: default}}\nspec: {spec}\n"
            );
            world.missing(&objects(&text)[0])
        };
        let to = |destination: &str| {
            virtual_service(&format!("{{hosts: [a], http: [{{route: [{{destination: {destination}}}]}}]}}"))
        };
        for good in [
            "{host: reviews, subset: v1}",
            "{host: reviews.default.svc.cluster.local, subset: v2}",
            "{host: en.wikipedia.org}",
            "{host: httpbin.org}",
            "{host: 10.1.2.3}",
        ] {
            assert_eq!(to(good), [""; 0], "{good}");
        }
        for (bad, path, part) in [
            ("{host: ratings}", "spec.http[0].route[0].destination.host", "ratings.default.svc.cluster.local"),
            ("{host: reviews.other.svc.cluster.local}", "destination.host", "no service"),
            ("{host: reviews, subset: v9}", "spec.http[0].route[0].destination.subset", "\"v9\""),
        ] {
            let found = to(bad);
            assert!(found[0].contains(path) && found[0].contains(part), "{bad}: {found:?}");
            assert!(found[0].starts_with("VirtualService default/x: "), "{found:?}");
        }
        let found = virtual_service("{hosts: [a], gateways: [g, istio-system/g, mesh], http: []}");
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("spec.gateways[0]: there is no gateway default/g"), "{found:?}");
        let found = virtual_service(
            "{hosts: [a], tcp: [{route: [{destination: {host: b}}]}], http: [{mirror: {host: c}, route: []}]}",
        );
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn destination_rules_too() {
        let world = world(WORLD);
        let rule = |host: &str| {
            let text = format!(
                "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: x, namespace: n1}}\nspec: {{host: '{host}'}}\n"
            );
            world.missing(&objects(&text)[0]).len()
        };
        assert_eq!(rule("reviews"), 1, "short names are of the own namespace");
        assert_eq!(rule("reviews.default.svc.cluster.local"), 0);
        assert_eq!(rule("*.local"), 0);
    }
}
