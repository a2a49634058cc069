//! Running other programs and talking to the terminal.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Prints one line (or text) for the person at the terminal.
#[expect(clippy::print_stderr, reason = "a chore's only output is its terminal")]
pub(crate) fn report(text: &str) {
    eprintln!("{}", text.trim_end());
}

/// A command in `directory` that reads nothing from the terminal.
pub(crate) fn command(directory: &Path, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).stdin(Stdio::null());
    command
}

/// Runs a program to its end, its output on the terminal.
///
/// # Errors
/// If it cannot be started or does not end with success.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let line = display(&command);
    report(&format!("$ {line}"));
    let status = command.status().with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}

/// Whether `program --version` can be run.
pub(crate) fn is_installed(program: &str, arguments: &[&str]) -> bool {
    let mut probe = Command::new(program);
    probe.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
