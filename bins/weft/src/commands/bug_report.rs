//! `weft bug-report`: everything that somebody needs who is to find out what is wrong with a mesh, in one archive, without what
//! must not leave the cluster.
//!
//! Reading order: this file (options and the order of steps), [`selection`] (which pods), [`gather`] (what is read, and how),
//! [`scrub`] (what is taken out), [`archive`] (where it goes).

mod archive;
mod gather;
mod scrub;
mod selection;

use crate::analyze::messages;
use crate::authz::read_inputs;
use crate::cli::{Connection, ControlPlane};
use crate::commands::{proxy_status, version};
use crate::connect::{self, connect};
use crate::output;
use crate::waiting::Waiting;
use anyhow::Context as _;
use archive::Archive;
use futures_util::StreamExt as _;
use gather::{Piece, Pods};
use selection::{Selected, Selection};
use serde_json::{Value, json};
use std::io::Stderr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use weft_k8s_api::{Object, yaml};
use weft_store::ApiClient;

/// Logs and pages that are read at once.
const AT_ONCE: usize = 6;
/// Most of a file of this machine that is taken in, bytes: its end.
const MAX_LOCAL: u64 = 16 << 20;

/// Gathers what is needed to find out what is wrong: objects, logs, proxies' configuration. Secrets' data, keys and tokens are
/// left out, and so are values of variables of applications. Look at what it holds before you give it to others: objects and
/// logs of yours are in it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "SELECTION is NAMESPACES[/DEPLOYMENTS[/PODS[/LABELS[/ANNOTATIONS]]]], each of them a list with commas, labels and \
    annotations as NAME=VALUE, * for any characters:\n\n  \
    weft bug-report --include shop,pay --duration 1h\n  \
    weft bug-report --include 'shop//reviews-*' --exclude '///app=batch'\n\n\
    Objects are chosen by their namespaces, logs and configuration of proxies by all of it. The control plane is always in the \
    report; kube-system and its like only when they are named."
)]
pub struct Args {
    /// What is in the report; may be repeated [default: everything]
    #[arg(long, value_name = "SELECTION")]
    include: Vec<Selection>,
    /// What is not, of what --include has; may be repeated
    #[arg(long, value_name = "SELECTION")]
    exclude: Vec<Selection>,
    /// How far back logs go [default: to their beginnings]
    #[arg(long, value_name = "DURATION", value_parser = weft_core::duration::parse)]
    duration: Option<Duration>,
    /// Most lines of each log; 0: all of them, to 16 MiB
    #[arg(long, value_name = "LINES", default_value_t = 0)]
    tail: u64,
    /// Folder that bug-report.tar.gz is put into
    #[arg(long, alias = "output-dir", value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Time for logs and pages: what is not read by then is left out
    #[arg(long, value_name = "DURATION", value_parser = weft_core::duration::parse, default_value = "30m")]
    timeout: Duration,
    /// Say what would be in it, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// A report that is being made.
struct Report {
    archive: Archive,
    waiting: Waiting<Stderr>,
    /// What could not be had, and why.
    missing: Vec<String>,
}

impl Report {
    /// Adds a text, clean.
    fn add(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        if !self.archive.add(name, scrub::text(text).as_bytes())? {
            self.missing.push(format!("{name}: the report has no room for its {} bytes", text.len()));
        }
        Ok(())
    }

    /// Adds what was read, or the reason why it was not.
    fn take(&mut self, name: &str, read: anyhow::Result<String>) -> anyhow::Result<()> {
        match read {
            Ok(text) => self.add(name, &text),
            Err(error) => {
                self.missing.push(format!("{name}: {}", scrub::text(&format!("{error:#}"))));
                Ok(())
            }
        }
    }

    fn tell(&mut self, text: &str) {
        self.waiting.tell(text, Instant::now());
    }
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let client = connect(&connection).await?;
    let about = client.version().await.with_context(|| format!("nothing answers at {}", client.url()))?;
    let selected = Selected::new(&args.include, &args.exclude);
    let root = args.control_plane.istio_namespace.as_str();
    let pods = Pods::read(&client, root, &selected).await?;
    let pieces = pods.pieces(&args);
    if args.dry_run {
        return plan(&pieces);
    }
    let mut report =
        Report { archive: Archive::create(&args.dir)?, waiting: Waiting::on_errors(), missing: Vec::new() };
    let whole = async {
        report.add("cluster/version.json", &serde_json::to_string_pretty(&about)?)?;
        of_cluster(&client, root, &selected, &mut report).await?;
        of_mesh(&client, root, &pods, &selected, &mut report).await?;
        of_this_machine(&connection, &mut report)?;
        of_pods(&client, pieces, &args, &mut report).await
    };
    tokio::select! {
        done = whole => done?,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("stopped; no report was written"),
    }
    finish(report, &args, &client)
}

/// What a report would hold.
fn plan(pieces: &[Piece]) -> anyhow::Result<ExitCode> {
    for name in ["versions", "proxy-status.txt", "proxy-status.json", "analyze.txt", "cluster/version.json"] {
        output::line(name)?;
    }
    for kind in gather::kinds() {
        output::line(gather::file_of(kind))?;
    }
    pieces.iter().try_for_each(|piece| output::line(&piece.file))?;
    output::note_plain("A dry run: nothing was written.");
    Ok(ExitCode::SUCCESS)
}

/// Objects, and the mesh config as a file of its own.
async fn of_cluster(client: &ApiClient, root: &str, selected: &Selected, report: &mut Report) -> anyhow::Result<()> {
    let kinds: Vec<_> = gather::kinds().collect();
    for (at, kind) in kinds.iter().enumerate() {
        report.tell(&format!("Reading {} ({} of {} kinds) …", kind.plural, at + 1, kinds.len()));
        match gather::objects(client, kind, root, selected).await {
            Ok(Some(objects)) => {
                for config in objects.iter().filter(|o| o.kind == "ConfigMap") {
                    if let Some(mesh) = config.body.get("data").and_then(|data| data["mesh"].as_str()) {
                        report.add(&format!("mesh-config/{}.yaml", config.name()), mesh)?;
                    }
                }
                report.add(&gather::file_of(kind), &listed(&objects)?)?;
            }
            Ok(None) => {}
            Err(error) => report.missing.push(format!("{}: {error:#}", gather::file_of(kind))),
        }
    }
    Ok(())
}

fn listed(objects: &[Object]) -> anyhow::Result<String> {
    let items: Vec<Value> = objects.iter().map(scrub::object).collect();
    yaml::write(&json!({"apiVersion": "v1", "kind": "List", "items": items})).map_err(anyhow::Error::msg)
}

/// Versions, states of the proxies, and what is wrong with the objects.
async fn of_mesh(
    client: &ApiClient,
    root: &str,
    pods: &Pods,
    selected: &Selected,
    report: &mut Report,
) -> anyhow::Result<()> {
    report.tell("Asking the control plane …");
    let versions = version::remote(client, root).await.map(|running| version::told(Some(&running)));
    report.take("versions", versions)?;
    if !pods.running_control_plane().is_empty() {
        let proxies = proxy_status::proxies(client, &pods.running_control_plane()).await;
        let (table, values) = match proxies {
            Ok(proxies) => (Ok(proxy_status::report(&proxies)), Ok(proxy_status::values(&proxies))),
            Err(error) => (Err(anyhow::anyhow!("{error:#}")), Err(error)),
        };
        report.take("proxy-status.txt", table)?;
        report.take("proxy-status.json", values.and_then(|values| Ok(serde_json::to_string_pretty(&values)?)))?;
    }
    report.tell("Analyzing …");
    let found = analyzed(client, root, selected).await;
    report.take("analyze.txt", found)
}

async fn analyzed(client: &ApiClient, root: &str, selected: &Selected) -> anyhow::Result<String> {
    let mut inputs = read_inputs(client, root).await?;
    inputs.now = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|now| i64::try_from(now.as_secs()).ok());
    let found = messages(inputs, &[], true);
    let shown = found.iter().filter(|m| m.at.namespace.is_empty() || selected.has_namespace(&m.at.namespace));
    let lines: String = shown.map(|message| message.line() + "\n").collect();
    Ok(if lines.is_empty() { "Nothing is wrong.\n".into() } else { lines })
}

/// The lab's own logs, where it is a lab on this machine that is looked at.
fn of_this_machine(connection: &Connection, report: &mut Report) -> anyhow::Result<()> {
    let home = connect::home();
    if connect::kubeconfig(connection).parent() != Some(home.as_path()) {
        return Ok(());
    }
    for name in ["lab.log", "up.log"] {
        let path = home.join("logs").join(name);
        if path.is_file() {
            report.take(&format!("lab/{name}"), gather::end_of_file(&path, MAX_LOCAL))?;
        }
    }
    Ok(())
}

/// Logs and pages of the control plane and of the proxies, several at once.
async fn of_pods(client: &ApiClient, pieces: Vec<Piece>, args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let (count, mut done) = (pieces.len(), 0);
    let end = tokio::time::Instant::now() + args.timeout;
    let read = |piece: Piece| async move {
        let read = tokio::time::timeout_at(end, gather::read(client, &piece)).await;
        let late = || anyhow::anyhow!("not read within --timeout {:?}", args.timeout);
        (piece, read.unwrap_or_else(|_| Err(late())))
    };
    let mut read = futures_util::stream::iter(pieces.into_iter().map(read)).buffer_unordered(AT_ONCE);
    while let Some((piece, text)) = read.next().await {
        done += 1;
        report.tell(&format!("{done} of {count}: {} …", piece.file));
        match text {
            Err(_) if piece.optional => {}
            text => report.take(&piece.file, text)?,
        }
    }
    Ok(())
}

fn finish(mut report: Report, args: &Args, client: &ApiClient) -> anyhow::Result<ExitCode> {
    let missing = std::mem::take(&mut report.missing);
    let mut text = format!(
        "weft bug-report, version {}\nAPI server {}\nmade at {:.0}, in {}\ninclude {:?}\nexclude {:?}\n\n",
        env!("CARGO_PKG_VERSION"),
        client.url(),
        jiff::Timestamp::now(),
        report.waiting.passed(),
        args.include,
        args.exclude,
    );
    text.push_str(&format!("{} files:\n", report.archive.files.len()));
    report.archive.files.iter().for_each(|(name, size)| text.push_str(&format!("{size:>10}  {name}\n")));
    text.push_str(&format!("\n{} could not be had:\n", missing.len()));
    missing.iter().for_each(|why| text.push_str(&format!("  {why}\n")));
    report.add("report.txt", &text)?;
    let count = report.archive.files.len();
    report.waiting.clear();
    let path = report.archive.finish()?;
    let size = std::fs::metadata(&path).map_or(0, |about| about.len());
    output::line(format!("{}: {count} files, {} KiB", path.display(), size.div_ceil(1024)))?;
    match missing.as_slice() {
        [] => {}
        [one] => output::warn(one),
        [first, ..] => output::warn(format!(
            "{} things could not be had, the first: {first}; report.txt names them",
            missing.len()
        )),
    }
    Ok(ExitCode::SUCCESS)
}
