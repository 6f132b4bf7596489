//! `/etc/resolv.conf`: name servers and search domains. Pure.

use std::net::{IpAddr, SocketAddr};

/// Where a pod's resolver configuration is.
pub const PATH: &str = "/etc/resolv.conf";
/// Name servers used; resolv.conf(5) has three.
const MAX_SERVERS: usize = 3;

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Name servers, in the order to ask.
    pub servers: Vec<SocketAddr>,
    /// Search domains.
    pub search: Vec<String>,
}

impl ResolvConf {
    /// Reads the text. Lines that are not understood are passed over, as resolvers do.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A scoped IPv6 address keeps its scope out: fe80::1%eth0.
                    let ip = words.next().and_then(|word| word.split('%').next()?.parse::<IpAddr>().ok());
                    if let Some(ip) = ip.filter(|_| conf.servers.len() < MAX_SERVERS) {
                        conf.servers.push(SocketAddr::new(ip, 53));
                    }
                }
                // The last one of either counts.
                Some("search") => conf.search = words.map(str::to_owned).collect(),
                Some("domain") => conf.search = words.take(1).map(str::to_owned).collect(),
                _ => {}
            }
        }
        conf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_writes() {
        let text = "# made by the kubelet\nsearch default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\n\
                    nameserver fe80::1%eth0 ; second\nnameserver nonsense\noptions ndots:5\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(conf.servers, ["10.96.0.10:53".parse().unwrap(), "[fe80::1]:53".parse().unwrap()]);
        assert_eq!(conf.search, ["default.svc.cluster.local", "svc.cluster.local"]);
        let many = "nameserver 1.1.1.1\n".repeat(9);
        assert_eq!(ResolvConf::parse(&many).servers.len(), 3);
        assert_eq!(ResolvConf::parse(""), ResolvConf::default());
    }
}
