//! Who is at the other end: workload facts that proxies of the mesh tell each other in `x-envoy-peer-metadata` (a base64
//! [`PeerMetadata`] message), or that the control plane put on the endpoint. Told facts are believed only over mutual TLS;
//! the principal comes from the certificate and from nowhere else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use weft_proto::weft::v1::PeerMetadata;

/// Facts about the sender's workload.
pub const PEER_METADATA: HeaderName = HeaderName::from_static("x-envoy-peer-metadata");
/// Name of the sender's node.
pub const PEER_METADATA_ID: HeaderName = HeaderName::from_static("x-envoy-peer-metadata-id");
/// Longest header believed.
const MAX_HEADER: usize = 8 * 1024;
/// Longest single fact.
const MAX_FACT: usize = 512;
/// Parties remembered by one worker.
const MAX_PARTIES: usize = 4096;

/// A workload as metrics name it. Empty = unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Party {
    /// Number that stands for this party in one worker.
    pub id: u64,
    /// Workload (Deployment …) name.
    pub workload: String,
    /// Namespace.
    pub namespace: String,
    /// Canonical service.
    pub canonical_service: String,
    /// Canonical revision.
    pub canonical_revision: String,
    /// `app` label.
    pub app: String,
    /// `version` label.
    pub version: String,
    /// Cluster.
    pub cluster: String,
    /// SPIFFE id without `spiffe://`.
    pub principal: String,
}

/// This proxy's own workload.
#[derive(Debug, Clone, Default)]
pub struct LocalWorkload {
    /// Facts.
    pub metadata: PeerMetadata,
    /// Node id, `sidecar~10.0.0.1~…`.
    pub node_id: String,
    /// Cluster of the node: the service's name in traces, by convention `<app>.<namespace>`.
    pub node_cluster: String,
}

/// Parties by header value and principal.
type Known = HashMap<(Box<[u8]>, Box<str>), Rc<Party>, foldhash::fast::RandomState>;

/// Parties known to one worker; equal facts are one party.
#[derive(Debug)]
pub struct Parties {
    local: LocalWorkload,
    header: HeaderValue,
    id_header: HeaderValue,
    known: RefCell<Known>,
    last: RefCell<Option<Remembered>>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Remembered {
    facts: Box<[u8]>,
    principal: Box<str>,
    party: Rc<Party>,
}

/// Where facts come from.
#[derive(Debug, Clone, Copy)]
pub enum Facts<'a> {
    /// The value of a metadata header, received over mutual TLS.
    Header(&'a [u8]),
    /// The control plane's word on an endpoint: `name;namespace;canonical name;canonical revision;cluster`.
    Endpoint(&'a str),
    /// Nothing is known.
    Unknown,
}

impl Parties {
    /// Parties as seen by `local`.
    pub fn new(local: LocalWorkload) -> Self {
        let encoded = STANDARD.encode(local.metadata.encode_to_vec());
        Self {
            header: HeaderValue::from_str(&encoded).unwrap_or_else(|_| HeaderValue::from_static("")),
            id_header: HeaderValue::from_str(&local.node_id).unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            local,
            known: RefCell::default(),
            last: RefCell::default(),
            next: Cell::new(1),
        }
    }

    /// Adds this proxy's facts to a message for another proxy.
    pub fn introduce(&self, headers: &mut HeaderMap) {
        headers.insert(PEER_METADATA_ID, self.id_header.clone());
        headers.insert(PEER_METADATA, self.header.clone());
    }

    /// Takes that back.
    pub fn forget(&self, headers: &mut HeaderMap) {
        headers.remove(PEER_METADATA_ID);
        headers.remove(PEER_METADATA);
    }

    /// This proxy's own workload, under the principal of its certificate.
    pub fn local(&self, principal: Option<&str>) -> Rc<Party> {
        self.party(Facts::Header(self.header.as_bytes()), principal)
    }

    /// The name of this proxy's workload.
    pub fn local_workload(&self) -> &LocalWorkload {
        &self.local
    }

    /// The party that the facts describe; `principal` is the URI of its certificate.
    pub fn party(&self, facts: Facts<'_>, principal: Option<&str>) -> Rc<Party> {
        let principal = principal.map(|uri| uri.strip_prefix("spiffe://").unwrap_or(uri)).unwrap_or_default();
        let bytes: &[u8] = match facts {
            Facts::Header(value) if value.len() <= MAX_HEADER => value,
            Facts::Endpoint(text) => text.as_bytes(),
            _ => &[],
        };
        if let Some(last) = &*self.last.borrow()
            && *last.facts == *bytes
            && *last.principal == *principal
        {
            return last.party.clone();
        }
        let key: (Box<[u8]>, Box<str>) = (bytes.into(), principal.into());
        let known = self.known.borrow().get(&key).cloned();
        let party = known.unwrap_or_else(|| {
            let id = self.next.get();
            self.next.set(id + 1);
            let party = Rc::new(Party { id, principal: principal.into(), ..read(facts) });
            let mut known = self.known.borrow_mut();
            if known.len() >= MAX_PARTIES {
                known.clear();
            }
            known.insert(key.clone(), party.clone());
            party
        });
        self.last.replace(Some(Remembered { facts: key.0, principal: key.1, party: party.clone() }));
        party
    }
}

fn read(facts: Facts<'_>) -> Party {
    match facts {
        Facts::Header(value) => from_header(value).unwrap_or_default(),
        Facts::Endpoint(text) => from_endpoint(text),
        Facts::Unknown => Party::default(),
    }
}

fn from_header(value: &[u8]) -> Option<Party> {
    let bytes = STANDARD.decode(value).ok()?;
    let facts = PeerMetadata::decode(&*bytes).ok()?;
    let fact = |text: String| if text.len() <= MAX_FACT { text } else { String::new() };
    Some(Party {
        id: 0,
        workload: fact(facts.workload_name),
        namespace: fact(facts.namespace),
        canonical_service: fact(facts.canonical_service),
        canonical_revision: fact(facts.canonical_revision),
        app: fact(facts.app),
        version: fact(facts.version),
        cluster: fact(facts.cluster_id),
        principal: String::new(),
    })
}

fn from_endpoint(text: &str) -> Party {
    let mut parts = text.split(';').map(str::to_string);
    let mut next = || parts.next().unwrap_or_default();
    let (workload, namespace, canonical_service, canonical_revision, cluster) =
        (next(), next(), next(), next(), next());
    Party {
        app: canonical_service.clone(),
        version: canonical_revision.clone(),
        workload,
        namespace,
        canonical_service,
        canonical_revision,
        cluster,
        ..Party::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_travel_and_are_one_party() {
        let metadata = PeerMetadata {
            workload_name: "reviews-v1".into(),
            namespace: "default".into(),
            canonical_service: "reviews".into(),
            ..PeerMetadata::default()
        };
        let parties = Parties::new(LocalWorkload { metadata, node_id: "sidecar~1".into(), ..Default::default() });
        let mut headers = HeaderMap::new();
        parties.introduce(&mut headers);
        let value = headers[PEER_METADATA].as_bytes();
        let peer = parties.party(Facts::Header(value), Some("spiffe://cluster.local/ns/default/sa/reviews"));
        assert_eq!((peer.workload.as_str(), peer.namespace.as_str()), ("reviews-v1", "default"));
        assert_eq!(peer.principal, "cluster.local/ns/default/sa/reviews");
        let again = parties.party(Facts::Header(value), Some("spiffe://cluster.local/ns/default/sa/reviews"));
        assert_eq!(again.id, peer.id);
        assert_ne!(parties.party(Facts::Header(value), None).id, peer.id);
    }

    #[test]
    fn endpoints_and_nonsense() {
        let parties = Parties::new(LocalWorkload::default());
        let party = parties.party(Facts::Endpoint("reviews-v1;default;reviews;v1;Kubernetes"), None);
        assert_eq!((party.workload.as_str(), party.version.as_str()), ("reviews-v1", "v1"));
        assert_eq!(parties.party(Facts::Header(b"not base64!"), None).workload, "");
        assert_eq!(parties.party(Facts::Header(&[b'A'; 100_000]), None).workload, "");
    }
}
