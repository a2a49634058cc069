//! llama2.c checkpoints, written here in the order of its `run.c`.

use std::path::{Path, PathBuf};

use forestream_model::{Checkpoint, RopeStyle};
use tempfile::tempdir;

use super::{assert_says, f32_bytes, open_error, values};

/// `dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len`.
const SIZES: [i32; 7] = [8, 12, 2, 2, 1, 6, 16];
/// Elements of each kind of weight, in file order: embeddings, the nine of all layers, norm, two rotary tables.
const ELEMENTS: [usize; 13] = [48, 16, 128, 64, 64, 128, 16, 192, 192, 192, 8, 32, 32];

fn bytes(sizes: [i32; 7], num_elements: usize) -> Vec<u8> {
    let header = sizes.iter().flat_map(|size| size.to_le_bytes());
    header.chain(f32_bytes(&values(num_elements, 0))).collect()
}

fn write(directory: &Path, bytes: &[u8]) -> PathBuf {
    let path = directory.join("tiny.bin");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn weights_are_cut_out_of_their_blocks() {
    let directory = tempdir().unwrap();
    let num_elements = ELEMENTS.iter().sum();
    let checkpoint = Checkpoint::open(&write(directory.path(), &bytes(SIZES, num_elements))).unwrap();
    let config = checkpoint.config();
    assert_eq!((config.head_dim, config.num_key_value_heads, config.vocab_size), (4, 1, 6));
    assert_eq!((config.rope.style, config.tie_word_embeddings), (RopeStyle::Interleaved, true));
    assert_eq!(checkpoint.generation_defaults().eos_token_ids, [1, 2]);

    let all = values(num_elements, 0);
    let block = |kind: usize| &all[ELEMENTS[..kind].iter().sum()..][..ELEMENTS[kind]];
    let weight = |name: &str| checkpoint.weight(name).unwrap();
    assert_eq!(weight("model.embed_tokens.weight").to_f32(), block(0));
    assert_eq!(weight("model.layers.1.input_layernorm.weight").to_f32(), block(1)[8..]);
    assert_eq!(weight("model.layers.1.self_attn.k_proj.weight").to_f32(), block(3)[32..]);
    assert_eq!(weight("model.layers.0.mlp.gate_proj.weight").to_f32(), block(7)[..96]);
    let down = weight("model.layers.1.mlp.down_proj.weight");
    assert_eq!((down.rows, down.cols, down.to_f32()), (8, 12, block(8)[96..].to_vec()));
    assert_eq!(weight("model.layers.0.mlp.up_proj.weight").to_f32(), block(9)[..96]);
    assert_eq!(weight("model.norm.weight").to_f32(), block(10));
}

#[test]
fn a_negative_vocabulary_size_means_a_head_of_its_own() {
    let directory = tempdir().unwrap();
    let mut sizes = SIZES;
    sizes[5] = -6;
    let num_elements = ELEMENTS.iter().sum::<usize>() + 48;
    let checkpoint = Checkpoint::open(&write(directory.path(), &bytes(sizes, num_elements))).unwrap();
    assert!(!checkpoint.config().tie_word_embeddings);
    let head = checkpoint.weight("lm_head.weight").unwrap().to_f32();
    assert_eq!(head, values(num_elements, 0)[num_elements - 48..]);
}

#[test]
fn sizes_are_held_against_the_file() {
    let directory = tempdir().unwrap();
    let num_elements: usize = ELEMENTS.iter().sum();
    let with = |index: usize, size: i32| {
        let mut sizes = SIZES;
        sizes[index] = size;
        bytes(sizes, num_elements)
    };
    let cases: [(&str, Vec<u8>, &str); 11] = [
        ("empty", Vec::new(), "truncated: 0 bytes"),
        ("half a header", bytes(SIZES, 0)[..20].to_vec(), "truncated: 20 bytes"),
        ("no weights", bytes(SIZES, 0), "4476 bytes, but the file has 28"),
        ("one element short", bytes(SIZES, num_elements - 1), "4476 bytes, but the file has 4472"),
        ("one element more", bytes(SIZES, num_elements + 1), "4476 bytes, but the file has 4480"),
        ("no width", with(0, 0), "dim is 0"),
        ("negative layers", with(2, -1), "n_layers is -1"),
        ("absurd layers", with(2, i32::MAX), "n_layers is 2147483647"),
        ("no vocabulary", with(5, 0), "vocab_size is 0"),
        ("least vocabulary", with(5, i32::MIN), "vocab_size is"),
        ("heads that do not divide", with(3, 3), "dim 8 is not a multiple of n_heads 3"),
    ];
    for (case, bytes, expected) in cases {
        let path = write(directory.path(), &bytes);
        assert_says(case, &open_error(&path), &path, &[expected]);
    }
}
