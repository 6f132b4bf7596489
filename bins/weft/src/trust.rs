//! Who holds which root: the authority's Secret, and what each workload's proxy shows of its identity. Reading only.

use crate::dump::{Dump, secrets};
use crate::{forward, target};
use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::time::SystemTime;
use weft_ca::material::{PLUGGED_IN_SECRET, SELF_SIGNED_SECRET};
use weft_ca::rotation::{self, Phase, SecretData};
use weft_core::well_known::port;
use weft_k8s_api::Object;
use weft_store::ApiClient;
use weft_store::client::{ListOptions, WriteOptions};
use weft_tls::{CertificateFacts, TrustAnchors, pem};

/// Proxies asked at once.
const AT_ONCE: usize = 8;

/// The authority's Secret.
#[derive(Debug, Clone)]
pub struct Store {
    /// The object, with its version.
    pub object: Object,
    /// Its data, decoded.
    pub data: SecretData,
}

impl Store {
    /// The Secret in force in the control plane's namespace.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub async fn read(client: &ApiClient, namespace: &str) -> anyhow::Result<Self> {
        for name in [PLUGGED_IN_SECRET, SELF_SIGNED_SECRET] {
            match client.get(target::known("Secret")?, namespace, name).await {
                Ok(object) => return Ok(Self { data: decoded(&object)?, object }),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error).with_context(|| format!("secret {namespace}/{name}")),
            }
        }
        bail!(
            "namespace {namespace} has no Secret {PLUGGED_IN_SECRET} or {SELF_SIGNED_SECRET}: is the control plane there?"
        )
    }

    /// Writes other data, only when nobody else wrote meanwhile. `plugged`: into the Secret of a plugged-in authority.
    ///
    /// # Errors
    /// When somebody did, or the server refuses.
    pub async fn write(&mut self, client: &ApiClient, data: SecretData, plugged: bool) -> anyhow::Result<()> {
        let encoded: serde_json::Map<String, Value> =
            data.iter().map(|(key, value)| (key.clone(), json!(STANDARD.encode(value)))).collect();
        let mut object = self.object.clone();
        object.body.insert("data".into(), Value::Object(encoded));
        let options = WriteOptions::default();
        let written = if plugged && object.name() != PLUGGED_IN_SECRET {
            let namespace = object.metadata.namespace.take();
            object.metadata = Default::default();
            object.metadata.name = Some(PLUGGED_IN_SECRET.into());
            object.metadata.namespace = namespace;
            object.body.insert("type".into(), json!("Opaque"));
            client.create(&object, &options).await
        } else {
            client.replace(&object, &options).await
        };
        let written = written.context("the authority's Secret could not be written; run the command again")?;
        (self.object, self.data) = (written.object, data);
        Ok(())
    }

    /// The revocation lists in force, by their ids.
    pub fn lists(&self) -> Vec<String> {
        self.data.get("ca-crl.pem").map(|text| list_ids(text)).unwrap_or_default()
    }

    /// Whether what is announced is a new intermediate alone, under roots that were trusted before.
    pub fn same_root(&self) -> bool {
        let before = self.roots("old-root-cert.pem");
        self.roots("next-root-cert.pem").iter().all(|root| before.iter().any(|old| old.id == root.id))
    }

    /// Where its rotation stands.
    pub fn phase(&self) -> Phase {
        rotation::phase(&self.data)
    }

    /// Roots of the key, each by itself.
    pub fn roots(&self, key: &str) -> Vec<Root> {
        self.data.get(key).map(|text| roots(text)).unwrap_or_default()
    }

    /// Every root that the Secret knows: those in force, those to come, those to go.
    pub fn known(&self) -> Vec<Root> {
        let mut all: Vec<Root> = Vec::new();
        // A self-signed authority is its own root.
        for key in ["root-cert.pem", "next-root-cert.pem", "old-root-cert.pem", "ca-cert.pem"] {
            for root in self.roots(key) {
                if root.signs_itself && !all.iter().any(|known| known.id == root.id) {
                    all.push(root);
                }
            }
        }
        all
    }

    /// The root of what signs now.
    pub fn signer(&self) -> Option<Root> {
        let chain = self.data.get("ca-cert.pem").and_then(|text| pem::certificates("CA certificate", text).ok())?;
        self.known().into_iter().find(|root| root.id == id(&chain[0]) || root.signed(&chain))
    }
}

fn decoded(object: &Object) -> anyhow::Result<SecretData> {
    let data = object.body.get("data").and_then(Value::as_object).into_iter().flatten();
    let decode = |(key, value): (&String, &Value)| {
        let text = value.as_str().with_context(|| format!("{} data.{key} is not text", object.key()))?;
        let bytes = STANDARD.decode(text).with_context(|| format!("{} data.{key} is not base64", object.key()))?;
        Ok((key.clone(), bytes))
    };
    data.map(decode).collect()
}

/// A root certificate.
#[derive(Debug, Clone)]
pub struct Root {
    /// The beginning of its SHA-256, hexadecimal: enough to tell the roots of a mesh apart.
    pub id: String,
    /// What it says.
    pub facts: CertificateFacts,
    anchors: TrustAnchors,
    signs_itself: bool,
}

impl Root {
    /// Whether a chain leads to it; how long the chain lasts is another question.
    fn signed(&self, chain: &[weft_tls::Der]) -> bool {
        let Some(leaf) = chain.first() else { return false };
        let Ok(facts) = CertificateFacts::from_der("certificate", leaf) else { return false };
        self.anchors.verify_chain(chain, facts.not_before).is_ok()
    }
}

fn id(der: &[u8]) -> String {
    weft_tls::hex(&weft_tls::sha256(der)[..4])
}

/// The certificates of a text as roots; those that cannot be read are left out.
pub fn roots(text: &[u8]) -> Vec<Root> {
    let read = |der: &weft_tls::Der| {
        let facts = CertificateFacts::from_der("root certificate", der).ok()?;
        let anchors = TrustAnchors::from_pem(pem::encode("CERTIFICATE", der).as_bytes()).ok()?;
        let signs_itself = facts.subject == facts.issuer;
        Some(Root { id: id(der), facts, anchors, signs_itself })
    };
    pem::certificates("root certificates", text).unwrap_or_default().iter().filter_map(read).collect()
}

/// The revocation lists of a text, each by the beginning of its SHA-256; those that cannot be read are left out.
pub fn list_ids(text: &[u8]) -> Vec<String> {
    pem::revocation_lists(text).unwrap_or_default().iter().map(|der| id(der)).collect()
}

/// What a workload holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    /// `POD.NAMESPACE`.
    pub name: String,
    /// Id of the root that its certificate leads to.
    pub signed_by: Option<String>,
    /// Ids of the roots that it trusts.
    pub trusts: Vec<String>,
    /// Ids of the revocation lists that it has; empty when it has none, or does not say.
    pub lists: Vec<String>,
    /// End of its certificate.
    pub not_after: Option<SystemTime>,
    /// Why nothing is known of it.
    pub problem: Option<String>,
}

/// Every workload with a proxy, and what it holds, by name. Machines outside the cluster are named, but cannot be asked.
///
/// # Errors
/// When the pods or the machines cannot be listed.
pub async fn holders(client: &ApiClient, known: &[Root]) -> anyhow::Result<Vec<Holder>> {
    let all = ListOptions::default();
    let pods = client.list(target::known("Pod")?, None, &all).await.context("cannot list pods")?;
    let machines = match client.list(target::known("WorkloadEntry")?, None, &all).await {
        Ok(list) => list.items,
        // A cluster without Istio's definitions has none.
        Err(error) if error.is_not_found() => Vec::new(),
        Err(error) => return Err(error).context("cannot list workload entries"),
    };
    let with_proxy = pods.items.into_iter().filter(holds_identity);
    let asked = futures_util::stream::iter(with_proxy).map(|pod| async move { holder(client, &pod, known).await });
    let mut all: Vec<Holder> = asked.buffer_unordered(AT_ONCE).collect().await;
    all.extend(machines.iter().filter_map(machine));
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Whether the pod runs a proxy that can show what it holds.
fn holds_identity(pod: &Object) -> bool {
    target::has_proxy(pod) && target::phase(pod) == "Running" && pod.metadata.deletion_timestamp.is_none()
}

/// A machine with a proxy of its own: one that registered itself and is connected, or that takes mutual TLS. Nothing leads from
/// here to its admin port.
fn machine(entry: &Object) -> Option<Holder> {
    let registered = entry.annotation("istio.io/autoRegistrationGroup").is_some_and(|group| !group.is_empty());
    let connected = registered && entry.annotation("istio.io/disconnectedAt").is_none();
    let declared = !registered && entry.spec()["labels"]["security.istio.io/tlsMode"] == "istio";
    (connected || declared).then(|| Holder {
        name: format!("{}.{}", entry.name(), entry.namespace()),
        problem: Some(
            "a machine outside the cluster (WorkloadEntry) cannot be asked: look at its own port 15000".into(),
        ),
        ..Holder::default()
    })
}

async fn holder(client: &ApiClient, pod: &Object, known: &[Root]) -> Holder {
    let name = format!("{}.{}", pod.name(), pod.namespace());
    let dump = match forward::get(client, pod, port::ADMIN, "/config_dump").await {
        Ok(body) => Dump::parse(&body),
        Err(error) => Err(format!("{error:#}")),
    };
    match dump {
        Ok(dump) => held(name, &dump, known),
        Err(problem) => Holder { name, problem: Some(problem), ..Holder::default() },
    }
}

/// What a dump says of the identity: the secrets `default` and `ROOTCA`.
fn held(name: String, dump: &Dump, known: &[Root]) -> Holder {
    let chain = secrets::text_of(dump, "default").and_then(|text| pem::certificates("chain", &text).ok());
    let Some(chain) = chain else {
        return Holder { name, problem: Some("it has no identity".into()), ..Holder::default() };
    };
    let trusted = secrets::text_of(dump, "ROOTCA").map(|text| roots(&text)).unwrap_or_default();
    // A root that the Secret does not know any more may still be the one that signed.
    let signer = known.iter().chain(&trusted).find(|root| root.signed(&chain));
    Holder {
        name,
        signed_by: signer.map(|root| root.id.clone()),
        trusts: trusted.into_iter().map(|root| root.id).collect(),
        lists: secrets::lists_of(dump, "ROOTCA").map(|text| list_ids(&text)).unwrap_or_default(),
        not_after: CertificateFacts::from_der("certificate", &chain[0]).ok().map(|facts| facts.not_after),
        problem: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use weft_ca::{Authority, CaPolicy};
    use weft_identity::TrustDomain;

    fn authority() -> Authority {
        weft_tls::install_provider();
        let domain = TrustDomain::new("td").unwrap();
        Authority::self_signed(domain, CaPolicy::default(), SystemTime::now()).unwrap()
    }

    fn dump(chain: &str, trusted: &str) -> Dump {
        Dump::parse(dump_value(chain, trusted).to_string().as_bytes()).unwrap()
    }

    fn dump_value(chain: &str, trusted: &str) -> Value {
        let bytes = |text: &str| json!({"inline_bytes": STANDARD.encode(text)});
        let secrets = json!([
            {"name": "default", "secret": {"name": "default", "tls_certificate": {"certificate_chain": bytes(chain)}}},
            {"name": "ROOTCA", "secret": {"name": "ROOTCA", "validation_context": {"trusted_ca": bytes(trusted)}}},
        ]);
        let section =
            json!({"@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump", "dynamic_active_secrets": secrets});
        json!({"configs": [section]})
    }

    #[test]
    fn native_sidecars_and_machines_count() {
        let object = |value: Value| -> Object { serde_json::from_value(value).unwrap() };
        let native = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "b"},
            "spec": {"containers": [{"name": "app"}],
                     "initContainers": [{"name": "istio-proxy", "restartPolicy": "Always"}]},
            "status": {"phase": "Running"}});
        assert!(holds_identity(&object(native)));
        let entry = |annotations: Value, labels: Value| {
            let entry = json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
                "metadata": {"name": "vm", "namespace": "b", "annotations": annotations}, "spec": {"labels": labels}});
            machine(&object(entry)).map(|holder| (holder.name, holder.problem.is_some()))
        };
        let named = Some(("vm.b".to_owned(), true));
        let group = "istio.io/autoRegistrationGroup";
        assert_eq!(entry(json!({group: "b/vms"}), json!({})), named);
        assert_eq!(entry(json!({group: "b/vms", "istio.io/disconnectedAt": "2026-01-01T00:00:00Z"}), json!({})), None);
        assert_eq!(entry(json!({}), json!({"security.istio.io/tlsMode": "istio"})), named);
        assert_eq!(entry(json!({}), json!({"app": "db"})), None);
    }

    #[test]
    fn who_holds_what() {
        let (old, new) = (authority(), authority());
        let ttl = Duration::from_secs(600);
        let (chain, _) = old.server_certificate_pem(&["a"], None, ttl, SystemTime::now()).unwrap();
        let data = rotation::announce(&old.material().to_secret(), new.material()).unwrap();
        let store = Store {
            object: serde_json::from_value(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}})).unwrap(),
            data,
        };
        let known = store.known();
        let (old_id, new_id) = (id(&old.roots().certificates()[0]), id(&new.roots().certificates()[0]));
        assert_eq!(known.iter().map(|root| root.id.clone()).collect::<Vec<_>>(), [old_id.clone(), new_id.clone()]);
        assert_eq!(store.signer().map(|root| root.id), Some(old_id.clone()));
        // Lists are told of when the proxy shows them.
        let material = old.material();
        let issuer = weft_tls::Issuer::from_pem(material.ca_cert.as_bytes(), material.ca_key.as_bytes()).unwrap();
        let list = issuer.revocation_list(&[], SystemTime::now(), SystemTime::now() + ttl).unwrap();
        let mut shown = dump_value(&chain, old.root_pem());
        shown["configs"][0]["dynamic_active_secrets"][1]["secret"]["validation_context"]["crl"] =
            json!({"inline_bytes": STANDARD.encode(&list)});
        let with_lists = held("a.b".into(), &Dump::parse(shown.to_string().as_bytes()).unwrap(), &known);
        assert_eq!((with_lists.lists.len(), &with_lists.lists), (1, &list_ids(list.as_bytes())));
        let both = format!("{}{}", old.root_pem(), new.root_pem());
        let holder = held("a.b".into(), &dump(&chain, &both), &known);
        assert_eq!((holder.signed_by.as_ref(), holder.trusts), (Some(&old_id), vec![old_id.clone(), new_id.clone()]));
        let switched = Store { data: rotation::switch(&store.data).unwrap(), ..store };
        assert_eq!(switched.signer().map(|root| root.id), Some(new_id));
        // Without an identity nothing is made up.
        let none = held("a.b".into(), &Dump::parse(br#"{"configs": []}"#).unwrap(), &known);
        assert_eq!(none.problem.as_deref(), Some("it has no identity"));
    }
}
