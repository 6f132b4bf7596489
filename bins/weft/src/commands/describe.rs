//! `weft describe`: what of the mesh's objects concerns a pod or a service.

use crate::authz::World;
use crate::cli::{Connection, ControlPlane};
use crate::commands::get::document;
use crate::connect::connect;
use crate::explain::describe;
use crate::output::{self, Format};
use crate::target;
use anyhow::{Context, bail};
use std::process::ExitCode;
use weft_k8s_api::kinds;

/// Describes a pod or a service.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// pod, deploy, service …, or kind/NAME
    kind: String,
    /// NAME, or NAME.NAMESPACE
    name: Option<String>,
    /// Namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    #[command(flatten)]
    control_plane: ControlPlane,
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let text = match (&args.name, args.kind.contains('/')) {
        (Some(name), false) => format!("{}/{name}", args.kind),
        (None, true) => args.kind.clone(),
        _ => bail!("say what: `weft describe pod NAME`, `weft describe service NAME`"),
    };
    let known = text.split('/').next().and_then(kinds::by_any_name);
    let target = target::parse(&text, args.namespace.as_deref(), true).with_context(|| match known {
        Some(kind) => format!("`weft get {} NAME -o yaml` shows it", kind.singular),
        None => "pods and services can be described".to_string(),
    })?;
    let client = connect(&connection).await?;
    let world = World::read(&client, &args.control_plane.istio_namespace).await?;
    let described = if target.kind.kind == "Service" {
        let namespace = target.namespace.as_deref().unwrap_or_else(|| client.default_namespace());
        let service = world.service(&target.name, namespace);
        let service = service.with_context(|| {
            format!(
                "there is no service {namespace}/{}; `weft get services -n {namespace}` shows what there is",
                target.name
            )
        })?;
        describe::service(&world, &service, None)
    } else {
        let pod = target::resolve(&client, &target).await?;
        let key = format!("{}/{}", pod.namespace(), pod.name());
        let workload = world.snapshot.workloads_by_name.get(&key);
        describe::workload(&world, workload.with_context(|| unknown(&key, target::phase(&pod)))?)
    };
    match args.output {
        Format::Table => describe::lines(&described).iter().try_for_each(output::line)?,
        format => document(&described, format == Format::Yaml)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Why the mesh does not know a pod.
fn unknown(key: &str, phase: &str) -> String {
    match phase {
        "Succeeded" | "Failed" => format!("pod {key} has ended ({phase}); nothing of the mesh concerns it any more"),
        _ => format!("pod {key} has no address yet"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_pod_that_has_ended_is_not_waited_for() {
        assert_eq!(super::unknown("a/b", "Pending"), "pod a/b has no address yet");
        assert!(super::unknown("a/b", "Succeeded").contains("has ended (Succeeded)"));
    }
}
