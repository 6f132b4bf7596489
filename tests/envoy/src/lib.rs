//! The data plane beside a real Envoy: one configuration file goes to both, the same requests go to both, and the answers
//! are compared. Knows nothing of what a configuration means.
//!
//! [`twin`] runs the pair and asks it, [`backend`] is what stands behind both, [`bootstrap`] makes a file of generated
//! resources, [`random`], [`wide`], [`sidecar`], [`routes`] and [`streams`] make configurations and requests from a seed.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot go on fails.

pub mod backend;
pub mod bootstrap;
pub mod random;
pub mod routes;
pub mod sidecar;
pub mod streams;
pub mod twin;
pub mod wide;

pub use backend::Backend;
pub use twin::{Answer, Ask, Twin};
