//! A workload and its authority, end to end over TLS on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use support::{Ca, Pod, REVIEWS, secrets_when};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_identity::SpiffeId;
use weft_sds::{SvidConfig, SvidManager, SvidStatus, WorkloadSecrets};
use weft_tls::{
    ClientAuth, ClientContext, ClientParams, PeerCertificate, Reason, ServerContext, ServerParams, ServerVerification,
};

async fn status_when(manager: &SvidManager, wanted: impl Fn(&SvidStatus) -> bool) -> SvidStatus {
    let mut status = manager.status();
    let found = tokio::time::timeout(Duration::from_secs(60), status.wait_for(|status| wanted(status))).await;
    found.expect("the status in time").unwrap().clone()
}

fn server(secrets: &WorkloadSecrets) -> ServerContext {
    ServerContext::build(ServerParams {
        certificates: vec![secrets.certificate.clone()],
        client_auth: ClientAuth::Required { anchors: secrets.trust.clone(), san: None },
        ..ServerParams::default()
    })
    .unwrap()
}

fn client(secrets: &WorkloadSecrets) -> ClientContext {
    let reviews = |peer: &PeerCertificate| peer.uris.iter().any(|uri| **uri == *REVIEWS);
    let verification = ServerVerification::Chain { anchors: secrets.trust.clone(), san: Some(Arc::new(reviews)) };
    ClientContext::build(ClientParams {
        certificate: Some(secrets.certificate.clone()),
        ..ClientParams::new(verification)
    })
    .unwrap()
}

#[tokio::test]
async fn rotation_keeps_open_connections() {
    let ca = Ca::start().await;
    let pod = Pod::new(ca.authority.root_pem(), Some("reviews-token\n"));
    let identity = Some(SpiffeId::parse(REVIEWS).unwrap());
    let manager = SvidManager::start(SvidConfig { identity, ..pod.config(&ca.address, 8) });
    let mut secrets = manager.secrets();
    let first = secrets_when(&mut secrets, |_| true).await;
    assert_eq!(first.svid.id.to_string(), REVIEWS);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let context = server(&first);
    let echo = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = context.accept(stream).await.unwrap().stream;
        while let Ok(byte) = stream.read_u8().await {
            stream.write_u8(byte).await.unwrap();
        }
    });
    let mut open = client(&first).connect(TcpStream::connect(address).await.unwrap()).await.unwrap().stream;

    let renewed = secrets_when(&mut secrets, |now| now.svid.not_after > first.svid.not_after).await;
    assert!(SystemTime::now() < first.svid.not_after, "renewed before the old one expired");
    assert_ne!(renewed.certificate.facts().serial, first.certificate.facts().serial);
    assert_ne!(*renewed.svid.key_pem, *first.svid.key_pem, "each SVID has a key of its own");
    // The connection made with the first certificate lives on after the first has expired.
    let left = first.svid.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left + Duration::from_secs(1)).await;
    open.write_u8(7).await.unwrap();
    assert_eq!(open.read_u8().await.unwrap(), 7);
    drop(open);
    echo.await.unwrap();
}

#[tokio::test]
async fn an_outage_is_told_and_an_expired_identity_is_never_shown() {
    let ca = Ca::start().await;
    let pod = Pod::new(ca.authority.root_pem(), Some("reviews-token"));
    let manager = SvidManager::start(pod.config(&ca.address, 3));
    let mut secrets = manager.secrets();
    secrets_when(&mut secrets, |_| true).await;
    let (authority, address) = (ca.authority.clone(), ca.address.clone());
    drop(ca);
    let SvidStatus::Failing { reason, .. } = status_when(&manager, |s| matches!(s, SvidStatus::Failing { .. })).await
    else {
        panic!("failing")
    };
    assert!(reason.contains(&address), "{reason}");
    // Whatever is in the channel at any moment is valid; when the last one has expired there is none.
    let gone = async {
        let mut looked = Instant::now();
        loop {
            // Who did not get to look did not get to take it back either: all runs on this one thread.
            let in_time = looked.elapsed() < Duration::from_millis(300);
            looked = Instant::now();
            let valid = secrets.borrow_and_update().as_ref().map(|now| now.svid.not_after + Duration::from_millis(500));
            match valid {
                None => break,
                Some(end) => assert!(!in_time || SystemTime::now() < end, "an expired identity is shown"),
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), secrets.changed()).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("taken back after it expired");
    let SvidStatus::Waiting(reason) = manager.status().borrow().clone() else { panic!("waiting") };
    assert!(reason.contains("expired") || reason.contains("cannot be reached"), "{reason}");

    let _again = Ca::serve(authority, &address).await;
    secrets_when(&mut secrets, |now| now.svid.is_valid_at(SystemTime::now())).await;
}

#[tokio::test]
async fn it_says_what_it_waits_for() {
    let (ca, stranger) = (Ca::start().await, Ca::start().await);
    let other = Some(SpiffeId::parse("spiffe://cluster.local/ns/default/sa/ratings").unwrap());
    for (root, token, identity, says) in [
        ("", Some("reviews-token"), None, "the mesh's root certificate"),
        (ca.authority.root_pem(), None, None, "the service-account token"),
        (ca.authority.root_pem(), Some("stolen"), None, "the token is not accepted"),
        (stranger.authority.root_pem(), Some("reviews-token"), None, "not signed by a trusted root"),
        (ca.authority.root_pem(), Some("reviews-token"), other, "may not have a certificate for"),
    ] {
        let pod = Pod::new(root, token);
        let manager = SvidManager::start(SvidConfig { identity, ..pod.config(&ca.address, 60) });
        status_when(&manager, |status| matches!(status, SvidStatus::Waiting(text) if text.contains(says))).await;
        assert!(manager.secrets().borrow().is_none());
    }
}

#[tokio::test]
async fn a_certificate_in_hand_stands_in_for_a_lost_token() {
    let ca = Ca::start().await;
    let pod = Pod::new(ca.authority.root_pem(), Some("reviews-token"));
    let manager = SvidManager::start(pod.config(&ca.address, 600));
    let mut secrets = manager.secrets();
    let first = secrets_when(&mut secrets, |_| true).await;
    std::fs::remove_file(pod.path("token")).unwrap();
    manager.renew_now();
    let renewed = secrets_when(&mut secrets, |now| now.version > first.version).await;
    assert_eq!(renewed.svid.id, first.svid.id);
    assert_eq!(manager.stats().fetched.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[tokio::test]
async fn added_roots_are_trusted_without_a_new_certificate() {
    let (ca, partner) = (Ca::start().await, Ca::start().await);
    let pod = Pod::new(ca.authority.root_pem(), Some("reviews-token"));
    let manager = SvidManager::start(pod.config(&ca.address, 600));
    let mut secrets = manager.secrets();
    let first = secrets_when(&mut secrets, |_| true).await;
    let both = format!("{}{}", ca.authority.root_pem(), partner.authority.root_pem());
    std::fs::write(pod.path("root-cert.pem"), both).unwrap();
    let grown = secrets_when(&mut secrets, |now| now.trust.certificates().len() == 2).await;
    assert_eq!(grown.certificate, first.certificate);
    let theirs =
        partner.authority.server_certificate(&["partner"], None, Duration::from_secs(60), SystemTime::now()).unwrap();
    for (trust, accepted) in [(&first.trust, false), (&grown.trust, true)] {
        assert_eq!(trust.verify_chain(theirs.chain(), SystemTime::now()).is_ok(), accepted);
    }
}

#[tokio::test]
async fn the_authority_must_have_its_own_name() {
    let ca = Ca::start().await;
    let pod = Pod::new(ca.authority.root_pem(), Some("reviews-token"));
    let config = SvidConfig { ca_server_name: "other.istio-system.svc".into(), ..pod.config(&ca.address, 60) };
    let manager = SvidManager::start(config);
    status_when(&manager, |status| matches!(status, SvidStatus::Waiting(text) if text.contains("not valid for"))).await;
    // The same in the words of the handshake.
    let tcp = TcpStream::connect(&ca.address).await.unwrap();
    let context = ClientContext::build(ClientParams {
        sni: Some("other.istio-system.svc".into()),
        ..ClientParams::new(ServerVerification::WebPki { anchors: ca.authority.roots().clone(), san: None })
    });
    assert_eq!(context.unwrap().connect(tcp).await.err().map(|e| e.reason), Some(Reason::NameMismatch));
    drop(ca.service.clone());
}
