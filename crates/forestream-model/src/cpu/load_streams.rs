//! From an adapter to stream layers: `W + alpha / rank * B A` is added up at load and packed like any other weight.
//!
//! Two hundred small products a pass would cost more than they compute; one more copy of the top layers costs memory.

use forestream_kernels::formats::Format;
use forestream_kernels::{PackedMatrix, RowOrder};

use super::CpuModel;
use super::layer::Layer;
use super::load::Loader;
use super::streams::{CpuStreams, Sampler};
use crate::streams::{Adapter, LoraConfig, Projection};
use crate::{Checkpoint, ModelError, TokenId};

/// How changed weights are stored: about as small as the base's, since a stream pass reads them all.
fn merged_format(base: Format) -> Format {
    match base {
        Format::F32 | Format::F16 | Format::BF16 => Format::F32,
        Format::Q8_0 | Format::Q6_K | Format::Q5_0 | Format::Q5_1 | Format::Q5_K => Format::Q8_0,
        _ => Format::Q4_1,
    }
}

impl CpuModel {
    /// Gives the model the streams of `adapter`; `checkpoint` is the one that it was loaded from.
    ///
    /// # Errors
    /// A weight that cannot be packed.
    pub fn attach(&mut self, adapter: Adapter, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        let first = adapter.config.first_msa_layer(&self.config);
        let loader = Loader::new(checkpoint, &self.pool);
        let merger = Merger { adapter: &adapter, loader: &loader };
        let layers =
            (first..self.config.num_hidden_layers).map(|index| merger.layer(index)).collect::<Result<_, _>>()?;
        let square = [self.config.hidden_size; 2];
        let has_conditioning = adapter.config.streams.token_conditioning;
        let conditioning = has_conditioning.then(|| merger.dense("token_conditioning.weight", square)).transpose()?;
        let draft_head = match adapter.draft_vocabulary.as_slice() {
            [] => None,
            tokens => Some(merger.draft_head(tokens)?),
        };
        let size = adapter.config.streams.sampler_size.unwrap_or(0);
        let head = draft_head.as_ref().unwrap_or(self.lm_head());
        let sampler = (size > 0).then(|| merger.sampler(size, head)).transpose()?;
        checkpoint.release();
        let all_tokens = || (0..self.config.vocab_size as TokenId).collect();
        let embeddings = adapter.tensors["stream_embeddings"].clone();
        self.boundary = Some(first);
        self.streams = Some(CpuStreams {
            layers,
            embeddings,
            token_conditioning: conditioning.map(|matrix| [matrix]),
            sampler,
            draft_vocabulary: if draft_head.is_some() { adapter.draft_vocabulary } else { all_tokens() },
            draft_head,
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
    /// Layer `index` as stream rows use it.
    fn layer(&self, index: usize) -> Result<Layer, ModelError> {
        let mut layer = self.loader.layer(index)?;
        let Some(lora) = &self.adapter.config.lora else { return Ok(layer) };
        for &projection in &lora.target_modules {
            let matrix = match projection {
                Projection::QProj => &mut layer.qkv_proj[0],
                Projection::KProj => &mut layer.qkv_proj[1],
                Projection::VProj => &mut layer.qkv_proj[2],
                Projection::OProj => &mut layer.o_proj[0],
                Projection::GateProj => &mut layer.gate_up_proj[0],
                Projection::UpProj => &mut layer.gate_up_proj[1],
                Projection::DownProj => &mut layer.down_proj[0],
            };
            let path = format!("layers.{index}.{}", projection.path());
            *matrix = self.merged(matrix, &path, lora)?;
        }
        Ok(layer)
    }

    /// `base + alpha / rank * B A`.
    fn merged(&self, base: &PackedMatrix, path: &str, lora: &LoraConfig) -> Result<PackedMatrix, ModelError> {
        let (rows, cols) = (base.rows(), base.cols());
        let a = &self.adapter.tensors[&format!("{path}.lora_A.weight")];
        let b = &self.adapter.tensors[&format!("{path}.lora_B.weight")];
        let scale = lora.alpha / lora.rank as f32;
        let mut sums = vec![0.0; rows * cols];
        self.loader.pool.for_each_row(&mut sums, cols, &|row, to| {
            base.row(row, to);
            for (factor, a) in b[row * lora.rank..][..lora.rank].iter().zip(a.chunks_exact(cols)) {
                for (to, a) in to.iter_mut().zip(a) {
                    *to += scale * factor * a;
                }
            }
        });
        self.pack(path, [rows, cols], &sums, base.format())
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
            down_proj: [self.dense("sampler.down_proj.weight", [size, head.cols()])?],
            head_up_proj: [self.pack("sampler.up_proj.weight", [head.rows(), size], &products, head.format())?],
        })
    }

    /// A matrix of the adapter.
    fn dense(&self, name: &str, shape: [usize; 2]) -> Result<PackedMatrix, ModelError> {
        self.pack(name, shape, &self.adapter.tensors[name], Format::F32)
    }

    /// The head's rows of `tokens`, stored as in the file.
    fn draft_head(&self, tokens: &[TokenId]) -> Result<PackedMatrix, ModelError> {
        let checkpoint = self.loader.checkpoint;
        let config = checkpoint.config();
        let name = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let weight = checkpoint.weight(name)?;
        let row_bytes = weight.bytes.len() / weight.rows;
        let rows = tokens.iter().flat_map(|&token| &weight.bytes[token as usize * row_bytes..][..row_bytes]);
        let bytes: Vec<u8> = rows.copied().collect();
        self.loader.pack(name, weight.format, [tokens.len(), config.hidden_size], &bytes, RowOrder::Same)
    }

    /// Packs `values` about as small as weights of the format `like`.
    fn pack(&self, name: &str, shape: [usize; 2], values: &[f32], like: Format) -> Result<PackedMatrix, ModelError> {
        let merged = merged_format(like);
        let format = if shape[1].is_multiple_of(merged.block_len()) { merged } else { Format::F32 };
        let mut bytes = Vec::new();
        for row in values.chunks_exact(shape[1]) {
            format.quantize_row(row, &mut bytes).map_err(|error| {
                let problem = format!("the adapter's change of `{name}` cannot be stored: {error}");
                ModelError::unsupported(self.loader.checkpoint.path(), problem)
            })?;
        }
        self.loader.pack(name, format, shape, &bytes, RowOrder::Same)
    }
}
