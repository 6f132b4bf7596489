//! A server on a loopback port with a client, a pod backend that is a small real one, and bounded waits.
#![allow(dead_code)]

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use serde_json::Value;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weft_apiserver::{
    AdminToken, ApiServer, ApiServerOptions, ExecRequest, ExecStreams, LogRequest, PodBackend, PodError, PodRef,
    PodStream,
};
use weft_k8s_api::kinds::by_any_name;
use weft_k8s_api::{KindInfo, Object};
use weft_store::{ApiClient, MemoryStore};

pub const TOKEN: &str = "test-admin-token-0123456789";

/// A running server.
pub struct Lab {
    pub server: ApiServer,
    pub client: ApiClient,
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<io::Result<()>>>,
}

pub fn options() -> ApiServerOptions {
    ApiServerOptions {
        admin_tokens: vec![AdminToken { token: TOKEN.into(), user: "admin".into() }],
        pods: Some(Arc::new(LocalPods)),
        ..ApiServerOptions::default()
    }
}

pub async fn lab() -> Lab {
    lab_with(MemoryStore::new(), options(), "127.0.0.1:0".parse().unwrap()).await
}

pub async fn lab_with(store: MemoryStore, options: ApiServerOptions, address: SocketAddr) -> Lab {
    let server = ApiServer::new(store, options).unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = server.clone();
    let task = tokio::spawn(async move { serving.serve(listener, stopped.map(drop)).await });
    let client = ApiClient::connect(&format!("http://{address}"), Some(TOKEN)).unwrap();
    Lab { server, client, address, stop: Some(stop), task: Some(task) }
}

impl Lab {
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops the server and waits for it.
    pub async fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(task) = self.task.take() {
            within(60, task).await.unwrap().unwrap();
        }
    }
}

pub async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), future).await.expect("in time")
}

/// Repeats until the condition holds, with a bound.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let check = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), check).await.is_ok(), "{what}: not within 60 s");
}

pub fn object(value: Value) -> Object {
    serde_json::from_value(value).unwrap()
}

pub fn kind(name: &str) -> &'static KindInfo {
    by_any_name(name).unwrap()
}

/// Runs commands on this machine as if they were in the pod.
pub struct LocalPods;

impl PodBackend for LocalPods {
    fn logs(&self, request: LogRequest) -> BoxFuture<'_, Result<BoxStream<'static, io::Result<Bytes>>, PodError>> {
        async move {
            let first = format!("{} {:?}\n", request.container, request.tail_lines);
            let lines = futures_util::stream::iter([Ok(Bytes::from(first))]);
            if !request.follow {
                return Ok(lines.boxed());
            }
            let more = futures_util::stream::unfold(0, |n| async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Some((Ok(Bytes::from(format!("line {n}\n"))), n + 1))
            });
            Ok(lines.chain(more).boxed())
        }
        .boxed()
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecStreams, PodError>> {
        async move {
            let (program, arguments) = request.command.split_first().ok_or(PodError::Invalid("no command".into()))?;
            let mut command = tokio::process::Command::new(program);
            let input = if request.stdin { Stdio::piped() } else { Stdio::null() };
            command.args(arguments).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
            let mut child = command.spawn()?;
            Ok(ExecStreams {
                stdin: child.stdin.take().map(|s| Box::new(s) as _),
                stdout: child.stdout.take().map(|s| Box::new(s) as _),
                stderr: child.stderr.take().map(|s| Box::new(s) as _),
                resize: None,
                exit: async move { child.wait().await.map(|s| s.code().unwrap_or(137)) }.boxed(),
            })
        }
        .boxed()
    }

    fn connect(&self, _pod: PodRef, port: u16) -> BoxFuture<'_, Result<Box<dyn PodStream>, PodError>> {
        async move { Ok(Box::new(TcpStream::connect(("127.0.0.1", port)).await?) as Box<dyn PodStream>) }.boxed()
    }
}
