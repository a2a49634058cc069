//! A random adapter for a small model: it drafts badly, and must not change a token all the same.

use std::path::Path;

use forestream_model::Checkpoint;
use forestream_model::streams::{
    ADAPTER_FORMAT_VERSION, Adapter, AdapterConfig, BaseModel, LoraConfig, MainLoraConfig, Projection, StreamConfig,
    StreamIdentity, StreamPosition, TrainingMode,
};

/// Writes an adapter with three streams for the model at `model` into `directory`.
pub(crate) fn write_random_adapter(model: &Path, directory: &Path) {
    write_random_streams(model, 3, TrainingMode::Lossless, directory);
}

/// The same, with so many streams; in joint mode main rows are changed too.
pub(crate) fn write_random_streams(model: &Path, num_streams: usize, mode: TrainingMode, directory: &Path) {
    let checkpoint = Checkpoint::open(model).unwrap();
    let base = checkpoint.config();
    let lora = LoraConfig { rank: 2, alpha: 4.0, target_modules: Projection::ALL.to_vec() };
    let config = AdapterConfig {
        format_version: ADAPTER_FORMAT_VERSION,
        base_model: BaseModel {
            name: "tiny".to_owned(),
            fingerprint: checkpoint.fingerprint(),
            architecture: base.architecture.clone(),
        },
        mode,
        streams: StreamConfig {
            num_streams,
            num_msa_layers: 1,
            position: StreamPosition::Following,
            identity: StreamIdentity::Embedding,
            token_conditioning: false, // so that the fused pass can run
            sampler_size: Some(8),
            intermediate_size: None,
            draft_vocab_size: Some(base.vocab_size.min(200)),
            early_exit_rank: Some(2),
        },
        main_lora: (mode == TrainingMode::Joint).then(|| MainLoraConfig { num_layers: 2, lora: lora.clone() }),
        lora: Some(lora),
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
