//! GGUF files that are truncated, corrupt, or made to do harm: an error that says where, never a panic.

use std::path::Path;

use forestream_model::Checkpoint;
use proptest::prelude::*;
use tempfile::tempdir;

use super::gguf_writer::{GgufWriter, HIDDEN, Value, array_head, write_bytes};
use super::{assert_says, f32_bytes, open_error};

/// A change to a well-formed file, and parts of the error that it must give.
type Case = (&'static str, fn(&mut GgufWriter), &'static [&'static str]);

fn check(cases: &[Case]) {
    let directory = tempdir().unwrap();
    for (case, change, expected) in cases {
        let mut writer = GgufWriter::llama();
        change(&mut writer);
        let path = writer.write(directory.path());
        assert_says(case, &open_error(&path), &path, expected);
    }
}

#[test]
fn headers() {
    check(&[
        ("magic", |writer| writer.magic = *b"GGML", &["not a GGUF file", "GGML"]),
        ("version 1", |writer| writer.version = 1, &["GGUF version 1", "2 and 3 are supported"]),
        ("version 0", |writer| writer.version = 0, &["GGUF version 0"]),
        ("version 4", |writer| writer.version = 4, &["GGUF version 4"]),
        ("big-endian", |writer| writer.version = 3_u32.swap_bytes(), &["big-endian"]),
        ("big-endian magic", |writer| writer.magic = *b"FUGG", &["big-endian"]),
        (
            "tensor count",
            |writer| writer.num_tensors = Some(u64::MAX),
            &["tensor count is 18446744073709551615", "at most"],
        ),
        ("tensor count beyond the file", |writer| writer.num_tensors = Some(1 << 20), &["tensor count is 1048576"]),
        ("metadata count", |writer| writer.num_pairs = Some(1 << 60), &["metadata count is", "at most"]),
        (
            "one pair too many",
            |writer| writer.num_pairs = Some(writer.pairs.len() as u64 + 1),
            &["truncated or corrupt", "the name of tensor 0"],
        ),
        (
            "one tensor too many",
            |writer| writer.num_tensors = Some(writer.tensors.len() as u64 + 1),
            &["tensor `` has 0 dimensions"],
        ),
        ("part of a split model", |writer| writer.set("split.count", Value::U32(3)), &["3 parts", "merge"]),
    ]);
}

#[test]
fn metadata() {
    check(&[
        (
            "more numbers than any model has",
            |writer| {
                let count = (1 << 22) + 1;
                let elements = vec![0; count];
                let array = [&0_u32.to_le_bytes()[..], &(count as u64).to_le_bytes(), &elements].concat();
                writer.set("llama.numbers", Value::Raw(9, array));
            },
            &["`llama.numbers` is 4194305", "at most 4194304"],
        ),
        (
            "key twice",
            |writer| writer.pairs.push(("llama.block_count".into(), Value::U32(1))),
            &["`llama.block_count` occurs twice"],
        ),
        ("unknown type", |writer| writer.set("x", Value::Raw(13, vec![0; 8])), &["`x`", "unknown value type 13"]),
        (
            "unknown element type",
            |writer| writer.set("x", Value::Raw(9, array_head(77, 1))),
            &["`x`", "unknown element type 77"],
        ),
        ("nested array", |writer| writer.set("x", Value::Raw(9, array_head(9, 1))), &["`x` is an array of arrays"]),
        (
            "text length",
            |writer| writer.set("x", Value::Raw(8, u64::MAX.to_le_bytes().into())),
            &["the value of `x`", "18446744073709551615 bytes"],
        ),
        (
            "text is not UTF-8",
            |writer| writer.set("x", Value::Raw(8, [&1_u64.to_le_bytes()[..], &[0xFF]].concat())),
            &["`x`", "not valid UTF-8"],
        ),
        (
            "array length",
            |writer| writer.set("x", Value::Raw(9, array_head(10, usize::MAX / 4))),
            &["the element count of `x`", "at most"],
        ),
        (
            "array of texts",
            |writer| writer.set("x", Value::Raw(9, array_head(8, 1 << 40))),
            &["the element count of `x`"],
        ),
        (
            "alignment 0",
            |writer| writer.set("general.alignment", Value::U32(0)),
            &["`general.alignment`", "power of two, got 0"],
        ),
        ("alignment 24", |writer| writer.set("general.alignment", Value::U32(24)), &["`general.alignment`", "got 24"]),
        (
            "alignment text",
            |writer| writer.set("general.alignment", Value::Text("32".into())),
            &["`general.alignment`", "whole number"],
        ),
        (
            "alignment beyond the file",
            |writer| writer.set("general.alignment", Value::U64(1 << 63)),
            &["token_embd.weight", "truncated or corrupt"],
        ),
    ]);
}

#[test]
fn tensor_tables() {
    check(&[
        (
            "no dimensions",
            |writer| writer.tensor("output_norm.weight").dimensions.clear(),
            &["output_norm.weight", "0 dimensions"],
        ),
        (
            "five dimensions",
            |writer| writer.tensor("output_norm.weight").dimensions = vec![1; 5],
            &["output_norm.weight", "5 dimensions"],
        ),
        (
            "zero size",
            |writer| writer.tensor("output_norm.weight").dimensions = vec![8, 0],
            &["output_norm.weight", "impossible shape [0, 8]"],
        ),
        (
            "zero columns",
            |writer| writer.tensor("output_norm.weight").dimensions = vec![0],
            &["output_norm.weight", "impossible shape [0]"],
        ),
        (
            "product overflows",
            |writer| writer.tensor("output_norm.weight").dimensions = vec![1 << 40, 1 << 40],
            &["output_norm.weight", "impossible shape"],
        ),
        (
            "product wraps to a small number",
            |writer| writer.tensor("output_norm.weight").dimensions = vec![1 << 32, 1 << 32, 4],
            &["output_norm.weight", "impossible shape"],
        ),
        (
            "bytes overflow",
            |writer| writer.tensor("output_norm.weight").dimensions = vec![1 << 62],
            &["output_norm.weight", "impossible shape"],
        ),
        (
            "larger than the file",
            |writer| writer.tensor("output_norm.weight").dimensions = vec![1 << 20],
            &["output_norm.weight", "4194304 bytes"],
        ),
        (
            "name twice",
            |writer| writer.tensor("blk.0.ffn_up.weight").name = "output_norm.weight".into(),
            &["`output_norm.weight` occurs twice"],
        ),
        (
            "misaligned",
            |writer| writer.tensor("output_norm.weight").offset = Some(4),
            &["output_norm.weight", "offset 4", "alignment 32"],
        ),
        (
            "overlap",
            |writer| writer.tensor("output_norm.weight").offset = Some(0),
            &["`output_norm.weight`", "`token_embd.weight`", "overlap"],
        ),
        (
            "offset beyond the file",
            |writer| writer.tensor("output_norm.weight").offset = Some(1 << 30),
            &["output_norm.weight", "truncated or corrupt"],
        ),
        (
            "offset overflows",
            |writer| writer.tensor("output_norm.weight").offset = Some(u64::MAX - 31),
            &["output_norm.weight", "truncated or corrupt"],
        ),
    ]);
}

#[test]
fn tensor_types() {
    check(&[
        (
            "part of a block",
            |writer| writer.tensor("output_norm.weight").type_id = 2,
            &["output_norm.weight", "Q4_0", "multiple of 32"],
        ),
        (
            "unsupported type",
            |writer| writer.tensor("output_norm.weight").type_id = 20,
            &["output_norm.weight", "IQ4_NL"],
        ),
        (
            "unknown type",
            |writer| writer.tensor("output_norm.weight").type_id = u32::MAX,
            &["output_norm.weight", "4294967295", "unknown"],
        ),
    ]);
}

#[test]
fn configurations() {
    check(&[
        ("no architecture", |writer| writer.unset("general.architecture"), &["lacks `general.architecture`"]),
        (
            "unknown architecture",
            |writer| writer.set("general.architecture", Value::Text("mamba".into())),
            &["`mamba` is not supported", "llama", "MistralForCausalLM", "qwen2", "qwen3"],
        ),
        (
            "architecture of another type",
            |writer| writer.set("general.architecture", Value::U32(1)),
            &["`general.architecture`", "expected text, got 1"],
        ),
        ("missing key", |writer| writer.unset("llama.embedding_length"), &["lacks `llama.embedding_length`"]),
        (
            "text for a size",
            |writer| writer.set("llama.block_count", Value::Text("one".into())),
            &["`llama.block_count`", "expected a whole number", "\"one\""],
        ),
        (
            "array for a size",
            |writer| writer.set("llama.attention.head_count", Value::I32s(vec![2, 2])),
            &["`llama.attention.head_count`", "[2, 2]"],
        ),
        ("negative size", |writer| writer.set("llama.block_count", Value::I32(-1)), &["`llama.block_count`", "-1"]),
        ("no heads", |writer| writer.set("llama.attention.head_count", Value::U32(0)), &["0 attention heads"]),
        ("no layers", |writer| writer.set("llama.block_count", Value::U32(0)), &["num_hidden_layers is 0"]),
        (
            "absurd number of layers",
            |writer| writer.set("llama.block_count", Value::U64(u64::MAX)),
            &["num_hidden_layers is"],
        ),
        (
            "too many layers",
            |writer| writer.set("llama.block_count", Value::U32(1 << 30)),
            &["`model.layers.1.input_layernorm.weight` is missing"],
        ),
        (
            "heads that cannot be shared",
            |writer| writer.set("llama.attention.head_count_kv", Value::U32(3)),
            &["2 attention heads", "3 key/value heads"],
        ),
        ("odd heads", |writer| writer.set("llama.attention.key_length", Value::U32(3)), &["head_dim is 3"]),
        (
            "partial rotation",
            |writer| writer.set("llama.rope.dimension_count", Value::U32(2)),
            &["`llama.rope.dimension_count` is 2"],
        ),
        (
            "no epsilon",
            |writer| writer.set("llama.attention.layer_norm_rms_epsilon", Value::F32(0.0)),
            &["rms_norm_eps is 0"],
        ),
        (
            "frequency not a number",
            |writer| writer.set("llama.rope.freq_base", Value::F32(f32::NAN)),
            &["`llama.rope.freq_base`", "finite"],
        ),
        ("experts", |writer| writer.set("llama.expert_count", Value::U32(8)), &["8 experts"]),
        (
            "unknown scaling",
            |writer| writer.set("llama.rope.scaling.type", Value::Text("yarn".into())),
            &["`yarn`", "linear"],
        ),
        ("scaling by 0", |writer| writer.set("llama.rope.scale_linear", Value::F32(0.0)), &["RoPE scaling is 0"]),
        (
            "token id",
            |writer| writer.set("tokenizer.ggml.eos_token_id", Value::U64(1 << 40)),
            &["`tokenizer.ggml.eos_token_id`", "no token id"],
        ),
    ]);
}

#[test]
fn weights() {
    check(&[
        ("missing", |writer| writer.remove("blk.0.ffn_up.weight"), &["`model.layers.0.mlp.up_proj.weight` is missing"]),
        ("no embeddings", |writer| writer.remove("token_embd.weight"), &["`token_embd.weight` is missing"]),
        (
            "transposed",
            |writer| writer.tensor("blk.0.ffn_up.weight").dimensions.reverse(),
            &["`blk.0.ffn_up.weight`", "[8, 12]", "[12, 8]"],
        ),
        (
            "a vector as a matrix",
            |writer| writer.tensor("output_norm.weight").dimensions = vec![4, 2],
            &["`output_norm.weight`", "[2, 4]", "[8]"],
        ),
        (
            "embeddings of another width",
            |writer| writer.tensor("token_embd.weight").dimensions = vec![6, 8],
            &["`token_embd.weight`", "[8, 6]", "[8, 8]"],
        ),
        (
            "another model's tensor",
            |writer| writer.add("blk.0.attn_output.bias", &[HIDDEN]),
            &["`blk.0.attn_output.bias` has no place"],
        ),
        (
            "too few RoPE factors",
            |writer| writer.add("rope_freqs.weight", &[1]),
            &["1 RoPE factors for 2 channel pairs"],
        ),
        (
            "RoPE factors beside another scaling",
            |writer| {
                writer.add("rope_freqs.weight", &[2]);
                writer.set("llama.rope.scaling.type", Value::Text("linear".into()));
                writer.set("llama.rope.scaling.factor", Value::F32(4.0));
            },
            &["both `rope_freqs.weight`", "Linear"],
        ),
        (
            "RoPE factor 0",
            |writer| {
                writer.add("rope_freqs.weight", &[2]);
                writer.tensor("rope_freqs.weight").data = f32_bytes(&[1.0, 0.0]);
            },
            &["RoPE scaling is 0"],
        ),
    ]);
}

#[test]
fn every_shorter_file_is_refused() {
    let (bytes, header_len) = GgufWriter::llama().bytes();
    let directory = tempdir().unwrap();
    for len in (0..bytes.len()).filter(|len| *len <= header_len || len % 16 == 15) {
        let path = write_bytes(directory.path(), &bytes[..len]);
        assert_says(&format!("{len} bytes"), &open_error(&path), &path, &[]);
    }
}

#[test]
fn a_path_that_is_no_file() {
    let path = Path::new("no/such/model.gguf");
    assert_says("missing", &open_error(path), path, &["cannot read"]);
}

/// Opens the bytes as a file and, if that works, reads everything.
fn open_and_read(bytes: &[u8]) {
    let directory = tempdir().unwrap();
    if let Ok(checkpoint) = Checkpoint::open(&write_bytes(directory.path(), bytes)) {
        checkpoint.fingerprint();
        checkpoint.contents().printable_metadata();
        for name in ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.mlp.down_proj.weight"] {
            checkpoint.weight(name).unwrap().to_f32();
        }
    }
}

proptest! {
    #[test]
    fn damaged_headers_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        kept in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let (mut bytes, header_len) = GgufWriter::llama().bytes();
        for (index, value) in damage {
            bytes[index.index(header_len)] = value;
        }
        if let Some(kept) = kept {
            bytes.truncate(kept.index(bytes.len()));
        }
        open_and_read(&bytes);
    }

    #[test]
    fn flipped_bits_never_panic(place in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let (mut bytes, _) = GgufWriter::llama().bytes();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        open_and_read(&bytes);
    }

    #[test]
    fn noise_after_the_magic_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        open_and_read(&[b"GGUF\x03\0\0\0".as_slice(), &noise].concat());
    }
}
