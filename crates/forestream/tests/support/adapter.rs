//! A random adapter for a small model: it drafts badly, and must not change a token all the same.

use std::path::Path;

use forestream_model::Checkpoint;
use forestream_model::streams::{
    ADAPTER_FORMAT_VERSION, Adapter, AdapterConfig, BaseModel, LoraConfig, Projection, StreamConfig, StreamIdentity,
    StreamPosition, TrainingMode,
};

/// Writes an adapter for the model at `model` into `directory`.
pub(crate) fn write_random_adapter(model: &Path, directory: &Path) {
    let checkpoint = Checkpoint::open(model).unwrap();
    let base = checkpoint.config();
    let config = AdapterConfig {
        format_version: ADAPTER_FORMAT_VERSION,
        base_model: BaseModel {
            name: "tiny".to_owned(),
            fingerprint: checkpoint.fingerprint(),
            architecture: base.architecture.clone(),
        },
        mode: TrainingMode::Lossless,
        streams: StreamConfig {
            num_streams: 3,
            num_msa_layers: 1,
            position: StreamPosition::Following,
            identity: StreamIdentity::Embedding,
            token_conditioning: false, // so that the fused pass can run
            sampler_size: Some(8),
            intermediate_size: None,
            draft_vocab_size: Some(base.vocab_size.min(200)),
            early_exit_rank: Some(2),
        },
        lora: Some(LoraConfig { rank: 2, alpha: 4.0, target_modules: Projection::ALL.to_vec() }),
        main_lora: None,
        calibration: Vec::new(),
    };
    let mut noise = 1_u32;
    let mut random = || {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 20) as f32 / 4096.0 - 0.5
    };
    let tensors = config.tensors(base).into_iter().map(|spec| {
        let values = (0..spec.shape[0] * spec.shape[1]).map(|_| 0.2 * random()).collect();
        (spec.name, values)
    });
    let tensors = tensors.collect();
    let draft_vocabulary = (0..base.vocab_size.min(200) as u32).rev().collect();
    Adapter { config, tensors, draft_vocabulary, inner_features: Vec::new() }.save(directory, base).unwrap();
}
