//! Short names for the xDS packages, and builders of the messages that occur everywhere. Knows nothing of Istio.

pub(crate) mod address;
pub(crate) mod matcher;
pub(crate) mod secret;
pub(crate) mod value;

pub use weft_proto::envoy::config::core::v3 as core;

pub(crate) use weft_proto::envoy::config::accesslog::v3 as accesslog;
pub(crate) use weft_proto::envoy::config::cluster::v3 as cluster;
pub(crate) use weft_proto::envoy::config::endpoint::v3 as endpoint;
pub(crate) use weft_proto::envoy::config::listener::v3 as listener;
pub(crate) use weft_proto::envoy::config::rbac::v3 as rbac;
pub(crate) use weft_proto::envoy::config::route::v3 as route;
pub(crate) use weft_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
pub(crate) use weft_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
pub(crate) use weft_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
pub(crate) use weft_proto::envoy::extensions::upstreams::http::v3 as upstream_http;
pub(crate) use weft_proto::envoy::r#type::matcher::v3 as envoy_matcher;
pub(crate) use weft_proto::envoy::r#type::v3 as envoy_type;

use prost::{Message, Name};
use std::time::Duration;
use weft_proto::pack;

/// Duration as a message.
pub(crate) fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// Zero: "no timeout" in most fields of xDS.
pub(crate) fn zero() -> prost_types::Duration {
    prost_types::Duration::default()
}

/// Resources come over the aggregated stream; the proxy waits for them without end.
pub(crate) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        initial_fetch_timeout: Some(zero()),
        resource_api_version: core::ApiVersion::V3 as i32,
        ..Default::default()
    }
}

/// An HTTP filter with its configuration.
pub(crate) fn http_filter<M: Message + Name>(name: &str, config: &M) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.into(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(config))),
        ..Default::default()
    }
}

/// A network filter with its configuration.
pub(crate) fn network_filter<M: Message + Name>(name: &str, config: &M) -> listener::Filter {
    listener::Filter { name: name.into(), config_type: Some(listener::filter::ConfigType::TypedConfig(pack(config))) }
}

/// A listener filter with its configuration.
pub(crate) fn listener_filter<M: Message + Name>(name: &str, config: &M) -> listener::ListenerFilter {
    listener::ListenerFilter {
        name: name.into(),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(pack(config))),
        ..Default::default()
    }
}

/// A transport socket with its configuration.
pub(crate) fn transport_socket<M: Message + Name>(name: &str, config: &M) -> core::TransportSocket {
    core::TransportSocket {
        name: name.into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(config))),
    }
}

/// A typed extension.
pub(crate) fn extension<M: Message + Name>(name: &str, config: &M) -> core::TypedExtensionConfig {
    core::TypedExtensionConfig { name: name.into(), typed_config: Some(pack(config)) }
}

/// Names of headers of HTTP/1.1 stay in upper and lower case as they are.
pub(crate) fn header_case() -> core::http1_protocol_options::HeaderKeyFormat {
    use core::http1_protocol_options::{HeaderKeyFormat, header_key_format::HeaderFormat};
    const TYPE: &str =
        "type.googleapis.com/envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig";
    let config = weft_proto::Any { type_url: TYPE.into(), ..Default::default() };
    let formatter = core::TypedExtensionConfig { name: "preserve_case".into(), typed_config: Some(config) };
    HeaderKeyFormat { header_format: Some(HeaderFormat::StatefulFormatter(formatter)) }
}

/// `percent` of all, in parts per million.
pub(crate) fn fraction(percent: f64) -> envoy_type::FractionalPercent {
    envoy_type::FractionalPercent {
        numerator: (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32,
        denominator: envoy_type::fractional_percent::DenominatorType::Million as i32,
    }
}

/// [`fraction`] with the wrapper for run-time overrides, which Weft does not use.
pub(crate) fn runtime_fraction(percent: f64) -> core::RuntimeFractionalPercent {
    core::RuntimeFractionalPercent { default_value: Some(fraction(percent)), runtime_key: String::new() }
}

/// Text from inside the message.
pub(crate) fn inline_string(text: impl Into<String>) -> core::DataSource {
    core::DataSource { specifier: Some(core::data_source::Specifier::InlineString(text.into())), ..Default::default() }
}
