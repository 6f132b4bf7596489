//! Kubernetes REST over weft-store: what `kubectl`, client libraries and Weft's own programs talk to in the lab.
//!
//! Reading order, which is the order of a request: [`server`] (listen, limits, dispatch), [`route`] (path to target), [`kinds`],
//! [`auth`] and [`tokens`] (who, and may they), [`resources`] (the verbs), [`admission`], [`defaults`], [`webhooks`],
//! [`custom`], [`cel`], [`validation`] (before an object is stored), [`patch`] and [`managed`] (who manages which fields, by the types of
//! [`types`] and [`schema`]), [`rbac`], [`watching`], [`render`] and [`table`] (answers), [`status`] (errors). Beside
//! them: [`discovery`] and [`openapi`], [`reviews`], [`pods`] (logs, exec, port-forward), [`metrics`] (what they take), [`collect`] (owners and
//! namespaces), [`access`] (certificate and kubeconfig).
//!
//! Not here: running pods, addresses, controllers of workloads. They are in `weft-node`, behind [`pods::PodBackend`] and
//! [`admission::Admission`].

pub mod access;
pub mod admission;
pub mod auth;
mod cel;
pub mod collect;
mod custom;
pub mod defaults;
mod discovery;
pub mod kinds;
mod managed;
mod metrics;
mod openapi;
mod params;
mod patch;
pub mod pods;
mod rbac;
mod render;
pub mod resources;
mod reviews;
pub mod route;
mod scale;
mod schema;
pub mod server;
pub mod status;
mod table;
pub mod tokens;
mod types;
mod validation;
mod watching;
mod webhooks;

pub use access::{ServingCertificate, kubeconfig};
pub use admission::{Admission, AdmissionRequest, Denial, Operation};
pub use auth::User;
pub use pods::{ExecRequest, ExecStreams, LogRequest, PodBackend, PodError, PodRef, PodStream, Usage};
pub use resources::Strictness;
pub use server::{AdminToken, ApiServer, ApiServerOptions};
pub use status::ApiError;
pub use tokens::{BoundPod, TokenTable};

/// Entry points of the readers of foreign bytes, for the fuzz targets.
#[doc(hidden)]
pub mod fuzzing {
    use serde_json::Value;

    /// A protobuf body.
    pub fn protobuf(body: &[u8]) {
        let _ = crate::types::protobuf::read(body);
    }

    /// Header blocks of one SPDY connection, each with its length in two bytes before it.
    pub fn spdy_headers(mut bytes: &[u8]) {
        let mut reader = crate::pods::spdy::headers::Reader::new();
        while let Some((length, rest)) = bytes.split_first_chunk() {
            let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
            let (block, rest) = rest.split_at(length);
            bytes = rest;
            if reader.read(block).is_err() {
                return;
            }
        }
    }

    /// A JSON path, and a schema with its rules on a value.
    pub fn schema(path: &str, schema: &Value, mut value: Value) {
        if let Ok(path) = crate::custom::path::Path::parse(path) {
            let _ = path.find(&value);
        }
        crate::custom::structural::check_schema(schema, "", &mut Vec::new());
        crate::custom::structural::prune_root(&mut value, schema, &mut Vec::new());
        crate::custom::structural::default(&mut value, schema);
        crate::custom::structural::validate(&value, schema, "", &mut Vec::new());
        let rules = crate::custom::rules::Rules::read(schema, "", &mut Vec::new());
        rules.check(schema, &value, Some(&value));
    }
}
