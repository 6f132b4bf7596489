//! `weft up`: opens the ports, starts the lab in namespaces of its own, tells what happens, and ends it.
//!
//! Reading order: this file (options and the order of steps), [`programs`] (are the other programs there), [`building`] (how far
//! cargo is with them), [`progress`] (what the lab tells, until it is ready), [`detach`] (in the background).

mod building;
mod detach;
mod programs;
mod progress;

use crate::connect;
use anyhow::{Context, bail};
use progress::{Outcome, Screen};
use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};
use weft_node::config::LabConfig;
use weft_node::host::{self, Running, StateFolder};
use weft_node::lab::{LabOptions, NodePort, Published};
use weft_node::node_ports;

/// Service that `--port` leads to.
const GATEWAY: (&str, &str, u16) = ("istio-system", "istio-ingressgateway", 80);
/// Config file that is used when it is there and no other is named.
const CONFIG: &str = "weft-lab.yaml";
/// How many node ports can be reached from the machine: those of a gateway, and some.
const NODE_PORTS: usize = 10;
/// How long the lab gets to end by itself.
const END: Duration = Duration::from_secs(5);
/// Level or filter of the lab's own log.
const LOG_FILTER: &str = "WEFT_LOG";

/// Start the lab: control plane, gateway, and Bookinfo with a sidecar beside each of its services.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Port of 127.0.0.1 that leads to the ingress gateway; 0 = any free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Port of 127.0.0.1 of the Kubernetes API; 0 = any free one
    #[arg(long, default_value_t = 0)]
    api_port: u16,
    /// Further ports of 127.0.0.1 that lead to services, as HOST-PORT:SERVICE[.NAMESPACE]:PORT
    #[arg(long, value_name = "SPEC", value_parser = publish_spec)]
    publish: Vec<Publish>,
    /// Files or folders of objects to start with
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Start without Bookinfo
    #[arg(long)]
    no_bookinfo: bool,
    /// With hosts of the world outside: httpbin.org, edition.cnn.com, www.google.com, *.wikipedia.org
    #[arg(long)]
    outside: bool,
    /// Addresses of pods: of IPv4, or of both families
    #[arg(long, value_enum, default_value_t = IpFamily::Ipv4, value_name = "FAMILY")]
    ip_family: IpFamily,
    /// Programs for your own images [default: weft-lab.yaml, if there is one here]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// State directory [default: $WEFT_HOME, else $XDG_STATE_HOME/weft, else ~/.local/state/weft]. Named here, it keeps the
    /// objects for the next lab
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// A real Envoy, for pods annotated weft.dev/proxy-engine: envoy
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// What runs in proxies whose annotation weft.dev/proxy-engine does not say it
    #[arg(long, value_enum, default_value_t = Engine::Weft)]
    engine: Engine,
    /// Go to the background once everything is ready
    #[arg(short, long)]
    detach: bool,
    /// How long to wait for everything to be ready
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = weft_core::duration::parse)]
    timeout: Duration,
    /// Set by --detach for the process in the background
    #[arg(long, hide = true)]
    in_background: bool,
}

/// Families of addresses, by the words of kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum IpFamily {
    /// IPv4 alone
    Ipv4,
    /// IPv4 and IPv6
    Dual,
}

/// A proxy's engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    /// Weft's own
    Weft,
    /// The program named by --envoy
    Envoy,
}

/// One `--publish`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Publish {
    host_port: u16,
    service: String,
    namespace: String,
    port: u16,
}

fn publish_spec(text: &str) -> Result<Publish, String> {
    let wrong = || format!("{text:?} is not HOST-PORT:SERVICE[.NAMESPACE]:PORT, such as 9000:tcp-echo.default:9000");
    let [host_port, service, port] = text.split(':').collect::<Vec<_>>()[..] else { return Err(wrong()) };
    let (service, namespace) = service.split_once('.').unwrap_or((service, "default"));
    let number = |text: &str| text.parse::<u16>().ok();
    match (number(host_port), number(port)) {
        (Some(host_port), Some(port)) if port > 0 && !service.is_empty() && !namespace.is_empty() => {
            Ok(Publish { host_port, service: service.into(), namespace: namespace.into(), port })
        }
        _ => Err(wrong()),
    }
}

impl Args {
    fn folder(&self) -> PathBuf {
        self.state.clone().unwrap_or_else(connect::home)
    }
}

/// The hidden command under which the lab itself runs. Must come before the program has made a thread.
pub fn lab_main() -> Option<ExitCode> {
    (std::env::args_os().nth(1)? == weft_node::init::COMMAND).then(|| {
        let filter = std::env::var(LOG_FILTER).unwrap_or_else(|_| "info".into());
        if let Err(error) = weft_runtime::logging::init(&filter, weft_runtime::logging::Format::Text) {
            eprintln!("{LOG_FILTER}: {error}");
        }
        weft_node::lab::main()
    })
}

/// Runs until Ctrl-C, or, with `--detach`, until everything is ready.
///
/// # Errors
/// When the lab cannot be started, with what to do about it.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let state = StateFolder::open(&args.folder())?;
    if args.detach {
        return detach::run(&args, &state);
    }
    if args.in_background {
        // Away from the terminal of the shell that started us; fails only for a leader of a session, who is away already.
        let _ = nix::unistd::setsid();
    }
    let mut lock = state.lock()?;
    if args.engine == Engine::Envoy && args.envoy.is_none() {
        bail!("--engine envoy needs the program: add --envoy /path/to/envoy");
    }
    if args.ip_family == IpFamily::Dual && !std::path::Path::new("/proc/sys/net/ipv6").exists() {
        bail!("this machine's kernel has no IPv6: leave --ip-family out");
    }
    let config = config_file(&args)?;
    let programs = programs::find()?;
    let sockets = Sockets::open(&args)?;
    let url = format!("http://127.0.0.1:{}", sockets.gateway_port);
    let api = format!("https://127.0.0.1:{}", sockets.api_port);
    let mut running = Running { pid: std::process::id(), url: url.clone(), api, ready: false };
    lock.write(&running).context("cannot write the lock file")?;

    let (lifeline, kept) = std::io::pipe().context("cannot make a pipe")?;
    let options = lab_options(&args, &state, &sockets, config, programs, &lifeline)?;
    let log = File::create(state.log()).with_context(|| format!("cannot write {}", state.log().display()))?;
    let lifeline = OwnedFd::from(lifeline);
    let mut inherited = vec![&sockets.api, &lifeline];
    inherited.extend(&sockets.published);
    inherited.extend(sockets.node_ports.iter().map(|(_, socket)| socket));
    let mut lab = weft_node::init::start(&options, &inherited, Stdio::from(log)).context("cannot start the lab")?;
    // The lab has them now; a listener that we kept would accept connections that nobody answers.
    drop((sockets, lifeline));

    let screen = Screen::new(begun, url, !args.no_bookinfo, state.clone());
    let outcome = progress::follow(&mut lab, screen, args.timeout, || {
        running.ready = true;
        // Only `--detach` waits for this word; without it, it ends by its own time-out.
        let _ = lock.write(&running);
    });
    drop(kept);
    let ended = end(&mut lab);
    lock.clean_up(&state);
    ended?;
    match outcome? {
        Outcome::Stopped => Ok(ExitCode::SUCCESS),
        Outcome::Failed(why) => bail!("{why}\nThe lab's own log is in {}", state.log().display()),
    }
}

fn config_file(args: &Args) -> anyhow::Result<Option<PathBuf>> {
    let path = args.config.clone().or_else(|| Some(PathBuf::from(CONFIG)).filter(|path| path.exists()));
    // Read here for its mistakes; the lab reads it again.
    path.map(|path| {
        LabConfig::read(&path)?;
        Ok(std::fs::canonicalize(path)?)
    })
    .transpose()
}

/// The listening sockets, opened on the machine before the lab enters its namespaces.
struct Sockets {
    api: OwnedFd,
    api_port: u16,
    gateway_port: u16,
    published: Vec<OwnedFd>,
    node_ports: Vec<(u16, OwnedFd)>,
}

impl Sockets {
    fn open(args: &Args) -> anyhow::Result<Self> {
        let port_of = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
        let api = host::listen(args.api_port, "--api-port")?;
        let gateway = host::listen(args.port, "--port")?;
        let (api_port, gateway_port) = (port_of(&api)?, port_of(&gateway)?);
        let mut published = vec![OwnedFd::from(gateway)];
        for publish in &args.publish {
            published.push(host::listen(publish.host_port, "--publish")?.into());
        }
        let node_ports = open_node_ports();
        Ok(Self { api: api.into(), api_port, gateway_port, published, node_ports })
    }
}

/// Sockets on free ports of the range of node ports. Labs begin at different places, so that they seldom meet; fewer than
/// wanted is no error, then some node ports are the lab's alone.
fn open_node_ports() -> Vec<(u16, OwnedFd)> {
    let start = std::process::id() as usize * NODE_PORTS % node_ports::RANGE.len();
    let ports = node_ports::RANGE.skip(start).chain(node_ports::RANGE.take(start));
    let open = |port: u16| Some((port, OwnedFd::from(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?)));
    ports.filter_map(open).take(NODE_PORTS).collect()
}

fn lab_options(
    args: &Args,
    state: &StateFolder,
    sockets: &Sockets,
    config: Option<PathBuf>,
    programs: PathBuf,
    lifeline: &std::io::PipeReader,
) -> anyhow::Result<LabOptions> {
    let (namespace, service, port) = GATEWAY;
    let gateway = Publish { host_port: args.port, service: service.into(), namespace: namespace.into(), port };
    let targets = std::iter::once(&gateway).chain(&args.publish);
    let published = targets.zip(&sockets.published).map(|(target, socket)| Published {
        fd: socket.as_raw_fd(),
        namespace: target.namespace.clone(),
        service: target.service.clone(),
        port: target.port,
    });
    let full = |path: &PathBuf| std::fs::canonicalize(path).with_context(|| format!("cannot read {}", path.display()));
    Ok(LabOptions {
        api_fd: sockets.api.as_raw_fd(),
        api_port: sockets.api_port,
        admin_token: random_token()?,
        kubeconfig: state.kubeconfig(),
        published: published.collect(),
        node_ports: sockets
            .node_ports
            .iter()
            .map(|(port, socket)| NodePort { fd: socket.as_raw_fd(), port: *port })
            .collect(),
        lifeline_fd: lifeline.as_raw_fd(),
        run_folder: state.run(),
        programs,
        config,
        envoy: args.envoy.as_ref().map(|path| programs::envoy(path)).transpose()?,
        envoy_by_default: args.engine == Engine::Envoy,
        mesh: true,
        objects: args.state.as_ref().map(|_| state.objects()),
        bookinfo: !args.no_bookinfo,
        outside: args.outside,
        ipv6: args.ip_family == IpFamily::Dual,
        manifests: args.files.iter().map(full).collect::<anyhow::Result<_>>()?,
    })
}

/// 256 bits from the kernel, in hexadecimal.
fn random_token() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 32];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("no random numbers")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Waits for the end of the lab, whose lifeline is closed: when its keeper has ended, nothing of it is left.
fn end(lab: &mut Child) -> anyhow::Result<()> {
    let deadline = Instant::now() + END;
    while lab.try_wait().context("cannot wait for the lab")?.is_none() {
        if Instant::now() > deadline {
            lab.kill().context("cannot end the lab")?;
            lab.wait().context("cannot wait for the lab")?;
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publish_specs() {
        let publish = publish_spec("9000:tcp-echo.istio-io:31400").unwrap();
        assert_eq!((publish.host_port, publish.port), (9000, 31400));
        assert_eq!((publish.service.as_str(), publish.namespace.as_str()), ("tcp-echo", "istio-io"));
        assert_eq!(publish_spec("0:web:80").unwrap().namespace, "default");
        for bad in ["", "9000", "9000:web", "x:web:80", "1:web:0", "1::80", "1:web.:80", "1:a:2:3"] {
            assert!(publish_spec(bad).is_err(), "{bad}");
        }
    }
}
