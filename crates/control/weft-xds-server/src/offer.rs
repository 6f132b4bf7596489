//! What a proxy may have at one moment: the generated resources, and the secrets that its listeners name.

use crate::kind::Kind;
use std::collections::BTreeMap;
use std::sync::Arc;
use weft_core::{Provenance, Strng};
use weft_model::{CA_SUFFIX, Credential, MeshSnapshot};
use weft_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use weft_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use weft_xds_gen::on_demand::Selection;
use weft_xds_gen::{ProxyResources, Resource, ResourceMap};

/// Beginning of the names of secrets of the proxy's own namespace.
const SECRET_SCHEME: &str = "kubernetes://";
/// Beginning of the names of secrets of any namespace, which the model gives to those that a ReferenceGrant lets refer.
const GRANTED_SCHEME: &str = "kubernetes-gateway://";
/// Beginning of the names of CA certificates in config maps. They are no secret.
pub(crate) const CONFIG_MAP_SCHEME: &str = "configmap://";

/// All resources for one proxy.
#[derive(Debug, Clone, Default)]
pub struct Offer {
    /// Build of the snapshot it was made from.
    pub version: u64,
    resources: Arc<ProxyResources>,
    secrets: ResourceMap,
    names: ResourceMap,
    answers: ResourceMap,
}

impl Offer {
    /// The generated resources, and `secrets` beside them.
    pub fn new(version: u64, resources: Arc<ProxyResources>, secrets: ResourceMap) -> Self {
        let names = resources.name_table.iter().cloned().collect();
        Self { version, resources, secrets, names, answers: ResourceMap::default() }
    }

    /// Of the same build the part that a proxy asked for, `kept` with its stream; `None` when the proxy takes everything.
    pub(crate) fn part<'a>(&self, kept: &mut Selection, asked: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let (part, answers) = kept.select(&self.resources, asked)?;
        let names = part.name_table.iter().cloned().collect();
        Some(Self { resources: Arc::new(part), answers, names, ..self.clone() })
    }

    /// The proxy takes only what it asks for.
    pub(crate) fn is_on_demand(&self) -> bool {
        self.resources.directory.is_some()
    }

    /// How many questions the proxy has an answer to; `None` when it takes everything.
    pub(crate) fn answered(&self) -> Option<usize> {
        self.resources.directory.as_ref().map(|_| self.answers.len())
    }

    /// Objects that bind the proxy and are not applied to it.
    pub fn not_applied(&self) -> impl Iterator<Item = &Provenance> {
        self.resources.not_applied.iter()
    }

    /// The resources of one type.
    pub fn of(&self, kind: Kind) -> &ResourceMap {
        match kind {
            Kind::Cluster => &self.resources.clusters,
            Kind::Endpoint => &self.resources.endpoints,
            Kind::Listener => &self.resources.listeners,
            Kind::Route => &self.resources.routes,
            Kind::VirtualHost => &self.resources.virtual_hosts,
            Kind::Secret => &self.secrets,
            Kind::NameTable => &self.names,
            Kind::Demand => &self.answers,
        }
    }
}

/// Packs the secrets that a proxy of `namespace` refers to by the resources made for it. Those packed for the last push are
/// taken from `packed` when the credential is the same, or gone.
pub(crate) fn secrets(
    snapshot: &MeshSnapshot,
    namespace: &str,
    names: &[Strng],
    packed: &mut BTreeMap<Strng, (Arc<Credential>, Arc<Resource>)>,
) -> ResourceMap {
    let mut now = BTreeMap::new();
    for name in names {
        let Some((credential, only_ca)) = find(snapshot, namespace, name) else {
            // A secret that is gone, perhaps to be made anew, stays in force for those who had it.
            if let Some(old) = packed.get(name) {
                now.insert(name.clone(), old.clone());
            }
            continue;
        };
        let resource = match packed.get(name).filter(|(old, _)| Arc::ptr_eq(old, credential)) {
            Some((_, resource)) => resource.clone(),
            None => match pack(name, credential, only_ca) {
                Some(resource) => resource,
                None => continue,
            },
        };
        now.insert(name.clone(), (credential.clone(), resource));
    }
    *packed = now;
    packed.values().map(|(_, resource)| resource.clone()).collect()
}

/// Whether a name means a Secret of the proxy's own namespace that a user wrote down: the proxy's account must be allowed to
/// read such. Other schemes are of generated objects, which a ReferenceGrant or their owner vouches for.
pub(crate) fn is_own(name: &str) -> bool {
    name.starts_with(SECRET_SCHEME)
}

/// `kubernetes://NAME` is the certificate of secret NAME; `kubernetes://NAME-cacert` the CA certificates of a secret of that
/// very name, else of NAME. Those are looked for in the proxy's own namespace; the other schemes name one, and only
/// generated objects have them (validation keeps users from writing them).
fn find<'a>(snapshot: &'a MeshSnapshot, namespace: &str, name: &str) -> Option<(&'a Arc<Credential>, bool)> {
    let (all, namespace, secret) = if let Some(secret) = name.strip_prefix(SECRET_SCHEME) {
        (&snapshot.secrets, namespace, secret)
    } else if let Some(rest) = name.strip_prefix(GRANTED_SCHEME) {
        let (namespace, secret) = rest.split_once('/')?;
        (&snapshot.secrets, namespace, secret)
    } else {
        let (namespace, secret) = name.strip_prefix(CONFIG_MAP_SCHEME)?.split_once('/')?;
        (&snapshot.authorities, namespace, secret)
    };
    if secret.contains('/') {
        return None;
    }
    let of = |secret: &str| all.get(&(namespace.to_string(), secret.to_string()));
    match secret.strip_suffix(CA_SUFFIX) {
        None => of(secret).map(|c| (c, false)),
        Some(stem) => of(secret).or_else(|| of(stem)).map(|c| (c, true)),
    }
}

fn pack(name: &Strng, credential: &Credential, only_ca: bool) -> Option<Arc<Resource>> {
    let bytes = |b: &[u8]| DataSource { specifier: Some(Specifier::InlineBytes(b.to_vec())), ..Default::default() };
    let r#type = if only_ca || credential.private_key.is_empty() {
        secret::Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(bytes(credential.ca.as_deref()?)),
            crl: credential.crl.as_deref().map(bytes),
            ..Default::default()
        })
    } else {
        secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: Some(bytes(&credential.cert_chain)),
            private_key: Some(bytes(&credential.private_key)),
            ..Default::default()
        })
    };
    Some(Resource::new(name.clone(), &Secret { name: name.to_string(), r#type: Some(r#type) }))
}
