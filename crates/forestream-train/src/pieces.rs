//! Pieces of examples as the differentiable model takes them, with what their rows should predict.
//!
//! The one place that knows both modes: where the model stays as it is, a piece is a segment that shares the engine's keys
//! and values with others until its pass; in joint mode it is a whole text, whose main rows are trained too.

use forestream_burn::tensor::Tensor;
use forestream_burn::{
    BurnError, JointLogits, JointText, StreamBase, StreamWeights, early_exit_logits, joint_logits, stream_logits,
};
use forestream_model::TokenId;
use forestream_model::streams::{AdapterConfig, TrainingMode};

use crate::TrainError;
use crate::data::Example;
use crate::draft_vocabulary::DraftRows;
use crate::features::{FeatureExtractor, TracedSegment};
use crate::targets::{Targets, Teacher};

/// What a pass reads.
pub(crate) enum Input {
    Lossless(TracedSegment),
    Joint(JointText),
}

/// Consecutive positions of an example, with what their rows should predict.
pub(crate) struct Piece {
    pub(crate) input: Input,
    pub(crate) targets: Targets,
    /// The token after each main row that is trained; empty where none is.
    pub(crate) main_targets: Vec<TokenId>,
}

/// The logits of a pass.
pub(crate) struct Logits {
    /// `[main rows, vocab_size]`; `None` where main rows are not trained.
    pub(crate) main: Option<Tensor<2>>,
    /// `[stream rows, draft vocabulary]`.
    pub(crate) streams: Tensor<2>,
    /// `[positions, draft vocabulary]`; `None` without early exit.
    pub(crate) early_exit: Option<Tensor<2>>,
}

/// What makes pieces of examples.
pub(crate) struct PieceMaker {
    pub(crate) features: FeatureExtractor,
    vocabulary: DraftRows,
    mode: TrainingMode,
    num_streams: usize,
    /// As in the settings.
    depth_decay: f32,
}

impl PieceMaker {
    /// Pieces for the streams of `adapter`.
    pub(crate) fn new(
        features: FeatureExtractor,
        vocabulary: DraftRows,
        adapter: &AdapterConfig,
        depth_decay: f32,
    ) -> Self {
        Self { features, vocabulary, mode: adapter.mode, num_streams: adapter.streams.num_streams, depth_decay }
    }

    /// The pieces of an example: all of its positions with targets.
    ///
    /// # Errors
    /// If a pass fails.
    pub(crate) fn pieces(&mut self, example: &Example) -> Result<Vec<Piece>, TrainError> {
        if self.mode == TrainingMode::Joint {
            let text = self.features.joint_text(example)?;
            let targets = self.targets(example, text.streams.start, &text.tokens[text.streams.start..]);
            return Ok(vec![Piece { input: Input::Joint(text), targets, main_targets: example.completion.clone() }]);
        }
        let segments = self.features.segments(example)?;
        let piece = |(segment, teacher): (TracedSegment, Option<Teacher>)| {
            let targets = self.targets(example, segment.first_position(), segment.following());
            let targets = Targets { teacher, ..targets };
            Piece { input: Input::Lossless(segment), targets, main_targets: Vec::new() }
        };
        Ok(segments.into_iter().map(piece).collect())
    }

    fn targets(&self, example: &Example, first_position: usize, following: &[TokenId]) -> Targets {
        Targets::of(example, first_position, following, self.num_streams, self.depth_decay, &self.vocabulary)
    }
}

impl Piece {
    /// Positions with streams.
    pub(crate) fn num_positions(&self) -> usize {
        self.targets.rows.len() / self.targets.num_streams
    }

    /// Rows of a pass: those of streams, and in joint mode all main rows.
    pub(crate) fn num_rows(&self) -> usize {
        let main_rows = match &self.input {
            Input::Lossless(_) => 0,
            Input::Joint(text) => text.main.end,
        };
        self.targets.rows.len() + main_rows
    }
}

/// Runs pieces of one mode.
///
/// # Errors
/// If the pass fails.
pub(crate) fn run(base: &StreamBase, weights: &StreamWeights, inputs: Vec<Input>) -> Result<Logits, BurnError> {
    let (mut segments, mut texts) = (Vec::new(), Vec::new());
    for input in inputs {
        match input {
            Input::Lossless(segment) => segments.push(segment.to_segment()),
            Input::Joint(text) => texts.push(text),
        }
    }
    if texts.is_empty() {
        let streams = stream_logits(base, weights, &segments)?;
        return Ok(Logits { main: None, streams, early_exit: early_exit_logits(base, weights, &segments)? });
    }
    let JointLogits { main, streams, early_exit } = joint_logits(base, weights, &texts)?;
    Ok(Logits { main: Some(main), streams, early_exit })
}

/// The values of a tensor.
pub(crate) fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().expect("elements of the asked-for type")
}
