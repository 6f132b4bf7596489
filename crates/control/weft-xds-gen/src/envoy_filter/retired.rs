//! Filters of Istio's own build of Envoy up to 1.18, which EnvoyFilters of that time name: `istio.stats` as a place in a chain,
//! `forward_downstream_sni` and `sni_verifier` as what is inserted (in the old form, `config` in place of `typed_config`).
//! weft-proxy has all three. Envoy as it is published has none: the first is where it would stand, before the TCP proxy; the
//! second is said in Envoy's own words; the third cannot be said, and its patch is told as not applied.

use crate::listener::tcp;
use crate::observe::metrics;
use crate::pb::{listener::Filter, network_filter};
use serde_json::{Map, Value, json};
use weft_k8s_api::istio::PatchOperation as Op;
use weft_proto::any::TypeUrl as _;
use weft_proto::envoy::config::core::v3 as core;
use weft_proto::envoy::extensions::filters::common::set_filter_state::v3 as common;
use weft_proto::envoy::extensions::filters::network::set_filter_state::v3::Config as SetFilterState;
use weft_proto::io::istio::tcp::{forward_downstream_sni, sni_verifier};

/// The name of Istio's metrics filters in patches.
const STATS: &str = "istio.stats";
const FORWARD_SNI: &str = "forward_downstream_sni";
const VERIFY_SNI: &str = "sni_verifier";
/// The name that TLS to the endpoint asks for, as Envoy's filters tell it to one another ("Well known filter state objects").
const UPSTREAM_NAME: &str = "envoy.network.upstream_server_name";

/// Whether `name` is what a patch means by `wanted`, `istio.stats` being Weft's filters of metrics.
pub(super) fn is_stats(wanted: &str, name: &str) -> bool {
    wanted == STATS && (name == metrics::NETWORK_FILTER || name == metrics::HTTP_FILTER)
}

/// Whether the network filter `name` is the place of the absent `istio.stats`, before which something is to be inserted.
pub(super) fn is_place_of_stats(weft: bool, op: Op, wanted: &str, name: &str) -> bool {
    !weft && op == Op::InsertBefore && wanted == STATS && name == tcp::FILTER
}

/// The network filter as the proxy knows it; `None` when it has nothing like it.
pub(super) fn network_filter_for(weft: bool, mut given: Value) -> Option<Value> {
    let Some(fields) = given.as_object_mut() else { return Some(given) };
    let by_name = match fields.get("name").and_then(Value::as_str) {
        Some(FORWARD_SNI) => Some(forward_downstream_sni::v1::Config::type_url_of()),
        Some(VERIFY_SNI) => Some(sni_verifier::v1::Config::type_url_of()),
        _ => None,
    };
    if let Some(type_url) = by_name {
        old_form(fields, &type_url);
    }
    if weft {
        return Some(given);
    }
    let type_url = given.pointer("/typed_config/@type").or_else(|| given.pointer("/typedConfig/@type"));
    match type_url.and_then(Value::as_str) {
        Some(url) if url == sni_verifier::v1::Config::type_url_of() => None,
        Some(url) if url == forward_downstream_sni::v1::Config::type_url_of() => {
            weft_proto::json::to_json(&upstream_name_of_the_client(), true).ok()
        }
        _ => Some(given),
    }
}

/// `config: {}` says the same as a message without fields.
fn old_form(fields: &mut Map<String, Value>, type_url: &str) {
    let empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
    if fields.get("config").is_some_and(empty) {
        fields.remove("config");
    }
    if !fields.contains_key("typed_config") && !fields.contains_key("typedConfig") {
        fields.insert("typed_config".into(), json!({"@type": type_url}));
    }
}

/// `forward_downstream_sni` in Envoy's own words.
fn upstream_name_of_the_client() -> Filter {
    use core::substitution_format_string::Format;
    let text = core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString("%REQUESTED_SERVER_NAME%".into())),
        ..Default::default()
    };
    let format = core::SubstitutionFormatString {
        format: Some(Format::TextFormatSource(text)),
        omit_empty_values: true,
        ..Default::default()
    };
    let value = common::FilterStateValue {
        key: Some(common::filter_state_value::Key::ObjectKey(UPSTREAM_NAME.into())),
        value: Some(common::filter_state_value::Value::FormatString(format)),
        skip_if_empty: true,
        ..Default::default()
    };
    network_filter(FORWARD_SNI, &SetFilterState { on_new_connection: vec![value], ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_filters() {
        let old = |name: &str| json!({"name": name, "config": {}});
        let typed = |name: &str, kind: &str| json!({"name": name, "typed_config": {"@type": format!("type.googleapis.com/io.istio.tcp.{kind}.v1.Config")}});
        for (weft, given, want) in [
            (true, old("forward_downstream_sni"), Some(typed("forward_downstream_sni", "forward_downstream_sni"))),
            (true, old("sni_verifier"), Some(typed("sni_verifier", "sni_verifier"))),
            (true, typed("mine", "sni_verifier"), Some(typed("mine", "sni_verifier"))),
            (true, json!({"name": "else", "config": {}}), Some(json!({"name": "else", "config": {}}))),
            (true, json!({"name": "sni_verifier", "config": {"a": 1}}), {
                let mut kept = typed("sni_verifier", "sni_verifier");
                kept["config"] = json!({"a": 1});
                Some(kept)
            }),
            (false, old("sni_verifier"), None),
            (false, typed("mine", "sni_verifier"), None),
        ] {
            assert_eq!(network_filter_for(weft, given.clone()), want, "{weft} {given}");
        }
        let words = network_filter_for(false, old("forward_downstream_sni")).unwrap();
        let url = words["typed_config"]["@type"].as_str().unwrap();
        assert_eq!(url, "type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config");
        assert_eq!(words["typed_config"]["on_new_connection"][0]["object_key"], UPSTREAM_NAME);
        weft_proto::json::from_json::<Filter>(&words).unwrap();
    }

    #[test]
    fn places() {
        for (weft, op, wanted, name, want) in [
            (false, Op::InsertBefore, "istio.stats", "envoy.filters.network.tcp_proxy", true),
            (false, Op::InsertBefore, "istio.stats", "envoy.filters.network.rbac", false),
            (false, Op::Remove, "istio.stats", "envoy.filters.network.tcp_proxy", false),
            (true, Op::InsertBefore, "istio.stats", "envoy.filters.network.tcp_proxy", false),
            (false, Op::InsertBefore, "other", "envoy.filters.network.tcp_proxy", false),
        ] {
            assert_eq!(is_place_of_stats(weft, op, wanted, name), want, "{weft} {op:?} {wanted} {name}");
        }
        assert!(
            is_stats("istio.stats", "weft.filters.network.telemetry")
                && !is_stats("x", "weft.filters.network.telemetry")
        );
    }
}
