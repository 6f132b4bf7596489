//! Names, ports, durations and interned strings that every other crate uses. Pure: no I/O, no clock, no randomness.
//!
//! Reading order: [`names`] (cluster and SNI names), [`well_known`] (labels, annotations, ports), [`duration`],
//! [`strng`] (shared strings), [`provenance`] (which line of YAML something came from), [`node`] (who a proxy is).

pub mod duration;
pub mod names;
pub mod node;
pub mod provenance;
pub mod strng;
pub mod well_known;

pub use provenance::Provenance;
pub use strng::Strng;
