//! Fetches files from the Hugging Face Hub, into the cache that other tools share.
//!
//! Must not know which models have short names beyond what the name itself says.

mod choice;
mod failure;
mod names;
mod request;
mod snapshot;

use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo};

use super::{ModelName, Reporter, Source, SourceError};
use request::{Choose, Request};

pub(super) use choice::Choice;
pub(super) use snapshot::compare;

/// The Hugging Face Hub.
#[derive(Clone, Debug, Default)]
pub struct Hub {
    /// Access token for private and gated repositories.
    pub token: Option<String>,
}

impl Hub {
    /// Its name for users.
    pub const LABEL: &str = "Hugging Face Hub";

    /// Fetches what `choose` takes of a repository's files.
    pub(super) fn fetch_chosen(
        &self,
        repo: Repo,
        choose: Box<Choose>,
        reporter: &mut dyn Reporter,
    ) -> Result<PathBuf, SourceError> {
        Request { repo, choose, expected_sha256: None, token: self.token.clone() }.start(reporter)
    }
}

impl Source for Hub {
    fn label(&self) -> &'static str {
        Self::LABEL
    }

    fn may_carry(&self, name: &ModelName) -> bool {
        address(name).is_some()
    }

    fn destination(&self, _directory: &Path) -> PathBuf {
        Cache::from_env().path().clone()
    }

    fn cached(&self, name: &ModelName) -> Option<PathBuf> {
        let (repository, wanted) = address(name)?;
        snapshot::find(&Repo::model(repository.to_owned()), wanted)
    }

    fn fetch(&self, name: &ModelName, _directory: &Path, reporter: &mut dyn Reporter) -> Result<PathBuf, SourceError> {
        let (repository, wanted) = address(name).ok_or(SourceError::NotCarried)?;
        let expected_sha256 = match name {
            ModelName::Registered(model) => Some(model.sha256),
            _ => None,
        };
        let repo = Repo::model(repository.to_owned());
        let wanted = wanted.map(str::to_owned);
        let choose = Box::new(move |files: &[String]| choice::choose(files, wanted.as_deref()));
        Request { repo, choose, expected_sha256, token: self.token.clone() }.start(reporter)
    }
}

/// The repository of `name`, and the file or quantization that is wanted of it.
fn address(name: &ModelName) -> Option<(&str, Option<&str>)> {
    match name {
        ModelName::Registered(model) => Some((model.hub_repository, Some(model.hub_file))),
        ModelName::Hub { repository, wanted } => Some((repository, wanted.as_deref())),
        ModelName::Path(_) => None,
    }
}
