//! The operator: keeps the cluster as the IstioOperator objects in it say. One look at all of them after the other; an object
//! that changed is installed, one that is deleted is uninstalled before its finalizer lets it go. Of several replicas the one
//! that holds the Lease does so.
//!
//! Source: Istio's "Managing Gateways with Multiple Revisions", operator: an operator of a revision acts on objects of that
//! revision alone.

use super::apply::{How, install};
use super::cluster::{self, FINALIZER, IGNORED, Owner};
use super::operator::{KIND, Operator};
use super::settings::Settings;
use super::tags;
use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use weft_k8s_api::Object;
use weft_store::client::ListOptions;
use weft_store::{ApiClient, ClientError, Leadership, while_leader};

/// Pause between looks.
const PAUSE: Duration = Duration::from_secs(2);
/// Time after which an object that did not change is applied again, against what others did.
const AGAIN: Duration = Duration::from_secs(300);
/// Pause after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(20);
/// How long one component may take before the other objects get their turn.
const READY: Duration = Duration::from_secs(120);

/// An operator at work.
pub struct Reconciler {
    client: ApiClient,
    /// Revision of the objects that it acts on; empty for those without one.
    revision: String,
    /// Namespaces that it looks into; all when there are none.
    namespaces: Vec<String>,
    /// By namespace and name: the generation that was installed last, and when to do it again.
    done: BTreeMap<(String, String), (i64, Instant)>,
}

impl Reconciler {
    /// Acts on objects of a revision in some namespaces.
    pub fn new(client: ApiClient, revision: String, namespaces: Vec<String>) -> Self {
        let revision = if revision == "default" { String::new() } else { revision };
        Self { client, revision, namespaces, done: BTreeMap::new() }
    }

    /// Goes on for ever.
    async fn run(mut self) {
        let mut said = String::new();
        loop {
            if let Err(error) = self.turn().await {
                let problem = format!("{error:#}");
                if problem != said {
                    tracing::warn!("{problem}; trying again");
                    said = problem;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One look at all objects. What goes wrong with one holds up no other.
    async fn turn(&mut self) -> anyhow::Result<()> {
        let (mut objects, mut problems) = (Vec::new(), Vec::new());
        let namespaces: Vec<Option<String>> = match self.namespaces.is_empty() {
            true => vec![None],
            false => self.namespaces.iter().cloned().map(Some).collect(),
        };
        for namespace in namespaces {
            match self.client.list(&KIND, namespace.as_deref(), &ListOptions::default()).await {
                Ok(list) => objects.extend(list.items),
                Err(ClientError::NoSuchKind(_) | ClientError::NotFound(_)) => {}
                Err(error) => problems.push(format!("cannot list IstioOperators: {error}")),
            }
        }
        objects.retain(|object| is_ours(object, &self.revision));
        // Gateways are injected by a control plane: it comes first.
        objects.sort_by_key(|object| !has_control_plane(object));
        if problems.is_empty() {
            self.done.retain(|key, _| objects.iter().any(|object| self::key(object) == *key));
        }
        for object in &objects {
            let result = if object.metadata.deletion_timestamp.is_some() {
                self.uninstall(object).await
            } else if is_due(object, self.done.get(&key(object)), Instant::now()) {
                self.install(object).await
            } else {
                Ok(())
            };
            problems.extend(result.err().map(|error| format!("{}: {error:#}", object.key())));
        }
        if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("; ")) }
    }

    async fn install(&mut self, object: &Object) -> anyhow::Result<()> {
        let finalizers = object.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|name| name == FINALIZER) {
            let all: Vec<&str> = finalizers.iter().map(String::as_str).chain([FINALIZER]).collect();
            self.finalizers(object, &all).await?;
        }
        self.status(object, "RECONCILING", "").await?;
        tracing::info!("installing {}", object.key());
        let result = match operator(object) {
            Ok(operator) => install(&self.client, &operator, How { dry_run: false, timeout: READY }).await,
            Err(error) => Err(error),
        };
        let generation = object.metadata.generation.unwrap_or(0);
        match result {
            Ok(()) => {
                self.done.insert(key(object), (generation, Instant::now() + AGAIN));
                self.status(object, "HEALTHY", "").await
            }
            Err(error) => {
                tracing::warn!("{}: {error:#}", object.key());
                self.done.insert(key(object), (generation, Instant::now() + AFTER_FAILURE));
                self.status(object, "ERROR", &format!("{error:#}")).await
            }
        }
    }

    async fn uninstall(&mut self, object: &Object) -> anyhow::Result<()> {
        let finalizers = object.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|name| name == FINALIZER) {
            return Ok(());
        }
        tracing::info!("uninstalling {}", object.key());
        let owner = Owner {
            name: object.name().into(),
            namespace: object.namespace().into(),
            revision: cluster::asked_revision(object).into(),
            version: String::new(),
        };
        let mut found = cluster::find(&self.client, &owner.selector()).await?;
        tags::hand_on_validator(&self.client, &mut found, false).await?;
        cluster::remove(&self.client, &found, false, |object| {
            tracing::info!("removed {}", object.key());
            Ok(())
        })
        .await?;
        // Nothing is kept under the name of an object that a user wrote.
        let states = cluster::states(&self.client, Some(&owner.namespace)).await?;
        if states.iter().any(|state| state.name() == owner.state_name()) {
            cluster::forget(&self.client, &owner.namespace, &owner.state_name()).await?;
        }
        let left: Vec<&str> = finalizers.iter().map(String::as_str).filter(|name| *name != FINALIZER).collect();
        self.finalizers(object, &left).await
    }

    async fn finalizers(&self, object: &Object, all: &[&str]) -> anyhow::Result<()> {
        let patch = json!({"metadata": {"finalizers": all, "resourceVersion": object.metadata.resource_version}});
        match self.client.merge_patch(&KIND, object.namespace(), object.name(), &patch).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot change the finalizers of {}", object.key())),
        }
    }

    async fn status(&self, object: &Object, status: &str, message: &str) -> anyhow::Result<()> {
        let value = json!({"status": status, "message": message, "observedGeneration": object.metadata.generation});
        match self.client.patch_status(&KIND, object.namespace(), object.name(), &value).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot write the status of {}", object.key())),
        }
    }
}

/// Acts on objects of a revision in some namespaces whenever this process holds the Lease: of several replicas one installs, and
/// who loses the Lease stops in the middle, for another begins with what it finds.
pub async fn lead(client: &ApiClient, leadership: &Leadership, revision: &str, namespaces: &[String]) {
    let work = || Reconciler::new(client.clone(), revision.into(), namespaces.to_vec()).run();
    while_leader(leadership.leader(), work).await;
}

/// Name of the Lease of a revision's operators.
pub fn lease_name(revision: &str) -> String {
    match revision {
        "" | "default" => "istio-operator-leader".into(),
        revision => format!("istio-operator-leader-{revision}"),
    }
}

/// Reads an object of the cluster as `-f` reads a file.
fn operator(object: &Object) -> anyhow::Result<Operator> {
    let value = json!({"apiVersion": object.api_version, "kind": object.kind,
                       "metadata": {"name": object.name()}, "spec": object.spec()});
    let mut operator = Operator::merge(&[(object.key().to_string(), value)], &[], None)?;
    operator.namespace = Some(object.namespace().to_string());
    Settings::new(&operator)?;
    Ok(operator)
}

fn key(object: &Object) -> (String, String) {
    (object.namespace().to_string(), object.name().to_string())
}

fn is_ours(object: &Object, revision: &str) -> bool {
    let own = object.spec()["revision"].as_str().unwrap_or_default();
    let own = if own == "default" { "" } else { own };
    own == revision && object.annotation(IGNORED) != Some("true")
}

fn has_control_plane(object: &Object) -> bool {
    let on = object.spec()["components"]["pilot"]["enabled"].as_bool();
    on.unwrap_or(object.spec()["profile"] != "empty")
}

fn is_due(object: &Object, done: Option<&(i64, Instant)>, now: Instant) -> bool {
    done.is_none_or(|(generation, again)| object.metadata.generation.unwrap_or(0) != *generation || now >= *again)
}

/// The objects that an operator consists of: namespace, account, rights, Deployment.
pub fn deployment(settings: &Settings, namespace: &str, watched: &str) -> Vec<Value> {
    let name = settings.named("istio-operator");
    let labels = json!({"name": "istio-operator", "istio.io/rev": settings.revision_label(), "app.kubernetes.io/part-of": "weft"});
    let metadata = |namespaced: bool| match namespaced {
        true => json!({"name": name, "namespace": namespace, "labels": labels}),
        false => json!({"name": name, "labels": labels}),
    };
    let rbac = "rbac.authorization.k8s.io";
    let mut arguments = vec!["operator", "server", "--watched-namespaces", watched];
    if !settings.revision.is_empty() {
        arguments.extend(["--revision", &settings.revision]);
    }
    let image = settings.image("weft");
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let container = json!({
        "name": "istio-operator", "image": image, "command": ["weft"], "args": arguments,
        "env": [field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")],
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
                            "runAsUser": 1337, "runAsGroup": 1337, "capabilities": {"drop": ["ALL"]}},
    });
    let mut account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(true)});
    settings.pull_secrets(&mut account);
    let subjects = json!([{"kind": "ServiceAccount", "name": name, "namespace": namespace}]);
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {"istio-injection": "disabled"}}}),
        account,
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": metadata(false), "rules": rules()}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": metadata(false),
               "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
               "subjects": subjects}),
        // Which of several replicas acts.
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": metadata(true), "rules": [
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": [lease_name(&settings.revision)],
             "verbs": ["get", "update"]},
        ]}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": metadata(true),
               "roleRef": {"apiGroup": rbac, "kind": "Role", "name": name}, "subjects": subjects}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(true), "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"name": "istio-operator", "istio.io/rev": settings.revision_label()}},
            "template": {"metadata": {"labels": labels}, "spec": {"serviceAccountName": name, "containers": [container]}},
        }}),
    ]
}

/// Everything that an installation consists of, and rights that it hands on (`escalate`, `bind`). Namespaces and definitions of
/// kinds are made and never deleted: with them goes what is not the installer's.
fn rules() -> Value {
    let all = ["create", "delete", "get", "list", "patch", "update", "watch"];
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    json!([
        rule("install.istio.io", &["istiooperators", "istiooperators/status"], &all),
        rule("", &["configmaps", "serviceaccounts", "services"], &all),
        rule("", &["namespaces"], &["create", "get"]),
        rule("", &["pods"], &["get", "list"]),
        rule("apps", &["daemonsets", "deployments"], &all),
        rule("autoscaling", &["horizontalpodautoscalers"], &all),
        rule("policy", &["poddisruptionbudgets"], &all),
        rule("discovery.k8s.io", &["endpointslices"], &all),
        rule("k8s.cni.cncf.io", &["network-attachment-definitions"], &all),
        rule(
            "admissionregistration.k8s.io",
            &["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
            &all
        ),
        rule("apiextensions.k8s.io", &["customresourcedefinitions"], &["create", "get", "patch"]),
        rule("rbac.authorization.k8s.io", &["clusterrolebindings", "rolebindings"], &all),
        rule(
            "rbac.authorization.k8s.io",
            &["clusterroles", "roles"],
            &["create", "delete", "get", "list", "patch", "update", "watch", "bind", "escalate"]
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::testing::{STUCK, Server};
    use weft_store::LeaseOptions;
    use weft_store::memory::DeleteOptions;

    fn object(spec: Value, annotations: Value, generation: i64) -> Object {
        serde_json::from_value(json!({"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator",
            "metadata": {"name": "a", "namespace": "n", "annotations": annotations, "generation": generation}, "spec": spec}))
        .unwrap()
    }

    #[test]
    fn whose_objects_and_in_which_order() {
        for (spec, annotations, revision, ours) in [
            (json!({}), json!({}), "", true),
            (json!({"revision": "default"}), json!({}), "", true),
            (json!({"revision": "1-8-0"}), json!({}), "", false),
            (json!({"revision": "1-8-0"}), json!({}), "1-8-0", true),
            (json!({}), json!({"install.istio.io/ignoreReconcile": "true"}), "", false),
        ] {
            assert_eq!(is_ours(&object(spec.clone(), annotations, 1), revision), ours, "{spec} {revision}");
        }
        assert!(has_control_plane(&object(json!({"profile": "minimal"}), json!({}), 1)));
        assert!(!has_control_plane(&object(json!({"profile": "empty"}), json!({}), 1)));
    }

    #[test]
    fn when_an_object_is_due() {
        let (now, one) = (Instant::now(), object(json!({}), json!({}), 2));
        for (done, due) in
            [(None, true), (Some((2, now + AGAIN)), false), (Some((1, now + AGAIN)), true), (Some((2, now)), true)]
        {
            assert_eq!(is_due(&one, done.as_ref(), now), due, "{done:?}");
        }
        let wrong = operator(&object(json!({"tagg": "x"}), json!({}), 1)).unwrap_err();
        assert!(format!("{wrong:#}").contains("tagg is not known"), "{wrong:#}");
    }

    #[test]
    fn what_is_never_deleted() {
        let rules = rules();
        for resource in ["namespaces", "customresourcedefinitions"] {
            let of: Vec<&Value> =
                rules.as_array().unwrap().iter().filter(|r| r["resources"].to_string().contains(resource)).collect();
            assert!(!of.is_empty() && of.iter().all(|rule| !rule["verbs"].to_string().contains("delete")), "{of:?}");
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_one_object_holds_up_no_other() {
        let server = Server::start().await;
        let empty = json!({"profile": "empty"});
        // A control plane comes first in a turn; this one cannot be let go.
        server.request("istio-system", STUCK, json!({"profile": "minimal"}), &[FINALIZER]).await;
        server.request("istio-system", "installed-state", empty.clone(), &[]).await;
        server.request("istio-system", "other", empty, &[]).await;
        let client = &server.client;
        client.delete(&KIND, "istio-system", STUCK, &DeleteOptions::default()).await.unwrap();
        let mut reconciler = Reconciler::new(client.clone(), String::new(), vec!["istio-system".into()]);
        let error = format!("{:#}", reconciler.turn().await.unwrap_err());
        assert!(error.contains(STUCK) && error.contains("finalizers"), "{error}");
        let found = async |name: &str| client.get(&KIND, "istio-system", name).await.unwrap();
        assert_eq!(found("other").await.body["status"]["status"], "HEALTHY");
        // One that has the name of what the installer keeps is told so, and stays as it is.
        let own = found("installed-state").await;
        let message = own.body["status"]["message"].as_str().unwrap_or_default();
        assert!(own.body["status"]["status"] == "ERROR" && message.contains("give yours another"), "{message}");
        assert!(own.annotation(IGNORED).is_none() && own.label(cluster::OWNER).is_none());
    }

    #[tokio::test]
    async fn requests_of_one_name_in_two_namespaces() {
        let server = Server::start().await;
        // The control plane of both is in istio-system.
        for namespace in ["istio-system", "mesh2"] {
            server.request(namespace, "edge", json!({"profile": "empty"}), &[]).await;
        }
        let mut reconciler = Reconciler::new(server.client.clone(), String::new(), Vec::new());
        reconciler.turn().await.unwrap();
        let states = async || {
            let all = cluster::states(&server.client, None).await.unwrap();
            all.iter().map(|state| state.key().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(states().await.len(), 2, "{:?}", states().await);
        server.client.delete(&KIND, "mesh2", "edge", &DeleteOptions::default()).await.unwrap();
        reconciler.turn().await.unwrap();
        assert_eq!(states().await, ["IstioOperator istio-system/installed-state-edge"]);
        let left = cluster::requests(&server.client, None).await.unwrap();
        assert_eq!(left.iter().map(Object::namespace).collect::<Vec<_>>(), ["istio-system"]);
    }

    #[tokio::test]
    async fn the_mesh_that_stays_has_the_validator() {
        let server = Server::start().await;
        for (namespace, name) in [("istio-system", "first"), ("mesh2", "second")] {
            server.request(namespace, name, json!({"profile": "minimal", "namespace": namespace}), &[FINALIZER]).await;
            server.webhooks(namespace, name).await;
        }
        assert_eq!(server.validators().await, (3, Some("mesh2".into())));
        server.client.delete(&KIND, "mesh2", "second", &DeleteOptions::default()).await.unwrap();
        let mut reconciler = Reconciler::new(server.client.clone(), String::new(), vec!["mesh2".into()]);
        reconciler.turn().await.unwrap();
        assert_eq!(server.validators().await, (2, Some("istio-system".into())));
    }

    #[tokio::test]
    async fn one_of_two_replicas_acts() {
        let server = Server::start().await;
        let mut replicas = Vec::new();
        for name in ["operator-0", "operator-1"] {
            let options = LeaseOptions {
                namespace: "istio-system".into(),
                name: lease_name(""),
                identity: name.into(),
                duration: Duration::from_secs(2),
            };
            let client = server.client.clone();
            let leadership = Leadership::start(&client, options);
            let leads = leadership.leader();
            let task = tokio::spawn(async move { lead(&client, &leadership, "", &["istio-system".into()]).await });
            replicas.push((leads, task));
        }
        for (round, name) in ["first", "second"].into_iter().enumerate() {
            server.request("istio-system", name, json!({"profile": "empty"}), &[]).await;
            let begun = Instant::now();
            loop {
                let found = server.client.get(&KIND, "istio-system", name).await.unwrap();
                if found.body.get("status").is_some_and(|status| status["status"] == "HEALTHY") {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(60), "{name}: {:?}", found.body.get("status"));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let leaders = replicas.iter().filter(|(leads, _)| *leads.borrow()).count();
            assert!(leaders <= 1, "{leaders} leaders");
            if round == 0 {
                // Whoever leads is gone without a word: the other takes over.
                let at = replicas.iter().position(|(leads, _)| *leads.borrow()).unwrap_or(0);
                let (_, task) = replicas.remove(at);
                task.abort();
            }
        }
    }

    #[test]
    fn an_operator_is_valid() {
        let settings = Settings::new(&Operator::merge(&[], &["revision=1-8-0".into()], None).unwrap()).unwrap();
        for value in deployment(&settings, "istio-operator", "istio-system") {
            let object: Object = serde_json::from_value(value).unwrap();
            let found = weft_k8s_api::validate(&object);
            assert!(found.is_valid() && found.unknown_fields.is_empty(), "{}: {found:?}", object.key());
        }
    }
}
