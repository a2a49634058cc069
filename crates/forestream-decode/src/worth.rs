//! Whether drafting pays on this text: a drafter that costs time stops asking where plain decoding is faster.
//!
//! A drafted round is rated by the measured costs of its pass and of drafting: emitted tokens per second, in units of plain
//! decoding, or of what other drafters would have made of it. While the running mean is below 1, rounds go undrafted, twice
//! as many after each trial that fails. Costs are measured once per machine and model, so the decision is a function of the
//! text and reads no clock.

use crate::{CostCurve, Draft};

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
    /// Mean rate of drafted rounds, relative to plain decoding.
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
    /// drafters expect to reach as far already, none is.
    pub(crate) fn decide(&mut self, cost: Option<&CostCurve>, num_streams: usize, expected: f32) -> usize {
        self.num_streams = match cost {
            None => num_streams,
            Some(_) if f64::from(expected) >= self.reach => return 0,
            Some(_) if self.pause > 0 => 0,
            Some(_) => num_streams.min((self.reach + 1.0).ceil() as usize),
        };
        self.pause = self.pause.saturating_sub(1);
        self.expected = 1.0 + f64::from(expected);
        self.num_streams
    }

    /// Learns from a round that verified `draft` and emitted `num_emitted` tokens.
    pub(crate) fn record(&mut self, cost: Option<&CostCurve>, draft: &Draft, num_emitted: usize) {
        let is_drafted = std::mem::take(&mut self.num_streams) > 0;
        let Some(cost) = cost.filter(|_| is_drafted) else { return };
        self.reach += NEWEST * (num_emitted as f64 - 1.0 - self.reach);
        let seconds = cost.seconds(draft.tree().len()) + draft.seconds();
        let rate = num_emitted as f64 / self.expected * cost.seconds(1) / seconds;
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

    /// How many of `rounds` rounds are drafted when each drafted one takes `seconds` to draft and emits `num_emitted`.
    fn drafted(rounds: usize, seconds: f64, num_emitted: usize) -> usize {
        let cost = CostCurve::new(&[(1, 1.0), (4, 1.5)]).unwrap();
        let mut worth = Worth::default();
        let round = |_: &usize| {
            let is_drafted = worth.decide(Some(&cost), 3, 0.0) > 0;
            let (draft, num_emitted) = if is_drafted { (draft(4, seconds), num_emitted) } else { (draft(1, 0.0), 1) };
            worth.record(Some(&cost), &draft, num_emitted);
            is_drafted
        };
        (0..rounds).filter(round).count()
    }

    #[test]
    fn useless_drafts_become_rare_and_useful_ones_stay() {
        assert_eq!(drafted(200, 0.3, 3), 200);
        assert!((1..=20).contains(&drafted(200, 0.3, 1)), "{}", drafted(200, 0.3, 1));
        assert_eq!(drafted(200, 0.3, 2), 200);
        assert!((1..=20).contains(&drafted(200, 1.5, 2)), "the same tokens from a dearer draft do not pay");
        assert_eq!(Worth::default().decide(None, 4, 0.0), 4);
    }

    #[test]
    fn streams_rest_where_others_reach_as_far() {
        let cost = CostCurve::new(&[(1, 1.0), (8, 1.1)]).unwrap();
        let decide = |expected| Worth::default().decide(Some(&cost), 4, expected);
        assert_eq!((decide(0.0), decide(3.0)), (3, 0));
    }

    #[test]
    fn as_many_streams_run_as_the_text_reaches() {
        let cost = CostCurve::new(&[(1, 1.0), (8, 1.1)]).unwrap();
        for (num_emitted, expected) in [(1, 1), (2, 2), (4, 4), (6, 6)] {
            let mut worth = Worth::default();
            for _ in 0..100 {
                worth.decide(Some(&cost), 6, 0.0);
                worth.record(Some(&cost), &draft(8, 0.0), num_emitted);
            }
            worth.pause = 0;
            let num_streams = worth.decide(Some(&cost), 6, 0.0);
            assert!((expected..=expected + 1).contains(&num_streams), "{num_emitted} emitted: {num_streams}");
        }
    }
}
