//! `weft install` and `weft upgrade`: an installation onto a cluster, new or in place.

use crate::cli::Connection;
use crate::commands::precheck;
use crate::connect::connect;
use crate::install::apply::{How, install};
use crate::install::operator::Source;
use crate::install::version::Version;
use crate::install::{Operator, Settings, cluster, components, difference, fields};
use crate::output;
use anyhow::{Context, bail};
use std::io::{BufRead as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;
use weft_k8s_api::Object;
use weft_store::ApiClient;

/// Install Weft on a cluster, or change an installation. What an earlier installation of the same name and revision had and
/// this one has not is removed.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Do not ask
    #[arg(short = 'y', long)]
    skip_confirmation: bool,
    /// Let the server check everything, change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long a component may take until it is ready
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = weft_core::duration::parse)]
    readiness_timeout: Duration,
}

/// Bring an installation without a revision to this program's version, or back to it. Pass the files and settings of the
/// installation again: what is left out is as the profile says.
#[derive(Debug, clap::Args)]
pub struct UpgradeArgs {
    #[command(flatten)]
    install: Args,
    /// Do it although the checks say no
    #[arg(long)]
    force: bool,
}

/// Asks on the terminal, or whoever is on the other end of standard input; nothing means no.
///
/// # Errors
/// When standard input cannot be read.
pub fn confirmed(question: &str) -> anyhow::Result<bool> {
    print!("{question} (y/N) ");
    std::io::stdout().flush().context("cannot ask")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn read(args: &Args) -> anyhow::Result<(Operator, Settings)> {
    let operator = Operator::read(&args.source)?;
    for path in fields::without_effect(&operator.spec) {
        output::warn(format!("{path} has no effect with Weft"));
    }
    let settings = Settings::new(&operator)?;
    Ok((operator, settings))
}

fn how(args: &Args) -> How {
    How { dry_run: args.dry_run, timeout: args.readiness_timeout }
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let (operator, settings) = read(&args)?;
    let titles: Vec<String> = components(&settings)?.iter().map(|part| format!("{:?}", part.title)).collect();
    let client = connect(&connection).await?;
    let profile = operator.spec["profile"].as_str().unwrap_or("default");
    let question = format!(
        "This will install the Weft {} {profile} profile with [{}] components into the cluster. Proceed?",
        settings.tag(),
        titles.join(" ")
    );
    if !args.skip_confirmation && !args.dry_run && !confirmed(&question)? {
        output::line("Cancelled.")?;
        return Ok(ExitCode::FAILURE);
    }
    install(&client, &operator, how(&args)).await?;
    Ok(ExitCode::SUCCESS)
}

pub async fn upgrade(args: UpgradeArgs, connection: Connection) -> anyhow::Result<ExitCode> {
    let UpgradeArgs { install: args, force } = args;
    let (operator, settings) = read(&args)?;
    let client = connect(&connection).await?;
    let target = Version::parse(&settings.tag());
    let target = target.with_context(|| format!("{:?} is no version to upgrade to", settings.tag()))?;
    match eligible(&client, &operator, &settings, target).await {
        Ok(changes) => output::print(&changes)?,
        Err(problem) if force => output::warn(format!("{problem:#}")),
        Err(problem) => return Err(problem),
    }
    let problems = precheck::problems(&client).await?;
    problems.iter().for_each(output::warn);
    if !problems.is_empty() && !force {
        bail!("the cluster is not ready for an upgrade; --force does it all the same");
    }
    if !args.skip_confirmation && !args.dry_run && !confirmed(&format!("Upgrade to version {target}. Proceed?"))? {
        output::line("Cancelled.")?;
        return Ok(ExitCode::FAILURE);
    }
    install(&client, &operator, how(&args)).await?;
    output::print(&format!(
        "\nSuccess. The control plane has been brought to version {target}.\nProxies beside workloads stay as they are until \
         their pods are made anew:\n    kubectl rollout restart deployment --namespace <namespace>\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether what is installed may become this; what changes, one line a setting.
async fn eligible(
    client: &ApiClient,
    operator: &Operator,
    settings: &Settings,
    target: Version,
) -> anyhow::Result<String> {
    if !settings.revision.is_empty() {
        bail!(
            "upgrade is in place and not for revisions; install the new version beside the old: weft install --revision NAME"
        );
    }
    let planes = cluster::control_planes(client, Some(&settings.namespace)).await?;
    let unrevisioned: Vec<&Object> = planes.iter().filter(|plane| cluster::revision_of(plane) == "default").collect();
    if unrevisioned.is_empty() && !planes.is_empty() {
        let revisions: Vec<&str> = planes.iter().map(cluster::revision_of).collect();
        bail!(
            "the control plane was installed with --revision ({}); an upgrade in place is not for revisions: install the new \
             version beside it under a new one",
            revisions.join(", ")
        );
    }
    let Some(plane) = unrevisioned.first() else {
        bail!("no control plane is installed in {}; weft install installs one", settings.namespace);
    };
    let states = cluster::states(client, Some(&settings.namespace)).await?;
    let name = cluster::Owner::new(operator, settings).state_name();
    let Some(state) = states.iter().find(|state| state.name() == name) else {
        bail!("the control plane was not installed by weft install under the name {:?}", operator.name);
    };
    let image = cluster::image_of(plane);
    let installed = Version::of_image(&image);
    let installed = installed.with_context(|| format!("the image {image} of the control plane says no version"))?;
    installed.may_become(target).map_err(anyhow::Error::msg)?;
    let mut text =
        format!("Control plane - {} pods - version {installed}\nTarget - version {target}\n", image_pods(plane));
    let changes = difference::of_trees(state.spec(), &operator.spec);
    if !changes.is_empty() {
        text.push_str(&format!("Settings that change:\n    {}\n", changes.join("\n    ")));
    }
    Ok(text)
}

fn image_pods(plane: &Object) -> i64 {
    plane.body.get("status").and_then(|status| status["readyReplicas"].as_i64()).unwrap_or(0)
}
