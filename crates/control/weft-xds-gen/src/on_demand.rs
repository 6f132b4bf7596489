//! What a proxy gets that takes only what it asks for: of all that was made for it, the part that its questions lead to. A
//! proxy asks for an address that a connection was for (`tcp/IP:PORT`), or for a host that a request was for, in a route
//! configuration (`http/ROUTE/HOST`), or for a name that its workload looks up (`dns/NAME`). What is named by what it gets comes with it: routes, clusters, endpoints.
//!
//! The answer may hold more than the proxy needs, never less: the proxy itself decides by the rules that hold for
//! everybody, and with every candidate at hand it decides the same.

mod index;

pub(crate) use index::{Hosts, Names};

use crate::name_table;
use crate::pb::address::{host_port, is_host};
use crate::pb::route::VirtualHost;
use crate::resource::{ProxyResources, Resource, ResourceMap, Resources};
use crate::scope::View;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use weft_core::{Strng, names};
use weft_proto::istio::networking::nds::v1::NameTable;
use weft_proto::weft::v1::Demand;

/// Levels of messages inside messages that names are looked for in. Generated messages have about twenty.
const DEPTH: u32 = 40;
/// Longest name of a resource that another may refer to, in bytes.
const MAX_REFERENCE: usize = 1024;
/// Longest host that is looked for: DNS knows no longer ones (RFC 1035 §2.3.4).
const MAX_HOST: usize = 253;

/// How to find what a proxy asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Directory {
    /// Hosts of services by address.
    pub(crate) addresses: Arc<Addresses>,
    /// Hosts that there are virtual hosts for.
    pub(crate) hosts: Arc<Hosts>,
    /// Names that may be looked up; `None` when the proxy does not answer them.
    pub(crate) names: Option<Arc<Names>>,
    /// What the proxy has in any case.
    pub(crate) standing: Arc<Standing>,
    /// `<namespace>.svc.<domain>` of the proxy.
    pub(crate) dns_domain: String,
}

/// Hosts of services by address.
pub(crate) type Addresses = BTreeMap<IpAddr, Vec<Strng>>;

/// Names of resources that the proxy has in any case: those made for it alone, and those that open sockets.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Standing {
    pub listeners: BTreeSet<Strng>,
    pub clusters: BTreeSet<Strng>,
    pub routes: BTreeSet<Strng>,
    pub virtual_hosts: BTreeSet<Strng>,
}

/// Addresses of the services of a scope.
pub(crate) fn addresses(view: View<'_>) -> Addresses {
    let mut all = Addresses::new();
    for service in view.scope.services() {
        let own = service.addresses.iter().filter(|net| is_host(net)).map(ipnet::IpNet::addr);
        for ip in own.chain(service.auto_addresses.iter().copied()) {
            all.entry(ip).or_default().push(service.host.clone());
        }
    }
    all
}

impl Standing {
    /// Adds what patches added to `before`, and the virtual hosts whose domains they changed: neither is found by name.
    pub fn add_patched(&mut self, before: &ProxyResources, after: &ProxyResources) {
        let added = |before: &ResourceMap, after: &ResourceMap| -> Vec<Strng> {
            after.iter().filter(|r| before.get(&r.name).is_none()).map(|r| r.name.clone()).collect()
        };
        self.listeners.extend(added(&before.listeners, &after.listeners));
        self.clusters.extend(added(&before.clusters, &after.clusters));
        self.routes.extend(added(&before.routes, &after.routes));
        self.virtual_hosts.extend(added(&before.virtual_hosts, &after.virtual_hosts));
        for now in after.virtual_hosts.iter() {
            let Some(was) = before.virtual_hosts.get(&now.name).filter(|was| was.hash != now.hash) else { continue };
            if domains(was) != domains(now) {
                self.virtual_hosts.insert(now.name.clone());
            }
        }
    }
}

fn domains(host: &Resource) -> Vec<String> {
    weft_proto::unpack::<VirtualHost>(&host.any).map(|host| host.domains).unwrap_or_default()
}

/// What a proxy asks for.
#[derive(Debug, PartialEq)]
enum Ask<'a> {
    Host { route: &'a str, port: u16, host: &'a str },
    Address(SocketAddr),
    Name(&'a str),
}

impl<'a> Ask<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        if let Some(address) = name.strip_prefix("tcp/") {
            return address.parse().ok().map(Ask::Address);
        }
        if let Some(name) = name.strip_prefix("dns/") {
            return (!name.is_empty() && name.len() <= MAX_HOST).then_some(Ask::Name(name));
        }
        let (route, host) = name.strip_prefix("http/")?.split_once('/')?;
        let port = route.parse().ok()?;
        let host = host.strip_suffix('.').unwrap_or(host).trim_matches(['[', ']']);
        (!host.is_empty() && host.len() <= MAX_HOST).then_some(Ask::Host { route, port, host })
    }
}

/// What one stream asked for, and the part of everything that this led to. Kept with the stream: as long as everything is
/// the same, a further question costs the look for its own answer, and one pass over the names of the questions and of the kinds
/// of resources that it adds to; what it adds nothing to is handed out as it was, the packed table of names too.
#[derive(Debug, Default)]
pub struct Selection {
    full: Option<Arc<ProxyResources>>,
    answers: Arc<Resources>,
    picked: Picked,
    /// Counts questions looked into.
    answered: u64,
}

impl Selection {
    /// The part of `full` that the proxy has in any case or asked for, and an answer to each question that is one. `None` when
    /// the proxy is one that is given everything.
    pub fn select<'a>(
        &mut self,
        full: &Arc<ProxyResources>,
        asked: impl IntoIterator<Item = &'a str>,
    ) -> Option<(ProxyResources, ResourceMap)> {
        let Some(directory) = full.directory.as_ref() else {
            *self = Self::default();
            return None;
        };
        let asked: BTreeSet<&str> = asked.into_iter().collect();
        let is_same = self.full.as_ref().is_some_and(|known| Arc::ptr_eq(known, full));
        let goes_on = is_same && self.answers.keys().all(|name| asked.contains(&**name));
        if !goes_on {
            *self = Self { full: Some(full.clone()), answered: self.answered, ..Self::default() };
        }
        let mut picking = Picking { full, directory, out: std::mem::take(&mut self.picked) };
        if !goes_on {
            picking.standing();
        }
        for name in asked {
            let Some(ask) = Ask::parse(name).filter(|_| !self.answers.contains_key(name)) else { continue };
            let answer = picking.answer(&ask);
            self.answered += 1;
            Arc::make_mut(&mut self.answers).insert(name.into(), Resource::new(name, &answer));
        }
        self.picked = picking.out;
        let Picked { listeners, routes, virtual_hosts, clusters, endpoints, names, packed } = &mut self.picked;
        let own = |resources: &Arc<Resources>| ResourceMap::new(NOTHING.clone(), resources.clone());
        let part = ProxyResources {
            listeners: own(listeners),
            routes: own(routes),
            virtual_hosts: own(virtual_hosts),
            clusters: own(clusters),
            endpoints: own(endpoints),
            name_table: directory
                .names
                .is_some()
                .then(|| packed.get_or_insert_with(|| name_table::packed(names)).clone()),
            ..(**full).clone()
        };
        Some((part, own(&self.answers)))
    }

    /// Questions that were looked into since the stream began, those anew that everything was new for included.
    pub fn answered(&self) -> u64 {
        self.answered
    }
}

/// The shared part of all selections: one and the same, so that it is known to be at a glance.
static NOTHING: LazyLock<Arc<Resources>> = LazyLock::new(Arc::default);

/// The part while something is added.
struct Picking<'a> {
    full: &'a ProxyResources,
    directory: &'a Directory,
    out: Picked,
}

/// The maps are shared with what was handed out: one that is added to is copied first.
#[derive(Debug, Default)]
struct Picked {
    listeners: Arc<Resources>,
    routes: Arc<Resources>,
    virtual_hosts: Arc<Resources>,
    clusters: Arc<Resources>,
    endpoints: Arc<Resources>,
    names: NameTable,
    /// `names`, packed; `None` since something was added to them.
    packed: Option<Arc<Resource>>,
}

/// Adds a resource; false when it was there already.
fn add(to: &mut Arc<Resources>, resource: &Arc<Resource>) -> bool {
    let new = !to.contains_key(&resource.name);
    if new {
        Arc::make_mut(to).insert(resource.name.clone(), resource.clone());
    }
    new
}

impl Picking<'_> {
    /// What the proxy has in any case.
    fn standing(&mut self) {
        let standing = &*self.directory.standing;
        standing.clusters.iter().for_each(|name| self.cluster(name));
        for name in &standing.listeners {
            self.listener(name);
        }
        standing.routes.iter().for_each(|name| self.route(name));
        for name in &standing.virtual_hosts {
            self.virtual_host(name);
        }
    }

    fn answer(&mut self, ask: &Ask<'_>) -> Demand {
        match ask {
            Ask::Host { route, port, host } => {
                self.route(route);
                let found = candidates(self.directory, route, *port, host);
                let virtual_hosts = found.into_iter().filter(|name| self.virtual_host(name)).collect();
                Demand { virtual_hosts, ..Demand::default() }
            }
            Ask::Address(address) => {
                let (ip, port) = (address.ip().to_canonical(), address.port());
                let named = [format!("{ip}_{port}"), format!("0.0.0.0_{port}"), format!("::_{port}")];
                let listeners = named.into_iter().filter(|name| self.listener(name)).collect();
                // Requests on such a connection are as a rule for the service that has the address.
                let hosts = self.directory.addresses.get(&ip).into_iter().flatten();
                let found = hosts.map(|host| format!("{port}/{}", host_port(host, port)));
                let virtual_hosts = found.filter(|name| self.virtual_host(name)).collect();
                Demand { listeners, virtual_hosts, ..Demand::default() }
            }
            Ask::Name(name) => Demand { names: self.names(name), ..Demand::default() },
        }
    }

    fn names(&mut self, name: &str) -> Vec<String> {
        let Some(known) = &self.directory.names else { return Vec::new() };
        let found = known.of(&self.directory.dns_domain, name);
        let new = found.iter().filter(|name| !self.out.names.table.contains_key(*name));
        let entries: Vec<_> =
            new.filter_map(|name| Some((name.clone(), known.table.table.get(name)?.clone()))).collect();
        if !entries.is_empty() {
            self.out.names.table.extend(entries);
            self.out.packed = None;
        }
        found.into_iter().collect()
    }

    fn listener(&mut self, name: &str) -> bool {
        let Some(listener) = self.full.listeners.get(name) else { return false };
        if add(&mut self.out.listeners, listener) {
            for name in references(listener) {
                self.route(name);
                self.cluster(name);
            }
        }
        true
    }

    fn route(&mut self, name: &str) {
        let Some(route) = self.full.routes.get(name) else { return };
        if !add(&mut self.out.routes, route) {
            return;
        }
        references(route).into_iter().for_each(|name| self.cluster(name));
        // Hosts of any name; without one at least the table would never be complete.
        for any in [names::ALLOW_ANY_VIRTUAL_HOST, names::BLOCK_ALL_VIRTUAL_HOST] {
            self.virtual_host(&format!("{name}/{any}"));
        }
        if name.parse::<u16>().is_ok() {
            self.virtual_host(&format!("{name}/*:{name}"));
            return;
        }
        // The routes of a single service: the host of a request does not matter.
        if let Some((_, port)) = name.rsplit_once(':') {
            let (service, _) = name.split_at(name.len() - port.len() - 1);
            let port = port.parse().unwrap_or_default();
            self.virtual_host(&format!("{name}/{}", host_port(service, port)));
        }
    }

    fn virtual_host(&mut self, name: &str) -> bool {
        let Some(host) = self.full.virtual_hosts.get(name) else { return false };
        if add(&mut self.out.virtual_hosts, host) {
            references(host).into_iter().for_each(|name| self.cluster(name));
        }
        true
    }

    fn cluster(&mut self, name: &str) {
        let Some(cluster) = self.full.clusters.get(name) else { return };
        if !add(&mut self.out.clusters, cluster) {
            return;
        }
        for name in references(cluster) {
            if let Some(endpoints) = self.full.endpoints.get(name) {
                add(&mut self.out.endpoints, endpoints);
            }
            self.cluster(name);
        }
    }
}

/// Names of the virtual hosts that may have `host` among their domains ([`Hosts::above`]), or are of the service whose address
/// it is. Of each service the virtual host is named by its full name.
fn candidates(directory: &Directory, route: &str, port: u16, host: &str) -> BTreeSet<String> {
    let mut hosts: BTreeSet<String> = [host.to_string(), "*".to_string()].into();
    if let Ok(ip) = host.parse() {
        hosts.extend(directory.addresses.get(&ip).into_iter().flatten().map(ToString::to_string));
    } else {
        hosts.extend(directory.hosts.above(&directory.dns_domain, host));
    }
    hosts.into_iter().map(|host| format!("{route}/{}", host_port(&host, port))).collect()
}

/// What a resolver in the proxy's namespace would complete `host` to.
fn full_names(proxy_domain: &str, host: &str) -> Vec<String> {
    search_domains(proxy_domain).iter().flatten().map(|domain| format!("{host}.{domain}")).collect()
}

/// The domains in which it looks for names that are not full.
fn search_domains(proxy_domain: &str) -> Option<[String; 3]> {
    let (_, domain) = proxy_domain.split_once(".svc.")?;
    Some([proxy_domain.to_string(), format!("svc.{domain}"), domain.to_string()])
}

/// All texts of a message that may be names of other resources. They are looked for in the bytes: wherever Envoy's schema
/// has a name (there are dozens of places, in extensions too), it is a field of its own.
fn references(resource: &Resource) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    collect(&resource.any.value, DEPTH, &mut found);
    found
}

fn collect<'a>(mut bytes: &'a [u8], depth: u32, found: &mut BTreeSet<&'a str>) {
    while let Some((key, rest)) = varint(bytes) {
        let (length, rest) = match key & 7 {
            0 => match varint(rest) {
                Some((_, rest)) => (0, rest),
                None => return,
            },
            1 => (8, rest),
            2 => match varint(rest) {
                Some((length, rest)) => (usize::try_from(length).unwrap_or(usize::MAX), rest),
                None => return,
            },
            5 => (4, rest),
            // Groups are not in use; it is no message.
            _ => return,
        };
        let (Some(value), Some(after)) = (rest.get(..length), rest.get(length..)) else { return };
        if key & 7 == 2 && !value.is_empty() {
            if value.len() <= MAX_REFERENCE
                && let Ok(text) = std::str::from_utf8(value)
            {
                found.insert(text);
            }
            if depth > 0 {
                collect(value, depth - 1, found);
            }
        }
        bytes = after;
    }
}

/// A base-128 number of at most ten bytes, and what follows it.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(index).ok()?).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(index + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::route::{Route, RouteAction, route::Action, route_action::ClusterSpecifier};
    use crate::resource::by_name;
    use weft_proto::Any;
    use weft_proto::istio::networking::nds::v1::name_table::NameInfo;

    #[test]
    fn questions() {
        for (name, want) in [
            ("http/80/reviews", Some(Ask::Host { route: "80", port: 80, host: "reviews" })),
            ("http/80/reviews.", Some(Ask::Host { route: "80", port: 80, host: "reviews" })),
            ("http/80/[fd00::1]", Some(Ask::Host { route: "80", port: 80, host: "fd00::1" })),
            ("tcp/10.96.0.7:3306", Some(Ask::Address(([10, 96, 0, 7], 3306).into()))),
            ("tcp/[fd00::7]:3306", Some(Ask::Address("[fd00::7]:3306".parse().unwrap()))),
            ("http/80/", None),
            ("http/http.8080/a", None),
            ("http/80", None),
            ("tcp/reviews:80", None),
            ("dns/reviews.default", Some(Ask::Name("reviews.default"))),
            ("dns/", None),
            ("udp/10.0.0.1:53", None),
            ("", None),
        ] {
            assert_eq!(Ask::parse(name), want, "{name}");
        }
        assert_eq!(Ask::parse(&format!("http/80/{}", "a".repeat(MAX_HOST + 1))), None);
    }

    #[test]
    fn candidates_hold_every_virtual_host_that_may_match() {
        let directory = Directory {
            dns_domain: "default.svc.cluster.local".into(),
            addresses: Arc::new([([10, 96, 0, 1].into(), vec!["db.prod.svc.cluster.local".into()])].into()),
            hosts: Arc::new(Hosts::new(&by_name(
                [
                    "80/reviews.default.svc.cluster.local:80",
                    "80/reviews.prod.svc.cluster.local:80",
                    "80/db.default.svc.cluster.local:80",
                    "80/db.prod.svc.cluster.local:80",
                    "80/www.example.com:80",
                    "80/*.example.com:80",
                    "80/*.com:80",
                    "80/*:80",
                ]
                .map(named),
            ))),
            ..Directory::default()
        };
        for (host, among) in [
            ("reviews", "80/reviews.default.svc.cluster.local:80"),
            ("reviews.prod", "80/reviews.prod.svc.cluster.local:80"),
            ("reviews.prod.svc", "80/reviews.prod.svc.cluster.local:80"),
            ("reviews.prod.svc.cluster.local", "80/reviews.prod.svc.cluster.local:80"),
            ("db-0.db", "80/db.default.svc.cluster.local:80"),
            ("db-0.db.prod", "80/db.prod.svc.cluster.local:80"),
            ("db-0.db.prod.svc.cluster.local", "80/db.prod.svc.cluster.local:80"),
            ("www.example.com", "80/www.example.com:80"),
            ("www.example.com", "80/*.example.com:80"),
            ("a.b.example.com", "80/*.example.com:80"),
            ("a.b.example.com", "80/*.com:80"),
            ("anything", "80/*:80"),
            ("10.96.0.1", "80/db.prod.svc.cluster.local:80"),
            ("10.96.0.2", "80/10.96.0.2:80"),
            ("fd00::1", "80/[fd00::1]:80"),
        ] {
            let found = candidates(&directory, "80", 80, host);
            assert!(found.contains(among), "{host}: {found:?}");
        }
    }

    fn named(name: &str) -> Arc<Resource> {
        Arc::new(Resource { name: name.into(), any: Any::default(), hash: 1 })
    }

    fn host(name: &str, clusters: &[&str]) -> Arc<Resource> {
        let route = |cluster: &&str| {
            let cluster_specifier = Some(ClusterSpecifier::Cluster((*cluster).into()));
            Route {
                action: Some(Action::Route(RouteAction { cluster_specifier, ..Default::default() })),
                ..Default::default()
            }
        };
        let host =
            VirtualHost { name: name.into(), routes: clusters.iter().map(route).collect(), ..Default::default() };
        Resource::new(name, &host)
    }

    fn full() -> ProxyResources {
        let virtual_hosts = by_name([
            host("80/a.default.svc.x:80", &["a", "mirror"]),
            host("80/b.default.svc.x:80", &["b"]),
            host("80/allow_any", &["passthrough"]),
            host("81/a.default.svc.x:81", &["a81"]),
        ]);
        let hosts = Arc::new(Hosts::new(&virtual_hosts));
        let standing = Standing { listeners: ["virtualOutbound".into()].into(), ..Standing::default() };
        ProxyResources {
            listeners: ["virtualOutbound", "0.0.0.0_80", "10.0.0.1_3306"].map(named).into_iter().collect(),
            routes: ["80", "81"].map(named).into_iter().collect(),
            virtual_hosts: ResourceMap::new(Arc::new(virtual_hosts), Resources::new()),
            clusters: ["a", "b", "mirror", "passthrough", "a81"].map(named).into_iter().collect(),
            directory: Some(Directory {
                dns_domain: "default.svc.x".into(),
                standing: Arc::new(standing),
                addresses: Arc::new([([10, 0, 0, 9].into(), vec!["b.default.svc.x".into()])].into()),
                hosts,
                names: None,
            }),
            ..ProxyResources::default()
        }
    }

    fn select<'a>(
        full: &ProxyResources,
        asked: impl IntoIterator<Item = &'a str>,
    ) -> Option<(ProxyResources, ResourceMap)> {
        Selection::default().select(&Arc::new(full.clone()), asked)
    }

    /// A stream asks one thing after another: each is looked into once, and what comes of it is as if all were asked at once.
    #[test]
    fn a_further_question_costs_its_own_answer() {
        let (full, mut kept) = (Arc::new(full()), Selection::default());
        let steps: [(&[&str], u64); 6] = [
            (&[], 0),
            (&["http/80/a"], 1),
            (&["http/80/a", "tcp/10.0.0.9:80"], 2),
            (&["http/80/a", "tcp/10.0.0.9:80", "http/81/a"], 3),
            // What is given up takes a look at the rest.
            (&["http/80/a", "http/81/a"], 5),
            (&["http/80/a", "http/81/a", "nonsense"], 5),
        ];
        for (asked, answered) in steps {
            let (part, answers) = kept.select(&full, asked.iter().copied()).unwrap();
            assert_eq!(kept.answered(), answered, "{asked:?}");
            let (want, all) = select(&full, asked.iter().copied()).unwrap();
            for (map, want) in [
                (&part.listeners, &want.listeners),
                (&part.routes, &want.routes),
                (&part.virtual_hosts, &want.virtual_hosts),
                (&part.clusters, &want.clusters),
                (&part.endpoints, &want.endpoints),
                (&answers, &all),
            ] {
                assert!(map.iter().eq(want.iter()), "{asked:?}");
            }
        }
        let other = Arc::new((*full).clone());
        kept.select(&other, ["http/80/a"]).unwrap();
        assert_eq!(kept.answered(), 6, "everything is new");
        assert!(kept.select(&Arc::default(), ["http/80/a"]).is_none(), "others are given everything");
    }

    fn names_of(map: &ResourceMap) -> Vec<String> {
        map.iter().map(|r| r.name.to_string()).collect()
    }

    #[test]
    fn only_what_is_asked_for_and_what_that_names() {
        for (asked, listeners, hosts, clusters) in [
            (&[][..], &["virtualOutbound"][..], &[][..], &[][..]),
            (
                &["http/80/a"],
                &["virtualOutbound"],
                &["80/a.default.svc.x:80", "80/allow_any"],
                &["a", "mirror", "passthrough"],
            ),
            (&["http/80/unknown"], &["virtualOutbound"], &["80/allow_any"], &["passthrough"]),
            (&["http/82/a"], &["virtualOutbound"], &[], &[]),
            (&["tcp/10.0.0.1:3306"], &["10.0.0.1_3306", "virtualOutbound"], &[], &[]),
            (&["tcp/10.0.0.2:3306"], &["virtualOutbound"], &[], &[]),
            (&["tcp/10.0.0.9:80"], &["0.0.0.0_80", "virtualOutbound"], &["80/b.default.svc.x:80"], &["b"]),
        ] {
            let (part, answers) = select(&full(), asked.iter().copied()).unwrap();
            assert_eq!(names_of(&part.listeners), listeners, "{asked:?}");
            assert_eq!(names_of(&part.virtual_hosts), hosts, "{asked:?}");
            assert_eq!(names_of(&part.clusters), clusters, "{asked:?}");
            assert_eq!(answers.len(), asked.len(), "each question has an answer");
        }
        assert!(select(&ProxyResources::default(), ["http/80/a"]).is_none(), "others are given everything");
    }

    #[test]
    fn names_are_looked_up_one_by_one() {
        let hosts = ["a.default.svc.x", "a.prod.svc.x", "pod-0.db.default.svc.x", "*.example.com", "one.example.com"];
        let table = hosts.map(|host| (host.to_string(), NameInfo::default())).into();
        let mut full = full();
        full.directory.as_mut().unwrap().names = Some(Arc::new(Names::new(NameTable { table })));
        for (name, want) in [
            ("a", &["a.default.svc.x"][..]),
            ("a.default.svc.x", &["a.default.svc.x"]),
            // A stub resolver's search domains come first.
            ("a.prod.default.svc.x", &["a.default.svc.x", "a.prod.svc.x"]),
            ("a.prod.svc.x.corp.example", &["a.default.svc.x", "a.prod.svc.x"]),
            ("pod-0.db", &["pod-0.db.default.svc.x"]),
            ("one.example.com", &["*.example.com", "one.example.com"]),
            ("two.sub.example.com", &["*.example.com"]),
            ("example.com", &[]),
        ] {
            let question = format!("dns/{name}");
            let (part, answers) = select(&full, [question.as_str()]).unwrap();
            let table: NameTable = weft_proto::unpack(&part.name_table.unwrap().any).unwrap();
            assert_eq!(table.table.keys().collect::<Vec<_>>(), want, "{name}");
            let answer: Demand = weft_proto::unpack(&answers.get(&question).unwrap().any).unwrap();
            assert_eq!(answer.names, want, "{name}");
        }
        // The table is packed anew when a question adds to it.
        let (whole, mut kept) = (Arc::new(full.clone()), Selection::default());
        let mut table = |asked: &[&str]| kept.select(&whole, asked.iter().copied()).unwrap().0;
        let first = table(&["dns/a"]);
        let second = table(&["dns/a", "http/80/b", "dns/a.default.svc.x"]);
        assert!(Arc::ptr_eq(first.name_table.as_ref().unwrap(), second.name_table.as_ref().unwrap()));
        assert!(std::ptr::eq(first.listeners.own(), second.listeners.own()), "nothing was added to the listeners");
        assert!(first.clusters.len() < second.clusters.len());
        let third = table(&["dns/a", "http/80/b", "dns/a.default.svc.x", "dns/pod-0.db"]);
        let names: NameTable = weft_proto::unpack(&third.name_table.unwrap().any).unwrap();
        assert_eq!(names.table.keys().collect::<Vec<_>>(), ["a.default.svc.x", "pod-0.db.default.svc.x"]);
        let none = select(&full, []).unwrap().0.name_table.unwrap();
        assert!(weft_proto::unpack::<NameTable>(&none.any).unwrap().table.is_empty(), "what nobody asked for");
    }

    #[test]
    fn what_an_answer_says_changes_with_what_there_is() {
        let (_, before) = select(&full(), ["http/80/a"]).unwrap();
        let mut less = full();
        less.virtual_hosts = ResourceMap::default();
        let (_, after) = select(&less, ["http/80/a"]).unwrap();
        assert_ne!(before.get("http/80/a").unwrap().hash, after.get("http/80/a").unwrap().hash);
    }

    #[test]
    fn no_bytes_make_it_fail() {
        for bytes in [&[0xff; 40][..], &[0x0a, 0xff], &[0x0b, 0x0c], &[0x0a, 0x02, 0x0a], &[0x09, 1], &[0x80; 3], &[]] {
            let resource = Resource { name: "r".into(), any: Any { value: bytes.to_vec(), ..Any::default() }, hash: 0 };
            references(&resource);
        }
        let mut nested = vec![0x0a, 0x01, b'x'];
        for _ in 0..100 {
            let mut outer = vec![0x0a, u8::try_from(nested.len()).unwrap_or(0x7f)];
            outer.extend(nested.iter().take(0x7f));
            nested = outer;
        }
        let resource = Resource { name: "r".into(), any: Any { value: nested, ..Any::default() }, hash: 0 };
        references(&resource);
    }
}
