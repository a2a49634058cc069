//! Sizes of streams that are known to work, fitted to a model.

use forestream_model::DecoderConfig;
use forestream_model::streams::{
    LoraConfig, MainLoraConfig, Projection, StreamConfig, StreamIdentity, StreamPosition, TrainingMode,
};

/// Widths of an MLP are cut to multiples of this: a block of packed weights.
const BLOCK: usize = 32;

/// What the sizes are chosen for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// Everything that raises acceptance at little cost: token conditioning, a sampler, LoRA on all projections, and
    /// many layers, which are narrow so that a draft reads no more weights than half as many whole ones have.
    #[default]
    Fast,
    /// The parameters of the paper: stream embeddings, a small LoRA on queries and values, the map of the early exit.
    Paper,
}

impl Preset {
    /// The streams for a model of these sizes.
    pub fn streams(self, model: &DecoderConfig, mode: TrainingMode) -> StreamConfig {
        let most_layers = |layers: usize| layers.min(model.num_hidden_layers);
        let proposed = |tokens: usize| Some(tokens).filter(|&tokens| tokens < model.vocab_size);
        let paper = StreamConfig {
            num_streams: 3,
            num_msa_layers: most_layers(4),
            position: StreamPosition::Following,
            identity: StreamIdentity::Embedding,
            token_conditioning: false,
            sampler_size: None,
            intermediate_size: None,
            draft_vocab_size: None,
            early_exit_rank: Some(8),
        };
        let fast = StreamConfig {
            num_streams: 4,
            num_msa_layers: most_layers(8),
            token_conditioning: true,
            sampler_size: Some(64),
            intermediate_size: quarter(model.intermediate_size),
            draft_vocab_size: proposed(8192),
            early_exit_rank: None,
            ..paper.clone()
        };
        match (self, mode) {
            (Self::Paper, _) => paper,
            (Self::Fast, TrainingMode::Lossless) => fast,
            // A task's texts can be foreseen further, and its changes belong to whole layers.
            (Self::Fast, TrainingMode::Joint) => {
                StreamConfig { num_streams: 6, num_msa_layers: most_layers(4), intermediate_size: None, ..fast }
            }
        }
    }

    /// Low-rank changes of stream rows.
    pub fn lora(self) -> LoraConfig {
        match self {
            Self::Fast => LoraConfig { rank: 32, alpha: 64.0, target_modules: Projection::ALL.to_vec() },
            Self::Paper => {
                LoraConfig { rank: 8, alpha: 16.0, target_modules: vec![Projection::QProj, Projection::VProj] }
            }
        }
    }

    /// Low-rank changes of main rows: all projections of the `num_layers` top layers.
    pub fn main_lora(num_layers: usize) -> MainLoraConfig {
        let lora = LoraConfig { rank: 16, alpha: 32.0, target_modules: Projection::ALL.to_vec() };
        MainLoraConfig { num_layers, lora }
    }
}

/// A quarter of the inner features of an MLP, in whole blocks; none where that is all of them.
fn quarter(inner: usize) -> Option<usize> {
    Some((inner / 4).next_multiple_of(BLOCK)).filter(|&kept| kept < inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use forestream_model::Checkpoint;

    use super::*;

    fn model(inner: usize, layers: usize, vocab_size: usize) -> DecoderConfig {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
        let tiny = Checkpoint::open(&path).unwrap().config().clone();
        DecoderConfig { intermediate_size: inner, num_hidden_layers: layers, vocab_size, ..tiny }
    }

    #[test]
    fn sizes_fit_the_model() {
        let sizes = |inner, layers, vocab_size| {
            let streams = Preset::Fast.streams(&model(inner, layers, vocab_size), TrainingMode::Lossless);
            (streams.intermediate_size, streams.num_msa_layers, streams.draft_vocab_size)
        };
        assert_eq!(sizes(1536, 30, 49_152), (Some(384), 8, Some(8192)));
        assert_eq!(sizes(8960, 28, 151_936), (Some(2240), 8, Some(8192)));
        assert_eq!(sizes(172, 5, 512), (Some(64), 5, None), "whole blocks; no more layers or tokens than there are");
        assert_eq!(sizes(32, 1, 8192), (None, 1, None));
    }

    #[test]
    fn a_task_is_foreseen_further_and_in_whole_layers() {
        let streams = Preset::Fast.streams(&model(1536, 30, 49_152), TrainingMode::Joint);
        assert_eq!((streams.num_streams, streams.num_msa_layers, streams.intermediate_size), (6, 4, None));
    }
}
