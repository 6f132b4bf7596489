//! `google.protobuf.Any`: packing a message and taking it out again.

use prost::{Message, Name};
use prost_types::Any;

/// Why a message could not be taken out of an `Any`.
#[derive(Debug, thiserror::Error)]
pub enum AnyError {
    /// The type URL names another message.
    #[error("expected {expected}, got {got}")]
    WrongType {
        /// Type URL of the message that was asked for.
        expected: String,
        /// Type URL that the `Any` carries.
        got: String,
    },
    /// The bytes are not the message that the type URL promises.
    #[error("{type_url}: {source}")]
    Decode {
        /// Type URL of the message.
        type_url: String,
        /// What the decoder says.
        source: prost::DecodeError,
    },
}

/// Wraps `message` with its type URL. Equal messages give equal bytes.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url_of(), value: message.encode_to_vec() }
}

/// Takes an `M` out of `any`.
///
/// # Errors
/// When `any` holds another type, or bytes that do not decode.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, AnyError> {
    let expected = M::type_url_of();
    if any.type_url != expected {
        return Err(AnyError::WrongType { expected, got: any.type_url.clone() });
    }
    M::decode(any.value.as_slice()).map_err(|source| AnyError::Decode { type_url: expected, source })
}

/// The type URL of a message type: `type.googleapis.com/` and its full name.
pub trait TypeUrl {
    /// As written in `Any.type_url` and in xDS requests.
    fn type_url_of() -> String;
}

impl<M: Name> TypeUrl for M {
    fn type_url_of() -> String {
        format!("type.googleapis.com/{}", M::full_name())
    }
}
