//! Adapters on disk: what comes back, and what is refused.

use forestream_model::Checkpoint;
use forestream_model::streams::Adapter;

use crate::{adapter, config, directory};

#[test]
fn a_wrong_or_damaged_adapter_is_refused_with_its_place() {
    let checkpoint = Checkpoint::open(&directory("tiny-llama")).unwrap();
    let (base, fingerprint) = (checkpoint.config(), checkpoint.fingerprint());
    let good = adapter(config(&checkpoint, 4, 2), base, 0.5);
    let folder = tempfile::tempdir().unwrap();
    let (config_file, weights) =
        (folder.path().join("adapter_config.json"), folder.path().join("adapter_model.safetensors"));
    let message = |fingerprint: &str| Adapter::open(folder.path(), base, fingerprint).unwrap_err().to_string();

    assert!(message(&fingerprint).contains("adapter_config.json"), "nothing is there yet");
    good.save(folder.path(), base).unwrap();
    assert!(message("another").contains("was trained for `tiny`"));

    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    assert!(message(&fingerprint).contains("adapter_model.safetensors"));

    good.save(folder.path(), base).unwrap();
    let text = std::fs::read_to_string(&config_file).unwrap();
    for (from, to, expected) in [
        ("\"num_streams\": 4", "\"num_streams\": 5", "`stream_embeddings` should be [5, "),
        ("\"num_streams\": 4", "\"num_streams\": 0", "num_streams must be from 1 to 16"),
        ("\"num_msa_layers\": 2", "\"num_msa_layers\": 99", "num_msa_layers must be from 1 to"),
        ("\"format_version\": 1", "\"format_version\": 2", "format_version must be 1"),
        ("\"rank\": 2", "\"rank\": 3", "lora_A.weight` should be [3, "),
        ("\"draft_vocab_size\": 20", "\"draft_vocab_size\": 21", "`draft_vocabulary` should be U32 [21]"),
        ("\"mode\": \"lossless\"", "\"mode\": \"fast\"", "unknown variant `fast`"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&config_file, text.replace(from, to)).unwrap();
        assert!(message(&fingerprint).contains(expected), "{}", message(&fingerprint));
    }
    std::fs::write(&config_file, &text).unwrap();
    let mut narrow = config(&checkpoint, 4, 2);
    narrow.streams.intermediate_size = Some(8);
    let narrow = adapter(narrow, base, 0.5);
    narrow.save(folder.path(), base).unwrap();
    assert_eq!(Adapter::open(folder.path(), base, &fingerprint).unwrap().inner_features, narrow.inner_features);
    let inner = base.intermediate_size as u32;
    for (features, expected) in [
        (vec![], "`inner_features` is missing".to_owned()),
        (vec![(0..8).collect()], "`inner_features` should be U32 [2, 8]".to_owned()),
        (vec![(0..8).collect(), (inner - 7..=inner).collect()], format!("names inner feature {inner}")),
        (vec![(0..8).collect(), (0..8).rev().collect()], "row 1 of the tensor `inner_features`".to_owned()),
    ] {
        Adapter { inner_features: features, ..narrow.clone() }.save(folder.path(), base).unwrap();
        assert!(message(&fingerprint).contains(&expected), "{expected}: {}", message(&fingerprint));
    }
    let mut broken = good.clone();
    broken.tensors.get_mut("stream_embeddings").unwrap()[3] = f32::NAN;
    broken.save(folder.path(), base).unwrap();
    assert!(message(&fingerprint).contains("element 3 of the tensor `stream_embeddings`"));
}
