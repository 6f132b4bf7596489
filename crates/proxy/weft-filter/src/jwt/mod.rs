//! The JWT filter: looks for tokens, checks them, and says what their claims are. A function of the request, the compiled
//! filter and the time; what is to be done to the request comes back as a list.
//!
//! Every token that is found must be valid, also where one would do: the endpoint may take another than the one that was
//! judged. Every value of a repeated header, parameter or cookie is a token. That is so for the places of the issuers that a
//! requirement names; of requirements one of which is enough the first that is met is, as with Envoy.
//!
//! Reading order: [`places`] (where tokens are), [`token`] (what they say), [`claims`] (JSON with bounds), this file (who may
//! issue them, until when, for whom).

pub mod claims;
pub mod places;
pub mod token;

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use places::{Found, Place};
use std::borrow::Cow;
use token::{JwtFailure, Token};
use weft_codec::{LocalReply, Reason};
use weft_core::Strng;
use weft_proxy_config::compile::jwt::audience;
use weft_proxy_config::{JwtAuthn, JwtProvider, JwtRequirement};
use weft_route::{MetadataValue, RequestView};

/// Name under which claims are put into dynamic metadata.
pub const FILTER: &str = "envoy.filters.http.jwt_authn";
/// Longest address in `www-authenticate`, in bytes; Envoy's bound.
const MAX_REALM: usize = 256;

/// What is to be done to a request that may go on.
#[derive(Debug, Default, PartialEq)]
pub struct Passed {
    /// Dynamic metadata under [`FILTER`].
    pub metadata: Vec<(Strng, MetadataValue)>,
    /// Headers to take out, before those below are put in.
    pub remove: Vec<HeaderName>,
    /// Headers to put in.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Query parameters to take out.
    pub drop_params: Vec<Strng>,
    /// The route is to be chosen again.
    pub reroute: bool,
}

/// Checks the tokens of a request; `now` is in seconds since 1970.
///
/// # Errors
/// The answer to a request whose tokens are not what it needs.
pub fn check(filter: &JwtAuthn, request: &RequestView<'_>, now: u64) -> Result<Passed, Box<LocalReply>> {
    let mut check = Check { filter, request, now, done: Vec::new(), passed: Passed::default() };
    check.forged_headers();
    let rule = filter.rules.iter().find(|rule| rule.matcher.matches(request, 0));
    let Some(requirement) = rule.and_then(|rule| rule.requirement.as_ref()) else { return Ok(check.passed) };
    if filter.bypass_cors_preflight && is_preflight(request) {
        return Ok(check.passed);
    }
    match check.requirement(requirement) {
        Ok(()) => Ok(check.passed),
        Err(failure) => Err(Box::new(reply(failure, request, filter.strip_failure_response))),
    }
}

fn is_preflight(request: &RequestView<'_>) -> bool {
    request.method == Method::OPTIONS
        && request.headers.contains_key(ORIGIN)
        && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

struct Check<'a> {
    filter: &'a JwtAuthn,
    request: &'a RequestView<'a>,
    now: u64,
    /// Tokens that were judged: for which provider, and how.
    done: Vec<(usize, String, Result<(), JwtFailure>)>,
    passed: Passed,
}

impl Check<'_> {
    /// Headers that tell the endpoint about a token are this filter's to set, whoever sent them.
    fn forged_headers(&mut self) {
        for provider in &self.filter.providers {
            let payload = provider.payload_header.as_ref().map(|(name, _)| name);
            for name in payload.into_iter().chain(provider.claim_headers.iter().map(|(name, _)| name)) {
                if self.request.headers.contains_key(name) && !self.passed.remove.contains(name) {
                    self.passed.remove.push(name.clone());
                }
            }
        }
    }

    fn requirement(&mut self, requirement: &JwtRequirement) -> Result<(), JwtFailure> {
        match requirement {
            JwtRequirement::Provider(place) => self.one_issuer(*place, None),
            JwtRequirement::Audiences(place, audiences) => self.one_issuer(*place, Some(audiences)),
            JwtRequirement::All(list) => list.iter().try_for_each(|one| self.requirement(one)),
            JwtRequirement::Any(list) => {
                let mut failure: Option<JwtFailure> = None;
                for one in list {
                    match self.requirement(one) {
                        Ok(()) => return Ok(()),
                        // What says most of the token is said to the client.
                        Err(new) if failure.as_ref().is_none_or(JwtFailure::says_little) => failure = Some(new),
                        Err(_) => {}
                    }
                }
                Err(failure.unwrap_or(JwtFailure::Missing))
            }
            JwtRequirement::AllowMissing(places) => self.any_issuer(places),
            JwtRequirement::AllowFailed(places) => {
                if let Err(failure) = self.any_issuer(places) {
                    self.note_failure(places, &failure);
                }
                Ok(())
            }
        }
    }

    /// There is a token where this issuer has its own, and all of them are valid.
    fn one_issuer(&mut self, place: usize, audiences: Option<&[Strng]>) -> Result<(), JwtFailure> {
        let found = places::find(self.filter, &[place], self.request);
        if found.is_empty() {
            return Err(JwtFailure::Missing);
        }
        found.iter().try_for_each(|one| self.judge(place, one, audiences))
    }

    /// All tokens that there are, are valid for the issuer they name.
    fn any_issuer(&mut self, places: &[usize]) -> Result<(), JwtFailure> {
        for found in places::find(self.filter, places, self.request) {
            let token = Token::parse(&found.token)?;
            let mut outcome = Err(JwtFailure::UnknownIssuer);
            // Several may say how tokens of one issuer are judged: for other audiences, with other keys.
            for &place in &found.providers {
                if !self.is_of(place, &token) {
                    continue;
                }
                match self.judge(place, &found, None) {
                    Ok(()) => {
                        outcome = Ok(());
                        break;
                    }
                    Err(new) if outcome.as_ref().is_err_and(JwtFailure::says_little) => outcome = Err(new),
                    Err(_) => {}
                }
            }
            outcome?;
        }
        Ok(())
    }

    fn is_of(&self, place: usize, token: &Token) -> bool {
        let issuer = self.filter.providers.get(place).map(|provider| provider.issuer.as_deref());
        issuer.is_some_and(|issuer| issuer.is_none() || issuer == token.claim("iss"))
    }

    /// Judges a token once, and takes over what it says when it is valid.
    fn judge(&mut self, place: usize, found: &Found, audiences: Option<&[Strng]>) -> Result<(), JwtFailure> {
        if audiences.is_none()
            && let Some((.., outcome)) = self.done.iter().find(|(p, token, _)| *p == place && *token == found.token)
        {
            return *outcome;
        }
        let provider = self.filter.providers.get(place).ok_or(JwtFailure::UnknownIssuer)?;
        let outcome = Token::parse(&found.token).and_then(|token| {
            valid(provider, audiences.unwrap_or(&provider.audiences), &token, self.now)?;
            Ok(token)
        });
        let outcome = outcome.map(|token| self.take_over(provider, found, token));
        if audiences.is_none() {
            self.done.push((place, found.token.clone(), outcome));
        }
        outcome
    }

    fn take_over(&mut self, provider: &JwtProvider, found: &Found, token: Token) {
        let passed = &mut self.passed;
        if !provider.forward {
            match &found.place {
                Place::Header(name) => passed.remove.push(name.clone()),
                Place::Param(name) => passed.drop_params.push(name.clone()),
                Place::Cookie => {}
            }
        }
        if let Some((name, padded)) = &provider.payload_header {
            let text = token::payload_text(&found.token, *padded);
            passed.set.extend(HeaderValue::from_str(&text).ok().map(|value| (name.clone(), value)));
        }
        for (name, path) in &provider.claim_headers {
            let claim = path.iter().try_fold(&token.payload, |value, key| value.field(key));
            let value =
                claim.and_then(claims::header_text).and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok());
            passed.set.extend(value.map(|value| (name.clone(), value)));
        }
        if let Some(key) = &provider.header_key {
            passed.metadata.push((key.clone(), token.header));
        }
        if let Some(key) = &provider.payload_key {
            passed.metadata.push((key.clone(), claims::spaces_to_lists(token.payload, &provider.space_delimited)));
        }
        passed.reroute |= provider.reroute;
    }

    fn note_failure(&mut self, places: &[usize], failure: &JwtFailure) {
        for provider in places.iter().filter_map(|place| self.filter.providers.get(*place)) {
            if let Some(key) = &provider.failure_key {
                let fields = vec![
                    ("code".into(), MetadataValue::Number(f64::from(failure.code()))),
                    ("message".into(), MetadataValue::String(failure.text().into())),
                ];
                self.passed.metadata.push((key.clone(), MetadataValue::Struct(fields)));
            }
        }
    }
}

/// The token is this issuer's, for these audiences, now.
fn valid(provider: &JwtProvider, audiences: &[Strng], token: &Token, now: u64) -> Result<(), JwtFailure> {
    if provider.issuer.is_some() && provider.issuer.as_deref() != token.claim("iss") {
        return Err(JwtFailure::UnknownIssuer);
    }
    if provider.subjects.as_ref().is_some_and(|s| !s.matches(token.claim("sub").unwrap_or_default().as_bytes())) {
        return Err(JwtFailure::SubjectNotAllowed);
    }
    in_time(provider, token, now)?;
    let meant = || token.audiences().any(|one| audiences.iter().any(|wanted| **wanted == *audience(one)));
    if !audiences.is_empty() && !meant() {
        return Err(JwtFailure::AudienceNotAllowed);
    }
    match &provider.jwks {
        Ok(jwks) => token.signed_by(jwks),
        Err(_) => Err(JwtFailure::NoKeys),
    }
}

/// Times are in seconds since 1970; clocks may differ by the provider's skew.
fn in_time(provider: &JwtProvider, token: &Token, now: u64) -> Result<(), JwtFailure> {
    if token.not_before.is_some_and(|from| from > now.saturating_add(provider.clock_skew)) {
        return Err(JwtFailure::NotYetValid);
    }
    match token.expires {
        Some(until) if now > until.saturating_add(provider.clock_skew) => Err(JwtFailure::Expired),
        Some(until) => match provider.max_lifetime {
            Some(longest) if until > now.saturating_add(longest.as_secs()) => Err(JwtFailure::LivesTooLong),
            _ => Ok(()),
        },
        None if provider.require_expiration || provider.max_lifetime.is_some() => Err(JwtFailure::NoExpiration),
        None => Ok(()),
    }
}

/// 401 with the reason as its text, and where a token is asked for; 403 when the token is good, but for others.
fn reply(failure: JwtFailure, request: &RequestView<'_>, silent: bool) -> LocalReply {
    let mut reply = LocalReply::new(Reason::Unauthenticated);
    if failure == JwtFailure::AudienceNotAllowed {
        reply.status = StatusCode::FORBIDDEN;
    }
    let text = failure.text();
    reply.details = Cow::Owned(format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_")));
    reply.body = bytes::Bytes::new();
    if silent {
        return reply;
    }
    reply.body = bytes::Bytes::from_static(text.as_bytes());
    let mut realm = format!("{}://{}{}", request.scheme, request.authority, request.path).replace(['"', '\\'], "");
    let end = (0..=MAX_REALM.min(realm.len())).rev().find(|at| realm.is_char_boundary(*at));
    realm.truncate(end.unwrap_or_default());
    let error = if failure == JwtFailure::Missing { "" } else { ", error=\"invalid_token\"" };
    if let Ok(value) = HeaderValue::from_str(&format!("Bearer realm=\"{realm}\"{error}")) {
        reply.headers.insert(WWW_AUTHENTICATE, value);
    }
    reply
}

/// `query` without the parameters of these names; `None` when nothing is left.
pub fn without_params(query: &str, names: &[Strng]) -> Option<String> {
    let kept: Vec<&str> =
        query.split('&').filter(|pair| !names.iter().any(|name| places::param_name(pair) == **name)).collect();
    if kept.iter().all(|pair| pair.is_empty()) { None } else { Some(kept.join("&")) }
}

#[cfg(test)]
mod tests;
