//! Directories of this user, and the few variables that other tools define.
//!
//! Everything that is read from the environment is read here, or by the command line's own definitions.

use std::path::PathBuf;

/// A variable that is set and not empty.
pub fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).filter(|value| !value.is_empty()).and_then(|value| value.into_string().ok())
}

/// Where pulled models and measurements are kept: `$XDG_CACHE_HOME/forestream`, or `~/.cache/forestream`.
pub fn cache_directory() -> PathBuf {
    let base = variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::home_dir().map(|home| home.join(".cache"));
    base.or_else(home).unwrap_or_else(std::env::temp_dir).join("forestream")
}

/// The configuration file of this user, whether it exists or not.
pub fn config_file() -> Option<PathBuf> {
    let base = variable("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| std::env::home_dir().map(|home| home.join(".config")));
    base.map(|base| base.join("forestream").join("config.toml"))
}

/// Whether the user told Hugging Face tools to stay off the network.
pub fn is_hub_offline() -> bool {
    variable("HF_HUB_OFFLINE").is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "off" | "no"))
}
