//! What is shown to an authorizer, and what its answers mean.

use super::*;
use bytes::Bytes;
use http::{Response, StatusCode};
use prost::Message;
use std::time::{Duration, UNIX_EPOCH};
use weft_proto::envoy::service::auth::v3 as auth;
use weft_proxy_config::{AuthzBody, AuthzHttp, AuthzService};

fn filter() -> ExtAuthz {
    ExtAuthz {
        service: AuthzService::Grpc("c".into(), HeaderValue::from_static("a")),
        timeout: None,
        fail_open: false,
        fail_open_header: false,
        status_on_error: StatusCode::FORBIDDEN,
        reroute: false,
        body: None,
        enabled: None,
        allowed_headers: None,
        disallowed_headers: Vec::new(),
        metadata: Vec::new(),
        certificate: false,
        tls_session: true,
    }
}

fn plain_http() -> AuthzHttp {
    AuthzHttp {
        cluster: "c".into(),
        path_prefix: "/check".into(),
        add: vec![(HeaderName::from_static("x-added"), HeaderValue::from_static("1"))],
        to_upstream: vec![StringMatcher::Exact("x-user".into())],
        to_upstream_append: Vec::new(),
        to_client: None,
        to_client_on_success: vec![StringMatcher::Prefix("x-to-client".into())],
    }
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("host", "h"), ("x-a", "1"), ("x-a", "2"), ("authorization", "Basic x"), ("content-length", "5")]
    {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers
}

fn with_question<T>(headers: &HeaderMap, body: Option<(&[u8], bool)>, ask: impl FnOnce(&Question<'_>) -> T) -> T {
    let peer = weft_authz::PeerCertificate { uris: vec!["spiffe://td/ns/a/sa/b".into()], ..Default::default() };
    ask(&Question {
        connection: Connection {
            source: "10.0.0.1:1234".parse().unwrap(),
            destination: "[fd00::2]:80".parse().unwrap(),
            peer: Some(&peer),
            peer_pem: Some("PEM".into()),
            local: Some("spiffe://td/ns/x/sa/y"),
            server_name: Some("sni"),
        },
        request: Some(weft_authz::RequestFacts {
            method: "PUT",
            authority: "h",
            path: "/p",
            path_and_query: "/p?q=1",
            scheme: "https",
            headers,
        }),
        protocol: "HTTP/2",
        body,
        metadata: &[],
        time: UNIX_EPOCH + Duration::from_secs(7),
    })
}

fn asked(filter: &ExtAuthz, headers: &HeaderMap, body: Option<(&[u8], bool)>) -> auth::AttributeContext {
    let bytes = with_question(headers, body, |q| grpc::question(filter, q)).unwrap();
    assert_eq!(u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize, bytes.len() - 5);
    auth::CheckRequest::decode(&bytes[5..]).unwrap().attributes.unwrap()
}

#[test]
fn a_check_request_shows_the_whole_request() {
    let attributes = asked(&filter(), &headers(), Some((b"hello", false)));
    let source = attributes.source.unwrap();
    assert_eq!((source.principal.as_str(), source.certificate.as_str()), ("spiffe://td/ns/a/sa/b", ""));
    assert_eq!(attributes.destination.unwrap().principal, "spiffe://td/ns/x/sa/y");
    assert_eq!(attributes.tls_session.unwrap().sni, "sni");
    let request = attributes.request.unwrap();
    assert_eq!(request.time.unwrap().seconds, 7);
    let http = request.http.unwrap();
    assert_eq!((http.method.as_str(), http.path.as_str(), http.host.as_str()), ("PUT", "/p?q=1", "h"));
    assert_eq!((http.protocol.as_str(), http.size, http.body.as_str()), ("HTTP/2", 5, "hello"));
    let keys: Vec<&str> = http.headers.keys().map(String::as_str).collect();
    let want = [
        ":authority",
        ":method",
        ":path",
        ":scheme",
        "authorization",
        "content-length",
        "x-a",
        "x-envoy-auth-partial-body",
    ];
    assert_eq!(keys, want);
    assert_eq!((http.headers["x-a"].as_str(), http.headers["x-envoy-auth-partial-body"].as_str()), ("1,2", "true"));

    let narrow = ExtAuthz {
        allowed_headers: Some(vec![StringMatcher::Prefix("x-".into())]),
        certificate: true,
        body: Some(AuthzBody { most: 10, partial: false, as_bytes: true }),
        ..filter()
    };
    let attributes = asked(&narrow, &headers(), Some((b"hello", true)));
    assert_eq!(attributes.source.unwrap().certificate, "PEM");
    let http = attributes.request.unwrap().http.unwrap();
    assert_eq!((http.raw_body.as_slice(), http.body.as_str()), (&b"hello"[..], ""));
    assert!(http.headers.keys().all(|name| name.starts_with("x-")), "{:?}", http.headers);
}

#[test]
fn class_ext_authz_a_header_that_is_no_text_is_not_shown_and_fails_closed() {
    let mut bad = headers();
    bad.insert("x-bad", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
    let error = with_question(&bad, None, |q| grpc::question(&filter(), q)).unwrap_err();
    assert!(error.contains("x-bad is no text"), "{error}");
}

#[test]
fn class_repeated_headers_an_authorizer_sees_every_value() {
    let http = asked(&filter(), &headers(), None).request.unwrap().http.unwrap();
    assert_eq!(http.headers["x-a"], "1,2");
    let open = ExtAuthz { allowed_headers: Some(vec![StringMatcher::Exact("x-a".into())]), ..filter() };
    let (request, _) = with_question(&headers(), None, |q| plain::question(&open, &plain_http(), q)).unwrap();
    assert_eq!(request.headers().get_all("x-a").iter().count(), 2);
}

#[test]
fn a_plain_question_shows_what_it_may() {
    let (request, host) = with_question(&headers(), None, |q| plain::question(&filter(), &plain_http(), q)).unwrap();
    assert_eq!(
        (request.uri().to_string().as_str(), request.method().as_str(), host.to_str().unwrap()),
        ("/check/p?q=1", "PUT", "h")
    );
    let mut names: Vec<&str> = request.headers().keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "content-length", "host", "x-added"]);
    assert_eq!(request.headers()["content-length"], "0");
    let (request, _) =
        with_question(&headers(), Some((b"abc", true)), |q| plain::question(&filter(), &plain_http(), q)).unwrap();
    assert_eq!(
        (request.body(), &request.headers()["content-length"]),
        (&Bytes::from("abc"), &HeaderValue::from_static("3"))
    );
}

fn plain_verdict(status: u16, answer: &[(&'static str, &'static str)]) -> Verdict {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in answer {
        response.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    plain::verdict(&plain_http(), &response.into_parts().0, Bytes::from("body"))
}

#[test]
fn plain_answers() {
    let answer =
        [("x-user", "root"), ("x-other", "1"), ("x-to-client-a", "1"), ("content-length", "4"), ("host", "evil")];
    let Verdict::Allowed(changes) = plain_verdict(200, &answer) else { panic!("200 assents") };
    let mut headers = headers();
    headers.insert("x-user", HeaderValue::from_static("forged"));
    changes.apply(&mut headers);
    assert_eq!(
        (&headers["x-user"], &headers["host"], headers.contains_key("x-other")),
        (&HeaderValue::from_static("root"), &HeaderValue::from_static("h"), false)
    );
    assert_eq!(changes.response.len(), 1);
    for status in [201, 204, 302, 401, 403] {
        let Verdict::Denied(reply) = plain_verdict(status, &answer) else { panic!("{status} denies") };
        assert_eq!((reply.status.as_u16(), &reply.body[..]), (status, &b"body"[..]));
        assert!(reply.headers.contains_key("x-other") && !reply.headers.contains_key("content-length"));
    }
    for status in [500, 503] {
        assert!(matches!(plain_verdict(status, &[]), Verdict::Failed(_)), "{status} is no answer");
    }
}

fn framed(answer: &auth::CheckResponse) -> Vec<u8> {
    let body = answer.encode_to_vec();
    [&[0][..], &u32::try_from(body.len()).unwrap().to_be_bytes(), &body].concat()
}

#[test]
fn grpc_answers() {
    let read = |json: &str| -> auth::CheckResponse { weft_proto::json::from_yaml(json).unwrap() };
    let ok = read(
        "{status: {code: 0}, ok_response: {headers: [{header: {key: X-User, value: root}}, {header: {key: ':path', value: /x}}, {header: {key: Host, value: evil}}, {header: {key: x-b, value: '2'}, append: true}], headers_to_remove: [x-a, Content-Length], response_headers_to_add: [{header: {key: x-r, value: '1'}}], query_parameters_to_set: [{key: q, value: 'a b'}], query_parameters_to_remove: [gone]}, dynamic_metadata: {who: me}}",
    );
    let Verdict::Allowed(changes) = grpc::verdict(Some(0), &framed(&ok)) else { panic!("assents") };
    let mut headers = headers();
    changes.apply(&mut headers);
    assert_eq!(headers["x-user"], "root");
    assert!(!headers.contains_key("x-a") && headers.contains_key("content-length") && headers["host"] == "h");
    assert_eq!(changes.query(Some("q=1&gone=2&%71=3&keep")).as_deref(), Some("keep&q=a%20b"));
    assert_eq!(changes.metadata.as_ref().and_then(|m| m.field("who")), Some(&MetadataValue::String("me".into())));

    let denied = read(
        "{status: {code: 7}, denied_response: {status: {code: 401}, body: 'no', headers: [{header: {key: x-why, value: because}}]}}",
    );
    let Verdict::Denied(reply) = grpc::verdict(Some(0), &framed(&denied)) else { panic!("denies") };
    assert_eq!(
        (reply.status.as_u16(), &reply.body[..], &reply.headers["x-why"]),
        (401, &b"no"[..], &HeaderValue::from_static("because"))
    );
    for odd in ["{status: {code: 7}}", "{status: {code: 16}, ok_response: {}}"] {
        let Verdict::Denied(reply) = grpc::verdict(Some(0), &framed(&read(odd))) else { panic!("{odd} denies") };
        assert_eq!(reply.status, StatusCode::FORBIDDEN);
    }
    for (status, body) in [
        (None, framed(&ok)),
        (Some(14), framed(&ok)),
        (Some(0), Vec::new()),
        (Some(0), vec![1, 0, 0, 0, 0]),
        (Some(0), vec![0, 0, 0, 0, 9, 1]),
        (Some(0), vec![0, 0, 0, 0, 1, 0xff]),
    ] {
        assert!(matches!(grpc::verdict(status, &body), Verdict::Failed(_)), "{status:?} {body:?}");
    }
}
