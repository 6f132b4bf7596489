//! Authorizers that are asked by plain HTTP: the question is the request without its body, the answer its status.

use super::{Changes, PARTIAL_BODY, Question, Verdict, is_protected, is_shown, matches};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, LOCATION, PROXY_AUTHENTICATE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, response};
use weft_codec::{LocalReply, Reason};
use weft_proxy_config::{AuthzHttp, ExtAuthz};
use weft_route::AppendAction;

/// The question about a request, and the host that it names.
///
/// # Errors
/// Why the request cannot be shown.
pub fn question(
    filter: &ExtAuthz,
    http: &AuthzHttp,
    question: &Question<'_>,
) -> Result<(Request<Bytes>, HeaderValue), String> {
    let Some(asked) = &question.request else { return Err("a connection has no request".into()) };
    let mut headers = HeaderMap::new();
    for (name, value) in asked.headers {
        let usual = *name == AUTHORIZATION;
        let shown = usual || is_shown(filter, name.as_str(), false);
        if shown && !is_protected(name) {
            headers.append(name, value.clone());
        }
    }
    for (name, value) in &http.add {
        headers.insert(name, value.clone());
    }
    let body = match question.body {
        Some((bytes, whole)) => {
            headers.insert(PARTIAL_BODY, HeaderValue::from_static(if whole { "false" } else { "true" }));
            Bytes::copy_from_slice(bytes)
        }
        None => Bytes::new(),
    };
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    let host = HeaderValue::from_str(asked.authority).map_err(|_| "the host is no text".to_string())?;
    headers.insert(HOST, host.clone());
    let target = format!("{}{}", http.path_prefix, asked.path_and_query);
    let mut request = Request::new(body);
    *request.uri_mut() = Uri::try_from(target).map_err(|error| format!("the path cannot be sent on: {error}"))?;
    *request.method_mut() = Method::from_bytes(asked.method.as_bytes()).map_err(|error| error.to_string())?;
    *request.headers_mut() = headers;
    Ok((request, host))
}

/// What an answer means: 200 assents, 5xx is no answer, all else denies.
pub fn verdict(http: &AuthzHttp, head: &response::Parts, body: Bytes) -> Verdict {
    if head.status.is_server_error() {
        return Verdict::Failed(format!("the authorizer answers {}", head.status));
    }
    if head.status == StatusCode::OK {
        let mut changes = Changes::default();
        for (name, value) in &head.headers {
            if is_protected(name) {
                continue;
            }
            if matches(&http.to_upstream, name.as_str()) {
                // The first of several replaces the client's, the others stand beside it.
                let seen = changes.set.iter().any(|(known, _)| known == name);
                let list = if seen { &mut changes.append } else { &mut changes.set };
                list.push((name.clone(), value.clone()));
            }
            if matches(&http.to_upstream_append, name.as_str()) {
                changes.append.push((name.clone(), value.clone()));
            }
            if matches(&http.to_client_on_success, name.as_str()) {
                changes.response.push((name.clone(), value.clone(), AppendAction::AppendOrAdd));
            }
        }
        return Verdict::Allowed(Box::new(changes));
    }
    let mut reply = LocalReply::new(Reason::ExtAuthzDenied);
    reply.status = head.status;
    reply.body = body;
    let usual = [WWW_AUTHENTICATE, PROXY_AUTHENTICATE, LOCATION];
    for (name, value) in &head.headers {
        let told = http.to_client.as_ref().is_none_or(|list| matches(list, name.as_str()) || usual.contains(name));
        if told && !is_protected(name) {
            reply.headers.append(name, value.clone());
        }
    }
    Verdict::Denied(Box::new(reply))
}
