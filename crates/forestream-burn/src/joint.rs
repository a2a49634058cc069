//! The joint forward pass: main rows with changes of their own, and streams that read them, in one graph.
//!
//! In joint mode the adapter's `main_lora` fits the top layers to a task while the streams learn to draft for it. All
//! positions of a text are main rows here, since every key may change; below, the engine's boundary states stand for the
//! rest of the model. Source: Speculative Streaming (arXiv 2402.11131), section 3.2.

use std::ops::Range;

use burn_tensor::{Tensor, TensorData};
use forestream_model::TokenId;

use crate::attention::{Block, Plane, Sharing, attend_main};
use crate::changes::Changes;
use crate::early_exit;
use crate::layer::{Heads, rms_norm};
use crate::rotation::Rotation;
use crate::streams::{Anchor, StreamRows};
use crate::{BurnError, StreamBase, StreamWeights};

/// A text of a joint pass, from its first position on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JointText {
    /// States before layer [`StreamBase::first_layer`], not normalized, `[positions, hidden]`.
    pub boundary: Vec<f32>,
    /// Entry `i` is the token after position `i`; as many as the last position with streams needs, padded with any valid
    /// id where the text ends.
    pub tokens: Vec<TokenId>,
    /// Positions whose main logits are asked for.
    pub main: Range<usize>,
    /// Positions whose streams run.
    pub streams: Range<usize>,
}

/// What a joint pass predicts.
#[derive(Clone, Debug)]
pub struct JointLogits {
    /// Main rows, text by text, `[positions, vocab_size]`.
    pub main: Tensor<2>,
    /// Streams, text by text, position by position, stream by stream, `[rows, draft vocabulary]`.
    pub streams: Tensor<2>,
    /// The early exit at the positions with streams, `[positions, draft vocabulary]`; it teaches main rows nothing.
    pub early_exit: Option<Tensor<2>>,
}

/// Logits of main rows and streams, differentiable in `weights`: streams read main keys and values with their gradients.
///
/// # Errors
/// An adapter that is not joint, a text that contradicts the base model or itself, or no position of one kind at all.
pub fn joint_logits(base: &StreamBase, weights: &StreamWeights, texts: &[JointText]) -> Result<JointLogits, BurnError> {
    let Some(main_head) = &base.main_head else {
        return Err(BurnError::Adapter("its mode is `lossless`; a joint pass needs mode `joint`".to_owned()));
    };
    for (index, text) in texts.iter().enumerate() {
        text.check(index, base)?;
    }
    if texts.iter().all(|text| text.main.is_empty()) {
        return Err(BurnError::Empty);
    }
    let streams = StreamRows::new(base, weights, texts.iter().flat_map(|text| text.anchors(base)).collect())?;
    let main = MainRows::new(base, weights, texts);
    let Passed { boundary, main: main_rows, streams: stream_rows } = run(&main, &streams);
    let normalized = rms_norm(main_rows, Some(&base.norm), base.decoder.rms_norm_eps);
    let main_states = main.select(&normalized, |text| text.main.clone());
    let main_logits = main_states.matmul(main_head.clone().transpose());
    Ok(JointLogits {
        main: main_logits,
        streams: streams.logits(streams.finish(stream_rows)),
        early_exit: early_exit::logits(base, weights, boundary.detach()),
    })
}

/// What rows become.
struct Passed {
    /// Main rows of the positions with streams, where these begin.
    boundary: Tensor<2>,
    /// Main rows behind the last layer.
    main: Tensor<2>,
    /// Streams behind the last layer.
    streams: Tensor<2>,
}

/// Runs both kinds of rows through all layers.
fn run(main: &MainRows<'_>, streams: &StreamRows<'_>) -> Passed {
    let base = main.base;
    let first_with_streams = base.layers.len() - base.stream_layers().len();
    let mut rows = main.start();
    let mut boundary = None;
    let mut stream_rows = None;
    for (index, layer) in base.layers.iter().enumerate() {
        let (planes, attended) = main.attend(&layer.heads(&rows, &main.rotation, &main.changes));
        if let Some(stream_layer) = index.checked_sub(first_with_streams) {
            let anchors = boundary.get_or_insert_with(|| main.select(&rows, |text| text.streams.clone()));
            let started = stream_rows.take().unwrap_or_else(|| streams.start(anchors.clone()));
            let blocks = main.stream_blocks.iter().map(Vec::as_slice);
            let texts: Vec<_> = planes.iter().zip(blocks).collect();
            stream_rows = Some(streams.layer(stream_layer, started, &texts));
        }
        rows = layer.finish(rows, &attended, &main.changes);
    }
    let has_streams = "there is at least one layer with streams";
    Passed { boundary: boundary.expect(has_streams), main: rows, streams: stream_rows.expect(has_streams) }
}

/// The main rows of a pass: all positions, text after text.
struct MainRows<'a> {
    base: &'a StreamBase,
    texts: &'a [JointText],
    rotation: Rotation,
    sharing: Sharing,
    changes: Changes<'a>,
    /// By text, all of its positions.
    blocks: Vec<Vec<Block>>,
    /// By text, its positions with streams.
    stream_blocks: Vec<Vec<Block>>,
}

impl<'a> MainRows<'a> {
    fn new(base: &'a StreamBase, weights: &'a StreamWeights, texts: &'a [JointText]) -> Self {
        let len = |text: &JointText| text.boundary.len() / base.decoder.hidden_size;
        let positions: Vec<usize> = texts.iter().flat_map(|text| 0..len(text)).collect();
        let cover = |range: Range<usize>| Block::cover(range.start, range.len(), &base.device);
        Self {
            base,
            texts,
            rotation: Rotation::new(&positions, &base.frequencies, &base.device),
            sharing: Sharing::new(&base.decoder),
            changes: Changes::of_main_rows(weights, &base.adapter),
            blocks: texts.iter().map(|text| cover(0..len(text))).collect(),
            stream_blocks: texts.iter().map(|text| cover(text.streams.clone())).collect(),
        }
    }

    fn start(&self) -> Tensor<2> {
        let boundary: Vec<f32> = self.texts.iter().flat_map(|text| &text.boundary).copied().collect();
        let width = self.base.decoder.hidden_size;
        let shape = [boundary.len() / width, width];
        Tensor::from_data(TensorData::new(boundary, shape), &self.base.device)
    }

    /// By text, its first row and its number of rows.
    fn spans(&self) -> impl Iterator<Item = (&JointText, usize, usize)> {
        let width = self.base.decoder.hidden_size;
        self.texts.iter().scan(0, move |first, text| {
            let len = text.boundary.len() / width;
            let span = (text, *first, len);
            *first += len;
            Some(span)
        })
    }

    /// Keys and values of each text, and what all rows attended to, `[rows, query heads * head_dim]`.
    fn attend(&self, heads: &Heads) -> (Vec<Plane>, Tensor<2>) {
        let (mut planes, mut attended) = (Vec::new(), Vec::new());
        for ((_, first, len), blocks) in self.spans().zip(&self.blocks) {
            let narrow = |x: &Tensor<3>| x.clone().narrow(0, first, len);
            let by_head = |x: &Tensor<3>| Sharing::by_head(narrow(x));
            let plane = Plane::new(by_head(&heads.keys), by_head(&heads.values));
            attended.push(attend_main(&self.sharing.queries(narrow(&heads.queries), 1), &plane, blocks));
            planes.push(plane);
        }
        (planes, self.sharing.rows(Tensor::cat(attended, 1)))
    }

    /// The rows of a range of each text's positions.
    fn select(&self, rows: &Tensor<2>, range: impl Fn(&JointText) -> Range<usize>) -> Tensor<2> {
        let parts = self.spans().map(|(text, first, _)| (range(text), first)).filter(|(range, _)| !range.is_empty());
        let parts = parts.map(|(range, first)| rows.clone().narrow(0, first + range.start, range.len()));
        Tensor::cat(parts.collect(), 0)
    }
}

impl JointText {
    fn anchors(&self, base: &StreamBase) -> impl Iterator<Item = Anchor<'_>> {
        let num_streams = base.adapter.streams.num_streams;
        let following = move |position: usize| &self.tokens[position..][..num_streams];
        self.streams.clone().map(move |position| Anchor { position, following: following(position) })
    }

    fn check(&self, index: usize, base: &StreamBase) -> Result<(), BurnError> {
        let width = base.decoder.hidden_size;
        let positions = self.boundary.len() / width;
        let tokens = if self.streams.is_empty() { 0 } else { self.streams.end - 1 + base.adapter.streams.num_streams };
        let parts = [
            ("boundary", positions.max(1) * width, self.boundary.len()),
            ("main (up to all positions)", self.main.end.min(positions), self.main.end),
            ("streams (up to all positions)", self.streams.end.min(positions), self.streams.end),
            ("tokens (at least)", tokens, self.tokens.len().min(tokens)),
        ];
        if let Some((what, expected, got)) = parts.into_iter().find(|(_, expected, got)| expected != got) {
            return Err(BurnError::Segment { index, what: what.to_owned(), expected, got });
        }
        let vocab_size = base.decoder.vocab_size;
        match self.tokens.iter().find(|&&token| token as usize >= vocab_size) {
            Some(&token) => Err(BurnError::TokenOutOfRange { token, vocab_size }),
            None => Ok(()),
        }
    }
}
