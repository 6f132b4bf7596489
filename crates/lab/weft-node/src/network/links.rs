//! Bridge, virtual cables, addresses and routes, through netlink.

use super::{DNS_SERVICE, GATEWAY, NetworkError, OUTSIDE_NETWORK, SERVICE_NETWORK};
use crate::sandbox::NetNs;
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;

/// The bridge's own address. Without one it takes the lowest of its ports', which changes whenever a pod is plugged in: pods
/// that know the old one would send into nowhere until they ask again, seconds later. Locally administered (bit 1).
const BRIDGE_MAC: [u8; 6] = [0x02, b'w', b'e', b'f', b't', 0];

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
}

impl Links {
    /// Sets up the lab's own network namespace: loopback, bridge, forwarding, the addresses of the lab's services. Must be
    /// called on a runtime whose threads live in that namespace.
    ///
    /// # Errors
    /// With the step that failed.
    pub async fn set_up() -> Result<Self, NetworkError> {
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
        Ok(Self { handle, bridge, namespace })
    }

    /// Connects a pod: a cable from its namespace to the bridge, its address (as `/32`, so that every packet passes the
    /// lab's routing and its rules), and a default route.
    ///
    /// # Errors
    /// With the step that failed.
    pub async fn connect(&self, pod: &NetNs, address: Ipv4Addr) -> Result<(), NetworkError> {
        let lab_end = lab_end_name(address);
        let lab = self.namespace.clone();
        let (inside, name) = (pod.clone(), lab_end.clone());
        let plugged = tokio::task::spawn_blocking(move || {
            inside.run(|| {
                // Netlink sockets belong to the namespace of the thread that opens them.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                Ok(runtime.block_on(plug_in(&lab, &name, address)))
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

async fn plug_in(lab: &NetNs, lab_end: &str, address: Ipv4Addr) -> Result<(), NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(io("open a netlink socket"))?;
    let connection = tokio::spawn(connection);
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
    connection.abort();
    Ok(())
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
    for (setting, value) in [
        ("ip_forward", "1"),
        ("conf/all/send_redirects", "0"),
        ("conf/default/send_redirects", "0"),
        ("conf/weft0/send_redirects", "0"),
        ("conf/all/rp_filter", "0"),
        ("conf/weft0/rp_filter", "0"),
    ] {
        let path = format!("/proc/sys/net/ipv4/{setting}");
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
