//! `weft explain`: what becomes of a request, and which object decided each step.

use crate::analyze::{put, told_of_revision};
use crate::authz::{World, mesh_config, read_inputs, settings};
use crate::cli::{Connection, ControlPlane};
use crate::commands::get::document;
use crate::connect::connect;
use crate::explain::request::{Options, Request};
use crate::explain::{explain, show, stand_in};
use crate::manifests;
use crate::output::{self, Format};
use std::process::ExitCode;
use std::sync::Arc;
use weft_k8s_api::yaml::Document;
use weft_model::Inputs;

/// Exit code when the request does not arrive.
const NO: u8 = 1;

/// What becomes of a request, and which object decided it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Who calls: workload (NAME, NAME.NS, NS/NAME) or gateway
    source: String,
    /// What is called: [http[s]://]HOST[:PORT][/PATH]
    #[arg(value_name = "ADDRESS")]
    address: String,
    #[command(flatten)]
    request: Options,
    #[command(flatten)]
    from: From,
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// Where objects come from.
#[derive(Debug, Clone, clap::Args)]
pub struct From {
    /// File, directory, or - for standard input, as if it were applied; may be repeated
    #[arg(short, long = "filename", value_name = "FILE|DIR|-")]
    pub file: Vec<String>,
    /// Look into the directories of a directory
    #[arg(short = 'R', long, requires = "file")]
    pub recursive: bool,
    /// Look at the cluster too; false: at the files alone, with a pod for each of their workloads
    #[arg(short = 'k', long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub use_kube: bool,
    /// Namespace of what is named without one [default: that of the kubeconfig]
    #[arg(short, long, value_name = "NS")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub control_plane: ControlPlane,
}

/// The mesh that a command looks at.
pub struct Mesh {
    /// Its objects, built.
    pub world: World,
    /// Namespace of what is named without one.
    pub namespace: String,
}

impl From {
    /// Reads the objects.
    ///
    /// # Errors
    /// When the cluster does not answer, or a file cannot be read or holds what its kind does not allow.
    pub async fn read(&self, connection: &Connection) -> anyhow::Result<Mesh> {
        anyhow::ensure!(
            self.use_kube || !self.file.is_empty(),
            "there is nothing to look at: name files with -f, or leave out --use-kube=false"
        );
        let client = if self.use_kube { Some(connect(connection).await?) } else { None };
        let default = client.as_ref().map_or("default", |c| c.default_namespace()).to_string();
        let namespace = self.namespace.clone().unwrap_or(default);
        let documents = self.documents(&namespace)?;
        let root = &self.control_plane.istio_namespace;
        let mut inputs = match &client {
            Some(client) => read_inputs(client, root).await?,
            None => {
                let mesh = mesh_config(mesh_of(&documents, root))?;
                Inputs::new(Arc::new(mesh.clone()), Arc::new(settings(&mesh, root)))
            }
        };
        documents.iter().for_each(|document| put(&mut inputs, &document.object));
        if client.is_none() {
            stand_in::complete(&mut inputs, &documents);
        }
        for object in inputs.of_other_revisions() {
            output::warn(format!("{}: {}", object.key(), told_of_revision(object, &inputs.settings.revision)));
        }
        let world = World::of(&inputs);
        for unread in world.snapshot.warnings.iter().filter(|warning| warning.code == "IST0106") {
            output::warn(format!("{}: {}", unread.at, unread.message));
        }
        Ok(Mesh { world, namespace })
    }

    fn documents(&self, namespace: &str) -> anyhow::Result<Vec<Document>> {
        if self.file.is_empty() {
            return Ok(Vec::new());
        }
        let plan = manifests::plan(
            manifests::read(&self.file, self.recursive)?,
            self.namespace.as_deref(),
            namespace,
            manifests::Unknown::Strict,
        );
        let plan = plan.map_err(|errors| anyhow::anyhow!("{}", errors.join("\n")))?;
        plan.warnings.iter().for_each(output::warn);
        Ok(plan.documents)
    }
}

/// The mesh config among the documents: ConfigMap `istio` of the control plane's namespace, key `mesh`; empty when there is
/// none.
fn mesh_of<'d>(documents: &'d [Document], root: &str) -> &'d str {
    let mut objects = documents.iter().rev().map(|document| &document.object);
    let found = objects.find(|o| o.kind == "ConfigMap" && o.name() == "istio" && o.namespace() == root);
    found.and_then(|o| o.body.get("data")?["mesh"].as_str()).unwrap_or_default()
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let mesh = args.from.read(&connection).await?;
    let caller = mesh.world.source(&args.source, &mesh.namespace)?;
    let request = Request::new(&args.address, &args.request, &mesh.world, &caller, &mesh.namespace)?;
    let story = explain(&mesh.world, &caller, &request)?;
    match args.output {
        Format::Table => show::lines(&story, &request).iter().try_for_each(output::line)?,
        format => document(&show::value(&story, &request), format == Format::Yaml)?,
    }
    Ok(if story.arrives() { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}
