//! The xDS messages (`envoy`, `xds`), the messages of our own (`weft`, `istio`), and their JSON form ([`json`]).
//!
//! The code under `generated/` is written by `cargo xtask codegen`. All maps are `BTreeMap`, so equal messages have equal
//! bytes and an encoded resource may be compared and hashed.

#[allow(clippy::all, clippy::unwrap_used, rustdoc::all)]
mod generated {
    include!("generated/mod.rs");
}

pub mod any;
mod canonical;
pub mod json;
pub mod type_url;

pub use any::{pack, unpack};
pub use generated::*;
pub use prost_types::{Any, Struct, Value};
