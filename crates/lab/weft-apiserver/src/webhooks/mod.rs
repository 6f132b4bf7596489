//! Admission webhooks: which of the registered ones see a request, in which order, and what follows from their answers.
//! Talking to one, also of conversion, is in [`call`], their conditions in CEL in [`conditions`]; policies in CEL, which need no
//! webhook, in [`policies`]. The Kubernetes API's own hooks (the lab's) are in [`crate::admission`].
//!
//! Source: the Kubernetes documentation, "Dynamic Admission Control".

pub(crate) mod call;
mod conditions;
mod policies;
mod select;

use crate::auth::User;
use crate::patch::{Patch, apply_operations};
use crate::server::ApiServer;
use crate::status::{ApiError, FieldError};
use crate::{cel, custom};
use base64::Engine;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::sync::Arc;
use weft_k8s_api::kinds::api_version;
use weft_k8s_api::{KindInfo, Object};
use weft_store::ListQuery;

/// Longest answer in bytes.
const MAX_ANSWER: usize = 3 << 20;
/// Seconds for one question when the webhook names none.
const DEFAULT_SECONDS: u64 = 10;
/// Group of the configurations, whose own objects no webhook sees: a broken one could not be removed otherwise.
const GROUP: &str = "admissionregistration.k8s.io";

/// A request as webhooks see it.
pub(crate) struct Request<'a> {
    pub(crate) server: &'a ApiServer,
    pub(crate) user: &'a User,
    pub(crate) kind: &'static KindInfo,
    /// The version that the client speaks.
    pub(crate) version: &'a str,
    pub(crate) sub: Option<&'a str>,
    /// `CREATE`, `UPDATE`, `DELETE`.
    pub(crate) operation: &'static str,
    pub(crate) dry_run: bool,
    pub(crate) old: Option<&'a Object>,
}

/// One webhook of a configuration.
pub(crate) struct Webhook {
    pub(crate) name: String,
    pub(crate) spec: Value,
}

impl Webhook {
    fn text(&self, field: &str) -> &str {
        self.spec.get(field).and_then(Value::as_str).unwrap_or_default()
    }
}

/// The webhooks of all configurations of a kind, configurations by name, webhooks as listed.
///
/// # Errors
/// When they cannot be listed: nobody is let past them.
fn registered(server: &ApiServer, kind: &str) -> Result<Vec<Webhook>, ApiError> {
    let list = server.store().list(&ListQuery::all(GROUP, kind));
    let list = list.map_err(|error| ApiError::internal(format!("cannot list every {kind}: {error}")))?;
    let hooks = |configuration: &Arc<Object>| {
        let hooks = configuration.body.get("webhooks").and_then(Value::as_array).cloned().unwrap_or_default();
        hooks.into_iter().map(|spec| {
            let name = spec.get("name").and_then(Value::as_str).unwrap_or_default().to_string();
            Webhook { name, spec }
        })
    };
    Ok(list.items.iter().flat_map(hooks).collect())
}

/// Lets the mutating webhooks change an object. Returns their warnings.
///
/// # Errors
/// A webhook's denial, or that it could not be asked and its `failurePolicy` is `Fail`.
pub(crate) async fn mutate(request: &Request<'_>, object: &mut Object) -> Result<Vec<String>, ApiError> {
    if request.kind.group == GROUP {
        return Ok(Vec::new());
    }
    let hooks = registered(request.server, "MutatingWebhookConfiguration")?;
    let mut warnings = Vec::new();
    // Per webhook: whether it was asked, and whether a later one has changed the object since.
    let mut outdated = vec![false; hooks.len()];
    for round in 0..2 {
        for (at, hook) in hooks.iter().enumerate() {
            let again = outdated.get(at).copied().unwrap_or(false) && hook.text("reinvocationPolicy") == "IfNeeded";
            if round == 1 && !again {
                continue;
            }
            let Some(version) = wanted(request, hook, Some(object)).await? else { continue };
            let answer = ask(request, hook, version, Some(object)).await?;
            warnings.extend(answer.warnings);
            let before = object.clone();
            if let Some(patch) = &answer.patch {
                apply(request, hook, version, object, patch).await?;
            }
            if *object != before && round == 0 {
                outdated.iter_mut().take(at).for_each(|flag| *flag = true);
            }
        }
    }
    Ok(warnings)
}

/// The version in which a webhook wants to see a request; `None` when it is not concerned.
///
/// # Errors
/// When one of its conditions cannot be evaluated and its `failurePolicy` is `Fail`.
async fn wanted<'a>(
    request: &Request<'a>,
    hook: &Webhook,
    object: Option<&Object>,
) -> Result<Option<&'a str>, ApiError> {
    let Some(version) = select::version(request, hook, object) else { return Ok(None) };
    let all = hook.spec.get("matchConditions").and_then(Value::as_array).cloned().unwrap_or_default();
    if all.is_empty() {
        return Ok(Some(version));
    }
    let facts = conditions::Facts::of(request, version, Shown::of(request, version, object).await?);
    let held = cel::evaluate(|context| {
        facts.bind(context);
        conditions::hold(&all, &conditions::names(), context)
    });
    match held.unwrap_or_else(Err) {
        Ok(held) => Ok(held.then_some(version)),
        Err(_) if hook.text("failurePolicy") == "Ignore" => Ok(None),
        Err(why) => {
            let name = object.or(request.old).map(Object::name).unwrap_or_default();
            let why = format!("the match conditions of webhook {:?} cannot be evaluated: {why}", hook.name);
            Err(ApiError::forbidden_object(request.kind, name, &why))
        }
    }
}

/// Asks the policies, then the validating webhooks, all at once. `object` is `None` for deletions. Returns their warnings.
///
/// # Errors
/// The first denial in the order of the configurations, or that one could not be asked.
pub(crate) async fn validate(request: &Request<'_>, object: Option<&Object>) -> Result<Vec<String>, ApiError> {
    if request.kind.group == GROUP {
        return Ok(Vec::new());
    }
    let mut warnings = policies::judge(request, object).await?;
    let hooks = registered(request.server, "ValidatingWebhookConfiguration")?;
    let mut selected = Vec::new();
    for hook in &hooks {
        selected.extend(wanted(request, hook, object).await?.map(|version| (hook, version)));
    }
    let answers = join_all(selected.into_iter().map(|(hook, version)| ask(request, hook, version, object))).await;
    for answer in answers {
        warnings.extend(answer?.warnings);
    }
    Ok(warnings)
}

#[derive(Default)]
struct Answer {
    patch: Option<json_patch::Patch>,
    warnings: Vec<String>,
}

async fn ask(
    request: &Request<'_>,
    hook: &Webhook,
    version: &str,
    object: Option<&Object>,
) -> Result<Answer, ApiError> {
    let side_effects = hook.text("sideEffects");
    if request.dry_run && !matches!(side_effects, "None" | "NoneOnDryRun") {
        return Err(ApiError::bad_request(format!("admission webhook {:?} does not support dry run", hook.name)));
    }
    let (uid, review) = review(request, version, &Shown::of(request, version, object).await?);
    let seconds = hook.spec.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(DEFAULT_SECONDS).clamp(1, 30);
    let limits = call::Limits { seconds, answer: MAX_ANSWER };
    let client = hook.spec.get("clientConfig").unwrap_or(&Value::Null);
    let answer = match call::post(request.server, client, limits, &review).await {
        Ok(answer) => read_answer(hook, &uid, &answer),
        Err(why) => Err(Failure::Call(why)),
    };
    match answer {
        Ok(answer) => Ok(answer),
        Err(Failure::Denied(error)) => Err(*error),
        Err(Failure::Call(why)) if hook.text("failurePolicy") == "Ignore" => {
            tracing::warn!(webhook = hook.name, why, "a webhook could not be asked; failurePolicy is Ignore");
            Ok(Answer::default())
        }
        Err(Failure::Call(why)) => Err(ApiError::internal(format!(
            "Internal error occurred: failed calling webhook {:?}: failed to call webhook: {why}",
            hook.name
        ))),
    }
}

enum Failure {
    Denied(Box<ApiError>),
    Call(String),
}

/// The objects of a request in the version that somebody wants to see; null where there is none.
struct Shown {
    object: Value,
    old: Value,
}

impl Shown {
    async fn of(request: &Request<'_>, version: &str, object: Option<&Object>) -> Result<Self, ApiError> {
        Ok(Self {
            object: in_version(request, version, object).await?,
            old: in_version(request, version, request.old).await?,
        })
    }
}

/// An `admission.k8s.io/v1` AdmissionReview, and its uid.
fn review(request: &Request<'_>, version: &str, shown: &Shown) -> (String, Value) {
    let uid = weft_store::memory::new_uid();
    let kind = request.kind;
    let subject = if shown.object.is_null() { &shown.old } else { &shown.object };
    let named = |field: &str| subject.pointer(&format!("/metadata/{field}")).and_then(Value::as_str);
    let gvk = |version: &str| json!({"group": kind.group, "version": version, "kind": kind.kind});
    let gvr = |version: &str| json!({"group": kind.group, "version": version, "resource": kind.plural});
    let options = match request.operation {
        "CREATE" => "CreateOptions",
        "UPDATE" => "UpdateOptions",
        _ => "DeleteOptions",
    };
    let mut asked = json!({
        "uid": uid, "kind": gvk(version), "resource": gvr(version), "requestKind": gvk(request.version),
        "requestResource": gvr(request.version), "name": named("name"), "operation": request.operation,
        "userInfo": request.user.to_value(), "object": shown.object, "oldObject": shown.old,
        "dryRun": request.dry_run, "options": {"apiVersion": "meta.k8s.io/v1", "kind": options},
    });
    // As Kubernetes: a Namespace is in itself.
    let namespace = named(if kind.kind == "Namespace" { "name" } else { "namespace" }).unwrap_or_default();
    if !namespace.is_empty() {
        asked["namespace"] = namespace.into();
    }
    if let Some(sub) = request.sub {
        asked["subResource"] = sub.into();
        asked["requestSubResource"] = sub.into();
    }
    (uid, json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}))
}

/// An object of a request, whose body speaks the request's version, in another one.
async fn in_version(request: &Request<'_>, version: &str, object: Option<&Object>) -> Result<Value, ApiError> {
    let Some(object) = object else { return Ok(Value::Null) };
    let mut value = object.to_value();
    if version != request.version {
        value["apiVersion"] = api_version(request.kind.group, request.version).into();
        let object = serde_json::from_value(value).map_err(|e| ApiError::internal(e.to_string()))?;
        value = converted(request, version, object).await?.to_value();
    }
    value["apiVersion"] = api_version(request.kind.group, version).into();
    Ok(value)
}

async fn converted(request: &Request<'_>, version: &str, object: Object) -> Result<Arc<Object>, ApiError> {
    let kinds = request.server.kinds();
    custom::convert::one(request.server, &kinds, request.kind, version, Arc::new(object)).await
}

fn read_answer(hook: &Webhook, uid: &str, review: &Value) -> Result<Answer, Failure> {
    let wrong = |why: &str| Err(Failure::Call(format!("received an invalid webhook response: {why}")));
    let Some(response) = review.get("response").filter(|r| r.is_object()) else {
        return wrong("webhook response was absent");
    };
    if response.get("uid").and_then(Value::as_str) != Some(uid) {
        return wrong("response.uid is not that of the request");
    }
    let texts = response.get("warnings").and_then(Value::as_array).into_iter().flatten();
    let warnings = texts.filter_map(Value::as_str).map(str::to_string).collect();
    if response.get("allowed").and_then(Value::as_bool) != Some(true) {
        return Err(Failure::Denied(Box::new(denial(hook, response.get("status").unwrap_or(&Value::Null)))));
    }
    let Some(patch) = response.get("patch").and_then(Value::as_str).filter(|p| !p.is_empty()) else {
        return Ok(Answer { patch: None, warnings });
    };
    if response.get("patchType").and_then(Value::as_str) != Some("JSONPatch") {
        return wrong("response.patchType must be JSONPatch");
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(patch);
    let Ok(bytes) = bytes else { return wrong("response.patch is not base64") };
    match Patch::read_operations(&bytes) {
        Ok(patch) => Ok(Answer { patch: Some(patch), warnings }),
        Err(error) => wrong(&error.message),
    }
}

/// A denial with the words and the code of Kubernetes.
fn denial(hook: &Webhook, status: &Value) -> ApiError {
    let text = |name: &str| status.get(name).and_then(Value::as_str).filter(|t| !t.is_empty());
    let by = format!("admission webhook {:?} denied the request", hook.name);
    let message = match text("message").or_else(|| text("reason")) {
        Some(why) => format!("{by}: {why}"),
        None => format!("{by} without explanation"),
    };
    let code = status.get("code").and_then(Value::as_u64).and_then(|c| u16::try_from(c).ok());
    ApiError::denied(
        code.filter(|c| (400..600).contains(c)).unwrap_or(400),
        text("reason").unwrap_or_default(),
        message,
    )
}

async fn apply(
    request: &Request<'_>,
    hook: &Webhook,
    version: &str,
    object: &mut Object,
    patch: &json_patch::Patch,
) -> Result<(), ApiError> {
    let failed = |why: &str| {
        ApiError::internal(format!("Internal error occurred: the patch of webhook {:?} does not fit: {why}", hook.name))
    };
    let before = in_version(request, version, Some(object)).await?;
    let after = apply_operations(before, patch).map_err(|e| failed(&e.message))?;
    let mut new: Object = serde_json::from_value(after).map_err(|e| failed(&e.to_string()))?;
    if version != request.version {
        new = Arc::unwrap_or_clone(converted(request, request.version, new).await?);
    }
    new.api_version.clone_from(&object.api_version);
    if new.key() != object.key() || new.metadata.uid != object.metadata.uid {
        return Err(failed("it must not change what object this is"));
    }
    *object = new;
    Ok(())
}

/// Refuses configurations that could not be followed.
pub(crate) fn check(kind: &KindInfo, object: &Object) -> Result<(), ApiError> {
    if kind.group != GROUP {
        return Ok(());
    }
    let hooks = object.body.get("webhooks").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut wrong = policies::check(object);
    for (at, spec) in hooks.iter().enumerate() {
        let mut add = |field: &str, message: &str| {
            wrong.push(FieldError { field: format!("webhooks[{at}].{field}"), message: message.into() });
        };
        let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default();
        if text("name").split('.').count() < 3 {
            add("name", "should be a domain with at least three segments separated by dots");
        }
        let client = spec.get("clientConfig").unwrap_or(&Value::Null);
        for (field, why) in call::check(client) {
            let dot = if field.is_empty() { "" } else { "." };
            add(&format!("clientConfig{dot}{field}"), &why);
        }
        if !matches!(text("sideEffects"), "None" | "NoneOnDryRun") {
            add("sideEffects", "must be specified as None or NoneOnDryRun");
        }
        let versions = spec.get("admissionReviewVersions").and_then(Value::as_array);
        if !versions.is_some_and(|v| v.iter().any(|v| v == "v1")) {
            add("admissionReviewVersions", "must name v1, the only version that is spoken here");
        }
        let seconds = spec.get("timeoutSeconds").and_then(Value::as_i64).unwrap_or(10);
        if !(1..=30).contains(&seconds) {
            add("timeoutSeconds", "must be between 1 and 30 seconds");
        }
        if let Err((field, message)) = select::check(spec) {
            add(&field, &message);
        }
        let place = format!("webhooks[{at}].matchConditions");
        let given = spec.get("matchConditions").unwrap_or(&Value::Null);
        wrong.extend(conditions::check(given, &conditions::names(), &place));
    }
    if wrong.is_empty() { Ok(()) } else { Err(ApiError::invalid(kind, object.name(), &wrong)) }
}
