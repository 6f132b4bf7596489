//! Secrets that gateways may name, by namespace and name.

use crate::Credential;
use crate::parsed::{Parsed, reuse};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Suffix of the secret that holds the CA certificates of another.
pub const CA_SUFFIX: &str = "-cacert";

/// All credentials. The CA certificates of `NAME-cacert` are also those of `NAME` when it has none of its own.
pub(crate) fn credentials(
    objects: &[Arc<Parsed<Option<Credential>>>],
    old: &BTreeMap<(String, String), Arc<Credential>>,
) -> BTreeMap<(String, String), Arc<Credential>> {
    let mut all: BTreeMap<(String, String), Credential> = BTreeMap::new();
    for object in objects {
        if let Some(credential) = &*object.spec {
            all.insert((object.meta.namespace.clone(), object.meta.name.clone()), credential.clone());
        }
    }
    let authorities: Vec<((String, String), Credential)> = all
        .iter()
        .filter_map(|((ns, name), c)| Some(((ns.clone(), name.strip_suffix(CA_SUFFIX)?.to_string()), c.clone())))
        .collect();
    for (of, authority) in authorities {
        if let Some(credential) = all.get_mut(&of)
            && credential.ca.is_none()
        {
            credential.ca = authority.ca;
            credential.crl = credential.crl.take().or(authority.crl);
        }
    }
    all.into_iter().map(|(key, credential)| (key.clone(), reuse(old.get(&key), credential))).collect()
}
