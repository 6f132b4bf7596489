//! The requests of a delta stream as they come over the connection. A proxy asks for thousands of names at once, and seldom
//! again: the memory that one request needed goes with it, and does not stay with the stream.

use bytes::{Buf, Bytes, BytesMut};
use futures_util::Stream;
use http_body::Body;
use prost::Message;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tonic::Status;

/// Flag and length before a message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// Messages of a request's body.
pub(crate) struct Asked<M, B> {
    body: B,
    /// What came and is no whole message yet.
    part: BytesMut,
    /// Largest message, in bytes.
    most: usize,
    of: PhantomData<fn() -> M>,
}

impl<M, B> Asked<M, B> {
    /// The messages of `body`, none longer than `most` bytes.
    pub fn new(body: B, most: usize) -> Self {
        Self { body, part: BytesMut::new(), most, of: PhantomData }
    }
}

impl<M: Message + Default, B> Asked<M, B> {
    /// The next message, when all of it is there.
    fn take(&mut self) -> Result<Option<M>, Status> {
        let Some((prefix, rest)) = self.part.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let [flag, length @ ..] = *prefix;
        if flag != 0 {
            return Err(Status::unimplemented("compressed messages are not supported"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.most {
            return Err(Status::out_of_range(format!(
                "a message of {length} bytes; at most {} are allowed",
                self.most
            )));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message = M::decode(message).map_err(|error| Status::internal(error.to_string()))?;
        self.part.advance(PREFIX + length);
        if self.part.is_empty() {
            self.part = BytesMut::new();
        }
        Ok(Some(message))
    }
}

impl<M, B> Stream for Asked<M, B>
where
    M: Message + Default,
    B: Body<Data = Bytes, Error = Status> + Unpin,
{
    type Item = Result<M, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(message) = this.take().transpose() {
                return Poll::Ready(Some(message));
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // Trailers of a request say nothing.
                    if let Some(data) = frame.data_ref() {
                        this.part.extend_from_slice(data);
                    }
                }
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None if this.part.is_empty() => return Poll::Ready(None),
                None => {
                    this.part = BytesMut::new();
                    return Poll::Ready(Some(Err(Status::internal("the body ends within a message"))));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;
    use http_body::Frame;
    use std::collections::VecDeque;
    use tonic::Code;
    use weft_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;

    struct Pieces(VecDeque<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Status;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    fn written(type_url: &str) -> Vec<u8> {
        let message = DeltaDiscoveryRequest { type_url: type_url.into(), ..Default::default() }.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap();
        [&[0][..], &length.to_be_bytes(), &message].concat()
    }

    /// Types of the requests that come of these bytes in pieces of that size, then the code of the error if there is one.
    async fn read(bytes: &[u8], piece: usize) -> (Vec<String>, Option<Code>) {
        let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        let mut asked: Asked<DeltaDiscoveryRequest, _> = Asked::new(Pieces(pieces), 1000);
        let mut types = Vec::new();
        while let Some(next) = asked.next().await {
            match next {
                Ok(request) => types.push(request.type_url),
                Err(status) => return (types, Some(status.code())),
            }
        }
        assert_eq!(asked.part.capacity(), 0, "nothing is kept");
        (types, None)
    }

    #[tokio::test]
    async fn messages_in_pieces() {
        let (first, second) = (written("a"), written(&"b".repeat(500)));
        let both = [first.clone(), second.clone()].concat();
        for piece in [1, 3, 6, 100, 10_000] {
            let (types, error) = read(&both, piece).await;
            assert_eq!((types, error), (vec!["a".to_string(), "b".repeat(500)], None), "{piece}");
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        let whole = written("a");
        for (bytes, code) in [
            (whole[..whole.len() - 1].to_vec(), Code::Internal),
            (vec![0, 0, 0], Code::Internal),
            ([&[1][..], &whole[1..]].concat(), Code::Unimplemented),
            (vec![0, 0, 0, 4, 0], Code::OutOfRange),
            (vec![0, 0, 0, 0, 1, 0xff], Code::Internal),
        ] {
            assert_eq!(read(&bytes, 2).await, (Vec::new(), Some(code)), "{bytes:?}");
        }
    }
}
