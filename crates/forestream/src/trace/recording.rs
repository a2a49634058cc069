//! A model and a drafter that pass everything on to the real ones, and write down what went through.
//!
//! A pass begins with the draft, or with the forward pass where nothing is drafted, and ends when the drafter has
//! observed it. New methods with default bodies in `Model`, `Streams` or `Drafter` have to be passed on here too.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use forestream_decode::{AwaitedStreams, DecodeError, Draft, DraftRequest, Drafter, UnverifiedPass, VerifiedRound};
use forestream_model::streams::{AdapterConfig, Anchor, Streams};
use forestream_model::{DecoderConfig, Hidden, KvCache, Model, ModelError, NodeId, Outputs, Row, TokenId};

use super::clock::{Stage, StageClock};
use super::{TracedNode, TracedPass};

/// What has been written down.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) passes: Vec<TracedPass>,
    clock: StageClock,
    /// Of the pass that runs.
    is_prompt: bool,
    num_proposed: usize,
}

impl Record {
    pub(super) fn new() -> Self {
        Self { passes: Vec::new(), clock: StageClock::new(), is_prompt: false, num_proposed: 0 }
    }

    fn end_pass(&mut self, mut pass: TracedPass) {
        pass.is_prompt = std::mem::take(&mut self.is_prompt);
        pass.num_proposed = std::mem::take(&mut self.num_proposed);
        if pass.is_prompt {
            pass.nodes.clear();
            pass.path.clear();
        }
        pass.times = self.clock.take();
        self.passes.push(pass);
    }
}

/// The record, also after a panic elsewhere: a trace of half an answer is a trace.
pub(super) fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets `stage` run while `work` does, and `after` from then on.
fn timed<T>(record: &Mutex<Record>, stage: Stage, after: Option<Stage>, work: impl FnOnce() -> T) -> T {
    lock(record).clock.switch(Some(stage));
    let result = work();
    lock(record).clock.switch(after);
    result
}

/// Lets the streams' stage run while `work` does, within whatever runs.
fn timed_streams<T>(record: &Mutex<Record>, work: impl FnOnce() -> T) -> T {
    let outer = lock(record).clock.stage();
    timed(record, Stage::Streams, outer, work)
}

/// A model that records.
pub(super) struct RecordingModel<'e> {
    target: &'e dyn Model,
    streams: Option<RecordingStreams<'e>>,
    record: Arc<Mutex<Record>>,
}

impl<'e> RecordingModel<'e> {
    pub(super) fn new(target: &'e dyn Model, record: Arc<Mutex<Record>>) -> Self {
        let streams = target.streams().map(|streams| RecordingStreams { streams, record: Arc::clone(&record) });
        Self { target, streams, record }
    }
}

impl Model for RecordingModel<'_> {
    fn config(&self) -> &DecoderConfig {
        self.target.config()
    }

    fn new_cache(&self, capacity: usize) -> KvCache {
        self.target.new_cache(capacity)
    }

    fn forward(&self, rows: &mut [Row<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        let reads_prompt = |row: &Row<'_>| matches!(row.outputs, Outputs::None | Outputs::Last);
        lock(&self.record).is_prompt = rows.iter().any(reads_prompt);
        timed(&self.record, Stage::Forward, Some(Stage::Commit), || self.target.forward(rows, hidden))
    }

    fn logits(&self, hidden: &Hidden, rows: Range<usize>, logits: &mut Vec<f32>) {
        timed(&self.record, Stage::Logits, Some(Stage::Commit), || self.target.logits(hidden, rows, logits));
    }

    fn streams(&self) -> Option<&dyn Streams> {
        self.streams.as_ref().map(|streams| streams as &dyn Streams)
    }
}

/// Streams that record.
struct RecordingStreams<'e> {
    streams: &'e dyn Streams,
    record: Arc<Mutex<Record>>,
}

impl Streams for RecordingStreams<'_> {
    fn adapter(&self) -> &AdapterConfig {
        self.streams.adapter()
    }

    fn num_parameters(&self) -> usize {
        self.streams.num_parameters()
    }

    fn draft_vocabulary(&self) -> &[TokenId] {
        self.streams.draft_vocabulary()
    }

    fn run(&self, rows: &mut [Row<'_>], anchors: &[Anchor<'_>], states: &mut Hidden) -> Result<(), ModelError> {
        timed_streams(&self.record, || self.streams.run(rows, anchors, states))
    }

    fn run_fused(
        &self,
        row: &mut Row<'_>,
        hidden: &Hidden,
        sequence_index: usize,
        nodes: &[NodeId],
        states: &mut Hidden,
    ) -> Result<(), ModelError> {
        timed_streams(&self.record, || self.streams.run_fused(row, hidden, sequence_index, nodes, states))
    }

    fn stream_logits(&self, states: &Hidden, rows: Range<usize>, logits: &mut Vec<f32>) {
        timed_streams(&self.record, || self.streams.stream_logits(states, rows, logits));
    }

    fn parent_logits(&self, parents: &[TokenId], logits: &mut Vec<f32>) {
        timed_streams(&self.record, || self.streams.parent_logits(parents, logits));
    }
}

/// A drafter that records.
pub(super) struct RecordingDrafter {
    drafter: Box<dyn Drafter>,
    record: Arc<Mutex<Record>>,
}

impl RecordingDrafter {
    pub(super) fn new(drafter: Box<dyn Drafter>, record: Arc<Mutex<Record>>) -> Self {
        Self { drafter, record }
    }
}

impl Drafter for RecordingDrafter {
    fn draft(&mut self, request: &mut DraftRequest<'_>, draft: &mut Draft) -> Result<(), DecodeError> {
        let Self { drafter, record } = self;
        timed(record, Stage::Draft, Some(Stage::Cut), || drafter.draft(request, draft))?;
        lock(record).num_proposed = draft.num_draft_tokens();
        Ok(())
    }

    fn drafts(&self) -> bool {
        self.drafter.drafts()
    }

    fn awaited_streams(&self) -> Option<AwaitedStreams<'_>> {
        self.drafter.awaited_streams()
    }

    fn draft_from_streams(
        &mut self,
        request: &mut DraftRequest<'_>,
        logits: &[f32],
        draft: &mut Draft,
    ) -> Result<(), DecodeError> {
        let Self { drafter, record } = self;
        timed(record, Stage::Draft, Some(Stage::Cut), || drafter.draft_from_streams(request, logits, draft))?;
        lock(record).num_proposed = draft.num_draft_tokens();
        Ok(())
    }

    fn inspect(&mut self, pass: UnverifiedPass<'_>) -> Result<(), DecodeError> {
        self.drafter.inspect(pass)
    }

    fn observe(&mut self, round: VerifiedRound<'_>) -> Result<(), DecodeError> {
        let Self { drafter, record } = self;
        lock(record).clock.switch(None); // writing down is nobody's time
        let pass = written_down(&round);
        timed(record, Stage::Learn, None, || drafter.observe(round))?;
        lock(record).end_pass(pass);
        Ok(())
    }
}

fn written_down(round: &VerifiedRound<'_>) -> TracedPass {
    let (draft, tree) = (round.draft, round.draft.tree());
    let node = |node: NodeId| TracedNode {
        parent: tree.parent(node).map(NodeId::index),
        token: tree.token(node),
        score: draft.score(node),
        is_probe: tree.is_probe(node),
        is_pruned: round.hidden.row_of(round.sequence_index, node).is_none(),
    };
    TracedPass {
        is_prompt: false,
        num_proposed: 0,
        nodes: tree.node_ids().map(node).collect(),
        path: round.path.iter().map(|node| node.index()).collect(),
        emitted: round.context[round.context.len() - round.num_emitted..].to_vec(),
        times: Default::default(),
    }
}
