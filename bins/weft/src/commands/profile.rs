//! `weft profile`: which profiles there are, what they say, and what two of them differ in.

use crate::install::operator::{Operator, Source};
use crate::install::{difference, path, profile};
use crate::output;
use anyhow::bail;
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;
use weft_k8s_api::yaml;

/// What to do with profiles.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// List the profiles
    List {
        /// Folder with profiles/NAME.yaml, before those of the program
        #[arg(short = 'd', long, visible_alias = "charts", value_name = "DIR")]
        manifests: Option<PathBuf>,
    },
    /// Print the settings of a profile, those of the default profile below them
    Dump(Dump),
    /// Compare two profiles. The exit code is 1 when they differ
    Diff {
        /// A profile
        a: String,
        /// The other one
        b: String,
        /// Folder with profiles/NAME.yaml, before those of the program
        #[arg(short = 'd', long, visible_alias = "charts", value_name = "DIR")]
        manifests: Option<PathBuf>,
    },
}

/// What to print.
#[derive(Debug, clap::Args)]
pub struct Dump {
    /// The profile [default: that of the files, or default]
    profile: Option<String>,
    #[command(flatten)]
    source: Source,
    /// Only what is at this path, such as components.ingressGateways
    #[arg(short = 'p', long, value_name = "PATH")]
    config_path: Option<String>,
    /// How
    #[arg(short, long, value_enum, default_value_t = Format::Yaml)]
    output: Format,
}

/// How settings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// As YAML
    Yaml,
    /// As JSON
    Json,
    /// One line a setting, as --set takes it
    Flags,
}

pub fn run(action: Action) -> anyhow::Result<ExitCode> {
    match action {
        Action::List { manifests } => {
            let names = profile::names(manifests.as_deref())?;
            output::print(&format!("Istio configuration profiles:\n    {}\n", names.join("\n    ")))?;
        }
        Action::Dump(args) => output::print(&dump(args)?)?,
        Action::Diff { a, b, manifests } => {
            let of = |name: &str| profile::read(name, manifests.as_deref());
            let lines = difference::of_trees(&of(&a)?, &of(&b)?);
            if lines.is_empty() {
                output::line("Profiles are identical")?;
                return Ok(ExitCode::SUCCESS);
            }
            output::line(format!("The difference between profiles {a} and {b}:\n{}", lines.join("\n")))?;
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn dump(mut args: Dump) -> anyhow::Result<String> {
    args.source.set.extend(args.profile.iter().map(|name| format!("profile={name}")));
    let operator = Operator::read(&args.source)?;
    let shown = match args.config_path.as_deref() {
        None => {
            let mut object = operator.object("", "istio-system");
            object["metadata"].as_object_mut().map(|metadata| metadata.shift_remove("name"));
            object
        }
        Some(place) => {
            let place = place.strip_prefix("spec.").unwrap_or(place);
            match path::get(&operator.spec, place)? {
                Value::Null => bail!("there is nothing at {place}"),
                value => value.clone(),
            }
        }
    };
    Ok(match args.output {
        Format::Yaml => yaml::write(&shown).map_err(anyhow::Error::msg)?,
        Format::Json => format!("{shown:#}\n"),
        Format::Flags => {
            let shown = if shown["kind"] == "IstioOperator" { &shown["spec"] } else { &shown };
            let mut lines = Vec::new();
            leaves(shown, "", &mut lines);
            lines.concat()
        }
    })
}

/// One line a leaf; names with dots in them are written so that `--set` takes them.
fn leaves(value: &Value, path: &str, lines: &mut Vec<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let name = name.replace('.', "\\.");
                leaves(value, &if path.is_empty() { name } else { format!("{path}.{name}") }, lines);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (at, value) in items.iter().enumerate() {
                leaves(value, &format!("{path}[{at}]"), lines);
            }
        }
        Value::String(text) => lines.push(format!("{path}={text}\n")),
        other => lines.push(format!("{path}={other}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumped(profile: Option<&str>, config_path: Option<&str>, output: Format) -> anyhow::Result<String> {
        let (profile, config_path) = (profile.map(String::from), config_path.map(String::from));
        dump(Dump { profile, source: Source::default(), config_path, output })
    }

    #[test]
    fn dumps() {
        let all = dumped(Some("demo"), None, Format::Yaml).unwrap();
        assert!(all.starts_with("apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\n"), "{all}");
        let gateways = dumped(None, Some("components.ingressGateways"), Format::Yaml).unwrap();
        assert!(
            gateways.starts_with("- name: istio-ingressgateway\n") && gateways.contains("cpu: 2000m"),
            "{gateways}"
        );
        let values = dumped(None, Some("spec.values.gateways.istio-ingressgateway"), Format::Json).unwrap();
        assert!(values.contains("\"injectionTemplate\": \"gateway\""), "{values}");
        let flags = dumped(Some("minimal"), None, Format::Flags).unwrap();
        assert!(flags.contains("\ncomponents.ingressGateways[0].enabled=false\n"), "{flags}");
        assert!(dumped(None, Some("components.nothing"), Format::Yaml).unwrap_err().to_string().contains("nothing at"));
    }
}
