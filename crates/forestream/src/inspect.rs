//! What a model file contains, what it costs to run, and whether this build can run it.
//!
//! Reads descriptions only, no weights. A file that cannot be run is described as far as it can be read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use forestream_model::weights::{Checkpoint, Contents, TensorInfo};
use forestream_model::{CacheShape, ModelError};
use forestream_text::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::Error;
use crate::engine::chat_template_of;
use crate::vocabulary::tokenizer_of;

/// A description of a model file.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The file or directory.
    pub path: PathBuf,
    /// Size of all weight files.
    pub file_bytes: u64,
    /// Number of weights.
    pub num_parameters: u64,
    /// The tensors by format, largest group first.
    pub formats: Vec<FormatGroup>,
    /// Sizes and costs; absent where the model cannot be run.
    pub model: Option<ModelCosts>,
    /// The tokenizer; absent where it cannot be built.
    pub tokenizer: Option<TokenizerFacts>,
    /// Why this build cannot run the model; empty if it can.
    pub problems: Vec<String>,
    /// What the file says about itself; long values are shortened.
    pub metadata: Map<String, Value>,
    /// Every tensor in file order.
    pub tensors: Vec<TensorLine>,
}

/// Tensors of one format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FormatGroup {
    /// How the weights are stored.
    pub format: String,
    /// Number of tensors.
    pub num_tensors: usize,
    /// Number of weights.
    pub num_parameters: u64,
    /// Bytes in the file.
    pub bytes: u64,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorLine {
    /// The file's own name.
    pub name: String,
    /// Sizes, rows first.
    pub shape: Vec<usize>,
    /// How the weights are stored.
    pub format: String,
    /// Bytes in the file.
    pub bytes: u64,
}

/// Sizes of a model that can be run, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelCosts {
    /// The architecture.
    pub architecture: String,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Positions that the model was trained for.
    pub max_position_embeddings: usize,
    /// Bytes of weights that one decoded token reads.
    pub bytes_per_token: u64,
    /// Bytes of the key/value cache for one position.
    pub cache_bytes_per_position: u64,
    /// The context that the memory is computed for.
    pub ctx_size: usize,
    /// Weights and a full cache of that context.
    pub memory_bytes: u64,
}

/// What the tokenizer knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenizerFacts {
    /// One more than the largest token id.
    pub vocab_size: usize,
    /// Tokens that end an answer.
    pub stop_tokens: Vec<String>,
    /// Whether there is a chat template; one that is broken is among the problems.
    pub has_chat_template: bool,
}

impl TokenizerFacts {
    fn of(tokenizer: &Tokenizer, has_chat_template: bool) -> Self {
        Self {
            vocab_size: tokenizer.vocab_size(),
            stop_tokens: tokenizer.end_of_generation().iter().filter_map(|&token| tokenizer.piece(token)).collect(),
            has_chat_template,
        }
    }
}

/// Describes the model at `path`; `ctx_size` is the context to compute memory for, by default the model's own.
///
/// # Errors
/// A file that is no model at all, or is damaged.
pub fn inspect(path: &Path, ctx_size: Option<usize>) -> Result<Inspection, ModelError> {
    let contents = Contents::open(path)?;
    let tensors: Vec<TensorLine> = contents.tensors().iter().map(TensorLine::of).collect();
    let mut inspection = Inspection {
        path: path.to_owned(),
        file_bytes: contents.file_bytes(),
        num_parameters: contents.tensors().iter().map(|tensor| tensor.num_elements() as u64).sum(),
        formats: group(&contents),
        model: None,
        tokenizer: None,
        problems: Vec::new(),
        metadata: contents.printable_metadata().into_iter().map(|(key, value)| (key, Value::String(value))).collect(),
        tensors,
    };
    match Checkpoint::from_contents(contents) {
        Ok(checkpoint) => {
            let costs = ModelCosts::of(&checkpoint, ctx_size)?;
            let (asked, trained) = (costs.ctx_size, costs.max_position_embeddings);
            if asked > trained {
                inspection.problems.push(Error::ContextTooLong { asked, trained }.to_string());
            }
            inspection.model = Some(costs);
            match tokenizer_of(checkpoint.contents()) {
                Ok(tokenizer) => {
                    let template = chat_template_of(&tokenizer);
                    inspection.tokenizer = Some(TokenizerFacts::of(&tokenizer, !matches!(template, Ok(None))));
                    inspection.problems.extend(template.err().map(|error| with_causes(&error)));
                }
                Err(error) => inspection.problems.push(with_causes(&error)),
            }
        }
        Err(error) => inspection.problems.push(with_causes(&error)),
    }
    Ok(inspection)
}

/// An error and what it came from.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

impl TensorLine {
    fn of(tensor: &TensorInfo) -> Self {
        Self {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            format: tensor.storage.to_string(),
            bytes: tensor.num_bytes() as u64,
        }
    }
}

fn group(contents: &Contents) -> Vec<FormatGroup> {
    let mut groups: BTreeMap<String, FormatGroup> = BTreeMap::new();
    for tensor in contents.tensors() {
        let format = tensor.storage.to_string();
        let empty = FormatGroup { format: format.clone(), num_tensors: 0, num_parameters: 0, bytes: 0 };
        let group = groups.entry(format).or_insert(empty);
        group.num_tensors += 1;
        group.num_parameters += tensor.num_elements() as u64;
        group.bytes += tensor.num_bytes() as u64;
    }
    let mut groups: Vec<FormatGroup> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.bytes));
    groups
}

impl ModelCosts {
    fn of(checkpoint: &Checkpoint, ctx_size: Option<usize>) -> Result<Self, ModelError> {
        let config = checkpoint.config();
        let all_bytes: u64 =
            checkpoint.contents().tensors().iter().map(|tensor| tensor.num_packed_bytes() as u64).sum();
        let cache_bytes_per_position = CacheShape::of(config).bytes_per_position() as u64;
        let ctx_size = ctx_size.unwrap_or(config.max_position_embeddings);
        Ok(Self {
            architecture: config.architecture.clone(),
            num_hidden_layers: config.num_hidden_layers,
            hidden_size: config.hidden_size,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_position_embeddings,
            bytes_per_token: all_bytes - unread_bytes(checkpoint)?,
            cache_bytes_per_position,
            ctx_size,
            memory_bytes: all_bytes.saturating_add(cache_bytes_per_position.saturating_mul(ctx_size as u64)),
        })
    }
}

/// Bytes of the embedding table that a token does not read: all rows but one, unless the table is the LM head too.
fn unread_bytes(checkpoint: &Checkpoint) -> Result<u64, ModelError> {
    if checkpoint.config().tie_word_embeddings {
        return Ok(0);
    }
    let embeddings = checkpoint.weight("model.embed_tokens.weight")?;
    let bytes = embeddings.num_packed_bytes() as u64;
    Ok(bytes - bytes / embeddings.rows.max(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_chat_template_is_a_problem_and_not_an_absent_one() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
        let directory = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(model.join(file), directory.path().join(file)).unwrap();
        }
        let inspect_with = |config: &str| {
            std::fs::write(directory.path().join("tokenizer_config.json"), config).unwrap();
            let inspection = inspect(directory.path(), None).unwrap();
            (inspection.tokenizer.unwrap().has_chat_template, inspection.problems)
        };
        assert_eq!(inspect_with(r#"{"chat_template": "{{ 1 }}"}"#), (true, vec![]));
        let (has_chat_template, problems) = inspect_with(r#"{"chat_template": "{% if"}"#);
        assert!(has_chat_template && problems.len() == 1, "{problems:?}");
        assert!(problems[0].contains("chat template") && problems[0].contains("syntax error"), "{problems:?}");
    }
}
