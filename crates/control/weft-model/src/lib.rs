//! From objects to the immutable [`MeshSnapshot`]. Knows Kubernetes and Istio objects; knows nothing of xDS.

pub mod snapshot;

pub use snapshot::*;
