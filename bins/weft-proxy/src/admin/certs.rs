//! `/certs`: the certificates in use and their ends.

use super::{Admin, config_dump};
use crate::http::Answer;
use std::time::SystemTime;
use weft_proto::envoy::admin::v3 as dump;
use weft_proto::envoy::admin::v3::subject_alternate_name::Name;
use weft_proto::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use weft_proto::{type_url, unpack};
use weft_sds::{SDS_CERTIFICATE, SDS_ROOTS};
use weft_tls::{CertificateFacts, pem};

/// The page.
pub fn page(admin: &Admin) -> Answer {
    let mut certificates = Vec::new();
    let identity = admin.identity.as_ref().and_then(|secrets| secrets.borrow().clone());
    if let Some(secrets) = identity {
        certificates.push(dump::Certificate {
            ca_cert: secrets.trust.facts().iter().map(|facts| details(SDS_ROOTS, facts)).collect(),
            cert_chain: vec![details(SDS_CERTIFICATE, secrets.certificate.facts())],
        });
    }
    let held = admin.held.snapshot();
    for (name, entry) in held.types.get(type_url::SECRET).into_iter().flatten() {
        if let Ok(secret) = unpack::<Secret>(&entry.any) {
            certificates.push(of_secret(name, &secret));
        }
    }
    config_dump::message(&dump::Certificates { certificates })
}

fn of_secret(name: &str, secret: &Secret) -> dump::Certificate {
    use weft_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
    let read = |source: Option<&DataSource>| -> Vec<dump::CertificateDetails> {
        let text = match source.and_then(|source| source.specifier.as_ref()) {
            Some(Specifier::InlineBytes(bytes)) => bytes.clone(),
            Some(Specifier::InlineString(text)) => text.clone().into_bytes(),
            _ => return Vec::new(),
        };
        let ders = pem::certificates("secret", &text).unwrap_or_default();
        ders.iter()
            .filter_map(|der| CertificateFacts::from_der("secret", der).ok())
            .map(|f| details(name, &f))
            .collect()
    };
    match &secret.r#type {
        Some(secret::Type::TlsCertificate(certificate)) => {
            dump::Certificate { cert_chain: read(certificate.certificate_chain.as_ref()), ca_cert: Vec::new() }
        }
        Some(secret::Type::ValidationContext(context)) => {
            dump::Certificate { ca_cert: read(context.trusted_ca.as_ref()), cert_chain: Vec::new() }
        }
        _ => dump::Certificate::default(),
    }
}

fn details(path: &str, facts: &CertificateFacts) -> dump::CertificateDetails {
    let left = facts.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    let uris = facts.uris.iter().map(|uri| Name::Uri(uri.to_string()));
    let dns = facts.dns.iter().map(|dns| Name::Dns(dns.to_string()));
    let ips = facts.ips.iter().map(|ip| Name::IpAddress(ip.to_string()));
    dump::CertificateDetails {
        path: path.to_owned(),
        serial_number: facts.serial.clone(),
        subject_alt_names: uris
            .chain(dns)
            .chain(ips)
            .map(|name| dump::SubjectAlternateName { name: Some(name) })
            .collect(),
        days_until_expiration: left.as_secs() / (24 * 3600),
        valid_from: Some(config_dump::timestamp(facts.not_before)),
        expiration_time: Some(config_dump::timestamp(facts.not_after)),
        ..dump::CertificateDetails::default()
    }
}
