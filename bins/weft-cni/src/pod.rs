//! Which pods are redirected, and what of them: a pure function of the pod, which the injector has prepared for it.
//!
//! Source: Istio's documentation, "Install the Istio CNI node agent", and the annotations of its reference.

use serde_json::Value;
use weft_capture::{Arguments, CaptureConfig};
use weft_inject::as_bool;
use weft_k8s_api::Object;

/// The container that a pod with a proxy has.
const PROXY: &str = "istio-proxy";
/// The init container that redirects by itself.
const INIT: &str = "istio-init";
/// The annotation of an injected pod.
const STATUS: &str = "sidecar.istio.io/status";
const INJECT: &str = "sidecar.istio.io/inject";
const MODE: &str = "sidecar.istio.io/interceptionMode";

/// A pod that is to be redirected.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `namespace/name`, for messages.
    pub pod: String,
    pub config: CaptureConfig,
}

fn list<'a>(spec: &'a Value, name: &str) -> &'a [Value] {
    spec.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn named<'a>(containers: &'a [Value], name: &str) -> Option<&'a Value> {
    containers.iter().find(|container| container.get("name").and_then(Value::as_str) == Some(name))
}

/// What to redirect of a pod; nothing for one that has no proxy, that redirects itself, or that is told not to be.
///
/// # Errors
/// The annotation that cannot be followed, and what would be right.
pub fn wanted(pod: &Object) -> Result<Option<Wanted>, String> {
    let spec = pod.spec();
    let (containers, init) = (list(spec, "containers"), list(spec, "initContainers"));
    let Some(proxy) = named(containers, PROXY).or_else(|| named(init, PROXY)) else { return Ok(None) };
    let own_network = spec.get("hostNetwork").and_then(Value::as_bool) != Some(true);
    // The label counts before the annotation, which is older.
    let asked = pod.label(INJECT).or_else(|| pod.annotation(INJECT)).and_then(as_bool);
    let unwilling = asked == Some(false) || pod.annotation(STATUS).is_none();
    let without_envoy = setting(proxy, "DISABLE_ENVOY").and_then(as_bool) == Some(true);
    if !own_network || unwilling || named(init, INIT).is_some() || without_envoy || is_gateway(proxy) {
        return Ok(None);
    }
    let mode = pod.annotation(MODE).unwrap_or("REDIRECT");
    if mode == "NONE" {
        // Nothing is redirected, in either direction: such a proxy listens at the ports of its services alone.
        return Ok(None);
    }
    // A proxy of TPROXY or of low ports runs as root, whose connections are told by its group.
    let user = |field: &str| {
        let own = proxy.pointer(&format!("/securityContext/{field}"));
        let id = own.or_else(|| spec.pointer(&format!("/securityContext/{field}"))).and_then(Value::as_u64);
        id.filter(|id| *id != 0)
    };
    let (uid, gid) = (user("runAsUser").unwrap_or(1337), user("runAsGroup").or(user("runAsUser")).unwrap_or(1337));
    let arguments = Arguments {
        uids: uid.to_string(),
        gids: gid.to_string(),
        mode: mode.into(),
        inbound_ports: "*".into(),
        outbound_ranges: "*".into(),
        dns: setting(proxy, "ISTIO_META_DNS_CAPTURE").and_then(as_bool) == Some(true),
        ..Arguments::default()
    };
    let config = arguments.config().map_err(|why| format!("annotation {MODE}: {why}"))?;
    let config = config.annotated(|name| pod.annotation(name))?;
    Ok(Some(Wanted { pod: format!("pod {}/{}", pod.namespace(), pod.name()), config }))
}

/// A gateway listens itself on the ports that it is called at: redirected to the proxy's ports, it would answer nobody. What does
/// not say that it is one is a sidecar: traffic that is wrongly redirected fails, and what wrongly is not goes around the proxy.
fn is_gateway(proxy: &Value) -> bool {
    let mut arguments = list(proxy, "args").iter().filter_map(Value::as_str);
    arguments.next() == Some("proxy") && arguments.next() == Some("router")
}

/// A variable of a container's environment.
fn setting<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let variable = named(list(container, "env"), name)?;
    variable.get("value").and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use weft_capture::{InboundMode, Ports, ProxyOwner};

    fn pod(annotations: Value, change: impl FnOnce(&mut Value)) -> Object {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "n", "annotations": {"sidecar.istio.io/status": "{}"}},
            "spec": {
                "initContainers": [{"name": "istio-validation", "image": "i"}],
                "containers": [{"name": "app", "image": "a"}, {"name": "istio-proxy", "image": "p",
                    "securityContext": {"runAsUser": 1338, "runAsGroup": 1339}}],
            },
        });
        for (name, value) in annotations.as_object().unwrap() {
            pod["metadata"]["annotations"][name] = value.clone();
        }
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    fn environment(pod: &mut Value, name: &str, value: &str) {
        pod["spec"]["containers"][1]["env"] = json!([{"name": name, "value": value}]);
    }

    #[test]
    fn which_pods() {
        let nothing = || json!({});
        assert!(wanted(&pod(nothing(), |_| {})).unwrap().is_some());
        let native = pod(nothing(), |pod| {
            let proxy = pod["spec"]["containers"].as_array_mut().unwrap().pop().unwrap();
            pod["spec"]["initContainers"].as_array_mut().unwrap().push(proxy);
        });
        assert!(wanted(&native).unwrap().is_some(), "a native sidecar");
        for (what, pod) in [
            ("no proxy", pod(nothing(), |pod| drop(pod["spec"]["containers"].as_array_mut().unwrap().pop()))),
            ("by itself", pod(nothing(), |pod| pod["spec"]["initContainers"][0]["name"] = "istio-init".into())),
            ("unwilling", pod(json!({"sidecar.istio.io/inject": "false"}), |_| {})),
            ("not injected", pod(nothing(), |pod| pod["metadata"]["annotations"] = json!({}))),
            ("of the node", pod(nothing(), |pod| pod["spec"]["hostNetwork"] = true.into())),
            ("by label", pod(nothing(), |pod| pod["metadata"]["labels"] = json!({"sidecar.istio.io/inject": "False"}))),
            ("without Envoy", pod(nothing(), |pod| environment(pod, "DISABLE_ENVOY", "True"))),
            ("a gateway", pod(nothing(), |pod| pod["spec"]["containers"][1]["args"] = json!(["proxy", "router"]))),
        ] {
            assert_eq!(wanted(&pod).unwrap(), None, "{what}");
        }
        // What only looks like it.
        for (what, pod) in [
            ("with Envoy", pod(nothing(), |pod| environment(pod, "DISABLE_ENVOY", "false"))),
            ("no word", pod(nothing(), |pod| environment(pod, "DISABLE_ENVOY", "perhaps"))),
            ("a sidecar", pod(nothing(), |pod| pod["spec"]["containers"][1]["args"] = json!(["proxy", "sidecar"]))),
            (
                "an option",
                pod(nothing(), |pod| {
                    pod["spec"]["containers"][1]["args"] = json!(["proxy", "--log_output_level=debug"])
                }),
            ),
            ("another word", pod(nothing(), |pod| pod["spec"]["containers"][1]["args"] = json!(["proxy", "Sidecar"]))),
            (
                "the label counts",
                pod(json!({"sidecar.istio.io/inject": "false"}), |pod| {
                    pod["metadata"]["labels"] = json!({"sidecar.istio.io/inject": "true"});
                }),
            ),
        ] {
            assert!(wanted(&pod).unwrap().is_some(), "{what}");
        }
    }

    #[test]
    fn as_the_injector_makes_them() {
        let values = weft_inject::Values::new(&json!({"pilot": {"cni": {"enabled": true}}}));
        let config = weft_inject::Config::from_values(&values).unwrap();
        let injector = weft_inject::Injector { config, values, mesh: Value::Null };
        let wanted_of = |annotations: Value| {
            let plain = json!({"metadata": {"name": "a", "namespace": "n", "annotations": annotations},
                "spec": {"containers": [{"name": "app", "image": "a"}]}});
            let request = weft_inject::Request { pod: plain, namespace: "n", ..Default::default() };
            let mut injected = injector.inject(&request).unwrap();
            injected["apiVersion"] = "v1".into();
            injected["kind"] = "Pod".into();
            wanted(&serde_json::from_value(injected).unwrap()).unwrap().map(|wanted| wanted.config)
        };
        let ids = ProxyOwner::Ids { uids: vec![1337], gids: vec![1337] };
        // The last two run their proxy as root, in a group of its own.
        for (name, value) in [
            ("sidecar.istio.io/interceptionMode", "REDIRECT"),
            ("sidecar.istio.io/interceptionMode", "TPROXY"),
            ("sidecar.istio.io/capNetBindService", "true"),
        ] {
            assert_eq!(wanted_of(json!({name: value})).unwrap().owner, ids, "{name}: {value}");
        }
        assert_eq!(wanted_of(json!({"sidecar.istio.io/interceptionMode": "NONE"})), None);
    }

    #[test]
    fn what_is_redirected() {
        let annotated = pod(
            json!({
                "traffic.sidecar.istio.io/excludeOutboundPorts": "3306", "traffic.sidecar.istio.io/includeInboundPorts": "80,81",
                "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.9.0.0/16", "sidecar.istio.io/interceptionMode": "TPROXY",
            }),
            |pod| environment(pod, "ISTIO_META_DNS_CAPTURE", "1"),
        );
        let config = wanted(&annotated).unwrap().unwrap().config;
        assert_eq!(config.owner, ProxyOwner::Ids { uids: vec![1338], gids: vec![1339] });
        assert_eq!((config.exclude_outbound_ports, config.inbound), (vec![3306], Ports::Only(vec![80, 81])));
        assert_eq!((config.inbound_mode, config.dns.is_some()), (InboundMode::TPROXY, true));
        assert_eq!(config.exclude_outbound, ["10.9.0.0/16".parse().unwrap()]);
        let none =
            json!({"sidecar.istio.io/interceptionMode": "NONE", "traffic.sidecar.istio.io/includeInboundPorts": "*"});
        assert_eq!(wanted(&pod(none, |_| {})).unwrap(), None, "neither what comes nor what goes");
        for (name, value) in [
            ("sidecar.istio.io/interceptionMode", "SOMEHOW"),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", "many"),
        ] {
            let error = wanted(&pod(json!({name: value}), |_| {})).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
    }
}
