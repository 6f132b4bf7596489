//! What the memory store refuses, and why. HTTP codes are the API server's business.

use thiserror::Error;
use weft_k8s_api::ObjectKey;

/// Error of a store operation.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// No such object.
    #[error("{0} not found; list the kind to see what exists")]
    NotFound(ObjectKey),
    /// The namespace that an object should be created in does not exist.
    #[error("namespace {namespace} of {key} not found; create the namespace first")]
    NamespaceNotFound {
        /// The refused object.
        key: ObjectKey,
        /// The namespace that is missing.
        namespace: String,
    },
    /// An object of that name exists.
    #[error("{0} already exists; update it, or choose another name")]
    AlreadyExists(ObjectKey),
    /// The object has changed since the caller read it, or a precondition does not hold.
    #[error(
        "{key} has been changed since it was read ({reason}); read it again and repeat the change on the new state"
    )]
    Conflict {
        /// The object.
        key: ObjectKey,
        /// Expected and found.
        reason: String,
    },
    /// The namespace is being deleted.
    #[error("{key} cannot be created: namespace {namespace} is being deleted; wait until it is gone")]
    NamespaceTerminating {
        /// The refused object.
        key: ObjectKey,
        /// The namespace.
        namespace: String,
    },
    /// The object itself is wrong.
    #[error("{key}: {field}: {message}")]
    Invalid {
        /// The object.
        key: Box<ObjectKey>,
        /// Path of the field.
        field: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// The revision asked for is no longer (or not yet) in the history of the kind.
    #[error(
        "resource version {asked} is outside the kept history ({oldest}..={newest}); list again and watch from there"
    )]
    Gone {
        /// Revision asked for.
        asked: u64,
        /// Oldest revision that a watch can start from.
        oldest: u64,
        /// Newest revision.
        newest: u64,
    },
    /// A `continue` token that this store did not give out.
    #[error("the continue token is not valid; start the list from its beginning")]
    BadContinue,
    /// The store holds as many objects as it may.
    #[error("the store is full ({0} objects); delete some first")]
    Full(usize),
}

impl StoreError {
    /// Whether the object (or its namespace) is missing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_) | Self::NamespaceNotFound { .. })
    }

    /// Whether a retry on the newest state may succeed.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }
}
