//! `weft logs`: the log of a container.

use crate::cli::Connection;
use crate::connect::connect;
use crate::{output, target};
use anyhow::{Context, bail};
use futures_util::StreamExt;
use std::process::ExitCode;
use tokio::io::AsyncWriteExt;
use weft_k8s_api::Object;
use weft_store::ApiClient;
use weft_store::client::LogOptions;

/// Shows the log of a container.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// POD, deploy/NAME, sts/NAME, job/NAME …
    #[arg(value_name = "POD|deploy/NAME", required_unless_present = "selector")]
    target: Option<String>,
    /// Labels of the pods, such as app=reviews
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "target")]
    selector: Option<String>,
    /// Container [default: the first that is not the proxy]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Go on with new lines
    #[arg(short, long)]
    follow: bool,
    /// Only that many last lines
    #[arg(long, value_name = "LINES", allow_hyphen_values = true)]
    tail: Option<i64>,
    /// Only lines of the last seconds (90, 90s, 5m, 1h)
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    since: Option<u64>,
    /// The log of the container's previous run
    #[arg(short, long)]
    previous: bool,
    /// Put the time before each line
    #[arg(long)]
    timestamps: bool,
}

fn seconds(text: &str) -> Result<u64, String> {
    text.parse().or_else(|_| weft_core::duration::parse(text).map(|d| d.as_secs().max(1)))
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let client = connect(&connection).await?;
    let namespace = args.namespace.clone().unwrap_or_else(|| client.default_namespace().to_string());
    let pods = match (&args.target, &args.selector) {
        (Some(text), _) => {
            let target = target::parse(text, Some(&namespace), false)?;
            vec![target::resolve(&client, &target).await?]
        }
        (None, selector) => {
            let selector = selector.clone().unwrap_or_default();
            target::pods(&client, Some(&namespace), &selector).await?
        }
    };
    if pods.is_empty() {
        bail!("no pods in {namespace} have these labels; `weft get pods -n {namespace}` shows which there are");
    }
    if args.follow && pods.len() > 1 {
        bail!("{} pods have these labels; name one to follow its log", pods.len());
    }
    for pod in &pods {
        if pods.len() > 1 {
            output::note_plain(format!("==> {}/{} <==", pod.namespace(), pod.name()));
        }
        show(&client, pod, &args).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(client: &ApiClient, pod: &Object, args: &Args) -> anyhow::Result<()> {
    let options = LogOptions {
        container: Some(target::container(pod, args.container.as_deref())?),
        follow: args.follow,
        // As kubectl: a negative number is the whole log.
        tail_lines: args.tail.and_then(|lines| u64::try_from(lines).ok()),
        previous: args.previous,
        since_seconds: args.since,
        timestamps: args.timestamps,
    };
    let log = client.logs(pod.namespace(), pod.name(), &options).await;
    let mut log = log.with_context(|| format!("cannot read the log of pod {}/{}", pod.namespace(), pod.name()))?;
    let mut out = tokio::io::stdout();
    while let Some(bytes) = log.next().await {
        out.write_all(&bytes?).await?;
        out.flush().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_seconds() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600), ("100ms", 1)] {
            assert_eq!(super::seconds(text), Ok(seconds), "{text}");
        }
        assert!(super::seconds("soon").is_err());
    }
}
