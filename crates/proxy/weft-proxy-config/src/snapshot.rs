//! The snapshot: everything the data plane needs to serve, swapped in whole. A request holds the one it started with.

use crate::{Cluster, EndpointSet, Listener, Secret};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use weft_core::Strng;
use weft_route::RouteTable;

/// A hash map of shared names.
pub type Map<V> = HashMap<Strng, V, foldhash::fast::RandomState>;

/// One state of the whole configuration.
#[derive(Debug, Clone, Default)]
pub struct ProxySnapshot {
    /// Grows with each change.
    pub version: u64,
    /// Listeners by name.
    pub listeners: BTreeMap<Strng, Arc<Listener>>,
    /// Route tables by name.
    pub routes: Map<Arc<RouteTable>>,
    /// Clusters by name.
    pub clusters: Map<Arc<Cluster>>,
    /// Endpoints by EDS service name (the cluster's name unless it says otherwise).
    pub endpoints: Map<Arc<EndpointSet>>,
    /// TLS secrets by SDS name.
    pub secrets: Map<Arc<Secret>>,
}
