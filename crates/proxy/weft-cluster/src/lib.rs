//! Upstream clusters: which endpoint a request goes to, and the connection it goes on. One [`ClusterManager`] per worker;
//! nothing is kept of a cluster before its first use. What a cluster *is* stands in `weft_proxy_config`; what is done with
//! an answer (retries, timeouts) is the data plane's matter.
//!
//! Reading order: [`manager`] (name → live cluster), [`cluster`] (its live state), [`hosts`] (endpoints, priorities,
//! localities), `subsets`, [`lb`] (the pick), [`outlier`], [`health`] (what workers know together), [`check`] (active health checks),
//! [`limits`] (circuit breakers), [`dns`], then [`pool`] (connections), [`connect`], [`error`], [`stats`].

pub mod check;
pub mod cluster;
pub mod connect;
pub mod dns;
pub mod error;
pub mod health;
pub mod hosts;
mod http1;
mod http2;
pub mod lb;
pub mod limits;
pub mod manager;
pub mod outlier;
pub mod pool;
mod probe;
pub mod stats;
pub mod status;
mod subsets;

pub use cluster::{LiveCluster, PickContext};
pub use connect::{ConnectionFacts, Source};
pub use dns::Resolver;
pub use error::{Retry, UpstreamError};
pub use hosts::Host;
pub use manager::{ClusterManager, ClusterShared};
pub use pool::{Lease, OwnPools, SendFailure, Want};
pub use stats::ClusterStats;
pub use status::{ClusterStatus, HostStatus};
