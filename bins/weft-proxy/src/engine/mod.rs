//! What moves the traffic: our own data plane ([`weft`]), or an Envoy that the agent starts ([`envoy`]).

pub mod envoy;
pub mod weft;
