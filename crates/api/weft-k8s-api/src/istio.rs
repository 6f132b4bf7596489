//! Typed specs of Istio's kinds. Each struct is the `spec` of the kind of that name, in the newest API; all served versions
//! of a kind read into it.
//!
//! How the API's types are written here: a plain scalar is a plain field (its zero value is "not set"), a message or a wrapped
//! scalar is an `Option`, a one-of is a set of `Option`s of which [`crate::validate`] allows one. Objects are read with
//! [`crate::parse_spec`], which is more lenient than `serde_json` (numbers written as strings, snake_case names, nulls) and
//! says where an error is.
//!
//! Reading order: [`common`] (durations, string matches, selectors), then one module per kind.

pub mod common;
pub mod destination_rule;
pub mod envoy_filter;
pub mod gateway;
pub mod mesh_config;
pub mod proxy_config;
pub mod security;
pub mod service_entry;
pub mod sidecar;
pub mod telemetry;
pub mod virtual_service;
pub mod wasm;
pub mod workload;

pub use common::*;
pub use destination_rule::*;
pub use envoy_filter::*;
pub use gateway::*;
pub use mesh_config::*;
pub use proxy_config::*;
pub use security::*;
pub use service_entry::*;
pub use sidecar::*;
pub use telemetry::*;
pub use virtual_service::*;
pub use wasm::*;
pub use workload::*;
