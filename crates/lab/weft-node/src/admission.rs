//! What the lab does to objects before they are stored: pods get their node and their account's token, Services get their
//! addresses and node ports, Secrets that ask for a token of an account get it. Proxies come from the control plane's webhook, as on a cluster.

use crate::controllers::namespaces::{ROOT_CA, ROOT_CA_KEY};
use crate::controllers::objects::list;
use crate::controllers::scheduling::choose;
use crate::families::{self, Family, NO_ADDRESS};
use crate::network::addresses::AddressPool;
use crate::network::{SERVICE_NETWORK, beside};
use crate::node_ports::{self, Taken};
use crate::pods::proxy::Engines;
use crate::pods::state::PROXY_CONTAINER;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use weft_apiserver::{Admission, AdmissionRequest, Denial, Operation};
use weft_core::well_known::annotation;
use weft_k8s_api::{Object, ObjectKey};
use weft_store::MemoryStore;

/// Volume and folder of the account's own token.
const TOKEN_VOLUME: &str = "kube-api-access";
const TOKEN_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Type of a Secret that asks for a token of the account that its annotation names.
const TOKEN_SECRET: &str = "kubernetes.io/service-account-token";
const TOKEN_ACCOUNT: &str = "kubernetes.io/service-account.name";
/// Lifetime of such a token, seconds: as long as the server gives out, for a lab lives shorter.
const TOKEN_SECONDS: i64 = 86_400 * 2;
/// How long a node port that was given out counts as taken, though no stored Service has it yet.
const ON_ITS_WAY: Duration = Duration::from_secs(10);

/// Gives out tokens of accounts.
pub trait AccountTokens: Send + Sync {
    /// A token of an account for the API server.
    ///
    /// # Errors
    /// When there is no such account, in words.
    fn issue(&self, namespace: &str, account: &str, seconds: i64) -> Result<String, String>;
}

/// The hooks.
pub struct LabAdmission {
    store: MemoryStore,
    addresses: Mutex<AddressPool>,
    engines: Engines,
    /// Node ports with a socket on the machine.
    node_ports: Vec<u16>,
    /// Node ports of requests that may still be on their way.
    given: Mutex<Vec<(Instant, ObjectKey, Taken)>>,
    tokens: Option<Arc<dyn AccountTokens>>,
    /// Services may have addresses of IPv6.
    ipv6: bool,
}

impl LabAdmission {
    /// `engines` are those that proxies can have here.
    pub fn new(store: MemoryStore, engines: Engines) -> Self {
        let addresses = Mutex::new(AddressPool::services());
        Self { store, addresses, engines, node_ports: Vec::new(), given: Mutex::default(), tokens: None, ipv6: false }
    }

    /// With node ports that are given out before others.
    pub fn with_node_ports(self, node_ports: Vec<u16>) -> Self {
        Self { node_ports, ..self }
    }

    /// With both families of addresses.
    pub fn with_ipv6(self, ipv6: bool) -> Self {
        Self { ipv6, ..self }
    }

    /// With tokens for the Secrets that ask for them.
    pub fn with_tokens(self, tokens: Arc<dyn AccountTokens>) -> Self {
        Self { tokens: Some(tokens), ..self }
    }

    /// Fills in a Secret that asks for a token, once. (Kubernetes' page "Secrets", service account token Secrets.)
    fn token_secret(&self, secret: &mut Object) -> Result<(), Denial> {
        let asks = secret.body.get("type").is_some_and(|kind| kind == TOKEN_SECRET);
        let has = secret.body.get("data").is_some_and(|data| data["token"].is_string());
        let (true, false, Some(tokens)) = (asks, has, &self.tokens) else { return Ok(()) };
        let field = format!("metadata.annotations[{TOKEN_ACCOUNT}]");
        let Some(account) = secret.annotation(TOKEN_ACCOUNT).filter(|name| !name.is_empty()) else {
            return Err(Denial::field(field, "is missing; it names the service account whose token this is to be"));
        };
        let token = tokens.issue(secret.namespace(), account, TOKEN_SECONDS);
        let token = token.map_err(|why| Denial::field(field, why))?;
        let roots = self.store.find("", "ConfigMap", secret.namespace(), ROOT_CA);
        let roots = roots.and_then(|map| map.body.get("data")?[ROOT_CA_KEY].as_str().map(str::to_string));
        let namespace = secret.namespace().to_string();
        let data = secret.body.entry("data").or_insert_with(|| json!({}));
        for (key, value) in [("token", Some(token)), ("namespace", Some(namespace)), (ROOT_CA_KEY, roots)] {
            if let Some(value) = value {
                data[key] = STANDARD.encode(value).into();
            }
        }
        Ok(())
    }

    fn pod(&self, pod: &mut Object) -> Result<(), Denial> {
        self.check_engine(pod)?;
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
            if token {
                mount_token(spec);
            }
        }
        // A pod that no node fits is bound when one comes.
        let node = choose(pod, &list(&self.store, "", "Node")).map(str::to_string);
        if let (Some(node), Some(spec)) = (node, pod.body.get_mut("spec")) {
            spec["nodeName"] = node.into();
        }
        Ok(())
    }

    /// Refuses a proxy that cannot be started here.
    fn check_engine(&self, pod: &Object) -> Result<(), Denial> {
        let all = ["initContainers", "containers"].map(|field| pod.spec()[field].as_array());
        let proxy = all.into_iter().flatten().flatten().any(|container| container["name"] == PROXY_CONTAINER);
        if proxy && self.engines.envoy.is_none() && self.engines.wants_envoy(pod.annotation(annotation::ENGINE)) {
            let message = "the lab does not know where Envoy is; start it with: weft up --envoy /path/to/envoy";
            return Err(Denial::field(format!("metadata.annotations[{}]", annotation::ENGINE), message));
        }
        Ok(())
    }

    /// Gives a service its addresses, as the API server of a cluster does (Kubernetes' page "IPv4/IPv6 dual-stack").
    fn service(&self, service: &mut Object, old: Option<&Object>, dry_run: bool) -> Result<(), Denial> {
        let external = service.spec()["type"] == "ExternalName";
        let key = service.key();
        let before: Vec<String> = old.map(|old| cluster_ips(old.spec())).unwrap_or_default();
        let Some(spec) = service.body.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
        if external {
            spec.shift_remove("clusterIP");
            spec.shift_remove("clusterIPs");
            return Ok(());
        }
        let mut ips = cluster_ips(&Value::Object(spec.clone()));
        if ips.is_empty() {
            ips.clone_from(&before);
        }
        if ips.len() > 1 && ips.iter().any(|ip| ip == NO_ADDRESS) {
            let message = format!("{NO_ADDRESS} stands for no address at all; it must be the only one");
            return Err(Denial::field("spec.clusterIPs", message));
        }
        if let (Some(given), Some(before)) = (ips.first(), before.first())
            && given != before
        {
            let message = format!("cannot be changed from {before}; delete the service first");
            return Err(Denial::field("spec.clusterIP", message));
        }
        let families = families::settle(spec, old.map(Object::spec), &mut ips, self.ipv6)?;
        if ips.first().is_none_or(|first| first != NO_ADDRESS) {
            for ip in ips.iter().filter(|ip| !before.contains(*ip)) {
                self.check_address(ip, &key)?;
            }
            if ips.len() < families.len() && !dry_run {
                self.add_addresses(&mut ips, &families, &key)?;
            }
        }
        spec.insert("clusterIP".into(), ips.first().cloned().unwrap_or_default().into());
        if !ips.is_empty() {
            spec.insert("clusterIPs".into(), ips.into());
        }
        Ok(())
    }

    /// Gives a service its node ports. Numbers stay taken for a while although the request that got them may fail later.
    fn service_ports(&self, service: &mut Object, old: Option<&Object>, dry_run: bool) -> Result<(), Denial> {
        let (key, now) = (service.key(), Instant::now());
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|(at, ..)| now.duration_since(*at) < ON_ITS_WAY);
        let stored = list(&self.store, "", "Service");
        let mut taken: BTreeSet<Taken> =
            stored.iter().filter(|other| other.key() != key).flat_map(|other| node_ports::of(other)).collect();
        taken.extend(given.iter().filter(|(_, whose, _)| *whose != key).map(|(_, _, taken)| taken.clone()));
        node_ports::assign(service, old, &taken, &self.node_ports)?;
        if !dry_run {
            given.extend(node_ports::of(service).map(|taken| (now, key.clone(), taken)));
        }
        Ok(())
    }

    /// Whether a service other than `own` has the address.
    fn is_used(&self, address: IpAddr, own: &ObjectKey) -> bool {
        // One address of IPv6 can be written in several ways.
        let is_it = |text: &String| text.parse() == Ok(address);
        let has = |service: &Arc<Object>| cluster_ips(service.spec()).iter().any(is_it);
        list(&self.store, "", "Service").iter().any(|service| has(service) && service.key() != *own)
    }

    /// Whether a service may have the address that it asks for.
    fn check_address(&self, given: &str, own: &ObjectKey) -> Result<(), Denial> {
        let wrong = |message: String| Denial::field("spec.clusterIPs", message);
        let address: IpAddr = given.parse().map_err(|_| wrong(format!("{given:?} is not an address, nor None")))?;
        if number_of(address).is_none() {
            let network = if address.is_ipv6() { "fd00:10:96::/112" } else { "10.96.0.0/16" };
            return Err(wrong(format!("{address} is outside {network}; leave it out to get a free one")));
        }
        if self.is_used(address, own) {
            return Err(wrong(format!("{address} is another service's; leave it out to get a free one")));
        }
        Ok(())
    }

    /// Adds what is missing. A service's addresses have one number, unless it asks for others. The pool walks forward, so that
    /// one given to a request that is still on its way is not given again; what the store does not hold is free.
    fn add_addresses(&self, ips: &mut Vec<String>, families: &[Family], own: &ObjectKey) -> Result<(), Denial> {
        let missing = &families[ips.len()..];
        let is_free = |number: &Ipv4Addr| missing.iter().all(|family| !self.is_used(family.of(*number), own));
        let known = ips.first().and_then(|ip| number_of(ip.parse().ok()?)).filter(is_free);
        let mut pool = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = || {
            let number = pool.take()?;
            pool.give_back(number);
            Some(number)
        };
        let number = known.or_else(|| std::iter::from_fn(&mut next).take(1 << 16).find(is_free));
        let full = || Denial::Forbidden("no service address is free in 10.96.0.0/16".into());
        let number = number.ok_or_else(full)?;
        ips.extend(missing.iter().map(|family| family.of(number).to_string()));
        Ok(())
    }

    fn admit_now(&self, request: &AdmissionRequest<'_>, object: &mut Object) -> Result<(), Denial> {
        match (request.kind.group, request.kind.kind, request.operation) {
            ("", "Pod", Operation::Create) => self.pod(object),
            ("", "Secret", Operation::Create) if !request.dry_run => self.token_secret(object),
            ("", "Service", _) => {
                self.service(object, request.old, request.dry_run)?;
                self.service_ports(object, request.old, request.dry_run)
            }
            _ => Ok(()),
        }
    }
}

/// `clusterIPs`, or what older clients write.
fn cluster_ips(spec: &Value) -> Vec<String> {
    let all = spec["clusterIPs"].as_array().filter(|all| !all.is_empty());
    let all = all.map_or_else(|| std::slice::from_ref(&spec["clusterIP"]), Vec::as_slice);
    all.iter().filter_map(Value::as_str).filter(|ip| !ip.is_empty()).map(str::to_string).collect()
}

/// The address of IPv4 that has the same number as a service's address; `None` for one outside the services' networks.
fn number_of(address: IpAddr) -> Option<Ipv4Addr> {
    let low = match address {
        IpAddr::V4(address) => u32::from(address) & 0xffff,
        IpAddr::V6(address) => u32::from(address.segments()[7]),
    };
    let number = Ipv4Addr::from(u32::from(SERVICE_NETWORK) | low);
    (address == number || address == beside(number)).then_some(number)
}

/// Gives every container the token. Twice is once: what a webhook adds gets it when it is there.
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
    if volumes.iter().any(|volume| volume["name"] == TOKEN_VOLUME) {
        return;
    }
    let namespace = json!({"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}});
    volumes.push(json!({"name": TOKEN_VOLUME, "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": ROOT_CA, "items": [{"key": ROOT_CA_KEY, "path": ROOT_CA_KEY}]}},
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::NODE;
    use crate::controllers::namespaces::node;
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
        LabAdmission::new(MemoryStore::with_options(options), Engines::default())
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
            (json!({"clusterIP": "fd00:10:96::9"}), None),
            (json!({"ipFamilyPolicy": "RequireDualStack"}), None),
        ] {
            assert!(admit(service("c", spec.clone()), old).is_err(), "{spec}");
        }
    }

    #[test]
    fn addresses_of_both_families() {
        let lab = admission().with_ipv6(true);
        let kind = by_kind("", "Service").unwrap();
        let admit = |name: &str, spec: Value, old: Option<&Object>| {
            let operation = if old.is_some() { Operation::Update } else { Operation::Create };
            let request = AdmissionRequest { operation, kind, user: "u", dry_run: false, old };
            let mut new = service(name, spec);
            lab.admit_now(&request, &mut new).map(|()| new)
        };
        let shown = |service: &Object| {
            let text = |ip: &str| {
                if ip == NO_ADDRESS {
                    "None"
                } else if ip.contains(':') {
                    "6"
                } else {
                    "4"
                }
                .to_string()
            };
            let ips: Vec<_> = cluster_ips(service.spec()).iter().map(|ip| text(ip)).collect();
            assert_eq!(service.spec()["clusterIP"].as_str(), cluster_ips(service.spec()).first().map(String::as_str));
            format!("{} {} {}", ips.join(","), service.spec()["ipFamilies"], service.spec()["ipFamilyPolicy"])
        };
        for (spec, want) in [
            (json!({}), r#"4 ["IPv4"] "SingleStack""#),
            (json!({"ipFamilies": ["IPv6"]}), r#"6 ["IPv6"] "SingleStack""#),
            (json!({"ipFamilyPolicy": "RequireDualStack"}), r#"4,6 ["IPv4","IPv6"] "RequireDualStack""#),
            (
                json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]}),
                r#"6,4 ["IPv6","IPv4"] "PreferDualStack""#,
            ),
            (json!({"clusterIP": "None", "selector": {"a": "b"}}), r#"None ["IPv4"] "SingleStack""#),
            (json!({"clusterIP": "None"}), r#"None ["IPv4","IPv6"] "RequireDualStack""#),
            (json!({"clusterIP": "fd00:10:96::99"}), r#"6 ["IPv6"] "SingleStack""#),
        ] {
            let made = admit("a", spec.clone(), None).unwrap();
            assert_eq!(shown(&made), want, "{spec}");
        }
        // To both families and back; the first address stays.
        let four = admit("b", json!({}), None).unwrap();
        lab.store.create(four.clone()).unwrap();
        let mut spec = four.spec().clone();
        spec["ipFamilyPolicy"] = "PreferDualStack".into();
        let both = admit("b", spec, Some(&four)).unwrap();
        assert_eq!(shown(&both), r#"4,6 ["IPv4","IPv6"] "PreferDualStack""#);
        let [first, second] = &cluster_ips(both.spec())[..] else { panic!("{both:?}") };
        assert_eq!(number_of(first.parse().unwrap()), number_of(second.parse().unwrap()));
        let mut spec = both.spec().clone();
        spec["ipFamilyPolicy"] = "SingleStack".into();
        let back = admit("b", spec, Some(&both)).unwrap();
        assert_eq!((shown(&back), back.spec()["clusterIP"].as_str()), (shown(&four), Some(&**first)));
        for spec in [
            json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"]}),
            json!({"ipFamilies": ["IPv4", "IPv4"]}),
            json!({"ipFamilies": ["IPX"]}),
            json!({"ipFamilies": ["IPv4"], "clusterIP": "fd00:10:96::98"}),
            json!({"clusterIP": "fd00:10:97::98"}),
            json!({"clusterIP": first}),
            json!({"clusterIPs": ["None", "10.96.0.77"], "ipFamilyPolicy": "RequireDualStack"}),
            json!({"clusterIPs": ["None", "None"], "ipFamilyPolicy": "RequireDualStack"}),
            json!({"clusterIPs": ["10.96.0.77", "None"], "ipFamilyPolicy": "RequireDualStack"}),
        ] {
            assert!(admit("c", spec.clone(), None).is_err(), "{spec}");
        }
    }

    #[test]
    fn an_address_is_the_same_however_it_is_written() {
        let lab = admission().with_ipv6(true);
        let kind = by_kind("", "Service").unwrap();
        let admit = |name: &str, address: &str| {
            let request = AdmissionRequest { operation: Operation::Create, kind, user: "u", dry_run: false, old: None };
            let mut new = service(name, json!({"clusterIPs": [address]}));
            lab.admit_now(&request, &mut new).map(|()| new)
        };
        lab.store.create(admit("a", "fd00:10:96:0::99").unwrap()).unwrap();
        for (address, free) in [("fd00:10:96::99", false), ("FD00:10:96:0:0:0:0:99", false), ("fd00:10:96::9a", true)] {
            assert_eq!(admit("b", address).is_ok(), free, "{address}");
        }
    }

    #[test]
    fn secrets_that_ask_for_tokens() {
        struct Fake;
        impl AccountTokens for Fake {
            fn issue(&self, namespace: &str, account: &str, _: i64) -> Result<String, String> {
                if account == "none" {
                    Err("there is none".into())
                } else {
                    Ok(format!("token of {namespace}/{account}"))
                }
            }
        }
        let lab = admission().with_tokens(Arc::new(Fake));
        let kind = by_kind("", "Secret").unwrap();
        let admit = |account: &str, of_type: &str| {
            let mut secret = object(json!({"apiVersion": "v1", "kind": "Secret", "type": of_type,
                "metadata": {"name": "s", "namespace": "n", "annotations": {TOKEN_ACCOUNT: account}}}));
            let request = AdmissionRequest { operation: Operation::Create, kind, user: "u", dry_run: false, old: None };
            lab.admit_now(&request, &mut secret).map(|()| secret)
        };
        let made = admit("a", TOKEN_SECRET).unwrap();
        let token = STANDARD.decode(made.body["data"]["token"].as_str().unwrap()).unwrap();
        assert_eq!(token, b"token of n/a");
        assert!(admit("a", "Opaque").unwrap().body.get("data").is_none());
        for (account, said) in [("none", "there is none"), ("", "is missing")] {
            let error = format!("{:?}", admit(account, TOKEN_SECRET).unwrap_err());
            assert!(error.contains(said) && error.contains(TOKEN_ACCOUNT), "{error}");
        }
    }

    #[test]
    fn pods_get_node_account_and_token() {
        let lab = admission();
        let pod = |account: &str| {
            object(
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{account}"), "namespace": "n"},
                          "spec": {"serviceAccountName": account, "containers": [{"name": "a", "image": "x"}]}}),
            )
        };
        let mut made = pod("");
        lab.pod(&mut made).unwrap();
        assert!(made.spec()["nodeName"].is_null(), "there is no node");
        lab.store.create(node()).unwrap();
        lab.pod(&mut made).unwrap();
        assert_eq!((&made.spec()["nodeName"], &made.spec()["serviceAccountName"]), (&json!(NODE), &json!("default")));
        assert_eq!(made.spec()["containers"][0]["volumeMounts"][0]["mountPath"], TOKEN_FOLDER);
        // A webhook adds a container: that one gets the token too, and nothing is there twice.
        made.body["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": PROXY_CONTAINER, "image": "y"}));
        lab.pod(&mut made).unwrap();
        let spec = made.spec();
        let mounts = |at: usize| spec["containers"][at]["volumeMounts"].as_array().unwrap().len();
        assert_eq!((mounts(0), mounts(1), spec["volumes"].as_array().unwrap().len()), (1, 1, 1));
        let error = lab.pod(&mut pod("none")).unwrap_err();
        assert!(format!("{error:?}").contains("service account n/none"), "{error:?}");
        made.metadata.annotations = Some([(annotation::ENGINE.to_string(), "envoy".to_string())].into());
        let error = lab.pod(&mut made).unwrap_err();
        assert!(format!("{error:?}").contains("--envoy"), "{error:?}");
    }
}
