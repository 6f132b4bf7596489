//! One file per command, and which runs.

pub mod analyze;
pub mod apply;
pub mod authz;
pub mod bug_report;
pub mod ca;
pub mod check_inject;
pub mod completion;
pub mod dashboard;
pub mod delete;
pub mod describe;
pub mod down;
pub mod exec;
pub mod explain;
pub mod get;
pub mod injector;
pub mod install;
pub mod internal_debug;
pub mod kube_inject;
pub mod logs;
pub mod manifest;
pub mod operator;
pub mod patch;
pub mod precheck;
pub mod profile;
pub mod proxy_config;
pub mod proxy_status;
pub mod status;
pub mod tag;
pub mod test;
pub mod uninstall;
pub mod up;
pub mod validate;
pub mod verify_install;
pub mod version;
pub mod wait;

use crate::cli::{Cli, Command, Experimental};
use anyhow::Context;
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

/// Runs the command and gives the exit code of the program.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let connection = cli.connection;
    match cli.command {
        // The lab enters namespaces, which a process can do only while it has one thread: no runtime yet.
        Command::Up(args) => up::run(args),
        Command::Down(args) => down::run(args),
        Command::Status(args) => block_on(status::run(args, connection)),
        Command::Apply(args) => block_on(apply::run(args, connection)),
        Command::Delete(args) => block_on(delete::run(args, connection)),
        Command::Get(args) => block_on(get::run(args, connection)),
        Command::Patch(args) => block_on(patch::run(args, connection)),
        Command::Exec(args) => block_on(exec::run(args, connection)),
        Command::Logs(args) => block_on(logs::run(args, connection)),
        Command::ProxyStatus(args) => block_on(proxy_status::run(args, connection)),
        Command::Authz(args) => block_on(authz::run(args, connection)),
        Command::Describe(args) | Command::Experimental(Experimental::Describe(args)) => {
            block_on(describe::run(args, connection))
        }
        Command::Explain(args) => block_on(explain::run(args, connection)),
        Command::Test(args) => block_on(test::run(args, connection)),
        Command::Ca(args) => block_on(ca::run(args, connection)),
        Command::ProxyConfig(args) => block_on(proxy_config::run(args, connection)),
        Command::Analyze(args) => block_on(analyze::run(args, connection)),
        Command::Wait(args) | Command::Experimental(Experimental::Wait(args)) => block_on(wait::run(args, connection)),
        Command::BugReport(args) => block_on(bug_report::run(args, connection)),
        Command::Completion(args) => completion::run(args),
        Command::Experimental(Experimental::CheckInject(args)) => block_on(check_inject::run(args, connection)),
        Command::Experimental(Experimental::InternalDebug(args)) => block_on(internal_debug::run(args, connection)),
        Command::Experimental(Experimental::Injector(action)) => block_on(injector::run(action, connection)),
        Command::Dashboard(args) => block_on(dashboard::run(args, connection)),
        Command::Validate(args) => validate::run(args),
        Command::KubeInject(args) => block_on(kube_inject::run(args, connection)),
        Command::Manifest(action) => manifest::run(action),
        Command::Profile(action) => profile::run(action),
        Command::Install(args) => block_on(install::run(args, connection)),
        Command::Upgrade(args) => block_on(install::upgrade(args, connection)),
        Command::Uninstall(args) | Command::Experimental(Experimental::Uninstall(args)) => {
            block_on(uninstall::run(args, connection))
        }
        Command::VerifyInstall(args) => block_on(verify_install::run(args, connection)),
        Command::Tag(action) | Command::Experimental(Experimental::Revision(action)) => {
            block_on(tag::run(action, connection))
        }
        Command::Operator(action) => block_on(operator::run(action, connection)),
        Command::Version(args) => block_on(version::run(args, connection)),
        Command::Experimental(Experimental::Precheck(args)) => block_on(precheck::run(args, connection)),
    }
}

fn block_on<F: Future<Output = anyhow::Result<ExitCode>>>(command: F) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let result = runtime.block_on(command);
    // A read of the terminal cannot be called off; do not wait for it.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}
