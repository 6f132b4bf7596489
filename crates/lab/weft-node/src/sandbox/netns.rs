//! Network namespaces: making them, and doing something inside one.

use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::net::{TcpSocket, TcpStream};

/// A network namespace, kept alive by this handle.
#[derive(Debug, Clone)]
pub struct NetNs {
    handle: Arc<OwnedFd>,
}

/// The calling thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

impl NetNs {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Ok(Self { handle: Arc::new(File::open(OWN)?.into()) })
    }

    /// A new namespace, empty but for a loopback interface that is down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create() -> io::Result<Self> {
        on_new_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })
    }

    /// The open handle, as an interface's destination or for `setns`.
    pub fn fd(&self) -> &OwnedFd {
        &self.handle
    }

    /// Moves the calling thread into this namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&*self.handle, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `work` on a new thread inside the namespace. Sockets that it opens stay in the namespace for good.
    ///
    /// # Errors
    /// Those of `work`, or when the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_new_thread(|| {
            self.enter()?;
            work()
        })
    }

    /// Connects to an address as seen from inside the namespace.
    ///
    /// # Errors
    /// Those of connecting.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.run(|| {
            let domain = socket2::Domain::for_address(to);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM.nonblocking(), None)?;
            Ok(std::net::TcpStream::from(socket))
        })?;
        TcpSocket::from_std_stream(socket).connect(to).await
    }
}

/// Threads, unlike tasks, may change namespaces; one that did is not given back to a pool.
fn on_new_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    })
}
