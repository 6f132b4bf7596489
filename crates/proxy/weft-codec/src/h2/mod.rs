//! HTTP/2 (RFC 9113) streams of both sides, on frames, header compression and flow control of the `h2` crate: bodies read from
//! a stream and written to one, and streams that become tunnels. Who is asked and what is answered is not known here.
//!
//! Reading order: [`head`] (what HTTP/2 forbids in a head, and what it should say of the body), [`incoming`] (a body read from a
//! stream), [`pump`] (a body written to it), [`tunnel`].

pub mod head;
pub mod incoming;
pub mod pump;
pub mod tunnel;

pub use incoming::StreamBody;
pub use pump::{Outgoing, PumpError};
pub use tunnel::Tunnel;
