//! SPDY/3.1 from the server's side, as far as clients of Kubernetes use it: streams that the client opens, bytes both ways, pings.
//! kubectl carries ports over it (inside a WebSocket, or as an upgraded connection), older clients commands too. There is no
//! flow control, as in the clients' own library: a reader that does not keep up holds the whole connection back.
//!
//! Source: SPDY Protocol, Draft 3.1, section 2.6 (framing).

pub(crate) mod headers;

use bytes::Bytes;
use headers::Headers;
use std::collections::HashMap;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{self, Receiver, Sender};

/// Longest frame, in bytes.
const MAX_FRAME: usize = 1 << 20;
/// Bytes of one data frame to the client.
pub(super) const CHUNK: usize = 32 * 1024;
/// Streams that are open at once.
const MAX_STREAMS: usize = 512;
/// Frames waiting for a slow reader or writer.
const QUEUE: usize = 16;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const VERSION: u16 = 0x8003;
const FIN: u8 = 1;
/// Status of a stream that is refused (2.6.3).
const REFUSED: u32 = 3;

/// A stream that the client opened.
pub(super) struct Stream {
    pub(super) headers: Headers,
    /// What the client sends; ends with its half.
    pub(super) input: Receiver<Bytes>,
    pub(super) output: Output,
}

/// The server's half of a stream.
pub(super) struct Output {
    id: u32,
    frames: Sender<Frame>,
}

enum Frame {
    Reply(u32),
    Data(u32, Bytes, bool),
    Ping(u32),
    Reset(u32, u32),
}

impl Output {
    /// Sends bytes. `false` when the connection has ended.
    pub(super) async fn send(&self, data: &[u8]) -> bool {
        for chunk in data.chunks(CHUNK) {
            let frame = Frame::Data(self.id, Bytes::copy_from_slice(chunk), false);
            if self.frames.send(frame).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Ends the half.
    pub(super) async fn close(self) {
        let _ = self.frames.send(Frame::Data(self.id, Bytes::new(), true)).await;
    }
}

/// Serves a connection: streams come out of the receiver until the connection ends. The future must be polled; it ends with the
/// connection, or when the receiver and all outputs are gone and everything has been written.
pub(super) fn serve<S>(connection: S) -> (Receiver<Stream>, impl Future<Output = ()>)
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (streams, opened) = mpsc::channel(QUEUE);
    let (frames, queue) = mpsc::channel(QUEUE);
    let (reader, writer) = tokio::io::split(connection);
    let work = async move {
        tokio::select! {
            result = read(reader, streams, frames) => if let Err(error) = result {
                tracing::debug!(%error, "a SPDY connection ended");
            },
            () = write(writer, queue) => {}
        }
    };
    (opened, work)
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut queue: Receiver<Frame>) {
    let mut compressor = headers::Writer::default();
    while let Some(frame) = queue.recv().await {
        let bytes = match frame {
            Frame::Reply(id) => {
                let block = compressor.write(&Headers::new());
                control(SYN_REPLY, 0, &[&id.to_be_bytes(), &block])
            }
            Frame::Data(id, data, last) => {
                let mut bytes = id.to_be_bytes().to_vec();
                bytes.extend(flags_and_length(if last { FIN } else { 0 }, data.len()));
                bytes.extend_from_slice(&data);
                bytes
            }
            Frame::Ping(id) => control(PING, 0, &[&id.to_be_bytes()]),
            Frame::Reset(id, status) => control(RST_STREAM, 0, &[&id.to_be_bytes(), &status.to_be_bytes()]),
        };
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
    let _ = writer.shutdown().await;
}

fn flags_and_length(flags: u8, length: usize) -> [u8; 4] {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    [flags, a, b, c]
}

fn control(kind: u16, flags: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length = parts.iter().map(|p| p.len()).sum();
    let mut bytes = VERSION.to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(flags_and_length(flags, length));
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

fn wrong(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

async fn read(mut reader: impl AsyncRead + Unpin, streams: Sender<Stream>, frames: Sender<Frame>) -> io::Result<()> {
    let mut decompressor = headers::Reader::new();
    let mut inputs: HashMap<u32, Sender<Bytes>> = HashMap::new();
    // Weak, so that the connection can end when all outputs are closed.
    let frames = frames.downgrade();
    let mut held = frames.upgrade();
    loop {
        let mut head = [0; 8];
        if reader.read_exact(&mut head).await.is_err() {
            return Ok(());
        }
        let [a, b, c, d, flags, e, f, g] = head;
        let length = usize::try_from(u32::from_be_bytes([0, e, f, g])).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(wrong(format!("a frame of {length} bytes; the most is {MAX_FRAME}")));
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).await?;
        if a & 0x80 == 0 {
            data(u32::from_be_bytes([a, b, c, d]), flags, body, &mut inputs).await;
            continue;
        }
        if u16::from_be_bytes([a, b]) != VERSION {
            return Err(wrong("another version than SPDY/3"));
        }
        let id = body.first_chunk().map(|id| u32::from_be_bytes(*id) & 0x7fff_ffff);
        match (u16::from_be_bytes([c, d]), id) {
            (SYN_STREAM, Some(id)) => {
                let block = body.get(10..).ok_or_else(|| wrong("SYN_STREAM is cut off"))?;
                let headers = decompressor.read(block).map_err(wrong)?;
                inputs.retain(|_, input| !input.is_closed());
                let Some(frames) = held.take().or_else(|| frames.upgrade()) else { return Ok(()) };
                if inputs.len() >= MAX_STREAMS || inputs.contains_key(&id) {
                    let _ = frames.send(Frame::Reset(id, REFUSED)).await;
                    continue;
                }
                let (input, received) = mpsc::channel(QUEUE);
                if flags & FIN == 0 {
                    inputs.insert(id, input);
                }
                let _ = frames.send(Frame::Reply(id)).await;
                let output = Output { id, frames };
                if streams.send(Stream { headers, input: received, output }).await.is_err() {
                    // Nobody takes further streams; those that are open go on.
                    inputs.remove(&id);
                }
            }
            (RST_STREAM, Some(id)) => drop(inputs.remove(&id)),
            (PING, Some(id)) => {
                if let Some(frames) = held.as_ref().cloned().or_else(|| frames.upgrade()) {
                    let _ = frames.send(Frame::Ping(id)).await;
                }
            }
            (GOAWAY, _) => return Ok(()),
            // SETTINGS, HEADERS, WINDOW_UPDATE: nothing follows from them here.
            _ => {}
        }
    }
}

/// Hands bytes to their stream; those of a stream that is gone are dropped.
async fn data(id: u32, flags: u8, body: Vec<u8>, inputs: &mut HashMap<u32, Sender<Bytes>>) {
    let last = flags & FIN != 0;
    if let Some(input) = inputs.get(&id) {
        let gone = !body.is_empty() && input.send(body.into()).await.is_err();
        if last || gone {
            inputs.remove(&id);
        }
    }
}
