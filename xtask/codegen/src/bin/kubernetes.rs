//! Generates `crates/lab/weft-apiserver/src/types/kubernetes.txt`: the fields of Kubernetes' own kinds, with their protobuf
//! numbers and how lists are merged. No text of theirs is taken, only names, numbers and markers.
//!
//! Run with the folders of the Go modules `k8s.io/api`, `k8s.io/apimachinery` and `k8s.io/apiextensions-apiserver` (see `go mod
//! download -json`): `cargo run --manifest-path xtask/codegen/Cargo.toml --bin kubernetes -- API APIMACHINERY APIEXTENSIONS`.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Files inside the three modules, and the short name of each package.
const FILES: &[(usize, &str, &str)] = &[
    (0, "admissionregistration/v1", "admissionregistration.v1"),
    (0, "apps/v1", "apps.v1"),
    (0, "authentication/v1", "authentication.v1"),
    (0, "authorization/v1", "authorization.v1"),
    (0, "autoscaling/v1", "autoscaling.v1"),
    (0, "autoscaling/v2", "autoscaling.v2"),
    (0, "batch/v1", "batch.v1"),
    (0, "coordination/v1", "coordination.v1"),
    (0, "core/v1", "core.v1"),
    (0, "discovery/v1", "discovery.v1"),
    (0, "networking/v1", "networking.v1"),
    (0, "policy/v1", "policy.v1"),
    (0, "rbac/v1", "rbac.v1"),
    (0, "scheduling/v1", "scheduling.v1"),
    (0, "storage/v1", "storage.v1"),
    (1, "pkg/apis/meta/v1", "meta.v1"),
    (1, "pkg/api/resource", "resource"),
    (1, "pkg/runtime", "runtime"),
    (1, "pkg/util/intstr", "intstr"),
    (2, "pkg/apis/apiextensions/v1", "apiextensions.v1"),
];

/// What a Go struct says of a protobuf field: its JSON name (empty for embedded structs), and whether it is a pointer, so
/// that its zero is a value and not its absence.
type GoFields = BTreeMap<(String, String), (String, bool)>;

fn main() -> Result<()> {
    let folders: Vec<String> = std::env::args().skip(1).collect();
    if folders.len() != 3 {
        bail!("the folders of k8s.io/api, k8s.io/apimachinery and k8s.io/apiextensions-apiserver are expected");
    }
    let mut out = String::from(
        "# Fields of Kubernetes' kinds, written by xtask/codegen (kubernetes): number, name, type, markers.\n\
         # []T list, {}T map; map=K list merged by K, set, atomic; key=K and merge: strategic merge patch; inline; required;\n# pointer: its zero is a value.\n",
    );
    for (module, place, package) in FILES {
        let folder = Path::new(folders.get(*module).context("folder")?).join(place);
        let text =
            std::fs::read_to_string(folder.join("generated.proto")).with_context(|| folder.display().to_string())?;
        file(&text, package, &go_fields(&folder)?, &mut out)?;
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/lab/weft-apiserver/src/types/kubernetes.txt");
    std::fs::write(&target, out).with_context(|| target.display().to_string())
}

/// Reads one file; these are written by a generator themselves, so that a line is a comment, a message or a field.
fn file(text: &str, package: &str, go: &GoFields, out: &mut String) -> Result<()> {
    let mut markers: Vec<&str> = Vec::new();
    let mut inside = None;
    for line in text.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("//") {
            markers.extend(comment.trim().strip_prefix('+'));
            continue;
        }
        if let Some(name) = line.strip_prefix("message ") {
            let name = name.trim_end_matches(['{', ' ']);
            let atomic = if markers.contains(&"structType=atomic") { " atomic" } else { "" };
            writeln!(out, "{package}.{name}{atomic}")?;
            inside = Some(name);
        } else if line == "}" {
            inside = None;
        } else if let Some(message) = inside.filter(|_| line.ends_with(';')) {
            field(line, package, &markers, (message, go), out)?;
        }
        if !line.is_empty() {
            markers.clear();
        }
    }
    Ok(())
}

fn field(
    line: &str,
    package: &str,
    markers: &[&str],
    (message, go): (&str, &GoFields),
    out: &mut String,
) -> Result<()> {
    let (head, number) = line.trim_end_matches(';').rsplit_once('=').with_context(|| line.to_string())?;
    let (types, name) = head.trim().rsplit_once(' ').with_context(|| line.to_string())?;
    let (types, name, number) = (types.trim(), name.trim(), number.trim());
    let kind = if let Some(map) = types.strip_prefix("map<") {
        let (_, value) = map.trim_end_matches('>').split_once(',').with_context(|| line.to_string())?;
        format!("{{}}{}", type_name(value.trim(), package))
    } else if let Some(list) = types.strip_prefix("repeated ") {
        format!("[]{}", type_name(list.trim(), package))
    } else {
        let single = types.trim_start_matches("optional ").trim_start_matches("required ");
        type_name(single.trim(), package)
    };
    // Fields whose types are in packages that are not taken (alpha ones) are left out.
    let base = kind.trim_start_matches(['[', ']', '{', '}']);
    if base.contains('.') && !FILES.iter().any(|(_, _, p)| base.rsplit_once('.').is_some_and(|(b, _)| b == *p)) {
        return Ok(());
    }
    let known = go.get(&(message.to_string(), number.to_string()));
    let name = known.map_or(name, |(json, _)| if json.is_empty() { name } else { json });
    write!(out, " {number} {name} {kind}")?;
    let values = |key: &str| markers.iter().filter_map(move |m| m.strip_prefix(key)).collect::<Vec<_>>();
    let keys = values("listMapKey=");
    match values("listType=").first().or(values("mapType=").first()) {
        Some(&"map") if !keys.is_empty() => write!(out, " map={}", keys.join(","))?,
        Some(&"set") => out.push_str(" set"),
        Some(&"atomic") => out.push_str(" atomic"),
        _ => {}
    }
    if values("structType=").contains(&"atomic") {
        out.push_str(" atomic");
    }
    let strategy = values("patchStrategy=");
    if strategy.iter().any(|s| s.split(',').any(|s| s == "merge")) {
        match values("patchMergeKey=").first() {
            Some(key) => write!(out, " key={key}")?,
            None => out.push_str(" merge"),
        }
    }
    if known.is_some_and(|(json, _)| json.is_empty()) {
        out.push_str(" inline");
    }
    if known.is_some_and(|(_, pointer)| *pointer) {
        out.push_str(" pointer");
    }
    if markers.contains(&"required") || markers.contains(&"k8s:required") {
        out.push_str(" required");
    }
    out.push('\n');
    Ok(())
}

/// `.k8s.io.api.core.v1.Pod`, `k8s.io.apimachinery.pkg.util.intstr.IntOrString`, `Pod` or a scalar.
fn type_name(name: &str, package: &str) -> String {
    const SCALARS: [&str; 9] = ["string", "bool", "int32", "int64", "uint32", "uint64", "bytes", "double", "float"];
    let name = name.trim_start_matches('.');
    if SCALARS.contains(&name) {
        return name.to_string();
    }
    for (prefix, rest) in [
        ("k8s.io.apimachinery.pkg.apis.", ""),
        ("k8s.io.apimachinery.pkg.api.", ""),
        ("k8s.io.apimachinery.pkg.util.", ""),
        ("k8s.io.apimachinery.pkg.", ""),
        ("k8s.io.apiextensions_apiserver.pkg.apis.", ""),
        ("k8s.io.api.", ""),
    ] {
        if let Some(short) = name.strip_prefix(prefix) {
            return format!("{rest}{short}");
        }
    }
    format!("{package}.{name}")
}

/// Reads the structs of a package: `Name Type `json:"name,omitempty" protobuf:"varint,1,opt,name=name"``.
fn go_fields(folder: &Path) -> Result<GoFields> {
    let mut fields = GoFields::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if !name.ends_with(".go")
            || name.starts_with("generated")
            || name.starts_with("zz_")
            || name.ends_with("_test.go")
        {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let mut inside: Option<String> = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("type ") {
                inside = rest.split_once(" struct").map(|(name, _)| name.to_string());
            } else if line == "}" {
                inside = None;
            } else if let (Some(message), Some((code, tags))) = (&inside, line.split_once('`')) {
                let tag = |name: &str| {
                    let at = tags.find(&format!("{name}:\""))? + name.len() + 2;
                    tags.get(at..)?.split('"').next()
                };
                let (Some(json), Some(number)) = (tag("json"), tag("protobuf").and_then(|p| p.split(',').nth(1)))
                else {
                    continue;
                };
                let json = json.split(',').next().unwrap_or_default().to_string();
                let pointer = code.split_whitespace().last().is_some_and(|t| t.starts_with('*'));
                fields.insert((message.clone(), number.to_string()), (json, pointer));
            }
        }
    }
    Ok(fields)
}
