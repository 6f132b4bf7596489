//! Into a pod: running a command and reaching a port, over the API server's WebSockets.

use super::{ApiClient, ClientError};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::future::FusedFuture;
use futures_util::future::Shared;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, AttachedProcess, TerminalSize};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Bytes buffered per stream of a command.
const STREAM_BUFFER: usize = 64 * 1024;

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    /// Container; `None` when the pod has only one.
    pub container: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether the command gets an input.
    pub stdin: bool,
    /// Whether the command gets a terminal; its errors then come with its output.
    pub tty: bool,
}

/// A running command. Dropping it ends the connection, and the command.
pub struct ExecSession {
    process: AttachedProcess,
    status: Ended,
    url: String,
}

/// Resolves when the connection has ended; with the command's status, when there was one.
type Ended = Shared<BoxFuture<'static, Option<Status>>>;

/// One side of a command's pipe. The library's pipes do not tell when the connection breaks off: this does.
struct Pipe<T> {
    inner: T,
    ended: Ended,
}

/// What a command wrote and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Output.
    pub stdout: Vec<u8>,
    /// Errors.
    pub stderr: Vec<u8>,
    /// Exit code.
    pub code: i32,
}

impl ApiClient {
    /// Runs a command in a container.
    ///
    /// # Errors
    /// [`ClientError::NotFound`], [`ClientError::Invalid`] (no such container), [`ClientError::Unreachable`] and their kin.
    pub async fn exec(&self, namespace: &str, pod: &str, options: &ExecOptions) -> Result<ExecSession, ClientError> {
        let params = AttachParams {
            container: options.container.clone(),
            stdin: options.stdin,
            stdout: true,
            stderr: !options.tty,
            tty: options.tty,
            max_stdin_buf_size: Some(STREAM_BUFFER),
            max_stdout_buf_size: Some(STREAM_BUFFER),
            max_stderr_buf_size: Some(STREAM_BUFFER),
        };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let process = pods.exec(pod, options.command.clone(), &params).await;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/exec");
        let mut process = process.map_err(|e| ClientError::from_kube(&self.url, &path, e))?;
        let status = process.take_status().map_or_else(|| async { None }.boxed(), FutureExt::boxed).shared();
        Ok(ExecSession { process, status, url: self.url.clone() })
    }

    /// Runs a command, gives it `input`, and collects at most `limit` bytes of each of its outputs.
    ///
    /// # Errors
    /// As [`Self::exec`], and [`ClientError::Protocol`] when the connection ends before the command.
    pub async fn exec_output(
        &self,
        namespace: &str,
        pod: &str,
        options: &ExecOptions,
        input: &[u8],
        limit: u64,
    ) -> Result<ExecOutput, ClientError> {
        let options = ExecOptions { stdin: !input.is_empty(), ..options.clone() };
        let mut session = self.exec(namespace, pod, &options).await?;
        let stdin = session.stdin();
        let write = async {
            if let Some(mut stdin) = stdin {
                // A command that ends without reading its input is no error.
                let _ = stdin.write_all(input).await;
                let _ = stdin.shutdown().await;
            }
        };
        let (stdout, stderr) = (session.stdout(), session.stderr());
        let (stdout, stderr, ()) = tokio::join!(collect(stdout, limit), collect(stderr, limit), write);
        let broken = |e: io::Error| ClientError::Unreachable { url: self.url.clone(), cause: e.to_string() };
        let (stdout, stderr) = (stdout.map_err(broken)?, stderr.map_err(broken)?);
        Ok(ExecOutput { stdout, stderr, code: session.exit_code().await? })
    }
}

async fn collect(reader: Option<impl AsyncRead + Unpin>, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut reader) = reader {
        (&mut reader).take(limit).read_to_end(&mut bytes).await?;
        // The rest must be read too, or the connection stands still before the exit code.
        tokio::io::copy(&mut reader, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}

impl ExecSession {
    /// The command's input; once, and only when asked for. Dropping it (or shutting it down) is the end of the input.
    pub fn stdin(&mut self) -> Option<impl AsyncWrite + Send + Unpin + 'static> {
        let ended = self.status.clone();
        self.process.stdin().map(|inner| Pipe { inner, ended })
    }

    /// The command's output; once. Must be read, or the command stands still.
    pub fn stdout(&mut self) -> Option<impl AsyncRead + Send + Unpin + 'static> {
        let ended = self.status.clone();
        self.process.stdout().map(|inner| Pipe { inner, ended })
    }

    /// The command's errors; once, and not with a terminal. Must be read, or the command stands still.
    pub fn stderr(&mut self) -> Option<impl AsyncRead + Send + Unpin + 'static> {
        let ended = self.status.clone();
        self.process.stderr().map(|inner| Pipe { inner, ended })
    }

    /// What sets the size of the terminal; once, and only with a terminal.
    pub fn terminal(&mut self) -> Option<TerminalResizer> {
        let mut sizes = self.process.terminal_size()?;
        let resize = move |width, height| sizes.try_send(TerminalSize { width, height }).is_ok();
        Some(TerminalResizer(Box::new(resize)))
    }

    /// Waits for the end of the command. Read the outputs first (or meanwhile).
    ///
    /// # Errors
    /// [`ClientError::Protocol`] when the connection ended before the command, or the command could not be started.
    pub async fn exit_code(&mut self) -> Result<i32, ClientError> {
        let wrong = |message: String| ClientError::Protocol { url: self.url.clone(), message };
        let status = self.status.clone().await;
        let status =
            status.ok_or_else(|| wrong("the connection ended before the command reported its exit code".into()))?;
        if status.status.as_deref() == Some("Success") {
            return Ok(0);
        }
        let causes = status.details.as_ref().and_then(|d| d.causes.as_deref()).unwrap_or_default();
        let code = causes
            .iter()
            .find(|c| c.reason.as_deref() == Some("ExitCode"))
            .and_then(|c| c.message.as_deref())
            .and_then(|m| m.parse().ok());
        code.ok_or_else(|| wrong(status.message.unwrap_or_else(|| "the command could not be run".into())))
    }
}

impl<T> Pipe<T> {
    /// Whether the command has ended. May be asked again after it has, which the future itself may not.
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        self.ended.is_terminated() || self.ended.poll_unpin(context).is_ready()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Pipe<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_read(context, buf);
        if result.is_pending() && self.is_over(context) {
            // What came with the end is read first.
            return match Pin::new(&mut self.inner).poll_read(context, buf) {
                Poll::Pending => Poll::Ready(Ok(())),
                ready => ready,
            };
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Pipe<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(context, buf);
        if result.is_pending() && self.is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// Tells a terminal its size.
pub struct TerminalResizer(Box<dyn FnMut(u16, u16) -> bool + Send>);

impl TerminalResizer {
    /// Sets the size in columns and rows. `false`: the command has ended, or sizes come faster than they are taken.
    pub fn resize(&mut self, columns: u16, rows: u16) -> bool {
        (self.0)(columns, rows)
    }
}

/// A connection to a port of a pod. A half close ends the whole connection: the protocol has no other.
pub struct PortForward {
    stream: tokio::io::DuplexStream,
    error: Option<BoxFuture<'static, Option<String>>>,
}

impl ApiClient {
    /// Connects to a port of a pod (on the pod's loopback).
    ///
    /// # Errors
    /// [`ClientError::NotFound`], [`ClientError::Unreachable`] and their kin. A port on which nobody listens is an error of
    /// the first read.
    pub async fn port_forward(&self, namespace: &str, pod: &str, port: u16) -> Result<PortForward, ClientError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/portforward");
        let forwarder = pods.portforward(pod, &[port]).await;
        let mut forwarder = forwarder.map_err(|e| ClientError::from_kube(&self.url, &path, e))?;
        let error = forwarder.take_error(port).map(FutureExt::boxed);
        let stream = forwarder.take_stream(port).ok_or_else(|| ClientError::Protocol {
            url: self.url.clone(),
            message: format!("{path}: no stream for port {port}"),
        })?;
        Ok(PortForward { stream, error })
    }
}

impl AsyncRead for PortForward {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buf);
        let ended = matches!(result, Poll::Ready(Ok(()))) && buf.filled().len() == before && buf.remaining() > 0;
        if ended
            && let Some(mut error) = self.error.take()
            && let Poll::Ready(Some(message)) = error.as_mut().poll(context)
        {
            return Poll::Ready(Err(io::Error::other(message)));
        }
        result
    }
}

impl AsyncWrite for PortForward {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_ended_command_may_be_read_again() {
        // The other end stays open, as that of a child that was left behind.
        let (inner, _left_behind) = tokio::io::duplex(64);
        let mut pipe = Pipe { inner, ended: async { None }.boxed().shared() };
        for _ in 0..3 {
            assert_eq!(pipe.read(&mut [0; 8]).await.unwrap(), 0);
        }
        let mut buffer = [0; 128];
        let written = pipe.write(&buffer).await.unwrap();
        assert_eq!(written, 64);
        for _ in 0..2 {
            assert_eq!(pipe.write(&buffer).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        }
        assert_eq!(pipe.read(&mut buffer).await.unwrap(), 0);
    }
}
