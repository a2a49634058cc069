//! Attention of streams: to the main rows of their text, and to the streams of their own position.
//!
//! The two parts keep their scores apart and share one softmax: numerators and denominators are added and divided at the
//! end, which needs no copy of the large part. Main keys and values are constants here, so that of the large part only
//! its exponentials are kept for the backward pass.

use burn_tensor::{Device, Tensor, TensorData};
use forestream_model::DecoderConfig;

use crate::Segment;
use crate::layer::Heads;

/// Added to a score that a row must not see; its exponential is zero.
const HIDDEN: f32 = -1e30;

/// Positions whose queries are multiplied at once: fewer would see fewer keys in vain, more make larger products.
const BLOCK_LEN: usize = 64;

/// Consecutive positions of a segment and what their streams may see, by layer with streams.
#[derive(Debug)]
pub(crate) struct Block {
    num_positions: usize,
    /// By layer, `[kv_heads, head_dim, context]`.
    keys: Vec<Tensor<3>>,
    /// By layer, values with a column of ones, `[kv_heads, context, head_dim + 1]`.
    values: Vec<Tensor<3>>,
    /// Zero up to a position, [`HIDDEN`] after it, `[1, positions, 1, context]`.
    causal: Tensor<4>,
}

impl Block {
    /// The blocks of a segment; its keys and values are uploaded once.
    pub(crate) fn of_segment(segment: &Segment, base: &DecoderConfig, device: &Device) -> Vec<Self> {
        let num_positions = segment.num_positions(base.hidden_size);
        let shape = [base.num_key_value_heads, segment.first_position + num_positions, base.head_dim];
        let upload = |plane: &Vec<f32>| Tensor::<3>::from_data(TensorData::new(plane.clone(), shape), device);
        let keys: Vec<_> = segment.keys.iter().map(|plane| upload(plane).swap_dims(1, 2)).collect();
        let values: Vec<_> = segment.values.iter().map(|plane| with_ones(upload(plane))).collect();
        let block = |first: usize| {
            let len = BLOCK_LEN.min(num_positions - first);
            let context = segment.first_position + first + len;
            Self {
                num_positions: len,
                keys: keys.iter().map(|keys| keys.clone().narrow(2, 0, context)).collect(),
                values: values.iter().map(|values| values.clone().narrow(1, 0, context)).collect(),
                causal: causal_bias(context - len, len, context, device),
            }
        };
        (0..num_positions).step_by(BLOCK_LEN).map(block).collect()
    }
}

/// Sizes that turn rows into blocks of attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) num_streams: usize,
    pub(crate) num_kv_heads: usize,
    /// Queries per kv head.
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
}

impl Shape {
    pub(crate) fn new(base: &DecoderConfig, num_streams: usize) -> Self {
        let (num_kv_heads, head_dim) = (base.num_key_value_heads, base.head_dim);
        Self { num_streams, num_kv_heads, group: base.num_attention_heads / num_kv_heads, head_dim }
    }
}

/// What the streams of all segments see of each other: those of one position, lower ones and itself.
#[derive(Debug)]
pub(crate) struct StreamAttention {
    shape: Shape,
    /// `[1, 1, streams * group, streams]`.
    order: Tensor<4>,
}

impl StreamAttention {
    pub(crate) fn new(shape: Shape, device: &Device) -> Self {
        let Shape { num_streams, group, .. } = shape;
        let sees = |row: usize, column: usize| if column <= row / group { 0.0 } else { HIDDEN };
        let order = (0..num_streams * group).flat_map(|row| (0..num_streams).map(move |column| sees(row, column)));
        let shape_of_order = [1, 1, num_streams * group, num_streams];
        let order = Tensor::from_data(TensorData::new(order.collect::<Vec<f32>>(), shape_of_order), device);
        Self { shape, order }
    }

    /// Attention of all rows in layer `layer` (counted from the first with streams).
    ///
    /// # Shapes
    /// Rows lie segment after segment, position after position, stream after stream; the result is
    /// `[rows, query heads * head_dim]`.
    pub(crate) fn attend(&self, heads: Heads, blocks: &[Block], layer: usize) -> Tensor<2> {
        let Shape { num_streams, num_kv_heads, group, head_dim } = self.shape;
        let rows = heads.queries.dims()[0];
        let positions = rows / num_streams;
        // [kv_heads, positions, streams * group, head_dim]: all queries that read the same keys lie together.
        let queries = heads.queries.mul_scalar((head_dim as f32).sqrt().recip());
        let queries = queries.reshape([rows, num_kv_heads, group * head_dim]).swap_dims(0, 1);
        let queries = queries.reshape([num_kv_heads, positions, num_streams * group, head_dim]);
        let by_position = |x: Tensor<3>| x.swap_dims(0, 1).reshape([num_kv_heads, positions, num_streams, head_dim]);
        let own_scores = queries.clone().matmul(by_position(heads.keys).swap_dims(2, 3)) + self.order.clone();
        let own_values = with_ones(by_position(heads.values));
        let mut first = 0;
        let attended = blocks.iter().map(|block| {
            let narrow = |x: &Tensor<4>| x.clone().narrow(1, first, block.num_positions);
            let parts = [narrow(&queries), narrow(&own_scores), narrow(&own_values)];
            first += block.num_positions;
            self.attend_block(parts, block, layer)
        });
        let attended = Tensor::cat(attended.collect(), 1);
        let attended = attended.reshape([num_kv_heads, rows, group * head_dim]).swap_dims(0, 1);
        attended.reshape([rows, num_kv_heads * group * head_dim])
    }

    /// One block; queries, scores against own streams and their values: `[kv_heads, positions, ..]` each.
    fn attend_block(&self, parts: [Tensor<4>; 3], block: &Block, layer: usize) -> Tensor<4> {
        let Shape { num_streams, num_kv_heads, group, head_dim } = self.shape;
        let [queries, own_scores, own_values] = parts;
        let queries_per_position = num_streams * group;
        let flat = [num_kv_heads, block.num_positions * queries_per_position, head_dim];
        let [.., context_len] = block.keys[layer].dims();
        let scores = queries.reshape(flat).matmul(block.keys[layer].clone());
        let scores = scores.reshape([num_kv_heads, block.num_positions, queries_per_position, context_len])
            + block.causal.clone();
        // A softmax does not change when all its scores are shifted, so the shift is a constant.
        let maximum = |x: &Tensor<4>| x.clone().without_autodiff().max_dim(3);
        let shift = maximum(&scores).max_pair(maximum(&own_scores));
        let weights = (scores - shift.clone()).exp();
        let own_weights = (own_scores - shift).exp();
        let weights = weights.reshape([num_kv_heads, block.num_positions * queries_per_position, context_len]);
        let main = weights.matmul(block.values[layer].clone());
        let main = main.reshape([num_kv_heads, block.num_positions, queries_per_position, head_dim + 1]);
        let sums = main + own_weights.matmul(own_values);
        sums.clone().narrow(3, 0, head_dim) / sums.narrow(3, head_dim, 1)
    }
}

/// Values with a column of ones: their product with unnormalized weights ends in the sum of the weights.
fn with_ones<const D: usize>(values: Tensor<D>) -> Tensor<D> {
    let mut shape = values.dims();
    shape[D - 1] = 1;
    let ones = Tensor::ones(shape, &values.device().without_autodiff());
    let ones = if values.is_autodiff() { ones.autodiff() } else { ones };
    Tensor::cat(vec![values, ones], D - 1)
}

fn causal_bias(first_position: usize, num_positions: usize, context: usize, device: &Device) -> Tensor<4> {
    let sees = |position: usize, key: usize| if key <= first_position + position { 0.0 } else { HIDDEN };
    let bias = (0..num_positions).flat_map(|position| (0..context).map(move |key| sees(position, key)));
    Tensor::from_data(TensorData::new(bias.collect::<Vec<f32>>(), [1, num_positions, 1, context]), device)
}
