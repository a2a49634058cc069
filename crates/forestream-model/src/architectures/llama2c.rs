//! The sizes of a llama2.c header as a decoder configuration; the constants are those of its `run.c`.

use super::llama::LLAMA;
use crate::weights::Llama2cHeader;
use crate::{DecoderConfig, RopeConfig, RopeScaling, RopeStyle};

pub(super) fn config(header: &Llama2cHeader) -> DecoderConfig {
    DecoderConfig {
        architecture: LLAMA.name.to_owned(),
        hidden_size: header.hidden_size,
        intermediate_size: header.intermediate_size,
        num_hidden_layers: header.num_hidden_layers,
        num_attention_heads: header.num_attention_heads,
        num_key_value_heads: header.num_key_value_heads,
        head_dim: header.head_dim(),
        vocab_size: header.vocab_size,
        max_position_embeddings: header.max_position_embeddings,
        rms_norm_eps: 1e-5,
        rope: RopeConfig { theta: 10_000.0, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        tie_word_embeddings: !header.has_own_lm_head,
        has_qkv_bias: LLAMA.has_qkv_bias,
        has_qk_norm: LLAMA.has_qk_norm,
    }
}
