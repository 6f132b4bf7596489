//! `weft kube-inject`: manifests with a proxy in every workload, for those who do not want a webhook to do it.

use crate::cli::{Connection, ControlPlane};
use crate::connect::connect;
use crate::output;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use weft_inject::documents::{MAX_BYTES, Options};
use weft_inject::{Injector, Values, inject_text};
use weft_k8s_api::kinds::by_kind;
use weft_store::client::ListOptions;
use weft_store::{ApiClient, ClientError};

/// Prints manifests with a proxy in every workload; everything else in them stays byte for byte. What of the settings is not
/// given as a file is read from the cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File, or - for standard input
    #[arg(short, long = "filename", value_name = "FILE|-")]
    file: String,
    /// File to write to instead of the output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Settings of the injector: key config of ConfigMap istio-sidecar-injector
    #[arg(long = "injectConfigFile", alias = "inject-config-file", value_name = "FILE")]
    inject_config: Option<PathBuf>,
    /// Installer's values: key values of ConfigMap istio-sidecar-injector
    #[arg(long = "valuesFile", alias = "values-file", value_name = "FILE")]
    values: Option<PathBuf>,
    /// Mesh config: key mesh of ConfigMap istio
    #[arg(long = "meshConfigFile", alias = "mesh-config-file", value_name = "FILE")]
    mesh: Option<PathBuf>,
    /// Revision whose ConfigMaps are read
    #[arg(short, long, default_value = "", value_name = "NAME")]
    revision: String,
    #[command(flatten)]
    control_plane: ControlPlane,
    /// Namespace of objects that name none
    #[arg(short, long, value_name = "NS", default_value = "default")]
    namespace: String,
    /// Put the proxy among the init containers (Kubernetes 1.33 and later)
    #[arg(long)]
    native_sidecars: bool,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let text = read(&args.file)?;
    let cluster = Cluster { args: &args, connection: &connection, client: None };
    let (injector, proxy_configs) = cluster.injector().await?;
    let options = Options {
        namespace: args.namespace.clone(),
        native_sidecars: args.native_sidecars,
        proxy_configs,
        ..Options::default()
    };
    let injected =
        inject_text(&injector, &text, &options).map_err(|error| anyhow::anyhow!("{}: {error}", args.file))?;
    injected.warnings.iter().for_each(output::warn);
    match &args.output {
        Some(path) => {
            std::fs::write(path, injected.text).with_context(|| format!("cannot write {}", path.display()))?
        }
        None => output::print(&injected.text)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn read(file: &str) -> anyhow::Result<String> {
    let limit = MAX_BYTES as u64 + 1;
    let mut text = String::new();
    match file {
        "-" => std::io::stdin().lock().take(limit).read_to_string(&mut text).context("cannot read standard input")?,
        // Also what a shell puts there (`<(…)`), which has no size.
        file => {
            let open = std::fs::File::open(file).with_context(|| format!("cannot read {file}"))?;
            open.take(limit).read_to_string(&mut text).with_context(|| format!("cannot read {file}"))?
        }
    };
    Ok(text)
}

/// Proxy configs by namespace.
type ProxyConfigs = std::collections::BTreeMap<String, Vec<Value>>;

/// Where settings come from that no file gives.
struct Cluster<'a> {
    args: &'a Args,
    connection: &'a Connection,
    client: Option<ApiClient>,
}

impl Cluster<'_> {
    async fn injector(mut self) -> anyhow::Result<(Injector, ProxyConfigs)> {
        let suffix = match self.args.revision.as_str() {
            "" | "default" => String::new(),
            revision => format!("-{revision}"),
        };
        let (sidecar, mesh) = (format!("istio-sidecar-injector{suffix}"), format!("istio{suffix}"));
        let values = self.text(&self.args.values.clone(), &sidecar, "values").await?;
        let config = self.text(&self.args.inject_config.clone(), &sidecar, "config").await?;
        let mesh = self.text(&self.args.mesh.clone(), &mesh, "mesh").await?;
        let revision = suffix.trim_start_matches('-');
        let fallback =
            json!({"revision": revision, "global": {"istioNamespace": self.args.control_plane.istio_namespace}});
        let read = Injector::read(values.as_deref(), config.as_deref(), mesh.as_deref(), Values::new(&fallback));
        let injector = read.map_err(|error| anyhow::anyhow!("settings of the injector: {error}"))?;
        let configs = self.proxy_configs().await?;
        Ok((injector, configs))
    }

    /// The text of a file, else of a key of a ConfigMap; nothing when the cluster has none.
    async fn text(&mut self, file: &Option<PathBuf>, map: &str, key: &str) -> anyhow::Result<Option<String>> {
        if let Some(path) = file {
            return Ok(Some(read(&path.display().to_string())?));
        }
        if self.client.is_none() {
            let flags = "or give --injectConfigFile, --meshConfigFile and --valuesFile, which need no cluster";
            let connected = connect(self.connection).await;
            self.client = Some(connected.map_err(|error| anyhow::anyhow!("{error:#}; {flags}"))?);
        }
        let (Some(client), Some(kind)) = (&self.client, by_kind("", "ConfigMap")) else { return Ok(None) };
        match client.get(kind, &self.args.control_plane.istio_namespace, map).await {
            Ok(object) => Ok(object.body.get("data").and_then(|data| data[key].as_str()).map(str::to_string)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => bail!("ConfigMap {}/{map}: {error}", self.args.control_plane.istio_namespace),
        }
    }

    /// The ProxyConfig objects of the cluster: for each namespace those of the root namespace, then its own.
    async fn proxy_configs(&self) -> anyhow::Result<ProxyConfigs> {
        let mut found = ProxyConfigs::new();
        let (Some(client), Some(kind)) = (&self.client, by_kind("networking.istio.io", "ProxyConfig")) else {
            return Ok(found);
        };
        let all = match client.list(kind, None, &ListOptions::default()).await {
            Ok(list) => list.items,
            Err(ClientError::NotFound(_)) => return Ok(found),
            Err(error) => bail!("ProxyConfig objects: {error}"),
        };
        let of = |namespace: &str| -> Vec<Value> {
            all.iter().filter(|object| object.namespace() == namespace).map(|object| object.spec().clone()).collect()
        };
        let root = of(&self.args.control_plane.istio_namespace);
        found.insert(self.args.namespace.clone(), root.clone());
        for namespace in all.iter().map(|object| object.namespace()).chain([self.args.namespace.as_str()]) {
            let own = if namespace == self.args.control_plane.istio_namespace { Vec::new() } else { of(namespace) };
            found.insert(namespace.to_string(), root.iter().cloned().chain(own).collect());
        }
        Ok(found)
    }
}
