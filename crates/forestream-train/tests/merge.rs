//! A merged model against its base with the adapter.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::path::{Path, PathBuf};

use forestream_model::streams::{
    ADAPTER_FORMAT_VERSION, Adapter, AdapterConfig, BaseModel, LoraConfig, MainLoraConfig, Projection, StreamConfig,
    StreamIdentity, StreamPosition, TrainingMode,
};
use forestream_model::{Checkpoint, CpuModel, Hidden, LoadOptions, Model, Outputs, Row, TokenTree};
use forestream_train::merge;

use support::names;

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models").join(name)
}

/// An adapter whose changes are as large as the weights.
fn adapter(base: &Checkpoint, mode: TrainingMode) -> Adapter {
    let decoder = base.config();
    let lora = LoraConfig { rank: 2, alpha: 4.0, target_modules: Projection::ALL.to_vec() };
    let config = AdapterConfig {
        format_version: ADAPTER_FORMAT_VERSION,
        base_model: BaseModel {
            name: "tiny".to_owned(),
            fingerprint: base.fingerprint(),
            architecture: decoder.architecture.clone(),
        },
        mode,
        streams: StreamConfig {
            num_streams: 1,
            num_msa_layers: 1,
            position: StreamPosition::Following,
            identity: StreamIdentity::Embedding,
            token_conditioning: false,
            sampler_size: None,
            intermediate_size: None,
            draft_vocab_size: None,
            early_exit_rank: None,
        },
        lora: None,
        main_lora: (mode == TrainingMode::Joint).then_some(MainLoraConfig { num_layers: 1, lora }),
        calibration: Vec::new(),
    };
    let values = |len: usize| (0..len).map(|i| (0.7 * i as f32).sin() * 0.15).collect();
    let tensors =
        config.tensors(decoder).into_iter().map(|spec| (spec.name, values(spec.shape[0] * spec.shape[1]))).collect();
    Adapter { config, tensors, draft_vocabulary: Vec::new(), inner_features: Vec::new() }
}

fn logits(model: &CpuModel) -> Vec<f32> {
    let tokens: Vec<u32> = (1..20).map(|i| i * 13).collect();
    let (mut cache, tree, mut hidden) = (model.new_cache(64), TokenTree::chain(&tokens), Hidden::new());
    model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }], &mut hidden).unwrap();
    let mut logits = Vec::new();
    model.logits(&hidden, 0..tokens.len(), &mut logits);
    logits
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn a_merged_model_is_the_base_with_its_adapter() {
    for name in ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-llama-untied", "tiny-llama3-rope"] {
        let base = Checkpoint::open(&model(name)).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let adapter = adapter(&base, TrainingMode::Joint);
        let names = merge(&base, &adapter, directory.path()).unwrap();
        assert!(names.iter().any(|name| name == "tokenizer.json"), "{name}: {names:?}");

        let plain = CpuModel::load(&base, LoadOptions::default()).unwrap();
        let mut attached = CpuModel::load(&base, LoadOptions::default()).unwrap();
        attached.attach(adapter, &base).unwrap();
        let merged = Checkpoint::open(directory.path()).unwrap();
        assert_eq!(merged.config(), base.config(), "{name}");
        let merged = logits(&CpuModel::load(&merged, LoadOptions::default()).unwrap());
        let error = difference(&merged, &logits(&attached));
        assert!(error < 5e-3, "{name}: {error}");
        assert!(difference(&merged, &logits(&plain)) > 0.05, "{name}: the adapter changes the model");
    }
}

#[test]
fn what_cannot_be_merged_is_said() {
    let base = Checkpoint::open(&model("tiny-llama")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let said = |mode, output: &Path| merge(&base, &adapter(&base, mode), output).unwrap_err().to_string();
    assert!(said(TrainingMode::Lossless, directory.path()).contains("--mode joint"));
    std::fs::write(directory.path().join("model.safetensors"), b"mine").unwrap();
    assert!(said(TrainingMode::Joint, directory.path()).contains("choose another directory"));
    let file = directory.path().join("model.safetensors");
    assert!(said(TrainingMode::Joint, &file).contains("cannot write"));
}

#[test]
fn a_merge_that_fails_leaves_nothing_behind_and_can_be_repeated() {
    let base = Checkpoint::open(&model("tiny-llama")).unwrap();
    let adapter = adapter(&base, TrainingMode::Joint);
    for blocked in ["config.partial", "tokenizer.partial", "model.partial"] {
        let directory = tempfile::tempdir().unwrap();
        let in_the_way = directory.path().join(blocked);
        std::fs::create_dir_all(in_the_way.join("full")).unwrap();
        let error = merge(&base, &adapter, directory.path()).unwrap_err().to_string();
        assert!(error.contains("cannot write") && error.contains("--output"), "{blocked}: {error}");
        assert_eq!(names(directory.path()), [blocked]);
        std::fs::remove_dir_all(&in_the_way).unwrap();
        merge(&base, &adapter, directory.path()).unwrap();
        Checkpoint::open(directory.path()).unwrap();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_keeps_no_part_of_the_weights() {
    let base = Checkpoint::open(&model("tiny-llama")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", directory.path().join("model.partial")).unwrap();
    let error = merge(&base, &adapter(&base, TrainingMode::Joint), directory.path()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("No space left"), "{error}: {cause}");
    assert_eq!(names(directory.path()), [""; 0]);
}

#[test]
fn files_of_another_model_are_never_written_over() {
    let base = Checkpoint::open(&model("tiny-llama")).unwrap();
    for name in ["model-00001-of-00002.safetensors", "config.json", "tokenizer.json"] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(name), b"mine").unwrap();
        let error = merge(&base, &adapter(&base, TrainingMode::Joint), directory.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("{name} exists; choose another directory")), "{error}");
        assert_eq!(std::fs::read(directory.path().join(name)).unwrap(), b"mine");
        assert_eq!(names(directory.path()), [name]);
    }
}
