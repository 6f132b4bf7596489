//! What a report is made of: objects by kind, logs of containers, pages of the control plane and of proxies. Owns what is asked
//! for and how much of it; not where it goes.

use super::Args;
use super::selection::Selected;
use crate::commands::proxy_status::debug_token;
use crate::forward;
use crate::target::{self, has_proxy};
use anyhow::Context as _;
use futures_util::StreamExt as _;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use weft_core::well_known::port;
use weft_k8s_api::Object;
use weft_k8s_api::kinds::{KINDS, KindInfo};
use weft_store::client::{ListOptions, LogOptions};
use weft_store::{ApiClient, ClientError};

/// Most of one log, bytes: its end.
const MAX_LOG: usize = 16 << 20;
/// Most of one page, bytes: a part of it would be of no use.
const MAX_PAGE: usize = 128 << 20;
/// Kinds beside the mesh's own that are in a report.
const OTHERS: [&str; 20] = [
    "Namespace",
    "Node",
    "Pod",
    "Service",
    "Endpoints",
    "EndpointSlice",
    "ConfigMap",
    "Secret",
    "ServiceAccount",
    "Event",
    "Deployment",
    "ReplicaSet",
    "StatefulSet",
    "DaemonSet",
    "Job",
    "Ingress",
    "Lease",
    "NetworkPolicy",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
];
/// Categories of the mesh's own kinds.
const CATEGORIES: [&str; 2] = ["istio-io", "gateway-api"];
/// Beginning of the names of the mesh's ConfigMaps; others are applications'.
const OF_THE_MESH: &str = "istio";
/// Pages of the control plane, and of a proxy; those with `true` not every proxy has.
const CONTROL_PLANE_PAGES: [(&str, &str); 7] = [
    ("/version", "version.json"),
    ("/ready", "ready.txt"),
    ("/metrics", "metrics.txt"),
    ("/debug/syncz", "debug/syncz.json"),
    ("/debug/push_status", "debug/push_status.json"),
    ("/debug/registryz", "debug/registryz.json"),
    ("/debug/endpointz", "debug/endpointz.json"),
];
const PROXY_PAGES: [(&str, &str, bool); 9] = [
    ("/config_dump?include_eds", "config_dump.json", false),
    ("/clusters?format=json", "clusters.json", false),
    ("/listeners?format=json", "listeners.json", false),
    ("/certs", "certs.json", false),
    ("/server_info", "server_info.json", false),
    ("/stats?usedonly", "stats.txt", false),
    ("/memory", "memory.json", false),
    ("/init_dump", "init_dump.json", true),
    ("/on_demand", "on_demand.json", true),
];
/// Labels of pods of the mesh that are neither control plane nor proxy.
const HELPERS: [(&str, &str); 2] = [("k8s-app", "istio-cni-node"), ("name", "istio-operator")];
const CONTROL_PLANE: (&str, &str) = ("app", "istiod");
const PROXY: &str = "istio-proxy";

/// The kinds of a report.
pub fn kinds() -> impl Iterator<Item = &'static KindInfo> {
    let wanted = |kind: &&KindInfo| {
        OTHERS.contains(&kind.kind) || kind.categories.iter().any(|category| CATEGORIES.contains(category))
    };
    KINDS.iter().filter(wanted)
}

/// Where the objects of a kind go.
pub fn file_of(kind: &KindInfo) -> String {
    let group = if kind.group.is_empty() { "core" } else { kind.group };
    format!("cluster/{group}/{}.yaml", kind.plural)
}

/// The objects of a kind, of the namespaces that are looked at and of the control plane's; nothing where the server does not
/// have the kind, or no object of it.
///
/// # Errors
/// When the server does not answer, or the caller may not look.
pub async fn objects(
    client: &ApiClient,
    kind: &KindInfo,
    root: &str,
    selected: &Selected,
) -> anyhow::Result<Option<Vec<Object>>> {
    let listed = match client.list(kind, None, &ListOptions::default()).await {
        Ok(listed) => listed.items,
        Err(ClientError::NotFound(_) | ClientError::NoSuchKind(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let here = |namespace: &str| namespace == root || selected.has_namespace(namespace);
    let wanted = |object: &Object| match (kind.namespaced, kind.kind) {
        (false, "Namespace") => here(object.name()),
        (false, _) => true,
        (true, "ConfigMap") => object.namespace() == root && object.name().starts_with(OF_THE_MESH),
        (true, _) => here(object.namespace()),
    };
    let objects: Vec<Object> = listed.into_iter().filter(wanted).collect();
    Ok((!objects.is_empty()).then_some(objects))
}

/// One file that is read from a pod.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Where it goes.
    pub file: String,
    /// Not having it is nothing to tell.
    pub optional: bool,
    pod: Arc<Object>,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Log(LogOptions),
    /// With a token of the control plane's.
    Page {
        port: u16,
        path: &'static str,
        token: bool,
    },
}

/// Pods that are looked into.
#[derive(Debug, Default)]
pub struct Pods {
    control_plane: Vec<Arc<Object>>,
    helpers: Vec<Arc<Object>>,
    proxies: Vec<Arc<Object>>,
}

impl Pods {
    /// Reads which there are.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn read(client: &ApiClient, root: &str, selected: &Selected) -> anyhow::Result<Self> {
        Ok(Self::of(target::pods(client, None, "").await?, root, selected))
    }

    fn of(all: Vec<Object>, root: &str, selected: &Selected) -> Self {
        let mut pods = Self::default();
        let labelled = |pod: &Object, (name, value): (&str, &str)| pod.label(name) == Some(value);
        for pod in all.into_iter().map(Arc::new) {
            if labelled(&pod, CONTROL_PLANE) && pod.namespace() == root {
                pods.control_plane.push(pod);
            } else if HELPERS.iter().any(|label| labelled(&pod, *label)) {
                pods.helpers.push(pod);
            } else if has_proxy(&pod) && selected.has_pod(&pod) {
                pods.proxies.push(pod);
            }
        }
        pods
    }

    /// Pods of the control plane that can be asked.
    pub fn running_control_plane(&self) -> Vec<Object> {
        self.control_plane.iter().filter(|pod| target::phase(pod) == "Running").map(|pod| Object::clone(pod)).collect()
    }

    /// Everything that is read from them, the control plane's first.
    pub fn pieces(&self, args: &Args) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for pod in &self.control_plane {
            let folder = format!("istiod/{}/{}", pod.namespace(), pod.name());
            target::containers(pod).iter().for_each(|name| logs(&mut pieces, &folder, pod, name, args));
            let pages = CONTROL_PLANE_PAGES.iter().filter(|_| target::phase(pod) == "Running");
            pieces.extend(pages.map(|(path, file)| Piece {
                file: format!("{folder}/{file}"),
                optional: false,
                pod: pod.clone(),
                source: Source::Page { port: port::MONITORING, path, token: path.starts_with("/debug/") },
            }));
        }
        for pod in &self.helpers {
            let folder = format!("other/{}/{}", pod.namespace(), pod.name());
            target::containers(pod).iter().for_each(|name| logs(&mut pieces, &folder, pod, name, args));
        }
        for pod in &self.proxies {
            let folder = format!("proxies/{}/{}", pod.namespace(), pod.name());
            logs(&mut pieces, &folder, pod, PROXY, args);
            let pages = PROXY_PAGES.iter().filter(|_| target::phase(pod) == "Running");
            pieces.extend(pages.map(|(path, file, optional)| Piece {
                file: format!("{folder}/{file}"),
                optional: *optional,
                pod: pod.clone(),
                source: Source::Page { port: port::ADMIN, path, token: false },
            }));
        }
        pieces
    }
}

/// The log of a container, and that of its run before, where it was started again.
fn logs(pieces: &mut Vec<Piece>, folder: &str, pod: &Arc<Object>, container: &str, args: &Args) {
    for previous in [false, true] {
        if previous && restarts(pod, container) == 0 {
            continue;
        }
        let source = Source::Log(LogOptions {
            container: Some(container.to_string()),
            since_seconds: args.duration.map(|time| time.as_secs().max(1)),
            tail_lines: (args.tail > 0).then_some(args.tail),
            previous,
            ..LogOptions::default()
        });
        let word = if previous { ".previous" } else { "" };
        let file = format!("{folder}/{container}{word}.log");
        pieces.push(Piece { file, optional: previous, pod: pod.clone(), source });
    }
}

fn restarts(pod: &Object, container: &str) -> u64 {
    let status = pod.body.get("status");
    let lists = ["containerStatuses", "initContainerStatuses"].into_iter();
    let mut all = lists.filter_map(|list| status?.get(list)?.as_array()).flatten();
    all.find(|one| one["name"] == container).and_then(|one| one["restartCount"].as_u64()).unwrap_or(0)
}

/// Reads a piece.
///
/// # Errors
/// When the pod or the server does not answer.
pub async fn read(client: &ApiClient, piece: &Piece) -> anyhow::Result<String> {
    let pod = &piece.pod;
    match &piece.source {
        Source::Log(options) => {
            let mut log = client.logs(pod.namespace(), pod.name(), options).await?;
            let mut kept = End::new(MAX_LOG);
            while let Some(bytes) = log.next().await {
                kept.push(&bytes?);
            }
            Ok(kept.text())
        }
        Source::Page { port, path, token } => {
            let token = if *token { Some(debug_token(client, pod).await?) } else { None };
            let page = forward::get_as(client, pod, *port, path, token.as_deref()).await?;
            anyhow::ensure!(page.len() <= MAX_PAGE, "{path} has {} bytes; at most {MAX_PAGE} are taken in", page.len());
            Ok(String::from_utf8_lossy(&page).into_owned())
        }
    }
}

/// The end of a text that may be long.
struct End {
    bytes: Vec<u8>,
    most: usize,
    dropped: usize,
}

impl End {
    fn new(most: usize) -> Self {
        Self { bytes: Vec::new(), most, dropped: 0 }
    }

    fn push(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
        // Half of it is thrown away at a time, so that each byte is moved at most once.
        if self.bytes.len() > self.most * 2 {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let surplus = self.bytes.len().saturating_sub(self.most);
        self.bytes.drain(..surplus);
        self.dropped += surplus;
    }

    fn text(mut self) -> String {
        self.cut();
        let text = String::from_utf8_lossy(&self.bytes);
        match self.dropped {
            0 => text.into_owned(),
            dropped => format!("({dropped} bytes before this are left out)\n{text}"),
        }
    }
}

/// The end of a file of this machine.
///
/// # Errors
/// When it cannot be read.
pub fn end_of_file(path: &Path, most: u64) -> anyhow::Result<String> {
    let read = || {
        let mut file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(most)))?;
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(namespace: &str, name: &str, labels: Value, containers: &[&str], restarts: u64) -> Object {
        let list: Vec<Value> = containers.iter().map(|name| json!({"name": name})).collect();
        let states: Vec<Value> =
            containers.iter().map(|name| json!({"name": name, "restartCount": restarts})).collect();
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels}, "spec": {"containers": list},
            "status": {"phase": "Running", "containerStatuses": states}}))
        .unwrap()
    }

    #[test]
    fn pieces_of_pods() {
        let args = Args {
            include: Vec::new(),
            exclude: Vec::new(),
            duration: None,
            tail: 0,
            dir: ".".into(),
            timeout: std::time::Duration::ZERO,
            dry_run: false,
            control_plane: crate::cli::ControlPlane { istio_namespace: "istio-system".into() },
        };
        let all = vec![
            pod("istio-system", "istiod-1", json!({"app": "istiod"}), &["discovery"], 0),
            pod("kube-system", "cni-1", json!({"k8s-app": "istio-cni-node"}), &["install-cni"], 0),
            pod("shop", "app-1", json!({"app": "app"}), &["app", PROXY], 2),
            pod("shop", "plain-1", json!({}), &["plain"], 0),
            pod("other", "app-2", json!({}), &["app", PROXY], 0),
            // Whoever calls himself so is not the control plane.
            pod("shop", "istiod-2", json!({"app": "istiod"}), &["discovery"], 0),
        ];
        let selected = Selected::new(&["shop".parse().unwrap()], &[]);
        let pods = Pods::of(all, "istio-system", &selected);
        let files: Vec<String> = pods.pieces(&args).into_iter().map(|piece| piece.file).collect();
        for wanted in [
            "istiod/istio-system/istiod-1/discovery.log",
            "istiod/istio-system/istiod-1/debug/syncz.json",
            "other/kube-system/cni-1/install-cni.log",
            "proxies/shop/app-1/istio-proxy.log",
            "proxies/shop/app-1/istio-proxy.previous.log",
            "proxies/shop/app-1/config_dump.json",
        ] {
            assert!(files.iter().any(|file| file == wanted), "{wanted}: {files:?}");
        }
        for not in ["plain", "app-2", "istiod-2", "/app.log", "discovery.previous"] {
            assert!(!files.iter().any(|file| file.contains(not)), "{not}: {files:?}");
        }
        assert_eq!(pods.running_control_plane().len(), 1);
    }

    #[test]
    fn the_end_of_long_texts() {
        let mut end = End::new(4);
        b"0123456789".iter().for_each(|byte| end.push(&[*byte]));
        assert_eq!(end.text(), "(6 bytes before this are left out)\n6789");
        let mut end = End::new(4);
        end.push(b"0123");
        assert_eq!(end.text(), "0123");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("log"), "0123456789").unwrap();
        assert_eq!(end_of_file(&folder.path().join("log"), 3).unwrap(), "789");
        assert_eq!(end_of_file(&folder.path().join("log"), 30).unwrap(), "0123456789");
    }

    #[test]
    fn kinds_have_files_of_their_own() {
        let files: Vec<String> = kinds().map(file_of).collect();
        let different: std::collections::BTreeSet<&String> = files.iter().collect();
        assert_eq!(files.len(), different.len(), "{files:?}");
        for wanted in [
            "cluster/core/secrets.yaml",
            "cluster/networking.istio.io/virtualservices.yaml",
            "cluster/core/events.yaml",
        ] {
            assert!(files.iter().any(|file| file == wanted), "{wanted}");
        }
        assert!(OTHERS.iter().all(|kind| kinds().any(|known| known.kind == *kind)));
    }
}
