//! Compressed bodies, and endpoints that active checks judge: the same file and the same requests for Envoy and for us.

#![allow(clippy::unwrap_used)]

use http::Version;
use std::io::Write as _;
use weft_envoy_tests::{Ask, Backend, Twin, bootstrap};

const TYPES: &str = "type.googleapis.com/envoy.extensions";

fn compressor(name: &str, library: &str, more: &str) -> String {
    format!(
        r#"{{name: {name}, typed_config: {{"@type": {TYPES}.filters.http.compressor.v3.Compressor, {more} compressor_library: {{name: l, typed_config: {{"@type": {TYPES}.compression.{library}}}}}}}}},"#
    )
}

fn decompressor(name: &str, library: &str, more: &str) -> String {
    format!(
        r#"{{name: {name}, typed_config: {{"@type": {TYPES}.filters.http.decompressor.v3.Decompressor, {more} decompressor_library: {{name: l, typed_config: {{"@type": {TYPES}.compression.{library}}}}}}}}},"#
    )
}

/// A path, headers of its responses, and what else its route says.
type Path<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

fn hosts(routes: &[Path<'_>]) -> String {
    let route = |(prefix, headers, more): &Path<'_>| {
        let add: Vec<String> = headers
            .iter()
            .map(|(key, value)| {
                format!("{{header: {{key: {key}, value: '{value}'}}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}}")
            })
            .collect();
        let action = if more.contains("direct_response") { "" } else { "route: {cluster: a}, " };
        format!("{{match: {{prefix: {prefix}}}, {action}response_headers_to_add: [{}]{more}}}", add.join(","))
    };
    format!("[{{name: v, domains: ['*'], routes: [{}]}}]", routes.iter().map(route).collect::<Vec<_>>().join(","))
}

async fn same(hosts: &str, filters: &str, asks: &[Ask]) {
    let backend = Backend::start("a").await;
    let file = bootstrap::plain("", hosts, filters, &[("a", backend.addr, "")]);
    if let Some(twin) = Twin::start(&file).await {
        // Over HTTP/2 Envoy's decompressor says in trailers how much it made of what.
        let found = twin.compare_over(Version::HTTP_11, asks).await;
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn which_responses_are_compressed() {
    let long = "x".repeat(200);
    let direct = format!(", direct_response: {{status: 200, body: {{inline_string: {long}}}}}");
    let off = format!(
        r#", typed_per_filter_config: {{gz: {{"@type": {TYPES}.filters.http.compressor.v3.CompressorPerRoute, disabled: true}}}}"#
    );
    let hosts = hosts(&[
        ("/text", &[("content-type", "text/plain; charset=utf-8")], ""),
        ("/image", &[("content-type", "image/png")], ""),
        ("/tag", &[("etag", "\"abc\"")], ""),
        ("/weak", &[("etag", "W/\"abc\"")], ""),
        ("/vary", &[("vary", "origin")], ""),
        ("/varies", &[("vary", "Accept-Encoding")], ""),
        ("/still", &[("cache-control", "max-age=3, no-transform")], ""),
        ("/coded", &[("content-encoding", "deflate")], ""),
        ("/own", &[("content-type", "text/plain")], &direct),
        ("/off", &[], &off),
        ("/", &[], ""),
    ]);
    let accepts = [
        None,
        Some("gzip"),
        Some("br"),
        Some("gzip;q=0, *"),
        Some("identity, gzip"),
        Some("gzip;q=0.2, br;q=0.7"),
        Some("*"),
        Some("zstd, br, gzip"),
        Some("x-gzip"),
        Some("gzip, br;q=0.5"),
    ];
    let mut asks = Vec::new();
    for path in [
        "/text",
        "/image",
        "/tag",
        "/weak",
        "/vary",
        "/varies",
        "/still",
        "/coded",
        "/own",
        "/off",
        "/status/206",
        "/status/404",
    ] {
        for accept in accepts {
            let header: Vec<(&str, &str)> = accept.map(|accept| ("accept-encoding", accept)).into_iter().collect();
            asks.push(Ask::get(path, &header));
        }
    }
    asks.push(Ask::get("/text", &[("accept-encoding", "gzip")]).with("HEAD", ""));
    let gzip = "gzip.compressor.v3.Gzip";
    same(&hosts, &compressor("gz", gzip, ""), &asks).await;
    let strict = "response_direction_config: {disable_on_etag_header: true, remove_accept_encoding_header: true, uncompressible_response_codes: [404], common_config: {min_content_length: 10000}},";
    same(&hosts, &compressor("gz", gzip, strict), &asks).await;
    let weak = "response_direction_config: {weaken_etag_on_compress: true},";
    same(&hosts, &compressor("gz", gzip, weak), &asks).await;
    let several = [
        compressor("gz", gzip, ""),
        compressor("br", "brotli.compressor.v3.Brotli", ""),
        compressor("zs", "zstd.compressor.v3.Zstd", "choose_first: true,"),
    ];
    same(&hosts, &several.concat(), &asks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn which_messages_are_taken_apart() {
    let hosts = hosts(&[("/still", &[("cache-control", "no-transform")], ""), ("/", &[], "")]);
    // What the one makes of a response the other takes apart; a request's length is told by the backend.
    let filters = [decompressor("d", "gzip.decompressor.v3.Gzip", ""), compressor("c", "gzip.compressor.v3.Gzip", "")];
    let mut asks = Vec::new();
    for path in ["/a", "/still"] {
        asks.push(Ask::get(path, &[]));
        asks.push(Ask::get(path, &[("accept-encoding", "gzip")]));
        asks.push(Ask::get(path, &[("accept-encoding", "br")]));
    }
    same(&hosts, &filters.concat(), &asks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_taken_apart() {
    let backend = Backend::start("a").await;
    let filters = decompressor("d", "gzip.decompressor.v3.Gzip", "");
    let file = bootstrap::plain("", &hosts(&[("/", &[], "")]), &filters, &[("a", backend.addr, "")]);
    let Some(twin) = Twin::start(&file).await else { return };
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zipped.write_all("hello ".repeat(100).as_bytes()).unwrap();
    let zipped = zipped.finish().unwrap();
    let mut answers = Vec::new();
    for addr in [twin.envoy, twin.weft] {
        let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::post("/x").header("host", "a").header("content-encoding", "gzip");
        let body = http_body_util::Full::new(bytes::Bytes::from(zipped.clone()));
        let answer = sender.send_request(request.body(body).unwrap()).await.unwrap();
        let text = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(text.contains("body=600\n") && !text.contains("content-encoding"), "{text}");
        answers.push(text.lines().filter(|line| line.starts_with("accept-encoding")).collect::<Vec<_>>().join("\n"));
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn active_checks() {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let dead = "127.0.0.1:1".parse().unwrap();
    // Who says nothing is waited for as long; who speaks, however late on a busy machine, is well.
    let check = |what: &str| {
        let limit = if what.contains("receive: [{text: 'ff'}]") { "1s" } else { "20s" };
        format!(
            "common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}, health_checks: [{{timeout: {limit}, interval: 0.1s, no_traffic_interval: 0.1s, unhealthy_threshold: 1, healthy_threshold: 1, {what}}}],"
        )
    };
    let clusters = [
        ("well", a.addr, check("http_health_check: {path: /status/200}")),
        ("ill", b.addr, check("http_health_check: {path: /status/503}")),
        ("other", b.addr, check("http_health_check: {path: /status/204, expected_statuses: [{start: 200, end: 300}]}")),
        ("open", a.addr, check("tcp_health_check: {}")),
        ("shut", dead, check("tcp_health_check: {}")),
        ("silent", a.addr, check("tcp_health_check: {send: {text: '00'}, receive: [{text: 'ff'}]}")),
        ("elsewhere", dead, check(&format!("alt_port: {}, tcp_health_check: {{}}", a.addr.port()))),
    ];
    let route = |(name, _, _): &(&str, _, _)| format!("{{match: {{prefix: /{name}}}, route: {{cluster: {name}}}}}");
    let hosts = format!(
        "[{{name: v, domains: ['*'], routes: [{}]}}]",
        clusters.iter().map(route).collect::<Vec<_>>().join(",")
    );
    let list: Vec<_> = clusters.iter().map(|(name, addr, extra)| (*name, *addr, extra.as_str())).collect();
    let Some(twin) = Twin::start(&bootstrap::plain("", &hosts, "", &list)).await else { return };
    let asks: Vec<Ask> = clusters.iter().map(|(name, _, _)| Ask::get(&format!("/{name}"), &[])).collect();
    let found = twin.compare(&asks).await;
    assert!(found.is_empty(), "{}", found.join("\n"));
}
