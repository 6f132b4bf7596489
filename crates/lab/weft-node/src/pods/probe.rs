//! Probes and hooks: HTTP, TCP, gRPC and commands, asked from inside the pod's own network namespace. So they reach the
//! application itself, as Istio's rewritten probes do, whatever the proxy beside it demands of callers.

use crate::sandbox::{NetNs, Process, exit_code};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Bytes of an answer that are read, for messages.
const MAX_ANSWER: usize = 64 << 10;

/// Where a probe is asked.
#[derive(Clone)]
pub struct Target {
    /// The pod's network.
    pub net: NetNs,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The container's process, for commands.
    pub process: Process,
    /// The container's environment, for commands.
    pub env: Vec<(String, String)>,
}

/// Asks once.
///
/// # Errors
/// What was wrong with the answer, for the pod's status.
pub async fn ask(probe: &Probe, container: &Container, target: &Target) -> Result<(), String> {
    let limit = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1).max(1)).unwrap_or(1));
    let asked = async {
        if let Some(exec) = &probe.exec {
            return run(exec.command.clone().unwrap_or_default(), target).await;
        }
        if let Some(get) = &probe.http_get {
            return http_get(get, container, target).await;
        }
        if let Some(socket) = &probe.tcp_socket {
            let port = port_number(&socket.port, container)?;
            return connect(target, port).await.map(drop);
        }
        if let Some(grpc) = &probe.grpc {
            let port = u16::try_from(grpc.port).map_err(|_| format!("port {} is not a port", grpc.port))?;
            return grpc_check(target, port, grpc.service.as_deref().unwrap_or_default()).await;
        }
        Err("the probe names neither exec, httpGet, tcpSocket nor grpc".into())
    };
    tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())))
}

/// Runs a command in the container; it must end with 0.
///
/// # Errors
/// Its exit code, or why it could not be run.
pub async fn run(command: Vec<String>, target: &Target) -> Result<(), String> {
    let name = command.join(" ");
    let process = target.process.exec(command, target.env.clone(), [None, None, None], false).await;
    let process = process.map_err(|error| error.to_string())?;
    // A probe that is given up must not go on running.
    let guard = KillOnDrop(process.clone());
    let status = process.wait().await;
    drop(guard);
    match exit_code(status) {
        0 => Ok(()),
        code => Err(format!("command {name:?} ended with {code}")),
    }
}

struct KillOnDrop(Process);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if self.0.ended().is_none() {
            self.0.signal(nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Resolves a port by number or by the name that the container gives it.
///
/// # Errors
/// When there is no such port.
pub fn port_number(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                let mut ports = container.ports.iter().flatten();
                let named = ports.find(|port| port.name.as_deref() == Some(name));
                named.ok_or_else(|| format!("the container has no port named {name:?}"))?.container_port
            }
        },
    };
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| format!("{number} is not a port"))
}

async fn connect(target: &Target, port: u16) -> Result<tokio::net::TcpStream, String> {
    let address = (target.address, port);
    target.net.connect(address.into()).await.map_err(|error| format!("connect to port {port}: {error}"))
}

/// A GET that must be answered with 200 to 399. For `scheme: HTTPS` it is enough that the port accepts connections: the lab
/// does not judge the certificate that the application shows to a probe.
///
/// # Errors
/// Status and beginning of the answer.
pub async fn http_get(get: &HTTPGetAction, container: &Container, target: &Target) -> Result<(), String> {
    let port = port_number(&get.port, container)?;
    let stream = connect(target, port).await?;
    if get.scheme.as_deref() == Some("HTTPS") {
        return Ok(());
    }
    let path = get.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
    let mut request = http::Request::get(&path)
        .header("user-agent", "kube-probe/weft")
        .header("accept", "*/*")
        .header("connection", "close");
    let mut host = format!("{}:{port}", target.address);
    for header in get.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            host.clone_from(&header.value);
        } else {
            request = request.header(&header.name, &header.value);
        }
    }
    let request = request.header("host", host).body(Full::<Bytes>::default()).map_err(|error| error.to_string())?;
    let wrong = |error: hyper::Error| format!("GET {path} on port {port}: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(wrong)?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(wrong)?;
    let status = answer.status();
    let good = status.as_u16() >= 200 && status.as_u16() < 400;
    let body = if good { Bytes::new() } else { read_some(answer.into_body()).await };
    connection.abort();
    let text: String = String::from_utf8_lossy(&body).trim().chars().take(300).collect();
    if good { Ok(()) } else { Err(format!("HTTP {} from port {port}{path}: {text}", status.as_u16())) }
}

async fn read_some(body: hyper::body::Incoming) -> Bytes {
    Limited::new(body, MAX_ANSWER).collect().await.map(|body| body.to_bytes()).unwrap_or_default()
}

/// `grpc.health.v1.Health/Check` without a gRPC library: one message of one field each way.
async fn grpc_check(target: &Target, port: u16, service: &str) -> Result<(), String> {
    let stream = connect(target, port).await?;
    let wrong = |error: hyper::Error| format!("gRPC health on port {port}: {error}");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(wrong)?;
    let connection = tokio::spawn(connection);
    let length = u8::try_from(service.len()).ok().filter(|n| *n < 128).ok_or("the service name is too long")?;
    let mut message = if service.is_empty() { vec![] } else { vec![0x0a, length] };
    message.extend(service.as_bytes());
    let mut frame = vec![0, 0, 0, 0, message.len() as u8];
    frame.extend(message);
    let request = http::Request::post(format!("http://{}:{port}/grpc.health.v1.Health/Check", target.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(frame)))
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(wrong)?;
    let status = answer.status();
    let body = read_some(answer.into_body()).await;
    connection.abort();
    // Field 1, varint 1: SERVING.
    if status.is_success() && body.get(5..7) == Some(&[0x08, 0x01]) {
        return Ok(());
    }
    Err(format!("gRPC health on port {port}: HTTP {}, not SERVING", status.as_u16()))
}
