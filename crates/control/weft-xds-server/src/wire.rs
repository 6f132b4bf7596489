//! The delta stream as it goes over the connection: responses are written from the packed resources that proxies share, in
//! frames of a few kilobytes, as the connection takes them. A response of megabytes is never in memory as a whole, and nothing
//! of its size stays with the stream.

use crate::session::Push;
use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len, message, string};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tonic::Status;
use weft_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use weft_xds_gen::Resource;

/// A frame is sent once it has so many bytes.
const FRAME: usize = 16 * 1024;
/// Field `resources` of `DeltaDiscoveryResponse`.
const RESOURCES_TAG: u32 = 2;
/// Fields of `envoy.service.discovery.v3.Resource`.
const VERSION_TAG: u32 = 1;
const RESOURCE_TAG: u32 = 2;
const NAME_TAG: u32 = 3;

/// A response of the delta variant, not yet written.
#[derive(Debug)]
pub(crate) struct DeltaResponse {
    /// What it brings.
    pub push: Push,
    /// Version of the whole.
    pub version: String,
}

/// The body of the answer to a delta stream: responses until the sender goes away, then the status.
pub(crate) struct DeltaBody {
    responses: mpsc::Receiver<Result<DeltaResponse, Status>>,
    writing: Option<Writing>,
    ended: bool,
}

/// A response of which a part is written.
struct Writing {
    /// Written before the resources: the length, and all other fields.
    head: Option<Bytes>,
    resources: std::vec::IntoIter<Arc<Resource>>,
}

impl DeltaBody {
    pub fn new(responses: mpsc::Receiver<Result<DeltaResponse, Status>>) -> Self {
        Self { responses, writing: None, ended: false }
    }

    fn end(&mut self, status: &Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        (self.ended, self.writing) = (true, None);
        let mut trailers = HeaderMap::new();
        if let Err(error) = status.add_header(&mut trailers) {
            return Poll::Ready(Some(Err(error)));
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

impl Body for DeltaBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if this.writing.is_none() {
            match std::task::ready!(this.responses.poll_recv(cx)) {
                None => return this.end(&Status::ok("")),
                Some(Err(status)) => return this.end(&status),
                Some(Ok(response)) => match Writing::new(response) {
                    Ok(writing) => this.writing = Some(writing),
                    Err(status) => return this.end(&status),
                },
            }
        }
        let Some(writing) = &mut this.writing else { return Poll::Ready(None) };
        let frame = writing.frame();
        if writing.resources.len() == 0 {
            this.writing = None;
        }
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }
}

impl Writing {
    fn new(response: DeltaResponse) -> Result<Self, Status> {
        let DeltaResponse { push, version } = response;
        // Fields of a message may come in any order: all but the resources go first.
        let rest = DeltaDiscoveryResponse {
            system_version_info: version,
            type_url: push.kind.type_url().into(),
            nonce: push.nonce,
            removed_resources: push.removed,
            ..Default::default()
        };
        let of_resource = |r: &Arc<Resource>| {
            let inside = resource_len(r);
            key_len(RESOURCES_TAG) + encoded_len_varint(inside as u64) + inside
        };
        let len = rest.encoded_len() + push.resources.iter().map(of_resource).sum::<usize>();
        let Ok(prefix) = u32::try_from(len) else {
            return Err(Status::resource_exhausted(format!("a response of {len} bytes")));
        };
        let mut head = BytesMut::with_capacity(5 + rest.encoded_len());
        // gRPC over HTTP/2, "Length-Prefixed-Message": not compressed, length.
        head.put_u8(0);
        head.put_u32(prefix);
        rest.encode_raw(&mut head);
        Ok(Self { head: Some(head.freeze()), resources: push.resources.into_iter() })
    }

    /// What goes out next: never nothing.
    fn frame(&mut self) -> Bytes {
        if let Some(head) = self.head.take_if(|head| head.len() >= FRAME || self.resources.len() == 0) {
            return head;
        }
        let mut frame = BytesMut::with_capacity(FRAME);
        frame.extend_from_slice(&self.head.take().unwrap_or_default());
        while let Some(resource) = self.resources.as_slice().first() {
            let more = resource_len(resource);
            if !frame.is_empty() && frame.len() + more > FRAME {
                break;
            }
            encode(resource, more, &mut frame);
            self.resources.next();
        }
        frame.freeze()
    }
}

/// Version of a resource, as the client is told it.
fn version(resource: &Resource) -> String {
    format!("{:x}", resource.hash)
}

/// Length of the message around a resource, in bytes.
fn resource_len(resource: &Resource) -> usize {
    let digits = if resource.hash == 0 { 1 } else { (16 - resource.hash.leading_zeros() / 4) as usize };
    let text = |tag, len: usize| key_len(tag) + encoded_len_varint(len as u64) + len;
    text(VERSION_TAG, digits) + message::encoded_len(RESOURCE_TAG, &resource.any) + text(NAME_TAG, resource.name.len())
}

fn encode(resource: &Resource, len: usize, out: &mut BytesMut) {
    encode_key(RESOURCES_TAG, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
    string::encode(VERSION_TAG, &version(resource), out);
    message::encode(RESOURCE_TAG, &resource.any, out);
    encode_key(NAME_TAG, WireType::LengthDelimited, out);
    encode_varint(resource.name.len() as u64, out);
    out.extend_from_slice(resource.name.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use weft_proto::Any;
    use weft_proto::envoy::service::discovery::v3 as xds;

    #[test]
    fn what_is_written_is_the_message() {
        let any = |size: usize| Any { type_url: "t".into(), value: vec![7; size] };
        let hashes = [0, 1, 0xf, 0x10, u64::MAX];
        for sizes in [vec![], vec![0], vec![3, FRAME, FRAME - 40, 1], vec![2000; 100], vec![3 * FRAME, 5]] {
            let resources: Vec<_> = sizes
                .iter()
                .enumerate()
                .map(|(i, size)| {
                    let hash = hashes[i % hashes.len()];
                    Arc::new(Resource { name: format!("name-{i}").into(), any: any(*size), hash })
                })
                .collect();
            let removed = vec!["gone".to_string(); 3];
            let push =
                Push { kind: Kind::Cluster, nonce: "n".into(), version: 1, resources: resources.clone(), removed };
            let mut writing = Writing::new(DeltaResponse { push, version: "v".into() }).unwrap();
            let mut all = Vec::new();
            loop {
                let frame = writing.frame();
                assert!(!frame.is_empty() && (frame.len() <= FRAME || frame.len() < 3 * FRAME + 100));
                all.extend_from_slice(&frame);
                if writing.resources.len() == 0 {
                    break;
                }
            }
            assert_eq!(all[0], 0);
            assert_eq!(u32::from_be_bytes(all[1..5].try_into().unwrap()) as usize, all.len() - 5);
            let read = DeltaDiscoveryResponse::decode(&all[5..]).unwrap();
            let resource = |r: &Arc<Resource>| xds::Resource {
                name: r.name.to_string(),
                version: version(r),
                resource: Some(r.any.clone()),
                ..Default::default()
            };
            assert_eq!(read.resources, resources.iter().map(resource).collect::<Vec<_>>());
            assert_eq!((read.nonce.as_str(), read.system_version_info.as_str()), ("n", "v"));
            assert_eq!((read.type_url.as_str(), read.removed_resources.len()), (Kind::Cluster.type_url(), 3));
        }
    }
}
