//! Puts variables and the configuration file under the flags.
//!
//! clap prefers a typed flag to the variable of its argument, and that to its default value. So each argument gets the
//! variable `FORESTREAM_<FLAG>`, and values of the configuration file become default values. Both are then checked by the
//! same parsers as flags, and no flag can be forgotten.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::{ArgAction, Command};
use forestream::places;

use super::values::switch;

/// Arguments without a variable: they are what a command is about, or belong to clap.
const WITHOUT_VARIABLE: &[&str] = &["help", "version", "list", "tensors", "shell", "path", "name", "output_file"];

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration file {path}: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// It is not TOML.
    #[error("{path} is not valid TOML: {problem}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        problem: String,
    },
    /// A key that no command has.
    #[error("{path}: unknown key {key:?}; keys are the long names of flags, alone or in a table such as [generate]")]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key, with its table.
        key: String,
    },
    /// A value that a flag cannot have.
    #[error("{path}: {key} must be text, a number, true or false, or a list of these")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
}

/// Gives every argument of every command its variable.
pub(super) fn with_variables(command: Command) -> Command {
    let command = command.mut_args(|argument| {
        let id = argument.get_id().as_str();
        if WITHOUT_VARIABLE.contains(&id) {
            return argument;
        }
        let variable = format!("FORESTREAM_{}", id.to_ascii_uppercase());
        let argument = argument.env(variable).hide_env(true);
        if matches!(argument.get_action(), ArgAction::SetTrue) { argument.value_parser(switch) } else { argument }
    });
    command.mut_subcommands(with_variables)
}

/// The configuration file that the command line, the variable or the user's directory names.
pub(super) fn config_path(arguments: &[OsString]) -> Option<PathBuf> {
    let typed = arguments.iter().enumerate().find_map(|(index, argument)| {
        let argument = argument.to_str()?;
        match argument.strip_prefix("--config=") {
            Some(path) => Some(PathBuf::from(path)),
            None if argument == "--config" => arguments.get(index + 1).map(PathBuf::from),
            None => None,
        }
    });
    let named = typed.or_else(|| places::variable("FORESTREAM_CONFIG").map(PathBuf::from));
    named.or_else(|| places::config_file().filter(|path| path.exists()))
}

/// Makes the values of a configuration file the default values of the flags with the same names.
pub(super) fn with_config(mut command: Command, path: &Path) -> Result<Command, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| ConfigError::Syntax { path: path.to_owned(), problem: error.to_string() })?;
    let unknown = |key: String| ConfigError::UnknownKey { path: path.to_owned(), key };
    let names: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    // Values for all commands first, so that a command's own table is stronger.
    let (tables, values): (Vec<_>, Vec<_>) = table.iter().partition(|(_, value)| value.is_table());
    for (key, value) in values {
        let mut is_known = false;
        for name in &names {
            let defaults = default_values(key, value, path)?;
            is_known |= set_default(&mut command, name, key, defaults);
        }
        if !is_known {
            return Err(unknown(key.clone()));
        }
    }
    for (name, table) in tables {
        let table = table.as_table().filter(|_| names.contains(name)).ok_or_else(|| unknown(name.clone()))?;
        for (key, value) in table {
            let defaults = default_values(key, value, path)?;
            if !set_default(&mut command, name, key, defaults) {
                return Err(unknown(format!("{name}.{key}")));
            }
        }
    }
    Ok(command)
}

/// Returns whether the command has that flag.
fn set_default(command: &mut Command, subcommand: &str, key: &str, values: Vec<OsString>) -> bool {
    let id = key.replace('-', "_");
    let taken = std::mem::take(command);
    let mut is_known = false;
    *command = taken.mut_subcommand(subcommand, |subcommand| {
        is_known = subcommand.get_arguments().any(|argument| argument.get_id() == id.as_str())
            && !WITHOUT_VARIABLE.contains(&id.as_str());
        if !is_known {
            return subcommand;
        }
        subcommand.mut_arg(id, |argument| argument.default_value(Resettable::Reset).default_values(values))
    });
    is_known
}

fn default_values(key: &str, value: &toml::Value, path: &Path) -> Result<Vec<OsString>, ConfigError> {
    let scalar = |value: &toml::Value| match value {
        toml::Value::String(text) => Some(text.into()),
        toml::Value::Integer(number) => Some(number.to_string().into()),
        toml::Value::Float(number) => Some(number.to_string().into()),
        toml::Value::Boolean(switch) => Some(switch.to_string().into()),
        _ => None,
    };
    let values = match value {
        toml::Value::Array(values) => values.iter().map(scalar).collect(),
        value => scalar(value).map(|value| vec![value]),
    };
    values.ok_or_else(|| ConfigError::Value { path: path.to_owned(), key: key.to_owned() })
}
