//! Refuses objects that are wrong: `weft_k8s_api::validate` decides, here its findings become a `Status` and warnings.

use crate::resources::Strictness;
use crate::status::{ApiError, FieldError};
use weft_k8s_api::validate::{Problem, validate};
use weft_k8s_api::{KindInfo, Object};

/// Checks an object that is about to be stored; returns warnings.
pub(crate) fn check(kind: &KindInfo, object: &Object, strict: Strictness) -> Result<Vec<String>, ApiError> {
    let found = validate(object);
    let mut errors = found.errors;
    let mut warnings = found.warnings;
    match strict {
        Strictness::Ignore => {}
        Strictness::Warn => warnings.extend(found.unknown_fields),
        Strictness::Strict => errors.extend(found.unknown_fields),
    }
    if errors.is_empty() {
        return Ok(warnings.iter().map(text).collect());
    }
    let fields: Vec<FieldError> =
        errors.into_iter().map(|p| FieldError { field: p.path, message: p.message }).collect();
    Err(ApiError::invalid(kind, object.name(), &fields))
}

fn text(problem: &Problem) -> String {
    if problem.path.is_empty() { problem.message.clone() } else { format!("{}: {}", problem.path, problem.message) }
}
