//! Whether the value of an EnvoyFilter's patch is a message of Envoy's API.
//!
//! As in Istio's webhook (`validateEnvoyFilter`): what does not fit the message is an error, a field that the schema does not
//! have a warning, since the proxy may be newer than the schema.

use super::Report;
use crate::istio::{ApplyTo, EnvoyConfigObjectPatch};
use serde_json::Value;
use weft_proto::envoy::config::{
    bootstrap::v3::Bootstrap,
    cluster::v3::Cluster,
    core::v3::TypedExtensionConfig,
    listener::v3::{Filter, FilterChain, Listener, ListenerFilter},
    route::v3::{Route, RouteConfiguration, VirtualHost},
};
use weft_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use weft_proto::json::{JsonError, UnknownFields, from_json_with};

/// Says what is wrong with the value of a patch at `path`. The caller holds the schema.
pub(super) fn check(patch: &EnvoyConfigObjectPatch, path: &str, report: &mut Report) {
    let Some(change) = patch.patch.as_ref().filter(|change| !change.value.is_empty()) else { return };
    let value = Value::Object(change.value.clone());
    let read = |unknown| fits(patch.apply_to, &value, unknown);
    if let Err(error) = read(UnknownFields::LeftOut) {
        let (at, reason) = place(path, error);
        report.error(at, reason);
    } else if let Err(error) = read(UnknownFields::Refused) {
        let (at, reason) = place(path, error);
        report.warn(at, format!("{reason}; it is left out"));
    }
}

fn fits(apply_to: ApplyTo, value: &Value, unknown: UnknownFields) -> Result<(), JsonError> {
    match apply_to {
        ApplyTo::Invalid => Ok(()),
        ApplyTo::Listener => from_json_with::<Listener>(value, unknown).map(drop),
        ApplyTo::FilterChain => from_json_with::<FilterChain>(value, unknown).map(drop),
        ApplyTo::NetworkFilter => from_json_with::<Filter>(value, unknown).map(drop),
        ApplyTo::HttpFilter => from_json_with::<HttpFilter>(value, unknown).map(drop),
        ApplyTo::ListenerFilter => from_json_with::<ListenerFilter>(value, unknown).map(drop),
        ApplyTo::RouteConfiguration => from_json_with::<RouteConfiguration>(value, unknown).map(drop),
        ApplyTo::VirtualHost => from_json_with::<VirtualHost>(value, unknown).map(drop),
        ApplyTo::HttpRoute => from_json_with::<Route>(value, unknown).map(drop),
        ApplyTo::Cluster => from_json_with::<Cluster>(value, unknown).map(drop),
        ApplyTo::ExtensionConfig => from_json_with::<TypedExtensionConfig>(value, unknown).map(drop),
        ApplyTo::Bootstrap => from_json_with::<Bootstrap>(value, unknown).map(drop),
    }
}

fn place(path: &str, error: JsonError) -> (String, String) {
    match error {
        JsonError::Field { path: inner, reason } => (format!("{path}.patch.value.{inner}"), reason),
        other => (format!("{path}.patch.value"), other.to_string()),
    }
}
