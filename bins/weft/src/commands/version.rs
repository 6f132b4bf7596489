//! `weft version`: of this program, of the control planes, and of the proxies.

use crate::cli::{Connection, ControlPlane};
use crate::commands::proxy_status;
use crate::connect::connect;
use crate::forward;
use crate::output;
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use weft_core::well_known::port;
use weft_k8s_api::yaml;
use weft_store::ApiClient;

/// Show the version of this program, and of what runs on the cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ask the cluster, too
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    remote: bool,
    /// Only the number of this program
    #[arg(short, long)]
    short: bool,
    /// How
    #[arg(short, long, value_enum)]
    output: Option<Format>,
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// How versions are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// As YAML
    Yaml,
    /// As JSON
    Json,
}

const OWN: &str = env!("CARGO_PKG_VERSION");

/// What runs on the cluster: how many of which version.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Running {
    planes: BTreeMap<String, usize>,
    proxies: BTreeMap<String, usize>,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let running = match args.remote && !args.short {
        true => match connect(&connection).await {
            Ok(client) => Some(remote(&client, &args.control_plane.istio_namespace).await?),
            // A version is asked for without a cluster, too.
            Err(_) => None,
        },
        false => None,
    };
    match args.output {
        None if args.short => output::line(OWN)?,
        None => output::print(&told(running.as_ref()))?,
        Some(format) => {
            let value = tree(running.as_ref());
            output::print(&match format {
                Format::Json => format!("{value:#}\n"),
                Format::Yaml => yaml::write(&value).map_err(anyhow::Error::msg)?,
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks the control plane's pods.
///
/// # Errors
/// When one of them does not answer.
pub async fn remote(client: &ApiClient, namespace: &str) -> anyhow::Result<Running> {
    let pods = proxy_status::control_plane(client, namespace).await?;
    let mut running = Running::default();
    for pod in &pods {
        let answer = forward::get(client, pod, port::MONITORING, "/version").await;
        let answer = answer.with_context(|| format!("version of {}", pod.name()))?;
        let text = String::from_utf8_lossy(&answer).trim().to_string();
        *running.planes.entry(number(&text)).or_default() += 1;
    }
    if !pods.is_empty() {
        for proxy in proxy_status::proxies(client, &pods).await? {
            *running.proxies.entry(proxy.version).or_default() += 1;
        }
    }
    Ok(running)
}

/// The number in what `/version` says: text, or JSON with a field for it.
fn number(text: &str) -> String {
    let found = serde_json::from_str::<Value>(text).ok().and_then(|value| {
        let version = value.as_str().or_else(|| value["version"].as_str())?;
        Some(version.to_string())
    });
    found.unwrap_or_else(|| text.to_string())
}

/// The versions in words.
pub fn told(running: Option<&Running>) -> String {
    let Some(running) = running else { return format!("client version: {OWN}\n") };
    let list = |versions: &BTreeMap<String, usize>, counted: bool| {
        let each = versions.iter().map(|(version, count)| match counted {
            true => format!("{version} ({count} proxies)"),
            false => version.clone(),
        });
        each.collect::<Vec<_>>().join(", ")
    };
    let mut text = format!("client version: {OWN}\n");
    match running.planes.is_empty() {
        true => text.push_str("no control plane runs on the cluster\n"),
        false => text.push_str(&format!("control plane version: {}\n", list(&running.planes, false))),
    }
    if !running.proxies.is_empty() {
        text.push_str(&format!("data plane version: {}\n", list(&running.proxies, true)));
    }
    text
}

fn tree(running: Option<&Running>) -> Value {
    let mut value = json!({"clientVersion": {"version": OWN}});
    if let Some(running) = running {
        let list = |versions: &BTreeMap<String, usize>| {
            versions.iter().map(|(version, count)| json!({"version": version, "count": count})).collect::<Vec<_>>()
        };
        value["meshVersion"] = list(&running.planes).into();
        value["dataPlaneVersion"] = list(&running.proxies).into();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told() {
        assert_eq!(told(None), format!("client version: {OWN}\n"));
        let running = Running {
            planes: [("0.1.0".to_string(), 2)].into(),
            proxies: [("0.0.9".to_string(), 1), ("0.1.0".to_string(), 3)].into(),
        };
        let wanted = format!(
            "client version: {OWN}\ncontrol plane version: 0.1.0\ndata plane version: 0.0.9 (1 proxies), 0.1.0 (3 proxies)\n"
        );
        assert_eq!(told(Some(&running)), wanted);
        assert!(told(Some(&Running::default())).contains("no control plane"));
        assert_eq!((number("0.1.0"), number(r#"{"version": "1.2.3"}"#)), ("0.1.0".into(), "1.2.3".into()));
    }
}
