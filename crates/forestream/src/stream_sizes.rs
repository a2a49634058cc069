//! The sizes of the streams that a training run makes: a preset's or an adapter's, changed by what was asked for.

use forestream_model::DecoderConfig;
use forestream_model::streams::{
    Adapter, LoraConfig, MainLoraConfig, Projection, StreamConfig, StreamIdentity, StreamPosition, TrainingMode,
};
use forestream_train::Preset;

/// What was asked for, one by one; `None` keeps what a run starts from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StreamSizes {
    /// The sizes to change; those of the adapter to start from where it is `None`, or `fast` without one.
    pub preset: Option<Preset>,
    /// Streams for each position.
    pub num_streams: Option<usize>,
    /// Top layers with streams.
    pub num_msa_layers: Option<usize>,
    /// Rank of the low-rank changes of stream rows; 0 leaves them out.
    pub lora_rank: Option<usize>,
    /// Their scale, times the rank.
    pub lora_alpha: Option<f32>,
    /// The projections that they change.
    pub lora_target_modules: Option<Vec<Projection>>,
    /// Inner features that streams keep of each layer's MLP; 0 for all.
    pub intermediate_size: Option<usize>,
    /// Tokens that streams can propose; 0 for all.
    pub draft_vocab_size: Option<usize>,
    /// Width of the sampler; 0 leaves it out.
    pub sampler_size: Option<usize>,
    /// Rank of the early exit; 0 leaves it out.
    pub early_exit_rank: Option<usize>,
    /// Whether streams see the emitted token.
    pub token_conditioning: Option<bool>,
    /// What tells streams apart.
    pub identity: Option<StreamIdentity>,
    /// Where they stand for rotary embedding.
    pub position: Option<StreamPosition>,
}

impl StreamSizes {
    /// The streams and their low-rank changes of a run for `model` that starts from `initial`.
    pub(crate) fn resolve(
        &self,
        initial: Option<&Adapter>,
        mode: TrainingMode,
        model: &DecoderConfig,
    ) -> (StreamConfig, Option<LoraConfig>) {
        let (mut streams, lora) = match (self.preset, initial) {
            (None, Some(initial)) => (initial.config.streams.clone(), initial.config.lora.clone()),
            (preset, _) => {
                let preset = preset.unwrap_or_default();
                (preset.streams(model, mode), Some(preset.lora()))
            }
        };
        self.change(&mut streams);
        (streams, self.changed_lora(lora))
    }

    fn change(&self, streams: &mut StreamConfig) {
        let given = |size: &mut usize, asked: Option<usize>| *size = asked.unwrap_or(*size);
        given(&mut streams.num_streams, self.num_streams);
        given(&mut streams.num_msa_layers, self.num_msa_layers);
        for (size, asked) in [
            (&mut streams.intermediate_size, self.intermediate_size),
            (&mut streams.draft_vocab_size, self.draft_vocab_size),
            (&mut streams.sampler_size, self.sampler_size),
            (&mut streams.early_exit_rank, self.early_exit_rank),
        ] {
            *size = asked.map_or(*size, |asked| Some(asked).filter(|&asked| asked > 0));
        }
        streams.token_conditioning = self.token_conditioning.unwrap_or(streams.token_conditioning);
        streams.identity = self.identity.unwrap_or(streams.identity);
        streams.position = self.position.unwrap_or(streams.position);
    }

    /// `lora` with what was asked for; that of a preset where there is none to change.
    fn changed_lora(&self, lora: Option<LoraConfig>) -> Option<LoraConfig> {
        if lora.is_none() && self.lora_rank.is_none() {
            return None;
        }
        let mut lora = lora.unwrap_or_else(|| Preset::default().lora());
        lora.rank = self.lora_rank.unwrap_or(lora.rank);
        lora.alpha = self.lora_alpha.unwrap_or(lora.alpha);
        if let Some(modules) = &self.lora_target_modules {
            lora.target_modules.clone_from(modules);
        }
        Some(lora).filter(|lora| lora.rank > 0)
    }
}

/// What was asked for of the low-rank changes of main rows; `None` keeps what a run starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MainLoraSizes {
    /// Top layers that have them; 0 for all.
    pub num_layers: Option<usize>,
    /// Their rank.
    pub rank: Option<usize>,
    /// Their scale, times the rank.
    pub alpha: Option<f32>,
}

impl MainLoraSizes {
    /// The changes of a run for `model` that starts from `initial`: those of `initial` where it has some, changed by what was
    /// asked for.
    pub(crate) fn resolve(self, initial: Option<&Adapter>, model: &DecoderConfig) -> MainLoraConfig {
        let initial = initial.and_then(|initial| initial.config.main_lora.clone());
        let mut main = initial.unwrap_or_else(|| Preset::main_lora(model.num_hidden_layers));
        if let Some(num_layers) = self.num_layers {
            main.num_layers = if num_layers == 0 { model.num_hidden_layers } else { num_layers };
        }
        main.lora.rank = self.rank.unwrap_or(main.lora.rank);
        main.lora.alpha = self.alpha.unwrap_or(main.lora.alpha);
        main
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use forestream_model::Checkpoint;

    use super::*;

    fn tiny() -> DecoderConfig {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
        Checkpoint::open(&path).unwrap().config().clone()
    }

    #[test]
    fn flags_change_single_sizes_and_zero_leaves_out() {
        let (model, mode) = (tiny(), TrainingMode::Lossless);
        let (usual, lora) = StreamSizes::default().resolve(None, mode, &model);
        assert_eq!((usual, lora), (Preset::Fast.streams(&model, mode), Some(Preset::Fast.lora())));
        let sizes = StreamSizes {
            preset: Some(Preset::Paper),
            num_streams: Some(5),
            early_exit_rank: Some(0),
            lora_rank: Some(0),
            position: Some(StreamPosition::Anchor),
            ..StreamSizes::default()
        };
        let (streams, lora) = sizes.resolve(None, mode, &model);
        assert_eq!((streams.num_streams, streams.early_exit_rank, lora), (5, None, None));
        assert_eq!(streams.position, StreamPosition::Anchor);
        let position = StreamPosition::Following;
        let restored = StreamConfig { early_exit_rank: Some(8), num_streams: 3, position, ..streams };
        assert_eq!(restored, Preset::Paper.streams(&model, mode));
    }

    #[test]
    fn a_draft_vocabulary_beyond_the_models_is_not_taken_by_itself_but_left_where_it_was_asked_for() {
        let size = |sizes: StreamSizes| sizes.resolve(None, TrainingMode::Lossless, &tiny()).0.draft_vocab_size;
        assert_eq!(size(StreamSizes::default()), None);
        let asked = StreamSizes { draft_vocab_size: Some(999), ..StreamSizes::default() };
        assert_eq!(size(asked), Some(999), "an error that names it follows");
    }
}
