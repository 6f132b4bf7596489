//! Which HTTP version a cluster speaks, and the options message that says so.

use super::Draft;
use crate::pb::core::{Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions, UpstreamHttpProtocolOptions};
use crate::pb::{self, upstream_http as http};
use crate::scope::HeaderSettings;
use http::http_protocol_options::{
    ExplicitHttpConfig, OutlierDetection, UpstreamProtocolOptions as Options, UseDownstreamHttpConfig,
    explicit_http_config::ProtocolConfig,
};
use weft_k8s_api::istio::{ConnectionPoolSettings, H2UpgradePolicy, MeshConfig, MeshH2UpgradePolicy};
use weft_model::Protocol;
use weft_proto::{Any, pack};

/// HTTP options of a cluster while it is being built.
#[derive(Debug, Clone, Default)]
pub(crate) struct HttpOptions {
    version: Version,
    pub common: Option<HttpProtocolOptions>,
    pub upstream: Option<UpstreamHttpProtocolOptions>,
    pub http2: Http2ProtocolOptions,
    pub outlier: Option<OutlierDetection>,
    /// Names of headers stay as they were written, where HTTP/1.1 is spoken.
    pub keeps_case: bool,
}

/// Version towards the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Version {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2.
    Http2,
    /// What the client's side speaks.
    Downstream,
}

impl HttpOptions {
    /// HTTP/2 towards the endpoints.
    pub fn use_http2(&mut self) {
        self.version = Version::Http2;
    }

    /// The version of the client's side.
    pub fn use_downstream(&mut self) {
        self.version = Version::Downstream;
    }

    /// True when HTTP/2 is spoken whatever the client's side speaks.
    pub fn is_http2(&self) -> bool {
        self.version == Version::Http2
    }

    /// True when only HTTP/1.1 is spoken.
    pub fn is_http1(&self) -> bool {
        self.version == Version::Http1
    }

    /// The message; `None` when all of it is default.
    pub fn pack(&self) -> Option<Any> {
        let extras = self.common.is_some() || self.upstream.is_some() || self.outlier.is_some() || self.keeps_case;
        if self.version == Version::Http1 && !extras {
            return None;
        }
        let http1 =
            Http1ProtocolOptions { header_key_format: self.keeps_case.then(pb::header_case), ..Default::default() };
        let explicit = |config| Options::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) });
        let options = match self.version {
            Version::Http1 => explicit(ProtocolConfig::HttpProtocolOptions(http1)),
            Version::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(self.http2.clone())),
            Version::Downstream => Options::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(http1),
                http2_protocol_options: Some(self.http2.clone()),
                ..Default::default()
            }),
        };
        Some(pack(&http::HttpProtocolOptions {
            common_http_protocol_options: self.common,
            upstream_http_protocol_options: self.upstream.clone(),
            outlier_detection: self.outlier.clone(),
            upstream_protocol_options: Some(options),
            ..Default::default()
        }))
    }
}

/// The version that the port's protocol asks for.
pub(super) fn set_for_port(draft: &mut Draft, protocol: Protocol) {
    match protocol {
        // gRPC-Web clients speak HTTP/1.1 or HTTP/2; the service speaks gRPC.
        Protocol::Http2 | Protocol::Grpc | Protocol::GrpcWeb => draft.http.use_http2(),
        Protocol::Unknown => draft.http.use_downstream(),
        _ => {}
    }
}

/// Leaves names of headers as they were written where the proxy's settings ask for that.
pub(super) fn keep_case(draft: &mut Draft, protocol: Protocol, settings: HeaderSettings) {
    draft.http.keeps_case = settings.keeps_case && (protocol.is_http() || protocol.is_unknown());
}

/// Whether HTTP/1.1 requests are sent on as HTTP/2: as the destination rule says, else as the mesh says.
pub(super) fn upgrades(mesh: &MeshConfig, protocol: Protocol, pool: Option<&ConnectionPoolSettings>) -> bool {
    if let Some(http) = pool.and_then(|p| p.http.as_ref()) {
        if http.use_client_protocol {
            return false;
        }
        match http.h2_upgrade_policy {
            H2UpgradePolicy::Upgrade => return true,
            H2UpgradePolicy::DoNotUpgrade => return false,
            H2UpgradePolicy::Default => {}
        }
    }
    protocol.is_http() && mesh.h2_upgrade_policy == MeshH2UpgradePolicy::Upgrade
}
