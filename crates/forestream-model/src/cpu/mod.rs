//! The CPU engine: one decoder stack over packed weights, bit-exact for any batch shape and number of threads.
//!
//! Owns the order of operations of a pass and the buffers between them; all arithmetic is in `forestream-kernels`. An
//! architecture is data here ([`DecoderConfig`]): biases and head norms run where the configuration says so.

mod batch;
mod early_exit;
mod layer;
mod load;
mod load_streams;
mod low_rank;
mod pass;
mod streams;
mod value_rotation;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use forestream_kernels::{InputShape, Isa, PackedMatrix, ThreadPool, matmul};

use crate::streams::Streams;
use crate::{CacheShape, DecoderConfig, Hidden, KvCache, Model, ModelError, Row};
use layer::Layer;
use pass::{Pass, Workspace};
use streams::CpuStreams;

/// How to load a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Threads of a pass, at least one.
    pub num_threads: usize,
    /// The instruction set to run on.
    pub isa: Isa,
}

impl Default for LoadOptions {
    /// All cores, the fastest instruction set.
    fn default() -> Self {
        let num_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { num_threads, isa: Isa::best() }
    }
}

/// A Llama-family decoder on the CPU.
#[derive(Debug)]
pub struct CpuModel {
    config: DecoderConfig,
    isa: Isa,
    pool: ThreadPool,
    /// `[vocab_size, hidden_size]`.
    embed_tokens: PackedMatrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// `[vocab_size, hidden_size]`; `None` where the head is the embedding table.
    lm_head: Option<PackedMatrix>,
    /// Rotary frequencies, `[head_dim / 2]`.
    frequencies: Vec<f64>,
    /// The layer before which output rows' states are kept (L0).
    boundary: Option<usize>,
    streams: Option<CpuStreams>,
    workspace: Mutex<Workspace>,
}

impl CpuModel {
    /// Keeps the states of output rows before layer `layer_index`, for streams that begin there.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn keep_boundary(&mut self, layer_index: usize) {
        assert!(layer_index < self.layers.len(), "layer {layer_index} of {}", self.layers.len());
        self.boundary = Some(layer_index);
    }

    fn lm_head(&self) -> &PackedMatrix {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}

impl Model for CpuModel {
    fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn new_cache(&self, capacity: usize) -> KvCache {
        KvCache::new(CacheShape::of(&self.config), capacity)
    }

    fn forward(&self, rows: &mut [Row<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        self.check(rows)?;
        for row in rows.iter_mut() {
            row.cache.reserve(row.tree)?;
        }
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        Pass::new(self, &mut workspace, rows).run(hidden);
        Ok(())
    }

    fn logits(&self, hidden: &Hidden, rows: Range<usize>, logits: &mut Vec<f32>) {
        self.multiply_head(hidden, rows, self.lm_head(), logits);
    }

    fn streams(&self) -> Option<&dyn Streams> {
        self.streams.is_some().then_some(self as &dyn Streams)
    }
}

impl CpuModel {
    /// The product of final states with a head, `[rows, tokens]`.
    fn multiply_head(&self, hidden: &Hidden, rows: Range<usize>, head: &PackedMatrix, logits: &mut Vec<f32>) {
        let (num_rows, width) = (rows.len(), self.config.hidden_size);
        let states = hidden.states(rows);
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let fill = |row: usize, to: &mut [f32]| to.copy_from_slice(&states[row * width..][..width]);
        let shape = InputShape { rows: num_rows, width, keeps_numbers: !head.format().is_quantized() };
        workspace.activations.fill(&self.pool, self.isa, shape, &fill);
        logits.resize(num_rows * head.rows(), 0.0);
        matmul(&self.pool, self.isa, &workspace.activations, std::slice::from_ref(head), logits);
    }

    /// Refuses what cannot run before any cache changes.
    fn check(&self, rows: &[Row<'_>]) -> Result<(), ModelError> {
        let vocab_size = self.config.vocab_size;
        for row in rows {
            let needed = row.cache.len() + row.tree.len();
            if needed > row.cache.capacity() {
                return Err(ModelError::ContextFull { capacity: row.cache.capacity(), needed });
            }
            for node in row.tree.node_ids() {
                let token = row.tree.token(node);
                if token as usize >= vocab_size {
                    return Err(ModelError::TokenOutOfRange { token, vocab_size });
                }
            }
        }
        Ok(())
    }
}
