//! From a checkpoint to packed weights.

use std::sync::Mutex;

use forestream_kernels::formats::Format;
use forestream_kernels::{PackedMatrix, RowOrder, ThreadPool, WeightMemory};

use super::layer::Layer;
use super::low_rank::LayerChanges;
use super::pass::Workspace;
use super::{CpuModel, LoadOptions};
use crate::streams::Projection;
use crate::{Checkpoint, ModelError, Weight};

impl CpuModel {
    /// Packs the weights of `checkpoint`; the files are not needed afterwards.
    ///
    /// # Errors
    /// A weight that is missing or has the wrong shape; more threads than the system starts.
    pub fn load(checkpoint: &Checkpoint, options: LoadOptions) -> Result<Self, ModelError> {
        let config = checkpoint.config().clone();
        let pool = ThreadPool::new(options.num_threads.max(1)).map_err(|reason| ModelError::Threads { reason })?;
        let loader = Loader::new(checkpoint, &pool);
        // The largest matrices come first: while one is packed, its pages of the file are in memory too.
        let lm_head = (!config.tie_word_embeddings).then(|| loader.vocabulary_matrix("lm_head.weight")).transpose()?;
        let embed_tokens = loader.vocabulary_matrix("model.embed_tokens.weight")?;
        let layer = |index| loader.layer(index, &|projection| loader.projection(index, projection));
        let layers = (0..config.num_hidden_layers).map(layer).collect::<Result<_, _>>()?;
        let norm = loader.vector("model.norm.weight", config.hidden_size)?;
        let frequencies = config.rope.frequencies(config.head_dim);
        let workspace = Mutex::new(Workspace::new(options.num_threads.max(1)));
        Ok(Self {
            isa: options.isa,
            embed_tokens,
            layers,
            norm,
            lm_head,
            frequencies,
            boundary: None,
            streams: None,
            workspace,
            config,
            pool,
        })
    }
}

/// Packs weights of a checkpoint.
pub(super) struct Loader<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) pool: &'a ThreadPool,
    memory: WeightMemory,
}

impl<'a> Loader<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, pool: &'a ThreadPool) -> Self {
        Self { checkpoint, pool, memory: WeightMemory::new() }
    }

    /// A matrix `[vocab_size, hidden_size]`.
    fn vocabulary_matrix(&self, name: &str) -> Result<PackedMatrix, ModelError> {
        let config = self.checkpoint.config();
        self.matrix(name, config.vocab_size, config.hidden_size, RowOrder::Same)
    }

    /// Decoder layer `index`, of the projections that `projection` makes.
    pub(super) fn layer(
        &self,
        index: usize,
        projection: &dyn Fn(Projection) -> Result<PackedMatrix, ModelError>,
    ) -> Result<Layer, ModelError> {
        use Projection::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
        let config = self.checkpoint.config();
        let norm = |which: &str| self.vector(&format!("model.layers.{index}.{which}.weight"), config.hidden_size);
        Ok(Layer {
            input_layernorm: norm("input_layernorm")?,
            qkv_proj: [projection(QProj)?, projection(KProj)?, projection(VProj)?],
            qkv_bias: if config.has_qkv_bias { Some(self.biases(index)?) } else { None },
            qk_norm: if config.has_qk_norm { Some(self.head_norms(index)?) } else { None },
            o_proj: [projection(OProj)?],
            post_attention_layernorm: norm("post_attention_layernorm")?,
            gate_up_proj: [projection(GateProj)?, projection(UpProj)?],
            down_proj: [projection(DownProj)?],
            changes: LayerChanges::default(),
        })
    }

    /// A projection of layer `index` as the checkpoint has it.
    pub(super) fn projection(&self, index: usize, projection: Projection) -> Result<PackedMatrix, ModelError> {
        let [rows, cols] = projection.shape(self.checkpoint.config());
        let name = format!("model.layers.{index}.{}.weight", projection.path());
        self.matrix(&name, rows, cols, self.order(projection))
    }

    /// The order in which the engine has the outputs of a projection.
    fn order(&self, projection: Projection) -> RowOrder {
        match projection {
            Projection::QProj | Projection::KProj => self.checkpoint.rotary_order(),
            _ => RowOrder::Same,
        }
    }

    fn biases(&self, index: usize) -> Result<Vec<f32>, ModelError> {
        let mut biases = Vec::new();
        for projection in [Projection::QProj, Projection::KProj, Projection::VProj] {
            let ([len, _], order) = (projection.shape(self.checkpoint.config()), self.order(projection));
            let bias = self.vector(&format!("model.layers.{index}.{}.bias", projection.path()), len)?;
            biases.extend((0..len).map(|row| bias[order.source(row)]));
        }
        Ok(biases)
    }

    fn head_norms(&self, index: usize) -> Result<[Vec<f32>; 2], ModelError> {
        let order = self.checkpoint.rotary_order();
        let norm = |which: &str| -> Result<Vec<f32>, ModelError> {
            let head_dim = self.checkpoint.config().head_dim;
            let norm = self.vector(&format!("model.layers.{index}.self_attn.{which}_norm.weight"), head_dim)?;
            Ok((0..head_dim).map(|row| norm[order.source(row)]).collect())
        };
        Ok([norm("q")?, norm("k")?])
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        Ok(self.checkpoint.weight(name)?.expect_shape(1, len)?.to_f32())
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize, order: RowOrder) -> Result<PackedMatrix, ModelError> {
        let weight: Weight<'_> = self.checkpoint.weight(name)?.expect_shape(rows, cols)?;
        let matrix = self.pack(name, weight.format, [rows, cols], &weight.bytes, order)?;
        self.checkpoint.release(); // the file's pages are not needed again
        Ok(matrix)
    }

    /// Packs a matrix of the given shape; `name` is for the error.
    pub(super) fn pack(
        &self,
        name: &str,
        format: Format,
        shape: [usize; 2],
        bytes: &[u8],
        order: RowOrder,
    ) -> Result<PackedMatrix, ModelError> {
        PackedMatrix::pack(self.pool, &self.memory, format, shape, bytes, order).map_err(|error| {
            ModelError::Malformed {
                path: self.checkpoint.path().into(),
                problem: format!("the weight `{name}`: {error}"),
            }
        })
    }
}
