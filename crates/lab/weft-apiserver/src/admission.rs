//! What others do to an object before it is stored: the lab's injector, address allocation. The hooks run in the order in
//! which they were given; validation follows them.

use crate::status::{ApiError, FieldError};
use futures_util::future::BoxFuture;
use weft_k8s_api::{KindInfo, Object};

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A changed one.
    Update,
}

/// What a hook may know.
pub struct AdmissionRequest<'a> {
    /// What is being done.
    pub operation: Operation,
    /// The kind.
    pub kind: &'static KindInfo,
    /// Who does it.
    pub user: &'a str,
    /// Nothing will be stored: take no addresses, have no side effects.
    pub dry_run: bool,
    /// The object before an update.
    pub old: Option<&'a Object>,
}

/// A hook's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// The caller may not do this (403).
    Forbidden(String),
    /// The object is wrong in these fields (422).
    Invalid(Vec<FieldError>),
}

impl Denial {
    /// A refusal for one field.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError { field: field.into(), message: message.into() }])
    }

    pub(crate) fn into_error(self, kind: &KindInfo, name: &str) -> ApiError {
        match self {
            Self::Forbidden(message) => ApiError::forbidden_object(kind, name, &message),
            Self::Invalid(fields) => ApiError::invalid(kind, name, &fields),
        }
    }
}

/// A hook. Is called for every creation and every change outside `status`.
pub trait Admission: Send + Sync {
    /// Changes the object, or refuses it. Returns warnings for the user. A retry after a conflict calls it again with the
    /// object as the user sent it; after webhooks have changed the object it is called again with what they made. So twice
    /// must be once.
    fn admit<'a>(
        &'a self,
        request: &'a AdmissionRequest<'a>,
        object: &'a mut Object,
    ) -> BoxFuture<'a, Result<Vec<String>, Denial>>;
}
