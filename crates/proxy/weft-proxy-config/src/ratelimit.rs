//! The compiled filters that limit rates beyond what routes say of them.

use http::{HeaderValue, StatusCode};
use std::time::Duration;
use weft_core::Strng;
use weft_route::ratelimit::Bucket;
use weft_route::{HeaderEdit, RateLimit};

/// The filter that asks a rate limit service (`envoy.service.ratelimit.v3`).
#[derive(Debug)]
pub struct RateLimitService {
    /// Name that the service knows the limits by.
    pub domain: String,
    /// Which limits of routes it is for.
    pub stage: u32,
    /// Whose requests it is for.
    pub whose: RequestType,
    /// Cluster of the service.
    pub cluster: Strng,
    /// Host that is named to it.
    pub authority: HeaderValue,
    /// Time for an answer; 20 ms unless set, `None`: no limit.
    pub timeout: Option<Duration>,
    /// Share of requests that are refused when the service does not answer, in parts per million.
    pub deny_on_failure: u32,
    /// Their status; 500 unless set.
    pub status_on_error: StatusCode,
    /// Status of a refusal.
    pub status: StatusCode,
    /// gRPC calls are told `RESOURCE_EXHAUSTED` instead of `UNAVAILABLE`.
    pub exhausted: bool,
    /// Refusals carry `x-envoy-ratelimited`.
    pub tells: bool,
    /// Changes to refusals.
    pub response_headers: HeaderEdit,
    /// Share of requests that the service is asked about, in parts per million.
    pub enabled: u32,
    /// Share of requests beyond the limit that is refused, in parts per million.
    pub enforced: u32,
    /// In place of the routes' limits, when there are any.
    pub limits: Vec<RateLimit>,
}

/// Whose requests a rate limit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequestType {
    /// Everybody's.
    #[default]
    Both,
    /// Those from inside.
    Internal,
    /// Those from outside.
    External,
}

/// A limit of new connections (`envoy.filters.network.local_ratelimit`).
#[derive(Debug)]
pub struct ConnectionRate {
    /// Prefix of its counters.
    pub stat_prefix: Strng,
    /// Its bucket.
    pub bucket: Bucket,
}
