//! What tests of this crate share: updates from Envoy's own YAML, and certificates.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.
#![allow(dead_code)] // Each test uses its part.

use std::time::{Duration, SystemTime};
use weft_proto::any::TypeUrl;
use weft_proxy_config::{Applied, ConfigBuilder, Update, Upsert};

/// An update of one type from YAML documents, each with the name it is sent under.
pub fn update<M>(resources: &[(&str, &str)], removals: &[&str]) -> Update
where
    M: prost::Message + prost::Name + Default,
{
    let upsert = |(name, yaml): &(&str, &str)| {
        let message: M = weft_proto::json::from_yaml(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"));
        Upsert { name: name.to_string(), version: "1".into(), any: weft_proto::pack(&message) }
    };
    Update {
        type_url: M::type_url_of(),
        upserts: resources.iter().map(upsert).collect(),
        removals: removals.iter().map(ToString::to_string).collect(),
    }
}

/// Applies, and expects that nothing is refused.
pub fn accept(builder: &mut ConfigBuilder, update: &Update) -> Applied {
    let applied = builder.apply(update);
    assert_eq!(applied.refused, vec![]);
    applied
}

/// PEM of a root, and of a certificate under it for a SPIFFE id with its key.
pub struct Pki {
    pub root: String,
    pub chain: String,
    pub key: String,
}

impl Pki {
    pub fn new(id: &str) -> Self {
        let now = SystemTime::now();
        let (not_before, not_after) = (now - Duration::from_secs(60), now + Duration::from_secs(3600));
        let root = weft_tls::Issuer::self_signed(&weft_tls::RootParams {
            organization: "cluster.local".into(),
            key: weft_tls::KeyKind::default(),
            not_before,
            not_after,
        })
        .unwrap();
        let key = weft_tls::PrivateKey::generate(weft_tls::KeyKind::default()).unwrap();
        let names = vec![weft_tls::San::Uri(id.into())];
        let leaf = weft_tls::LeafParams { names, not_before, not_after };
        let issued = root.sign_key(&key, &leaf).unwrap();
        Self { root: root.certificate_pem(), chain: issued.pem, key: key.to_pem().to_string() }
    }

    /// The certificate as SDS sends it.
    pub fn certificate(&self, name: &str) -> Upsert {
        self.secret(
            name,
            serde_json::json!({"name": name, "tls_certificate": {
            "certificate_chain": {"inline_string": self.chain}, "private_key": {"inline_string": self.key}}}),
        )
    }

    /// The root as SDS sends it.
    pub fn validation(&self, name: &str) -> Upsert {
        self.secret(
            name,
            serde_json::json!({"name": name, "validation_context": {"trusted_ca": {"inline_string": self.root}}}),
        )
    }

    fn secret(&self, name: &str, json: serde_json::Value) -> Upsert {
        let message: weft_proto::envoy::extensions::transport_sockets::tls::v3::Secret =
            weft_proto::json::from_json(&json).unwrap();
        Upsert { name: name.into(), version: "1".into(), any: weft_proto::pack(&message) }
    }
}

/// An update of secrets.
pub fn secrets(upserts: Vec<Upsert>) -> Update {
    Update { type_url: weft_proto::type_url::SECRET.into(), upserts, removals: Vec::new() }
}
