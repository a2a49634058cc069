//! One pass over a batch of token trees.

use std::sync::{Mutex, PoisonError};

use forestream_kernels::{
    Activations, Attention, AttentionScratch, HeadBlocks, InputShape, Join, Joined, PackedMatrix, add_assign, matmul,
    matmul_add, matmul_join, rms_norm, rms_norm_in_place, rotate_heads, silu_mul,
};
use half::f16;

use super::CpuModel;
use super::batch::Batch;
use super::early_exit::ExitScratch;
use super::layer::Layer;
use super::low_rank::LowRank;
use super::streams::{CpuStreams, StreamScratch};
use super::value_rotation::ValueRotation;
use crate::streams::StreamPosition;
use crate::{Hidden, KvCache, NodeId, Row};

/// Buffers of a pass, reused by the next one.
#[derive(Debug)]
pub(super) struct Workspace {
    batch: Batch,
    /// The residual stream, `[rows, hidden_size]`.
    pub(super) residual: Vec<f32>,
    /// Inputs of the next product.
    pub(super) activations: Activations,
    /// Inputs of `down_proj`, `[rows, intermediate_size]`.
    gated: Activations,
    /// Queries, keys and values, `[rows, q_len + 2 kv_len]`.
    qkv: Vec<f32>,
    /// Where the rows of each attention task end.
    tile_ends: Vec<usize>,
    /// Inner products of a low-rank change, `[rows, ranks]`.
    inner: Vec<f32>,
    /// Rotation of each row, `[rows, head_dim / 2]`.
    cosines: Vec<f32>,
    sines: Vec<f32>,
    threads: Vec<Mutex<ThreadScratch>>,
    pub(super) streams: StreamScratch,
    exit: ExitScratch,
}

/// Buffers of one thread.
#[derive(Debug, Default)]
struct ThreadScratch {
    attention: AttentionScratch,
    /// Scaled queries of one task.
    queries: Vec<f32>,
}

impl Workspace {
    pub(super) fn new(num_threads: usize) -> Self {
        Self {
            batch: Batch::default(),
            residual: Vec::new(),
            activations: Activations::new(),
            gated: Activations::new(),
            qkv: Vec::new(),
            tile_ends: Vec::new(),
            inner: Vec::new(),
            cosines: Vec::new(),
            sines: Vec::new(),
            threads: (0..num_threads).map(|_| Mutex::default()).collect(),
            streams: StreamScratch::default(),
            exit: ExitScratch::default(),
        }
    }
}

/// The keys and values of one head of one sequence.
struct CacheHead<'a> {
    cache: &'a KvCache,
    layer_index: usize,
    head_index: usize,
}

impl HeadBlocks for CacheHead<'_> {
    fn block(&self, block_index: usize) -> (&[f16], &[f16]) {
        self.cache.block(block_index, self.layer_index, self.head_index)
    }
}

/// A pass in progress.
pub(super) struct Pass<'a, 'r> {
    model: &'a CpuModel,
    space: &'a mut Workspace,
    rows: &'a mut [Row<'r>],
    /// How values of stream rows turn, if they do.
    turns: Option<&'a ValueRotation>,
}

impl<'a, 'r> Pass<'a, 'r> {
    pub(super) fn new(model: &'a CpuModel, space: &'a mut Workspace, rows: &'a mut [Row<'r>]) -> Self {
        space.batch.reset(rows);
        Self { model, space, rows, turns: None }
    }

    /// A pass over streams: each row's tree is the chain of one sequence's.
    pub(super) fn over_chains(model: &'a CpuModel, space: &'a mut Workspace, rows: &'a mut [Row<'r>]) -> Self {
        space.batch.reset_chains(rows);
        Self { model, space, rows, turns: None }
    }

    /// A pass over the streams of `nodes` of the only row's tree.
    pub(super) fn over_streams(
        model: &'a CpuModel,
        space: &'a mut Workspace,
        rows: &'a mut [Row<'r>],
        (nodes, num_streams): (&[NodeId], usize),
    ) -> Self {
        space.batch.reset_streams(&rows[0], nodes, num_streams);
        Self { model, space, rows, turns: None }
    }

    /// Runs all layers and leaves the normalized states of the output rows in `hidden`.
    pub(super) fn run(mut self, hidden: &mut Hidden) {
        hidden.reset(self.rows, self.model.config.hidden_size);
        self.embed();
        self.find_rotations();
        let (bottom, top) = self.model.layers.split_at(self.model.boundary.unwrap_or(0));
        self.run_layers(bottom, 0);
        if self.model.boundary.is_some() {
            self.keep_boundary(hidden.reset_boundary());
            self.prune(hidden);
        }
        self.run_layers(top, bottom.len());
        self.normalize_outputs(hidden.states_mut());
    }

    /// Runs the layers of `streams`, whose rows start at `residual`, and leaves their normalized states in `states`.
    ///
    /// A position's streams are placed at the positions that follow it, unless the adapter says otherwise.
    pub(super) fn run_streams(mut self, streams: &'a CpuStreams, states: &mut Hidden) {
        if streams.config.streams.position == StreamPosition::Anchor {
            let batch = &mut self.space.batch;
            for (position, stream) in batch.positions.iter_mut().zip(&batch.streams) {
                *position -= stream + 1;
            }
        }
        self.find_rotations();
        self.turns = streams.value_rotation.as_ref();
        self.run_layers(&streams.layers, self.model.layers.len() - streams.layers.len());
        self.normalize_outputs(states.states_mut());
    }

    /// Runs `layers`, of which the first is layer `first` of the model; after the last one only output rows are left.
    fn run_layers(&mut self, layers: &[Layer], first: usize) {
        let last = self.model.layers.len() - 1;
        for (index, layer) in layers.iter().enumerate().map(|(offset, layer)| (first + offset, layer)) {
            self.project_qkv(layer);
            self.rotate_and_store(layer, index);
            if index == last {
                self.keep_outputs(); // nothing later reads the other rows
            }
            if self.space.batch.len() == 0 {
                break;
            }
            self.attend(layer, index);
            self.add_mlp(layer);
        }
    }

    fn normalize_outputs(&self, states: &mut [f32]) {
        let (model, residual) = (self.model, &self.space.residual);
        let (width, epsilon) = (model.config.hidden_size, model.config.rms_norm_eps);
        model.pool.for_each_row(states, width, &|row, to| {
            rms_norm(model.isa, &residual[row * width..][..width], &model.norm, epsilon, to);
        });
    }

    /// Drops the nodes that the early exit does not let pass.
    fn prune(&mut self, hidden: &mut Hidden) {
        let space = &mut *self.space;
        let is_pruned = self.model.early_exit(self.rows, &space.residual, &mut space.activations, &mut space.exit);
        if is_pruned {
            let is_kept = |index: &usize| space.exit.kept.binary_search(&space.batch.outputs[*index]).is_ok();
            space.exit.outputs.clear();
            space.exit.outputs.extend((0..space.batch.outputs.len()).filter(is_kept));
            hidden.keep(&space.exit.outputs);
            keep_rows(&mut space.residual, self.model.config.hidden_size, &space.exit.kept);
            space.batch.keep(&space.exit.kept);
            self.find_rotations();
        }
    }

    /// Copies the residual stream of the output rows.
    fn keep_boundary(&self, boundary: &mut [f32]) {
        let width = self.model.config.hidden_size;
        for (to, &row) in boundary.chunks_exact_mut(width).zip(&self.space.batch.outputs) {
            to.copy_from_slice(&self.space.residual[row * width..][..width]);
        }
    }

    fn embed(&mut self) {
        let width = self.model.config.hidden_size;
        let (model, batch, rows) = (self.model, &self.space.batch, &*self.rows);
        self.space.residual.resize(batch.len() * width, 0.0);
        let mut tokens = rows.iter().flat_map(|row| row.tree.node_ids().map(|node| row.tree.token(node)));
        for to in self.space.residual.chunks_exact_mut(width) {
            let token = tokens.next().expect("as many rows as nodes");
            model.embed_tokens.row(token as usize, to);
        }
    }

    /// Cosines and sines of every row's position, once for all layers.
    fn find_rotations(&mut self) {
        let half = self.model.frequencies.len();
        let space = &mut *self.space;
        space.cosines.resize(space.batch.len() * half, 0.0);
        space.sines.resize(space.batch.len() * half, 0.0);
        let rotations = space.cosines.chunks_exact_mut(half).zip(space.sines.chunks_exact_mut(half));
        for ((cosines, sines), &position) in rotations.zip(&space.batch.positions) {
            for ((cosine, sine), frequency) in cosines.iter_mut().zip(sines).zip(&self.model.frequencies) {
                let (s, c) = (position as f64 * frequency).sin_cos();
                (*cosine, *sine) = (c as f32, s as f32);
            }
        }
    }

    /// Fills the activations with the normalized residual stream, for these matrices and their change.
    fn normalize(&mut self, weight: &[f32], matrices: &[PackedMatrix], change: Option<&LowRank>) {
        let (model, space) = (self.model, &mut *self.space);
        let (width, epsilon) = (model.config.hidden_size, model.config.rms_norm_eps);
        let residual = &space.residual;
        let shape = InputShape { rows: residual.len() / width, width, keeps_numbers: reads_numbers(matrices, change) };
        space.activations.fill(&model.pool, model.isa, shape, &|row, to| {
            rms_norm(model.isa, &residual[row * width..][..width], weight, epsilon, to);
        });
    }

    fn project_qkv(&mut self, layer: &Layer) {
        self.normalize(&layer.input_layernorm, &layer.qkv_proj, layer.changes.qkv.as_ref());
        let (model, space) = (self.model, &mut *self.space);
        space.qkv.resize(space.batch.len() * model.qkv_len(), 0.0);
        matmul(&model.pool, model.isa, &space.activations, &layer.qkv_proj, &mut space.qkv);
        if let Some(change) = &layer.changes.qkv {
            change.reduce(&model.pool, model.isa, &space.activations, &mut space.inner);
        }
    }

    /// Low-rank changes, biases, head norms and rotation; then keys and values go to the caches.
    fn rotate_and_store(&mut self, layer: &Layer, layer_index: usize) {
        let (model, space) = (self.model, &mut *self.space);
        let (q_len, kv_len, half) = (model.q_len(), model.kv_len(), model.frequencies.len());
        let (cosines, sines, inner, turns) = (&space.cosines, &space.sines, &space.inner, self.turns);
        model.pool.for_each_row(&mut space.qkv, model.qkv_len(), &|index, row| {
            if let Some(change) = &layer.changes.qkv {
                change.add(model.isa, inner, index, (0, row));
            }
            if let Some(bias) = &layer.qkv_bias {
                add_assign(model.isa, row, bias);
            }
            let (queries, keys) = row[..q_len + kv_len].split_at_mut(q_len);
            if let Some([q_norm, k_norm]) = &layer.qk_norm {
                for (heads, norm) in [(&mut *queries, q_norm), (&mut *keys, k_norm)] {
                    for head in heads.chunks_exact_mut(norm.len()) {
                        rms_norm_in_place(model.isa, head, norm, model.config.rms_norm_eps);
                    }
                }
            }
            let rotation = index * half..(index + 1) * half;
            rotate_heads(model.isa, &mut row[..q_len + kv_len], &cosines[rotation.clone()], &sines[rotation]);
            if let Some(turns) = turns {
                turns.turn(model.isa, space.batch.streams[index], &mut row[q_len + kv_len..]);
            }
        });
        for (row, rows) in self.rows.iter_mut().zip(&space.batch.sequences) {
            for index in rows.clone() {
                let (keys, values) = space.qkv[index * model.qkv_len() + q_len..][..2 * kv_len].split_at(kv_len);
                row.cache.write(layer_index, space.batch.slots[index], keys, values);
            }
        }
    }

    fn keep_outputs(&mut self) {
        let space = &mut *self.space;
        let outputs = std::mem::take(&mut space.batch.outputs);
        keep_rows(&mut space.residual, self.model.config.hidden_size, &outputs);
        keep_rows(&mut space.qkv, self.model.qkv_len(), &outputs);
        space.batch.keep(&outputs);
        space.batch.outputs = outputs;
    }

    /// Attention of every row, added to the residual stream; a task is one key/value head and one tile of rows of one
    /// sequence.
    fn attend(&mut self, layer: &Layer, layer_index: usize) {
        let (model, space, rows) = (self.model, &mut *self.space, &*self.rows);
        let batch = &space.batch;
        let (head_dim, num_kv_heads) = (model.config.head_dim, model.config.num_key_value_heads);
        let group_len = model.q_len() / num_kv_heads;
        space.tile_ends.clear();
        space.tile_ends.extend(batch.tiles.iter().map(|(_, rows)| rows.end));
        let scale = 1.0 / (head_dim as f32).sqrt();
        let (qkv, threads) = (&space.qkv, &space.threads);
        let change = layer.changes.o.as_ref();
        let shape =
            InputShape { rows: batch.len(), width: model.q_len(), keeps_numbers: reads_numbers(&layer.o_proj, change) };
        let tiles = (&space.tile_ends[..], group_len);
        space.activations.fill_tiles(&model.pool, model.isa, shape, tiles, &|task, thread, output| {
            let (head_index, tile_index) = (task / batch.tiles.len(), task % batch.tiles.len());
            let (sequence_index, tile_rows) = &batch.tiles[tile_index];
            let mut scratch = threads[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let ThreadScratch { attention, queries } = &mut *scratch;
            queries.clear();
            for row in tile_rows.clone() {
                let start = row * model.qkv_len() + head_index * group_len;
                queries.extend(qkv[start..start + group_len].iter().map(|x| x * scale));
            }
            let blocks = CacheHead { cache: &*rows[*sequence_index].cache, layer_index, head_index };
            let visible = &batch.visible[tile_rows.clone()];
            let job = Attention { queries, head_dim, visible, scattered: &batch.scattered, blocks: &blocks };
            job.run(model.isa, attention, output);
        });
        add_projected(model, &space.activations, (&layer.o_proj, change), &mut space.inner, &mut space.residual);
    }

    /// The MLP, added to the residual stream. Gate and up of the same columns meet before they are stored.
    fn add_mlp(&mut self, layer: &Layer) {
        let change = layer.changes.gate_up.as_ref();
        self.normalize(&layer.post_attention_layernorm, &layer.gate_up_proj, change);
        let (model, space) = (self.model, &mut *self.space);
        if let Some(change) = change {
            change.reduce(&model.pool, model.isa, &space.activations, &mut space.inner);
        }
        let (inner_size, inner) = (layer.gate_up_proj[0].rows(), &space.inner);
        let down_change = layer.changes.down.as_ref();
        let join = Join {
            output: &mut space.gated,
            keeps_numbers: reads_numbers(&layer.down_proj, down_change),
            join: &|Joined { row, columns, sums, to }| {
                let (gate, up) = sums.split_at_mut(columns.len());
                if let Some(change) = change {
                    change.add(model.isa, inner, row, (columns.start, gate));
                    change.add(model.isa, inner, row, (inner_size + columns.start, up));
                }
                silu_mul(model.isa, gate, up, to);
            },
        };
        matmul_join(&model.pool, model.isa, &space.activations, &layer.gate_up_proj, join);
        add_projected(model, &space.gated, (&layer.down_proj, down_change), &mut space.inner, &mut space.residual);
    }
}

/// Whether any product with the same inputs reads them as numbers.
fn reads_numbers(matrices: &[PackedMatrix], change: Option<&LowRank>) -> bool {
    matrices.iter().any(|matrix| !matrix.format().is_quantized()) || change.is_some_and(LowRank::reads_numbers)
}

/// Multiplies `inputs` by a matrix, with its change, and adds the result to the residual stream.
fn add_projected(
    model: &CpuModel,
    inputs: &Activations,
    (matrix, change): (&[PackedMatrix; 1], Option<&LowRank>),
    inner: &mut Vec<f32>,
    residual: &mut [f32],
) {
    matmul_add(&model.pool, model.isa, inputs, matrix, residual);
    if let Some(change) = change {
        change.reduce(&model.pool, model.isa, inputs, inner);
        model.pool.for_each_row(residual, model.config.hidden_size, &|row, residual| {
            change.add(model.isa, inner, row, (0, residual));
        });
    }
}

/// Drops all rows of `width` numbers but these, given in their order.
fn keep_rows(buffer: &mut Vec<f32>, width: usize, rows: &[usize]) {
    for (to, &from) in rows.iter().enumerate() {
        buffer.copy_within(from * width..(from + 1) * width, to * width);
    }
    buffer.truncate(rows.len() * width);
}

impl CpuModel {
    fn q_len(&self) -> usize {
        self.config.num_attention_heads * self.config.head_dim
    }

    fn kv_len(&self) -> usize {
        self.config.num_key_value_heads * self.config.head_dim
    }

    fn qkv_len(&self) -> usize {
        self.q_len() + 2 * self.kv_len()
    }
}
