//! Whom workloads believe: the roots of what signs here, those that the mesh config adds (`caCertificates`), and those of
//! other trust domains, which may come from a SPIFFE bundle endpoint. Another trust domain's roots hold for its identities
//! alone: its authority cannot make one of ours.

use crate::auth::names;
use crate::mesh::model_settings;
use crate::settings::Settings;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_ca::Signing;
use weft_k8s_api::istio::MeshConfig;
use weft_tls::{ClientContext, ClientParams, ServerVerification, TrustAnchors, pem};

/// Time for a bundle endpoint to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// How often bundles are fetched.
const REFRESH: Duration = Duration::from_secs(300);
/// How often while one could not be.
const RETRY: Duration = Duration::from_secs(15);
/// Largest bundle.
const MAX_BUNDLE: usize = 1024 * 1024;
/// Most endpoints that are asked.
const MAX_ENDPOINTS: usize = 64;

/// Hashes of the endpoints' addresses by trust domain, beside `trust_domains`.
const ENDPOINTS: &str = "endpoints";

/// What is published to workloads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    /// Roots of the mesh, PEM; that of what signs now is the first.
    pub roots: String,
    /// Revocation lists, PEM; may be empty.
    pub crl: String,
    /// Roots by trust domain, JSON; empty when there is but one domain.
    pub bundles: String,
}

/// Bundles by address, as last fetched.
type Fetched = BTreeMap<String, String>;

/// Roots by which endpoints prove their names; asked for at each fetch, for they change.
pub(crate) type EndpointRoots = fn() -> Result<TrustAnchors, weft_tls::TlsError>;

/// Keeps `trust` at what signing, mesh config and bundle endpoints say. What is known is published at once; an endpoint that is
/// slow or silent holds nothing up. `published` are the bundles that workloads have from an earlier process: another mesh is
/// not forgotten for as long as its endpoint is asked.
pub(crate) async fn follow(
    settings: Arc<Settings>,
    mut signing: watch::Receiver<Signing>,
    mut meshes: watch::Receiver<Arc<MeshConfig>>,
    trust: watch::Sender<Arc<Trust>>,
    published: String,
    roots: EndpointRoots,
) {
    let mut fetched = known_from(&published, &meshes.borrow(), &settings);
    // When each endpoint is asked next; one that the config names anew is asked at once.
    let mut due: BTreeMap<String, Instant> = BTreeMap::new();
    let mut under_way: BTreeSet<String> = BTreeSet::new();
    let mut fetches: JoinSet<(String, Result<String, String>)> = JoinSet::new();
    loop {
        let (now, mesh) = (signing.borrow_and_update().clone(), meshes.borrow_and_update().clone());
        let wanted = endpoints(&mesh);
        fetched.retain(|url, _| wanted.contains(url));
        due.retain(|url, _| wanted.contains(url));
        let next = compute(&now, &mesh, &settings, &fetched);
        trust.send_if_modified(|held| {
            let changed = **held != next;
            if changed {
                *held = Arc::new(next);
            }
            changed
        });
        for url in wanted {
            let waits = due.get(&url).is_some_and(|at| *at > Instant::now());
            if !waits && under_way.insert(url.clone()) {
                fetches.spawn(ask(url, roots));
            }
        }
        let soonest = due.iter().filter(|(url, _)| !under_way.contains(*url)).map(|(_, at)| *at).min();
        let wait = async {
            match soonest {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = signing.changed() => if changed.is_err() { return },
            changed = meshes.changed() => if changed.is_err() { return },
            () = wait => {}
            Some(Ok((url, answer))) = fetches.join_next(), if !fetches.is_empty() => {
                under_way.remove(&url);
                due.insert(url.clone(), Instant::now() + if answer.is_ok() { REFRESH } else { RETRY });
                match answer {
                    Ok(text) => _ = fetched.insert(url, text),
                    // What it gave before stays.
                    Err(error) => tracing::warn!("trust bundle {url}: {error}"),
                }
            }
        }
    }
}

/// The bundles of endpoints as workloads have them, as far as it can be told: of domains that one endpoint alone is for, and
/// was when the bundle was published. What another endpoint gave for the domain goes with that one.
fn known_from(published: &str, mesh: &MeshConfig, settings: &Settings) -> Fetched {
    let published: Value = serde_json::from_str(published).unwrap_or_default();
    let own = own_domains(mesh, settings);
    let mut known = Fetched::new();
    for data in &mesh.ca_certificates {
        let Some(url) = data.spiffe_bundle_url.as_ref().filter(|url| !url.is_empty()) else { continue };
        let from_here = |domain: &&String| {
            !own.contains(*domain)
                && entries(mesh, domain) == 1
                && published[ENDPOINTS][domain.as_str()].as_str() == Some(hash(url).as_str())
        };
        let domain = data.trust_domains.iter().find(from_here);
        let text = domain.and_then(|domain| published["trust_domains"][domain].as_str());
        known.extend(text.map(|text| (url.clone(), text.to_owned())));
    }
    known
}

/// How many entries of the mesh config are for a domain.
fn entries(mesh: &MeshConfig, domain: &String) -> usize {
    mesh.ca_certificates.iter().filter(|data| data.trust_domains.contains(domain)).count()
}

/// The mesh's trust domain and its further names.
fn own_domains(mesh: &MeshConfig, settings: &Settings) -> BTreeSet<String> {
    let names = names(mesh, &model_settings(settings, mesh).trust_domain);
    let all = names.into_iter().flat_map(|(own, aliases)| std::iter::once(own).chain(aliases));
    all.map(|domain| domain.to_string()).collect()
}

/// By what an endpoint is known beside its roots: what the address holds besides is nobody's business.
fn hash(url: &str) -> String {
    weft_tls::hex(&weft_tls::sha256(url.as_bytes()))
}

fn endpoints(mesh: &MeshConfig) -> BTreeSet<String> {
    let urls = mesh.ca_certificates.iter().filter_map(|data| data.spiffe_bundle_url.clone());
    urls.filter(|url| !url.is_empty()).take(MAX_ENDPOINTS).collect()
}

/// What follows from the sources.
pub(crate) fn compute(signing: &Signing, mesh: &MeshConfig, settings: &Settings, fetched: &Fetched) -> Trust {
    let own = signing.root_pem();
    let crl = signing.crl_pem().to_owned();
    let mut general = vec![own.clone()];
    let mut of_domains: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // Of domains whose roots come from one endpoint and nowhere else.
    let mut from: BTreeMap<String, String> = BTreeMap::new();
    for (i, data) in mesh.ca_certificates.iter().enumerate() {
        let from_url = data.spiffe_bundle_url.as_ref().and_then(|url| fetched.get(url));
        let given = data.pem.as_ref().filter(|pem| !pem.is_empty());
        let Some(text) = given.or(from_url) else { continue };
        if let Err(error) = TrustAnchors::from_pem(text.as_bytes()) {
            tracing::error!("mesh config caCertificates[{i}] is left out: {error}");
            continue;
        }
        if let (None, Some(url)) = (given, &data.spiffe_bundle_url) {
            let alone = data.trust_domains.iter().filter(|domain| entries(mesh, domain) == 1);
            from.extend(alone.map(|domain| (domain.clone(), hash(url))));
        }
        match data.trust_domains.is_empty() {
            true => general.push(text.clone()),
            false => {
                data.trust_domains.iter().for_each(|d| of_domains.entry(d.clone()).or_default().push(text.clone()))
            }
        }
    }
    let roots = merged(&general).unwrap_or(own);
    let bundles = match of_domains.is_empty() {
        true => String::new(),
        false => bundles(&own_domains(mesh, settings), &roots, &of_domains, from),
    };
    Trust { roots, crl, bundles }
}

fn merged(texts: &[String]) -> Option<String> {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    // Each of them has been read.
    pem::merge("root certificates", &texts).ok()
}

/// All trust domains with their roots, ours among them: with such a list a verifier believes no domain that is not in it. Beside
/// them the hashes of the endpoints that some come `from`, for whoever starts after this process.
fn bundles(
    own: &BTreeSet<String>,
    roots: &str,
    of_domains: &BTreeMap<String, Vec<String>>,
    mut from: BTreeMap<String, String>,
) -> String {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for (domain, texts) in of_domains {
        all.extend(merged(texts).map(|text| (domain.clone(), text)));
    }
    // What is ours stays ours, whatever the config adds to it.
    all.extend(own.iter().map(|domain| (domain.clone(), roots.to_owned())));
    from.retain(|domain, _| !own.contains(domain) && all.contains_key(domain));
    match from.is_empty() {
        true => json!({ "trust_domains": all }).to_string(),
        false => json!({ "trust_domains": all, ENDPOINTS: from }).to_string(),
    }
}

/// Asks an endpoint.
async fn ask(url: String, roots: EndpointRoots) -> (String, Result<String, String>) {
    let answer = match roots() {
        Ok(roots) => tokio::time::timeout(FETCH_TIMEOUT, fetch(&url, roots)).await,
        Err(error) => Ok(Err(error.to_string())),
    };
    (url, answer.unwrap_or_else(|_| Err("no answer within 10 s".into())))
}

/// The X.509 authorities of a SPIFFE bundle endpoint, PEM. The endpoint is known by its name under `roots` (profile
/// `https_web`); no redirects.
///
/// # Errors
/// A sentence.
async fn fetch(url: &str, roots: TrustAnchors) -> Result<String, String> {
    let uri: http::Uri = url.parse().map_err(|_| "it is not an address".to_string())?;
    let (Some("https"), Some(host)) = (uri.scheme_str(), uri.host()) else {
        return Err("it must be https://HOST/…".into());
    };
    let port = uri.port_u16().unwrap_or(443);
    let tcp = weft_runtime::net::connect(&format!("{host}:{port}")).await.map_err(|error| error.to_string())?;
    let context = ClientContext::build(ClientParams {
        sni: Some(host.trim_matches(['[', ']']).to_owned()),
        alpn: vec![b"http/1.1".to_vec()],
        ..ClientParams::new(ServerVerification::WebPki { anchors: roots, san: None })
    });
    let context = context.map_err(|error| error.to_string())?;
    let stream = context.connect(tcp).await.map_err(|error| error.to_string())?.stream;
    let stream = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|error| error.to_string())?;
    let running = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let request = http::Request::get(path).header(http::header::HOST, host).header("connection", "close");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("it answers {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_BUNDLE).collect().await;
        Ok(body.map_err(|error| error.to_string())?.to_bytes())
    }
    .await;
    running.abort();
    authorities(&answer?)
}

/// The keys of use `x509-svid` of a bundle document (SPIFFE Trust Domain and Bundle, section 4), as PEM.
///
/// # Errors
/// A sentence.
fn authorities(document: &[u8]) -> Result<String, String> {
    let document: Value = serde_json::from_slice(document).map_err(|error| format!("it is not JSON: {error}"))?;
    let keys = document["keys"].as_array().ok_or("it has no keys")?;
    let mut out = String::new();
    for key in keys.iter().filter(|key| key["use"] == "x509-svid") {
        let encoded = key["x5c"][0].as_str().ok_or("a key of use x509-svid has no x5c")?;
        let der = STANDARD.decode(encoded).map_err(|_| "x5c is not base64")?;
        out.push_str(&pem::encode("CERTIFICATE", &der));
    }
    if out.is_empty() {
        return Err("it has no key of use x509-svid".into());
    }
    TrustAnchors::from_pem(out.as_bytes()).map_err(|error| error.to_string())?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::time::SystemTime;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use weft_ca::{Authority, CaPolicy};
    use weft_identity::TrustDomain;
    use weft_k8s_api::istio::CertificateData;
    use weft_tls::{ServerContext, ServerParams};

    fn authority(domain: &str) -> Arc<Authority> {
        let domain = TrustDomain::new(domain).unwrap();
        Arc::new(Authority::self_signed(domain, CaPolicy::default(), SystemTime::now()).unwrap())
    }

    fn document(authority: &Authority) -> String {
        let der = &authority.roots().certificates()[0];
        json!({"keys": [
            {"use": "jwt-svid", "kty": "EC"},
            {"use": "x509-svid", "kty": "EC", "x5c": [STANDARD.encode(der)]},
        ], "spiffe_refresh_hint": 60})
        .to_string()
    }

    #[test]
    fn roots_of_another_domain_hold_for_it_alone() {
        let (ours, theirs, more) = (authority("ours"), authority("theirs"), authority("more"));
        let settings = Settings::parse_from(["weftd"]);
        let data = |pem: &str, domains: &[&str]| CertificateData {
            pem: Some(pem.into()),
            trust_domains: domains.iter().map(ToString::to_string).collect(),
            ..CertificateData::default()
        };
        let mut mesh = MeshConfig { trust_domain: "ours".into(), ..MeshConfig::with_defaults() };
        mesh.trust_domain_aliases = vec!["older".into(), "theirs".into()];
        let signing = Signing::Own(ours.clone());
        let alone = compute(&signing, &mesh, &settings, &Fetched::new());
        assert_eq!((alone.roots.as_str(), alone.bundles.as_str()), (ours.root_pem(), ""));
        mesh.ca_certificates = vec![data(more.root_pem(), &[]), data(theirs.root_pem(), &["theirs"]), data("x", &[])];
        // Nor can the config give our own domain to another authority.
        mesh.ca_certificates.push(data(theirs.root_pem(), &["ours"]));
        let trust = compute(&signing, &mesh, &settings, &Fetched::new());
        assert_eq!(trust.roots, format!("{}{}", ours.root_pem(), more.root_pem()));
        let bundles: Value = serde_json::from_str(&trust.bundles).unwrap();
        let domains = bundles["trust_domains"].as_object().unwrap();
        assert_eq!(domains.keys().collect::<Vec<_>>(), ["older", "ours", "theirs"]);
        assert_eq!(domains["theirs"], theirs.root_pem());
        assert_eq!((domains["ours"].as_str(), domains["older"].as_str()), (Some(&*trust.roots), Some(&*trust.roots)));
    }

    #[test]
    fn roots_go_with_their_endpoint() {
        let (ours, theirs) = (authority("ours"), authority("theirs"));
        let settings = Settings::parse_from(["weftd"]);
        let data = |url: &str, domains: &[&str]| CertificateData {
            spiffe_bundle_url: Some(url.into()),
            trust_domains: domains.iter().map(ToString::to_string).collect(),
            ..CertificateData::default()
        };
        let mesh = |all: &[CertificateData]| MeshConfig {
            trust_domain: "ours".into(),
            ca_certificates: all.to_vec(),
            ..MeshConfig::with_defaults()
        };
        let old = mesh(&[data("https://old/", &["ours", "theirs"])]);
        let fetched = Fetched::from([("https://old/".to_string(), theirs.root_pem().to_owned())]);
        let published = compute(&Signing::Own(ours.clone()), &old, &settings, &fetched).bundles;
        assert!(!published.contains("https://old/"), "{published}");
        // The same endpoint, and one that took its place; what is ours is nobody's bundle.
        assert_eq!(known_from(&published, &old, &settings), fetched);
        assert_eq!(known_from(&published, &mesh(&[data("https://new/", &["theirs"])]), &settings), Fetched::new());
        let own = json!({"trust_domains": {"ours": ours.root_pem()}, ENDPOINTS: {"ours": hash("https://old/")}});
        assert_eq!(known_from(&own.to_string(), &old, &settings), Fetched::new());
        // As an earlier version published it: nobody knows where from.
        let bare = json!({"trust_domains": {"theirs": theirs.root_pem()}}).to_string();
        assert_eq!(known_from(&bare, &old, &settings), Fetched::new());
    }

    #[test]
    fn documents_that_are_none() {
        let good = authority("theirs");
        assert_eq!(authorities(document(&good).as_bytes()).unwrap(), good.root_pem());
        for (text, says) in [
            ("", "not JSON"),
            ("{}", "no keys"),
            (r#"{"keys": []}"#, "no key of use"),
            (r#"{"keys": [{"use": "x509-svid"}]}"#, "no x5c"),
            (r#"{"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}"#, "certificate"),
        ] {
            let error = authorities(text.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    /// Answers with the bundle of `theirs`; its name is proven under the root of `web`.
    async fn endpoint(web: &Authority, theirs: &Authority) -> (String, tokio::task::JoinHandle<()>) {
        let certificate = web.server_certificate(&["localhost"], None, Duration::from_secs(600), SystemTime::now());
        let params = ServerParams { certificates: vec![certificate.unwrap()], ..ServerParams::default() };
        let context = ServerContext::build(params).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let body = document(theirs);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut accepted) = context.accept(stream).await else { continue };
                let mut head = [0; 1024];
                let _ = accepted.stream.read(&mut head).await;
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let _ = accepted.stream.write_all(answer.as_bytes()).await;
                let _ = accepted.stream.shutdown().await;
            }
        });
        (format!("https://localhost:{port}/bundle"), server)
    }

    #[tokio::test]
    async fn a_bundle_is_fetched_from_an_endpoint_that_proves_its_name() {
        weft_tls::install_provider();
        let (web, theirs) = (authority("web"), authority("theirs"));
        let (url, server) = endpoint(&web, &theirs).await;
        assert_eq!(fetch(&url, web.roots().clone()).await.unwrap(), theirs.root_pem());
        let error = fetch(&url, theirs.roots().clone()).await.unwrap_err();
        assert!(error.contains("trusted root"), "{error}");
        assert!(fetch("http://localhost/", web.roots().clone()).await.unwrap_err().contains("https"));
        server.abort();
    }

    static WEB: std::sync::OnceLock<Arc<Authority>> = std::sync::OnceLock::new();

    #[tokio::test]
    async fn a_silent_endpoint_holds_nothing_up() {
        weft_tls::install_provider();
        let (ours, next, theirs, others) =
            (authority("ours"), authority("ours"), authority("theirs"), authority("others"));
        let web = WEB.get_or_init(|| authority("web"));
        let (url, server) = endpoint(web, &theirs).await;
        // It takes connections and says nothing.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent_url = format!("https://{}/", silent.local_addr().unwrap());
        let data = |url: &str, domain: &str| CertificateData {
            spiffe_bundle_url: Some(url.into()),
            trust_domains: vec![domain.into()],
            ..CertificateData::default()
        };
        let mut mesh = MeshConfig { trust_domain: "ours".into(), ..MeshConfig::with_defaults() };
        mesh.ca_certificates = vec![data(&silent_url, "others")];
        let settings = Arc::new(Settings::parse_from(["weftd"]));
        let (signer, signing) = watch::channel(Signing::Own(ours.clone()));
        let (config, meshes) = watch::channel(Arc::new(mesh.clone()));
        let (tell, mut told) = watch::channel(Arc::<Trust>::default());
        let before = json!({
            "trust_domains": {"others": others.root_pem()}, ENDPOINTS: {"others": hash(&silent_url)},
        });
        let before = before.to_string();
        let task =
            tokio::spawn(follow(settings, signing, meshes, tell, before, || Ok(WEB.get().unwrap().roots().clone())));
        let mut next_trust = async |wanted: &dyn Fn(&Trust) -> bool, within: Duration| {
            let found = tokio::time::timeout(within, told.wait_for(|trust| wanted(trust))).await;
            found.expect("in time").unwrap().clone()
        };
        // Less than an endpoint is given, each time; and what workloads have of the other mesh stays.
        let soon = FETCH_TIMEOUT * 7 / 10;
        let first = next_trust(&|trust| trust.roots == ours.root_pem(), soon).await;
        assert!(first.bundles.contains("others"), "{}", first.bundles);
        signer.send_replace(Signing::Own(next.clone()));
        next_trust(&|trust| trust.roots == next.root_pem(), soon).await;
        // And an endpoint that answers is heard, whatever the other one does.
        mesh.ca_certificates.push(data(&url, "theirs"));
        config.send_replace(Arc::new(mesh));
        let both = |trust: &Trust| {
            let bundles: Value = serde_json::from_str(&trust.bundles).unwrap_or_default();
            bundles["trust_domains"]["theirs"] == theirs.root_pem()
                && bundles["trust_domains"]["others"] == others.root_pem()
        };
        next_trust(&both, soon).await;
        task.abort();
        server.abort();
    }
}
