//! What a lab adds to a proxy when it runs it, and what the pod's object does not say: the mark by which the lab's one user's
//! proxy is known, and the engine that the pod asks for. The object stays as the injector made it.
//!
//! In one thing more the lab differs: the application's containers start only when the proxy is ready, always; and the node
//! sets up the redirection, whose container is there to be seen only. Both are in [`super::worker`].

use super::state::PROXY_CONTAINER;
use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, PodSpec};
use weft_core::well_known::{PROXY_UID, annotation};

/// Volume that a cluster mounts inside another one's folder. The lab's folders are read-only as a whole, and its authority
/// revokes through [`weft_core::well_known::ROOT_CERT_CONFIG_MAP`].
const CRL: &str = "istio-ca-crl";
/// How the proxy is told its mark.
const MARK: &str = "WEFT_SOCKET_MARK";

/// Which programs proxies can be.
#[derive(Debug, Clone, Default)]
pub struct Engines {
    /// Path of a real Envoy.
    pub envoy: Option<String>,
    /// Pods whose annotation names no engine get Envoy.
    pub envoy_by_default: bool,
}

impl Engines {
    /// Whether a pod with this annotation (`weft.dev/proxy-engine`) is to have Envoy.
    pub fn wants_envoy(&self, annotation: Option<&str>) -> bool {
        let usual = if self.envoy_by_default { "envoy" } else { "weft" };
        annotation.unwrap_or(usual) == "envoy"
    }

    /// Makes a pod's proxy one that runs here.
    pub fn fit(&self, pod: &mut Pod) {
        let annotations = pod.metadata.annotations.as_ref();
        let envoy = self.wants_envoy(annotations.and_then(|all| all.get(annotation::ENGINE)).map(String::as_str));
        let Some(spec) = &mut pod.spec else { return };
        if !containers(spec).any(|container| container.name == PROXY_CONTAINER) {
            return;
        }
        if let Some(volumes) = &mut spec.volumes {
            volumes.retain(|volume| volume.name != CRL);
        }
        for container in containers(spec).filter(|container| container.name == PROXY_CONTAINER) {
            if let Some(mounts) = &mut container.volume_mounts {
                mounts.retain(|mount| mount.name != CRL);
            }
            let env = container.env.get_or_insert_default();
            env.retain(|variable| variable.name != MARK);
            env.push(EnvVar { name: MARK.into(), value: Some(PROXY_UID.to_string()), ..EnvVar::default() });
            if let (Some(path), true) = (&self.envoy, envoy) {
                let args = container.args.get_or_insert_default();
                args.extend(["--engine", "envoy", "--envoy-path", path].map(String::from));
            }
        }
    }
}

fn containers(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    spec.init_containers.iter_mut().flatten().chain(&mut spec.containers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use weft_inject::{Injector, Request};
    use weft_k8s_api::Object;

    fn injected(annotations: Value) -> Pod {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"generateName": "web-", "namespace": "n", "labels": {"app": "web"}, "annotations": annotations},
            "spec": {"containers": [{"name": "web", "image": "x", "ports": [{"containerPort": 80}]}]}});
        let made = Injector::default().inject(&Request { pod, namespace: "n", ..Request::default() }).unwrap();
        serde_json::from_value::<Object>(made).unwrap().typed().unwrap()
    }

    fn fitted(annotations: Value, engines: &Engines) -> Container {
        let mut pod = injected(annotations);
        engines.fit(&mut pod);
        let spec = pod.spec.unwrap();
        assert!(spec.volumes.unwrap().iter().all(|volume| volume.name != CRL));
        assert!(spec.containers[0].env.is_none(), "the application is left alone");
        spec.containers.into_iter().find(|container| container.name == PROXY_CONTAINER).unwrap()
    }

    #[test]
    fn the_mark_and_no_volume_inside_another() {
        let proxy = fitted(json!({}), &Engines::default());
        let marks: Vec<_> = proxy.env.unwrap().into_iter().filter(|variable| variable.name == MARK).collect();
        assert_eq!((marks.len(), marks[0].value.as_deref()), (1, Some("1337")));
        assert!(proxy.volume_mounts.unwrap().iter().all(|mount| mount.name != CRL));
    }

    #[test]
    fn the_engine_is_the_annotation_s_or_the_lab_s() {
        for (by_default, annotation, envoy) in
            [(false, None, false), (true, None, true), (true, Some("weft"), false), (false, Some("envoy"), true)]
        {
            let annotations = annotation.map_or(json!({}), |engine| json!({"weft.dev/proxy-engine": engine}));
            let engines = Engines { envoy: Some("/envoy".into()), envoy_by_default: by_default };
            let args = fitted(annotations, &engines).args.unwrap();
            assert_eq!(args.contains(&"/envoy".to_string()), envoy, "{by_default} {annotation:?}: {args:?}");
        }
    }
}
