//! HTTP/1.1 as RFC 9112 wants it of a recipient that forwards: what is legal is answered, what is ambiguous is refused before
//! anything of it reaches the application.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Result, ensure};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use weft_protocol_tests::all_hold;
use weft_protocol_tests::backend::Backend;
use weft_protocol_tests::proxy::Proxy;

const ANSWER: Duration = Duration::from_secs(30);

/// `request_headers_timeout` where a head does not end: long enough for a client that is not run for a while between its
/// connection and its request.
const HEAD: &str = "4s";
/// No connection is given up before this time.
const TOO_EARLY: Duration = Duration::from_millis(3900);

/// Raw bytes, the statuses of the answers in order, and how many requests the application sees.
type Case = (String, Vec<u16>, usize);

/// In a case: a refusal (400, 501), or an end of the connection without a word.
const REFUSED: u16 = 0;

/// Sends bytes and reads so many answers; or to the end, when one of them is a refusal, which ends the connection.
///
/// The sending side stays open: a client that is gone is served no more, as with Envoy.
fn exchange(proxy: &Proxy, bytes: &[u8], wanted: &[u16]) -> Result<String> {
    let mut stream = TcpStream::connect(proxy.address())?;
    stream.set_read_timeout(Some(ANSWER))?;
    // A proxy that has refused may have closed before all was sent.
    let _ = stream.write_all(bytes);
    answers(&mut stream, wanted)
}

/// So many answers with all of their bodies, in however many pieces they come.
fn answers(stream: &mut TcpStream, wanted: &[u16]) -> Result<String> {
    let to_the_end = wanted.contains(&REFUSED);
    let (mut answer, mut chunk) = (Vec::new(), [0; 8192]);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => answer.extend(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                anyhow::bail!("no end of the answer within {ANSWER:?}; so far {:?}", String::from_utf8_lossy(&answer))
            }
            Err(_) => break,
        }
        if !to_the_end && whole(&String::from_utf8_lossy(&answer)) >= wanted.len() {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Answers that have arrived with all of their bodies.
fn whole(mut text: &str) -> usize {
    let mut count = 0;
    while let Some((head, rest)) = text.split_once("\r\n\r\n") {
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let Some(after) = rest.get(length.and_then(|length| length.parse().ok()).unwrap_or(0)..) else { break };
        (count, text) = (count + 1, after);
    }
    count
}

fn statuses(answer: &str) -> Vec<u16> {
    let answers = answer.split("HTTP/1.").skip(1);
    let found: Vec<u16> =
        answers.filter_map(|rest| rest.get(2..5)?.parse().ok()).filter(|status| *status != 100).collect();
    if found.is_empty() { vec![0] } else { found }
}

fn check(backend: &Backend, proxy: &Proxy, (bytes, wanted, seen): &Case) -> Result<()> {
    let before = backend.requests();
    let answer = exchange(proxy, bytes.as_bytes(), wanted)?;
    let got = statuses(&answer);
    let refused = wanted[..] == [REFUSED] && matches!(got[..], [0 | 400 | 501]);
    ensure!(refused || got == *wanted, "{got:?} instead of {wanted:?}: {answer:?}");
    let reached = backend.requests() - before;
    ensure!(reached == *seen, "{reached} requests reached the application instead of {seen}");
    Ok(())
}

fn run(more: &serde_json::Value, cases: &[(&str, Case)]) {
    let backend = Backend::start().unwrap();
    let proxy = Proxy::start(backend.port, more).unwrap();
    all_hold(cases, |case| check(&backend, &proxy, case));
}

fn ok(text: &str) -> Case {
    (text.replace('\n', "\r\n"), vec![200], 1)
}

/// Refused, and nothing reaches the application.
fn bad(text: &str) -> Case {
    (text.replace('\n', "\r\n"), vec![400], 0)
}

fn exact(text: &str, statuses: &[u16], seen: usize) -> Case {
    (text.to_string(), statuses.to_vec(), seen)
}

#[test]
fn what_is_legal_is_answered() {
    let long = format!("GET /{} HTTP/1.1\nhost: a\n\n", "a".repeat(4000));
    run(
        &json!({}),
        &[
            ("GET", ok("GET / HTTP/1.1\nhost: a\n\n")),
            ("no blank after the colon", ok("GET / HTTP/1.1\nhost:a\n\n")),
            ("blanks and tabs around a value", ok("GET / HTTP/1.1\nhost: a\nx: \t 1 \t\n\n")),
            ("an empty value", ok("GET / HTTP/1.1\nhost: a\nx:\n\n")),
            ("an empty line before", ok("\nGET / HTTP/1.1\nhost: a\n\n")),
            ("the form with a host", ok("GET http://a.example/x HTTP/1.1\nhost: a.example\n\n")),
            ("a query", ok("GET /?a=b&c=%20 HTTP/1.1\nhost: a\n\n")),
            ("a method of one's own", ok("PROPFIND / HTTP/1.1\nhost: a\n\n")),
            ("a length", ok("POST / HTTP/1.1\nhost: a\ncontent-length: 4\n\nbody")),
            ("a length of nothing", ok("POST / HTTP/1.1\nhost: a\ncontent-length: 0\n\n")),
            ("chunks", ok("POST / HTTP/1.1\nhost: a\ntransfer-encoding: chunked\n\n4\nbody\n0\n\n")),
            ("chunks in capitals", ok("POST / HTTP/1.1\nhost: a\nTransfer-Encoding: Chunked\n\nA\n0123456789\n0\n\n")),
            (
                "chunks with an extension",
                ok("POST / HTTP/1.1\nhost: a\ntransfer-encoding: chunked\n\n4;a=b\nbody\n0\n\n"),
            ),
            (
                "chunks with trailers",
                ok("POST / HTTP/1.1\nhost: a\ntransfer-encoding: chunked\n\n4\nbody\n0\nx: 1\n\n"),
            ),
            ("two requests", (ok("GET /1 HTTP/1.1\nhost: a\n\nGET /2 HTTP/1.1\nhost: a\n\n").0, vec![200, 200], 2)),
            (
                "a request after a body",
                (
                    ok("POST / HTTP/1.1\nhost: a\ncontent-length: 4\n\nbodyGET /2 HTTP/1.1\nhost: a\n\n").0,
                    vec![200, 200],
                    2,
                ),
            ),
            ("a long path", ok(&long)),
            ("bytes beyond ASCII in a value", exact("GET / HTTP/1.1\r\nhost: a\r\nx: \u{e9}\r\n\r\n", &[200], 1)),
            (
                "close",
                (ok("GET / HTTP/1.1\nhost: a\nconnection: close\n\nGET / HTTP/1.1\nhost: a\n\n").0, vec![200], 1),
            ),
        ],
    );
}

#[test]
fn what_is_malformed_is_refused() {
    run(
        &json!({}),
        &[
            ("no host", bad("GET / HTTP/1.1\n\n")),
            ("two hosts", bad("GET / HTTP/1.1\nhost: a\nhost: b\n\n")),
            ("two hosts alike", bad("GET / HTTP/1.1\nhost: a\nhost: a\n\n")),
            ("a host with a user", bad("GET / HTTP/1.1\nhost: u@a\n\n")),
            ("a host with a path", bad("GET / HTTP/1.1\nhost: a/b\n\n")),
            ("a blank before the colon", bad("GET / HTTP/1.1\nhost: a\nx : 1\n\n")),
            ("a name with a blank", bad("GET / HTTP/1.1\nhost: a\nx y: 1\n\n")),
            ("no name", bad("GET / HTTP/1.1\nhost: a\n: 1\n\n")),
            ("no colon", bad("GET / HTTP/1.1\nhost: a\nx\n\n")),
            ("a folded line", bad("GET / HTTP/1.1\nhost: a\nx: 1\n 2\n\n")),
            ("a line that begins with a blank", bad("GET / HTTP/1.1\n host: a\n\n")),
            ("a NUL in a value", bad("GET / HTTP/1.1\nhost: a\nx: \0\n\n")),
            ("a bare CR in a value", exact("GET / HTTP/1.1\r\nhost: a\r\nx: 1\r2\r\n\r\n", &[400], 0)),
            ("no path", bad("GET HTTP/1.1\nhost: a\n\n")),
            ("a path with a fragment", bad("GET /a#b HTTP/1.1\nhost: a\n\n")),
            ("two blanks", bad("GET  / HTTP/1.1\nhost: a\n\n")),
            ("a tab for a blank", bad("GET\t/ HTTP/1.1\nhost: a\n\n")),
            ("a method with a bracket", bad("GE(T / HTTP/1.1\nhost: a\n\n")),
            ("a version without its point", bad("GET / HTTP/11\nhost: a\n\n")),
            ("a version in small letters", bad("GET / http/1.1\nhost: a\n\n")),
            ("more after the version", bad("GET / HTTP/1.1 x\nhost: a\n\n")),
        ],
    );
}

#[test]
fn framing_is_never_guessed() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let after =
        |head: &str| -> Case { (format!("{}\r\n\r\n{smuggled}", head.replace('\n', "\r\n")), vec![REFUSED], 0) };
    run(
        &json!({}),
        &[
            ("a length and chunks", after("POST / HTTP/1.1\nhost: a\ncontent-length: 4\ntransfer-encoding: chunked")),
            ("chunks and a length", after("POST / HTTP/1.1\nhost: a\ntransfer-encoding: chunked\ncontent-length: 4")),
            ("two lengths", after("POST / HTTP/1.1\nhost: a\ncontent-length: 0\ncontent-length: 40")),
            ("two lengths in a list", after("POST / HTTP/1.1\nhost: a\ncontent-length: 0, 40")),
            ("a length with a sign", after("POST / HTTP/1.1\nhost: a\ncontent-length: +4")),
            ("a negative length", after("POST / HTTP/1.1\nhost: a\ncontent-length: -1")),
            ("a length in hex", after("POST / HTTP/1.1\nhost: a\ncontent-length: 0x4")),
            ("a length with a blank", after("POST / HTTP/1.1\nhost: a\ncontent-length: 4 0")),
            ("a length without digits", after("POST / HTTP/1.1\nhost: a\ncontent-length: ")),
            ("too long a length", after("POST / HTTP/1.1\nhost: a\ncontent-length: 99999999999999999999999")),
            ("chunks twice", after("POST / HTTP/1.1\nhost: a\ntransfer-encoding: chunked\ntransfer-encoding: chunked")),
            ("chunks, then something", after("POST / HTTP/1.1\nhost: a\ntransfer-encoding: chunked, identity")),
            ("not chunks", after("POST / HTTP/1.1\nhost: a\ntransfer-encoding: xchunked")),
            ("chunks with a strange blank", after("POST / HTTP/1.1\nhost: a\ntransfer-encoding: \u{b}chunked")),
            ("chunks with a blank before the colon", after("POST / HTTP/1.1\nhost: a\ntransfer-encoding : chunked")),
            (
                "two lengths behind an upgrade that is refused",
                (
                    "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nPOST / HTTP/1.1\r\nhost: \
                 a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: \
                 a\r\n\r\n"
                        .to_string(),
                    vec![403, 400],
                    0,
                ),
            ),
            ("chunks in HTTP/1.0", after("POST / HTTP/1.0\nhost: a\ntransfer-encoding: chunked")),
        ],
    );
}

#[test]
fn chunks_are_checked() {
    // What is wrong comes after the head has been forwarded: the connection ends, and nothing after it is a request.
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let backend = Backend::start().unwrap();
    let proxy = Proxy::start(backend.port, &json!({})).unwrap();
    let wrong = [
        ("no size", "\r\nbody\r\n0\r\n\r\n"),
        ("a size that is no number", "zz\r\nbody\r\n0\r\n\r\n"),
        ("a size with a sign", "+4\r\nbody\r\n0\r\n\r\n"),
        ("a size with 0x", "0x4\r\nbody\r\n0\r\n\r\n"),
        ("too large a size", "fffffffffffffffff\r\nbody\r\n0\r\n\r\n"),
        ("no line after the data", "4\r\nbodyX0\r\n\r\n"),
        ("more data than its size", "2\r\nbody\r\n0\r\n\r\n"),
        ("an end without the last line", "4\r\nbody\r\n0\r\n"),
    ];
    all_hold(&wrong, |body| {
        let before = backend.requests();
        let smuggled = format!("{head}{body}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
        let answer = exchange(&proxy, smuggled.as_bytes(), &[REFUSED])?;
        let got = statuses(&answer);
        ensure!(got.len() == 1 && got != [200], "{got:?}: {answer:?}");
        ensure!(backend.requests() == before, "a request reached the application");
        Ok(())
    });
}

#[test]
fn sizes_are_bounded() {
    let long = |length: usize| "a".repeat(length);
    run(
        &json!({"max_request_headers_kb": 8}),
        &[
            ("a header of 7 kB", ok(&format!("GET / HTTP/1.1\nhost: a\nx: {}\n\n", long(7000)))),
            ("a header of 9 kB", (format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", long(9216)), vec![431], 0)),
            ("two hundred headers", {
                let headers: String = (0..200).map(|index| format!("x{index}: 1\r\n")).collect();
                (format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n"), vec![431], 0)
            }),
        ],
    );
}

#[test]
fn http_1_0_is_refused_unless_wanted() {
    run(&json!({}), &[("HTTP/1.0", (ok("GET / HTTP/1.0\nhost: a\n\n").0, vec![426], 0))]);
    run(
        &json!({"http_protocol_options": {"accept_http_10": true}}),
        &[("HTTP/1.0 where it is wanted", exact("GET / HTTP/1.0\r\nhost: a\r\n\r\n", &[200], 1))],
    );
}

/// … also when its first bytes came with the request before it, while that was served.
#[test]
fn a_slow_head_behind_another_request_is_given_up() {
    let backend = Backend::start().unwrap();
    let proxy = Proxy::start(backend.port, &json!({"request_headers_timeout": HEAD})).unwrap();
    let begun = Instant::now();
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\nx: 1").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(statuses(&answer)[0], 200, "{answer}");
    assert!(begun.elapsed() > TOO_EARLY, "given up too early");
    assert_eq!(backend.requests(), 1);
    // An empty line behind a request is no head (RFC 9112 §2.2): the connection stays.
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n\r\n").unwrap();
    assert_eq!(statuses(&answers(&mut stream, &[200]).unwrap()), [200]);
    stream.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
    let waited = stream.read(&mut [0; 1]).map_err(|error| error.kind());
    assert!(matches!(waited, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{waited:?}");
}

/// A head that does not end is given up after `request_headers_timeout`, and costs next to nothing until then.
#[test]
fn slow_heads_are_given_up() {
    let backend = Backend::start().unwrap();
    let proxy = Proxy::start(backend.port, &json!({"request_headers_timeout": HEAD})).unwrap();
    let begun = Instant::now();
    let mut slow: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(proxy.address()).unwrap()).collect();
    for stream in &mut slow {
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx: 1").unwrap();
    }
    assert!(proxy.resident().unwrap() < 100 << 20, "{} bytes", proxy.resident().unwrap());
    // Others are served meanwhile.
    assert_eq!(statuses(&exchange(&proxy, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", &[200]).unwrap()), [200]);
    for stream in &mut slow {
        let mut answer = String::new();
        let end = stream.read_to_string(&mut answer).map_err(|error| error.kind());
        // A reset is an end too.
        assert!(matches!(end, Ok(_) | Err(ErrorKind::ConnectionReset)), "{end:?}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    assert!(begun.elapsed() > TOO_EARLY, "given up too early");
    assert_eq!(backend.requests(), 1);
}
