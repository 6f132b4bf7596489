//! Target and host of a request to an endpoint, in the way of its protocol.

use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderValue, Method, Request, Version};
use std::cell::RefCell;
use weft_codec::ProxyBody;

/// Writes target and host of a request in the way of its protocol: `host` and a path, or a whole URI.
pub(crate) fn address(request: &mut Request<ProxyBody>, host: &HeaderValue, scheme: &str, is_http2: bool) {
    let path = request.uri().path_and_query().cloned();
    if request.method() == Method::CONNECT && (path.is_none() || !is_http2) {
        if let Some(authority) = authority(host) {
            let mut parts = http::uri::Parts::default();
            parts.authority = Some(authority);
            *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        }
        if is_http2 {
            request.headers_mut().remove(HOST)
        } else {
            request.headers_mut().insert(HOST, host.clone())
        };
        set_version(request, is_http2);
        return;
    }
    if is_http2 {
        request.headers_mut().remove(HOST);
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if scheme == "https" { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = authority(host);
        parts.path_and_query = path.or_else(|| Some(PathAndQuery::from_static("/")));
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    } else {
        if request.uri().authority().is_some() {
            *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        }
        let same = request.headers().get(HOST).is_some_and(|h| h == host);
        if !same {
            request.headers_mut().insert(HOST, host.clone());
        }
    }
    set_version(request, is_http2);
}

thread_local! {
    /// The last one: most requests of a proxy go to hosts that others went to just before.
    static LAST: RefCell<Option<Authority>> = const { RefCell::new(None) };
}

/// The host as a target has it; `None` when it is no authority.
fn authority(host: &HeaderValue) -> Option<Authority> {
    LAST.with_borrow_mut(|last| {
        if last.as_ref().is_none_or(|known| known.as_str().as_bytes() != host.as_bytes()) {
            *last = Some(Authority::try_from(host.as_bytes()).ok()?);
        }
        last.clone()
    })
}

fn set_version(request: &mut Request<ProxyBody>, is_http2: bool) {
    *request.version_mut() = if is_http2 { Version::HTTP_2 } else { Version::HTTP_11 };
}
