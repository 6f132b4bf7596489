//! Envoy's bootstrap file: node, admin address, static resources, and where dynamic ones come from. What weft-proxy cannot do
//! is refused by field path, never passed over in silence.

use crate::{ConfigBuilder, Update, Upsert};
use prost::Message as _;
use std::net::SocketAddr;
use weft_proto::Any;
use weft_proto::envoy::config::bootstrap::v3::{self as proto, bootstrap};
use weft_proto::envoy::config::core::v3 as core;
use weft_proto::type_url;
use weft_route::error::{Errors, Path};
use weft_route::refuse_set;

/// A bootstrap file, read and checked.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// Who the proxy says it is.
    pub node: core::Node,
    /// Where the admin port listens; `None` = nowhere.
    pub admin: Option<SocketAddr>,
    /// Static secrets, clusters and listeners, in the order to apply them.
    pub resources: Vec<Update>,
    /// Where dynamic resources come from.
    pub ads: Option<AdsSource>,
    /// The message in its own bytes, for config dumps: decoded it would be many times larger.
    pub message: Vec<u8>,
}

/// An ADS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdsSource {
    /// Static cluster that reaches it.
    pub cluster: String,
    /// Delta protocol, or state of the world.
    pub delta: bool,
    /// `:authority` of the stream; the cluster's name unless set.
    pub authority: String,
}

/// Why a bootstrap file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// Not YAML or JSON, or not a bootstrap; names line or field.
    #[error(transparent)]
    Parse(#[from] weft_proto::json::JsonError),
    /// Fields that weft-proxy cannot honour.
    #[error("{}", .0.join("\n"))]
    Unsupported(Vec<String>),
}

/// Reads a bootstrap from YAML or JSON text.
///
/// # Errors
/// When it does not parse, or asks for something that weft-proxy cannot do; each is named with its field path.
pub fn load_bootstrap(text: &str) -> Result<Bootstrap, BootstrapError> {
    let message: proto::Bootstrap = weft_proto::json::from_yaml(text)?;
    let mut errors = Errors::new("bootstrap");
    refuse_fields(&message, &mut errors);
    let admin = admin(&message, &mut errors);
    let ads = ads(message.dynamic_resources.as_ref(), &mut errors);
    if errors.refused() {
        return Err(BootstrapError::Unsupported(errors.into_list().iter().map(ToString::to_string).collect()));
    }
    Ok(Bootstrap {
        node: message.node.clone().unwrap_or_default(),
        admin,
        resources: static_resources(message.static_resources.as_ref()),
        ads,
        message: message.encode_to_vec(),
    })
}

/// Applies the static resources; the text of each refusal.
pub fn apply_static(bootstrap: &Bootstrap, builder: &mut ConfigBuilder) -> Vec<String> {
    let mut refused = Vec::new();
    for update in &bootstrap.resources {
        let kind = update.type_url.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        let applied = builder.apply(update);
        refused.extend(applied.refused.iter().map(|(name, why)| format!("{kind} {name}: {why}")));
    }
    refused
}

#[allow(deprecated)]
fn refuse_fields(message: &proto::Bootstrap, errors: &mut Errors) {
    let proto::Bootstrap {
        node: _,
        node_context_params,
        static_resources: _,
        dynamic_resources: _,
        cluster_manager,
        hds_config,
        // A file that switches features by its presence.
        flags_path: _,
        stats_sinks,
        // Which statistics are kept, how, and how often they are written out: there is nowhere to write them to.
        deferred_stat_options: _,
        stats_config: _,
        stats_flush_interval: _,
        stats_server_version_override: _,
        stats_flush: _,
        stats_eviction: _,
        enable_dispatcher_stats: _,
        // Threads that hang end the process in Envoy; here there is no such thread.
        watchdog: _,
        watchdogs: _,
        tracing,
        // Runtime values override defaults of the configuration; weft-proxy goes by those defaults.
        layered_runtime: _,
        admin: _,
        overload_manager,
        header_prefix,
        use_tcp_for_dns_lookups: _,
        dns_resolution_config,
        typed_dns_resolver_config,
        bootstrap_extensions,
        fatal_actions,
        config_sources,
        default_config_source,
        default_socket_interface,
        certificate_provider_instances,
        // Headers that are quicker to find.
        inline_headers: _,
        perf_tracing_file_path: _,
        default_regex_engine,
        xds_delegate_extension,
        xds_config_tracker_extension,
        listener_manager,
        // Form of the process's own log.
        application_log_config: _,
        grpc_async_client_manager_config: _,
        memory_allocator_manager: _,
        enable_worker_cpu_affinity: _,
    } = message;
    let root = Path::ROOT;
    refuse_set!(
        errors,
        root,
        node_context_params,
        hds_config,
        stats_sinks,
        tracing,
        overload_manager,
        header_prefix,
        dns_resolution_config,
        typed_dns_resolver_config,
        bootstrap_extensions,
        fatal_actions,
        config_sources,
        default_config_source,
        default_socket_interface,
        certificate_provider_instances,
        default_regex_engine,
        xds_delegate_extension,
        xds_config_tracker_extension,
        listener_manager
    );
    if let Some(manager) = cluster_manager {
        let proto::ClusterManager {
            local_cluster_name,
            // A log of ejections.
            outlier_detection: _,
            upstream_bind_config,
            load_stats_config,
            enable_deferred_cluster_creation: _,
        } = manager;
        refuse_set!(errors, root.field("cluster_manager"), local_cluster_name, upstream_bind_config, load_stats_config);
    }
    if let Some(admin) = &message.admin {
        let proto::Admin {
            // Where the admin port's own requests are logged, and profiles written.
            access_log: _,
            access_log_path: _,
            profile_path: _,
            address: _,
            socket_options,
            ignore_global_conn_limit: _,
            allow_paths,
        } = admin;
        refuse_set!(errors, root.field("admin"), socket_options, allow_paths);
    }
}

fn admin(message: &proto::Bootstrap, errors: &mut Errors) -> Option<SocketAddr> {
    let address = message.admin.as_ref()?.address.as_ref()?;
    let path = Path::ROOT.field("admin");
    let path = path.field("address");
    let Some(core::address::Address::SocketAddress(socket)) = &address.address else {
        errors.refuse(&path, "must be a socket_address");
        return None;
    };
    let port = match socket.port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        _ => None,
    };
    let parsed = socket.address.parse().ok().zip(port).map(|(ip, port)| SocketAddr::new(ip, port));
    if parsed.is_none() {
        errors.refuse(&path, format!("{:?} with its port_value is not an IP address and port", socket.address));
    }
    parsed
}

fn ads(dynamic: Option<&bootstrap::DynamicResources>, errors: &mut Errors) -> Option<AdsSource> {
    let dynamic = dynamic?;
    let root = Path::ROOT.field("dynamic_resources");
    for (name, source) in [("lds_config", &dynamic.lds_config), ("cds_config", &dynamic.cds_config)] {
        let by_ads = |s: &core::ConfigSource| {
            matches!(s.config_source_specifier, Some(core::config_source::ConfigSourceSpecifier::Ads(_)))
        };
        if source.as_ref().is_some_and(|s| !by_ads(s)) {
            errors.refuse(&root.field(name), "weft-proxy takes dynamic resources by ADS alone; write {ads: {}}");
        }
    }
    let Some(config) = &dynamic.ads_config else {
        if dynamic.lds_config.is_some() || dynamic.cds_config.is_some() {
            errors.refuse(&root.field("ads_config"), "must be set when lds_config or cds_config says ads");
        }
        return None;
    };
    let path = root.field("ads_config");
    use core::api_config_source::ApiType;
    let delta = match ApiType::try_from(config.api_type) {
        Ok(ApiType::DeltaGrpc | ApiType::AggregatedDeltaGrpc) => true,
        Ok(ApiType::Grpc | ApiType::AggregatedGrpc) => false,
        _ => {
            errors.refuse(&path.field("api_type"), "must be GRPC or DELTA_GRPC");
            false
        }
    };
    let service = config.grpc_services.first().and_then(|s| s.target_specifier.as_ref());
    let Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(grpc)) = service else {
        errors.refuse(&path.field("grpc_services"), "must name a cluster by envoy_grpc.cluster_name");
        return None;
    };
    let authority = if grpc.authority.is_empty() { grpc.cluster_name.clone() } else { grpc.authority.clone() };
    Some(AdsSource { cluster: grpc.cluster_name.clone(), delta, authority })
}

/// Secrets first, then clusters, then listeners: each finds what it refers to.
fn static_resources(message: Option<&bootstrap::StaticResources>) -> Vec<Update> {
    let Some(message) = message else { return Vec::new() };
    let secrets = message.secrets.iter().map(|s| upsert(&s.name, weft_proto::pack(s))).collect();
    let clusters = message.clusters.iter().map(|c| upsert(&c.name, weft_proto::pack(c))).collect();
    let listeners = message.listeners.iter().enumerate().map(|(i, l)| {
        // A listener without a name is named by its place.
        let mut named = l.clone();
        if named.name.is_empty() {
            named.name = format!("listener_{i}");
        }
        upsert(&named.name, weft_proto::pack(&named))
    });
    vec![
        update(type_url::SECRET, secrets),
        update(type_url::CLUSTER, clusters),
        update(type_url::LISTENER, listeners.collect()),
    ]
}

fn upsert(name: &str, any: Any) -> Upsert {
    Upsert { name: name.to_string(), version: "static".into(), any }
}

fn update(type_url: &str, upserts: Vec<Upsert>) -> Update {
    Update { type_url: type_url.to_string(), upserts, removals: Vec::new() }
}
