//! The real program on Envoy bootstrap files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::PathBuf;
use std::process::Stdio;
use support::{PATIENCE, eventually, free_port, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

fn bootstrap(admin: u16, port: u16, upstream: u16) -> String {
    format!(
        "admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
node: {{id: test, cluster: test}}
static_resources:
  listeners:
  - name: front
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          route_config:
            name: r
            virtual_hosts:
            - name: all
              domains: ['*']
              routes:
              - match: {{prefix: /direct}}
                direct_response: {{status: 200, body: {{inline_string: hello}}}}
              - match: {{prefix: /}}
                route: {{cluster: up, timeout: 0s}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: up
    type: STATIC
    connect_timeout: 20s
    load_assignment:
      cluster_name: up
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}}}]}}]
"
    )
}

struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn file(text: &str) -> File {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bootstrap.yaml");
    std::fs::write(&path, text).unwrap();
    File { _folder: folder, path }
}

fn program(file: &File) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-proxy"));
    command.arg("-c").arg(&file.path).kill_on_drop(true);
    command
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let id = i32::try_from(child.id().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal).unwrap();
}

async fn failure(mut command: Command) -> String {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("an end").unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn validate_says_what_is_wrong() {
    let good = bootstrap(1, 2, 3);
    let mut command = program(&file(&good));
    let output = command.args(["--mode", "validate"]).output().await.unwrap();
    // The file is gone with its folder: what is missing is named as well.
    assert!(!output.status.success());
    let kept = file(&good);
    let output = program(&kept).args(["--mode", "validate"]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("OK"));
    for (text, says) in [
        (good.replace("connect_timeout", "conect_timeout"), "conect_timeout"),
        (good.replace("port_value: 2}", "port_value: 99999}"), "99999"),
        (good.replace("  clusters:", " clusters:"), "line"),
        (
            good.replace("network.http_connection_manager.v3.HttpConnectionManager", "no.such.v3.Filter"),
            "no.such.v3.Filter",
        ),
    ] {
        let broken = file(&text);
        let mut command = program(&broken);
        command.args(["--mode", "validate"]);
        let error = failure(command).await;
        assert!(error.contains(says) && error.contains("bootstrap.yaml"), "{says}: {error}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let listener = file(&bootstrap(free_port(), port, 1));
    let error = failure(program(&listener)).await;
    assert!(error.contains(&port.to_string()) && error.contains("in use"), "{error}");
    let admin = file(&bootstrap(port, free_port(), 1));
    let error = failure(program(&admin)).await;
    assert!(error.contains(&format!("admin port 127.0.0.1:{port}")), "{error}");
}

#[tokio::test]
async fn serves_answers_its_admin_port_and_drains() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (admin, port) = (free_port(), free_port());
    let config = file(&bootstrap(admin, port, upstream.local_addr().unwrap().port()));
    // It may drain for far longer than the test waits: it ends because nothing is under way any more.
    let args = ["--concurrency", "1", "-l", "warning", "--drain-time-s", "600"];
    let mut child = program(&config).args(args).stderr(Stdio::inherit()).spawn().unwrap();
    eventually("an answer", || async {
        (http("GET", port, "/direct").await? == (200, "hello".to_owned())).then_some(())
    })
    .await;
    let page = |path: &'static str| async move { http("GET", admin, path).await.unwrap() };
    assert_eq!(page("/ready").await, (200, "LIVE\n".to_owned()));
    let (_, info) = page("/server_info").await;
    assert!(info.contains("\"state\": \"LIVE\"") || !info.contains("DRAINING"), "{info}");
    let (_, dump) = page("/config_dump").await;
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    let configs = dump["configs"].as_array().unwrap();
    let named = |kind: &str| configs.iter().find(|c| c["@type"].as_str().unwrap().ends_with(kind)).unwrap();
    assert_eq!(named("BootstrapConfigDump")["bootstrap"]["node"]["id"], "test");
    assert_eq!(named("ListenersConfigDump")["static_listeners"][0]["listener"]["name"], "front");
    assert_eq!(named("ClustersConfigDump")["static_clusters"][0]["cluster"]["name"], "up");
    assert!(named("ListenersConfigDump").get("dynamic_listeners").is_none());
    assert!(page("/stats?filter=front").await.1.contains("http.front."));
    assert!(page("/stats?format=json&filter=front").await.1.contains("\"stats\""));
    assert_eq!(page("/stats?filter=(").await.0, 400);
    assert_eq!(http("POST", admin, "/logging?level=debug").await.unwrap().0, 200);
    assert_eq!(http("POST", admin, "/logging?level=no,such=filter=x").await.unwrap().0, 400);
    assert_eq!(page("/nothing").await.0, 404);
    let request = Command::new(env!("CARGO_BIN_EXE_weft-proxy"))
        .args(["request", "GET", "server_info", "--port", &admin.to_string()])
        .output()
        .await
        .unwrap();
    assert!(request.status.success() && String::from_utf8_lossy(&request.stdout).contains("weft-proxy/"));

    // A request that is under way is finished; the process goes when it is.
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    client.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let (mut server, _) = tokio::time::timeout(PATIENCE, upstream.accept()).await.unwrap().unwrap();
    let mut head = [0; 1024];
    assert!(server.read(&mut head).await.unwrap() > 0);
    signal(&child, nix::sys::signal::Signal::SIGTERM);
    eventually("draining", || async { (http("GET", admin, "/ready").await?.0 == 503).then_some(()) }).await;
    assert!(child.try_wait().unwrap().is_none(), "waits for the request");
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await.expect("an end").unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test]
async fn the_admin_port_can_end_it() {
    let (admin, port) = (free_port(), free_port());
    let config = file(&bootstrap(admin, port, 1));
    let mut child = program(&config).args(["-l", "error"]).spawn().unwrap();
    eventually("the admin port", || async { http("GET", admin, "/ready").await }).await;
    assert_eq!(http("POST", admin, "/drain_listeners").await.unwrap().0, 200);
    eventually("a refused connection", || async { TcpStream::connect(("127.0.0.1", port)).await.err().map(|_| ()) })
        .await;
    assert_eq!(http("POST", admin, "/quitquitquit").await.unwrap().0, 200);
    assert!(tokio::time::timeout(PATIENCE, child.wait()).await.expect("an end").unwrap().success());
}
