//! `/listeners`: listeners and where they listen.

use super::clusters::address_of;
use super::{Admin, config_dump};
use crate::http::{Answer, Asked, text};
use http::StatusCode;
use weft_proto::envoy::admin::v3::{ListenerStatus, Listeners};

/// The page.
pub fn page(admin: &Admin, asked: &Asked) -> Answer {
    let bound = admin.live.listeners();
    if asked.parameter("format") == Some("json") {
        let listener_statuses = bound
            .iter()
            .filter_map(|listener| {
                Some(ListenerStatus {
                    name: listener.name.clone(),
                    local_address: Some(address_of(listener.addresses.first()?)),
                    ..ListenerStatus::default()
                })
            })
            .collect();
        return config_dump::message(&Listeners { listener_statuses });
    }
    let mut out = String::new();
    for listener in &bound {
        for address in &listener.addresses {
            out.push_str(&format!("{}::{address}\n", listener.name));
        }
        if let Some(error) = &listener.error {
            out.push_str(&format!("{}::error: {error}\n", listener.name));
        }
    }
    text(StatusCode::OK, out)
}
