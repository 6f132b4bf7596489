//! A story as lines of text, and as JSON.

use super::request::Request;
use super::{End, Story, Target};
use crate::authz::decide::Answer;
use serde_json::{Value, json};

/// The story, a step a line.
pub fn lines(story: &Story, request: &Request) -> Vec<String> {
    let mut out = vec![format!("{} → {request}", story.caller)];
    let mut step = |word: &str, text: String| out.push(format!("  {word:<10} {text}"));
    if !story.listener.is_empty() {
        step("listener", story.listener.clone());
    }
    if let Some(answer) = &story.gate {
        step("entry", verdict(answer));
    }
    if !story.virtual_host.is_empty() {
        step("host", story.virtual_host.clone());
    }
    if let Some(route) = &story.route {
        step("route", if route.origin.is_empty() { "the proxy's own".into() } else { route.origin.clone() });
    }
    for note in &story.notes {
        step("", note.clone());
    }
    match &story.end {
        End::Answered(status, why) => step("answer", format!("{status} by the proxy: {why}")),
        End::Closed(why) => step("closed", why.clone()),
        End::Forwarded(targets) => {
            for target in targets {
                step("cluster", cluster(target));
                let none = target.is_empty().then(|| "no endpoint: 503 UH no_healthy_upstream".to_string());
                none.into_iter().for_each(|text| step("", text));
                if target.as_called {
                    step("", "to the address that was called".into());
                }
                for (name, count) in &target.endpoints {
                    let more = if *count > 1 { format!(" ({count} endpoints)") } else { String::new() };
                    let says = target.answers.get(name).map_or_else(|| "no proxy guards it".into(), verdict);
                    step("", format!("{name}{more}: {says}"));
                }
            }
        }
    }
    out
}

fn cluster(target: &Target) -> String {
    let share = if target.share < 100.0 { format!("{}% ", rounded(target.share)) } else { String::new() };
    let name = if target.cluster.is_empty() { &target.host } else { &target.cluster };
    let rule = target.rule.as_ref().map(|rule| format!(" (DestinationRule {rule})")).unwrap_or_default();
    format!("{share}{name}{rule}")
}

fn rounded(share: f64) -> f64 {
    (share * 100.0).round() / 100.0
}

fn verdict(answer: &Answer) -> String {
    let over = if answer.mutual_tls { "over mutual TLS" } else { "in plain text" };
    let by = answer.rule.as_ref().map(|rule| format!(" by {rule}")).unwrap_or_default();
    format!("{} {over}{by}: {}", answer.verdict.as_str(), answer.reason)
}

/// The story for programs.
pub fn value(story: &Story, request: &Request) -> Value {
    let mut out = json!({
        "source": story.caller, "request": request.to_string(), "arrives": story.arrives(), "listener": story.listener,
        "virtualHost": story.virtual_host, "notes": story.notes, "entry": story.gate.as_ref().map(answer),
        "route": story.route.as_ref().map(|route| json!({"name": route.name, "from": route.origin})),
    });
    match &story.end {
        End::Answered(status, why) => out["answer"] = json!({"status": status, "details": why}),
        End::Closed(why) => out["closed"] = why.as_str().into(),
        End::Forwarded(targets) => out["clusters"] = targets.iter().map(destination).collect(),
    }
    out
}

fn destination(target: &Target) -> Value {
    let workload = |(name, count): (&String, &usize)| json!({"name": name, "endpoints": count, "answer": target.answers.get(name).map(answer)});
    json!({
        "cluster": target.cluster, "host": target.host, "subset": target.subset, "share": rounded(target.share),
        "destinationRule": target.rule, "asCalled": target.as_called, "workloads": target.endpoints.iter().map(workload).collect::<Vec<_>>(),
    })
}

fn answer(answer: &Answer) -> Value {
    json!({
        "verdict": answer.verdict.as_str(), "rule": answer.rule.as_ref().map(ToString::to_string),
        "reason": answer.reason, "mutualTLS": answer.mutual_tls,
    })
}
