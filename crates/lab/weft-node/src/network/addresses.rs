//! Which address is whose: pods' in 10.244.0.0/16, services' in 10.96.0.0/16, hosts' of the outside in 198.18.0.0/16. Pure
//! bookkeeping.

use super::{API_SERVICE, DNS_SERVICE, GATEWAY, OUTSIDE_NETWORK, POD_NETWORK, SERVICE_NETWORK};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Addresses of one `/16`, given out in rising order so that one is not soon used again.
#[derive(Debug)]
pub struct AddressPool {
    network: u32,
    next: u16,
    taken: BTreeSet<u16>,
}

impl AddressPool {
    /// The pods' addresses.
    pub fn pods() -> Self {
        Self::new(POD_NETWORK, &[GATEWAY])
    }

    /// Addresses of hosts outside the cluster.
    pub fn outside() -> Self {
        Self::new(OUTSIDE_NETWORK, &[])
    }

    /// The services' addresses.
    pub fn services() -> Self {
        Self::new(SERVICE_NETWORK, &[API_SERVICE, DNS_SERVICE])
    }

    fn new(network: Ipv4Addr, reserved: &[Ipv4Addr]) -> Self {
        // The first and last address of the network are not used, by custom.
        let taken = [0, u16::MAX].into_iter().chain(reserved.iter().map(|a| low(*a))).collect();
        Self { network: u32::from(network), next: 2, taken }
    }

    /// Takes a free address; `None` when all are taken.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        let free = (self.next..=u16::MAX).chain(0..self.next).find(|n| !self.taken.contains(n))?;
        self.taken.insert(free);
        self.next = free.wrapping_add(1);
        Some(Ipv4Addr::from(self.network | u32::from(free)))
    }

    /// Takes this very address; false when it is another's or outside the network.
    pub fn take_this(&mut self, address: Ipv4Addr) -> bool {
        self.contains(address) && self.taken.insert(low(address))
    }

    /// Whether the address lies in the network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & 0xffff_0000 == self.network
    }

    /// Gives an address back.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        if self.contains(address) {
            self.taken.remove(&low(address));
        }
    }
}

fn low(address: Ipv4Addr) -> u16 {
    (u32::from(address) & 0xffff) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_each_once() {
        let mut pool = AddressPool::pods();
        let first = pool.take().unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 244, 0, 2));
        assert!(!pool.take_this(first) && !pool.take_this(GATEWAY) && !pool.take_this(Ipv4Addr::new(10, 245, 0, 9)));
        pool.give_back(first);
        assert_eq!(pool.take().unwrap(), Ipv4Addr::new(10, 244, 0, 3), "not used again at once");
        let mut count = 2;
        while pool.take().is_some() {
            count += 1;
        }
        // 65536 less network, broadcast and gateway; the one given back is found again at the end.
        assert_eq!(count, 65536 - 3 + 1);
    }
}
