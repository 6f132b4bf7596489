//! The listener that captured outbound connections come to, and what happens to those that no other listener is for.

use super::chain::Chain;
use super::{Maker, tcp};
use crate::observe::Side;
use crate::pb::core::TrafficDirection;
use crate::pb::listener::{Filter, Listener};
use crate::pb::{self, address};
use crate::route::convert;
use weft_core::names;

/// Name of the listener.
pub(crate) const NAME: &str = "virtualOutbound";
/// Port of the listener unless the mesh config says otherwise.
const DEFAULT_PORT: u16 = weft_core::well_known::port::OUTBOUND;
/// Name of the chain for unknown destinations inside other listeners.
pub(super) const PASSTHROUGH_CHAIN: &str = "PassthroughFilterChain";

impl Maker<'_> {
    /// The listener itself.
    pub(crate) fn virtual_outbound(&self, transparent: bool) -> Listener {
        let port = u16::try_from(self.view.mesh().proxy_listen_port).ok().filter(|p| *p != 0).unwrap_or(DEFAULT_PORT);
        let black_hole = tcp::to_cluster(names::BLACK_HOLE_CLUSTER);
        let chains = [
            // Connections to the listener's own port would come back to it for ever.
            Chain {
                name: format!("{NAME}-blackhole"),
                port: Some(port),
                filters: self.tcp_filters(Side::Client, black_hole, Vec::new()),
                ..Chain::default()
            },
            Chain { name: format!("{NAME}-catchall-tcp"), filters: self.unknown_destination(), ..Chain::default() },
        ];
        Listener {
            name: NAME.into(),
            address: Some(address::socket(self.view.scope.key.wildcard(), port)),
            additional_addresses: address::other_family(self.view.scope.key.wildcard(), port, self.view.scope.key.dual),
            use_original_dst: Some(true),
            transparent: transparent.then_some(true),
            traffic_direction: TrafficDirection::Outbound as i32,
            filter_chains: chains.into_iter().map(Chain::build).collect(),
            access_log: self.observe.side(Side::Client).listener_logs.clone(),
            ..Default::default()
        }
    }

    /// Filters for connections to an address that no service has.
    pub(super) fn unknown_destination(&self) -> Vec<Filter> {
        let scope = self.view.scope;
        let cluster = match (&scope.outbound.egress_proxy, scope.outbound.allow_any) {
            (_, false) => names::BLACK_HOLE_CLUSTER.to_string(),
            (Some(proxy), true) => convert::cluster_of(scope, proxy, 0),
            (None, true) => names::PASSTHROUGH_CLUSTER.to_string(),
        };
        self.tcp_filters(Side::Client, tcp::to_cluster(&cluster), Vec::new())
    }

    /// How long protocol detection waits for the client's first bytes; 0 = for ever.
    pub(crate) fn detection_timeout(&self) -> prost_types::Duration {
        self.view.mesh().protocol_detection_timeout.map_or_else(pb::zero, |t| pb::duration(t.get()))
    }
}
