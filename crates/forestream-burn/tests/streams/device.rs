//! Another device computes what the processor does: streams, their gradients, and the whole decoder.
//!
//! Needs a driver that the device finds; one in software (Mesa's lavapipe) will do.

use burn_tensor::{Device, DeviceKind, Tensor};
use forestream_burn::{BurnModel, stream_logits};
use forestream_model::{Hidden, Model, Outputs, Row, TokenTree};

use crate::case::{CASES, Case};
use crate::data;
use crate::engine::relative_error;

/// Single precision on both sides, in other orders of addition.
const MAX_ERROR: f64 = 1e-4;

fn other_device() -> Device {
    #[cfg(feature = "vulkan")]
    return Device::vulkan(DeviceKind::DefaultDevice);
    #[cfg(not(feature = "vulkan"))]
    return Device::wgpu(DeviceKind::DefaultDevice);
}

#[test]
fn streams_and_gradients_are_those_of_the_processor() {
    let options = &CASES[0];
    let of_device = |device: &Device| {
        let case = Case::on(device, options);
        let weights = case.weights();
        let logits = stream_logits(&case.base, &weights, &[case.segment(0, 3, 1), case.segment(4, 2, 2)]).unwrap();
        let values = data(logits.clone());
        let gradients = (logits.clone() * logits).mean().backward();
        let gradient = |name| data(Tensor::grad(weights.tensor(name), &gradients).unwrap());
        let gradients: Vec<_> = weights.names().map(|name| (name.to_owned(), gradient(name))).collect();
        (values, gradients)
    };
    let (expected, expected_gradients) = of_device(&Device::flex());
    let (logits, gradients) = of_device(&other_device());
    assert!(relative_error(&logits, &expected) <= MAX_ERROR);
    for ((name, got), (_, expected)) in gradients.iter().zip(&expected_gradients) {
        let error = relative_error(got, expected);
        assert!(error <= MAX_ERROR, "{name}: {error:.1e}");
    }
}

#[test]
fn the_decoder_is_that_of_the_processor() {
    let case = Case::new(&CASES[1]);
    let tokens: Vec<u32> = (0..40).map(|index| index * 7 % 320).collect();
    let logits_on = |device: &Device| {
        let model = BurnModel::load(&case.checkpoint, device).unwrap();
        let (mut cache, tree, mut hidden) = (model.new_cache(64), TokenTree::chain(&tokens), Hidden::new());
        let mut rows = [Row { tree: &tree, cache: &mut cache, outputs: Outputs::All }];
        model.forward(&mut rows, &mut hidden).unwrap();
        let mut logits = Vec::new();
        model.logits(&hidden, 0..tokens.len(), &mut logits);
        logits
    };
    let error = relative_error(&logits_on(&other_device()), &logits_on(&Device::flex()));
    assert!(error <= MAX_ERROR, "{error:.1e}");
}
