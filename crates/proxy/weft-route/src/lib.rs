//! Virtual hosts and routes: compiled once from xDS, matched on every request. Pure: no I/O, no clock, no randomness — a
//! random number is an argument.
//!
//! Reading order: [`types`] (what a compiled route is), [`error`] (which field cannot be used, and why), [`pool`] (what
//! compiled resources share), [`compile`] (xDS → types, with an error per bad field), [`index`] (virtual hosts → table),
//! [`matching`] (a request → its route), [`metadata`] (what filters said of it), [`rewrite`] (what the route does to path, host and headers), [`ratelimit`] (descriptors and buckets), [`normalize`] (the one
//! normaliser), [`xxhash`] (the hash of consistent balancing).

pub mod compile;
pub mod error;
pub mod index;
pub mod matching;
pub mod metadata;
pub mod normalize;
pub mod pool;
pub mod ratelimit;
pub mod rewrite;
mod template;
pub mod types;
pub mod xxhash;

pub use compile::{CompiledTable, compile_table, compile_virtual_host};
pub use error::{ConfigError, Errors, Severity};
pub use index::TableSettings;
pub use metadata::{DynamicMetadata, MetadataMatcher, MetadataValue, ValueTest};
pub use normalize::{EscapedSlashes, PathNormalization};
pub use pool::Pool;
pub use ratelimit::{HostLimits, LocalRateLimit, RateLimit, RateLimitPerRoute};
pub use template::template_regex;
pub use types::*;
