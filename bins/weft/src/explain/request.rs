//! The request that is asked about, as a user types it: an address, and options for the rest.

use crate::authz::decide::Ask;
use crate::authz::{Caller, World};
use anyhow::{Context, bail};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Map, Value};

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// By `https`, so that the caller's proxy sees TLS.
    pub tls: bool,
    /// Host, as it was typed, without the port.
    pub host: String,
    /// Port that is dialled.
    pub port: u16,
    /// What the host header says.
    pub authority: String,
    /// Path, with query.
    pub path: String,
    /// Method.
    pub method: Method,
    /// Headers.
    pub headers: HeaderMap,
    /// Claims of a verified token; `None` = no token.
    pub claims: Option<Value>,
    /// Namespace in which short hosts are looked up: the caller's.
    pub namespace: String,
}

/// What can be said of a request beside its address.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Method [default: GET]
    #[arg(short = 'X', long, default_value = "", hide_default_value = true)]
    pub method: String,
    /// Host header [default: the address's]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub host: String,
    /// Header NAME=VALUE or NAME:VALUE; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE")]
    pub headers: Vec<String>,
    /// Claim NAME=VALUE of a verified token, VALUE may be JSON; may be given several times
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    pub claims: Vec<String>,
}

/// A header of the command line, its name in lower case.
///
/// # Errors
/// When it is not `NAME=VALUE`.
pub fn header(text: &str) -> anyhow::Result<(String, String)> {
    let (name, value) = text.split_once(['=', ':']).with_context(|| format!("header {text:?} is not NAME=VALUE"))?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_string()))
}

/// Claims of the command line; `None` when there are none.
///
/// # Errors
/// When one is not `NAME=VALUE`.
pub fn claims(texts: &[String]) -> anyhow::Result<Option<Value>> {
    let mut claims = Map::new();
    for text in texts {
        let (name, value) = text.split_once('=').with_context(|| format!("claim {text:?} is not NAME=VALUE"))?;
        // Lists, numbers and objects are JSON; anything else is text.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into()));
        claims.insert(name.into(), value);
    }
    Ok((!claims.is_empty()).then_some(Value::Object(claims)))
}

impl Request {
    /// Takes `[http[s]://]HOST[:PORT][/PATH]` apart. Without a port it is the scheme's; without a scheme too, that of the
    /// service's first HTTP port.
    ///
    /// # Errors
    /// When the address, the method or a header is none.
    pub fn new(
        address: &str,
        options: &Options,
        world: &World,
        caller: &Caller,
        namespace: &str,
    ) -> anyhow::Result<Self> {
        let namespace = caller.workload.as_ref().map_or(namespace, |workload| &workload.namespace);
        let (scheme, rest) = match address.split_once("://") {
            Some((scheme @ ("http" | "https"), rest)) => (Some(scheme), rest),
            Some((scheme, _)) => bail!("{address:?}: {scheme} is not http or https"),
            None => (None, address),
        };
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let host = weft_route::normalize::without_port(authority);
        if host.is_empty() {
            bail!("{address:?} names no host; write HOST[:PORT][/PATH]");
        }
        if host.contains(':') && !host.starts_with('[') {
            bail!("{address:?}: what follows the colon is no port");
        }
        let port = match authority[host.len()..].strip_prefix(':') {
            Some(text) => text.parse().with_context(|| format!("{address:?}: {text:?} is no port"))?,
            None => match scheme {
                Some("https") => 443,
                Some(_) => 80,
                None => usual_port(world, host, namespace),
            },
        };
        let method = if options.method.is_empty() { "GET".to_string() } else { options.method.to_ascii_uppercase() };
        let mut headers = HeaderMap::new();
        for text in &options.headers {
            let (name, value) = header(text)?;
            let name = HeaderName::try_from(&name).with_context(|| format!("{name:?} is no name of a header"))?;
            headers.append(name, HeaderValue::try_from(value).with_context(|| format!("the value in {text:?}"))?);
        }
        Ok(Self {
            tls: scheme == Some("https"),
            host: host.trim_matches(['[', ']']).to_ascii_lowercase(),
            port,
            authority: if options.host.is_empty() { authority.to_string() } else { options.host.clone() },
            path: path.to_string(),
            method: Method::from_bytes(method.as_bytes()).with_context(|| format!("{method:?} is no method"))?,
            headers,
            claims: claims(&options.claims)?,
            namespace: namespace.to_string(),
        })
    }

    /// What the policies of the other end are asked.
    pub fn ask(&self) -> Ask {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        Ask {
            method: self.method.to_string(),
            path: self.path.clone(),
            host: self.authority.clone(),
            server_name: self.host.clone(),
            headers: self.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            claims: self.claims.clone(),
        }
    }
}

/// `GET http://reviews:9080/reviews/0`.
impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(f, "{} {scheme}://{host}:{}{}", self.method, self.port, self.path)?;
        if weft_route::normalize::without_port(&self.authority) != host {
            write!(f, " (host {})", self.authority)?;
        }
        Ok(())
    }
}

fn usual_port(world: &World, host: &str, namespace: &str) -> u16 {
    let service = world.service(host, namespace);
    let ports = service.iter().flat_map(|service| &service.ports);
    ports.clone().find(|p| p.protocol.is_http()).or_else(|| ports.clone().next()).map_or(80, |port| port.number)
}
