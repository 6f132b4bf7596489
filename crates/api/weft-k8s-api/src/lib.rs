//! Istio, mesh-config and core Kubernetes kinds: parsing, defaults, validation.
//!
//! Reading order: [`object`] (any object, untyped), [`kept`] (parts of objects), [`kinds`] (the table of kinds that Weft knows), [`istio`] (typed specs of
//! Istio's kinds), [`gateway_api`] (those of the Kubernetes Gateway API, and Ingress), [`de`] (JSON to typed structs, with field paths), [`yaml`] (documents to objects), [`validate()`] (what is
//! wrong with an object), [`schema`] and [`crd`] (the kinds as a cluster wants them declared).

pub mod crd;
pub mod de;
pub mod gateway_api;
pub mod istio;
pub mod kept;
pub mod kinds;
mod macros;
pub mod object;
pub mod schema;
pub mod validate;
pub mod yaml;

pub use k8s_openapi;
pub use kept::Kept;
pub use kinds::KindInfo;
pub use object::{Object, ObjectKey};
pub use validate::{Problem, Validation, parse_spec, patch_problems, validate, validate_shape};
