//! `weft get`: objects as a table, as JSON, as YAML, or by name.

use crate::cli::Connection;
use crate::connect::connect;
use crate::output::{self, Table};
use anyhow::{Context, bail};
use clap::ValueEnum;
use serde_json::{Value, json};
use std::process::ExitCode;
use weft_k8s_api::kinds::{self, KINDS, KindInfo};
use weft_k8s_api::{Object, yaml};
use weft_store::ApiClient;
use weft_store::client::{self, ListOptions};

/// Shows objects.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kind (pods, vs, virtualservices.v1beta1.networking.istio.io, istio-io, all …), optionally with names, or kind/name …
    #[arg(value_name = "KIND [NAME]", required = true)]
    what: Vec<String>,
    /// Namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Labels of the objects, such as app=reviews
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Fields of the objects, such as status.phase=Running
    #[arg(long, value_name = "SELECTOR")]
    field_selector: Option<String>,
    /// How they are shown
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    /// Tables without headings
    #[arg(long)]
    no_headers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Kind and name.
    Name,
}

/// A kind, and one of its objects or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Kind.
    pub kind: &'static KindInfo,
    /// The version that was asked for by name (`vs.v1beta1.networking.istio.io`).
    pub version: Option<&'static str>,
    /// Name; all when there is none.
    pub name: Option<String>,
}

impl Wanted {
    fn new((kind, version): (&'static KindInfo, Option<&'static str>), name: Option<&str>) -> Self {
        Self { kind, version, name: name.map(str::to_string) }
    }

    /// The kind in the version that is asked for: the storage version when none is.
    pub fn row(&self) -> KindInfo {
        self.version.map_or(*self.kind, |version| self.kind.at(version))
    }
}

/// Reads `pods`, `pods a b`, `vs,dr`, `all`, `pod/a svc/b`.
///
/// # Errors
/// When a kind is not known; the message names similar ones.
pub fn wanted(words: &[String]) -> anyhow::Result<Vec<Wanted>> {
    let mut found = Vec::new();
    if words.iter().all(|w| w.contains('/')) {
        for word in words {
            let (kind, name) = word.split_once('/').unwrap_or((word, ""));
            if name.is_empty() {
                bail!("{word:?} names nothing; write kind/name");
            }
            found.push(Wanted::new(kind_of(kind)?, Some(name)));
        }
        return Ok(found);
    }
    let (kinds, names) = words.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    for word in kinds.split(',').filter(|w| !w.is_empty()) {
        let of_category: Vec<_> = KINDS.iter().filter(|k| k.categories.contains(&word)).map(|k| (k, None)).collect();
        let kinds = if of_category.is_empty() { vec![kind_of(word)?] } else { of_category };
        for kind in kinds {
            match names {
                [] => found.push(Wanted::new(kind, None)),
                names => found.extend(names.iter().map(|name| Wanted::new(kind, Some(name)))),
            }
        }
    }
    Ok(found)
}

fn kind_of(word: &str) -> anyhow::Result<(&'static KindInfo, Option<&'static str>)> {
    kinds::asked(word).with_context(|| {
        if let Some(kind) = word.split('.').next().and_then(kinds::by_any_name) {
            let versions: Vec<String> = kind.versions.iter().map(|v| full_name(kind, v)).collect();
            return format!("the kind {word:?} is not known; {} is {}", kind.kind, versions.join(" or "));
        }
        let start: String = word.chars().take(3).collect::<String>().to_ascii_lowercase();
        let similar: Vec<&str> = KINDS.iter().map(|k| k.plural).filter(|p| p.starts_with(&start)).collect();
        let hint = if similar.is_empty() { String::new() } else { format!("; did you mean {}?", similar.join(" or ")) };
        format!("the kind {word:?} is not known{hint}")
    })
}

/// `virtualservices.v1.networking.istio.io`.
fn full_name(kind: &KindInfo, version: &str) -> String {
    format!("{}.{version}.{}", kind.plural, kind.group)
}

/// `virtualservice.networking.istio.io/reviews`, `service/reviews`.
pub fn resource_name(object: &Object) -> String {
    let kind = object.kind.to_ascii_lowercase();
    let group = object.group();
    if group.is_empty() { format!("{kind}/{}", object.name()) } else { format!("{kind}.{group}/{}", object.name()) }
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let wanted = wanted(&args.what)?;
    let client = connect(&connection).await?;
    let own = args.namespace.clone().unwrap_or_else(|| client.default_namespace().to_string());
    if args.all_namespaces && wanted.iter().any(|w| w.name.is_some()) {
        bail!("an object cannot be named across all namespaces; use -n instead of -A");
    }
    let namespace = if args.all_namespaces { None } else { Some(own.as_str()) };
    match args.output {
        None | Some(Format::Wide) => tables(&client, &args, &wanted, namespace).await,
        Some(format) => objects(&client, &args, &wanted, namespace, format).await,
    }
}

impl Args {
    fn options(&self) -> ListOptions {
        ListOptions { labels: self.selector.clone(), fields: self.field_selector.clone(), ..ListOptions::default() }
    }
}

async fn tables(
    client: &ApiClient,
    args: &Args,
    wanted: &[Wanted],
    namespace: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let several = wanted.iter().any(|w| w.kind != wanted[0].kind);
    let mut code = ExitCode::SUCCESS;
    let mut shown = 0;
    let mut merged: Vec<(&KindInfo, client::Table)> = Vec::new();
    for one in wanted {
        let (kind, name, row) = (one.kind, &one.name, one.row());
        match client.table(&row, namespace.filter(|_| kind.namespaced), name.as_deref(), &args.options()).await {
            Ok(table) => match merged.last_mut().filter(|(last, _)| *last == kind) {
                Some((_, last)) => last.rows.extend(table.rows),
                None => merged.push((kind, table)),
            },
            Err(error) => {
                output::error(&anyhow::Error::from(error));
                code = ExitCode::FAILURE;
            }
        }
    }
    for (kind, table) in merged.iter().filter(|(_, table)| !table.rows.is_empty()) {
        if shown > 0 {
            output::line("")?;
        }
        shown += table.rows.len();
        let text = render(table, kind, args, several, namespace.is_none())
            .render(std::io::IsTerminal::is_terminal(&std::io::stdout()));
        let skipped = usize::from(args.no_headers);
        output::print(&text.lines().skip(skipped).map(|l| format!("{l}\n")).collect::<String>())?;
    }
    if shown == 0 && code == ExitCode::SUCCESS {
        let place = namespace.filter(|_| wanted.iter().any(|w| w.kind.namespaced));
        let place = place.map(|n| format!(" in {n} namespace")).unwrap_or_default();
        output::note_plain(format!("No resources found{place}."));
    }
    Ok(code)
}

/// The server's table with the columns that are asked for.
fn render(table: &client::Table, kind: &KindInfo, args: &Args, several: bool, all: bool) -> Table {
    let wide = args.output == Some(Format::Wide);
    let columns: Vec<usize> =
        (0..table.column_definitions.len()).filter(|i| wide || table.column_definitions[*i].priority == 0).collect();
    let spaces = all && kind.namespaced;
    let head = columns.iter().map(|i| table.column_definitions[*i].name.to_ascii_uppercase());
    let mut rendered = Table::new(spaces.then(|| "NAMESPACE".to_string()).into_iter().chain(head));
    for row in &table.rows {
        let own = row.object.as_ref().map(|o| o.namespace().to_string()).unwrap_or_default();
        let cells = columns.iter().map(|i| {
            let text = cell(row.cells.get(*i).unwrap_or(&Value::Null));
            let is_name = *i == 0 && several;
            let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
            if is_name { format!("{}{group}/{text}", kind.singular) } else { text }
        });
        rendered.row(spaces.then_some(own).into_iter().chain(cells));
    }
    rendered
}

fn cell(value: &Value) -> String {
    match value {
        // As kubectl shows a field that an object of a custom kind does not have.
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

async fn objects(
    client: &ApiClient,
    args: &Args,
    wanted: &[Wanted],
    namespace: Option<&str>,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for one in wanted {
        let (kind, row) = (one.kind, one.row());
        let result = match &one.name {
            Some(name) => client.get(&row, namespace.unwrap_or_default(), name).await.map(|o| vec![o]),
            None => {
                let list = client.list(&row, namespace.filter(|_| kind.namespaced), &args.options()).await;
                list.map(|list| list.items)
            }
        };
        match result {
            Ok(objects) => found.extend(objects),
            Err(error) => {
                output::error(&anyhow::Error::from(error));
                code = ExitCode::FAILURE;
            }
        }
    }
    if format == Format::Name {
        output::print(&found.iter().map(|o| format!("{}\n", resource_name(o))).collect::<String>())?;
        return Ok(code);
    }
    // What nobody asked for by hand is for machines alone.
    found.iter_mut().for_each(|o| o.metadata.managed_fields = None);
    let single = matches!(wanted, [Wanted { name: Some(_), .. }]);
    match found.as_slice() {
        [] if single => {}
        [one] if single => document(&one.to_value(), format == Format::Yaml)?,
        all => {
            let items: Vec<Value> = all.iter().map(Object::to_value).collect();
            let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items});
            document(&list, format == Format::Yaml)?;
        }
    }
    Ok(code)
}

/// Writes a value as YAML or as indented JSON.
///
/// # Errors
/// When the output cannot be written.
pub fn document(value: &Value, as_yaml: bool) -> anyhow::Result<()> {
    if as_yaml {
        return output::line(yaml::write(value).map_err(anyhow::Error::msg)?.trim_end());
    }
    output::line(serde_json::to_string_pretty(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str]) -> Vec<String> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_string()).collect();
        let found = wanted(&words).unwrap();
        found.iter().map(|w| format!("{}/{}", w.kind.plural, w.name.as_deref().unwrap_or("*"))).collect()
    }

    #[test]
    fn kinds_and_names() {
        assert_eq!(names(&["po"]), ["pods/*"]);
        assert_eq!(names(&["vs,dr"]), ["virtualservices/*", "destinationrules/*"]);
        assert_eq!(names(&["svc", "a", "b"]), ["services/a", "services/b"]);
        assert_eq!(names(&["pod/a", "deploy/b"]), ["pods/a", "deployments/b"]);
        assert!(names(&["all"]).contains(&"deployments/*".to_string()));
        assert_eq!(names(&["gateways.networking.istio.io"]), ["gateways/*"]);
        assert_eq!(names(&["security-istio-io", "a"]).len(), 3);
        let old = wanted(&["virtualservices.v1beta1.networking.istio.io/reviews".into()]).unwrap().remove(0);
        assert_eq!((old.version, old.row().api_version().as_str()), (Some("v1beta1"), "networking.istio.io/v1beta1"));
        let error = wanted(&["virtualservices.v7.networking.istio.io".into()]).unwrap_err().to_string();
        assert!(error.contains("virtualservices.v1alpha3.networking.istio.io"), "{error}");
        let error = wanted(&["virtualservicez".into()]).unwrap_err().to_string();
        assert!(error.contains("virtualservices"), "{error}");
        assert!(wanted(&["pod/".into()]).is_err());
    }

    #[test]
    fn tables_by_the_servers_columns() {
        let table: client::Table = serde_json::from_value(json!({
            "columnDefinitions": [{"name": "Name"}, {"name": "Ready"}, {"name": "Node", "priority": 1}],
            "rows": [{"cells": ["a", 1, null], "object": {"apiVersion": "v1", "kind": "P", "metadata": {"namespace": "n1"}}}],
        }))
        .unwrap();
        let args = |wide: bool| Args {
            what: vec![],
            namespace: None,
            all_namespaces: true,
            selector: None,
            field_selector: None,
            output: wide.then_some(Format::Wide),
            no_headers: false,
        };
        let pods = kinds::by_any_name("pods").unwrap();
        assert_eq!(
            render(&table, pods, &args(false), false, true).render(false),
            "NAMESPACE   NAME   READY\nn1          a      1\n"
        );
        let wide = render(&table, pods, &args(true), true, false).render(false);
        assert_eq!(wide, "NAME    READY   NODE\npod/a   1\n");
    }
}
