//! What is wrong with objects that are accepted: references to what is not there. (Conflicts are found where things are
//! merged.)

use crate::jwks::KeySet;
use crate::parsed::selects;
use crate::virtual_services::MESH_GATEWAY;
use crate::{
    DestinationRule, ExportTo, Gateway, KeySource, Labels, MeshSnapshot, VirtualService, Warning, authorizers,
    certificates, gateway_conflicts, hosts, services,
};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use weft_core::Provenance;
use weft_k8s_api::istio;

/// Code of a reference to something that does not exist.
const NOT_FOUND: &str = "IST0101";
/// Code of virtual services that claim the same host for sidecars.
const HOST_CONFLICT: &str = "IST0109";
/// Code of a destination that must say which port it means.
const PORT_REQUIRED: &str = "IST0112";

/// References of virtual services and destination rules that lead nowhere.
pub(crate) fn of_routes(snapshot: &MeshSnapshot) -> Vec<Warning> {
    let mut found = Vec::new();
    let look = Look::new(snapshot);
    mesh_hosts(snapshot, &mut found);
    let gateways = snapshot.gateways.iter().map(|gateway| &**gateway);
    found.extend(gateway_conflicts::server_names(gateways, &snapshot.virtual_services));
    for vs in &snapshot.virtual_services {
        virtual_service(&look, vs, &mut found);
    }
    for rule in snapshot.all_destination_rules() {
        if !hosts::is_wildcard(&rule.host) && !known_host(snapshot, &rule.host) {
            let at = rule.origins.first().cloned().unwrap_or_default().at("spec.host");
            found.push(not_found(at, format!("host {} is no service of the mesh; the rule has no effect", rule.host)));
        }
    }
    found
}

/// Security objects that name a provider or keys that are not there. What they guard is denied.
pub(crate) fn of_security(snapshot: &MeshSnapshot) -> Vec<Warning> {
    let mut found = Vec::new();
    for policy in snapshot.authorization.values().flatten() {
        if policy.spec.action != istio::AuthorizationAction::Custom {
            continue;
        }
        let name = policy.spec.provider.as_ref().map_or("", |p| p.name.as_str());
        if let Some(why) = authorizers::warning(snapshot, name) {
            found.push(not_found(policy.provenance.at("spec.provider.name"), why));
        }
    }
    for policy in snapshot.request_auth.values().flatten() {
        for (i, rule) in policy.spec.jwt_rules.iter().enumerate() {
            let field = if KeySource::of(rule).is_none() { "jwks" } else { "jwksUri" };
            let why = match snapshot.key_text(rule) {
                Some(Ok((text, fetched))) => unreadable(&snapshot.key_set(text, fetched)),
                Some(Err(why)) => Some((why.clone(), "")),
                None => None,
            };
            let Some((why, by)) = why else { continue };
            let at = policy.provenance.at(format!("spec.jwtRules[{i}].{field}"));
            found.push(not_found(at, format!("{why}; tokens of {} are refused{by} until keys are there", rule.issuer)));
        }
    }
    found
}

/// Why a key set checks no tokens, and where.
fn unreadable(keys: &KeySet) -> Option<(Arc<str>, &'static str)> {
    let by_us = |why: &Arc<str>| (why.clone(), " by all proxies but Envoys");
    match &keys.envoy {
        Err(why) => Some((why.clone(), "")),
        Ok(_) => keys.weft.as_ref().err().map(by_us),
    }
}

/// References of gateways that lead nowhere.
pub(crate) fn of_gateways(snapshot: &MeshSnapshot) -> Vec<Warning> {
    let mut found = gateway_conflicts::find(snapshot.gateways.iter().map(|g| &**g));
    let mut by_selector: HashMap<&Labels, BTreeSet<&str>> = HashMap::new();
    for gateway in &snapshot.gateways {
        if gateway.spec.selector.is_empty() && gateway.workloads.iter().all(|w| !w.labels.is_empty()) {
            // Stands for a listener of the Gateway API or an Ingress: their conditions say what is missing.
            continue;
        }
        let namespaces = by_selector.entry(&gateway.spec.selector).or_insert_with_key(|selector| {
            let selected = snapshot.workloads_by_name.values().filter(|w| selects(selector, &w.labels));
            selected.map(|w| w.namespace.as_str()).collect()
        });
        gateway_references(snapshot, gateway, namespaces, &mut found);
    }
    found
}

/// A snapshot, indexed for the questions asked here.
struct Look<'a> {
    snapshot: &'a MeshSnapshot,
    gateways: BTreeSet<String>,
    /// Destination rules by host, those with wildcards apart.
    exact: HashMap<&'a str, Vec<&'a DestinationRule>>,
    wild: Vec<&'a DestinationRule>,
}

impl<'a> Look<'a> {
    fn new(snapshot: &'a MeshSnapshot) -> Self {
        let (mut exact, mut wild): (HashMap<&str, Vec<&DestinationRule>>, _) = (HashMap::new(), Vec::new());
        for rule in snapshot.all_destination_rules() {
            match hosts::is_wildcard(&rule.host) {
                true => wild.push(&**rule),
                false => exact.entry(&*rule.host).or_default().push(rule),
            }
        }
        let gateways = snapshot.gateways.iter().map(|g| format!("{}/{}", g.namespace, g.name)).collect();
        Self { snapshot, gateways, exact, wild }
    }

    fn subset_exists(&self, host: &str, subset: &str) -> bool {
        let exact = self.exact.get(host).into_iter().flatten();
        let wild = self.wild.iter().filter(|r| hosts::covers(&r.host, host));
        exact.chain(wild).any(|r| r.spec.subsets.iter().any(|s| s.name == subset))
    }
}

fn not_found(at: Provenance, message: String) -> Warning {
    Warning { at, code: NOT_FOUND, message }
}

fn virtual_service(look: &Look<'_>, vs: &VirtualService, found: &mut Vec<Warning>) {
    for (i, gateway) in vs.gateways.iter().enumerate() {
        if gateway != MESH_GATEWAY && !look.gateways.contains(gateway) {
            let at = vs.provenance.at(format!("spec.gateways[{i}]"));
            found.push(not_found(at, format!("Gateway {gateway} does not exist")));
        }
    }
    for (route, origin) in vs.spec.http.iter().zip(&vs.http_origin) {
        let at = |field: &str| origin.at(format!("{}.{field}", origin.path));
        for (i, to) in route.route.iter().enumerate() {
            destination(look, to.destination.as_ref(), vs, &at(&format!("route[{i}].destination")), found);
        }
        destination(look, route.mirror.as_ref(), vs, &at("mirror"), found);
        for (i, mirror) in route.mirrors.iter().enumerate() {
            destination(look, mirror.destination.as_ref(), vs, &at(&format!("mirrors[{i}].destination")), found);
        }
    }
    for (i, route) in vs.spec.tls.iter().enumerate() {
        for (j, to) in route.route.iter().enumerate() {
            let at = vs.provenance.at(format!("spec.tls[{i}].route[{j}].destination"));
            destination(look, to.destination.as_ref(), vs, &at, found);
        }
    }
    for (i, route) in vs.spec.tcp.iter().enumerate() {
        for (j, to) in route.route.iter().enumerate() {
            let at = vs.provenance.at(format!("spec.tcp[{i}].route[{j}].destination"));
            destination(look, to.destination.as_ref(), vs, &at, found);
        }
    }
}

fn destination(
    look: &Look<'_>,
    to: Option<&istio::Destination>,
    vs: &VirtualService,
    at: &Provenance,
    found: &mut Vec<Warning>,
) {
    let Some(to) = to.filter(|to| to.host != crate::gateway_api::INVALID_HOST) else { return };
    let place = |field: &str| at.at(format!("{}.{field}", at.path));
    let Some(service) = look.snapshot.service_covering(&to.host, &vs.namespace) else {
        let message =
            format!("host {} is no service that namespace {} sees; the route answers 503", to.host, vs.namespace);
        found.push(not_found(place("host"), message));
        return;
    };
    let is_alias = service.alias_of.is_some();
    let service = look.snapshot.concrete(service, &vs.namespace);
    let host = if is_alias { &service.host } else { to.host.as_str() };
    if !to.subset.is_empty() && !look.subset_exists(host, &to.subset) {
        let message =
            format!("subset {} of host {} is in no DestinationRule; the route answers 503", to.subset, to.host);
        found.push(not_found(place("subset"), message));
    }
    let ports: Vec<u16> = service.ports.iter().filter(|p| services::carried(p)).map(|p| p.number).collect();
    match to.port.as_ref().map(|p| p.number) {
        Some(port) if !ports.iter().any(|p| u32::from(*p) == port) => {
            let message = format!("service {} has no port {port}; it has {ports:?}; the route answers 503", to.host);
            found.push(not_found(place("port.number"), message));
        }
        None if ports.len() > 1 => {
            let message = format!("service {} has the ports {ports:?}; say which with port.number", to.host);
            found.push(Warning { at: place("port"), code: PORT_REQUIRED, message });
        }
        _ => {}
    }
}

fn known_host(snapshot: &MeshSnapshot, host: &str) -> bool {
    snapshot.services.contains_key(host)
        || snapshot.services.keys().take_while(|h| h.as_bytes() <= b"*~".as_slice()).any(|h| hosts::covers(h, host))
}

fn gateway_references(
    snapshot: &MeshSnapshot,
    gateway: &Gateway,
    namespaces: &BTreeSet<&str>,
    found: &mut Vec<Warning>,
) {
    if namespaces.is_empty() {
        let labels: Vec<String> = gateway.spec.selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let message = format!("selector {} selects no workload; no proxy listens for this gateway", labels.join(","));
        found.push(not_found(gateway.provenance.at("spec.selector"), message));
        return;
    }
    for (i, server) in gateway.spec.servers.iter().enumerate() {
        let Some(tls) = &server.tls else { continue };
        let names = std::iter::once(&tls.credential_name).chain(&tls.credential_names).filter(|n| !n.is_empty());
        let names: Vec<&str> = names.map(|name| name.strip_prefix("kubernetes://").unwrap_or(name)).collect();
        let at = |field: &str| gateway.provenance.at(format!("spec.servers[{i}].{field}"));
        for namespace in namespaces {
            let key = |name: &str| ((*namespace).to_string(), name.to_string());
            let credentials = names.iter().filter_map(|name| snapshot.secrets.get(&key(name)));
            let known: Vec<_> = credentials.filter_map(|c| c.facts.as_ref()).collect();
            let told = found.len();
            found.extend(names.iter().filter_map(|name| credential(snapshot, key(name), at("tls.credentialName"))));
            let missing = certificates::uncovered(server.hosts.iter().map(String::as_str), &known);
            if let Some(message) = certificates::told_uncovered(&missing, &known) {
                found.push(Warning { at: at("hosts"), code: certificates::HOST_MISMATCH, message });
            }
            if found.len() > told {
                // The same of another namespace helps nobody.
                break;
            }
        }
    }
}

/// What is wrong with a certificate that a server names.
fn credential(snapshot: &MeshSnapshot, key: (String, String), at: Provenance) -> Option<Warning> {
    let problem = snapshot.secret_problems.get(&key);
    if snapshot.secrets.contains_key(&key) {
        return problem.map(|message| Warning { at, code: certificates::INVALID, message: message.clone() });
    }
    let (namespace, name) = key;
    let missing = format!("secret {namespace}/{name} does not exist, or holds no certificate and key");
    let message = problem.cloned().unwrap_or(missing);
    Some(not_found(at, format!("{message}; proxies that had its certificate show the last one on; create it again")))
}

/// Hosts that several virtual services claim for the same sidecars: one has them.
fn mesh_hosts(snapshot: &MeshSnapshot, found: &mut Vec<Warning>) {
    let mut claimed: HashMap<&str, Vec<&VirtualService>> = HashMap::new();
    let own = |vs: &&VirtualService| vs.provenance.kind == "VirtualService";
    let of_mesh = |vs: &&VirtualService| vs.gateways.iter().any(|g| g == MESH_GATEWAY);
    for vs in snapshot.virtual_services.iter().map(|vs| &**vs).filter(own).filter(of_mesh) {
        for (i, host) in vs.hosts.iter().enumerate() {
            let older = claimed.entry(host).or_default();
            let same_clients = |o: &&&VirtualService| o.export_to.overlaps(&vs.export_to) && alike(o, vs);
            if let Some(first) = older.iter().find(same_clients) {
                let by = format!("{}/{}", first.namespace, first.name);
                let who = match (&first.export_to, &vs.export_to) {
                    (ExportTo::All, ExportTo::All) => {
                        format!("already belongs to VirtualService {by} for sidecars, whose rules are used")
                    }
                    _ => format!(
                        "also belongs to VirtualService {by} for sidecars; where both are seen, that of the client's own namespace is used, else the one with a narrower exportTo, else the older"
                    ),
                };
                let message = format!("host {host} {who}; put all rules of the host into one of them");
                found.push(Warning { at: vs.provenance.at(format!("spec.hosts[{i}]")), code: HOST_CONFLICT, message });
            } else if older.len() < MOST_CLAIMS {
                older.push(vs);
            }
        }
    }
}

/// Most virtual services of one host, for clients apart, that are compared.
const MOST_CLAIMS: usize = 64;

/// Rules for requests and rules for connections of one host stand beside each other.
fn alike(a: &VirtualService, b: &VirtualService) -> bool {
    let kinds = |vs: &VirtualService| [vs.spec.http.is_empty(), vs.spec.tls.is_empty(), vs.spec.tcp.is_empty()];
    kinds(a).into_iter().zip(kinds(b)).any(|(a, b)| !a && !b)
}
