//! DNS certificates (spec 2:DC): for each entry of mesh config `certificates` a Secret with a key, a certificate for the DNS
//! names and the roots; renewed in time, made again when it is deleted, changed or no longer trusted.

use crate::registration;
use crate::settings::{ExternalCa, Settings};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use weft_ca::material::{PLUGGED_IN_SECRET, SELF_SIGNED_SECRET};
use weft_ca::{CaPolicy, SignError, Signing};
use weft_k8s_api::Object;
use weft_k8s_api::istio::{Certificate, MeshConfig};
use weft_store::client::WriteOptions;
use weft_store::{ApiClient, Cache, ClientError};
use weft_tls::{CertificateFacts, pem};

/// Lifetime asked for.
const TTL: Duration = Duration::from_secs(90 * 24 * 3600);
/// How often what is there is looked at, beside changes.
const POLL: Duration = Duration::from_secs(30);
/// Least pause between looks.
const PAUSE: Duration = Duration::from_secs(1);
/// The same after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// Most certificates that are kept.
const MAX_CERTIFICATES: usize = 64;
/// Keys of the Secret.
const CHAIN: &str = "cert-chain.pem";
const KEY: &str = "key.pem";
const ROOTS: &str = "root-cert.pem";
/// Type of the Secrets, Istio's. What is of another type is somebody else's.
const TYPE: &str = "istio.io/dns-key-and-cert";

/// Keeps the Secrets right.
pub(crate) async fn keep(
    client: ApiClient,
    cache: Arc<Cache>,
    settings: Arc<Settings>,
    mut signing: watch::Receiver<Signing>,
    mut meshes: watch::Receiver<Arc<MeshConfig>>,
) {
    let mut changes = cache.changed();
    // What failed last, by the name of the Secret: it is told of once.
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    loop {
        let mesh = meshes.borrow_and_update().clone();
        let now = signing.borrow_and_update().clone();
        let wanted: Vec<&Certificate> = mesh.certificates.iter().take(MAX_CERTIFICATES).collect();
        if let Some(signer) = (!wanted.is_empty()).then(|| signer(&client, &settings, &mesh, now)).flatten() {
            for certificate in wanted {
                let name = &certificate.secret_name;
                let Err(error) = ensure(&client, &cache, &settings.namespace, &signer, certificate).await else {
                    said.remove(name);
                    continue;
                };
                if said.get(name) != Some(&error) {
                    tracing::warn!("DNS certificate {}/{name}: {error}", settings.namespace);
                    said.insert(name.clone(), error);
                }
            }
        }
        said.retain(|name, _| mesh.certificates.iter().any(|certificate| certificate.secret_name == *name));
        tokio::time::sleep(if said.is_empty() { PAUSE } else { RETRY }).await;
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            changed = changes.changed() => if changed.is_err() { return },
            changed = meshes.changed() => if changed.is_err() { return },
            changed = signing.changed() => if changed.is_err() { return },
        }
    }
}

/// Who signs: the signer of the Kubernetes API when one is set, so that clients that know the cluster's root and nothing of
/// the mesh trust the certificate (spec 2:DC-6); else what signs workloads.
fn signer(client: &ApiClient, settings: &Arc<Settings>, mesh: &MeshConfig, signing: Signing) -> Option<Signing> {
    if settings.k8s_signer.is_empty() || matches!(signing, Signing::Elsewhere(_)) {
        return Some(signing);
    }
    match registration::new(client, settings, mesh, CaPolicy::default(), ExternalCa::KubernetesCsr) {
        Ok(registration) => Some(registration.into()),
        Err(error) => {
            tracing::error!("DNS certificates: {error:#}");
            None
        }
    }
}

async fn ensure(
    client: &ApiClient,
    cache: &Cache,
    namespace: &str,
    signer: &Signing,
    certificate: &Certificate,
) -> Result<(), String> {
    let name = certificate.secret_name.as_str();
    if name.is_empty() || certificate.dns_names.is_empty() {
        return Err("secretName and dnsNames are required".into());
    }
    if [PLUGGED_IN_SECRET, SELF_SIGNED_SECRET].contains(&name) {
        return Err("the Secret of that name holds the mesh's own authority; name another one".into());
    }
    let held = cache.find("", "Secret", namespace, name);
    if held.as_ref().is_some_and(|object| object.body.get("type").and_then(Value::as_str) != Some(TYPE)) {
        return Err(format!(
            "the Secret is not of type {TYPE}, so it is somebody else's: name another one, or delete it"
        ));
    }
    if held.as_ref().is_some_and(|object| is_good(object, signer, certificate, SystemTime::now())) {
        return Ok(());
    }
    let names: Vec<&str> = certificate.dns_names.iter().map(String::as_str).collect();
    let made = signer.server_certificate_pem(&names, TTL).await;
    let (chain, key) = made.map_err(|error: SignError| error.to_string())?;
    let data = json!({
        CHAIN: STANDARD.encode(chain),
        KEY: STANDARD.encode(key.as_bytes()),
        ROOTS: STANDARD.encode(signer.root_pem()),
    });
    let options = WriteOptions::default();
    let written = match held {
        None => client.create(&secret(namespace, name, data), &options).await,
        Some(held) => {
            let mut object = (*held).clone();
            object.body.insert("data".into(), data);
            client.replace(&object, &options).await
        }
    };
    match written {
        Ok(_) => tracing::info!("DNS certificate {namespace}/{name} made for {}", names.join(", ")),
        // What is right now comes with the next change.
        Err(ClientError::AlreadyExists(_)) => {}
        Err(error) if error.is_conflict() || error.is_not_found() => {}
        Err(error) => return Err(error.to_string()),
    }
    Ok(())
}

/// The Secret has a key, a certificate for exactly the names, half of its life left, and a chain to the roots.
fn is_good(object: &Object, signer: &Signing, certificate: &Certificate, now: SystemTime) -> bool {
    let value = |key: &str| {
        let text = object.body.get("data")?.get(key)?.as_str()?;
        String::from_utf8(STANDARD.decode(text).ok()?).ok()
    };
    let (Some(chain), Some(key), Some(roots)) = (value(CHAIN), value(KEY), value(ROOTS)) else { return false };
    let Ok(ders) = pem::certificates(CHAIN, chain.as_bytes()) else { return false };
    let Ok(facts) = CertificateFacts::from_der(CHAIN, &ders[0]) else { return false };
    let names = facts.dns.len() == certificate.dns_names.len()
        && certificate.dns_names.iter().all(|name| facts.dns.iter().any(|dns| **dns == **name));
    let life = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
    let left = facts.not_after.duration_since(now).unwrap_or_default();
    names
        && left > life / 2
        && roots == signer.root_pem()
        && weft_tls::CertifiedKey::from_pem(chain.as_bytes(), key.as_bytes()).is_ok()
        && signer.roots().verify_chain(&ders, now).is_ok()
}

fn secret(namespace: &str, name: &str, data: Value) -> Object {
    let mut object = Object {
        api_version: "v1".into(),
        kind: "Secret".into(),
        metadata: Default::default(),
        body: Default::default(),
    };
    object.metadata.name = Some(name.into());
    object.metadata.namespace = Some(namespace.into());
    object.body.insert("type".into(), json!(TYPE));
    object.body.insert("data".into(), data);
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_ca::Authority;
    use weft_identity::TrustDomain;

    /// Whoever names the Secret of something else in the mesh config keeps that.
    #[tokio::test]
    async fn somebody_elses_secrets_stay() {
        let authority = Authority::self_signed(TrustDomain::new("td").unwrap(), CaPolicy::default(), SystemTime::now());
        let signer = Signing::Own(Arc::new(authority.unwrap()));
        // Nobody answers there: what is written is an error of another kind.
        let client = ApiClient::connect("http://127.0.0.1:1", None).unwrap();
        let refused = async |name: &str, there: Option<&str>| {
            let held = there.map(|kind| {
                let mut object = secret("n", name, json!({"tls.crt": "AA=="}));
                object.body.insert("type".into(), json!(kind));
                crate::source::trim(&mut object, "n");
                object
            });
            let certificate = Certificate { secret_name: name.into(), dns_names: vec!["a.b".into()] };
            let cache = Cache::from_objects(held);
            ensure(&client, &cache, "n", &signer, &certificate).await.unwrap_err()
        };
        for (name, there, why) in [
            ("web", Some("kubernetes.io/tls"), "somebody else's"),
            ("web", Some("Opaque"), "somebody else's"),
            ("web", Some("helm.sh/release.v1"), "somebody else's"),
            ("cacerts", None, "own authority"),
            ("istio-ca-secret", Some("istio.io/ca-root"), "own authority"),
            ("web", Some(TYPE), "no answer"),
            ("web", None, "no answer"),
        ] {
            let error = refused(name, there).await;
            assert!(error.contains(why), "{name} {there:?}: {error}");
        }
    }

    #[tokio::test]
    async fn what_is_good_is_left_alone() {
        let made = || {
            let domain = TrustDomain::new("td").unwrap();
            Signing::Own(Arc::new(Authority::self_signed(domain, CaPolicy::default(), SystemTime::now()).unwrap()))
        };
        let (signer, other) = (made(), made());
        let wanted = |names: &[&str]| Certificate {
            secret_name: "dns.example".into(),
            dns_names: names.iter().map(ToString::to_string).collect(),
        };
        let (chain, key) = signer.server_certificate_pem(&["a.b.svc", "a.b"], TTL).await.unwrap();
        let data = |chain: &str, key: &str| {
            let encode = |text: &str| STANDARD.encode(text);
            secret("n", "s", json!({CHAIN: encode(chain), KEY: encode(key), ROOTS: encode(&signer.root_pem())}))
        };
        let good = data(&chain, &key);
        let now = SystemTime::now();
        let (_, other_key) = signer.server_certificate_pem(&["a.b"], TTL).await.unwrap();
        for (object, signer, names, at, want) in [
            (&good, &signer, &["a.b.svc", "a.b"][..], now, true),
            (&good, &signer, &["a.b", "a.b.svc"], now, true),
            (&good, &signer, &["a.b.svc"], now, false),
            (&good, &signer, &["a.b.svc", "c"], now, false),
            (&good, &other, &["a.b.svc", "a.b"], now, false),
            (&good, &signer, &["a.b.svc", "a.b"], now + TTL * 6 / 10, false),
            (&data(&chain, &other_key), &signer, &["a.b.svc", "a.b"], now, false),
            (&data("", &key), &signer, &["a.b.svc", "a.b"], now, false),
        ] {
            assert_eq!(is_good(object, signer, &wanted(names), at), want, "{names:?}");
        }
    }
}
