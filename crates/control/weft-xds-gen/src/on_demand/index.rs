//! Which hosts and names there may be, label by label: so that a question costs what there is for it, and not what its labels
//! could be put together to. Which of them there are is looked up elsewhere.

use super::full_names;
use crate::resource::Resources;
use foldhash::quality::FixedState;
use std::collections::{BTreeSet, HashSet};
use std::hash::BuildHasher;
use weft_proto::istio::networking::nds::v1::NameTable;

/// Paths of labels that something begins with, as hashes: two that have the same cost a look-up in vain, no more.
#[derive(Debug, Default, PartialEq)]
struct Paths(HashSet<u64, foldhash::fast::RandomState>);

/// The path of no labels.
const ROOT: u64 = 0;

/// The path that goes on with `label`.
fn step(path: u64, label: &str) -> u64 {
    FixedState::with_seed(path).hash_one(label)
}

/// The path of a domain, from its end.
fn path_of(domain: &str) -> u64 {
    domain.rsplit('.').fold(ROOT, step)
}

impl Paths {
    fn add<'a>(&mut self, labels: impl Iterator<Item = &'a str>) {
        let mut path = ROOT;
        for label in labels {
            path = step(path, label);
            self.0.insert(path);
        }
    }

    /// How many of `labels` there are, one after the other, behind `path`.
    fn known<'a>(&self, mut path: u64, labels: impl Iterator<Item = &'a str>) -> usize {
        let goes_on = |label: &&str| {
            path = step(path, label);
            self.0.contains(&path)
        };
        labels.take_while(goes_on).count()
    }

    /// Ends of `host`, of one label, of two and so on, which something behind `path` ends with.
    fn ends<'h>(&self, path: u64, host: &'h str) -> Vec<&'h str> {
        let starts = host.rmatch_indices('.').map(|(at, _)| at + 1).chain([0]);
        starts.take(self.known(path, host.rsplit('.'))).filter_map(|start| host.get(start..)).collect()
    }

    /// Beginnings of `name`, of one label, of two and so on, which something begins with.
    fn beginnings<'h>(&self, name: &'h str) -> Vec<&'h str> {
        let ends = name.match_indices('.').map(|(at, _)| at).chain([name.len()]);
        ends.take(self.known(ROOT, name.split('.'))).filter_map(|end| name.get(..end)).collect()
    }
}

/// Hosts of the virtual hosts of a scope.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Hosts(Paths);

impl Hosts {
    /// Of virtual hosts that are named `<route>/<host>:<port>`.
    pub fn new(virtual_hosts: &Resources) -> Self {
        let mut paths = Paths::default();
        let names = virtual_hosts.keys().filter_map(|name| name.split_once('/')?.1.rsplit_once(':'));
        names.for_each(|(host, _)| paths.add(host.rsplit('.')));
        Self(paths)
    }

    /// Hosts that may have `host` among their domains, most of which there are: its own, that of the service whose short name
    /// it is, those that it is below (pods of a headless service have names below the service's), and wildcards above it.
    pub fn above(&self, proxy_domain: &str, host: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for end in self.0.ends(ROOT, host) {
            found.insert(end.to_string());
            if end.len() < host.len() {
                found.insert(format!("*.{end}"));
            }
        }
        for domain in super::search_domains(proxy_domain).iter().flatten() {
            found.extend(self.0.ends(path_of(domain), host).into_iter().map(|end| format!("{end}.{domain}")));
        }
        found
    }
}

/// Names that may be looked up.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Names {
    pub table: NameTable,
    beginnings: Paths,
    /// Ends of wildcards, the star included.
    wildcards: Paths,
}

impl Names {
    pub fn new(table: NameTable) -> Self {
        let (mut beginnings, mut wildcards) = (Paths::default(), Paths::default());
        for name in table.table.keys() {
            beginnings.add(name.split('.'));
            if name.starts_with("*.") {
                wildcards.add(name.rsplit('.'));
            }
        }
        Self { table, beginnings, wildcards }
    }

    /// Names of the table that `name` may stand for: as it is, completed, with a search domain taken off, or by a wildcard.
    pub fn of(&self, proxy_domain: &str, name: &str) -> BTreeSet<String> {
        let shorter = self.beginnings.beginnings(name).into_iter();
        let mut found: BTreeSet<String> =
            shorter.flat_map(|name| full_names(proxy_domain, name).into_iter().chain([name.into()])).collect();
        let ends = self.wildcards.ends(ROOT, name).into_iter().filter(|end| end.len() < name.len());
        found.extend(ends.map(|end| format!("*.{end}")));
        found.retain(|name| self.table.table.contains_key(name));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{Resource, by_name};
    use std::sync::Arc;
    use weft_proto::Any;

    fn hosts(names: &[String]) -> Hosts {
        let resource = |name: &String| Arc::new(Resource { name: name.as_str().into(), any: Any::default(), hash: 0 });
        Hosts::new(&by_name(names.iter().map(resource)))
    }

    /// However many labels a host has: only those that lead somewhere are followed.
    #[test]
    fn a_host_costs_what_there_is_for_it() {
        let long = vec!["a"; 120].join(".");
        let all = hosts(&["80/*.b.a:80", "80/a.default.svc.x:80", "80/a.prod.svc.x:80"].map(String::from));
        let found: Vec<String> = all.above("default.svc.x", &long).into_iter().collect();
        assert_eq!(found, ["*.a", "a", "a.default.svc.x"]);
        let deep = hosts(&[format!("80/{long}:80")]);
        assert_eq!(deep.above("default.svc.x", &format!("{long}.b")).len(), 0);
        assert_eq!(deep.above("default.svc.x", &long).len(), 120 + 119, "it is there, to the last label");
    }

    #[test]
    fn empty_labels_are_labels() {
        let all = hosts(&["80/a..b:80".into()]);
        assert!(all.above("default.svc.x", "a..b").contains("a..b"));
        for odd in ["", ".", "..", "a.", ".a", "a..c"] {
            all.above("", odd);
            all.above("default.svc.x", odd);
        }
    }
}
