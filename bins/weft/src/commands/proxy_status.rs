//! `weft proxy-status`: does each proxy have the configuration that the control plane last sent?

use crate::cli::{Connection, ControlPlane};
use crate::commands::get::document;
use crate::connect::connect;
use crate::dump::Dump;
use crate::dump::compare::compare;
use crate::output::{self, Format, Table};
use crate::{forward, target};
use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use weft_core::well_known::{TOKEN_AUDIENCE, port};
use weft_k8s_api::Object;
use weft_store::ApiClient;
use weft_store::client::TokenRequest;

/// Label of the control plane's pods.
const CONTROL_PLANE: &str = "app=istiod";
/// What the columns show.
const TYPES: [&str; 4] = ["CDS", "LDS", "EDS", "RDS"];

/// Shows whether proxies have the configuration that they should have; of one that is named, also where it differs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this proxy: POD.NAMESPACE, deploy/NAME.NAMESPACE
    #[arg(value_name = "POD[.NS]")]
    target: Option<String>,
    /// Namespace: of the named proxy, or of the proxies shown
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    #[command(flatten)]
    control_plane: ControlPlane,
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// A connected proxy, as `/debug/syncz` tells it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Proxy {
    /// `pod.namespace`.
    pub proxy: String,
    /// `sidecar` or `router`.
    pub proxy_type: String,
    /// Cluster it is in.
    pub cluster_id: String,
    /// Its version.
    pub version: String,
    /// `weft` or `envoy`.
    pub engine: String,
    /// Pod of the control plane it is connected to.
    pub istiod: String,
    /// What it asked for, when it takes only that.
    pub on_demand: Option<OnDemand>,
    /// State by type of configuration.
    pub types: BTreeMap<String, TypeState>,
}

/// What a proxy asked for that takes only the configuration that it uses.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct OnDemand {
    /// How many hosts and addresses.
    pub asked: u64,
}

/// State of one type of configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct TypeState {
    /// `SYNCED`, `STALE`, `NOT SENT`, `IGNORED`, `ERROR`.
    pub status: String,
    /// What the proxy refused, and why.
    pub error: String,
}

impl Proxy {
    /// The state of a type as one word, so that columns can be counted.
    pub fn state(&self, kind: &str) -> String {
        match self.types.get(kind).map(|t| t.status.as_str()) {
            None | Some("") => "NOT_SENT".into(),
            Some(word) => word.replace(' ', "_"),
        }
    }

    /// The worst of all states that matter.
    pub fn overall(&self) -> String {
        let states: Vec<String> = TYPES.iter().map(|kind| self.state(kind)).collect();
        let worst = ["ERROR", "STALE", "NOT_SENT"].into_iter().find(|word| states.iter().any(|s| s == word));
        worst.unwrap_or("SYNCED").to_string()
    }

    /// The proxy for programs.
    fn to_value(&self) -> Value {
        let state = |(kind, state): (&String, &TypeState)| {
            let error = (!state.error.is_empty()).then_some(&state.error);
            (kind.clone(), json!({"status": self.state(kind), "error": error}))
        };
        json!({
            "name": self.proxy, "type": self.proxy_type, "cluster": self.cluster_id, "istiod": self.istiod,
            "version": self.version, "engine": self.engine, "asked": self.on_demand.as_ref().map(|asks| asks.asked),
            "status": self.overall(), "types": self.types.iter().map(state).collect::<serde_json::Map<_, _>>(),
        })
    }
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let client = connect(&connection).await?;
    let control_plane = control_plane(&client, &args.control_plane.istio_namespace).await?;
    if control_plane.is_empty() {
        bail!(
            "no control plane runs in {}; `weft up` starts one, `weft status` shows what runs",
            args.control_plane.istio_namespace
        );
    }
    let mut proxies = proxies(&client, &control_plane).await?;
    let mut differences = Vec::new();
    if let Some(text) = &args.target {
        let target = target::parse(text, args.namespace.as_deref(), true)?;
        let pod = target::resolve(&client, &target).await?;
        let name = format!("{}.{}", pod.name(), pod.namespace());
        proxies.retain(|p| p.proxy == name);
        if proxies.is_empty() {
            bail!(
                "proxy {name} is not connected to the control plane; `weft logs {} -c istio-proxy -n {}` may say why",
                pod.name(),
                pod.namespace()
            );
        }
        differences = compared(&client, &control_plane, &proxies, &pod).await.unwrap_or_else(|error| {
            output::warn(format!("what it has cannot be compared with what it should have: {error:#}"));
            Vec::new()
        });
    } else if let Some(namespace) = &args.namespace {
        proxies.retain(|p| p.proxy.ends_with(&format!(".{namespace}")));
    }
    if proxies.is_empty() {
        output::note_plain("No proxies are connected.");
    }
    if args.output != Format::Table {
        let mut shown = values(&proxies);
        if args.target.is_some() {
            let all: serde_json::Map<_, _> =
                differences.iter().map(|(name, lines)| ((*name).into(), json!(lines))).collect();
            shown[0]["differences"] = all.into();
        }
        document(&shown, args.output == Format::Yaml)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !proxies.is_empty() {
        table(&proxies).print()?;
    }
    for (proxy, kind, error) in errors(&proxies) {
        output::warn(format!("{proxy} refused its {kind}: {error}"));
    }
    for (name, lines) in &differences {
        output::line(format!("{name} {}", if lines.is_empty() { "match" } else { "don't match (should -> is):" }))?;
        lines.iter().try_for_each(|line| output::line(format!("  {line}")))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Proxies for programs, by name.
pub fn values(proxies: &[Proxy]) -> Value {
    let mut all: Vec<&Proxy> = proxies.iter().collect();
    all.sort_by(|a, b| a.proxy.cmp(&b.proxy));
    all.into_iter().map(Proxy::to_value).collect()
}

/// Proxies as a table, and below it what they refused.
pub fn report(proxies: &[Proxy]) -> String {
    let refused =
        errors(proxies).into_iter().map(|(proxy, kind, error)| format!("{proxy} refused its {kind}: {error}\n"));
    table(proxies).render(false) + &refused.collect::<String>()
}

/// What differs between the configuration that the control plane has for a proxy and that which the proxy has.
async fn compared(
    client: &ApiClient,
    control_plane: &[Object],
    proxies: &[Proxy],
    pod: &Object,
) -> anyhow::Result<Vec<(&'static str, Vec<String>)>> {
    let of = proxies.first().map(|proxy| proxy.istiod.as_str());
    let instance = control_plane.iter().find(|pod| Some(pod.name()) == of).or(control_plane.first());
    let instance = instance.context("no control plane runs")?;
    let token = debug_token(client, instance).await?;
    let path = format!("/debug/config_dump?proxyID={}.{}", pod.name(), pod.namespace());
    let wanted = forward::get_as(client, instance, port::MONITORING, &path, Some(&token)).await?;
    let there = forward::get(client, pod, port::ADMIN, "/config_dump").await?;
    let read = |dump: &[u8]| Dump::parse(dump).map_err(anyhow::Error::msg);
    Ok(compare(&read(&wanted)?, &read(&there)?))
}

/// Running pods of the control plane.
///
/// # Errors
/// When the API server does not answer.
pub async fn control_plane(client: &ApiClient, namespace: &str) -> anyhow::Result<Vec<Object>> {
    let mut pods = target::pods(client, Some(namespace), CONTROL_PLANE).await?;
    pods.retain(|pod| target::phase(pod) == "Running" && pod.metadata.deletion_timestamp.is_none());
    Ok(pods)
}

/// Proxies connected to any of the control plane's pods.
///
/// # Errors
/// When none of the pods answers.
pub async fn proxies(client: &ApiClient, control_plane: &[Object]) -> anyhow::Result<Vec<Proxy>> {
    let (mut all, mut answered, mut failure) = (Vec::new(), false, None);
    for pod in control_plane {
        match of_instance(client, pod).await {
            Ok(proxies) => {
                answered = true;
                all.extend(proxies);
            }
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if !answered => Err(error.context("the control plane does not answer")),
        Some(error) => {
            output::warn(format!("part of the control plane does not answer: {error:#}"));
            Ok(all)
        }
        None => Ok(all),
    }
}

async fn of_instance(client: &ApiClient, pod: &Object) -> anyhow::Result<Vec<Proxy>> {
    let token = debug_token(client, pod).await?;
    let body = forward::get_as(client, pod, port::MONITORING, "/debug/syncz", Some(&token)).await?;
    let mut proxies: Vec<Proxy> = serde_json::from_slice(&body).context("/debug/syncz is not what was expected")?;
    for proxy in proxies.iter_mut().filter(|p| p.istiod.is_empty()) {
        proxy.istiod = pod.name().to_string();
    }
    Ok(proxies)
}

/// A short-lived token of the control plane's own account: its debug endpoints answer proven callers alone, and show all of
/// the mesh to those of its namespace.
///
/// # Errors
/// When the API server gives none: to see the mesh one needs the right to create tokens in that namespace.
pub async fn debug_token(client: &ApiClient, pod: &Object) -> anyhow::Result<String> {
    let account = pod.spec()["serviceAccountName"].as_str().unwrap_or("default");
    let request = TokenRequest {
        audiences: vec![TOKEN_AUDIENCE.to_string()],
        expiration_seconds: Some(600),
        ..TokenRequest::default()
    };
    let issued = client.token_request(pod.namespace(), account, &request).await;
    let issued = issued.with_context(|| format!("a token of service account {}/{account}", pod.namespace()))?;
    Ok(issued.token)
}

fn table(proxies: &[Proxy]) -> Table {
    let some_ask = proxies.iter().any(|proxy| proxy.on_demand.is_some());
    let columns = ["NAME", "CLUSTER", "CDS", "LDS", "EDS", "RDS", "ISTIOD", "VERSION", "ASKED"];
    let mut table = Table::new(columns.into_iter().take(if some_ask { 9 } else { 8 }));
    let word = |text: &str| if text.is_empty() { "-".to_string() } else { text.replace(' ', "_") };
    for proxy in proxies {
        let states = TYPES.iter().map(|kind| proxy.state(kind));
        let before = [word(&proxy.proxy), word(&proxy.cluster_id)];
        let asked = proxy.on_demand.as_ref().map_or_else(|| "-".to_string(), |asks| asks.asked.to_string());
        let after = [word(&proxy.istiod), word(&proxy.version)].into_iter().chain(some_ask.then_some(asked));
        table.row(before.into_iter().chain(states).chain(after));
    }
    table.sort();
    table
}

fn errors(proxies: &[Proxy]) -> Vec<(&str, &str, &str)> {
    let each = proxies.iter().flat_map(|p| p.types.iter().map(move |(kind, state)| (p, kind, state)));
    each.filter(|(_, _, s)| !s.error.is_empty())
        .map(|(p, k, s)| (p.proxy.as_str(), k.as_str(), s.error.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies_of(value: serde_json::Value) -> Vec<Proxy> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn field_seven_is_the_control_planes_pod() {
        let proxies = proxies_of(json!([
            {"proxy": "b-1.default", "cluster_id": "Kubernetes", "istiod": "istiod-6956db645c-vwhsk", "version": "0.1.0",
             "types": {"CDS": {"status": "SYNCED"}, "LDS": {"status": "STALE"}, "EDS": {"status": "SYNCED"},
                       "RDS": {"status": "NOT SENT"}, "VHDS": {"status": "SYNCED"}}},
            {"proxy": "a-1.default", "cluster_id": "", "istiod": "istiod-2", "version": "1.31",
             "types": {"CDS": {"status": "ERROR", "error": "cluster x: no"}}},
        ]));
        let text = table(&proxies).render(false);
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["NAME", "CLUSTER", "CDS", "LDS", "EDS", "RDS", "ISTIOD", "VERSION"]);
        assert_eq!(lines[1], ["a-1.default", "-", "ERROR", "NOT_SENT", "NOT_SENT", "NOT_SENT", "istiod-2", "1.31"]);
        assert_eq!(lines[2][6], "istiod-6956db645c-vwhsk");
        assert_eq!(lines[2][5], "NOT_SENT");
        let mut asking = proxies.clone();
        asking[0].on_demand = Some(OnDemand { asked: 7 });
        let text = table(&asking).render(false);
        let last: Vec<Option<&str>> = text.lines().map(|l| l.split_whitespace().last()).collect();
        assert_eq!(last, [Some("ASKED"), Some("-"), Some("7")], "of those that take everything nothing is said");
        assert_eq!(errors(&proxies), [("a-1.default", "CDS", "cluster x: no")]);
        assert_eq!(proxies[0].overall(), "STALE");
        assert_eq!(proxies[1].overall(), "ERROR");
    }
}
