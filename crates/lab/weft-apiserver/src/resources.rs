//! The verbs on objects: get, list, watch, create, update, patch, delete. Every change goes the same way: defaults, hooks,
//! validation, store.

use crate::admission::{AdmissionRequest, Operation};
use crate::auth::User;
use crate::custom::{self, convert};
use crate::managed::{self, Writer};
use crate::params::Params;
use crate::patch::Patch;
use crate::route::Target;
use crate::schema::Type;
use crate::server::{ApiServer, Context};
use crate::status::{ApiError, FieldError};
use crate::{defaults, metrics, pods, render, scale, validation, watching, webhooks};
use axum::body::Body;
use axum::response::Response;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use weft_k8s_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use weft_k8s_api::{KindInfo, Object};
use weft_store::memory::key;
use weft_store::{
    DeleteOptions, FieldSelector, LabelSelector, ListQuery, ObjectList, Preconditions, Propagation, StoreError,
    is_built_in,
};

/// Repetitions of a change when another writer was quicker and the client named no version.
const ATTEMPTS: usize = 8;

/// A request for objects.
pub(crate) async fn handle(
    context: Context,
    target: Target,
    request: http::Request<Body>,
) -> Result<Response, ApiError> {
    let method = request.method().clone();
    let watch = method == Method::GET && context.params.is_set("watch") && target.sub.is_none();
    context.server.authorize(&context.user, verb(&method, &target, watch), &target)?;
    if metrics::is_measured(target.kind) {
        return metrics::handle(&context, &target, &method).await;
    }
    match (target.kind.kind, target.sub.as_deref()) {
        (_, None) => {}
        ("Pod", Some("log" | "exec" | "attach" | "portforward")) => {
            return pods::handle(context, &target, request).await;
        }
        ("ServiceAccount", Some("token")) if method == Method::POST => {
            return token_request(&context, &target, request).await;
        }
        ("Pod", Some("eviction")) if method == Method::POST => return delete(&context, &target, request).await,
        (_, Some("scale")) if has_scale(&context, &target) => return scale::handle(&context, &target, request).await,
        ("Namespace", Some("finalize")) if method == Method::PUT => {}
        ("CertificateSigningRequest", Some("approval")) => {}
        (_, Some("status")) if context.kinds.has_status(target.kind) => {}
        _ => return Err(ApiError::no_such_path()),
    }
    match (method, target.name.is_some()) {
        (Method::GET, _) if watch => watching::watch(&context, &target),
        (Method::GET, true) => get(&context, &target).await,
        (Method::GET, false) => list(&context, &target).await,
        (Method::POST, false) => create(&context, &target, request).await,
        (Method::PUT, true) => update(&context, &target, request).await,
        (Method::PATCH, true) => patch(&context, &target, request).await,
        (Method::DELETE, true) if target.sub.is_none() => delete(&context, &target, request).await,
        (Method::DELETE, false) => delete_collection(&context, &target, request).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn has_scale(context: &Context, target: &Target) -> bool {
    match context.kinds.custom(target.kind) {
        Some(custom) => custom.version(&target.version).is_some_and(|v| v.scale.is_some()),
        None => target.kind.group == "apps" && matches!(target.kind.kind, "Deployment" | "ReplicaSet" | "StatefulSet"),
    }
}

fn verb(method: &Method, target: &Target, watch: bool) -> &'static str {
    match (method, target.name.is_some()) {
        (&Method::GET, _) if watch => "watch",
        (&Method::GET, true) => "get",
        (&Method::GET, false) => "list",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, true) => "delete",
        (&Method::DELETE, false) => "deletecollection",
        _ => "create",
    }
}

fn current(context: &Context, target: &Target) -> Result<Arc<Object>, ApiError> {
    let found = context.server.store().find(target.kind.group, target.kind.kind, target.namespace(), target.name());
    found.ok_or_else(|| ApiError::not_found(target.kind, target.name()))
}

/// The object in the version that the client speaks.
pub(crate) async fn spoken(context: &Context, target: &Target) -> Result<Arc<Object>, ApiError> {
    in_spoken(context, target, current(context, target)?).await
}

async fn in_spoken(context: &Context, target: &Target, object: Arc<Object>) -> Result<Arc<Object>, ApiError> {
    convert::one(&context.server, &context.kinds, target.kind, &target.version, object).await
}

async fn get(context: &Context, target: &Target) -> Result<Response, ApiError> {
    render::object(context, target, StatusCode::OK, &*spoken(context, target).await?, &[])
}

/// The selectors of a request.
pub(crate) fn selectors(context: &Context, target: &Target) -> Result<(LabelSelector, FieldSelector), ApiError> {
    let params = &context.params;
    let version = context.kinds.custom(target.kind).and_then(|c| c.version(&target.version));
    let further = version.map_or(&[][..], |v| v.selectable.as_slice());
    let wrong = |e: weft_store::SelectorError| ApiError::bad_request(e.to_string());
    let labels = LabelSelector::parse(params.get("labelSelector").unwrap_or_default()).map_err(wrong)?;
    let fields = FieldSelector::parse_with(target.kind.kind, further, params.get("fieldSelector").unwrap_or_default());
    let fields = fields.map_err(wrong)?;
    if convert::is_foreign(&context.kinds, target.kind, &target.version)
        && let Some(term) = fields.terms.iter().find(|term| further.contains(&term.path))
    {
        let message = format!(
            "fieldSelector {}: objects of {} are kept in another version, which a webhook converts; select them in that one",
            term.path, target.kind.plural
        );
        return Err(ApiError::bad_request(message));
    }
    Ok((labels, fields))
}

fn list_query(context: &Context, target: &Target) -> Result<ListQuery, ApiError> {
    let (labels, fields) = selectors(context, target)?;
    Ok(ListQuery {
        group: target.kind.group.into(),
        kind: target.kind.kind.into(),
        namespace: target.namespace.clone(),
        labels,
        fields,
        limit: context.params.number("limit")?,
        continue_token: context.params.get("continue").map(str::to_string),
    })
}

async fn list(context: &Context, target: &Target) -> Result<Response, ApiError> {
    render::list(context, target, &spoken_list(context, target).await?)
}

/// The objects that a request names, in the version that the client speaks.
async fn spoken_list(context: &Context, target: &Target) -> Result<ObjectList, ApiError> {
    let query = list_query(context, target)?;
    let mut list = context.server.store().list(&query).map_err(|e| ApiError::from_store(target.kind, e))?;
    list.items = convert::all(&context.server, &context.kinds, target.kind, &target.version, list.items).await?;
    Ok(list)
}

async fn create(context: &Context, target: &Target, request: http::Request<Body>) -> Result<Response, ApiError> {
    if target.kind.namespaced && target.namespace.is_none() {
        return Err(ApiError::method_not_allowed());
    }
    let body = context.read_json(request).await?;
    create_from(context, target, body).await
}

async fn create_from(context: &Context, target: &Target, body: Value) -> Result<Response, ApiError> {
    let object = read_object(target, body)?;
    let options = CreateOptions {
        dry_run: context.params.dry_run()?,
        strict: Strictness::read(&context.params)?,
        writer: Some(writer(context, target)),
    };
    let (made, warnings) = context.server.create_as(&context.user, object, options).await?;
    render::object(context, target, StatusCode::CREATED, &made, &warnings)
}

/// Who is noted as the manager of what a request changes.
fn writer(context: &Context, target: &Target) -> Writer {
    let manager = context.params.get("fieldManager").unwrap_or(&context.agent);
    let time = jiff::Timestamp::from_second(crate::tokens::now()).unwrap_or_default();
    Writer {
        manager: if manager.is_empty() { "unknown".into() } else { manager.into() },
        api_version: target.api_version(),
        sub: target.sub.clone().unwrap_or_default(),
        time: time.to_string(),
    }
}

/// How an object is created.
struct CreateOptions {
    dry_run: bool,
    strict: Strictness,
    /// Who manages its fields; `None` notes nobody.
    writer: Option<Writer>,
}

/// What is done about fields that a kind does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Nothing.
    Ignore,
    /// A warning.
    Warn,
    /// The object is refused.
    Strict,
}

impl Strictness {
    /// What unknown fields lead to: warnings, a refusal, or nothing.
    fn judge(self, unknown: Vec<String>) -> Result<Vec<String>, ApiError> {
        let texts: Vec<String> = unknown.iter().map(|field| format!("unknown field {field:?}")).collect();
        match self {
            Self::Ignore => Ok(Vec::new()),
            Self::Warn => Ok(texts),
            Self::Strict if texts.is_empty() => Ok(texts),
            Self::Strict => Err(ApiError::bad_request(format!("strict decoding error: {}", texts.join(", ")))),
        }
    }

    fn read(params: &Params) -> Result<Self, ApiError> {
        match params.get("fieldValidation") {
            Some("Ignore") => Ok(Self::Ignore),
            None | Some("Warn") => Ok(Self::Warn),
            Some("Strict") => Ok(Self::Strict),
            Some(other) => {
                Err(ApiError::bad_request(format!("fieldValidation={other}: one of Ignore, Warn, Strict is expected")))
            }
        }
    }
}

impl ApiServer {
    /// Creates an object as a user would: defaults, hooks, validation, store. Returns it with warnings.
    ///
    /// # Errors
    /// What a client would get.
    pub async fn create(
        &self,
        user: &User,
        object: Object,
        dry_run: bool,
        strict: Strictness,
    ) -> Result<(Arc<Object>, Vec<String>), ApiError> {
        self.create_as(user, object, CreateOptions { dry_run, strict, writer: None }).await
    }

    async fn create_as(
        &self,
        user: &User,
        mut object: Object,
        options: CreateOptions,
    ) -> Result<(Arc<Object>, Vec<String>), ApiError> {
        let kinds = self.kinds();
        let kind = kinds.by_kind(object.group(), &object.kind).ok_or_else(ApiError::no_such_path)?;
        if object.metadata.resource_version.as_ref().is_some_and(|v| !v.is_empty()) {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        if kinds.custom(kind).is_some_and(|c| c.terminating) {
            return Err(ApiError::forbidden("create not allowed while custom resource definition is terminating"));
        }
        object.metadata.uid = None;
        let version = object.version().to_string();
        object.api_version = kind.api_version();
        if kinds.custom(kind).is_none() {
            defaults::first_status(kind, &mut object);
        } else if kinds.custom(kind).and_then(|c| c.version(&version)).is_some_and(|v| v.status) {
            object.body.shift_remove("status");
        }
        let dry_run = options.dry_run;
        let hooks = webhooks::Request {
            server: self,
            user,
            kind,
            version: &version,
            sub: None,
            operation: "CREATE",
            dry_run,
            old: None,
        };
        let warnings = self.prepare(&hooks, &mut object, options.strict).await?;
        if let Some(writer) = options.writer.filter(|_| object.metadata.managed_fields.is_none()) {
            let schema = kinds.custom(kind).and_then(|c| c.version(&version)).map(|v| v.schema.clone());
            managed::note_update(Type::of(kind, &version, schema.as_deref()), None, &mut object, &writer);
        }
        let object = convert::stored(self, &kinds, kind, &version, object).await?;
        self.check_size(&object)?;
        let made = self.store().create_with(object, dry_run).map_err(|e| ApiError::from_store(kind, e))?;
        let made = convert::one(self, &kinds, kind, &version, made).await?;
        if kind.kind == "Namespace" && !dry_run {
            self.default_account(made.name())?;
        }
        Ok((made, warnings))
    }

    /// Many small patches must not make what one body may not be.
    fn check_size(&self, object: &Object) -> Result<(), ApiError> {
        let limit = self.options().max_body;
        let size = serde_json::to_vec(object).map_err(|e| ApiError::internal(e.to_string()))?.len();
        if size > limit { Err(ApiError::too_large(limit)) } else { Ok(()) }
    }

    /// Lets the hooks change an object. Returns their warnings.
    async fn own_hooks(&self, request: &webhooks::Request<'_>, object: &mut Object) -> Result<Vec<String>, ApiError> {
        let operation = if request.old.is_some() { Operation::Update } else { Operation::Create };
        let (kind, dry_run, old) = (request.kind, request.dry_run, request.old);
        let own = AdmissionRequest { operation, kind, user: &request.user.name, dry_run, old };
        let mut warnings = Vec::new();
        for hook in &self.options().admission {
            let said = hook.admit(&own, object).await;
            warnings.extend(said.map_err(|denial| denial.into_error(kind, object.name()))?);
        }
        Ok(warnings)
    }

    /// Everything between reading an object and storing it.
    async fn prepare(
        &self,
        request: &webhooks::Request<'_>,
        object: &mut Object,
        strict: Strictness,
    ) -> Result<Vec<String>, ApiError> {
        let kind = request.kind;
        let kinds = self.kinds();
        let version = kinds.custom(kind).and_then(|c| c.version(request.version));
        let mut warnings = Vec::new();
        if let Some(version) = version {
            warnings.extend(version.deprecation.clone());
            let unknown = custom::shape(version, object).unknown;
            warnings.extend(strict.judge(unknown)?);
        }
        if request.sub.is_none() {
            defaults::fill(kind, object);
            warnings.extend(self.own_hooks(request, object).await?);
        }
        let before = object.clone();
        warnings.extend(webhooks::mutate(request, object).await?);
        if request.sub.is_none() {
            // As in Kubernetes: what a webhook has added goes through the API server's own hooks too.
            if *object != before {
                self.own_hooks(request, object).await?;
            }
            defaults::fill(kind, object);
            webhooks::check(kind, object)?;
            if custom::is_definition(kind) {
                custom::fill(object);
                custom::check(kind, object, request.old)?;
            }
            if self.options().validate {
                warnings.extend(validation::check(kind, object, strict)?);
            }
        }
        if let Some(version) = version {
            custom::shape(version, object);
            warnings.extend(custom::validate(version, kind, object, request.old)?);
        }
        warnings.extend(webhooks::validate(request, Some(object)).await?);
        Ok(warnings)
    }
}

/// A change of an object that is computed from its present state.
pub(crate) struct Change {
    /// The new state. Its resource version is the one that it was made for.
    pub(crate) object: Object,
    /// Whether the client named the version: then a conflict is the client's to resolve.
    pub(crate) explicit: bool,
    /// Whether it says already who manages which fields.
    pub(crate) applied: bool,
}

/// Reads, changes, checks and writes an object; again when another writer was quicker.
pub(crate) async fn rewrite(
    context: &Context,
    target: &Target,
    change: impl Fn(&Object) -> Result<Change, ApiError>,
) -> Result<(Arc<Object>, Vec<String>), ApiError> {
    let (server, kind) = (&context.server, target.kind);
    let dry_run = context.params.dry_run()?;
    let strict = Strictness::read(&context.params)?;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let old = spoken(context, target).await?;
        let Change { mut object, explicit, applied } = change(&old)?;
        object.api_version = kind.api_version();
        let hooks = webhooks::Request {
            server,
            user: &context.user,
            kind,
            version: &target.version,
            // A change of the scale is a change of the whole.
            sub: target.sub.as_deref().filter(|s| *s != "scale"),
            operation: "UPDATE",
            dry_run,
            old: Some(&*old),
        };
        let warnings = server.prepare(&hooks, &mut object, strict).await?;
        if !applied {
            let schema = schema_of(context, target);
            let types = Type::of(kind, &target.version, schema.as_deref());
            managed::note_update(types, Some(&old), &mut object, &writer(context, target));
        }
        let object = convert::stored(server, &context.kinds, kind, &target.version, object).await?;
        server.check_size(&object)?;
        match server.store().update_with(object, dry_run) {
            Ok(new) => return Ok((in_spoken(context, target, new).await?, warnings)),
            Err(error @ StoreError::Conflict { .. }) if !explicit => last = Some(error),
            Err(error) => return Err(ApiError::from_store(kind, error)),
        }
    }
    Err(last.map_or_else(|| ApiError::internal("no attempt was made"), |e| ApiError::from_store(kind, e)))
}

/// Puts the part that the target names (the whole, the status, the finalizers) of `wanted` into `old`.
fn compose(context: &Context, target: &Target, old: &Object, mut wanted: Object) -> Change {
    let version = wanted.metadata.resource_version.take().filter(|v| !v.is_empty());
    let explicit = version.as_ref().is_some_and(|v| Some(v) != old.metadata.resource_version.as_ref());
    let part = match (target.sub.as_deref(), target.kind.kind) {
        // Who approves a signing request and who signs it write parts of one status.
        (Some("status" | "approval"), _) => Some("status"),
        (Some("finalize"), _) => Some("spec"),
        _ => None,
    };
    let mut object = match part {
        Some(part) => {
            let mut object = old.clone();
            match wanted.body.shift_remove(part) {
                Some(value) => drop(object.body.insert(part.into(), value)),
                None => drop(object.body.shift_remove(part)),
            }
            object
        }
        None => {
            let keep: &[&str] = match target.kind.kind {
                // What holds a namespace back is changed through its own path.
                "Namespace" => &["status", "spec"],
                _ if context.kinds.has_status(target.kind) => &["status"],
                _ => &[],
            };
            for part in keep {
                match old.body.get(*part) {
                    Some(value) => drop(wanted.body.insert((*part).into(), value.clone())),
                    None => drop(wanted.body.shift_remove(*part)),
                }
            }
            wanted
        }
    };
    object.metadata.resource_version = version.clone().or_else(|| old.metadata.resource_version.clone());
    Change { object, explicit: explicit || version.is_some(), applied: false }
}

/// Kinds that are overwritten only by who says what was read: those that users define, and a few of Kubernetes' own.
/// Source: `AllowUnconditionalUpdate` of Kubernetes' registries.
fn needs_version(kind: &KindInfo) -> bool {
    const OWN: [&str; 8] = [
        "CustomResourceDefinition",
        "Lease",
        "MutatingWebhookConfiguration",
        "PodDisruptionBudget",
        "RuntimeClass",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
        "ValidatingWebhookConfiguration",
    ];
    !is_built_in(kind.group) || OWN.contains(&kind.kind)
}

async fn update(context: &Context, target: &Target, request: http::Request<Body>) -> Result<Response, ApiError> {
    let body = context.read_json(request).await?;
    let wanted = read_object(target, body)?;
    if wanted.metadata.resource_version.as_ref().is_none_or(String::is_empty) && needs_version(target.kind) {
        current(context, target)?;
        let field = "metadata.resourceVersion".into();
        let message = "Invalid value: 0: must be specified for an update".into();
        return Err(ApiError::invalid(target.kind, target.name(), &[FieldError { field, message }]));
    }
    let (new, warnings) = rewrite(context, target, |old| Ok(compose(context, target, old, wanted.clone()))).await?;
    render::object(context, target, StatusCode::OK, &new, &warnings)
}

/// The schema of a defined kind.
fn schema_of(context: &Context, target: &Target) -> Option<Arc<Value>> {
    context.kinds.custom(target.kind).and_then(|c| c.version(&target.version)).map(|v| v.schema.clone())
}

async fn patch(context: &Context, target: &Target, request: http::Request<Body>) -> Result<Response, ApiError> {
    let (content_type, body) = context.read_body(request).await?;
    let patch = match Patch::read(target.kind, &content_type, &body)? {
        Patch::Apply(wanted) => return apply(context, target, wanted).await,
        patch => patch,
    };
    let change = |old: &Object| {
        let mut before = old.to_value();
        before["apiVersion"] = target.api_version().into();
        let after = patch.apply(target.kind, &before)?;
        let mut wanted = read_object(target, after)?;
        let same_version = wanted.metadata.resource_version == old.metadata.resource_version;
        if same_version {
            wanted.metadata.resource_version = None;
        }
        Ok(compose(context, target, old, wanted))
    };
    let (new, warnings) = rewrite(context, target, change).await?;
    render::object(context, target, StatusCode::OK, &new, &warnings)
}

/// Server-side apply.
async fn apply(context: &Context, target: &Target, mut wanted: Value) -> Result<Response, ApiError> {
    if context.params.get("fieldManager").is_none() {
        return Err(ApiError::bad_request("fieldManager is required for apply patch"));
    }
    tidy_applied(context, target, &mut wanted)?;
    let schema = schema_of(context, target);
    let types = Type::of(target.kind, &target.version, schema.as_deref());
    let (writer, force) = (writer(context, target), context.params.is_set("force"));
    let merge = |live: &Value| managed::apply(types, live, &wanted, &writer, force).map_err(|why| refused(target, why));
    if target.sub.is_none() && current(context, target).is_err() {
        context.server.authorize(&context.user, "create", target)?;
        return create_from(context, target, merge(&Value::Null)?).await;
    }
    let change = |old: &Object| {
        let mut before = old.to_value();
        before["apiVersion"] = target.api_version().into();
        let mut merged = read_object(target, merge(&before)?)?;
        let named = wanted.pointer("/metadata/resourceVersion").and_then(Value::as_str).filter(|v| !v.is_empty());
        merged.metadata.resource_version = named.map(str::to_string);
        let managers = merged.metadata.managed_fields.clone();
        let mut change = compose(context, target, old, merged);
        change.object.metadata.managed_fields = managers;
        change.applied = true;
        Ok(change)
    };
    let (new, warnings) = rewrite(context, target, change).await?;
    render::object(context, target, StatusCode::OK, &new, &warnings)
}

fn refused(target: &Target, why: managed::Refusal) -> ApiError {
    match why {
        managed::Refusal::TooManyManagers => ApiError::bad_request(
            "too many managers apply fields of this object; remove some of metadata.managedFields",
        ),
        managed::Refusal::Conflicts(conflicts) => ApiError::apply_conflict(target.kind, target.name(), &conflicts),
    }
}

/// An applied object says who it is by its path; what the server manages is not the client's.
fn tidy_applied(context: &Context, target: &Target, wanted: &mut Value) -> Result<(), ApiError> {
    let fields = wanted.as_object_mut().ok_or_else(|| ApiError::bad_request("an object is expected"))?;
    let status = target.sub.as_deref() == Some("status");
    if status {
        fields.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
    } else if context.kinds.has_status(target.kind) {
        fields.shift_remove("status");
    }
    let meta = fields.entry("metadata").or_insert_with(|| json!({}));
    let meta = meta.as_object_mut().ok_or_else(|| ApiError::bad_request("metadata: an object is expected"))?;
    if meta.get("managedFields").and_then(Value::as_array).is_some_and(|m| !m.is_empty()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    meta.shift_remove("managedFields");
    meta.entry("name").or_insert_with(|| target.name().into());
    if let Some(namespace) = &target.namespace {
        meta.entry("namespace").or_insert_with(|| namespace.clone().into());
    }
    Ok(())
}

/// Reads a body as an object that fits the path.
pub(crate) fn read_object(target: &Target, mut body: Value) -> Result<Object, ApiError> {
    let wrong = |message: String| ApiError::bad_request(message);
    if let Some(fields) = body.as_object_mut() {
        // Typed clients leave out what the path says already.
        fields.entry("apiVersion").or_insert_with(|| target.api_version().into());
        fields.entry("kind").or_insert_with(|| target.kind.kind.into());
    }
    let mut object: Object = serde_json::from_value(body)
        .map_err(|e| wrong(format!("the body is not an object of Kubernetes ({}): {e}", target.kind.kind)))?;
    if object.api_version != target.api_version() || object.kind != target.kind.kind {
        return Err(wrong(format!(
            "the body is a {} of {}; this path takes {} of {}",
            object.kind,
            object.api_version,
            target.kind.kind,
            target.api_version()
        )));
    }
    match (object.metadata.namespace.as_deref().unwrap_or_default(), target.namespace()) {
        (_, "") => object.metadata.namespace = None,
        ("", namespace) => object.metadata.namespace = Some(namespace.into()),
        (found, namespace) if found != namespace => {
            return Err(wrong(format!(
                "the namespace of the provided object does not match the namespace sent on the request \
                 ({found:?}, {namespace:?})"
            )));
        }
        _ => {}
    }
    match (object.name(), target.name()) {
        ("", name) if !name.is_empty() => object.metadata.name = Some(name.into()),
        (found, name) if !name.is_empty() && found != name => {
            return Err(wrong(format!("the name of the object ({found}) does not match the name on the URL ({name})")));
        }
        _ => {}
    }
    Ok(object)
}

async fn delete(context: &Context, target: &Target, request: http::Request<Body>) -> Result<Response, ApiError> {
    let options = delete_options(context, request).await?;
    let key = key(target.kind.group, target.kind.kind, target.namespace(), target.name());
    let warnings = may_delete(context, target, &*spoken(context, target).await?, options.dry_run).await?;
    let deleted = context.server.store().delete(&key, &options).map_err(|e| ApiError::from_store(target.kind, e))?;
    if target.sub.is_some() || (deleted.gone && !answers_with_object(target.kind)) {
        return Ok(render::with_warnings(render::deleted(target, &deleted.object), &warnings));
    }
    let object = in_spoken(context, target, deleted.object).await?;
    render::object(context, target, StatusCode::OK, &object, &warnings)
}

/// Kinds whose deletion is answered with the object, as typed clients expect; the others get a `Status`.
/// Source: Kubernetes' API reference, the responses of the delete operations.
fn answers_with_object(kind: &KindInfo) -> bool {
    kind.group.is_empty()
        && matches!(
            kind.kind,
            "Pod" | "Service" | "ServiceAccount" | "PersistentVolume" | "PersistentVolumeClaim" | "ResourceQuota"
        )
}

/// Asks the webhooks whether an object may go.
async fn may_delete(context: &Context, target: &Target, old: &Object, dry_run: bool) -> Result<Vec<String>, ApiError> {
    let request = webhooks::Request {
        server: &context.server,
        user: &context.user,
        kind: target.kind,
        version: &target.version,
        sub: None,
        operation: "DELETE",
        dry_run,
        old: Some(old),
    };
    webhooks::validate(&request, None).await
}

async fn delete_collection(
    context: &Context,
    target: &Target,
    request: http::Request<Body>,
) -> Result<Response, ApiError> {
    // As with Kubernetes: nothing is deleted in all namespaces at once, least of all by a client that left one out.
    if target.kind.namespaced && target.namespace.is_none() {
        return Err(ApiError::method_not_allowed());
    }
    let list = spoken_list(context, target).await?;
    let options = delete_options(context, request).await?;
    let store = context.server.store();
    for object in &list.items {
        may_delete(context, target, object, options.dry_run).await?;
        match store.delete(&object.key(), &options) {
            Ok(_) | Err(StoreError::NotFound(_)) => {}
            Err(error) => return Err(ApiError::from_store(target.kind, error)),
        }
    }
    render::list(context, target, &list)
}

/// Options from the body, or from the query string (which an eviction and old clients use).
async fn delete_options(context: &Context, request: http::Request<Body>) -> Result<DeleteOptions, ApiError> {
    let (content_type, body) = context.read_body(request).await?;
    let body: Value = if body.is_empty() { Value::Null } else { context.parse(&content_type, &body)? };
    // An eviction carries the options inside.
    let body = body.get("deleteOptions").cloned().unwrap_or(body);
    let empty = Map::new();
    let fields = body.as_object().unwrap_or(&empty);
    let params = &context.params;
    let text = |name: &str| fields.get(name).and_then(Value::as_str).or_else(|| params.get(name));
    let propagation = match text("propagationPolicy") {
        None => Propagation::Unspecified,
        Some("Background") => Propagation::Background,
        Some("Foreground") => Propagation::Foreground,
        Some("Orphan") => Propagation::Orphan,
        Some(other) => {
            let message = format!("propagationPolicy {other:?}: one of Background, Foreground, Orphan is expected");
            return Err(ApiError::bad_request(message));
        }
    };
    let expect =
        |name: &str| body.pointer(&format!("/preconditions/{name}")).and_then(Value::as_str).map(str::to_string);
    let dry_run = params.dry_run()? || fields.get("dryRun").is_some_and(|d| *d == json!(["All"]));
    let grace = fields.get("gracePeriodSeconds").and_then(Value::as_i64);
    Ok(DeleteOptions {
        preconditions: Preconditions { uid: expect("uid"), resource_version: expect("resourceVersion") },
        propagation,
        grace_period_seconds: grace.or(params.number("gracePeriodSeconds")?),
        dry_run,
    })
}

async fn token_request(context: &Context, target: &Target, request: http::Request<Body>) -> Result<Response, ApiError> {
    let mut body = context.read_json(request).await?;
    let spec = body.get("spec").cloned().unwrap_or(Value::Null);
    let audiences = spec.get("audiences").and_then(Value::as_array).into_iter().flatten();
    let audiences: Vec<String> = audiences.filter_map(|a| a.as_str().map(str::to_string)).collect();
    let seconds = spec.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(3600);
    let pod = match spec.get("boundObjectRef").filter(|b| !b.is_null()) {
        None => None,
        Some(bound) if bound.get("kind").and_then(Value::as_str) == Some("Pod") => {
            let text = |name: &str| bound.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
            Some(crate::tokens::BoundPod { name: text("name"), uid: text("uid") })
        }
        Some(_) => return Err(ApiError::bad_request("spec.boundObjectRef: only Pods are supported")),
    };
    let fields = body.as_object_mut().ok_or_else(|| ApiError::bad_request("a TokenRequest object is expected"))?;
    // The account must exist under its own name, whatever the body says.
    current(context, target)?;
    let holder = (target.namespace(), target.name());
    let (token, expires) = context.server.tokens().issue(context.server.store(), holder, &audiences, seconds, pod)?;
    let expires = Time(jiff::Timestamp::from_second(expires).unwrap_or_default());
    fields.insert("status".into(), json!({"token": token, "expirationTimestamp": expires}));
    Ok(render::value(&body))
}
