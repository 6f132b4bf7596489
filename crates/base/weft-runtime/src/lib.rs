//! The life cycle of a process: log set-up ([`logging`]), signals ([`signal`]), readiness ([`ready`]), drain ([`drain`]), memory
//! that is given back ([`memory`]), open files ([`files`]), and the mark of its outbound sockets ([`net`]).
//!
//! Small values that are passed down; no process-wide state but the log filter, which the admin port may change, and the
//! socket mark, which is set at start.

pub mod drain;
pub mod files;
pub mod logging;
pub mod memory;
pub mod net;
pub mod ready;
pub mod signal;

pub use drain::{Drain, DrainGuard, DrainWatch};
pub use ready::{Readiness, ReadyBlock};
