//! `weft test`: expectations about requests, tried against the objects of a cluster or of files, before they are applied.

use crate::authz::World;
use crate::authz::decide::Answer;
use crate::cli::Connection;
use crate::commands::explain::{From, Mesh};
use crate::commands::get::document;
use crate::explain::request::{Options, Request};
use crate::explain::{End, Story, Target, explain, show};
use crate::output::{self, Format};
use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

/// Exit code when an expectation does not hold.
const FAILED: u8 = 1;
/// Largest file of expectations, bytes.
const MAX_FILE: u64 = 4 << 20;
/// Half a percent: shares are compared as they are written.
const SHARE_ERROR: f64 = 0.5;

/// Tries expectations about requests.
#[derive(Debug, clap::Args)]
#[command(after_help = "A file of expectations:\n\n  \
    tests:\n  \
    - name: jason sees stars\n    \
      from: productpage-v1                    # workload or gateway that calls\n    \
      to: http://reviews:9080/reviews/0       # as weft explain takes it\n    \
      headers: {end-user: jason}              # also: method, host, claims\n    \
      expect:\n      \
        subset: v2                            # or subsets: {v1: 80, v3: 20}; also: service: HOST\n      \
        verdict: ALLOWED                      # or DENIED, ASKED; rule: NAMESPACE/POLICY\n      \
        route: VirtualService default/reviews spec.http[0]\n      \
        mutualTLS: true\n  \
    - name: no way to the ratings\n    \
      from: productpage-v1\n    \
      to: http://ratings:9080/\n    \
      expect: {verdict: DENIED}\n\n\
    status: N stands for an answer of the proxy's own (404, 301, 503 …). verdict, rule and mutualTLS are of every workload that \
    may get the request; one without a proxy is open: ALLOWED, without a rule, without mutual TLS.")]
pub struct Args {
    /// Files of expectations
    #[arg(value_name = "TESTS", required = true)]
    tests: Vec<String>,
    #[command(flatten)]
    from: From,
    /// How it is shown
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// A file of expectations.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tests: Vec<Case>,
}

/// One request, and what is expected of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Case {
    name: String,
    from: String,
    to: String,
    method: String,
    host: String,
    headers: BTreeMap<String, String>,
    claims: BTreeMap<String, Value>,
    expect: Expectation,
}

/// What is expected; what is left out may be anything.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Expectation {
    /// Host of the service that gets it; short names are completed.
    service: Option<String>,
    /// The one subset that gets it.
    subset: Option<String>,
    /// Subsets and their shares in percent.
    subsets: Option<BTreeMap<String, f64>>,
    /// Start of the route's origin, such as `VirtualService default/reviews`.
    route: Option<String>,
    /// Status of the proxy's own answer.
    status: Option<u16>,
    /// `ALLOWED`, `DENIED`, `ASKED`: of every workload that may get it; one without a proxy allows everything.
    verdict: Option<String>,
    /// Policy that decides, `NAMESPACE/NAME`.
    rule: Option<String>,
    /// Mutual TLS is used to every workload; to one without a proxy it is not.
    #[serde(rename = "mutualTLS")]
    mutual_tls: Option<bool>,
}

/// What came of a case.
struct Tried {
    name: String,
    place: String,
    wrong: Vec<String>,
    story: Vec<String>,
    used: BTreeSet<String>,
}

pub async fn run(args: Args, connection: Connection) -> anyhow::Result<ExitCode> {
    let files: Vec<(String, File)> = args.tests.iter().map(|file| read(file)).collect::<anyhow::Result<_>>()?;
    let mesh = args.from.read(&connection).await?;
    let mut tried = Vec::new();
    for (file, tests) in &files {
        for (i, case) in tests.tests.iter().enumerate() {
            let place = format!("{file}: tests[{i}]");
            tried.push(attempt(&mesh, case, &place).with_context(|| place.clone())?);
        }
    }
    let unused = unused(&mesh.world, &tried);
    match args.output {
        Format::Table => report(&tried, &unused)?,
        format => document(&value(&tried, &unused), format == Format::Yaml)?,
    }
    Ok(if tried.iter().all(|case| case.wrong.is_empty()) { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn read(file: &str) -> anyhow::Result<(String, File)> {
    let about = std::fs::metadata(file).with_context(|| format!("cannot read {file}"))?;
    anyhow::ensure!(about.len() <= MAX_FILE, "{file} is larger than {MAX_FILE} bytes");
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let read = serde_saphyr::from_str::<File>(&text).map_err(|error| {
        // Below its first line stands the text once more.
        let told = error.to_string();
        let first = told.lines().next().unwrap_or_default();
        anyhow::anyhow!("{file}: {}; `weft test --help` shows such a file", first.trim_start_matches("error: "))
    })?;
    if read.tests.is_empty() {
        bail!("{file} has no tests");
    }
    Ok((file.to_string(), read))
}

fn attempt(mesh: &Mesh, case: &Case, place: &str) -> anyhow::Result<Tried> {
    for (field, text) in [("from", &case.from), ("to", &case.to)] {
        anyhow::ensure!(!text.is_empty(), "{field} is missing");
    }
    anyhow::ensure!(case.expect != Expectation::default(), "expect says nothing");
    let pairs = |name: &String, value: String| format!("{name}={value}");
    let options = Options {
        method: case.method.clone(),
        host: case.host.clone(),
        headers: case.headers.iter().map(|(name, value)| pairs(name, value.clone())).collect(),
        claims: case.claims.iter().map(|(name, value)| pairs(name, value.to_string())).collect(),
    };
    let caller = mesh.world.source(&case.from, &mesh.namespace)?;
    let request = Request::new(&case.to, &options, &mesh.world, &caller, &mesh.namespace)?;
    let story = explain(&mesh.world, &caller, &request)?;
    let service = |text: &str| {
        let found = mesh.world.service(text, &request.namespace);
        found.map_or_else(|| text.to_string(), |service| service.host.to_string())
    };
    let name = if case.name.is_empty() { request.to_string() } else { case.name.clone() };
    let wrong = compare(&case.expect, &story, service)?;
    let story_lines = show::lines(&story, &request);
    Ok(Tried { name, place: place.to_string(), wrong, story: story_lines, used: used(&story) })
}

/// What does not hold, one sentence each.
fn compare(expect: &Expectation, story: &Story, service: impl Fn(&str) -> String) -> anyhow::Result<Vec<String>> {
    let targets = match &story.end {
        End::Forwarded(targets) => targets.as_slice(),
        End::Answered(..) | End::Closed(_) => &[],
    };
    let mut wrong = Wrong::default();
    of_way(expect, story, targets, service, &mut wrong);
    of_answers(expect, story, targets, &mut wrong)?;
    Ok(wrong.0)
}

/// What does not hold, one sentence each.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn check(&mut self, field: &str, wanted: &str, got: &str) {
        if wanted != got {
            self.0.push(format!("{field}: expected {wanted}, got {got}"));
        }
    }
}

fn list(words: BTreeSet<String>, none: &str) -> String {
    if words.is_empty() { none.to_string() } else { words.into_iter().collect::<Vec<_>>().join(", ") }
}

/// Which way the request goes: services, subsets, routes, the proxy's own answers.
fn of_way(
    expect: &Expectation,
    story: &Story,
    targets: &[Target],
    service: impl Fn(&str) -> String,
    wrong: &mut Wrong,
) {
    let each = |of: &dyn Fn(&Target) -> String| list(targets.iter().map(of).collect(), &ended(&story.end));
    if let Some(host) = &expect.service {
        wrong.check("service", &service(host), &each(&|target| target.host.clone()));
    }
    if let Some(subset) = &expect.subset {
        wrong.check("subset", subset, &each(&|target| target.subset.clone()));
    }
    if let Some(shares) = &expect.subsets {
        let mut got: BTreeMap<String, f64> = BTreeMap::new();
        for target in targets {
            // Routes may name a subset several times.
            *got.entry(target.subset.clone()).or_default() += target.share;
        }
        let near = |(name, share): (&String, &f64)| got.get(name).is_some_and(|got| (got - share).abs() <= SHARE_ERROR);
        if got.len() != shares.len() || !shares.iter().all(near) {
            let got = if got.is_empty() { ended(&story.end) } else { format!("{got:?}") };
            wrong.check("subsets", &format!("{shares:?}"), &got);
        }
    }
    if let Some(route) = &expect.route {
        let got = story.route.as_ref().map(|route| route.origin.clone()).unwrap_or_default();
        let same =
            got == *route || got.strip_prefix(route.as_str()).is_some_and(|rest| rest.starts_with([' ', '[', '.']));
        wrong.check("route", route, if same { route } else { or_none(&got) });
    }
    if let Some(status) = expect.status {
        let got = ended(&story.end);
        wrong.check("status", &status.to_string(), got.split(' ').next().unwrap_or_default());
    }
}

/// What the proxies at the other end say, or at the gateway; what nobody guards is open to everybody.
fn of_answers(expect: &Expectation, story: &Story, targets: &[Target], wrong: &mut Wrong) -> anyhow::Result<()> {
    let mut answers: Vec<&Answer> = story.gate.iter().filter(|gate| gate.verdict.as_str() != "ALLOWED").collect();
    let mut open = false;
    if answers.is_empty() {
        answers = targets.iter().flat_map(|target| target.answers.values()).collect();
        let is_open = |target: &Target| target.endpoints.keys().any(|name| !target.answers.contains_key(name));
        open = targets.iter().any(is_open);
    }
    let all = |of: &dyn Fn(&Answer) -> String, wanted: &str, when_open: &str| {
        let mut all: BTreeSet<String> = answers.iter().map(|answer| of(answer)).collect();
        if open {
            all.insert(if wanted == when_open { when_open.into() } else { format!("{when_open} (no proxy)") });
        }
        list(all, "no proxy was asked")
    };
    if let Some(verdict) = &expect.verdict {
        if !["ALLOWED", "DENIED", "ASKED"].contains(&verdict.as_str()) {
            bail!("expect.verdict is {verdict:?}; it must be ALLOWED, DENIED or ASKED");
        }
        wrong.check("verdict", verdict, &all(&|answer| answer.verdict.as_str().to_string(), verdict, "ALLOWED"));
    }
    if let Some(rule) = &expect.rule {
        let named = |answer: &Answer| {
            let name = answer.rule.as_ref().map(|rule| format!("{}/{}", rule.namespace, rule.policy));
            or_none(&name.unwrap_or_default()).to_string()
        };
        wrong.check("rule", rule, &all(&named, rule, "none"));
    }
    if let Some(wanted) = expect.mutual_tls {
        let wanted = wanted.to_string();
        wrong.check("mutualTLS", &wanted, &all(&|answer| answer.mutual_tls.to_string(), &wanted, "false"));
    }
    Ok(())
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// The end of a story that reaches nobody, in words that begin with the status.
fn ended(end: &End) -> String {
    match end {
        End::Forwarded(targets) if targets.iter().all(Target::is_empty) => "503 UH".into(),
        End::Forwarded(_) => "an answer of the application".into(),
        End::Answered(status, why) => format!("{status} by the proxy ({why})"),
        End::Closed(why) => format!("a closed connection ({why})"),
    }
}

/// Rules of objects that decided something in this story.
fn used(story: &Story) -> BTreeSet<String> {
    let targets = match &story.end {
        End::Forwarded(targets) => targets.as_slice(),
        End::Answered(..) | End::Closed(_) => &[],
    };
    let answers = story.gate.iter().chain(targets.iter().flat_map(|target| target.answers.values()));
    let rules = answers.filter_map(|answer| answer.rule.as_ref().map(ToString::to_string));
    rules.chain(story.route.iter().map(|route| route.origin.clone())).collect()
}

/// Routes of virtual services and rules of authorization policies that no test came to.
fn unused(world: &World, tried: &[Tried]) -> Vec<String> {
    let used: BTreeSet<&String> = tried.iter().flat_map(|case| &case.used).collect();
    let is_used = |rule: &String| {
        used.iter()
            .any(|u| u.strip_prefix(rule.as_str()).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit())))
    };
    let services = world.snapshot.virtual_services.iter();
    let routes = services.flat_map(|vs| vs.http_origin.iter().map(ToString::to_string));
    let policies = world.snapshot.authorization.values().flatten();
    let rules = policies.flat_map(|policy| {
        let name = format!("AuthorizationPolicy {}/{}", policy.namespace, policy.name);
        (0..policy.spec.rules.len()).map(move |i| format!("{name} spec.rules[{i}]"))
    });
    let all: BTreeSet<String> = routes.chain(rules).collect();
    all.into_iter().filter(|rule| !is_used(rule)).collect()
}

fn report(tried: &[Tried], unused: &[String]) -> anyhow::Result<()> {
    for case in tried {
        if case.wrong.is_empty() {
            output::line(format!("ok      {}", case.name))?;
            continue;
        }
        output::line(format!("FAILED  {} ({})", case.name, case.place))?;
        for text in case.wrong.iter().chain(&case.story) {
            output::line(format!("          {text}"))?;
        }
    }
    let failed = tried.iter().filter(|case| !case.wrong.is_empty()).count();
    output::line(format!("{} passed, {failed} failed", tried.len() - failed))?;
    for rule in unused {
        output::line(format!("no test comes to {rule}"))?;
    }
    Ok(())
}

fn value(tried: &[Tried], unused: &[String]) -> Value {
    let cases: Vec<Value> = tried
        .iter()
        .map(|case| json!({"name": case.name, "at": case.place, "passed": case.wrong.is_empty(), "wrong": case.wrong}))
        .collect();
    json!({"tests": cases, "unused": unused})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::tests::{ask, bookinfo};

    /// A workload of reviews that no proxy guards, and rules: nobody may call reviews, nor without mutual TLS.
    const OPEN: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: reviews-bare}
spec:
  template:
    metadata: {labels: {app: reviews, version: v4}, annotations: {sidecar.istio.io/inject: 'false'}}
    spec: {containers: [{name: app, image: x}]}
---
";
    const CLOSED: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec: {selector: {matchLabels: {app: reviews}}}
---
";

    fn wrong(world: &World, to: &str, expect: &str) -> Vec<String> {
        let (story, _) = ask(world, "productpage-v1", to, &[]);
        compare(&serde_saphyr::from_str(expect).unwrap(), &story, str::to_string).unwrap()
    }

    #[test]
    fn what_nobody_guards_is_open() {
        let (closed, both) = (bookinfo(CLOSED), bookinfo(&[OPEN, CLOSED].concat()));
        for (world, expect, says) in [
            (&closed, "{verdict: DENIED}", ""),
            (&both, "{verdict: DENIED}", "verdict: expected DENIED, got ALLOWED (no proxy), DENIED"),
            (&both, "{verdict: ALLOWED}", "verdict: expected ALLOWED, got ALLOWED, DENIED"),
            (&bookinfo(OPEN), "{verdict: ALLOWED}", ""),
            (&closed, "{mutualTLS: true}", ""),
            (&both, "{mutualTLS: true}", "mutualTLS: expected true, got false (no proxy), true"),
            (&both, "{rule: default/nobody}", "rule: expected default/nobody, got none, none (no proxy)"),
        ] {
            assert_eq!(wrong(world, "reviews", expect).join("; "), says, "{expect}");
        }
    }

    #[test]
    fn shares_add_up_and_one_empty_subset_is_not_all() {
        let routes = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v3, labels: {version: v3}}, {name: none, labels: {version: none}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /half}}]
    route: [{destination: {host: reviews, subset: v1}, weight: 50}, {destination: {host: reviews, subset: none}, weight: 50}]
  - match: [{uri: {prefix: /none}}]
    route: [{destination: {host: reviews, subset: none}}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 40}
    - {destination: {host: reviews, subset: v3}, weight: 20}
    - {destination: {host: reviews, subset: v1}, weight: 40}
";
        let world = bookinfo(routes);
        for (to, expect, says) in [
            ("reviews/", "{subsets: {v1: 80, v3: 20}}", ""),
            ("reviews/", "{subsets: {v1: 40, v3: 20}}", "expected"),
            ("reviews/none", "{status: 503}", ""),
            ("reviews/half", "{status: 503}", "status: expected 503, got an"),
        ] {
            let wrong = wrong(&world, to, expect).join("; ");
            assert!(wrong.contains(says) && wrong.is_empty() == says.is_empty(), "{to} {expect}: {wrong}");
        }
    }
}
