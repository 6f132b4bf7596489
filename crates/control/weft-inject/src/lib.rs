//! Sidecar injection: who gets a proxy, and what a pod looks like with one. One pure function of the pod and the settings,
//! used by the webhook, by `weft kube-inject` and by the lab. Rules and shape are those of Istio's injector; images and the
//! proxy's arguments are ours.
//!
//! Owns no connection, no file and no clock: callers bring the pod, its namespace, the mesh config and the installer's values.
//!
//! Reading order: [`values`] and [`config`] (settings), [`decide`] (who), [`inject`] (the steps), then the steps:
//! `annotations` (what may be asked for), `owner` (the pod's workload), `proxy_config`, `overrides` (what the user set),
//! `sidecar` and `gateway` (the built-in templates), [`template`] (custom ones), `metrics`, `probes`, `order`; and
//! [`documents`] (files of manifests).

mod annotations;
pub mod config;
pub mod decide;
pub mod documents;
mod gateway;
pub mod inject;
mod metrics;
mod order;
mod overrides;
mod owner;
mod pod;
mod probes;
mod proxy_config;
mod sidecar;
pub mod template;
pub mod values;

pub use annotations::as_bool;
pub use config::Config;
pub use decide::{Decision, decide};
pub use documents::inject_text;
pub use inject::{Injector, Refusal, Request};
pub use owner::Owner;
pub use pod::patch;
pub use values::Values;

#[cfg(test)]
mod tests;
