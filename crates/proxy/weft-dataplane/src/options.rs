//! What a data plane is started with.

use crate::demand::Demands;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::time::Duration;
use weft_filter::LocalWorkload;
use weft_telemetry::Registry;

/// Options of a data plane.
#[derive(Debug)]
pub struct Options {
    /// Workers; one per core unless set.
    pub concurrency: NonZeroUsize,
    /// Listening sockets opened by somebody else (before privileges or a network namespace were left), by address. All
    /// workers accept on them.
    pub inherited: HashMap<SocketAddr, TcpListener>,
    /// Where metrics are counted.
    pub registry: Registry,
    /// This proxy's workload, for telemetry.
    pub local: LocalWorkload,
    /// Connections of clients open at once over all listeners that are not exempt (`ignore_global_conn_limit`); further ones
    /// are closed when they are accepted. Without limit unless set.
    pub max_connections: u64,
    /// Time left to connections of a filter chain that is gone before they are cut, whatever they do; 45 s unless set, as
    /// Istio's `drainDuration`; a day at most.
    pub retired_time: Duration,
    /// What is asked for, by a proxy that takes only the configuration that it uses; `None` unless set.
    pub demands: Option<Demands>,
    /// Runtime of the control thread: DNS, and following the configuration.
    pub runtime: tokio::runtime::Handle,
}

impl Options {
    /// Defaults on `runtime`: as many workers as cores.
    pub fn new(runtime: tokio::runtime::Handle) -> Self {
        let concurrency = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self {
            concurrency,
            inherited: HashMap::new(),
            registry: Registry::default(),
            local: LocalWorkload::default(),
            max_connections: u64::MAX,
            retired_time: Duration::from_secs(45),
            demands: None,
            runtime,
        }
    }
}
