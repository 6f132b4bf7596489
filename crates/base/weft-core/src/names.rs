//! The names by which control plane and proxy know clusters, and the SNI that carries them between proxies.
//!
//! Forms (spec 1:§3.8): cluster `outbound|<port>|<subset>|<host>`, inbound `inbound|<port>||`, SNI
//! `outbound_.<port>_.<subset>_.<host>`.

use std::fmt;

/// Cluster that forwards to the address the client dialled.
pub const PASSTHROUGH_CLUSTER: &str = "PassthroughCluster";
/// Cluster with no endpoints: what may not leave ends here.
pub const BLACK_HOLE_CLUSTER: &str = "BlackHoleCluster";
/// Cluster that forwards an inbound connection to the port it was meant for.
pub const INBOUND_PASSTHROUGH_CLUSTER: &str = "InboundPassthroughCluster";
/// Route configuration of the `ALLOW_ANY` virtual host.
pub const ALLOW_ANY_VIRTUAL_HOST: &str = "allow_any";
/// Route configuration of the `REGISTRY_ONLY` virtual host.
pub const BLOCK_ALL_VIRTUAL_HOST: &str = "block_all";

/// Which side of the workload a cluster serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From the network to the workload.
    Inbound,
    /// From the workload to the network.
    Outbound,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        })
    }
}

/// The parts of a cluster name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterName<'a> {
    /// Side of the workload.
    pub direction: Direction,
    /// Service port (outbound) or workload port (inbound).
    pub port: u16,
    /// Subset of the destination rule; empty for the whole service.
    pub subset: &'a str,
    /// Fully qualified host; empty for inbound clusters.
    pub host: &'a str,
}

impl<'a> ClusterName<'a> {
    /// An outbound cluster.
    pub fn outbound(port: u16, subset: &'a str, host: &'a str) -> Self {
        Self { direction: Direction::Outbound, port, subset, host }
    }

    /// The inbound cluster of a workload port.
    pub fn inbound(port: u16) -> ClusterName<'static> {
        ClusterName { direction: Direction::Inbound, port, subset: "", host: "" }
    }

    /// Reads a name back; `None` for clusters that are not made of parts (`PassthroughCluster` …).
    pub fn parse(name: &'a str) -> Option<Self> {
        let mut parts = name.splitn(4, '|');
        let direction = match parts.next()? {
            "inbound" => Direction::Inbound,
            "outbound" => Direction::Outbound,
            _ => return None,
        };
        Some(Self { direction, port: parts.next()?.parse().ok()?, subset: parts.next()?, host: parts.next()? })
    }

    /// The SNI a client proxy sends for this cluster.
    pub fn sni(&self) -> String {
        format!("{}_.{}_.{}_.{}", self.direction, self.port, self.subset, self.host)
    }
}

impl fmt::Display for ClusterName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}|{}|{}|{}", self.direction, self.port, self.subset, self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let name = ClusterName::outbound(9080, "v1", "reviews.default.svc.cluster.local");
        assert_eq!(name.to_string(), "outbound|9080|v1|reviews.default.svc.cluster.local");
        assert_eq!(ClusterName::parse(&name.to_string()), Some(name.clone()));
        assert_eq!(name.sni(), "outbound_.9080_.v1_.reviews.default.svc.cluster.local");
        assert_eq!(ClusterName::inbound(9080).to_string(), "inbound|9080||");
        for not in ["", PASSTHROUGH_CLUSTER, "outbound|x||h", "outbound|80"] {
            assert_eq!(ClusterName::parse(not), None, "{not}");
        }
    }
}
