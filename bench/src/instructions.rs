//! Instructions that a request costs weft-proxy in user space, counted by valgrind's callgrind: the same from one run to the next
//! whatever else the machine does, and so the measure for small steps. The kernel's part, and how long an instruction takes, are
//! not in it.

use crate::cases::{Bench, Case, Figures, MESH, OURS, closed};
use crate::child::local;
use crate::config::Traffic;
use crate::load::{self, Plan};
use crate::pair::{Pair, Peer};
use crate::report::Metric;
use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::process::Command;

const CLIENT: Metric = Metric { name: "instructions, client's side", unit: "1/request" };
const SERVER: Metric = Metric { name: "instructions, server's side", unit: "1/request" };

/// What is counted.
pub const CASES: &[Case] = &[
    Case {
        name: "http1",
        about: "HTTP/1.1, 16 connections, 131 bytes; authorization on.",
        peers: OURS,
        run: |bench, peer| count(bench, peer, Traffic::Http1, &closed(false, 16, 1)),
    },
    Case {
        name: "http2",
        about: "HTTP/2 all the way, 4 connections with 16 streams each.",
        peers: OURS,
        run: |bench, peer| count(bench, peer, Traffic::Http2, &closed(true, 4, 16)),
    },
    Case {
        name: "grpc",
        about: "gRPC unary calls, 4 connections with 16 streams each.",
        peers: OURS,
        run: |bench, peer| {
            let plan = Plan { grpc: true, path: "/bench.Echo/Say".into(), ..closed(true, 4, 16) };
            count(bench, peer, Traffic::Http2, &plan)
        },
    },
];

/// The command under which a program counts; what it writes goes to `calls.PID.N` in its folder.
pub fn counting(program: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=calls.%p"]).arg(program);
    command
}

fn count(bench: &Bench, peer: Peer, traffic: Traffic, plan: &Plan) -> Result<Figures> {
    let pair = Pair::start(&bench.programs, peer, &bench.folder, bench.backend.http, traffic, MESH)?;
    let plan = Plan { target: local(pair.ports.entry), duration: bench.duration, ..plan.clone() };
    load::run(&plan).context("warm-up")?;
    for pid in pair.pids() {
        control("--zero", pid)?;
    }
    let outcome = load::run(&plan)?;
    if outcome.failed > 0 {
        bail!("{} of {} requests failed", outcome.failed, outcome.failed + outcome.answered);
    }
    let mut figures = Vec::new();
    for (metric, pid) in [CLIENT, SERVER].into_iter().zip(pair.pids()) {
        control("--dump", pid)?;
        // The first one that is written while it runs.
        let file = bench.folder.join(format!("calls.{pid}.1"));
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let total = text.lines().filter_map(|line| line.strip_prefix("totals: ")).next_back();
        let total: u64 = total.context("callgrind's file has no total")?.trim().parse()?;
        figures.push((metric, total as f64 / outcome.answered as f64));
    }
    Ok(figures)
}

/// Tells a running callgrind what to do, and waits until it has done it.
fn control(what: &str, pid: u32) -> Result<()> {
    let done =
        Command::new("callgrind_control").arg(what).arg(pid.to_string()).output().context("callgrind_control")?;
    if !done.status.success() {
        bail!("callgrind_control {what}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}
