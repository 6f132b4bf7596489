//! The types of resources that are served, in the order in which they are pushed.

use weft_proto::type_url;

/// A type of resource. The order is that of a push: what others refer to comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Clusters.
    Cluster,
    /// Endpoints of clusters.
    Endpoint,
    /// Listeners.
    Listener,
    /// Route configurations.
    Route,
    /// Virtual hosts of route configurations.
    VirtualHost,
    /// Secrets of gateways.
    Secret,
    /// The DNS name table.
    NameTable,
    /// What a proxy asked for that takes only what it asks for.
    Demand,
}

/// All, in the order of a push.
pub const KINDS: [Kind; 8] = [
    Kind::Cluster,
    Kind::Endpoint,
    Kind::Listener,
    Kind::Route,
    Kind::VirtualHost,
    Kind::Secret,
    Kind::NameTable,
    Kind::Demand,
];

/// Types of which an answer to a question is made up ([`Kind::Demand`]).
pub(crate) const ANSWERS: [Kind; 5] = [Kind::Cluster, Kind::Endpoint, Kind::Listener, Kind::Route, Kind::VirtualHost];

impl Kind {
    /// The type of a type URL; `None` for types that are not served.
    pub fn of(type_url: &str) -> Option<Self> {
        KINDS.into_iter().find(|kind| kind.type_url() == type_url)
    }

    /// The type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Kind::Cluster => type_url::CLUSTER,
            Kind::Endpoint => type_url::ENDPOINT,
            Kind::Listener => type_url::LISTENER,
            Kind::Route => type_url::ROUTE,
            Kind::VirtualHost => type_url::VIRTUAL_HOST,
            Kind::Secret => type_url::SECRET,
            Kind::NameTable => type_url::NAME_TABLE,
            Kind::Demand => type_url::DEMAND,
        }
    }

    /// The short name: `CDS` …
    pub fn short(self) -> &'static str {
        match self {
            Kind::Cluster => "CDS",
            Kind::Endpoint => "EDS",
            Kind::Listener => "LDS",
            Kind::Route => "RDS",
            Kind::VirtualHost => "VHDS",
            Kind::Secret => "SDS",
            Kind::NameTable => "NDS",
            Kind::Demand => "DEMAND",
        }
    }

    /// Position in [`KINDS`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// An empty first request means all resources, not none (xDS protocol, "how the client specifies what resources to
    /// return"); the name table is asked for in the same way.
    pub(crate) fn empty_means_all(self) -> bool {
        matches!(self, Kind::Cluster | Kind::Listener | Kind::NameTable)
    }

    /// A state-of-the-world response must hold all resources of the type: what is missing is removed by the client.
    pub(crate) fn is_full_state(self) -> bool {
        matches!(self, Kind::Cluster | Kind::Listener | Kind::NameTable)
    }
}
