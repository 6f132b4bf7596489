//! What the lab tells while it starts, the wait for the first page, the summary, and the wait for its end.

use crate::output::{self, Table};
use anyhow::Context;
use std::io::IsTerminal;
use std::process::{Child, ChildStdout};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use weft_node::event::{Event, PodLine};
use weft_node::host::StateFolder;

/// Pause between looks at the first page.
const LOOK: Duration = Duration::from_millis(25);
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How it ended.
pub enum Outcome {
    /// The user said so.
    Stopped,
    /// The lab could not start, or ended by itself.
    Failed(String),
}

/// What the user sees.
pub struct Screen {
    begun: Instant,
    url: String,
    bookinfo: bool,
    state: StateFolder,
    terminal: bool,
    pods: Vec<PodLine>,
    /// Pods that have been told to be ready.
    told: usize,
}

impl Screen {
    /// `url` is the gateway's.
    pub fn new(begun: Instant, url: String, bookinfo: bool, state: StateFolder) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { begun, url, bookinfo, state, terminal, pods: Vec::new(), told: 0 }
    }

    fn step(&self, text: &str) {
        let time = format!("{:>6} ms", self.begun.elapsed().as_millis());
        let time = if self.terminal { format!("\x1b[2m{time}\x1b[0m") } else { time };
        // Someone who closes our output does not want to stop the lab by that.
        let _ = output::line(format!("{time}  {text}"));
    }

    /// Takes a message; `Err` when the lab cannot go on.
    fn hear(&mut self, line: &str) -> Result<(), String> {
        match serde_json::from_str(line) {
            Ok(Event::Step { text }) => self.step(&text),
            Ok(Event::Warning { text }) => output::warn(text),
            Ok(Event::Failed { text }) => return Err(text),
            Ok(Event::Pods { pods }) => {
                self.pods = pods;
                let ready = self.ready_pods();
                if ready > self.told {
                    self.step(&format!("{ready} of {} pods are ready", self.pods.len()));
                }
                self.told = ready;
            }
            // Before the lab is a lab it can only say why not.
            Err(_) => {
                let value: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
                return Err(value["error"].as_str().unwrap_or(line).to_string());
            }
        }
        Ok(())
    }

    fn ready_pods(&self) -> usize {
        self.pods.iter().filter(|pod| pod.is_ready()).count()
    }

    fn all_ready(&self) -> bool {
        !self.pods.is_empty() && self.ready_pods() == self.pods.len()
    }

    fn page(&self) -> String {
        if self.bookinfo { format!("{}/productpage", self.url) } else { self.url.clone() }
    }

    fn summary(&self) -> anyhow::Result<()> {
        let mut table = Table::new(["NAMESPACE", "POD", "READY", "STATUS", "ADDRESS"]);
        for pod in &self.pods {
            let ready = format!("{}/{}", pod.ready, pod.containers);
            table.row([&pod.namespace, &pod.name, &ready, &pod.status, &pod.address]);
        }
        output::line("")?;
        table.print()?;
        output::line("")?;
        if self.bookinfo {
            output::line(format!("The product page: {}", self.page()))?;
        } else {
            output::line(format!(
                "The gateway: {} (it answers once a Gateway and a VirtualService lead somewhere)",
                self.page()
            ))?;
        }
        output::line("")?;
        output::line("Three things to try next:")?;
        for (number, text) in self.hints().iter().enumerate() {
            output::line(format!("  {}. {text}", number + 1))?;
        }
        output::line("")?;
        output::line("Ctrl-C stops everything.")
    }

    fn hints(&self) -> [String; 3] {
        let (kubeconfig, weft) = (self.state.kubeconfig(), own_name());
        let kubectl =
            format!("export KUBECONFIG={}; kubectl get pods     any Kubernetes client works", kubeconfig.display());
        if !self.bookinfo {
            return [
                format!("{weft} apply -f samples/httpbin/httpbin.yaml     a service with a sidecar"),
                format!("{weft} status     what runs"),
                kubectl,
            ];
        }
        [
            format!(
                "{weft} apply -f samples/bookinfo/networking/destination-rule-all.yaml \
                 -f samples/bookinfo/networking/virtual-service-all-v1.yaml     all traffic to v1: no stars any more"
            ),
            format!("{weft} proxy-status     every proxy and whether it has its configuration"),
            kubectl,
        ]
    }

    fn not_ready(&self) -> String {
        let lines: Vec<String> = self
            .pods
            .iter()
            .filter(|pod| !pod.is_ready())
            .map(|pod| format!("  {}/{}: {} {}", pod.namespace, pod.name, pod.status, pod.message))
            .collect();
        lines.join("\n")
    }
}

/// How the user can call this program from where they are: `weft` where that finds it, else its path.
fn own_name() -> String {
    let Ok(own) = std::env::current_exe() else { return "weft".into() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let same = |folder: std::path::PathBuf| std::fs::canonicalize(folder.join("weft")).is_ok_and(|found| found == own);
    if std::env::split_paths(&path).any(same) {
        return "weft".into();
    }
    let here = std::env::current_dir().unwrap_or_default();
    own.strip_prefix(here).unwrap_or(&own).display().to_string()
}

/// Follows the lab until it ends or the user ends it. `ready` is called once, when everything is up.
///
/// # Errors
/// When signals or the lab's output cannot be read.
pub fn follow(lab: &mut Child, mut screen: Screen, limit: Duration, ready: impl FnMut()) -> anyhow::Result<Outcome> {
    let output = lab.stdout.take().context("the lab has no output")?;
    // One thread, and this one: the kernel ties the lab's life to the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let messages = BufReader::new(receiver(output)?).lines();
        follow_messages(messages, &mut screen, limit, ready).await
    })
}

fn receiver(output: ChildStdout) -> anyhow::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(output.into()).context("cannot read what the lab tells")
}

async fn follow_messages(
    mut messages: Lines<BufReader<pipe::Receiver>>,
    screen: &mut Screen,
    limit: Duration,
    mut ready: impl FnMut(),
) -> anyhow::Result<Outcome> {
    let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
        .map(|kind| signal(kind).context("cannot listen for signals"))
        .into_iter()
        .collect::<anyhow::Result<Vec<_>>>()?;
    let deadline = tokio::time::sleep(limit);
    tokio::pin!(deadline);
    let page = first_page(screen.page());
    tokio::pin!(page);
    let (mut up, mut page_seen, mut late) = (false, !screen.bookinfo, false);
    loop {
        tokio::select! {
            message = messages.next_line() => match message.context("cannot read what the lab tells")? {
                Some(line) => {
                    if let Err(why) = screen.hear(&line) {
                        return Ok(Outcome::Failed(why));
                    }
                }
                None => return Ok(Outcome::Failed("the lab has ended by itself".into())),
            },
            () = any(&mut signals) => {
                output::note_plain("\nStopping …");
                return Ok(Outcome::Stopped);
            }
            milliseconds = &mut page, if !page_seen => {
                page_seen = true;
                screen.step(&format!("the product page answers (in {milliseconds} ms)"));
            }
            () = &mut deadline, if !up && !late => {
                late = true;
                output::warn(format!("not everything is ready after {} s:\n{}", limit.as_secs(), screen.not_ready()));
            }
        }
        if !up && page_seen && screen.all_ready() {
            up = true;
            ready();
            screen.step("everything is ready");
            // A closed output is no reason to stop.
            let _ = screen.summary();
        }
    }
}

async fn any(signals: &mut [tokio::signal::unix::Signal]) {
    let waits = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures_util::future::select_all(waits).await;
}

/// Looks at a page until it answers 200; returns how long that answer took, in milliseconds.
async fn first_page(url: String) -> u128 {
    loop {
        let begun = Instant::now();
        if let Ok(Ok(200)) = tokio::time::timeout(ANSWER, status_of(&url)).await {
            return begun.elapsed().as_millis();
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Status code of a GET, by the plainest means: one request, one connection.
async fn status_of(url: &str) -> anyhow::Result<u16> {
    let rest = url.strip_prefix("http://").context("not http")?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    let mut stream = TcpStream::connect(host).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: weft-up\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    let status = std::str::from_utf8(&head)?.get(9..12).context("no status")?.parse()?;
    // Read to the end, so that the answer is not cut off in the middle and logged as a failure.
    let mut rest = stream.take(4 << 20);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hears_the_lab() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let mut screen = Screen::new(Instant::now(), "http://127.0.0.1:1".into(), true, state);
        let pod = |ready: usize| PodLine {
            namespace: "default".into(),
            name: "a".into(),
            ready,
            containers: 2,
            address: String::new(),
            status: "PodInitializing".into(),
            message: "waiting for istio-proxy: no identity".into(),
        };
        let tell = |pods: Vec<PodLine>| serde_json::to_string(&Event::Pods { pods }).unwrap();
        assert!(!screen.all_ready(), "no pods yet is not ready");
        screen.hear(&tell(vec![pod(1)])).unwrap();
        assert!(!screen.all_ready() && screen.not_ready().contains("no identity"));
        screen.hear(&tell(vec![pod(2)])).unwrap();
        assert!(screen.all_ready());
        assert_eq!(screen.hear(r#"{"error":"no namespaces"}"#), Err("no namespaces".into()));
        assert_eq!(screen.hear(r#"{"event":"failed","text":"x"}"#), Err("x".into()));
    }
}
