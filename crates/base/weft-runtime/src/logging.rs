//! Log set-up: one line an event to standard error, text on a terminal and for people, JSON when asked for.

use std::sync::OnceLock;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt, reload};

type FilterHandle = reload::Handle<EnvFilter, tracing_subscriber::Registry>;

/// The one process-wide value: the admin port changes the log level through it.
static FILTER: OnceLock<FilterHandle> = OnceLock::new();

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Sets logging up. `filter` is a level (`info`) or a list (`info,weft_dataplane=debug`); `RUST_LOG` overrides it.
///
/// # Errors
/// When the filter does not parse, or logging was set up before.
pub fn init(filter: &str, format: Format) -> Result<(), String> {
    let text = std::env::var("RUST_LOG").unwrap_or_else(|_| filter.to_string());
    let filter = EnvFilter::try_new(&text).map_err(|e| format!("log filter {text:?}: {e}; try info or debug"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let base = tracing_subscriber::registry().with(filter);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let done = match format {
        Format::Text => {
            base.with(fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_target(true)).try_init()
        }
        Format::Json => base.with(fmt::layer().json().with_writer(std::io::stderr)).try_init(),
    };
    done.map_err(|e| e.to_string())?;
    FILTER.set(handle).map_err(|_| "logging was set up before".to_string())
}

/// The filter in force.
pub fn current() -> String {
    FILTER.get().and_then(|h| h.with_current(ToString::to_string).ok()).unwrap_or_default()
}

/// Replaces the filter.
///
/// # Errors
/// When it does not parse.
pub fn set(filter: &str) -> Result<(), String> {
    let parsed = EnvFilter::try_new(filter).map_err(|e| format!("log filter {filter:?}: {e}; try info or debug"))?;
    FILTER.get().ok_or("logging is not set up")?.reload(parsed).map_err(|e| e.to_string())
}
