//! Endpoints: ClusterLoadAssignment.

use super::Ctx;
use crate::{Endpoint, EndpointHealth, EndpointMetadata, EndpointSet, LocalityEndpoints};
use std::sync::Arc;
use weft_core::Strng;
use weft_proto::Value;
use weft_proto::envoy::config::core::v3 as core;
use weft_proto::envoy::config::endpoint::v3 as proto;
use weft_route::error::Path;
use weft_route::refuse_set;

/// Endpoints accepted for one cluster.
const MAX_ENDPOINTS: usize = 100_000;

impl Ctx<'_> {
    /// The endpoints of a cluster.
    pub(crate) fn endpoints(&mut self, message: &proto::ClusterLoadAssignment, path: &Path<'_>) -> EndpointSet {
        let proto::ClusterLoadAssignment { cluster_name: _, endpoints, named_endpoints, policy } = message;
        refuse_set!(self.c.errors, path, named_endpoints);
        let mut set = EndpointSet { overprovisioning: 140, ..EndpointSet::default() };
        if let Some(policy) = policy {
            set.overprovisioning = policy.overprovisioning_factor.unwrap_or(140);
            let drops = policy.drop_overloads.iter().enumerate().map(|(i, drop)| {
                let path = path.field("policy");
                drop.drop_percentage.as_ref().map_or(0, |p| self.c.ppm(p, &path.item("drop_overloads", i)))
            });
            set.drop = drops.sum::<u32>().min(1_000_000);
        }
        let total: usize = endpoints.iter().map(|l| l.lb_endpoints.len()).sum();
        if total > MAX_ENDPOINTS {
            self.c.errors.refuse(path, format!("{total} endpoints; the limit is {MAX_ENDPOINTS}"));
            return set;
        }
        for (i, locality) in endpoints.iter().enumerate() {
            let locality = self.locality(locality, &path.item("endpoints", i));
            set.localities.push(locality);
        }
        // Lower priorities first; the order within a priority is kept.
        set.localities.sort_by_key(|l| l.priority);
        set
    }

    fn locality(&mut self, message: &proto::LocalityLbEndpoints, path: &Path<'_>) -> LocalityEndpoints {
        let proto::LocalityLbEndpoints {
            locality,
            metadata: _,
            lb_endpoints,
            load_balancing_weight,
            priority,
            proximity: _,
            lb_config,
        } = message;
        refuse_set!(self.c.errors, path, lb_config);
        let name = locality.as_ref().map(locality_name).unwrap_or_default();
        let endpoints = lb_endpoints
            .iter()
            .enumerate()
            .filter_map(|(i, endpoint)| self.endpoint(endpoint, &path.item("lb_endpoints", i)))
            .collect();
        LocalityEndpoints {
            locality: self.c.pool.text(&name),
            priority: *priority,
            weight: load_balancing_weight.unwrap_or(0),
            endpoints,
        }
    }

    fn endpoint(&mut self, message: &proto::LbEndpoint, path: &Path<'_>) -> Option<Endpoint> {
        let Some(proto::lb_endpoint::HostIdentifier::Endpoint(endpoint)) = &message.host_identifier else {
            self.c.errors.refuse(path, "must have an endpoint (endpoint_name is not supported)");
            return None;
        };
        let address = self.endpoint_address(endpoint.address.as_ref(), &path.field("endpoint").field("address"))?;
        let metadata = self.endpoint_metadata(message.metadata.as_ref());
        let hostname = (!endpoint.hostname.is_empty()).then(|| self.c.pool.text(&endpoint.hostname));
        let check_path = path.field("endpoint");
        let check =
            self.endpoint_check(endpoint.health_check_config.as_ref(), &check_path.field("health_check_config"));
        Some(Endpoint {
            address,
            weight: message.load_balancing_weight.unwrap_or(1).max(1),
            health: health(message.health_status),
            hostname,
            metadata,
            check,
        })
    }

    fn endpoint_metadata(&mut self, metadata: Option<&core::Metadata>) -> Arc<EndpointMetadata> {
        let fields = |key: &str| metadata.and_then(|m| m.filter_metadata.get(key));
        let transport = fields("envoy.transport_socket_match").map(|s| self.texts(s)).unwrap_or_default();
        let labels = fields("envoy.lb").map(|s| self.texts(s)).unwrap_or_default();
        let workload = fields("istio").and_then(|s| text_of(s.fields.get("workload")?)).unwrap_or_default();
        self.shared.endpoint_metadata(EndpointMetadata { transport, labels, workload: workload.to_string() })
    }

    /// The string fields of a struct, sorted by name. Others cannot be matched and are left out.
    pub(crate) fn texts(&mut self, fields: &weft_proto::Struct) -> Vec<(Strng, Strng)> {
        let texts = fields.fields.iter().filter_map(|(name, value)| Some((name, text_of(value)?)));
        texts.map(|(name, text)| (self.c.pool.text(name), self.c.pool.text(text))).collect()
    }
}

/// `region/zone/subzone`, without what is empty at the end.
pub(crate) fn locality_name(locality: &core::Locality) -> String {
    let name = format!("{}/{}/{}", locality.region, locality.zone, locality.sub_zone);
    name.trim_end_matches('/').to_string()
}

pub(crate) fn text_of(value: &Value) -> Option<&str> {
    match &value.kind {
        Some(prost_types::value::Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

fn health(status: i32) -> EndpointHealth {
    match core::HealthStatus::try_from(status) {
        Ok(core::HealthStatus::Draining) => EndpointHealth::Draining,
        Ok(core::HealthStatus::Unhealthy | core::HealthStatus::Timeout) => EndpointHealth::Unhealthy,
        _ => EndpointHealth::Healthy,
    }
}
