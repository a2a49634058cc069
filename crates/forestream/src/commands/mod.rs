//! One file for each command. Commands print; everything they know comes from the library.

mod bench;
mod chat;
mod compare;
mod console;
mod distill;
mod generate;
mod inspect;
mod interrupt;
mod merge;
mod model;
mod prompts;
mod pull;
mod train;
mod whole_file;

use std::process::ExitCode;

use crate::args::{self, Command};

pub(crate) use console::{has_no_reader, print_error};

/// Runs a command and returns the exit code of the process.
///
/// # Errors
/// Anything that kept the command from doing what it was asked for.
pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Generate(args) => generate::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Distill(args) => distill::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Completions(args) => completions(args.shell),
    }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::definition(), "forestream", &mut script);
    console::print_bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}
