//! Hugging Face directories: configurations old and new, single files and shards, and what can be wrong with them.

use std::path::Path;

use forestream_kernels::formats::Format;
use forestream_model::{Checkpoint, RopeScaling, RopeStyle};
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::{assert_says, f32_bytes, open_error, values};

/// A model as files: `config.json`, and tensors by name.
struct Model {
    config: Value,
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
}

impl Model {
    /// One layer, hidden size 8, two heads that share one key/value head, tied LM head.
    fn llama() -> Self {
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": 6,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 50000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": true,
            "eos_token_id": 2,
        });
        let mut model = Self { config, tensors: Vec::new() };
        model.add("model.embed_tokens.weight", &[6, 8]);
        model.add("model.norm.weight", &[8]);
        model.add_to_layer("input_layernorm.weight", &[8]);
        model.add_to_layer("self_attn.q_proj.weight", &[8, 8]);
        model.add_to_layer("self_attn.k_proj.weight", &[4, 8]);
        model.add_to_layer("self_attn.v_proj.weight", &[4, 8]);
        model.add_to_layer("self_attn.o_proj.weight", &[8, 8]);
        model.add_to_layer("post_attention_layernorm.weight", &[8]);
        model.add_to_layer("mlp.gate_proj.weight", &[12, 8]);
        model.add_to_layer("mlp.up_proj.weight", &[12, 8]);
        model.add_to_layer("mlp.down_proj.weight", &[8, 12]);
        model
    }

    fn set(&mut self, key: &str, value: Value) {
        self.config[key] = value;
    }

    fn unset(&mut self, key: &str) {
        self.config.as_object_mut().unwrap().remove(key);
    }

    fn add(&mut self, name: &str, shape: &[usize]) {
        let bytes = f32_bytes(&values(shape.iter().product(), self.tensors.len()));
        self.tensors.push((name.to_owned(), Dtype::F32, shape.to_vec(), bytes));
    }

    fn add_to_layer(&mut self, name: &str, shape: &[usize]) {
        self.add(&format!("model.layers.0.{name}"), shape);
    }

    fn remove(&mut self, name: &str) {
        self.tensors.retain(|(other, ..)| !other.ends_with(name));
    }

    /// The tensors whose names satisfy `is_in`, as a safetensors file.
    fn safetensors(&self, is_in: impl Fn(&str) -> bool) -> Vec<u8> {
        let views =
            self.tensors.iter().filter(|(name, ..)| is_in(name)).map(|(name, dtype, shape, bytes)| {
                (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
            });
        safetensors::serialize(views, None).unwrap()
    }

    fn write(&self, directory: &Path) {
        std::fs::write(directory.join("config.json"), self.config.to_string()).unwrap();
        std::fs::write(directory.join("model.safetensors"), self.safetensors(|_| true)).unwrap();
    }

    /// Two shards and their index: layers in the second one.
    fn write_shards(&self, directory: &Path) -> Value {
        let is_layer = |name: &str| name.starts_with("model.layers.");
        std::fs::write(directory.join("config.json"), self.config.to_string()).unwrap();
        std::fs::write(directory.join("first.safetensors"), self.safetensors(|name| !is_layer(name))).unwrap();
        std::fs::write(directory.join("second.safetensors"), self.safetensors(is_layer)).unwrap();
        let mut index = json!({ "metadata": { "total_size": 0 }, "weight_map": {} });
        for (name, ..) in &self.tensors {
            let shard = if is_layer(name) { "second.safetensors" } else { "first.safetensors" };
            index["weight_map"][name] = shard.into();
        }
        write_index(directory, &index);
        index
    }

    fn open(&self) -> Checkpoint {
        let directory = tempdir().unwrap();
        self.write(directory.path());
        Checkpoint::open(directory.path()).unwrap()
    }
}

fn write_index(directory: &Path, index: &Value) {
    std::fs::write(directory.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn a_single_file_opens_by_directory_and_by_name() {
    let directory = tempdir().unwrap();
    Model::llama().write(directory.path());
    for path in [directory.path().to_owned(), directory.path().join("model.safetensors")] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.path(), directory.path());
        let config = checkpoint.config();
        assert_eq!((config.architecture.as_str(), config.head_dim, config.vocab_size), ("llama", 4, 6));
        assert_eq!((config.rope.theta, config.rope.style), (50_000.0, RopeStyle::Halves));
        assert_eq!(checkpoint.weight("model.layers.0.mlp.down_proj.weight").unwrap().to_f32(), values(96, 10));
        assert!(checkpoint.gguf().is_none());
        assert_eq!(checkpoint.contents().tensors().len(), 11);
    }
}

#[test]
fn shards_are_joined() {
    let directory = tempdir().unwrap();
    let model = Model::llama();
    model.write_shards(directory.path());
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    assert_eq!(checkpoint.weight("model.norm.weight").unwrap().to_f32(), values(8, 1));
    assert_eq!(checkpoint.weight("model.layers.0.mlp.down_proj.weight").unwrap().to_f32(), values(96, 10));
    assert_eq!(checkpoint.fingerprint(), model.open().fingerprint(), "shards play no part in the identity");
}

#[test]
fn a_shard_opens_its_checkpoint_and_another_file_itself() {
    let directory = tempdir().unwrap();
    let mut model = Model::llama();
    model.write_shards(directory.path());
    let by_shard = Checkpoint::open(&directory.path().join("second.safetensors")).unwrap();
    assert_eq!(by_shard.weight("model.norm.weight").unwrap().to_f32(), values(8, 1));

    model.remove("model.norm.weight");
    model.add("model.norm.weight", &[8]);
    let other = directory.path().join("other.safetensors");
    std::fs::write(&other, model.safetensors(|_| true)).unwrap();
    let by_name = Checkpoint::open(&other).unwrap();
    assert_eq!(by_name.weight("model.norm.weight").unwrap().to_f32(), values(8, 10));
}

#[test]
fn checkpoints_of_transformers_open() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let mut architectures: Vec<String> = std::fs::read_dir(models)
        .unwrap()
        .map(|entry| Checkpoint::open(&entry.unwrap().path()).unwrap().config().architecture.clone())
        .collect();
    architectures.sort();
    architectures.dedup();
    assert_eq!(architectures, ["llama", "qwen2", "qwen3"]);
}

#[test]
fn half_precision_weights_are_read() {
    let mut model = Model::llama();
    let numbers = [0.5_f32, -1.25, 3.0, 0.0, -2.0, 1.5, 0.25, 8.0];
    let half: Vec<u8> = numbers.iter().flat_map(|&number| f16::from_f32(number).to_le_bytes()).collect();
    let brain: Vec<u8> = numbers.iter().flat_map(|&number| bf16::from_f32(number).to_le_bytes()).collect();
    model.remove("norm.weight");
    model.tensors.push(("model.norm.weight".into(), Dtype::F16, vec![8], half));
    model.tensors.push(("model.layers.0.input_layernorm.weight".into(), Dtype::BF16, vec![8], brain));
    model.add_to_layer("post_attention_layernorm.weight", &[8]);
    model.set("tie_word_embeddings", false.into());
    model.add("lm_head.weight", &[6, 8]);
    let checkpoint = model.open();
    for (name, format) in [("model.norm.weight", Format::F16), ("model.layers.0.input_layernorm.weight", Format::BF16)]
    {
        let weight = checkpoint.weight(name).unwrap();
        assert_eq!((weight.format, weight.to_f32()), (format, numbers.to_vec()));
    }
    assert!(!checkpoint.config().tie_word_embeddings && checkpoint.has("lm_head.weight"));
}

#[test]
fn configurations_old_and_new() {
    let llama3 = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };
    let llama3_keys = json!({
        "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
    });
    let with = |mut object: Value, key: &str, value: Value| {
        object[key] = value;
        object
    };
    let cases = [
        ("rope_scaling", json!(null), RopeScaling::None, 50_000.0),
        ("rope_scaling", with(llama3_keys.clone(), "rope_type", "llama3".into()), llama3.clone(), 50_000.0),
        ("rope_scaling", json!({ "type": "linear", "factor": 2.0 }), RopeScaling::Linear { factor: 2.0 }, 50_000.0),
        ("rope_parameters", json!({ "rope_type": "default", "rope_theta": 7.0 }), RopeScaling::None, 7.0),
        (
            "rope_parameters",
            with(with(llama3_keys, "rope_type", "llama3".into()), "rope_theta", 500_000.0.into()),
            llama3,
            500_000.0,
        ),
    ];
    for (key, value, scaling, theta) in cases {
        let mut model = Model::llama();
        model.set(key, value.clone());
        let checkpoint = model.open();
        assert_eq!((&checkpoint.config().rope.scaling, checkpoint.config().rope.theta), (&scaling, theta), "{value}");
    }
}

#[test]
fn architectures_have_their_switches() {
    let mut mistral = Model::llama();
    mistral.set("architectures", json!(["MistralForCausalLM"]));
    mistral.set("sliding_window", 32.into());
    assert_eq!(mistral.open().config().max_position_embeddings, 32);

    let mut qwen2 = Model::llama();
    qwen2.unset("architectures");
    qwen2.set("model_type", "qwen2".into());
    qwen2.set("sliding_window", 32.into());
    qwen2.set("use_sliding_window", false.into());
    for (name, len) in [("q", 8), ("k", 4), ("v", 4)] {
        qwen2.add_to_layer(&format!("self_attn.{name}_proj.bias"), &[len]);
    }
    let qwen2 = qwen2.open();
    assert!(qwen2.config().has_qkv_bias);
    assert_eq!(qwen2.config().max_position_embeddings, 64, "the window is switched off");

    let mut qwen3 = Model::llama();
    qwen3.set("architectures", json!(["Qwen3ForCausalLM"]));
    qwen3.set("head_dim", 6.into());
    for (name, rows, cols) in [("q", 12, 8), ("k", 6, 8), ("v", 6, 8), ("o", 8, 12)] {
        qwen3.remove(&format!("{name}_proj.weight"));
        qwen3.add_to_layer(&format!("self_attn.{name}_proj.weight"), &[rows, cols]);
    }
    qwen3.add_to_layer("self_attn.q_norm.weight", &[6]);
    qwen3.add_to_layer("self_attn.k_norm.weight", &[6]);
    let qwen3 = qwen3.open();
    assert_eq!((qwen3.config().head_dim, qwen3.config().has_qk_norm), (6, true));
}

#[test]
fn generation_config_counts_before_config() {
    let directory = tempdir().unwrap();
    Model::llama().write(directory.path());
    let defaults = Checkpoint::open(directory.path()).unwrap().generation_defaults().clone();
    assert_eq!((defaults.eos_token_ids, defaults.temperature), (vec![2], None));

    let with = |generation: Value| {
        std::fs::write(directory.path().join("generation_config.json"), generation.to_string()).unwrap();
        Checkpoint::open(directory.path()).unwrap().generation_defaults().clone()
    };
    let defaults =
        with(json!({ "eos_token_id": [4, 5], "bos_token_id": 1, "temperature": 0.7, "top_k": 20, "top_p": 0.8 }));
    assert_eq!((defaults.bos_token_id, defaults.eos_token_ids), (Some(1), vec![4, 5]));
    assert_eq!((defaults.temperature, defaults.top_k, defaults.top_p), (Some(0.7), Some(20), Some(0.8)));
    assert_eq!((defaults.min_p, defaults.repetition_penalty), (None, None));

    let defaults = with(json!({ "do_sample": false, "temperature": 0.7, "min_p": 0.1, "repetition_penalty": 1.1 }));
    assert_eq!((defaults.temperature, defaults.min_p, defaults.repetition_penalty), (Some(0.0), Some(0.1), Some(1.1)));
}

#[test]
fn suggested_settings_out_of_range_are_refused() {
    let directory = tempdir().unwrap();
    Model::llama().write(directory.path());
    let error = |generation: Value| {
        std::fs::write(directory.path().join("generation_config.json"), generation.to_string()).unwrap();
        Checkpoint::open(directory.path()).map(drop)
    };
    let cases = [
        ("top_p", json!(0), "above 0 and at most 1"),
        ("top_p", json!(1.5), "above 0 and at most 1"),
        ("temperature", json!(-1), "0 or more"),
        ("temperature", json!(1e300), "0 or more"),
        ("repetition_penalty", json!(0), "above 0"),
        ("min_p", json!(2), "from 0 to 1"),
    ];
    for (key, value, expected) in cases {
        let message = error(json!({ key: value })).unwrap_err().to_string();
        for part in
            ["generation_config.json", &format!("`{key}` is {:?}", value.as_f64().unwrap()), expected, "remove it"]
        {
            assert!(message.contains(part), "{message}");
        }
    }
    error(json!({ "top_p": 1.0, "temperature": 0, "repetition_penalty": 0.5, "min_p": 0 })).unwrap();
    error(json!({ "do_sample": false, "temperature": -1 })).unwrap();
}

#[test]
fn wrong_models_are_refused() {
    type Case = (&'static str, fn(&mut Model), &'static [&'static str]);
    let cases: &[Case] = &[
        (
            "unknown architecture",
            |model| model.set("architectures", json!(["GemmaForCausalLM"])),
            &[
                "`GemmaForCausalLM` is not supported",
                "LlamaForCausalLM",
                "MistralForCausalLM",
                "Qwen2ForCausalLM",
                "Qwen3ForCausalLM",
            ],
        ),
        (
            "unknown model type",
            |model| {
                model.unset("architectures");
                model.set("model_type", "gpt2".into());
            },
            &["`gpt2` is not supported"],
        ),
        ("no architecture", |model| model.unset("architectures"), &["`architectures` is missing"]),
        ("missing key", |model| model.unset("hidden_size"), &["config.json", "`hidden_size` is missing"]),
        (
            "key of another type",
            |model| model.set("hidden_size", "8".into()),
            &["config.json", "`hidden_size`", "whole number", "\"8\""],
        ),
        ("fraction", |model| model.set("num_hidden_layers", 1.5.into()), &["`num_hidden_layers`", "1.5"]),
        ("zero", |model| model.set("intermediate_size", 0.into()), &["intermediate_size is 0"]),
        ("heads that do not divide", |model| model.set("num_attention_heads", 3.into()), &["8 is not a multiple of 3"]),
        ("activation", |model| model.set("hidden_act", "gelu".into()), &["`gelu`", "silu"]),
        (
            "quantized",
            |model| model.set("quantization_config", json!({ "quant_method": "gptq" })),
            &["quantization_config", "GGUF"],
        ),
        (
            "scaling",
            |model| model.set("rope_scaling", json!({ "rope_type": "yarn", "factor": 4.0 })),
            &["`yarn` is not supported", "llama3"],
        ),
        (
            "scaling without factor",
            |model| model.set("rope_scaling", json!({ "type": "linear" })),
            &["`rope_scaling.factor` is missing"],
        ),
        ("partial rotation", |model| model.set("partial_rotary_factor", 0.5.into()), &["partial_rotary_factor"]),
        ("token id", |model| model.set("eos_token_id", (1_u64 << 40).into()), &["`eos_token_id`", "no token id"]),
        (
            "missing tensor",
            |model| model.remove("o_proj.weight"),
            &["`model.layers.0.self_attn.o_proj.weight` is missing"],
        ),
        ("missing head", |model| model.set("tie_word_embeddings", false.into()), &["`lm_head.weight` is missing"]),
        (
            "shape",
            |model| model.set("vocab_size", 7.into()),
            &["model.safetensors", "`model.embed_tokens.weight`", "[6, 8]", "[7, 8]"],
        ),
        (
            "another model's tensor",
            |model| model.add_to_layer("self_attn.o_proj.bias", &[8]),
            &["`model.layers.0.self_attn.o_proj.bias` has no place"],
        ),
        ("type", |model| model.tensors.push(("x".into(), Dtype::F64, vec![1], vec![0; 8])), &["`x`", "F64", "BF16"]),
    ];
    let directory = tempdir().unwrap();
    for (case, change, expected) in cases {
        let mut model = Model::llama();
        change(&mut model);
        model.write(directory.path());
        assert_says(case, &open_error(directory.path()), directory.path(), expected);
    }
}

#[test]
fn wrong_indices_are_refused() {
    let opened = |change: &dyn Fn(&Path, &mut Value)| {
        let directory = tempdir().unwrap();
        let mut index = Model::llama().write_shards(directory.path());
        change(directory.path(), &mut index);
        write_index(directory.path(), &index);
        (open_error(directory.path()), directory)
    };
    let check = |case: &str, (error, directory): (String, TempDir), expected: &[&str]| {
        assert_says(case, &error, directory.path(), expected);
    };
    let remove =
        |name: &'static str| move |directory: &Path, _: &mut Value| std::fs::remove_file(directory.join(name)).unwrap();
    let place =
        |shard: Value| move |_: &Path, index: &mut Value| index["weight_map"]["model.norm.weight"] = shard.clone();

    check("missing shard", opened(&remove("second.safetensors")), &["index.json", "second.safetensors", "missing"]);
    check(
        "wrong shard",
        opened(&place("second.safetensors".into())),
        &["`model.norm.weight` is in second.safetensors", "not there"],
    );
    check("outside", opened(&place("../first.safetensors".into())), &["`model.norm.weight`", "file in this directory"]);
    check("absolute", opened(&place("/first.safetensors".into())), &["file in this directory"]);
    check("not a name", opened(&place(3.into())), &["file in this directory", "got 3"]);
    check("no map", opened(&|_, index| *index = json!({})), &["`weight_map` is missing"]);
    check("no object", opened(&|_, index| *index = json!([])), &["expected a JSON object"]);
    let twice = |directory: &Path, _: &mut Value| {
        std::fs::write(directory.join("second.safetensors"), Model::llama().safetensors(|_| true)).unwrap();
    };
    check("tensor twice", opened(&twice), &["again in", "second.safetensors"]);
}

#[test]
fn wrong_directories_are_refused() {
    let directory = tempdir().unwrap();
    let path = directory.path();
    let model = Model::llama();
    assert_says("empty", &open_error(path), path, &["no config.json", ".gguf"]);
    std::fs::write(path.join("config.json"), "{ \"hidden_size\": ").unwrap();
    std::fs::write(path.join("model.safetensors"), model.safetensors(|_| true)).unwrap();
    assert_says("broken JSON", &open_error(path), &path.join("config.json"), &["not valid JSON"]);
    std::fs::write(path.join("config.json"), model.config.to_string()).unwrap();
    std::fs::remove_file(path.join("model.safetensors")).unwrap();
    assert_says("no weights", &open_error(path), path, &["neither model.safetensors nor model.safetensors.index.json"]);
}

#[test]
fn every_shorter_safetensors_file_is_refused() {
    let directory = tempdir().unwrap();
    let model = Model::llama();
    model.write(directory.path());
    let (bytes, path) = (model.safetensors(|_| true), directory.path().join("model.safetensors"));
    for len in (0..bytes.len()).step_by(13) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert_says(&format!("{len} bytes"), &open_error(directory.path()), &path, &["not a valid safetensors file"]);
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        damages_config in any::<bool>(),
    ) {
        let directory = tempdir().unwrap();
        let model = Model::llama();
        model.write(directory.path());
        let mut bytes = if damages_config { model.config.to_string().into() } else { model.safetensors(|_| true) };
        let damaged_len = bytes.len().min(1200); // the header of the weights
        for (index, value) in damage {
            bytes[index.index(damaged_len)] = value;
        }
        let name = if damages_config { "config.json" } else { "model.safetensors" };
        std::fs::write(directory.path().join(name), bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(directory.path()) {
            checkpoint.fingerprint();
            checkpoint.weight("model.norm.weight").unwrap().to_f32();
        }
    }
}
