//! The weights of one decoder layer, packed.

use forestream_kernels::PackedMatrix;

use super::low_rank::LayerChanges;

/// One decoder layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) input_layernorm: Vec<f32>,
    /// `q_proj`, `k_proj`, `v_proj`: one product whose outputs follow each other.
    pub(super) qkv_proj: [PackedMatrix; 3],
    /// The biases of `q_proj`, `k_proj` and `v_proj`, one after another.
    pub(super) qkv_bias: Option<Vec<f32>>,
    /// Per-head norms of queries and keys, `[head_dim]` each.
    pub(super) qk_norm: Option<[Vec<f32>; 2]>,
    pub(super) o_proj: [PackedMatrix; 1],
    pub(super) post_attention_layernorm: Vec<f32>,
    /// `gate_proj` and `up_proj`.
    pub(super) gate_up_proj: [PackedMatrix; 2],
    pub(super) down_proj: [PackedMatrix; 1],
    /// What an adapter of joint mode changes of main rows.
    pub(super) changes: LayerChanges,
}
