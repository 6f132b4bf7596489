//! `weft status`: what runs, in one screen.

use crate::cli::{Connection, ControlPlane};
use crate::commands::get::document;
use crate::commands::proxy_status::{self, Proxy};
use crate::connect;
use crate::output::{self, Format, Table};
use crate::target::{self, known};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use weft_k8s_api::Object;
use weft_store::ApiClient;
use weft_store::client::ListOptions;

/// Kinds that run pods.
const WORKLOADS: [&str; 4] = ["Deployment", "StatefulSet", "DaemonSet", "Job"];
/// Namespaces of Kubernetes' own, which the user did not ask about.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// Shows what runs. The exit code is 1 when nothing does.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    control_plane: ControlPlane,
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let path = connect::kubeconfig(&connection);
    if !path.exists() && connection.kubeconfig.is_none() {
        let said = "No mesh runs here.\nStart one with `weft up`, or name a cluster with --kubeconfig.";
        return nothing(&args, None, said);
    }
    let client = connect::connect(&connection).await?;
    if let Err(error) = client.version().await {
        let said = format!("Nothing answers at {}: {error}\nStart a lab with `weft up`.", client.url());
        return nothing(&args, Some(client.url()), &said);
    }
    let control_plane = proxy_status::control_plane(&client, &args.control_plane.istio_namespace).await?;
    let proxies = match control_plane.is_empty() {
        true => Vec::new(),
        false => proxy_status::proxies(&client, &control_plane).await.unwrap_or_else(|error| {
            output::warn(format!("{error:#}"));
            Vec::new()
        }),
    };
    let pods = target::pods(&client, None, "").await?;
    let owners = owners(&client).await?;
    let rows = rows(&owners, &pods, &proxies);
    let running = if control_plane.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    if args.output != Format::Table {
        let value = value(&args, Some(client.url()), &control_plane, &proxies, &rows);
        document(&value, args.output == Format::Yaml)?;
        return Ok(running);
    }
    output::line(format!("API server   {}", client.url()))?;
    output::line(format!(
        "Control plane   {}",
        control_plane_line(&control_plane, &proxies, &args.control_plane.istio_namespace)
    ))?;
    output::line(format!("Proxies   {}", proxies_line(&proxies)))?;
    for (title, role) in
        [("Control plane", Role::ControlPlane), ("Gateways", Role::Gateway), ("Workloads", Role::Workload)]
    {
        print_section(title, rows.iter().filter(|r| r.role == role))?;
    }
    if control_plane.is_empty() {
        output::note_plain(format!(
            "No control plane runs in {}; `weft up` starts one.",
            args.control_plane.istio_namespace
        ));
    }
    Ok(running)
}

/// The answer for programs.
fn value(args: &Args, server: Option<&str>, control_plane: &[Object], proxies: &[Proxy], rows: &[Row]) -> Value {
    json!({
        "apiServer": server,
        "controlPlane": {
            "namespace": args.control_plane.istio_namespace,
            "pods": control_plane.len(),
            "ready": control_plane.iter().filter(|pod| target::is_ready(pod)).count(),
        },
        "proxies": states(proxies),
        "workloads": rows.iter().map(Row::to_value).collect::<Vec<_>>(),
    })
}

/// The answer where nothing runs: people are told what to do, programs get the same form as ever.
fn nothing(args: &Args, server: Option<&str>, said: &str) -> anyhow::Result<ExitCode> {
    match args.output {
        Format::Table => output::line(said)?,
        format => {
            output::note_plain(said);
            document(&value(args, server, &[], &[], &[]), format == Format::Yaml)?;
        }
    }
    Ok(ExitCode::FAILURE)
}

async fn owners(client: &ApiClient) -> anyhow::Result<Vec<Object>> {
    let mut all = Vec::new();
    for kind in WORKLOADS {
        all.extend(client.list(known(kind)?, None, &ListOptions::default()).await?.items);
    }
    Ok(all)
}

fn control_plane_line(pods: &[Object], proxies: &[Proxy], namespace: &str) -> String {
    if pods.is_empty() {
        return format!("none in {namespace}");
    }
    let ready = pods.iter().filter(|p| target::is_ready(p)).count();
    format!("{ready}/{} ready in {namespace}, {} proxies connected", pods.len(), proxies.len())
}

/// How many proxies are in which state.
fn states(proxies: &[Proxy]) -> BTreeMap<String, usize> {
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for proxy in proxies {
        *states.entry(proxy.overall()).or_default() += 1;
    }
    states
}

fn proxies_line(proxies: &[Proxy]) -> String {
    let parts: Vec<String> = states(proxies).iter().map(|(word, count)| format!("{count} {word}")).collect();
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    ControlPlane,
    Gateway,
    Workload,
}

/// One workload.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    role: Role,
    namespace: String,
    name: String,
    ready: String,
    proxy: String,
    sync: String,
    age: String,
}

impl Row {
    /// The row for programs.
    fn to_value(&self) -> Value {
        let role = match self.role {
            Role::ControlPlane => "control plane",
            Role::Gateway => "gateway",
            Role::Workload => "workload",
        };
        json!({
            "role": role, "namespace": self.namespace, "name": self.name, "ready": self.ready, "proxy": self.proxy,
            "synced": self.sync, "age": self.age,
        })
    }
}

fn rows(owners: &[Object], pods: &[Object], proxies: &[Proxy]) -> Vec<Row> {
    let proxies: BTreeMap<&str, &Proxy> = proxies.iter().map(|p| (p.proxy.as_str(), p)).collect();
    let mut rows: Vec<Row> = Vec::new();
    for owner in owners.iter().filter(|o| !SYSTEM.contains(&o.namespace())) {
        let own: Vec<&Object> = pods.iter().filter(|pod| belongs(pod, owner)).collect();
        rows.push(row(owner, &own, &proxies));
    }
    let orphans = pods.iter().filter(|p| p.metadata.owner_references.as_ref().is_none_or(Vec::is_empty));
    for pod in orphans.filter(|p| !SYSTEM.contains(&p.namespace())) {
        rows.push(row(pod, &[pod], &proxies));
    }
    rows.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    rows
}

/// Pods of a deployment belong to it by way of a replica set, whose name begins with the deployment's.
fn belongs(pod: &Object, owner: &Object) -> bool {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    pod.namespace() == owner.namespace()
        && owners.iter().any(|o| {
            let direct = o.kind == owner.kind && o.name == owner.name();
            let set = o.kind == "ReplicaSet" && owner.kind == "Deployment";
            direct || (set && o.name.rsplit_once('-').is_some_and(|(name, _)| name == owner.name()))
        })
}

fn row(owner: &Object, pods: &[&Object], proxies: &BTreeMap<&str, &Proxy>) -> Row {
    let connected: Vec<&&Proxy> =
        pods.iter().filter_map(|p| proxies.get(format!("{}.{}", p.name(), p.namespace()).as_str())).collect();
    let has_proxy = pods.iter().filter(|p| target::has_proxy(p)).count();
    let synced = connected.iter().filter(|p| p.overall() == "SYNCED").count();
    let ready = pods.iter().filter(|p| target::is_ready(p)).count();
    let wanted = owner.spec()["replicas"].as_u64().map_or(pods.len(), |n| usize::try_from(n).unwrap_or(usize::MAX));
    Row {
        role: role(owner, pods, &connected),
        namespace: owner.namespace().into(),
        name: format!("{}/{}", owner.kind.to_ascii_lowercase(), owner.name()),
        ready: format!("{ready}/{wanted}"),
        proxy: connected.first().map_or(if has_proxy > 0 { "waiting" } else { "-" }, |p| p.engine.as_str()).to_string(),
        sync: if has_proxy == 0 && connected.is_empty() {
            "-".into()
        } else {
            format!("{synced}/{}", has_proxy.max(connected.len()))
        },
        age: target::age(owner),
    }
}

fn role(owner: &Object, pods: &[&Object], connected: &[&&Proxy]) -> Role {
    let label = |name: &str| {
        let template = &owner.spec()["template"]["metadata"]["labels"][name];
        template.as_str().or_else(|| pods.first().and_then(|p| p.label(name))).unwrap_or_default().to_string()
    };
    let gateway = label("istio").ends_with("gateway") || connected.iter().any(|p| p.proxy_type == "router");
    match () {
        () if label("app") == "istiod" => Role::ControlPlane,
        () if gateway => Role::Gateway,
        () => Role::Workload,
    }
}

fn print_section<'a>(title: &str, rows: impl Iterator<Item = &'a Row>) -> anyhow::Result<()> {
    let mut table = Table::new(["NAMESPACE", "NAME", "READY", "PROXY", "SYNCED", "AGE"]);
    for row in rows {
        table.row([&row.namespace, &row.name, &row.ready, &row.proxy, &row.sync, &row.age].map(String::as_str));
    }
    if table.is_empty() {
        return Ok(());
    }
    output::line(format!("\n{title}"))?;
    table.print()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn deployment(namespace: &str, name: &str, labels: Value) -> Object {
        object(
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": 1, "template": {"metadata": {"labels": labels}}}}),
        )
    }

    fn pod(namespace: &str, owner: Option<(&str, &str)>, name: &str, sidecar: bool, ready: bool) -> Object {
        let mut containers = vec![json!({"name": "app"})];
        if sidecar {
            containers.push(json!({"name": "istio-proxy"}));
        }
        let owners: Vec<Value> = owner
            .map(|(kind, name)| json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u"}))
            .into_iter()
            .collect();
        let status = if ready { "True" } else { "False" };
        object(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "ownerReferences": owners},
            "spec": {"containers": containers},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}}))
    }

    #[test]
    fn workloads_with_their_proxies() {
        let owners = [
            deployment("default", "reviews-v1", json!({"app": "reviews"})),
            deployment("default", "reviews-v1-x", json!({"app": "other"})),
            deployment("istio-system", "istiod", json!({"app": "istiod"})),
            deployment("istio-system", "istio-ingressgateway", json!({"istio": "ingressgateway"})),
            deployment("kube-system", "hidden", json!({})),
        ];
        let pods = [
            pod("default", Some(("ReplicaSet", "reviews-v1-77d")), "reviews-v1-77d-a", true, true),
            pod("istio-system", Some(("ReplicaSet", "istiod-1")), "istiod-1-a", false, true),
            pod("istio-system", Some(("ReplicaSet", "istio-ingressgateway-1")), "gw", true, false),
            pod("default", None, "alone", false, true),
        ];
        let synced: Proxy = serde_json::from_value(json!({"proxy": "reviews-v1-77d-a.default", "engine": "weft",
            "types": {"CDS": {"status": "SYNCED"}, "LDS": {"status": "SYNCED"}, "EDS": {"status": "SYNCED"},
                      "RDS": {"status": "SYNCED"}}}))
        .unwrap();
        let rows = rows(&owners, &pods, std::slice::from_ref(&synced));
        let short: Vec<_> = rows
            .iter()
            .map(|r| (r.role, r.name.as_str(), r.ready.as_str(), r.proxy.as_str(), r.sync.as_str()))
            .collect();
        assert_eq!(
            short,
            [
                (Role::Workload, "deployment/reviews-v1", "1/1", "weft", "1/1"),
                (Role::Workload, "deployment/reviews-v1-x", "0/1", "-", "-"),
                (Role::Workload, "pod/alone", "1/1", "-", "-"),
                (Role::Gateway, "deployment/istio-ingressgateway", "0/1", "waiting", "0/1"),
                (Role::ControlPlane, "deployment/istiod", "1/1", "-", "-"),
            ]
        );
        assert_eq!(proxies_line(&[synced]), "1 SYNCED");
        assert_eq!(proxies_line(&[]), "none");
        assert_eq!(control_plane_line(&[], &[], "x"), "none in x");
        assert_eq!(control_plane_line(&pods[1..2], &[], "x"), "1/1 ready in x, 0 proxies connected");
    }
}
