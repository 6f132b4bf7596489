//! Header operations: set, add, remove, on requests and responses.

use crate::pb::core::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction};
use crate::pb::route::Route;
use std::collections::BTreeMap;
use weft_k8s_api::istio::Headers;

/// Operations in the form of routes.
#[derive(Debug, Default)]
pub(super) struct Operations {
    pub request_add: Vec<HeaderValueOption>,
    pub request_remove: Vec<String>,
    pub response_add: Vec<HeaderValueOption>,
    pub response_remove: Vec<String>,
    /// What the host is set to: it is no header among others.
    pub authority: Option<String>,
}

impl Operations {
    /// Adds them to a route's own.
    pub fn add_to_route(&self, route: &mut Route) {
        route.request_headers_to_add.extend(self.request_add.iter().cloned());
        route.request_headers_to_remove.extend(self.request_remove.iter().cloned());
        route.response_headers_to_add.extend(self.response_add.iter().cloned());
        route.response_headers_to_remove.extend(self.response_remove.iter().cloned());
    }
}

/// The operations of a rule or destination.
pub(super) fn operations(headers: &Headers) -> Operations {
    let mut out = Operations::default();
    if let Some(request) = &headers.request {
        out.authority = authority(&request.set).or_else(|| authority(&request.add));
        out.request_add = additions(&request.set, &request.add);
        out.request_remove = removals(&request.remove);
    }
    if let Some(response) = &headers.response {
        out.response_add = additions(&response.set, &response.add);
        out.response_remove = removals(&response.remove);
    }
    out
}

fn additions(set: &BTreeMap<String, String>, add: &BTreeMap<String, String>) -> Vec<HeaderValueOption> {
    let option = |(name, value): (&String, &String), action: HeaderAppendAction| HeaderValueOption {
        header: Some(HeaderValue { key: name.clone(), value: value.clone(), ..Default::default() }),
        append_action: action as i32,
        ..Default::default()
    };
    let set = set.iter().map(|h| option(h, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = add.iter().map(|h| option(h, HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add).filter(|o| o.header.as_ref().is_some_and(|h| !is_internal(&h.key))).collect()
}

fn removals(names: &[String]) -> Vec<String> {
    names.iter().filter(|name| !is_internal(name)).cloned().collect()
}

/// Pseudo-headers and the host cannot be added or removed.
fn is_internal(name: &str) -> bool {
    name.starts_with(':') || name.eq_ignore_ascii_case("host")
}

fn authority(headers: &BTreeMap<String, String>) -> Option<String> {
    let is_host = |name: &str| name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host");
    headers.iter().find(|(name, _)| is_host(name)).map(|(_, value)| value.clone())
}
