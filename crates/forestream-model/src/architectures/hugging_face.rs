//! `config.json` as a decoder configuration. Source: the configuration classes of Hugging Face transformers, 4 and 5.

use super::Architecture;
use crate::weights::JsonFile;
use crate::{DecoderConfig, ModelError, RopeConfig, RopeScaling, RopeStyle};

/// What transformers assumes where the key is absent.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
const DEFAULT_RMS_NORM_EPS: f64 = 1e-6;

pub(super) fn config(json: &JsonFile) -> Result<DecoderConfig, ModelError> {
    let architecture = architecture(json)?;
    refuse_variants(json)?;
    let hidden_size = required_size(json, "hidden_size")?;
    let num_attention_heads = required_size(json, "num_attention_heads")?;
    let head_dim = match size(json, "head_dim")? {
        Some(head_dim) => head_dim,
        None => super::head_dim(json.path(), architecture, hidden_size, num_attention_heads)?,
    };
    let positions = required_size(json, "max_position_embeddings")?;
    Ok(DecoderConfig {
        architecture: architecture.name.to_owned(),
        hidden_size,
        intermediate_size: required_size(json, "intermediate_size")?,
        num_hidden_layers: required_size(json, "num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: size(json, "num_key_value_heads")?.unwrap_or(num_attention_heads),
        head_dim,
        vocab_size: required_size(json, "vocab_size")?,
        max_position_embeddings: super::limited(positions, sliding_window(json)?),
        rms_norm_eps: json.number("rms_norm_eps")?.unwrap_or(DEFAULT_RMS_NORM_EPS) as f32,
        rope: rope(json, positions)?,
        tie_word_embeddings: json.flag("tie_word_embeddings")?.unwrap_or(false),
        has_qkv_bias: architecture.has_qkv_bias || json.flag("attention_bias")?.unwrap_or(false),
        has_qk_norm: architecture.has_qk_norm,
    })
}

fn architecture(json: &JsonFile) -> Result<&'static Architecture, ModelError> {
    let class_names = json.texts("architectures")?.unwrap_or_default();
    if let Some(&name) = class_names.first() {
        return super::find(json.path(), name, |architecture| architecture.class_names.contains(&name));
    }
    let name = json.required("architectures", json.text("model_type")?)?;
    super::find(json.path(), name, |architecture| architecture.model_types.contains(&name))
}

/// Variants that the decoder would silently compute wrongly.
fn refuse_variants(json: &JsonFile) -> Result<(), ModelError> {
    let refuse = |problem: String| Err(ModelError::unsupported(json.path(), problem));
    if json.has("quantization_config") {
        return refuse("`quantization_config`: weights that are already quantized are supported as GGUF only".into());
    }
    if let Some(activation) = json.text("hidden_act")?.filter(|activation| !["silu", "swish"].contains(activation)) {
        return refuse(format!("`hidden_act` is `{activation}`; only silu is supported"));
    }
    if let Some(rotated) = json.number("partial_rotary_factor")?.filter(|&rotated| rotated < 1.0) {
        return refuse(format!("`partial_rotary_factor` is {rotated}; only whole heads are rotated"));
    }
    Ok(())
}

fn size(json: &JsonFile, key: &str) -> Result<Option<usize>, ModelError> {
    // Sizes that do not fit are refused later, with those that are too large.
    Ok(json.integer(key)?.map(|size| usize::try_from(size).unwrap_or(usize::MAX)))
}

fn required_size(json: &JsonFile, key: &str) -> Result<usize, ModelError> {
    json.required(key, size(json, key)?)
}

/// Mistral has the key alone; Qwen has it always, and a switch that is usually off.
fn sliding_window(json: &JsonFile) -> Result<Option<usize>, ModelError> {
    let is_used = json.flag("use_sliding_window")?.unwrap_or(true);
    Ok(size(json, "sliding_window")?.filter(|_| is_used))
}

/// Transformers 5 keeps everything in `rope_parameters`; before, there were `rope_theta` and `rope_scaling`.
fn rope(json: &JsonFile, positions: usize) -> Result<RopeConfig, ModelError> {
    let parameters = match json.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => json.object("rope_scaling")?,
    };
    let nested_theta = parameters.as_ref().map_or(Ok(None), |parameters| parameters.number("rope_theta"))?;
    let theta = match nested_theta {
        Some(theta) => theta,
        None => json.number("rope_theta")?.unwrap_or(DEFAULT_ROPE_THETA),
    };
    let scaling = parameters.map_or(Ok(RopeScaling::None), |parameters| scaling(&parameters, positions))?;
    Ok(RopeConfig { theta, style: RopeStyle::Halves, scaling })
}

fn scaling(parameters: &JsonFile, positions: usize) -> Result<RopeScaling, ModelError> {
    let required = |key: &str| parameters.required(key, parameters.number(key)?);
    let kind = match parameters.text("rope_type")? {
        Some(kind) => Some(kind),
        None => parameters.text("type")?,
    };
    match kind.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: required("factor")? }),
        "llama3" => {
            let (low_freq_factor, high_freq_factor) = (required("low_freq_factor")?, required("high_freq_factor")?);
            if low_freq_factor >= high_freq_factor {
                let problem =
                    format!("low_freq_factor {low_freq_factor} is not below high_freq_factor {high_freq_factor}");
                return Err(ModelError::malformed(parameters.path(), problem));
            }
            Ok(RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: size(parameters, "original_max_position_embeddings")?
                    .unwrap_or(positions),
            })
        }
        other => {
            let problem = format!("the RoPE scaling `{other}` is not supported; supported are default, linear, llama3");
            Err(ModelError::unsupported(parameters.path(), problem))
        }
    }
}
