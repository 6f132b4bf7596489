//! What the lab does to objects before they are stored: pods get their node, their account's token and, where injection is
//! on, their proxy; Services get their addresses. One place for requests from outside and for the lab's own controllers.

use crate::controllers::objects::list;
use crate::controllers::{NODE, PodMaker};
use crate::inject::{Context, decide, inject};
use crate::network::addresses::AddressPool;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use weft_apiserver::{Admission, AdmissionRequest, Denial, Operation};
use weft_core::well_known::ROOT_NAMESPACE;
use weft_inject::{Injector, Values};
use weft_k8s_api::{Object, ObjectKey};
use weft_store::{MemoryStore, StoreError};

/// Volume and folder of the account's own token.
const TOKEN_VOLUME: &str = "kube-api-access";
const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The hooks.
pub struct LabAdmission {
    store: MemoryStore,
    addresses: Mutex<AddressPool>,
    envoy: Option<String>,
    envoy_by_default: bool,
}

impl LabAdmission {
    /// `envoy` is the path of a real Envoy, for pods that ask for it, or for all that do not ask for another.
    pub fn new(store: MemoryStore, envoy: Option<String>, envoy_by_default: bool) -> Self {
        Self { store, addresses: Mutex::new(AddressPool::services()), envoy, envoy_by_default }
    }

    fn pod(&self, pod: &mut Object) -> Result<(), Denial> {
        let context = self.context(pod.namespace());
        if let Some(revision) = decide(pod, &context) {
            inject(pod, &context, &revision).map_err(|refusal| Denial::field(refusal.field, refusal.message))?;
        }
        let account = match pod.spec()["serviceAccountName"].as_str() {
            Some(name) if !name.is_empty() => name.to_string(),
            _ => "default".to_string(),
        };
        let wanted = self.store.find("", "ServiceAccount", pod.namespace(), &account);
        if wanted.is_none() && account != "default" {
            let namespace = pod.namespace();
            let message = format!("service account {namespace}/{account} does not exist; create it first");
            return Err(Denial::Forbidden(message));
        }
        let token = pod.spec()["automountServiceAccountToken"] != false
            && wanted
                .is_none_or(|account| account.body.get("automountServiceAccountToken") != Some(&Value::Bool(false)));
        if let Some(spec) = pod.body.get_mut("spec") {
            spec["serviceAccountName"] = account.clone().into();
            spec["serviceAccount"] = account.into();
            spec["nodeName"] = NODE.into();
            if token {
                mount_token(spec);
            }
        }
        Ok(())
    }

    fn context(&self, namespace: &str) -> Context {
        let labels = self.store.find("", "Namespace", "", namespace).and_then(|n| n.metadata.labels.clone());
        let services = list(&self.store, "", "Service");
        let revisions = services.iter().filter(|service| service.namespace() == "istio-system");
        Context {
            injector: self.injector(),
            namespace_labels: labels.unwrap_or_default(),
            revisions: revisions.filter_map(|s| s.name().strip_prefix("istiod-").map(str::to_string)).collect(),
            envoy: self.envoy.clone(),
            envoy_by_default: self.envoy_by_default,
            proxy_configs: self.proxy_configs(namespace),
        }
    }

    /// The injector as the ConfigMaps say; where they say what cannot be used, as a cluster without them has it.
    fn injector(&self) -> Injector {
        let text = |name: &str, key: &str| -> Option<String> {
            let map = self.store.find("", "ConfigMap", ROOT_NAMESPACE, name)?;
            map.body.get("data")?.get(key)?.as_str().map(str::to_string)
        };
        let (values, config) = (text("istio-sidecar-injector", "values"), text("istio-sidecar-injector", "config"));
        let mesh = text("istio", "mesh");
        let read = Injector::read(values.as_deref(), config.as_deref(), mesh.as_deref(), Values::default());
        read.or_else(|error| {
            tracing::warn!("ConfigMap istio-sidecar-injector or istio cannot be used: {error}");
            Injector::read(None, None, mesh.as_deref(), Values::default())
        })
        .unwrap_or_default()
    }

    /// Those of the whole mesh, then those of the namespace.
    fn proxy_configs(&self, namespace: &str) -> Vec<Value> {
        let all = list(&self.store, "networking.istio.io", "ProxyConfig");
        let of = |wanted: &str| -> Vec<Value> {
            all.iter().filter(|config| config.namespace() == wanted).map(|config| config.spec().clone()).collect()
        };
        let own = if namespace == ROOT_NAMESPACE { Vec::new() } else { of(namespace) };
        of(ROOT_NAMESPACE).into_iter().chain(own).collect()
    }

    fn service(&self, service: &mut Object, old: Option<&Object>, dry_run: bool) -> Result<(), Denial> {
        let external = service.spec()["type"] == "ExternalName";
        let before =
            old.and_then(|old| old.spec()["clusterIP"].as_str()).filter(|ip| !ip.is_empty()).map(str::to_string);
        let given = service.spec()["clusterIP"].as_str().filter(|ip| !ip.is_empty()).map(str::to_string);
        let address = match (external, given, before) {
            (true, ..) => None,
            (_, Some(given), Some(before)) if given != before => {
                return Err(Denial::field(
                    "spec.clusterIP",
                    format!("cannot be changed from {before}; delete the service first"),
                ));
            }
            (_, Some(given), None) if given != "None" => Some(self.take(&given, &service.key())?),
            (_, Some(given), _) => Some(given),
            (_, None, Some(before)) => Some(before),
            (_, None, None) if dry_run => Some(String::new()),
            (_, None, None) => Some(self.next()?),
        };
        let Some(spec) = service.body.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
        match address {
            Some(address) => {
                spec.insert("clusterIP".into(), address.clone().into());
                spec.insert("clusterIPs".into(), json!([address]));
                spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4"]));
                spec.entry("ipFamilyPolicy").or_insert_with(|| json!("SingleStack"));
            }
            None => {
                spec.shift_remove("clusterIP");
                spec.shift_remove("clusterIPs");
            }
        }
        Ok(())
    }

    /// Whether a service other than `own` has the address.
    fn is_used(&self, address: Ipv4Addr, own: Option<&ObjectKey>) -> bool {
        let text = address.to_string();
        let has = |service: &Arc<Object>| service.spec()["clusterIP"] == text.as_str();
        list(&self.store, "", "Service").iter().any(|service| has(service) && Some(&service.key()) != own)
    }

    fn take(&self, given: &str, own: &ObjectKey) -> Result<String, Denial> {
        let wrong = |message: String| Denial::field("spec.clusterIP", message);
        let address: Ipv4Addr =
            given.parse().map_err(|_| wrong(format!("{given:?} is not an IPv4 address, nor None")))?;
        let pool = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if !pool.contains(address) {
            return Err(wrong(format!("{address} is outside 10.96.0.0/16; leave it out to get a free one")));
        }
        drop(pool);
        if self.is_used(address, Some(own)) {
            return Err(wrong(format!("{address} is another service's; leave it out to get a free one")));
        }
        Ok(given.to_string())
    }

    /// A free address. The pool walks forward, so that one given to a request that is still on its way is not given again;
    /// what the store does not hold is free.
    fn next(&self) -> Result<String, Denial> {
        let mut pool = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..1 << 16 {
            let Some(address) = pool.take() else { break };
            pool.give_back(address);
            if !self.is_used(address, None) {
                return Ok(address.to_string());
            }
        }
        Err(Denial::Forbidden("no service address is free in 10.96.0.0/16".into()))
    }

    fn admit_now(&self, request: &AdmissionRequest<'_>, object: &mut Object) -> Result<(), Denial> {
        match (request.kind.group, request.kind.kind, request.operation) {
            ("", "Pod", Operation::Create) => self.pod(object),
            ("", "Service", _) => self.service(object, request.old, request.dry_run),
            _ => Ok(()),
        }
    }
}

fn mount_token(spec: &mut Value) {
    let mounted = |container: &Value| {
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        mounts.into_iter().any(|mount| mount["mountPath"] == TOKEN_FOLDER)
    };
    for field in ["initContainers", "containers"] {
        for container in spec[field].as_array_mut().into_iter().flatten() {
            if !mounted(container) {
                let mut mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
                mounts.push(json!({"name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": true}));
                container["volumeMounts"] = mounts.into();
            }
        }
    }
    let mut volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    let namespace = json!({"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}});
    volumes.push(json!({"name": TOKEN_VOLUME, "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"downwardAPI": {"items": [namespace]}},
    ]}}));
    spec["volumes"] = volumes.into();
}

impl Admission for LabAdmission {
    fn admit<'a>(
        &'a self,
        request: &'a AdmissionRequest<'a>,
        object: &'a mut Object,
    ) -> BoxFuture<'a, Result<Vec<String>, Denial>> {
        Box::pin(async move { self.admit_now(request, object).map(|()| Vec::new()) })
    }
}

/// The controllers' way to create pods: the same hooks and defaults as for a request.
pub struct LabPods {
    /// The hooks.
    pub admission: Arc<LabAdmission>,
}

impl PodMaker for LabPods {
    fn create(&self, mut pod: Object) -> Result<Arc<Object>, Box<StoreError>> {
        let refused = |denial: Denial| {
            let (field, message) = match denial {
                Denial::Forbidden(message) => ("spec".to_string(), message),
                Denial::Invalid(fields) => {
                    let first = fields.into_iter().next();
                    first.map(|error| (error.field, error.message)).unwrap_or_default()
                }
            };
            Box::new(StoreError::Invalid { key: Box::new(pod.key()), field, message })
        };
        let Some(kind) = weft_k8s_api::kinds::by_kind("", "Pod") else {
            return Err(refused(Denial::Forbidden("pods are not a known kind".into())));
        };
        let mut made = pod.clone();
        weft_apiserver::defaults::fill(kind, &mut made);
        self.admission.pod(&mut made).map_err(refused)?;
        made.body.insert("status".into(), json!({"phase": "Pending"}));
        pod = made;
        self.admission.store.create(pod).map_err(Box::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_k8s_api::kinds::by_kind;
    use weft_store::StoreOptions;

    fn object(value: Value) -> Object {
        serde_json::from_value(value).unwrap()
    }

    fn service(name: &str, spec: Value) -> Object {
        object(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "n"}, "spec": spec}),
        )
    }

    fn admission() -> LabAdmission {
        let options = StoreOptions { require_namespaces: false, ..StoreOptions::default() };
        LabAdmission::new(MemoryStore::with_options(options), None, false)
    }

    #[test]
    fn service_addresses() {
        let lab = admission();
        let kind = by_kind("", "Service").unwrap();
        let admit = |mut new: Object, old: Option<&Object>| {
            let operation = if old.is_some() { Operation::Update } else { Operation::Create };
            let request = AdmissionRequest { operation, kind, user: "u", dry_run: false, old };
            lab.admit_now(&request, &mut new).map(|()| new)
        };
        let first = admit(service("a", json!({})), None).unwrap();
        let address = first.spec()["clusterIP"].as_str().unwrap().to_string();
        assert!(address.starts_with("10.96."), "{address}");
        lab.store.create(first.clone()).unwrap();
        let second = admit(service("b", json!({})), None).unwrap();
        assert_ne!(second.spec()["clusterIP"], address.as_str());
        assert_eq!(admit(service("h", json!({"clusterIP": "None"})), None).unwrap().spec()["clusterIP"], "None");
        assert!(admit(service("x", json!({"type": "ExternalName", "externalName": "e"})), None).unwrap().spec()["clusterIP"].is_null());
        // An update without the address keeps it; with another one it is refused.
        assert_eq!(admit(service("a", json!({})), Some(&first)).unwrap().spec()["clusterIP"], address.as_str());
        for (spec, old) in [
            (json!({"clusterIP": "10.96.9.9"}), Some(&first)),
            (json!({"clusterIP": address}), None),
            (json!({"clusterIP": "10.1.1.1"}), None),
        ] {
            assert!(admit(service("c", spec.clone()), old).is_err(), "{spec}");
        }
    }

    #[test]
    fn pods_get_node_account_and_token() {
        let lab = Arc::new(admission());
        let maker = LabPods { admission: Arc::clone(&lab) };
        let pod = |account: &str| {
            object(
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{account}"), "namespace": "n"},
                          "spec": {"serviceAccountName": account, "containers": [{"name": "a", "image": "x"}]}}),
            )
        };
        let made = maker.create(pod("")).unwrap();
        assert_eq!((&made.spec()["nodeName"], &made.spec()["serviceAccountName"]), (&json!(NODE), &json!("default")));
        assert_eq!(made.spec()["containers"][0]["volumeMounts"][0]["mountPath"], TOKEN_FOLDER);
        let error = maker.create(pod("none")).unwrap_err();
        assert!(error.to_string().contains("service account n/none"), "{error}");
    }
}
