//! What can go wrong between a client and an API server, in words that a user can act on.

use kube::core::Status;
use thiserror::Error;

/// One field that the server found wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Path of the field.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

/// Error of a client call.
#[derive(Debug, Clone, Error)]
pub enum ClientError {
    /// No such object.
    #[error("{0}")]
    NotFound(String),
    /// The server does not serve that kind (or version).
    #[error("the server does not serve {0}; install the kind's definition or use another version")]
    NoSuchKind(String),
    /// An object of that name exists.
    #[error("{0}; apply it to change the existing one")]
    AlreadyExists(String),
    /// Another writer was quicker, or a precondition does not hold.
    #[error("{0}; read the object again and repeat the change")]
    Conflict(String),
    /// The object was refused.
    #[error("{message}{}", list_causes(.causes))]
    Invalid {
        /// The server's sentence.
        message: String,
        /// The fields, when the server names them.
        causes: Vec<Cause>,
    },
    /// The caller may not do that.
    #[error("{0}; use an account that may, or grant it the right")]
    Forbidden(String),
    /// The token is missing, wrong or expired.
    #[error("{url}: the server does not accept the credentials ({message}); get a fresh kubeconfig or token")]
    Unauthorized {
        /// Server.
        url: String,
        /// Its words.
        message: String,
    },
    /// The revision to watch from is too old.
    #[error("the watch is too old ({0}); list again")]
    Expired(String),
    /// No connection, or it broke.
    #[error("{url}: no answer from the API server ({cause}); is it running? `weft status` shows it")]
    Unreachable {
        /// Server.
        url: String,
        /// Why.
        cause: String,
    },
    /// The answer is longer than is read.
    #[error("{path}: the answer is longer than {most} bytes; ask for less at once")]
    TooLarge {
        /// What was asked for.
        path: String,
        /// Most bytes that are read.
        most: usize,
    },
    /// kubeconfig or in-cluster settings cannot be used.
    #[error("{0}")]
    Config(String),
    /// The server understood but did not do it.
    #[error("the server answered {code} {reason}: {message}")]
    Server {
        /// HTTP status.
        code: u16,
        /// Reason word.
        reason: String,
        /// The server's sentence.
        message: String,
    },
    /// The answer does not follow the protocol.
    #[error("{url}: {message}")]
    Protocol {
        /// Server.
        url: String,
        /// What was wrong.
        message: String,
    },
}

fn list_causes(causes: &[Cause]) -> String {
    causes.iter().map(|c| format!("\n  {}: {}", c.field, c.message)).collect()
}

impl ClientError {
    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }

    /// Whether the server could not be reached.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Whether reading again and repeating may help.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }

    /// Sorts a `Status` by its code and reason. `url` is the server's, `path` the request's.
    pub(crate) fn from_status(url: &str, path: &str, status: Status) -> Self {
        let message = if status.message.is_empty() { format!("no message for {path}") } else { status.message };
        let named = status.details.as_ref().is_some_and(|d| !d.name.is_empty());
        match (status.code, status.reason.as_str()) {
            // A kind that is not served is a 404 without the name of an object.
            (404, "NotFound") if named => Self::NotFound(message),
            (404, _) => Self::NoSuchKind(path.split('?').next().unwrap_or(path).to_string()),
            (409, "AlreadyExists") => Self::AlreadyExists(message),
            (409, _) => Self::Conflict(message),
            (410, _) => Self::Expired(message),
            (401, _) => Self::Unauthorized { url: url.into(), message },
            (403, _) => Self::Forbidden(message),
            (400 | 422, _) => {
                let causes = status.details.map(|d| d.causes).unwrap_or_default();
                let causes = causes.into_iter().map(|c| Cause { field: c.field, message: c.message }).collect();
                Self::Invalid { message, causes }
            }
            (code, reason) => Self::Server { code, reason: reason.to_string(), message },
        }
    }

    pub(crate) fn from_kube(url: &str, path: &str, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::from_status(url, path, *status),
            kube::Error::Auth(e) => Self::Config(format!("{url}: the credentials cannot be used: {e}")),
            kube::Error::SerdeError(e) => Self::Protocol { url: url.into(), message: format!("{path}: {e}") },
            kube::Error::UpgradeConnection(e) => Self::Protocol { url: url.into(), message: format!("{path}: {e}") },
            other => Self::Unreachable { url: url.into(), cause: chain(&other) },
        }
    }
}

/// An error and what lies under it, without repetition.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    for _ in 0..8 {
        let Some(inner) = source else { break };
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = inner.source();
    }
    text
}
