//! The agent: the plugin's file, its kubeconfig and its line in the network configuration are put on the node, looked at again
//! every few seconds (others write there too, and tokens change), and taken away at the end.

use crate::{conflist, repair};
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use clap::Args;
use serde_json::{Value, json};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use weft_runtime::logging::{self, Format};

/// The network that the plugin is when it is in none: the name of pods' annotations, and its usual file. Source: Istio's
/// "Install Istio with the Istio CNI plugin".
const NETWORK: &str = "istio-cni";
const OWN_FILE: &str = "YYY-istio-cni.conf";
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
    /// The plugin is one of a network's list; if not, it is a network of its own (`istio-cni`), for Multus
    #[arg(long, env = "CHAINED_CNI_PLUGIN", num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub chained: bool,
    /// Name of the plugin's kubeconfig in that folder
    #[arg(long, env = "KUBECONFIG_FILENAME", default_value = "ZZZ-weft-cni-kubeconfig")]
    pub kubeconfig_name: String,
    /// Namespaces whose pods are left alone, comma-separated
    #[arg(long, env = "EXCLUDE_NAMESPACES", value_delimiter = ',', default_value = "kube-system")]
    pub exclude_namespaces: Vec<String>,
    /// Folder of the agent's account: `token`, `ca.crt`, and `namespace`, whose pods of the agent are always left alone
    #[arg(long, default_value = "/var/run/secrets/kubernetes.io/serviceaccount")]
    pub account: PathBuf,
}

/// What the agent does.
#[derive(Debug, Clone, Args)]
pub struct InstallArgs {
    #[command(flatten)]
    pub place: Place,
    /// API server [default: that of the pod's environment]
    #[arg(long)]
    api_server: Option<String>,
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
        let mut kubernetes = json!({
            "kubeconfig": self.conf_dir_on_host.join(&self.kubeconfig_name),
            "exclude_namespaces": self.exclude_namespaces,
        });
        if let Ok(namespace) = std::fs::read_to_string(self.account.join("namespace")) {
            kubernetes["agent_namespace"] = namespace.trim().into();
        }
        json!({"type": conflist::TYPE, "kubernetes": kubernetes})
    }

    /// The network configuration that the plugin belongs into. One that was a single plugin has since become a list.
    fn configuration(&self) -> Result<Option<PathBuf>> {
        let Some(name) = &self.conf_name else { return Ok(conflist::all(&self.conf_dir)?.into_iter().next()) };
        let named = self.conf_dir.join(name);
        let list = named.with_extension("conflist");
        Ok([named, list].into_iter().find(|path| path.is_file()))
    }

    /// The plugin's own network: where it is configured, and how.
    fn own_network(&self) -> (PathBuf, String) {
        let mut network = self.plugin();
        network["cniVersion"] = "0.3.1".into();
        network["name"] = NETWORK.into();
        (self.conf_dir.join(self.conf_name.as_deref().unwrap_or(OWN_FILE)), format!("{network:#}\n"))
    }

    /// Puts the plugin into the configuration. True when that changed something.
    fn enable(&self) -> Result<bool> {
        if !self.chained {
            let (path, wanted) = self.own_network();
            let found = std::fs::read_to_string(&path).ok();
            return if found.as_ref() == Some(&wanted) {
                Ok(false)
            } else {
                write(&path, wanted.as_bytes(), 0o644).map(|()| true)
            };
        }
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

    /// Takes everything away again: first its line, wherever it stands, for with the line and without the program no pod starts.
    fn clean(&self) -> Result<()> {
        for path in conflist::all(&self.conf_dir)? {
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            match conflist::without(&text) {
                Ok(_) if conflist::is_own(&text) => {
                    std::fs::remove_file(&path).with_context(|| path.display().to_string())?
                }
                Ok(Some(changed)) => write(&path, changed.as_bytes(), 0o644)?,
                Ok(None) => {}
                // Nor can the runtime read it.
                Err(error) => tracing::warn!("{}: {error:#}; it is left as it is", path.display()),
            }
        }
        for path in self.written()? {
            remove(&path)?;
        }
        Ok(())
    }

    /// What the agent has written beside networks' configurations; and what was left of any of its files, whose writing was
    /// interrupted: of a kubeconfig that is a token.
    fn written(&self) -> Result<Vec<PathBuf>> {
        let mut lists = conflist::all(&self.conf_dir)?;
        lists.extend(self.conf_name.iter().map(|name| self.conf_dir.join(name)));
        lists.push(self.conf_dir.join(OWN_FILE));
        let own = [self.kubeconfig(), self.bin_dir.join(conflist::TYPE)];
        let lists = lists.iter().flat_map(|path| [path.clone(), path.with_extension("conflist")]);
        let unfinished = lists.chain(own.clone()).filter_map(|path| beside(&path).ok()).collect::<Vec<_>>();
        Ok(unfinished.into_iter().chain(own).collect())
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => bail!("{}: {error}", path.display()),
        _ => Ok(()),
    }
}

/// Where a file is written until it is whole; not a name that runtimes read.
fn beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().context("a file name")?.to_string_lossy().into_owned();
    Ok(path.with_file_name(format!(".{name}.new")))
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
    if !place.chained {
        let (path, wanted) = place.own_network();
        return match std::fs::read_to_string(&path) {
            Ok(found) if found == wanted => Ok(()),
            _ => bail!("{} is not the plugin's network", path.display()),
        };
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
        // A round waits for an API server, which may be long in answering; who is told to stop does not have that long.
        tokio::select! {
            biased;
            _ = &mut stop => {}
            () = rounds(args) => {}
        }
        args.place.clean().context("taking the plugin away")?;
        tracing::info!("the plugin is taken away");
        Ok(())
    })
}

/// Everything as it should be, again and again.
async fn rounds(args: &InstallArgs) {
    let mut said = String::new();
    loop {
        let problem = round(args).await.err().map(|error| format!("{error:#}")).unwrap_or_default();
        if !problem.is_empty() && problem != said {
            tracing::warn!("{problem}; tried again every {PAUSE:?}");
        }
        said = problem;
        tokio::time::sleep(PAUSE).await;
    }
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
    let token_file = args.place.account.join("token");
    let token = std::fs::read_to_string(&token_file).with_context(|| token_file.display().to_string())?;
    let mut cluster = json!({"server": server});
    if let Ok(root) = std::fs::read(args.place.account.join("ca.crt")) {
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
    let beside = beside(path)?;
    let written = || {
        // What was left of one that was interrupted may have other rights.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Never readable for others than it is to be, not even while it is written: the kubeconfig has a token.
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        // The process may mask rights that are meant.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        // Whole on the disk before it has the name: a node that loses its power keeps the old file or has the new one. And
        // closed: a program that somebody has open to write it cannot be started.
        file.sync_all()?;
        drop(file);
        std::fs::rename(&beside, path)
    };
    written().with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINGLE: &str = r#"{"cniVersion":"0.4.0","name":"net","type":"bridge"}"#;

    /// A node with one configuration, and the agent's place on it.
    fn node(file: &str, conf_name: Option<&str>) -> (tempfile::TempDir, Place) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bin", "net.d", "account"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let conf_dir = folder.path().join("net.d");
        std::fs::write(conf_dir.join(file), SINGLE).unwrap();
        std::fs::write(folder.path().join("account/namespace"), "istio-system\n").unwrap();
        let place = Place {
            bin_dir: folder.path().join("bin"),
            conf_dir_on_host: conf_dir.clone(),
            conf_dir,
            conf_name: conf_name.map(str::to_string),
            chained: true,
            kubeconfig_name: "k".into(),
            exclude_namespaces: vec!["kube-system".into()],
            account: folder.path().join("account"),
        };
        for path in [place.bin_dir.join(conflist::TYPE), place.kubeconfig()] {
            std::fs::write(path, "").unwrap();
        }
        (folder, place)
    }

    fn left(place: &Place) -> Vec<(String, String)> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        let all = conflist::all(&place.conf_dir).unwrap();
        all.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
    }

    #[test]
    fn a_configuration_of_one_plugin() {
        for (file, named) in
            [("10-net.conf", Some("10-net.conf")), ("10-net.json", Some("10-net.json")), ("10-net.conf", None)]
        {
            let (_folder, place) = node(file, named);
            assert!(ready(&place).is_err());
            assert!(place.enable().unwrap(), "{file}");
            assert!(!place.enable().unwrap(), "{file}: nothing is left to do");
            ready(&place).unwrap();
            // The network's own agent writes it again: that is the newer one.
            std::fs::write(place.conf_dir.join(file), SINGLE.replace("bridge", "ptp")).unwrap();
            assert!(place.enable().unwrap(), "{file}");
            ready(&place).unwrap();
            assert!(matches!(&left(&place)[..], [(name, text)] if name == "10-net.conflist" && text.contains("ptp")));
            place.clean().unwrap();
            assert!(matches!(&left(&place)[..], [(_, text)] if text.contains("ptp") && !text.contains(conflist::TYPE)));
            assert!(!place.bin_dir.join(conflist::TYPE).exists() && !place.kubeconfig().exists());
        }
    }

    #[test]
    fn no_line_is_left_without_its_program() {
        let (_folder, place) = node("50-net.conf", None);
        place.enable().unwrap();
        // Another network comes first now, and a file that is none.
        std::fs::write(place.conf_dir.join("10-other.conf"), SINGLE).unwrap();
        std::fs::write(place.conf_dir.join("20-broken.conflist"), "{").unwrap();
        place.clean().unwrap();
        assert!(left(&place).iter().all(|(_, text)| !text.contains(conflist::TYPE)), "{:?}", left(&place));
        assert!(!place.bin_dir.join(conflist::TYPE).exists());
        // What cannot be taken out keeps its program.
        let (_folder, place) = node("50-net.conf", None);
        place.enable().unwrap();
        std::fs::create_dir(place.conf_dir.join(".50-net.conflist.new")).unwrap();
        assert!(place.clean().is_err());
        assert!(place.bin_dir.join(conflist::TYPE).exists());
    }

    #[test]
    fn nothing_is_left_of_what_was_interrupted() {
        let (_folder, place) = node("50-net.conf", None);
        place.enable().unwrap();
        let left = [
            place.conf_dir.join(".k.new"),
            place.conf_dir.join(".50-net.conflist.new"),
            place.bin_dir.join(format!(".{}.new", conflist::TYPE)),
        ];
        left.iter().for_each(|path| std::fs::write(path, "token").unwrap());
        std::fs::write(place.conf_dir.join(".other.new"), "another's").unwrap();
        place.clean().unwrap();
        assert!(left.iter().all(|path| !path.exists()), "{left:?}");
        assert!(place.conf_dir.join(".other.new").exists());
    }

    #[test]
    fn a_token_is_never_open() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
        // What an interrupted agent has left.
        std::fs::write(folder.path().join(".k.new"), "old").unwrap();
        std::fs::set_permissions(folder.path().join(".k.new"), std::fs::Permissions::from_mode(0o666)).unwrap();
        let before = std::fs::File::open(folder.path().join(".k.new")).unwrap();
        write(&folder.path().join("k"), b"token", 0o600).unwrap();
        assert_eq!((mode("k"), std::fs::read(folder.path().join("k")).unwrap()), (0o600, b"token".to_vec()));
        assert_eq!(std::io::read_to_string(before).unwrap(), "old", "whoever had it open reads no token");
        write(&folder.path().join("p"), b"program", 0o755).unwrap();
        assert_eq!(mode("p"), 0o755);
    }

    #[test]
    fn a_network_of_its_own() {
        for (named, file) in [(Some("istio-cni.conf"), "istio-cni.conf"), (None, OWN_FILE)] {
            let (_folder, mut place) = node("10-net.conf", named);
            place.chained = false;
            assert!(ready(&place).is_err());
            assert!(place.enable().unwrap() && !place.enable().unwrap());
            ready(&place).unwrap();
            let own: Value = serde_json::from_slice(&std::fs::read(place.conf_dir.join(file)).unwrap()).unwrap();
            assert_eq!((&own["name"], &own["type"]), (&json!("istio-cni"), &json!(conflist::TYPE)));
            assert_eq!(own["kubernetes"], place.plugin()["kubernetes"]);
            std::fs::write(place.conf_dir.join(file), SINGLE).unwrap();
            assert!(ready(&place).is_err() && place.enable().unwrap());
            place.clean().unwrap();
            // The other network was never touched.
            assert_eq!(left(&place), [("10-net.conf".to_string(), SINGLE.to_string())]);
        }
    }

    #[test]
    fn the_line_says_where_the_agent_is() {
        let (_folder, place) = node("10-net.conf", None);
        assert_eq!(place.plugin()["kubernetes"]["agent_namespace"], "istio-system");
    }
}
