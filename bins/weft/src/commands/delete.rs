//! `weft delete`: objects by file, by name, or by label.

use crate::cli::Connection;
use crate::commands::get::{Wanted, wanted};
use crate::connect::connect;
use crate::{manifests, output};
use anyhow::bail;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use weft_k8s_api::{KindInfo, Object, kinds};
use weft_store::ApiClient;
use weft_store::client::ListOptions;
use weft_store::memory::DeleteOptions;

/// How often a going object is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Deletes objects and waits until they are gone.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("objects").required(true).args(["what", "file"])))]
pub struct Args {
    /// Kind and names, or kind/name …
    #[arg(value_name = "KIND NAME")]
    what: Vec<String>,
    /// File, directory, or - for standard input; may be repeated
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", conflicts_with_all = ["selector", "all"])]
    file: Vec<String>,
    /// Look into the directories of a directory
    #[arg(short = 'R', long, requires = "file")]
    recursive: bool,
    /// Namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Labels of the objects, such as app=reviews
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// All objects of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// What is not there is no error
    #[arg(long)]
    ignore_not_found: bool,
    /// Wait until the objects are gone
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = clap::ArgAction::Set)]
    wait: bool,
    /// Longest wait for each object, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Seconds that a pod gets to stop
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<i64>,
}

/// An object that goes.
struct Doomed {
    kind: &'static KindInfo,
    namespace: String,
    name: String,
    label: String,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let documents = if args.file.is_empty() { Vec::new() } else { manifests::read(&args.file, args.recursive)? };
    let client = connect(&connection).await?;
    let namespace = args.namespace.clone().unwrap_or_else(|| client.default_namespace().to_string());
    let doomed = match documents.is_empty() {
        true => by_name(&client, &args, &namespace).await?,
        false => documents.iter().rev().map(|d| of_file(&d.object, &namespace)).collect::<anyhow::Result<_>>()?,
    };
    let mut failed = false;
    for object in &doomed {
        failed |= !delete(&client, object, &args).await?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn of_file(object: &Object, namespace: &str) -> anyhow::Result<Doomed> {
    let Some(kind) = kinds::by_kind(object.group(), &object.kind) else {
        bail!("the kind {} of {} is not known; check apiVersion and kind", object.kind, object.api_version);
    };
    let own = if object.namespace().is_empty() { namespace } else { object.namespace() };
    Ok(doom(kind, own, object.name()))
}

fn doom(kind: &'static KindInfo, namespace: &str, name: &str) -> Doomed {
    let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
    Doomed { kind, namespace: namespace.into(), name: name.into(), label: format!("{}{group} {name:?}", kind.singular) }
}

async fn by_name(client: &ApiClient, args: &Args, namespace: &str) -> anyhow::Result<Vec<Doomed>> {
    let mut doomed = Vec::new();
    for Wanted { kind, name, .. } in wanted(&args.what)? {
        match name {
            Some(name) => doomed.push(doom(kind, namespace, &name)),
            None if args.selector.is_none() && !args.all => {
                bail!("say which {}: names, -l SELECTOR, or --all", kind.plural);
            }
            None => {
                let options = ListOptions { labels: args.selector.clone(), ..ListOptions::default() };
                let list = client.list(kind, kind.namespaced.then_some(namespace), &options).await?;
                doomed.extend(list.items.iter().map(|o| doom(kind, namespace, o.name())));
            }
        }
    }
    if doomed.is_empty() {
        output::line("No resources found")?;
    }
    Ok(doomed)
}

/// Deletes one object; false when that failed and was said.
async fn delete(client: &ApiClient, doomed: &Doomed, args: &Args) -> anyhow::Result<bool> {
    let options = DeleteOptions { grace_period_seconds: args.grace_period, ..DeleteOptions::default() };
    let Doomed { kind, namespace, name, label } = doomed;
    match client.delete(kind, namespace, name, &options).await {
        Ok(gone) => {
            output::line(format!("{label} deleted"))?;
            if !gone && args.wait {
                return wait_until_gone(client, doomed, Duration::from_secs(args.timeout)).await;
            }
            Ok(true)
        }
        Err(error) if error.is_not_found() && args.ignore_not_found => Ok(true),
        Err(error) => {
            // The server's own sentence names a missing object already.
            let named = error.is_not_found();
            output::error(&if named { anyhow::Error::from(error) } else { anyhow::anyhow!("{label}: {error}") });
            Ok(false)
        }
    }
}

async fn wait_until_gone(client: &ApiClient, doomed: &Doomed, limit: Duration) -> anyhow::Result<bool> {
    let start = Instant::now();
    let mut first = None;
    loop {
        match client.get(doomed.kind, &doomed.namespace, &doomed.name).await {
            Err(error) if error.is_not_found() => return Ok(true),
            // A controller may have made a new one of the same name.
            Ok(object) if *first.get_or_insert_with(|| object.metadata.uid.clone()) != object.metadata.uid => {
                return Ok(true);
            }
            Ok(object) if start.elapsed() > limit => {
                let waiting = object.metadata.finalizers.unwrap_or_default().join(", ");
                let why = if waiting.is_empty() { String::new() } else { format!("; it waits for {waiting}") };
                output::error(&anyhow::anyhow!("{} is not gone after {} s{why}", doomed.label, limit.as_secs()));
                return Ok(false);
            }
            Ok(_) => tokio::time::sleep(POLL).await,
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::get::resource_name;
    use weft_k8s_api::yaml;

    #[test]
    fn files_name_what_goes() {
        let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\n";
        let document = &yaml::documents(text, "f").unwrap()[0];
        let doomed = of_file(&document.object, "foo").unwrap();
        assert_eq!((doomed.namespace.as_str(), doomed.name.as_str()), ("foo", "reviews"));
        assert_eq!(doomed.label, "virtualservice.networking.istio.io \"reviews\"");
        assert_eq!(resource_name(&document.object), "virtualservice.networking.istio.io/reviews");
    }
}
