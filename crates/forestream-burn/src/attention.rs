//! Attention over tensors: of rows to the main rows of their text, and of streams to the streams of their position.
//!
//! The two parts keep their scores apart and share one softmax: numerators and denominators are added and divided at the
//! end, which needs no copy of the large part. Where main keys and values are constants, only the exponentials of the
//! large part are kept for the backward pass.

use burn_tensor::{Device, Tensor, TensorData};
use forestream_model::DecoderConfig;

use crate::layer::Heads;

/// Added to a score that a row must not see; its exponential is zero.
const HIDDEN: f32 = -1e30;

/// Positions whose queries are multiplied at once: fewer would see fewer keys in vain, more make larger products.
const BLOCK_LEN: usize = 64;

/// Keys and values of the main rows of one text in one layer.
#[derive(Clone, Debug)]
pub(crate) struct Plane {
    /// `[kv_heads, head_dim, context]`.
    keys: Tensor<3>,
    /// Values with a column of ones, `[kv_heads, context, head_dim + 1]`.
    values: Tensor<3>,
}

impl Plane {
    /// A plane of keys and values, `[kv_heads, context, head_dim]` each.
    pub(crate) fn new(keys: Tensor<3>, values: Tensor<3>) -> Self {
        Self { keys: keys.swap_dims(1, 2), values: with_ones(values) }
    }
}

/// Consecutive positions of a text, and how many main rows of it they see.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// The first of them among the text's queries.
    first: usize,
    len: usize,
    /// Main rows that the last of them sees, and perhaps more that none does.
    context: usize,
    /// Zero up to a position, [`HIDDEN`] after it, `[1, len, 1, context]`.
    causal: Tensor<4>,
}

impl Block {
    /// The blocks of `num_positions` positions from `first_position` on, whose queries begin at 0.
    pub(crate) fn cover(first_position: usize, num_positions: usize, device: &Device) -> Vec<Self> {
        let block = |first: usize| {
            let len = BLOCK_LEN.min(num_positions - first);
            let context = first_position + first + len;
            Self { first, len, context, causal: causal_bias(first_position + first, len, context, device) }
        };
        (0..num_positions).step_by(BLOCK_LEN).map(block).collect()
    }

    /// One row, which sees the first rows up to `position` of a plane that is padded to `context` rows.
    pub(crate) fn single(row: usize, position: usize, context: usize, device: &Device) -> Self {
        Self { first: row, len: 1, context, causal: causal_bias(position, 1, context, device) }
    }
}

/// How query heads share keys and values, and with it the layout in which attention multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sharing {
    num_kv_heads: usize,
    /// Query heads per kv head.
    group: usize,
    head_dim: usize,
}

impl Sharing {
    pub(crate) fn new(base: &DecoderConfig) -> Self {
        let (num_kv_heads, head_dim) = (base.num_key_value_heads, base.head_dim);
        Self { num_kv_heads, group: base.num_attention_heads / num_kv_heads, head_dim }
    }

    /// Scaled queries, those that read the same keys together: `[kv_heads, positions, rows of a position * group,
    /// head_dim]`.
    pub(crate) fn queries(self, heads: Tensor<3>, rows_per_position: usize) -> Tensor<4> {
        let scale = (self.head_dim as f32).sqrt().recip();
        let (rows, width) = (heads.dims()[0], self.group * self.head_dim);
        let heads = heads.mul_scalar(scale).reshape([rows, self.num_kv_heads, width]).swap_dims(0, 1);
        let per_position = rows_per_position * self.group;
        heads.reshape([self.num_kv_heads, rows / rows_per_position, per_position, self.head_dim])
    }

    /// Keys or values of rows by head: `[kv_heads, rows, head_dim]`.
    pub(crate) fn by_head(heads: Tensor<3>) -> Tensor<3> {
        heads.swap_dims(0, 1)
    }

    /// Back to rows: `[rows, query heads * head_dim]`.
    pub(crate) fn rows(self, attended: Tensor<4>) -> Tensor<2> {
        let [_, positions, per_position, _] = attended.dims();
        let rows = positions * per_position / self.group;
        let attended = attended.reshape([self.num_kv_heads, rows, self.group * self.head_dim]).swap_dims(0, 1);
        attended.reshape([rows, self.num_kv_heads * self.group * self.head_dim])
    }
}

/// Attention of the main rows of one text.
pub(crate) fn attend_main(queries: &Tensor<4>, plane: &Plane, blocks: &[Block]) -> Tensor<4> {
    let attend = |block: &Block| attend_block(queries.clone().narrow(1, block.first, block.len), plane, block, None);
    Tensor::cat(blocks.iter().map(attend).collect(), 1)
}

/// What streams see of each other: those of one position, lower ones and itself.
#[derive(Debug)]
pub(crate) struct StreamAttention {
    sharing: Sharing,
    num_streams: usize,
    /// `[1, 1, streams * group, streams]`.
    order: Tensor<4>,
}

impl StreamAttention {
    pub(crate) fn new(sharing: Sharing, num_streams: usize, device: &Device) -> Self {
        let rows = num_streams * sharing.group;
        let sees = |row: usize, column: usize| if column <= row / sharing.group { 0.0 } else { HIDDEN };
        let order = (0..rows).flat_map(|row| (0..num_streams).map(move |column| sees(row, column)));
        let shape = [1, 1, rows, num_streams];
        let order = Tensor::from_data(TensorData::new(order.collect::<Vec<f32>>(), shape), device);
        Self { sharing, num_streams, order }
    }

    /// Attention of all stream rows in one layer. Each text has its plane, and blocks of its positions with streams.
    ///
    /// # Shapes
    /// Rows lie text after text, position after position, stream after stream; the result is
    /// `[rows, query heads * head_dim]`.
    pub(crate) fn attend(&self, heads: Heads, texts: &[(&Plane, &[Block])]) -> Tensor<2> {
        let queries = self.sharing.queries(heads.queries, self.num_streams);
        let [num_kv_heads, positions, _, head_dim] = queries.dims();
        let of_position =
            |x: Tensor<3>| Sharing::by_head(x).reshape([num_kv_heads, positions, self.num_streams, head_dim]);
        let own_scores = queries.clone().matmul(of_position(heads.keys).swap_dims(2, 3)) + self.order.clone();
        let own_values = with_ones(of_position(heads.values));
        let mut attended = Vec::new();
        let mut first = 0;
        for &(plane, blocks) in texts {
            for block in blocks {
                let narrow = |x: &Tensor<4>| x.clone().narrow(1, first + block.first, block.len);
                let own = [narrow(&own_scores), narrow(&own_values)];
                attended.push(attend_block(narrow(&queries), plane, block, Some(own)));
            }
            first += blocks.iter().map(|block| block.len).sum::<usize>();
        }
        self.sharing.rows(Tensor::cat(attended, 1))
    }
}

/// One block. `own` are scores against the streams of the position, and their values with a column of ones.
///
/// # Shapes
/// `queries` and the result: `[kv_heads, len, queries of a position, head_dim]`.
fn attend_block(queries: Tensor<4>, plane: &Plane, block: &Block, own: Option<[Tensor<4>; 2]>) -> Tensor<4> {
    let [num_kv_heads, len, per_position, head_dim] = queries.dims();
    let context = block.context;
    let keys = plane.keys.clone().narrow(2, 0, context);
    let values = plane.values.clone().narrow(1, 0, context);
    let scores = queries.reshape([num_kv_heads, len * per_position, head_dim]).matmul(keys);
    let scores = scores.reshape([num_kv_heads, len, per_position, context]) + block.causal.clone();
    // A softmax does not change when all its scores are shifted, so the shift is a constant.
    let maximum = |x: &Tensor<4>| x.clone().without_autodiff().max_dim(3);
    let mut shift = maximum(&scores);
    if let Some([own_scores, _]) = &own {
        shift = shift.max_pair(maximum(own_scores));
    }
    let weights = (scores - shift.clone()).exp().reshape([num_kv_heads, len * per_position, context]);
    let mut sums = weights.matmul(values).reshape([num_kv_heads, len, per_position, head_dim + 1]);
    if let Some([own_scores, own_values]) = own {
        sums = sums + (own_scores - shift).exp().matmul(own_values);
    }
    sums.clone().narrow(3, 0, head_dim) / sums.narrow(3, head_dim, 1)
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
