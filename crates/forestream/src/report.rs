//! What is known about an answer when it has ended, in the field names that other tools read.
//!
//! `timings` has llama.cpp's names, `speculative` vLLM's; `docs/cli.md` defines each field.

use std::fmt;

use forestream_decode::{Stats, Timings};
use forestream_model::TokenId;
use serde::{Deserialize, Serialize};

/// A report on one answer.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// The generated tokens, a stop token included.
    pub token_ids: Vec<TokenId>,
    /// The generated text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The seed of the draws.
    pub seed: u64,
    /// Counts of tokens.
    pub usage: Usage,
    /// Times and speeds.
    pub timings: ReportTimings,
    /// What drafting achieved.
    pub speculative: Speculative,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model's stop token, or a stop string.
    Stop,
    /// The limit, or a full context.
    Length,
    /// Whoever asked for it wanted no more.
    #[default]
    Abort,
}

impl From<forestream_decode::FinishReason> for FinishReason {
    fn from(reason: forestream_decode::FinishReason) -> Self {
        match reason {
            forestream_decode::FinishReason::Stop => Self::Stop,
            forestream_decode::FinishReason::Length => Self::Length,
        }
    }
}

/// The word that JSON has for it.
impl fmt::Display for FinishReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// Counts of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer, a stop token included.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
}

/// Times and speeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ReportTimings {
    /// Prompt tokens that were in the cache already.
    pub cache_n: usize,
    /// Prompt tokens that were computed.
    pub prompt_n: usize,
    /// Milliseconds of the passes over the prompt; 0 where one token of it was left, which a round reads.
    pub prompt_ms: f64,
    /// Milliseconds for each computed prompt token.
    pub prompt_per_token_ms: f64,
    /// Prompt tokens per second.
    pub prompt_per_second: f64,
    /// Generated tokens, the one that the prompt's last pass gives included.
    pub predicted_n: usize,
    /// Milliseconds of all rounds.
    pub predicted_ms: f64,
    /// Milliseconds for each token that the rounds gave.
    pub predicted_per_token_ms: f64,
    /// Tokens per second of the rounds.
    pub predicted_per_second: f64,
    /// Draft tokens that were verified.
    pub draft_n: usize,
    /// Draft tokens that were accepted.
    pub draft_n_accepted: usize,
    /// Rounds that verified a draft or a root alone.
    pub draft_rounds: usize,
}

/// What drafting achieved.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Speculative {
    /// The strategies, comma separated.
    pub strategy: String,
    /// Passes after the prompt.
    pub rounds: usize,
    /// Emitted tokens per round; 1 means no help.
    pub mean_acceptance_length: f64,
    /// At index `j`: rounds that accepted exactly `j` draft tokens.
    pub acceptance_histogram: Vec<usize>,
    /// Accepted draft tokens per verified one.
    pub draft_acceptance_rate: f64,
    /// Draft tokens that the early exit ended.
    pub pruned_tokens: usize,
}

impl Report {
    /// The part of a report that follows from counts and times.
    pub(crate) fn measured(stats: &Stats, timings: Timings) -> Self {
        let prompt_n = stats.read_tokens;
        let prompt_ms = timings.prefill.as_secs_f64() * 1e3;
        let predicted_ms = timings.decode.as_secs_f64() * 1e3;
        let by_rounds = stats.completion_tokens - stats.prefill_emitted;
        Self {
            usage: Usage { prompt_tokens: stats.prompt_tokens, ..Usage::default() },
            timings: ReportTimings {
                cache_n: stats.reused_tokens,
                prompt_n,
                prompt_ms,
                prompt_per_token_ms: ratio(prompt_ms, prompt_n as f64),
                prompt_per_second: ratio(prompt_n as f64, prompt_ms / 1e3),
                predicted_n: stats.completion_tokens,
                predicted_ms,
                predicted_per_token_ms: ratio(predicted_ms, by_rounds as f64),
                predicted_per_second: ratio(by_rounds as f64, predicted_ms / 1e3),
                draft_n: stats.drafted,
                draft_n_accepted: stats.accepted,
                draft_rounds: stats.rounds,
            },
            speculative: Speculative {
                rounds: stats.rounds,
                mean_acceptance_length: stats.mean_acceptance_length(),
                acceptance_histogram: stats.acceptance_histogram.clone(),
                draft_acceptance_rate: stats.acceptance_rate(),
                pruned_tokens: stats.pruned,
                ..Speculative::default()
            },
            ..Self::default()
        }
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let timings = &self.timings;
        let (num_known, num_all) = (timings.cache_n + timings.prompt_n, self.usage.prompt_tokens);
        let part = if num_known < num_all { format!("{num_known} of ") } else { String::new() };
        let cached = if timings.cache_n > 0 { format!(" ({} cached)", timings.cache_n) } else { String::new() };
        let is_measured = timings.prompt_ms > 0.0;
        let rate = if is_measured { format!(" at {:.0}/s", timings.prompt_per_second) } else { String::new() };
        format!(
            "prompt {part}{num_all} tokens{cached}{rate} | answer {} tokens at {:.1}/s | {}: {} rounds, {:.2} tokens each, {:.2} of them \
             accepted drafts | {} | seed {}",
            self.usage.completion_tokens,
            timings.predicted_per_second,
            self.speculative.strategy,
            self.speculative.rounds,
            self.speculative.mean_acceptance_length,
            ratio(timings.draft_n_accepted as f64, self.speculative.rounds as f64),
            self.finish_reason,
            self.seed,
        )
    }
}

/// A ratio that is 0 where nothing was counted.
pub(crate) fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator > 0.0 { numerator / denominator } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reasons_have_the_words_of_other_tools() {
        for (reason, word) in
            [(FinishReason::Stop, "stop"), (FinishReason::Length, "length"), (FinishReason::Abort, "abort")]
        {
            assert_eq!(serde_json::to_value(reason).unwrap(), word);
            assert_eq!(serde_json::from_value::<FinishReason>(word.into()).unwrap(), reason);
            assert_eq!(reason.to_string(), word);
        }
    }
}
