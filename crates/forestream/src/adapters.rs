//! Which adapter goes with a model: a directory that the user names, else the one that comes with the program.
//!
//! Adapters that come with the program are part of the binary and found by the fingerprint of their base model, so that a
//! known model has streams wherever the binary is copied to.

use std::path::{Path, PathBuf};

use forestream_model::streams::Adapter;
use forestream_model::{Checkpoint, ModelError};

/// Which streams a model gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AdapterChoice {
    /// Those that come with the program, if it knows the model.
    #[default]
    Included,
    /// Those in a directory.
    Directory(PathBuf),
    /// None.
    None,
}

/// An adapter inside the program.
struct Included {
    /// Its directory in the repository.
    directory: &'static str,
    config: &'static [u8],
    weights: &'static [u8],
}

/// Adapters of base models that need no flag, each lossless: they never change a token.
const INCLUDED: &[Included] = &[Included {
    directory: "adapters/smollm2-135m-instruct/general-narrow",
    config: include_bytes!("../../../adapters/smollm2-135m-instruct/general-narrow/adapter_config.json"),
    weights: include_bytes!("../../../adapters/smollm2-135m-instruct/general-narrow/adapter_model.safetensors"),
}];

/// The adapter for `checkpoint`.
///
/// # Errors
/// A directory without a valid adapter for this model.
pub(crate) fn choose(choice: &AdapterChoice, checkpoint: &Checkpoint) -> Result<Option<Adapter>, ModelError> {
    match choice {
        AdapterChoice::None => Ok(None),
        AdapterChoice::Directory(directory) => {
            Adapter::open(directory, checkpoint.config(), &checkpoint.fingerprint()).map(Some)
        }
        AdapterChoice::Included => included(checkpoint),
    }
}

fn included(checkpoint: &Checkpoint) -> Result<Option<Adapter>, ModelError> {
    let fingerprint = checkpoint.fingerprint();
    for adapter in INCLUDED {
        let path = Path::new(adapter.directory);
        let config = Adapter::parse_config(path, adapter.config)?;
        if config.base_model.fingerprint == fingerprint {
            return Adapter::parse(path, config, adapter.weights, checkpoint.config(), &fingerprint).map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use forestream_model::streams::TrainingMode;

    use super::*;

    #[test]
    fn included_adapters_are_lossless_and_belong_to_different_models() {
        let configs: Vec<_> = INCLUDED
            .iter()
            .map(|adapter| Adapter::parse_config(Path::new(adapter.directory), adapter.config).unwrap())
            .collect();
        for (index, config) in configs.iter().enumerate() {
            assert_eq!(config.mode, TrainingMode::Lossless);
            assert_eq!(config.calibration.len(), config.streams.num_streams);
            let fingerprint = &config.base_model.fingerprint;
            assert!(configs[..index].iter().all(|other| other.base_model.fingerprint != *fingerprint));
        }
        assert!(INCLUDED.iter().all(|adapter| adapter.weights.len() < 16 << 20));
    }
}
