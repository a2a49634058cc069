//! The frozen part of the base model that streams run through.

use std::fmt;

use burn_tensor::{Device, Tensor};
use forestream_model::streams::{Adapter, AdapterConfig, TrainingMode};
use forestream_model::{Checkpoint, DecoderConfig, TokenId};

use crate::changes::Changes;
use crate::layer::Layer;
use crate::load::{Loader, Table};
use crate::{BurnError, StreamWeights};

/// The top layers of a base model, its final norm, the draft vocabulary's rows of the LM head, and embeddings on demand.
#[derive(Clone)]
pub struct StreamBase {
    pub(crate) decoder: DecoderConfig,
    pub(crate) adapter: AdapterConfig,
    pub(crate) device: Device,
    /// Layers from [`StreamBase::first_layer`] on.
    pub(crate) layers: Vec<Layer>,
    /// `[1, hidden]`.
    pub(crate) norm: Tensor<2>,
    /// Rows of the LM head, `[draft vocabulary, hidden]`.
    pub(crate) head: Tensor<2>,
    /// The LM head of main rows, `[vocab_size, hidden]`; joint mode only.
    pub(crate) main_head: Option<Tensor<2>>,
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
        let layers = first_layer(config, &decoder)..decoder.num_hidden_layers;
        let layers = layers.map(|index| loader.layer(index)).collect::<Result<_, _>>()?;
        let embeddings = loader.embeddings()?;
        let lm_head = loader.lm_head(&embeddings)?;
        let all_tokens = || 0..decoder.vocab_size as TokenId;
        let head = match draft_vocabulary {
            [] => loader.upload_rows(&lm_head, all_tokens()),
            ids => loader.upload_rows(&lm_head, ids.iter().copied()),
        };
        let is_joint = config.mode == TrainingMode::Joint;
        let main_head = is_joint.then(|| match draft_vocabulary {
            [] => head.clone(),
            _ => loader.upload_rows(&lm_head, all_tokens()),
        });
        let norm = loader.vector("model.norm.weight", decoder.hidden_size)?;
        let frequencies = decoder.rope.frequencies(decoder.head_dim);
        checkpoint.release();
        Ok(Self { adapter: config.clone(), decoder, layers, norm, head, main_head, embeddings, frequencies, device })
    }

    /// The same, with the changes of main rows that `adapter` makes added to the weights: streams are then trained for the
    /// model that it makes of the base.
    ///
    /// # Panics
    /// If a tensor of the adapter is missing.
    #[must_use]
    pub fn fitted_by(mut self, adapter: &Adapter) -> Self {
        let main_config = AdapterConfig { lora: None, ..adapter.config.clone() };
        let weights = StreamWeights::from_values(&main_config, &self.decoder, &adapter.tensors, &self.device).frozen();
        for layer in &mut self.layers {
            layer.add(&Changes::of_main_rows(&weights, &main_config));
        }
        self
    }

    /// The same, with these inner features alone in the MLP of each layer with streams.
    ///
    /// # Panics
    /// In joint mode, whose main rows need all of them, or if there are not as many lists as layers with streams.
    #[must_use]
    pub fn narrowed_to(mut self, inner_features: &[Vec<u32>]) -> Self {
        assert!(self.main_head.is_none(), "main rows run through the same layers");
        assert_eq!(self.layers.len(), inner_features.len(), "one list for each layer with streams");
        for (layer, features) in self.layers.iter_mut().zip(inner_features) {
            layer.keep(features);
        }
        self.adapter.streams.intermediate_size = inner_features.first().map(Vec::len);
        self
    }

    /// Sizes and switches of the base model.
    pub fn decoder(&self) -> &DecoderConfig {
        &self.decoder
    }

    /// Sizes and switches of the streams.
    pub fn adapter(&self) -> &AdapterConfig {
        &self.adapter
    }

    /// The first layer that is computed here: the first with streams, or the first whose main rows are trained if that is
    /// lower.
    pub fn first_layer(&self) -> usize {
        first_layer(&self.adapter, &self.decoder)
    }

    /// Number of tokens that streams can propose: the width of their logits.
    pub fn draft_vocab_size(&self) -> usize {
        self.head.dims()[0]
    }

    /// The layers with streams.
    pub(crate) fn stream_layers(&self) -> &[Layer] {
        &self.layers[self.adapter.first_msa_layer(&self.decoder) - self.first_layer()..]
    }
}

fn first_layer(adapter: &AdapterConfig, decoder: &DecoderConfig) -> usize {
    let main_layers = adapter.main_lora.as_ref().map_or(0, |main| main.num_layers);
    adapter.first_msa_layer(decoder).min(decoder.num_hidden_layers - main_layers)
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
