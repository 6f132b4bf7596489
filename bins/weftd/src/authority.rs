//! What signs certificates: found (an authority elsewhere, the user's, our own), or created so that two control planes that
//! start together agree on one; and followed as it changes.

use crate::registration;
use crate::settings::{ExternalCa, Settings};
use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use weft_ca::material::{CA_CRL, PLUGGED_IN_SECRET, SELF_SIGNED_SECRET};
use weft_ca::{Authority, CaMaterial, CaPolicy, CertificateService, Signing};
use weft_core::well_known::ROOT_CERT_CONFIG_MAP;
use weft_identity::TrustDomain;
use weft_k8s_api::Object;
use weft_k8s_api::istio::MeshConfig;
use weft_k8s_api::kinds::by_kind;
use weft_store::client::WriteOptions;
use weft_store::{ApiClient, Cache, ClientError};

/// Pause between tries while the API server cannot be reached.
const RETRY: Duration = Duration::from_secs(1);
/// How often files are looked at.
const FILE_POLL: Duration = Duration::from_secs(5);

/// The policy that the settings ask for.
fn policy(settings: &Settings) -> CaPolicy {
    CaPolicy { default_ttl: settings.workload_cert_ttl, max_ttl: settings.max_workload_cert_ttl, ..CaPolicy::default() }
}

/// What signs: an authority elsewhere, when the settings say so; else plugged in (`cacerts`, or files), else self-signed
/// (`istio-ca-secret`), else a new one. Waits for the API server; a Secret that holds no usable authority is an error, for
/// another one would cut the mesh in two.
pub(crate) async fn load_or_create(
    client: &ApiClient,
    settings: &Arc<Settings>,
    mesh: &MeshConfig,
    trust_domain: &TrustDomain,
) -> anyhow::Result<Signing> {
    let Some(kind) = settings.external_ca else {
        return own(client, settings, trust_domain).await.map(Signing::Own);
    };
    let mut registration = registration::new(client, settings, mesh, policy(settings), kind)?;
    if kind == ExternalCa::IstioApi {
        registration = registration.with_server(own(client, settings, trust_domain).await?)?;
    }
    tracing::info!("certificates are signed elsewhere: {}", registration.name());
    Ok(registration.into())
}

/// An authority of our own.
async fn own(client: &ApiClient, settings: &Settings, trust_domain: &TrustDomain) -> anyhow::Result<Arc<Authority>> {
    loop {
        match try_once(client, settings, trust_domain).await {
            Ok(Some(authority)) => return Ok(Arc::new(authority)),
            // Another control plane was quicker: its authority is there to be read now.
            Ok(None) => {}
            Err(error) if is_passing(&error) => {
                tracing::warn!("certificate authority: {error:#}; trying again");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The API server may come back, the namespace may be created yet, and an account may be granted its rights.
fn is_passing(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Config(_) | ClientError::Invalid { .. }) | None => false,
        Some(_) => true,
    }
}

async fn try_once(
    client: &ApiClient,
    settings: &Settings,
    trust_domain: &TrustDomain,
) -> anyhow::Result<Option<Authority>> {
    let Some(secret) = by_kind("", "Secret") else { bail!("kind Secret is not known") };
    for name in [PLUGGED_IN_SECRET, SELF_SIGNED_SECRET] {
        match client.get(secret, &settings.namespace, name).await {
            Ok(object) => {
                return with_usable_lists(client, settings, read(&object, settings, trust_domain)?).await.map(Some);
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(authority) = from_files(settings, trust_domain)? {
            return with_usable_lists(client, settings, authority).await.map(Some);
        }
    }
    let authority = Authority::self_signed(trust_domain.clone(), policy(settings), SystemTime::now())?;
    let created = client.create(&secret_of(&authority, &settings.namespace), &WriteOptions::default()).await;
    match created {
        Ok(_) => {
            tracing::info!("created the certificate authority of {trust_domain}");
            Ok(Some(authority))
        }
        Err(ClientError::AlreadyExists(_) | ClientError::Conflict(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The authority; with the lists that workloads have by now in place of lists under which they would believe nobody. Such lists
/// are an error of the user's, and no reason to stand still; neither is that those of the workloads cannot be used.
async fn with_usable_lists(client: &ApiClient, settings: &Settings, authority: Authority) -> anyhow::Result<Authority> {
    let Err(error) = authority.check_lists(SystemTime::now()) else { return Ok(authority) };
    tracing::error!("the revocation lists that workloads have stay in force: {error}");
    let Some(kind) = by_kind("", "ConfigMap") else { bail!("kind ConfigMap is not known") };
    let published = match client.get(kind, &settings.namespace, ROOT_CERT_CONFIG_MAP).await {
        Ok(object) => object.body.get("data").and_then(|data| data[CA_CRL].as_str()).unwrap_or_default().to_owned(),
        Err(error) if error.is_not_found() => String::new(),
        Err(error) => return Err(error.into()),
    };
    // Those of the Secret hold then: who checks by them believes nobody, rather than one that is revoked.
    match weft_tls::check_crls(published.as_bytes()) {
        Err(error) if !published.is_empty() => {
            tracing::error!(
                "{}/{ROOT_CERT_CONFIG_MAP} {CA_CRL} cannot be used, so that the Secret's own lists are published: {error}",
                settings.namespace
            );
            Ok(authority)
        }
        _ => authority.with_lists(published).context("the revocation lists of the ConfigMap"),
    }
}

fn read(object: &Object, settings: &Settings, trust_domain: &TrustDomain) -> anyhow::Result<Authority> {
    let what = || format!("{} holds no usable certificate authority", object.key());
    let material = CaMaterial::from_secret(&data(object).with_context(what)?).with_context(what)?;
    Authority::from_material(material, trust_domain.clone(), policy(settings), SystemTime::now()).with_context(what)
}

/// The authority that is mounted as files; `None` when there is none.
fn from_files(settings: &Settings, trust_domain: &TrustDomain) -> anyhow::Result<Option<Authority>> {
    let folder = &settings.root_ca_dir;
    if !folder.join(weft_ca::material::CA_CERT).exists() {
        return Ok(None);
    }
    let what = || format!("{} holds no usable certificate authority", folder.display());
    let material = CaMaterial::from_files(folder).with_context(what)?;
    let authority = Authority::from_material(material, trust_domain.clone(), policy(settings), SystemTime::now());
    authority.map(Some).with_context(what)
}

/// The decoded data of a Secret.
fn data(object: &Object) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let fields = object.body.get("data").and_then(Value::as_object);
    let decode = |(key, value): (&String, &Value)| {
        let text = value.as_str().with_context(|| format!("data.{key} is not a string"))?;
        Ok((key.clone(), STANDARD.decode(text).with_context(|| format!("data.{key} is not base64"))?))
    };
    fields.into_iter().flatten().map(decode).collect()
}

fn secret_of(authority: &Authority, namespace: &str) -> Object {
    let encoded = authority.material().to_secret().into_iter().map(|(k, v)| (k, Value::String(STANDARD.encode(v))));
    let data: Map<String, Value> = encoded.collect();
    let mut object = Object {
        api_version: "v1".into(),
        kind: "Secret".into(),
        metadata: Default::default(),
        body: Map::from_iter([
            ("type".to_string(), json!("istio.io/ca-root")),
            ("data".to_string(), Value::Object(data)),
        ]),
    };
    object.metadata.name = Some(SELF_SIGNED_SECRET.into());
    object.metadata.namespace = Some(namespace.to_string());
    object
}

/// What the authority did, and how long it lasts, as Prometheus text under Istio's names.
pub(crate) fn metrics(service: &CertificateService) -> String {
    let (stats, signing) = (service.stats(), service.signing());
    let unix = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let left = |time: SystemTime| time.duration_since(SystemTime::now()).map_or(0, |left| left.as_secs());
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let root = signing.root_not_after();
    let chain = signing.facts().map_or(root, |facts| facts.not_after);
    let rows = [
        ("csr_count", "counter", "Certificate requests received", count(&stats.requests)),
        (
            "authentication_failure_count",
            "counter",
            "Certificate requests whose caller is not known",
            count(&stats.authentication_failures),
        ),
        ("csr_parsing_err_count", "counter", "Certificate requests that cannot be read", count(&stats.unreadable)),
        ("id_extraction_err_count", "counter", "Certificate requests for another's identity", count(&stats.not_theirs)),
        ("csr_sign_err_count", "counter", "Certificate requests that the authority failed on", count(&stats.failures)),
        ("success_cert_issuance_count", "counter", "Certificates signed", count(&stats.signed)),
        ("root_cert_expiry_timestamp", "gauge", "Earliest end of a root, seconds since 1970", unix(root)),
        ("root_cert_expiry_seconds", "gauge", "Seconds until the earliest end of a root", left(root)),
        ("cert_chain_expiry_timestamp", "gauge", "End of the certificate that signs, seconds since 1970", unix(chain)),
        ("cert_chain_expiry_seconds", "gauge", "Seconds until the end of the certificate that signs", left(chain)),
    ];
    let row = |prefix: &str, (name, kind, help, value): (&str, &str, &str, u64)| {
        format!("# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind}\n{prefix}{name} {value}\n")
    };
    let lists = signing.lists_until().map_or(String::new(), |until| {
        let help = "Seconds until the earliest end of a revocation list, when workloads refuse everybody";
        row("weft_", ("ca_crl_expiry_seconds", "gauge", help, left(until)))
    });
    let help = "1 while the Secret or files of the authority that signs are gone";
    let missing = row("weft_", ("ca_source_missing", "gauge", help, u64::from(service.source_missing())));
    let refused =
        ("ca_rate_limited_count", "counter", "Certificate requests refused for their rate", count(&stats.refused));
    rows.map(|of| row("citadel_server_", of)).concat() + &lists + &missing + &row("weft_", refused)
}

/// Follows the CA's Secrets and files: a rotated or plugged-in authority signs from then on. What cannot be used changes
/// nothing, and neither does a Secret that vanishes: an authority that nobody has asked for would cut the mesh in two. Both are
/// told of once. An authority elsewhere is followed by [`follow_elsewhere`].
pub(crate) async fn follow(
    cache: Arc<Cache>,
    settings: Arc<Settings>,
    trust_domain: TrustDomain,
    certificates: CertificateService,
    current: watch::Sender<Signing>,
) {
    let mut changes = cache.changed();
    // What changed since the authority was loaded counts too.
    changes.mark_changed();
    let mut seen = Seen::default();
    let mut said = String::new();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(FILE_POLL) => {}
        }
        let now = current.borrow().clone();
        let Signing::Own(authority) = &now else { return };
        let found = seen.look(&cache, authority, &settings, &trust_domain);
        certificates.set_source_missing(seen.missing);
        match found {
            Ok(None) => {}
            Ok(Some(new)) => {
                tracing::info!(signer = new.facts().subject, "the certificate authority changed");
                said.clear();
                certificates.set_signing(new.clone());
                current.send_replace(Signing::Own(new));
            }
            Err(error) => {
                let text = format!("{error:#}");
                if text != said {
                    tracing::error!("the certificate authority in force stays: {text}");
                    said = text;
                }
            }
        }
    }
}

/// Where an authority may come from, the first that is there counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    PluggedIn,
    Files,
    SelfSigned,
}

/// What the follower has seen.
#[derive(Debug, Default)]
struct Seen {
    /// The Secret that was read last.
    object: Option<Arc<Object>>,
    /// Where the authority in force came from; `None` until one was found.
    source: Option<Source>,
    /// It is not there any more.
    missing: bool,
}

impl Seen {
    /// The authority that the Secrets and files hold now, when it is another one than `current`.
    ///
    /// # Errors
    /// Why what they hold cannot be used, or that it is gone.
    fn look(
        &mut self,
        cache: &Cache,
        current: &Authority,
        settings: &Settings,
        trust_domain: &TrustDomain,
    ) -> anyhow::Result<Option<Arc<Authority>>> {
        let find = |name| cache.find("", "Secret", &settings.namespace, name);
        let (source, found) = match (find(PLUGGED_IN_SECRET), from_files(settings, trust_domain)) {
            (Some(object), _) => {
                let found = from_object(current, object, &mut self.object, settings, trust_domain);
                (Some(Source::PluggedIn), found)
            }
            (None, Err(error)) => (self.source, Err(error)),
            (None, Ok(Some(files))) if files.material() != current.material() => {
                let usable = files.check_lists(SystemTime::now());
                (Some(Source::Files), usable.map(|()| Some(Arc::new(files))).map_err(anyhow::Error::from))
            }
            (None, Ok(Some(_))) => (Some(Source::Files), Ok(None)),
            (None, Ok(None)) => match find(SELF_SIGNED_SECRET) {
                Some(object) if self.source.is_none_or(|source| source == Source::SelfSigned) => {
                    let found = from_object(current, object, &mut self.object, settings, trust_domain);
                    (Some(Source::SelfSigned), found)
                }
                Some(_) => (Some(Source::SelfSigned), Ok(None)),
                None => (None, Ok(None)),
            },
        };
        // From a self-signed authority to one that the user plugs in is a wish; the way back nobody has asked for.
        self.missing = self.source.is_some_and(|before| source.is_none_or(|now| now > before));
        if self.missing {
            let what = match self.source {
                Some(Source::PluggedIn) => format!("Secret {}/{PLUGGED_IN_SECRET}", settings.namespace),
                Some(Source::Files) => settings.root_ca_dir.display().to_string(),
                _ => format!("Secret {}/{SELF_SIGNED_SECRET}", settings.namespace),
            };
            bail!("{what} is gone; put it back, for after a restart another authority would sign");
        }
        if found.is_ok() {
            self.source = source;
        }
        found
    }
}

fn from_object(
    current: &Authority,
    object: Arc<Object>,
    seen: &mut Option<Arc<Object>>,
    settings: &Settings,
    trust_domain: &TrustDomain,
) -> anyhow::Result<Option<Arc<Authority>>> {
    if seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &object)) {
        return Ok(None);
    }
    let found = other_than(current, &object, settings, trust_domain);
    *seen = Some(object);
    found
}

/// Follows the roots of an authority elsewhere: its file, and the mesh config.
pub(crate) async fn follow_elsewhere(
    client: ApiClient,
    settings: Arc<Settings>,
    mut meshes: watch::Receiver<Arc<MeshConfig>>,
    certificates: CertificateService,
    current: watch::Sender<Signing>,
) {
    let Some(kind) = settings.external_ca else { return };
    loop {
        tokio::select! {
            changed = meshes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(FILE_POLL) => {}
        }
        let mesh = meshes.borrow_and_update().clone();
        let server = match &*current.borrow() {
            Signing::Elsewhere(registration) => registration.server().cloned(),
            Signing::Own(_) => None,
        };
        let found = registration::new(&client, &settings, &mesh, policy(&settings), kind);
        let found = found.and_then(|new| match server {
            Some(authority) => Ok(new.with_server(authority)?),
            None => Ok(new),
        });
        match found {
            Ok(new) if new.roots() == current.borrow().roots() => {}
            Ok(new) => {
                tracing::info!("the roots of the authority elsewhere changed");
                let signing = Signing::from(new);
                certificates.set_signing(signing.clone());
                current.send_replace(signing);
            }
            Err(error) => tracing::warn!("the roots of the authority elsewhere in force stay: {error:#}"),
        }
    }
}

/// The authority that `object` holds, when it is another one than `current`.
fn other_than(
    current: &Authority,
    object: &Object,
    settings: &Settings,
    trust_domain: &TrustDomain,
) -> anyhow::Result<Option<Arc<Authority>>> {
    let material = data(object).ok().and_then(|d| CaMaterial::from_secret(&d).ok());
    if material.as_ref().is_some_and(|m| m == current.material()) {
        return Ok(None);
    }
    let authority = read(object, settings, trust_domain)?;
    authority.check_lists(SystemTime::now()).with_context(|| object.key().to_string())?;
    Ok(Some(Arc::new(authority)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[tokio::test]
    async fn published_lists_that_cannot_be_read_do_not_stop_the_start() {
        use weft_apiserver::{AdminToken, ApiServer, ApiServerOptions};
        weft_tls::install_provider();
        let settings = Settings::parse_from(["weftd"]);
        let admin_tokens = vec![AdminToken { token: "token of an administrator".into(), user: "admin".into() }];
        let namespaces = vec![settings.namespace.clone()];
        let options = ApiServerOptions { namespaces, admin_tokens, ..ApiServerOptions::default() };
        let api = ApiServer::new(weft_store::MemoryStore::new(), options).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let client = ApiClient::connect(&address, Some("token of an administrator")).unwrap();
        let server = tokio::spawn(async move { api.serve(listener, std::future::pending()).await });
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": ROOT_CERT_CONFIG_MAP, "namespace": settings.namespace}, "data": {CA_CRL: "no list"}});
        client.create(&serde_json::from_value(map).unwrap(), &WriteOptions::default()).await.unwrap();
        let domain = TrustDomain::new("cluster.local").unwrap();
        let made = Authority::self_signed(domain, CaPolicy::default(), SystemTime::now()).unwrap();
        let material = made.material();
        let issuer = weft_tls::Issuer::from_pem(material.ca_cert.as_bytes(), material.ca_key.as_bytes()).unwrap();
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let ended = issuer.revocation_list(&[], now - 2 * hour, now - hour).unwrap();
        let authority = with_usable_lists(&client, &settings, made.with_lists(ended.clone()).unwrap()).await.unwrap();
        assert_eq!(authority.material().crl, ended, "fail closed: the Secret's own");
        server.abort();
    }

    #[tokio::test]
    async fn a_change_that_came_before_the_follower_counts() {
        weft_tls::install_provider();
        let settings = Arc::new(Settings::parse_from(["weftd"]));
        let domain = TrustDomain::new("cluster.local").unwrap();
        let made = || Arc::new(Authority::self_signed(domain.clone(), CaPolicy::default(), SystemTime::now()).unwrap());
        let (old, new) = (made(), made());
        let cache = Arc::new(Cache::from_objects([secret_of(&new, &settings.namespace)]));
        let certificates = CertificateService::new(old.clone(), Vec::new());
        let (current, mut told) = watch::channel(Signing::Own(old.clone()));
        let task = tokio::spawn(follow(cache.clone(), settings.clone(), domain.clone(), certificates.clone(), current));
        let mut next = async || {
            let changed = tokio::time::timeout(Duration::from_secs(30), told.changed()).await;
            changed.expect("in time").unwrap();
            told.borrow_and_update().root_pem()
        };
        assert_eq!(next().await, new.root_pem());
        assert_eq!(certificates.signing().root_pem(), new.root_pem());
        // A plugged-in one that cannot be used changes nothing; a good one does.
        let mut plugged = secret_of(&old, &settings.namespace);
        plugged.metadata.name = Some(PLUGGED_IN_SECRET.into());
        let mut broken = plugged.clone();
        broken.body.insert("data".into(), json!({"ca-cert.pem": "?"}));
        cache.put(Arc::new(broken));
        cache.put(Arc::new(plugged.clone()));
        assert_eq!(next().await, old.root_pem());
        // A Secret that vanishes brings no other authority, and the one before does not come back; a new one does.
        cache.remove(&plugged.key());
        let missing = async || {
            while !certificates.source_missing() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), missing()).await.expect("it is noticed");
        assert!(metrics(&certificates).contains("weft_ca_source_missing 1"));
        assert_eq!(certificates.signing().root_pem(), old.root_pem());
        let other = made();
        let mut again = secret_of(&other, &settings.namespace);
        again.metadata.name = Some(PLUGGED_IN_SECRET.into());
        cache.put(Arc::new(again.clone()));
        assert_eq!(next().await, other.root_pem());
        assert!(metrics(&certificates).contains("weft_ca_source_missing 0"));
        // Lists under which nobody would be believed change nothing; good ones come through.
        let issuer = |of: &Authority| {
            weft_tls::Issuer::from_pem(of.material().ca_cert.as_bytes(), of.material().ca_key.as_bytes()).unwrap()
        };
        let (at, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let with = |list: String| {
            let mut object = again.clone();
            object.body["data"][CA_CRL] = json!(STANDARD.encode(list));
            Arc::new(object)
        };
        cache.put(with(issuer(&other).revocation_list(&[], at - 2 * hour, at - hour).unwrap()));
        cache.put(with(issuer(&old).revocation_list(&[], at, at + hour).unwrap()));
        let good = issuer(&other).revocation_list(&[], at, at + hour).unwrap();
        cache.put(with(good.clone()));
        assert_eq!(next().await, other.root_pem());
        assert_eq!(certificates.signing().crl_pem(), good);
        assert!(metrics(&certificates).contains("weft_ca_crl_expiry_seconds 3"));
        task.abort();
    }
}
