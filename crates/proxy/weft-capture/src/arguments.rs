//! The options of the container that sets up redirection, as texts: those of Istio's `istio-iptables`, by their meaning.

use crate::annotations::{interface_list, no_star, port_list, range_list};
use crate::config::{CaptureConfig, DnsCapture, InboundMode, OutboundRanges, Ports, ProxyOwner};
use std::net::IpAddr;
use weft_core::well_known::{PROXY_UID, port};

/// Options as they were typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// `-p`: the proxy's port for what the pod sends.
    pub outbound_port: u16,
    /// `-z`: the proxy's port for what the pod receives.
    pub inbound_port: u16,
    /// `-u`: user ids of the proxy, comma-separated.
    pub uids: String,
    /// `-g`: group ids of the proxy, comma-separated; empty = those of `-u`.
    pub gids: String,
    /// `-m`: `REDIRECT`, `TPROXY` to keep the client's address, or `NONE` for no redirection of inbound traffic.
    pub mode: String,
    /// `-t`: the mark of `TPROXY`; empty = 1337.
    pub tproxy_mark: String,
    /// `-r`: the routing table of `TPROXY`; empty = 133.
    pub tproxy_table: String,
    /// `-b`: inbound ports, `*` for all, empty for none.
    pub inbound_ports: String,
    /// `-d`: inbound ports that are not redirected.
    pub exclude_inbound_ports: String,
    /// `-i`: outbound ranges, `*` for all, empty for none.
    pub outbound_ranges: String,
    /// `-x`: outbound ranges that are not redirected.
    pub exclude_outbound_ranges: String,
    /// `-q`: outbound ports redirected whatever the address.
    pub outbound_ports: String,
    /// `-o`: outbound ports that are not redirected.
    pub exclude_outbound_ports: String,
    /// `-c`: interfaces that are left alone.
    pub exclude_interfaces: String,
    /// `-k`: interfaces of virtual machines.
    pub virtual_interfaces: String,
    /// `--redirect-dns`: DNS queries go to the proxy.
    pub dns: bool,
    /// Servers to which queries are redirected; empty = all.
    pub dns_servers: Vec<IpAddr>,
}

impl Default for Arguments {
    fn default() -> Self {
        let none = String::new;
        Self {
            outbound_port: port::OUTBOUND,
            inbound_port: port::INBOUND,
            uids: PROXY_UID.to_string(),
            gids: none(),
            mode: "REDIRECT".into(),
            tproxy_mark: none(),
            tproxy_table: none(),
            inbound_ports: none(),
            exclude_inbound_ports: none(),
            outbound_ranges: none(),
            exclude_outbound_ranges: none(),
            outbound_ports: none(),
            exclude_outbound_ports: none(),
            exclude_interfaces: none(),
            virtual_interfaces: none(),
            dns: false,
            dns_servers: Vec::new(),
        }
    }
}

impl Arguments {
    /// What they ask for.
    ///
    /// # Errors
    /// The option that cannot be followed, and what would be right.
    pub fn config(&self) -> Result<CaptureConfig, String> {
        let listed = |name: &str, text: &str| no_star(name, port_list(name, text)?);
        let inbound = match port_list("-b", &self.inbound_ports)? {
            None => Ports::All,
            Some(ports) => Ports::Only(ports),
        };
        let (inbound, inbound_mode) = match self.mode.as_str() {
            "" | "REDIRECT" => (inbound, InboundMode::Redirect),
            "NONE" => (Ports::Only(Vec::new()), InboundMode::Redirect),
            "TPROXY" => (inbound, self.tproxy()?),
            other => return Err(format!("-m {other:?} is not known; use REDIRECT, TPROXY or NONE")),
        };
        let uids = ids("-u", &self.uids)?;
        let gids = if self.gids.trim().is_empty() { uids.clone() } else { ids("-g", &self.gids)? };
        Ok(CaptureConfig {
            owner: ProxyOwner::Ids { uids, gids },
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            outbound: range_list("-i", &self.outbound_ranges)?.map_or(OutboundRanges::All, OutboundRanges::Only),
            exclude_outbound: no_star("-x", range_list("-x", &self.exclude_outbound_ranges)?)?,
            include_outbound_ports: listed("-q", &self.outbound_ports)?,
            exclude_outbound_ports: listed("-o", &self.exclude_outbound_ports)?,
            inbound_mode,
            inbound,
            exclude_inbound_ports: listed("-d", &self.exclude_inbound_ports)?,
            exclude_interfaces: interface_list("-c", &self.exclude_interfaces)?,
            virtual_interfaces: interface_list("-k", &self.virtual_interfaces)?,
            dns: self.dns.then(|| DnsCapture { servers: self.dns_servers.clone(), ..DnsCapture::default() }),
        })
    }
}

impl Arguments {
    fn tproxy(&self) -> Result<InboundMode, String> {
        let InboundMode::Tproxy { mark, table } = InboundMode::TPROXY else { return Ok(InboundMode::TPROXY) };
        let number = |name: &str, text: &str, usual: u32| match text.trim() {
            "" => Ok(usual),
            text => match text.parse::<u32>() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(format!("{name}: {text:?} is not a number from 1")),
            },
        };
        let (mark, table) = (number("-t", &self.tproxy_mark, mark)?, number("-r", &self.tproxy_table, table)?);
        if (253..=255).contains(&table) {
            return Err(format!("-r {table} is a table of the kernel's own; use another one, such as 133"));
        }
        Ok(InboundMode::Tproxy { mark, table })
    }
}

fn ids(name: &str, text: &str) -> Result<Vec<u32>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let read = |part: &str| match part.parse::<u32>() {
        // Root runs much else besides the proxy.
        Ok(id) if id > 0 => Ok(id),
        _ => Err(format!("{name}: {part:?} is not the id of a user other than root; write numbers, comma-separated")),
    };
    let ids: Vec<u32> = parts.map(read).collect::<Result<_, _>>()?;
    match ids.is_empty() {
        true => Err(format!("{name} names nobody: the proxy's own traffic would come back to it")),
        false => Ok(ids),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_injector_writes() {
        let arguments = Arguments {
            outbound_ranges: "*".into(),
            inbound_ports: "*".into(),
            exclude_inbound_ports: "15090,15021,15020".into(),
            ..Arguments::default()
        };
        let config = arguments.config().unwrap();
        assert_eq!((&config.outbound, &config.inbound), (&OutboundRanges::All, &Ports::All));
        assert_eq!(config.owner, ProxyOwner::Ids { uids: vec![1337], gids: vec![1337] });
        assert_eq!(config.exclude_inbound_ports, [15090, 15021, 15020]);
        // Nothing is named, nothing is redirected.
        let config = Arguments::default().config().unwrap();
        assert_eq!((config.outbound, config.inbound), (OutboundRanges::Only(vec![]), Ports::Only(vec![])));
    }

    #[test]
    fn what_cannot_be_followed() {
        let of = |change: fn(&mut Arguments)| {
            let mut arguments = Arguments::default();
            change(&mut arguments);
            arguments.config()
        };
        for (config, said) in [
            (of(|a| a.mode = "MAGIC".into()), "MAGIC"),
            (of(|a| (a.mode, a.tproxy_mark) = ("TPROXY".into(), "0".into())), "-t"),
            (of(|a| (a.mode, a.tproxy_table) = ("TPROXY".into(), "254".into())), "-r 254"),
            (of(|a| a.uids = "0".into()), "root"),
            (of(|a| a.uids = String::new()), "nobody"),
            (of(|a| a.outbound_ranges = "10.0.0.0/99".into()), "-i"),
            (of(|a| a.exclude_outbound_ports = "x".into()), "-o"),
            (of(|a| a.exclude_interfaces = "a;b".into()), "-c"),
            (of(|a| a.exclude_inbound_ports = "*".into()), "-d"),
        ] {
            let error = config.unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        let transparent = of(|a| (a.mode, a.inbound_ports) = ("TPROXY".into(), "*".into())).unwrap();
        assert_eq!((transparent.inbound, transparent.inbound_mode), (Ports::All, InboundMode::TPROXY));
        assert_eq!(
            of(|a| {
                a.mode = "NONE".into();
                a.inbound_ports = "*".into()
            })
            .unwrap()
            .inbound,
            Ports::Only(vec![])
        );
    }
}
