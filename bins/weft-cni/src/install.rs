//! The agent: the plugin's file, its kubeconfig and its line in the network configuration are put on the node, looked at again
//! every few seconds (others write there too, and tokens change), and taken away at the end.

use crate::{conflist, repair};
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use clap::Args;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use weft_runtime::logging::{self, Format};

/// Between two looks at the node.
const PAUSE: Duration = Duration::from_secs(5);

/// Where things are on the node, as the agent sees them and as the runtime does.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// The node's folder of plugins, as mounted here
    #[arg(long, env = "CNI_BIN_DIR", default_value = "/host/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// The node's folder of network configurations, as mounted here
    #[arg(long, env = "CNI_CONF_DIR", default_value = "/host/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// The same folder as the node sees it
    #[arg(long, env = "CNI_CONF_DIR_ON_HOST", default_value = "/etc/cni/net.d")]
    pub conf_dir_on_host: PathBuf,
    /// Network configuration to put the plugin into [default: the first by name]
    #[arg(long, env = "CNI_CONF_NAME")]
    pub conf_name: Option<String>,
    /// Name of the plugin's kubeconfig in that folder
    #[arg(long, env = "KUBECONFIG_FILENAME", default_value = "ZZZ-weft-cni-kubeconfig")]
    pub kubeconfig_name: String,
    /// Namespaces whose pods are left alone, comma-separated
    #[arg(long, env = "EXCLUDE_NAMESPACES", value_delimiter = ',', default_value = "kube-system")]
    pub exclude_namespaces: Vec<String>,
}

/// What the agent does.
#[derive(Debug, Clone, Args)]
pub struct InstallArgs {
    #[command(flatten)]
    pub place: Place,
    /// API server [default: that of the pod's environment]
    #[arg(long)]
    api_server: Option<String>,
    /// Folder with `token` and `ca.crt` of the agent's account
    #[arg(long, default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    account: PathBuf,
    /// This node's name: its pods that started before the plugin are made anew
    #[arg(long, env = "KUBERNETES_NODE_NAME")]
    node_name: Option<String>,
    /// Make pods anew that started before the plugin
    #[arg(long, env = "REPAIR_ENABLED", num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    repair: bool,
}

impl Place {
    fn kubeconfig(&self) -> PathBuf {
        self.conf_dir.join(&self.kubeconfig_name)
    }

    /// The plugin's line.
    fn plugin(&self) -> Value {
        json!({
            "type": conflist::TYPE,
            "kubernetes": {
                "kubeconfig": self.conf_dir_on_host.join(&self.kubeconfig_name),
                "exclude_namespaces": self.exclude_namespaces,
            },
        })
    }

    /// The network configuration that the plugin belongs into.
    fn configuration(&self) -> Result<Option<PathBuf>> {
        match &self.conf_name {
            Some(name) => Ok(Some(self.conf_dir.join(name)).filter(|path| path.is_file())),
            None => conflist::first(&self.conf_dir),
        }
    }

    /// Puts the plugin into the configuration. True when that changed something.
    fn enable(&self) -> Result<bool> {
        let Some(path) = self.configuration()? else {
            bail!("{}: there is no network configuration yet", self.conf_dir.display());
        };
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let plugin = self.plugin();
        if conflist::has(&text, &plugin) {
            return Ok(false);
        }
        let changed = conflist::with(&text, &plugin).with_context(|| path.display().to_string())?;
        let list = path.with_extension("conflist");
        write(&list, changed.as_bytes(), 0o644)?;
        if list != path {
            // A single configuration has become a list; both would be two networks.
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        Ok(true)
    }

    /// Takes everything away again.
    fn clean(&self) -> Result<()> {
        if let Some(path) = self.configuration()? {
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            if let Some(changed) = conflist::without(&text)? {
                write(&path, changed.as_bytes(), 0o644)?;
            }
        }
        for path in [self.kubeconfig(), self.bin_dir.join(conflist::TYPE)] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => bail!("{}: {error}", path.display()),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Succeeds when the plugin is in place.
///
/// # Errors
/// What is missing.
pub fn ready(place: &Place) -> Result<()> {
    let program = place.bin_dir.join(conflist::TYPE);
    for path in [&program, &place.kubeconfig()] {
        if !path.is_file() {
            bail!("{} is not there", path.display());
        }
    }
    let path = place.configuration()?.context("there is no network configuration")?;
    match conflist::has(&std::fs::read_to_string(&path)?, &place.plugin()) {
        true => Ok(()),
        false => bail!("{} does not have the plugin", path.display()),
    }
}

/// Installs, keeps, repairs; until it is told to stop.
///
/// # Errors
/// When the program cannot be read, or what was installed cannot be taken away.
pub fn run(args: &InstallArgs) -> Result<()> {
    logging::init("info", Format::Text).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stop = std::pin::pin!(weft_runtime::signal::stop());
        let mut said = String::new();
        loop {
            let problem = round(args).await.err().map(|error| format!("{error:#}")).unwrap_or_default();
            if !problem.is_empty() && problem != said {
                tracing::warn!("{problem}; tried again every {PAUSE:?}");
            }
            said = problem;
            tokio::select! {
                _ = &mut stop => break,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
        args.place.clean().context("taking the plugin away")?;
        tracing::info!("the plugin is taken away");
        Ok(())
    })
}

/// Everything as it should be, once.
async fn round(args: &InstallArgs) -> Result<()> {
    let place = &args.place;
    let own = std::fs::read(std::env::current_exe()?).context("the agent's own program")?;
    let program = place.bin_dir.join(conflist::TYPE);
    if std::fs::read(&program).ok().as_deref() != Some(&own) {
        write(&program, &own, 0o755)?;
        tracing::info!("{} is installed", program.display());
    }
    let kubeconfig = kubeconfig(args)?;
    if std::fs::read_to_string(place.kubeconfig()).ok().as_deref() != Some(&kubeconfig) {
        write(&place.kubeconfig(), kubeconfig.as_bytes(), 0o600)?;
    }
    // The line comes last: the runtime finds everything that it needs.
    if place.enable()? {
        tracing::info!("the plugin is in the network configuration of {}", place.conf_dir.display());
    }
    match &args.node_name {
        Some(node) if args.repair => repair::round(&place.kubeconfig(), node).await,
        _ => Ok(()),
    }
}

/// A kubeconfig with the agent's own token.
fn kubeconfig(args: &InstallArgs) -> Result<String> {
    let server = match &args.api_server {
        Some(server) => server.clone(),
        None => {
            let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
            let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
            if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") }
        }
    };
    let token_file = args.account.join("token");
    let token = std::fs::read_to_string(&token_file).with_context(|| token_file.display().to_string())?;
    let mut cluster = json!({"server": server});
    if let Ok(root) = std::fs::read(args.account.join("ca.crt")) {
        cluster["certificate-authority-data"] = base64::engine::general_purpose::STANDARD.encode(root).into();
    }
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "weft-cni",
        "clusters": [{"name": "local", "cluster": cluster}],
        "users": [{"name": "weft-cni", "user": {"token": token.trim()}}],
        "contexts": [{"name": "weft-cni", "context": {"cluster": "local", "user": "weft-cni"}}],
    });
    Ok(format!("{config:#}\n"))
}

/// Writes a file whole or not at all.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let name = path.file_name().context("a file name")?.to_string_lossy().into_owned();
    // Not a name that runtimes read.
    let beside = path.with_file_name(format!(".{name}.new"));
    let written = std::fs::write(&beside, content)
        .and_then(|()| std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(mode)))
        .and_then(|()| std::fs::rename(&beside, path));
    written.with_context(|| path.display().to_string())
}
