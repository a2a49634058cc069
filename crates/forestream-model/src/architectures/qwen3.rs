//! Qwen3: Llama with a norm on every query and key head, and heads whose width is given apart.

use super::Architecture;
use crate::RopeStyle;

pub(super) const QWEN3: Architecture = Architecture {
    name: "qwen3",
    class_names: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    gguf_names: &["qwen3"],
    gguf_rope_style: RopeStyle::Halves,
    has_qkv_bias: false,
    has_qk_norm: true,
    default_head_dim: Some(128),
};
