//! HTTP and network filters: what is decided about a connection or request before it is forwarded, and what is counted of
//! it. Each filter is a function of what is known; the order in which they are asked stands in the connection manager's
//! configuration and is walked by the data plane.
//!
//! Modules in the order in which a request usually meets them: [`limit`] (open connections), [`jwt`], [`rbac`], [`ext_authz`], [`ratelimit`], [`cors`], [`fault`], [`compress`],
//! [`peer`] (who is at the other end), [`metrics`] (the mesh's standard metrics), [`trace`] (spans).

pub mod compress;
pub mod cors;
pub mod ext_authz;
pub mod fault;
pub mod grpc_web;
pub mod jwt;
pub mod limit;
pub mod metrics;
pub mod peer;
pub mod ratelimit;
pub mod rbac;
pub mod trace;

pub use metrics::{Labels, Measured, MeshMetrics, Protocol, Security};
pub use peer::{LocalWorkload, Parties, Party};
