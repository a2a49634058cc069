//! The sizes of the streams that a training run makes: a preset's or an adapter's, changed by what was asked for.

use forestream_model::streams::{Adapter, LoraConfig, Projection, StreamConfig, StreamIdentity};
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
}

impl StreamSizes {
    /// The streams and their low-rank changes of a run that starts from `initial`, for a model of `vocab_size` tokens.
    pub(crate) fn resolve(
        &self,
        initial: Option<&Adapter>,
        is_joint: bool,
        vocab_size: usize,
    ) -> (StreamConfig, Option<LoraConfig>) {
        let usual = Preset::fast();
        let (mut streams, lora) = match (&self.preset, initial) {
            (None, Some(initial)) => (initial.config.streams.clone(), initial.config.lora.clone()),
            (preset, _) => {
                let preset = preset.as_ref().unwrap_or(&usual).clone();
                let preset = if is_joint { preset.in_joint_mode() } else { preset };
                (preset.streams, Some(preset.lora))
            }
        };
        streams.draft_vocab_size = streams.draft_vocab_size.filter(|&size| size < vocab_size); // else it limits nothing
        self.change(&mut streams);
        (streams, self.changed_lora(lora, usual.lora))
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
    }

    /// `lora` with what was asked for; `usual` where there is none to change.
    fn changed_lora(&self, lora: Option<LoraConfig>, usual: LoraConfig) -> Option<LoraConfig> {
        if lora.is_none() && self.lora_rank.is_none() {
            return None;
        }
        let mut lora = lora.unwrap_or(usual);
        lora.rank = self.lora_rank.unwrap_or(lora.rank);
        lora.alpha = self.lora_alpha.unwrap_or(lora.alpha);
        if let Some(modules) = &self.lora_target_modules {
            lora.target_modules.clone_from(modules);
        }
        Some(lora).filter(|lora| lora.rank > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_change_single_sizes_and_zero_leaves_out() {
        let (usual, lora) = StreamSizes::default().resolve(None, false, 49_152);
        assert_eq!((usual, lora), (Preset::fast().streams, Some(Preset::fast().lora)));
        let sizes = StreamSizes {
            preset: Some(Preset::paper()),
            num_streams: Some(5),
            early_exit_rank: Some(0),
            lora_rank: Some(0),
            ..StreamSizes::default()
        };
        let (streams, lora) = sizes.resolve(None, false, 49_152);
        assert_eq!((streams.num_streams, streams.early_exit_rank, lora), (5, None, None));
        assert_eq!(StreamConfig { early_exit_rank: Some(8), num_streams: 3, ..streams }, Preset::paper().streams);
    }

    #[test]
    fn a_draft_vocabulary_as_large_as_the_models_is_none_unless_it_was_asked_for() {
        assert_eq!(StreamSizes::default().resolve(None, false, 320).0.draft_vocab_size, None);
        let asked = StreamSizes { draft_vocab_size: Some(999), ..StreamSizes::default() };
        assert_eq!(asked.resolve(None, false, 320).0.draft_vocab_size, Some(999), "an error that names it follows");
    }

    #[test]
    fn a_task_can_be_foreseen_further() {
        assert_eq!(StreamSizes::default().resolve(None, true, 49_152).0.num_streams, 6);
    }
}
