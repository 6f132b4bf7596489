//! Whether the certificates of secrets can be shown to clients: the key is theirs, the time is right, the names are those of
//! the gateway's hosts. What is served by them is the proxies' matter.

use crate::parsed::{Kind, Parsed};
use crate::{CertificateFacts, Credential};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;
use weft_tls::CertifiedKey;
use weft_tls::certificate::dns_pattern_matches;

/// Code of a certificate that clients refuse, or will not be shown.
pub(crate) const INVALID: &str = "InvalidCertificate";
/// Code of a certificate that is for other hosts than those of its server.
pub(crate) const HOST_MISMATCH: &str = "CertificateHostMismatch";

/// Secrets by namespace and name, and what is wrong with each.
pub(crate) type Problems = BTreeMap<(String, String), String>;

/// Reads a chain and its key, both PEM.
///
/// # Errors
/// When one cannot be read, or the key is that of another certificate: a sentence that says what would be right.
pub(crate) fn facts(chain: &[u8], key: &[u8]) -> Result<CertificateFacts, String> {
    let read = CertifiedKey::from_pem(chain, key).map_err(|why| why.to_string())?;
    let facts = read.facts();
    let dns = facts.dns.iter().map(|name| name.to_ascii_lowercase());
    let mut names: Vec<String> = dns.chain(facts.ips.iter().map(ToString::to_string)).collect();
    if names.is_empty() {
        names.extend(common_name(&facts.subject));
    }
    Ok(CertificateFacts { not_before: seconds(facts.not_before), not_after: seconds(facts.not_after), names })
}

/// `CN` of a subject as RFC 2253 writes it.
fn common_name(subject: &str) -> Option<String> {
    subject.split(',').find_map(|part| part.trim().strip_prefix("CN=")).map(str::to_ascii_lowercase)
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// What is wrong with the secrets at `now`, and when that changes without anyone's doing.
pub(crate) fn problems(secrets: &Kind<Option<Credential>>, now: Option<i64>) -> (Problems, Option<i64>) {
    let mut found = Problems::new();
    let mut next: Option<i64> = None;
    if let Some(now) = now {
        for secret in secrets.items.iter() {
            let Some(facts) = secret.spec.as_ref().as_ref().and_then(|c| c.facts.as_ref()) else { continue };
            if let Some(message) = untimely(facts, secret, now) {
                found.insert(key(secret), message);
            }
            let changes = [facts.not_before, facts.not_after.saturating_add(1)].into_iter().filter(|at| *at > now);
            next = changes.chain(next).min();
        }
    }
    for error in secrets.errors.iter() {
        found.insert((error.at.namespace.clone(), error.at.name.clone()), error.message.clone());
    }
    (found, next)
}

fn key(secret: &Arc<Parsed<Option<Credential>>>) -> (String, String) {
    (secret.meta.namespace.clone(), secret.meta.name.clone())
}

/// It is shown all the same: a client may choose to believe it, and none could without.
fn untimely(facts: &CertificateFacts, secret: &Arc<Parsed<Option<Credential>>>, now: i64) -> Option<String> {
    let (namespace, name) = key(secret);
    let at =
        |seconds: i64| jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string());
    if now > facts.not_after {
        let end = at(facts.not_after);
        return Some(format!(
            "the certificate of Secret {namespace}/{name} has expired at {end}; clients refuse it until the Secret has a new one"
        ));
    }
    (now < facts.not_before).then(|| {
        let begin = at(facts.not_before);
        format!(
            "the certificate of Secret {namespace}/{name} is not valid before {begin}; check the clock of who made it"
        )
    })
}

/// Hosts of a server that none of its certificates is for. A wildcard is served when a certificate is for it or for a name
/// below it.
pub(crate) fn uncovered<'a>(hosts: impl Iterator<Item = &'a str>, certificates: &[&CertificateFacts]) -> Vec<&'a str> {
    let names = || certificates.iter().flat_map(|c| c.names.iter().map(String::as_str));
    let covered = |host: &str| {
        host == "*"
            || names().any(|name| dns_pattern_matches(name, host) || is_below(name, host) || same_ip(name, host))
    };
    hosts.map(|host| host.split_once('/').map_or(host, |(_, host)| host)).filter(|host| !covered(host)).collect()
}

fn is_below(name: &str, pattern: &str) -> bool {
    pattern.strip_prefix('*').is_some_and(|suffix| name.ends_with(&suffix.to_ascii_lowercase()))
}

fn same_ip(name: &str, host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|host| name.parse() == Ok(host))
}

/// The sentence for hosts that are not covered; `None` when all are.
pub(crate) fn told_uncovered(hosts: &[&str], certificates: &[&CertificateFacts]) -> Option<String> {
    if hosts.is_empty() || certificates.is_empty() {
        return None;
    }
    let names: Vec<&str> = certificates.iter().flat_map(|c| c.names.iter().map(String::as_str)).collect();
    Some(format!(
        "the certificate is for {}, not for {}; clients refuse it: make one with {} among its names",
        names.join(", "),
        hosts.join(", "),
        if hosts.len() == 1 { "this host" } else { "these hosts" },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_hosts() {
        let of = |names: &[&str]| CertificateFacts {
            not_before: 0,
            not_after: 1,
            names: names.iter().map(ToString::to_string).collect(),
        };
        for (names, hosts, missing) in [
            (&["a.example.com"][..], &["a.example.com"][..], &[][..]),
            (&["a.example.com"], &["ns/A.example.com", "b.example.com"], &["b.example.com"]),
            (&["*.example.com"], &["a.example.com", "*.example.com", "example.com"], &["example.com"]),
            (&["a.example.com"], &["*.example.com"], &[]),
            (&["a.example.com"], &["*.example.org", "*"], &["*.example.org"]),
            (&["10.0.0.1", "::1"], &["10.0.0.1", "0:0::1", "10.0.0.2"], &["10.0.0.2"]),
        ] {
            assert_eq!(uncovered(hosts.iter().copied(), &[&of(names)]), missing, "{names:?} {hosts:?}");
        }
        assert_eq!(common_name("CN=Example.com,O=x").as_deref(), Some("example.com"));
    }
}
