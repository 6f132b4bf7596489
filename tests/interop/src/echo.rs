//! The echo of `python/echo.py` with tonic: a server and a client that tries it, on raw bytes.

use bytes::{Buf, BufMut, Bytes};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status, Streaming};

/// Bytes of a message that fills every window.
const BIG: usize = 3 << 20;
/// Time for a call.
const LIMIT: Duration = Duration::from_secs(60);

/// Messages as they are.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// The service; all four kinds of calls are streams of messages to it.
#[derive(Clone, Default)]
struct Echo {
    cancelled: Arc<Notify>,
    method: &'static str,
}

/// Runs at the end of a call, however it ends.
struct AtEnd(Arc<Notify>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Echo {
    async fn unary(&self, metadata: &MetadataMap, message: Bytes) -> Result<Bytes, Status> {
        match &message[..] {
            b"fail" => Err(Status::not_found("no such thing: 100% – ü")),
            b"slow" => {
                tokio::time::sleep(Duration::from_secs(30)).await;
                Ok(message)
            }
            b"time" => {
                let limit = metadata.get("grpc-timeout").and_then(|v| v.to_str().ok()).unwrap_or("");
                let (digits, unit) = limit.split_at(limit.len().saturating_sub(1));
                let per_second = match unit {
                    "S" => 1.0,
                    "m" => 1e3,
                    "u" => 1e6,
                    "n" => 1e9,
                    _ => return Err(Status::internal(format!("grpc-timeout {limit:?}"))),
                };
                Ok((digits.parse::<f64>().unwrap_or_default() / per_second).to_string().into())
            }
            _ => Ok(message),
        }
    }

    fn server_stream(&self, request: &[u8]) -> Answers {
        let (sender, answers) = mpsc::channel::<Result<Bytes, Status>>(1);
        let cancelled = self.cancelled.clone();
        let request = request.to_vec();
        tokio::spawn(async move {
            match &request[..] {
                b"forever" => {
                    let _end = AtEnd(cancelled);
                    while sender.send(Ok(Bytes::from_static(b"tick"))).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
                b"cancelled" => {
                    let heard = tokio::time::timeout(LIMIT / 2, cancelled.notified()).await.is_ok();
                    let _ = sender.send(Ok(Bytes::from_static(if heard { b"yes" } else { b"no" }))).await;
                }
                count => {
                    let count: usize = String::from_utf8_lossy(count).parse().unwrap_or_default();
                    for n in 0..count {
                        let message = if n % 2 == 1 { Bytes::from(vec![0; 1024]) } else { Bytes::from_static(b"x") };
                        if sender.send(Ok(message)).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Box::pin(ReceiverStream::new(answers))
    }
}

impl StreamingService<Bytes> for Echo {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let (metadata, _, mut messages) = request.into_parts();
            let answers: Answers = match echo.method {
                "Bidi" => Box::pin(messages),
                "ClientStream" => {
                    let mut total = 0;
                    while let Some(message) = messages.message().await? {
                        total += message.len();
                    }
                    Box::pin(tokio_stream::once(Ok(Bytes::from(total.to_string()))))
                }
                "ServerStream" => echo.server_stream(&messages.message().await?.unwrap_or_default()),
                _ => {
                    let message = messages.message().await?.unwrap_or_default();
                    let answer = echo.unary(&metadata, message).await?;
                    Box::pin(tokio_stream::once(Ok(answer)))
                }
            };
            let mut response = Response::new(answers);
            response.metadata_mut().insert("x-initial", MetadataValue::from_static("yes"));
            if let Some(bytes) = metadata.get_bin("x-bytes-bin") {
                response.metadata_mut().insert_bin("x-bytes-bin", bytes.clone());
            }
            Ok(response)
        })
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "interop.Echo";
}

impl tower::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = match request.uri().path().rsplit('/').next() {
            Some("Unary") => "Unary",
            Some("ClientStream") => "ClientStream",
            Some("ServerStream") => "ServerStream",
            Some("Bidi") => "Bidi",
            _ => return Box::pin(async { Ok(Status::unimplemented("no such method").into_http()) }),
        };
        let echo = Self { method, ..self.clone() };
        Box::pin(async move {
            let mut grpc = Grpc::new(Raw).max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20);
            Ok(grpc.streaming(echo, request).await)
        })
    }
}

/// Serves on a port of 127.0.0.1, which is returned; as long as the runtime.
///
/// # Panics
/// When there is no port.
pub async fn serve() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = Server::builder().add_service(Echo::default());
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    port
}

/// The calls of a client.
struct Client(tonic::client::Grpc<Channel>);

impl Client {
    async fn call<S>(&mut self, method: &'static str, request: Request<S>) -> Result<Response<Streaming<Bytes>>, Status>
    where
        S: Stream<Item = Bytes> + Send + 'static,
    {
        self.0.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = http::uri::PathAndQuery::try_from(format!("/interop.Echo/{method}")).unwrap();
        self.0.streaming(request, path, Raw).await
    }

    /// A call with one message and one answer.
    async fn unary(&mut self, message: impl Into<Bytes>) -> Result<Bytes, Status> {
        self.all("Unary", tokio_stream::once(message.into())).await.map(|mut answers| answers.remove(0))
    }

    /// All answers to some messages.
    async fn all<S>(&mut self, method: &'static str, messages: S) -> Result<Vec<Bytes>, Status>
    where
        S: Stream<Item = Bytes> + Send + 'static,
    {
        let mut request = Request::new(messages);
        request.set_timeout(LIMIT);
        self.call(method, request).await?.into_inner().collect::<Result<Vec<_>, _>>().await
    }
}

/// Tries everything with the server behind that port.
///
/// # Panics
/// With what is wrong.
pub async fn try_all(port: u16) {
    let channel = Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect().await.unwrap();
    let grpc = tonic::client::Grpc::new(channel);
    let mut client = Client(grpc.max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20));
    unary_calls(&mut client).await;
    streams(&mut client).await;
    let big = Bytes::from((0..BIG).map(|n| (n % 251) as u8).collect::<Vec<u8>>());
    assert_eq!(client.unary(big.clone()).await.unwrap(), big, "a large message");
    // A call that is given up ends on the other side as well.
    let mut stream = client.call("ServerStream", Request::new(tokio_stream::once("forever".into()))).await.unwrap();
    assert!(stream.get_mut().message().await.unwrap().is_some());
    drop(stream);
    assert_eq!(client.all("ServerStream", tokio_stream::once("cancelled".into())).await.unwrap(), ["yes"]);
    // A reader that does not read holds up its own call only.
    let two = tokio_stream::iter([big.clone(), big.clone()]);
    let stuck = client.call("Bidi", Request::new(two)).await.unwrap().into_inner();
    assert_eq!(client.unary("through").await.unwrap(), "through");
    assert_eq!(stuck.collect::<Result<Vec<_>, _>>().await.unwrap(), [big.clone(), big]);
}

async fn unary_calls(client: &mut Client) {
    let mut request = Request::new(tokio_stream::once(Bytes::from_static(b"hello")));
    let raw: Vec<u8> = (0..=255).collect();
    request.metadata_mut().insert_bin("x-bytes-bin", MetadataValue::from_bytes(&raw));
    let answer = client.call("Unary", request).await.unwrap();
    assert_eq!(answer.metadata().get("x-initial").unwrap(), "yes");
    let (head, mut messages, _) = answer.into_parts();
    assert_eq!(messages.message().await.unwrap().unwrap(), "hello");
    // tonic's server says it at the beginning, grpcio's at the end.
    let trailers = messages.trailers().await.unwrap().unwrap_or_default();
    let back = head.get_bin("x-bytes-bin").or(trailers.get_bin("x-bytes-bin")).unwrap();
    assert_eq!(back.to_bytes().unwrap(), raw);
    let error = client.unary("fail").await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "no such thing: 100% – ü"));
    let error = client.all("Nothing", tokio_stream::once(Bytes::new())).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented, "{error}");
    let left = client.unary("time").await.unwrap();
    let left: f64 = std::str::from_utf8(&left).unwrap().parse().unwrap();
    assert!(left > 0.0 && left < LIMIT.as_secs_f64() + 1.0, "grpc-timeout: {left}");
    let mut request = Request::new(tokio_stream::once(Bytes::from_static(b"slow")));
    request.set_timeout(Duration::from_millis(500));
    let answer = tokio::time::timeout(Duration::from_secs(25), client.call("Unary", request)).await.unwrap();
    let error = match answer {
        Ok(answer) => answer.into_inner().message().await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled), "{error}");
}

async fn streams(client: &mut Client) {
    let sent = tokio_stream::iter((0..500).map(|_| Bytes::from(vec![0; 1000])));
    assert_eq!(client.all("ClientStream", sent).await.unwrap(), ["500000"]);
    let answers = client.all("ServerStream", tokio_stream::once("500".into())).await.unwrap();
    assert_eq!((answers.len(), answers.iter().map(Bytes::len).sum::<usize>()), (500, 250 + 250 * 1024));
    let sent: Vec<Bytes> = (0..200_usize).map(|n| n.to_string().repeat(n + 1).into()).collect();
    assert_eq!(client.all("Bidi", tokio_stream::iter(sent.clone())).await.unwrap(), sent);
    // A turn of a conversation waits for the other side's.
    let (turns, receiver) = mpsc::channel(1);
    turns.send(Bytes::from_static(b"0")).await.unwrap();
    let mut talk = client.call("Bidi", Request::new(ReceiverStream::new(receiver))).await.unwrap().into_inner();
    assert_eq!(talk.message().await.unwrap().unwrap(), "0");
    for n in 1..5 {
        turns.send(n.to_string().into()).await.unwrap();
        assert_eq!(talk.message().await.unwrap().unwrap(), n.to_string());
    }
    drop(turns);
    assert!(talk.message().await.unwrap().is_none());
}
