//! The data plane: workers, listeners, connections, requests. Runs what [`weft_proxy_config::ProxySnapshot`] says; knows
//! nothing of where a snapshot comes from.
//!
//! Reading order follows a connection: [`control`] (start, listening sockets, the handle), [`worker`] (one thread), then
//! `listener` (which filter chain), `accept` (from accept to filter chain), `inspect` (first bytes), `tcp` (and `sni`) and `http`
//! (the last filter), and for HTTP `http::conn` (a connection), `http::serve` (the life of a request), `http::intake` (what is
//! let in), `http::forward` (towards the endpoint), `http::respond` (back to the client). Whether an open connection may stay is
//! asked in `standing`; what is recorded of all that stands in `record` and `log`. [`demand`] is for proxies that take only the
//! configuration that they use.

mod accept;
mod ask;
mod chain;
pub mod control;
pub mod demand;
mod downstream;
mod http;
mod inspect;
mod listener;
mod log;
pub mod options;
mod record;
mod sni;
mod sockets;
mod standing;
mod tcp;
mod through;
mod tunnel;
mod worker;

pub use control::{DataPlane, Handle, ListenerState, ListenerStatus};
pub use options::Options;
pub use weft_cluster::{ClusterStatus, HostStatus};
pub use weft_filter::LocalWorkload;
