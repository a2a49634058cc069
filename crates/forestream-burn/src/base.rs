//! The frozen part of the base model that streams run through.

use std::fmt;

use burn_tensor::{Device, Tensor};
use forestream_model::streams::AdapterConfig;
use forestream_model::{Checkpoint, DecoderConfig, Format, ModelError, TokenId};

use crate::BurnError;
use crate::layer::{Layer, Loader};

/// The top layers of a base model, its final norm, the draft vocabulary's rows of the LM head, and embeddings on demand.
#[derive(Clone)]
pub struct StreamBase {
    pub(crate) decoder: DecoderConfig,
    pub(crate) adapter: AdapterConfig,
    pub(crate) device: Device,
    /// The layers with streams.
    pub(crate) layers: Vec<Layer>,
    /// `[1, hidden]`.
    pub(crate) norm: Tensor<2>,
    /// Rows of the LM head, `[draft vocabulary, hidden]`.
    pub(crate) head: Tensor<2>,
    pub(crate) embeddings: Table,
    /// Rotary frequencies, `[head_dim / 2]`.
    pub(crate) frequencies: Vec<f64>,
}

impl StreamBase {
    /// Reads what streams of `config` need from a checkpoint. An empty `draft_vocabulary` means all tokens.
    ///
    /// # Errors
    /// A weight that is missing or has the wrong shape, a configuration that does not fit the checkpoint, or a draft
    /// vocabulary that does not fit either.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &AdapterConfig,
        draft_vocabulary: &[TokenId],
        device: &Device,
    ) -> Result<Self, BurnError> {
        let decoder = checkpoint.config().clone();
        config.validate(&decoder).map_err(BurnError::Adapter)?;
        check_vocabulary(config, &decoder, draft_vocabulary)?;
        let device = device.clone().without_autodiff();
        let loader = Loader { checkpoint, device: &device };
        let first = config.first_msa_layer(&decoder);
        let layers = (first..decoder.num_hidden_layers).map(|index| loader.layer(index)).collect::<Result<_, _>>()?;
        let embeddings = Table::read(checkpoint, "model.embed_tokens.weight")?;
        let head_rows = |table: &Table| match draft_vocabulary {
            [] => table.rows(0..decoder.vocab_size as TokenId),
            ids => table.rows(ids.iter().copied()),
        };
        let head = if decoder.tie_word_embeddings {
            head_rows(&embeddings)
        } else {
            head_rows(&Table::read(checkpoint, "lm_head.weight")?)
        };
        let num_rows = head.len() / decoder.hidden_size;
        let head = loader.upload(head, [num_rows, decoder.hidden_size]);
        let norm = loader.vector("model.norm.weight", decoder.hidden_size)?;
        let frequencies = decoder.rope.frequencies(decoder.head_dim);
        checkpoint.release();
        Ok(Self { adapter: config.clone(), decoder, layers, norm, head, embeddings, frequencies, device })
    }

    /// Sizes and switches of the base model.
    pub fn decoder(&self) -> &DecoderConfig {
        &self.decoder
    }

    /// Sizes and switches of the streams.
    pub fn adapter(&self) -> &AdapterConfig {
        &self.adapter
    }

    /// Number of tokens that streams can propose: the width of their logits.
    pub fn draft_vocab_size(&self) -> usize {
        self.head.dims()[0]
    }
}

impl fmt::Debug for StreamBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamBase")
            .field("decoder", &self.decoder)
            .field("adapter", &self.adapter)
            .field("draft_vocab_size", &self.draft_vocab_size())
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

fn check_vocabulary(config: &AdapterConfig, base: &DecoderConfig, ids: &[TokenId]) -> Result<(), BurnError> {
    let expected = config.streams.draft_vocab_size.unwrap_or(0);
    if ids.len() != expected {
        let got = ids.len();
        return Err(BurnError::Adapter(format!("draft_vocab_size is {expected}, but {got} token ids were given")));
    }
    let vocab_size = base.vocab_size;
    match ids.iter().find(|&&token| token as usize >= vocab_size) {
        Some(&token) => Err(BurnError::TokenOutOfRange { token, vocab_size }),
        None => Ok(()),
    }
}

/// A matrix with a row for each token, in the bytes of the checkpoint; rows are decoded when asked for.
#[derive(Clone)]
pub(crate) struct Table {
    format: Format,
    bytes: Vec<u8>,
    row_bytes: usize,
    cols: usize,
}

impl Table {
    fn read(checkpoint: &Checkpoint, name: &str) -> Result<Self, ModelError> {
        let config = checkpoint.config();
        let weight = checkpoint.weight(name)?.expect_shape(config.vocab_size, config.hidden_size)?;
        let row_bytes = weight.bytes.len() / weight.rows;
        Ok(Self { format: weight.format, cols: weight.cols, row_bytes, bytes: weight.bytes.into_owned() })
    }

    /// The rows of these tokens, one after another.
    pub(crate) fn rows(&self, tokens: impl IntoIterator<Item = TokenId>) -> Vec<f32> {
        let mut rows = Vec::new();
        for token in tokens {
            let start = rows.len();
            rows.resize(start + self.cols, 0.0);
            let bytes = &self.bytes[token as usize * self.row_bytes..][..self.row_bytes];
            self.format.dequantize_row(bytes, &mut rows[start..]);
        }
        rows
    }
}
