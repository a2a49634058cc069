//! The command line: flags, variables and the configuration file, in that order of strength.
//!
//! `low` is what can be typed, `spellings` what other tools call it, `layers` adds the weaker sources, `config` reads one of
//! them, `high` makes what the library takes.

mod config;
mod high;
mod layers;
mod low;
mod spellings;
#[cfg(test)]
mod tests;
mod train;
mod values;

use std::ffi::OsString;
use std::io::{self, Write};

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};
use forestream::places;

use layers::Surroundings;

pub(crate) use high::*;
pub(crate) use low::*;
pub(crate) use train::*;
pub(crate) use values::{OutputFormat, SpecType, TableFormat};

/// Reads the command line, and warns on standard error.
///
/// # Errors
/// Anything that the user has to correct, and the texts of `--help` and `--version`; clap knows the exit code.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<LowArgs, clap::Error> {
    let config_file = places::config_file().filter(|path| path.exists());
    let mut warnings = Vec::new();
    let parsed =
        parse_in(arguments, &Surroundings { variable: &|name| std::env::var_os(name), config_file }, &mut warnings);
    for warning in warnings {
        let _ = writeln!(io::stderr(), "warning: {warning}"); // a closed one is nobody's loss
    }
    parsed
}

fn parse_in(
    arguments: Vec<OsString>,
    around: &Surroundings<'_>,
    warnings: &mut Vec<String>,
) -> Result<LowArgs, clap::Error> {
    let mut command = layers::with_switches(spellings::with_flags_without_effect(LowArgs::command()));
    let arguments = spellings::known(arguments, warnings);
    let arguments = layers::with_weaker_layers(&command, arguments, around, warnings)?;
    let matches = command.try_get_matches_from_mut(arguments)?;
    let parsed = LowArgs::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    match contradiction(&parsed) {
        Some(problem) => Err(command.error(ErrorKind::ArgumentConflict, problem)),
        None => Ok(parsed),
    }
}

/// What no value shows by itself: two that cannot both be kept.
fn contradiction(args: &LowArgs) -> Option<String> {
    let (Command::Generate(GenerateArgs { length, .. }) | Command::Chat(ChatArgs { length, .. })) = &args.command
    else {
        return None;
    };
    let (least, most) = (length.min_tokens, usize::try_from(length.max_tokens).ok()?); // -1: no limit
    let problem = format!(
        "--min-tokens {least} is more than --max-tokens {most} (-n); lower the one, or raise the other (what was not typed is in \
         a FORESTREAM variable or in the configuration file)"
    );
    (least > most).then_some(problem)
}

/// The command line's definition, for completion scripts.
pub(crate) fn definition() -> clap::Command {
    LowArgs::command()
}
