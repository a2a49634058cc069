//! Whether drafting pays on this text: a drafter that costs time stops asking where plain decoding is faster.
//!
//! A drafted round is rated by the measured costs of its pass and of drafting: emitted tokens per second, in units of plain
//! decoding. While the running mean is below 1, rounds go undrafted, twice as many after each trial that fails. Costs are
//! measured once per machine and model, so the decision is a function of the text and reads no clock.

use crate::CostCurve;

/// Weight of the newest round in the running mean.
const NEWEST: f64 = 0.15;
/// What drafting is believed to be worth before there is experience, and when it is tried again.
const PRIOR: f64 = 1.3;
const TRIAL: f64 = 1.03;
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
    /// Whether the round under way was drafted.
    is_drafted: bool,
}

impl Default for Worth {
    fn default() -> Self {
        Self { rate: PRIOR, pause: 0, next_pause: FIRST_PAUSE, is_drafted: false }
    }
}

impl Worth {
    /// Whether to draft the coming round; to be asked once a round. Without known costs: always.
    pub(crate) fn decide(&mut self, cost: Option<&CostCurve>) -> bool {
        self.is_drafted = cost.is_none() || self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        self.is_drafted
    }

    /// Learns from a round over `num_nodes` nodes that emitted `num_emitted` tokens.
    pub(crate) fn record(&mut self, cost: Option<&CostCurve>, num_nodes: usize, num_emitted: usize) {
        let Some(cost) = cost.filter(|_| self.is_drafted) else { return };
        self.is_drafted = false;
        let seconds = cost.seconds(num_nodes) + cost.draft_seconds();
        let rate = num_emitted as f64 * cost.seconds(1) / seconds;
        self.rate += NEWEST * (rate - self.rate);
        if self.rate < 1.0 {
            self.pause = self.next_pause;
            self.next_pause = (2 * self.next_pause).min(LAST_PAUSE);
            self.rate = TRIAL;
        } else if self.rate > SUCCESS {
            self.next_pause = FIRST_PAUSE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `rounds` rounds are drafted when each drafted one emits `num_emitted`.
    fn drafted(rounds: usize, num_emitted: usize) -> usize {
        let cost = CostCurve::new(&[(1, 1.0), (4, 1.5)]).unwrap().with_draft_seconds(0.3);
        let mut worth = Worth::default();
        let round = |_: &usize| {
            let is_drafted = worth.decide(Some(&cost));
            worth.record(Some(&cost), if is_drafted { 4 } else { 1 }, if is_drafted { num_emitted } else { 1 });
            is_drafted
        };
        (0..rounds).filter(round).count()
    }

    #[test]
    fn useless_drafts_become_rare_and_useful_ones_stay() {
        assert_eq!(drafted(200, 3), 200);
        assert!((1..=20).contains(&drafted(200, 1)), "{}", drafted(200, 1));
        assert!(Worth::default().decide(None));
    }
}
