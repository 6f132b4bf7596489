//! From a [`MeshSnapshot`](weft_model::MeshSnapshot) and a proxy node to xDS resources. Pure: no I/O, no clock, no
//! randomness; equal input gives equal bytes.
//!
//! Reading order: [`proxy`] (who asks), [`scope`] (what it sees), [`generate`] (the steps), [`resource`] (what comes out);
//! then by type: `cluster`, `endpoint`, `route`, `listener`, `gateway`, `name_table`; what several need: `traffic` (traffic
//! policies), `authn`, `authz`, `observe` (logs, traces, metrics), `pb` (builders of messages). [`envoy_filter`] (patches of
//! finished messages). [`on_demand`] (the part of it that a proxy asked for).

mod authn;
mod authz;
mod cluster;
mod endpoint;
pub mod envoy_filter;
mod gateway;
pub mod generate;
mod host;
mod listener;
mod name_table;
mod observe;
pub mod on_demand;
mod pb;
pub mod proxy;
pub mod resource;
mod route;
pub mod scope;
mod shared;
mod traffic;

pub use generate::{GenCache, generate, generate_endpoints};
pub use pb::value::{PROVENANCE_KEY, read_provenance};
pub use proxy::ProxyView;
pub use resource::{ProxyResources, Resource, ResourceMap, Resources};
pub use scope::{AskedFacts, HeaderSettings, Scope, ScopeKey};
