//! Sockets of the client's side: opening listening sockets so that a port in use is noticed, and asking the kernel where a
//! redirected connection wanted to go.

use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use weft_proxy_config::ListenAddress;

/// Connections the kernel may queue for each socket.
const BACKLOG: i32 = 4096;

/// A listening socket of one worker.
#[derive(Debug)]
pub(crate) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Opens one socket per worker on `address`, all on the same port (`SO_REUSEPORT`): the kernel spreads connections over
/// them.
///
/// # Errors
/// When the address cannot be bound, also when another program (or another proxy) listens on it already.
pub(crate) fn listen(address: &ListenAddress, workers: usize, transparent: bool) -> io::Result<Vec<Listening>> {
    match address {
        ListenAddress::Tcp(address) => listen_tcp(*address, workers, transparent),
        ListenAddress::Unix(path) => {
            // A socket file left behind by a proxy that was killed would be in the way for ever.
            if std::os::unix::net::UnixStream::connect(&**path).is_err() {
                let _ = std::fs::remove_file(&**path);
            }
            let listener = UnixListener::bind(&**path)?;
            listener.set_nonblocking(true)?;
            share(Listening::Unix(listener), workers)
        }
    }
}

fn listen_tcp(address: SocketAddr, workers: usize, transparent: bool) -> io::Result<Vec<Listening>> {
    // `::` takes IPv4 too, unless a listener has that by itself.
    let mut only_v6 = false;
    // With SO_REUSEPORT two programs of one user would share the port without noticing: a socket without it finds out.
    if address.port() != 0 {
        let alone = bound(address, transparent, false, false);
        only_v6 = address.is_ipv6() && alone.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse);
        drop(if only_v6 { bound(address, transparent, false, true)? } else { alone? });
    }
    let mut sockets = Vec::with_capacity(workers);
    let mut address = address;
    for _ in 0..workers {
        let socket = bound(address, transparent, true, only_v6)?;
        socket.listen(BACKLOG)?;
        let listener: TcpListener = socket.into();
        if address.port() == 0 {
            // "Any port" means one port for all workers.
            address = listener.local_addr()?;
        }
        sockets.push(Listening::Tcp(listener));
    }
    Ok(sockets)
}

fn bound(address: SocketAddr, transparent: bool, reuse_port: bool, only_v6: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    if transparent {
        match address {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
        }
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// The same socket for all workers: for sockets that cannot be bound again.
pub(crate) fn share(socket: Listening, workers: usize) -> io::Result<Vec<Listening>> {
    let mut all = Vec::with_capacity(workers);
    for _ in 1..workers {
        all.push(match &socket {
            Listening::Tcp(listener) => Listening::Tcp(listener.try_clone()?),
            Listening::Unix(listener) => Listening::Unix(listener.try_clone()?),
        });
    }
    all.push(socket);
    Ok(all)
}

/// Where a connection that a firewall rule redirected wanted to go; `None` when it was not redirected.
pub(crate) fn original_destination(socket: &impl AsFd, local: SocketAddr) -> Option<SocketAddr> {
    let found = match local {
        SocketAddr::V4(_) => getsockopt(socket, sockopt::OriginalDst).ok().map(v4),
        // A dual-stack socket shows an IPv4 client as a mapped address, but the kernel keeps the IPv4 original.
        SocketAddr::V6(address) if address.ip().to_ipv4_mapped().is_some() => {
            getsockopt(socket, sockopt::OriginalDst).ok().map(v4)
        }
        SocketAddr::V6(_) => getsockopt(socket, sockopt::Ip6tOriginalDst).ok().map(|raw| {
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, 0))
        }),
    };
    found.filter(|found| *found != local)
}

fn v4(raw: nix::libc::sockaddr_in) -> SocketAddr {
    let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
    SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_noticed() {
        // An address of its own: on that of other tests somebody might take the port when it is let go.
        let any = ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 9], 0)));
        let first = listen(&any, 3, false).unwrap();
        let ports: Vec<u16> = first
            .iter()
            .map(|l| match l {
                Listening::Tcp(l) => l.local_addr().unwrap().port(),
                Listening::Unix(_) => 0,
            })
            .collect();
        assert!(ports.iter().all(|p| *p == ports[0] && *p != 0));
        let taken = ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 9], ports[0])));
        assert_eq!(listen(&taken, 1, false).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(listen(&taken, 1, false).is_ok());
    }

    #[test]
    fn both_families_on_one_port() {
        if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
            eprintln!("skipped: the kernel has no IPv6");
            return;
        }
        let free = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port();
        let at = |ip: std::net::IpAddr| ListenAddress::Tcp(SocketAddr::new(ip, free));
        let (v4, v6) = (at(Ipv4Addr::UNSPECIFIED.into()), at(Ipv6Addr::UNSPECIFIED.into()));
        let _first = listen(&v4, 2, false).unwrap();
        let _second = listen(&v6, 2, false).unwrap();
        assert_eq!(listen(&v6, 1, false).unwrap_err().kind(), io::ErrorKind::AddrInUse, "not taken twice");
        for ip in [std::net::IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            std::net::TcpStream::connect((ip, free)).unwrap();
        }
    }
}
