//! `weft authz`: who may call what. `can` answers one question with the rule that decides it, `check` and `matrix` answer it
//! for the live workloads, `lint` names rules that can never match.

use crate::authz::decide::{Answer, Ask, Verdict, decide};
use crate::authz::{Caller, Destination, World, lint};
use crate::cli::{Connection, ControlPlane};
use crate::commands::get::document;
use crate::connect::connect;
use crate::explain::request::{Options, claims, header};
use crate::output::{self, Format, Table};
use anyhow::bail;
use clap::Subcommand;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Exit code of `can` when the answer is no.
const NO: u8 = 1;

/// Who may call what.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is asked.
    #[command(subcommand)]
    what: What,
    /// Namespace of what is named without one
    #[arg(short, long, global = true, value_name = "NS")]
    namespace: Option<String>,
    #[command(flatten)]
    control_plane: ControlPlane,
    /// How it is shown
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum What {
    /// May SOURCE call DESTINATION, and which rule says so? Exit code 1 when it may not
    Can {
        /// Workload (NAME, NAME.NS, NS/NAME), sa/ACCOUNT.NS, SPIFFE ID, or address
        source: String,
        /// Service or workload (NAME, NAME.NS, a full host), with :PORT
        destination: String,
        #[command(flatten)]
        request: Request,
    },
    /// Show the policies that bind a destination, and who of the live workloads may call it
    Check {
        /// Service or workload
        #[arg(value_name = "DESTINATION")]
        destination: String,
        #[command(flatten)]
        request: Request,
    },
    /// Show for every pair of a namespace's workloads and their callers whether it is allowed
    Matrix {
        #[command(flatten)]
        request: Request,
    },
    /// Name rules that can never match and policies that bind nothing
    Lint,
}

/// The request that is asked about.
#[derive(Debug, Clone, Default, clap::Args)]
struct Request {
    /// Port that is dialled [default: the first HTTP port]
    #[arg(long)]
    port: Option<u16>,
    /// Path, with query [default: /]
    #[arg(long, default_value = "", hide_default_value = true)]
    path: String,
    #[command(flatten)]
    options: Options,
}

impl Request {
    fn ask(&self) -> anyhow::Result<Ask> {
        Ok(Ask {
            method: self.options.method.clone(),
            path: self.path.clone(),
            host: self.options.host.clone(),
            server_name: String::new(),
            headers: self.options.headers.iter().map(|text| header(text)).collect::<anyhow::Result<_>>()?,
            claims: claims(&self.options.claims)?,
        })
    }
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let client = connect(&connection).await?;
    let world = World::read(&client, &args.control_plane.istio_namespace).await?;
    for unread in world.snapshot.warnings.iter().filter(|warning| warning.code == "IST0106") {
        output::warn(format!("{}: {}", unread.at, unread.message));
    }
    let given = args.namespace.clone();
    let namespace = args.namespace.unwrap_or_else(|| client.default_namespace().to_string());
    match args.what {
        What::Can { source, destination, request } => {
            let (caller, ask) = (world.source(&source, &namespace)?, request.ask()?);
            let destination = world.destination(&destination, &namespace, request.port)?;
            let answer = decide(&world, &caller, &destination, &ask)?;
            can(&caller, &destination, &answer, args.output)?;
            Ok(if answer.verdict == Verdict::Denied { ExitCode::from(NO) } else { ExitCode::SUCCESS })
        }
        What::Check { destination, request } => {
            let destination = world.destination(&destination, &namespace, request.port)?;
            check(&world, &destination, &request.ask()?, args.output)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Matrix { request } => {
            matrix(&world, &namespace, &request, args.output)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Lint => lint_all(&world, given.as_deref(), args.output),
    }
}

fn to_value(caller: &Caller, destination: &Destination, answer: &Answer) -> Value {
    json!({
        "source": {"name": caller.name, "identity": caller.identity, "address": caller.address.to_string()},
        "destination": {"name": destination.name, "host": destination.host, "port": destination.port},
        "verdict": answer.verdict.as_str(),
        "reason": answer.reason,
        "policy": answer.rule.as_ref().map(|rule| json!({
            "namespace": rule.namespace, "name": rule.policy, "rule": format!("spec.rules[{}]", rule.index),
        })),
        "mutualTLS": answer.mutual_tls,
        "dryRun": answer.dry_run,
    })
}

fn can(caller: &Caller, destination: &Destination, answer: &Answer, format: Format) -> anyhow::Result<()> {
    if format != Format::Table {
        return document(&to_value(caller, destination, answer), format == Format::Yaml);
    }
    let who = caller.identity.as_deref().unwrap_or("no identity");
    output::line(format!(
        "{}: {} ({who}) → {} port {}",
        answer.verdict.as_str(),
        caller.name,
        destination.name,
        destination.port
    ))?;
    if let Some(rule) = &answer.rule {
        output::line(format!("  by {rule}"))?;
    }
    output::line(format!("  {}", answer.reason))?;
    output::line(format!("  {}", if answer.mutual_tls { "over mutual TLS" } else { "in plain text" }))?;
    answer.dry_run.iter().try_for_each(|text| output::line(format!("  dry run: {text}")))
}

fn check(world: &World, destination: &Destination, ask: &Ask, format: Format) -> anyhow::Result<()> {
    let workload = &destination.workload;
    let policies = world.snapshot.authorization_for(&workload.namespace, &workload.labels);
    let answers = world.callers().into_iter().map(|caller| {
        let answer = decide(world, &caller, destination, ask)?;
        Ok((caller, answer))
    });
    let answers: Vec<(Caller, Answer)> = answers.collect::<anyhow::Result<_>>()?;
    let found = lint::findings(world, None);
    let concerning: Vec<_> =
        found.iter().filter(|f| policies.iter().any(|p| f.policy == format!("{}/{}", p.namespace, p.name))).collect();
    if format != Format::Table {
        let rows: Vec<Value> = answers.iter().map(|(caller, answer)| to_value(caller, destination, answer)).collect();
        let bound: Vec<Value> = policies
            .iter()
            .map(|p| json!({"namespace": p.namespace, "name": p.name, "action": lint::action(&p.spec), "rules": p.spec.rules.len()}))
            .collect();
        let warnings: Vec<Value> = concerning.iter().map(|f| finding(f)).collect();
        return document(&json!({"policies": bound, "callers": rows, "warnings": warnings}), format == Format::Yaml);
    }
    let mut table = Table::new(["ACTION", "AuthorizationPolicy", "RULES"]);
    for policy in &policies {
        table.row([
            lint::action(&policy.spec),
            &format!("{}.{}", policy.name, policy.namespace),
            &policy.spec.rules.len().to_string(),
        ]);
    }
    match table.is_empty() {
        true => output::line("No AuthorizationPolicy binds it.")?,
        false => table.print()?,
    }
    output::line("")?;
    let mut table = Table::new(["CALLER", "IDENTITY", "VERDICT", "BY"]);
    for (caller, answer) in &answers {
        let by = answer.rule.as_ref().map_or_else(|| answer.reason.clone(), ToString::to_string);
        table.row([&caller.name, caller.identity.as_deref().unwrap_or("-"), answer.verdict.as_str(), &by]);
    }
    table.print()?;
    concerning.iter().for_each(|f| output::warn(format!("{} {}: {}", f.policy, f.path, f.message)));
    Ok(())
}

fn matrix(world: &World, namespace: &str, request: &Request, format: Format) -> anyhow::Result<()> {
    let ask = request.ask()?;
    let of_namespace = world.workloads().into_iter().filter(|(_, w)| w.namespace == namespace && w.in_mesh);
    let destinations: Vec<Destination> =
        of_namespace.filter_map(|(name, w)| world.of_workload(name, &w, request.port).ok()).collect();
    if destinations.is_empty() {
        bail!("namespace {namespace} has no workload with a proxy that a service leads to");
    }
    let callers = world.callers();
    let mut rows = Vec::new();
    for caller in &callers {
        let answers: Vec<Answer> =
            destinations.iter().map(|d| decide(world, caller, d, &ask)).collect::<anyhow::Result<_>>()?;
        rows.push((caller, answers));
    }
    if format != Format::Table {
        let all: Vec<Value> = rows
            .iter()
            .flat_map(|(caller, answers)| destinations.iter().zip(answers).map(|(d, a)| to_value(caller, d, a)))
            .collect();
        return document(&Value::Array(all), format == Format::Yaml);
    }
    let short = |d: &Destination| format!("{}:{}", d.workload.workload_name, d.port);
    let mut table = Table::new(std::iter::once("CALLER".to_string()).chain(destinations.iter().map(short)));
    for (caller, answers) in rows {
        let words = answers.iter().map(|answer| answer.verdict.as_str().to_string());
        table.row(std::iter::once(caller.name.clone()).chain(words));
    }
    table.print()?;
    for f in lint::findings(world, Some(namespace)) {
        output::warn(format!("{} {}: {}", f.policy, f.path, f.message));
    }
    Ok(())
}

fn finding(f: &lint::Finding) -> Value {
    json!({"policy": f.policy, "path": f.path, "message": f.message})
}

fn lint_all(world: &World, namespace: Option<&str>, format: Format) -> anyhow::Result<ExitCode> {
    let found = lint::findings(world, namespace);
    if format != Format::Table {
        document(&found.iter().map(finding).collect(), format == Format::Yaml)?;
        return Ok(ExitCode::SUCCESS);
    }
    if found.is_empty() {
        output::line("Every rule can match something.")?;
    }
    for f in found {
        output::line(format!("{} {}: {}", f.policy, f.path, f.message))?;
    }
    Ok(ExitCode::SUCCESS)
}
