//! Generates `crates/api/weft-proto/src/generated/` from the protobuf schema of Envoy's API and from our own messages.
//!
//! The schema files come from the package of the `envoy-types` crate, which is fetched but never compiled: its types use
//! hash maps, so that the same resource encodes to different bytes from one time to the next. Here every map is a
//! `BTreeMap`, only what Weft uses is generated, and the descriptor set beside the code (`descriptors.bin`) is pruned to the
//! same files. The rest of Envoy's API, which EnvoyFilters and bootstrap files may name, is described in `extensions.bin`.
//!
//! Run by `cargo xtask codegen`. The output is committed; CI checks that it is what this program writes.

use anyhow::{Context, Result, bail};
use prost::Message;
use prost_types::FileDescriptorSet;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files that Weft names; what they import follows.
const ROOTS: &[&str] = &[
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/accesslog/v3/accesslog.proto",
    "envoy/config/rbac/v3/rbac.proto",
    "envoy/config/trace/v3/zipkin.proto",
    "envoy/config/trace/v3/opentelemetry.proto",
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/secret/v3/sds.proto",
    "envoy/service/status/v3/csds.proto",
    "envoy/service/auth/v3/external_auth.proto",
    "envoy/service/route/v3/rds.proto",
    "envoy/service/ratelimit/v3/rls.proto",
    "envoy/admin/v3/config_dump.proto",
    "envoy/admin/v3/clusters.proto",
    "envoy/admin/v3/certs.proto",
    "envoy/admin/v3/listeners.proto",
    "envoy/admin/v3/server_info.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/access_loggers/grpc/v3/als.proto",
    "envoy/extensions/access_loggers/open_telemetry/v3/logs_service.proto",
    "envoy/extensions/filters/common/fault/v3/fault.proto",
    "envoy/extensions/filters/http/cors/v3/cors.proto",
    "envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/http/fault/v3/fault.proto",
    "envoy/extensions/filters/http/grpc_stats/v3/config.proto",
    "envoy/extensions/filters/http/grpc_web/v3/grpc_web.proto",
    "envoy/extensions/filters/http/jwt_authn/v3/config.proto",
    "envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit.proto",
    "envoy/extensions/filters/http/lua/v3/lua.proto",
    "envoy/extensions/filters/http/ratelimit/v3/rate_limit.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/http/wasm/v3/wasm.proto",
    "envoy/extensions/filters/http/compressor/v3/compressor.proto",
    "envoy/extensions/filters/http/decompressor/v3/decompressor.proto",
    "envoy/extensions/filters/http/set_filter_state/v3/set_filter_state.proto",
    "envoy/extensions/filters/http/on_demand/v3/on_demand.proto",
    "envoy/extensions/filters/http/header_mutation/v3/header_mutation.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/original_src/v3/original_src.proto",
    "envoy/extensions/filters/listener/proxy_protocol/v3/proxy_protocol.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/network/sni_cluster/v3/sni_cluster.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/filters/network/set_filter_state/v3/set_filter_state.proto",
    "envoy/extensions/filters/network/connection_limit/v3/connection_limit.proto",
    "envoy/extensions/filters/network/local_ratelimit/v3/local_rate_limit.proto",
    "envoy/extensions/clusters/dynamic_forward_proxy/v3/cluster.proto",
    "envoy/extensions/common/dynamic_forward_proxy/v3/dns_cache.proto",
    "envoy/extensions/filters/http/dynamic_forward_proxy/v3/dynamic_forward_proxy.proto",
    "envoy/extensions/filters/network/sni_dynamic_forward_proxy/v3/sni_dynamic_forward_proxy.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/maglev/v3/maglev.proto",
    "envoy/extensions/load_balancing_policies/random/v3/random.proto",
    "envoy/extensions/load_balancing_policies/ring_hash/v3/ring_hash.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/request_id/uuid/v3/uuid.proto",
    "envoy/extensions/compression/brotli/compressor/v3/brotli.proto",
    "envoy/extensions/compression/brotli/decompressor/v3/brotli.proto",
    "envoy/extensions/compression/gzip/compressor/v3/gzip.proto",
    "envoy/extensions/compression/gzip/decompressor/v3/gzip.proto",
    "envoy/extensions/compression/zstd/compressor/v3/zstd.proto",
    "envoy/extensions/compression/zstd/decompressor/v3/zstd.proto",
    "envoy/extensions/internal_redirect/allow_listed_routes/v3/allow_listed_routes_config.proto",
    "envoy/extensions/internal_redirect/previous_routes/v3/previous_routes_config.proto",
    "envoy/extensions/internal_redirect/safe_cross_scheme/v3/safe_cross_scheme_config.proto",
    "envoy/extensions/retry/host/omit_host_metadata/v3/omit_host_metadata_config.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config.proto",
    "envoy/extensions/transport_sockets/internal_upstream/v3/internal_upstream.proto",
    "envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/extensions/upstreams/tcp/v3/tcp_protocol_options.proto",
    "envoy/extensions/wasm/v3/wasm.proto",
    "envoy/extensions/matching/common_inputs/network/v3/network_inputs.proto",
    "envoy/extensions/matching/common_inputs/ssl/v3/ssl_inputs.proto",
    "envoy/extensions/path/match/uri_template/v3/uri_template_match.proto",
    "envoy/extensions/path/rewrite/uri_template/v3/uri_template_rewrite.proto",
    "xds/type/matcher/v3/matcher.proto",
    "google/rpc/status.proto",
    "weft/forward_downstream_sni.proto",
    "weft/istio.proto",
    "weft/nds.proto",
    "weft/sni_verifier.proto",
    "weft/weft.proto",
];

fn main() -> Result<()> {
    let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let schema = envoy_schema()?;
    let includes: Vec<PathBuf> =
        ["data-plane-api", "xds", "googleapis", "protoc-gen-validate", "client_model", "opentelemetry-proto", "cel-spec/proto"]
            .iter()
            .map(|dir| schema.join(dir))
            .chain([repo.join("crates/api/weft-proto/proto")])
            .filter(|dir| dir.is_dir())
            .collect();
    let out = repo.join("crates/api/weft-proto/src/generated");
    let used = compile(&includes, ROOTS.iter().map(ToString::to_string))?;
    let names: BTreeSet<String> = used.file.iter().map(|file| file.name().to_string()).collect();
    let mut rest = compile(&includes, all_of_envoy(&schema)?.into_iter())?;
    rest.file.retain(|file| !names.contains(file.name()));
    write_code(&out, used)?;
    std::fs::write(out.join("extensions.bin"), rest.encode_to_vec())?;
    Ok(())
}

/// Every schema file of Envoy's own, and what its package lacks of what they name, in order.
fn all_of_envoy(schema: &Path) -> Result<BTreeSet<String>> {
    let root = schema.join("data-plane-api");
    let mut found = BTreeSet::from(["weft/udpa_typed_struct.proto".to_string(), "weft/xds_typed_struct.proto".into()]);
    let mut folders = vec![root.join("envoy")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                found.insert(path.strip_prefix(&root)?.display().to_string());
            }
        }
    }
    Ok(found)
}

/// The folder of `.proto` files in the `envoy-types` package, downloaded by cargo when it is not there.
fn envoy_schema() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(&manifest)
        .output()
        .context("cargo metadata")?;
    if !out.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    }
    let text = String::from_utf8(out.stdout)?;
    let marker = "envoy-types-0.7.7/Cargo.toml\"";
    let end = text.find(marker).context("cargo metadata does not list envoy-types 0.7.7")? + marker.len() - 1;
    let start = text[..end].rfind('"').context("malformed cargo metadata")? + 1;
    Ok(Path::new(&text[start..end]).with_file_name("proto"))
}

/// Compiles each root by itself, because one package may see names of another that it does not import, and merges them.
fn compile(includes: &[PathBuf], roots: impl Iterator<Item = String>) -> Result<FileDescriptorSet> {
    let mut files = BTreeMap::new();
    let mut order = Vec::new();
    for root in roots {
        let mut compiler = protox::Compiler::with_file_resolver(schema_resolver(includes));
        compiler.include_imports(true).include_source_info(false);
        compiler.open_file(&root).with_context(|| root.clone())?;
        for file in compiler.file_descriptor_set().file {
            if !files.contains_key(file.name()) {
                order.push(file.name().to_string());
                files.insert(file.name().to_string(), file);
            }
        }
    }
    let file = order.iter().filter_map(|name| files.remove(name)).collect();
    Ok(FileDescriptorSet { file })
}

/// Finds schema files, and writes two relative names out in full.
///
/// `common.ratelimit` and `common.dynamic_forward_proxy` mean `envoy.extensions.common.…`, but protox looks in the nearest
/// enclosing package that any file of the compilation declares, and stops there.
struct SchemaResolver(Vec<PathBuf>);

impl protox::file::FileResolver for SchemaResolver {
    fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
        let Some(path) = self.0.iter().map(|dir| dir.join(name)).find(|path| path.is_file()) else {
            return Err(protox::Error::file_not_found(name));
        };
        let mut source = std::fs::read_to_string(path).map_err(protox::Error::new)?;
        for package in ["ratelimit", "dynamic_forward_proxy"] {
            source = source.replace(&format!(" common.{package}."), &format!(" .envoy.extensions.common.{package}."));
        }
        protox::file::File::from_source(name, &source)
    }
}

fn schema_resolver(includes: &[PathBuf]) -> protox::file::ChainFileResolver {
    let mut chain = protox::file::ChainFileResolver::new();
    chain.add(SchemaResolver(includes.to_vec()));
    chain.add(protox::file::GoogleFileResolver::new());
    chain
}

fn write_code(out: &Path, set: FileDescriptorSet) -> Result<()> {
    std::fs::remove_dir_all(out).ok();
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("descriptors.bin"), set.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    config.btree_map(["."]).enable_type_names().include_file("mod.rs").out_dir(out).bytes([".google.protobuf.Any"]);
    let mut services = BTreeSet::new();
    for file in &set.file {
        if !file.service.is_empty() {
            services.insert(file.package().to_string());
        }
    }
    eprintln!("{} files, services in {services:?}", set.file.len());
    tonic_prost_build::configure().build_transport(false).out_dir(out).compile_fds_with_config(set, config)?;
    Ok(())
}
