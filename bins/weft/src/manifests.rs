//! What `apply` and `delete` read: files, directories or standard input, as one checked list. Either everything is in order
//! or nothing is sent.

use anyhow::{Context, bail};
use clap::ValueEnum;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use weft_k8s_api::yaml::{self, Document};
use weft_k8s_api::{Problem, kinds, validate};

/// What happens to fields that a kind does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Unknown {
    /// They are errors.
    Strict,
    /// They are warnings.
    Warn,
    /// They are passed over.
    Ignore,
}

/// Objects in the order in which they are sent, and what is worth saying about them.
#[derive(Debug)]
pub struct Plan {
    /// The objects.
    pub documents: Vec<Document>,
    /// Problems that do not forbid them.
    pub warnings: Vec<String>,
}

/// Reads all documents of all files. `-` is standard input; of a directory the `.yaml`, `.yml` and `.json` files are read.
///
/// # Errors
/// The first thing that cannot be read; malformed text with its file and line.
pub fn read(files: &[String], recursive: bool) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for file in files {
        if file == "-" {
            let mut text = String::new();
            let limit = yaml::MAX_BYTES as u64 + 1;
            std::io::stdin().lock().take(limit).read_to_string(&mut text).context("cannot read standard input")?;
            documents.extend(yaml::documents(&text, "stdin")?);
            continue;
        }
        if file.contains("://") {
            bail!("{file} is a URL; fetch it first (curl -sL {file} | weft apply -f -)");
        }
        for path in expand(Path::new(file), recursive)? {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
            documents.extend(yaml::documents(&text, &name)?);
        }
    }
    if documents.is_empty() {
        bail!("there are no objects in {}", files.join(", "));
    }
    Ok(documents)
}

/// The file itself, or the manifests of a directory in the order of their names.
fn expand(path: &Path, recursive: bool) -> anyhow::Result<Vec<PathBuf>> {
    let about = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !about.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = Vec::new();
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", path.display()))?.path();
        let extension = entry.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if entry.is_dir() && recursive && !entry.is_symlink() {
            found.extend(expand(&entry, true)?);
        } else if entry.is_file() && matches!(extension, "yaml" | "yml" | "json") {
            found.push(entry);
        }
    }
    found.sort();
    if found.is_empty() && !recursive {
        bail!("there are no .yaml, .yml or .json files in {} (-R looks into its directories)", path.display());
    }
    Ok(found)
}

/// Checks every document and puts each object into its namespace: its own, `given`, or `default`.
///
/// # Errors
/// All that is wrong with any of them, one line each.
pub fn plan(
    mut documents: Vec<Document>,
    given: Option<&str>,
    default: &str,
    unknown: Unknown,
) -> Result<Plan, Vec<String>> {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let mut seen = BTreeMap::new();
    for document in &mut documents {
        if let Err(error) = place(document, given, default) {
            errors.push(format!("{}: {error}", document.location));
            continue;
        }
        check(document, unknown, &mut errors, &mut warnings);
        if let Some(before) = seen.insert(document.object.key(), document.location.clone()) {
            warnings.push(format!(
                "{}: {} is at {before} too; the last one wins",
                document.location,
                document.object.key()
            ));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    // What lives in a namespace needs it first; otherwise the order is the files'.
    documents.sort_by_key(|d| d.object.kind != "Namespace");
    Ok(Plan { documents, warnings })
}

fn place(document: &mut Document, given: Option<&str>, default: &str) -> Result<(), String> {
    let object = &mut document.object;
    let Some(kind) = kinds::by_kind(object.group(), &object.kind) else {
        return Err(format!(
            "the kind {} of {} is not known; check apiVersion and kind",
            object.kind, object.api_version
        ));
    };
    match (kind.namespaced, object.namespace(), given) {
        (false, _, _) => object.metadata.namespace = None,
        (true, "", given) => object.metadata.namespace = Some(given.unwrap_or(default).to_string()),
        (true, own, Some(given)) if own != given => {
            return Err(format!("{} says namespace {own}, but -n says {given}; change one of them", object.key()));
        }
        _ => {}
    }
    Ok(())
}

fn check(document: &Document, unknown: Unknown, errors: &mut Vec<String>, warnings: &mut Vec<String>) {
    let found = validate(&document.object);
    let say = |problem: &Problem| format!("{}: {problem}", document.locate(&problem.path));
    errors.extend(found.errors.iter().map(say));
    warnings.extend(found.warnings.iter().map(say));
    let metadata = document.unknown_metadata.iter().map(|field| {
        let meant = field.suggestion.map(|s| format!("; did you mean {s}?")).unwrap_or_default();
        let (at, key) = (document.locate(&field.path), document.object.key());
        format!("{at}: {key}: {}: unknown field{meant}", field.path)
    });
    let fields: Vec<String> = metadata.chain(found.unknown_fields.iter().map(say)).collect();
    match unknown {
        Unknown::Strict => errors.extend(fields),
        Unknown::Warn => warnings.extend(fields),
        Unknown::Ignore => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(text: &str, given: Option<&str>, unknown: Unknown) -> Result<Plan, Vec<String>> {
        plan(yaml::documents(text, "a.yaml").unwrap(), given, "default", unknown)
    }

    fn keys(plan: &Plan) -> Vec<String> {
        plan.documents.iter().map(|d| d.object.key().to_string()).collect()
    }

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n";

    #[test]
    fn objects_are_placed_and_ordered() {
        let text = format!("{SERVICE}---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: b, namespace: x}}\n");
        assert_eq!(keys(&plan_of(&text, None, Unknown::Strict).unwrap()), ["Namespace b", "Service default/a"]);
        assert_eq!(keys(&plan_of(&text, Some("c"), Unknown::Strict).unwrap()), ["Namespace b", "Service c/a"]);
        let own = SERVICE.replace("name: a", "name: a, namespace: d");
        assert_eq!(keys(&plan_of(&own, Some("d"), Unknown::Strict).unwrap()), ["Service d/a"]);
        let errors = plan_of(&own, Some("c"), Unknown::Strict).unwrap_err();
        assert!(errors[0].contains("a.yaml:1: Service d/a says namespace d, but -n says c"), "{errors:?}");
    }

    #[test]
    fn one_wrong_object_refuses_all() {
        let text = format!(
            "{SERVICE}---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: reviews}}\nspec:\n  hosts: [reviews]\n  http:\n  - route:\n    - destination: {{host: reviews}}\n      weight: -1\n"
        );
        let errors = plan_of(&text, None, Unknown::Strict).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        let wanted =
            "a.yaml:14: VirtualService default/reviews: spec.http[0].route[0].weight: is the number -1; it must be";
        assert!(errors[0].starts_with(wanted), "{errors:?}");
    }

    #[test]
    fn unknown_fields_by_strictness() {
        let text = SERVICE.replace("ports:", "selectr: {a: b}, ports:").replace("name: a", "name: a, lables: {}");
        let errors = plan_of(&text, None, Unknown::Strict).unwrap_err();
        assert!(errors[0].contains("metadata.lables: unknown field; did you mean labels?"), "{errors:?}");
        assert!(errors[1].contains("spec.selectr: unknown field; did you mean selector?"), "{errors:?}");
        assert_eq!(plan_of(&text, None, Unknown::Warn).unwrap().warnings.len(), 2);
        assert_eq!(plan_of(&text, None, Unknown::Ignore).unwrap().warnings.len(), 0);
    }

    #[test]
    fn unknown_kinds_and_doubles() {
        let errors = plan_of("apiVersion: v2\nkind: Nope\nmetadata: {name: a}\n", None, Unknown::Strict).unwrap_err();
        assert!(errors[0].contains("the kind Nope of v2 is not known"), "{errors:?}");
        let plan = plan_of(&format!("{SERVICE}---\n{SERVICE}"), None, Unknown::Strict).unwrap();
        assert!(plan.warnings[0].contains("is at a.yaml:1 too"), "{:?}", plan.warnings);
    }

    #[test]
    fn directories_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, service: &str| {
            std::fs::write(dir.path().join(name), SERVICE.replace("name: a", &format!("name: {service}"))).unwrap();
        };
        file("b.yaml", "second");
        file("a.yml", "first");
        file("c.txt", "no");
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        file("sub/d.yaml", "third");
        let names = |recursive| {
            let documents = read(&[dir.path().display().to_string()], recursive).unwrap();
            documents.iter().map(|d| d.object.name().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(false), ["first", "second"]);
        assert_eq!(names(true), ["first", "second", "third"]);
        assert!(read(&["/nonexistent/x.yaml".into()], false).is_err());
        assert!(read(&["https://a/b.yaml".into()], false).unwrap_err().to_string().contains("curl"));
        file("z.yaml", "x\n  : [");
        let error = read(&[dir.path().display().to_string()], false).unwrap_err().to_string();
        assert!(error.contains("z.yaml:"), "{error}");
    }
}
