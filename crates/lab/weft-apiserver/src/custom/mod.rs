//! Kinds that CustomResourceDefinitions define: names, versions, schemas, columns; and what the server itself writes into a
//! definition. Objects of these kinds are checked in [`structural`] and by the [`rules`] of their schemas; between versions
//! they go through [`convert`]; columns are read by [`path`].

pub(crate) mod convert;
pub(crate) mod path;
pub(crate) mod rules;
pub(crate) mod structural;

use crate::kinds::DEFINITION;
use crate::status::{ApiError, FieldError};
use rules::Rules;
use serde_json::{Map, Value, json};
use std::sync::{Arc, OnceLock};
use weft_k8s_api::kinds::{KindName, intern};
use weft_k8s_api::{KindInfo, Object};

/// Holds a definition until its objects are gone.
pub(crate) const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Fields of one version that objects can be selected by. Source: the API reference, `selectableFields`.
const MAX_SELECTABLE: usize = 8;
/// Versions of one kind at most.
const MAX_VERSIONS: usize = 32;

/// A defined kind.
pub(crate) struct Custom {
    pub(crate) info: &'static KindInfo,
    pub(crate) versions: Vec<Version>,
    /// How objects come from one version to another, when not by the name alone.
    pub(crate) conversion: Option<convert::Conversion>,
    /// The definition is being deleted: nothing new is created.
    pub(crate) terminating: bool,
}

/// A served version of a defined kind.
pub(crate) struct Version {
    pub(crate) name: String,
    pub(crate) schema: Arc<Value>,
    /// Its rules in CEL, read when the first object comes.
    rules: OnceLock<Rules>,
    pub(crate) status: bool,
    /// Where replicas and selector are, when it has a scale.
    pub(crate) scale: Option<Scale>,
    pub(crate) columns: Vec<Column>,
    /// Fields that objects can be selected by: `spec.color`.
    pub(crate) selectable: Vec<String>,
    /// What to tell those who use a deprecated version.
    pub(crate) deprecation: Option<String>,
}

/// The `scale` subresource: JSON paths.
#[derive(Clone)]
pub(crate) struct Scale {
    pub(crate) spec_replicas: String,
    pub(crate) status_replicas: String,
    pub(crate) selector: Option<String>,
}

/// `additionalPrinterColumns`.
#[derive(Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) description: String,
    pub(crate) priority: i64,
    pub(crate) path: String,
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
}

fn texts(value: &Value, pointer: &str) -> Vec<String> {
    let list = value.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_string).collect()
}

fn versions(spec: &Value) -> &[Value] {
    spec.get("versions").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

impl Custom {
    /// Reads a definition; `None` when no version is served.
    pub(crate) fn read(definition: &Object) -> Option<Self> {
        let spec = definition.spec();
        let mut served: Vec<&Value> = versions(spec).iter().filter(|v| flag(v, "/served")).collect();
        served.sort_by_key(|v| !flag(v, "/storage"));
        let read: Vec<Version> = served.iter().map(|v| Version::read(spec, v)).collect();
        let name = KindName {
            group: text(spec, "/group").into(),
            versions: read.iter().map(|v| v.name.clone()).collect(),
            kind: text(spec, "/names/kind").into(),
            plural: text(spec, "/names/plural").into(),
            singular: text(spec, "/names/singular").into(),
            short: texts(spec, "/names/shortNames"),
            namespaced: text(spec, "/scope") == "Namespaced",
            categories: texts(spec, "/names/categories"),
        };
        let info = intern(&name).filter(|_| !read.is_empty())?;
        let conversion = convert::Conversion::read(spec);
        Some(Self { info, versions: read, conversion, terminating: definition.metadata.deletion_timestamp.is_some() })
    }

    /// A version that is served.
    pub(crate) fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|v| v.name == name)
    }
}

impl Version {
    fn read(spec: &Value, version: &Value) -> Self {
        let mut schema =
            version.pointer("/schema/openAPIV3Schema").cloned().unwrap_or_else(|| json!({"type": "object"}));
        if flag(spec, "/preserveUnknownFields")
            && let Some(schema) = schema.as_object_mut()
        {
            schema.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
        }
        let scale = version.pointer("/subresources/scale").map(|scale| Scale {
            spec_replicas: text(scale, "/specReplicasPath").into(),
            status_replicas: text(scale, "/statusReplicasPath").into(),
            selector: Some(text(scale, "/labelSelectorPath").to_string()).filter(|p| !p.is_empty()),
        });
        let columns = version.get("additionalPrinterColumns").and_then(Value::as_array).into_iter().flatten();
        let columns: Vec<Column> = columns.map(Column::read).collect();
        let name = text(version, "/name").to_string();
        let deprecation = flag(version, "/deprecated").then(|| match text(version, "/deprecationWarning") {
            "" => format!("{}/{name} {} is deprecated", text(spec, "/group"), text(spec, "/names/kind")),
            warning => warning.to_string(),
        });
        Self {
            name,
            schema: Arc::new(schema),
            rules: OnceLock::new(),
            status: version.pointer("/subresources/status").is_some(),
            scale,
            selectable: selectable(version).map(|path| path.trim_start_matches('.').to_string()).collect(),
            columns: if columns.is_empty() { vec![Column::age()] } else { columns },
            deprecation,
        }
    }
}

/// JSON paths of `selectableFields`.
fn selectable(version: &Value) -> impl Iterator<Item = &str> {
    let all = version.get("selectableFields").and_then(Value::as_array).into_iter().flatten();
    all.map(|field| text(field, "/jsonPath"))
}

/// What is wrong with a field that objects are to be selected by.
fn check_selectable(schema: &Value, path: &str, before: &[&str]) -> Option<String> {
    let invalid = |why: &str| Some(format!("Invalid value: {path:?}: {why}"));
    if before.contains(&path) {
        return Some(format!("Duplicate value: {path:?}"));
    }
    let Some(names) = path.strip_prefix('.') else { return invalid("is an invalid path: it begins with a dot") };
    let mut at = schema;
    for (depth, name) in names.split('.').enumerate() {
        match at.get("properties").and_then(|p| p.get(name)) {
            _ if depth == 0 && name == "metadata" => return invalid("must not point to fields in metadata"),
            Some(inner) => at = inner,
            None => return invalid("does not refer to a valid field"),
        }
    }
    match at.get("type").and_then(Value::as_str) {
        Some("string" | "integer" | "boolean") => None,
        other => invalid(&format!(
            "must point to a field of type string, boolean or integer, not {}",
            other.unwrap_or("none")
        )),
    }
}

impl Column {
    pub(crate) fn read(column: &Value) -> Self {
        Self {
            name: text(column, "/name").into(),
            kind: text(column, "/type").into(),
            description: text(column, "/description").into(),
            priority: column.get("priority").and_then(Value::as_i64).unwrap_or(0),
            path: text(column, "/jsonPath").into(),
        }
    }

    fn age() -> Self {
        Self {
            name: "Age".into(),
            kind: "date".into(),
            description: "When it was created".into(),
            priority: 0,
            path: ".metadata.creationTimestamp".into(),
        }
    }
}

/// Whether this is the kind of definitions.
pub(crate) fn is_definition(kind: &KindInfo) -> bool {
    (kind.group, kind.kind) == DEFINITION
}

/// Fills what a definition leaves out, and its status: the server takes every definition that it stores at once.
pub(crate) fn fill(object: &mut Object) {
    let Some(spec) = object.body.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_string();
        names.entry("singular").or_insert_with(|| kind.to_lowercase().into());
        names.entry("listKind").or_insert_with(|| format!("{kind}List").into());
    }
    spec.entry("conversion").or_insert_with(|| json!({"strategy": "None"}));
    let names = spec.get("names").cloned().unwrap_or_else(|| json!({}));
    let all = spec.get("versions").and_then(Value::as_array).into_iter().flatten();
    let stored: Vec<Value> = all.filter(|v| flag(v, "/storage")).filter_map(|v| v.get("name").cloned()).collect();
    let before = object.body.get("status").cloned().unwrap_or_else(|| json!({}));
    let mut versions = before.get("storedVersions").and_then(Value::as_array).cloned().unwrap_or_default();
    versions.extend(stored.into_iter().filter(|v| !versions.contains(v)).collect::<Vec<_>>());
    let conditions = before.get("conditions").filter(|c| c.as_array().is_some_and(|c| !c.is_empty())).cloned();
    let status = json!({
        "acceptedNames": names, "storedVersions": versions,
        "conditions": conditions.unwrap_or_else(first_conditions),
    });
    object.body.insert("status".into(), status);
    let finalizers = object.metadata.finalizers.get_or_insert_default();
    if object.metadata.deletion_timestamp.is_none() && !finalizers.iter().any(|f| f == CLEANUP) {
        finalizers.push(CLEANUP.into());
    }
}

fn first_conditions() -> Value {
    let time = jiff::Timestamp::from_second(crate::tokens::now()).unwrap_or_default().to_string();
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": "True", "lastTransitionTime": time, "reason": reason, "message": message,
        })
    };
    json!([
        condition("NamesAccepted", "NoConflicts", "no conflicts found"),
        condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
    ])
}

/// Refuses definitions that could not be followed.
/// What a definition may not change is compared with `old`.
pub(crate) fn check(kind: &KindInfo, object: &Object, old: Option<&Object>) -> Result<(), ApiError> {
    let spec = object.spec();
    let mut wrong: Vec<FieldError> = Vec::new();
    let mut add = |field: &str, message: String| wrong.push(FieldError { field: field.into(), message });
    for field in ["/group", "/names/plural", "/names/kind", "/scope"] {
        if text(spec, field).is_empty() {
            add(&format!("spec{}", field.replace('/', ".")), "Required value".into());
        }
    }
    let name = format!("{}.{}", text(spec, "/names/plural"), text(spec, "/group"));
    if object.name() != name {
        add("metadata.name", format!("must be spec.names.plural+\".\"+spec.group: {name:?}"));
    }
    if !matches!(text(spec, "/scope"), "Namespaced" | "Cluster") {
        add("spec.scope", "supported values: \"Cluster\", \"Namespaced\"".into());
    }
    let all = versions(spec);
    // Objects of the definition exist under these, and in these versions.
    for field in ["/scope", "/names/kind"].into_iter().filter(|_| old.is_some()) {
        let before = old.map_or("", |old| text(old.spec(), field));
        if before != text(spec, field) {
            let now = text(spec, field);
            add(&format!("spec{}", field.replace('/', ".")), format!("Invalid value: {now:?}: field is immutable"));
        }
    }
    let status = object.body.get("status").unwrap_or(&Value::Null);
    let stored = status.get("storedVersions").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    for (at, version) in stored.enumerate() {
        if !all.iter().any(|known| text(known, "/name") == version) {
            let place = format!("status.storedVersions[{at}]");
            add(
                &place,
                format!(
                    "Invalid value: {version:?}: missing from spec.versions; {version} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {version} and removes {version} from status.storedVersions"
                ),
            );
        }
    }
    convert::check(spec, &mut add);
    if all.len() > MAX_VERSIONS {
        add("spec.versions", format!("must have at most {MAX_VERSIONS} items"));
    }
    if all.iter().filter(|v| flag(v, "/storage")).count() != 1 {
        add("spec.versions", "must have exactly one version marked as storage version".into());
    }
    for (at, version) in all.iter().enumerate() {
        let place = format!("spec.versions[{at}]");
        if text(version, "/name").is_empty() {
            add(&format!("{place}.name"), "Required value".into());
        }
        match version.pointer("/schema/openAPIV3Schema") {
            Some(schema) if text(schema, "/type") == "object" => {
                let mut found = Vec::new();
                // As Kubernetes names the schema of a definition with one version.
                let at = if all.len() == 1 { "spec.validation".into() } else { format!("{place}.schema") };
                let at = format!("{at}.openAPIV3Schema");
                structural::check_schema(schema, &at, &mut found);
                Rules::read(schema, &at, &mut found);
                for (field, message) in found {
                    add(&field, message);
                }
            }
            Some(_) => add(&format!("{place}.schema.openAPIV3Schema.type"), "must be object at the root".into()),
            None => add(&format!("{place}.schema.openAPIV3Schema"), "schemas are required".into()),
        }
        let fields: Vec<&str> = selectable(version).collect();
        let at = if all.len() == 1 { "spec.selectableFields".into() } else { format!("{place}.selectableFields") };
        if fields.len() > MAX_SELECTABLE {
            add(&at, format!("Too many: {}: must have at most {MAX_SELECTABLE} items", fields.len()));
        }
        let schema = version.pointer("/schema/openAPIV3Schema").unwrap_or(&Value::Null);
        for (field_at, path) in fields.iter().enumerate() {
            if let Some(why) = check_selectable(schema, path, fields.get(..field_at).unwrap_or_default()) {
                add(&format!("{at}[{field_at}].jsonPath"), why);
            }
        }
        let columns = version.get("additionalPrinterColumns").and_then(Value::as_array).into_iter().flatten();
        for (column_at, column) in columns.enumerate() {
            if let Err(why) = path::Path::parse(text(column, "/jsonPath")) {
                add(&format!("{place}.additionalPrinterColumns[{column_at}].jsonPath"), why);
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(ApiError::invalid(kind, object.name(), &wrong)) }
}

/// What was found in an object of a defined kind.
#[derive(Default)]
pub(crate) struct Findings {
    /// Paths of fields that the schema does not have; they are removed.
    pub(crate) unknown: Vec<String>,
}

/// Removes unknown fields and fills defaults.
pub(crate) fn shape(version: &Version, object: &mut Object) -> Findings {
    let found = prune(version, object);
    of_body(object, |value| structural::default(value, &version.schema));
    found
}

/// Removes unknown fields.
fn prune(version: &Version, object: &mut Object) -> Findings {
    let mut found = Findings::default();
    of_body(object, |value| structural::prune_root(value, &version.schema, &mut found.unknown));
    found
}

fn of_body(object: &mut Object, change: impl FnOnce(&mut Value)) {
    let mut value = Value::Object(std::mem::take(&mut object.body));
    change(&mut value);
    if let Value::Object(body) = value {
        object.body = body;
    }
}

/// Checks an object against its schema and the schema's rules; returns warnings.
pub(crate) fn validate(
    version: &Version,
    kind: &KindInfo,
    object: &Object,
    old: Option<&Object>,
) -> Result<Vec<String>, ApiError> {
    let value = as_rules_see_it(object);
    let mut errors = Vec::new();
    structural::validate(&value, &version.schema, "", &mut errors);
    let mut warnings = Vec::new();
    let rules = version.rules.get_or_init(|| Rules::read(&version.schema, "schema", &mut Vec::new()));
    if !rules.is_empty() && errors.iter().any(blocks_rules) {
        errors.push(FieldError { field: "<nil>".into(), message: UNCHECKED.into() });
    } else {
        let old = old.map(as_rules_see_it);
        let (found, told) = rules.check(&version.schema, &value, old.as_ref());
        errors.extend(found);
        warnings = told;
    }
    if errors.is_empty() { Ok(warnings) } else { Err(ApiError::invalid(kind, object.name(), &errors)) }
}

/// What is said when rules were not asked.
const UNCHECKED: &str = "Invalid value: null: some validation rules were not checked because the object was invalid; \
                         correct the existing errors to complete validation";

/// Whether a value is so wrong that rules, which rely on the schema, are not asked.
fn blocks_rules(error: &FieldError) -> bool {
    let begins = |words: &str| error.message.starts_with(words);
    let of_type = begins("Invalid value") && error.message.contains("in body must be of type ");
    of_type || ["Required value", "Unsupported value", "Too long", "Too many"].into_iter().any(begins)
}

fn as_rules_see_it(object: &Object) -> Value {
    let mut body: Map<String, Value> = object.body.clone();
    body.insert("apiVersion".into(), object.api_version.clone().into());
    body.insert("kind".into(), object.kind.clone().into());
    let mut metadata = json!({"name": object.name()});
    if let Some(prefix) = object.metadata.generate_name.as_deref().filter(|p| !p.is_empty()) {
        metadata["generateName"] = prefix.into();
    }
    body.insert("metadata".into(), metadata);
    Value::Object(body)
}
