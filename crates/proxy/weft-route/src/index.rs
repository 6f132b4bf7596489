//! From virtual hosts to a table: the index of domains. Virtual hosts are shared, so a change of one of thousands costs a
//! new index and one compiled virtual host.

use crate::{ConfigError, HeaderOps, RouteTable, Severity, VirtualHost, WildcardIndex};
use std::collections::hash_map::Entry;
use std::sync::Arc;
use weft_core::Strng;

/// What a table holds beside its virtual hosts.
#[derive(Debug, Clone, Default)]
pub struct TableSettings {
    /// Name of the route configuration.
    pub name: String,
    /// Header operations for all requests and responses.
    pub headers: HeaderOps,
    /// Match domains without the port of the authority.
    pub ignore_port_in_host: bool,
    /// The route's header operations are applied last, and so win.
    pub most_specific_wins: bool,
    /// Virtual hosts come by VHDS.
    pub vhds: bool,
}

impl RouteTable {
    /// Builds the table. A domain that two virtual hosts claim stays with the first, and is reported.
    pub fn build(
        settings: TableSettings,
        virtual_hosts: impl Iterator<Item = Arc<VirtualHost>>,
    ) -> (RouteTable, Vec<ConfigError>) {
        let virtual_hosts: Vec<_> = virtual_hosts.collect();
        let TableSettings { name, headers, ignore_port_in_host, most_specific_wins, vhds } = settings;
        let mut table = RouteTable {
            name,
            headers,
            ignore_port_in_host,
            most_specific_wins,
            vhds,
            virtual_hosts,
            ..Default::default()
        };
        let errors = table.index();
        (table, errors)
    }

    fn index(&mut self) -> Vec<ConfigError> {
        let hosts = std::mem::take(&mut self.virtual_hosts);
        let mut errors = Vec::new();
        self.exact.reserve(hosts.iter().map(|h| h.domains.len()).sum());
        for (i, host) in hosts.iter().enumerate() {
            // More than 2^32 virtual hosts do not fit into memory.
            let number = u32::try_from(i).unwrap_or(u32::MAX);
            for domain in &host.domains {
                if let Some(owner) = self.claim(domain, number)
                    && owner != number
                {
                    let other = hosts.get(owner as usize).map_or("", |h| h.name.as_str());
                    errors.push(ConfigError {
                        resource: format!("route {}", self.name),
                        path: format!("virtual_hosts[{:?}].domains", host.name),
                        message: format!(
                            "domain {domain:?} belongs to virtual host {other:?} already, and stays there"
                        ),
                        severity: Severity::Degraded,
                    });
                }
            }
        }
        self.virtual_hosts = hosts;
        self.suffixes.sort_lengths();
        self.prefixes.sort_lengths();
        self.exact.shrink_to_fit();
        errors
    }

    /// Enters a domain; the virtual host that has it already, if there is one.
    fn claim(&mut self, domain: &Strng, number: u32) -> Option<u32> {
        if &**domain == "*" {
            if self.catch_all.is_none() {
                self.catch_all = Some(number);
                return None;
            }
            return self.catch_all;
        }
        if let Some(suffix) = domain.strip_prefix('*') {
            return self.suffixes.claim(suffix, number);
        }
        if let Some(prefix) = domain.strip_suffix('*') {
            return self.prefixes.claim(prefix, number);
        }
        match self.exact.entry(domain.clone()) {
            Entry::Occupied(entry) => Some(*entry.get()),
            Entry::Vacant(entry) => {
                entry.insert(number);
                None
            }
        }
    }
}

impl WildcardIndex {
    fn claim(&mut self, text: &str, number: u32) -> Option<u32> {
        match self.domains.entry(text.into()) {
            Entry::Occupied(entry) => Some(*entry.get()),
            Entry::Vacant(entry) => {
                entry.insert(number);
                // A longer domain matches no host: hosts are bounded far below.
                let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
                if !self.lengths.contains(&length) {
                    self.lengths.push(length);
                }
                None
            }
        }
    }

    fn sort_lengths(&mut self) {
        self.lengths.sort_unstable_by(|a, b| b.cmp(a));
    }

    /// The longest entry that `host` ends with; the star stands for at least one character.
    pub fn find_suffix(&self, host: &str) -> Option<u32> {
        self.find(host, |host, length| host.get(host.len() - length..))
    }

    /// The longest entry that `host` begins with; the star stands for at least one character.
    pub fn find_prefix(&self, host: &str) -> Option<u32> {
        self.find(host, |host, length| host.get(..length))
    }

    fn find(&self, host: &str, part: impl Fn(&str, usize) -> Option<&str>) -> Option<u32> {
        self.lengths
            .iter()
            .map(|length| usize::from(*length))
            .filter(|length| *length < host.len())
            .find_map(|length| self.domains.get(part(host, length)?).copied())
    }
}
