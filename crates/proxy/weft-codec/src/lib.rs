//! Bytes to protocol: what a connection speaks, what a request may look like, how bodies and local replies are carried.
//! No configuration, no routing, no sockets of its own.
//!
//! Reading order: [`proxy_protocol`], [`http_sniff`] (first bytes of a connection), [`io`] (the stream under HTTP),
//! [`h1`] (HTTP/1.1), [`h2`] (HTTP/2), [`strict`] (which requests are refused), [`marks`] and [`hop`] (headers of one hop),
//! [`client_cert`] (whose certificate a hop saw), [`body`], [`replay`], [`upgrade`],
//! [`grpc`], [`reason`] (the one table of everything that goes wrong), [`reply`] (how the client hears of it).

pub mod body;
pub mod client_cert;
pub mod grpc;
pub mod h1;
pub mod h2;
pub mod hop;
pub mod http_sniff;
pub mod io;
pub mod marks;
pub mod proxy_protocol;
pub mod reason;
pub mod replay;
pub mod reply;
pub mod strict;
pub mod upgrade;

pub use body::{BodyError, BodyMap, BodyObserver, ProxyBody};
pub use io::{Io, Stream};
pub use marks::HeaderMarks;
pub use reason::{Flags, Reason};
pub use reply::LocalReply;
