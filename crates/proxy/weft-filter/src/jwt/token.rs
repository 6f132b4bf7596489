//! JSON Web Tokens in their compact form (RFC 7519, RFC 7515 §3.1): what they say, and who signed it.
//!
//! Failures read as Envoy's do, since users and their tests look for the words.

use super::claims;
use weft_proxy_config::Jwks;
use weft_proxy_config::jwks::base64url;
use weft_route::MetadataValue;
use weft_tls::JwsAlgorithm;

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 32 * 1024;

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtFailure {
    /// There is none.
    Missing,
    /// It is longer, deeper or has more values than are read.
    TooLarge,
    /// It has not three parts.
    Format,
    /// Its header is not base64url.
    HeaderBase64,
    /// Its header is not a JSON object.
    HeaderJson,
    /// Its header names no algorithm.
    NoAlgorithm,
    /// Its algorithm is not on the list.
    Algorithm,
    /// Its `kid` is not text.
    Kid,
    /// Its header asks for extensions that are not understood (RFC 7515 §4.1.11).
    Critical,
    /// Its payload is not base64url.
    PayloadBase64,
    /// Its payload is not a JSON object.
    PayloadJson,
    /// `iss` is not text.
    Issuer,
    /// `sub` is not text.
    Subject,
    /// `aud` is neither text nor a list of text.
    Audience,
    /// `exp` is not a number.
    ExpirationNumber,
    /// `nbf` is not a number.
    NotBeforeNumber,
    /// Its signature is not base64url.
    SignatureBase64,
    /// It is not valid yet.
    NotYetValid,
    /// It is not valid any more.
    Expired,
    /// It never expires, and must.
    NoExpiration,
    /// It expires too late.
    LivesTooLong,
    /// Nobody knows its issuer here.
    UnknownIssuer,
    /// Its subject is not among those that are accepted.
    SubjectNotAllowed,
    /// It is meant for others.
    AudienceNotAllowed,
    /// The issuer's keys are not known.
    NoKeys,
    /// No key of the issuer has its `kid` and algorithm.
    KidMismatch,
    /// Its signature is not the key's.
    Verification,
}

impl JwtFailure {
    /// Text for the client.
    pub fn text(self) -> &'static str {
        match self {
            Self::Missing => "Jwt is missing",
            Self::TooLarge => "Jwt is too large",
            Self::Format => "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            Self::HeaderBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderJson => "Jwt header is an invalid JSON",
            Self::NoAlgorithm => "Jwt header [alg] field is required and must be a string",
            Self::Algorithm => "Jwt header [alg] is not supported",
            Self::Kid => "Jwt header [kid] field is not a string",
            Self::Critical => "Jwt header [crit] is not supported",
            Self::PayloadBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadJson => "Jwt payload is an invalid JSON",
            Self::Issuer => "Jwt payload [iss] field is not a string",
            Self::Subject => "Jwt payload [sub] field is not a string",
            Self::Audience => "Jwt payload [aud] field is not a string or string list",
            Self::ExpirationNumber => "Jwt payload [exp] field is not an integer",
            Self::NotBeforeNumber => "Jwt payload [nbf] field is not an integer",
            Self::SignatureBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::NotYetValid => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::NoExpiration => "Jwt has no expiration",
            Self::LivesTooLong => "Jwt lifetime is too long",
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::SubjectNotAllowed => "Jwt subject is not allowed",
            Self::AudienceNotAllowed => "Audiences in Jwt are not allowed",
            Self::NoKeys => "Jwks doesn't have any valid public key",
            Self::KidMismatch => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::Verification => "Jwt verification fails",
        }
    }

    /// Number of the reason in metadata.
    pub fn code(self) -> u8 {
        self as u8 + 1
    }

    /// Another reason says more: that the token is none of this issuer's is no news beside one that is.
    pub fn says_little(&self) -> bool {
        matches!(self, Self::Missing | Self::UnknownIssuer)
    }
}

/// A signed text (RFC 7515): what is signed, and by which kind of key.
#[derive(Debug)]
pub struct Signed<'t> {
    /// Its header.
    pub header: MetadataValue,
    algorithm: JwsAlgorithm,
    kid: Option<String>,
    /// What is said.
    pub payload: Vec<u8>,
    signature: Vec<u8>,
    signed: &'t [u8],
}

impl<'t> Signed<'t> {
    /// Takes a signed text apart.
    ///
    /// # Errors
    /// When it is not one, or asks for an algorithm or an extension that is not accepted.
    pub fn parse(text: &'t str) -> Result<Self, JwtFailure> {
        if text.len() > MAX_TOKEN {
            return Err(JwtFailure::TooLarge);
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JwtFailure::Format);
        };
        let signed = &text.as_bytes()[..header.len() + 1 + payload.len()];
        let header = base64url(header.as_bytes()).ok_or(JwtFailure::HeaderBase64)?;
        let header = claims::object(&header, JwtFailure::HeaderJson)?;
        let algorithm = match header.field("alg") {
            Some(MetadataValue::String(name)) => JwsAlgorithm::by_name(name).ok_or(JwtFailure::Algorithm)?,
            _ => return Err(JwtFailure::NoAlgorithm),
        };
        let kid = match header.field("kid") {
            None => None,
            Some(MetadataValue::String(kid)) => Some(kid.to_string()),
            Some(_) => return Err(JwtFailure::Kid),
        };
        if header.field("crit").is_some() || header.field("b64").is_some() {
            return Err(JwtFailure::Critical);
        }
        let payload = base64url(payload.as_bytes()).ok_or(JwtFailure::PayloadBase64)?;
        let signature = base64url(signature.as_bytes()).ok_or(JwtFailure::SignatureBase64)?;
        Ok(Self { header, algorithm, kid, payload, signature, signed })
    }

    /// One of the keys signed it. A key counts when nothing it says of itself speaks against: its id, its algorithm.
    ///
    /// # Errors
    /// When no key counts, or none of those that do signed it.
    pub fn signed_by(&self, jwks: &Jwks) -> Result<(), JwtFailure> {
        let mut failure = JwtFailure::KidMismatch;
        for key in &jwks.keys {
            let other_id = matches!((&self.kid, &key.kid), (Some(wanted), Some(kid)) if **kid != **wanted);
            let other_use = key.algorithm.is_some_and(|only| only != self.algorithm);
            if other_id || other_use || !key.key.fits(self.algorithm) {
                continue;
            }
            if key.key.verifies(self.algorithm, self.signed, &self.signature) {
                return Ok(());
            }
            failure = JwtFailure::Verification;
        }
        Err(failure)
    }
}

/// A token: signed claims.
#[derive(Debug)]
pub struct Token<'t> {
    signed: Signed<'t>,
    /// Its header.
    pub header: MetadataValue,
    /// Its claims.
    pub payload: MetadataValue,
    /// `exp`, in seconds since 1970.
    pub expires: Option<u64>,
    /// `nbf`, in seconds since 1970.
    pub not_before: Option<u64>,
}

impl<'t> Token<'t> {
    /// Reads a token.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(text: &'t str) -> Result<Self, JwtFailure> {
        let mut signed = Signed::parse(text)?;
        let payload = claims::object(&signed.payload, JwtFailure::PayloadJson)?;
        let is_text = |name: &str| matches!(payload.field(name), None | Some(MetadataValue::String(_)));
        if !is_text("iss") {
            return Err(JwtFailure::Issuer);
        }
        if !is_text("sub") {
            return Err(JwtFailure::Subject);
        }
        match payload.field("aud") {
            None | Some(MetadataValue::String(_)) => {}
            Some(MetadataValue::List(list)) if list.iter().all(|one| matches!(one, MetadataValue::String(_))) => {}
            Some(_) => return Err(JwtFailure::Audience),
        }
        let expires = seconds(payload.field("exp"), JwtFailure::ExpirationNumber)?;
        let not_before = seconds(payload.field("nbf"), JwtFailure::NotBeforeNumber)?;
        let header = std::mem::replace(&mut signed.header, MetadataValue::Null);
        Ok(Self { signed, header, payload, expires, not_before })
    }

    /// A claim that is text.
    pub fn claim(&self, name: &str) -> Option<&str> {
        match self.payload.field(name) {
            Some(MetadataValue::String(text)) => Some(text),
            _ => None,
        }
    }

    /// For whom it is.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        let list = match self.payload.field("aud") {
            Some(MetadataValue::List(list)) => list.as_slice(),
            Some(one) => std::slice::from_ref(one),
            None => &[],
        };
        list.iter().filter_map(|one| match one {
            MetadataValue::String(text) => Some(&**text),
            _ => None,
        })
    }

    /// One of the keys signed it.
    ///
    /// # Errors
    /// When none did.
    pub fn signed_by(&self, jwks: &Jwks) -> Result<(), JwtFailure> {
        self.signed.signed_by(jwks)
    }
}

/// A time that is a number of seconds; fractions are cut off.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // In range: checked here.
fn seconds(value: Option<&MetadataValue>, failure: JwtFailure) -> Result<Option<u64>, JwtFailure> {
    match value {
        None => Ok(None),
        Some(MetadataValue::Number(n)) if (0.0..1e15).contains(n) => Ok(Some(*n as u64)),
        Some(_) => Err(failure),
    }
}

/// The payload of a token as it stands there, padded when asked for.
pub fn payload_text(token: &str, padded: bool) -> String {
    let mut text = token.split('.').nth(1).unwrap_or_default().to_string();
    while padded && !text.len().is_multiple_of(4) {
        text.push('=');
    }
    text
}
