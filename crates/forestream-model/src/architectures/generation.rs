//! What a model's authors suggest for generation: where texts start and end, and sampling settings.

use std::collections::HashSet;
use std::path::Path;

use crate::weights::{GgufMetadata, JsonFile};
use crate::{ModelError, TokenId};

/// Control tokens that end a text or a turn wherever they exist; GGUF files name only one or two of them.
const END_TOKENS: [&str; 5] = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"];
/// The value of `tokenizer.ggml.token_type` for control tokens.
const CONTROL_TOKEN: i64 = 3;

/// The range of a sampling setting, in the engine's precision, and its name for people.
type Range = (fn(f32) -> bool, &'static str);
const TEMPERATURE: Range = (|x| x >= 0.0 && x.is_finite(), "a finite number, 0 or more");
const TOP_P: Range = (|x| x > 0.0 && x <= 1.0, "above 0 and at most 1");
const MIN_P: Range = (|x| (0.0..=1.0).contains(&x), "from 0 to 1");
const REPETITION_PENALTY: Range = (|x| x > 0.0 && x.is_finite(), "a finite number above 0");

/// Special tokens and suggested sampling settings; what a checkpoint does not say is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// The token in front of a text.
    pub bos_token_id: Option<TokenId>,
    /// Tokens that end a text or a turn.
    pub eos_token_ids: Vec<TokenId>,
    /// Sampling temperature; 0 where the authors do not want answers drawn.
    pub temperature: Option<f64>,
    /// Number of most likely tokens to sample from.
    pub top_k: Option<u64>,
    /// Probability mass to sample from.
    pub top_p: Option<f64>,
    /// Least probability, relative to the most probable token, to sample from.
    pub min_p: Option<f64>,
    /// Penalty of every token of prompt and answer; 1 is none.
    pub repetition_penalty: Option<f64>,
}

pub(super) fn of_gguf(metadata: &GgufMetadata) -> Result<GenerationDefaults, ModelError> {
    let token = |key: &str| token_id(metadata.path(), key, metadata.integer(key)?);
    let number = |key: &str, range: Range| in_range(metadata.path(), key, metadata.number(key)?, range);
    let mut eos_token_ids: Vec<TokenId> = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        eos_token_ids.extend(token(key)?);
    }
    eos_token_ids.extend(end_tokens(metadata)?);
    let mut seen = HashSet::new();
    eos_token_ids.retain(|&id| seen.insert(id));
    Ok(GenerationDefaults {
        bos_token_id: token("tokenizer.ggml.bos_token_id")?,
        eos_token_ids,
        temperature: number("general.sampling.temp", TEMPERATURE)?,
        top_k: metadata.integer("general.sampling.top_k")?,
        top_p: number("general.sampling.top_p", TOP_P)?,
        min_p: number("general.sampling.min_p", MIN_P)?,
        repetition_penalty: number("general.sampling.penalty_repeat", REPETITION_PENALTY)?,
    })
}

/// The control tokens of the vocabulary that are known to end a text or a turn.
fn end_tokens(metadata: &GgufMetadata) -> Result<Vec<TokenId>, ModelError> {
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    let (Some(tokens), Some(types)) = (tokens, metadata.integers("tokenizer.ggml.token_type")?) else {
        return Ok(Vec::new());
    };
    let entries = tokens.iter().zip(types).enumerate();
    let ends = entries.filter(|(_, (text, kind))| *kind == CONTROL_TOKEN && END_TOKENS.contains(text));
    Ok(ends.map(|(index, _)| index as TokenId).collect())
}

/// `generation_config.json` counts before `config.json`.
pub(super) fn of_hugging_face(
    config: &JsonFile,
    generation: Option<&JsonFile>,
) -> Result<GenerationDefaults, ModelError> {
    let mut defaults = GenerationDefaults::default();
    for json in [Some(config), generation].into_iter().flatten() {
        let number = |key: &str, range: Range| in_range(json.path(), key, json.number(key)?, range);
        let first = |ids: Vec<TokenId>| ids.first().copied();
        defaults.bos_token_id = token_ids(json, "bos_token_id")?.and_then(first).or(defaults.bos_token_id);
        defaults.eos_token_ids = token_ids(json, "eos_token_id")?.unwrap_or(defaults.eos_token_ids);
        defaults.temperature = match json.flag("do_sample")? {
            Some(false) => Some(0.0), // whatever stands beside it
            _ => number("temperature", TEMPERATURE)?.or(defaults.temperature),
        };
        defaults.top_k = json.integer("top_k")?.or(defaults.top_k);
        defaults.top_p = number("top_p", TOP_P)?.or(defaults.top_p);
        defaults.min_p = number("min_p", MIN_P)?.or(defaults.min_p);
        defaults.repetition_penalty = number("repetition_penalty", REPETITION_PENALTY)?.or(defaults.repetition_penalty);
    }
    Ok(defaults)
}

/// llama2.c starts every text with 1, and stops when that token comes again; 2 is the tokenizer's end.
pub(super) fn of_llama2c() -> GenerationDefaults {
    GenerationDefaults { bos_token_id: Some(1), eos_token_ids: vec![1, 2], ..GenerationDefaults::default() }
}

fn token_ids(json: &JsonFile, key: &str) -> Result<Option<Vec<TokenId>>, ModelError> {
    let Some(numbers) = json.integers(key)? else { return Ok(None) };
    let ids = numbers.into_iter().map(|number| token_id(json.path(), key, Some(number)));
    Ok(Some(ids.filter_map(Result::transpose).collect::<Result<_, _>>()?))
}

fn token_id(path: &Path, key: &str, number: Option<u64>) -> Result<Option<TokenId>, ModelError> {
    let Some(number) = number else { return Ok(None) };
    let id = TokenId::try_from(number);
    id.map(Some).map_err(|_| ModelError::malformed(path, format!("`{key}` is {number}, which is no token id")))
}

/// Refuses a suggestion that no answer could be drawn with, while the file that makes it is known.
fn in_range(path: &Path, key: &str, number: Option<f64>, range: Range) -> Result<Option<f64>, ModelError> {
    let (is_inside, expected) = range;
    match number {
        Some(outside) if !is_inside(outside as f32) => Err(ModelError::malformed(
            path,
            format!("`{key}` is {outside:?}; expected {expected}; correct it or remove it"),
        )),
        number => Ok(number),
    }
}
