//! The kinds that are served now: those of the table, and those that CustomResourceDefinitions in the store define. A
//! snapshot; a request keeps the one that it began with. A definition of a kind that the table has changes nothing.

use crate::custom::Custom;
use crate::defaults;
use std::cmp::Reverse;
use weft_k8s_api::KindInfo;
use weft_k8s_api::kinds::KINDS;
use weft_store::{ListQuery, MemoryStore};

/// Group and kind of definitions.
pub(crate) const DEFINITION: (&str, &str) = ("apiextensions.k8s.io", "CustomResourceDefinition");

/// What pods and nodes take: asked, never stored. Served where there is who runs the pods.
pub(crate) static MEASURED: [&KindInfo; 2] = [
    &KindInfo {
        group: "metrics.k8s.io",
        versions: &["v1beta1"],
        kind: "NodeMetrics",
        plural: "nodes",
        singular: "",
        short: &[],
        namespaced: false,
        categories: &[],
    },
    &KindInfo {
        group: "metrics.k8s.io",
        versions: &["v1beta1"],
        kind: "PodMetrics",
        plural: "pods",
        singular: "",
        short: &[],
        namespaced: true,
        categories: &[],
    },
];

/// All kinds.
#[derive(Default)]
pub struct Kinds {
    /// Revision of the definitions.
    pub(crate) revision: u64,
    custom: Vec<Custom>,
    /// Whether there is who can be asked for the measured kinds.
    measured: bool,
}

impl Kinds {
    /// Those of the table and of the definitions in a store; the measured ones where there is who can be asked.
    pub(crate) fn read(store: &MemoryStore, measured: bool) -> Self {
        let revision = store.kind_revision(DEFINITION.0, DEFINITION.1);
        let mut kinds = Self { revision, custom: Vec::new(), measured };
        let Ok(list) = store.list(&ListQuery::all(DEFINITION.0, DEFINITION.1)) else { return kinds };
        for definition in &list.items {
            if let Some(custom) = Custom::read(definition)
                && kinds.by_kind(custom.info.group, custom.info.kind).is_none()
                && kinds.by_plural(custom.info.group, custom.info.plural).is_none()
            {
                kinds.custom.push(custom);
            }
        }
        kinds
    }

    /// All rows.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'static KindInfo> + '_ {
        let measured = MEASURED.iter().copied().filter(|_| self.measured);
        KINDS.iter().chain(self.custom.iter().map(|c| c.info)).chain(measured)
    }

    /// The kind of that group and name.
    pub fn by_kind(&self, group: &str, kind: &str) -> Option<&'static KindInfo> {
        self.all().find(|k| k.group == group && k.kind == kind)
    }

    /// The kind of that group and plural.
    pub fn by_plural(&self, group: &str, plural: &str) -> Option<&'static KindInfo> {
        self.all().find(|k| k.group == group && k.plural == plural)
    }

    /// What is defined of a kind; `None` for kinds of the table.
    pub(crate) fn custom(&self, kind: &KindInfo) -> Option<&Custom> {
        self.custom.iter().find(|c| c.info.group == kind.group && c.info.kind == kind.kind)
    }

    /// Whether the kind has a status that is written apart from the rest.
    pub(crate) fn has_status(&self, kind: &KindInfo) -> bool {
        self.custom(kind).map_or_else(|| defaults::has_status(kind), |c| c.versions.iter().any(|v| v.status))
    }

    /// The kinds that a group serves in a version.
    pub(crate) fn of<'a>(&'a self, group: &'a str, version: &'a str) -> impl Iterator<Item = &'static KindInfo> + 'a {
        self.all().filter(move |k| k.group == group && k.versions.contains(&version))
    }

    /// The group versions, the groups in the order of the table, the best version of each first.
    pub(crate) fn group_versions(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
        for kind in self.all() {
            let at = groups.iter().position(|(g, _)| *g == kind.group).unwrap_or_else(|| {
                groups.push((kind.group, Vec::new()));
                groups.len() - 1
            });
            if let Some((_, versions)) = groups.get_mut(at) {
                for version in kind.versions {
                    if !versions.contains(version) {
                        versions.push(version);
                    }
                }
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|v| priority(v));
        }
        groups.push(("authentication.k8s.io", vec!["v1"]));
        groups.push(("authorization.k8s.io", vec!["v1"]));
        groups
    }
}

/// The order of versions: `v2`, `v1`, `v1beta2`, `v1beta1`, `v1alpha3`, then anything else.
/// Source: "Versions in CustomResourceDefinitions", "Version priority".
fn priority(version: &str) -> (u8, Reverse<u32>, Reverse<u32>) {
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (major, rest) = rest.split_at_checked(digits)?;
        let major = major.parse().ok()?;
        let (rank, minor) = if rest.is_empty() {
            (0, 0)
        } else if let Some(minor) = rest.strip_prefix("beta") {
            (1, minor.parse().ok()?)
        } else {
            (2, rest.strip_prefix("alpha")?.parse().ok()?)
        };
        Some((rank, Reverse(major), Reverse(minor)))
    };
    parse().unwrap_or((3, Reverse(0), Reverse(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_groups() {
        let kinds = Kinds::default();
        let groups = kinds.group_versions();
        let istio = groups.iter().find(|(g, _)| *g == "networking.istio.io").unwrap();
        assert_eq!(istio.1, ["v1", "v1beta1", "v1alpha3"]);
        assert!(kinds.of("networking.istio.io", "v1alpha3").any(|k| k.kind == "EnvoyFilter"));
        assert!(!kinds.of("networking.istio.io", "v1").any(|k| k.kind == "EnvoyFilter"));
        let mut versions = ["foo", "v1alpha3", "v1", "v1beta1", "v10", "v1beta2", "v2"];
        versions.sort_by_key(|v| priority(v));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha3", "foo"]);
    }
}
