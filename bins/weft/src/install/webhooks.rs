//! The webhook configurations: which pods go to the injector, which objects to the validator. The certificate that the API
//! server trusts them by is filled in by the control plane itself.

use super::{Settings, metadata};
use serde_json::{Value, json};
use weft_k8s_api::crd;

pub(super) const RESOURCES: [&str; 2] = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];
/// Namespaces that no injection by default reaches.
const SPARED: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];
pub const DEFAULT_VALIDATOR: &str = "istiod-default-validator";

fn injector(settings: &Settings) -> String {
    let name = settings.named("istio-sidecar-injector");
    if settings.namespace == "istio-system" { name } else { format!("{name}-{}", settings.namespace) }
}

fn validator(settings: &Settings) -> String {
    format!("{}-{}", settings.named("istio-validator"), settings.namespace)
}

/// Names of the configurations.
pub(super) fn names(settings: &Settings) -> Vec<String> {
    vec![injector(settings), validator(settings), DEFAULT_VALIDATOR.to_string()]
}

/// The configurations.
pub(super) fn objects(settings: &Settings) -> Vec<Value> {
    let api = "admissionregistration.k8s.io/v1";
    let validating = |name: &str, hook: Value| {
        json!({"apiVersion": api, "kind": "ValidatingWebhookConfiguration",
               "metadata": metadata(settings, name, false), "webhooks": [hook]})
    };
    let mut all = vec![json!({
        "apiVersion": api, "kind": "MutatingWebhookConfiguration",
        "metadata": metadata(settings, &injector(settings), false), "webhooks": mutating(settings),
    })];
    if settings.values.is_true("global.configValidation") {
        all.push(validating(&validator(settings), validation(settings, "rev.validation.istio.io", true)));
        if settings.revision.is_empty() {
            all.push(validating(DEFAULT_VALIDATOR, validation(settings, "validation.istio.io", false)));
        }
    }
    all
}

pub(super) fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    match values {
        [] => json!({"key": key, "operator": operator}),
        values => json!({"key": key, "operator": operator, "values": values}),
    }
}

/// Whom the injector's webhooks send pods to, and which.
pub(super) struct Injection {
    /// `clientConfig`: where the injector answers.
    pub client: Value,
    /// `reinvocationPolicy`.
    pub reinvocation: String,
    /// Value of the label `istio.io/rev` that chooses it: a revision, or a tag.
    pub label: String,
    /// Also what asks for injection without naming a revision.
    pub is_default: bool,
    /// Also what does not ask for it and does not refuse it.
    pub all_namespaces: bool,
}

fn mutating(settings: &Settings) -> Vec<Value> {
    Injection {
        client: client(settings, "/inject"),
        reinvocation: settings.values.text("sidecarInjectorWebhook.reinvocationPolicy"),
        label: settings.revision_label().to_string(),
        is_default: settings.revision.is_empty(),
        all_namespaces: settings.values.is_true("sidecarInjectorWebhook.enableNamespacesByDefault"),
    }
    .hooks()
}

impl Injection {
    /// One webhook for each way in which a pod can be chosen, none of them for the same pod as another.
    pub(super) fn hooks(&self) -> Vec<Value> {
        let (by_label, by_revision, inject) = ("istio-injection", "istio.io/rev", "sidecar.istio.io/inject");
        let none = |key| expression(key, "DoesNotExist", &[]);
        let not_off = || expression(inject, "NotIn", &["false"]);
        let of_revision = || expression(by_revision, "In", &[&self.label]);
        let mut all = vec![
            self.hook("rev.namespace.", vec![of_revision(), none(by_label)], vec![not_off()]),
            self.hook("rev.object.", vec![none(by_revision), none(by_label)], vec![not_off(), of_revision()]),
        ];
        if !self.is_default {
            return all;
        }
        let on = |key, value| expression(key, "In", &[value]);
        all.push(self.hook("namespace.", vec![on(by_label, "enabled")], vec![not_off()]));
        let asks = vec![on(inject, "true"), none(by_revision)];
        all.push(self.hook("object.", vec![none(by_label), none(by_revision)], asks));
        if self.all_namespaces {
            let spared = expression("kubernetes.io/metadata.name", "NotIn", &SPARED);
            let namespaces = vec![none(by_label), none(by_revision), spared];
            all.push(self.hook("auto.", namespaces, vec![none(inject), none(by_revision)]));
        }
        all
    }

    fn hook(&self, prefix: &str, namespaces: Vec<Value>, pods: Vec<Value>) -> Value {
        json!({
            "name": format!("{prefix}sidecar-injector.istio.io"),
            "clientConfig": self.client,
            "sideEffects": "None",
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
            "failurePolicy": "Fail",
            "reinvocationPolicy": self.reinvocation,
            "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 10,
            "namespaceSelector": {"matchExpressions": namespaces},
            "objectSelector": {"matchExpressions": pods},
        })
    }
}

fn client(settings: &Settings, path: &str) -> Value {
    json!({"service": {"name": settings.named("istiod"), "namespace": settings.namespace, "path": path, "port": 443}})
}

/// Open until the control plane answers: it sets the policy to `Fail` together with the certificate.
fn validation(settings: &Settings, name: &str, of_revision: bool) -> Value {
    let selector = match of_revision {
        true => json!({"matchExpressions": [expression("istio.io/rev", "In", &[settings.revision_label()])]}),
        false => json!({"matchExpressions": [expression("istio.io/rev", "DoesNotExist", &[])]}),
    };
    validating_hook(name, &client(settings, "/validate"), &selector)
}

/// A webhook that asks about all of Istio's kinds.
pub(super) fn validating_hook(name: &str, client: &Value, selector: &Value) -> Value {
    let mut groups: Vec<&str> = crd::defined().map(|kind| kind.group).collect();
    groups.sort_unstable();
    groups.dedup();
    json!({
        "name": name,
        "clientConfig": client,
        "rules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": groups, "apiVersions": ["*"], "resources": ["*"]}],
        "failurePolicy": "Ignore",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 10,
        "objectSelector": selector,
    })
}
