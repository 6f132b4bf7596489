//! First bytes of a connection, looked at and left where they are: PROXY header, ClientHello, HTTP. A protocol in which the
//! server speaks first sends none: the wait has a limit.

use nix::sys::socket::{MsgFlags, recv};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::TcpStream;
use weft_codec::http_sniff::{self, Sniffed};
use weft_codec::proxy_protocol::{self, Parsed};
use weft_core::Strng;
use weft_proxy_config::{Inspect, Transport};
use weft_tls::{PeekedHello, peek_client_hello};

/// Bytes looked at: the longest sane ClientHello.
const MAX_PEEK: usize = 16 * 1024;
/// Envoy's default `listener_filters_timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// What was found; nothing, by default.
#[derive(Debug)]
pub(crate) struct Found {
    /// TLS or not.
    pub transport: Transport,
    /// Server name, lower case.
    pub server_name: Option<Strng>,
    /// ALPN as offered, or `http/1.1` / `h2c` / `http/1.0`.
    pub protocols: Vec<Strng>,
    /// Source and destination of a PROXY header.
    pub proxied: Option<(SocketAddr, SocketAddr)>,
}

impl Default for Found {
    fn default() -> Self {
        Self { transport: Transport::RawBuffer, server_name: None, protocols: Vec::new(), proxied: None }
    }
}

/// Why a connection is closed before a filter chain was chosen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InspectError {
    #[error("no bytes within the listener filters' time")]
    Timeout,
    #[error("the PROXY header is missing or malformed")]
    ProxyHeader,
    #[error("the ClientHello is longer than {MAX_PEEK} bytes")]
    HelloTooLong,
    #[error("the connection ended: {0}")]
    Io(#[from] io::Error),
}

/// Runs the listener's inspectors.
pub(crate) async fn inspect(stream: &mut TcpStream, how: &Inspect, port: u16) -> Result<Found, InspectError> {
    let mut found = Found::default();
    let (tls, http) = how.at(port);
    if !tls && !http && how.proxy_protocol.is_none() {
        return Ok(found);
    }
    // Zero means no limit, to Envoy; a connection that never speaks would then be held for ever.
    let limit = how.timeout.filter(|t| !t.is_zero()).unwrap_or(DEFAULT_TIMEOUT);
    let look = async {
        if let Some(optional) = how.proxy_protocol {
            found.proxied = proxy_header(stream, optional).await?;
        }
        if tls || http {
            first_bytes(stream, tls, http, &mut found).await?;
        }
        Ok(())
    };
    match tokio::time::timeout(limit, look).await {
        Ok(Ok(())) => Ok(found),
        Ok(Err(error)) => Err(error),
        // What was found before the time was over stands: a server-first protocol is raw bytes.
        Err(_elapsed) if how.continue_on_timeout => Ok(found),
        Err(_elapsed) => Err(InspectError::Timeout),
    }
}

async fn proxy_header(
    stream: &mut TcpStream,
    optional: bool,
) -> Result<Option<(SocketAddr, SocketAddr)>, InspectError> {
    let mut peeked = Peeked::new();
    loop {
        peeked.more(stream).await?;
        let bytes = peeked.bytes();
        match proxy_protocol::parse(bytes) {
            Parsed::Partial if !peeked.is_full() => {}
            Parsed::Header { length, addresses } => {
                let mut header = vec![0; length];
                stream.read_exact(&mut header).await?;
                return Ok(addresses);
            }
            Parsed::Absent if optional => return Ok(None),
            _ => return Err(InspectError::ProxyHeader),
        }
    }
}

async fn first_bytes(stream: &TcpStream, tls: bool, http: bool, found: &mut Found) -> Result<(), InspectError> {
    let mut peeked = Peeked::new();
    let mut try_tls = tls;
    loop {
        peeked.more(stream).await?;
        let bytes = peeked.bytes();
        if try_tls {
            match peek_client_hello(bytes) {
                PeekedHello::Incomplete if !peeked.is_full() => continue,
                PeekedHello::Hello(hello) => {
                    found.transport = Transport::Tls;
                    found.server_name = hello.sni.map(Strng::from);
                    let text = |name: &Vec<u8>| std::str::from_utf8(name).ok().map(Strng::from);
                    found.protocols = hello.alpn.iter().filter_map(text).collect();
                    return Ok(());
                }
                // Broken TLS is for the handshake to refuse, with an alert.
                PeekedHello::Malformed(_) => {
                    found.transport = Transport::Tls;
                    return Ok(());
                }
                // It is TLS, of which no chain can be chosen; as plain text it would pass by the rules for TLS.
                PeekedHello::Incomplete => return Err(InspectError::HelloTooLong),
                PeekedHello::NotTls => try_tls = false,
            }
        }
        let protocol = match http_sniff::sniff(bytes) {
            Sniffed::Partial if http && !peeked.is_full() => continue,
            _ if !http => return Ok(()),
            Sniffed::Http10 => "http/1.0",
            Sniffed::Http11 => "http/1.1",
            Sniffed::Http2 => "h2c",
            Sniffed::Other | Sniffed::Partial => return Ok(()),
        };
        found.protocols = vec![Strng::from(protocol)];
        return Ok(());
    }
}

/// Bytes that wait in the socket.
struct Peeked {
    buffer: Vec<u8>,
    seen: usize,
}

impl Peeked {
    fn new() -> Self {
        Self { buffer: Vec::new(), seen: 0 }
    }

    fn is_full(&self) -> bool {
        self.seen >= MAX_PEEK
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.seen]
    }

    /// Waits until there are more bytes than before.
    async fn more(&mut self, stream: &TcpStream) -> io::Result<()> {
        // Most first flights fit into the small buffer.
        let room = if self.seen < 2048 { 4096 } else { MAX_PEEK };
        self.buffer.resize(room.max(self.buffer.len()), 0);
        let before = self.seen;
        let buffer = &mut self.buffer;
        let n = stream
            .async_io(Interest::READABLE, || {
                let n = recv(stream.as_raw_fd(), buffer, MsgFlags::MSG_PEEK).map_err(io::Error::from)?;
                match n {
                    0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    // Nothing new: sleep until the socket says so. Readiness is edge-triggered and was taken before the
                    // look, so bytes that arrive now wake us.
                    n if n <= before => Err(io::ErrorKind::WouldBlock.into()),
                    n => Ok(n),
                }
            })
            .await?;
        self.seen = n;
        Ok(())
    }
}
