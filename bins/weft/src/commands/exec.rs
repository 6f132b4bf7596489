//! `weft exec`: runs a command in a container, with its input, outputs and exit code.

use crate::cli::Connection;
use crate::connect::connect;
use crate::target;
use anyhow::{Context, bail};
use nix::sys::termios::{self, SetArg, Termios};
use std::io::IsTerminal;
use std::process::ExitCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use weft_store::client::{ExecOptions, ExecSession, TerminalResizer};

/// Bytes moved at once.
const CHUNK: usize = 32 * 1024;

/// Runs a command in a container; its exit code becomes ours.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// POD, deploy/NAME, sts/NAME, svc/NAME …
    #[arg(value_name = "POD|deploy/NAME")]
    target: String,
    /// Container [default: the first that is not the proxy]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Pass our input to the command
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// The command
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let target = target::parse(&args.target, args.namespace.as_deref(), false)?;
    let tty = args.tty && std::io::stdin().is_terminal();
    if args.tty && !tty {
        crate::output::warn("the input is not a terminal; the command gets none");
    }
    let client = connect(&connection).await?;
    let pod = target::resolve(&client, &target).await?;
    let container = target::container(&pod, args.container.as_deref())?;
    let phase = target::phase(&pod);
    if phase != "Running" {
        bail!("pod {}/{} is {phase}, not Running; `weft get pods` shows why", pod.namespace(), pod.name());
    }
    // As kubectl: without -i a command has no input, so that a loop's own input is not eaten.
    let options = ExecOptions { container: Some(container), command: args.command, stdin: args.stdin, tty };
    let session = client.exec(pod.namespace(), pod.name(), &options).await;
    let session = session.with_context(|| format!("cannot run in pod {}/{}", pod.namespace(), pod.name()))?;
    let code = attach(session, tty).await?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Moves bytes until the command ends; gives its exit code.
async fn attach(mut session: ExecSession, tty: bool) -> anyhow::Result<i32> {
    let _raw = if tty { Some(RawTerminal::enter()?) } else { None };
    let resizer = session.terminal().filter(|_| tty);
    let (stdin, stdout, stderr) = (session.stdin(), session.stdout(), session.stderr());
    // Both only end when they are called off: a terminal's input never does.
    let input = tokio::spawn(feed(stdin));
    let sizes = tokio::spawn(follow_size(resizer));
    let outputs = async { tokio::try_join!(copy(stdout, tokio::io::stdout()), copy(stderr, tokio::io::stderr())) };
    let outputs = outputs.await;
    let code = session.exit_code().await;
    input.abort();
    sizes.abort();
    outputs.context("cannot write the command's output")?;
    Ok(code?)
}

async fn copy(from: Option<impl AsyncRead + Unpin>, mut to: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
        // What a command has written must be seen before it ends.
        to.flush().await?;
    }
}

async fn feed(to: Option<impl AsyncWrite + Unpin>) {
    if let Some(mut to) = to {
        // A command that ends without reading its input is no error.
        let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut to).await;
        let _ = to.shutdown().await;
    }
}

async fn follow_size(resizer: Option<TerminalResizer>) {
    let (Some(mut resizer), Ok(mut changes)) = (resizer, signal(SignalKind::window_change())) else { return };
    loop {
        if let Some((columns, rows)) = terminal_size() {
            resizer.resize(columns, rows);
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

/// Columns and rows of our terminal.
fn terminal_size() -> Option<(u16, u16)> {
    let (columns, rows) = terminal_size::terminal_size()?;
    Some((columns.0, rows.0))
}

/// Our terminal in raw mode: keys go to the command one by one. Set back when dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> anyhow::Result<Self> {
        let before = termios::tcgetattr(std::io::stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).context("cannot set the terminal")?;
        Ok(RawTerminal(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // There is nobody to tell when the terminal has gone.
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}
