//! How the control plane is reached. TLS is the caller's business: a connector gives a stream that is ready for HTTP/2.

use futures_util::future::BoxFuture;
use std::io;
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncWrite};

/// Both directions of a connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection to the control plane.
pub type BoxedIo = Box<dyn Io>;

/// Makes connections to the control plane.
pub trait Connect: Send + Sync + 'static {
    /// A new connection. Called again for every attempt, so that certificates and addresses may have changed.
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxedIo>>;
}

impl<F> Connect for F
where
    F: Fn() -> BoxFuture<'static, io::Result<BoxedIo>> + Send + Sync + 'static,
{
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxedIo>> {
        self()
    }
}

/// Plain TCP to `host:port`; the name is resolved anew each time.
#[derive(Debug, Clone)]
pub struct TcpConnect(pub String);

impl Connect for TcpConnect {
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxedIo>> {
        let address = self.0.clone();
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxedIo)
        })
    }
}

/// A Unix domain socket.
#[derive(Debug, Clone)]
pub struct UnixConnect(pub PathBuf);

impl Connect for UnixConnect {
    fn connect(&self) -> BoxFuture<'static, io::Result<BoxedIo>> {
        let path = self.0.clone();
        Box::pin(async move { Ok(Box::new(tokio::net::UnixStream::connect(path).await?) as BoxedIo) })
    }
}
