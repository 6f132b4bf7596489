//! Compressors and decompressors along a request and its response: what the client accepts is noted on the way in, bodies are
//! changed on the way.

use crate::http::exchange::Exchange;
use crate::http::filters::Destination;
use crate::http::intake::Head;
use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue, Method, Response};
use http_body::Body as _;
use smallvec::SmallVec;
use weft_codec::{BodyMap, ProxyBody};
use weft_filter::compress::{self, Decoder, Encoder};
use weft_proxy_config::{Coding, Compressor, Decompressor, HttpFilter};

/// What the filters of a request have noted for its response.
#[derive(Debug, Default)]
pub(crate) struct Codings {
    accept: Option<HeaderValue>,
    is_head: bool,
    /// Numbers of the filters that are not switched off.
    filters: SmallVec<[usize; 4]>,
    /// Those of compressors that the request did not come to.
    missed: SmallVec<[usize; 4]>,
}

fn noted(exchange: &Exchange, head: &Head, number: usize) {
    let mut facts = exchange.facts.borrow_mut();
    let codings = facts.codings.get_or_insert_with(|| {
        let accept = compress::accepted(&head.headers);
        Box::new(Codings { accept, is_head: head.method == Method::HEAD, ..Codings::default() })
    });
    codings.filters.push(number);
}

/// A compressor meets a request.
pub(crate) fn compressor(exchange: &Exchange, head: &mut Head, filter: &Compressor, number: usize) {
    noted(exchange, head, number);
    if filter.hides_accept {
        head.headers.remove(ACCEPT_ENCODING);
    }
}

/// A decompressor meets a request.
pub(crate) fn decompressor(
    exchange: &Exchange,
    head: &mut Head,
    body: &mut ProxyBody,
    filter: &Decompressor,
    number: usize,
) {
    noted(exchange, head, number);
    if filter.response.is_some() && filter.advertises {
        compress::advertise(filter, &mut head.headers);
    }
    if let Some(ignores) = filter.request
        && !body.is_end_stream()
    {
        open(filter, ignores, &mut head.headers, body);
    }
}

/// A filter answers: compressors after it meet the answer and not the request. They do not know what the client accepts, and
/// only say that an answer depends on it (as Envoy's).
pub(crate) fn pass_over(exchange: &Exchange, to: Destination<'_>) {
    for (number, filter) in exchange.http.hcm.filters.iter().enumerate() {
        if let HttpFilter::Compressor(own) = filter
            && !to.is_disabled(&own.name)
        {
            let mut facts = exchange.facts.borrow_mut();
            let codings = facts.codings.get_or_insert_default();
            if !codings.filters.contains(&number) {
                codings.missed.push(number);
            }
        }
    }
}

/// Takes a body apart, when it is of that filter's coding.
fn open(filter: &Decompressor, ignores: bool, headers: &mut HeaderMap, body: &mut ProxyBody) {
    if compress::opens(filter, ignores, headers) {
        change(body, Decoder::new(filter));
    }
}

fn change(body: &mut ProxyBody, map: std::io::Result<impl BodyMap + 'static>) {
    match map {
        Ok(map) => *body = std::mem::take(body).mapped(Box::new(map)),
        // Its head says otherwise by now: it must not pass as it is.
        Err(error) => {
            tracing::warn!(%error, "no memory to compress with");
            *body = ProxyBody::broken("compression_failed");
        }
    }
}

/// The response is an agreement to a tunnel: what passes through it is no body, whatever its head looks like.
pub(crate) fn forget(exchange: &Exchange) {
    exchange.facts.borrow_mut().codings = None;
}

/// What compressors and decompressors make of a response, the last filter first.
pub(crate) fn response(exchange: &Exchange, response: &mut Response<ProxyBody>) {
    let facts = exchange.facts.borrow();
    let Some(codings) = &facts.codings else { return };
    let filters = &exchange.http.hcm.filters;
    let status = response.status();
    let mut wanted = None;
    for number in &codings.missed {
        if let Some(HttpFilter::Compressor(filter)) = filters.get(*number)
            && compress::suits(filter, status, response.headers())
        {
            compress::vary(response.headers_mut());
        }
    }
    for number in codings.filters.iter().rev() {
        match filters.get(*number) {
            Some(HttpFilter::Compressor(filter)) if compress::suits(filter, status, response.headers()) => {
                let wanted = *wanted.get_or_insert_with(|| wish(codings, filters, response.headers()));
                let has_body = !codings.is_head && !response.body().is_end_stream();
                compress::vary(response.headers_mut());
                if wanted == Some(filter.coding) && has_body {
                    compress::compressed(filter, response.headers_mut());
                    change(response.body_mut(), Encoder::new(filter));
                }
            }
            Some(HttpFilter::Decompressor(filter)) => {
                if let Some(ignores) = filter.response
                    && !codings.is_head
                    && !response.body().is_end_stream()
                {
                    let (mut headers, mut body) = (std::mem::take(response.headers_mut()), ProxyBody::default());
                    std::mem::swap(&mut body, response.body_mut());
                    open(filter, ignores, &mut headers, &mut body);
                    *response.headers_mut() = headers;
                    *response.body_mut() = body;
                }
            }
            _ => {}
        }
    }
}

/// The coding that the client wants of those that the filters have for such a response. Envoy's choice: a filter that is
/// switched off for the route takes part, and then nothing is compressed.
fn wish(codings: &Codings, filters: &[HttpFilter], headers: &HeaderMap) -> Option<Coding> {
    let offered: SmallVec<[(Coding, bool); 4]> = filters
        .iter()
        .filter_map(|filter| match filter {
            HttpFilter::Compressor(filter) if compress::suits_type(filter, headers) => {
                Some((filter.coding, filter.choose_first))
            }
            _ => None,
        })
        .collect();
    compress::choose(codings.accept.as_ref()?.to_str().ok()?, &offered)
}
