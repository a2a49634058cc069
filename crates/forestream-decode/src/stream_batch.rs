//! One stream pass for all sequences whose drafts wait for one.
//!
//! The weights of the streams are read once for all of them, as the main pass reads its own once. Each sequence runs as many
//! streams as its drafter asked for. Source: `docs/speculative-streaming.md`, the deferred pass.

use forestream_model::streams::Anchor;
use forestream_model::{Hidden, Model, Row};

use crate::round::{active, recycle};
use crate::{CostCurve, DecodeError, Sequence};

/// The buffers of a stream pass.
#[derive(Debug, Default)]
pub(crate) struct StreamBatch {
    states: Hidden,
    /// `[streams, draft_vocabulary]`, sequence after sequence
    logits: Vec<f32>,
    /// Empty between passes, as `anchors`; only their allocations are kept.
    rows: Vec<Row<'static>>,
    anchors: Vec<Anchor<'static>>,
}

impl StreamBatch {
    /// Runs the awaited streams and lets the drafts go on; returns how many streams there were.
    ///
    /// # Errors
    /// If the pass or a drafter fails.
    pub(crate) fn run(
        &mut self,
        target: &dyn Model,
        cost: Option<&CostCurve>,
        sequences: &mut [&mut Sequence],
    ) -> Result<usize, DecodeError> {
        let Some(streams) = target.streams() else { return Ok(0) };
        let mut rows = recycle(std::mem::take(&mut self.rows));
        let mut anchors = recycle(std::mem::take(&mut self.anchors));
        for (row, anchor) in active(sequences).filter_map(Sequence::awaited_streams) {
            rows.push(row);
            anchors.push(anchor);
        }
        let num_waiting = rows.len();
        let result = if num_waiting == 0 { Ok(()) } else { streams.run(&mut rows, &anchors, &mut self.states) };
        (self.rows, self.anchors) = (recycle(rows), recycle(anchors));
        result?;
        if num_waiting == 0 {
            return Ok(0);
        }
        let num_streams = self.states.num_rows();
        streams.stream_logits(&self.states, 0..num_streams, &mut self.logits);
        let seconds = cost.map_or(0.0, |cost| cost.draft_seconds(num_streams)) / num_waiting as f64;
        let width = streams.draft_vocabulary().len();
        let waiting = active(sequences).filter_map(|sequence| sequence.is_waiting().then_some(sequence));
        for (index, sequence) in waiting.enumerate() {
            let rows = self.states.rows_of(index);
            sequence.draft_from_streams(target, cost, &self.logits[rows.start * width..rows.end * width], seconds)?;
        }
        Ok(num_streams)
    }
}
