//! From xDS messages to the compiled types. Every message is taken apart so that a field which changes behaviour is either
//! used or refused by name; what is tolerated is named where it is.
//!
//! Reading order: this file (what compilation shares), [`cluster`], `health`, `subsets`, [`endpoint`], [`tls`], [`listener`], `network`, [`http`],
//! `http_filters`, `compress`, [`jwt`], `ext_authz`, `ratelimit`, [`access_log`], `tracing`.

pub mod access_log;
pub mod address;
pub mod cluster;
mod compress;
pub mod endpoint;
mod ext_authz;
mod health;
pub mod http;
mod http_filters;
pub mod jwt;
pub mod listener;
mod network;
pub mod outlier;
mod ratelimit;
mod subsets;
pub mod tls;
mod tracing;

use crate::{ClusterMetadata, ConnectionLimits, EndpointMetadata, Map, Secret};
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::{Arc, Weak};
use weft_route::Pool;
use weft_route::compile::Compiler;

/// What compilation of one resource works with.
pub struct Ctx<'p> {
    /// Strings, expressions and errors; also compiles what routes and listeners have in common.
    pub c: Compiler<'p>,
    /// Equal values, stored once.
    pub shared: &'p mut Shared,
    /// Secrets that have arrived, by SDS name.
    pub secrets: &'p Map<Arc<Secret>>,
}

impl<'p> Ctx<'p> {
    /// For the resource of that name, e.g. `cluster outbound|80||x`.
    pub fn new(
        resource: impl Into<String>,
        pool: &'p mut Pool,
        shared: &'p mut Shared,
        secrets: &'p Map<Arc<Secret>>,
    ) -> Self {
        Self { c: Compiler::new(resource, pool), shared, secrets }
    }
}

/// Values that many resources have in common. 5000 clusters have a handful of distinct limits.
#[derive(Debug, Default)]
pub struct Shared {
    limits: Vec<Arc<ConnectionLimits>>,
    cluster_metadata: HashSet<Arc<ClusterMetadata>, foldhash::fast::RandomState>,
    endpoint_metadata: HashSet<Arc<EndpointMetadata>, foldhash::fast::RandomState>,
    /// Secrets from files and inline text, by the hash of their text.
    inline: Map<Weak<Secret>>,
}

/// Distinct limits kept for sharing; beyond that, clusters have their own.
const MAX_LIMITS: usize = 64;

impl Shared {
    pub(crate) fn limits(&mut self, value: ConnectionLimits) -> Arc<ConnectionLimits> {
        if let Some(found) = self.limits.iter().find(|limits| ***limits == value) {
            return found.clone();
        }
        let stored = Arc::new(value);
        if self.limits.len() < MAX_LIMITS {
            self.limits.push(stored.clone());
        }
        stored
    }

    pub(crate) fn cluster_metadata(&mut self, value: ClusterMetadata) -> Arc<ClusterMetadata> {
        interned(&mut self.cluster_metadata, value)
    }

    pub(crate) fn endpoint_metadata(&mut self, value: EndpointMetadata) -> Arc<EndpointMetadata> {
        interned(&mut self.endpoint_metadata, value)
    }

    /// The secret whose text has this hash, parsed once.
    pub(crate) fn inline_secret<E>(
        &mut self,
        hash: &weft_core::Strng,
        parse: impl FnOnce() -> Result<Secret, E>,
    ) -> Result<Arc<Secret>, E> {
        if let Some(found) = self.inline.get(hash).and_then(Weak::upgrade) {
            return Ok(found);
        }
        let parsed = Arc::new(parse()?);
        self.inline.insert(hash.clone(), Arc::downgrade(&parsed));
        Ok(parsed)
    }

    /// Forgets what nothing else holds any more.
    pub fn sweep(&mut self) {
        self.limits.retain(|value| Arc::strong_count(value) > 1);
        self.cluster_metadata.retain(|value| Arc::strong_count(value) > 1);
        self.endpoint_metadata.retain(|value| Arc::strong_count(value) > 1);
        self.inline.retain(|_, secret| secret.strong_count() > 0);
    }
}

fn interned<T: Eq + Hash>(set: &mut HashSet<Arc<T>, foldhash::fast::RandomState>, value: T) -> Arc<T> {
    if let Some(found) = set.get(&value) {
        return found.clone();
    }
    let stored = Arc::new(value);
    set.insert(stored.clone());
    stored
}

/// Stable hash of an encoded message: equal hash, equal resource.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    weft_route::xxhash::xxhash64(bytes)
}
