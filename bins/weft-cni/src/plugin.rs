//! The plugin's side of CNI: settings on standard input, parameters in the environment, an answer on standard output.
//!
//! It comes after the plugin that makes the pod's network, and passes that one's result on. When it cannot tell whether a pod
//! has a proxy it fails, and the runtime tries again: a pod never starts past its policies.
//!
//! Source: the CNI specification 1.1.0.

use crate::network;
use crate::pod::{self, Wanted};
use serde_json::{Value, json};
use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use weft_k8s_api::Object;
use weft_k8s_api::kinds::by_kind;
use weft_store::ApiClient;

/// Versions of the specification that are spoken.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Longest settings, in bytes: they carry the results of the plugins before.
const MAX_SETTINGS: u64 = 4 << 20;
/// Names of the agent's own pods begin so: the DaemonSet's name.
const AGENT: &str = "istio-cni-node-";
/// Longest wait for the API server; the runtime tries again.
const API_LIMIT: Duration = Duration::from_secs(15);

/// A failure as the specification has them: a code, and what went wrong.
#[derive(Debug)]
struct Failure {
    code: u32,
    message: String,
}

impl Failure {
    fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The environment is not as it has to be.
    fn environment(message: impl Into<String>) -> Self {
        Self::new(4, message)
    }

    fn settings(message: impl Into<String>) -> Self {
        Self::new(7, message)
    }

    /// The runtime should come again.
    fn later(message: impl Into<String>) -> Self {
        Self::new(11, message)
    }

    /// Ours: the redirection could not be set up, or is not there.
    fn redirection(message: impl Into<String>) -> Self {
        Self::new(100, message)
    }
}

/// Looks up a variable.
type Environment = Box<dyn Fn(&str) -> Option<String>>;

/// What the runtime gave.
struct Call {
    settings: Value,
    version: String,
    environment: Environment,
}

/// Runs as a plugin.
pub fn main() -> ExitCode {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(MAX_SETTINGS).read_to_string(&mut text);
    let settings = match read.map_err(|e| e.to_string()).and_then(|_| parse(&text)) {
        Ok(settings) => settings,
        Err(why) => return answer("1.0.0", Err(Failure::new(6, format!("the settings cannot be read: {why}")))),
    };
    let version = settings.get("cniVersion").and_then(Value::as_str).unwrap_or("0.2.0").to_string();
    let call = Call { settings, version: version.clone(), environment: Box::new(|name| std::env::var(name).ok()) };
    answer(&version, call.run())
}

/// Settings are an object; nothing on the input is one without fields (`VERSION` is asked so).
fn parse(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(json!({}));
    }
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if value.is_object() { Ok(value) } else { Err("an object is expected".into()) }
}

fn answer(version: &str, result: Result<Option<Value>, Failure>) -> ExitCode {
    match result {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(Failure { code, message }) => {
            println!("{}", json!({"cniVersion": version, "code": code, "msg": "weft-cni", "details": message}));
            ExitCode::FAILURE
        }
    }
}

impl Call {
    fn run(&self) -> Result<Option<Value>, Failure> {
        let command = (self.environment)("CNI_COMMAND").unwrap_or_default();
        if command == "VERSION" {
            return Ok(Some(json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS})));
        }
        if !VERSIONS.contains(&self.version.as_str()) {
            let known = VERSIONS.join(", ");
            return Err(Failure::new(1, format!("cniVersion {:?} is not spoken; these are: {known}", self.version)));
        }
        match command.as_str() {
            "ADD" => self.add().map(Some),
            "CHECK" => self.check().map(|()| None),
            // The rules go with the namespace.
            "DEL" | "GC" => Ok(None),
            "STATUS" => self.status().map(|()| None),
            other => Err(Failure::environment(format!("CNI_COMMAND {other:?} is not known"))),
        }
    }

    fn add(&self) -> Result<Value, Failure> {
        if let Some(wanted) = self.wanted()? {
            let backend = weft_capture::Backend::installed().map_err(|e| Failure::redirection(e.to_string()))?;
            network::within(&self.namespace()?, || weft_capture::apply_with(backend, &wanted.config))
                .map_err(|e| Failure::redirection(format!("{}: {e}", wanted.pod)))?
                .map_err(|e| Failure::redirection(format!("{}: the redirection: {e}", wanted.pod)))?;
        }
        // What the plugins before have made; alone there is nothing to tell.
        let mut result = self.settings.get("prevResult").cloned().unwrap_or_else(|| json!({}));
        result["cniVersion"] = self.version.clone().into();
        Ok(result)
    }

    fn check(&self) -> Result<(), Failure> {
        let Some(wanted) = self.wanted()? else { return Ok(()) };
        let there = network::within(&self.namespace()?, weft_capture::is_applied);
        match there.map_err(|e| Failure::redirection(format!("{}: {e}", wanted.pod)))? {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::redirection(format!("{}: its traffic is not redirected", wanted.pod))),
            Err(error) => Err(Failure::redirection(format!("{}: {error}", wanted.pod))),
        }
    }

    /// Whether pods can be made: 50 is the specification's word for "not now".
    fn status(&self) -> Result<(), Failure> {
        let not_now = |why: String| Failure::new(50, why);
        weft_capture::Backend::installed().map_err(|e| not_now(e.to_string()))?;
        let kubeconfig = self.kubeconfig()?;
        match kubeconfig.is_file() {
            true => Ok(()),
            false => Err(not_now(format!("{} is not there", kubeconfig.display()))),
        }
    }

    fn namespace(&self) -> Result<PathBuf, Failure> {
        let path = (self.environment)("CNI_NETNS").filter(|path| !path.is_empty());
        path.map(PathBuf::from).ok_or_else(|| Failure::environment("CNI_NETNS is not set"))
    }

    fn kubeconfig(&self) -> Result<PathBuf, Failure> {
        let named = self.settings.pointer("/kubernetes/kubeconfig").and_then(Value::as_str);
        named.map(PathBuf::from).ok_or_else(|| Failure::settings("kubernetes.kubeconfig is not set"))
    }

    /// What to redirect of the pod that is being made; nothing for one without a proxy, and for what is no pod.
    fn wanted(&self) -> Result<Option<Wanted>, Failure> {
        let arguments = (self.environment)("CNI_ARGS").unwrap_or_default();
        let argument = |name: &str| {
            let mut all = arguments.split(';').filter_map(|pair| pair.split_once('='));
            all.find(|(key, _)| *key == name).map(|(_, value)| value.to_string()).filter(|value| !value.is_empty())
        };
        let (Some(namespace), Some(name)) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME")) else {
            return Ok(None);
        };
        let excluded = self.settings.pointer("/kubernetes/exclude_namespaces").and_then(Value::as_array);
        if excluded.is_some_and(|all| all.iter().any(|excluded| *excluded == *namespace)) {
            return Ok(None);
        }
        // The agent's own pod: were the plugin needed for it, one with an old token or program would never be replaced.
        let agent = self.settings.pointer("/kubernetes/agent_namespace").and_then(Value::as_str);
        if agent == Some(namespace.as_str()) && name.starts_with(AGENT) {
            return Ok(None);
        }
        let pod = self.pod(&namespace, &name)?;
        if let Some(uid) = argument("K8S_POD_UID").filter(|uid| !is_of(&pod, uid)) {
            return Err(Failure::later(format!("pod {namespace}/{name} is no longer the one with uid {uid}")));
        }
        pod::wanted(&pod).map_err(|why| Failure::redirection(format!("pod {namespace}/{name}: {why}")))
    }

    fn pod(&self, namespace: &str, name: &str) -> Result<Object, Failure> {
        let kubeconfig = self.kubeconfig()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Failure::new(5, e.to_string()))?;
        let kind = by_kind("", "Pod").ok_or_else(|| Failure::settings("pods are no kind"))?;
        let asked = runtime.block_on(async {
            let client = ApiClient::from_kubeconfig(&kubeconfig, None).await?;
            tokio::time::timeout(API_LIMIT, client.get(kind, namespace, name)).await.unwrap_or_else(|_| {
                Err(weft_store::ClientError::Unreachable {
                    url: client.url().to_string(),
                    cause: format!("no answer within {API_LIMIT:?}"),
                })
            })
        });
        asked.map_err(|error| Failure::later(format!("pod {namespace}/{name}: {error}")))
    }
}

/// Whether a pod is the one that the runtime makes. One of a file on the node (a static pod) has a uid of the node's own, which
/// the API server's picture of it carries as an annotation.
fn is_of(pod: &Object, uid: &str) -> bool {
    pod.metadata.uid.as_deref() == Some(uid) || pod.annotation("kubernetes.io/config.mirror") == Some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(settings: Value, environment: &'static [(&str, &str)]) -> Result<Option<Value>, Failure> {
        let version = settings["cniVersion"].as_str().unwrap_or("0.2.0").to_string();
        let find = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        Call { settings, version, environment: Box::new(find) }.run()
    }

    #[test]
    fn uids() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "uid": "of-api",
            "annotations": {"kubernetes.io/config.mirror": "of-node"}}});
        let pod: Object = serde_json::from_value(pod).unwrap();
        assert!(is_of(&pod, "of-api") && is_of(&pod, "of-node") && !is_of(&pod, "of-before"));
    }

    #[test]
    fn commands() {
        let settings = || json!({"cniVersion": "1.0.0", "name": "n", "type": "weft-cni"});
        let versions = call(json!({}), &[("CNI_COMMAND", "VERSION")]).unwrap().unwrap();
        assert!(versions["supportedVersions"].as_array().unwrap().contains(&json!("1.0.0")));
        assert_eq!(call(settings(), &[("CNI_COMMAND", "DEL")]).unwrap(), None);
        for (settings, environment, code) in [
            (json!({"cniVersion": "9.0.0"}), &[("CNI_COMMAND", "ADD")][..], 1),
            (settings(), &[("CNI_COMMAND", "MOVE")], 4),
            (settings(), &[("CNI_COMMAND", "ADD"), ("CNI_ARGS", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b")], 7),
            (settings(), &[("CNI_COMMAND", "STATUS")], 7),
        ] {
            let failure = call(settings, environment).unwrap_err();
            assert_eq!(failure.code, code, "{failure:?}");
        }
        // What is no pod, and what is excluded, passes; the result before is passed on.
        let mut with_result = settings();
        with_result["prevResult"] = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/24"}]});
        with_result["kubernetes"] = json!({"exclude_namespaces": ["kube-system"]});
        let excluded = &[("CNI_COMMAND", "ADD"), ("CNI_ARGS", "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=b")];
        assert_eq!(call(with_result.clone(), excluded).unwrap().unwrap(), with_result["prevResult"]);
        // So does the agent, with a kubeconfig that is of no use; others of its namespace do not.
        let mut stale = with_result.clone();
        stale["kubernetes"] = json!({"kubeconfig": "/nowhere", "agent_namespace": "istio-system"});
        let agent =
            &[("CNI_COMMAND", "ADD"), ("CNI_ARGS", "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=istio-cni-node-x7k2p")];
        assert_eq!(call(stale.clone(), agent).unwrap().unwrap(), with_result["prevResult"]);
        for other in [
            &[("CNI_COMMAND", "ADD"), ("CNI_ARGS", "K8S_POD_NAMESPACE=istio-system;K8S_POD_NAME=web")],
            &[("CNI_COMMAND", "ADD"), ("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=istio-cni-node-x7k2p")],
        ] {
            assert_eq!(call(stale.clone(), other).unwrap_err().code, 11, "{other:?}");
        }
        let no_pod = &[("CNI_COMMAND", "ADD"), ("CNI_ARGS", "IgnoreUnknown=1")];
        assert_eq!(call(settings(), no_pod).unwrap().unwrap(), json!({"cniVersion": "1.0.0"}));
    }
}
