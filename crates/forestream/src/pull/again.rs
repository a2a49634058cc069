//! `pull` of what may be on this machine already: what is missing or damaged is fetched, and nothing else.
//!
//! What is said about a file is what was compared. Must not know where files come from.

use std::fs;
use std::path::{Path, PathBuf};

use super::{ModelName, ModelStore, PullError, RegisteredModel, Reporter, SourceError, hub, sha256_of};

impl ModelStore {
    /// The path of the model called `name`, fetched anew where what is on this machine is incomplete or damaged.
    ///
    /// # Errors
    /// If no source gave it, or what is there is damaged and cannot be replaced.
    pub fn pull(&self, name: &ModelName, reporter: &mut dyn Reporter) -> Result<PathBuf, PullError> {
        match name {
            ModelName::Path(path) => {
                reporter.say("it is a path on this machine; there is nothing to pull, and nothing to compare it with");
                Ok(path.clone())
            }
            ModelName::Registered(model) => self.pull_registered(name, model, reporter),
            ModelName::Hub { .. } => self.pull_from_hub(name, reporter),
        }
    }

    fn pull_registered(
        &self,
        name: &ModelName,
        model: &RegisteredModel,
        reporter: &mut dyn Reporter,
    ) -> Result<PathBuf, PullError> {
        let Some(path) = self.cached(name) else { return self.fetch(name, reporter) };
        let got = sha256_of(&path)?;
        if got == model.sha256 {
            reporter.say("it is already on this machine, and its content is right");
            return Ok(path);
        }
        reporter.say(&format!("{} is damaged; fetching it anew", path.display()));
        let fresh = self.fetch(name, reporter).map_err(|cause| {
            let damage = SourceError::Damaged { path: path.clone(), expected: model.sha256.to_owned(), got };
            PullError::Damaged { damage, cause: Box::new(cause) }
        })?;
        self.remove_replaced(&path, &fresh)?;
        Ok(fresh)
    }

    /// Removes a damaged file of the store that would hide the right one in another cache.
    fn remove_replaced(&self, damaged: &Path, fresh: &Path) -> Result<(), SourceError> {
        if fresh == damaged || !damaged.starts_with(&self.directory) {
            return Ok(());
        }
        let file_error = |cause| SourceError::File { action: "remove", path: damaged.to_owned(), cause };
        fs::remove_file(damaged).map_err(file_error)
    }

    /// Asks the Hub what belongs to the model; where it does not answer, what is here and right will do.
    fn pull_from_hub(&self, name: &ModelName, reporter: &mut dyn Reporter) -> Result<PathBuf, PullError> {
        let cause = match self.fetch(name, reporter) {
            Err(cause @ PullError::NoSource { .. }) => cause,
            result => return result,
        };
        let Some(path) = self.cached(name) else { return Err(cause) };
        match hub::compare(&path) {
            Ok(comparison) => reporter.say(&comparison.describe()),
            Err(damage) => return Err(PullError::Damaged { damage, cause: Box::new(cause) }),
        }
        Ok(path)
    }
}
