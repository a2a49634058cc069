//! Raw counts of a generation and the rates that readers derive from them; the only place that reads a clock.

use std::time::{Duration, Instant};

/// Counts of one sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, tokens whose rows were in the cache already.
    pub reused_tokens: usize,
    /// Prompt tokens that went through passes so far; once the prompt is read, all that were not reused.
    pub read_tokens: usize,
    /// Passes over parts of the prompt.
    pub prefill_passes: usize,
    /// Tokens emitted, a stop token included.
    pub completion_tokens: usize,
    /// Of those, tokens that came out of the prompt's last pass: 1, or 0 when that pass was a round.
    pub prefill_emitted: usize,
    /// Passes that verified a draft, or a root alone.
    pub rounds: usize,
    /// Draft tokens verified, probes included.
    pub drafted: usize,
    /// Of those, tokens that the early exit ended: only the layers below the streams ran on them.
    pub pruned: usize,
    /// Draft tokens kept.
    pub accepted: usize,
    /// At index `j`: rounds that accepted exactly `j` draft tokens, the bonus token not counted.
    pub acceptance_histogram: Vec<usize>,
}

impl Stats {
    pub(crate) fn record_round(&mut self, drafted: usize, accepted: usize) {
        self.rounds += 1;
        self.drafted += drafted;
        self.accepted += accepted;
        if self.acceptance_histogram.len() <= accepted {
            self.acceptance_histogram.resize(accepted + 1, 0);
        }
        self.acceptance_histogram[accepted] += 1;
    }

    /// Emitted tokens per round, bonus token included; 1 means that drafting did not help.
    pub fn mean_acceptance_length(&self) -> f64 {
        1.0 + self.accepted as f64 / self.rounds.max(1) as f64
    }

    /// Accepted draft tokens per verified one; 0 when nothing was drafted.
    pub fn acceptance_rate(&self) -> f64 {
        self.accepted as f64 / self.drafted.max(1) as f64
    }

    /// At index `i`: rounds that accepted a draft token at depth `i + 1`.
    pub fn accepted_per_position(&self) -> Vec<usize> {
        let mut counts: Vec<usize> = self.acceptance_histogram.iter().skip(1).copied().collect();
        for index in (1..counts.len()).rev() {
            counts[index - 1] += counts[index];
        }
        counts
    }
}

/// Wall time of one generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Passes over the prompt; its last one emits the first token.
    pub prefill: Duration,
    /// All rounds after the first token.
    pub decode: Duration,
}

impl Timings {
    /// Runs `work` and returns the wall time that it took.
    pub(crate) fn measure<T>(work: impl FnOnce() -> T) -> (T, Duration) {
        let start = Instant::now();
        let result = work();
        (result, start.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_counts() {
        let mut stats = Stats::default();
        for accepted in [0, 2, 3, 0] {
            stats.record_round(4, accepted);
        }
        assert_eq!(stats.acceptance_histogram, [2, 0, 1, 1]);
        assert_eq!(stats.accepted_per_position(), [2, 2, 1]);
        assert!((stats.mean_acceptance_length() - 2.25).abs() < 1e-12);
        assert!((stats.acceptance_rate() - 5.0 / 16.0).abs() < 1e-12);
        assert!((Stats::default().mean_acceptance_length() - 1.0).abs() < 1e-12);
    }
}
