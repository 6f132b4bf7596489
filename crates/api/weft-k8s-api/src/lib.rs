//! Istio, mesh-config and core Kubernetes kinds: parsing, defaults, validation.
//!
//! Reading order: [`object`] (any object, untyped), [`kinds`] (the table of kinds that Weft knows), [`istio`] (typed specs of
//! Istio's kinds), `yaml` (documents to objects), `validate` (what is wrong with an object, with field paths).

pub mod istio;
pub mod kinds;
mod macros;
pub mod object;

pub use k8s_openapi;
pub use kinds::KindInfo;
pub use object::{Object, ObjectKey};
