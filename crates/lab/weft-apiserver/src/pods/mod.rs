//! Into pods: logs, commands, what runs, and ports. What runs the pods stands behind [`PodBackend`]; here is its contract and the choice
//! of the container. The WebSocket protocols are in `exec` and `forward`, those over SPDY in `spdy_streams`.

mod exec;
mod forward;
pub(crate) mod spdy;
mod spdy_streams;

use crate::params::Params;
use crate::route::Target;
use crate::server::{Context, closed};
use crate::status::ApiError;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http::Method;
use http::header::CONTENT_TYPE;
use serde_json::Value;
use std::io;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use weft_k8s_api::Object;

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid: a pod of the same name made later is another pod.
    pub uid: String,
}

/// What to read of a log.
#[derive(Debug, Clone)]
pub struct LogRequest {
    /// The pod.
    pub pod: PodRef,
    /// The container; one of the pod's.
    pub container: String,
    /// Go on with new lines until the container ends.
    pub follow: bool,
    /// Only that many last lines.
    pub tail_lines: Option<u64>,
    /// Only lines of the last seconds.
    pub since_seconds: Option<u64>,
    /// The container's previous run.
    pub previous: bool,
    /// Put the time (RFC 3339) and a space before each line.
    pub timestamps: bool,
    /// At most that many bytes.
    pub limit_bytes: Option<u64>,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// The pod.
    pub pod: PodRef,
    /// The container; one of the pod's.
    pub container: String,
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    /// Whether the caller will send input.
    pub stdin: bool,
    /// Whether to give the command a terminal.
    pub tty: bool,
}

/// A running command. Dropping `exit` before it is done ends the command.
pub struct ExecStreams {
    /// Its input, when asked for. Shutting it down is the end of the input.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its output.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Its errors; `None` with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Sets the terminal's size in columns and rows.
    pub resize: Option<Box<dyn Fn(u16, u16) + Send + Sync>>,
    /// Its exit code (128 + signal when it was killed).
    pub exit: BoxFuture<'static, io::Result<i32>>,
}

/// A connection into a pod.
pub trait PodStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> PodStream for T {}

/// Why the backend cannot do it.
#[derive(Debug, Error)]
pub enum PodError {
    /// There is no such pod here (any more).
    #[error("pod {0} is not on this node")]
    NotFound(String),
    /// The container does not run (now).
    #[error("{0}")]
    NotRunning(String),
    /// The request makes no sense for this pod.
    #[error("{0}")]
    Invalid(String),
    /// The operating system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl PodError {
    fn into_error(self) -> ApiError {
        match self {
            Self::NotFound(_) | Self::NotRunning(_) | Self::Invalid(_) => ApiError::bad_request(self.to_string()),
            Self::Io(e) => ApiError::internal(e.to_string()),
        }
    }
}

/// What a container takes of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Uid of its pod.
    pub pod_uid: String,
    /// Its name.
    pub container: String,
    /// Processor time since it was started.
    pub processor: std::time::Duration,
    /// Memory in bytes, now.
    pub memory: u64,
}

/// What runs pods.
pub trait PodBackend: Send + Sync {
    /// Opens a log. The stream ends when the log does (or, following, when the container ends).
    fn logs(&self, request: LogRequest) -> BoxFuture<'_, Result<BoxStream<'static, io::Result<Bytes>>, PodError>>;

    /// Starts a command.
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecStreams, PodError>>;

    /// Connects to a TCP port on the pod's loopback.
    fn connect(&self, pod: PodRef, port: u16) -> BoxFuture<'_, Result<Box<dyn PodStream>, PodError>>;

    /// What the running containers of all pods take. Default: nothing is known of any.
    fn usage(&self) -> BoxFuture<'_, io::Result<Vec<Usage>>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}

/// The pod's subresources that reach into it.
pub(crate) async fn handle(
    context: Context,
    target: &Target,
    request: http::Request<Body>,
) -> Result<Response, ApiError> {
    let store = &context.server.store();
    let pod = store.find("", "Pod", target.namespace(), target.name());
    let pod = pod.ok_or_else(|| ApiError::not_found(target.kind, target.name()))?;
    let sub = target.sub.as_deref().unwrap_or_default();
    match (sub, request.method()) {
        ("log", &Method::GET) => logs(&context, &pod).await,
        ("exec", &Method::GET | &Method::POST) => exec::handle(context, &pod, request).await,
        ("attach", &Method::GET | &Method::POST) => exec::attach(context, &pod, request).await,
        ("portforward", &Method::GET | &Method::POST) => forward::handle(context, &pod, request).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn logs(context: &Context, pod: &Object) -> Result<Response, ApiError> {
    let params = &context.params;
    let request = LogRequest {
        pod: reference(pod),
        container: container(pod, params, &["containers", "initContainers"])?,
        follow: params.is_set("follow"),
        tail_lines: params.number("tailLines")?,
        since_seconds: since(params)?,
        previous: params.is_set("previous"),
        timestamps: params.is_set("timestamps"),
        limit_bytes: params.number("limitBytes")?,
    };
    let log = backend(context)?.logs(request).await.map_err(PodError::into_error)?;
    let permit = context.stream_permit()?;
    let mut closing = context.server.closing();
    let log = log.take_until(Box::pin(async move { closed(&mut closing).await })).map(move |item| {
        let _held = &permit;
        item
    });
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(log)).into_response())
}

/// How many seconds back a log begins: `sinceSeconds`, or `sinceTime` (RFC 3339), not both.
fn since(params: &Params) -> Result<Option<u64>, ApiError> {
    let seconds = params.number("sinceSeconds")?;
    let Some(text) = params.get("sinceTime") else { return Ok(seconds) };
    if seconds.is_some() {
        return Err(ApiError::bad_request("sinceSeconds, sinceTime: at most one of them may be given"));
    }
    let wrong = |_| ApiError::bad_request(format!("sinceTime={text}: a time such as 2026-01-31T12:00:00Z is expected"));
    let time: jiff::Timestamp = text.parse().map_err(wrong)?;
    let ago = jiff::Timestamp::now().as_second().saturating_sub(time.as_second());
    Ok(Some(u64::try_from(ago).unwrap_or(0).max(1)))
}

fn backend(context: &Context) -> Result<std::sync::Arc<dyn PodBackend>, ApiError> {
    context.server.pods().ok_or_else(|| ApiError::unavailable("nothing here runs pods: no logs, commands or ports"))
}

fn reference(pod: &Object) -> PodRef {
    PodRef {
        namespace: pod.namespace().into(),
        name: pod.name().into(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
    }
}

/// The container that is meant: the one named, the only one, or the one that the pod names as its default.
fn container(pod: &Object, params: &Params, lists: &[&str]) -> Result<String, ApiError> {
    let names_in = |list: &&str| {
        let containers = pod.spec().get(*list).and_then(Value::as_array).into_iter().flatten();
        containers.filter_map(|c| c.get("name").and_then(Value::as_str)).collect::<Vec<_>>()
    };
    let names: Vec<&str> = lists.iter().flat_map(names_in).collect();
    if let Some(asked) = params.get("container") {
        return match names.contains(&asked) {
            true => Ok(asked.to_string()),
            false => Err(ApiError::bad_request(format!(
                "container {asked} is not valid for pod {}; it has {}",
                pod.name(),
                names.join(", ")
            ))),
        };
    }
    let default = pod.annotation("kubectl.kubernetes.io/default-container").filter(|d| names.contains(d));
    let main = names_in(&"containers");
    match (default, main.as_slice()) {
        (Some(name), _) => Ok(name.to_string()),
        (None, [only]) => Ok((*only).to_string()),
        _ => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            pod.name(),
            names.join(" ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Uri;

    #[test]
    fn a_log_begins_at_a_time_or_some_seconds_ago() {
        let asked = |query: &str| since(&Params::read(&format!("/log?{query}").parse::<Uri>().unwrap()).unwrap());
        let hour_ago = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() - 3600).unwrap();
        let found = asked(&format!("sinceTime={hour_ago}")).unwrap().unwrap();
        assert!((3600..3660).contains(&found), "{found}");
        assert_eq!(asked("sinceSeconds=5").unwrap(), Some(5));
        assert_eq!(asked("sinceTime=2999-01-01T00:00:00Z").unwrap(), Some(1), "what is to come");
        assert_eq!(asked("").unwrap(), None);
        assert!(asked("sinceTime=yesterday").is_err());
        assert!(asked("sinceTime=2026-01-01T00:00:00Z&sinceSeconds=5").is_err());
    }
}
