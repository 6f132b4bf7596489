//! Messages of both halves from anywhere. A response: decoding and applying its resources never panics, and what is refused
//! leaves the configuration usable. A request: decoding it and reading its node never panics.
//!
//! Input: one byte that says which, then the encoded message.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use weft_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use weft_proxy_config::{ConfigBuilder, Update, Upsert};
use weft_xds_gen::ProxyView;

fn apply(type_url: &str, resources: Vec<(String, prost_types::Any)>, removals: Vec<String>) {
    let mut builder = ConfigBuilder::default();
    let upserts = resources.into_iter().map(|(name, any)| Upsert { name, version: String::new(), any }).collect();
    builder.apply(&Update { type_url: type_url.to_string(), upserts, removals });
    builder.wanted();
    builder.missing();
}

fuzz_target!(|data: &[u8]| {
    let Some((which, message)) = data.split_first() else { return };
    match which % 4 {
        0 => {
            let Ok(response) = DeltaDiscoveryResponse::decode(message) else { return };
            let resources = response.resources.into_iter().filter_map(|r| Some((r.name, r.resource?))).collect();
            apply(&response.type_url, resources, response.removed_resources);
        }
        1 => {
            let Ok(response) = DiscoveryResponse::decode(message) else { return };
            let resources = response.resources.into_iter().enumerate().map(|(i, any)| (i.to_string(), any)).collect();
            apply(&response.type_url, resources, Vec::new());
        }
        2 => {
            let Ok(request) = DeltaDiscoveryRequest::decode(message) else { return };
            let _ = request.node.as_ref().map(ProxyView::new);
        }
        _ => {
            let Ok(request) = DiscoveryRequest::decode(message) else { return };
            let _ = request.node.as_ref().map(ProxyView::new);
        }
    }
});
