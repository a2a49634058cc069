//! The joint pass against the engine with a joint adapter, and its gradients against differences.

use burn_tensor::{Device, Tensor, TensorData};
use forestream_burn::{BurnError, JointLogits, JointText, StreamWeights, joint_logits};
use forestream_model::{CpuModel, Hidden, LoadOptions, Model, Outputs, Row, TokenTree};

use crate::case::{self, CASES, Case, JOINT_CASES, Options};
use crate::data;
use crate::engine::{Engine, relative_error};

/// The engine rounds keys and values of all layers to half precision, and these models' changed weights too (2^-11 each).
const MAX_ERROR: f64 = 2e-3;

/// Main rows and streams are those of the engine.
#[test]
fn logits_are_those_of_the_engine() {
    for options in JOINT_CASES {
        let case = Case::new(options);
        let engine = Engine::new(&case);
        let (segment, tokens) = engine.segment(&case, options);
        let num_positions = segment.num_positions(case.base.decoder().hidden_size);
        let (_, hidden) = engine.prefill(&tokens[..num_positions]);
        let mut expected_main = Vec::new();
        engine.model.logits(&hidden, 0..num_positions, &mut expected_main);
        let (_, expected_streams) = engine.run(&segment, &tokens, options);
        let (main, streams) = (3..num_positions - 1, 2..num_positions);
        let text = JointText {
            boundary: boundary(&case, &tokens[..num_positions]),
            tokens: segment.tokens.clone(),
            main: main.clone(),
            streams: streams.clone(),
        };
        let other = JointText { main: 0..2, streams: 0..0, ..text.clone() };
        let logits = joint_logits(&case.base, &case.weights(), &[text, other]).unwrap();
        let vocab_size = case.base.decoder().vocab_size;
        let expected =
            [&expected_main[3 * vocab_size..main.end * vocab_size], &expected_main[..2 * vocab_size]].concat();
        let per_position = options.num_streams * case.base.draft_vocab_size();
        let checks = [
            (data(logits.main), &expected[..], "main rows"),
            (data(logits.streams), &expected_streams[streams.start * per_position..], "streams"),
        ];
        for (got, expected, what) in checks {
            let error = relative_error(&got, expected);
            assert!(error <= MAX_ERROR, "{options:?}: {what} differ by {error:.1e}");
        }
    }
}

/// States of the plain engine before the first layer that the joint pass computes.
fn boundary(case: &Case, tokens: &[u32]) -> Vec<f32> {
    let mut model = CpuModel::load(&case.checkpoint, LoadOptions::default()).unwrap();
    model.keep_boundary(case.base.first_layer());
    let (mut cache, tree, mut hidden) = (model.new_cache(64), TokenTree::chain(tokens), Hidden::new());
    let mut rows = [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }];
    model.forward(&mut rows, &mut hidden).unwrap();
    (0..tokens.len()).flat_map(|row| hidden.boundary(row).unwrap()).copied().collect()
}

/// The slope along a random direction in each trained tensor is the difference of two passes.
#[test]
fn gradients_are_differences() {
    for options in JOINT_CASES {
        let case = Case::new(options);
        let texts = [text(&case, 5, options), text(&case, 3, options)];
        let weights = case.weights();
        let gradients = loss(joint_logits(&case.base, &weights, &texts).unwrap()).backward();
        for (index, name) in weights.names().enumerate() {
            let gradient = data(weights.tensor(name).grad(&gradients).expect("every trained tensor has a gradient"));
            let norm = gradient.iter().map(|x| x * x).sum::<f32>().sqrt();
            let random = case::numbers(index as u64, gradient.len(), 1.0 / (gradient.len() as f32).sqrt());
            let direction: Vec<f32> = gradient.iter().zip(random).map(|(x, random)| x / norm + random).collect();
            let slope: f32 = gradient.iter().zip(&direction).map(|(a, b)| a * b).sum();
            let step = 3e-3;
            let at = |step: f32| -> f64 {
                let moved = moved(&weights, name, &direction, step);
                data(loss(joint_logits(&case.base, &moved, &texts).unwrap()).reshape([1, 1]))[0].into()
            };
            let expected = (at(step) - at(-step)) / (2.0 * f64::from(step));
            let error = (f64::from(slope) - expected).abs() / expected.abs();
            assert!(error < 0.02, "{options:?}, {name}: {slope}, expected {expected}");
        }
    }
}

fn text(case: &Case, num_positions: usize, options: &Options) -> JointText {
    let tokens = case.segment(0, num_positions, num_positions as u64).tokens;
    let boundary = case::numbers(77, num_positions * case.base.decoder().hidden_size, 1.0);
    JointText { boundary, main: 1..num_positions, streams: 0..num_positions + 1 - options.num_streams, tokens }
}

/// A smooth number that every logit takes part in.
fn loss(logits: JointLogits) -> Tensor<1> {
    let part = |logits: Tensor<2>, seed| {
        let shape = logits.dims();
        let factors = case::numbers(seed, shape[0] * shape[1], 0.01);
        (logits * Tensor::<2>::from_data(TensorData::new(factors, shape), &Device::flex())).sum()
    };
    part(logits.main, 5) + part(logits.streams, 6)
}

fn moved(weights: &StreamWeights, name: &str, direction: &[f32], step: f32) -> StreamWeights {
    let tensor = weights.tensor(name).clone().without_autodiff();
    let direction: Vec<f32> = direction.iter().map(|x| x * step).collect();
    let offset = Tensor::<2>::from_data(TensorData::new(direction, tensor.dims()), &Device::flex());
    let mut moved = weights.clone();
    moved.set(name, tensor + offset);
    moved.frozen()
}

#[test]
fn what_does_not_fit_is_named() {
    let lossless = Case::new(&CASES[0]);
    let error = joint_logits(&lossless.base, &lossless.weights(), &[]).unwrap_err();
    assert!(error.to_string().contains("mode is `lossless`"), "{error}");
    let case = Case::new(&JOINT_CASES[0]);
    let said = |change: &dyn Fn(&mut JointText)| {
        let mut text = text(&case, 4, &JOINT_CASES[0]);
        change(&mut text);
        joint_logits(&case.base, &case.weights(), &[text]).unwrap_err().to_string()
    };
    assert_eq!(said(&|text| text.main.end = 9), "segment 0: main (up to all positions) has 9 elements, expected 4");
    assert_eq!(said(&|text| text.tokens.truncate(2)), "segment 0: tokens (at least) has 2 elements, expected 4");
    assert_eq!(said(&|text| text.tokens[1] = 999), "token id 999 is not in the vocabulary of 320 tokens");
    assert!(matches!(joint_logits(&case.base, &case.weights(), &[]), Err(BurnError::Empty)));
}
