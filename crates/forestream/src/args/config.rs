//! The configuration file: values under the long names of flags, for all commands or for one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Command;

use super::layers::has_layers;

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

/// What a configuration file says, with all its keys known.
#[derive(Debug)]
pub(super) struct Config {
    path: PathBuf,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    /// The command of its table; `None` for all commands.
    command: Option<String>,
    key: String,
    values: Vec<OsString>,
}

impl Config {
    /// Reads a file whose keys are flags of the commands of `definition`.
    pub(super) fn read(path: &Path, definition: &Command) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
        let mut config = Self { path: path.to_owned(), entries: Vec::new() };
        for (key, value) in &table {
            match value {
                toml::Value::Table(table) => config.add_table(key, table, definition)?,
                value => {
                    if !definition.get_subcommands().any(|command| has_key(command, key)) {
                        return Err(ConfigError::UnknownKey { path: config.path, key: key.clone() });
                    }
                    config.add(None, key, value)?;
                }
            }
        }
        Ok(config)
    }

    fn add_table(&mut self, name: &str, table: &toml::Table, definition: &Command) -> Result<(), ConfigError> {
        let unknown = |key: String| ConfigError::UnknownKey { path: self.path.clone(), key };
        let mut commands = definition.get_subcommands();
        let command = commands.find(|command| command.get_name() == name).ok_or_else(|| unknown(name.to_owned()))?;
        if let Some(key) = table.keys().find(|key| !has_key(command, key)) {
            return Err(unknown(format!("{name}.{key}")));
        }
        table.iter().try_for_each(|(key, value)| self.add(Some(name), key, value))
    }

    fn add(&mut self, command: Option<&str>, key: &str, value: &toml::Value) -> Result<(), ConfigError> {
        let values =
            values(value).ok_or_else(|| ConfigError::Value { path: self.path.clone(), key: key.to_owned() })?;
        self.entries.push(Entry { command: command.map(str::to_owned), key: key.to_owned(), values });
        Ok(())
    }

    /// The values of a flag in the table of a command, or for all commands; and the place of them.
    pub(super) fn get(&self, command: Option<&str>, id: &str) -> Option<(Vec<OsString>, String)> {
        let found = self.entries.iter().find(|entry| entry.command.as_deref() == command && id_of(&entry.key) == id)?;
        let table = command.map(|command| format!("{command}.")).unwrap_or_default();
        Some((found.values.clone(), format!("{table}{} in {}", found.key, self.path.display())))
    }
}

fn has_key(command: &Command, key: &str) -> bool {
    let id = id_of(key);
    has_layers(&id) && command.get_arguments().any(|argument| argument.get_id() == id.as_str())
}

fn id_of(key: &str) -> String {
    key.replace('-', "_")
}

fn values(value: &toml::Value) -> Option<Vec<OsString>> {
    let scalar = |value: &toml::Value| match value {
        toml::Value::String(text) => Some(text.into()),
        toml::Value::Integer(number) => Some(number.to_string().into()),
        toml::Value::Float(number) => Some(number.to_string().into()),
        toml::Value::Boolean(switch) => Some(switch.to_string().into()),
        _ => None,
    };
    match value {
        toml::Value::Array(values) => values.iter().map(scalar).collect(),
        value => scalar(value).map(|value| vec![value]),
    }
}
