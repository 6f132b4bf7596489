//! The authority and its service: what is signed, what is refused, and what OpenSSL thinks of it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::{Code, Request};
use weft_ca::{
    AuthFailure, Authority, CaMaterial, CaPolicy, CertificateService, LiveTrust, SignError, TokenAuthenticator,
    TokenIdentity, TokenReview,
};
use weft_identity::{SpiffeId, TrustDomain};
use weft_proto::istio::v1::auth::IstioCertificateRequest;
use weft_proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateService as _;
use weft_tls::{Issuer, KeyKind, San, generate_key_and_csr};

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
const RATINGS: &str = "spiffe://cluster.local/ns/default/sa/ratings";

fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

fn authority() -> Authority {
    Authority::self_signed(domain(), CaPolicy::default(), SystemTime::now()).unwrap()
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn csr(kind: KeyKind, names: &[San]) -> String {
    generate_key_and_csr(kind, names).unwrap().csr_pem
}

fn uri(text: &str) -> San {
    San::Uri(text.into())
}

fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().expect("the openssl command is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {text}");
    text
}

#[test]
fn openssl_accepts_what_is_signed() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    };
    let authority = authority();
    for kind in [KeyKind::EcdsaP256, KeyKind::EcdsaP384, KeyKind::Rsa2048] {
        let request = csr(kind, &[uri(REVIEWS)]);
        let signed = authority.sign(&id(REVIEWS), &[], request.as_bytes(), Duration::ZERO, SystemTime::now()).unwrap();
        let (leaf, root) = (file("leaf.pem", &signed.chain[0]), file("root.pem", authority.root_pem()));
        for purpose in ["sslserver", "sslclient"] {
            let text = openssl(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile", &root, &leaf]);
            assert!(text.contains(": OK"), "{text}");
        }
        let text = openssl(&["x509", "-in", &leaf, "-noout", "-text"]);
        for expected in [
            "X509v3 Subject Alternative Name: critical",
            REVIEWS,
            "CA:FALSE",
            "TLS Web Server Authentication, TLS Web Client Authentication",
            "Issuer: O = cluster.local",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
        assert!(openssl(&["req", "-in", &file("csr.pem", &request), "-noout", "-verify"]).contains("OK"));
    }
}

#[test]
fn an_intermediate_made_by_openssl_can_be_plugged_in() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (root, root_key) = (path("root-cert.pem"), path("root-key.pem"));
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/O=Example/CN=Root",
        "-addext",
        "keyUsage=critical,keyCertSign",
        "-keyout",
        &root_key,
        "-out",
        &root,
    ]);
    let (ca, ca_key, request, extensions) = (path("ca-cert.pem"), path("ca-key.pem"), path("ca.csr"), path("ext"));
    std::fs::write(&extensions, "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
        .unwrap();
    // The old spelling of an RSA key, which Istio's own scripts made.
    openssl(&["genrsa", "-traditional", "-out", &ca_key, "2048"]);
    openssl(&["req", "-new", "-key", &ca_key, "-subj", "/O=Istio/CN=Intermediate CA", "-out", &request]);
    openssl(&[
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        &root,
        "-CAkey",
        &root_key,
        "-CAcreateserial",
        "-days",
        "1",
        "-extfile",
        &extensions,
        "-out",
        &ca,
    ]);
    let read = |name: &str| std::fs::read(path(name)).unwrap();
    let chain = [read("ca-cert.pem"), read("root-cert.pem")].concat();
    let data = BTreeMap::from([
        ("ca-cert.pem".to_owned(), read("ca-cert.pem")),
        ("ca-key.pem".to_owned(), read("ca-key.pem")),
        ("root-cert.pem".to_owned(), read("root-cert.pem")),
        ("cert-chain.pem".to_owned(), chain),
    ]);
    let material = CaMaterial::from_secret(&data).unwrap();
    let now = SystemTime::now() + Duration::from_secs(1);
    let authority = Authority::from_material(material.clone(), domain(), CaPolicy::default(), now).unwrap();
    let signed = authority
        .sign(&id(REVIEWS), &[], csr(KeyKind::EcdsaP256, &[]).as_bytes(), Duration::from_secs(3600), now)
        .unwrap();
    assert_eq!(signed.chain.len(), 4, "leaf, intermediate, the root as cert-chain.pem has it, and the roots to trust");
    std::fs::write(path("leaf.pem"), &signed.chain[0]).unwrap();
    openssl(&["verify", "-x509_strict", "-CAfile", &root, "-untrusted", &ca, &path("leaf.pem")]);

    let stranger = self::authority();
    // While roots are changed there are two: the last text of a chain has both.
    let both = CaMaterial { root_cert: format!("{}{}", material.root_cert, stranger.root_pem()), ..material.clone() };
    let both = Authority::from_material(both, domain(), CaPolicy::default(), now).unwrap();
    let signed = both.sign(&id(REVIEWS), &[], csr(KeyKind::EcdsaP256, &[]).as_bytes(), Duration::from_secs(3600), now);
    let chain = signed.unwrap().chain;
    assert_eq!((chain.len(), chain[3].matches("BEGIN CERTIFICATE").count()), (4, 2));
    let wrong_root = CaMaterial { root_cert: stranger.root_pem().to_owned(), ..material.clone() };
    let error = Authority::from_material(wrong_root, domain(), CaPolicy::default(), now).unwrap_err().to_string();
    assert!(error.contains("would not be trusted"), "{error}");
    let wrong_key = CaMaterial { ca_key: stranger.material().ca_key.clone(), ..material };
    assert!(Authority::from_material(wrong_key, domain(), CaPolicy::default(), now).is_err());
}

#[test]
fn a_root_survives_its_secret() {
    let first = authority();
    let kept = CaMaterial::from_secret(&first.material().to_secret()).unwrap();
    let again = Authority::from_material(kept, domain(), CaPolicy::default(), SystemTime::now()).unwrap();
    assert_eq!(first.root_pem(), again.root_pem());
    assert!(again.root_not_after() > SystemTime::now() + Duration::from_secs(9 * 365 * 24 * 3600));
}

#[test]
fn lifetimes() {
    let authority = authority();
    let now = SystemTime::now();
    for (asked, given) in [(0, 24 * 3600), (10, 10), (u64::from(u32::MAX) * 1000, 90 * 24 * 3600)] {
        let signed = authority
            .sign(&id(REVIEWS), &[], csr(KeyKind::EcdsaP256, &[]).as_bytes(), Duration::from_secs(asked), now)
            .unwrap();
        let life = signed.facts.not_after.duration_since(now).unwrap().as_secs_f64();
        assert!((life - given as f64).abs() <= 1.0, "asked {asked}, given {life}");
        let back = now.duration_since(signed.facts.not_before).unwrap().as_secs();
        assert!((119..=121).contains(&back), "{back}");
    }
}

#[test]
fn nobody_gets_anothers_identity() {
    let authority = authority();
    for names in [
        vec![uri(RATINGS)],
        vec![uri(REVIEWS), uri(RATINGS)],
        vec![uri("spiffe://cluster.local")],
        vec![uri("spiffe://other/ns/default/sa/reviews")],
        vec![uri("SPIFFE://cluster.local/ns/default/sa/reviews")],
        vec![uri(REVIEWS), San::Dns("istiod.istio-system.svc".into())],
        vec![San::Dns("istiod.istio-system.svc".into())],
        vec![San::Ip("10.0.0.1".parse().unwrap())],
    ] {
        let refused = authority.sign(
            &id(REVIEWS),
            &[],
            csr(KeyKind::EcdsaP256, &names).as_bytes(),
            Duration::ZERO,
            SystemTime::now(),
        );
        assert!(matches!(refused, Err(SignError::NotYours { .. })), "{names:?}: {refused:?}");
    }
    for names in [vec![], vec![uri(REVIEWS)]] {
        let signed = authority
            .sign(&id(REVIEWS), &[], csr(KeyKind::EcdsaP256, &names).as_bytes(), Duration::ZERO, SystemTime::now())
            .unwrap();
        assert_eq!(signed.facts.uris.iter().map(|u| u.to_string()).collect::<Vec<_>>(), [REVIEWS]);
        assert!(signed.facts.dns.is_empty() && signed.facts.subject.is_empty() && !signed.facts.is_ca);
    }
}

#[test]
fn requests_that_are_not_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    openssl(&[
        "req",
        "-new",
        "-newkey",
        "rsa:1024",
        "-nodes",
        "-subj",
        "/CN=a",
        "-keyout",
        &path("weak.key"),
        "-out",
        &path("weak.csr"),
    ]);
    openssl(&[
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=a",
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        "-keyout",
        &path("ca.key"),
        "-out",
        &path("ca.csr"),
    ]);
    let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
    let authority = authority();
    for (request, says) in [
        (String::new(), "PEM"),
        ("x".repeat(20_000), "too many"),
        (authority.root_pem().to_owned(), "PEM"),
        (read("weak.csr"), "1024 bits"),
        (read("ca.csr"), "never given"),
    ] {
        let refused = authority.sign(&id(REVIEWS), &[], request.as_bytes(), Duration::ZERO, SystemTime::now());
        let Err(SignError::BadRequest(text)) = refused else { panic!("{says}: {refused:?}") };
        assert!(text.contains(says), "{says}: {text}");
    }
}

#[test]
fn the_control_planes_own_certificate() {
    let authority = authority();
    let now = SystemTime::now();
    let key = authority
        .server_certificate(&["istiod.istio-system.svc", "istiod"], Some(&id(REVIEWS)), Duration::from_secs(60), now)
        .unwrap();
    assert!(key.facts().dns_matches("istiod.istio-system.svc"));
    assert_eq!(key.facts().spiffe_id(), Some(id(REVIEWS)));
    authority.roots().verify_chain(key.chain(), now).unwrap();
    let stranger = Issuer::from_pem(authority.root_pem().as_bytes(), self::authority().material().ca_key.as_bytes());
    assert!(stranger.is_err());
}

fn service() -> CertificateService {
    let review: TokenReview = Arc::new(|token| {
        Box::pin(async move {
            match token.as_str() {
                "reviews-token" => Ok(TokenIdentity { namespace: "default".into(), service_account: "reviews".into() }),
                "later" => Err(AuthFailure::Unavailable("API server away".into())),
                _ => Err(AuthFailure::Refused("token not accepted".into())),
            }
        })
    });
    CertificateService::new(Arc::new(authority()), vec![Arc::new(TokenAuthenticator::new(domain(), review))])
}

async fn ask(service: &CertificateService, token: Option<&str>, csr: String, ttl: i64) -> Result<Vec<String>, Code> {
    let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: ttl, metadata: None });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    service.create_certificate(request).await.map(|answer| answer.into_inner().cert_chain).map_err(|s| s.code())
}

#[tokio::test]
async fn the_service_answers_by_the_book() {
    let service = service();
    let own = || csr(KeyKind::EcdsaP256, &[uri(REVIEWS)]);
    for (token, csr, ttl, expected) in [
        (None, own(), 0, Err(Code::Unauthenticated)),
        (Some("stolen"), own(), 0, Err(Code::Unauthenticated)),
        (Some("later"), own(), 0, Err(Code::Unavailable)),
        (Some("reviews-token"), csr(KeyKind::EcdsaP256, &[uri(RATINGS)]), 0, Err(Code::PermissionDenied)),
        (Some("reviews-token"), "nonsense".into(), 0, Err(Code::InvalidArgument)),
        (Some("reviews-token"), own(), -1, Err(Code::InvalidArgument)),
        (Some("reviews-token"), own(), 0, Ok(2)),
    ] {
        let answer = ask(&service, token, csr, ttl).await.map(|chain| chain.len());
        assert_eq!(answer, expected, "{token:?} {ttl}");
    }
    let stats = service.stats();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((count(&stats.requests), count(&stats.authentication_failures)), (7, 3));
    assert_eq!((count(&stats.unreadable), count(&stats.not_theirs), count(&stats.signed)), (2, 1, 1));
}

#[tokio::test]
async fn class_impersonation_no_metadata_gives_another_identity() {
    let service = service();
    let own = csr(KeyKind::EcdsaP256, &[uri(REVIEWS)]);
    for (name, value, expected) in [
        ("ImpersonatedIdentity", RATINGS, Err(Code::InvalidArgument)),
        ("CertSigner", "example.com/other", Err(Code::InvalidArgument)),
        ("Unknown", "x", Ok(2)),
    ] {
        let kind = Some(prost_types::value::Kind::StringValue(value.into()));
        let metadata = prost_types::Struct { fields: [(name.to_owned(), prost_types::Value { kind })].into() };
        let message = IstioCertificateRequest { csr: own.clone(), validity_duration: 0, metadata: Some(metadata) };
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", "Bearer reviews-token".parse().unwrap());
        let answer = service.create_certificate(request).await;
        let answer = answer.map(|answer| answer.into_inner().cert_chain.len()).map_err(|status| status.code());
        assert_eq!(answer, expected, "{name}");
    }
}

/// An alias of the trust domain may be the name of a partner under a shared root, whose accounts are not ours to hand out.
#[tokio::test]
async fn class_impersonation_nobody_gets_his_account_under_another_trust_domain() {
    let review: TokenReview = Arc::new(|_| {
        let who = TokenIdentity { namespace: "default".into(), service_account: "reviews".into() };
        Box::pin(async move { Ok(who) })
    });
    let names = LiveTrust::new(domain(), [TrustDomain::new("alias").unwrap()]);
    let tokens = TokenAuthenticator::new(names.clone(), review);
    let service = CertificateService::with_trust(Arc::new(authority()), names, vec![Arc::new(tokens)]);
    let stranger = REVIEWS.replacen("cluster.local", "stranger", 1);
    let other = REVIEWS.replacen("reviews", "ratings", 1);
    let [alias, others] = [REVIEWS, &other].map(|name| name.replacen("cluster.local", "alias", 1));
    for (name, expected) in
        [(REVIEWS, Ok(REVIEWS)), (&alias, Ok(REVIEWS)), (&other, Err(())), (&others, Err(())), (&stranger, Err(()))]
    {
        let answer = ask(&service, Some("token"), csr(KeyKind::EcdsaP256, &[uri(name)]), 0).await;
        let signed = answer.map(|chain| {
            let leaf = weft_tls::pem::certificates("leaf", chain[0].as_bytes()).unwrap();
            let facts = weft_tls::CertificateFacts::from_der("leaf", &leaf[0]).unwrap();
            facts.spiffe_id().map(|id| id.to_string())
        });
        let expected = expected.map(|id| Some(id.to_string())).map_err(|()| Code::PermissionDenied);
        assert_eq!(signed, expected, "{name}");
    }
}

/// Signs as an authority elsewhere would: whatever `names` says, for the key of the request or another.
fn elsewhere(names: Vec<San>, other_key: bool, roots: &str, signer: Arc<Authority>) -> weft_ca::Registration {
    let delegate: weft_ca::Delegate = Arc::new(move |errand| {
        let (names, signer) = (names.clone(), signer.clone());
        Box::pin(async move {
            let material = signer.material();
            let issuer = Issuer::from_pem(material.ca_cert.as_bytes(), material.ca_key.as_bytes())?;
            let csr = if other_key { csr(KeyKind::EcdsaP256, &names) } else { errand.csr };
            let request = weft_tls::CertificateRequest::from_pem(csr.as_bytes())?;
            let now = SystemTime::now();
            let leaf = weft_tls::LeafParams { names, not_before: now, not_after: now + errand.ttl };
            Ok(vec![issuer.sign_request(&request, &leaf)?.pem])
        })
    });
    weft_ca::Registration::new("signer.example", roots, CaPolicy::default(), delegate).unwrap()
}

#[tokio::test]
async fn what_is_signed_elsewhere_is_checked() {
    let signer = Arc::new(authority());
    let stranger = authority();
    let own = || vec![uri(REVIEWS)];
    let and_dns = vec![uri(REVIEWS), San::Dns("istiod.istio-system.svc".into())];
    for (names, other_key, roots, says) in [
        (own(), false, signer.root_pem(), ""),
        (vec![uri(RATINGS)], false, signer.root_pem(), "its names are"),
        (and_dns, false, signer.root_pem(), "its names are"),
        (own(), true, signer.root_pem(), "it is for another key"),
        (own(), false, stranger.root_pem(), "leads to no trusted root"),
    ] {
        let registration = elsewhere(names, other_key, roots, signer.clone());
        let request = csr(KeyKind::EcdsaP256, &own());
        let answer = registration.sign(&id(REVIEWS), request.as_bytes(), Duration::ZERO, None, None).await;
        match (says, answer) {
            ("", Ok(signed)) => assert_eq!((signed.chain.len(), signed.facts.spiffe_id()), (2, Some(id(REVIEWS)))),
            (says, Err(SignError::Elsewhere(text))) if !says.is_empty() => assert!(text.contains(says), "{text}"),
            (says, answer) => panic!("{says}: {answer:?}"),
        }
    }
    // What may not be asked for never reaches the authority elsewhere.
    let registration = elsewhere(own(), false, signer.root_pem(), signer.clone());
    for (names, wanted) in [(vec![uri(RATINGS)], "may not have"), (vec![], "must name the caller's own identity")] {
        let request = csr(KeyKind::EcdsaP256, &names);
        let refused = registration.sign(&id(REVIEWS), request.as_bytes(), Duration::ZERO, None, None).await;
        assert!(refused.unwrap_err().to_string().contains(wanted));
    }
}

/// A signer of the Kubernetes API keeps the subject of a request, and the API server takes it for a user and its groups. The
/// files in `subjects/` are `openssl req -new -subj …` and `openssl x509 -req` of a root of their own.
#[tokio::test]
async fn class_impersonation_nobody_chooses_the_subject_of_what_is_signed_elsewhere() {
    let own = (include_str!("subjects/own.csr"), include_str!("subjects/own.pem"));
    let node = (include_str!("subjects/node.csr"), include_str!("subjects/node.pem"));
    for (csr, certificate, says) in [
        (own.0, own.1, ""),
        (node.0, own.1, "it asks for the subject \"CN=system:node:x,O=system:nodes\""),
        (node.0, node.1, "it asks for the subject \"CN=system:node:x,O=system:nodes\""),
        (own.0, node.1, "its subject is \"CN=system:node:x,O=system:nodes\""),
    ] {
        let asked = Arc::new(std::sync::Mutex::new(None));
        let heard = asked.clone();
        let delegate: weft_ca::Delegate = Arc::new(move |errand| {
            *heard.lock().unwrap() = Some(errand.csr);
            Box::pin(async move { Ok(vec![certificate.to_owned()]) })
        });
        let roots = include_str!("subjects/ca.pem");
        let registration = weft_ca::Registration::new("signer", roots, CaPolicy::default(), delegate).unwrap();
        // What stands around the request is not passed on.
        let text = format!("{csr}{}", node.0);
        let answer = registration.sign(&id(REVIEWS), text.as_bytes(), Duration::ZERO, None, None).await;
        match answer {
            Ok(signed) => assert_eq!((signed.facts.subject.as_str(), says), ("", "")),
            Err(error) => assert!(!says.is_empty() && error.to_string().contains(says), "{says}: {error}"),
        }
        let asked = asked.lock().unwrap().take();
        assert_eq!(asked.map(|text| text.trim().replace('\r', "")), (csr == own.0).then(|| own.0.trim().to_owned()));
    }
}

#[test]
fn bad_material_is_named() {
    let now = SystemTime::now();
    let good = authority().material().clone();
    let other = authority().material().clone();
    let old_root = Issuer::self_signed(&weft_tls::RootParams {
        organization: "old".into(),
        key: KeyKind::EcdsaP256,
        not_before: now - Duration::from_secs(7200),
        not_after: now - Duration::from_secs(3600),
    })
    .unwrap();
    let expired = CaMaterial {
        ca_cert: old_root.certificate_pem(),
        ca_key: old_root.key_pem(),
        root_cert: old_root.certificate_pem(),
        ..good.clone()
    };
    for (material, says) in [
        (CaMaterial { ca_key: weft_tls::Zeroizing::new("nonsense".into()), ..good.clone() }, "not PEM"),
        (CaMaterial { ca_key: other.ca_key.clone(), ..good.clone() }, "does not belong to the CA certificate"),
        (CaMaterial { ca_cert: "nonsense".into(), ..good.clone() }, "not PEM"),
        (CaMaterial { root_cert: other.root_cert.clone(), ..good.clone() }, "would not be trusted"),
        (CaMaterial { root_cert: String::from("x"), ..good.clone() }, "not PEM"),
        (CaMaterial { crl: String::from("x"), ..good.clone() }, "revocation list"),
        (expired, "has expired"),
    ] {
        let error = Authority::from_material(material, domain(), CaPolicy::default(), now).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
    // The signing certificate lives, its root does not.
    let later = now + Duration::from_secs(11 * 365 * 24 * 3600);
    let error = Authority::from_material(good, domain(), CaPolicy::default(), later).unwrap_err().to_string();
    assert!(error.contains("has expired"), "{error}");
}

#[test]
fn files_are_read_like_the_secret() {
    let folder = tempfile::tempdir().unwrap();
    let missing = CaMaterial::from_files(folder.path()).unwrap_err().to_string();
    assert!(missing.contains("ca-cert.pem"), "{missing}");
    let data = authority().material().to_secret();
    for (key, value) in &data {
        std::fs::write(folder.path().join(key), value).unwrap();
    }
    assert_eq!(CaMaterial::from_files(folder.path()).unwrap().to_secret(), data);
}

#[tokio::test]
async fn one_identity_cannot_use_up_the_authority() {
    let service = service();
    let mut refused = None;
    for _ in 0..2000 {
        refused = ask(&service, Some("reviews-token"), "nonsense".into(), 0).await.err();
        if refused == Some(Code::ResourceExhausted) {
            break;
        }
    }
    assert_eq!(refused, Some(Code::ResourceExhausted));
}
