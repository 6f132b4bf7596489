//! The admin port, on loopback, with Envoy's paths: reads are GET, changes are POST.
//!
//! Reading order: [`live`] (what the data plane tells), this file (the table of paths), then one file per group of pages.

pub mod certs;
pub mod clusters;
pub mod config_dump;
pub mod listeners;
pub mod live;
pub mod server_info;
pub mod stats;

use crate::held::Held;
use crate::http::{Answer, Asked, Handler, handler, text};
use crate::metrics::Metrics;
use crate::state::ProxyState;
use http::{Method, StatusCode};
use live::Live;
use std::sync::Arc;
use tokio::sync::watch;
use weft_dataplane::demand::Demands;
use weft_proto::envoy::config::core::v3::Node;
use weft_sds::WorkloadSecrets;

/// What the pages show.
#[derive(Clone)]
pub struct Admin {
    /// Where the proxy stands.
    pub state: ProxyState,
    /// Metrics.
    pub metrics: Metrics,
    /// The configuration as it came.
    pub held: Held,
    /// What traffic asked for; `None` = the proxy takes everything.
    pub demands: Option<Demands>,
    /// The data plane.
    pub live: Arc<dyn Live>,
    /// The workload's identity; `None` = the proxy has none of its own.
    pub identity: Option<watch::Receiver<Option<Arc<WorkloadSecrets>>>>,
    /// Who this proxy is.
    pub node: Node,
    /// Options it was started with.
    pub options: server_info::StartOptions,
}

/// A page: path, what a POST is needed for, help.
const PAGES: [(&str, Method, &str); 22] = [
    ("/", Method::GET, "this page"),
    ("/certs", Method::GET, "certificates in use, with their ends"),
    ("/clusters", Method::GET, "upstream clusters and endpoints (?format=json)"),
    ("/config_dump", Method::GET, "the configuration (?include_eds, ?resource=, ?name_regex=)"),
    ("/contention", Method::GET, "lock contention: not traced"),
    ("/drain_listeners", Method::POST, "stop taking connections (?graceful, ?inboundonly)"),
    ("/healthcheck/fail", Method::POST, "say that the proxy is not ready"),
    ("/healthcheck/ok", Method::POST, "undo /healthcheck/fail"),
    ("/help", Method::GET, "this page"),
    ("/listeners", Method::GET, "listeners and their addresses (?format=json)"),
    ("/logging", Method::POST, "log level (?level=debug, ?MODULE=debug, ?paths=MODULE:debug)"),
    ("/memory", Method::GET, "memory in use"),
    ("/on_demand", Method::GET, "what traffic asked for, where only that is taken"),
    ("/quitquitquit", Method::POST, "exit"),
    ("/ready", Method::GET, "LIVE, or why not"),
    ("/reset_counters", Method::POST, "set all counters to zero"),
    ("/routes", Method::GET, "route tables and their virtual hosts (?format=json)"),
    ("/server_info", Method::GET, "version, state, node"),
    ("/stats", Method::GET, "statistics (?filter=, ?usedonly, ?format=json|prometheus)"),
    ("/stats/prometheus", Method::GET, "statistics in Prometheus' format"),
    ("/stats/recentlookups", Method::GET, "not traced"),
    ("/init_dump", Method::GET, "what the proxy waits for"),
];

impl Admin {
    /// The handler of the port.
    pub fn handler(self) -> Handler {
        let admin = Arc::new(self);
        handler(move |asked| {
            let admin = admin.clone();
            async move { admin.answer(asked).await }
        })
    }

    async fn answer(&self, asked: Asked) -> Answer {
        let Some((path, method, _)) = PAGES.iter().find(|(path, _, _)| *path == asked.path) else {
            return text(StatusCode::NOT_FOUND, format!("no such page\n{}", help()));
        };
        let allowed = asked.method == *method || (asked.method == Method::HEAD && *method == Method::GET);
        if !allowed {
            let body = format!("Method {} not allowed, {method} required.\n", asked.method);
            return text(StatusCode::METHOD_NOT_ALLOWED, body);
        }
        // A page in a browser could otherwise be made to send a POST here by any web site.
        if *method == Method::POST && asked.headers.contains_key(http::header::ORIGIN) {
            return text(StatusCode::FORBIDDEN, "requests made by web pages are refused\n");
        }
        self.page(path, &asked).await
    }

    async fn page(&self, path: &str, asked: &Asked) -> Answer {
        match path {
            "/certs" => certs::page(self),
            "/clusters" => clusters::page(self, asked).await,
            "/config_dump" => config_dump::page(self, asked),
            "/drain_listeners" => self.drain(asked),
            "/healthcheck/fail" | "/healthcheck/ok" => {
                self.state.fail_by_hand(path.ends_with("fail"));
                text(StatusCode::OK, "OK\n")
            }
            "/listeners" => listeners::page(self, asked),
            "/logging" => server_info::logging(asked),
            "/memory" => server_info::memory(),
            "/on_demand" => server_info::on_demand(self.demands.as_ref()),
            "/quitquitquit" => {
                self.state.ask_to_stop();
                text(StatusCode::OK, "OK\n")
            }
            "/ready" => server_info::ready(&self.state),
            "/reset_counters" => stats::reset(self),
            "/routes" => config_dump::routes(self, asked),
            "/server_info" => server_info::page(self),
            "/stats" => stats::page(self, asked).await,
            "/stats/prometheus" => stats::prometheus(self, asked).await,
            "/init_dump" => server_info::waiting(&self.state),
            "/contention" | "/stats/recentlookups" => text(StatusCode::OK, "not traced by this proxy\n"),
            _ => text(StatusCode::OK, help()),
        }
    }

    fn drain(&self, asked: &Asked) -> Answer {
        let inbound_only = asked.parameter("inboundonly").is_some();
        self.live.drain_listeners(inbound_only, asked.parameter("graceful").is_some());
        // The readiness port is one of the proxy's: with the rest it says no, and the pod's endpoint is withdrawn.
        self.state.start_draining();
        text(StatusCode::OK, "OK\n")
    }
}

fn help() -> String {
    let lines = PAGES.iter().map(|(path, method, help)| format!("  {path:<22} {method:<4} {help}\n"));
    format!("admin commands are:\n{}", lines.collect::<String>())
}
