//! `/server_info`, `/ready`, `/init_dump`, `/on_demand`, `/memory`, `/logging`.

use super::{Admin, config_dump};
use crate::cli::log_filter;
use crate::http::{Answer, Asked, json, text};
use crate::metrics::resident_bytes;
use crate::state::{Phase, ProxyState};
use http::StatusCode;
use serde_json::json;
use std::time::Duration;
use weft_dataplane::demand::{Asked as Demanded, Demands};
use weft_proto::envoy::admin::v3 as dump;
use weft_proto::envoy::admin::v3::server_info::State;

/// Options that the process was started with.
#[derive(Debug, Clone, Default)]
pub struct StartOptions {
    /// Workers.
    pub concurrency: u32,
    /// Bootstrap file; empty for a mesh proxy.
    pub config_path: String,
    /// Time of the drain.
    pub drain_time: Duration,
}

/// `/server_info`.
pub fn page(admin: &Admin) -> Answer {
    let seconds = i64::try_from(admin.state.started.elapsed().as_secs()).unwrap_or(i64::MAX);
    let uptime = Some(prost_types::Duration { seconds, nanos: 0 });
    let state = match admin.state.phase() {
        Phase::Live => State::Live,
        Phase::Draining => State::Draining,
        Phase::Initializing => State::Initializing,
    };
    let drain = i64::try_from(admin.options.drain_time.as_secs()).unwrap_or(i64::MAX);
    config_dump::message(&dump::ServerInfo {
        version: format!("weft-proxy/{}/{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH),
        state: state.into(),
        uptime_current_epoch: uptime,
        uptime_all_epochs: uptime,
        hot_restart_version: "disabled".into(),
        command_line_options: Some(dump::CommandLineOptions {
            concurrency: admin.options.concurrency,
            config_path: admin.options.config_path.clone(),
            log_level: weft_runtime::logging::current(),
            service_cluster: admin.node.cluster.clone(),
            service_node: admin.node.id.clone(),
            drain_time: Some(prost_types::Duration { seconds: drain, nanos: 0 }),
            disable_hot_restart: true,
            ..dump::CommandLineOptions::default()
        }),
        node: Some(admin.node.clone()),
        ..dump::ServerInfo::default()
    })
}

/// `/ready`.
pub fn ready(state: &ProxyState) -> Answer {
    match state.phase() {
        Phase::Live => text(StatusCode::OK, "LIVE\n"),
        phase => text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", phase.as_str())),
    }
}

/// `/init_dump`.
pub fn waiting(state: &ProxyState) -> Answer {
    json(&json!({ "waiting_for": state.readiness.reasons() }))
}

/// `/on_demand`: what is asked for and what there is for it; `enabled` says whether only that is taken.
pub fn on_demand(demands: Option<&Demands>) -> Answer {
    let entry = |asked: &Demanded| {
        json!({
            "name": asked.name,
            "answered": asked.answered,
            "found": asked.found,
            "idle_seconds": asked.idle.as_secs(),
        })
    };
    let asked: Vec<_> = demands.map(Demands::list).unwrap_or_default().iter().map(entry).collect();
    json(&json!({ "enabled": demands.is_some(), "asked": asked }))
}

/// `/memory`.
pub fn memory() -> Answer {
    let resident = resident_bytes().to_string();
    json(&json!({ "allocated": resident, "heap_size": resident, "total_physical_bytes": resident }))
}

/// `/logging`: `?level=debug` for all, `?MODULE=debug` for one, `?paths=MODULE:debug,…` for several.
pub fn logging(asked: &Asked) -> Answer {
    let mut filter = weft_runtime::logging::current();
    for (name, value) in &asked.query {
        filter = match name.as_str() {
            "level" => log_filter(value),
            "paths" => value.split(',').fold(filter, |filter, pair| match pair.split_once(':') {
                Some((module, level)) => with_module(&filter, module, level),
                None => filter,
            }),
            module => with_module(&filter, module, value),
        };
    }
    if !asked.query.is_empty()
        && let Err(error) = weft_runtime::logging::set(&filter)
    {
        return text(StatusCode::BAD_REQUEST, format!("{error}\n"));
    }
    text(StatusCode::OK, format!("active loggers:\n{}", loggers(&weft_runtime::logging::current())))
}

/// A line for each part of the filter, as Envoy writes them; what has no name of its own is `default`.
fn loggers(filter: &str) -> String {
    let row = |part: &str| {
        let (name, level) = part.split_once('=').unwrap_or(("default", part));
        format!("  {name}: {level}\n")
    };
    filter.split(',').filter(|part| !part.is_empty()).map(row).collect()
}

/// The filter with one module's level set; Envoy's names of loggers stand for our modules.
fn with_module(filter: &str, module: &str, level: &str) -> String {
    let module = match module {
        "http" | "http2" | "router" | "connection" | "conn_handler" | "filter" | "listener" => "weft_dataplane",
        "upstream" | "pool" | "client" => "weft_cluster",
        "config" => "weft_xds_client",
        "secret" => "weft_sds",
        "dns" => "weft_proxy::dns",
        "admin" | "main" => "weft_proxy",
        other => other,
    };
    let kept = filter.split(',').filter(|part| part.split('=').next() != Some(module));
    let mut parts: Vec<String> = kept.map(str::to_owned).collect();
    parts.push(format!("{module}={}", log_filter(level)));
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_by_module() {
        let filter = with_module("info", "rbac", "debug");
        assert_eq!(filter, "info,rbac=debug", "a target of its own");
        assert_eq!(with_module(&filter, "rbac", "warning"), "info,rbac=warn");
        assert_eq!(loggers(&filter), "  default: info\n  rbac: debug\n");
        assert_eq!(with_module(&filter, "weft_proxy::dns", "trace"), "info,rbac=debug,weft_proxy::dns=trace");
    }
}
