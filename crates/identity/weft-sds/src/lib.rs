//! The workload's side of identity: make a key, have it certified, rotate it, and hand the secrets to whoever serves with
//! them. Does not know what traffic they protect.
//!
//! Reading order: [`config`], [`secrets`] (what is handed out), [`ca_client`] (one request to the authority), [`manager`]
//! (the life of an SVID), [`sds`] (the secrets for an Envoy beside us, over a Unix socket), [`files`]
//! (secrets named after files), [`output`] (the SVID as files).

pub mod ca_client;
pub mod config;
pub mod files;
pub mod manager;
pub mod output;
pub mod sds;
pub mod secrets;

pub use ca_client::{CaError, grpc_channel};
pub use config::SvidConfig;
pub use files::FileSecret;
pub use manager::{SvidManager, SvidStats, SvidStatus};
pub use sds::{SDS_CERTIFICATE, SDS_ROOTS, SdsServer};
pub use secrets::WorkloadSecrets;
