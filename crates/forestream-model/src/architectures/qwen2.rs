//! Qwen2 and Qwen2.5: Llama with a bias on queries, keys and values.

use super::Architecture;
use crate::RopeStyle;

pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    class_names: &["Qwen2ForCausalLM"],
    model_types: &["qwen2"],
    gguf_names: &["qwen2"],
    gguf_rope_style: RopeStyle::Halves,
    has_qkv_bias: true,
    has_qk_norm: false,
    default_head_dim: None,
};
