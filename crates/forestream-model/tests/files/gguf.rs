//! Well-formed GGUF files.

use forestream_kernels::formats::Format;
use forestream_model::weights::{Contents, GgufArray, GgufValue};
use forestream_model::{Checkpoint, DecoderConfig, RopeConfig, RopeScaling, RopeStyle};
use tempfile::tempdir;

use super::gguf_writer::{GgufWriter, HIDDEN, INTERMEDIATE, KV_SIZE, VOCAB, Value};
use super::{f32_bytes, values};

fn open(writer: &GgufWriter) -> Checkpoint {
    let directory = tempdir().unwrap();
    Checkpoint::open(&writer.write(directory.path())).unwrap()
}

fn tiny_config() -> DecoderConfig {
    DecoderConfig {
        architecture: "llama".into(),
        hidden_size: HIDDEN,
        intermediate_size: INTERMEDIATE,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 4,
        vocab_size: VOCAB,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope: RopeConfig { theta: 50_000.0, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        tie_word_embeddings: true,
        has_qkv_bias: false,
        has_qk_norm: false,
    }
}

#[test]
fn metadata_becomes_the_configuration() {
    check(&[
        ("as it is", |_| {}, |_| {}),
        ("version 2", |writer| writer.version = 2, |_| {}),
        (
            "another alignment",
            |writer| {
                writer.alignment = 256;
                writer.set("general.alignment", Value::U32(256));
            },
            |_| {},
        ),
        (
            "an LM head of its own",
            |writer| writer.add("output.weight", &[HIDDEN, VOCAB]),
            |config| config.tie_word_embeddings = false,
        ),
        (
            "one inner feature, a matrix of one row",
            |writer| {
                writer.set("llama.feed_forward_length", Value::U32(1));
                for name in ["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"] {
                    writer.remove(name);
                    writer.add(name, &[HIDDEN, 1]);
                }
                writer.remove("blk.0.ffn_down.weight");
                writer.add("blk.0.ffn_down.weight", &[1, HIDDEN]);
            },
            |config| config.intermediate_size = 1,
        ),
        (
            "a sliding window",
            |writer| writer.set("llama.attention.sliding_window", Value::U32(16)),
            |config| config.max_position_embeddings = 16,
        ),
        (
            "no key/value heads and no base frequency",
            |writer| {
                writer.unset("llama.rope.freq_base");
                writer.set("llama.attention.head_count_kv", Value::U64(1));
            },
            |config| config.rope.theta = 10_000.0,
        ),
        (
            "bias of queries, keys and values",
            |writer| {
                writer.add("blk.0.attn_q.bias", &[HIDDEN]);
                writer.add("blk.0.attn_k.bias", &[KV_SIZE]);
                writer.add("blk.0.attn_v.bias", &[KV_SIZE]);
            },
            |config| config.has_qkv_bias = true,
        ),
    ]);
}

#[test]
fn rope_scaling() {
    check(&[
        (
            "linear scaling",
            |writer| {
                writer.set("llama.rope.scaling.type", Value::Text("linear".into()));
                writer.set("llama.rope.scaling.factor", Value::F32(4.0));
            },
            |config| config.rope.scaling = RopeScaling::Linear { factor: 4.0 },
        ),
        (
            "a factor without a type is linear",
            |writer| writer.set("llama.rope.scaling.factor", Value::F32(4.0)),
            |config| config.rope.scaling = RopeScaling::Linear { factor: 4.0 },
        ),
        (
            "the former key of the factor",
            |writer| writer.set("llama.rope.scale_linear", Value::F32(4.0)),
            |config| config.rope.scaling = RopeScaling::Linear { factor: 4.0 },
        ),
        (
            "no scaling, whatever the factor",
            |writer| {
                writer.set("llama.rope.scaling.type", Value::Text("none".into()));
                writer.set("llama.rope.scaling.factor", Value::F32(4.0));
                writer.set("llama.rope.scale_linear", Value::F32(4.0));
            },
            |_| {},
        ),
        (
            "scaling factors in a tensor",
            |writer| {
                writer.add("rope_freqs.weight", &[2]);
                writer.tensor("rope_freqs.weight").data = f32_bytes(&[1.0, 8.0]);
            },
            |config| config.rope.scaling = RopeScaling::Factors(vec![1.0, 8.0]),
        ),
    ]);
}

type Change = fn(&mut GgufWriter);
type Expect = fn(&mut DecoderConfig);

/// Opens the tiny model with each change and compares its configuration with what is expected.
fn check(cases: &[(&str, Change, Expect)]) {
    for (case, change, expect) in cases {
        let (mut writer, mut expected) = (GgufWriter::llama(), tiny_config());
        change(&mut writer);
        expect(&mut expected);
        assert_eq!(*open(&writer).config(), expected, "{case}");
    }
}

#[test]
fn qwen_files_have_their_switches() {
    let mut qwen2 = GgufWriter::model("qwen2");
    for (name, len) in [("q", HIDDEN), ("k", KV_SIZE), ("v", KV_SIZE)] {
        qwen2.add(&format!("blk.0.attn_{name}.bias"), &[len]);
    }
    let qwen2 = open(&qwen2);
    assert!(qwen2.config().has_qkv_bias && !qwen2.config().has_qk_norm);
    assert_eq!(qwen2.config().rope.style, RopeStyle::Halves);
    assert_eq!(qwen2.weight("model.layers.0.self_attn.k_proj.bias").unwrap().to_f32(), values(KV_SIZE, 12));

    let mut qwen3 = GgufWriter::model("qwen3");
    qwen3.set("qwen3.attention.key_length", Value::U32(4));
    qwen3.add("blk.0.attn_q_norm.weight", &[4]);
    qwen3.add("blk.0.attn_k_norm.weight", &[4]);
    let qwen3 = open(&qwen3);
    assert!(!qwen3.config().has_qkv_bias && qwen3.config().has_qk_norm);
    assert!(qwen3.has("model.layers.0.self_attn.q_norm.weight"));
}

#[test]
fn every_tensor_has_its_hugging_face_name() {
    let in_file_order = [
        "embed_tokens",
        "layers.0.input_layernorm",
        "layers.0.self_attn.q_proj",
        "layers.0.self_attn.k_proj",
        "layers.0.self_attn.v_proj",
        "layers.0.self_attn.o_proj",
        "layers.0.post_attention_layernorm",
        "layers.0.mlp.gate_proj",
        "layers.0.mlp.up_proj",
        "layers.0.mlp.down_proj",
        "norm",
    ];
    let checkpoint = open(&GgufWriter::llama());
    for (index, name) in in_file_order.into_iter().enumerate() {
        let weight = checkpoint.weight(&format!("model.{name}.weight")).unwrap();
        assert_eq!(weight.to_f32(), values(weight.rows * weight.cols, index), "{name}");
    }
}

#[test]
fn weights_are_found_by_their_hugging_face_names() {
    let checkpoint = open(&GgufWriter::llama());
    let down = checkpoint.weight("model.layers.0.mlp.down_proj.weight").unwrap();
    assert_eq!((down.rows, down.cols, down.format), (HIDDEN, INTERMEDIATE, Format::F32));
    assert_eq!(down.to_f32(), values(HIDDEN * INTERMEDIATE, 9));
    let norm = checkpoint.weight("model.norm.weight").unwrap();
    assert_eq!((norm.rows, norm.cols), (1, HIDDEN));
    assert_eq!(norm.to_f32(), values(HIDDEN, 10));

    checkpoint.release();
    assert_eq!(norm.to_f32(), values(HIDDEN, 10), "released pages come back");

    let error = down.expect_shape(INTERMEDIATE, HIDDEN).unwrap_err().to_string();
    assert!(error.contains("should be 12 x 8, but it is 8 x 12"), "{error}");
    let error = checkpoint.weight("model.layers.1.mlp.down_proj.weight").unwrap_err().to_string();
    assert!(error.contains("model.gguf: the weight `model.layers.1.mlp.down_proj.weight` is missing"), "{error}");
}

#[test]
fn tokenizer_metadata_is_reachable() {
    let mut writer = GgufWriter::llama();
    writer.set("tokenizer.chat_template", Value::Text("{{ messages }}".into()));
    writer.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    writer.set("small", Value::U8(200));
    writer.set("negative", Value::I32(-7));
    let checkpoint = open(&writer);
    let metadata = checkpoint.gguf().unwrap();
    let tokens: Vec<&str> = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap().iter().collect();
    assert_eq!(tokens, ["<s>", "a", "é", "", "ab", "c"]);
    assert_eq!(metadata.integers("tokenizer.ggml.token_type").unwrap().unwrap(), [3, 1, 1, 1, 1, -1]);
    assert_eq!(metadata.floats("tokenizer.ggml.scores").unwrap().unwrap()[1], -1.5);
    assert_eq!(metadata.text("tokenizer.chat_template").unwrap(), Some("{{ messages }}"));
    assert_eq!(metadata.flag("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!(metadata.integer("small").unwrap(), Some(200));
    assert_eq!(metadata.value("negative"), Some(&GgufValue::Signed(-7)));
    assert_eq!(metadata.text("tokenizer.ggml.model").unwrap(), None);
    assert!(matches!(metadata.value("tokenizer.ggml.scores"), Some(GgufValue::Array(GgufArray::Floats(_)))));

    let error = metadata.integer("negative").unwrap_err().to_string();
    assert!(error.contains("`negative`: expected a whole number that is not negative, got -7"), "{error}");
}

#[test]
fn long_metadata_is_printed_short() {
    let mut writer = GgufWriter::llama();
    writer.set("many", Value::I32s((0..1000).collect()));
    writer.set("long", Value::Text("é".repeat(500)));
    let checkpoint = open(&writer);
    let printed = checkpoint.contents().printable_metadata();
    let value_of = |key: &str| &printed.iter().find(|(name, _)| name == key).unwrap().1;
    assert_eq!(value_of("many"), "[0, 1, 2, 3, 4, 5, ... (1000 elements)]");
    assert!(value_of("long").ends_with("... (500 characters)") && value_of("long").len() < 400);
    assert_eq!(value_of("llama.attention.layer_norm_rms_epsilon"), "1e-5");
    assert_eq!(value_of("general.architecture"), "\"llama\"");
}

#[test]
fn generation_defaults_come_from_the_metadata() {
    let mut writer = GgufWriter::llama();
    writer.set("tokenizer.ggml.eot_token_id", Value::U32(5));
    writer.set("tokenizer.ggml.bos_token_id", Value::U32(1));
    writer.set("general.sampling.temp", Value::F32(0.5));
    let checkpoint = open(&writer);
    let defaults = checkpoint.generation_defaults();
    assert_eq!((defaults.bos_token_id, &defaults.eos_token_ids[..]), (Some(1), &[0, 5][..]));
    assert_eq!((defaults.temperature, defaults.top_k, defaults.top_p), (Some(0.5), None, None));
}

#[test]
fn suggested_settings_out_of_range_are_refused() {
    let mut writer = GgufWriter::llama();
    writer.set("general.sampling.top_p", Value::F32(0.0));
    let directory = tempdir().unwrap();
    let message = Checkpoint::open(&writer.write(directory.path())).unwrap_err().to_string();
    assert!(message.contains("`general.sampling.top_p` is 0.0; expected above 0 and at most 1"), "{message}");
}

#[test]
fn control_tokens_that_end_a_turn_are_found_by_their_text() {
    let mut writer = GgufWriter::llama();
    let tokens = ["<s>", "<|im_end|>", "<|endoftext|>", "a", "<|endoftext|>", "b"];
    writer.set("tokenizer.ggml.tokens", Value::Texts(tokens.map(String::from).into()));
    writer.set("tokenizer.ggml.token_type", Value::I32s(vec![3, 3, 1, 1, 3, 3]));
    writer.set("tokenizer.ggml.eos_token_id", Value::U32(1));
    assert_eq!(open(&writer).generation_defaults().eos_token_ids, [1, 4], "token 2 is ordinary text");
}

/// A model whose matrices have rows of 32, so that they can be quantized.
fn wide() -> GgufWriter {
    let mut writer = GgufWriter::llama();
    writer.set("llama.embedding_length", Value::U32(32));
    writer.set("llama.attention.key_length", Value::U32(16));
    writer.set("llama.feed_forward_length", Value::U32(64));
    let names: Vec<String> = writer.tensors.drain(..).map(|tensor| tensor.name).collect();
    for name in names {
        let dimensions: &[usize] = match name.as_str() {
            "token_embd.weight" => &[32, VOCAB],
            "blk.0.attn_q.weight" | "blk.0.attn_output.weight" => &[32, 32],
            "blk.0.attn_k.weight" | "blk.0.attn_v.weight" => &[32, 16],
            "blk.0.ffn_gate.weight" | "blk.0.ffn_up.weight" => &[32, 64],
            "blk.0.ffn_down.weight" => &[64, 32],
            _ => &[32],
        };
        writer.add(&name, dimensions);
    }
    writer
}

#[test]
fn a_format_that_cannot_be_read_is_described_and_refused() {
    let (directory, mut writer) = (tempdir().unwrap(), wide());
    writer.tensor("blk.0.ffn_up.weight").type_id = 20;
    let contents = Contents::open(&writer.write(directory.path())).unwrap();
    let tensor = contents.tensors().iter().find(|tensor| tensor.name == "blk.0.ffn_up.weight").unwrap();
    assert_eq!((tensor.storage.to_string().as_str(), tensor.num_bytes()), ("IQ4_NL", 64 * 18));
    let error = Checkpoint::from_contents(contents).unwrap_err().to_string();
    for part in [".gguf", "`blk.0.ffn_up.weight`", "IQ4_NL", "take one of F32, F16"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
}

#[test]
fn matrices_are_quantized_when_read() {
    let plain = open(&wide());
    let fingerprint = plain.fingerprint();
    let name = "model.layers.0.mlp.down_proj.weight";
    let exact = plain.weight(name).unwrap().to_f32();
    for (format, tolerance) in [(Format::Q8_0, 0.02), (Format::Q4_1, 0.2), (Format::F16, 0.001)] {
        let quantized = open(&wide()).quantized(format).unwrap();
        let weight = quantized.weight(name).unwrap();
        assert_eq!((weight.format, weight.rows, weight.cols), (format, 32, 64));
        assert_eq!(weight.bytes.len(), 32 * format.row_bytes(64).unwrap());
        let errors = exact.iter().zip(weight.to_f32()).map(|(exact, got)| (exact - got).abs());
        assert!(errors.fold(0.0, f32::max) < tolerance, "{format}");
        assert_eq!(quantized.weight("model.embed_tokens.weight").unwrap().format, format);
        assert_eq!(quantized.weight("model.norm.weight").unwrap().format, Format::F32);
        assert_eq!(quantized.fingerprint(), fingerprint, "the base model is the same");
    }
}

#[test]
fn quantization_says_why_it_is_impossible() {
    let error = open(&GgufWriter::llama()).quantized(Format::Q8_0).unwrap_err().to_string();
    assert!(error.contains(".weight` to Q8_0: its rows have "), "{error}");
    let error = open(&wide()).quantized(Format::Q3_K).unwrap_err().to_string();
    assert!(error.contains("Q3_K") && error.contains("Q8_0"), "{error}");

    let mut with_nan = wide();
    with_nan.tensor("blk.0.attn_q.weight").data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let with_nan = open(&with_nan).quantized(Format::Q8_0).unwrap();
    let error = with_nan.weight("model.layers.0.self_attn.q_proj.weight").unwrap_err().to_string();
    assert!(error.contains("cannot quantize `model.layers.0.self_attn.q_proj.weight`"), "{error}");
}

#[test]
fn a_fingerprint_tells_models_apart() {
    let original = open(&GgufWriter::llama()).fingerprint();
    assert_eq!(original.len(), 64);
    assert_eq!(open(&GgufWriter::llama()).fingerprint(), original);
    let mut retrained = GgufWriter::llama();
    retrained.tensor("token_embd.weight").data[0] ^= 1;
    assert_ne!(open(&retrained).fingerprint(), original);
    let mut untied = GgufWriter::llama();
    untied.add("output.weight", &[HIDDEN, VOCAB]);
    assert_ne!(open(&untied).fingerprint(), original);
}
