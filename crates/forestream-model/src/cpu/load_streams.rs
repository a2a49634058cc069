//! From an adapter to stream layers: `W + alpha / rank * B A` is added up at load and packed like any other weight. What
//! main rows change stays beside the base (`low_rank.rs`), whose weights are in memory anyway.
//!
//! Two hundred small products a pass would cost more than they compute; one more copy of the top layers costs memory.

use std::sync::OnceLock;

use forestream_kernels::formats::Format;
use forestream_kernels::{PackedMatrix, RowOrder, ThreadPool};

use super::CpuModel;
use super::early_exit::EarlyExit;
use super::layer::Layer;
use super::load::Loader;
use super::low_rank::{LayerChanges, LowRank, Scaled};
use super::streams::{CpuStreams, Sampler};
use super::value_rotation::ValueRotation;
use crate::streams::{Adapter, LoraConfig, MAIN_LAYERS, Projection, STREAM_LAYERS};
use crate::{Checkpoint, ModelError, TokenId};

/// How changed weights are stored: about as small as the base's, since a stream pass reads them all.
fn merged_format(base: Format) -> Format {
    match base {
        Format::F32 | Format::F16 | Format::BF16 => Format::F32,
        Format::Q8_0 | Format::Q6_K | Format::Q5_0 | Format::Q5_1 | Format::Q5_K => Format::Q8_0,
        _ => Format::Q4_1,
    }
}

/// How weights are stored that carry a task: rounded far less than the base's.
fn task_format(base: Format) -> Format {
    if base.is_quantized() { Format::Q8_0 } else { Format::F32 }
}

/// Where a task's changes of main rows go.
#[derive(Clone, Copy)]
enum MainChanges {
    Beside,
    Merged,
}

/// How an adapter's own small matrices are stored: rounded far less than the base's weights.
fn factor_format(base: Format) -> Format {
    if base.is_quantized() { Format::F16 } else { Format::F32 }
}

impl CpuModel {
    /// Gives the model the streams of `adapter`; `checkpoint` is the one that it was loaded from.
    ///
    /// # Errors
    /// A weight that cannot be packed.
    pub fn attach(&mut self, adapter: Adapter, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        self.attach_as(adapter, checkpoint, MainChanges::Beside)
    }

    /// The same, with the changes of main rows added to the base's weights: one product instead of two small ones more, on
    /// weights that are stored anew, with 8 bits where the base's are quantized. Answers may differ by that rounding.
    ///
    /// # Errors
    /// A weight that cannot be packed.
    pub fn attach_merged(&mut self, adapter: Adapter, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        self.attach_as(adapter, checkpoint, MainChanges::Merged)
    }

    fn attach_as(&mut self, adapter: Adapter, checkpoint: &Checkpoint, changes: MainChanges) -> Result<(), ModelError> {
        let first = adapter.config.first_msa_layer(&self.config);
        let loader = Loader::new(checkpoint, &self.pool);
        let merger = Merger { adapter: &adapter, loader: &loader };
        let num_layers = self.config.num_hidden_layers;
        let layers = (first..num_layers).map(|index| merger.stream_layer(index, &self.layers[index]));
        let layers = layers.collect::<Result<_, _>>()?;
        if let Some(main) = &adapter.config.main_lora {
            for index in num_layers - main.num_layers..num_layers {
                let layer = &self.layers[index];
                match changes {
                    MainChanges::Beside => {
                        self.layers[index].changes = merger.main_changes(index, layer, &main.lora)?;
                    }
                    MainChanges::Merged => self.layers[index] = merger.merged_layer(index, layer, &main.lora)?,
                }
            }
        }
        let (square, layer_format) = ([self.config.hidden_size; 2], self.layers[first].o_proj[0].format());
        let conditioning = || merger.dense("token_conditioning.weight", square, layer_format);
        let conditioning = adapter.config.streams.token_conditioning.then(conditioning).transpose()?;
        let draft_head = match adapter.draft_vocabulary.as_slice() {
            [] => None,
            tokens => Some(merger.draft_head(tokens, self.lm_head(), layer_format)?),
        };
        let size = adapter.config.streams.sampler_size.unwrap_or(0);
        let head = draft_head.as_ref().unwrap_or(self.lm_head());
        let sampler = (size > 0).then(|| merger.sampler(size, head)).transpose()?;
        let vocab_size = self.config.vocab_size;
        let draft_vocabulary = match &draft_head {
            Some(_) => adapter.draft_vocabulary.clone(),
            None => (0..vocab_size as TokenId).collect(),
        };
        let early_exit =
            adapter.config.streams.early_exit_rank.map(|rank| merger.early_exit(rank, square[0], layer_format));
        let early_exit = early_exit.transpose()?.map(|change| EarlyExit::new(change, &draft_vocabulary, vocab_size));
        checkpoint.release();
        let sizes = &adapter.config.streams;
        let value_rotation = ValueRotation::new(sizes.identity, sizes.num_streams, self.config.head_dim);
        self.boundary = Some(first);
        self.streams = Some(CpuStreams {
            layers,
            embeddings: adapter.tensors.get("stream_embeddings").cloned(),
            value_rotation,
            token_conditioning: conditioning.map(|matrix| [matrix]),
            sampler,
            draft_vocabulary,
            draft_head,
            early_exit,
            ones: vec![1.0; self.config.hidden_size.max(size)],
            config: adapter.config,
        });
        Ok(())
    }
}

/// Adds an adapter's changes to base weights.
struct Merger<'a> {
    adapter: &'a Adapter,
    loader: &'a Loader<'a>,
}

impl Merger<'_> {
    /// What main rows of layer `index` change.
    fn main_changes(&self, index: usize, layer: &Layer, lora: &LoraConfig) -> Result<LayerChanges, ModelError> {
        use Projection::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
        let change = |projections: &[Projection], matrices: &[PackedMatrix]| {
            self.low_rank(index, projections.iter().copied().zip(matrices), lora)
        };
        Ok(LayerChanges {
            qkv: change(&[QProj, KProj, VProj], &layer.qkv_proj)?,
            o: change(&[OProj], &layer.o_proj)?,
            gate_up: change(&[GateProj, UpProj], &layer.gate_up_proj)?,
            down: change(&[DownProj], &layer.down_proj)?,
        })
    }

    /// Layer `index` as main rows use it once a task is part of its weights.
    fn merged_layer(&self, index: usize, base: &Layer, lora: &LoraConfig) -> Result<Layer, ModelError> {
        let pool = self.loader.pool;
        self.loader.layer(index, &|projection| {
            let path = format!("{index}.{}", projection.path());
            let Some(change) = self.change(MAIN_LAYERS, lora, &path, projection) else {
                return self.loader.projection(index, projection);
            };
            let matrix = matrix_of(base, projection);
            let mut weight = Dense::of(matrix, pool);
            weight.add(&change, pool);
            self.pack(&format!("{MAIN_LAYERS}.{path}"), weight.shape, &weight.values, task_format(matrix.format()))
        })
    }

    /// The changes of projections whose outputs follow each other; `None` if none of them is changed.
    fn low_rank<'m>(
        &self,
        index: usize,
        projections: impl Iterator<Item = (Projection, &'m PackedMatrix)>,
        lora: &LoraConfig,
    ) -> Result<Option<LowRank>, ModelError> {
        let (mut all_a, mut all_b, mut first_output, mut factors) = (Vec::new(), Vec::new(), 0, (0, Format::F32));
        for (projection, matrix) in projections {
            let path = format!("{index}.{}", projection.path());
            if let Some(Change { a, b, rank, scale }) = self.change(MAIN_LAYERS, lora, &path, projection) {
                factors = (matrix.cols(), factor_format(matrix.format()));
                all_a.extend_from_slice(a);
                let (name, shape) = (format!("{MAIN_LAYERS}.{path}"), [matrix.rows(), rank]);
                let b: Vec<f32> = b.iter().map(|x| scale * x).collect();
                all_b.push(Scaled { b: self.pack(&name, shape, &b, factors.1)?, first_output });
            }
            first_output += matrix.rows();
        }
        let (cols, format) = factors;
        if all_b.is_empty() {
            return Ok(None);
        }
        let a = self.pack(&format!("{MAIN_LAYERS}.{index}"), [all_a.len() / cols, cols], &all_a, format)?;
        Ok(Some(LowRank::new(a, all_b)))
    }

    /// Layer `index` as stream rows use it; `base` is what main rows use.
    fn stream_layer(&self, index: usize, base: &Layer) -> Result<Layer, ModelError> {
        self.loader.layer(index, &|projection| self.stream_projection(index, projection, matrix_of(base, projection)))
    }

    /// A projection as stream rows use it: their own changes come on top of the task's, on the features that they keep.
    fn stream_projection(
        &self,
        index: usize,
        projection: Projection,
        base: &PackedMatrix,
    ) -> Result<PackedMatrix, ModelError> {
        let (config, decoder) = (&self.adapter.config, self.loader.checkpoint.config());
        let main = config.main_lora.as_ref().filter(|main| index >= decoder.num_hidden_layers - main.num_layers);
        let path = format!("{index}.{}", projection.path());
        let main = main.and_then(|main| self.change(MAIN_LAYERS, &main.lora, &path, projection));
        let own = config.lora.as_ref().and_then(|lora| self.change(STREAM_LAYERS, lora, &path, projection));
        let features = self.adapter.inner_features.get(index - config.first_msa_layer(decoder));
        let kept = features.and_then(|features| Kept::of(projection, features));
        if main.is_none() && own.is_none() && kept.is_none() {
            return self.loader.projection(index, projection);
        }
        let pool = self.loader.pool;
        let mut weight = Dense::of(base, pool);
        if let Some(main) = main {
            weight.add(&main, pool);
        }
        if let Some(kept) = kept {
            weight = weight.keep(kept);
        }
        if let Some(own) = own {
            weight.add(&own, pool);
        }
        self.pack(&format!("{STREAM_LAYERS}.{path}"), weight.shape, &weight.values, merged_format(base.format()))
    }

    /// What a set of changes changes of a projection, if anything.
    fn change(&self, prefix: &str, lora: &LoraConfig, path: &str, projection: Projection) -> Option<Change<'_>> {
        lora.target_modules.contains(&projection).then(|| {
            let factor = |which: &str| &self.adapter.tensors[&format!("{prefix}.{path}.lora_{which}.weight")];
            Change { a: factor("A"), b: factor("B"), rank: lora.rank, scale: lora.scaling() }
        })
    }

    /// The sampler of `size` inner features, multiplied out with the `head`.
    fn sampler(&self, size: usize, head: &PackedMatrix) -> Result<Sampler, ModelError> {
        let up = &self.adapter.tensors["sampler.up_proj.weight"];
        let mut products = vec![0.0; head.rows() * size];
        self.loader.pool.for_each_row(&mut products, size, &|token, to| {
            let mut row = vec![0.0; head.cols()];
            head.row(token, &mut row);
            for (x, up) in row.iter().zip(up.chunks_exact(size)) {
                for (to, up) in to.iter_mut().zip(up) {
                    *to += x * up;
                }
            }
        });
        Ok(Sampler {
            down_proj: [self.dense("sampler.down_proj.weight", [size, head.cols()], head.format())?],
            head_up_proj: [self.pack(
                "sampler.up_proj.weight",
                [head.rows(), size],
                &products,
                merged_format(head.format()),
            )?],
        })
    }

    /// A matrix of the adapter, beside weights in the format `base`.
    fn dense(&self, name: &str, shape: [usize; 2], base: Format) -> Result<PackedMatrix, ModelError> {
        self.pack(name, shape, &self.adapter.tensors[name], factor_format(base))
    }

    /// The map of the early exit for states of `width` numbers.
    fn early_exit(&self, rank: usize, width: usize, base: Format) -> Result<LowRank, ModelError> {
        let a = self.dense("early_exit.down_proj.weight", [rank, width], base)?;
        let b = self.dense("early_exit.up_proj.weight", [width, rank], base)?;
        Ok(LowRank::new(a, vec![Scaled { b, first_output: 0 }]))
    }

    /// The rows of the model's head for `tokens`, stored as small as the layers: guesses bear it.
    fn draft_head(&self, tokens: &[TokenId], head: &PackedMatrix, like: Format) -> Result<PackedMatrix, ModelError> {
        let row = |index: usize, to: &mut [f32]| head.row(tokens[index] as usize, to);
        self.pack_rows("draft head", [tokens.len(), head.cols()], &row, merged_format(like))
    }

    /// Packs `values` in `format`, or as they are where rows are not whole blocks of it.
    fn pack(&self, name: &str, shape: [usize; 2], values: &[f32], format: Format) -> Result<PackedMatrix, ModelError> {
        let row = |index: usize, to: &mut [f32]| to.copy_from_slice(&values[index * to.len()..][..to.len()]);
        self.pack_rows(name, shape, &row, format)
    }

    /// The same with rows that `row` writes, by their index; so all of them need not be there at once.
    fn pack_rows(
        &self,
        name: &str,
        [rows, cols]: [usize; 2],
        row: &(dyn Fn(usize, &mut [f32]) + Sync),
        format: Format,
    ) -> Result<PackedMatrix, ModelError> {
        let format = if cols.is_multiple_of(format.block_len()) { format } else { Format::F32 };
        let width = format.row_bytes(cols).unwrap_or_default();
        let (mut bytes, failure) = (vec![0; rows * width], OnceLock::new());
        self.loader.pool.for_each_row(&mut bytes, width, &|index, to| {
            let (mut values, mut encoded) = (vec![0.0; cols], Vec::with_capacity(width));
            row(index, &mut values);
            match format.quantize_row(&values, &mut encoded) {
                Ok(()) => to.copy_from_slice(&encoded),
                Err(error) => drop(failure.set(error)),
            }
        });
        if let Some(error) = failure.into_inner() {
            let problem = format!(
                "the adapter's change of `{name}` is too great to be stored ({error}); train the adapter again with a lower \
                 --lr, or leave out --adapter"
            );
            return Err(ModelError::unsupported(self.loader.checkpoint.path(), problem));
        }
        self.loader.pack(name, format, [rows, cols], &bytes, RowOrder::Same)
    }
}

/// `scale * B A`.
struct Change<'a> {
    /// `[rank, cols]`.
    a: &'a [f32],
    /// `[rows, rank]`.
    b: &'a [f32],
    rank: usize,
    scale: f32,
}

/// What is kept of a weight where stream rows use some inner features alone.
#[derive(Clone, Copy)]
enum Kept<'a> {
    Rows(&'a [u32]),
    Cols(&'a [u32]),
}

impl<'a> Kept<'a> {
    /// Inner features are outputs of two projections and inputs of the third.
    fn of(projection: Projection, features: &'a [u32]) -> Option<Self> {
        match projection {
            Projection::GateProj | Projection::UpProj => Some(Self::Rows(features)),
            Projection::DownProj => Some(Self::Cols(features)),
            _ => None,
        }
    }
}

/// A weight in full precision, `shape[0]` rows one after another.
struct Dense {
    values: Vec<f32>,
    shape: [usize; 2],
}

impl Dense {
    fn of(matrix: &PackedMatrix, pool: &ThreadPool) -> Self {
        let shape = [matrix.rows(), matrix.cols()];
        let mut values = vec![0.0; shape[0] * shape[1]];
        pool.for_each_row(&mut values, shape[1], &|row, to| matrix.row(row, to));
        Self { values, shape }
    }

    fn add(&mut self, change: &Change<'_>, pool: &ThreadPool) {
        let Change { a, b, rank, scale } = *change;
        let cols = self.shape[1];
        pool.for_each_row(&mut self.values, cols, &|row, to| {
            for (factor, a) in b[row * rank..][..rank].iter().zip(a.chunks_exact(cols)) {
                for (to, a) in to.iter_mut().zip(a) {
                    *to += scale * factor * a;
                }
            }
        });
    }

    fn keep(self, kept: Kept<'_>) -> Self {
        let rows = || self.values.chunks_exact(self.shape[1]);
        match kept {
            Kept::Rows(indices) => {
                let rows: Vec<&[f32]> = rows().collect();
                let values = indices.iter().flat_map(|&row| rows[row as usize]).copied().collect();
                Self { values, shape: [indices.len(), self.shape[1]] }
            }
            Kept::Cols(indices) => {
                let values = rows().flat_map(|row| indices.iter().map(|&col| row[col as usize])).collect();
                Self { values, shape: [self.shape[0], indices.len()] }
            }
        }
    }
}

fn matrix_of(layer: &Layer, projection: Projection) -> &PackedMatrix {
    match projection {
        Projection::QProj => &layer.qkv_proj[0],
        Projection::KProj => &layer.qkv_proj[1],
        Projection::VProj => &layer.qkv_proj[2],
        Projection::OProj => &layer.o_proj[0],
        Projection::GateProj => &layer.gate_up_proj[0],
        Projection::UpProj => &layer.gate_up_proj[1],
        Projection::DownProj => &layer.down_proj[0],
    }
}
