//! One question: may this caller do that? Answered by the compiled filters of the destination's own listener, in their order.

use super::{Caller, Destination, Offer, World};
use anyhow::Context as _;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use weft_authz::{Decision, Facts, MetadataValue, PeerCertificate, Rbac, RequestFacts};
use weft_core::Strng;
use weft_proxy_config::{
    ConnectionFacts, FilterChain, HttpConnectionManager, HttpFilter, JwtAuthn, JwtProvider, NetworkFilter, Terminal,
    Transport,
};
use weft_route::normalize::without_port;

/// Filter whose metadata holds the claims of a token.
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";
/// Port of a caller that has not been given one.
const SOURCE_PORT: u16 = 40_000;
/// Deepest nesting of claims.
const MAX_DEPTH: usize = 16;

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// Method; `GET` when empty.
    pub method: String,
    /// Path with query; `/` when empty.
    pub path: String,
    /// Authority; the destination's host when empty.
    pub host: String,
    /// Name that a client asks a gateway for by TLS; the authority without its port when empty.
    pub server_name: String,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// Claims of a verified token; `None` = no token.
    pub claims: Option<Value>,
}

/// What comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Let through.
    Allowed,
    /// Refused by policy.
    Denied,
    /// An external authorizer decides.
    Asked,
}

impl Verdict {
    /// The word for users.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Allowed => "ALLOWED",
            Verdict::Denied => "DENIED",
            Verdict::Asked => "ASKED",
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What comes of it.
    pub verdict: Verdict,
    /// Why, as a sentence.
    pub reason: String,
    /// The rule that decided: its policy and place.
    pub rule: Option<RuleName>,
    /// Mutual TLS is used.
    pub mutual_tls: bool,
    /// What dry-run policies would do differently.
    pub dry_run: Vec<String>,
}

/// A rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleName {
    /// Namespace of the policy.
    pub namespace: String,
    /// Its name.
    pub policy: String,
    /// The rule's place in `spec.rules`.
    pub index: usize,
}

impl RuleName {
    /// Reads the generator's name of a rule, `ns[NS]-policy[NAME]-rule[INDEX]`.
    pub fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("ns[")?;
        let (namespace, rest) = rest.split_once("]-policy[")?;
        let (policy, rest) = rest.split_once("]-rule[")?;
        let (index, _) = rest.split_once(']')?;
        Some(Self { namespace: namespace.into(), policy: policy.into(), index: index.parse().ok()? })
    }
}

impl std::fmt::Display for RuleName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AuthorizationPolicy {}/{} spec.rules[{}]", self.namespace, self.policy, self.index)
    }
}

/// May `caller` do `ask` at `destination`?
///
/// # Errors
/// When the destination has no proxy, or a header or path is none.
pub fn decide(world: &World, caller: &Caller, destination: &Destination, ask: &Ask) -> anyhow::Result<Answer> {
    let listener = world.listener(destination)?;
    let at = |ip| SocketAddr::new(ip, destination.target_port);
    let address = at(destination.workload.addresses.first().copied().unwrap_or(super::SOMEWHERE));
    let source = SocketAddr::new(caller.address, SOURCE_PORT);
    let sni = format!("outbound_.{}_.{}_.{}", destination.port, destination.subset, destination.host);
    let find = |transport, server_name, protocols: &[Strng]| {
        let facts = ConnectionFacts {
            destination: address,
            source,
            server_name,
            transport,
            application_protocols: protocols,
            direct_source: caller.address,
        };
        listener.find_chain(&facts).cloned()
    };
    let of_mesh: Vec<Strng> = match destination.is_http {
        true => ["istio-http/1.1", "istio", "http/1.1"].map(Into::into).to_vec(),
        false => ["istio-peer-exchange", "istio"].map(Into::into).to_vec(),
    };
    let sniffed: Vec<Strng> = if destination.is_http { vec!["http/1.1".into()] } else { Vec::new() };
    if super::is_gateway(&destination.workload) {
        // From outside: in plain text or by TLS, with the name that the client asks for.
        let host = [&ask.server_name, &ask.host, &destination.host].into_iter().find(|name| !name.is_empty());
        let host = host.map_or("", |name| without_port(name));
        let chain = find(Transport::RawBuffer, None, &sniffed)
            .or_else(|| find(Transport::Tls, Some(host), &["h2", "http/1.1"].map(Into::into)))
            .with_context(|| format!("the gateway serves no host {host} on port {}", destination.port))?;
        let server_name = chain.tls.is_some().then_some(host);
        let facts = Facts { server_name, ..strangers(source, address) };
        let mut walk =
            Walk { mutual_tls: false, dry_run: Vec::new(), allowed_by: None, asked: None, notes: Vec::new() };
        return judge(&mut walk, &chain, &facts, destination, ask);
    }
    // A caller with a proxy uses mutual TLS where the other side takes it, unless it is told otherwise.
    let offer = world.offers_mutual_tls(caller, destination)?;
    let tls = (offer == Offer::MutualTls).then(|| find(Transport::Tls, Some(sni.as_str()), &of_mesh)).flatten();
    let tls = tls.filter(|chain| chain.tls.is_some());
    let mutual_tls = tls.is_some();
    let chain = tls.or_else(|| find(Transport::RawBuffer, None, &sniffed).filter(|chain| chain.tls.is_none()));
    let Some(chain) = chain else {
        let why = match offer {
            Offer::MutualTls | Offer::PlainText => "a DestinationRule has the caller not use it".to_owned(),
            Offer::NotTold => not_told(destination),
            Offer::NoIdentity => "the caller has no identity".to_owned(),
        };
        let reason = format!("port {} takes mutual TLS only (PeerAuthentication), and {why}", address.port());
        return Ok(Answer { verdict: Verdict::Denied, reason, rule: None, mutual_tls: false, dry_run: Vec::new() });
    };
    let certificate = PeerCertificate {
        uris: caller.identity.iter().map(|id| id.as_str().into()).collect(),
        ..PeerCertificate::default()
    };
    let facts = Facts {
        server_name: mutual_tls.then_some(sni.as_str()),
        certificate: mutual_tls.then_some(&certificate),
        ..strangers(source, address)
    };
    let mut walk = Walk { mutual_tls, dry_run: Vec::new(), allowed_by: None, asked: None, notes: Vec::new() };
    if offer == Offer::NotTold {
        walk.notes.push(not_told(destination));
    }
    judge(&mut walk, &chain, &facts, destination, ask)
}

fn not_told(destination: &Destination) -> String {
    format!(
        "the caller's proxy is not told of {}:{} (Sidecar, exportTo), so that it calls in plain text and shows no identity, or refuses where it may call known hosts alone (REGISTRY_ONLY)",
        destination.host, destination.port
    )
}

/// What is known of a connection that nobody's certificate comes with.
fn strangers<'a>(source: SocketAddr, destination: SocketAddr) -> Facts<'a> {
    Facts {
        peer: source,
        remote: source,
        destination,
        server_name: None,
        certificate: None,
        request: None,
        metadata: &[],
    }
}

fn judge(
    walk: &mut Walk,
    chain: &FilterChain,
    facts: &Facts<'_>,
    destination: &Destination,
    ask: &Ask,
) -> anyhow::Result<Answer> {
    for (i, filter) in chain.filters.iter().enumerate() {
        let asks = matches!(chain.filters.get(i + 1), Some(NetworkFilter::ExtAuthz(_)));
        if let NetworkFilter::Rbac(rbac) = filter
            && let Some(answer) = walk.step(rbac, rbac.decide(facts), asks, "the connection is closed")
        {
            return Ok(answer);
        }
    }
    match &chain.terminal {
        Terminal::Tcp(_) => Ok(walk.allowed()),
        Terminal::Http(manager) => http(walk, manager, facts, destination, ask),
    }
}

fn http(
    walk: &mut Walk,
    manager: &HttpConnectionManager,
    facts: &Facts<'_>,
    destination: &Destination,
    ask: &Ask,
) -> anyhow::Result<Answer> {
    let or = |text: &str, default: &str| if text.is_empty() { default.to_string() } else { text.to_string() };
    let (method, path) = (or(&ask.method, "GET").to_ascii_uppercase(), or(&ask.path, "/"));
    let authority = or(&ask.host, &destination.host).to_ascii_lowercase();
    let path = match weft_route::normalize::path(&path, &manager.normalize) {
        Ok(path) => path,
        Err(error) => return Ok(walk.denied(format!("the request is answered with 400: {error}"), None)),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in &ask.headers {
        headers.append(HeaderName::try_from(name.as_str())?, HeaderValue::try_from(value.as_str())?);
    }
    let request = RequestFacts {
        method: &method,
        authority: &authority,
        path: path.path(),
        path_and_query: &path.path_and_query,
        scheme: if walk.mutual_tls { "https" } else { "http" },
        headers: &headers,
    };
    let mut metadata: Vec<(Strng, MetadataValue)> = Vec::new();
    for (i, filter) in manager.filters.iter().enumerate() {
        match filter {
            HttpFilter::Jwt(jwt) => {
                let Some(claims) = &ask.claims else { continue };
                match provider(jwt, claims) {
                    Ok(provider) => {
                        let words = provider.map_or(&[][..], |provider| &provider.space_delimited);
                        let payload = vec![("payload".into(), metadata_of(claims, words, 0))];
                        metadata.push((JWT_FILTER.into(), MetadataValue::Struct(payload)));
                    }
                    Err(reason) => return Ok(walk.denied(reason, None)),
                }
            }
            HttpFilter::Rbac(rbac) => {
                let facts = Facts { request: Some(request), metadata: &metadata, ..*facts };
                let asks = matches!(manager.filters.get(i + 1), Some(HttpFilter::ExtAuthz(_)));
                if let Some(answer) = walk.step(rbac, rbac.decide(&facts), asks, "the request is answered with 403") {
                    return Ok(answer);
                }
            }
            _ => {}
        }
    }
    if ask.claims.is_some() && metadata.is_empty() {
        walk.notes.push("no RequestAuthentication binds the workload, so tokens are not read".into());
    }
    Ok(walk.allowed())
}

/// The way through the filters.
struct Walk {
    mutual_tls: bool,
    dry_run: Vec<String>,
    allowed_by: Option<Strng>,
    /// An authorizer is asked, and this is said when nothing else refuses.
    asked: Option<Answer>,
    notes: Vec<String>,
}

impl Walk {
    /// One filter; an answer when it ends the way.
    fn step(&mut self, rbac: &Rbac, decision: Decision, asks: bool, refusal: &str) -> Option<Answer> {
        if let Some((allowed, by)) = &decision.shadow {
            let by = by.as_ref().map(ToString::to_string);
            match (asks, allowed) {
                (true, false) => {
                    let rule = by.as_deref().and_then(RuleName::parse);
                    // Unless something after it refuses, whatever the authorizer says.
                    let asked = self.answer(Verdict::Asked, "an external authorizer decides (CUSTOM)".into(), rule);
                    self.asked.get_or_insert(asked);
                }
                (false, false) => self.dry_run.push(format!("would be denied by {}", named(by.as_deref()))),
                _ => {}
            }
        }
        if !decision.allowed {
            let rule = decision.policy.as_deref().and_then(RuleName::parse);
            let reason = match (&decision.policy, &rule) {
                (Some(name), Some(_)) if name.contains("deny-due-to-bad-CUSTOM") => {
                    "the policy's provider is not known; it denies".to_string()
                }
                (Some(_), _) => "a DENY policy matches".to_string(),
                (None, _) => {
                    let names = rbac.rules.iter().flat_map(|rules| &rules.policies);
                    let policies: std::collections::BTreeSet<String> = names
                        .filter_map(|p| RuleName::parse(&p.name))
                        .map(|rule| format!("{}/{}", rule.namespace, rule.policy))
                        .collect();
                    let policies: Vec<String> = policies.into_iter().collect();
                    format!("no rule of the ALLOW policies matches: {}", policies.join(", "))
                }
            };
            return Some(self.denied(format!("{reason}; {refusal}"), rule));
        }
        let is_allow = rbac.rules.as_ref().is_some_and(|rules| rules.action == weft_authz::RuleAction::Allow);
        if is_allow {
            self.allowed_by = decision.policy;
        }
        None
    }

    fn allowed(&mut self) -> Answer {
        if let Some(asked) = self.asked.take() {
            return asked;
        }
        let rule = self.allowed_by.take().and_then(|name| RuleName::parse(&name));
        let reason = match &rule {
            Some(_) => "an ALLOW policy matches",
            None => "no ALLOW policy binds the workload, and no DENY policy matches",
        };
        let notes: String = self.notes.iter().map(|note| format!("; {note}")).collect();
        self.answer(Verdict::Allowed, format!("{reason}{notes}"), rule)
    }

    fn denied(&mut self, reason: String, rule: Option<RuleName>) -> Answer {
        let notes: String = self.notes.iter().map(|note| format!("; {note}")).collect();
        self.answer(Verdict::Denied, format!("{reason}{notes}"), rule)
    }

    fn answer(&mut self, verdict: Verdict, reason: String, rule: Option<RuleName>) -> Answer {
        let dry_run = std::mem::take(&mut self.dry_run);
        Answer { verdict, reason, rule, mutual_tls: self.mutual_tls, dry_run }
    }
}

fn named(rule: Option<&str>) -> String {
    rule.and_then(RuleName::parse).map_or_else(|| "having no rule that matches".into(), |rule| rule.to_string())
}

/// The issuer whose token has these claims; the first one when they name none.
///
/// # Errors
/// What the proxy answers to such a token.
fn provider<'j>(jwt: &'j JwtAuthn, claims: &Value) -> Result<Option<&'j JwtProvider>, String> {
    let Some(issuer) = claims.get("iss").and_then(Value::as_str) else {
        return Ok(jwt.providers.first().map(|provider| &**provider));
    };
    let of_issuer = |p: &&Arc<JwtProvider>| p.issuer.as_deref().is_none_or(|known| known == issuer);
    let Some(provider) = jwt.providers.iter().find(of_issuer) else {
        return Err("the request is answered with 401: Jwt issuer is not configured".into());
    };
    let audiences = match &claims["aud"] {
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect::<Vec<_>>(),
    };
    let plain = |text: &str| weft_proxy_config::compile::jwt::audience(text).to_string();
    let accepted = |text: &&str| provider.audiences.iter().any(|known| **known == *plain(text));
    if !provider.audiences.is_empty() && !audiences.iter().any(accepted) {
        return Err("the request is answered with 403: Audiences in Jwt are not allowed".into());
    }
    Ok(Some(provider))
}

/// Claims as the JWT filter leaves them in metadata; those that hold `words` become lists, as their issuer's settings say.
fn metadata_of(value: &Value, words: &[Strng], depth: usize) -> MetadataValue {
    match value {
        Value::String(text) => MetadataValue::String(text.as_str().into()),
        Value::Bool(value) => MetadataValue::Bool(*value),
        Value::Number(number) => MetadataValue::Number(number.as_f64().unwrap_or_default()),
        Value::Array(list) if depth < MAX_DEPTH => {
            MetadataValue::List(list.iter().map(|item| metadata_of(item, words, depth + 1)).collect())
        }
        Value::Object(fields) if depth < MAX_DEPTH => {
            let field = |(name, item): (&String, &Value)| match item.as_str() {
                Some(text) if depth == 0 && words.iter().any(|claim| **claim == *name.as_str()) => {
                    let parts = text.split(' ').filter(|word| !word.is_empty());
                    let list = parts.map(|word| MetadataValue::String(word.into())).collect();
                    (name.as_str().into(), MetadataValue::List(list))
                }
                _ => (name.as_str().into(), metadata_of(item, words, depth + 1)),
            };
            MetadataValue::Struct(fields.iter().map(field).collect())
        }
        _ => MetadataValue::String(Strng::from("")),
    }
}
