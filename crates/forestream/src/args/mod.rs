//! The command line: flags, variables and the configuration file, in that order of strength.
//!
//! `low` is what can be typed, `layers` adds the weaker sources, `high` makes what the library takes.

mod high;
mod layers;
mod low;
mod train;
mod values;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};

pub(crate) use high::*;
pub(crate) use low::*;
pub(crate) use train::*;
pub(crate) use values::{OutputFormat, SpecType, TableFormat};

/// Reads the command line.
///
/// # Errors
/// Anything that the user has to correct, and the texts of `--help` and `--version`; clap knows the exit code.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<LowArgs, clap::Error> {
    let mut command = layers::with_variables(LowArgs::command());
    if let Some(path) = layers::config_path(&arguments) {
        command = layers::with_config(command, &path)
            .map_err(|error| LowArgs::command().error(ErrorKind::InvalidValue, error))?;
    }
    let matches = command.try_get_matches_from_mut(arguments)?;
    LowArgs::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The command line's definition, for completion scripts.
pub(crate) fn definition() -> clap::Command {
    LowArgs::command()
}
