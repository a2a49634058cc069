//! Repeat, presence and frequency penalties over the last tokens of prompt and answer.
//!
//! The formulas are llama.cpp's: the repeat penalty of the CTRL paper (arXiv 1909.05858), then `OpenAI`'s two.

use forestream_model::TokenId;

use crate::SamplingSettings;

/// Occurrences of each token in the window, all zero between calls.
#[derive(Debug, Default)]
pub(crate) struct Penalties {
    counts: Vec<u32>,
}

impl Penalties {
    /// Lowers the logits of the tokens at the end of `context`.
    pub(crate) fn apply(&mut self, logits: &mut [f32], context: &[TokenId], settings: &SamplingSettings) {
        if !settings.has_penalties() {
            return;
        }
        self.counts.resize(logits.len(), 0);
        let window_len = settings.penalty_last_n.unwrap_or(context.len()).min(context.len());
        let window = &context[context.len() - window_len..];
        for &token in window {
            self.counts[token as usize] += 1;
        }
        for &token in window {
            let count = std::mem::take(&mut self.counts[token as usize]);
            if count > 0 {
                let logit = &mut logits[token as usize];
                *logit = if *logit > 0.0 { *logit / settings.repeat_penalty } else { *logit * settings.repeat_penalty };
                *logit -= count as f32 * settings.frequency_penalty + settings.presence_penalty;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_tokens_are_penalized_once_per_kind() {
        let settings = SamplingSettings {
            repeat_penalty: 2.0,
            presence_penalty: 0.25,
            frequency_penalty: 0.5,
            penalty_last_n: Some(4),
            ..SamplingSettings::default()
        };
        let mut penalties = Penalties::default();
        for _ in 0..2 {
            let mut logits = [4.0, -1.0, 3.0, 1.0];
            penalties.apply(&mut logits, &[3, 3, 0, 1, 0, 2], &settings);
            // token 3 has left the window; token 0 stands in it twice
            assert_eq!(logits, [4.0 / 2.0 - 2.0 * 0.5 - 0.25, -2.0 - 0.75, 1.5 - 0.75, 1.0]);
        }
    }

    #[test]
    fn a_window_of_all_tokens_reaches_the_start() {
        let settings = SamplingSettings { presence_penalty: 1.0, penalty_last_n: None, ..SamplingSettings::default() };
        let mut logits = [0.0, 0.0, 0.0];
        Penalties::default().apply(&mut logits, &[2, 1, 1, 1], &settings);
        assert_eq!(logits, [0.0, -1.0, -1.0]);
    }
}
