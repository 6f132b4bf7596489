//! Outbound sockets of a process beside an application: the mark (`SO_MARK`) by which the pod's redirection rules know them
//! from the application's own, where user ids cannot tell (see `weft_capture::ProxyOwner`).

use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream, lookup_host};

/// Environment variable with the mark, decimal.
pub const MARK_VARIABLE: &str = "WEFT_SOCKET_MARK";

/// The mark of the process; 0 = none. Set once at start.
static MARK: AtomicU32 = AtomicU32::new(0);

/// Marks every socket that [`mark`] and [`connect`] see from now on. Needs `CAP_NET_ADMIN`.
pub fn set_mark(mark: u32) {
    MARK.store(mark, Ordering::Relaxed);
}

/// Sets the process's mark on a socket before it connects; nothing when there is none.
///
/// # Errors
/// When the kernel refuses: `CAP_NET_ADMIN` is missing.
pub fn mark(socket: &impl AsFd) -> io::Result<()> {
    match MARK.load(Ordering::Relaxed) {
        0 => Ok(()),
        mark => setsockopt(socket, sockopt::Mark, &mark).map_err(io::Error::from),
    }
}

/// Connects to `HOST:PORT`, trying each address of the name in turn, with the process's mark and without Nagle's delay.
///
/// # Errors
/// When the name has no address, or no address answers: the last failure.
pub async fn connect(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address"));
    for candidate in lookup_host(address).await? {
        match connect_to(candidate).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to an address as [`connect`] does, from an address of this machine.
///
/// # Errors
/// When `source` is none of the machine's, or nobody answers.
pub async fn connect_from(source: IpAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = new_socket(address)?;
    socket.bind(SocketAddr::new(source, 0))?;
    finish(socket, address).await
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    finish(new_socket(address)?, address).await
}

fn new_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    mark(&socket)?;
    Ok(socket)
}

/// Longest wait for an address to answer. A pod that has just gone answers nothing at all, and the kernel would go on trying
/// for two minutes, while its successor waits.
const CONNECT: Duration = Duration::from_secs(3);

async fn finish(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpStream> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer within {CONNECT:?}"));
    let stream = tokio::time::timeout(CONNECT, socket.connect(address)).await.map_err(|_| late())??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connects_from_an_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let source = IpAddr::from([127, 0, 0, 6]);
        let stream = connect_from(source, listener.local_addr().unwrap()).await.unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), source);
        assert_eq!(listener.accept().await.unwrap().1.ip(), source);
        assert!(connect_from(IpAddr::from([192, 0, 2, 1]), listener.local_addr().unwrap()).await.is_err());
    }

    #[tokio::test]
    async fn connects_by_name() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = connect(&format!("localhost:{port}")).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap().port(), port);
        assert!(connect("127.0.0.1:1").await.is_err(), "nobody listens there");
    }
}
