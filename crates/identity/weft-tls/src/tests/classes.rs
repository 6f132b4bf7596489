//! Classes of mistakes that hit other proxies: names in certificates, what a certificate is for, sessions that outlive trust.

use super::*;
use crate::certificate::dns_pattern_matches;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose};

/// Tags of the kinds of names (RFC 5280, section 4.2.1.6).
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        n @ 0..128 => out.push(n as u8),
        n => out.extend([0x82, (n >> 8) as u8, n as u8]),
    }
    out.extend(content);
    out
}

/// A leaf of `ca` whose names are these bytes, good for these uses.
fn leaf(ca: &Authority, names: &[(u8, &[u8])], uses: &[ExtendedKeyUsagePurpose]) -> (String, PrivateKey) {
    let names: Vec<u8> = names.iter().flat_map(|(tag, bytes)| der(*tag, bytes)).collect();
    raw_leaf(ca, der(0x30, &names), uses)
}

fn raw_leaf(ca: &Authority, names: Vec<u8>, uses: &[ExtendedKeyUsagePurpose]) -> (String, PrivateKey) {
    let key = PrivateKey::generate(KeyKind::EcdsaP256).unwrap();
    let signer = PrivateKey::from_pem(ca.0.key_pem().as_bytes()).unwrap();
    let certificate = pem::certificates("ca", ca.0.certificate_pem().as_bytes()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(&certificate[0], signer).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.extended_key_usages = uses.to_vec();
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], names);
    extension.set_criticality(true);
    params.custom_extensions = vec![extension];
    let signed = params.signed_by(&key, &issuer).unwrap();
    (pem::encode("CERTIFICATE", signed.der()), key)
}

fn facts(certificate: &str) -> Result<CertificateFacts, TlsError> {
    let chain = pem::certificates("leaf", certificate.as_bytes())?;
    CertificateFacts::from_der("leaf", &chain[0])
}

const BOTH: [ExtendedKeyUsagePurpose; 2] = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

#[test]
fn class_san_parsing_names_that_lie_are_refused() {
    let ca = Authority::new();
    let nul = |name: &str| format!("{name}\0.evil.example").into_bytes();
    let many: Vec<u8> = (0..2000).flat_map(|_| der(DNS, b"a.example")).collect();
    for (what, names) in [
        ("a NUL in a URI", der(0x30, &der(URI, &nul(RATINGS)))),
        ("a NUL in a DNS name", der(0x30, &der(DNS, &nul("reviews.default.svc")))),
        ("a NUL in an address of mail", der(0x30, &der(EMAIL, &nul("a@b")))),
        ("a line end", der(0x30, &der(DNS, b"a\r\nx"))),
        ("an empty name", der(0x30, &der(URI, b""))),
        ("bytes that are no ASCII", der(0x30, &der(DNS, b"\xff\xfe"))),
        ("an address of three bytes", der(0x30, &der(IP, &[1, 2, 3]))),
        ("a length beyond the end", vec![0x30, 0x05, URI, 0x7f, b'a', b'b', b'c']),
        ("names without end", vec![0x30, 0x80, URI, 0x01, b'a', 0, 0]),
        ("too many names", der(0x30, &many)),
        ("no list", b"spiffe://".to_vec()),
    ] {
        let (certificate, _) = raw_leaf(&ca, names, &BOTH);
        let read = facts(&certificate);
        assert!(read.is_err(), "{what}: {read:?}");
    }
}

#[test]
fn class_san_parsing_a_name_of_one_kind_is_none_of_another() {
    let ca = Authority::new();
    // An identity written as a DNS name or a mail address is no identity; two are none either.
    for names in [
        &[(DNS, RATINGS.as_bytes())][..],
        &[(EMAIL, RATINGS.as_bytes())],
        &[(URI, RATINGS.as_bytes()), (URI, REVIEWS.as_bytes())],
        &[(URI, RATINGS.as_bytes()), (URI, b"https://a.example")],
        &[(URI, b"spiffe://cluster.local/ns/default/sa/ratings/../admin")],
        &[(URI, b"SPIFFE://cluster.local/ns/default/sa/a b")],
    ] {
        let read = facts(&leaf(&ca, names, &BOTH).0);
        assert_eq!(read.ok().and_then(|facts| facts.spiffe_id()), None, "{names:?}");
    }
    let good = facts(&leaf(&ca, &[(URI, RATINGS.as_bytes()), (DNS, b"a.example")], &BOTH).0).unwrap();
    assert_eq!(good.spiffe_id().unwrap().to_string(), RATINGS);
    // A host written as a URI, a mail address or an address is not that host.
    let other = [(URI, &b"https://a.example"[..]), (EMAIL, b"x@a.example"), (IP, &[127, 0, 0, 1])];
    let other = facts(&leaf(&ca, &other, &BOTH).0).unwrap();
    assert!(good.dns_matches("a.example") && !other.dns_matches("a.example") && !other.dns_matches("127.0.0.1"));
}

#[test]
fn class_wildcard_san_stands_for_one_label() {
    for (pattern, host, stands) in [
        ("*.a.example", "x.a.example", true),
        ("*.a.example", "X.A.Example.", true),
        ("*.a.example", "a.example", false),
        ("*.a.example", "x.y.a.example", false),
        ("*.a.example", ".a.example", false),
        ("*.example", "a.example", false),
        ("*", "a", false),
        ("*.", "a.", false),
        ("x*.a.example", "xy.a.example", false),
        ("a.*.example", "a.b.example", false),
        ("a.example", "xa.example", false),
        ("*.a.example", "*.a.example", true),
    ] {
        assert_eq!(dns_pattern_matches(pattern, host), stands, "{pattern} {host}");
    }
}

#[tokio::test]
async fn class_extended_key_usage_says_on_which_side_a_certificate_may_stand() {
    use ExtendedKeyUsagePurpose::{ClientAuth as Client, CodeSigning, ServerAuth as Server};
    let ca = Authority::new();
    for (uses, as_client, as_server) in [
        (&[Server, Client][..], true, true),
        (&[Client], true, false),
        (&[Server], false, true),
        (&[CodeSigning], false, false),
    ] {
        let (certificate, key) = leaf(&ca, &[(URI, RATINGS.as_bytes())], uses);
        let certificate = CertifiedKey::from_pem(certificate.as_bytes(), key.to_pem().as_bytes()).unwrap();
        let client = ClientContext::build(ClientParams {
            certificate: Some(certificate.clone()),
            ..ClientParams::new(ServerVerification::Chain { anchors: ca.anchors(), san: None })
        });
        let (_, served) = connect(&client.unwrap(), &mesh_server(&ca, None)).await;
        assert_eq!(served.is_ok(), as_client, "client with {uses:?}: {served:?}");
        let wrong = server(ServerParams { certificates: vec![certificate], ..ServerParams::default() });
        let (connected, _) = connect(&mesh_client(&ca, None), &wrong).await;
        assert_eq!(connected.is_ok(), as_server, "server with {uses:?}: {connected:?}");
    }
}

/// A session of before a change of trust is worth nothing after it, on neither side.
#[tokio::test]
async fn class_tls_resumption_does_not_outlive_a_change_of_trust() {
    let (ca, other) = (Authority::new(), Authority::new());
    let client = mesh_client(&ca, None);
    let before = mesh_server(&ca, None);
    connect(&client, &before).await.1.unwrap();
    let (resumed, served) = connect(&client, &before).await;
    assert!(resumed.unwrap().resumed && served.unwrap().resumed, "there is a session to misuse");

    let required = |anchors: TrustAnchors, san: Option<SanPredicate>| {
        server(ServerParams {
            certificates: vec![ca.spiffe(REVIEWS)],
            client_auth: ClientAuth::Required { anchors, san },
            alpn: vec![b"istio".to_vec(), b"h2".to_vec()],
            ..ServerParams::default()
        })
    };
    // The server trusts another root now; or other names; the client is verified anew and refused.
    let (_, served) = connect(&client, &required(other.anchors(), None)).await;
    assert_eq!(reason(served), Reason::Untrusted);
    let (_, served) = connect(&client, &required(ca.anchors(), only(REVIEWS))).await;
    assert_eq!(reason(served), Reason::NameMismatch);
    // A session made where no certificate was asked for opens nothing where one is.
    let open = server(ServerParams { certificates: vec![ca.spiffe(REVIEWS)], ..ServerParams::default() });
    let nobody = ClientContext::build(ClientParams::new(ServerVerification::Insecure)).unwrap();
    connect(&nobody, &open).await.1.unwrap();
    assert!(connect(&nobody, &open).await.1.unwrap().resumed);
    assert!(connect(&nobody, &required(ca.anchors(), None)).await.1.is_err(), "without a certificate, with a session");
    // The client that trusts another root, or expects another name, does not offer the old session either.
    for (client, why) in
        [(mesh_client(&other, None), Reason::Untrusted), (mesh_client(&ca, only(RATINGS)), Reason::NameMismatch)]
    {
        assert_eq!(reason(connect(&client, &before).await.0), why);
    }
}
