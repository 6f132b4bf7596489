//! `weft x internal-debug`: the control plane's own debug pages, of each of its pods.

use crate::cli::{Connection, ControlPlane};
use crate::commands::proxy_status::{control_plane, debug_token};
use crate::connect::connect;
use crate::{forward, output};
use anyhow::{Context, bail};
use std::process::ExitCode;
use weft_core::well_known::port;

/// Shows a debug page of the control plane.
#[derive(Debug, clap::Args)]
#[command(after_help = "weft x internal-debug syncz\n\
    weft x internal-debug 'config_dump?proxyID=productpage-v1-x.default'\n\n\
    Pages: syncz, push_status, registryz, endpointz, config_dump?proxyID=POD.NS, \
    config_distribution?group=G&kind=K&namespace=NS&name=NAME")]
pub struct Args {
    /// The page, with its query
    #[arg(value_name = "PAGE")]
    page: String,
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// The path of a page.
fn path(page: &str) -> String {
    let page = page.trim_start_matches('/');
    format!("/debug/{}", page.strip_prefix("debug/").unwrap_or(page))
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let client = connect(&connection).await?;
    let root = &args.control_plane.istio_namespace;
    let pods = control_plane(&client, root).await?;
    if pods.is_empty() {
        bail!("no control plane runs in {root}; `weft up` starts one, `weft status` shows what runs");
    }
    // A page about one proxy is at the pod that it is connected to alone.
    let mut failures = Vec::new();
    for pod in &pods {
        let token = debug_token(&client, pod).await?;
        let page = forward::get_as(&client, pod, port::MONITORING, &path(&args.page), Some(&token)).await;
        let page = match page.with_context(|| format!("{} does not show {}", pod.name(), path(&args.page))) {
            Ok(page) => page,
            Err(error) => {
                failures.push(error);
                continue;
            }
        };
        if pods.len() > 1 {
            output::note_plain(format!("{}:", pod.name()));
        }
        match serde_json::from_slice::<serde_json::Value>(&page) {
            Ok(value) => output::line(serde_json::to_string_pretty(&value)?)?,
            Err(_) => output::print(&String::from_utf8_lossy(&page))?,
        }
    }
    if failures.len() == pods.len()
        && let Some(last) = failures.pop()
    {
        return Err(last);
    }
    failures.iter().for_each(|error| output::warn(format!("{error:#}")));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    #[test]
    fn pages_have_one_path() {
        for page in ["syncz", "/syncz", "debug/syncz", "/debug/syncz"] {
            assert_eq!(super::path(page), "/debug/syncz", "{page}");
        }
        assert_eq!(super::path("config_dump?proxyID=a.b"), "/debug/config_dump?proxyID=a.b");
    }
}
