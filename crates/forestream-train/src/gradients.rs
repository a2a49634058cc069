//! One pass forward and backward: pieces in, scores and gradients out.

use forestream_burn::tensor::{Tensor, TensorData};
use forestream_burn::{StreamBase, StreamWeights};
use forestream_model::TokenId;

use crate::TrainError;
use crate::adamw::Named;
use crate::objective::{MainScore, Score, exit_cross_entropy, main_cross_entropy, score_rows};
use crate::pieces::{Input, Piece, run, values};
use crate::settings::TrainSettings;
use crate::targets::{Target, Targets};

/// Logits that are held at once; larger steps are computed in parts whose gradients add up.
const MAX_LOGITS: usize = 48 << 20;

/// What the rows of a batch gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BatchScore {
    pub(crate) streams: Score,
    pub(crate) main: MainScore,
    pub(crate) early_exit: MainScore,
}

impl BatchScore {
    fn new(num_streams: usize) -> Self {
        Self { streams: Score::new(num_streams), main: MainScore::default(), early_exit: MainScore::default() }
    }
}

/// Scores of a batch, and the gradients of its loss.
///
/// # Errors
/// If a pass fails.
pub(crate) fn gradients(
    base: &StreamBase,
    weights: &StreamWeights,
    pieces: Vec<Piece>,
    settings: &TrainSettings,
) -> Result<(BatchScore, Named), TrainError> {
    let [main_weight, stream_weight] =
        settings.joint.as_ref().map_or([0.0, 1.0], |joint| [joint.main_loss_weight, joint.stream_loss_weight]);
    let total_weight = pieces.iter().map(|piece| piece.targets.total_weight()).sum::<f64>().max(f64::MIN_POSITIVE);
    let num_main_rows = pieces.iter().map(|piece| piece.main_targets.len()).sum::<usize>();
    let main_scale = (main_weight / num_main_rows.max(1) as f64) as f32;
    let exit_scale = 1.0 / pieces.iter().map(Piece::num_positions).sum::<usize>().max(1) as f32;
    let mut score = BatchScore::new(base.adapter().streams.num_streams);
    let mut sums = Named::new();
    let mut pieces = pieces.into_iter().peekable();
    while pieces.peek().is_some() {
        let part = take_part(base, &mut pieces);
        let logits = run(base, weights, part.inputs)?;
        let [_, width] = logits.streams.dims();
        let mut gradient = values(logits.streams.clone());
        let mut rest = gradient.as_mut_slice();
        for targets in &part.targets {
            let (own, others) = rest.split_at_mut(targets.rows.len() * width);
            score.streams.add(&score_rows(own, targets, settings.objective, total_weight / stream_weight));
            rest = others;
        }
        let mut loss = product(logits.streams, gradient);
        if let Some(logits) = logits.main {
            let mut gradient = values(logits.clone());
            score.main.add(main_cross_entropy(&mut gradient, &part.main_targets, main_scale));
            loss = loss + product(logits, gradient);
        }
        if let Some(logits) = logits.early_exit {
            let next: Vec<Target> = part.targets.iter().flat_map(|targets| &targets.next).copied().collect();
            let mut gradient = values(logits.clone());
            score.early_exit.add(exit_cross_entropy(&mut gradient, &next, exit_scale));
            loss = loss + product(logits, gradient);
        }
        add_gradients(&loss, weights, &mut sums);
    }
    Ok((score, sums))
}

/// Pieces of one pass.
#[derive(Default)]
struct Part {
    inputs: Vec<Input>,
    targets: Vec<Targets>,
    main_targets: Vec<TokenId>,
}

/// Takes the leading pieces that together give at most [`MAX_LOGITS`], and at least one.
fn take_part(base: &StreamBase, pieces: &mut std::iter::Peekable<std::vec::IntoIter<Piece>>) -> Part {
    let (mut part, mut num_logits) = (Part::default(), 0);
    while let Some(piece) = pieces.next_if(|piece| num_logits == 0 || num_logits + piece.num_logits(base) <= MAX_LOGITS)
    {
        num_logits += piece.num_logits(base);
        part.inputs.push(piece.input);
        part.targets.push(piece.targets);
        part.main_targets.extend(piece.main_targets);
    }
    part
}

/// The sum of products with constants, which has these constants as its gradient.
fn product(logits: Tensor<2>, gradient: Vec<f32>) -> Tensor<1> {
    let (shape, device) = (logits.dims(), logits.device().without_autodiff());
    (logits * Tensor::<2>::from_data(TensorData::new(gradient, shape), &device)).sum()
}

fn add_gradients(loss: &Tensor<1>, weights: &StreamWeights, sums: &mut Named) {
    let mut gradients = loss.backward();
    for name in weights.names() {
        let tensor = weights.tensor(name);
        let Some(gradient) = tensor.grad_remove(&mut gradients) else { continue };
        let values = gradient.try_into_vec_as::<f32>().expect("elements of the asked-for type");
        match sums.get_mut(name) {
            Some(sum) => sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
            None => {
                sums.insert(name.to_owned(), values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use forestream_burn::tensor::Device;
    use forestream_model::streams::{ADAPTER_FORMAT_VERSION, AdapterConfig, BaseModel, TrainingMode};
    use forestream_model::{Checkpoint, LoadOptions};

    use super::*;
    use crate::data::Example;
    use crate::draft_vocabulary::DraftRows;
    use crate::features::FeatureExtractor;
    use crate::pieces::PieceMaker;
    use crate::settings::{JointSettings, Preset};

    /// Gradients of a joint batch with these loss weights and these targets of main rows.
    fn joint_gradients(main_loss_weight: f64, stream_loss_weight: f64, main_targets: [TokenId; 5]) -> Named {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
        let checkpoint = Checkpoint::open(&path).unwrap();
        let Preset { mut streams, lora, .. } = Preset::fast();
        (streams.num_streams, streams.num_msa_layers, streams.draft_vocab_size) = (2, 1, None);
        let base_model = BaseModel {
            name: "tiny".to_owned(),
            fingerprint: checkpoint.fingerprint(),
            architecture: checkpoint.config().architecture.clone(),
        };
        let config = AdapterConfig {
            format_version: ADAPTER_FORMAT_VERSION,
            base_model,
            mode: TrainingMode::Joint,
            streams,
            lora: Some(lora),
            main_lora: Some(Preset::main_lora(2)),
            calibration: Vec::new(),
        };
        let base = StreamBase::load(&checkpoint, &config, &[], &Device::flex()).unwrap();
        let mut features = FeatureExtractor::load(&checkpoint, base.first_layer(), 2, LoadOptions::default()).unwrap();
        let vocabulary = DraftRows::new(&[], checkpoint.config().vocab_size);
        let example = Example { prompt: vec![1, 5], completion: vec![10, 11, 12, 13, 14] };
        let mut maker = PieceMaker { features: &mut features, base: &base, vocabulary: &vocabulary };
        let mut pieces = maker.pieces(&example).unwrap();
        pieces[0].main_targets = main_targets.to_vec();
        let weights = StreamWeights::init(&config, checkpoint.config(), 3, &Device::flex());
        let joint = Some(JointSettings { main_loss_weight, stream_loss_weight, ..JointSettings::default() });
        gradients(&base, &weights, pieces, &TrainSettings { joint, ..TrainSettings::default() }).unwrap().1
    }

    #[test]
    fn each_loss_reaches_what_it_weighs() {
        const TRUE: [TokenId; 5] = [10, 11, 12, 13, 14];
        let size = |gradients: &Named, is_main: bool| -> f32 {
            let meant = gradients.iter().filter(|(name, _)| name.starts_with("main.") == is_main);
            meant.flat_map(|(_, values)| values).map(|x| x.abs()).sum()
        };
        let without_streams = joint_gradients(1.0, 0.0, TRUE);
        assert!(size(&without_streams, true) > 0.0);
        assert_eq!(size(&without_streams, false), 0.0, "the main loss does not depend on streams");
        let without_main = joint_gradients(0.0, 0.3, TRUE);
        assert!(size(&without_main, true) > 0.0, "streams read main rows");
        assert!(size(&without_main, false) > 0.0);
        assert_eq!(without_main, joint_gradients(0.0, 0.3, [20, 21, 22, 23, 24]), "the main loss counts nothing");
        let both = joint_gradients(1.0, 0.3, TRUE);
        for (name, values) in &both {
            for (index, value) in values.iter().enumerate() {
                let sum = without_streams[name][index] + without_main[name][index];
                assert!((value - sum).abs() < 1e-4, "{name}: {value} {sum}");
            }
        }
    }
}
