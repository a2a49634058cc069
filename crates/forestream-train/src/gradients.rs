//! One pass forward and backward: pieces in, scores and gradients out.

use std::collections::btree_map::Entry;

use forestream_burn::tensor::{Device, Tensor, TensorData};
use forestream_burn::{StreamBase, StreamWeights};
use forestream_model::TokenId;

use crate::TrainError;
use crate::adamw::Named;
use crate::objective::{NextTokenScore, Score, exit_cross_entropy, main_cross_entropy, score_rows};
use crate::pieces::{Input, Piece, run, values};
use crate::settings::TrainSettings;
use crate::targets::{Target, Targets};
use crate::workers::Workers;

/// What the rows of a batch gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BatchScore {
    pub(crate) streams: Score,
    pub(crate) main: NextTokenScore,
    pub(crate) early_exit: NextTokenScore,
}

impl BatchScore {
    fn new(num_streams: usize) -> Self {
        Self {
            streams: Score::new(num_streams),
            main: NextTokenScore::default(),
            early_exit: NextTokenScore::default(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.streams.add(&other.streams);
        self.main.add(other.main);
        self.early_exit.add(other.early_exit);
    }
}

/// The scales of a step's losses: all parts share them, so that their gradients add up to those of the step.
struct Scales {
    /// What the losses of streams are divided by: the sum of their targets' weights over the weight of their mean loss.
    stream_divisor: f64,
    /// What the losses of main rows are multiplied by.
    main_factor: f32,
    /// What the losses of the early exit are multiplied by.
    early_exit_factor: f32,
}

impl Scales {
    fn of(pieces: &[Piece], settings: &TrainSettings) -> Self {
        let [main_weight, stream_weight] =
            settings.joint.as_ref().map_or([0.0, 1.0], |joint| [joint.main_loss_weight, joint.stream_loss_weight]);
        let total_weight = pieces.iter().map(|piece| piece.targets.total_weight()).sum::<f64>().max(f64::MIN_POSITIVE);
        let num_main_rows = pieces.iter().map(|piece| piece.main_targets.len()).sum::<usize>();
        Self {
            stream_divisor: total_weight / stream_weight,
            main_factor: (main_weight / num_main_rows.max(1) as f64) as f32,
            early_exit_factor: 1.0 / pieces.iter().map(Piece::num_positions).sum::<usize>().max(1) as f32,
        }
    }
}

/// What a step's gradients are computed with.
pub(crate) struct Step<'a> {
    pub(crate) base: &'a StreamBase,
    /// The trained tensors, row-major.
    pub(crate) weights: &'a Named,
    pub(crate) device: &'a Device,
    pub(crate) settings: &'a TrainSettings,
    pub(crate) workers: &'a Workers,
}

impl Step<'_> {
    /// Scores of a batch, and the gradients of its loss.
    ///
    /// # Errors
    /// If a pass fails.
    pub(crate) fn gradients(&self, pieces: Vec<Piece>) -> Result<(BatchScore, Named), TrainError> {
        let scales = Scales::of(&pieces, self.settings);
        let mut score = BatchScore::new(self.base.adapter().streams.num_streams);
        let mut sums = Named::new();
        for result in self.workers.map(parts(pieces, self.workers.part_rows()), |part| self.part(part, &scales)) {
            let (part_score, gradients) = result?;
            score.add(&part_score);
            add(&mut sums, gradients);
        }
        Ok((score, sums))
    }

    /// One pass forward and backward. The graph's leaves are its own: parts that shared them would wait for each other.
    fn part(&self, part: Part, scales: &Scales) -> Result<(BatchScore, Named), TrainError> {
        let weights = StreamWeights::from_values(self.base.adapter(), self.base.decoder(), self.weights, self.device);
        let mut score = BatchScore::new(self.base.adapter().streams.num_streams);
        let logits = run(self.base, &weights, part.inputs)?;
        let [_, width] = logits.streams.dims();
        let mut gradient = values(logits.streams.clone());
        let mut rest = gradient.as_mut_slice();
        for targets in &part.targets {
            let (own, others) = rest.split_at_mut(targets.rows.len() * width);
            score.streams.add(&score_rows(own, targets, self.settings.objective, scales.stream_divisor));
            rest = others;
        }
        let mut loss = product(logits.streams, gradient);
        if let Some(logits) = logits.main {
            let mut gradient = values(logits.clone());
            score.main.add(main_cross_entropy(&mut gradient, &part.main_targets, scales.main_factor));
            loss = loss + product(logits, gradient);
        }
        if let Some(logits) = logits.early_exit {
            let next: Vec<Target> = part.targets.iter().flat_map(|targets| &targets.next).copied().collect();
            let mut gradient = values(logits.clone());
            score.early_exit.add(exit_cross_entropy(&mut gradient, &next, scales.early_exit_factor));
            loss = loss + product(logits, gradient);
        }
        Ok((score, gradients_of(&loss, &weights)))
    }
}

/// Pieces of one pass.
#[derive(Default)]
struct Part {
    inputs: Vec<Input>,
    targets: Vec<Targets>,
    main_targets: Vec<TokenId>,
}

/// Cuts a step into parts of consecutive pieces, of at most `max_rows` rows or of one piece.
fn parts(pieces: Vec<Piece>, max_rows: usize) -> Vec<Part> {
    let (mut parts, mut num_rows) = (Vec::<Part>::new(), 0);
    for piece in pieces {
        num_rows += piece.num_rows();
        if parts.is_empty() || num_rows > max_rows {
            parts.push(Part::default());
            num_rows = piece.num_rows();
        }
        let part = parts.last_mut().expect("one was pushed");
        part.inputs.push(piece.input);
        part.targets.push(piece.targets);
        part.main_targets.extend(piece.main_targets);
    }
    parts
}

/// The sum of products with constants, which has these constants as its gradient.
fn product(logits: Tensor<2>, gradient: Vec<f32>) -> Tensor<1> {
    let (shape, device) = (logits.dims(), logits.device().without_autodiff());
    (logits * Tensor::<2>::from_data(TensorData::new(gradient, shape), &device)).sum()
}

fn gradients_of(loss: &Tensor<1>, weights: &StreamWeights) -> Named {
    let mut gradients = loss.backward();
    let gradient = |name: &str| {
        let gradient = weights.tensor(name).grad_remove(&mut gradients)?;
        Some((name.to_owned(), gradient.try_into_vec_as::<f32>().expect("elements of the asked-for type")))
    };
    weights.names().filter_map(gradient).collect()
}

fn add(sums: &mut Named, gradients: Named) {
    for (name, values) in gradients {
        match sums.entry(name) {
            Entry::Vacant(entry) => {
                entry.insert(values);
            }
            Entry::Occupied(mut sum) => sum.get_mut().iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use forestream_burn::tensor::Device;
    use forestream_model::streams::{
        ADAPTER_FORMAT_VERSION, AdapterConfig, BaseModel, MAIN_LAYERS, StreamConfig, TrainingMode,
    };
    use forestream_model::{Checkpoint, LoadOptions};

    use super::*;
    use crate::data::Example;
    use crate::draft_vocabulary::DraftRows;
    use crate::features::FeatureExtractor;
    use crate::pieces::PieceMaker;
    use crate::preset::Preset;
    use crate::settings::JointSettings;

    /// Hands a step with these settings, and what makes its pieces, to `check`.
    fn with_step(settings: &TrainSettings, check: impl FnOnce(&Step<'_>, &mut PieceMaker)) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama");
        let checkpoint = Checkpoint::open(&path).unwrap();
        let mode = if settings.joint.is_some() { TrainingMode::Joint } else { TrainingMode::Lossless };
        let streams = StreamConfig {
            num_streams: 2,
            num_msa_layers: 1,
            intermediate_size: None,
            ..Preset::Fast.streams(checkpoint.config(), mode)
        };
        let base_model = BaseModel {
            name: "tiny".to_owned(),
            fingerprint: checkpoint.fingerprint(),
            architecture: checkpoint.config().architecture.clone(),
        };
        let config = AdapterConfig {
            format_version: ADAPTER_FORMAT_VERSION,
            base_model,
            mode,
            streams,
            lora: Some(Preset::Fast.lora()),
            main_lora: settings.joint.as_ref().map(|_| Preset::main_lora(2)),
            calibration: Vec::new(),
        };
        let (device, workers) = (Device::flex(), Workers::apart(2).unwrap());
        let base = StreamBase::load(&checkpoint, &config, &[], &device).unwrap();
        let features = FeatureExtractor::load(&checkpoint, base.first_layer(), 2, LoadOptions::default()).unwrap();
        let vocabulary = DraftRows::new(&[], checkpoint.config().vocab_size);
        let weights = StreamWeights::init(&config, checkpoint.config(), 3, &device).values();
        let step = Step { base: &base, weights: &weights, device: &device, settings, workers: &workers };
        check(&step, &mut PieceMaker::new(features, vocabulary, &config, settings.depth_decay));
    }

    fn joint_settings(main_loss_weight: f64, stream_loss_weight: f64) -> TrainSettings {
        let joint = Some(JointSettings { main_loss_weight, stream_loss_weight, ..JointSettings::default() });
        TrainSettings { joint, ..TrainSettings::default() }
    }

    /// Gradients of a joint batch with these loss weights and these targets of main rows.
    fn joint_gradients(main_loss_weight: f64, stream_loss_weight: f64, main_targets: [TokenId; 5]) -> Named {
        let example = Example { prompt: vec![1, 5], completion: vec![10, 11, 12, 13, 14] };
        let mut gradients = Named::new();
        with_step(&joint_settings(main_loss_weight, stream_loss_weight), |step, maker| {
            let mut pieces = maker.pieces(&example).unwrap();
            pieces[0].main_targets = main_targets.to_vec();
            gradients = step.gradients(pieces).unwrap().1;
        });
        gradients
    }

    #[test]
    fn the_gradients_of_parts_add_up_to_those_of_the_step() {
        let example = |index: u32| Example { prompt: vec![1, index], completion: (5..20 + index).collect() };
        with_step(&joint_settings(1.0, 0.3), |step, maker| {
            let mut pieces = || (1..20).flat_map(|index| maker.pieces(&example(index)).unwrap()).collect::<Vec<_>>();
            let scales = Scales::of(&pieces(), step.settings);
            let whole = parts(pieces(), usize::MAX).pop().unwrap();
            assert_eq!(whole.targets.len(), 19, "all pieces are one part");
            let (expected_score, expected) = step.part(whole, &scales).unwrap();
            assert!(parts(pieces(), step.workers.part_rows()).len() > 2);
            let (score, gradients) = step.gradients(pieces()).unwrap();
            assert_eq!(score.main.rows, expected_score.main.rows);
            assert_same((&score, &gradients), (&expected_score, &expected));
        });
    }

    #[test]
    fn segments_of_an_example_teach_what_the_whole_teaches() {
        let example = Example { prompt: vec![1, 9], completion: (5..140).collect() };
        with_step(&TrainSettings::default(), |step, maker| {
            let whole = maker.pieces(&example).unwrap();
            maker.features.cut(step.workers.segment_len());
            let cut = maker.pieces(&example).unwrap();
            assert_eq!((whole.len(), cut.len()), (1, 5));
            let (expected_score, expected) = step.gradients(whole).unwrap();
            let (score, gradients) = step.gradients(cut).unwrap();
            assert_same((&score, &gradients), (&expected_score, &expected));
        });
    }

    /// Up to the order of additions.
    fn assert_same((score, gradients): (&BatchScore, &Named), (expected_score, expected): (&BatchScore, &Named)) {
        assert_eq!(score.streams.rows, expected_score.streams.rows);
        assert!((score.streams.loss / expected_score.streams.loss - 1.0).abs() < 1e-6);
        assert_eq!(gradients.len(), expected.len());
        for (name, values) in gradients {
            let difference = values.iter().zip(&expected[name]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let size = expected[name].iter().fold(0.0_f32, |size, x| size.max(x.abs()));
            assert!(difference <= 1e-4 * size, "{name}: {difference} of {size}");
        }
    }

    #[test]
    fn each_loss_reaches_what_it_weighs() {
        const TRUE: [TokenId; 5] = [10, 11, 12, 13, 14];
        let size = |gradients: &Named, is_main: bool| -> f32 {
            let meant = gradients.iter().filter(|(name, _)| name.starts_with(MAIN_LAYERS) == is_main);
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
