//! HTTP/1.1 (RFC 9112) of both sides: heads, bodies, and the connection they pass through. Who is asked and what is answered
//! is not known here.
//!
//! Reading order: [`scan`] (where a head ends), `lines` (its lines), [`head`] (bytes to request or response), [`names`], [`body`] (bytes to frames),
//! [`encode`] (the other way), [`wire`] (one connection), [`incoming`] (a body read from it), [`pump`] (a body written to it),
//! [`pool`] (buffers and maps used again), [`date`].

pub mod body;
pub mod date;
pub mod encode;
pub mod head;
pub mod incoming;
mod lines;
pub mod names;
pub mod pool;
pub mod pump;
pub mod scan;
pub mod wire;

pub use body::BodyFault;
pub use encode::Sending;
pub use head::{Framing, HeadFault, HeadLimits, RequestHead, ResponseHead};
pub use incoming::WireBody;
pub use pump::{Outgoing, PumpError};
pub use wire::{SharedWire, Wire, WireError};
