//! A route configuration from anywhere, and a request: compiling, matching and rewriting never panic.
//!
//! Input: the request's authority, path and one header value, each on a line, then the encoded RouteConfiguration.

#![no_main]

use http::{HeaderMap, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use weft_proto::envoy::config::route::v3::RouteConfiguration;
use weft_route::rewrite::{Side, compute_hash, edits, location, rewrite_host, rewrite_path};
use weft_route::{Action, Pool, RequestView, RouteTable, Routed, compile_table};

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(4, |b| *b == b'\n');
    let mut text = || std::str::from_utf8(parts.next()?).ok();
    let (Some(authority), Some(path), Some(value)) = (text(), text(), text()) else { return };
    let Ok(message) = RouteConfiguration::decode(parts.next().unwrap_or_default()) else { return };
    let (Some(compiled), _) = compile_table(&message, &mut Pool::default()) else { return };
    let (table, _) = RouteTable::build(compiled.settings, compiled.virtual_hosts.into_iter());

    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.append("x", value.clone());
        headers.append("x", value);
    }
    let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
    let request =
        RequestView { method: &Method::GET, authority, path, query, scheme: "http", headers: &headers, metadata: &[] };
    let Routed::Route(host, route) = table.find(&request, 7) else { return };
    match &route.action {
        Action::Forward(forward) => {
            rewrite_path(&forward.path_rewrite, &route.matcher, path, query);
            rewrite_host(&forward.host_rewrite, &headers, path);
            compute_hash(&forward.hash, &request, None, |_, _, _| String::new());
        }
        Action::Redirect(redirect) => drop(location(redirect, &route.matcher, &request)),
        Action::Direct(_) | Action::Unusable(_) => {}
    }
    let mut edited = headers.clone();
    for edit in edits(&table, host, route, None, Side::Request) {
        edit.apply(&mut edited, |_, _| None, |_| {});
    }
});
