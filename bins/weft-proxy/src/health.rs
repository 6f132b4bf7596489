//! Health of a workload that registered itself: asks it as `readinessProbe` of the ProxyConfig says, and tells the control
//! plane when the answer changes (Istio's reference, WorkloadGroup, `probe`).

use crate::http::Asked;
use crate::probes::Prober;
use http::{HeaderMap, Method};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;
use weft_xds_client::{Client, Health};

/// Path at which a probe is asked that names none.
const ROOT: &str = "/";

/// The probe, with its times.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReadinessProbe {
    initial_delay_seconds: u64,
    timeout_seconds: u64,
    period_seconds: u64,
    success_threshold: u32,
    failure_threshold: u32,
    exec: Option<Exec>,
    #[serde(flatten)]
    ask: Prober,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Exec {
    command: Vec<String>,
}

/// Answers in a row, and what was said last.
#[derive(Debug, Default)]
struct Streak {
    good: u32,
    bad: u32,
    well: Option<bool>,
}

impl Streak {
    /// Counts an answer. What is to be told, when that changes.
    fn count(&mut self, probe: &ReadinessProbe, answer: Result<(), String>) -> Option<Health> {
        let (good, bad) = (or(probe.success_threshold, 1), or(probe.failure_threshold, 3));
        match answer {
            Ok(()) => {
                (self.good, self.bad) = (self.good.saturating_add(1), 0);
                let news = self.good >= good && self.well != Some(true);
                news.then(|| {
                    self.well = Some(true);
                    Health::Well
                })
            }
            Err(reason) => {
                (self.bad, self.good) = (self.bad.saturating_add(1), 0);
                let news = self.bad >= bad && self.well != Some(false);
                news.then(|| {
                    self.well = Some(false);
                    Health::Unwell(reason)
                })
            }
        }
    }
}

fn or<T: Default + PartialEq>(given: T, default: T) -> T {
    if given == T::default() { default } else { given }
}

/// Asks for as long as the client lives.
pub async fn follow(probe: ReadinessProbe, client: Client) {
    let mut streak = Streak::default();
    let period = Duration::from_secs(or(probe.period_seconds, 10));
    tokio::time::sleep(Duration::from_secs(probe.initial_delay_seconds)).await;
    loop {
        let limit = Duration::from_secs(or(probe.timeout_seconds, 1));
        let asked = tokio::time::timeout(limit, probe.answer()).await;
        let answer = asked.unwrap_or_else(|_| Err(format!("no answer within {limit:?}")));
        if let Some(health) = streak.count(&probe, answer) {
            tracing::info!(?health, "health of the workload");
            client.report(health);
        }
        tokio::time::sleep(period).await;
    }
}

impl ReadinessProbe {
    async fn answer(&self) -> Result<(), String> {
        if let Some(exec) = &self.exec {
            return exec.run().await;
        }
        let asked = Asked {
            method: Method::GET,
            path: ROOT.into(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            client: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let status = self.ask.ask(IpAddr::V4(Ipv4Addr::LOCALHOST), &asked).await?;
        // As Kubernetes counts: 2xx and 3xx.
        if status.is_success() || status.is_redirection() { Ok(()) } else { Err(format!("the probe answers {status}")) }
    }
}

impl Exec {
    async fn run(&self) -> Result<(), String> {
        let Some((program, arguments)) = self.command.split_first() else {
            return Err("exec.command of the probe is empty".into());
        };
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        match command.status().await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{program} ends with {status}")),
            Err(error) => Err(format!("{program}: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_told_once() {
        let probe: ReadinessProbe =
            serde_saphyr::from_str("{failureThreshold: 2, successThreshold: 2, httpGet: {port: 80, path: /x}}")
                .unwrap();
        let mut streak = Streak::default();
        let mut told = |ok: bool| streak.count(&probe, if ok { Ok(()) } else { Err("no".into()) });
        let unwell = || Some(Health::Unwell("no".into()));
        let answers = [true, true, true, false, false, false, true, true];
        let want = [None, Some(Health::Well), None, None, unwell(), None, None, Some(Health::Well)];
        assert_eq!(answers.map(&mut told), want);
    }

    #[tokio::test]
    async fn commands() {
        let run = async |line: &str| Exec { command: line.split(' ').map(str::to_string).collect() }.run().await;
        assert_eq!(run("true").await, Ok(()));
        assert!(run("false").await.unwrap_err().contains("exit status: 1"));
        assert!(run("/nowhere/program").await.is_err());
    }
}
