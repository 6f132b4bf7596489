//! Ports for programs that a test starts and that must be told theirs. What listens in the test's own process binds port 0
//! instead.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where they are taken from: below those that Linux gives out by itself (from 32768, `ip_local_port_range`), so that no
/// connection and no listener of another test takes one between its choice and its use.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A port of 127.0.0.1 that nobody uses; each is given out once.
///
/// # Panics
/// When all are taken.
pub fn free_port() -> u16 {
    free_port_on(&[LOCALHOST])
}

/// The same, free on each of these addresses.
///
/// # Panics
/// When all are taken.
pub fn free_port_on(hosts: &[IpAddr]) -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes that test at the same time begin elsewhere.
    let begin = std::process::id().wrapping_mul(64);
    let port = (0..COUNT).find_map(|_| {
        let step = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + step).ok()?;
        hosts.iter().all(|host| TcpListener::bind((*host, port)).is_ok()).then_some(port)
    });
    port.unwrap_or_else(|| panic!("no port from {FIRST} to {} is free on {hosts:?}", FIRST + COUNT - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_given_out_once_and_none_that_is_taken() {
        let ports: std::collections::BTreeSet<u16> = (0..100).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 100);
        let other = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
        let held: Vec<TcpListener> = (0..4).filter_map(|_| TcpListener::bind((other, free_port())).ok()).collect();
        let taken: Vec<u16> = held.iter().filter_map(|one| Some(one.local_addr().ok()?.port())).collect();
        assert_eq!(taken.len(), 4);
        for _ in 0..COUNT {
            let port = free_port_on(&[LOCALHOST, other]);
            assert!(!taken.contains(&port), "{port} is taken");
        }
    }
}
