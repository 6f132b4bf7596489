//! The comments of the types in [`crate::istio`], by type and field, read from the source that is compiled in.

use std::collections::HashMap;
use std::sync::LazyLock;

const SOURCES: &[&str] = &[
    include_str!("../istio/common.rs"),
    include_str!("../istio/destination_rule.rs"),
    include_str!("../istio/envoy_filter.rs"),
    include_str!("../istio/gateway.rs"),
    include_str!("../istio/proxy_config.rs"),
    include_str!("../istio/security.rs"),
    include_str!("../istio/service_entry.rs"),
    include_str!("../istio/sidecar.rs"),
    include_str!("../istio/telemetry.rs"),
    include_str!("../istio/virtual_service.rs"),
    include_str!("../istio/wasm.rs"),
    include_str!("../istio/workload.rs"),
];

/// Comments by type and field; the type's own has no field.
type Docs = HashMap<(String, String), String>;

static DOCS: LazyLock<Docs> = LazyLock::new(|| {
    let mut docs = HashMap::new();
    SOURCES.iter().for_each(|source| read(source, &mut docs));
    docs
});

/// The comment of a type.
pub(super) fn of(name: &str) -> Option<&'static str> {
    find(name, "")
}

/// The comment of a field, by its name in the API.
pub(super) fn field(name: &str, field: &str) -> Option<&'static str> {
    find(name, field)
}

fn find(name: &str, field: &str) -> Option<&'static str> {
    DOCS.get(&(name.to_string(), field.to_string())).map(String::as_str)
}

fn read(source: &str, docs: &mut Docs) {
    let (mut comment, mut renamed, mut within) = (String::new(), None, None);
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(text.trim());
            continue;
        }
        if line.starts_with("#[") {
            let name = line.split_once("rename = \"").and_then(|(_, rest)| rest.split('"').next());
            renamed = name.map(str::to_string).or(renamed);
            continue;
        }
        if let Some(name) = line.strip_prefix("pub struct ").and_then(|rest| rest.strip_suffix(" {")) {
            within = Some(name);
            note(docs, name, String::new(), &comment);
        } else if line == "}" {
            within = None;
        } else if let (Some(name), Some((field, _))) = (within, line.split_once(": ")) {
            note(docs, name, renamed.take().unwrap_or_else(|| camel(field)), &comment);
        }
        comment.clear();
        renamed = None;
    }
}

fn note(docs: &mut Docs, name: &str, field: String, comment: &str) {
    if !comment.is_empty() {
        docs.insert((name.to_string(), field), plain(comment));
    }
}

/// Without the marks of links.
fn plain(comment: &str) -> String {
    comment.replace("[`", "`").replace("`]", "`")
}

/// `export_to` → `exportTo`.
fn camel(field: &str) -> String {
    let mut parts = field.split('_');
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |mut name, part| {
        let mut chars = part.chars();
        name.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        name.push_str(chars.as_str());
        name
    })
}
