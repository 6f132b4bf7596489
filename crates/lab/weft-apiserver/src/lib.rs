//! Kubernetes REST over weft-store: what `kubectl`, client libraries and Weft's own programs talk to in the lab.
//!
//! Reading order, which is the order of a request: [`server`] (listen, limits, dispatch), [`route`] (path to target),
//! [`auth`] and [`tokens`] (who, and may they), [`resources`] (the verbs), [`admission`], [`defaults`], [`validation`]
//! (before an object is stored), [`patch`], [`watching`], [`render`] and [`table`] (answers), [`status`] (errors). Beside
//! them: [`discovery`] and [`openapi`], [`reviews`], [`pods`] (logs, exec, port-forward), [`collect`] (owners and
//! namespaces), [`access`] (certificate and kubeconfig).
//!
//! Not here: running pods, addresses, controllers of workloads. They are in `weft-node`, behind [`pods::PodBackend`] and
//! [`admission::Admission`].

pub mod access;
pub mod admission;
pub mod auth;
pub mod collect;
mod custom;
pub mod defaults;
mod discovery;
pub mod kinds;
mod managed;
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
pub use pods::{ExecRequest, ExecStreams, LogRequest, PodBackend, PodError, PodRef, PodStream};
pub use resources::Strictness;
pub use server::{AdminToken, ApiServer, ApiServerOptions};
pub use status::ApiError;
pub use tokens::{BoundPod, TokenTable};
