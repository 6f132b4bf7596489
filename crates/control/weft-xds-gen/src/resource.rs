//! Generated resources: named, packed, hashed; and the ordered maps that hold them, parts of which many proxies share.

use foldhash::quality::FixedState;
use prost::{Message, Name};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use weft_core::{Provenance, Strng};
use weft_proto::Any;

/// Seed of [`hash_bytes`]; any constant will do, as long as it stays one.
const HASH_SEED: u64 = 0x7765_6674_2d78_6473;

/// One xDS resource, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Name by which it is subscribed to.
    pub name: Strng,
    /// The packed message.
    pub any: Any,
    /// Hash of the packed bytes: equal messages have equal hashes, in every process of one build of Weft.
    pub hash: u64,
}

impl Resource {
    /// Packs `message` under `name`.
    pub fn new<M: Message + Name>(name: impl Into<Strng>, message: &M) -> Arc<Self> {
        let any = weft_proto::pack(message);
        let hash = hash_bytes(&any.value);
        Arc::new(Self { name: name.into(), any, hash })
    }
}

impl Resource {
    /// Packs `message` under `name`, with messages that are packed already as further values of its repeated field `tag`:
    /// a message of thousands is then as cheap as the copy of its bytes.
    pub fn with_messages<'a, M: Message + Name>(
        name: impl Into<Strng>,
        message: &M,
        tag: u32,
        messages: impl Iterator<Item = &'a Any>,
    ) -> Arc<Self> {
        let mut any = weft_proto::pack(message);
        for part in messages {
            prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut any.value);
            prost::encoding::encode_varint(part.value.len() as u64, &mut any.value);
            any.value.extend_from_slice(&part.value);
        }
        let hash = hash_bytes(&any.value);
        Arc::new(Self { name: name.into(), any, hash })
    }
}

/// A hash of `bytes` that does not change from run to run.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hasher = FixedState::with_seed(HASH_SEED).build_hasher();
    hasher.write(bytes);
    hasher.finish()
}

/// Resources of one type by name.
pub type Resources = BTreeMap<Strng, Arc<Resource>>;

/// Resources of one type as one proxy sees them: a part that all proxies of equal view share, and its own.
/// A name of its own hides the shared one.
/// A clone is two reference counts.
#[derive(Debug, Clone, Default)]
pub struct ResourceMap {
    shared: Arc<Resources>,
    own: Arc<Resources>,
}

impl ResourceMap {
    /// The shared part as it is, and `own` over it.
    pub fn new(shared: Arc<Resources>, own: impl Into<Arc<Resources>>) -> Self {
        Self { shared, own: own.into() }
    }

    /// The resource of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.own.get(name).or_else(|| self.shared.get(name))
    }

    /// All resources, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let mut shared = self.shared.iter().peekable();
        let mut own = self.own.iter().peekable();
        std::iter::from_fn(move || match (shared.peek(), own.peek()) {
            (Some((a, _)), Some((b, _))) if a < b => shared.next().map(|(_, r)| r),
            (Some((a, _)), Some((b, _))) => {
                if a == b {
                    shared.next();
                }
                own.next().map(|(_, r)| r)
            }
            (Some(_), None) => shared.next().map(|(_, r)| r),
            (None, _) => own.next().map(|(_, r)| r),
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shared.len() + self.own.keys().filter(|name| !self.shared.contains_key(*name)).count()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.own.is_empty()
    }

    /// The part that proxies of equal view share: the same `Arc` means the same resources.
    pub fn shared(&self) -> &Arc<Resources> {
        &self.shared
    }

    /// The part that is this proxy's alone.
    pub fn own(&self) -> &Resources {
        &self.own
    }
}

impl FromIterator<Arc<Resource>> for ResourceMap {
    fn from_iter<I: IntoIterator<Item = Arc<Resource>>>(resources: I) -> Self {
        Self { shared: Arc::default(), own: Arc::new(by_name(resources)) }
    }
}

/// Resources keyed by their names.
pub fn by_name(resources: impl IntoIterator<Item = Arc<Resource>>) -> Resources {
    resources.into_iter().map(|r| (r.name.clone(), r)).collect()
}

/// Everything that is generated for one proxy.
#[derive(Debug, Clone, Default)]
pub struct ProxyResources {
    /// Listeners.
    pub listeners: ResourceMap,
    /// Route configurations. For a Weft proxy those of outbound and gateway routes hold no virtual hosts, but say that
    /// these come by VHDS.
    pub routes: ResourceMap,
    /// Virtual hosts of those routes, named `<route>/<virtual host>`; empty for other proxies.
    pub virtual_hosts: ResourceMap,
    /// Clusters.
    pub clusters: ResourceMap,
    /// Load assignments of the clusters that are found by EDS.
    pub endpoints: ResourceMap,
    /// Names that the proxy's DNS server answers; `None` unless the proxy captures DNS.
    pub name_table: Option<Arc<Resource>>,
    /// SDS names that this proxy's listeners and clusters refer to and the control plane serves: `kubernetes://NAME` of
    /// the proxy's own namespace, `kubernetes-gateway://NAMESPACE/NAME`, `configmap://NAMESPACE/NAME-cacert`.
    pub credentials: Vec<Strng>,
    /// Objects that bind the proxy and are not applied to any of this: EnvoyFilters.
    pub not_applied: Vec<Provenance>,
    /// For a proxy that takes only what it asks for: how to find that. `None` for those that take everything.
    pub directory: Option<crate::on_demand::Directory>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn res(name: &str, value: u64) -> Arc<Resource> {
        Arc::new(Resource { name: name.into(), any: Any::default(), hash: value })
    }

    #[test]
    fn own_hides_shared_and_order_holds() {
        let shared = Arc::new(by_name([res("a", 1), res("c", 1), res("d", 1)]));
        let map = ResourceMap::new(shared, by_name([res("b", 2), res("c", 2), res("e", 2)]));
        let seen: Vec<_> = map.iter().map(|r| (r.name.to_string(), r.hash)).collect();
        let want = [("a", 1), ("b", 2), ("c", 2), ("d", 1), ("e", 2)];
        assert_eq!(seen, want.map(|(n, h)| (n.to_string(), h)));
        assert_eq!(map.len(), 5);
        assert_eq!(map.get("c").unwrap().hash, 2);
    }

    #[test]
    fn hash_is_of_the_bytes() {
        assert_eq!(hash_bytes(b"weft"), hash_bytes(b"weft"));
        assert_ne!(hash_bytes(b"weft"), hash_bytes(b"wefu"));
    }
}
