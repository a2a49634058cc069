//! An adapter on disk: `adapter_config.json`, `adapter_model.safetensors`, and for people a card and its provenance.
//!
//! Rows of `q_proj` and `k_proj` changes are in the order that rotates halves (Hugging Face), whatever the base file does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ::safetensors::{Dtype, SafeTensors, tensor::TensorView};
use half::f16;
use sha2::{Digest, Sha256};

use super::config::{AdapterConfig, MAIN_LAYERS, MainLoraConfig};
use crate::weights::{MappedFile, hexadecimal};
use crate::{DecoderConfig, ModelError, TokenId, write_whole};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// The tensor of token ids that streams can propose.
const DRAFT_VOCABULARY: &str = "draft_vocabulary";
/// The tensor of inner features that stream rows use, `[num_msa_layers, intermediate_size]`.
const INNER_FEATURES: &str = "inner_features";

/// A trained adapter in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Sizes, switches and the base model.
    pub config: AdapterConfig,
    /// Trained tensors by name, rows one after another; shapes as [`AdapterConfig::tensors`] says.
    pub tensors: BTreeMap<String, Vec<f32>>,
    /// The tokens that streams can propose, most frequent first; empty means all of them.
    pub draft_vocabulary: Vec<TokenId>,
    /// By layer with streams, in ascending order: the inner features of the MLP that stream rows use; empty means all.
    pub inner_features: Vec<Vec<u32>>,
}

impl Adapter {
    /// Reads the adapter in `directory` and checks it against the base model's sizes and fingerprint.
    ///
    /// # Errors
    /// A file that is missing or malformed, a tensor that is missing or has another shape, or another base model.
    pub fn open(directory: &Path, base: &DecoderConfig, fingerprint: &str) -> Result<Self, ModelError> {
        let config = Self::read_config(directory)?;
        let file = MappedFile::open(&directory.join(WEIGHTS))?;
        Self::parse(directory, config, file.bytes(), base, fingerprint)
    }

    /// [`Adapter::open`] for files that are in memory already; `directory` is for the errors.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn parse(
        directory: &Path,
        config: AdapterConfig,
        weights: &[u8],
        base: &DecoderConfig,
        fingerprint: &str,
    ) -> Result<Self, ModelError> {
        let path = directory.join(CONFIG);
        if config.base_model.fingerprint != fingerprint {
            let problem = format!(
                "this adapter was trained for `{}` (fingerprint {}), but the model's fingerprint is {}; load that model, \
                 or train an adapter for this one",
                config.base_model.name,
                short(&config.base_model.fingerprint),
                short(fingerprint)
            );
            return Err(ModelError::unsupported(&path, problem));
        }
        config.validate(base).map_err(|problem| ModelError::malformed(&path, problem))?;
        Self::parse_weights(&directory.join(WEIGHTS), weights, config, base)
    }

    /// Reads `adapter_config.json` alone.
    ///
    /// # Errors
    /// No such file, or one that is not what it should be.
    pub fn read_config(directory: &Path) -> Result<AdapterConfig, ModelError> {
        let path = directory.join(CONFIG);
        let bytes = std::fs::read(&path).map_err(|source| ModelError::Read { path, source })?;
        Self::parse_config(directory, &bytes)
    }

    /// [`Adapter::read_config`] for a file that is in memory already.
    ///
    /// # Errors
    /// Bytes that are not what they should be.
    pub fn parse_config(directory: &Path, bytes: &[u8]) -> Result<AdapterConfig, ModelError> {
        serde_json::from_slice(bytes).map_err(|error| {
            ModelError::malformed(&directory.join(CONFIG), format!("not an adapter configuration: {error}"))
        })
    }

    fn parse_weights(
        path: &Path,
        bytes: &[u8],
        config: AdapterConfig,
        base: &DecoderConfig,
    ) -> Result<Self, ModelError> {
        let weights = SafeTensors::deserialize(bytes)
            .map_err(|error| ModelError::malformed(path, format!("not a valid safetensors file: {error}")))?;
        let mut tensors = BTreeMap::new();
        for spec in config.tensors(base) {
            let missing = || ModelError::malformed(path, format!("the tensor `{}` is missing", spec.name));
            let view = weights.tensor(&spec.name).map_err(|_| missing())?;
            if view.shape() != spec.shape {
                let (name, expected, got) = (&spec.name, spec.shape, view.shape());
                let problem = format!("the tensor `{name}` should be {expected:?}, but it is {got:?}");
                return Err(ModelError::malformed(path, problem));
            }
            tensors.insert(spec.name.clone(), to_f32(path, &spec.name, &view)?);
        }
        let beside = [
            (DRAFT_VOCABULARY, config.streams.draft_vocab_size.is_some()),
            (INNER_FEATURES, config.streams.intermediate_size.is_some()),
        ];
        let is_known = |name: &str| tensors.contains_key(name) || beside.contains(&(name, true));
        if let Some(name) = weights.names().into_iter().find(|name| !is_known(name)) {
            let problem = format!(
                "the tensor `{name}` does not belong to the configuration beside it; take both files of one adapter"
            );
            return Err(ModelError::malformed(path, problem));
        }
        let draft_vocabulary = match config.streams.draft_vocab_size {
            Some(size) => read_indices(path, &weights, DRAFT_VOCABULARY, &[size], "token", base.vocab_size)?,
            None => Vec::new(),
        };
        let mut seen = BTreeSet::new();
        if let Some(token) = draft_vocabulary.iter().find(|token| !seen.insert(**token)) {
            return Err(ModelError::malformed(
                path,
                format!("the tensor `{DRAFT_VOCABULARY}` names token {token} twice"),
            ));
        }
        let inner_features = match config.streams.intermediate_size {
            Some(size) => read_inner_features(path, &weights, [config.streams.num_msa_layers, size], base)?,
            None => Vec::new(),
        };
        Ok(Self { config, tensors, draft_vocabulary, inner_features })
    }

    /// Writes configuration and weights (in half precision) into `directory`, both or neither.
    ///
    /// # Errors
    /// When the directory or a file cannot be written, and values that half precision cannot hold, as diverged ones.
    ///
    /// # Panics
    /// If a tensor of the configuration is missing or has another length.
    pub fn save(&self, directory: &Path, base: &DecoderConfig) -> Result<(), ModelError> {
        let files = self.files(directory, base)?;
        std::fs::create_dir_all(directory).map_err(ModelError::write(directory))?;
        write_whole(&files)
    }

    /// The files that [`Adapter::save`] writes, for [`write_whole`] with what else belongs to the adapter.
    ///
    /// # Errors
    /// Values that half precision cannot hold, as diverged ones.
    ///
    /// # Panics
    /// As [`Adapter::save`].
    pub fn files(&self, directory: &Path, base: &DecoderConfig) -> Result<Vec<(PathBuf, Vec<u8>)>, ModelError> {
        let is_too_great = |values: &[f32]| values.iter().any(|&value| !f16::from_f32(value).is_finite());
        if let Some((name, _)) = self.tensors.iter().find(|(_, values)| is_too_great(values)) {
            let problem = format!("half precision cannot hold the values of `{name}`; train again with a lower --lr");
            return Err(ModelError::unsupported(&directory.join(WEIGHTS), problem));
        }
        let mut json = serde_json::to_vec_pretty(&self.config).expect("a configuration is plain data");
        json.push(b'\n');
        Ok(vec![(directory.join(WEIGHTS), self.to_safetensors(base)), (directory.join(CONFIG), json)])
    }

    /// What tells the models apart that adapters make of one base: the SHA-256, in hexadecimal, of the changes of main rows.
    /// `None` where there are none, so that the model is the base.
    pub fn task_digest(&self) -> Option<String> {
        let MainLoraConfig { num_layers, lora } = self.config.main_lora.as_ref()?;
        let mut digest = Sha256::new();
        digest.update(format!("{num_layers} {} {} {:?}\n", lora.rank, lora.alpha, lora.target_modules));
        let values =
            self.tensors.iter().filter(|(name, _)| name.starts_with(MAIN_LAYERS)).flat_map(|(_, values)| values);
        for &value in values {
            digest.update(f16::from_f32(value).to_le_bytes()); // as it is stored
        }
        Some(hexadecimal(&digest.finalize()))
    }

    fn to_safetensors(&self, base: &DecoderConfig) -> Vec<u8> {
        let mut parts: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for spec in self.config.tensors(base) {
            let bytes = self.tensors[&spec.name].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
            parts.push((spec.name, Dtype::F16, spec.shape.to_vec(), bytes));
        }
        let mut push = |name: &str, shape: Vec<usize>, indices: &mut dyn Iterator<Item = &u32>| {
            parts.push((name.to_owned(), Dtype::U32, shape, indices.flat_map(|index| index.to_le_bytes()).collect()));
        };
        if !self.draft_vocabulary.is_empty() {
            push(DRAFT_VOCABULARY, vec![self.draft_vocabulary.len()], &mut self.draft_vocabulary.iter());
        }
        if let Some(first) = self.inner_features.first() {
            push(
                INNER_FEATURES,
                vec![self.inner_features.len(), first.len()],
                &mut self.inner_features.iter().flatten(),
            );
        }
        let views = parts.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes).expect("as many bytes as the shape asks for");
            (name.as_str(), view)
        });
        ::safetensors::serialize(views, None).expect("names are distinct and shapes small")
    }
}

/// Reads the tensor `name` of indices of `what`, of which the base model has `count`.
fn read_indices(
    path: &Path,
    weights: &SafeTensors<'_>,
    name: &str,
    shape: &[usize],
    what: &str,
    count: usize,
) -> Result<Vec<u32>, ModelError> {
    let problem = |problem: String| ModelError::malformed(path, format!("the tensor `{name}` {problem}"));
    let view = weights.tensor(name).map_err(|_| problem("is missing".to_owned()))?;
    if view.dtype() != Dtype::U32 || view.shape() != shape {
        return Err(problem(format!("should be U32 {shape:?}, but it is {:?} {:?}", view.dtype(), view.shape())));
    }
    let indices: Vec<u32> = view.data().as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
    match indices.iter().find(|&&index| index as usize >= count) {
        Some(index) => Err(problem(format!("names {what} {index}, but the base model has {count}"))),
        None => Ok(indices),
    }
}

/// Reads the inner features of each of `num_layers` layers.
fn read_inner_features(
    path: &Path,
    weights: &SafeTensors<'_>,
    [num_layers, size]: [usize; 2],
    base: &DecoderConfig,
) -> Result<Vec<Vec<u32>>, ModelError> {
    let (shape, count) = ([num_layers, size], base.intermediate_size);
    let features = read_indices(path, weights, INNER_FEATURES, &shape, "inner feature", count)?;
    let layers: Vec<Vec<u32>> = features.chunks_exact(size).map(<[u32]>::to_vec).collect();
    match layers.iter().position(|features| !features.is_sorted_by(|a, b| a < b)) {
        Some(layer) => {
            let problem = format!("row {layer} of the tensor `{INNER_FEATURES}` is not in ascending order");
            Err(ModelError::malformed(path, problem))
        }
        None => Ok(layers),
    }
}

fn to_f32(path: &Path, name: &str, view: &TensorView<'_>) -> Result<Vec<f32>, ModelError> {
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        Dtype::F16 => view.data().as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
        other => {
            let problem = format!("the tensor `{name}` has type {other:?}; F32 and F16 are supported");
            return Err(ModelError::unsupported(path, problem));
        }
    };
    match values.iter().position(|x| !x.is_finite()) {
        Some(index) => {
            let problem =
                format!("element {index} of the tensor `{name}` is {}; train the adapter again", values[index]);
            Err(ModelError::malformed(path, problem))
        }
        None => Ok(values),
    }
}

fn short(fingerprint: &str) -> &str {
    fingerprint.get(..12).unwrap_or(fingerprint)
}
