//! `weft completion`: a script by which a shell completes this program's commands and options.

use crate::cli::Cli;
use crate::output;
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::process::ExitCode;

/// Prints a script by which a shell completes what is typed after weft.
#[derive(Debug, clap::Args)]
#[command(after_help = "bash:  source <(weft completion bash)        # for good: into /etc/bash_completion.d/weft\n\
    zsh:   source <(weft completion zsh)         # for good: into a file _weft in a folder of $fpath\n\
    fish:  weft completion fish | source         # for good: into ~/.config/fish/completions/weft.fish")]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "weft", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
