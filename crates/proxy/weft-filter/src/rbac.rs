//! The authorization filter: asks `weft_authz`, tells the filters after it what shadow rules found, and says the answer in the
//! client's protocol. The decision itself is that crate's.
//!
//! At level debug of target `rbac` every decision is a line in Envoy's words and layout: users cut addresses out of it at its
//! commas and colons.

use std::fmt;
use std::sync::LazyLock;
use weft_authz::{Decision, Facts, MetadataValue, Rbac, RuleAction};
use weft_codec::{LocalReply, Reason};
use weft_core::Strng;
use weft_route::{DynamicMetadata, metadata};

/// Name of the filter for requests, under which its metadata stands.
pub static HTTP_FILTER: LazyLock<Strng> = LazyLock::new(|| "envoy.filters.http.rbac".into());
/// Name of the filter for connections.
pub static NETWORK_FILTER: LazyLock<Strng> = LazyLock::new(|| "envoy.filters.network.rbac".into());
/// Where rules of action LOG say whether one of them matched.
static COMMON: LazyLock<Strng> = LazyLock::new(|| "envoy.common".into());
static LOG_HINT: LazyLock<Strng> = LazyLock::new(|| "access_log_hint".into());

/// Decides, and tells what it found under the name of `filter`.
pub fn decide(rbac: &Rbac, facts: &Facts<'_>, filter: &Strng) -> (Decision, Vec<Told>) {
    let decision = rbac.decide(facts);
    if tracing::enabled!(target: "rbac", tracing::Level::DEBUG) {
        trace(rbac, facts, &decision);
    }
    let mut told = Vec::new();
    if let Some((allowed, policy)) = &decision.shadow {
        let result = if *allowed { "allowed" } else { "denied" };
        if let Some(policy) = policy {
            told.push(Told::new(filter, &rbac.shadow_keys.policy, MetadataValue::String(policy.clone())));
        }
        told.push(Told::new(filter, &rbac.shadow_keys.result, MetadataValue::String(result.into())));
    }
    if rbac.rules.as_ref().is_some_and(|rules| rules.action == RuleAction::Log) {
        told.push(Told::new(&COMMON, &LOG_HINT, MetadataValue::Bool(decision.policy.is_some())));
    }
    (decision, told)
}

/// Something for the filters after this one.
#[derive(Debug)]
pub struct Told {
    filter: Strng,
    key: Strng,
    value: MetadataValue,
}

impl Told {
    fn new(filter: &Strng, key: &Strng, value: MetadataValue) -> Self {
        Self { filter: filter.clone(), key: key.clone(), value }
    }

    /// Puts it where they find it.
    pub fn put(self, all: &mut DynamicMetadata) {
        metadata::put(all, &self.filter, &self.key, self.value);
    }
}

/// The reply to a request that is denied.
pub fn reply(decision: &Decision) -> LocalReply {
    LocalReply::new(Reason::AccessDenied).with_details(details(decision))
}

/// `rbac_access_denied_matched_policy[NAME]`; `none` when no policy of an ALLOW matched.
pub fn details(decision: &Decision) -> String {
    let policy = decision.policy.as_deref().unwrap_or("none");
    // A details word has no spaces, so that logs can be split.
    format!("rbac_access_denied_matched_policy[{}]", policy.replace(' ', "_"))
}

fn trace(rbac: &Rbac, facts: &Facts<'_>, decision: &Decision) {
    tracing::debug!(target: "rbac", "{}", Checking(facts));
    let said = |what: &str, allowed: bool, policy: Option<&Strng>| {
        let result = if allowed { "allowed" } else { "denied" };
        let policy = policy.map_or("none", |name| &**name);
        tracing::debug!(target: "rbac", "{what} {result}, matched policy {policy}");
    };
    if let Some((allowed, policy)) = &decision.shadow {
        said("shadow", *allowed, policy.as_ref());
    }
    if rbac.rules.is_some() {
        said("enforced", decision.allowed, decision.policy.as_ref());
    } else {
        tracing::debug!(target: "rbac", "no engine, allowed by default");
    }
}

/// What is decided on, as Envoy writes it.
struct Checking<'a>(&'a Facts<'a>);

impl fmt::Display for Checking<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = self.0;
        let name = facts.server_name.unwrap_or_default();
        let (peer, remote, local) = (facts.peer, facts.remote, facts.destination);
        write!(f, "checking request: requestedServerName: {name}, sourceIP: {peer}, directRemoteIP: {peer}, ")?;
        write!(f, "remoteIP: {remote},localAddress: {local}, ssl: ")?;
        match facts.certificate {
            Some(certificate) => {
                let (uris, dns) = (certificate.uris.join(","), certificate.dns.join(","));
                let subject = &certificate.subject;
                write!(f, "uriSanPeerCertificate: {uris}, dnsSanPeerCertificate: {dns}, ")?;
                write!(f, "subjectPeerCertificate: {}", subject.escape_debug())?;
            }
            None => f.write_str("none")?,
        }
        f.write_str(", headers: ")?;
        if let Some(request) = &facts.request {
            let pseudo = [
                (":authority", request.authority),
                (":path", request.path_and_query),
                (":method", request.method),
                (":scheme", request.scheme),
            ];
            for (name, value) in pseudo {
                write!(f, "'{name}', '{}' ", value.escape_debug())?;
            }
            for (name, value) in request.headers {
                // A token in a log lets whoever reads the log be its bearer.
                let secret = matches!(name.as_str(), "authorization" | "cookie" | "proxy-authorization");
                let value = if secret { "[redacted]".into() } else { String::from_utf8_lossy(value.as_bytes()) };
                write!(f, "'{name}', '{}' ", value.escape_debug())?;
            }
        }
        f.write_str(", dynamicMetadata: ")?;
        for (filter, value) in facts.metadata {
            write!(f, "{filter}: {} ", crate::jwt::claims::json(value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue};
    use weft_authz::RequestFacts;

    #[test]
    fn the_line_can_be_cut_at_commas_and_colons() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer secret"));
        headers.insert("x-text", HeaderValue::from_bytes(b"a\xffb\tc").unwrap());
        let facts = Facts {
            peer: "192.168.10.15:4321".parse().unwrap(),
            remote: "203.0.113.9:0".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
            server_name: None,
            certificate: None,
            request: Some(RequestFacts {
                method: "GET",
                authority: "h",
                path: "/",
                path_and_query: "/?q",
                scheme: "http",
                headers: &headers,
            }),
            metadata: &[],
        };
        let line = Checking(&facts).to_string();
        let field = |n: usize| line.split(',').nth(n).and_then(|part| part.split(':').nth(1)).map(str::trim);
        assert_eq!((field(2), field(3)), (Some("192.168.10.15"), Some("203.0.113.9")), "{line}");
        assert!(line.contains("':path', '/?q'") && line.contains("[redacted]") && !line.contains("secret"), "{line}");
        assert!(!line.contains('\t') && line.contains(", ssl: none, headers: ") && line.ends_with("dynamicMetadata: "));
    }
}
