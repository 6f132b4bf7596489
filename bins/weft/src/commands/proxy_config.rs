//! `weft proxy-config`: what a proxy, ours or Envoy, really has.

mod log;

use crate::cli::Connection;
use crate::commands::get::document;
use crate::connect::connect;
use crate::dump::{self, Dump, clusters, ecds, endpoints, listeners, routes, secrets};
use crate::output::{self, Format, Table};
use crate::{forward, target};
use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use std::io::Read as _;
use std::process::ExitCode;
use std::time::SystemTime;
use weft_core::well_known::port;
use weft_k8s_api::Object;
use weft_store::ApiClient;

/// Largest config dump of a file, bytes.
const MAX_FILE: u64 = 512 << 20;

/// Shows the configuration of a proxy.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What of it.
    #[command(subcommand)]
    what: What,
}

/// Whose configuration, and how it is shown.
#[derive(Debug, clap::Args)]
struct Common {
    /// POD, POD.NAMESPACE, deploy/NAME, deploy/NAME.NAMESPACE
    #[arg(value_name = "POD[.NS]", required_unless_present = "file")]
    target: Option<String>,
    /// A config dump in place of a proxy: of its admin page, or of a bug report; - is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "target")]
    file: Option<String>,
    /// Namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Listeners and their filter chains
    #[command(aliases = ["listeners", "l"])]
    Listener {
        #[command(flatten)]
        common: Common,
        /// Only of this port
        #[arg(long)]
        port: Option<u16>,
        /// Only of this address
        #[arg(long)]
        address: Option<String>,
    },
    /// Routes
    #[command(aliases = ["routes", "r"])]
    Route {
        #[command(flatten)]
        common: Common,
        /// Only of this route configuration
        #[arg(long)]
        name: Option<String>,
    },
    /// Clusters
    #[command(aliases = ["clusters", "c"])]
    Cluster {
        #[command(flatten)]
        common: Common,
        /// Only of this host
        #[arg(long)]
        fqdn: Option<String>,
        /// Only of this port
        #[arg(long)]
        port: Option<u16>,
        /// Only of this subset
        #[arg(long)]
        subset: Option<String>,
        /// Only inbound or outbound
        #[arg(long)]
        direction: Option<String>,
    },
    /// Endpoints and their health
    #[command(aliases = ["endpoints", "ep"])]
    Endpoint {
        #[command(flatten)]
        common: Common,
        /// Only of this cluster
        #[arg(long)]
        cluster: Option<String>,
        /// Only of this address
        #[arg(long)]
        address: Option<String>,
        /// Only of this port
        #[arg(long)]
        port: Option<u16>,
        /// Only with this health
        #[arg(long)]
        status: Option<String>,
    },
    /// Certificates and trusted roots
    #[command(aliases = ["secrets", "s"])]
    Secret {
        #[command(flatten)]
        common: Common,
    },
    /// Filters whose configuration comes by itself (Envoy)
    Ecds {
        #[command(flatten)]
        common: Common,
    },
    /// What it asked for, where it takes only the configuration that it uses
    OnDemand {
        #[command(flatten)]
        common: Common,
    },
    /// What it was started with
    #[command(alias = "b")]
    Bootstrap {
        #[command(flatten)]
        common: Common,
    },
    /// Levels of its log; sets them with --level
    #[command(alias = "o")]
    Log {
        #[command(flatten)]
        common: Common,
        /// LEVEL for all, LOGGER:LEVEL for one, several separated by commas; levels are trace, debug, info, warning, error,
        /// critical, off
        #[arg(long, value_name = "LEVELS", value_parser = log::levels)]
        level: Option<log::Levels>,
        /// Set all to warning
        #[arg(short, long, conflicts_with = "level")]
        reset: bool,
    },
    /// All of it
    #[command(alias = "a")]
    All {
        #[command(flatten)]
        common: Common,
    },
}

impl What {
    fn common(&self) -> &Common {
        match self {
            What::Listener { common, .. }
            | What::Route { common, .. }
            | What::Cluster { common, .. }
            | What::Endpoint { common, .. }
            | What::Secret { common }
            | What::Ecds { common }
            | What::OnDemand { common }
            | What::Bootstrap { common }
            | What::Log { common, .. }
            | What::All { common } => common,
        }
    }
}

/// What was read from the proxy.
struct Read {
    dump: Dump,
    /// The live list of hosts, where the proxy has one.
    live: Option<Value>,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let common = args.what.common();
    let read = match &common.file {
        Some(file) => of_file(file, &args.what)?,
        None => {
            let target = common.target.as_deref().unwrap_or_default();
            let target = target::parse(target, common.namespace.as_deref(), true)?;
            let client = connect(&connection).await?;
            let pod = target::resolve(&client, &target).await?;
            match &args.what {
                What::OnDemand { .. } => return on_demand(&client, &pod, common.output).await,
                What::Log { level, reset, .. } => {
                    let levels = if *reset { log::Levels::all("warning") } else { level.clone().unwrap_or_default() };
                    return log::run(&client, &pod, &levels, common.output).await;
                }
                _ => {}
            }
            read(&client, &pod, matches!(args.what, What::Endpoint { .. } | What::All { .. })).await?
        }
    };
    if matches!(args.what, What::Bootstrap { .. }) {
        let found = read.dump.bootstrap().context("the proxy's dump has no bootstrap")?;
        document(&dump::canonical(found), common.output == Format::Yaml)?;
    } else if common.output == Format::Table {
        show(&tables(&args.what, &read))?;
    } else {
        document(&value(&args.what, &read), common.output == Format::Yaml)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A config dump that was kept.
fn of_file(file: &str, what: &What) -> anyhow::Result<Read> {
    if matches!(what, What::OnDemand { .. } | What::Log { .. }) {
        bail!("a config dump does not hold that; name a proxy");
    }
    let read = |input: &mut dyn std::io::Read| {
        let mut bytes = Vec::new();
        input.take(MAX_FILE).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = match file {
        "-" => read(&mut std::io::stdin().lock()),
        path => std::fs::File::open(path).and_then(|mut file| read(&mut file)),
    };
    let bytes = bytes.with_context(|| format!("cannot read {file}"))?;
    let dump = Dump::parse(&bytes).map_err(|why| anyhow::anyhow!("{file}: {why}"))?;
    Ok(Read { dump, live: None })
}

async fn on_demand(client: &ApiClient, pod: &Object, output: Format) -> anyhow::Result<ExitCode> {
    let body = forward::get(client, pod, port::ADMIN, "/on_demand").await.with_context(|| {
        format!("pod {}/{} has no proxy that can take configuration on demand", pod.namespace(), pod.name())
    })?;
    let page: Value = serde_json::from_slice(&body).context("/on_demand is no JSON")?;
    match output {
        Format::Table => dump::on_demand::table(&page)?.print()?,
        _ => document(&page, output == Format::Yaml)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn read(client: &ApiClient, pod: &Object, wants_hosts: bool) -> anyhow::Result<Read> {
    let body = forward::get(client, pod, port::ADMIN, "/config_dump?include_eds").await.with_context(|| {
        let has_proxy = target::has_proxy(pod);
        let hint = if has_proxy { "is the proxy up?" } else { "the pod has no sidecar (container istio-proxy)" };
        format!("cannot read the configuration of pod {}/{}: {hint}", pod.namespace(), pod.name())
    })?;
    let dump = Dump::parse(&body).map_err(anyhow::Error::msg)?;
    let mut live = None;
    if wants_hosts && let Ok(body) = forward::get(client, pod, port::ADMIN, "/clusters?format=json").await {
        live = serde_json::from_slice(&body).ok().filter(endpoints::is_live);
    }
    Ok(Read { dump, live })
}

impl What {
    fn listeners(&self) -> listeners::Filter {
        match self {
            What::Listener { port, address, .. } => listeners::Filter { port: *port, address: address.clone() },
            _ => listeners::Filter::default(),
        }
    }

    fn routes(&self) -> routes::Filter {
        match self {
            What::Route { name, .. } => routes::Filter { name: name.clone() },
            _ => routes::Filter::default(),
        }
    }

    fn clusters(&self) -> clusters::Filter {
        match self {
            What::Cluster { fqdn, port, subset, direction, .. } => clusters::Filter {
                fqdn: fqdn.clone(),
                port: *port,
                subset: subset.clone(),
                direction: direction.clone(),
            },
            _ => clusters::Filter::default(),
        }
    }

    fn endpoints(&self) -> endpoints::Filter {
        match self {
            What::Endpoint { cluster, address, port, status, .. } => endpoints::Filter {
                cluster: cluster.clone(),
                address: address.clone(),
                port: *port,
                status: status.clone(),
            },
            _ => endpoints::Filter::default(),
        }
    }
}

fn tables(what: &What, read: &Read) -> Vec<Table> {
    let Read { dump, live } = read;
    let cluster = || clusters::table(dump, &what.clusters());
    let listener = || listeners::table(dump, &what.listeners());
    let route = || routes::table(dump, &what.routes());
    let endpoint = || endpoints::table(dump, live.as_ref(), &what.endpoints());
    let secret = || secrets::table(dump, SystemTime::now());
    match what {
        What::Listener { .. } => vec![listener()],
        What::Route { .. } => vec![route()],
        What::Cluster { .. } => vec![cluster()],
        What::Endpoint { .. } => vec![endpoint()],
        What::Secret { .. } => vec![secret()],
        What::Ecds { .. } => vec![ecds::table(dump)],
        What::OnDemand { .. } | What::Bootstrap { .. } | What::Log { .. } => Vec::new(),
        What::All { .. } => vec![cluster(), listener(), route(), endpoint(), secret(), ecds::table(dump)],
    }
}

fn show(tables: &[Table]) -> anyhow::Result<()> {
    if let [only] = tables
        && only.is_empty()
    {
        bail!("the proxy has nothing of that; leave out a filter, or look at `weft proxy-status`");
    }
    for (i, table) in tables.iter().filter(|t| !t.is_empty()).enumerate() {
        if i > 0 {
            output::line("")?;
        }
        table.print()?;
    }
    Ok(())
}

/// The same as JSON, with canonical field names.
fn value(what: &What, read: &Read) -> Value {
    let Read { dump, live } = read;
    let list = |items: Vec<&Value>| Value::Array(items.into_iter().map(dump::canonical).collect());
    match what {
        What::Listener { .. } => list(listeners::items(dump, &what.listeners())),
        What::Route { .. } => list(routes::items(dump, &what.routes())),
        What::Cluster { .. } => list(clusters::items(dump, &what.clusters())),
        What::Endpoint { .. } => list(endpoints::items(dump, live.as_ref(), &what.endpoints())),
        What::Ecds { .. } => list(ecds::items(dump)),
        What::Secret { .. } => secrets::items(dump).map_or_else(|| json!({}), dump::canonical),
        What::OnDemand { .. } | What::Bootstrap { .. } | What::Log { .. } => Value::Null,
        What::All { .. } => dump::canonical(&dump.to_value()),
    }
}
