//! One round: draft, forward, verify, commit, observe, over several sequences in one pass.
//!
//! ```text
//! draft    each sequence proposes a token tree below its last token      Drafter::draft
//!          one pass runs the streams that drafts wait for                StreamBatch
//!          the budget rule cuts the trees                                Budget
//! forward  one target pass over all trees, logits of all their nodes     Model::forward, Model::logits
//! verify   walk down each tree, one emitted token per visited node       Acceptance::walk
//! commit   only the rows of the accepted path stay in the cache          KvCache::commit
//! observe  the drafter learns from the round                             Drafter::observe
//! ```
//!
//! A sequence that is still reading its prompt takes part with a chunk of it. Nothing is allocated once warm. The round
//! knows no strategy by name and no text, and reads a clock only for a curve that follows the machine.

use forestream_model::{Hidden, Model, Row};

use crate::budget::NodeRanking;
use crate::stream_batch::StreamBatch;
use crate::{Budget, CostCurve, DecodeError, PassReport, Sequence};

/// Prompt tokens per pass. More would not be faster, and fewer let other sequences in earlier.
const PREFILL_CHUNK: usize = 256;

/// Runs rounds; owns the buffers of a pass.
#[derive(Debug)]
pub struct Round {
    budget: Budget,
    /// What passes cost, where that decides.
    cost: Option<CostCurve>,
    prefill_chunk: usize,
    hidden: Hidden,
    /// `[rows, vocab_size]`
    logits: Vec<f32>,
    /// Empty between passes; only its allocation is kept.
    rows: Vec<Row<'static>>,
    ranking: NodeRanking,
    streams: StreamBatch,
}

impl Round {
    /// Rounds under this budget.
    pub fn new(budget: Budget) -> Self {
        let cost = match &budget {
            Budget::Auto(cost) => Some(cost.clone()),
            Budget::Live(curve) => Some(curve.now()),
            Budget::Fixed(_) => None,
        };
        Self {
            budget,
            cost,
            prefill_chunk: PREFILL_CHUNK,
            hidden: Hidden::new(),
            logits: Vec::new(),
            rows: Vec::new(),
            ranking: NodeRanking::default(),
            streams: StreamBatch::default(),
        }
    }

    /// Sets how many prompt tokens go through a pass; never changes a token.
    ///
    /// # Panics
    /// If `prefill_chunk` is zero.
    pub fn set_prefill_chunk(&mut self, prefill_chunk: usize) {
        assert!(prefill_chunk > 0, "a pass reads at least one prompt token");
        self.prefill_chunk = prefill_chunk;
    }

    /// Runs one pass for every sequence that has not ended; each gains at least one token, unless it reads its prompt.
    ///
    /// # Errors
    /// The first failure; the sequences of the pass cannot go on after it.
    pub fn run(&mut self, target: &dyn Model, sequences: &mut [&mut Sequence]) -> Result<(), DecodeError> {
        if let (Budget::Live(curve), Some(cost)) = (&self.budget, &mut self.cost) {
            curve.read(cost);
        }
        for sequence in active(sequences) {
            sequence.plan(target, (self.budget.max_nodes(), self.cost.as_ref()), self.prefill_chunk)?;
        }
        self.run_streams(target, sequences)?;
        for sequence in active(sequences) {
            sequence.finish_plan()?;
        }
        if let Some(cost) = &self.cost {
            self.ranking.cut(cost, sequences);
        }
        self.forward(target, sequences)?;
        for (sequence_index, sequence) in active(sequences).enumerate() {
            sequence.verify(target, &self.hidden, &mut self.logits, sequence_index)?;
        }
        let report = self.cost.as_ref().map(|cost| report(cost, sequences));
        // Ends are noticed here, sequence by sequence, so those that took part are still active.
        for (sequence_index, sequence) in active(sequences).enumerate() {
            sequence.observe(target, &self.hidden, sequence_index, report.as_ref())?;
        }
        Ok(())
    }

    /// The streams that drafts wait for.
    fn run_streams(&mut self, target: &dyn Model, sequences: &mut [&mut Sequence]) -> Result<(), DecodeError> {
        let start = self.budget.clock();
        let num_streams = self.streams.run(target, self.cost.as_ref(), sequences)?;
        if let Budget::Live(curve) = &self.budget
            && num_streams > 0
        {
            curve.record_draft(num_streams, start);
        }
        Ok(())
    }

    /// One pass over the planned trees, and the logits of every node that emits.
    fn forward(&mut self, target: &dyn Model, sequences: &mut [&mut Sequence]) -> Result<(), DecodeError> {
        let start = self.budget.clock();
        let mut rows = recycle(std::mem::take(&mut self.rows));
        rows.extend(active(sequences).map(Sequence::row));
        let result = if rows.is_empty() { Ok(()) } else { target.forward(&mut rows, &mut self.hidden) };
        let is_idle = rows.is_empty();
        self.rows = recycle(rows);
        result?;
        if is_idle {
            return Ok(());
        }
        if self.hidden.num_rows() > 0 {
            target.logits(&self.hidden, 0..self.hidden.num_rows(), &mut self.logits);
        }
        if let Budget::Live(curve) = &self.budget
            && active(sequences).all(|sequence| sequence.is_verified_whole())
        {
            curve.record_pass(active(sequences).map(|sequence| sequence.draft().tree().len()).sum(), start);
        }
        Ok(())
    }
}

/// The verified pass in numbers.
fn report<'a>(cost: &'a CostCurve, sequences: &mut [&mut Sequence]) -> PassReport<'a> {
    let mut report = PassReport { cost, nodes: 0, tokens: 0, draft_seconds: 0.0 };
    for sequence in active(sequences) {
        report.nodes += sequence.draft().tree().len();
        report.tokens += sequence.num_emitted();
        report.draft_seconds += sequence.draft().seconds();
    }
    report
}

/// The sequences that take part in a pass, in order.
pub(crate) fn active<'a>(sequences: &'a mut [&mut Sequence]) -> impl Iterator<Item = &'a mut Sequence> {
    sequences.iter_mut().map(|sequence| &mut **sequence).filter(|sequence| sequence.finish_reason().is_none())
}

/// The allocation of `items`, ready for items that borrow from something else: the standard library collects in place.
pub(crate) fn recycle<From, To>(mut items: Vec<From>) -> Vec<To> {
    items.clear();
    items.into_iter().map(|_| unreachable!("the items were cleared")).collect()
}
