//! GGUF metadata as a decoder configuration. Source: the key names of the GGUF specification.

use super::Architecture;
use crate::weights::{Contents, GgufMetadata};
use crate::{DecoderConfig, ModelError, RopeConfig, RopeScaling};

const ARCHITECTURE: &str = "general.architecture";
/// Per-pair divisors of the rotary frequencies (Llama 3.1 and later).
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

pub(super) fn config(metadata: &GgufMetadata, contents: &Contents) -> Result<DecoderConfig, ModelError> {
    let name = metadata.required(ARCHITECTURE, metadata.text(ARCHITECTURE)?)?;
    let architecture = super::find(metadata.path(), name, |architecture| architecture.gguf_names.contains(&name))?;
    let keys = Keys { metadata, prefix: name };
    keys.refuse_experts()?;

    let hidden_size = keys.required_size("embedding_length")?;
    let num_attention_heads = keys.required_size("attention.head_count")?;
    let head_dim = match keys.size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => super::head_dim(metadata.path(), architecture, hidden_size, num_attention_heads)?,
    };
    keys.expect_size("attention.value_length", head_dim)?;
    keys.expect_size("rope.dimension_count", head_dim)?;
    let embeddings = contents.tensor("token_embd.weight").map(|tensor| tensor.shape[0]);
    let window = keys.size("attention.sliding_window")?.filter(|&window| window > 0);
    Ok(DecoderConfig {
        architecture: architecture.name.to_owned(),
        hidden_size,
        intermediate_size: keys.required_size("feed_forward_length")?,
        num_hidden_layers: keys.required_size("block_count")?,
        num_attention_heads,
        num_key_value_heads: keys.size("attention.head_count_kv")?.unwrap_or(num_attention_heads),
        head_dim,
        vocab_size: embeddings
            .ok_or_else(|| ModelError::malformed(metadata.path(), "the tensor `token_embd.weight` is missing"))?,
        max_position_embeddings: super::limited(keys.required_size("context_length")?, window),
        rms_norm_eps: keys.required_number("attention.layer_norm_rms_epsilon")? as f32,
        rope: keys.rope(architecture, contents, head_dim)?,
        tie_word_embeddings: contents.tensor("output.weight").is_none(),
        has_qkv_bias: architecture.has_qkv_bias || contents.tensor("blk.0.attn_q.bias").is_some(),
        has_qk_norm: architecture.has_qk_norm,
    })
}

/// The keys of one architecture, without its prefix.
struct Keys<'a> {
    metadata: &'a GgufMetadata,
    prefix: &'a str,
}

impl Keys<'_> {
    fn key(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.prefix)
    }

    fn size(&self, suffix: &str) -> Result<Option<usize>, ModelError> {
        let size = self.metadata.integer(&self.key(suffix))?;
        // Sizes that do not fit are refused later, with those that are too large.
        Ok(size.map(|size| usize::try_from(size).unwrap_or(usize::MAX)))
    }

    fn required_size(&self, suffix: &str) -> Result<usize, ModelError> {
        self.metadata.required(&self.key(suffix), self.size(suffix)?)
    }

    fn required_number(&self, suffix: &str) -> Result<f64, ModelError> {
        let key = self.key(suffix);
        self.metadata.required(&key, self.metadata.number(&key)?)
    }

    /// A size that may be given, but only as `expected`.
    fn expect_size(&self, suffix: &str, expected: usize) -> Result<(), ModelError> {
        match self.size(suffix)? {
            Some(size) if size != expected => {
                let problem =
                    format!("`{}` is {size}; only the width of a head, {expected}, is supported", self.key(suffix));
                Err(ModelError::unsupported(self.metadata.path(), problem))
            }
            _ => Ok(()),
        }
    }

    fn refuse_experts(&self) -> Result<(), ModelError> {
        match self.size("expert_count")? {
            Some(experts @ 1..) => {
                let problem = format!("a mixture of {experts} experts; only dense models are supported");
                Err(ModelError::unsupported(self.metadata.path(), problem))
            }
            _ => Ok(()),
        }
    }

    fn rope(
        &self,
        architecture: &Architecture,
        contents: &Contents,
        head_dim: usize,
    ) -> Result<RopeConfig, ModelError> {
        let theta = self.metadata.number(&self.key("rope.freq_base"))?.unwrap_or(DEFAULT_ROPE_THETA);
        let mut scaling = self.scaling()?;
        if let Some(tensor) = contents.tensor(ROPE_FACTORS) {
            let path = self.metadata.path();
            if scaling != RopeScaling::None {
                let problem = format!("both `{ROPE_FACTORS}` and {scaling:?} scale the rotary frequencies");
                return Err(ModelError::unsupported(path, problem));
            }
            let (num_factors, num_pairs) = (tensor.num_elements(), head_dim / 2);
            if num_factors != num_pairs {
                let problem = format!("{num_factors} RoPE factors for {num_pairs} channel pairs");
                return Err(ModelError::malformed(path, problem));
            }
            scaling = RopeScaling::Factors(contents.to_f32(tensor)?);
        }
        Ok(RopeConfig { theta, style: architecture.gguf_rope_style, scaling })
    }

    fn scaling(&self) -> Result<RopeScaling, ModelError> {
        let type_key = self.key("rope.scaling.type");
        let factor = match self.metadata.text(&type_key)? {
            Some("none") => None,
            Some("linear") => Some(self.required_number("rope.scaling.factor")?),
            Some(other) => {
                let problem = format!("`{type_key}` is `{other}`; supported are none and linear");
                return Err(ModelError::unsupported(self.metadata.path(), problem));
            }
            // A factor without a type is linear; files from before both have the last key.
            None => match self.metadata.number(&self.key("rope.scaling.factor"))? {
                Some(factor) => Some(factor),
                None => self.metadata.number(&self.key("rope.scale_linear"))?,
            },
        };
        Ok(factor.map_or(RopeScaling::None, |factor| RopeScaling::Linear { factor }))
    }
}
