//! Logs of pods, commands and connections into them, for the API server.

use super::node::Node;
use super::worker::Worker;
use crate::sandbox::{LogLine, Process, exit_code, sys};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use weft_apiserver::{ExecRequest, ExecStreams, LogRequest, PodBackend, PodError, PodRef, PodStream, Usage};

/// Pause in which a following reader looks whether the container has ended.
const FOLLOW_CHECK: Duration = Duration::from_millis(200);

impl Node {
    fn pod(&self, pod: &PodRef) -> Result<Arc<Worker>, PodError> {
        self.worker(&pod.uid).ok_or_else(|| PodError::NotFound(format!("{}/{}", pod.namespace, pod.name)))
    }
}

impl PodBackend for Node {
    fn logs(&self, request: LogRequest) -> BoxFuture<'_, Result<BoxStream<'static, io::Result<Bytes>>, PodError>> {
        Box::pin(async move { Ok(open_log(self.pod(&request.pod)?, request)) })
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<ExecStreams, PodError>> {
        Box::pin(async move {
            let worker = self.pod(&request.pod)?;
            let Some((process, env)) = worker.process(&request.container) else {
                let (pod, container) = (worker.name(), &request.container);
                return Err(PodError::NotRunning(format!("container {container} of pod {pod} does not run")));
            };
            if request.tty {
                exec_in_terminal(request, &process, env).await
            } else {
                exec(request, &process, env).await
            }
        })
    }

    fn connect(&self, pod: PodRef, port: u16) -> BoxFuture<'_, Result<Box<dyn PodStream>, PodError>> {
        Box::pin(async move {
            let worker = self.pod(&pod)?;
            let (sandbox, _) =
                worker.sandbox().ok_or_else(|| PodError::NotRunning("the pod has no network yet".into()))?;
            let stream = sandbox.net.connect((Ipv4Addr::LOCALHOST, port).into()).await?;
            Ok(Box::new(stream) as Box<dyn PodStream>)
        })
    }

    fn usage(&self) -> BoxFuture<'_, io::Result<Vec<Usage>>> {
        // Some dozens of small files of memory; nothing waits.
        Box::pin(async move { self.taken() })
    }
}

/// Reading position in a log.
struct Reader {
    worker: Arc<Worker>,
    request: LogRequest,
    next: u64,
    left: u64,
    first: bool,
}

fn open_log(worker: Arc<Worker>, request: LogRequest) -> BoxStream<'static, io::Result<Bytes>> {
    let left = request.limit_bytes.unwrap_or(u64::MAX);
    let reader = Reader { worker, request, next: 0, left, first: true };
    stream::unfold(reader, |mut reader| async move {
        loop {
            let ended = !reader.is_running();
            let text = reader.read();
            if !text.is_empty() {
                return Some((Ok(Bytes::from(text)), reader));
            }
            // Looked up before reading: what was written before the end has been read.
            if !reader.request.follow || ended || reader.left == 0 {
                return None;
            }
            let mut written = reader.worker.log(&reader.request.container).subscribe();
            let next = reader.next;
            let _ = tokio::time::timeout(FOLLOW_CHECK, written.wait_for(|number| *number > next)).await;
        }
    })
    .boxed()
}

impl Reader {
    fn is_running(&self) -> bool {
        self.worker.process(&self.request.container).is_some()
    }

    fn read(&mut self) -> Vec<u8> {
        let mut lines = self.worker.log(&self.request.container).since(self.next);
        if let Some(last) = lines.last() {
            self.next = last.number + 1;
        }
        let restarts = self.worker.with(&self.request.container, |state| state.restarts).unwrap_or(0);
        let wanted = if self.request.previous { restarts.checked_sub(1) } else { Some(restarts) };
        if self.request.previous || self.first {
            // Without `previous` only the present run is shown; before its first line, nothing.
            lines.retain(|line| Some(line.restart) == wanted || (!self.request.previous && line.restart > restarts));
        }
        if std::mem::take(&mut self.first) {
            self.select(&mut lines);
        }
        self.render(&lines)
    }

    fn select(&self, lines: &mut Vec<LogLine>) {
        if let Some(seconds) = self.request.since_seconds.and_then(|s| i64::try_from(s).ok()) {
            let from = jiff::Timestamp::now().as_second().saturating_sub(seconds);
            lines.retain(|line| line.time.as_second() >= from);
        }
        if let Some(count) = self.request.tail_lines.and_then(|n| usize::try_from(n).ok()) {
            lines.drain(..lines.len().saturating_sub(count));
        }
    }

    fn render(&mut self, lines: &[LogLine]) -> Vec<u8> {
        let mut text = Vec::new();
        for line in lines {
            if self.request.timestamps {
                text.extend(line.time.strftime("%Y-%m-%dT%H:%M:%S.%9fZ ").to_string().into_bytes());
            }
            text.extend(&line.text);
            text.push(b'\n');
        }
        text.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= text.len() as u64;
        text
    }
}

async fn exec(request: ExecRequest, target: &Process, env: Vec<(String, String)>) -> Result<ExecStreams, PodError> {
    let (stdin, input) = match request.stdin {
        true => io::pipe().map(|(reader, writer)| (Some(OwnedFd::from(reader)), Some(OwnedFd::from(writer))))?,
        false => (None, None),
    };
    let ((out, stdout), (err, stderr)) = (io::pipe()?, io::pipe()?);
    let stdio = [stdin, Some(stdout.into()), Some(stderr.into())];
    let process = target.exec(request.command, env, stdio, false).await?;
    let read = |fd: io::PipeReader| -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        Ok(Box::new(pipe::Receiver::from_owned_fd(fd.into())?))
    };
    let input = input.map(pipe::Sender::from_owned_fd).transpose()?;
    Ok(ExecStreams {
        stdin: input.map(|sender| Box::new(sender) as Box<dyn AsyncWrite + Send + Unpin>),
        stdout: Some(read(out)?),
        stderr: Some(read(err)?),
        resize: None,
        exit: exit(process),
    })
}

async fn exec_in_terminal(
    request: ExecRequest,
    target: &Process,
    mut env: Vec<(String, String)>,
) -> Result<ExecStreams, PodError> {
    if !env.iter().any(|(name, _)| name == "TERM") {
        env.push(("TERM".into(), "xterm-256color".into()));
    }
    let pty = openpty(None, None).map_err(io::Error::from)?;
    for end in [&pty.master, &pty.slave] {
        // openpty leaves them open for children; only the three standard descriptors are meant for this one.
        nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
            .map_err(io::Error::from)?;
    }
    let stdio = [Some(pty.slave.try_clone()?), Some(pty.slave.try_clone()?), Some(pty.slave)];
    let process = target.exec(request.command, env, stdio, true).await?;
    let terminal = Terminal::new(pty.master)?;
    let resized = terminal.clone();
    Ok(ExecStreams {
        stdin: request.stdin.then(|| Box::new(terminal.clone()) as Box<dyn AsyncWrite + Send + Unpin>),
        stdout: Some(Box::new(terminal)),
        stderr: None,
        resize: Some(Box::new(move |columns, rows| {
            let _ = sys::set_terminal_size(resized.fd.get_ref(), rows, columns);
        })),
        exit: exit(process),
    })
}

/// Waits for a command; dropped before its end, it kills it.
fn exit(process: Process) -> BoxFuture<'static, io::Result<i32>> {
    struct Guard(Process);
    impl Drop for Guard {
        fn drop(&mut self) {
            if self.0.ended().is_none() {
                self.0.signal(Signal::SIGKILL);
            }
        }
    }
    let guard = Guard(process);
    Box::pin(async move { Ok(exit_code(guard.0.wait().await)) })
}

/// The lab's end of a pseudo-terminal.
#[derive(Clone)]
struct Terminal {
    fd: Arc<AsyncFd<OwnedFd>>,
}

impl Terminal {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        Ok(Self { fd: Arc::new(sys::watch_fd(fd)?) })
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(context))?;
            let read = guard.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), buffer.initialize_unfilled())?));
            match read {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // The last user of the terminal has gone: its end.
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(context))?;
            if let Ok(written) = guard.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), bytes)?)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A terminal's input cannot be closed; the character that means its end is typed instead.
        self.poll_write(context, &[4]).map_ok(drop)
    }
}
