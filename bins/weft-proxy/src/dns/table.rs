//! The names of the mesh and their addresses, as the control plane sends them. Pure.

use std::collections::HashMap;
use std::net::IpAddr;
use weft_proto::istio::networking::nds::v1 as nds;

/// Names of the mesh, lower case, without the trailing dot.
#[derive(Debug, Default)]
pub struct NameTable {
    exact: HashMap<String, Entry>,
    /// `*.suffix`, kept under `suffix`.
    wildcard: HashMap<String, Entry>,
    search: Vec<String>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// The name that the addresses belong to.
    host: String,
    ips: Vec<IpAddr>,
}

/// What is known of a name.
#[derive(Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// The full name when the query was for a shorter or longer form of it.
    pub canonical: Option<&'a str>,
    /// Its addresses, of both families.
    pub ips: &'a [IpAddr],
}

impl NameTable {
    /// Builds the table that a proxy in `namespace` sees, with the search domains of its pod.
    pub fn new(message: &nds::NameTable, namespace: &str, search: &[String]) -> Self {
        let mut table = Self { search: search.iter().map(|domain| normal(domain)).collect(), ..Self::default() };
        for (host, info) in &message.table {
            let ips: Vec<IpAddr> = info.ips.iter().filter_map(|ip| ip.parse().ok()).collect();
            // A name without addresses is somebody else's to resolve.
            if !ips.is_empty() {
                table.add(&normal(host), info, ips, namespace);
            }
        }
        table
    }

    fn add(&mut self, host: &str, info: &nds::name_table::NameInfo, ips: Vec<IpAddr>, namespace: &str) {
        let entry = Entry { host: host.to_owned(), ips };
        if let Some(suffix) = host.strip_prefix("*.") {
            self.wildcard.insert(suffix.to_owned(), entry);
            return;
        }
        let short = normal(&info.shortname);
        let mut aliases: Vec<String> = info.alt_hosts.iter().map(|alias| normal(alias)).collect();
        if info.registry == "Kubernetes" && !short.is_empty() {
            aliases.push(format!("{short}.{}", info.namespace));
            aliases.push(format!("{short}.{}.svc", info.namespace));
            if info.namespace == namespace {
                aliases.push(short);
            }
        }
        for alias in aliases {
            // A full name of its own wins over another's alias.
            self.exact.entry(alias).or_insert_with(|| entry.clone());
        }
        self.exact.insert(host.to_owned(), entry);
    }

    /// What is known of `name` (any case, with or without the trailing dot): the name itself, the name with one of the
    /// pod's search domains taken off (stub resolvers add them first), or a wildcard that covers it.
    pub fn find(&self, name: &str) -> Option<Found<'_>> {
        let name = normal(name);
        if let Some(entry) = self.exact.get(&name) {
            return Some(Found { canonical: None, ips: &entry.ips });
        }
        let searched = self.search.iter().filter_map(|domain| name.strip_suffix(domain.as_str())?.strip_suffix('.'));
        for stripped in searched {
            if let Some(entry) = self.exact.get(stripped) {
                return Some(Found { canonical: Some(&entry.host), ips: &entry.ips });
            }
        }
        let mut rest = name.as_str();
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(entry) = self.wildcard.get(suffix) {
                return Some(Found { canonical: None, ips: &entry.ips });
            }
            rest = suffix;
        }
        None
    }
}

fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> NameTable {
        let info = |ips: &[&str], registry: &str, shortname: &str, namespace: &str| nds::name_table::NameInfo {
            ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
            registry: registry.into(),
            shortname: shortname.into(),
            namespace: namespace.into(),
            ..Default::default()
        };
        let message = nds::NameTable {
            table: [
                ("reviews.default.svc.cluster.local", info(&["10.96.0.7"], "Kubernetes", "reviews", "default")),
                ("reviews.other.svc.cluster.local", info(&["10.96.0.8"], "Kubernetes", "reviews", "other")),
                ("api.example.com", info(&["240.240.0.1", "2001:2::1"], "External", "", "default")),
                ("*.wild.example", info(&["240.240.0.2"], "External", "", "default")),
                ("empty.example", info(&[], "External", "", "default")),
                ("broken.example", info(&["x"], "External", "", "default")),
            ]
            .into_iter()
            .map(|(host, info)| (host.to_owned(), info))
            .collect(),
        };
        let search = ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(str::to_owned);
        NameTable::new(&message, "default", &search)
    }

    #[test]
    fn names_and_their_variants() {
        let table = table();
        for (name, ip, canonical) in [
            ("reviews.default.svc.cluster.local", "10.96.0.7", None),
            ("Reviews.Default.svc.cluster.local.", "10.96.0.7", None),
            ("reviews", "10.96.0.7", None),
            ("reviews.default", "10.96.0.7", None),
            ("reviews.default.svc", "10.96.0.7", None),
            ("reviews.other", "10.96.0.8", None),
            ("reviews.other.svc.cluster.local", "10.96.0.8", None),
            // As a stub resolver asks: the search domain added to a name with dots.
            ("api.example.com.default.svc.cluster.local", "240.240.0.1", Some("api.example.com")),
            ("reviews.other.default.svc.cluster.local", "10.96.0.8", Some("reviews.other.svc.cluster.local")),
            ("a.wild.example", "240.240.0.2", None),
            ("a.b.wild.example", "240.240.0.2", None),
        ] {
            let found = table.find(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!((found.ips[0].to_string().as_str(), found.canonical), (ip, canonical), "{name}");
        }
        for name in ["", ".", "wild.example", "empty.example", "broken.example", "example.com", "xreviews", "local"] {
            assert_eq!(table.find(name), None, "{name}");
        }
    }
}
