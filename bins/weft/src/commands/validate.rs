//! `weft validate`: what is wrong with manifests, in the words of `weft apply` and of the validation webhook, without a
//! cluster.

use crate::manifests::{self, Unknown};
use crate::output;
use std::process::ExitCode;
use weft_k8s_api::kinds::by_kind;

/// Checks manifests and changes nothing. Objects of kinds that are not ours are passed over.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File, directory, or - for standard input; may be repeated
    #[arg(short, long = "filename", required = true, value_name = "FILE|DIR|-")]
    file: Vec<String>,
    /// Look into the directories of a directory
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Namespace of objects that name none
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// What happens to fields that a kind does not have
    #[arg(long, value_name = "HOW", default_value = "strict")]
    unknown: Unknown,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (mut documents, mut passed) = (manifests::read(&args.file, args.recursive)?, 0);
    documents.retain(|document| {
        let known = by_kind(document.object.group(), &document.object.kind).is_some();
        passed += usize::from(!known);
        known
    });
    let checked = documents.len();
    let namespace = args.namespace.as_deref();
    match manifests::plan(documents, namespace, "default", args.unknown) {
        Ok(plan) => {
            plan.warnings.iter().for_each(output::warn);
            let more = if passed > 0 { format!(", {passed} of other kinds not checked") } else { String::new() };
            output::line(format!("{} is valid: {checked} objects{more}", args.file.join(", ")))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(problems) => {
            problems.iter().for_each(|problem| output::error(&anyhow::anyhow!("{problem}")));
            Ok(ExitCode::FAILURE)
        }
    }
}
