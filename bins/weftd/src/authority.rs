//! The certificate authority's Secret: found, or created so that two control planes that start together agree on one.

use crate::settings::Settings;
use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use weft_ca::material::{PLUGGED_IN_SECRET, SELF_SIGNED_SECRET};
use weft_ca::{Authority, CaMaterial, CaPolicy, CertificateService};
use weft_identity::TrustDomain;
use weft_k8s_api::Object;
use weft_k8s_api::kinds::by_kind;
use weft_store::client::WriteOptions;
use weft_store::{ApiClient, Cache, ClientError};

/// Pause between tries while the API server cannot be reached.
const RETRY: Duration = Duration::from_secs(1);

/// The policy that the settings ask for.
fn policy(settings: &Settings) -> CaPolicy {
    CaPolicy { default_ttl: settings.workload_cert_ttl, max_ttl: settings.max_workload_cert_ttl, ..CaPolicy::default() }
}

/// The authority: plugged in (`cacerts`), else self-signed (`istio-ca-secret`), else a new one. Waits for the API server;
/// a Secret that holds no usable authority is an error, for another one would cut the mesh in two.
pub(crate) async fn load_or_create(
    client: &ApiClient,
    settings: &Settings,
    trust_domain: &TrustDomain,
) -> anyhow::Result<Arc<Authority>> {
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
            Ok(object) => return read(&object, settings, trust_domain).map(Some),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
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

fn read(object: &Object, settings: &Settings, trust_domain: &TrustDomain) -> anyhow::Result<Authority> {
    let what = || format!("{} holds no usable certificate authority", object.key());
    let material = CaMaterial::from_secret(&data(object).with_context(what)?).with_context(what)?;
    Authority::from_material(material, trust_domain.clone(), policy(settings), SystemTime::now()).with_context(what)
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
    let (stats, authority) = (service.stats(), service.authority());
    let unix = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let rows = [
        ("citadel_server_csr_count", "counter", "Certificate requests received", count(&stats.requests)),
        (
            "citadel_server_authentication_failure_count",
            "counter",
            "Certificate requests whose caller is not known",
            count(&stats.authentication_failures),
        ),
        ("weft_ca_refused_count", "counter", "Certificate requests refused for what they ask", count(&stats.refused)),
        (
            "citadel_server_csr_sign_err_count",
            "counter",
            "Certificate requests that failed here",
            count(&stats.failures),
        ),
        ("citadel_server_success_cert_issuance_count", "counter", "Certificates signed", count(&stats.signed)),
        (
            "citadel_server_root_cert_expiry_timestamp",
            "gauge",
            "Earliest end of a root, seconds since 1970",
            unix(authority.root_not_after()),
        ),
        (
            "citadel_server_cert_chain_expiry_timestamp",
            "gauge",
            "End of the certificate that signs, seconds since 1970",
            unix(authority.facts().not_after),
        ),
    ];
    rows.map(|(name, kind, help, value)| format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"))
        .concat()
}

/// Follows the CA's Secrets: a rotated or plugged-in authority signs from then on. A Secret that cannot be used changes
/// nothing, and is told of once.
pub(crate) async fn follow(
    cache: Arc<Cache>,
    settings: Arc<Settings>,
    trust_domain: TrustDomain,
    certificates: CertificateService,
    current: watch::Sender<Arc<Authority>>,
) {
    let mut changes = cache.changed();
    // What changed since the authority was loaded counts too.
    changes.mark_changed();
    let mut seen: Option<Arc<Object>> = None;
    while changes.changed().await.is_ok() {
        let find = |name| cache.find("", "Secret", &settings.namespace, name);
        let Some(object) = find(PLUGGED_IN_SECRET).or_else(|| find(SELF_SIGNED_SECRET)) else { continue };
        if seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &object)) {
            continue;
        }
        let now = current.borrow().clone();
        match other_than(&now, &object, &settings, &trust_domain) {
            Ok(None) => {}
            Ok(Some(new)) => {
                tracing::info!("the certificate authority changed");
                certificates.set_authority(new.clone());
                current.send_replace(new);
            }
            Err(error) => tracing::error!("the certificate authority in force stays: {error:#}"),
        }
        seen = Some(object);
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
    read(object, settings, trust_domain).map(|authority| Some(Arc::new(authority)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[tokio::test]
    async fn a_change_that_came_before_the_follower_counts() {
        weft_tls::install_provider();
        let settings = Arc::new(Settings::parse_from(["weftd"]));
        let domain = TrustDomain::new("cluster.local").unwrap();
        let made = || Arc::new(Authority::self_signed(domain.clone(), CaPolicy::default(), SystemTime::now()).unwrap());
        let (old, new) = (made(), made());
        let cache = Arc::new(Cache::from_objects([secret_of(&new, &settings.namespace)]));
        let certificates = CertificateService::new(old.clone(), Vec::new());
        let (current, mut told) = watch::channel(old.clone());
        let task = tokio::spawn(follow(cache.clone(), settings.clone(), domain.clone(), certificates.clone(), current));
        let mut next = async || {
            let changed = tokio::time::timeout(Duration::from_secs(10), told.changed()).await;
            changed.expect("in time").unwrap();
            told.borrow_and_update().root_pem().to_string()
        };
        assert_eq!(next().await, new.root_pem());
        assert_eq!(certificates.authority().root_pem(), new.root_pem());
        // A plugged-in one that cannot be used changes nothing; a good one does.
        let mut plugged = secret_of(&old, &settings.namespace);
        plugged.metadata.name = Some(PLUGGED_IN_SECRET.into());
        let mut broken = plugged.clone();
        broken.body.insert("data".into(), json!({"ca-cert.pem": "?"}));
        cache.put(Arc::new(broken));
        cache.put(Arc::new(plugged));
        assert_eq!(next().await, old.root_pem());
        task.abort();
    }
}
