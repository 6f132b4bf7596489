//! gRPC through a pair of proxies over mutual TLS: Google's library for Python and tonic, each as client of the other and of
//! itself: all kinds of calls, status, metadata of bytes, deadlines, cancellation, large and compressed messages, flow control.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use weft_interop_tests::process::{Process, python};
use weft_interop_tests::proxy::{self, Proxy, free_port};
use weft_interop_tests::{echo, pki};

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python/echo.py")
}

/// A pair in front of that application.
struct Pair {
    entry: u16,
    _proxies: [Proxy; 2],
    _folder: TempDir,
}

fn pair(app: u16) -> Pair {
    let folder = tempfile::tempdir().unwrap();
    pki::write(folder.path());
    let ports = [free_port(), free_port(), app];
    let [client, server] = proxy::pair(folder.path(), ports, &json!({}), &json!({})).map(|file| Proxy::start(&file));
    let mut proxies = [client, server];
    for (proxy, port) in proxies.iter_mut().zip(ports) {
        proxy.until_listening(port);
    }
    Pair { entry: ports[0], _proxies: proxies, _folder: folder }
}

fn python_server(folder: &Path) -> (Process, u16) {
    let mut command = Command::new(python());
    command.arg(script()).arg("server");
    let mut process = Process::start("echo.py", &mut command, &folder.join("server.log"));
    let port = process.line("a port", |line| line.parse().ok());
    (process, port)
}

fn python_client(port: u16) {
    let output = Command::new(python()).arg(script()).args(["client", &port.to_string()]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.trim() == "ok", "{out}{err}");
}

#[test]
fn python_to_python() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, port) = python_server(folder.path());
    python_client(pair(port).entry);
}

#[tokio::test(flavor = "multi_thread")]
async fn python_to_tonic() {
    let port = echo::serve().await;
    tokio::task::spawn_blocking(move || python_client(pair(port).entry)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tonic_to_python() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, port) = python_server(folder.path());
    echo::try_all(pair(port).entry).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tonic_to_tonic() {
    let port = echo::serve().await;
    echo::try_all(pair(port).entry).await;
}
