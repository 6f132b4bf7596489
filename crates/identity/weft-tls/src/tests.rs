//! Real handshakes over loopback sockets.

mod classes;

use crate::*;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_identity::TrustDomain;

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
const RATINGS: &str = "spiffe://cluster.local/ns/default/sa/ratings";

struct Authority(Issuer);

impl Authority {
    fn new() -> Self {
        let now = SystemTime::now();
        let params = RootParams {
            organization: "cluster.local".into(),
            key: KeyKind::EcdsaP256,
            not_before: now - Duration::from_secs(600),
            not_after: now + Duration::from_secs(3600),
        };
        Self(Issuer::self_signed(&params).unwrap())
    }

    fn anchors(&self) -> TrustAnchors {
        TrustAnchors::from_pem(self.0.certificate_pem().as_bytes()).unwrap()
    }

    fn key(&self, name: San) -> CertifiedKey {
        self.key_until(KeyKind::EcdsaP256, name, SystemTime::now() + Duration::from_secs(600))
    }

    fn spiffe(&self, id: &str) -> CertifiedKey {
        self.key(San::Uri(id.into()))
    }

    fn key_until(&self, kind: KeyKind, name: San, not_after: SystemTime) -> CertifiedKey {
        let key = PrivateKey::generate(kind).unwrap();
        let leaf = LeafParams { names: vec![name], not_before: not_after - Duration::from_secs(650), not_after };
        let issued = self.0.sign_key(&key, &leaf).unwrap();
        CertifiedKey::from_pem(issued.pem.as_bytes(), key.to_pem().as_bytes()).unwrap()
    }
}

fn only(id: &'static str) -> Option<SanPredicate> {
    Some(Arc::new(move |peer: &PeerCertificate| peer.uris.iter().any(|uri| **uri == *id)))
}

fn server(params: ServerParams) -> ServerContext {
    ServerContext::build(params).unwrap()
}

fn mesh_server(ca: &Authority, client_san: Option<SanPredicate>) -> ServerContext {
    server(ServerParams {
        certificates: vec![ca.spiffe(REVIEWS)],
        client_auth: ClientAuth::Required { anchors: ca.anchors(), san: client_san },
        alpn: vec![b"istio".to_vec(), b"h2".to_vec()],
        ..ServerParams::default()
    })
}

fn mesh_client(ca: &Authority, server_san: Option<SanPredicate>) -> ClientContext {
    ClientContext::build(ClientParams {
        certificate: Some(ca.spiffe(RATINGS)),
        sni: Some("outbound_.9080_._.reviews.default.svc.cluster.local".into()),
        alpn: vec![b"istio".to_vec()],
        ..ClientParams::new(ServerVerification::Chain { anchors: ca.anchors(), san: server_san })
    })
    .unwrap()
}

/// One connection: the handshake on both sides, then a byte each way, which also delivers the session ticket.
async fn connect(
    client: &ClientContext,
    server: &ServerContext,
) -> (Result<TlsFacts, HandshakeError>, Result<TlsFacts, HandshakeError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = server.clone();
    let accepting = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let Accepted { mut stream, facts } = server.accept(stream).await?;
        // A client that refuses us at the end of a 1.3 handshake closes here.
        stream.write_all(b"x").await.map_err(|e| HandshakeError::from_io(&e))?;
        let _ = stream.read_u8().await;
        Ok(facts)
    });
    let stream = TcpStream::connect(address).await.unwrap();
    let connecting = async {
        let Connected { mut stream, facts } = client.connect(stream).await?;
        // A server that refuses us at the end of a 1.3 handshake is heard of on the first read.
        stream.read_u8().await.map_err(|e| HandshakeError::from_io(&e))?;
        stream.write_all(b"y").await.map_err(|e| HandshakeError::from_io(&e))?;
        Ok(facts)
    };
    let bounded = async { (connecting.await, accepting.await.unwrap()) };
    tokio::time::timeout(Duration::from_secs(10), bounded).await.expect("handshake within ten seconds")
}

fn reason<T>(result: Result<T, HandshakeError>) -> Reason {
    result.err().map(|error| error.reason).expect("a failed handshake")
}

#[tokio::test]
async fn mutual_tls_tells_each_who_the_other_is() {
    let ca = Authority::new();
    let (client, server) = connect(&mesh_client(&ca, only(REVIEWS)), &mesh_server(&ca, only(RATINGS))).await;
    let (client, server) = (client.unwrap(), server.unwrap());
    let (reviews, ratings) = (client.peer.unwrap(), server.peer.unwrap());
    assert_eq!(reviews.spiffe_id().unwrap().to_string(), REVIEWS);
    assert_eq!(ratings.spiffe_id().unwrap().to_string(), RATINGS);
    assert_eq!((ratings.sha256().len(), ratings.subject.as_str()), (64, ""));
    assert_eq!(ratings.issuer, "O=cluster.local");
    assert!(ratings.pem_url_encoded().starts_with("-----BEGIN%20CERTIFICATE-----%0A"));
    assert_eq!(server.server_name.as_deref(), Some("outbound_.9080_._.reviews.default.svc.cluster.local"));
    assert_eq!(server.alpn.as_deref(), Some(&b"istio"[..]));
    assert_eq!((server.version, server.cipher), ("TLSv1.3", "TLS_AES_128_GCM_SHA256"));
}

#[tokio::test]
async fn wrong_names_are_refused_on_both_sides() {
    let ca = Authority::new();
    let (client, _) = connect(&mesh_client(&ca, only(RATINGS)), &mesh_server(&ca, None)).await;
    let error = client.unwrap_err();
    assert_eq!(error.reason, Reason::NameMismatch);
    assert!(error.detail.contains(REVIEWS), "{error}");
    let (client, server) = connect(&mesh_client(&ca, None), &mesh_server(&ca, only(REVIEWS))).await;
    assert_eq!((reason(client), reason(server)), (Reason::RefusedByPeer, Reason::NameMismatch));
}

#[tokio::test]
async fn strangers_are_refused() {
    let (ca, other) = (Authority::new(), Authority::new());
    let (client, _) = connect(&mesh_client(&other, None), &mesh_server(&ca, None)).await;
    assert_eq!(reason(client), Reason::Untrusted);
    let stranger = ClientContext::build(ClientParams {
        certificate: Some(other.spiffe(RATINGS)),
        ..ClientParams::new(ServerVerification::Insecure)
    });
    let (_, server) = connect(&stranger.unwrap(), &mesh_server(&ca, None)).await;
    assert_eq!(reason(server), Reason::Untrusted);
    let nobody = ClientContext::build(ClientParams::new(ServerVerification::Insecure)).unwrap();
    let (_, server) = connect(&nobody, &mesh_server(&ca, None)).await;
    assert_eq!(reason(server), Reason::NoCertificate);
}

#[tokio::test]
async fn expired_certificates_are_refused() {
    let ca = Authority::new();
    let past = SystemTime::now() - Duration::from_secs(1);
    let expired = |id: &str| ca.key_until(KeyKind::EcdsaP256, San::Uri(id.into()), past);
    let expired_server = server(ServerParams { certificates: vec![expired(REVIEWS)], ..ServerParams::default() });
    let (client, _) = connect(&mesh_client(&ca, None), &expired_server).await;
    assert_eq!(reason(client), Reason::Expired);
    let expired_client = ClientContext::build(ClientParams {
        certificate: Some(expired(RATINGS)),
        ..ClientParams::new(ServerVerification::Chain { anchors: ca.anchors(), san: None })
    });
    let (_, server) = connect(&expired_client.unwrap(), &mesh_server(&ca, None)).await;
    assert_eq!(reason(server), Reason::Expired);
}

#[tokio::test]
async fn optional_client_certificates() {
    let ca = Authority::new();
    let server = server(ServerParams {
        certificates: vec![ca.spiffe(REVIEWS)],
        client_auth: ClientAuth::Optional { anchors: ca.anchors(), san: None },
        ..ServerParams::default()
    });
    let nobody = ClientContext::build(ClientParams::new(ServerVerification::Insecure)).unwrap();
    let (client, served) = connect(&nobody, &server).await;
    assert!(client.is_ok() && served.unwrap().peer.is_none());
    let (_, served) = connect(&mesh_client(&Authority::new(), None), &server).await;
    assert!(served.is_err(), "one that comes must be good");
}

#[tokio::test]
async fn web_names() {
    let ca = Authority::new();
    let server = server(ServerParams {
        certificates: vec![
            ca.key(San::Dns("other.example".into())),
            ca.key_until(
                KeyKind::Rsa2048,
                San::Dns("*.shop.example".into()),
                SystemTime::now() + Duration::from_secs(60),
            ),
        ],
        ..ServerParams::default()
    });
    for (sni, expected) in [
        (Some("www.shop.example"), None),
        (Some("other.example"), None),
        (Some("evil.example"), Some(Reason::NameMismatch)),
        (None, Some(Reason::Local)),
    ] {
        let client = ClientContext::build(ClientParams {
            sni: sni.map(str::to_owned),
            ..ClientParams::new(ServerVerification::WebPki { anchors: ca.anchors(), san: None })
        });
        let (client, _) = connect(&client.unwrap(), &server).await;
        assert_eq!(client.err().map(|e| e.reason), expected, "{sni:?}");
    }
}

#[tokio::test]
async fn sessions_stay_within_their_context() {
    let ca = Authority::new();
    let client = mesh_client(&ca, None);
    let before = mesh_server(&ca, None);
    assert!(!connect(&client, &before).await.0.unwrap().resumed);
    let (resumed, served) = connect(&client, &before).await;
    assert!(resumed.unwrap().resumed);
    assert_eq!(
        served.unwrap().peer.unwrap().spiffe_id().unwrap().to_string(),
        RATINGS,
        "a resumed peer keeps its name"
    );
    let after = mesh_server(&ca, only(RATINGS));
    assert!(!connect(&client, &after).await.0.unwrap().resumed, "a new server context knows no old session");
    assert!(!connect(&mesh_client(&ca, None), &after).await.0.unwrap().resumed, "nor does a new client context");
}

#[tokio::test]
async fn expired_sessions_are_not_resumed() {
    let ca = Authority::new();
    let soon = SystemTime::now() + Duration::from_secs(2);
    let short = ca.key_until(KeyKind::EcdsaP256, San::Uri(RATINGS.into()), soon);
    let client = ClientContext::build(ClientParams {
        certificate: Some(short),
        ..ClientParams::new(ServerVerification::Chain { anchors: ca.anchors(), san: None })
    })
    .unwrap();
    let server = mesh_server(&ca, None);
    connect(&client, &server).await.1.unwrap();
    let served = loop {
        let (_, served) = connect(&client, &server).await;
        match SystemTime::now() > soon + Duration::from_secs(1) {
            true => break served,
            false => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert_eq!(reason(served), Reason::Expired);
}

#[tokio::test]
async fn application_protocols_without_overlap_go_on_without() {
    let ca = Authority::new();
    let client = ClientContext::build(ClientParams {
        certificate: Some(ca.spiffe(RATINGS)),
        alpn: vec![b"http/1.1".to_vec()],
        ..ClientParams::new(ServerVerification::Chain { anchors: ca.anchors(), san: None })
    });
    let (client, server) = connect(&client.unwrap(), &mesh_server(&ca, None)).await;
    assert_eq!((client.unwrap().alpn, server.unwrap().alpn), (None, None));
}

#[tokio::test]
async fn versions_and_suites() {
    let ca = Authority::new();
    let with = |settings: TlsSettings| {
        server(ServerParams { certificates: vec![ca.spiffe(REVIEWS)], settings, ..ServerParams::default() })
    };
    let client = mesh_client(&ca, None);
    let tls12 = TlsSettings { max_version: TlsVersion::V1_2, ..TlsSettings::default() };
    let facts = connect(&client, &with(tls12.clone())).await.0.unwrap();
    assert_eq!((facts.version, facts.cipher), ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384"));
    let tls13 = TlsSettings { min_version: TlsVersion::V1_3, ..TlsSettings::default() };
    let old = ClientContext::build(ClientParams {
        settings: tls12,
        ..ClientParams::new(ServerVerification::Chain { anchors: ca.anchors(), san: None })
    });
    assert_eq!(reason(connect(&old.unwrap(), &with(tls13)).await.1), Reason::NothingInCommon);
}

#[tokio::test]
async fn what_is_pinned_needs_no_roots_and_is_checked() {
    let ca = Authority::new();
    let plain = server(ServerParams { certificates: vec![ca.spiffe(REVIEWS)], ..ServerParams::default() });
    for (wanted, accepted) in [(REVIEWS, true), (RATINGS, false)] {
        let client =
            ClientContext::build(ClientParams::new(ServerVerification::Pinned(only(wanted).unwrap()))).unwrap();
        assert_eq!(connect(&client, &plain).await.0.is_ok(), accepted, "server {wanted}");
    }
    for (shown, required, accepted) in [
        (Some(RATINGS), true, true),
        (Some(REVIEWS), true, false),
        (Some(REVIEWS), false, false),
        (None, true, false),
        (None, false, true),
    ] {
        let client_auth = ClientAuth::Pinned { san: only(RATINGS).unwrap(), required };
        let server =
            server(ServerParams { certificates: vec![ca.spiffe(REVIEWS)], client_auth, ..ServerParams::default() });
        let client = ClientContext::build(ClientParams {
            certificate: shown.map(|id| ca.spiffe(id)),
            ..ClientParams::new(ServerVerification::Insecure)
        });
        assert_eq!(connect(&client.unwrap(), &server).await.1.is_ok(), accepted, "client {shown:?} {required}");
    }
}

#[tokio::test]
async fn bytes_have_no_name_to_check_but_a_chain() {
    let (ca, stranger) = (Authority::new(), Authority::new());
    let by_name = |ca: &Authority| {
        let verification = ServerVerification::WebPki { anchors: ca.anchors(), san: None };
        ClientContext::build(ClientParams::new(verification)).unwrap()
    };
    let server = server(ServerParams {
        certificates: vec![ca.key(San::Dns("reviews.example".into()))],
        ..ServerParams::default()
    });
    for (client, named, accepted) in
        [(by_name(&ca), true, false), (by_name(&ca), false, true), (by_name(&stranger), false, false)]
    {
        let (here, there) = tokio::io::duplex(1 << 16);
        let accepting = server.accept(there);
        let connecting = async {
            if named { client.connect(here).await.map(drop) } else { client.connect_unnamed(here).await.map(drop) }
        };
        let (made, _) = tokio::join!(connecting, accepting);
        assert_eq!(made.is_ok(), accepted, "named {named}");
    }
}

#[tokio::test]
async fn each_trust_domain_has_its_own_roots() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let domain = |name| TrustDomain::new(name).unwrap();
    let anchors = ours
        .anchors()
        .with_trust_domain(domain("cluster.local"), ours.0.certificate_pem().as_bytes())
        .unwrap()
        .with_trust_domain(domain("partner"), theirs.0.certificate_pem().as_bytes())
        .unwrap();
    let server = server(ServerParams {
        certificates: vec![ours.spiffe(REVIEWS)],
        client_auth: ClientAuth::Required { anchors, san: None },
        ..ServerParams::default()
    });
    for (authority, id, accepted) in [
        (&ours, RATINGS, true),
        (&theirs, "spiffe://partner/ns/a/sa/b", true),
        // An authority may not speak for another's domain.
        (&theirs, RATINGS, false),
        (&ours, "spiffe://unknown/ns/a/sa/b", false),
    ] {
        let client = ClientContext::build(ClientParams {
            certificate: Some(authority.spiffe(id)),
            ..ClientParams::new(ServerVerification::Insecure)
        });
        assert_eq!(connect(&client.unwrap(), &server).await.1.is_ok(), accepted, "{id}");
    }
}

#[tokio::test]
async fn revoked_certificates_are_refused() {
    let now = SystemTime::now();
    let ca = Authority::new();
    let (good, bad) = (ca.spiffe(RATINGS), ca.spiffe(RATINGS));
    let list = ca.0.revocation_list(&[&bad.facts().serial], now, now + Duration::from_secs(600)).unwrap();
    let anchors = ca.anchors().with_crls(list.as_bytes()).unwrap();
    let server = server(ServerParams {
        certificates: vec![ca.spiffe(REVIEWS)],
        client_auth: ClientAuth::Required { anchors, san: None },
        ..ServerParams::default()
    });
    for (certificate, revoked) in [(good, false), (bad, true)] {
        let client = ClientContext::build(ClientParams {
            certificate: Some(certificate),
            ..ClientParams::new(ServerVerification::Insecure)
        });
        let (_, served) = connect(&client.unwrap(), &server).await;
        assert_eq!(served.err().map(|e| e.reason), revoked.then_some(Reason::Revoked));
    }
}

/// Whether `chain`'s leaf is believed under the roots and lists.
fn believed(roots: &[&Authority], lists: &[&str], leaf: &CertifiedKey) -> Result<(), String> {
    let roots: String = roots.iter().map(|ca| ca.0.certificate_pem()).collect();
    let mut anchors = TrustAnchors::from_pem(roots.as_bytes()).unwrap();
    if !lists.is_empty() {
        anchors = anchors.with_crls(lists.concat().as_bytes()).unwrap();
    }
    let verifier = verify::ChainVerifier::new(anchors, None, &settings::default_provider());
    let now = rustls_pki_types::UnixTime::now();
    let verified = rustls::server::danger::ClientCertVerifier::verify_client_cert(
        &verifier,
        &leaf.chain()[0],
        &leaf.chain()[1..],
        now,
    );
    verified.map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn lists_hold_for_those_whose_issuer_gives_one() {
    // All authorities of these tests have one name: what is whose is told by the signatures.
    let (ours, next, partner) = (Authority::new(), Authority::new(), Authority::new());
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let list = |ca: &Authority, revoked: &[&CertifiedKey]| {
        let serials: Vec<&str> = revoked.iter().map(|leaf| leaf.facts().serial.as_str()).collect();
        ca.0.revocation_list(&serials, now - hour, now + hour).unwrap()
    };
    let (good, bad) = (ours.spiffe(RATINGS), ours.spiffe(RATINGS));
    let (of_next, bad_of_next) = (next.spiffe(RATINGS), next.spiffe(RATINGS));
    let (first, second) = (list(&ours, &[&bad]), list(&next, &[&bad_of_next]));
    // A rotation: both roots, both lists, in either order.
    for lists in [[first.as_str(), &second], [&second, &first]] {
        for (leaf, revoked) in [(&good, false), (&of_next, false), (&bad, true), (&bad_of_next, true)] {
            let answer = believed(&[&ours, &next], &lists, leaf);
            assert_eq!(answer.as_ref().is_err_and(|text| text.contains("Revoked")), revoked, "{answer:?}");
            assert_eq!(answer.is_ok(), !revoked, "{answer:?}");
        }
    }
    // What an older list of the same issuer says is not taken back by another one.
    let (older, newer) = (list(&ours, &[]), list(&ours, &[&bad]));
    for lists in [[older.as_str(), &newer], [&newer, &older]] {
        assert!(believed(&[&ours], &lists, &bad).is_err());
    }
    // An expired list covers nothing.
    let expired = ours.0.revocation_list(&[], now - 2 * hour, now - hour).unwrap();
    assert!(believed(&[&ours], &[&expired], &good).is_err());
    // Another mesh under another name, which gives us no list, is believed as it was.
    let stranger = Authority(
        Issuer::self_signed(&RootParams {
            organization: "partner.example".into(),
            key: KeyKind::EcdsaP256,
            not_before: now - hour,
            not_after: now + hour,
        })
        .unwrap(),
    );
    assert_eq!(believed(&[&ours, &stranger], &[&first], &stranger.spiffe(RATINGS)), Ok(()));
    assert!(believed(&[&ours, &stranger], &[&first], &bad).is_err());
    assert!(believed(&[&ours], &[&first], &partner.spiffe(RATINGS)).is_err());
    // What an Envoy demands: each certificate is covered.
    let strictly = |list: &str, leaf: &CertifiedKey| {
        let anchors = TrustAnchors::from_pem(ours.0.certificate_pem().as_bytes()).unwrap();
        anchors.with_crls(list.as_bytes()).unwrap().verify_unrevoked(leaf.chain(), now)
    };
    assert!(strictly(&first, &good).is_ok());
    assert!(strictly(&first, &bad).is_err());
    assert!(strictly(&stranger.0.revocation_list(&[], now - hour, now + hour).unwrap(), &good).is_err());
}

#[test]
fn every_list_of_an_issuer_is_looked_at() {
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let root = |name: usize| {
        let organization = format!("mesh-{name}.example");
        let params =
            RootParams { organization, key: KeyKind::EcdsaP256, not_before: now - hour, not_after: now + hour };
        Authority(Issuer::self_signed(&params).unwrap())
    };
    let roots: Vec<Authority> = (0..6).map(root).collect();
    let leaves: Vec<_> = roots.iter().map(|ca| (ca.spiffe(RATINGS), ca.spiffe(RATINGS))).collect();
    let list = |ca: &Authority, serials: &[&str]| ca.0.revocation_list(serials, now - hour, now + hour).unwrap();
    let older: Vec<String> = roots.iter().map(|ca| list(ca, &[])).collect();
    let newer = roots.iter().zip(&leaves).map(|(ca, (_, bad))| list(ca, &[&bad.facts().serial]));
    let lists: Vec<String> = older.into_iter().chain(newer).collect();
    let (roots, lists): (Vec<_>, Vec<_>) = (roots.iter().collect(), lists.iter().map(String::as_str).collect());
    for (good, bad) in &leaves {
        assert_eq!(believed(&roots, &lists, good), Ok(()));
        assert!(believed(&roots, &lists, bad).is_err_and(|error| error.contains("Revoked")));
    }
    // The last of as many as there may be counts like the first; one more is refused, not left aside.
    let (good, bad) = &leaves[0];
    let empty = list(roots[0], &[]);
    let revoking = list(roots[0], &[&bad.facts().serial]);
    let mut many = vec![empty.as_str(); 15];
    many.push(&revoking);
    assert!(believed(&roots, &many, good).is_ok() && believed(&roots, &many, bad).is_err());
    many.push(&empty);
    let error = roots[0].anchors().with_crls(many.concat().as_bytes()).unwrap_err();
    assert!(error.to_string().contains("more than 16 lists"), "{error}");
    // Nobody is given lists that pass and cannot be used.
    assert_eq!(crate::check_crls(many.concat().as_bytes()).unwrap_err().to_string(), error.to_string());
    crate::check_crls(many[..16].concat().as_bytes()).unwrap();
}

#[tokio::test]
async fn a_context_can_be_chosen_by_the_client_hello() {
    let ca = Authority::new();
    let server = mesh_server(&ca, None);
    let (near, far) = tokio::io::duplex(64 * 1024);
    let client = mesh_client(&ca, None);
    let connecting = tokio::spawn(async move { client.connect(near).await });
    let start = LazyAcceptor::new(Acceptor::default(), far).await.unwrap();
    let hello = ClientHelloFacts::of(&start.client_hello());
    assert_eq!(hello.sni.as_deref(), Some("outbound_.9080_._.reviews.default.svc.cluster.local"));
    let accepted = server.accept_started(start).await.unwrap();
    assert!(accepted.facts.peer.is_some());
    assert!(connecting.await.unwrap().is_ok());
}

#[tokio::test]
async fn plain_text_is_named() {
    let ca = Authority::new();
    let (mut near, far) = tokio::io::duplex(1024);
    near.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let failed = mesh_server(&ca, None).accept(far).await.map(|accepted| accepted.facts);
    assert_eq!(reason(failed), Reason::NotTls);
}

#[test]
fn requests_are_checked() {
    let made = generate_key_and_csr(KeyKind::EcdsaP256, &[San::Uri(RATINGS.into())]).unwrap();
    let request = CertificateRequest::from_pem(made.csr_pem.as_bytes()).unwrap();
    assert_eq!((request.uris.as_slice(), request.wants_ca), (&[RATINGS.to_owned()][..], false));
    // One bit of the signature changed: the sender does not hold the key.
    let mut der = rustls_pki_types::pem::PemObject::from_pem_slice(made.csr_pem.as_bytes())
        .map(|der: rustls_pki_types::CertificateSigningRequestDer<'_>| der.as_ref().to_vec())
        .unwrap();
    *der.last_mut().unwrap() ^= 1;
    let forged = pem::encode("CERTIFICATE REQUEST", &der);
    let error = CertificateRequest::from_pem(forged.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("does not hold the key"), "{error}");
    for bad in [&b""[..], b"x", made.key_pem.as_bytes(), &vec![b'a'; csr::MAX_CSR_BYTES + 1]] {
        assert!(CertificateRequest::from_pem(bad).is_err());
    }
}

/// A request with what `change` adds to the own name.
fn request_with(change: impl FnOnce(&mut rcgen::CertificateParams)) -> CertificateRequest {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![rcgen::SanType::URI(RATINGS.try_into().unwrap())];
    change(&mut params);
    let der = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap();
    CertificateRequest::from_pem(pem::encode("CERTIFICATE REQUEST", der.der()).as_bytes()).unwrap()
}

#[test]
fn class_impersonation_a_request_that_is_passed_on_asks_for_the_own_name_alone() {
    use rcgen::{CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
    let asks = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        request_with(|params| change(params)).asks_only_for(RATINGS).map_err(|error| error.to_string())
    };
    assert_eq!(asks(&|_| {}), Ok(()));
    // As Istio's agent makes them.
    assert_eq!(asks(&|params| params.distinguished_name.push(DnType::OrganizationName, "")), Ok(()));
    for (says, change) in [
        (
            "the subject \"CN=system:node:x,O=system:nodes\"",
            &(|params: &mut rcgen::CertificateParams| {
                params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
                params.distinguished_name.push(DnType::CommonName, "system:node:x");
            }) as &dyn Fn(&mut rcgen::CertificateParams),
        ),
        ("the extension 2.5.29.15", &|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]),
        ("the extension 2.5.29.37", &|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
        ("the extension 1.2.3", &|params| {
            params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0])];
        }),
        ("the extension 2.5.29.19", &|params| params.is_ca = IsCa::ExplicitNoCa),
        ("more than", &|params| params.subject_alt_names.push(SanType::DnsName("a.example".try_into().unwrap()))),
        ("more than", &|params| params.subject_alt_names.push(SanType::URI(RATINGS.try_into().unwrap()))),
        ("another thing than", &|params| params.subject_alt_names.clear()),
    ] {
        let answer = asks(change);
        assert!(answer.as_ref().is_err_and(|text| text.contains(says)), "{says}: {answer:?}");
    }
    // A second request in the text does not travel along.
    let (own, other) = (request_with(|_| {}), request_with(|params| params.is_ca = IsCa::ExplicitNoCa));
    let both = format!("{}{}", own.pem(), other.pem());
    assert_eq!(CertificateRequest::from_pem(both.as_bytes()).unwrap().pem(), own.pem());
}

#[test]
fn material_that_does_not_fit_is_named() {
    let (ca, other) = (Authority::new(), Authority::new());
    let certificate = ca.0.certificate_pem();
    let error = CertifiedKey::from_pem(certificate.as_bytes(), other.0.key_pem().as_bytes()).unwrap_err().to_string();
    assert!(error.contains("does not belong"), "{error}");
    let error = Issuer::from_pem(certificate.as_bytes(), other.0.key_pem().as_bytes()).unwrap_err().to_string();
    assert!(error.contains("does not belong"), "{error}");
    let made = generate_key_and_csr(KeyKind::EcdsaP256, &[San::Uri(RATINGS.into())]).unwrap();
    let request = CertificateRequest::from_pem(made.csr_pem.as_bytes()).unwrap();
    let now = SystemTime::now();
    let leaf = LeafParams {
        names: vec![San::Uri(RATINGS.into())],
        not_before: now,
        not_after: now + Duration::from_secs(9999),
    };
    let issued = ca.0.sign_request(&request, &leaf).unwrap();
    assert!(issued.facts.not_after <= ca.0.facts().not_after, "a leaf does not outlive its issuer");
    let error = Issuer::from_pem(issued.pem.as_bytes(), made.key_pem.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("CA:FALSE"), "{error}");
    assert!(CertifiedKey::from_pem(issued.pem.as_bytes(), made.key_pem.as_bytes()).is_ok());
}
