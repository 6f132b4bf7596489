//! HTTP: a client's connection ([`http1`], [`http2`]), and the life of each request on it.
//!
//! Reading order: [`conn`], [`serve`] (the life of a request, step by step), then its steps: [`intake`], [`headers`], [`forwarded`]
//! (headers that say who asked), [`filters`], [`authorize`], [`ratelimit`], [`compress`], [`forward`], [`target`], [`limits`], [`retry`], [`mirror`], [`upgrade`], [`respond`]. [`exchange`] is
//! what is known of one request and its response; [`trace`] makes a span of it, [`report`] sends that.

pub(crate) mod authorize;
mod compress;
mod conn;
pub(super) mod exchange;
mod filters;
mod format;
mod forward;
mod forwarded;
mod headers;
mod http1;
mod http2;
mod intake;
mod limits;
mod mirror;
mod place;
pub(crate) mod ratelimit;
pub(crate) mod report;
mod respond;
mod retry;
mod serve;
pub(crate) mod target;
pub(crate) mod trace;
mod upgrade;

pub(crate) use conn::serve_connection;
