//! Finds the API server: a given kubeconfig, `$KUBECONFIG`, or the lab's own.

use crate::cli::Connection;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use weft_store::ApiClient;

/// Name of the lab's kubeconfig in its state directory.
const KUBECONFIG: &str = "kubeconfig";

/// The lab's state directory: `$WEFT_HOME`, else `$XDG_STATE_HOME/weft`, else `~/.local/state/weft`.
pub fn home() -> PathBuf {
    home_from(|name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from))
}

fn home_from(variable: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    if let Some(home) = variable("WEFT_HOME") {
        return home;
    }
    let state = variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")));
    state.unwrap_or_else(|| PathBuf::from("/tmp")).join("weft")
}

/// The kubeconfig that a command uses: given, from the environment, or the lab's.
pub fn kubeconfig(connection: &Connection) -> PathBuf {
    if let Some(given) = &connection.kubeconfig {
        return given.clone();
    }
    // A list of files is allowed there; the first that exists is used.
    let listed = std::env::var_os("KUBECONFIG").unwrap_or_default();
    let files: Vec<PathBuf> = std::env::split_paths(&listed).filter(|p| !p.as_os_str().is_empty()).collect();
    let found = files.iter().find(|p| p.exists()).or(files.first()).cloned();
    found.unwrap_or_else(|| home().join(KUBECONFIG))
}

/// Connects. Nothing is sent yet.
///
/// # Errors
/// When there is no kubeconfig; the message says how to start a lab.
pub async fn connect(connection: &Connection) -> anyhow::Result<ApiClient> {
    let path = kubeconfig(connection);
    if !path.exists() {
        bail!("{}", missing(&path, connection));
    }
    ApiClient::from_kubeconfig(&path, connection.context.as_deref()).await.context("cannot connect to the API server")
}

fn missing(path: &Path, connection: &Connection) -> String {
    let given = connection.kubeconfig.is_some() || std::env::var_os("KUBECONFIG").is_some();
    let path = path.display();
    if given {
        format!("there is no kubeconfig at {path}; check --kubeconfig and $KUBECONFIG")
    } else {
        format!("no lab runs here (there is no {path}); start one with `weft up`, or name a cluster with --kubeconfig")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory() {
        for (set, home) in [
            (&[("WEFT_HOME", "/w"), ("XDG_STATE_HOME", "/x"), ("HOME", "/h")][..], "/w"),
            (&[("XDG_STATE_HOME", "/x"), ("HOME", "/h")], "/x/weft"),
            (&[("HOME", "/h")], "/h/.local/state/weft"),
            (&[], "/tmp/weft"),
        ] {
            let variable = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| PathBuf::from(v));
            assert_eq!(home_from(variable), PathBuf::from(home));
        }
    }

    #[test]
    fn a_given_file_wins() {
        let connection = Connection { kubeconfig: Some("/a/b".into()), context: None };
        assert_eq!(kubeconfig(&connection), PathBuf::from("/a/b"));
        assert!(missing(Path::new("/a/b"), &connection).contains("--kubeconfig"));
    }
}
