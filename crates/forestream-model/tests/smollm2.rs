//! The default model's quantized weights against Hugging Face transformers on the same weights dequantized.
//!
//! Needs the file: `FORESTREAM_SMOLLM2=FILE cargo test --package forestream-model --features slow-tests`. The golden
//! values are made by `cargo xtask golden --smollm2 FILE`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;

use forestream_kernels::formats::Format;
use forestream_model::{Checkpoint, CpuModel, Hidden, LoadOptions, Model, Outputs, Row, TokenTree};

/// Keys and values in half precision cost up to 1e-3 of the norm (computed with transformers).
const MAX_ERROR_DEQUANTIZED: f64 = 2e-3;

/// Rounding activations to 8 bits in blocks of 32 costs up to 5e-2 of the norm: transformers, with the inputs of every
/// linear layer rounded so, is 3e-2 to 5e-2 away from itself at these positions.
const MAX_ERROR_QUANTIZED: f64 = 5e-2;

#[derive(serde::Deserialize)]
struct Golden {
    input_ids: Vec<u32>,
    vocab_size: usize,
    positions: Vec<Position>,
}

#[derive(serde::Deserialize)]
struct Position {
    position: usize,
    /// Of all logits.
    norm: f64,
    /// The largest logits, best first.
    ids: Vec<usize>,
    values: Vec<f64>,
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// The largest error at any position: of the norm of all logits, and of the largest ones relative to their own norm.
fn errors(checkpoint: &Checkpoint) -> [f64; 2] {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden/smollm2-135m-instruct.json");
    let golden: Golden = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let model = CpuModel::load(checkpoint, LoadOptions::default()).unwrap();
    assert_eq!(model.config().vocab_size, golden.vocab_size);
    let tree = TokenTree::chain(&golden.input_ids);
    let (mut cache, mut hidden, mut logits) = (model.new_cache(64), Hidden::new(), Vec::new());
    model.forward(&mut [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }], &mut hidden).unwrap();
    let mut worst = [0.0_f64; 2];
    for expected in &golden.positions {
        model.logits(&hidden, expected.position..expected.position + 1, &mut logits);
        let got = |id: usize| f64::from(logits[id]);
        let best = (0..logits.len()).max_by(|&a, &b| got(a).total_cmp(&got(b)));
        assert_eq!(best, expected.ids.first().copied(), "position {}: most likely token", expected.position);
        let differences = expected.ids.iter().zip(&expected.values).map(|(&id, value)| got(id) - value);
        let of_largest = norm(differences) / norm(expected.values.iter().copied());
        let of_norm = (norm((0..logits.len()).map(got)) / expected.norm - 1.0).abs();
        worst = [worst[0].max(of_norm), worst[1].max(of_largest)];
    }
    worst
}

fn checkpoint() -> Checkpoint {
    let file = std::env::var_os("FORESTREAM_SMOLLM2").expect("FORESTREAM_SMOLLM2 names the GGUF file");
    Checkpoint::open(Path::new(&file)).unwrap()
}

#[test]
fn dequantized_weights_give_the_logits_of_transformers() {
    let errors = errors(&checkpoint().quantized(Format::F32).unwrap());
    assert!(errors.iter().all(|&error| error < MAX_ERROR_DEQUANTIZED), "{errors:?}");
}

#[test]
fn quantized_weights_give_them_as_far_as_rounded_activations_can() {
    let errors = errors(&checkpoint());
    assert!(errors.iter().all(|&error| error < MAX_ERROR_QUANTIZED), "{errors:?}");
}
