//! Secrets: certificates and trusted roots, with their validity. Keys are never shown; proxies leave them out of dumps.

use super::{Dump, each, field, path, text};
use crate::output::Table;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use std::time::SystemTime;
use weft_tls::{CertificateFacts, pem};

const SECTION: &str = "SecretsConfigDump";
/// Where a secret holds roots.
const CONTEXTS: [&[&str]; 2] =
    [&["validation_context"], &["combined_validation_context", "default_validation_context"]];
/// Lists of the section and what they mean.
const STATES: [(&str, &str); 3] =
    [("dynamic_active_secrets", "ACTIVE"), ("dynamic_warming_secrets", "WARMING"), ("static_secrets", "ACTIVE")];

/// `RESOURCE NAME, TYPE, STATUS, VALID CERT, SERIAL NUMBER, NOT AFTER, NOT BEFORE`.
pub fn table(dump: &Dump, now: SystemTime) -> Table {
    let mut table =
        Table::new(["RESOURCE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"]);
    for section in dump.sections(SECTION) {
        for (list, state) in STATES {
            for item in each(field(section, list)) {
                let secret = field(item, "secret");
                let name = if text(item, "name").is_empty() { text(secret, "name") } else { text(item, "name") };
                for (kind, data) in certificates(secret) {
                    let facts = data.map(|pem| facts(&pem)).unwrap_or_default();
                    let [valid, serial, after, before] = cells(facts.first(), now);
                    table.row([name, kind, state, &valid, &serial, &after, &before]);
                }
            }
        }
    }
    table.sort();
    table
}

/// The PEM text of an active secret: its chain, or its roots.
pub fn text_of(dump: &Dump, wanted: &str) -> Option<Vec<u8>> {
    certificates(active(dump, wanted)?).into_iter().find_map(|(_, data)| data)
}

/// The PEM text of the revocation lists that an active secret with roots holds.
pub fn lists_of(dump: &Dump, wanted: &str) -> Option<Vec<u8>> {
    let secret = active(dump, wanted)?;
    CONTEXTS.iter().find_map(|place| data(field(path(secret, place), "crl")))
}

fn active<'a>(dump: &'a Dump, wanted: &str) -> Option<&'a Value> {
    let lists =
        dump.sections(SECTION).flat_map(|s| ["dynamic_active_secrets", "static_secrets"].map(|l| each(field(s, l))));
    let mut items = lists.flatten();
    let item = items.find(|item| text(item, "name") == wanted || text(field(item, "secret"), "name") == wanted)?;
    Some(field(item, "secret"))
}

/// The section as it is, for JSON and YAML.
pub fn items(dump: &Dump) -> Option<&Value> {
    dump.sections(SECTION).next()
}

/// What a secret holds: kind, and PEM text when it is in the dump.
fn certificates(secret: &Value) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    let certificate = field(secret, "tls_certificate");
    if !certificate.is_null() {
        found.push(("Cert Chain", data(field(certificate, "certificate_chain"))));
    }
    for place in CONTEXTS {
        let roots = path(secret, place);
        if !roots.is_null() {
            found.push(("CA", data(field(roots, "trusted_ca"))));
        }
    }
    found
}

fn data(source: &Value) -> Option<Vec<u8>> {
    let bytes = field(source, "inline_bytes").as_str().and_then(|text| STANDARD.decode(text).ok());
    bytes.or_else(|| field(source, "inline_string").as_str().map(|text| text.as_bytes().to_vec()))
}

fn facts(text: &[u8]) -> Vec<CertificateFacts> {
    let ders = pem::certificates("certificate", text).unwrap_or_default();
    ders.iter().filter_map(|der| CertificateFacts::from_der("certificate", der).ok()).collect()
}

fn cells(facts: Option<&CertificateFacts>, now: SystemTime) -> [String; 4] {
    let time = |at: SystemTime| Timestamp::try_from(at).map_or_else(|_| "-".into(), |t| t.to_string());
    match facts {
        None => ["-".into(), "-".into(), "-".into(), "-".into()],
        Some(facts) => {
            let valid = (facts.not_before..facts.not_after).contains(&now);
            [valid.to_string(), facts.serial.clone(), time(facts.not_after), time(facts.not_before)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::dump;
    use super::*;
    use serde_json::json;
    use std::time::Duration;
    use weft_tls::{Issuer, KeyKind, RootParams};

    #[test]
    fn certificates_are_read() {
        weft_tls::install_provider();
        let now = SystemTime::now();
        let root = Issuer::self_signed(&RootParams {
            organization: "cluster.local".into(),
            key: KeyKind::default(),
            not_before: now,
            not_after: now + Duration::from_secs(3600),
        })
        .unwrap();
        let roots = STANDARD.encode(root.certificate_pem());
        let dump = dump(
            SECTION,
            json!({
                "dynamic_active_secrets": [
                    {"name": "ROOTCA", "secret": {"validation_context": {"trusted_ca": {"inline_bytes": roots}}}},
                    {"name": "default", "secret": {"tls_certificate": {"certificate_chain": {"inline_bytes": roots},
                        "private_key": {"inline_bytes": "W3JlZGFjdGVkXQ=="}}}},
                ],
                "dynamic_warming_secrets": [{"name": "kubernetes://x", "secret": {"tls_certificate": {}}}],
            }),
        );
        let facts = root.facts();
        let now = facts.not_before + Duration::from_secs(1);
        let table_now = table(&dump, now);
        let rows: Vec<Vec<&str>> = table_now.rows().iter().map(|r| r.iter().map(String::as_str).collect()).collect();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[0][..5], ["ROOTCA", "CA", "ACTIVE", "true", facts.serial.as_str()]);
        assert!(rows[0][5].ends_with('Z') && rows[0][5] > rows[0][6], "{:?}", rows[0]);
        assert_eq!(rows[1][..4], ["default", "Cert Chain", "ACTIVE", "true"]);
        assert_eq!(rows[2], ["kubernetes://x", "Cert Chain", "WARMING", "-", "-", "-", "-"]);
        assert_eq!(table(&dump, facts.not_after).rows()[0][3], "false");
    }
}
