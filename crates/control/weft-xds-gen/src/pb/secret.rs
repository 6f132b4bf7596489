//! Where TLS contexts find their certificates: SDS names and sources.

use super::{core, tls};

/// The workload's own certificate (SVID).
pub(crate) const SVID: &str = "default";
/// Roots of the mesh's trust domain.
pub(crate) const ROOTS: &str = "ROOTCA";
/// Cluster, from the bootstrap, of the agent's SDS socket.
pub(crate) const SDS_CLUSTER: &str = "sds-grpc";

/// A secret that the agent beside the proxy serves: the workload's own, or files it watches (`file-cert:…`).
pub(crate) fn from_agent(name: &str) -> tls::SdsSecretConfig {
    let grpc = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(core::grpc_service::EnvoyGrpc {
            cluster_name: SDS_CLUSTER.into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let api = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc as i32,
        transport_api_version: core::ApiVersion::V3 as i32,
        grpc_services: vec![grpc],
        set_node_on_first_message_only: true,
        ..Default::default()
    };
    tls::SdsSecretConfig {
        name: name.into(),
        sds_config: Some(core::ConfigSource {
            config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(api)),
            initial_fetch_timeout: Some(super::zero()),
            resource_api_version: core::ApiVersion::V3 as i32,
            ..Default::default()
        }),
    }
}

/// A secret that the control plane serves over the aggregated stream.
pub(crate) fn from_control_plane(name: &str) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig { name: name.into(), sds_config: Some(super::ads()) }
}
