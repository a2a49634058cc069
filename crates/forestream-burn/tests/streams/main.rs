//! Streams over tensors against an independent reference in double precision, and what they may depend on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod case;
#[cfg(any(feature = "vulkan", feature = "wgpu"))]
mod device;
mod early_exit;
mod engine;
mod joint;
mod model;
mod reference;

use burn_tensor::{Device, Tensor, TensorData};
use case::{CASES, Case, JOINT_CASES};
use forestream_burn::{BurnError, Segment, inner_energies, stream_logits, stream_states};

/// Logits agree with the reference in every configuration, for several segments at once.
#[test]
fn logits_are_those_of_the_reference() {
    for options in CASES.iter().chain(JOINT_CASES) {
        let case = Case::new(options);
        let segments = [case.segment(0, 3, 1), case.segment(4, 2, 2)];
        let logits = stream_logits(&case.base, &case.weights(), &segments).unwrap();
        let expected = case.reference(&segments).logits(&case.values);
        let [rows, width] = logits.dims();
        assert_eq!((rows, rows * width), (5 * options.num_streams, expected.len()), "{options:?}");
        let got = data(logits);
        let error = got.iter().zip(&expected).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
        let size = expected.iter().fold(0.0_f64, |size, x| size.max(x.abs()));
        assert!(error <= 1e-4 * size.max(1.0), "{options:?}: {error} of {size}");
    }
}

/// Gradients of a weighted sum of logits agree with differences of the reference, in every trained tensor.
#[test]
fn gradients_are_those_of_the_reference() {
    for options in CASES.iter().filter(|options| options.model == "tiny-qwen3" || options.model == "tiny-llama3-rope") {
        let case = Case::new(options);
        let segments = [case.segment(0, 2, 1), case.segment(3, 1, 2)];
        let weights = case.weights();
        let logits = stream_logits(&case.base, &weights, &segments).unwrap();
        let factors = case::numbers(99, logits.dims().iter().product(), 1.0);
        let shape = logits.dims();
        let gradients = (logits * Tensor::<2>::from_data(TensorData::new(factors.clone(), shape), &Device::flex()))
            .sum()
            .backward();
        let reference = case.reference(&segments);
        let loss = |values: &_| -> f64 {
            reference.logits(values).iter().zip(&factors).map(|(x, &factor)| x * f64::from(factor)).sum()
        };
        for name in weights.names() {
            let gradient = data(weights.tensor(name).grad(&gradients).expect("every trained tensor has a gradient"));
            let largest = gradient.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            for index in [0, gradient.len() / 2, gradient.len() - 1] {
                let mut values = case.values.clone();
                let step = 1e-4;
                let value = values[name][index];
                let mut at = |value| {
                    values.get_mut(name).unwrap()[index] = value;
                    loss(&values)
                };
                let expected = (at(value + step) - at(value - step)) / (2.0 * step);
                let got = f64::from(gradient[index]);
                assert!(
                    (got - expected).abs() <= 1e-3 * f64::from(largest).max(1e-3),
                    "{options:?}, {name}[{index}]: {got}, expected {expected}"
                );
            }
        }
    }
}

/// Stream j sees streams up to j of its own position, and nothing else of other rows.
#[test]
fn a_stream_depends_on_lower_streams_of_its_position_alone() {
    let case = Case::new(&CASES[0]);
    let gamma = CASES[0].num_streams;
    let segments = [case.segment(2, 3, 1)];
    let before = rows(stream_states(&case.base, &case.weights(), &segments).unwrap());
    let mut weights = case.weights();
    let mut embeddings = data(weights.tensor("stream_embeddings").clone());
    let width = embeddings.len() / gamma;
    embeddings[width..2 * width].iter_mut().for_each(|x| *x += 0.5); // the second stream
    weights.set("stream_embeddings", Tensor::from_data(TensorData::new(embeddings, [gamma, width]), &Device::flex()));
    let after = rows(stream_states(&case.base, &weights, &segments).unwrap());
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(before == after, index % gamma == 0, "row {index}");
    }
    let mut other = segments.clone();
    let hidden = other[0].boundary.len() / 3;
    other[0].boundary[hidden] += 0.5; // the second position
    let after = rows(stream_states(&case.base, &case.weights(), &other).unwrap());
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(before == after, index / gamma != 1, "row {index}");
    }
}

/// Where nothing but the rotation of values tells streams apart, every one of them is itself, and turns.
#[test]
fn rotated_values_tell_streams_apart() {
    let of_angle = |angle| {
        let case = Case::new(&case::turned_by(angle));
        rows(stream_states(&case.base, &case.weights(), &[case.segment(2, 1, 1)]).unwrap())
    };
    let (still, turned) = (of_angle(0.0), of_angle(0.5));
    for (index, (still, turned)) in still.iter().zip(&turned).enumerate() {
        assert_ne!(still, turned, "stream {index}");
    }
    assert!(turned[0] != turned[1] && turned[1] != turned[2] && turned[0] != turned[2]);
}

/// Streams without the inner features that add least to them stay nearer to themselves than without those that add most.
#[test]
fn energies_tell_which_inner_features_matter() {
    for options in [&CASES[3], &CASES[4]] {
        // without low-rank changes, whose width would be another
        let case = Case::new(options);
        let segments = [case.segment(2, 3, 1)];
        let energies = inner_energies(&case.base, &case.weights(), &segments).unwrap();
        let (whole, width) = (data(stream_states(&case.base, &case.weights(), &segments).unwrap()), energies[0].len());
        let without = |is_least: bool| {
            let half = |energies: &Vec<f32>| {
                let mut places: Vec<u32> = (0..width as u32).collect();
                places.sort_by(|&a, &b| energies[a as usize].total_cmp(&energies[b as usize]));
                let mut kept = if is_least { places[width / 2..].to_vec() } else { places[..width / 2].to_vec() };
                kept.sort_unstable();
                kept
            };
            let features: Vec<Vec<u32>> = energies.iter().map(half).collect();
            let base = case.base.clone().narrowed_to(&features);
            let rest = data(stream_states(&base, &case.weights(), &segments).unwrap());
            rest.iter().zip(&whole).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
        };
        assert!(without(true) < without(false), "{options:?}: {} {}", without(true), without(false));
    }
}

/// A text's rows do not depend on the texts beside it, and keys after a position are not seen.
#[test]
fn a_text_depends_on_itself_alone() {
    for options in CASES {
        let case = Case::new(options);
        let (one, two) = (case.segment(3, 3, 1), case.segment(1, 2, 2));
        let alone = rows(stream_logits(&case.base, &case.weights(), std::slice::from_ref(&one)).unwrap());
        let beside = rows(stream_logits(&case.base, &case.weights(), &[two, one.clone()]).unwrap());
        let other_rows = 2 * options.num_streams;
        assert_close(&alone, &beside[other_rows..], &format!("{options:?}"));
        let mut changed = one.clone();
        let (head_dim, context) = (case.base.decoder().head_dim, one.first_position + 3);
        for plane in changed.keys.iter_mut().chain(&mut changed.values) {
            plane.chunks_exact_mut(context * head_dim).for_each(|head| head[(context - 1) * head_dim..].fill(7.0));
        }
        let after = rows(stream_logits(&case.base, &case.weights(), &[changed]).unwrap());
        let last = 2 * options.num_streams;
        assert_close(&alone[..last], &after[..last], &format!("{options:?}"));
        assert_ne!(alone[last..], after[last..], "{options:?}: the last position sees its own key");
    }
}

/// What is added to the base starts at zero, everything else is decided by the seed.
#[test]
fn fresh_weights_are_zero_where_they_add_to_the_base() {
    let case = Case::with_early_exit(&CASES[0]);
    let fresh = |seed| {
        let weights =
            forestream_burn::StreamWeights::init(case.base.adapter(), case.base.decoder(), seed, &Device::flex());
        weights.values()
    };
    assert_eq!(fresh(1), fresh(1));
    for (name, values) in fresh(1) {
        let starts_at_zero = ["lora_B.weight", "token_conditioning.weight", "up_proj.weight"];
        let is_zero = starts_at_zero.iter().any(|end| name.ends_with(end));
        assert_eq!(values.iter().all(|&x| x == 0.0), is_zero, "{name}");
        assert_eq!(fresh(2)[&name] == values, is_zero, "{name}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let case = Case::new(&CASES[0]);
    let said = |change: &dyn Fn(&mut Segment)| {
        let mut segment = case.segment(1, 2, 1);
        change(&mut segment);
        stream_logits(&case.base, &case.weights(), &[segment]).unwrap_err().to_string()
    };
    let gamma = CASES[0].num_streams;
    assert_eq!(
        said(&|segment| segment.tokens.truncate(gamma)),
        format!("segment 0: tokens (at least) has {gamma} elements, expected {}", gamma + 2)
    );
    assert_eq!(said(&|segment| _ = segment.keys.pop()), "segment 0: keys (layers) has 1 elements, expected 2");
    assert_eq!(said(&|segment| segment.first_position = 2), "segment 0: keys[0] has 48 elements, expected 64");
    assert_eq!(said(&|segment| segment.tokens[0] = 320), "token id 320 is not in the vocabulary of 320 tokens");
    assert!(matches!(stream_logits(&case.base, &case.weights(), &[]), Err(BurnError::Empty)));
}

fn data(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data_as::<f32>().try_to_vec().unwrap()
}

fn rows(tensor: Tensor<2>) -> Vec<Vec<f32>> {
    let width = tensor.dims()[1];
    data(tensor).chunks_exact(width).map(<[f32]>::to_vec).collect()
}

/// Equal up to the order of sums: products of other sizes may add in another order.
fn assert_close(left: &[Vec<f32>], right: &[Vec<f32>], context: &str) {
    assert_eq!(left.len(), right.len());
    for (left, right) in left.iter().flatten().zip(right.iter().flatten()) {
        assert!((left - right).abs() <= 1e-5 * left.abs().max(1.0), "{context}: {left} {right}");
    }
}
