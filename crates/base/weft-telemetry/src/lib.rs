//! What a proxy tells about itself: metrics ([`stats`], written out by [`render`]), access-log formats ([`format`]) and the
//! writers of log lines ([`log_writer`]). Knows nothing of what is measured.

pub mod format;
pub mod log_writer;
pub mod render;
pub mod stats;

pub use format::{Command, Format, JsonFormat, Record};
pub use log_writer::LogWriter;
pub use stats::{Counter, Gauge, Histogram, Label, Registry, Report, Shard, Source};
