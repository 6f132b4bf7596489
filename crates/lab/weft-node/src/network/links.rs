//! Bridge, virtual cables, addresses and routes, through netlink.

use super::{DNS_SERVICE, GATEWAY, IPV6_LENGTH, NetworkError, OUTSIDE_NETWORK, SERVICE_NETWORK, beside};
use crate::sandbox::NetNs;
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;

/// The bridge's own address. Without one it takes the lowest of its ports', which changes whenever a pod is plugged in: pods
/// that know the old one would send into nowhere until they ask again, seconds later. Locally administered (bit 1).
const BRIDGE_MAC: [u8; 6] = [0x02, b'w', b'e', b'f', b't', 0];

/// The bridge's link-local address.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Name of the bridge.
pub const BRIDGE: &str = "weft0";
/// Name of a pod's interface.
const POD_LINK: &str = "eth0";

/// The lab's end of all cables.
#[derive(Debug, Clone)]
pub struct Links {
    handle: Handle,
    bridge: u32,
    namespace: NetNs,
    ipv6: bool,
}

impl Links {
    /// Sets up the lab's own network namespace: loopback, bridge, forwarding, the addresses of the lab's services. Must be
    /// called on a runtime whose threads live in that namespace. `ipv6`: of that family too.
    ///
    /// # Errors
    /// With the step that failed.
    pub async fn set_up(ipv6: bool) -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(io("open a netlink socket"))?;
        tokio::spawn(connection);
        let namespace = NetNs::current().map_err(io("open the network namespace"))?;
        set_up_link(&handle, "lo").await?;
        let bridge = LinkBridge::new(BRIDGE).address(BRIDGE_MAC.to_vec()).up().build();
        handle.link().add(bridge).execute().await.map_err(netlink("create the bridge"))?;
        let bridge = index(&handle, BRIDGE).await?;
        for (address, length) in [(GATEWAY, 16), (DNS_SERVICE, 32)] {
            let add = handle.address().add(bridge, address.into(), length).execute();
            add.await.map_err(netlink("give the bridge its addresses"))?;
        }
        // Packets to a cluster address without endpoints are routed here, where the rules refuse them aloud.
        for (network, step) in [
            (SERVICE_NETWORK, "add the route of cluster addresses"),
            (OUTSIDE_NETWORK, "add the route of hosts outside"),
        ] {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(network, 16)
                .scope(RouteScope::Link)
                .output_interface(bridge)
                .build();
            handle.route().add(route).execute().await.map_err(netlink(step))?;
        }
        forward_packets()?;
        if ipv6 {
            set_up_ipv6(&handle, bridge).await?;
        }
        Ok(Self { handle, bridge, namespace, ipv6 })
    }

    /// Connects a pod: a cable from its namespace to the bridge, its addresses (as `/32` and `/128`, so that every packet
    /// passes the lab's routing and its rules), and default routes.
    ///
    /// # Errors
    /// With the step that failed.
    pub async fn connect(&self, pod: &NetNs, address: Ipv4Addr) -> Result<(), NetworkError> {
        let lab_end = lab_end_name(address);
        let lab = self.namespace.clone();
        let (inside, name, ipv6) = (pod.clone(), lab_end.clone(), self.ipv6);
        let plugged = tokio::task::spawn_blocking(move || {
            inside.run(|| {
                // Netlink sockets belong to the namespace of the thread that opens them.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                Ok(runtime.block_on(plug_in(&lab, &name, address, ipv6)))
            })
        });
        plugged
            .await
            .map_err(|error| io("connect the pod")(std::io::Error::other(error)))?
            .map_err(io("enter the pod's network namespace"))??;
        let lab_index = index(&self.handle, &lab_end).await?;
        let attach = LinkUnspec::new_with_index(lab_index).controller(self.bridge).up().build();
        self.handle.link().set(attach).execute().await.map_err(netlink("attach the pod to the bridge"))
    }

    /// The addresses of a pod that has this one of IPv4.
    pub fn addresses(&self, address: Ipv4Addr) -> impl Iterator<Item = IpAddr> {
        super::all(address, self.ipv6)
    }

    /// Unplugs a pod: its address is reachable no more. Does nothing when the cable is gone already.
    pub async fn disconnect(&self, address: Ipv4Addr) {
        if let Ok(link) = index(&self.handle, &lab_end_name(address)).await {
            let _ = self.handle.link().del(link).execute().await;
        }
    }
}

/// Interface names have at most 15 characters; the address makes each its own.
fn lab_end_name(address: Ipv4Addr) -> String {
    format!("weft{:08x}", u32::from(address))
}

async fn plug_in(lab: &NetNs, lab_end: &str, address: Ipv4Addr, ipv6: bool) -> Result<(), NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(io("open a netlink socket"))?;
    let connection = tokio::spawn(connection);
    if ipv6 {
        // Before there is an interface: it takes these over.
        set("ipv6", &[("conf/all/accept_redirects", "0"), ("conf/default/accept_redirects", "0")])?;
    }
    set_up_link(&handle, "lo").await?;
    let far_end = LinkMessageBuilder::<LinkUnspec>::new().name(lab_end).setns_by_fd(lab.fd().as_raw_fd()).build();
    let cable = LinkVeth::new(POD_LINK, lab_end).set_info_data(InfoData::Veth(InfoVeth::Peer(far_end))).up().build();
    handle.link().add(cable).execute().await.map_err(netlink("create the pod's interface"))?;
    let link = index(&handle, POD_LINK).await?;
    handle.address().add(link, address.into(), 32).execute().await.map_err(netlink("give the pod its address"))?;
    let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(GATEWAY, 32)
        .scope(RouteScope::Link)
        .output_interface(link)
        .build();
    let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY).output_interface(link).build();
    for route in [to_gateway, default] {
        handle.route().add(route).execute().await.map_err(netlink("add the pod's routes"))?;
    }
    if ipv6 {
        plug_in_ipv6(&handle, link, beside(address)).await?;
    }
    connection.abort();
    Ok(())
}

/// The lab's own part of the second family. IPv6 has no switch by which a router keeps redirects to itself, as IPv4 has: the
/// pods are told not to heed them.
async fn set_up_ipv6(handle: &Handle, bridge: u32) -> Result<(), NetworkError> {
    set("ipv6", &[("conf/all/forwarding", "1")])?;
    // The kernel asks who has a pod's address from a link-local one, and its own waits for a second until it is sure of it.
    add_at_once(handle, bridge, ROUTER, 64).await?;
    add_at_once(handle, bridge, beside(GATEWAY), IPV6_LENGTH).await?;
    for network in [SERVICE_NETWORK, OUTSIDE_NETWORK] {
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(beside(network), IPV6_LENGTH)
            .output_interface(bridge)
            .build();
        handle.route().add(route).execute().await.map_err(netlink("add the routes of IPv6"))?;
    }
    Ok(())
}

async fn plug_in_ipv6(handle: &Handle, link: u32, address: Ipv6Addr) -> Result<(), NetworkError> {
    add_at_once(handle, link, address, 128).await?;
    let gateway = beside(GATEWAY);
    let to_gateway =
        RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(gateway, 128).output_interface(link).build();
    let default = RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).output_interface(link).build();
    for route in [to_gateway, default] {
        handle.route().add(route).execute().await.map_err(netlink("add the pod's routes of IPv6"))?;
    }
    Ok(())
}

/// Adds an address that can be used from now on: nobody else has it, which the kernel would take a second to find out.
async fn add_at_once(handle: &Handle, link: u32, address: Ipv6Addr, length: u8) -> Result<(), NetworkError> {
    let mut add = handle.address().add(link, IpAddr::V6(address), length);
    add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    add.execute().await.map_err(netlink(&format!("add the address {address}")))
}

async fn set_up_link(handle: &Handle, name: &str) -> Result<(), NetworkError> {
    let up = LinkUnspec::new_with_index(index(handle, name).await?).up().build();
    handle.link().set(up).execute().await.map_err(netlink(&format!("start interface {name}")))
}

async fn index(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    let mut links = handle.link().get().match_name(name.to_string()).execute();
    let link = links.try_next().await.map_err(netlink(&format!("find interface {name}")))?;
    link.map(|link| link.header.index)
        .ok_or_else(|| NetworkError::Netlink { step: format!("find interface {name}"), cause: "there is none".into() })
}

/// The lab routes between its pods. Redirects would teach pods to go around the rules, and a bridge that applies them itself
/// (a machine with Docker has that switched on) would do so before the packet is known to be routed.
fn forward_packets() -> Result<(), NetworkError> {
    for family in ["ip", "ip6"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
        if std::path::Path::new(&path).exists() {
            std::fs::write(&path, "0").map_err(io(&format!("set {path} to 0")))?;
        }
    }
    set(
        "ipv4",
        &[
            ("ip_forward", "1"),
            ("conf/all/send_redirects", "0"),
            ("conf/default/send_redirects", "0"),
            ("conf/weft0/send_redirects", "0"),
            ("conf/all/rp_filter", "0"),
            ("conf/weft0/rp_filter", "0"),
        ],
    )
}

/// Settings of this thread's network namespace.
fn set(family: &str, settings: &[(&str, &str)]) -> Result<(), NetworkError> {
    for (setting, value) in settings {
        let path = format!("/proc/sys/net/{family}/{setting}");
        std::fs::write(&path, value).map_err(io(&format!("set {path} to {value}")))?;
    }
    Ok(())
}

fn netlink(step: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let step = step.to_string();
    move |error| NetworkError::Netlink { step, cause: error.to_string() }
}

fn io(step: &str) -> impl FnOnce(std::io::Error) -> NetworkError {
    let step = step.to_string();
    move |cause| NetworkError::Io { step, cause }
}
