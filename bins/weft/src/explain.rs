//! What becomes of one request: the listener, filter chain, route and clusters that the caller's own proxy would use, and what
//! the proxy at the other end says to it, with the object that decided each step. Worked out from the objects by the code of
//! the control plane and of the proxy, as `authz` does it; nothing is sent.
//!
//! Reading order: this file (the steps), [`request`] (what a user types), [`show`] (a story as text and as JSON),
//! [`stand_in`] (workloads for files that have none), [`describe`] (what concerns a pod or a service).

pub mod describe;
pub mod request;
pub mod show;
pub mod stand_in;
#[cfg(test)]
pub(crate) mod tests;

use crate::authz::decide::{Answer, Ask, Verdict, decide};
use crate::authz::{Caller, Destination, SOMEWHERE, World, all_listeners, apply, is_gateway};
use crate::dump;
use anyhow::Context;
use http::StatusCode;
use request::Request;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use weft_core::Strng;
use weft_core::names::ClusterName;
use weft_model::{Service, Workload};
use weft_proto::envoy::config::cluster::v3::Cluster as ClusterMessage;
use weft_proto::type_url;
use weft_proxy_config::{
    Cluster, ConfigBuilder, ConnectionFacts, Discovery, EndpointAddress, FilterChain, HttpConnectionManager,
    ListenAddress, Listener, ProxySnapshot, RouteSource, TcpCluster, Terminal, TrafficDirection, Transport,
};
use weft_route::normalize::{HostNormalization, host as normal_host, path as normal_path};
use weft_route::rewrite::{location, rewrite_host, rewrite_path};
use weft_route::{Action, ClusterChoice, Fault, FaultAbort, Forward, RequestView, Route, RouteTable, Routed};

/// Port that callers are given.
const SOURCE_PORT: u16 = 40_000;
/// Address of hosts of which none is known (RFC 5737).
const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Story {
    /// Who calls.
    pub caller: String,
    /// The listener of the caller's proxy that takes the connection; empty when the caller has no proxy.
    pub listener: String,
    /// What the gateway itself says to it, where the caller is one.
    pub gate: Option<Answer>,
    /// Name of the virtual host; empty when none is asked.
    pub virtual_host: String,
    /// Name of the route, and the object and place that it was made from.
    pub route: Option<RouteName>,
    /// What the route does besides: time limits, retries, rewrites, faults, mirrors.
    pub notes: Vec<String>,
    /// Where it ends.
    pub end: End,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteName {
    /// Its name in the configuration.
    pub name: String,
    /// `KIND NAMESPACE/NAME PATH`; empty for routes that come with a service.
    pub origin: String,
}

/// Where a request ends.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// At one of these clusters.
    Forwarded(Vec<Target>),
    /// The proxy answers by itself: status, and why or what.
    Answered(u16, String),
    /// The connection is closed.
    Closed(String),
}

/// A cluster that a request may go to.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Its name.
    pub cluster: String,
    /// Host of the service.
    pub host: String,
    /// Subset; empty without one.
    pub subset: String,
    /// Share of such requests, in percent.
    pub share: f64,
    /// The destination rule that shaped it, `NAME.NAMESPACE`.
    pub rule: Option<String>,
    /// It goes to the address that was called, whatever that is.
    pub as_called: bool,
    /// Workloads behind it, `NAMESPACE/NAME`, or addresses of what is no workload, each with the number of endpoints.
    pub endpoints: BTreeMap<String, usize>,
    /// What the proxies of these workloads say; nothing where none has one.
    pub answers: BTreeMap<String, Answer>,
}

impl Story {
    /// The request reaches an application: nobody refuses it or answers in its place.
    pub fn arrives(&self) -> bool {
        let refused = |answer: &Answer| answer.verdict == Verdict::Denied;
        match &self.end {
            End::Forwarded(targets) => {
                !self.gate.as_ref().is_some_and(refused)
                    && targets.iter().all(|t| !t.is_empty() && !t.answers.values().any(refused))
            }
            End::Answered(..) | End::Closed(_) => false,
        }
    }
}

impl Target {
    /// Nobody is behind it.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && !self.as_called
    }
}

/// The configuration of the caller's proxy, and what makes up its clusters.
struct Proxy {
    snapshot: Arc<ProxySnapshot>,
    listeners: Vec<Arc<Listener>>,
    clusters: BTreeMap<String, ClusterMessage>,
}

/// What becomes of `request` when `caller` makes it.
///
/// # Errors
/// When the caller's configuration cannot be made, or the request is none.
pub fn explain(world: &World, caller: &Caller, request: &Request) -> anyhow::Result<Story> {
    let Some(workload) = caller.workload.clone().filter(|w| w.in_mesh || is_gateway(w)) else {
        return without_proxy(world, caller, request);
    };
    let proxy = proxy(world, &workload)?;
    let mut story = Story {
        caller: caller.name.clone(),
        listener: String::new(),
        gate: None,
        virtual_host: String::new(),
        route: None,
        notes: Vec::new(),
        end: End::Closed(String::new()),
    };
    let is_name = request.host.parse::<IpAddr>().is_err();
    if is_name && !is_gateway(&workload) && world.service(&request.host, &workload.namespace).is_none() {
        story.notes.push(format!("no service of the mesh is called {}", request.host));
    }
    let (dialled, source) = match is_gateway(&workload) {
        true => (at_gateway(world, &workload, request)?, SocketAddr::new(SOMEWHERE, SOURCE_PORT)),
        false => (dialled(world, &workload.namespace, request), SocketAddr::new(caller.address, SOURCE_PORT)),
    };
    let Some(listener) = listener_for(&proxy.listeners, dialled) else {
        let why = match is_gateway(&workload) {
            true => format!("no Gateway has {} listen on port {}", caller.name, request.port),
            false => "the proxy has no outbound listener".to_string(),
        };
        story.end = End::Closed(why);
        return Ok(story);
    };
    story.listener = listener.name.to_string();
    let Some(chain) = chain_for(listener, dialled, source, request) else {
        story.end = End::Closed(format!("NR filter_chain_not_found: the listener has nothing for {}", request.host));
        return Ok(story);
    };
    if is_gateway(&workload) {
        story.gate = gate(world, &workload, dialled.port(), request)?;
    }
    match &chain.terminal {
        Terminal::Http(manager) => through_http(world, caller, request, &proxy, manager, &mut story)?,
        Terminal::Tcp(tcp) => {
            let shares = match &tcp.cluster {
                TcpCluster::One(name) => vec![(name.clone(), 100.0)],
                TcpCluster::Weighted(all, total) => {
                    all.iter().map(|(name, weight)| (name.clone(), percent(*weight, *total))).collect()
                }
            };
            story.notes.push("as bytes: what is in them no route sees".into());
            story.end = forwarded(world, caller, &proxy, &shares, &request.ask(), false)?;
        }
    }
    Ok(story)
}

/// A caller without a proxy speaks to the service as it is.
fn without_proxy(world: &World, caller: &Caller, request: &Request) -> anyhow::Result<Story> {
    let destination = world.destination(&request.host, &request.namespace, Some(request.port))?;
    let all = match world.service(&request.host, &request.namespace) {
        Some(service) => world.behind(&service, destination.port),
        None => {
            let name = format!("{}/{}", destination.workload.namespace, destination.workload.workload_name);
            vec![(name, Some(destination.clone()))]
        }
    };
    let mut target = Target {
        cluster: String::new(),
        host: destination.host.clone(),
        subset: String::new(),
        share: 100.0,
        rule: None,
        as_called: false,
        endpoints: BTreeMap::new(),
        answers: BTreeMap::new(),
    };
    for (name, there) in all {
        *target.endpoints.entry(name.clone()).or_default() += 1;
        if let Some(there) = there.filter(|there| guarded(&there.workload))
            && !target.answers.contains_key(&name)
        {
            target.answers.insert(name, decide(world, caller, &there, &request.ask())?);
        }
    }
    Ok(Story {
        caller: caller.name.clone(),
        listener: String::new(),
        gate: None,
        virtual_host: String::new(),
        route: None,
        notes: vec!["the caller has no proxy: no route is asked, any endpoint may be chosen".into()],
        end: End::Forwarded(vec![target]),
    })
}

fn proxy(world: &World, workload: &Workload) -> anyhow::Result<Proxy> {
    let resources = world.resources(workload)?;
    let mut builder = ConfigBuilder::default();
    for (url, map) in [
        (type_url::CLUSTER, &resources.clusters),
        (type_url::ENDPOINT, &resources.endpoints),
        (type_url::LISTENER, &resources.listeners),
        (type_url::ROUTE, &resources.routes),
        (type_url::VIRTUAL_HOST, &resources.virtual_hosts),
    ] {
        apply(&mut builder, url, map)?;
    }
    let unpacked = |r: &Arc<weft_xds_gen::Resource>| Ok((r.name.to_string(), weft_proto::unpack(&r.any)?));
    let clusters = resources.clusters.iter().map(unpacked).collect::<anyhow::Result<_>>()?;
    Ok(Proxy { snapshot: builder.snapshot(), listeners: all_listeners(&builder), clusters })
}

/// The address that the application's connection goes to: the service's own, one of its endpoints' where it has none.
fn dialled(world: &World, namespace: &str, request: &Request) -> SocketAddr {
    if let Ok(address) = request.host.parse::<IpAddr>() {
        return SocketAddr::new(address, request.port);
    }
    let service = world.service(&request.host, namespace);
    let address = service.and_then(|service| address_of(world, &service, request.port)).unwrap_or(ELSEWHERE);
    SocketAddr::new(address, request.port)
}

fn address_of(world: &World, service: &Service, port: u16) -> Option<IpAddr> {
    let own = service.addresses.first().map(|net| net.addr());
    let endpoint = || {
        let all = world.snapshot.endpoints_of(service, port)?;
        all.iter().find_map(|endpoint| match endpoint.address {
            weft_model::EndpointAddress::Ip(ip, _) => Some(ip),
            _ => None,
        })
    };
    own.or_else(|| service.auto_addresses.first().copied()).or_else(endpoint)
}

/// The address at which a gateway hears what comes to a port of its service.
fn at_gateway(world: &World, workload: &Workload, request: &Request) -> anyhow::Result<SocketAddr> {
    let instances = world.snapshot.service_instances(workload);
    let port = instances.iter().find(|i| i.port.number == request.port).map_or(request.port, |i| i.target_port);
    let address = workload.addresses.first().copied().context("the gateway has no address")?;
    Ok(SocketAddr::new(address, port))
}

/// The listener for an address: that of the address, else of its port, else what takes everything that is redirected.
fn listener_for(listeners: &[Arc<Listener>], address: SocketAddr) -> Option<&Arc<Listener>> {
    let any = match address.ip() {
        IpAddr::V4(_) => IpAddr::from([0_u8; 4]),
        IpAddr::V6(_) => IpAddr::from([0_u16; 8]),
    };
    let outwards = || listeners.iter().filter(|l| l.direction != TrafficDirection::Inbound);
    let at =
        |ip| outwards().find(move |l| l.addresses.contains(&ListenAddress::Tcp(SocketAddr::new(ip, address.port()))));
    at(address.ip()).or_else(|| at(any)).or_else(|| outwards().find(|l| l.use_original_dst))
}

fn chain_for<'l>(
    listener: &'l Listener,
    destination: SocketAddr,
    source: SocketAddr,
    request: &Request,
) -> Option<&'l Arc<FilterChain>> {
    let protocols: Vec<Strng> = match request.tls {
        true => ["h2", "http/1.1"].map(Into::into).to_vec(),
        false => vec!["http/1.1".into()],
    };
    listener.find_chain(&ConnectionFacts {
        destination,
        source,
        server_name: request.tls.then_some(request.host.as_str()),
        transport: if request.tls { Transport::Tls } else { Transport::RawBuffer },
        application_protocols: &protocols,
        direct_source: source.ip(),
    })
}

/// What a gateway's own policies say to a stranger.
fn gate(world: &World, workload: &Arc<Workload>, port: u16, request: &Request) -> anyhow::Result<Option<Answer>> {
    let stranger = Caller { name: "a client".into(), identity: None, address: SOMEWHERE, workload: None };
    let name = format!("{}/{}", workload.namespace, workload.workload_name);
    let gateway = Destination {
        name,
        workload: workload.clone(),
        host: request.host.clone(),
        subset: String::new(),
        port: request.port,
        target_port: port,
        is_http: true,
    };
    decide(world, &stranger, &gateway, &request.ask()).map(Some)
}

fn through_http(
    world: &World,
    caller: &Caller,
    request: &Request,
    proxy: &Proxy,
    manager: &HttpConnectionManager,
    story: &mut Story,
) -> anyhow::Result<()> {
    let table = match &manager.routes {
        RouteSource::Inline(table) => Some(table),
        RouteSource::Rds(name) => proxy.snapshot.routes.get(name),
    };
    let Some(table) = table else {
        story.end = End::Answered(404, "NR route_not_found: the listener's routes are not there".into());
        return Ok(());
    };
    let strip = HostNormalization { strip_port: manager.strip_port, strip_trailing_dot: manager.strip_trailing_dot };
    let authority = normal_host(&request.authority, strip).into_owned();
    let path = match normal_path(&request.path, &manager.normalize) {
        Ok(path) => path,
        Err(error) => {
            story.end = End::Answered(400, error.to_string());
            return Ok(());
        }
    };
    let view = RequestView {
        method: &request.method,
        authority: &authority,
        path: path.path(),
        query: path.query(),
        scheme: if request.tls { "https" } else { "http" },
        headers: &request.headers,
        metadata: &[],
    };
    routed(world, caller, request, proxy, table, &view, story)
}

fn routed(
    world: &World,
    caller: &Caller,
    request: &Request,
    proxy: &Proxy,
    table: &RouteTable,
    view: &RequestView<'_>,
    story: &mut Story,
) -> anyhow::Result<()> {
    let (host, route) = match table.find(view, 0) {
        Routed::Route(host, route) => (host, route),
        Routed::NoRoute(host) => {
            story.virtual_host = host.name.to_string();
            story.end = End::Answered(404, format!("NR route_not_found: no route of this host matches {}", view.path));
            return Ok(());
        }
        Routed::NoHost => {
            let why = format!("NR route_not_found: {} has no virtual host for {}", table.name, view.authority);
            story.end = End::Answered(404, why);
            return Ok(());
        }
    };
    story.virtual_host = host.name.to_string();
    let origin = route.origin.as_ref().map(ToString::to_string).unwrap_or_default();
    story.route = Some(RouteName { name: route.name.to_string(), origin });
    if host.require_tls && !request.tls {
        story.end = End::Answered(301, format!("redirect to https://{}{}", view.authority, view.path));
        return Ok(());
    }
    let fault = fault(route, view);
    story.notes.extend(fault.iter().flat_map(|fault| faults(fault)));
    if let Some(end) = fault.and_then(aborted) {
        story.end = end;
        return Ok(());
    }
    story.end = match &route.action {
        Action::Redirect(redirect) => {
            End::Answered(redirect.status.as_u16(), format!("redirect to {}", location(redirect, &route.matcher, view)))
        }
        Action::Direct(direct) => End::Answered(direct.status.as_u16(), words(direct.status, &direct.body)),
        Action::Unusable(why) => End::Answered(500, format!("route_unusable: {why}")),
        Action::Forward(forward) => {
            story.notes.extend(notes(forward));
            let mut ask = request.ask();
            if let Some(path) = rewrite_path(&forward.path_rewrite, &route.matcher, view.path, view.query) {
                story.notes.push(format!("path becomes {path}"));
                ask.path = path;
            }
            if let Some(host) = rewrite_host(&forward.host_rewrite, view.headers, view.path) {
                ask.host = String::from_utf8_lossy(host.as_bytes()).into_owned();
                story.notes.push(format!("host becomes {}", ask.host));
            }
            forwarded(world, caller, proxy, &shares(forward, view), &ask, true)?
        }
    };
    Ok(())
}

fn words(status: StatusCode, body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body).chars().take(80).collect();
    if text.is_empty() { status.canonical_reason().unwrap_or_default().to_string() } else { text }
}

/// What the route injects into such a request.
fn fault<'r>(route: &'r Route, view: &RequestView<'_>) -> Option<&'r Fault> {
    route.filters.fault.as_deref().filter(|fault| is_for(fault, view))
}

fn is_for(fault: &Fault, view: &RequestView<'_>) -> bool {
    fault.headers.iter().all(|header| header.matches(view))
}

/// A share of requests of which none is left.
const ALL: u32 = 1_000_000;

fn faults(fault: &Fault) -> Vec<String> {
    let share = |parts: u32| format!("{} %", f64::from(parts) / 10_000.0);
    let only = fault.upstream_cluster.as_ref().map(|cluster| format!(" of those to {cluster}")).unwrap_or_default();
    let delay = fault.delay.map(|(delay, parts)| format!("fault: delay of {delay:?} for {}{only}", share(parts)));
    let abort = fault.abort.as_ref().map(|(abort, parts)| match abort {
        FaultAbort::Http(status) => format!("fault: {} for {}{only}", status.as_u16(), share(*parts)),
        FaultAbort::Grpc(status) => format!("fault: gRPC status {status} for {}{only}", share(*parts)),
    });
    delay.into_iter().chain(abort).collect()
}

/// The answer of a fault that no request gets past.
fn aborted(fault: &Fault) -> Option<End> {
    let (abort, _) = fault.abort.as_ref().filter(|(_, parts)| *parts >= ALL)?;
    match abort {
        _ if fault.upstream_cluster.is_some() => None,
        FaultAbort::Http(status) => Some(End::Answered(status.as_u16(), "FI fault_filter_abort".into())),
        FaultAbort::Grpc(status) => Some(End::Answered(200, format!("FI fault_filter_abort: gRPC status {status}"))),
    }
}

fn notes(forward: &Forward) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(limit) = forward.timeout.filter(|limit| !limit.is_zero()) {
        notes.push(format!("timeout {limit:?}"));
    }
    if let Some(retry) = forward.retry.as_ref().filter(|retry| retry.attempts > 0) {
        let each = retry.per_try_timeout.map(|limit| format!(", {limit:?} each")).unwrap_or_default();
        notes.push(format!("up to {} retries{each}", retry.attempts));
    }
    for mirror in &forward.mirrors {
        notes.push(format!("mirrored to {} ({} %)", mirror.cluster, f64::from(mirror.fraction) / 10_000.0));
    }
    notes
}

/// Names of clusters, and their shares in percent.
fn shares(forward: &Forward, view: &RequestView<'_>) -> Vec<(Strng, f64)> {
    match &forward.cluster {
        ClusterChoice::One(name) => vec![(name.clone(), 100.0)],
        ClusterChoice::Weighted(all) => {
            let used = all.clusters.iter().filter(|cluster| cluster.weight > 0);
            used.map(|cluster| (cluster.name.clone(), percent(cluster.weight, all.total))).collect()
        }
        ClusterChoice::Header(header) => {
            let named = view.headers.get(header).and_then(|value| value.to_str().ok());
            vec![(named.unwrap_or_default().into(), 100.0)]
        }
    }
}

fn percent(weight: u32, total: u32) -> f64 {
    f64::from(weight) * 100.0 / f64::from(total.max(1))
}

fn forwarded(
    world: &World,
    caller: &Caller,
    proxy: &Proxy,
    shares: &[(Strng, f64)],
    ask: &Ask,
    is_http: bool,
) -> anyhow::Result<End> {
    let mut targets = Vec::new();
    for (name, share) in shares {
        let Some(cluster) = proxy.snapshot.clusters.get(name) else {
            return Ok(End::Answered(503, format!("NC cluster_not_found: there is no cluster {name}")));
        };
        if **name == *"BlackHoleCluster" {
            return Ok(End::Answered(502, "BlackHoleCluster: the mesh sends nothing to hosts it does not know".into()));
        }
        targets.push(target(world, caller, proxy, cluster, *share, ask, is_http)?);
    }
    Ok(End::Forwarded(targets))
}

fn target(
    world: &World,
    caller: &Caller,
    proxy: &Proxy,
    cluster: &Cluster,
    share: f64,
    ask: &Ask,
    is_http: bool,
) -> anyhow::Result<Target> {
    let name = ClusterName::parse(&cluster.name);
    let (host, subset, port) =
        name.map_or_else(Default::default, |n| (n.host.to_string(), n.subset.to_string(), n.port));
    let rule =
        proxy.clusters.get(&*cluster.name).map(|message| weft_proto::json::to_json(message, true)).transpose()?;
    let mut target = Target {
        cluster: cluster.name.to_string(),
        host: host.clone(),
        subset,
        share,
        rule: rule.and_then(|json| dump::origin(&json, "DestinationRule")),
        as_called: matches!(cluster.discovery, Discovery::OriginalDst(_) | Discovery::DynamicForward(_)),
        endpoints: BTreeMap::new(),
        answers: BTreeMap::new(),
    };
    for address in addresses(&proxy.snapshot, cluster) {
        let EndpointAddress::Ip(at) = &address else {
            *target.endpoints.entry(spelled(&address)).or_default() += 1;
            continue;
        };
        let Some(workload) = world.snapshot.workloads.get(&at.ip()) else {
            *target.endpoints.entry(at.to_string()).or_default() += 1;
            continue;
        };
        let owner = format!("{}/{}", workload.namespace, workload.workload_name);
        *target.endpoints.entry(owner.clone()).or_default() += 1;
        if guarded(workload) && !target.answers.contains_key(&owner) {
            let there = Destination {
                name: owner.clone(),
                workload: workload.clone(),
                host: host.clone(),
                subset: target.subset.clone(),
                port,
                target_port: at.port(),
                is_http,
            };
            target.answers.insert(owner, decide(world, caller, &there, ask)?);
        }
    }
    Ok(target)
}

fn guarded(workload: &Workload) -> bool {
    workload.in_mesh || is_gateway(workload)
}

fn addresses(snapshot: &ProxySnapshot, cluster: &Cluster) -> Vec<EndpointAddress> {
    let set = match &cluster.discovery {
        Discovery::Static(set) | Discovery::StrictDns(set, _) | Discovery::LogicalDns(set, _) => Some(set),
        Discovery::Eds(name) => snapshot.endpoints.get(name),
        Discovery::OriginalDst(_) | Discovery::DynamicForward(_) => None,
    };
    let localities = set.into_iter().flat_map(|set| &set.localities);
    localities.flat_map(|locality| &locality.endpoints).map(|endpoint| endpoint.address.clone()).collect()
}

fn spelled(address: &EndpointAddress) -> String {
    match address {
        EndpointAddress::Ip(at) => at.to_string(),
        EndpointAddress::Name(name, port) => format!("{name}:{port}"),
        EndpointAddress::Unix(path) => format!("unix:{path}"),
    }
}
