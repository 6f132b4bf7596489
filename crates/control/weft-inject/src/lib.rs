//! Sidecar injection.
pub mod values;
pub use values::Values;
