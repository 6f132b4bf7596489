//! `weft wait`: until the proxies have what an object says, or have what its absence says. The control plane is asked which
//! generation of the object its configuration is made from, and which proxies have acknowledged that configuration.

use crate::cli::{Connection, ControlPlane};
use crate::commands::proxy_status::{control_plane, debug_token};
use crate::connect::connect;
use crate::install::cluster::REVISION;
use crate::waiting::Waiting;
use crate::{forward, output};
use anyhow::{Context, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use weft_core::well_known::port;
use weft_k8s_api::Object;
use weft_k8s_api::kinds::{self, KindInfo};
use weft_model::KINDS;
use weft_store::ApiClient;

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(200);
/// Most proxies that a failure names.
const MOST_NAMED: usize = 5;

/// Waits until proxies have what an object says. The exit code is 1 when they do not have it in time.
#[derive(Debug, clap::Args)]
#[command(after_help = "weft wait virtualservice reviews.default\n\
    weft wait --for=distribution vs/reviews -n default --timeout 1m\n\
    weft wait --for=delete gateway shop --threshold 0.9")]
pub struct Args {
    /// What is waited for
    #[arg(long = "for", value_enum, value_name = "WHAT", default_value_t = For::Distribution)]
    what: For,
    /// Kind, or KIND/NAME
    kind: String,
    /// NAME, or NAME.NAMESPACE
    name: Option<String>,
    /// Namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Generation of the object, or a later one [default: the present one]
    #[arg(long, value_name = "NUMBER", conflicts_with = "resource_version")]
    generation: Option<i64>,
    /// Resource version of the object, exactly
    #[arg(long, value_name = "VERSION")]
    resource_version: Option<String>,
    /// Share of the proxies that is enough
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    threshold: f64,
    /// Longest wait
    #[arg(long, value_name = "DURATION", value_parser = weft_core::duration::parse, default_value = "30s")]
    timeout: Duration,
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum For {
    /// The proxies have the object
    Distribution,
    /// The object is gone, and nothing of it is left in the proxies
    Delete,
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| format!("{text:?} is no number from 0 to 1"))
}

/// What one pod of the control plane says, `/debug/config_distribution`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    /// What of the object its configuration is made from; nothing when it has none.
    object: Option<Version>,
    /// Number of that configuration.
    version: u64,
    proxies: Vec<Proxy>,
}

/// A version of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Version {
    generation: i64,
    resource_version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Proxy {
    proxy: String,
    /// The configuration of which it was sent everything.
    version: u64,
    /// Types that it has not answered.
    waiting: Vec<String>,
    /// Types that it refused, and why.
    refused: BTreeMap<String, String>,
}

impl Proxy {
    fn has(&self, version: u64) -> bool {
        self.version >= version && self.waiting.is_empty() && self.refused.is_empty()
    }

    /// Why it is waited for.
    fn why(&self) -> String {
        match (self.refused.iter().next(), self.waiting.as_slice()) {
            (Some((kind, error)), _) => format!("{} refused its {kind}: {error}", self.proxy),
            (None, []) => self.proxy.clone(),
            (None, waiting) => format!("{} ({})", self.proxy, waiting.join(", ")),
        }
    }
}

/// Which version of the object must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    None,
    Generation(i64),
    Exactly(String),
}

impl Wanted {
    fn is(&self, object: Option<&Version>) -> bool {
        match (self, object) {
            (Wanted::None, object) => object.is_none(),
            (Wanted::Generation(wanted), Some(object)) => object.generation >= *wanted,
            (Wanted::Exactly(wanted), Some(object)) => object.resource_version == *wanted,
            (_, None) => false,
        }
    }
}

/// How far it is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Progress {
    proxies: usize,
    have: usize,
    /// Those that have not, and why.
    late: Vec<String>,
    /// Pods of the control plane that do not know the object so yet.
    unknown: usize,
}

fn progress(wanted: &Wanted, told: &[Told]) -> Progress {
    let mut out = Progress::default();
    for plane in told {
        let knows = wanted.is(plane.object.as_ref());
        out.unknown += usize::from(!knows);
        out.proxies += plane.proxies.len();
        for proxy in &plane.proxies {
            match knows && proxy.has(plane.version) {
                true => out.have += 1,
                false => out.late.push(proxy.why()),
            }
        }
    }
    out
}

impl Progress {
    #[allow(clippy::cast_precision_loss)]
    fn is_enough(&self, threshold: f64) -> bool {
        self.unknown == 0 && self.have as f64 >= threshold * self.proxies as f64
    }

    fn text(&self) -> String {
        match self.unknown {
            0 => format!("{} of {} proxies", self.have, self.proxies),
            _ => "the control plane does not know it yet".to_string(),
        }
    }
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let client = connect(&connection).await?;
    let (kind, namespace, name) = named(&args, client.default_namespace())?;
    let object = format!("{} {namespace}/{name}", kind.singular);
    let mut waiting = Waiting::on_errors();
    let begun = Instant::now();
    loop {
        let current = match client.get(kind, &namespace, &name).await {
            Ok(object) => Some(object),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error).with_context(|| object.clone()),
        };
        let state = match wanted(&args, current.as_ref()) {
            Some(wanted) => {
                let pods = control_plane(&client, &args.control_plane.istio_namespace).await?;
                if pods.is_empty() {
                    let root = &args.control_plane.istio_namespace;
                    bail!("no control plane runs in {root}; `weft up` starts one, `weft status` shows what runs");
                }
                let pods = of_revision(pods, current.as_ref().and_then(|object| object.label(REVISION)));
                progress(&wanted, &ask(&client, &pods, kind, &namespace, &name).await?)
            }
            None if args.what == For::Distribution => {
                waiting.clear();
                bail!("there is no {object}; `weft get {} -n {namespace}` shows what there is", kind.plural);
            }
            // It is still there; nothing is to be asked yet.
            None => Progress { unknown: 1, ..Progress::default() },
        };
        let gone = args.what == For::Delete;
        if state.is_enough(args.threshold) {
            waiting.clear();
            let says = if gone { "is gone from" } else { "is in" };
            output::line(format!("{object} {says} {} of {} proxies", state.have, state.proxies))?;
            return Ok(ExitCode::SUCCESS);
        }
        if begun.elapsed() >= args.timeout {
            waiting.clear();
            return Err(late(&args, &object, &state, current.is_some()));
        }
        waiting.tell(&format!("{object}: {} …", state.text()), Instant::now());
        tokio::time::sleep(PAUSE).await;
    }
}

fn late(args: &Args, object: &str, state: &Progress, exists: bool) -> anyhow::Error {
    let named: Vec<&str> = state.late.iter().take(MOST_NAMED).map(String::as_str).collect();
    let more = state.late.len().saturating_sub(MOST_NAMED);
    let proxies = match (named.as_slice(), more) {
        ([], _) => String::new(),
        (named, 0) => format!("; waiting for {}", named.join("; ")),
        (named, more) => format!("; waiting for {}; and {more} more", named.join("; ")),
    };
    let far =
        if args.what == For::Delete && exists { "it is still there".to_string() } else { state.text() + &proxies };
    anyhow::anyhow!("{object}: not within {:?}: {far}", args.timeout)
}

/// The version that is waited for; `None` when the object is not what the user waits for: not there, or still there.
fn wanted(args: &Args, current: Option<&Object>) -> Option<Wanted> {
    if args.what == For::Delete {
        return current.is_none().then_some(Wanted::None);
    }
    let current = current?;
    Some(match (&args.generation, &args.resource_version, current.metadata.generation) {
        (Some(generation), _, _) => Wanted::Generation(*generation),
        (None, Some(version), _) => Wanted::Exactly(version.clone()),
        (None, None, Some(generation)) => Wanted::Generation(generation),
        // Kinds whose objects have no generation: the very version that is stored now.
        (None, None, None) => Wanted::Exactly(current.metadata.resource_version.clone().unwrap_or_default()),
    })
}

/// Kind, namespace and name of the object.
fn named(args: &Args, default: &str) -> anyhow::Result<(&'static KindInfo, String, String)> {
    let (kind, name) = match (&args.name, args.kind.split_once('/')) {
        (Some(name), None) => (args.kind.as_str(), name.as_str()),
        (None, Some((kind, name))) => (kind, name),
        _ => bail!("say what: `weft wait virtualservice NAME`, `weft wait vs/NAME`"),
    };
    let info = kinds::by_any_name(kind).with_context(|| format!("the kind {kind:?} is not known"))?;
    if !KINDS.iter().any(|(group, kind)| (*group, *kind) == (info.group, info.kind)) {
        bail!("proxies are told nothing of {}; wait for an object of the mesh, such as a virtualservice", info.plural);
    }
    let (name, dotted) = match name.rsplit_once('.') {
        // Names of some objects have dots; whoever says the namespace means the whole name.
        Some((name, namespace)) if args.namespace.is_none() => (name, Some(namespace)),
        _ => (name, None),
    };
    let namespace = match info.namespaced {
        true => args.namespace.as_deref().or(dotted).unwrap_or(default).to_string(),
        false => String::new(),
    };
    Ok((info, namespace, name.to_string()))
}

/// The pods that look at an object with this label: those of the revision that it names, of those that there are.
fn of_revision(mut pods: Vec<Object>, revision: Option<&str>) -> Vec<Object> {
    let is_of = |pod: &Object| revision.is_some() && pod.label(REVISION) == revision;
    if pods.iter().any(is_of) {
        pods.retain(is_of);
    }
    pods
}

/// What each pod of the control plane says.
async fn ask(
    client: &ApiClient,
    pods: &[Object],
    kind: &KindInfo,
    namespace: &str,
    name: &str,
) -> anyhow::Result<Vec<Told>> {
    let path =
        format!("/debug/config_distribution?group={}&kind={}&namespace={namespace}&name={name}", kind.group, kind.kind);
    let mut told = Vec::new();
    for pod in pods {
        let token = debug_token(client, pod).await?;
        let page = forward::get_as(client, pod, port::MONITORING, &path, Some(&token)).await?;
        told.push(serde_json::from_slice(&page).context("/debug/config_distribution is not what was expected")?);
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_has_it() {
        let told: Vec<Told> = serde_json::from_value(json!([
            {"object": {"generation": 3, "resourceVersion": "9"}, "version": 7, "proxies": [
                {"proxy": "a.n", "version": 7, "waiting": [], "refused": {}},
                {"proxy": "b.n", "version": 6, "waiting": [], "refused": {}},
                {"proxy": "c.n", "version": 7, "waiting": ["LDS"], "refused": {}},
                {"proxy": "d.n", "version": 7, "waiting": [], "refused": {"CDS": "cluster x: no"}},
            ]},
            {"object": {"generation": 2, "resourceVersion": "8"}, "version": 4, "proxies": [{"proxy": "e.n", "version": 4}]},
        ]))
        .unwrap();
        let far = progress(&Wanted::Generation(3), &told);
        assert_eq!((far.have, far.proxies, far.unknown), (1, 5, 1));
        assert_eq!(far.late, ["b.n", "c.n (LDS)", "d.n refused its CDS: cluster x: no", "e.n"]);
        assert!(!far.is_enough(0.0), "a part of the control plane does not know it");
        let far = progress(&Wanted::Generation(2), &told);
        assert_eq!((far.have, far.unknown), (2, 0));
        assert!(far.is_enough(0.4) && !far.is_enough(0.5));
        assert_eq!(progress(&Wanted::Exactly("8".into()), &told).have, 1);
        assert_eq!(progress(&Wanted::None, &told).unknown, 2);
        let gone: Told = serde_json::from_value(json!({"object": null, "version": 1, "proxies": []})).unwrap();
        assert!(progress(&Wanted::None, &[gone]).is_enough(1.0), "nobody has to have it");
    }

    #[test]
    fn other_revisions_do_not_look_at_what_is_labelled() {
        let pod = |revision: &str| -> Object {
            let metadata = json!({"name": revision, "labels": {REVISION: revision}});
            serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata})).unwrap()
        };
        let names = |revision: Option<&str>| -> Vec<String> {
            let pods = of_revision(vec![pod("default"), pod("canary")], revision);
            pods.iter().map(|pod| pod.name().to_string()).collect()
        };
        assert_eq!(names(None), ["default", "canary"]);
        assert_eq!(names(Some("canary")), ["canary"]);
        assert_eq!(names(Some("a-tag")), ["default", "canary"]);
    }

    #[test]
    fn names() {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let of = |text: &str| {
            let line =
                <Line as clap::Parser>::try_parse_from(format!("wait {text}").split(' ')).map_err(|e| e.to_string())?;
            let named = named(&line.args, "default").map_err(|e| e.to_string());
            named.map(|(kind, namespace, name)| format!("{} {namespace}/{name}", kind.plural))
        };
        for (text, found) in [
            ("vs/reviews", "virtualservices default/reviews"),
            ("--for=delete virtualservice reviews.shop", "virtualservices shop/reviews"),
            ("gw a.b -n c", "gateways c/a.b"),
            ("--for=distribution dr/a -n c --generation 3", "destinationrules c/a"),
        ] {
            assert_eq!(of(text).as_deref(), Ok(found), "{text}");
        }
        for (text, says) in [
            ("vs", "say what"),
            ("vs/a b", "say what"),
            ("crd a", "told nothing"),
            ("thing a", "not known"),
            ("vs a --threshold 2", "from 0 to 1"),
            ("vs a --for=ready", "invalid value"),
        ] {
            assert!(of(text).unwrap_err().contains(says), "{text}: {:?}", of(text));
        }
    }
}
