//! Logs, commands and ports through the real client library, against a backend that runs real processes and sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::*;
use futures_util::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use weft_apiserver::ApiServerOptions;
use weft_store::client::{ExecOptions, LogOptions, WriteOptions};
use weft_store::{ClientError, MemoryStore};

async fn with_pod() -> Lab {
    let lab = lab().await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "i"}]},
    });
    lab.client.create(&object(pod), &WriteOptions::default()).await.unwrap();
    let two = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "two", "namespace": "default",
                     "annotations": {"kubectl.kubernetes.io/default-container": "app"}},
        "spec": {"containers": [{"name": "istio-proxy", "image": "i"}, {"name": "app", "image": "i"}]},
    });
    lab.client.create(&object(two), &WriteOptions::default()).await.unwrap();
    lab
}

fn shell(script: &str) -> ExecOptions {
    ExecOptions { command: ["sh", "-c", script].map(String::from).into(), ..ExecOptions::default() }
}

#[tokio::test]
async fn logs() {
    let lab = with_pod().await;
    let read = async |pod: &str, options: LogOptions| {
        let mut log = lab.client.logs("default", pod, &options).await?;
        let mut text = String::new();
        while let Some(bytes) = within(60, log.next()).await {
            text.push_str(std::str::from_utf8(&bytes?).unwrap());
            if text.contains("line 3\n") {
                break;
            }
        }
        Ok::<_, ClientError>(text)
    };
    let tail = LogOptions { tail_lines: Some(2), ..LogOptions::default() };
    assert_eq!(read("p", tail).await.unwrap(), "main Some(2)\n");
    assert_eq!(read("two", LogOptions::default()).await.unwrap(), "app None\n", "the pod's default container");
    let follow = LogOptions { follow: true, container: Some("istio-proxy".into()), ..LogOptions::default() };
    assert_eq!(read("two", follow).await.unwrap(), "istio-proxy None\nline 0\nline 1\nline 2\nline 3\n");
    let wrong = LogOptions { container: Some("nope".into()), ..LogOptions::default() };
    let error = read("p", wrong).await.unwrap_err();
    assert!(error.to_string().contains("container nope is not valid for pod p; it has main"), "{error}");
    assert!(read("missing", LogOptions::default()).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn commands() {
    let lab = with_pod().await;
    let run = async |options: ExecOptions, input: Vec<u8>| {
        within(60, lab.client.exec_output("default", "p", &options, &input, 16 << 20)).await
    };
    let output = run(shell("echo out; echo err >&2; exit 7"), Vec::new()).await.unwrap();
    assert_eq!((output.stdout, output.stderr, output.code), (b"out\n".to_vec(), b"err\n".to_vec(), 7));
    let output = run(shell("true"), Vec::new()).await.unwrap();
    assert_eq!((output.stdout.len(), output.code), (0, 0));
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let output = run(shell("cat"), input.clone()).await.unwrap();
    assert!(output.stdout == input && output.code == 0, "3 MB there and back, and the end of the input arrives");
    let output = run(shell("head -c 5000000 /dev/zero"), Vec::new()).await.unwrap();
    assert_eq!(output.stdout.len(), 5_000_000);
    let output = run(shell("sleep 60 & echo started"), Vec::new()).await.unwrap();
    assert_eq!((output.stdout, output.code), (b"started\n".to_vec(), 0), "a child left behind does not hold it up");
    let nothing = ExecOptions { command: vec!["/no/such/program".into()], ..ExecOptions::default() };
    assert!(run(nothing, Vec::new()).await.is_err());
    let wrong = ExecOptions { container: Some("nope".into()), ..shell("true") };
    assert!(matches!(run(wrong, Vec::new()).await, Err(ClientError::Invalid { .. })));
}

#[tokio::test]
async fn a_command_goes_with_its_client() {
    let lab = with_pod().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let mut session =
        lab.client.exec("default", "p", &shell(&format!("echo $$ > {}; exec sleep 60", file.display()))).await.unwrap();
    let mut stdout = session.stdout().unwrap();
    eventually("the command runs", || async { std::fs::read_to_string(&file).is_ok_and(|t| t.ends_with('\n')) }).await;
    let pid = std::fs::read_to_string(&file).unwrap().trim().to_string();
    let alive = || std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.starts_with("sleep"));
    // The shell has written its number before it becomes the command.
    eventually("the shell has become the command", || async { alive() }).await;
    drop(session);
    within(60, stdout.read_to_end(&mut Vec::new())).await.unwrap();
    eventually("the command is gone", || async { !alive() }).await;
}

#[tokio::test]
async fn the_server_goes_while_a_command_runs() {
    let mut lab = with_pod().await;
    let mut session = lab.client.exec("default", "p", &shell("echo up; exec sleep 60")).await.unwrap();
    let mut stdout = session.stdout().unwrap();
    let mut line = [0; 3];
    within(60, stdout.read_exact(&mut line)).await.unwrap();
    lab.stop().await;
    assert_eq!(within(60, stdout.read(&mut line)).await.unwrap(), 0, "the output ends");
    let error = within(60, session.exit_code()).await.unwrap_err();
    assert!(error.to_string().contains("before the command reported"), "{error}");
}

#[tokio::test]
async fn ports() {
    let lab = with_pod().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 65536];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    if buffer[..read].ends_with(b"bye") || stream.write_all(&buffer[..read]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    for _ in 0..3 {
        let mut stream = lab.client.port_forward("default", "p", port).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut answer = [0; 5];
        within(60, stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"hello");
        let (mut reader, mut writer) = tokio::io::split(stream);
        let sent: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 253) as u8).collect();
        let expect = sent.clone();
        let writing = tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer
        });
        let mut back = vec![0; expect.len()];
        within(60, reader.read_exact(&mut back)).await.unwrap();
        assert!(back == expect);
        writing.await.unwrap().write_all(b"bye").await.unwrap();
        let mut rest = Vec::new();
        within(60, reader.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty(), "the pod's end of the connection ends ours");
    }
    // A port that nobody listens on.
    let closed = 1;
    let mut refused = lab.client.port_forward("default", "p", closed).await.unwrap();
    let error = within(60, refused.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert!(error.to_string().contains(&format!("cannot reach port {closed} of pod default/p")), "{error}");
}

#[tokio::test]
async fn without_a_backend() {
    let options = ApiServerOptions { pods: None, ..options() };
    let lab = lab_with(MemoryStore::new(), options, "127.0.0.1:0".parse().unwrap()).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "i"}]},
    });
    lab.client.create(&object(pod), &WriteOptions::default()).await.unwrap();
    let error = lab.client.logs("default", "p", &LogOptions::default()).await.err().unwrap();
    assert!(matches!(error, ClientError::Server { code: 503, .. }), "{error}");
}
