//! A certificate, a signing request or a PEM text from anywhere: reading them never panics, and no name with a NUL in it is
//! taken for the name before the NUL.

#![no_main]

use libfuzzer_sys::fuzz_target;
use weft_tls::{CertificateFacts, CertificateRequest, TrustAnchors, pem};

fuzz_target!(|data: &[u8]| {
    if let Ok(facts) = CertificateFacts::from_der("fuzz", data) {
        for name in facts.uris.iter().chain(&facts.dns).chain(&facts.emails) {
            assert!(!name.contains('\0'), "{name:?}");
        }
        facts.spiffe_id();
        facts.dns_matches("reviews.default.svc.cluster.local");
    }
    let request = pem::encode("CERTIFICATE REQUEST", data);
    if let Ok(request) = CertificateRequest::from_pem(request.as_bytes()) {
        request.is_for(data);
        let _ = request.asks_only_for("spiffe://cluster.local/ns/default/sa/reviews");
    }
    let _ = pem::certificates("fuzz", data);
    let _ = pem::private_key(data);
    let _ = pem::revocation_lists(data);
    let lists = pem::encode("X509 CRL", data);
    let _ = weft_tls::check_crls(lists.as_bytes());
    let _ = weft_tls::crls_until(lists.as_bytes());
    let _ = TrustAnchors::from_pem(data).map(|anchors| anchors.facts());
    let _ = TrustAnchors::from_pem(pem::encode("CERTIFICATE", data).as_bytes());
});
