//! Whether drafting pays on this text: a drafter that costs time stops asking where plain decoding is faster.
//!
//! A drafted round is rated by the measured costs of its pass and of drafting: its emitted tokens, in units of those that the
//! same time would have given without the draft, to this sequence and to others in the pass. While the running mean is
//! below 1, rounds go undrafted, twice as many after each trial that fails. The decision is a function of text and costs.

use crate::{CostCurve, Draft};

/// A verified pass in numbers, over all its sequences: what it took by the measured curve, and what it gave.
#[derive(Clone, Copy, Debug)]
pub struct PassReport<'a> {
    pub(crate) cost: &'a CostCurve,
    /// Nodes that went through.
    pub(crate) nodes: usize,
    /// Tokens that were emitted.
    pub(crate) tokens: usize,
    /// What all drafts took.
    pub(crate) draft_seconds: f64,
}

impl PassReport<'_> {
    /// The tokens that `draft` gave its sequence, in units of what its time would have given without it: `expected` tokens of the
    /// sequence itself, and what the whole pass would have emitted in the rest of that time.
    fn gain(&self, draft: &Draft, num_emitted: usize, expected: f64) -> f64 {
        let seconds = self.cost.seconds(self.nodes) + self.draft_seconds;
        let nodes = self.nodes - draft.num_draft_tokens();
        let seconds_without = self.cost.seconds(nodes) + self.draft_seconds - draft.seconds();
        let tokens_without = (self.tokens - num_emitted) as f64 + expected;
        num_emitted as f64 / (expected + (seconds - seconds_without) * tokens_without / seconds_without)
    }
}

/// Weight of the newest round in the running mean.
const NEWEST: f64 = 0.1;
/// What drafting is believed to be worth before there is experience, and when it is tried again.
const PRIOR: f64 = 1.03;
/// How many draft tokens a round is believed to accept before there is experience.
const PRIOR_REACH: f64 = 1.5;
/// A mean that ends the doubt of earlier trials.
const SUCCESS: f64 = 1.1;
/// Rounds between trials: at first, and at most.
const FIRST_PAUSE: u32 = 2;
const LAST_PAUSE: u32 = 32;

/// The running decision of one sequence.
#[derive(Debug)]
pub(crate) struct Worth {
    /// Mean gain of drafted rounds.
    rate: f64,
    /// Undrafted rounds still to go.
    pause: u32,
    /// The pause after the next failure.
    next_pause: u32,
    /// Mean number of draft tokens that drafted rounds accept.
    reach: f64,
    /// Tokens that the round under way was expected to emit without streams.
    expected: f64,
    /// How many streams the round under way was drafted with; 0 if it was not.
    num_streams: usize,
}

impl Default for Worth {
    fn default() -> Self {
        Self { rate: PRIOR, pause: 0, next_pause: FIRST_PAUSE, reach: PRIOR_REACH, expected: 1.0, num_streams: 0 }
    }
}

impl Worth {
    /// How many of `num_streams` streams to draft the coming round with; to be asked once a round. Without known costs: all.
    ///
    /// One more than the text has lately reached is worth running; the others would cost time for nothing. Where other
    /// drafters expect to reach as far already, none is; to expect less than a token is no reason, or streams that failed
    /// for a while would not be tried again.
    pub(crate) fn decide(&mut self, cost: Option<&CostCurve>, num_streams: usize, expected: f32) -> usize {
        self.num_streams = match cost {
            None => num_streams,
            Some(_) if f64::from(expected) >= self.reach.max(1.0) => return 0,
            Some(_) if self.pause > 0 => 0,
            Some(_) => num_streams.min((self.reach + 1.0).ceil() as usize),
        };
        self.pause = self.pause.saturating_sub(1);
        self.expected = 1.0 + f64::from(expected);
        self.num_streams
    }

    /// Whether the coming round goes undrafted.
    pub(crate) fn is_resting(&self) -> bool {
        self.pause > 0
    }

    /// Learns from a round that verified `draft` in the pass of `report` and emitted `num_emitted` tokens.
    pub(crate) fn record(&mut self, report: Option<&PassReport<'_>>, draft: &Draft, num_emitted: usize) {
        let is_drafted = std::mem::take(&mut self.num_streams) > 0;
        let Some(report) = report.filter(|_| is_drafted) else { return };
        self.reach += NEWEST * (num_emitted as f64 - 1.0 - self.reach);
        let rate = report.gain(draft, num_emitted, self.expected);
        self.rate += NEWEST * (rate - self.rate);
        if self.rate < 1.0 {
            self.pause = self.next_pause;
            self.next_pause = (2 * self.next_pause).min(LAST_PAUSE);
            self.rate = PRIOR;
        } else if self.rate > SUCCESS {
            self.next_pause = FIRST_PAUSE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A draft of `num_nodes` nodes that took this long.
    fn draft(num_nodes: usize, seconds: f64) -> Draft {
        let mut draft = Draft::default();
        draft.set_chain(&vec![0; num_nodes]);
        draft.add_seconds(seconds);
        draft
    }

    /// The report of a pass over `draft`, which gave `num_emitted` tokens, and over `others` plain sequences.
    fn report<'a>(cost: &'a CostCurve, draft: &Draft, num_emitted: usize, others: usize) -> PassReport<'a> {
        let (nodes, tokens) = (draft.tree().len() + others, num_emitted + others);
        PassReport { cost, nodes, tokens, draft_seconds: draft.seconds() }
    }

    /// How many of 200 rounds beside `others` plain sequences are drafted when each drafted one takes `seconds` to draft and
    /// emits `num_emitted`.
    fn drafted_beside(others: usize, seconds: f64, num_emitted: usize) -> usize {
        let cost = CostCurve::new(&[(1, 1.0), (4, 1.5), (8, 2.5)]).unwrap();
        let mut worth = Worth::default();
        let round = |_: &usize| {
            let is_drafted = worth.decide(Some(&cost), 3, 0.0) > 0;
            let (draft, num_emitted) = if is_drafted { (draft(4, seconds), num_emitted) } else { (draft(1, 0.0), 1) };
            worth.record(Some(&report(&cost, &draft, num_emitted, others)), &draft, num_emitted);
            is_drafted
        };
        (0..200).filter(round).count()
    }

    fn drafted(seconds: f64, num_emitted: usize) -> usize {
        drafted_beside(0, seconds, num_emitted)
    }

    #[test]
    fn useless_drafts_become_rare_and_useful_ones_stay() {
        assert_eq!(drafted(0.3, 3), 200);
        assert!((1..=20).contains(&drafted(0.3, 1)), "{}", drafted(0.3, 1));
        assert_eq!(drafted(0.3, 2), 200);
        assert!((1..=20).contains(&drafted(1.5, 2)), "the same tokens from a dearer draft do not pay");
        assert_eq!(Worth::default().decide(None, 4, 0.0), 4);
    }

    #[test]
    fn a_draft_has_to_earn_the_time_that_it_takes_from_others() {
        // Three more nodes cost 0.5 alone, and 0.75 beside three others: half of a pass in which all four emit a token.
        assert_eq!(drafted_beside(0, 0.1, 2), 200);
        assert!((1..=20).contains(&drafted_beside(3, 0.1, 2)), "{}", drafted_beside(3, 0.1, 2));
        assert_eq!(drafted_beside(3, 0.1, 6), 200, "more tokens are worth it in company too");
    }

    #[test]
    fn alone_a_gain_is_the_speed_in_units_of_plain_decoding() {
        let (cost, draft) = (CostCurve::new(&[(1, 1.0), (4, 1.5)]).unwrap(), draft(4, 0.3));
        let gain = report(&cost, &draft, 3, 0).gain(&draft, 3, 1.0);
        assert!((gain - 3.0 / 1.8).abs() < 1e-12, "{gain}");
    }

    #[test]
    fn streams_rest_where_others_reach_as_far() {
        let cost = CostCurve::new(&[(1, 1.0), (8, 1.1)]).unwrap();
        let decide = |expected| Worth::default().decide(Some(&cost), 4, expected);
        assert_eq!((decide(0.0), decide(3.0)), (3, 0));
    }

    #[test]
    fn streams_that_failed_are_tried_again_beside_others() {
        let cost = CostCurve::new(&[(1, 1.0), (4, 1.5), (8, 2.5)]).unwrap();
        let mut worth = Worth::default();
        let mut num_drafted = |rounds: usize, streams_give: usize| {
            let round = |_: &usize| {
                let is_drafted = worth.decide(Some(&cost), 3, 0.2) > 0;
                let num_emitted = if is_drafted { streams_give } else { 1 };
                let draft = draft(4, if is_drafted { 0.3 } else { 0.0 });
                worth.record(Some(&report(&cost, &draft, num_emitted, 0)), &draft, num_emitted);
                is_drafted
            };
            (0..rounds).filter(round).count()
        };
        assert!((1..100).contains(&num_drafted(600, 1)), "streams that never help are tried now and then");
        assert!(num_drafted(600, 4) > 500, "they come back where they help");
    }

    #[test]
    fn as_many_streams_run_as_the_text_reaches() {
        let cost = CostCurve::new(&[(1, 1.0), (8, 1.1)]).unwrap();
        for (num_emitted, expected) in [(1, 1), (2, 2), (4, 4), (6, 6)] {
            let mut worth = Worth::default();
            for _ in 0..100 {
                worth.decide(Some(&cost), 6, 0.0);
                let draft = draft(8, 0.0);
                worth.record(Some(&report(&cost, &draft, num_emitted, 0)), &draft, num_emitted);
            }
            worth.pause = 0;
            let num_streams = worth.decide(Some(&cost), 6, 0.0);
            assert!((expected..=expected + 1).contains(&num_streams), "{num_emitted} emitted: {num_streams}");
        }
    }
}
