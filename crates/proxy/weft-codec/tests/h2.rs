//! Bodies and tunnels of HTTP/2 over a connection in memory, with the `h2` crate alone on the other side.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt as _;
use std::future::{Future, poll_fn};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use weft_codec::h2::{Outgoing, PumpError, StreamBody, Tunnel};
use weft_codec::{BodyError, ProxyBody};

/// Longest time that anything here may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Both ends of one stream, whose request is a POST without an end: the server's, then the client's. `window`: bytes of a
/// stream that each side takes before they are read.
async fn stream(window: u32) -> (SendStream<Bytes>, RecvStream, SendStream<Bytes>, RecvStream) {
    let (here, there) = tokio::io::duplex(64 * 1024);
    let (mut sender, connection) =
        client::Builder::new().initial_window_size(window).handshake::<_, Bytes>(here).await.unwrap();
    tokio::task::spawn_local(connection);
    let (accepted, mut come) = mpsc::channel(1);
    tokio::task::spawn_local(async move {
        let mut builder = server::Builder::new();
        let mut connection = builder.initial_window_size(window).handshake::<_, Bytes>(there).await.unwrap();
        while let Some(Ok(stream)) = connection.accept().await {
            accepted.send(stream).await.unwrap();
        }
    });
    poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
    let request = Request::post("http://a.example/").body(()).unwrap();
    let (answer, asks) = sender.send_request(request, false).unwrap();
    let (request, mut respond) = come.recv().await.unwrap();
    let answers = respond.send_response(Response::new(()), false).unwrap();
    let receive = answer.await.unwrap().into_body();
    (answers, request.into_body(), asks, receive)
}

async fn bounded(what: impl Future<Output = ()>) {
    LocalSet::new().run_until(async { tokio::time::timeout(LIMIT, what).await.expect("in time") }).await;
}

fn body_of(frames: Vec<Result<Frame<Bytes>, BodyError>>) -> ProxyBody {
    let (sender, body) = mpsc::channel(frames.len().max(1));
    frames.into_iter().for_each(|frame| sender.try_send(frame).unwrap());
    ProxyBody::channel(body)
}

fn data(text: &'static str) -> Result<Frame<Bytes>, BodyError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn length(length: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::header::CONTENT_LENGTH, HeaderValue::from_static(length))])
}

#[tokio::test]
async fn a_body_arrives_whole_through_a_small_window() {
    bounded(async {
        let (answers, _request, _asks, receive) = stream(3).await;
        let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("x"))]);
        let body = body_of(vec![data("abcdefgh"), data(""), data("ijkl"), data("m"), Ok(Frame::trailers(trailers))]);
        tokio::task::spawn_local(async move {
            let mut outgoing = Outgoing::new(body, answers);
            poll_fn(|cx| outgoing.poll(cx)).await.unwrap();
        });
        let got = ProxyBody::from(StreamBody::new(receive, &HeaderMap::new())).collect().await.unwrap();
        assert!(got.trailers().is_some_and(|trailers| trailers.contains_key("etag")));
        assert_eq!(got.to_bytes(), "abcdefghijklm");
    })
    .await;
}

#[tokio::test]
async fn a_body_of_known_length_ends_with_its_last_frame() {
    bounded(async {
        let (answers, _request, _asks, receive) = stream(65_535).await;
        let mut outgoing = Outgoing::new(ProxyBody::full("hello"), answers);
        poll_fn(|cx| outgoing.poll(cx)).await.unwrap();
        let mut body = ProxyBody::from(StreamBody::new(receive, &length("5")));
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(5));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        assert!(body.frame().await.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_body_that_breaks_off_resets_its_stream() {
    bounded(async {
        let (answers, _request, _asks, receive) = stream(65_535).await;
        let mut outgoing = Outgoing::new(body_of(vec![data("ab"), Err(BodyError::Aborted("cut"))]), answers);
        assert!(matches!(poll_fn(|cx| outgoing.poll(cx)).await, Err(PumpError::Body(BodyError::Aborted("cut")))));
        let error = ProxyBody::from(StreamBody::new(receive, &HeaderMap::new())).collect().await.unwrap_err();
        assert!(matches!(error, BodyError::Stream(error) if error.reason() == Some(Reason::INTERNAL_ERROR)));
    })
    .await;
}

#[tokio::test]
async fn who_wants_no_more_ends_the_sending() {
    bounded(async {
        let (answers, _request, mut asks, _receive) = stream(65_535).await;
        let (_open, body) = mpsc::channel(1);
        let mut outgoing = Outgoing::new(ProxyBody::channel(body), answers);
        asks.send_reset(Reason::CANCEL);
        assert!(matches!(poll_fn(|cx| outgoing.poll(cx)).await, Err(PumpError::Reset(Reason::CANCEL))));
    })
    .await;
}

#[tokio::test]
async fn a_frame_that_finds_no_room_is_cut_with_its_stream() {
    bounded(async {
        let (answers, _request, mut asks, _receive) = stream(2).await;
        let mut outgoing = Outgoing::new(body_of(vec![data("abcd"), data("efgh"), data("ijkl")]), answers);
        let sending = tokio::task::spawn_local(async move { poll_fn(|cx| outgoing.poll(cx)).await });
        tokio::task::yield_now().await;
        asks.send_reset(Reason::CANCEL);
        assert!(sending.await.unwrap().is_err());
    })
    .await;
}

#[tokio::test]
async fn an_end_without_error_is_one_when_nothing_can_be_missing() {
    for (said, whole) in [(length("2"), true), (HeaderMap::new(), false), (length("3"), false)] {
        bounded(async {
            let (mut answers, _request, _asks, receive) = stream(65_535).await;
            let mut body = StreamBody::new(receive, &said);
            answers.send_data(Bytes::from_static(b"ab"), false).unwrap();
            assert_eq!(poll_fn(|cx| body.poll_frame(cx)).await.unwrap().unwrap().into_data().unwrap(), "ab");
            answers.send_reset(Reason::NO_ERROR);
            let end = poll_fn(|cx| body.poll_frame(cx)).await;
            assert_eq!(end.is_none(), whole, "{said:?}: {end:?}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_tunnel_passes_both_ways_and_closes_by_halves() {
    bounded(async {
        let (answers, request, asks, receive) = stream(3).await;
        let (mut server, mut client) = (Tunnel::new(answers, request), Tunnel::new(asks, receive));
        let asking = tokio::task::spawn_local(async move {
            client.write_all(b"a question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"a question");
        server.write_all(b"its answer").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(asking.await.unwrap(), b"its answer");
    })
    .await;
}
