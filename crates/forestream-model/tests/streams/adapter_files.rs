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
        ("\"mode\": \"lossless\"", "\"mode\": \"joint\"", "mode `joint` to main_lora"),
        (
            "\"token_conditioning\": true",
            "\"token_conditioning\": false",
            "`token_conditioning.weight` does not belong",
        ),
        ("\"rank\": 2", "\"rank\": 4611686018427387904", "a rank from 1 to 4096"),
        ("\"q_proj\"", "\"q_proj\", \"q_proj\"", "target_modules, each once"),
        ("\"sampler_size\": ", "\"sampler_size\": 99999", "sampler_size must be from 1 to 4096"),
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
    let mut twice = good.clone();
    twice.draft_vocabulary[1] = twice.draft_vocabulary[0];
    twice.save(folder.path(), base).unwrap();
    assert!(message(&fingerprint).contains("names token"), "{}", message(&fingerprint));
}

#[test]
fn weights_that_are_no_numbers_are_neither_written_nor_read() {
    let checkpoint = Checkpoint::open(&directory("tiny-llama")).unwrap();
    let (base, fingerprint) = (checkpoint.config(), checkpoint.fingerprint());
    let good = adapter(config(&checkpoint, 4, 2), base, 0.5);
    let folder = tempfile::tempdir().unwrap();
    for value in [f32::NAN, f32::INFINITY, 70_000.0] {
        let mut diverged = good.clone();
        diverged.tensors.get_mut("stream_embeddings").unwrap()[3] = value;
        let error = diverged.save(folder.path(), base).unwrap_err().to_string();
        assert!(error.contains("`stream_embeddings`") && error.contains("lower --lr"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is written");
    }
    good.save(folder.path(), base).unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let header_len = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..header_len]).unwrap();
    let start = header["stream_embeddings"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[header_len + start + 6..][..2].copy_from_slice(&0x7e00_u16.to_le_bytes()); // no number, in half precision
    std::fs::write(&path, bytes).unwrap();
    let error = Adapter::open(folder.path(), base, &fingerprint).unwrap_err().to_string();
    assert!(error.contains("element 3 of the tensor `stream_embeddings`"), "{error}");
}
