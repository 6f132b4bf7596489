//! What goes into the client and comes out of it.

use prost_types::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::oneshot;
use weft_proto::envoy::config::core::v3::Node;

/// Gives the headers of a new stream, e.g. `authorization`; an error is a reason not to connect now.
pub type Headers = Arc<dyn Fn() -> Result<Vec<(String, String)>, String> + Send + Sync>;

/// How to talk to the control plane.
#[derive(Clone)]
pub struct Config {
    /// Who this proxy is.
    pub node: Node,
    /// `:authority` of the stream, e.g. `istiod.istio-system.svc:15012`.
    pub authority: String,
    /// Which of the two protocols.
    pub mode: Mode,
    /// Headers of each new stream.
    pub headers: Headers,
}

/// The two protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// `DeltaAggregatedResources`.
    #[default]
    Delta,
    /// `StreamAggregatedResources`.
    StateOfTheWorld,
}

/// What is wanted of a type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interest {
    /// All that the server has for this proxy (listeners, clusters).
    pub wildcard: bool,
    /// These by name. A name may end in `/*` where the server knows collections (virtual hosts).
    pub names: BTreeSet<String>,
}

impl Interest {
    /// All.
    pub fn all() -> Self {
        Self { wildcard: true, names: BTreeSet::new() }
    }

    /// These names.
    pub fn named<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self { wildcard: false, names: names.into_iter().map(Into::into).collect() }
    }

    /// True when nothing is wanted.
    pub fn is_empty(&self) -> bool {
        !self.wildcard && self.names.is_empty()
    }
}

/// What is wanted of a type, and when each name was asked for: a name that was dropped and is wanted again is another
/// question, though nobody looked in between.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Wanted {
    /// All that the server has for this proxy.
    pub(crate) wildcard: bool,
    /// These by name, with the number of the wish that brought each.
    pub(crate) names: BTreeMap<String, u64>,
}

impl Wanted {
    /// True when nothing is wanted.
    pub(crate) fn is_empty(&self) -> bool {
        !self.wildcard && self.names.is_empty()
    }

    /// The same as `interest`.
    pub(crate) fn is(&self, interest: &Interest) -> bool {
        self.wildcard == interest.wildcard && self.names.keys().eq(&interest.names)
    }

    /// `interest`, wanted by wish number `wish`: names that were wanted before keep their number.
    pub(crate) fn next(&self, interest: Interest, wish: u64) -> Self {
        let numbered = |name: String| {
            let number = self.names.get(&name).copied().unwrap_or(wish);
            (name, number)
        };
        Self { wildcard: interest.wildcard, names: interest.names.into_iter().map(numbered).collect() }
    }
}

/// How the workload is: well, or what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It takes traffic.
    Well,
    /// It does not; the reason.
    Unwell(String),
}

impl Health {
    /// As requests carry it: the error of one that is unwell.
    pub(crate) fn into_error(self) -> Option<weft_proto::google::rpc::Status> {
        match self {
            Health::Well => None,
            // gRPC status INTERNAL, as Istio's agent has it.
            Health::Unwell(message) => {
                Some(weft_proto::google::rpc::Status { code: 13, message, ..Default::default() })
            }
        }
    }
}

/// A resource as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Name.
    pub name: String,
    /// Version that the server gave it.
    pub version: String,
    /// The message.
    pub any: Any,
}

/// A change of one type's resources. Answer with [`ResourceUpdate::done`]: the server learns what was refused.
#[derive(Debug)]
pub struct ResourceUpdate {
    /// Type of all of them.
    pub type_url: String,
    /// New and changed ones.
    pub upserts: Vec<Resource>,
    /// Names of those that are gone.
    pub removals: Vec<String>,
    pub(crate) reply: oneshot::Sender<Outcome>,
}

impl ResourceUpdate {
    /// Says what became of the update. Dropping the update without calling this refuses it.
    pub fn done(self, outcome: Outcome) {
        // The stream may have ended meanwhile; then there is nobody to tell.
        let _ = self.reply.send(outcome);
    }
}

/// What became of an update: refused resources and why. Empty = accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Name of a refused resource, and the reason.
    pub refused: Vec<(String, String)>,
}

impl Outcome {
    /// The text of a NACK, naming each refused resource; `None` when nothing was refused.
    pub fn error(&self) -> Option<String> {
        if self.refused.is_empty() {
            return None;
        }
        let lines: Vec<String> = self.refused.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        let mut text = lines.join("\n");
        if text.len() > MAX_NACK {
            let cut = (0..=MAX_NACK).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            text.truncate(cut);
            text.push_str(" …");
        }
        Some(text)
    }
}

/// Longest NACK text.
const MAX_NACK: usize = 16 * 1024;

/// How the stream is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionState {
    /// A stream is open and the server has answered on it.
    pub connected: bool,
    /// Attempts since the last good stream.
    pub attempts: u32,
    /// Why the last attempt or stream ended.
    pub last_error: Option<String>,
    /// Connected, or away, for so long.
    pub since: std::time::Instant,
}
