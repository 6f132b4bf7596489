//! `weft dashboard`: a port of this machine that leads to a page in the cluster, over the API server's port-forward.

use crate::cli::Connection;
use crate::connect::connect;
use crate::{output, target};
use anyhow::{Context, bail};
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use weft_core::well_known::ROOT_NAMESPACE;
use weft_k8s_api::Object;
use weft_store::ApiClient;

/// Pages of add-ons: name, label that selects its pod, port, path. Those of Istio's `samples/addons`.
const PAGES: [(&str, &str, u16, &str); 6] = [
    ("prometheus", "app=prometheus", 9090, ""),
    ("grafana", "app=grafana", 3000, ""),
    ("kiali", "app=kiali", 20_001, "/kiali"),
    ("jaeger", "app=jaeger", 16_686, ""),
    ("zipkin", "app=zipkin", 9411, ""),
    ("skywalking", "app=skywalking-ui", 8080, ""),
];
/// Port of a proxy's admin page, and of the control plane's debug endpoints.
const PROXY_ADMIN: u16 = 15_000;
const CONTROL_PLANE: u16 = 15_014;
/// Connections at a time.
const CONNECTIONS: usize = 64;

/// Leads a port of this machine to a page in the cluster, until Ctrl-C.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// prometheus, grafana, kiali, jaeger, zipkin, skywalking; proxy (or envoy) POD: its admin page; istiod: metrics and debug pages
    page: String,
    /// Pod, or deploy/NAME, of a proxy's page
    target: Option<String>,
    /// Namespace of the page's pod [default: istio-system; of a proxy's the kubeconfig's]
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Label that selects the page's pod, in place of the usual one
    #[arg(short = 'l', long, value_name = "LABEL=VALUE")]
    selector: Option<String>,
    /// Port of this machine [default: the page's own if it is free, else any]
    #[arg(short, long, value_name = "PORT")]
    port: Option<u16>,
    /// Address of this machine
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// As istioctl has it: the address is printed, a browser is never opened
    #[arg(long, action = clap::ArgAction::Set, default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    browser: bool,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let client = Arc::new(connect(&connection).await?);
    let (pod, port, path) = page(&client, &args).await?;
    let listener = listen(args.address, args.port, port).await?;
    let place = listener.local_addr().context("cannot read the port")?;
    let host = if place.ip().is_loopback() { "localhost".to_string() } else { place.ip().to_string() };
    output::line(format!("http://{host}:{}{path}", place.port()))?;
    if args.browser {
        output::warn("a browser is not opened from here");
    }
    serve(&client, &listener, pod, port).await
}

/// The pod, the port and the path that are meant.
async fn page(client: &ApiClient, args: &Args) -> anyhow::Result<(Object, u16, &'static str)> {
    let namespace = args.namespace.as_deref();
    if matches!(args.page.as_str(), "proxy" | "envoy") {
        let name = args.target.as_deref().with_context(|| format!("which pod? weft dashboard {} POD", args.page))?;
        let pod = target::resolve(client, &target::parse(name, namespace, true)?).await?;
        return Ok((pod, PROXY_ADMIN, ""));
    }
    if let Some(target) = &args.target {
        bail!("{target}: the page {} is of no pod that can be named; leave it out", args.page);
    }
    let (labels, port, path) = match PAGES.iter().find(|(name, ..)| *name == args.page) {
        Some((_, labels, port, path)) => (*labels, *port, *path),
        None if matches!(args.page.as_str(), "istiod" | "controlz") => ("app=istiod", CONTROL_PLANE, "/metrics"),
        None => {
            let names: Vec<&str> = PAGES.iter().map(|(name, ..)| *name).collect();
            bail!("no page {:?}; there are {}, istiod, and proxy POD", args.page, names.join(", "));
        }
    };
    let (labels, namespace) = (args.selector.as_deref().unwrap_or(labels), namespace.unwrap_or(ROOT_NAMESPACE));
    let mut pods = target::pods(client, Some(namespace), labels).await?;
    pods.sort_by_key(|pod| (!target::is_ready(pod), pod.name().to_string()));
    let pod = pods.into_iter().next();
    let pod =
        pod.with_context(|| format!("no pod of namespace {namespace} has {labels}; is {} installed?", args.page))?;
    Ok((pod, port, path))
}

/// The port that is asked for, or the page's own, or another if somebody has that.
async fn listen(address: IpAddr, wanted: Option<u16>, own: u16) -> anyhow::Result<TcpListener> {
    if let Some(port) = wanted {
        return TcpListener::bind((address, port)).await.with_context(|| format!("cannot listen on {address}:{port}"));
    }
    if let Ok(listener) = TcpListener::bind((address, own)).await {
        return Ok(listener);
    }
    TcpListener::bind((address, 0)).await.with_context(|| format!("cannot listen on {address}"))
}

async fn serve(client: &Arc<ApiClient>, listener: &TcpListener, pod: Object, port: u16) -> anyhow::Result<ExitCode> {
    let (limit, pod) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(pod));
    loop {
        let permit = Arc::clone(&limit).acquire_owned().await.context("closed")?;
        let connection = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        };
        let Ok((connection, _)) = connection else { continue };
        let (client, pod) = (Arc::clone(client), Arc::clone(&pod));
        tokio::spawn(async move {
            if let Err(error) = carry(&client, &pod, port, connection).await {
                output::warn(format!("port {port} of pod {}/{}: {error:#}", pod.namespace(), pod.name()));
            }
            drop(permit);
        });
    }
}

async fn carry(client: &ApiClient, pod: &Object, port: u16, mut connection: TcpStream) -> anyhow::Result<()> {
    let mut stream = client.port_forward(pod.namespace(), pod.name(), port).await?;
    // Whoever closes first, it is no error: browsers keep connections and drop them.
    let _ = tokio::io::copy_bidirectional(&mut connection, &mut stream).await;
    Ok(())
}
