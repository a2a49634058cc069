//! Llama 1 to 3, and the models that are Llama by another name: Mistral, SmolLM2, TinyLlama.
//!
//! GGUF converters permute the rows of `q_proj` and `k_proj`, so that neighboring channels rotate together there.

use super::Architecture;
use crate::RopeStyle;

pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    class_names: &["LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"],
    model_types: &["llama", "mistral"],
    gguf_names: &["llama"],
    gguf_rope_style: RopeStyle::Interleaved,
    has_qkv_bias: false,
    has_qk_norm: false,
    default_head_dim: None,
};
