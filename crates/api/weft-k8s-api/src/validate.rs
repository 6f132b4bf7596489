//! What is wrong with an object: field by field, as the API documents it, each problem with its place and its remedy.
//!
//! Looks at one object alone. Whether what it refers to exists is the business of the model.
//!
//! Reading order: this file (entry points, [`Report`]), [`check`] (rules many kinds share), then one module per kind.

mod check;
mod destination_rule;
mod envoy_patch;
mod extensions;
mod gateway;
mod gateway_api;
mod kubernetes;
mod mesh_config;
mod re2;
mod security;
mod service_entry;
mod sidecar;
mod telemetry;
mod virtual_service;
mod workload;

#[cfg(test)]
mod tests;

pub use mesh_config::{parse_mesh_config, parse_proxy_config};
pub use re2::check_re2;

use crate::de::{Dialect, UnknownField, read};
use crate::gateway_api::{GROUP as GATEWAY_API, v1alpha1::GROUP as GATEWAY_API_V0};
use crate::object::{Object, ObjectKey};
use crate::{istio, kinds};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt;

/// Something that is wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub struct Problem {
    /// The object.
    pub object: ObjectKey,
    /// Place inside it, such as `spec.http[0].route[1].weight`; empty for the whole object.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.object)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// What validation found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Validation {
    /// The object must be refused.
    pub errors: Vec<Problem>,
    /// The object works, but perhaps not as meant.
    pub warnings: Vec<Problem>,
    /// Fields that the kind does not have, each with the nearest one that it has. They have no effect.
    pub unknown_fields: Vec<Problem>,
}

impl Validation {
    /// True when nothing forbids the object. Unknown fields do not.
    pub fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }
}

/// Checks an object. Objects of kinds that Weft does not know are checked for their names only.
pub fn validate(object: &Object) -> Validation {
    checked(object, Report::new(object))
}

/// As [`validate`], but without a look into the values of an EnvoyFilter's patches: for whoever applies the object, where a patch
/// that is no configuration of Envoy's must not take its siblings along. Those are told by [`patch_problems`].
pub fn validate_shape(object: &Object) -> Validation {
    checked(object, Report { shape_only: true, ..Report::new(object) })
}

/// Which patches of an EnvoyFilter have a value that is no configuration of Envoy's; none when the object cannot be read.
pub fn patch_problems(object: &Object) -> Vec<Problem> {
    let Ok(spec) = parse_spec::<istio::EnvoyFilter>(object) else { return Vec::new() };
    if !validate_shape(object).is_valid() {
        return Vec::new();
    }
    let mut report = Report::new(object);
    extensions::patch_values(&spec, &mut report);
    report.into_validation().errors
}

/// Envoy's schema. Whoever looks into many EnvoyFilters holds it meanwhile: to decode it takes some 10 ms.
pub fn envoy_schema() -> impl Sized {
    weft_proto::json::pool()
}

fn checked(object: &Object, mut report: Report) -> Validation {
    kubernetes::metadata(object, &mut report);
    match (object.group(), object.kind.as_str()) {
        ("networking.istio.io" | "security.istio.io" | "telemetry.istio.io" | "extensions.istio.io", kind) => {
            istio_kind(object, kind, &mut report);
        }
        (GATEWAY_API | GATEWAY_API_V0, kind) => {
            if versions(object, &mut report) {
                gateway_api::kind(object, kind, &mut report);
            }
        }
        _ => kubernetes::kind(object, &mut report),
    }
    report.into_validation()
}

/// Notes a kind or version that is not served; true when both are known.
fn versions(object: &Object, report: &mut Report) -> bool {
    let Some(info) = kinds::by_kind(object.group(), &object.kind) else {
        report.error("kind", format!("{:?} is not a kind of {}", object.kind, object.group()));
        return false;
    };
    let served = info.versions.contains(&object.version());
    if !served {
        let served: Vec<_> = info.versions.iter().map(|v| kinds::api_version(info.group, v)).collect();
        report.error("apiVersion", format!("{:?} is not served; use {}", object.api_version, served.join(" or ")));
    }
    served
}

fn istio_kind(object: &Object, kind: &str, report: &mut Report) {
    if kinds::by_kind(object.group(), kind).is_none() {
        return report.error("kind", format!("{:?} is not a kind of {}", object.kind, object.group()));
    }
    versions(object, report);
    match kind {
        "VirtualService" => with_spec(object, report, virtual_service::check),
        "DestinationRule" => with_spec(object, report, destination_rule::check),
        "Gateway" => with_spec(object, report, gateway::check),
        "ServiceEntry" => with_spec(object, report, service_entry::check),
        "Sidecar" => with_spec(object, report, sidecar::check),
        "WorkloadEntry" => with_spec(object, report, workload::entry),
        "WorkloadGroup" => with_spec(object, report, workload::group),
        "EnvoyFilter" => with_spec(object, report, extensions::envoy_filter),
        "ProxyConfig" => with_spec(object, report, extensions::proxy_config),
        "PeerAuthentication" => with_spec(object, report, security::peer_authentication),
        "RequestAuthentication" => with_spec(object, report, security::request_authentication),
        "AuthorizationPolicy" => with_spec(object, report, security::authorization_policy),
        "Telemetry" => with_spec(object, report, telemetry::check),
        "WasmPlugin" => with_spec(object, report, extensions::wasm_plugin),
        "TrafficExtension" => with_spec(object, report, extensions::traffic_extension),
        _ => {}
    }
}

fn with_spec<T: DeserializeOwned>(object: &Object, report: &mut Report, check: fn(&T, &mut Report)) {
    let empty = Value::Object(serde_json::Map::new());
    let spec = if object.spec().is_null() { &empty } else { object.spec() };
    for name in object.body.keys().filter(|k| !matches!(k.as_str(), "spec" | "status")) {
        report.unknown_top_level(name);
    }
    if let Some(spec) = report.read(spec, "spec", Dialect::ProtoJson) {
        check(&spec, report);
    }
}

/// Reads the spec of an Istio object. Unknown fields are ignored, as the API does.
///
/// # Errors
/// The first shape that is wrong.
pub fn parse_spec<T: DeserializeOwned + Default>(object: &Object) -> Result<T, Box<Problem>> {
    if object.spec().is_null() {
        return Ok(T::default());
    }
    read(object.spec(), "spec", Dialect::ProtoJson, &mut Vec::new())
        .map_err(|e| Box::new(Problem { object: object.key(), path: e.path, message: e.message }))
}

/// Collects problems of one object.
pub(crate) struct Report {
    object: ObjectKey,
    found: Validation,
    /// The values of patches are not looked into.
    shape_only: bool,
}

impl Report {
    fn new(object: &Object) -> Self {
        Report { object: object.key(), found: Validation::default(), shape_only: false }
    }

    fn into_validation(self) -> Validation {
        self.found
    }

    /// Adds an error.
    pub(crate) fn error(&mut self, path: impl fmt::Display, message: impl fmt::Display) {
        let problem = self.problem(path, message);
        self.found.errors.push(problem);
    }

    /// Adds a warning.
    pub(crate) fn warn(&mut self, path: impl fmt::Display, message: impl fmt::Display) {
        let problem = self.problem(path, message);
        self.found.warnings.push(problem);
    }

    fn problem(&self, path: impl fmt::Display, message: impl fmt::Display) -> Problem {
        Problem { object: self.object.clone(), path: path.to_string(), message: message.to_string() }
    }

    /// Reads a typed value; a wrong shape becomes an error, unknown fields are noted.
    pub(crate) fn read<T: DeserializeOwned>(&mut self, value: &Value, root: &str, dialect: Dialect) -> Option<T> {
        let mut unknown = Vec::new();
        let result = read(value, root, dialect, &mut unknown);
        for field in unknown {
            self.unknown_field(field);
        }
        result.map_err(|e| self.error(e.path, e.message)).ok()
    }

    fn unknown_field(&mut self, field: UnknownField) {
        let remedy = match field.suggestion {
            Some(name) => format!("did you mean {name}?"),
            None if field.known.is_empty() => "remove it".to_string(),
            None => format!("the fields are {}", field.known.join(", ")),
        };
        let problem = self.problem(field.path, format!("unknown field; {remedy}"));
        self.found.unknown_fields.push(problem);
    }

    fn unknown_top_level(&mut self, name: &str) {
        const KNOWN: &[&str] = &["spec", "status", "metadata", "apiVersion", "kind"];
        let suggestion = crate::de::nearest(name, KNOWN);
        self.unknown_field(UnknownField { path: name.to_string(), suggestion, known: KNOWN });
    }
}

/// A mesh config is not an object; its problems are those of the config map that holds it.
pub fn validate_mesh_config(object: &ObjectKey, path: &str, config: &istio::MeshConfig) -> Validation {
    let mut report = Report { object: object.clone(), found: Validation::default(), shape_only: false };
    mesh_config::check(config, path, &mut report);
    report.into_validation()
}
