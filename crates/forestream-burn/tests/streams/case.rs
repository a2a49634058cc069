//! Configurations of streams on tiny models, with random weights and segments.

use std::collections::BTreeMap;
use std::path::Path;

use burn_tensor::Device;
use forestream_burn::{Segment, StreamBase, StreamWeights};
use forestream_model::streams::{
    ADAPTER_FORMAT_VERSION, Adapter, AdapterConfig, BaseModel, LoraConfig, MainLoraConfig, Projection, StreamConfig,
    StreamIdentity, StreamPosition, TrainingMode,
};
use forestream_model::{Checkpoint, TokenId};

use crate::reference::Reference;

/// What a case switches on.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) model: &'static str,
    pub(crate) num_streams: usize,
    num_msa_layers: usize,
    position: StreamPosition,
    identity: StreamIdentity,
    token_conditioning: bool,
    sampler_size: Option<usize>,
    draft_vocabulary: &'static [TokenId],
    lora: Option<&'static [Projection]>,
    /// Top layers with changes of main rows; the mode is joint where there are any.
    main_layers: usize,
    /// By layer with streams, what they keep of its MLP; all where there is no list.
    inner_features: &'static [&'static [u32]],
}

/// Every switch in both positions, on models with and without biases, head norms, tied heads and shared kv heads.
pub(crate) const CASES: &[Options] = &[
    Options {
        model: "tiny-llama3-rope", // three layers, one kv head
        num_streams: 3,
        num_msa_layers: 2,
        position: StreamPosition::Following,
        identity: StreamIdentity::Embedding,
        token_conditioning: true,
        sampler_size: Some(8),
        draft_vocabulary: &[5, 1, 300, 17, 42],
        lora: Some(&Projection::ALL),
        main_layers: 0,
        inner_features: &[],
    },
    Options {
        model: "tiny-qwen3", // head norms
        num_streams: 2,
        num_msa_layers: 2,
        position: StreamPosition::Anchor,
        identity: StreamIdentity::Embedding,
        token_conditioning: true,
        sampler_size: Some(4),
        draft_vocabulary: &[],
        lora: Some(&Projection::ALL),
        main_layers: 0,
        inner_features: &[],
    },
    Options {
        model: "tiny-qwen2", // biases
        num_streams: 4,
        num_msa_layers: 1,
        position: StreamPosition::Following,
        identity: StreamIdentity::Embedding,
        token_conditioning: false,
        sampler_size: None,
        draft_vocabulary: &[319, 0],
        lora: Some(&[Projection::QProj, Projection::VProj]),
        main_layers: 0,
        inner_features: &[],
    },
    Options {
        model: "tiny-llama-untied",
        num_streams: 1,
        num_msa_layers: 2,
        position: StreamPosition::Following,
        identity: StreamIdentity::Embedding,
        token_conditioning: true,
        sampler_size: None,
        draft_vocabulary: &[7, 8, 9],
        lora: None,
        main_layers: 0,
        inner_features: &[],
    },
    Options {
        model: "tiny-mistral",
        num_streams: 3,
        num_msa_layers: 1,
        position: StreamPosition::Anchor,
        identity: StreamIdentity::Embedding,
        token_conditioning: false,
        sampler_size: Some(16),
        draft_vocabulary: &[],
        lora: None,
        main_layers: 0,
        inner_features: &[],
    },
    turned_by(0.5),
    Options {
        model: "tiny-qwen3", // narrow streams
        num_streams: 2,
        num_msa_layers: 2,
        position: StreamPosition::Following,
        identity: StreamIdentity::Embedding,
        token_conditioning: false,
        sampler_size: None,
        draft_vocabulary: &[5, 1, 300, 17, 42],
        lora: Some(&Projection::ALL),
        main_layers: 0,
        inner_features: &[&[1, 5, 40, 41, 42], &[0, 2, 3, 62, 63]],
    },
    Options {
        model: "tiny-qwen2", // no trained tensor at all; biases of values turn too
        num_streams: 2,
        num_msa_layers: 2,
        position: StreamPosition::Following,
        identity: StreamIdentity::ValueRotation { angle: 0.75 },
        token_conditioning: false,
        sampler_size: None,
        draft_vocabulary: &[],
        lora: None,
        main_layers: 0,
        inner_features: &[],
    },
];

/// Nothing but the rotation of values by `angle` tells these streams apart.
pub(crate) const fn turned_by(angle: f32) -> Options {
    Options {
        model: "tiny-llama3-rope",
        num_streams: 3,
        num_msa_layers: 2,
        position: StreamPosition::Anchor,
        identity: StreamIdentity::ValueRotation { angle },
        token_conditioning: false,
        sampler_size: None,
        draft_vocabulary: &[5, 1, 300, 17, 42],
        lora: Some(&Projection::ALL),
        main_layers: 0,
        inner_features: &[],
    }
}

/// Main rows change below the streams, and only where they are.
pub(crate) const JOINT_CASES: &[Options] = &[
    Options {
        model: "tiny-llama3-rope",
        num_streams: 2,
        num_msa_layers: 1,
        position: StreamPosition::Following,
        identity: StreamIdentity::Embedding,
        token_conditioning: true,
        sampler_size: Some(8),
        draft_vocabulary: &[5, 1, 300, 17, 42],
        lora: Some(&Projection::ALL),
        main_layers: 3,
        inner_features: &[],
    },
    Options {
        model: "tiny-qwen3",
        num_streams: 3,
        num_msa_layers: 2,
        position: StreamPosition::Anchor,
        identity: StreamIdentity::Embedding,
        token_conditioning: false,
        sampler_size: None,
        draft_vocabulary: &[],
        lora: Some(&[Projection::QProj, Projection::DownProj]),
        main_layers: 1,
        inner_features: &[],
    },
    Options {
        model: "tiny-mistral",
        num_streams: 2,
        num_msa_layers: 1,
        position: StreamPosition::Following,
        identity: StreamIdentity::ValueRotation { angle: 0.75 },
        token_conditioning: false,
        sampler_size: None,
        draft_vocabulary: &[],
        lora: None,
        main_layers: 2,
        inner_features: &[],
    },
];

/// A task, whose model has narrow streams.
pub(crate) const NARROW_JOINT: Options = Options {
    model: "tiny-llama3-rope",
    num_streams: 2,
    num_msa_layers: 2,
    position: StreamPosition::Following,
    identity: StreamIdentity::Embedding,
    token_conditioning: false,
    sampler_size: None,
    draft_vocabulary: &[5, 1, 300, 17, 42],
    lora: Some(&Projection::ALL),
    main_layers: 3,
    inner_features: &[&[1, 5, 40, 41, 42], &[0, 2, 3, 94, 95]],
};

/// A loaded base model with random trained weights.
pub(crate) struct Case {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) draft_vocabulary: &'static [TokenId],
    pub(crate) base: StreamBase,
    pub(crate) values: BTreeMap<String, Vec<f64>>,
    pub(crate) inner_features: Vec<Vec<u32>>,
    device: Device,
}

impl Case {
    pub(crate) fn new(options: &Options) -> Self {
        Self::on(&Device::flex(), options)
    }

    /// The same case on a device.
    pub(crate) fn on(device: &Device, options: &Options) -> Self {
        Self::changed(device, options, &|_| {})
    }

    /// The same case with an early exit.
    pub(crate) fn with_early_exit(options: &Options) -> Self {
        Self::changed(&Device::flex(), options, &|config| config.streams.early_exit_rank = Some(3))
    }

    fn changed(device: &Device, options: &Options, change: &dyn Fn(&mut AdapterConfig)) -> Self {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
        let checkpoint = Checkpoint::open(&models.join(options.model)).unwrap();
        let mut config = options.adapter(&checkpoint);
        change(&mut config);
        let draft_vocabulary = options.draft_vocabulary;
        let inner_features: Vec<Vec<u32>> = options.inner_features.iter().map(|features| features.to_vec()).collect();
        let mut base = StreamBase::load(&checkpoint, &config, draft_vocabulary, device).unwrap();
        if !inner_features.is_empty() && options.main_layers == 0 {
            base = base.narrowed_to(&inner_features);
        }
        let random = |(index, spec): (usize, forestream_model::streams::TensorSpec)| {
            let values = numbers(100 + index as u64, spec.shape[0] * spec.shape[1], 0.3);
            (spec.name, values.into_iter().map(f64::from).collect())
        };
        let values = config.tensors(checkpoint.config()).into_iter().enumerate().map(random).collect();
        Self { checkpoint, draft_vocabulary, base, values, inner_features, device: device.clone() }
    }

    /// The adapter as a file would hold it.
    pub(crate) fn adapter(&self) -> Adapter {
        Adapter {
            config: self.base.adapter().clone(),
            tensors: self.weights().values(),
            draft_vocabulary: self.draft_vocabulary.to_vec(),
            inner_features: self.inner_features.clone(),
        }
    }

    pub(crate) fn weights(&self) -> StreamWeights {
        let single = |(name, values): (&String, &Vec<f64>)| (name.clone(), values.iter().map(|&x| x as f32).collect());
        let values = self.values.iter().map(single).collect();
        StreamWeights::from_values(self.base.adapter(), self.base.decoder(), &values, &self.device)
    }

    /// Random states, keys and values of `num_positions` positions from `first_position` on.
    pub(crate) fn segment(&self, first_position: usize, num_positions: usize, seed: u64) -> Segment {
        let (decoder, streams) = (self.base.decoder(), &self.base.adapter().streams);
        let plane = decoder.num_key_value_heads * (first_position + num_positions) * decoder.head_dim;
        let planes = |kind: u64| {
            (0..streams.num_msa_layers as u64)
                .map(|layer| numbers(seed * 100 + kind * 10 + layer, plane, 1.5))
                .collect()
        };
        let tokens = numbers(seed * 100, num_positions + streams.num_streams, 1.0);
        Segment {
            first_position,
            boundary: numbers(seed * 100 + 1, num_positions * decoder.hidden_size, 1.0),
            tokens: tokens.into_iter().map(|x| ((x + 1.0) * 159.9) as TokenId).collect(),
            keys: planes(1),
            values: planes(2),
        }
    }

    pub(crate) fn reference<'a>(&'a self, segments: &'a [Segment]) -> Reference<'a> {
        Reference::new(&self.checkpoint, self.base.adapter(), (self.draft_vocabulary, &self.inner_features), segments)
    }
}

impl Options {
    fn adapter(&self, checkpoint: &Checkpoint) -> AdapterConfig {
        let base_model = BaseModel {
            name: self.model.to_owned(),
            fingerprint: checkpoint.fingerprint(),
            architecture: checkpoint.config().architecture.clone(),
        };
        AdapterConfig {
            format_version: ADAPTER_FORMAT_VERSION,
            base_model,
            mode: if self.main_layers > 0 { TrainingMode::Joint } else { TrainingMode::Lossless },
            streams: StreamConfig {
                num_streams: self.num_streams,
                num_msa_layers: self.num_msa_layers,
                position: self.position,
                identity: self.identity,
                token_conditioning: self.token_conditioning,
                sampler_size: self.sampler_size,
                intermediate_size: self.inner_features.first().map(|features| features.len()),
                draft_vocab_size: (!self.draft_vocabulary.is_empty()).then_some(self.draft_vocabulary.len()),
                early_exit_rank: None,
            },
            lora: self.lora.map(|targets| LoraConfig { rank: 3, alpha: 4.5, target_modules: targets.to_vec() }),
            main_lora: (self.main_layers > 0).then(|| MainLoraConfig {
                num_layers: self.main_layers,
                lora: LoraConfig { rank: 2, alpha: 3.0, target_modules: Projection::ALL.to_vec() },
            }),
            calibration: Vec::new(),
        }
    }
}

/// `count` numbers in `[-size, size)`.
pub(crate) fn numbers(seed: u64, count: usize, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0) * size
    };
    (0..count).map(|_| next()).collect()
}
