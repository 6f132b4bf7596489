//! Objects of defined kinds in another version than they are kept in: by the webhook that their definition names
//! (`spec.conversion`). Without one, versions differ by their name alone, and nothing is to be done here.
//!
//! Objects are kept in the storage version of the time when they were written. What a webhook makes of one is its body, its
//! labels and its annotations; everything else of its metadata stays. When it cannot be asked, who wants another version
//! gets its failure, and nobody a body of the wrong version.
//!
//! Source: the Kubernetes documentation, "Versions in CustomResourceDefinitions", "Webhook conversion".

use super::{flag, prune, shape, text, versions};
use crate::kinds::Kinds;
use crate::server::ApiServer;
use crate::status::ApiError;
use crate::webhooks::call;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use weft_k8s_api::kinds::api_version;
use weft_k8s_api::{KindInfo, Object};

/// Objects in one question.
const MAX_OBJECTS: usize = 100;
/// Bytes of the objects in one question, beyond the first.
const MAX_BYTES: usize = 1 << 20;
/// Bytes of one answer.
const MAX_ANSWER: usize = 8 << 20;
/// Seconds for one question.
const SECONDS: u64 = 10;
/// Time for all questions of one request.
const MAX_TIME: Duration = Duration::from_secs(30);

/// What a definition says of its conversion.
pub(crate) struct Conversion {
    /// `spec.conversion.webhook.clientConfig`.
    client: Value,
    /// The version in which objects are kept from now on.
    storage: String,
}

impl Conversion {
    /// Reads it; `None` where versions differ by their name alone.
    pub(super) fn read(spec: &Value) -> Option<Self> {
        if text(spec, "/conversion/strategy") != "Webhook" {
            return None;
        }
        let storage = versions(spec).iter().find(|version| flag(version, "/storage"))?;
        let client = spec.pointer("/conversion/webhook/clientConfig").cloned().unwrap_or_default();
        Some(Self { client, storage: text(storage, "/name").into() })
    }
}

/// What is wrong with what a definition says of its conversion.
pub(super) fn check(spec: &Value, add: &mut dyn FnMut(&str, String)) {
    let webhook = spec.pointer("/conversion/webhook").filter(|webhook| !webhook.is_null());
    match text(spec, "/conversion/strategy") {
        "Webhook" => {}
        "None" => {
            if webhook.is_some() {
                let why = "Forbidden: should not be set when strategy is not set to Webhook";
                add("spec.conversion.webhookClientConfig", why.into());
            }
            return;
        }
        other => {
            let why = format!("Unsupported value: {other:?}: supported values: \"None\", \"Webhook\"");
            return add("spec.conversion.strategy", why);
        }
    }
    if flag(spec, "/preserveUnknownFields") {
        let why = "Invalid value: \"Webhook\": must be None if spec.preserveUnknownFields is true";
        add("spec.conversion.strategy", why.into());
    }
    let client = webhook.and_then(|webhook| webhook.get("clientConfig")).filter(|client| client.is_object());
    match client {
        None => {
            let why = "Required value: required when strategy is set to Webhook";
            add("spec.conversion.webhookClientConfig", why.into());
        }
        Some(client) => {
            for (field, why) in call::check(client) {
                let dot = if field.is_empty() { "" } else { "." };
                add(&format!("spec.conversion.webhookClientConfig{dot}{field}"), why);
            }
        }
    }
    let spoken = webhook.and_then(|webhook| webhook.get("conversionReviewVersions")).and_then(Value::as_array);
    match spoken.map_or(&[][..], Vec::as_slice) {
        [] => add("spec.conversion.conversionReviewVersions", "Required value".into()),
        all if all.iter().all(|version| version != "v1") => {
            let why = format!("Invalid value: {}: must include v1, which is spoken here", json!(all));
            add("spec.conversion.conversionReviewVersions", why);
        }
        _ => {}
    }
}

/// Whether objects of a kind are kept in another form than this version's, so that their fields cannot be selected by.
pub(crate) fn is_foreign(kinds: &Kinds, kind: &KindInfo, version: &str) -> bool {
    let conversion = kinds.custom(kind).and_then(|custom| custom.conversion.as_ref());
    conversion.is_some_and(|conversion| conversion.storage != version)
}

/// One object in a version.
///
/// # Errors
/// What went wrong with the webhook.
pub(crate) async fn one(
    server: &ApiServer,
    kinds: &Kinds,
    kind: &KindInfo,
    version: &str,
    object: Arc<Object>,
) -> Result<Arc<Object>, ApiError> {
    let mut all = all(server, kinds, kind, version, vec![object]).await?;
    all.pop().ok_or_else(|| ApiError::internal("an object was lost in its conversion"))
}

/// A body that speaks `version`, in the form in which it is kept.
///
/// # Errors
/// What went wrong with the webhook.
pub(crate) async fn stored(
    server: &ApiServer,
    kinds: &Kinds,
    kind: &KindInfo,
    version: &str,
    mut object: Object,
) -> Result<Object, ApiError> {
    let Some(conversion) = kinds.custom(kind).and_then(|custom| custom.conversion.as_ref()) else { return Ok(object) };
    object.api_version = api_version(kind.group, version);
    let object = one(server, kinds, kind, &conversion.storage, Arc::new(object)).await?;
    Ok(Arc::unwrap_or_clone(object))
}

/// Objects in a version: those that are in another one go to the webhook, many at a time.
///
/// # Errors
/// What went wrong with the webhook.
pub(crate) async fn all(
    server: &ApiServer,
    kinds: &Kinds,
    kind: &KindInfo,
    version: &str,
    mut objects: Vec<Arc<Object>>,
) -> Result<Vec<Arc<Object>>, ApiError> {
    let Some(custom) = kinds.custom(kind) else { return Ok(objects) };
    let Some(conversion) = &custom.conversion else {
        // As Kubernetes: what is read has the fields and the defaults of the schema of now.
        if let Some(version) = custom.version(version) {
            for object in &mut objects {
                let mut shaped = Object::clone(object);
                shape(version, &mut shaped);
                if shaped != **object {
                    *object = Arc::new(shaped);
                }
            }
        }
        return Ok(objects);
    };
    let wanted = api_version(kind.group, version);
    let schema = custom.version(version);
    let work = async {
        let mut at = 0;
        while let Some(batch) = next(&objects, &wanted, &mut at) {
            let values: Vec<Value> = batch.iter().filter_map(|at| objects.get(*at)).map(|o| o.to_value()).collect();
            let answer = ask(server, conversion, &wanted, &values).await;
            for (place, value) in batch.into_iter().zip(answer.map_err(|why| failed(&objects, at, &why))?) {
                let Some(object) = objects.get_mut(place) else { continue };
                let mut new =
                    made(object, &wanted, value).map_err(|why| failed(std::slice::from_ref(object), 1, &why))?;
                // As Kubernetes: what a webhook leaves out, it has left out. Defaults are for what users write.
                if let Some(schema) = schema {
                    prune(schema, &mut new);
                }
                *object = Arc::new(new);
            }
        }
        Ok(())
    };
    let done = tokio::time::timeout(MAX_TIME, work).await;
    done.unwrap_or_else(|_| Err(error(kind, &wanted, &format!("not all is converted after {MAX_TIME:?}"))))?;
    Ok(objects)
}

/// Places of the objects that go into the next question; `at` is where to look on from.
fn next(objects: &[Arc<Object>], wanted: &str, at: &mut usize) -> Option<Vec<usize>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for (place, object) in objects.iter().enumerate().skip(*at) {
        if object.api_version != wanted {
            let size = serde_json::to_vec(&**object).map_or(0, |text| text.len());
            if !batch.is_empty() && (batch.len() >= MAX_OBJECTS || bytes + size > MAX_BYTES) {
                *at = place;
                return Some(batch);
            }
            batch.push(place);
            bytes += size;
        }
        *at = place + 1;
    }
    (!batch.is_empty()).then_some(batch)
}

/// As Kubernetes names a failure: by the kind and the version that was to be converted from.
fn failed(objects: &[Arc<Object>], before: usize, why: &str) -> ApiError {
    let object = objects.get(before.saturating_sub(1)).or(objects.first());
    let (from, kind) = object.map_or(("", ""), |object| (object.api_version.as_str(), object.kind.as_str()));
    ApiError::denied(500, "", format!("conversion webhook for {from}, Kind={kind} {why}"))
}

fn error(kind: &KindInfo, wanted: &str, why: &str) -> ApiError {
    ApiError::denied(500, "", format!("conversion webhook to {wanted}, Kind={} failed: {why}", kind.kind))
}

/// The converted objects, as many as were sent, or why there are none.
async fn ask(
    server: &ApiServer,
    conversion: &Conversion,
    wanted: &str,
    objects: &[Value],
) -> Result<Vec<Value>, String> {
    let uid = weft_store::memory::new_uid();
    let review = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
        "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects},
    });
    let limits = call::Limits { seconds: SECONDS, answer: MAX_ANSWER };
    let answer =
        call::post(server, &conversion.client, limits, &review).await.map_err(|why| format!("failed: {why}"))?;
    read(&uid, objects.len(), &answer)
}

/// What an answer says.
fn read(uid: &str, count: usize, review: &Value) -> Result<Vec<Value>, String> {
    let wrong = |why: String| Err(format!("failed: {why}"));
    let word = |pointer: &str| text(review, pointer);
    if (word("/apiVersion"), word("/kind")) != ("apiextensions.k8s.io/v1", "ConversionReview") {
        return wrong(format!(
            "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {}, Kind={}",
            word("/apiVersion"),
            word("/kind")
        ));
    }
    if !review.get("response").is_some_and(Value::is_object) {
        return wrong("no response provided".into());
    }
    if word("/response/uid") != uid {
        return wrong(format!("expected response.uid={uid:?}, got {:?}", word("/response/uid")));
    }
    match (word("/response/result/status"), word("/response/result/message")) {
        ("Success", _) => {}
        (status, "") => return wrong(format!("response.result.status was '{status}', not 'Success'")),
        (_, message) => return wrong(message.chars().take(1000).collect()),
    }
    let converted = review.pointer("/response/convertedObjects").and_then(Value::as_array).cloned().unwrap_or_default();
    match converted.len() == count {
        true => Ok(converted),
        false => Err(format!("returned {} objects, expected {count}", converted.len())),
    }
}

/// An object as the webhook made it, with all of its metadata that is not the webhook's to change.
fn made(before: &Object, wanted: &str, value: Value) -> Result<Object, String> {
    let wrong = |why: String| format!("returned invalid object: {why}");
    let new: Object = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
    for (what, expected, got) in [
        ("groupVersion", wanted, new.api_version.as_str()),
        ("kind", &before.kind, &new.kind),
        ("name", before.name(), new.name()),
        ("namespace", before.namespace(), new.namespace()),
        ("UID", before.metadata.uid.as_deref().unwrap_or_default(), new.metadata.uid.as_deref().unwrap_or_default()),
    ] {
        if expected != got {
            return Err(wrong(format!("invalid {what} (expected {expected}, received {got})")));
        }
    }
    let mut object = Object { metadata: before.metadata.clone(), ..new };
    object.metadata.labels = new.metadata.labels;
    object.metadata.annotations = new.metadata.annotations;
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: &str, name: &str, size: usize) -> Arc<Object> {
        let value = json!({"apiVersion": format!("a.test/{version}"), "kind": "A", "spec": "x".repeat(size),
            "metadata": {"name": name, "uid": "u", "resourceVersion": "7", "labels": {"a": "b"}}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn questions_are_bounded() {
        let mut all: Vec<_> = (0..250).map(|n| object("v1", &n.to_string(), 10)).collect();
        all.insert(3, object("v2", "as-it-is", 10));
        all.push(object("v1", "large", MAX_BYTES + 1));
        all.push(object("v1", "after", 10));
        let (mut at, mut sizes, mut seen) = (0, Vec::new(), Vec::new());
        while let Some(batch) = next(&all, "a.test/v2", &mut at) {
            sizes.push(batch.len());
            seen.extend(batch);
        }
        assert_eq!(sizes, [100, 100, 50, 1, 1]);
        let wanted: Vec<usize> = (0..all.len()).filter(|place| *place != 3).collect();
        assert_eq!(seen, wanted, "each once, in their order");
        assert_eq!(next(&all[3..4], "a.test/v2", &mut 0), None);
    }

    #[test]
    fn answers() {
        let answer = |response: Value| json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response});
        let good = json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [1]});
        assert_eq!(read("u", 1, &answer(good.clone())), Ok(vec![json!(1)]));
        for (review, why) in [
            (json!({}), "expected webhook response of"),
            (answer(Value::Null), "no response provided"),
            (answer(json!({"uid": "other"})), "expected response.uid=\"u\", got \"other\""),
            (
                answer(json!({"uid": "u", "result": {"status": "Failed", "message": "no such size"}})),
                "failed: no such size",
            ),
            (answer(json!({"uid": "u"})), "response.result.status was '', not 'Success'"),
        ] {
            let error = read("u", 1, &review).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        assert_eq!(read("u", 2, &answer(good)).unwrap_err(), "returned 1 objects, expected 2");
    }

    #[test]
    fn what_a_webhook_may_change() {
        let before = object("v1", "a", 1);
        let change = |path: &str, value: Value| {
            let mut new = before.to_value();
            new["apiVersion"] = "a.test/v2".into();
            *new.pointer_mut(path).unwrap() = value;
            made(&before, "a.test/v2", new)
        };
        let new = change("/metadata/labels", json!({"c": "d"})).unwrap();
        assert_eq!((new.label("c"), new.label("a"), new.api_version.as_str()), (Some("d"), None, "a.test/v2"));
        // What is the server's is as it was.
        let new = change("/metadata/resourceVersion", json!("9")).unwrap();
        assert_eq!(new.metadata.resource_version.as_deref(), Some("7"));
        for (path, value, why) in [
            ("/metadata/name", json!("b"), "invalid name (expected a, received b)"),
            ("/metadata/uid", json!("v"), "invalid UID"),
            ("/apiVersion", json!("a.test/v3"), "invalid groupVersion (expected a.test/v2, received a.test/v3)"),
            ("/kind", json!("B"), "invalid kind"),
        ] {
            let error = change(path, value).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_definitions_may_say() {
        let webhook = |client: Value, versions: Value| json!({"strategy": "Webhook", "webhook": {"clientConfig": client, "conversionReviewVersions": versions}});
        let url = || json!({"url": "https://a.test/convert"});
        for (conversion, wanted) in [
            (json!({"strategy": "None"}), ""),
            (webhook(url(), json!(["v2", "v1"])), ""),
            (webhook(json!({"service": {"name": "a", "namespace": "b"}}), json!(["v1"])), ""),
            (json!({"strategy": "Magic"}), "spec.conversion.strategy: Unsupported value"),
            (json!({"strategy": "None", "webhook": {}}), "spec.conversion.webhookClientConfig: Forbidden"),
            (json!({"strategy": "Webhook"}), "spec.conversion.webhookClientConfig: Required value"),
            (webhook(json!({}), json!(["v1"])), "spec.conversion.webhookClientConfig: Required value: exactly one of"),
            (
                webhook(json!({"url": "http://a"}), json!(["v1"])),
                "spec.conversion.webhookClientConfig.url: Invalid value",
            ),
            (webhook(url(), json!([])), "spec.conversion.conversionReviewVersions: Required value"),
            (webhook(url(), json!(["v9"])), "must include v1"),
        ] {
            let mut found = Vec::new();
            check(&json!({"conversion": conversion}), &mut |field, why| found.push(format!("{field}: {why}")));
            let found = found.join("; ");
            assert!(if wanted.is_empty() { found.is_empty() } else { found.contains(wanted) }, "{conversion}: {found}");
        }
    }
}
