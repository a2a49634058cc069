//! The registered architectures, and how a checkpoint's own words become a [`DecoderConfig`].
//!
//! There is one decoder; an architecture is a small file with the names under which checkpoints call it, and its
//! switches. To add one, write its file and list it in [`ARCHITECTURES`]. Knows no file format's bytes.

mod generation;
mod gguf;
mod hugging_face;
mod layout;
mod llama;
mod llama2c;
mod qwen2;
mod qwen3;

use std::path::Path;

pub use self::generation::GenerationDefaults;
pub(crate) use self::layout::place_tensors;
use crate::weights::{Contents, Description};
use crate::{DecoderConfig, ModelError, RopeScaling, RopeStyle};

/// Every architecture that the decoder can run.
pub const ARCHITECTURES: &[&Architecture] = &[&llama::LLAMA, &qwen2::QWEN2, &qwen3::QWEN3];

/// Names and switches of one architecture.
#[derive(Debug)]
pub struct Architecture {
    /// The name in [`DecoderConfig::architecture`].
    pub name: &'static str,
    /// Values of `architectures` in `config.json`.
    pub class_names: &'static [&'static str],
    /// Values of `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// Values of `general.architecture` in GGUF files.
    pub gguf_names: &'static [&'static str],
    /// Which channels GGUF files pair for rotation; Hugging Face checkpoints always have halves.
    pub gguf_rope_style: RopeStyle,
    /// Whether `q_proj`, `k_proj` and `v_proj` always have a bias.
    pub has_qkv_bias: bool,
    /// Whether queries and keys are normalized per head.
    pub has_qk_norm: bool,
    /// Width of a head where the checkpoint does not say it; otherwise `hidden_size / num_attention_heads`.
    pub default_head_dim: Option<usize>,
}

/// Configuration and generation defaults of a checkpoint.
pub(crate) fn interpret(contents: &Contents) -> Result<(DecoderConfig, GenerationDefaults), ModelError> {
    let (config, defaults) = match contents.description() {
        Description::Gguf(metadata) => (gguf::config(metadata, contents)?, generation::of_gguf(metadata)?),
        Description::HuggingFace { config, generation } => {
            (hugging_face::config(config)?, generation::of_hugging_face(config, generation.as_ref())?)
        }
        Description::Llama2c(header) => (llama2c::config(header), generation::of_llama2c()),
    };
    check(&config, contents.path())?;
    Ok((config, defaults))
}

/// The architecture that satisfies `matches`; `name` is what the checkpoint calls it.
fn find(path: &Path, name: &str, matches: impl Fn(&Architecture) -> bool) -> Result<&'static Architecture, ModelError> {
    ARCHITECTURES.iter().copied().find(|architecture| matches(architecture)).ok_or_else(|| {
        let supported: Vec<String> = ARCHITECTURES
            .iter()
            .map(|architecture| format!("{} ({})", architecture.name, architecture.class_names.join(", ")))
            .collect();
        let problem = format!("the architecture `{name}` is not supported; supported are {}", supported.join(", "));
        ModelError::unsupported(path, problem)
    })
}

/// The width of a head where the checkpoint does not say it.
fn head_dim(
    path: &Path,
    architecture: &Architecture,
    hidden_size: usize,
    num_attention_heads: usize,
) -> Result<usize, ModelError> {
    if let Some(head_dim) = architecture.default_head_dim {
        return Ok(head_dim);
    }
    if num_attention_heads > 0 && hidden_size.is_multiple_of(num_attention_heads) {
        return Ok(hidden_size / num_attention_heads);
    }
    let problem = format!("hidden size {hidden_size} is not a multiple of {num_attention_heads} attention heads");
    Err(ModelError::malformed(path, problem))
}

/// Positions that a model with a sliding window may use: inside the window, its attention is ordinary attention.
fn limited(positions: usize, window: Option<usize>) -> usize {
    window.map_or(positions, |window| positions.min(window))
}

/// Largest value of any size: products of two still fit everywhere.
const MAX_SIZE: usize = 1 << 30;

/// Sizes that contradict each other.
fn check(config: &DecoderConfig, path: &Path) -> Result<(), ModelError> {
    let sizes = [
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_attention_heads", config.num_attention_heads),
        ("num_key_value_heads", config.num_key_value_heads),
        ("head_dim", config.head_dim),
        ("vocab_size", config.vocab_size),
        ("max_position_embeddings", config.max_position_embeddings),
    ];
    if let Some((name, size)) = sizes.into_iter().find(|(_, size)| !(1..=MAX_SIZE).contains(size)) {
        return Err(ModelError::malformed(path, format!("{name} is {size}; expected 1 to {MAX_SIZE}")));
    }
    let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
    if !heads.is_multiple_of(kv_heads) {
        let problem = format!("{heads} attention heads cannot be shared by {kv_heads} key/value heads");
        return Err(ModelError::malformed(path, problem));
    }
    if !config.head_dim.is_multiple_of(2) {
        return Err(ModelError::malformed(path, format!("head_dim is {}; rotation needs pairs", config.head_dim)));
    }
    if !is_positive(config.rope.theta) || !is_positive(config.rms_norm_eps.into()) {
        let (theta, eps) = (config.rope.theta, config.rms_norm_eps);
        let problem = format!("rope_theta is {theta} and rms_norm_eps is {eps}; expected positive numbers");
        return Err(ModelError::malformed(path, problem));
    }
    check_scaling(config, path)
}

fn check_scaling(config: &DecoderConfig, path: &Path) -> Result<(), ModelError> {
    let divisors = match &config.rope.scaling {
        RopeScaling::Factors(factors) => factors.iter().copied().map(f64::from).collect(),
        RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. } => vec![*factor],
        RopeScaling::None => Vec::new(),
    };
    match divisors.into_iter().find(|&divisor| !is_positive(divisor)) {
        Some(divisor) => {
            let problem = format!("a factor of the RoPE scaling is {divisor}; expected a positive number");
            Err(ModelError::malformed(path, problem))
        }
        None => Ok(()),
    }
}

fn is_positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}
