//! `weft analyze`: what is wrong with the mesh's objects, of a cluster, of files, or of files as if they were applied to it.

use crate::analyze::{Message, Suppression, messages};
use crate::authz::{mesh_config, read_inputs, settings};
use crate::cli::{Connection, ControlPlane};
use crate::connect::connect;
use crate::{manifests, output};
use anyhow::Context;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use weft_k8s_api::kinds::by_kind;
use weft_k8s_api::yaml::{self, Document};
use weft_model::Inputs;
use weft_model::codes::{Level, page};

/// Exit code when something at or above the threshold was found, as istioctl's.
const FOUND: u8 = 79;
/// Largest file of a mesh config, bytes.
const MAX_MESH: u64 = 1 << 20;

/// Says what is wrong with the objects of a cluster, with those of files put over them. Changes nothing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files or directories to look at as if they were applied; - is standard input
    #[arg(value_name = "FILE|DIR")]
    file: Vec<String>,
    /// Namespace to tell about [default: that of the kubeconfig]
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Tell about all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Look at the cluster too; false: at the files alone
    #[arg(short = 'k', long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    use_kube: bool,
    /// Look into the directories of a directory
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Pass over documents of files that cannot be read
    #[arg(long)]
    ignore_unknown: bool,
    /// How to say it
    #[arg(short, long, value_enum, default_value_t = Format::Log)]
    output: Format,
    /// Weight from which on messages make the command fail
    #[arg(long, value_enum, ignore_case = true, default_value_t = Threshold::Error)]
    failure_threshold: Threshold,
    /// Weight from which on messages are shown
    #[arg(long, value_enum, ignore_case = true, default_value_t = Threshold::Info)]
    output_threshold: Threshold,
    /// Do not tell a code about an object, as "IST0102=Namespace test" or "IST0101=VirtualService *.default"; may be repeated
    #[arg(short = 'S', long, value_name = "CODE=OBJECT")]
    suppress: Vec<Suppression>,
    /// File with a mesh config, in place of the cluster's
    #[arg(long = "meshConfigFile", value_name = "FILE")]
    mesh_config_file: Option<String>,
    #[command(flatten)]
    control_plane: ControlPlane,
    /// List what is looked for, and look at nothing
    #[arg(short = 'L', long)]
    list_analyzers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A line each.
    Log,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Threshold {
    /// All.
    Info,
    /// Warnings and errors.
    Warning,
    /// Errors.
    Error,
}

impl Threshold {
    fn level(self) -> Level {
        match self {
            Self::Info => Level::Info,
            Self::Warning => Level::Warning,
            Self::Error => Level::Error,
        }
    }
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    if args.list_analyzers {
        return list();
    }
    anyhow::ensure!(
        args.use_kube || !args.file.is_empty(),
        "there is nothing to look at: name files, or leave out --use-kube=false"
    );
    let client = if args.use_kube { Some(connect(&connection).await?) } else { None };
    let default = client.as_ref().map_or("default", |c| c.default_namespace()).to_string();
    let namespace = args.namespace.clone().unwrap_or(default);
    let documents = read(&args, &namespace)?;
    let mut inputs = match &client {
        Some(client) => read_inputs(client, &args.control_plane.istio_namespace).await?,
        None => Inputs::default(),
    };
    if let Some(mesh) = mesh(&args, client.is_none())? {
        let mesh = mesh_config(&mesh)?;
        inputs.settings = Arc::new(settings(&mesh, &args.control_plane.istio_namespace));
        inputs.mesh = Arc::new(mesh);
    }
    inputs.now = SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|now| i64::try_from(now.as_secs()).ok());
    let mut found = messages(inputs, &documents, client.is_some());
    // Files are told about wherever their objects belong.
    let everywhere = args.all_namespaces || client.is_none();
    let here = |m: &Message| m.at.namespace == namespace || (m.at.kind == "Namespace" && m.at.name == namespace);
    found.retain(|m| everywhere || m.location.is_some() || here(m));
    found.retain(|m| !args.suppress.iter().any(|s| s.covers(m)) && m.level >= args.output_threshold.level());
    let target = if everywhere { "all namespaces".to_string() } else { format!("namespace: {namespace}") };
    show(&found, args.output, &target)?;
    let failed = found.iter().any(|message| message.level >= args.failure_threshold.level());
    if failed && args.output == Format::Log {
        output::error(&anyhow::anyhow!("issues were found when analyzing {target}"));
    }
    Ok(if failed { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

/// The documents of the files that are of kinds the mesh knows, each in a namespace.
fn read(args: &Args, namespace: &str) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for file in &args.file {
        match manifests::read(std::slice::from_ref(file), args.recursive) {
            Ok(more) => documents.extend(more),
            Err(error) if args.ignore_unknown => output::warn(format!("{error:#}")),
            Err(error) => return Err(error),
        }
    }
    documents.retain(|document| by_kind(document.object.group(), &document.object.kind).is_some());
    for document in &mut documents {
        let object = &mut document.object;
        let namespaced = by_kind(object.group(), &object.kind).is_some_and(|kind| kind.namespaced);
        if namespaced && object.namespace().is_empty() {
            object.metadata.namespace = Some(namespace.to_string());
        }
    }
    Ok(documents)
}

/// The mesh config: of the file that is named, or the default where there is no cluster to have one.
fn mesh(args: &Args, alone: bool) -> anyhow::Result<Option<String>> {
    let Some(file) = &args.mesh_config_file else { return Ok(alone.then(String::new)) };
    let about = std::fs::metadata(file).with_context(|| format!("cannot read {file}"))?;
    anyhow::ensure!(about.len() <= MAX_MESH, "{file} is larger than {MAX_MESH} bytes");
    std::fs::read_to_string(file).map(Some).with_context(|| format!("cannot read {file}"))
}

fn show(found: &[Message], format: Format, target: &str) -> anyhow::Result<()> {
    let values = || found.iter().map(value).collect::<Vec<_>>();
    match format {
        // As istioctl: messages are output, that there is none is said beside it.
        Format::Log if found.is_empty() => {
            output::note_plain(format!("✓ No validation issues found when analyzing {target}."));
            Ok(())
        }
        Format::Log => found.iter().try_for_each(|message| output::line(message.line())),
        Format::Json => output::line(serde_json::to_string_pretty(&values())?),
        Format::Yaml => output::print(&yaml::write(&values()).map_err(anyhow::Error::msg)?),
    }
}

fn value(message: &Message) -> Value {
    let mut out = json!({
        "code": message.code, "level": message.level.as_str(), "origin": message.object(), "path": message.at.path,
        "message": message.text,
    });
    if let Some(location) = &message.location {
        out["reference"] = location.to_string().into();
    }
    if let Some(page) = page(&message.code) {
        out["documentationUrl"] = page.into();
    }
    out
}

const LOOKED_FOR: [(&str, &str); 10] = [
    ("IST0101", "gateways, hosts, subsets, ports, Secrets, providers that are referred to and not there"),
    ("IST0102", "namespaces that do not say whether their pods get proxies"),
    ("IST0103", "pods without a proxy in namespaces that ask for one"),
    ("IST0106", "objects that their kind does not allow"),
    ("IST0109", "virtual services that claim the same host for sidecars"),
    ("IST0111", "several Sidecars of a namespace without a selector"),
    ("IST0112", "destinations that must say which port they mean"),
    ("IST0145", "servers of gateways that cannot both be served"),
    ("InvalidCertificate", "certificates that cannot be used"),
    ("CertificateHostMismatch", "certificates that are not for the hosts they are given out for"),
];

fn list() -> anyhow::Result<ExitCode> {
    for (code, what) in LOOKED_FOR {
        output::line(format!("{code}: {} ({what})", weft_model::codes::about(code).0))?;
    }
    Ok(ExitCode::SUCCESS)
}
